"""Kernels that write over one of their operands.

An elementwise chain whose operand is not needed afterwards can store its result where the operand lies: each element is
read in the same iteration that replaces it. One that replaces a part of its operand leaves the rest there. The operand and
the result become one `inout` buffer, so that neither the interpreter nor the backend takes them for separate memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..ir.graph import Op
from ..ir.loop import For, Kernel, Load, Stmt, Store, blocks_of, expression_nodes, expressions_of, map_statements


def writes_over(kernel: Kernel, operand: str, result: str, name: str) -> Kernel | None:
    """The kernel with `operand` and `result` as one buffer, or None where an element might be read after it changed.

    That is excluded when every load of the operand stands in a block that stores to the result at the very same index:
    no two iterations of a kernel store to one place, so no other iteration reads what this one replaces.
    """
    if not all(_reads_what_it_replaces(block, operand, result) for block in _blocks(kernel.body)):
        return None

    def change(op: Op) -> Op:
        return replace(op, buffer=result) if isinstance(op, Load) and op.buffer == operand else op

    body = map_statements(kernel.body, lambda size: size, change,
                          lambda buffer, index: (result if buffer == operand else buffer, index))
    body = _without_self_copies(body, result)
    buffers = tuple(replace(b, space="inout") if b.name == result else b for b in kernel.buffers if b.name != operand)
    return Kernel(name, buffers, kernel.symbols, body, kernel.loc)


def _without_self_copies(body: Sequence[Stmt], buffer: str) -> tuple[Stmt, ...]:
    """The statements without those that store what lies there, and without loops that have nothing else to do."""
    kept: list[Stmt] = []
    for statement in body:
        match statement:
            case Store(index=index, combine="") if statement.buffer == buffer and statement.value.op == \
                    Load(buffer, index, statement.value.dtype):
                continue
            case For(body=inner):
                statement = replace(statement, body=_without_self_copies(inner, buffer))
                if not statement.body:
                    continue
        kept.append(statement)
    return tuple(kept)


def _blocks(body: Sequence[Stmt]) -> list[tuple[Stmt, ...]]:
    found: list[tuple[Stmt, ...]] = []
    stack: list[tuple[Stmt, ...]] = [tuple(body)]
    while stack:
        block = stack.pop()
        found.append(block)
        for statement in block:
            stack.extend(blocks_of(statement))
    return found


def _reads_what_it_replaces(block: Sequence[Stmt], operand: str, result: str) -> bool:
    read = {node.op.index for statement in block for root in expressions_of(statement) for node in expression_nodes(root)
            if isinstance(node.op, Load) and node.op.buffer == operand}
    stored = [s.index for s in block if isinstance(s, Store) and s.buffer == result]
    return all(stored == [index] for index in read)
