"""A fused graph to a program: kernels, launches, and a place in memory for every value.

Every node of the fused graph becomes a launch or control flow; a `reshape` is a view of its operand's memory. Results
are written straight into the outputs where they can be. Kernels that are the same up to names of values are shared.

Assumes the form that `compiler/passes/fuse.py` establishes. Guarantees: a value's memory is not reused before its last
reader ran; the states of loops are replaced at the end of each round, never while a body still reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct, field

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, product, size_of
from ..ir.errors import UNKNOWN, InternalError, Loc
from ..ir.facts import Facts
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.loop import Kernel
from ..ir.ops.control import Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from ..ir.ops.shape import Reshape
from ..ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from ..ir.types import TensorType
from .abstract import Sizes, abstract_graph
from .facts import FactsMaker
from .gpu import on_grid
from .kernels import KernelMaker, Plan
from .memory import ALIGNMENT, Arena, Storage, assign_offsets
from .share import share_kernels

FEW_BYTES = 4096  # up to which the states of a loop are copied rather than its body is made twice


class Spot(Struct, frozen=True):
    """Where a value is: an input, output or constant (`space`, `number`), or a storage of the workspace; plus an offset
    in bytes."""

    space: str
    number: int = 0
    storage: Storage | None = None
    offset: DimLike = 0


class Draft(Struct, eq=False):
    """A launch before offsets are known, and the node that it computes or prepares for."""

    kernel: Kernel
    spots: tuple[Spot, ...]
    sizes: tuple[DimLike, ...]
    facts: Facts
    node: Node


class DraftBlock(Struct, eq=False):
    """Control flow before offsets are known; `make` builds the step from the finished parts. `label`: the op's; `rounds`: how often its
    parts run, as far as that is known."""

    label: str
    parts: tuple[list[Draft | DraftBlock], ...]
    condition: Spot | None
    make: Callable[[tuple[tuple[Step, ...], ...], Place | None], Step]
    rounds: DimLike = 1


Drafts = list[Draft | DraftBlock]


def finish_drafts(drafts: Drafts, place_of: Callable[[Spot], Place]) -> tuple[Step, ...]:
    """The steps, with a place for each spot."""
    steps: list[Step] = []
    for draft in drafts:
        if isinstance(draft, Draft):
            steps.append(Launch(draft.kernel, tuple(map(place_of, draft.spots)), draft.sizes, facts=draft.facts))
        else:
            condition = None if draft.condition is None else place_of(draft.condition)
            steps.append(draft.make(tuple(finish_drafts(part, place_of) for part in draft.parts), condition))
    return tuple(steps)


class Statistics(Struct):
    """Figures of the plan, for reports, and how kernels came to be: by name, as they were first built and scheduled."""

    storages: list[Storage] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    arena_bound: int | None = None  # no arena for this order is smaller; where all sizes are static
    order_bound: int | None = None  # no arena for any order is smaller; where one was looked for


class Drafted(Struct):
    """A lowered graph before its values have places; `storages` are those of the workspace. `launches`: what computes one node more, given
    the spots of its operands and of its results."""

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[tuple[str, TensorType], ...]
    constants: tuple[tuple[int, Constant], ...]
    constants_bytes: int
    storages: list[Storage]
    drafts: Drafts
    launches: Callable[[Node, Sequence[Spot], Sequence[Spot]], Drafts]


class Placement(Struct):
    """The order of the launches, with the arena of their values; `bound`: no order has fewer bytes, where that was looked for."""

    drafts: Drafts
    arena: Arena
    bound: int | None = None


def place_as_drafted(made: Drafted) -> Placement:
    return Placement(made.drafts, assign_offsets(made.storages))


def lower_program(graph: Graph, caps: Caps, place: Callable[[Drafted], Placement] = place_as_drafted) -> tuple[Program, Statistics]:
    """The program of a fused graph, and figures of its memory plan. `place` sets the offsets of the storages."""
    return _Lowering(graph, caps).run(place)


def draft_program(graph: Graph, caps: Caps) -> Drafted:
    """The launches of a fused graph, for those who place values themselves. None stores over an operand."""
    return _Lowering(graph, caps, in_place=False).drafted()


class _Lowering:
    def __init__(self, graph: Graph, caps: Caps, in_place: bool = True) -> None:
        self.in_place = in_place
        self.original = graph
        self.sizes = Sizes(frozenset(s.name for s in graph.symbols))
        self.graph = abstract_graph(graph, self.sizes)
        self.kernels = KernelMaker(caps)
        self.facts = FactsMaker(self.sizes.concrete)
        self.storages: list[Storage] = []
        self.constants: dict[str, tuple[int, Constant]] = {}
        self.constants_bytes = 0
        self.clock = 0
        self.loop_count = 0

    def run(self, place: Callable[[Drafted], Placement]) -> tuple[Program, Statistics]:
        made = self.drafted()
        placed = place(made)
        arena, steps = placed.arena, finish_drafts(placed.drafts, _place)
        program = Program(made.name, made.inputs, made.outputs, made.constants, made.constants_bytes, arena.size, steps,
                          self.original.symbols)
        shared = share_kernels(program)
        program = on_grid(shared, self.kernels.caps) if self.kernels.caps.is_gpu else shared
        return program, Statistics(self.storages, self.kernels.plans, arena.bound, placed.bound)

    def drafted(self) -> Drafted:
        graph = self.graph
        spots: dict[Node, tuple[Spot, ...]] = {}
        for number, param in enumerate(graph.params):
            spots[param] = (Spot("input", number),)
        drafts = self._graph(graph, spots, self._output_spots())
        inputs = tuple((p.op.label, p.tensor) for p in self.original.params if isinstance(p.op, Param))
        outputs = tuple((name, r.tensor) for name, r in zip(graph.result_names, self.original.results))
        constants = tuple(sorted(self.constants.values(), key=lambda row: row[0]))
        return Drafted(graph.name, inputs, outputs, constants, self.constants_bytes, self.storages, drafts, self.launches)

    def launches(self, node: Node, operands: Sequence[Spot], targets: Sequence[Spot]) -> Drafts:
        """What computes a node that is not of the graph."""
        drafts: Drafts = []
        self._launch(node, operands, targets, drafts)
        return drafts

    def _output_spots(self) -> list[Spot]:
        return [Spot("output", number) for number in range(len(self.graph.results))]

    # --- walking a graph ---------------------------------------------------------------------------------------------

    def _graph(self, graph: Graph, spots: dict[Node, tuple[Spot, ...]], targets: Sequence[Spot]) -> Drafts:
        """Drafts that compute the graph's results into `targets`. `spots` has its params."""
        drafts = self._size_check(graph)
        direct: dict[tuple[Node, int], Spot] = {}
        copies: list[tuple[Node, Spot]] = []
        taken: set[tuple[Node, int]] = set()
        for result, target in zip(graph.results, targets, strict=True):
            origin = _origin(result)
            if origin is not None and origin not in taken and origin[0] not in spots:
                taken.add(origin)
                direct[origin] = target
            else:
                copies.append((result, target))
        last_use = _last_uses(graph)
        # also results that are written straight into their targets: in a body these are memory like any other
        lasting = {*spots, *map(_base, graph.results)}
        for node in graph.nodes():
            if node not in spots:
                dying = {n for n in last_use.get(node, ()) if n not in lasting}
                spots[node] = self._node(node, spots, direct, drafts, dying)
            for dead in last_use.get(node, ()):
                self._alive(spots[dead])
            self.clock += 1
        for result, target in copies:
            self.clock += 1
            self._copy(spots[result][0], target, result.tensor, drafts, result.loc)
            storage = spots[result][0].storage
            if storage is not None:
                storage.last = max(storage.last, self.clock)
        return drafts

    def _size_check(self, graph: Graph) -> Drafts:
        """What comes before all else, since memory is laid out by the sizes of the graph."""
        made = self.kernels.size_check(graph)
        return [] if made is None else [self._draft(made[1], made[0], (), {}, (), False)]

    def _node(self, node: Node, spots: dict[Node, tuple[Spot, ...]], direct: dict[tuple[Node, int], Spot],
              drafts: Drafts, dying: set[Node]) -> tuple[Spot, ...]:
        """The spots of a node's results. `dying`: values made in this graph that only this node still reads."""
        match node.op:
            case Const(value):
                return (self._constant(value),)
            case Reshape():
                return spots[node.inputs[0]]
            case Get(index):
                return (spots[node.inputs[0]][index],)
            case MakeTuple():
                return tuple(spots[i][0] for i in node.inputs)
        operands = [spots[i][0] for i in node.inputs]
        if self.in_place and isinstance(node.op, Fusion) and (node, 0) not in direct:
            over = self._write_over(node, operands, dying, drafts)
            if over is not None:
                return (over,)
        types = _result_types(node)
        targets = tuple(direct[(node, i)] if (node, i) in direct else self._new(f"{node.op.spelling}.{i}", t)
                        for i, t in enumerate(types))
        match node.op:
            case If() as op:
                drafts.append(self._if(op, operands, targets))
            case While() as op:
                self._while(op, operands, targets, drafts, node)
            case Scan() as op:
                self._scan(op, operands, targets, drafts, node)
            case _:
                self._launch(node, operands, targets, drafts)
        return targets

    def _new(self, label: str, type: TensorType) -> Spot:
        size = self.sizes.concrete(type.elements) * type.dtype.bytes
        storage = Storage(label, size, self.clock, self.clock)
        self.storages.append(storage)
        return Spot("workspace", 0, storage)

    def _constant(self, value: Constant) -> Spot:
        if value.digest not in self.constants:
            self.constants[value.digest] = (self.constants_bytes, value)
            self.constants_bytes += -(-value.array.nbytes // ALIGNMENT) * ALIGNMENT
        return Spot("constant", 0, None, self.constants[value.digest][0])

    def _launch(self, node: Node, operands: Sequence[Spot], targets: Sequence[Spot], drafts: Drafts) -> None:
        everything = [*operands, *targets]
        made = self.kernels.make(node)
        for number, (kernel, order, values) in enumerate(made):
            spots = []
            for entry in order:
                if isinstance(entry, int):
                    spots.append(everything[entry])
                else:
                    spots.append(self._new("scratch", entry))
                    everything.append(spots[-1])
            drafts.append(self._draft(node, kernel, spots, values, [*operands, *targets], number == len(made) - 1))

    def _write_over(self, node: Node, operands: Sequence[Spot], dying: set[Node], drafts: Drafts) -> Spot | None:
        """Launches the node's kernel in place of a dying operand, where that is possible; the operand's spot then."""
        for position, value in enumerate(node.inputs):
            spot = operands[position]
            if spot.storage is None or _base(value) not in dying or operands.count(spot) != 1:
                continue
            made = self.kernels.make_in_place(node, position)
            if made is not None:
                kernel, values = made
                others = [o for i, o in enumerate(operands) if i != position]
                drafts.append(self._draft(node, kernel, [*others, spot], values, [*operands, spot]))
                return spot
        return None

    def _draft(self, node: Node, kernel: Kernel, spots: Sequence[Spot], values: dict[str, DimLike], around: Sequence[Spot],
               main: bool = True) -> Draft:
        """`around`: the node's operands and results; `main`: the launch computes the node, and does not prepare for it."""
        sizes = self._kernel_sizes(kernel, values)
        choice, spaces = self.kernels.choices[kernel.name], [spot.space for spot in around]
        facts = self.facts.facts_of(node, kernel, choice, spaces, sizes, main)
        return Draft(kernel, tuple(spots), sizes, facts, node)

    def _kernel_sizes(self, kernel: Kernel, values: dict[str, DimLike]) -> tuple[DimLike, ...]:
        """What a launch passes for the kernel's symbols, in the program's own: `values` of the kernel's private ones."""
        return tuple(self.sizes.concrete(values.get(s.name, size_of(s))) for s in kernel.symbols)

    def _copy(self, source: Spot, target: Spot, type: TensorType, drafts: Drafts, loc: Loc = UNKNOWN) -> None:
        if source == target:
            return
        copied = Builder(loc).add(Param("x0", type.dtype, type.shape))
        for kernel in self.kernels.copy(type, loc):
            drafts.append(self._draft(copied, kernel, [source, target], {}, [source, target], False))

    # --- control flow ------------------------------------------------------------------------------------------------

    def _body(self, body: Graph, operands: Sequence[Spot], targets: Sequence[Spot]) -> Drafts:
        return self._graph(body, {p: (s,) for p, s in zip(body.params, operands, strict=True)}, targets)

    def _alive(self, spots: Sequence[Spot]) -> None:
        """The memory of these is needed until now."""
        for spot in spots:
            if spot.storage is not None:
                spot.storage.last = max(spot.storage.last, self.clock)

    def _if(self, op: If, operands: Sequence[Spot], targets: Sequence[Spot]) -> DraftBlock:
        then = self._body(op.then_body, operands[1:], targets)
        other = self._body(op.else_body, operands[1:], targets)
        self._alive([*operands, *targets])

        return DraftBlock("if", (then, other), operands[0], _branch)

    def _while(self, op: While, operands: Sequence[Spot], targets: tuple[Spot, ...], drafts: Drafts, node: Node) -> None:
        types = _result_types(node)
        for source, target, type in zip(operands, targets, types):
            self._copy(source, target, type, drafts)
        captures = operands[op.count:]
        condition = self._new("while.condition", op.condition.results[0].tensor)
        first = self._body(op.condition, [*targets, *captures], [condition])
        next_states = [self._new("while.next", t) for t in types]
        steps = self._body(op.body, [*targets, *captures], next_states)
        over: Drafts = []
        for source, target, type in zip(next_states, targets, types):
            self._copy(source, target, type, over)
        if all(bounds(t.elements)[1] * t.dtype.bytes <= FEW_BYTES for t in types):
            steps += over
        else:
            steps += self._round_back(op, captures, next_states, targets, over)
        self.clock += 1
        self._alive([*operands, *targets, condition, *next_states])

        def make(parts: tuple[tuple[Step, ...], ...], place: Place | None) -> Step:
            assert place is not None
            return Loop(parts[0], place, parts[1])

        drafts.append(DraftBlock("while", (first, steps), condition, make))

    def _round_back(self, op: While, captures: Sequence[Spot], states: Sequence[Spot], targets: Sequence[Spot],
                    over: Drafts) -> Drafts:
        """The next round with the memory of states exchanged, so that large ones need not be copied; only when the loop ends
        in between they are, and its condition is then false once more."""
        condition = self._new("while.condition", op.condition.results[0].tensor)
        drafts = self._body(op.condition, [*states, *captures], [condition])
        back = self._body(op.body, [*states, *captures], targets)
        self.clock += 1
        self._alive([condition])
        return [*drafts, DraftBlock("while", (back, over), condition, _branch, 0)]  # the same round once more

    def _scan(self, op: Scan, operands: Sequence[Spot], targets: tuple[Spot, ...], drafts: Drafts, node: Node) -> None:
        types = _result_types(node)
        self.loop_count += 1
        counter = Symbol(f"step{self.loop_count}", 0, None)
        at = size_of(counter)
        states, middle = targets[:op.states], op.states + op.scanned
        for source, target, type in zip(operands, states, types):
            self._copy(source, target, type, drafts)
        if bounds(op.length)[1] <= 0:
            return  # what a step reads may not be there
        slices = [self._slice(spot, operand.tensor, at) for spot, operand in
                  zip(operands[op.states:middle], node.inputs[op.states:middle])]
        stacked = [self._slice(spot, type, at) for spot, type in zip(targets[op.states:], types[op.states:])]
        next_states = [self._new("scan.next", t) for t in types[:op.states]]
        steps = self._body(op.body, [*states, *slices, *operands[middle:]], [*next_states, *stacked])
        for source, target, type in zip(next_states, states, types):
            self._copy(source, target, type, steps)
        self.clock += 1
        self._alive([*operands, *targets, *next_states])

        def make(parts: tuple[tuple[Step, ...], ...], place: Place | None) -> Step:
            return Repeat(counter, self.sizes.concrete(op.length), parts[0], op.reverse)

        drafts.append(DraftBlock("scan", (steps,), None, make, self.sizes.concrete(op.length)))

    def _slice(self, spot: Spot, type: TensorType, at: DimLike) -> Spot:
        """Where the slice of a step lies."""
        step = self.sizes.concrete(product(type.shape[1:])) * type.dtype.bytes
        return Spot(spot.space, spot.number, spot.storage, spot.offset + at * step)


def _branch(parts: tuple[tuple[Step, ...], ...], condition: Place | None) -> Step:
    assert condition is not None
    return Branch(condition, parts[0], parts[1])


def _base(value: Node) -> Node:
    """The node whose memory a view looks at."""
    while isinstance(value.op, (Reshape, Get)):
        source = value.inputs[0]
        if isinstance(value.op, Get) and isinstance(source.op, MakeTuple):
            source = source.inputs[value.op.index]
        value = source
    return value


def _place(spot: Spot) -> Place:
    base: DimLike = 0 if spot.storage is None else spot.storage.offset
    return Place(spot.space, spot.number, base + spot.offset)


def _result_types(node: Node) -> tuple[TensorType, ...]:
    items = (node.type,) if isinstance(node.type, TensorType) else node.type.items
    for item in items:
        if not isinstance(item, TensorType):
            raise InternalError(f"lowering: {node.op.spelling} gives a nested tuple", loc=node.loc)
    return tuple(items)  # type: ignore[arg-type]


def _origin(result: Node) -> tuple[Node, int] | None:
    """The node and item that first writes a result's memory, through views; None for params and constants."""
    index = 0
    while isinstance(result.op, (Reshape, Get)):
        if isinstance(result.op, Get):
            index = result.op.index
        result = result.inputs[0]
    if isinstance(result.op, (Param, Const, MakeTuple)):
        return None
    return result, index


def _last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """For each node the values that it is the last to read; views count as readers that keep their operand alive."""
    last: dict[Node, Node] = {}
    for node in graph.nodes():
        for operand in node.inputs:
            stack = [operand]
            while stack:
                value = stack.pop()
                last[value] = node
                if isinstance(value.op, (Reshape, Get, MakeTuple)):
                    stack.extend(value.inputs)
    ends: dict[Node, list[Node]] = {}
    for value, reader in last.items():
        ends.setdefault(reader, []).append(value)
    return ends


__all__ = ["lower_program", "Statistics"]
