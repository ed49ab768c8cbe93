"""What computing a node costs, counted from its op and types, and how long that takes on a machine: a roofline model.

The model: a launch takes as long as its slower side, computing or moving memory, and a fixed time for the threads to meet.
`limit` is that at full vectors on all threads. The prediction also knows what was chosen: lanes of the vector loops,
iterations that the threads can share, and what a register tile wastes at the edges. Memory is counted once for each
operand, at the bandwidth of the level that holds all operands of the launch together, since most of them were just
written. Latencies, conflicts of addresses and mispredicted branches are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from .ir.dims import DimLike, ceildiv, dim_min, product
from .ir.graph import Node
from .ir.ops.compute import (
    ArgReduce,
    ArgSort,
    Cast,
    Conv,
    Cumulative,
    Dot,
    Elementwise,
    PackedConv,
    PackedDot,
    Reduce,
    ReduceWindow,
    Sort,
)
from .ir.ops.control import Const, Param
from .ir.ops.shape import Broadcast, Iota, Reshape, SizeOf
from .ir.ops.weight_only import WeightOnlyDot
from .ir.ops.winograd import WinogradConv
from .ir.types import TensorType

# vector operations of a scalar function, where it is more than one
WEIGHTS = {"exp": 8, "log": 8, "pow": 16, "tanh": 12, "erf": 12, "sigmoid": 12, "sin": 12, "cos": 12, "div": 4, "sqrt": 4}
SORTING = 128       # at most, for an element of a sort: passes over digits, one element at a time; short rows compare all pairs
FREE = (Param, Const, Broadcast, Reshape, Iota, SizeOf)
SUMS = ("sum", "prod")


def costs(node: Node) -> bool:
    """Whether computing a node takes time at all: broadcasts and the like are ways to read an operand."""
    return isinstance(node.type, TensorType) and not isinstance(node.op, FREE)


def count(node: Node) -> tuple[DimLike, DimLike, DimLike]:
    """What a node costs, each of its elements computed once: floating operations, slots of arithmetic units, and its weight in
    the time of a launch (`ir/facts.py`). What only moves memory weighs an element each."""
    elements = node.tensor.elements
    depth = contraction_depth(node)
    floating = node.dtype.is_float
    if depth is not None:
        products = elements * depth
        slots = products // getattr(node.op, "step", 1)  # an instruction takes a word
        return products * 2 if floating else 0, slots, slots
    match node.op:
        case Elementwise(function):
            slots = elements * WEIGHTS.get(function, 1)
            return elements if floating else 0, slots, slots
        case Reduce() | ArgReduce() | Cumulative():
            read = node.inputs[0].tensor.elements
            return read if node.inputs[0].dtype.is_float else 0, read, read
        case ReduceWindow(window=window):
            slots = elements * product(window)
            return slots if floating else 0, slots, slots
        case Sort(axis=axis) | ArgSort(axis=axis):
            slots = elements * dim_min(node.shape[axis], SORTING)
            return 0, slots, slots
        case Cast():
            return 0, elements, elements
        case WinogradConv(results=results, channels=channels):  # its products; what it adds before and behind them is less
            tiles = product((node.shape[0], *(ceildiv(n, m) for n, m in zip(node.shape[1:-1], results))))
            slots = tiles * node.inputs[1].shape[0] * node.inputs[1].shape[-2] * channels
            return slots * 2, slots, slots
    return 0, 0, elements


def contraction_depth(node: Node) -> DimLike | None:
    """Multiply-adds for each element of a contraction; None for other ops."""
    match node.op:
        case PackedDot() as op if op.in_bytes(node.inputs[0].dtype, node.inputs[1].dtype):
            return node.inputs[1].shape[-2]
        case PackedDot(step=step) | PackedConv(step=step):
            return node.inputs[1].shape[-2] * step
        case WeightOnlyDot():
            return node.inputs[0].shape[-1]
        case Dot(lhs_contract=axes):
            return product(node.inputs[0].shape[a] for a in axes)
        case Conv() as op:
            sizes, kernel, _, channels, _ = op.parts(node.inputs[0].tensor, node.inputs[1].tensor)
            results = node.shape[1:-1] if op.channels_last else node.shape[2:]
            return product((*(_taps_read(*axis) for axis in zip(sizes, kernel, results, op.strides, op.dilation, op.padding)), channels))
    return None


def _taps_read(size: DimLike, taps: DimLike, results: DimLike, stride: int, dilation: int, padding: tuple[int, int]) -> DimLike:
    """Taps along an axis that read no padding, on average; all of them where a size is not known."""
    if padding == (0, 0) or not (isinstance(size, int) and isinstance(results, int) and isinstance(taps, int)):
        return taps
    places = np.arange(results)[:, None] * stride + np.arange(taps) * dilation - padding[0]
    return -(-int(((places >= 0) & (places < size)).sum()) // max(results, 1))


def contract(nodes: Sequence[Node]) -> str:
    """What the order in which these are computed keeps: 'exact' to the bit, 'reassoc' but for the order of sums, 'bounded'
    but for an error that the algorithm states."""
    if any(isinstance(node.op, WinogradConv) or isinstance(node.op, (PackedDot, PackedConv)) and node.op.tf32 != "" for node in nodes):
        return "bounded"
    for node in nodes:
        match node.op:
            case Reduce(kind=kind) | ReduceWindow(kind=kind) | Cumulative(kind=kind) if kind not in SUMS:
                continue
            case Reduce() | ReduceWindow() | Cumulative() if node.dtype.is_float:
                return "reassoc"
        if contraction_depth(node) is not None and node.dtype.is_float:
            return "reassoc"
    return "exact"


# --- the machine -----------------------------------------------------------------------------------------------------


class Level(Struct, frozen=True):
    """A level of memory: bytes that it holds, and bytes a second that are read and written there."""

    holds: int
    reading: float
    writing: float


class Rates(Struct, frozen=True):
    """What a machine can do at most, as measured: multiply-adds of float32 a second and lanes of a vector, of one thread;
    levels of memory of so many `threads` together, near ones first; seconds of a launch."""

    threads: int
    products: float
    lanes: int
    levels: tuple[Level, ...]
    launch: float

    def moving(self, read: int, written: int) -> float:
        """Seconds to move so many bytes, where the first level that holds them all has them."""
        level = next((level for level in self.levels if read + written <= level.holds), self.levels[-1])
        return read / level.reading + written / level.writing


class Demand(Struct, frozen=True):
    """What a launch needs and what it was given: see `ir/facts.py`. `useful`: share of a register tile's work that counts."""

    slots: int
    bits: int
    read: int
    written: int
    lanes: int
    parallel: int
    useful: float = 1.0


class Forecast(Struct, frozen=True):
    """Seconds of a launch: at least, as predicted, and which side decides ('compute', 'memory', 'launch')."""

    limit: float
    predicted: float
    bound: str


def forecast(demand: Demand, rates: Rates) -> Forecast:
    """The model of this module's text."""
    wide = max(1, rates.lanes * 32 // max(demand.bits, 32))
    full = rates.products * wide / rates.lanes
    least = demand.slots / (full * rates.threads)
    moving = rates.moving(demand.read, demand.written)
    busy = min(rates.threads, max(1, demand.parallel))
    lanes = min(max(demand.lanes, 1), wide)
    computing = demand.slots / (full * lanes / wide * busy * demand.useful)
    moved = moving * rates.threads / busy
    predicted = max(computing, moved) + rates.launch
    bound = "launch" if rates.launch > max(computing, moved) else "compute" if computing > moved else "memory"
    return Forecast(max(least, moving), predicted, bound)
