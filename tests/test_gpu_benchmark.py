"""The benchmark of GPUs goes through its cases on the emulated driver, and predicts the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import main
from benchmarks.gpu_traffic import asked_bytes, kernel_bytes
from tests.compilers import needs_compiler
from tests.emulated import emulated_driver
from tests.lowering_checks import lowered_for_gpu, one
from tests.test_gpu_groups import weighted
from tilewright import library as lib
from tilewright.ir.loop_parser import parse_kernel

pytestmark = needs_compiler


def test_cases_are_checked_in_emulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emulated_driver()
    output = tmp_path / "gpu.json"
    assert main(["--emulate", "--only", "tf32,integers,weights,floats8,convolutions", "--output", str(output)]) == 0
    assert "every function of the device header agrees with its emulation" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["header"] == {} and [case["name"] for case in found["cases"]] == [
        "matmul 72 x 72 x 72", "i8 64 x 64 x 64", *(f"i{bits} f16 {rows} x 64 x 64" for bits in (4, 8) for rows in (1, 3, 9)), "i4 i8 3 x 64 x 64",
        "e4m3 64 x 64 x 64", *(f"{dtype} 2 x 7 x 7 x 3, 3 x 3 to 16 by 2" for dtype in ("f16", "i8"))]
    assert found["cases"][1]["checked"] == "0e+00" and not any(case["error"] for case in found["cases"])


def test_predictions_need_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--predict", "--only", "attention"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14 and "f16 4 x 16 x 4096 x 128 causal" in lines[8]


def test_bytes_that_threads_ask_for() -> None:
    """Of a product whose tiles read both operands again, of an array that is read once, and of loops that depend on the outer one."""
    program = lowered_for_gpu(weighted(256, 320, 512)[0], 1, "sm_90a")  # tiles of 128 x 256
    assert asked_bytes(program) == 2 * (2 * 2 * (128 + 256) * 320 + 256 * 512)
    assert asked_bytes(lowered_for_gpu(one((4096,), lambda b, x: lib.gelu(b, x)), None, "sm_80")) == 2 * 4 * 4096
    triangle = parse_kernel("""kernel @triangle(%x: in f32[64, 64], %y: out f32[64]) {
  for %b in 0..64 block {
    for %t in 0..1 thread {
      for %k in 0..b {
        %y[b] add= load %x[b, k]
      }
    }
  }
}
""")
    assert kernel_bytes(triangle, {}) == 64 * 32 * (4 + 4)
