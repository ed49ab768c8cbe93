"""The loop IR: how a kernel computes. Loops, buffers in named memory spaces, scalar expressions, checks.

    kernel    := "kernel" "@"name "[" symbols "]" "(" buffer,* ")" "{" statement* "}"
    buffer    := "%"name ":" access dtype "[" size,* "]"             access: in | out | inout
    statement := "for" "%"i "in" "0.."size kind? "{" statement* "}"
                 kind: parallel | vector(lanes) | unrolled | block | block(blocks) | thread | warp | lane | pipeline(stages)
               | "while" expression "{" statement* "}"
               | "if" expression "{" statement* "}" ("else" "{" statement* "}")?
               | "let" "%"name "=" expression                        bound until the end of the block
               | "alloc" "%"name ":" dtype "[" size,* "]" space      space: register | local | shared | fragment
               | "%"name "[" index,* "]" ("=" | "add=" | "max=" | ...) expression
               | "stream" "%"name "[" index,* "]" "=" expression
               | "atomic" "%"name "[" index,* "]" ("add=" | "max=" | ...) expression
               | "collect" ("add" | "max" | ...) "%"name "over" width
               | ("matmul_tile" | "matmul_tf32" | "matmul_tf32_left" | "matmul_group" | "matmul_group_tf32")
                 "%"name "," "%"name "[" index,* "]" "," "%"name "[" index,* "]" "," depth
               | "matmul_codes" "%"name "," "%"name "[" index,* "]" "," "%"name "[" index,* "]" "," depth "," bits "," zero
               | "copy_async" "%"name "[" index,* "]" "=" "%"name "[" index,* "]" "," count ("given" expression)?
               | "copy_bulk" "%"name "[" index,* "]" "=" "%"name "[" index,* "]" "," count
               | "commit" | "wait" groups
               | "prefetch" "%"name "[" index,* "]"
               | "check" expression "," code "," site "," expression "," expression
    expression:= a scalar `Node`: a scalar function, `cast`, `bitcast` on expressions,
                 a literal, `load %name[index,*]`, `%name` of a let, `index(size)`
    index     := a size in normal form (`ir/dims.py`) over loop variables, index lets and the kernel's symbols

`ir/loop_text.py` gives the exact text. Buffers have names of their own; loop variables, lets and symbols share one set
of names, in which no inner name hides an outer one.

Meaning. Statements run in order. A `for` runs its variable from 0 to size - 1: `serial` and `unrolled` in order (an
unrolled loop is spelled out by the backend, its extent is static); `parallel` and `vector` promise that iterations do
not depend on one another, apart from combining stores of one kind to one place in a vector loop, whose order is free
(so a float sum is reassociated). Only the outermost statement level may hold a parallel loop; its iterations are divided
among the threads of the team. Of the other outermost statements those that store to a parameter are run by the first
thread alone, the rest by every thread; there is no barrier between them, so what one thread stores to a parameter no
other may touch in the same kernel. A vector loop runs `lanes` iterations at once; in
its body, conditions of `if` and `while` and extents of loops do not depend on its variable, and what is allocated there
belongs to one iteration. All loads of a statement happen before its store. Every operand is evaluated, also the one
that a `select` does not take.

A buffer is indexed by one size an axis, or by a single one, which is then the position in C order. Every index is within
its buffer: the lowering proves it or puts a `check` before it. `check c, code, site, found, expected` ends the kernel
with that status when c is false. Buffers are C-contiguous and do not overlap, except that an `inout` is one buffer for
both. A `register` buffer is small, has a static shape and is indexed by constants, unrolled and vector variables only;
`local` memory belongs to the thread: no iteration of a parallel loop reads from it what another one stored. Memory is
uninitialised until stored to. A `prefetch` says that the element may soon be read; it changes nothing, and its index may
lie outside the buffer. A `stream` is a store to a parameter with the hint that it should go past the caches, as one of many
that fill lines of memory in order.

Kernels for a GPU say how work is divided by loops, not by the number of a thread. Outermost stand `block` loops, whose iterations
depend on one another as little as those of a parallel loop; one block loop after another likewise. In them `thread` loops, of static
extent, are the threads of a block: iterations of one are independent, and all of one ends before the next begins (a barrier). What
stands between the two levels every thread runs alike: loops, `if`, `while`, `let`, but no store. A vector loop in a thread loop is
for memory that a thread accesses 16 bytes at a time: parameters of a kernel that has one begin at multiples of that.
`shared` memory belongs to a block and has a static shape. A `register` buffer of a block belongs to its threads: its first
axis counts them and is indexed by a thread's own variable, and what a thread keeps there lives on in the next thread loop.
`collect max %x over 32` makes each of 32 neighbouring threads' registers the greatest of all of theirs, in any order of
combination; likewise for the other combinations and widths. An `atomic` store combines, and others of its kind may meet it.
`warp` loops divide a block into warps; a `fragment` buffer `[warps, m, n]` is registers of warps, `matmul_tile %c, %a[i, k],
%b[k, j], 16` in a warp loop adds to the warp's part of c the product of a's `[m, 16]` from [i, k] on and b's `[16, n]` from
[k, j] on (float sums in any order). Where a is bytes, b's elements are bytes, of which each 16 rows hold the steps of `BYTE_STEPS`
(`loop_gpu.py`), or i32 words of four signed bytes, or of four of a's float8, a quarter as many rows: k counts words there.
`matmul_tf32` likewise, where a's and b's float32 are rounded first (`round_to_tf32`), `matmul_tf32_left` where only a's are, and b's lose
their last bits (`cut_to_tf32`), `matmul_group_tf32` where that is done by four warps;
`matmul_codes` likewise, where a is signed bytes and b's words hold 32 / bits codes (`step_of_place` of `weight_only_dot` says which
step each is of), from which `zero` is subtracted; `matmul_group` likewise, where four neighbouring warps, with 16 rows each that follow
one another, compute together; there b lies in squares of 8 x 8 elements or 4 x 4 words (`PackedDot.square`). A `lane` loop of extent
m * n within a warp loop is the one place where elements of its fragments are touched, element e at [w, e // n, e % n]; one of extent
m * n / 2 holds a loop over the two elements 2 * e and the next.
`copy_async` copies neighbouring elements from a parameter into shared memory; they are there for a thread loop after `commit` has
closed the group of copies and a `wait` that leaves fewer groups under way than have been closed since. Where what stands behind
`given` is false, they are zeros, and the parameter is not read.
A `pipeline(stages)` loop stands in a block loop. Its body begins with copies: `copy_bulk` of neighbouring elements, once a block, by
the copy engine, and a thread loop with `copy_async` and stores to shared memory; then a warp loop multiplies by `matmul_group`
what they brought. The copies of a round may run up to `stages` rounds before its products, in order, and have come before these.
Where they put what they bring depends on the round by its remainder by `stages` alone. The block loop is persistent, `block(n)`: at most
n blocks take its iterations in turns, each every n-th, and copies of the next one run ahead of what is left to do in this one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from .dims import DimLike, Symbol, bounds, substitute, symbol
from .errors import UNKNOWN, CompileError, Loc
from .graph import Node, Op
from .types import INDEX, DType, TensorType, Type

ACCESS = ("in", "out", "inout")
SPACES = ("register", "local")
GPU_SPACES = ("shared", "fragment")
LOOP_KINDS = ("serial", "parallel", "vector", "unrolled")
PIPELINE = "pipeline"
GPU_KINDS = ("block", "thread", "warp", "lane")
INDEPENDENT_KINDS = ("parallel", "vector", *GPU_KINDS)  # of loops whose iterations do not depend on one another
# combining stores: the scalar function applied to the old and the new value
COMBINES = ("add", "mul", "max", "min", "and", "or")


class Literal(Op, frozen=True, eq=False):
    """A number or truth value of the given dtype (index included). Zeros of both signs are two literals."""

    name: ClassVar[str] = "literal"
    value: int | float | bool
    dtype: DType

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self._bits == other._bits and self.dtype == other.dtype

    def __hash__(self) -> int:
        return hash((self._bits, self.dtype))

    @cached_property
    def _bits(self) -> int | bytes:
        return struct.pack("d", self.value) if isinstance(self.value, float) else self.value

    def infer(self, *types: Type) -> Type:
        return TensorType(self.dtype, ())


class Load(Op, frozen=True):
    """The element of a buffer at an index."""

    name: ClassVar[str] = "load"
    buffer: str
    index: tuple[DimLike, ...]
    dtype: DType

    def infer(self, *types: Type) -> Type:
        return TensorType(self.dtype, ())


class Local(Op, frozen=True):
    """The value of a `let`."""

    name: ClassVar[str] = "local"
    variable: str
    dtype: DType

    def infer(self, *types: Type) -> Type:
        return TensorType(self.dtype, ())


class IndexValue(Op, frozen=True):
    """A size or index expression as a scalar of dtype index."""

    name: ClassVar[str] = "index"
    size: DimLike

    def infer(self, *types: Type) -> Type:
        return TensorType(INDEX, ())


class Buffer(Struct, frozen=True):
    """Memory with a dtype and a C-contiguous shape. `space`: 'in', 'out', 'inout' of a kernel's parameter, or that of
    an alloc: one of SPACES and GPU_SPACES."""

    name: str
    dtype: DType
    shape: tuple[DimLike, ...]
    space: str


class For(Struct, frozen=True, eq=False):
    """`symbol` runs over 0 .. extent - 1; its bounds are declared in the symbol itself. `lanes`: of a vector loop; of a pipeline
    its stages; of a persistent block loop the blocks."""

    symbol: Symbol
    extent: DimLike
    kind: str
    body: tuple[Stmt, ...]
    lanes: int = 0


class While(Struct, frozen=True, eq=False):
    """Runs while the condition, evaluated before each round, is true."""

    condition: Node
    body: tuple[Stmt, ...]


class If(Struct, frozen=True, eq=False):
    """One of two blocks. In a vector loop the condition must not depend on the loop's variable."""

    condition: Node
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


class Let(Struct, frozen=True, eq=False):
    """A name for a value; one of dtype index may stand in index expressions as `symbol`, whose bounds are proved by a
    check before its first use."""

    name: str
    value: Node
    symbol: Symbol | None = None


class Alloc(Struct, frozen=True, eq=False):
    """Memory for the rest of the block."""

    buffer: Buffer


class Store(Struct, frozen=True, eq=False):
    """Writes, or combines with, the element at the index. `stream`: past the caches, where the target can; `atomic`: other
    threads may combine with the element at the same time."""

    buffer: str
    index: tuple[DimLike, ...]
    value: Node
    combine: str = ""
    stream: bool = False
    atomic: bool = False


class Check(Struct, frozen=True, eq=False):
    """Ends the kernel with `code` (csrc/abi.h) when the condition is false; `message` says what and where."""

    condition: Node
    code: int
    message: str
    found: Node
    expected: Node


class Prefetch(Struct, frozen=True, eq=False):
    """A hint to bring the line of memory at the index near. It has no effect, wherever the index lies."""

    buffer: str
    index: tuple[DimLike, ...]


class Collect(Struct, frozen=True, eq=False):
    """Makes the registers of each `width` neighbouring threads what `combine` makes of all of theirs."""

    buffer: str
    combine: str
    width: int


class MatmulTile(Struct, frozen=True, eq=False):
    """Adds to a warp's fragment the product of parts of two matrices, from these indices on; `depth`: elements of each sum. `grouped`:
    each four warps compute theirs together. `bits`: of the codes that the right one's words hold (0: they hold none), less `zero`.
    `tf32`: 'both' are rounded to that first, or the 'left' one, and the right one cut."""

    accumulator: str
    left: str
    left_index: tuple[DimLike, ...]
    right: str
    right_index: tuple[DimLike, ...]
    depth: int
    grouped: bool = False
    bits: int = 0
    zero: int = 0
    tf32: str = ""


# words for these in text: whether they are grouped, and what is rounded
MATMULS = {"matmul_tile": (False, ""), "matmul_tf32": (False, "both"), "matmul_tf32_left": (False, "left"), "matmul_group": (True, ""),
           "matmul_group_tf32": (True, "left")}


class CopyAsync(Struct, frozen=True, eq=False):
    """Begins to copy `count` neighbouring elements of a parameter into shared memory; zeros where the condition is false."""

    buffer: str
    index: tuple[DimLike, ...]
    source: str
    source_index: tuple[DimLike, ...]
    count: int
    condition: Node | None = None


class CopyBulk(Struct, frozen=True, eq=False):
    """Copies `count` neighbouring elements of a parameter into shared memory, once for the block, in a pipeline."""

    buffer: str
    index: tuple[DimLike, ...]
    source: str
    source_index: tuple[DimLike, ...]
    count: int


class Commit(Struct, frozen=True, eq=False):
    """Closes the group of copies that have begun since the last one was closed."""


class Wait(Struct, frozen=True, eq=False):
    """Waits until at most so many closed groups of copies are under way, the latest ones."""

    groups: int


Stmt = For | While | If | Let | Alloc | Store | Check | Prefetch | Collect | MatmulTile | CopyAsync | CopyBulk | Commit | Wait


class Kernel(Struct, frozen=True, eq=False, weakref=True):
    """Statements over parameters. `symbols` are the sizes passed at each launch; `origin` the nodes it stands for."""

    name: str
    buffers: tuple[Buffer, ...]
    symbols: tuple[Symbol, ...]
    body: tuple[Stmt, ...]
    loc: Loc = UNKNOWN

    def buffer(self, name: str) -> Buffer:
        for buffer in self.buffers:
            if buffer.name == name:
                return buffer
        raise CompileError(f"kernel {self.name}: no buffer {name}")


def blocks_of(statement: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    """The nested blocks of a statement."""
    match statement:
        case For(body=body) | While(body=body):
            return (body,)
        case If(then=then, otherwise=otherwise):
            return (then, otherwise)
    return ()


def walk(body: Sequence[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer before inner, in order."""
    stack = list(reversed(body))
    while stack:
        statement = stack.pop()
        yield statement
        for block in reversed(blocks_of(statement)):
            stack.extend(reversed(block))


def names_of(kernel: Kernel) -> set[str]:
    """Every name that the kernel declares."""
    taken = {s.name for s in kernel.symbols} | {b.name for b in kernel.buffers}
    for statement in walk(kernel.body):
        match statement:
            case For(symbol=variable):
                taken.add(variable.name)
            case Let(name=name):
                taken.add(name)
            case Alloc(buffer=buffer):
                taken.add(buffer.name)
    return taken


def expressions_of(statement: Stmt) -> tuple[Node, ...]:
    """The expressions a statement evaluates itself (not those of nested blocks)."""
    match statement:
        case While(condition=condition) | If(condition=condition):
            return (condition,)
        case Let(value=value) | Store(value=value):
            return (value,)
        case Check(condition=condition, found=found, expected=expected):
            return (condition, found, expected)
        case CopyAsync(condition=condition) if condition is not None:
            return (condition,)
    return ()


def expression_nodes(root: Node, known: Container[Node] = ()) -> tuple[Node, ...]:
    """The nodes of an expression, operands first, each once. Those that are `known` are left out with all that they are made of."""
    if root in known:
        return ()
    if not root.inputs:
        return (root,)
    order: dict[Node, None] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = [i for i in node.inputs if i not in order and i not in known]
        if waiting:
            stack += reversed(waiting)
            continue
        stack.pop()
        order[node] = None
    return tuple(order)


def loop_variable(name: str, extent: DimLike) -> Symbol:
    """The symbol of a loop variable with the bounds that the extent gives it."""
    high = bounds(extent)[1]
    return Symbol(name, 0, None if isinstance(high, float) else max(high - 1, 0))


def variable_size(variable: Symbol) -> DimLike:
    """What stands for the variable in index expressions: its one value where the bounds leave only one."""
    return symbol(variable.name, variable.lower, variable.upper, variable.multiple_of)


def map_expression(root: Node, change: Callable[[Op], Op], done: dict[Node, Node]) -> Node:
    """The expression with each op replaced by `change(op)`; unchanged parts stay the same nodes. `done` carries what is
    known from one expression to the next."""
    for node in expression_nodes(root, done):
        inputs = tuple([done[i] for i in node.inputs])
        op = change(node.op)
        same = op is node.op and inputs == node.inputs
        done[node] = node if same else Node(op, inputs, op.infer(*[i.type for i in inputs]), node.loc)
    return done[root]


def map_statements(body: Sequence[Stmt], size: Callable[[DimLike], DimLike], change: Callable[[Op], Op],
                   access: Callable[[str, tuple[DimLike, ...]], tuple[str, tuple[DimLike, ...]]]) -> tuple[Stmt, ...]:
    """The statements with sizes, the ops of expressions, and buffer and index of stores replaced. Recursion follows the
    nesting of blocks."""
    done: dict[Node, Node] = {}

    def block(statements: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple(map(statement, statements))

    def statement(s: Stmt) -> Stmt:
        match s:
            case Store():
                buffer, index = access(s.buffer, s.index)
                return replace(s, buffer=buffer, index=index, value=map_expression(s.value, change, done))
            case Let():
                return replace(s, value=map_expression(s.value, change, done))
            case Check():
                return replace(s, condition=map_expression(s.condition, change, done),
                               found=map_expression(s.found, change, done),
                               expected=map_expression(s.expected, change, done))
            case For():
                return replace(s, extent=size(s.extent), body=block(s.body))
            case While():
                return replace(s, condition=map_expression(s.condition, change, done), body=block(s.body))
            case If():
                return replace(s, condition=map_expression(s.condition, change, done), then=block(s.then),
                               otherwise=block(s.otherwise))
            case Prefetch():
                buffer, index = access(s.buffer, s.index)
                return Prefetch(buffer, index)
            case Alloc():
                return Alloc(replace(s.buffer, shape=tuple(map(size, s.buffer.shape))))
            case MatmulTile():
                left, left_index = access(s.left, s.left_index)
                right, right_index = access(s.right, s.right_index)
                return replace(s, left=left, left_index=left_index, right=right, right_index=right_index)
            case CopyAsync() | CopyBulk():
                buffer, index = access(s.buffer, s.index)
                source, source_index = access(s.source, s.source_index)
                moved = replace(s, buffer=buffer, index=index, source=source, source_index=source_index)
                if isinstance(moved, CopyAsync) and moved.condition is not None:
                    return replace(moved, condition=map_expression(moved.condition, change, done))
                return moved
            case Collect() | Commit() | Wait():
                return s

    return block(body)


def substitute_statements(body: Sequence[Stmt], binding: Mapping[str, DimLike]) -> tuple[Stmt, ...]:
    """The statements with symbols replaced in every size, index and expression. The caller sees to it that what is put
    in names nothing that the body binds itself."""
    return map_sizes(body, lambda size: substitute(size, binding))


def map_sizes(body: Sequence[Stmt], size: Callable[[DimLike], DimLike]) -> tuple[Stmt, ...]:
    """The statements with every size replaced, also where it is an index or a value."""
    def change(op: Op) -> Op:
        match op:
            case Load(index=index):
                moved = tuple(map(size, index))
                return op if moved == index else replace(op, index=moved)
            case IndexValue(size=old):
                return op if size(old) == old else IndexValue(size(old))
        return op

    return map_statements(body, size, change, lambda buffer, index: (buffer, tuple(map(size, index))))
