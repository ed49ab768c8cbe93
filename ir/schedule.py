"""Schedules: changes of how a kernel computes that provably keep what it computes.

    schedule := (step newline)*          step := primitive "(" argument, ... ")"
    argument := integer | true | false | word | "text" | "[" argument, ... "]"

    split(i, 8)                 i becomes i_outer over blocks of 8 and i_inner within one; a third argument says how the
                                last block ends: `min` (a shorter inner loop, the default) or `guard` (an if around the body)
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
meaning stays: exactly the same elements are stored with the same values (up to reassociation where allowed). The test
of dependence is conservative: two accesses are taken to meet unless bounds of their indices show that they do not.
Which of several failing checks ends a kernel may change, as may what is in outputs then.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .dims import DimLike, Symbol, bounds, ceildiv, dim_min, divides, parse_dim, substitute, symbol, symbols_of
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
    map_statements,
    substitute_statements,
    variable_size,
    walk,
)
from .loop_verify import Known, condition_facts, prove_nonnegative, verify_kernel
from .ops.compute import Elementwise
from .types import BOOL, INDEX, TensorType

Argument = int | str | bool | tuple["Argument", ...]


@dataclass(frozen=True)
class Step:
    """One primitive with its arguments."""

    primitive: str
    arguments: tuple[Argument, ...]

    def __str__(self) -> str:
        return f"{self.primitive}({', '.join(map(_format_argument, self.arguments))})"


Schedule = tuple[Step, ...]


def apply_schedule(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel after all steps. ScheduleError names the step that is not legal."""
    for number, step in enumerate(schedule):
        if step.primitive not in PRIMITIVES:
            raise ScheduleError(f"step {number + 1}: unknown primitive {step.primitive!r}; known are {', '.join(PRIMITIVES)}")
        try:
            kernel = PRIMITIVES[step.primitive](kernel, *step.arguments)
        except (AttributeError, TypeError):
            raise ScheduleError(f"step {number + 1}: {step} has the wrong number or kind of arguments") from None
        except ScheduleError as error:
            error.notes = (*error.notes, f"in step {number + 1}: {step}")
            raise
    return kernel


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


@dataclass(frozen=True)
class _Place:
    """A loop and what is around it: `outer` loops, outermost first, and what is known where it stands."""

    loop: For
    outer: tuple[For, ...]
    known: Known
    sizes: Mapping[str, DimLike]
    outermost: bool


def _find(kernel: Kernel, name: str) -> _Place:
    """The loop of that name; ScheduleError where there is none or several."""
    stem, _, number = name.partition("@")
    reserved = [n for n in _names(kernel) if n.endswith(("__", LATE))]
    if reserved:
        raise ScheduleError(f"kernel {kernel.name}: the name {reserved[0]} is reserved for the test of dependence")
    start = {s.name: variable_size(s) for s in kernel.symbols}
    found = list(_places(kernel.body, stem, (), Known(), start, {}, True))
    if not found:
        names = ", ".join(dict.fromkeys(s.symbol.name for s in walk(kernel.body) if isinstance(s, For)))
        raise ScheduleError(f"kernel {kernel.name}: no loop {stem}; its loops are {names or 'none'}")
    if not number and len(found) > 1:
        raise ScheduleError(f"kernel {kernel.name}: {len(found)} loops are called {stem}", hint=f'name one of them: "{stem}@0"')
    if number and not (number.isdecimal() and int(number) < len(found)):
        raise ScheduleError(f"kernel {kernel.name}: no loop {name}; {len(found)} are called {stem}")
    return found[int(number or 0)]


def _places(body: Sequence[Stmt], name: str, outer: tuple[For, ...], known: Known, outer_sizes: Mapping[str, DimLike],
            outer_lets: Mapping[str, DimLike], outermost: bool) -> Iterator[_Place]:
    sizes, lets = dict(outer_sizes), dict(outer_lets)
    for statement in body:
        match statement:
            case For(symbol=variable, body=inner):
                if variable.name == name:
                    yield _Place(statement, outer, known, dict(sizes), outermost)
                inside = Known((*known.loops, (variable, statement.extent)), known.facts)
                yield from _places(inner, name, (*outer, statement), inside,
                                   {**sizes, variable.name: variable_size(variable)}, lets, False)
            case If(condition=condition, then=then, otherwise=otherwise):
                holds = Known(known.loops, (*known.facts, *condition_facts(condition, lets)))
                yield from _places(then, name, outer, holds, sizes, lets, False)
                yield from _places(otherwise, name, outer, known, sizes, lets, False)
            case Let(symbol=variable) if variable is not None:
                sizes[variable.name] = lets[variable.name] = variable_size(variable)
            case _:
                for block in blocks_of(statement):
                    yield from _places(block, name, outer, known, sizes, lets, False)


def _replace(body: Sequence[Stmt], old: Stmt, new: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    result: list[Stmt] = []
    for statement in body:
        if statement is old:
            result.extend(new)
            continue
        match statement:
            case If(then=then, otherwise=otherwise):
                result.append(replace(statement, then=_replace(then, old, new), otherwise=_replace(otherwise, old, new)))
            case For(body=inner):
                result.append(replace(statement, body=_replace(inner, old, new)))
            case While(body=inner):
                result.append(replace(statement, body=_replace(inner, old, new)))
            case _:
                result.append(statement)
    return tuple(result)


def _rebuilt(kernel: Kernel, old: For, new: Sequence[Stmt]) -> Kernel:
    """The kernel with the loop replaced, verified."""
    changed = replace(kernel, body=_replace(kernel.body, old, tuple(new)))
    try:
        verify_kernel(changed)
    except VerifyError as error:
        raise ScheduleError(f"{error.message} (after the change)", loc=kernel.loc, notes=error.notes, hint=error.hint) from None
    return changed


def _fail(kernel: Kernel, message: str, hint: str = "") -> ScheduleError:
    return ScheduleError(f"kernel {kernel.name}: {message}", loc=kernel.loc, hint=hint)


def _need_kind(kernel: Kernel, loop: For, wanted: str, what: str) -> None:
    if loop.kind != wanted:
        raise _fail(kernel, f"{what} needs a {wanted} loop, found {loop.symbol.name}, which is {loop.kind}")


def _names(kernel: Kernel) -> set[str]:
    taken = {s.name for s in kernel.symbols} | {b.name for b in kernel.buffers}
    for statement in walk(kernel.body):
        match statement:
            case For(symbol=variable):
                taken.add(variable.name)
            case Let(name=name):
                taken.add(name)
            case Alloc(buffer=buffer):
                taken.add(buffer.name)
    return taken


def _fresh(kernel: Kernel, stem: str) -> str:
    """A name that nothing in the kernel has."""
    taken = _names(kernel)
    return next(n for n in itertools.chain([stem], (f"{stem}{k}" for k in itertools.count(2))) if n not in taken)


# --- dependence ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Access:
    """A load (`how` 'load'), a store ('store') or a combining store (the function's name)."""

    buffer: Buffer
    index: tuple[DimLike, ...]
    how: str


def _buffers(kernel: Kernel) -> dict[str, Buffer]:
    """All buffers by name; names of allocations in separate blocks may coincide, so dependence looks at their place too."""
    found = {b.name: b for b in kernel.buffers}
    for statement in walk(kernel.body):
        if isinstance(statement, Alloc):
            found[statement.buffer.name] = statement.buffer
    return found


def _accesses(kernel: Kernel, body: Sequence[Stmt]) -> list[_Access]:
    """Accesses to memory that lives longer than one run of the body."""
    buffers = _buffers(kernel)
    own = {s.buffer.name for s in walk(body) if isinstance(s, Alloc)}
    found: list[_Access] = []
    for statement in walk(body):
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load) and node.op.buffer not in own:
                    found.append(_Access(buffers[node.op.buffer], node.op.index, "load"))
        if isinstance(statement, Store) and statement.buffer not in own:
            found.append(_Access(buffers[statement.buffer], statement.index, statement.combine or "store"))
    return found


def _inner_variables(body: Sequence[Stmt]) -> list[tuple[Symbol, DimLike | None]]:
    """Loop variables with extents, and index lets (extent None), bound in the body, outer first."""
    found: list[tuple[Symbol, DimLike | None]] = []
    for statement in walk(body):
        match statement:
            case For(symbol=variable, extent=extent):
                found.append((variable, extent))
            case Let(symbol=variable) if variable is not None:
                found.append((variable, None))
    return found


LATE = "__late"  # ends the name of a variable of the later of two iterations


class _Meeting:
    """Whether an access in one iteration can touch the element that another touches in a certain later one.

    `early` and `late` say what stands for the loop variables in either; variables bound within the body differ freely
    between the two, so that those of the late one are renamed.
    """

    def __init__(self, known: Known, early: Mapping[str, DimLike], late: Mapping[str, DimLike],
                 loops: Sequence[tuple[Symbol, DimLike]], body: Sequence[Stmt]) -> None:
        inner = _inner_variables(body)
        renamed = {v.name: symbol(v.name + LATE, v.lower, v.upper, v.multiple_of) for v, _ in inner}
        self.early = dict(early)
        self.late = {**late, **renamed}
        bound = [*known.loops, *loops]
        for variable, extent in inner:
            if extent is not None:
                bound.append((variable, substitute(extent, self.early)))
                other = Symbol(variable.name + LATE, variable.lower, variable.upper, variable.multiple_of)
                bound.append((other, substitute(extent, self.late)))
        self.known = Known(tuple(bound), known.facts)

    def possible(self, first: _Access, second: _Access) -> bool:
        left, right = first.index, second.index
        if len(left) != len(right):
            left, right = (_flat(i, first.buffer.shape) for i in (left, right))
        for a, b in zip(left, right):
            difference = substitute(a, self.early) - substitute(b, self.late)
            if prove_nonnegative(difference - 1, self.known) or prove_nonnegative(-difference - 1, self.known):
                return False
        return True


def _flat(index: tuple[DimLike, ...], shape: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    if len(index) == 1 and len(shape) != 1:
        return index
    position: DimLike = 0
    for i, n in zip(index, shape):
        position = position * n + i
    return (position,)


def _conflicts(kernel: Kernel, body: Sequence[Stmt], meeting: _Meeting) -> Iterator[tuple[_Access, _Access]]:
    """Pairs that may touch one element in the two iterations, where one of them stores."""
    accesses = _accesses(kernel, body)
    for first, second in itertools.product(accesses, accesses):
        if first.buffer.name != second.buffer.name or first.how == second.how == "load":
            continue
        if meeting.possible(first, second):
            yield first, second


def _carried(kernel: Kernel, place: _Place) -> Iterator[tuple[_Access, _Access]]:
    """Pairs of accesses that may meet in two iterations of the loop."""
    variable = place.loop.symbol
    distance = symbol("distance__", 0)
    now = symbol(variable.name, variable.lower, variable.upper, variable.multiple_of)
    meeting = _Meeting(place.known, {}, {variable.name: now + 1 + distance}, [(variable, place.loop.extent)], place.loop.body)
    if place.loop.extent in (0, 1):
        return
    yield from _conflicts(kernel, place.loop.body, meeting)


def _need_independent(kernel: Kernel, place: _Place, what: str, combining: bool, reassociate: bool) -> None:
    """ScheduleError unless no iteration depends on another; `combining`: stores that combine alike may meet."""
    name = place.loop.symbol.name
    for first, second in _carried(kernel, place):
        if combining and first.how == second.how != "store":
            _need_reassociation(kernel, first, f"{what} {name}", reassociate)
            continue
        raise _fail(kernel, f"{what} {name}: its iterations may depend on one another: {_show(first)} and {_show(second)}")


def _need_reassociation(kernel: Kernel, access: _Access, what: str, allowed: bool) -> None:
    if access.buffer.dtype.is_float and not allowed:
        raise _fail(kernel, f"{what} would change the order in which {_show(access)} combines floats",
                    hint="allow it by a last argument true (reassociation)")


def _show(access: _Access) -> str:
    index = ", ".join(map(str, access.index))
    return f"{'load' if access.how == 'load' else 'store' if access.how == 'store' else access.how} %{access.buffer.name}[{index}]"


# --- primitives ------------------------------------------------------------------------------------------------------


def split(kernel: Kernel, loop: str, factor: int, tail: str = "min") -> Kernel:
    """Blocks of `factor` iterations: an outer loop over blocks around an inner one within a block. Always legal for
    serial and parallel loops; an unrolled loop must divide evenly, a vector loop is split before it is vectorized."""
    place = _find(kernel, loop)
    old, name = place.loop, place.loop.symbol.name
    _check_split(kernel, old, factor, tail)
    even = divides(factor, old.extent)
    count = old.extent // factor if even else ceildiv(old.extent, factor)
    outer = loop_variable(_fresh(kernel, f"{name}_outer"), count)
    start = variable_size(outer) * factor
    rest: DimLike = factor if even or tail == "guard" else dim_min(factor, old.extent - start)
    inner = loop_variable(_fresh(kernel, f"{name}_inner"), factor)
    position = start + variable_size(inner)
    body = substitute_statements(old.body, {name: position})
    if not even and tail == "guard":
        operands = tuple(Node(IndexValue(n), (), TensorType(INDEX, ())) for n in (position, old.extent))
        body = (If(Node(Elementwise("lt"), operands, TensorType(BOOL, ())), body),)
    inside = For(inner, rest, "unrolled" if old.kind == "unrolled" else "serial", body)
    return _rebuilt(kernel, old, (For(outer, count, old.kind, (inside,)),))


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


def reorder(kernel: Kernel, outer: str, inner: str, reassociate: bool = False) -> Kernel:
    """Exchanges two loops, the inner one being all that the outer one holds. Legal where no element is touched in an
    iteration (o, i) and again in (o', i') with o < o' and i > i', one of the two storing."""
    place = _find(kernel, outer)
    first = place.loop
    if len(first.body) != 1 or not isinstance(first.body[0], For) or first.body[0].symbol.name != inner.partition("@")[0]:
        held = ", ".join(type(s).__name__ for s in first.body)
        raise _fail(kernel, f"reorder {outer}, {inner}: {outer} must hold {inner} and nothing else, found {held}")
    second = first.body[0]
    if any(s.name == first.symbol.name for s in symbols_of(second.extent)):
        raise _fail(kernel, f"reorder {outer}, {inner}: the extent {second.extent} of {inner} depends on {outer}")
    # a promise of the inner loop holds within one iteration of the outer one only
    if first.kind not in ("parallel", "vector"):
        _check_exchange(kernel, place, first, second, reassociate)
    return _rebuilt(kernel, first, (replace(second, body=(replace(first, body=second.body),)),))


def _check_exchange(kernel: Kernel, place: _Place, first: For, second: For, reassociate: bool) -> None:
    a, b = first.symbol, second.symbol
    late = symbol(a.name, a.lower, a.upper, a.multiple_of) + 1 + symbol("distance__", 0)
    early = symbol(b.name, b.lower, b.upper, b.multiple_of) + 1 + symbol("back__", 0)
    loops = [(a, first.extent), (b, second.extent)]
    meeting = _Meeting(place.known, {b.name: early}, {a.name: late}, loops, second.body)
    for x, y in _conflicts(kernel, second.body, meeting):
        if x.how == y.how and x.how not in ("load", "store"):
            _need_reassociation(kernel, x, f"reorder {a.name}, {b.name}", reassociate)
            continue
        raise _fail(kernel, f"reorder {a.name}, {b.name}: the order of {_show(x)} and {_show(y)} may matter")


def vectorize(kernel: Kernel, loop: str, lanes: int, reassociate: bool = False) -> Kernel:
    """Runs a serial loop in vectors. Legal where no iteration depends on another, apart from combining stores."""
    place = _find(kernel, loop)
    _need_kind(kernel, place.loop, "serial", "vectorize")
    _need_independent(kernel, place, "vectorize", True, reassociate)
    return _rebuilt(kernel, place.loop, (replace(place.loop, kind="vector", lanes=lanes),))


def unroll(kernel: Kernel, loop: str) -> Kernel:
    """Spells a serial loop of static extent out, in order. Always legal."""
    place = _find(kernel, loop)
    _need_kind(kernel, place.loop, "serial", "unroll")
    return _rebuilt(kernel, place.loop, (replace(place.loop, kind="unrolled"),))


def parallelize(kernel: Kernel, loop: str) -> Kernel:
    """Divides an outermost serial loop among threads. Legal where no iteration depends on another and no other outermost
    statement touches what it stores to or stores to what it touches (there is no barrier between them)."""
    place = _find(kernel, loop)
    old = place.loop
    _need_kind(kernel, old, "serial", "parallelize")
    if not place.outermost:
        raise _fail(kernel, f"parallelize {loop}: it stands inside another statement; only outermost loops may be parallel")
    _need_independent(kernel, place, "parallelize", False, False)
    parameters = {b.name for b in kernel.buffers}
    own = _accesses(kernel, [old])
    others = [a for s in kernel.body if s is not old for a in _accesses(kernel, [s])]
    for a, b in itertools.product(own, others):
        # local memory that other statements have stored to may be read: every thread runs those statements
        harmless = a.how == "load" and (b.how == "load" or a.buffer.name not in parameters)
        if a.buffer.name == b.buffer.name and not harmless:
            raise _fail(kernel, f"parallelize {loop}: there is no barrier between {_show(a)} and {_show(b)} in another "
                        "outermost statement")
    return _rebuilt(kernel, old, (replace(old, kind="parallel"),))


# --- staging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
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
    accesses = [a for a in _accesses(kernel, old.body) if a.buffer.name == buffer]
    stores = any(a.how != "load" for a in accesses)
    defined = _defines(old.body, tile)
    if not defined and tile.buffer.space not in ("in", "inout"):
        raise _fail(kernel, f"stage %{buffer}: its part may be read before it is stored to",
                    hint=f"the body of {loop} must begin by storing to the whole part, or %{buffer} be in or inout")
    if defined and stores and not all(tile.inside):
        raise _fail(kernel, f"stage %{buffer}: the part may reach past the end of the buffer, where there is nothing to store to")
    body = (Alloc(tile.memory), *(() if defined else _copy(kernel, tile, True)), *_redirected(old.body, tile),
            *(_copy(kernel, tile, False) if stores else ()))
    changed = _rebuilt(kernel, old, (replace(old, body=body),))
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
    if name != _fresh(kernel, name):
        raise _fail(kernel, f"stage %{buffer}: the name {name} is taken")
    variable = place.loop.symbol
    sizes = {**place.sizes, variable.name: variable_size(variable)}
    origin = tuple(_read_size(kernel, n, sizes) for n in start)
    extent = tuple(_read_size(kernel, n, sizes) for n in shape)
    at = Known((*place.known.loops, (variable, place.loop.extent)), place.known.facts)
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


def _check_within(kernel: Kernel, place: _Place, tile: _Tile) -> None:
    """Every access in the body lies within the part."""
    at = Known((*place.known.loops, (place.loop.symbol, place.loop.extent)), place.known.facts)
    for index, known in _indices(place.loop.body, tile.buffer.name, at, {}):
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
        variable = loop_variable(_fresh(kernel, f"{tile.memory.name}_{axis}"), extent if bounds(extent)[1] >= 1 else 1)
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
    """Copies touch more than the body did: loops around that run in parallel must still be independent."""
    for loop in (*place.outer, place.loop):
        if loop.kind not in ("parallel", "vector"):
            continue
        start = {s.name: variable_size(s) for s in kernel.symbols}
        same = [p for p in _places(kernel.body, loop.symbol.name, (), Known(), start, {}, True) if p.loop.kind == loop.kind]
        for first, second in (pair for p in same for pair in _carried(kernel, p)):
            if first.buffer.name == buffer:
                raise _fail(kernel, f"stage %{buffer}: iterations of the {loop.kind} loop {loop.symbol.name} would no longer be "
                            f"independent: {_show(first)} and {_show(second)}")


PRIMITIVES: dict[str, Callable[..., Kernel]] = {
    "split": split, "reorder": reorder, "vectorize": vectorize, "unroll": unroll, "parallelize": parallelize,
    "stage": stage,
}
