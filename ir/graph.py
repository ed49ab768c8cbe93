"""Ops, nodes, graphs and the builder.

A value is the node that defines it: `Node(op, inputs, type, loc)`, immutable, compared by identity. A node has one
value; several results are a tuple with projections (`Get`). Ops are frozen structs whose fields are the attributes;
the builder merges equal nodes by the type-tagged canonical encoding of op and inputs (never by `==`: 0.0 == -0.0 and
1 == True), except ops with an `effect`.

All walks are iterative: depth is never limited by the interpreter's stack.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from blake3 import blake3
from msgspec import Struct
from xxhash import xxh3_128

from .dims import Dim, DimLike, Symbol, symbols_of
from .errors import UNKNOWN, CompileError, Loc
from .types import DType, TensorType, TupleType, Type, dtype_of

Array = np.ndarray
Binding = Mapping[str, int]


class Sample(Struct, frozen=True):
    """An op with types to try it on; `ranges` bounds the values of an input (inclusive) where not any will do."""

    op: Op
    types: tuple[TensorType, ...]
    ranges: tuple[tuple[int, int] | None, ...] = ()


class Op(Struct, frozen=True, dict=True):
    """What a node does. Fields are attributes: int, float, bool, str, None, DType, Dim, Constant, Graph, tuples of them.

    `name`     its spelling in text (an op class may spell itself by an attribute, see Elementwise)
    `effect`   never merged, reordered or removed
    `stores`   takes dtypes that are only stored, since it looks at no value
    `injective` each output element reads one element of each input at a place that the index alone decides
    """

    name: ClassVar[str] = ""
    effect: ClassVar[bool] = False
    injective: ClassVar[bool] = False
    stores: ClassVar[bool] = False

    @property
    def spelling(self) -> str:
        return self.name

    def infer(self, *types: Type) -> Type:
        """The result's type; CompileError (without location) where the operands do not fit."""
        raise CompileError(f"{type(self).__name__} has no type rule")

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> Any:
        """The meaning, in NumPy. `binding` gives the symbolic sizes."""
        raise CompileError(f"{self.spelling} has no value of its own")

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        """Small well-typed uses, for tests and the fuzzer."""
        return ()


_hints: dict[type, dict[str, Any]] = {}


def attribute_names(op_class: type[Op]) -> tuple[str, ...]:
    """The attributes of an op, in the order of its fields."""
    return op_class.__struct_fields__


def attribute_defaults(op_class: type[Op]) -> dict[str, Any]:
    """Those attributes that need not be given, with what they are then."""
    defaults = op_class.__struct_defaults__
    return dict(zip(attribute_names(op_class)[len(attribute_names(op_class)) - len(defaults):], defaults))


def _attribute_hints(op_class: type[Op]) -> dict[str, Any]:
    known = _hints.get(op_class)
    if known is None:
        hints = get_type_hints(op_class)
        known = _hints[op_class] = {name: hints[name] for name in attribute_names(op_class)}
    return known


def attribute_problem(op: Op) -> str | None:
    """What is wrong with the kind of an attribute (a float where an int belongs), or None: what text may get wrong."""
    for name, hint in _attribute_hints(type(op)).items():
        value = getattr(op, name)
        if not _is_of(value, hint):
            wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            return f"{op.spelling}: attribute {name} must be {_PACKAGE_NAME.sub('', wanted)}, found {value!r:.80}"
    return None


_PACKAGE_NAME = re.compile(r"(\w+\.)+")


def _is_of(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(_is_of(v, parts[0]) for v in value)
        return len(value) == len(parts) and all(map(_is_of, value, parts))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


LARGE = 1 << 16  # bytes from which a digest follows the speed of memory


class Constant:
    """An immutable array, identified by the digest of its dtype, shape and bytes (taken when first asked for).

    `borrowed`: the memory is someone else's, who may write to it: `own` takes a copy and says whether the bytes are still
    those of the digest, which must have been asked for before anyone could write.
    """

    __slots__ = ("array", "dtype", "borrowed", "_digest")

    def __init__(self, array: Array, dtype: DType | None = None, borrowed: bool = False) -> None:
        array = np.asarray(array)
        if array.dtype.byteorder not in "=|":
            array = array.astype(array.dtype.newbyteorder("="))
        self.dtype = dtype_of(array.dtype) if dtype is None else dtype
        if array.dtype != self.dtype.numpy:
            raise CompileError(f"a constant of {self.dtype} is given as {array.dtype}")
        if not array.flags.c_contiguous:
            array = array.copy(order="C")
        self.array = array.view()
        self.array.flags.writeable = False
        self.borrowed = borrowed
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        if self._digest is None:
            # 128 bits tell constants apart; nobody gains by weights that are made to collide in a cache of their own
            state = xxh3_128() if self.array.nbytes >= LARGE else blake3()
            state.update(f"{self.dtype}{self.array.shape}".encode())
            if self.array.size:
                state.update(self.array.reshape(-1).view(np.uint8).data)
            self._digest = state.hexdigest()
        return self._digest

    def own(self) -> bool:
        """Takes a copy of borrowed memory; False, and nothing is taken, where it changed since its digest was."""
        if not self.borrowed:
            return True
        copy = Constant(self.array.copy(), self.dtype)
        if copy.digest != self.digest:
            return False
        self.array, self.borrowed = copy.array, False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and (self.array is other.array or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Constant({self.dtype}{list(self.array.shape)} #{self.digest[:8]})"


Key = tuple[bytes, tuple[int, ...]]  # an op's encoding, and which nodes it is applied to


class Node(Struct, frozen=True, eq=False, weakref=True):
    """One value: what computes it, from what, its type, and where the user wrote it.

    `key`: what a builder knows it by, where one made it. It holds as long as the node does, which keeps its operands.
    """

    op: Op
    inputs: tuple[Node, ...]
    type: Type
    loc: Loc = UNKNOWN
    key: Key | None = None

    @property
    def tensor(self) -> TensorType:
        """The type as a tensor's; CompileError for a tuple."""
        if not isinstance(self.type, TensorType):
            raise CompileError(f"{self.op.spelling}: a tensor is needed here, found {self.type}", loc=self.loc)
        return self.type

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def rank(self) -> int:
        return len(self.tensor.shape)

    def __repr__(self) -> str:
        return f"<{self.op.spelling}: {self.type}>"


class Graph:
    """A function from `params` to `results`. Immutable; everything reachable from the results belongs to it."""

    __slots__ = ("name", "params", "results", "result_names", "_nodes", "_fingerprint")
    text: ClassVar[Callable[[Graph], str]] = repr  # that of ir/printer.py, which sets it: ir/ops/ brings it in

    def __init__(self, name: str, params: Sequence[Node], results: Sequence[Node],
                 result_names: Sequence[str] | None = None) -> None:
        self.name = name
        self.params = tuple(params)
        self.results = tuple(results)
        names = result_names if result_names is not None else [f"output{i}" for i in range(len(self.results))]
        self.result_names = tuple(names)
        if len(self.result_names) != len(self.results):
            raise CompileError(f"graph {name}: {len(self.results)} results but {len(self.result_names)} names")
        self._nodes: tuple[Node, ...] | None = None
        self._fingerprint: str | None = None

    def nodes(self) -> tuple[Node, ...]:
        """Every node once, operands before users: params first, then in the order of first need."""
        if self._nodes is None:
            self._nodes = tuple(_post_order(self.params, self.results))
        return self._nodes

    def users(self) -> dict[Node, list[Node]]:
        """For each node the nodes that read it (once per operand position)."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes()}
        for node in self.nodes():
            for value in node.inputs:
                found[value].append(node)
        return found

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return symbols_of(*(d for p in self.params for d in p.shape))

    @property
    def fingerprint(self) -> str:
        """Digest of everything that gives the graph its meaning: ops, attributes, types, names of params and results."""
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self)
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and (self is other or self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __str__(self) -> str:
        return Graph.text(self)

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.nodes())} nodes>"


def _post_order(params: Sequence[Node], results: Sequence[Node]) -> list[Node]:
    order = list(dict.fromkeys(params))
    done = set(order)
    for result in results:
        stack = [result]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            waiting = [i for i in node.inputs if i not in done]
            if waiting:
                stack += reversed(waiting)
                continue
            stack.pop()
            done.add(node)
            order.append(node)
    return order


def encode(value: Any) -> bytes:
    """Canonical, type-tagged bytes of an attribute: equal bytes exactly when the attributes mean the same."""
    found = _ENCODERS.get(type(value))
    if found is None:
        found = next((encoder for known, encoder in list(_ENCODERS.items()) if isinstance(value, known)), None)
        if found is None:
            raise CompileError(f"an attribute of type {type(value).__name__} cannot be part of an op: {value!r}")
        _ENCODERS[type(value)] = found  # a subclass: an op, a kind of size
    return found(value)


def _encode_text(value: str) -> bytes:
    raw = value.encode()
    return b"s%d;" % len(raw) + raw


@lru_cache(maxsize=4096)
def _encode_dim(size: Dim) -> bytes:
    text = "|".join([str(size), *(s.declaration() for s in symbols_of(size))]).encode()
    return b"d%d;" % len(text) + text


def encode_op(op: Op) -> bytes:
    """The encoding of an op, kept with it: passes hand the same ops from graph to graph."""
    known: bytes | None = op.__dict__.get("_encoded")
    if known is not None:
        return known
    kind = type(op)
    attributes = [encode(getattr(op, name)) for name in kind.__struct_fields__]
    encoded = op.__dict__["_encoded"] = b"%s{%s}" % (kind.__name__.encode(), b"".join(attributes))
    return encoded


def _encode_tuple(values: tuple[Any, ...]) -> bytes:
    # sizes and axes, which most are, without a call for each
    return b"(%s)" % b"".join([b"i%d;" % value if type(value) is int else encode(value) for value in values])


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    tuple: _encode_tuple,
    bool: lambda value: b"b1" if value else b"b0",
    int: lambda value: b"i%d;" % value,
    Dim: _encode_dim,
    type(None): lambda value: b"n",
    float: lambda value: b"f" + struct.pack("<d", value),
    str: _encode_text,
    DType: lambda value: b"t" + value.name.encode() + b";",
    Constant: lambda value: b"c" + value.digest.encode(),
    Graph: lambda value: b"g" + value.fingerprint.encode(),
    TensorType: lambda value: b"T" + encode(value.dtype) + encode(value.shape),
    TupleType: lambda value: b"U" + encode(value.items),
    Op: encode_op,
}


def _fingerprint(graph: Graph) -> str:
    state = blake3()
    number: dict[int, int] = {}
    for node in graph.nodes():
        number[id(node)] = len(number)
        state.update(encode_op(node.op))  # types follow from ops and operands
        state.update(str([number[id(i)] for i in node.inputs]).encode())
    ends = [number[id(r)] for r in graph.results]
    state.update(f"{graph.name} {[number[id(p)] for p in graph.params]} {ends} {graph.result_names}".encode())
    return state.hexdigest()


class Builder:
    """Makes nodes: infers types, reports errors at their place, merges equal nodes. Lives as long as one pass."""

    def __init__(self, loc: Loc = UNKNOWN) -> None:
        self._known: dict[Key, Node] = {}
        self.loc = loc

    def add(self, op: Op, *inputs: Node, loc: Loc | None = None) -> Node:
        """The node of `op` on `inputs`. CompileError with location and operands where the types do not fit."""
        where = self.loc if loc is None else loc
        key = None
        if not op.effect:
            key = (encode_op(op), tuple(map(id, inputs)))
            known = self._known.get(key)
            if known is not None:
                return known
        try:
            type = op.infer(*(i.type for i in inputs))
        except CompileError as error:
            if not error.notes:
                error.notes = tuple(f"operand {i}: {n.type}   {n.op.spelling}  {n.loc}" for i, n in enumerate(inputs))
            error.at(where)
            raise
        node = Node(op, inputs, type, where, key)
        if key is not None:
            self._known[key] = node
        return node

    def keep(self, node: Node) -> Node:
        """Takes a node of another builder as it is (its inputs must be known here), or an equal one made before."""
        key = node.key
        if key is None:
            if node.op.effect:
                return node
            key = (encode_op(node.op), tuple(map(id, node.inputs)))
        return self._known.setdefault(key, node)

    def renew(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        """The node on other operands, of the types that its own have: its type stays, which takes long to infer."""
        if node.op.effect:
            return Node(node.op, inputs, node.type, node.loc)
        key = (encode_op(node.op), tuple(map(id, inputs)))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Node(node.op, inputs, node.type, node.loc, key)
        return known
