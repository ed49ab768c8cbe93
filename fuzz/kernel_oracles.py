"""What the compiler promises of a kernel, put to the test: text, meaning in the loop interpreter, each step of a schedule,
machine code.

Comparisons are of bits, but for the payload and sign of NaN. Where combining stores may take another order (a step that was
allowed to reassociate, a vector loop, machine code), results are compared only if `sums_are_exact` has found every sum and
product to be of whole numbers that the dtype holds, in any order; where machine code computes a function to a few units in
the last place, or the sign of a zero or NaN shows, what follows from it is left out (`doubtful_buffers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from ..ir.dims import evaluate
from ..ir.errors import ArgumentError, ScheduleError, TilewrightError, VerifyError
from ..ir.graph import Node
from ..ir.loop import (
    Alloc,
    Buffer,
    For,
    If,
    IndexValue,
    Kernel,
    Literal,
    Load,
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
from ..ir.loop_interp import run_kernel
from ..ir.loop_parser import parse_kernel
from ..ir.loop_proofs import unproved_indices
from ..ir.loop_text import format_kernel
from ..ir.loop_verify import verify_kernel
from ..ir.ops.compute import Cast, Elementwise
from ..ir.schedule import PRIMITIVES, Schedule, Step, apply_schedule, format_schedule, parse_schedule
from ..ir.types import F64, I32, INDEX, DType
from .generate import MANTISSA, random_array
from .input_kinds import make_sided
from .kernel_edits import node, rebuilt
from .subject import Failure, Refused

THREADS = (62, 3)      # the first gives most iterations a thread of their own, which shows most races
SIDED_EVERY = 4        # seeds by which inputs have one sign
UNSTORED = 77          # what elements of results hold before a run
Arrays = list[np.ndarray]


# --- running ---------------------------------------------------------------------------------------------------------


def arguments_of(kernel: Kernel, sizes: Mapping[str, int], seed: int, special: bool) -> Arrays:
    """Inputs of small whole numbers, with NaN, infinities and -0.0 among them where `special`; of one sign for some seeds."""
    rng = np.random.default_rng(seed)
    found = []
    for buffer in kernel.buffers:
        shape = tuple(evaluate(n, sizes) for n in buffer.shape)
        if buffer.space == "out":
            found.append(np.full(shape, UNSTORED != 0 if buffer.dtype.is_bool else UNSTORED).astype(buffer.dtype.numpy))
        else:
            found.append(random_array(buffer.dtype, shape, rng, special))
            if seed % SIDED_EVERY == 0:
                make_sided(found[-1], rng)
    return found


def interpreted(kernel: Kernel, arguments: Arrays, sizes: Mapping[str, int]) -> Arrays:
    """The arguments after a run, with every check; kernels that run in parallel, on several numbers of threads."""
    results: Arrays = []
    for threads in THREADS if is_parallel(kernel) else (1,):
        arrays = [a.copy() for a in arguments]
        run_kernel(kernel, arrays, sizes, threads)
        if results and differing(kernel, results, arrays):
            raise Failure("threads", "loop interpreter", f"{threads} threads give other results")
        results = arrays
    return results


def is_parallel(kernel: Kernel) -> bool:
    return any(isinstance(s, For) and s.kind == "parallel" for s in kernel.body)


def differing(kernel: Kernel, before: Arrays, after: Arrays, names: frozenset[str] | None = None) -> str:
    """Where two runs differ in a result (of these names), '' if they do not."""
    for buffer, a, b in zip(kernel.buffers, before, after):
        if buffer.space == "in" or (names is not None and buffer.name not in names) or a.tobytes() == b.tobytes():
            continue
        same = a.reshape(-1).view(f"u{a.itemsize}") == b.reshape(-1).view(f"u{a.itemsize}")
        if buffer.dtype.is_float:
            with np.errstate(all="ignore"):
                same |= ((a != a) & (b != b)).reshape(-1)
        if not same.all():
            at = int(np.argmin(same))
            return f"%{buffer.name}, element {at}: {a.reshape(-1)[at]} expected, {b.reshape(-1)[at]} found"
    return ""


def first_run(kernel: Kernel, arguments: Arrays, sizes: Mapping[str, int]) -> Arrays:
    """The meaning of a kernel that nothing is known of yet. Refused where the kernel itself breaks a rule that only running
    shows; Failure where a proof says that it does not."""
    try:
        results = interpreted(kernel, arguments, sizes)
        promise = side_by_side(kernel)
        if promise is not None:
            run_kernel(promise, [a.copy() for a in arguments], sizes, THREADS[0])
        return results
    except VerifyError as error:
        if "is outside axis" in error.message and not unproved_indices(kernel):
            raise Failure("result", "loop verifier", f"an index was proved to lie inside: {error}") from None
        raise Refused(f"the kernel is at fault: {error.message}") from None
    except TilewrightError as error:
        if isinstance(error, ArgumentError):
            raise crashed("loop interpreter", error) from error
        raise Refused(f"the kernel refuses its inputs: {error.message}") from None
    except (Failure, MemoryError):
        raise
    except Exception as error:
        raise crashed("loop interpreter", error) from error


def side_by_side(kernel: Kernel) -> Kernel | None:
    """A kernel whose run shows whether a parallel loop touches what another outermost statement stores to, however their
    iterations are divided: each is one iteration of a parallel loop around all. None where there is nothing to show."""
    parameters = {b.name for b in kernel.buffers}

    def stores(statement: Stmt) -> bool:
        return any(isinstance(s, Store) and s.buffer in parameters for s in walk([statement]))

    parallel = [s for s in kernel.body if isinstance(s, For) and s.kind == "parallel"]
    if not parallel or sum(map(stores, kernel.body)) < 2:
        return None
    group = loop_variable("__statement", len(parallel) + 1)
    body: list[Stmt] = []
    for statement in kernel.body:
        if not stores(statement):  # every thread runs it
            body.append(replace(statement, kind="serial") if isinstance(statement, For) else statement)
            continue
        number = next((n for n, s in enumerate(parallel, 1) if s is statement), 0)
        here = node(Elementwise("eq"), node(IndexValue(variable_size(group))), node(Literal(number, INDEX)))
        body.append(If(here, (replace(statement, kind="serial") if isinstance(statement, For) and number else statement,)))
    return replace(kernel, body=(For(group, len(parallel) + 1, "parallel", tuple(body)),))


def crashed(stage: str, error: Exception) -> Failure:
    return Failure("crash", stage, f"{type(error).__name__}: {error}")


# --- text ------------------------------------------------------------------------------------------------------------


def check_text(kernel: Kernel, stage: str = "printer") -> None:
    """Printing and parsing are inverse."""
    try:
        text = format_kernel(kernel)
        again = parse_kernel(text)
        second = format_kernel(again)
    except Exception as error:
        raise Failure("text", stage, f"{type(error).__name__}: {error}") from error
    if second != text:
        first = next((f"{a!r} became {b!r}" for a, b in zip(text.split("\n"), second.split("\n")) if a != b), "lines are missing")
        raise Failure("text", stage, f"the text of what is parsed differs: {first}")
    difference = unlike(kernel.body, again.body)
    if difference:
        raise Failure("text", stage, f"what is parsed differs: {difference}")


def check_schedule_text(schedule: Schedule) -> None:
    try:
        again = parse_schedule(format_schedule(schedule))
    except Exception as error:
        raise Failure("text", "schedule printer", f"{type(error).__name__}: {error}") from error
    if again != schedule:
        raise Failure("text", "schedule printer", f"{format_schedule(schedule)!r} is read as {format_schedule(again)!r}")


def unlike(body: Sequence[Stmt], other: Sequence[Stmt]) -> str:
    """The first difference of two blocks in anything but shared nodes and locations, '' if there is none."""
    if len(body) != len(other):
        return f"{len(body)} statements became {len(other)}"
    for a, b in zip(body, other):
        if type(a) is not type(b) or _fields(a) != _fields(b):
            return f"{_fields(a)} became {_fields(b)}"
        for left, right in zip(expressions_of(a), expressions_of(b)):
            if _spelled(left) != _spelled(right):
                return f"{_spelled(left)} became {_spelled(right)}"
        inner = next((d for d in map(unlike, blocks_of(a), blocks_of(b)) if d), "")
        if inner:
            return inner
    return ""


def _fields(statement: Stmt) -> list[str]:
    """What a statement holds besides expressions and blocks."""
    names = ("symbol", "extent", "kind", "lanes", "name", "buffer", "index", "combine", "stream", "code", "message")
    return [type(statement).__name__, *(f"{n}={getattr(statement, n)!r}" for n in names if hasattr(statement, n))]


def _spelled(root: Node) -> list[str]:
    """The ops of an expression, each after its operands' numbers."""
    order = expression_nodes(root)
    texts: dict[int, int] = {}
    lines: dict[str, int] = {}
    for part in order:
        line = f"{part.op!r} {[texts[id(i)] for i in part.inputs]} {part.type}"
        texts[id(part)] = lines.setdefault(line, len(lines))
    return list(lines)


# --- sums in any order -----------------------------------------------------------------------------------------------


def sums_are_exact(kernel: Kernel, arguments: Arrays, sizes: Mapping[str, int]) -> bool:
    """Whether on these arguments every combining store of floats gives the same in any order, and with its products rounded or
    not: a second kernel keeps beside each float buffer a bound of all partial results, and a flag."""
    combined = {s.buffer for s in walk(kernel.body) if isinstance(s, Store) and s.combine}
    floats = any(d.is_float for d in _dtypes(kernel, combined)) or has_fma(kernel)
    if not floats:
        return True
    watched = _Watch(kernel, combined).kernel()
    totals = [np.maximum(np.abs(np.nan_to_num(a.astype(np.float64), nan=np.inf)), 1) for a, b in zip(arguments, kernel.buffers)
              if _is_watched(b, combined)]
    arrays = [*(a.copy() for a in arguments), *totals, np.zeros(1, np.int32)]
    run_kernel(watched, arrays, sizes, checked=False)
    return not arrays[-1][0]


def _dtypes(kernel: Kernel, names: set[str]) -> list[DType]:
    allocated = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)]
    return [b.dtype for b in (*kernel.buffers, *allocated) if b.name in names]


def has_fma(kernel: Kernel) -> bool:
    return any(isinstance(n.op, Elementwise) and n.op.function == "fma" for s in walk(kernel.body)
               for root in expressions_of(s) for n in expression_nodes(root))


def _is_watched(buffer: Buffer, combined: set[str]) -> bool:
    return buffer.dtype.is_float and buffer.name in combined


def _number(value: float) -> Node:
    return node(Literal(float(value), F64))


def _call(name: str, *operands: Node) -> Node:
    return node(Elementwise(name), *operands)


class _Watch:
    """Writes the second kernel. All of it is serial, so that the flag has no races."""

    FLAG = "__inexact"

    def __init__(self, kernel: Kernel, combined: set[str]) -> None:
        self.old = kernel
        self.combined = combined
        self.buffers = {b.name: b for b in kernel.buffers}

    def kernel(self) -> Kernel:
        totals = tuple(self.total(b, "inout") for b in self.old.buffers if _is_watched(b, self.combined))
        flag = Buffer(self.FLAG, I32, (1,), "inout")
        return replace(self.old, buffers=(*self.old.buffers, *totals, flag), body=self.block(self.old.body))

    @staticmethod
    def total(buffer: Buffer, space: str) -> Buffer:
        return Buffer(f"{buffer.name}__total", F64, buffer.shape, space)

    def block(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        before = dict(self.buffers)
        found: list[Stmt] = []
        for statement in body:
            found += self.fused_sums(statement)
            new = rebuilt(statement, [self.block(b) for b in blocks_of(statement)])
            match new:
                case For():
                    new = replace(new, kind="serial", lanes=0)
                case Alloc(buffer=buffer):
                    self.buffers[buffer.name] = buffer
                    if _is_watched(buffer, self.combined):
                        found.append(Alloc(self.total(buffer, "local")))
                    new = Alloc(replace(buffer, space="local"))
                case Store(buffer=name):
                    new = replace(new, stream=False)
                    if _is_watched(self.buffers[name], self.combined):
                        found += self.store(new)
            found.append(new)
        self.buffers = before
        return tuple(found)

    def store(self, store: Store) -> list[Stmt]:
        """The bound of what is stored, or joins what is there; whether the value is a whole number, and no zero below zero."""
        name, size = f"{store.buffer}__total", node(Cast(F64), _call("abs", store.value))
        if not store.combine:
            return [Store(name, store.index, _call("fmax", size, _number(1)))]
        zero = _call("and", _call("eq", size, _number(0)), self.negative(store.value))
        if store.combine in ("max", "min"):
            return [self.raised(zero)]
        limit = _number(2.0 ** MANTISSA[store.value.dtype.name])
        grown = size if store.combine == "add" else _call("fmax", size, _number(1))
        past = _call("not", _call("le", node(Load(name, store.index, F64)), limit))
        return [self.raised(zero), *(self.raised(self.broken(v)) for v in self.factors(store.value)),
                Store(name, store.index, grown, store.combine), self.raised(past)]

    @staticmethod
    def factors(value: Node) -> list[Node]:
        """The value, and what it is a product of: machine code may not round the product."""
        product_of = isinstance(value.op, Elementwise) and value.op.function in ("mul", "fma")
        return [value, *(value.inputs if product_of else ())]

    @staticmethod
    def negative(value: Node) -> Node:
        wide = node(Cast(F64), value)
        return _call("lt", _call("copysign", _number(1), wide), _number(0))

    @staticmethod
    def broken(value: Node) -> Node:
        """Whether it is no whole number that is far from the dtype's limit. (NaN and infinity are none.)"""
        wide = node(Cast(F64), value)
        limit = _number(2.0 ** MANTISSA[value.dtype.name])
        whole = _call("and", _call("eq", wide, _call("trunc", wide)), _call("le", _call("abs", wide), limit))
        return _call("not", whole)

    def raised(self, condition: Node) -> Stmt:
        return Store(self.FLAG, (0,), node(Cast(I32), condition), "max")

    def fused_sums(self, statement: Stmt) -> list[Stmt]:
        """`fma` rounds once, or where a target lacks it as it can: the same for whole numbers."""
        if isinstance(statement, While):
            return []
        found: list[Stmt] = []
        for root in expressions_of(statement):
            for part in expression_nodes(root):
                if isinstance(part.op, Elementwise) and part.op.function == "fma":
                    found += [self.raised(self.broken(v)) for v in (*part.inputs, part)]
        return found


# --- schedules -------------------------------------------------------------------------------------------------------


def may_reassociate(kernel: Kernel, step: Step) -> bool:
    """Whether the step may change the order of a float sum: it was allowed to, or a vector loop of the kernel says that the
    order is free."""
    if step.arguments and step.arguments[-1] is True:
        return True
    return order_is_free(kernel)


def order_is_free(kernel: Kernel) -> bool:
    """Whether a vector loop combines floats, in whichever order."""
    return any(isinstance(s, For) and s.kind == "vector" and any(isinstance(t, Store) and t.combine for t in walk(s.body))
               for s in walk(kernel.body))


def apply_step(kernel: Kernel, step: Step) -> Kernel | None:
    """The kernel after one step, None where it is refused. Not by `apply_schedule`, which takes a TypeError of the primitive
    for one of its arguments."""
    primitive = PRIMITIVES.get(step.primitive)
    if primitive is None or not fits(step):
        return None
    try:
        changed = primitive(kernel, *step.arguments)
    except ScheduleError:
        return None
    except Exception as error:
        raise crashed(step.primitive, error) from error
    try:
        verify_kernel(changed)
    except VerifyError:  # which `apply_schedule` turns into a refusal
        return None
    except Exception as error:
        raise crashed("loop verifier", error) from error
    return changed


def fits(step: Step) -> bool:
    """Whether the arguments are of the kinds that the primitive takes."""
    kinds: dict[str, tuple[tuple[type, ...], int]] = {
        "split": ((str, int, str, str), 2), "fuse": ((str,) * 16, 2), "reorder": ((str, str, bool), 2),
        "vectorize": ((str, int, bool), 2), "unroll": ((str,), 1), "parallelize": ((str,), 1),
        "stage": ((str, str, tuple, tuple, str, str), 5)}
    if step.primitive not in kinds:
        return True  # a primitive that is newer than this table: what it is given is up to who wrote it
    wanted, least = kinds[step.primitive]
    given = step.arguments
    return least <= len(given) <= len(wanted) and all(type(a) is kind for a, kind in zip(given, wanted))


def check_step(before: Kernel, after: Kernel, step: Step, arguments: Arrays, expected: Arrays, sizes: Mapping[str, int]) -> Arrays:
    """Runs what a step made of a kernel and compares with what the kernel gave."""
    try:
        found = interpreted(after, arguments, sizes)
    except TilewrightError as error:
        raise Failure("result", step.primitive, f"{step}: {error}") from None
    except Failure:
        raise
    except Exception as error:
        raise crashed("loop interpreter", error) from error
    difference = differing(before, expected, found)
    if difference and not (may_reassociate(before, step) and not sums_are_exact(before, arguments, sizes)):
        raise Failure("result", step.primitive, f"{step}: {difference}")
    return found


def check_whole_schedule(kernel: Kernel, taken: Schedule, last: Kernel) -> None:
    """All steps at once give what they give one by one."""
    try:
        whole = format_kernel(apply_schedule(kernel, taken))
    except Exception as error:
        raise Failure("bytes", "apply_schedule", f"steps that are legal one by one: {type(error).__name__}: {error}") from error
    if whole != format_kernel(last):
        raise Failure("bytes", "apply_schedule", "the same steps give another kernel")
