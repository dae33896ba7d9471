"""Experiments of the papers in miniature: runs that differ in one thing, repeated over seeds, and their table."""

from __future__ import annotations

import argparse
import concurrent.futures.process
import contextlib
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ernie_vil import cli
from ernie_vil.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One run of an arm: a config and its overrides.

    Attributes:
        name: folder of the run, and prefix of its figures.
        config: file in the folder of configs.
        overrides: as for ``-o``; ``{NAME}`` stands for the output folder of an earlier stage of that name.
        metrics: which of the metrics on val are reported.
        trained: evaluate weights that an earlier stage made, rather than train.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    trained: bool = False


@dataclass(frozen=True)
class Experiment:
    """Arms by name, each a list of stages; what the table says above and below."""

    title: str
    arms: Mapping[str, tuple[Stage, ...]]
    published: str


KINDS = ("object", "attribute", "relation")
_CLOZE = Stage(
    "cloze",
    "cloze.yaml",
    ("model.weights={pretrain}",),
    tuple(f"{kind}{k}" for kind in (*(f"{name}_acc" for name in KINDS), "acc") for k in (1, 5)),
    trained=True,
)
# A third of the usual steps: with the full recipe both arms come near the ceiling and the table would show little.
_SHORT_VCR = (
    "train.duration={steps: 1000}",
    "train.save_every={steps: 1000}",
    "model.overrides.t_biattention_id=[0,1]",
    "model.overrides.v_biattention_id=[0,1]",
)
_VCR = Stage("vcr", "vcr.yaml", ("model.weights={pretrain}", "data.vocab=null", *_SHORT_VCR), ("q_a", "qa_r", "q_ar"))


def _pretrained(*overrides: str) -> tuple[Stage, ...]:
    return (Stage("pretrain", "pretrain.yaml", overrides), _CLOZE, _VCR)


_NO_NODES = tuple(f"data.masks.{kind}=0" for kind in KINDS)

EXPERIMENTS: dict[str, Experiment] = {
    "sgp": Experiment(
        "Scene-graph prediction (SGP): the same model, initial weights, steps, order of data, negative images and "
        "region masks, pre-trained with and without the masking of nodes",
        {
            "with SGP": _pretrained(),
            "without SGP": _pretrained(*_NO_NODES),
            # Masking nodes also masks more: this arm masks as many tokens, at random.
            "without SGP, as many tokens masked": _pretrained(*_NO_NODES, "data.masks.token=0.34"),
            "no pre-training": (Stage("vcr", "vcr.yaml", _SHORT_VCR, _VCR.metrics),),
        },
        "Paper, Table 6 (cloze, ACC@1): SGP gains 2.12 for objects, 6.00 for attributes and 1.31 for relations. "
        "With SGP four losses of words enter the total with weight 1 each, without it one. Nodes are masked besides "
        "the random tokens, so that more is masked; the third arm masks as much without them.",
    )
}


def run_experiment(name: str, out: Path, configs: Path, seeds: Sequence[int], processes: int) -> dict[str, Any]:
    """Run all arms over all seeds, some side by side; what is finished already is not run again.

    Returns:
        ``{arm: {metric: [value per seed]}}``, which is also written to ``out/results.json``; the table goes to
        ``out/report.md``.
    """
    experiment = EXPERIMENTS[name]
    jobs = [(arm, stages, seed) for seed in seeds for arm, stages in experiment.arms.items()]
    started = time.perf_counter()
    # Processes of their own: a forked one would inherit Paddle's threads in an unknown state.
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(run_arm, stages, seed, out / _folder(arm) / f"seed{seed}", configs): (arm, seed)
            for arm, stages, seed in jobs
        }
        found: dict[tuple[str, int], dict[str, float]] = {}
        try:
            for future in concurrent.futures.as_completed(waiting):
                arm, seed = waiting[future]
                found[arm, seed] = future.result()
                passed = (time.perf_counter() - started) / 60
                shown = "  ".join(f"{metric} {value:.1f}" for metric, value in found[arm, seed].items())
                print(f"[{len(found)}/{len(jobs)}, {passed:.1f} min] {arm}, seed {seed}: {shown}", flush=True)
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError("a run was killed, perhaps for want of memory; call again to go on") from None
        finally:
            # After a mistake in one run the others are not begun.
            for future in waiting:
                future.cancel()
    results = {
        arm: {metric: [found[arm, seed][metric] for seed in seeds] for metric in found[arm, seeds[0]]}
        for arm in experiment.arms
    }
    cli.write_json(out / "results.json", {"experiment": name, "seeds": list(seeds), "results": results})
    (out / "report.md").write_text(table(experiment, results, seeds), encoding="utf-8")
    return results


def _folder(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "-")


def run_arm(stages: Sequence[Stage], seed: int, folder: Path, configs: Path) -> dict[str, float]:
    """The figures ``STAGE.METRIC`` of one arm with one seed. What the runs say goes to ``folder/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / "figures.json"
    wanted = json.dumps([vars(stage) for stage in stages], default=list)
    with contextlib.suppress(OSError, ValueError):
        earlier = json.loads(finished.read_text(encoding="utf-8"))
        if earlier["stages"] == wanted:
            return earlier["figures"]
    figures: dict[str, float] = {}
    outputs = {stage.name: str(folder / stage.name) for stage in stages}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        for stage in stages:
            metrics = run_stage(stage, seed, outputs, configs)
            figures.update({f"{stage.name}.{metric}": metrics[metric] for metric in stage.metrics})
    finished.write_text(json.dumps({"stages": wanted, "figures": figures}), encoding="utf-8")
    return figures


def run_stage(stage: Stage, seed: int, outputs: Mapping[str, str], configs: Path) -> dict[str, float]:
    """Train (or with ``stage.trained`` only evaluate) the miniature of a config; its metrics on val."""
    from ernie_vil.engine.distributed import Processes
    from ernie_vil.engine.evaluation import evaluate
    from ernie_vil.engine.trainer import Trainer

    overrides = [f"output={outputs[stage.name]}", f"seed={seed}"]
    for override in stage.overrides:
        for name, folder in outputs.items():
            override = override.replace("{" + name + "}", folder)
        overrides.append(override)
    arguments = argparse.Namespace(config=str(configs / stage.config), override=overrides, mini=True)
    config, task = cli.load_config(arguments)
    Path(config.output).mkdir(parents=True, exist_ok=True)
    if stage.trained:
        return evaluate(config, task(config, ("val",), trained=True), "val")[0]
    return Trainer(config, task(config), Processes()).fit("auto")


def table(experiment: Experiment, results: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int]) -> str:
    """Mean and standard deviation (over the seeds) of every figure by arm, as Markdown."""
    arms = list(results)
    metrics = list(dict.fromkeys(metric for arm in arms for metric in results[arm]))
    lines = [
        f"# {experiment.title}",
        "",
        f"Miniature runs, seeds {', '.join(map(str, seeds))}: mean ± standard deviation, in per cent.",
        "",
        "| Figure | " + " | ".join(arms) + " |",
        "|---" * (len(arms) + 1) + "|",
    ]
    lines += [
        f"| {metric} | " + " | ".join(mean_and_spread(results[arm].get(metric)) for arm in arms) + " |"
        for metric in metrics
    ]
    return "\n".join([*lines, "", experiment.published, ""])


def mean_and_spread(values: Optional[Sequence[float]]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"
