"""ONNX operators of transformers: attention in its forms, rotary embedding, caches of keys and values.

Scores are computed in the operands' dtype, as the standard says, with the scale's root on both operands of their product. What
a row may not see is minus infinity in a bias; a row that may see nothing gives zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.dims import DimLike
from ...ir.graph import Builder, Graph, Node
from ...ir.ops.compute import Conv
from ...ir.ops.control import Param, Scan
from ...ir.ops.shape import Concat, Iota, ScatterND, Slice
from ...ir.types import F32, I64, DType
from ...library import broadcast, expand, reduce, results_of, size_value, slice_axis, softmax, swish, transpose
from ...library import pad as pad_constant
from .context import Context, Operators, Subgraph
from .contraction import matmul
from .shape import gather

FULL_RANK = 4       # [batch, heads, length, head]
QK_RAW, QK_CAPPED, QK_BIASED, QK_SOFTMAX = range(4)


def default_scale(c: Context, head: DimLike) -> float:
    """What scores are multiplied by where the node says nothing."""
    if not isinstance(head, int):
        c.unsupported(f"the scale follows from the symbolic head size {head}", hint="bind the dim")
    return 1 / math.sqrt(c.positive(head, "the head size"))


def split_heads(c: Context, x: Node, heads: int, what: str) -> Node:
    """[batch, length, heads * head] -> [batch, heads, length, head]."""
    if x.rank != FULL_RANK - 1:
        c.fail(f"input '{what}' must have 3 axes, found {x.type}")
    if heads < 1 or isinstance(x.shape[2], int) and x.shape[2] % heads:
        c.fail(f"{heads} heads do not divide {x.type}")
    parts = c.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))
    return transpose(c.b, parts, (0, 2, 1, 3))


def join_heads(c: Context, x: Node) -> Node:
    batch, heads, length, head = x.shape
    return c.reshape(transpose(c.b, x, (0, 2, 1, 3)), (batch, length, heads * head))


def repeat_heads(c: Context, x: Node, heads: DimLike) -> Node:
    """Each head of keys or values as often as query heads share it."""
    if x.shape[1] == heads:
        return x
    own = x.shape[1]
    if not isinstance(own, int) or not isinstance(heads, int) or own == 0 or heads % own:
        c.fail(f"{heads} query heads are no multiple of {own} heads of keys")
    spread = broadcast(c.b, expand(c.b, x, (2,)), (x.shape[0], own, heads // own, *x.shape[2:]))
    return c.reshape(spread, (x.shape[0], heads, *x.shape[2:]))


def _scores(c: Context, q: Node, k: Node, scale: float | None) -> Node:
    wanted = scale if scale is not None else default_scale(c, q.shape[3])
    if not wanted >= 0:
        c.fail(f"the scale {scale} has no square root, by which Q and K are multiplied")
    factor = c.like(math.sqrt(wanted), q)
    return matmul(c, c.apply("mul", q, factor), transpose(c.b, c.apply("mul", k, factor), (0, 1, 3, 2)))


def _forbidden(c: Context, allowed: Node, dtype: DType) -> Node:
    """0 where allowed, else minus infinity."""
    return c.apply("select", allowed, c.constant(0, dtype), c.constant(-math.inf, dtype))


def _given_mask(c: Context, mask: Node, keys: DimLike, dtype: DType) -> Node:
    """The mask as a bias over all keys; keys that it does not cover are hidden."""
    c.check_rank("attn_mask", mask, 1, 2, 3, FULL_RANK)
    missing = keys - mask.shape[-1]
    if missing != 0:
        if isinstance(missing, int) and missing < 0:
            c.fail(f"the mask {mask.type} has more places than the {keys} keys")
        low, high = [0] * mask.rank, [0] * (mask.rank - 1)
        mask = pad_constant(c.b, mask, low, (*high, missing), False if mask.dtype.is_bool else -math.inf)
    return _forbidden(c, mask, dtype) if mask.dtype.is_bool else c.cast(mask, dtype)


def _visible(c: Context, queries: DimLike, keys: DimLike, offset: Node, causal: bool, left: int, right: int) -> Node | None:
    """Which keys a query at place i + offset may see: [queries, keys], or with the axes of the offset before."""
    row = c.apply("add", c.b.add(Iota(I64, (queries, 1), 0)), offset)
    column = c.b.add(Iota(I64, (1, keys), 1))
    conditions = []
    if causal:
        conditions.append(c.apply("le", column, row))
    if left >= 0:
        conditions.append(c.apply("le", c.apply("sub", row, column), c.constant(left, I64)))
    if right >= 0:
        conditions.append(c.apply("le", c.apply("sub", column, row), c.constant(right, I64)))
    visible = None
    for condition in conditions:
        visible = condition if visible is None else c.scalar("and", visible, condition)
    return visible


def _bias(c: Context, q: Node, keys: DimLike, mask: Node | None, past: DimLike, valid_keys: Node | None, causal: bool,
          left: int, right: int) -> Node | None:
    """What is added to the scores; None where every key is visible to all."""
    queries, dtype = q.shape[2], q.dtype
    bias = None if mask is None else _given_mask(c, mask, keys, dtype)
    offset = size_value(c.b, past)
    if valid_keys is not None:
        valid_keys = c.reshape(c.cast(valid_keys, I64), (q.shape[0], 1, 1, 1))
        offset = c.apply("sub", valid_keys, size_value(c.b, queries))
    parts = [_visible(c, queries, keys, offset, causal, left, right)]
    if valid_keys is not None:
        parts.append(c.apply("lt", c.b.add(Iota(I64, (1, 1, 1, keys), 3)), valid_keys))
    for visible in parts:
        if visible is not None:
            hidden = _forbidden(c, visible, dtype)
            bias = hidden if bias is None else c.apply("add", bias, hidden)
    return bias


def attention(c: Context, q: Node, k: Node, v: Node, mask: Node | None = None, past_key: Node | None = None,
              past_value: Node | None = None, nonpad_kv_seqlen: Node | None = None, *, is_causal: int = 0,
              kv_num_heads: int = 0, left_window_size: int = -1, q_num_heads: int = 0, qk_matmul_output_mode: int = 0,
              right_window_size: int = -1, scale: float | None = None, softcap: float = 0.0,
              softmax_precision: int | None = None) -> tuple[Node | None, ...]:
    """softmax(scores + bias) v. The cache goes before keys and values; heads of keys may serve several of the queries."""
    flat = q.rank == FULL_RANK - 1
    if flat:
        q, k, v = (split_heads(c, x, n, what) for x, n, what in ((q, q_num_heads, "Q"), (k, kv_num_heads, "K"),
                                                                (v, kv_num_heads, "V")))
    if not q.rank == k.rank == v.rank == FULL_RANK:
        c.fail(f"Q, K and V must have 3 or 4 axes each, found {q.type}, {k.type}, {v.type}")
    if (past_key is None) != (past_value is None):
        c.fail("past_key and past_value must be given together")
    c.check_rank("past_key", past_key, FULL_RANK)
    c.check_rank("past_value", past_value, FULL_RANK)
    past: DimLike = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = (c.b.add(Concat(2), c.cast(old, new.dtype), new) for old, new in ((past_key, k), (past_value, v)))
    present_key, present_value, keys = k, v, k.shape[2]
    bias = _bias(c, q, keys, mask, past, nonpad_kv_seqlen, bool(is_causal), left_window_size, right_window_size)
    k, v = repeat_heads(c, k, q.shape[1]), repeat_heads(c, v, q.shape[1])
    stages = [_scores(c, q, k, scale)]
    cap = c.like(softcap, q)
    stages.append(stages[0] if softcap == 0 else c.apply("mul", c.scalar("tanh", c.apply("div", stages[0], cap)), cap))
    stages.append(stages[1] if bias is None else c.apply("add", stages[1], bias))
    precise = stages[2] if not softmax_precision else c.cast(stages[2], c.dtype(softmax_precision))
    weights = softmax(c.b, precise, 3)
    if bias is not None:
        blind = c.apply("eq", reduce(c.b, "max", bias, (bias.rank - 1,), keep=True), c.like(-math.inf, bias))
        weights = c.apply("select", blind, c.like(0, weights), weights)
    weights = c.cast(weights, q.dtype)
    stages.append(weights)
    y = matmul(c, weights, v)
    if not QK_RAW <= qk_matmul_output_mode <= QK_SOFTMAX:
        c.fail(f"qk_matmul_output_mode must be 0 to 3, found {qk_matmul_output_mode}")
    return join_heads(c, y) if flat else y, present_key, present_value, stages[qk_matmul_output_mode]


def flex_attention(c: Context, q: Node, k: Node, v: Node, *, prob_mod: Subgraph | None = None,
                   score_mod: Subgraph | None = None, scale: float | None = None, softmax_precision: int = 0) -> Node:
    """Attention whose scores and weights go through subgraphs; float16 and bfloat16 weigh in float32."""
    if not q.rank == k.rank == v.rank == FULL_RANK:
        c.fail(f"Q, K and V must have 4 axes each, found {q.type}, {k.type}, {v.type}")
    scores = _scores(c, q, repeat_heads(c, k, q.shape[1]), scale)
    scores = c.cast(scores, c.dtype(softmax_precision)) if softmax_precision else c.wide(scores)
    computed = scores.dtype
    if score_mod is not None:
        scores = c.cast(c.tensor(score_mod.inline(c, (scores,))[0]), computed)
    weights = softmax(c.b, scores, 3)
    if prob_mod is not None:
        weights = c.cast(c.tensor(prob_mod.inline(c, (weights,))[0]), computed)
    return c.cast(matmul(c, weights, c.cast(repeat_heads(c, v, q.shape[1]), computed)), v.dtype)


# --- recurrent forms -------------------------------------------------------------------------------------------------

UPDATE_RULES = ("linear", "gated", "delta", "gated_delta")


def linear_attention(c: Context, query: Node, key: Node, value: Node, past_state: Node | None = None,
                     decay: Node | None = None, beta: Node | None = None, *, chunk_size: int = 64, kv_num_heads: int,
                     q_num_heads: int, scale: float = 0.0, update_rule: str = "gated_delta") -> tuple[Node, Node]:
    """A state [key head, value head] for each head that every step decays, writes k v^T into and reads by q, in float32."""
    c.choice(update_rule, "update_rule", UPDATE_RULES)
    gated, corrected = "gated" in update_rule, "delta" in update_rule
    if gated != (decay is not None) or corrected != (beta is not None):
        c.fail(f"update_rule {update_rule!r} {'needs' if gated else 'forbids'} decay and "
               f"{'needs' if corrected else 'forbids'} beta")
    q, k, v = (c.cast(split_heads(c, x, n, what), F32) for x, n, what in (
        (query, q_num_heads, "query"), (key, kv_num_heads, "key"), (value, kv_num_heads, "value")))
    batch, _, length, depth = k.shape
    if not isinstance(depth, int):
        c.unsupported(f"the head size {depth} must be known", hint="bind the dim")
    scale = scale if scale else default_scale(c, depth)
    sequences = [q, k, v]
    if decay is not None:
        heads = split_heads(c, decay, kv_num_heads, "decay")
        sequences.append(c.scalar("exp", c.cast(heads, F32)))
    c.check_rank("beta", beta, FULL_RANK - 1)
    if beta is not None:
        sequences.append(c.cast(split_heads(c, beta, int(beta.shape[2]), "beta"), F32))
    shape = (batch, kv_num_heads, depth, v.shape[3])
    state = c.full(0, F32, shape) if past_state is None else c.refine(c.cast(past_state, F32), shape)
    # steps first, and each element as a matrix: a row for q, columns for k and what decays, a row for v
    columns = (False, True, False, True, False) if gated else (False, True, False, False)
    steps = []
    for x, is_column in zip(sequences, columns):
        x = transpose(c.b, x, (2, 0, 1, 3))
        steps.append(c.reshape(x, (*x.shape, 1)) if is_column else c.reshape(x, (*x.shape[:3], 1, x.shape[3])))
    body = _linear_step(c, [state, *steps], gated, corrected, scale)
    final, outputs = results_of(c.b, c.b.add(Scan(body, 1, len(steps), length), state, *steps))
    outputs = c.reshape(outputs, (length, batch, q_num_heads, v.shape[3]))
    joined = c.reshape(transpose(c.b, outputs, (1, 0, 2, 3)), (batch, length, q_num_heads * v.shape[3]))
    return c.cast(joined, query.dtype), c.cast(final, query.dtype if past_state is None else past_state.dtype)


def _linear_step(c: Context, operands: Sequence[Node], gated: bool, corrected: bool, scale: float) -> Graph:
    b = Builder(c.b.loc)
    params = [b.add(Param(f"x{i}", x.dtype, x.shape if i == 0 else x.shape[1:])) for i, x in enumerate(operands)]
    inner = c.within(b)
    state, q, k, v, *rest = params
    if gated:
        state = inner.apply("mul", state, rest.pop(0))
    if corrected:
        # what the state holds at this key is replaced, not added to
        held = matmul(inner, transpose(b, k, (0, 1, 3, 2)), state)
        v = inner.apply("mul", rest.pop(0), inner.apply("sub", v, held))
    state = inner.apply("add", state, inner.apply("mul", k, v))
    read = matmul(inner, q, repeat_heads(inner, state, q.shape[1]))
    return Graph("step", params, (state, inner.apply("mul", read, inner.like(scale, read))))


def causal_conv_with_state(c: Context, x: Node, weight: Node, bias: Node | None = None, past_state: Node | None = None, *,
                           activation: str = "none") -> tuple[Node, Node]:
    """A depthwise convolution over what was before and the input; the last places are the next state."""
    c.choice(activation, "activation", ("none", "silu", "swish"))
    if x.rank != 3 or weight.rank != 3 or not isinstance(weight.shape[2], int) or not isinstance(weight.shape[0], int):
        c.fail(f"needs an input [batch, channels, length] and a weight [channels, 1, size], found {x.type}, {weight.type}")
    before, groups = weight.shape[2] - 1, weight.shape[0]
    x = c.refine(x, (x.shape[0], groups, x.shape[2]))
    state = c.full(0, x.dtype, (x.shape[0], groups, before)) if past_state is None else past_state
    padded = c.b.add(Concat(2), c.cast(c.refine(state, (x.shape[0], groups, before)), x.dtype), x)
    y = c.b.add(Conv((1,), ((0, 0),), (1,), (1,), groups), padded, weight)
    if bias is not None:
        y = c.apply("add", y, c.reshape(bias, (1, groups, 1)))
    if activation != "none":
        y = c.cast(swish(c.b, c.wide(y)), x.dtype)
    return y, slice_axis(c.b, padded, 2, x.shape[2], before)


# --- positions and caches --------------------------------------------------------------------------------------------


def rotary_embedding(c: Context, x: Node, cos_cache: Node, sin_cache: Node, position_ids: Node | None = None, *,
                     interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0) -> Node:
    """The first `rotary_embedding_dim` elements of each head, in pairs, turned by the angle of their place."""
    flat = x.rank == FULL_RANK - 1
    heads = split_heads(c, x, num_heads, "X") if flat else x
    if heads.rank != FULL_RANK or not isinstance(heads.shape[3], int):
        c.fail(f"needs an input of 3 or 4 axes and a known head size, found {x.type}")
    turned = rotary_embedding_dim or heads.shape[3]
    half = turned // 2
    angles = []
    for cache in (cos_cache, sin_cache):
        chosen = cache if position_ids is None else gather(c, cache, position_ids)
        chosen = c.refine(chosen, (heads.shape[0], heads.shape[2], half))
        angles.append(expand(c.b, chosen, (1,)))
    cos, sin = angles
    starts, step = ((0, 1), 2) if interleaved else ((0, half), 1)
    first, second = (_strided(c, heads, s, half, step) for s in starts)
    real = c.apply("sub", c.apply("mul", cos, first), c.apply("mul", sin, second))
    imaginary = c.apply("add", c.apply("mul", sin, first), c.apply("mul", cos, second))
    if interleaved:
        pairs = c.b.add(Concat(4), expand(c.b, real, (4,)), expand(c.b, imaginary, (4,)))
        parts = [c.reshape(pairs, (*heads.shape[:3], turned))]
    else:
        parts = [real, imaginary]
    if turned < heads.shape[3]:
        parts.append(slice_axis(c.b, heads, 3, turned, heads.shape[3] - turned))
    result = parts[0] if len(parts) == 1 else c.b.add(Concat(3), *parts)
    return join_heads(c, result) if flat else result


def _strided(c: Context, x: Node, start: int, count: int, step: int) -> Node:
    ones = (1,) * (x.rank - 1)
    op = Slice((0,) * (x.rank - 1) + (start,), (*x.shape[:-1], count), (*ones, step if count > 1 else 1))
    return c.b.add(op, x)


def tensor_scatter(c: Context, past: Node, update: Node, write_indices: Node | None = None, *, axis: int = -2,
                   mode: str = "linear") -> Node:
    """The update written into each batch's cache from its own place on; `circular` goes on at the front."""
    place = c.axis(axis, past.rank)
    c.choice(mode, "mode", ("linear", "circular"))
    if place == 0:
        c.fail("the axis of the batch cannot be written along")
    if update.rank != past.rank:
        c.fail(f"the update must have {past.rank} axes as the cache, found {update.type}")
    update = c.refine(update, [update.shape[a] if a == place else n for a, n in enumerate(past.shape)])
    batch, length, rest = past.shape[0], update.shape[place], past.shape[1:place]
    begin = c.full(0, I64, (batch,)) if write_indices is None else c.cast(write_indices, I64)
    grid = (batch, *rest, length)
    where = c.apply("add", c.reshape(begin, (batch, *[1] * (len(grid) - 1))), c.b.add(Iota(I64, grid, len(grid) - 1)))
    if mode == "circular":
        where = c.apply("mod", where, size_value(c.b, past.shape[place]))
    columns = [c.b.add(Iota(I64, grid, a)) for a in range(place)] + [where]
    indices = c.b.add(Concat(len(grid)), *[expand(c.b, x, (len(grid),)) for x in columns])
    return c.b.add(ScatterND("set"), past, indices, update)


OPS: Operators = {
    "Attention": attention, "CausalConvWithState": causal_conv_with_state, "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary_embedding, "TensorScatter": tensor_scatter,
}
PREVIEW: Operators = {"FlexAttention": flex_attention}
