"""Times ours beside ONNX Runtime and OpenVINO on six real models, and says whether the results are the same.

What it does: one process for each system and model, driven in turn over a pipe; the median of all calls; the ratio of
the better peer's median to ours, so more is better. Beside each time: the error against ONNX Runtime, the time from file
to first result without a cache, the time to load the saved artifact in a fresh process, and that process's memory.

Assumes Linux, and that nothing else runs meanwhile. Guarantees: with one thread everything is pinned to one core; after
each switch three calls are dropped; idle processes are checked to use no CPU; with two threads the ping-pong latency of
the two cores is printed before and after each model, and a ratio is marked when the two lie on different sides of 200 ns.

    python -m benchmarks.compare --seconds 5 --output results.json
    python -m benchmarks.compare --systems onnxruntime,openvino --models silero --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.systems import OURS, SYSTEMS

REFERENCE = "onnxruntime"
LARGEST_ERROR = 1e-4
TURN_SECONDS = 0.25
SETTLE_SECONDS = 0.3  # for the spinning threads of the system that just ran to fall asleep
IDLE_SHARE = 0.02  # of one core, what an idle process may use before it is reported
SLOW_PLACEMENT = 200.0  # nanoseconds of ping-pong latency
ROOT = Path(__file__).resolve().parents[1]


class System:
    """A worker process and the pipe to it."""

    def __init__(self, name: str, cores: list[int], cache: Path) -> None:
        self.name = name
        environment = os.environ | {"TILEWRIGHT_CACHE_DIR": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer; an error answer or a dead process raises."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the worker ended with code {self.process.wait()} during {request}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def cpu_seconds(self) -> float:
        """User and system time of all threads of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def build_pingpong(folder: Path) -> ctypes.CDLL | None:
    """The latency meter, compiled with the system's compiler; none where there is no compiler."""
    library = folder / "pingpong.so"
    source = Path(__file__).with_name("pingpong.c")
    command = ["cc", "-O2", "-std=c11", "-shared", "-fPIC", "-pthread", str(source), "-o", str(library)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ping-pong latency is not measured: {' '.join(command)} failed: {error}", file=sys.stderr)
        return None
    meter = ctypes.CDLL(str(library))
    meter.tw_pingpong.restype = ctypes.c_double
    return meter


class Bench:
    """What all models share: the options, a scratch folder, the cores, the latency meter."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.systems: list[str] = arguments.systems
        self.seconds: float = arguments.seconds
        self.threads: int = arguments.threads
        self.folder = folder
        self.cores = sorted(os.sched_getaffinity(0))[-self.threads :]
        if len(self.cores) < self.threads:
            raise SystemExit(f"--threads {self.threads}: this process may use {len(self.cores)} cores; give fewer")
        self.meter = build_pingpong(folder) if self.threads > 1 else None

    def pingpong(self) -> float | None:
        return self.meter.tw_pingpong(*self.cores[:2]) if self.meter else None

    def start(self, name: str, model: models.Model, files: dict[str, Any], load: bool) -> tuple[System, dict[str, Any]]:
        """A fresh process that compiled the model, or loaded its artifact, and ran it once."""
        system = System(name, self.cores, self.folder / f"cache-{model.name}-{name}")
        outputs = self.folder / f"{model.name}-{name}-{'load' if load else 'compile'}.npz"
        artifact = self.folder / f"{model.name}-{name}{SYSTEMS[name].suffix}"
        try:
            answer = system.ask(
                system=name, load=load, threads=self.threads, artifact=str(artifact), outputs=str(outputs), **files
            )
        except RuntimeError:
            system.close()
            raise
        with np.load(outputs) as archive:
            answer["outputs"] = [archive[key] for key in archive.files]
        return system, answer

    def take_turns(self, running: list[System]) -> tuple[dict[str, list[list[int]]], list[str]]:
        """Calls of each system, turn by turn, until each has run for the wanted time; and who was not idle."""
        turns: dict[str, list[list[int]]] = {system.name: [] for system in running}
        restless = []
        for _ in range(math.ceil(self.seconds / TURN_SECONDS)):
            for system in running:
                time.sleep(SETTLE_SECONDS)
                before = {other.name: other.cpu_seconds() for other in running if other is not system}
                begin = time.perf_counter()
                turns[system.name].append(system.ask(do="measure", seconds=TURN_SECONDS)["nanoseconds"])
                taken = time.perf_counter() - begin
                for other in running:
                    if other is not system and other.cpu_seconds() - before[other.name] > max(0.02, IDLE_SHARE * taken):
                        restless.append(other.name)
        return turns, restless

    def measure_model(self, model: models.Model) -> dict[str, Any]:
        """All figures of one model, for every system; a system that fails has its error instead."""
        path = model.path()
        inputs = self.folder / f"{model.name}-inputs.npz"
        np.savez(inputs, **model.make_inputs())
        static = models.write_static(path, model.shapes, self.folder / f"{model.name}-static.onnx")
        sizes = models.bind_sizes(path, model.shapes)
        files = {"path": str(path), "static_path": str(static), "sizes": sizes, "inputs": str(inputs)}
        rows: dict[str, Any] = {}
        running = []
        expected: list[np.ndarray] | None = None
        for name in sorted(self.systems, key=lambda name: name != REFERENCE):
            try:
                system, answer = self.start(name, model, files, load=False)
                running.append(system)
                outputs = answer.pop("outputs")
                expected = outputs if name == REFERENCE else expected
                rows[name] = answer | accuracy(model, expected, outputs)
            except (RuntimeError, ValueError) as error:
                rows[name] = rows.get(name, {}) | {"error": str(error)}
        before = self.pingpong()
        turns, restless = self.take_turns([system for system in running if "error" not in rows[system.name]])
        after = self.pingpong()
        for system in running:
            if system.name in turns:
                rows[system.name] |= summarize(turns[system.name])
                rows[system.name] |= self.measure_artifact(system, model, files)
            system.close()
        latencies = [value for value in (before, after) if value is not None]
        return {
            "title": model.title,
            "shapes": {name: list(shape) for name, shape in model.shapes.items()},
            "systems": rows,
            "restless": sorted(set(restless)),
            "pingpong_nanoseconds": latencies,
            "placement": placement(latencies),
        }

    def measure_artifact(self, system: System, model: models.Model, files: dict[str, Any]) -> dict[str, Any]:
        """Loading time and memory of a fresh process that has only the artifact, which `system` writes first."""
        try:
            system.ask(do="save")
            loaded, answer = self.start(system.name, model, files, load=True)
        except RuntimeError as error:
            return {"artifact_error": str(error)}
        loaded.close()
        return {
            "load_seconds": answer["first_result_seconds"],
            "load_import_seconds": answer["import_seconds"],
            "load_resident_bytes": answer["resident_bytes"],
        }


def accuracy(model: models.Model, expected: list[np.ndarray] | None, found: list[np.ndarray]) -> dict[str, Any]:
    """Error and answer against the reference; unknown when the reference is not measured."""
    if expected is None:
        return {"error_relative": None, "same_answer": None}
    error, same = models.compare(model, expected, found)
    return {"error_relative": error, "same_answer": same}


def summarize(turns: list[list[int]]) -> dict[str, Any]:
    """Median of all calls, and how far the calls and the medians of the turns spread."""
    calls = np.sort(np.concatenate([np.array(turn) for turn in turns])) / 1e6
    medians = [median(turn) / 1e6 for turn in turns]
    return {
        "median_ms": float(np.median(calls)),
        "fastest_ms": float(calls[0]),
        "tenth_ms": float(np.quantile(calls, 0.1)),
        "ninetieth_ms": float(np.quantile(calls, 0.9)),
        "lowest_turn_ms": min(medians),
        "highest_turn_ms": max(medians),
        "calls": len(calls),
    }


def placement(latencies: list[float]) -> str:
    """In which mode the two cores were; `mixed` when it changed meanwhile and no ratio counts."""
    if not latencies:
        return "one core"
    modes = {"slow" if latency > SLOW_PLACEMENT else "fast" for latency in latencies}
    return modes.pop() if len(modes) == 1 else "mixed"


def ratio(rows: dict[str, Any]) -> float | None:
    """The better peer's median over ours."""
    peers = [row["median_ms"] for name, row in rows.items() if not name.startswith(OURS) and "median_ms" in row]
    ours = rows.get(OURS, {}).get("median_ms")
    return min(peers) / ours if peers and ours else None


def cell(row: dict[str, Any] | None) -> str:
    """Median, half the spread between turns in percent, and a mark where the error is too large or the answer differs."""
    if row is None or "median_ms" not in row:
        return "failed" if row and "error" in row else "-"
    spread = 50 * (row["highest_turn_ms"] - row["lowest_turn_ms"]) / row["median_ms"]
    mark = " IMPRECISE" if (row["error_relative"] or 0) > LARGEST_ERROR else ""
    if row["same_answer"] is False:
        mark = " WRONG"
    return f"{row['median_ms']:.3f} ±{spread:.0f}%{mark}"


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def print_tables(results: dict[str, Any], systems: list[str]) -> None:
    """Times with ratios, then everything else."""
    print("\nMilliseconds a call: median ± half the range of the turns' medians. Ratio: better peer / ours.\n")
    print_row(["model", *systems, "ratio", "cores"])
    print_row(["---"] * (len(systems) + 3))
    for result in results.values():
        rows = result["systems"]
        share = ratio(rows)
        mode = result["placement"]
        if result["pingpong_nanoseconds"]:
            mode += " " + " / ".join(f"{latency:.0f} ns" for latency in result["pingpong_nanoseconds"])
        counted = "-" if share is None else f"{share:.2f}" + (" (does not count)" if mode.startswith("mixed") else "")
        print_row([result["title"], *(cell(rows.get(name)) for name in systems), counted, mode])
    print_means(results)
    print("\nError: largest, relative to the output's largest value, against ONNX Runtime. Seconds from `import numpy`")
    print("to the first result: without a cache from the model file, and from the saved artifact. Resident: the latter.\n")
    print_row(["model", "system", "error", "same answer", "compile s", "load s", "resident MB"])
    print_row(["---"] * 7)
    for result in results.values():
        for name in systems:
            print_details(result["title"], name, result["systems"].get(name, {}))
        if result["restless"]:
            print(f"\nNOT IDLE while others ran: {', '.join(result['restless'])}; this model's times are in doubt\n")


def print_details(title: str, name: str, row: dict[str, Any]) -> None:
    def show(key: str, form: str, scale: float = 1.0) -> str:
        value = row.get(key)
        return "-" if value is None else format(value * scale, form)

    same = {True: "yes", False: "NO", None: "-"}[row.get("same_answer")]
    cells = [title, name, show("error_relative", ".1e"), same, show("first_result_seconds", ".3f")]
    print_row([*cells, show("load_seconds", ".3f"), show("load_resident_bytes", ".0f", 1e-6)])
    for key in ("error", "artifact_error"):
        if key in row:
            print(f"    {row[key]}")


def print_means(results: dict[str, Any]) -> None:
    """Geometric means: of the table's models over those before the last and over all; of others over all, with the least."""
    shares = [ratio(result["systems"]) for result in results.values()]
    known = [share for share in shares if share is not None]
    if list(results) != [model.name for model in models.MODELS]:
        if len(known) > 1:
            print(f"\ngeometric mean: {geometric_mean(known):.3f}; least: {min(known):.2f}")
    elif len(known) == len(results):
        print(f"\ngeometric mean of the first five: {geometric_mean(known[:5]):.3f}; of six: {geometric_mean(known):.3f}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor() or "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": os.getloadavg()[0],
    }


def parse_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", type=names, default=list(SYSTEMS), help=f"of {','.join(SYSTEMS)} (default: all)")
    parser.add_argument("--models", type=names, default=[model.name for model in models.MODELS], help="name or name@shape (minilm@8x64)")
    parser.add_argument("--other-sizes", action="store_true", help="the models at other sizes than those of the table instead")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each system and model (default: 5)")
    parser.add_argument("--output", type=Path, help="write everything as JSON to this file")
    arguments = parser.parse_args()
    for name in arguments.systems:
        if name not in SYSTEMS:
            parser.error(f"--systems: no system {name!r}; there are {', '.join(SYSTEMS)}")
    try:
        arguments.models = [models.find(name) for name in (models.OTHER_SIZES if arguments.other_sizes else arguments.models)]
    except ValueError as error:
        parser.error(f"--models: {error}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    here = machine()
    print(f"{here['processor']}, {here['cores']} cores, {here['system']}, Python {here['python']}, numpy {here['numpy']}")
    print(f"{arguments.threads} thread(s), at least {arguments.seconds} s each; load before: {here['load_average']:.2f}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-benchmark-") as folder:
        bench = Bench(arguments, Path(folder))
        for model in arguments.models:
            if sys.stderr.isatty():
                print(f"measuring {model.title} ...", file=sys.stderr)
            results[model.name] = bench.measure_model(model)
    versions = {name: row["version"] for r in results.values() for name, row in r["systems"].items() if "version" in row}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print_tables(results, arguments.systems)
    if arguments.output:
        here |= {"versions": versions, "threads": arguments.threads, "seconds": arguments.seconds}
        arguments.output.write_text(json.dumps({"machine": here, "models": results}, indent=1) + "\n")
        print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
