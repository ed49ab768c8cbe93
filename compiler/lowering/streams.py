"""Which stores of a kernel go past the caches: those that fill, line after line, a result that no cache holds.

A plain store reads the line that it writes, and puts out of the cache what is there. Where the whole result would not stay there,
both are in vain. Assumes: nothing. Guarantees: kernels differ in hints alone; results that may fit into the last cache get none,
nor do those whose size is not known, or of which a few elements only are stored before the next ones lie elsewhere: part of a line
that is written past the caches costs more than all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, divides, product
from ..ir.loop import Buffer, For, If, Kernel, Load, Stmt, Store, While, expression_nodes, expressions_of, walk
from ..ir.loop_proofs import linear_factor

LEAST_BYTES = 1024   # that are stored one after another
MOST_STREAMS = 4     # results that are stored at once: a core collects only a few lines at a time


def is_far(buffers: Sequence[Buffer], caps: Caps | None) -> bool:
    """Whether each of them is one that no cache holds."""
    return caps is not None and caps.level3_bytes > 0 and all(
        isinstance(size := product(b.shape), int) and caps.level3_bytes <= size * b.dtype.bytes for b in buffers)


def streamed(kernel: Kernel, caps: Caps) -> Kernel:
    """The kernel with its stores to large results marked."""
    large = {b.name for b in kernel.buffers if b.space == "out" and is_far([b], caps)}
    if not large:
        return kernel
    large -= {node.op.buffer for s in walk(kernel.body) for root in expressions_of(s) for node in expression_nodes(root)
              if isinstance(node.op, Load)}
    return replace(kernel, body=_block(kernel.body, large, ()))


def _block(body: tuple[Stmt, ...], large: set[str], around: tuple[For, ...]) -> tuple[Stmt, ...]:
    return tuple(_statement(s, large, around) for s in body)


def _statement(s: Stmt, large: set[str], around: tuple[For, ...]) -> Stmt:
    match s:
        case For(kind="vector"):
            fitting = [inner for inner in s.body if isinstance(inner, Store) and inner.buffer in large and not inner.combine
                       and _run(inner.index[0], s, around) * inner.value.dtype.bytes >= LEAST_BYTES]
            return replace(s, body=tuple(replace(inner, stream=True) if inner in fitting else inner for inner in s.body)) \
                if 0 < len(fitting) <= MOST_STREAMS else s
        case For():
            return replace(s, body=_block(s.body, large, (s, *around)))
        case While():
            return replace(s, body=_block(s.body, large, ()))
        case If():
            return replace(s, then=_block(s.then, large, around), otherwise=_block(s.otherwise, large, around))
    return s


def _run(index: DimLike, loop: For, around: tuple[For, ...]) -> float:
    """The elements, at most, that a vector loop and those around it, innermost first, store one after another. A loop that ends
    with part of a vector ends a run: that part is stored plainly."""
    if linear_factor(index, loop.symbol) != 1:
        return 0
    run: DimLike = loop.extent
    if divides(loop.lanes, run):
        for outer in around:
            if linear_factor(index, outer.symbol) != run:
                break
            run = product((run, outer.extent))
    return bounds(run)[1]
