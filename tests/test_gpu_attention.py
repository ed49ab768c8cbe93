"""Attention on a GPU's matrix units: one kernel, against the graph in float64, in the loop interpreter and as CUDA source in the emulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Iota
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, I64, DType

# Probabilities and results are rounded to their dtype: results of up to 4 within some units of float16 (2^-10) or bfloat16 (2^-7).
# Larger scores, whose own rounding to float16 is up to 2^-7, move probabilities by twice as much.
NEAR, NEAR_LARGE_SCORES, NEAR_BFLOAT16 = 5e-3, 1e-2, 4e-2


def attention(b: Builder, q: Node, k: Node, v: Node, mask: Node | None = None) -> Node:
    scores = lib.matmul(b, q, lib.transpose(b, k, (0, 1, 3, 2)))
    scores = lib.apply(b, "mul", scores, lib.constant(b, 0.125, q.dtype))
    if mask is not None:
        scores = lib.apply(b, "add", scores, mask)
    return lib.matmul(b, lib.softmax(b, scores, 3), v)


def graph_of(dtype: DType, queries: tuple, keys: tuple, mask: tuple | None = None, name: str = "attention") -> Graph:
    b = Builder()
    params = [b.add(Param(f"x{i}", dtype, shape)) for i, shape in enumerate((queries, keys, (*keys[:-1], keys[-1]), *([mask] if mask else [])))]
    return Graph(name, params, [attention(b, *params)])


def expected(values: list[np.ndarray]) -> np.ndarray:
    q, k, v, *mask = (x.astype(np.float64) for x in values)
    scores = q @ np.swapaxes(k, -1, -2) * 0.125 + (mask[0] if mask else 0.0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v


def is_one_kernel(program: Program) -> bool:
    """Whether products of scores and of values stand in one kernel."""
    return any(sum(isinstance(s, MatmulTile) for s in walk(k.body)) >= 2 and "packed" not in k.name or
               len({s.accumulator for s in walk(k.body) if isinstance(s, MatmulTile)}) >= 2 for k in program.kernels())


CASES = [  # queries, keys, mask
    (F16, (1, 2, 64, 64), (1, 2, 128, 64), None),
    (F16, (2, 1, 70, 64), (2, 1, 140, 64), (70, 140)),
    (BF16, (1, 1, 17, 32), (1, 1, 200, 32), None),
    (F16, (1, 1, 40, 128), (1, 1, 64, 128), (1, 1, 1, 64)),
]


@needs_compiler
def test_attention_of_many_kinds() -> None:
    programs, inputs = [], []
    for number, (dtype, queries, keys, mask) in enumerate(CASES):
        rng = np.random.default_rng(1)
        # as few multiprocessors as make panels wide, for some: parts of these are taken one after the other
        program = lowered(graph_of(dtype, queries, keys, mask), multiprocessors=1 if number % 2 else 108)
        assert is_one_kernel(program)
        values = [rng.standard_normal(shape).astype(dtype.numpy) for shape in (queries, keys, keys)]
        if mask is not None:
            hidden = np.triu(np.full(mask[-2:], -np.inf), 3) if len(mask) == 2 else np.where(np.arange(mask[-1]) % 3 == 0, -np.inf, 0.0).reshape(mask)
            values.append(hidden.astype(dtype.numpy))
        programs.append(program)
        inputs.append(values)
    emulated = EmulatedPrograms(programs)
    for number, values in enumerate(inputs):
        tolerance = NEAR if CASES[number][0] == F16 else NEAR_BFLOAT16
        found, = emulated.run(number, values)
        np.testing.assert_allclose(found.astype(np.float64), expected(values), atol=tolerance, err_msg=str(CASES[number]))


def test_open_sizes_and_rows_without_scores() -> None:
    """In the interpreter, which sees races and reads of what nothing stored; a row of which all keys are hidden is NaN."""
    batch, rows, keys = symbol("B"), symbol("M"), symbol("K", 1)
    program = lowered(graph_of(F16, (batch, 1, rows, 16), (batch, 1, keys, 16), (rows, keys)))
    assert is_one_kernel(program)
    rng = np.random.default_rng(2)
    for b, m, k in ((1, 3, 5), (1, 65, 70)):
        values = [rng.standard_normal(shape).astype(np.float16) for shape in ((b, 1, m, 16), (b, 1, k, 16), (b, 1, k, 16))]
        mask = np.zeros((m, k), np.float16)
        mask[1] = -np.inf
        values.append(mask)
        found, = run_program(program, values)
        np.testing.assert_allclose(found.astype(np.float64), expected(values), atol=NEAR)
        assert np.isnan(found[:, :, 1]).all() and np.isfinite(found[:, :, 0]).all()


def masked_graph(hide: Callable[[Builder, Node, Node], Node], shape: tuple, keys: tuple, dtype: DType = F16,
                 added: bool = False) -> Graph:
    """Attention whose scores are minus infinity, or have it added, where `hide(b, row, key)` is not true; heads of keys are repeated for those of queries."""
    b = Builder()
    q, k, v = (b.add(Param(name, dtype, size)) for name, size in zip("qkv", (shape, keys, keys)))
    times = shape[1] // keys[1]
    if times > 1:
        spread = (*keys[:2], times, *keys[2:])
        k, v = (lib.reshape(b, lib.broadcast(b, lib.reshape(b, x, (*keys[:2], 1, *keys[2:])), spread), (keys[0], shape[1], *keys[2:])) for x in (k, v))
    scores = lib.apply(b, "mul", lib.matmul(b, q, lib.transpose(b, k, (0, 1, 3, 2))), lib.constant(b, 0.125, dtype))
    row, key = (b.add(Iota(I64, scores.shape, axis)) for axis in (2, 3))
    hidden = lib.broadcast(b, lib.constant(b, float("-inf"), dtype), scores.shape)
    seen = hide(b, row, key)
    if added:
        scores = lib.apply(b, "add", scores, lib.apply(b, "select", seen, lib.broadcast(b, lib.constant(b, 0.0, dtype), scores.shape), hidden))
    else:
        scores = lib.apply(b, "select", seen, scores, hidden)
    return Graph("masked", [n for n in Graph("", [], [scores, v]).nodes() if isinstance(n.op, Param)], [lib.matmul(b, lib.softmax(b, scores, 3), v)])


def moved(b: Builder, x: Node, by: int) -> Node:
    return lib.apply(b, "add", x, lib.constant(b, by, I64))


# how a causal mask may be spelled; and by how many keys it is moved
MASKS: list[tuple[Callable[[Builder, Node, Node], Node], int]] = [
    (lambda b, row, key: lib.apply(b, "ge", row, key), 0),
    (lambda b, row, key: lib.apply(b, "lt", key, moved(b, row, 71)), 70),
    (lambda b, row, key: lib.apply(b, "not", lib.apply(b, "gt", moved(b, key, -5), row)), 5),
    (lambda b, row, key: lib.apply(b, "and", lib.apply(b, "ge", lib.apply(b, "sub", row, key), lib.constant(b, -20, I64)),
                                   lib.apply(b, "ge", moved(b, key, 300), row)), 20)]


@pytest.mark.parametrize("hide, by", MASKS)
def test_keys_that_a_causal_mask_hides_are_not_looked_at(hide: Callable[[Builder, Node, Node], Node], by: int) -> None:
    """With values that are NaN behind the last key that a block of rows sees: they would show."""
    rows, keys = symbol("M"), symbol("K", 1)
    program = lowered(masked_graph(hide, (1, 1, rows, 16), (1, 1, keys, 16), added=by == 70))
    assert is_one_kernel(program)
    rng = np.random.default_rng(3)
    m, k = 40, 200
    q, keys_given, v = (rng.standard_normal((1, 1, n, 16)).astype(np.float16) for n in (m, k, k))
    mask = np.where(np.arange(k) <= np.arange(m)[:, None] + by, 0.0, -np.inf)
    wanted = expected([q, keys_given, v, mask])
    v[:, :, -(-(m + by) // 64) * 64:] = np.nan
    found, = run_program(program, [q, keys_given, v])
    np.testing.assert_allclose(found.astype(np.float64), wanted, atol=NEAR)


def test_what_is_no_causal_mask_hides_no_key() -> None:
    row, key = np.arange(20)[:, None], np.arange(100)
    masks: list[tuple[Callable[[Builder, Node, Node], Node], np.ndarray]] = [
        (lambda b, row, key: lib.apply(b, "le", row, key), row <= key),
        (lambda b, row, key: lib.apply(b, "or", lib.apply(b, "ge", row, key), lib.apply(b, "ge", key, lib.constant(b, 80, I64))),
         (row >= key) | (key >= 80))]
    for hide, seen in masks:
        program = lowered(masked_graph(hide, (1, 1, symbol("M"), 16), (1, 1, symbol("K", 1), 16)))
        q, k, v = (np.random.default_rng(4).standard_normal((1, 1, n, 16)).astype(np.float16) for n in (20, 100, 100))
        found, = run_program(program, [q, k, v])
        np.testing.assert_allclose(found.astype(np.float64), expected([q, k, v, np.where(seen, 0.0, -np.inf)]), atol=NEAR)


@pytest.mark.parametrize("rows", [64, 40])
def test_rows_of_several_axes(rows: int) -> None:
    """Heads as rows of one product: a block of rows lies within one head, or not."""
    b = Builder()
    q, k, v = (b.add(Param(name, F16, shape)) for name, shape in (("q", (1, 2, rows, 16)), ("k", (1, symbol("K", 1), 16)), ("v", (1, symbol("K", 1), 16))))
    scores = b.add(Dot((3,), (2,), (0,), (0,)), q, k)
    row, key = (b.add(Iota(I64, scores.shape, axis)) for axis in (2, 3))
    scores = lib.apply(b, "select", lib.apply(b, "ge", row, key), scores, lib.broadcast(b, lib.constant(b, float("-inf"), F16), scores.shape))
    program = lowered(Graph("rows", [q, k, v], [b.add(Dot((3,), (1,), (0,), (0,)), lib.softmax(b, scores, 3), v)]))
    assert is_one_kernel(program)
    values = [np.random.default_rng(6).standard_normal(shape).astype(np.float16) for shape in ((1, 2, rows, 16), (1, 130, 16), (1, 130, 16))]
    mask = np.where(np.arange(130) <= np.arange(rows)[:, None], 0.0, -np.inf)
    wanted = expected([values[0] * np.float16(8), *(np.repeat(x[:, None], 2, 1) for x in values[1:]), mask])
    np.testing.assert_allclose(run_program(program, values)[0].astype(np.float64), wanted, atol=NEAR_LARGE_SCORES)


@needs_compiler
def test_heads_that_share_keys() -> None:
    """Keys are packed once for all heads that read them, and values not copied; with a causal mask, in both dtypes."""
    programs, inputs = [], []
    for dtype, rows, keys, size in ((F16, 90, 140, 32), (BF16, 64, 128, 64)):  # panels with zeros, and whole ones that are only transposed
        hide = MASKS[0][0] if dtype == F16 else lambda b, row, key: lib.apply(b, "ge", row, lib.constant(b, 0, I64))
        graph = masked_graph(hide, (2, 6, rows, size), (2, 2, keys, size), dtype)
        program = lowered(graph)
        assert is_one_kernel(program)
        _, attending = program.kernels()
        panels = -(-keys // 64) * 64
        assert [b.shape[0] for b in attending.buffers[-3:-1]] == [2 * 2 * panels * size, 2 * 2 * keys * size]
        programs.append(program)
        inputs.append([np.random.default_rng(5).standard_normal(p.tensor.static_shape).astype(dtype.numpy) for p in graph.params])
    emulated = EmulatedPrograms(programs)
    for number, (q, k, v) in enumerate(inputs):
        mask = np.where(np.arange(140) <= np.arange(90)[:, None], 0.0, -np.inf) if number == 0 else np.zeros((64, 128))
        wanted = expected([q, np.repeat(k, 3, 1), np.repeat(v, 3, 1), mask])
        found, = emulated.run(number, [q, k, v])
        np.testing.assert_allclose(found.astype(np.float64), wanted, atol=NEAR if number == 0 else NEAR_BFLOAT16)


def test_heads_that_share_keys_by_broadcasting() -> None:
    """As NumPy's matmul repeats them: keys have one place where queries have three."""
    b = Builder()
    q, k, v = (b.add(Param(name, F16, (1, 2, heads, n, 16))) for name, heads, n in (("q", 3, 20), ("k", 1, 70), ("v", 1, 70)))
    scores = lib.matmul(b, q, lib.transpose(b, k, (0, 1, 2, 4, 3)))
    program = lowered(Graph("shared", [q, k, v], [lib.matmul(b, lib.softmax(b, scores, 4), v)]))
    assert is_one_kernel(program) and program.kernels()[-1].buffers[-3].shape[0] == 2 * 2 * 64 * 16
    values = [np.random.default_rng(7).standard_normal(x.tensor.static_shape).astype(np.float16) for x in (q, k, v)]
    wanted = expected([values[0] * np.float16(8), *values[1:]])
    np.testing.assert_allclose(run_program(program, values)[0].astype(np.float64), wanted, atol=NEAR_LARGE_SCORES)
