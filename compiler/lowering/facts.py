"""Writes down what a launch does while it is made: who asked for it, what it reads and writes, how its kernel runs.

Assumes the node and the kernel as lowering has them before kernels are shared. Guarantees sizes in the symbols of the
program; nothing that compiles depends on what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..cost import contract, costs, count
from ..ir.dims import DimLike, add_all, dim_min, product, substitute
from ..ir.facts import Choice, Facts, Operand, Work
from ..ir.graph import Graph, Node
from ..ir.loop import Alloc, For, Kernel, Stmt, walk
from ..ir.ops.compute import PackedConv, PackedDot
from ..ir.ops.control import Fusion, Param
from ..ir.ops.shape import GatherND, Slice, Take, TakeAlong
from ..ir.ops.winograd import WinogradConv
from ..ir.types import TensorType
from ..tiles import Blocks, Tile

PICKING = (Take, TakeAlong, GatherND, Slice)  # they read some elements of their first operand
Concrete = Callable[[DimLike], DimLike]


class FactsMaker:
    """Facts of the launches of one program. Layers repeat: what was counted for a kernel at some sizes is counted once.
    `concrete` gives sizes in the symbols of the program. Kernels must stay alive as long as this."""

    def __init__(self, concrete: Concrete) -> None:
        self.concrete = cache(concrete)
        self._known: dict[tuple[Any, ...], Facts] = {}

    def facts_of(self, node: Node, kernel: Kernel, choice: Choice, spaces: Sequence[str], sizes: tuple[DimLike, ...], main: bool) -> Facts:
        """What a launch of the kernel does for the node. `spaces`: where the node's operands and results lie; `sizes`: what
        the launch passes for the kernel's symbols. A launch that is not the `main` one of its node prepares for it: it
        checks something, or copies."""
        key = (id(kernel), sizes, main, node.type, *(n.type for n in node.inputs))
        known = self._known.get(key)
        nodes = node.op.body.nodes() if isinstance(node.op, Fusion) else (node,)
        if known is None:
            known = self._known[key] = self._facts(node, nodes, kernel, choice, sizes, main)
        locs = iter([n.loc for n in nodes if costs(n)])
        return replace(known, work=tuple(replace(work, loc=next(locs)) for work in known.work),
                       operands=tuple(replace(operand, space=space) for operand, space in zip(known.operands, spaces)))

    def _facts(self, node: Node, nodes: Sequence[Node], kernel: Kernel, choice: Choice, sizes: Sequence[DimLike], main: bool) -> Facts:
        concrete = self.concrete
        body = node.op.body if isinstance(node.op, Fusion) else None
        results = _items(node)
        binding = {symbol.name: size for symbol, size in zip(kernel.symbols, sizes)}
        shape = _shape_of(kernel)
        if main:
            read, written = _bytes_read(node, body), add_all([t.elements * t.dtype.bytes for t in results])
        else:
            read, written = (substitute(_bytes_of(kernel, spaces), binding) for spaces in (("in", "inout"), ("out", "inout")))
        return Facts(
            choice=choice if main or choice.strategy == "check" else replace(choice, strategy="copy"),
            operands=tuple(_operand(buffer, concrete) for buffer in _buffers(node, results)) if main else (),
            work=tuple(Work(n.loc, n.op.spelling, *map(concrete, count(n))) for n in nodes if costs(n)) if main else (),
            contract=contract(nodes) if main else "exact",
            parallel=tuple(concrete(substitute(extent, binding)) for extent in shape.parallel),
            lanes=shape.lanes,
            bits=max((n.dtype.bits for n in nodes if isinstance(n.type, TensorType)), default=32),
            read=concrete(read),
            written=concrete(written),
            registers=shape.registers,
            rows=concrete(_matrix_rows(nodes)) if main and choice.tile is not None else 0,
        )


def _matrix_rows(nodes: Sequence[Node]) -> DimLike:
    """The rows of one matrix of the contraction among the nodes."""
    for node in nodes:
        match node.op:
            case PackedDot(batch=batch):
                return product(node.shape[batch:-1])
            case PackedConv():
                return product(node.shape[:-1])
    return 0


def contraction_choice(tile: Tile, blocks: Blocks, general: bool, low_tiles: Sequence[Tile] = ()) -> Choice:
    """How a contraction computes. Sizes of blocks that are arguments of the kernel are not its own."""
    details = [f"blocks of {blocks.rows} x {blocks.panels} tiles"] if blocks.rows != 1 or blocks.panels != 1 else []
    if isinstance(blocks.depth, int) and blocks.depth:
        details.append(f"parts of {blocks.depth} steps")
    if blocks.ahead:
        details.append(f"prefetches {blocks.ahead} elements a step")
    if blocks.streams > 1:
        details.append(f"{blocks.streams} streams")
    static = isinstance(blocks.rows, int) and isinstance(blocks.panels, int)
    return Choice("contraction", (tile.rows, tile.columns), general, details=tuple(details if static else details[1:]),
                  low_tiles=tuple((low.rows, low.columns) for low in low_tiles))


def _items(node: Node) -> tuple[TensorType, ...]:
    kinds = (node.type,) if isinstance(node.type, TensorType) else node.type.items
    return tuple(kind for kind in kinds if isinstance(kind, TensorType))


class _Buffer(Struct, frozen=True):
    name: str
    type: TensorType
    layout: str


def _buffers(node: Node, results: Sequence[TensorType]) -> list[_Buffer]:
    """The operands and results of a node with the layout that its lowering asks for."""
    layouts = [""] * len(node.inputs)
    if isinstance(node.op, Fusion):
        params = node.op.body.params
        for inner in node.op.body.nodes():
            if isinstance(inner.op, (PackedDot, PackedConv, WinogradConv)) and inner.inputs[1] in params:
                layouts[params.index(inner.inputs[1])] = f"panels of {inner.inputs[1].shape[-1]} columns"
    operands = [_Buffer(f"x{i}", n.tensor, layout) for i, (n, layout) in enumerate(zip(node.inputs, layouts))]
    return [*operands, *(_Buffer(f"y{i}", kind, "") for i, kind in enumerate(results))]


def _operand(buffer: _Buffer, concrete: Concrete) -> Operand:
    return Operand(buffer.name, str(buffer.type.dtype), tuple(map(concrete, buffer.type.shape)), "", buffer.layout)


def _bytes_read(node: Node, body: Graph | None) -> DimLike:
    """Each operand once; of one that elements are picked from, no more than are picked."""
    if body is None:
        return add_all([n.tensor.elements * n.dtype.bytes for n in node.inputs])
    picked: dict[Node, DimLike] = {}
    whole: set[Node] = set()
    for inner in body.nodes():
        for position, operand in enumerate(inner.inputs):
            if not isinstance(operand.op, Param):
                continue
            if isinstance(inner.op, PICKING) and position == 0:
                picked[operand] = picked.get(operand, 0) + inner.tensor.elements
            else:
                whole.add(operand)
    read = []
    for param in body.params:
        elements = param.tensor.elements
        if param not in whole and param in picked:
            elements = dim_min(elements, picked[param])
        read.append(elements * param.dtype.bytes)
    return add_all(read)


def _bytes_of(kernel: Kernel, spaces: Sequence[str]) -> DimLike:
    return add_all([product(buffer.shape) * buffer.dtype.bytes for buffer in kernel.buffers if buffer.space in spaces])


class _Shape(Struct, frozen=True):
    """How a kernel runs: extents of the outermost loops that threads share, lanes, what it keeps in registers."""

    parallel: tuple[DimLike, ...]
    lanes: int
    registers: tuple[str, ...]


@lru_cache(maxsize=256)
def _shape_of(kernel: Kernel) -> _Shape:
    found: list[str] = []
    lanes = 0
    for statement in walk(kernel.body):
        match statement:
            case For(kind="vector", lanes=count):
                lanes = max(lanes, count)
            case Alloc(buffer) if buffer.space == "register" and buffer.shape:
                found.append(f"{buffer.dtype}[{', '.join(map(str, buffer.shape))}]")
    return _Shape(tuple(s.extent for s in _parallel(kernel.body)), lanes, tuple(dict.fromkeys(found)))


def _parallel(body: Sequence[Stmt]) -> list[For]:
    return [s for s in body if isinstance(s, For) and s.kind == "parallel"]
