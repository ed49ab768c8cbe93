"""Loads and stores of a kernel: scalar, contiguous, masked, strided, gathered, and the partial results of reductions.

What it does: turns an access (buffer, index) into instructions for the vector loop that it stands in, if any.
Assumes: every index of an active lane is within its buffer (the lowering proves or checks it).
Guarantees: memory of lanes past the end of a vector loop is never touched, and neither is memory past an access. A combining
store to one place, in a vector loop, goes to a vector of partial results that is combined into the place after the loop.

Accesses with a stride go lane by lane: on x86 without AVX-512 that is faster than `vgather`, and no scatter exists there.
"""

from __future__ import annotations

from msgspec import Struct, field

from tilewright.backends.llvm.emit_indices import Indices, Place, Terms
from tilewright.backends.llvm.emit_scalars import (
    choose,
    emit_combine,
    from_memory,
    halve_lanes,
    identity_of,
    reduce_lanes,
    spread,
    spread_text,
    to_memory,
)
from tilewright.backends.llvm.emit_text import (
    MEMORY_TYPES,
    SCALAR_TYPES,
    Block,
    Function,
    Value,
    mangled,
    mask_text,
    shaped,
)
from tilewright.backends.llvm.emit_transposed import Across, columns_of, part_of, places_text
from tilewright.ir.dims import DimLike, row_major_strides
from tilewright.ir.errors import InternalError
from tilewright.ir.loop import Buffer
from tilewright.ir.loop_proofs import linear_factor
from tilewright.ir.types import DType

STREAM_BYTES = 16     # of a store past the caches


class Memory(Struct):
    """A buffer in a kernel: its address, and strides in elements. `private_lanes`: of the vector loop that it was allocated in,
    each lane of which has its own copy; else 0."""

    buffer: Buffer
    address: str
    strides: tuple[DimLike, ...]
    private_lanes: int = 0
    lanes: int = 0  # of an allocation inside a vector loop, where each element is a vector: one value a lane

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def element(self) -> str:
        return MEMORY_TYPES[self.buffer.dtype.name]

    @property
    def is_register(self) -> bool:
        return self.buffer.space == "register"

    @property
    def is_padded(self) -> bool:
        """Whether lanes past the end have memory of their own, too."""
        return self.is_register or self.private_lanes > 0

    @property
    def is_constant(self) -> bool:
        return self.buffer.space == "in"


class Partial(Struct):
    """Partial results, one a lane and interleaved copy, of a reduction into one place."""

    memory: Memory
    constant: int
    terms: Terms
    combine: str
    lanes: int
    slots: dict[int, str] = field(default_factory=dict)


class VectorLoop(Struct):
    """The vector loop being emitted. `floor`: scopes outside it; `mask`: active lanes in the tail, else ''; `copy`: which of the
    interleaved copies of the body this is; `before`: the block that runs once before the loop."""

    lanes: int
    floor: int
    before: Block
    mask: str = ""
    copy: int = 0
    partials: dict[object, Partial] = field(default_factory=dict)


class Accesses:
    """Emits loads and stores. `vector` is the loop around, `across` the tile, set by the emitter of loops."""

    def __init__(self, code: Function, indices: Indices) -> None:
        self.code = code
        self.indices = indices
        self.memories: dict[str, Memory] = {}
        self.offsets: dict[tuple[str, tuple[DimLike, ...]], DimLike] = {}
        self.vector: VectorLoop | None = None
        self.across: Across | None = None
        self.has_streams = False

    def memory(self, name: str) -> Memory:
        found = self.memories.get(name)
        if found is None:
            raise InternalError(f"llvm backend: no buffer {name}; there are {', '.join(self.memories)}")
        return found

    def place(self, memory: Memory, index: tuple[DimLike, ...], by_chunk: bool = False) -> Place:
        key = (memory.address, index)
        offset = self.offsets.get(key)
        if offset is None:
            offset = self.offsets[key] = self.offset(memory, index)
        if self.vector is None:
            return Place("uniform", *self.indices.resolve(offset))
        place = self.indices.place(offset, by_chunk)
        if memory.private_lanes:
            return self.private_place(memory, place)
        if place.kind == "lanes" and memory.is_register:
            raise InternalError(f"llvm backend: register buffer {memory.buffer.name} is indexed by {offset}, which is not "
                                f"a constant plus the vector loop's variable")
        return place

    def offset(self, memory: Memory, index: tuple[DimLike, ...]) -> DimLike:
        """The position in elements: of one index an axis, or of a single one in C order."""
        axes = len(memory.strides)
        if len(index) == 1 and axes != 1:
            if memory.is_register and memory.strides != row_major_strides(memory.buffer.shape):
                raise InternalError(f"llvm backend: register buffer {memory.buffer.name} has padded rows, so it needs "
                                    f"{axes} indices")
            return index[0]
        if len(index) != axes:
            raise InternalError(f"llvm backend: {memory.buffer.name} has {axes} axes, found {len(index)} indices")
        offset: DimLike = 0
        for position, stride in zip(index, memory.strides):
            offset = offset + position * stride
        return offset

    @staticmethod
    def private_place(memory: Memory, place: Place) -> Place:
        """Where the lanes' own copies of an element lie: side by side."""
        lanes = memory.private_lanes
        if place.kind != "uniform":
            raise InternalError(f"llvm backend: {memory.buffer.name}, allocated in a vector loop, is indexed by what differs "
                                "between lanes")
        return Place("contiguous", place.constant * lanes, tuple((m, c * lanes) for m, c in place.terms), 1)

    def first(self, memory: Memory, place: Place) -> str:
        """The address of the first lane's element."""
        return self.indices.pointer(memory.address, memory.element, place.constant, place.terms)

    def address(self, name: str, index: tuple[DimLike, ...]) -> str:
        """Where the element is, of the first lane in a vector loop."""
        memory = self.memory(name)
        return self.first(memory, self.place(memory, index))

    # ---- loads ----

    def load(self, name: str, index: tuple[DimLike, ...]) -> Value:
        memory = self.memory(name)
        place = self.place(memory, index, by_chunk=True)
        if memory.lanes:
            text = self.read(memory, f"load {shaped(memory.element, memory.lanes)}, ptr {self.private(memory, place)}, align 64")
            return from_memory(self.code, text, memory.dtype, memory.lanes)
        if place.kind == "uniform":
            return self.load_scalar(memory, self.first(memory, place))
        assert self.vector is not None
        lanes, mask = self.vector.lanes, self.vector.mask
        if place.kind == "contiguous":
            return self.load_contiguous(memory, self.first(memory, place), lanes, "" if memory.is_padded else mask)
        text = self.column(memory, index, place, lanes) if self.is_across(memory, index, place) else self.gather(memory, place, lanes, mask)
        return from_memory(self.code, text, memory.dtype, lanes)

    def is_across(self, memory: Memory, index: tuple[DimLike, ...], place: Place) -> bool:
        """Whether this reads a column of a tile whose rows lie in memory that the kernel does not write."""
        across = self.across
        return (across is not None and memory.is_constant and place.kind == "strided"
                and linear_factor(self.offset(memory, index), across.symbol) == 1)

    def column(self, memory: Memory, index: tuple[DimLike, ...], place: Place, lanes: int) -> str:
        """A column of a tile. With the first one of a part, all of the part are made."""
        across, code = self.across, self.code
        assert across is not None
        width = part_of(memory.dtype.bytes, lanes)
        number = across.position % width
        key = (memory.address, index, across.position // width)
        found = across.columns.get(key)
        if found is None:
            first = Place(place.kind, place.constant - number, place.terms, place.stride)
            addresses, kind = self.lane_addresses(memory, first, lanes), shaped(memory.element, width)
            parts = [self.read(memory, f"load {kind}, ptr {address}, align {memory.dtype.bytes}") for address in addresses]
            found = columns_of(code, memory.element, [parts[row::width] for row in range(width)])
            across.columns[key] = found
        return found[number]

    def load_scalar(self, memory: Memory, address: str) -> Value:
        text = self.read(memory, f"load {memory.element}, ptr {address}, align {memory.dtype.bytes}")
        return from_memory(self.code, text, memory.dtype, 0)

    def read(self, memory: Memory, instruction: str) -> str:
        """Buffers that a kernel only reads do not change while it runs, so equal loads of a block are one."""
        if memory.is_constant:
            return self.code.pure(f"{instruction}, !invariant.load !0")
        return self.code.value(instruction)

    def load_contiguous(self, memory: Memory, address: str, lanes: int, mask: str) -> Value:
        kind = shaped(memory.element, lanes)
        if not mask:
            text = self.read(memory, f"load {kind}, ptr {address}, align {memory.dtype.bytes}")
        else:
            symbol = f"llvm.masked.load.{mangled(memory.element, lanes)}.p0"
            self.code.module.declare(symbol, kind, f"ptr, {shaped('i1', lanes)}, {kind}")
            text = self.code.value(f"call {kind} @{symbol}(ptr align {memory.dtype.bytes} {address}, "
                                   f"{shaped('i1', lanes)} {mask}, {kind} zeroinitializer)")
        return from_memory(self.code, text, memory.dtype, lanes)

    def lane_addresses(self, memory: Memory, place: Place, lanes: int) -> list[str]:
        """The address of each lane's element."""
        code = self.code
        if place.kind == "strided":
            first = self.first(memory, place)
            if isinstance(place.stride, int):
                return [code.pure(f"getelementptr {memory.element}, ptr {first}, i64 {lane * place.stride}") if lane else first
                        for lane in range(lanes)]
            addresses = [first]
            while len(addresses) < lanes:
                addresses.append(code.pure(f"getelementptr {memory.element}, ptr {addresses[-1]}, i64 {place.stride}"))
            return addresses
        offsets = self.lane_offsets(place, lanes)
        addresses = []
        for lane in range(lanes):
            offset = code.pure(f"extractelement {shaped('i64', lanes)} {offsets}, i64 {lane}")
            addresses.append(code.pure(f"getelementptr {memory.element}, ptr {memory.address}, i64 {offset}"))
        return addresses

    def lane_offsets(self, place: Place, lanes: int) -> str:
        return self.indices.varying_terms(place.constant, place.terms, lanes)

    def address_vector(self, memory: Memory, place: Place, lanes: int) -> str:
        """All lanes' addresses, <lanes x ptr>; those of inactive lanes are never followed."""
        code = self.code
        if place.kind == "strided":
            base = self.first(memory, place)
            steps = "<" + ", ".join(f"i64 {lane}" for lane in range(lanes)) + ">"
            stride = spread_text(code, "i64", str(place.stride), lanes)
            offsets = code.pure(f"mul {shaped('i64', lanes)} {stride}, {steps}")
        else:
            base, offsets = memory.address, self.lane_offsets(place, lanes)
        return code.pure(f"getelementptr {memory.element}, ptr {base}, {shaped('i64', lanes)} {offsets}")

    def gather(self, memory: Memory, place: Place, lanes: int, mask: str) -> str:
        code, kind = self.code, shaped(memory.element, lanes)
        if mask:
            symbol = f"llvm.masked.gather.{mangled(memory.element, lanes)}.{mangled('ptr', lanes)}"
            addresses, masks = shaped("ptr", lanes), shaped("i1", lanes)
            code.module.declare(symbol, kind, f"{addresses}, {masks}, {kind}")
            return code.value(f"call {kind} @{symbol}({addresses} align {memory.dtype.bytes} "
                              f"{self.address_vector(memory, place, lanes)}, {masks} {mask}, {kind} zeroinitializer)")
        text = "poison"
        for lane, address in enumerate(self.lane_addresses(memory, place, lanes)):
            element = self.read(memory, f"load {memory.element}, ptr {address}, align {memory.dtype.bytes}")
            text = code.pure(f"insertelement {kind} {text}, {memory.element} {element}, i64 {lane}")
        return text

    # ---- stores ----

    def store(self, name: str, index: tuple[DimLike, ...], value: Value, combine: str, stream: bool = False) -> None:
        memory = self.memory(name)
        place = self.place(memory, index)
        if memory.lanes:
            self.store_private(memory, self.private(memory, place), value, combine)
        elif self.vector is None:
            self.store_scalar(memory, self.first(memory, place), value, combine)
        elif place.kind == "uniform":
            self.store_uniform(memory, place, value, combine)
        else:
            value = spread(self.code, value, self.vector.lanes)
            if place.kind == "contiguous" and stream and self.can_stream(memory):
                self.store_past_caches(memory, self.first(memory, place), value)
            elif place.kind == "contiguous":
                self.store_contiguous(memory, self.first(memory, place), value, combine)
            else:
                self.scatter(memory, place, value, combine)

    def private(self, memory: Memory, place: Place) -> str:
        """The address of an element of memory that each lane has to itself."""
        if place.kind != "uniform":
            raise InternalError(f"llvm backend: {memory.buffer.name} is allocated inside a vector loop and indexed by its variable")
        return self.indices.pointer(memory.address, shaped(memory.element, memory.lanes), place.constant, place.terms)

    def store_private(self, memory: Memory, address: str, value: Value, combine: str) -> None:
        """Inactive lanes may write too: nobody reads theirs."""
        value = spread(self.code, value, memory.lanes)
        kind = shaped(memory.element, memory.lanes)
        if combine:
            text = self.code.value(f"load {kind}, ptr {address}, align 64")
            value = emit_combine(self.code, combine, from_memory(self.code, text, memory.dtype, memory.lanes), value)
        self.code.effect(f"store {kind} {to_memory(self.code, value)}, ptr {address}, align 64")

    def store_scalar(self, memory: Memory, address: str, value: Value, combine: str) -> None:
        if combine:
            value = emit_combine(self.code, combine, self.load_scalar(memory, address), value)
        text = to_memory(self.code, value)
        self.code.effect(f"store {memory.element} {text}, ptr {address}, align {memory.dtype.bytes}")

    def store_contiguous(self, memory: Memory, address: str, value: Value, combine: str) -> None:
        vector, code = self.vector, self.code
        assert vector is not None
        # Register buffers are padded to whole vectors, so inactive lanes may be read and written back: a masked store would
        # keep the buffer in memory.
        blend = bool(vector.mask) and memory.is_padded and not memory.private_lanes
        mask = "" if memory.is_padded else vector.mask
        if combine or blend:
            old = self.load_contiguous(memory, address, vector.lanes, mask)
            if combine:
                value = emit_combine(code, combine, old, value)
            if blend:
                value = choose(code, vector.mask, value, old)
        text, kind = to_memory(code, value), shaped(memory.element, vector.lanes)
        if not mask:
            code.effect(f"store {kind} {text}, ptr {address}, align {memory.dtype.bytes}")
            return
        if mask == mask_text(1, vector.lanes):
            # LLVM 22 makes one known lane of a truncation a store as wide as what is truncated, where a target has AVX-512.
            element = code.pure(f"extractelement {kind} {text}, i64 0")
            code.effect(f"store {memory.element} {element}, ptr {address}, align {memory.dtype.bytes}")
            return
        symbol, masks = f"llvm.masked.store.{mangled(memory.element, vector.lanes)}.p0", shaped("i1", vector.lanes)
        code.module.declare(symbol, "void", f"{kind}, ptr, {masks}")
        code.effect(f"call void @{symbol}({kind} {text}, ptr align {memory.dtype.bytes} {address}, {masks} {mask})")

    def can_stream(self, memory: Memory) -> bool:
        """Whether whole parts are stored, to what the kernel does not read (an `inout` lies in the caches already)."""
        vector = self.vector
        assert vector is not None
        return (self.code.module.can_stream and not vector.mask and memory.buffer.space == "out"
                and vector.lanes * memory.dtype.bytes % STREAM_BYTES == 0)

    def store_past_caches(self, memory: Memory, address: str, value: Value) -> None:
        """In parts as large as every array of some size is aligned to, or twice as large where a register is and lanes from two of
        them can be brought together; plainly where it is not aligned so, which no later chunk changes."""
        code, lanes, part = self.code, value.lanes, STREAM_BYTES // memory.dtype.bytes
        self.has_streams = True
        text, kind, after = to_memory(code, value), shaped(memory.element, lanes), code.new_block("stored")
        layouts = [[(first, part) for first in range(0, lanes, part)]]
        if code.module.vector_bits >= 16 * STREAM_BYTES and lanes % (2 * part) == 0:
            beside = [(first, 2 * part) for first in range(part, lanes - part, 2 * part)]
            layouts = [[(first, 2 * part) for first in range(0, lanes, 2 * part)], [(0, part), *beside, (lanes - part, part)]]
        number = code.pure(f"ptrtoint ptr {address} to i64")
        rest = code.pure(f"and i64 {number}, {len(layouts) * STREAM_BYTES - 1}")
        for place, layout in enumerate(layouts):
            past, elsewhere = code.new_block("past"), code.new_block("elsewhere")
            code.branch(code.pure(f"icmp eq i64 {rest}, {place * STREAM_BYTES}"), past, elsewhere)
            code.start(past)
            for first, count in layout:
                taken = code.pure(f"shufflevector {kind} {text}, {kind} poison, {places_text(range(first, first + count))}")
                to = code.pure(f"getelementptr {memory.element}, ptr {address}, i64 {first}") if first else address
                alignment = count * memory.dtype.bytes
                code.effect(f"store {shaped(memory.element, count)} {taken}, ptr {to}, align {alignment}, !nontemporal !2")
            code.jump(after)
            code.start(elsewhere)
        code.effect(f"store {kind} {text}, ptr {address}, align {memory.dtype.bytes}")
        code.jump(after)
        code.start(after)

    def finish_streams(self) -> None:
        """Before other threads may read what was stored past the caches: such stores keep no order with others."""
        if self.has_streams:
            self.code.module.declare("llvm.x86.sse.sfence", "void", "")
            self.code.effect("call void @llvm.x86.sse.sfence()")

    def scatter(self, memory: Memory, place: Place, value: Value, combine: str) -> None:
        """Lane after lane, so that lanes which meet in one place combine."""
        vector, code = self.vector, self.code
        assert vector is not None
        addresses = self.lane_addresses(memory, place, vector.lanes)
        for lane, address in enumerate(addresses):
            done = None
            if vector.mask:
                active = code.pure(f"extractelement {shaped('i1', vector.lanes)} {vector.mask}, i64 {lane}")
                run, done = code.new_block("lane"), code.new_block("next")
                code.branch(active, run, done)
                code.start(run)
            text = code.pure(f"extractelement {value.type} {value.text}, i64 {lane}")
            self.store_scalar(memory, address, Value(text, value.dtype), combine)
            if done is not None:
                code.jump(done)
                code.start(done)

    # ---- stores of a vector loop to one place ----

    def store_uniform(self, memory: Memory, place: Place, value: Value, combine: str) -> None:
        vector = self.vector
        assert vector is not None
        if not combine:
            if value.lanes:
                raise InternalError(f"llvm backend: lanes of a vector loop write different values to one place of "
                                    f"{memory.buffer.name}")
            self.store_scalar(memory, self.first(memory, place), value, "")
            return
        if self.indices.depth_of_terms(place.terms) < vector.floor:
            self.accumulate(memory, place, value, combine)
            return
        value = self.masked_identity(spread(self.code, value, vector.lanes), combine)
        self.store_scalar(memory, self.first(memory, place), reduce_lanes(self.code, combine, value), combine)

    def masked_identity(self, value: Value, combine: str) -> Value:
        vector = self.vector
        assert vector is not None
        if not vector.mask:
            return value
        return choose(self.code, vector.mask, value, identity_of(combine, value.dtype, value.lanes))

    def partial_slot(self, memory: Memory, place: Place, combine: str, lanes: int) -> str:
        """Where this copy of the body keeps its partial results; set to the identity before the loop."""
        vector = self.vector
        assert vector is not None
        key = (memory.address, place.constant, place.terms, combine, lanes)
        partial = vector.partials.get(key)
        if partial is None:
            partial = vector.partials[key] = Partial(memory, place.constant, place.terms, combine, lanes)
        slot = partial.slots.get(vector.copy)
        if slot is None:
            kind = shaped(SCALAR_TYPES[memory.dtype.name], lanes)
            slot = partial.slots[vector.copy] = self.code.stack_slot(kind, "partial", 64)
            identity = identity_of(combine, memory.dtype, lanes)
            vector.before.lines.append(f"store {kind} {identity.text}, ptr {slot}, align 64")
        return slot

    def accumulate(self, memory: Memory, place: Place, value: Value, combine: str) -> None:
        """Several registers are combined into one first: what else the body computes needs the others."""
        vector = self.vector
        assert vector is not None
        value = self.masked_identity(spread(self.code, value, vector.lanes), combine)
        value = halve_lanes(self.code, combine, value, max(1, self.code.module.vector_bits // max(memory.dtype.bits, 8)))
        slot = self.partial_slot(memory, place, combine, value.lanes)
        old = Value(self.code.value(f"load {value.type}, ptr {slot}, align 64"), value.dtype, value.lanes)
        new = emit_combine(self.code, combine, old, value)
        self.code.effect(f"store {value.type} {new.text}, ptr {slot}, align 64")

    def accumulate_product(self, name: str, index: tuple[DimLike, ...], left: Value, right: Value) -> bool:
        """Adds left * right, rounded once, to a float partial sum where the place allows it; else does nothing."""
        vector, memory, code = self.vector, self.memory(name), self.code
        if vector is None or memory.dtype.bits < 32 or not code.module.options.has_fma:
            return False
        place = self.place(memory, index)
        if place.kind != "uniform" or self.indices.depth_of_terms(place.terms) >= vector.floor:
            return False
        slot = self.partial_slot(memory, place, "add", vector.lanes)
        left, right = (spread(code, value, vector.lanes) for value in (left, right))
        old = code.value(f"load {left.type}, ptr {slot}, align 64")
        symbol = f"llvm.fma.{mangled(SCALAR_TYPES[memory.dtype.name], vector.lanes)}"
        operands = ((left.type, left.text), (left.type, right.text), (left.type, old))
        new = Value(code.call_pure(symbol, left.type, *operands), left.dtype, vector.lanes)
        if vector.mask:
            new = choose(code, vector.mask, new, Value(old, left.dtype, vector.lanes))
        code.effect(f"store {new.type} {new.text}, ptr {slot}, align 64")
        return True

    def finish_partials(self, vector: VectorLoop) -> None:
        """After the loop: copies into one, lanes into one, that into the place."""
        for partial in vector.partials.values():
            dtype = partial.memory.dtype
            total: Value | None = None
            for slot in partial.slots.values():
                kind = shaped(SCALAR_TYPES[dtype.name], partial.lanes)
                value = Value(self.code.value(f"load {kind}, ptr {slot}, align 64"), dtype, partial.lanes)
                total = value if total is None else emit_combine(self.code, partial.combine, total, value)
            assert total is not None
            address = self.indices.pointer(partial.memory.address, partial.memory.element, partial.constant, partial.terms)
            self.store_scalar(partial.memory, address, reduce_lanes(self.code, partial.combine, total), partial.combine)
