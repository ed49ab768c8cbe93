"""What walks over graphs and expressions promise: each node is offered once, equal nodes meet, nodes cannot be changed."""

from __future__ import annotations

from collections import Counter

import pytest

from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.loop import expression_nodes
from tilewright.ir.ops.compute import Elementwise
from tilewright.ir.ops.control import Param
from tilewright.ir.rewrite import rewrite_until_stable
from tilewright.ir.types import F32


def chain() -> Graph:
    """exp(neg(sin(x))) + sin(x)"""
    b = Builder()
    x = b.add(Param("x", F32, (symbol("N"), 3)))
    sine = b.add(Elementwise("sin"), x)
    end = b.add(Elementwise("exp"), b.add(Elementwise("neg"), sine))
    return Graph("chain", [x], [b.add(Elementwise("add"), end, sine)])


def test_what_a_visit_leaves_as_it_is_is_offered_once() -> None:
    offered: Counter[str] = Counter()

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        offered[node.op.spelling] += 1
        return b.add(Elementwise("cos"), inputs[0]) if node.op == Elementwise("neg") else None

    changed = rewrite_until_stable(chain(), visit, "test")
    assert [node.op.spelling for node in changed.nodes()] == ["param", "sin", "cos", "exp", "add"]
    assert offered == {"sin": 1, "neg": 1, "cos": 1, "exp": 1, "add": 1}


def test_a_changed_operand_is_offered_again() -> None:
    """exp is left on neg in the first round, since only its new operand in the second one makes it match."""
    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node.op == Elementwise("cos"):
            return b.add(Elementwise("tan"), *inputs)
        if node.op == Elementwise("neg"):
            return b.add(Elementwise("cos"), *inputs)
        return inputs[0] if node.op == Elementwise("exp") and inputs[0].op == Elementwise("tan") else None

    changed = rewrite_until_stable(chain(), visit, "test")
    assert [node.op.spelling for node in changed.nodes()] == ["param", "sin", "tan", "add"]


def test_kept_nodes_meet_equal_ones_that_are_made_anew() -> None:
    graph = chain()
    b = Builder()
    kept = [b.keep(node) for node in graph.nodes()]
    assert kept == list(graph.nodes())
    assert b.add(Elementwise("sin"), graph.params[0]) is kept[1]
    assert b.renew(kept[2], (kept[1],)) is kept[2]


def test_nodes_cannot_be_changed() -> None:
    node = chain().results[0]
    with pytest.raises(AttributeError):
        node.inputs = ()  # type: ignore[misc]


def test_nodes_of_an_expression_without_known_ones() -> None:
    root = chain().results[0]
    end, sine = root.inputs
    assert expression_nodes(root) == (sine.inputs[0], sine, end.inputs[0], end, root)
    assert expression_nodes(root, {sine}) == (end.inputs[0], end, root)
    assert expression_nodes(root, {root}) == ()
