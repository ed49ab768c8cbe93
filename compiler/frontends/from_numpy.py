"""The NumPy front end: a Python function over arrays becomes a graph.

`trace(function, args)` follows the function once with traced arrays in place of the specs among its arguments; arrays
among them are constants. `trace_call(function, example)` is for calls without specs: every array is an input, each size of
2 or more becomes a symbol, and what the example's sizes decided on the way (two sizes that had to be equal, a comparison)
is kept in the `Traced`, which answers whether a later call may use the same graph.

Assumes: the function is a function of its arguments: what it prints or counts happens while tracing, perhaps several times
(each newly found equality of sizes starts the trace again). Python numbers, bools and strings among the arguments are part
of the program, not inputs: pass `np.float32(x)` or a 0-d array for a value that varies.

Guarantees: the graph gives NumPy's result (values, shape, dtype) for all sizes within the bounds of its symbols for which
the guards hold; a program that cannot be followed ends in a CompileError at the user's line.
"""

from __future__ import annotations

import array
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.dims import Dim, DimLike, Symbol, evaluate, substitute, symbol, symbols_of
from ..ir.errors import ArgumentError, CompileError, Loc
from ..ir.graph import Constant, Graph, Node
from ..ir.ops.control import Param
from ..ir.types import DType, TensorType, dtype_of
from .argument_trees import Leaf, Structure, flatten, joined, map_leaves
from .numpy_control import cond, scan, while_loop
from .numpy_dispatch import take_dispatches_on_indices
from .numpy_errors import TraceTypeError, behind
from .numpy_extras import (
    EXTRAS,
    erf,
    gelu,
    layer_norm,
    log_softmax,
    logsumexp,
    one_hot,
    relu,
    rms_norm,
    sigmoid,
    silu,
    softmax,
)
from .numpy_functions import RULES
from .numpy_masks import MaskedSelection, refusal
from .numpy_tracer import Guard, Restart, Size, Storage, TracedArray, Tracer, composed

MOST_RESTARTS = 200


# --- what a user writes ----------------------------------------------------------------------------------------------


class ArgumentSpec(Struct, frozen=True):
    """An input: shape (int, a name, or a Dim with bounds), dtype, and a name where the parameter's will not do."""

    shape: tuple[int | str | Dim, ...]
    dtype: DType
    name: str | None = None


def spec(shape: Any, dtype: Any, name: str | None = None) -> ArgumentSpec:
    """Describes an input. Sizes of one name are one size: spec(("batch", 784), "float32")."""
    items = (shape,) if isinstance(shape, (int, str, Dim, np.integer)) else tuple(shape)
    sizes: list[int | str | Dim] = []
    for axis, item in enumerate(items):
        if isinstance(item, (bool, np.bool_)) or not isinstance(item, (int, np.integer, str, Dim)):
            raise ArgumentError(f"spec: size {item!r} of axis {axis} is neither a number, a name nor a Dim",
                                hint='spec(("batch", 784), "float32"), or tw.symbol(name, lower, upper)')  # fmt: skip
        if isinstance(item, str) and not item.isidentifier():
            raise ArgumentError(f"spec: {item!r} is no name for a size", hint="use a Python identifier")
        if isinstance(item, (int, np.integer)) and item < 0:
            raise ArgumentError(f"spec: size {item} of axis {axis} is negative")
        sizes.append(int(item) if isinstance(item, np.integer) else item)
    if name is not None and not name.isidentifier():
        raise ArgumentError(f"spec: {name!r} is no name for an input", hint="use a Python identifier")
    try:
        kind = dtype_of(dtype)
    except CompileError as error:
        raise ArgumentError(f"spec: {error.message}") from None
    return ArgumentSpec(tuple(sizes), kind, name)


def trace(function: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
          name: str | None = None) -> Graph:  # fmt: skip
    """The graph of the function on these arguments: specs are inputs, all else is constant."""
    return trace_specs(function, args, kwargs, name, borrow=False).graph


def trace_specs(function: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
                name: str | None = None, borrow: bool = True) -> Traced:  # fmt: skip
    """What `trace` gives, with the structure of arguments and results. `borrow`: see `Traced.settle`."""
    call = _read_call(function, args, kwargs or {})
    named = _named_sizes(call.leaves)
    inputs: list[Input] = []
    for index, (leaf, label) in enumerate(zip(call.leaves, call.labels)):
        if isinstance(leaf.value, ArgumentSpec):
            shape = tuple(named[n] if isinstance(n, str) else n for n in leaf.value.shape)
            inputs.append(Input(leaf.value.name or label, TensorType(leaf.value.dtype, shape), index, False))
    _make_distinct(inputs)
    return _follow(function, call, inputs, None, name, borrow)


def trace_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None,
               name: str | None = None) -> Traced:  # fmt: skip
    """The graph of the function for calls like this one; see the module's text."""
    call = _read_call(function, args, kwargs or {})
    substitution: dict[str, DimLike] = {}
    for _ in range(MOST_RESTARTS):
        inputs, observed = _example_inputs(call, substitution)
        try:
            return _follow(function, call, inputs, observed, name, borrow=True)
        except Restart as restart:
            substitution = composed(substitution, restart.substitution)
    raise CompileError(f"{function}: sizes did not settle after {MOST_RESTARTS} traces",
                       hint="give the inputs: tw.compile(function, args=(tw.spec(...), ...))")  # fmt: skip


# --- the record of a trace -------------------------------------------------------------------------------------------


class Input(Struct, frozen=True):
    """An input of the graph: its name, type, which leaf of the arguments it is, and whether NumPy would see a scalar."""

    label: str
    type: TensorType
    leaf: int
    scalar: bool


class Traced(Struct, frozen=True, eq=False):
    """A graph with what a caller needs to use it.

    `inputs` say which leaf of the arguments feeds each param; `result` puts the graph's results together again; `key`
    and `matches` decide whether a call may use this graph: `key` (structure, static values, dtypes, ranks) must equal
    `call_key` of the call, and then the sizes must fit the inputs' types and the guards.
    """

    graph: Graph
    inputs: tuple[Input, ...]
    result: Structure
    key: tuple[Any, ...]
    guards: tuple[Guard, ...] = ()
    function: Callable[..., Any] = lambda: None
    constants: tuple[Constant, ...] = ()
    retrace: Callable[[], Traced] | None = None

    def settle(self) -> Graph:
        """The graph with constants of its own. Large ones are borrowed at first, for a graph that is found in the cache needs
        none; where the program itself changed one while it was traced, it is traced again with copies."""
        if all(constant.own() for constant in self.constants) or self.retrace is None:
            return self.graph
        return self.retrace().graph

    def arrays(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[np.ndarray]:
        """The arrays of a call in the order of the graph's params."""
        leaves = _read_call(self.function, args, kwargs or {}).leaves
        return [as_array(leaves[i.leaf].value) for i in self.inputs]

    def matches(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> bool:
        """Whether the graph is right for this call."""
        call = _read_call(self.function, args, kwargs or {})
        if call.key != self.key:
            return False
        return self.fits([as_array(call.leaves[i.leaf].value) for i in self.inputs])

    def fits(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether the sizes of these arrays are among those the graph is right for; dtypes and ranks are taken to agree."""
        binding: dict[str, int] = {}
        pending: list[tuple[DimLike, int]] = []
        for expected, found in zip(self.inputs, arrays):
            for size, extent in zip(expected.type.shape, found.shape):
                plain = _plain_symbol(size)
                if plain is None or plain.name in binding:
                    pending.append((size, extent))
                elif _admits(plain, extent):
                    binding[plain.name] = extent
                else:
                    return False
        return all(evaluate(s, binding) == n for s, n in pending) and all(g.holds(binding) for g in self.guards)

    def pack(self, results: Sequence[Any]) -> Any:
        """The graph's results as the function returns them."""
        return self.result.rebuild(iter(results))


def _plain_symbol(size: DimLike) -> Symbol | None:
    found = symbols_of(size)
    return found[0] if len(found) == 1 and str(size) == found[0].name else None


def _admits(size: Symbol, extent: int) -> bool:
    return size.lower <= extent and (size.upper is None or extent <= size.upper) and extent % size.multiple_of == 0


def call_key(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """What of a call must agree for a graph to be reused, beside sizes: hashable."""
    return _read_call(function, args, kwargs or {}).key


def is_array(value: Any) -> bool:
    """Whether an argument is an array (an input), not a static value of the program."""
    return isinstance(value, (np.ndarray, np.generic, memoryview, array.array)) or \
        hasattr(value, "__dlpack__") or hasattr(value, "__array_interface__")  # fmt: skip


def as_array(value: Any) -> np.ndarray:
    """The array behind an argument, without a copy."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise ArgumentError(f"an argument of type {type(value).__name__} is no array of the CPU: {error}") from None
    return np.asarray(value)


# --- reading a call --------------------------------------------------------------------------------------------------


class _Call(Struct):
    """Arguments taken apart: leaves with labels from the signature, and what puts them together again."""

    leaves: list[Leaf]
    labels: list[str]
    structure: Structure
    keywords: tuple[str, ...]
    count: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.structure, tuple(_leaf_key(leaf.value) for leaf in self.leaves))

    def with_leaves(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = self.structure.rebuild(iter(values))
        return args, kwargs


def _leaf_key(value: Any) -> Any:
    if isinstance(value, ArgumentSpec):
        return value
    if is_array(value):
        found = as_array(value)
        return ("array", found.dtype, found.ndim, isinstance(value, np.generic))
    if isinstance(value, float):
        return (float, value.hex())
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return (type(value), value)


def _read_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call:
    if not isinstance(args, (tuple, list)):
        raise ArgumentError(f"args must be a tuple of arguments, found {type(args).__name__}", hint="args=(x,) for one argument")
    names = _parameter_names(function, args, kwargs)
    leaves, structure = flatten((tuple(args), dict(kwargs)))
    labels = []
    for leaf in leaves:
        group, first, *rest = leaf.path
        labels.append(joined((names[first] if group == 0 else first, *rest)))
    return _Call(leaves, labels, structure, tuple(kwargs), len(args))


def _parameter_names(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return [f"argument{i}" for i in range(len(args))]
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{getattr(function, '__name__', function)}: {error}",
                            hint=f"the function is declared as {signature}") from None  # fmt: skip
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}{i}" for i in range(len(args) - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[: len(args)]


def _named_sizes(leaves: Sequence[Leaf]) -> dict[str, DimLike]:
    """One symbol for each name among the specs; a Dim of that name gives its bounds."""
    named: dict[str, Symbol] = {}
    plain: list[str] = []
    for leaf in leaves:
        if isinstance(leaf.value, ArgumentSpec):
            plain += [n for n in leaf.value.shape if isinstance(n, str)]
            for found in symbols_of(*(n for n in leaf.value.shape if isinstance(n, Dim))):
                if named.setdefault(found.name, found) != found:
                    raise ArgumentError(f"the size {found.name} is declared twice: {named[found.name].declaration()} and "
                                        f"{found.declaration()}", hint="use one tw.symbol for both")  # fmt: skip
    sizes: dict[str, DimLike] = {}
    for name in plain:
        known = named.get(name, Symbol(name))
        sizes[name] = symbol(known.name, known.lower, known.upper, known.multiple_of)
    return sizes


def _make_distinct(inputs: list[Input]) -> None:
    used: set[str] = set()
    for i, found in enumerate(inputs):
        label, count = found.label, 1
        while label in used:
            label, count = f"{found.label}_{count}", count + 1
        used.add(label)
        inputs[i] = Input(label, found.type, found.leaf, found.scalar)


def _example_inputs(call: _Call, substitution: Mapping[str, DimLike]) -> tuple[list[Input], dict[str, int]]:
    """Inputs with a symbol for each size of 2 or more, as replaced so far, and the example's sizes."""
    inputs: list[Input] = []
    for index, (leaf, label) in enumerate(zip(call.leaves, call.labels)):
        if is_array(leaf.value):
            example = as_array(leaf.value)
            try:
                kind = dtype_of(example.dtype)
            except CompileError as error:
                raise ArgumentError(f"argument {label}: {error.message}") from None
            inputs.append(Input(label, TensorType(kind, example.shape), index, isinstance(leaf.value, np.generic)))
    _make_distinct(inputs)
    observed: dict[str, int] = {}
    symbolic = []
    for found in inputs:
        shape: list[DimLike] = []
        for axis, extent in enumerate(found.type.static_shape):
            name = f"{found.label}_{axis}"
            if extent < 2:
                shape.append(extent)
                continue
            observed[name] = extent
            shape.append(substitute(symbol(name, 2), substitution))
        symbolic.append(Input(found.label, TensorType(found.type.dtype, tuple(shape)), found.leaf, found.scalar))
    return symbolic, observed


# --- following the function ------------------------------------------------------------------------------------------


def _follow(function: Callable[..., Any], call: _Call, inputs: Sequence[Input], observed: Mapping[str, int] | None,
            name: str | None, borrow: bool) -> Traced:  # fmt: skip
    tracer = Tracer(RULES, observed, borrow)
    title = _graph_name(function, name)
    loc = _function_loc(function)
    values = [_constant_view(leaf.value) for leaf in call.leaves]
    params: list[Node] = []
    for found in inputs:
        param = tracer.b.add(Param(found.label, found.type.dtype, found.type.shape), loc=loc)
        frozen = f"the input {found.label} is written in place, which would change the caller's array"
        params.append(param)
        values[found.leaf] = TracedArray(tracer, Storage(tracer.scope, param, frozen=frozen), scalar=found.scalar)
    args, kwargs = call.with_leaves(values)
    try:
        with take_dispatches_on_indices():
            returned = function(*args, **kwargs)
        leaves, structure = flatten(returned)
        results = [_result_node(tracer, leaf, loc, title) for leaf in leaves]
    except Exception as error:
        if tracer.learned:  # it may come from going on leniently; a true one comes again
            raise Restart(tracer.learned) from None
        ours = behind(error)
        if ours is None:
            raise
        raise ours from None
    if tracer.learned:
        raise Restart(tracer.learned)
    graph = Graph(title, params, results, _result_names(leaves))
    retrace = partial(_follow, function, call, inputs, observed, name, borrow=False) if borrow else None
    return Traced(graph, tuple(inputs), structure, call.key, tuple(dict.fromkeys(tracer.guards)), function, tracer.constants, retrace)


def _constant_view(value: Any) -> Any:
    """Arrays that are constants come read-only, so that tracing cannot change the user's data."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def _result_node(tracer: Tracer, leaf: Leaf, loc: Loc, title: str) -> Node:
    if isinstance(leaf.value, (TracedArray, Size)):
        return tracer.node(leaf.value)
    if isinstance(leaf.value, (np.ndarray, np.generic, bool, int, float)):
        return tracer.node(np.asarray(leaf.value))
    if isinstance(leaf.value, MaskedSelection):
        raise refusal(f"{title} returns a selection").at(loc)
    where = f" (at {joined(leaf.path)})" if leaf.path else ""
    raise TraceTypeError(f"{title} returns a {type(leaf.value).__name__}{where}, which is no array", loc=loc,
                         hint="return arrays, or tuples, lists and dicts of arrays")  # fmt: skip


def _result_names(leaves: Sequence[Leaf]) -> list[str]:
    names: list[str] = []
    for index, leaf in enumerate(leaves):
        plain = all(isinstance(key, int) for key in leaf.path)
        name = f"output{joined(leaf.path).lstrip('_')}" if plain and leaf.path else joined(leaf.path) if leaf.path else "output0"
        names.append(name if name not in names else f"{name}_{index}")
    return names


def _graph_name(function: Callable[..., Any], name: str | None) -> str:
    found = name or str(getattr(function, "__name__", type(function).__name__))
    return found if found.isidentifier() else "function"


def _function_loc(function: Callable[..., Any]) -> Loc:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return Loc(code.co_filename, code.co_firstlineno, function=code.co_name) if code is not None else Loc()


__all__ = [
    "EXTRAS", "ArgumentSpec", "Input", "Structure", "Traced", "as_array", "call_key", "cond", "erf", "gelu", "is_array",
    "layer_norm", "log_softmax", "logsumexp", "map_leaves", "one_hot", "relu", "rms_norm", "scan", "sigmoid", "silu",
    "softmax", "spec", "trace", "trace_call", "trace_specs", "while_loop",
]  # fmt: skip
