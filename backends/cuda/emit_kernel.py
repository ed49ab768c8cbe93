"""One kernel of the loop IR of a GPU as a CUDA C++ function.

Assumes a kernel that `verify_kernel` accepts, whose outermost statements are block loops (`compiler/lowering/gpu.py` makes it so).
A block loop is `blockIdx.x`, a thread loop `threadIdx.x`; `__syncthreads()` stands between two thread loops where what one stores to
memory the other may touch (`barriers.py`). Loops, conditions and names are those of the loop IR, of which the
function's comment shows the first lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tilewright.backends.cuda.barriers import Barriers, Touched
from tilewright.backends.cuda.emit_collective import WARP, emit_collect, emit_copy
from tilewright.backends.cuda.emit_expressions import Expressions
from tilewright.backends.cuda.emit_launch import dynamic_shared_bytes, grid_of
from tilewright.backends.cuda.emit_matrix import (
    MatrixPart,
    emit_elements,
    emit_group_products,
    emit_products,
    first_row,
    fragment_registers,
)
from tilewright.backends.cuda.emit_names import comment_of, without_single_blocks, wrapped
from tilewright.backends.cuda.emit_pipeline import Parts, Pipeline, emit_barriers, emit_pipeline, pipeline_of
from tilewright.backends.cuda.emit_scalars import (
    ROUNDING,
    emit_combined,
    loaded,
    memory_type,
    stored,
    value_type,
)
from tilewright.backends.cuda.emit_sizes import ATOM, OR, SUM, UNARY, Text, is_narrow, within
from tilewright.backends.cuda.emit_vectors import vector_parts
from tilewright.backends.cuda.module import CudaKernel
from tilewright.ir.dims import DimLike, Symbol, bounds, product, size_of, substitute, symbols_of
from tilewright.ir.errors import InternalError
from tilewright.ir.graph import Node
from tilewright.ir.loop import (
    Alloc,
    Buffer,
    Check,
    Collect,
    Commit,
    CopyAsync,
    CopyBulk,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Load,
    Local,
    MatmulTile,
    Prefetch,
    Stmt,
    Store,
    Wait,
    While,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_statements,
    names_of,
    substitute_statements,
    walk,
)
from tilewright.ir.loop_gpu import blocks_together, shared_bytes, threads_of
from tilewright.ir.types import INDEX

DECLARED = re.compile(r" *const (?:int|long long|\w+) (\w+) = [^\[(]*;$")  # without effect
WORD = re.compile(r"\w+")
MOST_UNROLLED = 64
SWIZZLED_ALIGNMENT = 1024


def emit_kernel(kernel: Kernel, name: str, sites: dict[str, int]) -> tuple[CudaKernel, str]:
    """How the kernel is launched, and its text. `sites`: numbers of the messages of checks, which this adds to."""
    fails = any(isinstance(s, Check) for s in walk(kernel.body))
    writer = _Writer(kernel, sites)
    body = writer.body()
    threads = threads_of(kernel)
    parameters = [writer.parameter(b) for b in kernel.buffers]
    parameters += ["tw_failure *failure"] if fails else []
    parameters += [f"long long {writer.variable(s.name)}" for s in kernel.symbols]
    shared = dynamic_shared_bytes(kernel)
    together = f", {blocks_together(shared)}" if pipeline_of(kernel) is not None else ""
    head = f'extern "C" __global__ void __launch_bounds__({threads}{together}) {name}('
    lines = [*comment_of(kernel), *wrapped(head, parameters), *body, "}"]
    return CudaKernel(name, kernel, grid_of(kernel), threads, shared, fails), "\n".join(lines) + "\n"


class _Writer(Expressions):
    """Writes the body of one kernel. Recursion follows the nesting of blocks."""

    def __init__(self, kernel: Kernel, sites: dict[str, int]) -> None:
        super().__init__(kernel)
        self.sites = sites
        self.level = ""
        self.warp_loop: For | None = None
        self.threads = threads_of(kernel)
        self.in_turns = False  # whether the block goes on to another tile
        self.checked = _checked_names(kernel)
        self.barriers = Barriers(kernel)
        self.kernel_names = names_of(kernel)

    # --- statements ---

    def body(self) -> list[str]:
        dynamic, pipeline, several = dynamic_shared_bytes(self.kernel) > 0, pipeline_of(self.kernel), len(self.kernel.body) > 1
        for loop in self.kernel.body:
            if not isinstance(loop, For) or loop.kind != "block":
                raise InternalError(f"cuda: kernel {self.kernel.name} has an outermost statement that is no block loop")
            end = self.shared_memory(loop, dynamic)
            for line in emit_barriers(pipeline, end) if pipeline is not None else ():
                self.emit(line)
        for position, loop in enumerate(self.kernel.body):
            assert isinstance(loop, For)
            if pipeline is None:
                self.block_loop(loop, several, dynamic and position > 0 and shared_bytes([loop]) > 0)
            else:
                self.tiles_in_turns(loop, pipeline)
        return self.used_lines()

    def shared_memory(self, loop: For, dynamic: bool) -> int:
        """Declares what a block loop allocates, and gives where that ends: each block loop has the same memory."""
        offset = 0
        for statement in walk(loop.body):
            if isinstance(statement, Alloc) and statement.buffer.space == "shared":
                b, count = statement.buffer, max(1, int(product(statement.buffer.shape)))
                if b.name in self.swizzled and offset % SWIZZLED_ALIGNMENT:
                    raise InternalError(f"cuda: %{b.name} of kernel {self.kernel.name} begins at byte {offset} of shared memory")
                array = f"{memory_type(b.dtype)}, {self.buffer_name(b.name)}, {count}"
                self.emit(f"TW_DYNAMIC_SHARED({array}, {offset});" if dynamic else f"TW_SHARED({array});")
                offset += -(-count * b.dtype.bytes // 128) * 128
        return offset

    def used_lines(self) -> list[str]:
        """The lines without loop variables and lets that nothing reads in their block.

        From the last line to the first, so that what only a line left out reads goes too. Indentation tells blocks."""
        kept: list[str] = []
        blocks: list[tuple[int, set[str]]] = [(0, set())]  # the blocks around a line, with the words behind it in each
        for line in reversed(self.lines):
            depth = len(line) - len(line.lstrip(" "))
            while blocks[-1][0] > depth:
                _, words = blocks.pop()
                if blocks[-1][0] < depth:
                    blocks.append((depth, set()))
                blocks[-1][1].update(words)
            if blocks[-1][0] < depth:
                blocks.append((depth, set()))
            declared = DECLARED.match(line)
            if declared is None or declared[1] in blocks[-1][1]:
                blocks[-1][1].update(WORD.findall(line))
                kept.append(line)
        return without_single_blocks(kept[::-1])

    def block(self, body: Sequence[Stmt]) -> None:
        outer = dict(self.buffers)
        for statement in body:
            self.statement(statement)
        self.buffers = outer

    def inside(self, head: str, body: Sequence[Stmt]) -> None:
        self.emit(f"{head} {{")
        self.indent += 1
        self.block(body)
        self.indent -= 1
        self.emit("}")

    def block_loop(self, loop: For, several: bool, shares: bool) -> None:
        """`several`: there are other block loops, which may be longer; `shares`: threads may still read what an earlier one has left in
        shared memory, or copy to it."""
        self.level = "block"
        self.barriers.since = Touched()
        name = self.variable(loop.symbol.name)
        narrow = is_narrow(loop.extent)
        kind = "int" if narrow else "long long"
        self.declare(loop.symbol.name, not narrow)
        if several:
            self.emit(f"if (blockIdx.x < {self.size(loop.extent).text}) {{")
            self.indent += 1
        self.emit(f"const {kind} {name} = blockIdx.x;")
        if shares:
            self.emit("tw_copy_async_wait(0);")
            self.barrier()
        self.block(loop.body)
        if several:
            self.indent -= 1
            self.emit("}")
        self.level = ""

    def statement(self, statement: Stmt) -> None:
        match statement:
            case For(kind="thread" | "warp"):
                self.thread_loop(statement)
            case For(kind="lane"):
                self.lane_loop(statement)
            case For(kind="vector"):
                self.vector_loop(statement)
            case MatmulTile():
                self.products(statement)
            case For():
                self.loop(statement)
            case While():
                self.while_loop(statement)
            case If():
                self.branch(statement)
            case Let():
                self.let(statement)
            case Alloc(buffer=buffer):
                self.alloc(buffer)
            case Store():
                self.store(statement)
            case Check():
                self.check(statement)
            case Prefetch():
                pass
            case Collect() | CopyAsync() | Commit() | Wait():
                self.collective(statement)
            case _:
                raise InternalError(f"cuda: no code for {type(statement).__name__}")

    def shared_reads(self, roots: Sequence[Node]) -> None:
        """A barrier before what all threads of a block evaluate, where that reads what some have stored."""
        if self.level == "block" and self.barriers.before_reading(roots):
            self.barrier()

    def barrier(self) -> None:
        """The threads of the block wait for one another."""
        if self.in_turns:
            raise InternalError(f"cuda: the tiles of kernel {self.kernel.name} share memory beside that of the pipeline")
        self.emit("__syncthreads();")

    def branch(self, statement: If) -> None:
        self.shared_reads([statement.condition])
        value, = self.expressions([statement.condition])
        before = after = self.barriers.state()
        self.inside(f"if ({value.text})", statement.then)
        after = self.barriers.since
        if self.level == "block":
            self.barriers.since = before
        if statement.otherwise:
            self.lines[-1] += " else {"
            self.indent += 1
            self.block(statement.otherwise)
            self.indent -= 1
            self.emit("}")
        if self.level == "block":
            self.barriers.since.add(after)

    def thread_loop(self, loop: For) -> None:
        if self.barriers.before(loop):
            self.barrier()
        assert isinstance(loop.extent, int)
        threads = loop.extent * (WARP if loop.kind == "warp" else 1)
        self.emit(f"if (threadIdx.x < {threads}) {{" if threads != self.threads else "{")
        self.indent += 1
        self.threads_work(loop, 0)
        self.indent -= 1
        self.emit("}")

    def threads_work(self, loop: For, first: int) -> None:
        """What each thread, or warp, of a loop does; they are those from `first` on."""
        self.level = loop.kind
        self.warp_loop = loop
        number = f"threadIdx.x / {WARP}" if loop.kind == "warp" else "threadIdx.x"
        self.emit(f"const int {self.variable(loop.symbol.name)} = {number}{f' - {first}' if first else ''};")
        self.block(loop.body)
        self.level = "block"

    def tiles_in_turns(self, loop: For, pipeline: For) -> None:
        """A persistent block loop with its pipeline. Iterations depend on one another by shared memory alone, of which the pipeline's
        barriers take care; the block's threads are divided, so there are no others."""
        self.level, self.in_turns = "block", True
        place, outer = loop.body.index(pipeline), dict(self.buffers)
        before, after = loop.body[:place], loop.body[place + 1:]
        stage = self.unused("stage")
        self.names.known["variable", stage] = "stage"  # of the pipeline's text
        self.declare(loop.symbol.name, not is_narrow(loop.extent + loop.lanes))
        self.declare(pipeline.symbol.name, not is_narrow(pipeline.extent))
        shared = {s.buffer.name for s in before if isinstance(s, Alloc) and s.buffer.space == "shared"}
        *bulk, copies, products = _with_stage(pipeline, Symbol(stage, 0, pipeline.lanes - 1), shared)
        assert isinstance(copies, For) and isinstance(products, For) and isinstance(products.extent, int)
        multiplying = products.extent * WARP

        def copied() -> list[tuple[str, str, int]]:
            return [(f"&{self.buffer_name(s.buffer)}[{self.position(self.buffers[s.buffer], s.index)}]",
                     f"&{self.element(s.source, s.source_index)}", s.count * self.buffers[s.buffer].dtype.bytes)
                    for s in bulk if isinstance(s, CopyBulk)]

        def statements(body: Sequence[Stmt]) -> None:
            for statement in body:
                self.statement(statement)

        def begin() -> None:
            self.threads, self.barriers.since = multiplying, Touched()
            statements(before)

        def end() -> None:
            self.barriers.pipeline(pipeline)
            statements(after)

        t, k = (self.variable(each.symbol.name) for each in (loop, pipeline))
        tiles, rounds = (within(self.size(each.extent), SUM) for each in (loop, pipeline))
        kinds = ["long long" if each.symbol.name in self.wide else "int" for each in (loop, pipeline)]
        emit_pipeline(
            Pipeline(f"for ({kinds[0]} {t} = blockIdx.x; {t} < {tiles}; {t} += {loop.lanes})",
                     f"for ({kinds[1]} {k} = 0; {k} < {rounds}; ++{k})", k, "" if bounds(pipeline.extent)[0] > 0 else f"{rounds} > 0 && ",
                     pipeline.lanes, multiplying, blocks_together(dynamic_shared_bytes(self.kernel)), bool(bulk),
                     any(isinstance(s, MatmulTile) and s.tf32 != "" for s in products.body)),
            Parts(lambda: statements([s for s in before if isinstance(s, Let) or isinstance(s, Alloc) and s.buffer.name in shared]),
                  copied, lambda: self.threads_work(copies, multiplying), lambda: self.threads_work(products, 0), begin, end),
            self.emit, self.indent_by)
        self.level, self.in_turns, self.buffers = "", False, outer

    def lane_loop(self, loop: For) -> None:
        """Each lane goes through its registers of fragments, which are all of one shape."""
        touched = {s.buffer for s in walk(loop.body) if isinstance(s, Store)} | {
            n.op.buffer for s in walk(loop.body) for root in expressions_of(s) for n in expression_nodes(root) if isinstance(n.op, Load)}
        shapes = {self.buffers[name].shape[1:] for name in touched if self.buffers[name].space == "fragment"}
        if len(shapes) != 1:
            raise InternalError(f"cuda: lane loop {loop.symbol.name} over fragments of {len(shapes)} shapes")
        fragment = next(self.buffers[name] for name in touched if self.buffers[name].space == "fragment")
        columns = fragment.shape[2]
        assert isinstance(columns, int)
        self.level, self.register = "lane", self.fresh()
        self.in_pairs = loop.extent == product(fragment.shape[1:]) // 2
        interleaved = {name in self.interleaved for name in touched if self.buffers[name].space == "fragment"}
        if len(interleaved) != 1:
            raise InternalError(f"cuda: lane loop {loop.symbol.name} over fragments that lie otherwise")
        self.pair_distance = 4 if True in interleaved else 1
        # of the element's number in C order, which the body's indices divide again, its row and column
        wide, name = columns // 2 if self.in_pairs else columns, loop.symbol.name
        assert isinstance(loop.extent, int)
        row, column = (loop_variable(self.unused(f"{name}_{axis}"), n) for axis, n in (("row", loop.extent // wide), ("column", wide)))
        body = substitute_statements(loop.body, {name: size_of(row) * wide + size_of(column)})
        emit_elements(columns, fragment_registers(fragment), self.register, self.variable(row.name), self.variable(column.name),
                      lambda: self.block(body), self.emit, self.indent_by, self.in_pairs, True in interleaved)
        self.level, self.register, self.in_pairs = "warp", "", False

    def unused(self, name: str) -> str:
        """A name that the kernel has not."""
        while name in self.kernel_names:
            name += "_"
        return name

    def indent_by(self, steps: int) -> None:
        self.indent += steps

    def products(self, statement: MatmulTile) -> None:
        fragment, rows = self.buffers[statement.accumulator], statement.left_index
        dtype = self.buffers[statement.left].dtype
        if statement.grouped:
            assert self.warp_loop is not None
            rows = (first_row(rows[0], self.warp_loop.symbol), rows[1])
        left, right = self.part(statement.left, rows), self.part(statement.right, statement.right_index)
        name, depth = self.buffer_name(fragment.name), statement.depth
        made = (emit_group_products(fragment, name, left, right, dtype, depth) if statement.grouped
                else emit_products(fragment, name, left, right, dtype, depth, statement.bits, statement.zero, statement.tf32))
        for line in made:
            self.emit(line)

    def part(self, name: str, index: tuple[DimLike, ...]) -> MatrixPart:
        row, column = (within(self.size(i), SUM) for i in index)
        distance = self.buffers[name].shape[1]
        assert isinstance(distance, int)
        return MatrixPart(self.buffer_name(name), row, column, distance, self.buffers[name].dtype.bytes)

    def loop(self, loop: For) -> None:
        self.pair = loop.symbol.name if self.in_pairs else ""
        name, extent = self.variable(loop.symbol.name), self.size(loop.extent)
        if loop.extent == 1:
            self.emit("{")
            self.indent += 1
            self.emit(f"const int {name} = 0;")
            self.block(loop.body)
            self.indent -= 1
            self.emit("}")
            return
        is_wide = extent.wide and not is_narrow(loop.extent)
        self.declare(loop.symbol.name, is_wide)
        unrolled = loop.kind == "unrolled" and isinstance(loop.extent, int) and loop.extent <= MOST_UNROLLED
        if unrolled:
            self.emit("#pragma unroll")
        kind = "long long" if is_wide else "int"
        before = self.barriers.enter(loop) if self.level == "block" else None
        self.inside(f"for ({kind} {name} = 0; {name} < {extent.text}; ++{name})", loop.body)
        if before is not None:
            self.barriers.leave(loop, before)

    def vector_loop(self, loop: For) -> None:
        """What lies beside one another is loaded before the iterations, and stored after them, together."""
        self.pair = loop.symbol.name
        parts = vector_parts(loop, {b.name: b.space for b in self.kernel.buffers}, self.fresh)
        name = self.variable(loop.symbol.name)
        for (buffer, _), part in parts.items():
            self.emit(f"__align__(16) {memory_type(self.buffers[buffer].dtype)} {part.name}[{loop.lanes}];")
            if part.is_loaded:
                self.emit(f"tw_load_vector({part.name}, &{self.buffer_name(buffer)}[{self.size(part.first).text}]);")
        self.vectors = {place: f"{part.name}[{name}]" for place, part in parts.items()}
        self.emit("#pragma unroll")
        self.inside(f"for (int {name} = 0; {name} < {loop.lanes}; ++{name})", loop.body)
        self.vectors = {}
        for (buffer, _), part in parts.items():
            if not part.is_loaded:
                self.emit(f"tw_store_vector(&{self.buffer_name(buffer)}[{self.size(part.first).text}], {part.name});")

    def while_loop(self, statement: While) -> None:
        before = self.barriers.enter(statement) if self.level == "block" else None
        self.emit("while (true) {")
        self.indent += 1
        self.shared_reads([statement.condition])
        value, = self.expressions([statement.condition])
        self.emit(f"if (!{within(value, UNARY)}) break;")
        self.block(statement.body)
        self.indent -= 1
        self.emit("}")
        if before is not None:
            self.barriers.leave(statement, before)

    def let(self, statement: Let) -> None:
        self.shared_reads([statement.value])
        value, = self.expressions([statement.value])
        dtype = statement.value.dtype
        if self.level == "lane" and dtype == INDEX and value.text.isidentifier() and not value.wide:  # a row or column as it is
            self.names.known["variable", statement.name] = value.text
            self.declare(statement.name, False)
            return
        kind = value_type(dtype)
        self.unchecked.pop(statement.name, None)
        if dtype == INDEX:
            narrow = not value.wide or statement.symbol is not None and is_narrow(size_of(statement.symbol))
            kind = "int" if narrow else "long long"
            self.declare(statement.name, not narrow)
            if narrow and value.wide and statement.name in self.checked:
                self.unchecked[statement.name] = self.fresh(statement.name)
                self.emit(f"const long long {self.unchecked[statement.name]} = {value.text};")
                value = Text(self.unchecked[statement.name], ATOM, True)
            if narrow and value.wide:
                value = Text(f"(int){within(value, UNARY)}", UNARY)
        self.emit(f"const {kind} {self.variable(statement.name)} = {value.text};")

    def alloc(self, buffer: Buffer) -> None:
        self.buffers[buffer.name] = buffer
        if buffer.space == "shared":
            return
        if self.level == "block":
            self.private.add(buffer.name)
        if buffer.space == "fragment":
            self.emit(f"{memory_type(buffer.dtype)} {self.buffer_name(buffer.name)}[{fragment_registers(buffer)}];")
            return
        name, kind = self.buffer_name(buffer.name), memory_type(buffer.dtype)
        shape = buffer.shape[1:] if buffer.name in self.private else buffer.shape
        size = product(shape)
        if not isinstance(size, int):
            raise InternalError(f"cuda: {buffer.space} buffer %{buffer.name} of kernel {self.kernel.name} has the size {size}")
        self.emit(f"{kind} {name};" if self.is_scalar(buffer) else f"{kind} {name}[{max(1, size)}];")

    def store(self, store: Store) -> None:
        buffer = self.buffers[store.buffer]
        element = self.element(store.buffer, store.index)
        copied = store.value.op
        if isinstance(copied, Load) and not store.combine and buffer.dtype in ROUNDING:
            self.emit(f"{element} = {self.element(copied.buffer, copied.index)};")  # as it is, without a float between
            return
        value, = self.expressions([store.value])
        if store.atomic:
            self.emit(f"tw_atomic_{store.combine}(&{element}, {stored(value, buffer.dtype)});")
            return
        if store.combine:
            plain = buffer.dtype.is_float and buffer.dtype.bits >= 32 and store.combine in ("add", "mul")
            if plain:
                self.emit(f"{element} {'+' if store.combine == 'add' else '*'}= {value.text};")
                return
            value = emit_combined(store.combine, buffer.dtype, loaded(element, buffer.dtype), value)
        self.emit(f"{element} = {stored(value, buffer.dtype)};")

    def check(self, check: Check) -> None:
        site = self.sites.setdefault(check.message, len(self.sites))
        self.is_checking = True
        condition, found, expected = self.expressions([check.condition, check.found, check.expected])
        self.is_checking = False
        numbers = ", ".join(f"(long long){within(v, UNARY)}" for v in (found, expected))
        self.emit(f"if (!{within(condition, UNARY)}) {{  // {_printable(check.message)}")
        self.emit(f"  tw_fail(failure, {check.code}, {site}, {numbers});")
        if self.in_turns and self.level != "lane":
            raise InternalError(f"cuda: a check of kernel {self.kernel.name} stands between the warps of a pipeline")
        self.emit("  continue;  // with the next element: others wait for this warp" if self.in_turns else "  return;")
        self.emit("}")

    def collective(self, statement: Collect | CopyAsync | Commit | Wait) -> None:
        """What the threads of a block do together."""
        match statement:
            case Collect(buffer=name):
                buffer = self.buffers[name]
                count = int(product(buffer.shape[1:]))
                elements = [self.buffer_name(name)] if not buffer.shape[1:] else [f"{self.buffer_name(name)}[{i}]" for i in range(count)]
                for line in emit_collect(statement, buffer.dtype, elements, self.threads):
                    self.emit(line)
            case CopyAsync(buffer=name, index=index, source=source, source_index=origin, count=count):
                bytes_copied = count * self.buffers[name].dtype.bytes
                given = within(self.expressions([statement.condition])[0], OR) if statement.condition is not None else ""
                self.emit(emit_copy(f"&{self.element(name, index)}", f"&{self.element(source, origin)}", bytes_copied, given))
            case Commit():
                self.emit("tw_copy_async_commit();")
            case Wait(groups=groups):
                self.emit(f"tw_copy_async_wait({groups});")
                self.barriers.wait(groups)


def _checked_names(kernel: Kernel) -> set[str]:
    """The variables, lets and symbols that checks are about."""
    found: set[str] = set()
    for statement in walk(kernel.body):
        if isinstance(statement, Check):
            for op in (node.op for root in expressions_of(statement) for node in expression_nodes(root)):
                if isinstance(op, Local):
                    found.add(op.variable)
                elif isinstance(op, IndexValue):
                    found.update(symbol.name for symbol in symbols_of(op.size))
    return found


def _with_stage(pipeline: For, stage: Symbol, shared: set[str]) -> tuple[Stmt, ...]:
    """The body of a pipeline, with its places in shared memory by a stage that follows the last one of the tile before. Which one a round
    has does not matter, as long as its copies and its products have the same."""
    binding = {pipeline.symbol.name: size_of(stage)}

    def access(name: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        return name, tuple(substitute(i, binding) for i in index) if name in shared else index

    return map_statements(pipeline.body, lambda size: size, lambda op: op, access)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and c != "\\" else "?" for c in text)
