"""Fixtures and helpers that several test files use. ``tests/data/SOURCE.md`` says what the measurements are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle
import pytest

from ernie_vil.models.account import apply_state
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel
from ernie_vil.models.heads import AnswerHead, ChoiceHead, MatchHead, RegionHead
from ernie_vil.weights.fluid_names import to_ours

DATA = Path(__file__).parent / "data" / "ernie_vil"


@pytest.fixture(scope="session")
def measured() -> Path:
    """The folder of measurements of the original program."""
    return DATA


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    """All parameters of the measured network, by the original's names."""
    with np.load(DATA / "weights.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    with np.load(DATA / "inputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def outputs() -> dict[str, np.ndarray]:
    with np.load(DATA / "outputs.npz") as arrays:
        return dict(arrays)


def measured_heads(config: ErnieViLConfig) -> dict[str, Any]:
    return {
        "vcr_qa": ChoiceHead(config),
        "vcr_qar": ChoiceHead(config),
        "vqa": AnswerHead(config, classes=13, hidden_size=40),
        "region": RegionHead(config),
        "match": MatchHead(config),
    }


def measured_model(
    weights: dict[str, np.ndarray], heads: Optional[tuple[str, ...]] = None, dropout: float = 0.0, scale: float = 1.0
) -> ErnieViLModel:
    """The measured network with ``heads`` (all by default); ``scale`` multiplies the embedding-side tensors."""
    values = json.loads((DATA / "config.json").read_text())
    values.update(feature_size=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = ErnieViLConfig.from_dict(values)
    built = measured_heads(config)
    model = ErnieViLModel(config, {name: built[name] for name in (built if heads is None else heads)})
    state = {to_ours(name): array for name, array in weights.items()}
    known = {name for name, _ in model.named_parameters()}
    scaled = json.loads((DATA / "meta_model.json").read_text())["scaled_embeddings"]["tensors"]
    for name in map(to_ours, scaled):
        state[name] = state[name] * np.float32(scale)
    apply_state(model, {name: array for name, array in state.items() if name in known}, where="weights.npz")
    return model


def forward(model: ErnieViLModel, inputs: dict[str, np.ndarray], case: str, images: Optional[int] = None) -> Any:
    """Run a measured case; ``images`` keeps every k-th row of the region arrays, so that texts share them."""

    def feed(name: str) -> paddle.Tensor:
        return paddle.to_tensor(
            inputs[f"{case}/{name}"].squeeze(-1) if name.endswith(("ids", "mask")) else inputs[f"{case}/{name}"]
        )

    regions = [feed(name) for name in ("image_embeddings", "image_loc", "image_mask")]
    if images:
        step = regions[0].shape[0] // images
        regions = [tensor[::step] for tensor in regions]
    return model(feed("src_ids"), feed("sent_ids"), feed("pos_ids"), feed("input_mask"), *regions)
