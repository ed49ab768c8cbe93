"""What this machine is, asked of the system alone: enough to know again what was found out about it before.

Assumes Linux. Guarantees: no LLVM, a few milliseconds at most, and texts that stay the same as long as the machine does.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from .ir.errors import CompileError

# What /proc/cpuinfo says of one CPU and what decides code; the rest (clock, numbers) changes from moment to moment.
CPU_LINES = frozenset({
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",  # x86
    "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part",  # Arm
    "isa", "uarch", "mvendorid", "marchid",  # RISC-V
})
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def check_platform() -> None:
    """CompileError where the runtime cannot work."""
    if sys.platform != "linux":
        raise CompileError(f"platform {sys.platform} is not supported, expected linux",
                           hint="the thread pool, the loader and the artifacts are written for Linux only")


def cpu_facts() -> dict[str, str]:
    """The lines of the first CPU in /proc/cpuinfo that decide code; empty when the system does not say."""
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip() and facts:
                    break
                name, _, value = line.partition(":")
                if name.strip() in CPU_LINES:
                    facts[name.strip()] = value.strip()
    except OSError:
        return {}
    return facts


def cpu_name() -> str:
    facts = cpu_facts()
    return facts.get("model name") or facts.get("uarch") or facts.get("CPU part") or os.uname().machine


@lru_cache(maxsize=1)
def machine_text() -> str:
    """One text for the CPU and its caches."""
    caches = []
    for index in sorted(CACHES.glob("index*")):
        try:
            caches.append(" ".join((index / name).read_text().strip() for name in ("level", "type", "size")))
        except OSError:
            continue
    return "\n".join([os.uname().machine, *(f"{k}: {v}" for k, v in sorted(cpu_facts().items())), *caches])


@lru_cache(maxsize=1)
def llvm_version() -> str:
    """The version of llvmlite (and with it LLVM) that is installed, without importing it; '' when it is not.

    By the name of its metadata folder: importlib.metadata takes 30 ms to import, and this is on the way to every hit.
    """
    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    described = sorted(path.name.removesuffix(".dist-info") for path in folder.parent.glob("llvmlite-*.dist-info"))
    library = folder / "binding" / "libllvmlite.so"
    size = library.stat().st_size if library.exists() else 0
    return f"{' '.join(described) or 'llvmlite of unknown version'} ({size} bytes)"
