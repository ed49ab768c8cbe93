"""Tables whose rows are taken: of few bits, of what is computed of narrower ones, and as much as programs hold of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled, target_of
from tilewright import library as lib
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.ir.dims import DimLike, evaluate, symbol
from tilewright.ir.errors import IndexFailure
from tilewright.ir.graph import Array, Builder, Constant, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Bitcast
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.ops.shape import Slice, Take
from tilewright.ir.types import BF16, F32, I64, U8, dtype_named
from tilewright.library_quantized import dequantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes import narrow_tables as module
from tilewright.passes.narrow_tables import narrow_tables
from tilewright.pipeline import run_passes

ROWS, WIDTH = 50, 96
PLACES = np.array([0, 49, 7, 7, 31], np.int64)


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tables take this way."""
    monkeypatch.setattr(module, "SMALL_BYTES", 64)


def integers(low: int, high: int, *shape: int) -> Array:
    """All of low to high - 1 are among them."""
    found = np.random.default_rng(abs(high)).integers(low, high, shape)
    found.reshape(-1)[:2] = low, high - 1
    return found


def taken(table: Array, dtype: str, places: tuple[DimLike, ...] = (symbol("n"),)) -> Graph:
    b = Builder()
    where = b.add(Param("places", I64, places))
    rows = b.add(Take(0), b.add(Const(Constant(table, dtype_named(dtype)))), where)
    return Graph("taken", [where], [b.add(Bitcast(U8), rows) if rows.dtype.is_stored else rows])


def held(graph: Graph) -> tuple[int, int]:
    """Bytes of the constants of a compiled program, and of its arena for one place."""
    caps = LlvmBackend(target_of("cpu")).capabilities
    program, _ = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)
    return sum(constant.array.nbytes for _, constant in program.constants), evaluate(program.workspace_bytes, {"n": 1})


# --- few bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, low, high, bits", [
    ("i8", -8, 8, 4), ("i8", -2, 2, 2), ("i8", 100, 116, 4), ("i8", -128, -112, 4), ("u8", 240, 256, 4), ("u8", 0, 3, 2), ("i8", -8, 9, 8),
    ("int4", -8, 8, 4), ("uint4", 0, 16, 4), ("int2", -2, 2, 2), ("uint2", 0, 4, 2), ("f4e2m1", -6, 7, 4), ("f8e4m3fn", -100, 100, 8)])
def test_bytes_of_few_bits_share_bytes(dtype: str, low: int, high: int, bits: int, small_tables: None) -> None:
    graph = taken(integers(low, high, ROWS, WIDTH).astype(dtype_named(dtype).numpy), dtype)
    found = narrow_tables(graph, Options())
    (table,) = [n.op.value.array for n in found.nodes() if isinstance(n.op, Const) and n.shape and n.shape[0] == ROWS]
    assert table.shape == (ROWS, WIDTH * bits // 8) and (bits < 8 or found is graph)
    assert narrow_tables(found, Options()) is found
    expected = evaluate_graph(graph, [PLACES])
    assert_identical(evaluate_graph(found, [PLACES]), expected)
    assert_identical(run_compiled(compiled(graph), [PLACES]), expected)


@pytest.mark.parametrize("shape", [(WIDTH,), (4, 24), (3, 2, 16), (33,), (16,)])
@pytest.mark.parametrize("places", [(), (2, 2), (symbol("n"),)])
def test_rows_and_places_of_any_rank(shape: tuple[int, ...], places: tuple[DimLike, ...], small_tables: None) -> None:
    """Rows of an odd number of elements, and those too short for a vector, stay bytes."""
    graph = taken(integers(-3, 5, ROWS, *shape).astype(np.int8), "i8", places)
    assert (narrow_tables(graph, Options()) is graph) == (shape in ((33,), (16,)))
    given = np.resize(PLACES, [5 if isinstance(n, type(symbol("n"))) else n for n in places])
    assert_identical(run_compiled(compiled(graph), [given]), evaluate_graph(graph, [given]))


def test_rows_too_short_for_parts_of_two_bits_are_of_four(small_tables: None) -> None:
    graph = taken(integers(-2, 2, ROWS, 32).astype(np.int8), "i8")
    assert held(graph)[0] == ROWS * 16 + 2, "and the shifts"
    assert_identical(run_compiled(compiled(graph), [PLACES]), evaluate_graph(graph, [PLACES]))


def test_a_row_of_the_second_part_that_is_empty_is_packed_at_once(small_tables: None) -> None:
    table = integers(0, 16, ROWS, 128).astype(np.uint8)
    table[:, 64:] = 0
    graph = taken(table, "u8")
    found = narrow_tables(graph, Options())
    assert narrow_tables(found, Options()) is found
    assert_identical(evaluate_graph(found, [PLACES]), evaluate_graph(graph, [PLACES]))


def test_what_stays_bytes(small_tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = integers(-8, 8, ROWS, WIDTH).astype(np.int8)
    graph = taken(table, "i8")
    assert narrow_tables(graph, Options()) is not graph
    b = Builder()
    where, constant = b.add(Param("places", I64, (3,))), lib.constant(b, table)
    both = Graph("both", [where], [b.add(Take(0), constant, where), lib.cast(b, constant, F32)])
    assert narrow_tables(both, Options()) is both, "something else reads the bytes"
    columns = Graph("columns", [where], [b.add(Take(1), constant, where)])
    assert narrow_tables(columns, Options()) is columns
    flags = taken(table > 0, "bool")
    assert narrow_tables(flags, Options()) is flags
    monkeypatch.undo()
    assert narrow_tables(graph, Options()) is graph, "small ones"


def test_a_place_outside_is_an_error_as_before(small_tables: None) -> None:
    for wrong in (ROWS, -1):
        for run in (compiled(taken(integers(-8, 8, ROWS, WIDTH).astype(np.int8), "i8")),
                    compiled(dequantized(integers(-8, 8, ROWS, WIDTH)))):
            with pytest.raises(IndexFailure, match=f"{wrong}.*{ROWS}"):
                run_compiled(run, [np.array([3, wrong], np.int64)])


# --- rows of what is computed ----------------------------------------------------------------------------------------


def test_rows_of_a_part_of_columns(small_tables: None) -> None:
    """As blocks of scales give it that do not fill their row; a part of the rows stays what it is."""
    b = Builder()
    where = b.add(Param("places", I64, (symbol("n"), 2)))
    codes = lib.constant(b, integers(-8, 8, ROWS, WIDTH).astype(np.int8))
    scales = lib.constant(b, np.random.default_rng(0).uniform(0.5, 2, (ROWS, 2, 1)).astype(np.float32))
    spread = lib.reshape(b, lib.broadcast(b, scales, (ROWS, 2, WIDTH)), (ROWS, 2 * WIDTH))
    value = dequantize(b, codes, b.add(Slice((0, 1), (ROWS, WIDTH), (1, 2)), spread))
    graph = Graph("part", [where], [b.add(Take(0), value, where)])
    constants, workspace = held(graph)
    assert constants <= ROWS * (WIDTH // 2 + 8) + 16 and workspace < ROWS * WIDTH
    places = np.stack([PLACES, PLACES[::-1]], 1)
    assert_identical(run_compiled(compiled(graph), [places]), evaluate_graph(graph, [places]))
    few = b.add(Slice((5, 0), (ROWS - 9, WIDTH), (1, 1)), value)
    part = Graph("rows", [where], [b.add(Take(0), few, where)])
    assert_identical(run_compiled(compiled(part), [places % 7]), evaluate_graph(part, [places % 7]))


def dequantized(values: Array, group: int = WIDTH, points: bool = False) -> Graph:
    """Rows of a table of floats, integers times scales a group and row, as DequantizeLinear before Gather gives it."""
    b = Builder()
    where = b.add(Param("places", I64, (symbol("n"),)))
    shape = (ROWS, WIDTH // group, 1)
    scales = lib.constant(b, np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32))
    point = lib.constant(b, integers(-8, 8, *shape).astype(np.int8)) if points else None
    grouped = lib.constant(b, values.astype(np.int8).reshape(ROWS, WIDTH // group, group))
    return Graph("embedding", [where], [b.add(Take(0), lib.reshape(b, dequantize(b, grouped, scales, point), (ROWS, WIDTH)), where)])


@pytest.mark.parametrize("group, points", [(WIDTH, False), (32, True), (WIDTH // 3, False)])
@pytest.mark.parametrize("high, bits", [(8, 4), (128, 8)])
def test_only_rows_that_are_taken_are_dequantized(group: int, points: bool, high: int, bits: int, small_tables: None) -> None:
    graph = dequantized(integers(-high, high, ROWS, WIDTH), group, points)
    constants, workspace = held(graph)
    groups = WIDTH // group
    assert ROWS * WIDTH * bits // 8 <= constants <= ROWS * (WIDTH * bits // 8 + 5 * groups) + 16
    assert workspace < ROWS * WIDTH, "no table of floats"
    expected = evaluate_graph(graph, [PLACES])
    assert_identical(run_compiled(compiled(graph), [PLACES]), expected)


def test_bfloats_stay_bfloats(small_tables: None) -> None:
    b = Builder()
    where = b.add(Param("places", I64, (symbol("n"),)))
    table = lib.constant(b, np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(BF16.numpy))
    graph = Graph("bfloats", [where], [b.add(Take(0), lib.cast(b, table, F32), where)])
    assert held(graph)[0] == ROWS * WIDTH * 2
    assert_identical(run_compiled(compiled(graph), [PLACES]), evaluate_graph(graph, [PLACES]))


def test_what_is_computed_once_stays_so(small_tables: None) -> None:
    """Floats of floats are folded; more rows than the table has are taken of one that is computed once."""
    def rows(x: Array, places: int) -> Graph:
        b = Builder()
        where = b.add(Param("places", I64, (places,)))
        value = lib.cast(b, lib.constant(b, x), F32)
        return Graph("rows", [where], [b.add(Take(0), lib.apply(b, "mul", value, lib.constant(b, np.linspace(1, 2, WIDTH), F32)), where)])

    floats, many = rows(np.ones((ROWS, WIDTH), np.float32), 3), rows(integers(-8, 8, ROWS, WIDTH).astype(np.int8), ROWS)
    assert narrow_tables(floats, Options()) is floats
    assert narrow_tables(many, Options()) is many
    few = rows(integers(-8, 8, ROWS, WIDTH).astype(np.int8), ROWS - 1)
    assert narrow_tables(few, Options()) is not few
    where = few.params[0]
    b = Builder()
    mixed = lib.apply(b, "add", lib.cast(b, lib.constant(b, np.ones((4, 4), np.int8)), F32), b.add(Param("y", F32, (4, 4))))
    given = Graph("given", [where, mixed.inputs[1]], [b.add(Take(0), mixed, where)])
    assert narrow_tables(given, Options()) is given, "computed of what is given"


def test_a_table_of_a_real_size_in_a_file(tmp_path: Path) -> None:
    """As users have it: 4 bits in blocks, compiled to a library whose weights take no more than the file's."""
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    helper, rows, width = onnx.helper, 2000, 128
    codes = integers(-8, 8, rows, width).astype(dtype_named("int4").numpy)
    scales = np.random.default_rng(2).uniform(0.5, 2, (rows, 2)).astype(np.float32)
    packed = helper.make_tensor("codes", onnx.TensorProto.INT4, codes.shape, codes.astype(np.int8).reshape(-1).tolist())
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["table"], axis=1, block_size=64),
             helper.make_node("Gather", ["table", "places"], ["y"])]
    model = helper.make_model(helper.make_graph(
        nodes, "embedding", [helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ("n",))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", width))], [packed, onnx.numpy_helper.from_array(scales, "scales")]),
        ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path / "embedding.onnx"
    path.write_bytes(model.SerializeToString())
    graph = tw.from_onnx(str(path))
    assert held(graph)[0] <= codes.size // 2 + scales.nbytes + 64
    places = np.array([0, 1999, -1, 77], np.int64)
    found = np.asarray(tw.compile(graph, options=Options(threads=1, cache=False))(places))
    np.testing.assert_array_equal(found, (codes.astype(np.float32) * np.repeat(scales, 64, axis=1))[places])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("points", [False, True])
def test_a_table_of_packed_bytes_in_a_file(bits: int, points: bool, small_tables: None) -> None:
    """GatherBlockQuantized, as exporters of language models write it: no wider in the program than in the file, and exact."""
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    helper, from_array, blocks = onnx.helper, onnx.numpy_helper.from_array, 3
    packed = integers(0, 256, ROWS, WIDTH * bits // 8).astype(np.uint8)
    zeros = integers(0, 256, ROWS, -(-blocks * bits // 8)).astype(np.uint8)
    scales = np.random.default_rng(3).uniform(0.5, 2, (ROWS, blocks)).astype(np.float32)
    given = {"packed": packed, "scales": scales, **({"zeros": zeros} if points else {})}
    node = helper.make_node("GatherBlockQuantized", ["packed", "places", *list(given)[1:]], ["y"], domain="com.microsoft", bits=bits,
                            block_size=WIDTH // blocks)
    model = helper.make_model(helper.make_graph(
        [node], "embedding", [helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ("n",))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", WIDTH))], [from_array(a, name) for name, a in given.items()]),
        ir_version=10, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)])
    graph = tw.from_onnx(model.SerializeToString())
    constants, workspace = held(graph)
    assert constants <= packed.nbytes + scales.nbytes + (ROWS * blocks if points else 0) + 64
    assert workspace < ROWS * WIDTH, "no table of floats"

    def opened(x: Array) -> Array:
        return (x[..., np.newaxis] >> np.arange(0, 8, bits) & (1 << bits) - 1).reshape(ROWS, -1)

    middle = opened(zeros)[:, :blocks] if points else np.full((ROWS, blocks), 1 << bits - 1)
    expected = (opened(packed) - np.repeat(middle, WIDTH // blocks, 1)).astype(np.float32) * np.repeat(scales, WIDTH // blocks, 1)
    places = np.array([0, ROWS - 1, -1, -ROWS, 7], np.int64)
    assert_identical(run_compiled(compiled(graph), [places]), [expected[places]])
    outside = np.array([3, ROWS, -ROWS - 1], np.int64)
    assert_identical(run_compiled(compiled(graph), [outside]), [np.stack([expected[3], *np.zeros((2, WIDTH), np.float32)])])
