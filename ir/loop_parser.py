"""Kernels and programs from their text, whose grammar stands at the head of `loop_text.py`.

Guarantees: parsing any text gives a value or a ParseError with line and column; deep expressions and nests exhaust no stack. Whether a
kernel keeps the rules is for `verify_kernel` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from .dims import DimLike, Symbol, size_of
from .graph import Constant, Node, Op
from .lexer import Lexer, Token
from .loop import (
    ACCESS,
    COMBINES,
    GPU_KINDS,
    GPU_SPACES,
    MATMULS,
    PIPELINE,
    SPACES,
    Alloc,
    Buffer,
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
    loop_variable,
)
from .ops.compute import Bitcast, Cast, Elementwise
from .ops.scalar import SCALARS
from .parser import GraphParser
from .printer import quote
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Scratchpad, Spill, Step
from .types import DTYPES, INDEX, DType, TensorType

COUNTED = {"vector": "lanes", PIPELINE: "stages", "block": "blocks"}  # what a number in brackets behind a kind of loops is


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
        for token in lexer.items("(", ")"):
            label = lexer.take("value", "a buffer such as %x")
            lexer.expect(":")
            mark = lexer.token
            access = lexer.take("word", "in, out or inout")
            if access not in ACCESS:
                self.fail(f"a parameter's access is in, out or inout, found {access!r}", mark)
            buffers.append(self.buffer(label, access, token))
        return Kernel(name, tuple(buffers), symbols, self.nested(self.block))

    def symbol_list(self) -> tuple[Symbol, ...]:
        found: list[Symbol] = []
        for token in self.lexer.items("[", "]") if self.lexer.at("[") else ():
            name = self.lexer.take("word", "the name of a size")
            found.append(self.declare(name, self.bounds(name, Symbol(name), token), token))
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
                                                  "collect": self.collect, "matmul_codes": self.matmul_codes,
                                                  **{word: partial(self.matmul_tile, *kind) for word, kind in MATMULS.items()},
                                                  "copy_async": lambda: self.copy(CopyAsync),
                                                  "copy_bulk": lambda: self.copy(CopyBulk), "commit": Commit, "wait": self.wait}
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
            if kind not in ("parallel", "vector", "unrolled", *GPU_KINDS, PIPELINE):
                self.fail(f"a loop is parallel, vector(lanes), unrolled, {', '.join(GPU_KINDS)}, block(blocks) or pipeline(stages), "
                          f"found {kind!r}")
            lexer.next()
        if kind in ("vector", PIPELINE) or kind == "block" and lexer.token.text == "(":
            lexer.expect("(")
            lanes = lexer.integer(f"the number of {COUNTED[kind]}")
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

    def matmul_tile(self, grouped: bool = False, tf32: str = "") -> MatmulTile:
        name, _ = self.buffer_reference()
        self.lexer.expect(",")
        left = self.element()
        self.lexer.expect(",")
        right = self.element()
        self.lexer.expect(",")
        return MatmulTile(name, *left, *right, self.lexer.integer("the depth"), grouped, tf32=tf32)

    def matmul_codes(self) -> MatmulTile:
        numbers: list[int] = []
        product = self.matmul_tile()
        for what in ("bits of a code", "the zero of codes"):
            self.lexer.expect(",")
            numbers.append(self.lexer.integer(what))
        return replace(product, bits=numbers[0], zero=numbers[1])

    def copy(self, kind: type[CopyAsync] | type[CopyBulk]) -> CopyAsync | CopyBulk:
        target = self.element()
        self.lexer.expect("=")
        source = self.element()
        self.lexer.expect(",")
        made = kind(*target, *source, self.lexer.integer("the number of elements"))
        if isinstance(made, CopyAsync) and self.lexer.accept("given"):
            condition, = self.expressions(1)
            return replace(made, condition=condition)
        return made

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
        return tuple(self.size() for _ in self.lexer.items("[", "]"))

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
        for token in lexer.items("(", ")"):
            label = lexer.take("value", "a name such as %x")
            lexer.expect(":")
            type = self.type()
            if not isinstance(type, TensorType):
                self.fail(f"%{quote(label)} is a tuple; a program takes and gives tensors", token)
            found.append((label, type))
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
        if lexer.at("fetch") or lexer.at("reserve") or lexer.at("spill") or lexer.at("free"):
            return self.transfer()
        self.fail(f"expected launch, repeat, loop, branch, fetch, reserve, spill or free, found {lexer.describe()}")

    def transfer(self) -> Step:
        lexer = self.lexer
        if lexer.accept("free"):
            return Free(lexer.integer("an address"))
        if lexer.accept("reserve"):
            address = lexer.integer("an address")
            lexer.expect("bytes")
            return Reserve(address, lexer.integer("a number of bytes"))
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
        places = tuple(self.place() for _ in lexer.items("(", ")"))
        return Launch(self.kernels[name], places, sizes, not lexer.accept("nobarrier"))

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

