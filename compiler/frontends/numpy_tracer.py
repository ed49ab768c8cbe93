"""The traced array, symbolic sizes as a program sees them, and the tracer that turns operations on them into nodes.

A `TracedArray` follows NumPy's meaning of an array: it is a view (a chain of steps) of a `Storage`, whose node is replaced
by every write, so that `y = x[1:3]; y[0] = 5` changes x. A `Size` is a symbolic dim as `x.shape` gives it: it computes
like a Python integer, and its comparisons answer only what holds for every size, or what a recorded guard makes hold.

What the operations mean stands elsewhere, in the `Rules` that the tracer is given. The tracer keeps one builder for each
nested body (`Scope`); a value of an outer scope that a body reads becomes a capture of that body. Every entry from user
code goes through `Tracer.call`, which puts the user's line on nodes and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct, field

from .. import library
from ..ir.dims import Dim, DimLike
from ..ir.errors import Loc, TilewrightError, caller_loc
from ..ir.graph import Builder, Constant, Node
from ..ir.ops.control import Const, Param
from ..ir.types import DType, TensorType, dtype_of
from .numpy_errors import (
    NO_VALUES,
    TraceAttributeError,
    TraceError,
    TraceTypeError,
    TraceValueError,
    conversion_error,
    translated,
)
from .numpy_sizes import Guard, LenientBuilder, Restart, SizeKnowledge, Substitution, composed, shape_text
from .numpy_views import C_LAYOUT, UNKNOWN_LAYOUT, Layout, Repeated, Step, read_through, write_through

SMALL = 4096  # bytes of a constant that are copied sooner than borrowed


class Rules(Struct):
    """What operations mean: handlers for ufuncs, NumPy functions and indexing, given to the tracer by its maker."""

    ufunc: Callable[..., Any]
    functions: Mapping[Callable[..., Any], Callable[..., Any]]
    get_item: Callable[..., Any]
    set_item: Callable[..., None]
    methods: Mapping[str, Callable[..., Any]]
    ordered: frozenset[Callable[..., Any]]  # functions whose copies are in C order whatever their operands are


class Scope(Struct, eq=False):
    """A graph under construction. `captures` maps a node of the enclosing scope to the param that stands for it."""

    builder: Builder
    captures: dict[Node, Node] = field(default_factory=dict)
    open: bool = True

    def capture(self, node: Node) -> Node:
        """The value of an enclosing scope inside this one."""
        if not node.inputs and not isinstance(node.op, Param):
            return self.builder.add(node.op, loc=node.loc)
        if node not in self.captures:
            op = Param(f"capture{len(self.captures)}", node.dtype, node.shape)
            self.captures[node] = self.builder.add(op, loc=node.loc)
        return self.captures[node]


class Storage(Struct, eq=False):
    """The memory behind an array and its views. `frozen` says why it must not be written."""

    scope: Scope
    node: Node
    version: int = 0
    frozen: str = ""


class Tracer(SizeKnowledge):
    """State of one trace. `observed` holds the example's sizes by symbol; None where sizes come from specs. `borrow`: large
    constants are not copied; who uses them makes sure that they did not change (`Constant.own`)."""

    def __init__(self, rules: Rules, observed: Mapping[str, int] | None = None, borrow: bool = False) -> None:
        super().__init__(observed)
        self.rules = rules
        self.loc = Loc()
        self.scopes: list[Scope] = [self.new_scope()]
        self._depth = 0
        self.borrow = borrow
        self._constants: dict[str, Constant] = {}

    @property
    def constants(self) -> tuple[Constant, ...]:
        """All constants met so far."""
        return tuple(self._constants.values())

    # --- entry from user code ---

    def call(self, rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`rule(tracer, ...)` with the user's line on new nodes; whatever NumPy complains of becomes an error of ours."""
        if self._depth:
            return rule(self, *args, **kwargs)
        self.locate()
        self._depth += 1
        try:
            return rule(self, *args, **kwargs)
        except TilewrightError as error:
            raise error.at(self.loc) from None
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise translated(error).at(self.loc) from None
        finally:
            self._depth -= 1

    def locate(self) -> Loc:
        """Makes the user's current line the place of new nodes."""
        self.loc = caller_loc(2)
        for scope in self.scopes:
            scope.builder.loc = self.loc
        return self.loc

    def in_user_code(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function of the user (a body) from within a rule: its operations have lines of their own."""
        depth, self._depth, loc = self._depth, 0, self.loc
        try:
            return function(*args)
        finally:
            self._depth = depth
            self.loc = loc
            for scope in self.scopes:
                scope.builder.loc = loc

    # --- scopes ---

    def new_scope(self) -> Scope:
        return Scope(LenientBuilder(self.learned, self.loc))

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    @property
    def b(self) -> Builder:
        """The builder of the innermost scope."""
        return self.scopes[-1].builder

    def bring(self, node: Node, owner: Scope) -> Node:
        """The value of `owner`'s scope in the current one."""
        if owner is self.scope:
            return node
        if not owner.open or owner not in self.scopes:
            raise TraceError(
                "a value computed inside the body of tw.cond, tw.while_loop or tw.scan is used outside of it",
                hint="return it from the body",
            )
        for scope in self.scopes[self.scopes.index(owner) + 1 :]:
            node = scope.capture(node)
        return node

    # --- values ---

    def node(self, value: Any, dtype: DType | None = None) -> Node:
        """The value as a node of the current scope, cast to `dtype` where one is given."""
        if isinstance(value, Node):
            found = value
        elif isinstance(value, TracedArray):
            found = self.bring(value.read(self), value.storage.scope)
        elif isinstance(value, Size):
            self.check_owner(value.tracer)
            found = library.size_value(self.b, value.dim)
        else:
            if dtype is not None and isinstance(value, (bool, int, float)):
                with np.errstate(all="ignore"):  # a Python number past the range of a float is infinity
                    return library.constant(self.b, np.asarray(value), dtype)
            found = self.b.add(Const(self.constant(np.asarray(value))))
        return found if dtype is None else library.cast(self.b, found, dtype)

    def constant(self, array: np.ndarray) -> Constant:
        """The array as it is now. It is copied or borrowed: a program may change its concrete arrays later on."""
        if array.dtype == object:
            raise TraceTypeError(
                "an array of Python objects (or an irregular nested list) has no place in a compiled program",
                hint="join traced values with np.stack or np.concatenate; give numbers a NumPy dtype",
            )
        try:
            dtype = dtype_of(array.dtype)
        except TilewrightError as error:
            raise TraceTypeError(error.message) from None
        made = Constant(array, dtype, borrowed=not _is_frozen(array))
        known = self._constants.get(made.digest)
        if known is not None:
            return known
        if not self.borrow or array.nbytes < SMALL:
            made.own()
        self._constants[made.digest] = made
        return made

    def array(self, node: Node, scalar: bool = False) -> TracedArray:
        """A fresh array that holds the node's value; `scalar`: NumPy would give an immutable scalar."""
        return TracedArray(self, Storage(self.scope, node), scalar=scalar)

    def as_array(self, value: Any) -> Any:
        return value if isinstance(value, TracedArray) else self.array(self.node(value))

    def weak(self, node: Node, kind: type) -> WeakScalar:
        """A scalar that promotes like a Python int or float."""
        return WeakScalar(self, Storage(self.scope, node), kind)

    def assign(self, target: TracedArray, value: Node) -> None:
        """Writes a node of the target's shape and dtype into it and so into everything that shares its storage."""
        storage = target.storage
        if target.scalar:
            raise TraceTypeError(f"a NumPy scalar ({target.dtype}) does not support item assignment")
        if any(isinstance(step, Repeated) for step in target.path):
            raise TraceValueError("assignment destination is read-only: it is a broadcast", hint="copy it first: x = x.copy()")
        if storage.frozen:
            raise TraceValueError(storage.frozen, hint="copy it first: x = x.copy()")
        if storage.scope is not self.scope:
            raise TraceError(
                "the body of tw.cond, tw.while_loop or tw.scan writes into an array from outside of it",
                hint="pass the array as an operand or state and return the changed one",
            )
        if target.uncertain:
            raise TraceError(
                "whether this array shares memory with the one it was reshaped from depends on the memory layout",
                hint="make it an array of its own before writing: x = x.copy()",
            )
        storage.node = write_through(self.b, storage.node, target.path, value) if target.path else value
        storage.version += 1

    # --- sizes ---

    def check_owner(self, tracer: Tracer) -> None:
        if tracer is not self:
            raise TraceError("a traced value of another compilation is used here; it has outlived its function")

    def sizes(self, shape: Sequence[DimLike]) -> tuple[Any, ...]:
        """A shape as user code sees it."""
        return tuple(n if isinstance(n, int) else Size(self, n) for n in shape)


def _is_frozen(array: np.ndarray) -> bool:
    """Whether nobody can write to the array's memory, unless by making it writeable again."""
    found: Any = array
    while isinstance(found, np.ndarray):
        if found.flags.writeable:
            return False
        found = found.base
    return found is None or isinstance(found, bytes)


def as_dim(value: Any) -> DimLike | None:
    """A size as the IR has it; None for what is no size."""
    if isinstance(value, Size):
        return value.dim
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    return value if isinstance(value, Dim) else None


class Size:
    """A symbolic size in user code: computes like a Python integer, becomes a value where it meets arrays."""

    __slots__ = ("tracer", "dim")

    def __init__(self, tracer: Tracer, dim: Dim) -> None:
        self.tracer = tracer
        self.dim = dim

    def _exact(self, other: Any, function: Callable[[DimLike, DimLike], DimLike], ufunc: np.ufunc, swap: bool) -> Any:
        dim = as_dim(other)
        if dim is not None:
            result = function(dim, self.dim) if swap else function(self.dim, dim)
            return result if isinstance(result, int) else Size(self.tracer, result)
        return self._as_value(other, ufunc, swap)

    def _as_value(self, other: Any, ufunc: np.ufunc, swap: bool) -> Any:
        return weak_operation(self.tracer, ufunc, (other, self) if swap else (self, other))

    def __add__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a + b, np.add, False)

    def __radd__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a + b, np.add, True)

    def __sub__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a - b, np.subtract, False)

    def __rsub__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a - b, np.subtract, True)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, (list, tuple)):
            raise conversion_error(f"repeating a {type(other).__name__} by the size {self.dim}", caller_loc())
        return self._exact(other, lambda a, b: a * b, np.multiply, False)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a // b, np.floor_divide, False)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a // b, np.floor_divide, True)

    def __mod__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a % b, np.remainder, False)

    def __rmod__(self, other: Any) -> Any:
        return self._exact(other, lambda a, b: a % b, np.remainder, True)

    def __truediv__(self, other: Any) -> Any:
        return self._as_value(other, np.true_divide, False)

    def __rtruediv__(self, other: Any) -> Any:
        return self._as_value(other, np.true_divide, True)

    def __pow__(self, other: Any) -> Any:
        if isinstance(other, int) and other >= 0:
            result: DimLike = 1
            for _ in range(other):
                result = result * self.dim
            return result if isinstance(result, int) else Size(self.tracer, result)
        return self._as_value(float(other) if isinstance(other, int) else other, np.power, False)

    def __rpow__(self, other: Any) -> Any:
        return self._as_value(other, np.power, True)

    def __neg__(self) -> Any:
        return 0 - self

    def __pos__(self) -> Size:
        return self

    def __eq__(self, other: object) -> Any:
        return self._compare("==", other, np.equal)

    def __ne__(self, other: object) -> Any:
        outcome = self._compare("==", other, np.equal)
        return not outcome if isinstance(outcome, bool) else np.logical_not(outcome)

    def __lt__(self, other: Any) -> Any:
        return self._compare("<", other, np.less)

    def __le__(self, other: Any) -> Any:
        return self._compare("<=", other, np.less_equal)

    def __gt__(self, other: Any) -> Any:
        outcome = self._compare("<=", other, np.less_equal)
        return not outcome if isinstance(outcome, bool) else np.logical_not(outcome)

    def __ge__(self, other: Any) -> Any:
        outcome = self._compare("<", other, np.less)
        return not outcome if isinstance(outcome, bool) else np.logical_not(outcome)

    def _compare(self, relation: str, other: Any, ufunc: np.ufunc) -> Any:
        dim = as_dim(other)
        if dim is not None:
            return self.tracer.decide(relation, self.dim, dim)
        if isinstance(other, float) and other == int(other):
            return self.tracer.decide(relation, self.dim, int(other))
        if isinstance(other, (float, np.generic, np.ndarray, TracedArray)):
            return self._as_value(other, ufunc, False)
        return False if relation == "==" else NotImplemented

    def __hash__(self) -> int:
        return hash(self.dim)

    def __bool__(self) -> bool:
        return not self.tracer.decide("==", self.dim, 0)

    def __index__(self) -> int:
        raise TraceError(
            f"the size {self.dim} is not known at compile time, so it is no Python integer",
            loc=caller_loc(),
            hint="make arrays of this size with np.zeros_like(x), np.zeros_like(x, shape=...), np.full(shape, value, like=x) or "
            "np.arange(n, like=x); loop over it with tw.scan or tw.while_loop; or bind the size to a number",
        )

    def __float__(self) -> float:
        raise TraceError(
            f"the size {self.dim} is not known at compile time, so it is no Python float",
            loc=caller_loc(),
            hint="compute with NumPy's functions instead of math's: np.sqrt(n), x / n, n ** 0.5",
        )

    __int__ = __index__

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return self.tracer.call(self.tracer.rules.ufunc, ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return call_function(self.tracer, function, args, kwargs)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.__index__()
        raise AssertionError

    def __repr__(self) -> str:
        return str(self.dim)


def is_weak(value: Any) -> bool:
    """Whether the value promotes like a Python number."""
    return type(value) in (int, float) or isinstance(value, (Size, WeakScalar))


def weak_operation(tracer: Tracer, ufunc: np.ufunc, operands: tuple[Any, ...]) -> Any:
    """An operator on Python numbers that are not known while tracing: among themselves they stay Python numbers."""
    if not all(isinstance(v, (bool, int, float, np.generic, np.ndarray, TracedArray, Size)) for v in operands):
        return NotImplemented
    result = tracer.call(tracer.rules.ufunc, ufunc, "__call__", operands, {})
    if not all(is_weak(v) for v in operands) or result.dtype.kind not in "if":
        return result
    return tracer.weak(tracer.node(result), int if result.dtype.kind == "i" else float)


class TracedArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in the program that is traced; see the module's text. Its methods and operators are NumPy's."""

    __slots__ = ("tracer", "storage", "path", "layout", "scalar", "uncertain", "_node", "_version")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        tracer: Tracer,
        storage: Storage,
        path: tuple[Step, ...] = (),
        layout: Layout = C_LAYOUT,
        scalar: bool = False,
        uncertain: bool = False,
    ) -> None:
        self.tracer = tracer
        self.storage = storage
        self.path = path
        self.layout = layout
        self.scalar = scalar
        self.uncertain = uncertain
        self._node = read_through(storage.scope.builder, storage.node, path)
        self._version = storage.version

    def read(self, tracer: Tracer) -> Node:
        """The current value, a node of the storage's scope."""
        if tracer is not self.tracer:
            tracer.check_owner(self.tracer)
        if self._version != self.storage.version:
            if self.uncertain:
                raise TraceError(
                    "an array was written after it was reshaped, and whether the reshaped one sees the write depends on the memory layout",
                    hint="make the reshaped array one of its own: x.reshape(shape).copy()",
                )
            self._node = read_through(self.storage.scope.builder, self.storage.node, self.path)
            self._version = self.storage.version
        return self._node

    def view(self, step: Step, layout: Layout, uncertain: bool = False) -> TracedArray:
        """An array that shares this one's storage."""
        path = (*self.path, step)
        return TracedArray(self.tracer, self.storage, path, layout, uncertain=uncertain or self.uncertain)

    @property
    def type(self) -> TensorType:
        return self._node.tensor

    @property
    def dims(self) -> tuple[DimLike, ...]:
        """The shape as the IR has it."""
        return self._node.tensor.shape

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.tracer.sizes(self._node.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._node.tensor.dtype.numpy

    @property
    def ndim(self) -> int:
        return len(self._node.tensor.shape)

    @property
    def size(self) -> Any:
        return self.tracer.sizes((self.type.elements,))[0]

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> Any:
        return self.size * self.itemsize

    @property
    def T(self) -> Any:
        return np.transpose(self)

    @property
    def mT(self) -> Any:
        return np.swapaxes(self, -1, -2)

    @property
    def real(self) -> TracedArray:
        return self

    @property
    def imag(self) -> Any:
        return np.zeros_like(self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return self.tracer.call(self.tracer.rules.ufunc, ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return call_function(self.tracer, function, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.call(self.tracer.rules.get_item, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.call(self.tracer.rules.set_item, self, key, value)

    def __getattr__(self, name: str) -> Any:
        method = self.tracer.rules.methods.get(name)
        if method is not None:
            return partial(self.tracer.call, method, self)
        if name in _ARRAY_ATTRIBUTES:
            raise TraceAttributeError(
                f"ndarray.{name} is not available on a traced array: {NO_VALUES}", loc=caller_loc(), hint=_ATTRIBUTE_HINTS.get(name, "")
            )
        if name.startswith("__"):  # NumPy probes for its protocols
            raise AttributeError(name)
        raise TraceAttributeError(f"a traced array has no attribute {name!r}", loc=caller_loc())

    def __pow__(self, other: Any) -> Any:
        """With NumPy's short cuts for Python scalars, which differ from `power` in -0.0 and infinities."""
        short = _POWER_SHORT_CUTS.get(other) if type(other) in (int, float) and self._short_power(other) else None
        return short(self) if short is not None else np.power(self, other)

    def _short_power(self, other: float) -> bool:
        return not self.scalar and self.dtype.kind in "fV" and self.dtype.itemsize >= 2

    def __round__(self, digits: int | None = None) -> Any:
        return np.round(self, digits or 0)

    def __len__(self) -> int:
        if not self.ndim:
            raise TraceTypeError("len() of unsized object", loc=caller_loc())
        return self.shape[0] if isinstance(self.shape[0], int) else self.shape[0].__index__()

    def __iter__(self) -> Iterator[Any]:
        if not self.ndim:
            raise TraceTypeError("iteration over a 0-d array", loc=caller_loc())
        if not isinstance(self.dims[0], int):
            raise TraceTypeError(
                f"iteration over an axis of size {self.dims[0]}, which is not known at compile time",
                loc=caller_loc(),
                hint="use tw.scan(f, init, xs), or bind the size to a number",
            )
        return (self[i] for i in range(self.dims[0]))

    def __bool__(self) -> bool:
        loc = caller_loc()
        if 0 not in self.dims and self.type.elements != 1:
            raise TraceValueError("The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()", loc=loc)
        raise TraceTypeError(
            f"Python control flow asks for the truth of a traced value: {NO_VALUES}",
            loc=loc,
            hint="choose elementwise with np.where(condition, a, b), branch with tw.cond(condition, then, else_, *operands), "
            "loop with tw.while_loop(condition, body, state); join conditions with & and |, not `and` and `or`",
        )

    def __contains__(self, value: Any) -> bool:
        return bool(np.any(np.equal(self, value)))

    def __index__(self) -> int:
        raise conversion_error("a traced value is used as a Python integer", caller_loc())

    def __int__(self) -> int:
        raise conversion_error("int() of a traced value", caller_loc())

    def __float__(self) -> float:
        raise conversion_error("float() of a traced value", caller_loc())

    def __complex__(self) -> complex:
        raise conversion_error("complex() of a traced value", caller_loc())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise conversion_error("NumPy asks a traced array for a concrete one", caller_loc())

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    def __repr__(self) -> str:
        return f"<traced {self.type}>"


def _weak_method(ufunc: np.ufunc, swap: bool = False) -> Callable[..., Any]:
    def method(self: WeakScalar, other: Any) -> Any:
        return weak_operation(self.tracer, ufunc, (other, self) if swap else (self, other))

    return method


class WeakScalar(TracedArray):
    """A Python number that is not known while tracing, such as n / 2 of a size n: it takes the dtype of what it meets.

    Its operators keep it one among Python numbers; NumPy's functions make it an int64 or float64, as they do with numbers.
    """

    __slots__ = ("kind",)
    kind: type

    def __init__(self, tracer: Tracer, storage: Storage, kind: type) -> None:
        super().__init__(tracer, storage, scalar=True)
        self.kind = kind

    __add__ = __iadd__ = _weak_method(np.add)
    __radd__ = _weak_method(np.add, True)
    __sub__ = __isub__ = _weak_method(np.subtract)
    __rsub__ = _weak_method(np.subtract, True)
    __mul__ = __imul__ = _weak_method(np.multiply)
    __rmul__ = _weak_method(np.multiply, True)
    __truediv__ = __itruediv__ = _weak_method(np.true_divide)
    __rtruediv__ = _weak_method(np.true_divide, True)
    __floordiv__ = __ifloordiv__ = _weak_method(np.floor_divide)
    __rfloordiv__ = _weak_method(np.floor_divide, True)
    __mod__ = __imod__ = _weak_method(np.remainder)
    __rmod__ = _weak_method(np.remainder, True)
    __pow__ = __ipow__ = _weak_method(np.power)
    __rpow__ = _weak_method(np.power, True)

    def __neg__(self) -> Any:
        return weak_operation(self.tracer, np.negative, (self,))

    def __abs__(self) -> Any:
        return weak_operation(self.tracer, np.absolute, (self,))


_POWER_SHORT_CUTS: dict[float, Callable[[Any], Any]] = {
    1: np.positive,
    2: np.square,
    0.5: np.sqrt,
    -1: np.reciprocal,
    0: np.ones_like,
}
_ARRAY_ATTRIBUTES = frozenset(name for name in dir(np.ndarray) if not name.startswith("_"))
_ATTRIBUTE_HINTS = {
    "item": "keep it as a 0-d array; read values from what the compiled function returns",
    "tolist": "return the array and convert what the compiled function returns",
    "tobytes": "return the array and convert what the compiled function returns",
    "flat": "use x.ravel() to read, x.reshape(-1)[i] = v to write",
    "nonzero": "the number of results depends on the data: choose elementwise with np.where(condition, a, b)",
    "resize": "use np.pad to grow and a slice to shrink",
    "view": "use x.astype(dtype) to convert values",
}


def call_function(tracer: Tracer, function: Any, args: Any, kwargs: Any) -> Any:
    return tracer.call(_call_function, function, args, kwargs)


def _call_function(t: Tracer, function: Any, args: Any, kwargs: Any) -> Any:
    rule = t.rules.functions.get(function)
    if rule is None:
        module = getattr(function, "__module__", "numpy") or "numpy"
        raise TraceTypeError(
            f"{module}.{getattr(function, '__name__', function)} is not supported on traced arrays",
            hint="write it with supported functions, or compute it outside of the compiled function",
        )
    result = rule(t, *args, **kwargs)
    return result if function in t.rules.ordered else settle(t, result, (*args, *kwargs.values()))


def settle(t: Tracer, result: Any, inputs: Sequence[Any]) -> Any:
    """Fresh results of operands that are not in C order get an unknown layout, since NumPy may follow the operands."""
    arrays = list(_arrays_in(inputs))
    if all(a.layout.contiguous for a in arrays):
        return result
    known = {id(a.storage) for a in arrays}
    for made in _arrays_in((result,)):
        if id(made.storage) not in known and not made.path and made.ndim > 1 and not made.storage.version:
            made.layout = UNKNOWN_LAYOUT
    return result


def _arrays_in(values: Sequence[Any]) -> Iterator[TracedArray]:
    for value in values:
        if isinstance(value, TracedArray):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _arrays_in(value)


__all__ = [
    "Guard", "Restart", "Rules", "Scope", "Size", "Storage", "Substitution", "TracedArray", "Tracer", "as_dim",
    "WeakScalar", "call_function", "composed", "is_weak", "settle", "shape_text", "weak_operation",
]  # fmt: skip
