"""What the benchmark of NumPy functions does for other systems (benchmarks/numpy_peers.py), without any of them."""

from __future__ import annotations

import argparse
import ast

import numpy as np
import pytest

from benchmarks.numpy_functions import Peer, summary
from benchmarks.numpy_peers import CLOCKS, FunctionalUpdates, call_times, largest_error, while_loop


@pytest.mark.parametrize("text, expected", [
    ("x[1:, i] = y + 1", "x = x.at[1:, i].set(y + 1)"),
    ("x[0] += y[0]", "x = x.at[0].add(y[0])"),
    ("x[mask] *= 2", "x = x.at[mask].multiply(2)"),
    ("a, b = b, a", "a, b = (b, a)"),
    ("x += y", "x += y"),
])
def test_updates_are_written_as_functions(text: str, expected: str) -> None:
    tree = ast.fix_missing_locations(FunctionalUpdates().visit(ast.parse(text)))
    compile(tree, "text", "exec")
    assert ast.unparse(tree) == expected


def test_errors_are_relative_and_other_dtypes_are_refused() -> None:
    assert largest_error((np.array([1.0, 2.0]), np.array([1, 2])), (np.array([1.0, 2.5]), np.array([1, 3]))) == 0.5
    with pytest.raises(ValueError, match=r"found float64\[2\], expected float32\[2\]"):
        largest_error(np.zeros(2), np.zeros(2, np.float32))


def test_loops_and_times() -> None:
    assert while_loop(lambda s: s < 5, lambda s: s + 2, 0) == 6
    assert len(call_times(lambda x: x, [(1,), (2,)], 0.0, CLOCKS["processor"])) >= 5


def test_a_peer_that_does_not_run_is_reported() -> None:
    arguments = argparse.Namespace(peers_python="/bin/false", threads=1, small=True, seconds=0.0, clock="elapsed")
    peer = Peer("jax", arguments)
    peer.process.wait()
    found = peer.measure("softmax", "float32")
    assert found == {"failed": "jax does not run in /bin/false"}


def test_the_summary_counts_peers_where_there_are_some() -> None:
    rows = [{mode: {"ratio": 2.0, "compile_seconds": 1.0, **extra} for mode in ("dynamic", "specialized")}
            for extra in ({"peer_ratio": 4.0}, {"peer_ratio": 1.0}, {})]
    assert summary(rows)["dynamic"]["geometric_mean_to_best_peer"] == pytest.approx(2.0)
    assert "least_to_best_peer" not in summary(rows[2:])["specialized"]
