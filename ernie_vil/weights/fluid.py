"""Weights of the original ERNIE-ViL release: one file per variable, as Paddle Fluid 1.8 wrote them.

The files are parsed here rather than with ``paddle.static``, whose loader returns nothing for such a folder in Paddle 3
and which says of a damaged file only that something is wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import paddle

from ernie_vil.errors import UserError
from ernie_vil.models.account import KeyAccount, account_for
from ernie_vil.models.ernie_vil import CONFIG_FILE, STATE_FILE, ErnieViLConfig
from ernie_vil.weights.fluid_names import to_original, to_ours

VOCABULARY_FILE = "vocab.txt"

_DTYPES = {2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8"}
_VARINT, _BYTES = 0, 2

# Files of a training checkpoint that are no parameters, and why they are left out.
_NO_PARAMETER = (
    (re.compile(r".+_(moment[12]|beta[12]_pow_acc)_\d+"), "optimizer state"),
    (re.compile(r"@.+@|scheduled_learning_rate|learning_rate_\d+"), "step counter or learning rate"),
    (re.compile(r".+\.tmp_\d+"), "value that was fetched for the log"),
    (re.compile(r"\..*"), "hidden file"),
)

# Configuration keys that a tensor's shape decides: key -> (variable, axis).
_SIZES = {
    "vocab_size": ("word_embedding", 0),
    "hidden_size": ("word_embedding", 1),
    "max_position_embeddings": ("pos_embedding", 0),
    "sent_type_vocab_size": ("sent_embedding", 0),
    "feature_size": ("image_emb.w_0", 0),
    "v_hidden_size": ("image_emb.w_0", 1),
    "v_intermediate_size": ("encoder_vlayer_0_ffn_fc_0.w_0", 1),
    "co_hidden_size": ("pooled_fc_text.w_0", 1),
}


@dataclass
class Converted:
    """A model in this package's terms.

    Attributes:
        config: the original's JSON with sizes as the tensors have them, and ``feature_size``.
        state: array by the name in :class:`~ernie_vil.models.ernie_vil.ErnieViLModel`, heads under ``heads.``.
        vocab_path: the vocabulary that lies beside the configuration, if any.
        account: where every **file** of the source went, by its original name.
        corrections: one sentence for each configuration value that the shapes contradicted.
    """

    config: dict[str, Any]
    state: dict[str, np.ndarray]
    vocab_path: Optional[Path]
    account: KeyAccount
    corrections: list[str]

    def summary(self) -> str:
        """What became of every file: how many are backbone and which heads, what was left out, what was corrected."""
        heads = sorted({name.split(".")[1] for name in self.state if name.startswith("heads.")})
        backbone = sum(not name.startswith("heads.") for name in self.state)
        lines = [f"backbone: {backbone} keys; heads: {', '.join(heads) or 'none'} ({len(self.state) - backbone} keys)"]
        return "\n".join([*lines, self.account.summary(), *self.corrections])


def read_fluid_tensor(path: Union[str, Path]) -> np.ndarray:
    """One variable file: int32, int64, float16, float32 or float64, of any shape.

    Raises:
        UserError: the file cannot be read, or is not one complete tensor; the message names the file and the fault.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        return _parse_tensor(data)
    except _Damaged as error:
        raise UserError(f"{path}: not a complete Fluid tensor: {error}. Fetch the file again.") from None


def read_fluid_folder(path: Union[str, Path]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All parameters in a folder of variable files, and the entries that are none with the reason.

    Raises:
        UserError: the folder is missing or has no parameters, or files are damaged; every damaged file is named.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder that holds one file per variable.")
    arrays: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    faults: list[str] = []
    for entry in sorted(path.iterdir()):
        reason = "folder" if entry.is_dir() else _reason_to_ignore(entry.name)
        if reason is not None:
            ignored[entry.name] = reason
            continue
        try:
            arrays[entry.name] = read_fluid_tensor(entry)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    if not arrays:
        there = ", ".join(list(ignored)[:10]) or "nothing"
        raise UserError(f"{path} has no parameter files; it holds: {there}.")
    return arrays, ignored


def convert_fluid(src: Union[str, Path], config_path: Optional[Union[str, Path]] = None) -> Converted:
    """Convert an original release or training checkpoint.

    Args:
        src: the release folder (configuration JSON, ``vocab.txt``, ``params/``), or ``params/`` itself, or the
            ``step_<n>`` folder of a training checkpoint.
        config_path: the configuration JSON; needed if it lies neither in ``src`` nor beside it.

    Sizes are taken from the tensors where the JSON says otherwise. The number of layers is taken from the JSON's
    ``t_biattention_id`` and ``v_biattention_id``, since nothing in the tensors tells at which layers the streams meet.

    Raises:
        UserError: damaged files; no or several configurations; or files that are missing, unknown or of another
            shape than the model's, all of them listed.
    """
    src = Path(src)
    folder = src / "params" if (src / "params").is_dir() else src
    arrays, ignored = read_fluid_folder(folder)
    config_file = Path(config_path) if config_path is not None else _find_config(src)
    values, corrections = _correct_sizes(_read_json(config_file), arrays, config_file)
    config = ErnieViLConfig.from_dict(values, str(config_file))
    shapes = {to_original(name): shape for name, shape in backbone_shapes(config).items()}
    account = account_for({**shapes, **_head_shapes(config, arrays)}, arrays)
    account.ignored.update(ignored)
    account.raise_if_bad(f"{folder} with {config_file}")
    state = {_our_name(name): arrays[name] for name in account.loaded}
    return Converted(config.to_dict(), state, _find_vocabulary(src, config_file), account, corrections)


def write_model_folder(converted: Converted, out: Union[str, Path]) -> None:
    """Write ``config.json``, ``model_state.pdparams`` and, where known, ``vocab.txt``.

    The folder appears under its name only when it is complete. An existing model folder is replaced.

    Raises:
        UserError: ``out`` exists and holds anything else than a model folder's files.
    """
    out = Path(out).resolve()
    _refuse_foreign_files(out)
    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        ErnieViLConfig.from_dict(converted.config).to_json(unfinished / CONFIG_FILE)
        tensors = {name: paddle.to_tensor(array) for name, array in converted.state.items()}
        paddle.save(tensors, str(unfinished / STATE_FILE))
        if converted.vocab_path is not None:
            shutil.copyfile(converted.vocab_path, unfinished / VOCABULARY_FILE)
        if out.exists():
            replaced = out.with_name(f".{out.name}.replaced-{os.getpid()}")
            out.rename(replaced)
            unfinished.rename(out)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def backbone_shapes(config: ErnieViLConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every backbone parameter of :class:`~ernie_vil.models.ernie_vil.ErnieViLModel`."""
    text, region, co = config.hidden_size, config.v_hidden_size, config.co_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "text_embeddings.word.weight": (config.vocab_size, text),
        "text_embeddings.position.weight": (config.max_position_embeddings, text),
        "text_embeddings.segment.weight": (config.sent_type_vocab_size, text),
        **_vectors("text_embeddings.norm", text),
        **_linear("region_embeddings.feature", config.feature_size, region),
        **_linear("region_embeddings.location", 5, region),
        **_vectors("region_embeddings.norm", region),
        **_linear("text_pooler", text, co),
        **_linear("region_pooler", region, co),
    }
    inner = config.v_intermediate_size
    for index in range(config.text_layers):
        shapes.update(_layer(f"text_layers.{index}", text, text, text, 4 * text))
    for index in range(config.region_layers):
        shapes.update(_layer(f"region_layers.{index}", region, region, region, inner))
    for index in range(len(config.t_biattention_id)):
        shapes.update(_layer(f"co_layers.{index}.text", text, region, co, 4 * text))
        shapes.update(_layer(f"co_layers.{index}.region", region, text, co, inner))
    return shapes


def _layer(name: str, size: int, memory: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear(f"{name}.attention.query", size, width),
        **_linear(f"{name}.attention.key", memory, width),
        **_linear(f"{name}.attention.value", memory, width),
        **_linear(f"{name}.attention.output", width, size),
        **_vectors(f"{name}.attention_norm", size),
        **_linear(f"{name}.feed_forward.inner", size, inner),
        **_linear(f"{name}.feed_forward.outer", inner, size),
        **_vectors(f"{name}.feed_forward_norm", size),
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _vectors(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _head_shapes(config: ErnieViLConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes, by original name, that the heads must have of which any file is there."""
    names = [name for name in map(to_ours, arrays) if name is not None and name.startswith("heads.")]
    shapes: dict[str, tuple[int, ...]] = {}
    for stem in {name.split(".")[1] for name in names}:
        if stem == "vqa" and any(name.startswith(("heads.vqa.hidden.", "heads.vqa.output.")) for name in names):
            hidden, classes = (_width(arrays, f"vqa_fc_w_{index}", f"vqa_fc_b_{index}") for index in (0, 1))
            shapes.update(_linear("heads.vqa.hidden", config.co_hidden_size, hidden))
            shapes.update(_linear("heads.vqa.output", hidden, classes))
        if any(name in (f"heads.{stem}.weight", f"heads.{stem}.bias") for name in names):
            inputs = config.v_hidden_size if stem == "region" else config.co_hidden_size
            shapes.update(_linear(f"heads.{stem}", inputs, 1))
    return {to_original(name): shape for name, shape in shapes.items()}


def _width(arrays: Mapping[str, np.ndarray], *names: str) -> int:
    """The last side of the first of these arrays that is there."""
    return next((arrays[name].shape[-1] for name in names if name in arrays and arrays[name].ndim), 0)


def _our_name(original: str) -> str:
    name = to_ours(original)
    if name is None:  # only names that have one are in the shapes
        raise AssertionError(original)
    return name


def _reason_to_ignore(name: str) -> Optional[str]:
    return next((reason for pattern, reason in _NO_PARAMETER if pattern.fullmatch(name)), None)


def _correct_sizes(
    values: dict[str, Any], arrays: Mapping[str, np.ndarray], config_file: Path
) -> tuple[dict[str, Any], list[str]]:
    corrected, corrections = dict(values), []
    for key, (variable, axis) in _SIZES.items():
        if variable not in arrays or arrays[variable].ndim != 2:
            continue
        size = int(arrays[variable].shape[axis])
        if key in values and values[key] != size:
            corrections.append(f"{config_file}: {key} is {values[key]!r}, but {variable} has {size}; took {size}")
        corrected[key] = size
    return corrected, corrections


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the model configuration ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a model configuration is a JSON object, this is a {type(values).__name__}.")
    return values


def _find_config(src: Path) -> Path:
    for folder in (src, src.parent):
        found = [path for path in sorted(folder.glob("*.json")) if _is_config(path)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder} holds several model configurations ({names}); name the one to use.")
    raise UserError(
        f"No model configuration (a JSON file with hidden_size, v_hidden_size, ...) in {src} or {src.parent}; "
        "name the file."
    )


def _is_config(path: Path) -> bool:
    try:
        return {"hidden_size", "v_hidden_size"} <= _read_json(path).keys()
    except UserError:
        return False


def _find_vocabulary(src: Path, config_file: Path) -> Optional[Path]:
    candidates = (folder / VOCABULARY_FILE for folder in (src, config_file.parent, src.parent))
    return next((path for path in candidates if path.is_file()), None)


def _refuse_foreign_files(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; give a folder.")
    foreign = {entry.name for entry in out.iterdir()} - {CONFIG_FILE, STATE_FILE, VOCABULARY_FILE}
    if foreign:
        raise UserError(
            f"{out} holds other files than a model's ({', '.join(sorted(foreign)[:10])}); give an empty or new folder."
        )


class _Damaged(Exception):
    pass


def _parse_tensor(data: bytes) -> np.ndarray:
    position = _expect_version(data, 0, "variable")
    levels, position = _unpack(data, position, "<Q", "number of LoD levels")
    for _ in range(levels):
        length, position = _unpack(data, position, "<Q", "LoD length")
        _, position = _take(data, position, length, "LoD data")
    position = _expect_version(data, position, "tensor")
    length, position = _unpack(data, position, "<i", "length of the description")
    description, position = _take(data, position, length, "description")
    dtype, shape = _parse_description(description)
    expected, found = math.prod(shape) * dtype.itemsize, len(data) - position
    if found != expected:
        raise _Damaged(f"{found} bytes of data, shape {list(shape)} of {dtype} needs {expected}")
    return np.frombuffer(data, dtype, offset=position).reshape(shape).copy()


def _expect_version(data: bytes, position: int, what: str) -> int:
    version, position = _unpack(data, position, "<I", f"{what} version")
    if version != 0:
        raise _Damaged(f"{what} version {version}, only 0 is known")
    return position


def _unpack(data: bytes, position: int, form: str, what: str) -> tuple[int, int]:
    raw, position = _take(data, position, struct.calcsize(form), what)
    return struct.unpack(form, raw)[0], position


def _take(data: bytes, position: int, length: int, what: str) -> tuple[bytes, int]:
    if length < 0:
        raise _Damaged(f"negative {what}")
    if position + length > len(data):
        raise _Damaged(f"the file ends within the {what} ({len(data)} bytes)")
    return data[position : position + length], position + length


def _parse_description(message: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """The protobuf message ``TensorDesc``: field 1 the data type, field 2 the sides (packed or not)."""
    kind, sides, position = None, [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag == (1 << 3 | _VARINT):
            kind, position = _varint(message, position)
        elif tag == (2 << 3 | _VARINT):
            side, position = _varint(message, position)
            sides.append(side)
        elif tag == (2 << 3 | _BYTES):
            length, position = _varint(message, position)
            packed, position = _take(message, position, length, "list of sides")
            start = 0
            while start < len(packed):
                side, start = _varint(packed, start)
                sides.append(side)
        else:
            raise _Damaged(f"unknown field {tag >> 3} in the description")
    if kind not in _DTYPES:
        raise _Damaged(f"data type {kind}; int32, int64, float16, float32 and float64 are known")
    if any(side < 0 for side in sides):
        raise _Damaged(f"negative side in shape {sides}")
    return np.dtype(_DTYPES[kind]), tuple(sides)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _Damaged("the description ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # Sides are signed: negative ones are written as their 64-bit two's complement.
            value &= (1 << 64) - 1
            return (value - (1 << 64) if value >> 63 else value), position
    raise _Damaged("a number of more than 64 bits in the description")
