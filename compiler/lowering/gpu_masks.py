"""Which keys of an attention a mask hides from a row by comparing their numbers, so that blocks of rows need not look at them.

    scores = select(row + a >= key, x, -inf)
    scores = x + select(row + a >= key, y, -inf)

in any spelling of such a comparison: what it compares is read as sizes over the numbers of row and key (`Inliner` spells iotas, broadcasts
and reshapes so). Of conditions that are joined by `and`, and of masks that are added, one is enough. A mask that lies in memory says
nothing.

A key that is hidden by adding minus infinity counts as hidden though its score be NaN or infinite.
"""

from __future__ import annotations

from msgspec import Struct

from ..ir.dims import DimLike, Symbol, size_of, substitute, symbols_of
from ..ir.graph import Node
from ..ir.loop import IndexValue, Literal, Local
from ..ir.ops.compute import Cast, Elementwise
from .inline import Inliner

MIRRORED = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt"}   # with operands the other way round
INVERTED = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}
LEAST_BITS = 32   # of integers that count rows and keys: so many do not fit into memory


class KeyLimit(Struct, frozen=True):
    """A row sees keys below `first` + `slope` * (number of the row) alone; `slope` is 0 or 1."""

    first: DimLike
    slope: int

    def at(self, row: DimLike) -> DimLike:
        return self.first + row * self.slope


def key_limit(first: Node, scores: Node, inliner: Inliner) -> KeyLimit | None:
    """The limit that the mask in scores [*batch, *rows, keys], which follow from the product `first`, sets by the numbers of key and row,
    of the latter along its last axis; None where it sets none, or one that hangs on more than these."""
    inner = inliner.inner()
    row, key = (Symbol(inliner.names.fresh(name)) for name in ("row_number", "key_number"))
    others = [Symbol(inliner.names.fresh("other")) for _ in range(scores.rank - 2)]
    place = (*map(size_of, others), size_of(row), size_of(key))
    inner.bind(first, place, lambda: inner.builder.add(Local("product", first.dtype)))
    found = _of_scores(inner.value(scores, place), row, key)
    return None if found is None or set(symbols_of(found.first)) & {row, key, *others} else found


def _of_scores(score: Node, row: Symbol, key: Symbol) -> KeyLimit | None:
    match score.op:
        case Cast() if score.inputs[0].dtype.is_float:
            return _of_scores(score.inputs[0], row, key)
        case Elementwise(function="add"):
            return next((found for x in score.inputs if (found := _of_scores(x, row, key)) is not None), None)
        case Elementwise(function="select"):
            condition, *choices = score.inputs
            for hidden, inverted in zip(reversed(choices), (False, True)):
                if isinstance(hidden.op, Literal) and hidden.op.value == float("-inf"):
                    return _limit(condition, inverted, row, key)
    return None


def _limit(condition: Node, inverted: bool, row: Symbol, key: Symbol) -> KeyLimit | None:
    if not isinstance(condition.op, Elementwise):
        return None
    function = condition.op.function
    if function == "not":
        return _limit(condition.inputs[0], not inverted, row, key)
    if function == ("or" if inverted else "and"):
        return next((found for x in condition.inputs if (found := _limit(x, inverted, row, key)) is not None), None)
    if function not in MIRRORED:
        return None
    function = INVERTED[function] if inverted else function
    left, right = (_size(x) for x in condition.inputs)
    if left is None or right is None:
        return None
    if function in ("le", "lt"):
        left, right, function = right, left, MIRRORED[function]
    difference = left - right
    at_first = substitute(difference, {key.name: 0})
    first = substitute(at_first, {row.name: 0})
    slope = at_first - first
    if difference - at_first != -size_of(key) or slope not in (0, size_of(row)):
        return None
    return KeyLimit(first + (function == "ge"), 0 if slope == 0 else 1)


def _size(node: Node) -> DimLike | None:
    """An integer as a size, where it is made of indices and numbers."""
    match node.op:
        case IndexValue(size=size):
            return size
        case Literal(value=value) if node.dtype.is_integer:
            return int(value)
        case Cast() if node.dtype.kind == "i" and node.dtype.bits >= LEAST_BITS and node.inputs[0].dtype.is_integer:
            return _size(node.inputs[0])
        case Elementwise(function="add" | "sub" as function):
            left, right = (_size(x) for x in node.inputs)
            if left is None or right is None:
                return None
            return left + right if function == "add" else left - right
    return None


__all__ = ["KeyLimit", "key_limit"]
