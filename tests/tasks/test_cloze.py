"""The cloze test: ranks, accuracies, and what the tools make of a model whose answers are known."""

from __future__ import annotations

import base64
import io
import json
import runpy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, run_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ernie_vil.cli import load_config, run_parser
from ernie_vil.data.mini_captions import build_mini_captions
from ernie_vil.data.tokenizer import WordPieceTokenizer
from ernie_vil.engine.evaluation import evaluate
from ernie_vil.errors import UserError
from ernie_vil.models.pretraining_heads import TokenHead
from ernie_vil.scene_graph.files import CaptionFile
from ernie_vil.tasks.cloze import ClozeTask
from ernie_vil.tasks.cloze_report import best_of, choose_sample, cloze_metrics, ranks_of, write_page
from ernie_vil.zoo import create_model

SIZES = {
    "feature_size": 80,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "v_hidden_size": 16,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 16,
    "co_hidden_size": 16,
    "co_num_attention_heads": 2,
    "t_biattention_id": [1],
    "v_biattention_id": [0],
}
ENTRIES = {"eval": "evaluate", "predict": "predict"}
# Few different values, so that there are ties.
SCORES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.sampled_from([-1.5, 0.0, 0.25, 3.0])
)


# ---------------------------------------------------------------------------------------------------- ranks and metrics
@settings(deadline=None)
@given(SCORES, st.integers(1, 6))
def test_ranks_and_best_are_those_of_a_plain_sort(scores, k):
    best = best_of(scores, k)
    for row, values in enumerate(scores):
        order = sorted(range(len(values)), key=lambda index: (-values[index], index))
        shares = np.exp(values.astype(float)) / np.exp(values.astype(float)).sum()
        assert [index for index, _ in best[row]] == order[:k]
        np.testing.assert_allclose([share for _, share in best[row]], shares[order[:k]], rtol=1e-6)
        for label in range(len(values)):
            assert ranks_of(values[None], np.array([label])).tolist() == [order.index(label) + 1]


def test_a_model_that_knows_nothing_finds_nothing():
    assert ranks_of(np.zeros((2, 30), np.float32), np.array([29, 7])).tolist() == [30, 8]
    assert ranks_of(np.full((1, 30), np.nan, np.float32), np.array([0])).tolist() == [31]
    partly = np.array([[np.nan, 2.0, 1.0]], np.float32)
    assert ranks_of(partly, np.array([1])).tolist() == [2]


def record(part, index, *ranks):
    return {"key": (part, 0, index), "ranks": list(ranks), "true": [9] * len(ranks), "best": [[(9, 1.0)]] * len(ranks)}


def test_a_node_is_found_if_each_of_its_pieces_is():
    records = [record(0, 0, 1), record(0, 1, 1, 2), record(0, 2, 5, 1, 1), record(0, 3, 6), record(2, 0, 1, 1)]
    assert cloze_metrics(records) == {
        "acc1": 40.0,
        "acc5": 80.0,
        "object_acc1": 25.0,
        "object_acc5": 75.0,
        "relation_acc1": 100.0,
        "relation_acc5": 100.0,
        "object_nodes": 4,
        "attribute_nodes": 0,
        "relation_nodes": 1,
    }


def test_the_sample_is_fair():
    records = [
        record(part, index, 1 if index % 10 else 3) for part, size in enumerate((200, 100, 4)) for index in range(size)
    ]
    chosen = choose_sample(records, 50)
    assert [one["key"] for one in chosen] == sorted({one["key"] for one in chosen})
    parts = [one["key"][0] for one in chosen]
    assert [parts.count(part) for part in range(3)] == [17, 17, 4]
    objects = [one for one in chosen if one["key"][0] == 0]
    misses = [one["key"][2] for one in objects if one["ranks"] == [3]]
    assert len(misses) >= 8 and max(misses) > 100
    assert len([one for one in objects if one["ranks"] == [1]]) >= 6
    assert choose_sample(records[:3], 50) == records[:3]


# ------------------------------------------------------------------------------------------------------------ the page
class Page(HTMLParser):
    """Texts by the tag (with its class) that they stand in, and the attributes of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = [""]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "br", "meta"):
            self.open.append(" ".join(filter(None, (tag, dict(attributes).get("class")))))

    def handle_endtag(self, tag):
        assert self.open.pop().split()[0] == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def line(
    caption="a dog", words="dog", spans=((2, 5),), image_id="one", ranks=(1,), best=None, true=("dog",), kind="object"
):
    best = best or [[["dog", 0.75], ["cat", 0.25]]] * len(true)
    return {
        "kind": kind, "id": "c", "image_id": image_id, "caption": caption, "words": words, "spans": spans,
        "true": list(true), "ranks": list(ranks), "best": best,
    }  # fmt: skip


METRICS = cloze_metrics([record(0, 0, 1), record(0, 1, 7), record(1, 0, 2)])


def page_of(folder, lines, picture=lambda image_id: None, left_out=None, title="Test"):
    write_page(title, lines, METRICS, left_out or {}, picture, folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [""], "tags are closed"
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags) and "http" not in text
    return page


def test_the_page_shows_accuracies_words_and_bars(tmp_path):
    multi = line(
        "two dogs", "dogs", ((4, 8),), ranks=(3, 1), true=("##x", "##s"), best=[[["a", 0.5]], [["##s", 0.125]]]
    )
    page = page_of(tmp_path, [line(), multi], left_out={"relation": 12})
    cells = page.of("td")
    assert cells[:5] == ["object", "2", "0", "50.0", "50.0"] and cells[5:10] == ["attribute", "1", "0", "0.0", "100.0"]
    assert cells[10:15] == ["relation", "0", "12", "-", "-"] and cells[15:] == ["all", "3", "12", "33.3", "66.7"]
    assert page.of("mark") == ["dog", "dogs"]
    assert page.of("span hit") == ["found"] and page.of("span miss") == ["rank 3"]
    words = [attributes.get("class") for tag, attributes in page.tags if "word" in attributes.get("class", "")]
    assert words == ["word right", "word", "word", "word right"]
    widths = [attributes["style"] for _, attributes in page.tags if attributes.get("class") == "bar"]
    assert widths == ["width:75.0%", "width:25.0%", "width:50.0%", "width:12.5%"]
    assert "75.0 %" in page.of("span")


def test_text_cannot_become_markup(tmp_path):
    evil = "<script>alert('x')</script> & <b>\"bold\"</b> \ud800"
    page = page_of(
        tmp_path,
        [line(evil, "<script>", ((0, 8),), image_id="<img src=x onerror='y'>", best=[[["</span><b>", 1.0]]])],
        picture=lambda image_id: tmp_path / "<i>.png",
        title="<title>&",
    )
    assert page.of("h1") == ["<title>&"] and page.of("mark") == ["<script>"]
    assert "</span><b>" in page.of("span")
    assert not any(tag in ("b", "i", "img") for tag, _ in page.tags)
    assert any("<img src=x onerror='y'>" in text for text in page.of("p"))


def test_pictures_are_embedded_and_missing_ones_are_said_so(tmp_path):
    small = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    small.save(tmp_path / "small.png")
    Image.new("L", (900, 600), 90).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    lines = [line(image_id=name) for name in ("small", "large", "text", "gone")]
    page = page_of(tmp_path, lines, picture=lambda image_id: tmp_path / f"{image_id}.png")
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    first, second = (Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) for data in images)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(small))
    assert images[1].startswith("data:image/jpeg;base64,") and second.size == (320, 213)
    said = page.of("p")
    assert any(text.endswith("text.png: cannot be read as a picture") for text in said)
    assert any(text.endswith("gone.png: no such file") for text in said)
    assert "no picture: data.images is not set" in page_of(tmp_path, [line()]).of("p")


# ------------------------------------------------------------------------------------------------------- through tools
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cloze") / "captions"
    build_mini_captions(folder, train_images=2, val_images=12)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory, data) -> Path:
    """A model that always gives the same scores: token number n has the bias n % 50, whatever it sees."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = WordPieceTokenizer.from_file(data / "vocab.txt")
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    paddle.seed(3)
    model = create_model(heads=lambda config: {"mlm": TokenHead(config)}, overrides=sizes)
    head = model.heads["mlm"]
    with paddle.no_grad():
        head.transform.norm.weight.set_value(paddle.zeros_like(head.transform.norm.weight))
        head.transform.norm.bias.set_value(paddle.zeros_like(head.transform.norm.bias))
        head.bias.set_value(paddle.to_tensor(biases_of(len(tokenizer))))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((data / "vocab.txt").read_bytes())
    return folder


def biases_of(count: int) -> np.ndarray:
    return (np.arange(count) % 50).astype(np.float32)


def arguments(data: Path, output: Path, *overrides: str) -> list[str]:
    return [
        "-c",
        str(ROOT / "configs" / "cloze.yaml"),
        "-o",
        f"data.captions={data / 'val.jsonl'}",
        f"data.features={data / 'features.lmdb'}",
        f"data.images={data / 'images'}",
        f"output={output}",
        "train.workers=0",
        "eval.batch_size=7",
        *overrides,
    ]


def expected(data: Path) -> dict[str, list[tuple[str, int]]]:
    """Words of every node and the rank of its worst piece, by kind; the slow way, from the biases alone."""
    tokenizer = WordPieceTokenizer.from_file(data / "vocab.txt")
    biases = biases_of(len(tokenizer)).tolist()
    order = sorted(range(len(biases)), key=lambda index: (-biases[index], index))
    found: dict[str, list[tuple[str, int]]] = {"object": [], "attribute": [], "relation": []}
    for caption in CaptionFile(data / "val.jsonl"):
        graph = caption.graph
        for kind, nodes in (("object", graph.objects), ("attribute", graph.attributes), ("relation", graph.relations)):
            for spans in dict.fromkeys(node.spans for node in nodes):
                words = " ".join(graph.caption[start:end] for start, end in spans)
                ranks = [order.index(piece) + 1 for piece in tokenizer.encode(words)]
                found[kind].append((words, max(ranks)))
    return found


def test_eval_finds_what_the_biases_say(data, weights, tmp_path):
    result = run_tool(
        "eval", *arguments(data, tmp_path / "out"), "-w", str(weights), "--json", str(tmp_path / "metrics.json")
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    nodes = expected(data)
    for kind, own in nodes.items():
        assert metrics[f"{kind}_nodes"] == len(own) > 5
        for k in (1, 5):
            assert metrics[f"{kind}_acc{k}"] == pytest.approx(100 * np.mean([rank <= k for _, rank in own]))
    everything = [rank for own in nodes.values() for _, rank in own]
    assert 0 < metrics["acc5"] == pytest.approx(100 * np.mean([rank <= 5 for rank in everything]))
    assert metrics["examples"] == len(everything) and metrics["skipped"] == 0
    assert "object_acc1" in result.stdout


def test_predict_writes_all_nodes_or_a_page(data, weights, tmp_path):
    common = [*arguments(data, tmp_path / "out"), "-w", str(weights), "--split", "val", "--out"]
    result = run_tool("predict", *common, str(tmp_path / "nodes.jsonl"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(text) for text in (tmp_path / "nodes.jsonl").read_text().splitlines()]
    for kind, own in expected(data).items():
        mine = [one for one in lines if one["kind"] == kind]
        assert [(one["words"], max(one["ranks"])) for one in mine] == own
    pictures = set()
    for one in lines:
        assert " ".join(one["caption"][start:end] for start, end in one["spans"]) == one["words"]
        assert "".join(one["true"]).replace("##", "") == one["words"].replace(" ", "")
        assert len(one["true"]) == len(one["ranks"]) == len(one["best"]) and all(len(best) == 5 for best in one["best"])
        pictures.add(one["image_id"])

    result = run_tool("predict", *common, str(tmp_path / "report.html"))
    assert result.returncode == 0, result.stderr
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    shown = sum(min(share, len(own)) for share, own in zip((17, 17, 16), expected(data).values()))
    assert len(page.of("mark")) == len([tag for tag, _ in page.tags if tag == "img"]) == shown > 34
    assert page.of("td")[1] == str(len(expected(data)["object"]))


def refusal(name: str, *more: str) -> str:
    """What a tool refuses with, in this process."""
    program = runpy.run_path(str(ROOT / "tools" / f"{name}.py"))[ENTRIES[name]]
    with pytest.raises(UserError) as caught:
        program(list(more))
    return str(caught.value)


def test_a_subset_says_what_it_leaves_out(data, weights, tmp_path):
    parsed = run_parser("").parse_args(
        arguments(data, tmp_path / "out", "data.max_examples=10", f"model.weights={weights}")
    )
    config, _ = load_config(parsed)
    metrics, _ = evaluate(config, ClozeTask(config, ("val",), trained=True), "val")
    for kind, own in expected(data).items():
        assert metrics[f"{kind}_nodes"] == min(10, len(own))
        assert metrics.get(f"{kind}_left_out", 0) == len(own) - metrics[f"{kind}_nodes"]


def test_mistakes_are_named(data, weights, tmp_path):
    common = arguments(data, tmp_path / "out")
    with_weights = [*common, "-w", str(weights)]
    result = run_tool("train", *common, f"model.weights={weights}")
    assert result.returncode == 2 and "configs/pretrain.yaml" in result.stderr and "Traceback" not in result.stderr
    assert "split test" in refusal("eval", *with_weights, "--split", "test")
    page = refusal("predict", *with_weights, "--split", "val", "--out", str(tmp_path / "page.png"))
    assert ".html" in page and ".jsonl" in page
    assert "no checkpoint yet" in refusal("eval", *common)
    missing = refusal("eval", *arguments(tmp_path, tmp_path / "out"), "-w", str(weights))
    for word in ("data.captions", "data.features", "data.images", "parse_scene_graphs", "--mini"):
        assert word in missing
    bare = create_model(overrides={**SIZES, "vocab_size": len(WordPieceTokenizer.from_file(data / "vocab.txt"))})
    bare.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "vocab.txt").write_bytes((data / "vocab.txt").read_bytes())
    assert "heads.mlm" in refusal("eval", *common, "-w", str(tmp_path / "bare"))
