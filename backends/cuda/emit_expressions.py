"""Names, sizes and scalar expressions of a kernel of the loop IR as CUDA C++, with what is known of its buffers at a place."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.cuda.emit_launch import interleaved_fragments, swizzled_buffers
from tilewright.backends.cuda.emit_matrix import RESERVED
from tilewright.backends.cuda.emit_names import Names
from tilewright.backends.cuda.emit_scalars import (
    ROUNDING,
    emit_bitcast,
    emit_cast,
    emit_function,
    emit_literal,
    loaded,
    memory_type,
    value_type,
)
from tilewright.backends.cuda.emit_sizes import ATOM, Text, emit_size
from tilewright.backends.cuda.emit_vectors import Place
from tilewright.ir.dims import DimLike, Symbol
from tilewright.ir.errors import InternalError
from tilewright.ir.graph import Node
from tilewright.ir.loop import Buffer, IndexValue, Kernel, Literal, Load, Local, expression_nodes
from tilewright.ir.loop_gpu import PIECE_BYTES
from tilewright.ir.ops.compute import Bitcast, Cast, Elementwise
from tilewright.ir.types import INDEX, U16

LONGEST = 100  # characters of an expression within another


class Expressions:
    """Lines of a kernel's text, and the expressions in them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lines: list[str] = []
        self.indent = 1
        self.names = Names(RESERVED)
        self.buffers: dict[str, Buffer] = {b.name: b for b in kernel.buffers}
        self.private: set[str] = set()  # registers of the threads of a block
        self.wide = {s.name for s in kernel.symbols}
        # lets whose bounds hold behind a check of them alone, as they were before they became narrow: what checks are about
        self.unchecked: dict[str, str] = {}
        self.is_checking = False
        self.count = 0
        self.pair_distance = 1  # between the registers of a pair
        self.in_pairs, self.pair = False, ""  # whether a lane loop counts pairs of elements, and the variable of the loop over one
        self.register = ""  # of a lane, which counts those of fragments
        self.vectors: dict[Place, str] = {}  # elements that a vector loop has in arrays of the thread
        self.swizzled, self.interleaved = swizzled_buffers(kernel), interleaved_fragments(kernel)
        for buffer in kernel.buffers:
            self.buffer_name(buffer.name)
        for symbol in kernel.symbols:
            self.variable(symbol.name)

    def emit(self, line: str) -> None:
        self.lines.append("  " * self.indent + line)

    # --- names ---

    def declare(self, name: str, is_wide: bool) -> None:
        """Notes the type of a variable of a size; another block may have had one of that name."""
        (self.wide.add if is_wide else self.wide.discard)(name)

    def variable(self, name: str) -> str:
        return self.names.spelled("variable", name)

    def buffer_name(self, name: str) -> str:
        return self.names.spelled("buffer", name)

    def fresh(self, stem: str = "v") -> str:
        self.count += 1
        return self.names.spelled("part", f"{stem}{'' if stem == 'v' else '_'}{self.count}")

    def parameter(self, buffer: Buffer) -> str:
        const = "const " if buffer.space == "in" else ""
        return f"{const}{memory_type(buffer.dtype)} *__restrict__ {self.buffer_name(buffer.name)}"

    # --- sizes ---

    def symbol(self, symbol: Symbol) -> Text:
        return self.named(symbol.name)

    def named(self, name: str) -> Text:
        """A loop variable, let or symbol."""
        if self.is_checking and name in self.unchecked:
            return Text(self.unchecked[name], ATOM, True)
        return Text(self.variable(name), ATOM, name in self.wide)

    def size(self, size: DimLike) -> Text:
        return emit_size(size, self.symbol)

    def position(self, buffer: Buffer, index: tuple[DimLike, ...]) -> str:
        """The place of an element in C order."""
        shape = buffer.shape
        if buffer.name in self.private:
            index, shape = index[1:], shape[1:]
        if len(index) == len(shape):
            place: DimLike = 0
            for i, n in zip(index, shape):
                place = place * n + i
        else:
            place, = index
        return self.size(place).text

    def element(self, name: str, index: tuple[DimLike, ...]) -> str:
        buffer = self.buffers[name]
        if (name, index) in self.vectors:
            return self.vectors[name, index]
        if buffer.space == "fragment":
            times = f"{self.pair_distance} * " if self.pair_distance > 1 else ""
            within_pair = f" + {times}{self.variable(self.pair)}" if self.in_pairs else ""
            return f"{self.buffer_name(name)}[{self.register}{within_pair}]"
        if self.is_scalar(buffer):
            return self.buffer_name(name)
        if name in self.swizzled:
            row, column = (self.size(i).text for i in index)
            return f"{self.buffer_name(name)}[tw_swizzled({row}, {column}, {PIECE_BYTES // buffer.dtype.bytes})]"
        return f"{self.buffer_name(name)}[{self.position(buffer, index)}]"

    def is_scalar(self, buffer: Buffer) -> bool:
        """Whether a buffer is one register, a plain variable in C++."""
        return buffer.space == "register" and not buffer.shape[1 if buffer.name in self.private else 0:]

    # --- expressions ---

    def expressions(self, roots: Sequence[Node]) -> list[Text]:
        """The values of expressions; what is used more than once, or is long, gets a name before."""
        uses: dict[Node, int] = {}
        order: dict[Node, None] = {}
        for root in roots:
            for node in expression_nodes(root):
                if node not in order:
                    order[node] = None
                    for operand in node.inputs:
                        uses[operand] = uses.get(operand, 0) + 1
        texts: dict[Node, Text] = {}
        for node in order:
            text = self.expression(node, [texts[i] for i in node.inputs])
            shared = uses.get(node, 0) > 1 and node.inputs
            if shared or uses.get(node, 0) and len(text.text) > LONGEST:
                name = self.fresh()
                kind = ("long long" if text.wide else "int") if node.dtype == INDEX else value_type(node.dtype)
                self.emit(f"const {kind} {name} = {text.text};")
                text = Text(name, ATOM, text.wide)
            texts[node] = text
        return [texts[root] for root in roots]

    def expression(self, node: Node, operands: list[Text]) -> Text:
        match node.op:
            case Literal(value=value, dtype=dtype):
                return emit_literal(value, dtype)
            case Local(variable=name):
                return self.named(name)
            case IndexValue(size=size):
                return self.size(size)
            case Load(buffer=name, index=index, dtype=dtype):
                return loaded(self.element(name, index), dtype)
            case Elementwise(function=function):
                return emit_function(function, node.inputs[-1].dtype, operands)
            case Cast(dtype=dtype):
                return emit_cast(operands[0], node.inputs[0].dtype, dtype)
            case Bitcast(dtype=dtype):
                read = node.inputs[0].op
                if isinstance(read, Load) and read.dtype in ROUNDING:  # as they are: a float between would change a NaN
                    return emit_bitcast(Text(f"{self.element(read.buffer, read.index)}.bits", ATOM), U16, dtype)
                return emit_bitcast(operands[0], node.inputs[0].dtype, dtype)
        raise InternalError(f"cuda: {node.op.spelling} is no part of a kernel's expressions")
