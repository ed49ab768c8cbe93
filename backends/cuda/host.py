"""The host side of a program for a GPU: an object like that of a CPU, in which kernels are launched instead of called.

The entry points come from the LLVM backend: they check and plan sizes, and go through the program's steps. In the place of each kernel
stands a function that puts its arguments side by side and hands them to `launch` of the team (csrc/cuda.h); conditions in memory are read
by its `read`. The compiled images, the source and what a launch needs lie beside as constants (`tw_cuda_program`).

Guarantees: equal programs, modules and images give equal bytes; the object refers to the runtime's functions alone, as one for a
CPU does, so one loader and one linker serve both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tilewright.backends.cuda.module import CudaKernel, CudaModule, Image
from tilewright.backends.llvm.compile import LIBRARY_SYMBOLS, CompiledObject, check_symbols, generate, optimize
from tilewright.backends.llvm.emit_entry import ENTRY_HELPERS, ThreadEmitter, emit_plan
from tilewright.backends.llvm.emit_indices import Indices
from tilewright.backends.llvm.emit_model import IDENTIFIER, Data, ModelFacts, emit_model
from tilewright.backends.llvm.emit_text import Function, Module
from tilewright.backends.llvm.lanes import MathOptions
from tilewright.backends.llvm.targets import GENERIC, Target, resolve_target
from tilewright.ir.errors import CompileError, InternalError
from tilewright.ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step

CUDA_VERSION = 1
READS_CONDITIONS = 1  # tw_cuda_flags
LAUNCH, READ = 32, 40  # offsets in tw_cuda_team
PLAIN_MATH = MathOptions(has_fma=False, has_round=False, has_half=False, pairs_bits=0, byte_pairs_bits=0, quads_bits=0)
# public function -> (result, parameters, what stands in front: the model or the program for the device, '': neither; what it calls, '':
# it gives what stands in front)
WRAPPERS = {
    "describe": ("ptr", (), "model", "tw_describe_model"),
    "plan": ("i32", ("ptr", "ptr", "ptr", "ptr"), "model", "tw_plan_model"),
    "open": ("i32", ("ptr", "ptr", "ptr"), "model", "tw_open_model"),
    "close": ("void", ("ptr",), "model", "tw_close_model"),
    "load": ("i32", ("ptr", "i32", "ptr", "ptr"), "cuda", "tw_cuda_load"),
    "program": ("ptr", (), "cuda", ""),  # for hosts that load by themselves: what `load` puts in front
    "unload": ("void", ("ptr",), "", "tw_cuda_unload"),
    "run": ("i32", ("ptr", "ptr", "ptr", "ptr", "ptr", "ptr"), "", "tw_cuda_run"),
    "run_host": ("i32", ("ptr", "ptr", "ptr", "ptr", "ptr"), "", "tw_cuda_run_host"),
    "wait": ("i32", ("ptr", "ptr", "ptr"), "", "tw_cuda_wait"),
}
RUNTIME_SYMBOLS = frozenset(runtime for *_, runtime in WRAPPERS.values() if runtime)


def host_target() -> Target:
    """What the host side is compiled for: any CPU of this machine's architecture."""
    return resolve_target(f"cpu:{GENERIC[os.uname().machine]}")


def compile_host(program: Program, module: CudaModule, images: Sequence[Image], *, facts: ModelFacts | None = None,
                 name_prefix: str = "tw", toolkit: int = 0) -> CompiledObject:
    """The object of the program: `<prefix>_model`, `<prefix>_cuda` and the public functions. `toolkit`: the version of CUDA that made
    the images, 13000 for 13.0."""
    target = host_target()
    given = facts or ModelFacts()
    facts = ModelFacts(given.target or "cuda", ",".join(target.features), given.version, given.constants_digest,
                       given.constants_symbol, given.golden_offset, given.golden_bytes)
    text = emit_host(program, module, images, facts, name_prefix, toolkit, target.triple)
    object_code = generate(optimize(text, target), target, level=0)
    check_symbols(object_code, LIBRARY_SYMBOLS | RUNTIME_SYMBOLS | {facts.constants_symbol}, program)
    return CompiledObject(object_code, f"{name_prefix}_model", text, target)


def emit_host(program: Program, module: CudaModule, images: Sequence[Image], facts: ModelFacts, prefix: str, toolkit: int,
              triple: str) -> str:
    """LLVM IR of the host side."""
    if not IDENTIFIER.fullmatch(prefix):
        raise CompileError(f"the name {prefix!r} is no C identifier, which the functions of the library begin with")
    host = Module(PLAIN_MATH)
    for message in module.sites:
        host.site(message)
    kernels = program.kernels()
    missing = [kernel.name for kernel in kernels if id(kernel) not in module.kernels]
    if missing:
        raise InternalError(f"cuda backend: no code for the kernels {', '.join(missing)} of {program.name}")
    launched = [module.kernels[id(kernel)] for kernel in kernels]
    symbols = [f"{prefix}_kernel{number}" for number in range(len(kernels))]
    for number, (kernel, symbol) in enumerate(zip(launched, symbols)):
        emit_stub(host, kernel, symbol, number)
    plan, thread, model = (f"{prefix}_{part}" for part in ("plan_sizes", "thread", "model"))
    numbers = {id(kernel): number for number, kernel in enumerate(kernels)}
    host.helpers.update(ENTRY_HELPERS)
    HostEmitter(host, program, thread, symbols, numbers, [0] * len(kernels)).emit()
    emit_plan(host, program, plan)
    emit_model(host, program, model, facts, plan, thread, 0)
    emit_program_data(host, program, module, launched, images, prefix, toolkit)
    emit_wrappers(host, prefix)
    return host.text(triple)


class HostEmitter(ThreadEmitter):
    """Emits `tw_thread` of a host that launches kernels: one thread runs it, and conditions lie in memory of the device."""

    def condition(self, place: Place) -> str:
        code = self.code
        slot = code.pure(f"getelementptr i8, ptr %team, i64 {READ}")
        function = code.value(f"load ptr, ptr {slot}, align 8")
        value = code.value(f"call i32 {function}(ptr %team, ptr {self.address(place)})")
        failed = code.pure(f"icmp slt i32 {value}, 0")
        self.leave_unless_zero(code.pure(f"select i1 {failed}, i32 {value}, i32 0"))
        return code.pure(f"icmp ne i32 {value}, 0")


def emit_stub(host: Module, kernel: CudaKernel, symbol: str, number: int) -> None:
    """The function that `tw_thread` calls for a kernel: a pointer to each argument, as cuLaunchKernel takes them."""
    buffers, sizes = len(kernel.kernel.buffers), kernel.kernel.symbols
    parameters = ["ptr %team", *(f"ptr %b{i}" for i in range(buffers)), *(f"i64 %s{i}" for i in range(len(sizes))),
                  "i64 %thread", "i64 %threads"]
    code = Function(host, f"define internal i32 @{symbol}({', '.join(parameters)}) nounwind noinline optnone")
    arguments = [("ptr", f"%b{i}") for i in range(buffers)]
    failure = -1
    if kernel.fails:
        failure = len(arguments)
        arguments.append(("ptr", "null"))
    arguments += [("i64", f"%s{i}") for i in range(len(sizes))]
    table = code.stack_slot(f"[{max(len(arguments), 1)} x ptr]", "arguments", 8)
    for position, (kind, value) in enumerate(arguments):
        slot = code.stack_slot(kind, "argument", 8)
        code.effect(f"store {kind} {value}, ptr {slot}, align 8")
        code.effect(f"store ptr {slot}, ptr {code.pure(f'getelementptr ptr, ptr {table}, i64 {position}')}, align 8")
    indices = Indices(code)
    for position, size in enumerate(sizes):
        indices.bind(size.name, f"%s{position}")
    blocks = indices.uniform(kernel.grid)
    function = code.value(f"load ptr, ptr {code.pure(f'getelementptr i8, ptr %team, i64 {LAUNCH}')}, align 8")
    status = code.value(f"call i32 {function}(ptr %team, i32 {number}, i64 {blocks}, ptr {table}, i32 {failure})")
    code.end(f"ret i32 {status}")
    code.finish()


def emit_program_data(host: Module, program: Program, module: CudaModule, kernels: Sequence[CudaKernel], images: Sequence[Image],
                      prefix: str, toolkit: int) -> None:
    """`tw_cuda_program` of csrc/cuda.h."""
    data = Data(host, f"{prefix}_device")
    rows = [f"{{ ptr {data.string(kernel.name)}, i32 {kernel.threads}, i32 {kernel.shared_bytes} }}" for kernel in kernels]
    table = data.array("{ ptr, i32, i32 }", rows)
    pictures = []
    for image in images:
        content = image.data if not image.architecture.startswith("compute_") else image.data.rstrip(b"\0") + b"\0"
        pictures.append(f"{{ ptr {data.string(image.architecture)}, ptr {data.block(content)}, i64 {len(content)} }}")
    flags = READS_CONDITIONS if reads_conditions(program.steps) else 0
    fields = [f"i32 {CUDA_VERSION}", f"i32 {flags}", f"ptr @{prefix}_model", f"ptr {table}",
              f"ptr {data.array('{ ptr, ptr, i64 }', pictures)}", f"i32 {len(images)}", f"i32 {toolkit}",
              f"ptr {data.block(module.source.encode() + bytes(1))}"]
    kinds = ", ".join(field.split(" ")[0] for field in fields)
    host.parts.append(f"@{prefix}_cuda = hidden constant {{ {kinds} }} {{ {', '.join(fields)} }}, align 8")


def reads_conditions(steps: Sequence[Step]) -> bool:
    """Whether the control flow depends on memory."""
    for step in steps:
        match step:
            case Loop() | Branch():
                return True
            case Repeat(steps=inner):
                if reads_conditions(inner):
                    return True
            case Launch():
                continue
    return False


def emit_wrappers(host: Module, prefix: str) -> None:
    """The public functions; each puts what it is about in front and calls the runtime."""
    for name, (result, parameters, front, runtime) in WRAPPERS.items():
        if not runtime:
            host.parts.append(f"define {result} @{prefix}_{name}() nounwind {{\n  ret ptr @{prefix}_{front}\n}}")
            continue
        first = (f"ptr @{prefix}_{front}",) if front else ()
        host.declarations[runtime] = f"declare hidden {result} @{runtime}({', '.join((*('ptr' for _ in first), *parameters))})"
        taken = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(parameters))
        call = f"tail call {result} @{runtime}({', '.join((*first, *filter(None, (taken,))))})"
        body = f"  {call}\n  ret void" if result == "void" else f"  %r = {call}\n  ret {result} %r"
        host.parts.append(f"define {result} @{prefix}_{name}({taken}) nounwind {{\n{body}\n}}")
