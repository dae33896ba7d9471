"""The configuration of a run: what every run can set, and :func:`load`, which makes it of files and overrides.

Reading is in :mod:`ernie_vil.engine.yaml_files`, checking in :mod:`ernie_vil.engine.schema`; the names that other
packages need from there can be imported from here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

import yaml

from ernie_vil.engine.durations import Duration
from ernie_vil.engine.schema import REQUIRED, Contradictions, Validation, describe, keys_of, option, plain
from ernie_vil.engine.yaml_files import (
    ConfigError,
    Layer,
    deep_merge,
    merge,
    override,
    plain_copy,
    read_layer,
    read_yaml,
)
from ernie_vil.errors import UserError

__all__ = [
    "REQUIRED",
    "ConfigError",
    "Contradictions",
    "EvalOptions",
    "OptimizerOptions",
    "RunConfig",
    "RunOptions",
    "TargetOptions",
    "TrainOptions",
    "deep_merge",
    "describe",
    "load",
    "option",
    "read_yaml",
    "run_schema",
    "to_yaml",
]


@dataclass(frozen=True)
class TrainOptions:
    """Section ``train``."""

    batch_size: int = option(REQUIRED, "examples per optimizer step, over all devices and micro-batches", minimum=1)
    duration: Duration = option(REQUIRED, "length of the training", above=0)
    accumulate: int = option(1, "micro-batches whose gradients make one optimizer step", minimum=1)
    workers: int = option(2, "data-loader processes per device; 0 loads in the training process", minimum=0)
    precision: str = option("fp32", "number format of the forward pass", choices=("fp32", "bf16", "fp16"))
    recompute: bool = option(False, "compute activations again in the backward pass: less memory, more time")
    eval_every: Optional[Duration] = option(
        Duration(1, "epochs"), "time between evaluations; null evaluates only at the end", above=0
    )
    save_every: Optional[Duration] = option(
        Duration(1, "epochs"), "time between checkpoints; null saves only at the end", above=0
    )
    log_every: Duration = option(Duration(50, "steps"), "time between log entries", above=0)
    keep: int = option(2, "newest checkpoints kept, besides the best", minimum=1)
    best_metric: Optional[str] = option(None, "metric that chooses the best checkpoint; null takes the task's own")

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        batch_size, accumulate = valid.get("batch_size"), valid.get("accumulate")
        if batch_size and accumulate and batch_size % accumulate:
            yield "accumulate", f"batch_size {batch_size} cannot be divided into {accumulate} micro-batches"
        if "duration" in valid and valid["duration"].unit == "percent":
            yield "duration", "contradictory: the length of the training cannot be a percentage of itself"


@dataclass(frozen=True)
class OptimizerOptions:
    """Section ``optimizer``: Adam with decoupled weight decay."""

    learning_rate: float = option(REQUIRED, "peak learning rate", minimum=0)
    schedule: str = option(
        "constant", "course of the learning rate", choices=("constant", "noam", "linear", "manual", "cosine")
    )
    warmup: Duration = option(Duration(0, "steps"), "time in which the learning rate rises to its peak")
    decay_steps: List[Duration] = option(
        [], "manual schedule: when the rate is multiplied by decay_ratio; plain numbers are steps", bare_unit="steps"
    )
    decay_ratio: float = option(0.1, "manual schedule: factor at each of decay_steps", minimum=0)
    final_ratio: float = option(0.0, "cosine schedule: last learning rate over the peak", minimum=0, maximum=1)
    weight_decay: float = option(0.01, "decoupled weight decay per step, times the learning rate", minimum=0)
    layer_decay: float = option(
        0.0, "factor of the learning rate per layer away from the output; 0 and 1 are off", minimum=0, maximum=1
    )
    beta1: float = option(0.9, "decay of the first moment", minimum=0, below=1)
    beta2: float = option(0.999, "decay of the second moment", minimum=0, below=1)
    epsilon: float = option(1e-8, "added to the square root of the second moment", above=0)
    epsilon_placement: str = option(
        "original",
        "original adds epsilon before bias correction, as Paddle Fluid 1.8 does; modern adds it after",
        choices=("original", "modern"),
    )
    clip_norm: Optional[float] = option(1.0, "largest global norm of the gradient; 0 and null are off", minimum=0)
    multipliers: Dict[str, float] = option(
        {}, "learning-rate factors by pattern of the parameter name, such as heads.*", minimum=0
    )

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        schedule, warmup = valid.get("schedule"), valid.get("warmup")
        if schedule in ("noam", "linear", "manual") and warmup and warmup.value == 0:
            # The original keeps the rate constant then, whatever the schedule's name.
            yield "warmup", f"the {schedule} schedule needs a warm-up above 0; without one choose constant or cosine"
        if valid.get("decay_steps") and schedule not in (None, "manual"):
            yield "decay_steps", f"has no effect with the {schedule} schedule; set it to [] or choose manual"


@dataclass(frozen=True)
class EvalOptions:
    """Section ``eval``."""

    batch_size: int = option(32, "examples at once on each device", minimum=1)


@dataclass(frozen=True)
class TargetOptions:
    """Section ``target``: the published result that the run aims at."""

    metric: str = option(REQUIRED, "what was measured, and on which split")
    value: Union[float, List[float], Dict[str, float]] = option(REQUIRED, "the published figure or figures")
    source: str = option(REQUIRED, "where it was published: paper and table")


@dataclass(frozen=True)
class RunOptions:
    """The top level of a configuration file."""

    task: str = option(REQUIRED, "name of the task")
    output: str = option(REQUIRED, "folder that receives checkpoints and logs")
    train: TrainOptions = option(REQUIRED, "training")
    optimizer: OptimizerOptions = option(REQUIRED, "optimizer and learning rate")
    seed: int = option(0, "seed of all random draws", minimum=0, maximum=2**32 - 1)
    model: Any = option(None, "model; its keys are given by the task")
    data: Any = option(None, "data; its keys are given by the task")
    eval: EvalOptions = option(EvalOptions, "evaluation")
    target: Optional[TargetOptions] = option(None, "published result that the run aims at")

    @staticmethod
    def contradictions(valid: Mapping[str, Any]) -> Contradictions:
        if "train" in valid and "optimizer" in valid:
            length, warmup = valid["train"].duration, valid["optimizer"].warmup
            if length.unit == warmup.unit and warmup.value > length.value:
                yield "optimizer.warmup", f"contradictory: {warmup} of warm-up, but train.duration is {length}"


@dataclass(frozen=True)
class RunConfig(RunOptions):
    """A checked configuration.

    Attributes:
        extra: sections of the task besides ``model`` and ``data``, by name.
        path: the file it was loaded from.
        raw: plain mapping of every key, defaults included; what :func:`to_yaml` writes.
    """

    extra: Dict[str, Any] = field(default_factory=dict)
    path: str = field(default="", compare=False)
    raw: Dict[str, Any] = field(default_factory=dict)


def run_schema(sections: Mapping[str, type]) -> type:
    """The schema of a whole file: :class:`RunOptions` with the sections of a task in their places, or added."""
    own = {entry.name: entry for entry in dataclasses.fields(RunOptions)}
    fields = []
    for name, kind in sections.items():
        doc = own[name].metadata["doc"] if name in own else f"{name} of the task"
        required = name in own and own[name].default is own[name].default_factory is REQUIRED
        fields.append((name, kind, option(REQUIRED if required else kind, doc)))
    return dataclasses.make_dataclass("RunSchema", fields, bases=(RunOptions,), frozen=True)


def load(
    path: Union[str, Path],
    overrides: Sequence[str] = (),
    sections: Callable[[Dict[str, Any]], Mapping[str, type]] = lambda raw: {},
    mini: bool = False,
) -> RunConfig:
    """Read, merge and check the configuration of a run.

    Later wins: the files of ``_base_`` in their order, the file itself, its ``mini`` section if ``mini`` is set, the
    overrides. The ``mini`` section is checked in any case. With ``mini`` paths need not exist: miniature data is made
    when it is first used.

    Args:
        path: the YAML file.
        overrides: texts ``a.b=value``. The value is YAML (``1``, ``true``, ``[1, 2]``, ``{epochs: 6}``; nothing is
            null) and replaces what was there; a number among the keys is a position in a list. A name that has dots
            itself cannot be part of the key: ``'optimizer.multipliers={"heads.*": 2}'``.
        sections: gives the schemas of the task's sections (``model``, ``data``, ...) for the merged values; raises
            UserError for an unknown task.
        mini: a miniature run.

    Raises:
        ConfigError: lists all faults, each with the file or override that set the key.
    """
    faults: List[str] = []
    layer = read_layer(Path(path), (), faults)
    complete = not faults
    small = layer.values.pop("mini", None)
    if mini and small is None and complete:
        faults.append(f"{path}: mini: missing; without it there is no miniature run of this config")
    if small is not None and not isinstance(small, dict):
        faults.append(f"{layer.origins[('mini',)]}: mini: expected a mapping of keys to values")
    origins = {key[1:]: f"{source} (mini)" for key, source in layer.origins.items() if key[0] == "mini" and key[1:]}
    with_mini = merge(layer, Layer(small if isinstance(small, dict) else {}, origins))

    def check(layer: Layer, check_files: bool) -> Optional[RunConfig]:
        found: List[str] = []
        for text in overrides:
            layer, wrong = override(layer, text)
            found += wrong
        kinds: Mapping[str, type] = {}
        if isinstance(layer.values.get("task"), str):
            try:
                kinds = sections(plain_copy(layer.values))
            except UserError as error:
                found.append(f"{layer.origins[('task',)]}: task: {error}")
        schema = run_schema(kinds)
        names = [name for name, _, _ in keys_of(schema)]
        validation = Validation(layer.origins, str(path), names, check_files, complete, found)
        options = validation.build(schema, layer.values)
        faults.extend(fault for fault in found if fault not in faults)
        if options is None:
            return None
        values = {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(schema)}
        extra = {name: values.pop(name) for name in kinds if name not in RunOptions.__dataclass_fields__}
        return RunConfig(**values, extra=extra, path=str(path), raw=plain(options))

    config = check(with_mini if mini else layer, not mini)
    if small and not mini:
        check(with_mini, False)
    if faults or config is None:
        raise ConfigError(path, faults)
    return config


def to_yaml(config: RunConfig) -> str:
    """The configuration with every default written out, as YAML text that :func:`load` reads back to an equal one."""
    # Other than ASCII is escaped: PyYAML writes U+0085 as it is and reads it back as a blank.
    return yaml.safe_dump(config.raw, sort_keys=False)
