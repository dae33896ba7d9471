"""Conversion of the original's release folder and training checkpoints."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_vil.errors import UserError
from ernie_vil.models.ernie_vil import ErnieViLConfig, ErnieViLModel
from ernie_vil.weights import FORMATS
from ernie_vil.weights.fluid import (
    backbone_shapes,
    convert_fluid,
    read_fluid_folder,
    read_fluid_tensor,
    write_model_folder,
)
from ernie_vil.weights.fluid_names import to_original, to_ours

DATA = Path(__file__).parents[1] / "data" / "ernie_vil"
RELEASE = DATA / "tiny_release"
EXTRACT = DATA / "tiny_training_checkpoint_extract"
FACTS = json.loads((DATA / "checkpoint_files.json").read_text())
KINDS = {"<i4": 2, "<i8": 3, "<f2": 4, "<f4": 5, "<f8": 6}


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def encode(array: np.ndarray, sides=None, kind=None, lod=(), versions=(0, 0), packed=False) -> bytes:
    """A variable file, written independently of the reader."""
    sides = array.shape if sides is None else sides
    if packed:
        body = b"".join(map(varint, sides))
        shape = b"\x12" + varint(len(body)) + body
    else:
        shape = b"".join(b"\x10" + varint(side) for side in sides)
    description = b"\x08" + varint(KINDS[array.dtype.str] if kind is None else kind) + shape
    levels = b"".join(struct.pack("<Q", len(level)) + level for level in lod)
    return (
        struct.pack("<IQ", versions[0], len(lod))
        + levels
        + struct.pack("<Ii", versions[1], len(description))
        + description
        + array.tobytes()
    )


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASE, tmp_path / "release", copy_function=shutil.copyfile))


def edit_config(folder: Path, **changes) -> None:
    path = folder / "ernie_vil.tiny.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_file_has_the_recorded_shape_and_checksums() -> None:
    arrays, ignored = read_fluid_folder(RELEASE / "params")
    assert not ignored and arrays.keys() == FACTS["parameters"].keys()
    for name, facts in FACTS["parameters"].items():
        assert (list(arrays[name].shape), str(arrays[name].dtype)) == (facts["shape"], facts["dtype"])
        sums = [arrays[name].astype("f8").sum(), np.abs(arrays[name].astype("f8")).sum()]
        np.testing.assert_allclose(sums, FACTS["checksums"][name], rtol=1e-12, atol=1e-12)


def test_training_checkpoint_keeps_parameters_only() -> None:
    arrays, ignored = read_fluid_folder(EXTRACT)
    assert list(arrays) == ["image_loc.w_0"]
    facts = FACTS["training_checkpoint"]
    assert set(ignored) == set(facts["files_for_one_parameter"][1:] + facts["files_that_belong_to_no_parameter"])
    assert ignored["image_loc.w_0_moment1_0"] == "optimizer state"
    assert ignored["@LR_DECAY_COUNTER@"] == "step counter or learning rate"
    for name, kept in facts["kept_values"].items():
        array = read_fluid_tensor(EXTRACT / name)
        assert (list(array.shape), str(array.dtype)) == (kept["shape"], kept["dtype"])
        np.testing.assert_array_equal(array.ravel()[: len(kept["first"])], np.array(kept["first"], array.dtype))


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(0, 3), max_size=4),
    st.booleans(),
    st.lists(st.binary(), max_size=2),
)
def test_tensor_round_trip(dtype: str, sides: list, packed: bool, lod: list) -> None:
    array = np.random.default_rng(0).integers(-9, 9, sides).astype(dtype)
    path = Path("tensor")
    data = encode(array, packed=packed, lod=lod)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: data)
        read = read_fluid_tensor(path)
        assert read.dtype == array.dtype and read.shape == array.shape and (read == array).all()
        for end in range(len(data)):
            patch.setattr(Path, "read_bytes", lambda _, end=end: data[:end])
            with pytest.raises(UserError, match=r"^tensor: not a complete Fluid tensor"):
                read_fluid_tensor(path)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (encode(np.ones(3, "f4"), versions=(1, 0)), "variable version 1"),
        (encode(np.ones(3, "f4"), versions=(0, 7)), "tensor version 7"),
        (encode(np.ones(3, "f4"), sides=(-1,)), r"negative side in shape \[-1\]"),
        (encode(np.ones(3, "f4"), sides=(1 << 40, 1 << 40)), "12 bytes of data, shape .* needs"),
        (encode(np.ones(3, "f4")) + b"x", "13 bytes of data"),
        (encode(np.ones(3, "f4"), kind=20), "data type 20"),
        (struct.pack("<IQ", 0, 1 << 60), "ends within the LoD length"),
        (struct.pack("<IQIi", 0, 0, 0, -5), "negative description"),
        (struct.pack("<IQIi", 0, 0, 0, 2) + b"\x1d\x00", "unknown field 3"),
        (b"", "ends within the variable version"),
    ],
)
def test_damaged_tensor_names_file_and_fault(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "image_loc.w_0").write_bytes(data)
    with pytest.raises(UserError, match=f"image_loc.w_0: not a complete Fluid tensor: .*{fault}"):
        read_fluid_tensor(tmp_path / "image_loc.w_0")


@pytest.mark.parametrize("size", ["base", "large"])
def test_names_and_shapes_of_the_official_models(size: str) -> None:
    official = json.loads((DATA / "official_parameters.json").read_text())[size]
    expected = {
        pattern.format(i=index): tuple(entry["shape"])
        for pattern, entry in official["by_pattern"].items()
        for index in range(entry["count"])
    }
    assert len(expected) >= official["backbone_tensors"]
    for name in expected:
        assert to_original(to_ours(name)) == name
    assert len({to_ours(name) for name in expected}) == len(expected)
    large = {"hidden_size": 1024, "num_attention_heads": 16, "v_intermediate_size": 4096}
    config = ErnieViLConfig(**large, t_biattention_id=range(18, 24)) if size == "large" else ErnieViLConfig()
    shapes = {to_original(name): shape for name, shape in backbone_shapes(config).items()}
    different = {name for name in shapes if shapes[name] != expected.get(name)}
    assert different <= {"sent_embedding"}  # 4 rows in the released file, 2 assumed where it was not seen
    assert len(shapes) == official["backbone_tensors"]


def test_names_are_a_bijection_on_all_heads_too() -> None:
    names = np.load(DATA / "weights.npz").files
    ours = [to_ours(name) for name in names]
    assert None not in ours and len(set(ours)) == len(names)
    assert [to_original(name) for name in ours] == names
    assert {name for name in ours if name.startswith("heads.")} == {
        f"heads.{stem}.{kind}"
        for stem in ("vcr_qa", "vcr_qar", "vqa.hidden", "vqa.output", "region", "match")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("sent_embedding", "text_embeddings.segment.weight"),
        ("vl_pre_encoder_layer_norm_scale", "region_embeddings.norm.weight"),
        ("image_loc.b_0", "region_embeddings.location.bias"),
        ("encoder_layer_11_multi_head_att_query_fc.w_0", "text_layers.11.attention.query.weight"),
        ("encoder_vlayer_0_multi_head_att_key_fc.b_0", "region_layers.0.attention.key.bias"),
        ("encoder_vlayer_3_post_ffn_layer_norm_bias", "region_layers.3.feed_forward_norm.bias"),
        ("encoder_colayer_2_multi_head_att_value_fc.w_0", "co_layers.2.text.attention.value.weight"),
        ("encoder_colayer_2_vl_multi_head_att_output_fc.w_0", "co_layers.2.region.attention.output.weight"),
        ("encoder_colayer_2_vl_post_att_layer_norm_scale", "co_layers.2.region.attention_norm.weight"),
        ("encoder_colayer_2_ffn_fc_1.b_0", "co_layers.2.text.feed_forward.outer.bias"),
        ("pooled_fc_image.w_0", "region_pooler.weight"),
        ("vcr_fc.w_0", "heads.vcr.weight"),
    ],
)
def test_names_by_hand(original: str, ours: str) -> None:
    assert to_ours(original) == ours and to_original(ours) == original


@pytest.mark.parametrize(
    "name",
    [
        "encoder_layer_01_ffn_fc_0.w_0",
        "encoder_layer_0_vl_ffn_fc_0.w_0",
        "encoder_layer_0_ffn_fc_2.w_0",
        "encoder_xlayer_0_multi_head_att_query_fc.w_0",
        "region_fc.w_0",
        "word_embedding.w_0",
        "a-b_fc.w_0",
        "vcr_fc.w_1",
        "",
    ],
)
def test_names_that_the_original_does_not_have(name: str) -> None:
    assert to_ours(name) is None


def test_release_converts_with_every_key(release: Path, tmp_path: Path) -> None:
    (release / "vocab.txt").write_text("[PAD]\n")
    converted = FORMATS["ernie-vil-fluid"](release)
    assert sorted(converted.account.loaded) == sorted(FACTS["parameters"]) and not converted.account.ignored
    assert converted.corrections == [] and converted.config["feature_size"] == 2048
    original = json.loads((RELEASE / "ernie_vil.tiny.json").read_text())
    assert {key: converted.config[key] for key in original} == original
    write_model_folder(converted, tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "[PAD]\n"
    model = ErnieViLModel.from_pretrained(tmp_path / "out")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == backbone_shapes(model.config)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), read_fluid_tensor(RELEASE / "params" / to_original(name)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "release"]


def test_params_folder_and_checkpoint_with_a_configuration(release: Path, tmp_path: Path) -> None:
    expected = convert_fluid(release).state
    step = tmp_path / "step_100"
    shutil.copytree(EXTRACT, step, copy_function=shutil.copyfile)
    for path in (release / "params").iterdir():
        shutil.copyfile(path, step / path.name)
    with pytest.raises(UserError, match="No model configuration"):
        convert_fluid(step)
    for converted in (convert_fluid(release / "params"), convert_fluid(step, release / "ernie_vil.tiny.json")):
        assert converted.state.keys() == expected.keys()
        assert all((converted.state[name] == expected[name]).all() for name in expected)
    assert len(converted.account.ignored) == 10


def test_shapes_win_over_the_configuration(release: Path) -> None:
    edit_config(release, vocab_size=30522, hidden_size=16, v_intermediate_size=99, sent_type_vocab_size=2)
    converted = convert_fluid(release)
    assert {key: converted.config[key] for key in ("vocab_size", "hidden_size", "v_intermediate_size")} == {
        "vocab_size": 158, "hidden_size": 8, "v_intermediate_size": 12,
    }  # fmt: skip
    assert len(converted.corrections) == 4
    assert any("vocab_size is 30522, but word_embedding has 158" in line for line in converted.corrections)


def test_all_misfits_are_listed_together(release: Path) -> None:
    params = release / "params"
    (params / "pooled_fc_image.b_0").unlink()
    (params / "vqa_fc_b_1").unlink()
    (params / "nonsense").write_bytes(encode(np.ones(2, "f4")))
    (params / "vcr_qa_fc.w_0").write_bytes(encode(np.ones((8, 2), "f4")))
    with pytest.raises(UserError) as caught:
        convert_fluid(release)
    message = str(caught.value)
    assert "missing (2):\n  pooled_fc_image.b_0\n  vqa_fc_b_1\n" in message
    assert "unexpected (1):\n  nonsense\n" in message
    assert "misshaped (1):\n  vcr_qa_fc.w_0: [8, 2] in the file, [8, 1] in the model\n" in message


@pytest.mark.parametrize(
    ("lists", "missing", "unexpected"),
    [({"t_biattention_id": [2]}, 16, 0), ({"t_biattention_id": [0]}, 0, 16), ({"v_biattention_id": [1]}, 16, 0)],
)
def test_layer_lists_must_agree_with_the_files(release: Path, lists: dict, missing: int, unexpected: int) -> None:
    edit_config(release, **lists)
    with pytest.raises(UserError) as caught:
        convert_fluid(release)
    assert (f"missing ({missing})" in str(caught.value)) == bool(missing)
    assert (f"unexpected ({unexpected})" in str(caught.value)) == bool(unexpected)


def test_free_head_prefix(release: Path) -> None:
    for kind in ("w_0", "b_0"):
        shutil.copyfile(release / "params" / f"vcr_qa_fc.{kind}", release / "params" / f"my_vcr_fc.{kind}")
    assert convert_fluid(release).state["heads.my_vcr.weight"].shape == (8, 1)


def test_damaged_files_are_all_named(release: Path) -> None:
    for name in ("match_fc.w_0", "word_embedding"):
        path = release / "params" / name
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"(?s)match_fc.w_0: not a complete.*word_embedding: not a complete"):
        convert_fluid(release)


def test_several_configurations_and_wrong_paths(release: Path, tmp_path: Path) -> None:
    shutil.copyfile(release / "ernie_vil.tiny.json", release / "other.json")
    with pytest.raises(UserError, match=r"several model configurations \(ernie_vil.tiny.json, other.json\)"):
        convert_fluid(release)
    with pytest.raises(UserError, match="is not a folder"):
        convert_fluid(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no parameter files; it holds: nothing"):
        convert_fluid(tmp_path / "empty")


def test_only_model_folders_are_replaced(release: Path, tmp_path: Path) -> None:
    converted = convert_fluid(release)
    out = tmp_path / "out"
    write_model_folder(converted, out)
    converted.state["text_pooler.bias"] = converted.state["text_pooler.bias"] + 1
    write_model_folder(converted, out)
    pooler = ErnieViLModel.from_pretrained(out).text_pooler.bias.numpy()
    np.testing.assert_array_equal(pooler, converted.state["text_pooler.bias"])
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_model_folder(converted, out)
    assert (out / "thesis.txt").read_text() == "mine"
