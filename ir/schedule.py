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

The test of dependence (`loop_places.py`) is conservative. `stage` has a file of its own (`staging.py`).
Memory that a loop's body allocates belongs to one iteration. Which of several failing checks ends a kernel may change,
as may what is in outputs then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from .dependence import accesses_of, conflicts, lie_apart_later, ranges_of, reached, stored_buffers
from .dims import DimLike, bounds, ceildiv, dim_min, divides, product, substitute, symbol, symbols_of
from .errors import ScheduleError, VerifyError
from .graph import Node
from .lexer import Lexer
from .loop import For, If, IndexValue, Kernel, loop_variable, map_sizes, names_of, substitute_statements, variable_size, walk
from .loop_places import (
    LATE,
    Meeting,
    Place,
    find_loop,
    fresh_name,
    is_parallel,
    loops_called,
    need_apart,
    need_independent,
    need_kind,
    need_reassociation,
    refusal,
    show_access,
)
from .loop_proofs import linear_factor, prove_nonnegative
from .loop_verify import verify_kernel
from .ops.compute import Elementwise
from .staging import stage
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


# --- primitives ------------------------------------------------------------------------------------------------------


def split(kernel: Kernel, loop: str, factor: int, tail: str = "min", inner_name: str = "") -> Kernel:
    """Blocks of `factor` iterations: an outer loop over blocks around an inner one within a block. Always legal for
    serial and parallel loops; an unrolled loop must divide evenly, a vector loop is split before it is vectorized."""
    place = find_loop(kernel, loop)
    old, name = place.loop, place.loop.symbol.name
    _check_split(kernel, old, factor, tail)
    taken = names_of(kernel)
    if inner_name in taken:
        raise refusal(kernel, f"split {name}: the name {inner_name} is taken")
    even = divides(factor, old.extent)
    count = old.extent // factor if even else ceildiv(old.extent, factor)
    outer = loop_variable(fresh_name(f"{name}_outer", taken | {inner_name}), count)
    start = variable_size(outer) * factor
    rest: DimLike = factor if even or tail == "guard" else dim_min(factor, old.extent - start)
    inner = loop_variable(inner_name or fresh_name(f"{name}_inner", taken), rest if bounds(rest)[1] >= 1 else 1)
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
        raise refusal(kernel, f"split {name}: blocks of {factor} iterations, expected at least 1")
    if tail not in ("min", "guard"):
        raise refusal(kernel, f"split {name}: the tail is {tail!r}, expected min or guard")
    if loop.kind == "vector":
        raise refusal(kernel, f"split {name}: it is a vector loop", hint="split first, then vectorize the inner loop")
    if loop.kind == "unrolled" and not divides(factor, loop.extent):
        raise refusal(kernel, f"split {name}: the extent {loop.extent} of an unrolled loop is no multiple of {factor}")


def fuse(kernel: Kernel, outer: str, *inner: str) -> Kernel:
    """Makes one loop of several, each being all that the one before holds; it is called as the outer one. Legal for
    serial loops, and for serial loops in a parallel one whose iterations do not depend on one another either."""
    place = first = find_loop(kernel, outer)
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
        raise refusal(kernel, f"{what} {name}, {inner}: {name} must hold {inner} and nothing else, found {held}")
    loop = outer.body[0]
    if any(s.name == name for s in symbols_of(loop.extent)):
        raise refusal(kernel, f"{what} {name}, {inner}: the extent {loop.extent} of {inner} depends on {name}")
    return loop


def _check_fuse(first: For, place: Place) -> None:
    names = f"fuse {first.symbol.name}, {place.loop.symbol.name}"
    if first.kind not in ("serial", "parallel") or place.loop.kind != "serial":
        raise refusal(place.kernel, f"{names}: they are {first.kind} and {place.loop.kind}, expected serial loops, of which the "
                    "outermost may be parallel")
    if any(s.name == first.symbol.name for s in symbols_of(place.loop.extent)):
        raise refusal(place.kernel, f"{names}: the extent {place.loop.extent} depends on {first.symbol.name}")
    if first.kind == "parallel":
        need_independent(place, "fuse")


def _check_extents(first: Place, loops: Sequence[For]) -> None:
    """Two loops around nothing because their extents are below zero would have a product above it. Sizes that are given at launch
    are none of those: a shape below zero is refused before."""
    around = {loop.symbol.name for loop in first.outer()}
    known = first.known()
    open_ended = [loop for loop in loops if any(s.name in around for s in symbols_of(loop.extent))
                  and not prove_nonnegative(loop.extent, known)]
    if len(open_ended) > 1:
        a, b = open_ended[:2]
        raise refusal(first.kernel, f"fuse {', '.join(loop.symbol.name for loop in loops)}: the extents {a.extent} and {b.extent} may both "
                    "be below zero")


def reorder(kernel: Kernel, outer: str, inner: str, reassociate: bool = False) -> Kernel:
    """Exchanges two loops, the inner one being all that the outer one holds. Legal where no element is touched in an
    iteration (o, i) and again in (o', i') with o < o' and i > i', one of the two storing, and where an inner loop that runs in
    vectors or in parallel stays independent with all of the outer one in it."""
    place = find_loop(kernel, outer)
    first = place.loop
    second = _only_loop(kernel, "reorder", first, inner)
    # a promise of the inner loop holds within one iteration of the outer one only
    if first.kind not in ("parallel", "vector"):
        _check_exchange(place, first, second, reassociate)
    changed = place.replaced((replace(second, body=(replace(first, body=second.body),)),))
    if second.kind in ("parallel", "vector"):
        what = "parallelize" if second.kind == "parallel" else "vectorize"
        for moved in (p for p in loops_called(changed, inner) if p.loop.kind == second.kind):
            need_independent(moved, what, second.kind == "vector", reassociate)
    return changed


def _check_exchange(place: Place, first: For, second: For, reassociate: bool) -> None:
    kernel, a, b = place.kernel, first.symbol, second.symbol
    late = variable_size(a) + 1 + symbol("distance" + LATE, 0)
    early = variable_size(b) + 1 + symbol("back" + LATE, 0)
    loops = [(a, first.extent), (b, second.extent)]
    meeting = Meeting(place, {b.name: early}, {a.name: late}, loops, second.body)
    accesses = accesses_of(reached(second.body))
    ranges = ranges_of(reached(first.body), [a.name])
    for x, y in conflicts(accesses, accesses):
        if lie_apart_later(x, y, first, ranges) or not meeting.possible(x, y):
            continue
        if x.how == y.how and x.how not in ("load", "store"):
            need_reassociation(kernel, x, f"reorder {a.name}, {b.name}", reassociate)
            continue
        raise refusal(kernel, f"reorder {a.name}, {b.name}: the order of {show_access(x)} and {show_access(y)} may matter")


def vectorize(kernel: Kernel, loop: str, lanes: int, reassociate: bool = False) -> Kernel:
    """Runs a serial loop in vectors. Legal where no iteration depends on another, apart from combining stores."""
    place = find_loop(kernel, loop)
    need_kind(kernel, place.loop, "serial", "vectorize")
    need_independent(place, "vectorize", True, reassociate)
    return place.replaced((replace(place.loop, kind="vector", lanes=lanes),))


def unroll(kernel: Kernel, loop: str) -> Kernel:
    """Spells a serial loop of static extent out, in order. Always legal."""
    place = find_loop(kernel, loop)
    need_kind(kernel, place.loop, "serial", "unroll")
    return place.replaced((replace(place.loop, kind="unrolled"),))


def parallelize(kernel: Kernel, loop: str) -> Kernel:
    """Divides an outermost serial loop among threads. Legal where no iteration depends on another and no other outermost
    statement touches what it stores to or stores to what it touches (there is no barrier between them); and where, of those
    others, what every thread runs touches nothing that the first one alone stores to."""
    place = find_loop(kernel, loop)
    old = place.loop
    need_kind(kernel, old, "serial", "parallelize")
    if place.above:
        raise refusal(kernel, f"parallelize {loop}: it stands inside another statement; only outermost loops may be parallel")
    need_independent(place, "parallelize")
    # what is parallel already promises to touch nothing that another statement stores to
    others = [s for s in kernel.body if s is not old and not is_parallel(s)]
    need_apart(kernel, old, others, f"parallelize {loop}")
    parameters = {b.name for b in kernel.buffers}
    alone = [s for s in others if stored_buffers(walk([s])) & parameters]
    for statement in others:
        if statement not in alone:
            need_apart(kernel, statement, alone, f"parallelize {loop}")
    return place.replaced((replace(old, kind="parallel"),))


PRIMITIVES: dict[str, Callable[..., Kernel]] = {
    "split": split, "fuse": fuse, "reorder": reorder, "vectorize": vectorize, "unroll": unroll, "parallelize": parallelize,
    "stage": stage,
}
