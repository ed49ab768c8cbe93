"""The counts of `tests/perf/expected.csv`: kernels, launches, memory and machine code of the models and the NumPy programs."""

from __future__ import annotations

import llvmlite
import pytest

from tests.perf import structure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, str]]:
    return structure.read_expected()


def test_every_program_is_counted(expected: dict[str, dict[str, str]]) -> None:
    assert list(expected) == structure.names()


@pytest.mark.parametrize("name", structure.names())
def test_structure(name: str, expected: dict[str, dict[str, str]]) -> None:
    """Any difference, for better or worse, is recorded by `python -m tests.perf.structure --write`."""
    graph = next(graph for found, graph in structure.graphs([name]) if found == name)
    row = structure.measure(name, graph)
    same_llvm = llvmlite.__version__.startswith(structure.LLVMLITE)
    fields = [f for f in row.__struct_fields__ if same_llvm or f not in structure.OF_LLVM]
    assert {f: str(getattr(row, f)) for f in fields} == {f: expected[name][f] for f in fields}


def test_loops_are_told_apart() -> None:
    assembly = """
.outer:
\tmovl\t$1, %eax
.inner:
\tvmovaps\t(%rdi), %ymm1
\tvfmadd231ps\t32(%rsp), %ymm1, %ymm0
\tjne\t.inner
\tjne\t.outer
.scalar:
\tvaddss\t%xmm0, %xmm1, %xmm2
\tjb\t.scalar
"""
    assert structure.count_loops(assembly) == (1, 3, 1, 1)
