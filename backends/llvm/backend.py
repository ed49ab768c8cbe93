"""The LLVM backend behind the interface that all backends share."""

from __future__ import annotations

from msgspec import Struct, field

from tilewright.backends.llvm.compile import CompiledObject, compile_program
from tilewright.backends.llvm.emit_model import ModelFacts
from tilewright.backends.llvm.targets import Target
from tilewright.ir.caps import Caps
from tilewright.ir.program import Program


def capabilities_of(target: Target) -> Caps:
    return Caps(
        vector_bits=target.vector_bits, vector_registers=target.vector_registers, has_fma=target.has_fma,
        has_masked_memory=target.has_masked_memory, has_mask_registers=target.has_mask_registers,
        has_pairs=target.pairs_bits > 0, has_byte_pairs=target.byte_pairs_bits > 0,
        has_quads=target.quads_bits > 0, has_bf16=target.bfloats_bits > 0, level1_bytes=target.level1_bytes,
        level2_bytes=target.level2_bytes, level3_bytes=target.level3_bytes)


class LlvmBackend(Struct, frozen=True):
    """`facts`: what the model's description says beyond the program."""

    target: Target
    facts: ModelFacts = field(default_factory=ModelFacts)
    name: str = "llvm"

    @property
    def capabilities(self) -> Caps:
        return capabilities_of(self.target)

    def compile(self, program: Program, *, name_prefix: str = "") -> CompiledObject:
        return compile_program(program, self.target, facts=self.facts, name_prefix=name_prefix)
