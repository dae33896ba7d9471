"""Heads and losses against the measured network."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from conftest import DATA, forward, measured_model

from ernie_vil.models.ernie_vil import ErnieViLConfig
from ernie_vil.models.heads import (
    AnswerHead,
    ChoiceHead,
    MatchHead,
    answer_loss,
    choice_loss,
    circle_loss,
    match_vector,
    region_loss,
    retrieval_loss,
)

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model(weights):
    model = measured_model(weights)
    model.eval()
    return model


def close(got, want, name=""):
    np.testing.assert_allclose(np.asarray(got).reshape(-1), np.asarray(want).reshape(-1), atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("head", ["vcr_qa", "vcr_qar"])
@pytest.mark.parametrize("fusion", ["mul", "sum"])
def test_choice_scores(model, inputs, outputs, head, fusion):
    scores = model.heads[head](match_vector(forward(model, inputs, "vcr", images=2), fusion))
    want = {
        name: outputs[f"vcr/predict/{head}/{fusion}/{name}"]
        for name in ("score", "softmax", "mean_loss", "pred", "acc")
    }
    close(scores, want["score"])
    probabilities = paddle.nn.functional.softmax(scores.reshape([-1, 4])).numpy()
    close(probabilities, want["softmax"])
    labels = inputs["vcr/labels"].reshape(-1)
    close(-np.log(probabilities[np.arange(len(labels)), labels]).mean(), want["mean_loss"])
    assert probabilities.argmax(1).tolist() == want["pred"].tolist()
    close((probabilities.argmax(1) == labels).mean(), want["acc"])


def test_choice_losses_of_both_tasks_and_their_mixtures(model, inputs, outputs):
    output = forward(model, inputs, "vcr", images=2)
    labels = paddle.to_tensor(inputs["vcr/labels"].reshape(-1))
    means = []
    for head in ("vcr_qa", "vcr_qar"):
        scores = model.heads[head](match_vector(output))
        means.append(float(choice_loss(scores, labels)) / scores.shape[0])
        close(scores, outputs[f"vcr/train/task0/score_{head}"])
    for name, task_weights in zip(("task0", "task1", "both", "mixed"), inputs["vcr/train_task_weights"]):
        close(np.dot(means, task_weights), outputs[f"vcr/train/{name}/loss"], name)


def test_answer_head(model, inputs, outputs):
    logits = model.heads["vqa"](match_vector(forward(model, inputs, "vqa")))
    close(logits, outputs["vqa/predict/logits"])
    targets = inputs["vqa/soft_labels"]
    close(answer_loss(logits, paddle.to_tensor(targets)) / len(targets), outputs["vqa/predict/loss"])
    predicted = logits.numpy().argmax(1)
    assert predicted.tolist() == outputs["vqa/predict/pred_label"].tolist()
    close(targets[np.arange(len(targets)), predicted].mean(), outputs["vqa/predict/acc"])


def test_region_head(model, inputs, outputs):
    logits = model.heads["region"](forward(model, inputs, "refcoco_plus").region_hidden)
    mask = inputs["refcoco_plus/image_mask"]
    close(logits.numpy() * mask, outputs["refcoco_plus/predict/logits"] * mask)
    total = float(
        region_loss(
            *(
                paddle.to_tensor(np.asarray(array).squeeze(-1))
                for array in (logits, inputs["refcoco_plus/labels"], mask)
            )
        )
    )
    for case, batch_size in (("train", 3), ("train_batch_size_arg_32", 32)):
        close(total / mask.sum() * batch_size, outputs[f"refcoco_plus/{case}/loss"], case)
        close(total / mask.size * batch_size, outputs[f"refcoco_plus/{case}/with_mask_loss"], case)


def test_match_head_and_retrieval_loss(model, inputs, outputs):
    scores = model.heads["match"](match_vector(forward(model, inputs, "flickr")))
    close(scores, outputs["flickr/predict/match_score"])
    settings = [key[len("flickr/") :] for key in inputs if key.startswith("flickr/margin")]
    assert len(settings) == 3
    for setting in settings:
        margin, scale = (float(value) for value in inputs[f"flickr/{setting}"])
        groups = scores.reshape([2, 5])
        want = {
            name: outputs[f"flickr/train/{setting}/{name}"] for name in ("total_loss", "match_score_sigmoid", "acc")
        }
        close(float(retrieval_loss(groups, margin, scale)) / 2, want["total_loss"], setting)
        close(paddle.nn.functional.sigmoid(groups), want["match_score_sigmoid"])
        close((groups.numpy().argmax(1) == 0).mean(), want["acc"])


def test_circle_loss_on_fixed_scores():
    table = json.loads((DATA / "meta_model.json").read_text())["circle_loss"]
    positive, negative = (paddle.to_tensor(table[name], dtype="float32") for name in ("sp", "sn"))
    for setting, want in table["values"].items():
        margin, scale = (float(part[1:]) for part in setting.split("_"))
        close(circle_loss(positive, negative, margin, scale).mean(), want, setting)


def test_match_dropout_uses_the_given_rate_in_training_only(model, inputs):
    output = forward(model, inputs, "vcr")
    kept = match_vector(output, dropout=0.5, training=True).numpy()
    plain = match_vector(output).numpy()
    assert 0.2 < (kept[plain != 0] == 0).mean() < 0.8
    np.testing.assert_allclose(kept[kept != 0], 2 * plain[kept != 0], rtol=1e-6)
    assert np.array_equal(match_vector(output, dropout=0.5, training=False).numpy(), plain)
    with pytest.raises(ValueError, match="fusion"):
        match_vector(output, "concat")


def test_initial_values_of_heads():
    config = ErnieViLConfig()
    paddle.seed(0)
    assert np.abs(ChoiceHead(config).weight.numpy()).max() <= 0.04 + 1e-7
    answer = AnswerHead(config)
    bound = (3 / (1024 + 2048)) ** 0.5
    assert 0.95 * bound < np.abs(answer.hidden.weight.numpy()).max() <= bound + 1e-7
    biases = np.array([float(MatchHead(config).bias) for _ in range(50)])
    assert np.abs(biases).max() <= 1 and biases.std() > 0.4
