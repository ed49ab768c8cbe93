"""What makes programs fast and needs no clock: counts of the compiler's output for the real models and the NumPy programs.

Compiled for one CPU (x86-64-v3), whatever the machine is, so that the counts are the same everywhere. `expected.csv` holds
them; the test fails on any change, better or worse, so that it is seen and recorded:

    python -m tests.perf.structure --write

`kernels` are functions, `launches` how often one is started, `serial` those that one thread runs alone. `moved` is what
launches read and write, each operand once. `arena` and `bound` are the bytes of workspace and the most that is alive at any
time. `text` are lines of LLVM IR, which compile time follows; `code` the bytes of the object. Of the machine code: the
innermost loops that multiply and add vectors (`hot`), their instructions, and those that go to the stack (`spills`); and the
innermost loops whose arithmetic is scalar. What LLVM decides is compared with the version that `LLVMLITE` names only.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import llvmlite
from msgspec import Struct

import tilewright as tw
from benchmarks.models import MODELS, bind_sizes
from benchmarks.numpy_programs import PROGRAMS
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.backends.llvm.targets import resolve_target
from tilewright.ir.graph import Graph
from tilewright.ir.program import Branch, Launch, Loop, Repeat, Step
from tilewright.lowering.lower import lower_program
from tilewright.lowering.memory import lower_bound
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

TARGET = resolve_target("cpu:x86-64-v3")
QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
EXPECTED = Path(__file__).with_name("expected.csv")
LLVMLITE = "0.50"
OF_LLVM = ("code", "hot", "instructions", "spills", "scalar")

LABEL = re.compile(r"^(\.?\w+):")
JUMP = re.compile(r"^\s+j\w+\s+(\.\w+)")
VECTOR_PRODUCT = re.compile(r"^\s+vf(?:n?m)(?:add|sub)\d+p[sd]\s")
SCALAR = re.compile(r"^\s+v?(?:add|sub|mul|div|fn?m(?:add|sub)\d+)s[sd]\s")
STACK = re.compile(r"^\s+v.*\((?:%rsp|%rbp)[,)]")


class Structure(Struct, frozen=True):
    """A row of the table; see the module's text."""

    program: str
    kernels: int
    launches: int
    serial: int
    moved: int
    arena: int
    bound: int
    text: int
    code: int
    hot: int
    instructions: int
    spills: int
    scalar: int


def graphs(wanted: Collection[str]) -> Iterator[tuple[str, Graph]]:
    """Programs that are counted, specialized to their sizes."""
    for model in MODELS:
        if model.name in wanted:
            yield model.name, tw.from_onnx(model.path(), dims=bind_sizes(model.path(), model.shapes))
    for program in PROGRAMS:
        if f"numpy/{program.name}" not in wanted:
            continue
        inputs = program.inputs("float32")
        yield f"numpy/{program.name}", tw.trace(program.function, args=[tw.spec(a.shape, str(a.dtype)) for a in inputs])


def names() -> list[str]:
    return [*(model.name for model in MODELS), *(f"numpy/{program.name}" for program in PROGRAMS)]


def measure(name: str, graph: Graph) -> Structure:
    backend = LlvmBackend(TARGET)
    fused, _ = run_passes(graph, Options(), backend.capabilities, QUIET)
    program, statistics = lower_program(fused, backend.capabilities)
    made = backend.compile(program)
    launches = [*_launches(program.steps)]
    facts = [launch.facts for launch in launches if launch.facts is not None]
    hot, instructions, spills, scalar = count_loops(made.assembly)
    return Structure(
        name, len(program.kernels()), len(launches), sum(not f.parallel for f in facts),
        sum(_number(f.read) + _number(f.written) for f in facts), _number(program.workspace_bytes),
        lower_bound(statistics.storages), made.llvm_ir.count("\n"), len(made.object_code), hot, instructions, spills, scalar)


def _number(size: object) -> int:
    if not isinstance(size, int):
        raise ValueError(f"expected a size that is a number, found {size}")
    return size


def _launches(steps: tuple[Step, ...]) -> Iterator[Launch]:
    """Each launch once, however often it runs."""
    for step in steps:
        match step:
            case Launch():
                yield step
            case Repeat(steps=inner):
                yield from _launches(inner)
            case Loop(condition_steps=first, steps=inner):
                yield from _launches((*first, *inner))
            case Branch(then=then, otherwise=otherwise):
                yield from _launches((*then, *otherwise))


def count_loops(assembly: str) -> tuple[int, int, int, int]:
    """Of the innermost loops (a jump back over no other loop): those that multiply and add vectors, their instructions, those of
    them that go to the stack, and the number of loops with scalar arithmetic."""
    lines = assembly.splitlines()
    places = {found[1]: i for i, line in enumerate(lines) if (found := LABEL.match(line))}
    loops = [(places[found[1]], i) for i, line in enumerate(lines)
             if (found := JUMP.match(line)) and places.get(found[1], i + 1) <= i]
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    hot = instructions = spills = scalar = 0
    for first, last in innermost:
        body = [line for line in lines[first:last + 1] if line.startswith("\t") and not line.startswith("\t.")]
        if any(VECTOR_PRODUCT.match(line) for line in body):
            hot += 1
            instructions += len(body)
            spills += sum(bool(STACK.match(line)) for line in body)
        elif any(SCALAR.match(line) for line in body):
            scalar += 1
    return hot, instructions, spills, scalar


def read_expected() -> dict[str, dict[str, str]]:
    with EXPECTED.open(newline="") as file:
        return {row["program"]: row for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="replace expected.csv by what is found")
    rows = []
    write = parser.parse_args().write
    for name, graph in graphs(names()):
        rows.append(measure(name, graph))
        print(rows[-1], flush=True)
    if write:
        if not llvmlite.__version__.startswith(LLVMLITE):
            raise SystemExit(f"llvmlite {llvmlite.__version__} is installed, expected.csv is of {LLVMLITE}: change LLVMLITE with it")
        temporary = EXPECTED.with_suffix(".new")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Structure.__struct_fields__)
            writer.writerows([getattr(row, field) for field in Structure.__struct_fields__] for row in rows)
        temporary.replace(EXPECTED)


if __name__ == "__main__":
    main()
