"""Operators of com.microsoft against ONNX Runtime: odd sizes, absent inputs, masks and caches, numbers and symbols as sizes.

Each case is one node. It is imported with the inputs' sizes as numbers and with a symbol for each distinct size, and runs in the
interpreter and as machine code. Integers may differ by one step where the exact value lies between two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows its dtypes by name then
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is what the operators are compared with")

from onnx import helper, numpy_helper

import tilewright as tw
from tilewright.frontends.from_onnx import from_onnx
from tilewright.frontends.onnx_ops.table import CONTRIBUTED
from tilewright.ir.errors import CompileError, IndexFailure, UnsupportedError
from tilewright.ir.interp import evaluate_graph

pytestmark = pytest.mark.usefixtures("quick_code")

random = np.random.default_rng(5)


def floats(*shape: int, low: float = -2.0, high: float = 2.0, dtype: type = np.float32) -> np.ndarray:
    return random.uniform(low, high, shape).astype(dtype)


def bytes_(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max + 1, shape).astype(dtype)


def whole(*values: int, dtype: type = np.int32) -> np.ndarray:
    return np.array(values, dtype)


def weights(*shape: int) -> np.ndarray:
    """int8 of 7 bits: with more the products of ONNX Runtime saturate in 16 bits on some processors."""
    return random.integers(-64, 64, shape).astype(np.int8)


def real(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def byte(value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array(value, dtype)


@dataclass
class Case:
    """A node; None is an absent input, `constants` are initializers, `steps` how far integers may be apart."""

    op: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    constants: tuple[int, ...] = ()
    symbolic: bool = True
    numbers: tuple[int, ...] = (2, 4, 6, 12, 15, 18, 21, 36)   # sizes that are never symbols: those of heads
    tolerance: float = 2e-5
    steps: int = 0
    domain: str = "com.microsoft"
    used: tuple[int, ...] | None = None
    expected: tuple[np.ndarray, ...] | None = None      # where ONNX Runtime has no kernel for the processor
    peer: Case | None = None                            # what ONNX Runtime is given instead


def model_of(case: Case, symbolic: bool) -> bytes:
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(case.inputs)]
    used = range(case.outputs) if case.used is None else case.used
    results = [f"y{i}" if i in used else "" for i in range(case.outputs)]
    values, constants = [], []
    for place, (name, x) in enumerate(zip(names, case.inputs, strict=True)):
        if x is None:
            continue
        if place in case.constants:
            constants.append(numpy_helper.from_array(x, name))
        else:
            shape = [f"n{n}" if symbolic and n > 1 and n not in case.numbers else n for n in x.shape]
            values.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    node = helper.make_node(case.op, names, results, domain=case.domain, name="the_node", **case.attributes)
    graph = helper.make_graph([node], "one_node", values, [onnx.ValueInfoProto(name=name) for name in results if name], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def feeds_of(case: Case) -> dict[str, np.ndarray]:
    return {f"x{i}": x for i, x in enumerate(case.inputs) if x is not None and i not in case.constants}


def run_onnxruntime(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds))


def assert_agrees(case: Case, found: Any, expected: Any) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        if mine.dtype.kind in "iu":
            apart = np.abs(mine.astype(np.int64) - theirs.astype(np.int64))
            assert apart.max(initial=0) <= case.steps
            assert not case.steps or np.count_nonzero(apart) <= 0.02 * apart.size + 1
        else:
            scale = max(1.0, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)))
            np.testing.assert_allclose(mine, theirs, rtol=case.tolerance, atol=case.tolerance * scale)


X3, D3 = floats(2, 5, 12), floats(12)
LAYERS: dict[str, Case] = {
    "gelu": Case("Gelu", [floats(3, 7)]),
    "bias gelu": Case("BiasGelu", [floats(3, 7), floats(7)]),
    "fast gelu": Case("FastGelu", [floats(3, 7)]),
    "fast gelu, bias": Case("FastGelu", [floats(2, 3, 7), floats(7)]),
    "quick gelu": Case("QuickGelu", [floats(3, 7)], {"alpha": 1.3}),
    "skip": Case("SkipLayerNormalization", [X3, floats(2, 5, 12), D3, floats(12)]),
    "skip, all": Case("SkipLayerNormalization", [X3, floats(2, 5, 12), D3, floats(12), floats(12)], {"epsilon": 1e-3}, outputs=4, used=(0, 3)),
    "skip, one batch": Case("SkipLayerNormalization", [X3, floats(1, 5, 12), D3, None, floats(12)]),
    "skip, simplified": Case("SkipSimplifiedLayerNormalization", [X3, floats(2, 5, 12), D3, floats(12)], outputs=4, used=(0, 3)),
    "simplified": Case("SimplifiedLayerNormalization", [X3, D3], {"epsilon": 1e-3}, outputs=2, domain=""),
    "simplified, axis": Case("SimplifiedLayerNormalization", [X3, floats(5, 12)], {"axis": 1}, domain=""),
    "embedding": Case("EmbedLayerNormalization", [whole(3, 0, 8, 1, 1, 7).reshape(2, 3), whole(0, 1, 1, 0, 0, 1).reshape(2, 3),
                                                  floats(9, 12), floats(5, 12), floats(2, 12), D3, floats(12),
                                                  whole(1, 1, 0, 1, 0, 0).reshape(2, 3)], outputs=3),
    "embedding, places": Case("EmbedLayerNormalization", [whole(3, 0, 8, 1, 1, 7).reshape(2, 3), None, floats(9, 12), floats(5, 12), None,
                                                          D3, floats(12), None, whole(4, 2, 0, 1, 1, 3).reshape(2, 3)], outputs=2),
    "matmul": Case("FusedMatMul", [floats(2, 7, 5), floats(2, 7, 3)], {"transA": 1, "alpha": 0.3}),
    "matmul, both": Case("FusedMatMul", [floats(3, 7, 5), floats(4, 7)], {"transA": 1, "transB": 1}),
    "matmul, batch": Case("FusedMatMul", [floats(5, 3, 7), floats(7, 3, 2)], {"transBatchA": 1, "transBatchB": 1}),
    "matmul, batch and last": Case("FusedMatMul", [floats(7, 3, 5), floats(2, 3, 7)],
                                   {"transBatchA": 1, "transBatchB": 1, "transA": 1, "transB": 1}),
    "gemm": Case("FusedGemm", [floats(5, 7), floats(3, 7), floats(3)], {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}),
    "conv": Case("FusedConv", [floats(1, 4, 9, 7), floats(6, 2, 3, 3), floats(6)],
                 {"group": 2, "pads": [1, 0, 1, 2], "activation": "Relu"}, numbers=(2, 3, 4, 6)),
    "conv, sum": Case("FusedConv", [floats(1, 3, 5, 5), floats(4, 3, 1, 1), floats(4), floats(1, 4, 5, 5)],
                      {"activation": "Clip", "activation_params": [-0.5, 1.0]}, symbolic=False),
    "inverse": Case("Inverse", [floats(3, 5, 5) + 3 * np.eye(5, dtype=np.float32)], tolerance=1e-4),
    "inverse, pivots": Case("Inverse", [np.array([[0, 2, 0], [1, 0, 0], [0, 0, -4]], np.float32)]),
    "inverse, one": Case("Inverse", [floats(2, 1, 1, low=1)]),
    "matmul, old name": Case("TransposeMatMul", [floats(2, 7, 5), floats(2, 7, 3)], {"transA": 1, "alpha": 0.3}),
    "trilu": Case("Trilu", [floats(2, 5, 7), np.array(-1, np.int64)], {"upper": 0}),
}

HEADS, HIDDEN = 3, 12
QKV = [floats(2, 5, HIDDEN), floats(HIDDEN, 3 * HIDDEN), floats(3 * HIDDEN)]
MASKS = {
    "ends": whole(5, 3), "ends and starts": whole(5, 4, 0, 2), "keys": whole(1, 1, 1, 0, 1, 1, 0, 1, 0, 0).reshape(2, 5),
    "pairs": random.integers(0, 2, (2, 5, 5)).astype(np.int32), "nothing seen": np.zeros((2, 5), np.int32),
}
KV = [floats(2, 5, HIDDEN), floats(2, 7, HIDDEN), floats(2, 7, HIDDEN)]
ATTENTION: dict[str, Case] = {
    "attention": Case("Attention", QKV, {"num_heads": HEADS}),
    # without a bias ONNX Runtime 1.31 ends the process
    "attention, no bias": Case("Attention", [*QKV[:2], None], {"num_heads": HEADS, "scale": 0.2},
                               peer=Case("Attention", [*QKV[:2], 0 * QKV[2]], {"num_heads": HEADS, "scale": 0.2})),
    "attention, causal": Case("Attention", QKV, {"num_heads": HEADS, "unidirectional": 1}),
    **{f"attention, mask of {name}": Case("Attention", [*QKV, mask], {"num_heads": HEADS}) for name, mask in MASKS.items()},
    "attention, causal mask": Case("Attention", [*QKV, MASKS["keys"]], {"num_heads": HEADS, "unidirectional": 1, "mask_filter_value": -50.0}),
    "attention, past": Case("Attention", [*QKV, None, floats(2, 2, HEADS, 3, 4)], {"num_heads": HEADS, "unidirectional": 1}, outputs=2),
    "attention, past and mask": Case("Attention", [*QKV, random.integers(0, 2, (2, 8)).astype(np.int32), floats(2, 2, HEADS, 3, 4)],
                                     {"num_heads": HEADS}, outputs=2),
    "attention, added": Case("Attention", [*QKV, None, None, floats(1, HEADS, 5, 5)], {"num_heads": HEADS}),
    "attention, widths": Case("Attention", [QKV[0], floats(HIDDEN, 2 * 6 + 9), floats(21)],
                              {"num_heads": HEADS, "qkv_hidden_sizes": [6, 6, 9]}),
    "heads": Case("MultiHeadAttention", KV, {"num_heads": HEADS}),
    "heads, bias": Case("MultiHeadAttention", [*KV, floats(3 * HIDDEN)], {"num_heads": HEADS, "scale": 0.4}),
    "heads, mask": Case("MultiHeadAttention", [*KV, None, whole(3, 7)], {"num_heads": HEADS}),
    "heads, mask of keys": Case("MultiHeadAttention", [*KV, None, random.integers(0, 2, (2, 7)).astype(np.int32)], {"num_heads": HEADS}),
    "heads, added": Case("MultiHeadAttention", [*KV, None, None, floats(2, 1, 5, 7)], {"num_heads": HEADS}),
    "heads, other values": Case("MultiHeadAttention", [KV[0], KV[1], floats(2, 7, 15)], {"num_heads": HEADS}),
    "heads, past": Case("MultiHeadAttention", [KV[0], floats(2, 5, HIDDEN), floats(2, 5, HIDDEN), floats(3 * HIDDEN), None, None,
                                               floats(2, HEADS, 4, 4), floats(2, HEADS, 4, 4)],
                        {"num_heads": HEADS, "unidirectional": 1}, outputs=3),
    "heads, crossed": Case("MultiHeadAttention", [KV[0], floats(2, HEADS, 7, 4), floats(2, HEADS, 7, 4)], {"num_heads": HEADS}),
    "rotary": Case("RotaryEmbedding", [floats(2, 5, 12), np.array([3], np.int64), floats(11, 2), floats(11, 2)]),
    "rotary, places": Case("RotaryEmbedding", [floats(2, 3, 5, 4), random.integers(0, 11, (2, 5)), floats(11, 2), floats(11, 2)],
                           {"interleaved": 1}, symbolic=False),
    "rotary, part": Case("RotaryEmbedding", [floats(2, 5, 18), random.integers(0, 11, (2, 5)), floats(11, 2), floats(11, 2)],
                         {"num_heads": 3, "rotary_embedding_dim": 4}),
    "quantized": Case("QAttention", [bytes_(2, 5, 12), weights(12, 36), floats(36), real(0.01), real(0.02), None, byte(120),
                                     byte(0, np.int8)], {"num_heads": HEADS}),
    "quantized, columns": Case("QAttention", [bytes_(2, 5, 12), bytes_(12, 36), floats(36), real(0.01), floats(36, low=0.01, high=0.03),
                                              MASKS["keys"], byte(120), bytes_(36)], {"num_heads": HEADS, "unidirectional": 1}),
}

GROUPS = {"num_heads": 6, "kv_num_heads": 2}
HEAD = 16
CACHES = [floats(16, HEAD // 2), floats(16, HEAD // 2)]


def grouped(length: int, past: int, seen: list[int], total: int, *more: Any, packed: bool = False,
            **attributes: Any) -> Case:
    batch, heads, keys = len(seen), GROUPS["num_heads"], GROUPS["kv_num_heads"]
    own = [floats(batch, length, (heads + 2 * keys) * HEAD), None, None] if packed else \
        [floats(batch, length, heads * HEAD), floats(batch, length, keys * HEAD), floats(batch, length, keys * HEAD)]
    caches = [floats(batch, keys, past, HEAD), floats(batch, keys, past, HEAD)] if past else [None, None]
    inputs = [*own, *caches, whole(*seen), whole(total).reshape(()), *more]
    return Case("GroupQueryAttention", inputs, {**GROUPS, **attributes}, outputs=3, constants=(6,), symbolic=False)


GROUPED: dict[str, Case] = {
    "prompt": grouped(5, 0, [4, 4], 5),
    "packed": grouped(5, 0, [4, 4], 5, packed=True),
    "rotary prompt": grouped(5, 0, [4, 4], 5, *CACHES, do_rotary=1),
    "rotary, interleaved": grouped(5, 0, [4, 4], 5, *CACHES, do_rotary=1, rotary_interleaved=1),
    "one more": grouped(1, 7, [7, 7], 8, *CACHES, do_rotary=1),
    "one more, ragged": grouped(1, 7, [7, 4], 8, *CACHES, do_rotary=1),
    "one more, roomy": grouped(1, 11, [5, 3], 6),
    "some more": grouped(3, 6, [8], 9, *CACHES, do_rotary=1),
    "window": grouped(7, 0, [6], 7, local_window_size=3),
    "window, past": grouped(1, 7, [7, 7], 8, local_window_size=4),
    "capped": grouped(4, 0, [3], 4, softcap=2.0, scale=0.7),
    "smooth": grouped(4, 0, [3], 4, smooth_softmax=1),
    "added": grouped(4, 0, [3], 4, None, None, None, floats(1, 1, 4, 4)),
    "sink": grouped(4, 0, [3], 4, None, None, None, None, floats(6)),
}

A8, B8 = bytes_(3, 7), bytes_(3, 7)
PARAMETERS = [real(0.02), byte(120), real(0.03), byte(131)]
QUANTIZED: dict[str, Case] = {
    "add": Case("QLinearAdd", [A8, real(0.013), byte(100), B8, real(0.027), byte(140), real(0.05), byte(128)], steps=1),
    "add, row": Case("QLinearAdd", [bytes_(2, 5, 9, dtype=np.int8), real(0.013), byte(5, np.int8), bytes_(9, dtype=np.int8), real(0.027),
                                    byte(-14, np.int8), real(0.05), byte(0, np.int8)], steps=1),
    "mul": Case("QLinearMul", [A8, real(0.013), byte(100), bytes_(7), real(0.027), byte(140), real(0.05), byte(128)], steps=1),
    "sigmoid": Case("QLinearSigmoid", [A8, real(0.03), byte(120), real(1 / 256), byte(0)], steps=1),
    "leaky relu": Case("QLinearLeakyRelu", [bytes_(5, 9, dtype=np.int8), real(0.03), byte(4, np.int8), real(0.05), byte(-9, np.int8)],
                       {"alpha": 0.2}, steps=1),
    "softmax": Case("QLinearSoftmax", [bytes_(3, 9), real(0.02), byte(120), real(1 / 256), byte(0)], {"opset": 13}, steps=1),
    "softmax, signed": Case("QLinearSoftmax", [bytes_(3, 9, dtype=np.int8), real(0.02), byte(3, np.int8), real(1 / 256), byte(-128, np.int8)],
                            {"opset": 13, "axis": 0}, steps=1),
    "softmax, flat": Case("QLinearSoftmax", [bytes_(2, 3, 5), real(0.02), byte(120), real(1 / 256), byte(0)], {"opset": 12, "axis": 1},
                          steps=1, symbolic=False),
    "pool": Case("QLinearAveragePool", [bytes_(1, 3, 9, 7), *PARAMETERS], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]},
                 steps=1),
    "pool, padding counted": Case("QLinearAveragePool", [bytes_(1, 3, 9, 7), *PARAMETERS],
                                  {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, steps=1),
    "pool, channels last": Case("QLinearAveragePool", [bytes_(1, 9, 7, 3), *PARAMETERS], {"kernel_shape": [3, 2], "channels_last": 1}, steps=1,
                                symbolic=False),
    "global pool": Case("QLinearGlobalAveragePool", [bytes_(2, 3, 5, 7), *PARAMETERS], steps=1),
    "global pool, channels last": Case("QLinearGlobalAveragePool", [bytes_(2, 5, 7, 3), *PARAMETERS], {"channels_last": 1}, steps=1),
    "concat": Case("QLinearConcat", [real(0.05), byte(128), A8, real(0.03), byte(100), bytes_(3, 4), real(0.05), byte(128)], {"axis": 1},
                   steps=1, constants=(0, 1, 3, 4, 6, 7)),
    "where": Case("QLinearWhere", [A8 > 99, A8, real(0.03), byte(100), B8, real(0.05), byte(128), real(0.0437), byte(9)], steps=1),
    "conv, channels last": Case("QLinearConv", [bytes_(1, 6, 5, 3), real(0.02), byte(120), weights(4, 3, 3, 3), real(0.03),
                                                byte(0, np.int8), real(0.9), byte(128)], {"channels_last": 1, "pads": [1, 1, 1, 1]},
                                steps=1, constants=(3, 4, 5), symbolic=False),
    "to float": Case("MatMulIntegerToFloat", [bytes_(5, 7), bytes_(7, 3), real(0.02), real(0.03), byte(9), byte(120), floats(3)]),
    "to float, columns": Case("MatMulIntegerToFloat", [bytes_(2, 5, 7), weights(7, 3), real(0.02), floats(3, low=0.1), byte(9),
                                                       bytes_(3, dtype=np.int8)]),
    "dynamic": Case("DynamicQuantizeMatMul", [floats(5, 7), weights(7, 3), real(0.03), byte(3, np.int8), floats(3)]),
    "dynamic, zeros": Case("DynamicQuantizeMatMul", [floats(5, 7, low=0, high=1e-30) * 0, bytes_(7, 3), real(0.03)]),
    "gemm": Case("QGemm", [bytes_(5, 7), real(0.02), byte(99), bytes_(7, 3), real(0.03), byte(120), whole(5, -9000, 700), real(0.5), byte(9)],
                 steps=1),
    "gemm, float": Case("QGemm", [bytes_(7, 5), real(0.02), byte(99), weights(3, 7), floats(3, low=0.1), bytes_(3, dtype=np.int8)],
                        {"transA": 1, "transB": 1, "alpha": 0.5}),
    "quantize": Case("QuantizeLinear", [floats(3, 5), floats(5, low=0.01, high=0.1), bytes_(5)], {"axis": 1}),
    "dequantize": Case("DequantizeLinear", [bytes_(3, 5, dtype=np.int8), real(0.3), byte(-3, np.int8)]),
    "bits": Case("MatMulNBits", [floats(3, 40), bytes_(5, 3, 8), floats(15)], {"K": 40, "N": 5, "bits": 4, "block_size": 16},
                 constants=(1, 2), symbolic=False),
    "bits, points": Case("MatMulNBits", [floats(2, 3, 32), bytes_(5, 2, 8), floats(10), bytes_(5), None, floats(5)],
                         {"K": 32, "N": 5, "bits": 4, "block_size": 16}, constants=(1, 2, 3), symbolic=False),
    "bits, float points": Case("MatMulNBits", [floats(3, 40), bytes_(5, 3, 8), floats(15), floats(15, low=0, high=15)],
                               {"K": 40, "N": 5, "bits": 4, "block_size": 16}, constants=(1, 2, 3), symbolic=False),
    "bits, two": Case("MatMulNBits", [floats(3, 40), bytes_(5, 3, 4), floats(15), bytes_(5)],
                      {"K": 40, "N": 5, "bits": 2, "block_size": 16}, constants=(1, 2, 3), symbolic=False),
    "bits, half": Case("MatMulNBits", [floats(3, 40, dtype=np.float16), bytes_(5, 3, 8), floats(15, dtype=np.float16), bytes_(10)],
                       {"K": 40, "N": 5, "bits": 4, "block_size": 16}, constants=(1, 2, 3), symbolic=False, tolerance=2e-3),
    "bits, eight": Case("MatMulNBits", [floats(3, 40), bytes_(5, 2, 32), floats(10), bytes_(10)],
                        {"K": 40, "N": 5, "bits": 8, "block_size": 32}, constants=(1, 2, 3), symbolic=False),
    "bits, any order": Case("MatMulNBits", [floats(3, 40), bytes_(5, 3, 8), floats(15), None, random.integers(0, 3, 40).astype(np.int32)],
                            {"K": 40, "N": 5, "bits": 4, "block_size": 16}, constants=(1, 2, 4), symbolic=False),
    "bits, normal floats": Case("MatMulBnb4", [floats(3, 20), bytes_(50), floats(7, low=0.5)],
                                {"K": 20, "N": 5, "block_size": 16, "quant_type": 1}, constants=(1, 2), symbolic=False),
    "bits, floats": Case("MatMulBnb4", [floats(2, 3, 21), bytes_(53), floats(7, low=0.5)], {"K": 21, "N": 5, "block_size": 16, "quant_type": 0},
                         constants=(1, 2), symbolic=False),
    "words": Case("MatMulInteger16", [bytes_(2, 5, 7, dtype=np.int16) // 8, bytes_(7, 3, dtype=np.int16) // 8]),
    "greatest, channels last": Case("NhwcMaxPool", [bytes_(1, 9, 7, 3)], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
                                    symbolic=False),
    "embedding": Case("QEmbedLayerNormalization", [
        whole(3, 0, 8, 1, 1, 7).reshape(2, 3), whole(0, 1, 1, 0, 0, 1).reshape(2, 3), bytes_(9, 12), bytes_(5, 12), bytes_(2, 12), bytes_(12),
        bytes_(12), whole(1, 1, 0, 1, 0, 0).reshape(2, 3), *[real(n) for n in (0.02, 0.03, 0.01, 0.04, 0.05)],
        *[byte(n) for n in (120, 131, 9, 77, 128)]], outputs=2),
    "embedding, signed": Case("QEmbedLayerNormalization", [
        whole(3, 0, 8, 1, 1, 7).reshape(2, 3), None, bytes_(9, 12, dtype=np.int8), bytes_(5, 12, dtype=np.int8), None,
        *[bytes_(12, dtype=np.int8)] * 2, None, real(0.02), real(0.03), None, real(0.04), real(0.05),
        *[None if n is None else byte(n, np.int8) for n in (-3, 0, None, 7, 1)]], {"epsilon": 1e-3}, outputs=2),
}

TABLE_PLACES = whole(3, -1, 0, 77, -9, 8, dtype=np.int64).reshape(2, 3)       # of 9 rows: 77 is outside


def rows(dtype: str, shape: tuple[int, ...], scales: tuple[int, ...], points: tuple[int, ...] | None = None, places: Any = TABLE_PLACES,
         scale_dtype: type = np.float32, **attributes: int) -> Case:
    kind = np.dtype(dtype)
    codes, zeros = (None if n is None else bytes_(*n) if kind == np.uint8 else random.integers(-8, 16, n).astype(kind) for n in (shape, points))
    return Case("GatherBlockQuantized", [codes, places, floats(*scales, low=0.1, dtype=scale_dtype), zeros], attributes, constants=(0, 2, 3),
                tolerance=0)


TABLES = {
    "int4": rows("int4", (9, 40), (9, 3), block_size=16),
    "int4, points": rows("int4", (9, 40), (9, 3), (9, 3), block_size=16),
    "uint4, three axes": rows("uint4", (9, 5, 40), (9, 5, 3), (9, 5, 3), block_size=16, quantize_axis=2),
    "uint4, columns": rows("uint4", (9, 40), (1, 40), (1, 40), block_size=16, quantize_axis=0),
    "along one axis": rows("int4", (40, 9), (3, 9), (3, 9), block_size=16, gather_axis=1, quantize_axis=0),
    "along the middle": rows("int4", (3, 9, 40), (3, 9, 2), block_size=32, gather_axis=1, quantize_axis=-1),
    "before the blocks": rows("int4", (40, 9, 5), (3, 9, 5), (3, 9, 5), block_size=16, gather_axis=1, quantize_axis=0),
    "four bits": rows("uint8", (9, 20), (9, 3), block_size=16),
    "four bits, points": rows("uint8", (9, 20), (9, 3), (9, 2), block_size=16),
    "four bits, three axes": rows("uint8", (9, 2, 20), (9, 2, 3), (9, 2, 2), block_size=16, quantize_axis=2),
    "two bits": rows("uint8", (9, 12), (9, 3), (9, 1), bits=2, block_size=16),
    "eight bits": rows("uint8", (9, 40), (9, 2), bits=8, block_size=32),
    "eight bits, points": rows("uint8", (9, 40), (9, 2), (9, 2), bits=8, block_size=32, quantize_axis=-1),
    "half": rows("int4", (9, 40), (9, 3), block_size=16, scale_dtype=np.float16),
    "one place": rows("int4", (9, 40), (9, 3), places=np.array(-2, np.int32), block_size=16),
    "float8": rows("float8_e4m3fn", (9, 40), (9, 3), block_size=16),
    "float8, one scale": rows("float8_e5m2", (9, 40), (1, 1), block_size=0),
    "float8, shared": rows("float8_e4m3fnuz", (3, 9, 40), (1, 1, 3), block_size=16, gather_axis=1, quantize_axis=2),
    "float4": rows("float4_e2m1fn", (9, 40), (9, 3), block_size=16),
}


def lstm(directions: int, columns: bool, dtype: type, **attributes: Any) -> Case:
    inputs, hidden = 5, 4
    scales = (directions, 4 * hidden) if columns else (directions,)
    point = np.zeros(scales, dtype) if dtype is np.int8 else np.full(scales, 128, dtype)
    return Case("DynamicQuantizeLSTM", [
        floats(7, 1, inputs), bytes_(directions, inputs, 4 * hidden, dtype=dtype) // 2, bytes_(directions, hidden, 4 * hidden, dtype=dtype) // 2,
        floats(directions, 8 * hidden), None, floats(directions, 1, hidden), None, None, floats(*scales, low=0.001, high=0.01), point,
        floats(*scales, low=0.001, high=0.01), point], {"hidden_size": hidden, **attributes}, outputs=3, constants=(1, 2, 8, 9, 10, 11),
        symbolic=False, tolerance=2e-3)     # a step of the quantized state is 1/255 of its range


RECURRENT = {
    "lstm": lstm(1, False, np.int8), "lstm, unsigned": lstm(1, False, np.uint8), "lstm, columns": lstm(1, True, np.int8),
    "lstm, both ways": lstm(2, False, np.int8, direction="bidirectional"), "lstm, back": lstm(1, False, np.uint8, direction="reverse"),
}

X5, B5, S5 = floats(2, 3, 6), floats(6), floats(2, 3, 6)
NHWC, WEIGHT = floats(1, 5, 4, 3), floats(2, 3, 1, 1)


def split_gelu(x: np.ndarray) -> np.ndarray:
    left, right = np.split(x.astype(np.float64), 2, axis=-1)
    erf = np.vectorize(__import__("math").erf)
    return (left * right * 0.5 * (1 + erf(right / np.sqrt(2)))).astype(np.float32)


# 8 bits, the blocks of places in turns; ONNX Runtime 1.31 leaves zero points out where there is a g_idx
ACTIVATIONS, CODES, SCALES, POINTS, ORDER = floats(3, 32), bytes_(5, 2, 16), floats(10), bytes_(10), np.arange(32, dtype=np.int32) % 2
ORDERED = (CODES.reshape(5, 32) - POINTS.reshape(5, 2)[:, ORDER].astype(np.float32)) * SCALES.reshape(5, 2)[:, ORDER]
# a w, where w [N, K] holds what the codes 1 and 15 stand for in turns, twice
BACKWARDS = floats(3, 5)
WITHOUT_PEER = {
    "bits, any order and points": Case("MatMulNBits", [ACTIVATIONS, CODES, SCALES, POINTS, ORDER],
                                       {"K": 32, "N": 5, "bits": 8, "block_size": 16}, constants=(1, 2, 3, 4), symbolic=False,
                                       expected=(ACTIVATIONS @ ORDERED.T,)),
    "bits, backwards": Case("MatMulBnb4", [BACKWARDS, np.full(50, 0x1F, np.uint8), np.full(7, 2, np.float32)],
                            {"K": 20, "N": 5, "block_size": 16, "quant_type": 1, "transB": 0}, constants=(1, 2), symbolic=False,
                            expected=(BACKWARDS @ np.tile(np.array([-1.3923856, 2], np.float32), (5, 10)),)),
    "bias add": Case("BiasAdd", [X5, B5, S5], expected=(X5 + B5 + S5,)),
    "split gelu": Case("BiasSplitGelu", [X5, B5], expected=(split_gelu(X5 + B5),)),
    "channels last": Case("NhwcConv", [NHWC, WEIGHT], symbolic=False,
                          expected=(np.einsum("nhwc,oc->nhwo", NHWC, WEIGHT[:, :, 0, 0]),)),
}
CASES = {**LAYERS, **ATTENTION, **{f"group, {k}": v for k, v in GROUPED.items()}, **{f"q {k}": v for k, v in QUANTIZED.items()},
         **{f"rows, {k}": v for k, v in TABLES.items()}, **RECURRENT, **WITHOUT_PEER}


@pytest.fixture(scope="module")
def peer() -> Any:
    """What ONNX Runtime computes, once a case."""
    known: dict[str, Any] = {}

    def compute(name: str) -> Any:
        if name not in known:
            case = CASES[name].peer or CASES[name]
            known[name] = case.expected or run_onnxruntime(model_of(case, symbolic=False), feeds_of(case))
        return known[name]
    return compute


@pytest.mark.parametrize("name", CASES)
def test_the_meaning_agrees_with_onnxruntime(name: str, peer: Any) -> None:
    case = CASES[name]
    for symbolic in (False, True)[:1 + case.symbolic]:
        graph = from_onnx(model_of(case, symbolic))
        assert_agrees(case, evaluate_graph(graph, list(feeds_of(case).values())), peer(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_machine_code_agrees_with_onnxruntime(name: str, peer: Any) -> None:
    case = CASES[name]
    made = tw.compile(from_onnx(model_of(case, case.symbolic)), options=tw.Options(cache=False, threads=1))(*feeds_of(case).values())
    assert_agrees(case, made if isinstance(made, tuple) else (made,), peer(name))


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES.values()} == set(CONTRIBUTED)


def imported(case: Case) -> None:
    from_onnx(model_of(case, symbolic=False))


REFUSALS = {
    "buffers shared by past and present": Case("Attention", QKV, {"num_heads": HEADS, "past_present_share_buffer": 1}),
    "quantized caches of keys and values": grouped(1, 7, [7], 8, k_quant_type="PER_TENSOR"),
    "caches of a sliding window": grouped(1, 7, [7], 8, sliding_window_cache=1, local_window_size=4),
    "packed batches": Case("RotaryEmbedding", [floats(2, 5, 12), whole(3, dtype=np.int64), *CACHES], {"is_packed_batching": 1}),
    "operands of int16": Case("MatMulInteger16", [bytes_(2, 3, dtype=np.uint16), bytes_(3, 2, dtype=np.int16)]),
    "weights of 2, 4 and 8 bits": Case("MatMulNBits", [floats(3, 40), bytes_(5, 3, 8), floats(15)],
                                       {"K": 40, "N": 5, "bits": 3, "block_size": 16}),
}
MISTAKES = {
    "do_rotary needs cos_cache": grouped(5, 0, [4], 5, do_rotary=1),
    "without a key the query must be": Case("MultiHeadAttention", [KV[0], None, None], {"num_heads": HEADS}),
    "do not make up": Case("Attention", QKV, {"num_heads": HEADS, "qkv_hidden_sizes": [12, 12, 9]}),
    "neither [batch] nor [2 batch]": Case("Attention", [*QKV, whole(1, 2, 3)], {"num_heads": HEADS}),
    "takes a tensor, a scale and a zero point each": Case("QLinearConcat", [real(0.5), byte(0), A8, real(0.5)], {"axis": 0}),
    "needs an even last axis": Case("BiasSplitGelu", [floats(2, 3), floats(3)]),
    "need the shape (9, 3), found f32[9, 2]": rows("int4", (9, 40), (9, 2), block_size=16),
    "need the shape (9, 3), found int4[1, 3]": rows("int4", (9, 40), (9, 3), (1, 3), block_size=16),
    "do not fit 3 blocks of 4 bits": rows("uint8", (9, 20), (9, 3), (9, 3), block_size=16),
    "bytes are gathered along the first axis": rows("uint8", (9, 20), (9, 3), block_size=16, gather_axis=1),
    "block_size must be a power of two, found 24": rows("int4", (9, 48), (9, 2), block_size=24),
    "block_size must be a power of two, found 0": rows("int4", (9, 48), (9, 1), block_size=0),
    "float8 or float4 without zero points": rows("float8_e5m2", (9, 40), (9, 3), (9, 3), block_size=16),
    "bits must be 2, 4 or 8, found 3": rows("uint8", (9, 20), (9, 3), bits=3, block_size=16),
    "quant_type must be 0 (FP4) or 1 (NF4), found 2": Case("MatMulBnb4", [floats(3, 20), bytes_(50), floats(7)],
                                                           {"K": 20, "N": 5, "block_size": 16, "quant_type": 2}),
    "need a segment_embedding": Case("QEmbedLayerNormalization", [
        whole(1, 2).reshape(1, 2), whole(0, 0).reshape(1, 2), bytes_(9, 4), bytes_(5, 4), None, bytes_(4), bytes_(4), None,
        real(1), real(1), None, real(1), real(1), byte(0), byte(0), None, byte(0), byte(0)]),
    "the input 'y_scale' is missing": Case("QLinearSigmoid", [A8, real(0.5), byte(0), None]),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_is_not_supported_is_said(message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        imported(REFUSALS[message])


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        imported(MISTAKES[message])


def test_the_length_of_the_present_may_be_data() -> None:
    """Where total_sequence_length is an input, the present holds the past and the query, which the call checks."""
    case = grouped(1, 7, [7, 7], 8, *CACHES, do_rotary=1)
    expected = run_onnxruntime(model_of(case, symbolic=False), feeds_of(case))
    case.constants = ()
    graph, feeds = from_onnx(model_of(case, symbolic=False)), feeds_of(case)
    assert_agrees(case, evaluate_graph(graph, list(feeds.values())), expected)
    with pytest.raises(IndexFailure):
        evaluate_graph(graph, list({**feeds, "x6": np.array(11, np.int32)}.values()))


def test_group_query_attention_with_open_sizes() -> None:
    """Batch, query, past and cache open, the lengths computed by the call: prompts and later steps by one graph."""
    case = grouped(1, 7, [7, 7, 7], 8, *CACHES, do_rotary=1)
    case.constants, case.numbers = (), (2, 8, 16, 32, 96)
    graph = from_onnx(model_of(case, symbolic=True))
    for batch, past in ((2, 7), (3, 5), (5, 9)):
        one = grouped(1, past, [past] * batch, past + 1, *CACHES, do_rotary=1)
        feeds = [x for x in one.inputs if x is not None]
        assert_agrees(one, evaluate_graph(graph, feeds), run_onnxruntime(model_of(one, symbolic=False), feeds_of(one)))
