"""Deep contractions with few tiles on a GPU: the steps cut into parts, so that all multiprocessors take part (split-k).

A first kernel computes the sums of each part, which lie one after the other in scratch memory in the dtype they are added in; a second
one adds them in order and computes what follows. Nothing is added atomically, so equal calls give equal bits.

The number of parts is chosen by a model of a card: a block takes its steps one after the other, some blocks of a multiprocessor wait for
memory side by side but multiply in turns, no kernel is faster than its operands are read, and a second kernel has to be launched. Its
figures are those of an A100's data sheet and of what its memory takes to answer; none is measured.
"""

from __future__ import annotations

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cast, Elementwise, accumulator_dtype
from ..ir.ops.control import Param
from ..ir.ops.shape import Reshape, Slice
from ..ir.types import TensorType

MOST_PARTS = 16
LEAST_ROUNDS = 4             # of a part: the stages of shared memory have to be filled first
RESIDENT = 2                 # blocks of a multiprocessor that wait side by side
WORTH = 0.8                  # of the time that the whole takes
LAUNCH = 2.0                 # microseconds of a second kernel
BYTES_A_MICROSECOND = 16000  # that a multiprocessor's share of memory brings


class Round(Struct, frozen=True):
    """The microseconds of some steps of a tile: what a block takes for them, and what of that its multiprocessor does for no other one."""

    alone: float
    busy: float


def choose_parts(tiles: float, rounds: DimLike, each: Round, operand_bytes: DimLike, result_bytes: DimLike, caps: Caps) -> int:
    """Parts to cut a contraction of at most so many tiles (infinity: rows without a bound) into, each of `rounds` rounds; no part is
    without rounds. `result_bytes`: of the sums of all tiles. 1: not to cut it."""
    if not isinstance(rounds, int) or tiles >= caps.multiprocessors * RESIDENT:
        return 1
    most_operands, most_results = (bounds(size)[1] for size in (operand_bytes, result_bytes))
    memory = caps.multiprocessors * BYTES_A_MICROSECOND

    def microseconds(parts: int) -> float:
        blocks, length = tiles * parts, -(-rounds // parts)
        waiting = -(-blocks // (caps.multiprocessors * RESIDENT)) * length * each.alone
        multiplying = -(-blocks // caps.multiprocessors) * length * each.busy
        whole = max(waiting, multiplying, most_operands / memory)
        return whole if parts == 1 else whole + LAUNCH + 2 * parts * most_results / memory

    parts = min((parts for parts in range(1, MOST_PARTS + 1) if parts == 1 or rounds >= parts * LEAST_ROUNDS), key=microseconds)
    return -(-rounds // -(-rounds // parts)) if microseconds(parts) <= WORTH * microseconds(1) else 1


def part_rounds(part: DimLike, parts: int, rounds: DimLike) -> tuple[DimLike, DimLike]:
    """The first round of a part and the one behind its last. `parts` as `choose_parts` gives it, so that no part begins past the end."""
    if parts == 1:
        return 0, rounds
    assert isinstance(rounds, int)
    most = -(-rounds // parts)
    return part * most, (part + 1) * most if parts * most == rounds else (part + 1) * most - (part + 1) // parts * (parts * most - rounds)


def sums_of_parts(body: Graph, core: Node, parts: int) -> tuple[Graph, Graph]:
    """The contraction of a group alone, and what adds up its parts, [parts, *shape of the result] of the dtype of sums, and computes the
    rest: the first graph's result as its last param, behind others of the group's."""
    dtype, shape = accumulator_dtype(core.dtype), core.shape
    b = Builder(core.loc)
    given = b.add(Param("parts", dtype, (parts, *shape)))
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    total = None
    for part in range(parts):
        one = b.add(Reshape(shape), b.add(Slice((part, *zeros), (1, *shape), (1, *ones)), given))
        total = one if total is None else b.add(Elementwise("add"), total, one)
    assert total is not None
    known = {core: total if dtype == core.dtype else b.add(Cast(core.dtype), total)}
    for node in body.nodes():
        if node not in known:
            inputs = tuple(known.get(i, i) for i in node.inputs)
            known[node] = node if inputs == node.inputs else b.add(node.op, *inputs)
    results = [known[result] for result in body.results]
    used = set(Graph("", [], results).nodes())
    first = Graph(f"{body.name}_parts", list(dict.fromkeys(core.inputs)), [core])
    return first, Graph(f"{body.name}_sum", [*(p for p in body.params if p in used), given], results, body.result_names)


def parts_type(core: Node, parts: int) -> TensorType:
    return TensorType(accumulator_dtype(core.dtype), (parts, *core.shape))


__all__ = ["Round", "choose_parts", "part_rounds", "parts_type", "sums_of_parts"]
