"""Ways to change a kernel into another that is still well-typed, most of the time; `fuzz/kernels.py` drops what is not.

General ones insert, delete and replace statements and parts of expressions; those called `domain.*` do what passes and
schedules do, or what these must survive, without asking whether the meaning stays: a mutant is another program. What
ends a while loop is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, bounds, dim_min, product, substitute, symbols_of
from ..ir.errors import TilewrightError
from ..ir.graph import Node
from ..ir.loop import (
    LOOP_KINDS,
    Alloc,
    Buffer,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Prefetch,
    Stmt,
    Store,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_statements,
    variable_size,
    walk,
)
from ..ir.loop_verify import linear_factor
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.scalar import SCALARS
from ..ir.types import ARRAY_DTYPES, BOOL, INDEX
from .generate_kernels import LANES, combines_on
from .kernel_edits import (
    Copying,
    Scope,
    Spot,
    block_from,
    copied,
    edited,
    fresh_name,
    is_fuel,
    names_of,
    node,
    replaced,
    spots,
    with_expressions,
)
from .kernel_values import COMPARE, OF_INDEX, Values, functions_on

TRIES = 6               # mutators that are tried, each at some places, before a mutation is given up
MOST_SPLICED = 8        # statements
SMALL = 64              # elements of a buffer that is copied
EXTENTS = (1, 1, 2, 3, 4)


class Draft(Struct):
    """A kernel to change, where its statements stand, and what to draw from."""

    kernel: Kernel
    values: Values
    donor: Kernel | None = None
    places: list[Spot] = []

    def spots(self, *kinds: type) -> list[Spot]:
        """Places of statements of these kinds that may be changed, in random order."""
        if not self.places:
            self.places = spots(self.kernel)
        found = [s for s in self.places if isinstance(s.statement, kinds) and not is_fuel(s.statement)]
        return self.values.shuffled(found)

    def gaps(self) -> list[Spot]:
        """Places where a statement may be put, in random order."""
        if not self.places:
            self.places = spots(self.kernel)
        return self.values.shuffled(self.places)

    def fresh(self, stem: str) -> str:
        return fresh_name(stem, names_of(self.kernel))


Mutator = Callable[[Draft], Kernel | None]


def mutated(draft: Draft, allowed: frozenset[str]) -> Iterator[tuple[str, Kernel]]:
    """Changed kernels by one mutator after the other, in random order."""
    names = draft.values.shuffled([name for name in MUTATORS if name in allowed])
    for name in names[:TRIES]:
        try:
            kernel = MUTATORS[name](draft)
        except TilewrightError:
            continue  # a size or type that does not come out
        if kernel is not None:
            yield name, kernel


# --- general: statements ---------------------------------------------------------------------------------------------


def insert(draft: Draft) -> Kernel | None:
    """A store of something new, or a name for it."""
    for spot in draft.gaps()[:3]:
        scope, values = spot.scope, draft.values
        if values.chance(0.2):
            value = values.expression(scope, values.one(ARRAY_DTYPES) if values.chance(0.3) else BOOL)
            return edited(draft.kernel, spot, (Let(draft.fresh("v"), value),), 0)
        targets = [b for b in scope.buffers.values() if b.space != "in" and not b.name.startswith("fuel")]
        if not targets:
            continue
        buffer = values.one(targets)
        index = values.index(scope, buffer)
        if index is None:
            continue
        combine = values.one(["", "", *combines_on(buffer.dtype)])
        store = Store(buffer.name, index, values.expression(scope, buffer.dtype), combine)
        return edited(draft.kernel, spot, (store,), 0)
    return None


def delete(draft: Draft) -> Kernel | None:
    """One statement less."""
    for spot in draft.spots(Store, For, If, Let, Prefetch)[:1]:
        return edited(draft.kernel, spot, ())
    return None


def swap(draft: Draft) -> Kernel | None:
    """Two neighbours change places."""
    for spot in draft.spots(Store, For, If, Let, Prefetch, Alloc):
        first, *rest = block_from(draft.kernel, spot)
        if rest and not is_fuel(rest[0]):
            return edited(draft.kernel, spot, (rest[0], first), 2)
    return None


def duplicate(draft: Draft) -> Kernel | None:
    """A statement again, somewhere behind itself."""
    for spot in draft.spots(Store, For, If)[:1]:
        assert spot.statement is not None
        again = copied([spot.statement], Copying(taken=names_of(draft.kernel)))
        return edited(draft.kernel, spot, (spot.statement, *again))
    return None


def splice(draft: Draft) -> Kernel | None:
    """A statement of the donor, on buffers and sizes of this kernel."""
    if draft.donor is None:
        return None
    values = draft.values
    parts = [s for s in walk(draft.donor.body) if isinstance(s, (For, If, Store)) and not is_fuel(s)
             and sum(1 for _ in walk([s])) <= MOST_SPLICED]
    places = draft.gaps()[:4]
    if not parts:
        return None
    part = values.one(parts)
    sources = {s.buffer.name: s.buffer for s in walk(draft.donor.body) if isinstance(s, Alloc)}
    sources |= {b.name: b for b in draft.donor.buffers}
    for spot in places:
        how = _adapted(part, sources, spot.scope, draft)
        if how is not None:
            return edited(draft.kernel, spot, copied([part], how), 0)
    return None


def _adapted(part: Stmt, sources: dict[str, Buffer], scope: Scope, draft: Draft) -> Copying | None:
    """How a statement of another kernel becomes one of the scope; None where a buffer of its dtype and rank is missing."""
    inner = list(walk([part]))
    own = {s.symbol.name for s in inner if isinstance(s, For)} | {s.name for s in inner if isinstance(s, Let)}
    own |= {s.buffer.name for s in inner if isinstance(s, Alloc)}
    stored = {s.buffer for s in inner if isinstance(s, Store)}
    nodes = [n for s in inner for root in expressions_of(s) for n in expression_nodes(root)]
    buffers: dict[str, str] = {}
    for name in {*stored, *(n.op.buffer for n in nodes if isinstance(n.op, Load))} - own:
        fitting = [b for b in scope.buffers.values() if b.dtype == sources[name].dtype and len(b.shape) == len(sources[name].shape)
                   and (b.space != "in" if name in stored else b.name in scope.fresh) and not b.name.startswith("fuel")]
        if not fitting:
            return None
        buffers[name] = draft.values.one(fitting).name
    free = {n.op.variable: n.op.dtype for n in nodes if isinstance(n.op, Local) and n.op.variable not in own}
    renamed: dict[str, str] = {}
    for name, dtype in free.items():
        same = [v for v, kind in scope.values.items() if kind == dtype]
        if not same:
            return None
        renamed[name] = draft.values.one(same)
    choices: list[DimLike] = [0, 1, 2, *scope.sizes.values()]
    sizes = {s.name: draft.values.one(choices) for s in _symbols_in(inner) if s.name not in own}
    return Copying(sizes, renamed, buffers, names_of(draft.kernel), lambda name, index: _kept_inside(scope, name, index))


def _symbols_in(statements: list[Stmt]) -> tuple[Symbol, ...]:
    """All that sizes name."""
    found: list[DimLike] = []
    for statement in statements:
        match statement:
            case For(extent=extent):
                found.append(extent)
            case Alloc(buffer=buffer):
                found += buffer.shape
            case Store(index=index) | Prefetch(index=index):
                found += index
        for root in expressions_of(statement):
            for part in expression_nodes(root):
                found += part.op.index if isinstance(part.op, Load) else [part.op.size] if isinstance(part.op, IndexValue) else []
    return symbols_of(0, *found)


def _kept_inside(scope: Scope, name: str, index: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    """The index with each part modulo its axis where that is known to have elements."""
    buffer = scope.buffers.get(name)
    if buffer is None:
        return index
    shape = buffer.shape if len(index) == len(buffer.shape) else (product(buffer.shape),)
    return tuple(i if scope.inside(i, n) or bounds(n)[0] < 1 else i % n for i, n in zip(index, shape))


# --- general: expressions --------------------------------------------------------------------------------------------


def _parts(draft: Draft, spot: Spot, wanted: Callable[[Node], bool]) -> tuple[int, Node] | None:
    """The number of an expression of the statement, and a node of it."""
    assert spot.statement is not None
    found = [(k, n) for k, root in enumerate(expressions_of(spot.statement)) for n in expression_nodes(root)
             if wanted(n) and not (isinstance(n.op, Load) and n.op.buffer.startswith("fuel"))]
    return draft.values.one(found) if found else None


def _with_part(draft: Draft, wanted: Callable[[Node], bool], new: Callable[[Scope, Node], Node | None]) -> Kernel | None:
    """A node of some expression replaced."""
    for spot in draft.spots(Store, Let, If)[:6]:
        found = _parts(draft, spot, wanted)
        if found is None or spot.statement is None:
            continue
        number, old = found
        made = new(spot.scope, old)
        if made is None or made.dtype != old.dtype:
            continue
        roots = list(expressions_of(spot.statement))
        roots[number] = replaced(roots[number], old, made)
        return edited(draft.kernel, spot, (with_expressions(spot.statement, roots),))
    return None


def replace_part(draft: Draft) -> Kernel | None:
    """A new expression for an old one."""
    return _with_part(draft, lambda n: True, lambda scope, old: draft.values.expression(scope, old.dtype))


def take_operand(draft: Draft) -> Kernel | None:
    """An operand instead of the function of it."""
    def operand(scope: Scope, old: Node) -> Node | None:
        same = [i for i in old.inputs if i.dtype == old.dtype]
        return draft.values.one(same) if same else None

    return _with_part(draft, lambda n: any(i.dtype == n.dtype for i in n.inputs), operand)


def flip_function(draft: Draft) -> Kernel | None:
    """Another function of the same operands."""
    def other(scope: Scope, old: Node) -> Node | None:
        assert isinstance(old.op, Elementwise)
        row = SCALARS[old.op.function]
        if row.rule == "compare":
            names = list(COMPARE)
        elif row.rule == "test":
            names = ["isnan", "isinf"]
        else:
            names = [n for n in functions_on(old.dtype) if SCALARS[n].arity == row.arity]
        if old.dtype == INDEX:
            names = [n for n in OF_INDEX if row.arity == 2]
        return node(Elementwise(draft.values.one(names)), *old.inputs) if names else None

    return _with_part(draft, lambda n: isinstance(n.op, Elementwise) and n.op.function != "select", other)


def change_constant(draft: Draft) -> Kernel | None:
    """Another number, in an expression, an extent or an index."""
    values = draft.values
    if values.chance(0.6):
        return _with_part(draft, lambda n: isinstance(n.op, Literal), lambda scope, old: values.literal(old.dtype))
    for spot in draft.spots(For)[:1]:
        loop = spot.statement
        assert isinstance(loop, For)
        extent = loop.extent + values.one((-1, 1)) if values.chance(0.7) else values.one(EXTENTS)
        if bounds(extent)[0] >= 0:
            return edited(draft.kernel, spot, (with_extent(loop, extent),))
    return None


def with_extent(loop: For, extent: DimLike) -> For:
    """The loop with another extent, and bounds of its variable that follow."""
    new, = copied([replace(loop, extent=extent)], Copying())
    assert isinstance(new, For)
    return new


def change_combine(draft: Draft) -> Kernel | None:
    """Another way to combine, or none."""
    for spot in draft.spots(Store)[:2]:
        store = spot.statement
        assert isinstance(store, Store)
        combine = draft.values.one([c for c in ("", *combines_on(store.value.dtype)) if c != store.combine])
        return edited(draft.kernel, spot, (replace(store, combine=combine, stream=False),))
    return None


def share_part(draft: Draft) -> Kernel | None:
    """A node that stands for itself and for another of its dtype: text spells it by a `where`."""
    for spot in draft.spots(Store, Let, If)[:6]:
        assert spot.statement is not None
        for number, root in enumerate(expressions_of(spot.statement)):
            parts = [n for n in expression_nodes(root) if n.inputs and n is not root]
            for first in draft.values.shuffled(parts):
                within = {id(n) for n in expression_nodes(first)}
                others = [n for n in expression_nodes(root) if n.dtype == first.dtype and id(n) not in within
                          and not any(p is first for p in expression_nodes(n))]
                if others:
                    roots = list(expressions_of(spot.statement))
                    roots[number] = replaced(root, draft.values.one(others), first)
                    return edited(draft.kernel, spot, (with_expressions(spot.statement, roots),))
    return None


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
        loads = _parts(draft, spot, lambda n: isinstance(n.op, Load))
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
        return _kept_inside(scope, name, tuple(index[i] for i in order))
    axis = int(values.rng.integers(len(index)))
    old, extent = index[axis], shape[axis]
    choices: list[DimLike] = [old + 1, old - 1, old * 2, old * 3 + 1, extent - 1 - old, *_transposed(old)]
    new = values.one(choices)
    if bounds(new)[0] < 0 and not scope.inside(new, extent):
        new = new + extent
    return _kept_inside(scope, name, (*index[:axis], new, *index[axis + 1:]))


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

    body = map_statements(draft.kernel.body, lambda size: size, change, access)  # type: ignore[arg-type]
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
    return _with_part(draft, lambda n: n.dtype != INDEX, lambda scope, old: draft.values.round_trip(old))


def drop_round_trip(draft: Draft) -> Kernel | None:
    """A cast of a cast as the value."""
    def inner(n: Node) -> bool:
        return isinstance(n.op, (Cast, Bitcast)) and isinstance(n.inputs[0].op, (Cast, Bitcast)) and n.inputs[0].inputs[0].dtype == n.dtype

    return _with_part(draft, inner, lambda scope, old: old.inputs[0].inputs[0])


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
        found = _parts(draft, spot, lambda n: bool(n.inputs))
        if found is None or spot.statement is None:
            continue
        number, old = found
        name = draft.fresh("v")
        roots = list(expressions_of(spot.statement))
        roots[number] = replaced(roots[number], old, node(Local(name, old.dtype)))
        return edited(draft.kernel, spot, (Let(name, old), with_expressions(spot.statement, roots)))
    return None


MUTATORS: dict[str, Mutator] = {
    "insert": insert, "delete": delete, "swap": swap, "duplicate": duplicate, "splice": splice, "replace": replace_part,
    "operand": take_operand, "function": flip_function, "constant": change_constant, "combine": change_combine, "share": share_part,
    "domain.wrap_loops": wrap_loops, "domain.loop_kind": loop_kind, "domain.interchange": interchange,
    "domain.reverse_loop": reverse_loop, "domain.halve_loop": halve_loop, "domain.divide_loop": divide_loop,
    "domain.triangle": triangle, "domain.index": change_index, "domain.copy_space": copy_space, "domain.change_space": change_space,
    "domain.flatten": flatten, "domain.hints": hints, "domain.predicate": predicate, "domain.select": select_for_if,
    "domain.unwrap": unwrap, "domain.round_trip": round_trip, "domain.drop_round_trip": drop_round_trip,
    "domain.symbolic": symbolic, "domain.let": name_part,
}
