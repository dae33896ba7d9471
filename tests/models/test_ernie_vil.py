"""The backbone against the measured network."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from conftest import DATA, forward, measured_model

from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel, large_config
from ernie_vil.weights.fluid_names import to_original

TOLERANCE = 2e-5


def norms(model: ErnieViLModel) -> dict[str, paddle.nn.Layer]:
    """Layer norms by the original's prefix, such as ``encoder_layer_0_post_ffn``."""
    found = {}
    for name, layer in model.named_sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            found[to_original(f"{name}.weight")[: -len("_layer_norm_scale")]] = layer
    return found


@pytest.mark.parametrize("prefix, scale", [("backbone", 1.0), ("backbone_scaled_embeddings", 1 / 32)])
def test_backbone_agrees_with_every_measured_array(weights, inputs, outputs, prefix, scale):
    model = measured_model(weights, heads=(), scale=scale)
    model.eval()
    hidden: dict[str, np.ndarray] = {}
    for name, layer in norms(model).items():
        layer.register_forward_post_hook(lambda _, __, out, name=name: hidden.__setitem__(name, out.numpy()))
    result = forward(model, inputs, "backbone")
    got = {
        "sequence_text": result.text_hidden.numpy(),
        "sequence_image": result.region_hidden.numpy(),
        "pooled_text": result.text_pooled.numpy(),
        "pooled_image": result.region_pooled.numpy(),
        "match_mul": (result.text_pooled * result.region_pooled).numpy(),
        "match_sum": (result.text_pooled + result.region_pooled).numpy(),
        **{f"hidden/{name}": array for name, array in hidden.items()},
    }
    masks = {10: inputs["backbone/input_mask"], 6: inputs["backbone/image_mask"]}
    wanted = {key[len(prefix) + 1 :]: value for key, value in outputs.items() if key.startswith(prefix + "/")}
    assert len(wanted) >= (18 if scale == 1.0 else 5)
    for name, want in wanted.items():
        mask = masks[want.shape[1]] if want.ndim == 3 else 1.0
        np.testing.assert_allclose(got[name] * mask, want * mask, atol=TOLERANCE, rtol=0, err_msg=name)


def test_texts_that_share_an_image_are_computed_as_if_it_were_repeated(weights, inputs, outputs):
    model = measured_model(weights)
    model.eval()
    calls = []
    model.region_embeddings.feature.register_forward_post_hook(lambda _, given, __: calls.append(given[0].shape))
    result = forward(model, inputs, "vcr", images=2)
    assert calls == [[2, 6, 64]]
    scores = model.heads["vcr_qa"](result.text_pooled * result.region_pooled)
    np.testing.assert_allclose(scores.numpy(), outputs["vcr/predict/vcr_qa/mul/score"], atol=TOLERANCE)


def test_texts_that_images_do_not_divide_are_refused(weights, inputs):
    with pytest.raises(ValueError, match="3 texts"):
        arrays = {key.replace("backbone", "odd"): value for key, value in inputs.items() if key.startswith("backbone")}
        for name in ("image_embeddings", "image_loc", "image_mask"):
            arrays[f"odd/{name}"] = arrays[f"odd/{name}"][:2]
        forward(measured_model(weights), arrays, "odd")


@pytest.mark.parametrize("size, config", [("base", ErnieViLConfig()), ("large", large_config())])
def test_named_sizes_have_the_original_parameters(size, config):
    facts = json.loads((DATA / "official_parameters.json").read_text())[size]
    official = {key: facts["config"][key] for key in config.to_dict() if key in facts["config"]}
    assert {key: config.to_dict()[key] for key in official} == official
    from ernie_vil.weights.fluid import backbone_shapes

    shapes = backbone_shapes(config)
    assert len(shapes) == facts["backbone_tensors"]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == facts["backbone_parameters"]


def test_a_built_model_has_the_shapes_that_conversion_expects(weights):
    from ernie_vil.weights.fluid import backbone_shapes

    model = measured_model(weights, heads=())
    built = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert built == backbone_shapes(model.config)


def test_initial_values_follow_the_original():
    paddle.seed(1)
    config = ErnieViLConfig(
        vocab_size=3000, hidden_size=64, num_attention_heads=4, v_hidden_size=64, v_num_attention_heads=4,
        v_intermediate_size=64, co_hidden_size=64, co_num_attention_heads=4, t_biattention_id=[1], v_biattention_id=[0],
        feature_size=64,
    )  # fmt: skip
    for name, tensor in ErnieViLModel(config).named_parameters():
        values = tensor.numpy()
        if name.endswith(".bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            assert np.abs(values).max() <= 0.04 + 1e-7, name
            # A normal distribution cut at two deviations has 0.8796 of its deviation left.
            assert abs(values.std() / 0.02 - 0.8796) < 0.08, name


def test_every_parameter_gets_a_finite_gradient_with_dropout_and_recompute(weights, inputs):
    before: dict[str, np.ndarray] = {}
    for recompute in (False, True):
        model = measured_model(weights, heads=("vcr_qa",), dropout=0.1)
        model.recompute = recompute
        model.train()
        paddle.seed(3)
        result = forward(model, inputs, "vcr", images=2)
        (model.heads["vcr_qa"](result.text_pooled * result.region_pooled) ** 2).sum().backward()
        gradients = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
        assert all(np.isfinite(array).all() for array in gradients.values())
        still = {name for name, array in gradients.items() if not array.any()}
        assert all(name.endswith("key.bias") for name in still), still
        if recompute:
            for name, array in gradients.items():
                # Sums of a gradient's parts may be taken in another order.
                np.testing.assert_allclose(array, before[name], atol=1e-5, rtol=1e-4, err_msg=name)
        before = gradients


def test_dropout_changes_training_and_not_evaluation(weights, inputs):
    model = measured_model(weights, dropout=0.1)
    model.train()
    assert not np.array_equal(*(forward(model, inputs, "backbone").text_pooled.numpy() for _ in range(2)))
    model.eval()
    assert np.array_equal(*(forward(model, inputs, "backbone").text_pooled.numpy() for _ in range(2)))


def test_saved_models_open_again_bit_for_bit(weights, inputs, tmp_path):
    model = measured_model(weights, heads=("vcr_qa",))
    model.save_pretrained(tmp_path)
    again = ErnieViLModel.from_pretrained(tmp_path)
    model.eval(), again.eval()
    for left, right in zip(forward(model, inputs, "backbone"), forward(again, inputs, "backbone")):
        assert np.array_equal(left.numpy(), right.numpy())
    assert again.config == model.config


def test_a_folder_with_wrong_keys_is_refused_and_every_key_named(weights, tmp_path):
    model = measured_model(weights, heads=())
    state = model.state_dict()
    del state["text_pooler.weight"]
    state["co_layers.7.text.attention.key.bias"] = paddle.zeros([3])
    state["region_pooler.bias"] = paddle.zeros([5])
    model.save_pretrained(tmp_path)
    paddle.save(state, str(tmp_path / "model_state.pdparams"))
    with pytest.raises(UserError) as caught:
        ErnieViLModel.from_pretrained(tmp_path)
    for name in ("text_pooler.weight", "co_layers.7.text.attention.key.bias", "region_pooler.bias", "pdparams"):
        assert name in str(caught.value)
    loose = ErnieViLModel.from_pretrained(tmp_path, strict=False)
    assert loose.account.missing == ["text_pooler.weight"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_size": 33}, "multiple of num_attention_heads"),
        ({"t_biattention_id": [1]}, "same length"),
        ({"t_biattention_id": [3, 2]}, "ascend"),
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_size": True}, "hidden_size"),
    ],
)
def test_unusable_configurations_are_refused_with_the_key(change, words, tmp_path):
    values = json.loads((DATA / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=words) as caught:
        ErnieViLConfig.from_json(path)
    assert str(path) in str(caught.value)


def test_configuration_files_survive_a_round_trip(tmp_path):
    path = tmp_path / "config.json"
    ErnieViLConfig.from_json(DATA / "config.json").to_json(path)
    original, again = json.loads((DATA / "config.json").read_text()), json.loads(path.read_text())
    assert {key: again[key] for key in original} == original
    path.write_text("{")
    with pytest.raises(UserError, match="not a JSON"):
        ErnieViLConfig.from_json(path)
    with pytest.raises(UserError, match="missing keys: .*vocab_size"):
        path.write_text("{}")
        ErnieViLConfig.from_json(path)
