"""CUDA source to a cubin or PTX, by NVRTC where its library is found, else by nvcc.

NVRTC comes with the extra `[cuda]` (the package nvidia-cuda-nvrtc) or a CUDA toolkit: that of the first nvcc in PATH, or /usr/local/cuda.
Nothing is kept here: images lie in the compiled object, which the cache keeps. A source that does not compile is a fault of ours:
the error keeps it in a file and says where it is.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from msgspec import Struct

from tilewright.ir.errors import InternalError, UnsupportedError

FOLDER = Path(__file__).resolve().parent
OPTIONS = ("-std=c++17", "--fmad=false")
TOOLKIT = Path("/usr/local/cuda")
LIBRARY = re.compile(r"libnvrtc\.so\.\d+(\.\d+)*$")


class Usage(Struct, frozen=True):
    """What a kernel takes of a multiprocessor, as the assembler says: `stack` are bytes of a thread's arrays that are not in registers,
    `spills` bytes stored to and loaded from the stack for lack of registers."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spills: int


def compile_source(source: str, architecture: str, form: str = "cubin") -> bytes:
    """The source compiled: `form` is 'cubin' for just that architecture, or 'ptx' for it and all later ones.

    Raises UnsupportedError where there is no compiler or no room for its files, InternalError where it refuses the source.
    """
    library = nvrtc_library()
    try:
        return _by_nvrtc(library, source, architecture, form) if library is not None else _by_nvcc(source, architecture, form)
    except OSError as error:
        raise UnsupportedError(f"CUDA source cannot be compiled: {error}", hint="TMPDIR names the folder for temporary files") from error


def usage_of(source: str, architecture: str) -> tuple[Usage, ...]:
    """What each kernel takes; nvcc says so."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kernels.cu"
        place.write_text(source, encoding="utf-8")
        log = _run([_nvcc(), *OPTIONS, "-I", str(FOLDER), f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o",
                    str(Path(folder) / "kernels.cubin"), str(place)], source)
    found = []
    for name, part in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", log, re.DOTALL):
        registers, shared, stack = (int(number[1]) if (number := re.search(pattern, part)) else 0
                                    for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes stack frame"))
        found.append(Usage(name, registers, shared, stack, sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))))
    return tuple(found)


# --- NVRTC -----------------------------------------------------------------------------------------------------------


@functools.cache
def nvrtc_library() -> Path | None:
    """The library of NVRTC: of its package, or of a toolkit."""
    folders = []
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        folders += [Path(place) / "lib" for place in (found.submodule_search_locations or ())] if found is not None else []
    nvcc = _find_nvcc()
    folders += [root / "lib64" for root in (*([Path(nvcc).resolve().parent.parent] if nvcc is not None else []), TOOLKIT)]
    for folder in folders:
        files = sorted(file for file in folder.glob("libnvrtc.so.*") if LIBRARY.fullmatch(file.name))
        if files:
            return files[0]
    return None


def _by_nvrtc(library: Path, source: str, architecture: str, form: str) -> bytes:
    nvrtc = _loaded(library)
    program = ctypes.c_void_p()
    _must(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        kind = architecture if form == "cubin" else architecture.replace("sm_", "compute_")
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={kind}", f"--include-path={FOLDER}")]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            _refused(source, "NVRTC", _read(nvrtc, program, "ProgramLog").decode(errors="replace").rstrip("\0"))
        return _read(nvrtc, program, "CUBIN" if form == "cubin" else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _loaded(library: Path) -> ctypes.CDLL:
    nvrtc = ctypes.CDLL(str(library))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _must(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    memory = ctypes.create_string_buffer(size.value)
    _must(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, memory))
    return memory.raw


def _must(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        raise InternalError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status).decode()}")


# --- nvcc ------------------------------------------------------------------------------------------------------------


@functools.cache
def _find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which(str(TOOLKIT / "bin" / "nvcc"))


def _nvcc() -> str:
    found = _find_nvcc()
    if found is None:
        raise UnsupportedError("CUDA source is compiled by NVRTC or nvcc: found neither",
                               hint="install the extra tilewright[cuda], which brings NVRTC, or a CUDA toolkit")
    return found


@functools.cache
def toolkit_version() -> int:
    """13000 of CUDA 13.0; 0 where there is no compiler."""
    library = nvrtc_library()
    if library is not None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvrtc = _loaded(library)
        _must(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value * 1000 + minor.value * 10
    if not can_compile():
        return 0
    found = re.search(r"release (\d+)\.(\d+)", subprocess.run([_nvcc(), "--version"], capture_output=True, text=True, check=False).stdout)
    return int(found[1]) * 1000 + int(found[2]) * 10 if found else 0


def can_compile() -> bool:
    """Whether this machine has a compiler of CUDA."""
    return nvrtc_library() is not None or _find_nvcc() is not None


def _by_nvcc(source: str, architecture: str, form: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        place, made = Path(folder) / "kernels.cu", Path(folder) / f"kernels.{form}"
        place.write_text(source, encoding="utf-8")
        kind = architecture if form == "cubin" else architecture.replace("sm_", "compute_")
        _run([_nvcc(), *OPTIONS, "-I", str(FOLDER), f"-arch={kind}", f"-{form}", "-o", str(made), str(place)], source)
        return made.read_bytes()


def _run(command: list[str], source: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        _refused(source, "nvcc", finished.stdout + finished.stderr)
    return finished.stdout + finished.stderr


def _refused(source: str, compiler: str, log: str) -> None:
    """An error of ours, with the source kept."""
    with tempfile.NamedTemporaryFile("w", prefix="tilewright-", suffix=".cu", delete=False) as file:
        file.write(source)
    raise InternalError(f"{compiler} refuses the emitted source, which is kept in {file.name}:\n{log.strip()[:4000]}")
