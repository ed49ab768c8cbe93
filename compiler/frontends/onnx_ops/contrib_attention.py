"""Attention in the forms of the domain com.microsoft: Attention, MultiHeadAttention, GroupQueryAttention, RotaryEmbedding.

Each is brought to q, k, v of shape [batch, heads, length, head] and goes through one function. Masks of numbers are added to the
scores as `mask_filter_value`, as ONNX Runtime does, so a row that sees nothing is still a softmax; a causal mask hides for good.
Caches are values: an operator reads the past and gives the present, buffers that both share are not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.dims import DimLike, compare, dim_max
from ...ir.graph import Node
from ...ir.ops.shape import Concat, Iota
from ...ir.types import F32, I64
from ...library import broadcast, expand, rms_norm, size_value, slice_axis, softmax, squeeze, transpose
from ...library import pad as pad_constant
from .attention import FULL_RANK, default_scale, join_heads, repeat_heads, rotary_embedding, split_heads, tensor_scatter
from .context import Context, Operators
from .contraction import matmul
from .quantization import matmul_integer

MASK_FILTER = -10000.0
LOWEST = -3.4028234663852886e38


def _weighted(c: Context, q: Node, k: Node, v: Node, bias: Node | None, scale: float | None, softcap: float = 0.0,
              sink: Node | None = None) -> tuple[Node, Node]:
    """softmax(scale q k^T + bias) v and the scores, all in float32 at least. A sink is one more score that weighs nothing."""
    scale = scale if scale else default_scale(c, q.shape[3])
    dtype = v.dtype
    q, k, v = c.wide(q), c.wide(k), c.wide(v)
    k, v = repeat_heads(c, k, q.shape[1]), repeat_heads(c, v, q.shape[1])
    scores = matmul(c, q, transpose(c.b, k, (0, 1, 3, 2)))
    scores = c.apply("mul", scores, c.like(scale, scores))
    if softcap > 0:
        cap = c.like(softcap, scores)
        scores = c.apply("mul", c.scalar("tanh", c.apply("div", scores, cap)), cap)
    if bias is not None:
        scores = c.apply("add", scores, c.cast(bias, scores.dtype))
    if sink is None:
        weights = softmax(c.b, scores, 3)
    else:
        column = broadcast(c.b, c.cast(sink, scores.dtype), (*scores.shape[:3], 1))
        weights = slice_axis(c.b, softmax(c.b, c.b.add(Concat(3), scores, column), 3), 3, 0, scores.shape[3])
    return c.cast(join_heads(c, matmul(c, weights, v)), dtype), c.cast(scores, dtype)


def _hidden_where_not(c: Context, seen: Node, value: float) -> Node:
    return c.apply("select", seen, c.constant(0, F32), c.constant(value, F32))


def _added(c: Context, *parts: Node | None) -> Node | None:
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else c.apply("add", total, c.cast(part, total.dtype))
    return total


def _causal(c: Context, queries: DimLike, keys: DimLike) -> Node:
    """The queries are the last of the keys' places."""
    row = c.apply("add", c.b.add(Iota(I64, (queries, 1), 0)), size_value(c.b, keys - queries))
    return _hidden_where_not(c, c.apply("le", c.b.add(Iota(I64, (1, keys), 1)), row), LOWEST)


def _mask_bias(c: Context, mask: Node, batch: DimLike, keys: DimLike, filter_value: float) -> Node:
    """[batch, keys] or [batch, queries, keys] of flags, or where each row's keys end [batch], and begin [2 batch]."""
    if mask.rank in (2, 3):
        if mask.rank == 2 and mask.shape[1] == 1 and keys != 1:
            return c.constant(0, F32)            # a mask that says nothing
        seen = c.apply("gt", mask, c.like(0, mask))
        return _hidden_where_not(c, expand(c.b, seen, (1, 2) if mask.rank == 2 else (1,)), filter_value)
    if mask.rank != 1:
        c.unsupported(f"a mask {mask.type}; those of 1 to 3 axes are supported")
    place = c.b.add(Iota(I64, (1, 1, 1, keys), 3))
    starts = mask.shape[0] != batch
    if starts and mask.shape[0] != batch * 2:
        if compare(mask.shape[0], batch) in (-1, 1):
            c.fail(f"the mask {mask.type} is neither [batch] nor [2 batch], the batch is {batch}")
        mask, starts = c.refine(mask, (batch,)), False
    mask = c.cast(mask, I64)
    seen = c.apply("lt", place, c.reshape(slice_axis(c.b, mask, 0, 0, batch), (batch, 1, 1, 1)))
    if starts:
        begin = c.reshape(slice_axis(c.b, mask, 0, batch, batch), (batch, 1, 1, 1))
        seen = c.scalar("and", seen, c.broadcast_to(c.apply("ge", place, begin), seen.shape))
    return _hidden_where_not(c, seen, filter_value)


def _masked(c: Context, q: Node, k: Node, v: Node, mask: Node | None, bias: Node | None, causal: bool, scale: float | None,
            filter_value: float) -> tuple[Node, Node]:
    keys = k.shape[2]
    parts = [bias, None if mask is None else _mask_bias(c, mask, q.shape[0], keys, filter_value),
             _causal(c, q.shape[2], keys) if causal else None]
    return _weighted(c, q, k, v, _added(c, *parts), scale)


# --- Attention -------------------------------------------------------------------------------------------------------


def attention(c: Context, x: Node, weights: Node, bias: Node | None = None, mask_index: Node | None = None, past: Node | None = None,
              attention_bias: Node | None = None, past_sequence_length: Node | None = None, *, num_heads: int, do_rotary: int = 0,
              mask_filter_value: float = MASK_FILTER, past_present_share_buffer: int = 0,
              qkv_hidden_sizes: Sequence[int] | None = None, rotary_embedding_dim: int = 0, scale: float | None = None,
              unidirectional: int = 0) -> tuple[Node | None, ...]:
    """q, k and v are one product with the weights; past and present are keys and values stacked."""
    if do_rotary or past_present_share_buffer or past_sequence_length is not None:
        c.unsupported("rotary embedding inside and buffers shared by past and present are not supported")
    joined = matmul(c, x, weights)
    if bias is not None:
        joined = c.apply("add", joined, bias)
    return _self_attention(c, joined, num_heads, qkv_hidden_sizes, mask_index, past, attention_bias, bool(unidirectional), scale,
                           mask_filter_value)


def quantized_attention(c: Context, x: Node, weight: Node, bias: Node, x_scale: Node, weight_scale: Node,
                        mask_index: Node | None = None, x_zero_point: Node | None = None, weight_zero_point: Node | None = None,
                        past: Node | None = None, *, num_heads: int, do_rotary: int = 0, mask_filter_value: float = MASK_FILTER,
                        past_present_share_buffer: int = 0, scale: float | None = None,
                        unidirectional: int = 0) -> tuple[Node | None, ...]:
    """As Attention, the first product exact in integers."""
    if do_rotary or past_present_share_buffer:
        c.unsupported("rotary embedding inside and buffers shared by past and present are not supported")
    total = matmul_integer(c, x, weight, x_zero_point, weight_zero_point)
    factor = c.apply("mul", c.reshape(x_scale, ()), weight_scale)
    joined = c.apply("add", c.apply("mul", c.cast(total, factor.dtype), factor), bias)
    return _self_attention(c, joined, num_heads, None, mask_index, past, None, bool(unidirectional), scale, mask_filter_value)


def _self_attention(c: Context, joined: Node, heads: int, sizes: Sequence[int] | None, mask: Node | None, past: Node | None,
                    bias: Node | None, causal: bool, scale: float | None, filter_value: float) -> tuple[Node | None, ...]:
    c.check_rank("input", joined, 3)
    c.check_rank("past", past, 5)
    widths: Sequence[DimLike] = tuple(sizes) if sizes else (joined.shape[2] // 3,) * 3
    if len(widths) != 3 or compare(widths[0] + widths[1] + widths[2], joined.shape[2]) in (-1, 1):
        c.fail(f"the widths {tuple(widths)} of q, k and v do not make up {joined.type}")
    q, k, v = (split_heads(c, part, heads, "input") for part in _split(c, joined, widths))
    if past is not None:
        before = [squeeze(c.b, slice_axis(c.b, past, 0, place, 1), (0,)) for place in range(2)]
        k, v = (_after(c, old, new) for old, new in zip(before, (k, v)))
    present = c.b.add(Concat(0), expand(c.b, k, (0,)), expand(c.b, v, (0,))) if c.wants(1) else None
    y, _ = _masked(c, q, k, v, mask, bias, causal, scale, filter_value)
    return y, present


def _after(c: Context, past: Node, new: Node) -> Node:
    """The places of the past, then the new ones."""
    c.check_rank("past", past, FULL_RANK)
    past = c.refine(past, (*new.shape[:2], past.shape[2], new.shape[3]))
    return c.b.add(Concat(2), past, new)


def _split(c: Context, x: Node, widths: Sequence[DimLike]) -> list[Node]:
    """Consecutive parts of the last axis."""
    found: list[Node] = []
    start: DimLike = 0
    for width in widths:
        found.append(slice_axis(c.b, x, x.rank - 1, start, width))
        start = start + width
    return found


# --- MultiHeadAttention ----------------------------------------------------------------------------------------------


def multi_head_attention(c: Context, query: Node, key: Node | None = None, value: Node | None = None, bias: Node | None = None,
                         key_padding_mask: Node | None = None, attention_bias: Node | None = None, past_key: Node | None = None,
                         past_value: Node | None = None, past_sequence_length: Node | None = None,
                         cache_indirection: Node | None = None, *, num_heads: int, mask_filter_value: float = MASK_FILTER,
                         scale: float | None = None, unidirectional: int = 0) -> tuple[Node | None, ...]:
    if past_sequence_length is not None or cache_indirection is not None:
        c.unsupported("buffers shared by past and present are not supported")
    q, k, v = _separated(c, query, key, value, bias, num_heads)
    if (past_key is None) != (past_value is None):
        c.fail("past_key and past_value must be given together")
    if past_key is not None and past_value is not None:
        k, v = _after(c, past_key, k), _after(c, past_value, v)
    y, scores = _masked(c, q, k, v, key_padding_mask, attention_bias, bool(unidirectional), scale, mask_filter_value)
    return y, k, v, scores


def _separated(c: Context, query: Node, key: Node | None, value: Node | None, bias: Node | None, heads: int) -> list[Node]:
    """q, k, v [batch, heads, length, head] from what may be packed: [batch, length, heads, 3, head] or keys with values."""
    if key is None:
        if query.rank != 5:
            c.fail(f"without a key the query must be [batch, length, heads, 3, head], found {query.type}")
        parts = [_packed(c, query, place) for place in range(3)]
    elif key.rank == 5:
        parts = [query, _packed(c, key, 0), _packed(c, key, 1)]
    elif value is None:
        c.fail(f"the key {key.type} needs a value")
    else:
        parts = [query, key, value]
    for x, what in zip(parts, ("query", "key", "value")):
        c.check_rank(what, x, 3, FULL_RANK)
    widths = [x.shape[2] if x.rank == 3 else x.shape[1] * x.shape[3] for x in parts]
    c.check_rank("bias", bias, 1)
    biases: list[Node | None] = [None] * 3 if bias is None else list(_split(c, bias, widths))
    found = []
    for x, shift, what in zip(parts, biases, ("query", "key", "value")):
        shifted = x if shift is None or x.rank != 3 else c.apply("add", x, shift)
        x = split_heads(c, shifted, heads, what) if x.rank == 3 else c.refine(x, (x.shape[0], heads, *x.shape[2:]))
        if shift is not None and shifted.rank == 4:
            x = c.apply("add", x, c.reshape(shift, (1, x.shape[1], 1, x.shape[3])))
        found.append(x)
    return found


def _packed(c: Context, x: Node, place: int) -> Node:
    """[batch, length, heads, count, head] -> one of the count, [batch, heads, length, head]."""
    return transpose(c.b, squeeze(c.b, slice_axis(c.b, x, 3, place, 1), (3,)), (0, 2, 1, 3))


# --- GroupQueryAttention ---------------------------------------------------------------------------------------------


def group_query_attention(c: Context, query: Node, key: Node | None, value: Node | None, past_key: Node | None,
                          past_value: Node | None, seqlens_k: Node, total_sequence_length: Node, cos_cache: Node | None = None,
                          sin_cache: Node | None = None, position_ids: Node | None = None, attention_bias: Node | None = None,
                          head_sink: Node | None = None, k_scale: Node | None = None, v_scale: Node | None = None,
                          q_norm_weight: Node | None = None, k_norm_weight: Node | None = None, *, num_heads: int, kv_num_heads: int,
                          causal: int = 1, do_rotary: int = 0, k_quant_type: str = "NONE", kv_cache_bit_width: int = 0,
                          local_window_size: int = -1, qk_norm_epsilon: float = 1e-6, qk_output: int = 0, rotary_interleaved: int = 0,
                          scale: float | None = None, sliding_window_cache: int = 0, smooth_softmax: int = 0, softcap: float = 0.0,
                          v_quant_type: str = "NONE") -> tuple[Node | None, ...]:
    """Row b of the batch sees the seqlens_k[b] + 1 - length places of its past, then its own; the present holds both."""
    if k_scale is not None or v_scale is not None or (k_quant_type, v_quant_type) != ("NONE", "NONE") or kv_cache_bit_width:
        c.unsupported("quantized caches of keys and values are not supported")
    if sliding_window_cache or qk_output:
        c.unsupported("caches of a sliding window and the output of the scores are not supported")
    for what, cache in (("past_key", past_key), ("past_value", past_value), ("attention_bias", attention_bias)):
        c.check_rank(what, cache, FULL_RANK)
    q, k, v = _grouped(c, query, key, value, num_heads, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = (c.cast(rms_norm(c.b, c.wide(x), c.wide(w), (3,), qk_norm_epsilon), x.dtype)
                for x, w in ((q, q_norm_weight), (k, k_norm_weight)))
    capacity, total = _capacity(c, q.shape[2], past_key, total_sequence_length)
    before = _past_lengths(c, seqlens_k, q.shape[0], q.shape[2], past_key, total)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            c.fail("do_rotary needs cos_cache and sin_cache")
        places = _places(c, before, q.shape[2]) if position_ids is None else position_ids
        c.check_rank("position_ids", places, 1, 2)
        places = c.broadcast_to(places, (q.shape[0], q.shape[2]))
        q, k = (rotary_embedding(c, x, cos_cache, sin_cache, places, interleaved=rotary_interleaved,
                                 rotary_embedding_dim=_rotary_width(c, cos_cache)) for x in (q, k))
    k, v = (_present(c, old, new, before, capacity) for old, new in ((past_key, k), (past_value, v)))
    bias = _group_bias(c, q, k.shape[2], before, seqlens_k, bool(causal), local_window_size)
    if attention_bias is not None:
        missing = k.shape[2] - attention_bias.shape[3]
        bias = c.apply("add", bias, pad_constant(c.b, attention_bias, (0, 0, 0, 0), (0, 0, 0, missing)))
    sink = c.reshape(head_sink, (1, num_heads, 1, 1)) if head_sink is not None else \
        c.full(0, F32, (1, 1, 1, 1)) if smooth_softmax == 1 else None
    y, _ = _weighted(c, q, k, v, bias, scale, softcap, sink)
    return y, k, v


def _grouped(c: Context, query: Node, key: Node | None, value: Node | None, heads: int, key_heads: int) -> list[Node]:
    if key is not None and value is not None:
        return [split_heads(c, x, n, what) for x, n, what in ((query, heads, "query"), (key, key_heads, "key"),
                                                              (value, key_heads, "value"))]
    if key is not None or value is not None:
        c.fail("key and value must be given together")
    c.check_rank("query", query, 3)
    head = query.shape[2] // (c.positive(heads, "num_heads") + 2 * c.positive(key_heads, "kv_num_heads"))
    parts = _split(c, query, (head * heads, head * key_heads, head * key_heads))
    return [split_heads(c, x, n, "query") for x, n in zip(parts, (heads, key_heads, key_heads))]


def _rotary_width(c: Context, cache: Node) -> int:
    c.check_rank("cos_cache", cache, 2)
    half = cache.shape[1]
    if not isinstance(half, int):
        c.unsupported(f"the width of the rotary cache {cache.type} must be known")
    return 2 * half


def _capacity(c: Context, length: DimLike, past: Node | None, total: Node) -> tuple[DimLike, Node]:
    """How many places the present has: the past's, or as many as there are keys where those are more. Where data says how many there
    are, what the model declares of the present, else the past and the query together; the call checks it."""
    own = length if past is None else past.shape[2]
    value = c.value(total)
    if value is not None and value.size == 1:
        size: DimLike = value.reshape(-1).tolist()[0]
        return dim_max(own, size), size_value(c.b, size)
    total = c.cast(c.reshape(total, ()), I64)
    declared = c.declared[1] if len(c.declared) > 1 else None
    known = declared[2] if declared is not None and len(declared) == FULL_RANK else None
    found = length if past is None else own + length if known is None else known
    grown = c.scalar("max", size_value(c.b, own), total)
    return found, c.require(total, c.scalar("eq", grown, size_value(c.b, found)))


def _past_lengths(c: Context, seqlens_k: Node, batch: DimLike, length: DimLike, past: Node | None, total: Node) -> Node:
    """How much of its past each row sees; nothing where the query is all there is."""
    if past is None:
        return c.full(0, I64, (batch,))
    earlier = c.apply("sub", c.cast(_for_rows(c, seqlens_k, batch), I64), size_value(c.b, length - 1))
    first = c.scalar("eq", size_value(c.b, length), total)
    return c.apply("select", first, c.constant(0, I64), earlier)


def _for_rows(c: Context, x: Node, batch: DimLike) -> Node:
    """[batch] or [batch, 1] as [batch]."""
    return c.refine(c.reshape(x, (x.shape[0],)) if x.rank == 2 else x, (batch,))


def _places(c: Context, before: Node, length: DimLike) -> Node:
    """[batch, length]: the place of each query in its sequence."""
    return c.apply("add", expand(c.b, before, (1,)), c.b.add(Iota(I64, (1, length), 1)))


def _present(c: Context, past: Node | None, new: Node, before: Node, capacity: DimLike) -> Node:
    """The past's first places, the new ones after them, zeros to the end of the cache."""
    batch, heads, _, head = new.shape
    if past is None:
        return c.refine(new, (batch, heads, capacity, head))
    past = c.refine(past, (batch, heads, past.shape[2], head))
    base = pad_constant(c.b, past, (0, 0, 0, 0), (0, 0, capacity - past.shape[2], 0))
    kept = c.apply("lt", c.b.add(Iota(I64, (1, 1, capacity, 1), 2)), c.reshape(before, (batch, 1, 1, 1)))
    base = c.apply("select", kept, base, c.like(0, base))
    return tensor_scatter(c, base, c.cast(new, base.dtype), before, axis=2)


def _group_bias(c: Context, q: Node, keys: DimLike, before: Node, seqlens_k: Node, causal: bool, window: int) -> Node:
    batch, length = q.shape[0], q.shape[2]
    row = c.reshape(_places(c, before, length), (batch, 1, length, 1))
    column = c.b.add(Iota(I64, (1, 1, 1, keys), 3))
    if not causal:
        ends = c.apply("le", column, c.reshape(c.cast(_for_rows(c, seqlens_k, batch), I64), (batch, 1, 1, 1)))
        return _hidden_where_not(c, ends, -math.inf)
    seen = c.apply("le", column, row)
    if window > 0:
        near = c.apply("gt", column, c.apply("sub", row, c.constant(window, I64)))
        seen = c.scalar("and", seen, near)
    return _hidden_where_not(c, seen, -math.inf)


# --- RotaryEmbedding -------------------------------------------------------------------------------------------------


def rotary(c: Context, x: Node, position_ids: Node, cos_cache: Node, sin_cache: Node, *, interleaved: int = 0,
           is_packed_batching: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0, scale: float = 1.0) -> Node:
    """As the standard's, with its inputs in another order; one position is where every row begins."""
    if is_packed_batching or scale != 1.0:
        c.unsupported("packed batches and a scale are not supported")
    c.check_rank("input", x, 3, FULL_RANK)
    c.check_rank("position_ids", position_ids, 1, 2)
    length = x.shape[1] if x.rank == 3 else x.shape[2]
    width = c.positive(rotary_embedding_dim or _rotary_width(c, cos_cache), "the number of elements that turn")
    if x.rank == 3 and not num_heads:
        if not isinstance(x.shape[2], int):
            c.unsupported(f"the number of heads of {x.type} is not known", hint="bind the dim")
        num_heads = x.shape[2] // width
    places = c.cast(position_ids, I64)
    if places.rank == 1:
        places = c.apply("add", c.reshape(places, (1, 1)), c.b.add(Iota(I64, (1, length), 1)))
    places = c.broadcast_to(places, (x.shape[0], length))
    return rotary_embedding(c, x, cos_cache, sin_cache, places, interleaved=interleaved, num_heads=num_heads,
                            rotary_embedding_dim=width)


OPS: Operators = {
    "Attention": attention, "GroupQueryAttention": group_query_attention, "MultiHeadAttention": multi_head_attention,
    "QAttention": quantized_attention, "RotaryEmbedding": rotary,
}
