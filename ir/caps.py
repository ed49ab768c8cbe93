"""What a target offers, as far as passes and lowering may know it: a handful of numbers, no names of backends.

The one value that backends hand up and the compiler chooses schedules from.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from .types import F32, DType


class TunedTile(Struct, frozen=True):
    """A register tile that was measured to be faster than the one that a model chooses, for contractions whose left operand
    has so many `rows` (of a convolution, positions of its input) and whose result has so many `columns`, in `dtype`."""

    rows: int
    columns: int
    dtype: str
    tile_rows: int
    tile_columns: int


class Caps(Struct, frozen=True):
    """What a target offers. Sizes are in bytes; `level1_bytes` and `level2_bytes` are of one core, `level3_bytes` is shared (0: none).
    `tuned`: what measurement adds to the models."""

    vector_bits: int = 256
    vector_registers: int = 16
    has_fma: bool = True
    has_masked_memory: bool = True      # loads and stores of 32- and 64-bit lanes under a mask are instructions
    has_mask_registers: bool = False
    has_pairs: bool = False             # two 16-bit integers each multiplied and added into int32 is an instruction (pmaddwd)
    has_byte_pairs: bool = False        # two bytes each multiplied and added within 16 bits is an instruction (pmaddubsw)
    has_quads: bool = False             # four bytes each multiplied and added into int32 is an instruction (vpdpbusd)
    has_bf16: bool = False              # two bfloat16 each multiplied and added into float32 is an instruction (vdpbf16ps)
    level1_bytes: int = 32768
    level2_bytes: int = 524288
    level3_bytes: int = 0
    tuned: tuple[TunedTile, ...] = ()
    # of a GPU, which is what has threads in warps
    threads_per_warp: int = 0
    threads_per_block: int = 0          # at most
    multiprocessors: int = 0            # that run blocks at the same time
    shared_bytes: int = 0               # of a block, at most
    registers_per_thread: int = 0
    matrix_units: tuple[str, ...] = ()  # dtypes of operands that matrix instructions take; tf32: f32, rounded to that
    has_group_products: bool = False    # of matrices of 16 bits and bytes in shared memory, by four warps, as one instruction (wgmma)

    @property
    def is_gpu(self) -> bool:
        return self.threads_per_warp > 0

    def with_tf32(self) -> Caps:
        """What it offers where operands of float32 may be rounded to tf32: float32 is one of the dtypes of its matrix units then, if it has
        any for that."""
        rounds = "tf32" in self.matrix_units and str(F32) not in self.matrix_units
        return replace(self, matrix_units=(*self.matrix_units, str(F32))) if rounds else self

    def lanes(self, dtype: DType) -> int:
        """Elements of a vector register. float16 and bfloat16 compute in float32, so they count as that."""
        bits = 32 if dtype.is_float and dtype.bits == 16 else dtype.bits
        return max(1, self.vector_bits // bits)
