"""New graphs often enough hold what compilers get wrong: deep products of a matrix by itself, Winograd convolutions, merged axes of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tilewright.fuzz.generate_layers import layer_graph
from tilewright.fuzz.generate_movements import MOVEMENTS, movement_graph
from tilewright.fuzz.input_kinds import array_of_kind
from tilewright.fuzz.mutate_patterns import rule_graph
from tilewright.fuzz.rebuild import acceptable
from tilewright.ir.caps import Caps
from tilewright.ir.graph import Graph, Node
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Composite, Const, Fusion
from tilewright.ir.ops.shape import Reshape
from tilewright.ir.ops.winograd import WinogradConv
from tilewright.ir.types import BF16, F16, F32, F64
from tilewright.options import Options
from tilewright.pipeline import PASSES


def all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes():
        yield node
        if isinstance(node.op, (Composite, Fusion)):
            yield from all_nodes(node.op.body)


def test_layers_hold_deep_squares_and_winograd_convolutions() -> None:
    graphs = [g for g in (layer_graph(np.random.default_rng(seed)) for seed in range(150)) if acceptable(g)]
    dots = [n for g in graphs for n in g.nodes() if isinstance(n.op, Dot) and n.rank == 2 and n.shape[0] == n.shape[1]]
    assert sum(n.inputs[0].shape[n.op.lhs_contract[0]] >= 128 and n.shape[0] >= 32 for n in dots) >= 5
    found = 0
    for graph in graphs:
        for step in PASSES:
            graph = step.run(graph, Options(), Caps())
        found += any(isinstance(n.op, WinogradConv) for n in all_nodes(graph))
    assert found >= 4


def test_movements_merge_axes_with_one_of_one_element() -> None:
    assert "flatten" in MOVEMENTS
    merged = [n for seed in range(150) for n in movement_graph(np.random.default_rng(seed)).nodes()
              if isinstance(n.op, Reshape) and 1 in n.inputs[0].shape[:-1] and n.rank < n.inputs[0].rank - 1]
    assert len(merged) >= 20


def test_rules_meet_constants_of_zeros_of_both_signs() -> None:
    constants = [n.op.value.array for seed in range(300) for n in rule_graph(np.random.default_rng(seed)).nodes()
                 if isinstance(n.op, Const) and n.dtype.is_float]
    assert sum((c == 0).all() and len(set(np.signbit(c).ravel().tolist())) == 2 for c in constants) >= 3


def test_rows_of_infinities_and_of_equal_numbers() -> None:
    for dtype in (F16, BF16, F32, F64):
        arrays = [array_of_kind(dtype, (4, 9), np.random.default_rng(seed), "extreme").astype(np.float64) for seed in range(60)]
        assert sum((a == -np.inf).all(axis=1).any() for a in arrays) >= 5
        assert sum((a == np.inf).all(axis=1).any() for a in arrays) >= 5
        assert sum(bool(((a == a[:, :1]) & np.isfinite(a) & (a != 0)).all(axis=1).any()) for a in arrays) >= 2
