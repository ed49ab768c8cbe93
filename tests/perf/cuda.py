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
from tests.test_gpu_attention import MASKS, masked_graph
from tests.test_gpu_contraction import integer_products
from tests.test_gpu_convolution import Case, convolutions
from tests.test_gpu_convolution import layer as convolved_layer
from tests.test_gpu_floats8 import product_of
from tests.test_gpu_quantized import layer
from tilewright import library as lib
from tilewright.backends.cuda.backend import CudaBackend
from tilewright.backends.cuda.compile import Usage, usage_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.module import CudaModule
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.ops.compute import FLOATS8, Sort
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.weight_only import WeightOnlyDot
from tilewright.ir.types import BF16, F16, F32, I8, I32, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
EXPECTED = Path(__file__).with_name("cuda.csv")
NVCC = 13000
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
ROWS = symbol("R")


def attention(dtype: DType, heads: int, key_heads: int, tokens: int, size: int) -> Graph:
    return masked_graph(MASKS[0][0], (1, heads, tokens, size), (1, key_heads, tokens, size), dtype)


def with_residual(dtype: DType, rows: DimLike, steps: int, columns: int) -> Graph:
    b = Builder()
    x, w, other = (b.add(Param(name, dtype, shape)) for name, shape in (("x", (rows, steps)), ("w", (steps, columns)), ("other", (rows, columns))))
    return Graph("residual", [x, w, other], [lib.gelu(b, lib.apply(b, "add", lib.matmul(b, x, w), other))])


def convolved(dtype: DType, case: Case) -> Graph:
    return convolutions([case], dtype)


def coded(rows: DimLike, bits: int, group: int, dtype: DType = F16) -> Graph:
    """A product with weights 4096 x 4096 of so many bits, in groups of so many steps."""
    b, panels = Builder(), 256
    x = b.add(Param("x", dtype, (rows, 4096)))
    words = b.add(Param("words", I32, (panels, 4096 * bits // 32, 4096 // panels)))
    scales = b.add(Param("scales", F16, (panels, 4096 // group, 4096 // panels)))
    return Graph("coded", [x, words, scales], [b.add(WeightOnlyDot(4096, bits, group, 1 << bits - 1), x, words, scales)])


PROGRAMS: dict[str, Callable[[], Graph]] = {
    "softmax": lambda: one((ROWS, 1000), lambda b, x: lib.softmax(b, x, 1)),
    "long softmax": lambda: one((ROWS, 8192), lambda b, x: lib.softmax(b, x, 1)),
    "matmul f32": lambda: matmul(1024, 1024, 1024),
    "matmul f32 of open sizes": lambda: matmul(ROWS, symbol("K"), symbol("N")),
    "matmul f16": lambda: matmul(1024, 1024, 1024, (), F16),
    "large matmul bf16": lambda: matmul(4096, 4096, 4096, (), BF16),
    "large matmul f16 of open rows, residual and gelu": lambda: with_residual(F16, ROWS, 4104, 4096),
    "large matmul bf16, residual and gelu": lambda: with_residual(BF16, 4096, 4096, 4096),
    "matmul bf16 of few rows": lambda: matmul(16, 1024, 4096, (), BF16),
    "deep matmul bf16 of few tiles": lambda: matmul(64, 8192, 256, (), BF16),
    "deep matmul f32 of few tiles": lambda: matmul(64, 8192, 256),
    "matmul tf32": lambda: matmul(1024, 1024, 1024),
    "large matmul tf32, residual and gelu": lambda: with_residual(F32, 4096, 4096, 4096),
    "matmul tf32 of open rows, 1001 columns": lambda: matmul(ROWS, 1024, 1001),
    "deep matmul tf32 of few tiles": lambda: matmul(16, 8192, 256),
    "batched matmul f16": lambda: matmul(128, 64, 128, (12,), F16),
    "attention f16, causal": lambda: attention(F16, 4, 4, 2048, 128),
    "attention bf16, shared heads": lambda: attention(BF16, 8, 2, 1024, 64),
    "int4 weights, one row": lambda: coded(1, 4, 128),
    "int4 weights, 8 rows of f32": lambda: coded(8, 4, 32, F32),
    "int4 weights, 16 rows": lambda: coded(16, 4, 32),
    "int8 weights, 64 rows": lambda: coded(64, 8, 4096),
    "int4 weights, any rows": lambda: coded(ROWS, 4, 32),
    "int4 weights, one row of bytes": lambda: coded(1, 4, 128, I8),
    "int4 weights, 64 rows of bytes": lambda: coded(64, 4, 128, I8),
    "int4 weights, 4096 rows of bytes": lambda: coded(4096, 4, 128, I8),
    "int2 weights, any rows of bytes": lambda: coded(ROWS, 2, 64, I8),
    "int4 weights in groups of 16, any rows of bytes": lambda: coded(ROWS, 4, 16, I8),
    "matmul i8": lambda: integer_products([(4096, 4096, 4096)], I8, I8)[0],
    "matmul f8e4m3": lambda: product_of(*[FLOATS8[0]] * 2, 1024, 1024, 1024, BF16),
    "large matmul f8e4m3": lambda: product_of(*[FLOATS8[0]] * 2, 4096, 4096, 4096, BF16),
    "matmul f8e5m2": lambda: product_of(*[FLOATS8[1]] * 2, 1024, 1024, 1024, BF16),
    "int8 layer": lambda: layer(I8, I8, 1024, 1024, 1024, True),
    "convolution": lambda: convolution((8, 64, 56, 56), 3, 1, 1, 64),
    "convolution f16": lambda: convolved(F16, Case((32, 64, 56, 56), (3, 3), 64, padding=(1, 1))),
    "convolution f16 of few channels": lambda: convolved(F16, Case((8, 3, 224, 224), (7, 7), 64, strides=2, padding=(3, 3))),
    "convolution f16 of open sizes, 4 groups": lambda: convolved(F16, Case((ROWS, 128, symbol("H"), symbol("W")), (3, 3), 128, padding=(1, 1), groups=4)),
    "deep convolution f16 of few tiles": lambda: convolved(F16, Case((1, 512, 7, 7), (3, 3), 512, padding=(1, 1))),
    "large convolution bf16": lambda: convolved(BF16, Case((32, 256, 28, 28), (3, 3), 256, strides=2, padding=(1, 1))),
    "convolution tf32": lambda: convolved(F32, Case((32, 64, 56, 56), (3, 3), 64, padding=(1, 1))),
    "large convolution tf32": lambda: convolved(F32, Case((32, 256, 28, 28), (3, 3), 256, strides=2, padding=(1, 1))),
    "int8 layer of a convolution": lambda: convolved_layer(Case((32, 256, 14, 14), (3, 3), 256, padding=(1, 1)), I8, I8),
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
        options = Options(matmul_precision="tf32" if " tf32" in name else "float32")
        module = emit_module(lower_program(run_passes(graph, options, caps, QUIET)[0], caps)[0], architecture)
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
