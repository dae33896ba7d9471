"""Named models and the ways to give them weights."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import DATA

import ernie_vil
from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLModel
from ernie_vil.models.heads import ChoiceHead
from ernie_vil.zoo import create_model, vocabulary_beside

SMALL = {
    "vocab_size": 40, "hidden_size": 8, "num_attention_heads": 2, "v_hidden_size": 8, "v_num_attention_heads": 2,
    "v_intermediate_size": 8, "co_hidden_size": 8, "co_num_attention_heads": 2, "feature_size": 6,
    "max_position_embeddings": 16,
}  # fmt: skip


def test_importing_the_package_imports_no_framework():
    code = "import sys, ernie_vil; assert not {'paddle', 'paddlenlp', 'numpy'} & set(sys.modules), 'not cheap'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert ernie_vil.list_models() == ["ernie-vil-base", "ernie-vil-large"]
    with pytest.raises(AttributeError):
        _ = ernie_vil.nothing


@pytest.mark.parametrize("name, layers", [("ernie-vil-base", 12), ("ernie-vil-large", 24)])
def test_every_named_model_runs_and_has_a_gradient_for_every_parameter(name, layers):
    paddle.seed(0)
    model = create_model(name, overrides=SMALL)
    assert len(model.text_layers) == layers and len(model.region_layers) == len(model.co_layers) == 6
    ids, positions = paddle.randint(0, 40, [4, 5]), paddle.arange(5).expand([4, 5])
    output = model(
        ids, paddle.zeros_like(ids), positions, paddle.ones([4, 5]), paddle.randn([2, 3, 6]), paddle.rand([2, 3, 5]),
        paddle.ones([2, 3]),
    )  # fmt: skip
    assert [list(tensor.shape) for tensor in output] == [[4, 5, 8], [4, 3, 8], [4, 8], [4, 8]]
    (output.text_pooled.sum() + (output.region_pooled * output.region_hidden[:, 0]).sum()).backward()
    for key, tensor in model.named_parameters():
        assert tensor.grad is not None and np.isfinite(tensor.grad.numpy()).all(), key


def test_weights_of_a_release_and_of_its_converted_folder_are_the_same(tmp_path):
    def heads(config):
        return {"vcr_qa": ChoiceHead(config), "new": ChoiceHead(config)}

    direct = create_model(weights=f"ernie-vil-fluid:{DATA / 'tiny_release'}", heads=heads)
    assert sorted(direct.account.fresh) == ["heads.new.bias", "heads.new.weight"]
    direct.save_pretrained(tmp_path)
    again = create_model(weights=str(tmp_path), heads=heads, overrides={"hidden_dropout_prob": 0.3})
    assert again.text_embeddings.dropout.p == 0.3 and not again.account.fresh
    for (name, tensor), (_, other) in zip(direct.named_parameters(), again.named_parameters()):
        assert np.array_equal(tensor.numpy(), other.numpy()), name
    assert vocabulary_beside(f"ernie-vil-fluid:{DATA / 'samples' / 'vcr'}") == DATA / "samples" / "vocab.txt"
    assert vocabulary_beside(str(DATA / "samples" / "vcr")) is None and vocabulary_beside(None) is None


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: create_model("ernie-vil-huge"), "ernie-vil-base, ernie-vil-large"),
        (lambda: create_model(weights="nowhere"), "Nothing is downloaded"),
        (lambda: create_model(weights="torch:model.bin"), "ernie-vil-fluid:PATH"),
        (lambda: create_model(weights="bert:nowhere"), "nowhere"),
        (lambda: create_model(overrides={"hidden_size": 7}), "num_attention_heads"),
        (lambda: ErnieViLModel.from_pretrained("ernie-vil-base"), "no such model folder"),
    ],
)
def test_wrong_names_and_paths_are_said_clearly(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_a_text_encoder_fills_the_text_stream(tmp_path):
    transformers = pytest.importorskip("paddlenlp.transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    encoder = transformers.BertModel(config)
    encoder.save_pretrained(str(tmp_path))
    model = create_model(weights=f"bert:{tmp_path}", overrides=SMALL)
    theirs, ours = encoder.encoder.layers[11].linear2.weight, model.text_layers[11].feed_forward.outer.weight
    assert np.array_equal(theirs.numpy(), ours.numpy())
    assert np.array_equal(encoder.embeddings.word_embeddings.weight.numpy(), model.text_embeddings.word.weight.numpy())
    assert "keys" in model.account.summary() and model.account.ignored
