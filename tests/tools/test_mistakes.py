"""Mistakes of a user at the command line: exit code 2, one message that names the culprit, never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import lmdb
import numpy as np
import paddle
import pytest
from conftest import DATA, ROOT, run_tool, vcr_arguments

from ernie_vil import pickles
from ernie_vil.data.regions import Regions, open_store, write_lmdb_store

SHORT = (
    "train={batch_size: 8, workers: 1, duration: {steps: 2}, log_every: {steps: 1}, eval_every: null}",
    "optimizer.warmup={steps: 1}",
    "optimizer.decay_steps=[]",
)


@pytest.fixture
def data(small_vcr, tmp_path) -> Path:
    """A copy of the small data that a test may damage."""
    return Path(shutil.copytree(small_vcr, tmp_path / "vcr"))


def train(data: Path, *overrides: str) -> tuple[int, str, str]:
    result = run_tool("train", *vcr_arguments(data, data.parent / "out", *SHORT, *overrides))
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout, result.stderr


def refuses(data: Path, *words: str, overrides: tuple[str, ...] = ()) -> str:
    code, _, stderr = train(data, *overrides)
    assert code == 2, stderr
    assert stderr.count("error: ") == 1
    for word in words:
        assert word in stderr, (word, stderr)
    return stderr


def skips(data: Path, *words: str) -> list[dict]:
    """The run goes on within the budget and names what it left out; without a budget it stops with the list."""
    stderr = refuses(data, "train.jsonl:", "data.max_skip_ratio", overrides=("data.max_skip_ratio=0",))
    assert any(word in stderr for word in words), stderr
    shutil.rmtree(data.parent / "out")
    code, stdout, stderr = train(data, "data.max_skip_ratio=0.5", "train.duration={epochs: 1}")
    assert code == 0, stderr
    named = [json.loads(line) for line in (data.parent / "out" / "skipped.jsonl").read_text().splitlines()]
    assert named
    for word in words:
        assert any(word in entry["record"] for entry in named), (word, named)
    return named


def edit_line(path: Path, number: int, change) -> None:
    """Apply ``change`` to one line (counted from 1): a function of its record, or text to put there."""
    lines = path.read_text().splitlines()
    if callable(change):
        record = json.loads(lines[number - 1])
        change(record)
        lines[number - 1] = json.dumps(record)
    else:
        lines[number - 1] = change
    path.write_text("\n".join(lines) + "\n")


def put(store: Path, key: str, value: bytes) -> None:
    with (
        lmdb.open(str(store), map_size=1 << 26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key.encode(), value)


def first_image(data: Path, split: str = "train") -> str:
    record = json.loads((data / f"{split}.jsonl").read_text().splitlines()[0])
    return str(int(record["img_id"].split("-")[1]) + {"train": 0, "val": 1_000_000, "test": 2_000_000}[split])


def rewrite(data: Path, image_id: str, change) -> None:
    """Change the record of an image in the store of detected boxes."""
    with (
        lmdb.open(str(data / "features.lmdb"), readonly=True, lock=False) as environment,
        environment.begin() as reader,
    ):
        record = pickle.loads(reader.get(image_id.encode()))
    change(record)
    put(data / "features.lmdb", image_id, pickle.dumps(record, protocol=2))


def test_a_missing_data_folder_says_what_to_download_and_that_mini_exists(tmp_path):
    result = run_tool("train", "-c", str(ROOT / "configs" / "vcr.yaml"), cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for word in ("data/vcr/train.jsonl", "vcr1annots.zip", "--mini", "data/vcr/features.lmdb", "data.gt_features"):
        assert word in result.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_keys_and_wrong_values_are_all_reported_at_once(data):
    stderr = refuses(
        data,
        "train.batchsize",
        "train.batch_size",
        "optimizer.learning_rate",
        "model.fusion",
        "contradictory",
        overrides=(
            "train.batchsize=3", "optimizer.learning_rate=fast", "model.fusion=max",
            "train.duration.steps=3", "train.duration.epochs=1",
        ),
    )  # fmt: skip
    assert "4 faults" in stderr


def test_a_config_that_is_not_there_or_not_yaml(tmp_path):
    result = run_tool("train", "-c", str(tmp_path / "none.yaml"))
    assert result.returncode == 2 and "none.yaml" in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: 2\n")
    result = run_tool("train", "-c", str(tmp_path / "broken.yaml"), "--mini")
    assert result.returncode == 2 and "broken.yaml" in result.stderr and "line" in result.stderr
    (tmp_path / "other.yaml").write_text("task: vrc\n")
    result = run_tool("train", "-c", str(tmp_path / "other.yaml"))
    assert result.returncode == 2 and "'vrc'" in result.stderr and "vcr" in result.stderr


def test_a_corrupt_line_is_named_by_file_and_number(data):
    edit_line(data / "train.jsonl", 3, '{"question": ["What"')
    skips(data, "train.jsonl:3")


def test_an_object_index_out_of_range(data):
    edit_line(data / "train.jsonl", 2, lambda record: record["question"].append([99]))
    skips(data, "train.jsonl:2", "99")


def test_boxes_outside_the_image(data):
    def widen(record: dict) -> None:
        record["image_w"] = 5

    image = first_image(data)
    rewrite(data, image, widen)
    skips(data, f"image {image}", "train.jsonl:1")


def test_a_truncated_record(data):
    image = first_image(data)
    with (
        lmdb.open(str(data / "features.lmdb"), readonly=True, lock=False) as environment,
        environment.begin() as reader,
    ):
        whole = reader.get(image.encode())
    put(data / "features.lmdb", image, whole[: len(whole) // 2])
    skips(data, f"image {image}", "train.jsonl:1")


def test_a_truncated_store(data):
    path = data / "features.lmdb" / "data.mdb"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(data, "features.lmdb", "cut short")
    path.write_bytes(b"not a database" * 1000)
    refuses(data, "features.lmdb")


def test_an_image_without_features(data):
    image = first_image(data)
    with (
        lmdb.open(str(data / "features.lmdb"), map_size=1 << 26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.delete(image.encode())
    skips(data, f"image {image}", "not in the store")


def test_a_pickle_that_tries_to_execute_code_stops_the_run_and_executes_nothing(data, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    put(data / "features.lmdb", first_image(data), pickle.dumps(Hostile()))
    refuses(data, "features.lmdb", "system")
    assert not (tmp_path / "executed").exists()
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(DATA / "config.json", weights)
    (weights / "model_state.pdparams").write_bytes(pickle.dumps({"text_pooler.bias": Hostile()}))
    refuses(data, "model_state.pdparams", "system", overrides=(f"model.weights={weights}", "model.overrides={}"))
    assert not (tmp_path / "executed").exists()


def test_a_feature_width_unlike_the_models(data):
    store = open_store(data / "features.lmdb")
    items = []
    for image_id in store.keys():  # noqa: SIM118 (a store has no iterator)
        regions = store[image_id]
        features = np.pad(regions.features, ((0, 0), (0, 16)))
        items.append((image_id, Regions(features, regions.boxes, regions.width, regions.height)))
    shutil.rmtree(data / "features.lmdb")
    write_lmdb_store(data / "features.lmdb", items, store.fingerprint)
    refuses(data, "features.lmdb", "96", "80", "feature_size")


def test_a_vocabulary_unlike_the_weights(data, tmp_path):
    code, _, stderr = train(data)
    assert code == 0, stderr
    vocabulary = data / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "unheard\n")
    shutil.move(tmp_path / "out", tmp_path / "trained")
    weights = tmp_path / "trained" / "checkpoints" / "step-00000002"
    refuses(data, "vocab.txt", overrides=(f"model.weights={weights}", "model.overrides={}"))
    vocabulary.write_text("[PAD]\n[UNK]\n")
    refuses(data, "vocab.txt", "[CLS]")
    refuses(data, "data.vocab", "nowhere.txt", overrides=("data.vocab=nowhere.txt",))
    refuses(data, "data.vocab", overrides=("data.vocab=null",))


def test_an_empty_split(data):
    (data / "val.jsonl").write_text("")
    refuses(data, "val.jsonl")
    (data / "train.jsonl").write_text("\n\n")
    refuses(data, "train.jsonl")


def test_weights_with_missing_extra_and_misshaped_keys_are_refused_with_every_key(data, tmp_path):
    code, _, stderr = train(data)
    assert code == 0, stderr
    folder = tmp_path / "out" / "checkpoints" / "step-00000002"
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    state = {
        name: paddle.to_tensor(array) for name, array in pickles.load_state(folder / "model_state.pdparams").items()
    }
    del state["text_pooler.weight"]
    state["surplus"] = paddle.zeros([2])
    state["region_pooler.bias"] = paddle.zeros([5])
    paddle.save(state, str(broken / "model_state.pdparams"))
    arguments = vcr_arguments(data, tmp_path / "out2")
    result = run_tool("eval", *arguments, "-w", str(broken))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for word in ("model_state.pdparams", "text_pooler.weight", "surplus", "region_pooler.bias"):
        assert word in result.stderr
    del state["heads.vcr_qa.weight"]
    state["text_pooler.weight"] = paddle.zeros([16, 16])
    state["region_pooler.bias"] = paddle.zeros([16])
    del state["surplus"]
    paddle.save(state, str(broken / "model_state.pdparams"))
    result = run_tool("eval", *arguments, "-w", str(broken))
    assert result.returncode == 2 and "heads.vcr_qa.weight" in result.stderr
    (broken / "model_state.pdparams").write_bytes(b"PK")
    result = run_tool("predict", *arguments, "-w", str(broken), "--out", str(tmp_path / "out.csv"))
    assert result.returncode == 2 and "model_state.pdparams" in result.stderr and "Traceback" not in result.stderr


def test_wrong_weights_splits_and_files_of_the_tools(data, tmp_path):
    arguments = vcr_arguments(data, tmp_path / "out")
    cases = [
        (("eval", *arguments), "no checkpoint yet"),
        (("eval", *arguments, "-w", str(tmp_path / "nowhere")), "nowhere"),
        (("eval", *arguments, "-w", "fluid:somewhere"), "ernie-vil-fluid:PATH"),
        (("eval", *arguments, "-w", str(DATA / "tiny_release"), "--split", "dev"), "dev"),
        (("predict", *arguments, "--out", str(tmp_path / "none" / "file.csv")), "there is no folder"),
        (("train", *arguments, "model.weights=bert:nowhere"), "nowhere"),
        (("convert_weights", "--from", "ernie-vil-fluid", "--src", str(tmp_path / "no"), "--out", "x"), "no"),
    ]  # fmt: skip
    for command, word in cases:
        result = run_tool(*command)
        assert result.returncode == 2, (command, result.stderr)
        assert word in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_preflight_reports_all_faults_and_passes_good_runs(data):
    arguments = vcr_arguments(data, data.parent / "out", *SHORT)
    result = run_tool("check", *arguments)
    assert result.returncode == 0, result.stderr
    assert "ready" in result.stdout and "data.train: 120 examples" in result.stdout
    edit_line(data / "train.jsonl", 3, "{")
    (data / "val.jsonl").unlink()
    result = run_tool("check", *arguments, "train.batch_size=1000000")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for word in ("train.jsonl:3", "val.jsonl", "memory"):
        assert word in result.stderr, word


def test_the_skip_budget_is_a_share_of_the_questions(data):
    """Questions of bad pictures fail in both parts; each counts once, of 60 questions."""
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    images = sorted({int(line["img_id"].split("-")[1]) for line in lines})[:5]
    lost = sum(int(line["img_id"].split("-")[1]) in images for line in lines) / len(lines)
    for image in images:
        put(data / "features.lmdb", str(image), b"garbage")
    epoch = "train.duration={epochs: 1}"
    code, _, stderr = train(data, epoch, f"data.max_skip_ratio={lost + 0.001}")
    assert code == 0, stderr
    shutil.rmtree(data.parent / "out")
    refuses(data, "max_skip_ratio", overrides=(epoch, f"data.max_skip_ratio={lost - 0.001}"))


@pytest.mark.parametrize(
    "override, words",
    [
        ("model.overrides.hidden_dropout=0.5", ("hidden_dropout", "hidden_dropout_prob")),
        ("model.overrides.feature_size=-3", ("feature_size", "positive")),
        ("train.best_metric=q_a_loss", ("train.best_metric", "q_ar")),
        ("data.names=TABLE", ("names.csv:2", "no name")),
        ("data.max_rationale_length=97", ("max_position_embeddings", "96")),
    ],
)
def test_values_that_cannot_be_meant(data, override, words):
    (data / "names.csv").write_text("name,id\nBo,1\n")
    refuses(data, *words, overrides=(override.replace("TABLE", str(data / "names.csv")),))


@pytest.mark.parametrize("line", ['{"img_id": "train-' + "9" * 5000 + '"}', "[" * 100_000, "\ufeff{}", '"text"'])
def test_lines_made_to_break_a_reader_are_bad_records(data, line):
    edit_line(data / "train.jsonl", 1, line)
    skips(data, "train.jsonl:1")


def test_a_shuffled_vocabulary_is_not_the_one_of_the_weights(data, tmp_path):
    code, _, stderr = train(data)
    assert code == 0, stderr
    tokens = (data / "vocab.txt").read_text().split()
    (data / "vocab.txt").write_text("\n".join([*tokens[:20], *reversed(tokens[20:])]) + "\n")
    result = run_tool("eval", *vcr_arguments(data, tmp_path / "out"))
    assert result.returncode == 2 and "vocab.txt" in result.stderr and "lies with the weights" in result.stderr


def test_places_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "out")
    cases = [
        ("train", *vcr_arguments(data, below, *SHORT)),
        ("check", *vcr_arguments(data, below, *SHORT)),
        ("predict", *vcr_arguments(data, tmp_path / "out"), "--out", str(tmp_path)),
        ("predict", *vcr_arguments(data, tmp_path / "out"), "--out", str(tmp_path / "file" / "x.csv")),
        ("convert_weights", "--from", "ernie-vil-fluid", "--src", str(DATA / "tiny_release"), "--out", below),
    ]
    for command in cases:
        result = run_tool(*command)
        assert result.returncode == 2 and "Traceback" not in result.stderr, (command, result.stderr)
        assert str(tmp_path) in result.stderr


def test_a_split_without_labels_is_predicted_not_evaluated(data, tmp_path):
    code, _, stderr = train(data)
    assert code == 0, stderr
    result = run_tool("eval", *vcr_arguments(data, tmp_path / "out"), "--split", "test")
    assert result.returncode == 2 and "predict.py" in result.stderr
    result = run_tool("predict", *vcr_arguments(data, tmp_path / "out"), "--out", str(tmp_path / "test.csv"))
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "test.csv").read_text().splitlines()) == 1 + len(
        (data / "test.jsonl").read_text().splitlines()
    )
