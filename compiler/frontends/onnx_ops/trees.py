"""TreeEnsemble of `ai.onnx.ml`: all rows go down all trees at once, one level a step.

Inner nodes and leaves are rows of one table; a leaf leads to itself, so that as many steps as the deepest tree has levels bring every
row to its leaf. A step looks up the feature, the threshold and the two next places.

Guarantees: as the standard says, sets of members in the order in which their nodes stand; places outside of the tables, and nodes that
lead back to themselves, are errors. The transforms SOFTMAX_ZERO and PROBIT are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from ...ir.graph import Array, Node
from ...ir.ops.shape import ScatterAlong, Take, TakeAlong
from ...ir.types import BOOL, F16, F32, F64
from ...library import broadcast, constant, expand, reduce, softmax
from .context import Context, Operators

DEEPEST = 256       # levels, each of which is a step
COMPARISONS = ("le", "lt", "ge", "gt", "eq", "ne")
MEMBER = len(COMPARISONS)
AVERAGE, SUM, LEAST, GREATEST = range(4)
UNCHANGED, SOFTMAX, LOGISTIC = range(3)


class Table(Struct, frozen=True):
    """Inner nodes, and behind them the leaves, which lead to themselves."""

    inner: int
    features: Array
    modes: Array
    splits: Array
    members: Array      # [places, most members], filled up with NaN
    missing: Array      # where NaN goes the way of what holds
    chosen: Array
    otherwise: Array


def tree_ensemble(c: Context, x: Node, *, leaf_targetids: Sequence[int], leaf_weights: Array, n_targets: int,
                  nodes_falseleafs: Sequence[int], nodes_falsenodeids: Sequence[int], nodes_featureids: Sequence[int],
                  nodes_modes: Array, nodes_splits: Array, nodes_trueleafs: Sequence[int], nodes_truenodeids: Sequence[int],
                  tree_roots: Sequence[int], aggregate_function: int = SUM, membership_values: Array | None = None,
                  nodes_hitrates: Array | None = None, nodes_missing_value_tracks_true: Sequence[int] | None = None,
                  post_transform: int = UNCHANGED) -> Node:
    if x.rank != 2 or x.dtype not in (F16, F32, F64):
        c.fail(f"needs float16, float32 or float64 [rows, features], found {x.type}")
    inner, leaves = len(nodes_featureids), len(leaf_targetids)
    features = np.array(nodes_featureids, dtype=np.int64)
    columns = (nodes_falseleafs, nodes_falsenodeids, nodes_modes.reshape(-1), nodes_splits.reshape(-1), nodes_trueleafs, nodes_truenodeids,
               nodes_featureids if nodes_missing_value_tracks_true is None else nodes_missing_value_tracks_true)
    if any(len(column) != inner for column in columns) or leaf_weights.size != leaves or not inner or not tree_roots:
        c.fail("the attributes of nodes, or those of leaves, have different lengths, or there are none")
    if features.min() < 0 or isinstance(x.shape[1], int) and features.max() >= x.shape[1]:
        c.fail(f"the features {features.min()} to {features.max()} do not fit {x.type}")
    targets = np.array(leaf_targetids, dtype=np.int64)
    if not leaves or targets.min() < 0 or targets.max() >= n_targets:
        c.fail(f"leaves have targets outside of 0..{n_targets - 1}")
    modes = nodes_modes.reshape(-1).astype(np.int64)
    own = np.arange(inner, inner + leaves)
    table = Table(inner, _with_leaves(features, leaves), _with_leaves(modes, leaves),
                  _with_leaves(nodes_splits.reshape(-1).astype(x.dtype.numpy), leaves),
                  _members(c, modes, membership_values, leaves).astype(x.dtype.numpy),
                  _with_leaves(np.array(nodes_missing_value_tracks_true or [0] * inner, dtype=bool), leaves),
                  np.concatenate([_places(c, nodes_truenodeids, nodes_trueleafs, inner, leaves), own]),
                  np.concatenate([_places(c, nodes_falsenodeids, nodes_falseleafs, inner, leaves), own]))
    found = _leaves_reached(c, x, table, np.array(tree_roots, dtype=np.int64))
    weights = c.b.add(Take(0), constant(c.b, leaf_weights.reshape(-1).astype(x.dtype.numpy)), found)
    result = _aggregated(c, weights, c.b.add(Take(0), constant(c.b, targets), found), n_targets, aggregate_function)
    return _transformed(c, result, post_transform)


# --- the table -------------------------------------------------------------------------------------------------------


def _with_leaves(column: Array, leaves: int) -> Array:
    return np.concatenate([column, np.zeros(leaves, dtype=column.dtype)])


def _places(c: Context, identifiers: Sequence[int], is_leaf: Sequence[int], inner: int, leaves: int) -> Array:
    """Where each node leads to: an inner one, or a leaf behind these."""
    places, to_leaf = np.array(identifiers, dtype=np.int64), np.array(is_leaf, dtype=bool)
    if ((places < 0) | (places >= np.where(to_leaf, leaves, inner))).any():
        c.fail(f"a node leads to one outside of {inner} nodes and {leaves} leaves")
    return np.where(to_leaf, places + inner, places)


def _members(c: Context, modes: Array, values: Array | None, leaves: int) -> Array:
    """The sets of the nodes that ask for a member, each ended by NaN in the list."""
    if modes.min() < 0 or modes.max() > MEMBER:
        c.fail(f"the modes of nodes are 0 to {MEMBER}, found {modes.min()} to {modes.max()}")
    listed = np.zeros(0) if values is None else values.reshape(-1).astype(np.float64)
    ends = np.flatnonzero(np.isnan(listed))
    asking = np.flatnonzero(modes == MEMBER)
    if len(ends) != len(asking):
        c.fail(f"{len(asking)} nodes ask for members of sets, {len(ends)} sets are listed")
    begins = [0, *(ends[:-1] + 1)]
    widest = max((int(end - begin) for begin, end in zip(begins, ends)), default=0)
    found = np.full((len(modes) + leaves, widest), np.nan)
    for node, begin, end in zip(asking, begins, ends):
        found[node, :end - begin] = listed[begin:end]
    return found


def _depth(c: Context, table: Table, roots: Array) -> int:
    """How many steps lead from every root to a leaf."""
    if roots.min() < 0 or roots.max() >= table.inner:
        c.fail(f"the roots {roots.min()} to {roots.max()} are outside of the {table.inner} nodes")
    steps, reached = 0, np.unique(roots)
    while len(reached):
        if steps > table.inner:
            c.fail("a node of a tree leads back to itself")
        if steps == DEEPEST:
            c.unsupported(f"trees of more than {DEEPEST} levels")
        reached = np.unique(np.concatenate([table.chosen[reached], table.otherwise[reached]]))
        reached = reached[reached < table.inner]
        steps += 1
    return steps


# --- the way down ----------------------------------------------------------------------------------------------------


def _leaves_reached(c: Context, x: Node, table: Table, roots: Array) -> Node:
    """The number of the leaf that each row reaches in each tree."""
    steps = _depth(c, table, roots)
    place = broadcast(c.b, constant(c.b, roots[None, :]), (x.shape[0], len(roots)))
    for _ in range(steps):
        value = c.b.add(TakeAlong(1), x, _looked_up(c, table.features, place))
        goes, otherwise = _looked_up(c, table.chosen, place), _looked_up(c, table.otherwise, place)
        place = c.scalar("select", _holds(c, value, table, place), goes, otherwise)
    return c.scalar("sub", place, broadcast(c.b, c.like(table.inner, place), place.shape))


def _looked_up(c: Context, column: Array, place: Node) -> Node:
    return c.b.add(Take(0), constant(c.b, column), place)


def _holds(c: Context, value: Node, table: Table, place: Node) -> Node:
    """Whether what each node asks holds for its value."""
    split, mode = _looked_up(c, table.splits, place), _looked_up(c, table.modes, place)
    result: Node | None = None
    for kind in np.unique(table.modes[:table.inner]).tolist():
        if kind == MEMBER:
            same = c.apply("eq", expand(c.b, value, (2,)), _looked_up(c, table.members, place))
            answer = reduce(c.b, "or", same, (2,))
        else:
            answer = c.scalar(COMPARISONS[kind], value, split)
        result = answer if result is None else c.apply("select", c.apply("eq", mode, c.like(kind, mode)), answer, result)
    assert result is not None
    if table.missing.any():
        unknown = c.scalar("and", c.scalar("ne", value, value), _looked_up(c, table.missing, place))
        result = c.scalar("or", result, unknown)
    assert result.dtype == BOOL
    return result


def _aggregated(c: Context, weights: Node, targets: Node, count: int, how: int) -> Node:
    """What the trees give for each target."""
    if how not in (AVERAGE, SUM, LEAST, GREATEST):
        c.fail(f"aggregate_function must be 0 to 3, found {how}")
    if how == AVERAGE:
        weights = c.apply("div", weights, c.like(int(weights.shape[1]), weights))
    limits = np.finfo(weights.dtype.numpy)
    begin = {LEAST: limits.max, GREATEST: limits.min}.get(how, 0)
    start = c.full(begin, weights.dtype, (weights.shape[0], count))
    kind = {LEAST: "min", GREATEST: "max"}.get(how, "add")
    return c.b.add(ScatterAlong(1, kind), start, targets, weights)


def _transformed(c: Context, x: Node, how: int) -> Node:
    if how == SOFTMAX:
        return softmax(c.b, x, 1)
    if how == LOGISTIC:
        one = c.like(1, x)
        return c.apply("div", one, c.apply("add", one, c.scalar("exp", c.scalar("neg", x))))
    if how != UNCHANGED:
        c.unsupported(f"post_transform {how}; 0 (none), 1 (softmax) and 2 (logistic) are supported")
    return x


OPS: Operators = {"TreeEnsemble": tree_ensemble}
