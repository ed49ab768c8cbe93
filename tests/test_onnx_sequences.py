"""Sequences and optional values of ONNX against its reference implementation: on odd sizes, in the interpreter and as machine code.

Models are written as text. Inputs that are sequences have their length bound, and give one parameter an element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx.reference import ReferenceEvaluator

import tilewright as tw
from tilewright.ir.errors import CompileError, IndexFailure

random = np.random.default_rng(23)
BACKENDS = ("reference", "llvm")


def floats(*shape: int) -> np.ndarray:
    return random.uniform(-2, 2, shape).astype(np.float32)


def model(text: str, opset: int = 21) -> bytes:
    return bytes(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}').SerializeToString())


def flat(values: Sequence[Any]) -> list[Any]:
    return [x for v in values for x in (v if isinstance(v, list) else [v])]


def check(text: str, inputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, opset: int = 21, **dims: int) -> None:
    """The results are the reference's, element by element, on each backend."""
    data = model(text, opset)
    expected = flat(ReferenceEvaluator(onnx.ModelProto.FromString(data)).run(None, dict(inputs)))
    for backend in BACKENDS:
        monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
        made = tw.compile(tw.from_onnx(data, dims=dims), options=tw.Options(cache=False, threads=1))(*flat(list(inputs.values())))
        found = list(made) if isinstance(made, tuple) else [made]
        assert [x.shape for x in found] == [np.shape(x) for x in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.dtype == np.asarray(theirs).dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("insert", [-3, -1, 0, 2])
@pytest.mark.parametrize("erase", [-4, -1, 0, 3])
def test_insert_and_erase(insert: int, erase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""(float[3,1] a, float[7] b, float[1,0,5] c, float[2] d) => (seq(float) y, int64 n, float[?] last) {{
        s = SequenceConstruct(a, b, c)
        i = Constant<value_int: int = {insert}>()
        t = SequenceInsert(s, d, i)
        e = Constant<value_int: int = {erase}>()
        y = SequenceErase(t, e)
        n = SequenceLength(y)
        k = Constant<value_int: int = -1>()
        u = SequenceInsert(y, d)
        last = SequenceAt(u, k)
    }}"""
    check(text, {"a": floats(3, 1), "b": floats(7), "c": floats(1, 0, 5), "d": floats(2)}, monkeypatch)


def test_insert_behind_the_last() -> None:
    """The standard allows the position behind the last element, where the reference implementation inserts in front."""
    data = model("(float[2] a, float[3] b) => (seq(float) y) {k = Constant<value_int: int = 1>() s = SequenceConstruct(a) "
                 "y = SequenceInsert(s, b, k)}")
    first, second = tw.compile(tw.from_onnx(data), options=tw.Options(cache=False))(floats(2), floats(3))
    assert (first.shape, second.shape) == ((2,), (3,))


@pytest.mark.parametrize("place", [-3, -1, 0, 1, 2])
def test_position_by_data(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(float[n,3] a, float[n,3] b, float[n,3] c, int64 i) => (float[n,3] y) {s = SequenceConstruct(a, b, c) y = SequenceAt(s, i)}"
    check(text, {"a": floats(5, 3), "b": floats(5, 3), "c": floats(5, 3), "i": np.array(place)}, monkeypatch)


@pytest.mark.parametrize("place", [-4, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_position_by_data_outside(place: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    data = model("(float[3] a, float[3] b, float[3] c, int64 i) => (float[3] y) {s = SequenceConstruct(a, b, c) y = SequenceAt(s, i)}")
    executable = tw.compile(tw.from_onnx(data), options=tw.Options(cache=False))
    with pytest.raises(IndexFailure):
        executable(floats(3), floats(3), floats(3), np.array(place))


@pytest.mark.parametrize(("text", "error", "message"), [
    ("i = Constant<value_int: int = 2>() y = SequenceAt(s, i)", CompileError, "SequenceAt: the position 2 is outside -2..1"),
    ("i = Constant<value_int: int = -3>() t = SequenceInsert(s, a, i) y = SequenceAt(t, i)", CompileError,
     "SequenceInsert: the position -3 is outside -2..2"),
    ("y = SequenceAt(s, j)", tw.UnsupportedError, "the elements have different types"),
    ("t = SequenceErase(s, j) i = Constant<value_int: int = 0>() y = SequenceAt(t, i)", tw.UnsupportedError,
     "SequenceErase: input 'position' is computed from data"),
    ("y = Neg(s)", CompileError, "Neg: input 0 is a sequence; a tensor is needed"),
    ("y = SequenceAt(a, j)", CompileError, "SequenceAt: a sequence is needed, found a tensor"),
    ("t = SequenceInsert(s, j) y = SequenceAt(t, j)", CompileError, "the elements of a sequence have different dtypes: f32, i64"),
    ("t = SequenceEmpty() y = SequenceAt(t, j)", CompileError, "SequenceAt: the sequence has no elements"),
    ("t = SequenceEmpty() y = ConcatFromSequence<axis: int = 0>(t)", CompileError, "ConcatFromSequence: the sequence has no elements"),
    ("y = ConcatFromSequence<axis: int = 0>(s)", CompileError, "the elements have different ranks: 1, 2"),
    ("o = Optional<type: type_proto = float>() y = OptionalGetElement(o)", CompileError, "the optional value is empty"),
    ("z = Constant<value_int: int = 0>() t = SplitToSequence(a, z) y = SequenceAt(t, j)", CompileError, "'split' must be positive"),
    ("z = Constant<value_ints: ints = [2, 2]>() t = SplitToSequence(a, z) y = SequenceAt(t, j)", CompileError, "add up to 4, axis 0 has 3"),
])
def test_errors(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        tw.from_onnx(model(f"(float[3] a, float[2,3] b, int64 j) => (float[?] y) {{s = SequenceConstruct(a, b) {text}}}"))
    assert message in str(caught.value)


# --- splitting and joining -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "value_int: int = 1", "value_int: int = 3", "value_int: int = 9", "value_ints: ints = [1, 6, 0]"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split_to_sequence(split: str, keep: int, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = f"k = Constant<{split}>() y = SplitToSequence<axis: int = {axis}, keepdims: int = {keep}>(x, k)" if split else \
        f"y = SplitToSequence<axis: int = {axis}, keepdims: int = {keep}>(x)"
    shape = [2, 2, 2]
    shape[axis] = 7
    declared = ",".join(map(str, shape))
    check(f"(float[{declared}] x) => (seq(float) y, int64 n) {{{given} n = SequenceLength(y)}}", {"x": floats(*shape)}, monkeypatch)


@pytest.mark.parametrize(("axis", "new"), [(0, 0), (1, 0), (-1, 0), (0, 1), (1, 1), (-1, 1), (-3, 1)])
def test_concat_from_sequence(axis: int, new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""(float[a,3] x, float[b,3] y) => (float[?,?] z) {{
        s = SequenceConstruct(x, y, x) z = ConcatFromSequence<axis: int = {axis}, new_axis: int = {new}>(s)}}"""
    rows = 4 if axis or new else 5
    check(text, {"x": floats(4, 3), "y": floats(rows, 3)}, monkeypatch)


# --- inputs and outputs ----------------------------------------------------------------------------------------------


def test_sequence_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(seq(float[n]) s, float[1] x) => (seq(float) y, seq(int64) z) {
        y = SequenceMap<body = one (float[n] e, float[1] w) => (float[n] r) {r = Mul(e, w)}>(s, x)
        z = SequenceMap<body = two (float[n] e) => (int64[1] r) {r = Shape(e)}>(y)}"""
    check(text, {"s": [floats(4), floats(1), floats(7)], "x": floats(1)}, monkeypatch, s_length=3)


def test_elements_of_an_input_keep_their_names_apart() -> None:
    data = model("(seq(float[n]) s, float[n] s_0_) => (float[?] y) {k = Constant<value_int: int = 1>() y = SequenceAt(s, k)}")
    graph = tw.from_onnx(data, dims={"s_length": 2})
    assert [p.op.label for p in graph.params] == ["s_0", "s_1", "s_0_"]
    assert str(graph.params[1].type) == "f32[s_1_0]"


@pytest.mark.parametrize(("text", "dims", "message"), [
    ("(seq(float[n]) s) => (int64 y) {y = SequenceLength(s)}", {}, "input 's' is a sequence: the call decides how many elements it has"),
    ("(seq(float[n]) s) => (int64 y) {y = SequenceLength(s)}", {"s_length": -1}, "dims['s_length'] must be a number from 0 to 4096"),
    ("(optional(float[n]) s) => (bool y) {y = OptionalHasElement(s)}", {}, "input 's' is optional: the call decides whether it is there"),
    ("(seq(float[n]) s) => (seq(float) y) {y = Identity(s)}", {"s_length": 0}, "output 'y' is a sequence without elements"),
    ("(seq(seq(float[n])) s) => (int64 y) {y = SequenceLength(s)}", {"s_length": 1}, "is a sequence; only tensors, sequences of them"),
])
def test_refused_inputs_and_outputs(text: str, dims: dict[str, int], message: str) -> None:
    with pytest.raises(CompileError) as caught:
        tw.from_onnx(model(text), dims=dims)
    assert message in str(caught.value)


@pytest.mark.parametrize("present", [0, 1])
def test_optional_inputs(present: int) -> None:
    data = model("""(optional(float[3]) x, float[3] d) => (float[3] y, bool h) {
        h = OptionalHasElement(x)
        y = If<then_branch = a () => (float[3] t) {t = OptionalGetElement(x)}, else_branch = b () => (float[3] e) {e = Identity(d)}>(h)}""")
    x, d = floats(3), floats(3)
    executable = tw.compile(tw.from_onnx(data, dims={"x_present": present}), options=tw.Options(cache=False))
    y, has = executable(*([x, d] if present else [d]))
    assert has == bool(present)
    np.testing.assert_array_equal(y, x if present else d)


# --- control flow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [False, True])
def test_branches_that_give_sequences(condition: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[3] a, float[5] b, bool k) => (seq(float) y) {
        s = SequenceConstruct(a, b)
        y = If<then_branch = l () => (seq(float) t) {t = Identity(s)},
               else_branch = r () => (seq(float) e) {n = Neg(a) m = Exp(b) e = SequenceConstruct(n, m)}>(k)}"""
    check(text, {"a": floats(3), "b": floats(5), "k": np.array(condition)}, monkeypatch)


def test_loop_over_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[2,7] x) => (seq(float) y, float[4,1] z) {
        s = SplitToSequence<axis: int = 1, keepdims: int = 0>(x)
        n = Constant<value_int: int = 4>()
        k = Constant<value_int: int = 1>()
        true = Cast<to: int = 9>(k)
        e = SequenceEmpty()
        y, z = Loop<body = b (int64 i, bool c, seq(float) v) => (bool d, seq(float) w, float[1] r) {
            d = Identity(c) t = SequenceAt(s, i) u = Neg(t) w = SequenceInsert(v, u) r = ReduceSum(t)
        }>(n, true, e)}"""
    check(text, {"x": floats(2, 7)}, monkeypatch)


def test_unrolling_has_a_limit() -> None:
    data = model("""(float[3] x) => (int64 y) {
        n = Constant<value_int: int = 1000000>()
        true = Constant<value: tensor = bool {1}>()
        e = SequenceEmpty()
        s = Loop<body = b (int64 i, bool c, seq(float) v) => (bool d, seq(float) w) {d = Identity(c) w = SequenceInsert(v, x)}>(n, true, e)
        y = SequenceLength(s)}""")
    with pytest.raises(tw.UnsupportedError, match="too many nodes|more than 4096"):
        tw.from_onnx(data)
