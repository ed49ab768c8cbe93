"""Puts probes into code objects of CPython 3.11: what each outcome of a branch runs, once.

`instrument` gives a code object that does what the given one does, with probes (csrc/coverage.cpp) at the entry, at the
entry of each exception handler, behind each conditional jump, and on its way to its target. The last ones stand outside of
the way, where nothing falls through, and jump on to the target. Lines, columns and exception handlers stay what they are; so
do generators and coroutines.

Assumes code that the compiler of CPython 3.11 made, or `instrument` itself. Guarantees that interrupts are noticed in every
loop as before, and that no signal handler's exception escapes the handlers around its branch.
"""

from __future__ import annotations

import dis
import inspect
import opcode
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple

from .arcs import HANDLER, Arc, branch_arc, entry_arc

if TYPE_CHECKING:
    from ._coverage import Probe

Position = tuple[int | None, int | None, int | None, int | None]  # line, last line, column, last column
MakeProbe = Callable[[Arc], "Probe"]

_OP = dis.opmap
_CACHES: list[int] = getattr(opcode, "_inline_cache_entries", [])
_JUMPS = frozenset(opcode.hasjrel)
_CONDITIONAL = frozenset(op for op in _JUMPS if "_IF_" in dis.opname[op] or dis.opname[op] == "FOR_ITER")
_BACKWARD = frozenset(op for op in _JUMPS if "BACKWARD" in dis.opname[op])
# behind these nothing falls through. Not behind JUMP_BACKWARD_NO_INTERRUPT: the loop of `yield from` is known by its layout
_ENDS = frozenset(_OP[name] for name in ("RETURN_VALUE", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD") if name in _OP)


class Handler(NamedTuple):
    """Where an exception goes: the handler, how much of the stack is kept, and whether the place of the raise is pushed."""

    target: Instruction
    depth: int
    lasti: bool


class Instruction:
    """An instruction with its prefixes. `old`, `new` and `end` are places in the code, in units of two bytes: where it was, where
    it begins and where the next one does; `size` is its length without prefixes."""

    __slots__ = ("opcode", "argument", "target", "handler", "position", "probe", "old", "new", "end", "prefixes", "size")

    def __init__(self, opcode: int, argument: int, position: Position, handler: Handler | None = None) -> None:
        self.opcode = opcode
        self.argument = argument
        self.position = position
        self.handler = handler
        self.target: Instruction | None = None
        self.probe: Probe | None = None  # of a NOP: the probe that begins here
        self.old = self.new = self.end = 0
        self.prefixes = (argument.bit_length() - 1) // 8 if argument > 255 else 0
        self.size = 1 + _CACHES[opcode]


def instrument(code: CodeType, file: str, make_probe: MakeProbe, nested: Callable[[CodeType], CodeType]) -> CodeType:
    """The code with probes. `nested` is what becomes of the code objects among its constants. Bodies of modules and classes
    get none, since they ran before anybody watched."""
    constants = [nested(value) if isinstance(value, CodeType) else value for value in code.co_consts]
    if not code.co_flags & inspect.CO_OPTIMIZED:
        return code.replace(co_consts=tuple(constants))
    instructions = list(with_probes(code, file, make_probe, constants))
    lay_out(instructions)
    made = code.replace(co_code=encode(instructions), co_consts=tuple(constants), co_stacksize=code.co_stacksize + 1,
                        co_linetable=encode_positions(instructions, code.co_firstlineno),
                        co_exceptiontable=encode_handlers(instructions))
    for place, instruction in enumerate(instructions):
        if instruction.probe is not None:
            instruction.probe.place(made, instruction.new, instructions[place + 3].end - instruction.end)
    return made


def decode(code: CodeType) -> list[Instruction]:
    """The instructions, with jumps and handlers resolved."""
    raw, instructions, at = code.co_code, [], {}
    positions = list(code.co_positions())
    unit = argument = prefixes = 0
    while unit < len(raw) // 2:
        op, argument = raw[2 * unit], argument << 8 | raw[2 * unit + 1]
        if op == _OP["EXTENDED_ARG"]:
            unit, prefixes = unit + 1, prefixes + 1
            continue
        found = Instruction(op, argument, positions[unit])
        found.old = unit - prefixes
        at[found.old] = found
        instructions.append(found)
        unit, argument, prefixes = unit + 1 + _CACHES[op], 0, 0
        if op in _JUMPS:
            found.argument = unit + (-found.argument if op in _BACKWARD else found.argument)
    for found in instructions:
        if found.opcode in _JUMPS:
            found.target = at[found.argument]
    for start, end, target, depth, lasti in handlers_of(code):
        handler = Handler(at[target], depth, lasti)
        for place in range(start, end):
            if place in at:
                at[place].handler = handler
    return instructions


def with_probes(code: CodeType, file: str, make_probe: MakeProbe, constants: list[object]) -> Iterator[Instruction]:
    """The instructions in their new order; probes are appended to the constants."""

    def probe(arc: Arc, position: Position, handler: Handler | None) -> Iterator[Instruction]:
        made = make_probe(arc)
        constants.append(made)
        for name, argument in (("NOP", 0), ("LOAD_CONST", len(constants) - 1), ("UNARY_POSITIVE", 0), ("POP_TOP", 0)):
            instruction = Instruction(_OP[name], argument, position, handler)
            instruction.probe = made if name == "NOP" else None
            yield instruction

    def line(of: Instruction) -> int:
        return of.position[0] or code.co_firstlineno

    waiting: list[Instruction] = []  # what stands beside the way, until there is a place for it
    instructions = decode(code)
    entered = False
    for found, following in zip(instructions, [*instructions[1:], instructions[-1]]):
        yield found
        if found.opcode == _OP["RESUME"] and not entered:
            entered = True
            yield from probe(entry_arc(file, code.co_firstlineno, code.co_qualname), found.position, found.handler)
        elif found.opcode == _OP["PUSH_EXC_INFO"]:
            arc = Arc(file, HANDLER, line(found), f"{code.co_qualname}:{2 * found.old}")
            yield from probe(arc, found.position, found.handler)
        elif found.opcode in _CONDITIONAL:
            target = found.target
            assert target is not None
            staying, leaving = (branch_arc(file, line(found), line(end), code.co_qualname, 2 * found.old, 2 * end.old)
                                for end in (following, target))
            yield from probe(staying, found.position, found.handler)
            aside = list(probe(leaving, found.position, found.handler))
            waiting += [*aside, _jump_on(found, target)]
            found.target = aside[0]
        elif found.opcode in _ENDS:
            yield from waiting
            waiting = []
    assert not waiting, f"{code.co_qualname}: the last instruction falls through"


def _jump_on(branch: Instruction, target: Instruction) -> Instruction:
    """From beside the way to the target of a branch, which becomes a jump forward. Backward jumps look for interrupts; forward
    ones do not, and keep so where their target now lies behind them."""
    if branch.opcode in _BACKWARD:
        branch.opcode = _OP[dis.opname[branch.opcode].replace("BACKWARD", "FORWARD")]
        jump = Instruction(_OP["JUMP_BACKWARD"], 0, branch.position, branch.handler)
    else:
        jump = Instruction(_OP["JUMP_FORWARD"], 0, branch.position, branch.handler)
    jump.target = target
    return jump


def lay_out(instructions: list[Instruction]) -> None:
    """Places, directions and arguments of jumps. Prefixes only grow, so this ends."""
    order = {id(found): place for place, found in enumerate(instructions)}
    jumps = [found for found in instructions if found.target is not None]
    for found in jumps:
        found.prefixes = 0
        if found.opcode == _OP["JUMP_FORWARD"] and order[id(found.target)] <= order[id(found)]:
            found.opcode = _OP["JUMP_BACKWARD_NO_INTERRUPT"]
    moved = True
    while moved:
        moved, unit = False, 0
        for found in instructions:
            found.new = unit
            found.end = unit = unit + found.prefixes + found.size
        for found in jumps:
            assert found.target is not None
            found.argument = found.end - found.target.new if found.opcode in _BACKWARD else found.target.new - found.end
            assert found.argument >= 0, f"{dis.opname[found.opcode]} in the wrong direction"
            if found.argument >> 8 * (found.prefixes + 1):
                found.prefixes = (found.argument.bit_length() - 1) // 8
                moved = True


def encode(instructions: list[Instruction]) -> bytes:
    out = bytearray(2 * instructions[-1].end)
    for found in instructions:
        place = 2 * found.new
        for prefix in range(found.prefixes, 0, -1):
            out[place], out[place + 1] = _OP["EXTENDED_ARG"], found.argument >> 8 * prefix & 255
            place += 2
        out[place], out[place + 1] = found.opcode, found.argument & 255
    return bytes(out)


# --- the table of exception handlers: start, length, target, depth and lasti, in groups of six bits, the highest first -----


def handlers_of(code: CodeType) -> Iterator[tuple[int, int, int, int, bool]]:
    """start, end, target (units), depth, lasti"""
    table = iter(code.co_exceptiontable)
    for first in table:
        start = _read_number(first, table)
        length, target, last = (_read_number(next(table), table) for _ in range(3))
        yield start, start + length, target, last >> 1, bool(last & 1)


def _read_number(byte: int, table: Iterator[int]) -> int:
    number = byte & 63
    while byte & 64:
        byte = next(table)
        number = number << 6 | byte & 63
    return number


def encode_handlers(instructions: list[Instruction]) -> bytes:
    out = bytearray()
    place = 0
    while place < len(instructions):
        first, handler = instructions[place], instructions[place].handler
        while place < len(instructions) and instructions[place].handler == handler:
            place += 1
        if handler is not None:
            entry = [_number(value) for value in (first.new, instructions[place - 1].end - first.new, handler.target.new,
                                                  handler.depth << 1 | handler.lasti)]
            entry[0] = bytes((entry[0][0] | 128, *entry[0][1:]))
            out += b"".join(entry)
    return bytes(out)


def _number(value: int) -> bytes:
    groups = [value & 63]
    while value := value >> 6:
        groups.append(value & 63 | 64)
    return bytes(reversed(groups))


# --- the table of positions: runs of up to eight units in CPython's long form, numbers in groups of six bits, lowest first --


def encode_positions(instructions: list[Instruction], first_line: int) -> bytes:
    out = bytearray()
    last = first_line
    place = 0
    while place < len(instructions):
        first, position = instructions[place], instructions[place].position
        while place < len(instructions) and instructions[place].position == position:
            place += 1
        for start in range(first.new, instructions[place - 1].end, 8):
            units = min(8, instructions[place - 1].end - start)
            out += _position(position, units, last)
            last = position[0] if position[0] is not None else last
    return bytes(out)


def _position(position: Position, units: int, last: int) -> bytes:
    """One entry: nothing known (15), the line only (13), or everything (14)."""
    line, end_line, column, end_column = position
    if line is None:
        return bytes((0x80 | 15 << 3 | units - 1,))
    step = line - last
    signed = _low_first(-step << 1 | 1 if step < 0 else step << 1)
    if end_line is None or column is None or end_column is None:
        return bytes((0x80 | 13 << 3 | units - 1,)) + signed
    return bytes((0x80 | 14 << 3 | units - 1,)) + signed + _low_first(end_line - line) + _low_first(column + 1) + _low_first(end_column + 1)


@cache
def _low_first(value: int) -> bytes:
    groups = []
    while value >= 64:
        groups.append(value & 63 | 64)
        value >>= 6
    return bytes((*groups, value))
