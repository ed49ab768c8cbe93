"""A program as the text of one LLVM module: its kernels, the entry points, and the model's description.

Guarantees: the text depends on the program, the target's properties and the facts given alone. Nothing of the user's reaches LLVM but
through escaped string constants: kernels are named by number.
"""

from __future__ import annotations

from tilewright.backends.llvm.emit_entry import emit_plan, emit_thread
from tilewright.backends.llvm.emit_loops import emit_kernel, scratch_bytes
from tilewright.backends.llvm.emit_model import ModelFacts, emit_model, emit_wrappers
from tilewright.backends.llvm.emit_text import Module
from tilewright.backends.llvm.lanes import MathOptions
from tilewright.backends.llvm.targets import Target
from tilewright.ir.program import Program

DEFAULT_PREFIX = "tw"


def kernel_symbol(prefix: str, number: int) -> str:
    return f"{prefix}_kernel{number}"


def math_options(target: Target) -> MathOptions:
    return MathOptions(has_fma=target.has_fma, has_round=target.has_round, has_half=target.has_half, pairs_bits=target.pairs_bits,
                       byte_pairs_bits=target.byte_pairs_bits, quads_bits=target.quads_bits,
                       bfloats_bits=target.bfloats_bits, has_avx512=target.has_avx512)


def emit_program(program: Program, target: Target, facts: ModelFacts, name_prefix: str = "") -> str:
    """LLVM IR. Without a prefix the model is `tw_model`, for loading in process; with one it is `<prefix>_model`, beside the public
    functions `<prefix>_run` and so on."""
    prefix = name_prefix or DEFAULT_PREFIX
    module = Module(math_options(target), target.vector_bits, can_stream=target.is_x86, hides_masks=target.has("avx512f"))
    kernels = program.kernels()
    symbols = [kernel_symbol(prefix, number) for number in range(len(kernels))]
    for kernel, symbol in zip(kernels, symbols):
        emit_kernel(module, kernel, symbol)
    plan, thread, model = (f"{prefix}_{part}" for part in ("plan_sizes", "thread", "model"))
    scratch = [scratch_bytes(kernel) for kernel in kernels]
    emit_thread(module, program, thread, symbols, scratch)
    emit_plan(module, program, plan)
    emit_model(module, program, model, facts, plan, thread, max(scratch, default=0))
    if name_prefix:
        emit_wrappers(module, prefix, model)
    return module.text(target.triple)
