"""Edge coverage of the C++ runtime, where it was built to tell (`make runtime-coverage`, csrc/edges.cpp); else there is none.

An edge is an arc of the file `_native` between two offsets, for `addr2line`; its `branch` is the digest of the library, so
that edges of another build are not mistaken for its own. What threads do to one another decides some edges: two runs of one
program may differ in a few.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from .arcs import Arc

FILE = "_native"
_MODULE = f"{__package__.rpartition('.')[0]}.runtime.{FILE}"


def use_runtime(path: str | Path) -> None:
    """Makes the runtime that this extension holds the one of this process. Only before anything has imported another."""
    loaded = sys.modules.get(_MODULE)
    if loaded is not None:
        if Path(str(loaded.__file__)).resolve() == Path(path).resolve():
            return
        raise RuntimeError(f"use_runtime: found {loaded.__file__} in use already, expected to be asked before")
    spec = spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"use_runtime: found no extension module at {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module


class Edges:
    """The edges that all threads together ran of a library that counts them."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self._library = library
        self._build = hashlib.blake2s(path.read_bytes(), digest_size=4).hexdigest()
        self._library.tw_edges_count.restype = ctypes.c_uint32
        self._library.tw_edges_note.argtypes = [ctypes.c_uint64]

    @classmethod
    def of_runtime(cls) -> Edges | None:
        """Of the runtime that is loaded; None where it counts none."""
        loaded = sys.modules.get(_MODULE)
        return None if loaded is None or loaded.__file__ is None else cls.of_library(Path(loaded.__file__))

    @classmethod
    def of_library(cls, path: Path) -> Edges | None:
        library = ctypes.CDLL(str(path))
        return cls(library, path) if hasattr(library, "tw_edges_record") else None

    def resume(self) -> None:
        self._library.tw_edges_record(1)

    def pause(self) -> None:
        self._library.tw_edges_record(0)

    def __len__(self) -> int:
        return int(self._library.tw_edges_count())

    def since(self, mark: int) -> list[Arc]:
        last = len(self)
        edges = (ctypes.c_uint64 * max(last - mark, 1))()
        self._library.tw_edges_copy(ctypes.c_uint32(mark), ctypes.c_uint32(last), edges)
        return [Arc(FILE, edge >> 32, edge & 0xFFFFFFFF, self._build) for edge in edges[:last - mark]]

    def merge(self, arcs: Iterable[Arc]) -> None:
        """Edges of another build say nothing about this one."""
        for arc in arcs:
            if arc.branch == self._build:
                self._library.tw_edges_note(arc.source << 32 | arc.target)
