"""What every task of ERNIE-ViL v1 does first and last: find the vocabulary, build the model, save both."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional

import paddle

from ernie_vil.data.tokenizer import WordPieceTokenizer, check_same_vocabulary, check_vocabulary
from ernie_vil.engine.config import RunConfig
from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLModel, ErnieViLOutput
from ernie_vil.tasks.options import DataOptions, ModelOptions
from ernie_vil.zoo import Heads, create_model, vocabulary_beside

FEATURES_HINT = "bottom-up region features as LMDB; the README says where they are to be had"


def raise_missing(faults: Iterable[str]) -> None:
    """Raise :class:`UserError` that lists all missing files, if there are any."""
    faults = list(faults)
    if faults:
        raise UserError("\n  ".join(["data are missing:", *faults]))


def missing_stores(stores: Iterable[tuple[str, Optional[str]]], hint: str = FEATURES_HINT) -> list[str]:
    """A message for each (key, path) of a region store that is not a folder; ``None`` paths are passed over."""
    return [
        f"{key}: {path}: no such folder; {hint}, or try --mini"
        for key, path in stores
        if path and not Path(path).is_dir()
    ]


def vocabulary_path(options: ModelOptions, files: DataOptions) -> Path:
    """The run's vocabulary: ``data.vocab``, else what lies with the weights. Raises :class:`UserError`."""
    path = files.vocab or vocabulary_beside(options.weights)
    if path is None:
        raise UserError(
            "data.vocab: not given, and there is no vocab.txt with model.weights; give the vocabulary that belongs "
            "to the weights (the released models: 30,522 lower-case entries, vocab.txt in their folder)"
        )
    return Path(path)


def open_model(
    config: RunConfig, tokenizer: WordPieceTokenizer, heads: Heads, trained: bool, head_hint: str = ""
) -> ErnieViLModel:
    """The model of a run with its heads, filled with ``model.weights``; everything initialised follows from the seed.

    Args:
        trained: the weights must hold the heads too; ``head_hint`` says what else to look at if they do not.

    Raises:
        UserError: weights that cannot be used, or a vocabulary that is not theirs.
    """
    options: ModelOptions = config.model
    overrides: dict[str, Any] = dict(options.overrides)
    if options.weights is None:
        overrides.setdefault("vocab_size", len(tokenizer))
    paddle.seed(config.seed)
    model = create_model(options.name, options.weights, heads=heads, overrides=overrides)
    if trained and model.account.fresh:
        raise UserError(
            f"{options.weights}: lacks {', '.join(model.account.fresh)}; these weights were not trained "
            f"for this task{head_hint}"
        )
    check_vocabulary(tokenizer, model.config.vocab_size, options.weights or "the model")
    beside = vocabulary_beside(options.weights)
    if beside and config.data.vocab:
        check_same_vocabulary(config.data.vocab, beside)
    return model


def encode(model: ErnieViLModel, batch: Mapping[str, Any]) -> ErnieViLOutput:
    """What the backbone makes of a batch with the usual seven arrays."""
    return model(
        batch["input_ids"],
        batch["token_type_ids"],
        batch["position_ids"],
        batch["attention_mask"],
        batch["region_features"],
        batch["region_locations"],
        batch["region_mask"],
    )


def check_length(keys: str, length: int, model: ErnieViLModel) -> None:
    """Raise :class:`UserError` naming the config's ``keys`` if the model has too few positions."""
    positions = model.config.max_position_embeddings
    if length > positions:
        raise UserError(
            f"{keys}: sequences of {length} tokens, but the model has {positions} positions (max_position_embeddings)"
        )


def save_model(model: ErnieViLModel, vocabulary: Path, folder: Path) -> None:
    """Write the folder that ``from_pretrained`` and ``model.weights`` open, with its vocabulary."""
    model.save_pretrained(folder)
    shutil.copyfile(vocabulary, folder / "vocab.txt")
