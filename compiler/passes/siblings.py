"""Joins elementwise kernels over one shape that read each other or the same arrays: one loop nest with several results.

Two groups are joined where each reads the other's result, if at all, at the very place that it computes itself, where they
share at least a value of their shape, and where no other kernel stands between them. What only the joined group reads is
stored no more. Contract: exact.

Assumes the groups that `fuse` has chosen. Guarantees that they make no cycle, counting what groups with several results
tie together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct, field

from ..ir.graph import Node
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.shape import Broadcast, Concat, GatherND, Reshape, Take, TakeAlong

MOST_RESULTS = 16  # of a joined group, with what is then not stored any more
MOST_NODES = 192   # that it computes

POINTWISE = (Elementwise, Cast, Bitcast)


class Group(Struct, eq=False):
    """A set of nodes that one kernel computes; `exits` are the values it stores."""

    strategy: str
    members: set[Node]
    exits: list[Node] = field(default_factory=list)


Outside = Callable[[Group], list[Node]]  # the stored values that a group reads


class _Joint(Struct, eq=False):
    """A group that may be joined: where each stored value is read (True: only at the place that is computed), and how
    many nodes are computed."""

    group: Group
    reads: dict[Node, bool]
    size: int


class Siblings:
    """See the module's text."""

    def __init__(self, groups: list[Group], results: Sequence[Node], order: dict[Node, int], outside: Outside,
                 is_stored: Callable[[Node], bool]) -> None:
        self.groups, self.results, self.order, self.outside, self.is_stored = groups, results, order, outside, is_stored
        self.group_of = {exit: group for group in groups for exit in group.exits}

    def join(self) -> tuple[list[Group], set[Node]]:
        """The groups after joining, and the values that need not be stored any more."""
        joints: dict[object, list[_Joint]] = {}
        for group in sorted(self.groups, key=lambda g: self.order[g.exits[-1]]):
            if not _is_pointwise(group):
                continue
            new: _Joint | None = self._joint(group)
            same_shape = joints.setdefault(group.exits[0].shape, [])
            while new is not None:  # one that has grown may reach others
                fitting = next((old for old in reversed(same_shape) if self._fit(old, new)), None)
                if fitting is None:
                    same_shape.append(new)
                else:
                    same_shape.remove(fitting)
                    self._merge(fitting, new)
                new = fitting
        return self._without_inner_exits([joint.group for bucket in joints.values() for joint in bucket if len(joint.group.exits) > 1])

    def _joint(self, group: Group) -> _Joint:
        exit, = group.exits
        reads: dict[Node, bool] = {}
        seen: set[tuple[Node, bool]] = set()
        stack = [(exit, True)]
        while stack:
            node, same = stack.pop()
            if (node, same) in seen:
                continue
            seen.add((node, same))
            if node is not exit and self.is_stored(node) and not isinstance(node.op, Reshape):
                reads[node] = reads.get(node, True) and same
                continue
            stack.extend((operand, same and _keeps_place(node, number)) for number, operand in enumerate(node.inputs))
        return _Joint(group, reads, len(seen))

    def _fit(self, old: _Joint, new: _Joint) -> bool:
        """Whether the groups may be joined, and share something."""
        pairs = ((old, new), (new, old))
        if len(old.group.exits) + len(new.group.exits) > MOST_RESULTS or old.size + new.size > MOST_NODES \
                or not all(b.reads.get(exit, True) for a, b in pairs for exit in a.group.exits):
            return False
        shape = new.group.exits[0].shape
        shared = any(exit in b.reads for a, b in pairs for exit in a.group.exits) \
            or any(n in old.reads and n.shape == shape for n in new.reads)
        return shared and not any(self._depends((n for n in b.reads if n not in a.group.exits), a.group) for a, b in pairs)

    def _depends(self, values: Iterable[Node], group: Group) -> bool:
        """Whether computing the values needs the group, by any path through whole groups."""
        stack, seen = list(values), set[Node]()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            made_by = self.group_of.get(node)
            if made_by is group:
                return True
            if made_by is None:
                stack.extend(node.inputs)
            else:
                seen.update(made_by.exits)
                stack.extend(self.outside(made_by))
        return False

    def _merge(self, old: _Joint, new: _Joint) -> None:
        """Adds the new group to the old one."""
        self.groups.remove(new.group)
        old.group.exits = sorted((*old.group.exits, *new.group.exits), key=self.order.__getitem__)
        old.group.members |= new.group.members
        for exit in new.group.exits:
            self.group_of[exit] = old.group
        for node, same in new.reads.items():
            old.reads[node] = old.reads.get(node, True) and same
        for exit in old.group.exits:
            old.reads.pop(exit, None)
        old.size += new.size

    def _without_inner_exits(self, joined: list[Group]) -> tuple[list[Group], set[Node]]:
        if not joined:
            return self.groups, set()
        needed: set[Node] = set()
        stack = list(self.results)
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                group = self.group_of.get(node)
                stack.extend(node.inputs if group is None else self.outside(group))
        dropped: set[Node] = set()
        for group in joined:
            dropped.update(e for e in group.exits if e not in needed)
            group.exits = [e for e in group.exits if e in needed]
        return self.groups, dropped


def _keeps_place(node: Node, number: int) -> bool:
    """Whether the node reads this operand, or as much of it as gives an index, at the place that it computes itself; axes of
    size 1 count for nothing."""
    match node.op:
        case Elementwise() | Cast() | Bitcast():
            return True
        case Reshape() | Broadcast():
            return [n for n in node.shape if n != 1] == [n for n in node.inputs[0].shape if n != 1]
        case TakeAlong():
            return number == 1
        case GatherND() | Take():
            indices = node.inputs[1]
            grid = indices.shape[:-1] if isinstance(node.op, GatherND) else indices.shape
            return number == 1 and grid == node.shape
        case Concat(axis):  # of columns of indices, see `fuse`
            return axis == node.rank - 1 and all(part.shape[-1] == 1 for part in node.inputs)
    return False


def _is_pointwise(group: Group) -> bool:
    exit = group.exits[0]
    return (group.strategy == "elements" and group.members == {exit} and exit.rank > 0 and 0 not in exit.shape
            and isinstance(exit.op, POINTWISE))
