"""Reads an ONNX model into the graph IR: `from_onnx(path_or_bytes_or_ModelProto)`.

What it does: parses the protobuf (nothing else of the onnx package runs on the file), checks it, walks its nodes in
their order and calls one function of `onnx_ops/` for each. Sizes are followed through the model's shape arithmetic
(`onnx_ops/known_values.py`), so a Reshape by a computed shape gets sizes, not data. Local functions are inlined, nodes
that no output needs are left out, inputs that have an initializer are constants.

Dims: a symbolic dim of an input becomes a symbol of at least 1, named after the model's name for it (`dim_param`) or,
where it has none, `<input>_<axis>`; `dims` binds either name to a number, a `Dim` (which may allow 0 or state bounds)
or a new name. A tuple under the name of a small input of integers says what it holds; where it is not said and the model needs
it, it may follow from the shapes that the model declares (`onnx_contents.py`). Either way the call checks it.

Guarantees: a model that cannot be read ends in a CompileError that says what, where and what was expected; what is
valid but not supported in an UnsupportedError; all operators that are unknown are listed at once. Every node of the
graph carries the ONNX node's name as its location.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from ..ir.dims import Dim, DimLike
from ..ir.errors import CompileError, InternalError, Loc, UnsupportedError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Param
from ..ir.types import I64, TensorType
from ..library import cast, constant, reshape, scalar, size_value, slice_axis
from .onnx_calls import call_operator
from .onnx_contents import Contents, as_array, solved, symbols_for
from .onnx_dims import DimBinding, DimNames, identifier
from .onnx_files import (
    DEEPEST,
    Payloads,
    Source,
    check_names,
    declared_values,
    decode_text,
    domain_of,
    function_key,
    needed_nodes,
    node_name,
    opsets_of,
    read_model,
    reads,
    subgraphs,
    unknown_line,
)
from .onnx_limits import STEP, UNEXPECTED, CountingBuilder, Work, unexpected, with_short_texts, work_of
from .onnx_messages import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto
from .onnx_ops.context import Absent, Budget, Context, Counted, DecidedByData, Listed, Request, Traced, Undecided, Value, required
from .onnx_ops.known_values import KnownValues, may_hold_sizes
from .onnx_ops.table import DOMAINS
from .onnx_ops.tensors import MOST_AXES, Folder, checked_shape, decode_tensor, element_dtype
from .onnx_scopes import Body, Captures, Frame, Scope


def from_onnx(source: Source, dims: Mapping[str, DimBinding] | None = None,
              outputs: Sequence[str] | None = None) -> Graph:
    """The model as a graph. `dims` binds symbolic dims by name; `outputs` keeps only these, in this order."""
    model, label, folder, payloads = read_model(source)
    try:
        return _imported(model, label, folder, dict(dims or {}), payloads, outputs)
    except (CompileError, InternalError) as error:
        raise with_short_texts(error) from error.__cause__


def _imported(model: ModelProto, label: str, folder: Folder, dims: dict[str, DimBinding], payloads: Payloads,
              outputs: Sequence[str] | None) -> Graph:
    """The graph; where data decides what must be known, that of a second import with what it must hold. All share one budget."""
    importer = Importer(model, label, folder, dims, payloads)
    try:
        return importer.run(outputs)
    except DecidedByData as error:
        contents = found_contents(model, label, folder, dims, payloads, work=importer.work)
        if not contents:
            raise
        try:
            return Importer(model, label, folder, dims, payloads, contents, importer.work).run(outputs)
        except CompileError:
            raise error from None


def found_contents(model: ModelProto, label: str, folder: Folder, dims: dict[str, DimBinding], payloads: Payloads, *,
                   work: Work | None = None) -> dict[str, Contents]:
    """What inputs of the model must hold for its declared shapes to hold; empty where nothing follows."""
    prober = Prober(model, label, folder, dims, payloads, None, work)
    with suppress(CompileError, InternalError):     # sizes as far as it came may do
        prober.run(None)
    return prober.found()


MOST_UNDECIDED = 8      # Ifs inside the search for the side of another


class Importer:
    """One import: the model, its functions, the dims in use."""

    def __init__(self, model: ModelProto, label: str, folder: Folder, dims: dict[str, DimBinding], payloads: Payloads,
                 contents: Mapping[str, Contents] | None = None, work: Work | None = None) -> None:
        self.model = model
        self.contents = contents or {}
        self.label = label
        self.folder = folder
        self.payloads = payloads
        self.known = KnownValues()
        self.budget = Budget()
        self.left_over: list[tuple[Builder, Node]] = []
        self.undecided = 0
        self.work = work or work_of(model, label)
        self.functions = {function_key(f.domain, f.name, f.overload): f for f in model.functions}
        self.dims = DimNames(label, dims)

    def run(self, outputs: Sequence[str] | None) -> Graph:
        graph = self.model.graph
        opsets = self._opsets()
        check_names(graph, self.label, frozenset())
        wanted = self._wanted_outputs(graph, outputs)
        nodes = needed_nodes(graph.node, wanted)
        self._check_known_operators(nodes, opsets)
        builder = CountingBuilder(self.work, Loc(name=self.label))
        scope = Scope(builder)
        params = self._inputs(graph, builder, scope)
        self._initializers(graph, builder, scope, self.payloads)
        declared = declared_values(graph)
        self.dims.check_all_used(declared)
        self._run_nodes(nodes, Frame(scope, opsets, declared=declared), frozenset(wanted))
        results, names = self._flat_results(scope, wanted)
        return Graph(identifier(graph.name) or "model", params, results, names)

    def _opsets(self) -> dict[str, int]:
        opsets = opsets_of(self.model, self.label)
        if "" not in opsets and any(domain_of(n.domain) == "" for n in self.model.graph.node):
            raise CompileError(f"{self.label}: the model names no opset of the standard domain (opset_import)")
        return opsets

    def _wanted_outputs(self, graph: GraphProto, outputs: Sequence[str] | None) -> list[str]:
        own = [value.name for value in graph.output]
        if outputs is None:
            if not own:
                raise CompileError(f"{self.label}: the model has no outputs")
            return own
        made = {*own, *(name for n in graph.node for name in n.output if name), *(v.name for v in graph.input)}
        for name in outputs:
            if name not in made:
                raise CompileError(f"{self.label}: no value is called {name!r}; outputs are {', '.join(own)}")
        return list(outputs)

    def _inputs(self, graph: GraphProto, builder: Builder, scope: Scope) -> list[Node]:
        defaults = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        params = []
        for value in graph.input:
            if value.name in defaults:
                continue
            made, nodes = self._input(value.name, value.type, builder)
            scope.names[value.name] = made
            params += nodes
        return params

    def _input(self, name: str, type: TypeProto, builder: Builder) -> tuple[Value, list[Node]]:
        """The value of an input, and its parameters: one a tensor."""
        what = f"input {name!r}"
        if type.WhichOneof("value") == "optional_type":
            present = self.dims.count(f"{name}_present", f"{what} is optional: the call decides whether it is there (0 or 1)")
            return self._input(name, type.optional_type.elem_type, builder) if present else (Absent(), [])
        loc = Loc(name=f"{self.label}: {what}")
        if type.WhichOneof("value") == "sequence_type":
            length = self.dims.count(f"{name}_length", f"{what} is a sequence: the call decides how many elements it has")
            types = [self._input_type(f"{name}_{i}", type.sequence_type.elem_type, False) for i in range(length)]
            nodes = [builder.add(Param(f"{name}_{i}", t.dtype, t.shape), loc=loc) for i, t in enumerate(types)]
            return Listed(tuple(nodes), nodes[0].dtype if nodes else None), nodes
        found = self._input_type(name, type)
        node = builder.add(Param(name, found.dtype, found.shape), loc=loc)
        return self._with_contents(name, node, builder), [node]

    def _with_contents(self, name: str, node: Node, builder: Builder) -> Node:
        """The input, or the same where it holds what is said of it, which the call checks."""
        contents = self.dims.contents(name, node) or self.contents.get(name)
        if contents is None:
            return node
        flat = cast(builder, reshape(builder, node, (len(contents),)), I64)
        conditions = [scalar(builder, "eq", reshape(builder, slice_axis(builder, flat, 0, place, 1), ()), size_value(builder, n))
                      for place, n in enumerate(contents) if n is not None]
        condition = reduce(lambda x, y: scalar(builder, "and", x, y), conditions, constant(builder, True))
        checked = required(builder, node, condition)
        self.known.assume(checked, as_array(contents, node))
        self.left_over.append((builder, condition))     # for where only sizes hang on it
        return checked

    def _input_type(self, name: str, type: TypeProto, shared: bool = True) -> TensorType:
        """The type of an input that is a tensor. `shared`: dims of one name have one size."""
        what = f"{self.label}: input {name!r}"
        kind = type.WhichOneof("value")
        if kind != "tensor_type":
            if kind is None:
                raise CompileError(f"{what} has no type")
            raise UnsupportedError(f"{what} is a {kind.removesuffix('_type')}; only tensors, sequences of them and optional ones are "
                                   "supported as inputs")
        tensor = type.tensor_type
        dtype = element_dtype(tensor.elem_type, what)
        if not tensor.HasField("shape"):
            rank = self.dims.count(f"{name}_rank", f"input {name!r} has no shape, not even a rank: the call decides how many axes it has",
                                   MOST_AXES)
            open_dim = TypeProto().tensor_type.shape.dim.add()
            return TensorType(dtype, tuple(self.dims.size(open_dim, name, axis) for axis in range(rank)))
        numbers = [d.dim_value for d in tensor.shape.dim if d.WhichOneof("value") == "dim_value" and d.dim_value != -1]
        checked_shape(numbers, what)
        sizes = [self.dims.size(d, name, axis, shared) for axis, d in enumerate(tensor.shape.dim)]
        return TensorType(dtype, tuple(sizes))

    def _initializers(self, graph: GraphProto, builder: Builder, scope: Scope, payloads: Payloads) -> None:
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedError(f"{self.label}: initializer {name!r} is sparse, which is not supported")
        for number, tensor in enumerate(graph.initializer):
            array = decode_tensor(tensor, self.folder, self.label, payloads.get(number))
            builder.loc = Loc(name=f"{self.label}: initializer {tensor.name!r}")
            scope.names[tensor.name] = constant(builder, array)

    def _result(self, scope: Scope, name: str) -> Value:
        value = scope.find(name)
        if value is None:
            raise CompileError(f"{self.label}: output {name!r} is made by no node")
        return value

    def _flat_results(self, scope: Scope, wanted: Sequence[str]) -> tuple[list[Node], list[str]]:
        """The model's outputs with their names; each element of a sequence is one, `<output>_<number>`."""
        results: list[Node] = []
        names: list[str] = []
        for name in wanted:
            value = self._result(scope, name)
            if isinstance(value, Counted):
                raise value.refusal
            if isinstance(value, Absent) or (isinstance(value, Listed) and not value.elements):
                kind = "an optional value that is not there" if isinstance(value, Absent) else "a sequence without elements"
                raise UnsupportedError(f"{self.label}: output {name!r} is {kind}, which is not supported as an output")
            elements = value.elements if isinstance(value, Listed) else (value,)
            results += elements
            names += [f"{name}_{i}" for i in range(len(elements))] if isinstance(value, Listed) else [name]
        place = next((i for i, x in enumerate(results) if 0 not in x.shape), None)
        for builder, condition in self.left_over:
            if builder is scope.builder and place is not None:
                results[place] = required(builder, results[place], condition)
        return results, names

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _check_known_operators(self, nodes: Sequence[NodeProto], opsets: Mapping[str, int]) -> None:
        """UnsupportedError that lists every operator that nobody here knows, with the nodes that use it."""
        unknown: dict[str, list[str]] = {}
        seen: set[str] = set()
        stack = list(reversed(nodes))
        while stack:
            node = stack.pop()
            key = function_key(node.domain, node.op_type, node.overload)
            if key in self.functions:
                if key not in seen:
                    seen.add(key)
                    stack.extend(reversed(self.functions[key].node))
            elif node.op_type not in DOMAINS.get(domain_of(node.domain), {}):
                name = f"{node.domain}::{node.op_type}" if domain_of(node.domain) else node.op_type
                unknown.setdefault(name, []).append(node_name(node))
            for graph in subgraphs(node):
                stack.extend(reversed(graph.node))
        if unknown:
            lines = tuple(unknown_line(op, names) for op, names in sorted(unknown.items()))
            raise UnsupportedError(f"{self.label}: {len(unknown)} operator{'s are' if len(unknown) > 1 else ' is'} not "
                                   f"supported: {', '.join(sorted(unknown))}", notes=lines)

    def _run_nodes(self, nodes: Sequence[NodeProto], frame: Frame, results: frozenset[str]) -> None:
        used = Counter(name for node in nodes for name in reads(node))
        # what bodies read is looked through at each level once more
        self.work.spend(max(0, used.total() - sum(len(node.input) for node in nodes)))
        for place, node in enumerate(nodes):
            where = Loc(name=f"{self.label}: {frame.path}node '{node_name(node)}' ({node.op_type})")
            frame.scope.builder.loc = where
            self.work.spend(STEP)
            try:
                values = self._run_node(node, frame, lambda n: bool(n) and (used[n] > 0 or n in results))
            except Undecided as undecided:
                self._run_sides(undecided, nodes[place:], frame, results)
                return
            except CompileError as error:
                raise error.at(where) from error.__cause__
            except UNEXPECTED as error:
                raise unexpected(node.op_type, error).at(where) from error
            frame.scope.define(node.output, values)

    def _run_sides(self, undecided: Undecided, nodes: Sequence[NodeProto], frame: Frame, results: frozenset[str]) -> None:
        """Goes on with each side of an If, the first of the nodes: one of them must turn out to break a rule further on."""
        refusal = DecidedByData(undecided.message, loc=frame.scope.builder.loc, hint=undecided.hint)
        if self.undecided == MOST_UNDECIDED:
            raise refusal
        before = dict(frame.scope.names)
        admitted: list[dict[str, Value]] = []
        errors: list[CompileError] = []
        self.undecided += 1
        try:
            for taken in (True, False):
                frame.scope.names, frame.scope.builder.loc = dict(before), refusal.loc
                held = len(self.left_over)
                try:
                    frame.scope.define(nodes[0].output, undecided.side(taken))
                    self._run_nodes(nodes[1:], frame, results)
                    self._hold_ranks(frame, results)
                    admitted.append(frame.scope.names)
                except UnsupportedError as error:       # which does not say that the model breaks a rule
                    raise refusal from error
                except CompileError as error:
                    errors.append(error)
                    del self.left_over[held:]       # they belong to the side that is left
        finally:
            self.undecided -= 1
        if len(admitted) != 1:
            raise errors[0] if errors else refusal
        frame.scope.names = admitted[0]

    def _run_node(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool]) -> Sequence[Value | None]:
        inputs = [self._operand(node, name, frame) for name in node.input]
        key = function_key(node.domain, node.op_type, node.overload)
        if key in self.functions:
            return self._call_function(key, node, inputs, frame)
        domain = domain_of(node.domain)
        operator = DOMAINS.get(domain, {}).get(node.op_type)
        if operator is None:
            raise UnsupportedError(f"{node.op_type}: this operator is not supported")
        if domain not in frame.opsets:
            raise CompileError(f"{node.op_type}: the domain {node.domain or 'ai.onnx'!r} has no opset here (opset_import)")
        context = Context(frame.scope.builder, self.known, frame.opsets[domain], node.op_type, len(node.output),
                          tuple(map(is_used, node.output)), self._trace_bodies,
                          tuple(self._declared_shape(frame, name) for name in node.output), self.budget, self.left_over,
                          tuple(node.output))
        attributes = {a.name: a for a in node.attribute}
        decoded = {name: self._attribute(a, frame) for name, a in attributes.items()}
        made = call_operator(context, operator, inputs, {k: v for k, v in decoded.items() if v is not None})
        values: Sequence[Value | None] = made if isinstance(made, tuple) else (made,)
        for place, name in enumerate(node.output):
            if is_used(name) and (place >= len(values) or values[place] is None):
                context.unsupported(f"output {place} ({name!r}) is not supported")
        return values

    def _hold_ranks(self, frame: Frame, results: frozenset[str]) -> None:
        """Results have the ranks that the model declares; asked where these tell which of two ways is meant."""
        for name in results:
            found, declared = frame.scope.names.get(name), (frame.declared or {}).get(name)
            if isinstance(found, Node) and declared is not None and declared.type.tensor_type.HasField("shape"):
                rank = len(declared.type.tensor_type.shape.dim)
                if rank != found.rank:
                    raise CompileError(f"the result {name!r} is declared with {rank} axes, found {found.type}")

    def _declared_shape(self, frame: Frame, name: str) -> tuple[DimLike | None, ...] | None:
        """What the model declares of a value's shape; None for a size that is neither a number nor one of the inputs'."""
        value = (frame.declared or {}).get(name)
        if value is None or not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(self.dims.declared(dim, name, axis) for axis, dim in enumerate(value.type.tensor_type.shape.dim))

    def _operand(self, node: NodeProto, name: str, frame: Frame) -> Value | None:
        if not name:
            return None
        found = frame.scope.find(name)
        if found is None:
            raise CompileError(f"{node.op_type}: the input {name!r} is defined nowhere before this node")
        return found

    def _attribute(self, attribute: AttributeProto, frame: Frame) -> Any:
        """The attribute as a Python value; None where it refers to one that the function's caller left out."""
        if attribute.ref_attr_name:
            given = (frame.attributes or {}).get(attribute.ref_attr_name)
            if given is None:
                return None
            attribute = given
        match attribute.type:
            case AttributeProto.FLOAT:
                return float(attribute.f)
            case AttributeProto.INT:
                return int(attribute.i)
            case AttributeProto.STRING:
                return decode_text(attribute.s, attribute.name)
            case AttributeProto.TENSOR:
                return decode_tensor(attribute.t, self.folder, f"attribute {attribute.name!r}")
            case AttributeProto.GRAPH:
                return Body(attribute.g, frame, self.run_body)
            case AttributeProto.TYPE_PROTO:
                return attribute.tp
            case AttributeProto.FLOATS:
                return tuple(float(v) for v in attribute.floats)
            case AttributeProto.INTS:
                return tuple(int(v) for v in attribute.ints)
            case AttributeProto.STRINGS:
                return tuple(decode_text(v, attribute.name) for v in attribute.strings)
        kind = AttributeProto.AttributeType.Name(attribute.type) if attribute.type in \
            AttributeProto.AttributeType.values() else attribute.type
        raise UnsupportedError(f"attribute {attribute.name!r} of kind {kind} is not supported")

    # --- functions and bodies -----------------------------------------------------------------------------------------

    def _call_function(self, key: str, node: NodeProto, inputs: Sequence[Value | None],
                       frame: Frame) -> list[Value | None]:
        function: FunctionProto = self.functions[key]
        if key in frame.functions or frame.depth >= DEEPEST:
            raise CompileError(f"the function {key} calls itself: {' -> '.join((*frame.functions, key))}")
        if len(inputs) > len(function.input):
            raise CompileError(f"the function {key} takes {len(function.input)} inputs, is given {len(inputs)}")
        scope = Scope(frame.scope.builder)
        scope.names.update({name: x for name, x in zip(function.input, inputs) if x is not None})
        attributes = {a.name: a for a in function.attribute_proto}
        for a in node.attribute:
            given = (frame.attributes or {}).get(a.ref_attr_name) if a.ref_attr_name else a
            if given is not None:
                attributes[a.name] = given
        opsets = opsets_of(function, f"the function {key}")
        path = f"{frame.path}node '{node_name(node)}' / "
        inner = Frame(scope, {**frame.opsets, **opsets}, attributes, path, frame.depth + 1, (*frame.functions, key),
                      {value.name: value for value in function.value_info})
        self._run_nodes(function.node, inner, frozenset(function.output))
        return [scope.find(name) for name in function.output]

    def run_body(self, body: Body, scope: Scope, inputs: Sequence[Value]) -> list[Value]:
        """The body's nodes in this scope; its results."""
        graph, outer = body.graph, body.frame
        if outer.depth >= DEEPEST:
            raise CompileError(f"the subgraph {graph.name!r} lies deeper than {DEEPEST} levels")
        if len(inputs) != len(graph.input):
            raise CompileError(f"the subgraph {graph.name!r} takes {len(graph.input)} inputs, is given {len(inputs)}")
        scope.names.update({value.name: x for value, x in zip(graph.input, inputs)})
        kept, path = scope.builder.loc, f"{outer.path}subgraph '{graph.name}' / "
        self._initializers(graph, scope.builder, scope, {})
        wanted = [value.name for value in graph.output]
        frame = Frame(scope, outer.opsets, outer.attributes, path, outer.depth + 1, outer.functions, declared_values(graph))
        self._run_nodes(needed_nodes(graph.node, wanted), frame, frozenset(wanted))
        scope.builder.loc = kept
        return [self._result(scope, name) for name in wanted]

    def _trace_bodies(self, c: Context, requests: Sequence[Request]) -> tuple[list[Traced], list[Node]]:
        """Each body in a builder of its own, with the same captures as parameters."""
        outer: list[Node] = []
        traced: list[Traced] = []
        tables: list[Captures] = []
        for subgraph, given in requests:
            assert isinstance(subgraph, Body)
            builder = CountingBuilder(self.work, c.b.loc)
            params = [builder.add(Param(f"x{i}", t.dtype, t.shape)) if isinstance(t, TensorType)
                      else constant(builder, t) for i, t in enumerate(given)]
            captures = Captures(outer, self.known)
            results = self.run_body(subgraph, Scope(builder, subgraph.frame.scope, captured=captures), params)
            traced.append(Traced(builder, params, [], results))
            tables.append(captures)
        for body, captures in zip(traced, tables):
            body.captures = [captures.inside(body.builder, node) for node in outer]
        return traced, outer


class Prober(Importer):
    """An import with symbols for what small inputs of integers hold: only its sizes are looked at."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.symbols: dict[str, tuple[Dim, ...]] = {}
        self.frames: list[Frame] = []

    def _with_contents(self, name: str, node: Node, builder: Builder) -> Node:
        if self.dims.contents(name, node) is not None or not may_hold_sizes(node):
            return super()._with_contents(name, node, builder)
        symbols = symbols_for(node, sum(map(len, self.symbols.values())))
        self.symbols[name] = symbols
        self.known.assume(node, as_array(symbols, node))
        return node

    def _run_nodes(self, nodes: Sequence[NodeProto], frame: Frame, results: frozenset[str]) -> None:
        if not self.symbols:
            raise UnsupportedError(f"{self.label}: no input may hold sizes")
        if not frame.path:
            self.frames = [frame]
        super()._run_nodes(nodes, frame, results)

    def found(self) -> dict[str, Contents]:
        """What the inputs must hold for the sizes at the top of the model to be those that it declares."""
        equations: list[tuple[DimLike, DimLike]] = []
        for frame in self.frames:
            for name in frame.declared or {}:
                value, shape = frame.scope.names.get(name), self._declared_shape(frame, name)
                if isinstance(value, Node) and shape is not None and value.rank == len(shape):
                    equations += [(size, n) for size, n in zip(value.shape, shape) if n is not None and isinstance(size, Dim)]
        return solved(equations, self.symbols)
