"""Builds the native parts: of tilewright.runtime the extensions `_native` and `_cuda` and the objects `tw_runtime.o` and `tw_cuda.o`, of
tilewright.packing the extension `_solver`, of tilewright.backends the extension `_simulator`, of tilewright.fuzz the extension
`_coverage`, on CPython 3.11 alone (later versions have `sys.monitoring`).

Metadata is in pyproject.toml. The objects are what ahead-of-time artifacts link (position independent, hidden symbols,
C library only); they are built beside the extensions, in the source tree for editable installs. Assumes a C++17 compiler
on Linux. The texts of csrc/abi.h and csrc/cuda.h are compiled into the extensions, so that generated headers always match them.
With RUNTIME_COVERAGE=1 in the environment only `_native` is built, and counts the edges of its control flow (`make runtime-coverage`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, setup

ROOT = Path(__file__).parent
RUNTIME = "tilewright.runtime._native"
CUDA = "tilewright.runtime._cuda"
RUNTIME_FLAGS = [
    "-std=c++17",
    "-O2",
    "-Wall",
    "-Wextra",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-asynchronous-unwind-tables",
    "-fno-stack-protector",
    "-g0",
]
RUNTIME_OBJECTS = {"tw_runtime.o": "csrc/runtime_object.cpp", "tw_cuda.o": "csrc/cuda_object.cpp"}
EXTENSION_SOURCES = [
    "module.cpp",
    "machine.cpp",
    "pool.cpp",
    "constants.cpp",
    "run.cpp",
    "selftest.cpp",
    "elf_loader.cpp",
]
SOLVER_SOURCES = ["solver/module.cpp", "solver/packing.cpp", "solver/search.cpp", "solver/sections.cpp", "solver/best_fit.cpp"]
SOLVER_HEADERS = ["solver/packing.h", "solver/search.h", "solver/sections.h"]
SIMULATOR_SOURCES = ["simulator/module.cpp", "simulator/accelerator.cpp", "simulator/memory.cpp",
                     "simulator/timing.cpp", "simulator/trap.cpp", "elf_loader.cpp"]
SIMULATOR_HEADERS = ["simulator/accelerator.h", "simulator/memory.h", "simulator/timing.h", "simulator/trap.h"]
# The ELF loader and the planning of calls are compiled into both extensions: they are small and share no state.
CUDA_SOURCES = ["cuda_module.cpp", "cuda_driver.cpp", "cuda_device.cpp", "cuda_instance.cpp", "cuda_run.cpp", "cuda_dlpack.cpp",
                *EXTENSION_SOURCES[1:]]
CUDA_HEADERS = ["cuda.h", "cuda_driver.h", "cuda_device.h", "cuda_instance.h", "cuda_dlpack.h"]
EXTENSION_FLAGS = ["-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
COVERAGE_FLAGS = ["-fsanitize-coverage=trace-pc", "-g"]
BINDING_HEADERS = ["abi.h", "elf_loader.h", "bindings.h"]
HEADERS = [*BINDING_HEADERS, "dlpack.h", "machine.h", "pool.h", "constants.h", "run.h"]


class BuildNative(build_ext):
    """build_ext that also writes abi_text.h first and tw_runtime.o afterwards."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CUDA:
            self.include_text(ext, "cuda")
        if ext.name != RUNTIME:
            super().build_extension(ext)
            return
        if sys.platform != "linux":
            raise SystemExit(f"tilewright: found platform {sys.platform}, expected linux: the runtime is written for Linux only")
        self.include_text(ext, "abi")
        super().build_extension(ext)
        for name, source in RUNTIME_OBJECTS.items():
            self.build_runtime_object(source, self.built_object(name))

    def include_text(self, ext: Extension, name: str) -> None:
        """The text of a header as a constant that the extension includes."""
        generated = Path(self.build_temp) / "generated"
        generated.mkdir(parents=True, exist_ok=True)
        text = (ROOT / "csrc" / f"{name}.h").read_text()
        (generated / f"{name}_text.h").write_text(
            f'/* The text of {name}.h. */\nstatic const char tw_{name}_text[] = R"{name}_text({text}){name}_text";\n')
        ext.include_dirs.append(str(generated))

    def build_runtime_object(self, source: str, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler = list(self.compiler.compiler_cxx or self.compiler.compiler_so)[:1]
        command = [*compiler, *RUNTIME_FLAGS, "-c", source, "-o", str(output.absolute())]
        self.announce(" ".join(command), level=2)
        subprocess.run(command, check=True, cwd=ROOT)

    def built_object(self, name: str) -> Path:
        """Where the build leaves an object: in the tree that becomes the wheel."""
        return Path(self.build_lib) / "tilewright" / "runtime" / name

    def source_object(self, name: str) -> Path:
        """Its place in the source tree, for editable installs."""
        build_py = self.get_finalized_command("build_py")
        return Path(build_py.get_package_dir("tilewright.runtime")) / name

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for name in RUNTIME_OBJECTS:
            shutil.copyfile(self.built_object(name), ROOT / self.source_object(name))

    def get_outputs(self) -> list[str]:
        place = self.source_object if self.inplace else self.built_object
        return [*super().get_outputs(), *(str(place(name)) for name in RUNTIME_OBJECTS)]

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace:  # strict editable installs link each file of the build to its place in the sources
            mapping.update({str(self.built_object(name)): str(self.source_object(name)) for name in RUNTIME_OBJECTS})
        return mapping


def extension(name: str, sources: list[str], headers: list[str], flags: Sequence[str] = ()) -> Pybind11Extension:
    """An extension of files in csrc/; one with `flags` of its own keeps its symbols."""
    return Pybind11Extension(
        name,
        [f"csrc/{source}" for source in sources],
        include_dirs=["csrc"],
        depends=[f"csrc/{header}" for header in headers],
        cxx_std=17,
        extra_compile_args=[*EXTENSION_FLAGS, *flags],
        extra_link_args=["-Wl,--build-id=none", *([] if flags else ["-s"])],
    )


def extensions() -> list[Extension]:
    if os.environ.get("RUNTIME_COVERAGE") == "1":
        return [extension(RUNTIME, [*EXTENSION_SOURCES, "edges.cpp"], HEADERS, COVERAGE_FLAGS)]
    made: list[Extension] = [
        extension(RUNTIME, EXTENSION_SOURCES, HEADERS),
        # no CUDA is needed to build it: the driver is opened when a model is first put on a device
        extension(CUDA, CUDA_SOURCES, HEADERS + CUDA_HEADERS),
        extension("tilewright.packing._solver", SOLVER_SOURCES, SOLVER_HEADERS),
        extension("tilewright.backends._simulator", SIMULATOR_SOURCES, SIMULATOR_HEADERS + BINDING_HEADERS),
    ]
    if sys.version_info < (3, 12):
        made.append(Extension("tilewright.fuzz._coverage", ["csrc/coverage.cpp"], language="c++",
                              extra_compile_args=["-std=c++17", *EXTENSION_FLAGS], extra_link_args=["-Wl,--build-id=none", "-s"]))
    return made


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
