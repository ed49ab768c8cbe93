"""What a backend is: capabilities that schedules are chosen from, and programs to code.

The compiler knows no backend by name: lowering reads `Caps`, and the driver hands the `Program` to `Backend.compile`. Backends import
`ir` and `runtime` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tilewright.ir.program import Program
from tilewright.ir.types import DType


@dataclass(frozen=True)
class Caps:
    """What a target offers. Sizes are in bytes; `level1_bytes` and `level2_bytes` are of one core, `level3_bytes` is shared (0: none)."""

    vector_bits: int
    vector_registers: int
    has_fma: bool
    has_masked_memory: bool                           # loads and stores of 32- and 64-bit lanes under a mask are instructions
    has_mask_registers: bool
    has_vnni: bool                                    # 8-bit dot products into int32
    has_bf16: bool                                    # dot products of bfloat16 pairs into float32
    level1_bytes: int
    level2_bytes: int
    level3_bytes: int

    def lanes(self, dtype: DType) -> int:
        """Elements of a vector register. float16 and bfloat16 compute in float32, so they count as that."""
        bits = 32 if dtype.is_float and dtype.bits == 16 else dtype.bits
        return max(1, self.vector_bits // bits)


class Compiled(Protocol):
    """A program as code that the runtime loads (`Executable.from_object`) and the linker takes."""

    @property
    def object_code(self) -> bytes: ...

    @property
    def symbol(self) -> str:
        """The name of its `tw_model` constant."""


class Backend(Protocol):
    """One way to turn programs into code."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Caps: ...

    def compile(self, program: Program, *, name_prefix: str = "") -> Compiled:
        """Code for the program. With a prefix: an object for a library with public functions of that name."""
