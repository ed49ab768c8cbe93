"""Rows of the benchmark of GPUs for real models, batch 1 and 32: MiniLM and the ONNX models of `models.py`, in float32 as their files
have it.

What a model moves at least are its constants, inputs and results; what it computes, the multiply-adds of its contractions. There is no
peer: none of these models is at hand as a torch module.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import tilewright as tw
from benchmarks.gpu_cases import Case
from benchmarks.models import MODELS, Model, Shapes, bind_sizes
from tilewright.cost import contraction_depth
from tilewright.ir.graph import Graph
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.types import TensorType

BATCHES = (1, 32)
SEQUENCES = ("silero",)   # whose first axis is time
# what the emulation runs in seconds
TINY: dict[str, Shapes] = {
    "minilm": {"input_ids": (1, 4), "attention_mask": (1, 4)}, "classifier": {"x": (1, 3, 48, 192)},
    "silero": {"input": (2, 576), "h": (1, 1, 128), "c": (1, 1, 128)}}


def model_cases(tiny: bool) -> Iterator[Case]:
    """Each model, its graph read when its turn comes."""
    for model in MODELS:
        if tiny:
            if model.name in TINY:
                yield _case(model, 1, TINY[model.name])
        elif model.name in SEQUENCES:
            yield _case(model, 1, model.shapes)
        else:
            for batch in BATCHES:
                yield _case(model, batch, {name: (batch, *shape[1:]) for name, shape in model.shapes.items()})


def _case(model: Model, batch: int, shapes: Shapes) -> Case:
    graph = tw.from_onnx(model.path(), dims=bind_sizes(model.path(), shapes))

    def inputs() -> list[np.ndarray]:
        arrays = model.inputs(shapes)
        return [arrays[param.op.label] for param in graph.params if isinstance(param.op, Param)]

    operations, moved = _work(graph)
    return Case("models", f"{model.name} batch {batch}", graph, operations, moved, "f32", "none", given=inputs, checked=batch == 1)


def _work(graph: Graph) -> tuple[float, float]:
    """Operations of all contractions outside of loops, and bytes of constants, inputs and results."""
    operations = moved = 0.0
    for node in graph.nodes():
        if not isinstance(node.type, TensorType):
            continue
        depth = contraction_depth(node)
        if depth is not None:
            operations += 2.0 * float(np.prod(node.tensor.static_shape)) * int(depth)
        if isinstance(node.op, Const) or node in graph.params or node in graph.results:
            moved += float(np.prod(node.tensor.static_shape)) * node.dtype.bytes
    return operations, moved
