"""One kernel for each fused group, and for the ops with a lowering of their own. Equal groups share a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from ..attention import find_attention, unit_attention
from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, product, symbol, symbols_of
from ..ir.errors import UNKNOWN, InternalError, Loc, UnsupportedError
from ..ir.facts import Choice
from ..ir.graph import Builder, Graph, Node, encode, encode_op
from ..ir.loop import (
    Alloc,
    Buffer,
    Check,
    For,
    IndexValue,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    expression_nodes,
    expressions_of,
    walk,
)
from ..ir.loop_gpu import block_loops
from ..ir.ops.compute import (
    ArgReduce,
    ArgSort,
    Bitcast,
    Cast,
    Conv,
    Cumulative,
    Elementwise,
    PackedConv,
    PackedDot,
    ReduceWindow,
    Sort,
)
from ..ir.ops.control import Fusion, Param
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, ScatterAlong, ScatterND, Slice, Transpose, UpdateSlice, unproved_windows
from ..ir.ops.weight_only import WeightOnlyDot
from ..ir.ops.winograd import WinogradConv
from ..ir.schedule import Schedule, apply_legal
from ..ir.types import INDEX, TensorType
from ..tiles import MOST_PANELS, MOST_ROWS, Blocks, Tile, choose_blocks, choose_low_tiles, choose_tile, choose_window_blocks
from .attention import AttentionKernel
from .attention import choose_plan as choose_attention_plan
from .coded_weights import Operands
from .columns import lower_columns
from .contraction import lower_contraction
from .elements import Nest, border_regions, lower_border, lower_region, lower_together, overlapping, regions_of
from .extremes import lower_extremes
from .facts import contraction_choice
from .few_rows import lower_few_rows
from .generalize import generalize
from .gpu import grid_steps
from .gpu_attention import GpuAttention
from .gpu_contraction import GpuTile, gpu_tile, lower_gpu_contraction
from .gpu_reductions import in_parts
from .gpu_split import parts_type, sums_of_parts
from .gpu_tiles import PlainTile, lower_plain_tiles, plain_tile
from .gpu_transposes import in_squares
from .gpu_weight_only import lower_gpu_weight_only
from .in_place import writes_over
from .inline import ERROR_INDEX, Inliner, Names
from .rows import LONG_CHAINS, RowKernel
from .sorting import key_type, lower_argsort, lower_sort
from .special import lower_cumulative, lower_scatter
from .streams import streamed
from .weight_only import choose_plan, lower_weight_only
from .windows import lower_windows
from .winograd import choose_block, lower_winograd

# a buffer of a launch: its position among the node's operands, results and scratch so far, or the type of new scratch
Entry = int | TensorType
# a kernel, its buffers, and what those of its symbols stand for that are not the program's own
Launches = list[tuple[Kernel, tuple[Entry, ...], dict[str, DimLike]]]


MOST_SCHEDULED = 128  # nests of a kernel, the parts of a wide concatenation: each step is a search through all of them
CHAINS = 4  # vectors side by side where each is a long chain of operations

# a kernel as it was first built, and the steps that made it what it is
Plan = tuple[Kernel, Schedule]


ELEMENTS = Choice("elements")
MOST_OPEN_SIZES = 2  # of the rows of a contraction that may be few: a batch and a sequence, but not an image
BLOCK_NAMES = ("high", "wide", "steps")


class KernelMaker:
    """Makes kernels for one target; equal requests get the same kernel object."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self._known: dict[bytes, Launches] = {}
        self._names: dict[str, int] = {}
        self._tiled: dict[tuple[str, GpuTile | PlainTile], Kernel] = {}
        self._contractions: dict[tuple[str, Tile, Blocks, tuple[Tile, ...]], Kernel] = {}
        self._in_place: dict[tuple[int, int], Kernel | None] = {}
        self.plans: dict[str, Plan] = {}
        self.choices: dict[str, Choice] = {}  # by the kernel's name, for reports

    def make(self, node: Node) -> Launches:
        """The launches that compute a node, in order."""
        key = encode_op(node.op) + b"".join(encode(i.type) for i in node.inputs)
        known = self._known.get(key)
        if known is None:
            known = self._make(node)
            self._known[key] = known
        return known

    def make_in_place(self, node: Node, position: int) -> tuple[Kernel, dict[str, DimLike]] | None:
        """The node's kernel with its result in the memory of an operand, or None where that is not possible."""
        made = self.make(node)
        if len(made) != 1 or not isinstance(node.type, TensorType) or block_loops(made[0][0]):
            return None
        kernel, _, values = made[0]
        key = (id(kernel), position)
        if key not in self._in_place:
            operand, result = kernel.buffers[position], kernel.buffers[-1]
            fits = operand.dtype == result.dtype and operand.shape == result.shape
            over = writes_over(kernel, operand.name, result.name, f"{kernel.name}_in_place") if fits else None
            over = None if over is None else replace(over, name=self._label(over.name))
            if over is not None and kernel.name in self.plans:
                self.plans[over.name] = self.plans[kernel.name]
            if over is not None:
                self.choices[over.name] = replace(self.choices[kernel.name], in_place=True)
            self._in_place[key] = over
        in_place = self._in_place[key]
        return None if in_place is None else (in_place, values)

    def copy(self, type: TensorType, loc: Loc = UNKNOWN) -> tuple[Kernel, ...]:
        """A kernel that copies a tensor; none for one without elements."""
        b = Builder(loc)
        x = b.add(Param("x0", type.dtype, type.shape))
        same = b.add(Broadcast(type.shape), x)
        fused = b.add(Fusion("elements", Graph("copy", [x], [same])), x)
        return tuple(launch[0] for launch in self.make(fused))

    def _make(self, node: Node) -> Launches:
        match node.op:
            case Fusion(strategy, body):
                checks = self._window_checks(node, body)
                empty = all(0 in result.shape for result in body.results)
                return checks if empty else [*checks, *self._fusion(node, strategy, body)]
            case Sort() | ArgSort() | Cumulative() | ScatterND() | ScatterAlong():
                return self._special(node)
        raise InternalError(f"lowering: no kernel for {node.op.spelling}", loc=node.loc)

    # --- fused groups ------------------------------------------------------------------------------------------------

    def _fusion(self, node: Node, strategy: str, body: Graph) -> Launches:
        inputs = {p: Buffer(f"x{i}", p.dtype, p.shape, "in") for i, p in enumerate(body.params)}
        outputs = [Buffer(f"y{i}", r.dtype, r.shape, "out") for i, r in enumerate(body.results)]
        names = self._fresh_names(body)
        order = tuple(range(len(inputs) + len(outputs)))
        buffers = [*inputs.values(), *outputs]
        if strategy == "contraction":
            return self._contraction(body, node.loc, order)
        if strategy == "attention":
            return [(self._attention(body, inputs, outputs[0], names, node.loc), order, {})]
        steps = in_parts(body, self.caps) if strategy == "rows" and self.caps.is_gpu else None
        if steps is not None:
            return self._in_parts(node, body, *steps)
        if strategy == "rows":
            pairs = list(zip(body.results, outputs))
            lanes = self._lanes(body)
            rows = RowKernel(Inliner(inputs, names, self.caps.has_fma), body.nodes(), pairs, lanes)
            statement = rows.lower_plain() if self.caps.is_gpu else rows.lower()
            return [(self._kernel(body.name, buffers, [statement], node.loc, Choice("rows")), order, {})]
        return self._elements(body, inputs, outputs, names, node.loc, order)

    def _in_parts(self, node: Node, body: Graph, first: Graph, second: Graph) -> Launches:
        """A reduction of parts of rows, and one of what these give, in scratch memory between them."""
        numbers = {param: number for number, param in enumerate(body.params)}
        scratch, count = first.results[0].tensor, len(body.params) + len(body.results)
        b = Builder(node.loc)
        launches: Launches = []
        for graph in (first, second):
            made = self.make(b.add(Fusion("rows", graph), *graph.params))
            (kernel, _, values), = made
            operands: list[Entry] = [numbers.get(param, count) for param in graph.params]
            results: list[Entry] = [scratch] if graph is first else list(range(len(body.params), count))
            launches.append((kernel, (*operands, *results), values))
        return launches

    def _window_checks(self, node: Node, body: Graph) -> Launches:
        """A kernel that fails where a slice whose sizes are symbolic would leave its operand, or an extreme is looked for in nothing.
        It runs before the group's own kernel, with a barrier between, so that no thread reads outside."""
        statements: list[Stmt] = []
        inliner = Inliner({}, self._fresh_names(body))
        for inner in body.nodes():
            match inner.op:
                case Slice(start, size, step):
                    shape, taken = inner.inputs[0].shape, size
                case UpdateSlice(start, step):
                    shape, taken = inner.shape, inner.inputs[1].shape
                case ArgReduce() as op:
                    axis = inner.inputs[0].shape[op.axis]
                    if bounds(axis)[0] < 1:  # the first element must be there, where there is a result
                        statements.append(_window_check(inliner, inner, 0, 0, product(inner.shape), axis, "the axis is empty"))
                    continue
                case _:
                    continue
            for low, high, count, extent in unproved_windows(shape, start, taken, step):
                statements.append(_window_check(inliner, inner, low, high, count, extent))
        return [(self._check("check_windows", inliner, statements, node.loc), (), {})] if statements else []

    def size_check(self, graph: Graph) -> tuple[Kernel, Node] | None:
        """A kernel that fails where a window is so much longer than its axis that there would be fewer results than none, and
        the first such node; None where the bounds of sizes show that this cannot be."""
        inliner, checks = Inliner({}, self._fresh_names(graph)), dict[DimLike, tuple[Check, Node]]()
        for outer in graph.nodes():
            for node in outer.op.body.nodes() if isinstance(outer.op, Fusion) else (outer,):
                for size, span, axis in _windows(node):
                    if bounds(size)[0] < 0 and size not in checks:
                        checks[size] = _size_check(inliner, node, size, span, axis), node
        if not checks:
            return None
        first = next(iter(checks.values()))[1]
        return self._check("check_sizes", inliner, [check for check, _ in checks.values()], first.loc), first

    def _check(self, name: str, inliner: Inliner, statements: Sequence[Stmt], loc: Loc) -> Kernel:
        once = For(Symbol(inliner.names.fresh("once"), 0, 0), 1, "parallel", tuple(statements))
        return self._kernel(name, [], [Nest(once)], loc, Choice("check"))

    def _fresh_names(self, body: Graph) -> Names:
        taken = [s.name for n in body.nodes() if isinstance(n.type, TensorType) for s in symbols_of(*n.type.shape)]
        return Names(dict.fromkeys(taken, 1))

    def _contraction(self, body: Graph, loc: Loc, order: tuple[int, ...]) -> Launches:
        """One kernel for each tile and epilogue, whatever the sizes, where the epilogue allows it."""
        core = _core_of(body)
        if isinstance(core.op, WinogradConv):
            return [(self._winograd(body, core, loc), order, {})]
        if isinstance(core.op, WeightOnlyDot):
            return [(self._weight_only(body, core, loc), order, {})]
        tiles = (gpu_tile(core, body.results[0], self.caps) or plain_tile(core, self.caps)) if self.caps.is_gpu else None
        packed = core.op
        assert isinstance(packed, (PackedDot, PackedConv))
        in_bytes = isinstance(packed, PackedDot) and packed.in_bytes(*(x.dtype for x in core.inputs))
        padded = isinstance(packed, PackedConv) and packed.padding != ()
        if not isinstance(tiles, GpuTile) and (packed.square > 1 or packed.tf32 or in_bytes or padded):
            how = (f"in squares of {packed.square}" if packed.square > 1 else "that is no words" if in_bytes else "and writes no padding"
                   if padded else "rounded to tf32")
            raise UnsupportedError(f"{packed.spelling}: no kernel of this target takes {core.inputs[1].type} {how}", loc=loc,
                                   hint=f"compile from {packed.spelling.removeprefix('packed_')}, which is packed for the target")
        if tiles is not None and tiles.parts > 1:
            return self._contraction_parts(body, core, tiles, loc)
        if tiles is not None:
            return [(self._on_tiles(body, core, tiles, loc), order, {})]
        count = core.op.batch if isinstance(core.op, PackedDot) else 0
        columns = core.inputs[1].shape[-1]
        assert isinstance(columns, int)
        groups = core.op.groups if isinstance(core.op, PackedConv) else 1
        rows = core.shape[count:-1] if isinstance(core.op, PackedDot) else core.inputs[0].shape[:-1]
        whole = (product(rows), core.shape[-1] // groups)
        run = core.shape[-2] if isinstance(core.op, PackedConv) else 0
        words = core.op.narrow if isinstance(core.op, (PackedDot, PackedConv)) else 1
        tile = choose_tile(columns, product(core.shape[count:-1]), core.dtype, self.caps, whole, run, words)
        blocks, low = self._blocks(core, count, tile), self._low_tiles(core, count, tile)
        before: Launches = []
        buffers: tuple[Entry, ...] = order
        if blocks.streams > 1 and tile.rows > 1:
            before, buffers = self._turned(core.inputs[0], body.params.index(core.inputs[0]), order, loc)
        general = generalize(body, core, tile)
        values: dict[str, DimLike] = {}
        if general is not None:
            body, values = general
            blocks = _general_blocks(blocks, values)
        key = (body.fingerprint, tile, blocks, low)
        if key not in self._contractions:
            inputs = {p: Buffer(f"x{i}", p.dtype, p.shape, "in") for i, p in enumerate(body.params)}
            out = Buffer("y0", body.results[0].dtype, body.results[0].shape, "out")
            core, result, names = _core_of(body), body.results[0], self._fresh_names(body)
            names.used.update(dict.fromkeys(BLOCK_NAMES, 1))
            left = inputs[core.inputs[0]]
            turned = [Buffer("turned", left.dtype, (left.shape[-1], tile.rows), "in")] if before else []
            operands = (core, result, out, turned[0] if before else left, inputs[core.inputs[1]])
            statements = [lower_contraction(*operands, Inliner(inputs, names, self.caps.has_fma), tile, blocks,
                                            low[-1].rows if low else 0)]
            if low:
                statements.append(lower_few_rows(*operands, Inliner(inputs, names, self.caps.has_fma), low))
            nests = [*map(Nest, statements), *self._borders(body, out, inputs, names)]
            self._contractions[key] = self._kernel(body.name, [*inputs.values(), out, *turned], nests, loc,
                                                   contraction_choice(tile, blocks, general is not None, low))
        return [*before, (self._contractions[key], buffers, values)]

    def _on_tiles(self, body: Graph, core: Node, tile: GpuTile | PlainTile, loc: Loc) -> Kernel:
        """A contraction on a GPU, by matrix units or without."""
        key = (body.fingerprint, tile)
        if key not in self._tiled:
            inputs = {p: Buffer(f"x{i}", p.dtype, p.shape, "in") for i, p in enumerate(body.params)}
            made = parts_type(core, tile.parts) if tile.parts > 1 else body.results[0].tensor
            out, names = Buffer("y0", made.dtype, made.shape, "out"), self._fresh_names(body)
            operands = (core, body.results[0], out, inputs[core.inputs[0]], inputs[core.inputs[1]])
            inliner = Inliner(inputs, names, self.caps.has_fma)
            statement = (lower_gpu_contraction(*operands, inliner, tile) if isinstance(tile, GpuTile)
                         else lower_plain_tiles(*operands, inliner, tile))
            nests = [Nest(statement), *self._borders(body, out, inputs, names)]
            rounds = isinstance(core.op, (PackedDot, PackedConv)) and core.op.tf32 != ""
            details = [*[f"{tile.parts} parts of its steps"] * (tile.parts > 1), *["operands rounded to tf32"] * rounds]
            self._tiled[key] = self._kernel(body.name, [*inputs.values(), out], nests, loc, Choice("contraction", details=tuple(details)))
        return self._tiled[key]

    def _contraction_parts(self, body: Graph, core: Node, tile: GpuTile | PlainTile, loc: Loc) -> Launches:
        """A contraction whose steps are cut into parts, and what adds these up, with scratch memory between them."""
        first, second = sums_of_parts(body, core, tile.parts)
        kernel = self._on_tiles(first, core, tile, loc)
        b = Builder(loc)
        following = self.make(b.add(Fusion("elements", second), *second.params))
        numbers = {param: number for number, param in enumerate(body.params)}
        results, scratch = range(len(body.params), len(body.params) + len(body.results)), len(body.params) + len(body.results)
        launches: Launches = [(kernel, (*(numbers[p] for p in first.params), parts_type(core, tile.parts)), {})]
        own = [*(numbers.get(p, scratch) for p in second.params), *results]
        for made, entries, values in following:
            assert all(isinstance(entry, int) for entry in entries)
            launches.append((made, tuple(own[entry] if isinstance(entry, int) else entry for entry in entries), values))
        return launches

    def _blocks(self, core: Node, batch: int, tile: Tile) -> Blocks:
        rows, columns = product(core.shape[batch:-1]), core.shape[-1]
        words = core.op.narrow if isinstance(core.op, (PackedDot, PackedConv)) else 1
        depth, dtype = core.inputs[1].shape[-2] // words, core.inputs[1].dtype
        if isinstance(core.op, PackedDot):
            blocks = choose_blocks(product(core.shape[:batch]), rows, columns, depth, tile, dtype, self.caps)
            turns = blocks.streams > 1 and tile.rows > 1  # of which there is none for words
            return replace(blocks, streams=1) if core.op.symmetric or turns and core.op.step > 1 else blocks
        assert isinstance(core.op, PackedConv) and isinstance(columns, int)
        return choose_window_blocks(rows, columns // core.op.groups, depth, tile, dtype, self.caps)

    def _low_tiles(self, core: Node, batch: int, tile: Tile) -> tuple[Tile, ...]:
        """Tiles for the case that there are few rows, where that may well be: sizes of an image are seldom few, those of a signal
        are often. Each is code, and programs with open sizes have many kernels of matrix products."""
        is_dot = isinstance(core.op, PackedDot)
        rows = core.shape[batch:-1]
        if sum(not isinstance(n, int) for n in rows) > MOST_OPEN_SIZES or isinstance(core.op, PackedDot) and core.op.symmetric:
            return ()
        if not is_dot and len(rows) > 2 and not all(isinstance(n, int) for n in rows[1:]):
            return ()
        # a kernel of a matrix product is for any number of panels
        panels = symbol("panels") if is_dot else core.inputs[1].shape[-3]
        return choose_low_tiles(tile, product(rows), panels, self.caps, narrow=not is_dot)

    def _turned(self, left: Node, position: int, order: tuple[int, ...], loc: Loc) -> tuple[Launches, tuple[Entry, ...]]:
        """What brings the rows of the left operand side by side, [K, rows], in scratch memory; and the buffers of the
        contraction then."""
        depth = left.shape[-1]
        b = Builder(loc)
        x = b.add(Param("x0", left.dtype, left.shape))
        rows = b.add(Reshape((product(left.shape[:-1]), depth)), x)
        result = b.add(Transpose((1, 0)), rows)
        fused = b.add(Fusion("elements", Graph("turn", [x], [result])), x)
        (kernel, _, values), = self.make(fused)
        return [(kernel, (order[position], result.tensor), values)], (*order, len(order))

    def _winograd(self, body: Graph, core: Node, loc: Loc) -> Kernel:
        inputs = {p: Buffer(f"x{i}", p.dtype, p.shape, "in") for i, p in enumerate(body.params)}
        out = Buffer("y0", body.results[0].dtype, body.results[0].shape, "out")
        names = self._fresh_names(body)
        statement = lower_winograd(core, body.results[0], out, inputs[core.inputs[0]], inputs[core.inputs[1]],
                                   Inliner(inputs, names, self.caps.has_fma), choose_block(core, self.caps))
        nests = [Nest(statement), *self._borders(body, out, inputs, names)]
        return self._kernel(body.name, [*inputs.values(), out], nests, loc, Choice("winograd"))

    def _weight_only(self, body: Graph, core: Node, loc: Loc) -> Kernel:
        inputs = {p: Buffer(f"x{i}", p.dtype, p.shape, "in") for i, p in enumerate(body.params)}
        out = Buffer("y0", body.results[0].dtype, body.results[0].shape, "out")
        names = self._fresh_names(body)
        lhs, words, scales, *points = (inputs[x] for x in core.inputs)
        operands = Operands(lhs, words, scales, points[0] if points else None)
        inliner = Inliner(inputs, names, self.caps.has_fma)
        on_grid = lower_gpu_weight_only(core, body.results[0], out, operands, inliner, self.caps) if self.caps.is_gpu else None
        if on_grid is not None:
            return self._kernel(body.name, [*inputs.values(), out], list(map(Nest, on_grid)), loc, Choice("weight_only"))
        statements = lower_weight_only(core, body.results[0], out, operands, inliner, choose_plan(core, self.caps))
        nests = [*map(Nest, statements), *self._borders(body, out, inputs, names)]
        return self._kernel(body.name, [*inputs.values(), out], nests, loc, Choice("weight_only"))

    def _attention(self, body: Graph, inputs: dict[Node, Buffer], out: Buffer, names: Names, loc: Loc) -> Kernel:
        if self.caps.is_gpu:
            on_units = next(found for n in reversed(body.nodes()) if (found := unit_attention(n)) is not None)
            made = GpuAttention(on_units, body.results[0], out, Inliner(inputs, names, self.caps.has_fma)).lower()
            return self._kernel(body.name, [*inputs.values(), out], [Nest(made)], loc, Choice("attention"))
        attention = next(found for n in reversed(body.nodes()) if (found := find_attention(n)) is not None)
        plan = choose_attention_plan(attention, self.caps)
        inliner = Inliner(inputs, names, self.caps.has_fma)
        statement = AttentionKernel(attention, body.results[0], out, inliner, plan).lower()
        return self._kernel(body.name, [*inputs.values(), out], [Nest(statement)], loc, plan.choice())

    def _borders(self, body: Graph, out: Buffer, inputs: dict[Node, Buffer], names: Names) -> list[Nest]:
        """What lies around a result that is padded."""
        result = body.results[0]
        borders = border_regions(result, out) if isinstance(result.op, Pad) else []
        return [lower_border(border, Inliner(inputs, names, self.caps.has_fma), self._lanes(body)) for border in borders]

    def _elements(self, body: Graph, inputs: dict[Node, Buffer], outputs: list[Buffer], names: Names, loc: Loc,
                  order: tuple[int, ...]) -> Launches:
        lanes = self._lanes(body)
        buffers = [*inputs.values(), *outputs]
        own = len(outputs) == 1 and not self.caps.is_gpu
        windows = lower_windows(body, inputs, outputs[0], names, self.caps) if own else None
        if windows is not None:
            return [(self._kernel(body.name, buffers, [Nest(windows)], loc, Choice("windows")), order, {})]
        columns = lower_columns(body, inputs, outputs[0], names, self.caps) if not self.caps.is_gpu else None
        if columns is not None:
            return [(self._kernel(body.name, buffers, [columns], loc, Choice("columns")), order, {})]
        extremes = lower_extremes(body, inputs, outputs[0], names, lanes) if not self.caps.is_gpu else None
        if extremes is not None:
            return [(self._kernel(body.name, buffers, [extremes], loc), order, {})]
        root = body.results[0]
        if isinstance(root.op, (Elementwise, Cast, Bitcast)):
            together = lower_together(body.results, outputs, Inliner(inputs, names, self.caps.has_fma), lanes, self.caps)
            return [(self._kernel(body.name, buffers, [together], loc), order, {})]
        regions = regions_of(root, outputs[0])
        statements = [lower_region(region, Inliner(inputs, names, self.caps.has_fma), lanes, self.caps) for region in regions]
        if overlapping(root):
            # the second loop overwrites what the first one copied: a barrier must stand between them
            return [(self._kernel(body.name, buffers, [s], loc), order, {}) for s in statements]
        if isinstance(root.op, UpdateSlice):
            statements[:-1] = [lower_border(region, Inliner(inputs, names, self.caps.has_fma), lanes) for region in regions[:-1]]
        assert len(outputs) == 1 and (len(regions) == 1 or isinstance(root.op, (Concat, Pad, UpdateSlice)))
        return [(self._kernel(body.name, buffers, statements, loc), order, {})]

    def _lanes(self, body: Graph) -> int:
        """Lanes of the vector loops: one register of the widest type that is computed with, or several where functions are
        computed whose operations wait for one another."""
        widest = max((n.dtype for n in body.nodes() if isinstance(n.type, TensorType)), key=lambda d: d.bits)
        narrow = [n.dtype for n in body.results]
        if all(d.bits < 32 for d in narrow) and widest.bits < 32:
            return min(self.caps.lanes(widest), 16)
        main = min((d for d in narrow), key=lambda d: (d.bits < 32, d.bits))
        chains = any(isinstance(n.op, Elementwise) and n.op.function in LONG_CHAINS
                     or isinstance(n.op, ArgReduce) and n.op.axis != n.rank for n in body.nodes())
        return max(self.caps.lanes(main if main.bits >= 32 else widest), 4) * (CHAINS if chains else 1)

    # --- ops with a lowering of their own ----------------------------------------------------------------------------

    def _special(self, node: Node) -> Launches:
        inputs = [Buffer(f"x{i}", n.dtype, n.shape, "in") for i, n in enumerate(node.inputs)]
        out = Buffer("y0", node.dtype, node.shape, "out")
        count = len(inputs)
        names = Names({s.name: 1 for s in symbols_of(*(d for n in node.inputs for d in n.shape))})
        match node.op:
            case Cumulative() as op:
                statement = lower_cumulative(op, inputs[0], out, Inliner({}, names), self.caps.lanes(node.dtype))
                return [(self._kernel(op.name, [*inputs, out], [statement], node.loc, Choice("cumulative")), (0, 1), {})]
            case ArgSort(axis, descending):
                x, scratch = inputs[0], (TensorType(out.dtype, out.shape), TensorType(key_type(inputs[0].dtype), out.shape))
                spare, keys = (Buffer(name, t.dtype, t.shape, "out") for name, t in zip(("spare", "keys"), scratch))
                statement = lower_argsort(axis, descending, x, out, spare, keys, Inliner({}, names), self.caps.lanes(x.dtype))
                return [(self._kernel("arg_sort", [x, out, spare, keys], [statement], node.loc, Choice("sort")), (0, 1, *scratch), {})]
            case Sort(axis, descending):
                spare = Buffer("spare", out.dtype, out.shape, "out")
                statement = lower_sort(axis, descending, inputs[0], out, spare, Inliner({}, names), self.caps.lanes(out.dtype))
                scratch_type = TensorType(out.dtype, out.shape)
                return [(self._kernel("sort", [inputs[0], out, spare], [statement], node.loc, Choice("sort")), (0, 1, scratch_type), {})]
            case ScatterND() | ScatterAlong():
                copied = self.copy(node.tensor, node.loc)
                target = Buffer("y0", out.dtype, out.shape, "inout")
                statement = lower_scatter(node, inputs[1], inputs[2], target, Inliner({}, names))
                kernel = self._kernel(node.op.name, [inputs[1], inputs[2], target], [statement], node.loc, Choice("scatter"))
                return [*((copy, (0, count), {}) for copy in copied), (kernel, (1, 2, count), {})]
        raise InternalError(f"lowering: no kernel for {node.op.spelling}", loc=node.loc)

    # --- assembly ----------------------------------------------------------------------------------------------------

    def _kernel(self, name: str, buffers: Sequence[Buffer], nests: Sequence[Nest], loc: Loc,
                choice: Choice = ELEMENTS) -> Kernel:
        flat = tuple(Buffer(b.name, b.dtype, (product(b.shape),), b.space) for b in buffers)
        body = tuple(nest.statement for nest in nests)
        plain = Kernel(self._label(name), flat, free_symbols(flat, body), body, loc)
        chosen = tuple(step for nest in nests for step in nest.schedule) if len(nests) <= MOST_SCHEDULED else ()
        if self.caps.is_gpu:
            plain = in_squares(plain)
            chosen = (*grid_steps(plain), *(step for step in chosen if choice.strategy == "rows" and step.primitive == "vectorize"))
        kernel, schedule = apply_legal(plain, chosen)
        if choice.strategy in ("elements", "rows"):
            kernel = streamed(kernel, self.caps)
        self.choices[kernel.name] = replace(choice, schedule=tuple(map(str, schedule)),
                                            refused=tuple(str(step) for step in chosen if step not in schedule))
        if schedule:
            self.plans[kernel.name] = (plain, schedule)
        return kernel

    def _label(self, name: str) -> str:
        """The name, with a number where it was given before."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name


def _general_blocks(blocks: Blocks, values: dict[str, DimLike]) -> Blocks:
    """The blocks with what a kernel can be given when it is launched as symbols."""
    if blocks.rows == blocks.panels == 1:
        return blocks
    high, wide, steps = BLOCK_NAMES
    if blocks.depth != 0:
        values[steps] = blocks.depth
    if blocks.in_order:
        return replace(blocks, depth=symbol(steps, 1))
    values |= {high: blocks.rows, wide: blocks.panels}
    return replace(blocks, rows=symbol(high, 1, MOST_ROWS), panels=symbol(wide, 1, MOST_PANELS),
                   depth=symbol(steps, 1) if blocks.depth != 0 else 0)


def _core_of(body: Graph) -> Node:
    """The contraction of a group."""
    return next(n for n in body.nodes() if isinstance(n.op, (PackedDot, PackedConv, WinogradConv, WeightOnlyDot)))


def _window_check(inliner: Inliner, node: Node, low: DimLike, high: DimLike, count: DimLike, extent: DimLike,
                  problem: str = "the window leaves its axis") -> Check:
    zero = inliner.literal(0, INDEX)
    empty = inliner.scalar("le", inliner.index(count), zero)
    inside = inliner.scalar("and", inliner.scalar("ge", inliner.index(low), zero),
                            inliner.scalar("lt", inliner.index(high), inliner.index(extent)))
    message = f"{node.op.spelling}: {problem} at {node.loc}"
    return Check(inliner.scalar("or", empty, inside), ERROR_INDEX, message, inliner.index(high), inliner.index(extent))


def _windows(node: Node) -> Iterator[tuple[DimLike, int, DimLike]]:
    """(number of windows, elements that one spans, padded size) of each axis along which the node has windows."""
    window: Sequence[DimLike]
    match node.op:
        case PackedConv(kernel=window, dilation=dilation) as op:
            places, axes = node.shape[1:-1], op.padded_sizes(node.inputs[0].tensor)
        case WinogradConv(kernel=window):
            places, axes, dilation = node.shape[1:-1], node.inputs[0].shape[1:-1], (1,) * len(window)
        case ReduceWindow(window=window, padding=padding, dilation=dilation):
            places, axes = node.shape, tuple(low + n + high for n, (low, high) in zip(node.inputs[0].shape, padding))
        case Conv(padding=padding, dilation=dilation, input_dilation=spread) as op:
            places = node.shape[1:-1] if op.channels_last else node.shape[2:]
            found, window, *_ = op.parts(*(x.tensor for x in node.inputs))
            axes = tuple(low + (n - 1) * e + 1 + high for n, e, (low, high) in zip(found, spread, padding))
        case _:
            return
    for size, taps, by, axis in zip(places, window, dilation, axes, strict=True):
        assert isinstance(taps, int)
        yield size, (taps - 1) * by + 1, axis


def _size_check(inliner: Inliner, node: Node, size: DimLike, span: int, axis: DimLike) -> Check:
    message = f"{node.op.spelling}: a window does not fit into its axis at {node.loc}"
    fits = inliner.scalar("ge", inliner.index(size), inliner.literal(0, INDEX))
    return Check(fits, ERROR_INDEX, message, inliner.index(span - 1), inliner.index(axis))


def free_symbols(buffers: Sequence[Buffer], body: Sequence[Stmt]) -> tuple[Symbol, ...]:
    """The sizes that a kernel must be given: symbols that no loop or let binds."""
    bound: set[str] = set()
    sizes: list[DimLike] = [d for b in buffers for d in b.shape]
    seen: set[Node] = set()
    for statement in walk(body):
        match statement:
            case For(symbol=symbol, extent=extent):
                bound.add(symbol.name)
                sizes.append(extent)
            case Let(symbol=symbol) if symbol is not None:
                bound.add(symbol.name)
            case Store(index=index) | Prefetch(index=index):
                sizes.extend(index)
            case Alloc(buffer):
                sizes.extend(buffer.shape)
        for root in expressions_of(statement):
            new = expression_nodes(root, seen)
            seen.update(new)
            for node in new:
                if isinstance(node.op, Load):
                    sizes.extend(node.op.index)
                elif isinstance(node.op, IndexValue):
                    sizes.append(node.op.size)
    return tuple(s for s in symbols_of(*dict.fromkeys(sizes)) if s.name not in bound)


__all__ = ["KernelMaker", "free_symbols"]
