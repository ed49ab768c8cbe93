"""Ways to change a kernel into another that is still well-typed, most of the time; `fuzz/kernels.py` drops what is not.

General ones insert, delete and replace statements and parts of expressions; those called `domain.*` do what passes and
schedules do, or what these must survive, without asking whether the meaning stays: a mutant is another program. What
ends a while loop is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, bounds, symbols_of
from ..ir.errors import TilewrightError
from ..ir.graph import Node
from ..ir.loop import (
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
    names_of,
    walk,
)
from ..ir.ops.compute import Elementwise
from ..ir.ops.scalar import SCALARS
from ..ir.types import ARRAY_DTYPES, BOOL, INDEX
from .generate_kernels import combines_on
from .kernel_drafts import EXTENTS, Draft, Mutator, kept_inside, with_extent, with_part
from .kernel_edits import (
    Copying,
    Scope,
    block_from,
    copied,
    edited,
    is_fuel,
    node,
    replaced,
    with_expressions,
)
from .kernel_values import COMPARE, OF_INDEX, functions_on
from .mutate_kernels_domain import DOMAIN

TRIES = 6               # mutators that are tried, each at some places, before a mutation is given up
MOST_SPLICED = 8        # statements


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
    return Copying(sizes, renamed, buffers, names_of(draft.kernel), lambda name, index: kept_inside(scope, name, index))


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


# --- general: expressions --------------------------------------------------------------------------------------------


def replace_part(draft: Draft) -> Kernel | None:
    """A new expression for an old one."""
    return with_part(draft, lambda n: True, lambda scope, old: draft.values.expression(scope, old.dtype))


def take_operand(draft: Draft) -> Kernel | None:
    """An operand instead of the function of it."""
    def operand(scope: Scope, old: Node) -> Node | None:
        same = [i for i in old.inputs if i.dtype == old.dtype]
        return draft.values.one(same) if same else None

    return with_part(draft, lambda n: any(i.dtype == n.dtype for i in n.inputs), operand)


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

    return with_part(draft, lambda n: isinstance(n.op, Elementwise) and n.op.function != "select", other)


def change_constant(draft: Draft) -> Kernel | None:
    """Another number, in an expression, an extent or an index."""
    values = draft.values
    if values.chance(0.6):
        return with_part(draft, lambda n: isinstance(n.op, Literal), lambda scope, old: values.literal(old.dtype))
    for spot in draft.spots(For)[:1]:
        loop = spot.statement
        assert isinstance(loop, For)
        extent = loop.extent + values.one((-1, 1)) if values.chance(0.7) else values.one(EXTENTS)
        if bounds(extent)[0] >= 0:
            return edited(draft.kernel, spot, (with_extent(loop, extent),))
    return None


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


MUTATORS: dict[str, Mutator] = {
    "insert": insert, "delete": delete, "swap": swap, "duplicate": duplicate, "splice": splice, "replace": replace_part,
    "operand": take_operand, "function": flip_function, "constant": change_constant, "combine": change_combine, "share": share_part,
    **DOMAIN,
}
