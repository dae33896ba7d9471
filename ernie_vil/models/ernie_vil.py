"""ERNIE-ViL (v1): a text stream and a region stream joined by co-attention layers.

Source: Yu et al., "ERNIE-ViL: Knowledge Enhanced Vision-Language Representations Through Scene Graph", AAAI 2021,
section 3.1, and the behaviour of the fine-tuning program that its authors released (Fluid 1.8).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from ernie_vil import pickles
from ernie_vil.errors import UserError
from ernie_vil.models.account import KeyAccount, apply_state

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": F.tanh}
LAYER_NORM_EPSILON = 1e-5
MASKED = -10000.0
CONFIG_FILE = "config.json"
STATE_FILE = "model_state.pdparams"


@dataclasses.dataclass
class ErnieViLConfig:
    """Sizes of the model, with the names of the original's JSON file. The defaults are the base model.

    The inner width of the text feed-forward is always ``4 * hidden_size``. The number of layers follows from the
    two lists: co-attention block ``k`` comes after ``t_biattention_id[k]`` text layers and ``v_biattention_id[k]``
    region layers, and one more layer of each stream closes the network. ``co_hidden_size`` is the width of the
    co-attention projections and of the pooled outputs. ``feature_size`` is the width of a region feature; the
    original passes it on the command line. The original demands ``num_hidden_layers``, ``co_intermediate_size``,
    ``task_type_vocab_size``, ``type_vocab_size``, ``class_size`` and ``class_attr_size`` and never uses them; they
    are kept in ``unused`` with any other key, so that a file survives a round trip.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    sent_type_vocab_size: int = 4
    v_hidden_size: int = 1024
    v_num_attention_heads: int = 8
    v_intermediate_size: int = 1024
    co_hidden_size: int = 1024
    co_num_attention_heads: int = 8
    t_biattention_id: Sequence[int] = (6, 7, 8, 9, 10, 11)
    v_biattention_id: Sequence[int] = (0, 1, 2, 3, 4, 5)
    feature_size: int = 2048
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    unused: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises :class:`UserError` naming every key whose value cannot be built."""
        faults = []
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("v_hidden_size", "v_num_attention_heads"),
            ("co_hidden_size", "co_num_attention_heads"),
        ):
            if getattr(self, width) <= 0 or getattr(self, heads) <= 0:
                faults.append(f"{width} and {heads} must be positive")
            elif getattr(self, width) % getattr(self, heads):
                faults.append(f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}")
        text, region = list(self.t_biattention_id), list(self.v_biattention_id)
        if not text or len(text) != len(region):
            faults.append("t_biattention_id and v_biattention_id must be lists of the same length, at least 1")
        elif text != sorted(text) or region != sorted(region) or min(text + region) < 0:
            faults.append("t_biattention_id and v_biattention_id must ascend from 0 or more")
        if self.hidden_act not in ACTIVATIONS:
            faults.append(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        tables = ("vocab_size", "max_position_embeddings", "sent_type_vocab_size")
        for name in (*tables, "v_intermediate_size", "feature_size", "initializer_range"):
            if getattr(self, name) <= 0:
                faults.append(f"{name} {getattr(self, name)} must be positive")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                faults.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        if faults:
            raise UserError("model configuration: " + "; ".join(faults))
        self.t_biattention_id, self.v_biattention_id = text, region

    @property
    def text_layers(self) -> int:
        return self.t_biattention_id[-1] + 1

    @property
    def region_layers(self) -> int:
        return self.v_biattention_id[-1] + 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model configuration") -> ErnieViLConfig:
        """Build from the original's JSON keys. Raises :class:`UserError` for missing or unusable keys."""
        fields = {field.name: field for field in dataclasses.fields(cls) if field.name != "unused"}
        required = set(fields) - {"feature_size"}
        missing = sorted(required - set(values))
        if missing:
            raise UserError(f"{where}: missing keys: {', '.join(missing)}")
        known = {}
        for name, field in fields.items():
            if name not in values:
                continue
            value, default = values[name], field.default
            fits = (
                isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
                if isinstance(default, tuple)
                else isinstance(value, str)
                if isinstance(default, str)
                else isinstance(value, (int, float) if isinstance(default, float) else int) and type(value) is not bool
            )
            if not fits:
                raise UserError(f"{where}: {name}: {value!r} is not of the kind {default!r}")
            known[name] = value
        try:
            return cls(**known, unused={k: v for k, v in values.items() if k not in fields})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> ErnieViLConfig:
        """Read a JSON file with the original's keys. Raises :class:`UserError` naming the file."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot read the model configuration: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{path}: not a JSON file: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: a model configuration is a JSON object, this is a {type(values).__name__}")
        return cls.from_dict(values, str(path))

    def replace(self, overrides: Mapping[str, Any], where: str = "model configuration") -> ErnieViLConfig:
        """A copy with other values. Raises :class:`UserError` for keys that are none of this configuration."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "unused"]
        for key in overrides:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, 1, 0.5)
                raise UserError(f"{where}: {key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        return self.from_dict({**self.to_dict(), **overrides}, where)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {**values.pop("unused"), **values}

    def to_json(self, path: str | os.PathLike) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def large_config() -> ErnieViLConfig:
    """The large model as its authors released it."""
    return ErnieViLConfig(
        hidden_size=1024,
        num_attention_heads=16,
        v_num_attention_heads=16,
        v_intermediate_size=4096,
        co_num_attention_heads=16,
        t_biattention_id=(18, 19, 20, 21, 22, 23),
    )


def activation_bytes(config: ErnieViLConfig, rows: int, length: int, regions: int) -> int:
    """About what training in float32 keeps for the backward pass of ``rows`` texts of ``length`` and their ``regions``.

    Per layer and position: 12 tensors of the stream's width (projections, context, sums, norms, dropped copies), 2 of
    the inner width, and per head 3 numbers for every pair of positions (scores, weights, dropped weights).
    """
    text, region, joined = config.hidden_size, config.v_hidden_size, config.co_hidden_size
    heads, region_heads, joined_heads = (
        config.num_attention_heads,
        config.v_num_attention_heads,
        config.co_num_attention_heads,
    )
    text_layer = length * (12 * text + 8 * text) + 3 * heads * length**2
    region_layer = regions * (12 * region + 2 * config.v_intermediate_size) + 3 * region_heads * regions**2
    co_layer = (
        length * (8 * text + 8 * text + 4 * joined)
        + regions * (8 * region + 2 * config.v_intermediate_size + 4 * joined)
        + 6 * joined_heads * length * regions
    )
    layers = config.text_layers * text_layer + config.region_layers * region_layer
    return 4 * rows * (layers + len(config.t_biattention_id) * co_layer)


class ErnieViLOutput(NamedTuple):
    """``text_hidden [B, L, H]``, ``region_hidden [B, N, V]``, ``text_pooled [B, C]``, ``region_pooled [B, C]``.

    Hidden states at masked positions are not meaningful: every key is biased alike there.
    """

    text_hidden: Tensor
    region_hidden: Tensor
    text_pooled: Tensor
    region_pooled: Tensor


def truncated_normal(std: float) -> paddle.ParamAttr:
    # Paddle's cut-offs are absolute values, not multiples of the deviation: its defaults would cut nothing here.
    return paddle.ParamAttr(initializer=nn.initializer.TruncatedNormal(0.0, std, -2.0 * std, 2.0 * std))


def linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    return nn.Linear(inputs, outputs, weight_attr=truncated_normal(std))


class Attention(nn.Layer):
    """Multi-head attention of ``hidden`` over ``memory``; queries are scaled before the product."""

    def __init__(self, size: int, memory_size: int, width: int, heads: int, dropout: float, std: float) -> None:
        super().__init__()
        self.heads, self.head_size, self.dropout = heads, width // heads, dropout
        self.query = linear(size, width, std)
        self.key = linear(memory_size, width, std)
        self.value = linear(memory_size, width, std)
        self.output = linear(width, size, std)

    def forward(self, hidden: Tensor, memory: Tensor, bias: Optional[Tensor]) -> Tensor:
        """``hidden [B, Q, size]``, ``memory [B, K, memory_size]``, ``bias [B, 1, Q, K]`` -> ``[B, Q, size]``."""
        query = self._split(self.query(hidden) * self.head_size**-0.5)
        scores = paddle.matmul(query, self._split(self.key(memory)), transpose_y=True)
        scores = scores if bias is None else scores + bias
        weights = F.dropout(F.softmax(scores), self.dropout, training=self.training)
        context = paddle.matmul(weights, self._split(self.value(memory))).transpose([0, 2, 1, 3])
        return self.output(context.flatten(2))

    def _split(self, projected: Tensor) -> Tensor:
        return projected.reshape([0, 0, self.heads, self.head_size]).transpose([0, 2, 1, 3])


class FeedForward(nn.Layer):
    def __init__(self, size: int, inner: int, activation: str, std: float) -> None:
        super().__init__()
        self.inner, self.outer = linear(size, inner, std), linear(inner, size, std)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(self.activation(self.inner(hidden)))


class TransformerLayer(nn.Layer):
    """Attention and feed-forward, each followed by dropout, residual and layer norm (post-norm)."""

    def __init__(
        self, config: ErnieViLConfig, size: int, inner: int, memory_size: int | None, width: int, heads: int
    ) -> None:
        super().__init__()
        std = config.initializer_range
        self.attention = Attention(size, memory_size or size, width, heads, config.attention_probs_dropout_prob, std)
        self.attention_norm = nn.LayerNorm(size, LAYER_NORM_EPSILON)
        self.feed_forward = FeedForward(size, inner, config.hidden_act, std)
        self.feed_forward_norm = nn.LayerNorm(size, LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, memory: Tensor, bias: Optional[Tensor]) -> Tensor:
        return self.after_attention(hidden, self.attention(hidden, memory, bias))

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.dropout(attended))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class CoLayer(nn.Layer):
    """Text attends to regions and regions to text, both from the inputs as they came in (not one after the other)."""

    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__()
        text, region = config.hidden_size, config.v_hidden_size
        width, heads = config.co_hidden_size, config.co_num_attention_heads
        self.text = TransformerLayer(config, text, 4 * text, region, width, heads)
        self.region = TransformerLayer(config, region, config.v_intermediate_size, text, width, heads)

    def forward(
        self, text: Tensor, region: Tensor, text_to_region: Tensor, region_to_text: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.text(text, region, text_to_region), self.region(region, text, region_to_text)


class TextEmbeddings(nn.Layer):
    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__()
        attr = truncated_normal(config.initializer_range)
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, weight_attr=attr)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size, weight_attr=attr)
        self.segment = nn.Embedding(config.sent_type_vocab_size, config.hidden_size, weight_attr=attr)
        self.norm = nn.LayerNorm(config.hidden_size, LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        total = self.word(input_ids) + self.position(position_ids) + self.segment(token_type_ids)
        return self.dropout(self.norm(total))


class RegionEmbeddings(nn.Layer):
    def __init__(self, config: ErnieViLConfig) -> None:
        super().__init__()
        self.feature = linear(config.feature_size, config.v_hidden_size, config.initializer_range)
        self.location = linear(5, config.v_hidden_size, config.initializer_range)
        self.norm = nn.LayerNorm(config.v_hidden_size, LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, locations: Tensor, repeats: int | Tensor = 1) -> Tensor:
        embedded = self.norm(self.feature(features) + self.location(locations))
        # Projected once per image, then repeated for its texts; dropout is drawn for every row as in the original.
        return self.dropout(repeat_rows(embedded, repeats))


def repeat_rows(tensor: Tensor, repeats: int | Tensor) -> Tensor:
    """``[n, ...] -> [n * repeats, ...]``, each row followed by its copies; a tensor names the rows instead."""
    if isinstance(repeats, Tensor):
        return tensor.index_select(repeats)
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, axis=0)


def attention_bias(query_mask: Tensor, key_mask: Tensor) -> Tensor:
    """0 where both positions are valid, -10000 elsewhere (padded queries too, as in the original): ``[B, 1, Q, K]``."""
    both = paddle.matmul(query_mask.unsqueeze(2), key_mask.unsqueeze(1))
    return ((1.0 - both) * MASKED).unsqueeze(1)


class ErnieViLModel(nn.Layer):
    """The two-stream backbone, with the task heads that were asked for in ``heads`` (a ``LayerDict``, often empty).

    Set ``recompute = True`` to trade time for memory in training: each layer's activations are computed again in the
    backward pass.
    """

    def __init__(self, config: ErnieViLConfig, heads: Optional[Mapping[str, nn.Layer]] = None) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.text_embeddings = TextEmbeddings(config)
        self.region_embeddings = RegionEmbeddings(config)
        text, region = config.hidden_size, config.v_hidden_size
        self.text_layers = nn.LayerList(
            TransformerLayer(config, text, 4 * text, None, text, config.num_attention_heads)
            for _ in range(config.text_layers)
        )
        self.region_layers = nn.LayerList(
            TransformerLayer(config, region, config.v_intermediate_size, None, region, config.v_num_attention_heads)
            for _ in range(config.region_layers)
        )
        self.co_layers = nn.LayerList(CoLayer(config) for _ in config.t_biattention_id)
        self.text_pooler = linear(text, config.co_hidden_size, config.initializer_range)
        self.region_pooler = linear(region, config.co_hidden_size, config.initializer_range)
        self.heads = nn.LayerDict(dict(heads or {}))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        region_features: Tensor,
        region_locations: Tensor,
        region_mask: Tensor,
        region_rows: Optional[Tensor] = None,
    ) -> ErnieViLOutput:
        """Encode texts ``[B, L]`` (int64 x3, mask 0/1) with regions ``[n, N, F]``, ``[n, N, 5]``, mask ``[n, N]``.

        Row 0 of the regions is the whole image. ``region_rows`` int64 ``[B]`` says which image each text goes with.
        Without it ``B`` must be a multiple of ``n`` (``ValueError`` otherwise) and consecutive texts share an image
        (the four choices of a VCR question). Either way an image is projected once.
        """
        texts, images = input_ids.shape[0], region_features.shape[0]
        if region_rows is None and texts % images:
            raise ValueError(f"{texts} texts cannot be shared out evenly over {images} images")
        repeats = texts // images if region_rows is None else region_rows
        dtype = self.text_pooler.weight.dtype
        text_mask = attention_mask.astype(dtype)
        region_mask = repeat_rows(region_mask.astype(dtype), repeats)
        text_bias, region_bias = attention_bias(text_mask, text_mask), attention_bias(region_mask, region_mask)
        text_to_region = attention_bias(text_mask, region_mask)
        region_to_text = text_to_region.transpose([0, 1, 3, 2])

        text = self.text_embeddings(input_ids, token_type_ids, position_ids)
        region = self.region_embeddings(region_features, region_locations, repeats)
        text_done = region_done = 0
        for co_layer, text_stop, region_stop in zip(
            self.co_layers, self.config.t_biattention_id, self.config.v_biattention_id
        ):
            text = self._run(self.text_layers, text_done, text_stop, text, text_bias)
            region = self._run(self.region_layers, region_done, region_stop, region, region_bias)
            text, region = self._call(co_layer, text, region, text_to_region, region_to_text)
            text_done, region_done = text_stop, region_stop
        text = self._run(self.text_layers, text_done, len(self.text_layers), text, text_bias)
        region = self._run(self.region_layers, region_done, len(self.region_layers), region, region_bias)
        text_pooled = F.relu(self.text_pooler(text[:, 0]))
        region_pooled = F.relu(self.region_pooler(region[:, 0]))
        return ErnieViLOutput(text, region, text_pooled, region_pooled)

    def _run(self, layers: nn.LayerList, start: int, stop: int, hidden: Tensor, bias: Tensor) -> Tensor:
        for index in range(start, stop):
            hidden = self._call(layers[index], hidden, hidden, bias)
        return hidden

    def _call(self, layer: nn.Layer, *inputs: Tensor) -> Any:
        return recompute(layer, *inputs) if self.recompute and self.training else layer(*inputs)

    def learning_rate_exponents(self) -> dict[str, int]:
        """Exponent ``k`` of ``layer_decay ** k`` for every parameter that layer-wise decay touches.

        With ``T`` text layers before the region stream begins and ``n`` layers in both streams, text layer ``i``
        stands at ``i`` (before ``T``) or ``T + 2 (i - T) + 1``, region layer ``j`` at ``T + 2 j + 1``, co-attention
        layer ``j`` at ``T + 2 j``; ``k = n - position``. Text tables get ``n + 1``, region projections ``n - T + 1``;
        norms of the embeddings, poolers and heads keep the full rate. The original takes ``T`` and ``n`` from the
        command line with the large model's values as defaults; here they follow from the model's depth.
        """
        text_only = self.config.text_layers - self.config.region_layers
        total = self.config.text_layers + self.config.region_layers
        exponents = {}
        for name, _ in self.named_parameters():
            part, rest = name.split(".", 1)
            if part == "text_embeddings" and not rest.startswith("norm"):
                exponents[name] = total + 1
            elif part == "region_embeddings" and not rest.startswith("norm"):
                exponents[name] = total - text_only + 1
            elif part in ("text_layers", "region_layers", "co_layers"):
                index = int(rest.split(".", 1)[0])
                if part == "co_layers":
                    position = text_only + 2 * index
                elif part == "region_layers":
                    position = text_only + 2 * index + 1
                else:
                    position = index if index < text_only else text_only + 2 * (index - text_only) + 1
                exponents[name] = total - position
        return exponents

    def decay_excluded(self) -> set[str]:
        """Names of the parameters that weight decay leaves out: norms and biases.

        The two biases of the VQA head are decayed: the original excludes names that end in ``.b_0``, ``_b`` or
        ``_bias``, and theirs end in ``_b_0``.
        """
        return {
            name
            for name, _ in self.named_parameters()
            if (name.endswith(".bias") or "norm" in name) and not name.startswith("heads.vqa.")
        }

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``config.json`` and ``model_state.pdparams`` (backbone and heads) into ``folder``."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.config.to_json(target / CONFIG_FILE)
        paddle.save(self.state_dict(), str(target / STATE_FILE))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        heads: Optional[Callable[[ErnieViLConfig], Mapping[str, nn.Layer]]] = None,
        *,
        fresh_heads: bool = False,
        strict: bool = True,
        overrides: Optional[Mapping[str, Any]] = None,
    ) -> ErnieViLModel:
        """Open a folder written by :meth:`save_pretrained` or by ``tools/convert_weights.py``.

        ``heads`` builds the heads that are wanted; with ``fresh_heads`` those that the folder lacks keep their initial
        values, otherwise they are missing keys. Heads of the folder that nobody asked for are left out; ``overrides``
        replaces values of its configuration (dropout, say). Every key is accounted for in ``model.account``; missing,
        unexpected and mis-shaped keys raise :class:`UserError` unless ``strict`` is false.
        """
        source = Path(folder)
        if not source.is_dir():
            raise UserError(
                f"{source}: no such model folder (with {CONFIG_FILE} and {STATE_FILE}). Nothing is downloaded; the "
                "README says where released weights are; ernie_vil.create_model builds named models without any"
            )
        config = ErnieViLConfig.from_json(source / CONFIG_FILE).replace(overrides or {}, str(source / CONFIG_FILE))
        model = cls(config, heads(config) if heads else None)
        model.load(source / STATE_FILE, fresh_heads=fresh_heads, strict=strict)
        return model

    def load(self, path: str | os.PathLike, *, fresh_heads: bool = False, strict: bool = True) -> KeyAccount:
        """Fill the parameters from a ``.pdparams`` file; see :meth:`from_pretrained` for the rules."""
        return self.fill(pickles.load_state(path), str(path), fresh_heads=fresh_heads, strict=strict)

    def fill(
        self, state: Mapping[str, np.ndarray], where: str, *, fresh_heads: bool = False, strict: bool = True
    ) -> KeyAccount:
        """Fill the parameters from arrays by name; ``where`` names their source. See :meth:`from_pretrained`."""
        wanted = tuple(f"heads.{name}." for name in self.heads)
        unused = [key for key in state if key.startswith("heads.") and not key.startswith(wanted)]
        used = {key: value for key, value in state.items() if key not in unused}
        absent = ("heads.",) if fresh_heads else ()
        self.account = apply_state(self, used, may_be_absent=absent, where=where, strict=strict)
        self.account.ignored.update(dict.fromkeys(unused, "a head that is not asked for"))
        return self.account
