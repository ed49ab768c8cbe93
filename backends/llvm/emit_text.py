"""LLVM IR as text: values, blocks, functions and a module.

What it does: appends one line an instruction, in a plain list of strings; llvmlite.ir would cost ten times as much, and whole models
are emitted at each compile. Pure instructions are numbered by their text within a block, so the same index arithmetic or
load of an unrolled body is emitted once.
Assumes: callers write well-typed text; LLVM's verifier (compile.py) is what finds a mistake.
Guarantees: the text depends on the calls alone, so the same program gives the same bytes. Blocks are append only: what is
appended to a block stands before its terminator even when the block was closed before, which is how loop-invariant
arithmetic reaches an outer block.

How a value of each dtype is held: bool i1 (in memory i8), integers iN, float16 and bfloat16 as their bits in i16, float32
float, float64 double, index i64. A varying value is a vector of those.
"""

from __future__ import annotations

import struct
from functools import cache

from msgspec import Struct

from tilewright.backends.llvm.lanes import MathOptions
from tilewright.ir.errors import InternalError
from tilewright.ir.types import DTYPES, DType

SCALAR_TYPES = {name: dtype.llvm for name, dtype in DTYPES.items()} | {"bool": "i1", "f16": "i16", "bf16": "i16"}
MEMORY_TYPES = SCALAR_TYPES | {"bool": "i8"}
# !0: on loads of what does not change; !1: on branches to what is rarely needed; !2: on stores past the caches
METADATA = '!0 = !{}\n!1 = !{!"branch_weights", i32 1, i32 99}\n!2 = !{i32 1}\n'


class Value(Struct, frozen=True, eq=False):
    """An LLVM operand: its text, dtype, and number of lanes (0: the same for all lanes). `least` and `greatest`: what a float is known
    to lie between, where it is known to be a number."""

    text: str
    dtype: DType
    lanes: int = 0
    least: float | None = None
    greatest: float | None = None

    @property
    def is_constant(self) -> bool:
        return not self.text.startswith("%")

    @property
    def type(self) -> str:
        return shaped(SCALAR_TYPES[self.dtype.name], self.lanes)


@cache
def shaped(element: str, lanes: int) -> str:
    """The type of `lanes` elements; 0 lanes is a scalar."""
    return f"<{lanes} x {element}>" if lanes else element


@cache
def mangled(element: str, lanes: int) -> str:
    """How intrinsics spell a type: f32, v8f32, i64, p0."""
    plain = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(element, element)
    return f"v{lanes}{plain}" if lanes else plain


def float_text(value: float, dtype: DType) -> str:
    """A float constant in LLVM's text: the bits of the double that equals it; the 16-bit floats as an integer."""
    rounded = dtype.numpy.type(value)
    if dtype.bits == 16:
        return str(int.from_bytes(rounded.tobytes(), "little"))
    return "0x" + struct.pack(">d", float(rounded)).hex().upper()


def literal_text(value: int | float | bool, dtype: DType) -> str:
    """A constant of the dtype; integers wrap to its width."""
    if dtype.is_bool:
        return "true" if value else "false"
    if dtype.is_float:
        return float_text(float(value), dtype)
    return str(int(value) & ((1 << dtype.bits) - 1)) if not dtype.is_signed else str(_wrapped(int(value), dtype.bits))


def _wrapped(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def splat_text(value: str, element: str, lanes: int) -> str:
    """A constant in every lane."""
    return f"splat ({element} {value})" if lanes else value


def mask_text(active: int, lanes: int) -> str:
    """The constant mask whose first `active` lanes are set."""
    return "<" + ", ".join("i1 true" if lane < active else "i1 false" for lane in range(lanes)) + ">"


class Block:
    """A basic block: its lines, what pure instructions are already there, and its terminator."""

    __slots__ = ("known", "label", "lines", "terminator")

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: list[str] = []
        self.known: dict[str, str] = {}
        self.terminator = ""


class Module:
    """The text of a module: declarations and helper functions by name, each once, then functions in order. `can_stream`: whether
    stores past the caches are instructions, which a fence must follow. `hides_masks`: LLVM must not know the masks that sizes of
    the run decide, see `store_contiguous`."""

    def __init__(self, options: MathOptions, vector_bits: int = 256, can_stream: bool = False, hides_masks: bool = False) -> None:
        self.options = options
        self.vector_bits = vector_bits
        self.can_stream = can_stream
        self.hides_masks = hides_masks
        self.declarations: dict[str, str] = {}
        self.helpers: dict[str, str] = {}
        self.parts: list[str] = []
        self.sites: dict[str, int] = {}

    def declare(self, name: str, result: str, arguments: str) -> None:
        if name not in self.declarations:
            self.declarations[name] = f"declare {result} @{name}({arguments})"

    def site(self, message: str) -> int:
        """The number under which the module's table holds this message."""
        return self.sites.setdefault(message, len(self.sites))

    def text(self, triple: str) -> str:
        return "\n".join([f'target triple = "{triple}"', *self.declarations.values(), *self.helpers.values(),
                          *self.parts, METADATA])


class Function:
    """A function being written, with the block at whose end instructions go."""

    def __init__(self, module: Module, head: str) -> None:
        self.module = module
        self.head = head
        self.stack_slots: list[str] = []
        self.blocks: list[Block] = []
        self.count = 0
        self.entry = self.start(self.new_block("entry"))

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    # ---- blocks ----

    def new_block(self, hint: str) -> Block:
        self.count += 1
        return Block(f"{hint}{self.count}")

    def start(self, block: Block) -> Block:
        """Places the block behind the others; instructions go there from now on."""
        self.blocks.append(block)
        self.block = block
        return block

    def jump(self, target: Block) -> None:
        self.end(f"br label %{target.label}")

    def branch(self, condition: str, then: Block, otherwise: Block) -> None:
        self.end(f"br i1 {condition}, label %{then.label}, label %{otherwise.label}")

    def end(self, terminator: str) -> None:
        if self.block.terminator:
            raise InternalError(f"llvm backend: block {self.block.label} ends twice")
        self.block.terminator = terminator

    # ---- instructions ----

    def pure(self, text: str, block: Block | None = None) -> str:
        """The result of an instruction that depends on its operands alone; once in a block."""
        block = block or self.block
        known = block.known.get(text)
        if known is None:
            self.count += 1
            known = block.known[text] = f"%v{self.count}"
            block.lines.append(f"{known} = {text}")
        return known

    def value(self, text: str) -> str:
        """The result of an instruction that reads memory or has an effect."""
        self.count += 1
        name = f"%v{self.count}"
        self.block.lines.append(f"{name} = {text}")
        return name

    def effect(self, text: str) -> None:
        self.block.lines.append(text)

    def call_pure(self, intrinsic: str, result: str, *operands: tuple[str, str]) -> str:
        """Calls llvm.<intrinsic>, or another function without effects; operands are (type, text)."""
        self.module.declare(intrinsic, result, ", ".join(kind for kind, _ in operands))
        return self.pure(f"call {result} @{intrinsic}({', '.join(f'{kind} {text}' for kind, text in operands)})")

    def stack_slot(self, kind: str, hint: str, alignment: int) -> str:
        """Memory of the whole call."""
        self.count += 1
        name = f"%{hint}.{self.count}"
        self.stack_slots.append(f"{name} = alloca {kind}, align {alignment}")
        return name

    def phi(self, kind: str) -> tuple[str, int]:
        """A phi at the end of the current block, which is still empty; `complete_phi` gives what comes in."""
        name = self.name()
        self.block.lines.append(f"{name} = phi {kind} ")
        return name, len(self.block.lines) - 1

    @staticmethod
    def complete_phi(block: Block, line: int, *incoming: tuple[str, Block]) -> None:
        block.lines[line] += ", ".join(f"[ {value}, %{source.label} ]" for value, source in incoming)

    def finish(self) -> str:
        """The function's text, also appended to the module."""
        lines = [f"{self.head} {{"]
        for position, block in enumerate(self.blocks):
            if not block.terminator:
                raise InternalError(f"llvm backend: block {block.label} of {self.head} has no end")
            lines.append(f"{block.label}:")
            if position == 0:
                lines.extend(self.stack_slots)
            lines.extend(block.lines)
            lines.append(block.terminator)
        lines.append("}")
        text = "\n".join(lines)
        self.module.parts.append(text)
        return text
