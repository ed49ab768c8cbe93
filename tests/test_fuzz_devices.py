"""Fuzzing of graphs on GPUs: the oracles see what is wrong with kernels and their source, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tests.emulated import emulation_cache
from tilewright import library as lib
from tilewright.backends.cuda import emulated_programs
from tilewright.fuzz import graphs, keys
from tilewright.fuzz import native as machine
from tilewright.fuzz.devices import DeviceSubject
from tilewright.fuzz.graphs import GraphCase
from tilewright.fuzz.kernel_native import Run, check_device
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32, I64, TensorType
from tilewright.options import Options

SUBJECT = DeviceSubject()


@pytest.fixture(autouse=True)
def emulation() -> None:
    """Made once for all tests of a machine, and here."""
    emulation_cache()


def graph_of(make: Callable[..., Any], *types: TensorType) -> Graph:
    b = Builder()
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    return Graph("g", params, [make(b, *params)])


SOFTMAX = graph_of(lambda b, x: lib.softmax(b, x, 1), TensorType(F32, (3, 700)))


def change_source(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Emission writes something else."""
    original = emulated_programs.joined_source

    def changed(modules: Sequence[Any]) -> str:
        text = original(modules)
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(emulated_programs, "joined_source", changed)


def failure_of(case: GraphCase) -> Failure:
    with pytest.raises(Failure) as found:
        SUBJECT.check(case, native=True)
    return found.value


@pytest.mark.parametrize("target", machine.DEVICE_TARGETS)
@pytest.mark.parametrize("small", [False, True])
def test_seeds_pass(target: str, small: bool) -> None:
    """(`tilewright fuzz --subject cuda` goes through all of them, in some minutes.)"""
    cases = [case for case in SUBJECT.seeds() if (case.target, case.small_caches) == (target, small)][::25]
    refused = 0
    for case in cases:
        try:
            SUBJECT.check(case, native=True)
        except Refused:
            refused += 1
    assert len(cases) > 5 and 2 * refused < len(cases)  # by the graph itself for its inputs, or of squares that the target does not take


def test_new_cases_are_for_gpus_and_read_back() -> None:
    tf32 = next(case for case in SUBJECT.seeds() if case.tf32)
    assert SUBJECT.parse(SUBJECT.format(tf32)) == tf32
    case = SUBJECT.generate(np.random.default_rng(0))
    assert case.target in machine.DEVICE_TARGETS
    assert SUBJECT.parse(SUBJECT.format(case)) == case


@pytest.mark.parametrize("target", machine.DEVICE_TARGETS)
def test_what_is_right_passes(target: str) -> None:
    assert SUBJECT.check(GraphCase(SOFTMAX, target=target), native=True).native


def test_a_missing_barrier_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    transposed = graph_of(lambda b, x: lib.scalar(b, "neg", lib.transpose(b, x, (1, 0))), TensorType(F32, (64, 96)))
    case = GraphCase(transposed, target="cuda:sm_80")
    SUBJECT.check(case, native=True)
    change_source(monkeypatch, "__syncthreads();", "")
    failure = failure_of(case)
    assert (failure.kind, failure.stage) == ("crash", "emulation")


def test_a_wrong_source_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    added = graph_of(lambda b, x, y: lib.apply(b, "sub", x, y), *[TensorType(F32, (5, 7))] * 2)
    change_source(monkeypatch, " - ", " + ")
    failure = failure_of(GraphCase(added, target="cuda:sm_90a"))
    assert (failure.kind, failure.stage) == ("result", "cuda")


def test_kernels_that_take_too_much_shared_memory_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "shared_bytes_of_block", lambda kernel: 1 << 20)
    failure = failure_of(GraphCase(SOFTMAX, target="cuda:sm_80"))
    assert failure.kind == "memory plan" and "bytes of shared memory" in failure.message


def test_an_index_out_of_range_must_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = graph_of(lambda b, x, i: lib.take(b, x, lib.apply(b, "add", lib.scalar(b, "abs", i), lib.like(b, 3, i)), 0),
                     TensorType(F32, (3, 4)), TensorType(I64, (2,)))
    case = GraphCase(taken, target="cuda:sm_80")
    with pytest.raises(Refused, match="out of range"):
        SUBJECT.check(case, native=True)
    change_source(monkeypatch, "tw_fail(", "(void)(")
    assert failure_of(case).message == "the program gives results where an index is out of range"


def test_nothing_is_left_of_what_ran() -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    rng = np.random.default_rng(3)
    SUBJECT.check(GraphCase(SOFTMAX, target="cuda:sm_80"), native=True)
    before = mappings()
    for _ in range(4):
        try:
            SUBJECT.check(SUBJECT.generate(rng), native=True)
        except Refused:
            continue
    assert mappings() < before + 50  # a block of 128 threads has 256


def test_options_are_in_the_keys() -> None:
    """Of the cache of a GPU's code."""
    rng = np.random.default_rng(0)
    for target in machine.DEVICE_TARGETS:
        keys.check_keys(SOFTMAX, "default", target, machine.caps_of(target, False), rng)
    assert len({keys.key(SOFTMAX, target, Options(precision=p)) for target in machine.DEVICE_TARGETS for p in ("default", "strict")}) == 4


# --- kernels -----------------------------------------------------------------------------------------------------------


def test_kernels_are_divided_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = parse_kernel("""kernel @k(%x: in f32[40], %y: out f32[40]) {
  for %i in 0..40 parallel {
    %y[i] = sub(load %x[i], f32 1.0)
  }
}""")
    x = np.arange(40, dtype=np.float32)
    runs = [Run([x, np.zeros(40, np.float32)], [x, x - 1], {})]
    assert check_device(kernel, runs)
    assert not check_device(replace(kernel, body=2 * kernel.body), runs)
    change_source(monkeypatch, " - ", " + ")
    with pytest.raises(Failure, match="result in cuda"):
        check_device(kernel, runs)
