"""Nested arguments and results: dicts, lists and tuples of arrays, taken apart into leaves and put together again.

A `Structure` describes the nesting without its leaves; equal nestings are equal and hash alike. Dict keys keep their
order. None counts as structure, since it can be no array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct

LEAF, NONE = "leaf", "none"


class Structure(Struct, frozen=True):
    """`kind`: leaf, none, tuple, list, dict, or named (a namedtuple, whose class `maker` holds)."""

    kind: str = LEAF
    children: tuple[Structure, ...] = ()
    keys: tuple[Any, ...] = ()
    maker: type | None = None

    def rebuild(self, leaves: Iterator[Any]) -> Any:
        """The nested value with the next leaves in place."""
        match self.kind:
            case "leaf":
                return next(leaves)
            case "none":
                return None
            case "dict":
                return {key: child.rebuild(leaves) for key, child in zip(self.keys, self.children)}
            case "list":
                return [child.rebuild(leaves) for child in self.children]
        items = [child.rebuild(leaves) for child in self.children]
        return self.maker(*items) if self.maker is not None else tuple(items)

    @property
    def leaf_count(self) -> int:
        return (self.kind == LEAF) + sum(child.leaf_count for child in self.children)

    def __str__(self) -> str:
        match self.kind:
            case "leaf":
                return "*"
            case "none":
                return "None"
            case "dict":
                return "{" + ", ".join(f"{k!r}: {c}" for k, c in zip(self.keys, self.children)) + "}"
        inside = ", ".join(map(str, self.children))
        return f"[{inside}]" if self.kind == "list" else f"({inside}{',' if len(self.children) == 1 else ''})"


class Leaf(Struct, frozen=True):
    """A leaf with the keys that lead to it."""

    path: tuple[Any, ...]
    value: Any


def flatten(value: Any, path: tuple[Any, ...] = ()) -> tuple[list[Leaf], Structure]:
    """The leaves in order, and the structure around them. Nesting is bounded by what the user wrote."""
    if value is None:
        return [], Structure(NONE)
    if isinstance(value, Mapping):
        keys, items, kind, maker = tuple(value), list(value.values()), "dict", None
    elif isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        named = fields is not None
        keys = tuple(range(len(value))) if fields is None else fields
        items, kind, maker = list(value), "named" if named else "tuple", type(value) if named else None
    elif isinstance(value, list):
        keys, items, kind, maker = tuple(range(len(value))), value, "list", None
    else:
        return [Leaf(path, value)], Structure()
    leaves: list[Leaf] = []
    children = []
    for key, item in zip(keys, items):
        found, child = flatten(item, (*path, key))
        leaves += found
        children.append(child)
    return leaves, Structure(kind, tuple(children), keys if kind == "dict" else (), maker)


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting with the function's values in place of the leaves."""
    leaves, structure = flatten(value)
    return structure.rebuild(iter([function(leaf.value) for leaf in leaves]))


def joined(path: tuple[Any, ...]) -> str:
    """The keys as one identifier: words_0_scale."""
    text = "_".join(str(key) for key in path)
    clean = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)
    return clean if clean and not clean[0].isdigit() else f"_{clean}"
