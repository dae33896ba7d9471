from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, List, Literal, Optional, Tuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ernie_vil.engine.config import (
    REQUIRED,
    ConfigError,
    EvalOptions,
    OptimizerOptions,
    RunOptions,
    TrainOptions,
    deep_merge,
    describe,
    load,
    option,
    read_yaml,
    run_schema,
    to_yaml,
)
from ernie_vil.engine.durations import Duration
from ernie_vil.engine.schema import keys_of
from ernie_vil.errors import UserError


@dataclass(frozen=True)
class Layer:
    size: int = option(REQUIRED, "width", minimum=1)
    kind: Literal["dense", "sparse"] = option("dense", "kind of layer")


@dataclass(frozen=True)
class Model:
    hidden_size: int = option(REQUIRED, "width of the model", minimum=1)
    dropout: float = option(0.1, "dropout probability | any layer", minimum=0, below=1)
    layers: List[Layer] = option([], "layers from the bottom")
    window: Tuple[int, int] = option((1, 2), "first and last position")
    rates: Tuple[float, ...] = option((), "rates")


@dataclass(frozen=True)
class Data:
    folder: str = option("here", "where the data is", exists=True, hint="download it or try --mini")
    names: Optional[str] = option(None, "list of names", exists=True)
    limits: Dict[str, int] = option({}, "limits by name", minimum=0)
    free: Any = option(None, "anything")


def sections(raw):
    if raw["task"] != "counting":
        raise UserError(f"no task {raw['task']!r}; there is counting")
    return {"model": Model, "data": Data}


GOOD = """
task: counting
output: out/run
model: {hidden_size: 8}
train: {batch_size: 64, duration: {epochs: 6}}
optimizer: {learning_rate: 1e-4, warmup: 10%}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files into an empty working directory that holds the folder ``here``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    def write_file(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write_file


def faults_of(path, overrides=(), mini=False):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, sections, mini)
    assert str(caught.value).split("\n  ")[1:] == caught.value.faults, "the message lists every fault"
    assert f"{path} has {len(caught.value.faults)} fault" in str(caught.value)
    return caught.value.faults


def only_fault(*args, **kwargs):
    faults = faults_of(*args, **kwargs)
    assert len(faults) == 1, faults
    return faults[0]


# ------------------------------------------------------------------------------------------------- what is read


def test_values_are_typed_and_defaults_filled_in(write):
    config = load(write("run.yaml", GOOD), [], sections)
    assert (config.task, config.output, config.seed, config.path) == ("counting", "out/run", 0, "run.yaml")
    assert config.model == Model(8) and config.data == Data() and config.target is None
    assert config.train == TrainOptions(64, Duration(6, "epochs")) and config.eval == EvalOptions()
    assert config.optimizer == OptimizerOptions(1e-4, warmup=Duration(10, "percent"))
    assert config.optimizer.epsilon_placement == "original" and config.train.log_every == Duration(50, "steps")
    assert config.raw["train"]["eval_every"] == {"epochs": 1} and config.raw["model"]["dropout"] == 0.1


def test_rich_values(write):
    text = GOOD + (
        "data: {limits: {a: 3}, free: [1, {x: null}], names: run.yaml}\n"
        "target: {metric: Q-AR, value: {val: 58.5, test: 59}, source: table 2}\n"
    )
    overrides = [
        "model={hidden_size: 4, layers: [{size: 3}, {size: 4, kind: sparse}], window: [3, 4], rates: [1, '1e-2', 2]}",
        "optimizer.decay_steps=[13308, 2 epochs, {percent: 50}]",
        "optimizer.schedule=manual",
        "optimizer.warmup=1 step",
        "optimizer.clip_norm=null",
    ]
    config = load(write("run.yaml", text), overrides, sections)
    assert config.model == Model(4, 0.1, [Layer(3), Layer(4, "sparse")], (3, 4), (1.0, 0.01, 2.0))
    assert all(type(rate) is float for rate in config.model.rates)
    assert config.data == Data("here", "run.yaml", {"a": 3}, [1, {"x": None}])
    assert config.target.value == {"val": 58.5, "test": 59.0}
    steps = [Duration(13308, "steps"), Duration(2, "epochs"), Duration(50, "percent")]
    assert config.optimizer.decay_steps == steps and config.optimizer.clip_norm is None


def test_instances_share_no_defaults(write):
    path = write("run.yaml", GOOD)
    first = load(path, [], sections)
    first.optimizer.multipliers["x"] = 2.0
    first.raw["train"].clear()
    assert load(path, [], sections).optimizer.multipliers == {} == OptimizerOptions(1.0).multipliers
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.seed = 3


def test_sections_may_extend_the_shared_ones_and_add_their_own(write):
    @dataclass(frozen=True)
    class LongTraining(TrainOptions):
        patience: int = option(3, "evaluations without a gain before the end")

    path = write("run.yaml", GOOD + "extra_layer: {size: 5}\n")
    config = load(path, ["train.patience=4"], lambda raw: {"train": LongTraining, "extra_layer": Layer})
    assert config.train == LongTraining(64, Duration(6, "epochs"), patience=4)
    assert config.extra == {"extra_layer": Layer(5)}
    assert config.model == {"hidden_size": 8}, "a section without a schema is kept as it is"
    assert config.raw["extra_layer"] == {"size": 5, "kind": "dense"}


# -------------------------------------------------------------------------------------------------- inheritance


def test_bases_nest_merge_deeply_and_later_wins(write):
    write("base/a.yaml", "x: {a: 1, b: 1, c: 1}\nlist: [1, 2]\nonly: a")
    write("base/deep/b.yaml", "_base_: ../a.yaml\nx: {b: 2, c: 2}\nlist: [3]")
    write("base/c.yaml", "x: {c: 3}\ngone: 1")
    path = write("run.yaml", "_base_: [base/deep/b.yaml, base/c.yaml]\nx: {d: 4}\ngone: null")
    assert read_yaml(path) == {"x": {"a": 1, "b": 2, "c": 3, "d": 4}, "list": [3], "only": "a", "gone": None}


def test_a_diamond_is_no_cycle_and_an_empty_file_is_no_fault(write):
    write("a.yaml", "x: 1")
    write("b.yaml", "_base_: a.yaml")
    write("c.yaml", "_base_: a.yaml\nx: 2")
    write("empty.yaml", "# nothing yet\n")
    assert read_yaml(write("run.yaml", "_base_: [b.yaml, c.yaml, empty.yaml]")) == {"x": 2}


def test_a_duration_is_replaced_as_one_value(write):
    write("a.yaml", GOOD)
    path = write("run.yaml", "_base_: a.yaml\ntrain: {duration: {steps: 100}, eval_every: {steps: 5}}")
    assert load(path, [], sections).train.duration == Duration(100, "steps")
    typo = write("typo.yaml", "_base_: a.yaml\ntrain: {duration: {step: 100}}")
    assert "typo.yaml: train.duration: unknown unit of duration 'step'; did you mean steps?" in only_fault(typo)


branches = st.deferred(lambda: st.dictionaries(st.sampled_from("AB"), mappings, max_size=2))
leaves = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.integers(), st.none(), st.lists(st.integers())), max_size=3
)
mappings = st.builds(lambda inner, outer: {**inner, **outer}, branches, leaves)


def flat(mapping, key=()):
    """Leaves by path: the slow reference of merging, in which later wins by construction."""
    found = {}
    for name, value in mapping.items():
        found.update(flat(value, (*key, name)) if isinstance(value, dict) else {(*key, name): value})
    return found


@given(mappings, mappings, mappings)
def test_merging_is_associative_and_later_wins(first, second, third):
    before = yaml.safe_dump([first, second, third])
    merged = deep_merge(deep_merge(first, second), third)
    assert merged == deep_merge(first, deep_merge(second, third))
    assert flat(merged) == {**flat(first), **flat(second), **flat(third)}
    assert deep_merge(first, {}) == first == deep_merge({}, first) == deep_merge(first, first)
    assert yaml.safe_dump([first, second, third]) == before, "the inputs are left alone"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "run.yaml: no such file; . holds here/, rum.txt"),
        (
            {"run.yaml": "_base_: base/vrc.yaml", "base/vcr.yaml": ""},
            "run.yaml: _base_: base/vrc.yaml: no such file; base holds vcr.yaml",
        ),
        (
            {"run.yaml": "_base_: [a.yaml]", "a.yaml": "_base_: run.yaml"},
            "a.yaml: _base_: run.yaml is based on itself: run.yaml <- a.yaml <- run.yaml",
        ),
        ({"run.yaml": "_base_: {a: 1}"}, "run.yaml: _base_: expected a path or a list of paths, got {'a': 1}"),
        ({"run.yaml": "_base_: here"}, "run.yaml: _base_: here: [Errno 21] Is a directory"),
        ({"run.yaml": "task: x\ntrain: [1,\noutput: y"}, "run.yaml: line 3: not YAML: "),
        (
            {"run.yaml": "_base_: a.yaml", "a.yaml": "x: 1\ny: {a: 1}\nx: 2"},
            "a.yaml: line 3: x: set twice in one mapping, first in line 1",
        ),
        ({"run.yaml": "y: {a: 1, a: 2}"}, "run.yaml: line 1: a: set twice"),
        ({"run.yaml": "- 1\n- 2"}, "run.yaml: the top level must be a mapping of keys to values, got [1, 2]"),
        (
            {"run.yaml": "x: !!python/object/apply:os.system ['touch hacked']"},
            "line 1: not YAML: could not determine a constructor",
        ),
        ({"run.yaml": "x: &a {y: *a}"}, "run.yaml: line 1: the value contains itself"),
        ({"run.yaml": "x: 2020-13-45"}, "run.yaml: not YAML: month must be in 1..12"),
        ({"run.yaml": "x: \x01"}, "run.yaml: not YAML: unacceptable character"),
    ],
)
def test_files_that_cannot_be_read(write, tmp_path, files, says):
    write("rum.txt", "")
    for name, text in files.items():
        write(name, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml("run.yaml")
    assert len(caught.value.faults) == 1 and says in caught.value.faults[0], caught.value.faults
    assert says in only_fault("run.yaml"), "no fault that only follows from the unread file"
    assert not (tmp_path / "hacked").exists()


def test_anchors_and_merge_keys_are_no_duplicates_and_share_nothing(write):
    text = "a: &a {k: 1, l: [1]}\nb: {in: &b {<<: *a, k: 2}}\nc: {<<: *b, k: 3}\n"
    assert read_yaml(write("run.yaml", text)) == {
        "a": {"k": 1, "l": [1]},
        "b": {"in": {"k": 2, "l": [1]}},
        "c": {"k": 3, "l": [1]},
    }
    shared = "target: {metric: a, value: &v [1, 2], source: b}\ndata: {free: *v}\n"
    config = load(write("run.yaml", GOOD + shared), ["data.free.0=7"], sections)
    assert (config.data.free, config.target.value) == ([7, 2], [1.0, 2.0])


# ---------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.free=1", 1),
        ("data.free=1.5", 1.5),
        ("data.free=true", True),
        ("data.free='1'", "1"),
        ("data.free=", None),
        ("data.free=null", None),
        ("data.free=[1, two]", [1, "two"]),
        ("data.free={a: {b: 1}}", {"a": {"b": 1}}),
        ("data.free=a=b", "a=b"),
        ("data.free.new.key=3", {"new": {"key": 3}}),
        (" data.free =x", "x"),
    ],
)
def test_overrides_are_typed_as_yaml(write, text, expected):
    value = load(write("run.yaml", GOOD), [text], sections).data.free
    assert value == expected and type(value) is type(expected)


def test_overrides_reach_into_lists_and_durations_in_order(write):
    path = write("run.yaml", GOOD + "data: {free: [{b: 1, c: 2}, 5]}\n")
    overrides = [
        "data.free.0.b=7",
        "data.free.1=6",
        "seed=1",
        "seed=2",
        "train.duration.steps=9",
        "train.eval_every.steps=3",
    ]
    config = load(path, overrides, sections)
    assert config.data.free == [{"b": 7, "c": 2}, 6] and config.seed == 2
    assert config.train.duration == Duration(9, "steps"), "the unit of the file gives way"
    assert config.train.eval_every == Duration(3, "steps")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "-o nonsense: malformed; write key=value"),
        ("=3", "-o =3: malformed"),
        ("a..b=3", "-o a..b=3: malformed"),
        ("data.free=[1,", "-o data.free=[1,: line 1: not YAML"),
        ("data.free={a: 1, a: 2}", "line 1: a: set twice"),
        ("data.free.2.x=1", "-o data.free.2.x=1: data.free is a list of 2, it has no item '2'"),
        ("data.free.x=1", "data.free is a list of 2, it has no item 'x'"),
        ("mini.seed=1", "overrides come after the mini section; leave out 'mini.'"),
        ("train.batch_sise=3", "-o train.batch_sise=3: train.batch_sise: unknown key; did you mean train.batch_size?"),
        ("train.batch_size.x=3", "-o train.batch_size.x=3: train.batch_size: expected a whole number, got {'x': 3}"),
        ("train=", "-o train=: train: expected a mapping of keys to values, got null"),
    ],
)
def test_bad_overrides_are_named(write, text, says):
    assert says in only_fault(write("run.yaml", GOOD + "data: {free: [1, 2]}\n"), [text])


def test_two_units_by_overrides_are_contradictory(write):
    fault = only_fault(write("run.yaml", GOOD), ["train.duration.steps=9", "train.duration.epochs=2"])
    assert "train.duration: contradictory: give exactly one of" in fault and fault.endswith("got steps, epochs")


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("batch_size", "3", "unknown key; did you mean train.batch_size or eval.batch_size?"),
        ("optimiser", "{}", "unknown key; did you mean optimizer?"),
        ("train.Keep", "3", "unknown key; did you mean train.keep?"),
        ("train.warmup", "3 steps", "unknown key; did you mean optimizer.warmup?"),
        ("model.learning_rat", "3", "unknown key; did you mean optimizer.learning_rate?"),
        ("eval.zzz", "3", "unknown key; valid here: batch_size"),
        ("1", "3", "unknown key"),
        ("_base_", "x.yaml", "unknown key"),
        ("seed", "1.5", "expected a whole number, got 1.5"),
        ("seed", "true", "expected a whole number, got true"),
        ("seed", "1e3", "expected a whole number, got '1e3'"),
        ("seed", "null", "expected a whole number, got null"),
        ("seed", "-1", "must be at least 0, got -1"),
        ("seed", "4294967296", "must be at most 4294967295"),
        ("output", "2020", "expected text, got 2020; put it in quotes"),
        ("output", "[a]", "expected text, got ['a']"),
        ("train.recompute", "1", "expected true or false, got 1"),
        ("train.workers", "many", "expected a whole number, got 'many'"),
        ("optimizer.learning_rate", "fast", "expected a number, got 'fast'"),
        ("optimizer.learning_rate", "false", "expected a number, got false"),
        ("optimizer.learning_rate", ".nan", "expected a finite number, got nan"),
        ("optimizer.learning_rate", "inf", "expected a number, got 'inf'"),
        ("optimizer.beta2", "1", "must be below 1, got 1.0"),
        ("optimizer.epsilon", "0", "must be above 0, got 0.0"),
        ("optimizer.clip_norm", "-1", "must be at least 0, got -1.0"),
        ("train.precision", "bf61", "'bf61' is not one of fp32, bf16, fp16; did you mean bf16?"),
        ("optimizer.schedule", "Cosin", "is not one of constant, noam, linear, manual, cosine; did you mean cosine?"),
        ("train.log_every", "0 steps", "must be above 0, got 0 steps"),
        ("train.log_every", "null", "expected a duration, got null"),
        ("train.duration", "{epochs: 3, examples: 5}", "contradictory: give exactly one of"),
        ("train.duration", "50%", "cannot be a percentage of itself"),
        ("train.duration", "6", "not a duration: 6; give exactly one of"),
        ("train.eval_every", "1 epok", "unknown unit of duration 'epok'; did you mean epochs?"),
        ("train.accumulate", "5", "batch_size 64 cannot be divided into 5 micro-batches"),
        ("optimizer.warmup", "7 epochs", "contradictory: 7 epochs of warm-up, but train.duration is 6 epochs"),
        ("optimizer.decay_steps", "3", "expected a list, each item a duration, got 3"),
        ("optimizer.decay_steps", "[3, x]", "not a duration: 'x'"),
        ("optimizer.multipliers", "[1]", "expected a mapping of names, each value a number, got [1]"),
        ("optimizer.multipliers", "{'heads.*': x}", "optimizer.multipliers.heads.*: expected a number, got 'x'"),
        ("optimizer.multipliers", "{3: 1}", "names must be text; put it in quotes"),
        ("model.window", "[1, 2, 3]", "expected a list of 2 values, got 3"),
        ("model.layers", "[{size: 3}, {size: 0}]", "model.layers.1.size: must be at least 1, got 0"),
        ("model.layers", "[{size: 3, kind: dens}]", "'dens' is not one of dense, sparse; did you mean dense?"),
        ("model.layers", "[{kind: dense}]", "run.yaml: model.layers.0.size: required, but not set: width"),
        ("model", "3", "expected a mapping of keys to values, got 3"),
        ("target", "{metric: a, value: [x], source: b}", "expected a number or a list, each item a number or a"),
        ("target", "{metric: a, value: 3}", "target.source: required, but not set"),
        ("data.limits", "{a: -1}", "data.limits.a: must be at least 0, got -1"),
        ("data.names", "''", "no such file or folder: ''"),
        ("task", "conting", "no task 'conting'; there is counting"),
    ],
)  # fmt: skip
def test_every_fault_names_its_key_and_what_is_right(write, key, value, says):
    path = write("run.yaml", GOOD)
    assert says in only_fault(path, [f"{key}={value}"])
    # The same value in a later file is the fault of that file.
    tree: Any = yaml.safe_load(value)
    for name in reversed(key.split(".")):
        tree = {name: tree}
    if key != "_base_":
        fault = only_fault(write("later.yaml", yaml.safe_dump({"_base_": path, **tree})))
        assert fault.startswith(f"later.yaml: {key}") and (says in fault or "required" in says)


def test_missing_files_are_answered_with_what_is_there(write):
    for name in ("vcr_val", "vcr_train", *(f"other{i:02}" for i in range(20))):
        write(f"here/{name}.jsonl", "")
    path = write("run.yaml", GOOD)
    fault = only_fault(path, ["data.folder=here/vcr_vall.jsonl"])
    assert "data.folder: no such file or folder: 'here/vcr_vall.jsonl'; here holds vcr_val.jsonl, " in fault
    assert fault.endswith("and 10 more; download it or try --mini")
    assert "; here holds " in only_fault(path, ["data.names=here/no/such/folder/at/all"])
    assert "no such file or folder" in only_fault(path, ["data.folder=" + "x" * 300])


def test_a_default_path_must_exist_too_but_not_in_a_miniature_run(write, tmp_path):
    path = write("run.yaml", GOOD + "mini: {seed: 1}\n")
    (tmp_path / "here").rmdir()
    assert only_fault(path).startswith("run.yaml: data.folder: no such file or folder: 'here'; . holds run.yaml")
    assert load(path, [], sections, mini=True).data.folder == "here"


def test_required_keys(write):
    assert faults_of(write("run.yaml", "task: counting")) == [
        "run.yaml: output: required, but not set: folder that receives checkpoints and logs",
        "run.yaml: train.batch_size: required, but not set: examples per optimizer step, over all devices and "
        "micro-batches",
        "run.yaml: train.duration: required, but not set: length of the training",
        "run.yaml: optimizer.learning_rate: required, but not set: peak learning rate",
        "run.yaml: model.hidden_size: required, but not set: width of the model",
    ]


def test_noam_needs_a_warm_up_but_manual_needs_no_steps(write):
    path = write("run.yaml", GOOD)
    assert "needs a warm-up above 0" in only_fault(path, ["optimizer.schedule=noam", "optimizer.warmup=0 steps"])
    assert load(path, ["optimizer.schedule=manual"], sections).optimizer.decay_steps == []


def test_all_faults_come_at_once_each_with_its_file(write):
    write("_base_/shared.yaml", "train: {batch_sise: 4, precision: fp8, keep: 3}\nmodel: {dropout: 2}")
    write("_base_/broken.yaml", "a: 1\na: 2")
    path = write(
        "run.yaml",
        "_base_: [_base_/shared.yaml, _base_/broken.yaml, _base_/none.yaml]\n" + GOOD + "data: {folder: nowhere}\n"
        "mini: {model: {hiden_size: 2}}\n",
    )
    faults = faults_of(path, ["train.keep=0", "train.accumulate=3", "nonsense"])
    expected = [
        "_base_/broken.yaml: line 2: a: set twice",
        "run.yaml: _base_: _base_/none.yaml: no such file; _base_ holds broken.yaml, shared.yaml",
        "-o nonsense: malformed",
        "_base_/shared.yaml: train.batch_sise: unknown key; did you mean train.batch_size?",
        "_base_/shared.yaml: train.precision: 'fp8' is not one of",
        "-o train.keep=0: train.keep: must be at least 1, got 0",
        "-o train.accumulate=3: train.accumulate: batch_size 64 cannot be divided into 3",
        "_base_/shared.yaml: model.dropout: must be below 1, got 2.0",
        "run.yaml: data.folder: no such file or folder: 'nowhere'",
        "run.yaml (mini): model.hiden_size: unknown key; did you mean model.hidden_size?",
    ]
    assert len(faults) == len(expected)
    for wanted in expected:
        assert any(fault.startswith(wanted) for fault in faults), (wanted, faults)


# --------------------------------------------------------------------------------------------------------- mini


def test_mini_lies_over_the_file_and_under_the_overrides(write):
    write("a.yaml", GOOD + "mini: {model: {hidden_size: 2}, train: {duration: 9 steps}, data: {folder: made/later}}")
    path = write("run.yaml", "_base_: a.yaml\nmini: {model: {dropout: 0}, train: {batch_size: 2}}\nseed: 5")
    full, mini = load(path, [], sections), load(path, ["train.batch_size=4"], sections, mini=True)
    assert (full.model, full.train.batch_size, full.data.folder) == (Model(8), 64, "here")
    assert (mini.model, mini.train.batch_size, mini.seed) == (Model(2, 0.0), 4, 5)
    assert (mini.train.duration, mini.data.folder) == (Duration(9, "steps"), "made/later")
    assert "mini" not in full.raw and "mini" not in mini.raw


def test_faults_in_mini_are_found_in_any_run_and_reported_once(write):
    text = GOOD + "mini: {train: {batchsize: 2}, model: {hidden_size: x}, seed: 1.5}\nseed: a\n"
    path = write("run.yaml", text)
    small = [
        "run.yaml (mini): train.batchsize: unknown key; did you mean train.batch_size?",
        "run.yaml (mini): seed: expected a whole number, got 1.5",
        "run.yaml (mini): model.hidden_size: expected a whole number, got 'x'",
    ]
    assert sorted(faults_of(path)) == sorted(["run.yaml: seed: expected a whole number, got 'a'", *small])
    assert sorted(faults_of(path, mini=True)) == sorted(small)
    assert "bad.yaml: mini: expected a mapping" in only_fault(write("bad.yaml", GOOD + "mini: 3"))


# -------------------------------------------------------------------------------------- writing and describing


numbers = st.floats(0, 1, exclude_max=True, allow_subnormal=False)


@given(
    rate=numbers,
    epsilon=st.floats(1e-300, 1e300),
    metric=st.text(),
    duration=st.builds(Duration, st.decimals("0.001", 99, places=3).map(float), st.sampled_from(["steps", "epochs"])),
    names=st.dictionaries(st.text(min_size=1), numbers, max_size=3),
    free=st.recursive(st.none() | st.booleans() | st.integers() | st.text() | numbers, st.lists, max_leaves=4),
)
def test_what_is_written_loads_back_to_the_same_configuration(
    tmp_path_factory, rate, epsilon, metric, duration, names, free
):
    folder = tmp_path_factory.getbasetemp()
    raw = {
        **yaml.safe_load(GOOD),
        "train": {"batch_size": 4, "duration": duration.as_mapping(), "best_metric": metric, "save_every": None},
        "optimizer": {
            "learning_rate": rate,
            "epsilon": epsilon,
            "multipliers": names,
            "decay_steps": [7],
            "schedule": "manual",
            "warmup": {"epochs": 1e-9},
        },
        "data": {"folder": str(folder), "free": free},
        "target": {"metric": metric, "value": list(names.values()), "source": metric},
    }
    (folder / "first.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    first = load(folder / "first.yaml", [], sections)
    assert (first.optimizer.learning_rate, first.optimizer.epsilon, first.data.free) == (rate, epsilon, free)
    (folder / "second.yaml").write_text(to_yaml(first), encoding="utf-8")
    second = load(folder / "second.yaml", [], sections)
    assert second == first and second.raw == first.raw and to_yaml(second) == to_yaml(first)


def test_describe_lists_every_key():
    schema = run_schema({"model": Model, "data": Data})
    table = describe(schema).splitlines()
    assert table[:2] == ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in (
        "| `task` | text | required | name of the task |",
        "| `train.precision` | one of fp32, bf16, fp16 | fp32 | number format of the forward pass |",
        "| `train.batch_size` | a whole number, at least 1 | required | "
        "examples per optimizer step, over all devices and micro-batches |",
        "| `train.save_every` | a duration or null, above 0 | 1 epoch | "
        "time between checkpoints; null saves only at the end |",
        "| `model.dropout` | a number, at least 0, below 1 | 0.1 | dropout probability \\| any layer |",
        "| `model.layers.N.kind` | one of dense, sparse | dense | kind of layer |",
        "| `data.names` | text or null | null | list of names |",
        "| `target.metric` | text | required | what was measured, and on which split |",
    ):
        assert row in table
    assert len(table) == 2 + len(list(keys_of(schema)))
    assert {line.count(" | ") for line in table} == {3}, "every row has four cells"


def test_described_defaults_are_the_defaults():
    rows = [line.split(" | ") for line in describe(OptimizerOptions).splitlines()[2:]]
    shown = {row[0].strip("|` "): yaml.safe_load(row[2]) for row in rows}
    config = OptimizerOptions(1.0)
    assert shown.pop("learning_rate") == "required" and Duration.parse(shown.pop("warmup")) == config.warmup
    for name, default in shown.items():
        assert (float(default) if name == "epsilon" else default) == getattr(config, name)


def test_schemas_with_undocumented_or_impossible_fields_are_refused():
    @dataclass
    class Undocumented:
        size: int = 3

    @dataclass
    class Impossible:
        size: set = option(None, "a set")

    with pytest.raises(TypeError, match=r"Undocumented\.size is not documented"):
        describe(Undocumented)
    with pytest.raises(TypeError, match="no field type of a schema"):
        describe(Impossible)
    assert len(describe(RunOptions)) > 1000


def test_a_miniature_run_of_a_config_without_one_is_refused(write):
    with pytest.raises(ConfigError, match="mini: missing"):
        load(write("run.yaml", GOOD), [], sections, mini=True)
