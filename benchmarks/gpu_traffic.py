"""Bytes that the threads of a kernel ask memory for: what goes between the second level and the multiprocessors if the first level keeps
nothing. Beside what a case moves at least, this shows how often tiles read their operands again.

Counted from the loop IR: what a statement loads and stores, times the rounds of the loops around it; a loop whose length depends on an
outer one counts as long as it is in the middle of that. Both sides of what is divided into ranges are counted as they are written, and a
`while` as one round. What threads of a warp read at the same place counts once for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.dims import evaluate, symbols_of
from tilewright.ir.loop import (
    CopyAsync,
    CopyBulk,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    While,
    expression_nodes,
    expressions_of,
)
from tilewright.ir.program import Program


def asked_bytes(program: Program) -> int:
    """Of all launches of a program of static sizes, each counted once."""
    return sum(kernel_bytes(launch.kernel, {s.name: evaluate(n, {}) for s, n in zip(launch.kernel.symbols, launch.sizes, strict=True)})
               for launch in program.launches())


def kernel_bytes(kernel: Kernel, sizes: Mapping[str, int]) -> int:
    """Of one launch."""
    widths = {b.name: b.dtype.bytes for b in kernel.buffers}
    return sum(_statement(s, dict(sizes), widths) for s in kernel.body)


def _block(body: Sequence[Stmt], sizes: Mapping[str, int], widths: Mapping[str, int]) -> int:
    inner = dict(sizes)
    return sum(_statement(s, inner, widths) for s in body)


def _statement(s: Stmt, sizes: dict[str, int], widths: Mapping[str, int]) -> int:
    """`sizes`: of symbols, and of variables in the middle of their range; lets are added."""
    loaded = {n.op for root in expressions_of(s) for n in expression_nodes(root) if isinstance(n.op, Load)}
    asked = sum(widths.get(op.buffer, 0) for op in loaded)
    match s:
        case For(symbol=symbol, extent=extent, body=body):
            rounds = max(0, evaluate(extent, sizes))
            return asked + rounds * _block(body, {**sizes, symbol.name: rounds // 2}, widths)
        case While(body=body):
            return asked + _block(body, sizes, widths)
        case If(then=then, otherwise=otherwise):
            return asked + max(_block(then, sizes, widths), _block(otherwise, sizes, widths))
        case Store(buffer=name):
            return asked + widths.get(name, 0)
        case CopyAsync(source=name, count=count) | CopyBulk(source=name, count=count):
            return asked + count * widths.get(name, 0)
        case Let(name=name, value=value, symbol=symbol) if symbol is not None:
            known = isinstance(value.op, IndexValue) and all(x.name in sizes for x in symbols_of(value.op.size))
            sizes[name] = evaluate(value.op.size, sizes) if known and isinstance(value.op, IndexValue) else symbol.lower
    return asked


__all__ = ["asked_bytes", "kernel_bytes"]
