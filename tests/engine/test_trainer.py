"""The training loop on a toy task: accumulation, skipped records, checkpoints, refusal to go on with nonsense."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ernie_vil.engine import checkpoint, run_state
from ernie_vil.engine.distributed import Processes
from ernie_vil.engine.trainer import Trainer
from ernie_vil.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyTask, parameters, toy_config, train


def entries(folder: Path, split: str) -> list[dict]:
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["split"] == split]


def test_micro_batches_of_unequal_size_give_the_steps_of_the_whole_batch(tmp_path):
    """22 examples in batches of 8 leave 6 at the end of an epoch, which 4 micro-batches cut into 2, 2, 1 and 1."""
    results = {}
    for accumulate in (1, 2, 4):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        trainer, _ = train(folder, f"train.accumulate={accumulate}", "train.duration={epochs: 2}")
        results[accumulate] = (parameters(trainer), [entry["squared"] for entry in entries(folder, "train")])
        assert trainer.total_steps == 6
    for accumulate in (2, 4):
        np.testing.assert_allclose(results[accumulate][1], results[1][1], rtol=1e-5)
        for name, value in results[1][0].items():
            np.testing.assert_allclose(results[accumulate][0][name], value, atol=2e-6, err_msg=name)


def test_the_loss_that_is_logged_is_the_mean_over_examples_since_the_last_entry(tmp_path):
    train(tmp_path, "optimizer.learning_rate=0", "train.duration={steps: 3}", "train.log_every={steps: 3}")
    (entry,) = entries(tmp_path, "train")
    config = toy_config(tmp_path)
    task = ToyTask(config)
    errors = []
    for index in range(22):
        sample = task.train_set().dataset[0, 0, index]
        errors.append((sample["features"] @ [0.1, 0.2, 0.3] - sample["target"]) ** 2)
    assert entry["squared"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert entry["step"] == 3 and entry["epoch"] == 1


def test_parameters_without_part_in_the_loss_are_decayed_all_the_same(tmp_path):
    trainer, _ = train(tmp_path, "optimizer.weight_decay=0.1")
    np.testing.assert_allclose(parameters(trainer)["idle.weight"], (1 - 0.1 * 0.01) ** 7, rtol=1e-5)


def test_bad_records_are_named_counted_and_left_out(tmp_path):
    trainer, metrics = train(tmp_path, "data.bad=[5, 6]", "data.max_skip_ratio=0.1", "train.duration={epochs: 3}")
    assert metrics["skipped"] == 2 and metrics["examples"] == 20
    named = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sorted((entry["data"], entry["record"]) for entry in named) == [
        (split, f"toy:{index}: is bad") for split in ("train", "val") for index in (5, 6)
    ]


def test_too_many_bad_records_stop_the_run_with_the_list(tmp_path):
    with pytest.raises(UserError, match=r"(?s)2 of 22.*max_skip_ratio.*toy:5"):
        train(tmp_path, "data.bad=[5, 6]", "data.max_skip_ratio=0.05", "train.duration={epochs: 1}")


def test_steps_without_a_usable_example_change_nothing_and_evaluation_says_so(tmp_path):
    config = toy_config(tmp_path, f"data.bad={list(range(22))}", "data.max_skip_ratio=1.0", "train.eval_every=null")
    trainer = Trainer(config, ToyTask(config), Processes())
    before = parameters(trainer)
    with pytest.raises(UserError, match="no example could be used"):
        trainer.fit()
    assert trainer.step == 7
    assert all(np.array_equal(value, before[name]) for name, value in parameters(trainer).items())
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 44


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    with pytest.raises(UserError, match=r"(?s)squared became inf between step \d+ and step \d+"):
        train(tmp_path, "data.infinite_from=20", "train.save_every={steps: 1}", "train.eval_every=null")
    saved = checkpoint.follow(tmp_path / "out", "latest")
    if saved is not None:
        from ernie_vil import pickles

        for name, array in pickles.load_state(saved / "model_state.pdparams").items():
            assert np.isfinite(array).all(), name


def test_best_and_latest_are_kept_and_older_ones_deleted(tmp_path):
    trainer, _ = train(tmp_path, "train.duration={steps: 12}")
    folder = tmp_path / "out" / "checkpoints"
    scores = {entry["step"]: entry["score"] for entry in entries(tmp_path, "val")}
    best = max(scores, key=scores.get)
    assert checkpoint.follow(tmp_path / "out", "best").name == f"step-{best:08d}"
    assert checkpoint.follow(tmp_path / "out", "latest").name == "step-00000012"
    names = sorted(path.name for path in folder.iterdir())
    assert set(names) == {"best", "latest", "step-00000012", f"step-{best:08d}"}
    assert checkpoint.read_trainer(folder / f"step-{best:08d}")["best"] == scores[best] == trainer.best


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6])
def test_resuming_from_any_step_gives_the_same_bits_and_metrics(tmp_path, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ("train.save_every={steps: 1}", "train.keep=20", "model.dropout=0.5", "train.log_every={steps: 4}")
    whole.mkdir(), parts.mkdir()
    want, _ = train(whole, *common)
    shutil.copytree(whole / "out", parts / "out")
    for folder in (parts / "out" / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > stop:
            shutil.rmtree(folder)
    pointers = parts / "out" / "checkpoints"
    (pointers / "latest").write_text(f"step-{stop:08d}")
    (pointers / "best").unlink()
    got, _ = train(parts, *common, resume="auto")
    for name, value in parameters(want).items():
        assert np.array_equal(parameters(got)[name], value), name
    for split in ("train", "val"):
        timeless = [
            [{key: value for key, value in entry.items() if key not in ("examples_per_second", "data_wait_share")}
             for entry in entries(folder, split)]
            for folder in (whole, parts)
        ]  # fmt: skip
        assert timeless[0] == timeless[1]


def test_what_can_be_resumed_is_said_clearly(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        train(tmp_path, resume="true")
    train(tmp_path, resume="auto")
    with pytest.raises(UserError, match="holds a run already.*--resume auto"):
        train(tmp_path)
    finished, _ = train(tmp_path, resume="true")
    assert finished.step == finished.total_steps == 7
    with pytest.raises(UserError, match="not a checkpoint"):
        train(tmp_path, resume=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="seed"):
        train(tmp_path, "seed=5", resume="auto")
    (tmp_path / "out" / "checkpoints" / "latest").write_text("step-99999999\n")
    with pytest.raises(UserError, match="names step-99999999, which is not a checkpoint; there are: .*step-"):
        train(tmp_path, resume="auto")


def test_a_run_can_continue_from_the_folder_of_another(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    train(first, "train.duration={steps: 4}")
    trainer, _ = train(second, resume=str(first / "out"))
    want, _ = train(first, resume="auto")
    assert trainer.step == want.step == 7
    assert all(np.array_equal(value, parameters(want)[name]) for name, value in parameters(trainer).items())


@pytest.mark.parametrize("file", ["trainer.json", "optimizer.pdopt", "model_state.pdparams"])
def test_a_damaged_checkpoint_is_named(tmp_path, file):
    train(tmp_path, "train.duration={steps: 4}")
    path = checkpoint.follow(tmp_path / "out", "latest") / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises((UserError), match=file):
        train(tmp_path, resume="auto")


def test_leftovers_of_a_killed_save_are_cleared(tmp_path):
    leftover = tmp_path / "out" / "checkpoints" / ".unfinished-step-00000002"
    leftover.mkdir(parents=True)
    (leftover / "model_state.pdparams").write_bytes(b"half")
    train(tmp_path)
    assert not list((tmp_path / "out" / "checkpoints").glob(".unfinished*"))


def test_half_precision_on_a_cpu_and_too_small_batches_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.precision: bf16 needs an accelerator"):
        train(tmp_path, "train.precision=bf16")
    with pytest.raises(UserError, match="is not among"):
        train(tmp_path, "train.best_metric=accuracy")


@pytest.mark.parametrize(
    "change, words",
    [
        ("train.batch_size=4", "train.batch_size was 8 and is 4"),
        ("train.accumulate=2", "train.accumulate was 1 and is 2"),
        ("data.size=20", r"examples of each part was \[22\] and is \[20\]"),
        ("seed=5", "seed was 0 and is 5"),
        ("train.duration={steps: 1}", "1 steps, but .* is at step 4"),
    ],
)
def test_a_run_whose_steps_would_have_other_examples_is_not_continued(tmp_path, change, words):
    train(tmp_path, "train.duration={steps: 4}")
    with pytest.raises(UserError, match=words):
        train(tmp_path, change, resume="auto")


def test_other_changes_of_the_config_are_said(tmp_path, capsys):
    train(tmp_path, "train.duration={steps: 4}")
    train(tmp_path, "optimizer.learning_rate=0.5", "train.duration={steps: 4}", resume="auto")
    assert "the config differs" in capsys.readouterr().out.replace("\n", " ")
    train(tmp_path, "train.duration={steps: 4}", resume="auto")
    assert "optimizer.learning_rate" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{}", "[]", '{"position": 3}', "nonsense"])
def test_a_trainer_file_with_other_contents_is_named(tmp_path, text):
    train(tmp_path, "train.duration={steps: 4}")
    (checkpoint.follow(tmp_path / "out", "latest") / "trainer.json").write_text(text)
    with pytest.raises(UserError, match=r"trainer\.json"):
        train(tmp_path, resume="auto")


def test_an_optimizer_state_of_other_shapes_is_named(tmp_path):
    from ernie_vil import pickles

    train(tmp_path, "train.duration={steps: 4}")
    path = checkpoint.follow(tmp_path / "out", "latest") / "optimizer.pdopt"
    state = {key: paddle.to_tensor(value) for key, value in pickles.load_state(path).items()}
    state["linear.weight/moment1"] = paddle.zeros([7])
    paddle.save(state, str(path))
    with pytest.raises(UserError, match=r"optimizer\.pdopt.*linear\.weight/moment1"):
        train(tmp_path, resume="auto")


def test_the_state_of_the_loss_scaler_comes_back(tmp_path):
    """The scaler works on accelerators only; here its state alone is carried through a checkpoint."""
    config = toy_config(tmp_path, "train.duration={steps: 4}")
    trainer = Trainer(config, ToyTask(config), Processes())
    trainer.plan()
    trainer.scaler._enable = True
    trainer.scaler.load_state_dict({
        "scale": np.array([4096.0], dtype=np.float32), "incr_ratio": 2.0, "decr_ratio": 0.5, "incr_every_n_steps": 2000,
        "decr_every_n_nan_or_inf": 1, "incr_count": 17, "decr_count": 0, "use_dynamic_loss_scaling": True,
    })  # fmt: skip
    folder = checkpoint.save(tmp_path / "out", 0, lambda temporary: run_state.write(trainer, temporary, [{}]))
    again = Trainer(config, ToyTask(config), Processes())
    again.plan()
    again.scaler._enable = True
    run_state.restore(again, folder)
    want, got = trainer.scaler.state_dict(), again.scaler.state_dict()
    assert float(got.pop("scale")[0]) == float(want.pop("scale")[0]) == 4096.0
    assert got == want and got["incr_count"] == 17


def test_mistakes_that_would_cost_the_training_are_found_before_it(tmp_path):
    class NoValidation(ToyTask):
        def eval_set(self, split):
            raise UserError("val.txt: is empty")

    config = toy_config(tmp_path)
    with pytest.raises(UserError, match="val.txt"):
        Trainer(config, NoValidation(config), Processes()).fit()
    with pytest.raises(UserError, match="more than the 7 of"):
        train(tmp_path, "optimizer.warmup={epochs: 9}", "optimizer.schedule=linear")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_an_evaluation_that_fails_does_not_cost_what_was_trained(tmp_path):
    class FailsLater(ToyTask):
        def predict(self, batch):
            raise UserError("the disk with the pictures is gone")

    config = toy_config(tmp_path, "train.save_every=null", "train.eval_every={steps: 3}")
    with pytest.raises(UserError, match="pictures"):
        Trainer(config, FailsLater(config), Processes()).fit()
    assert checkpoint.follow(tmp_path / "out", "latest").name == "step-00000003"
    trainer, _ = train(tmp_path, resume="auto")
    assert trainer.step == 7


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path):
    class Undefined(ToyTask):
        def metrics(self, records):
            return {"score": float("nan")}

    config = toy_config(tmp_path)
    trainer = Trainer(config, Undefined(config), Processes())
    trainer.fit()
    assert trainer.best is None and checkpoint.follow(tmp_path / "out", "best") is None


def test_a_finished_run_that_is_resumed_writes_nothing_more(tmp_path):
    train(tmp_path)
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    _, metrics = train(tmp_path, resume="auto")
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before and "score" in metrics
