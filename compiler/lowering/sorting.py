"""Sorting, of values and of places, stable and with NaN as the greatest.

Long rows are sorted by digits of eight bits, the lowest first (Knuth, The Art of Computer Programming 3, 5.2.5): each
element has a key, an unsigned number of its width whose order is that of the elements; one round counts how often each
digit occurs and then puts every element behind the equal and lesser ones. Nothing is compared, so nothing is guessed wrong.
Pairs of digits that all keys of a row share take no round: small integers need only few. Places are sorted together with their keys
where both fit one word; else keys are looked up. A short row takes the number of elements
before each as its place, which runs in vectors.

Rows are independent and shared among threads. The loop over them is built parallel, since where an element goes is not
known before: no test of dependence sees that it stays in its row. All others are built serial; vectors are steps of the
schedule.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.dims import DimLike, bounds, dim_min, product, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Let, Stmt, Store, loop_variable
from ..ir.ops.compute import Bitcast
from ..ir.schedule import Step
from ..ir.types import BOOL, I64, INDEX, U8, U16, U32, U64, DType
from .elements import Nest
from .inline import Inliner, flatten_index, loop_symbol, unflatten_index

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
SHORT = 40  # elements up to which all pairs are compared
PLACE_BITS = 32  # of a word with a key above

KEYS = {d.bits: d for d in (U8, U16, U32, U64)}
KEY_LIMITS = {bits: (1 << bits) - 1 for bits in KEYS}

Make = Callable[[Inliner, DimLike], list[Stmt]]


def key_type(dtype: DType) -> DType:
    """The unsigned numbers that elements of the type are sorted by."""
    return U8 if dtype is BOOL else KEYS[dtype.bits]


def lower_argsort(axis: int, descending: bool, x: Buffer, out: Buffer, spare: Buffer, keys: Buffer,
                  inliner: Inliner, lanes: int) -> Nest:
    """Sorts the places of each row. `spare` and `keys` are scratch of the operand's shape, of places and of keys."""
    return _Sort(axis, descending, x, out, spare, keys, inliner, lanes).lower()


def lower_sort(axis: int, descending: bool, x: Buffer, out: Buffer, spare: Buffer, inliner: Inliner, lanes: int) -> Nest:
    """Sorts the values of each row. `spare` is scratch of the operand's type."""
    return _Sort(axis, descending, x, out, spare, None, inliner, lanes).lower()


class _Sort:
    """`keys`: of the places that are sorted; None where values are."""

    def __init__(self, axis: int, descending: bool, x: Buffer, out: Buffer, spare: Buffer, keys: Buffer | None,
                 inliner: Inliner, lanes: int) -> None:
        self.descending, self.x, self.out, self.spare, self.keys = descending, x, out, spare, keys
        self.inliner, self.names, self.lanes = inliner, inliner.names, lanes
        self.size = x.shape[axis]
        others = (*x.shape[:axis], *x.shape[axis + 1:])
        self.rows = product(others)
        self.row, number = loop_symbol(self.names.fresh("row"), self.rows)
        self.index, self.axis = unflatten_index(number, others), axis
        self.in_line = all(n == 1 for n in x.shape[axis + 1:])
        self.key_type = key_type(x.dtype)
        self.packed = False
        self.vectors: list[Step] = []

    def lower(self) -> Nest:
        least, most = bounds(self.size)
        if most <= SHORT:
            body = self._by_pairs()
        elif least > SHORT:
            body = self._long()
        else:
            body = (self._if_at_most(SHORT, self._by_pairs(), self._long()),)
        return Nest(For(self.row, self.rows, "parallel", body), tuple(self.vectors))

    def _long(self) -> tuple[Stmt, ...]:
        """By digits, in one word with the places where both fit."""
        least, most = bounds(self.size)
        places = 1 << PLACE_BITS
        if self.keys is None or self.key_type.bits + PLACE_BITS > self.out.dtype.bits or least > places:
            return self._by_digits()
        self.packed = True
        together = self._by_digits()
        self.packed = False
        return together if most <= places else (self._if_at_most(places, together, self._by_digits()),)

    def _if_at_most(self, size: int, then: tuple[Stmt, ...], otherwise: tuple[Stmt, ...]) -> If:
        limit = self.inliner.literal(size, INDEX)
        return If(self.inliner.scalar("le", self.inliner.index(self.size), limit), then, otherwise)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def at(self, position: DimLike) -> DimLike:
        """Where an element of the row lies."""
        return flatten_index((*self.index[:self.axis], position, *self.index[self.axis:]), self.x.shape)

    def _for(self, extent: DimLike, make: Make, vector: bool = False) -> For:
        """A loop whose body `make` appends to an inner block. `vector`: in vectors where rows lie in a line."""
        variable, at = loop_symbol(self.names.fresh("k"), extent)
        if vector and self.in_line:
            self.vectors.append(Step("vectorize", (variable.name, self.lanes)))
        inside = self.inliner.inner()
        stores = make(inside, at)
        return For(variable, extent, "serial", (*inside.block, *stores))

    def _load(self, inside: Inliner, buffer: Buffer, position: DimLike) -> Node:
        """The element of the row."""
        return inside.load(Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space), (self.at(position),))

    def _named(self, inside: Inliner, value: Node, extent: DimLike) -> DimLike:
        """A value below `extent` as a size for indices, in a form that shows that it is."""
        found = loop_variable(self.names.fresh("n"), extent)
        inside.block.append(Let(found.name, inside.cast(value, INDEX), found))
        return size_of(found) if isinstance(extent, int) else dim_min(size_of(found), extent - 1)

    def _item(self, inside: Inliner, position: DimLike) -> Node:
        """What is put in order: places or values, or keys with places below."""
        if self.keys is None:
            return self._load(inside, self.x, position)
        place = inside.cast(inside.index(position), I64)
        if not self.packed:
            return place
        key = inside.cast(self._key(inside, self._load(inside, self.x, position)), U64)
        word = inside.scalar("or", inside.scalar("shl", key, inside.literal(PLACE_BITS, U64)), inside.builder.add(Bitcast(U64), place))
        return inside.builder.add(Bitcast(I64), word)

    def _key_of(self, inside: Inliner, item: Node) -> Node:
        """The key of an item that is being put in order."""
        if self.keys is None:
            return self._key(inside, item)
        if not self.packed:
            return self._load(inside, self.keys, self._named(inside, item, self.size))
        above = inside.scalar("shr", inside.builder.add(Bitcast(U64), item), inside.literal(PLACE_BITS, U64))
        return inside.cast(above, self.key_type)

    # --- short rows --------------------------------------------------------------------------------------------------

    def _by_pairs(self) -> tuple[Stmt, ...]:
        before = Buffer(self.names.fresh("before"), INDEX, (), "register")

        def place(inside: Inliner, i: DimLike) -> list[Stmt]:
            own = inside.latch(self._load(inside, self.x, i))
            inside.block += [Alloc(before), Store(before.name, (), inside.literal(0, INDEX))]
            inside.block.append(self._for(self.size, lambda inner, j: [Store(before.name, (), self._precedes(inner, own, i, j),
                                                                             "add")], vector=True))
            rank = self._named(inside, inside.load(before, ()), self.size)
            return [Store(self.out.name, (self.at(rank),), self._item(inside, i))]

        return (self._for(self.size, place),)

    def _precedes(self, inside: Inliner, own: Node, i: DimLike, j: DimLike) -> Node:
        """1 where element j comes before element i, which is `own`."""
        other = self._load(inside, self.x, j)
        less, more = _less(inside, other, own), _less(inside, own, other)
        if self.descending:
            less, more = more, less
        earlier = inside.scalar("lt", inside.index(j), inside.index(i))
        return inside.cast(inside.scalar("or", less, inside.scalar("and", earlier, inside.scalar("not", more))), INDEX)

    # --- long rows ---------------------------------------------------------------------------------------------------

    def _by_digits(self) -> tuple[Stmt, ...]:
        rounds = self.key_type.bits // DIGIT_BITS
        counts = Buffer(self.names.fresh("counts"), INDEX, (rounds, DIGITS), "local")
        some = Buffer(self.names.fresh("some"), self.key_type, (), "register")
        every = Buffer(self.names.fresh("every"), self.key_type, (), "register")
        none, all_bits = self.inliner.literal(0, self.key_type), self.inliner.literal(KEY_LIMITS[self.key_type.bits], self.key_type)
        clear = self._for(rounds, lambda outer, r: [self._for(DIGITS, lambda inside, d: [
            Store(counts.name, (r, d), inside.literal(0, INDEX))], vector=True)])
        places = (self._for(self.size, self._place_alone, vector=True),) if self.packed else ()
        return (Alloc(counts), Alloc(some), Alloc(every), Store(some.name, (), none), Store(every.name, (), all_bits), clear,
                self._for(self.size, lambda inside, k: self._prepare(inside, k, some, every), vector=True),
                self._for(self.size, lambda inside, k: self._count(inside, k, counts)),
                self._rounds(counts, some, every), *places)

    def _place_alone(self, inside: Inliner, k: DimLike) -> list[Stmt]:
        """What is left when all is in order."""
        below = inside.literal((1 << PLACE_BITS) - 1, I64)
        return [Store(self.out.name, (self.at(k),), inside.scalar("and", self._load(inside, self.out, k), below))]

    def _prepare(self, inside: Inliner, k: DimLike, some: Buffer, every: Buffer) -> list[Stmt]:
        """The items as they come, their keys, and the bits that some keys and that all keys have."""
        key = inside.latch(self._key(inside, self._load(inside, self.x, k)))
        kept = [] if self.keys is None or self.packed else [Store(self.keys.name, (self.at(k),), key)]
        return [Store(self.out.name, (self.at(k),), self._item(inside, k)), *kept, Store(some.name, (), key, "or"),
                Store(every.name, (), key, "and")]

    def _count(self, inside: Inliner, k: DimLike, counts: Buffer) -> list[Stmt]:
        """How often each digit occurs does not depend on the order: all are counted at once."""
        if self.keys is None or self.packed:
            key = inside.latch(self._key_of(inside, self._load(inside, self.out, k)))
        else:
            key = inside.latch(self._load(inside, self.keys, k))
        rounds = self.key_type.bits // DIGIT_BITS
        digits = [self._named(inside, self._digit(inside, key, number), DIGITS) for number in range(rounds)]
        return [Store(counts.name, (number, digit), inside.literal(1, INDEX), "add") for number, digit in enumerate(digits)]

    def _rounds(self, counts: Buffer, some: Buffer, every: Buffer) -> For:
        """All rounds that are needed; two at a time, from `out` to `spare` and back, so that none is only brought back."""
        rounds = self.key_type.bits // DIGIT_BITS
        together = 1 if rounds == 1 else 2
        variable, at = loop_symbol(self.names.fresh("round"), rounds // together)
        inside = self.inliner.inner()
        differing = inside.scalar("xor", inside.load(some, ()), inside.load(every, ()))
        numbers = [at * together + n for n in range(together)]
        tests = [inside.scalar("ne", self._digit(inside, differing, n), inside.literal(0, self.key_type)) for n in numbers]
        if together == 2:
            body = (*self._round(counts, numbers[0], self.out, self.spare), *self._round(counts, numbers[1], self.spare, self.out))
            return For(variable, rounds // 2, "serial", (If(inside.scalar("or", *tests), body),))
        back = self._for(self.size, lambda inside, k: [Store(self.out.name, (self.at(k),), self._load(inside, self.spare, k))], vector=True)
        return For(variable, 1, "serial", (If(tests[0], (*self._round(counts, numbers[0], self.out, self.spare), back)),))

    def _round(self, counts: Buffer, number: DimLike, source: Buffer, target: Buffer) -> tuple[Stmt, ...]:
        """Orders the items by one digit, from one buffer to the other."""
        running = Buffer(self.names.fresh("running"), INDEX, (), "register")

        def begin(inside: Inliner, d: DimLike) -> list[Stmt]:
            own = inside.latch(inside.load(counts, (number, d)))
            start = inside.latch(inside.load(running, ()))
            return [Store(counts.name, (number, d), start), Store(running.name, (), inside.scalar("add", start, own))]

        def move(inside: Inliner, k: DimLike) -> list[Stmt]:
            item = inside.latch(self._load(inside, source, k))
            key = self._key_of(inside, item)
            digit = self._named(inside, self._digit(inside, key, number), DIGITS)
            place = self._named(inside, inside.load(counts, (number, digit)), self.size)
            following = inside.scalar("add", inside.index(place), inside.literal(1, INDEX))
            return [Store(target.name, (self.at(place),), item), Store(counts.name, (number, digit), following)]

        return (Alloc(running), Store(running.name, (), self.inliner.literal(0, INDEX)), self._for(DIGITS, begin),
                self._for(self.size, move))

    def _digit(self, inside: Inliner, key: Node, number: DimLike) -> Node:
        shift = inside.cast(inside.index(number * DIGIT_BITS), self.key_type)
        return inside.scalar("and", inside.scalar("shr", key, shift), inside.literal(DIGITS - 1, self.key_type))

    def _key(self, inside: Inliner, value: Node) -> Node:
        """A number whose order is that of the elements: both zeros have the same, and all NaNs the greatest."""
        dtype, bits = value.dtype, self.key_type.bits
        value = inside.latch(value)
        sign = inside.literal(1 << (bits - 1), self.key_type)
        if dtype is BOOL or dtype is self.key_type:
            key = inside.cast(value, self.key_type)
        elif not dtype.is_float:
            key = inside.scalar("xor", inside.builder.add(Bitcast(self.key_type), value), sign)
        else:
            raw = inside.latch(inside.builder.add(Bitcast(self.key_type), value))
            negative = inside.scalar("gt", raw, sign)  # not so the negative zero
            key = inside.scalar("select", negative, inside.scalar("not", raw), inside.scalar("or", raw, sign))
            greatest = inside.literal(KEY_LIMITS[bits], self.key_type)
            key = inside.scalar("select", inside.scalar("isnan", value), greatest, key)
        return inside.scalar("not", key) if self.descending else key


def _less(inliner: Inliner, a: Node, b: Node) -> Node:
    """a < b with NaN as the greatest."""
    less = inliner.scalar("lt", a, b)
    if not a.dtype.is_float:
        return less
    number = inliner.scalar("not", inliner.scalar("isnan", a))
    return inliner.scalar("or", less, inliner.scalar("and", number, inliner.scalar("isnan", b)))
