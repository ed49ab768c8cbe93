"""Small inputs of integers that say how large results are: bound by the caller, or found from the shapes that a model declares.

Whatever is taken for known is checked by the call. Models are written as text and run in the interpreter and as machine code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx.reference import ReferenceEvaluator

import tilewright as tw
from tilewright.frontends.onnx_contents import as_array, solved
from tilewright.frontends.onnx_ops.known_values import OPEN
from tilewright.frontends.onnx_survey import survey
from tilewright.ir.dims import Dim, dim_max, dim_min, symbol
from tilewright.ir.errors import CompileError, IndexFailure
from tilewright.ir.graph import Builder
from tilewright.ir.ops.control import Param
from tilewright.ir.types import I32

random = np.random.default_rng(31)
BACKENDS = ("reference", "llvm")

# the result's shape is declared, that of the padded value before it follows
CROP_OR_PAD = """(float[{rows},{columns}] x, int64[2] shape) => (float[{declared}] y) {{
    two = Constant<value_ints: ints = [2]>()
    own = Shape(x)
    larger = Max(own, shape)
    more = Sub(larger, own)
    left = Div(more, two)
    right = Sub(more, left)
    pads = Concat<axis: int = 0>(left, right)
    padded = Pad(x, pads)
    after = Shape(padded)
    less = Sub(after, shape)
    start = Div(less, two)
    end = Add(start, shape)
    y = Slice(padded, start, end)
}}"""


def floats(*shape: int) -> np.ndarray:
    return random.uniform(-2, 2, shape).astype(np.float32)


def vector(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model(text: str, opset: int = 21) -> bytes:
    return bytes(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}').SerializeToString())


def run(data: bytes, inputs: list[Any], backend: str, monkeypatch: pytest.MonkeyPatch, **dims: Any) -> list[np.ndarray]:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    made = tw.compile(tw.from_onnx(data, dims=dims), options=tw.Options(cache=False, threads=1))(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


def expected_of(data: bytes, *inputs: Any) -> list[Any]:
    loaded = onnx.ModelProto.FromString(data)
    return list(ReferenceEvaluator(loaded).run(None, dict(zip([v.name for v in loaded.graph.input], inputs))))


# --- found from what is declared -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("before", "after"), [((5, 7), (3, 9)), ((1, 1), (4, 1)), ((6, 3), (2, 3)), ((3, 8), (3, 8))])
def test_what_an_input_holds_follows_from_a_declared_shape(before: tuple[int, int], after: tuple[int, int], backend: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(CROP_OR_PAD.format(rows=before[0], columns=before[1], declared=f"{after[0]},{after[1]}"))
    x = floats(*before)
    (y,) = run(data, [x, vector(*after)], backend, monkeypatch)
    np.testing.assert_array_equal(y, expected_of(data, x, vector(*after))[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_declared_dims_of_the_inputs_do_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(CROP_OR_PAD.format(rows="N", columns=7, declared="N,4"))
    for rows in (1, 5):
        x = floats(rows, 7)
        (y,) = run(data, [x, vector(rows, 4)], backend, monkeypatch)
        np.testing.assert_array_equal(y, expected_of(data, x, vector(rows, 4))[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [(3, 8), (2, 9), (-3, 9), (0, 0)])
def test_the_call_checks_what_was_found(wrong: tuple[int, int], backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(CROP_OR_PAD.format(rows=5, columns=7, declared="3,9"))
    with pytest.raises(IndexFailure):
        run(data, [floats(5, 7), vector(*wrong)], backend, monkeypatch)


def test_what_nothing_decides_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second number has no part in any size, and may be anything."""
    data = model("""(float[3,4] x, int64[2] given) => (float[5,4] y, int64[1] rest) {
        zero = Constant<value_ints: ints = [0]>() one = Constant<value_ints: ints = [1]>() two = Constant<value_ints: ints = [2]>()
        four = Constant<value_ints: ints = [4]>()
        rows = Slice(given, zero, one)
        rest = Slice(given, one, two)
        shape = Concat<axis: int = 0>(rows, four)
        grown = ConstantOfShape(shape)
        row = ReduceSum<keepdims: int = 1>(x, zero)
        more = Add(grown, row)
        flat = Flatten<axis: int = 0>(more)
        y = Reshape(flat, shape)
    }""")
    x = floats(3, 4)
    for rest in (0, -7, 123456):
        y, found = run(data, [x, vector(5, rest)], "reference", monkeypatch)
        np.testing.assert_allclose(y, np.broadcast_to(x.sum(0), (5, 4)), rtol=1e-6)
        assert found.tolist() == [rest]
    with pytest.raises(IndexFailure):
        run(data, [x, vector(4, 0)], "reference", monkeypatch)


def test_what_an_input_cannot_hold_is_no_solution() -> None:
    node = Builder().add(Param("n", I32, (2,)))
    found = as_array(((1 << 32) + 5, 3), node)
    assert found[0] is OPEN and found[1] == 3
    assert as_array((5, 3), node).dtype == np.int32


def test_a_survey_finds_it_too() -> None:
    assert survey(model(CROP_OR_PAD.format(rows=5, columns=7, declared="3,9"))).graph is not None
    refused = survey(model(CROP_OR_PAD.format(rows=5, columns=7, declared="a,b"))).refused
    assert [node.op for node in refused] == ["Pad"]


def sizes(*names: str) -> list[Dim]:
    return [n for n in (symbol(name, lower=2) for name in names) if isinstance(n, Dim)]


def test_equations_are_solved_where_one_number_fits() -> None:
    a, b, n = sizes("a", "b", "n")
    inputs = {"x": (a, b)}
    assert solved([(a, 5), (a + b, 8)], inputs) == {"x": (5, 3)}
    assert solved([(a * 3 - 1, 8)], inputs) == {"x": (3, None)}
    assert solved([(a * 3, 8)], inputs) == {}
    assert solved([(b, n), (a + n, n + 4)], inputs) == {"x": (None, n)}
    assert solved([(a + b, 8)], inputs) == {}


def test_what_several_numbers_fit_is_not_guessed() -> None:
    (a,) = sizes("a")
    assert solved([(dim_min(a, 10), 10)], {"x": (a,)}) == {}
    assert solved([(dim_max(a, 10), 10)], {"x": (a,)}) == {}
    assert solved([(a // 4, 3)], {"x": (a,)}) == {}
    assert solved([(dim_min(a, 10), 7)], {"x": (a,)}) == {"x": (7,)}


# --- bound by the caller ---------------------------------------------------------------------------------------------

SPLIT = "(float[6,2] x, int64[n] split) => (seq(float) y) {y = SplitToSequence<axis: int = 0>(x, split)}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_contents_may_be_bound(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, x = model(SPLIT.replace("[n]", "[3]")), floats(6, 2)
    parts = run(data, [x, vector(1, 0, 5)], backend, monkeypatch, split=[1, 0, 5])
    for mine, theirs in zip(parts, np.split(x, [1, 1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(IndexFailure):
        run(data, [x, vector(1, 1, 4)], backend, monkeypatch, split=(1, 0, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_over_sequences_may_be_bound(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model("""(int64 count, bool go, float[4] x) => (seq(float) y) {
        none = SequenceEmpty()
        y = Loop(count, go, none) <body = step (int64 i, bool before, seq(float) s) => (bool again, seq(float) t) {
            again = Identity(before)
            one = Constant<value_int: int = 1>()
            end = Add(i, one)
            axes = Constant<value_ints: ints = [0]>()
            stop = Unsqueeze(end, axes)
            part = Slice(x, axes, stop)
            t = SequenceInsert(s, part)
        }>
    }""")
    x = floats(4)
    with pytest.raises(tw.UnsupportedError, match="number of its rounds") as refusal:
        tw.from_onnx(data)
    assert "dims={'count': (number,)}" in str(refusal.value)
    # whether it goes on is data as well, and decides how many elements there are
    with pytest.raises(tw.UnsupportedError, match="data decides whether it goes on"):
        tw.from_onnx(data, dims={"count": (3,)})
    always = model(onnx.printer.to_text(onnx.ModelProto.FromString(data)).split("g (", 1)[1].join(["(", ""]).replace(", bool go", "")
                   .replace("(count, go, none)", '(count, "", none)'))
    for mine, length in zip(run(always, [np.array(3), x], backend, monkeypatch, count=(3,)), (1, 2, 3), strict=True):
        np.testing.assert_array_equal(mine, x[:length])


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_results_may_be_bound(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model("(float[n] x) => (float[?] y, int64[?] first, int64[n] inverse, int64[found] counts) {y, first, inverse, counts = Unique(x)}")
    x = np.array([2, 1, 1, 3, np.nan, np.nan], np.float32)
    for dims in ({"y_0": 4}, {"found": 4, "y_0": 4}):
        found = run(data, [x], backend, monkeypatch, **dims)
        for mine, theirs in zip(found, np.unique(x, return_index=True, return_inverse=True, return_counts=True), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(IndexFailure):
        run(data, [x], backend, monkeypatch, y_0=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rank_of_an_input_may_be_bound(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model("(seq(float[]) s, float[2,3] x) => (seq(float[]) y) {y = SequenceInsert(s, x)}")
    first, second = floats(4), floats(1, 2, 3)
    found = run(data, [first, second, floats(2, 3)], backend, monkeypatch, s_length=2, s_0_rank=1, s_1_rank=3)
    assert [x.shape for x in found] == [(4,), (1, 2, 3), (2, 3)]
    np.testing.assert_array_equal(found[1], second)


@pytest.mark.parametrize(("text", "dims", "error", "message", "hint"), [
    (SPLIT.replace("[n]", "[3]"), {}, tw.UnsupportedError, "the sizes of the elements hang on it", "dims={'split': (number, number, number)}"),
    (SPLIT.replace("int64[n]", "int64"), {}, tw.UnsupportedError, "its contents must be known", "dims={'split': (number,)}"),
    ("(float[4] x) => (int64[a,b] y) {y = NonZero(x)}", {}, tw.UnsupportedError, "does not declare", "dims={'y_0': number, 'y_1': number}"),
    ("(float[4] x) => (int64[1,?] y) {z = NonZero(x) y = Neg(z) }", {}, tw.UnsupportedError, "does not declare", "'z_1': number"),
    ("(float[4] x) => (float[?] y) {y = Unique(x)}", {}, tw.UnsupportedError, "number of different elements", "dims={'y_0': number}"),
    ("(float[4] x, int64[9] s) => (float[a,b,c,d,e,f,g,h,i] y) {y = Expand(x, s)}", {}, tw.UnsupportedError, "does not declare",
     "(number, number, number, number, number, number, ...)"),
    (SPLIT, {"split": (1, 2)}, CompileError, "possible for vectors and scalars of up to 64 integers", ""),
    (SPLIT.replace("[n]", "[3]"), {"split": (1, 2)}, CompileError, "found 2 numbers, expected 3", ""),
    (SPLIT.replace("[n]", "[3]"), {"split": (1, 2, 3.0)}, CompileError, "expected numbers of i64, or None", ""),
    (SPLIT.replace("[n]", "[3]"), {"split": [1, 2, 1 << 70]}, CompileError, "expected numbers of i64, or None", ""),
    (SPLIT.replace("[n]", "[3]"), {"split": (1, None, 3)}, tw.UnsupportedError, "the sizes of the elements hang on it", ""),
    (SPLIT.replace("[n]", "[3]"), {"split": (1, 2, 4)}, CompileError, "add up to 7, axis 0 has 6", ""),
    ("(float x) => (float[?] y) {y = Unique(x)}", {"y_0": "N"}, CompileError, "must be a number", ""),
    ("(float x) => (float[1] y) {y = Unique(x)}", {"y_0": 1}, CompileError, "which the model does not have", ""),
    ("(seq(float[]) s) => (seq(float[]) y) {y = Identity(s)}", {"s_length": 1}, tw.UnsupportedError, "no shape, not even a rank",
     "dims={'s_0_rank': number}"),
    ("(seq(float[]) s) => (seq(float[]) y) {y = Identity(s)}", {"s_length": 1, "s_0_rank": 65}, CompileError, "a number from 0 to 64", ""),
])
def test_a_refusal_says_what_to_bind(text: str, dims: dict[str, Any], error: type[Exception], message: str, hint: str) -> None:
    with pytest.raises(error) as caught:
        tw.from_onnx(model(text), dims=dims)
    assert message in str(caught.value)
    assert hint in str(caught.value)


# --- sequences of which only the length is known ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_a_sequence_whose_sizes_data_decides(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model("(float[n,2] x, int64[3] split, bool other) => (int64 y, float[3] z) {s = SplitToSequence(x, split) t = Identity(s) "
                 "u = If(other) <then_branch = a () => (seq(float) p) {p = Identity(t)}, else_branch = b () => (seq(float) q) {q = Identity(s)}> "
                 "y = SequenceLength(u) k = Constant<value_int: int = -1>() axes = Constant<value_ints: ints = [0]>() "
                 "shape = Unsqueeze(y, axes) z = ConstantOfShape(shape)}")
    for good in ((1, 2, 3), (0, 0, 6)):
        length, zeros = run(data, [floats(6, 2), vector(*good), np.array(True)], backend, monkeypatch)
        assert length.dtype == np.int64 and length.tolist() == 3 and zeros.shape == (3,)
    for bad in ((1, 2, 4), (-1, 1, 6)):
        with pytest.raises(IndexFailure):
            run(data, [floats(6, 2), vector(*bad), np.array(True)], backend, monkeypatch)


@pytest.mark.parametrize("text", ["y = ConcatFromSequence<axis: int = 0>(s)", "k = Constant<value_int: int = 0>() y = SequenceAt(s, k)",
                                  "t = SequenceInsert(s, x) y = ConcatFromSequence<axis: int = 0>(t)"])
def test_its_elements_are_refused(text: str) -> None:
    with pytest.raises(tw.UnsupportedError, match="the sizes of the elements hang on it"):
        tw.from_onnx(model(f"(float[n,2] x, int64[3] split) => (float[a,2] y) {{s = SplitToSequence(x, split) {text}}}"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_condition_on_what_follows_from_a_declared_shape(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that branch is taken which the declared result allows, though its sides differ in rank."""
    data = model("""(float[3] x, int64[2] shape) => (float[4,3] y, float[?] z) {
        grown = Expand(x, shape)
        y = Abs(grown)
        zero = Constant<value_ints: ints = [0]>() one = Constant<value_ints: ints = [1]>()
        rows = Slice(shape, zero, one)
        many = Greater(rows, one)
        z = If(many) <then_branch = a () => (float[12] p) {all = Constant<value_ints: ints = [-1]>() p = Reshape(y, all)},
                      else_branch = b () => (float[4,3] q) {q = Neg(y)}>
    }""")
    x = floats(3)
    y, z = run(data, [x, vector(4, 3)], backend, monkeypatch)
    np.testing.assert_array_equal(y, np.broadcast_to(np.abs(x), (4, 3)))
    np.testing.assert_array_equal(z, y.reshape(-1))
    with pytest.raises(IndexFailure):
        run(data, [x, vector(5, 3)], backend, monkeypatch)
