"""Schedules: changes of how a kernel computes that provably keep what it computes.

    schedule := (step newline)*          step := primitive "(" argument, ... ")"
    argument := integer | true | false | word | "text" | "[" argument, ... "]"

    split(i, 8)                 i becomes i_outer over blocks of 8 and i_inner within one; a third argument says how the
                                last block ends: `min` (a shorter inner loop, the default) or `guard` (an if around the body),
                                a fourth what the inner loop is called
    fuse(i, j, ...)             loops, each perfectly inside the one before, become one that is called i
    reorder(i, j)               i and j, the one perfectly inside the other, change places
    vectorize(i, 8)             a serial loop runs in vectors of 8 lanes
    unroll(i)                   a serial loop of static extent is spelled out
    parallelize(i)              an outermost serial loop is divided among threads
    stage(i, x, ["4*i", 0], [4, 64], tile, local)    in each iteration of i the part of x from [4*i, 0] on, of shape
                                [4, 64], is worked on in memory of its own: copied in before the body where its old
                                values are needed, copied back after it where it is stored to

A loop is named by its variable; where several have the same one, `"i@1"` is the second in order of text. `reorder` and
`vectorize` take a last argument true to allow that float sums are reassociated.

Each primitive is a function from kernel to kernel that raises ScheduleError, saying why, where it cannot show that the
meaning stays: exactly the same elements are stored with the same values (up to reassociation where allowed). That what
comes out also keeps the rules of the loop IR is checked once, by `apply_schedule`, at the end.

The test of dependence (`ir/dependence.py`, and where that does not tell the prover of `loop_proofs`) is conservative.
Memory that a loop's body allocates belongs to one iteration. Which of several failing checks ends a kernel may change,
as may what is in outputs then.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from .dims import (
    DimLike,
    Symbol,
    bounds,
    ceildiv,
    dim_min,
    divides,
    parse_dim,
    product,
    substitute,
    symbol,
    symbols_of,
)
from .errors import CompileError, ScheduleError, VerifyError
from .graph import Node, Op
from .lexer import Lexer
from .loop import (
    SPACES,
    Alloc,
    Buffer,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    While,
    blocks_of,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_sizes,
    map_statements,
    names_of,
    substitute_statements,
    variable_size,
    walk,
)
from .loop_proofs import Known, condition_facts, linear_factor, prove_nonnegative
from .loop_verify import verify_kernel
from .ops.compute import Elementwise
from .types import BOOL, INDEX, TensorType

Argument = int | str | bool | tuple["Argument", ...]


class Step(Struct, frozen=True):
    """One primitive with its arguments."""

    primitive: str
    arguments: tuple[Argument, ...]

    def __str__(self) -> str:
        return f"{self.primitive}({', '.join(map(_format_argument, self.arguments))})"


Schedule = tuple[Step, ...]


def apply_schedule(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel after all steps, verified. ScheduleError names the step that is not legal."""
    versions = [kernel]
    for number, step in enumerate(schedule):
        if step.primitive not in PRIMITIVES:
            raise ScheduleError(f"step {number + 1}: unknown primitive {step.primitive!r}; known are {', '.join(PRIMITIVES)}")
        try:
            versions.append(PRIMITIVES[step.primitive](versions[-1], *step.arguments))
        except (AttributeError, TypeError):
            raise ScheduleError(f"step {number + 1}: {step} has the wrong number or kind of arguments") from None
        except ScheduleError as error:
            error.notes = (*error.notes, f"in step {number + 1}: {step}")
            raise
    if schedule and _broken_rule(versions[-1]) is not None:
        for number, step in enumerate(schedule):
            broken = _broken_rule(versions[number + 1])
            if broken is not None:
                raise ScheduleError(f"{broken.message} (after the change)", loc=kernel.loc, hint=broken.hint,
                                    notes=(*broken.notes, f"in step {number + 1}: {step}"))
    return versions[-1]


def apply_legal(kernel: Kernel, schedule: Schedule) -> tuple[Kernel, Schedule]:
    """The kernel after those steps that are shown to be legal, and these: what is left out costs time, not meaning."""
    try:
        return apply_schedule(kernel, schedule), schedule
    except ScheduleError:
        taken: list[Step] = []
    for step in schedule:
        try:
            kernel = apply_schedule(kernel, (step,))
        except ScheduleError:
            continue
        taken.append(step)
    return kernel, tuple(taken)


def _broken_rule(kernel: Kernel) -> VerifyError | None:
    try:
        verify_kernel(kernel)
    except VerifyError as error:
        return error
    return None


# --- text ------------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d]\w*")


def format_schedule(schedule: Schedule) -> str:
    """One step a line."""
    return "".join(f"{step}\n" for step in schedule)


def _format_argument(value: Argument) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return value if _WORD.fullmatch(value) and value not in ("true", "false") else json.dumps(value)
    return f"[{', '.join(map(_format_argument, value))}]"


def parse_schedule(text: str) -> Schedule:
    """Reads what `format_schedule` writes. Raises ParseError."""
    lexer = Lexer(text)
    steps: list[Step] = []
    while lexer.token.kind != "end":
        name = lexer.take("word", "a primitive such as split")
        lexer.expect("(")
        steps.append(Step(name, _parse_arguments(lexer, ")", 0)))
    return tuple(steps)


def _parse_arguments(lexer: Lexer, end: str, depth: int) -> tuple[Argument, ...]:
    found: list[Argument] = []
    if depth > 8:
        lexer.fail("arguments nest deeper than 8 levels")
    while not lexer.at(end):
        if lexer.accept("["):
            found.append(_parse_arguments(lexer, "]", depth + 1))
        elif lexer.token.kind == "int" or lexer.at("-"):
            sign = -1 if lexer.accept("-") else 1
            found.append(sign * lexer.integer("an integer"))
        elif lexer.token.kind == "string":
            found.append(lexer.next().text)
        else:
            word = lexer.take("word", "an argument")
            found.append({"true": True, "false": False}.get(word, word))
        if not lexer.accept(","):
            break
    lexer.expect(end)
    return tuple(found)


# --- places in a kernel ----------------------------------------------------------------------------------------------


class _Place(Struct, frozen=True):
    """A loop of a kernel. `above`: the statements around it, outermost first, each with the number of its block that
    leads on to the loop."""

    kernel: Kernel
    loop: For
    above: tuple[tuple[Stmt, int], ...]

    def inside(self) -> _Place:
        """The place of the loop that is all that this one holds."""
        loop, = self.loop.body
        assert isinstance(loop, For)
        return _Place(self.kernel, loop, (*self.above, (self.loop, 0)))

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


def _find(kernel: Kernel, name: str) -> _Place:
    """The loop of that name; ScheduleError where there is none or several."""
    stem, _, number = name.partition("@")
    found = _places(kernel, stem)
    if not found:
        names = ", ".join(dict.fromkeys(s.symbol.name for s in walk(kernel.body) if isinstance(s, For)))
        raise ScheduleError(f"kernel {kernel.name}: no loop {stem}; its loops are {names or 'none'}")
    if not number and len(found) > 1:
        raise ScheduleError(f"kernel {kernel.name}: {len(found)} loops are called {stem}", hint=f'name one of them: "{stem}@0"')
    if number and not (number.isdecimal() and int(number) < len(found)):
        raise ScheduleError(f"kernel {kernel.name}: no loop {name}; {len(found)} are called {stem}")
    return found[int(number or 0)]


def _places(kernel: Kernel, name: str) -> list[_Place]:
    """The loops of that name, in order of text."""
    found: list[_Place] = []

    def search(block: Sequence[Stmt], above: tuple[tuple[Stmt, int], ...]) -> None:
        for statement in block:
            if isinstance(statement, For) and statement.symbol.name == name:
                found.append(_Place(kernel, statement, above))
            if isinstance(statement, (For, While, If)):
                for number, inner in enumerate(blocks_of(statement)):
                    search(inner, (*above, (statement, number)))

    search(kernel.body, ())
    return found


def _fail(kernel: Kernel, message: str, hint: str = "") -> ScheduleError:
    return ScheduleError(f"kernel {kernel.name}: {message}", loc=kernel.loc, hint=hint)


def _need_kind(kernel: Kernel, loop: For, wanted: str, what: str) -> None:
    if loop.kind != wanted:
        raise _fail(kernel, f"{what} needs a {wanted} loop, found {loop.symbol.name}, which is {loop.kind}")


def _fresh(stem: str, taken: set[str]) -> str:
    """A name that is not taken."""
    return next(n for n in itertools.chain([stem], (f"{stem}{k}" for k in itertools.count(2))) if n not in taken)


# --- dependence ------------------------------------------------------------------------------------------------------


def _buffers(kernel: Kernel) -> dict[str, Buffer]:
    """All buffers by name; names of allocations in separate blocks may coincide, so dependence looks at their place too."""
    found = {b.name: b for b in kernel.buffers}
    for statement in walk(kernel.body):
        if isinstance(statement, Alloc):
            found[statement.buffer.name] = statement.buffer
    return found


LATE = "__late"  # ends the name of a variable of the later of two iterations, and of the distance between them


class _Meeting:
    """Whether an access in one iteration can touch the element that another touches in a certain later one.

    `early` and `late` say what stands for the loop variables in either; variables bound within the body differ freely
    between the two, so that those of the late one are renamed.
    """

    def __init__(self, place: _Place, early: Mapping[str, DimLike], late: Mapping[str, DimLike],
                 loops: Sequence[tuple[Symbol, DimLike]], body: Sequence[Stmt]) -> None:
        for name in names_of(place.kernel):
            if name.endswith(LATE):
                raise _fail(place.kernel, f"the name {name} is reserved for the test of dependence")
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
            shape = _buffers(self.kernel)[first.buffer].shape
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


def _carried(place: _Place) -> Iterator[tuple[Access, Access]]:
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
    meeting: _Meeting | None = None
    for first, second in conflicts(accesses, accesses):
        if lie_apart_later(first, second, loop, ranges):
            continue
        if meeting is None:
            later = variable_size(loop.symbol) + 1 + symbol("distance" + LATE, 0)
            meeting = _Meeting(place, {}, {loop.symbol.name: later}, [(loop.symbol, loop.extent)], loop.body)
        if meeting.possible(first, second):
            yield first, second


def _need_independent(place: _Place, what: str, combining: bool = False, reassociate: bool = False) -> None:
    """ScheduleError unless no iteration depends on another; `combining`: stores that combine alike may meet."""
    kernel, name = place.kernel, place.loop.symbol.name
    if what != "vectorize" and bounds(place.loop.extent)[1] <= 1:
        return  # there are no two
    for first, second in _carried(place):
        if combining and first.how == second.how != "store":
            _need_reassociation(kernel, first, f"{what} {name}", reassociate)
            continue
        raise _fail(kernel, f"{what} {name}: its iterations may depend on one another: {_show(first)} and {_show(second)}")


def _need_reassociation(kernel: Kernel, access: Access, what: str, allowed: bool) -> None:
    if _buffers(kernel)[access.buffer].dtype.is_float and not allowed:
        raise _fail(kernel, f"{what} would change the order in which {_show(access)} combines floats",
                    hint="allow it by a last argument true (reassociation)")


def _show(access: Access) -> str:
    index = ", ".join(map(str, access.index))
    return f"{'load' if access.how == 'load' else 'store' if access.how == 'store' else access.how} %{access.buffer}[{index}]"


# --- primitives ------------------------------------------------------------------------------------------------------


def split(kernel: Kernel, loop: str, factor: int, tail: str = "min", inner_name: str = "") -> Kernel:
    """Blocks of `factor` iterations: an outer loop over blocks around an inner one within a block. Always legal for
    serial and parallel loops; an unrolled loop must divide evenly, a vector loop is split before it is vectorized."""
    place = _find(kernel, loop)
    old, name = place.loop, place.loop.symbol.name
    _check_split(kernel, old, factor, tail)
    taken = names_of(kernel)
    if inner_name in taken:
        raise _fail(kernel, f"split {name}: the name {inner_name} is taken")
    even = divides(factor, old.extent)
    count = old.extent // factor if even else ceildiv(old.extent, factor)
    outer = loop_variable(_fresh(f"{name}_outer", taken | {inner_name}), count)
    start = variable_size(outer) * factor
    rest: DimLike = factor if even or tail == "guard" else dim_min(factor, old.extent - start)
    inner = loop_variable(inner_name or _fresh(f"{name}_inner", taken), rest if bounds(rest)[1] >= 1 else 1)
    position = start + variable_size(inner)
    body = substitute_statements(old.body, {name: position})
    if not even and tail == "guard":
        operands = tuple(Node(IndexValue(n), (), TensorType(INDEX, ())) for n in (position, old.extent))
        body = (If(Node(Elementwise("lt"), operands, TensorType(BOOL, ())), body),)
    inside = For(inner, rest, "unrolled" if old.kind == "unrolled" else "serial", body)
    return place.replaced((For(outer, count, old.kind, (inside,)),))


def _check_split(kernel: Kernel, loop: For, factor: int, tail: str) -> None:
    name = loop.symbol.name
    if factor < 1:
        raise _fail(kernel, f"split {name}: blocks of {factor} iterations, expected at least 1")
    if tail not in ("min", "guard"):
        raise _fail(kernel, f"split {name}: the tail is {tail!r}, expected min or guard")
    if loop.kind == "vector":
        raise _fail(kernel, f"split {name}: it is a vector loop", hint="split first, then vectorize the inner loop")
    if loop.kind == "unrolled" and not divides(factor, loop.extent):
        raise _fail(kernel, f"split {name}: the extent {loop.extent} of an unrolled loop is no multiple of {factor}")


def fuse(kernel: Kernel, outer: str, *inner: str) -> Kernel:
    """Makes one loop of several, each being all that the one before holds; it is called as the outer one. Legal for
    serial loops, and for serial loops in a parallel one whose iterations do not depend on one another either."""
    place = first = _find(kernel, outer)
    loops = [first.loop]
    for name in inner:
        loops.append(_only_loop(kernel, "fuse", place.loop, name))
        place = place.inside()
        _check_fuse(first.loop, place)
    _check_extents(first, loops)
    total = product(loop.extent for loop in loops)
    fused = loop_variable(loops[0].symbol.name, total)
    position: DimLike = variable_size(fused)
    joined: dict[str, DimLike] = {**{loop.symbol.name: 0 for loop in loops[:-1]}, loops[-1].symbol.name: position}
    apart: dict[str, DimLike] = {}
    for loop in reversed(loops[1:]):
        runs = bounds(loop.extent)[1] > 0  # else there is nothing to divide
        apart[loop.symbol.name] = position % loop.extent if runs else 0
        position = position // loop.extent if runs else 0
    apart[loops[0].symbol.name] = position

    def place_of(size: DimLike) -> DimLike:
        # a size that walks all loops as one takes the number of the iteration as it is: t for n*(t // n) + t % n
        return substitute(size, joined if _walks_as_one(size, loops) else apart)

    body = map_sizes(place.loop.body, place_of)
    return first.replaced((replace(first.loop, symbol=fused, extent=total, body=body),))


def _walks_as_one(size: DimLike, loops: Sequence[For]) -> bool:
    """Whether a step of each loop is worth as much as all of the next one."""
    factors = [linear_factor(size, loop.symbol) for loop in loops]
    return all(a is not None and b is not None and a == b * inner.extent
               for a, b, inner in zip(factors, factors[1:], loops[1:]))


def _only_loop(kernel: Kernel, what: str, outer: For, inner: str) -> For:
    """The loop of that name when it is all that the outer one holds and its extent does not depend on it."""
    name = outer.symbol.name
    if len(outer.body) != 1 or not isinstance(outer.body[0], For) or outer.body[0].symbol.name != inner.partition("@")[0]:
        held = ", ".join(type(s).__name__ for s in outer.body)
        raise _fail(kernel, f"{what} {name}, {inner}: {name} must hold {inner} and nothing else, found {held}")
    loop = outer.body[0]
    if any(s.name == name for s in symbols_of(loop.extent)):
        raise _fail(kernel, f"{what} {name}, {inner}: the extent {loop.extent} of {inner} depends on {name}")
    return loop


def _check_fuse(first: For, place: _Place) -> None:
    names = f"fuse {first.symbol.name}, {place.loop.symbol.name}"
    if first.kind not in ("serial", "parallel") or place.loop.kind != "serial":
        raise _fail(place.kernel, f"{names}: they are {first.kind} and {place.loop.kind}, expected serial loops, of which the "
                    "outermost may be parallel")
    if any(s.name == first.symbol.name for s in symbols_of(place.loop.extent)):
        raise _fail(place.kernel, f"{names}: the extent {place.loop.extent} depends on {first.symbol.name}")
    if first.kind == "parallel":
        _need_independent(place, "fuse")


def _check_extents(first: _Place, loops: Sequence[For]) -> None:
    """Two loops around nothing because their extents are below zero would have a product above it. Sizes that are given at launch
    are none of those: a shape below zero is refused before."""
    around = {loop.symbol.name for loop in first.outer()}
    known = first.known()
    open_ended = [loop for loop in loops if any(s.name in around for s in symbols_of(loop.extent))
                  and not prove_nonnegative(loop.extent, known)]
    if len(open_ended) > 1:
        a, b = open_ended[:2]
        raise _fail(first.kernel, f"fuse {', '.join(loop.symbol.name for loop in loops)}: the extents {a.extent} and {b.extent} may both "
                    "be below zero")


def reorder(kernel: Kernel, outer: str, inner: str, reassociate: bool = False) -> Kernel:
    """Exchanges two loops, the inner one being all that the outer one holds. Legal where no element is touched in an
    iteration (o, i) and again in (o', i') with o < o' and i > i', one of the two storing, and where an inner loop that runs in
    vectors or in parallel stays independent with all of the outer one in it."""
    place = _find(kernel, outer)
    first = place.loop
    second = _only_loop(kernel, "reorder", first, inner)
    # a promise of the inner loop holds within one iteration of the outer one only
    if first.kind not in ("parallel", "vector"):
        _check_exchange(place, first, second, reassociate)
    changed = place.replaced((replace(second, body=(replace(first, body=second.body),)),))
    if second.kind in ("parallel", "vector"):
        what = "parallelize" if second.kind == "parallel" else "vectorize"
        for moved in (p for p in _places(changed, inner) if p.loop.kind == second.kind):
            _need_independent(moved, what, second.kind == "vector", reassociate)
    return changed


def _check_exchange(place: _Place, first: For, second: For, reassociate: bool) -> None:
    kernel, a, b = place.kernel, first.symbol, second.symbol
    late = variable_size(a) + 1 + symbol("distance" + LATE, 0)
    early = variable_size(b) + 1 + symbol("back" + LATE, 0)
    loops = [(a, first.extent), (b, second.extent)]
    meeting = _Meeting(place, {b.name: early}, {a.name: late}, loops, second.body)
    accesses = accesses_of(reached(second.body))
    ranges = ranges_of(reached(first.body), [a.name])
    for x, y in conflicts(accesses, accesses):
        if lie_apart_later(x, y, first, ranges) or not meeting.possible(x, y):
            continue
        if x.how == y.how and x.how not in ("load", "store"):
            _need_reassociation(kernel, x, f"reorder {a.name}, {b.name}", reassociate)
            continue
        raise _fail(kernel, f"reorder {a.name}, {b.name}: the order of {_show(x)} and {_show(y)} may matter")


def vectorize(kernel: Kernel, loop: str, lanes: int, reassociate: bool = False) -> Kernel:
    """Runs a serial loop in vectors. Legal where no iteration depends on another, apart from combining stores."""
    place = _find(kernel, loop)
    _need_kind(kernel, place.loop, "serial", "vectorize")
    _need_independent(place, "vectorize", True, reassociate)
    return place.replaced((replace(place.loop, kind="vector", lanes=lanes),))


def unroll(kernel: Kernel, loop: str) -> Kernel:
    """Spells a serial loop of static extent out, in order. Always legal."""
    place = _find(kernel, loop)
    _need_kind(kernel, place.loop, "serial", "unroll")
    return place.replaced((replace(place.loop, kind="unrolled"),))


def parallelize(kernel: Kernel, loop: str) -> Kernel:
    """Divides an outermost serial loop among threads. Legal where no iteration depends on another and no other outermost
    statement touches what it stores to or stores to what it touches (there is no barrier between them)."""
    place = _find(kernel, loop)
    old = place.loop
    _need_kind(kernel, old, "serial", "parallelize")
    if place.above:
        raise _fail(kernel, f"parallelize {loop}: it stands inside another statement; only outermost loops may be parallel")
    _need_independent(place, "parallelize")
    # what is parallel already promises to touch nothing that another statement stores to
    _need_apart(kernel, old, [s for s in kernel.body if s is not old and not _is_parallel(s)], f"parallelize {loop}")
    return place.replaced((replace(old, kind="parallel"),))


def _is_parallel(statement: Stmt) -> bool:
    return isinstance(statement, For) and statement.kind == "parallel"


def _need_apart(kernel: Kernel, own: Stmt, others: Sequence[Stmt], what: str, buffer: str = "") -> None:
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
                raise _fail(kernel, f"{what}: there is no barrier between {_show(a)} and {_show(b)} in another outermost statement")


# --- staging ---------------------------------------------------------------------------------------------------------


class _Tile(Struct, frozen=True):
    """The part of `buffer` from `start` on, of `shape`, worked on as `name` in the body of a loop. `inside`: for each
    axis, whether it lies within the buffer for certain."""

    buffer: Buffer
    start: tuple[DimLike, ...]
    shape: tuple[DimLike, ...]
    memory: Buffer
    inside: tuple[bool, ...]


def stage(kernel: Kernel, loop: str, buffer: str, start: tuple[Argument, ...], shape: tuple[Argument, ...], name: str,
          space: str = "local") -> Kernel:
    """Works on a part of a buffer in memory of its own within each iteration of the loop.

    Legal where all accesses to the buffer in the body are shown to lie within the part, and where its old values, if
    needed, are certain to be initialised: for `in` and `inout` parameters, and where the body begins by storing to all
    of the part. Loops around that run in parallel must stay independent."""
    place = _find(kernel, loop)
    old = place.loop
    if old.kind == "vector":
        raise _fail(kernel, f"stage %{buffer}: {loop} is a vector loop", hint="stage in a loop around it")
    tile = _make_tile(kernel, place, buffer, start, shape, name, space)
    _check_within(kernel, place, tile)
    accesses = [a for a in accesses_of(reached(old.body)) if a.buffer == buffer]
    stores = any(a.how != "load" for a in accesses)
    defined = _defines(old.body, tile)
    if not defined and tile.buffer.space not in ("in", "inout"):
        raise _fail(kernel, f"stage %{buffer}: its part may be read before it is stored to",
                    hint=f"the body of {loop} must begin by storing to the whole part, or %{buffer} be in or inout")
    if defined and stores and not all(tile.inside):
        raise _fail(kernel, f"stage %{buffer}: the part may reach past the end of the buffer, where there is nothing to store to")
    body = (Alloc(tile.memory), *(() if defined else _copy(kernel, tile, True)), *_redirected(old.body, tile),
            *(_copy(kernel, tile, False) if stores else ()))
    changed = place.replaced((replace(old, body=body),))
    _check_marked_loops(changed, place, buffer)
    return changed


def _make_tile(kernel: Kernel, place: _Place, buffer: str, start: tuple[Argument, ...], shape: tuple[Argument, ...],
               name: str, space: str) -> _Tile:
    known = _buffers(kernel)
    if buffer not in known or any(isinstance(s, Alloc) and s.buffer.name == buffer for s in walk(place.loop.body)):
        raise _fail(kernel, f"stage %{buffer}: no such buffer around loop {place.loop.symbol.name}")
    if sum(isinstance(s, Alloc) and s.buffer.name == buffer for s in walk(kernel.body)) > 1:
        raise _fail(kernel, f"stage %{buffer}: several buffers have this name")
    whole = known[buffer]
    if not len(start) == len(shape) == len(whole.shape):
        raise _fail(kernel, f"stage %{buffer}: start and shape need {len(whole.shape)} sizes each, one an axis")
    if space not in SPACES:
        raise _fail(kernel, f"stage %{buffer}: memory is {' or '.join(SPACES)}, found {space!r}")
    if name in names_of(kernel):
        raise _fail(kernel, f"stage %{buffer}: the name {name} is taken")
    variable = place.loop.symbol
    around = [*kernel.symbols, *(f.symbol for f in place.outer()), variable]
    sizes = {**{s.name: variable_size(s) for s in around}, **place.lets()}
    origin = tuple(_read_size(kernel, n, sizes) for n in start)
    extent = tuple(_read_size(kernel, n, sizes) for n in shape)
    at = _known_inside(place)
    for i in origin:
        if not prove_nonnegative(i, at):
            raise _fail(kernel, f"stage %{buffer}: the start {i} is not shown to be 0 or more")
    inside = tuple(prove_nonnegative(n - i - e, at) for n, i, e in zip(whole.shape, origin, extent))
    return _Tile(whole, origin, extent, Buffer(name, whole.dtype, extent, space), inside)


def _read_size(kernel: Kernel, text: Argument, sizes: Mapping[str, DimLike]) -> DimLike:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    try:
        return parse_dim(str(text), sizes)
    except CompileError as error:
        raise _fail(kernel, f"stage: {error.message}") from None


def _known_inside(place: _Place) -> Known:
    known = place.known()
    return Known((*known.loops, (place.loop.symbol, place.loop.extent)), known.facts)


def _check_within(kernel: Kernel, place: _Place, tile: _Tile) -> None:
    """Every access in the body lies within the part."""
    for index, known in _indices(place.loop.body, tile.buffer.name, _known_inside(place), {}):
        if len(index) != len(tile.shape):
            raise _fail(kernel, f"stage %{tile.buffer.name}: it is indexed by position [{index[0]}], expected one size an axis")
        for axis, (i, first, count) in enumerate(zip(index, tile.start, tile.shape)):
            if not (prove_nonnegative(i - first, known) and prove_nonnegative(first + count - 1 - i, known)):
                raise _fail(kernel, f"stage %{tile.buffer.name}: index {i} of axis {axis} is not shown to lie in the {count} "
                            f"from {first} on")


def _indices(body: Sequence[Stmt], buffer: str, known: Known,
             outer_lets: Mapping[str, DimLike]) -> Iterator[tuple[tuple[DimLike, ...], Known]]:
    """Each index of the buffer in the body, with what is known there."""
    lets = dict(outer_lets)
    for statement in body:
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load) and node.op.buffer == buffer:
                    yield node.op.index, known
        match statement:
            case Store(buffer=name, index=index) if name == buffer:
                yield index, known
            case For(symbol=variable, extent=extent, body=inner):
                yield from _indices(inner, buffer, Known((*known.loops, (variable, extent)), known.facts), lets)
            case If(condition=condition, then=then, otherwise=otherwise):
                holds = Known(known.loops, (*known.facts, *condition_facts(condition, lets)))
                yield from _indices(then, buffer, holds, lets)
                yield from _indices(otherwise, buffer, known, lets)
            case Let(symbol=variable) if variable is not None:
                lets[variable.name] = variable_size(variable)
            case _:
                for block in blocks_of(statement):
                    yield from _indices(block, buffer, known, lets)


def _touches(statement: Stmt, buffer: str) -> bool:
    return any(True for _ in _indices([statement], buffer, Known(), {}))


def _defines(body: Sequence[Stmt], tile: _Tile) -> bool:
    """Whether the first statement that touches the buffer is a nest of loops that stores to the whole part."""
    first: Stmt | None = next((s for s in body if _touches(s, tile.buffer.name)), None)
    extents: dict[str, DimLike] = {}
    while isinstance(first, For) and len(first.body) == 1:
        extents[first.symbol.name] = first.extent
        first = first.body[0]
    if not isinstance(first, Store) or first.combine or first.buffer != tile.buffer.name:
        return False
    if any(isinstance(n.op, Load) and n.op.buffer == tile.buffer.name for n in expression_nodes(first.value)):
        return False
    used: list[str] = []
    for i, start, count in zip(first.index, tile.start, tile.shape):
        place = i - start
        names = symbols_of(place)
        if place == 0 and count == 1:
            continue
        if len(names) != 1 or str(place) != names[0].name or extents.get(names[0].name) != count:
            return False
        used.append(names[0].name)
    # loops that the index does not need must run at least once
    return len(used) == len(set(used)) and all(bounds(n)[0] >= 1 for name, n in extents.items() if name not in used)


def _redirected(body: Sequence[Stmt], tile: _Tile) -> tuple[Stmt, ...]:
    def access(name: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        if name != tile.buffer.name:
            return name, index
        return tile.memory.name, tuple(i - s for i, s in zip(index, tile.start))

    def change(op: Op) -> Op:
        if isinstance(op, Load) and op.buffer == tile.buffer.name:
            name, index = access(op.buffer, op.index)
            return Load(name, index, op.dtype)
        return op

    return map_statements(body, lambda size: size, change, access)


def _copy(kernel: Kernel, tile: _Tile, into: bool) -> tuple[Stmt, ...]:
    """Loops that copy the part into its memory or back; what lies past the end of the buffer is left out."""
    kind = "unrolled" if tile.memory.space == "register" else "serial"
    loops: list[tuple[Symbol, DimLike]] = []
    position: list[DimLike] = []
    for axis, (count, start, n, inside) in enumerate(zip(tile.shape, tile.start, tile.buffer.shape, tile.inside)):
        extent = count if inside else dim_min(count, n - start)
        variable = loop_variable(_fresh(f"{tile.memory.name}_{axis}", names_of(kernel)), extent if bounds(extent)[1] >= 1 else 1)
        loops.append((variable, extent))
        position.append(variable_size(variable))
    outside = tuple(s + p for s, p in zip(tile.start, position))
    target, source = (tile.memory.name, tile.buffer.name) if into else (tile.buffer.name, tile.memory.name)
    there, here = (tuple(position), outside) if into else (outside, tuple(position))
    value = Node(Load(source, here, tile.buffer.dtype), (), TensorType(tile.buffer.dtype, ()))
    body: tuple[Stmt, ...] = (Store(target, there, value),)
    for variable, extent in reversed(loops):
        if not (isinstance(extent, int) and extent == 1):
            body = (For(variable, extent, kind, body),)
    return body


def _check_marked_loops(kernel: Kernel, place: _Place, buffer: str) -> None:
    """Copies touch more than the body did: loops around that run in parallel must still be independent, of one another too."""
    for loop in (*place.outer(), place.loop):
        if loop.kind not in ("parallel", "vector"):
            continue
        same = [p for p in _places(kernel, loop.symbol.name) if p.loop.kind == loop.kind]
        for first, second in (pair for p in same for pair in _carried(p)):
            if first.buffer == buffer:
                raise _fail(kernel, f"stage %{buffer}: iterations of the {loop.kind} loop {loop.symbol.name} would no longer be "
                            f"independent: {_show(first)} and {_show(second)}")
    number = next(i for i, s in enumerate(place.kernel.body) if any(inner is place.loop for inner in walk([s])))
    own = kernel.body[number]
    others = [s for s in kernel.body if s is not own and (_is_parallel(own) or _is_parallel(s))]
    _need_apart(kernel, own, others, f"stage %{buffer}", buffer)


PRIMITIVES: dict[str, Callable[..., Kernel]] = {
    "split": split, "fuse": fuse, "reorder": reorder, "vectorize": vectorize, "unroll": unroll, "parallelize": parallelize,
    "stage": stage,
}
