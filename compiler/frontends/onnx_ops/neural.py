"""ONNX operators of neural networks: convolutions, pooling, normalizations, dropout.

Layout is ONNX's: [batch, channels, *spatial]. Padding that depends on symbolic sizes becomes explicit `pad` nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...ir.dims import DimLike, ceildiv, dim_min
from ...ir.graph import Node
from ...ir.ops.compute import Conv, ReduceWindow, reduction_identity
from ...ir.ops.shape import Slice
from ...ir.types import BOOL, DType
from ...library import layer_norm, mean, pad, reduce, rms_norm, slice_axis, transpose
from .context import Context, Operators, not_negative
from .places import window_places

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
Padding = list[tuple[DimLike, DimLike]]


def per_axis(c: Context, values: Sequence[int] | None, count: int, what: str, default: int = 1) -> tuple[int, ...]:
    """An attribute with an entry for each spatial axis."""
    found = (default,) * count if values is None or not len(values) else tuple(values)
    if len(found) != count:
        c.fail(f"{what} has {len(found)} entries for {count} spatial axes")
    if any(v < 1 for v in found):
        c.fail(f"{what} {found} must be positive")
    return found


def window_padding(c: Context, sizes: Sequence[DimLike], kernel: Sequence[int], strides: Sequence[int],
                   dilations: Sequence[int], pads: Sequence[int] | None, auto_pad: str) -> Padding:
    """(low, high) for each spatial axis."""
    c.choice(auto_pad, "auto_pad", AUTO_PADS)
    if auto_pad in ("NOTSET", "VALID"):
        given = tuple(pads) if pads and auto_pad == "NOTSET" else (0,) * (2 * len(sizes))
        if len(given) != 2 * len(sizes):
            c.fail(f"pads has {len(given)} entries for {len(sizes)} spatial axes")
        if min(given, default=0) < 0:
            c.unsupported(f"negative padding {given} is not supported")
        return [(given[a], given[a + len(sizes)]) for a in range(len(sizes))]
    found: Padding = []
    for n, k, s, d in zip(sizes, kernel, strides, dilations):
        total = (ceildiv(n, s) - 1) * s + (k - 1) * d + 1 - n
        total = not_negative(total)
        less, more = not_negative(total // 2), not_negative(total - total // 2)
        found.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return found


def pad_spatial(c: Context, x: Node, padding: Padding, value: float | int | bool) -> Node:
    return pad(c.b, x, (0, 0, *(low for low, _ in padding)), (0, 0, *(high for _, high in padding)), value)


def _static(padding: Padding) -> tuple[tuple[int, int], ...] | None:
    found = [(low, high) for low, high in padding if isinstance(low, int) and isinstance(high, int)]
    return tuple(found) if len(found) == len(padding) else None


def channels_shape(x: Node, channels: DimLike) -> tuple[DimLike, ...]:
    """Shape of a value for each channel that broadcasts against x."""
    return (1, channels, *[1] * (x.rank - 2))


def _spatial_rank(c: Context, x: Node) -> int:
    if x.rank < 3:
        c.fail(f"needs a tensor [batch, channels, *spatial], found {x.type}")
    return x.rank - 2


def _kernel(c: Context, w: Node, given: Sequence[int] | None) -> tuple[int, ...]:
    found = []
    for n in w.shape[2:]:
        if not isinstance(n, int):
            c.unsupported(f"the kernel {w.type} must have known sizes")
        found.append(n)
    if given is not None and tuple(given) != tuple(found):
        c.fail(f"kernel_shape {tuple(given)} differs from the weight's {tuple(found)}")
    return tuple(found)


def conv(c: Context, x: Node, w: Node, bias: Node | None = None, *, auto_pad: str = "NOTSET",
         dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
         pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    y = conv_into(c, x, w, None, auto_pad, dilations, group, kernel_shape, pads, strides)
    return _add_bias(c, y, bias)


def conv_into(c: Context, x: Node, w: Node, result: DType | None, auto_pad: str, dilations: Sequence[int] | None, group: int,
              kernel_shape: Sequence[int] | None, pads: Sequence[int] | None, strides: Sequence[int] | None) -> Node:
    """A convolution, of narrow integers into `result`."""
    rank = _spatial_rank(c, x)
    c.positive(group, "group")
    if w.rank != x.rank:
        c.fail(f"the weight {w.type} does not fit the input {x.type}")
    kernel, steps = _kernel(c, w, kernel_shape), per_axis(c, strides, rank, "strides")
    spread = per_axis(c, dilations, rank, "dilations")
    padding = window_padding(c, x.shape[2:], kernel, steps, spread, pads, auto_pad)
    x = _with_channels(c, x, w.shape[1] * group)
    fixed = _static(padding)
    if fixed is None:
        x, fixed = pad_spatial(c, x, padding, 0), ((0, 0),) * rank
    return c.b.add(Conv(steps, fixed, spread, (1,) * rank, group, result=result), x, w)


def _with_channels(c: Context, x: Node, channels: DimLike) -> Node:
    """x with the channel count that the weight asks for, which the model may have left symbolic."""
    return c.refine(x, (x.shape[0], channels, *x.shape[2:]))


def _add_bias(c: Context, y: Node, bias: Node | None) -> Node:
    if bias is None:
        return y
    c.check_rank("B", bias, 1)
    return c.apply("add", y, c.reshape(bias, channels_shape(y, bias.shape[0])))


def conv_transpose(c: Context, x: Node, w: Node, bias: Node | None = None, *, auto_pad: str = "NOTSET",
                   dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
                   output_padding: Sequence[int] | None = None, output_shape: Sequence[int] | None = None,
                   pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """A convolution of the input with zeros between its elements and the kernel turned around."""
    rank = _spatial_rank(c, x)
    if w.rank != x.rank:
        c.fail(f"the weight {w.type} does not fit the input {x.type}")
    kernel, steps = _kernel(c, w, kernel_shape), per_axis(c, strides, rank, "strides")
    spread = per_axis(c, dilations, rank, "dilations")
    c.positive(group, "group")
    extra = tuple(output_padding) if output_padding else (0,) * rank
    if len(extra) != rank or output_shape and len(output_shape) < rank:
        c.fail(f"output_padding {extra} or output_shape {output_shape} has no entry for each of {rank} spatial axes")
    padding = _transposed_padding(c, x, kernel, steps, spread, extra, pads, output_shape, auto_pad)
    fixed, crop = [], []
    for (low, high), k, d, more in zip(padding, kernel, spread, extra):
        reach = (k - 1) * d
        fixed.append((max(reach - low, 0), max(reach - high + more, 0)))
        crop.append((max(low - reach, 0), max(high - more - reach, 0)))
    x = _with_channels(c, x, w.shape[0])
    op = Conv((1,) * rank, tuple(fixed), spread, steps, group)
    y = c.b.add(op, x, _turned_kernel(c, w, group))
    for axis, (low, high) in enumerate(crop, 2):
        y = slice_axis(c.b, y, axis, low, not_negative(y.shape[axis] - low - high))
    return _add_bias(c, y, bias)


def _turned_kernel(c: Context, w: Node, group: int) -> Node:
    """[C, O / g, *kernel] -> [O, C / g, *kernel], reversed along the kernel's axes."""
    channels, per_group = w.shape[:2]
    spatial = tuple(range(3, 1 + w.rank))
    split = c.reshape(w, (group, channels // group, *w.shape[1:]))
    turned = transpose(c.b, split, (0, 2, 1, *spatial))
    turned = c.reshape(turned, (per_group * group, channels // group, *w.shape[2:]))
    start = (0, 0, *(n - 1 for n in w.shape[2:]))
    return c.b.add(Slice(start, turned.shape, (1, 1, *[-1] * (w.rank - 2))), turned)


def _transposed_padding(c: Context, x: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
                        extra: Sequence[int], pads: Sequence[int] | None, output_shape: Sequence[int] | None,
                        auto_pad: str) -> list[tuple[int, int]]:
    rank = len(kernel)
    c.choice(auto_pad, "auto_pad", AUTO_PADS)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        given = tuple(pads) if pads and auto_pad == "NOTSET" else (0,) * (2 * rank)
        if len(given) != 2 * rank:
            c.fail(f"pads has {len(given)} entries for {rank} spatial axes")
        return [(given[a], given[a + rank]) for a in range(rank)]
    found = []
    wanted = list(output_shape or ())[-rank:]
    for axis, (k, s, d, more) in enumerate(zip(kernel, strides, dilations, extra)):
        n = x.shape[2 + axis]
        target = wanted[axis] if wanted else n * s
        total = s * (n - 1) + more + (k - 1) * d + 1 - target
        if not isinstance(total, int):
            c.unsupported(f"output_shape {tuple(wanted)} needs spatial sizes that are known, found {x.type}")
        half = max(total, 0) // 2
        if total < 0:               # the output is larger than what the kernel reaches: zeros at its end
            found.append((0, total))
        else:
            found.append((half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half))
    return found


# --- pooling ---------------------------------------------------------------------------------------------------------


def _ceil_padding(x: Node, padding: Padding, kernel: Sequence[int], strides: Sequence[int],
                  dilations: Sequence[int]) -> Padding:
    """Padding after the padding, so that windows that end outside count too; each begins inside or in the low pad."""
    found: Padding = []
    for n, (low, high), k, s, d in zip(x.shape[2:], padding, kernel, strides, dilations):
        reach = (k - 1) * d + 1
        count = dim_min(ceildiv(low + n + high - reach, s) + 1, ceildiv(low + n, s))
        missing = (count - 1) * s + reach - (low + n + high)
        found.append((0, not_negative(missing)))
    return found


def _windows(c: Context, x: Node, kind: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
             padding: Padding) -> Node:
    fixed = _static(padding)
    if fixed is None:
        x, fixed = pad_spatial(c, x, padding, reduction_identity(kind, x.dtype)), ((0, 0),) * len(kernel)
    return c.b.add(ReduceWindow(kind, (1, 1, *kernel), (1, 1, *strides), ((0, 0), (0, 0), *fixed), (1, 1, *dilations)), x)


def _joined(first: Padding, second: Padding) -> Padding:
    return [(a + e, b + f) for (a, b), (e, f) in zip(first, second)]


def _pool_window(c: Context, x: Node, kernel_shape: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None,
                 pads: Sequence[int] | None, auto_pad: str) -> tuple[Sequence[int], Sequence[int], Sequence[int], Padding]:
    """Kernel, steps, spread and padding of a pool, one entry an axis."""
    rank = _spatial_rank(c, x)
    kernel, steps = per_axis(c, kernel_shape, rank, "kernel_shape"), per_axis(c, strides, rank, "strides")
    spread = per_axis(c, dilations, rank, "dilations")
    return kernel, steps, spread, window_padding(c, x.shape[2:], kernel, steps, spread, pads, auto_pad)


def max_pool(c: Context, x: Node, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
             dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, storage_order: int = 0,
             strides: Sequence[int] | None = None) -> Node | tuple[Node, Node]:
    kernel, steps, spread, padding = _pool_window(c, x, kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        padding = _joined(padding, _ceil_padding(x, padding, kernel, steps, spread))
    value = _windows(c, x, "max", kernel, steps, spread, padding)
    return (value, window_places(c, x, kernel, steps, spread, padding, bool(storage_order))) if c.wants(1) else value


def average_pool(c: Context, x: Node, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
                 count_include_pad: int = 0, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None,
                 strides: Sequence[int] | None = None) -> Node:
    kernel, steps, spread, padding = _pool_window(c, x, kernel_shape, strides, dilations, pads, auto_pad)
    after: Padding = [(0, 0)] * len(kernel)
    if ceil_mode:
        after = _ceil_padding(x, padding, kernel, steps, spread)
    total = _windows(c, x, "sum", kernel, steps, spread, _joined(padding, after))
    counted, uncounted = (padding, after) if count_include_pad else ([(0, 0)] * len(kernel), _joined(padding, after))
    if all(n == 0 for pair in uncounted for n in pair):
        return c.apply("div", total, c.like(math.prod(kernel), x))
    inside = [low + n + high for n, (low, high) in zip(x.shape[2:], counted)]
    ones = c.full(1, x.dtype, (1, 1, *inside))
    count = _windows(c, ones, "sum", kernel, steps, spread, uncounted)
    return c.apply("div", total, c.refine(count, (1, 1, *total.shape[2:])))


def lp_pool(c: Context, x: Node, *, kernel_shape: Sequence[int], p: int = 2, auto_pad: str = "NOTSET",
            ceil_mode: int = 0, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None,
            strides: Sequence[int] | None = None) -> Node:
    kernel, steps, spread, padding = _pool_window(c, x, kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        padding = _joined(padding, _ceil_padding(x, padding, kernel, steps, spread))
    return _root(c, _windows(c, _raised(c, x, p), "sum", kernel, steps, spread, padding), p)


def _raised(c: Context, x: Node, p: int) -> Node:
    c.positive(p, "p")
    size = c.scalar("abs", x)
    return size if p == 1 else c.scalar("mul", size, size) if p == 2 else c.apply("pow", size, c.like(p, x))


def _root(c: Context, x: Node, p: int) -> Node:
    return x if p == 1 else c.scalar("sqrt", x) if p == 2 else c.apply("pow", x, c.like(1 / p, x))


def global_pool(kind: str) -> Callable[..., Node]:
    def build(c: Context, x: Node) -> Node:
        axes = tuple(range(2, 2 + _spatial_rank(c, x)))
        return mean(c.b, x, axes, keep=True) if kind == "mean" else reduce(c.b, kind, x, axes, keep=True)
    return build


def global_lp_pool(c: Context, x: Node, *, p: int = 2) -> Node:
    axes = tuple(range(2, 2 + _spatial_rank(c, x)))
    return _root(c, reduce(c.b, "sum", _raised(c, x, p), axes, keep=True), p)


# --- normalizations --------------------------------------------------------------------------------------------------


def batch_normalization(c: Context, x: Node, scale: Node, bias: Node, average: Node, variance: Node, *,
                        epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1, training_mode: int = 0,
                        is_test: int = 1, consumed_inputs: tuple[int, ...] = ()) -> Node | tuple[Node | None, ...]:
    """Scale and shift for each channel, computed from the parameters alone, which constant folding finishes."""
    if not spatial:
        c.unsupported("spatial=0 (opset 7 and older) is not supported")
    for what, parameter in (("scale", scale), ("B", bias), ("mean", average), ("var", variance)):
        c.check_rank(what, parameter, 1)
    if training_mode:
        return _batch_normalization_training(c, x, scale, bias, average, variance, epsilon, momentum)
    if c.wants(1):
        c.unsupported("outputs of training are not supported in inference mode")
    if x.rank > 1:
        x = _with_channels(c, x, scale.shape[0])
    scale, bias, average, variance = (c.wide(p) for p in (scale, bias, average, variance))
    y = _scale_and_shift(c, c.cast(x, scale.dtype), scale, bias, average, variance, epsilon)
    return c.cast(y, x.dtype)


def _scale_and_shift(c: Context, x: Node, scale: Node, bias: Node, average: Node, variance: Node,
                     epsilon: float) -> Node:
    average, variance = c.cast(average, x.dtype), c.cast(variance, x.dtype)
    deviation = c.scalar("sqrt", c.apply("add", variance, c.like(epsilon, x)))
    factor = c.apply("div", scale, deviation)
    shift = c.apply("sub", bias, c.apply("mul", average, factor))
    target = channels_shape(x, scale.shape[0]) if x.rank > 1 else scale.shape
    return c.apply("add", c.apply("mul", x, c.reshape(factor, target)), c.reshape(shift, target))


def _batch_normalization_training(c: Context, x: Node, scale: Node, bias: Node, average: Node, variance: Node,
                                  epsilon: float, momentum: float) -> tuple[Node | None, ...]:
    """Normalizes by the batch's own mean and variance, and moves the running ones."""
    if x.rank < 2:
        c.fail(f"needs an axis of channels, found {x.type}")
    axes = tuple(a for a in range(x.rank) if a != 1)
    here = mean(c.b, x, axes)
    centred = c.apply("sub", x, c.reshape(here, channels_shape(x, x.shape[1])))
    spread = mean(c.b, c.scalar("mul", centred, centred), axes)
    y = _scale_and_shift(c, x, c.cast(scale, x.dtype), c.cast(bias, x.dtype), here, spread, epsilon)

    def moved(old: Node, new: Node) -> Node:
        new = c.cast(new, old.dtype)
        return c.apply("add", c.apply("mul", old, c.like(momentum, old)), c.apply("mul", new, c.like(1 - momentum, old)))
    return y, moved(average, here), moved(variance, spread)


def instance_normalization(c: Context, x: Node, scale: Node, bias: Node, *, epsilon: float = 1e-5,
                           consumed_inputs: tuple[int, ...] = ()) -> Node:
    axes = tuple(range(2, 2 + _spatial_rank(c, x)))
    c.check_rank("scale", scale, 1)
    x = _with_channels(c, x, scale.shape[0])
    target = channels_shape(x, scale.shape[0])
    return layer_norm(c.b, x, c.reshape(scale, target), c.reshape(bias, target), axes, epsilon)


def group_normalization(c: Context, x: Node, scale: Node, bias: Node, *, num_groups: int, epsilon: float = 1e-5,
                        stash_type: int = 1) -> Node:
    """Opset 18 gives scale and bias for each group, 21 for each channel."""
    _spatial_rank(c, x)
    channels = x.shape[1]
    c.positive(num_groups, "num_groups")
    grouped = (x.shape[0], num_groups, channels // num_groups, *x.shape[2:])
    wide = c.cast(c.reshape(x, grouped), c.dtype(stash_type)) if x.dtype.bits < 32 else c.reshape(x, grouped)
    ones = [1] * (x.rank - 2)
    target = (1, num_groups, 1, *ones) if c.opset < 21 else (1, num_groups, channels // num_groups, *ones)
    scale, bias = (c.cast(c.reshape(p, target), wide.dtype) for p in (scale, bias))
    y = layer_norm(c.b, wide, scale, bias, tuple(range(2, wide.rank)), epsilon)
    return c.cast(c.reshape(y, x.shape), x.dtype)


def layer_normalization(c: Context, x: Node, scale: Node, bias: Node | None = None, *, axis: int = -1,
                        epsilon: float = 1e-5, stash_type: int = 1) -> Node | tuple[Node | None, ...]:
    """Computed in stash_type (float32) where the input is narrower; mean and inverse deviation only when used."""
    axes = tuple(range(c.axis(axis, x.rank), x.rank))
    wide = _stashed(c, x, stash_type)
    factor = c.cast(scale, wide.dtype)
    shift = c.like(0, wide) if bias is None else c.cast(bias, wide.dtype)
    y = c.cast(layer_norm(c.b, wide, factor, shift, axes, epsilon), x.dtype)
    if not c.wants(1) and not c.wants(2):
        return y
    average = mean(c.b, wide, axes, keep=True)
    centred = c.apply("sub", wide, average)
    variance = mean(c.b, c.scalar("mul", centred, centred), axes, keep=True)
    deviation = c.scalar("sqrt", c.apply("add", variance, c.like(epsilon, variance)))
    return y, average, c.apply("div", c.like(1, deviation), deviation)


def _stashed(c: Context, x: Node, stash_type: int) -> Node:
    stash: DType = c.dtype(stash_type)
    return c.cast(x, stash) if x.dtype.bits < stash.bits else x


def rms_normalization(c: Context, x: Node, scale: Node, *, axis: int = -1, epsilon: float = 1e-5,
                      stash_type: int = 1) -> Node:
    axes = tuple(range(c.axis(axis, x.rank), x.rank))
    wide = _stashed(c, x, stash_type)
    return c.cast(rms_norm(c.b, wide, c.cast(scale, wide.dtype), axes, epsilon), x.dtype)


def mean_variance_normalization(c: Context, x: Node, *, axes: Sequence[int] = (0, 2, 3)) -> Node:
    places = c.axes(axes, x.rank)
    centred = c.apply("sub", x, mean(c.b, x, places, keep=True))
    variance = mean(c.b, c.scalar("mul", centred, centred), places, keep=True)
    return c.apply("div", centred, c.apply("add", c.scalar("sqrt", variance), c.like(1e-9, x)))


def lp_normalization(c: Context, x: Node, *, axis: int = -1, p: int = 2) -> Node:
    """x / norm; 0 where the norm is 0."""
    norm = _root(c, reduce(c.b, "sum", _raised(c, x, p), (c.axis(axis, x.rank),), keep=True), p)
    empty = c.apply("eq", norm, c.like(0, norm))
    return c.apply("select", empty, c.like(0, x), c.apply("div", x, c.apply("select", empty, c.like(1, norm), norm)))


def local_response_normalization(c: Context, x: Node, *, size: int, alpha: float = 1e-4, beta: float = 0.75,
                                 bias: float = 1.0) -> Node:
    """x / (bias + alpha / size * sum of squares over neighbouring channels) ^ beta."""
    low = (c.positive(size, "size") - 1) // 2
    rank = x.rank
    window = tuple(size if a == 1 else 1 for a in range(rank))
    padding = tuple((low, size - 1 - low) if a == 1 else (0, 0) for a in range(rank))
    ones = (1,) * rank
    total = c.b.add(ReduceWindow("sum", window, ones, padding, ones), c.scalar("mul", x, x))
    base = c.apply("add", c.apply("mul", total, c.like(alpha / size, x)), c.like(bias, x))
    return c.scalar("div", x, c.apply("pow", base, c.like(beta, x)))


def dropout(c: Context, x: Node, ratio: Node | float | None = None, training_mode: Node | None = None, *,
            seed: int = 0, is_test: int = 1, consumed_inputs: tuple[int, ...] = ()) -> Node | tuple[Node, Node]:
    """Inference: the input itself, and a mask of ones."""
    if training_mode is not None:
        training = c.value(training_mode)
        rate = c.value(ratio) if isinstance(ratio, Node) else None
        idle = rate is not None and not rate.any()
        if not idle and (training is None or training.any()):
            c.unsupported("training mode draws random numbers, which are not supported")
    if not c.wants(1):
        return x
    return x, c.full(True, BOOL if c.opset >= 10 else x.dtype, x.shape)


OPS: Operators = {
    "AveragePool": average_pool, "BatchNormalization": batch_normalization, "Conv": conv,
    "ConvTranspose": conv_transpose, "Dropout": dropout, "GlobalAveragePool": global_pool("mean"),
    "GlobalLpPool": global_lp_pool, "GlobalMaxPool": global_pool("max"), "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization, "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization, "LpNormalization": lp_normalization, "LpPool": lp_pool,
    "MaxPool": max_pool, "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
