"""Puts this package in the place of onnxruntime, so that programs written for that run without a changed line.

Assumes that the program has not imported onnxruntime yet: names that it took from there stay what they are. Guarantees: what is
imported as `onnxruntime`, or as a module of it that exists here, is ours; any other module of it is not found.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

from . import capi
from .capi import _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state

USAGE = """usage: python -m tilewright.onnxruntime PROGRAM.py [ARGUMENT ...]
       python -m tilewright.onnxruntime -m MODULE [ARGUMENT ...]"""
MODULES: dict[str, ModuleType] = {
    "capi": capi,
    "capi._pybind_state": _pybind_state,
    "capi.onnxruntime_inference_collection": onnxruntime_inference_collection,
    "capi.onnxruntime_pybind11_state": onnxruntime_pybind11_state,
}


def replace_onnxruntime() -> None:
    """From here on `import onnxruntime` gives this package."""
    for name in [name for name in sys.modules if name == "onnxruntime" or name.startswith("onnxruntime.")]:
        del sys.modules[name]
    sys.modules["onnxruntime"] = sys.modules[__name__.rpartition(".")[0]]
    sys.modules.update({f"onnxruntime.{name}": module for name, module in MODULES.items()})


def run_program(arguments: list[str]) -> None:
    """Runs a program as Python would, on this package in place of onnxruntime. `arguments`: the program, or -m and a module, and what
    it is given. SystemExit where there is no such program."""
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] == "-m" and len(arguments) < 2):
        print(USAGE, file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        raise SystemExit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    replace_onnxruntime()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    program = _program(arguments[0])
    sys.argv = [str(program), *arguments[1:]]
    sys.path[0] = str(program.resolve().parent)
    runpy.run_path(str(program), run_name="__main__")


def _program(name: str) -> Path:
    """The file of a program: a path, or a command written in Python."""
    found = name if Path(name).exists() else shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(f"{name}: there is no such file or command, expected a program in Python\n{USAGE}")
    path = Path(found)
    if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
        raise SystemExit(f"{path}: this is machine code, which does not import onnxruntime; expected a program in Python")
    return path
