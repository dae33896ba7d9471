"""Readers of captions against plain readings of the same files, and against files with faults."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vil.data import json_stream
from ernie_vil.data.captions import FORMATS, Caption, detect_format, read_captions
from ernie_vil.data.json_stream import json_items
from ernie_vil.data.names import NEUTRAL_NAMES, NameDraws
from ernie_vil.errors import UserError

DATA = Path(__file__).parent
COCO = DATA / "captions" / "captions_val2017_first60.json"
VISUAL_GENOME = DATA / "captions" / "region_descriptions_first3.json"
VCR = DATA / "ernie_vil" / "samples" / "vcr" / "val.jsonl"


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_coco() -> None:
    expected = [
        Caption(str(item["id"]), str(item["image_id"]), item["caption"])
        for item in json.loads(COCO.read_text())["annotations"]
    ]
    assert list(read_captions(COCO)) == expected == list(read_captions(COCO, "coco"))
    assert len(expected) == 60


def test_visual_genome_keeps_white_space() -> None:
    expected = [
        Caption(str(region["region_id"]), str(region["image_id"]), region["phrase"])
        for image in json.loads(VISUAL_GENOME.read_text())
        for region in image["regions"]
    ]
    assert list(read_captions(VISUAL_GENOME)) == expected
    assert expected[1].text == "shade is along the street "


def test_visual_genome_regions_without_image_id(tmp_path: Path) -> None:
    path = write(tmp_path / "regions.json", [{"id": 7, "regions": [{"region_id": 1, "phrase": "a dog"}]}])
    assert list(read_captions(path)) == [Caption("1", "7", "a dog")]


def test_conceptual_captions(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "a dog\thttp://x/1.jpg", 'a "cat\thttp://x/2.jpg\t0042', "猫 \thttp://x/3.jpg")
    assert list(read_captions(path)) == [
        Caption("1", "1", "a dog"),
        Caption("2", "0042", 'a "cat'),
        Caption("3", "3", "猫 "),
    ]


def test_sbu_in_its_three_forms(tmp_path: Path) -> None:
    texts = ["a dog", "a cat\u2028on a mat", "a bird"]
    expected = [Caption(str(number), str(number), text) for number, text in enumerate(texts, start=1)]
    urls = [f"http://x/{number}.jpg" for number in range(3)]
    released = tmp_path / "sbu-captions-all.json"
    released.write_text(json.dumps({"image_urls": urls, "user_ids": ["u"] * 3, "captions": texts}))
    assert list(read_captions(released)) == expected
    lines = write(tmp_path / "SBU_captioned_photo_dataset_captions.txt", *texts)
    assert list(read_captions(lines, "sbu")) == expected
    table = write(tmp_path / "sbu.tsv", *(f"{text}\t{url}" for text, url in zip(texts, urls)))
    assert list(read_captions(table, "sbu")) == expected


def test_flickr30k_compressed(tmp_path: Path) -> None:
    path = tmp_path / "train.token.gz"
    path.write_bytes(gzip.compress(b"12.jpg#0\ta dog\n12.jpg#1\ta brown dog \n"))
    assert list(read_captions(path)) == [Caption("12.jpg#0", "12", "a dog"), Caption("12.jpg#1", "12", "a brown dog ")]


def test_vcr_texts_have_the_names_of_the_run() -> None:
    captions = list(read_captions(VCR, seed=3))
    lines = [json.loads(line) for line in VCR.read_text().splitlines()]
    assert detect_format(VCR) == "vcr" and len(captions) == len(lines)
    draws = NameDraws.from_table(NEUTRAL_NAMES, seed=3)
    for number, (caption, fields) in enumerate(zip(captions, lines), start=1):
        names = draws.draw(1, "val", number, number - 1, fields["objects"])
        parts = [
            fields["question"],
            fields["answer_choices"][fields["answer_label"]],
            fields["rationale_choices"][fields["rationale_label"]],
        ]
        words: list[str] = []
        for token in (token for part in parts for token in part):
            words += [token] if isinstance(token, str) else [names[i] for i in token]
        assert caption.text == " ".join(words)
        assert caption.id == fields["annot_id"]
        assert caption.image_id == str(1_000_000 + int(fields["img_id"].split("-")[1]))


def test_own_lines_and_plain_text(tmp_path: Path) -> None:
    rows = [{"id": 1, "image_id": "a", "caption": "a dog"}, {"id": "x", "image_id": 2, "caption": "a\ncat", "more": 1}]
    path = write(tmp_path / "own.jsonl", rows[0], "", rows[1])
    assert list(read_captions(path)) == [Caption("1", "a", "a dog"), Caption("x", "2", "a\ncat")]
    path = tmp_path / "own.txt"
    path.write_bytes("\ufeffa dog\r\na\x0bcat\x85b\u2028c".encode())
    assert list(read_captions(path)) == [Caption("1", "1", "a dog"), Caption("2", "2", "a\x0bcat\x85b\u2028c")]


def test_image_ids_of_another_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a dog\tu", "a cat\tu", "a bird\tu")
    ids = write(tmp_path / "ids.txt", "n07", "", "n09")
    named: list[str] = []
    captions = list(read_captions(path, image_ids=ids, max_skip_ratio=0.5, report=named.append))
    assert captions == [Caption("1", "n07", "a dog"), Caption("3", "n09", "a bird")]
    assert named == [f"{path}:2: caption without image: the image id is empty"]
    with pytest.raises(UserError, match="ids.txt:4: there are more records"):
        list(read_captions(write(tmp_path / "a.tsv", *["a dog\tu"] * 4), image_ids=ids, max_skip_ratio=1))
    with pytest.raises(UserError, match="ids.txt:2: there are more image ids"):
        list(read_captions(write(tmp_path / "a.tsv", "a dog\tu"), image_ids=ids))
    with pytest.raises(UserError, match="no such file of image ids"):
        list(read_captions(path, image_ids=tmp_path / "none"))


DAMAGED = {
    "coco": (
        "x.json",
        {"annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}, 7, {"id": 2, "image_id": 1},
                         {"id": 3, "caption": "x"},
                         {"id": 4, "image_id": 1, "caption": " "}, {"id": 5, "image_id": 1, "caption": None},
                         {"id": True, "image_id": 1, "caption": "x"}, {"id": 6, "image_id": 1, "caption": "\ud800"}]},
        ["annotation 2: expected a JSON object", "annotation 3: image without caption",
         "annotation 4: `image_id` is None",
         "annotation 5: image without caption: the caption is empty", "annotation 6: the caption is None",
         "annotation 7: `id` is True", "annotation 8: holds half a surrogate pair"],
    ),
    "visual-genome": (
        "x.json",
        [{"id": 1, "regions": [{"region_id": 1, "image_id": 1, "phrase": "a dog"}, {"region_id": 2, "phrase": ""}]},
         {"id": 2}],
        ["image 1, region 2: image without caption", "image 2: it has no list of `regions`"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", DAMAGED)
def test_damaged_records_of_json_files(format: str, tmp_path: Path) -> None:
    name, content, faults = DAMAGED[format]
    path = write(tmp_path / name, content)
    named: list[str] = []
    assert [caption.text for caption in read_captions(path, format, max_skip_ratio=1, report=named.append)] == ["a dog"]
    assert len(named) == len(faults)
    for message, fault in zip(named, faults):
        assert message.startswith(f"{path}: {fault}")


@pytest.mark.parametrize(
    ("format", "lines", "faults"),
    [
        ("conceptual-captions", [b"a dog\tu", b"a dog", b"\tu", b"a\tb\tc\td", b"\xff\xfe\tu", b"", b"a cat\tu\t "],
         {2: "1 columns", 3: "image without caption", 4: "4 columns", 5: "not a text in UTF-8", 6: "1 columns",
          7: "caption without image"}),
        ("flickr30k", [b"1.jpg#0\ta dog", b"1.jpg\ta cat", b"1.jpg#2 a", b"1.jpg#3\t"],
         {2: "expected NAME.jpg#0", 3: "expected NAME.jpg#0", 4: "image without caption"}),
        ("jsonl", [b'{"id": 1, "image_id": 1, "caption": "a dog"}', b"{", b"3", b'{"id": 2, "image_id": 1}',
                   b'{"id": 2, "image_id": "", "caption": "x"}', b'{"id": " ", "image_id": "x", "caption": "x"}',
                   b"[" * 100_000],
         {2: "not a line of JSON", 3: "expected a JSON object", 4: "image without caption", 5: "caption without image",
          6: "the id is empty", 7: "not a line of JSON"}),
        ("text", [b"a dog", b" ", b"\xff"], {2: "image without caption", 3: "not a text in UTF-8"}),
        ("vcr", [VCR.read_bytes().splitlines()[0], b"{}", b'{"objects": 3}', b"{"],
         {2: "no field `objects`", 3: "`objects` is not", 4: "not a line of JSON"}),
    ],
)  # fmt: skip
def test_damaged_lines(format: str, lines: list[bytes], faults: dict[int, str], tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\n".join(lines))
    named: list[str] = []
    assert len(list(read_captions(path, format, max_skip_ratio=1, report=named.append))) == 1
    assert len(named) == len(faults)
    for message, (number, fault) in zip(named, faults.items()):
        assert message.startswith(f"{path}:{number}: {fault}")


def test_the_budget_of_damaged_records(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", *[f"a dog {number}" for number in range(999)], " ")
    assert len(list(read_captions(path))) == 999
    path = write(tmp_path / "x.txt", *[f"a dog {number}" for number in range(998)], " ", " ")
    with pytest.raises(
        UserError, match=r"2 of 1000 records are damaged, more than the share of 0\.001.*\n.*x.txt:999: "
    ):
        list(read_captions(path))
    path = write(tmp_path / "x.txt", *[" "] * 30)
    with pytest.raises(UserError, match="and 10 more"):
        list(read_captions(path))
    with pytest.raises(UserError, match="holds no caption"):
        list(read_captions(path, max_skip_ratio=1))


def test_an_id_for_the_second_time(tmp_path: Path) -> None:
    row = {"id": 1, "image_id": 1, "caption": "a dog"}
    with pytest.raises(UserError, match="x.jsonl:2: the id '1' stands for the second time"):
        list(read_captions(write(tmp_path / "x.jsonl", row, {**row, "id": "1"})))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": "a"}', "expected ',', found ''"),
        ("x.json", '{"annotations": [{"id": 1, "image_id" 2}]}', "not JSON of the expected form at character 38"),
        ("x.json", '{"annotations": {"id": 1}}', "expected '\\['"),
        ("x.json", '{"info": 3}', "cannot tell the format"),
        ("x.json", "", "expected"),
        ("x.csv", "a", "cannot tell the format"),
        ("x.token.gz", "no gzip", "not a whole gzip file"),
    ],
)
def test_files_that_are_not_of_the_format(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_captions(path))


def test_unknown_format_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such caption file"):
        next(read_captions(tmp_path / "none.json"))
    with pytest.raises(UserError, match="'xml' is no format of captions; known are auto, coco"):
        next(read_captions(COCO, "xml"))
    with pytest.raises(UserError, match="has no `captions`"):
        next(FORMATS["sbu"](COCO))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(JSON, max_size=8), st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.sampled_from([None, 1]))
def test_streamed_items_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, items: list, others: dict, indent: Any
) -> None:
    folder = tmp_path_factory.mktemp("json")
    others.pop("wanted", None)
    (folder / "array.json").write_text(json.dumps(items, indent=indent))
    (folder / "object.json").write_text(json.dumps({**others, "wanted": items}, indent=indent))
    chunk = json_stream.CHUNK
    try:
        for json_stream.CHUNK in (1, 5, chunk):
            assert list(json_items(folder / "array.json")) == items
            assert list(json_items(folder / "object.json", "wanted")) == items
    finally:
        json_stream.CHUNK = chunk


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "region_descriptions.json"
    region = '{"region_id": 1, "image_id": 1, "phrase": "a dog on a mat", "x": 1, "y": 2, "width": 3, "height": 4}'
    image = '{"id": 1, "regions": [' + ", ".join([region] * 50) + "]}"
    path.write_text("[" + ", ".join([image] * 600) + "]")
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 16)
    tracemalloc.start()
    count = sum(len(image["regions"]) for image in json_items(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert path.stat().st_size > 3_000_000 > 4 * peak
