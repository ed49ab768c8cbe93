"""Products of four warps on Hopper (wgmma), against the interpreter of graphs: in the loop interpreter, and as CUDA source in the emulation,
which reads operands as descriptors say and faults where a wait or a fence is missing."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest

from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu
from tests.test_gpu_contraction import integer_products, products
from tilewright import library as lib
from tilewright.backends.cuda.backend import CudaBackend, capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.ir.dims import symbol
from tilewright.ir.errors import VerifyError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, I8, U8, DType

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on the host only where there is g++")


# one multiprocessor, so that one tile is work enough
lowered = partial(lowered_for_gpu, multiprocessors=1, architecture="sm_90a")


def grouped(program: Program) -> list[bool]:
    """Of each product of tiles whether it is one of four warps."""
    return [s.grouped for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, MatmulTile)]


def check(graph: Graph, values: list[np.ndarray]) -> Program:
    program = lowered(graph)
    assert grouped(program) and all(grouped(program))
    for found in (run_program(program, values), EmulatedPrograms([program], architecture="sm_90a").run(0, values)):
        for x, y in zip(evaluate_graph(graph, values), found, strict=True):
            np.testing.assert_array_equal(y, x)
    return program


@pytest.mark.parametrize(("dtype", "sizes"), [
    # more steps than stages hold, with a part of a row left; edges on both sides and several tiles; steps that 16 bytes do not hold
    (F16, [(66, 264, 128), (130, 64, 140), (70, 37, 128)]), (BF16, [(128, 72, 128)])])
def test_products(dtype: DType, sizes: list[tuple[int, int, int]]) -> None:
    check(*products(dtype, sizes))


def test_open_sizes() -> None:
    b = Builder()
    x, y = b.add(Param("x", BF16, (symbol("M", 0, 512), 72))), b.add(Param("y", BF16, (72, 136)))
    graph = Graph("rows", [x, y], [lib.matmul(b, x, y)])
    rng = np.random.default_rng(6)
    program = lowered(graph)
    emulated = EmulatedPrograms([program], architecture="sm_90a")
    assert all(grouped(program))
    for rows in (0, 1, 129):
        values = [rng.integers(-2, 3, shape).astype(BF16.numpy) for shape in ((rows, 72), (72, 136))]
        np.testing.assert_array_equal(emulated.run(0, values)[0], evaluate_graph(graph, values)[0])


def test_where_they_are_chosen() -> None:
    """For sm_90a alone, and for 16 bits; nor where the source serves later architectures as well."""
    assert [name for name in ("sm_80", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_120") if capabilities_of(name).has_group_products] == ["sm_90a"]
    assert CudaBackend("sm_90a").capabilities.has_group_products and not CudaBackend("sm_90a", ("sm_100",)).capabilities.has_group_products
    assert not any(grouped(lowered(integer_products([(128, 64, 128)], U8, I8)[0])))
    assert grouped(lowered(products(F32, [(128, 64, 128)])[0])) == []


def test_text_and_rules() -> None:
    program = lowered(products(F16, [(128, 128, 128)])[0])
    kernel, = (k for k in program.kernels() if "matmul_group" in format_kernel(k))
    text = format_kernel(kernel)
    assert format_kernel(parse_kernel(text)) == text
    for old, new, message in (("f32[8, 16, 128] fragment", "f32[8, 32, 128] fragment", "expected 4 warps or a multiple, 16 rows"),
                              ("f16[384, 64] shared", "f16[384, 72] shared", "expected 16 bits, rows of 64"),
                              ("f16[192, 128] shared", "f16[192, 136] shared", "expected whole ones")):
        assert old in text
        with pytest.raises(VerifyError, match=message):
            verify_kernel(parse_kernel(text.replace(old, new)))


def test_what_is_stored_is_fenced_before_each_barrier() -> None:
    lines = [line.strip() for line in emit_module(lowered(products(F16, [(128, 136, 128)])[0]), "sm_90a").source.splitlines()]
    barriers = [number for number, line in enumerate(lines) if line == "__syncthreads();"]
    assert len(barriers) == 3 and all(lines[number - 1] == "tw_async_proxy_fence();" for number in barriers)
