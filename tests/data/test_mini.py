"""The miniature scenes and the miniature VCR data: the same everywhere, true, made from pixels, and fair."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ernie_vil.data import mini, mini_cache, mini_questions, mini_vcr
from ernie_vil.data.mini import COLORS, KINDS, PATTERNS, RELATIONS, SIZES
from ernie_vil.data.regions import open_store
from ernie_vil.errors import UserError

SIZES_OF_TEST = {"train_images": 40, "val_images": 10, "test_images": 5, "questions_per_image": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini") / "vcr"
    mini_vcr.build_mini_vcr(path, seed=3, **SIZES_OF_TEST)
    return path


@pytest.fixture(scope="module")
def many_questions():
    """(scene, question) pairs of more scenes than a test can draw pictures of, by split."""
    return {
        split: [
            (scene, question)
            for scene, rng in mini.scenes(0, split, count)
            for question in mini_questions.make_questions(scene, rng, 5)
        ]
        for split, count in (("train", 1200), ("val", 400))
    }


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------- scenes and facts
def test_objects_stay_in_the_picture_and_apart_and_have_one_name_each():
    for scene, _ in mini.scenes(1, "train", 300):
        assert 3 <= len(scene.objects) <= 6
        assert len({(thing.kind, thing.color) for thing in scene.objects}) == len(scene.objects)
        used = np.zeros((scene.height, scene.width), int)
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
            assert SIZES[thing.size][0] <= x2 - x1 == y2 - y1 <= SIZES[thing.size][1]
            used[y1:y2, x1:x2] += 1
        assert used.max() == 1


def test_relations_are_antisymmetric_and_leave_no_doubt():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for scene, _ in mini.scenes(2, "train", 200):
        facts = set(mini.relations(scene))
        for i, relation, j in facts:
            assert (j, opposite[relation], i) in facts
            assert (i, opposite[relation], j) not in facts
        for i, one in enumerate(scene.objects):
            for j, other in enumerate(scene.objects):
                dx = abs(one.centre[0] - other.centre[0])
                assert dx <= 9 or dx >= 23, "a horizontal offset that is neither clearly none nor clearly some"
                assert ((i, "left of", j) in facts) == (dx >= 23 and one.centre[0] < other.centre[0])


def test_every_fact_about_objects_is_listed():
    scene = mini.make_scene(np.random.default_rng(5))
    assert mini.object_facts(scene) == [(i, thing.kind) for i, thing in enumerate(scene.objects)]
    words = [set(COLORS), set(SIZES), set(PATTERNS)]
    facts = mini.attribute_facts(scene)
    assert len(facts) == 3 * len(scene.objects)
    for index in range(len(scene.objects)):
        own = [word for i, word in facts if i == index]
        assert all(len(group & set(own)) == 1 for group in words)


def test_everything_in_a_scene_is_close_to_uniform():
    objects = [thing for scene, _ in mini.scenes(0, "train", 1500) for thing in scene.objects]
    for field, values in (("kind", KINDS), ("color", COLORS), ("size", SIZES), ("pattern", PATTERNS)):
        counts = Counter(getattr(thing, field) for thing in objects)
        expected = len(objects) / len(values)
        assert set(counts) == set(values)
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 30  # chi-square, at most 9 degrees


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_changes_the_pixels_of_its_box_only_and_shows_its_paint(kind):
    thing = mini.SceneObject(kind, "red", "large", "plain", (35, 34, 61, 60), (214, 40, 40))
    empty = mini.Scene((), 128, 96, (190, 190, 190), (5, -9), 7)
    scene = mini.Scene((thing,), 128, 96, (190, 190, 190), (5, -9), 7)
    background, picture = np.asarray(mini.draw(empty)).astype(int), np.asarray(mini.draw(scene)).astype(int)
    ys, xs = np.nonzero(np.abs(picture - background).max(-1))
    assert (xs.min(), xs.max() + 1) == (35, 61) and ys.min() >= 34 and ys.max() + 1 <= 60
    assert (picture == (214, 40, 40)).all(-1).sum() > 80
    assert len(np.unique(background.reshape(-1, 3), axis=0)) > 5, "the background is not constant"
    inside = Image.new("1", (128, 96))
    ImageDraw.Draw(inside).polygon([tuple(point) for point in mini.outline(thing)], fill=1, outline=1)
    assert np.asarray(inside)[ys, xs].mean() > 0.97, "the outline surrounds the thing"


def test_stripes_are_dark_rows():
    def picture(pattern):
        thing = mini.SceneObject("square", "blue", "large", pattern, (40, 40, 66, 66), (40, 80, 215))
        return np.asarray(mini.draw(mini.Scene((thing,), 128, 96, (190, 190, 190), (0, 0), 1)))[40:66, 40:66]

    assert (picture("plain") == (40, 80, 215)).all()
    rows = picture("striped").mean((1, 2))
    assert 0.4 < (rows < 60).mean() < 0.6


# --------------------------------------------------------------------------------------------------------- features
def test_descriptor_of_a_plain_red_box_is_what_its_description_says():
    image = Image.new("RGB", (64, 64), (200, 200, 200))
    image.paste((255, 0, 0), (16, 16, 32, 32))
    feature = mini.describe_regions(image, np.array([[16, 16, 32, 32], [40, 40, 60, 60]]), 100)
    assert feature.shape == (2, 100) and feature.dtype == np.float32
    assert (feature[:, mini.DESCRIPTOR_SIZE :] == 0).all()
    red, background = feature
    assert (red[:16] == 1).all() and (background[:16] == -1).all()
    np.testing.assert_allclose(red[16:28], [2] + [0] * 11, atol=1e-5)
    np.testing.assert_allclose(red[28:31], [1, -1, -1], atol=1e-5)
    np.testing.assert_allclose(red[31:63], 0, atol=1e-6)
    np.testing.assert_allclose(red[63:67], [1, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(background[16:28], 0, atol=1e-6)


@pytest.mark.parametrize(("direction", "bin_of_orientation"), [("right", 0), ("down", 4)])
def test_orientations_of_a_ramp(direction, bin_of_orientation):
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 15, (16, 1))
    pixels = ramp if direction == "right" else ramp.T
    image = Image.fromarray(np.repeat(pixels[:, :, None], 3, axis=2))
    histogram = mini.describe_regions(image, np.array([[0, 0, 16, 16]]))[0, 31:63].reshape(8, 4)
    assert (histogram.argmax(0) == bin_of_orientation).all()
    np.testing.assert_allclose(histogram[bin_of_orientation], 10 * 15 / 255, rtol=1e-5)


def test_no_boxes_and_too_narrow_features():
    image = Image.new("RGB", (32, 32))
    assert mini.describe_regions(image, np.zeros((0, 4)), 80).shape == (0, 80)
    with pytest.raises(UserError, match=str(mini.DESCRIPTOR_SIZE)):
        mini.describe_regions(image, np.zeros((0, 4)), mini.DESCRIPTOR_SIZE - 1)


def test_features_of_the_stores_are_those_of_the_png_files(folder):
    for split, offset in (("train", 0), ("val", 1_000_000), ("test", 2_000_000)):
        for name in ("features.lmdb", "gt_features.lmdb"):
            store = open_store(folder / name, feature_size=80)
            for number in range(SIZES_OF_TEST[f"{split}_images"]):
                regions = store[str(offset + number)]
                image = Image.open(folder / "vcr1images" / f"mini_{split}" / f"{number:05d}.png")
                assert (image.width, image.height, image.mode) == (regions.width, regions.height, "RGB")
                np.testing.assert_array_equal(regions.features, mini.describe_regions(image, regions.boxes, 80))
                assert np.abs(regions.features).max() < 6


def test_true_boxes_are_in_the_order_of_the_objects_and_detected_ones_are_not(folder):
    truth, detected = open_store(folder / "gt_features.lmdb"), open_store(folder / "features.lmdb")
    assert len(truth) == len(detected) == 55
    assert truth.fingerprint == detected.fingerprint
    shuffled = 0
    for number, (scene, _) in enumerate(mini.scenes(3, "train", 40)):
        boxes = truth[str(number)].boxes
        np.testing.assert_array_equal(boxes, [thing.box for thing in scene.objects])
        found = detected[str(number)].boxes
        assert len(found) == len(boxes) + 1
        distance = np.abs(found[None] - boxes[:, None]).max(-1)
        assert (distance.min(1) <= 2).all(), "a thing was not detected"
        shuffled += list(distance.argmin(1)) != sorted(distance.argmin(1))
    assert shuffled > 25


# ------------------------------------------------------------------------------------------------------- the format
def test_jsonl_has_the_fields_of_the_public_data(folder):
    fields = {"movie", "objects", "interesting_scores", "answer_likelihood", "img_fn", "metadata_fn", "question"}
    fields |= {"answer_choices", "rationale_choices", "img_id", "question_number", "annot_id", "match_fold"}
    fields |= {"match_index"}
    labels = {"answer_label", "rationale_label", "answer_orig", "question_orig", "rationale_orig"}
    labels |= {f"{part}_{name}" for part in ("answer", "rationale") for name in ("match_iter", "sources")}
    for split in mini.SPLITS:
        records = read_jsonl(folder / f"{split}.jsonl")
        images = SIZES_OF_TEST[f"{split}_images"]
        # A scene without a kind that occurs once can have fewer than five different questions.
        assert 5 * images - 3 <= len(records) <= 5 * images
        numbers = [(int(record["img_id"].split("-")[1]), record["question_number"]) for record in records]
        assert numbers == sorted(set(numbers)) and {image for image, _ in numbers} == set(range(images))
        assert [record["annot_id"] for record in records] == [f"{split}-{i}" for i in range(len(records))]
        for number, record in enumerate(records):
            assert set(record) == (fields if split == "test" else fields | labels)
            assert record["img_id"].startswith(f"{split}-") and record["match_index"] == number
            assert len(record["answer_choices"]) == len(record["rationale_choices"]) == 4
            for text in (record["question"], *record["answer_choices"], *record["rationale_choices"]):
                for token in text:
                    assert isinstance(token, str) or all(0 <= i < len(record["objects"]) for i in token)
            if split != "test":
                assert record["answer_match_iter"][record["answer_label"]] == 0
                assert sorted(record["answer_match_iter"]) == [0, 1, 2, 3]
            metadata = json.loads((folder / "vcr1images" / record["metadata_fn"]).read_text())
            assert metadata["names"] == record["objects"]
            assert set(metadata) == {"boxes", "segms", "names", "width", "height"}
            assert all(len(box) == 5 for box in metadata["boxes"])
            assert len(metadata["segms"]) == len(record["objects"])
            image = Image.open(folder / "vcr1images" / record["img_fn"])
            assert image.size == (metadata["width"], metadata["height"])


def test_every_word_is_in_the_vocabulary(folder, many_questions):
    words = (folder / "vocab.txt").read_text().splitlines()
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and len(words) == len(set(words))
    known = set(words)
    assert {"a", "z", "##a", "##z", "casey", *KINDS} <= known
    for _, item in many_questions["train"]:
        for text in (item.question, *item.answers, *item.rationales):
            assert {token for token in text if isinstance(token, str)} <= known


def test_readme_says_what_it_is(folder):
    text = (folder / "README.txt").read_text()
    assert "not the real VCR" in text and "questions on 40 pictures" in text


# ------------------------------------------------------------------------------------------------------------ truth
def find(scene, words):
    """Indices of the objects that a phrase can mean: [[2]], the dog, a red dog, the person in red."""
    if isinstance(words[0], list):
        return words[0]
    words = [word for word in words if word not in ("a", "an", "the", "in")]
    kind, color = ([w for w in words if w in group] for group in (KINDS, COLORS))
    assert len(kind) == 1 and len(color) <= 1 and len(words) == len(kind) + len(color), words
    return [i for i, t in enumerate(scene.objects) if t.kind == kind[0] and (not color or t.color == color[0])]


def the_one(scene, words):
    found = find(scene, words)
    assert len(found) == 1, f"{words} does not name one object of the scene"
    if isinstance(words[0], list):
        kind = scene.objects[found[0]].kind
        assert [t.kind for t in scene.objects].count(kind) == 1, "a name of a person would not name one object"
    return found[0]


def is_true(scene, statement):
    """Whether 'X is red', 'X is small and plain', 'X is left of a dog' or 'there is a dog' holds. Reads boxes anew."""
    assert statement[-1] == "."
    words = statement[:-1]
    if words[:2] == ["there", "is"]:
        return bool(find(scene, words[2:]))
    at = words.index("is")
    subject, rest = the_one(scene, words[:at]), [word for word in words[at + 1 :] if word != "in"]
    thing = scene.objects[subject]
    if rest[0] in COLORS:
        return thing.color == rest[0]
    if rest[0] in SIZES:
        assert rest[1] == "and"
        return (thing.size, thing.pattern) == (rest[0], rest[2])
    relation = next(r for r in RELATIONS if rest[: len(r.split())] == r.split())
    return any(stands(thing, relation, scene.objects[i]) for i in find(scene, rest[len(relation.split()) :]))


def stands(one, relation, other):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = one.box, other.box
    dx, dy = (bx1 + bx2 - ax1 - ax2) / 2, (by1 + by2 - ay1 - ay2) / 2
    return {"left of": dx > 12, "right of": dx < -12, "above": dy > 12, "below": dy < -12}[relation]


def is_right(scene, question, answer):
    if question == ["what", "is", "here", "?"]:
        return is_true(scene, ["there", "is", *answer])
    if question[:2] == ["what", "colors"]:
        first, second = question[3]
        the_one(scene, [[first]]), the_one(scene, [[second]])
        assert answer[1] == "and"
        return (scene.objects[first].color, scene.objects[second].color) == (answer[0], answer[2])
    if question[:2] == ["what", "color"] or question[0] == "how":
        topic = question[3:-1] if question[0] == "what" else question[2:-2]
        assert answer[: len(topic)] == topic
        return is_true(scene, answer)
    relation = next(r for r in RELATIONS if question[2 : 2 + len(r.split())] == r.split())
    topic = scene.objects[the_one(scene, question[2 + len(relation.split()) : -1])]
    if isinstance(answer[0], list):
        the_one(scene, answer[:1])
    return any(stands(scene.objects[i], relation, topic) for i in find(scene, answer[:-1]))


def test_the_right_choices_are_true_and_all_others_are_false(many_questions):
    for scene, item in many_questions["train"] + many_questions["val"]:
        truths = [is_right(scene, item.question, answer) for answer in item.answers]
        assert truths == [i == item.answer_label for i in range(4)], item
        truths = [is_true(scene, rationale) for rationale in item.rationales]
        assert truths == [i == item.rationale_label for i in range(4)], item


def test_labels_in_the_files_are_those_of_their_scenes(folder):
    for split in ("train", "val"):
        drawn = [scene for scene, _ in mini.scenes(3, split, SIZES_OF_TEST[f"{split}_images"])]
        for record in read_jsonl(folder / f"{split}.jsonl"):
            scene = drawn[int(record["img_id"].split("-")[1])]
            assert record["objects"] == [thing.kind for thing in scene.objects]
            truths = [is_right(scene, record["question"], answer) for answer in record["answer_choices"]]
            assert truths == [i == record["answer_label"] for i in range(4)]
            truths = [is_true(scene, rationale) for rationale in record["rationale_choices"]]
            assert truths == [i == record["rationale_label"] for i in range(4)]


def test_all_types_of_questions_occur_and_use_index_lists(many_questions):
    items = [item for _, item in many_questions["train"]]
    starts = Counter(" ".join(str(word) for word in item.question[:2]) for item in items)
    assert {"what is", "what color", "what colors", "how does"} == set(starts) and min(starts.values()) > 200
    tokens = [token for item in items for text in (item.question, *item.answers) for token in text]
    assert {len(token) for token in tokens if isinstance(token, list)} == {1, 2}
    texts = Counter(json.dumps([i.question, i.answers[i.answer_label], s.seed]) for s, i in many_questions["train"])
    assert max(texts.values()) == 1, "a picture is asked the same thing twice"


# --------------------------------------------------------------------------------------------------------- fairness
def test_labels_are_uniform(many_questions):
    for labels in (
        [item.answer_label for _, item in many_questions["train"]],
        [item.rationale_label for _, item in many_questions["train"]],
    ):
        counts = np.bincount(labels, minlength=4)
        assert ((counts - len(labels) / 4) ** 2 / (len(labels) / 4)).sum() < 16.3  # chi-square, p = 0.001


def words_of(scene, text):
    return [w if isinstance(w, str) else " ".join(scene.objects[i].kind for i in w) for w in text]


def text_features(context, choice, others):
    """What a reader without the picture may go by: words, pairs of words, words with the context, rivals' words."""
    yield from choice
    yield from zip(choice, choice[1:])
    yield from ((a, b) for a in set(context) for b in set(choice))
    yield from (("rival", a, b) for a in set(choice) for other in others for b in other if b not in choice)


def naive_bayes_accuracy(train, test):
    """Accuracy of choosing by the sum of log-odds with which features marked right choices in ``train``."""
    right, wrong = Counter(), Counter()
    for context, choices, label in train:
        for i, choice in enumerate(choices):
            (right if i == label else wrong).update(set(text_features(context, choice, choices[:i] + choices[i + 1 :])))
    hits = 0
    for context, choices, label in test:
        scores = []
        for i, choice in enumerate(choices):
            features = set(text_features(context, choice, choices[:i] + choices[i + 1 :]))
            scores.append(sum(np.log((right[f] + 1) / (wrong[f] / 3 + 1)) for f in features))
        hits += int(np.argmax(scores)) == label
    return hits / len(test)


@pytest.mark.parametrize("part", ["answers", "rationales"])
def test_without_the_picture_choices_cannot_be_told_apart(many_questions, part):
    sets = {}
    for split, pairs in many_questions.items():
        sets[split] = []
        for scene, item in pairs:
            context = words_of(scene, item.question)
            if part == "answers":
                choices, label = item.answers, item.answer_label
            else:
                context = context + words_of(scene, item.answers[item.answer_label])
                choices, label = item.rationales, item.rationale_label
            sets[split].append((context, [words_of(scene, choice) for choice in choices], label))
    assert len(sets["val"]) > 1900
    # Four deviations of 2000 fair guesses; a leak that a model would find shows here first.
    assert 0.21 < naive_bayes_accuracy(sets["train"], sets["val"]) < 0.29


def test_the_count_based_reader_does_find_a_leak_when_there_is_one(many_questions):
    leaky = []
    for scene, item in many_questions["val"]:
        choices = [words_of(scene, answer) for answer in item.answers]
        if "red" in choices[item.answer_label] or not any("red" in choice for choice in choices):
            leaky.append((words_of(scene, item.question), choices, item.answer_label))
    half = len(leaky) // 2
    assert naive_bayes_accuracy(leaky[:half], leaky[half:]) > 0.32


# ------------------------------------------------------------------------------------------- determinism and caching
def contents(folder: Path):
    """Bytes of every text and picture file, and every array of the stores."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mdb")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != mini_cache.MARKER}
    for name in ("features.lmdb", "gt_features.lmdb"):
        store = open_store(folder / name)
        every = [(key, store[key]) for key in store.keys()]  # noqa: SIM118 (a store is not iterable)
        found.update({f"{name}/{key}": (regions.features.tobytes(), regions.boxes.tobytes()) for key, regions in every})
    return found


def test_another_process_makes_the_same_data(folder, tmp_path):
    code = (
        "import json, sys; from ernie_vil.data.mini_vcr import build_mini_vcr\n"
        "build_mini_vcr(sys.argv[1], 3, **json.loads(sys.argv[2]))"
    )
    root = Path(mini.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(tmp_path / "again"), json.dumps(SIZES_OF_TEST)]
    subprocess.run(command, env=environment, check=True)
    first, second = contents(folder), contents(tmp_path / "again")
    assert first == second and len(first) == 2 * 55 + 3 + 2 + 2 * 55  # pictures, jsonl, texts, stores


def test_another_seed_makes_other_data_and_a_longer_split_keeps_its_beginning(folder, tmp_path):
    mini_vcr.build_mini_vcr(tmp_path / "other", seed=4, train_images=3, val_images=1, test_images=1)
    mini_vcr.build_mini_vcr(tmp_path / "short", seed=3, train_images=3, val_images=1, test_images=1)
    lines = [
        (path / "train.jsonl").read_text().splitlines() for path in (folder, tmp_path / "other", tmp_path / "short")
    ]
    assert lines[0][:15] == lines[2] and lines[1] != lines[2]


SMALL = mini_vcr.MiniVcrParameters(train_images=6, val_images=2, test_images=1)


def make_small(home, results):
    results.put(str(mini_vcr.mini_vcr(Path(home), SMALL)))


def test_several_processes_may_make_the_same_folder_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=make_small, args=(str(tmp_path), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    paths = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(paths) == 1
    path = Path(paths.pop())
    assert mini_cache.is_whole(path, SMALL.as_dict())
    assert [entry.name for entry in (tmp_path / "mini").iterdir()] == [path.name], "temporary folders were left"
    assert len(open_store(path / "features.lmdb")) == 9


def test_the_cache_folder_follows_the_environment_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ERNIE_VIL_HOME", str(tmp_path))
    path = mini_vcr.mini_vcr(parameters=SMALL)
    assert path.parent == tmp_path / "mini" and path.name.startswith("vcr-v1-")
    monkeypatch.setattr(mini_vcr, "_write", lambda *_: pytest.fail("made twice"))
    assert mini_vcr.mini_vcr(parameters=SMALL) == path


def test_a_half_written_folder_never_counts_as_whole(tmp_path):
    path = mini_vcr.mini_vcr(tmp_path, SMALL)
    val = path / "val.jsonl"
    val.write_bytes(val.read_bytes()[:-30])
    with pytest.raises(UserError, match="delete it"):
        mini_vcr.mini_vcr(tmp_path, SMALL)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(mini_vcr, "write_lmdb_store", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        mini_vcr.build_mini_vcr(tmp_path / "vcr", train_images=2, val_images=1, test_images=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a whole miniature set"):
        mini_vcr.build_mini_vcr(tmp_path, train_images=1, val_images=1, test_images=1)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="ERNIE_VIL_HOME"):
        mini_vcr.build_mini_vcr(tmp_path / "file" / "vcr", train_images=1, val_images=1, test_images=1)
