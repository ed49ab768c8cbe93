"""x[mask] with a traced mask: the elements are known, how many there are is not.

NumPy makes an array of as many elements as the mask has true places. A compiled program cannot, but what is done with such
a selection mostly needs no size: elementwise work, writing it back under the same mask (`x[m] += 1`), reductions to one
value. A `MaskedSelection` keeps the whole array beside the mask, computes everywhere and counts the true places only.
What would need the size is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.errors import caller_loc
from ..ir.graph import Node
from .numpy_errors import TraceTypeError
from .numpy_tracer import TracedArray, Tracer

_HINT = "choose elementwise with np.where(mask, x, other); reduce with x.sum(where=mask); write with x[mask] = v, x[mask] += v"
_REDUCTIONS: dict[Callable[..., Any], str] = {
    getattr(np, name): name for name in ("sum", "prod", "mean", "std", "var", "any", "all", "max", "min", "amax", "amin")
}

_BY_UFUNC: dict[np.ufunc, Callable[..., Any]] = {
    np.add: np.sum,
    np.multiply: np.prod,
    np.maximum: np.max,
    np.minimum: np.min,
}


def refusal(what: str) -> TraceTypeError:
    return TraceTypeError(f"{what}: x[mask] with a traced mask has a number of results that data decides", loc=caller_loc(),
                          hint=_HINT)  # fmt: skip


class MaskedSelection(np.lib.mixins.NDArrayOperatorsMixin):
    """The places of `whole` where `mask` (on its first axes) is true."""

    __slots__ = ("tracer", "whole", "mask")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tracer: Tracer, whole: TracedArray, mask: Node) -> None:
        self.tracer = tracer
        self.whole = whole
        self.mask = mask

    @property
    def trailing(self) -> int:
        """The rank of what stands at one true place."""
        return self.whole.ndim - self.mask.rank

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.whole.dtype

    @property
    def ndim(self) -> int:
        return 1 + self.trailing

    def _operand(self, value: Any) -> Any:
        if isinstance(value, MaskedSelection):
            if value.mask is not self.mask or value.whole.dims != self.whole.dims:
                raise refusal("an operation on the selections of two masks")
            return value.whole
        if np.ndim(value) > self.trailing:
            raise refusal("an operation of a selection with an array of its length")
        return value

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None and not (len(out) == 1 and out[0] is self):
            raise refusal(f"np.{ufunc.__name__} with out= a selection")
        if method == "reduce" and ufunc in _BY_UFUNC and not kwargs.get("axis"):
            return self._reduce(_BY_UFUNC[ufunc], {})
        if method != "__call__" or ufunc.nout != 1 or ufunc.signature is not None:
            raise refusal(f"np.{ufunc.__name__} of a selection")
        made = ufunc(*(self._operand(v) for v in inputs), **kwargs)
        return MaskedSelection(self.tracer, made, self.mask)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = getattr(function, "__name__", str(function))
        if function is np.ndim:
            return self.ndim
        if function not in _REDUCTIONS or len(args) != 1 or set(kwargs) - {"dtype", "ddof", "initial"}:
            raise refusal(f"np.{name} of a selection")
        return self._reduce(function, kwargs)

    def _reduce(self, function: Callable[..., Any], options: dict[str, Any]) -> Any:
        if self.trailing:
            raise refusal(f"np.{function.__name__} of a selection of rows")
        if function in (np.max, np.min, np.amax, np.amin) and "initial" not in options:
            kind = self.whole.type.dtype
            options = {**options, "initial": kind.lowest if function in (np.max, np.amax) else kind.highest}
        return function(self.whole, where=self.tracer.array(self.mask), **options)

    def astype(self, dtype: Any, **kwargs: Any) -> MaskedSelection:
        return MaskedSelection(self.tracer, self.whole.astype(dtype, **kwargs), self.mask)

    def copy(self) -> MaskedSelection:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for function, spelled in _REDUCTIONS.items():
            if spelled == name:
                return lambda *args, **kwargs: function(self, *args, **kwargs)
        raise refusal(f"x[mask].{name}")

    def __getitem__(self, key: Any) -> Any:
        raise refusal("an index of a selection")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise refusal("a write into a selection (NumPy would change a copy)")

    def __len__(self) -> int:
        raise refusal("the length of a selection")

    def __iter__(self) -> Any:
        raise refusal("iteration over a selection")

    def __bool__(self) -> bool:
        raise refusal("the truth of a selection")

    def __float__(self) -> float:
        raise refusal("float() of a selection")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise refusal("a concrete array of a selection")

    def __repr__(self) -> str:
        return f"<selection of {self.whole!r}>"
