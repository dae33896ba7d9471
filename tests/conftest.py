"""Fixtures and helpers that several test files use. ``tests/data/SOURCE.md`` says what the measurements are."""

from __future__ import annotations

import json
import subprocess
import sys
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
ROOT = Path(__file__).parents[1]


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


@pytest.fixture(scope="session")
def small_vcr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small miniature VCR set: 60 training, 21 validation and 6 test questions."""
    from ernie_vil.data.mini_vcr import build_mini_vcr

    folder = tmp_path_factory.mktemp("small") / "vcr"
    build_mini_vcr(folder, seed=3, train_images=20, val_images=7, test_images=2, questions_per_image=3)
    return folder


@pytest.fixture(scope="session")
def small_captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small set of miniature captions: 48 pictures to train on, 20 for validation, two captions each."""
    from ernie_vil.data.mini_captions import build_mini_captions

    folder = tmp_path_factory.mktemp("small") / "captions"
    build_mini_captions(folder, seed=5, train_images=48, val_images=20)
    return folder


TINY_MODEL = (
    "{feature_size: 80, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 96, v_hidden_size: 16, "
    "v_num_attention_heads: 2, v_intermediate_size: 16, co_hidden_size: 16, co_num_attention_heads: 2, "
    "t_biattention_id: [1], v_biattention_id: [0]}"
)


def pretrain_arguments(folder: Path, output: Path, *overrides: str) -> list[str]:
    """Arguments of a tool for a run of ``configs/pretrain.yaml`` on captions in ``folder``, with a tiny model."""
    features = json.dumps(str(folder / "features.lmdb"))
    return [
        "-c",
        str(ROOT / "configs" / "pretrain.yaml"),
        "-o",
        *(
            f'data.{split}=[{{captions: {json.dumps(str(folder / split))[:-1]}.jsonl", features: {features}}}]'
            for split in ("train", "val")
        ),
        f"data.vocab={folder / 'vocab.txt'}",
        f"output={output}",
        f"model.overrides={TINY_MODEL}",
        "model.region_classes=11",
        "optimizer.warmup={steps: 2}",
        *overrides,
    ]


def vcr_arguments(folder: Path, output: Path, *overrides: str) -> list[str]:
    """Arguments of a tool for a run of ``configs/vcr.yaml`` on data in ``folder``, with a tiny model."""
    return [
        "-c",
        str(ROOT / "configs" / "vcr.yaml"),
        "-o",
        *(f"data.{split}={folder / split}.jsonl" for split in ("train", "val", "test")),
        f"data.features={folder / 'features.lmdb'}",
        f"data.gt_features={folder / 'gt_features.lmdb'}",
        f"data.vocab={folder / 'vocab.txt'}",
        f"output={output}",
        f"model.overrides={TINY_MODEL}",
        *overrides,
    ]


def run_tool(name: str, *arguments: str, launch: int = 0, **options: Any) -> subprocess.CompletedProcess:
    """Run a tool in a process of its own; ``launch`` starts so many processes of it."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
    if launch:
        command[1:1] = [
            "-m",
            "paddle.distributed.launch",
            f"--nproc_per_node={launch}",
            "--log_dir",
            options.pop("logs"),
        ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


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
