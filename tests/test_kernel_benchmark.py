"""The benchmark of single kernels (benchmarks/kernels.py) on tiny ones: what it reports, not how fast anything is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.kernel_peers import Peer, seconds_of
from benchmarks.kernels import Case, arguments_of, by_constant, layer_norm, line, measure, softmax, summary
from benchmarks.rooflines import Roofline, Rooflines, aligned

RATES = {"float32": 1e11, "float64": 5e10, "read": 3e10, "mix of 1": 2e10}
LIMITS = SimpleNamespace(clock=time.perf_counter)


def test_what_computes_is_measured_against_multiply_adds() -> None:
    row = measure(by_constant(5, 7, 9), LIMITS, RATES, 0.0)
    assert row["error"] < 1e-5 and row["limit"] == RATES["float32"] and row["unit"] == "GFLOP/s"
    assert row["share"] == pytest.approx(2 * 5 * 7 * 9 / row["seconds"] / RATES["float32"])
    assert "5x7x9 float32" in line(row)


def test_what_moves_memory_is_measured_against_its_mix() -> None:
    x = np.ones((4, 8), np.float32)
    row = measure(Case("memory", "twice", lambda x: x + x, (x,), moved=256.0, sources=1), LIMITS, RATES, 0.0)
    assert row["limit"] == RATES["mix of 1"] and row["unit"] == "GB/s"
    skinny = measure(by_constant(1, 8, 8, "skinny"), LIMITS, RATES, 0.0)
    assert skinny["limit"] == RATES["read"] and skinny["rate"] == pytest.approx(4 * 64 / skinny["seconds"])
    assert set(summary([row, skinny])) == {"memory: mean share", "memory: least", "skinny: mean share", "skinny: least"}


def test_what_computes_long_has_a_roofline() -> None:
    x = np.ones((4, 8), np.float32)
    case = Case("memory", "twice", lambda x: x + x, (x,), moved=256.0, sources=1)
    row = measure(case, LIMITS, RATES, 0.0, roofline=Roofline(computing=0.5, by_hand=1.0))
    assert row["of roofline"] == pytest.approx(0.5 / row["seconds"]) and row["of hand"] == pytest.approx(1.0 / row["seconds"])
    assert "of the roofline" in line(row) and "of the best by hand" in line(row)
    assert Roofline(computing=1e-12, by_hand=1.0).bound(moving=0.25) == 0.25


def test_kernels_by_hand_are_right(tmp_path: Path) -> None:
    rooflines = Rooflines(tmp_path, time.perf_counter)
    functions = {"softmax": softmax, "layer norm": layer_norm, "transpose": lambda x: x.T}
    for name in rooflines.kernels:
        x = aligned((512, 256))
        x[:] = np.random.default_rng(0).standard_normal(x.shape, dtype="float32")
        expected = functions[name](x)
        to = aligned(expected.shape)
        rooflines.far(name, to, x)
        np.testing.assert_allclose(to, expected, rtol=1e-5, atol=1e-6)
        assert rooflines.near(name, to, x) > 0


def test_calls_are_repeated_within_a_measurement_that_is_short() -> None:
    assert len(seconds_of(lambda: None, time.perf_counter, 0.0)) == 5


def test_unknown_kernels_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of(["--only", "matmul,conv"])
    assert "unknown: conv; kernels are matmul, run-time, skinny, memory, call" in capsys.readouterr().err


def test_unknown_peers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of(["--peers", "mkl,blis"])
    assert "unknown: blis; peers are mkl, torch, numpy" in capsys.readouterr().err


@pytest.mark.parametrize(("turned", "shapes"), [((False, False), ((5, 7), (7, 9))), ((True, False), ((7, 5), (7, 9))),
                                                ((False, True), ((5, 7), (9, 7)))])
def test_a_peer_is_given_the_same_product(turned: tuple[bool, bool], shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    x, y = (np.random.default_rng(0).standard_normal(shape, dtype="float32") for shape in shapes)
    left, right = turned
    case = Case("run time", "product", lambda x, y: (x.T if left else x) @ (y.T if right else y), (x, y), 2.0 * 5 * 7 * 9, turned=turned)
    peer = Peer("numpy", sys.executable, "thread")
    try:
        assert peer.about == f"NumPy {np.__version__}"
        row = measure(case, LIMITS, RATES, 0.0, [peer])
    finally:
        peer.close()
    assert row["peers"]["numpy"]["ratio"] > 0 and "numpy / ours" in line(row)
    assert {"numpy / ours: geometric mean (ratio)", "numpy / ours: geometric mean (undisturbed)"} < set(summary([row]))


def test_a_peer_that_does_not_run_has_no_times() -> None:
    peer = Peer("mkl", "/bin/false", "thread")
    assert peer.about == "mkl does not run in /bin/false"
    assert peer.times((2, 2, 2), (False, False), "float32", 0.0) == []
    peer.close()
