"""Calls the function of an ONNX operator with a node's inputs and attributes, all of which it must know.

Assumes that an operator's parameters are annotated as `onnx_ops/context.py` says. Guarantees: an input or attribute that the
function does not take, that is missing, or that is of the wrong kind ends in a CompileError or an UnsupportedError before the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.graph import Node
from .onnx_ops.context import Absent, Context, Counted, Listed, Operator, Value
from .onnx_scopes import Body


class Signature(Struct, frozen=True):
    """What an operator's function takes: inputs by name, whether more follow (perhaps absent ones), attributes by kind."""

    inputs: tuple[str, ...]
    required: frozenset[str]
    variadic: bool
    gaps: bool
    attributes: Mapping[str, str]
    required_attributes: frozenset[str]
    wide: tuple[bool, ...]      # which inputs may be sequences and optional values, the variadic ones last


@cache
def signature_of(operator: Operator) -> Signature:
    inputs: list[str] = []
    required: set[str] = set()
    variadic, gaps, rest_is_wide = False, False, False
    wide: list[bool] = []
    attributes: dict[str, str] = {}
    needed: set[str] = set()
    for parameter in list(inspect.signature(operator).parameters.values())[1:]:
        kind = str(parameter.annotation)
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic, gaps, rest_is_wide = True, "None" in kind, "Value" in kind
        elif parameter.kind is parameter.KEYWORD_ONLY:
            attributes[parameter.name] = kind
            if parameter.default is parameter.empty:
                needed.add(parameter.name)
        elif parameter.kind is not parameter.VAR_KEYWORD:
            inputs.append(parameter.name)
            wide.append("Value" in kind)
            if parameter.default is parameter.empty and "None" not in kind:
                required.add(parameter.name)
            attributes[parameter.name] = kind       # some opsets give an input as an attribute
    return Signature(tuple(inputs), frozenset(required), variadic, gaps, attributes, frozenset(needed), (*wide, rest_is_wide))


def _all(kinds: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(isinstance(e, kinds) for e in v)


# operators that take the narrow formats, which are only stored
TAKES_STORED = frozenset((
    "Cast", "CastLike", "Concat", "DequantizeLinear", "Expand", "Flatten", "Gather", "GatherBlockQuantized", "GatherElements", "GatherND",
    "Identity", "QuantizeLinear", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"))

# a part of an annotation -> what it admits as an attribute
KINDS: dict[str, Callable[[Any], bool]] = {
    "Sequence[int]": _all(int), "tuple[int, ...]": _all(int), "Sequence[float]": _all((int, float)),
    "Sequence[str]": _all(str), "Integers": lambda v: isinstance(v, int) or _all(int)(v),
    "Subgraph": lambda v: isinstance(v, Body), "Array": lambda v: isinstance(v, np.ndarray),
    "object": lambda v: True,
    "float": lambda v: isinstance(v, float), "str": lambda v: isinstance(v, str), "int": lambda v: isinstance(v, int),
}


def call_operator(c: Context, operator: Operator, inputs: Sequence[Value | None], attributes: Mapping[str, Any]) -> Any:
    """Calls the function with the node's inputs and attributes, all of which it must know."""
    signature = signature_of(operator)
    given = list(inputs)
    stored = next((x for x in inputs if isinstance(x, Node) and x.dtype.is_stored), None)
    if stored is not None and c.op_type not in TAKES_STORED:
        c.unsupported(f"values of {stored.dtype} are moved, cast, quantized and dequantized, not computed with",
                      hint="cast them first")
    while given and given[-1] is None:
        given.pop()
    if len(given) > len(signature.inputs) and not signature.variadic:
        c.fail(f"takes at most {len(signature.inputs)} inputs, found {len(given)}")
    for place, name in enumerate(signature.inputs):
        if name in signature.required and (place >= len(given) or given[place] is None) and name not in attributes:
            c.fail(f"the input '{name}' is missing")
    if not signature.gaps and any(x is None for x in given[len(signature.inputs):]):
        c.fail("an input in a list of inputs is missing")
    for place, given_value in enumerate(given):
        if isinstance(given_value, (Listed, Counted, Absent)) and not signature.wide[min(place, len(signature.inputs))]:
            kind = "an empty optional value" if isinstance(given_value, Absent) else "a sequence"
            c.fail(f"input {place} is {kind}; a tensor is needed")
    for name, value in attributes.items():
        _check_attribute(c, signature, name, value, len(given))
    missing = sorted(signature.required_attributes - set(attributes))
    if missing:
        c.fail(f"the attribute '{missing[0]}' is missing")
    return operator(c, *given, **attributes)


def _check_attribute(c: Context, signature: Signature, name: str, value: Any, given: int) -> None:
    if name not in signature.attributes:
        c.unsupported(f"the attribute '{name}' is not supported")
    if name in signature.inputs and signature.inputs.index(name) < given:
        c.fail(f"'{name}' is given as an attribute and as an input")
    annotation = signature.attributes[name]
    if not any(KINDS[part](value) for part in annotation.split(" | ") if part in KINDS):
        c.fail(f"the attribute '{name}' has the wrong kind: {str(value)[:60]} for {annotation}")
