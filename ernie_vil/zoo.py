"""The named models, and opening weights of any format by ``format:path``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from paddle import nn

from ernie_vil.errors import UserError
from ernie_vil.models.account import KeyAccount
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel, large_config
from ernie_vil.weights import FORMATS
from ernie_vil.weights.text_encoder import initialise_text_stream

Heads = Callable[[ErnieViLConfig], Mapping[str, nn.Layer]]

MODELS: dict[str, Callable[[], ErnieViLConfig]] = {
    "ernie-vil-base": ErnieViLConfig,
    "ernie-vil-large": large_config,
}
TEXT_ENCODERS = ("ernie", "bert")


def list_models() -> list[str]:
    """Names that :func:`create_model` knows."""
    return sorted(MODELS)


def create_model(
    name: str = "ernie-vil-base",
    weights: Optional[str] = None,
    *,
    heads: Optional[Heads] = None,
    overrides: Optional[Mapping[str, Any]] = None,
    strict: bool = True,
) -> ErnieViLModel:
    """Build a named model and give it its first weights; ``model.account`` says where each parameter came from.

    ``weights`` is, in the order of precedence of what it may say:

    1. a model folder (``config.json``, ``model_state.pdparams``) or a checkpoint: everything comes from there;
    2. ``ernie-vil-fluid:PATH``: a folder as the original's authors released it, converted on the fly;
    3. ``ernie:PATH`` or ``bert:PATH``: a PaddleNLP encoder's folder for the text stream, the rest initialised;
    4. ``None``: everything initialised.

    With 1 and 2 the sizes are those of the weights and ``name`` only has to be a known one. ``heads`` builds task heads
    from the configuration; heads that the weights lack keep their initial values. ``overrides`` replaces values of the
    configuration. Raises :class:`UserError` for unknown names, unreadable weights and, unless ``strict`` is false, keys
    that do not fit.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} is unknown; known are: {', '.join(list_models())}")
    kind, _, path = (weights or "").partition(":")
    if weights and kind in FORMATS and path:
        converted = FORMATS[kind](path)
        config = ErnieViLConfig.from_dict(converted.config, path).replace(overrides or {}, path)
        model = ErnieViLModel(config, heads(config) if heads else None)
        model.fill(converted.state, path, fresh_heads=True, strict=strict)
        return model
    if weights and not (kind in TEXT_ENCODERS and path):
        if not Path(weights).is_dir():
            known = ", ".join(f"{known}:PATH" for known in (*FORMATS, *TEXT_ENCODERS))
            raise UserError(
                f"weights {weights!r}: no such folder; give a model folder or one of {known}. Nothing is downloaded: "
                "the README says where the released weights are and how to convert them."
            )
        return ErnieViLModel.from_pretrained(weights, heads, fresh_heads=True, strict=strict, overrides=overrides)
    config = MODELS[name]().replace(overrides or {}, f"model {name}")
    model = ErnieViLModel(config, heads(config) if heads else None)
    if weights:
        model.account = initialise_text_stream(model, path)
    else:
        model.account = KeyAccount(fresh=[key for key, _ in model.named_parameters()])
    return model


def vocabulary_beside(weights: Optional[str]) -> Optional[Path]:
    """The ``vocab.txt`` that lies with the weights, if it does."""
    if not weights:
        return None
    kind, _, path = weights.partition(":")
    folder = Path(path if kind in (*FORMATS, *TEXT_ENCODERS) and path else weights)
    # A release keeps it beside its folder of parameters; what lies beside another folder belongs to something else.
    places = [folder, folder.parent] if kind in FORMATS and path else [folder]
    return next((place / "vocab.txt" for place in places if (place / "vocab.txt").is_file()), None)
