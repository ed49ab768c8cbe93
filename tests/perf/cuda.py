"""What kernels of CUDA take of a GPU, as nvcc's assembler says: registers, shared memory, and bytes spilled, for each architecture.
Programs are compiled together where that changes nothing, since nvcc takes half of its time to start.

`cuda.csv` holds it for the version of nvcc in `NVCC`; the test fails on any change, and on any spill:

    python -m tests.perf.cuda --write
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

import tilewright as tw
from benchmarks.models import MODELS, bind_sizes
from tests.cuda_programs import joined_source
from tests.lowering_checks import one
from tests.test_cuda_kernels import convolution, matmul
from tilewright import library as lib
from tilewright.backends.cuda.backend import CudaBackend
from tilewright.backends.cuda.compile import Usage, usage_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.module import CudaModule
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Graph
from tilewright.ir.ops.compute import Sort
from tilewright.ir.types import BF16, F16, F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
EXPECTED = Path(__file__).with_name("cuda.csv")
NVCC = 13000
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
ROWS = symbol("R")
PROGRAMS: dict[str, Callable[[], Graph]] = {
    "softmax": lambda: one((ROWS, 1000), lambda b, x: lib.softmax(b, x, 1)),
    "long softmax": lambda: one((ROWS, 8192), lambda b, x: lib.softmax(b, x, 1)),
    "matmul f32": lambda: matmul(1024, 1024, 1024),
    "matmul f32 of open sizes": lambda: matmul(ROWS, symbol("K"), symbol("N")),
    "matmul f16": lambda: matmul(1024, 1024, 1024, (), F16),
    "large matmul bf16": lambda: matmul(4096, 4096, 4096, (), BF16),
    "matmul bf16 of few rows": lambda: matmul(16, 1024, 4096, (), BF16),
    "deep matmul bf16 of few tiles": lambda: matmul(64, 8192, 256, (), BF16),
    "deep matmul f32 of few tiles": lambda: matmul(64, 8192, 256),
    "batched matmul f16": lambda: matmul(128, 64, 128, (12,), F16),
    "convolution": lambda: convolution((8, 64, 56, 56), 3, 1, 1, 64),
    "sort": lambda: one((64, 1000), lambda b, x: b.add(Sort(1, False), x), F32),
}


class Row(Struct, frozen=True):
    """A program on an architecture: of its kernels the most registers and bytes of shared memory, and all bytes spilled."""

    program: str
    architecture: str
    kernels: int
    registers: int
    shared: int
    spills: int


def usage_by_program(graphs: Mapping[str, Graph], architecture: str) -> dict[str, tuple[CudaModule, list[Usage]]]:
    """The kernels of each graph, compiled. One source for all, but for those whose shared memory is laid out for a source as a whole."""
    caps = CudaBackend(architecture).capabilities
    found, together = {}, {}
    for name, graph in graphs.items():
        module = emit_module(lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0], architecture)
        if "tw_block_" in module.source or "TW_DYNAMIC_SHARED" in module.source:
            found[name] = module, list(usage_of(module.source, architecture))
        else:
            together[name] = module
    used = usage_of(joined_source(list(together.values())), architecture) if together else ()
    for number, (name, module) in enumerate(together.items()):
        found[name] = module, [kernel for kernel in used if kernel.kernel.startswith(f"p{number}_")]
    return found


def row_of(name: str, architecture: str, module: CudaModule, used: Sequence[Usage]) -> Row:
    """The row of a program that was compiled."""
    dynamic = max(kernel.shared_bytes for kernel in module.kernels.values())
    return Row(name, architecture, len(used), max(u.registers for u in used), max(dynamic, *(u.shared for u in used)), sum(u.spills for u in used))


def rows(models: bool) -> Iterator[Row]:
    """The table; with the real models, for the oldest architecture."""
    graphs = {name: make() for name, make in PROGRAMS.items()}
    used = {architecture: usage_by_program(graphs, architecture) for architecture in ARCHITECTURES}
    for name in graphs:
        for architecture in ARCHITECTURES:
            yield row_of(name, architecture, *used[architecture][name])
    for model in MODELS if models else ():
        graph = tw.from_onnx(model.path(), dims=bind_sizes(model.path(), model.shapes))
        yield row_of(model.name, ARCHITECTURES[0], *usage_by_program({model.name: graph}, ARCHITECTURES[0])[model.name])


def recorded() -> list[Row]:
    with EXPECTED.open(newline="") as file:
        return [Row(r["program"], r["architecture"], int(r["kernels"]), int(r["registers"]), int(r["shared"]), int(r["spills"]))
                for r in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="record what is found")
    found = list(rows(models=True))
    if parser.parse_args().write:
        with EXPECTED.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row.__struct_fields__)
            writer.writerows([getattr(row, field) for field in Row.__struct_fields__] for row in found)
    for row in found:
        print(*(getattr(row, field) for field in Row.__struct_fields__))


if __name__ == "__main__":
    main()
