"""How a kernel is launched: its grid, and shared memory that a launch has to ask for."""

from __future__ import annotations

from tilewright.backends.cuda.emit_pipeline import pipeline_of
from tilewright.backends.cuda.module import STATIC_SHARED
from tilewright.ir.dims import DimLike, dim_max, dim_min
from tilewright.ir.loop import Alloc, Kernel, MatmulTile, walk
from tilewright.ir.loop_gpu import barrier_bytes, block_loops, shared_bytes, shared_bytes_of_block


def grid_of(kernel: Kernel) -> DimLike:
    """The number of blocks: as many as the longest block loop has iterations, or may run."""
    extents = [dim_min(loop.extent, loop.lanes) if loop.lanes else loop.extent for loop in block_loops(kernel)]
    grid: DimLike = 0
    for extent in extents:
        grid = extent if grid == 0 else dim_max(grid, extent)
    return grid


def swizzled_buffers(kernel: Kernel) -> frozenset[str]:
    """Left operands of products of four warps, in rows whose pieces are exchanged."""
    return frozenset(s.left for s in walk(kernel.body) if isinstance(s, MatmulTile) and s.grouped)


def interleaved_fragments(kernel: Kernel) -> frozenset[str]:
    """Fragments of products whose right operand is bytes in rows (`emit_matrix.py`)."""
    narrow = {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.dtype.bytes == 1}
    return frozenset(s.accumulator for s in walk(kernel.body) if isinstance(s, MatmulTile) and s.right in narrow)


def dynamic_shared_bytes(kernel: Kernel) -> int:
    """Shared memory that a launch has to ask for: all of it where it is more than a block has anyway, or begins where products of four
    warps want it; the barriers of a pipeline behind all else. Arrays that are declared lie beside one another, others may lie in the same
    place for one block loop and the next."""
    pipeline = pipeline_of(kernel)
    barriers = 0 if pipeline is None else barrier_bytes(pipeline.lanes)
    dynamic = shared_bytes(kernel.body) + barriers > STATIC_SHARED or swizzled_buffers(kernel)
    return shared_bytes_of_block(kernel) + barriers if dynamic else 0
