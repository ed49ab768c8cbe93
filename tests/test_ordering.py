"""The order of launches for the least arena: results stay, less memory where it is to be had, limits and their errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_close, assert_identical

import tilewright as tw
from tilewright import cli
from tilewright.backends.cuda.backend import CudaBackend
from tilewright.backends.reference import PLAIN
from tilewright.gpu.compiling import check_shared, source_of
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_program
from tilewright.lowering.lower import Drafted, Placement, lower_program
from tilewright.lowering.memory import assign_offsets
from tilewright.options import Options, read_environment
from tilewright.ordering import _launches, _problem_of, _set_lifetimes, arrange, place_least
from tilewright.pipeline import run_passes

F32 = np.float32
OPTIONS = Options(cache=False)


def weights(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32) / 4


def branches(x: Any) -> Any:
    """Wide values that each become narrow: side by side is the order of the source, one after the other needs less. The last axis is
    reversed in between, so that nothing is computed where it is read."""
    wide = [tw.softmax(np.tile(x * n, (1, 16)), axis=-1) for n in range(1, 6)]
    narrow = [np.cumsum(value, axis=1)[:, ::16] for value in wide]
    total = narrow[0]
    for value in narrow[1:]:
        total = np.tanh(total @ weights(8, 8)) + value
    return total


def chain(x: Any) -> Any:
    """Values that are stored over, that die late, and that are results too."""
    a = np.cumsum(x, axis=0)
    b = tw.softmax(a + x, axis=-1)
    c = np.exp(a) @ weights(8, 8)
    d = np.cumsum(b * 2, axis=1)
    e = tw.softmax(c, axis=0) + d
    return e, np.sort(d, axis=0), (a - e).sum(axis=1), b


def fused(function: Any, *shape: int) -> Graph:
    graph = tw.trace(function, (tw.spec(shape, F32),))
    return run_passes(graph, OPTIONS, PLAIN, read_environment())[0]


def test_less_memory_and_the_same_bits() -> None:
    graph = fused(chain, 6, 8)
    plain, before = lower_program(graph, PLAIN)
    other, after = lower_program(graph, PLAIN, place_least)
    assert isinstance(plain.workspace_bytes, int) and isinstance(other.workspace_bytes, int)
    assert after.order_bound == other.workspace_bytes < plain.workspace_bytes
    assert any(step.facts is not None and step.facts.choice.in_place for step in other.steps)  # type: ignore[union-attr]
    x = weights(6, 8)
    assert_identical(run_program(other, [x], threads=2), run_program(plain, [x], threads=2))
    assert before.order_bound is None


def random_order(made: Drafted, rng: np.random.Generator) -> Placement:
    """Any order that the launches may have, and offsets for it."""
    problem = _problem_of(_launches(made.drafts))
    producer, left, done, order = problem.producer, set(range(len(problem.operators))), set[int](), []
    while left:
        ready = [n for n in sorted(left) if all(producer[t] < 0 or producer[t] in done for t in problem.operators[n].inputs)]
        chosen = ready[int(rng.integers(len(ready)))]
        left.remove(chosen)
        done.add(chosen)
        order.append(made.drafts[int(problem.operators[chosen].name)])
    _set_lifetimes(_launches(order))
    return Placement(order, assign_offsets(made.storages))


@pytest.mark.parametrize("function", [branches, chain])
def test_any_order_that_the_dependences_allow_gives_the_same(function: Any) -> None:
    """Also where launches store over values, which must come behind all that read these."""
    graph, x = fused(function, 6, 8), weights(6, 8)
    expected = run_program(lower_program(graph, PLAIN)[0], [x], threads=2)
    assert_close(expected, evaluate_graph(tw.trace(function, (tw.spec((6, 8), F32),)), [x]))
    rng, seen = np.random.default_rng(0), set()
    for _ in range(6):
        program = lower_program(graph, PLAIN, lambda made: random_order(made, rng))[0]
        seen.add(tuple(step.kernel.name for step in program.steps))  # type: ignore[union-attr]
        assert_identical(run_program(program, [x], threads=2), expected)
    assert len(seen) > 1


def test_a_tie_keeps_the_order() -> None:
    graph = fused(lambda x: (np.exp(x @ weights(8, 8)) @ weights(8, 8)) + 1, 6, 8)
    kernels = [[step.kernel.name for step in lower_program(graph, PLAIN, *how)[0].steps] for how in ((), (place_least,))]  # type: ignore[union-attr]
    assert kernels[0] == kernels[1]


def test_bound_is_of_every_order() -> None:
    """No random order has a smaller arena, nor more than is alive at once in the one that was found."""
    graph, made = fused(branches, 6, 8), []
    lower_program(graph, PLAIN, lambda drafted: made.append(drafted) or place_least(drafted))  # type: ignore[func-returns-value]
    found = arrange(made[0].drafts, 1 << 40)
    assert found is not None and found.largest[0] <= found.bound <= found.peak
    rng = np.random.default_rng(1)
    for _ in range(10):
        assert int(random_order(made[0], rng).arena.size) >= found.bound  # type: ignore[arg-type]


def test_control_flow_and_open_sizes_stay() -> None:
    for graph in (tw.trace(lambda x: tw.while_loop(lambda i: i[0, 0] < 9, lambda i: i + 1, x), (tw.spec((2, 2), F32),)),
                  tw.trace(lambda x: np.exp(x @ weights(4, 4)) @ weights(4, 4) + 1, (tw.spec(("n", 4), F32),))):
        executable = tw.compile(graph, options=OPTIONS)
        assert executable.metadata["workspace_order_bound"] is None
        np.testing.assert_allclose(executable(np.ones((2, 4 if graph.symbols else 2), F32)),
                                   evaluate_graph(graph, [np.ones((2, 4 if graph.symbols else 2), F32)])[0], rtol=1e-5)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_limits() -> None:
    graph = tw.trace(branches, (tw.spec((6, 8), F32),))
    size = tw.compile(graph, options=OPTIONS).metadata["workspace"]
    assert tw.compile(graph, options=Options(cache=False, max_memory=size)).metadata["workspace"] == size
    with pytest.raises(CompileError, match=r"kernel \w+ alone needs \d+ bytes, but max_memory is 100") as caught:
        tw.compile(graph, options=Options(cache=False, max_memory=100))
    assert "its operands and results between kernels" in caught.value.hint
    with pytest.raises(CompileError, match="needs|alive at once|found no order"):
        tw.compile(graph, options=Options(cache=False, max_memory=size - 1))
    with pytest.raises(CompileError, match="the memory of a call depends on n, so that no limit can be promised"):
        tw.compile(tw.trace(lambda x: np.exp(x @ weights(4, 4)) @ weights(4, 4), (tw.spec(("n", 4), F32),)),
                   options=Options(cache=False, max_memory=1 << 30))
    with pytest.raises(CompileError, match="max_memory must be 0 or more"):
        Options(max_memory=-1)
    assert "max_memory" not in Options().code_key() and "max_memory=7" in Options(max_memory=7).code_key()


def test_a_limit_that_no_order_keeps_names_what_is_alive() -> None:
    """What crosses a kernel in every order, else where the best of all orders is fullest."""
    def skip(x: Any) -> Any:
        early = np.cumsum(x, axis=0)
        return np.sort(np.cumsum(np.tile(early, (1, 16)), axis=1)[:, ::16]) + early

    for function, proof in ((skip, r"kernel \w+ has cumulative.0 192 beside its operands and results, whatever comes first"),
                            (chain, r"all orders were compared; the best is fullest at kernel \w+, with cumulative.0 192, fusion.0 192")):
        made: list[Drafted] = []
        lower_program(fused(function, 6, 8), PLAIN, lambda drafted: made.append(drafted) or place_least(drafted))  # type: ignore[func-returns-value]
        found = arrange(made[0].drafts, 1 << 40)
        assert found is not None and found.largest[0] < found.bound
        with pytest.raises(CompileError, match=rf"in every order {found.bound} bytes are alive at once") as caught:
            place_least(made[0], found.bound - 1)
        assert re.match(proof, caught.value.hint) and f"give at least {found.bound}" in caught.value.hint


def test_gpus() -> None:
    """The same order, limits and errors."""
    graph = tw.trace(chain, (tw.spec((6, 8), F32),))
    environment = read_environment()
    program, _ = source_of(graph, "cuda:sm_80", OPTIONS, environment)
    caps = CudaBackend("sm_80").capabilities
    plain, _ = lower_program(run_passes(graph, OPTIONS, caps, environment)[0], caps)
    size = program.workspace_bytes
    assert isinstance(size, int) and isinstance(plain.workspace_bytes, int) and size < plain.workspace_bytes
    x = weights(6, 8)
    assert_close(run_program(program, [x]), evaluate_graph(graph, [x]))
    assert source_of(graph, "cuda:sm_80", Options(max_memory=size), environment)[0].workspace_bytes == size
    for limit, words in ((size - 1, "alone needs|alive at once|found no order"), (100, r"kernel \w+ alone needs \d+ bytes, but max_memory is 100")):
        with pytest.raises(CompileError, match=words):
            tw.compile(graph, target="cuda:sm_90", options=Options(cache=False, max_memory=limit))
    with pytest.raises(CompileError, match="the memory of a call depends on n, so that no limit can be promised"):
        tw.compile(tw.trace(lambda x: np.cumsum(x, axis=0) @ weights(4, 4) + np.sort(x), (tw.spec(("n", 4), F32),)),
                   target="cuda:sm_90", options=Options(cache=False, max_memory=1 << 30))


def test_shared_memory_of_an_architecture() -> None:
    """A kernel made for one architecture is not compiled for another one whose blocks have less room."""
    program = parse_program("""\
kernel @wide(%y: out f32[1]) {
  alloc %s: f32[30000] shared
}

program @main() -> (%y: f32[1]) {
  constants 0
  workspace 0
  launch @wide(output 0)
}
""")
    check_shared(program, ["sm_80", "sm_90"])
    with pytest.raises(CompileError, match="a block of kernel wide needs 120064 bytes of shared memory, but one of sm_86 has 101376"):
        check_shared(program, ["sm_80", "sm_86"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.ir"
    tw.save_text(tw.trace(branches, (tw.spec((6, 8), F32),)), model)
    arguments = ["compile", str(model), "-o", str(tmp_path / "m.so"), "--no-cache", "--max-memory"]
    assert cli.run([*arguments, "1KiB"]) == 1
    assert "alone needs" in capsys.readouterr().err
    source = ["compile", str(model), "-o", str(tmp_path / "m.cu"), "--target", "cuda:sm_90", "--emit", "source", "--max-memory", "1KiB"]
    assert cli.run(source) == 1 and "alone needs" in capsys.readouterr().err
    assert cli.run([*arguments, "1MiB"]) == 0
    assert cli.run([*arguments, "much"]) == 2
    assert cli.run(["explain", str(model)]) == 0
    assert "proven least" in capsys.readouterr().out
