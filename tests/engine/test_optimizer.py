"""Optimizer steps against runs of the original program, and against a slow reference."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from conftest import DATA, forward, measured_model

from ernie_vil.engine.optimizer import Adam, clip_by_global_norm, fill_absent_gradients
from ernie_vil.engine.schedules import Schedule
from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel, large_config
from ernie_vil.models.heads import answer_loss, choice_loss, match_vector
from ernie_vil.weights.fluid_names import to_original

FACTS = json.loads((DATA / "optim.json").read_text())
TOLERANCE = 5e-5
PARTS = ("vcr_qa", "vcr_qar")


def build(model, settings, **changes):
    named = list(model.named_parameters())
    rates = {name: settings["layer_decay_rate"] ** k for name, k in model.learning_rate_exponents().items()}
    options = {
        "weight_decay": settings["weight_decay"],
        "decay_excluded": model.decay_excluded(),
        "layer_rates": rates,
        **changes,
    }
    scheduler = settings.get("lr_scheduler", settings.get("scheduler"))
    steps = settings["decay_steps"]
    if isinstance(steps, str):
        steps = [int(step) for step in steps.split(";") if step]
    schedule = Schedule(
        {"noam_decay": "noam", "linear_warmup_decay": "linear", "manual_warmup_decay": "manual"}[scheduler],
        settings["learning_rate"],
        settings["warmup_steps"],
        settings.get("num_train_steps", 20),
        steps,
        settings.get("lr_decay_ratio", 0.1),
    )
    return Adam(named, **options), schedule


def step(model, optimizer, schedule, number, loss):
    loss.backward()
    parameters = [tensor for _, tensor in model.named_parameters()]
    fill_absent_gradients(parameters)
    gradients = {to_original(name): tensor.grad.numpy() for name, tensor in model.named_parameters()}
    norm = float(clip_by_global_norm(parameters, 1.0))
    optimizer.set_lr(schedule(number))
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    return gradients, norm


def compare(model, want, run):
    """Compare all parameters of ``<run>/<name>``; a key bias has no true gradient and moves by rounding noise."""
    got = {to_original(name): tensor.numpy() for name, tensor in model.named_parameters()}
    names = [key.split("/", 1)[1] for key in want if key.startswith(run + "/") and not key.endswith("key_fc.b_0")]
    assert names
    for name in names:
        np.testing.assert_allclose(got[name], want[f"{run}/{name}"], atol=TOLERANCE, rtol=0, err_msg=f"{run} {name}")


@pytest.mark.parametrize("kind", ["noam", "manual", "linear"])
def test_joint_training_runs_of_vcr(weights, inputs, kind):
    facts = FACTS[f"vcr_{kind}"]
    with np.load(DATA / f"optim_vcr_{kind}.npz") as arrays:
        want = dict(arrays)
    model = measured_model(weights, heads=PARTS)
    optimizer, schedule = build(model, facts["settings"])
    labels = paddle.to_tensor(inputs["vcr/labels"].reshape(-1))
    recorded = {key.split("/")[0] for key in want}
    for number, task_weights in enumerate(facts["task_weights"]):
        part = PARTS[task_weights.index(1)]
        scores = model.heads[part](match_vector(forward(model, inputs, "vcr", images=2)))
        loss = choice_loss(scores, labels) / scores.shape[0]
        assert abs(float(loss) - facts["loss"][number]) < 2e-5
        assert abs(schedule(number) - facts["lr"][number]) < 1e-8
        gradients, norm = step(model, optimizer, schedule, number, loss)
        assert abs(norm / facts["grad_global_norm"][number] - 1) < 1e-4
        for key in want:
            if key.startswith(f"grad_step{number + 1}/") and not key.endswith("key_fc.b_0"):
                np.testing.assert_allclose(gradients[key.split("/", 1)[1]], want[key], atol=2e-5, err_msg=key)
        if f"step{number + 1}" in recorded:
            compare(model, want, f"step{number + 1}")
    if kind != "noam":
        assert facts["unchanged_after_first_run"] and facts["lr"][0] == 0


@pytest.mark.parametrize("kind", ["plain", "lr_list"])
def test_runs_of_vqa_with_and_without_head_multipliers(weights, inputs, kind):
    facts = FACTS[f"vqa_{kind}"]
    with np.load(DATA / "optim_vqa.npz") as arrays:
        want = {key[len(kind) + 1 :]: value for key, value in arrays.items() if key.startswith(kind + "/")}
    model = measured_model(weights, heads=("vqa",))
    model.heads["vqa"].dropout.p = 0.0
    optimizer, schedule = build(model, facts["settings"], multipliers={"heads.vqa.*": 2.5} if kind == "lr_list" else {})
    targets = paddle.to_tensor(inputs["vqa/soft_labels"])
    for number in range(3):
        logits = model.heads["vqa"](match_vector(forward(model, inputs, "vqa")))
        loss = answer_loss(logits, targets) / targets.shape[0]
        np.testing.assert_allclose(float(loss), facts["loss"][number], rtol=1e-5)
        step(model, optimizer, schedule, number, loss)
        if number:
            compare(model, want, f"step{number + 1}")


def test_the_modern_place_of_epsilon_is_paddles_own_and_differs(weights, inputs):
    """Fed with the same gradients, ``modern`` gives what ``paddle.optimizer.AdamW`` gives; ``original`` does not."""
    values, gradients = np.linspace(-1, 1, 6, dtype=np.float32), np.full(6, 1e-7, dtype=np.float32)
    results = {}
    for kind in ("original", "modern", "paddle"):
        parameter = paddle.create_parameter([6], "float32")
        parameter.set_value(values)
        optimizer = (
            paddle.optimizer.AdamW(learning_rate=0.01, parameters=[parameter], weight_decay=0.1)
            if kind == "paddle"
            else Adam([("weight", parameter)], weight_decay=0.1, epsilon_placement=kind)
        )
        optimizer.set_lr(0.01)
        for _ in range(3):
            parameter.grad = paddle.to_tensor(gradients)
            optimizer.step()
            optimizer.clear_grad()
        results[kind] = parameter.numpy()
    np.testing.assert_allclose(results["modern"], results["paddle"], rtol=1e-6)
    assert np.abs(results["original"] - results["paddle"]).max() > 1e-3


def test_every_step_equals_the_formula_in_float64():
    rng = np.random.default_rng(0)
    decay, rate, factor, limit = 0.1, 0.5, 2.5, 1.0
    parameter = paddle.create_parameter([7], "float32")
    parameter.set_value(rng.normal(size=7).astype(np.float32))
    optimizer = Adam(
        [("a.weight", parameter)], weight_decay=decay, layer_rates={"a.weight": rate}, multipliers={"a.*": factor}
    )
    value, first, second = parameter.numpy().astype(np.float64), np.zeros(7), np.zeros(7)
    for number in range(1, 12):
        gradient = rng.normal(size=7) * 10.0 ** rng.integers(-8, 2)
        parameter.grad = paddle.to_tensor(gradient.astype(np.float32))
        norm = float(clip_by_global_norm([parameter], limit))
        np.testing.assert_allclose(norm, np.linalg.norm(gradient), rtol=1e-5)
        gradient = gradient / max(np.linalg.norm(gradient) / limit, 1)
        learning_rate = 0.01 * number
        optimizer.set_lr(learning_rate)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = learning_rate * np.sqrt(1 - 0.999**number) / (1 - 0.9**number)
        moved = rate * factor * corrected * first / (np.sqrt(second) + 1e-8)
        value = value - moved - decay * learning_rate * factor * value
        np.testing.assert_allclose(parameter.numpy(), value, atol=2e-5)


def test_layer_rates_and_decay_lists_of_the_measured_network(weights):
    model = measured_model(weights, heads=PARTS)
    exponents = {to_original(name): k for name, k in model.learning_rate_exponents().items()}
    got = {to_original(name): None for name, _ in model.named_parameters()}
    got.update({name: 0.9**k for name, k in exponents.items()})
    assert set(exponents) == set(FACTS["layer_decay_assigned"])
    assert got == pytest.approx(FACTS["lr_multiplier"])
    excluded = {to_original(name) for name in model.decay_excluded()}
    assert excluded == set(FACTS["weight_decay_excluded"])
    everything = measured_model(weights)
    assert not {name for name in everything.decay_excluded() if name.startswith("heads.vqa")}


@pytest.mark.parametrize("size, config", [("base", ErnieViLConfig()), ("large", large_config())])
def test_layer_rates_follow_from_the_depth_of_the_named_models(size, config):
    small = ErnieViLConfig(
        vocab_size=8, hidden_size=4, num_attention_heads=2, v_hidden_size=4, v_num_attention_heads=2,
        v_intermediate_size=4, co_hidden_size=4, co_num_attention_heads=2, feature_size=4,
        t_biattention_id=config.t_biattention_id, v_biattention_id=config.v_biattention_id,
    )  # fmt: skip
    facts = FACTS["official_lr_exponents"][size]["exponent_of_decay_rate"]
    model = ErnieViLModel(small)
    exponents = {to_original(name): None for name, _ in model.named_parameters()}
    exponents.update({to_original(name): k for name, k in model.learning_rate_exponents().items()})
    for pattern, k in facts.items():
        prefix = pattern.rstrip("*")
        found = {value for name, value in exponents.items() if name.startswith(prefix)}
        assert found == {k}, pattern


def test_state_survives_under_other_internal_names(weights):
    def trained(model, optimizer, steps):
        for _ in range(steps):
            for _, tensor in model.named_parameters():
                tensor.grad = paddle.full_like(tensor, 1e-3)
            optimizer.set_lr(1e-3)
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
        return {name: tensor.numpy() for name, tensor in model.named_parameters()}

    settings = FACTS["vcr_noam"]["settings"]
    first = measured_model(weights, heads=PARTS)
    optimizer, _ = build(first, settings)
    middle = trained(first, optimizer, 2)
    state = {key: value.numpy() for key, value in optimizer.named_state().items()}
    want = trained(first, optimizer, 2)
    second = measured_model(weights, heads=PARTS)
    assert second.text_pooler.weight.name != first.text_pooler.weight.name
    second.set_state_dict({name: paddle.to_tensor(array) for name, array in middle.items()})
    again, _ = build(second, settings)
    again.load_named_state(state, 2, "here")
    got = trained(second, again, 2)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    with pytest.raises(UserError, match="does not belong"):
        again.load_named_state({key: value for key, value in state.items() if "pooler" not in key}, 2, "here")


def test_a_pattern_that_matches_nothing_is_a_mistake(weights):
    with pytest.raises(UserError, match="head"):
        build(measured_model(weights), FACTS["vcr_noam"]["settings"], multipliers={"head.*": 2.0})
