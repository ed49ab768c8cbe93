"""Kernels and programs as canonical text; `loop_parser.py` reads it back.

    program   := kernel* "program" "@"name symbols? "(" input,* ")" "->" "(" output,* ")" "{"
                 "constants" bytes  "workspace" size  ("scratchpad" bytes "alignment" bytes)?  constant*  step* "}"
    input     := "%"name ":" dtype "[" size,* "]"                    output likewise
    constant  := "constant" offset ":" dtype "[" size,* "]" (elements | "#"digest)
    step      := "launch" "@"kernel ("[" size,* "]")? "(" place,* ")" "nobarrier"?
               | "repeat" "%"variable "in" "0.."size "reverse"? "{" step* "}"
               | "loop" "{" step* "}" "while" place "{" step* "}"
               | "branch" place "{" step* "}" ("else" "{" step* "}")?
               | "fetch" place "to" address "bytes" bytes | "spill" address "to" place "bytes" bytes
               | "reserve" address "bytes" bytes | "free" address
    place     := ("input" | "output") number ("at" size)? | ("constant" | "workspace" | "scratchpad") size
    kernel    := as in `ir/loop.py`, with these spellings:
                 `for %i in 0..B parallel {`, `for %j: 0..63 in 0..N vector(8) {` (bounds where the extent does not give
                 them), `let %at: 0..9 = ...` (an index let with its bounds), literals `f32 0.5`, `index 3`, `bool true`,
                 `add(load %x[i], local)`; sizes name variables without `%`
    shared    := a statement whose expressions use a computed value more than once ends with
                 `where !0 = ..., !1 = ...`; the definitions may use earlier ones

Constants of up to 16 elements are spelled, larger ones named by digest and looked up when parsing.

Guarantees: format(parse(text)) == text for text that was printed, for every kernel that `verify_kernel` accepts; deep expressions
exhaust no stack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from blake3 import blake3

from .dims import Atom, DimLike, Symbol
from .errors import UNKNOWN, CompileError
from .graph import Node, Op
from .loop import (
    MATMULS,
    Alloc,
    Check,
    Collect,
    Commit,
    CopyAsync,
    CopyBulk,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    MatmulTile,
    Prefetch,
    Stmt,
    Store,
    Wait,
    While,
    expression_nodes,
    expressions_of,
    loop_variable,
)
from .ops.compute import Bitcast, Cast, Elementwise
from .printer import format_elements, format_float, quote
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Spill, Step
from .types import DType, TensorType


def format_kernel(kernel: Kernel, locations: bool = False) -> str:
    """The kernel's text, ending with a newline; `locations` adds where it came from as a comment."""
    return "\n".join(_KernelWriter().kernel(kernel, locations)) + "\n"


def format_statements(body: Sequence[Stmt]) -> str:
    """A block's text: for messages and tests."""
    return "\n".join(_KernelWriter().block(body, ""))


def first_line(statement: Stmt) -> str:
    """The statement's own line, for messages; of one that is broken the name of its class."""
    try:
        return format_statements([statement]).split("\n", 1)[0]
    except (CompileError, AttributeError, TypeError, ValueError):
        return type(statement).__name__


def format_expression(root: Node) -> str:
    """An expression on one line: for messages."""
    roots, shared = _KernelWriter().expressions((root,))
    return roots[0] + shared


def format_program(program: Program, locations: bool = False) -> str:
    """The program's text after that of its kernels."""
    texts = ["\n".join(_KernelWriter().kernel(kernel, locations)) for kernel in program.kernels()]
    texts.append("\n".join(_program_lines(program)))
    return "\n\n".join(texts) + "\n"


def kernel_key(kernel: Kernel) -> str:
    """A digest that kernels share when they differ at most in their own name, their locations, and the names of buffers,
    variables and symbols. Bounds of symbols and the messages of checks count."""
    lines = _KeyWriter().kernel(kernel, False)
    return blake3("\n".join(lines).encode()).hexdigest()


class _KernelWriter:
    """Spells names as they are. Recursion follows the nesting of blocks."""

    def buffer_name(self, name: str) -> str:
        return f"%{quote(name)}"

    def variable_name(self, name: str) -> str:
        return f"%{quote(name)}"

    def size(self, size: DimLike) -> str:
        return str(size)

    def bounds(self, symbol: Symbol) -> str:
        upper = "" if symbol.upper is None else str(symbol.upper)
        step = "" if symbol.multiple_of == 1 else f" % {symbol.multiple_of}"
        return f": {symbol.lower}..{upper}{step}"

    def declaration(self, symbol: Symbol) -> str:
        plain = symbol.lower == 0 and symbol.upper is None and symbol.multiple_of == 1
        return symbol.name if plain else symbol.name + self.bounds(symbol)

    def sizes(self, sizes: Iterable[DimLike]) -> str:
        return f"[{', '.join(map(self.size, sizes))}]"

    def head(self, kernel: Kernel) -> str:
        symbols = ", ".join(map(self.declaration, kernel.symbols))
        return f"kernel @{quote(kernel.name)}" + (f"[{symbols}]" if symbols else "")

    def kernel(self, kernel: Kernel, locations: bool) -> list[str]:
        head = self.head(kernel)
        buffers = ", ".join(f"{self.buffer_name(b.name)}: {b.space} {b.dtype}{self.sizes(b.shape)}" for b in kernel.buffers)
        comment = ""
        if locations and kernel.loc != UNKNOWN:
            comment = "  # " + "".join(c if c.isprintable() else "?" for c in str(kernel.loc))
        return [f"{head}({buffers}) {{{comment}", *self.block(kernel.body, "  "), "}"]

    def block(self, body: Sequence[Stmt], indent: str) -> list[str]:
        lines: list[str] = []
        for statement in body:
            lines.extend(self.statement(statement, indent))
        return lines

    def statement(self, statement: Stmt, indent: str) -> list[str]:
        texts, shared = self.expressions(expressions_of(statement))
        inner = indent + "  "
        match statement:
            case For(symbol=symbol, extent=extent, kind=kind, body=body, lanes=lanes):
                name = self.variable_name(symbol.name)
                declared = "" if symbol == loop_variable(symbol.name, extent) else self.bounds(symbol)
                mark = "" if kind == "serial" else f" {kind}" + (f"({lanes})" if lanes else "")
                return [f"{indent}for {name}{declared} in 0..{self.size(extent)}{mark} {{", *self.block(body, inner),
                        indent + "}"]
            case While(body=body):
                return [f"{indent}while {texts[0]}{shared} {{", *self.block(body, inner), indent + "}"]
            case If(then=then, otherwise=otherwise):
                lines = [f"{indent}if {texts[0]}{shared} {{", *self.block(then, inner)]
                if otherwise:
                    lines += [indent + "} else {", *self.block(otherwise, inner)]
                return [*lines, indent + "}"]
            case Let(name=name, symbol=symbol):
                declared = "" if symbol is None else self.bounds(symbol)
                return [f"{indent}let {self.variable_name(name)}{declared} = {texts[0]}{shared}"]
            case Alloc(buffer=b):
                return [f"{indent}alloc {self.buffer_name(b.name)}: {b.dtype}{self.sizes(b.shape)} {b.space}"]
            case Store(buffer=name, index=index, combine=combine, stream=stream, atomic=atomic):
                mark = ("stream " if stream else "") + ("atomic " if atomic else "")
                return [f"{indent}{mark}{self.buffer_name(name)}{self.sizes(index)} {combine}= {texts[0]}{shared}"]
            case Prefetch(buffer=name, index=index):
                return [f"{indent}prefetch {self.buffer_name(name)}{self.sizes(index)}"]
            case Check(code=code, message=message):
                return [f"{indent}check {texts[0]}, {code}, {json.dumps(message)}, {texts[1]}, {texts[2]}{shared}"]
            case CopyAsync(condition=condition) if condition is not None:
                return [f"{indent}{self.collective(statement)} given {texts[0]}{shared}"]
        return [indent + self.collective(statement)]

    def collective(self, statement: Collect | MatmulTile | CopyAsync | CopyBulk | Commit | Wait) -> str:
        """What the threads of a block do together."""
        match statement:
            case Collect(buffer=name, combine=combine, width=width):
                return f"collect {combine} {self.buffer_name(name)} over {width}"
            case MatmulTile(accumulator=name, left=left, left_index=rows, right=right, right_index=columns, bits=bits):
                word = "matmul_codes" if bits else next(w for w, k in MATMULS.items() if k == (statement.grouped, statement.tf32))
                codes = f", {bits}, {statement.zero}" if bits else ""
                operands = f"{self.buffer_name(left)}{self.sizes(rows)}, {self.buffer_name(right)}{self.sizes(columns)}"
                return f"{word} {self.buffer_name(name)}, {operands}, {statement.depth}{codes}"
            case CopyAsync() | CopyBulk():
                target = f"{self.buffer_name(statement.buffer)}{self.sizes(statement.index)}"
                word = "copy_bulk" if isinstance(statement, CopyBulk) else "copy_async"
                return f"{word} {target} = {self.buffer_name(statement.source)}{self.sizes(statement.source_index)}, {statement.count}"
            case Commit():
                return "commit"
            case Wait(groups=groups):
                return f"wait {groups}"

    def expressions(self, roots: Sequence[Node]) -> tuple[list[str], str]:
        """The texts of a statement's expressions, and the `where` that defines what they use more than once."""
        order: list[Node] = []
        uses: dict[int, int] = {}
        for root in roots:
            for node in expression_nodes(root):
                if id(node) not in uses:
                    uses[id(node)] = 0
                    order.append(node)
                    for operand in node.inputs:
                        uses[id(operand)] += 1
        for root in roots:
            uses[id(root)] += 1
        texts: dict[int, str] = {}
        definitions: list[str] = []
        for node in order:
            text = self.expression(node.op, [texts[id(i)] for i in node.inputs])
            if uses[id(node)] > 1 and node.inputs:
                texts[id(node)] = f"!{len(definitions)}"
                definitions.append(f"{texts[id(node)]} = {text}")
            else:
                texts[id(node)] = text
        return [texts[id(r)] for r in roots], f" where {', '.join(definitions)}" if definitions else ""

    def expression(self, op: Op, operands: list[str]) -> str:
        match op:
            case Elementwise(function=function):
                return f"{function}({', '.join(operands)})"
            case Load(buffer=buffer, index=index):
                return f"load {self.buffer_name(buffer)}{self.sizes(index)}"
            case Local(variable=variable):
                return self.variable_name(variable)
            case IndexValue(size=size):
                return f"index({self.size(size)})"
            case Literal(value=value, dtype=dtype):
                return f"{dtype} {_format_literal(value, dtype)}"
            case Cast(dtype=dtype) | Bitcast(dtype=dtype):
                return f"{op.name}({', '.join(operands)}, {dtype})"
        raise CompileError(f"{op.spelling} is no part of a kernel's expressions")


def _format_literal(value: int | float | bool, dtype: DType) -> str:
    if dtype.is_bool:
        return "true" if value else "false"
    return format_float(float(value)) if dtype.is_float else str(int(value))


class _KeyWriter(_KernelWriter):
    """Spells names by the order in which they are bound, so that renaming changes nothing."""

    def __init__(self) -> None:
        self.buffers: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self.known_sizes: dict[DimLike, str] = {}
        self.count = 0

    def bind(self, names: dict[str, str], name: str) -> str:
        """A number of its own for each binding, also where a later block binds the same name again."""
        if name in names:
            self.known_sizes.clear()
        self.count += 1
        names[name] = f"%{self.count}"
        return names[name]

    def buffer_name(self, name: str) -> str:
        return self.buffers.get(name) or self.bind(self.buffers, name)

    def variable_name(self, name: str) -> str:
        return self.variables.get(name) or self.bind(self.variables, name)

    def declaration(self, symbol: Symbol) -> str:
        return self.variable_name(symbol.name) + self.bounds(symbol)

    def head(self, kernel: Kernel) -> str:
        return f"kernel[{', '.join(map(self.declaration, kernel.symbols))}]"

    def statement(self, statement: Stmt, indent: str) -> list[str]:
        match statement:
            case For(symbol=symbol):
                self.bind(self.variables, symbol.name)
            case Let(name=name):
                self.bind(self.variables, name)
            case Alloc(buffer=buffer):
                self.bind(self.buffers, buffer.name)
        return super().statement(statement, "")

    def size(self, size: DimLike) -> str:
        if isinstance(size, int):
            return str(size)
        known = self.known_sizes.get(size)
        if known is None:
            # sorted after renaming: the normal form's own order follows the names
            monomials = ("*".join(sorted([self.atom(a) for a, power in m for _ in range(power)])) for m, _ in size.terms)
            known = "+".join(sorted(f"{c}*{text}" for text, (_, c) in zip(monomials, size.terms)))
            self.known_sizes[size] = known
        return known

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, Symbol):
            return self.variable_name(atom.name)
        parts = [self.size(atom.left), self.size(atom.right)]
        return f"{atom.kind}({', '.join(sorted(parts) if atom.kind == 'min' else parts)})"


def _program_lines(program: Program) -> list[str]:
    def tensors(items: Iterable[tuple[str, TensorType]]) -> str:
        return ", ".join(f"%{quote(name)}: {type}" for name, type in items)

    symbols = ", ".join(s.declaration() for s in program.symbols)
    head = f"program @{quote(program.name)}" + (f"[{symbols}]" if symbols else "")
    lines = [f"{head}({tensors(program.inputs)}) -> ({tensors(program.outputs)}) {{",
             f"  constants {program.constants_bytes}", f"  workspace {program.workspace_bytes}"]
    if program.scratchpad is not None:
        lines.append(f"  scratchpad {program.scratchpad.bytes} alignment {program.scratchpad.alignment}")
    for offset, constant in program.constants:
        kind = TensorType(constant.dtype, tuple(int(n) for n in constant.array.shape))
        lines.append(f"  constant {offset}: {kind} {format_elements(constant)}")
    return [*lines, *_step_lines(program.steps, "  "), "}"]


def _step_lines(steps: Sequence[Step], indent: str) -> list[str]:
    lines: list[str] = []
    inner = indent + "  "
    for step in steps:
        match step:
            case Launch(kernel=kernel, places=places, sizes=sizes, barrier=barrier):
                given = f"[{', '.join(map(str, sizes))}]" if sizes else ""
                end = "" if barrier else " nobarrier"
                lines.append(f"{indent}launch @{quote(kernel.name)}{given}({', '.join(map(format_place, places))}){end}")
            case Repeat(symbol=symbol, extent=extent, steps=body, reverse=reverse):
                declared = "" if symbol == loop_variable(symbol.name, extent) else _KernelWriter().bounds(symbol)
                lines.append(f"{indent}repeat %{symbol.name}{declared} in 0..{extent}{' reverse' if reverse else ''} {{")
                lines += [*_step_lines(body, inner), indent + "}"]
            case Loop(condition_steps=first, condition=condition, steps=body):
                lines += [indent + "loop {", *_step_lines(first, inner), f"{indent}}} while {format_place(condition)} {{",
                          *_step_lines(body, inner), indent + "}"]
            case Branch(condition=condition, then=then, otherwise=otherwise):
                lines += [f"{indent}branch {format_place(condition)} {{", *_step_lines(then, inner)]
                if otherwise:
                    lines += [indent + "} else {", *_step_lines(otherwise, inner)]
                lines.append(indent + "}")
            case Fetch(source=source, address=address, bytes=size):
                lines.append(f"{indent}fetch {format_place(source)} to {address} bytes {size}")
            case Spill(address=address, target=target, bytes=size):
                lines.append(f"{indent}spill {address} to {format_place(target)} bytes {size}")
            case Reserve(address=address, bytes=size):
                lines.append(f"{indent}reserve {address} bytes {size}")
            case Free(address=address):
                lines.append(f"{indent}free {address}")
    return lines


def format_place(place: Place) -> str:
    """`input 0`, `output 1 at 4*t`, `constant 64`, `workspace 4*B`, `scratchpad 128`."""
    if place.space in ("input", "output"):
        return f"{place.space} {place.number}" + ("" if place.offset == 0 else f" at {place.offset}")
    return f"{place.space} {place.offset}"
