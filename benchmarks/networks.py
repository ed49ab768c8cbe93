"""Shape-exact graphs of known networks, as problems to be scheduled: names, sizes and who reads what; nothing is computed.

Convolutional networks take 1x3x224x224, video networks 1x3x16x224x224, ViT-B a 224x224 picture in patches of 16, the Transformer
128 tokens on each side. Operators are those of the published descriptions (convolution, normalization, activation apart, as an
importer sees them); `problem.fused` joins them. Parameters are tensors of their own, with the bytes that they have: `human_made` is
the table of all but the searched ones (`benchmarks/searched.py`), `network` makes one for a dtype, a granularity and a way to
treat parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from tilewright.scheduling.aliasing import separate, without_copies
from tilewright.scheduling.problem import INPUT, PARAMETER, VALUE, Operator, Problem, Sliced, Tensor, fused, make_problem, with_parameters

Shape = tuple[int, ...]
ALIGNMENT = 64


class Net:
    """A network while it is built. A value is the position of its tensor; `shape` has the shapes of all, batch and channels first."""

    def __init__(self, name: str, item: int) -> None:
        self.name, self.item = name, item
        self.tensors: list[Tensor] = []
        self.shapes: list[Shape] = []
        self.operators: list[Operator] = []

    def tensor(self, name: str, shape: Shape, kind: str = VALUE) -> int:
        self.tensors.append(Tensor(name, math.prod(shape) * self.item, kind))
        self.shapes.append(shape)
        return len(self.tensors) - 1

    def input(self, shape: Shape, name: str = "input") -> int:
        return self.tensor(name, shape, INPUT)

    def add_operator(self, kind: str, operands: Sequence[int], shape: Shape, weights: int = 0, light: bool = False,
                     in_place: bool = False, concat: bool = False, slices: Sequence[Sliced] = ()) -> int:
        name = f"{kind}_{len(self.operators)}"
        taken = list(operands)
        if weights:
            taken.append(self.tensor(f"{name}.weight", (weights,), PARAMETER))
        result = self.tensor(name, shape)
        same = tuple(t for t in operands if self.shapes[t] == shape)
        if light:
            slices = [Sliced(axis, shape[place], tuple((t, 0, shape[place]) for t in same)) for axis, place in axes_of(shape).items()]
        over = same if light or in_place else ()
        self.operators.append(Operator(name, tuple(taken), (result,), kind, light, over, (), concat, tuple(slices)))
        return result

    def windows(self, x: int, shape: Shape, extra: int, each: bool) -> list[Sliced]:
        """Slices of an operator that goes over pictures: rows need `extra` rows of the operand, channels `each` its own or all."""
        rows = self.shapes[x][-2]
        return [Sliced("rows", shape[-2], ((x, max(0, extra), rows),)),
                Sliced("channels", shape[1], ((x, 0, self.shapes[x][1]),) if each else ())]

    def done(self, *results: int) -> Problem:
        return make_problem(self.name, self.tensors, self.operators, results)

    # --- operators ---

    def conv(self, x: int, channels: int, kernel: int | Shape = 1, stride: int | Shape = 1, groups: int = 1) -> int:
        batch, inner, *space = self.shapes[x]
        kernels, strides = spread(kernel, len(space)), spread(stride, len(space))
        shape = (batch, channels, *(-(-n // s) for n, s in zip(space, strides)))
        slices = self.windows(x, shape, kernels[-2] - strides[-2], groups == inner == channels)
        return self.add_operator("conv", [x], shape, channels * (inner // groups) * math.prod(kernels), slices=slices)

    def norm(self, x: int) -> int:
        return self.add_operator("norm", [x], self.shapes[x], 4 * self.shapes[x][1], light=True)

    def relu(self, x: int) -> int:
        return self.add_operator("relu", [x], self.shapes[x], light=True)

    def add(self, *operands: int) -> int:
        return self.add_operator("add", operands, self.shapes[operands[0]], light=True)

    def multiply(self, x: int, y: int) -> int:
        return self.add_operator("mul", [x, y], self.shapes[x], light=True)

    def concat(self, *operands: int) -> int:
        batch, _, *space = self.shapes[operands[0]]
        return self.add_operator("concat", operands, (batch, sum(self.shapes[t][1] for t in operands), *space), concat=True)

    def pool(self, x: int, stride: int | Shape = 2) -> int:
        batch, channels, *space = self.shapes[x]
        strides = spread(stride, len(space))
        shape = (batch, channels, *(-(-n // s) for n, s in zip(space, strides)))
        return self.add_operator("pool", [x], shape, slices=self.windows(x, shape, 3 - strides[-2], True))

    def global_pool(self, x: int) -> int:
        batch, channels, *space = self.shapes[x]
        return self.add_operator("global_pool", [x], (batch, channels, *(1 for _ in space)))

    def resize(self, x: int, space: Sequence[int]) -> int:
        shape = (*self.shapes[x][:2], *space)
        return self.add_operator("resize", [x], shape, slices=self.windows(x, shape, 1, True))

    def linear(self, x: int, features: int) -> int:
        """Of the last axis; pooled images are rows."""
        shape = self.shapes[x]
        rows = shape[:-1] if shape[-1] > 1 else shape[:1]
        inner = math.prod(shape) // math.prod(rows)
        slices = [Sliced("rows", rows[-1], ((x, 0, rows[-1]),))] if len(rows) > 1 else []
        return self.add_operator("linear", [x], (*rows, features), inner * features + features, slices=slices)

    def conv_norm(self, x: int, channels: int, kernel: int | Shape = 1, stride: int | Shape = 1, groups: int = 1) -> int:
        return self.norm(self.conv(x, channels, kernel, stride, groups))

    def conv_relu(self, x: int, channels: int, kernel: int | Shape = 1, stride: int | Shape = 1, groups: int = 1) -> int:
        return self.relu(self.conv_norm(x, channels, kernel, stride, groups))


def axes_of(shape: Shape) -> dict[str, int]:
    """Where an elementwise operator can be cut: pictures into rows and channels, matrices into rows."""
    if len(shape) == 3:
        return {"rows": 1}
    return {"rows": len(shape) - 2, "channels": 1} if len(shape) > 3 and shape[-1] > 1 else {}


def spread(value: int | Shape, axes: int) -> Shape:
    return (value,) * axes if isinstance(value, int) else value


# --- residual networks -----------------------------------------------------------------------------------------------------


def bottleneck(net: Net, x: int, inner: int, outer: int, stride: int = 1, groups: int = 1) -> int:
    out = net.conv_norm(net.conv_relu(net.conv_relu(x, inner), inner, 3, stride, groups), outer)
    if stride != 1 or net.shapes[x][1] != outer:
        x = net.conv_norm(x, outer, 1, stride)
    return net.relu(net.add(out, x))


def residual_body(net: Net, width: int = 64, groups: int = 1, strides: Sequence[int] = (1, 2, 2, 2)) -> list[int]:
    """Stem and the four stages of 3, 4, 6 and 3 blocks; the result of each stage."""
    x = net.pool(net.conv_relu(net.input((1, 3, 224, 224)), 64, 7, 2))
    stages = []
    for stage, (blocks, stride) in enumerate(zip((3, 4, 6, 3), strides)):
        for block in range(blocks):
            x = bottleneck(net, x, width << stage, 256 << stage, stride if block == 0 else 1, groups)
        stages.append(x)
    return stages


def resnet(name: str, width: int, groups: int, item: int) -> Problem:
    net = Net(name, item)
    return net.done(net.linear(net.global_pool(residual_body(net, width, groups)[-1]), 1000))


def densenet121(item: int) -> Problem:
    net = Net("DenseNet-121", item)
    x = net.pool(net.conv_relu(net.input((1, 3, 224, 224)), 64, 7, 2))
    for block, layers in enumerate((6, 12, 24, 16)):
        features = [x]
        for _ in range(layers):
            joined = net.concat(*features) if len(features) > 1 else features[0]
            features.append(net.conv(net.relu(net.norm(net.conv(net.relu(net.norm(joined)), 128))), 32, 3))
        x = net.concat(*features)
        if block < 3:
            x = net.pool(net.conv(net.relu(net.norm(x)), net.shapes[x][1] // 2))
    return net.done(net.linear(net.global_pool(net.relu(net.norm(x))), 1000))


def fcn(item: int) -> Problem:
    net = Net("FCN", item)
    x = residual_body(net, strides=(1, 2, 1, 1))[-1]
    return net.done(net.resize(net.conv(net.conv_relu(x, 512, 3), 21), (224, 224)))


def deeplab(item: int) -> Problem:
    net = Net("DeepLabV3", item)
    x = residual_body(net, strides=(1, 2, 1, 1))[-1]
    space = net.shapes[x][2:]
    branches = [net.conv_relu(x, 256)] + [net.conv_relu(x, 256, 3) for _ in (12, 24, 36)]
    branches.append(net.resize(net.conv_relu(net.global_pool(x), 256), space))
    joined = net.conv_relu(net.concat(*branches), 256)
    return net.done(net.resize(net.conv(net.conv_relu(joined, 256, 3), 21), (224, 224)))


# kernel, expanded, out, squeeze and excitation, stride: MobileNetV3-Large, the last stage dilated
MOBILE = ((3, 16, 16, 0, 1), (3, 64, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2), (5, 120, 40, 1, 1), (5, 120, 40, 1, 1),
          (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1), (3, 672, 112, 1, 1),
          (5, 672, 160, 1, 1), (5, 960, 160, 1, 1), (5, 960, 160, 1, 1))


def lraspp(item: int) -> Problem:
    net = Net("L-RASPP", item)
    x = net.conv_relu(net.input((1, 3, 224, 224)), 16, 3, 2)
    low = x
    for number, (kernel, wide, channels, gated, stride) in enumerate(MOBILE):
        y = net.conv_relu(x, wide) if wide != net.shapes[x][1] else x
        y = net.conv_relu(y, wide, kernel, stride, wide)
        if gated:
            y = net.multiply(y, net.relu(net.conv(net.relu(net.conv(net.global_pool(y), wide // 4)), wide)))
        y = net.conv_norm(y, channels)
        x = net.add(y, x) if net.shapes[y] == net.shapes[x] else y
        low = x if number == 5 else low
    x = net.conv_relu(x, 960)
    scale = net.relu(net.conv(net.global_pool(x), 128))
    high = net.resize(net.multiply(net.conv_relu(x, 128), scale), net.shapes[low][2:])
    return net.done(net.resize(net.add(net.conv(low, 21), net.conv(high, 21)), (224, 224)))


# --- video -----------------------------------------------------------------------------------------------------------------


def r2plus1d(item: int) -> Problem:
    net = Net("R(2+1)D", item)
    x = net.conv_relu(net.input((1, 3, 16, 224, 224)), 45, (1, 7, 7), (1, 2, 2))
    x = net.conv_relu(x, 64, (3, 1, 1))
    for stage in range(4):
        channels = 64 << stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            inner = net.shapes[x][1]
            y = x
            for step, (before, pace) in enumerate(((inner, stride), (channels, 1))):
                middle = before * channels * 27 // (before * 9 + 3 * channels)
                y = net.conv_relu(y, middle, (1, 3, 3), (1, pace, pace))
                y = net.conv_norm(y, channels, (3, 1, 1), (pace, 1, 1))
                y = net.relu(y) if step == 0 else y
            if stride != 1 or inner != channels:
                x = net.conv_norm(x, channels, 1, stride)
            x = net.relu(net.add(y, x))
    return net.done(net.linear(net.global_pool(x), 400))


# channels of the four branches: 1x1; 1x1, 3x3; 1x1, 3x3; pooled 1x1
INCEPTION = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
             (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), (256, 160, 320, 32, 128, 128),
             (384, 192, 384, 48, 128, 128))


def s3d(item: int) -> Problem:
    net = Net("S3D", item)

    def separable(x: int, channels: int, kernel: int, stride: int = 1) -> int:
        x = net.conv_relu(x, channels, (1, kernel, kernel), (1, stride, stride))
        return net.conv_relu(x, channels, (kernel, 1, 1), (stride, 1, 1))

    x = net.pool(separable(net.input((1, 3, 16, 224, 224)), 64, 7, 2), (1, 2, 2))
    x = net.pool(separable(net.conv_relu(x, 64), 192, 3), (1, 2, 2))
    for number, (plain, three, three_out, five, five_out, pooled) in enumerate(INCEPTION):
        if number in (2, 7):
            x = net.pool(x)
        x = net.concat(net.conv_relu(x, plain), separable(net.conv_relu(x, three), three_out, 3),
                       separable(net.conv_relu(x, five), five_out, 3), net.conv_relu(net.pool(x, 1), pooled))
    return net.done(net.conv(net.global_pool(x), 400))


# --- transformers ----------------------------------------------------------------------------------------------------------


def attention(net: Net, x: int, memory: int, heads: int) -> int:
    _, rows, width = net.shapes[x]
    columns = net.shapes[memory][1]
    query, key, value = net.linear(x, width), net.linear(memory, width), net.linear(memory, width)
    shape = (1, heads, rows, columns)
    scores = net.add_operator("matmul", [query, key], shape, slices=[Sliced("heads", heads), Sliced("rows", rows, ((query, 0, rows),))])
    cut = [Sliced("heads", heads, ((scores, 0, heads),)), Sliced("rows", rows, ((scores, 0, rows),))]
    weights = net.add_operator("softmax", [scores], shape, in_place=True, slices=cut)
    cut = [Sliced("heads", heads, ((weights, 0, heads),)), Sliced("rows", rows, ((weights, 0, rows),))]
    return net.linear(net.add_operator("matmul", [weights, value], (1, rows, width), slices=cut), width)


def layer_norm(net: Net, x: int) -> int:
    rows = net.shapes[x][-2]
    return net.add_operator("layer_norm", [x], net.shapes[x], 2 * net.shapes[x][-1], in_place=True,
                            slices=[Sliced("rows", rows, ((x, 0, rows),))])


def feed_forward(net: Net, x: int, inner: int) -> int:
    return net.linear(net.relu(net.linear(x, inner)), net.shapes[x][-1])


def vit(item: int) -> Problem:
    net = Net("ViT-B", item)
    patches = net.conv(net.input((1, 3, 224, 224)), 768, 16, 16)
    x = net.add_operator("embed", [patches], (1, 197, 768), 198 * 768)
    for _ in range(12):
        y = layer_norm(net, x)
        x = net.add(attention(net, y, y, 12), x)
        x = net.add(feed_forward(net, layer_norm(net, x), 3072), x)
    first = net.add_operator("slice", [layer_norm(net, x)], (1, 768))
    return net.done(net.linear(first, 1000))


def transformer(item: int, tokens: int = 128) -> Problem:
    net = Net("Transformer", item)
    memory, x = net.input((1, tokens, 512), "source"), net.input((1, tokens, 512), "target")
    for _ in range(6):
        memory = layer_norm(net, net.add(attention(net, memory, memory, 8), memory))
        memory = layer_norm(net, net.add(feed_forward(net, memory, 2048), memory))
    for _ in range(6):
        x = layer_norm(net, net.add(attention(net, x, x, 8), x))
        x = layer_norm(net, net.add(attention(net, x, memory, 8), x))
        x = layer_norm(net, net.add(feed_forward(net, x, 2048), x))
    return net.done(x)


# --- the table -------------------------------------------------------------------------------------------------------------


def human_made() -> dict[str, Callable[[int], Problem]]:
    """Name -> the network for a number of bytes an element."""
    return {
        "ResNet-50": partial(resnet, "ResNet-50", 64, 1), "DenseNet-121": densenet121, "ResNeXt-50": partial(resnet, "ResNeXt-50", 128, 32),
        "R(2+1)D": r2plus1d, "S3D": s3d, "FCN": fcn, "L-RASPP": lraspp, "DeepLabV3": deeplab, "Transformer": transformer, "ViT-B": vit,
    }


def network(make: Callable[[int], Problem], item: int = 1, granularity: str = "fused", parameters: str = "ignored",
            shared: str = "nothing") -> Problem:
    """The problem of a network: `imported` operators or `fused` ones, parameters as in `with_parameters`. What may share memory: `nothing`,
    results with `operands`, or also what is concatenated with its parts, `all`."""
    problem = with_parameters(make(item), parameters)
    problem = separate(problem) if shared == "nothing" else without_copies(problem, ALIGNMENT) if shared == "all" else problem
    return fused(problem) if granularity == "fused" else problem
