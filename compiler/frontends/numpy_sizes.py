"""What a trace knows of sizes: which are equal, which comparisons were decided, what the next trace must assume.

With specs, only what holds for every size within the bounds counts; all else is an error. With an example, its sizes
decide: an equality that an operation needs is learned (the trace goes on leniently to find more, and then starts again with
the sizes replaced), a comparison that the program makes is kept as a guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import Dim, DimLike, Symbol, bounds, compare, evaluate, exact_quotient, substitute, symbol, symbols_of
from ..ir.errors import UNKNOWN, Loc, caller_loc
from ..ir.graph import Builder, Node, Op, attribute_names
from ..ir.types import TensorType, TupleType
from .numpy_errors import (
    TraceError,
    TraceTypeError,
    TraceValueError,
)

Substitution = Mapping[str, DimLike]


class Restart(BaseException):
    """Raised to trace again with sizes replaced; no `except Exception` of a user may stop it."""

    def __init__(self, substitution: Mapping[str, DimLike]) -> None:
        super().__init__("trace again with other sizes")
        self.substitution = dict(substitution)


def composed(before: Substitution, more: Substitution) -> dict[str, DimLike]:
    """The substitution that does `before`, then `more`."""
    return {**{name: substitute(size, more) for name, size in before.items()},
            **{name: size for name, size in more.items() if name not in before}}  # fmt: skip


class LenientBuilder(Builder):
    """Goes on building after sizes were found to be equal, so that one trace finds many such equalities.

    While `learned` is empty it is a plain builder. Afterwards it reads old sizes as what they are known to be by then;
    what it makes is thrown away, since the trace starts again with these sizes.
    """

    def __init__(self, learned: dict[str, DimLike], loc: Loc = UNKNOWN) -> None:
        super().__init__(loc)
        self.learned = learned

    def add(self, op: Op, *inputs: Node, loc: Loc | None = None) -> Node:
        if not self.learned:
            return super().add(op, *inputs, loc=loc)
        changes = {name: _resolved(getattr(op, name), self.learned) for name in attribute_names(type(op))}
        now = replace(op, **changes)
        types = [_resolved(i.type, self.learned) for i in inputs]
        return Node(now, inputs, now.infer(*types), self.loc if loc is None else loc)


def _resolved(value: Any, learned: Substitution) -> Any:
    if isinstance(value, Dim):
        return substitute(value, learned)
    if isinstance(value, tuple):
        return tuple(_resolved(v, learned) for v in value)
    if isinstance(value, TensorType):
        return TensorType(value.dtype, _resolved(value.shape, learned))
    return TupleType(_resolved(value.items, learned)) if isinstance(value, TupleType) else value


class Guard(Struct, frozen=True):
    """A comparison of sizes that decided something while tracing: `left relation right` came out as `outcome`."""

    relation: str
    left: DimLike
    right: DimLike
    outcome: bool

    def holds(self, binding: Mapping[str, int]) -> bool:
        left, right = evaluate(self.left, binding), evaluate(self.right, binding)
        return _RELATIONS[self.relation]((left > right) - (left < right)) == self.outcome

    def __str__(self) -> str:
        return f"{self.left} {self.relation} {self.right} is {self.outcome}"


_RELATIONS: dict[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
}


class SizeKnowledge:
    """The sizes of one trace. `observed` holds the example's by symbol; None where sizes come from specs."""

    def __init__(self, observed: Mapping[str, int] | None) -> None:
        self.observed = observed
        self.guards: list[Guard] = []
        self.learned: dict[str, DimLike] = {}

    def decide(self, relation: str, left: DimLike, right: DimLike) -> bool:
        """Whether the relation holds for every size, or for the example's sizes and whatever the guard admits."""
        left, right = self.current(left), self.current(right)
        known = _decided(relation, left, right)
        if known is not None:
            return known
        if self.observed is None:
            raise TraceError(
                f"whether {left} {relation} {right} is not known at compile time",
                loc=caller_loc(),
                hint="bound the size, tw.symbol(name, lower, upper), bind it to a number, or use tw.cond on values",
            )
        order = evaluate(left, self.observed) - evaluate(right, self.observed)
        outcome = _RELATIONS[relation](order)
        if relation == "==" and outcome:
            self.learn(self.solve(left, right))
        else:
            self.guards.append(Guard(relation, left, right, outcome))
        return outcome

    def unify(self, left: DimLike, right: DimLike, complaint: str) -> None:
        """Makes two sizes one that an operation needs equal: for the next trace where the example's are, else complains."""
        left, right = self.current(left), self.current(right)
        if left == right:
            return
        if self.observed is None:
            both_static = isinstance(left, int) and isinstance(right, int)
            hint = "" if both_static else "where the sizes are always equal, give them one name in tw.spec (or one number)"
            raise TraceValueError(complaint, hint=hint)
        if evaluate(left, self.observed) != evaluate(right, self.observed):
            raise TraceValueError(complaint)
        self.learn(self.solve(left, right))

    def unify_shapes(self, left: Sequence[DimLike], right: Sequence[DimLike], complaint: str) -> None:
        """Two shapes that must be one."""
        if len(left) != len(right):
            raise TraceValueError(f"{complaint}: {shape_text(left)} and {shape_text(right)}")
        for m, n in zip(left, right):
            self.unify(m, n, f"{complaint}: {shape_text(left)} and {shape_text(right)}")

    def current(self, size: DimLike) -> DimLike:
        """The size as what was learned in this trace has it."""
        return substitute(size, self.learned) if self.learned else size

    def learn(self, found: Substitution) -> None:
        """Notes sizes for the next trace and goes on with this one."""
        known = composed(self.learned, found)
        self.learned.clear()
        self.learned.update(known)

    def restart(self, found: Substitution) -> Restart:
        """Ends this trace at once, with all it has learned."""
        self.learn(found)
        return Restart(self.learned)

    def solve(self, left: DimLike, right: DimLike) -> dict[str, DimLike]:
        """Symbols replaced so that left == right; all of them by the example's sizes where no single one does."""
        difference = _without_common_factors(left - right)
        assert isinstance(difference, Dim)
        for monomial, coefficient in reversed(difference.terms):
            if len(monomial) != 1 or monomial[0][1] != 1 or abs(coefficient) != 1:
                continue
            found = monomial[0][0]
            if not isinstance(found, Symbol) or found.multiple_of != 1:
                continue
            rest = difference - Dim(((monomial, coefficient),))
            value = -rest if coefficient == 1 else rest
            if found.name in {s.name for s in symbols_of(value)}:
                continue
            if isinstance(value, int) or bounds(value)[0] >= found.lower:
                return {found.name: value}
        return self.specialize(difference)

    def specialize(self, *sizes: DimLike) -> dict[str, DimLike]:
        """The example's number for every symbol in the sizes."""
        assert self.observed is not None
        return {s.name: self.observed[s.name] for s in symbols_of(*sizes)}

    def observed_number(self, size: DimLike) -> int:
        """The size in the example."""
        return evaluate(self.current(size), self.observed or {})

    def number(self, size: DimLike, complaint: str) -> int:
        """The size as a number, for what cannot do without: the example's, then fixed for the graph; else an error."""
        if isinstance(size, int):
            return size
        if self.observed is None:
            raise TraceTypeError(f"{complaint}, found {size}", hint="give a number for it in tw.spec")
        raise self.restart(self.specialize(self.current(size)))

    def make_divisible(self, size: DimLike, divisor: int) -> bool:
        """Traces again with a symbol known to be a multiple, where that makes the size one; False if it cannot."""
        size = self.current(size)
        if self.observed is None or evaluate(size, self.observed) % divisor:
            return False
        found = symbols_of(size)
        if len(found) == 1 and str(size) == found[0].name:
            plain = found[0]
            multiple = plain.multiple_of * divisor
            raise self.restart({plain.name: symbol(plain.name, plain.lower, plain.upper, multiple)})
        raise self.restart(self.specialize(size))

    def broadcast_shapes(self, *shapes: Sequence[DimLike]) -> tuple[DimLike, ...]:
        """NumPy's rule; two symbolic sizes that meet must be one."""
        rank = max((len(s) for s in shapes), default=0)
        result: list[DimLike] = [1] * rank
        for shape in shapes:
            for axis, size in enumerate(shape, rank - len(shape)):
                known = result[axis]
                if known == 1:
                    result[axis] = size
                elif size != 1 and size != known:
                    self._meet(known, size, shapes, axis - rank)
        return tuple(result)

    def _meet(self, known: DimLike, size: DimLike, shapes: Sequence[Sequence[DimLike]], axis: int) -> None:
        texts = " ".join(shape_text(s) for s in shapes)
        known, size = self.current(known), self.current(size)
        complaint = f"operands could not be broadcast together with shapes {texts}: {known} vs {size} on axis {axis}"
        if self.observed is not None:
            for one, other in ((known, size), (size, known)):
                if evaluate(one, self.observed) == 1 and evaluate(other, self.observed) != 1:
                    raise self.restart(self.specialize(one))
        self.unify(known, size, complaint)


def shape_text(shape: Sequence[Any]) -> str:
    """A shape as NumPy prints it."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _without_common_factors(difference: DimLike) -> DimLike:
    """The difference divided by the sizes that every term holds; they are positive, so it is zero for the same sizes."""
    if isinstance(difference, int):
        return difference
    for atom, _ in difference.terms[0][0]:
        if isinstance(atom, Symbol) and atom.lower > 0:
            divided = exact_quotient(difference, symbol(atom.name, atom.lower, atom.upper, atom.multiple_of))
            if divided is not None:
                return _without_common_factors(divided)
    return difference


def _decided(relation: str, left: DimLike, right: DimLike) -> bool | None:
    order = compare(left, right)
    if order is not None:
        return _RELATIONS[relation](order)
    low, high = bounds(left - right)
    if relation == "<=" and high <= 0 or relation == "<" and high < 0:
        return True
    if relation == "<=" and low > 0 or relation == "<" and low >= 0:
        return False
    return None
