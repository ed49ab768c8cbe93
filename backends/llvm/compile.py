"""Programs to object code: LLVM IR text through a short list of passes of our own.

Guarantees: equal programs, targets and facts give equal bytes. The object refers to memcpy, memmove and memset at most (and to the
runtime's functions, in an ahead-of-time build): anything else is an InternalError that names the symbol, as is a register
buffer that LLVM left in memory. Thread safety: llvmlite takes one lock for every call, so threads do not compile faster.

Passes: inline the math helpers, promote stack slots (SROA), simplify. Nothing unrolls, vectorizes or moves addresses between loops: the
schedule and the emission of indices have decided that.
"""

from __future__ import annotations

import re
import threading
from functools import cached_property, lru_cache
from typing import Any

import llvmlite.binding as llvm
from msgspec import Struct

from tilewright.backends.llvm.emit import emit_program
from tilewright.backends.llvm.emit_model import RUNTIME_SYMBOLS, ModelFacts
from tilewright.backends.llvm.targets import Target
from tilewright.ir.errors import InternalError
from tilewright.ir.program import Program
from tilewright.runtime.elf_file import read_elf

LIBRARY_SYMBOLS = frozenset({"memcpy", "memmove", "memset"})
CODE_LEVEL = 2
# where code need not be fast; at 0 AArch64 has another selector of instructions, which cannot copy halves (llvm/llvm-project#128843)
QUICK_LEVELS = {"aarch64": 1}
# LLVM's switches: ours and the usual setting.
SWITCHES = (
    # Addresses are already built as the loops need them, and its search takes up to half of all time.
    ("disable-lsr", "true", "false"),
    # Whole lines (2**6 bytes): what a short loop costs does not depend on where it happens to lie.
    ("x86-experimental-pref-innermost-loop-alignment", "6", "4"),
    # Instructions are emitted in the order that they should run in: several chains side by side, rows of tiles one by one. Its
    # order keeps fewer registers alive one chain at a time, and loads constants anew for each.
    ("enable-misched", "false", "true"),
    # Nor once more when registers are given out: cores reorder as far as that pass looks, and it takes a tenth of the time.
    ("disable-post-ra", "true", "false"),
)
KERNEL = re.compile(r"_kernel(\d+)$")
_switching = threading.Lock()


class CompiledObject(Struct, frozen=True, dict=True):
    """A program as a relocatable object. `symbol`: that of its `tw_model`. `llvm_ir` is the text before passes; `optimized` and
    `assembly` are made when asked for."""

    object_code: bytes
    symbol: str
    llvm_ir: str
    target: Target

    @cached_property
    def optimized(self) -> str:
        return str(optimize(self.llvm_ir, self.target))

    @cached_property
    def assembly(self) -> str:
        text: str = generate(optimize(self.llvm_ir, self.target), self.target, assembly=True)
        return text


def compile_program(program: Program, target: Target, *, facts: ModelFacts | None = None, name_prefix: str = "",
                    quick: bool = False) -> CompiledObject:
    """Compile for the target. `name_prefix`: '' for loading in process, else the public name of a library; `quick`: at LLVM's lowest
    level, where code need not be fast."""
    facts = facts or ModelFacts()
    facts = ModelFacts(
        facts.target or f"{target.architecture}-linux", facts.features or ",".join(target.features), facts.version,
        facts.constants_digest, facts.constants_symbol, facts.golden_offset, facts.golden_bytes)
    text = emit_program(program, target, facts, name_prefix)
    module = optimize(text, target)
    check_promoted(module, program)
    object_code = generate(module, target, level=QUICK_LEVELS.get(target.architecture, 0) if quick else CODE_LEVEL)
    allowed = LIBRARY_SYMBOLS | RUNTIME_SYMBOLS | {facts.constants_symbol} if name_prefix else LIBRARY_SYMBOLS
    check_symbols(object_code, allowed, program)
    return CompiledObject(object_code, f"{name_prefix or 'tw'}_model", text, target)


@lru_cache(maxsize=1)
def initialize() -> None:
    """Once a process: LLVM's targets (any may be compiled for)."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@lru_cache(maxsize=16)
def target_machine(target: Target, level: int = CODE_LEVEL) -> llvm.TargetMachine:
    initialize()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(cpu=target.cpu, features=target.feature_string, opt=level, reloc="pic",
                                       codemodel="small")


def optimize(text: str, target: Target) -> llvm.ModuleRef:
    """The module, verified and run through our passes."""
    machine = target_machine(target)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise InternalError(f"llvm backend: LLVM rejects the code: {error}",
                            hint="attach the .ll file of TILEWRIGHT_IR_DUMP to a report") from None
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module


def generate(module: llvm.ModuleRef, target: Target, assembly: bool = False, level: int = CODE_LEVEL) -> Any:
    """Object code or assembly. SWITCHES belong to the process, so they are turned back for others."""
    machine = target_machine(target, level)
    with _switching:
        for name, ours, _ in SWITCHES:
            llvm.set_option("", f"-{name}={ours}")
        try:
            return machine.emit_assembly(module) if assembly else machine.emit_object(module)
        finally:
            for name, _, usual in SWITCHES:
                llvm.set_option("", f"-{name}={usual}")


def check_promoted(module: llvm.ModuleRef, program: Program) -> None:
    """Register buffers and partial results must be registers now, or every access to them is a trip to memory."""
    kernels = program.kernels()
    for function in module.functions:
        found = KERNEL.search(function.name)
        if function.is_declaration or found is None:
            continue
        for instruction in next(iter(function.blocks)).instructions:
            if instruction.opcode != "alloca":
                break  # they come first
            if instruction.name.startswith(("register", "partial")):
                kernel = kernels[int(found[1])]
                raise InternalError(f"llvm backend: register buffer not promoted: {instruction.name} in kernel {kernel.name}",
                                    loc=kernel.loc)


def check_symbols(object_code: bytes, allowed: frozenset[str], program: Program) -> None:
    """Generated code calls nothing by name but what is allowed."""
    elf = read_elf(object_code, f"the object of {program.name}")
    foreign = sorted(s.name for s in elf.symbols if not s.defined and s.name and s.name not in allowed)
    if foreign:
        raise InternalError(f"llvm backend: {program.name} calls {', '.join(foreign)}, which generated code must not")
