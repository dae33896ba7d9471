"""The experiments' bookkeeping; the runs themselves are those of the tools, which have tests of their own."""

from __future__ import annotations

import statistics

import pytest
from conftest import ROOT, run_tool

from ernie_vil import cli, reproduce
from ernie_vil.engine.config import read_yaml
from ernie_vil.reproduce import EXPERIMENTS, Experiment, Stage, mean_and_spread, run_arm, table


def test_arms_of_scene_graph_prediction_differ_in_the_masks_alone():
    arms = EXPERIMENTS["sgp"].arms
    plain, without = arms["with SGP"], arms["without SGP"]
    assert [stage.name for stage in plain] == ["pretrain", "cloze", "vcr"]
    assert plain[1:] == without[1:]
    assert plain[0].overrides == ()
    assert set(without[0].overrides) == {"data.masks.object=0", "data.masks.attribute=0", "data.masks.relation=0"}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_every_stage_names_a_config_with_a_miniature(experiment):
    for stages in experiment.arms.values():
        for stage in stages:
            assert read_yaml(ROOT / "configs" / stage.config)["mini"]


def test_means_and_spreads_are_those_of_the_seeds():
    assert mean_and_spread([1.0, 2.0, 4.5]) == f"{7.5 / 3:.1f} ± {statistics.stdev([1, 2, 4.5]):.1f}"
    assert mean_and_spread([7.0]) == "7.0 ± 0.0"
    assert mean_and_spread(None) == ""
    experiment = Experiment("Title", {"a": (), "b": ()}, "The paper says so.")
    text = table(experiment, {"a": {"x.m": [1.0, 3.0]}, "b": {"x.m": [2.0, 2.0], "y.n": [5.0, 6.0]}}, [0, 1])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| Figure | a | b |",
        "|---|---|---|",
        "| x.m | 2.0 ± 1.4 | 2.0 ± 0.0 |",
        "| y.n |  | 5.5 ± 0.7 |",
    ]
    assert "The paper says so." in text


def test_an_arm_chains_its_stages_and_is_not_run_twice(tmp_path, monkeypatch):
    calls = []

    def stage_metrics(stage, seed, outputs, configs):
        calls.append((stage.name, seed, outputs["one"]))
        print("what the run says")
        return {"m": len(calls), "other": 0.0}

    monkeypatch.setattr(reproduce, "run_stage", stage_metrics)
    stages = (Stage("one", "a.yaml"), Stage("two", "b.yaml", ("model.weights={one}",), ("m",)))
    figures = run_arm(stages, 5, tmp_path / "arm", tmp_path)
    assert figures == {"two.m": 2}
    assert calls == [("one", 5, str(tmp_path / "arm" / "one")), ("two", 5, str(tmp_path / "arm" / "one"))]
    assert (tmp_path / "arm" / "log.txt").read_text(encoding="utf-8").count("what the run says") == 2
    assert run_arm(stages, 5, tmp_path / "arm", tmp_path) == figures and len(calls) == 2
    changed = (*stages, Stage("three", "b.yaml", (), ("other",)))
    assert run_arm(changed, 5, tmp_path / "arm", tmp_path) == {"two.m": 4, "three.other": 0.0}
    (tmp_path / "arm" / "figures.json").write_text("{", encoding="utf-8")
    assert run_arm(stages, 5, tmp_path / "arm", tmp_path) == {"two.m": 7}


def test_a_stage_runs_its_config_in_miniature_with_the_arms_folders(tmp_path, monkeypatch):
    seen = {}

    def load_config(arguments):
        seen.update(vars(arguments))
        raise cli.UserError("far enough")

    monkeypatch.setattr(cli, "load_config", load_config)
    stage = Stage("vcr", "vcr.yaml", ("model.weights={pretrain}",))
    with pytest.raises(cli.UserError):
        reproduce.run_stage(stage, 3, {"pretrain": "P", "vcr": "V"}, ROOT / "configs")
    assert seen["mini"] is True and seen["config"].endswith("vcr.yaml")
    assert seen["override"] == ["output=V", "seed=3", "model.weights=P"]


def test_mistakes_of_the_tool(tmp_path):
    for arguments in (["--experiment", "nosuch"], ["--experiment", "sgp", "--seeds", "1", "1"]):
        result = run_tool("reproduce", *arguments, "--out", str(tmp_path / "out"))
        assert result.returncode == 2 and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
