"""The fuzzer's ablation: what each part of it adds, at equal time, over several seeds; and how many programs it checks.

    python -m benchmarks.fuzzing [--seconds 120] [--seeds 5] [--modes joint,general] [--cores 0,1] [--subject graph] [--json FILE]
    python -m benchmarks.fuzzing --rate [--programs 300] [--nodes 10] [--json FILE]

One worker at a time, so that nothing shares its core; with `--cores` one on each of these, the modes of a seed side by side. Prints,
for each mode, the branches of the compiler that were reached in the end (mean and spread over seeds), programs a second, and how long
it took to reach what the mode `general` (mutators without domain knowledge, the pipeline as it is) reached in the end.

`--rate` prints programs a second of processor time: new graphs of about so many nodes, each with a sequence of passes, every one of
which is verified and evaluated; coverage is recorded, and nothing is lowered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.fuzz.coverage import Coverage
from tilewright.fuzz.graphs import GraphCase, GraphSubject
from tilewright.fuzz.settings import MODES
from tilewright.fuzz.subject import Refused
from tilewright.version import __version__

BASE = "general"
Curve = list[list[float]]


def run(mode: str, seed: int, seconds: float, subjects: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    """The account of one run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tilewright-ablation-") as folder:
        account = Path(folder) / "account.json"
        command = [sys.executable, "-m", "tilewright", "fuzz", "--mode", mode, "--seed", str(seed), "--seconds", str(seconds),
                   "--workers", "1", "--folder", folder, "--no-reduce", "--json", str(account), *more]
        for subject in subjects:
            command += ["--subject", subject]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"benchmarks.fuzzing: {' '.join(command)}\n{done.stderr}")
        found: dict[str, Any] = json.loads(account.read_text())
        return found


def rows_of(modes: Sequence[str], patiences: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Mode and patience of each row of the table; `joint` has one for each patience, since no other mode has any use for it."""
    rows: dict[str, tuple[str, str]] = {}
    for mode in modes:
        several = patiences if mode == "joint" else patiences[:1]
        rows |= {f"{mode}, N = {patience}" if len(several) > 1 else mode: (mode, patience) for patience in several}
    return rows


def measure(rows: dict[str, tuple[str, str]], seeds: int, seconds: float, subjects: Sequence[str],
            cores: Sequence[int]) -> dict[str, list[Curve]]:
    """A curve for each seed of each row, one run after the other, or one at a time on each of `cores`."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, {free.get()})  # of this thread alone, and of the processes that it starts

    def measured(seed: int, name: str) -> Curve:
        mode, patience = rows[name]
        account = run(mode, seed, seconds, subjects, ("--patience", patience))
        curve = curve_of(account)
        print(f"{name}, seed {seed}: {curve[-1][2]} arcs, {len(account['findings'])} findings", file=sys.stderr, flush=True)
        for finding in account["findings"]:
            print(f"    {finding['signature']}", file=sys.stderr, flush=True)
        return curve

    with ThreadPoolExecutor(max(1, len(cores)), initializer=pin) as pool:
        runs = {(name, seed): pool.submit(measured, seed, name) for seed in range(seeds) for name in rows}
    return {name: [runs[name, seed].result() for seed in range(seeds)] for name in rows}


def curve_of(account: dict[str, Any]) -> Curve:
    """Points [seconds, programs, arcs, corpus] of the one worker, the end among them."""
    tally = account["tallies"]["0"]
    return [*tally["curve"], [account["seconds"], tally["programs"], tally["arcs"], tally["corpus"]]]


def seconds_to(curve: Curve, arcs: float) -> float | None:
    """When so many arcs were reached; None where they never were."""
    return next((point[0] for point in curve if point[2] >= arcs), None)


def cases_of_size(count: int, nodes: int) -> list[GraphCase]:
    """New cases that are not lowered, whose graphs have as many nodes, a fifth more or less; parameters are nodes too."""
    rng, subject = np.random.default_rng(0), GraphSubject()
    cases: list[GraphCase] = []
    while len(cases) < count:
        case = subject.with_random_passes(subject.generate(rng), rng)
        if abs(len(case.graph.nodes()) - nodes) <= nodes / 5 and not case.is_lowered:
            cases.append(case)
    return cases


def measure_rate(count: int, nodes: int) -> dict[str, float]:
    """Programs a second of processor time: the best of three rounds of different programs, after one that meets most arcs."""
    subject, coverage, cases = GraphSubject(), Coverage(), cases_of_size(4 * count, nodes)
    refused, rounds = 0, []
    for first in range(0, len(cases), count):
        began = time.process_time()
        for case in cases[first:first + count]:
            try:
                with coverage:
                    subject.check(case, native=False)
            except Refused:
                refused += 1
        rounds.append(time.process_time() - began)
    coverage.stop()
    sizes = [len(case.graph.nodes()) for case in cases]
    return {
        "programs a second": count / min(rounds[1:]), "in the worst round": count / max(rounds[1:]),
        "in the first round": count / rounds[0], "programs": len(cases), "refused": refused,
        "nodes, mean": statistics.mean(sizes), "nodes, least": min(sizes), "nodes, most": max(sizes),
        "passes, mean": statistics.mean(len(case.steps) for case in cases), "arcs": coverage.total}


def report(curves: dict[str, list[Curve]], seconds: float) -> list[str]:
    """The table."""
    goal = statistics.mean(curve[-1][2] for curve in curves[BASE]) if BASE in curves else 0.0
    lines = ["| mode | arcs, mean | least to most | against general | seconds to general's end | programs a second |",
             "| --- | --- | --- | --- | --- | --- |"]
    for mode, runs in curves.items():
        ends = [curve[-1][2] for curve in runs]
        times = [seconds_to(curve, goal) for curve in runs]
        reached = [t for t in times if t is not None]
        when = f"{statistics.mean(reached):.0f} ({len(reached)} of {len(runs)})" if reached else "never"
        rate = statistics.mean(curve[-1][1] / seconds for curve in runs)
        lines.append(f"| {mode} | {statistics.mean(ends):.0f} | {min(ends):.0f} to {max(ends):.0f} | "
                     f"{statistics.mean(ends) / goal if goal else 1:.3f} | {when} | {rate:.0f} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--patience", default="4", help="several with commas between them: a row each")
    parser.add_argument("--cores", help="numbers with commas between them: pinned to these, so many runs at once")
    parser.add_argument("--subject", action="append", default=[])
    parser.add_argument("--rate", action="store_true", help="measure programs a second, instead of the ablation")
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.rate:
        rate = measure_rate(options.programs, options.nodes)
        print("\n".join(f"{name:32}{value:10.1f}" for name, value in rate.items()))
        if options.json:
            options.json.write_text(json.dumps(rate))
        return
    curves = measure(rows_of(options.modes.split(","), options.patience.split(",")), options.seeds, options.seconds, options.subject,
                     [int(core) for core in options.cores.split(",")] if options.cores else [])
    print(f"tilewright {__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}, "
          f"{options.seconds:.0f} s a run, {options.seeds} seeds")
    print("\n".join(report(curves, options.seconds)))
    if options.json:
        options.json.write_text(json.dumps({"seconds": options.seconds, "curves": curves}))


if __name__ == "__main__":
    main()
