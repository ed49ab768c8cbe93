"""Statements of the loop IR as LLVM IR: one internal function a kernel.

`i32 kernel(ptr team, ptr buffer.., i64 symbol.., i64 thread, i64 threads)` returns 0, or the status of the first check that failed
on this thread, which it has reported to `team->fail`.

How loops are compiled. `serial`: bottom-tested. `parallel`: the iterations i with i * threads // extent == thread.
`unrolled`: the body repeated with the variable a constant. `vector`: W lanes at once; whole chunks, then a tail with a
mask. A short static vector loop, or one whose variable indexes a register buffer, is repeated with constant chunks. Reductions into one
place keep four vectors of partial results in long loops, so that the latency of an addition is hidden.
Of a kernel with a parallel loop, statements beside that loop that write a parameter run on thread 0; a kernel without one runs on
thread 0 alone.

`place add= fma(a, b, 0)` in a vector loop, with one place for all lanes, is fused: the sum takes the product unrounded. (Other sums
of products round the product first, as written.)

Assumes: a kernel that keeps the rules of `ir/loop.py`. Guarantees: InternalError for what breaks them in a way that would change
results: lanes that write one place, conditions that differ between lanes, register buffers without constant places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from tilewright.backends.llvm.emit_indices import Indices
from tilewright.backends.llvm.emit_memory import Accesses, Memory, VectorLoop
from tilewright.backends.llvm.emit_scalars import emit_bitcast, emit_cast, emit_scalar, literal, spread, spread_text
from tilewright.backends.llvm.emit_text import MEMORY_TYPES, Function, Module, Value, mask_text, shaped
from tilewright.backends.llvm.emit_transposed import Across, is_tile
from tilewright.ir.dims import DimLike, bounds, divides, product, row_major_strides, symbols_of
from tilewright.ir.errors import InternalError
from tilewright.ir.graph import Node
from tilewright.ir.loop import (
    Alloc,
    Buffer,
    Check,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Prefetch,
    Stmt,
    Store,
    While,
    expression_nodes,
    variable_size,
    walk,
)
from tilewright.ir.ops.compute import Bitcast, Cast, Elementwise
from tilewright.ir.types import BOOL, INDEX

STACK_BYTES = 64 * 1024                               # of local buffers; more lies in memory that the runtime gives each thread
LINE = 64
COPIES = 4                                            # interleaved copies of a vector loop that reduces
SHORT_LOOP = 4                                        # chunks of a static vector loop that are repeated without a loop
KERNEL_ATTRIBUTES = "noinline nounwind"               # inlining would break `!invariant.load` on buffers others write
FIRST_ITERATION = "tw_first_iteration"
# ceil(extent * thread / threads) with extent = share * threads + rest: no product can overflow
FIRST_ITERATION_TEXT = f"""define internal i64 @{FIRST_ITERATION}(i64 %extent, i64 %thread, i64 %threads) noinline nounwind memory(none) {{
  %share = udiv i64 %extent, %threads
  %rest = urem i64 %extent, %threads
  %whole = mul i64 %share, %thread
  %product = mul i64 %rest, %thread
  %raised = add i64 %product, %threads
  %last = sub i64 %raised, 1
  %part = udiv i64 %last, %threads
  %first = add i64 %whole, %part
  ret i64 %first
}}"""


def scratch_bytes(kernel: Kernel) -> int:
    """What the kernel needs of the thread's own memory, a multiple of 64; 0 where its local buffers fit on the stack."""
    total = sum(_local_bytes(s.buffer) for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.space == "local")
    return total if total > STACK_BYTES else 0


def _local_bytes(buffer: Buffer) -> int:
    """Of a local buffer, up to a whole line."""
    size = product(buffer.shape)
    if not isinstance(size, int):
        raise InternalError(f"llvm backend: {buffer.space} buffer {buffer.name} has a symbolic shape {buffer.shape}")
    return -(-size * buffer.dtype.bytes // LINE) * LINE


def emit_kernel(module: Module, kernel: Kernel, symbol: str) -> None:
    """Appends the kernel's function to the module under the name `symbol`."""
    try:
        KernelEmitter(module, kernel, symbol).emit()
    except InternalError as error:
        error.notes = (*error.notes, f"in kernel {kernel.name}")
        error.at(kernel.loc)
        raise


class KernelEmitter:
    """Emits one kernel. Holds the values of lets and, through `accesses`, the vector loop around."""

    def __init__(self, module: Module, kernel: Kernel, symbol: str) -> None:
        self.kernel = kernel
        parameters = ["ptr %team", *(f"ptr {_attributes(buffer)} %b{i}" for i, buffer in enumerate(kernel.buffers)),
                      *(f"i64 %s{i}" for i in range(len(kernel.symbols))), "i64 %thread", "i64 %threads",
                      *(["ptr noalias align 64 %scratch"] if scratch_bytes(kernel) else [])]
        head = f"define internal i32 @{symbol}({', '.join(parameters)}) {KERNEL_ATTRIBUTES}"
        self.code = Function(module, head)
        self.indices = Indices(self.code)
        self.accesses = Accesses(self.code, self.indices)
        self.values: dict[str, Value] = {}
        self.local_bytes = 0                          # taken of the thread's own memory
        self.orders: dict[Node, tuple[Node, ...]] = {}
        for i, kernel_symbol in enumerate(kernel.symbols):
            self.indices.bind(kernel_symbol.name, f"%s{i}")
        for i, buffer in enumerate(kernel.buffers):
            self.accesses.memories[buffer.name] = Memory(buffer, f"%b{i}", row_major_strides(buffer.shape))
        self.statements: dict[type, Callable[..., None]] = {
            For: self.emit_for, While: self.emit_while, If: self.emit_if, Let: self.emit_let, Alloc: self.emit_alloc,
            Store: self.emit_store, Check: self.emit_check, Prefetch: self.emit_prefetch}

    def emit(self) -> None:
        has_parallel = any(isinstance(s, For) and s.kind == "parallel" for s in self.kernel.body)
        if not has_parallel:
            self.on_first_thread(lambda: self.emit_block(self.kernel.body))
        else:
            for statement in self.kernel.body:
                self.emit_top(statement)
        self.accesses.finish_streams()
        self.code.end("ret i32 0")
        self.code.finish()

    def emit_top(self, statement: Stmt) -> None:
        """A statement beside a parallel loop: every thread runs what only touches its own memory."""
        shared = {buffer.name for buffer in self.kernel.buffers}
        is_loop = isinstance(statement, For) and statement.kind == "parallel"
        if not is_loop and any(isinstance(s, Store) and s.buffer in shared for s in walk([statement])):
            self.on_first_thread(lambda: self.emit_statement(statement))
        else:
            self.emit_statement(statement)

    def on_first_thread(self, body: Callable[[], None]) -> None:
        code = self.code
        first, after = code.new_block("first"), code.new_block("after")
        code.branch(code.pure("icmp eq i64 %thread, 0"), first, after)
        code.start(first)
        depth = self.indices.push_scope()
        body()
        self.indices.pop_scopes(depth)
        code.jump(after)
        code.start(after)

    # ---- blocks ----

    def emit_block(self, body: Sequence[Stmt]) -> None:
        """The statements; what they bind ends with them."""
        if not any(isinstance(s, (Let, Alloc)) for s in body):
            for statement in body:
                self.emit_statement(statement)
            return
        values, depth = dict(self.values), len(self.indices.scopes)
        memories = dict(self.accesses.memories)
        bound = [s.symbol.name for s in body if isinstance(s, Let) and s.symbol is not None]
        before = {name: self.indices.bindings.get(name) for name in bound}
        for statement in body:
            self.emit_statement(statement)
        self.values, self.accesses.memories = values, memories
        for name, binding in before.items():
            if name in self.indices.bindings:
                self.indices.restore(name, binding)
        self.indices.pop_scopes(depth)

    def emit_statement(self, statement: Stmt) -> None:
        emitter = self.statements.get(type(statement))
        if emitter is None:
            raise InternalError(f"llvm backend: no code for the statement {type(statement).__name__}")
        emitter(statement)

    # ---- expressions ----

    def expression(self, root: Node) -> Value:
        order = self.orders.get(root)
        if order is None:
            order = self.orders[root] = expression_nodes(root)
        found: dict[Node, Value] = {}
        for node in order:
            found[node] = self.node_value(node, [found[x] for x in node.inputs])
        return found[root]

    def node_value(self, node: Node, operands: list[Value]) -> Value:
        op = node.op
        match op:
            case Elementwise():
                return emit_scalar(self.code, op.function, operands)
            case Load():
                return self.accesses.load(op.buffer, op.index)
            case Literal():
                return literal(op.value, op.dtype)
            case Local():
                found = self.values.get(op.variable)
                if found is None:
                    raise InternalError(f"llvm backend: no value {op.variable} here")
                return found
            case Cast():
                return emit_cast(self.code, operands[0], op.dtype)
            case Bitcast():
                return emit_bitcast(self.code, operands[0], op.dtype)
            case IndexValue():
                return self.index_value(op.size)
        raise InternalError(f"llvm backend: no code for {op.spelling} in a kernel", loc=node.loc)

    def index_value(self, size: DimLike) -> Value:
        vector = self.accesses.vector
        if vector is not None and self.indices.is_varying(size):
            return Value(self.indices.varying(size, vector.lanes), INDEX, vector.lanes)
        return Value(self.indices.uniform(size), INDEX)

    def uniform_condition(self, node: Node, what: str) -> str:
        value = self.expression(node)
        if value.lanes:
            raise InternalError(f"llvm backend: the condition of {what} differs between lanes of a vector loop")
        return value.text

    # ---- plain statements ----

    def emit_let(self, statement: Let) -> None:
        value = self.expression(statement.value)
        self.values[statement.name] = value
        if statement.symbol is not None:
            self.indices.push_scope()
            known = int(value.text) if value.is_constant and not value.lanes else value.text
            self.indices.bind(statement.symbol.name, known, value.lanes)

    def emit_alloc(self, statement: Alloc) -> None:
        """Memory of the call. In a vector loop each lane has its own: element e of lane l lies at e * lanes + l."""
        buffer, vector = statement.buffer, self.accesses.vector
        shape = [size for size in buffer.shape if isinstance(size, int)]
        if len(shape) != len(buffer.shape):
            raise InternalError(f"llvm backend: {buffer.space} buffer {buffer.name} has a symbolic shape {buffer.shape}")
        private, past = vector.lanes if vector is not None else 0, 0
        if buffer.space == "register" and shape and not private:
            lanes, past = self.lanes_across(buffer)
            shape[-1] = -(-shape[-1] // lanes) * lanes
        elements = max(1, private)
        for size in shape:
            elements *= size
        elements += past
        if buffer.space == "local" and not private and scratch_bytes(self.kernel):
            slot = self.code.pure(f"getelementptr i8, ptr %scratch, i64 {self.local_bytes}", self.indices.scopes[0].block)
            self.local_bytes += _local_bytes(buffer)
            self.accesses.memories[buffer.name] = Memory(buffer, slot, row_major_strides(shape), private)
            return
        if elements * buffer.dtype.bytes > STACK_BYTES:
            raise InternalError(f"llvm backend: {buffer.space} buffer {buffer.name} of a vector loop takes "
                                f"{elements * buffer.dtype.bytes} bytes, at most {STACK_BYTES} fit on the stack")
        slot = self.code.stack_slot(f"[{elements} x {MEMORY_TYPES[buffer.dtype.name]}]", buffer.space, 64)
        self.accesses.memories[buffer.name] = Memory(buffer, slot, row_major_strides(shape), private)

    def lanes_across(self, buffer: Buffer) -> tuple[int, int]:
        """The lanes of vector loops whose variable stands in the buffer's last index: rows are padded to whole vectors; and how many
        elements the last row's may lie past its end, where vectors do not begin at multiples of their lanes."""
        lanes, past = 1, 0
        for loop in walk(self.kernel.body):
            if isinstance(loop, For) and loop.kind == "vector":
                for index in _indices(loop, buffer.name):
                    lanes = max(lanes, loop.lanes)
                    if not divides(loop.lanes, index[-1] - variable_size(loop.symbol)):
                        past = max(past, loop.lanes)
        return lanes, past

    def emit_store(self, statement: Store) -> None:
        value = statement.value
        if statement.combine == "add" and self.accesses.vector is not None and _is_product(value):
            left, right = (self.expression(operand) for operand in value.inputs[:2])
            if self.accesses.accumulate_product(statement.buffer, statement.index, left, right):
                return
        self.accesses.store(statement.buffer, statement.index, self.expression(value), statement.combine, statement.stream)

    def emit_prefetch(self, statement: Prefetch) -> None:
        """Into all levels: what is prefetched is read soon, and more than once."""
        self.code.module.declare("llvm.prefetch.p0", "void", "ptr, i32, i32, i32")
        address = self.accesses.address(statement.buffer, statement.index)
        self.code.effect(f"call void @llvm.prefetch.p0(ptr {address}, i32 0, i32 3, i32 1)")

    def emit_if(self, statement: If) -> None:
        code = self.code
        condition = self.uniform_condition(statement.condition, "an if")
        if condition in ("true", "false"):
            self.emit_block(statement.then if condition == "true" else statement.otherwise)
            return
        then, otherwise, after = code.new_block("then"), code.new_block("else"), code.new_block("endif")
        code.branch(condition, then, otherwise)
        for block, body in ((then, statement.then), (otherwise, statement.otherwise)):
            code.start(block)
            self.emit_block(body)
            code.jump(after)
        code.start(after)

    def emit_while(self, statement: While) -> None:
        code = self.code
        test, body, after = code.new_block("while"), code.new_block("do"), code.new_block("done")
        code.jump(test)
        code.start(test)
        code.branch(self.uniform_condition(statement.condition, "a while"), body, after)
        code.start(body)
        self.emit_block(statement.body)
        code.jump(test)
        code.start(after)

    def emit_check(self, statement: Check) -> None:
        """Leaves the kernel when an active lane's condition is false, with that lane's values."""
        code, vector = self.code, self.accesses.vector
        condition = self.expression(statement.condition)
        if condition.text == "true":
            return
        values = [emit_cast(code, self.expression(x), INDEX) for x in (statement.found, statement.expected)]
        lanes = condition.lanes
        after, leave = code.new_block("checked"), code.new_block("fail")
        if not lanes:
            code.branch(condition.text, after, leave)
            code.start(leave)
        else:
            bad = code.pure(f"xor {condition.type} {condition.text}, {literal(True, BOOL, lanes).text}")
            if vector is not None and vector.mask:
                bad = code.pure(f"and {condition.type} {bad}, {vector.mask}")
            packed = code.pure(f"bitcast {condition.type} {bad} to i{lanes}")
            code.branch(code.pure(f"icmp eq i{lanes} {packed}, 0"), after, leave)
            code.start(leave)
            lane = code.call_pure(f"llvm.cttz.i{lanes}", f"i{lanes}", (f"i{lanes}", packed), ("i1", "true"))
            values = [self.lane_of(value, lane, lanes) for value in values]
        self.report(statement, values[0].text, values[1].text)
        code.start(after)

    def report(self, statement: Check, found: str, expected: str) -> None:
        """Tells the team, and returns."""
        code = self.code
        place = code.pure("getelementptr i8, ptr %team, i64 8")
        fail = code.value(f"load ptr, ptr {place}, align 8")
        site = code.module.site(statement.message)
        code.effect(f"call void {fail}(ptr %team, i32 {statement.code}, i32 {site}, i64 {found}, i64 {expected})")
        code.end(f"ret i32 {statement.code}")

    def lane_of(self, value: Value, lane: str, lanes: int) -> Value:
        value = spread(self.code, value, lanes)
        return Value(self.code.pure(f"extractelement {value.type} {value.text}, i{lanes} {lane}"), value.dtype)

    # ---- loops ----

    def emit_for(self, loop: For) -> None:
        extent = self.indices.substituted(loop.extent)
        if bounds(extent)[1] <= 0:  # sizes in the body may make no sense then
            return
        if self.accesses.vector is not None and self.indices.is_varying(extent):
            raise InternalError(f"llvm backend: the extent {extent} of the loop over {loop.symbol.name} differs between lanes")
        if extent is not loop.extent:
            loop = replace(loop, extent=extent)
        match loop.kind:
            case "serial" if self.accesses.vector is None and is_tile(loop):
                self.emit_tile(loop)
            case "serial":
                self.emit_range(loop, "0", self.indices.uniform(loop.extent), bounds(loop.extent)[0] >= 1)
            case "unrolled":
                self.emit_unrolled(loop)
            case "vector" if loop.extent == 1:  # which may read what it combines into
                self.emit_unrolled(loop)
            case "vector":
                self.emit_vector(loop)
            case "parallel":
                self.emit_parallel(loop)
            case _:
                raise InternalError(f"llvm backend: no code for a {loop.kind} loop")

    def emit_tile(self, loop: For) -> None:
        """A square that is read by columns: transposed in registers where it is whole, which may be known at run time only."""
        code, inner = self.code, loop.body[0]
        assert isinstance(inner, For)
        partial = [n for n in (loop.extent, inner.extent) if not isinstance(n, int)]
        if not partial:
            self.emit_whole_tile(loop, inner)
            return
        whole, rest, after = code.new_block("tile"), code.new_block("rest"), code.new_block("end")
        tests = [code.pure(f"icmp eq i64 {self.indices.uniform(n)}, {inner.lanes}") for n in partial]
        code.branch(tests[0] if len(tests) == 1 else code.pure(f"and i1 {tests[0]}, {tests[1]}"), whole, rest)
        code.start(whole)
        depth = self.indices.push_scope()
        self.emit_whole_tile(loop, inner)
        self.indices.pop_scopes(depth)
        code.jump(after)
        code.start(rest)
        self.emit_range(loop, "0", self.indices.uniform(loop.extent), False)
        code.jump(after)
        code.start(after)

    def emit_whole_tile(self, loop: For, inner: For) -> None:
        across = self.accesses.across = Across(loop.symbol)
        for across.position in range(inner.lanes):
            before = self.indices.bind(loop.symbol.name, across.position)
            self.emit_block((replace(inner, extent=inner.lanes),))
            self.indices.restore(loop.symbol.name, before)
        self.accesses.across = None

    def emit_range(self, loop: For, start: str, end: str, runs: bool) -> None:
        """`symbol` from `start` up to `end`; `runs`: at least once, as far as is proved."""
        name = loop.symbol.name
        if loop.extent == 1 and runs:
            self.with_symbol(name, 0, loop.body)
            return
        self.counted(start, end, 1, runs, lambda position: self.with_symbol(name, position, loop.body))

    def with_symbol(self, name: str, value: int | str, body: Sequence[Stmt]) -> None:
        depth = self.indices.push_scope()
        before = self.indices.bind(name, value)
        self.emit_block(body)
        self.indices.restore(name, before)
        self.indices.pop_scopes(depth)

    def counted(self, start: str, end: str, step: int, runs: bool, body: Callable[[str], None]) -> None:
        """A bottom-tested loop from `start` in steps while below `end`; `end - start` is a multiple of the step."""
        code = self.code
        before, top, after = code.block, code.new_block("loop"), code.new_block("end")
        if runs:
            # LLVM would remove an empty block before a loop, and clear accumulators outside of the if that it stands in
            code.module.declare("llvm.donothing", "void", "")
            code.effect("call void @llvm.donothing()")
            code.jump(top)
        else:
            code.branch(code.pure(f"icmp slt i64 {start}, {end}"), top, after)
        code.start(top)
        position, line = code.phi("i64")
        body(position)
        following = code.pure(f"add nuw nsw i64 {position}, {step}")
        code.complete_phi(top, line, (start, before), (following, code.block))
        code.branch(code.pure(f"icmp slt i64 {following}, {end}"), top, after)
        code.start(after)

    def emit_unrolled(self, loop: For) -> None:
        if not isinstance(loop.extent, int):
            raise InternalError(f"llvm backend: the unrolled loop over {loop.symbol.name} has the symbolic extent {loop.extent}")
        for value in range(loop.extent):
            before = self.indices.bind(loop.symbol.name, value)
            self.emit_block(loop.body)
            self.indices.restore(loop.symbol.name, before)

    def iterations(self, extent: DimLike) -> str:
        """The extent of a loop whose iterations are counted out; one below zero means none."""
        text = self.indices.uniform(extent)
        return text if bounds(extent)[0] >= 0 else self.code.call_pure("llvm.smax.i64", "i64", ("i64", text), ("i64", "0"))

    def emit_parallel(self, loop: For) -> None:
        """Thread t takes the iterations i with i * threads // extent == t."""
        if not any(isinstance(s, For) and loop.body is s.body for s in self.kernel.body):
            raise InternalError(f"llvm backend: the parallel loop over {loop.symbol.name} is not at the outermost level")
        code, extent = self.code, self.iterations(loop.extent)
        code.module.helpers[FIRST_ITERATION] = FIRST_ITERATION_TEXT
        start, end = (code.pure(f"call i64 @{FIRST_ITERATION}(i64 {extent}, i64 {number}, i64 %threads)")
                      for number in ("%thread", code.pure("add i64 %thread, 1")))
        self.counted(start, end, 1, False, lambda position: self.with_symbol(loop.symbol.name, position, loop.body))

    # ---- vector loops ----

    def emit_vector(self, loop: For) -> None:
        if self.accesses.vector is not None:
            raise InternalError(f"llvm backend: the vector loop over {loop.symbol.name} stands in another one")
        if loop.lanes < 1:
            raise InternalError(f"llvm backend: the vector loop over {loop.symbol.name} has {loop.lanes} lanes")
        extent = loop.extent
        # What is appended to this block stands before the loop, even when the loop has begun.
        vector = VectorLoop(loop.lanes, len(self.indices.scopes), self.code.block)
        if isinstance(extent, int) and (extent // loop.lanes <= SHORT_LOOP or self.indexes_register(loop)):
            self.emit_static_chunks(loop, vector, extent)
        elif bounds(extent)[1] <= loop.lanes:
            # At most one chunk, under a mask: its position is the constant 0, as register buffers need.
            self.emit_tail(loop, vector, "0", self.indices.uniform(extent))
        else:
            self.emit_chunks(loop, vector)
        self.accesses.finish_partials(vector)

    def indexes_register(self, loop: For) -> bool:
        registers = [m.buffer.name for m in self.accesses.memories.values() if m.is_register]
        inner = [s.buffer.name for s in walk(loop.body) if isinstance(s, Alloc) and s.buffer.space == "register"]
        return any(_indexes(loop, name) for name in (*registers, *inner))

    def emit_static_chunks(self, loop: For, vector: VectorLoop, extent: int) -> None:
        whole, copies = extent // loop.lanes, self.copies(loop)
        for chunk in range(whole):
            vector.copy = chunk % copies
            self.emit_chunk(loop, vector, chunk * loop.lanes, "")
        if extent % loop.lanes:
            vector.copy = 0
            self.emit_chunk(loop, vector, whole * loop.lanes, mask_text(extent % loop.lanes, loop.lanes))

    def emit_chunks(self, loop: For, vector: VectorLoop) -> None:
        """Interleaved chunks where the loop reduces, single chunks, then the masked rest."""
        lanes, extent = loop.lanes, self.iterations(loop.extent)
        start = "0"
        copies = self.copies(loop) if self.reduces(loop) else 1
        if copies > 1 and bounds(loop.extent)[1] >= 2 * copies * lanes:
            stop = self.whole(loop.extent, extent, copies * lanes)
            self.counted(start, stop, copies * lanes, bounds(loop.extent)[0] >= copies * lanes,
                         lambda position: self.emit_copies(loop, vector, position, copies))
            start = stop
        vector.copy = 0
        stop = self.whole(loop.extent, extent, lanes)
        if start != stop:
            runs = start == "0" and bounds(loop.extent)[0] >= lanes
            self.counted(start, stop, lanes, runs, lambda position: self.emit_chunk(loop, vector, position, ""))
        if not divides(lanes, loop.extent):
            self.emit_tail(loop, vector, stop, extent)

    def whole(self, size: DimLike, text: str, step: int) -> str:
        """The greatest multiple of `step` that is at most the extent."""
        if divides(step, size):
            return text
        if isinstance(size, int):
            return str(size // step * step)
        if step & (step - 1) == 0:
            return self.code.pure(f"and i64 {text}, {-step}")
        return self.code.pure(f"sub i64 {text}, {self.code.pure(f'urem i64 {text}, {step}')}")

    def copies(self, loop: For) -> int:
        """Interleaved copies of a loop that reduces: fewer where a vector takes several registers, which hide latency as well."""
        known = self.accesses.memories  # what the body allocates is of a lane alone
        bits = max((known[s.buffer].dtype.bits for s in loop.body if isinstance(s, Store) and s.combine and s.buffer in known), default=0)
        registers = -(-loop.lanes * bits // self.code.module.vector_bits)
        return max(1, COPIES // max(1, registers))

    def reduces(self, loop: For) -> bool:
        """Whether the body is a plain list that combines into a place which all lanes share."""
        name = loop.symbol.name
        if any(isinstance(s, For | While | If) for s in loop.body):
            return False
        return any(isinstance(s, Store) and s.combine and not _mentions(s.index, name) for s in loop.body)

    def emit_copies(self, loop: For, vector: VectorLoop, position: str, copies: int) -> None:
        for copy in range(copies):
            vector.copy = copy
            offset = copy * loop.lanes
            self.emit_chunk(loop, vector, self.code.pure(f"add nuw nsw i64 {position}, {offset}") if copy else position, "")

    def emit_tail(self, loop: For, vector: VectorLoop, start: str, extent: str) -> None:
        code, lanes = self.code, loop.lanes
        if isinstance(loop.extent, int):
            self.emit_chunk(loop, vector, int(start), mask_text(loop.extent - int(start), lanes))
            return
        tail, after = code.new_block("tail"), code.new_block("end")
        code.branch(code.pure(f"icmp slt i64 {start}, {extent}"), tail, after)
        code.start(tail)
        left = code.pure(f"trunc i64 {code.pure(f'sub i64 {extent}, {start}')} to i32")
        steps = "<" + ", ".join(f"i32 {lane}" for lane in range(lanes)) + ">"
        if code.module.hides_masks:
            left = code.pure(f'call i32 asm "", "=r,0"(i32 {left})')
        limit = spread_text(code, "i32", left, lanes)
        mask = code.pure(f"icmp ult {shaped('i32', lanes)} {steps}, {limit}")
        self.emit_chunk(loop, vector, 0 if start == "0" else start, mask)
        code.jump(after)
        code.start(after)

    def emit_chunk(self, loop: For, vector: VectorLoop, position: int | str, mask: str) -> None:
        vector.mask = mask
        self.accesses.vector = vector
        depth = self.indices.push_scope()
        before = self.indices.bind(loop.symbol.name, position, chunk=loop.lanes)
        self.emit_block(loop.body)
        self.indices.restore(loop.symbol.name, before)
        self.indices.pop_scopes(depth)
        self.accesses.vector = None
        vector.mask = ""


def _attributes(buffer: Buffer) -> str:
    """A kernel keeps no pointer; buffers do not overlap. (`readonly` would be wrong for an inout.)"""
    return "noalias readonly captures(none)" if buffer.space == "in" else "noalias captures(none)"


def _mentions(index: Sequence[DimLike], name: str) -> bool:
    return any(symbol.name == name for symbol in symbols_of(*index))


def _indexes(loop: For, buffer: str) -> bool:
    """Whether the loop's variable stands in an index of the buffer."""
    return any(True for _ in _indices(loop, buffer))


def _indices(loop: For, buffer: str) -> Iterator[tuple[DimLike, ...]]:
    """The indices of the buffer that the loop's variable stands in."""
    name = loop.symbol.name
    for statement in walk(loop.body):
        if isinstance(statement, Store) and statement.buffer == buffer and _mentions(statement.index, name):
            yield statement.index
        for root in _expressions(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load) and node.op.buffer == buffer and _mentions(node.op.index, name):
                    yield node.op.index


def _expressions(statement: Stmt) -> tuple[Node, ...]:
    match statement:
        case Store(value=value) | Let(value=value):
            return (value,)
        case Check(condition=condition, found=found, expected=expected):
            return (condition, found, expected)
        case If(condition=condition) | While(condition=condition):
            return (condition,)
    return ()


def _is_product(value: Node) -> bool:
    """fma(a, b, 0): how the lowering asks for a fused sum of products."""
    op = value.op
    if not isinstance(op, Elementwise) or op.function != "fma":
        return False
    addend = value.inputs[2].op
    return isinstance(addend, Literal) and addend.value == 0



