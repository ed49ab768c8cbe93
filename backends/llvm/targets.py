"""What to compile for: a CPU, its features and caches, checked against our own tables.

What it does: `resolve_target(text)` turns `cpu`, `cpu:znver4`, `cpu:x86-64-v3+avx512f-popcnt` or `cpu:native-avx2` into a frozen
`Target`. The host's features and caches are asked of LLVM and of the system. Names are checked here because LLVM ignores an
unknown CPU or feature without a word.
Guarantees: features are closed (what is on has all that it needs; turning one off turns off what needs it), every tracked feature is
spelled to LLVM as on or off, so equal targets give equal code whatever LLVM thinks of the CPU; `canonical_text` names all that
affects code, and is what the cache hashes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import llvmlite.binding as llvm
from msgspec import Struct

from tilewright.backends.llvm.cpus import CPUS, FEATURES, Cpu
from tilewright.ir.errors import CompileError

HOST_NAMES = ("native", "host")
GENERIC = {"x86_64": "x86-64", "aarch64": "generic", "riscv64": "generic-rv64"}
CACHE_DIRECTORY = Path("/sys/devices/system/cpu/cpu0/cache")
FULL_AVX512 = frozenset(["avx512f", "avx512vl", "avx512bw", "avx512dq"])


class Target(Struct, frozen=True):
    """A resolved CPU. Every property is a function of these fields."""

    triple: str
    cpu: str                                          # as LLVM spells it
    features: tuple[str, ...]                         # tracked features that are on, sorted
    level1_bytes: int
    level2_bytes: int                                 # of one core
    level3_bytes: int                                 # shared; 0: none

    @property
    def architecture(self) -> str:
        return CPUS[self.cpu].architecture

    def has(self, *features: str) -> bool:
        return set(features) <= set(self.features)

    @property
    def is_x86(self) -> bool:
        return self.architecture == "x86_64"

    @property
    def vector_bits(self) -> int:
        """The width of the registers to use. SVE and RISC-V V count as their smallest length."""
        if self.is_x86:
            return 512 if self.has(*FULL_AVX512) else 256 if self.has("avx") else 128
        if self.architecture == "aarch64":
            return 128
        if not self.has("v"):
            return 64
        return 512 if self.has("zvl512b") else 256 if self.has("zvl256b") else 128

    @property
    def vector_registers(self) -> int:
        return 16 if self.is_x86 and not self.has(*FULL_AVX512) else 32

    @property
    def has_fma(self) -> bool:
        return self.has("fma") if self.is_x86 else self.has("neon") or self.has("d")

    @property
    def has_round(self) -> bool:
        """floor, ceil, trunc, roundeven are instructions."""
        return self.has("sse4.1") if self.is_x86 else self.has("neon")

    @property
    def has_half(self) -> bool:
        """Conversions between float16 and float32 are instructions."""
        return self.has("f16c") if self.is_x86 else self.has("neon") or self.has("zfhmin")

    @property
    def has_half_arithmetic(self) -> bool:
        return self.has("avx512fp16") or self.has("fullfp16") or self.has("zfh")

    @property
    def has_masked_memory(self) -> bool:
        """Loads and stores of 32- and 64-bit lanes under a mask are instructions (AVX vmaskmov, AVX-512, SVE, V)."""
        return self.has("avx") or self.has("sve") or self.has("v")

    @property
    def has_mask_registers(self) -> bool:
        return self.has(*FULL_AVX512)

    @property
    def has_vnni(self) -> bool:
        """8-bit dot products into int32 (vpdpbusd; on Arm sdot and udot)."""
        return self.has("avx512vnni", "avx512vl") or self.has("avxvnni") or self.has("dotprod")

    @property
    def pairs_bits(self) -> int:
        """The widest vector on which pairs of 16-bit integers are multiplied and added (pmaddwd); 0: none."""
        if not self.is_x86:
            return 0
        return 512 if self.has("avx512bw") and self.vector_bits == 512 else 256 if self.has("avx2") else 128

    @property
    def byte_pairs_bits(self) -> int:
        """The widest vector on which pairs of bytes are multiplied and added within 16 bits (pmaddubsw); 0: none."""
        return self.pairs_bits if self.is_x86 and self.has("ssse3") else 0

    @property
    def quads_bits(self) -> int:
        """The widest vector on which four bytes each are multiplied and added into int32 (vpdpbusd); 0: none."""
        if not self.is_x86 or not self.has_vnni:
            return 0
        return 512 if self.has("avx512vnni") and self.vector_bits == 512 else 256

    @property
    def has_bf16(self) -> bool:
        """Dot products of bfloat16 pairs into float32."""
        return self.has("avx512bf16", "avx512vl") or self.has("bf16")

    @property
    def bfloats_bits(self) -> int:
        """The widest vector on which pairs of bfloat16 are multiplied and added into float32 (vdpbf16ps); 0: none."""
        return (512 if self.vector_bits == 512 else 256) if self.is_x86 and self.has_bf16 else 0

    @property
    def has_avx512(self) -> bool:
        """Vectors of 512 bits, with the instructions on them that `MathOptions` names."""
        return self.is_x86 and self.has("avx512f") and self.vector_bits == 512

    @property
    def feature_string(self) -> str:
        """For LLVM: the features that are off, then those that are on (each may turn on what it needs)."""
        off = sorted(set(FEATURES[self.architecture]) - set(self.features))
        return ",".join([*("-" + name for name in off), *("+" + name for name in self.features)])

    @property
    def canonical_text(self) -> str:
        """All that affects code, in one line: what the cache key hashes."""
        caches = f"l1={self.level1_bytes} l2={self.level2_bytes} l3={self.level3_bytes}"
        return f"{self.triple} {self.cpu} {' '.join('+' + name for name in self.features)} {caches}"

    def __str__(self) -> str:
        return f"cpu:{self.cpu}"


# ---- features ----


def closure(architecture: str, features: Iterable[str]) -> set[str]:
    """The features with all that they need."""
    needs, result, waiting = FEATURES[architecture], set(), list(features)
    while waiting:
        name = waiting.pop()
        if name not in result:
            result.add(name)
            waiting.extend(needs[name])
    return result


def without(architecture: str, features: Iterable[str], removed: str) -> set[str]:
    """The features less `removed` and less all that need it."""
    return {name for name in features if removed not in closure(architecture, [name])}


# ---- the host ----


def host_architecture() -> str:
    name = str(llvm.get_default_triple()).split("-")[0]
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)


def cache_bytes(level: int, default: int) -> int:
    """The host's data or unified cache of that level, from sysfs; `default` where the system does not say."""
    for entry in sorted(CACHE_DIRECTORY.glob("index*")):
        try:
            fields = [(entry / name).read_text().strip() for name in ("level", "type", "size")]
        except OSError:
            continue
        size = re.fullmatch(r"(\d+)([KMG]?)", fields[2])
        if fields[0] == str(level) and fields[1] in ("Data", "Unified") and size:
            return int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
    return default


@lru_cache(maxsize=1)
def host_target() -> Target:
    """This machine, with the features it has now (a virtual machine may hide some of its CPU's)."""
    architecture = host_architecture()
    if architecture not in FEATURES:
        raise CompileError(f"target: host architecture {architecture} not supported, found vs {', '.join(sorted(FEATURES))}")
    name = llvm.get_host_cpu_name()
    cpu = CPUS.get(name)
    if cpu is None or cpu.architecture != architecture:
        cpu = CPUS[GENERIC[architecture]]
    try:
        reported = {name for name, on in llvm.get_host_cpu_features().items() if on} & set(FEATURES[architecture])
    except RuntimeError:                              # LLVM cannot ask this system
        reported = set(cpu.features)
    closed = [name for name in reported if closure(architecture, [name]) <= reported | {"sse2"}]
    return Target(
        triple=llvm.get_process_triple(), cpu=cpu.name, features=tuple(sorted(closure(architecture, closed))),
        level1_bytes=cache_bytes(1, cpu.caches[0]), level2_bytes=cache_bytes(2, cpu.caches[1]),
        level3_bytes=cache_bytes(3, cpu.caches[2]),
    )


def host_supports(target: Target) -> list[str]:
    """What this machine lacks to run code for `target`: features, or the architecture; empty when it can."""
    host = host_target()
    if host.architecture != target.architecture:
        return [target.architecture]
    return sorted(set(target.features) - set(host.features))


# ---- text ----


def known_cpus() -> list[Cpu]:
    """Every CPU that a target may name, by architecture and then as the table lists them."""
    return sorted(CPUS.values(), key=lambda cpu: list(FEATURES).index(cpu.architecture))


def closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.55)
    return f"did you mean {' or '.join(matches)}?" if matches else ""


def unknown_cpu(text: str, name: str) -> CompileError:
    by_architecture = [
        f"{architecture}: {', '.join(cpu.name for cpu in CPUS.values() if cpu.architecture == architecture)}"
        for architecture in FEATURES
    ]
    return CompileError(
        f"target: unknown CPU {name!r} in {text!r}", notes=("known: native (this machine)", *by_architecture),
        hint=closest(name, [*CPUS, *HOST_NAMES]))


def split_name(text: str, body: str) -> tuple[str, str]:
    """(CPU name, toggles): the longest known name that a toggle or the end follows, since names contain `-` as well."""
    for end in range(len(body), 0, -1):
        follows = body[end : end + 1]
        if follows in ("", "+", "-") and (body[:end] in CPUS or body[:end] in HOST_NAMES):
            return body[:end], body[end:]
    raise unknown_cpu(text, body.split("+")[0])


def split_toggles(text: str, architecture: str, toggles: str) -> list[tuple[bool, str]]:
    """[(on, feature)] in order; like CPU names, features may contain `-` (amx-int8)."""
    known, result = FEATURES[architecture], []
    while toggles:
        sign, rest = toggles[0], toggles[1:]
        ends = (end for end in range(len(rest), 0, -1) if rest[end : end + 1] in ("", "+", "-") and rest[:end] in known)
        end = next(ends, 0)
        if not end:
            name = re.split(r"[+]", rest)[0]
            raise CompileError(
                f"target: unknown feature {name!r} of {architecture} in {text!r}",
                notes=(f"known: {', '.join(known)}",), hint=closest(name, known))
        result.append((sign == "+", rest[:end]))
        toggles = rest[end:]
    return result


def base_target(name: str) -> Target:
    if name in HOST_NAMES:
        return host_target()
    cpu = CPUS[name]
    # A host of that architecture gives the system (its object format and calls), else Linux is meant.
    same = host_architecture() == cpu.architecture
    triple = llvm.get_process_triple() if same else f"{cpu.architecture}-unknown-linux-gnu"
    return Target(triple, cpu.name, tuple(sorted(cpu.features)), *cpu.caches)


def resolve_target(text: str) -> Target:
    """`cpu[:name][(+|-)feature...]` to a Target; CompileError with close matches for a name that is not known."""
    if "," in text:
        raise CompileError(f"target: found several targets, expected one: {text!r}")
    kind, colon, body = text.partition(":")
    if kind != "cpu" or (colon and not body):
        raise CompileError(
            f"target: form not understood: {text!r} vs cpu, cpu:<name>, cpu:<name>+<feature>-<feature>",
            hint=closest(text, [f"cpu:{name}" for name in CPUS]))
    name, toggles = split_name(text, body or HOST_NAMES[0])
    base = base_target(name)
    features = set(base.features)
    for on, feature in split_toggles(text, base.architecture, toggles):
        features = features | closure(base.architecture, [feature]) if on else without(base.architecture, features, feature)
    if base.is_x86 and "sse2" not in features:
        raise CompileError(f"target: {text!r} turns off sse2, which x86-64 requires: floats are passed in its registers")
    return Target(
        base.triple, base.cpu, tuple(sorted(features)), base.level1_bytes, base.level2_bytes, base.level3_bytes)
