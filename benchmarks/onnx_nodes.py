"""The node tests of the onnx package: how many of its cases import, compile and compute what the standard says.

    python -m benchmarks.onnx_nodes [--backend reference|llvm] [--only PATTERN] [--refused] [--write]

Every case is run as a user would run it: the model's inputs stay inputs, the whole compiler works on it without a cache, and
a pass needs the dtype, the shape and the values of every output, NaN equal to NaN. What becomes of a case is one of

    pass      all outputs are as the standard says
    refused   an UnsupportedError says why, before anything ran
    wrong     an output differs
    crash     any other exception, or the death of the process

Assumes the onnx package; its cases are made in memory (`onnx.backend.test.case.node`), and the kinds that it ships as files are
read from there. The random cases (test_bernoulli*) are left out: their expected values are one draw.
Guarantees: a case that kills its process or hangs is a crash of that case alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "tests" / "onnx_core_cases.txt"
DOCUMENT = ROOT / "docs" / "onnx.md"
RANDOM = re.compile(r"test_bernoulli")
SHIPPED = ("simple", "pytorch-converted", "pytorch-operator")
STATES = ("pass", "refused", "wrong", "crash")
# Units in the last place that a bfloat16 output may be off, where a relative 0.001 would ask for the very bits. The expected outputs
# of Attention divide by a sum of exponentials that was summed up in bfloat16, where a sum of ones ends at 256; ours is summed up in
# float32 and rounded once, and all else is the same (with such a sum the expected outputs are ours, bit for bit). What that sum is
# off goes through a product and two roundings. Measured against float64 ours are nearer: see docs/onnx.md.
BFLOAT16_PLACES = 2
SECONDS = 120  # of one case, before it counts as a hang


@dataclass(frozen=True)
class Case:
    """A model and what it gives for some inputs."""

    name: str
    kind: str
    model: Any
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case, and why."""

    name: str
    kind: str
    state: str
    reason: str
    seconds: float


# --- the cases -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Case]:
    """The generated cases by name, less the random ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return {c.name: Case(c.name, "node", c.model, [(_plain(i), _plain(o)) for i, o in c.data_sets], c.rtol, c.atol)
            for c in found if not RANDOM.match(c.name)}


def _plain(values: Sequence[Any]) -> list[Any]:
    """The values with arrays in place of messages."""
    from onnx import TensorProto, numpy_helper

    return [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in values]


@lru_cache(maxsize=1)
def shipped_cases() -> dict[str, Case]:
    """The cases that lie in the package as files, by `kind/name`."""
    from onnx.backend.test.loader import load_model_tests

    found = (c for kind in SHIPPED for c in load_model_tests(kind=kind))
    return {f"{c.kind}/{c.name}": _read_case(c) for c in found}


def _read_case(case: Any) -> Case:
    import onnx

    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    data = []
    for place in sorted(folder.glob("test_data_set_*")):
        sides = [[_read_value(place / f"{side}_{i}.pb", value.type) for i, value in enumerate(values)]
                 for side, values in (("input", _fed(model)), ("output", model.graph.output))]
        data.append((sides[0], sides[1]))
    return Case(f"{case.kind}/{case.name}", case.kind, model, data, case.rtol, case.atol)


def _fed(model: Any) -> list[Any]:
    constants = {t.name for t in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _read_value(path: Path, type: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    data = path.read_bytes()
    if type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def all_cases() -> dict[str, Case]:
    return {**node_cases(), **shipped_cases()}


@lru_cache(maxsize=1)
def core_names() -> frozenset[str]:
    return frozenset(CORE.read_text().split())


# --- one case --------------------------------------------------------------------------------------------------------


def run_case(case: Case) -> Outcome:
    """Imports, compiles and runs one case on the backend of the environment."""
    import tilewright as tw

    begin = time.process_time()
    state, reason = "pass", ""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            graph = tw.from_onnx(case.model.SerializeToString(), dims=bindings(case))
            executable = tw.compile(graph, options=tw.Options(cache=False, threads=1))
            for inputs, expected in case.data:
                made = executable(*flat(inputs))
                results = regrouped(made if isinstance(made, tuple) else (made,), expected)
                reason = difference(results, expected, case.rtol, case.atol)
                if reason:
                    state = "wrong"
                    break
    except tw.UnsupportedError as error:
        state, reason = "refused", first_line(error)
    except Exception as error:
        state, reason = "crash", f"{type(error).__name__}: {first_line(error)}"
    return Outcome(case.name, case.kind, state, reason, time.process_time() - begin)


def bindings(case: Case) -> dict[str, Any]:
    """What a compiled program must be told of its inputs: how many elements a sequence has, whether an optional value is there, how
    many axes there are where the model does not say, and that an open size may be 0."""
    found: dict[str, Any] = {}
    for value, given in zip(_fed(case.model), case.data[0][0]):
        type = value.type
        if type.HasField("optional_type"):
            found[f"{value.name}_present"] = int(given is not None)
            type = type.optional_type.elem_type
        if isinstance(given, list):
            found[f"{value.name}_length"] = len(given)
            type = type.sequence_type.elem_type
        elements = [(f"{value.name}_{i}", x) for i, x in enumerate(given)] if isinstance(given, list) else [(value.name, given)]
        if type.HasField("tensor_type") and given is not None:
            for name, array in elements:
                found |= _open_sizes(name, type.tensor_type, np.asarray(array))
    return found


def _open_sizes(name: str, type: Any, array: Any) -> dict[str, Any]:
    """What must be said of the sizes of a tensor: how many there are, and which may be 0."""
    import tilewright as tw
    from tilewright.frontends.onnx_dims import identifier

    if not type.HasField("shape"):
        return {f"{name}_rank": array.ndim}
    found = {dim.dim_param or f"{name}_{axis}": size for axis, (dim, size) in enumerate(zip(type.shape.dim, array.shape))
             if not dim.HasField("dim_value")}
    return {key: tw.symbol(identifier(key), lower=0) for key, size in found.items() if size == 0}


def flat(inputs: Sequence[Any]) -> list[Any]:
    """The arrays of the inputs, those in sequences one by one."""
    return [x for value in inputs if value is not None for x in (value if isinstance(value, list) else [value])]


def regrouped(results: Sequence[Any], expected: Sequence[Any]) -> list[Any]:
    """The results with as many of them to a sequence as are expected there, which is all that can be told of them; else as they are."""
    if len(results) != len(flat(expected)):
        return list(results)
    rest = iter(results)
    return [[next(rest) for _ in value] if isinstance(value, list) else next(rest) for value in expected]


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def difference(found: Sequence[Any], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """How the outputs differ from what they should be; empty where they do not."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, expected {len(expected)}"
    for place, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        told = _difference(mine, theirs, rtol, atol)
        if told:
            return f"output {place}: {told}"
    return ""


def _difference(mine: Any, theirs: Any, rtol: float, atol: float) -> str:
    if mine is None or theirs is None:
        return "" if mine is theirs else f"{type(mine).__name__}, expected {type(theirs).__name__}"
    if isinstance(theirs, list):
        if not isinstance(mine, (list, tuple)) or len(mine) != len(theirs):
            return f"not a sequence of {len(theirs)}"
        return next(filter(None, (_difference(m, t, rtol, atol) for m, t in zip(mine, theirs))), "")
    theirs, mine = np.asarray(theirs), np.asarray(mine)
    if mine.dtype != theirs.dtype or mine.shape != theirs.shape:
        return f"{mine.dtype}{list(mine.shape)}, expected {theirs.dtype}{list(theirs.shape)}"
    if theirs.dtype.kind in "OUS":
        return "" if np.array_equal(mine, theirs) else "strings differ"
    near = _places_apart(mine, theirs) <= BFLOAT16_PLACES if theirs.dtype.name == "bfloat16" else np.zeros(theirs.shape, bool)
    if theirs.dtype.kind == "V":  # the dtypes of ml_dtypes
        mine, theirs = mine.astype(np.float32), theirs.astype(np.float32)
    close = near | np.isclose(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    place = tuple(int(i) for i in np.argwhere(~close)[0])
    return f"{int((~close).sum())} of {close.size} elements differ, at {list(place)}: {mine[place]}, expected {theirs[place]}"


def _places_apart(x: Any, y: Any) -> Any:
    """How many bfloat16 numbers lie between two of them, and one; far more where one is no number."""
    places = []
    for values in (x, y):
        bits = values.view(np.int16).astype(np.int64)
        places.append(np.where(bits < 0, -(bits & 0x7FFF), bits))
    finite = np.isfinite(x.astype(np.float32)) & np.isfinite(y.astype(np.float32))
    return np.where(finite, np.abs(places[0] - places[1]), 1 << 20)


# --- many cases ------------------------------------------------------------------------------------------------------


def run_cases(cases: Sequence[Case], workers: int = 2) -> Iterator[Outcome]:
    """The outcomes as they come, from processes that share the cases in memory."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(cases))
    busy: dict[Connection, tuple[BaseProcess, Case | None, float]] = {}
    while waiting or busy:
        while waiting and len(busy) < workers:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, {c.name: c for c in cases}), daemon=True)
            process.start()
            there.close()
            busy[here] = (process, None, time.monotonic())
            _hand_out(here, busy, waiting)
        for ready in wait(list(busy), timeout=1.0):
            assert isinstance(ready, Connection)
            process, case, _ = busy[ready]
            try:
                yield Outcome(*ready.recv())
                _hand_out(ready, busy, waiting)
            except EOFError:
                process.join()
                del busy[ready]
                if case is not None:
                    yield Outcome(case.name, case.kind, "crash", f"the process ended with {process.exitcode}", 0.0)
        for process, _, since in list(busy.values()):
            if time.monotonic() - since > SECONDS:
                process.kill()


def _hand_out(connection: Connection, busy: dict[Connection, tuple[BaseProcess, Case | None, float]], waiting: list[Case]) -> None:
    """The next case for a worker, or its end."""
    process = busy[connection][0]
    if waiting:
        case = waiting.pop()
        busy[connection] = (process, case, time.monotonic())
        connection.send(case.name)
    else:
        connection.send(None)
        process.join()
        del busy[connection]


def _work(connection: Connection, cases: dict[str, Case]) -> None:
    while (name := connection.recv()) is not None:
        outcome = run_case(cases[name])
        connection.send((outcome.name, outcome.kind, outcome.state, outcome.reason, outcome.seconds))
    os._exit(0)


# --- the report ------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> str:
    """Passed, refused, wrong and crashed, for all node cases, the core and the kinds that are shipped."""
    core = core_names()
    rows = [("node", [o for o in outcomes if o.kind == "node"]), ("core", [o for o in outcomes if o.name in core]),
            *((kind, [o for o in outcomes if o.kind == kind]) for kind in SHIPPED)]
    lines = [f"{'':20}{'cases':>7}{'passed':>9}" + "".join(f"{s:>9}" for s in STATES)]
    for title, found in rows:
        if found:
            count = Counter(o.state for o in found)
            share = f"{100 * count['pass'] / len(found):.1f} %"
            lines.append(f"{title:20}{len(found):7}{share:>9}" + "".join(f"{count[s]:9}" for s in STATES))
    return "\n".join(lines)


def plain_reason(reason: str) -> str:
    """The reason without what differs from case to case."""
    return re.sub(r"^(model: )(\d+ operators? (is|are) not supported: )?", lambda found: "not supported: " if found[2] else "", reason)


def refusals(outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """What is refused, by reason; the most frequent first."""
    grouped: dict[str, list[str]] = {}
    for o in outcomes:
        if o.state == "refused":
            grouped.setdefault(o.reason, []).append(o.name)
    return sorted(grouped.items(), key=lambda entry: (-len(entry[1]), entry[0]))


BEGIN, END = "<!-- generated by python -m benchmarks.onnx_nodes --write -->", "<!-- end of what is generated -->"


def document(outcomes: Sequence[Outcome]) -> str:
    """The generated part of docs/onnx.md: the table, and what is refused and why."""
    lines = [BEGIN, "", "```", table(outcomes), "```", ""]
    for reason, names in refusals(outcomes):
        lines += [f"- {plain_reason(reason)} ({len(names)})", "  " + ", ".join(f"`{name}`" for name in names)]
    return "\n".join([*lines, "", END])


def documented() -> frozenset[str]:
    """The cases that docs/onnx.md lists as refused."""
    return frozenset(re.findall(r"`([\w/.-]+)`", DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]))


def write_document(outcomes: Sequence[Outcome]) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(before + document(outcomes) + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("reference", "llvm"), default="llvm")
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument("--refused", action="store_true", help="list what is refused, by reason")
    parser.add_argument("--names", action="store_true", help="also name the cases of each reason")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the result into docs/onnx.md")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    arguments = parser.parse_args()
    os.environ["TILEWRIGHT_BACKEND"] = arguments.backend
    import tilewright as tw  # imported here, so that the workers share it

    assert tw.Options
    cases = [c for c in all_cases().values() if re.search(arguments.only, c.name)]
    outcomes = []
    for o in run_cases(cases, arguments.workers):
        outcomes.append(o)
        if o.state in ("wrong", "crash"):
            print(f"{o.state}: {o.name}: {o.reason}", flush=True)
    outcomes.sort(key=lambda o: o.name)
    print(table(outcomes))
    print(f"{sum(o.seconds for o in outcomes):.0f} s of processor time")
    if arguments.refused:
        for reason, names in refusals(outcomes):
            print(f"{len(names):5}  {reason}" + (f"\n       {', '.join(names)}" if arguments.names else ""))
    if arguments.write:
        write_document(outcomes)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(o) for o in outcomes], indent=0))


if __name__ == "__main__":
    main()
