"""The CPUs and features that `targets.py` accepts: names as LLVM spells them, what implies what, caches.

What it does: tables only. A feature is here when it changes the code we generate or would be lost from an artifact built for another
CPU; the rest (system instructions) is left to LLVM's own definition of the CPU. `tests/test_targets.py` asks LLVM about every
name, and compiles one probe a feature for every CPU, so the lists cannot drift from LLVM's.
Sources: LLVM's X86.td, AArch64Processors.td and RISCVProcessors.td for the sets; vendors' data sheets for the caches.
"""

from __future__ import annotations

from msgspec import Struct

KIB, MIB = 1 << 10, 1 << 20

# feature -> the features it needs, of each architecture; closed under this relation by `closure` in targets.py.
X86_FEATURES: dict[str, tuple[str, ...]] = {
    "sse2": (),
    "sse3": ("sse2",),
    "ssse3": ("sse3",),
    "sse4.1": ("ssse3",),
    "sse4.2": ("sse4.1",),
    "sse4a": ("sse3",),
    "popcnt": (),
    "lzcnt": (),
    "bmi": (),
    "bmi2": (),
    "movbe": (),
    "cx16": (),
    "prfchw": (),
    "aes": ("sse2",),
    "pclmul": ("sse2",),
    "sha": ("sse2",),
    "gfni": ("sse2",),
    "avx": ("sse4.2",),
    "f16c": ("avx",),
    "fma": ("avx",),
    "fma4": ("avx", "sse4a"),
    "xop": ("fma4",),
    "avx2": ("avx",),
    "vaes": ("avx2", "aes"),
    "vpclmulqdq": ("avx", "pclmul"),
    "avxvnni": ("avx2",),
    "avxvnniint8": ("avx2",),
    "avxvnniint16": ("avx2",),
    "avxifma": ("avx2",),
    "avxneconvert": ("avx2",),
    "avx512f": ("avx2", "f16c", "fma"),
    "avx512cd": ("avx512f",),
    "avx512bw": ("avx512f",),
    "avx512dq": ("avx512f",),
    "avx512vl": ("avx512f",),
    "avx512vnni": ("avx512f",),
    "avx512ifma": ("avx512f",),
    "avx512vpopcntdq": ("avx512f",),
    "avx512bf16": ("avx512bw",),
    "avx512vbmi": ("avx512bw",),
    "avx512vbmi2": ("avx512bw",),
    "avx512bitalg": ("avx512bw",),
    "avx512fp16": ("avx512bw",),
    "avx512vp2intersect": ("avx512f",),
    "avx10.1": (
        "avx512cd", "avx512vbmi", "avx512ifma", "avx512vnni", "avx512bf16", "avx512vpopcntdq", "avx512vbmi2", "avx512bitalg",
        "avx512fp16",
    ),
    "avx10.2": ("avx10.1",),
    "amx-tile": (),
    "amx-int8": ("amx-tile",),
    "amx-bf16": ("amx-tile",),
    "amx-fp16": ("amx-tile",),
    "amx-complex": ("amx-tile",),
}

AARCH64_FEATURES: dict[str, tuple[str, ...]] = {
    "fp-armv8": (),
    "neon": ("fp-armv8",),
    "crc": (),
    "aes": ("neon",),
    "sha2": ("neon",),
    "lse": (),
    "rdm": ("neon",),
    "rcpc": (),
    "fullfp16": ("fp-armv8",),
    "dotprod": ("neon",),
    "fp16fml": ("fullfp16", "neon"),
    "jsconv": ("fp-armv8",),
    "complxnum": ("neon",),
    "bf16": ("neon",),
    "i8mm": ("neon",),
    "sve": ("fullfp16",),
    "sve2": ("sve",),
}

RISCV64_FEATURES: dict[str, tuple[str, ...]] = {
    "m": (),
    "a": (),
    "f": (),
    "d": ("f",),
    "c": (),
    "zba": (),
    "zbb": (),
    "zbs": (),
    "zfhmin": ("f",),
    "zfh": ("zfhmin",),
    "v": ("d", "zvl128b"),
    "zvl128b": (),
    "zvl256b": ("zvl128b",),
    "zvl512b": ("zvl256b",),
}

FEATURES = {"x86_64": X86_FEATURES, "aarch64": AARCH64_FEATURES, "riscv64": RISCV64_FEATURES}


class Cpu(Struct, frozen=True):
    """One CPU: its features (closed), and its data caches in bytes: level 1 and 2 of a core, level 3 of all cores that share it."""

    name: str
    architecture: str
    features: frozenset[str]
    caches: tuple[int, int, int]


V1 = frozenset(["sse2"])
V2 = V1 | {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16"}
V3 = V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

WESTMERE = V2 | {"pclmul"}
SANDYBRIDGE = WESTMERE | {"avx"}
IVYBRIDGE = SANDYBRIDGE | {"f16c"}
HASWELL = IVYBRIDGE | V3
BROADWELL = HASWELL | {"prfchw"}
SKYLAKE = BROADWELL | {"aes"}
SKYLAKE_SERVER = SKYLAKE | V4
CASCADELAKE = SKYLAKE_SERVER | {"avx512vnni"}
COOPERLAKE = CASCADELAKE | {"avx512bf16"}
CANNONLAKE = SKYLAKE_SERVER | {"avx512ifma", "avx512vbmi", "sha"}
ICELAKE = CANNONLAKE | {
    "avx512bitalg", "avx512vbmi2", "avx512vnni", "avx512vpopcntdq", "vaes", "vpclmulqdq", "gfni",
}
TIGERLAKE = ICELAKE | {"avx512vp2intersect"}
SAPPHIRERAPIDS = ICELAKE | {"avx512bf16", "avx512fp16", "avxvnni", "amx-tile", "amx-int8", "amx-bf16"}
GRANITERAPIDS = SAPPHIRERAPIDS | {"amx-fp16", "avx10.1"}
GOLDMONT = V2 | {"pclmul", "aes", "sha", "movbe", "prfchw"}
TREMONT = GOLDMONT | {"gfni"}
ALDERLAKE = TREMONT | V3 | {"vaes", "vpclmulqdq", "avxvnni"}
SIERRAFOREST = ALDERLAKE | {"avxifma", "avxneconvert", "avxvnniint8"}
ARROWLAKE_S = SIERRAFOREST | {"avxvnniint16"}

ZNVER1 = V3 | {"aes", "pclmul", "prfchw", "sha", "sse4a"}
ZNVER3 = ZNVER1 | {"vaes", "vpclmulqdq"}
ZNVER4 = ZNVER3 | V4 | {
    "avx512bf16", "avx512bitalg", "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512vpopcntdq", "gfni",
}
ZNVER5 = ZNVER4 | {"avx512vp2intersect", "avxvnni"}
BULLDOZER = V2 | {"avx", "fma4", "xop", "sse4a", "lzcnt", "aes", "pclmul", "prfchw"}
EXCAVATOR = BULLDOZER | {"bmi", "f16c", "fma", "avx2", "bmi2", "movbe"}

ARMV8 = frozenset(["fp-armv8", "neon"])
CORTEX_A72 = ARMV8 | {"crc", "aes", "sha2"}
ARMV8_2 = CORTEX_A72 | {"lse", "rdm", "fullfp16", "dotprod", "rcpc"}
APPLE_M1 = ARMV8_2 | {"fp16fml", "jsconv", "complxnum"}
APPLE_M2 = APPLE_M1 | {"bf16", "i8mm"}
NEOVERSE_V1 = ARMV8_2 | {"fp16fml", "jsconv", "complxnum", "bf16", "i8mm", "sve"}
NEOVERSE_N2 = NEOVERSE_V1 - {"aes", "sha2"} | {"sve2"}              # LLVM leaves the cryptographic extension optional

RV64 = frozenset(["m", "a", "f", "d", "c"])
RISCV_VECTOR = RV64 | {"v", "zvl128b", "zba", "zbb", "zfhmin"}

SMALL = (32 * KIB, 256 * KIB, 8 * MIB)                # where nothing better is known

_ROWS: tuple[tuple[str, str, frozenset[str], tuple[int, int, int]], ...] = (
    # levels of the x86-64 psABI
    ("x86_64", "x86-64", V1, SMALL),
    ("x86_64", "x86-64-v2", V2, SMALL),
    ("x86_64", "x86-64-v3", V3, SMALL),
    ("x86_64", "x86-64-v4", V4, (32 * KIB, 1 * MIB, 16 * MIB)),
    # Intel
    ("x86_64", "nehalem", V2, SMALL),
    ("x86_64", "westmere", WESTMERE, (32 * KIB, 256 * KIB, 12 * MIB)),
    ("x86_64", "sandybridge", SANDYBRIDGE, SMALL),
    ("x86_64", "ivybridge", IVYBRIDGE, SMALL),
    ("x86_64", "haswell", HASWELL, SMALL),
    ("x86_64", "broadwell", BROADWELL, SMALL),
    ("x86_64", "skylake", SKYLAKE, SMALL),
    ("x86_64", "skylake-avx512", SKYLAKE_SERVER, (32 * KIB, 1 * MIB, 24 * MIB)),
    ("x86_64", "cascadelake", CASCADELAKE, (32 * KIB, 1 * MIB, 32 * MIB)),
    ("x86_64", "cooperlake", COOPERLAKE, (32 * KIB, 1 * MIB, 36 * MIB)),
    ("x86_64", "cannonlake", CANNONLAKE, (32 * KIB, 256 * KIB, 4 * MIB)),
    ("x86_64", "icelake-client", ICELAKE, (48 * KIB, 512 * KIB, 8 * MIB)),
    ("x86_64", "icelake-server", ICELAKE, (48 * KIB, 1280 * KIB, 48 * MIB)),
    ("x86_64", "rocketlake", ICELAKE, (48 * KIB, 512 * KIB, 16 * MIB)),
    ("x86_64", "tigerlake", TIGERLAKE, (48 * KIB, 1280 * KIB, 12 * MIB)),
    ("x86_64", "sapphirerapids", SAPPHIRERAPIDS, (48 * KIB, 2 * MIB, 60 * MIB)),
    ("x86_64", "emeraldrapids", SAPPHIRERAPIDS, (48 * KIB, 2 * MIB, 160 * MIB)),
    ("x86_64", "graniterapids", GRANITERAPIDS, (48 * KIB, 2 * MIB, 240 * MIB)),
    ("x86_64", "graniterapids-d", GRANITERAPIDS | {"amx-complex"}, (48 * KIB, 2 * MIB, 120 * MIB)),
    ("x86_64", "goldmont", GOLDMONT, (24 * KIB, 512 * KIB, 0)),
    ("x86_64", "goldmont-plus", GOLDMONT, (24 * KIB, 1 * MIB, 0)),
    ("x86_64", "tremont", TREMONT, (32 * KIB, 1 * MIB, 4 * MIB)),
    ("x86_64", "gracemont", ALDERLAKE, (32 * KIB, 512 * KIB, 6 * MIB)),
    ("x86_64", "alderlake", ALDERLAKE, (48 * KIB, 1280 * KIB, 24 * MIB)),
    ("x86_64", "raptorlake", ALDERLAKE, (48 * KIB, 2 * MIB, 30 * MIB)),
    ("x86_64", "meteorlake", ALDERLAKE, (48 * KIB, 2 * MIB, 24 * MIB)),
    ("x86_64", "sierraforest", SIERRAFOREST, (32 * KIB, 1 * MIB, 96 * MIB)),
    ("x86_64", "grandridge", SIERRAFOREST, (32 * KIB, 1 * MIB, 16 * MIB)),
    ("x86_64", "arrowlake", SIERRAFOREST, (48 * KIB, 3 * MIB, 24 * MIB)),
    ("x86_64", "arrowlake-s", ARROWLAKE_S, (48 * KIB, 3 * MIB, 36 * MIB)),
    ("x86_64", "lunarlake", ARROWLAKE_S, (48 * KIB, 2560 * KIB, 12 * MIB)),
    ("x86_64", "pantherlake", ARROWLAKE_S, (48 * KIB, 3 * MIB, 18 * MIB)),
    ("x86_64", "clearwaterforest", ARROWLAKE_S, (32 * KIB, 1 * MIB, 96 * MIB)),
    # AMD
    ("x86_64", "bdver1", BULLDOZER, (16 * KIB, 1 * MIB, 8 * MIB)),
    ("x86_64", "bdver4", EXCAVATOR, (32 * KIB, 1 * MIB, 0)),
    ("x86_64", "znver1", ZNVER1, (32 * KIB, 512 * KIB, 8 * MIB)),
    ("x86_64", "znver2", ZNVER1, (32 * KIB, 512 * KIB, 16 * MIB)),
    ("x86_64", "znver3", ZNVER3, (32 * KIB, 512 * KIB, 32 * MIB)),
    ("x86_64", "znver4", ZNVER4, (32 * KIB, 1 * MIB, 32 * MIB)),
    ("x86_64", "znver5", ZNVER5, (48 * KIB, 1 * MIB, 32 * MIB)),
    # Arm
    ("aarch64", "generic", ARMV8, (32 * KIB, 256 * KIB, 2 * MIB)),
    ("aarch64", "cortex-a53", CORTEX_A72, (32 * KIB, 512 * KIB, 0)),
    ("aarch64", "cortex-a57", CORTEX_A72, (32 * KIB, 2 * MIB, 0)),
    ("aarch64", "cortex-a72", CORTEX_A72, (32 * KIB, 1 * MIB, 0)),
    ("aarch64", "cortex-a55", ARMV8_2, (32 * KIB, 128 * KIB, 2 * MIB)),
    ("aarch64", "cortex-a76", ARMV8_2, (64 * KIB, 512 * KIB, 2 * MIB)),
    ("aarch64", "cortex-a78", ARMV8_2, (64 * KIB, 512 * KIB, 4 * MIB)),
    ("aarch64", "cortex-x1", ARMV8_2, (64 * KIB, 1 * MIB, 8 * MIB)),
    ("aarch64", "neoverse-n1", ARMV8_2, (64 * KIB, 1 * MIB, 32 * MIB)),
    ("aarch64", "neoverse-n2", NEOVERSE_N2, (64 * KIB, 1 * MIB, 64 * MIB)),
    ("aarch64", "neoverse-v1", NEOVERSE_V1, (64 * KIB, 1 * MIB, 32 * MIB)),
    ("aarch64", "neoverse-v2", NEOVERSE_N2, (64 * KIB, 2 * MIB, 64 * MIB)),
    ("aarch64", "apple-m1", APPLE_M1, (128 * KIB, 12 * MIB, 8 * MIB)),
    ("aarch64", "apple-m2", APPLE_M2, (128 * KIB, 16 * MIB, 8 * MIB)),
    ("aarch64", "apple-m3", APPLE_M2, (128 * KIB, 16 * MIB, 8 * MIB)),
    # RISC-V
    ("riscv64", "generic-rv64", frozenset(), (32 * KIB, 512 * KIB, 0)),
    ("riscv64", "rocket-rv64", frozenset(), (16 * KIB, 512 * KIB, 0)),
    ("riscv64", "sifive-u74", RV64, (32 * KIB, 2 * MIB, 0)),
    ("riscv64", "sifive-p550", RV64 | {"zba", "zbb"}, (32 * KIB, 256 * KIB, 4 * MIB)),
    ("riscv64", "sifive-p670", RISCV_VECTOR | {"zbs"}, (32 * KIB, 256 * KIB, 16 * MIB)),
    ("riscv64", "sifive-x280", RISCV_VECTOR | {"zfh", "zvl256b", "zvl512b"}, (32 * KIB, 512 * KIB, 4 * MIB)),
    ("riscv64", "spacemit-x60", RISCV_VECTOR | {"zbs", "zfh", "zvl256b"}, (32 * KIB, 512 * KIB, 0)),
)

CPUS: dict[str, Cpu] = {name: Cpu(name, architecture, features, caches) for architecture, name, features, caches in _ROWS}
