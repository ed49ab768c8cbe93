"""The entry points of generated code: `tw_thread`, which runs a program's steps, and `tw_plan`, which checks and plans sizes.

tw_thread runs alike on every thread of the team. After a launch the threads meet at the team's barrier (one thread skips it and
looks at the kernel's status instead), whose status makes all of them leave alike. A condition in memory is read between two
barriers, so that every thread sees it and none can overwrite it before. A thread whose kernel failed goes on to the next barrier, as
csrc/abi.h asks; kernels check their own indices, so that is safe.

Of a program with a scratchpad, tw_thread runs one launch: that of the number in `shapes[0]`, counted from 0 in the order of the text, on
the scratchpad at `workspace`, with memory of its own at `inputs[0]` and the counters of the repeats around it from `shapes[1]` on,
outermost first. Transfers and control flow are the business of who calls (csrc/simulator/).

tw_plan solves the program's symbols from the inputs' dims, then checks every dim. Sizes whose product would leave 62 bits are
refused with TW_ERROR_MEMORY: their magnitudes are summed in float64, which cannot wrap.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from tilewright.backends.llvm.emit_indices import Indices
from tilewright.backends.llvm.emit_text import Function, Module, float_text
from tilewright.ir.dims import Atom, Dim, DimLike, Monomial, Symbol, bounds, product, symbols_of
from tilewright.ir.errors import InternalError, UnsupportedError
from tilewright.ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step, nested_launches
from tilewright.ir.types import F64

ERROR_SHAPE, ERROR_MEMORY = -2, -3
EXACTLY, AT_LEAST, AT_MOST, MULTIPLE_OF = range(4)  # tw_relation
LARGEST_BYTES = 2.0**62
RUN_ONCE = "nounwind noinline optnone"  # long straight-line code that runs once a call: not worth LLVM's time
AFTER_LAUNCH, AFTER_UNSYNCHRONIZED, BARRIER = "tw_after_launch", "tw_after_unsynchronized", "tw_meet"

# A launch's end: the barrier, then the profiler's mark. One function each, since programs have many launches.
ENTRY_HELPERS = {
    BARRIER: f"""define internal i32 @{BARRIER}(ptr %team, i64 %threads, i32 %status) noinline nounwind {{
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %single, label %many
many:
  %barrier = load ptr, ptr %team, align 8
  %seen = call i32 %barrier(ptr %team)
  ret i32 %seen
single:
  ret i32 %status
}}""",
    AFTER_UNSYNCHRONIZED: f"""define internal void @{AFTER_UNSYNCHRONIZED}(ptr %team, i64 %thread, i32 %kernel) noinline nounwind {{
  %first = icmp eq i64 %thread, 0
  br i1 %first, label %look, label %done
look:
  %place = getelementptr i8, ptr %team, i64 16
  %mark = load ptr, ptr %place, align 8
  %off = icmp eq ptr %mark, null
  br i1 %off, label %done, label %tell
tell:
  call void %mark(ptr %team, i32 %kernel)
  br label %done
done:
  ret void
}}""",
    AFTER_LAUNCH: f"""define internal i32 @{AFTER_LAUNCH}(ptr %team, i64 %thread, i64 %threads, i32 %status,
    i32 %kernel) noinline nounwind {{
  %seen = call i32 @{BARRIER}(ptr %team, i64 %threads, i32 %status)
  %good = icmp eq i32 %seen, 0
  br i1 %good, label %mark, label %done
mark:
  call void @{AFTER_UNSYNCHRONIZED}(ptr %team, i64 %thread, i32 %kernel)
  br label %done
done:
  ret i32 %seen
}}""",
}


class SolvedSymbol(Struct, frozen=True):
    """A symbol found from a dim of an input: (dim - offset) / factor. `position` counts the entries of `shapes`."""

    symbol: Symbol
    position: int
    factor: int
    offset: int


def solve_symbols(program: Program) -> tuple[SolvedSymbol, ...]:
    """How each symbol that occurs follows from the inputs' dims. UnsupportedError for one that no input determines."""
    found: dict[str, SolvedSymbol] = {}
    dims = [(size, position) for position, size in enumerate(_input_dims(program)) if isinstance(size, Dim)]
    plain = [entry for entry in dims if _linear(entry[0]) == (1, 0)]
    for size, position in (*plain, *dims):
        line, (symbol, *more) = _linear(size), symbols_of(size)
        if line is not None and not more and symbol.name not in found:
            found[symbol.name] = SolvedSymbol(symbol, position, *line)
    needed = {symbol.name for symbol in symbols_of(*_input_dims(program), *_planned_sizes(program))}
    missing = sorted(needed - set(found))
    if missing:
        raise UnsupportedError(f"{program.name}: no input's shape determines the size {', '.join(missing)}",
                               hint="sizes that data decides are not compiled yet; bind it with dims={...}")
    return tuple(found.values())


def _linear(size: Dim) -> tuple[int, int] | None:
    """(factor, offset) of a size that is factor * symbol + offset with a positive factor."""
    factor = offset = 0
    for monomial, coefficient in size.terms:
        if not monomial:
            offset = coefficient
        elif factor or len(monomial) != 1 or monomial[0][1] != 1 or not isinstance(monomial[0][0], Symbol):
            return None
        else:
            factor = coefficient
    return (factor, offset) if factor > 0 else None


def _input_dims(program: Program) -> list[DimLike]:
    return [size for _, kind in program.inputs for size in kind.shape]


def _output_dims(program: Program) -> list[DimLike]:
    return [size for _, kind in program.outputs for size in kind.shape]


def _planned_sizes(program: Program) -> list[DimLike]:
    """All that must stay within 62 bits: dims, bytes of inputs, outputs and workspace."""
    sizes = [*_output_dims(program), program.workspace_bytes]
    for _, kind in (*program.inputs, *program.outputs):
        sizes.append(product(kind.shape) * kind.dtype.bytes)
    return sizes


# ---- tw_thread ----


def emit_thread(module: Module, program: Program, symbol: str, kernel_symbols: Sequence[str], scratch: Sequence[int]) -> None:
    """`kernel_symbols` names the functions of `program.kernels()`, `scratch` their bytes of the thread's own memory."""
    module.helpers.update(ENTRY_HELPERS)
    numbers = {id(kernel): number for number, kernel in enumerate(program.kernels())}
    ThreadEmitter(module, program, symbol, kernel_symbols, numbers, scratch).emit()


class ThreadEmitter:
    """Emits `tw_thread`."""

    def __init__(self, module: Module, program: Program, symbol: str, kernel_symbols: Sequence[str],
                 numbers: dict[int, int], scratch: Sequence[int]) -> None:
        self.program = program
        self.scratch = scratch
        self.kernel_symbols = kernel_symbols
        self.numbers = numbers
        self.code = Function(module, f"define hidden i32 @{symbol}(ptr %team, ptr %inputs, ptr %outputs, ptr %shapes, "
                                     f"ptr %constants, ptr %workspace, i64 %thread, i64 %threads) {RUN_ONCE}")
        self.indices = Indices(self.code)
        self.pointers = {("constant", 0): "%constants", ("workspace", 0): "%workspace"}
        self.status = self.code.stack_slot("i32", "status", 4)
        self.leave = self.code.new_block("leave")
        self.loose = False                            # something was launched since the last barrier

    def emit(self) -> None:
        code, program = self.code, self.program
        code.effect(f"store i32 0, ptr {self.status}")
        if program.scratchpad is not None:
            self.emit_single_launches()
            return
        for solved in solve_symbols(program):
            self.indices.bind(solved.symbol.name, load_symbol(code, solved))
        for space, count in (("input", len(program.inputs)), ("output", len(program.outputs))):
            for number in range(count):
                slot = code.pure(f"getelementptr ptr, ptr %{space}s, i64 {number}")
                self.pointers[(space, number)] = code.pure(f"load ptr, ptr {slot}, align 8")
        if any(self.scratch):  # see tw_thread_function in csrc/abi.h
            behind = code.pure(f"mul i64 {code.pure('add i64 %thread, 1')}, {-max(self.scratch)}")
            self.pointers[("scratch", 0)] = code.pure(f"getelementptr i8, ptr %workspace, i64 {behind}")
        self.emit_steps(program.steps)
        self.finish()

    def finish(self) -> None:
        code = self.code
        code.jump(self.leave)
        code.start(self.leave)
        code.end(f"ret i32 {code.value(f'load i32, ptr {self.status}')}")
        code.finish()

    def emit_single_launches(self) -> None:
        """A block for each launch; a number that none has runs none."""
        code = self.code
        self.pointers = {("constant", 0): "%constants", ("scratchpad", 0): "%workspace"}
        if any(self.scratch):
            self.pointers[("scratch", 0)] = code.value("load ptr, ptr %inputs, align 8")
        launches = list(nested_launches(self.program.steps))
        number = load_dim(code, 0)
        blocks, none = [code.new_block("launch") for _ in launches], code.new_block("none")
        cases = " ".join(f"i64 {index}, label %{block.label}" for index, block in enumerate(blocks))
        code.end(f"switch i64 {number}, label %{none.label} [ {cases} ]")
        for (launch, counters), block in zip(launches, blocks):
            code.start(block)
            depth = self.indices.push_scope()
            outside = [(symbol.name, self.indices.bind(symbol.name, load_dim(code, at))) for at, symbol in enumerate(counters, start=1)]
            self.emit_launch(launch)
            for name, before in outside:
                self.indices.restore(name, before)
            self.indices.pop_scopes(depth)
            code.jump(self.leave)
        code.start(none)
        self.finish()

    def emit_steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Launch():
                    self.emit_launch(step)
                case Repeat():
                    self.emit_repeat(step)
                case Loop():
                    self.emit_loop(step)
                case Branch():
                    self.emit_branch(step)
                case _:
                    raise InternalError(f"llvm backend: no code for the step {type(step).__name__}")

    def address(self, place: Place) -> str:
        base = self.pointers.get((place.space, place.number))
        if base is None:
            raise InternalError(f"llvm backend: no {place.space} number {place.number} in {self.program.name}")
        return self.indices.pointer(base, "i8", *self.indices.resolve(place.offset))

    def emit_launch(self, launch: Launch) -> None:
        code, number = self.code, self.numbers[id(launch.kernel)]
        kernel = launch.kernel
        if len(launch.places) != len(kernel.buffers) or len(launch.sizes) != len(kernel.symbols):
            raise InternalError(f"llvm backend: launch of {kernel.name} gives {len(launch.places)} buffers and "
                                f"{len(launch.sizes)} sizes, expected {len(kernel.buffers)} and {len(kernel.symbols)}")
        arguments = ["ptr %team", *(f"ptr {self.address(place)}" for place in launch.places),
                     *(f"i64 {self.indices.uniform(size)}" for size in launch.sizes), "i64 %thread", "i64 %threads"]
        if self.scratch[number]:
            arguments.append(f"ptr {self.pointers['scratch', 0]}")
        status = code.value(f"call i32 @{self.kernel_symbols[number]}({', '.join(arguments)})")
        if launch.barrier:
            self.leave_unless_zero(code.value(f"call i32 @{AFTER_LAUNCH}(ptr %team, i64 %thread, i64 %threads, "
                                              f"i32 {self.merged(status)}, i32 {number})"))
            self.loose = False
        else:
            code.effect(f"store i32 {self.merged(status)}, ptr {self.status}")
            code.effect(f"call void @{AFTER_UNSYNCHRONIZED}(ptr %team, i64 %thread, i32 {number})")
            self.loose = True

    def merged(self, status: str) -> str:
        """The first failure of this thread since the last barrier."""
        if not self.loose:
            return status
        before = self.code.value(f"load i32, ptr {self.status}")
        return self.code.pure(f"select i1 {self.code.pure(f'icmp eq i32 {before}, 0')}, i32 {status}, i32 {before}")

    def leave_unless_zero(self, status: str) -> None:
        code = self.code
        go = code.new_block("go")
        code.effect(f"store i32 {status}, ptr {self.status}")
        code.branch(code.pure(f"icmp eq i32 {status}, 0"), go, self.leave)
        code.start(go)

    def meet(self) -> None:
        status = self.code.value(f"load i32, ptr {self.status}")
        self.leave_unless_zero(self.code.value(f"call i32 @{BARRIER}(ptr %team, i64 %threads, i32 {status})"))
        self.loose = False

    def condition(self, place: Place) -> str:
        """The bool at the place, which no thread may change before all have read it."""
        code = self.code
        self.meet()
        byte = code.value(f"load i8, ptr {self.address(place)}, align 1")
        self.meet()
        return code.pure(f"icmp ne i8 {byte}, 0")

    def scoped(self, steps: Sequence[Step]) -> None:
        depth = self.indices.push_scope()
        self.emit_steps(steps)
        self.indices.pop_scopes(depth)

    def emit_repeat(self, repeat: Repeat) -> None:
        """Anything may be loose at the head of a loop, when something is at its end."""
        code = self.code
        extent = self.indices.uniform(repeat.extent)
        before, top, after = code.block, code.new_block("repeat"), code.new_block("after")
        self.loose = True
        code.branch(code.pure(f"icmp slt i64 0, {extent}"), top, after)
        code.start(top)
        count, line = code.phi("i64")
        depth = self.indices.push_scope()
        position = count
        if repeat.reverse:
            position = code.pure(f"sub i64 {code.pure(f'sub i64 {extent}, 1')}, {count}")
        old = self.indices.bind(repeat.symbol.name, position)
        self.emit_steps(repeat.steps)
        self.indices.restore(repeat.symbol.name, old)
        self.indices.pop_scopes(depth)
        following = code.pure(f"add i64 {count}, 1")
        code.complete_phi(top, line, ("0", before), (following, code.block))
        code.branch(code.pure(f"icmp slt i64 {following}, {extent}"), top, after)
        code.start(after)
        self.loose = True

    def emit_loop(self, loop: Loop) -> None:
        code = self.code
        test, body, after = code.new_block("test"), code.new_block("body"), code.new_block("after")
        self.loose = True
        code.jump(test)
        code.start(test)
        self.scoped(loop.condition_steps)
        code.branch(self.condition(loop.condition), body, after)
        code.start(body)
        self.scoped(loop.steps)
        code.jump(test)
        code.start(after)

    def emit_branch(self, branch: Branch) -> None:
        code = self.code
        then, otherwise, after = code.new_block("then"), code.new_block("else"), code.new_block("after")
        code.branch(self.condition(branch.condition), then, otherwise)
        for block, steps in ((then, branch.then), (otherwise, branch.otherwise)):
            code.start(block)
            self.loose = False
            self.scoped(steps)
            code.jump(after)
        code.start(after)
        self.loose = True


def load_symbol(code: Function, solved: SolvedSymbol) -> str:
    """The symbol's value from the shapes (checked by tw_plan before)."""
    text = load_dim(code, solved.position)
    if solved.offset:
        text = code.pure(f"sub i64 {text}, {solved.offset}")
    return code.pure(f"sdiv i64 {text}, {solved.factor}") if solved.factor != 1 else text


def load_dim(code: Function, position: int) -> str:
    return code.pure(f"load i64, ptr {code.pure(f'getelementptr i64, ptr %shapes, i64 {position}')}, align 8")


# ---- tw_plan ----


def emit_plan(module: Module, program: Program, symbol: str) -> None:
    PlanEmitter(module, program, symbol).emit()


class PlanEmitter:
    """Emits `tw_plan`."""

    def __init__(self, module: Module, program: Program, symbol: str) -> None:
        self.program = program
        self.code = Function(module, f"define hidden i32 @{symbol}(ptr %shapes, ptr %output_shapes, ptr %workspace_bytes, "
                                     f"ptr %where, ptr %detail) {RUN_ONCE}")
        self.indices = Indices(self.code)
        self.magnitudes: dict[object, str] = {}

    def emit(self) -> None:
        code, program = self.code, self.program
        for solved in solve_symbols(program):
            self.check_symbol(solved)
        # What follows may divide by sizes, so it has its own scope, after the checks of the symbols.
        self.indices.scopes[0].block = code.block
        self.check_memory()
        self.indices.scopes[0].block = code.block
        for position, size in enumerate(_input_dims(program)):
            found, expected = load_dim(code, position), self.indices.uniform(size)
            self.require(code.pure(f"icmp eq i64 {found}, {expected}"), position, found, expected)
        for position, size in enumerate(_output_dims(program)):
            slot = code.pure(f"getelementptr i64, ptr %output_shapes, i64 {position}")
            code.effect(f"store i64 {self.indices.uniform(size)}, ptr {slot}, align 8")
        code.effect(f"store i64 {self.indices.uniform(program.workspace_bytes)}, ptr %workspace_bytes, align 8")
        code.end("ret i32 0")
        code.finish()

    def require(self, condition: str, position: int, found: str, expected: str, relation: int = EXACTLY) -> None:
        """Leaves with TW_ERROR_SHAPE unless the condition holds, which asks for a size in this relation to the expected one."""
        code = self.code
        good, bad = code.new_block("good"), code.new_block("bad")
        code.branch(condition, good, bad)
        code.start(bad)
        code.effect(f"store i64 {position}, ptr %where, align 8")
        self.leave(ERROR_SHAPE, found, expected, relation)
        code.start(good)

    def leave(self, status: int, found: str, expected: str, relation: int = EXACTLY) -> None:
        code = self.code
        for place, value in enumerate((found, expected, relation)):
            code.effect(f"store i64 {value}, ptr {code.pure(f'getelementptr i64, ptr %detail, i64 {place}')}, align 8")
        code.end(f"ret i32 {status}")

    def check_symbol(self, solved: SolvedSymbol) -> None:
        """Divisibility and bounds of the dim that determines the symbol, stated in terms of that dim."""
        code, symbol, position = self.code, solved.symbol, solved.position
        found = load_dim(code, position)
        lowest = symbol.lower * solved.factor + solved.offset
        self.require(code.pure(f"icmp sge i64 {found}, {lowest}"), position, found, str(lowest), AT_LEAST)
        if symbol.upper is not None:
            highest = symbol.upper * solved.factor + solved.offset
            self.require(code.pure(f"icmp sle i64 {found}, {highest}"), position, found, str(highest), AT_MOST)
        step = solved.factor * symbol.multiple_of
        if step > 1:
            shifted = code.pure(f"sub i64 {found}, {solved.offset}")
            rest = code.pure(f"srem i64 {shifted}, {step}")
            whole = code.pure(f"icmp eq i64 {rest}, 0")
            if solved.offset:
                self.require(whole, position, found, code.pure(f"sub i64 {found}, {rest}"))
            else:
                self.require(whole, position, found, str(step), MULTIPLE_OF)
        self.indices.bind(symbol.name, load_symbol(code, solved))

    def check_memory(self) -> None:
        """Refuses sizes that could leave 62 bits."""
        code = self.code
        for size in dict.fromkeys(s for s in _planned_sizes(self.program) if isinstance(s, Dim)):
            if bounds(size)[1] < LARGEST_BYTES and bounds(-size)[1] < LARGEST_BYTES:
                continue
            good, bad = code.new_block("fits"), code.new_block("large")
            limit = "0x43D0000000000000"
            code.branch(code.pure(f"fcmp olt double {self.magnitude(size)}, {limit}"), good, bad)
            code.start(bad)
            self.leave(ERROR_MEMORY, str(2**63 - 1), "0")
            code.start(good)

    def magnitude(self, size: DimLike) -> str:
        """A bound of the size and of every step on the way to it, in float64."""
        if isinstance(size, int):
            return self.number(abs(size))
        total = self.number(0)
        for monomial, coefficient in size.terms:
            total = self.code.pure(f"fadd double {total}, {self.monomial_magnitude(monomial, coefficient)}")
        return total

    def monomial_magnitude(self, monomial: Monomial, coefficient: int) -> str:
        result = self.number(abs(coefficient))
        for atom, power in monomial:
            factor = self.atom_magnitude(atom)
            for _ in range(power):
                result = self.code.pure(f"fmul double {result}, {factor}")
        return result

    def atom_magnitude(self, atom: Atom) -> str:
        """floordiv and mod are at most their left side, and min at most the larger one, which their sum bounds."""
        code = self.code
        if isinstance(atom, Symbol):
            return code.pure(f"sitofp i64 {self.indices.binding(atom.name).value} to double")
        if atom.kind == "floordiv" and isinstance(atom.right, int):
            return code.pure(f"fdiv double {self.magnitude(atom.left)}, {self.number(atom.right)}")
        left, right = self.magnitude(atom.left), self.magnitude(atom.right)
        return left if atom.kind == "floordiv" else code.pure(f"fadd double {left}, {right}")

    @staticmethod
    def number(value: int) -> str:
        return float_text(float(value), F64)
