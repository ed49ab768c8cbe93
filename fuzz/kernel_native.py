"""Kernels as machine code, beside the loop interpreter.

A kernel becomes a program of its own (`program_of`), is compiled for this CPU or for the least one, and runs with several sets of
arguments, on one and on two threads; some are also divided among the threads of a GPU and emulated. What machine code need not give to
the bit is left out: what follows from functions that it computes to a few units in the last place, and from the sign of a zero or NaN
(`doubtful_buffers`); all, where sums may be taken in another order and are not exact (`sums_are_exact`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, product, symbols_of
from ..ir.errors import InternalError, UnsupportedError
from ..ir.graph import Node
from ..ir.loop import (
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Stmt,
    Store,
    While,
    blocks_of,
    expression_nodes,
    expressions_of,
    loop_variable,
    variable_size,
    walk,
)
from ..ir.loop_interp import run_program
from ..ir.ops.compute import Bitcast, Elementwise
from ..ir.ops.scalar import SCALARS
from ..ir.program import Launch, Place, Program
from ..ir.types import I64, U8, TensorType
from ..lowering.gpu import on_grid
from ..runtime.executable import Executable
from .kernel_edits import node
from .kernel_oracles import Arrays, crashed, differing, has_fma, is_parallel, order_is_free, sums_are_exact
from .kernel_values import EXACT
from .native import DEVICE_TARGETS, DeviceCode, caps_of, loaded, object_code, run
from .subject import Failure

TARGETS = ("cpu", "cpu:x86-64")
LATE_ROUNDS = 200_000  # of a multiplication and a sum: almost a millisecond
AGAIN = 3  # runs on two threads: the second one does not begin at once on a busy machine
GENERATOR = (6364136223846793005, 1442695040888963407)  # Knuth's, modulo 2 ** 64
# what the backend says it has no code for, among kernels that keep the rules
NO_CODE = re.compile(r"not promoted|symbolic shape|bytes, at most|is indexed by|padded rows|differs? between lanes|"
                     r"different values to one place")


def program_of(kernel: Kernel, late: bool = True) -> Program:
    """One launch of the kernel, after one that fills its results with what they hold before, `late` where threads share it; each size
    that it is given is that of an input of its own."""
    inputs: list[tuple[str, TensorType]] = []
    outputs: list[tuple[str, TensorType]] = []
    places: list[Place] = []
    fill: list[Stmt] = []
    fill_buffers: list[Buffer] = []
    fill_places: list[Place] = []
    for buffer in kernel.buffers:
        whole = TensorType(buffer.dtype, buffer.shape)
        source = Place("input", len(inputs))
        inputs.append((buffer.name, whole))
        if buffer.space == "in":
            places.append(source)
            continue
        places.append(Place("output", len(outputs)))
        outputs.append((buffer.name, whole))
        pair = [Buffer(f"a{len(fill)}", buffer.dtype, buffer.shape, "in"), Buffer(f"b{len(fill)}", buffer.dtype, buffer.shape, "out")]
        variable = loop_variable(f"p{len(fill)}", product(buffer.shape))
        position = (variable_size(variable),)
        load = node(Load(pair[0].name, position if buffer.shape else (), buffer.dtype))
        copy = Store(pair[1].name, position if buffer.shape else (), load)
        fill.append(_counted(variable, buffer, copy) if buffer.shape else copy)
        fill_buffers += pair
        fill_places += [source, places[-1]]
    inputs += [(f"size_{s.name}", TensorType(U8, (variable_size(s),))) for s in kernel.symbols]
    sizes = tuple(variable_size(s) for s in kernel.symbols)
    first = Kernel("fill", tuple(fill_buffers), kernel.symbols, (_late(fill),) if late and is_parallel(kernel) else tuple(fill))
    return Program("fuzz", tuple(inputs), tuple(outputs), (), 0, 0,
                   (Launch(first, tuple(fill_places), sizes), Launch(replace(kernel, name="tested"), tuple(places), sizes)),
                   kernel.symbols)


def _late(body: Sequence[Stmt]) -> Stmt:
    """The statements, run by one thread after some time: one that does not wait for it at the barrier is ahead then, by far more than
    threads begin apart."""
    memory = Buffer("late", I64, (1,), "local")
    here = node(Load(memory.name, (0,), I64))
    factor, summand = (node(Literal(number, I64)) for number in GENERATOR)
    change = Store(memory.name, (0,), node(Elementwise("add"), node(Elementwise("mul"), here, factor), summand))
    once, rounds = loop_variable("once", 1), loop_variable("round", LATE_ROUNDS)
    return For(once, 1, "serial", (
        Alloc(memory), Store(memory.name, (0,), node(Literal(1, I64))), For(rounds, LATE_ROUNDS, "serial", (change,)),
        If(node(Elementwise("ne"), here, node(Literal(0, I64))), tuple(body))))  # always; a compiler cannot know without counting


def _counted(variable: Symbol, buffer: Buffer, copy: Store) -> For:
    return For(variable, product(buffer.shape), "serial", (copy,))


def doubtful_buffers(kernel: Kernel) -> frozenset[str]:
    """The buffers whose values machine code need not give to the bit: what follows from functions that it computes to some
    units in the last place, and from the sign of a zero or NaN."""
    statements = list(walk(kernel.body))
    extremes = any(isinstance(n.op, Elementwise) and n.op.function in ("max", "min", "fmax", "fmin") and n.dtype.is_float
                   for s in statements for root in expressions_of(s) for n in expression_nodes(root))
    extremes = extremes or any(isinstance(s, Store) and s.combine in ("max", "min") for s in statements)
    doubtful: set[str] = set()
    count = -1
    while count != len(doubtful):
        count = len(doubtful)
        _spread(kernel.body, False, doubtful, extremes)
    return frozenset(doubtful)


def _spread(body: Sequence[Stmt], around: bool, doubtful: set[str], extremes: bool) -> None:
    """Adds what the statements store to and bind; `around`: whether a doubtful condition decides if they run."""
    for statement in body:
        here = around or any(_is_doubtful(root, doubtful, extremes) for root in expressions_of(statement))
        match statement:
            case Store(buffer=name, index=index):
                if here or _named(doubtful, *index):
                    doubtful.add(name)
            case Let(name=name):
                if here:
                    doubtful.add(name)
            case For(extent=extent):
                here = here or _named(doubtful, extent)
        for block in blocks_of(statement):
            _spread(block, here if isinstance(statement, (For, While, If)) else around, doubtful, extremes)


def _named(doubtful: set[str], *sizes: DimLike) -> bool:
    return any(s.name in doubtful for s in symbols_of(0, *sizes))


def _is_doubtful(root: Node, doubtful: set[str], extremes: bool) -> bool:
    for part in expression_nodes(root):
        match part.op:
            case Load(buffer=name, index=index):
                if name in doubtful or _named(doubtful, *index):
                    return True
            case Local(variable=name) if name in doubtful:
                return True
            case Bitcast() if part.inputs[0].dtype.is_float and not part.dtype.is_float:
                return True
            case Elementwise(function=name) if any(i.dtype.is_float for i in part.inputs):
                if name == "copysign" or (name == "div" and extremes) or (name not in EXACT and SCALARS[name].rule != "select"):
                    return True
    return False


class Run(NamedTuple):
    """Arguments of a kernel, what they hold after a run in the loop interpreter, and the size of each symbol."""

    arguments: Arrays
    expected: Arrays
    sizes: Mapping[str, int]


def check_native(kernel: Kernel, runs: Sequence[Run], seed: int) -> bool:
    """Compiles the kernel for the target that the seed chooses, runs it with each set of arguments and compares. False where the
    backend says that it has no code for such a kernel."""
    program, target = program_of(kernel), TARGETS[seed % len(TARGETS)]
    try:
        code = object_code(program, target, seed // len(TARGETS))
    except (InternalError, UnsupportedError) as error:
        if NO_CODE.search(error.message):
            return False
        raise crashed("llvm", error) from error
    executable = loaded(program, *code)
    certain = frozenset(b.name for b in kernel.buffers) - doubtful_buffers(kernel)
    any_order = order_is_free(kernel) or has_fma(kernel)
    parallel = is_parallel(kernel)
    for arguments, expected, sizes in runs:
        inputs = [*arguments, *(np.zeros(sizes[s.name], np.uint8) for s in kernel.symbols)]
        one = _outputs(kernel, executable, inputs, 1)
        for _ in range(AGAIN if parallel else 1):
            difference = differing(kernel, one, _outputs(kernel, executable, inputs, 2))
            if difference:
                raise Failure("threads", "llvm", f"{target}, one thread and two: {difference}")
        sure = frozenset() if any_order and not sums_are_exact(kernel, arguments, sizes) else certain
        difference = differing(kernel, _positive_zeros(kernel, expected), _positive_zeros(kernel, one), sure)
        if difference:
            raise Failure("result", "llvm", f"{target}: {difference}")
    return True


def check_device(kernel: Kernel, runs: Sequence[Run]) -> bool:
    """Divides the kernel's nest among blocks and threads of a GPU, as lowering does, and compares what the loop interpreter and the
    emulation make of that. False for kernels of several outermost statements, which lowering knows to be independent."""
    if len(kernel.body) != 1 or not isinstance(kernel.body[0], For):
        return False
    try:
        program = on_grid(program_of(kernel, late=False), caps_of(DEVICE_TARGETS[0], False))
    except Exception as error:
        raise crashed("on_grid", error) from error
    code = DeviceCode(program, DEVICE_TARGETS[0])
    certain = frozenset(b.name for b in kernel.buffers) - doubtful_buffers(kernel)
    try:
        for arguments, expected, sizes in runs:
            inputs = [*arguments, *(np.zeros(sizes[s.name], np.uint8) for s in kernel.symbols)]
            sure = frozenset() if order_is_free(kernel) and not sums_are_exact(kernel, arguments, sizes) else certain
            for stage, made in (("on_grid", partial(run_program, program)), ("cuda", partial(code.run, threads=1))):
                try:
                    found = _of_buffers(kernel, inputs, made(inputs))
                except Exception as error:
                    raise crashed(stage, error) from error
                difference = differing(kernel, _positive_zeros(kernel, expected), _positive_zeros(kernel, found), sure)
                if difference:
                    raise Failure("result", stage, difference)
    finally:
        code.unload()
    return True


def _of_buffers(kernel: Kernel, inputs: Arrays, results: Sequence[np.ndarray]) -> Arrays:
    """What the kernel's buffers hold after a run with these inputs and results."""
    made = iter(results)
    return [inputs[number] if buffer.space == "in" else next(made) for number, buffer in enumerate(kernel.buffers)]


def _outputs(kernel: Kernel, executable: Executable, inputs: Arrays, threads: int) -> Arrays:
    """What the kernel's buffers hold after a run."""
    try:
        results = run(executable, inputs, threads)
    except Exception as error:
        raise crashed("machine code", error) from error
    return _of_buffers(kernel, inputs, results)


def _positive_zeros(kernel: Kernel, arrays: Arrays) -> Arrays:
    """Which of two zeros is the greater one is not said."""
    return [np.where(a == 0, np.zeros_like(a), a) if b.dtype.is_float else a for a, b in zip(arrays, kernel.buffers)]

