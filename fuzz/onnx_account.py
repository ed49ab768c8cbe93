"""The account of a run over hostile ONNX files: how many were imported, refused for what, compiled, with what time and memory.

Assumes outcomes as `onnx_files.py` gives them. Guarantees: every file is counted once; failures are joined by their label.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# what an error's text begins with or holds -> the class of the reason; the first that fits
REASONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple((name, re.compile(pattern)) for name, pattern in (
    ("no protobuf, or no graph in it", r"not an ONNX model"),
    ("names that are no text", r"UTF-8"),
    ("opsets", r"opset"),
    ("external data", r"external|lies in the file"),
    ("operators that are not supported", r"operators? (is|are) not supported"),
    ("names defined twice, too late or nowhere", r"defined|made by no node|its own output|out of order|no outputs"),
    ("constants whose data does not fit", r"needs \d+ (bytes|elements)|negative size|2\*\*|unknown element type|segments|sparse"),
    ("dtypes that are not supported", r"element type|values of|dtype"),
    ("inputs without type or shape", r"has no (type|shape)|is a (sequence|optional|map|sparse)"),
    ("functions and subgraphs", r"function|subgraph|body|calls itself|levels|branches"),
    ("attributes", r"attribute"),
    ("sizes that data decides", r"computed from data|decided by data|constant scalar|symbolic size"),
    ("more nodes or elements than allowed", r"more than|too (large|many|deep|long)|at most"),
    ("missing or superfluous inputs", r"input .* is missing|takes at most"),
))


def reason_of(text: str) -> str:
    """The class of an error's reason."""
    return next((name for name, pattern in REASONS if pattern.search(text)), "other rules of operators")


class Account:
    """Sums of outcomes; see `text`."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.made: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unsupported = self.compiled = self.peak = self.largest = 0
        self.compile_refused: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, str]] = {}
        self.failure_counts: Counter[str] = Counter()
        self.import_seconds = self.compile_seconds = 0.0
        self.slowest: list[tuple[float, int]] = []
        self.slowest_compile: list[tuple[float, int]] = []

    def add(self, outcome: Any) -> bool:
        """Counts one file; whether it is the first of a new kind of failure."""
        self.states[outcome.state] += 1
        self.made[outcome.made, outcome.state] += 1
        self.import_seconds += outcome.seconds
        self.compile_seconds += outcome.compile_seconds
        if outcome.peak > self.peak:
            self.peak, self.largest = outcome.peak, outcome.number
        self.slowest = sorted([*self.slowest, (outcome.seconds, outcome.number)])[-5:]
        self.slowest_compile = sorted([*self.slowest_compile, (outcome.compile_seconds, outcome.number)])[-5:]
        if outcome.state == "refused":
            self.unsupported += outcome.reason.startswith("not supported: ")
            self.reasons[reason_of(outcome.reason)] += 1
        if outcome.compiled == "compiled":
            self.compiled += 1
        elif outcome.compiled:
            self.compile_refused[outcome.compiled[:100]] += 1
        if outcome.state != "failed":
            return False
        self.failure_counts[outcome.label] += 1
        first = outcome.label not in self.failures
        if first:
            self.failures[outcome.label] = (outcome.number, outcome.reason)
        return first

    @property
    def count(self) -> int:
        return self.states.total()

    def line(self) -> str:
        """Where the run stands."""
        return (f"{self.count} files: {self.states['imported']} imported, {self.states['refused']} refused, {self.compiled} compiled, "
                f"{self.states['failed']} failed in {len(self.failures)} ways; {self.import_seconds + self.compile_seconds:.0f} s, "
                f"{self.peak >> 20} MiB")

    def text(self) -> str:
        """The whole account."""
        each = 1e3 * self.import_seconds / max(1, self.count)
        lines = [self.line(), f"importing: {self.import_seconds:.0f} s of processor time, {each:.1f} ms a file, {_listed(self.slowest)}",
                 f"compiling: {self.compile_seconds:.0f} s, {_listed(self.slowest_compile)}",
                 f"most memory: {self.peak >> 20} MiB (number {self.largest})", "made by damage to"]
        for kind in sorted({kind for kind, _ in self.made}):
            parts = [self.made[kind, state] for state in ("imported", "refused", "failed")]
            lines.append(f"  {kind:30}{sum(parts):8}  imported {parts[0]:6}  refused {parts[1]:6}  failed {parts[2]}")
        lines.append(f"refused ({self.unsupported} of them as valid but not supported)")
        lines += [f"  {name:46}{number:8}" for name, number in self.reasons.most_common()]
        lines.append(f"not compiled: {self.compile_refused.total()}")
        lines += [f"  {number:6}  {name}" for name, number in self.compile_refused.most_common(12)]
        lines.append("failures" if self.failures else "no failures")
        lines += [f"  {self.failure_counts[label]:6}  {label} (number {number}): {reason.splitlines()[0][:200] if reason else ''}"
                  for label, (number, reason) in self.failures.items()]
        return "\n".join(lines)


def _listed(slowest: list[tuple[float, int]]) -> str:
    return "slowest " + ", ".join(f"{seconds:.2f} s (number {number})" for seconds, number in reversed(slowest))
