"""What kernels for a GPU may say where: the rules of blocks, threads and warps that `loop_verify` holds kernels to.

Each function gives the rule that is broken, in words, or nothing. The forms and their meaning are described in `loop.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .dims import DimLike, divides, size_of, substitute, symbols_of
from .loop import (
    COMBINES,
    GPU_KINDS,
    GPU_SPACES,
    MATMULS,
    PIPELINE,
    Alloc,
    Buffer,
    Check,
    Collect,
    Commit,
    CopyAsync,
    CopyBulk,
    For,
    If,
    Kernel,
    Let,
    MatmulTile,
    Prefetch,
    Stmt,
    Store,
    Wait,
    While,
    walk,
)
from .ops.weight_only import BYTE_CODES, WORD
from .types import BF16, F16, F32, I8, I32, DType

MOST_THREADS = 1024
WARP = 32
WIDTHS = (2, 4, 8, 16, 32)    # of groups of threads that shuffles combine; any more are all threads of a block
COPIED_BYTES = (4, 8, 16)
MOST_GROUPS = 7
STAGES = range(3, 9)  # of a pipeline
COPYING_THREADS = 128  # of a block with one, which copy alone
BARRIER_BYTES, ALIGNMENT = 8, 128  # of its barriers in shared memory, of which each stage has two, and of all that lies there
# shared memory of a multiprocessor that has them (sm_90), of which each block takes some bytes for itself
MULTIPROCESSOR_BYTES, OWN_BYTES = 233472, 1024
GROUP_ROWS, GROUP_COLUMNS = 16, (64, 128, 256)  # of a warp's part of a product of four
# which of 16 steps each row of a right operand of bytes holds, so that what units read of pairs of rows are neighbouring steps
BYTE_STEPS = (0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
MOST_ZERO = 128  # of codes that meet bytes
GROUP_BYTES, PIECE_BYTES = 128, 16              # of a row of its left operand, and of those parts of it that lie together
# the loops that one of a kind may stand in, innermost first among those that divide work
INSIDE = {"block": "", "thread": "block", "warp": "block", "lane": "warp"}


def group_steps(dtype: DType) -> int:
    """Steps in a row of the left operand of a product of four warps."""
    return GROUP_BYTES // dtype.bytes


def square_of(size: int) -> int:
    """Elements, or words, of so many bytes on a side of the squares in which its right operand lies (`PackedDot.square`)."""
    return PIECE_BYTES // size


def row_of_step(step: DimLike) -> DimLike:
    """Where a step lies in a right operand of bytes: the inverse of `BYTE_STEPS`, 16 by 16."""
    return step // 16 * 16 + step % 4 // 2 * 8 + step % 16 // 4 * 2 + step % 2


def block_rule(statement: Stmt, level: str, depth: int) -> str:
    """The rule that the statement breaks where it stands: `level` is the kind of the innermost loop around it that divides work."""
    match statement:
        case For(kind=kind) if kind in GPU_KINDS:
            return _loop_rule(statement, level, depth)
        case For(kind=kind) if kind == PIPELINE:
            return _pipeline_rule(statement, level, depth)
        case For(kind=kind, symbol=symbol) if level and kind == "parallel":
            return f"parallel loop {symbol.name} stands inside a {level} loop"
        case Alloc(buffer=buffer) if buffer.space in GPU_SPACES and level != "block":
            return f"{buffer.space} buffer %{buffer.name} is allocated in {_where(level)}, expected a block loop"
        case Alloc(buffer=buffer) if buffer.space == "shared" and not all(isinstance(n, int) for n in buffer.shape):
            return f"shared buffer %{buffer.name} has the shape {list(map(str, buffer.shape))}, expected a static one"
        case Alloc(buffer=buffer) if buffer.space == "local" and level == "block":
            return f"local buffer %{buffer.name} is allocated between the threads of a block, expected in a thread loop"
        case Store(buffer=name) | Prefetch(buffer=name) if level in ("block", "warp"):
            return f"%{name} is stored to in {_where(level)}, outside the threads of a block"
        case Collect() | Commit() | Wait() if level != "block":
            return f"{type(statement).__name__.lower()} stands in {_where(level)}, expected a block loop"
        case MatmulTile() if level != "warp":
            return f"matmul_tile stands in {_where(level)}, expected a warp loop"
        case CopyAsync() if level != "thread":
            return f"copy_async stands in {_where(level)}, expected a thread loop"
        case CopyBulk() if level != "block":
            return f"copy_bulk stands in {_where(level)}, expected a pipeline"
        case Let() | Check() | If() | While():
            return ""
    return ""


def _where(level: str) -> str:
    return f"a {level} loop" if level else "no block"


def _loop_rule(loop: For, level: str, depth: int) -> str:
    name, kind = loop.symbol.name, loop.kind
    if level != INSIDE[kind]:
        return f"{kind} loop {name} stands in {_where(level)}, expected {_where(INSIDE[kind])}"
    if kind == "block":
        return "" if depth == 1 else f"block loop {name} stands inside another statement, expected the outermost level"
    most = {"thread": MOST_THREADS, "warp": MOST_THREADS // WARP}.get(kind)
    if not isinstance(loop.extent, int) or most is not None and not 1 <= loop.extent <= most:
        return f"{kind} loop {name} has the extent {loop.extent}, expected a static one" + (f" of 1 to {most}" if most else "")
    return ""


def _pipeline_rule(loop: For, level: str, depth: int) -> str:
    name = loop.symbol.name
    if level != "block" or depth != 2:
        return f"pipeline {name} stands in {_where(level)} or inside of another statement, expected a block loop alone around it"
    if loop.lanes not in STAGES:
        return f"pipeline {name} has {loop.lanes} stages, expected {STAGES[0]} to {STAGES[-1]}"
    bulk = len([s for s in loop.body if isinstance(s, CopyBulk)])
    match loop.body[bulk:]:
        case (For(kind="thread", extent=extent, body=copies), For(kind="warp", body=(MatmulTile(grouped=True) as products,))):
            brought = {s.buffer for s in walk(loop.body) if isinstance(s, (CopyAsync, CopyBulk))}
            if extent == COPYING_THREADS and all(isinstance(s, (For, If, Let, CopyAsync, Store)) for s in walk(copies)):
                absent = sorted({products.left, products.right} - brought)
                return f"pipeline {name} multiplies %{absent[0]}, which it does not copy" if absent else ""
    return (f"pipeline {name} has other statements than copy_bulk, a thread loop of {COPYING_THREADS} that copies, and a warp loop "
            "with a matmul_group")


def kernel_rule(kernel: Kernel) -> str:
    """The rule about all of its statements that a kernel breaks."""
    pipelines = [s for s in walk(kernel.body) if isinstance(s, For) and s.kind == PIPELINE]
    inside = {id(s) for loop in pipelines for s in walk(loop.body)}
    for statement in walk(kernel.body):
        alone = isinstance(statement, CopyBulk) or isinstance(statement, MatmulTile) and statement.grouped
        if alone and id(statement) not in inside:
            return f"{'copy_bulk' if isinstance(statement, CopyBulk) else 'matmul_group'} stands outside of a pipeline"
    for loop in block_loops(kernel):
        if (loop.lanes > 0) != (len(pipelines) > 0) or len(pipelines) > 1 or pipelines and len(kernel.body) > 1:
            return (f"block loop {loop.symbol.name} has {loop.lanes or 'no number of'} blocks, and the kernel {len(pipelines)} pipelines, "
                    f"{len(kernel.body)} outermost statements, expected block(n) where there is one of both")
    known = {s.name for s in kernel.symbols}
    for loop in pipelines:
        if any(s.name not in known for s in symbols_of(loop.extent)):
            return f"pipeline {loop.symbol.name} has the extent {loop.extent}, expected one that is the same for all blocks"
        if rule := _stage_rule(loop):
            return rule
    return ""


def _stage_rule(loop: For) -> str:
    """Copies of one round may lie beside products of another: what a round puts somewhere, only every `stages`-th may put there."""
    if loop.symbol.upper is not None and loop.symbol.upper < loop.lanes:
        return ""
    later = {loop.symbol.name: size_of(loop.symbol) + loop.lanes}
    for statement in walk(loop.body):
        match statement:
            case CopyAsync(buffer=name, index=index) | CopyBulk(buffer=name, index=index) | Store(buffer=name, index=index):
                places = [(name, index)]
            case MatmulTile(left=left, left_index=rows, right=right, right_index=columns):
                places = [(left, rows), (right, columns)]
            case _:
                continue
        for name, index in places:
            if any(substitute(i, later) != i for i in index):
                return (f"pipeline {loop.symbol.name} touches %{name} at [{', '.join(map(str, index))}], expected places that repeat every "
                        f"{loop.lanes} rounds")
    return ""


def private_rule(buffer: Buffer, index: tuple[DimLike, ...], level: str, kinds: Mapping[str, str]) -> str:
    """Registers of threads are indexed first by the thread's variable, fragments by the warp's; `kinds`: of loop variables."""
    owner, inside = ("warp", "lane") if buffer.space == "fragment" else ("thread", "thread")
    first = symbols_of(index[0]) if index else ()
    own = len(first) == 1 and index[0] == size_of(first[0]) and kinds.get(first[0].name) == owner
    if len(index) != len(buffer.shape) or not own or level != inside:
        return (f"%{buffer.name} of the {owner}s of a block is indexed by [{', '.join(map(str, index))}], expected one size an "
                f"axis, first the variable of the {owner} loop, in a {inside} loop")
    return ""


def collective_rule(statement: Stmt, buffers: list[Buffer]) -> str:
    """The rule that a statement of several threads breaks; `buffers`: its operands."""
    match statement:
        case Collect(buffer=name, combine=combine, width=width):
            buffer, = buffers
            if combine not in COMBINES:
                return f"collect combines by {combine!r}, expected one of {', '.join(COMBINES)}"
            if buffer.space != "register" or not buffer.shape:
                return f"collect of %{name}, expected registers of the threads of a block"
            if width not in WIDTHS and width != buffer.shape[0] or isinstance(buffer.shape[0], int) and buffer.shape[0] % width:
                return f"collect over {width} of {buffer.shape[0]} threads, expected {', '.join(map(str, WIDTHS))}, or all of them"
        case MatmulTile(accumulator=name, left_index=rows, right_index=columns, depth=depth, grouped=grouped):
            accumulator, left, right = buffers
            if accumulator.space != "fragment" or len(accumulator.shape) != 3:
                return f"matmul_tile adds to %{name}, expected a fragment [warps, rows, columns]"
            if not len(left.shape) == len(right.shape) == len(rows) == len(columns) == 2 or depth < 1:
                return "matmul_tile multiplies parts of matrices of two axes each, one element deep or more"
            held = I32 if left.dtype.bytes == 1 else left.dtype
            sums, plain = (F32, left.dtype) if left.dtype.is_stored else (I32, I8)
            in_bytes = held == I32 and right.dtype == plain and not grouped
            if right.dtype != held and not in_bytes or held == I32 and (accumulator.dtype != sums or depth % (16 if in_bytes else 4)):
                return f"matmul_tile adds {left.dtype} times {right.dtype} to {accumulator.dtype}, expected {held} on the right"
            if (grouped, statement.tf32) not in MATMULS.values():
                return f"a product {'of four warps ' * grouped}rounds {statement.tf32!r} to tf32, expected 'left'{', both' * (not grouped)}"
            if statement.tf32 and (left.dtype != F32 or accumulator.dtype != F32 or statement.bits):
                return f"matmul_tf32 adds {left.dtype} times {right.dtype} to {accumulator.dtype}, expected f32 for all"
            if statement.bits:
                return _codes_rule(statement, left)
            if grouped:
                return _group_rule(statement, accumulator, left, right)
        case CopyAsync(buffer=name, source=source, count=count) | CopyBulk(buffer=name, source=source, count=count):
            target, origin = buffers
            if target.space != "shared" or origin.space not in ("in", "inout") or target.dtype != origin.dtype:
                return f"a copy of %{source} to %{name}, expected an input and shared memory of one dtype"
            if isinstance(statement, CopyBulk) and (count < 1 or count * target.dtype.bytes % COPIED_BYTES[-1]):
                return f"copy_bulk of {count * target.dtype.bytes} bytes, expected a multiple of {COPIED_BYTES[-1]}"
            if isinstance(statement, CopyAsync) and count * target.dtype.bytes not in COPIED_BYTES:
                return f"copy_async of {count * target.dtype.bytes} bytes, expected {', '.join(map(str, COPIED_BYTES))}"
        case Wait(groups=groups) if not 0 <= groups <= MOST_GROUPS:
            return f"wait leaves {groups} groups under way, expected 0 to {MOST_GROUPS}"
    return ""


def _codes_rule(statement: MatmulTile, left: Buffer) -> str:
    """The rule that a product of bytes with codes breaks, whose differences from the zero have to be bytes as well."""
    if statement.grouped or left.dtype != I8 or statement.bits not in BYTE_CODES or statement.depth * statement.bits % WORD:
        return (f"matmul_codes multiplies {statement.depth} steps of {left.dtype} and codes of {statement.bits} bits, expected i8, "
                f"{' or '.join(map(str, BYTE_CODES))} bits, and whole words")
    if not 0 <= statement.zero <= MOST_ZERO:
        return f"matmul_codes subtracts {statement.zero}, expected 0 to {MOST_ZERO}"
    return ""


def _group_rule(statement: MatmulTile, accumulator: Buffer, left: Buffer, right: Buffer) -> str:
    """The rule that a product of four warps breaks."""
    warps, rows, columns = accumulator.shape
    if rows != GROUP_ROWS or columns not in GROUP_COLUMNS or not isinstance(warps, int) or warps % 4:
        return (f"matmul_group adds to %{accumulator.name} of {' x '.join(map(str, accumulator.shape))}, expected 4 warps or a multiple, "
                f"{GROUP_ROWS} rows and {', '.join(map(str, GROUP_COLUMNS))} columns")
    steps, least = group_steps(left.dtype), 2 * PIECE_BYTES // left.dtype.bytes  # of a row, and of an instruction
    fits = left.dtype in (F16, BF16) or left.dtype.bytes == 1 or statement.tf32
    if not fits or left.shape[1] != steps or statement.depth % least or statement.depth > steps:
        return (f"matmul_group multiplies {statement.depth} steps of %{left.name}, expected 16 bits, bytes or tf32, rows of {GROUP_BYTES} "
                "bytes and a part of those")
    if right.shape[1] != columns or statement.left_index[1] != 0 or statement.right_index[1] != 0:
        return f"matmul_group multiplies parts of rows of %{left.name} and %{right.name}, expected whole ones"
    high = square_of(right.dtype.bytes)
    if not divides(8, left.shape[0]) or any(not divides(high, size) for size in (right.shape[0], statement.right_index[0])):
        return (f"matmul_group multiplies %{left.name} and %{right.name}, expected multiples of 8 rows on the left, and of {high} on the "
                "right, with a first one that is one")
    return ""


def barrier_bytes(stages: int) -> int:
    """Shared memory of the barriers of a pipeline."""
    return -(-2 * stages * BARRIER_BYTES // ALIGNMENT) * ALIGNMENT


def blocks_together(shared_bytes: int) -> int:
    """Blocks with so much shared memory, barriers and all, that a multiprocessor runs at a time, where there are pipelines."""
    return max(1, MULTIPROCESSOR_BYTES // (shared_bytes + OWN_BYTES))


def block_loops(kernel: Kernel) -> tuple[For, ...]:
    """The grid: the outermost loops over blocks."""
    return tuple(s for s in kernel.body if isinstance(s, For) and s.kind == "block")


def threads_of(kernel: Kernel) -> int:
    """The threads of a block: as many as the greatest loop over threads or warps needs, at least one; with a pipeline those
    that copy as well."""
    most, copying = 1, 0
    for statement in walk(kernel.body):
        if isinstance(statement, For) and statement.kind == PIPELINE:
            copying = COPYING_THREADS
        if isinstance(statement, For) and statement.kind in ("thread", "warp"):
            assert isinstance(statement.extent, int)
            most = max(most, statement.extent * (WARP if statement.kind == "warp" else 1))
    return most + copying


def shared_bytes(body: Sequence[Stmt]) -> int:
    """Bytes of shared memory that statements allocate, each buffer aligned to 128."""
    total = 0
    for statement in walk(body):
        if isinstance(statement, Alloc) and statement.buffer.space == "shared":
            size = statement.buffer.dtype.bytes
            for n in statement.buffer.shape:
                assert isinstance(n, int)
                size *= n
            total += -(-size // 128) * 128
    return total


def shared_bytes_of_block(kernel: Kernel) -> int:
    """Bytes of shared memory that a block needs: block loops have the same memory one after the other, beside what lies outside of
    them."""
    loops = [shared_bytes(loop.body) for loop in block_loops(kernel)]
    return shared_bytes(kernel.body) - sum(loops) + max(loops, default=0)
