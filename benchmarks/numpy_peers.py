"""JAX and numba on the functions of `numpy_programs.py`, each in a process of its own that `numpy_functions.py` drives.

What it does: reads one JSON object a line from stdin, `{"function", "dtype", "small", "seconds", "clock"}`, and answers with
one a line: the median of the calls in seconds, the seconds to the first result and the largest error against NumPy, or
`{"failed": why}` where the peer does not take the text. numba compiles the text as it stands (`njit`, every function of the
file). JAX has 64-bit types, and the text with `x[i] = v` written `x = x.at[i].set(v)`, as its arrays cannot be changed.

Assumes nothing of the environment but NumPy and the peer, so that it can have an interpreter of its own: what of ours the
programs import is a stand-in here. Guarantees one thread, on one core, where the driver says so; results lie in memory when a
clock stops, and are of NumPy's dtypes, or the answer is a failure.

    /path/to/venv/bin/python benchmarks/numpy_peers.py jax 1
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

PEERS = ("jax", "numba")
SETS = 2
LEAST_CALLS = 5
WARM_CALLS = 2
CLOCKS: dict[str, Callable[[], float]] = {"elapsed": time.perf_counter, "processor": time.process_time}

Function = Callable[..., Any]
Make = Callable[[str], Function]  # the function of that name as the peer runs it; it returns when its results lie in memory


def import_programs() -> ModuleType:
    """The module of the programs, without our package."""
    sys.modules.setdefault("tilewright", ModuleType("tilewright"))
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import numpy_programs

    numpy_programs.tw = SimpleNamespace(while_loop=while_loop)  # type: ignore[assignment]  # all that the texts use of it
    return numpy_programs


def while_loop(condition: Function, body: Function, state: Any) -> Any:
    while condition(state):
        state = body(state)
    return state


class FunctionalUpdates(ast.NodeTransformer):
    """`x[i] = v` and `x[i] += v` in the form that JAX has for them."""

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        target = node.targets[0]
        return _updated(target, "set", node.value) if isinstance(target, ast.Subscript) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        names = {ast.Add: "add", ast.Mult: "multiply"}
        target, name = node.target, names.get(type(node.op))
        return _updated(target, name, node.value) if isinstance(target, ast.Subscript) and name is not None else node


def _updated(target: ast.Subscript, name: str, value: ast.expr) -> ast.stmt:
    changed = ast.parse(f"x = x.at[0].{name}(0)").body[0]
    assert isinstance(changed, ast.Assign) and isinstance(changed.value, ast.Call)
    call = changed.value
    assert isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Subscript)
    at = call.func.value
    assert isinstance(at.value, ast.Attribute)
    changed.targets = [ast.Name(ast.unparse(target.value), ast.Store())]
    at.value.value, at.slice, call.args = target.value, target.slice, [value]
    return changed


def jax_functions(programs: ModuleType, threads: int) -> Make:
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    class Numpy:
        """NumPy's names as JAX has them, less arguments that it does not know (all of its sorting is stable)."""

        def __getattr__(self, name: str) -> Any:
            return getattr(jnp, name)

        def arange(self, *arguments: Any, like: Any = None, **named: Any) -> Any:
            return jnp.arange(*arguments, **named)

        def argsort(self, x: Any, axis: int = -1, kind: str = "stable") -> Any:
            return jnp.argsort(x, axis)

    tree = ast.fix_missing_locations(FunctionalUpdates().visit(ast.parse(inspect.getsource(programs))))
    changed = ModuleType("numpy_programs_for_jax")
    sys.modules[changed.__name__] = changed
    exec(compile(tree, programs.__file__ or "", "exec"), changed.__dict__)
    changed.__dict__.update(np=Numpy(), tw=SimpleNamespace(while_loop=jax.lax.while_loop))

    def make(name: str) -> Function:
        compiled = jax.jit(getattr(changed, name))
        return lambda *inputs: jax.block_until_ready(compiled(*inputs))

    return make


def numba_functions(programs: ModuleType, threads: int) -> Make:
    import numba

    for name, value in list(vars(programs).items()):
        if isinstance(value, FunctionType) and value.__module__ == programs.__name__ and not name.startswith("_"):
            setattr(programs, name, numba.njit(value))
    return lambda name: getattr(programs, name)  # type: ignore[no-any-return]  # a module


def leaves(result: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, result if isinstance(result, (tuple, list)) else (result,)))


def largest_error(found: Any, expected: Any) -> float:
    """Relative to the largest value of each result; for integers the share of elements that differ."""
    error = 0.0
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            raise ValueError(f"found {ours.dtype}{list(ours.shape)}, expected {theirs.dtype}{list(theirs.shape)}")
        if ours.dtype.kind in "biu":
            error = max(error, float((ours != theirs).mean()))
        else:
            scale = max(float(np.abs(theirs).max()), float(np.finfo(theirs.dtype).tiny))
            error = max(error, float(np.abs(ours.astype(np.float64) - theirs).max()) / scale)
    return error


def call_times(function: Function, sets: Sequence[Sequence[Any]], seconds: float, clock: Callable[[], float]) -> list[float]:
    for number in range(WARM_CALLS):
        function(*sets[number % len(sets)])
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < LEAST_CALLS:
        inputs = sets[len(taken) % len(sets)]
        function(*inputs)
        start = clock()
        function(*inputs)
        taken.append(clock() - start)
    return taken


def measure(request: dict[str, Any], plain: dict[str, Any], make: Make, place: Function) -> dict[str, Any]:
    program = plain[request["function"]]
    sets = [program.inputs(request["dtype"], request["small"], seed) for seed in range(SETS)]
    expected = program.function(*sets[0])
    function = make(program.name)
    there = [tuple(map(place, inputs)) for inputs in sets]
    start = time.perf_counter()
    error = largest_error(function(*there[0]), expected)
    first = time.perf_counter() - start
    taken = call_times(function, there, request["seconds"], CLOCKS[request["clock"]])
    return {"seconds": median(taken), "calls": len(taken), "first_result_seconds": first, "error": error}


def main() -> None:
    peer, threads = sys.argv[1], int(sys.argv[2])
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints is no answer
    if threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    programs = import_programs()
    plain = {program.name: program for program in programs.PROGRAMS}  # bound to NumPy's functions from here on
    if peer == "jax":
        make = jax_functions(programs, threads)
        from jax import device_put as place
    else:
        make, place = numba_functions(programs, threads), np.asarray
    for line in sys.stdin:
        try:
            answer = measure(json.loads(line), plain, make, place)
        except Exception as error:  # a text that the peer does not take is a result, not the end of the table
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
        print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    main()
