"""The verifier rejects each kind of malformed graph, and says which rule it breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
from msgspec.structs import force_setattr

from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, VerifyError
from tilewright.ir.graph import Builder, Constant, Graph, Node, Op
from tilewright.ir.ops.compute import Elementwise, Reduce
from tilewright.ir.ops.control import Composite, Const, Fusion, Get, MakeTuple, Param
from tilewright.ir.ops.shape import Broadcast, Iota, Reshape, Transpose
from tilewright.ir.types import F32, I64, TensorType, Type
from tilewright.ir.verify import MAX_NESTING, verify

VECTOR = TensorType(F32, (3,))
NEG = Elementwise("neg")


def param(label: str = "x", shape: tuple = (3,)) -> Node:
    return Node(Param(label, F32, shape), (), TensorType(F32, shape))


def neg(x: Node, type: Type | None = None) -> Node:
    return Node(NEG, (x,), x.type if type is None else type)


def one(result: Node, *params: Node) -> Graph:
    return Graph("g", params, [result])


def wrong_type() -> Graph:
    x = param()
    return one(neg(x, TensorType(F32, (4,))), x)


def wrong_dtype() -> Graph:
    x = param()
    return one(neg(x, TensorType(I64, (3,))), x)


def wrong_operands() -> Graph:
    x = param()
    return one(Node(NEG, (x, x), VECTOR), x)


def shapes_that_differ() -> Graph:
    x, y = param(), param("y", (4,))
    return one(Node(Elementwise("add"), (x, y), VECTOR), x, y)


def unknown_function() -> Graph:
    x = param()
    return one(Node(Elementwise("negate"), (x,), VECTOR), x)


def foreign_param() -> Graph:
    return one(neg(param("y")), param())


def body_reading_outside() -> Graph:
    x, inner = param(), param("a")
    body = Graph("body", [inner], [Node(Elementwise("add"), (inner, x), VECTOR)])
    return one(Node(Composite("c", body), (x,), VECTOR), x)


def cycle() -> Graph:
    x = param()
    first = neg(x)
    second = neg(first)
    force_setattr(first, "inputs", (second,))
    return one(second, x)


def own_operand() -> Graph:
    node = neg(param())
    force_setattr(node, "inputs", (node,))
    return one(node)


def two_labels() -> Graph:
    x, y = param(), param()
    return one(Node(Elementwise("add"), (x, y), VECTOR), x, y)


def empty_label() -> Graph:
    x = param("")
    return one(neg(x), x)


def param_twice() -> Graph:
    x = param()
    return one(neg(x), x, x)


def param_that_is_none() -> Graph:
    x = param()
    y = neg(x)
    return one(y, x, y)


def param_with_operands() -> Graph:
    x = param()
    y = Node(Param("y", F32, (3,)), (x,), VECTOR)
    return one(y, x, y)


def param_of_another_type() -> Graph:
    x = Node(Param("x", F32, (3,)), (), TensorType(F32, (4,)))
    return one(neg(x), x)


def names_twice() -> Graph:
    x = param()
    return Graph("g", [x], [x, neg(x)], ["y", "y"])


def unbound_size() -> Graph:
    x = param(shape=())
    size = symbol("B", 1)
    return one(Node(Broadcast((size,)), (x,), TensorType(F32, (size,))), x)


def size_in_no_plain_place() -> Graph:
    x = param(shape=(symbol("B", 1) * 2,))
    return one(neg(x), x)


def two_declarations() -> Graph:
    x, y = param(shape=(symbol("B", 1),)), param("y", (symbol("B", 2),))
    return Graph("g", [x, y], [x, y])


def two_declarations_within() -> Graph:
    x = param(shape=(symbol("B", 1),))
    other = symbol("B", 2)
    return Graph("g", [x], [x, Node(Iota(I64, (other,), 0), (), TensorType(I64, (other,)))])


def unbound_size_in_body() -> Graph:
    x = param(shape=(2,))
    inner = param("a", (2,))
    iota = Node(Iota(I64, (symbol("Q", 1),), 0), (), TensorType(I64, (symbol("Q", 1),)))
    body = Graph("body", [inner], [Node(Reduce("sum", (0,)), (iota,), TensorType(I64, ()))])
    return one(Node(Composite("c", body), (x,), TensorType(I64, ())), x)


def wrong_body() -> Graph:
    x, inner = param(), param("a")
    body = Graph("body", [inner], [neg(inner, TensorType(F32, (9,)))])
    return one(Node(Composite("c", body), (x,), TensorType(F32, (9,))), x)


def body_of_other_operands() -> Graph:
    x, inner = param(), param("a", (4,))
    return one(Node(Composite("c", Graph("body", [inner], [neg(inner)])), (x,), VECTOR), x)


def negative_size() -> Graph:
    x = param(shape=(2, 3))
    return one(Node(Reshape((-2, -3)), (x,), TensorType(F32, (-2, -3))), x)


def attribute_of_another_kind() -> Graph:
    x = param(shape=(2, 3))
    return one(Node(Transpose((1.0, 0)), (x,), TensorType(F32, (3, 2))), x)  # type: ignore[arg-type]


def no_permutation() -> Graph:
    x = param(shape=(2, 3))
    return one(Node(Transpose((0, 0)), (x,), TensorType(F32, (2, 2))), x)


def item_outside() -> Graph:
    x = param()
    both = Builder().add(MakeTuple(), x, x)
    return one(Node(Get(2), (both,), VECTOR), x)


def writeable_constant() -> Graph:
    constant = Constant(np.ones(3, np.float32))
    constant.array = np.ones(3, np.float32)
    return one(Node(Const(constant), (), VECTOR))


def constant_of_another_dtype() -> Graph:
    constant = Constant(np.ones(3, np.float32))
    array = np.ones(3)
    array.flags.writeable = False
    constant.array = array
    return one(Node(Const(constant), (), VECTOR))


def unknown_op() -> Graph:
    class Strange(Op, frozen=True):
        name: ClassVar[str] = "strange"

        def infer(self, *types: Type) -> Type:
            return types[0]

    x = param()
    return one(Node(Strange(), (x,), VECTOR), x)


def nested_too_deep() -> Graph:
    inner = param("a")
    graph = Graph("body", [inner], [neg(inner)])
    for _ in range(MAX_NESTING + 1):
        x = param("a")
        graph = Graph("body", [x], [Node(Composite("c", graph), (x,), VECTOR)])
    return graph


MALFORMED: dict[Callable[[], Graph], str] = {
    wrong_type: "neg is typed f32[4], but gives f32[3]",
    wrong_dtype: "neg is typed i64[3], but gives f32[3]",
    wrong_operands: "takes 1 operands, found 2",
    shapes_that_differ: "add: shapes differ: f32[3] vs f32[4]",
    unknown_function: "unknown scalar function 'negate'",
    foreign_param: "reads %y, which is no param of this graph",
    body_reading_outside: "graph body: a node reads %x, which is no param of this graph",
    cycle: "neg depends on itself",
    own_operand: "neg depends on itself",
    two_labels: "label 'x' of a param occurs twice",
    empty_label: "label '' of a param is empty",
    param_twice: "label 'x' of a param occurs twice",
    param_that_is_none: "is no param",
    param_with_operands: "a param has operands",
    param_of_another_type: "param is typed f32[4], but gives f32[3]",
    names_twice: "result names are not distinct: y, y",
    unbound_size: "nothing binds size B",
    size_in_no_plain_place: "nothing binds size B (in 2*B)",
    two_declarations: "size B has two declarations: B: 1.. and B: 2..",
    two_declarations_within: "size B has two declarations: B: 1.. and B: 2..",
    unbound_size_in_body: "graph body: nothing binds size Q",
    wrong_body: "graph body: neg is typed f32[9], but gives f32[3]",
    body_of_other_operands: "body body takes (f32[4]), is given (f32[3])",
    negative_size: "negative",
    attribute_of_another_kind: "attribute perm must be tuple[int, ...], found (1.0, 0)",
    no_permutation: "(0, 0) is no permutation of the 2 axes",
    item_outside: "get: item 2 of a tuple of 2",
    writeable_constant: "a constant's array is writeable",
    constant_of_another_dtype: "a constant of f32 holds an array of float64",
    unknown_op: "op Strange is not in the op table",
    nested_too_deep: "bodies nest deeper than",
}


@pytest.mark.parametrize("make", MALFORMED, ids=lambda f: f.__name__)
def test_malformed_graphs_are_rejected(make: Callable[[], Graph]) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(make())
    assert MALFORMED[make] in str(caught.value)
    assert caught.value.message.startswith("graph ")


def test_levels() -> None:
    x, a = param(), param("a")
    body = Graph("body", [a], [neg(a)])
    composite = one(Node(Composite("c", body), (x,), VECTOR), x)
    fusion = one(Node(Fusion("map", body), (x,), VECTOR), x)
    verify(composite), verify(composite, "source"), verify(fusion)
    with pytest.raises(VerifyError, match="call is not allowed at level 'primitive'"):
        verify(composite, "primitive")
    with pytest.raises(VerifyError, match="fusion is not allowed at level 'source'"):
        verify(fusion, "source")
    with pytest.raises(CompileError, match="level 'loops' is not one of"):
        verify(composite, "loops")


def test_deep_graphs_are_walked_without_recursion() -> None:
    x = node = param()
    for _ in range(50_000):
        node = neg(node)
    verify(one(node, x))
