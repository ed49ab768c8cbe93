"""What `tilewright check` says of an ONNX model: whether it can be compiled, how each operator would run, and what that takes.

The front end surveys the file (`frontends/onnx_survey.py`). Where nothing is refused, passes and lowering choose kernels and
places in memory as a compilation does, but no code is generated: memory is the plan's, time is the prediction of the launches
(`cost.py`), and what is slow is read off what was chosen for them, not from a list of operators.

Guarantees: the model is neither compiled nor run; all that is refused is in the report, not just the first of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from .build import capabilities, check_memory, describe, lower_checked, resolved, sample_shapes, target_text
from .collector import collector_paused
from .driver import machine_rates
from .explaining import Explanation, LaunchExplanation, explanation_of
from .frontends.onnx_survey import REFUSED_NODE, SUPPORTED, NodeSurvey, Survey, survey
from .ir.dims import Dim, bounds, evaluate
from .ir.errors import CompileError
from .ir.graph import Graph
from .ir.verify import verify
from .options import Options, read_environment
from .pipeline import run_passes
from .runtime import _native

ONNX_OP = re.compile(r"\((\w+)\)$")     # at the end of a source's name
LEAST_WORK = 1 << 13                    # elements computed or moved, below which a launch is fast however it is done
MANY_OPERATIONS = 64                    # an element, where no register tile takes them together
CELLS = 4                               # bytes: moved memory counted in elements of float32
LEAST_SHARE = 0.05                      # of an operator's time, below which a reason is left out
MOST_LINES = 20                         # of a list, in text


class OperatorRow(Struct, frozen=True):
    """All nodes of one operator. `share`: of the predicted time, None where nothing was predicted; `slow`: why kernels of it do
    not run at full speed, and for which share of its time; `refused`, `unchecked`: so many of the nodes."""

    op: str
    nodes: int
    dtypes: tuple[str, ...]
    share: float | None
    slow: dict[str, float]
    refused: int
    unchecked: int


class Estimate(Struct, frozen=True):
    """What a call takes at `sizes`, in bytes and seconds (None: no prediction for this target on this machine)."""

    sizes: dict[str, int]
    weights: int
    arena: int
    arrays: int
    predicted: float | None
    limit: float | None
    threads: int
    launches: int
    notes: tuple[str, ...] = ()


class Check(Struct, frozen=True):
    """A file's report. `problems`: what is refused of the file as a whole; `estimate`: None where it cannot be compiled."""

    survey: Survey
    rows: tuple[OperatorRow, ...]
    problems: tuple[str, ...]
    estimate: Estimate | None

    @property
    def compiles(self) -> bool:
        return self.estimate is not None

    def to_data(self) -> dict[str, Any]:
        found = self.survey
        estimate = None if self.estimate is None else {field: getattr(self.estimate, field) for field in self.estimate.__struct_fields__}
        return {
            "name": found.label, "compiles": self.compiles, "opsets": {domain or "ai.onnx": v for domain, v in found.opsets.items()},
            "inputs": list(found.inputs), "outputs": list(found.outputs), "dims": open_sizes(found),
            "nodes": len(found.nodes), "unneeded_nodes": found.unneeded,
            "operators": [{field: getattr(row, field) for field in row.__struct_fields__} for row in self.rows],
            "refused": [_node_data(node) for node in found.refused], "not_checked": [_node_data(node) for node in found.unchecked],
            "problems": list(self.problems), "estimate": estimate,
        }


def _node_data(node: NodeSurvey) -> dict[str, str]:
    return {"node": node.name, "inside": node.path, "operator": node.op, "reason": node.reason}


@collector_paused()
def check(path: Path, dims: Mapping[str, Any] | None, sizes: Mapping[str, int], target: str, options: Options) -> Check:
    """The report on a file. CompileError where it is no model; ArgumentError for sizes that it does not have."""
    runs_here = target_text(target).startswith("host ")
    found = survey(path, dims)
    problems = list(found.problems)
    if found.graph is None:
        return Check(found, operator_rows(found, None), tuple(problems), None)
    try:
        metadata, workspace = _planned(found.graph, target, options)
    except CompileError as error:
        return Check(found, operator_rows(found, None), (*problems, error.message), None)
    rates = machine_rates(options.threads or _native.default_threads()) if runs_here else None
    explained = explanation_of(metadata, (), sizes, rates, None)
    estimate = estimate_of(found.graph, metadata, workspace, explained)
    return Check(found, operator_rows(found, explained), tuple(problems), estimate)


def _planned(graph: Graph, target: str, options: Options) -> tuple[dict[str, Any], Any]:
    """The description of the program that a compilation would generate code for, and its workspace."""
    verify(graph)
    caps = capabilities(target)
    optimized, _ = run_passes(graph, options, caps, read_environment())
    program, statistics = lower_checked(optimized, caps)
    check_memory(program)
    return {**describe(program, statistics, resolved(target)), "sample_shapes": sample_shapes(graph)}, program.workspace_bytes


def estimate_of(graph: Graph, metadata: Mapping[str, Any], workspace: Any, explained: Explanation) -> Estimate:
    sizes = explained.sizes
    border = (*graph.params, *graph.results)
    notes = []
    if any(buffer.elements <= 0 for launch in explained.launches for buffer in launch.facts.buffers):
        notes.append("at these sizes some arrays are empty, as far as the model can do with them at all: --size gives larger ones")
    if any(launch.facts.rounds is None for launch in explained.launches):
        notes.append("what runs as often as data decides (If, Loop) is counted once")
    return Estimate(sizes, metadata["constants_bytes"], evaluate(workspace, sizes),
                    sum(evaluate(node.tensor.elements, sizes) * node.dtype.bytes for node in border), explained.predicted, explained.limit,
                    explained.rates.threads if explained.rates is not None else 0, len(explained.launches), tuple(notes))


# --- operators -------------------------------------------------------------------------------------------------------


def operator_rows(found: Survey, explained: Explanation | None) -> tuple[OperatorRow, ...]:
    """The table, the operators that take most of the time first, else the most frequent ones."""
    seconds, slow = times_of(explained)
    total = sum(seconds.values())
    rows = []
    for op, count in Counter(node.op for node in found.nodes).most_common():
        nodes = [node for node in found.nodes if node.op == op]
        plain = op.rpartition("::")[2]
        own = seconds.get(plain, 0.0)
        reasons = {reason: taken / own for reason, taken in slow.get(plain, {}).items() if taken >= LEAST_SHARE * own}
        statuses = Counter(node.status for node in nodes)
        refused = statuses[REFUSED_NODE]
        rows.append(OperatorRow(op, count, tuple(dict.fromkeys(dtype for node in nodes for dtype in node.dtypes)),
                                own / total if total else None, reasons, refused, count - refused - statuses[SUPPORTED]))
    return tuple(sorted(rows, key=lambda row: (-row.refused, -(row.share or 0.0))))


def times_of(explained: Explanation | None) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What each operator takes of a call, and of that what is slow, by reasons: predicted seconds, or work where nothing is
    predicted."""
    seconds: dict[str, float] = {}
    slow: dict[str, dict[str, float]] = {}
    for launch in () if explained is None else explained.launches:
        reasons = slow_reasons(launch)
        taken = launch.runs * (_work(launch) if launch.forecast is None else launch.forecast.predicted)
        for source in launch.facts.sources:
            op = ONNX_OP.search(source.name)
            name = op[1] if op is not None else source.op
            seconds[name] = seconds.get(name, 0.0) + taken * source.share
            for reason in reasons:
                of_operator = slow.setdefault(name, {})
                of_operator[reason] = of_operator.get(reason, 0.0) + taken * source.share
    return seconds, slow


def _work(launch: LaunchExplanation) -> int:
    """Elements that are computed or moved."""
    return max(launch.facts.slots, (launch.facts.read + launch.facts.written) // CELLS)


def slow_reasons(launch: LaunchExplanation) -> tuple[str, ...]:
    """Why a launch does not run at the speed of vectors on all threads, from what was chosen for it."""
    facts = launch.facts
    found = []
    if facts.rounds is not None and facts.rounds > 1:
        found.append(f"one round of a loop after the other ({facts.rounds})")
    if _work(launch) < LEAST_WORK:
        return tuple(found)
    if not facts.lanes:
        found.append("one element at a time")
    elif facts.bits == 64 and facts.slots * CELLS >= _work(launch):
        found.append("64 bits wide")
    if max(facts.parallel, default=1) == 1:
        found.append("on one thread")
    elements = max((buffer.elements for buffer in facts.buffers), default=1)
    if facts.tile is None and not facts.registers and facts.slots >= MANY_OPERATIONS * max(elements, 1):
        found.append(f"{facts.slots // max(elements, 1)} operations an element ({facts.strategy})")
    found += [f"left out: {step}" for step in facts.refused]
    return tuple(found)


# --- text ------------------------------------------------------------------------------------------------------------


def open_sizes(found: Survey) -> dict[str, dict[str, Any]]:
    """The sizes that stay open, by the file's names: what --size calls them, and their bounds."""
    sizes = {}
    for name, size in found.dims.items():
        if isinstance(size, Dim):
            least, most = bounds(size)
            sizes[name] = {"symbol": str(size), "least": int(least), "most": int(most) if most != float("inf") else None}
    return sizes


def check_lines(report: Check) -> list[str]:
    found = report.survey
    opsets = ", ".join(f"{domain} {version}".strip() for domain, version in sorted(found.opsets.items()))
    unneeded = f" and {found.unneeded} that no output needs" if found.unneeded else ""
    lines = [f"{found.label}: {'can' if report.compiles else 'cannot'} be compiled: {len(found.nodes)} nodes{unneeded}, opset {opsets}",
             "  inputs", *(f"    {text}" for text in found.inputs)]
    sizes = open_sizes(found)
    if sizes:
        lines += ["  sizes left open", *(_size_line(name, facts) for name, facts in sizes.items())]
    lines += ["  operators", *(f"    {line}" for line in _table(report.rows))]
    if found.refused:
        lines += ["  refused", *(f"    {node}: {node.reason}" for node in found.refused)]
    if found.unchecked:
        lines += ["  not checked", *(f"    {node}: {node.reason}" for node in found.unchecked[:MOST_LINES])]
        lines += [f"    and {len(found.unchecked) - MOST_LINES} more"] * (len(found.unchecked) > MOST_LINES)
    if report.problems:
        lines += ["  problems", *(f"    {problem}" for problem in report.problems)]
    return lines if report.estimate is None else [*lines, *_estimate_lines(report.estimate)]


def _size_line(name: str, facts: Mapping[str, Any]) -> str:
    most = f"{facts['least']} or more" if facts["most"] is None else f"{facts['least']} to {facts['most']}"
    return f"    {facts['symbol']}: {most}" + (f" ({name!r} in the file)" if name != facts["symbol"] else "")


def _table(rows: tuple[OperatorRow, ...]) -> list[str]:
    cells = [("operator", "nodes", "dtypes", "time", "how")]
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.1f} %" if row.share else "-"
        parts = [f"{row.refused} refused"] if row.refused else []
        parts += [f"{row.unchecked} not checked"] if row.unchecked else []
        if row.share is not None:
            parts.append(_speed(row))
        elif not parts:
            parts.append("supported")
        cells.append((row.op, str(row.nodes), ", ".join(row.dtypes), share, ", ".join(parts)))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return [f"{op:<{widths[0]}}  {nodes:>{widths[1]}}  {dtypes:<{widths[2]}}  {share:>{widths[3]}}  {how}".rstrip()
            for op, nodes, dtypes, share, how in cells]


def _speed(row: OperatorRow) -> str:
    if not row.share:
        return "costs nothing of its own"
    return "; ".join(f"{100 * share:.0f} % slow: {reason}" for reason, share in row.slow.items()) or "fast"


def _estimate_lines(estimate: Estimate) -> list[str]:
    sizes = ", ".join(f"{name}={size}" for name, size in estimate.sizes.items())
    lines = [f"  estimate{f' at {sizes}' if sizes else ''}",
             f"    memory: {_bytes(estimate.weights)} of weights, {_bytes(estimate.arena)} of arena, {_bytes(estimate.arrays)} of "
             "inputs and outputs"]
    if estimate.predicted is not None and estimate.limit is not None:
        lines.append(f"    time: {estimate.predicted * 1e3:.4f} ms a call on {estimate.threads} thread{'s' * (estimate.threads != 1)}, "
                     f"{estimate.launches} launches ({estimate.limit * 1e3:.4f} ms at the limit of this machine)")
    else:
        lines.append("    time: not predicted, this machine does not run the target's code")
    return [*lines, *(f"    note: {note}" for note in estimate.notes)]


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


__all__ = ["Check", "check", "check_lines"]
