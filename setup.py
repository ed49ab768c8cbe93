"""Builds the native parts: of tilewright.runtime the extension `_native` and the runtime object `tw_runtime.o`, of tilewright.packing
the extension `_solver`, of tilewright.fuzz the extension `_coverage`, on CPython 3.11 alone (later versions have `sys.monitoring`).

Metadata is in pyproject.toml. The object is what ahead-of-time artifacts link (position independent, hidden symbols,
C library only); it is built beside the extension, in the source tree for editable installs. Assumes a C++17 compiler
on Linux. The text of csrc/abi.h is compiled into the extension, so that generated headers always match it.
With RUNTIME_COVERAGE=1 in the environment `_native` counts the edges of its control flow (`make runtime-coverage`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, setup

ROOT = Path(__file__).parent
RUNTIME = "tilewright.runtime._native"
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
EXTENSION_SOURCES = [
    "module.cpp",
    "machine.cpp",
    "pool.cpp",
    "constants.cpp",
    "run.cpp",
    "selftest.cpp",
    "elf_loader.cpp",
]
SOLVER_SOURCES = ["module.cpp", "packing.cpp", "search.cpp", "sections.cpp", "best_fit.cpp"]
SOLVER_HEADERS = ["packing.h", "search.h", "sections.h"]
COVERAGE_SOURCES = ["edges.cpp"]
COVERAGE_FLAGS = ["-fsanitize-coverage=trace-pc", "-g"]
HEADERS = ["abi.h", "machine.h", "pool.h", "constants.h", "run.h", "elf_loader.h"]


class BuildNative(build_ext):
    """build_ext that also writes abi_text.h first and tw_runtime.o afterwards."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name != RUNTIME:
            super().build_extension(ext)
            return
        if sys.platform != "linux":
            raise SystemExit(f"tilewright: found platform {sys.platform}, expected linux: the runtime is written for Linux only")
        generated = Path(self.build_temp) / "generated"
        generated.mkdir(parents=True, exist_ok=True)
        text = (ROOT / "csrc" / "abi.h").read_text()
        (generated / "abi_text.h").write_text(f'/* The text of abi.h. */\nstatic const char tw_abi_text[] = R"abi_text({text})abi_text";\n')
        ext.include_dirs.append(str(generated))
        super().build_extension(ext)
        self.build_runtime_object(self.built_object())

    def build_runtime_object(self, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler = list(self.compiler.compiler_cxx or self.compiler.compiler_so)[:1]
        command = [*compiler, *RUNTIME_FLAGS, "-c", "csrc/runtime_object.cpp", "-o", str(output.absolute())]
        self.announce(" ".join(command), level=2)
        subprocess.run(command, check=True, cwd=ROOT)

    def built_object(self) -> Path:
        """Where the build leaves the object: in the tree that becomes the wheel."""
        return Path(self.build_lib) / "tilewright" / "runtime" / "tw_runtime.o"

    def source_object(self) -> Path:
        """Its place in the source tree, for editable installs."""
        build_py = self.get_finalized_command("build_py")
        return Path(build_py.get_package_dir("tilewright.runtime")) / "tw_runtime.o"

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        shutil.copyfile(self.built_object(), ROOT / self.source_object())

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(self.source_object() if self.inplace else self.built_object())]

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace:  # strict editable installs link each file of the build to its place in the sources
            mapping[str(self.built_object())] = str(self.source_object())
        return mapping


def runtime_extension() -> Pybind11Extension:
    counts = os.environ.get("RUNTIME_COVERAGE") == "1"
    return Pybind11Extension(
        RUNTIME,
        [f"csrc/{name}" for name in EXTENSION_SOURCES + (COVERAGE_SOURCES if counts else [])],
        include_dirs=["csrc"],
        depends=[f"csrc/{name}" for name in HEADERS],
        cxx_std=17,
        extra_compile_args=["-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", *(COVERAGE_FLAGS if counts else [])],
        extra_link_args=["-Wl,--build-id=none", *([] if counts else ["-s"])],
    )


def solver_extension() -> Pybind11Extension:
    return Pybind11Extension(
        "tilewright.packing._solver",
        [f"csrc/solver/{name}" for name in SOLVER_SOURCES],
        include_dirs=["csrc/solver"],
        depends=[f"csrc/solver/{name}" for name in SOLVER_HEADERS],
        cxx_std=17,
        extra_compile_args=["-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
        extra_link_args=["-Wl,--build-id=none", "-s"],
    )


def coverage_extension() -> Extension:
    return Extension(
        "tilewright.fuzz._coverage",
        ["csrc/coverage.cpp"],
        language="c++",
        extra_compile_args=["-std=c++17", "-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
        extra_link_args=["-Wl,--build-id=none", "-s"],
    )


setup(
    ext_modules=[runtime_extension(), solver_extension(), *([coverage_extension()] if sys.version_info < (3, 12) else [])],
    cmdclass={"build_ext": BuildNative},
)
