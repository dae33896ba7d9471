"""The order of batches, their division among devices, the guarded loader and the log of skipped records."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import paddle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ernie_vil.engine.data import (
    GuardedDataset,
    JointBatches,
    SkipLog,
    Skipped,
    StepSampler,
    guarded_collate,
    make_loader,
    slice_for,
)
from ernie_vil.errors import BadRecord, UserError

READERS = Path(__file__).parents[1] / "data" / "ernie_vil" / "readers" / "readers.json"
GOLDEN = json.loads(READERS.read_text(encoding="utf-8"))["vcr"]
QUESTION_IDS = [10, 11, 12]  # of the three entries of each part, in the order of the file


# ----------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("case", "turn"), [("joint_train", 32), ("joint_train", 1), ("joint_order_b1_group2", 2)])
def test_original_order_of_parts(case: str, turn: int) -> None:
    """With a turn of 32 batches the epoch of two batches is one incomplete turn, kept here."""
    golden = GOLDEN[case]
    batches = JointBatches(
        (3, 3), golden["batch_size"], shuffle=False, epochs=1, turn=turn, drop_incomplete_turns=turn < 32
    )
    order = [(keys[0][0], [QUESTION_IDS[index] for _, _, index in keys]) for keys in batches]
    expected = list(zip(golden["batches_task_index"], golden["batches_qids"]))
    assert order == (expected if turn < 32 else sorted(expected, key=lambda batch: batch[0]))


def test_original_drops_incomplete_turns() -> None:
    assert GOLDEN["joint_order_b1_default64"]["batches_qids"] == []
    dropped = JointBatches((3, 3), 1, epochs=1, turn=64, drop_incomplete_turns=True)
    assert len(dropped) == 0 and list(dropped) == []
    assert len(JointBatches((3, 3), 1, epochs=1, turn=64)) == 6


def test_original_shuffling() -> None:
    batches = JointBatches((3, 3), 1, seed=GOLDEN["shuffle_seed_drawn"], epochs=3, turn=1)
    golden = GOLDEN["shuffled_epochs_qids_batch1_3epochs"]
    assert [[keys[0][0], [QUESTION_IDS[keys[0][2]]]] for keys in batches] == golden
    assert [keys[0][1] for keys in batches] == [0] * 6 + [1] * 6 + [2] * 6


def slow_order(size: int, seed: int, shuffle: bool) -> Iterator[list[int]]:
    random, indices = np.random.RandomState(seed), list(range(size))
    while True:
        if shuffle:
            random.shuffle(indices)
        yield list(indices)


def slow_batches(arguments: dict[str, Any]) -> list[list[tuple[int, int, int]]]:
    """One generator per part, asked in turn for as long as it takes."""

    def part_batches(part: int) -> Iterator[list[tuple[int, int, int]]]:
        size, order = (
            arguments["sizes"][part],
            slow_order(arguments["sizes"][part], arguments["seed"], arguments["shuffle"]),
        )
        for epoch, indices in enumerate(order):
            for first in range(0, size, arguments["batch_size"]):
                batch = indices[first : first + arguments["batch_size"]]
                if len(batch) == arguments["batch_size"] or not arguments["drop_last"]:
                    yield [(part, epoch, index) for index in batch]

    sources = [part_batches(part) for part in range(len(arguments["sizes"]))]
    if arguments.get("steps") is not None:
        steps: list = []
        while len(steps) < arguments["steps"]:
            for source in sources:
                steps += itertools.islice(source, arguments["turn"])
        return steps[: arguments["steps"]]
    limited = [
        list(itertools.takewhile(lambda batch: batch[0][1] < arguments["epochs"], part_batches(0))),
        *([] for _ in sources[1:]),
    ]
    for part, source in enumerate(sources[1:], start=1):
        limited[part] = list(itertools.islice(source, len(limited[0])))
    result = []
    while limited[0]:
        turns = [[part.pop(0) for _ in range(min(arguments["turn"], len(part)))] for part in limited]
        if len(turns[0]) == arguments["turn"] or not arguments["drop_incomplete_turns"]:
            result += itertools.chain.from_iterable(turns)
    return result


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_lookup_equals_slow_generator(data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, 5), label="batch_size")
    drop_last = data.draw(st.booleans(), label="drop_last")
    sizes = data.draw(st.lists(st.integers(batch_size if drop_last else 1, 14), min_size=1, max_size=3), label="sizes")
    arguments = {
        "sizes": tuple(sizes),
        "batch_size": batch_size,
        "seed": data.draw(st.integers(0, 2**32 - 1), label="seed"),
        "shuffle": data.draw(st.booleans(), label="shuffle"),
        "turn": data.draw(st.integers(1, 7), label="turn"),
        "drop_last": drop_last,
        "drop_incomplete_turns": data.draw(st.booleans(), label="drop_incomplete_turns"),
        data.draw(st.sampled_from(["epochs", "steps"]), label="limit"): data.draw(st.integers(0, 4), label="number"),
    }
    if "steps" in arguments:
        arguments["steps"] *= 9
    expected = slow_batches(arguments)
    batches = JointBatches(**arguments)
    assert len(batches) == batches.total_steps == len(expected)
    assert list(batches) == expected
    # any order of asking, as after a resume
    for step in data.draw(st.permutations(range(len(expected))))[:20]:
        assert batches[step] == expected[step]
        part, epoch, _ = expected[step][0]
        assert batches.locate(step)[:2] == (part, epoch)
    for step in (-1, len(expected)):
        with pytest.raises(IndexError):
            batches[step]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    batch_size=st.integers(1, 5),
    turn=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_index_once_per_epoch(sizes: list[int], batch_size: int, turn: int, seed: int) -> None:
    batches = JointBatches(tuple(sizes), batch_size, seed=seed, epochs=3, turn=turn)
    walks: dict[tuple[int, int], list[int]] = {}
    for keys in batches:
        assert len({key[:2] for key in keys}) == 1 and len(keys) <= batch_size
        for part, epoch, index in keys:
            walks.setdefault((part, epoch), []).append(index)
    for (part, epoch), indices in walks.items():
        complete = len(indices) == sizes[part]
        assert sorted(indices) == list(range(sizes[part])) if complete else len(set(indices)) == len(indices)
        assert complete or (part > 0 and (part, epoch + 1) not in walks), "only the last epoch may be cut short"
    assert [epoch for part, epoch in walks if part == 0] == [0, 1, 2]
    assert batches.steps_per_epoch * 3 == batches.total_steps == len(batches)
    for part in range(1, len(sizes)):
        if sizes[part] == sizes[0]:
            assert [walks[part, epoch] for epoch in range(3)] == [walks[0, epoch] for epoch in range(3)]


def test_numbers_of_the_real_data() -> None:
    """The original's warm-up of 6654 steps is one joint epoch of VCR's 212,923 questions at batch 64."""
    batches = JointBatches((212_923, 212_923), 64, epochs=0.5)
    assert batches.steps_per_epoch == 6654 and batches.total_steps == 3328
    assert JointBatches((30,), 1, epochs=0.1).total_steps == 3


def test_joint_batches_refuses_nonsense() -> None:
    with pytest.raises(UserError, match="part 1 of the training data has 0 samples"):
        JointBatches((3, 0), 2, epochs=1)
    with pytest.raises(UserError, match=r"has 3 samples, too few for a batch of 4 \(incomplete batches are dropped\)"):
        JointBatches((3,), 4, epochs=1, drop_last=True)
    for wrong in ({}, {"epochs": 1, "steps": 2}, {"epochs": 1, "turn": 0}, {"epochs": 1, "batch_size": 0}):
        with pytest.raises(ValueError):
            JointBatches(**{"sizes": (3,), "batch_size": 1, **wrong})


# -------------------------------------------------------------------------------------------------------- division


@settings(max_examples=200, deadline=None)
@given(size=st.integers(0, 40), accumulate=st.integers(1, 6), world=st.integers(1, 6))
@example(size=1, accumulate=2, world=2)
def test_slices_are_the_batch(size: int, accumulate: int, world: int) -> None:
    items = [(0, 0, index) for index in range(size)]
    slices = [slice_for(items, m, accumulate, rank, world) for m in range(accumulate) for rank in range(world)]
    assert [item for piece in slices for item in piece] == items
    lengths = [len(piece) for piece in slices]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_sampler_covers_the_steps(accumulate: int, world: int) -> None:
    batches = JointBatches((7, 5), 4, seed=2, epochs=2, turn=2)
    samplers = [StepSampler(batches, 3, 7, accumulate, rank, world) for rank in range(world)]
    assert [len(sampler) for sampler in samplers] == [4 * accumulate] * world
    pieces = [list(sampler) for sampler in samplers]
    for step in range(3, 7):
        micro = range((step - 3) * accumulate, (step - 2) * accumulate)
        assert [key for m in micro for rank in range(world) for key in pieces[rank][m]] == batches[step]


# ---------------------------------------------------------------------------------------------------------- loader


class Numbers(paddle.io.Dataset):
    """Sample = index; 5 and 15 are bad records, 90 is the user's mistake, 91 a fault in the program, 92 kills."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, key: tuple[int, int, int]) -> int:
        index = key[2]
        if index in (5, 15):
            raise BadRecord(f"numbers.txt:{index}: not a numbér")
        if index == 90:
            raise UserError("numbers.txt is the wrong file")
        if index == 92:
            os.kill(os.getpid(), signal.SIGKILL)
        return index if index != 91 else 1 // 0


def collate(samples: list[int]) -> dict[str, np.ndarray]:
    if 77 in samples:
        raise UserError("77 cannot be collated")
    wide = np.repeat(np.array(samples, dtype=np.float32)[:, None], 3, axis=1)
    return {"index": np.array(samples, dtype=np.int64), "wide": wide}


def load(pieces: list[list[int]], workers: int) -> list[dict]:
    sampler = [[(0, 0, index) for index in piece] for piece in pieces]
    return list(make_loader(GuardedDataset(Numbers()), guarded_collate(collate), sampler, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_passes_everything_on(workers: int) -> None:
    pieces = [[], [1, 5, 2], [5], [], [], [3], [15, 4, 5], []]
    batches = load(pieces, workers)
    messages = {index: f"numbers.txt:{index}: not a numbér" for index in (5, 15)}
    assert len(batches) == len(pieces)
    for piece, batch in zip(pieces, batches):
        good = [index for index in piece if index not in messages]
        assert batch["skipped"] == [messages[index] for index in piece if index in messages]
        assert batch["size"] == len(good) and isinstance(batch["size"], int)
        if good:
            assert batch.keys() == {"index", "wide", "size", "skipped"}
            assert isinstance(batch["wide"], paddle.Tensor) and batch["index"].tolist() == good
            assert batch["wide"].numpy().tolist() == [[index] * 3 for index in good]
        else:
            assert batch.keys() == {"size", "skipped"}


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_without_batches(workers: int) -> None:
    assert load([], workers) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (90, UserError, "^numbers.txt is the wrong file$"),
        (77, UserError, "^77 cannot be collated$"),
        (91, RuntimeError, "(?s)while loading data:.*test_batches.py.*ZeroDivisionError"),
    ],
)
def test_exceptions_reach_the_main_process(workers: int, index: int, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        load([[1], [2, index], [3]], workers)


def test_killed_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle.io.dataloader.dataloader_iter.MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(RuntimeError, match="a process that loads data died, .* of 3 batches"):
        load([[1], [92], [2]], workers=2)


class BrokenSampler(list):
    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        raise OSError("the disk is gone")


class ShortSampler(BrokenSampler):
    def __iter__(self) -> Iterator[Any]:
        yield self[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "message"), [(BrokenSampler, "the disk is gone"), (ShortSampler, "ended after 1 of 2 batches")]
)
def test_sampler_that_breaks_off(workers: int, kind: type, message: str) -> None:
    sampler = kind([[(0, 0, 1)], [(0, 0, 2)]])
    batches = iter(make_loader(GuardedDataset(Numbers()), guarded_collate(collate), sampler, workers))
    assert next(batches)["size"] == 1
    with pytest.raises(RuntimeError, match=message):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_leaves_numpys_generator_alone(workers: int) -> None:
    np.random.seed(3)
    expected = np.random.random(4).tolist()
    np.random.seed(3)
    load([[1], [2]], workers)
    assert np.random.random(4).tolist() == expected


def test_loader_can_be_iterated_again_and_broken_off() -> None:
    sampler = [[(0, 0, index)] for index in range(5)]
    loader = make_loader(GuardedDataset(Numbers()), guarded_collate(collate), sampler, 2)
    for batch in loader:
        assert batch["index"].tolist() == [0]
        break
    for _ in range(2):
        assert [batch["size"] for batch in loader] == [1, 1, 1, 1, 1]


def test_guarded_dataset_names_the_key() -> None:
    guarded = GuardedDataset(Numbers())
    assert guarded[0, 1, 5] == Skipped("numbers.txt:5: not a numbér", (0, 1, 5))
    assert guarded[0, 1, 6] == 6 and len(guarded) == 100


# --------------------------------------------------------------------------------------------------------- skipped


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_skip_log_writes_counts_and_stops(tmp_path: Path) -> None:
    path = tmp_path / "run" / "skipped.jsonl"
    log = SkipLog(path, 0.01, 200, "train")
    log.add([])
    assert log.count == 0 and not path.exists()
    log.add(["a:1: é", "a:1: é"])
    log.add(["a:1: é", "a:2: bad"])
    assert log.count == 2
    assert lines(path) == [{"data": "train", "record": "a:1: é"}, {"data": "train", "record": "a:2: bad"}]
    with pytest.raises(UserError) as error:
        log.add([f"a:{line}: bad" for line in range(3, 31)])
    message = str(error.value)
    assert "train: 30 of 200 records" in message and "data.max_skip_ratio" in message
    assert message.count("\n  a:") == 20 and "and 10 more" in message
    assert len(lines(path)) == 30  # named in the file all the same


def test_skip_log_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, 1, 10, "train").add(["x", "y"])
    SkipLog(path, 1, 10, "val").add(["x"])
    with path.open("a") as file:
        file.write('{"data": "train", "rec')  # killed while writing
    log = SkipLog(path, 0.25, 10, "train")
    assert log.count == 2
    with pytest.raises(UserError, match="3 of 10"):
        log.add(["y", "z"])
    assert [(line["data"], line["record"]) for line in lines(path)] == [
        ("train", "x"),
        ("train", "y"),
        ("val", "x"),
        ("train", "z"),
    ]


def test_skip_log_without_file_and_without_budget() -> None:
    log = SkipLog(None, 0.0, 10, "val")
    log.add([])
    with pytest.raises(UserError, match="1 of 10"):
        log.add(["x"])
    assert log.count == 1
