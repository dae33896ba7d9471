"""The restricted unpickler: what it reads, what it refuses, and that damage is always a BadRecord."""

from __future__ import annotations

import collections
import os
import pickle
import shutil
import struct
import tempfile
from pathlib import Path

import lmdb
import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil import pickles
from ernie_vil.errors import BadRecord, UserError

STORE = Path(__file__).parent / "data" / "ernie_vil" / "samples" / "vcr" / "feat.lmdb"
PROTOCOLS = range(6)
# {'b': '\x00\xff', 'a': array([1., 2.], dtype=float32), 'l': [1, 2L]} as CPython 2.7 pickles it.
PYTHON2_PROTOCOL2 = (
    b"\x80\x02}q\x01(U\x01bU\x02\x00\xffU\x01acnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85"
    b"U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbU\x01l]q\x07(K\x01\x8a\x01\x02eu."
)
PYTHON2_PROTOCOL0 = b"(lp0\nS''\np1\naS'caf\\xc3\\xa9'\np2\naV\\u00e9\np3\naI01\naL5L\na."

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(collections.OrderedDict)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=10,
)


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@given(trees, st.sampled_from(PROTOCOLS))
def test_plain_values_round_trip(value, protocol: int) -> None:
    read = pickles.loads(pickle.dumps(value, protocol), "x")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["?", "i1", "u2", ">i4", "<i8", "f2", "f4", ">f8", "c8", "S3", "U4"])
def test_arrays_and_scalars_round_trip(dtype: str, protocol: int) -> None:
    base = np.arange(6).reshape(2, 3).astype(dtype)
    for array in (base, np.asfortranarray(base), base[:, :0], base[0, 0, None].reshape(()), base[::-1, ::2]):
        read = pickles.loads(pickle.dumps(array, protocol), "x")
        assert read.dtype == array.dtype and read.shape == array.shape and read.flags.writeable
        np.testing.assert_array_equal(read, array)
    scalar = pickles.loads(pickle.dumps({base[1, 2]: base.dtype}, protocol), "x")
    assert scalar == {base[1, 2]: base.dtype} and type(next(iter(scalar))) is type(base[1, 2])


def test_python2_pickles_keep_byte_strings() -> None:
    read = pickles.loads(PYTHON2_PROTOCOL2, "x")
    assert read["b"] == "\x00\xff" and read["l"] == [1, 2]
    np.testing.assert_array_equal(read["a"], np.array([1, 2], "f4"))
    assert pickles.loads(PYTHON2_PROTOCOL0, "x") == ["", "caf\xc3\xa9", "é", True, 5]


def test_shared_values_stay_shared_and_cycles_are_refused() -> None:
    row = [1]
    read = pickles.loads(pickle.dumps([row, row]), "x")
    assert read[0] is read[1]
    row.append(row)
    with pytest.raises(BadRecord, match="contains itself"):
        pickles.loads(pickle.dumps(row), "x")
    nest: list = []
    for _ in range(60):
        nest = [nest, nest]  # 2**60 leaves if sharing were lost
    pickles.loads(pickle.dumps(nest), "x")
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(BadRecord, match="x: containers nested too deeply"):
        pickles.loads(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "x")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("gadget", "name"),
    [
        (Call(os.system, "exit 3"), f"{os.system.__module__}.system"),
        (Call(eval, "1/0"), "eval"),
        (Call(exec, "1/0"), "exec"),
        (Call(getattr, [], "append"), "getattr"),
        (Call(np.load, "/etc/passwd"), "numpy.load"),
        (Call(np.fromfile, "/etc/passwd"), "fromfile"),
        (Call(np.testing._private.utils.runstring, "1/0", {}), "numpy.testing._private.utils.runstring"),
        (Call(__import__, "this"), "__import__"),
        (Call(range, 5), "range"),
        (collections.Counter("a"), "collections.Counter"),
    ],
)
def test_anything_else_is_refused_by_name(gadget, name: str, protocol: int) -> None:
    for data in (pickle.dumps(gadget, protocol), pickle.dumps({"features": [gadget]}, protocol)):
        with pytest.raises(
            UserError, match=rf"^the store, image 7: the pickle asks for \S*{name.replace('.', '[.]')};"
        ):
            pickles.loads(data, "the store, image 7")


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"(S'exit 3'\niposix\nsystem\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"ccopy_reg\nadd_extension\n.",
        b"cnumpy.f2py.crackfortran\nmyeval\n.",
        b"cnumpy\nndarray.dumps\n.",
        b"\x82\x01.",
        b"Pdisk\n.",
    ],
)
def test_refused_opcodes_and_names(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^x: the pickle (asks for|uses)"):
        pickles.loads(data, "x")


def reconstructed(shape: bytes, dtype: bytes, payload: bytes) -> bytes:
    make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return b"\x80\x04" + make + b"(K\x01" + shape + dtype + b"\x89" + payload + b"tb."


FLOAT32 = (
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
OBJECT = FLOAT32.replace(b"f4", b"O8")
HUGE = struct.pack("<Q", 1 << 62)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\x8d" + HUGE + b"abc", "BINUNICODE8 .* reaches past"),
        (b"\x80\x04\x8e" + HUGE + b"abc.", "BINBYTES8 .* reaches past"),
        (b"\x80\x05\x96" + HUGE + b".", "BYTEARRAY8 .* reaches past"),
        (b"X\xff\xff\xff\xffabc.", "BINUNICODE .* reaches past"),
        (b"T\xff\xff\xff\xffabc.", "negative length"),
        (b"\x8b\xff\xff\xff\x7fabc.", "LONG4 .* reaches past"),
        (b"Nr\xff\xff\xff\xff.", "memo index 4294967295"),
        (b"Np99999999999\n.", "memo index 99999999999"),
        (b"Np-1\n.", "memo index -1"),
        (b"I" + b"9" * 100_000 + b"\n.", "a number of 100001 characters"),
        (b"L" + b"9" * 100_000 + b"L\n.", "a number of 100002 characters"),
        (b"c__builtin__\nbytearray\n(L9999999999999L\ntR.", "built from something other"),
        (b"c__builtin__\nbytes\n(L9999999999999L\ntR.", "built from something other"),
        (reconstructed(b"\x8a\x06\0\0\0\0\0\1\x85", FLOAT32, b"C\x04abcd"), "needs .* bytes, the file has 4"),
        (reconstructed(b"J\xff\xff\xff\xff\x85", FLOAT32, b"C\x04abcd"), "array shape"),
        (reconstructed(b"K\x02\x85", FLOAT32, b"C\x04abcd"), "needs 8 bytes, the file has 4"),
        (reconstructed(b"K\x01\x85", FLOAT32, b"C\x08abcdabcd"), "needs 4 bytes, the file has 8"),
        (reconstructed(b"K\x01\x85", FLOAT32, b"K\x04"), "array contents of type int"),
        (reconstructed(b"K\x01\x85", OBJECT, b"]K\x04a"), "type 'O8' are not read"),
        (reconstructed(b"K\x01\x85", FLOAT32.replace(b"<NNN", b"<N)}"), b"C\x04abcd"), "structured types"),
        (b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R.", "an array without contents"),
        (b"ccollections\nOrderedDict\n}X\x04\0\0\0callNsb.", "tries to change a function"),
        (b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0bz2tR.", "encoding 'bz2'"),
        (b"K\x01K\x02.trailing", "8 bytes follow the end"),
        (b"\xff\xfe", "not a pickle"),
        (b"", "truncated"),
        (b"}]K\x01s.", "unusable pickle"),
    ],
)
def test_hostile_and_damaged_pickles(data: bytes, fault: str) -> None:
    with pytest.raises(BadRecord, match=f"^x: .*{fault}"):
        pickles.loads(data, "x")


def store_records() -> list[bytes]:
    # A copy, since LMDB refuses to open a file again that some other test still has open.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(STORE / "data.mdb", folder)
        with lmdb.open(folder, readonly=True, lock=False) as store, store.begin() as transaction:
            return [transaction.get(b"keys"), transaction.get(b"7")]


def test_truncation_at_every_length() -> None:
    keys, record = store_records()
    array = np.arange(5, dtype="f4")
    samples = [pickle.dumps({"a": array, "b": [array[0], b"x"]}, protocol) for protocol in PROTOCOLS]
    for data in (*samples, keys, PYTHON2_PROTOCOL2, PYTHON2_PROTOCOL0):
        pickles.loads(data, "x")
        for end in range(len(data)):
            with pytest.raises(BadRecord, match=r"^x: "):
                pickles.loads(data[:end], "x")
    for end in (*range(200), *range(200, len(record), 997), *range(len(record) - 200, len(record))):
        with pytest.raises(BadRecord, match=r"^x: "):
            pickles.loads(record[:end], "x")


@settings(max_examples=400)
@given(st.data(), st.sampled_from(PROTOCOLS))
def test_changed_bytes_never_surface_as_another_exception(data: st.DataObject, protocol: int) -> None:
    sample = bytearray(pickle.dumps({"a": np.arange(3), "b": ["x", b"y", 1.5, {2}]}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    try:
        pickles.loads(bytes(sample), "x")
    except (BadRecord, UserError) as error:
        assert str(error).startswith("x: ")


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_garbage_is_a_bad_record(data: bytes) -> None:
    try:
        pickles.loads(data, "x")
    except (BadRecord, UserError) as error:
        assert str(error).startswith("x: ")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_state_dicts(tmp_path: Path, protocol: int) -> None:
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    state = {**layer.state_dict(), "half": paddle.to_tensor([1.0, 2.0], dtype="bfloat16"), "zero": paddle.zeros([])}
    paddle.save(state, str(tmp_path / "m.pdparams"), protocol=protocol)
    read = pickles.load_state(tmp_path / "m.pdparams")
    assert read.keys() == state.keys()
    for name, value in layer.state_dict().items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], value.numpy())
    np.testing.assert_array_equal(read["half"], np.array([0x3F80, 0x4000], np.uint16))
    assert read["zero"].shape == ()


def test_paddle_optimizer_and_nested_containers(tmp_path: Path) -> None:
    layer = paddle.nn.Linear(3, 2)
    schedule = paddle.optimizer.lr.NoamDecay(2, 3)
    adam = paddle.optimizer.Adam(parameters=layer.parameters(), learning_rate=schedule)
    layer(paddle.ones([1, 3])).sum().backward()
    adam.step()
    paddle.save(adam.state_dict(), str(tmp_path / "m.pdopt"))
    read = pickles.load_paddle(tmp_path / "m.pdopt")
    assert read["LR_Scheduler"]["last_epoch"] == schedule.last_epoch
    assert "StructuredToParameterName@@" not in read
    assert sum(isinstance(value, np.ndarray) for value in read.values()) == 8
    with pytest.raises(UserError, match=r"not arrays: LR_Scheduler \(dict\)"):
        pickles.load_state(tmp_path / "m.pdopt")

    nested = {"model": layer.state_dict(), "extra": [(layer.weight, 3), {"w": layer.weight}], "step": 4}
    paddle.save(nested, str(tmp_path / "nested"))
    read = pickles.load_paddle(tmp_path / "nested")
    np.testing.assert_array_equal(read["model"]["bias"], layer.bias.numpy())
    np.testing.assert_array_equal(read["extra"][0][0], layer.weight.numpy())
    np.testing.assert_array_equal(read["extra"][1]["w"], layer.weight.numpy())
    assert read["step"] == 4 and read["extra"][0][1] == 3


def test_paddle_slices_of_large_arrays_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(12, dtype="f4").reshape(3, 4)
    slices = {"w@@.0": array.ravel()[:7], "w@@.1": array.ravel()[7:]}
    table = {"w": {"OriginShape": (3, 4), "slices": list(slices)}}
    path = tmp_path / "m.pdparams"
    path.write_bytes(pickle.dumps({"b": array[0], **slices, "UnpackBigParamInfor@@": table}, 2))
    read = pickles.load_state(path)
    assert read.keys() == {"b", "w"}
    np.testing.assert_array_equal(read["w"], array)
    path.write_bytes(pickle.dumps({"w@@.0": slices["w@@.0"], "UnpackBigParamInfor@@": table}, 2))
    with pytest.raises(UserError, match="slices of w do not fit"):
        pickles.load_state(path)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(2), b=np.zeros((1, 2), "i8"))
    assert {name: array.shape for name, array in pickles.load_state(tmp_path / "w.npz").items()} == {
        "a": (2,),
        "b": (1, 2),
    }
    np.savez(tmp_path / "o.npz", a=np.array([Call(os.system, "exit 3")], dtype=object))
    (tmp_path / "t.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:-30])
    for name in ("o.npz", "t.npz"):
        with pytest.raises(UserError, match=f"{name}: not a readable .npz"):
            pickles.load_state(tmp_path / name)


def test_files_that_are_missing_empty_or_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.pdparams does not exist. .* holds: nothing"):
        pickles.load_state(tmp_path / "a.pdparams")
    with pytest.raises(UserError, match="is a folder"):
        pickles.load(tmp_path)
    path = tmp_path / "a.pdparams"
    path.write_bytes(b"")
    with pytest.raises(BadRecord, match="empty"):
        pickles.load(path)
    paddle.save({"w": paddle.ones([50])}, str(path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a.pdparams: truncated pickle .* damaged"):
        pickles.load_state(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match="holds a list"):
        pickles.load_state(path)
