"""ONNX operators whose number of results data decides: NonZero, Compress, NonMaxSuppression.

As many results as the model declares are computed; a different number is an error at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import DimLike, product
from ...ir.graph import Builder, Graph, Node
from ...ir.ops.compute import ArgSort
from ...ir.ops.control import Param, Scan
from ...ir.ops.shape import Concat, Iota, Take, TakeAlong
from ...ir.types import BOOL, F32, I64
from ...library import broadcast, expand, reduce, results_of, size_value, slice_axis, squeeze, transpose
from .by_data import element, number, vector
from .context import Context, Operators


def chosen_places(c: Context, mask: Node, count: DimLike) -> Node:
    """The places of the `count` true elements of a vector, in order; an error where there are not as many."""
    whole = c.cast(mask, I64)
    order = c.b.add(ArgSort(0, True), whole)      # the true ones first; equal ones stay in order
    exact = c.scalar("eq", reduce(c.b, "sum", whole, (0,)), size_value(c.b, count))
    return c.require(slice_axis(c.b, order, 0, 0, count), exact)


def unravelled(c: Context, places: Node, shape: Sequence[DimLike]) -> list[Node]:
    """Flat places as one vector an axis."""
    found = []
    for n in reversed(shape):
        extent = size_value(c.b, n)
        found.append(c.apply("mod", places, extent))
        places = c.apply("floordiv", places, extent)
    return found[::-1]


def non_zero(c: Context, x: Node) -> Node:
    count = c.declared_shape("X", rank=2)[-1]
    if x.rank == 0:
        c.unsupported("a scalar has no axes to give places on")
    mask = x if x.dtype == BOOL else c.apply("ne", x, c.like(0, x))
    places = chosen_places(c, c.reshape(mask, (product(x.shape),)), count)
    return c.b.add(Concat(0), *[expand(c.b, place, (0,)) for place in unravelled(c, places, x.shape)])


def compress(c: Context, x: Node, condition: Node, *, axis: int | None = None) -> Node:
    """The slices that the condition names; what it is too short for is left out."""
    if axis is None:
        x, place = c.reshape(x, (product(x.shape),)), 0
    else:
        place = c.axis(axis, x.rank)
    count = c.declared_shape("condition", rank=x.rank)[place]
    return c.b.add(Take(place), x, chosen_places(c, condition, count))


# --- boxes -----------------------------------------------------------------------------------------------------------


def _corners(c: Context, boxes: Node, centred: bool) -> list[Node]:
    """low and high of both axes, each [batch, boxes]."""
    a, b, d, e = (squeeze(c.b, slice_axis(c.b, boxes, 2, i, 1), (2,)) for i in range(4))
    if centred:         # centre x, centre y, width, height
        halves = [c.apply("div", size, c.like(2, size)) for size in (d, e)]
        return [c.scalar("sub", a, halves[0]), c.scalar("add", a, halves[0]),
                c.scalar("sub", b, halves[1]), c.scalar("add", b, halves[1])]
    return [c.scalar("min", a, d), c.scalar("max", a, d), c.scalar("min", b, e), c.scalar("max", b, e)]


def _suppresses(c: Context, boxes: Node, centred: bool, threshold: Node) -> Node:
    """Whether two boxes overlap by more than the threshold: [batch, boxes, boxes]."""
    corners = _corners(c, boxes, centred)
    zero = c.like(0, boxes)
    overlap: Node | None = None
    area: Node | None = None
    for low, high in ((corners[0], corners[1]), (corners[2], corners[3])):
        start = c.apply("max", expand(c.b, low, (2,)), expand(c.b, low, (1,)))
        stop = c.apply("min", expand(c.b, high, (2,)), expand(c.b, high, (1,)))
        shared = c.apply("max", c.scalar("sub", stop, start), zero)
        extent = c.scalar("sub", high, low)
        overlap = shared if overlap is None else c.scalar("mul", overlap, shared)
        area = extent if area is None else c.scalar("mul", area, extent)
    assert overlap is not None and area is not None
    union = c.scalar("sub", c.apply("add", expand(c.b, area, (2,)), expand(c.b, area, (1,))), overlap)
    positive = [c.apply("gt", overlap, zero), c.apply("gt", union, zero),
                c.apply("and", *(c.apply("gt", expand(c.b, area, (a,)), zero) for a in (2, 1)))]
    exceeds = c.apply("gt", c.scalar("div", overlap, union), threshold)
    for condition in positive:
        exceeds = c.scalar("and", exceeds, condition)
    return exceeds


def non_max_suppression(c: Context, boxes: Node, scores: Node, max_output_boxes_per_class: Node | None = None,
                        iou_threshold: Node | None = None, score_threshold: Node | None = None, *,
                        center_point_box: int = 0) -> Node:
    """The best boxes of each class that do not overlap a better one: rows of batch, class and box."""
    if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4:
        c.fail(f"needs boxes [batch, count, 4] and scores [batch, classes, count], found {boxes.type} and {scores.type}")
    declared = c.declared_shape("scores", rank=2)[0]
    batch, classes, count = scores.shape
    boxes = c.refine(boxes, (batch, count, 4))
    most = number(c, 0) if max_output_boxes_per_class is None else element(c, vector(c, max_output_boxes_per_class), 0)
    overlap = c.constant(0, F32) if iou_threshold is None else c.reshape(iou_threshold, ())
    order = c.b.add(ArgSort(2, True), scores)                     # [batch, classes, count]
    ranked = c.b.add(TakeAlong(2), scores, order)
    candidate = c.full(True, BOOL, scores.shape)
    if score_threshold is not None:
        candidate = c.apply("gt", ranked, c.cast(c.reshape(score_threshold, ()), scores.dtype))
    pairs = broadcast(c.b, expand(c.b, _suppresses(c, boxes, bool(center_point_box), c.cast(overlap, boxes.dtype)), (1,)),
                      (batch, classes, count, count))
    # both axes in the order of the scores
    for axis in (2, 3):
        spread = broadcast(c.b, expand(c.b, order, (5 - axis,)), (batch, classes, count, count))
        pairs = c.b.add(TakeAlong(axis), pairs, spread)
    kept = _kept_boxes(c, candidate, pairs, most)
    flat = (product((batch, classes, count)),)
    places = chosen_places(c, c.reshape(kept, flat), declared)
    in_batch, in_class, _ = unravelled(c, places, scores.shape)
    box = c.b.add(Take(0), c.reshape(order, flat), places)
    return c.b.add(Concat(1), *[expand(c.b, x, (1,)) for x in (in_batch, in_class, box)])


def _kept_boxes(c: Context, candidate: Node, pairs: Node, most: Node) -> Node:
    """One box after the other, best first: kept unless a kept one suppresses it or there are enough."""
    batch, classes, count = candidate.shape
    rows = transpose(c.b, pairs, (2, 0, 1, 3))                    # [box, batch, classes, better box]
    steps = transpose(c.b, candidate, (2, 0, 1))
    numbers = c.b.add(Iota(I64, (count,), 0))
    b = Builder(c.b.loc)
    kept, row, is_candidate, place, limit = (b.add(Param(f"x{i}", t, s)) for i, (t, s) in enumerate((
        (BOOL, candidate.shape), (BOOL, (batch, classes, count)), (BOOL, (batch, classes)), (I64, ()), (I64, ()))))
    inner = c.within(b)
    hidden = reduce(b, "or", inner.scalar("and", kept, row), (2,))
    enough = inner.apply("ge", reduce(b, "sum", inner.cast(kept, I64), (2,)), limit)
    stays = inner.scalar("and", is_candidate, inner.scalar("not", inner.scalar("or", hidden, enough)))
    here = inner.apply("eq", b.add(Iota(I64, (count,), 0)), place)
    after = inner.scalar("or", kept, inner.apply("and", expand(b, stays, (2,)), here))
    step = Graph("step", (kept, row, is_candidate, place, limit), (after,))
    begin = c.full(False, BOOL, candidate.shape)
    return results_of(c.b, c.b.add(Scan(step, 1, 3, count), begin, rows, steps, numbers, most))[0]


OPS: Operators = {"Compress": compress, "NonMaxSuppression": non_max_suppression, "NonZero": non_zero}
