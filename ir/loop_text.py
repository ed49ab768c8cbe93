"""Kernels and programs as canonical text, and back.

    program   := kernel* "program" "@"name symbols? "(" input,* ")" "->" "(" output,* ")" "{"
                 "constants" bytes  "workspace" size  ("scratchpad" bytes "alignment" bytes)?  constant*  step* "}"
    input     := "%"name ":" dtype "[" size,* "]"                    output likewise
    constant  := "constant" offset ":" dtype "[" size,* "]" (elements | "#"digest)
    step      := "launch" "@"kernel ("[" size,* "]")? "(" place,* ")" "nobarrier"?
               | "repeat" "%"variable "in" "0.."size "reverse"? "{" step* "}"
               | "loop" "{" step* "}" "while" place "{" step* "}"
               | "branch" place "{" step* "}" ("else" "{" step* "}")?
               | "fetch" place "to" address "bytes" bytes | "spill" address "to" place "bytes" bytes | "free" address
    place     := ("input" | "output") number ("at" size)? | ("constant" | "workspace" | "scratchpad") size
    kernel    := as in `ir/loop.py`, with these spellings:
                 `for %i in 0..B parallel {`, `for %j: 0..63 in 0..N vector(8) {` (bounds where the extent does not give
                 them), `let %at: 0..9 = ...` (an index let with its bounds), literals `f32 0.5`, `index 3`, `bool true`,
                 `add(load %x[i], local)`; sizes name variables without `%`
    shared    := a statement whose expressions use a computed value more than once ends with
                 `where !0 = ..., !1 = ...`; the definitions may use earlier ones

Constants of up to 16 elements are spelled, larger ones named by digest and looked up when parsing.

Guarantees: format(parse(text)) == text for text that was printed, for every kernel that `verify_kernel` accepts;
parsing any text gives a value or a ParseError with line and column; deep expressions and nests exhaust no stack.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from blake3 import blake3
from msgspec import Struct, field
from msgspec.structs import replace

from .dims import Atom, DimLike, Symbol, size_of
from .errors import UNKNOWN, CompileError
from .graph import Constant, Node, Op
from .lexer import Lexer, Token
from .loop import (
    ACCESS,
    COMBINES,
    GPU_KINDS,
    GPU_SPACES,
    SPACES,
    Alloc,
    Buffer,
    Check,
    Collect,
    Commit,
    CopyAsync,
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
from .ops.scalar import SCALARS
from .parser import GraphParser
from .printer import format_elements, format_float, quote
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Scratchpad, Spill, Step
from .types import DTYPES, INDEX, DType, TensorType

# --- printing --------------------------------------------------------------------------------------------------------


def format_kernel(kernel: Kernel, locations: bool = False) -> str:
    """The kernel's text, ending with a newline; `locations` adds where it came from as a comment."""
    return "\n".join(_KernelWriter().kernel(kernel, locations)) + "\n"


def format_statements(body: Sequence[Stmt]) -> str:
    """A block's text: for messages and tests."""
    return "\n".join(_KernelWriter().block(body, ""))


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
                mark = "" if kind == "serial" else f" {kind}" + (f"({lanes})" if kind == "vector" else "")
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
        return [indent + self.collective(statement)]

    def collective(self, statement: Collect | MatmulTile | CopyAsync | Commit | Wait) -> str:
        """What the threads of a block do together."""
        match statement:
            case Collect(buffer=name, combine=combine, width=width):
                return f"collect {combine} {self.buffer_name(name)} over {width}"
            case MatmulTile(accumulator=name, left=left, left_index=rows, right=right, right_index=columns, depth=depth, grouped=grouped):
                operands = f"{self.buffer_name(left)}{self.sizes(rows)}, {self.buffer_name(right)}{self.sizes(columns)}"
                return f"matmul_{'group' if grouped else 'tile'} {self.buffer_name(name)}, {operands}, {depth}"
            case CopyAsync(buffer=name, index=index, source=source, source_index=place, count=count):
                target = f"{self.buffer_name(name)}{self.sizes(index)}"
                return f"copy_async {target} = {self.buffer_name(source)}{self.sizes(place)}, {count}"
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
            case Free(address=address):
                lines.append(f"{indent}free {address}")
    return lines


def format_place(place: Place) -> str:
    """`input 0`, `output 1 at 4*t`, `constant 64`, `workspace 4*B`, `scratchpad 128`."""
    if place.space in ("input", "output"):
        return f"{place.space} {place.number}" + ("" if place.offset == 0 else f" at {place.offset}")
    return f"{place.space} {place.offset}"


# --- parsing ---------------------------------------------------------------------------------------------------------


def parse_kernel(text: str) -> Kernel:
    """The kernel that the text describes. Raises ParseError; `verify_kernel` checks what parsing does not."""
    parser = _LoopParser(Lexer(text), {}, "<text>")
    kernel = parser.kernel()
    parser.end("kernel")
    return kernel


def parse_program(text: str, constants: Mapping[str, Constant] | Iterable[Constant] = ()) -> Program:
    """The program that the text describes. `constants`: those named by digest, by digest or as they are."""
    known = dict(constants) if isinstance(constants, Mapping) else {c.digest: c for c in constants}
    parser = _LoopParser(Lexer(text), known, "<text>")
    program = parser.program()
    parser.end("program")
    return program


class _Names(Struct):
    """What a statement sees: dtypes of buffers, and of lets (None for a variable that only sizes may use)."""

    buffers: dict[str, DType] = field(default_factory=dict)
    lets: dict[str, DType] = field(default_factory=dict)


class _Call(Struct):
    """An expression of which some operands have been read."""

    token: Token
    operands: list[Node] = field(default_factory=list)


class _LoopParser(GraphParser):
    """Recursion follows the nesting of blocks and sizes, which the graph parser's limit bounds."""

    def __init__(self, lexer: Lexer, constants: Mapping[str, Constant], file: str) -> None:
        super().__init__(lexer, constants, file)
        self.names = _Names()
        self.shared: dict[int, Node] = {}
        self.kernels: dict[str, Kernel] = {}

    def end(self, what: str) -> None:
        if self.lexer.token.kind != "end":
            self.fail(f"the {what} ends before {self.lexer.describe()}")

    # --- kernels ---

    def kernel(self) -> Kernel:
        lexer = self.lexer
        lexer.expect("kernel")
        name = lexer.take("name", "a kernel name such as @main")
        self.symbols, self.names = {}, _Names()
        symbols = self.symbol_list()
        buffers: list[Buffer] = []
        lexer.expect("(")
        while not lexer.at(")"):
            token = lexer.token
            label = lexer.take("value", "a buffer such as %x")
            lexer.expect(":")
            mark = lexer.token
            access = lexer.take("word", "in, out or inout")
            if access not in ACCESS:
                self.fail(f"a parameter's access is in, out or inout, found {access!r}", mark)
            buffers.append(self.buffer(label, access, token))
            if not lexer.accept(","):
                break
        lexer.expect(")")
        return Kernel(name, tuple(buffers), symbols, self.nested(self.block))

    def symbol_list(self) -> tuple[Symbol, ...]:
        found: list[Symbol] = []
        if self.lexer.accept("["):
            while not self.lexer.at("]"):
                token = self.lexer.token
                name = self.lexer.take("word", "the name of a size")
                found.append(self.declare(name, self.bounds(name, Symbol(name), token), token))
                if not self.lexer.accept(","):
                    break
            self.lexer.expect("]")
        return tuple(found)

    def bounds(self, name: str, default: Symbol, token: Token) -> Symbol:
        """`: lower..upper % divisor` where it follows."""
        lexer = self.lexer
        if not lexer.accept(":"):
            return default
        lower = lexer.integer("a lower bound")
        lexer.expect("..")
        upper = lexer.integer("an upper bound") if lexer.token.kind == "int" else None
        multiple = lexer.integer("a divisor") if lexer.accept("%") else 1
        made: Symbol = self._guard(lambda: Symbol(name, lower, upper, multiple), token)
        return made

    def declare(self, name: str, symbol: Symbol, token: Token) -> Symbol:
        if name in self.symbols or name in self.names.lets:
            self.fail(f"{name} is declared twice", token)
        # as it is, even where its bounds leave one value: text that names it was printed from a size that does
        self.symbols[name] = size_of(symbol)
        return symbol

    def buffer(self, name: str, space: str, token: Token) -> Buffer:
        if name in self.names.buffers:
            self.fail(f"buffer %{quote(name)} is declared twice", token)
        type = self.type()
        if not isinstance(type, TensorType):
            self.fail(f"buffer %{quote(name)} is a tuple; a buffer has a dtype and a shape", token)
        self.names.buffers[name] = type.dtype
        return Buffer(name, type.dtype, type.shape, space)

    def block(self) -> tuple[Stmt, ...]:
        """Statements in braces; what they bind is unknown after them."""
        symbols, names = self.symbols, self.names
        self.symbols, self.names = dict(symbols), _Names(dict(names.buffers), dict(names.lets))
        statements: list[Stmt] = []
        self.lexer.expect("{")
        while not self.lexer.accept("}"):
            statements.append(self.statement())
        self.symbols, self.names = symbols, names
        return tuple(statements)

    def statement(self) -> Stmt:
        token = self.lexer.token
        if token.kind == "value":
            return self.store()
        readers: dict[str, Callable[[], Stmt]] = {"for": self.loop, "while": self.while_loop, "if": self.branch,
                                                  "let": self.let, "alloc": self.alloc, "check": self.check,
                                                  "prefetch": self.prefetch, "stream": self.stream, "atomic": self.atomic,
                                                  "collect": self.collect, "matmul_tile": self.matmul_tile,
                                                  "matmul_group": lambda: self.matmul_tile(True),
                                                  "copy_async": self.copy_async, "commit": Commit, "wait": self.wait}
        if token.kind != "word" or token.text not in readers:
            self.fail(f"expected a statement ({', '.join(readers)} or a store), found {self.lexer.describe()}")
        self.lexer.next()
        return readers[token.text]()

    def loop(self) -> For:
        lexer = self.lexer
        symbol, extent, token = self.loop_head()
        kind, lanes = "serial", 0
        if lexer.token.kind == "word":
            kind = lexer.token.text
            if kind not in ("parallel", "vector", "unrolled", *GPU_KINDS):
                self.fail(f"a loop is parallel, vector(lanes), unrolled, {', '.join(GPU_KINDS)}, found {kind!r}")
            lexer.next()
        if kind == "vector":
            lexer.expect("(")
            lanes = lexer.integer("the number of lanes")
            lexer.expect(")")
        outside = dict(self.symbols)
        self.declare(symbol.name, symbol, token)
        body = self.nested(self.block)
        self.symbols = outside
        return For(symbol, extent, kind, body, lanes)

    def loop_head(self) -> tuple[Symbol, DimLike, Token]:
        """`%i: bounds in 0..extent`"""
        lexer = self.lexer
        token = lexer.token
        name = lexer.take("value", "a loop variable such as %i")
        self._guard(lambda: Symbol(name), token)
        given = self.bounds(name, Symbol(name), token) if lexer.at(":") else None
        lexer.expect("in")
        if lexer.integer("0, where every loop begins") != 0:
            self.fail("a loop begins at 0", token)
        lexer.expect("..")
        extent = self.size()
        return given or loop_variable(name, extent), extent, token

    def while_loop(self) -> While:
        condition, = self.expressions(1)
        return While(condition, self.nested(self.block))

    def branch(self) -> If:
        condition, = self.expressions(1)
        then = self.nested(self.block)
        otherwise: tuple[Stmt, ...] = self.nested(self.block) if self.lexer.accept("else") else ()
        return If(condition, then, otherwise)

    def let(self) -> Let:
        lexer = self.lexer
        token = lexer.token
        name = lexer.take("value", "a name such as %v")
        symbol = self.bounds(name, Symbol(name), token) if lexer.at(":") else None
        lexer.expect("=")
        value, = self.expressions(1)
        if name in self.symbols or name in self.names.lets:
            self.fail(f"{name} is declared twice", token)
        if symbol is not None:
            self.declare(name, symbol, token)
        self.names.lets[name] = value.dtype
        return Let(name, value, symbol)

    def alloc(self) -> Alloc:
        lexer = self.lexer
        token = lexer.token
        name = lexer.take("value", "a buffer such as %acc")
        lexer.expect(":")
        buffer = self.buffer(name, "", token)
        space = lexer.take("word", "register or local")
        if space not in (*SPACES, *GPU_SPACES):
            self.fail(f"memory is {', '.join((*SPACES, *GPU_SPACES))}, found {space!r}", token)
        return Alloc(Buffer(buffer.name, buffer.dtype, buffer.shape, space))

    def store(self) -> Store:
        lexer = self.lexer
        name, _ = self.buffer_reference()
        index = self.index()
        combine = ""
        if lexer.token.kind == "word":
            combine = lexer.token.text
            if combine not in COMBINES:
                self.fail(f"a store combines by {', '.join(COMBINES)}, found {combine!r}")
            lexer.next()
        lexer.expect("=")
        value, = self.expressions(1)
        return Store(name, index, value, combine)

    def check(self) -> Check:
        lexer = self.lexer
        self.shared = {}
        condition = self.expression()
        lexer.expect(",")
        negative = lexer.accept("-")
        code = lexer.integer("a status code") * (-1 if negative else 1)
        lexer.expect(",")
        message = lexer.take("string", "a message in quotes")
        lexer.expect(",")
        found = self.expression()
        lexer.expect(",")
        expected = self.expression()
        condition, found, expected = self.definitions([condition, found, expected])
        return Check(condition, code, message, found, expected)

    def stream(self) -> Store:
        return replace(self.store(), stream=True)

    def prefetch(self) -> Prefetch:
        return Prefetch(*self.element())

    def atomic(self) -> Store:
        return replace(self.store(), atomic=True)

    def collect(self) -> Collect:
        combine = self.lexer.take("word", "how to combine")
        name, _ = self.buffer_reference()
        self.lexer.expect("over")
        return Collect(name, combine, self.lexer.integer("the number of threads"))

    def matmul_tile(self, grouped: bool = False) -> MatmulTile:
        name, _ = self.buffer_reference()
        self.lexer.expect(",")
        left = self.element()
        self.lexer.expect(",")
        right = self.element()
        self.lexer.expect(",")
        return MatmulTile(name, *left, *right, self.lexer.integer("the depth"), grouped)

    def copy_async(self) -> CopyAsync:
        target = self.element()
        self.lexer.expect("=")
        source = self.element()
        self.lexer.expect(",")
        return CopyAsync(*target, *source, self.lexer.integer("the number of elements"))

    def wait(self) -> Wait:
        return Wait(self.lexer.integer("the number of groups"))

    def element(self) -> tuple[str, tuple[DimLike, ...]]:
        """`%buffer[index, ...]`"""
        name, _ = self.buffer_reference()
        return name, self.index()

    def buffer_reference(self) -> tuple[str, DType]:
        token = self.lexer.token
        name = self.lexer.take("value", "a buffer such as %x")
        if name not in self.names.buffers:
            self.fail(f"no buffer %{quote(name)} is known here", token)
        return name, self.names.buffers[name]

    def index(self) -> tuple[DimLike, ...]:
        found: list[DimLike] = []
        self.lexer.expect("[")
        while not self.lexer.at("]"):
            found.append(self.size())
            if not self.lexer.accept(","):
                break
        self.lexer.expect("]")
        return tuple(found)

    # --- expressions ---

    def expressions(self, count: int) -> list[Node]:
        """So many expressions with commas between, then the `where` that they share."""
        self.shared = {}
        found = [self.expression()]
        while len(found) < count:
            self.lexer.expect(",")
            found.append(self.expression())
        return self.definitions(found)

    def definitions(self, roots: list[Node]) -> list[Node]:
        """Puts what `where` defines in place of the names used before it."""
        if not self.lexer.accept("where"):
            if self.shared:
                self.fail(f"!{min(self.shared)} is used but not defined; expected 'where'")
            return roots
        values: dict[int, Node] = {}
        while self.lexer.at("!"):
            token = self.lexer.next()
            number = self.lexer.integer("a number")
            if number in values:
                self.fail(f"!{number} is defined twice", token)
            self.lexer.expect("=")
            root = self.expression()
            values[number] = self.fill(root, values, token)
            if not self.lexer.accept(","):
                break
        return [self.fill(root, values, self.lexer.token) for root in roots]

    def fill(self, root: Node, values: Mapping[int, Node], token: Token) -> Node:
        """The expression with placeholders replaced; types are inferred here, where all operands are known."""
        done: dict[int, Node] = {}
        for node in expression_nodes(root):
            if isinstance(node.op, _Shared):
                if node.op.number not in values:
                    self.fail(f"!{node.op.number} is not defined before its use", token)
                done[id(node)] = values[node.op.number]
            elif node.inputs:
                done[id(node)] = self.make(node.op, [done[id(i)] for i in node.inputs], token)
            else:
                done[id(node)] = node
        return done[id(root)]

    def make(self, op: Op, operands: list[Node], token: Token) -> Node:
        if any(isinstance(i.op, _Shared) or i.type is _UNKNOWN_TYPE for i in operands):
            return Node(op, tuple(operands), _UNKNOWN_TYPE)
        type = self._guard(lambda: op.infer(*(i.type for i in operands)), token, operands)
        return Node(op, tuple(operands), type)

    def expression(self) -> Node:
        """One expression; calls within calls are kept on a list, so that depth is not limited."""
        calls: list[_Call] = []
        while True:
            token = self.lexer.token
            if token.kind == "word" and (token.text in SCALARS or token.text in ("cast", "bitcast")):
                self.lexer.next()
                self.lexer.expect("(")
                calls.append(_Call(token))
                continue
            value = self.leaf()
            while calls:
                calls[-1].operands.append(value)
                if self.lexer.accept(","):
                    if calls[-1].token.text not in ("cast", "bitcast"):
                        break
                    value = self.conversion(calls.pop())
                    continue
                self.lexer.expect(")")
                call = calls.pop()
                if call.token.text in ("cast", "bitcast"):
                    self.fail(f"{call.token.text} needs a dtype after its operand", call.token)
                value = self.make(Elementwise(call.token.text), call.operands, call.token)
            else:
                return value

    def conversion(self, call: _Call) -> Node:
        token = self.lexer.token
        name = self.lexer.take("word", "a dtype")
        if name not in DTYPES:
            self.fail(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}", token)
        self.lexer.expect(")")
        op = Cast(DTYPES[name]) if call.token.text == "cast" else Bitcast(DTYPES[name])
        return self.make(op, call.operands, call.token)

    def leaf(self) -> Node:
        lexer = self.lexer
        token = lexer.token
        if lexer.accept("!"):
            number = lexer.integer("the number of a shared value")
            return self.shared.setdefault(number, Node(_Shared(number), (), _UNKNOWN_TYPE))
        if lexer.accept("load"):
            name, dtype = self.buffer_reference()
            return self.make(Load(name, self.index(), dtype), [], token)
        if token.kind == "value":
            lexer.next()
            if token.text not in self.names.lets:
                hint = f"a loop variable or size is index({token.text}) here" if token.text in self.symbols else ""
                self.fail(f"no let %{quote(token.text)} is known here", token, hint=hint)
            return self.make(Local(token.text, self.names.lets[token.text]), [], token)
        if token.kind == "word" and token.text in DTYPES:
            lexer.next()
            if token.text == "index" and lexer.accept("("):
                size = self.size()
                lexer.expect(")")
                return self.make(IndexValue(size), [], token)
            return self.make(Literal(self.literal(DTYPES[token.text]), DTYPES[token.text]), [], token)
        self.fail(f"expected an expression, found {lexer.describe()}",
                  hint="a scalar function, cast(x, dtype), load %x[i], %let, index(size) or a literal such as f32 0.5")

    def literal(self, dtype: DType) -> int | float | bool:
        lexer = self.lexer
        token = lexer.token
        if dtype.is_bool:
            if not (lexer.at("true") or lexer.at("false")):
                self.fail(f"expected true or false, found {lexer.describe()}")
            return lexer.next().text == "true"
        if dtype.is_float and lexer.at("nan"):
            if lexer.following.text == "(":
                return self._payload_nan()
            lexer.next()
            return float("nan")
        sign = -1 if lexer.accept("-") else 1
        if not dtype.is_float:
            value = sign * int(lexer.take("int", f"an integer for {dtype}"))
            if not dtype.lowest <= value <= dtype.highest:
                self.fail(f"{value} is outside {dtype}", token)
            return value
        if lexer.accept("inf"):
            return sign * float("inf")
        if lexer.token.kind not in ("float", "int"):
            self.fail(f"expected a number for {dtype}, found {lexer.describe()}")
        return sign * float(lexer.next().text)

    # --- programs ---

    def program(self) -> Program:
        lexer = self.lexer
        while lexer.at("kernel"):
            token = lexer.token
            kernel = self.kernel()
            if kernel.name in self.kernels:
                self.fail(f"kernel @{quote(kernel.name)} is defined twice", token)
            self.kernels[kernel.name] = kernel
        self.symbols, self.names = {}, _Names()
        lexer.expect("program")
        name = lexer.take("name", "a program name such as @main")
        symbols = self.symbol_list()
        inputs = self.tensors()
        lexer.expect("->")
        outputs = self.tensors()
        lexer.expect("{")
        lexer.expect("constants")
        constants_bytes = lexer.integer("the bytes of the constants")
        lexer.expect("workspace")
        workspace = self.size()
        scratchpad = None
        if lexer.accept("scratchpad"):
            size = lexer.integer("the bytes of the scratchpad")
            lexer.expect("alignment")
            scratchpad = Scratchpad(size, lexer.integer("a number of bytes"))
        constants = []
        while lexer.accept("constant"):
            offset = lexer.integer("an offset")
            lexer.expect(":")
            constants.append((offset, self._constant(self.type())))
        steps = self.steps()
        return Program(name, inputs, outputs, tuple(constants), constants_bytes, workspace, steps, symbols, scratchpad)

    def tensors(self) -> tuple[tuple[str, TensorType], ...]:
        lexer = self.lexer
        found: list[tuple[str, TensorType]] = []
        lexer.expect("(")
        while not lexer.at(")"):
            token = lexer.token
            label = lexer.take("value", "a name such as %x")
            lexer.expect(":")
            type = self.type()
            if not isinstance(type, TensorType):
                self.fail(f"%{quote(label)} is a tuple; a program takes and gives tensors", token)
            found.append((label, type))
            if not lexer.accept(","):
                break
        lexer.expect(")")
        return tuple(found)

    def steps(self) -> tuple[Step, ...]:
        """Steps up to the closing brace, whose opening one has been read."""
        found: list[Step] = []
        while not self.lexer.accept("}"):
            found.append(self.step())
        return tuple(found)

    def step_block(self) -> tuple[Step, ...]:
        self.lexer.expect("{")
        steps: tuple[Step, ...] = self.nested(self.steps)
        return steps

    def step(self) -> Step:
        lexer = self.lexer
        if lexer.accept("launch"):
            return self.launch()
        if lexer.accept("repeat"):
            symbol, extent, token = self.loop_head()
            reverse = lexer.accept("reverse")
            outside = dict(self.symbols)
            self.declare(symbol.name, symbol, token)
            steps = self.step_block()
            self.symbols = outside
            return Repeat(symbol, extent, steps, reverse)
        if lexer.accept("loop"):
            first = self.step_block()
            lexer.expect("while")
            condition = self.place()
            return Loop(first, condition, self.step_block())
        if lexer.accept("branch"):
            condition = self.place()
            then = self.step_block()
            return Branch(condition, then, self.step_block() if lexer.accept("else") else ())
        if lexer.at("fetch") or lexer.at("spill") or lexer.at("free"):
            return self.transfer()
        self.fail(f"expected launch, repeat, loop, branch, fetch, spill or free, found {lexer.describe()}")

    def transfer(self) -> Step:
        lexer = self.lexer
        if lexer.accept("free"):
            return Free(lexer.integer("an address"))
        if lexer.accept("fetch"):
            source = self.place()
            lexer.expect("to")
            address = lexer.integer("an address")
            lexer.expect("bytes")
            return Fetch(source, address, lexer.integer("a number of bytes"))
        lexer.expect("spill")
        address = lexer.integer("an address")
        lexer.expect("to")
        target = self.place()
        lexer.expect("bytes")
        return Spill(address, target, lexer.integer("a number of bytes"))

    def launch(self) -> Launch:
        lexer = self.lexer
        token = lexer.token
        name = lexer.take("name", "a kernel such as @main")
        if name not in self.kernels:
            self.fail(f"no kernel @{quote(name)} stands before the program", token)
        sizes = self.index() if lexer.at("[") else ()
        places: list[Place] = []
        lexer.expect("(")
        while not lexer.at(")"):
            places.append(self.place())
            if not lexer.accept(","):
                break
        lexer.expect(")")
        return Launch(self.kernels[name], tuple(places), sizes, not lexer.accept("nobarrier"))

    def place(self) -> Place:
        lexer = self.lexer
        token = lexer.token
        space = lexer.take("word", "input, output, constant, workspace or scratchpad")
        if space in ("input", "output"):
            number = lexer.integer(f"the number of the {space}")
            return Place(space, number, self.size() if lexer.accept("at") else 0)
        if space not in ("constant", "workspace", "scratchpad"):
            self.fail(f"a place is an input, output, constant, workspace or scratchpad, found {space!r}", token)
        return Place(space, 0, self.size())


class _Shared(Op, frozen=True):
    """Stands for `!number` until its definition has been read."""

    number: int


_UNKNOWN_TYPE = TensorType(INDEX, (0,))

