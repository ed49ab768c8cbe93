"""Which stores of a kernel go past the caches: those that fill, line after line, a result that no cache holds.

A plain store reads the line that it writes, and puts out of the cache what is there. Where the whole result would not stay there,
both are in vain. Assumes: nothing. Guarantees: kernels differ in hints alone; results that may fit into the last cache get none,
nor do those whose size is not known, or of which a vector loop stores a few elements only before it goes elsewhere: part of a line
that is written past the caches costs more than all of it.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import bounds
from ..ir.loop import For, If, Kernel, Load, Stmt, Store, While, expression_nodes, expressions_of, walk
from ..ir.loop_verify import linear_factor

LEAST_BYTES = 1024   # that a loop stores one after another
MOST_STREAMS = 4     # results that are stored at once: a core collects only a few lines at a time


def streamed(kernel: Kernel, caps: Caps) -> Kernel:
    """The kernel with its stores to large results marked."""
    large = {b.name for b in kernel.buffers if b.space == "out" and isinstance(b.shape[0], int)
             and 0 < caps.level3_bytes <= b.shape[0] * b.dtype.bytes}
    if not large:
        return kernel
    large -= {node.op.buffer for s in walk(kernel.body) for root in expressions_of(s) for node in expression_nodes(root)
              if isinstance(node.op, Load)}
    return replace(kernel, body=_block(kernel.body, large))


def _block(body: tuple[Stmt, ...], large: set[str]) -> tuple[Stmt, ...]:
    return tuple(_statement(s, large) for s in body)


def _statement(s: Stmt, large: set[str]) -> Stmt:
    match s:
        case For(kind="vector"):
            fitting = [inner for inner in s.body if isinstance(inner, Store) and _follows(s, inner, large)]
            return replace(s, body=tuple(replace(inner, stream=True) if inner in fitting else inner for inner in s.body)) \
                if 0 < len(fitting) <= MOST_STREAMS else s
        case For() | While():
            return replace(s, body=_block(s.body, large))
        case If():
            return replace(s, then=_block(s.then, large), otherwise=_block(s.otherwise, large))
    return s


def _follows(loop: For, store: Store, large: set[str]) -> bool:
    """Whether the loop fills a part of a large result."""
    return (store.buffer in large and not store.combine and linear_factor(store.index[0], loop.symbol) == 1
            and bounds(loop.extent)[1] * store.value.dtype.bytes >= LEAST_BYTES)
