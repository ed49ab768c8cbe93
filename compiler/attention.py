"""Recognises attention among packed contractions: softmax of scores that follow from one product, times the operand of another.

    scores = f(q k)                                 `first` is the product, f computes each element by itself
    exponentials = exp(scores - largest)            largest = max of a row of scores
    weights = exponentials, times or over what is the same along a row (`total`, their sum, above all)
    result = weights v                              `last`

Fusion and lowering both ask here, so that what the one claims the other can compute. Assumes a graph after packing, or the body
of a group made from one. Guarantees that every value between the two products, but for those along rows, is one of the
values named, and that whatever else `scores` and the weights read does not hang on `first`, if no `outside` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from .ir.dims import bounds, product
from .ir.graph import Node
from .ir.ops.compute import Bitcast, Cast, Elementwise, PackedDot, Reduce
from .ir.ops.control import Const
from .ir.ops.shape import Broadcast, Reshape
from .ir.rewrite import uniform_value
from .ir.types import BF16, F16
from .tiles import GPU_PANELS

MOST_STEPS = 8     # from the exponentials to the weights
LEAST_ROWS, LEAST_KEYS = 16, 48  # with fewer, three kernels take no longer than one
MOST_HEAD = 256    # elements of a head: a block of rows keeps as many a row near
MOST_UNIT_HEAD = 128  # likewise on matrix units
POINTWISE = (Elementwise, Cast, Bitcast)


class Attention(Struct, frozen=True):
    """What makes up one attention. `steps` lead from the exponentials to the weights, each by a factor of rows; `members` are all
    values that may lie between the products."""

    first: Node
    last: Node
    scores: Node
    largest: Node
    exponentials: Node
    total: Node
    steps: tuple[Node, ...]
    members: frozenset[Node]

    def between(self, nodes: Sequence[Node]) -> set[Node] | None:
        """Of a graph's nodes in order those from the one product to the other; None where there are others than `members`."""
        behind = {self.first}
        for node in nodes:
            if not behind.isdisjoint(node.inputs):
                behind.add(node)
        found, stack = {self.last}, [self.last]
        while stack:
            for operand in stack.pop().inputs:
                if operand in behind and operand not in found:
                    found.add(operand)
                    stack.append(operand)
        return found if found <= self.members else None


def find_attention(last: Node, bits: int = 32) -> Attention | None:
    """The attention whose second product this is, if it is one, of floats of that many bits or more."""
    if not _is_product(last, bits):
        return None
    weights = _weights(last.inputs[0])
    if weights is None:
        return None
    exponentials, steps, factors, questions = weights
    difference = exponentials.inputs[0]
    if not _is(difference, "sub"):
        return None
    scores, largest = difference.inputs[0], _unmoved(difference.inputs[1])
    if not (_is_row_reduction(largest, "max") and largest.inputs[0] is scores and _is_of_rows(difference.inputs[1])):
        return None
    chain = _pointwise(scores, bits)
    products = [n for n in chain if _is_product(n, bits)]
    if len(products) != 1 or not _fits(products[0], last):
        return None
    narrow = _of_rows((*factors, difference.inputs[1]), exponentials, largest)
    totals = [n for n in narrow if isinstance(n.op, Reduce) and n is not largest]
    if len(totals) != 1:
        return None
    members = frozenset({last, exponentials, difference, *steps, *questions, *chain, *narrow})
    return Attention(products[0], last, scores, largest, exponentials, totals[0], steps, members)


def is_worth_fusing(attention: Attention) -> bool:
    """Whether one kernel computes the attention at least as fast as three do."""
    first, last = attention.first, attention.last
    assert isinstance(last.op, PackedDot)
    rows, keys = product(last.shape[last.op.batch:-1]), first.shape[-1]
    heads = (first.inputs[0].shape[-1], last.shape[-1])
    return (all(isinstance(n, int) and 1 <= n <= MOST_HEAD for n in heads)
            and bounds(rows)[1] >= LEAST_ROWS and bounds(keys)[1] >= LEAST_KEYS and 0 not in first.shape)


def unit_attention(last: Node) -> Attention | None:
    """An attention of 16 bits that the matrix units of a GPU compute as one kernel, where it is worth one (`lowering/gpu_attention.py`):
    packed for blocks, heads of whole tiles, few enough to lie in shared memory."""
    if last.dtype not in (F16, BF16):
        return None
    found = find_attention(last, 16)
    if found is None or found.first.dtype != last.dtype or not is_worth_fusing(found):
        return None
    depth, widths = found.first.inputs[0].shape[-1], [n.inputs[1].shape[-1] for n in (found.first, found.last)]
    small = all(isinstance(n, int) and n <= MOST_UNIT_HEAD for n in (depth, last.shape[-1]))
    whole = isinstance(depth, int) and depth % 16 == 0 and all(width in GPU_PANELS for width in widths)
    return found if small and whole and bounds(found.first.shape[-1])[0] >= 1 else None


def repeated(packed: Node) -> tuple[Node, ...]:
    """What repeats a packed operand [*batch, panels, K, tile] along its batch axes, last node first; none where it is stored so."""
    found: list[Node] = []
    node = packed
    while isinstance(node.op, (Broadcast, Reshape)) and node.rank >= 3 and node.inputs[0].shape[-3:] == node.shape[-3:]:
        found.append(node)
        node = node.inputs[0]
    last = next((number for number in range(len(found), 0, -1) if isinstance(found[number - 1].op, Broadcast)), 0)
    return tuple(found[:last])


def plain_attention(last: Node) -> Attention | None:
    """An attention that is worth a kernel of `lowering/attention.py`."""
    found = find_attention(last)
    return found if found is not None and is_worth_fusing(found) else None


def _is_product(node: Node, bits: int) -> bool:
    return isinstance(node.op, PackedDot) and not node.op.symmetric and node.dtype.is_float and node.dtype.bits >= bits


def _fits(first: Node, last: Node) -> bool:
    """Whether the rows of one product are those of the other."""
    assert isinstance(first.op, PackedDot) and isinstance(last.op, PackedDot)
    return (first.op.batch == last.op.batch and first.shape[:-1] == last.shape[:-1] and first.dtype == last.dtype
            and last.inputs[0].shape == first.shape)


def _is(node: Node, function: str) -> bool:
    return isinstance(node.op, Elementwise) and node.op.function == function


def _unmoved(node: Node) -> Node:
    while isinstance(node.op, (Broadcast, Reshape)):
        node = node.inputs[0]
    return node


def _weights(node: Node) -> tuple[Node, tuple[Node, ...], list[Node], list[Node]] | None:
    """The exponentials, the steps from there to the weights, the values of rows that these read, and what asks for NaN."""
    steps: list[Node] = []
    factors: list[Node] = []
    questions: list[Node] = []
    while not _is(node, "exp"):
        carried = _carried(node)
        if carried is None or len(steps) == MOST_STEPS:
            return None
        steps.insert(0, node)
        questions += [i for i in node.inputs if _asks_for_nan(i, carried)]
        factors += [i for i in node.inputs if i is not carried and i not in questions]
        node = carried
    return node, tuple(steps), factors, questions


def _carried(node: Node) -> Node | None:
    """The operand that a step multiplies by something of rows, or puts 0 in the place of for whole rows."""
    if _is(node, "mul"):
        return next((x for x, y in (node.inputs, node.inputs[::-1]) if _is_of_rows(y)), None)
    if _is(node, "div"):
        return node.inputs[0] if _is_of_rows(node.inputs[1]) else None
    if _is(node, "select"):
        condition, *choices = node.inputs
        for zero, x in (choices, choices[::-1]):
            if uniform_value(zero) == 0 and (_is_of_rows(condition) or _asks_for_nan(condition, x)):
                return x
    return None


def _asks_for_nan(node: Node, x: Node) -> bool:
    """Whether the node says which weights are NaN: all of a row, or none, since their sum would be."""
    return _is(node, "isnan") and node.inputs[0] is x


def _is_of_rows(node: Node) -> bool:
    """Whether the value is the same along the last axis."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node.op, Broadcast):
            if node.inputs[0].rank > 0 and node.inputs[0].shape[-1] != 1:
                return False
        elif isinstance(node.op, POINTWISE):
            stack.extend(node.inputs)
        elif not (isinstance(node.op, Const) and node.op.value.array.size == 1) and node.shape[-1:] != (1,):
            return False
    return True


def _is_row_reduction(node: Node, kind: str) -> bool:
    return isinstance(node.op, Reduce) and node.op.kind == kind and node.op.axes == (node.inputs[0].rank - 1,)


def _pointwise(scores: Node, bits: int) -> set[Node]:
    """The scores and what they are computed from element by element, as far as products."""
    found: set[Node] = set()
    stack = [scores]
    while stack:
        node = stack.pop()
        if node not in found and (isinstance(node.op, POINTWISE) or _is_product(node, bits)):
            found.add(node)
            stack.extend(node.inputs if isinstance(node.op, POINTWISE) else ())
    return found


def _of_rows(roots: Sequence[Node], exponentials: Node, largest: Node) -> set[Node]:
    """The nodes that values of rows are computed from, down to the sum and the largest."""
    found: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in found:
            continue
        if node is largest or _is_row_reduction(node, "sum") and node.inputs[0] is exponentials:
            found.add(node)
        elif isinstance(node.op, (*POINTWISE, Broadcast, Reshape)):
            found.add(node)
            stack.extend(node.inputs)
    return found


__all__ = ["POINTWISE", "Attention", "find_attention", "is_worth_fusing", "plain_attention", "repeated", "unit_attention"]
