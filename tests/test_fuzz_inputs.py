"""Values that the fuzzer's programs meet, and graphs that apply functions to them directly."""

from __future__ import annotations

import numpy as np
import pytest
from compiled import compiled, run_compiled

from tilewright.fuzz.families import seed_graphs
from tilewright.fuzz.generate_arithmetic import arithmetic_graph, formula_seeds
from tilewright.fuzz.generate_functions import FUNCTIONS, function_graph, function_seeds, more_functions
from tilewright.fuzz.graphs import GraphCase, GraphSubject
from tilewright.fuzz.input_kinds import INPUT_KINDS, SHARES, inputs_of_kind
from tilewright.fuzz.rebuild import MOST_RESULTS, acceptable
from tilewright.fuzz.shadow import compare, shadow
from tilewright.fuzz.shadow_values import FORMATS
from tilewright.fuzz.subject import Refused
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.ops.compute import Cast, Elementwise
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.scalar import SCALARS
from tilewright.ir.printer import format_graph
from tilewright.ir.types import ARRAY_DTYPES, BF16, F16, F32, F64, I32, U8, DType

NUMBERS = [dtype for dtype in ARRAY_DTYPES if not dtype.is_bool]


def identity(dtype: DType, *shape: int) -> Graph:
    b = Builder()
    return Graph("g", [x := b.add(Param("x", dtype, shape))], [x])


def drawn(dtype: DType, kind: str, *shape: int, times: int = 40) -> np.ndarray:
    """Inputs of one kind, of several draws."""
    rng = np.random.default_rng(1)
    return np.stack([inputs_of_kind(identity(dtype, *shape), rng, kind)[0] for _ in range(times)])


# --- kinds of inputs ---------------------------------------------------------------------------------------------------


def test_the_shares_are_of_the_kinds() -> None:
    assert len(SHARES) == len(INPUT_KINDS) and sum(SHARES) == pytest.approx(1)


@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=str)
def test_inputs_have_the_type_of_their_parameter(dtype: DType, kind: str) -> None:
    size = symbol("N", 0, 3)
    b = Builder()
    params = [b.add(Param(f"x{i}", dtype, shape)) for i, shape in enumerate([(), (1,), (0, 4), (size, 5), (2, 3, 7)])]
    graph = Graph("g", params, params)
    first, again = (inputs_of_kind(graph, np.random.default_rng(3), kind) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    assert all(a.dtype == dtype.numpy and a.ndim == p.rank for a, p in zip(first, params))


def test_a_size_below_zero_is_refused() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (symbol("N", 0, 0) - 1,)))
    with pytest.raises(Refused, match="no array has the sizes"):
        inputs_of_kind(Graph("g", [x], [x]), np.random.default_rng(0), "plain")


@pytest.mark.parametrize(("wide", "narrow"), [(F32, BF16), (F32, F16), (F64, F16), (F64, F32), (F64, BF16)], ids=str)
def test_numbers_half_way_between_neighbours(wide: DType, narrow: DType) -> None:
    """Of both parities, exactly in the middle and next to it."""
    values = drawn(wide, "borders", 64).astype(np.float64).ravel()
    values = values[(np.abs(values) > 0.1) & (np.abs(values) < 100)]
    mantissa = np.abs(np.frexp(values)[0]) * 2.0 ** FORMATS[narrow.numpy].bits
    rest, whole = np.modf(mantissa)
    tied = rest == 0.5
    assert (tied & (whole % 2 == 0)).sum() > 10 and (tied & (whole % 2 == 1)).sum() > 10
    step = 2.0 ** (FORMATS[narrow.numpy].bits - FORMATS[wide.numpy].bits)
    assert (np.abs(rest - 0.5) == step).sum() > 10


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_at_the_borders_of_dtypes(dtype: DType) -> None:
    values = set(drawn(dtype, "borders", 128).astype(np.float64).ravel().tolist())
    wanted = {127.0, 1.0, 0.0} if dtype.is_float else {float(dtype.bits), float(dtype.bits - 1), float(dtype.highest), float(dtype.lowest)}
    if dtype.is_float:
        form = FORMATS[dtype.numpy]
        wanted |= {form.largest, -form.largest, form.smallest, form.normal, 128.0 if form.bits < 11 else 127.5}
        wanted -= {1.0}
    assert wanted <= values


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_whole_arrays_of_one_special_value(dtype: DType) -> None:
    found = drawn(dtype, "extreme", 3, 4, times=200).astype(np.float64)
    same = [a for a in found if len({x.tobytes() for x in a.ravel()}) == 1]
    assert {-np.inf, np.inf} <= {float(a.flat[0]) for a in same} and any(np.isnan(a).all() for a in same)


# --- graphs of functions -----------------------------------------------------------------------------------------------


def test_seeds_hold_every_function_and_cast() -> None:
    applied: set[tuple[str, DType]] = set()
    casts: set[tuple[DType, DType]] = set()
    for graph in function_seeds():
        assert acceptable(graph) and len(graph.results) <= MOST_RESULTS
        for node in graph.results:
            if isinstance(node.op, Elementwise):
                applied.add((node.op.function, node.inputs[-1].dtype))
            elif isinstance(node.op, Cast):
                casts.add((node.inputs[0].dtype, node.dtype))
    assert applied == {(name, dtype) for dtype in ARRAY_DTYPES for name in FUNCTIONS[dtype]}
    assert {name for name, _ in applied} == set(SCALARS)
    assert len(casts) == len(ARRAY_DTYPES) * (len(ARRAY_DTYPES) - 1)


def test_seeds_are_acceptable_and_differ() -> None:
    graphs = list(seed_graphs())
    assert all(map(acceptable, graphs)) and len({g.fingerprint for g in graphs}) == len(graphs)


@pytest.mark.parametrize("seed", range(30))
def test_graphs_of_functions_are_well_typed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = function_graph(rng)
    assert acceptable(graph)
    assert format_graph(graph) == format_graph(function_graph(np.random.default_rng(seed)))
    more = more_functions(graph, rng, graph)
    assert more is not None and acceptable(more) and more.params == graph.params


@pytest.mark.parametrize("seed", range(30))
def test_formulas_are_well_typed(seed: int) -> None:
    graph = arithmetic_graph(np.random.default_rng(seed))
    assert acceptable(graph)
    assert format_graph(graph) == format_graph(arithmetic_graph(np.random.default_rng(seed)))


def test_formulas_hold_sums_of_products_in_every_dtype_of_floats() -> None:
    found = {node.dtype for graph in formula_seeds() for node in graph.nodes()
             if node.op == Elementwise("add") and any(x.op == Elementwise("mul") for x in node.inputs)}
    assert found == {dtype for dtype in ARRAY_DTYPES if dtype.is_float}


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_reported_of_formulas(seed: int) -> None:
    """As machine code, to the last place, with and without fused operations in the CPU."""
    graph = arithmetic_graph(np.random.default_rng(seed), F32)
    GraphSubject().check(GraphCase(graph, seed=seed, inputs="normal", target=("cpu", "cpu:x86-64")[seed]), native=True)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_reported_of_functions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    GraphSubject().check(GraphCase(function_graph(rng), seed=seed, inputs="borders"), native=True)


@pytest.mark.parametrize(("name", "dtype", "wrong"), [
    ("shl", I32, lambda x, y: x << (y & 31)), ("shr", U8, lambda x, y: x >> (y & 7)), ("mod", I32, np.fmod)])
def test_borders_show_what_goes_wrong_there(name: str, dtype: DType, wrong: np.ufunc) -> None:
    """Functions that are right for small numbers alone give another result for some of these inputs."""
    b = Builder()
    params = [b.add(Param(f"x{i}", dtype, (17,))) for i in range(2)]
    graph = Graph("g", params, [b.add(Elementwise(name), *params)])
    executable, rng, found = compiled(graph), np.random.default_rng(0), 0
    with np.errstate(all="ignore"):
        for _ in range(8):
            inputs = inputs_of_kind(graph, rng, "borders")
            expected = shadow(graph, inputs)
            assert compare(expected, run_compiled(executable, inputs)) is None
            found += compare(expected, [np.asarray(wrong(*inputs)).astype(dtype.numpy)]) is not None
    assert found
