"""Every key of a model and of a weight file is accounted for, and nothing is copied unless everything fits."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ernie_vil.errors import UserError
from ernie_vil.models.account import KeyAccount, apply_state


def layer() -> paddle.nn.Sequential:
    return paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.BatchNorm1D(3))


def full_state() -> dict[str, np.ndarray]:
    shapes = {"0.weight": (2, 3), **dict.fromkeys(("0.bias", "1.weight", "1.bias", "1._mean", "1._variance"), (3,))}
    return {name: np.full(shape, index + 1.5) for index, (name, shape) in enumerate(shapes.items())}


def values(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_parameters_and_buffers_are_copied_and_cast() -> None:
    model, state = layer(), full_state()
    account = apply_state(model, state, where="file")
    assert sorted(account.loaded) == sorted(state)
    for name, value in values(model).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[name])
    assert not model[0].weight.stop_gradient


def test_bfloat16_bits() -> None:
    model, state = layer(), full_state()
    state["0.bias"] = np.array([0x3F80, 0xC000, 0x0000], np.uint16)
    apply_state(model, state, where="file")
    np.testing.assert_array_equal(model[0].bias.numpy(), [1.0, -2.0, 0.0])
    model.bfloat16()
    apply_state(model, state, where="file")
    assert model[0].bias.dtype == paddle.bfloat16
    np.testing.assert_array_equal(model[0].bias.astype("float32").numpy(), [1.0, -2.0, 0.0])


def test_all_faults_are_listed_and_nothing_is_copied() -> None:
    model, state = layer(), full_state()
    before = values(model)
    del state["1.bias"], state["1._mean"]
    state.update({"0.weight": np.ones((3, 2)), "extra": np.ones(1)})
    with pytest.raises(UserError) as caught:
        apply_state(model, state, where="some/file")
    message = str(caught.value)
    assert message.startswith("some/file: the weights do not fit the model.\nmissing (2):\n  1.bias\n  1._mean\n")
    assert "unexpected (1):\n  extra\n" in message
    assert "misshaped (1):\n  0.weight: [3, 2] in the file, [2, 3] in the model\n" in message
    assert all((value == before[name]).all() for name, value in values(model).items())

    account = apply_state(model, state, where="some/file", strict=False)
    assert account.loaded == ["0.bias", "1.weight", "1._variance"] and account.unexpected == ["extra"]
    after = values(model)
    assert (after["0.weight"] == before["0.weight"]).all() and (after["0.bias"] == state["0.bias"]).all()


def test_allowed_absences_and_extras() -> None:
    state = {name: value for name, value in full_state().items() if name.startswith("0.")}
    state["heads.x.weight"] = np.ones(1)
    account = apply_state(layer(), state, may_be_absent=("1.",), may_be_extra=("heads.",), where="file")
    assert account.fresh == ["1.weight", "1.bias", "1._mean", "1._variance"]
    assert account.ignored == {"heads.x.weight": "not part of this model"}
    assert not account.missing and not account.unexpected


def test_summary_folds_long_lists_but_counts_them() -> None:
    account = KeyAccount(loaded=["a"], missing=[f"k{index}" for index in range(30)], ignored={"x": "a reason"})
    assert account.summary() == (
        "loaded: 1 keys\nmissing: 30 keys: k0, k1, k2, k3, k4, k5, k6, k7, and 22 more\nignored: 1 keys: x (a reason)"
    )
    with pytest.raises(UserError, match=r"(?s)missing \(30\).*k29"):
        account.raise_if_bad("file")
    account.raise_if_bad("file", strict=False)
    KeyAccount(loaded=["a"]).raise_if_bad("file")
