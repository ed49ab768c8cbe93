"""Attention as one kernel: what it takes, its kernels against the interpreter, special values, and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright as tw
from tests.compiled import QUIET, assert_near, compiled, run_compiled, tolerance_of
from tests.kernel_checks import CAPS, check_kernels, program_of, traced
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.control import Fusion
from tilewright.lowering import attention as lowering
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

Arrays = tuple[np.ndarray, ...]


def plain(q: Any, k: Any, v: Any) -> Any:
    return tw.softmax(q @ np.swapaxes(k, -1, -2) * np.float32(0.3), axis=-1) @ v


def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return tw.softmax(q @ np.swapaxes(k, -1, -2) / np.float32(3.0) + mask, axis=-1) @ v


def causal(q: Any, k: Any, v: Any) -> Any:
    scores = np.einsum("bhqd,bhkd->bhqk", q, k)
    place = np.arange(q.shape[-2], like=q)
    return tw.softmax(np.where(place[:, None] >= place[None, :], scores, -1e9), axis=-1) @ v


def kept_apart(q: Any, k: Any, v: Any) -> Any:
    """Normalized behind the second product, and capped before."""
    scores = np.tanh(q @ np.swapaxes(k, -1, -2))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v + 1


def merged(x: Any, y: Any, z: Any) -> Any:
    """Heads taken from [batch, length, heads, head] and brought back."""
    q, k, v = (a.reshape(a.shape[0], a.shape[1], 2, a.shape[2] // 2).transpose(0, 2, 1, 3) for a in (x, y, z))
    return plain(q, k, v).transpose(0, 2, 1, 3).reshape(x.shape)


def safe(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Rows that see nothing give zeros, as PyTorch exports it."""
    weights = tw.softmax(q @ np.swapaxes(k, -1, -2) + mask, axis=-1)
    return np.where(np.isnan(weights), np.float32(0), weights) @ v


def operands(batch: tuple[int, ...], rows: int, keys: int, depth: int, width: int, dtype: str = "float32") -> Arrays:
    rng = np.random.default_rng(rows * keys + depth)
    shapes = ((*batch, rows, depth), (*batch, keys, depth), (*batch, keys, width))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def strategies(graph: Graph, precision: str = "default") -> list[str]:
    return [n.op.strategy for n in run_passes(graph, Options(precision=precision), CAPS, QUIET)[0].nodes() if isinstance(n.op, Fusion)]


def check(function: Callable[..., Any], *arrays: np.ndarray, symbolic: bool = False, as_loops: bool = True) -> None:
    assert "attention" in strategies(traced(function, arrays, False))
    check_kernels(function, *arrays, symbolic=symbolic, as_loops=as_loops)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of keys and of rows at sizes that the interpreter of loops can take."""
    monkeypatch.setattr(lowering, "MOST_KEYS", 16)
    monkeypatch.setattr(lowering, "USUAL_KEYS", 16)
    monkeypatch.setattr(lowering, "USUAL_ROWS", 12)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, rows, keys, depth, width", [
    ((1, 2), 16, 48, 8, 8), ((1, 1), 17, 51, 5, 9), ((2,), 20, 49, 1, 33), ((), 33, 50, 16, 3), ((2,), 64, 100, 7, 40),
])
def test_sizes(batch: tuple[int, ...], rows: int, keys: int, depth: int, width: int) -> None:
    check(plain, *operands(batch, rows, keys, depth, width), as_loops=rows < 64)
    check(kept_apart, *operands(batch, rows, keys, depth, width), as_loops=False)


@pytest.mark.parametrize("rows, keys", [(17, 49), (24, 48), (25, 65)])
@pytest.mark.parametrize("function", [plain, kept_apart])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_keys(function: Callable[..., Any], rows: int, keys: int) -> None:
    check(function, *operands((1,), rows, keys, 6, 10))


def test_a_head_in_double_precision() -> None:
    check(kept_apart, *operands((1,), 21, 53, 4, 8, "float64"))


@pytest.mark.parametrize("shape", [(2, 2, 16, 48), (2, 1, 16, 48), (1, 2, 1, 48), (2, 1, 1, 48), (48,), (16, 1)])
def test_masks_are_broadcast(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(1).standard_normal(shape).astype("float32")
    check(masked, *operands((2, 2), 16, 48, 3, 5), mask)


def test_masks_along_keys_are_computed_once_for_a_block() -> None:
    def function(q: Any, k: Any, v: Any, seen: Any) -> Any:
        return masked(q, k, v, (1 - seen[:, None, None, :].astype(np.float32)) * np.float32(-1e9))

    seen = np.random.default_rng(1).integers(0, 2, (2, 48))
    check(function, *operands((2, 2), 16, 48, 3, 5), seen)


def test_a_causal_mask() -> None:
    check(causal, *operands((1, 1), 50, 50, 3, 4))


def test_heads_are_read_and_stored_where_they_lie() -> None:
    arrays = tuple(np.random.default_rng(n).standard_normal((2, 48, 8)).astype("float32") for n in range(3))
    check(merged, *arrays)
    assert strategies(traced(merged, arrays, False)).count("elements") == 2  # the panels of keys and of values


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3"])
@pytest.mark.parametrize("keys", [70, 1500])
def test_targets(target: str, keys: int) -> None:
    arrays = operands((2,), 40, keys, 20, 40)
    executable = tw.compile(traced(plain, arrays, False), target, options=Options(cache=False))
    assert_near([executable(*arrays)], [plain(*arrays)], 1e-5)


@pytest.mark.parametrize("bits, registers", [(512, 32), (256, 16)])
def test_tiles_of_other_widths(bits: int, registers: int) -> None:
    """Panels of the keys and of a head of 40 take tiles of different heights."""
    arrays, caps = operands((), 20, 49, 3, 40), Caps(vector_bits=bits, vector_registers=registers)
    program = lower_program(run_passes(traced(plain, arrays, False), Options(), caps, QUIET)[0], caps)[0]
    verify_program(program)
    assert_near(run_program(program, list(arrays)), [plain(*arrays)], 1e-5)


@pytest.mark.parametrize("domain, kind, attributes, shapes", [
    ("", "Attention", {"is_causal": 1}, {"q": (1, 2, 50, 8), "k": (1, 2, 50, 8), "v": (1, 2, 50, 8)}),
    ("", "Attention", {"q_num_heads": 4, "kv_num_heads": 2, "softcap": 5.0}, {"q": (1, 20, 32), "k": (1, 49, 16), "v": (1, 49, 16),
                                                                              "mask": (20, 49)}),
    ("com.microsoft", "MultiHeadAttention", {"num_heads": 2}, {"q": (2, 20, 16), "k": (2, 50, 16), "v": (2, 50, 16)}),
    ("com.microsoft", "Attention", {"num_heads": 2, "unidirectional": 1}, {"x": (1, 50, 16), "w": (16, 48), "b": (48,)}),
])
def test_operators_of_onnx(domain: str, kind: str, attributes: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    node = helper.make_node(kind, list(shapes), ["y"], domain=domain, **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    made = helper.make_graph([node], "attention", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    graph = tw.from_onnx(helper.make_model(made, opset_imports=opsets, ir_version=10))
    assert "attention" in strategies(graph)
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes.values()]
    assert_near(run_compiled(compiled(graph), arrays), evaluate_graph(graph, arrays), tolerance_of(graph))


# --- special values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [masked, safe])
@pytest.mark.parametrize("blocks", [False, True])
def test_rows_that_see_nothing_and_special_scores(function: Callable[..., Any], blocks: bool, request: pytest.FixtureRequest) -> None:
    if blocks:
        request.getfixturevalue("small_blocks")
    q, k, v = operands((1,), 24, 48, 8, 8)
    mask = np.zeros((1, 24, 48), "float32")
    mask[0, 1] = -np.inf                 # nothing
    mask[0, 2, :20] = -np.inf            # nothing in the first block
    mask[0, 3, 5:] = -np.inf             # nothing in the last ones
    mask[0, 4, 33] = np.nan
    mask[0, 5, 0] = np.inf
    mask[0, 6, 47] = np.inf
    mask[0, 7] = -3e38
    mask[0, 8, :47] = -np.inf
    check(function, q, k, v, mask)


def test_a_nan_among_the_queries_stays_in_its_row() -> None:
    q, k, v = operands((1,), 24, 48, 8, 8)
    q[0, 5, 3] = np.nan
    found, = run_compiled(compiled(traced(plain, (q, k, v), False)), [q, k, v])
    assert np.isnan(found[0, 5]).all() and not np.isnan(np.delete(found, 5, axis=1)).any()


# --- open sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, rows, keys", [((2, 3), 16, 24), ((1, 1), 1, 1), ((3, 2), 70, 9), ((1, 2), 5, 100)])
def test_open_sizes(batch: tuple[int, ...], rows: int, keys: int) -> None:
    _check_open(plain, operands(batch, rows, keys, 8, 8))


@pytest.mark.parametrize("keys", [0, 1, 16, 17, 40])
@pytest.mark.usefixtures("small_blocks")
def test_open_keys_in_several_blocks(keys: int) -> None:
    _check_open(plain, operands((1, 2), 20, keys, 8, 8))


@pytest.mark.parametrize("batch, rows", [((0, 2), 4), ((2, 1), 0)])
def test_nothing_to_compute(batch: tuple[int, ...], rows: int) -> None:
    _check_open(plain, operands(batch, rows, 5, 8, 8))


def _check_open(function: Callable[..., Any], arrays: Arrays) -> None:
    q, k, v = arrays
    b, h, n, m = (symbol(name) for name in "bhnm")
    graph = tw.trace(function, [tw.spec((b, h, n, q.shape[-1]), "float32"), tw.spec((b, h, m, q.shape[-1]), "float32"),
                                tw.spec((b, h, m, v.shape[-1]), "float32")])
    assert "attention" in strategies(graph)
    with np.errstate(all="ignore"):
        expected = function(*arrays) if k.shape[-2] else np.zeros((*q.shape[:-1], v.shape[-1]), "float32")
        looped = run_program(program_of(graph), list(arrays))
    executable = compiled(graph)
    found = run_compiled(executable, list(arrays))
    assert_near(found, [expected], tolerance_of(graph))
    assert_near(looped, [expected], tolerance_of(graph))
    assert run_compiled(executable.with_threads(2), list(arrays))[0].tobytes() == found[0].tobytes()


# --- what hangs on nothing but the sizes of a row --------------------------------------------------------------------


@pytest.mark.parametrize("keys", [100, 1100])
def test_rows_do_not_hang_on_the_batch(keys: int) -> None:
    arrays = operands((3, 2), 70, keys, 16, 16)
    whole, = run_compiled(compiled(traced(plain, arrays, False)), list(arrays))
    for part in range(3):
        alone = tuple(a[part:part + 1] for a in arrays)
        found, = run_compiled(compiled(traced(plain, alone, False)), list(alone))
        assert found.tobytes() == whole[part:part + 1].tobytes()


# --- what is left as it is -------------------------------------------------------------------------------------------


def test_strict_precision_divides_each_weight() -> None:
    graph = traced(plain, operands((2,), 16, 50, 3, 5), False)
    for precision in ("strict", "plain"):
        assert "attention" not in strategies(graph, precision)


def test_weights_that_are_a_result_are_stored() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        weights = tw.softmax(q @ np.swapaxes(k, -1, -2), axis=-1)
        return weights @ v, weights

    arrays = operands((2,), 16, 50, 3, 5)
    assert "attention" not in strategies(traced(function, arrays, False))
    check_kernels(function, *arrays, symbolic=False)


def test_values_that_follow_from_the_scores() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        scores = q @ np.swapaxes(k, -1, -2)
        return tw.softmax(scores, axis=-1) @ (v + scores.sum(axis=-2)[..., None])

    arrays = operands((2,), 16, 50, 3, 5)
    assert "attention" not in strategies(traced(function, arrays, False))
    check_kernels(function, *arrays, symbolic=False)


def test_a_mask_that_follows_from_the_scores() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        scores = q @ np.swapaxes(k, -1, -2)
        return tw.softmax(scores + scores.mean(axis=-1, keepdims=True), axis=-1) @ v

    arrays = operands((2,), 16, 50, 3, 5)
    check_kernels(function, *arrays, symbolic=False)


def test_memory_is_linear_in_the_tokens() -> None:
    sizes = []
    for length in (512, 1024):
        graph = traced(plain, operands((1, 2), length, length, 16, 16), False)
        sizes.append(program_of(graph).workspace_bytes)
    assert sizes[1] <= 2 * sizes[0]


def test_the_interpreter_is_the_meaning() -> None:
    arrays = operands((2, 2), 24, 50, 3, 8)
    graph = traced(plain, arrays, False)
    assert_near(run_compiled(compiled(graph), list(arrays)), evaluate_graph(graph, list(arrays)), tolerance_of(graph))
