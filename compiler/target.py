"""What lowering and passes may know of a target: a handful of numbers, no names of backends."""

from __future__ import annotations

from dataclasses import dataclass

from .ir.types import DType


@dataclass(frozen=True, slots=True)
class Caps:
    """Capabilities of a target. `vector_bits`: width of a vector register; `vector_registers`: how many;
    cache sizes in bytes."""

    vector_bits: int = 256
    vector_registers: int = 16
    l1_bytes: int = 32768
    l2_bytes: int = 524288

    def lanes(self, dtype: DType) -> int:
        """Elements of a dtype in one vector register."""
        return max(1, self.vector_bits // dtype.bits)
