"""Loops where they stand in a kernel, for schedules: finding and replacing them, and which of their iterations depend on one another.

The answers about dependence are conservative (`dependence.py`, and where that does not tell the prover of `loop_proofs`): what is not
shown to be independent may be. Kernels must pass `verify_kernel`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from .dependence import (
    Access,
    accesses_of,
    conflicts,
    extents_around,
    inner_variables,
    lie_apart,
    lie_apart_later,
    ranges_of,
    reached,
    sizes_where,
    stored_buffers,
)
from .dims import DimLike, Symbol, bounds, substitute, symbol
from .errors import ScheduleError
from .loop import Alloc, Buffer, For, If, Kernel, Let, Stmt, While, blocks_of, names_of, substitute_statements, variable_size, walk
from .loop_proofs import Known, condition_facts, prove_nonnegative


class Place(Struct, frozen=True):
    """A loop of a kernel. `above`: the statements around it, outermost first, each with the number of its block that
    leads on to the loop."""

    kernel: Kernel
    loop: For
    above: tuple[tuple[Stmt, int], ...]

    def inside(self) -> Place:
        """The place of the loop that is all that this one holds."""
        loop, = self.loop.body
        assert isinstance(loop, For)
        return Place(self.kernel, loop, (*self.above, (self.loop, 0)))

    def outer(self) -> list[For]:
        return [s for s, _ in self.above if isinstance(s, For)]

    def lets(self) -> dict[str, DimLike]:
        """The index lets around, whose names may stand in sizes."""
        blocks = [self.kernel.body, *(blocks_of(statement)[number] for statement, number in self.above)]
        found: dict[str, DimLike] = {}
        for block, end in zip(blocks, [*(s for s, _ in self.above), self.loop]):
            for statement in block:
                if statement is end:
                    break
                if isinstance(statement, Let) and statement.symbol is not None:
                    found[statement.name] = variable_size(statement.symbol)
        return found

    def known(self) -> Known:
        """What holds where the loop stands."""
        facts = [fact for s, number in self.above if isinstance(s, If) and number == 0
                 for fact in condition_facts(s.condition, self.lets())]
        return Known(tuple((f.symbol, f.extent) for f in self.outer()), tuple(facts))

    def replaced(self, new: tuple[Stmt, ...]) -> Kernel:
        """The kernel with other statements instead of the loop."""
        old: Stmt = self.loop
        for statement, number in reversed(self.above):
            blocks = [tuple(_exchanged(b, old, new)) if n == number else b for n, b in enumerate(blocks_of(statement))]
            old = statement
            match statement:
                case If(condition=condition):
                    new = (If(condition, *blocks),)
                case While(condition=condition):
                    new = (While(condition, *blocks),)
                case For(symbol=variable, extent=extent, kind=kind, lanes=lanes):
                    new = (For(variable, extent, kind, blocks[0], lanes),)
        return replace(self.kernel, body=tuple(_exchanged(self.kernel.body, old, new)))


def _exchanged(block: Sequence[Stmt], old: Stmt, new: Sequence[Stmt]) -> Iterator[Stmt]:
    for statement in block:
        if statement is old:
            yield from new
        else:
            yield statement


def find_loop(kernel: Kernel, name: str) -> Place:
    """The loop of that name; ScheduleError where there is none or several."""
    stem, _, number = name.partition("@")
    found = loops_called(kernel, stem)
    if not found:
        names = ", ".join(dict.fromkeys(s.symbol.name for s in walk(kernel.body) if isinstance(s, For)))
        raise ScheduleError(f"kernel {kernel.name}: no loop {stem}; its loops are {names or 'none'}")
    if not number and len(found) > 1:
        raise ScheduleError(f"kernel {kernel.name}: {len(found)} loops are called {stem}", hint=f'name one of them: "{stem}@0"')
    if number and not (number.isdecimal() and int(number) < len(found)):
        raise ScheduleError(f"kernel {kernel.name}: no loop {name}; {len(found)} are called {stem}")
    return found[int(number or 0)]


def loops_called(kernel: Kernel, name: str) -> list[Place]:
    """The loops of that name, in order of text."""
    found: list[Place] = []

    def search(block: Sequence[Stmt], above: tuple[tuple[Stmt, int], ...]) -> None:
        for statement in block:
            if isinstance(statement, For) and statement.symbol.name == name:
                found.append(Place(kernel, statement, above))
            if isinstance(statement, (For, While, If)):
                for number, inner in enumerate(blocks_of(statement)):
                    search(inner, (*above, (statement, number)))

    search(kernel.body, ())
    return found


def refusal(kernel: Kernel, message: str, hint: str = "") -> ScheduleError:
    return ScheduleError(f"kernel {kernel.name}: {message}", loc=kernel.loc, hint=hint)


def need_kind(kernel: Kernel, loop: For, wanted: str, what: str) -> None:
    if loop.kind != wanted:
        raise refusal(kernel, f"{what} needs a {wanted} loop, found {loop.symbol.name}, which is {loop.kind}")


def fresh_name(stem: str, taken: set[str]) -> str:
    """A name that is not taken."""
    return next(n for n in itertools.chain([stem], (f"{stem}{k}" for k in itertools.count(2))) if n not in taken)


# --- dependence ------------------------------------------------------------------------------------------------------


def buffers_of(kernel: Kernel) -> dict[str, Buffer]:
    """All buffers by name; names of allocations in separate blocks may coincide, so dependence looks at their place too."""
    found = {b.name: b for b in kernel.buffers}
    for statement in walk(kernel.body):
        if isinstance(statement, Alloc):
            found[statement.buffer.name] = statement.buffer
    return found


LATE = "__late"  # ends the name of a variable of the later of two iterations, and of the distance between them


class Meeting:
    """Whether an access in one iteration can touch the element that another touches in a certain later one.

    `early` and `late` say what stands for the loop variables in either; variables bound within the body differ freely
    between the two, so that those of the late one are renamed.
    """

    def __init__(self, place: Place, early: Mapping[str, DimLike], late: Mapping[str, DimLike],
                 loops: Sequence[tuple[Symbol, DimLike]], body: Sequence[Stmt]) -> None:
        for name in names_of(place.kernel):
            if name.endswith(LATE):
                raise refusal(place.kernel, f"the name {name} is reserved for the test of dependence")
        self.kernel = place.kernel
        known = place.known()
        inner = inner_variables(reached(body))
        renamed = {v.name: symbol(v.name + LATE, v.lower, v.upper, v.multiple_of) for v, _ in inner}
        self.early = dict(early)
        self.late = {**late, **renamed}
        self.around, self.facts = [*known.loops, *loops], known.facts
        self.enclosing = _loops_around(body)
        # loops in the body, as they are for the early access and for the late one
        self.inside: list[tuple[str, tuple[Symbol, DimLike], tuple[Symbol, DimLike]]] = []
        for variable, extent in inner:
            if extent is not None:
                other = Symbol(variable.name + LATE, variable.lower, variable.upper, variable.multiple_of)
                self.inside.append((variable.name, (variable, substitute(extent, self.early)), (other, substitute(extent, self.late))))

    def possible(self, first: Access, second: Access) -> bool:
        left, right = first.index, second.index
        if len(left) != len(right):
            shape = buffers_of(self.kernel)[first.buffer].shape
            left, right = (_flat(i, shape) for i in (left, right))
        known = self._known(first, second)
        for a, b in zip(left, right):
            difference = substitute(a, self.early) - substitute(b, self.late)
            if prove_nonnegative(difference - 1, known) or prove_nonnegative(-difference - 1, known):
                return False
        return True

    def _known(self, first: Access, second: Access) -> Known:
        """The loops that have iterations where both accesses are: those around each. Others may have none."""
        early, late = (self.enclosing.get(access, frozenset()) for access in (first, second))
        bound = [loop for name, one, other in self.inside
                 for loop in (*([one] if name in early else []), *([other] if name in late else []))]
        return Known((*self.around, *bound), self.facts)


def _loops_around(body: Sequence[Stmt]) -> dict[Access, frozenset[str]]:
    """For each access in a body the loops of it that are around it, wherever it stands."""
    stored = stored_buffers(walk(body))
    found: dict[Access, frozenset[str]] = {}
    stack: list[tuple[Sequence[Stmt], frozenset[str]]] = [(body, frozenset())]
    while stack:
        statements, names = stack.pop()
        for statement in statements:
            for access in accesses_of([statement], stored):
                found[access] = found.get(access, names) & names
            inner = names | {statement.symbol.name} if isinstance(statement, For) else names
            stack.extend((block, inner) for block in blocks_of(statement))
    return found


def _flat(index: tuple[DimLike, ...], shape: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    if len(index) == 1 and len(shape) != 1:
        return index
    position: DimLike = 0
    for i, n in zip(index, shape):
        position = position * n + i
    return (position,)


def carried(place: Place) -> Iterator[tuple[Access, Access]]:
    """Pairs of accesses that may meet in two iterations of the loop."""
    loop = place.loop
    # (a symbolic extent of at most 1 would be as good, but backends do not know that a vector of it has one lane)
    if loop.extent in (0, 1) or any(around.extent == 0 for around in place.outer()):
        return
    sizes = sizes_where([*(around.extent for around in place.outer()), loop.extent, *extents_around(loop.body)], place.kernel.symbols)
    fixed = substitute(loop.extent, sizes)
    if sizes and (fixed == loop.extent or fixed not in (0, 1)):
        loop = replace(loop, extent=fixed, body=substitute_statements(loop.body, sizes))
    statements = reached(loop.body)
    accesses, ranges = accesses_of(statements), ranges_of(statements, [loop.symbol.name])
    meeting: Meeting | None = None
    for first, second in conflicts(accesses, accesses):
        if lie_apart_later(first, second, loop, ranges):
            continue
        if meeting is None:
            later = variable_size(loop.symbol) + 1 + symbol("distance" + LATE, 0)
            meeting = Meeting(place, {}, {loop.symbol.name: later}, [(loop.symbol, loop.extent)], loop.body)
        if meeting.possible(first, second):
            yield first, second


def need_independent(place: Place, what: str, combining: bool = False, reassociate: bool = False) -> None:
    """ScheduleError unless no iteration depends on another; `combining`: stores that combine alike may meet."""
    kernel, name = place.kernel, place.loop.symbol.name
    if what != "vectorize" and bounds(place.loop.extent)[1] <= 1:
        return  # there are no two
    for first, second in carried(place):
        if combining and first.how == second.how != "store":
            need_reassociation(kernel, first, f"{what} {name}", reassociate)
            continue
        raise refusal(kernel, f"{what} {name}: its iterations may depend on one another: {show_access(first)} and {show_access(second)}")


def need_reassociation(kernel: Kernel, access: Access, what: str, allowed: bool) -> None:
    if buffers_of(kernel)[access.buffer].dtype.is_float and not allowed:
        raise refusal(kernel, f"{what} would change the order in which {show_access(access)} combines floats",
                    hint="allow it by a last argument true (reassociation)")


def show_access(access: Access) -> str:
    index = ", ".join(map(str, access.index))
    return f"{'load' if access.how == 'load' else 'store' if access.how == 'store' else access.how} %{access.buffer}[{index}]"


def is_parallel(statement: Stmt) -> bool:
    return isinstance(statement, For) and statement.kind == "parallel"


def need_apart(kernel: Kernel, own: Stmt, others: Sequence[Stmt], what: str, buffer: str = "") -> None:
    """ScheduleError unless an outermost statement touches nothing that one of the others stores to, and stores to nothing that one
    touches (there is no barrier between them): of one buffer, or of all."""
    if not others:
        return
    parameters, stored = {b.name for b in kernel.buffers}, stored_buffers(walk(kernel.body))
    statements = reached([own])
    touched = accesses_of(statements, stored), ranges_of(statements)
    for other in others:
        (accesses, ranges), statements = touched, reached([other])
        # either touches something only where the loops around it run
        sizes = sizes_where([*extents_around([own]), *extents_around([other])], kernel.symbols)
        if sizes:
            statements = reached(substitute_statements((own,), sizes))
            accesses, ranges = accesses_of(statements, stored), ranges_of(statements)
            statements = reached(substitute_statements((other,), sizes))
        theirs = ranges_of(statements)
        for a, b in conflicts(accesses, accesses_of(statements, stored)):
            # local memory that other statements have stored to may be read: every thread runs those statements
            harmless = a.how == "load" and a.buffer not in parameters or buffer not in ("", a.buffer)
            if not harmless and not lie_apart(a, ranges, b, theirs):
                raise refusal(kernel, f"{what}: there is no barrier between {show_access(a)} and {show_access(b)} in another outermost "
                              "statement")
