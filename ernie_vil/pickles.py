"""Reading pickles without running anything that they ask for.

Region-feature stores, label lists and Paddle's own ``.pdparams`` are pickles, and a pickle can name any function of
the interpreter and have it called. The readers here admit arrays, NumPy scalars, text, byte strings, numbers and
containers.
Every other global is refused **by name before anything is imported**, and arrays are rebuilt from their checked
shape, type and bytes rather than by NumPy's own ``__setstate__``, which trusts what it is given.

This module and :mod:`ernie_vil.errors` stand below all packages and import none of them.
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Union

import numpy as np

from ernie_vil.errors import BadRecord, UserError

_PADDLE_NAME_TABLE = "StructuredToParameterName@@"
_PADDLE_SLICES = "UnpackBigParamInfor@@"
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,8}")
# Python's own limit on decimal text, set here because Python 3.9 has none and converts in quadratic time.
_MAX_NUMBER_TEXT = 4300
_NUMBER_OPCODES = ("INT", "LONG", "FLOAT", "PUT", "GET")
_FORBIDDEN_OPCODES = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
_OPCODES = {ord(info.code): info for info in pickletools.opcodes}
# Opcodes of which nothing needs checking but that they are there whole: code -> bytes.
_FIXED_SIZES = {
    code: 1 + (info.arg.n if info.arg else 0)
    for code, info in _OPCODES.items()
    if (info.arg is None or info.arg.n >= 0) and info.name not in (*_FORBIDDEN_OPCODES, "STOP", "BINPUT", "LONG_BINPUT")
}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def loads(data: bytes, where: str) -> Any:
    """The object in one pickle of any protocol (0 to 5), Python 2's included.

    Byte strings of Python 2 come back as ``str`` with one character per byte (latin-1), so that nothing is lost.
    ``where`` names the record in messages.

    Raises:
        BadRecord: the pickle is truncated, has bytes after its end, or does not describe what it announces.
        UserError: the pickle asks for something other than arrays, text, numbers and containers.
    """
    _check_lengths(data, where)
    return _unpickle(io.BytesIO(data), where)


def load(path: Union[str, Path]) -> Any:
    """The object in a pickle file; see :func:`loads`. A missing file is a :class:`UserError`."""
    path = Path(path)
    _require_file(path)
    if path.stat().st_size == 0:
        raise BadRecord(f"{path}: the file is empty")
    with path.open("rb") as file:
        # Mapped rather than read: the check must not cost a second copy of a file of several gigabytes.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _check_lengths(mapped, str(path))
        return _unpickle(file, str(path))


def load_paddle(path: Union[str, Path]) -> Any:
    """What ``paddle.save`` wrote (``.pdparams``, ``.pdopt``, nested containers), with arrays in place of tensors.

    Paddle's table of parameter names is dropped at every level, tensors kept as ``(name, array)`` become the array,
    and arrays that Paddle cut into slices (over a gigabyte, protocols 2 and 3) are put together again. bfloat16
    tensors are ``uint16`` arrays in the file and stay so.

    Raises:
        UserError: the file is missing, damaged, or asks for anything but arrays, text, numbers and containers.
    """
    try:
        return _plain_from_paddle(load(path), str(path))
    except BadRecord as error:
        raise UserError(
            f"{error}. The file is damaged or not written by paddle.save; fetch or save it again."
        ) from None


def load_state(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """A flat state dict: name -> array, from a file of ``paddle.save(layer.state_dict(), path)`` or an ``.npz`` file.

    Raises:
        UserError: the file is missing or damaged, or an entry is not an array (the entries are named).
    """
    path = Path(path)
    state = _load_npz(path) if path.suffix == ".npz" else load_paddle(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a state dict of name -> array.")
    wrong = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, np.ndarray)]
    if wrong:
        raise UserError(f"{path}: these entries are not arrays: {', '.join(wrong[:10])} ({len(wrong)} in all).")
    return state


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    _require_file(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file of plain arrays ({error}).") from None


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is needed.")
    parent = path.parent
    there = sorted(entry.name for entry in parent.iterdir())[:20] if parent.is_dir() else None
    found = f"{parent} holds: {', '.join(there) or 'nothing'}" if there is not None else f"{parent} does not exist"
    raise UserError(f"{path} does not exist. {found}.")


def _check_lengths(data: Union[bytes, mmap.mmap], where: str) -> None:
    """Walk over the opcodes without executing them.

    Python's unpickler allocates what a pickle announces (a memo index of 2**32 costs 32 GiB), so announced sizes
    are held against the bytes that are there first.
    """
    position, count, end = 0, 0, len(data)
    while position < end:
        count += 1
        code = data[position]
        if code in _FIXED_SIZES:
            position += _FIXED_SIZES[code]
            continue
        info = _OPCODES.get(code)
        if info is None:
            raise BadRecord(f"{where}: not a pickle (byte {code:#04x} at offset {position})")
        if info.name in _FORBIDDEN_OPCODES:
            raise UserError(f"{where}: the pickle uses {info.name}, which refers to objects outside the file; refused.")
        start = position + 1
        position = start if info.arg is None else _end_of_argument(data, start, info, where)
        if info.name == "STOP":
            if position != end:
                raise BadRecord(f"{where}: {end - position} bytes follow the end of the pickle")
            return
        _check_numbers(data[start:position] if "PUT" in info.name else b"", position - start, info, count, where)
    raise BadRecord(f"{where}: truncated pickle ({end} bytes, no end mark)")


def _end_of_argument(data: Union[bytes, mmap.mmap], start: int, info: pickletools.OpcodeInfo, where: str) -> int:
    size, end = info.arg.n, len(data)
    if size >= 0:
        position = start + size
    elif size == pickletools.UP_TO_NEWLINE:
        position = start
        for _ in range(2 if info.name in ("GLOBAL", "INST") else 1):
            newline = data.find(b"\n", position)
            position = newline + 1 if newline >= 0 else end + 1
    else:
        prefix = _LENGTH_BYTES[size]
        signed = size == pickletools.TAKEN_FROM_ARGUMENT4
        length = int.from_bytes(data[start : start + prefix], "little", signed=signed)
        position = start + prefix + length
        if length < 0:
            raise BadRecord(f"{where}: {info.name} announces a negative length ({length})")
    if position > end:
        raise BadRecord(f"{where}: truncated pickle ({info.name} at offset {start - 1} reaches past the {end} bytes)")
    return position


def _check_numbers(argument: bytes, size: int, info: pickletools.OpcodeInfo, count: int, where: str) -> None:
    if info.name in _NUMBER_OPCODES and size > _MAX_NUMBER_TEXT:
        raise BadRecord(f"{where}: a number of {size} characters")
    if not argument:
        return
    if info.name == "PUT":
        index = int(argument) if argument.strip().isdigit() else -1
    else:
        index = int.from_bytes(argument, "little")
    # Picklers number their memo without gaps, so an index is never above the number of opcodes so far.
    if not 0 <= index <= count:
        raise BadRecord(f"{where}: memo index {index} in a pickle of {count} opcodes so far")


def _unpickle(file: BinaryIO, where: str) -> Any:
    unpickler = _RestrictedUnpickler(file, encoding="latin1")
    unpickler.where = where
    try:
        return _resolve(unpickler.load(), {}, set())
    except (UserError, BadRecord) as error:
        raise type(error)(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    except RecursionError:
        raise BadRecord(f"{where}: containers nested too deeply") from None
    except Exception as error:  # a damaged pickle can fail in any of the unpickler's or the constructors' own ways
        raise BadRecord(f"{where}: unusable pickle ({type(error).__name__}: {error})") from None


class _Array:
    """What the pickle says of an array; NumPy sees it only after :func:`_to_array` has checked it."""

    __slots__ = ("state",)

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        # Version, shape, dtype, Fortran order, data; the version is absent in the oldest files.
        self.state = tuple(state)[-4:]


class _Scalar:
    __slots__ = ("data", "dtype")

    def __init__(self, dtype: Any, data: Any = None) -> None:
        self.dtype, self.data = dtype, data

    def __setstate__(self, state: Any) -> None:
        raise BadRecord("a NumPy scalar takes no state")


class _Dtype:
    __slots__ = ("byte_order", "code")

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.code, self.byte_order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1]
        if any(field is not None for field in state[2:5]):
            raise BadRecord("arrays of structured types are not read")


class _Admitted:
    """A callable that a pickle may use. It refuses state, so that a pickle cannot change it for the next one."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise BadRecord("the pickle tries to change a function")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Python 3 writes byte strings in protocols 0 to 2 as ``_codecs.encode(text, 'latin1')``."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise BadRecord(f"byte string in encoding {encoding!r}; only latin1 is written by pickle")
    return text.encode("latin1")


def _bytes_of(make: Callable[..., Any]) -> Callable[..., Any]:
    def build(*arguments: Any) -> Any:
        # bytes(10**12) would allocate a terabyte: lengths are not admitted, only contents.
        if arguments == ("", "latin-1"):
            return make()
        if len(arguments) == 2 and isinstance(arguments[0], str):
            return make(_latin1(*arguments))
        if len(arguments) > 1 or any(not isinstance(argument, (bytes, bytearray, list)) for argument in arguments):
            raise BadRecord("byte string built from something other than bytes")
        return make(*arguments)

    return build


def _not_callable(*arguments: Any) -> Any:
    raise BadRecord("numpy.ndarray called directly")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> _Array:
    return _Array((shape, dtype, order == "F", buffer))


def _admitted_globals() -> dict[tuple[str, str], Callable[..., Any]]:
    plain: dict[str, Callable[..., Any]] = {
        "set": set,
        "frozenset": frozenset,
        "tuple": tuple,  # paddle.save keeps a tensor inside nested containers as tuple((name, array))
        "complex": complex,
        "bytes": _bytes_of(bytes),
        "bytearray": _bytes_of(bytearray),
    }
    admitted: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _latin1,
        ("numpy", "ndarray"): _not_callable,
        ("numpy", "dtype"): _Dtype,
    }
    for builtins in ("builtins", "__builtin__"):
        admitted.update({(builtins, name): call for name, call in plain.items()})
    for core in ("numpy.core", "numpy._core"):
        admitted[(f"{core}.multiarray", "_reconstruct")] = lambda *ignored: _Array()
        admitted[(f"{core}.multiarray", "scalar")] = _Scalar
        admitted[(f"{core}.numeric", "_frombuffer")] = _from_buffer
    return {name: _Admitted(call) for name, call in admitted.items()}


_ADMITTED = _admitted_globals()


class _RestrictedUnpickler(pickle.Unpickler):
    where = ""

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise UserError(
                f"{self.where}: the pickle asks for {module}.{name}; only arrays, text, numbers and containers are "
                "read, because a pickle may run any program. Do not use this file unless you know where it comes from."
            )
        return admitted


def _resolve(value: Any, done: dict[int, Any], active: set[int]) -> Any:
    """The value with real arrays in place of the stand-ins, and fresh containers in place of the unpickler's."""
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return value
    key = id(value)
    if key in done:
        return done[key]
    if key in active:
        raise BadRecord("a container that contains itself")
    active.add(key)
    result: Any
    if isinstance(value, dict):
        pairs = [(_resolve(k, done, active), _resolve(v, done, active)) for k, v in dict.items(value)]
        result = collections.OrderedDict(pairs) if isinstance(value, collections.OrderedDict) else dict(pairs)
    elif isinstance(value, (list, tuple, set, frozenset)):
        result = type(value)([_resolve(item, done, active) for item in value])
    elif isinstance(value, _Array):
        result = _to_array(value)
    elif isinstance(value, _Scalar):
        result = _build(value.dtype, (), False, value.data)[()]
    elif isinstance(value, _Dtype):
        result = _to_dtype(value)
    elif isinstance(value, bytearray):
        result = value
    else:
        raise BadRecord(f"an object of type {type(value).__name__}")
    active.discard(key)
    done[key] = result
    return result


def _to_array(array: _Array) -> np.ndarray:
    if array.state is None or len(array.state) != 4:
        raise BadRecord("an array without contents")
    shape, dtype, fortran, data = array.state
    array.state = None  # its bytes are freed as soon as they are copied
    return _build(dtype, shape, bool(fortran), data)


def _build(dtype: Any, shape: Any, fortran: bool, data: Any) -> np.ndarray:
    dtype = _to_dtype(dtype)
    if not isinstance(shape, tuple) or any(type(side) is not int or side < 0 for side in shape):
        raise BadRecord(f"array shape {shape!r}")
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2 wrote its byte string as text
    if not isinstance(data, (bytes, bytearray)):
        raise BadRecord(f"array contents of type {type(data).__name__}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise BadRecord(f"array of shape {shape} and type {dtype} needs {expected} bytes, the file has {len(data)}")
    return np.ndarray(shape, dtype, buffer=data, order="F" if fortran else "C").copy(order="K")


def _to_dtype(value: Any) -> np.dtype:
    if not isinstance(value, _Dtype):
        raise BadRecord(f"array type {type(value).__name__}")
    if not isinstance(value.code, str) or not _PLAIN_DTYPE.fullmatch(value.code):
        raise BadRecord(f"arrays of type {value.code!r} are not read")
    if value.byte_order not in ("<", ">", "|", "="):
        raise BadRecord(f"byte order {value.byte_order!r}")
    return np.dtype(value.code).newbyteorder(value.byte_order)


def _plain_from_paddle(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        slices = value.get(_PADDLE_SLICES, {})
        joined = {name: _join_slices(value, name, part, where) for name, part in slices.items()}
        parts = {key for part in slices.values() for key in part["slices"]}
        dropped = parts | {_PADDLE_NAME_TABLE, _PADDLE_SLICES}
        plain = {key: _plain_from_paddle(item, where) for key, item in value.items() if key not in dropped}
        return type(value)({**plain, **joined})
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray):
        return value[1]
    if isinstance(value, (list, tuple)):
        return type(value)([_plain_from_paddle(item, where) for item in value])
    return value


def _join_slices(state: dict, name: str, part: Any, where: str) -> np.ndarray:
    try:
        return np.concatenate([state[key] for key in part["slices"]]).reshape(part["OriginShape"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the slices of {name} do not fit together ({error}).") from None
