"""The primitive `stage` of schedules: part of a buffer worked on in memory of its own, copied in before and back after where needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from .dependence import accesses_of, reached
from .dims import DimLike, Symbol, bounds, dim_min, parse_dim, symbols_of
from .errors import CompileError
from .graph import Node, Op
from .loop import (
    SPACES,
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    blocks_of,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_statements,
    names_of,
    variable_size,
    walk,
)
from .loop_places import Place, buffers_of, carried, find_loop, fresh_name, is_parallel, loops_called, need_apart, refusal, show_access
from .loop_proofs import Known, condition_facts, prove_nonnegative
from .types import TensorType


class _Tile(Struct, frozen=True):
    """The part of `buffer` from `start` on, of `shape`, worked on as `name` in the body of a loop. `inside`: for each
    axis, whether it lies within the buffer for certain."""

    buffer: Buffer
    start: tuple[DimLike, ...]
    shape: tuple[DimLike, ...]
    memory: Buffer
    inside: tuple[bool, ...]


def stage(kernel: Kernel, loop: str, buffer: str, start: tuple[int | str, ...], shape: tuple[int | str, ...], name: str,
          space: str = "local") -> Kernel:
    """Works on a part of a buffer in memory of its own within each iteration of the loop.

    Legal where all accesses to the buffer in the body are shown to lie within the part, and where its old values, if
    needed, are certain to be initialised: for `in` and `inout` parameters, and where the body begins by storing to all
    of the part. Loops around that run in parallel must stay independent."""
    place = find_loop(kernel, loop)
    old = place.loop
    if old.kind == "vector":
        raise refusal(kernel, f"stage %{buffer}: {loop} is a vector loop", hint="stage in a loop around it")
    tile = _make_tile(kernel, place, buffer, start, shape, name, space)
    _check_within(kernel, place, tile)
    accesses = [a for a in accesses_of(reached(old.body)) if a.buffer == buffer]
    stores = any(a.how != "load" for a in accesses)
    defined = _defines(old.body, tile)
    if not defined and tile.buffer.space not in ("in", "inout"):
        raise refusal(kernel, f"stage %{buffer}: its part may be read before it is stored to",
                    hint=f"the body of {loop} must begin by storing to the whole part, or %{buffer} be in or inout")
    if defined and stores and not all(tile.inside):
        raise refusal(kernel, f"stage %{buffer}: the part may reach past the end of the buffer, where there is nothing to store to")
    body = (Alloc(tile.memory), *(() if defined else _copy(kernel, tile, True)), *_redirected(old.body, tile),
            *(_copy(kernel, tile, False) if stores else ()))
    changed = place.replaced((replace(old, body=body),))
    _check_marked_loops(changed, place, buffer)
    return changed


def _make_tile(kernel: Kernel, place: Place, buffer: str, start: tuple[int | str, ...], shape: tuple[int | str, ...],
               name: str, space: str) -> _Tile:
    known = buffers_of(kernel)
    if buffer not in known or any(isinstance(s, Alloc) and s.buffer.name == buffer for s in walk(place.loop.body)):
        raise refusal(kernel, f"stage %{buffer}: no such buffer around loop {place.loop.symbol.name}")
    if sum(isinstance(s, Alloc) and s.buffer.name == buffer for s in walk(kernel.body)) > 1:
        raise refusal(kernel, f"stage %{buffer}: several buffers have this name")
    whole = known[buffer]
    if not len(start) == len(shape) == len(whole.shape):
        raise refusal(kernel, f"stage %{buffer}: start and shape need {len(whole.shape)} sizes each, one an axis")
    if space not in SPACES:
        raise refusal(kernel, f"stage %{buffer}: memory is {' or '.join(SPACES)}, found {space!r}")
    if name in names_of(kernel):
        raise refusal(kernel, f"stage %{buffer}: the name {name} is taken")
    variable = place.loop.symbol
    around = [*kernel.symbols, *(f.symbol for f in place.outer()), variable]
    sizes = {**{s.name: variable_size(s) for s in around}, **place.lets()}
    origin = tuple(_read_size(kernel, n, sizes) for n in start)
    extent = tuple(_read_size(kernel, n, sizes) for n in shape)
    at = _known_inside(place)
    for i in origin:
        if not prove_nonnegative(i, at):
            raise refusal(kernel, f"stage %{buffer}: the start {i} is not shown to be 0 or more")
    inside = tuple(prove_nonnegative(n - i - e, at) for n, i, e in zip(whole.shape, origin, extent))
    return _Tile(whole, origin, extent, Buffer(name, whole.dtype, extent, space), inside)


def _read_size(kernel: Kernel, text: int | str, sizes: Mapping[str, DimLike]) -> DimLike:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    try:
        return parse_dim(str(text), sizes)
    except CompileError as error:
        raise refusal(kernel, f"stage: {error.message}") from None


def _known_inside(place: Place) -> Known:
    known = place.known()
    return Known((*known.loops, (place.loop.symbol, place.loop.extent)), known.facts)


def _check_within(kernel: Kernel, place: Place, tile: _Tile) -> None:
    """Every access in the body lies within the part."""
    for index, known in _indices(place.loop.body, tile.buffer.name, _known_inside(place), {}):
        if len(index) != len(tile.shape):
            raise refusal(kernel, f"stage %{tile.buffer.name}: it is indexed by position [{index[0]}], expected one size an axis")
        for axis, (i, first, count) in enumerate(zip(index, tile.start, tile.shape)):
            if not (prove_nonnegative(i - first, known) and prove_nonnegative(first + count - 1 - i, known)):
                raise refusal(kernel, f"stage %{tile.buffer.name}: index {i} of axis {axis} is not shown to lie in the {count} "
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
        variable = loop_variable(fresh_name(f"{tile.memory.name}_{axis}", names_of(kernel)), extent if bounds(extent)[1] >= 1 else 1)
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


def _check_marked_loops(kernel: Kernel, place: Place, buffer: str) -> None:
    """Copies touch more than the body did: loops around that run in parallel must still be independent, of one another too."""
    for loop in (*place.outer(), place.loop):
        if loop.kind not in ("parallel", "vector"):
            continue
        same = [p for p in loops_called(kernel, loop.symbol.name) if p.loop.kind == loop.kind]
        for first, second in (pair for p in same for pair in carried(p)):
            if first.buffer == buffer:
                raise refusal(kernel, f"stage %{buffer}: iterations of the {loop.kind} loop {loop.symbol.name} would no longer be "
                            f"independent: {show_access(first)} and {show_access(second)}")
    number = next(i for i, s in enumerate(place.kernel.body) if any(inner is place.loop for inner in walk([s])))
    own = kernel.body[number]
    others = [s for s in kernel.body if s is not own and (is_parallel(own) or is_parallel(s))]
    need_apart(kernel, own, others, f"stage %{buffer}", buffer)
