"""A pipeline as CUDA C++: four warps copy, several stages ahead, and all others multiply what those have brought (Hopper).

There are as many blocks as run at the same time, and each takes tiles in turns. Stages follow one another over all tiles of a block, so
that the copies of the next tile begin when those of the last rounds of one are under way, while its results are computed and stored.

Each stage has two barriers in memory. `filled` ends a phase when the copy engine has brought its bytes and all copying threads have
arrived, which they do once their own copies are there and known to the matrix units; `emptied` when each multiplying warp has read it.
Phases of both follow one another as a block comes back to a stage; `phase` is the last bit of that number (what has not begun yet counts as
the end of a phase of 1, so that nobody waits for a stage that was never filled). A thread's copies may be `stages - 2` rounds under
way: the products of a round are known to have read their stage only when those of the next one have begun, for which that one must be
filled. Products of tf32 end in their own round, since they read registers until then: copies may be a round more under way.

Copying warps give most of their registers to the others, and end: a multiprocessor runs as many blocks as have room for their shared
memory, and the kernel is compiled for an even share of the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from tilewright.ir.loop import PIPELINE, For, Kernel, walk
from tilewright.ir.loop_gpu import BARRIER_BYTES, COPYING_THREADS, WARP

REGISTERS = 65536  # of a multiprocessor of sm_90
MOST_REGISTERS, REGISTER_STEP = 240, 8  # of a thread
COPYING_REGISTERS = 96
Line = str | Callable[[], None]  # of text, or what emits some


class Pipeline(Struct, frozen=True):
    """What the text of a pipeline is made of: the heads of the loops over a block's tiles and over the rounds of one; the variable of
    these, and what is asked first where there may be none; stages; threads that multiply; blocks that a multiprocessor runs at a time;
    whether the copy engine copies as well; whether products end in their own round."""

    tiles: str
    rounds: str
    variable: str
    given: str
    stages: int
    multiplying: int
    blocks: int
    has_bulk: bool
    ended: bool


class Parts(Struct, frozen=True):
    """What emits the parts of a block's work: where a tile lies; what a copying thread and a multiplying warp do in a round; what is done
    for a tile before and after its rounds. `bulk` gives the copies of the copy engine as both places and bytes."""

    place: Callable[[], None]
    bulk: Callable[[], Sequence[tuple[str, str, int]]]
    copies: Callable[[], None]
    products: Callable[[], None]
    before: Callable[[], None]
    after: Callable[[], None]


def pipeline_of(kernel: Kernel) -> For | None:
    """The kernel's pipeline, if it has one: then it has one, in its only block loop."""
    return next((s for s in walk(kernel.body) if isinstance(s, For) and s.kind == PIPELINE), None)


def emit_barriers(loop: For, offset: int) -> list[str]:
    """The barriers as arrays at an offset of the launch's shared memory."""
    return [f"TW_DYNAMIC_SHARED(unsigned long long, filled, {loop.lanes}, {offset});",
            f"TW_DYNAMIC_SHARED(unsigned long long, emptied, {loop.lanes}, {offset + loop.lanes * BARRIER_BYTES});"]


def multiplying_registers(blocks: int, multiplying: int) -> int:
    """What a multiplying thread has when the others have given theirs."""
    threads = multiplying + COPYING_THREADS
    share = REGISTERS // (threads * blocks) // REGISTER_STEP * REGISTER_STEP
    own = (share * threads - COPYING_REGISTERS * COPYING_THREADS) // multiplying
    return min(MOST_REGISTERS, own // REGISTER_STEP * REGISTER_STEP)


def _initialised(pipeline: Pipeline) -> tuple[str, str]:
    """The barriers of a stage. Of those that fill it one announces bytes as well, where there are any."""
    return (f"tw_mbarrier_init(&filled[stage], {COPYING_THREADS + pipeline.has_bulk});",
            f"tw_mbarrier_init(&emptied[stage], {pipeline.multiplying // WARP});")


def _block(emit: Callable[[str], None], indent: Callable[[int], None], head: str, lines: Sequence[Line]) -> None:
    emit(f"{head} {{")
    indent(1)
    for line in lines:
        if isinstance(line, str):
            emit(line)
        else:
            line()
    indent(-1)
    emit("}")


def emit_pipeline(pipeline: Pipeline, parts: Parts, emit: Callable[[str], None], indent: Callable[[int], None]) -> None:
    """All that a block does."""
    stages, multiplying = pipeline.stages, pipeline.multiplying
    behind = stages - (1 if pipeline.ended else 2)
    go_on = f"if (++stage == {stages}) {{ stage = 0; phase ^= 1; }}"

    def before(rounds: int) -> str:
        return f"(stage + {stages - rounds}) % {stages}"

    def block(head: str, *lines: Line) -> None:
        _block(emit, indent, head, lines)

    def tiles(*lines: Line) -> None:
        emit("int stage = 0, phase = 0;")
        block(pipeline.tiles, *lines)

    def rounds(*lines: Line) -> Callable[[], None]:
        return lambda: block(pipeline.rounds, *lines, go_on)

    def bring() -> None:
        emit("tw_mbarrier_wait(&emptied[stage], phase ^ 1);")
        bulk = parts.bulk()
        if bulk:
            block(f"if (threadIdx.x == {multiplying})",
                  f"tw_mbarrier_expect(&filled[stage], {sum(count for _, _, count in bulk)});",
                  *(f"tw_bulk_load({target}, {source}, {count}, &filled[stage]);" for target, source, count in bulk))
        parts.copies()

    def pass_on() -> None:
        """Says that the copies of a round have come, when so many others may still be under way behind it."""
        emit("tw_copy_async_commit();")
        emit(f"if (under_way < {behind}) ++under_way;")
        block("else", f"tw_copy_async_wait({behind});", "tw_async_proxy_fence();", f"tw_mbarrier_arrive(&filled[{before(behind)}]);")

    def copying() -> None:
        emit(f"TW_REGISTERS_FEWER({COPYING_REGISTERS});")
        emit("int under_way = 0;  // rounds, of which more would not be known to have come")
        tiles(parts.place, rounds(bring, pass_on))
        block(f"for (int last = 0; last < {behind}; ++last)", pass_on, go_on)
        emit("return;")

    def release(which: str, condition: str = "") -> str:
        return f"if ({condition}threadIdx.x % {WARP} == 0) tw_mbarrier_arrive(&emptied[{which}]);"

    block("if (threadIdx.x == 0)", lambda: block(f"for (int stage = 0; stage < {stages}; ++stage)", *_initialised(pipeline)),
          "tw_mbarrier_init_fence();")
    emit("__syncthreads();")
    block(f"if (threadIdx.x >= {multiplying})", copying)
    emit(f"TW_REGISTERS_MORE({multiplying_registers(pipeline.blocks, multiplying)});")
    filled, first = "tw_mbarrier_wait(&filled[stage], phase);", f"{pipeline.variable} > 0 && "
    if pipeline.ended:
        tiles(parts.before, rounds(filled, parts.products, release("stage")), parts.after)
        return
    tiles(parts.before, rounds(filled, parts.products, "tw_wgmma_wait(1);", release(before(1), first)), "tw_wgmma_wait(0);",
          release(before(1), pipeline.given), parts.after)


__all__ = ["Parts", "Pipeline", "emit_barriers", "emit_pipeline", "multiplying_registers", "pipeline_of"]
