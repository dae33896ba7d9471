"""The task of pre-training: what counts in which loss, and runs through the tools."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from conftest import pretrain_arguments, run_tool

from ernie_vil import cli
from ernie_vil.data.pretraining import collate_pretraining
from ernie_vil.data.regions import Regions, open_store, write_lmdb_store
from ernie_vil.engine.distributed import Processes
from ernie_vil.engine.evaluation import evaluate
from ernie_vil.engine.trainer import Trainer
from ernie_vil.errors import UserError
from ernie_vil.scene_graph.masking import KIND_NAMES
from ernie_vil.tasks.pretrain import PretrainTask

ALL = (*KIND_NAMES, "region", "match")


def open_task(folder, output, *overrides, **options):
    config, task = cli.load_config(cli.run_parser("").parse_args(pretrain_arguments(folder, output, *overrides)))
    assert task is PretrainTask
    return task(config, **options)


def count(folder, split):
    return len((folder / f"{split}.jsonl").read_text().splitlines())


def tensors(batch):
    return {name: paddle.to_tensor(array) for name, array in batch.items()}


def batch_of(task, indices, split="train"):
    dataset = task.dataset(split)
    return tensors(collate_pretraining([dataset[(0, 0, index)] for index in indices]))


def values(losses):
    return {name: float(loss) for name, loss in losses.items()}


@pytest.fixture
def task(small_captions, tmp_path):
    return open_task(small_captions, tmp_path / "out")


def test_losses_of_a_batch_are_sums_over_its_elements_by_kind(task):
    batch = batch_of(task, range(40))
    task.model.eval()
    losses, counts = values(task.losses(batch)), task.counts(batch)
    assert set(losses) == set(counts) == set(ALL)
    elements = {name: tensor.numpy() for name, tensor in task.element_losses(batch).items()}
    kinds = batch["token_kinds"].numpy()
    for kind, name in enumerate(KIND_NAMES):
        assert counts[name] == (kinds == kind).sum() > 0
        np.testing.assert_allclose(losses[name], elements["token"][kinds == kind].sum(), rtol=1e-5)
    assert counts["region"] == batch["region_weights"].numpy().sum() == len(elements["region"])
    np.testing.assert_allclose(losses["region"], elements["region"].sum(), rtol=1e-5)
    assert counts["match"] == 40
    np.testing.assert_allclose(losses["match"], elements["match"].sum(), rtol=1e-5)


@pytest.mark.parametrize("region_target", ["classes", "features", "none"])
def test_a_batch_in_pieces_has_the_losses_of_the_whole(small_captions, tmp_path, region_target):
    task = open_task(small_captions, tmp_path / "out", f"model.region_target={region_target}")
    task.model.eval()
    whole = batch_of(task, range(24))
    pieces = [batch_of(task, range(first, first + 3)) for first in range(0, 24, 3)]
    sums: dict = {}
    counts: dict = {}
    for piece in pieces:
        for total, found in ((sums, values(task.losses(piece))), (counts, task.counts(piece))):
            for name, value in found.items():
                total[name] = total.get(name, 0) + value
    assert counts == task.counts(whole)
    assert ("region" in counts) == (region_target != "none")
    for name, loss in values(task.losses(whole)).items():
        assert loss == pytest.approx(sums[name], rel=2e-5)


def test_pairs_that_do_not_belong_together_feed_image_text_matching_alone(task):
    dataset = task.dataset("train")
    samples = [dataset[(0, 0, index)] for index in range(40)]
    own = [sample for sample in samples if sample["matched"]]
    others = [sample for sample in samples if not sample["matched"]]
    assert len(own) > 8 and len(others) > 8
    lonely = tensors(collate_pretraining(others))
    assert set(task.losses(lonely)) == {"match"} == set(task.counts(lonely))
    assert not lonely["match_labels"].numpy().any()
    # What is to be predicted does not change when such pairs come along.
    both, alone = task.counts(tensors(collate_pretraining(samples))), task.counts(tensors(collate_pretraining(own)))
    assert {name: count for name, count in both.items() if name != "match"} == {
        name: count for name, count in alone.items() if name != "match"
    }


def test_weights_multiply_losses_and_zero_leaves_them_out(small_captions, tmp_path, task):
    weighted = open_task(small_captions, tmp_path / "out", "model.loss_weights={token: 0.5, relation: 0, region: 3}")
    task.model.eval()
    weighted.model.eval()
    batch = batch_of(task, range(24))
    plain, found = values(task.losses(batch)), values(weighted.losses(batch))
    assert set(found) == set(plain) - {"relation"} == set(weighted.counts(batch))
    for name, factor in (("token", 0.5), ("object", 1), ("attribute", 1), ("region", 3), ("match", 1)):
        assert found[name] == pytest.approx(factor * plain[name], rel=1e-6)


def test_every_parameter_learns(task):
    task.model.train()
    batch = batch_of(task, range(40))
    counts = task.counts(batch)
    sum(loss / counts[name] for name, loss in task.losses(batch).items()).backward()
    silent = [name for name, tensor in task.model.named_parameters() if not np.abs(tensor.grad.numpy()).any()]
    # A key's bias moves all scores of a query alike, so its true gradient is zero; rounding rarely gives exactly that.
    assert all(name.endswith("key.bias") for name in silent)


def test_metrics_are_shares_and_means_over_all_elements(task, small_captions):
    captions = count(small_captions, "val")
    metrics, records = evaluate(task.config, task, "val")
    assert len(records) == metrics["examples"] == captions and metrics["skipped"] == 0
    sizes = {name: sum(record[name][2] for record in records) for name in ALL}
    right = {name: sum(record[name][1] for record in records) for name in ALL}
    loss = {name: sum(record[name][0] for record in records) for name in ALL}
    whole = batch_of(task, range(captions), "val")
    task.model.eval()
    assert sizes == task.counts(whole)
    for name, value in values(task.losses(whole)).items():
        assert loss[name] == pytest.approx(value, rel=2e-5)
        assert metrics[f"{name}_loss"] == pytest.approx(value / sizes[name], rel=2e-5)
        if name != "region":
            assert metrics[name] == pytest.approx(100 * right[name] / sizes[name])
    assert metrics["accuracy"] == pytest.approx(
        100 * sum(right[name] for name in KIND_NAMES) / sum(sizes[name] for name in KIND_NAMES)
    )
    assert evaluate(task.config, task, "val")[0] == metrics
    assert set(task.metric_names) <= set(metrics) and task.metric in metrics


def test_without_scene_graph_prediction_everything_else_stays_the_same(small_captions, tmp_path, task):
    plain = open_task(
        small_captions, tmp_path / "out", *(f"data.masks.{kind}=0" for kind in ("object", "attribute", "relation"))
    )
    for (name, one), (_, other) in zip(task.model.named_parameters(), plain.model.named_parameters()):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=name)
    with_nodes, without = batch_of(task, range(30)), batch_of(plain, range(30))
    for name in ("match_labels", "region_features", "region_locations", "region_positions", "region_targets", "index"):
        np.testing.assert_array_equal(with_nodes[name].numpy(), without[name].numpy(), err_msg=name)
    assert set(plain.counts(without)) == {"token", "region", "match"}


def test_sources_are_read_as_one_and_a_negative_comes_from_the_same(small_captions, tmp_path):
    one = f"{{captions: {small_captions / 'train.jsonl'}, features: {small_captions / 'features.lmdb'}}}"
    two = f"{{captions: {small_captions / 'val.jsonl'}, features: {small_captions / 'features.lmdb'}}}"
    task = open_task(small_captions, tmp_path / "out", f"data.train=[{one}, {two}]")
    train = task.train_set()
    captions, more = count(small_captions, "train"), count(small_captions, "val")
    assert train.sizes == (captions + more,) and train.records == captions + more
    store = open_store(small_captions / "features.lmdb")
    val_ids = {json.loads(line)["image_id"] for line in (small_captions / "val.jsonl").read_text().splitlines()}
    val_locations = [store[image_id] for image_id in val_ids]
    shown = {len(regions.boxes) for regions in val_locations}
    for index in range(captions, captions + more):
        assert len(train.dataset[(0, 0, index)]["region_features"]) - 1 in shown


# -------------------------------------------------------------------------------------------------------- mistakes
def test_all_missing_files_are_named_at_once(tmp_path):
    result = run_tool("train", *pretrain_arguments(tmp_path / "nowhere", tmp_path / "out"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for name in ("data.train.0.captions", "data.train.0.features", "data.val.0.captions", "data.vocab"):
        assert name in result.stderr
    assert "tools/parse_scene_graphs.py" in result.stderr


def test_a_run_without_sources_says_what_a_source_is(small_captions, tmp_path):
    with pytest.raises(UserError, match=r"data\.train: no source of captions; give a list of \{captions"):
        open_task(small_captions, tmp_path / "out", "data.train=[]")


@pytest.fixture
def unclassified(small_captions, tmp_path):
    """The same regions without the detector's class distributions."""
    store = open_store(small_captions / "features.lmdb")
    ids = store.keys()
    items = ((key, Regions(*(getattr(store[key], n) for n in ("features", "boxes", "width", "height")))) for key in ids)
    write_lmdb_store(tmp_path / "unclassified.lmdb", items, store.fingerprint)
    return tmp_path / "unclassified.lmdb"


def test_a_store_without_class_distributions_is_refused_with_the_way_out(small_captions, unclassified, tmp_path):
    sources = (
        f"data.{split}=[{{captions: {small_captions / split}.jsonl, features: {unclassified}}}]"
        for split in ("train", "val")
    )
    arguments = pretrain_arguments(small_captions, tmp_path / "out", *sources)
    result = run_tool("train", *arguments, "train.duration={steps: 2}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "has no class_probs" in result.stderr and "model.region_target=features" in result.stderr


def test_a_wrong_number_of_classes_is_refused(small_captions, tmp_path):
    with pytest.raises(UserError, match="11 classes, but model.region_classes is 1601"):
        open_task(small_captions, tmp_path / "out", "model.region_classes=1601").train_set()


def test_a_vocabulary_without_mask_is_refused(small_captions, tmp_path):
    lines = (small_captions / "vocab.txt").read_text().splitlines()
    lines[lines.index("[MASK]")] = "[OTHER]"
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"vocab\.txt: has no \[MASK\]"):
        open_task(small_captions, tmp_path / "out", f"data.vocab={tmp_path / 'vocab.txt'}")


def test_captions_that_cannot_be_used_are_skipped_by_name_and_counted(small_captions, tmp_path):
    lines = (small_captions / "val.jsonl").read_text().splitlines()
    nowhere = {**json.loads(lines[0]), "id": "lost", "image_id": "nowhere"}
    empty = {
        "id": "empty",
        "image_id": json.loads(lines[0])["image_id"],
        "caption": " ",
        "objects": [],
        "attributes": [],
        "relations": [],
    }
    other = {**json.loads(lines[1]), "id": "other"}
    other["objects"] = [{"words": "zebra", "lemma": "zebra", "spans": [[0, 5]]}]
    odd = [json.dumps(value) for value in (nowhere, empty, other)]
    (tmp_path / "val.jsonl").write_text("\n".join([*lines, *odd, '{"id": "cut']) + "\n")
    source = f"data.val=[{{captions: {tmp_path / 'val.jsonl'}, features: {small_captions / 'features.lmdb'}}}]"
    task = open_task(small_captions, tmp_path / "out", source, "data.max_skip_ratio=0.5", "data.negative_share=0")
    metrics, _ = evaluate(task.config, task, "val")
    assert metrics["examples"] == len(lines) and metrics["skipped"] == 4
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text()
    for number, reason in enumerate(("not in the store", "no words", "zebra", "val.jsonl"), start=len(lines) + 1):
        assert f"val.jsonl:{number}" in skipped and reason in skipped
    strict = open_task(small_captions, tmp_path / "out", source, "data.negative_share=0")
    with pytest.raises(UserError, match="max_skip_ratio"):
        evaluate(strict.config, strict, "val")


# ------------------------------------------------------------------------------------------------------------- runs
def test_a_resumed_run_has_the_parameters_of_one_that_never_stopped(small_captions, tmp_path):
    settings = ("train.batch_size=12", "train.accumulate=2", "train.save_every={steps: 5}", "train.workers=1")
    settings += ("train.eval_every=null", "train.duration={steps: 10}")

    def train(output, stop_at=None, resume=None):
        task = open_task(small_captions, output, *settings)
        trainer = Trainer(task.config, task, Processes())
        if stop_at is not None:
            step = trainer.train_step

            def interrupted(loaded):
                if trainer.step == stop_at:
                    raise KeyboardInterrupt
                step(loaded)

            trainer.train_step = interrupted
        output.mkdir(exist_ok=True)
        trainer.fit(resume)
        return {name: tensor.numpy() for name, tensor in task.model.state_dict().items()}

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop_at=7)
    resumed = train(tmp_path / "cut", resume="true")
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_pre_trained_weights_go_on_into_the_cloze_test_and_vcr(small_captions, small_vcr, tmp_path):
    output = tmp_path / "pretrain"
    short = ("train.duration={steps: 3}", "train.batch_size=8", "train.workers=0")
    result = run_tool("train", *pretrain_arguments(small_captions, output, *short))
    assert result.returncode == 0, result.stderr
    assert set(ALL) <= set(json.loads((output / "metrics.jsonl").read_text().splitlines()[0]))
    check = run_tool("check", *pretrain_arguments(small_captions, tmp_path / "other", *short))
    assert check.returncode == 0, check.stderr
    assert f"data.train: {count(small_captions, 'train')} examples" in check.stdout and "ready" in check.stdout
    cloze = ["-c", "configs/cloze.yaml", "-w", str(output), "-o", f"data.captions={small_captions / 'val.jsonl'}"]
    cloze += [f"data.features={small_captions / 'features.lmdb'}", f"output={tmp_path / 'cloze'}"]
    result = run_tool("eval", *cloze)
    assert result.returncode == 0, result.stderr
    assert "object_acc1" in result.stdout
    vcr = ["-c", "configs/vcr.yaml", "-o", f"model.weights={output}", *short]
    vcr += [f"data.{split}={small_vcr / split}.jsonl" for split in ("train", "val")]
    vcr += [f"data.{name}={small_vcr / name}.lmdb" for name in ("features", "gt_features")]
    result = run_tool(
        "train", *vcr, f"output={tmp_path / 'vcr'}", "optimizer.warmup={steps: 1}", "optimizer.decay_steps=[]"
    )
    assert result.returncode == 0, result.stderr
    assert "heads.vcr_qa.weight" in result.stdout and "a head that is not asked for" in result.stdout
