"""Weights to integers: scales a channel or a group, and rounding to nearest, by GPTQ, or by coordinate descent.

Works on a matrix W [K, N], whose columns are independent of each other, or on several at once, [groups, K, N]: those of a layer.
Rounding chooses integers Q with scales s and zero points z so that the layer's output changes little: the least of
|X (W - s (Q - z))|^2 over inputs X, of which only H = X^T X [K, K] is known.

- `nearest` looks at the weights alone.
- `gptq` fixes one row after another and moves its error onto the rows that are still free (Frantar et al., GPTQ, 2022). Run from the
  last row to the first it is Babai's nearest-plane algorithm on the lattice of X's columns (Chen et al., The geometry of LLM
  quantization, 2025), which the tests hold it to.
- `gptq` on `asymmetric_target` is the variant for a model whose earlier layers are quantized already (Li et al., GPTAQ, 2025):
  X_q s (Q - z) should be X W, so what is rounded is the least-squares solution of X_q W' = X W under the moments of X_q.
- `coordinate_descent` changes one row at a time to its best value given all others, which never makes it worse
  (Behdin et al., QuantEase, 2023).

bfloat16 is rounded to by `gptq_bfloats` in the same way: its levels are closer where weights are small.

Assumes finite weights. Guarantees integers within the levels; equal inputs give equal integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from ..ir.graph import Array
from ..ir.types import BF16

DAMPING = 0.01      # of the mean of H's diagonal, added to it: inputs that hardly vary say little
MOST_DAMPING = 1e3  # with which GPTQ rounds to nearest
BLOCK = 128         # rows of GPTQ whose errors reach the later ones in one product
SWEEPS = 8          # of coordinate descent at most
CLIPS = 1.0 - 0.02 * np.arange(26)   # shares of the largest weight that are tried as the end of the scale
PATIENCE = 4        # shares that may bring nothing to any scale before the rest are left out: the error rises from there on
# integers that a dtype of weights uses. Symmetric int8 leaves out -128: the products of two pairs must fit 16 bits on some CPUs
LEVELS: dict[str, tuple[int, int]] = {"i8": (-127, 127), "int4": (-8, 7), "int2": (-2, 1)}
NARROW_LEVELS = (-64, 64)  # of bytes whose products with bytes add up, two by two, within 16 bits


class Grid(Struct, frozen=True, eq=False):
    """Scales and zero points of matrices [.., K, N]: [.., K / group, N], of which each row serves `group` rows of the matrix."""

    scale: Array
    point: Array
    levels: tuple[int, int]
    group: int

    def rows(self) -> tuple[Array, Array]:
        """Scales and zero points for every row of the matrix."""
        return np.repeat(self.scale, self.group, axis=-2), np.repeat(self.point, self.group, axis=-2)


def grid_for(weights: Array, levels: tuple[int, int], group: int, symmetric: bool, clip: bool, importance: Array | None = None) -> Grid:
    """A scale for every `group` rows of each column (0: for all rows). With `clip` the one of the least squared error among some
    that leave the largest weights out, `importance` [.., K] weighing the rows (the diagonal of H)."""
    *lead, depth, width = weights.shape
    group = group or depth
    blocks = weights.reshape(*lead, depth // group, group, width).astype(np.float64)
    weigh = np.ones((*lead, depth)) if importance is None else _no_less(importance)
    weigh = weigh.reshape(*lead, depth // group, group, 1)
    best_error = np.full((*lead, depth // group, width), np.inf)
    best_scale, best_point = np.ones_like(best_error), np.zeros_like(best_error)
    low, high = np.minimum(blocks.min(axis=-2), 0), np.maximum(blocks.max(axis=-2), 0)
    waited = 0
    for share in CLIPS if clip else CLIPS[:1]:
        scale, point = _grid(low * share, high * share, levels, symmetric)
        each, by = scale[..., np.newaxis, :], point[..., np.newaxis, :]
        kept = (np.clip(np.round(blocks / each) + by, *levels) - by) * each
        error = (weigh * (blocks - kept) ** 2).sum(axis=-2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_point = np.where(better, scale, best_scale), np.where(better, point, best_point)
        waited = 0 if better.any() else waited + 1
        if waited == PATIENCE:
            break
    return Grid(best_scale.astype(np.float32), best_point.astype(np.int64), levels, group)


def _no_less(importance: Array) -> Array:
    """The importance of rows, none without any."""
    return np.asarray(importance + DAMPING * np.maximum(importance.mean(axis=-1, keepdims=True), 1e-30))


def _grid(low: Array, high: Array, levels: tuple[int, int], symmetric: bool) -> tuple[Array, Array]:
    """Scales, as float32 holds them, and zero points of ranges that hold 0."""
    least, greatest = levels
    if symmetric:
        # the side that has a level more may reach as far as it does
        scale = np.maximum(-low / -least, high / greatest)
    else:
        scale = (high - low) / (greatest - least)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32).astype(np.float64)
    point = np.zeros_like(scale) if symmetric else np.clip(np.round(least - low / scale), least, greatest)
    return scale, point


def nearest(weights: Array, grid: Grid) -> Array:
    """Each weight to the nearest level."""
    scale, point = grid.rows()
    return _to_level(weights, scale, point, grid.levels)


def _to_level(values: Array, scale: Array, point: Array, levels: tuple[int, int]) -> Array:
    return np.asarray(np.clip(np.round(values / scale.astype(np.float64)) + point, *levels).astype(np.int64))


def values_of(integers: Array, grid: Grid) -> Array:
    """The weights that integers stand for."""
    scale, point = grid.rows()
    return np.asarray((integers - point) * scale.astype(np.float64))


def damped(moments: Array, damping: Array | float = DAMPING) -> Array:
    """H with something on its diagonal, so that it has an inverse: also where inputs are always 0, or depend on each other. `damping`: a
    share of the mean of the diagonal, one for all matrices or one for each."""
    depth = moments.shape[-1]
    means = np.diagonal(moments, axis1=-2, axis2=-1).mean(axis=-1) if depth else np.zeros(())
    least = np.asarray(damping * means, np.float64)
    return np.asarray(moments + np.eye(depth) * np.where(least > 0, least, 1.0)[..., np.newaxis, np.newaxis], np.float64)


def damping_of(rows: int, moments: Array) -> Array:
    """The damping for moments [.., K, K] of so many rows, which say nothing of some directions and little of others where they are few:
    such that the sum is the oracle approximating shrinkage estimator (Chen, Wiesel, Eldar and Hero, Shrinkage algorithms for MMSE
    covariance estimation, 2010), DAMPING at least. Weights of inputs that do not depend on each other are rounded to nearest so."""
    depth = moments.shape[-1]
    means = np.diagonal(moments, axis1=-2, axis2=-1).mean(axis=-1)
    even = moments / np.where(means > 0, means, 1.0)[..., np.newaxis, np.newaxis].astype(moments.dtype)  # of a trace that is its depth
    squares = np.einsum("...ij,...ij->...", even, even, dtype=np.float64)
    apart = (rows + 1 - 2 / depth) * (squares - depth)
    share = np.minimum(1.0, ((1 - 2 / depth) * squares + depth * depth) / np.maximum(apart, 1e-9))
    return np.asarray(np.clip(share / np.maximum(1 - share, 1 / MOST_DAMPING), DAMPING, MOST_DAMPING))


def gptq(weights: Array, grid: Grid, moments: Array, *, backwards: bool = False, by_size: bool = False) -> Array:
    """Integers by GPTQ under moments H, which must be positive definite (`damped`). Rows are fixed from the first to the last, from
    the last to the first with `backwards`, or with `by_size` those of the largest inputs first (which has the least error)."""
    depth = weights.shape[-2]
    order = np.broadcast_to(np.arange(depth)[::-1] if backwards else np.arange(depth), (*weights.shape[:-2], depth))
    if by_size:
        order = _by_size(moments)
    scale, point = (np.take_along_axis(part, order[..., np.newaxis], -2).astype(np.float64) for part in grid.rows())

    def level(values: Array, row: int) -> Array:
        return np.asarray(np.clip(np.rint(values / scale[..., row, :]) + point[..., row, :], *grid.levels))

    def value(levels: Array, row: int) -> Array:
        return np.asarray((levels - point[..., row, :]) * scale[..., row, :])

    return _fed_back(weights, moments, order, level, value).astype(np.int64)


def gptq_bfloats(weights: Array, moments: Array) -> Array:
    """The same with bfloat16 as levels."""
    def level(values: Array, row: int) -> Array:
        return values.astype(np.float32).astype(BF16.numpy).astype(np.float64)

    return _fed_back(weights, moments, _by_size(moments), level, lambda levels, row: levels).astype(BF16.numpy)


def _by_size(moments: Array) -> Array:
    """Rows by the size of their inputs, the largest first."""
    return np.argsort(-np.diagonal(moments, axis1=-2, axis2=-1), axis=-1, kind="stable")


def _fed_back(weights: Array, moments: Array, order: Array, level: Callable[[Array, int], Array],
              value: Callable[[Array, int], Array]) -> Array:
    """Levels of the rows, fixed in that order, the error of each made up for by those to come. `level` and `value` take the place of a
    row in the order."""
    *lead, depth, width = weights.shape
    down, across = order[..., np.newaxis], order[..., np.newaxis, :]
    rest = np.take_along_axis(weights.astype(np.float64), down, -2)
    # row i: how the error of the i-th row spreads over later ones, from the upper Cholesky factor of the inverse
    spread = _upper_of_inverse(np.take_along_axis(np.take_along_axis(moments, down, -2), across, -1))
    kept = np.zeros(weights.shape)
    for begin in range(0, depth, BLOCK):
        end = min(begin + BLOCK, depth)
        errors = np.zeros((*lead, end - begin, width))
        for row in range(begin, end):
            kept[..., row, :] = level(rest[..., row, :], row)
            error = (rest[..., row, :] - value(kept[..., row, :], row)) / spread[..., row, row, np.newaxis]
            errors[..., row - begin, :] = error
            rest[..., row + 1:end, :] -= spread[..., row, row + 1:end, np.newaxis] * error[..., np.newaxis, :]
        rest[..., end:, :] -= np.swapaxes(spread[..., begin:end, end:], -1, -2) @ errors
    placed = np.empty(weights.shape)
    np.put_along_axis(placed, down, kept, -2)
    return placed


def _upper_of_inverse(moments: Array) -> Array:
    """U, upper triangular, with U^T U the inverse of the moments."""
    # of the moments reversed, L L^T: then the inverse is (L^-1)^T L^-1 with both axes reversed back
    lower = np.linalg.cholesky(moments[..., ::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(lower)[..., ::-1, ::-1])


def asymmetric_target(weights: Array, moments: Array, crossed: Array) -> Array:
    """The weights that do to quantized inputs what `weights` do to plain ones: moments are X_q^T X_q, `crossed` X_q^T X."""
    strength = damped(moments)
    # what damping adds on the left it adds on the right, so that equal inputs give back the weights
    return np.asarray(np.linalg.solve(strength, (crossed + (strength - moments)) @ weights.astype(np.float64)))


def coordinate_descent(weights: Array, grid: Grid, moments: Array, start: Array, sweeps: int = SWEEPS) -> Array:
    """Integers no worse than `start` under H: sweeps over the rows, each set to its best level while the others stay, until
    none changes."""
    scale, point = grid.rows()
    integers = start.copy()
    wide = weights.astype(np.float64)
    error = values_of(integers, grid) - wide
    for _ in range(sweeps):
        changed = False
        for row in range(wide.shape[-2]):
            own = moments[..., row, row, np.newaxis]
            pull = ((moments[..., row, np.newaxis, :] @ error)[..., 0, :] - own * error[..., row, :]) / own
            best = _to_level(wide[..., row, :] - pull, scale[..., row, :], point[..., row, :], grid.levels)
            if not np.array_equal(best, integers[..., row, :]):
                integers[..., row, :], changed = best, True
                error[..., row, :] = (best - point[..., row, :]) * scale[..., row, :].astype(np.float64) - wide[..., row, :]
        if not changed:
            break
    return integers


def output_error(difference: Array, moments: Array) -> float:
    """|X D|^2 of a difference of weights D [.., K, N], from X^T X; summed over groups."""
    return float((difference * (moments @ difference)).sum())
