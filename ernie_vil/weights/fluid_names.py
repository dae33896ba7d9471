"""Parameter names of the original ERNIE-ViL program and of this package, in both directions."""

from __future__ import annotations

import re
from typing import Optional

_LINEAR = {".w_0": "weight", ".b_0": "bias"}
_NORM = {"_scale": "weight", "_bias": "bias"}


def _table(names: dict[str, str], endings: dict[str, str]) -> dict[str, str]:
    return {f"{a}{tail}": f"{b}.{end}" for a, b in names.items() for tail, end in endings.items()}


_WHOLE_NAMES = {
    "word_embedding": "text_embeddings.word.weight",
    "pos_embedding": "text_embeddings.position.weight",
    "sent_embedding": "text_embeddings.segment.weight",
    **_table(
        {"pre_encoder_layer_norm": "text_embeddings.norm", "vl_pre_encoder_layer_norm": "region_embeddings.norm"}, _NORM
    ),
    **_table(
        {
            "image_emb": "region_embeddings.feature",
            "image_loc": "region_embeddings.location",
            "pooled_fc_text": "text_pooler",
            "pooled_fc_image": "region_pooler",
            "match_fc": "heads.match",
        },
        _LINEAR,
    ),
    "vqa_fc_w_0": "heads.vqa.hidden.weight",
    "vqa_fc_b_0": "heads.vqa.hidden.bias",
    "vqa_fc_w_1": "heads.vqa.output.weight",
    "vqa_fc_b_1": "heads.vqa.output.bias",
    "cls_seq_label_vl_out_w": "heads.region.weight",
    "cls_seq_label_vl_out_b": "heads.region.bias",
}

_LAYER_PARTS = {
    **_table(
        {f"multi_head_att_{part}_fc": f"attention.{part}" for part in ("query", "key", "value", "output")}, _LINEAR
    ),
    **_table({"ffn_fc_0": "feed_forward.inner", "ffn_fc_1": "feed_forward.outer"}, _LINEAR),
    **_table({"post_att_layer_norm": "attention_norm", "post_ffn_layer_norm": "feed_forward_norm"}, _NORM),
}

# (stack, has the vl_ prefix) in the original -> (stack, stream) here.
_STACKS = {
    ("layer", False): ("text_layers", ""),
    ("vlayer", False): ("region_layers", ""),
    ("colayer", False): ("co_layers", "text."),
    ("colayer", True): ("co_layers", "region."),
}

_WHOLE_NAMES_BACK = {ours: original for original, ours in _WHOLE_NAMES.items()}
_LAYER_PARTS_BACK = {ours: original for original, ours in _LAYER_PARTS.items()}
_STACKS_BACK = {ours: original for original, ours in _STACKS.items()}

_INDEX = r"(0|[1-9]\d*)"
_ORIGINAL_LAYER = re.compile(rf"encoder_(layer|vlayer|colayer)_{_INDEX}_(vl_)?(.+)")
_OUR_LAYER = re.compile(rf"(text_layers|region_layers|co_layers)\.{_INDEX}\.((?:text|region)\.)?(.+)")
# The choice heads of VCR carry the task's prefix, which is free.
_ORIGINAL_HEAD = re.compile(r"(\w+)_fc(\.w_0|\.b_0)")
_OUR_HEAD = re.compile(r"heads\.(\w+)\.(weight|bias)")


def to_ours(original: str) -> Optional[str]:
    """Our name of one of the original's parameters, or ``None`` if it has no such parameter."""
    if original in _WHOLE_NAMES:
        return _WHOLE_NAMES[original]
    layer = _ORIGINAL_LAYER.fullmatch(original)
    if layer:
        stack, index, prefix, part = layer.groups()
        place = _STACKS.get((stack, prefix is not None))
        if place is None or part not in _LAYER_PARTS:
            return None
        return f"{place[0]}.{index}.{place[1]}{_LAYER_PARTS[part]}"
    head = _ORIGINAL_HEAD.fullmatch(original)
    # "region" is the name here of the head that the original calls cls_seq_label_vl_out.
    if head and head[1] != "region" and not head[1].startswith("encoder_"):
        return f"heads.{head[1]}.{_LINEAR[head[2]]}"
    return None


def to_original(ours: str) -> str:
    """The original's name of one of our parameters. Raises ``KeyError`` for a name that the original does not have."""
    if ours in _WHOLE_NAMES_BACK:
        return _WHOLE_NAMES_BACK[ours]
    layer = _OUR_LAYER.fullmatch(ours)
    if layer:
        stack, index, stream, part = layer.groups()
        kind, prefixed = _STACKS_BACK[(stack, stream or "")]
        return f"encoder_{kind}_{index}_{'vl_' if prefixed else ''}{_LAYER_PARTS_BACK[part]}"
    head = _OUR_HEAD.fullmatch(ours)
    if head is None:
        raise KeyError(ours)
    return f"{head[1]}_fc.{'w_0' if head[2] == 'weight' else 'b_0'}"
