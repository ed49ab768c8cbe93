"""Operator fusion: groups of nodes that become one kernel each.

After this pass every node is a param, a constant, a `fusion`, an op with a lowering of its own (sort, cumulative,
scatter, control flow), a `get` of one of these, or a `reshape` of any of them, which is a view and costs nothing.

Strategies of a group, in the order in which they claim nodes:
- `attention`: softmax of scores between two packed dots, with both, the elementwise nodes behind the second one, and the
  transpose that alone reads the result;
- `contraction`: a packed dot or convolution with the elementwise nodes behind it as epilogue (in registers), and the
  `pad` that alone reads the result, if one does;
- `rows`: reductions over the same trailing axes with everything between and around them (softmax, layer norm);
- `elements`: everything else: elementwise chains with broadcasts and data movement, other reductions, windows, direct
  convolutions and dots with prologue and epilogue, concat, pad (also of a concat), update_slice.

Cost model. Keeping a value costs one write and a read for each reader; computing it again costs its operations times
the number of kernels (and of repetitions, behind a broadcast or in a window). A value that several kernels need is kept
when computing it takes more than CHEAP weighted operations, or contains a reduction, or when a broadcast spreads it. A group
never makes a cycle: a node joins only if no operand outside the group depends on the group. At last elementwise groups over
one shape are joined where they read the same (`siblings.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from ..attention import plain_attention, repeated, unit_attention
from ..cost import WEIGHTS
from ..ir.dims import DimLike, bounds, product
from ..ir.errors import merge_locs
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import (
    ArgReduce,
    ArgSort,
    Bitcast,
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
from ..ir.ops.control import Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from ..ir.ops.shape import (
    Broadcast,
    Concat,
    GatherND,
    Iota,
    Pad,
    Reshape,
    ScatterAlong,
    ScatterND,
    SizeOf,
    Slice,
    Take,
    TakeAlong,
    Transpose,
    UpdateSlice,
)
from ..ir.ops.weight_only import WeightOnlyDot
from ..ir.ops.winograd import WinogradConv
from ..ir.types import TensorType
from ..options import Options
from ..tiles import is_plain_matrix
from .siblings import Group, Siblings

CHEAP = 3          # weighted operations that may be computed again in another kernel
REPEATED = 16      # weighted operations that may be computed again for an element that one kernel reads at several places
GROUP_LIMIT = 96   # nodes a group may grow to (bounds the depth of expressions)
SPREAD = 16        # places that an element is broadcast to, from which on a value is kept that two readers need
FEW_COPIES = 16    # of a border: elements that are looked for among parts put side by side
SMALL_ROW = 16     # rows shorter than this are reduced element by element

INLINE = (Elementwise, Cast, Bitcast, Broadcast, Reshape, Transpose, Slice, Iota, SizeOf, Take, TakeAlong, GatherND)
REGION = (Concat, Pad, UpdateSlice)
INNER_LOOP = (Reduce, ReduceWindow, Conv, Dot, ArgReduce)
LIMITING = ("max", "min", "fmax", "fmin")
CONTRACTION = (PackedDot, PackedConv, WinogradConv, WeightOnlyDot)
OWN_LOWERING = (Sort, ArgSort, Cumulative, ScatterND, ScatterAlong, If, While, Scan)
# ops whose operands are read more than once an element
REREADING = (ReduceWindow, Conv, Dot, Broadcast)

MOST_PLACES = 32   # of one value in a kernel that are told apart
Place = tuple[int, ...]  # the nodes that change the index between what a kernel stores and a value


def fuse(graph: Graph, options: Options, on_gpu: bool = False) -> Graph:
    """The graph with fusion groups made explicit (see the module's text). A GPU has one kernel for other attentions than a CPU.
    Contract: exact."""
    return _Fuser(graph, options, on_gpu).run()


class _Fuser:
    def __init__(self, graph: Graph, options: Options, on_gpu: bool) -> None:
        self.graph, self.options, self.on_gpu = graph, options, on_gpu
        self.nodes = graph.nodes()
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.users = graph.users()
        self.results = set(graph.results)
        self.group_of: dict[Node, Group] = {}
        self.groups: list[Group] = []
        self.deep: set[Node] = set()
        self.spread: set[Node] = set()
        self.copying: set[Node] = set()  # contractions that copy their left operand, so that it need not lie in memory
        self.reading: set[Node] = set()  # what only repeats packed operands for the products of an attention, which read these from memory

    def run(self) -> Graph:
        if self.options.precision == "default":  # it divides by the sum at last, and not each weight
            for node in self.nodes:
                if isinstance(node.op, PackedDot):
                    self._claim_attention(node)
        for node in self.nodes:
            if isinstance(node.op, CONTRACTION) and node not in self.group_of:
                grown = self._grow("contraction", node)
                op = node.op  # tiles of a GPU that store no border: of panels in squares, and of no panels
                by_groups = self.on_gpu and (isinstance(op, (PackedDot, PackedConv)) and op.square > 1
                                             or isinstance(op, PackedDot) and is_plain_matrix(op, node.inputs[1].tensor))
                self._claim(grown if by_groups else self._with_padding(grown, node))
        for node in self.nodes:
            if isinstance(node.op, Reduce) and node not in self.group_of and _row_space(node) is not None \
                    and not self._across(node):
                self._claim(self._grow_rows(node))
        for node in self.nodes:
            if isinstance(node.op, (*INNER_LOOP, *REGION)) and node not in self.group_of and not self._is_part(node):
                group = Group("elements", {node}, [node])
                self._claim(self._grow("elements", node) if isinstance(node.op, INNER_LOOP)
                            else self._with_padding(group, node) if isinstance(node.op, Concat) else group)
        self._choose_kept()
        self.groups, dropped = Siblings(self.groups, self.graph.results, self.order, self._outside, self._is_stored).join()
        self.kept -= dropped
        return self._assemble()

    def _across(self, reduction: Node) -> bool:
        """Whether the rows lie across memory: all large values that the reduction reads are transposed, so that neighbouring
        results, not neighbouring terms, are neighbours in memory."""
        full = reduction.inputs[0].shape
        outer = len(full) - len(reduction.op.axes) if isinstance(reduction.op, Reduce) else 0
        crossed = False
        seen: set[Node] = set()
        stack = [reduction.inputs[0]]
        while stack and outer > 0 and bounds(full[outer - 1])[1] >= SMALL_ROW:
            node = stack.pop()
            if node in seen or node.shape != full:
                continue
            seen.add(node)
            if isinstance(node.op, (Elementwise, Cast)) and node not in self.group_of:
                stack.extend(node.inputs)
            elif isinstance(node.op, Transpose) and node.op.perm[outer - 1] == node.rank - 1:
                crossed = True
            elif not (isinstance(node.op, Broadcast) and node.inputs[0].shape != full):
                return False
        return crossed

    def _is_part(self, node: Node) -> bool:
        """Whether readers compute what the node puts side by side or pads, each element where it is read."""
        if node in self.results:
            return False
        return isinstance(node.op, Concat) and (self._only_indices(node) or self._only_widened(node)) or self._only_beside(node)

    def _only_beside(self, node: Node) -> bool:
        """Whether the node is padded only to be put beside others: the last panel of a packed operand. It is stored at its place."""
        part = node
        while isinstance(node.op, Pad) and len(self.users[part]) == 1 and part not in self.results:
            user, = self.users[part]
            if isinstance(user.op, Concat):
                return user not in self.group_of and user.inputs.count(part) == 1 and not self._is_part(user)
            if not isinstance(user.op, Reshape) or _without_ones(user) != _without_ones(part):
                return False
            part = user
        return False

    def _only_indices(self, node: Node) -> bool:
        """Whether the node only puts columns of indices side by side for gathers."""
        return (node.op.axis == node.rank - 1  # type: ignore[attr-defined]  # of a concat
                and all(part.shape[-1] == 1 for part in node.inputs) and bool(self.users[node])
                and all(isinstance(u.op, GatherND) and u.inputs[0] is not node for u in self.users[node]))

    def _only_widened(self, node: Node) -> bool:
        """Whether the node is only put between few elements along another axis, which are moved here from it: as an array is
        whose borders are repeated along one axis and then along the next. Its parts are stored at their places in the whole."""
        axis = node.op.axis  # type: ignore[attr-defined]  # of a concat
        around = {u for u in self.users[node] if isinstance(u.op, Concat)}
        if len(around) != 1 or any(bounds(part.shape[axis])[0] < 1 for part in node.inputs):
            return False
        whole, = around
        edges = [part for part in whole.inputs if part is not node]
        stack = [user for user in self.users[node] if user is not whole]
        while stack:
            moved = stack.pop()
            if not isinstance(moved.op, (Slice, Broadcast, Reshape)) or moved in self.results or moved in self.group_of:
                return False
            stack.extend(user for user in self.users[moved] if user is not whole)
        assert isinstance(whole.op, Concat)
        return (whole.op.axis != axis and len(edges) == len(whole.inputs) - 1
                and all(bounds(part.shape[whole.op.axis])[1] <= FEW_COPIES for part in edges))

    # --- growing groups ----------------------------------------------------------------------------------------------

    def _claim(self, group: Group) -> None:
        self.groups.append(group)
        for node in group.members:
            self.group_of[node] = group

    def _claim_attention(self, last: Node) -> None:
        """Claims the attention that ends in this product, if one does that is worth it and of which nothing else is needed."""
        attention = unit_attention(last) if self.on_gpu else plain_attention(last)
        if attention is None:
            return
        inner = attention.between(self.nodes[self.order[attention.first]:self.order[last] + 1])
        if inner is None or any(n in self.group_of for n in inner):
            return
        inner.discard(last)
        if any(n in self.results or any(u is not last and u not in inner for u in self.users[n]) for n in inner):
            return
        group = self._grow("attention", last)
        exit, = group.exits
        users = self.users[exit]
        if len(users) == 1 and exit not in self.results:
            moved, = users
            if isinstance(moved.op, Transpose) and exit.shape == last.shape and moved.op.perm[-1] == exit.rank - 1 \
                    and moved not in self.group_of:
                group.members.add(moved)
                group.exits = [moved]
        group.members |= inner
        if self.on_gpu:
            self._read_repeated(group, attention.first, last)
        self.copying.add(attention.first)
        self._claim(group)

    def _read_repeated(self, group: Group, *products: Node) -> None:
        """Heads that share keys or values read the same ones: what only repeats them for these products is a way to read them."""
        known = group.members | set(products)
        for made in products:
            for node in repeated(made.inputs[1]):
                if node in self.group_of or node in self.results or not known.issuperset(self.users[node]):
                    break
                group.members.add(node)
                known.add(node)
                self.reading.add(node)

    def _grow(self, strategy: str, core: Node) -> Group:
        """The core with elementwise users of the same shape (axes of size 1 aside), cut back to the last point with a
        single exit."""
        sizes = _without_ones(core)
        members: set[Node] = {core}
        best: tuple[set[Node], Node] = ({core}, core)
        behind: set[Node] = set()
        last = self._last_user(core)
        for node in self._followers(core):
            if self.order[node] > last:
                break
            touches = any(i in members for i in node.inputs)
            blocked = any(i in behind for i in node.inputs)
            joins = (touches and not blocked and len(members) < GROUP_LIMIT and node not in self.group_of
                     and isinstance(node.op, (Elementwise, Cast, Bitcast, Reshape)) and _without_ones(node) == sizes)
            if not joins:
                behind.add(node)
                continue
            members.add(node)
            last = max(last, self._last_user(node))
            exits = self._exits(members)
            if len(exits) == 1:
                best = (set(members), exits[0])
        return Group(strategy, best[0], [best[1]])

    def _with_padding(self, group: Group, core: Node) -> Group:
        """The group with the pad behind it, where nothing else reads its result: it is stored where it lies within the
        padding. The last axis must still be the core's, for which a row is contiguous."""
        exit, = group.exits
        users = self.users[exit]
        if len(users) != 1 or exit in self.results or 0 in core.shape or exit.shape[-1:] != core.shape[-1:]:
            return group
        pad, = users
        if not isinstance(pad.op, Pad) or pad in self.group_of or not _scalar_constant(pad.inputs[1]):
            return group
        return Group(group.strategy, group.members | {pad}, [pad])

    def _followers(self, core: Node) -> Iterator[Node]:
        """The nodes that depend on `core`, in order."""
        found: set[Node] = {core}
        for node in islice(self.nodes, self.order[core] + 1, None):
            if not found.isdisjoint(node.inputs):
                found.add(node)
                yield node

    def _last_user(self, node: Node) -> int:
        """The position of the last node that reads this one."""
        return max((self.order[user] for user in self.users[node]), default=-1)

    def _exits(self, members: set[Node]) -> list[Node]:
        return sorted((n for n in members if n in self.results or any(u not in members for u in self.users[n])),
                      key=self.order.__getitem__)

    def _grow_rows(self, first: Node) -> Group:
        space = _row_space(first)
        assert space is not None
        outer, inner = space
        members: set[Node] = {first}
        behind: set[Node] = set()
        last = self._last_user(first)
        for node in self._followers(first):
            if self.order[node] > last:
                break
            touches = any(i in members for i in node.inputs)
            blocked = any(i in behind for i in node.inputs)
            free = node not in self.group_of and len(members) < GROUP_LIMIT
            if touches and not blocked and free and _joins_rows(node, members, outer, inner):
                members.add(node)
                last = max(last, self._last_user(node))
            else:
                behind.add(node)
        members -= self._tail(members, outer)
        return Group("rows", members, self._row_exits(members))

    def _tail(self, members: set[Node], outer: tuple[DimLike, ...]) -> set[Node]:
        """What a row group computes once a row and needs for nothing along the rows, where that takes long: a kernel of its
        own computes it for many rows in vectors."""
        found: set[Node] = set()
        for node in sorted(members, key=self.order.__getitem__, reverse=True):
            narrow = [n for n in node.shape if n != 1] == [n for n in outer if n != 1]
            if narrow and isinstance(node.op, (Elementwise, Cast, Bitcast, Reshape)) \
                    and all(u in found for u in self.users[node] if u in members):
                found.add(node)
        weight = sum(WEIGHTS.get(n.op.function, 1) for n in found if isinstance(n.op, Elementwise))
        return found if weight > REPEATED and bounds(product(outer))[1] >= SMALL_ROW else set()

    def _row_exits(self, members: set[Node]) -> list[Node]:
        """The values a row group stores. A reshape of the group that is used outside is a view there; a broadcast is made
        there anew from what it reads, unless a reader needs it in memory."""
        found: set[Node] = set()
        for node in self._exits(members):
            viewed = False
            while isinstance(node.op, (Reshape, Broadcast)) and node.inputs[0] in members:
                if isinstance(node.op, Broadcast) and (viewed or self._read_from_memory(node)):
                    break
                viewed = viewed or isinstance(node.op, Reshape)
                node = node.inputs[0]
            found.add(node)
        return sorted(found, key=self.order.__getitem__)

    def _read_from_memory(self, node: Node) -> bool:
        """Whether a reader cannot compute the value in place, or is a view that such a reader may look at."""
        return node in self.results or any(isinstance(u.op, (*OWN_LOWERING, *CONTRACTION, Reshape, MakeTuple))
                                           for u in self.users[node])

    # --- which values are kept ---------------------------------------------------------------------------------------

    def _choose_kept(self) -> None:
        """Decides, users first, for every node outside the groups whether it is stored; such nodes become groups."""
        kernels: dict[Node, set[int]] = {}
        places: dict[Node, set[Place]] = {}
        exit_groups = {e: g for g in self.groups for e in g.exits}
        self.kept: set[Node] = set(exit_groups)
        self.views: set[Node] = set()
        cost: dict[Node, float] = {}
        depth: dict[Node, int] = {}
        for node in self.nodes:
            cost[node] = self._cost(node, cost)
            if cost[node] > 0 and len(self.users[node]) > 1 and isinstance(node.type, TensorType) and self._is_spread(node):
                self.spread.add(node)
            inline = isinstance(node.op, INLINE) and node not in self.group_of
            depth[node] = 1 + max((depth[i] for i in node.inputs), default=0) if inline else 0
            if depth[node] >= GROUP_LIMIT:
                depth[node] = 0
                self.deep.add(node)
        for node in reversed(self.nodes):
            if isinstance(node.op, (Param, Const, MakeTuple, Get)) or not isinstance(node.type, TensorType):
                continue
            if node in self.group_of:
                kernels[node] = {id(self.group_of[node])}
                continue
            if isinstance(node.op, OWN_LOWERING):
                self.kept.add(node)
                continue
            places[node] = self._places(node, places)
            repeated = cost[node] * (len(places[node]) - 1) > REPEATED
            if self._must_keep(node) or repeated or self._better_kept(node, kernels, cost):
                self._keep(node)
                places.pop(node)
                kernels[node] = {id(node)}
            else:
                found: set[int] = set()
                for user in self.users[node]:
                    found |= kernels.get(user, {id(user)})
                kernels[node] = found

    def _places(self, node: Node, places: dict[Node, set[Place]]) -> set[Place]:
        """Where its kernels compute the value, relative to what they store: once for each way of indexing that leads there
        (the slices of a stencil). At most MOST_PLACES."""
        found: set[Place] = set()
        for user in self.users[node]:
            if user in self.group_of or user not in places:
                place: Place = (self.order[self.group_of[user].exits[0] if user in self.group_of else user],)
                if isinstance(user.op, REGION):
                    place += (user.inputs.index(node),)
                found.add(place)
            elif isinstance(user.op, (Elementwise, Cast, Bitcast)):
                found |= places[user]
            else:
                found |= {(self.order[user], *place) for place in places[user]}
            if len(found) >= MOST_PLACES:
                break
        return set(sorted(found)[:MOST_PLACES])

    def _keep(self, node: Node) -> None:
        if isinstance(node.op, Reshape):
            self.views.add(node)
            return
        self.kept.add(node)
        self._claim(Group("elements", {node}, [node]))

    def _must_keep(self, node: Node) -> bool:
        """Results, operands of ops that read memory, and what a view looks at."""
        if node in self.results:
            return True
        for user in self.users[node]:
            if isinstance(user.op, OWN_LOWERING) or user in self.views or isinstance(user.op, (MakeTuple, Get)):
                return True
            if user in self.reading and node not in self.reading:
                return True
            if isinstance(user.op, CONTRACTION) and not (user in self.copying and user.inputs[1] is not node):
                return True
        return False

    def _better_kept(self, node: Node, kernels: dict[Node, set[int]], cost: dict[Node, float]) -> bool:
        if node in self.deep or node in self.spread:
            return True
        if cost[node] <= CHEAP:
            return False
        found: set[int] = set()
        for user in self.users[node]:
            found |= kernels.get(user, {id(user)})
            if isinstance(user.op, REREADING) and not self._same_row_group(node, user):
                return True
            if isinstance(user.op, (Take, TakeAlong, GatherND)) and user.inputs[0] is node:
                return True
        return len(found) > 1

    def _is_spread(self, node: Node) -> bool:
        """Whether each element goes to so many places that computing it there costs more than keeping it."""
        for user in self.users[node]:
            if isinstance(user.op, Reshape) and _without_ones(user) == _without_ones(node) and self._is_spread(user):
                return True
            if isinstance(user.op, Broadcast) and node.rank > 0:
                before = (*(1 for _ in range(user.rank - node.rank)), *node.shape)
                if bounds(product(n for n, old in zip(user.shape, before) if n != old))[1] >= SPREAD:
                    return True
        return False

    def _same_row_group(self, node: Node, user: Node) -> bool:
        return node in self.group_of and self.group_of.get(user) is self.group_of[node]

    def _cost(self, node: Node, cost: dict[Node, float]) -> float:
        """Weighted operations to compute one element, through everything that is not stored anyway."""
        if isinstance(node.op, (Param, Const, *OWN_LOWERING)) or node in self.group_of and node in self.group_of[node].exits:
            return 0
        own = 0.0
        match node.op:
            case Elementwise(function):
                own = WEIGHTS.get(function, 1)
            case Take() | TakeAlong() | GatherND():
                own = 2
            case Cast():
                own = 1
        return own + sum(cost.get(i, 0) for i in node.inputs if i not in self.spread)

    # --- the new graph -----------------------------------------------------------------------------------------------

    def _assemble(self) -> Graph:
        b = Builder()
        done: dict[Node, Node] = {}
        pending = {e: g for g in self.groups for e in g.exits}
        stack: list[Node] = list(reversed([*self.graph.params, *self.graph.results]))
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            group = pending.get(node)
            needs = self._outside(group) if group is not None else self._operands(node)
            missing = [n for n in needs if n not in done]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if group is not None:
                done.update(_build_group(b, group, needs, done))
            else:
                done[node] = b.add(node.op, *(done[i] for i in node.inputs), loc=node.loc)
        return Graph(self.graph.name, [done[p] for p in self.graph.params], [done[r] for r in self.graph.results],
                     self.graph.result_names)

    def _operands(self, node: Node) -> list[Node]:
        return list(node.inputs)

    def _outside(self, group: Group) -> list[Node]:
        """The stored values a group reads, each once; everything else it needs is computed inside."""
        own = set(group.exits) | group.members
        found: dict[Node, None] = {}
        seen: set[Node] = set()
        stack = list(reversed(group.exits))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node not in own and self._is_stored(node) and _viewed(node) not in own:
                # Scalars are part of the code, but for contractions: there they are operands, so that layers which
                # differ only in learned numbers share one microkernel. Limits are part of it there too: what is known
                # to be a number needs no care for NaN.
                if not _scalar_constant(node) or group.strategy == "contraction" and not self._is_limit(node):
                    found[node] = None
                continue
            stack.extend(reversed(node.inputs))
        return list(found)

    def _is_limit(self, node: Node) -> bool:
        """Whether a number is what others are at least or at most, or are padded with; not one that is multiplied, too."""
        if any(isinstance(user.op, CONTRACTION) for user in self.users[node]):
            return False
        stack = [node]
        while stack:
            for user in self.users[stack.pop()]:
                if isinstance(user.op, Broadcast):
                    stack.append(user)
                elif isinstance(user.op, Elementwise) and user.op.function in LIMITING or isinstance(user.op, Pad):
                    return True
        return False

    def _is_stored(self, node: Node) -> bool:
        if isinstance(node.op, (Param, Const, Get, MakeTuple)) or node in self.kept or node in self.views:
            return True
        return isinstance(node.op, Reshape) and self._is_stored(node.inputs[0])


def _viewed(node: Node) -> Node:
    """What a view looks at; the value itself where it is none."""
    while isinstance(node.op, Reshape):
        node = node.inputs[0]
    return node


def _without_ones(node: Node) -> list[DimLike]:
    return [n for n in node.shape if n != 1]


def _row_space(reduction: Node) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...]] | None:
    """(outer, inner) sizes of a reduction over all trailing axes, if rows are long enough to be worth a loop."""
    op = reduction.op
    assert isinstance(op, Reduce)
    shape = reduction.inputs[0].shape
    outer = len(shape) - len(op.axes)
    if not op.axes or op.axes != tuple(range(outer, len(shape))):
        return None
    size = product(shape[outer:])
    if bounds(size)[1] < SMALL_ROW and outer > 0:
        return None
    return shape[:outer], shape[outer:]


def _joins_rows(node: Node, members: set[Node], outer: tuple[DimLike, ...], inner: tuple[DimLike, ...]) -> bool:
    full = (*outer, *inner)
    narrow = (outer, (*outer, *(1 for _ in inner)))
    match node.op:
        case Elementwise() | Cast() | Bitcast():
            return node.shape == full or node.shape in narrow
        case Broadcast():
            return node.shape == full and node.inputs[0].shape in (narrow[1], *((outer,) if outer == () else ()))
        case Reshape():
            return node.shape in narrow and node.inputs[0].shape in narrow
        case Reduce():
            return _row_space(node) == (outer, inner)
    return False


def _scalar_constant(node: Node) -> bool:
    return isinstance(node.op, Const) and node.op.value.array.size == 1


def _build_group(b: Builder, group: Group, needs: Iterable[Node], done: dict[Node, Node]) -> dict[Node, Node]:
    """The fusion node of a group, and the new value of each exit."""
    inner = Builder()
    params = {n: inner.add(Param(f"x{i}", n.dtype, n.shape)) for i, n in enumerate(needs)}
    inside: dict[Node, Node] = dict(params)
    stack = list(reversed(group.exits))
    while stack:
        node = stack[-1]
        if node in inside:
            stack.pop()
            continue
        missing = [i for i in node.inputs if i not in inside]
        if missing:
            stack.extend(reversed(missing))
            continue
        stack.pop()
        inside[node] = inner.add(node.op, *(inside[i] for i in node.inputs), loc=node.loc)
    body = Graph(_group_name(group), list(params.values()), [inside[e] for e in group.exits])
    loc = merge_locs(group.exits[-1].loc, *(n.loc for n in body.nodes() if not isinstance(n.op, Param)))
    fused = b.add(Fusion(group.strategy, body), *(done[n] for n in params), loc=loc)
    if len(group.exits) == 1:
        return {group.exits[0]: fused}
    return {e: b.add(Get(i), fused, loc=e.loc) for i, e in enumerate(group.exits)}


_SILENT = (Broadcast, Reshape, Cast, Const, Param)


def _group_name(group: Group) -> str:
    """What the kernel is called: the ops that shape it."""
    heads = [n for n in group.members if not isinstance(n.op, _SILENT)]
    main = [n.op.name if not isinstance(n.op, Elementwise) else n.op.function for n in heads]
    main.sort(key=lambda name: (name not in ("packed_dot", "packed_conv", "conv", "dot", "reduce", "reduce_window"), name))
    unique = list(dict.fromkeys(main))[:4] or [group.exits[0].op.spelling]
    return "_".join(unique)


__all__ = ["fuse", "Group"]
