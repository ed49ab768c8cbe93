"""Products with weights of a few bits on a GPU (`weight_only_dot`): which kernels compute one, and the kernel for few rows.

Few rows: what takes time is reading the weights. A block takes one panel and some rows. Each thread reads 16 bytes of words at a time (a
vector loop), four columns of one word, several of them before it decodes the first, and adds the products of its words to its own sums; at
last the sums of threads that share columns are added up in shared memory. Activations lie in shared memory, a part of the contraction at a
time.

Codes are not shifted: a mask leaves a code where it lies in its half of a word, an `or` makes of it the low bits of a float from 2**23 on,
and a subtraction the code less its zero, a power of two too large; the activations were multiplied by the inverse before, which is exact
down to the smallest numbers (as on CPUs). So a code costs two operations and a multiply-add a row. What a word adds up to meets its
scale, so groups may be as long as they like.

More rows of float16 or bfloat16 go through matrix units (`gpu_weight_only_tiles.py`), bytes with codes of 2 or 4 bits in any number of rows
(`gpu_byte_codes.py`), more rows of float32 through this kernel, some at
a time. Everything else is left to the kernels of CPUs, a thread an iteration.

Guarantees: no sum is divided between blocks, so a result does not depend on their order.
"""

from __future__ import annotations

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Stmt, Store
from ..ir.ops.shape import Pad
from ..ir.ops.weight_only import WORD, step_of_place
from ..ir.types import BF16, F16, F32, I8, I32
from .coded_weights import Nest, Operands
from .contraction import is_at_most, named_parts
from .gpu_byte_codes import ByteTiles, choose_byte_tiles
from .gpu_weight_only_tiles import CodeTile, CodeTiles, choose_code_tile
from .inline import Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

THREADS, FEWER_THREADS = 256, 128
QUAD = 4                   # columns whose words a thread reads at a time: 16 bytes
MOST_ROWS = 8              # of a block: each has four sums in each thread
FEW_ROWS = 4               # up to which matrix units, whose tiles are higher, would be no faster
AHEAD = 4                  # words that a thread reads before it decodes the first
ACTIVATION_BYTES = 32768   # of shared memory
HALF = WORD // 2
MAGIC, MAGIC_BITS = 2.0**23, 0x4B000000  # a float that counts its last bit by ones
MOST_EXACT = 1 << 22       # of what is subtracted beside it


class FewRowsPlan(Struct, frozen=True):
    """A nest for at least `least` and at most `most` rows (0: any number), `rows` of them a block of `threads` threads."""

    rows: int
    least: int = 0
    most: int = 0
    threads: int = THREADS


def lower_gpu_weight_only(node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, caps: Caps) -> list[Stmt] | None:
    """The block loops of `node` and the epilogue that leads from it to `result`; None for what goes another way."""
    width = node.inputs[1].shape[-1]
    assert isinstance(width, int)
    if node.inputs[0].dtype == I8:
        tiles = () if isinstance(result.op, Pad) else choose_byte_tiles(node, caps)
        return [ByteTiles(node, result, out, operands, inliner.inner(), tile).lower() for tile in tiles] or None
    known = node.inputs[0].dtype in (F32, F16, BF16) and not isinstance(result.op, Pad)
    if not known or width % QUAD or FEWER_THREADS * QUAD % width:
        return None
    nests: list[Stmt] = []
    for plan in choose_gpu_plans(node, caps):
        if isinstance(plan, CodeTile):
            nests.append(CodeTiles(node, result, out, operands, inliner.inner(), plan).lower())
        else:
            nests.append(_FewRows(node, result, out, operands, inliner.inner(), plan).lower())
    return nests


def choose_gpu_plans(node: Node, caps: Caps) -> tuple[FewRowsPlan | CodeTile, ...]:
    """Nests for the number of rows that there may be: where it is open one for a single row, and another one."""
    rows = product(node.shape[:-1])
    low, high = bounds(rows)
    tile = choose_code_tile(node, caps)
    if isinstance(rows, int):
        if tile is not None and rows > FEW_ROWS:
            return (tile,)
        return (FewRowsPlan(-(-rows // max(1, -(-rows // MOST_ROWS))) or 1),)
    if high <= 1:
        return (FewRowsPlan(1),)
    # beside a nest of fewer threads: values that live through what some of a block's threads do take registers of all
    single = (FewRowsPlan(1, most=1, threads=FEWER_THREADS if tile is not None else THREADS),) if low <= 1 else ()
    least = 2 if single else 0
    return (*single, FewRowsPlan(int(min(high, MOST_ROWS)), least) if tile is None else tile.after(least))


class _FewRows(Nest):
    """One block loop."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, plan: FewRowsPlan) -> None:
        super().__init__(node, result, out, operands, inliner, 1)
        self.plan = plan
        self.quads, self.threads = self.width // QUAD, plan.threads
        self.slices = plan.threads // self.quads          # threads that share columns
        room = max(1, ACTIVATION_BYTES // (F32.bytes * plan.rows * self.of_word))
        whole = room // self.slices * self.slices or room
        self.part_words = min(self.words, whole)
        self.part_steps = self.part_words * self.of_word
        self.ahead = min(AHEAD, -(-self.part_words // self.slices))
        fresh = self.names.fresh
        self.activations = Buffer(fresh("left"), F32, (plan.rows, self.part_steps), "shared")
        self.partial = Buffer(fresh("partial"), F32, (self.slices, plan.rows * self.width), "shared")
        self.totals = Buffer(fresh("totals"), F32, (self.threads, plan.rows, QUAD), "register")
        largest = (abs(self.op.zero) + (256 if operands.points is not None else 0)) << HALF - self.op.bits
        self.at_once = largest < MOST_EXACT and (operands.points is None or operands.points.dtype.is_integer)

    def lower(self) -> Stmt:
        shape = (self.panels, ceildiv(self.rows, self.plan.rows))
        count = product(shape)
        if self.plan.most:
            count = count * is_at_most(self.rows, self.plan.most)
        elif self.plan.least > 1:
            count = count * (1 - is_at_most(self.rows, self.plan.least - 1))
        variable, at = loop_symbol(self.names.fresh("t"), count)
        lets, (self.panel, chunk) = named_parts(self.inliner, ["panel", "chunk"], unflatten_index(at, shape))
        self.first_row = chunk * self.plan.rows
        parts = -(-self.words // self.part_words)
        part, p = loop_symbol(self.names.fresh("p"), parts)
        memory = (Alloc(self.activations), Alloc(self.partial), Alloc(self.totals))
        sum_up = For(part, parts, "serial", (self._bring(p), self._sum_up(p)))
        return For(variable, count, "block", (*lets, *memory, self._clear(), sum_up, self._share(), self._finish()))

    # --- small pieces ---

    def _threads(self, make: object) -> Stmt:
        assert callable(make)
        thread, t = loop_symbol(self.names.fresh("c"), self.threads)
        return For(thread, self.threads, "thread", tuple(make(t)))

    def _unrolled(self, label: str, extent: int, make: object) -> Stmt:
        assert callable(make)
        variable, at = loop_symbol(self.names.fresh(label), extent)
        return For(variable, extent, "unrolled", tuple(make(at)))

    def _less(self, place: DimLike, size: DimLike, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The statements where the place is one of so many."""
        if bounds(place)[1] < bounds(size)[0]:
            return body
        return (If(self.inliner.scalar("lt", self.inliner.index(place), self.inliner.index(size)), body),)

    # --- the activations ---

    def _bring(self, part: DimLike) -> Stmt:
        """The activations of a part, each multiplied by the inverse of the power of two that its code is too large by."""
        rows, steps = self.plan.rows, self.part_steps
        source = self.flat(self.operands.lhs)

        def body(t: DimLike) -> list[Stmt]:
            turn, i = loop_symbol(self.names.fresh("i"), -(-rows * steps // self.threads))
            place = i * self.threads + t
            lets, (row, step) = named_parts(self.inliner, ["row", "step"], (place // steps, place % steps))
            inner = self.inliner.inner()
            at = part * steps + step
            known = dim_min(at, self.depth - 1)
            x = inner.cast(inner.load(source, (dim_min(self.first_row + row, self.rows - 1) * self.depth + known,)), F32)
            if self.depth != self.words * self.of_word or not divides(steps, self.depth):
                inside = inner.scalar("lt", inner.index(at), inner.index(self.depth))
                x = inner.scalar("select", inside, x, inner.literal(0.0, F32))
            shift = (step % self.of_word) % 2 * 8 + (step % self.of_word) // 4 * self.op.bits
            power = inner.scalar("shl", inner.cast(inner.index(127 - shift), I32), inner.literal(23, I32))
            value = inner.scalar("mul", x, inner.bitcast(power, F32))
            made = (*lets, *inner.block, Store(self.activations.name, (row, step), value))
            return [For(turn, -(-rows * steps // self.threads), "serial", self._less(place, rows * steps, made))]

        return self._threads(body)

    # --- the sums ---

    def _clear(self) -> Stmt:
        zero = self.inliner.literal(0.0, F32)
        return self._threads(lambda t: [self._unrolled("r", self.plan.rows, lambda r: [
            self._unrolled("j", QUAD, lambda j: [Store(self.totals.name, (t, r, j), zero)])])])

    def _sum_up(self, part: DimLike) -> Stmt:
        """All threads add the products of a part's words to their sums."""
        rounds = -(-self.part_words // (self.slices * self.ahead))

        def body(t: DimLike) -> list[Stmt]:
            lets, (quad, of) = named_parts(self.inliner, ["quad", "slice"], (t % self.quads, t // self.quads))
            turn, number = loop_symbol(self.names.fresh("k"), rounds)
            codes = Buffer(self.names.fresh("codes"), I32, (self.ahead, QUAD), "register")

            def place(u: DimLike) -> DimLike:
                return (number * self.ahead + u) * self.slices + of

            def read(u: DimLike) -> list[Stmt]:
                word = dim_min(part * self.part_words + place(u), self.words - 1)
                begin = (self.panel * self.words + word) * self.width + quad * QUAD
                source = self.flat(self.operands.words)
                variable, j = loop_symbol(self.names.fresh("j"), QUAD)
                value = self.inliner.inner().load(source, (begin + j,))
                return [For(variable, QUAD, "vector", (Store(codes.name, (u, j), value),), QUAD)]

            def use(u: DimLike) -> list[Stmt]:
                lets, (near,) = named_parts(self.inliner, ["near"], (place(u),))
                word = part * self.part_words + near
                made: tuple[Stmt, ...] = tuple(self._word(t, quad, codes, u, near, word))
                made = self._less(word, self.words, made) if self.words % self.part_words else made
                return [*lets, *self._less(near, self.part_words, made)]

            loop = For(turn, rounds, "serial", (Alloc(codes), self._unrolled("u", self.ahead, read), self._unrolled("u", self.ahead, use)))
            return [*lets, loop]

        return self._threads(body)

    def _word(self, t: DimLike, quad: DimLike, codes: Buffer, u: DimLike, near: DimLike, word: DimLike) -> list[Stmt]:
        """The steps of a word of each of four columns: those in its lower half, then those in its upper half."""
        rows, half = self.plan.rows, self.of_word // 2
        sums = Buffer(self.names.fresh("sums"), F32, (rows, QUAD), "register")
        points = Buffer(self.names.fresh("zeros"), F32, (QUAD,), "register")
        lets, (group,) = named_parts(self.inliner, ["of"], (word // (self.op.group // self.of_word),))
        begin = (self.panel * self.groups + group) * self.width + quad * QUAD
        zero = self.inliner.literal(0.0, F32)
        made: list[Stmt] = [*lets, Alloc(sums), self._unrolled("r", rows, lambda r: [
            self._unrolled("j", QUAD, lambda j: [Store(sums.name, (r, j), zero)])])]
        if self.operands.points is not None:
            source = self.operands.points

            def bring(j: DimLike) -> list[Stmt]:
                inner = self.inliner.inner()
                point = self.load(inner, source, begin + j)
                total = inner.scalar("add", point, inner.literal(float(self.op.zero), F32)) if self.op.zero else point
                return [*inner.block, Store(points.name, (j,), total)]

            made += [Alloc(points), self._unrolled("j", QUAD, bring)]
        for number in range(self.of_word):
            made.append(self._unrolled("j", QUAD, lambda j, number=number: self._step(
                (codes, u, j), number >= half, number % half * self.op.bits, near * self.of_word + step_of_place(number, self.op.bits),
                sums, points)))

        def scaled(j: DimLike) -> list[Stmt]:
            inner = self.inliner.inner()
            scale = inner.latch(self.load(inner, self.operands.scales, begin + j))
            return [*inner.block, self._unrolled("r", rows, lambda r: [Store(self.totals.name, (t, r, j), inner.multiply_add(
                inner.load(sums, (r, j)), scale, self._own((t, r, j))))])]

        return [*made, self._unrolled("j", QUAD, scaled)]

    def _own(self, place: tuple[DimLike, ...]) -> Node:
        return self.inliner.inner().load(self.totals, place)

    def _step(self, place: tuple[Buffer, DimLike, DimLike], upper: bool, shift: int, at: DimLike, sums: Buffer,
              points: Buffer) -> list[Stmt]:
        """A code of a column less its zero, times 2**shift, meets the activations of all rows."""
        codes, u, j = place
        inner = self.inliner.inner()
        word = inner.load(codes, (u, j))
        if upper:
            word = inner.scalar("shr", word, inner.literal(HALF, I32))
        bits = inner.scalar("or", inner.scalar("and", word, inner.literal(self.mask << shift, I32)), inner.literal(MAGIC_BITS, I32))
        value, power = inner.bitcast(bits, F32), float(1 << shift)
        if self.operands.points is None:
            zero = self.op.zero * power
            value = self._less_zero(inner, value, inner.literal(zero, F32), inner.literal(MAGIC + zero, F32))
        else:
            point = inner.load(points, (j,))
            value = self._less_zero(inner, value, inner.scalar("mul", point, inner.literal(power, F32)),
                                    inner.multiply_add(point, inner.literal(power, F32), inner.literal(MAGIC, F32)))
        value = inner.latch(value)

        def row(r: DimLike) -> list[Stmt]:
            left = inner.load(self.activations, (r, at))
            return [Store(sums.name, (r, j), inner.multiply_add(left, value, inner.load(sums, (r, j))))]

        return [*inner.block, self._unrolled("r", self.plan.rows, row)]

    def _less_zero(self, inner: Inliner, value: Node, zero: Node, both: Node) -> Node:
        """A code that was made a float from 2**23 on, less that and less its zero: at once where that is exact."""
        if self.at_once:
            return inner.scalar("sub", value, both)
        return inner.scalar("sub", inner.scalar("sub", value, inner.literal(MAGIC, F32)), zero)

    # --- the result ---

    def _share(self) -> Stmt:
        """The sums of all threads into shared memory."""
        def body(t: DimLike) -> list[Stmt]:
            lets, (quad, of) = named_parts(self.inliner, ["quad", "slice"], (t % self.quads, t // self.quads))
            return [*lets, self._unrolled("r", self.plan.rows, lambda r: [self._unrolled("j", QUAD, lambda j: [
                Store(self.partial.name, (of, r * self.width + quad * QUAD + j), self._own((t, r, j)))])])]

        return self._threads(body)

    def _finish(self) -> Stmt:
        """Each element added up, through the epilogue."""
        elements = self.plan.rows * self.width
        turns = -(-elements // self.threads)
        total = Buffer(self.names.fresh("total"), F32, (), "register")

        def body(t: DimLike) -> list[Stmt]:
            turn, i = loop_symbol(self.names.fresh("i"), turns)
            place = i * self.threads + t
            lets, (row, column) = named_parts(self.inliner, ["row", "column"], (
                self.first_row + place // self.width, self.panel * self.width + place % self.width))
            add = self._unrolled("s", self.slices, lambda s: [
                Store(total.name, (), self.inliner.inner().load(self.partial, (s, place)), "add")])
            made = (Alloc(total), Store(total.name, (), self.inliner.literal(0.0, F32)), add, *lets,
                    *self._less(row, self.rows, self._less(column, self.op.columns, self._give(total, row, column))))
            return [For(turn, turns, "serial", self._less(place, elements, made))]

        return self._threads(body)

    def _give(self, total: Buffer, row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
        node, inner = self.node, self.inliner.inner()
        index = (*unflatten_index(row, node.shape[:-1]), column)
        value = inner.cast(inner.load(total, ()), node.dtype)
        inner.bind(node, index, lambda: value)
        stored = inner.value(self.result, reshape_index(index, node.shape, self.result.shape))
        return (*inner.block, Store(self.out.name, (flatten_index((row, column), (self.rows, node.shape[-1])),), stored))


__all__ = ["FewRowsPlan", "choose_gpu_plans", "lower_gpu_weight_only"]
