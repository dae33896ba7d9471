"""The text stream started from PaddleNLP encoders gives the encoder's own hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel
from ernie_vil.weights.text_encoder import initialise_text_stream

transformers = pytest.importorskip("paddlenlp.transformers")

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 24}


def small_model(**changes) -> ErnieViLModel:
    paddle.seed(1)
    config = ErnieViLConfig(
        **{**SIZES, "v_hidden_size": 8, "v_num_attention_heads": 2, "v_intermediate_size": 8, **changes},
        co_hidden_size=8,
        co_num_attention_heads=2,
        feature_size=6,
        t_biattention_id=(2,),
        v_biattention_id=(0,),
        initializer_range=0.3,
    )
    model = ErnieViLModel(config)
    model.eval()
    return model


def save_encoder(folder: Path, kind: str = "Bert", wrapped: bool = False, **changes):
    paddle.seed(2)
    sizes = {"num_hidden_layers": 3, "intermediate_size": 64, "type_vocab_size": 2, "initializer_range": 0.3}
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes, **changes})
    config.num_labels = 3
    name = f"{kind}ForSequenceClassification" if wrapped else f"{kind}Model"
    encoder = getattr(transformers, name)(config)
    for parameter in encoder.parameters():  # norms and biases start at ones and zeros, which would hide a swap
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    encoder.eval()
    encoder.save_pretrained(str(folder))
    return getattr(encoder, kind.lower()) if wrapped else encoder


def text_hidden(model: ErnieViLModel, ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    positions = paddle.arange(ids.shape[1]).expand(ids.shape)
    hidden = model.text_embeddings(paddle.to_tensor(ids), paddle.to_tensor(segments), positions)
    for layer in model.text_layers:
        hidden = layer(hidden, hidden, paddle.zeros([1, 1, 1, 1]))
    return hidden.numpy()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["Bert", "Ernie"])
def test_hidden_states_equal_the_encoder(tmp_path: Path, kind: str, wrapped: bool) -> None:
    encoder = save_encoder(tmp_path, kind, wrapped)
    model = small_model()
    account = initialise_text_stream(model, tmp_path)
    assert len(account.loaded) == 5 + 3 * 16 and not account.missing and not account.unexpected
    for layer in encoder.sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            layer._epsilon = 1e-5  # PaddleNLP's 1e-12 is the one known difference; set aside to compare all the rest
    rng = np.random.default_rng(0)
    ids, segments = rng.integers(1, 60, (2, 11)), rng.integers(0, 2, (2, 11))
    expected = encoder(paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(segments))[0].numpy()
    np.testing.assert_allclose(text_hidden(model, ids, segments), expected, atol=2e-5)


def test_rest_of_the_model_is_untouched_and_accounted_for(tmp_path: Path) -> None:
    save_encoder(tmp_path, wrapped=True)
    model, before = small_model(), small_model().state_dict()
    account = initialise_text_stream(model, tmp_path)
    after = model.state_dict()
    assert set(account.fresh) == {name for name in after if not name.startswith(("text_embeddings.", "text_layers."))}
    for name in account.fresh:
        np.testing.assert_array_equal(after[name].numpy(), before[name].numpy())
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(account.ignored)
    np.testing.assert_array_equal(
        after["text_embeddings.segment.weight"].numpy()[2:], before["text_embeddings.segment.weight"].numpy()[2:]
    )


@pytest.mark.parametrize("positions", [10, 40])
def test_positions_take_the_first_rows(tmp_path: Path, positions: int) -> None:
    encoder = save_encoder(tmp_path, max_position_embeddings=positions, type_vocab_size=4)
    model, before = small_model(), small_model()
    account = initialise_text_stream(model, tmp_path)
    table = model.text_embeddings.position.weight.numpy()
    source = encoder.embeddings.position_embeddings.weight.numpy()
    rows = min(positions, 24)
    np.testing.assert_array_equal(table[:rows], source[:rows])
    np.testing.assert_array_equal(table[rows:], before.text_embeddings.position.weight.numpy()[rows:])
    np.testing.assert_array_equal(
        model.text_embeddings.segment.weight.numpy(), encoder.embeddings.token_type_embeddings.weight.numpy()
    )
    assert ("embeddings.position_embeddings.weight[24:]" in account.ignored) == (positions == 40)


def test_extra_layers_and_task_types_are_reported(tmp_path: Path) -> None:
    save_encoder(tmp_path, "Ernie", num_hidden_layers=5, use_task_id=True)
    account = initialise_text_stream(small_model(), tmp_path)
    reasons = set(account.ignored.values())
    assert "layer 4; the text stream has 3 layers" in reasons and "task types; the text stream has none" in reasons
    assert sum(name.startswith("encoder.layers.") for name in account.ignored) == 2 * 16


@pytest.mark.parametrize(
    ("encoder_changes", "message"),
    [
        ({"vocab_size": 61}, "vocabulary has 61 entries, the model's 60"),
        ({"num_hidden_layers": 1}, "lacks layers 1, 2 of the 3"),
        ({"num_attention_heads": 2}, "num_attention_heads is 2, the model's 4"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', the model's 'gelu'"),
        ({"intermediate_size": 32}, r"encoder.layers.2.linear1.weight: \[16, 32\] in the file, \[16, 64\]"),
    ],
)
def test_encoder_that_does_not_fit_changes_nothing(tmp_path: Path, encoder_changes: dict, message: str) -> None:
    save_encoder(tmp_path, **encoder_changes)
    model, before = small_model(), small_model().state_dict()
    with pytest.raises(UserError, match=message):
        initialise_text_stream(model, tmp_path)
    assert all((value.numpy() == before[name].numpy()).all() for name, value in model.state_dict().items())


def test_old_configuration_file(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"neither config.json nor model_config.json; it holds: model_state"):
        initialise_text_stream(small_model(), tmp_path)
    nested = {"init_class": "BertForPretraining", "init_args": [{"init_class": "BertModel", "num_attention_heads": 4}]}
    (tmp_path / "model_config.json").write_text(json.dumps(nested))
    assert len(initialise_text_stream(small_model(), tmp_path).loaded) == 53
    nested["init_args"][0]["num_attention_heads"] = 8
    (tmp_path / "model_config.json").write_text(json.dumps(nested))
    with pytest.raises(UserError, match="num_attention_heads is 8"):
        initialise_text_stream(small_model(), tmp_path)


def test_missing_folder_and_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        initialise_text_stream(small_model(), tmp_path / "absent")
    save_encoder(tmp_path)
    (tmp_path / "model_state.pdparams").unlink()
    with pytest.raises(UserError, match=r"model_state.pdparams does not exist.*holds: config.json"):
        initialise_text_stream(small_model(), tmp_path)
