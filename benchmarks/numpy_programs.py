"""Twenty ordinary NumPy functions, as a user would bring them.

What it does: each function is plain NumPy (two use `tw.while_loop` and `tw.scan`, which on plain arrays just run in
Python), beside inputs for it at two scales: those of a real use, and small ones for tests. `numpy_functions.py` measures them.

Assumes nothing of the compiler; every function also runs as it stands. Guarantees: inputs depend only on the seed, and all
floats have the dtype asked for; functions return new arrays and leave their arguments as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tilewright as tw

Array = np.ndarray
Sizes = dict[str, int]
Make = Callable[[np.random.Generator, Sizes], tuple[Array, ...]]


@dataclass(frozen=True)
class Program:
    """A function, what makes its inputs (floats as float64; they are cast), and its sizes in real use and in tests."""

    function: Callable[..., Any]
    make: Make
    full: Sizes
    small: Sizes

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def takes_floats(self) -> bool:
        """Whether the dtype that `inputs` is asked for makes a difference."""
        return any(a.dtype.kind == "f" for a in self.inputs("float32", small=True))

    def inputs(self, dtype: str, small: bool = False, seed: int = 0, **sizes: int) -> tuple[Array, ...]:
        made = self.make(np.random.default_rng(seed), {**(self.small if small else self.full), **sizes})
        return tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in made)


# --- finance ---------------------------------------------------------------------------------------------------------


def black_scholes(price, strike, years, rate, volatility):
    """European call and put; the normal distribution by Abramowitz and Stegun, 26.2.17."""
    def distribution(x):
        k = 1 / (1 + 0.2316419 * np.abs(x))
        series = k * (0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (-1.821255978 + k * 1.330274429))))
        tail = 0.3989422804014327 * np.exp(-0.5 * x * x) * series
        return np.where(x >= 0, 1 - tail, tail)

    spread = volatility * np.sqrt(years)
    d1 = (np.log(price / strike) + (rate + 0.5 * volatility * volatility) * years) / spread
    d2 = d1 - spread
    discounted = strike * np.exp(-rate * years)
    call = price * distribution(d1) - discounted * distribution(d2)
    return call, call - price + discounted


def drawdown(returns):
    """Wealth of each asset over time, its running peak, and how far below that it fell at worst."""
    wealth = np.exp(np.cumsum(np.log1p(returns), axis=0))
    below = 1 - wealth / np.maximum.accumulate(wealth, axis=0)
    return wealth[-1], below.max(axis=0), below.argmax(axis=0)


def moving_statistics(series, window=32):
    """Moving mean, deviation and score of each row, from running sums."""
    centred = series - series.mean(axis=-1, keepdims=True)
    sums = np.cumsum(centred, axis=-1)
    squares = np.cumsum(centred * centred, axis=-1)
    mean = (sums[..., window:] - sums[..., :-window]) / window
    square = (squares[..., window:] - squares[..., :-window]) / window
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    return mean, deviation, (centred[..., window:] - mean) / (deviation + 1e-3)


# --- neural networks -------------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, scale, shift):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def attention(query, key, value):
    """Scaled dot product with a causal mask."""
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1]).astype(query.dtype)
    position = np.arange(query.shape[-2], like=query)
    scores = np.where(position[:, None] >= position[None, :], scores, -1e9)
    return softmax(scores) @ value


def mlp_gelu(x, w1, b1, w2, b2):
    """Two layers with the tanh form of gelu, and the residual."""
    h = x @ w1 + b1
    h = 0.5 * h * (1 + np.tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)))
    return x + h @ w2 + b2


def cross_entropy(logits, labels):
    """The mean loss, and its gradient by the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(shifted - total, labels[:, None], axis=1)
    hot = np.arange(logits.shape[1], like=labels) == labels[:, None]
    return -picked.mean(), (np.exp(shifted - total) - hot) / logits.shape[0]


# --- learning and data -----------------------------------------------------------------------------------------------


def k_means_step(points, centres):
    """Nearest centres and the means of what is near each; an empty centre stays."""
    squared = (points ** 2).sum(axis=1)[:, None] - 2 * (points @ centres.T) + (centres ** 2).sum(axis=1)
    label = squared.argmin(axis=1)
    member = (label[:, None] == np.arange(centres.shape[0], like=label)).astype(points.dtype)
    count = member.sum(axis=0)[:, None]
    return np.where(count > 0, member.T @ points / np.maximum(count, 1), centres), label


def logistic_step(x, y, weights, bias):
    """One step of gradient descent, and the loss before it."""
    z = x @ weights + bias
    error = 1 / (1 + np.exp(-z)) - y
    loss = (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).mean()
    return weights - 0.1 * (x.T @ error) / x.shape[0], bias - 0.1 * error.mean(), loss


def pairwise_distances(x, y):
    """Euclidean, spelled with differences as SciPy computes it."""
    return np.sqrt(((x[:, None, :] - y[None, :, :]) ** 2).sum(axis=-1))


def correlation(x):
    """Columns standardized, and their correlation matrix."""
    z = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    return z, z.T @ z / x.shape[0]


def robust_summary(x):
    """Quartiles, trimmed mean, and the ranks of each row, by sorting."""
    n = x.shape[-1]
    ordered = np.sort(x, axis=-1)
    quartiles = np.stack([ordered[..., n // 4], ordered[..., n // 2], ordered[..., 3 * n // 4]], axis=-1)
    trimmed = ordered[..., n // 10:n - n // 10].mean(axis=-1)
    return quartiles, trimmed, np.argsort(np.argsort(x, axis=-1, kind="stable"), axis=-1)


# --- physics ---------------------------------------------------------------------------------------------------------


def heat(temperature, steps=8):
    """Explicit steps of the heat equation, written into the inner part."""
    t = temperature.copy()
    for _ in range(steps):
        t[1:-1, 1:-1] += 0.2 * (t[2:, 1:-1] + t[:-2, 1:-1] + t[1:-1, 2:] + t[1:-1, :-2] - 4 * t[1:-1, 1:-1])
    return t


def jacobi(u, f, steps=6):
    """Jacobi sweeps for Poisson's equation between two grids, and the largest change of the last."""
    a, b = u.copy(), u.copy()
    for _ in range(steps):
        b[1:-1, 1:-1] = 0.25 * (a[:-2, 1:-1] + a[2:, 1:-1] + a[1:-1, :-2] + a[1:-1, 2:] - f[1:-1, 1:-1])
        a, b = b, a
    return a, np.abs(a - b).max()


def n_body(position, velocity, mass, steps=2):
    """Leapfrog steps with softened gravity."""
    for _ in range(steps):
        apart = position[None, :, :] - position[:, None, :]
        inverse = ((apart ** 2).sum(axis=-1) + 1e-2) ** -1.5
        velocity = velocity + 0.01 * (apart * (inverse * mass)[:, :, None]).sum(axis=1)
        position = position + 0.01 * velocity
    return position, velocity


def mandelbrot(real, imaginary, most=50):
    """Steps until each point leaves the circle; ends when all have."""
    def goes_on(state):
        step, _, _, count = state
        return (step < most) & (count == step).any()

    def iterate(state):
        step, x, y, count = state
        inside = x * x + y * y <= 4
        x, y = np.where(inside, x * x - y * y + real, x), np.where(inside, 2 * x * y + imaginary, y)
        return step + 1, x, y, count + inside

    zero = np.zeros_like(real)
    return tw.while_loop(goes_on, iterate, (np.int64(0), zero, zero, np.zeros_like(real, dtype=np.int64)))[3]


# --- images and signals ----------------------------------------------------------------------------------------------


def gaussian_blur(image):
    """Five taps by rows, then by columns, borders repeated."""
    taps = (0.0625, 0.25, 0.375, 0.25, 0.0625)
    height, width = image.shape
    padded = np.pad(image, 2, mode="edge")
    rows = sum(w * padded[k:k + height, :] for k, w in enumerate(taps))
    return sum(w * rows[:, k:k + width] for k, w in enumerate(taps))


def sobel_edges(picture):
    """Grey values of an RGB picture in bytes, gradients, and the edges as bytes."""
    grey = (picture[..., 0] * np.float32(0.299) + picture[..., 1] * np.float32(0.587) + picture[..., 2] * np.float32(0.114))
    across = grey[:-2, 2:] + 2 * grey[1:-1, 2:] + grey[2:, 2:] - grey[:-2, :-2] - 2 * grey[1:-1, :-2] - grey[2:, :-2]
    down = grey[2:, :-2] + 2 * grey[2:, 1:-1] + grey[2:, 2:] - grey[:-2, :-2] - 2 * grey[:-2, 1:-1] - grey[:-2, 2:]
    strength = np.sqrt(across ** 2 + down ** 2)
    edges = np.zeros_like(grey)
    edges[1:-1, 1:-1] = strength
    return np.clip(edges, 0, 255).astype(np.uint8), strength.mean()


def rotate_image(image, angle):
    """Bilinear sampling at rotated places."""
    height, width = image.shape
    y = np.arange(height, like=image)[:, None] - height / 2
    x = np.arange(width, like=image)[None, :] - width / 2
    cos, sin = np.cos(angle), np.sin(angle)
    v = np.clip(cos * y - sin * x + height / 2, 0, height - 1.001)
    u = np.clip(sin * y + cos * x + width / 2, 0, width - 1.001)
    top, left = np.floor(v).astype(np.int64), np.floor(u).astype(np.int64)
    down, right = (v - top).astype(image.dtype), (u - left).astype(image.dtype)
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


# --- inputs ----------------------------------------------------------------------------------------------------------


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return rng.standard_normal(shape) * scale


def _options(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    n = s["n"]
    return (rng.uniform(50, 150, n), rng.uniform(60, 140, n), rng.uniform(0.1, 2, n), rng.uniform(0, 0.1, n),
            rng.uniform(0.1, 0.6, n))


def _returns(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return (_normal(rng, s["days"], s["assets"], scale=0.02),)


def _series(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return (_normal(rng, s["rows"], s["n"]),)


def _norm(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return _normal(rng, s["rows"], s["n"]), 1 + _normal(rng, s["n"], scale=0.1), _normal(rng, s["n"])


def _heads(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    shape = s["batch"], s["heads"], s["n"], s["depth"]
    return _normal(rng, *shape), _normal(rng, *shape), _normal(rng, *shape)


def _layers(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    n, k, m = s["rows"], s["n"], s["hidden"]
    return (_normal(rng, n, k), _normal(rng, k, m, scale=k ** -0.5), _normal(rng, m, scale=0.1),
            _normal(rng, m, k, scale=m ** -0.5), _normal(rng, k, scale=0.1))


def _labelled(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return _normal(rng, s["rows"], s["classes"]), rng.integers(0, s["classes"], s["rows"])


def _clusters(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    centres = _normal(rng, s["centres"], s["features"], scale=5)
    return centres[rng.integers(0, s["centres"], s["n"])] + _normal(rng, s["n"], s["features"]), centres + 0.1


def _classified(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    x = _normal(rng, s["n"], s["features"])
    weights = _normal(rng, s["features"], scale=0.1)
    return x, (x @ weights + _normal(rng, s["n"], scale=0.1) > 0).astype(np.float64), weights, np.array(0.1)


def _two_sets(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return _normal(rng, s["n"], s["features"]), _normal(rng, s["m"], s["features"])


def _plate(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return (rng.uniform(0, 100, (s["height"], s["width"])),)


def _grid(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return rng.uniform(0, 1, (s["height"], s["width"])), _normal(rng, s["height"], s["width"], scale=0.01)


def _bodies(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return _normal(rng, s["n"], 3), _normal(rng, s["n"], 3, scale=0.1), rng.uniform(0.1, 1, s["n"]) / s["n"]


def _plane(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    del rng
    x, y = np.meshgrid(np.linspace(-2, 0.5, s["width"]), np.linspace(-1.25, 1.25, s["height"]))
    # On a grid of 2**-10: in the first steps both dtypes see the same numbers.
    return np.round(x * 1024) / 1024, np.round(y * 1024) / 1024


def _picture(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return (rng.integers(0, 256, (s["height"], s["width"], 3), dtype=np.uint8),)


def _turned(rng: np.random.Generator, s: Sizes) -> tuple[Array, ...]:
    return rng.uniform(0, 1, (s["height"], s["width"])), np.array(0.3)


PROGRAMS = (
    Program(black_scholes, _options, {"n": 1_000_000}, {"n": 5003}),
    Program(drawdown, _returns, {"days": 2000, "assets": 500}, {"days": 61, "assets": 19}),
    Program(moving_statistics, _series, {"rows": 64, "n": 10_000}, {"rows": 3, "n": 150}),
    Program(softmax, _series, {"rows": 1024, "n": 1000}, {"rows": 7, "n": 37}),
    Program(layer_norm, _norm, {"rows": 2048, "n": 768}, {"rows": 5, "n": 48}),
    Program(attention, _heads, {"batch": 1, "heads": 12, "n": 256, "depth": 64}, {"batch": 2, "heads": 3, "n": 21, "depth": 16}),
    Program(mlp_gelu, _layers, {"rows": 256, "n": 512, "hidden": 2048}, {"rows": 9, "n": 32, "hidden": 65}),
    Program(cross_entropy, _labelled, {"rows": 1024, "classes": 1000}, {"rows": 11, "classes": 23}),
    Program(k_means_step, _clusters, {"n": 20_000, "features": 32, "centres": 64}, {"n": 203, "features": 5, "centres": 7}),
    Program(logistic_step, _classified, {"n": 20_000, "features": 128}, {"n": 101, "features": 13}),
    Program(pairwise_distances, _two_sets, {"n": 1000, "m": 1000, "features": 16}, {"n": 31, "m": 17, "features": 5}),
    Program(correlation, _series, {"rows": 10_000, "n": 128}, {"rows": 83, "n": 11}),
    Program(robust_summary, _series, {"rows": 200, "n": 2000}, {"rows": 4, "n": 61}),
    Program(heat, _plate, {"height": 1000, "width": 1000}, {"height": 23, "width": 37}),
    Program(jacobi, _grid, {"height": 1000, "width": 1000}, {"height": 19, "width": 41}),
    Program(n_body, _bodies, {"n": 1000}, {"n": 29}),
    Program(mandelbrot, _plane, {"height": 400, "width": 400}, {"height": 17, "width": 23}),
    Program(gaussian_blur, _plate, {"height": 1080, "width": 1920}, {"height": 25, "width": 33}),
    Program(sobel_edges, _picture, {"height": 1080, "width": 1920}, {"height": 21, "width": 35}),
    Program(rotate_image, _turned, {"height": 1080, "width": 1920}, {"height": 27, "width": 31}),
)
