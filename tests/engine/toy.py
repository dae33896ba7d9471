"""A tiny task for tests of the engine: a linear regression with dropout, some of whose records can be bad."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ernie_vil.engine.config import RunConfig, load, option
from ernie_vil.engine.distributed import Processes
from ernie_vil.engine.task import EvalSet, TrainSet
from ernie_vil.engine.trainer import Trainer
from ernie_vil.errors import BadRecord


@dataclass(frozen=True)
class ToyModelOptions:
    dropout: float = option(0.0, "dropout")


@dataclass(frozen=True)
class ToyDataOptions:
    size: int = option(22, "examples")
    bad: list[int] = option([], "examples that cannot be read")
    infinite_from: int = option(10**9, "examples from this one on have an infinite target")
    max_skip_ratio: float = option(0.001, "share of bad records")


class ToyModel(paddle.nn.Layer):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.recompute = False
        self.linear = paddle.nn.Linear(3, 1)
        self.idle = paddle.nn.Linear(2, 2)
        self.dropout = paddle.nn.Dropout(dropout)
        self.linear.weight.set_value(np.array([[0.1], [0.2], [0.3]], dtype=np.float32))
        self.idle.weight.set_value(np.ones([2, 2], dtype=np.float32))

    def decay_excluded(self) -> set[str]:
        return {"linear.bias", "idle.bias"}

    def learning_rate_exponents(self) -> dict[str, int]:
        return {}

    def load(self, path: Any) -> None:
        from ernie_vil import pickles

        self.set_state_dict({key: paddle.to_tensor(value) for key, value in pickles.load_state(path).items()})


class ToyData(paddle.io.Dataset):
    def __init__(self, options: ToyDataOptions) -> None:
        self.options = options

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        index = key[2]
        if index in self.options.bad:
            raise BadRecord(f"toy:{index}: is bad")
        features = np.random.RandomState(index).normal(size=3).astype(np.float32)
        target = np.inf if index >= self.options.infinite_from else float(features.sum())
        return {"index": index, "features": features, "target": np.float32(target)}


def collate(samples: list[dict]) -> dict:
    return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}


class ToyTask:
    metric = "score"
    metric_names = ("score",)
    sections = {"model": ToyModelOptions, "data": ToyDataOptions}

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        paddle.seed(config.seed)
        self.model = ToyModel(config.model.dropout)

    def train_set(self) -> TrainSet:
        return TrainSet(ToyData(self.config.data), collate, (self.config.data.size,), self.config.data.size)

    def eval_set(self, split: str) -> EvalSet:
        return EvalSet(
            ToyData(self.config.data),
            collate,
            [(0, 0, index) for index in range(self.config.data.size)],
            self.config.data.size,
        )

    def counts(self, batch: dict) -> dict[str, float]:
        return {"squared": float(batch["features"].shape[0])}

    def _errors(self, batch: dict) -> paddle.Tensor:
        return self.model.linear(self.model.dropout(batch["features"])).squeeze(-1) - batch["target"]

    def losses(self, batch: dict) -> dict[str, paddle.Tensor]:
        return {"squared": (self._errors(batch) ** 2).sum()}

    def predict(self, batch: dict) -> list[dict]:
        errors = self._errors(batch).numpy()
        return [
            {"key": (0, 0, int(index)), "error": float(error)} for index, error in zip(batch["index"].numpy(), errors)
        ]

    def metrics(self, records: list[dict]) -> dict[str, float]:
        return {"score": -float(np.mean([record["error"] ** 2 for record in records]))}

    def save_pretrained(self, folder: Path) -> None:
        paddle.save(self.model.state_dict(), str(folder / "model_state.pdparams"))


def toy_config(folder: Path, *overrides: str) -> RunConfig:
    path = folder / "toy.yaml"
    path.write_text(
        f"""
task: toy
output: {folder / "out"}
train: {{batch_size: 8, duration: {{steps: 7}}, workers: 0, log_every: {{steps: 2}}, eval_every: {{steps: 3}},
         save_every: {{steps: 2}}, keep: 1}}
optimizer: {{learning_rate: 0.01, schedule: constant}}
"""
    )
    return load(path, overrides, lambda raw: ToyTask.sections)


def train(folder: Path, *overrides: str, resume: str | None = None) -> tuple[Trainer, dict[str, float]]:
    config = toy_config(folder, *overrides)
    trainer = Trainer(config, ToyTask(config), Processes())
    return trainer, trainer.fit(resume)


def parameters(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in trainer.task.model.named_parameters()}
