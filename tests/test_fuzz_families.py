"""Families of graphs along axes and of windows, sizes, inputs of one sign, and mutators of what lies in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from tilewright.fuzz import native as machine
from tilewright.fuzz.families import stored_graph
from tilewright.fuzz.generate import random_array
from tilewright.fuzz.generate_axes import axis_graph
from tilewright.fuzz.generate_blocks import block_graph, block_seeds, wide_seeds
from tilewright.fuzz.generate_memory import memory_graph, twin_graph
from tilewright.fuzz.generate_windows import window_graph
from tilewright.fuzz.graphs import GraphCase, GraphSubject
from tilewright.fuzz.input_kinds import inputs_of_kind, make_sided
from tilewright.fuzz.mutate import MUTATORS, mutate
from tilewright.fuzz.mutate_memory import reordered, stored
from tilewright.fuzz.rebuild import MOST_WORK, acceptable
from tilewright.fuzz.sequences import completed, run_step
from tilewright.fuzz.sizes import random_size, random_symbol
from tilewright.ir.dims import symbols_of
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import ArgReduce, ArgSort, Cumulative, Dot, Reduce, ReduceWindow, Sort
from tilewright.ir.parser import parse
from tilewright.ir.types import ARRAY_DTYPES, dtype_of
from tilewright.ir.verify import verify

Family = Callable[[np.random.Generator], Graph]
MADE = (axis_graph, block_graph, window_graph, stored_graph, memory_graph, twin_graph)


@pytest.mark.parametrize("make", MADE)
def test_families_make_acceptable_cases(make: Family) -> None:
    rng = np.random.default_rng(1)
    graphs = [make(rng) for _ in range(80)]
    for graph in graphs:
        verify(graph)
    assert sum(map(acceptable, graphs)) > 70
    again = np.random.default_rng(1)
    assert [g.fingerprint for g in graphs] == [make(again).fingerprint for _ in range(80)]


@pytest.mark.parametrize("make", MADE)
def test_the_clean_compiler_keeps_its_promises_on_families(make: Family) -> None:
    """Without machine code; every third of these seeds is lowered."""
    rng = np.random.default_rng(2)
    graphs = [g for g in (make(rng) for _ in range(16)) if acceptable(g)]
    for seed, graph in enumerate(graphs):
        GraphSubject().check(GraphCase(graph, (), "default", "cpu", False, seed, "sided" if seed % 2 else "special"), False)


def test_axes_are_long_and_short_for_every_op() -> None:
    rng = np.random.default_rng(3)
    nodes = [n for _ in range(400) for n in axis_graph(rng).nodes()]
    for op in (Reduce, ArgReduce, ArgSort, Sort, Cumulative):
        read = [max(n for n in x.inputs[0].shape if isinstance(n, int)) for x in nodes if type(x.op) is op
                and any(isinstance(n, int) for n in x.inputs[0].shape)]
        assert max(read) > 64 and min(read) < 17


def test_windows_have_all_attributes() -> None:
    rng = np.random.default_rng(4)
    ops = [n.op for _ in range(200) for n in window_graph(rng).nodes() if isinstance(n.op, ReduceWindow)]
    for name, usual in (("window", 1), ("strides", 1), ("padding", (0, 0)), ("dilation", 1)):
        assert any(value != usual for op in ops for value in getattr(op, name))
    assert any(sum(n > 1 for n in op.window) > 1 and op.window[-1] == 1 and max(op.dilation) > 1 for op in ops)


def test_symbols_of_one_name_have_one_declaration() -> None:
    rng = np.random.default_rng(5)
    declarations: dict[str, set[str]] = {}
    sizes: dict[str, set[int]] = {}
    for _ in range(400):
        declared, = symbols_of(random_symbol(rng))
        declarations.setdefault(declared.name, set()).add(declared.declaration())
        size = random_size(declared, rng)
        sizes.setdefault(declared.name, set()).add(size)
        assert declared.upper is not None and declared.lower <= size <= declared.upper and size % declared.multiple_of == 0
    assert all(len(found) == 1 for found in declarations.values()) and len(declarations) > 8
    assert sizes["N1to8"] >= {1, 8}


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=str)
def test_inputs_of_one_sign(dtype: object) -> None:
    signs = set()
    for seed in range(20):
        array = random_array(dtype, (30,), np.random.default_rng(seed))  # type: ignore[arg-type]  # pytest does not type its parameters
        make_sided(array, np.random.default_rng(seed))
        if array.dtype == np.bool_:
            signs.add(bool(array.mean() > 0.5))
            assert 0 <= min(array.mean(), 1 - array.mean()) < 0.2
        else:
            signs.add(bool((array > 0).all()))
            assert (array > 0).all() or (array < 0).all()
    assert len(signs) == 1 + (dtype_of(array.dtype).kind != "u")


def test_sided_inputs_reach_every_parameter() -> None:
    graph = parse("graph @g(%x: f32[4, 5], %y: bool[9]) -> (a, b) {\n  return %x, %y\n}")
    x, y = inputs_of_kind(graph, np.random.default_rng(0), "sided")
    assert (x > 0).all() or (x < 0).all()
    assert y.shape == (9,)


SUMS = """graph @g(%x: f32[6, 6], %w: f32[6, 6], %y: f32[6, 6]) -> (z) {
  %0: f32[6, 6] = dot %x, %w {lhs_contract=(1,), rhs_contract=(0,), lhs_batch=(), rhs_batch=()}
  %1: f32[6, 6] = sub %0, %y
  return %1
}"""


@pytest.mark.parametrize("name", ["domain.apart", "domain.with_itself", "domain.twin"])
def test_mutants_of_what_lies_in_memory(name: str) -> None:
    graph = parse(SUMS)
    made = 0
    for seed in range(30):
        mutant = MUTATORS[name](graph, np.random.default_rng(seed), graph)
        if mutant is None:
            continue
        verify(mutant)
        made += 1
        assert mutant.results[0].type == graph.results[0].type
        assert len(mutant.nodes()) > len(graph.nodes())
        assert len(mutant.results) == (2 if name == "domain.twin" else 1)
    assert made > 20


def test_twins_differ_in_one_place() -> None:
    """The copy subtracts the other way round, or is another function, on params of its own or the same."""
    graph = parse(SUMS)
    x, w, y = (np.arange(36, dtype=np.float32).reshape(6, 6) + n for n in range(3))
    seen = set()
    for seed in range(60):
        mutant = MUTATORS["domain.twin"](graph, np.random.default_rng(seed), graph)
        if mutant is not None and len(mutant.params) == 3:
            first, second = evaluate_graph(mutant, [x, w, y])
            assert np.array_equal(first, x @ w - y)
            seen |= {"turned"} & {"turned" if np.array_equal(second, y - x @ w) else ""}
        seen |= {"own"} & {"own" if mutant is not None and len(mutant.params) > 3 else ""}
    assert seen == {"turned", "own"}


def test_values_stay_of_their_type_when_they_are_stored_or_reordered() -> None:
    b = Builder()
    graph = parse("graph @g(%x: f32[6, 1, 6]) -> (y) {\n  return %x\n}")
    x, = graph.params
    b.keep(x)
    array = np.arange(36, dtype=np.float32).reshape(6, 1, 6)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        assert stored(b, rng, x).type == x.type
        moved = reordered(b, rng, x)
        result, = evaluate_graph(Graph("g", [x], [moved]), [array])
        assert moved.type == x.type and np.array_equal(np.sort(result, None), np.sort(array, None))


def test_programs_are_bounded_by_their_work() -> None:
    """Long axes of contractions are too much for the loop interpreter."""
    def text(n: int) -> str:
        return (f"graph @g(%x: f32[{n}, {n}], %w: f32[{n}, {n}]) -> (z) {{\n  %0: f32[{n}, {n}] = dot %x, %w {{lhs_contract=(1,), "
                f"rhs_contract=(0,), lhs_batch=(), rhs_batch=()}}\n  return %0\n}}")

    assert acceptable(parse(text(33))) and MOST_WORK > 33 ** 3
    assert not acceptable(parse(text(70)))


def test_distinct_inputs_differ_everywhere() -> None:
    graph = parse("graph @g(%x: f32[7, 90], %y: i8[30], %z: u64[41]) -> (a, b, c) {\n  return %x, %y, %z\n}")
    for array in inputs_of_kind(graph, np.random.default_rng(0), "distinct"):
        assert np.unique(array).size == array.size


def test_values_in_memory_have_sizes_of_which_one_bounds_the_other() -> None:
    rng = np.random.default_rng(3)
    shapes = [{n.shape[0] for n in memory_graph(rng).nodes() if n.rank} for _ in range(40)]
    assert sum(any(not isinstance(n, int) and n * k in found for n in found for k in (2, 3, 4)) for found in shapes) >= 4


def test_twins_differ_in_few_ops() -> None:
    """Two or three parts, most of them of one length, that are not the same."""
    rng = np.random.default_rng(4)
    graphs = [twin_graph(rng) for _ in range(60)]
    assert sum(len(graph.results) > 1 for graph in graphs) > 40
    products = [graph for graph in graphs if sum(isinstance(n.op, Dot) for n in graph.nodes()) > 1]
    assert len(products) > 15


# --- blocks of transformers --------------------------------------------------------------------------------------------


def kernels_of(graphs: Iterable[Graph], target: str) -> set[str]:
    """What the graphs are lowered by: the functions of lowering and packing that have a part in it."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")

    caps = machine.caps_of(target, False)
    for graph in graphs:
        for step in completed(()):
            graph = run_step(step, graph, "default", caps)
        sys.setprofile(note)
        machine.lowered(graph, caps)
        sys.setprofile(None)
    return seen


def test_blocks_are_what_kernels_of_their_own_are_for() -> None:
    graphs = list(block_seeds())
    assert sum(map(acceptable, graphs)) > 0.9 * len(graphs)
    found = kernels_of(graphs, "cpu:sapphirerapids")
    assert {"attention.AttentionKernel.lower", "byte_codes.ByteNest.lower", "weight_only._ManyRows.lower"} <= found, found


def test_wide_blocks_are_what_matrix_units_are_for() -> None:
    found = kernels_of(wide_seeds(), "cuda:sm_90a")
    assert {"gpu_attention.GpuAttention.lower", "gpu_byte_codes.ByteTiles.lower", "gpu_weight_only_tiles.CodeTiles.lower"} <= found, found


def test_blocks_can_be_mutated_in_every_way() -> None:
    """Those of dtypes that are only stored too."""
    graphs = [graph for graph in block_seeds() if acceptable(graph)]
    rng = np.random.default_rng(0)
    made = sum(mutate(graph, rng, graphs[number], frozenset([name])) is not None
               for number, graph in enumerate(graphs) for name in MUTATORS)
    assert made > 0.8 * len(graphs) * len(MUTATORS)
