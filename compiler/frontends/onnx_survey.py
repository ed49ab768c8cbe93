"""Everything in an ONNX model that can and cannot be imported: `survey(source)`, for `tilewright check`.

An import ends at the first node that is refused. A survey goes on behind it: a refused node's outputs become inputs of the
types that the file declares for them (`value_info`), and nodes that read one that is not fully declared are listed as not
checked. Nothing but our own importer looks at the file; no shapes are inferred by other packages.

Guarantees: a file that cannot be read at all ends in a CompileError, as in an import; a survey without refusals holds the
graph that an import gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from ..ir.dims import DimLike
from ..ir.errors import CompileError, InternalError, TilewrightError, UnsupportedError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Param
from ..ir.types import TensorType
from .from_onnx import Importer, found_contents
from .onnx_dims import DimBinding
from .onnx_files import Payloads, Source, domain_of, function_key, node_name, read_model, reads, subgraphs
from .onnx_limits import UNEXPECTED, shortened, unexpected, with_short_texts
from .onnx_messages import GraphProto, NodeProto, ValueInfoProto
from .onnx_ops.context import Absent, Undecided, Value
from .onnx_ops.table import DOMAINS, REFUSED
from .onnx_ops.tensors import element_dtype
from .onnx_scopes import Body, Frame, Scope

SUPPORTED, REFUSED_NODE, UNCHECKED = "supported", "refused", "not checked"
NOT_SUPPORTED = "this operator is not supported"


class NodeSurvey(Struct, frozen=True):
    """A node of the file: the functions and subgraphs around it, its operator with the domain, the dtypes of its outputs as far as
    they are known, whether it can be imported, and why not."""

    path: str
    name: str
    op: str
    dtypes: tuple[str, ...]
    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path}'{self.name}' ({self.op})"


class Survey(Struct, frozen=True):
    """A file: its nodes in order, what else of it is refused, and its graph where nothing is. `dims`: the sizes of its inputs that
    are left open, by the file's names."""

    label: str
    opsets: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, DimLike]
    nodes: tuple[NodeSurvey, ...]
    unneeded: int
    problems: tuple[str, ...]
    graph: Graph | None

    @property
    def refused(self) -> tuple[NodeSurvey, ...]:
        return tuple(node for node in self.nodes if node.status == REFUSED_NODE)

    @property
    def unchecked(self) -> tuple[NodeSurvey, ...]:
        return tuple(node for node in self.nodes if node.status == UNCHECKED)


def survey(source: Source, dims: Mapping[str, DimBinding] | None = None) -> Survey:
    """The whole file, whatever of it is refused."""
    read = read_model(source)
    arguments = (*read[:3], dict(dims or {}), read[3])
    found = _surveyed(Surveyor(*arguments))
    if found.graph is not None:
        return found
    contents = found_contents(*arguments)       # as an import does
    whole = _surveyed(Surveyor(*arguments, contents)) if contents else found
    return found if whole.graph is None else whole


def _surveyed(surveyor: Surveyor) -> Survey:
    model, label = surveyor.model, surveyor.label
    graph: Graph | None = None
    try:
        graph = surveyor.run(None)
    except _Unknown:        # an output hangs on what is refused
        graph = None
    except UnsupportedError as error:
        surveyor.problems.append(shortened(error.message))
    except (CompileError, InternalError) as error:
        raise with_short_texts(error) from error.__cause__
    nodes = tuple(surveyor.found.values())
    complete = not surveyor.problems and all(node.status == SUPPORTED for node in nodes)
    top_level = sum(1 for path, _ in surveyor.found if not path)
    return Survey(label, surveyor._opsets(), tuple(surveyor.inputs), tuple(value.name for value in model.graph.output),
                  surveyor.dims.sizes, nodes, len(model.graph.node) - top_level, tuple(surveyor.problems), graph if complete else None)


class _Unknown(UnsupportedError):
    """A value is needed whose type nobody knows, since what makes it was refused."""


class Surveyor(Importer):
    """An import that writes refusals down and goes on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: dict[tuple[str, tuple[str, ...]], NodeSurvey] = {}     # by where it stands and what it makes
        self.problems: list[str] = []
        self.inputs: list[str] = []
        self.root: Scope | None = None
        self.unknown: list[tuple[Scope, set[str]]] = []
        self.placeholders = 0

    # --- what stands before the nodes -----------------------------------------------------------------------------------

    def _check_known_operators(self, nodes: Sequence[NodeProto], opsets: Mapping[str, int]) -> None:
        """Each is met, and refused, where it stands."""

    def _inputs(self, graph: GraphProto, builder: Builder, scope: Scope) -> list[Node]:
        self.root = scope
        params: list[Node] = []
        defaults = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        for value in graph.input:
            if value.name in defaults:
                continue
            alone = GraphProto(input=[value])
            try:
                made = super()._inputs(alone, builder, scope)
            except UnsupportedError as error:
                self.problems.append(error.message)
                self._forget(scope, value.name)
                continue
            params += made
            self.inputs += [f"{node.op.label}: {node.type}" for node in made if isinstance(node.op, Param)]
        return params

    def _initializers(self, graph: GraphProto, builder: Builder, scope: Scope, payloads: Payloads) -> None:
        """All at once, since they are large; one by one where that fails."""
        try:
            super()._initializers(graph, builder, scope, payloads)
        except UnsupportedError:
            for number, (name, alone) in enumerate((
                    *((tensor.name, GraphProto(initializer=[tensor])) for tensor in graph.initializer),
                    *((tensor.values.name, GraphProto(sparse_initializer=[tensor])) for tensor in graph.sparse_initializer))):
                try:
                    super()._initializers(alone, builder, scope, {0: payloads[number]} if number in payloads else {})
                except UnsupportedError as error:
                    self.problems.append(error.message)
                    self._forget(scope, name)

    def _result(self, scope: Scope, name: str) -> Value:
        if self._is_unknown(scope, name):
            raise _Unknown(f"{name!r} is not known, since what makes it is refused")
        return super()._result(scope, name)

    # --- nodes ----------------------------------------------------------------------------------------------------------

    def _run_node(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool]) -> Sequence[Value | None]:
        try:
            values = self._run_known(node, frame, is_used)
        except Undecided:
            raise
        except (CompileError, InternalError, *UNEXPECTED) as error:
            if self.undecided:      # whether a rule is broken here decides an If: see `_run_sides`
                raise
            return self._go_on_behind(node, frame, is_used, error)
        self._forget_absent(node, frame, is_used, values)
        self._note(node, frame, values, SUPPORTED)
        return values

    def _run_known(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool]) -> Sequence[Value | None]:
        """The node's values, where all that it reads is known."""
        absent = next((name for name in reads(node) if self._is_unknown(frame.scope, name)), None)
        if absent is not None:
            raise _Unknown(f"it reads {absent!r}, whose type is not known, since what makes it is refused")
        return super()._run_node(node, frame, is_used)

    def _run_sides(self, undecided: Undecided, nodes: Sequence[NodeProto], frame: Frame, results: frozenset[str]) -> None:
        """As in an import; an If that cannot be decided is refused like any node, where no other is being decided."""
        before = dict(frame.scope.names)
        try:
            super()._run_sides(undecided, nodes, frame, results)
        except CompileError as error:
            if self.undecided:
                raise
            frame.scope.names = before
            read = {name for node in nodes for name in reads(node)} | results
            frame.scope.define(nodes[0].output, self._go_on_behind(nodes[0], frame, read.__contains__, error))
            self._run_nodes(nodes[1:], frame, results)

    def _go_on_behind(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool], error: Exception) -> Sequence[Value | None]:
        """Writes down why the node has no values, and gives it others if it declares them."""
        if isinstance(error, _Unknown) and self._known_by_name(node):
            status, reason = UNCHECKED, error.message
        elif isinstance(error, _Unknown):
            status, reason = REFUSED_NODE, _reason(node, UnsupportedError(NOT_SUPPORTED))
        else:
            refusal = error if isinstance(error, TilewrightError) else unexpected(node.op_type, error)
            status, reason = REFUSED_NODE, _reason(node, refusal)
        if isinstance(error, _Unknown):
            self._visit_bodies(node, frame)
        values = [self._placeholder(frame, name) if name and is_used(name) else None for name in node.output]
        self._forget_absent(node, frame, is_used, values)
        self._note(node, frame, values, status, reason)
        return values

    def _forget_absent(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool], values: Sequence[Value | None]) -> None:
        for place, name in enumerate(node.output):
            if name and is_used(name) and (place >= len(values) or values[place] is None):
                self._forget(frame.scope, name)

    def _known_by_name(self, node: NodeProto) -> bool:
        domain = domain_of(node.domain)
        return function_key(node.domain, node.op_type, node.overload) in self.functions or node.op_type in DOMAINS.get(domain, {})

    def _visit_bodies(self, node: NodeProto, frame: Frame) -> None:
        """Looks into the bodies of a node that cannot be gone through itself; nobody knows what they are given. What was looked into
        is not again, which would double at each level."""
        for graph in subgraphs(node):
            path = f"{frame.path}subgraph '{graph.name}' / "
            if any((path, tuple(inner.output)) in self.found for inner in graph.node):
                continue
            scope = Scope(frame.scope.builder, frame.scope)
            for value in graph.input:
                self._forget(scope, value.name)
            with suppress(CompileError):
                self.run_body(Body(graph, frame, self.run_body), scope, [Absent() for _ in graph.input])

    def _note(self, node: NodeProto, frame: Frame, values: Sequence[Value | None], status: str, reason: str = "") -> None:
        """A body may be gone through several times; what was refused once is refused."""
        key = frame.path, tuple(node.output)
        before = self.found.get(key)
        if before is not None and before.status != SUPPORTED:
            return
        domain = domain_of(node.domain)
        operator = f"{domain}::{node.op_type}" if domain else node.op_type
        dtypes = tuple(dict.fromkeys(str(v.dtype) for v in values if isinstance(v, Node) and isinstance(v.type, TensorType)))
        self.found[key] = NodeSurvey(frame.path, node_name(node), operator, dtypes, status, shortened(reason))

    # --- values that nobody can compute -----------------------------------------------------------------------------------

    def _forget(self, scope: Scope, name: str) -> None:
        for known, names in self.unknown:
            if known is scope:
                names.add(name)
                return
        self.unknown.append((scope, {name}))

    def _is_unknown(self, scope: Scope | None, name: str) -> bool:
        while scope is not None and self.unknown:
            if any(known is scope and name in names for known, names in self.unknown):
                return True
            if name in scope.names:
                return False
            scope = scope.parent
        return False

    def _placeholder(self, frame: Frame, name: str) -> Value | None:
        """An input in the place of a value, where the file declares its type with every size. (Made-up sizes would be refused
        further on, which says nothing of the file.)"""
        type = self._declared_type((frame.declared or {}).get(name), self._declared_shape(frame, name), name)
        if type is None or self.root is None:
            return None
        self.placeholders += 1
        label = f"{name} (placeholder {self.placeholders})"
        made = self.root.builder.add(Param(label, type.dtype, type.shape))
        self.root.names[label] = made
        found = frame.scope.find(label)         # in a body it is captured like any outer value
        return made if found is None and frame.scope.builder is self.root.builder else found

    @staticmethod
    def _declared_type(value: ValueInfoProto | None, shape: Sequence[DimLike | None] | None, name: str) -> TensorType | None:
        sizes = tuple(size for size in shape or () if size is not None)
        if value is None or shape is None or len(sizes) != len(shape):
            return None
        try:
            return TensorType(element_dtype(value.type.tensor_type.elem_type, name), sizes)
        except CompileError:
            return None


def _reason(node: NodeProto, error: TilewrightError) -> str:
    """The error in a line, without the place, which stands beside it."""
    known = REFUSED.get(node.op_type) if not domain_of(node.domain) else None
    return f"{error.message}: {known}" if known is not None and known not in error.message else error.message


__all__ = ["REFUSED_NODE", "SUPPORTED", "UNCHECKED", "NodeSurvey", "Survey", "survey"]
