"""A pipeline as CUDA C++: four warps copy, several stages ahead, and all others multiply what those have brought (Hopper).

Each stage has two barriers in memory. `filled` ends a phase when the copy engine has brought its bytes and all copying threads have
arrived, which they do once their own copies are there and known to the matrix units; `emptied` when each multiplying warp has read it.
Round k uses stage k % stages, in phase k / stages of both. A thread's copies may be `stages - 2` rounds under way: the products of a round
are known to have read their stage only when those of the next one have begun, for which that one must be filled. Products of tf32 end in
their own round, since they read registers until then: copies may be a round more under way.

Copying warps give most of their registers to the others, and end: a multiprocessor runs as many blocks as have room for their shared
memory, and the kernel is compiled for an even share of the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from tilewright.ir.errors import InternalError
from tilewright.ir.loop import PIPELINE, For, Kernel, walk
from tilewright.ir.loop_gpu import COPYING_THREADS, WARP, block_loops

BARRIER_BYTES = 8
ALIGNMENT = 128
# of a multiprocessor of sm_90: registers, and shared memory, of which each block takes some bytes for itself
REGISTERS, SHARED_BYTES, OWN_BYTES = 65536, 233472, 1024
MOST_REGISTERS, REGISTER_STEP = 240, 8  # of a thread
COPYING_REGISTERS = 96


class Pipeline(Struct, frozen=True):
    """What the text of a pipeline is made of: the variable of a round, its type and how many rounds there are; stages; threads that
    multiply; copies of the copy engine as both places and bytes; blocks that a multiprocessor runs at a time; whether products end in
    their own round."""

    round: str
    kind: str
    extent: str
    stages: int
    multiplying: int
    bulk: Sequence[tuple[str, str, int]]
    blocks: int
    ended: bool = False


def pipeline_of(kernel: Kernel) -> For | None:
    """The kernel's pipeline, if it has one: then it has one, and one block loop."""
    found = [s for s in walk(kernel.body) if isinstance(s, For) and s.kind == PIPELINE]
    if len(found) > 1 or found and len(block_loops(kernel)) > 1:
        raise InternalError(f"cuda: kernel {kernel.name} has {len(found)} pipelines in {len(block_loops(kernel))} block loops, "
                            "expected one of each")
    return found[0] if found else None


def barrier_bytes(loop: For) -> int:
    """Shared memory of the barriers of a pipeline."""
    return -(-2 * loop.lanes * BARRIER_BYTES // ALIGNMENT) * ALIGNMENT


def emit_barriers(loop: For, offset: int) -> list[str]:
    """The barriers as arrays at an offset of the launch's shared memory."""
    return [f"TW_DYNAMIC_SHARED(unsigned long long, filled, {loop.lanes}, {offset});",
            f"TW_DYNAMIC_SHARED(unsigned long long, emptied, {loop.lanes}, {offset + loop.lanes * BARRIER_BYTES});"]


def blocks_together(shared_bytes: int) -> int:
    """Blocks with so much shared memory that a multiprocessor runs at a time."""
    return max(1, SHARED_BYTES // (shared_bytes + OWN_BYTES))


def multiplying_registers(blocks: int, multiplying: int) -> int:
    """What a multiplying thread has when the others have given theirs."""
    threads = multiplying + COPYING_THREADS
    share = REGISTERS // (threads * blocks) // REGISTER_STEP * REGISTER_STEP
    own = (share * threads - COPYING_REGISTERS * COPYING_THREADS) // multiplying
    return min(MOST_REGISTERS, own // REGISTER_STEP * REGISTER_STEP)


def emit_pipeline(pipeline: Pipeline, copies: Callable[[], None], products: Callable[[], None], emit: Callable[[str], None],
                  indent: Callable[[int], None]) -> None:
    """`copies`, `products` emit what a copying thread and a multiplying warp do in a round. Copying threads return."""
    k, stages, multiplying = pipeline.round, pipeline.stages, pipeline.multiplying
    behind = stages - (1 if pipeline.ended else 2)
    stage = f"{k} % {stages}"

    def block(head: str, *lines: str | Callable[[], None]) -> None:
        emit(f"{head} {{")
        indent(1)
        for line in lines:
            if isinstance(line, str):
                emit(line)
            else:
                line()
        indent(-1)
        emit("}")

    def loop(more: str, *lines: str | Callable[[], None]) -> None:
        block(f"for ({pipeline.kind} {k} = 0; {k} < {pipeline.extent}{more}; ++{k})", *lines)

    def bring() -> None:
        emit(f"if ({k} >= {stages}) tw_mbarrier_wait(&emptied[{stage}], {k} / {stages} + 1 & 1);")
        if pipeline.bulk:
            block(f"if (threadIdx.x == {multiplying})",
                  f"tw_mbarrier_expect(&filled[{stage}], {sum(count for _, _, count in pipeline.bulk)});",
                  *(f"tw_bulk_load({target}, {source}, {count}, &filled[{stage}]);" for target, source, count in pipeline.bulk))
        copies()

    def copying_round() -> None:
        block(f"if ({k} < {pipeline.extent})", bring)
        emit("tw_copy_async_commit();")
        block(f"if ({k} >= {behind})", f"tw_copy_async_wait({behind});", "tw_async_proxy_fence();",
              f"tw_mbarrier_arrive(&filled[({k} - {behind}) % {stages}]);")

    def initialise() -> None:
        arrivals = COPYING_THREADS + bool(pipeline.bulk)  # one announces bytes
        block(f"for (int stage = 0; stage < {stages}; ++stage)", f"tw_mbarrier_init(&filled[stage], {arrivals});",
              f"tw_mbarrier_init(&emptied[stage], {multiplying // WARP});")
        emit("tw_mbarrier_init_fence();")

    block("if (threadIdx.x == 0)", initialise)
    emit("__syncthreads();")
    block(f"if (threadIdx.x >= {multiplying})", f"TW_REGISTERS_FEWER({COPYING_REGISTERS});",
          lambda: loop(f" + {behind}", copying_round), "return;")
    emit(f"TW_REGISTERS_MORE({multiplying_registers(pipeline.blocks, multiplying)});")
    filled, released = f"tw_mbarrier_wait(&filled[{stage}], {k} / {stages} & 1);", f"threadIdx.x % {WARP} == 0) tw_mbarrier_arrive"
    if pipeline.ended:
        loop("", filled, products, f"if ({released}(&emptied[{stage}]);")
        return
    loop("", filled, products, "tw_wgmma_wait(1);", f"if ({k} > 0 && {released}(&emptied[({k} - 1) % {stages}]);")
    emit("tw_wgmma_wait(0);")


__all__ = ["Pipeline", "barrier_bytes", "blocks_together", "emit_barriers", "emit_pipeline", "multiplying_registers", "pipeline_of"]
