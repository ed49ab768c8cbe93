"""The reference backend behind the interface of compiled models: graphs and programs."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.backends.reference import ReferenceBackend, ReferenceModel
from tilewright.ir.dims import symbol
from tilewright.ir.errors import ArgumentError, UnsupportedError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.loop_parser import parse_program
from tilewright.ir.ops.compute import Elementwise
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32
from tilewright.runtime.executable import Executable

PROGRAM = parse_program("""
kernel @double[N](%x: in f32[N], %y: out f32[N]) { for %i in 0..N parallel { %y[i] = add(load %x[i], load %x[i]) } }
program @twice[N: 1..9](%x: f32[N]) -> (%y: f32[N]) {
  constants 0
  workspace 4*N
  launch @double[N](input 0, output 0)
}
""")


def graph() -> Graph:
    builder = Builder()
    x = builder.add(Param("x", F32, (symbol("N", 1, 9),)))
    return Graph("twice", [x], [builder.add(Elementwise("add"), x, x)], ["y"])


@pytest.mark.parametrize("source", [PROGRAM, graph()], ids=["program", "graph"])
def test_runs_as_an_executable(source: object) -> None:
    run = Executable(ReferenceModel(source))  # type: ignore[arg-type]
    x = np.arange(6, dtype=np.float32)
    assert run(x).tolist() == [0, 2, 4, 6, 8, 10]
    assert run(x=x[::2]).tolist() == [0, 4, 8]
    assert list(run.run({"x": x})) == ["y"] and run.with_threads(4)(x)[5] == 10
    target = np.zeros(6, np.float32)
    assert run(x, out=target) is target and target[5] == 10
    assert run(x, out=x) is x and x[5] == 10
    assert run.plan((3,))[0] == [(3,)] and str(run.inputs[0]) == "x: float32[N]"
    assert run.profile(x).result.shape == (6,)
    for call, words in ((lambda: run(x.astype(np.float64)), "input 'x': found float64"), (lambda: run(x[:0]), "must be N: 1..9"),
                        (lambda: run(x, out=np.zeros(5, np.float32)), "out for output 'y': found float32\\[5\\]"),
                        (lambda: run(x, out=3), "out: found int"), (lambda: run(), "found 0 inputs, expected 1|missing input"),
                        (lambda: run.plan(), "found 0 shapes")):
        with pytest.raises(ArgumentError, match=words):
            call()


def test_a_result_never_is_the_caller_s_input() -> None:
    x = Builder().add(Param("x", F32, (3,)))
    array = np.zeros(3, np.float32)
    result = Executable(ReferenceModel(Graph("same", [x], [x], ["y"])))(array)  # type: ignore[arg-type]
    assert result is not array and not np.may_share_memory(result, array)


def test_makes_no_object_code() -> None:
    backend = ReferenceBackend()
    model = backend.compile(PROGRAM)
    assert backend.name == "reference" and model.kernels == ["double"] and model.static_workspace == -1
    with pytest.raises(UnsupportedError, match="makes no object code"):
        backend.compile(PROGRAM, name_prefix="lib")
    with pytest.raises(UnsupportedError, match="makes no object code"):
        assert model.object_code
