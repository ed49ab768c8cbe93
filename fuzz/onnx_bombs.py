"""Small ONNX files that ask for much: sizes that no memory holds, bodies in bodies, functions that call one another, long chains.

What it does: `bomb(rng)` writes one such model. A file of a few hundred bytes can ask for 2**60 elements, or for a graph of 2**60
nodes; an importer must not begin to make them. Sizes are drawn anew each time, so that some of the models are harmless.

Guarantees: randomness comes from `rng` alone; the models are small files (under 300 kB) and parse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..frontends.onnx_messages import GraphProto, ModelProto
from .onnx_edits import OPERATORS, a_number, domain_for, within
from .rebuild import chosen

FLOAT, INT64, BOOL = 1, 7, 9
SIZES = (0, 1, 2, 3, 5, 1000, 1 << 20, 1 << 31, 1 << 40, 1 << 47, 1 << 62, -1)


class Draft:
    """A model in the making: `node` appends one and gives the name of its first output."""

    def __init__(self, rng: np.random.Generator, opset: int = 0) -> None:
        self.rng = rng
        self.model = ModelProto(ir_version=10)
        self.model.opset_import.add(domain="", version=opset or int(rng.choice((9, 11, 13, 17, 18, 19, 21, 24))))
        self.graph = self.model.graph
        self.graph.name = "bomb"
        self.count = 0

    def input(self, *sizes: int | str, kind: int = FLOAT) -> str:
        self.count += 1
        value = self.graph.input.add(name=f"x{self.count}")
        value.type.tensor_type.elem_type = kind
        value.type.tensor_type.shape.SetInParent()
        for size in sizes:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = within(size, 2)
        return str(value.name)

    def numbers(self, *values: int | float, scalar: bool = False, kind: int = INT64) -> str:
        self.count += 1
        made = self.graph.initializer.add(name=f"c{self.count}", data_type=kind, dims=() if scalar else (len(values),))
        field = made.float_data if kind == FLOAT else made.int32_data if kind == BOOL else made.int64_data
        field.extend(values if kind == FLOAT else [within(int(v), 2) for v in values])
        return str(made.name)

    def node(self, operator: str, *inputs: str, outputs: int = 1, graph: Any = None, domain: str = "", **attributes: Any) -> str:
        self.count += 1
        made = (self.graph if graph is None else graph).node.add(op_type=operator, input=inputs, domain=domain)
        made.output.extend(f"v{self.count}" + (f"_{i}" if i else "") for i in range(outputs))
        for name, value in attributes.items():
            set_attribute(made.attribute.add(name=name), value)
        return str(made.output[0])

    def done(self, *outputs: str) -> Any:
        for name in outputs:
            self.graph.output.add(name=name)
        return self.model

    def size(self) -> int:
        return int(chosen(self.rng, SIZES)) if self.rng.random() < 0.8 else a_number(self.rng)

    def sizes(self, count: int) -> list[int]:
        return [self.size() if self.rng.random() < 0.5 else 1 for _ in range(count)]


def set_attribute(attribute: Any, value: Any) -> None:
    """The value, of the kind that its type says."""
    if isinstance(value, GraphProto):
        attribute.type = 5
        attribute.g.CopyFrom(value)
    elif isinstance(value, float):
        attribute.type, attribute.f = 1, value
    elif isinstance(value, int):
        attribute.type, attribute.i = 2, within(value, 2)
    elif isinstance(value, str):
        attribute.type, attribute.s = 3, value.encode()
    elif value and isinstance(value[0], float):
        attribute.type = 6
        attribute.floats.extend(value)
    else:
        attribute.type = 7
        attribute.ints.extend(within(v, 2) for v in value)


# --- sizes ----------------------------------------------------------------------------------------------------------------


def huge_values(rng: np.random.Generator) -> Any:
    """A constant of huge sizes, made by one operator, and a few that work on it."""
    d = Draft(rng)
    rank = int(rng.integers(1, 4))
    sizes, x = d.sizes(rank), d.input(*([1] * rank))
    makers: tuple[Callable[[], str], ...] = (
        lambda: d.node("ConstantOfShape", d.numbers(*sizes)),
        lambda: d.node("Expand", x, d.numbers(*sizes)),
        lambda: d.node("Tile", x, d.numbers(*sizes)),
        lambda: d.node("Pad", x, d.numbers(*d.sizes(2 * rank)), mode=chosen(rng, ("constant", "edge", "reflect", "wrap"))),
        lambda: d.node("Range", *(d.numbers(n, scalar=True) for n in (0, d.size(), chosen(rng, (1, -1, 0, 3))))),
        lambda: d.node("OneHot", d.numbers(1, 2), d.numbers(d.size()), d.numbers(0, 1)),
        lambda: d.node("Resize", x, "", "", d.numbers(*sizes), mode=chosen(rng, ("nearest", "linear", "cubic"))),
        lambda: d.node("Resize", x, "", d.numbers(*(float(abs(n)) for n in sizes), kind=FLOAT),
                       mode=chosen(rng, ("nearest", "linear", "cubic"))),
        lambda: d.node("Upsample", x, d.numbers(*(float(n) for n in sizes), kind=FLOAT)),
        lambda: d.node("Reshape", x, d.numbers(*sizes)),
        lambda: d.node("CenterCropPad", x, d.numbers(*sizes)),
        lambda: d.node("EyeLike", d.node("Expand", x, d.numbers(*sizes))),
        lambda: d.node(chosen(rng, ("HannWindow", "HammingWindow", "BlackmanWindow")), d.numbers(d.size(), scalar=True)),
        lambda: d.node("MelWeightMatrix", *(d.numbers(n, scalar=True) for n in (d.size(), d.size(), 8000)),
                       *(d.numbers(f, scalar=True, kind=FLOAT) for f in (0.0, 4000.0))),
        lambda: d.node("DFT", d.input(1, 4, 1), d.numbers(d.size(), scalar=True)),
        lambda: d.node("AffineGrid", d.input(1, 2, 3), d.numbers(1, 1, d.size(), d.size())),
        lambda: d.node("Col2Im", d.input(1, 4, 4), d.numbers(d.size(), d.size()), d.numbers(2, 2)),
        lambda: d.node("Split", x, axis=0, num_outputs=d.size()),
        lambda: d.node("Unsqueeze", x, d.numbers(*range(int(chosen(rng, (1, 40, 200, 3000)))))),
        lambda: d.node("TopK", x, d.numbers(d.size()), outputs=2),
        lambda: d.node("RandomNormal", shape=sizes),
        lambda: d.node("MaxRoiPool", d.input(1, 1, 4, 4), d.input(1, 5), pooled_shape=[d.size(), d.size()]),
        lambda: d.node("RoiAlign", d.input(1, 1, 4, 4), d.input(1, 4), d.numbers(0), output_height=d.size(), output_width=d.size(),
                       sampling_ratio=d.size()),
    )
    found = chosen(rng, makers)()
    for _ in range(int(rng.integers(0, 4))):
        found = d.node(chosen(rng, CONSUMERS), *([found] * int(chosen(rng, (1, 1, 1, 2)))))
    return d.done(found)


CONSUMERS = ("Relu", "Add", "Mul", "Shape", "Size", "ReduceSum", "ReduceMax", "ArgMax", "Transpose", "NonZero", "Flatten", "Softmax",
             "Cast", "Concat", "MatMul", "CumSum", "TopK", "Identity", "Squeeze", "Gather", "Not", "Neg", "Sqrt", "IsNaN",
             "Det", "Compress")


def huge_windows(rng: np.random.Generator) -> Any:
    """Strides, pads, dilations, kernels, groups and blocks of any size."""
    d = Draft(rng)

    def drawn(count: int, plain: int = 1) -> list[int]:
        return [d.size() if rng.random() < 0.4 else plain for _ in range(count)]

    operator = chosen(rng, ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "DeformConv", "ConvInteger", "LRN", "DepthToSpace",
                            "SpaceToDepth", "MaxUnpool", "Col2Im", "STFT", "QLinearConv"))
    x, w = d.input(1, 4, 8, 8), d.input(4, 4, 3, 3)
    windows: dict[str, Any] = {name: drawn(count) for name, count in (("strides", 2), ("pads", 4), ("dilations", 2)) if rng.random() < 0.5}
    match operator:
        case "Conv" | "ConvTranspose" | "ConvInteger" | "DeformConv" | "QLinearConv":
            more: dict[str, Any] = {"group": d.size()} if rng.random() < 0.3 else {}
            if operator == "ConvTranspose" and rng.random() < 0.5:
                more[chosen(rng, ("output_padding", "output_shape"))] = drawn(2)
            made = d.node(operator, x, w, **windows, **more)
        case "LRN":
            made = d.node(operator, x, size=d.size())
        case "DepthToSpace" | "SpaceToDepth":
            made = d.node(operator, x, blocksize=d.size())
        case "Col2Im":
            made = d.node(operator, d.input(1, 4, 4), d.numbers(3, 3), d.numbers(2, 2), **windows)
        case "STFT":
            made = d.node(operator, d.input(1, 64, 1), d.numbers(d.size(), scalar=True), "", d.numbers(d.size(), scalar=True))
        case "MaxUnpool":
            made = d.node(operator, x, d.input(1, 4, 8, 8, kind=INT64), kernel_shape=drawn(2, 2), **windows)
        case _:
            made = d.node(operator, x, kernel_shape=drawn(2, 2), ceil_mode=int(rng.integers(2)), **windows)
    return d.done(made)


def doubling(rng: np.random.Generator) -> Any:
    """A value that every node makes twice as large, or a constant that every node works out again."""
    d = Draft(rng)
    x = (d.input(1, "N"), d.numbers(1, 2, 3), d.input(2, 2))[int(rng.integers(3))]
    for _ in range(int(chosen(rng, (3, 20, 45, 64, 400)))):
        match int(rng.integers(4)):
            case 0:
                x = d.node("Concat", x, x, axis=0)
            case 1:
                x = d.node("Add", x, x)
            case 2:
                x = d.node("Expand", d.node("Unsqueeze", x, d.numbers(0)), d.numbers(2, *([1] * int(rng.integers(0, 3)))))
            case _:
                x = d.node("Mul", x, x)
    return d.done(x)


def size_arithmetic(rng: np.random.Generator) -> Any:
    """Sizes worked out from sizes, again and again: sums of products that grow without end."""
    d = Draft(rng)
    last: tuple[int | str, ...] = ("K", "N", 3)
    x = d.input("N", "M", chosen(rng, last))
    sizes = [d.node("Gather", d.node("Shape", x), d.numbers(axis, scalar=True)) for axis in range(3)]
    for _ in range(int(chosen(rng, (2, 5, 12, 40)))):
        operator = chosen(rng, ("Mul", "Add", "Sub", "Div", "Mod", "Min", "Max", "Mul", "Add"))
        other = chosen(rng, sizes) if rng.random() < 0.7 else d.numbers(d.size(), scalar=True)
        sizes.append(d.node(operator, chosen(rng, sizes[-3:]), other))
    shape = d.node("Unsqueeze", sizes[-1], d.numbers(0)) if rng.random() < 0.8 else sizes[-1]
    made = d.node("ConstantOfShape", shape)
    return d.done(d.node("Add", made, made), d.node(chosen(rng, ("Reshape", "Expand")), x, shape))


# --- bodies, functions, chains -----------------------------------------------------------------------------------------------


def nested_bodies(rng: np.random.Generator) -> Any:
    """If, Loop or Scan inside one another, a few levels or as deep as protobuf reads."""
    d = Draft(rng)
    x, condition, trips = d.input(2, 3), d.input(kind=BOOL), d.input(kind=INT64)
    operator, depth = chosen(rng, ("If", "Loop", "Loop", "Scan")), int(chosen(rng, (1, 4, 8, 12, 20, 28)))
    both = rng.random() < 0.3 and depth <= 8  # the file itself grows with the power of the depth
    known = rng.random() < 0.3
    body = GraphProto(name="b")
    d.node("Relu", x, graph=body)
    for level in range(depth):
        result = body.node[-1].output[0]
        _body_interface(body, operator, result, f"{level}")
        outer = GraphProto(name=f"b{level}")
        if operator == "If":
            other = body if both else _flat_body(d, x)
            d.node("If", condition, graph=outer, then_branch=body, else_branch=other)
        elif operator == "Loop":
            start = d.numbers(3, scalar=True) if known else trips
            d.node("Loop", start, condition if rng.random() < 0.5 else "", x, graph=outer, body=body)
        else:
            d.node("Scan", x, graph=outer, body=body, num_scan_inputs=1)
        body = outer
    d.graph.node.extend(body.node)
    return d.done(body.node[-1].output[0])


def _flat_body(d: Draft, x: str) -> Any:
    body = GraphProto(name="other")
    body.output.add(name=d.node("Abs", x, graph=body))
    return body


def _body_interface(body: Any, operator: str, result: str, mark: str) -> None:
    """The inputs and outputs that a body of the operator must have."""
    if operator == "Loop":
        for name, kind in (("i", INT64), ("go", BOOL), ("s", FLOAT)):
            body.input.add(name=name + mark).type.tensor_type.elem_type = kind
        body.node.add(op_type="Identity", input=[f"go{mark}"], output=[f"gone{mark}"])
        body.output.add(name=f"gone{mark}")
    elif operator == "Scan":
        body.input.add(name=f"row{mark}").type.tensor_type.elem_type = FLOAT
    body.output.add(name=result)


def functions(rng: np.random.Generator) -> Any:
    """Local functions that call themselves, one another, or each the next one several times."""
    d = Draft(rng)
    depth, calls = int(chosen(rng, (1, 2, 5, 20, 30, 60, 70, 300))), int(chosen(rng, (1, 1, 2, 2, 3, 10)))
    last = chosen(rng, ("Relu", "Relu", "f0", f"f{depth // 2}", "missing"))
    d.model.opset_import.add(domain="local", version=1)
    for level in range(depth):
        function = d.model.functions.add(name=f"f{level}", domain="local", input=["a"], output=[f"t{calls}"])
        for entry in d.model.opset_import:
            function.opset_import.add(domain=entry.domain, version=entry.version)
        called = f"f{level + 1}" if level + 1 < depth else last
        for call in range(calls):
            function.node.add(op_type=called, domain="" if called == "Relu" else "local", input=["a" if call == 0 else f"t{call}"],
                              output=[f"t{call + 1}"])
    return d.done(d.node("f0", d.input(2, 3), domain="local"))


def long_chain(rng: np.random.Generator) -> Any:
    """Very many nodes in a row, or inputs or outputs of one node."""
    d = Draft(rng)
    x = d.input("N", 4) if rng.random() < 0.5 else d.numbers(1, 2, 3)
    count = int(chosen(rng, (50, 300, 1500, 3000)))
    match int(rng.integers(4)):
        case 0:
            operators = [chosen(rng, ("Relu", "Abs", "Neg", "Identity", "Shape", "Transpose", "Unsqueeze")) for _ in range(2)]
            for number in range(count):
                x = d.node(operators[number % 2], x, *([d.numbers(0)] if operators[number % 2] == "Unsqueeze" else []))
        case 1:
            x = d.node(chosen(rng, ("Sum", "Concat", "Max", "Mean", "Einsum")), *([x] * count), axis=0)
        case 2:
            x = d.node("Split", x, outputs=count, axis=int(rng.integers(2)))
        case _:
            for _ in range(count // 10):
                x = d.node(chosen(rng, ("Add", "Mul", "Sub", "Max")), x, x)
    return d.done(x)


def deep_types(rng: np.random.Generator) -> Any:
    """An input of sequences of optional values of sequences."""
    d = Draft(rng)
    x = d.input(2)
    kind = d.graph.input.add(name="deep").type
    for _ in range(int(chosen(rng, (1, 3, 20, 45)))):
        kind = kind.sequence_type.elem_type if rng.random() < 0.5 else kind.optional_type.elem_type
    kind.tensor_type.elem_type = 1
    return d.done(d.node("Relu", x))


def any_operator(rng: np.random.Generator) -> Any:
    """An operator on inputs of any rank and type, without attributes or with those of no sense."""
    d = Draft(rng)
    inputs = [_any_operand(d) for _ in range(int(rng.integers(0, 6)))]
    names = ("axis", "axes", "to", "perm", "keepdims", "mode", "equation", "alpha", "group", "kernel_shape", "hidden_size", "direction",
             "blocksize", "k", "size", "split", "num_heads", "epsilon", "transA", "dtype", "value", "shape", "batch_dims", "reduction")
    drawn: dict[str, Any] = {chosen(rng, names): (d.size(), d.sizes(2), 0.5, "sum", 1)[int(rng.integers(5))]
                             for _ in range(int(rng.integers(0, 3)))}
    operator = chosen(rng, OPERATORS)
    return d.done(d.node(operator, *inputs, outputs=int(rng.integers(1, 4)), domain=domain_for(d.model, operator), **drawn))


def _any_operand(d: Draft) -> str:
    rng = d.rng
    if rng.random() < 0.1:
        return ""
    if rng.random() < 0.4:
        values: Sequence[int] = [d.size() for _ in range(int(rng.integers(0, 5)))]
        return d.numbers(*values) if rng.random() < 0.7 or len(values) != 1 else d.numbers(*values, scalar=True)
    plain: tuple[int | str, ...] = (1, 2, 3, 4, 8, "N", 0)
    sizes = [chosen(rng, plain) if rng.random() < 0.9 else d.size() for _ in range(int(rng.integers(0, 6)))]
    return d.input(*sizes, kind=int(chosen(rng, (1, 1, 1, 1, 7, 7, 6, 9, 10, 11, 2, 3, 16, 17, 21))))


BOMBS: tuple[Callable[[np.random.Generator], Any], ...] = (
    huge_values, huge_values, huge_windows, doubling, size_arithmetic, nested_bodies, functions, any_operator, any_operator, any_operator,
    deep_types, long_chain)


def bomb(rng: np.random.Generator) -> Any:
    """One such model."""
    return chosen(rng, BOMBS)(rng)
