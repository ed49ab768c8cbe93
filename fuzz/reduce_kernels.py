"""Simpler kernels than a given one, for reduction: the boldest cuts first. Most of them are well-typed; the caller looks."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..ir.dims import DimLike, substitute, symbols_of
from ..ir.errors import TilewrightError
from ..ir.graph import Node
from ..ir.loop import Alloc, For, If, Kernel, Literal, Load, Prefetch, Store, While, expression_nodes, expressions_of, walk
from ..ir.types import INDEX
from .kernel_drafts import with_extent
from .kernel_edits import Copying, copied, edited, is_fuel, node, replaced, spots, with_expressions


def smaller_kernels(kernel: Kernel) -> Iterator[Kernel]:
    """Statements deleted, loops and conditions unwrapped, extents made small, parameters and symbols dropped, expressions cut."""
    for make in (_without_statements, _unwrapped, _without_unused, _static, _short, _plain, _cut):
        made = make(kernel)
        while True:
            try:
                yield next(made)
            except StopIteration:
                break
            except TilewrightError:
                continue


def _without_statements(kernel: Kernel) -> Iterator[Kernel]:
    for spot in spots(kernel):
        if spot.statement is None or is_fuel(spot.statement):
            continue
        yield edited(kernel, spot, ())


def _unwrapped(kernel: Kernel) -> Iterator[Kernel]:
    for spot in spots(kernel):
        match spot.statement:
            case If(then=then, otherwise=otherwise):
                for block in (then, otherwise) if otherwise else (then,):
                    yield edited(kernel, spot, block)
                if otherwise:
                    yield edited(kernel, spot, (replace(spot.statement, otherwise=()),))
            case For(symbol=variable, body=body):
                for number in (0, 1):
                    yield edited(kernel, spot, copied(body, Copying({variable.name: number})))
            case While(body=body):
                yield edited(kernel, spot, tuple(s for s in body if not is_fuel(s)))


def _without_unused(kernel: Kernel) -> Iterator[Kernel]:
    """Without what nothing names: parameters, memory, sizes."""
    used = {s.buffer for s in walk(kernel.body) if isinstance(s, (Store, Prefetch))}
    for statement in walk(kernel.body):
        for root in expressions_of(statement):
            used |= {n.op.buffer for n in expression_nodes(root) if isinstance(n.op, Load)}
    for spot in spots(kernel):
        if isinstance(spot.statement, Alloc) and spot.statement.buffer.name not in used:
            yield edited(kernel, spot, ())
    for buffer in kernel.buffers:
        if buffer.name not in used:
            yield replace(kernel, buffers=tuple(b for b in kernel.buffers if b is not buffer))
    for symbol in kernel.symbols:
        yield replace(kernel, symbols=tuple(s for s in kernel.symbols if s is not symbol))


def _static(kernel: Kernel) -> Iterator[Kernel]:
    """With a number for a symbol."""
    for symbol in kernel.symbols:
        for number in (1, 2, 3, symbol.tight[0]):
            if symbol.tight[0] <= number <= symbol.tight[1] and number % symbol.multiple_of == 0:
                how = Copying({symbol.name: int(number)})
                buffers = tuple(replace(b, shape=_bound(b.shape, symbol.name, int(number))) for b in kernel.buffers)
                yield replace(kernel, symbols=tuple(s for s in kernel.symbols if s is not symbol), buffers=buffers,
                              body=copied(kernel.body, how))


def _bound(shape: tuple[DimLike, ...], name: str, number: int) -> tuple[DimLike, ...]:
    return tuple(substitute(n, {name: number}) for n in shape)


def _short(kernel: Kernel) -> Iterator[Kernel]:
    """With fewer iterations, and smaller buffers."""
    for spot in spots(kernel):
        loop = spot.statement
        if not isinstance(loop, For):
            continue
        for extent in (1, 2, 3):
            if not isinstance(loop.extent, int) or loop.extent > extent:
                yield edited(kernel, spot, (with_extent(loop, extent),))
    for number, buffer in enumerate(kernel.buffers):
        for axis, old in enumerate(buffer.shape):
            for size in (1, 2, 3, 4):
                if not isinstance(old, int) or old > size:
                    shape = (*buffer.shape[:axis], size, *buffer.shape[axis + 1:])
                    smaller = replace(buffer, shape=shape)
                    yield replace(kernel, buffers=(*kernel.buffers[:number], smaller, *kernel.buffers[number + 1:]))


def _plain(kernel: Kernel) -> Iterator[Kernel]:
    """Serial loops, plain stores."""
    for spot in spots(kernel):
        match spot.statement:
            case For(kind=kind) as loop if kind != "serial":
                yield edited(kernel, spot, (replace(loop, kind="serial", lanes=0),))
                if loop.lanes > 1:
                    yield edited(kernel, spot, (replace(loop, lanes=loop.lanes // 2),))
            case Store(stream=True) as store:
                yield edited(kernel, spot, (replace(store, stream=False),))
            case Store(combine=combine) as store if combine:
                yield edited(kernel, spot, (replace(store, combine=""),))


def _cut(kernel: Kernel) -> Iterator[Kernel]:
    """Expressions replaced by operands and constants, indices by 0."""
    for spot in spots(kernel):
        statement = spot.statement
        if statement is None or is_fuel(statement):
            continue
        if isinstance(statement, Store) and any(symbols_of(i) for i in statement.index):
            for axis in range(len(statement.index)):
                yield edited(kernel, spot, (replace(statement, index=_zero(statement.index, axis)),))
        for number, root in enumerate(expressions_of(statement)):
            for part in reversed(expression_nodes(root)):
                for new in _simpler(part):
                    roots = list(expressions_of(statement))
                    roots[number] = replaced(root, part, new)
                    yield edited(kernel, spot, (with_expressions(statement, roots),))


def _zero(index: tuple[DimLike, ...], axis: int) -> tuple[DimLike, ...]:
    return (*index[:axis], 0, *index[axis + 1:])


def _simpler(part: Node) -> Iterator[Node]:
    if isinstance(part.op, Literal):
        return
    if isinstance(part.op, Load) and part.op.buffer.startswith("fuel"):
        return
    for operand in part.inputs:
        if operand.dtype == part.dtype:
            yield operand
    value = True if part.dtype.is_bool else 1.0 if part.dtype.is_float else 1
    yield node(Literal(value, part.dtype))
    if part.dtype == INDEX:
        yield node(Literal(0, INDEX))
    if isinstance(part.op, Load):
        for axis, size in enumerate(part.op.index):
            if symbols_of(size):
                yield node(replace(part.op, index=_zero(part.op.index, axis)))
