"""The node tests of the standard, on the interpreter and as machine code: each passes or is refused as docs/onnx.md lists.

The cases are made in memory, once a process, and divided into parts, so that processes share them out.
"""

from __future__ import annotations

from importlib.metadata import version

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from benchmarks import onnx_nodes

PARTS = 24
MEASURED = "1.23.2"  # the version whose cases the document lists

pytestmark = pytest.mark.skipif(version("onnx") != MEASURED, reason=f"the cases are those of onnx {MEASURED}")


@pytest.mark.parametrize("backend", ["reference", "llvm"])
@pytest.mark.parametrize("part", range(PARTS))
def test_cases_pass_or_are_refused_as_documented(part: int, backend: str, monkeypatch: pytest.MonkeyPatch,
                                                 request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    if part % 4:
        request.getfixturevalue("quick_code")
    refused = onnx_nodes.documented()
    cases = list(onnx_nodes.all_cases().values())
    unexpected = []
    for case in cases[part::PARTS]:
        expected = "refused" if case.name in refused else "pass"
        outcome = onnx_nodes.run_case(case)
        if outcome.state != expected:
            unexpected.append(f"{case.name}: {outcome.state}, expected {expected}: {outcome.reason}")
    assert not unexpected, "\n".join(unexpected)


def test_every_documented_case_exists() -> None:
    names = onnx_nodes.all_cases().keys()
    assert onnx_nodes.documented() <= names


def test_core_cases_exist() -> None:
    assert onnx_nodes.core_names() <= onnx_nodes.node_cases().keys()
    assert len(onnx_nodes.core_names()) == 1599


def test_differences_are_told() -> None:
    one = np.array([1.0, np.nan], np.float32)
    assert onnx_nodes.difference([one], [one], 1e-3, 1e-7) == ""
    assert "expected float64" in onnx_nodes.difference([one], [one.astype(np.float64)], 1e-3, 1e-7)
    assert "expected float32[1]" in onnx_nodes.difference([one], [one[:1]], 1e-3, 1e-7)
    assert "1 of 2 elements differ" in onnx_nodes.difference([one], [np.array([1.1, np.nan], np.float32)], 1e-3, 1e-7)
    assert "2 outputs" in onnx_nodes.difference([one, one], [one], 1e-3, 1e-7)


def test_bfloat16_may_be_off_two_places() -> None:
    one = np.array([1.0, -0.0, np.inf, np.nan], ml_dtypes.bfloat16)
    off = (one.view(np.int16) + np.array([2, 0, 0, 0], np.int16)).view(ml_dtypes.bfloat16)
    further = (one.view(np.int16) + np.array([3, 0, 0, 0], np.int16)).view(ml_dtypes.bfloat16)
    assert onnx_nodes.difference([off], [one], 1e-3, 1e-7) == ""
    assert "1 of 4 elements differ" in onnx_nodes.difference([further], [one], 1e-3, 1e-7)
    assert onnx_nodes.difference([-one[1:2]], [one[1:2]], 1e-3, 0.0) == ""
    largest = np.array([3.3895314e38], ml_dtypes.bfloat16)
    assert "1 of 1" in onnx_nodes.difference([one[2:3]], [largest], 1e-3, 1e-7)
