"""Learning rates against those of the original, and the properties of the ones that are ours."""

from __future__ import annotations

import json

import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from ernie_vil.engine.schedules import SCHEDULES, Schedule

MEASURED = json.loads((DATA / "optim.json").read_text())["schedules"]
NAMES = {"linear_warmup_decay": "linear", "noam_decay": "noam", "manual_warmup_decay": "manual"}


@pytest.mark.parametrize(
    "case", MEASURED, ids=lambda case: f"{case['scheduler']}-{case['warmup_steps']}-{case['decay_steps']}"
)
def test_the_first_21_rates_of_every_measured_schedule(case):
    schedule = Schedule(
        NAMES[case["scheduler"]],
        case["learning_rate"],
        case["warmup_steps"],
        case["num_train_steps"],
        [int(step) for step in case["decay_steps"].split(";") if step],
        case["lr_decay_ratio"],
    )
    got = [schedule(step) for step in range(21)]
    # The original computes in float32.
    assert got == pytest.approx(case["values_for_runs_1_to_21"], rel=2e-6, abs=1e-9)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 50), st.integers(1, 200), st.integers(0, 300))
def test_rates_stay_between_zero_and_the_peak(name, warmup, total, step):
    schedule = Schedule(name, 1e-3, warmup, total, [10, 20], 0.1, 0.1)
    assert 0 <= schedule(step) <= 1e-3 * (1 + 1e-12)


@given(st.integers(0, 50), st.integers(51, 200), st.floats(0, 1))
def test_cosine_falls_from_the_peak_to_the_final_rate(warmup, total, final):
    schedule = Schedule("cosine", 2.0, warmup, total, final_ratio=final)
    assert schedule(warmup) == pytest.approx(2.0)
    assert schedule(total) == pytest.approx(2.0 * final)
    after = [schedule(step) for step in range(warmup, total + 1)]
    assert all(left >= right - 1e-12 for left, right in zip(after, after[1:]))


def test_constant_is_constant_after_the_warmup():
    schedule = Schedule("constant", 1.0, 4, 10)
    assert [schedule(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
