"""Reads graphs from the text that `printer.format_graph` writes (grammar in `docs/ir.md`).

Every node's type is inferred again and must be the one written; attributes are checked against the op's fields; nodes
are taken as written (nothing is merged), so that parsing what was printed gives the same fingerprint. Nodes that no
result needs are checked and left out.

Guarantees: any text gives a graph or a ParseError with line and column; nesting and number size are limited, so that no
text exhausts the stack.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .dims import DimLike, bounds, dim_min, symbol
from .errors import CompileError, Loc, ParseError
from .graph import Constant, Graph, Node, Op, attribute_defaults, attribute_names, attribute_problem
from .lexer import Lexer, Token
from .ops.compute import Elementwise
from .ops.control import Const, Param
from .ops.table import OPS, SPELLINGS
from .printer import SPELLED_ELEMENTS, constants_of, quiet_nan_bits, quote, sidecar_path
from .types import DTYPES, DType, TensorType, TupleType, Type

MAX_NESTING = 64
Constants = Mapping[str, Constant]


def parse(text: str, constants: Constants | Graph | None = None, file: str = "<text>") -> Graph:
    """The graph that the text describes. `constants` holds those that the text names by digest: by digest, or as the
    graph that was printed.

    Each node's location is its line in `file`. Raises ParseError.
    """
    known = constants_of(constants) if isinstance(constants, Graph) else constants or {}
    parser = GraphParser(Lexer(text), known, file)
    graph = parser.graph()
    if parser.lexer.token.kind != "end":
        parser.fail(f"the graph ends before {parser.lexer.describe()}; one text holds one graph")
    return graph


def load_text(path: str | PathLike[str]) -> Graph:
    """The graph that `save_text` wrote: the text, and the file of constants beside it where there is one."""
    path = Path(path)
    sidecar = sidecar_path(path)
    constants = load_constants(sidecar) if sidecar.exists() else {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"{path}: byte {error.start} is not UTF-8; the file is no text of the IR") from None
    return parse(text, constants, str(path))


def load_constants(path: str | Path) -> dict[str, Constant]:
    """The constants of a sidecar file by digest; each is checked against its digest. CompileError where one differs."""
    found: dict[str, Constant] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                digest, _, dtype = key.partition(".")
                if dtype not in DTYPES:
                    raise CompileError(f"{path}: entry {key!r} does not name a constant")
                found[digest] = Constant(archive[key].view(DTYPES[dtype].numpy))
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError) as error:
        raise CompileError(f"{path}: not a readable file of constants: {error}", hint="write it again") from None
    for digest, constant in found.items():
        if constant.digest != digest:
            raise CompileError(f"{path}: constant {digest[:16]} has other content than its digest says; the file is "
                               "damaged", hint="write it again")
    return found


class GraphParser:
    """One text. Recursion follows the nesting of bodies, tuples and sizes, which `MAX_NESTING` limits."""

    def __init__(self, lexer: Lexer, constants: Constants, file: str) -> None:
        self.lexer = lexer
        self.constants = constants
        self.file = file
        self.symbols: dict[str, DimLike] = {}
        self.depth = 0

    def fail(self, message: str, at: Token | None = None, notes: tuple[str, ...] = (), hint: str = "") -> NoReturn:
        self.lexer.fail(message, at, notes, hint)
        raise AssertionError("fail returned")

    def nested(self, read: Callable[[], Any]) -> Any:
        """`read()` one level deeper."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            self.fail(f"nested deeper than {MAX_NESTING} levels")
        value = read()
        self.depth -= 1
        return value

    # --- graphs ---

    def graph(self) -> Graph:
        lexer = self.lexer
        lexer.expect("graph")
        name = lexer.take("name", "a graph name such as @main")
        if lexer.at("["):
            if self.depth:
                self.fail("a body declares no sizes; the outermost graph declares them all")
            self._declarations()
        nodes: dict[str, Node] = {}
        params = self._params(nodes)
        lexer.expect("->")
        result_names = self._result_names()
        lexer.expect("{")
        while not lexer.at("return"):
            self._statement(nodes)
        lexer.expect("return")
        results: list[Node] = []
        while lexer.token.kind == "value":
            results.append(self._operand(nodes))
            if not lexer.accept(","):
                break
        if len(results) != len(result_names):
            self.fail(f"graph @{quote(name)} returns {len(results)} values but names {len(result_names)} results")
        lexer.expect("}")
        return Graph(name, params, results, result_names)

    def _declarations(self) -> None:
        lexer = self.lexer
        for token in lexer.items("[", "]"):
            name = lexer.take("word", "the name of a size")
            lower, upper, multiple = 0, None, 1
            if lexer.accept(":"):
                lower = lexer.integer("a lower bound")
                lexer.expect("..")
                upper = lexer.integer("an upper bound") if lexer.token.kind == "int" else None
                multiple = lexer.integer("a divisor") if lexer.accept("%") else 1
            if name in self.symbols:
                self.fail(f"size {name} is declared twice", token)
            self.symbols[name] = self._guard(partial(symbol, name, lower, upper, multiple), token)

    def _params(self, nodes: dict[str, Node]) -> list[Node]:
        lexer = self.lexer
        params: list[Node] = []
        for token in lexer.items("(", ")"):
            label = lexer.take("value", "a parameter such as %x")
            lexer.expect(":")
            type = self.type()
            if not isinstance(type, TensorType):
                self.fail(f"parameter {label} is a tuple; parameters are tensors", token)
            if any(label == p.op.label for p in params if isinstance(p.op, Param)):
                self.fail(f"parameter %{quote(label)} occurs twice", token)
            node = Node(Param(label, type.dtype, type.shape), (), type, self._loc(token))
            nodes[_key(token)] = node
            params.append(node)
        return params

    def _result_names(self) -> list[str]:
        lexer = self.lexer
        names: list[str] = []
        lexer.expect("(")
        while lexer.token.kind in ("word", "string"):
            names.append(lexer.next().text)
            if not lexer.accept(","):
                break
        lexer.expect(")")
        return names

    def _statement(self, nodes: dict[str, Node]) -> None:
        lexer = self.lexer
        token = lexer.token
        lexer.take("value", "a node such as %0 or 'return'")
        name = _key(token)
        if name in nodes:
            self.fail(f"%{name} is defined twice", token)
        lexer.expect(":")
        declared = self.type()
        lexer.expect("=")
        spelled = lexer.token
        spelling = lexer.take("word", "the name of an op")
        if spelling not in SPELLINGS or spelling in ("param", "elementwise"):
            close = [s for s in SPELLINGS if s.startswith(spelling[:3])]
            self.fail(f"unknown op {spelling!r}", spelled, hint=f"close: {', '.join(close)}" if close else "")
        if spelling == "const":
            op: Op = Const(self._constant(declared))
            inputs: list[Node] = []
        else:
            inputs = self._operands(nodes)
            op = self._op(spelling, spelled)
        inferred = self._guard(lambda: op.infer(*(i.type for i in inputs)), spelled, inputs)
        if inferred != declared:
            self.fail(f"%{name} is written as {declared}, but {spelling} gives {inferred}", token)
        nodes[name] = Node(op, tuple(inputs), inferred, self._loc(token))

    def _operands(self, nodes: dict[str, Node]) -> list[Node]:
        found: list[Node] = []
        while self.lexer.token.kind == "value" and self.lexer.following.text != ":":
            found.append(self._operand(nodes))
            if not self.lexer.accept(","):
                break
        return found

    def _operand(self, nodes: dict[str, Node]) -> Node:
        token = self.lexer.token
        self.lexer.take("value", "an operand such as %x")
        name = _key(token)
        if name not in nodes:
            self.fail(f"%{name} is not defined before this line", token)
        return nodes[name]

    def _op(self, spelling: str, spelled: Token) -> Op:
        """The op with the attributes in braces that follow."""
        given = self.nested(self._attributes) if self.lexer.at("{") else {}
        op_class = SPELLINGS[spelling]
        if op_class is Elementwise:
            if given:
                self.fail(f"{spelling} takes no attributes, found {', '.join(given)}", spelled)
            return Elementwise(spelling)
        known = attribute_names(op_class)
        unknown = [name for name in given if name not in known]
        if unknown:
            self.fail(f"{spelling} has no attribute {unknown[0]!r}; it has {', '.join(known) or 'none'}", spelled)
        defaults = attribute_defaults(op_class)
        missing = [name for name in known if name not in given and name not in defaults]
        if missing:
            self.fail(f"{spelling} lacks attribute {', '.join(missing)}", spelled)
        op = op_class(**given)
        problem = attribute_problem(op)
        if problem:
            self.fail(problem, spelled)
        return op

    def _attributes(self) -> dict[str, Any]:
        lexer = self.lexer
        given: dict[str, Any] = {}
        for token in lexer.items("{", "}"):
            name = lexer.take("word", "an attribute's name")
            if name in given:
                self.fail(f"attribute {name} is given twice", token)
            lexer.expect("=")
            given[name] = self.nested(self.value)
        return given

    def _guard(self, make: Callable[[], Any], token: Token, inputs: list[Node] | None = None) -> Any:
        """`make()`, with what it rejects reported at the token."""
        try:
            return make()
        except CompileError as error:
            notes = error.notes or tuple(f"operand {i}: {x.type}   {x.op.spelling}" for i, x in enumerate(inputs or ()))
            self.fail(error.message, token, notes, error.hint)
        except (TypeError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
            self.fail(f"the op does not accept these attributes and operands: {error}", token)

    def _loc(self, token: Token) -> Loc:
        line, _ = self.lexer.place(token.start)
        return Loc(self.file, line)

    # --- types and sizes ---

    def type(self) -> Type:
        lexer = self.lexer
        if lexer.at("("):
            return TupleType(self.nested(self._types))
        token = lexer.token
        name = lexer.take("word", "a type such as f32[2, 3]")
        if name not in DTYPES:
            self.fail(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}", token)
        return self._tensor(DTYPES[name])

    def _types(self) -> tuple[Type, ...]:
        return tuple(self.type() for _ in self.lexer.items("(", ")"))

    def _tensor(self, dtype: DType) -> TensorType:
        shape: list[DimLike] = []
        for token in self.lexer.items("[", "]"):
            shape.append(self.size())
            if bounds(shape[-1])[1] < 0:
                self.fail(f"a size is negative: {shape[-1]}", token)
        return TensorType(dtype, tuple(shape))

    def size(self) -> DimLike:
        """A sum of products; the first factor may have been read as a value already (`value`)."""
        return self._sum(self._product(self._factor()))

    def _sum(self, left: DimLike) -> DimLike:
        while self.lexer.at("+") or self.lexer.at("-"):
            token = self.lexer.next()
            right = self._product(self._factor())
            left = self._arithmetic(token, left, right)
        return left

    def _product(self, left: DimLike) -> DimLike:
        while self.lexer.at("*") or self.lexer.at("//") or self.lexer.at("%"):
            token = self.lexer.next()
            left = self._arithmetic(token, left, self._factor())
        return left

    def _arithmetic(self, token: Token, left: DimLike, right: DimLike) -> DimLike:
        def compute() -> DimLike:
            match token.text:
                case "+":
                    return left + right
                case "-":
                    return left - right
                case "*":
                    return left * right
                case "//":
                    return _checked(left // right if not _zero(right) else None)
                case _:
                    return _checked(left % right if not _zero(right) else None)
        value: DimLike = self._guard(compute, token)
        if isinstance(value, int) and value.bit_length() > 256:
            self.fail("a size beyond 256 bits is not read", token)
        return value

    def _factor(self) -> DimLike:
        lexer = self.lexer
        token = lexer.token
        if lexer.accept("-"):
            negated: DimLike = -self.nested(self._factor)
            return negated
        if lexer.accept("("):
            inside: DimLike = self.nested(self.size)
            lexer.expect(")")
            return inside
        if token.kind == "int":
            return int(lexer.next().text)
        if token.kind == "word" and token.text == "min" and lexer.following.text == "(":
            lexer.next()
            lexer.expect("(")
            left = self.nested(self.size)
            lexer.expect(",")
            right = self.nested(self.size)
            lexer.expect(")")
            least: DimLike = self._guard(lambda: dim_min(left, right), token)
            return least
        if token.kind == "word" and token.text in self.symbols:
            return self.symbols[lexer.next().text]
        if token.kind == "word":
            declared = ", ".join(self.symbols) or "none"
            self.fail(f"unknown size {token.text!r}; declared are {declared}",
                      hint="declare it in the head of the outermost graph: graph @name[B: 1..64](...)")
        self.fail(f"expected a size, found {lexer.describe()}")

    # --- attribute values ---

    def value(self) -> Any:
        lexer = self.lexer
        token = lexer.token
        if token.kind == "string":
            return lexer.next().text
        if token.kind in ("float", "keyword"):
            return self._keyword() if token.kind == "keyword" else float(lexer.next().text)
        if lexer.at("-") and (lexer.following.kind == "float" or lexer.following.text == "inf"):
            lexer.next()
            return -self.value()
        if lexer.at("("):
            return self._parenthesized()
        if token.kind == "word" and token.text not in self.symbols and token.text != "min":
            return self._word()
        if token.kind == "word" and token.text == "min" and lexer.following.text != "(" and "min" not in self.symbols:
            return lexer.next().text
        if token.kind == "word" and self._begins_constructor(token.text, lexer.following):
            return self._word()
        return self.size()

    def _begins_constructor(self, word: str, following: Token) -> bool:
        """Whether a word that is also a symbol's name begins a graph, constant, op or type list here."""
        return (word == "graph" and following.kind == "name" or word in ("const", "op") and following.kind == "word"
                or word == "types" and following.text == "(" or word in DTYPES and following.text == "[")

    def _parenthesized(self) -> Any:
        """A tuple, or a size that begins with a group."""
        lexer = self.lexer
        lexer.expect("(")
        items: list[Any] = []
        comma = True
        while not lexer.at(")"):
            items.append(self.nested(self.value))
            comma = lexer.accept(",")
            if not comma:
                break
        lexer.expect(")")
        if comma or len(items) != 1:
            return tuple(items)
        if isinstance(items[0], bool | float | str | tuple) or items[0] is None:
            self.fail("a group in parentheses must be a size; a tuple of one item is written (item,)")
        return self._sum(self._product(items[0]))

    def _keyword(self) -> Any:
        token = self.lexer.next()
        value = _KEYWORD_VALUES.get(token.text, DTYPES.get(token.text))
        if value is None and token.text != "none":
            self.fail(f"\\{token.text} is no keyword", token)
        return value

    def _word(self) -> Any:
        lexer = self.lexer
        token = lexer.token
        match token.text:
            case "graph" if lexer.following.kind == "name":
                return self.nested(self.graph)
            case "const" if lexer.following.kind == "word":
                lexer.next()
                return self._constant(self.type())
            case "op" if lexer.following.kind == "word":
                lexer.next()
                return self._attribute_op()
            case "types" if lexer.following.text == "(":
                lexer.next()
                return TupleType(self.nested(self._types))
            case "nan" if lexer.following.text == "(":
                return self._payload_nan()
        lexer.next()
        if token.text in DTYPES:
            dtype = DTYPES[token.text]
            return self._tensor(dtype) if lexer.at("[") else dtype
        return _KEYWORD_VALUES.get(token.text, token.text)

    def _attribute_op(self) -> Op:
        token = self.lexer.token
        spelling = self.lexer.take("word", "the name of an op")
        if spelling not in SPELLINGS or spelling in ("const", "elementwise"):
            self.fail(f"unknown op {spelling!r}; known are {', '.join(OPS)}", token)
        return self._op(spelling, token)

    def _payload_nan(self) -> float:
        bits = self._nan_bits(64)
        value = float(np.array(bits, dtype=np.uint64).view(np.float64))
        if value == value:
            self.fail("these bits are no NaN")
        return value

    def _nan_bits(self, width: int) -> int:
        lexer = self.lexer
        lexer.expect("nan")
        lexer.expect("(")
        token = lexer.token
        bits = int(lexer.take("hex", "the bits of a NaN such as 0x7fc00001"), 16)
        if bits.bit_length() > width:
            self.fail(f"{bits:#x} does not fit {width} bits", token)
        lexer.expect(")")
        return bits

    # --- constants ---

    def _constant(self, type: Type) -> Constant:
        token = self.lexer.token
        if not isinstance(type, TensorType) or not type.is_static or type.dtype.kind == "x":
            self.fail(f"a constant must be a tensor of known sizes, not {type}", token)
        if token.kind == "digest":
            return self._stored(self.lexer.next(), type)
        count = 1
        for size in type.static_shape:
            count *= size
        if count > SPELLED_ELEMENTS:
            self.fail(f"a constant of {count} elements is named by digest; up to {SPELLED_ELEMENTS} are spelled", token)
        elements = self._elements(type) if type.rank else [self._element(type.dtype)]
        if len(elements) != count:
            self.fail(f"{type} has {count} elements, {len(elements)} are given", token)
        packed = np.frombuffer(b"".join(elements), dtype=type.dtype.numpy)
        array: Constant = self._guard(lambda: Constant(packed.reshape(type.static_shape)), token)
        return array

    def _elements(self, type: TensorType) -> list[bytes]:
        return [self._element(type.dtype) for _ in self.lexer.items("[", "]")]

    def _element(self, dtype: DType) -> bytes:
        """The bytes of one element; a number that the dtype cannot hold is an error, not a wrap."""
        lexer = self.lexer
        token = lexer.token
        if dtype.is_bool:
            if not (lexer.at("true") or lexer.at("false")):
                self.fail(f"expected true or false, found {lexer.describe()}")
            return np.array(lexer.next().text == "true").tobytes()
        negative = lexer.accept("-")
        if not dtype.is_float:
            value = int(lexer.take("int", f"an integer for {dtype}")) * (-1 if negative else 1)
            lowest, highest = (0, 255) if dtype.is_stored else (dtype.lowest, dtype.highest)
            if not lowest <= value <= highest:
                self.fail(f"{value} is outside {dtype}", token)
            if dtype.is_stored:
                return bytes((value,))
            return np.array(value, dtype=dtype.numpy).tobytes()
        if lexer.at("nan") and not negative:
            return self._nan_element(dtype)
        if lexer.accept("inf"):
            number = float("inf")
        elif lexer.token.kind in ("float", "int"):
            number = float(lexer.next().text)
        else:
            self.fail(f"expected a number for {dtype}, found {lexer.describe()}")
        with np.errstate(all="ignore"):
            return np.array(-number if negative else number).astype(dtype.numpy).tobytes()

    def _nan_element(self, dtype: DType) -> bytes:
        if self.lexer.following.text != "(":
            self.lexer.next()
            return quiet_nan_bits(dtype).to_bytes(dtype.bytes, "little")
        token = self.lexer.token
        raw = self._nan_bits(dtype.bits).to_bytes(dtype.bytes, "little")
        if not np.isnan(np.frombuffer(raw, dtype=dtype.numpy)[0]):
            self.fail("these bits are no NaN", token)
        return raw

    def _stored(self, token: Token, type: TensorType) -> Constant:
        found = [c for digest, c in self.constants.items() if digest.startswith(token.text)]
        if len(found) != 1:
            state = "names several of the constants given" if found else "is not among the constants given"
            self.fail(f"constant #{token.text} {state}: text names one of more than {SPELLED_ELEMENTS} elements by its digest", token,
                      hint="tw.parse(text, graph) takes constants from the graph that was printed; tw.save_text(graph, path) writes them "
                           "beside the text, and tw.load_text(path) reads both")
        stored = TensorType(found[0].dtype, tuple(int(n) for n in found[0].array.shape))
        if stored != type:
            self.fail(f"constant #{token.text} is {stored}, written as {type}", token)
        return found[0]


_KEYWORD_VALUES: dict[str, Any] = {"none": None, "true": True, "false": False, "inf": float("inf"),
                                   "nan": float("nan")}


def _key(token: Token) -> str:
    """A value's name as its graph knows it: `%"0"` is a parameter's label, `%0` a node's number."""
    return quote(token.text) if token.quoted else token.text


def _zero(size: DimLike) -> bool:
    return isinstance(size, int) and size == 0


def _checked(quotient: DimLike | None) -> DimLike:
    if quotient is None:
        raise CompileError("a size is divided by 0; divisors are positive")
    return quotient
