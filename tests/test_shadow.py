"""Bounds of legal evaluations: correct passes and code stay within them, errors do not, and they are narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from comparing import assert_identical
from compiled import compiled, run_compiled

from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.backends.llvm.math import MATH
from tilewright.fuzz import shadow_scalars
from tilewright.fuzz.generate import DEFAULT_DTYPES, random_graph, random_inputs
from tilewright.fuzz.graphs import signs_differ
from tilewright.fuzz.shadow import Shadow, compare, shadow
from tilewright.fuzz.shadow_ops import trace_op
from tilewright.fuzz.shadow_values import FORMATS, Traced, fits, lattice, settled
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.errors import IndexFailure
from tilewright.ir.graph import Array, Binding, Builder, Graph, Node, Op, Sample
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import ArgReduce, ArgSort, Bitcast, Cast, Conv, Cumulative, Dot, PackedConv, PackedDot, Reduce, Sort
from tilewright.ir.ops.control import If, MakeTuple, Param, Scan, While
from tilewright.ir.ops.shape import Take
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.printer import format_graph
from tilewright.ir.types import ARRAY_DTYPES, BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, DType, TensorType, TupleType, Type
from tilewright.library_quantized import dequantize
from tilewright.options import Environment, Options
from tilewright.passes.pack_operands import pack_operands
from tilewright.pipeline import PASSES, run_passes

DTYPES = (DEFAULT_DTYPES, (F16, BF16, F32, BOOL, I32), (F64, F32, I64, BOOL), (I8, U8, I16, U16, F32), ARRAY_DTYPES)
CAPS = (Caps(), Caps(vector_bits=512, vector_registers=32), Caps(vector_bits=128, vector_registers=16, has_fma=False))
PRECISIONS = ("default", "plain", "strict")
QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)


def graph_of(types: Sequence[TensorType], make: Callable[..., Node | Sequence[Node]]) -> Graph:
    b = Builder()
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    made = make(b, *params)
    return Graph("case", params, [made] if isinstance(made, Node) else list(made))


def vector(dtype: DType = F32, *shape: int) -> TensorType:
    return TensorType(dtype, shape or (4,))


def floats(*values: float, dtype: DType = F32) -> Array:
    return np.array(values).astype(dtype.numpy)


def unary(function: str, dtype: DType = F32) -> Graph:
    return graph_of([vector(dtype)], lambda b, x: lib.scalar(b, function, x))


def binary(function: str, dtype: DType = F32) -> Graph:
    return graph_of([vector(dtype), vector(dtype)], lambda b, x, y: lib.scalar(b, function, x, y))


# --- no false report ---------------------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[Graph, list[Array], str, Caps]:
    """A random graph with whole, special or normal inputs, and how to compile it."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, int(rng.integers(3, 12)), DTYPES[seed % len(DTYPES)])
    kind = seed // len(DTYPES) % 3
    inputs, _ = random_inputs(graph, rng, special=kind == 1)
    if kind == 2:
        inputs = [rng.standard_normal(x.shape).astype(x.dtype) if x.dtype in FORMATS else x for x in inputs]
    return graph, inputs, PRECISIONS[seed % 2 * 2 if seed % 7 else 1], CAPS[seed % len(CAPS)]


def after_passes(graph: Graph, precision: str, caps: Caps) -> Iterator[tuple[str, Graph]]:
    for step in PASSES:
        made = step.run(graph, Options(precision=precision), caps)
        if made is not graph:
            yield step.name, made
        graph = made


def check_passes(seeds: range) -> None:
    """The results after each pass are within the bounds, and the bounds say something."""
    shares, sizes = [], []
    for seed in seeds:
        graph, inputs, precision, caps = draw(seed)
        expected = shadow(graph, inputs, precision=precision)
        with np.errstate(all="ignore"):
            assert_identical(expected.values, evaluate_graph(graph, inputs))
            for name, made in after_passes(graph, precision, caps):
                problem = compare(expected, evaluate_graph(made, inputs))
                assert problem is None, f"seed {seed}, {precision}, after {name}: {problem}\n{format_graph(graph)}"
        shares.append(expected.checked)
        sizes.extend(relative_bounds(expected))
    assert np.mean(shares) > 0.96
    assert np.median(sizes) < 40


def relative_bounds(expected: Shadow) -> list[float]:
    """The bounds of inexact elements in units in the last place, the median of each result."""
    found = []
    for x in expected.results:
        if x.bound is None or not x.is_float:
            continue
        place = np.isfinite(x.value) & (x.bound > 0) & (x.bound < np.inf) & (x.value != 0)
        if place.any():
            found.append(float(np.median(x.bound[place] / np.abs(x.wide()[place]))) / FORMATS[x.value.dtype].epsilon)
    return found


def test_passes_stay_within_the_bounds() -> None:
    check_passes(range(60))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1600, 100))
def test_passes_stay_within_the_bounds_on_many_graphs(start: int) -> None:
    check_passes(range(start, start + 100))


def check_code(seeds: range) -> None:
    for seed in seeds:
        graph, inputs, precision, _ = draw(seed)
        expected = shadow(graph, inputs, precision=precision)
        problem = compare(expected, run_compiled(compiled(graph, precision=precision), inputs))
        assert problem is None, f"seed {seed}, {precision}: {problem}\n{format_graph(graph)}"


def test_machine_code_stays_within_the_bounds() -> None:
    check_code(range(5000, 5006))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(6000, 6100, 20))
def test_machine_code_stays_within_the_bounds_on_many_graphs(start: int) -> None:
    check_code(range(start, start + 20))


@pytest.mark.parametrize("function", ["fmin", "fmax", "max", "min"])
def test_zeros_of_both_signs_tie(function: str) -> None:
    """Which of them comes out hangs on how the operands lie in memory, also behind what moves or computes; nothing ties without them."""
    zeros, signed, others = floats(0, 0, 1, 2), floats(-0.0, 1, 1, 2), floats(0, 1, 1, 2)
    graph = graph_of([vector()] * 3, lambda b, x, y, z: [made := lib.scalar(b, function, x, y), lib.scalar(b, "mul", made, z), z])
    for second, tied in ((signed, True), (others, False)):
        expected = shadow(graph, [zeros, second, others], precision="strict")
        assert [x.tied for x in expected.results] == [tied, tied, False]
        flipped = [np.where(x == 0, -x, x) for x in expected.values]
        assert (signs_differ(expected, expected.values, [*flipped[:2], expected.values[2]]) == "") == tied
        assert signs_differ(expected, expected.values, flipped)
    reduced = graph_of([vector()], lambda b, x: lib.reduce(b, function[-3:], x, [0]))
    assert [x.tied for x in shadow(reduced, [floats(0, -0.0, 1, 2)]).results] == [True]


# --- every op: operands anywhere within their bounds lead to results within the bound -----------------------------------

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 7.5, 40.0, -1e3, np.inf, -np.inf, np.nan, 6e4, 1e-7)


def some_floats(shape: Sequence[int], dtype: DType, rng: np.random.Generator) -> Array:
    values = (rng.integers(-4, 5, shape), rng.standard_normal(shape), rng.choice(SPECIAL, shape), rng.uniform(0, 1, shape),
              np.exp(rng.uniform(-20, 20, shape)) * rng.choice([-1, 1], shape))[int(rng.integers(5))]
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype.numpy)


def some_operand(kind: TensorType, allowed: tuple[int, int] | None, rng: np.random.Generator) -> Traced:
    """Exact, inexact, tainted in places."""
    shape, dtype = kind.static_shape, kind.dtype
    if not dtype.is_float:
        low, high = allowed or ((0, 1) if dtype.is_bool else (-8, 8))
        bound = np.where(rng.random(shape) < 0.2, np.inf, 0.0) if allowed is None and rng.random() < 0.3 else None
        return Traced(rng.integers(low, high + 1, shape).astype(dtype.numpy), settled(bound))
    value = some_floats(shape, dtype, rng)
    size = np.abs(np.where(np.isfinite(value), value, 1).astype(np.float64))
    error = FORMATS[dtype.numpy].epsilon * float(rng.choice([1, 30, 1000])) * (size + rng.integers(2)) * rng.random(shape)
    made = (None, error, np.where(rng.random(shape) < 0.5, error, 0), np.where(rng.random(shape) < 0.2, np.inf, error))
    return Traced(value, settled(made[int(rng.integers(4))]))


def somewhere_within(x: Traced, dtype: DType, rng: np.random.Generator) -> Array:
    """What another evaluation may have in place of the operand."""
    if x.bound is None:
        return x.value
    if not dtype.is_float:
        return np.where(x.bound > 0, rng.integers(0, 2 if dtype.is_bool else 100, x.value.shape), x.value).astype(x.value.dtype)
    reach = np.where(np.isinf(x.bound), 0.0, x.bound)
    wide = x.wide()
    moved = (wide + reach * rng.choice([-1, 1, -0.5, 0.5, 0], x.value.shape)).astype(x.value.dtype)
    with np.errstate(invalid="ignore"):
        kept = (np.abs(moved.astype(np.float64) - wide) > reach) | (reach == 0)
    return np.where(np.isinf(x.bound), some_floats(x.value.shape, dtype, rng), np.where(kept, x.value, moved))


@pytest.mark.parametrize("op", [op for op in ALL_OPS if op is not Bitcast and op.samples()], ids=lambda op: op.__name__)
def test_operands_within_their_bounds_give_results_within_theirs(op: type[Op]) -> None:
    for number, sample in enumerate(op.samples()):
        for seed in range(12):
            rng = np.random.default_rng((number, seed))
            dtype = (F16, BF16, F32, F64)[seed % 4]
            kinds = [TensorType(dtype, t.shape) if t.dtype == F32 else t for t in sample.types]
            if isinstance(sample.op, (PackedConv, PackedDot)) and sample.op.tf32:
                dtype, kinds = F32, list(sample.types)
            ranges = (*sample.ranges, *[None] * len(kinds))
            operands = [some_operand(t, r, rng) for t, r in zip(kinds, ranges)]
            with np.errstate(all="ignore"):
                expected = trace_op(sample.op, operands, {}, PRECISIONS[seed % 3])
                others = [somewhere_within(x, t.dtype, rng) for x, t in zip(operands, kinds)]
                found = np.asarray(sample.op.evaluate(others, {}))
            expected.signless = True
            problem = compare(Shadow([expected], ["result"], False), [found])
            assert problem is None, f"{sample.op}, {dtype}, seed {seed}: {problem}"


def test_products_that_may_round_their_operands() -> None:
    """What is rounded lies within the bounds, and outside of those where nothing is; numbers of few bits have none."""
    rng, types = np.random.default_rng(4), (TensorType(F32, (5, 40)), TensorType(F32, (40, 40)))
    graph, single = (graph_of(types, make) for make in (lambda b, x, w: lib.matmul(b, x, lib.matmul(b, w, w)), lib.matmul))
    marked, one_marked = (pack_operands(g, Options(matmul_precision="tf32"), capabilities_of("sm_80")) for g in (graph, single))
    for make in (rng.standard_normal, lambda shape: rng.integers(-4, 5, shape) * 2.0 ** 120):
        inputs = [make(shape).astype(np.float32) for shape in ((5, 40), (40, 40))]
        with np.errstate(all="ignore"):
            found = [np.asarray(x) for x in evaluate_graph(marked, inputs)]
            allowed = shadow(graph, inputs, tf32=True)
        assert compare(allowed, found) is None
    inputs = [rng.standard_normal((5, 40)).astype(np.float32), rng.integers(-4, 5, (40, 40)).astype(np.float32)]
    found = [np.asarray(x) for x in evaluate_graph(one_marked, inputs)]
    assert compare(shadow(single, inputs, tf32=True), found) is None and compare(shadow(single, inputs), found) is not None
    assert not any(bound.any() for bound in shadow(graph, [np.rint(x) for x in inputs], precision="plain", tf32=True).bounds)
    weights = lib.constant(Builder(), rng.integers(-4, 5, (40, 40)).astype(np.float32))
    scaled = graph_of(types[:1], lambda b, x: lib.apply(b, "mul", lib.matmul(b, x, weights), lib.constant(b, 0.7, F32)))
    folded = run_passes(scaled, Options(matmul_precision="tf32"), capabilities_of("sm_80"), QUIET, until="fold_packed")[0]
    found = [np.asarray(x) for x in evaluate_graph(folded, [np.rint(inputs[0])])]
    assert compare(shadow(scaled, [np.rint(inputs[0])], tf32=True), found) is None  # the factor is in the weights, and rounded there
    assert compare(shadow(scaled, [np.rint(inputs[0])]), found) is not None


def test_bounds_cover_what_functions_promise() -> None:
    """The compiler's own error, and NumPy's, which is at most 4 units."""
    table = MATH.items()
    assert max(max(row.ulps) for name, row in table) + 4 <= shadow_scalars.ULPS
    assert not shadow_scalars.unknown_functions()


# --- errors are reported -------------------------------------------------------------------------------------------------


def changed(array: Array, place: Any, value: Any) -> Array:
    copy = np.array(array)
    copy[place] = value
    return copy


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_element_off_by_two_bounds_is_reported(dtype: DType, precision: str) -> None:
    graph = graph_of([vector(dtype, 8, 5)], lambda b, x: lib.softmax(b, x, 1))
    expected = shadow(graph, [np.random.default_rng(0).standard_normal((8, 5)).astype(dtype.numpy)], precision=precision)
    value, bound = expected.values[0], expected.bounds[0]
    assert (bound > 0).all() and (bound < 40 * FORMATS[dtype.numpy].epsilon).all()
    wrong = changed(value, (3, 2), float(value[3, 2]) + 2 * bound[3, 2] + 2 * FORMATS[dtype.numpy].epsilon * float(value[3, 2]))
    assert compare(expected, [value]) is None
    assert "at [3, 2], expected" in str(compare(expected, [wrong]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_arithmetic_of_parameters_has_no_bound(dtype: DType, precision: str) -> None:
    """Nothing reorders it, so a sum that rounds once with its product is wrong in every precision."""
    graph = graph_of([vector(dtype, 4)] * 3, lambda b, x, y, z: lib.apply(b, "add", lib.apply(b, "mul", x, y), z))
    x, y = (np.asarray(v, dtype.numpy) for v in ([1.1, 1.3, 0, 7], [1.7, 0.9, 2, 7]))
    z = changed(-x * y, 3, 1)
    expected = shadow(graph, [x, y, z], precision=precision)
    assert compare(expected, [expected.values[0]]) is None
    once = changed(expected.values[0], 0, np.finfo(dtype.numpy).eps / 4)
    assert "at [0], expected 0.0 within 0" in str(compare(expected, [once]))


def test_what_constants_may_be_moved_through_keeps_its_bound() -> None:
    x, y = floats(1.1, 1.3, 1.7, 1.9), floats(0.7, 0.9, 1.1, 1.3)

    def twice(b: Builder, x: Node, y: Node) -> Node:
        return lib.apply(b, "add", lib.apply(b, "add", x, lib.like(b, 0.1, x)), lib.apply(b, "sub", y, y))

    for make in (twice, lambda b, x, y: lib.apply(b, "div", x, y), lambda b, x, y: lib.apply(b, "mul", x, lib.like(b, 0.3, x))):
        expected = shadow(graph_of([vector(), vector()], make), [x, y])
        assert compare(expected, [np.nextafter(expected.values[0], np.float32(9))]) is None
        assert compare(shadow(graph_of([vector(), vector()], make), [x, y], precision="strict"), [expected.values[0]]) is None


def test_the_report_says_where_and_by_how_much() -> None:
    expected = shadow(binary("add"), [floats(1, 2, 3, 4), floats(1, 1, 1, 1)])
    assert compare(expected, [floats(2, 3, 4, 5)]) is None
    assert compare(expected, [floats(2, 7, 4, 9)]) == "result output0: 7.0 at [1], expected 3.0 within 0; 2 of 4 elements are outside"
    assert compare(expected, [floats(2, 3, 4)]) == "result output0: float32[3], expected float32[4]"
    assert compare(expected, [floats(2, 3, 4, 5, dtype=F64)]) == "result output0: float64[4], expected float32[4]"
    assert compare(expected, []) == "0 results, expected 1"


def test_integers_and_bools_are_exact() -> None:
    expected = shadow(binary("mul", I32), [np.array([1, -2, 2 ** 30, 4], np.int32)] * 2)
    assert expected.results[0].bound is None
    assert "at [3]" in str(compare(expected, [changed(expected.values[0], 3, 15)]))
    expected = shadow(binary("lt"), [floats(1, 2, 3, 4), floats(2, 2, 2, np.nan)])
    assert "at [0]" in str(compare(expected, [changed(expected.values[0], 0, False)]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_sign_of_zero_counts_under_strict(precision: str) -> None:
    expected = shadow(binary("add"), [floats(-0.0, 0.0, 1, 2)] * 2, precision=precision)
    problem = compare(expected, [changed(expected.values[0], 0, 0.0)])
    assert (problem == "result output0: 0.0 at [0], expected -0.0 within 0") if precision == "strict" else problem is None


def test_the_sign_of_zero_counts_where_elements_only_move() -> None:
    expected = shadow(graph_of([vector(F32, 2, 2)], lambda b, x: lib.transpose(b, x, (1, 0))), [floats(0, 0, -0.0, 1).reshape(2, 2)])
    assert compare(expected, [np.abs(expected.values[0])]) is not None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sum_may_have_a_zero_of_either_sign(precision: str) -> None:
    expected = shadow(graph_of([vector()], lambda b, x: lib.reduce(b, "sum", x, (0,))), [floats(-0.0, -0.0, -0.0, -0.0)], precision=precision)
    assert compare(expected, [np.float32(0.0)]) is None and compare(expected, [np.float32(-0.0)]) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("function", ["add", "sub", "mul", "max", "div"])
def test_lost_nans_and_infinities_are_reported(function: str, precision: str) -> None:
    expected = shadow(binary(function), [floats(np.nan, np.inf, 1.1, 3), floats(1, 2, 3, np.nan)], precision=precision)
    value = expected.values[0]
    assert np.isnan(value[[0, 3]]).all() and np.isinf(value[1]) and expected.checked == 1
    for place, wrong in ((0, 0), (1, 3e38), (1, -np.inf), (3, 3), (2, np.nan)):
        assert compare(expected, [changed(value, place, wrong)]) is not None
    assert compare(expected, [value]) is None


def test_a_nan_that_a_sum_loses_is_reported() -> None:
    for make in (lambda b, x: lib.reduce(b, "sum", x, (1,)), lambda b, x: b.add(Dot((1,), (1,)), x, x), lambda b, x: lib.softmax(b, x, 1)):
        x = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
        x[1, 2] = np.nan
        expected = shadow(graph_of([vector(F32, 3, 5)], make), [x])
        wrong = np.nan_to_num(expected.values[0])
        assert np.isnan(expected.values[0][1]).any() and compare(expected, [wrong]) is not None


# --- where nothing is rounded, nothing may differ ------------------------------------------------------------------------


def test_whole_numbers_are_exact_through_sums_and_products() -> None:
    graph = graph_of([vector(F32, 7, 9), vector(F32, 9, 5)], lambda b, x, y: lib.reduce(b, "sum", b.add(Dot((1,), (0,)), x, y), (0,)))
    rng = np.random.default_rng(0)
    inputs = [rng.integers(-8, 9, n).astype(np.float32) / 4 for n in ((7, 9), (9, 5))]
    assert all(x.bound is None for x in shadow(graph, inputs).results)
    inputs[0][0, 0] = 0.1
    assert (shadow(graph, inputs).bounds[0] > 0).any()


def test_a_constant_that_cancels_hides_its_rounding() -> None:
    """(x + 1000) + 0.0009 may become x + 1000.0009, which rounds where the first did not."""
    def make(b: Builder, x: Node) -> Node:
        return lib.apply(b, "add", lib.apply(b, "add", x, lib.like(b, 1000.0, x)), lib.like(b, 0.0009, x))

    graph, x = graph_of([vector()], make), floats(-1000, -999, 3, 0.5)
    other = x + np.float32(1000.0009)
    assert (other != evaluate_graph(graph, [x])[0]).any()
    assert compare(shadow(graph, [x]), [other]) is None
    assert shadow(graph, [x]).bounds[0].max() < 1e-3
    assert "expected 0.0009 within 0" in str(compare(shadow(graph, [x], precision="strict"), [other]))


def test_a_factor_may_move_into_constant_weights() -> None:
    weights = np.array([[3.0], [-3.0], [1.0]], np.float32)

    def make(b: Builder, x: Node) -> Node:
        product = b.add(Dot((1,), (0,)), x, lib.constant(b, weights))
        return lib.apply(b, "mul", product, lib.like(b, 0.1, x))

    x = np.array([[7, 7, 0], [5, 4, 1]], np.float32)
    expected = shadow(graph_of([vector(F32, 2, 3)], make), [x])
    assert compare(expected, [x @ (weights * np.float32(0.1))]) is None and expected.bounds[0].max() < 1e-4


def test_a_row_with_an_infinity_may_be_nan_where_weights_are_constant() -> None:
    graph = graph_of([vector(F32, 2, 2)], lambda b, x: b.add(Dot((1,), (0,)), x, lib.constant(b, np.eye(2, dtype=np.float32))))
    x = np.array([[np.inf, 1], [3, 4]], np.float32)
    assert (shadow(graph, [x]).bounds[0] == [[np.inf] * 2, [0, 0]]).all()
    assert not shadow(graph, [x], precision="plain").bounds[0].any()


@pytest.mark.parametrize("known", [False, True])
def test_an_infinite_scale_may_meet_a_sum_where_it_is_not_known(known: bool) -> None:
    scales = floats(np.inf, 2)

    def make(b: Builder, q: Node, scale: Node) -> Node:
        return dequantize(b, q, lib.constant(b, scales) if known else scale)

    graph = graph_of([vector(I8, 3, 2), vector(F32, 2)], make)
    inputs = [np.ones((3, 2), np.int8), scales]
    assert (np.isinf(shadow(graph, inputs).bounds[0]) == [not known, False]).all()
    assert not shadow(graph, inputs, precision="strict").bounds[0].any()


def test_lattices() -> None:
    assert lattice(Traced(floats(1, -3, 0, np.inf))) == (1.0, 3.0)
    assert lattice(Traced(floats(0.75, -3))) == (0.25, 3.0)
    assert lattice(Traced(floats(2 ** -149, 0))) == (2.0 ** -149, 2.0 ** -149)
    assert lattice(Traced(floats(1, 2), np.array([0.0, 0.1]))) == (0.0, np.inf)
    assert set(FORMATS) == {d.numpy for d in ARRAY_DTYPES if d.is_float}
    form = FORMATS[np.dtype(np.float32)]
    assert fits(1.0, 2.0 ** 24, form) and not fits(1.0, 2.0 ** 24 + 1, form) and not fits(2.0 ** -150, 0.0, form)


def test_strict_arithmetic_rounds_in_one_way() -> None:
    inputs = [floats(0.1, 0.2, 0.3, 1e-42), floats(0.7, 3, 7, 0.5)]
    for function in ("add", "sub", "mul", "div"):
        assert shadow(binary(function), inputs, precision="strict").results[0].bound is None
        assert (shadow(binary(function), inputs).bounds[0] > 0).all()


def test_subnormals_are_kept() -> None:
    expected = shadow(binary("mul"), [floats(1e-42, 2, 3, 4), floats(0.5, 1, 1, 1)], precision="strict")
    assert compare(expected, [changed(expected.values[0], 0, 0)]) is not None


# --- decisions on rounded numbers ----------------------------------------------------------------------------------------


def tenths(b: Builder, x: Node) -> Node:
    """x / 10, inexact by some roundings."""
    return lib.apply(b, "mul", x, lib.like(b, 0.1, x))


def bounds_of(make: Callable[..., Node | Sequence[Node]], *inputs: Array, precision: str = "default") -> Array:
    types = [TensorType(next(d for d in ARRAY_DTYPES if d.numpy == x.dtype), x.shape) for x in inputs]
    return shadow(graph_of(types, make), inputs, precision=precision).bounds[0]


def test_steps_and_comparisons_near_their_edge() -> None:
    x = floats(10, 25, -7, 3)
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.scalar(b, "floor", tenths(b, x)), x), [1, 0, 0, 0])
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.scalar(b, "round", tenths(b, x)), x), [0, 1, 0, 0])
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.cast(b, tenths(b, x), I32), x), [np.inf, 0, 0, 0])
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.apply(b, "lt", tenths(b, x), lib.like(b, 2.5, x)), x), [0, np.inf, 0, 0])
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.scalar(b, "isnan", tenths(b, x)), x), [0, 0, 0, 0])
    tainted = bounds_of(lambda b, x: lib.scalar(b, "select", lib.apply(b, "lt", tenths(b, x), lib.like(b, 2.5, x)), x, x), x)
    np.testing.assert_array_equal(tainted, [0, np.inf, 0, 0])


def test_places_of_rounded_numbers() -> None:
    x = floats(10, 30, 30, 20, 1, 2, 3, 4).reshape(2, 4)
    np.testing.assert_array_equal(bounds_of(lambda b, x: b.add(ArgReduce("max", 1), tenths(b, x)), x), [np.inf, 0])
    np.testing.assert_array_equal(bounds_of(lambda b, x: b.add(ArgSort(1), tenths(b, x)), x), [[np.inf] * 4, [0] * 4])
    assert (bounds_of(lambda b, x: b.add(ArgSort(1), x), x) == 0).all()
    assert bounds_of(lambda b, x: b.add(Sort(1), tenths(b, x)), x).max() < 1e-5


def test_poles_and_borders_of_domains() -> None:
    x = floats(10, 0, 5, 20)
    for function in ("log", "sqrt", "acosh"):
        made = bounds_of(lambda b, x: lib.scalar(b, function, lib.apply(b, "sub", tenths(b, x), lib.like(b, 1.0, x))), x)
        assert made[0] == np.inf, function
    made = bounds_of(lambda b, x: lib.apply(b, "div", x, lib.apply(b, "sub", tenths(b, x), lib.like(b, 1.0, x))), x)
    assert made[0] == np.inf and (made[1:] < 1e-4).all()
    assert (bounds_of(lambda b, x: lib.scalar(b, "log", x), x) < 1e-5).all()  # the logarithm of an exact zero is certain


def test_what_may_overflow_is_not_compared() -> None:
    x = floats(3e38, 1, 2, 100)
    np.testing.assert_array_equal(bounds_of(lambda b, x: lib.scalar(b, "add", x, x), x) == np.inf, [True, False, False, False])
    assert (bounds_of(lambda b, x: lib.scalar(b, "add", x, x), x, precision="strict") == 0).all()
    assert bounds_of(lambda b, x: lib.reduce(b, "sum", x, (0,)), floats(3e38, -3e38, 3e38, 1)) == np.inf


def test_one_over_a_zero_without_a_sign() -> None:
    def make(b: Builder, x: Node) -> Node:
        return lib.apply(b, "div", lib.like(b, 1.0, x), lib.apply(b, "add", x, lib.like(b, 0.0, x)))

    x = floats(-0.0, 1, 2, 4)
    assert bounds_of(make, x)[0] == np.inf and bounds_of(make, x, precision="strict")[0] == 0
    assert bounds_of(lambda b, x: lib.apply(b, "div", lib.like(b, 1.0, x), x), x)[0] == 0


def test_the_bits_of_a_nan_are_free() -> None:
    np.testing.assert_array_equal(bounds_of(lambda b, x: b.add(Bitcast(I32), x), floats(np.nan, -0.0, 1, 2)), [np.inf, 0, 0, 0])


def test_indices_and_sides_that_rounding_decides() -> None:
    def taken(b: Builder, x: Node) -> Node:
        return b.add(Take(0), x, lib.cast(b, tenths(b, x), I64))

    def side(b: Builder, x: Node) -> Node:
        body = [graph_of([vector()], lambda b, v, f=f: lib.scalar(b, f, v)) for f in ("neg", "abs")]
        return b.add(If(*body), lib.apply(b, "lt", tenths(b, lib.reduce(b, "max", x, (0,))), lib.constant(b, 1.0, F32)), x)

    for make in (taken, side):
        for x, tainted in ((floats(1, 2, 3, 10), True), (floats(1, 2, 3, 4), False)):
            found = shadow(graph_of([vector()], make), [x])
            assert found.may_fail is tainted and np.isinf(found.bounds[0]).all() == tainted
            assert found.checked == (0 if tainted else 1)


def test_while_counts_exactly_or_taints() -> None:
    scalar = TensorType(F32, ())

    def make(step: float) -> Callable[[Builder, Node], Node]:
        condition = graph_of([scalar, scalar], lambda b, i, v: lib.apply(b, "lt", i, lib.constant(b, 1.0, F32)))
        body = graph_of([scalar, scalar], lambda b, i, v: [lib.apply(b, "add", i, lib.constant(b, step, F32)), lib.scalar(b, "add", v, v)])
        return lambda b, x: lib.results_of(b, b.add(While(condition, body, 2), lib.constant(b, 0.0, F32), x))[1]

    x = np.array(3, np.float32)
    assert shadow(graph_of([scalar], make(0.25)), [x]).bounds[0] == 0
    assert shadow(graph_of([scalar], make(0.1)), [x]).may_fail


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_scans_stack_values_and_bounds(length: int, reverse: bool) -> None:
    rest = TensorType(F32, (3,))
    body = graph_of([rest, rest], lambda b, s, v: [lib.scalar(b, "add", s, v), lib.scalar(b, "exp", s)])
    graph = graph_of([rest, TensorType(F32, (length, 3))],
                     lambda b, s, v: lib.results_of(b, b.add(Scan(body, 1, 1, length, reverse), s, v)))
    inputs = [floats(1, 2, 3), np.random.default_rng(0).integers(-2, 3, (length, 3)).astype(np.float32)]
    found = shadow(graph, inputs)
    for value, expected in zip(found.values, evaluate_graph(graph, inputs)):
        np.testing.assert_array_equal(value, expected)
    assert found.results[0].bound is None and (found.bounds[1] > 0).all()


# --- convolutions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_winograd_is_legal_by_default_where_weights_are_constant(dtype: DType) -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(-3, 4, (3, 3, 32, 32)).astype(dtype.numpy)
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, True)
    graph = graph_of([vector(dtype, 1, 12, 11, 32)], lambda b, x: b.add(conv, x, lib.constant(b, weights)))
    x = rng.integers(-3, 4, (1, 12, 11, 32)).astype(dtype.numpy)
    for precision in PRECISIONS:
        expected = shadow(graph, [x], precision=precision)
        assert (expected.results[0].bound is None) == (precision != "default")
        stages = dict(after_passes(graph, precision, CAPS[0]))
        assert ("winograd_conv" in format_graph(stages["pack_operands"])) == (precision == "default")
        for name, made in stages.items():
            assert compare(expected, evaluate_graph(made, [x])) is None, name
    sizes, found = np.abs(evaluate_graph(graph, [x])[0]), shadow(graph, [x]).bounds[0]
    assert np.median(found) < sizes.max() * (0.1 if dtype == F32 else 1e-9)  # the stated amplification is that of the worst inputs
    x[0, 5, 5, 0] = np.nan
    assert shadow(graph, [x]).checked == 0 and shadow(graph, [x], precision="plain").checked == 1


# --- ops that nobody told the fuzzer about ---------------------------------------------------------------------------------


class Smooth(Op, frozen=True):
    """The mean of each element and its neighbour, of floats; a count of greater neighbours, with `count`."""

    name: ClassVar[str] = "smooth"
    count: bool = False

    def infer(self, *types: Type) -> Type:
        x, = types
        assert isinstance(x, TensorType)
        return TensorType(I64 if self.count else x.dtype, x.shape)

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> Any:
        x, = inputs
        other = np.roll(x, 1, -1)
        return np.asarray((other > x).astype(np.int64) if self.count else (x + other) * x.dtype.type(0.5))

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(), (vector(),)),)


def test_a_new_op_works_by_the_generic_rule() -> None:
    x = floats(0.3, 0.7, 0.1, np.inf)
    expected = shadow(graph_of([vector()], lambda b, x: b.add(Smooth(), x)), [x])
    value, bound = expected.values[0], expected.bounds[0]
    assert bound[0] == bound[3] == 0 and (bound[1:3] > 0).all() and (bound < 1e-4).all()
    assert compare(expected, [changed(value, 1, value[1] * (1 + 1e-6))]) is None
    assert compare(expected, [changed(value, 1, value[1] + 2 * bound[1])]) is not None
    exact = graph_of([vector()], lambda b, x: b.add(Smooth(True), x))
    assert shadow(exact, [x]).results[0].bound is None
    inexact = graph_of([vector()], lambda b, x: b.add(Smooth(True), tenths(b, x)))
    assert shadow(inexact, [x]).checked == 0


class Halves(Op, frozen=True):
    """Each element halved, and its double."""

    name: ClassVar[str] = "halves"

    def infer(self, *types: Type) -> Type:
        return TupleType((types[0], types[0]))

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return inputs[0] / 2, inputs[0] * 2


def test_a_new_op_may_have_several_results() -> None:
    x = floats(0.3, 0.7, 0.1, 2)
    expected = shadow(graph_of([vector()], lambda b, x: lib.results_of(b, b.add(Halves(), x))), [x])
    assert compare(expected, [x / 2, x * 2]) is None
    assert "result output1" in str(compare(expected, [x / 2, x * 3]))


# --- shapes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3])
def test_symbolic_sizes_empty_ones_too(size: int) -> None:
    n = symbol("N", 0, 9)

    def make(b: Builder, x: Node) -> list[Node]:
        y = tenths(b, x)
        return [lib.reduce(b, "sum", y, (0,)), lib.reduce(b, "max", y, (0,)), b.add(Cumulative("sum", 0), y), b.add(Sort(0), y),
                b.add(ArgSort(0), y), b.add(Dot((0,), (0,)), y, y), b.add(Reduce("prod", (0,)), y), b.add(Cast(F16), y)]

    graph = graph_of([TensorType(F32, (n, 2))], make)
    x = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
    for precision in PRECISIONS:
        expected = shadow(graph, {"x0": x}, precision=precision)
        with np.errstate(all="ignore"):
            assert compare(expected, evaluate_graph(graph, [x])) is None
        assert expected.checked > 0.6


def test_tuples_and_errors_of_the_program() -> None:
    graph = graph_of([vector()], lambda b, x: lib.results_of(b, b.add(MakeTuple(), x, lib.scalar(b, "neg", x))))
    assert compare(shadow(graph, [floats(1, 2, 3, 4)]), [floats(1, 2, 3, 4), -floats(1, 2, 3, 4)]) is None
    graph = graph_of([vector(), TensorType(I64, (2,))], lambda b, x, i: b.add(Take(0), x, i))
    with pytest.raises(IndexFailure, match="out of range"):
        shadow(graph, [floats(1, 2, 3, 4), np.array([0, 4])])
