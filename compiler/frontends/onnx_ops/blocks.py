"""ONNX operators that rearrange an image or a sequence: DepthToSpace, SpaceToDepth, CenterCropPad, ReverseSequence."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import DimLike, provably_at_most
from ...ir.graph import Node
from ...ir.ops.shape import Iota, TakeAlong
from ...ir.types import I64
from ...library import pad as pad_constant
from ...library import slice_axis
from ...library import transpose as permute
from .by_data import matches, vector
from .context import Context, Integers, Operators
from .shape import reshape_checked


def depth_to_space(c: Context, x: Node, *, blocksize: int, mode: str = "DCR") -> Node:
    c.choice(mode, "mode", ("DCR", "CRD"))
    n, channels, height, width = _image(c, x)
    s = c.positive(blocksize, "blocksize")
    kept = channels // (s * s)
    if mode == "DCR":
        parts = permute(c.b, reshape_checked(c, x, (n, s, s, kept, height, width)), (0, 3, 4, 1, 5, 2))
    else:
        parts = permute(c.b, reshape_checked(c, x, (n, kept, s, s, height, width)), (0, 1, 4, 2, 5, 3))
    return c.reshape(parts, (n, kept, height * s, width * s))


def space_to_depth(c: Context, x: Node, *, blocksize: int, mode: str = "DCR") -> Node:
    n, channels, height, width = _image(c, x)
    s = c.positive(blocksize, "blocksize")
    parts = reshape_checked(c, x, (n, channels, height // s, s, width // s, s))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return c.reshape(permute(c.b, parts, order), (n, channels * s * s, height // s, width // s))


def _image(c: Context, x: Node) -> tuple[DimLike, ...]:
    if x.rank != 4:
        c.fail(f"needs a tensor [batch, channels, height, width], found {x.type}")
    return x.shape


def center_crop_pad(c: Context, x: Node, shape: Integers, *, axes: Sequence[int] | None = None) -> Node:
    places = tuple(range(x.rank)) if axes is None else c.axes(axes, x.rank)
    if isinstance(shape, Node) and not c.all_known(shape):
        declared = c.declared_shape("shape", rank=x.rank, given=shape)
        x = c.require(x, matches(c, vector(c, shape), [declared[a] for a in places]))
        targets: Sequence[DimLike] = [declared[a] for a in places]
    else:
        targets = c.sizes(shape, "shape")
        if len(targets) != len(places):
            c.fail(f"input 'shape' has {len(targets)} entries for {len(places)} axes")
    for axis, target in zip(places, targets, strict=True):
        extent = x.shape[axis]
        if provably_at_most(target, extent):
            x = slice_axis(c.b, x, axis, (extent - target) // 2, target)
        elif provably_at_most(extent, target):
            missing = target - extent
            low = [missing // 2 if a == axis else 0 for a in range(x.rank)]
            high = [missing - missing // 2 if a == axis else 0 for a in range(x.rank)]
            x = pad_constant(c.b, x, low, high)
        else:
            c.unsupported(f"axis {axis}: whether {extent} is cropped or padded to {target} is not known")
    return x


def reverse_sequence(c: Context, x: Node, lengths: Node, *, batch_axis: int = 1, time_axis: int = 0) -> Node:
    """The first lengths[b] elements along the time axis in reverse, the rest as they are."""
    time, batch = c.axis(time_axis, x.rank), c.axis(batch_axis, x.rank)
    place = c.b.add(Iota(I64, x.shape, time))
    bound = c.reshape(c.cast(lengths, I64), [n if a == batch else 1 for a, n in enumerate(x.shape)])
    flipped = c.apply("sub", c.apply("sub", bound, c.constant(1, I64)), place)
    return c.b.add(TakeAlong(time), x, c.apply("select", c.apply("lt", place, bound), flipped, place))


OPS: Operators = {
    "CenterCropPad": center_crop_pad, "DepthToSpace": depth_to_space, "ReverseSequence": reverse_sequence,
    "SpaceToDepth": space_to_depth,
}
