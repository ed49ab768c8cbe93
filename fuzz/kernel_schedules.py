"""Random schedules: steps drawn from the domains of the primitives' arguments, on the names that a kernel has by then.

Nothing here knows whether a step is legal: what a primitive refuses is left out when it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..ir.dims import DimLike
from ..ir.loop import Alloc, Buffer, For, Kernel, names_of, walk
from ..ir.schedule import Argument, Schedule, Step
from .kernel_oracles import apply_step
from .kernel_values import Values
from .subject import Failure

MOST_STEPS = 5
TRIES = 4               # steps that are drawn before a place of a schedule is left out
FACTORS = (1, 2, 3, 4, 8)
LANES = (1, 2, 4, 8, 12, 16)


def scheduled(kernel: Kernel, schedule: Schedule) -> tuple[Kernel, Schedule]:
    """The kernel after those steps that are not refused, and these."""
    taken: list[Step] = []
    for step in schedule:
        try:
            changed = apply_step(kernel, step)
        except Failure:
            changed = kernel  # see `is_taken`
        if changed is not None:
            kernel = changed
            taken.append(step)
    return kernel, tuple(taken)


def is_taken(kernel: Kernel, step: Step) -> bool:
    """Whether the step is not refused. One that crashes is taken: the check of the case that it belongs to says so."""
    try:
        return apply_step(kernel, step) is not None
    except Failure:
        return True


def random_step(kernel: Kernel, values: Values, near: Collection[str] = ()) -> Step | None:
    """A step on the kernel's own loops, on those with a name in `near` where there are such; None where it has no loops."""
    loops = [s for s in walk(kernel.body) if isinstance(s, For)]
    if not loops or not kernel.buffers:
        return None
    primitive = values.one(tuple(DRAW))
    return Step(primitive, DRAW[primitive](kernel, [x for x in loops if x.symbol.name in near] or loops, values))


def drawn_schedule(kernel: Kernel, values: Values) -> Schedule:
    """Up to `MOST_STEPS` steps that are not refused, most of them on what the step before has made or changed: a block of a loop
    becomes a vector, the blocks are divided among threads, what was fused is split again."""
    taken: list[Step] = []
    near: set[str] = set()
    for _ in range(int(values.rng.integers(1, MOST_STEPS))):
        for _ in range(TRIES):
            step = random_step(kernel, values, near if values.chance(0.7) else ())
            if step is None:
                return tuple(taken)
            try:
                after = apply_step(kernel, step)
            except Failure:  # see `is_taken`
                return (*taken, step)
            if after is not None:
                near = {name for name, loop in _loops_of(after).items() if _loops_of(kernel).get(name) != loop}
                taken.append(step)
                kernel = after
                break
    return tuple(taken)


def _loops_of(kernel: Kernel) -> dict[str, tuple[object, ...]]:
    """What steps change of a loop, by its name."""
    return {s.symbol.name: (s.extent, s.kind) for s in walk(kernel.body) if isinstance(s, For)}


def _name(kernel: Kernel, loop: For) -> str:
    same = [s for s in walk(kernel.body) if isinstance(s, For) and s.symbol.name == loop.symbol.name]
    if len(same) == 1:
        return loop.symbol.name
    return f"{loop.symbol.name}@{next(n for n, x in enumerate(same) if x is loop)}"


def _held(loop: For) -> list[For]:
    """The loop and those that are, one in the other, all that it holds."""
    found = [loop]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], For):
        found.append(found[-1].body[0])
    return found


def _reassociation(values: Values) -> tuple[Argument, ...]:
    return values.one(((), (True,), (False,)))


def _split(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    tail = values.one(((), ("min",), ("guard",)))
    return (_name(kernel, values.one(loops)), values.one(FACTORS), *tail)


def _pairs(loops: list[For]) -> list[For]:
    return [x for x in loops if len(_held(x)) > 1] or loops


def _fuse(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    held = _held(values.one(_pairs(loops)))
    count = int(values.rng.integers(2, 4))
    return tuple(_name(kernel, x) for x in (held if len(held) > 1 else loops)[:count])


def _reorder(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    held = _held(values.one(_pairs(loops)))
    second = held[1] if len(held) > 1 else values.one(loops)
    return (_name(kernel, held[0]), _name(kernel, second), *_reassociation(values))


def _vectorize(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    return (_name(kernel, values.one(loops)), values.one(LANES), *_reassociation(values))


def _unroll(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    return (_name(kernel, values.one([x for x in loops if isinstance(x.extent, int)] or loops)),)


def _parallelize(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    return (_name(kernel, values.one([s for s in kernel.body if isinstance(s, For)] or loops)),)


def _stage(kernel: Kernel, loops: list[For], values: Values) -> tuple[Argument, ...]:
    """A whole buffer, a row of it that a loop around walks, or a block."""
    loop = values.one(loops)
    buffers = {b.name: b for b in kernel.buffers} | {s.buffer.name: s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)}
    buffer = values.one(list(buffers.values()))
    start: list[Argument] = []
    shape: list[Argument] = []
    for axis, extent in enumerate(buffer.shape):
        first, count = _part(loop, buffer, axis, extent, values)
        start.append(first)
        shape.append(count)
    taken = names_of(kernel)
    name = next(n for n in ("tile", "tile2", "tile3", "tile4", "tile5", "tile6", "tile7") if n not in taken)
    space = values.one(((), ("local",), ("register",)))
    return (_name(kernel, loop), buffer.name, tuple(start), tuple(shape), name, *space)


def _part(loop: For, buffer: Buffer, axis: int, extent: DimLike, values: Values) -> tuple[Argument, Argument]:
    variable = loop.symbol.name
    draw = values.rng.random()
    if draw < 0.5:
        return 0, extent if isinstance(extent, int) else str(extent)
    if draw < 0.8:
        return variable, 1
    factor = values.one(FACTORS)
    return f"{factor}*{variable}", factor


DRAW: dict[str, Callable[[Kernel, list[For], Values], tuple[Argument, ...]]] = {
    "split": _split, "fuse": _fuse, "reorder": _reorder, "vectorize": _vectorize, "unroll": _unroll,
    "parallelize": _parallelize, "stage": _stage,
}


# --- changing schedules ----------------------------------------------------------------------------------------------


def changed_schedule(kernel: Kernel, schedule: Schedule, donor: Schedule, values: Values) -> tuple[Schedule, str]:
    """Another schedule of the kernel, and how it was made: a step added, deleted, replaced, with other arguments, or a part of
    another schedule."""
    how = values.one(("add", "add", "delete", "replace", "arguments", "crossover"))
    if not schedule and how in ("delete", "replace", "arguments"):
        how = "add"
    if how == "crossover" and not donor:
        how = "add"
    at = int(values.rng.integers(len(schedule))) if schedule else 0
    if how == "delete":
        return schedule[:at] + schedule[at + 1:], how
    if how == "crossover":
        cut = int(values.rng.integers(len(donor)))
        return (schedule[:at] + donor[cut:])[:MOST_STEPS], how
    if how == "add":
        at = len(schedule) if len(schedule) < MOST_STEPS else at
    before, taken = scheduled(kernel, schedule[:at])
    for _ in range(TRIES):
        step = random_step(before, values) if how != "arguments" else _with_arguments(before, schedule[at], values)
        if step is not None and is_taken(before, step):
            return (*taken, step, *schedule[at + (how != "add"):])[:MOST_STEPS], how
    return schedule, how


def _with_arguments(kernel: Kernel, step: Step, values: Values) -> Step | None:
    loops = [s for s in walk(kernel.body) if isinstance(s, For)]
    draw = DRAW.get(step.primitive)
    return Step(step.primitive, draw(kernel, loops, values)) if draw is not None and loops else None
