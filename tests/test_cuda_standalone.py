"""What `--emit source` writes: its text, and its `main`, run on the host with the kernels in their emulation."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

import tilewright as tw
from tests.compilers import needs_compiler
from tests.emulated import emulate
from tilewright import library as lib
from tilewright.backends.cuda.emulate import FOLDER
from tilewright.backends.cuda.host_compiler import host_compiler
from tilewright.backends.cuda.standalone import Standalone
from tilewright.gpu.compiling import standalone_source
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.ops.control import Param
from tilewright.ir.types import BF16
from tilewright.options import Environment, Options

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
FILES = Path(__file__).parent / "data"
GOLDEN = FILES / "standalone.cu"
KERNELS, HELPERS, MAIN = "// Kernels of ", "// --- what runs and checks the kernels ---", "int main() {"
DATA = "model.data"


def product() -> Graph:
    """Of open rows, so that it is a pipeline on sm_90a."""
    b = Builder()
    x, w = b.add(Param("x", BF16, (symbol("R"), 136))), np.random.default_rng(1).integers(-2, 3, (136, 240)).astype(BF16.numpy)
    return Graph("product", [x], [lib.apply(b, "max", lib.matmul(b, x, lib.constant(b, w)), lib.constant(b, 0.0, BF16))])


def picked() -> Graph:
    """With indices that are checked, and a loop that depends on data."""
    def pick(x: np.ndarray, i: np.ndarray) -> np.ndarray:
        return tw.while_loop(lambda y: y.sum() < 1000, lambda y: y * 2 + 1, np.take(x, i, axis=0))

    return tw.trace(pick, (tw.spec((5, 7), np.float32), tw.spec((6,), np.int64)))


def emitted(graph: Graph, target: str) -> Standalone:
    return standalone_source(graph, target, Options(), QUIET, DATA)


def parts(source: str) -> tuple[str, str, str, str]:
    """Device header, kernels, helpers of `main`, and `main`."""
    header, _, rest = source.partition(KERNELS)
    kernels, _, rest = rest.partition(HELPERS)
    helpers, _, main = rest.partition(MAIN)
    return header, KERNELS + kernels, helpers, MAIN + main


def test_text(update_golden: bool) -> None:
    """Kernels and `main`, so that a change of them is seen; header and helpers are the same for all programs."""
    header, kernels, helpers, main = parts(emitted(product(), "cuda:sm_90a").source)
    assert "tw_wgmma_m64n128k16_bf16" not in helpers and "wgmma.mma_async" in header and '#include "device' not in header
    if update_golden:
        GOLDEN.write_text(kernels + main)
    assert kernels + main == GOLDEN.read_text(), "run pytest --update-golden and read the difference"


def run_main(made: Standalone, folder: Path) -> subprocess.CompletedProcess[str]:
    """The program as host C++, without the language of launches: kernels in the library of their emulation, which watches them."""
    _, kernels, helpers, main = parts(made.source)
    library = emulate('#include "device.h"\n' + kernels).library
    main = re.sub(r"(\w+)<<<(.+?), (\d+), (\d+)>>>\(\n", r'launch("\1", \2, \3, \4,\n', main)
    main = re.sub(r"cudaFuncSetAttribute\((\w+),", r'cudaFuncSetAttribute("\1",', main)
    (folder / "main.cpp").write_text(f'#include "emulated_cuda_runtime.h"\n{helpers}{main}')
    (folder / DATA).write_bytes(made.data)
    subprocess.run([host_compiler(), "-std=c++17", "-w", "-I", str(FOLDER), "-I", str(FILES), "main.cpp", str(library), "-o", "model"],
                   cwd=folder, check=True)
    return again(folder)


def again(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["./model"], cwd=folder, capture_output=True, text=True, check=False)


@needs_compiler
def test_main_checks_a_product(tmp_path: Path) -> None:
    made = emitted(product(), "cuda:sm_90a")
    assert "tw_mbarrier_wait" in parts(made.source)[1]
    finished = run_main(made, tmp_path)
    assert (finished.stdout, finished.returncode) == ("passed\n", 0)
    expected = made.data.rindex(made.data.rstrip(b"\0")[-2:])
    damaged = bytearray(made.data)
    damaged[expected + 1] ^= 0x40  # the exponent of the last element that is not zero
    (tmp_path / DATA).write_bytes(damaged)
    finished = again(tmp_path)
    assert finished.returncode == 1
    assert re.fullmatch(r"output 0: element \d+ is \S+, expected \S+\nFAILED\n", finished.stdout)
    (tmp_path / DATA).write_bytes(made.data[:100])
    finished = again(tmp_path)
    assert (finished.stdout, finished.returncode) == ("model.data cannot be read\n", 2)


@needs_compiler
def test_main_follows_control_flow_and_checks(tmp_path: Path) -> None:
    made = emitted(picked(), "cuda:sm_80")
    main = parts(made.source)[3]
    assert "while (true) {" in main and "truth(" in main
    finished = run_main(made, tmp_path)
    assert (finished.stdout, finished.returncode) == ("passed\n", 0)
    start = re.search(r"on_device\(data \+ (\d+), 48\);  // i\n", main)
    assert start is not None
    damaged = bytearray(made.data)
    damaged[int(start[1]):int(start[1]) + 8] = (9).to_bytes(8, "little")
    (tmp_path / DATA).write_bytes(damaged)
    finished = again(tmp_path)
    assert finished.returncode == 1 and re.match(r"a check failed: site \d+, found 9, expected 5\n", finished.stdout)
