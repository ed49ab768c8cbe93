"""Kernels without a GPU: the text of a CUDA source as host C++, compiled to a library that runs it block by block.

`shared_library` makes the library (for the emulated driver), `emulate` loads it and launches kernels on NumPy arrays in place; both keep
what the host's compiler makes in the cache that they are given (`host_compiler.py`). With checks (the default) each access of a kernel
is watched: out of bounds, uninitialised shared memory, missing waits, races; without, only threads that wait for one another
for ever are found. Assumes that kernels are written as docs/cuda.md says; guarantees that a fault is an `EmulationError` and
nothing else, as far as accesses are watched.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from ...runtime.cache import Cache
from .host_compiler import FOLDER, EmulationError, compile_kept, host_compiler, load_library, run_compiler, unload_library

_PARTS = ("emulation.cpp", "emulation_memory.cpp", "emulation_matrix.cpp", "emulation_hopper.cpp")
_PART_HEADERS = ("emulation_hooks.h", "emulation_state.h", "emulation.h")
_HEADERS = ("device.h", "device_hopper.h", "device_scalars.h", "host_language.h", "host_device.h")
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-g1")
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
_KERNELS = "kernels.cu"
_MESSAGE_BYTES = 4096
_MOST_PARAMETERS = 128


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


def emulate(source: str, check: bool = True, cache: Cache | None = None) -> EmulatedModule:
    """The kernels of a source, ready to be launched."""
    return _load(shared_library(source, check, cache), source)


def shared_library(source: str, check: bool = True, cache: Cache | None = None) -> Path:
    """The library with the C face of `emulation.h` for a source; it is there until the process ends."""
    flags = ("-fsanitize=thread",) if check else ()
    parts = (source, _text_of((*_PARTS, *_PART_HEADERS, *_HEADERS, Path(__file__).name)), host_compiler(), *_COMMON, *flags)
    return compile_kept("emulation", "kernels.so", parts, functools.partial(_write_library, source, check, flags, cache), cache)


def runtime_objects(cache: Cache | None = None) -> list[Path]:
    """The objects of the emulation itself, which all libraries share."""
    shared = (_text_of(_PART_HEADERS), host_compiler(), *_COMMON)
    return [compile_kept("emulation itself", f"{name}.o", (_text_of((name,)), *shared), functools.partial(_write_part, name), cache)
            for name in _PARTS]


class EmulatedModule:
    """A loaded library. Launches of one module run one at a time."""

    def __init__(self, library: Path, source: str) -> None:
        self.library = library
        self.source = source
        self.kernels = {kernel.name: kernel for kernel in find_kernels(source)}
        self._functions = load_library(library)

    def unload(self) -> None:
        """Gives back the memory of the library and removes its file. Nothing can be launched afterwards."""
        unload_library(self._functions)
        shutil.rmtree(self.library.parent, ignore_errors=True)

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
            raise EmulationError(explain_fault(message.value.decode(), self.library, self.source))


def explain_fault(message: str, library: Path, source: str) -> str:
    """The first line of a fault's message with the line of the source that it comes from, where that can be found."""
    text, _, places = message.partition("\nat ")
    tool = shutil.which("addr2line")
    if not places or not tool:
        return text
    found = subprocess.run([tool, "-e", str(library), "-i", *places.split()], capture_output=True, text=True, check=False).stdout
    for line in found.splitlines():
        file, _, number = line.split(" ")[0].rpartition(":")
        if file.endswith(_KERNELS) and number.isdigit():
            return f"{text}\n  line {number}: {source.splitlines()[int(number) - 1].strip()}"
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


def _table(kernels: Sequence[Signature], check: bool) -> str:
    """C++ that takes in the source and lists its kernels."""
    lines = [f'#include "{_KERNELS}"', '#include "emulation.h"']
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


def _write_library(source: str, check: bool, flags: Sequence[str], cache: Cache | None, made: Path) -> None:
    objects = runtime_objects(cache)
    (made.parent / _KERNELS).write_text(source)
    (made.parent / "table.cpp").write_text(_table(find_kernels(source), check))
    run_compiler([*_COMMON, "-O1", *flags, "-c", "table.cpp", "-o", "table.o"], made.parent)
    run_compiler(["-shared", "table.o", *map(str, objects), "-o", made.name], made.parent)


def _write_part(name: str, made: Path) -> None:
    run_compiler([*_COMMON, "-O2", "-c", str(FOLDER / name), "-o", made.name], made.parent)


@functools.cache
def _text_of(names: tuple[str, ...]) -> str:
    return "\0".join((FOLDER / name).read_text() for name in names)


@functools.cache
def _load(library: Path, source: str) -> EmulatedModule:
    return EmulatedModule(library, source)
