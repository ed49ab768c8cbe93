"""ONNX operators of signals: DFT, STFT, window functions, MelWeightMatrix.

A transform of a length with small factors is split into transforms of its factors (Cooley and Tukey, 1965); the last step is a
product with a matrix of cosines and sines. Lengths must be known, or follow from the shape that the model declares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...ir.dims import DimLike, compare
from ...ir.graph import Node
from ...ir.ops.compute import Dot
from ...ir.ops.shape import Concat, Iota, Take
from ...ir.types import F64, I64, DType
from ...library import expand, size_value, slice_axis, squeeze, transpose
from ...library import pad as pad_constant
from .by_data import all_of, choose, element, number, vector
from .context import Context, Operator, Operators, not_negative
from .reduction import flip

# A transform of at most so many points is a product with a matrix: two of them for real points, four for complex ones. The
# limits are not chosen for speed: two of the standard's node cases (test_dft_inverse*) expect zeros to come out as the rounding
# noise of a transform that is split, and a longer product does not give it within their bounds.
LARGEST_REAL, LARGEST_COMPLEX = 64, 8
LARGEST_FACTOR, LARGEST_LENGTH = 2048, 1 << 24
Complex = tuple[Node, Node | None]


def _rotation(points: np.ndarray, n: int, dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """exp(-2 pi i points / n), in float64 until it is rounded once."""
    angle = -2.0 * np.pi * (points % n) / n
    return np.cos(angle).astype(dtype.numpy), np.sin(angle).astype(dtype.numpy)


def _times(c: Context, x: Complex, cos: Node, sin: Node) -> Complex:
    real, imaginary = x
    if imaginary is None:
        return c.apply("mul", real, cos), c.apply("mul", real, sin)
    return (c.apply("sub", c.apply("mul", real, cos), c.apply("mul", imaginary, sin)),
            c.apply("add", c.apply("mul", real, sin), c.apply("mul", imaginary, cos)))


def transform(c: Context, x: Complex, n: int) -> tuple[Node, Node]:
    """The discrete Fourier transform along the last axis, whose size is n."""
    real, imaginary = x
    factor = next((f for f in range(math.isqrt(n), 1, -1) if n % f == 0), 1)
    if n <= (LARGEST_REAL if imaginary is None else LARGEST_COMPLEX) or factor == 1:
        steps = np.outer(np.arange(n), np.arange(n))
        cos, sin = (c.constant(m) for m in _rotation(steps, n, real.dtype))
        last = (real.rank - 1,)
        parts = [None if p is None else (c.b.add(Dot(last, (0,)), p, cos), c.b.add(Dot(last, (0,)), p, sin)) for p in x]
        by_real, by_imaginary = parts
        assert by_real is not None
        if by_imaginary is None:
            return by_real
        return c.scalar("sub", by_real[0], by_imaginary[1]), c.scalar("add", by_real[1], by_imaginary[0])
    rest = n // factor
    # element f * rest + r: transform along f for every r, turn, transform along r; the result is at k_f + factor * k_r
    rows = real.shape[:-1]
    swapped = (*range(real.rank - 1), real.rank, real.rank - 1)
    columns = [None if p is None else transpose(c.b, c.reshape(p, (*rows, factor, rest)), swapped) for p in (real, imaginary)]
    assert columns[0] is not None
    inner = transform(c, (columns[0], columns[1]), factor)          # [..., rest, factor]
    turns = np.outer(np.arange(rest), np.arange(factor))
    cos, sin = (c.constant(m) for m in _rotation(turns, n, real.dtype))
    turned = _times(c, inner, cos, sin)
    assert turned[1] is not None
    outer = transform(c, (transpose(c.b, turned[0], swapped), transpose(c.b, turned[1], swapped)), rest)   # [..., factor, rest]
    first, second = (c.reshape(transpose(c.b, p, swapped), (*rows, n)) for p in outer)
    return first, second


def _largest_factor(n: int) -> int:
    """The largest prime that divides n, or 1."""
    divisor, largest = 2, 1
    while divisor * divisor <= n:
        if n % divisor:
            divisor += 1
        else:
            n, largest = n // divisor, divisor
    return max(n, largest)


def _resized(c: Context, x: Node, n: int) -> Node:
    """The last axis cut or filled with zeros."""
    size = x.shape[-1]
    if not isinstance(size, int):
        c.unsupported(f"the size {size} of the transformed axis must be known", hint="bind the dim")
    if size >= n:
        return slice_axis(c.b, x, x.rank - 1, 0, n)
    return pad_constant(c.b, x, (0,) * x.rank, (0,) * (x.rank - 1) + (n - size,))


def _one_transform(c: Context, x: Node, axis: int, length: int | None, inverse: bool, onesided: bool) -> Node:
    """DFT of [..., 1 | 2] along one axis."""
    size = x.shape[axis]
    if not isinstance(size, int) or x.shape[-1] not in (1, 2):
        c.unsupported(f"the transformed axis {axis} and the last one must be known in {x.type}", hint="bind the dims")
    n = _length(x, axis, length, inverse and onesided)
    assert isinstance(n, int)
    if n < 1:
        c.fail(f"the length of the transform must be positive, found {n}")
    if n > LARGEST_LENGTH or _largest_factor(n) > LARGEST_FACTOR:
        c.unsupported(f"a transform of {n} points; lengths up to {LARGEST_LENGTH} with prime factors up to {LARGEST_FACTOR} are supported")
    dtype, wide = x.dtype, c.wide(x)
    moved = transpose(c.b, wide, (*(a for a in range(x.rank - 1) if a != axis), axis, x.rank - 1))
    parts = [squeeze(c.b, slice_axis(c.b, moved, x.rank - 1, i, 1), (x.rank - 1,)) for i in range(x.shape[-1])]
    real, imaginary = parts[0], parts[1] if len(parts) == 2 else None
    if inverse and onesided:
        real, imaginary = _hermitian(c, real, imaginary, n)
    real, imaginary = _resized(c, real, n), None if imaginary is None else _resized(c, imaginary, n)
    if inverse:         # the conjugate of the transform of the conjugate
        imaginary = None if imaginary is None else c.scalar("neg", imaginary)
    results = list(transform(c, (real, imaginary), n))
    if inverse:
        scale = c.like(1 / n, results[0])
        results = [c.apply("mul", results[0], scale), c.apply("mul", c.scalar("neg", results[1]), scale)]
    if onesided and not inverse:
        results = [slice_axis(c.b, p, p.rank - 1, 0, n // 2 + 1) for p in results]
    if inverse and onesided:
        results = results[:1]
    joined = [expand(c.b, p, (p.rank,)) for p in results]
    whole = joined[0] if len(joined) == 1 else c.b.add(Concat(joined[0].rank - 1), *joined)
    order = list(range(x.rank - 2))
    order.insert(axis, x.rank - 2)
    return c.cast(transpose(c.b, whole, (*order, x.rank - 1)), dtype)


def _length(x: Node, axis: int, length: int | None, halved: bool) -> DimLike:
    """The number of points; `halved` says that only half of the frequencies are given."""
    return length if length is not None else 2 * (x.shape[axis] - 1) if halved else x.shape[axis]


def _hermitian(c: Context, real: Node, imaginary: Node | None, n: int) -> tuple[Node, Node]:
    """All n frequencies of a real signal from its first n // 2 + 1."""
    half = n // 2 + 1
    imaginary = c.apply("mul", real, c.like(0, real)) if imaginary is None else imaginary
    real, imaginary = _resized(c, real, half), _resized(c, imaginary, half)
    axis, mirrored = real.rank - 1, n - half
    parts = []
    for p, sign in ((real, 1), (imaginary, -1)):
        back = flip(c, slice_axis(c.b, p, axis, 1, mirrored), axis)
        parts.append(c.b.add(Concat(axis), p, c.scalar("neg", back) if sign < 0 else back))
    return parts[0], parts[1]


def dft(c: Context, x: Node, dft_length: Node | None = None, axis: Node | int | None = None, *, inverse: int = 0,
        onesided: int = 0) -> Node:
    length = None if dft_length is None else c.integer(dft_length, "dft_length")
    if axis is None:
        axis = 1 if c.opset < 20 else -2
    if not isinstance(axis, Node) or c.all_known(axis):
        place = c.axis(c.integer(axis, "axis"), x.rank)
        return _one_transform(c, x, place, length, bool(inverse), bool(onesided))
    shape = c.declared_shape("axis")
    given = element(c, vector(c, axis), 0)
    found = []
    for place in range(x.rank - 1):
        n = _length(x, place, length, bool(inverse and onesided))
        made = [*x.shape[:-1], 1 if inverse and onesided else 2]
        made[place] = n // 2 + 1 if onesided and not inverse else n
        if isinstance(n, int) and n > 0 and tuple(made) == shape:
            value = _one_transform(c, x, place, length, bool(inverse), bool(onesided))
            is_meant = c.scalar("or", c.scalar("eq", given, number(c, place)), c.scalar("eq", given, number(c, place - x.rank)))
            found.append((is_meant, value))
    return choose(c, found, "axis")


def stft(c: Context, signal: Node, frame_step: Node, window: Node | None = None, frame_length: Node | None = None, *,
         onesided: int = 1) -> Node:
    """Transforms of the frames that begin every `frame_step` elements, each weighted by the window. A signal shorter than a frame
    has none; one without parts is real, as other runtimes take it."""
    if signal.rank == 2:
        signal = c.reshape(signal, (*signal.shape, 1))
    if signal.rank != 3:
        c.fail(f"the signal must be [batch, length, 1 or 2], found {signal.type}")
    c.check_rank("window", window, 1)
    known_step = c.all_known(frame_step)
    length = window.shape[0] if window is not None else signal.shape[1] if frame_length is None else None
    lengths = [length]
    if frame_length is not None and c.all_known(frame_length):
        lengths = [c.integer(frame_length, "frame_length")]
    shape = None
    if not known_step or lengths == [None]:
        shape = c.declared_shape("frame_step", rank=4, given=frame_step)
        if lengths == [None]:
            bins = shape[2]
            lengths = [2 * (bins - 1), 2 * bins - 1] if onesided else [bins]
    found = []
    for n in lengths:
        if not isinstance(n, int) or not (known_step or isinstance(signal.shape[1], int)):
            c.unsupported(f"the frame length {n} and the length of {signal.type} must be known", hint="bind the dims")
        if n > 0 and compare(n, signal.shape[1]) != 1:
            found.append(_frames(c, signal, frame_step, window, frame_length, n, bool(onesided), shape))
    return choose(c, found, "frame_length")


def _frames(c: Context, signal: Node, frame_step: Node, window: Node | None, frame_length: Node | None, n: int,
            onesided: bool, shape: Sequence[DimLike] | None) -> tuple[Node, Node]:
    """Whether n is the frame length, and the result if it is."""
    total = signal.shape[1]
    step = element(c, vector(c, frame_step), 0)
    if shape is not None:
        count = shape[1]
    else:
        by = c.integer(frame_step, "frame_step")
        count = not_negative(1 + (total - n) // c.positive(by, "frame_step"))
    one = number(c, 1)
    valid = [c.scalar("ge", step, one)]
    if shape is not None:
        if not isinstance(count, int) or not isinstance(total, int):
            c.unsupported(f"the number of frames {count} must be known")
        frames = c.scalar("add", c.scalar("floordiv", number(c, total - n), c.scalar("max", step, one)), one)
        valid.append(c.scalar("eq", frames, number(c, count)))
    places = c.apply("add", c.apply("mul", c.b.add(Iota(I64, (count, 1), 0)), step), c.b.add(Iota(I64, (1, n), 1)))
    # a step that fails the check may lead outside
    places = c.apply("max", c.apply("min", places, size_value(c.b, total - 1)), number(c, 0))
    x = c.b.add(Take(1), signal, places)                          # [batch, frames, n, parts]
    if window is not None:
        x = c.apply("mul", x, c.reshape(c.cast(c.refine(window, (n,)), x.dtype), (n, 1)))
    if frame_length is not None:
        valid.append(c.scalar("eq", element(c, vector(c, frame_length), 0), number(c, n)))
    return all_of(c, valid), _one_transform(c, x, 2, n, False, onesided)


# --- windows ---------------------------------------------------------------------------------------------------------


def window_function(*coefficients: float) -> Operator:
    """a0 - a1 cos(t) + a2 cos(2t) - ..., over one period, or to its end where not periodic."""
    def build(c: Context, size: Node, *, output_datatype: int = 1, periodic: int = 1) -> Node:
        if c.all_known(size):
            n, valid = c.size(size, "size"), None
        else:
            n = c.declared_shape("size", rank=1, given=size)[0]
            valid = c.scalar("eq", element(c, vector(c, size), 0), size_value(c.b, n))
        dtype = c.dtype(output_datatype)
        index = c.b.add(Iota(F64, (n,), 0))
        period = size_value(c.b, n if periodic else n - 1, F64)
        angle = c.apply("div", c.apply("mul", index, c.constant(2 * math.pi, F64)), period)
        total = c.full(coefficients[0], F64, (n,))
        for times, coefficient in enumerate(coefficients[1:], 1):
            wave = c.scalar("cos", c.apply("mul", angle, c.constant(times, F64)))
            total = c.scalar("add", total, c.apply("mul", wave, c.constant(coefficient * (-1) ** times, F64)))
        result = c.cast(total, dtype)
        return result if valid is None else c.require(result, valid)
    return build


def mel_weight_matrix(c: Context, num_mel_bins: Node, dft_length: Node, sample_rate: Node, lower_edge_hertz: Node,
                      upper_edge_hertz: Node, *, output_datatype: int = 1) -> Node:
    """Triangles between places that lie evenly on the mel scale; a row for each frequency."""
    if c.all_known(num_mel_bins, dft_length):
        bins = c.size(num_mel_bins, "num_mel_bins")
        rows, valid = c.size(dft_length, "dft_length") // 2 + 1, []
    else:
        rows, bins = c.declared_shape("num_mel_bins", rank=2, given=num_mel_bins)
        length = element(c, vector(c, dft_length), 0)
        valid = [c.scalar("eq", element(c, vector(c, num_mel_bins), 0), size_value(c.b, bins)),
                 c.scalar("eq", c.scalar("add", c.scalar("floordiv", length, number(c, 2)), number(c, 1)), size_value(c.b, rows))]

    def real(x: float) -> Node:
        return c.constant(x, F64)

    low, high = (c.apply("mul", c.scalar("log1p", c.apply("div", c.cast(c.reshape(x, ()), F64), real(700.0))),
                         real(2595 / math.log(10))) for x in (lower_edge_hertz, upper_edge_hertz))
    step = c.scalar("div", c.scalar("sub", high, low), size_value(c.b, bins + 2, F64))
    mel = c.apply("add", c.apply("mul", c.b.add(Iota(F64, (bins + 2,), 0)), step), low)
    hertz = c.apply("mul", c.scalar("expm1", c.apply("mul", mel, real(math.log(10) / 2595))), real(700.0))
    scaled = c.apply("mul", hertz, c.cast(c.apply("add", c.reshape(dft_length, ()), c.like(1, dft_length)), F64))
    places = c.apply("floordiv", scaled, c.cast(c.reshape(sample_rate, ()), F64))
    left, centre, right = (slice_axis(c.b, places, 0, i, bins) for i in range(3))
    row = c.b.add(Iota(F64, (rows, bins), 0))
    rising, falling = c.apply("sub", centre, left), c.apply("sub", right, centre)
    flat = c.apply("eq", rising, real(0.0))
    climb = c.apply("div", c.apply("sub", row, left), c.apply("select", flat, real(1.0), rising))
    climbing = c.apply("and", c.apply("ge", row, left), c.apply("le", row, centre))
    climb = c.apply("select", flat, c.cast(c.apply("eq", row, centre), F64), climb)
    value = c.apply("select", climbing, climb, real(0.0))
    descends = c.apply("and", c.apply("gt", falling, real(0.0)),
                       c.scalar("and", c.apply("ge", row, centre), c.apply("lt", row, right)))
    descent = c.apply("div", c.apply("sub", right, row), c.apply("select", c.apply("eq", falling, real(0.0)), real(1.0), falling))
    value = c.cast(c.apply("select", descends, descent, value), c.dtype(output_datatype))
    return c.require(value, all_of(c, valid)) if valid else value


OPS: Operators = {
    "BlackmanWindow": window_function(0.42, 0.5, 0.08), "DFT": dft, "HammingWindow": window_function(25 / 46, 21 / 46),
    "HannWindow": window_function(0.5, 0.5), "MelWeightMatrix": mel_weight_matrix, "STFT": stft,
}
