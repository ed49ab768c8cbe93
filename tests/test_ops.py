"""The op table: every op is whole, every sample evaluates to its inferred type, and the stated meaning holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tilewright.fuzz.generate import random_inputs, sample_graph
from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, IndexFailure
from tilewright.ir.graph import Constant, Op, Sample, attribute_problem
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import (
    REDUCTIONS,
    ArgReduce,
    ArgSort,
    Bitcast,
    Cast,
    Conv,
    Cumulative,
    Dot,
    Elementwise,
    Reduce,
    ReduceWindow,
    Sort,
)
from tilewright.ir.ops.control import Composite, Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from tilewright.ir.ops.scalar import RULES, SCALARS, result_dtype
from tilewright.ir.ops.shape import (
    Broadcast,
    Concat,
    GatherND,
    Iota,
    Pad,
    Reshape,
    ScatterND,
    SizeOf,
    Slice,
    Take,
    TakeAlong,
    Transpose,
    UpdateSlice,
)
from tilewright.ir.ops.table import ALL_OPS, OPS, SPELLINGS
from tilewright.ir.types import ARRAY_DTYPES, BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, INDEX, U8, U32, U64, DType, TensorType

SAMPLES = [s for op in ALL_OPS for s in op.samples()]
# what the interpreter and the graph form themselves give a meaning to
WITHOUT_SAMPLES = {Param, MakeTuple, Get, Composite, Fusion, If, While, Scan}


@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.__name__)
def test_every_op_is_whole(op: type[Op]) -> None:
    assert op.__doc__ and not op.__doc__.startswith(f"{op.__name__}("), "an op states its meaning"
    assert op.infer is not Op.infer, "an op has a type rule"
    assert op.name and SPELLINGS.get(op.name, op) is op
    if op not in WITHOUT_SAMPLES:
        assert op.evaluate is not Op.evaluate, "an op has a NumPy meaning"
        assert op.samples(), "an op has samples"


def test_the_table_holds_every_op_once() -> None:
    names = [op.name for op in ALL_OPS]
    assert len(set(names)) == len(names) and len(OPS) == len(ALL_OPS) - 1
    assert set(SPELLINGS) == set(OPS) | set(SCALARS)
    assert not set(OPS) & set(SCALARS)


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"{s.op.spelling}{i}" for i, s in enumerate(SAMPLES)])
def test_samples_evaluate_to_their_type(sample: Sample) -> None:
    assert attribute_problem(sample.op) is None
    graph = sample_graph(sample)
    for seed in range(3):
        inputs, _ = random_inputs(graph, np.random.default_rng(seed), special=seed == 2)
        before = [a.copy() for a in inputs]
        for result, node in zip(evaluate_graph(graph, inputs), graph.results):
            assert isinstance(result, np.ndarray)
            assert result.dtype == node.dtype.numpy and result.shape == node.tensor.static_shape
        for now, then in zip(inputs, before):
            np.testing.assert_array_equal(now, then, "an op wrote into its operand")


FIXED = {"select": [BOOL], "bfloats": [U32, U32]}  # dtypes of the first operands that no other decides


@pytest.mark.parametrize("name", SCALARS)
def test_scalar_functions_on_every_dtype(name: str) -> None:
    """Each dtype gives the inferred dtype or is refused by name; strange values give no warning and no exception."""
    row, accepted = SCALARS[name], 0
    for dtype in ARRAY_DTYPES:
        operands = [*FIXED.get(row.rule, ()), *[dtype] * row.arity][:row.arity]
        try:
            expected = result_dtype(name, operands)
        except CompileError as error:
            assert str(error).startswith(f"{name}: needs")
            continue
        accepted += 1
        for a in strange_values(dtype):
            arrays = [np.full(4, a if d == dtype else bool(a) if d.is_bool else 0x3F80BF80, dtype=d.numpy) for d in operands]
            arrays[-1] = strange_values(dtype)[:4]
            found = Elementwise(name).evaluate(arrays, {})
            assert found.dtype == expected.numpy and found.shape == (4,), (name, dtype)
    assert accepted and row.rule in RULES


def strange_values(dtype: DType) -> np.ndarray:
    if dtype.is_bool:
        return np.array([True, False, True, False])
    if dtype.is_float:
        return np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0]).astype(dtype.numpy)
    return np.array([dtype.lowest, dtype.highest, 0, 1], dtype=dtype.numpy)


def scalar(name: str, *operands: object, dtype: DType = I32) -> np.ndarray:
    return Elementwise(name).evaluate([np.asarray(x, dtype=dtype.numpy) for x in operands], {})


def same(found: object, expected: Sequence | object) -> None:
    found = np.asarray(found)
    np.testing.assert_array_equal(found, np.array(expected, dtype=found.dtype))


# --- the sentences of scalar.py ---


@pytest.mark.parametrize("dtype", [I8, I32, I64])
def test_integers_wrap(dtype: DType) -> None:
    same(scalar("add", [dtype.highest], [1], dtype=dtype), [dtype.lowest])
    same(scalar("mul", [dtype.highest], [2], dtype=dtype), [-2])
    same(scalar("neg", [dtype.lowest], dtype=dtype), [dtype.lowest])
    same(scalar("abs", [dtype.lowest], dtype=dtype), [dtype.lowest])


@pytest.mark.parametrize("dtype", [I8, I32, I64, U8, U64])
def test_integer_division_by_zero_gives_zero(dtype: DType) -> None:
    values = [dtype.highest, 0, 5, dtype.lowest]
    for name in ("floordiv", "mod", "rem"):
        same(scalar(name, values, [0] * 4, dtype=dtype), [0] * 4)


@pytest.mark.parametrize("dtype", [I8, I32, I64])
def test_the_least_integer_divided_by_minus_one_is_itself(dtype: DType) -> None:
    same(scalar("floordiv", [dtype.lowest, 7], [-1, -1], dtype=dtype), [dtype.lowest, -7])
    same(scalar("mod", [dtype.lowest, 7], [-1, -1], dtype=dtype), [0, 0])
    same(scalar("rem", [dtype.lowest, 7], [-1, -1], dtype=dtype), [0, 0])


def test_division_rounds_down_and_remainder_follows() -> None:
    a, b = [7, -7, 7, -7], [2, 2, -2, -2]
    same(scalar("floordiv", a, b), [3, -4, -4, 3])
    same(scalar("mod", a, b), [1, 1, -1, -1])
    same(scalar("rem", a, b), [1, -1, 1, -1])
    same(scalar("mod", [5.5, -5.5], [2.0, 2.0], dtype=F32), [1.5, 0.5])
    same(scalar("rem", [5.5, -5.5], [2.0, 2.0], dtype=F32), [1.5, -1.5])


def test_shifts_past_the_width() -> None:
    same(scalar("shl", [1, 1, 1, 1], [31, 32, 1000, -1]), [-(2**31), 0, 0, 0])
    same(scalar("shr", [-8, -8, 8, -8, 8], [1, 32, 32, -1, -1]), [-4, -1, 0, -1, 0])
    same(scalar("shr", [255, 255], [7, 8], dtype=U8), [1, 0])
    same(scalar("shl", [1, 1], [63, 64], dtype=U64), [2**63, 0])


def test_maximum_and_not_a_number() -> None:
    a, b = [np.nan, 1.0, np.nan], [1.0, np.nan, np.nan]
    same(scalar("max", a, b, dtype=F32), [np.nan] * 3)
    same(scalar("min", a, b, dtype=F32), [np.nan] * 3)
    same(scalar("fmax", a, b, dtype=F32), [1.0, 1.0, np.nan])
    same(scalar("fmin", a, b, dtype=F32), [1.0, 1.0, np.nan])


def test_integer_powers() -> None:
    same(scalar("pow", [2, -2, 2, 1, -1, -1, 0, 0], [10, 3, -1, -5, -3, -4, -1, 0]), [1024, -8, 0, 1, -1, 1, 0, 1])
    same(scalar("pow", [3], [40], dtype=I32), [(3**40 + 2**31) % 2**32 - 2**31])
    same(scalar("pow", [3], [200], dtype=U8), [3**200 % 256])


def test_comparisons_with_not_a_number() -> None:
    for name, expected in (("eq", False), ("ne", True), ("lt", False), ("le", False), ("gt", False), ("ge", False)):
        same(scalar(name, [np.nan, 1.0], [1.0, np.nan], dtype=F32), [expected] * 2)


def test_sign() -> None:
    found = scalar("sign", [np.nan, -0.0, 0.0, -3.0, np.inf], dtype=F32)
    same(found, [np.nan, 0.0, 0.0, -1.0, 1.0])
    same(scalar("sign", [0, 5], dtype=U8), [0, 1])


def test_round_is_half_to_even() -> None:
    same(scalar("round", [0.5, 1.5, 2.5, -0.5], dtype=F32), [0.0, 2.0, 2.0, -0.0])


def test_sigmoid_neither_overflows_nor_warns() -> None:
    with np.errstate(all="raise"):
        same(scalar("sigmoid", [-1000.0, 1000.0, 0.0, -np.inf, np.inf], dtype=F32), [0.0, 1.0, 0.5, 0.0, 1.0])


def test_narrow_floats_round_once() -> None:
    """1 + 2^-9 lies between two bfloat16; in float32 the sum is exact, so it rounds once, to even."""
    same(scalar("add", [1.0], [2.0**-9], dtype=BF16), [1.0])
    same(scalar("fma", [256.0], [1.0], [1.0], dtype=BF16), [256.0])


def test_fused_multiply_add_rounds_once() -> None:
    """(1 + 2^-12)^2 - 1 - 2^-11 is 2^-24 exactly; with a rounded product it would be 0."""
    a = 1 + 2.0**-12
    same(scalar("fma", [a], [a], [-(1 + 2.0**-11)], dtype=F32), [2.0**-24])
    exact = 1 + 2.0**-27
    same(scalar("fma", [exact], [exact], [-(1 + 2.0**-26)], dtype=F64), [2.0**-54])


def test_fused_multiply_add_has_no_double_rounding() -> None:
    """The exact sum lies just below a tie of float32; rounding it to float64 first would land on the tie."""
    a, b = np.float32(2.0**-24 * (1 - 2.0**-23)), np.float32(1 + 2.0**-23)
    same(scalar("fma", [a], [b], [1 + 2.0**-23], dtype=F32), [1 + 2.0**-23])
    same(scalar("fma", [-a], [b], [-(1 + 2.0**-23)], dtype=F32), [-(1 + 2.0**-23)])


@pytest.mark.parametrize("dtype", [F32, F64])
def test_fused_multiply_add_at_the_edges(dtype: DType) -> None:
    big = float(np.finfo(dtype.numpy).max)
    same(scalar("fma", [big], [2.0], [-big], dtype=dtype), [big])
    same(scalar("fma", [big], [2.0], [0.0], dtype=dtype), [np.inf])
    same(scalar("fma", [np.inf, 0.0, np.nan], [0.0, np.inf, 1.0], [1.0, 1.0, 1.0], dtype=dtype), [np.nan] * 3)
    zeros = scalar("fma", [-0.0, 0.0, -0.0], [1.0, 1.0, 1.0], [-0.0, -0.0, 0.0], dtype=dtype)
    assert np.signbit(zeros).tolist() == [True, False, False]


# --- the sentences of compute.py ---


def one(op: Op, *arrays: np.ndarray, sizes: dict[str, int] | None = None) -> np.ndarray:
    return np.asarray(op.evaluate([np.asarray(a) for a in arrays], sizes or {}))


@pytest.mark.parametrize(("kind", "dtype", "expected"), [
    ("sum", F32, 0.0), ("prod", F32, 1.0), ("max", F32, -np.inf), ("min", F32, np.inf), ("sum", I32, 0), ("prod", I32, 1),
    ("max", I32, -(2**31)), ("min", I32, 2**31 - 1), ("max", U8, 0), ("min", U64, 2**64 - 1), ("and", BOOL, True), ("or", BOOL, False),
    ("max", BOOL, False), ("min", BOOL, True), ("sum", F16, 0.0), ("max", BF16, -np.inf)])
def test_empty_reductions_give_the_identity(kind: str, dtype: DType, expected: object) -> None:
    found = one(Reduce(kind, (0,)), np.zeros((0, 2), dtype.numpy))
    assert found.dtype == dtype.numpy
    same(found, [expected, expected])


@pytest.mark.parametrize("kind", ["max", "min"])
def test_reductions_propagate_not_a_number(kind: str) -> None:
    x = np.array([1.0, np.nan, 3.0], np.float32)
    same(one(Reduce(kind, (0,)), x), np.nan)
    same(one(Cumulative(kind, 0), x), [1.0, np.nan, np.nan])
    same(one(ArgReduce(kind, 0), x), 1)
    assert np.isnan(one(ReduceWindow(kind, (2,), (1,), ((0, 0),), (1,)), x)).all()


def test_sums_keep_their_dtype_and_wrap() -> None:
    found = one(Reduce("sum", (0,)), np.full(4, 100, np.int8))
    assert found.dtype == np.int8
    same(found, 400 - 512)


def test_narrow_sums_accumulate_in_float32() -> None:
    same(one(Reduce("sum", (0,)), np.ones(4096, np.float16)), 4096.0)
    ones = np.ones((1, 1000)).astype(BF16.numpy)
    same(one(Dot((1,), (1,)), ones, ones), [[1000.0]])


def test_integer_contractions_wrap() -> None:
    x = np.full((1, 3), 100, np.int8)
    same(one(Dot((1,), (1,)), x, x), [[30000 - 29952]])


def test_contractions_over_nothing_give_zero() -> None:
    same(one(Dot((1,), (0,)), np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)), np.zeros((2, 3)))


def test_argument_of_the_extreme_is_the_first() -> None:
    same(one(ArgReduce("max", 0), np.array([1, 3, 3])), 1)
    same(one(ArgReduce("min", 0), np.array([1.0, 0.0, -0.0])), 1)
    with pytest.raises(CompileError, match="the axis is empty"):
        ArgReduce("max", 0).infer(TensorType(F32, (0,)))


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_stable_with_not_a_number_last_when_ascending(descending: bool) -> None:
    x = np.array([2.0, np.nan, 1.0, 2.0, np.nan], np.float32)
    places = one(ArgSort(0, descending), x)
    same(places, [1, 4, 0, 3, 2] if descending else [2, 0, 3, 1, 4])
    same(one(Sort(0, descending), x), x[places])


def test_cumulative_exclusive_and_reverse() -> None:
    x = np.array([1, 2, 3], np.int32)
    same(one(Cumulative("sum", 0), x), [1, 3, 6])
    same(one(Cumulative("sum", 0, True), x), [0, 1, 3])
    same(one(Cumulative("sum", 0, False, True), x), [6, 5, 3])
    same(one(Cumulative("sum", 0, True, True), x), [5, 3, 0])
    same(one(Cumulative("max", 0, True), x), [-(2**31), 1, 2])
    assert one(Cumulative("sum", 0, True), np.zeros(0, np.int32)).shape == (0,)


@pytest.mark.parametrize("source", [F16, BF16, F32, F64])
@pytest.mark.parametrize("target", [I8, I16, I32, I64, U8, U32, U64])
def test_float_to_integer_saturates(source: DType, target: DType) -> None:
    large = np.inf if source == F16 else 3e38
    x = np.array([np.nan, np.inf, -np.inf, 1.9, -0.9, large]).astype(source.numpy)
    same(one(Cast(target), x), [0, target.highest, target.lowest, 1, 0, target.highest])
    if target.is_signed:
        same(one(Cast(target), np.array([-1.9, -large]).astype(source.numpy)), [-1, target.lowest])


def test_casts_at_the_edge_of_64_bits() -> None:
    edge = np.array([2.0**63, 2.0**63 - 1024, -(2.0**63), 2.0**64, 2.0**64 - 2048])
    same(one(Cast(I64), edge), np.array([2**63 - 1, 2**63 - 1024, -(2**63), 2**63 - 1, 2**63 - 1], np.int64))
    same(one(Cast(U64), edge), np.array([2**63, 2**63 - 1024, 0, 2**64 - 1, 2**64 - 2048], np.uint64))


def test_other_casts() -> None:
    same(one(Cast(BOOL), np.array([0.0, -0.0, np.nan, 0.1])), [False, False, True, True])
    same(one(Cast(I8), np.array([300, -129])), [44, 127])
    same(one(Cast(F32), np.array([True, False])), [1.0, 0.0])
    same(one(Cast(F16), np.array([65520.0, 65519.0], np.float32)), [np.inf, 65504.0])
    same(one(Cast(BF16), np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)), [1.0, 1 + 2.0**-6])


def test_bitcast_keeps_bits() -> None:
    same(one(Bitcast(I32), np.array([1.0, -0.0], np.float32)), [0x3F800000, -(2**31)])
    assert one(Bitcast(I32), np.float32(1.0)).shape == ()
    with pytest.raises(CompileError, match="differ in width"):
        Bitcast(I64).infer(TensorType(F32, ()))


def test_window_padding_counts_as_the_identity() -> None:
    x = np.array([-3.0, -1.0], np.float32)
    same(one(ReduceWindow("max", (2,), (1,), ((1, 1),), (1,)), x), [-3.0, -1.0, -1.0])
    same(one(ReduceWindow("sum", (2,), (1,), ((1, 1),), (1,)), x), [-3.0, -4.0, -1.0])
    same(one(ReduceWindow("max", (2,), (1,), ((1, 1),), (1,)), np.array([5, 6], np.int32)), [5, 6, 6])


def test_convolution_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (1, 2, 5, 4)).astype(np.float32), rng.integers(-3, 4, (3, 2, 2, 3)).astype(np.float32)
    op = Conv((2, 1), ((1, 0), (2, 1)), (2, 1), (1, 2))
    padded = np.zeros((1, 2, 6, 10), np.float32)
    padded[:, :, 1:, 2:9:2] = x
    shape = op.infer(TensorType(F32, x.shape), TensorType(F32, w.shape)).shape
    expected = np.zeros(shape, np.float32)
    for n, o, i, j in np.ndindex(*shape):
        for c, k, m in np.ndindex(2, 2, 3):
            expected[n, o, i, j] += padded[n, c, 2 * i + 2 * k, j + m] * w[o, c, k, m]
    same(one(op, x, w), expected)


# --- the sentences of shape.py ---


@pytest.mark.parametrize("op", [Take(0), TakeAlong(0), GatherND(0)], ids=lambda op: op.spelling)
@pytest.mark.parametrize("place", [-1, 3, 2**40, -(2**63)])
def test_indices_outside_fail(op: Op, place: int) -> None:
    with pytest.raises(IndexFailure, match="is out of range for an axis of size 3"):
        op.evaluate([np.arange(3.0), np.array([place])], {})
    with pytest.raises(IndexFailure):
        ScatterND("set").evaluate([np.arange(3.0), np.array([[place]]), np.zeros(1)], {})


def test_the_last_of_two_updates_wins() -> None:
    places, updates = np.array([[1], [1]]), np.array([5.0, 7.0])
    same(one(ScatterND("set"), np.zeros(3), places, updates), [0.0, 7.0, 0.0])
    same(one(ScatterND("add"), np.zeros(3), places, updates), [0.0, 12.0, 0.0])


def test_slices_backwards_and_empty() -> None:
    x = np.arange(5)
    same(one(Slice((4,), (5,), (-1,)), x), x[::-1])
    same(one(Slice((3,), (2,), (-2,)), x), [3, 1])
    assert one(Slice((5,), (0,), (1,)), x).shape == (0,)
    same(one(UpdateSlice((4,), (-2,)), x, np.array([10, 20])), [0, 1, 20, 3, 10])


def test_symbolic_slices_are_checked_when_they_run() -> None:
    n = symbol("N", 0, 9)
    op = Slice((0,), (n,), (1,))
    assert op.infer(TensorType(F32, (symbol("M", 0, 9),))).shape == (n,)
    with pytest.raises(IndexFailure, match="leaves an axis of size 3"):
        op.evaluate([np.arange(3.0)], {"N": 5})


def test_a_reversed_slice_may_not_leave_the_axis() -> None:
    for start, size, step in ((2, 3, 2), (5, 2, -1), (0, 2, -1), (-1, 1, 1)):
        with pytest.raises(CompileError, match="slice: axis 0 reads"):
            Slice((start,), (size,), (step,)).infer(TensorType(F32, (5,)))


def test_sizes_as_values() -> None:
    n = symbol("N")
    same(one(SizeOf(n * 2 + 1), sizes={"N": 3}), 7)
    same(one(Iota(I32, (2, n), 1), sizes={"N": 3}), [[0, 1, 2]] * 2)
    same(one(Broadcast((n, 2)), np.array([1, 2]), sizes={"N": 2}), [[1, 2]] * 2)
    assert one(Pad((0,), (n,)), np.zeros(1), np.float64(3), sizes={"N": 2}).tolist() == [0, 3, 3]


X = TensorType(F32, (2, 3))
WRONG: list[tuple[Op, tuple, str]] = [
    (Elementwise("add"), (X,), "add: takes 2 operands, found 1"),
    (Elementwise("add"), (X, TensorType(I32, (2, 3))), "add: dtypes differ: f32 vs i32"),
    (Elementwise("exp"), (TensorType(I32, ()),), "exp: needs a float, found i32"),
    (Elementwise("and"), (X, X), "and: needs an integer or bool"),
    (Elementwise("select"), (X, X, X), "select: needs a bool condition"),
    (Reduce("mean", (0,)), (X,), "kind 'mean' is not one of"),
    (Reduce("sum", (1, 0)), (X,), "must be distinct and ascending"),
    (Reduce("sum", (2,)), (X,), "axis 2 is outside 0..1"),
    (Reduce("sum", (0,)), (TensorType(BOOL, (2,)),), "needs a number, found bool"),
    (Reduce("and", (0,)), (X,), "and needs bool"),
    (Cumulative("and", 0), (X,), "and needs bool"),
    (Dot((1,), (0,)), (X, X), "contracting dims differ: 3 (lhs axis 1) vs 2 (rhs axis 0)"),
    (Dot((1, 1), (1, 1)), (X, X), "an axis is named twice"),
    (Dot((1,), ()), (X, X), "differ in number"),
    (Dot((5,), (0,)), (X, X), "axis 5 is outside"),
    (Reshape((4, 2)), (X,), "has 6 elements"),
    (Reshape((-2, -3)), (X,), "is negative"),
    (Broadcast((3,)), (X,), "does not fit"),
    (Broadcast((4, 3)), (X,), "is neither 1 nor 4"),
    (Transpose((1, 1)), (X,), "is no permutation"),
    (Concat(0), (), "at least one operand"),
    (Concat(0), (X, TensorType(F32, (2, 4))), "does not fit"),
    (Pad((0, 0), (0, -1)), (X, TensorType(F32, ())), "may be negative"),
    (Pad((0,), (0,)), (X, TensorType(F32, ())), "must have 2 entries"),
    (Slice((0, 0), (2, 3), (1, 0)), (X,), "the step of axis 1 is zero"),
    (Take(0), (X, X), "indices must be integers"),
    (Take(2), (X, TensorType(I64, ())), "axis 2 is outside"),
    (Iota(BOOL, (3,), 0), (), "needs a number"),
    (Iota(F32, (), 0), (), "axis 0 is outside"),
    (Get(0), (X,), "needs one tuple"),
    (Conv((1,), ((0, 0),), (1,), (1,)), (TensorType(F32, (1, 2, 3)), TensorType(F32, (1, 2, 9))), "larger than the padded input"),
    (Conv((1,), ((0, 0),), (1,), (1,), 2), (TensorType(F32, (1, 3, 5)), TensorType(F32, (2, 1, 3))), "do not fit 2 groups"),
    (ReduceWindow("max", (9, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)), (X,), "larger than the padded input"),
    (Param("x", INDEX, ()), (X,), "takes 0 operands"),
    (Const(Constant(np.zeros(2))), (X,), "takes 0 operands"),
]


@pytest.mark.parametrize(("op", "types", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_operands_that_do_not_fit(op: Op, types: tuple, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        op.infer(*types)
    assert message in str(caught.value)


def test_reductions_have_a_combining_function() -> None:
    assert set(REDUCTIONS) == {"sum", "prod", "max", "min", "and", "or"}
    assert math.prod(len(op.samples()) or 1 for op in ALL_OPS)
