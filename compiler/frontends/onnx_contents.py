"""What small inputs of integers must hold, so that a model's results have the shapes that it declares.

Some models take a shape as an input and declare the shape of what they make of it. An import that knows nothing of such an input
may end at a value in between, whose sizes hang on it and nobody declares. So the model is gone through once more with a symbol for
each element of these inputs; sizes that hold a symbol and are declared give equations; and what solves these is what the inputs hold.

Assumes nothing of the model: an import that takes the solution for known has the call check it (`from_onnx.Importer`).
Guarantees: a number is found for an element only where an equation with no other unknown demands it, its neighbours leading elsewhere;
what nothing decides stays open.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from ..ir.dims import Dim, DimLike, compare, substitute, symbol, symbols_of
from ..ir.errors import CompileError
from ..ir.graph import Array, Node
from .onnx_ops.known_values import OPEN

# what an input holds, element by element; None: nothing is known of that one
Contents: TypeAlias = tuple[DimLike | None, ...]


def as_array(contents: Contents, node: Node) -> Array:
    """The contents as a known value: plain numbers where there is nothing else. What the dtype cannot hold is open."""
    limits = np.iinfo(node.dtype.numpy)
    array = np.empty(len(contents), dtype=object)
    for place, n in enumerate(contents):
        array[place] = OPEN if n is None or isinstance(n, int) and not limits.min <= n <= limits.max else n
    plain = all(isinstance(n, int) for n in array)
    return (array.astype(node.dtype.numpy) if plain else array).reshape(node.tensor.static_shape)


def symbols_for(node: Node, first: int) -> tuple[Dim, ...]:
    """A symbol for each element of an input, numbered from `first` on. That they are more than 1, so that no axis goes
    and no branch for a single element is taken, is a guess, as all that follows from it."""
    count = node.tensor.static_shape[0] if node.rank else 1
    found = (symbol(f"held_by_input_{first + place}", lower=2) for place in range(count))
    return tuple(n for n in found if isinstance(n, Dim))


def solved(equations: Sequence[tuple[DimLike, DimLike]], inputs: Mapping[str, Sequence[Dim]]) -> dict[str, Contents]:
    """The contents of the inputs that the equations (size as computed, size as declared) decide."""
    unknown = {str(n) for elements in inputs.values() for n in elements}
    values: dict[str, DimLike] = {}
    before = -1
    while len(values) > before:
        before = len(values)
        for size, declared in equations:
            _solve(substitute(size, values), declared, unknown, values)
    contents = {name: tuple(values.get(str(n)) for n in elements) for name, elements in inputs.items()}
    return {name: found for name, found in contents.items() if any(n is not None for n in found)}


def _solve(size: DimLike, declared: DimLike, unknown: Collection[str], values: dict[str, DimLike]) -> None:
    names = [s.name for s in symbols_of(size) if s.name in unknown]
    if len(names) != 1:
        return
    try:
        candidates = [declared, *_linear(size, declared, names[0])]
        value = next((n for n in candidates if _is_only(size, declared, names[0], n)), None)
    except CompileError:        # a guess under which the size itself has no sense
        return
    if value is not None:
        values[names[0]] = value


def _linear(size: DimLike, declared: DimLike, name: str) -> list[DimLike]:
    """Where the size grows by the same with each one more, the number that leads to the declared size."""
    first, second = substitute(size, {name: 1}), substitute(size, {name: 2})
    if not isinstance(first, int) or not isinstance(second, int) or not isinstance(declared, int) or first == second:
        return []
    steps, rest = divmod(declared - first, second - first)
    return [] if rest else [1 + steps]


def _is_only(size: DimLike, declared: DimLike, name: str, value: DimLike) -> bool:
    if substitute(size, {name: value}) != declared:
        return False
    return all(compare(substitute(size, {name: value + step}), declared) in (-1, 1) for step in (-1, 1))
