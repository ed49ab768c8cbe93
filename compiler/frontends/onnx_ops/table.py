"""Every ONNX operator that is known, by domain: the joined tables of the operators' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import contraction, control, math, neural, quantization, recurrent, reduction, resize, shape

Operator = Callable[..., Any]

STANDARD: dict[str, Operator] = {
    **contraction.OPS, **control.OPS, **math.OPS, **neural.OPS, **quantization.OPS, **recurrent.OPS, **reduction.OPS,
    **resize.OPS, **shape.OPS,
}
# domain -> operators; the standard's own domain has two spellings
DOMAINS: dict[str, dict[str, Operator]] = {"": STANDARD, "ai.onnx": STANDARD}
