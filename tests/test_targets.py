"""Targets: text to a resolved CPU, its errors, and our tables against LLVM's own."""

from __future__ import annotations

import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from tilewright.backends.llvm import targets
from tilewright.backends.llvm.cpus import CPUS, FEATURES
from tilewright.backends.llvm.targets import host_supports, host_target, known_cpus, resolve_target
from tilewright.ir.errors import CompileError

TRIPLES = {architecture: f"{architecture}-unknown-linux-gnu" for architecture in FEATURES}

# One instruction that needs exactly the feature, for LLVM's assembler; features without one (avx10.1) are checked by name only.
PROBES = {
    "x86_64": {
        "sse2": "paddd %xmm0, %xmm0", "sse3": "haddps %xmm0, %xmm0", "ssse3": "pabsb %xmm0, %xmm0",
        "sse4.1": "roundps $$0, %xmm0, %xmm0", "sse4.2": "pcmpgtq %xmm0, %xmm0", "sse4a": "extrq %xmm0, %xmm1",
        "popcnt": "popcntl %eax, %eax", "lzcnt": "lzcntl %eax, %eax", "bmi": "andnl %eax, %eax, %eax",
        "bmi2": "pdepl %eax, %eax, %eax", "movbe": "movbel (%rax), %eax", "cx16": "cmpxchg16b (%rax)", "sahf": "sahf",
        "adx": "adcxl %eax, %eax", "aes": "aesenc %xmm0, %xmm0", "prfchw": "prefetchw (%rax)",
        "pclmul": "pclmulqdq $$0, %xmm0, %xmm0", "sha": "sha1msg1 %xmm0, %xmm0", "gfni": "gf2p8mulb %xmm0, %xmm0",
        "avx": "vaddps %ymm0, %ymm0, %ymm0", "f16c": "vcvtph2ps %xmm0, %ymm0", "fma": "vfmadd213ps %ymm0, %ymm0, %ymm0",
        "fma4": "vfmaddps %xmm0, %xmm0, %xmm0, %xmm0", "xop": "vpcmov %xmm0, %xmm0, %xmm0, %xmm0",
        "avx2": "vpaddd %ymm0, %ymm0, %ymm0", "vaes": "vaesenc %ymm0, %ymm0, %ymm0",
        "vpclmulqdq": "vpclmulqdq $$0, %ymm0, %ymm0, %ymm0", "avxvnni": "{vex} vpdpbusd %ymm0, %ymm0, %ymm0",
        "avxvnniint8": "vpdpbssd %ymm0, %ymm0, %ymm0", "avxvnniint16": "vpdpwsud %ymm0, %ymm0, %ymm0",
        "avxifma": "{vex} vpmadd52luq %ymm0, %ymm0, %ymm0", "avxneconvert": "vbcstnebf162ps (%rax), %ymm0",
        "avx512f": "vaddps %zmm0, %zmm0, %zmm0", "avx512cd": "vpconflictd %zmm0, %zmm0",
        "avx512bw": "vpaddb %zmm0, %zmm0, %zmm0", "avx512dq": "vpmullq %zmm0, %zmm0, %zmm0",
        "avx512vl": "vpaddd %xmm16, %xmm0, %xmm0", "avx512vnni": "vpdpbusd %zmm0, %zmm0, %zmm0",
        "avx512ifma": "vpmadd52luq %zmm0, %zmm0, %zmm0", "avx512vpopcntdq": "vpopcntd %zmm0, %zmm0",
        "avx512bf16": "vdpbf16ps %zmm0, %zmm0, %zmm0", "avx512vbmi": "vpermb %zmm0, %zmm0, %zmm0",
        "avx512vbmi2": "vpcompressb %zmm0, %zmm0", "avx512bitalg": "vpopcntb %zmm0, %zmm0",
        "avx512fp16": "vaddph %zmm0, %zmm0, %zmm0", "avx512vp2intersect": "vp2intersectd %zmm0, %zmm0, %k0",
        "avx10.2": "vaddbf16 %zmm0, %zmm0, %zmm0", "amx-tile": "tilezero %tmm0",
        "amx-int8": "tdpbssd %tmm0, %tmm1, %tmm2", "amx-bf16": "tdpbf16ps %tmm0, %tmm1, %tmm2",
        "amx-fp16": "tdpfp16ps %tmm0, %tmm1, %tmm2", "amx-complex": "tcmmimfp16ps %tmm0, %tmm1, %tmm2",
    },
    "aarch64": {
        "fp-armv8": "fadd s0, s0, s0", "neon": "fadd v0.4s, v0.4s, v0.4s", "crc": "crc32b w0, w0, w0",
        "aes": "aese v0.16b, v0.16b", "sha2": "sha256su0 v0.4s, v0.4s", "lse": "ldadd w0, w0, [x0]",
        "rdm": "sqrdmlah v0.4s, v0.4s, v0.4s", "rcpc": "ldapr w0, [x0]", "fullfp16": "fadd h0, h0, h0",
        "dotprod": "sdot v0.4s, v0.16b, v0.16b", "fp16fml": "fmlal v0.4s, v0.4h, v0.4h", "jsconv": "fjcvtzs w0, d0",
        "complxnum": "fcadd v0.4s, v0.4s, v0.4s, #90", "bf16": "bfdot v0.4s, v0.8h, v0.8h",
        "i8mm": "smmla v0.4s, v0.16b, v0.16b", "sve": "ptrue p0.s", "sve2": "sqrdmlah z0.s, z0.s, z0.s",
    },
    "riscv64": {
        "m": "mul a0, a0, a0", "a": "lr.w a0, (a0)", "f": "fadd.s fa0, fa0, fa0", "d": "fadd.d fa0, fa0, fa0",
        "c": "c.nop", "zba": "sh1add a0, a0, a0", "zbb": "cpop a0, a0", "zbs": "bset a0, a0, a0",
        "zfhmin": "flh fa0, 0(a0)", "zfh": "fadd.h fa0, fa0, fa0", "v": "vfadd.vv v0, v0, v0",
    },
}

# Reads "triple|cpu|features|instruction" lines; a fork each, because LLVM ends the process when the assembler objects.
ASSEMBLE = r"""
import os, sys
import llvmlite.binding as llvm
llvm.initialize_all_targets(); llvm.initialize_all_asmprinters(); llvm.initialize_native_asmparser()
if hasattr(llvm.ffi.lib, "LLVMPY_InitializeAllAsmParsers"): llvm.ffi.lib.LLVMPY_InitializeAllAsmParsers()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
for line in sys.stdin:
    triple, cpu, features, instruction = line.rstrip("\n").split("|")
    child = os.fork()
    if child == 0:
        text = f'target triple = "{triple}"\ndefine void @f() {{\n  call void asm sideeffect "{instruction}", ""()\n  ret void\n}}'
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
        machine.emit_object(llvm.parse_assembly(text))
        os._exit(0)
    print(int(os.waitpid(child, 0)[1] == 0))
"""


def assembles(rows: list[tuple[str, str, str, str]]) -> list[bool]:
    lines = "\n".join("|".join(row) for row in rows) + "\n"
    done = subprocess.run([sys.executable, "-c", ASSEMBLE], input=lines, capture_output=True, text=True, check=True)
    return [line == "1" for line in done.stdout.split()]


def complaints(triple: str, cpu: str, features: str) -> str:
    """What LLVM prints to the error stream when it makes a machine with these names."""
    program = (
        "import llvmlite.binding as l; l.initialize_all_targets();"
        f"l.Target.from_triple({triple!r}).create_target_machine(cpu={cpu!r}, features={features!r})"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr


def test_llvm_complaints_are_seen() -> None:
    assert "not a recognized processor" in complaints(TRIPLES["x86_64"], "znver44", "")
    assert "not a recognized feature" in complaints(TRIPLES["x86_64"], "znver4", "+avx513")


@pytest.mark.parametrize("architecture", FEATURES)
def test_llvm_knows_every_name(architecture: str) -> None:
    program = ["import llvmlite.binding as l; l.initialize_all_targets()"]
    for cpu in (cpu for cpu in CPUS.values() if cpu.architecture == architecture):
        program.append(f"l.Target.from_triple({TRIPLES[architecture]!r}).create_target_machine(cpu={cpu.name!r})")
    features = ",".join("+" + name for name in FEATURES[architecture])
    first = next(cpu.name for cpu in CPUS.values() if cpu.architecture == architecture)
    done = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert complaints(TRIPLES[architecture], first, features) == ""


@pytest.mark.parametrize("architecture", ["x86_64"])
def test_features_are_those_of_llvm(architecture: str) -> None:
    """Each CPU's list, on and off, is what LLVM's assembler accepts for the bare CPU name."""
    cpus = [cpu for cpu in CPUS.values() if cpu.architecture == architecture]
    cases = [(cpu, feature) for cpu in cpus for feature in PROBES[architecture]]
    found = assembles([(TRIPLES[architecture], cpu.name, "", PROBES[architecture][feature]) for cpu, feature in cases])
    wrong = [
        f"{cpu.name}: {'+' if accepted else '-'}{feature} in LLVM"
        for (cpu, feature), accepted in zip(cases, found) if accepted != (feature in cpu.features)
    ]
    assert len(found) == len(cases)
    assert not wrong, "\n".join(wrong)


def test_dependencies_are_those_of_llvm() -> None:
    """+feature on the bare architecture turns on all that our table says it needs, and -feature takes away what needs it."""
    probes, triple = PROBES["x86_64"], TRIPLES["x86_64"]
    cases = [
        (feature, needed) for feature in FEATURES["x86_64"] for needed in targets.closure("x86_64", [feature])
        if needed in probes
    ]
    assert all(assembles([(triple, "x86-64", "+" + feature, probes[needed]) for feature, needed in cases]))
    for name in ("avx2", "avx512f", "fma", "sse4.2"):
        target = resolve_target(f"cpu:graniterapids-{name}")
        gone = [feature for feature in CPUS["graniterapids"].features - set(target.features) if feature in probes]
        assert name in gone
        assert not any(assembles([(triple, target.cpu, target.feature_string, probes[feature]) for feature in gone]))
        kept = [feature for feature in target.features if feature in probes]
        assert all(assembles([(triple, target.cpu, target.feature_string, probes[feature]) for feature in kept]))


def test_tables_are_closed() -> None:
    for cpu in CPUS.values():
        assert targets.closure(cpu.architecture, cpu.features) == cpu.features, cpu.name


def test_host() -> None:
    host = resolve_target("cpu")
    assert host == resolve_target("cpu:native") == host_target()
    assert host_supports(host) == []
    assert host.level1_bytes >= 8 << 10
    assert "evex512" not in host.feature_string


def test_host_lacks() -> None:
    everything = resolve_target("cpu:native+amx-fp16") if host_target().is_x86 else resolve_target("cpu:x86-64")
    assert host_supports(everything) or "amx-fp16" in host_target().features
    assert host_supports(resolve_target("cpu:sifive-p670")) == ["riscv64"] or host_target().architecture == "riscv64"


def test_capabilities() -> None:
    baseline, level3, zen4 = (resolve_target(f"cpu:{name}") for name in ("x86-64", "x86-64-v3", "znver4"))
    assert (baseline.vector_bits, baseline.vector_registers, baseline.has_fma, baseline.has_round) == (128, 16, False, False)
    assert not baseline.has_masked_memory and not baseline.has_half
    assert (level3.vector_bits, level3.vector_registers, level3.has_fma, level3.has_round) == (256, 16, True, True)
    assert level3.has_masked_memory and level3.has_half and not level3.has_vnni
    assert (zen4.vector_bits, zen4.vector_registers, zen4.has_vnni, zen4.has_bf16) == (512, 32, True, True)
    assert resolve_target("cpu:alderlake").has_vnni and resolve_target("cpu:alderlake").vector_bits == 256
    arm = resolve_target("cpu:neoverse-n1")
    assert (arm.architecture, arm.vector_bits, arm.vector_registers, arm.has_fma) == ("aarch64", 128, 32, True)
    assert arm.has_vnni and not arm.has_bf16
    assert resolve_target("cpu:sifive-x280").vector_bits == 512
    assert resolve_target("cpu:sifive-u74").vector_bits == 64


def test_toggles() -> None:
    assert resolve_target("cpu:x86-64-v3+avx512f").has("avx512f", "fma", "f16c")
    assert resolve_target("cpu:x86-64-v3+avx512f").vector_bits == 256
    assert resolve_target("cpu:x86-64-v3+avx512f+avx512vl+avx512bw+avx512dq").vector_bits == 512
    narrow = resolve_target("cpu:skylake-avx512-avx2")
    assert not narrow.has("avx2") and not narrow.has("avx512vnni") and narrow.has("avx", "fma")
    assert "-avx512f" in narrow.feature_string and "+fma" in narrow.feature_string
    assert resolve_target("cpu:sapphirerapids-amx-int8-amx-bf16").has("amx-tile")
    assert resolve_target("cpu:x86-64-v3-fma+fma") == resolve_target("cpu:x86-64-v3")


def test_canonical_text_tells_targets_apart() -> None:
    texts = {resolve_target(f"cpu:{cpu.name}").canonical_text for cpu in known_cpus()}
    assert len(texts) == len(CPUS)
    assert resolve_target("cpu:haswell").canonical_text != resolve_target("cpu:haswell-fma").canonical_text


@pytest.mark.parametrize(("text", "message", "hint"), [
    ("cpu:znver44", "unknown CPU 'znver44'", "znver4"),
    ("cpu:x86-64-v3+avx512", "unknown feature 'avx512' of x86_64", "avx512f"),
    ("cpu:neoverse-n1+avx2", "unknown feature 'avx2' of aarch64", ""),
    ("cpu:", "form not understood", ""),
    ("znver4", "form not understood", "cpu:znver4"),
    ("cpu:x86-64-sse2", "turns off sse2", ""),
])
def test_errors(text: str, message: str, hint: str) -> None:
    with pytest.raises(CompileError) as caught:
        resolve_target(text)
    assert message in str(caught.value)
    assert hint in str(caught.value)


def test_unknown_host_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that our table does not name is compiled for by its features; a system that hides them, by the table."""
    architecture = targets.host_architecture()
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "future-cpu")
    host_target.cache_clear()
    assert host_target().cpu == targets.GENERIC[architecture]

    def hidden() -> dict[str, bool]:
        raise RuntimeError("unknown")

    monkeypatch.setattr(llvm, "get_host_cpu_features", hidden)
    host_target.cache_clear()
    assert set(host_target().features) == CPUS[targets.GENERIC[architecture]].features
    host_target.cache_clear()


def test_caches_from_sysfs(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    base = targets.Path(str(tmp_path))
    for index, (level, kind, size) in enumerate([("1", "Instruction", "64K"), ("1", "Data", "48K"), ("2", "Unified", "2M")]):
        entry = base / f"index{index}"
        entry.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (entry / name).write_text(value + "\n")
    monkeypatch.setattr(targets, "CACHE_DIRECTORY", base)
    assert [targets.cache_bytes(level, 7) for level in (1, 2, 3)] == [48 << 10, 2 << 20, 7]
