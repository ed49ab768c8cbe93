"""Kernels without a GPU: the text of a CUDA source as host C++, compiled to a library that runs it block by block.

`shared_library` makes the library (for the emulated driver), `emulate` loads it and launches kernels on NumPy arrays in place. Libraries
are kept in a cache folder by the digest of all that they are made of, and in the process. With checks (the default) each access of a kernel
is watched: out of bounds, uninitialised shared memory, missing waits, races; without, only threads that wait for one another
for ever are found. Needs g++ or clang++. Assumes that kernels are written as docs/cuda.md says; guarantees that a fault is an
`EmulationError` and nothing else, as far as accesses are watched.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import blake3
import numpy as np
from msgspec import Struct

from ...ir.errors import CompileError

_FOLDER = Path(__file__).resolve().parent
_PARTS = ("emulation.cpp", "emulation_memory.cpp", "emulation_matrix.cpp", "emulation_hopper.cpp")
_PART_HEADERS = ("emulation_hooks.h", "emulation_state.h", "emulation.h")
_HEADERS = ("device.h", "device_scalars.h", "host_language.h", "host_device.h")
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-g1")
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
_MESSAGE_BYTES = 4096
_MOST_PARAMETERS = 128


class EmulationError(CompileError):
    """What a kernel does wrong, or a launch that a device would refuse."""


class Signature(Struct, frozen=True):
    """A kernel of a source: its name and the C types of its parameters."""

    name: str
    parameters: tuple[str, ...]


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_ulonglong), ("bytes", ctypes.c_ulonglong), ("writable", ctypes.c_int))


def find_kernels(source: str) -> tuple[Signature, ...]:
    """The kernels of a source, in order."""
    found = []
    for match in _KERNEL.finditer(source):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", match[2], flags=re.DOTALL)
        parameters = [re.sub(r"\w+\s*$", "", part).strip() for part in text.split(",") if part.strip()]
        found.append(Signature(match[1], tuple(parameters)))
    return tuple(found)


def emulate(source: str, check: bool = True) -> EmulatedModule:
    """The kernels of a source, ready to be launched."""
    return _load(shared_library(source, check), source)


def shared_library(source: str, check: bool = True) -> Path:
    """The library with the C face of `emulation.h` for a source."""
    compiler = _compiler()
    flags = ("-fsanitize=thread",) if check else ()
    key = _digest((source, _text_of((*_PARTS, *_PART_HEADERS, *_HEADERS, Path(__file__).name)), compiler, *flags))
    library = _cache_folder() / f"{key}.so"
    if library.exists():
        return library
    objects = [_compiled_part(name, compiler) for name in _PARTS]
    with tempfile.TemporaryDirectory(dir=_cache_folder()) as folder:
        kept = library.with_suffix(".cu")
        _write(kept, source)
        driver = Path(folder) / "emulated.cpp"
        driver.write_text(_table(kept, find_kernels(source), check))
        made = Path(folder) / library.name
        _run([compiler, *_COMMON, "-O1", *flags, "-I", str(_FOLDER), "-shared", str(driver), "-c", "-o", f"{made}.o"])
        _run([compiler, "-shared", f"{made}.o", *map(str, objects), "-o", str(made)])
        os.replace(made, library)
    return library


class EmulatedModule:
    """A loaded library. Launches of one module run one at a time."""

    def __init__(self, library: Path, source: str) -> None:
        self.library = library
        self.source = source
        self.kernels = {kernel.name: kernel for kernel in find_kernels(source)}
        self._functions = ctypes.CDLL(str(library))

    def launch(self, name: str, grid: int | Sequence[int], block: int | Sequence[int], arguments: Sequence[object],
               shared_bytes: int = 0) -> None:
        """Runs a grid. Arrays are given for pointers and changed in place, whole numbers for sizes, bytes for structs."""
        if name not in self.kernels:
            raise EmulationError(f"no kernel {name}; there are {', '.join(self.kernels) or 'none'}")
        parameters = self.kernels[name].parameters
        if len(parameters) != len(arguments):
            raise EmulationError(f"kernel {name} takes {len(parameters)} arguments, found {len(arguments)}")
        values = [_value(name, number, kind, argument) for number, (kind, argument) in enumerate(zip(parameters, arguments))]
        places = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values])
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        ranges = (_Range * max(1, len(arrays)))(*[_Range(a.ctypes.data, a.nbytes, int(a.flags.writeable)) for a in arrays])
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._functions.tw_emulated_launch(
            name.encode(), _extents(grid), _extents(block), ctypes.c_ulonglong(shared_bytes), places, ranges,
            ctypes.c_ulonglong(len(arrays)), message, ctypes.c_ulonglong(_MESSAGE_BYTES))
        if status:
            raise EmulationError(explain_fault(message.value.decode(), self.library))


def explain_fault(message: str, library: Path) -> str:
    """The first line of a fault's message with the line of the source that it comes from, where that can be found."""
    text, _, places = message.partition("\nat ")
    source = library.with_suffix(".cu")
    tool = shutil.which("addr2line")
    if not places or not tool:
        return text
    found = subprocess.run([tool, "-e", str(library), "-i", *places.split()], capture_output=True, text=True, check=False).stdout
    for line in found.splitlines():
        file, _, number = line.split(" ")[0].rpartition(":")
        if file.endswith(source.name) and number.isdigit():
            lines = source.read_text().splitlines()
            return f"{text}\n  line {number}: {lines[int(number) - 1].strip()}"
    return text


def _value(name: str, number: int, kind: str, argument: object) -> ctypes.c_void_p | ctypes.c_longlong | ctypes.Array[ctypes.c_char]:
    """The memory that holds an argument."""
    if isinstance(argument, np.ndarray):
        if "*" not in kind:
            raise EmulationError(f"kernel {name}: argument {number} is an array, the parameter a {kind}")
        if not argument.flags.c_contiguous:
            raise EmulationError(f"kernel {name}: argument {number} is not contiguous")
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, (bytes, bytearray)):
        return ctypes.create_string_buffer(bytes(argument), len(argument))
    if argument is None and "*" in kind:
        return ctypes.c_void_p(None)
    if "*" in kind or not isinstance(argument, (int, np.integer)):
        raise EmulationError(f"kernel {name}: argument {number} is a {type(argument).__name__}, the parameter a {kind}")
    return ctypes.c_longlong(int(argument))


def _extents(sizes: int | Sequence[int]) -> ctypes.Array[ctypes.c_uint]:
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (ctypes.c_uint * 3)(*given, *[1] * (3 - len(given)))


def _table(source: Path, kernels: Sequence[Signature], check: bool) -> str:
    """C++ that takes in a source and lists its kernels."""
    lines = [f'#include "{source}"', '#include "emulation.h"']
    rows = []
    for kernel in kernels:
        if len(kernel.parameters) > _MOST_PARAMETERS:
            raise EmulationError(f"kernel {kernel.name} has {len(kernel.parameters)} parameters; at most {_MOST_PARAMETERS} can be given")
        pointers = [f"*(same_type<{kind}>::type *)values[{i}]" for i, kind in enumerate(kernel.parameters)]
        sizes = ", ".join([f"sizeof(same_type<{kind}>::type)" for kind in kernel.parameters]) or "0"
        lines += [f"static const unsigned {kernel.name}_bytes[] = {{{sizes}}};",
                  f"__attribute__((no_sanitize_thread)) static void {kernel.name}_start(void **values) {{",
                  f"  (void)values;\n  {kernel.name}({', '.join(pointers)});\n}}"]
        rows.append(f'{{"{kernel.name}", {len(kernel.parameters)}, {kernel.name}_bytes, {kernel.name}_start}}, ')
    lines.insert(2, "template <typename T> struct same_type { typedef T type; };")
    # const objects have no outer name in C++ unless declared with one
    lines += ['extern "C" { extern const tw_emulated_kernel tw_emulated_table[]; extern const int tw_emulated_checks; }',
              f"const tw_emulated_kernel tw_emulated_table[] = {{{''.join(rows)}{{nullptr, 0, nullptr, nullptr}}}};",
              f"const int tw_emulated_checks = {int(check)};"]
    return "\n".join(lines) + "\n"


def _compiled_part(name: str, compiler: str) -> Path:
    """A part of the emulation itself, compiled once for all sources."""
    key = _digest((_text_of((name, *_PART_HEADERS)), compiler))
    made = _cache_folder() / f"{key}.o"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=_cache_folder()) as folder:
            part = Path(folder) / "part.o"
            _run([compiler, *_COMMON, "-O2", "-c", str(_FOLDER / name), "-o", str(part)])
            os.replace(part, made)
    return made


def _run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise EmulationError(f"the host compiler refuses the source: {' '.join(command)}\n{finished.stderr.strip()}")


def _write(place: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, place)


def _digest(parts: Sequence[str]) -> str:
    return blake3.blake3("\0".join((*parts, *_COMMON)).encode()).hexdigest()[:32]


@functools.cache
def _text_of(names: tuple[str, ...]) -> str:
    return "\0".join((_FOLDER / name).read_text() for name in names)


@functools.cache
def _compiler() -> str:
    for name in ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise EmulationError("kernels run without a GPU only where there is a C++ compiler: found neither g++ nor clang++")


@functools.cache
def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "tilewright" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _load(library: Path, source: str) -> EmulatedModule:
    return EmulatedModule(library, source)
