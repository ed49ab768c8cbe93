"""Loops that read four neighbouring words of a parameter into registers, as one access of 16 bytes.

Assumes that parameters begin at multiples of 16 bytes, as the runtime sees to, or at multiples of their own size (what a scan takes one
after the other). So of those that do not consist of whole 16 bytes, and at places that are not provably multiples of four, words are read
one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from tilewright.ir.dims import DimLike, divides, product, size_of, substitute
from tilewright.ir.loop import Buffer, For, Load, Store
from tilewright.ir.types import F32, I32

WORDS = 4
# the function, the type that it gives, and what makes an element of a part
LOADS = {I32: ("tw_load_16", "uint4", "(int)"), F32: ("tw_load_4", "float4", "")}


class WideLoad(Struct, frozen=True):
    """Four elements of `source` from `place` on, to `target` from `index` on along its last axis."""

    source: Buffer
    place: DimLike
    target: Buffer
    index: tuple[DimLike, ...]

    def lines(self, name: str, source: str, targets: list[str]) -> list[str]:
        """The access and the registers that it sets; `source`: the first element."""
        function, kind, cast = LOADS[self.source.dtype]
        return [f"const {kind} {name} = {function}(&{source});",
                *(f"{target} = {cast}{name}.{part};" for target, part in zip(targets, "xyzw"))]

    def target_at(self, number: int) -> tuple[DimLike, ...]:
        return (*self.index[:-1], self.index[-1] + number)


def wide_load(loop: For, buffers: Mapping[str, Buffer]) -> WideLoad | None:
    """What the loop reads at once, where it is such a loop."""
    if loop.kind != "unrolled" or loop.extent != WORDS or len(loop.body) != 1:
        return None
    store, = loop.body
    if not isinstance(store, Store) or store.combine or not isinstance(store.value.op, Load):
        return None
    read, target = store.value.op, buffers[store.buffer]
    source = buffers[read.buffer]
    fits = source.space == "in" and target.space == "register" and source.dtype == target.dtype and source.dtype in LOADS
    if not fits or len(read.index) != 1 or len(store.index) != len(target.shape):
        return None
    start: dict[str, DimLike] = {loop.symbol.name: 0}
    place, index = substitute(read.index[0], start), tuple(substitute(i, start) for i in store.index)
    step = size_of(loop.symbol)
    aligned = divides(WORDS, place) and divides(WORDS, product(source.shape))
    follows = read.index[0] - place == step and store.index[-1] - index[-1] == step and store.index[:-1] == index[:-1]
    return WideLoad(source, place, target, index) if follows and aligned else None
