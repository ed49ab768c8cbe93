"""Targets: text to a resolved CPU, its errors, and our tables against LLVM's own."""

from __future__ import annotations

import json
import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from tilewright.backends.llvm import targets
from tilewright.backends.llvm.cpus import CPUS, FEATURES, Cpu
from tilewright.backends.llvm.targets import host_supports, host_target, known_cpus, resolve_target
from tilewright.ir.errors import CompileError

TRIPLES = {architecture: f"{architecture}-unknown-linux-gnu" for architecture in FEATURES}

def intrinsic(name: str, result: str, *operands: str) -> str:
    """A function that calls an intrinsic; operands of constant `type value` are passed as they are."""
    types = [operand.split()[0] if operand[0] == "i" else operand for operand in operands]
    arguments = [operand if operand[0] == "i" and " " in operand else f"{operand} %{i}" for i, operand in enumerate(operands)]
    parameters = [f"{operand} %{i}" for i, operand in enumerate(operands) if not (operand[0] == "i" and " " in operand)]
    give = "call void" if result == "void" else f"%r = call {result}"
    last = "ret void" if result == "void" else f"ret {result} %r"
    return (
        f"declare {result} @{name}({', '.join(types)})\n"
        f"define {result} @f({', '.join(parameters)}) {{ {give} @{name}({', '.join(arguments)})\n {last} }}"
    )


def operation(text: str, kind: str) -> str:
    return f"define {kind} @f({kind} %0, {kind} %1) {{ %r = {text} {kind} %0, %1\n ret {kind} %r }}"


F4, F8, F16 = "<4 x float>", "<8 x float>", "<16 x float>"
TILES = ("i8 0", "i8 1", "i8 2")

# feature -> (IR, pattern of the instruction in the assembly that only the feature gives). LLVM's x86 assembler accepts every
# instruction for every CPU, so code generation is asked; an intrinsic without its feature ends the process.
X86_PROBES = {
    "sse2": (operation("add", "<4 x i32>"), "paddd"),
    "sse3": (intrinsic("llvm.x86.sse3.hadd.ps", F4, F4, F4), "haddps"),
    "ssse3": (intrinsic("llvm.x86.ssse3.pshuf.b.128", "<16 x i8>", "<16 x i8>", "<16 x i8>"), "pshufb"),
    "sse4.1": (intrinsic("llvm.floor.v4f32", F4, F4), "roundps|vrndscale"),
    "sse4.2": (intrinsic("llvm.x86.sse42.pcmpistri128", "i32", "<16 x i8>", "<16 x i8>", "i8 0"), "pcmpistri"),
    "sse4a": (intrinsic("llvm.x86.sse4a.extrq", "<2 x i64>", "<2 x i64>", "<16 x i8>"), "extrq"),
    "popcnt": (intrinsic("llvm.ctpop.i32", "i32", "i32"), "popcntl"),
    "lzcnt": ("declare i32 @llvm.ctlz.i32(i32, i1)\ndefine i32 @f(i32 %0) {"
              "%r = call i32 @llvm.ctlz.i32(i32 %0, i1 false)\n ret i32 %r }", "lzcntl"),
    "bmi": ("define i32 @f(i32 %0, i32 %1) { %n = xor i32 %0, -1\n %r = and i32 %n, %1\n ret i32 %r }", "andnl"),
    "bmi2": (intrinsic("llvm.x86.bmi.pdep.32", "i32", "i32", "i32"), "pdepl"),
    "movbe": ("declare i32 @llvm.bswap.i32(i32)\ndefine i32 @f(ptr %0) { %x = load i32, ptr %0\n"
              "%r = call i32 @llvm.bswap.i32(i32 %x)\n ret i32 %r }", "movbel"),
    "cx16": ("define void @f(ptr %0, i128 %1) { %r = cmpxchg ptr %0, i128 %1, i128 %1 seq_cst seq_cst\n ret void }",
             "cmpxchg16b"),
    "prfchw": ("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\ndefine void @f(ptr %0) {"
               "call void @llvm.prefetch.p0(ptr %0, i32 1, i32 3, i32 1)\n ret void }", "prefetchw"),
    "aes": (intrinsic("llvm.x86.aesni.aesenc", "<2 x i64>", "<2 x i64>", "<2 x i64>"), "aesenc"),
    "pclmul": (intrinsic("llvm.x86.pclmulqdq", "<2 x i64>", "<2 x i64>", "<2 x i64>", "i8 0"), "pclmul"),
    "sha": (intrinsic("llvm.x86.sha1msg1", "<4 x i32>", "<4 x i32>", "<4 x i32>"), "sha1msg1"),
    "gfni": (intrinsic("llvm.x86.vgf2p8mulb.128", "<16 x i8>", "<16 x i8>", "<16 x i8>"), "gf2p8mulb"),
    "avx": (operation("fadd", F8), "vaddps.*ymm"),
    "f16c": ("define <8 x float> @f(<8 x half> %0) { %r = fpext <8 x half> %0 to <8 x float>\n ret <8 x float> %r }",
             "vcvtph2ps"),
    "fma": (intrinsic("llvm.fma.v4f32", F4, F4, F4, F4), "vfmadd(132|213|231)ps"),
    "fma4": (intrinsic("llvm.fma.v4f32", F4, F4, F4, F4), "vfmaddps"),
    "xop": (operation("ashr", "<16 x i8>"), "vpshab"),
    "avx2": (operation("add", "<8 x i32>"), "vpaddd.*ymm"),
    "vaes": (intrinsic("llvm.x86.aesni.aesenc.256", "<4 x i64>", "<4 x i64>", "<4 x i64>"), "vaesenc"),
    "vpclmulqdq": (intrinsic("llvm.x86.pclmulqdq.256", "<4 x i64>", "<4 x i64>", "<4 x i64>", "i8 0"), "vpclmul"),
    "avxvnni": (intrinsic("llvm.x86.avx512.vpdpbusd.256", "<8 x i32>", "<8 x i32>", "<32 x i8>", "<32 x i8>"), r"\{vex\}\s+vpdpbusd"),
    "avxvnniint8": (intrinsic("llvm.x86.avx2.vpdpbssd.256", "<8 x i32>", "<8 x i32>", "<32 x i8>", "<32 x i8>"), "vpdpbssd"),
    "avxvnniint16": (intrinsic("llvm.x86.avx2.vpdpwsud.256", "<8 x i32>", "<8 x i32>", "<16 x i16>", "<16 x i16>"), "vpdpwsud"),
    "avxifma": (intrinsic("llvm.x86.avx512.vpmadd52l.uq.256", "<4 x i64>", "<4 x i64>", "<4 x i64>", "<4 x i64>"),
                r"\{vex\}\s+vpmadd52luq"),
    "avxneconvert": ("declare <8 x float> @llvm.x86.vbcstnebf162ps256(ptr)\ndefine <8 x float> @f(ptr %0) {"
                     "%r = call <8 x float> @llvm.x86.vbcstnebf162ps256(ptr %0)\n ret <8 x float> %r }", "vbcstnebf162ps"),
    "avx512f": (operation("fadd", F16), "vaddps.*zmm"),
    "avx512cd": (intrinsic("llvm.x86.avx512.conflict.d.512", "<16 x i32>", "<16 x i32>"), "vpconflictd"),
    "avx512bw": (operation("add", "<64 x i8>"), "vpaddb.*zmm"),
    "avx512dq": (operation("mul", "<8 x i64>"), "vpmullq.*zmm"),
    "avx512vl": ("declare <4 x i64> @llvm.abs.v4i64(<4 x i64>, i1)\ndefine <4 x i64> @f(<4 x i64> %0) {"
                 "%r = call <4 x i64> @llvm.abs.v4i64(<4 x i64> %0, i1 false)\n ret <4 x i64> %r }", "vpabsq.*ymm.*ymm"),
    "avx512vnni": (intrinsic("llvm.x86.avx512.vpdpbusd.512", "<16 x i32>", "<16 x i32>", "<64 x i8>", "<64 x i8>"), "vpdpbusd"),
    "avx512ifma": (intrinsic("llvm.x86.avx512.vpmadd52l.uq.512", "<8 x i64>", "<8 x i64>", "<8 x i64>", "<8 x i64>"),
                   "vpmadd52luq"),
    "avx512vpopcntdq": (intrinsic("llvm.ctpop.v16i32", "<16 x i32>", "<16 x i32>"), "vpopcntd"),
    "avx512bf16": (intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", F16, F16, "<32 x bfloat>", "<32 x bfloat>"), "vdpbf16ps"),
    "avx512vbmi": (intrinsic("llvm.x86.avx512.permvar.qi.512", "<64 x i8>", "<64 x i8>", "<64 x i8>"), "vpermb"),
    "avx512vbmi2": (intrinsic("llvm.fshl.v32i16", "<32 x i16>", "<32 x i16>", "<32 x i16>", "<32 x i16>"), "vpshldvw"),
    "avx512bitalg": (intrinsic("llvm.ctpop.v64i8", "<64 x i8>", "<64 x i8>"), "vpopcntb"),
    "avx512fp16": (operation("fadd", "<32 x half>"), "vaddph.*zmm"),
    "avx512vp2intersect": (intrinsic("llvm.x86.avx512.vp2intersect.d.512", "{ <16 x i1>, <16 x i1> }", "<16 x i32>", "<16 x i32>"),
                           "vp2intersectd"),
    "avx10.2": (operation("fadd", "<32 x bfloat>"), "vaddbf16"),
    "amx-tile": (intrinsic("llvm.x86.tilezero", "void", "i8 0"), "tilezero"),
    "amx-int8": (intrinsic("llvm.x86.tdpbssd", "void", *TILES), "tdpbssd"),
    "amx-bf16": (intrinsic("llvm.x86.tdpbf16ps", "void", *TILES), "tdpbf16ps"),
    "amx-fp16": (intrinsic("llvm.x86.tdpfp16ps", "void", *TILES), "tdpfp16ps"),
    "amx-complex": (intrinsic("llvm.x86.tcmmimfp16ps", "void", *TILES), "tcmmimfp16ps"),
}
X86_TRIPLE = "x86_64-unknown-linux-gnu"

I4, B16, H8, N8, S4 = "<4 x i32>", "<16 x i8>", "<8 x half>", "<8 x bfloat>", "<vscale x 4 x i32>"
AARCH64_PROBES = {
    "neon": (operation("fadd", F4), r"fadd\s+v0.4s"),
    "crc": (intrinsic("llvm.aarch64.crc32b", "i32", "i32", "i32"), "crc32b"),
    "aes": (intrinsic("llvm.aarch64.crypto.aese", B16, B16, B16), "aese"),
    "sha2": (intrinsic("llvm.aarch64.crypto.sha256su0", I4, I4, I4), "sha256su0"),
    "lse": ("define i32 @f(ptr %0, i32 %1) { %r = atomicrmw add ptr %0, i32 %1 seq_cst\n ret i32 %r }", r"ldaddal\s+w"),
    "rdm": (intrinsic("llvm.aarch64.neon.sqrdmlah.v4i32", I4, I4, I4, I4), "sqrdmlah"),
    "rcpc": ("define i32 @f(ptr %0) { %r = load atomic i32, ptr %0 acquire, align 4\n ret i32 %r }", "ldapr"),
    "fullfp16": (operation("fadd", H8), r"fadd\s+v0.8h"),
    "dotprod": (intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", I4, I4, B16, B16), "sdot"),
    "fp16fml": (intrinsic("llvm.aarch64.neon.fmlal.v4f32.v8f16", F4, F4, H8, H8), "fmlal"),
    "jsconv": (intrinsic("llvm.aarch64.fjcvtzs", "i32", "double"), "fjcvtzs"),
    "complxnum": (intrinsic("llvm.aarch64.neon.vcadd.rot90.v4f32", F4, F4, F4), "fcadd"),
    "bf16": (intrinsic("llvm.aarch64.neon.bfdot.v4f32.v8bf16", F4, F4, N8, N8), "bfdot"),
    "i8mm": (intrinsic("llvm.aarch64.neon.smmla.v4i32.v16i8", I4, I4, B16, B16), "smmla"),
    "sve": (operation("add", S4), r"add\s+z0.s"),
    "sve2": (intrinsic("llvm.aarch64.sve.sqrdmlah.nxv4i32", S4, S4, S4, S4), r"sqrdmlah\s+z"),
}
RISCV64_PROBES = {
    "m": (operation("mul", "i64"), r"\bmul\s"),
    "a": ("define i32 @f(ptr %0, i32 %1) { %r = atomicrmw add ptr %0, i32 %1 seq_cst\n ret i32 %r }", "amoadd"),
    "f": (operation("fadd", "float"), r"fadd\.s"),
    "d": (operation("fadd", "double"), r"fadd\.d"),
    "zba": ("define i64 @f(i64 %0, i64 %1) { %s = shl i64 %0, 1\n %r = add i64 %s, %1\n ret i64 %r }", "sh1add"),
    "zbb": (intrinsic("llvm.ctpop.i64", "i64", "i64"), "cpop"),
    "zbs": ("define i64 @f(i64 %0) { %r = or i64 %0, 1099511627776\n ret i64 %r }", "bseti"),
    "zfhmin": ("define float @f(half %0) { %r = fpext half %0 to float\n ret float %r }", r"fcvt\.s\.h"),
    "zfh": (operation("fadd", "half"), r"fadd\.h"),
    "v": (operation("add", I4), "vadd"),
    "zvl256b": (operation("add", "<8 x i32>"), r"vsetivli\s+zero, 8, e32, m(1|f2)"),
    "zvl512b": (operation("add", "<16 x i32>"), r"vsetivli\s+zero, 16, e32, m1"),
}
PROBES = {"x86_64": X86_PROBES, "aarch64": AARCH64_PROBES, "riscv64": RISCV64_PROBES}

# A wider feature hides what a narrower one would have given: then code cannot tell whether LLVM has the latter.
HIDDEN_BY = {
    "fma": {"fma4"}, "f16c": {"avx512fp16"}, "avxvnni": {"avx512vnni"}, "avxifma": {"avx512ifma"},
}

# Reads JSON rows [triple, cpu, features, IR, pattern]; a fork each, because LLVM ends the process on what it cannot select.
COMPILE = r"""
import json, os, re, sys
import llvmlite.binding as llvm
llvm.initialize_all_targets(); llvm.initialize_all_asmprinters()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
for line in sys.stdin:
    triple, cpu, features, text, pattern = json.loads(line)
    child = os.fork()
    if child == 0:
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
        assembly = machine.emit_assembly(llvm.parse_assembly(f'target triple = "{triple}"\n' + text))
        os._exit(0 if re.search(pattern, assembly) else 1)
    print(int(os.waitpid(child, 0)[1] == 0), flush=True)
"""


def available(rows: list[tuple[str, str, str]], architecture: str = "x86_64") -> list[bool]:
    """Whether LLVM, for (cpu, feature string), makes the instruction of a probed feature."""
    lines = "".join(json.dumps([TRIPLES[architecture], cpu, features, *PROBES[architecture][feature]]) + "\n"
                    for cpu, features, feature in rows)
    done = subprocess.run([sys.executable, "-c", COMPILE], input=lines, capture_output=True, text=True, check=True)
    found = [line == "1" for line in done.stdout.split()]
    assert len(found) == len(rows)
    return found


def complaints(triple: str, cpu: str, features: str) -> str:
    """What LLVM prints to the error stream when it makes a machine with these names."""
    program = (
        "import llvmlite.binding as l; l.initialize_all_targets();"
        f"l.Target.from_triple({triple!r}).create_target_machine(cpu={cpu!r}, features={features!r})"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr


def test_llvm_complaints_are_seen() -> None:
    assert "not a recognized processor" in complaints(X86_TRIPLE, "znver44", "")
    assert "not a recognized feature" in complaints(X86_TRIPLE, "znver4", "+avx513")


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


def differences(cpus: list[Cpu]) -> list[str]:
    """Where our list of a CPU's features and the code that LLVM makes for its bare name disagree; CPUs of one architecture."""
    architecture = cpus[0].architecture
    cases = [
        (cpu, feature) for cpu in cpus for feature in PROBES[architecture]
        if not HIDDEN_BY.get(feature, set()) & cpu.features
    ]
    found = available([(cpu.name, "", feature) for cpu, feature in cases], architecture)
    return [
        f"{cpu.name}: LLVM says {'+' if has else '-'}{feature}"
        for (cpu, feature), has in zip(cases, found) if has != (feature in cpu.features)
    ]


def test_features_are_those_of_llvm_quickly() -> None:
    assert differences([CPUS["x86-64"], CPUS["znver3"]]) == []
    assert differences([CPUS["neoverse-n1"]]) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PROBES)
def test_features_are_those_of_llvm(architecture: str) -> None:
    """Of every third processor, and of the last: generations inherit from one another in the table, as in LLVM's."""
    known = [cpu for cpu in CPUS.values() if cpu.architecture == architecture]
    assert differences([*known[:-1:3], known[-1]]) == []


@pytest.mark.slow
def test_dependencies_are_those_of_llvm() -> None:
    """+feature on the bare architecture turns on all that our table says it needs, and -feature takes away what needs it."""
    cases = [
        ("x86-64", "+" + feature, needed)
        for feature in FEATURES["x86_64"] for needed in targets.closure("x86_64", [feature])
        if needed in X86_PROBES and not HIDDEN_BY.get(needed, set()) & targets.closure("x86_64", [feature])
    ]
    missing = [case for case, has in zip(cases, available(cases)) if not has]
    assert missing == []
    for name in ("avx2", "avx512f", "fma", "sse4.2"):
        target = resolve_target(f"cpu:graniterapids-{name}")
        probed = [feature for feature in X86_PROBES if not HIDDEN_BY.get(feature, set()) & set(target.features)]
        found = available([(target.cpu, target.feature_string, feature) for feature in probed])
        assert [feature for feature, has in zip(probed, found) if has != target.has(feature)] == []


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
