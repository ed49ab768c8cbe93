"""How a view sees the array it was taken from, and how a write through it changes that array.

A view is a chain of steps over the whole of a storage. `get` gives what the view shows; `put` gives the whole with what
the view shows replaced. `Layout` follows the element strides that NumPy's array would have, since they decide whether a
reshape is a view or a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from .. import library
from ..ir.dims import DimLike, compare, product, row_major_strides
from ..ir.graph import Builder, Node
from ..ir.ops.shape import Broadcast, Reshape, ScatterND, Slice, Take, Transpose, UpdateSlice
from .numpy_errors import TraceValueError


class Step(Protocol):
    """One step of a view."""

    def get(self, b: Builder, whole: Node) -> Node:
        """What the step shows of the whole."""

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        """The whole with what the step shows replaced by `part`."""


class Window(Struct, frozen=True):
    """Every `step`th element from `start`, `size` of them, on each axis."""

    start: tuple[DimLike, ...]
    size: tuple[DimLike, ...]
    step: tuple[int, ...]

    def get(self, b: Builder, whole: Node) -> Node:
        return b.add(Slice(self.start, self.size, self.step), whole)

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        return b.add(UpdateSlice(self.start, self.step), whole, part)


class Permutation(Struct, frozen=True):
    """Axes in another order."""

    perm: tuple[int, ...]

    def get(self, b: Builder, whole: Node) -> Node:
        return b.add(Transpose(self.perm), whole)

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return b.add(Transpose(tuple(inverse)), part)


class Reshaped(Struct, frozen=True):
    """The same elements under another shape."""

    shape: tuple[DimLike, ...]

    def get(self, b: Builder, whole: Node) -> Node:
        return b.add(Reshape(self.shape), whole)

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        return b.add(Reshape(whole.shape), part)


class Repeated(Struct, frozen=True):
    """A broadcast; NumPy makes these read-only."""

    shape: tuple[DimLike, ...]

    def get(self, b: Builder, whole: Node) -> Node:
        return b.add(Broadcast(self.shape), whole)

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        raise TraceValueError("assignment destination is read-only: it is a broadcast", hint="copy it first: x = x.copy()")


class Picked(Struct, frozen=True, eq=False):
    """The place on one axis that a traced scalar names (already wrapped, 0 <= index < size)."""

    axis: int
    index: Node

    def get(self, b: Builder, whole: Node) -> Node:
        return b.add(Take(self.axis), whole, self.index)

    def put(self, b: Builder, whole: Node, part: Node) -> Node:
        order = [self.axis, *(a for a in range(whole.rank) if a != self.axis)]
        inverse = sorted(range(whole.rank), key=order.__getitem__)
        first = library.transpose(b, whole, order)
        changed = b.add(ScatterND("set"), first, library.reshape(b, self.index, (1, 1)), library.expand(b, part, (0,)))
        return library.transpose(b, changed, inverse)


def read_through(b: Builder, whole: Node, path: Sequence[Step]) -> Node:
    for step in path:
        whole = step.get(b, whole)
    return whole


def write_through(b: Builder, whole: Node, path: Sequence[Step], value: Node) -> Node:
    """The whole with what the path shows replaced by `value`."""
    stages = [whole]
    for step in path[:-1]:
        stages.append(step.get(b, stages[-1]))
    for step, stage in zip(reversed(path), reversed(stages)):
        value = step.put(b, stage, value)
    return value


# --- layout ----------------------------------------------------------------------------------------------------------

Strides = tuple[DimLike, ...]


class Layout(Struct, frozen=True):
    """Element strides; `strides` None means that NumPy's choice is not followed (see `Layout.UNKNOWN`)."""

    strides: Strides | None
    contiguous: bool = False


UNKNOWN_LAYOUT = Layout(None)
C_LAYOUT = Layout(None, True)


def strides_of(layout: Layout, shape: Sequence[DimLike]) -> Strides | None:
    return row_major_strides(shape) if layout.contiguous else layout.strides


def layout_of(shape: Sequence[DimLike], strides: Strides | None) -> Layout:
    """The layout with these strides; axes of size 1 and empty arrays do not count against contiguity."""
    if strides is None:
        return UNKNOWN_LAYOUT
    expected: DimLike = 1
    contiguous = True
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size == 1:
            continue
        contiguous = contiguous and stride == expected
        expected = expected * size
    return C_LAYOUT if contiguous or 0 in shape else Layout(strides)


def reshaped_layout(layout: Layout, before: Sequence[DimLike], after: Sequence[DimLike]) -> Layout | None:
    """The layout of a reshape that NumPy makes without a copy; None where it copies; UNKNOWN where sizes do not tell."""
    if layout.contiguous:
        return C_LAYOUT
    if layout.strides is None:
        return UNKNOWN_LAYOUT
    old = [(n, s) for n, s in zip(before, layout.strides) if n != 1]
    strides: list[DimLike] = []
    first_old = first_new = 0
    while first_new < len(after) and first_old < len(old):
        last_old, last_new = first_old + 1, first_new + 1
        extent_old, extent_new = old[first_old][0], after[first_new]
        while extent_old != extent_new:
            order = compare(extent_new, extent_old)
            if order is None or (order < 0 and last_new >= len(after)) or (order > 0 and last_old >= len(old)):
                return UNKNOWN_LAYOUT
            if order < 0:
                extent_new = extent_new * after[last_new]
                last_new += 1
            else:
                extent_old = extent_old * old[last_old][0]
                last_old += 1
        for k in range(first_old, last_old - 1):
            if old[k][1] != old[k + 1][0] * old[k + 1][1]:
                return None
        inner = old[last_old - 1][1]
        group = after[first_new:last_new]
        strides.extend(inner * product(group[k + 1 :]) for k in range(len(group)))
        first_old, first_new = last_old, last_new
    strides.extend([1] * (len(after) - len(strides)))
    return layout_of(after, tuple(strides))
