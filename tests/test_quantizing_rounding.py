"""Weights to integers: scales, nearest, GPTQ against Babai's nearest-plane algorithm, coordinate descent; the exact choice under a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tilewright.ir.types import BF16
from tilewright.quantizing import rounding
from tilewright.quantizing.budget import Choice, Option, front, solve
from tilewright.quantizing.rounding import Grid

FREE = (-10 ** 6, 10 ** 6)  # levels that no weight here leaves


def inputs(depth: int, seed: int = 0, rows: int = 0) -> np.ndarray:
    """Rows whose elements depend on each other, as those of layers do."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(depth, depth)) * 0.5 + np.eye(depth)
    return random.normal(size=(rows or 4 * depth, depth)) @ mixed


def plain_grid(depth: int, width: int, levels: tuple[int, int] = FREE) -> Grid:
    return Grid(np.ones((1, width), np.float32), np.zeros((1, width), np.int64), levels, depth)


def nearest_plane(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Babai's algorithm (On Lovász' lattice reduction and the nearest lattice point problem, 1986): whole coordinates of a point of the
    lattice of the basis' columns that is near the target. By projections on the Gram-Schmidt vectors, the last column first."""
    depth = basis.shape[1]
    orthogonal = basis.astype(np.float64).copy()
    for column in range(depth):
        for earlier in range(column):
            along = orthogonal[:, earlier]
            orthogonal[:, column] -= (basis[:, column] @ along) / (along @ along) * along
    rest = target.astype(np.float64).copy()
    whole = np.zeros(depth)
    for column in reversed(range(depth)):
        along = orthogonal[:, column]
        whole[column] = np.round(rest @ along / (along @ along))
        rest -= whole[column] * basis[:, column]
    return whole


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(1, 9), width=st.integers(1, 3), seed=st.integers(0, 10 ** 6), extra=st.integers(0, 12))
def test_gptq_run_back_to_front_is_the_nearest_plane(depth: int, width: int, seed: int, extra: int) -> None:
    """Chen et al., The geometry of LLM quantization: GPTQ as Babai's nearest plane algorithm, 2025."""
    random = np.random.default_rng(seed)
    basis = random.normal(size=(depth + extra, depth))
    weights = random.normal(size=(depth, width)) * 4
    found = rounding.gptq(weights, plain_grid(depth, width), basis.T @ basis, backwards=True)
    expected = np.stack([nearest_plane(basis, basis @ weights[:, column]) for column in range(width)], axis=1)
    # the same point of the lattice, where a coordinate is not as near to one as to the other
    slack = 1e-6 * np.linalg.cond(basis)
    same = np.linalg.norm(basis @ (found - weights), axis=0), np.linalg.norm(basis @ (expected - weights), axis=0)
    assert np.array_equal(found, expected) or np.all(np.abs(same[0] - same[1]) <= slack * (1 + same[1]))


def test_gptq_is_the_nearest_plane_over_several_blocks() -> None:
    """More rows than are handled at a time, exactly."""
    depth = 2 * rounding.BLOCK + 7
    basis = inputs(depth, 5)
    weights = np.random.default_rng(6).normal(size=(depth, 2)) * 4
    found = rounding.gptq(weights, plain_grid(depth, 2), basis.T @ basis, backwards=True)
    expected = np.stack([nearest_plane(basis, basis @ weights[:, column]) for column in range(2)], axis=1)
    assert_array_equal(found, expected)


@pytest.mark.parametrize("group, symmetric", [(0, True), (16, True), (16, False)])
def test_each_way_of_rounding_loses_less_than_the_simpler_one(group: int, symmetric: bool) -> None:
    depth, width = 64, 12
    x = inputs(depth, 1)
    moments = x.T @ x
    weights = np.random.default_rng(2).normal(size=(depth, width))
    grid = rounding.grid_for(weights, rounding.LEVELS["int4"], group, symmetric, True, np.diagonal(moments))

    def lost(integers: np.ndarray) -> float:
        least, greatest = rounding.LEVELS["int4"]
        assert integers.min() >= least and integers.max() <= greatest
        difference = rounding.values_of(integers, grid) - weights
        assert_allclose(rounding.output_error(difference, moments), np.sum((x @ difference) ** 2), rtol=1e-6)
        return rounding.output_error(difference, moments)

    steady = rounding.damped(moments)
    nearest = rounding.nearest(weights, grid)
    gptq = rounding.gptq(weights, grid, steady)
    descent = rounding.coordinate_descent(weights, grid, moments, nearest)
    assert lost(gptq) < lost(nearest)
    assert lost(descent) < lost(nearest)
    assert lost(rounding.coordinate_descent(weights, grid, moments, gptq)) <= lost(gptq)


def test_bfloats_make_up_for_one_another() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24)) + 1
    weights = rng.standard_normal((1, 24, 7)).astype(np.float32)
    moments = rounding.damped((inputs.T @ inputs)[np.newaxis])
    found = rounding.gptq_bfloats(weights, moments)
    assert found.dtype == BF16.numpy and found.shape == weights.shape
    lost = [rounding.output_error(weights.astype(np.float64) - kept.astype(np.float64), moments)
            for kept in (found, weights.astype(BF16.numpy))]
    assert 0 < lost[0] < 0.6 * lost[1]
    assert_array_equal(rounding.gptq_bfloats(found.astype(np.float32), moments), found)


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(1, 8), seed=st.integers(0, 10 ** 6), sweeps=st.integers(1, 4))
def test_coordinate_descent_never_loses_more_than_its_start(depth: int, seed: int, sweeps: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(depth + 3, depth))
    moments = rounding.damped(x.T @ x)
    weights = random.normal(size=(depth, 2))
    grid = rounding.grid_for(weights, (-2, 1), 0, False, True)
    start = random.integers(-2, 2, size=weights.shape)
    found = rounding.coordinate_descent(weights, grid, moments, start, sweeps)

    def lost(integers: np.ndarray) -> float:
        return rounding.output_error(rounding.values_of(integers, grid) - weights, moments)

    assert lost(found) <= lost(start) * (1 + 1e-9)


def test_the_asymmetric_target_makes_up_for_inputs_that_were_quantized() -> None:
    depth, width = 24, 6
    plain = inputs(depth, 3, rows=400)
    quantized = np.round(plain * 2) / 2
    weights = np.random.default_rng(4).normal(size=(depth, width))
    moments, crossed = quantized.T @ quantized, quantized.T @ plain
    grid = rounding.grid_for(weights, rounding.LEVELS["int4"], 0, True, True, np.diagonal(moments))
    target = rounding.asymmetric_target(weights, moments, crossed)

    def lost(integers: np.ndarray) -> float:
        return float(np.sum((quantized @ rounding.values_of(integers, grid) - plain @ weights) ** 2))

    steady = rounding.damped(moments)
    assert lost(rounding.gptq(target, grid, steady)) < lost(rounding.gptq(weights, grid, steady))
    assert_allclose(rounding.asymmetric_target(weights, moments, moments), weights, rtol=1e-9)


@pytest.mark.parametrize("levels", [(-127, 127), (-8, 7), (-2, 1)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_to_nearest_is_within_half_a_step(levels: tuple[int, int], symmetric: bool) -> None:
    weights = np.random.default_rng(7).normal(size=(48, 5))
    grid = rounding.grid_for(weights, levels, 16, symmetric, False)
    scale, _ = grid.rows()
    error = np.abs(rounding.values_of(rounding.nearest(weights, grid), grid) - weights)
    # where the zero point was rounded, an end of the range lies up to half a step outside
    assert np.all(error <= scale * (0.5 if symmetric else 1.0) * (1 + 1e-6))


@pytest.mark.parametrize("group", [0, 6])
def test_groups_are_rounded_as_each_alone(group: int) -> None:
    """Those of a depthwise convolution are hundreds of small matrices."""
    x = np.stack([inputs(12, seed, rows=40) for seed in range(5)])
    moments = np.swapaxes(x, 1, 2) @ x
    weights = np.random.default_rng(3).normal(size=(5, 12, 4))
    importance = np.diagonal(moments, axis1=1, axis2=2)

    def rounded(weights: np.ndarray, moments: np.ndarray, importance: np.ndarray) -> list[np.ndarray]:
        # without a search for scales, which waits for the last of all columns
        grid = rounding.grid_for(weights, (-8, 7), group, True, False, importance)
        steady = rounding.damped(moments)
        plain = rounding.nearest(weights, grid)
        found = [plain, rounding.gptq(weights, grid, steady, by_size=True), rounding.gptq(weights, grid, steady, backwards=True),
                 rounding.coordinate_descent(weights, grid, steady, plain, 2)]
        return [*found, *(rounding.values_of(integers, grid) for integers in found)]

    alone = [rounded(*parts) for parts in zip(weights, moments, importance)]
    for together, *each in zip(rounded(weights, moments, importance), *alone, strict=True):
        assert_allclose(together, np.stack(each), atol=1e-12)


def test_few_rows_are_trusted_less() -> None:
    """Where they say little about inputs to come, GPTQ is no worse than rounding to nearest there; where they say much it is better."""
    depth, grid_bits = 96, (-8, 7)
    weights = np.random.default_rng(3).normal(size=(depth, 20))
    grid = rounding.grid_for(weights, grid_bits, 0, True, True)
    mixed = np.random.default_rng(4).normal(size=(8, depth)) + 0.05 * np.random.default_rng(5).normal(size=(8, depth))
    losses = {}
    for name, count, mixing in (("alone", 60, np.eye(depth)), ("alone, many", 6000, np.eye(depth)), ("together", 60, None)):
        def draw(rows: int, seed: int, mixing: np.ndarray | None = mixing) -> np.ndarray:
            random = np.random.default_rng(seed)
            if mixing is not None:
                return random.normal(size=(rows, depth))
            return random.normal(size=(rows, 8)) @ mixed + 0.1 * random.normal(size=(rows, depth))

        seen, later = draw(count, 6), draw(2000, 7)
        moments = rounding.damped(seen.T @ seen, rounding.damping_of(count, seen.T @ seen))
        rounded = (rounding.gptq(weights, grid, moments, by_size=True), rounding.nearest(weights, grid))
        losses[name] = [np.square(later @ (weights - rounding.values_of(integers, grid))).sum() for integers in rounded]
    assert losses["alone"][0] < 1.02 * losses["alone"][1] and losses["alone, many"][0] < 1.02 * losses["alone, many"][1]
    assert losses["together"][0] < 0.5 * losses["together"][1]
    eye = np.eye(10)
    assert rounding.damping_of(5, eye) == rounding.damping_of(0, 0 * eye) == rounding.MOST_DAMPING
    one = np.ones((3, 10, 10))
    assert_array_equal(rounding.damping_of(100_000, one), [rounding.DAMPING] * 3)
    assert (rounding.damping_of(5, one) > rounding.damping_of(50, one)).all()


def test_weights_that_are_all_zero_or_of_one_sign_have_a_grid() -> None:
    zeros = np.zeros((4, 2))
    for symmetric in (True, False):
        grid = rounding.grid_for(zeros, (-8, 7), 0, symmetric, True)
        assert np.all(grid.scale > 0) and np.all(np.isfinite(grid.scale))
        assert_array_equal(rounding.values_of(rounding.nearest(zeros, grid), grid), zeros)
    ones = np.linspace(1, 2, 8)[:, np.newaxis]
    grid = rounding.grid_for(ones, (-8, 7), 0, False, False)
    assert_allclose(rounding.values_of(rounding.nearest(ones, grid), grid), ones, atol=float(grid.scale[0, 0]))


def test_inputs_that_are_always_zero_or_equal_do_not_stop_gptq() -> None:
    x = inputs(6, 8)
    x[:, 2], x[:, 4] = 0, x[:, 3]
    weights = np.random.default_rng(9).normal(size=(6, 3))
    for moments in (x.T @ x, np.zeros((6, 6))):
        grid = rounding.grid_for(weights, (-8, 7), 0, True, True)
        found = rounding.gptq(weights, grid, rounding.damped(moments), by_size=True)
        assert found.min() >= -8 and found.max() <= 7


# --- the choice under a budget ---------------------------------------------------------------------------------------

LOSSES = st.floats(0, 4, allow_nan=False)
OPTIONS = st.lists(st.builds(Option, LOSSES, st.floats(0, 9, allow_nan=False)), max_size=3)


@settings(max_examples=80, deadline=None)
@given(layers=st.lists(st.tuples(st.floats(0, 9), OPTIONS), max_size=5), budget=st.floats(0, 10))
def test_the_choice_is_the_best_of_all(layers: list[tuple[float, list[Option]]], budget: float) -> None:
    options = [[Option(0.0, cost), *rest] for cost, rest in layers]
    choice = solve(options, budget)
    every = itertools.product(*(range(len(some)) for some in options))
    sums = [(sum(options[i][o].loss for i, o in enumerate(picked)), sum(options[i][o].cost for i, o in enumerate(picked)))
            for picked in every]
    best = min(cost for loss, cost in sums if loss <= budget)
    assert choice.cost <= best * (1 + 1e-6) + 1e-9
    assert choice.loss <= budget * (1 + 1e-6)
    assert_allclose(sum(options[i][o].cost for i, o in enumerate(choice.options)), choice.cost, atol=1e-9)
    assert_allclose(sum(options[i][o].loss for i, o in enumerate(choice.options)), choice.loss, atol=1e-9)


def test_options_of_infinite_loss_are_never_chosen() -> None:
    infinite = [Option(0, 5), Option(float("inf"), 0)]
    assert solve([infinite], 1e9) == Choice((0,), 0.0, 5.0)
    assert solve([infinite, [Option(0, 5), Option(1, 2)], infinite], float("inf")) == Choice((0, 1, 0), 1.0, 12.0)
    assert solve([], 1.0) == Choice((), 0.0, 0.0)


def test_many_layers_are_chosen_among_quickly_and_the_front_falls() -> None:
    random = np.random.default_rng(3)
    layers = [[Option(0.0, float(random.uniform(2, 4))), *(Option(float(random.exponential() * k), float(random.uniform(0, 3) / k))
                                                          for k in (1, 2, 3))] for _ in range(80)]
    points = front(layers)
    assert len(points) > 6
    assert all(a.loss < b.loss and a.cost > b.cost for a, b in itertools.pairwise(points))
    assert points[0].loss == 0
