from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_vil.engine.durations import UNITS, Duration, to_steps

values = st.decimals(0, 5000, places=3).map(float)
sizes = st.integers(1, 500)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"epochs": 6}, Duration(6, "epochs")),
        ({"steps": 26640}, Duration(26640, "steps")),
        ({"examples": "1e6"}, Duration(1_000_000, "examples")),
        ({"percent": 10}, Duration(10, "percent")),
        ("6 epochs", Duration(6, "epochs")),
        ("1 epoch", Duration(1, "epochs")),
        ("6epochs", Duration(6, "epochs")),
        ("0.5 Epochs", Duration(0.5, "epochs")),
        (" 26640 steps ", Duration(26640, "steps")),
        ("1e6 examples", Duration(1_000_000, "examples")),
        ("1e6examples", Duration(1_000_000, "examples")),
        ("10%", Duration(10, "percent")),
        ("2.5 percent", Duration(2.5, "percent")),
        ("0 steps", Duration(0, "steps")),
    ],
)
def test_parse_reads_mappings_and_texts(raw, expected):
    assert Duration.parse(raw) == expected


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"epochs": 6, "steps": 3}, "contradictory: give exactly one of .*; got epochs, steps"),
        ({}, "empty: give exactly one of"),
        ({"epoch": 6}, "unknown unit of duration 'epoch'; did you mean epochs"),
        ({"steps": -1}, "negative: -1 steps"),
        ("-2 epochs", "negative"),
        ("3 stepps", "'stepps'; did you mean steps"),
        ("3 bananas", "'bananas'; give exactly one of"),
        ({3: 4}, "unknown unit of duration 3"),
        ({"steps": True}, "finite number, not True"),
        ({"steps": None}, "finite number, not None"),
        ({"steps": [1]}, "finite number"),
        ({"steps": math.nan}, "finite number, not nan"),
        ({"steps": math.inf}, "finite number, not inf"),
        ({"steps": 10**400}, "finite number"),
        ("nan steps", "not a duration: 'nan steps'"),
        ("epochs", "not a duration: 'epochs'"),
        ("1e999 steps", "finite number, not '1e999'"),
        ("1.2.3 steps", "finite number, not '1.2.3'"),
        ("101%", "more than 100 percent"),
        ("6", "not a duration: '6'; give exactly one of"),
        (6, "not a duration: 6"),
        (None, "not a duration: None"),
        (True, "not a duration: True"),
        ([], "not a duration"),
    ],
)
def test_parse_refuses_with_a_clear_text(raw, says):
    with pytest.raises(ValueError, match=says):
        Duration.parse(raw)


def test_durations_print_as_people_write_them():
    assert [str(Duration.parse(raw)) for raw in ("1 epoch", "6 epochs", "10%", "1 %", "0.5 epoch", "1e6 examples")] == [
        "1 epoch",
        "6 epochs",
        "10 percent",
        "1 percent",
        "0.5 epochs",
        "1000000 examples",
    ]


@given(st.decimals(0, 100, places=4).map(float), st.sampled_from(UNITS))
def test_texts_and_mappings_are_read_back(value, unit):
    duration = Duration(value, unit)
    assert (
        Duration.parse(duration.as_mapping()) == Duration.parse(str(duration)) == Duration.parse(duration) == duration
    )


def smallest_count_reaching(goal: Decimal, per_step: Decimal) -> int:
    """The slow reference: take steps until the goal is reached."""
    steps, reached = 0, Decimal(0)
    while reached < goal:
        steps, reached = steps + 1, reached + per_step
    return steps


@given(st.decimals(0, 60, places=3), sizes, sizes)
def test_examples_and_steps_against_counting(value, steps_per_epoch, batch_size):
    sizes_of_run = {"steps_per_epoch": steps_per_epoch, "batch_size": batch_size}
    assert to_steps(Duration(float(value), "steps"), **sizes_of_run) == smallest_count_reaching(value, Decimal(1))
    examples = Duration(float(value * 10), "examples")
    assert to_steps(examples, **sizes_of_run) == smallest_count_reaching(value * 10, Decimal(batch_size))


@given(st.decimals(0, 4, places=2), st.integers(1, 80))
def test_epochs_and_percent_against_counting(value, steps):
    # One step is 1/steps of an epoch; multiplied out so that the reference stays exact.
    expected = smallest_count_reaching(value * steps, Decimal(1))
    assert to_steps(Duration(float(value), "epochs"), steps_per_epoch=steps, batch_size=7) == expected
    percent = Duration(float(value), "percent")
    expected = smallest_count_reaching(value * steps, Decimal(100))
    assert to_steps(percent, steps_per_epoch=3, batch_size=7, total_steps=steps) == expected


@given(st.integers(0, 300), sizes, sizes)
def test_whole_epochs_and_the_whole_training_are_exact(epochs, steps_per_epoch, batch_size):
    total = to_steps(Duration(epochs, "epochs"), steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    assert total == epochs * steps_per_epoch
    whole = Duration(100, "percent")
    assert to_steps(whole, steps_per_epoch=steps_per_epoch, batch_size=batch_size, total_steps=total) == total


@given(values, values, st.sampled_from(UNITS), sizes, sizes, st.integers(1, 10_000))
def test_longer_never_takes_fewer_steps_and_only_zero_takes_none(first, second, unit, per_epoch, batch_size, total):
    scale = 0.02 if unit == "percent" else 1
    shorter, longer = sorted((first * scale, second * scale))
    steps = [
        to_steps(Duration(value, unit), steps_per_epoch=per_epoch, batch_size=batch_size, total_steps=total)
        for value in (shorter, longer)
    ]
    assert steps[0] <= steps[1]
    assert (steps[0] == 0) == (shorter == 0)


def test_decimal_values_mean_what_is_written():
    assert math.ceil(0.07 * 100) == 8, "the trap: binary fractions"
    assert to_steps(Duration(0.07, "epochs"), steps_per_epoch=100, batch_size=4) == 7


def test_percent_needs_the_length_of_the_training():
    with pytest.raises(ValueError, match="10 percent of the training is unknown here"):
        to_steps(Duration(10, "percent"), steps_per_epoch=10, batch_size=4)


@pytest.mark.parametrize(
    "sizes_of_run", [{"steps_per_epoch": 0, "batch_size": 1}, {"steps_per_epoch": 1, "batch_size": 0}]
)
def test_sizes_below_one_are_refused(sizes_of_run):
    with pytest.raises(ValueError, match="must be at least 1"):
        to_steps(Duration(1, "steps"), **sizes_of_run)
