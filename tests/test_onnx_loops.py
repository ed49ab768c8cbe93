"""ONNX loops and operators whose number of results data decides, against the reference implementation and NumPy.

Models are written as text; each case runs in the interpreter and as machine code. A size that the model declares wrongly must be an
error of the call, never a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import TensorProto, helper

import tilewright as tw
from tilewright.ir.errors import CompileError, IndexFailure

pytestmark = pytest.mark.usefixtures("quick_code")

random = np.random.default_rng(5)
BACKENDS = ("reference", "llvm")


def floats(*shape: int) -> np.ndarray:
    return random.uniform(-2, 2, shape).astype(np.float32)


def model(text: str, opset: int = 21) -> bytes:
    return bytes(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}').SerializeToString())


def run(data: bytes, inputs: Sequence[Any], backend: str, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    made = tw.compile(tw.from_onnx(data), options=tw.Options(cache=False, threads=1))(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


# --- loops whose scan outputs are declared ---------------------------------------------------------------------------

LIMITED = """(int64 n, float limit, float[{width}] x) => (float[{width}] last, float[{rounds},{width}] all) {{
    one = Constant<value: tensor = float {{1}}>()
    begin = Less(one, limit)
    last, all = Loop<body = b (int64 i, bool c, float[{width}] s) => (bool go, float[{width}] t, float[{width}] u) {{
        t = Add(s, one) m = ReduceMax<keepdims: int = 0>(t) go = Less(m, limit) u = Neg(t)
    }}>(n, begin, x)}}"""


def rounds_of(count: int, limit: float, start: float) -> int:
    """How often LIMITED runs."""
    done, going = 0, limit > 1
    while going and done < count:
        start, done = start + 1, done + 1
        going = start < limit
    return done


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize(("count", "limit"), [(0, 9.0), (-3, 9.0), (4, 0.0), (1, 9.0), (3, 9.0), (9, 3.5), (3, 3.0), (5, np.inf), (5, np.nan)])
def test_declared_rounds(count: int, limit: float, width: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(width, dtype=np.float32) - (width - 1)
    expected = rounds_of(count, limit, 0.0)
    inputs = [np.array(count), np.array(limit, np.float32), x]
    last, every = run(model(LIMITED.format(width=width, rounds=expected)), inputs, backend, monkeypatch)
    np.testing.assert_array_equal(last, x + expected)
    np.testing.assert_array_equal(every, -(x + np.arange(1, expected + 1, dtype=np.float32)[:, None]))
    for wrong in {expected + 1, max(expected - 1, 0)} - {expected}:
        with pytest.raises(IndexFailure):
            run(model(LIMITED.format(width=width, rounds=wrong)), inputs, backend, monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_number_of_rounds_is_seen_in_states_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = onnx.ModelProto.FromString(model(LIMITED.format(width=3, rounds=2)))
    graph = tw.from_onnx(data.SerializeToString(), outputs=["last"])
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    executable = tw.compile(graph, options=tw.Options(cache=False))
    with pytest.raises(IndexFailure):
        executable(np.array(3), np.float32(9), floats(3))


def test_undeclared_rounds_are_refused() -> None:
    with pytest.raises(tw.UnsupportedError, match="the model does not declare it"):
        tw.from_onnx(model(LIMITED.format(width=3, rounds="k")))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rounds", [1, 5])
def test_rounds_whose_number_decides_sizes(rounds: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body slices by its number: it is built round by round, a state that grows included."""
    data = model(f"""(float[5,3] x, float[0,3] begin) => (float[?,3] y, float[{rounds}] z) {{
        n = Constant<value_int: int = {rounds}>()
        t = Constant<value: tensor = bool {{1}}>()
        zero = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()
        y, z = Loop<body = b (int64 i, bool c, float[?,3] s) => (bool d, float[?,3] r, float w) {{
            d = Identity(c) p = Reshape(i, one) e = Add(p, one) v = Slice(x, zero, e, zero)
            r = Concat<axis: int = 0>(s, v) w = ReduceSum<keepdims: int = 0>(v)
        }}>(n, t, begin)}}""")
    x = floats(5, 3)
    y, z = run(data, [x, np.zeros((0, 3), np.float32)], backend, monkeypatch)
    np.testing.assert_array_equal(y, np.concatenate([x[:i + 1] for i in range(rounds)]))
    np.testing.assert_allclose(z, [x[:i + 1].sum() for i in range(rounds)], rtol=1e-5)


def test_nested_loops_are_not_unrolled_without_end() -> None:
    body = "w = Concat<axis: int = 0>(s{0}, s{0})"
    for depth in range(6):
        body = body.replace("{0}", str(depth))
        body = f"""w = Loop<body = b{depth} (int64 i{depth}, bool c{depth}, float[?] s{depth}) => (bool d{depth}, float[?] w{depth}) {{
            d{depth} = Identity(c{depth}) {body.replace("w =", f"w{depth} =", 1)} }}>(n, t, s{{0}})"""
    text = f"""(float[1] x) => (float[?] w) {{
        n = Constant<value_int: int = 50>() t = Constant<value: tensor = bool {{1}}>() {body.replace("s{0}", "x")} }}"""
    with pytest.raises(CompileError):
        tw.from_onnx(model(text))


# --- scans with a batch axis -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 5), (2, 7)])
def test_scan_of_opset_8(batch: int, length: int, backwards: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(f"""(float[b,2] begin, float[b,n,2] x, float[2] outer) => (float[b,2] y, float[b,n,2] z) {{
        y, z = Scan<num_scan_inputs: int = 1, directions: ints = [{int(backwards)}],
                    body = f (float[2] s, float[2] e) => (float[2] t, float[2] u) {{
            v = Mul(s, outer) t = Add(v, e) u = Identity(t)}}>("", begin, x)}}""", 8)
    begin, x, outer = floats(batch, 2), floats(batch, length, 2), floats(2)
    y, z = run(data, [begin, x, outer], backend, monkeypatch)
    state, states = begin, []
    for step in range(length)[::-1] if backwards else range(length):
        state = state * outer + x[:, step]
        states.append(state)
    np.testing.assert_allclose(y, state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(z, np.stack(states, 1), rtol=1e-4, atol=1e-5)


def test_lengths_of_opset_8_are_refused() -> None:
    data = model("""(int64[b] k, float[b,2] s, float[b,n,2] x) => (float[b,2] y) {
        y = Scan<num_scan_inputs: int = 1, body = f (float[2] s, float[2] e) => (float[2] t) {t = Add(s, e)}>(k, s, x)}""", 8)
    with pytest.raises(tw.UnsupportedError, match="sequence_lens"):
        tw.from_onnx(data)


# --- Unique ----------------------------------------------------------------------------------------------------------


def unique_model(x: np.ndarray, count: int, **attributes: Any) -> bytes:
    axis = attributes.get("axis")
    shape = [count] if axis is None else [count if a == axis % x.ndim else n for a, n in enumerate(x.shape)]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    results = [helper.make_tensor_value_info("y", kind, shape)]
    results += [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("indices", "inverse", "counts")]
    node = helper.make_node("Unique", ["x"], ["y", "indices", "inverse", "counts"], **attributes)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", kind, x.shape)], results)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())


UNIQUE: dict[str, np.ndarray] = {
    "small integers": random.integers(0, 4, 17), "one": np.zeros(1, np.int8), "all equal": np.ones(9, np.float32),
    "all different": np.arange(8.0)[::-1].copy(), "a matrix": random.integers(0, 5, (3, 7)).astype(np.uint8),
    "NaN, infinity, signed zeros": np.array([np.nan, 0.0, -np.inf, -0.0, np.nan, np.inf, 1.0, np.inf], np.float32),
    "bool": np.array([True, False, True]), "half": np.array([2, 1, 1, 3, 2.5], np.float16), "empty": np.zeros(0, np.float32),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("name", UNIQUE)
def test_unique(name: str, ordered: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_unique(UNIQUE[name], ordered, None, backend, monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [((9, 2), 0), ((2, 9), 1), ((2, 7, 2), -2), ((5, 1), 0), ((1, 3), 0), ((2, 11), -1)])
def test_unique_slices(shape: tuple[int, ...], axis: int, ordered: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_unique(random.integers(0, 2, shape).astype(np.float32), ordered, axis, backend, monkeypatch)


def check_unique(x: np.ndarray, ordered: int, axis: int | None, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    y, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not ordered:
        order = np.argsort(first)
        y, first, counts = (y[order] if axis is None else np.take(y, order, axis)), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    attributes = {"sorted": ordered} | ({} if axis is None else {"axis": axis})
    found = run(unique_model(x, len(first), **attributes), [x], backend, monkeypatch)
    for mine, theirs in zip(found, (y, first, inverse, counts), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for wrong in (len(first) - 1, len(first) + 1):
        if 0 <= wrong <= (x.size if axis is None else x.shape[axis]):
            with pytest.raises(IndexFailure):
                run(unique_model(x, wrong, **attributes), [x], backend, monkeypatch)


def test_undeclared_unique_is_refused() -> None:
    with pytest.raises(tw.UnsupportedError, match="the number of different elements is decided by data"):
        tw.from_onnx(model("(float[7] x) => (float[k] y) {y = Unique(x)}"))


# --- shapes that are declared further on -----------------------------------------------------------------------------

THROUGH = """(float n, float k) => (float[{size}] y) {{
    zero = Constant<value: tensor = float {{0}}>()
    one = Constant<value: tensor = float {{1}}>()
    double = Mul(k, k)
    r = Range(zero, n, one)
    s = Mul(r, double)
    t = Cos(s)
    u = Sub(one, t)
    y = Add(u, s)
}}"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 7])
def test_shapes_behind_scalars(size: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [np.float32(size), np.float32(0.5)]
    places = np.arange(size, dtype=np.float32) * np.float32(0.25)
    found, = run(model(THROUGH.format(size=size)), inputs, backend, monkeypatch)
    np.testing.assert_allclose(found, 1 - np.cos(places) + places, rtol=1e-5)
    with pytest.raises(IndexFailure):
        run(model(THROUGH.format(size=size + 1)), inputs, backend, monkeypatch)


def test_shapes_behind_a_broadcast_are_not_taken() -> None:
    """What is added to a vector may be shorter than the sum."""
    with pytest.raises(tw.UnsupportedError, match="does not declare"):
        tw.from_onnx(model("""(float n, float[5] x) => (float[5] y) {
            zero = Constant<value: tensor = float {0}>() one = Constant<value: tensor = float {1}>()
            r = Range(zero, n, one) y = Add(r, x)}"""))


# --- ai.onnx.ml ------------------------------------------------------------------------------------------------------


def classic(op: str, *inputs: np.ndarray, result: int, **attributes: Any) -> bytes:
    names = [f"x{i}" for i in range(len(inputs))]
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in zip(names, inputs)]
    node = helper.make_node(op, names, ["y"], domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", result, None)])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 4)], ir_version=10).SerializeToString())


@pytest.mark.parametrize("backend", BACKENDS)
def test_classic_operators(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, places = floats(3, 7), np.array([[6, 0, 2]])
    found, = run(classic("ArrayFeatureExtractor", x, places, result=TensorProto.FLOAT), [x, places], backend, monkeypatch)
    np.testing.assert_array_equal(found, x[:, places[0]])
    found, = run(classic("ArrayFeatureExtractor", x[0], places, result=TensorProto.FLOAT), [x[0], places], backend, monkeypatch)
    np.testing.assert_array_equal(found, x[:1, places[0]])
    x[0, :3] = np.nan, np.inf, 0.5
    found, = run(classic("Binarizer", x, result=TensorProto.FLOAT, threshold=0.5), [x], backend, monkeypatch)
    np.testing.assert_array_equal(found, (x > 0.5).astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_label_encoder(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([3, 1, 9, -4, 3])
    data = classic("LabelEncoder", x, result=TensorProto.FLOAT, keys_int64s=[3, 1, 3], values_floats=[0.5, 1.5, 2.5], default_float=-7.0)
    np.testing.assert_array_equal(run(data, [x], backend, monkeypatch)[0], np.array([2.5, 1.5, -7, -7, 2.5], np.float32))
    y = np.array([[np.nan, 1.0], [2.0, -0.0]], np.float32)
    data = classic("LabelEncoder", y, result=TensorProto.INT64, keys_floats=[float("nan"), 2.0, 0.0], values_int64s=[4, 5, 6])
    np.testing.assert_array_equal(run(data, [y], backend, monkeypatch)[0], [[4, -1], [5, 6]])
    with pytest.raises(tw.UnsupportedError, match="strings"):
        tw.from_onnx(classic("LabelEncoder", x, result=TensorProto.INT64, keys_strings=["a"], values_int64s=[1]))
    with pytest.raises(CompileError, match="2 keys, but 1 values"):
        tw.from_onnx(classic("LabelEncoder", x, result=TensorProto.INT64, keys_int64s=[1, 2], values_int64s=[1]))
