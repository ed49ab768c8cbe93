"""Models of one node for every operator of com.microsoft that the importer knows, as seeds of hostile files.

No package brings such models. A form says what a node takes: for each input its dtype and sizes, `-` where it is left out, `=` before
a constant, `@` before the number that the constant holds.

Guarantees: the same models in the same order; each is a valid one (`tests/test_onnx_hostile.py` imports them all).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct, field

from ..frontends.onnx_messages import AttributeProto, ModelProto
from ..ir.graph import Array

CODES = {"f32": 1, "u8": 2, "i8": 3, "i16": 5, "i32": 6, "i64": 7, "b": 9}
DTYPES = {"f32": np.float32, "u8": np.uint8, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "b": np.bool_}
OPSET, VERSION = 17, 8
MOST_ELEMENTS = 64      # of an input that becomes a constant


class Form(Struct, frozen=True):
    """A node of an operator."""

    operator: str
    inputs: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    domain: str = "com.microsoft"


FORMS = (
    Form("Attention", "f32:2,5,12 f32:12,36 f32:36", {"num_heads": 3}),
    Form("Attention", "f32:2,5,12 f32:12,36 -", {"num_heads": 3, "scale": 0.2}),
    Form("Attention", "f32:2,5,12 f32:12,36 f32:36 i32:2", {"num_heads": 3}),
    Form("Attention", "f32:2,5,12 f32:12,36 f32:36 - f32:2,2,3,3,4", {"num_heads": 3, "unidirectional": 1}, outputs=2),
    Form("Attention", "f32:2,5,12 f32:12,36 f32:36 - - f32:1,3,5,5", {"num_heads": 3}),
    Form("Attention", "f32:2,5,12 f32:12,21 f32:21", {"num_heads": 3, "qkv_hidden_sizes": [6, 6, 9]}),
    Form("BiasAdd", "f32:2,3,6 f32:6 f32:2,3,6"),
    Form("BiasGelu", "f32:3,7 f32:7"),
    Form("BiasSplitGelu", "f32:2,3,6 f32:6"),
    Form("DequantizeLinear", "i8:3,5 f32: i8:"),
    Form("DynamicQuantizeLSTM", "f32:7,1,5 =i8:1,5,16 =i8:1,4,16 f32:1,32 - f32:1,1,4 - - =f32:1 =i8:1 =f32:1 =i8:1",
         {"hidden_size": 4}, outputs=3),
    Form("DynamicQuantizeLSTM", "f32:7,1,5 =u8:1,5,16 =u8:1,4,16 f32:1,32 - f32:1,1,4 - - =f32:1 =u8:1 =f32:1 =u8:1",
         {"hidden_size": 4}, outputs=3),
    Form("DynamicQuantizeMatMul", "f32:5,7 i8:7,3 f32: i8: f32:3"),
    Form("DynamicQuantizeMatMul", "f32:5,7 u8:7,3 f32:"),
    Form("EmbedLayerNormalization", "i32:2,3 i32:2,3 f32:9,12 f32:5,12 f32:2,12 f32:12 f32:12 i32:2,3", outputs=3),
    Form("EmbedLayerNormalization", "i32:2,3 - f32:9,12 f32:5,12 - f32:12 f32:12 - i32:2,3", outputs=2),
    Form("FastGelu", "f32:3,7"),
    Form("FastGelu", "f32:2,3,7 f32:7"),
    Form("FusedConv", "f32:1,4,9,7 f32:6,2,3,3 f32:6", {"group": 2, "pads": [1, 0, 1, 2], "activation": "Relu"}),
    Form("FusedConv", "f32:1,3,5,5 f32:4,3,1,1 f32:4 f32:1,4,5,5", {"activation": "Clip", "activation_params": [-0.5, 1.0]}),
    Form("FusedGemm", "f32:5,7 f32:3,7 f32:3", {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}),
    Form("FusedMatMul", "f32:2,7,5 f32:2,7,3", {"transA": 1, "alpha": 0.3}),
    Form("FusedMatMul", "f32:3,7,5 f32:4,7", {"transA": 1, "transB": 1}),
    Form("GatherBlockQuantized", "=u8:9,20 i64:2,3 =f32:9,3 =u8:9,2", {"block_size": 16}),
    Form("GatherBlockQuantized", "u8:9,40 i32: f32:9,2", {"bits": 8, "block_size": 32}),
    Form("Gelu", "f32:3,7"),
    Form("GroupQueryAttention", "f32:2,5,96 f32:2,5,32 f32:2,5,32 - - i32:2 =i32:@5", {"num_heads": 6, "kv_num_heads": 2}, outputs=3),
    Form("GroupQueryAttention", "f32:2,5,160 - - - - i32:2 =i32:@5", {"num_heads": 6, "kv_num_heads": 2}, outputs=3),
    Form("GroupQueryAttention", "f32:2,5,96 f32:2,5,32 f32:2,5,32 - - i32:2 =i32:@5 f32:16,8 f32:16,8",
         {"num_heads": 6, "kv_num_heads": 2, "do_rotary": 1}, outputs=3),
    Form("GroupQueryAttention", "f32:2,1,96 f32:2,1,32 f32:2,1,32 f32:2,2,7,16 f32:2,2,7,16 i32:2 =i32:@8 f32:16,8 f32:16,8",
         {"num_heads": 6, "kv_num_heads": 2, "do_rotary": 1}, outputs=3),
    Form("GroupQueryAttention", "f32:2,1,96 f32:2,1,32 f32:2,1,32 f32:2,2,7,16 f32:2,2,7,16 i32:2 =i32:@8",
         {"num_heads": 6, "kv_num_heads": 2, "local_window_size": 4}, outputs=3),
    Form("GroupQueryAttention", "f32:1,4,96 f32:1,4,32 f32:1,4,32 - - i32:1 =i32:@4 - - - f32:1,1,4,4",
         {"num_heads": 6, "kv_num_heads": 2}, outputs=3),
    Form("Inverse", "f32:3,5,5"),
    Form("Inverse", "f32:3,3"),
    Form("MatMulBnb4", "f32:3,20 =u8:50 =f32:7", {"K": 20, "N": 5, "block_size": 16, "quant_type": 1}),
    Form("MatMulInteger16", "i16:5,7 i16:7,3"),
    Form("MatMulIntegerToFloat", "u8:5,7 u8:7,3 f32: f32: u8: u8: f32:3"),
    Form("MatMulIntegerToFloat", "u8:2,5,7 i8:7,3 f32: f32:3 u8: i8:3"),
    Form("MatMulNBits", "f32:3,40 =u8:5,3,8 =f32:15", {"K": 40, "N": 5, "bits": 4, "block_size": 16}),
    Form("MatMulNBits", "f32:2,3,32 =u8:5,2,8 =f32:10 =u8:5 - f32:5", {"K": 32, "N": 5, "bits": 4, "block_size": 16}),
    Form("MatMulNBits", "f32:3,40 =u8:5,3,8 =f32:15 - i32:40", {"K": 40, "N": 5, "bits": 4, "block_size": 16}),
    Form("MultiHeadAttention", "f32:2,5,12 f32:2,7,12 f32:2,7,12", {"num_heads": 3}),
    Form("MultiHeadAttention", "f32:2,5,12 f32:2,7,12 f32:2,7,12 f32:36", {"num_heads": 3, "scale": 0.4}),
    Form("MultiHeadAttention", "f32:2,5,12 f32:2,7,12 f32:2,7,12 - i32:2", {"num_heads": 3}),
    Form("MultiHeadAttention", "f32:2,5,12 f32:2,5,12 f32:2,5,12 f32:36 - - f32:2,3,4,4 f32:2,3,4,4",
         {"num_heads": 3, "unidirectional": 1}, outputs=3),
    Form("MultiHeadAttention", "f32:2,5,12 f32:2,3,7,4 f32:2,3,7,4", {"num_heads": 3}),
    Form("NhwcConv", "f32:1,5,4,3 f32:2,3,1,1"),
    Form("NhwcMaxPool", "u8:1,9,7,3", {"kernel_shape": [3, 2], "strides": [2, 1]}),
    Form("QAttention", "u8:2,5,12 i8:12,36 f32:36 f32: f32: - u8: i8:", {"num_heads": 3}),
    Form("QAttention", "u8:2,5,12 u8:12,36 f32:36 f32: f32:36 i32:2,5 u8: u8:36", {"num_heads": 3, "unidirectional": 1}),
    Form("QEmbedLayerNormalization", "i32:2,3 i32:2,3 u8:9,12 u8:5,12 u8:2,12 u8:12 u8:12 i32:2,3" + " f32:" * 5 + " u8:" * 5, outputs=2),
    Form("QGemm", "u8:5,7 f32: u8: u8:7,3 f32: u8: i32:3 f32: u8:"),
    Form("QGemm", "u8:7,5 f32: u8: i8:3,7 f32:3 i8:3", {"transA": 1, "transB": 1, "alpha": 0.5}),
    Form("QLinearAdd", "u8:3,7 f32: u8: u8:3,7 f32: u8: f32: u8:"),
    Form("QLinearAdd", "i8:2,5,9 f32: i8: i8:9 f32: i8: f32: i8:"),
    Form("QLinearAveragePool", "u8:1,3,9,7 f32: u8: f32: u8:", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
    Form("QLinearAveragePool", "u8:1,3,9,7 f32: u8: f32: u8:", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Form("QLinearConcat", "=f32: =u8: u8:3,7 =f32: =u8: u8:3,4 =f32: =u8:", {"axis": 1}),
    Form("QLinearConv", "u8:1,6,5,3 f32: u8: =i8:4,3,3,3 =f32: =i8: f32: u8:", {"channels_last": 1, "pads": [1, 1, 1, 1]}),
    Form("QLinearGlobalAveragePool", "u8:2,3,5,7 f32: u8: f32: u8:"),
    Form("QLinearGlobalAveragePool", "u8:2,5,7,3 f32: u8: f32: u8:", {"channels_last": 1}),
    Form("QLinearLeakyRelu", "i8:5,9 f32: i8: f32: i8:", {"alpha": 0.2}),
    Form("QLinearMul", "u8:3,7 f32: u8: u8:7 f32: u8: f32: u8:"),
    Form("QLinearSigmoid", "u8:3,7 f32: u8: f32: u8:"),
    Form("QLinearSoftmax", "u8:3,9 f32: u8: f32: u8:", {"opset": 13}),
    Form("QLinearSoftmax", "i8:3,9 f32: i8: f32: i8:", {"opset": 13, "axis": 0}),
    Form("QLinearWhere", "b:3,7 u8:3,7 f32: u8: u8:3,7 f32: u8: f32: u8:"),
    Form("QuantizeLinear", "f32:3,5 f32:5 u8:5", {"axis": 1}),
    Form("QuickGelu", "f32:3,7", {"alpha": 1.3}),
    Form("RotaryEmbedding", "f32:2,5,12 i64:1 f32:11,2 f32:11,2"),
    Form("RotaryEmbedding", "f32:2,3,5,4 i64:2,5 f32:11,2 f32:11,2", {"interleaved": 1}),
    Form("RotaryEmbedding", "f32:2,5,18 i64:2,5 f32:11,2 f32:11,2", {"num_heads": 3, "rotary_embedding_dim": 4}),
    Form("SimplifiedLayerNormalization", "f32:2,5,12 f32:12", {"epsilon": 0.001}, outputs=2, domain=""),
    Form("SimplifiedLayerNormalization", "f32:2,5,12 f32:5,12", {"axis": 1}, domain=""),
    Form("SkipLayerNormalization", "f32:2,5,12 f32:2,5,12 f32:12 f32:12"),
    Form("SkipLayerNormalization", "f32:2,5,12 f32:2,5,12 f32:12 f32:12 f32:12", {"epsilon": 0.001}, outputs=4),
    Form("SkipSimplifiedLayerNormalization", "f32:2,5,12 f32:2,5,12 f32:12 f32:12", outputs=4),
    Form("TransposeMatMul", "f32:7,5 f32:2,7,3", {"transA": 1}),
    Form("Trilu", "f32:2,5,7 i64:", {"upper": 0}),
)


def contributed_models() -> Iterator[bytes]:
    """The models; those with small inputs also with these as constants, as quantizers write scales and zero points."""
    for form in FORMS:
        plain = _model(form, 0)
        yield plain
        bound = _model(form, MOST_ELEMENTS)
        if bound != plain:
            yield bound


def _model(form: Form, most_constant: int) -> bytes:
    """The node as a model; inputs of up to so many elements are constants."""
    model = ModelProto(ir_version=VERSION)
    for domain, version in (("", OPSET), ("com.microsoft", 1)):
        model.opset_import.add(domain=domain, version=version)
    graph = model.graph
    graph.name = form.operator
    node = graph.node.add(op_type=form.operator, domain=form.domain, name="node")
    for place, text in enumerate(form.inputs.split()):
        node.input.append("" if text == "-" else f"x{place}")
        if text != "-":
            _add_input(graph, f"x{place}", text, most_constant)
    for place in range(form.outputs):
        node.output.append(f"y{place}")
    graph.output.add(name="y0")
    for name, value in form.attributes.items():
        _add_attribute(node, name, value)
    data: bytes = model.SerializeToString()
    return data


def _add_input(graph: Any, name: str, text: str, most_constant: int) -> None:
    kind, _, rest = text.removeprefix("=").partition(":")
    sizes, _, number = rest.partition("@")
    shape = [int(n) for n in sizes.split(",") if n]
    if text.startswith("=") or int(np.prod(shape)) <= most_constant:
        value: Array = np.full(shape, float(number) if number else 0.5 if kind == "f32" else 1).astype(DTYPES[kind])
        graph.initializer.add(name=name, data_type=CODES[kind], dims=shape, raw_data=value.tobytes())
        return
    declared = graph.input.add(name=name).type.tensor_type
    declared.elem_type = CODES[kind]
    declared.shape.SetInParent()
    for size in shape:
        declared.shape.dim.add(dim_value=size)


def _add_attribute(node: Any, name: str, value: Any) -> None:
    made = node.attribute.add(name=name)
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, str):
        made.type, made.s = AttributeProto.STRING, first.encode()
    elif isinstance(value, list):
        made.type = AttributeProto.INTS if isinstance(first, int) else AttributeProto.FLOATS
        (made.ints if isinstance(first, int) else made.floats).extend(value)
    elif isinstance(value, int):
        made.type, made.i = AttributeProto.INT, value
    else:
        made.type, made.f = AttributeProto.FLOAT, value
