"""The host's C++ compiler, for the emulation: what it makes lies in a folder of this process, from which it is loaded and linked.

Files are kept in the compile cache, where one is given, by the digest of all that they are made of, with that cache's limits; the folder
is removed when the process ends. Needs g++ or clang++. Equal sources give equal files.
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import errno
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from ...ir.errors import CompileError
from ...runtime.cache import Cache, Key, sources_changed

FOLDER = Path(__file__).resolve().parent
TEMPORARY = "TMPDIR names the folder for temporary files: one that can be written, with space, whose libraries may be loaded"


class EmulationError(CompileError):
    """What a kernel does wrong, a launch that a device would refuse, or an emulation that cannot be built here."""


def compile_kept(title: str, name: str, parts: Sequence[str], write: Callable[[Path], None], cache: Cache | None) -> Path:
    """The file that `write` writes, alone in a folder: made before by this process from the same parts, in the cache, or made now.
    The parts are all that it is made of; `title` is for people who list the cache.

    Raises EmulationError where files cannot be written.
    """
    digest = blake3("\0".join(parts).encode()).hexdigest()[:32]
    key = Key(title, (("emulation", digest),))
    try:
        place = _process_folder(os.getpid()) / digest / name
        if place.exists():
            return place
        place.parent.mkdir(exist_ok=True)
        found = cache.find(key) if cache is not None else None
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / name
            if found is not None:
                made.write_bytes(found.object_code)
            else:
                write(made)
                if cache is not None and not sources_changed():
                    cache.store(key, made.read_bytes(), None, "", {})
            os.replace(made, place)
    except OSError as error:
        raise EmulationError(f"files of the emulation cannot be written: {error}", hint=TEMPORARY) from error
    return place


def run_compiler(arguments: Sequence[str], folder: Path) -> None:
    """Runs the compiler in a folder. What it makes names neither that nor where this package is.

    Raises EmulationError where it refuses the source, OSError where the disk is full.
    """
    command = [host_compiler(), f"-ffile-prefix-map={folder}=.", f"-ffile-prefix-map={FOLDER}=.", "-I", str(FOLDER), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    full = os.strerror(errno.ENOSPC)
    if finished.returncode and full in finished.stderr:
        raise OSError(errno.ENOSPC, full)
    if finished.returncode:
        raise EmulationError(f"the host compiler refuses the source: {' '.join(command)}\n{finished.stderr.strip()}")


def load_library(library: Path) -> ctypes.CDLL:
    """A library made here, in this process."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise EmulationError(f"a library of the emulation cannot be loaded: {error}", hint=TEMPORARY) from error


def unload_library(library: ctypes.CDLL) -> None:
    """Ends one load of a library; its functions must not be called afterwards."""
    _ctypes.dlclose(library._handle)


@functools.cache
def host_compiler() -> str:
    """The path of the compiler."""
    for name in ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise EmulationError("kernels run without a GPU only where there is a C++ compiler: found neither g++ nor clang++")


@functools.cache
def _process_folder(process: int) -> Path:
    """The folder of a process; a fork has one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="tilewright-")).resolve()
    atexit.register(_remove, folder, process)
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
