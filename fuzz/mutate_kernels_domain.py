"""Mutators of kernels that do what passes and schedules do, or what these must survive: to loops, memory, conditions, values and
sizes. None asks whether the meaning stays: a mutant is another program.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, bounds, dim_min, product, substitute, symbols_of
from ..ir.graph import Node
from ..ir.loop import (
    LOOP_KINDS,
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Load,
    Local,
    Prefetch,
    Stmt,
    Store,
    expressions_of,
    loop_variable,
    map_statements,
    names_of,
    variable_size,
    walk,
)
from ..ir.loop_proofs import linear_factor
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.types import INDEX
from .generate_kernels import LANES
from .kernel_drafts import EXTENTS, Draft, Mutator, kept_inside, parts_of, with_extent, with_part
from .kernel_edits import (
    Copying,
    Scope,
    block_from,
    copied,
    edited,
    fresh_name,
    node,
    replaced,
    with_expressions,
)

SMALL = 64              # elements of a buffer that is copied
# --- domain: loops ---------------------------------------------------------------------------------------------------


def wrap_loops(draft: Draft) -> Kernel | None:
    """One to three loops of any kind around a statement."""
    values, taken = draft.values, names_of(draft.kernel)
    for spot in draft.spots(Store, For, If)[:1]:
        assert spot.statement is not None
        body: tuple[Stmt, ...] = (spot.statement,)
        for _ in range(int(values.rng.integers(1, 4))):
            extent = values.one([*EXTENTS, *(s for s in spot.scope.sizes.values() if values.chance(0.5))])
            kind = values.one(LOOP_KINDS)
            if kind == "unrolled" and not isinstance(extent, int):
                kind = "serial"
            lanes = values.one(LANES) if kind == "vector" else 0
            body = (For(loop_variable(fresh_name("w", taken), extent), extent, kind, body, lanes),)
        return edited(draft.kernel, spot, body)
    return None


def loop_kind(draft: Draft) -> Kernel | None:
    """Another kind of loop."""
    for spot in draft.spots(For)[:1]:
        loop = spot.statement
        assert isinstance(loop, For)
        kinds = [k for k in LOOP_KINDS if k != loop.kind and (k != "unrolled" or isinstance(loop.extent, int))
                 and (k != "parallel" or not spot.path) and (k != "vector" or spot.scope.vector is None)]
        if not kinds:
            return None
        kind = draft.values.one(kinds)
        return edited(draft.kernel, spot, (replace(loop, kind=kind, lanes=draft.values.one(LANES) if kind == "vector" else 0),))
    return None


def interchange(draft: Draft) -> Kernel | None:
    """Two loops, the one all that the other holds, change places."""
    for spot in draft.spots(For):
        outer = spot.statement
        if isinstance(outer, For) and len(outer.body) == 1 and isinstance(outer.body[0], For):
            inner = outer.body[0]
            if outer.symbol.name not in [s.name for s in symbols_of(inner.extent)]:
                return edited(draft.kernel, spot, (replace(inner, body=(replace(outer, body=inner.body),)),))
    return None


def reverse_loop(draft: Draft) -> Kernel | None:
    """The iterations of a loop in the other order: a reduction takes its terms backwards."""
    for spot in draft.spots(For)[:2]:
        loop = spot.statement
        assert isinstance(loop, For)
        if bounds(loop.extent)[0] >= 1 or loop.symbol.upper is None:
            backwards = loop.extent - 1 - variable_size(loop.symbol)
            return edited(draft.kernel, spot, (replace(loop, body=copied(loop.body, Copying({loop.symbol.name: backwards}))),))
    return None


def halve_loop(draft: Draft) -> Kernel | None:
    """A loop as two, one after the other: even and odd iterations, or the first ones and the rest."""
    values = draft.values
    for spot in draft.spots(For)[:2]:
        loop = spot.statement
        if not isinstance(loop, For) or not isinstance(loop.extent, int) or loop.extent < 2:
            continue
        taken = names_of(draft.kernel)
        first = loop.extent // 2 if values.chance(0.5) else 1
        interleaved = loop.extent % 2 == 0 and values.chance(0.5)
        half = loop.extent // 2
        parts = ((0, half), (1, half)) if interleaved else ((0, first), (first, loop.extent - first))
        halves = []
        for start, count in parts:
            new = loop_variable(fresh_name(loop.symbol.name, taken), count)
            place = variable_size(new) * (2 if interleaved else 1) + start
            how = Copying({loop.symbol.name: place}, taken=taken)
            halves.append(replace(loop, symbol=new, extent=count, body=copied(loop.body, how)))
        return edited(draft.kernel, spot, halves)
    return None


def divide_loop(draft: Draft) -> Kernel | None:
    """A loop over two or more statements as one over each part; or two neighbours of one extent as one."""
    for spot in draft.spots(For):
        loop = spot.statement
        assert isinstance(loop, For)
        rest = block_from(draft.kernel, spot)[1:]
        following = rest[0] if rest else None
        if isinstance(following, For) and following.extent == loop.extent and draft.values.chance(0.5):
            how = Copying({following.symbol.name: variable_size(loop.symbol)})
            return edited(draft.kernel, spot, (replace(loop, body=(*loop.body, *copied(following.body, how))),), 2)
        if len(loop.body) > 1:
            cut = int(draft.values.rng.integers(1, len(loop.body)))
            taken = names_of(draft.kernel)
            new = loop_variable(fresh_name(loop.symbol.name, taken), loop.extent)
            how = Copying({loop.symbol.name: variable_size(new)}, taken=taken)
            second = replace(loop, symbol=new, body=copied(loop.body[cut:], how))
            return edited(draft.kernel, spot, (replace(loop, body=loop.body[:cut]), second))
    return None


def triangle(draft: Draft) -> Kernel | None:
    """An inner loop that ends where the outer one is, or where a block would end."""
    for spot in draft.spots(For):
        loop = spot.statement
        if not isinstance(loop, For) or not spot.scope.loops or loop.kind == "unrolled":
            continue
        around = draft.values.one(spot.scope.loops)
        extent = dim_min(loop.extent, variable_size(around.symbol) + draft.values.one((0, 1, 1, 2)))
        return edited(draft.kernel, spot, (with_extent(loop, extent),))
    return None


# --- domain: memory --------------------------------------------------------------------------------------------------


def change_index(draft: Draft) -> Kernel | None:
    """Another element: shifted, strided, reversed, transposed."""
    for spot in draft.spots(Store, Let, If)[:4]:
        statement = spot.statement
        assert statement is not None
        loads = parts_of(draft, spot, lambda n: isinstance(n.op, Load))
        if isinstance(statement, Store) and (loads is None or draft.values.chance(0.4)):
            index = _other_index(draft, spot.scope, statement.buffer, statement.index)
            if index is not None:
                return edited(draft.kernel, spot, (replace(statement, index=index),))
        elif loads is not None:
            number, old = loads
            assert isinstance(old.op, Load)
            index = _other_index(draft, spot.scope, old.op.buffer, old.op.index)
            if index is not None:
                roots = list(expressions_of(statement))
                roots[number] = replaced(roots[number], old, node(replace(old.op, index=index)))
                return edited(draft.kernel, spot, (with_expressions(statement, roots),))
    return None


def _other_index(draft: Draft, scope: Scope, name: str, index: tuple[DimLike, ...]) -> tuple[DimLike, ...] | None:
    """An index like this one, inside the buffer where that can be shown."""
    buffer, values = scope.buffers[name], draft.values
    if not index:
        return None
    shape = buffer.shape if len(index) == len(buffer.shape) else (product(buffer.shape),)
    if len(index) > 1 and values.chance(0.3):
        order = values.shuffled(range(len(index)))
        return kept_inside(scope, name, tuple(index[i] for i in order))
    axis = int(values.rng.integers(len(index)))
    old, extent = index[axis], shape[axis]
    choices: list[DimLike] = [old + 1, old - 1, old * 2, old * 3 + 1, extent - 1 - old, *_transposed(old)]
    new = values.one(choices)
    if bounds(new)[0] < 0 and not scope.inside(new, extent):
        new = new + extent
    return kept_inside(scope, name, (*index[:axis], new, *index[axis + 1:]))


def _transposed(size: DimLike) -> list[DimLike]:
    """n*i + j as n*j + i."""
    names = symbols_of(size)
    if len(names) < 2:
        return []
    first, second = (variable_size(s) for s in names[:2])
    factors = [linear_factor(size, s) for s in names[:2]]
    if factors[0] is None or factors[1] is None:
        return []
    return [size + (factors[1] - factors[0]) * first + (factors[0] - factors[1]) * second]


def copy_space(draft: Draft) -> Kernel | None:
    """A buffer's elements copied to memory of its own, which the rest of the block reads."""
    values = draft.values
    for spot in draft.spots(Store, For, If)[:4]:
        ready = [b for b in spot.scope.buffers.values() if b.name in spot.scope.fresh and b.space != "register"
                 and not b.name.startswith("fuel") and all(isinstance(n, int) for n in b.shape)
                 and isinstance(product(b.shape), int) and 0 < int(str(product(b.shape))) <= SMALL]
        if not ready:
            continue
        buffer = values.one(ready)
        taken = names_of(draft.kernel)
        space = values.one(("local", "register"))
        memory = Buffer(fresh_name("c", taken), buffer.dtype, buffer.shape, space)
        loops = [loop_variable(fresh_name("m", taken), n) for n in buffer.shape]
        index = tuple(variable_size(v) for v in loops)
        body: tuple[Stmt, ...] = (Store(memory.name, index, node(Load(buffer.name, index, buffer.dtype))),)
        for variable, n in zip(reversed(loops), reversed(buffer.shape)):
            body = (For(variable, n, "unrolled" if space == "register" else "serial", body),)
        rest = block_from(draft.kernel, spot)
        stored = any(isinstance(s, Store) and s.buffer == buffer.name for s in walk(rest))
        redirected = copied(rest, Copying(buffers={buffer.name: memory.name}))
        if stored and buffer.space != "in":
            back = tuple(copied(body, Copying(taken=taken, buffers={memory.name: buffer.name, buffer.name: memory.name})))
            return edited(draft.kernel, spot, (Alloc(memory), *body, *redirected, *back), len(rest))
        return edited(draft.kernel, spot, (Alloc(memory), *body, *redirected), len(rest))
    return None


def change_space(draft: Draft) -> Kernel | None:
    """Register memory as local, and back."""
    for spot in draft.spots(Alloc)[:1]:
        alloc = spot.statement
        assert isinstance(alloc, Alloc)
        other = "local" if alloc.buffer.space == "register" else "register"
        return edited(draft.kernel, spot, (Alloc(replace(alloc.buffer, space=other)),))
    return None


def flatten(draft: Draft) -> Kernel | None:
    """A buffer seen with one axis, or only some of its accesses by position."""
    many = [b for b in draft.kernel.buffers if len(b.shape) > 1]
    if not many:
        return None
    buffer = draft.values.one(many)
    whole = draft.values.chance(0.5)

    def access(name: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        if name != buffer.name or len(index) == 1 or (not whole and draft.values.chance(0.5)):
            return name, index
        position: DimLike = 0
        for i, n in zip(index, buffer.shape):
            position = position * n + i
        return name, (position,)

    def change(op: object) -> object:
        return replace(op, index=access(op.buffer, op.index)[1]) if isinstance(op, Load) else op

    body = map_statements(draft.kernel.body, lambda size: size, change, access)  # type: ignore[arg-type]  # `change` gives the kind of op that it is given
    flat = Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space)
    buffers = tuple(flat if b is buffer and whole else b for b in draft.kernel.buffers)
    return replace(draft.kernel, buffers=buffers, body=body)


def hints(draft: Draft) -> Kernel | None:
    """A prefetch of anything, or a store as a stream and back."""
    if draft.values.chance(0.5):
        for spot in draft.spots(Store)[:3]:
            store = spot.statement
            assert isinstance(store, Store)
            if not store.combine and spot.scope.buffers[store.buffer].space in ("out", "inout"):
                return edited(draft.kernel, spot, (replace(store, stream=not store.stream),))
    for spot in draft.gaps()[:1]:
        buffers = [b for b in spot.scope.buffers.values() if b.space != "register"]
        if buffers:
            buffer = draft.values.one(buffers)
            sizes: list[DimLike] = [-1, 0, 1, 5, *spot.scope.sizes.values()]
            index = tuple(draft.values.one(sizes) for _ in buffer.shape)
            return edited(draft.kernel, spot, (Prefetch(buffer.name, index),), 0)
    return None


# --- domain: conditions ----------------------------------------------------------------------------------------------


def predicate(draft: Draft) -> Kernel | None:
    """A statement runs only where something holds, which may be always."""
    values = draft.values
    for spot in draft.spots(Store, For, If)[:1]:
        assert spot.statement is not None
        condition = values.provable(spot.scope) if values.chance(0.4) else values.condition(spot.scope)
        otherwise: tuple[Stmt, ...] = ()
        if values.chance(0.3):
            otherwise = copied([spot.statement], Copying(taken=names_of(draft.kernel)))
        return edited(draft.kernel, spot, (If(condition, (spot.statement,), otherwise),))
    return None


def select_for_if(draft: Draft) -> Kernel | None:
    """A choice of stores as the store of a choice, and back."""
    for spot in draft.spots(If, Store):
        match spot.statement:
            case If(condition=condition, then=(Store(buffer=name, index=index, value=value, combine=""),), otherwise=otherwise):
                other: Node = node(Load(name, index, value.dtype))
                match otherwise:
                    case (Store(buffer=second, index=place, value=alternative, combine=""),) if (second, place) == (name, index):
                        other = alternative
                chosen = node(Elementwise("select"), condition, value, other)
                return edited(draft.kernel, spot, (Store(name, index, chosen),))
            case Store(value=Node(op=Elementwise(function="select"), inputs=(condition, a, b))) as store:
                return edited(draft.kernel, spot, (If(condition, (replace(store, value=a),), (replace(store, value=b),)),))
    return None


def unwrap(draft: Draft) -> Kernel | None:
    """What a condition held, always; or one iteration of a loop."""
    for spot in draft.spots(If, For)[:1]:
        match spot.statement:
            case If(then=then, otherwise=otherwise):
                return edited(draft.kernel, spot, draft.values.one((then, otherwise or then)))
            case For(symbol=variable, body=body):
                return edited(draft.kernel, spot, copied(body, Copying({variable.name: draft.values.one((0, 0, 1))})))
    return None


# --- domain: values and sizes ----------------------------------------------------------------------------------------


def round_trip(draft: Draft) -> Kernel | None:
    """A value through another dtype and back."""
    return with_part(draft, lambda n: n.dtype != INDEX, lambda scope, old: draft.values.round_trip(old))


def drop_round_trip(draft: Draft) -> Kernel | None:
    """A cast of a cast as the value."""
    def inner(n: Node) -> bool:
        return isinstance(n.op, (Cast, Bitcast)) and isinstance(n.inputs[0].op, (Cast, Bitcast)) and n.inputs[0].inputs[0].dtype == n.dtype

    return with_part(draft, inner, lambda scope, old: old.inputs[0].inputs[0])


def symbolic(draft: Draft) -> Kernel | None:
    """A number in the shapes becomes a size that is given at launch, everywhere in shapes and extents; or back."""
    kernel, values = draft.kernel, draft.values
    if kernel.symbols and values.chance(0.4):
        old = values.one(kernel.symbols)
        low = int(old.tight[0])
        number = values.one([n for n in range(low, low + 6 * old.multiple_of, old.multiple_of) if n <= old.tight[1]])
        return _with_size(kernel, {old.name: number}, None, tuple(s for s in kernel.symbols if s is not old))
    numbers = sorted({n for b in kernel.buffers for n in b.shape if isinstance(n, int) and n > 0})
    if not numbers or len(kernel.symbols) > 3:
        return None
    number = values.one(numbers)
    # the extents of unrolled loops and the shapes of allocations stay as they are
    lower = values.one((number, max(number - 1, 0), 1, 0))
    new = Symbol(draft.fresh("S"), min(lower, number), values.one((None, None, number + 3)))
    return _with_size(kernel, {}, (number, variable_size(new)), (*kernel.symbols, new))


def _with_size(kernel: Kernel, binding: dict[str, DimLike], exchange: tuple[int, DimLike] | None, symbols: tuple[Symbol, ...]) -> Kernel:
    def size(old: DimLike) -> DimLike:
        if exchange is not None and isinstance(old, int) and old == exchange[0]:
            return exchange[1]
        return substitute(old, binding)

    def extents(statement: Stmt) -> Stmt:
        if isinstance(statement, For):
            inner = replace(statement, body=tuple(map(extents, statement.body)))
            return inner if statement.kind == "unrolled" else replace(inner, extent=size(statement.extent))
        if isinstance(statement, If):
            return replace(statement, then=tuple(map(extents, statement.then)), otherwise=tuple(map(extents, statement.otherwise)))
        return statement

    buffers = tuple(replace(b, shape=tuple(map(size, b.shape))) for b in kernel.buffers)
    return replace(kernel, symbols=symbols, buffers=buffers, body=copied(tuple(map(extents, kernel.body)), Copying(dict(binding))))


def name_part(draft: Draft) -> Kernel | None:
    """A part of an expression named by a let before the statement."""
    for spot in draft.spots(Store, If)[:3]:
        found = parts_of(draft, spot, lambda n: bool(n.inputs))
        if found is None or spot.statement is None:
            continue
        number, old = found
        name = draft.fresh("v")
        roots = list(expressions_of(spot.statement))
        roots[number] = replaced(roots[number], old, node(Local(name, old.dtype)))
        return edited(draft.kernel, spot, (Let(name, old), with_expressions(spot.statement, roots)))
    return None


DOMAIN: dict[str, Mutator] = {
    "domain.wrap_loops": wrap_loops, "domain.loop_kind": loop_kind, "domain.interchange": interchange,
    "domain.reverse_loop": reverse_loop, "domain.halve_loop": halve_loop, "domain.divide_loop": divide_loop,
    "domain.triangle": triangle, "domain.index": change_index, "domain.copy_space": copy_space, "domain.change_space": change_space,
    "domain.flatten": flatten, "domain.hints": hints, "domain.predicate": predicate, "domain.select": select_for_if,
    "domain.unwrap": unwrap, "domain.round_trip": round_trip, "domain.drop_round_trip": drop_round_trip,
    "domain.symbolic": symbolic, "domain.let": name_part,
}
