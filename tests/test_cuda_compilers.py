"""CUDA source through nvcc and NVRTC, where one is installed: everything compiles for each architecture, and nothing spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.perf.cuda import ARCHITECTURES, NVCC, PROGRAMS, recorded, row_of, usage_by_program
from tests.test_cuda_kernels import matmul
from tests.test_cuda_standalone import product
from tests.test_gpu_contraction import products
from tilewright.backends.cuda import compile
from tilewright.backends.cuda.compile import can_compile, compile_source, toolkit_version
from tilewright.gpu.compiling import standalone_source
from tilewright.ir.errors import InternalError, UnsupportedError
from tilewright.ir.graph import Graph
from tilewright.ir.types import F16
from tilewright.options import Environment, Options

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
HAS_NVCC = shutil.which("nvcc") is not None

pytestmark = pytest.mark.skipif(not can_compile(), reason="neither NVRTC nor nvcc is installed")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_kernels_take(architecture: str) -> None:
    graphs = {name: make() for name, make in PROGRAMS.items()}
    graphs["large and small tiles"] = products(F16, [(4096, 1024, 4096), (64, 64, 64)])[0]
    used = usage_by_program(graphs, architecture)
    assert {name for name, (_, kernels) in used.items() if any(kernel.stack for kernel in kernels)} == {"sort"}  # whose rows lie there
    for module, kernels in used.values():  # warps that give registers away do so from an even share of all, which others count on
        registers = {kernel.kernel: kernel.registers for kernel in kernels}
        for threads, blocks, name in re.findall(r"__launch_bounds__\((\d+), (\d+)\) (\w+)\(", module.source):
            assert registers[name] == 65536 // (int(threads) * int(blocks)) // 8 * 8
    found = [row_of(name, architecture, *used[name]) for name in graphs]
    assert [row.program for row in found if row.spills] == []
    if toolkit_version() == NVCC:
        expected = [row for row in recorded() if row.architecture == architecture and row.program in PROGRAMS]
        assert found[:len(PROGRAMS)] == expected, "python -m tests.perf.cuda --write records it"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("graph, target", [(matmul(5, 7, 9), "cuda:sm_80"), (product(), "cuda:sm_90a")], ids=["sm_80", "sm_90a"])
def test_a_standalone_source_compiles(tmp_path: Path, graph: Graph, target: str) -> None:
    made = standalone_source(graph, target, Options(), QUIET, "model.data")
    (tmp_path / "model.cu").write_text(made.source)
    (tmp_path / "model.data").write_bytes(made.data)
    finished = subprocess.run(["nvcc", *made.options, "-o", str(tmp_path / "model"), str(tmp_path / "model.cu")],
                              capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "warning" not in finished.stderr


@pytest.mark.slow
def test_an_error_of_the_source_keeps_it() -> None:
    with pytest.raises(InternalError, match=r"refuses the emitted source, which is kept in (\S+\.cu)") as caught:
        compile_source('#include "device.h"\nthis is no C++\n', "sm_80")
    kept = Path(str(caught.value).partition("kept in ")[2].partition(":\n")[0])
    assert "this is no C++" in kept.read_text()
    kept.unlink()


@pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed")
def test_a_folder_for_temporary_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "nvrtc_library", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UnsupportedError, match="(?s)CUDA source cannot be compiled: .*absent.*TMPDIR names"):
        compile_source('#include "device.h"\n', "sm_80")
