"""Starting the text stream from a PaddleNLP BERT or ERNIE 2.0 encoder.

The paper starts its text stream from ERNIE 2.0. Layer ``i`` of the encoder becomes text layer ``i``; the
co-attention layers and the region stream have no counterpart and keep their initial values. The encoders were trained
with a layer-norm epsilon of 1e-12 where this model has 1e-5, which the original ignores as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import paddle

from ernie_vil import pickles
from ernie_vil.errors import UserError
from ernie_vil.models.account import KeyAccount, account_for, copy_array, decode_bfloat16
from ernie_vil.models.ernie_vil import STATE_FILE, ErnieViLModel

CONFIG_FILES = ("config.json", "model_config.json")

_EMBEDDINGS = {
    "text_embeddings.word": "embeddings.word_embeddings",
    "text_embeddings.position": "embeddings.position_embeddings",
    "text_embeddings.segment": "embeddings.token_type_embeddings",
    "text_embeddings.norm": "embeddings.layer_norm",
}
_LAYER_PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "norm1",
    "feed_forward.inner": "linear1",
    "feed_forward.outer": "linear2",
    "feed_forward_norm": "norm2",
}
_WORDS = "embeddings.word_embeddings.weight"
# Tables of which the first rows are taken when the lengths differ.
_TABLES = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
_ENCODER_NAME = re.compile(r"(?:[a-z]\w*\.)?((?:embeddings|encoder)\..+)")
_ENCODER_LAYER = re.compile(r"encoder\.layers\.(\d+)\..+")


def initialise_text_stream(model: ErnieViLModel, folder: Union[str, Path]) -> KeyAccount:
    """Fill the text embeddings and text layers of ``model`` from a PaddleNLP model folder.

    Where the encoder has fewer positions or segments than the model, they fill the first rows and the others keep
    their values; where it has more, the first ones are taken.

    Args:
        folder: holds ``model_state.pdparams`` and ``config.json`` (or ``model_config.json`` of older releases), of a
            bare encoder or of any model built on it.

    Returns:
        The account, by the encoder's names for what was taken or left out of the file, and by the model's names for
        what kept its initial values.

    Raises:
        UserError: a file is missing or damaged, or vocabulary, width, attention heads, activation or number of layers
            do not fit; everything that does not fit is listed, and nothing is copied.
    """
    folder = Path(folder)
    config = _read_config(folder)
    source = folder / STATE_FILE
    encoder, ignored = _split(pickles.load_state(source), len(model.text_layers))
    targets = {_encoder_name(name): tensor for name, tensor in _text_stream(model).items()}
    _check_fit(model, config, encoder, source)
    account = account_for({name: _wanted_shape(name, tensor, encoder) for name, tensor in targets.items()}, encoder)
    account.raise_if_bad(str(source))
    with paddle.no_grad():
        for name in account.loaded:
            if name in _TABLES:
                rows = min(len(encoder[name]), targets[name].shape[0])
                _note_rows(name, rows, len(encoder[name]), targets[name].shape[0], ignored)
                copy_array(targets[name], _with_first_rows(targets[name], encoder[name], rows))
            else:
                copy_array(targets[name], encoder[name])
    account.ignored.update(ignored)
    account.fresh.extend(name for name in model.state_dict() if name not in _text_stream(model))
    return account


def _text_stream(model: ErnieViLModel) -> dict[str, paddle.Tensor]:
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(("text_embeddings.", "text_layers."))}


def _encoder_name(ours: str) -> str:
    stem, kind = ours.rsplit(".", 1)
    if stem in _EMBEDDINGS:
        return f"{_EMBEDDINGS[stem]}.{kind}"
    _, index, part = stem.split(".", 2)
    return f"encoder.layers.{index}.{_LAYER_PARTS[part]}.{kind}"


def _split(state: Mapping[str, np.ndarray], layers: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays that the text stream may take, by name without the model's prefix; and the others with the reason."""
    encoder: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    for name, array in state.items():
        match = _ENCODER_NAME.fullmatch(name)
        layer = _ENCODER_LAYER.fullmatch(match[1]) if match else None
        if match is None:
            ignored[name] = "pooler or head; the text stream has its own"
        elif match[1].startswith("embeddings.task_type_embeddings."):
            ignored[name] = "task types; the text stream has none"
        elif layer and int(layer[1]) >= layers:
            ignored[name] = f"layer {layer[1]}; the text stream has {layers} layers"
        else:
            encoder[match[1]] = array
    return encoder, ignored


def _check_fit(
    model: ErnieViLModel, config: Mapping[str, Any], encoder: Mapping[str, np.ndarray], source: Path
) -> None:
    """What shapes alone do not tell, or do not tell plainly."""
    faults = []
    words = encoder.get(_WORDS)
    if words is not None and len(words) != model.config.vocab_size:
        faults.append(
            f"its vocabulary has {len(words)} entries, the model's {model.config.vocab_size}: "
            "set vocab_size and use the encoder's vocab.txt, or take the encoder that belongs to the vocabulary"
        )
    for key in ("num_attention_heads", "hidden_act"):
        if key in config and config[key] != getattr(model.config, key):
            faults.append(f"its {key} is {config[key]!r}, the model's {getattr(model.config, key)!r}")
    there = {int(match[1]) for match in map(_ENCODER_LAYER.fullmatch, encoder) if match}
    absent = [str(index) for index in range(len(model.text_layers)) if index not in there]
    if absent:
        faults.append(f"it lacks layers {', '.join(absent)} of the {len(model.text_layers)} of the text stream")
    if faults:
        raise UserError(f"{source}: the encoder does not fit the text stream: " + "; ".join(faults) + ".")


def _wanted_shape(name: str, tensor: paddle.Tensor, encoder: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    if name in _TABLES and name in encoder and encoder[name].ndim == 2:
        return (len(encoder[name]), tensor.shape[1])
    return tuple(tensor.shape)


def _with_first_rows(target: paddle.Tensor, array: np.ndarray, rows: int) -> np.ndarray:
    table = target.astype("float32").numpy().copy()
    table[:rows] = decode_bfloat16(array)[:rows]
    return table


def _note_rows(name: str, rows: int, have: int, want: int, ignored: dict[str, str]) -> None:
    if have > rows:
        ignored[f"{name}[{rows}:]"] = f"the model has {want} rows"


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a PaddleNLP model.")
    path = next((folder / name for name in CONFIG_FILES if (folder / name).is_file()), None)
    if path is None:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"
        raise UserError(f"{folder} has neither {' nor '.join(CONFIG_FILES)}; it holds: {there}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
    found = _dict_with(values, "num_attention_heads")
    if found is None:
        raise UserError(f"{path}: no num_attention_heads in it; is this the configuration of a BERT or ERNIE model?")
    return found


def _dict_with(values: Any, key: str) -> Optional[dict[str, Any]]:
    """The first object with ``key``; older PaddleNLP releases nest the encoder's settings in lists of arguments."""
    if isinstance(values, dict):
        if key in values:
            return values
        values = list(values.values())
    if isinstance(values, list):
        return next((found for found in (_dict_with(value, key) for value in values) if found is not None), None)
    return None
