"""Checks and times kernels on a GPU: the device header first, then each row of a table, against torch where it is installed.

What it does, in one call of under ten minutes (`--seconds`): runs every function of the device header on the device and in emulation
(`gpu_wrappers.py`); compiles each case, compares its results with the graph's meaning (small cases) or with torch's, times both on the
device's own clock in turns, and prints microseconds, what the roofline predicts (the longer of its bytes at the card's bandwidth and
its operations at the unit's peak, and a launch), and the ratio of the peer's time to ours. `--output` leaves everything as JSON.

With `--emulate` nothing needs a GPU: tiny sizes, the emulated driver, no times. That is how the script itself is tried. `--predict` needs
none either, and runs nothing: for each case of the table its kernels, what the roofline predicts, and megabytes that threads ask the second
level of memory for (`gpu_traffic.py`).

    python -m benchmarks.gpu --output gpu.json
    python -m benchmarks.gpu --only matmul,attention
    python -m benchmarks.gpu --emulate
    python -m benchmarks.gpu --predict --architecture sm_80
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import ml_dtypes
import numpy as np

import tilewright as tw
from benchmarks.gpu_cases import PEAKS, Case, cases
from benchmarks.gpu_convolution_cases import convolution_cases
from benchmarks.gpu_driver import Device, DriverError
from benchmarks.gpu_narrow_cases import narrow_cases
from benchmarks.gpu_traffic import asked_bytes
from benchmarks.gpu_wrappers import check_wrappers
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.emulated_driver import driver_library
from tilewright.driver import open_cache
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_gpu import shared_bytes_of_block
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, read_environment
from tilewright.pipeline import run_passes
from tilewright.runtime.cuda import device_architecture

Array = np.ndarray
BANDWIDTH = 4.3e12       # bytes a second that a copy moves on an H200, read and written
LAUNCH = 2.0             # microseconds
ROUNDS, ROUND_SECONDS = 5, 0.03
# of bytes one step, since scales may be multiplied by in another order
TOLERANCE = {"float16": 2e-2, "bfloat16": 8e-2, "float32": 1e-3, "int8": 8e-3}
MOST_THREADS, MOST_BLOCKS, RESERVED_SHARED = 2048, 32, 1024   # of a multiprocessor; bytes that each block takes besides its own
QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)
CHECKED_ELEMENTS = 1 << 22   # of products, up to which results are compared with the graph's meaning


@dataclass
class Result:
    """What a case came to; times in microseconds, none where there is no clock or no peer."""

    group: str
    name: str
    against: str
    predicted: float
    checked: str = ""
    ours: float | None = None
    peer: float | None = None
    error: str = ""
    kernels: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return self.peer / self.ours if self.ours and self.peer else None


def chosen_cases(tiny: bool, only: Collection[str]) -> Iterator[Case]:
    """All cases, or those of some groups; models are read, where they are wanted, when their turn comes."""
    for case in (*cases(tiny), *narrow_cases(tiny), *convolution_cases(tiny)):
        if not only or case.group in only:
            yield case
    if not only or "models" in only:
        from benchmarks.gpu_model_cases import model_cases  # needs the packages of tests/models.txt
        yield from model_cases(tiny)


def predicted(case: Case) -> float:
    """Microseconds by the roofline."""
    return max(case.moved / BANDWIDTH, case.operations / PEAKS[case.unit]) * 1e6 + LAUNCH


def measure(case: Case, target: str, torch: Any) -> Result:
    """One case: compiled, checked, timed."""
    result = Result(case.group, case.name, case.against, predicted(case))
    try:
        executable = tw.compile(case.graph, target=target, options=case.options)
        result.kernels = [str(name) for name in executable.metadata.get("kernels", [])]
        inputs = case.inputs(np.random.default_rng(1))
        if torch is None:
            found = executable(*inputs)
            result.checked = _compared(case, inputs, found if isinstance(found, (list, tuple)) else [found])
            return result
        torch.set_float32_matmul_precision("high" if case.options.matmul_precision == "tf32" else "highest")
        tensors = [_tensor(torch, array) for array in inputs]
        peer = case.peer(torch, tensors) if case.peer is not None else None
        ours = partial(executable, *tensors)
        result.checked = _compared_tensors(torch, case, inputs, ours(), peer)
        result.ours, result.peer = _in_turns(torch, [ours] if peer is None else [ours, peer])
        if peer is None and case.moved and (case.copied or case.operations == 0):
            result.peer = case.moved / BANDWIDTH * 1e6
    except Exception as error:  # a case that fails must not keep the others from being measured
        result.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return result


def _compared(case: Case, inputs: Sequence[Array], found: Sequence[Array]) -> str:
    expected = evaluate_graph(case.graph, inputs)
    worst = 0.0
    for x, y in zip(expected, found, strict=True):
        allowed = TOLERANCE.get(str(x.dtype), 0.0)
        wide, other = x.astype(np.float64), np.asarray(y).astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(wide), initial=0.0)))
        worst = max(worst, float(np.max(np.abs(wide - other), initial=0.0)) / scale)
        if not worst <= allowed:
            raise ArithmeticError(f"results differ by {worst:.2e} of the largest, allowed {allowed:.0e}")
    return f"{worst:.0e}"


def _tensor(torch: Any, array: Array) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8)).cuda().view(torch.float8_e4m3fn)
    return torch.from_numpy(array).cuda()


def _compared_tensors(torch: Any, case: Case, inputs: Sequence[Array], found: Any, peer: Callable[[], Any] | None) -> str:
    """Small cases against their graph, large ones against the peer, which is checked by nothing else."""
    torch.cuda.synchronize()
    results = list(found) if isinstance(found, (list, tuple)) else [found]
    if case.operations <= 2 * CHECKED_ELEMENTS or peer is None:
        arrays = [r.float().cpu().numpy() if r.is_floating_point() else r.cpu().numpy() for r in results]
        return _compared(case, inputs, arrays) if case.checked or case.operations <= 64 * CHECKED_ELEMENTS else "not checked"
    expected = peer()
    wide = expected.double().reshape(-1)
    worst = float((wide - results[0].double().reshape(-1)).abs().max() / max(1.0, float(wide.abs().max())))
    name = str(results[0].dtype).removeprefix("torch.")
    if not worst <= TOLERANCE.get(name, 0.0):
        raise ArithmeticError(f"results differ from the peer's by {worst:.2e} of the largest")
    return f"{worst:.0e} (peer)"


def _in_turns(torch: Any, functions: Sequence[Callable[[], Any]]) -> tuple[float | None, float | None]:
    """The median microseconds of each function, on the device's clock, in turns."""
    counts = []
    for function in functions:
        for _ in range(3):
            function()
        single = _timed(torch, function, 3)
        counts.append(max(3, int(ROUND_SECONDS * 1e6 / max(single, 1.0))))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, count, found in zip(functions, counts, times):
            found.append(_timed(torch, function, count))
    medians = [median(found) for found in times]
    return medians[0], medians[1] if len(medians) > 1 else None


def _timed(torch: Any, function: Callable[[], Any], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1000 / count


def _table(results: Sequence[Result]) -> str:
    lines = [f"{'group':<12} {'case':<44} {'ours us':>10} {'predicted':>10} {'peer us':>10} {'ratio':>6}  checked"]
    for r in results:
        ours, peer, ratio = (f"{x:.1f}" if x is not None else "-" for x in (r.ours, r.peer, r.ratio))
        ratio = f"{r.ratio:.2f}" if r.ratio is not None else "-"
        lines.append(f"{r.group:<12} {r.name:<44} {ours:>10} {r.predicted:>10.1f} {peer:>10} {ratio:>6}  {r.error or r.checked}")
    for group in dict.fromkeys(r.group for r in results):
        ratios = [r.ratio for r in results if r.group == group and r.ratio is not None]
        if ratios:
            lines.append(f"{group:<12} geometric mean of {len(ratios)}: {geometric_mean(ratios):.2f} of {results[0].against}")
    return "\n".join(lines)


def _predictions(chosen: Iterable[Case], architecture: str) -> str:
    """For each case its time by the roofline, megabytes that it moves at least and that threads ask for, its kernels, and of the one with
    the largest blocks how many fit a multiprocessor."""
    limits = capabilities_of(architecture)
    lines = [f"{'group':<12} {'case':<44} {'us':>9} {'bound by':>10} {'moved':>8} {'asked':>8} {'kernels':>8} {'threads':>8} {'shared':>8} "
             f"{'blocks':>7}"]
    for case in chosen:
        fused, _ = run_passes(case.graph, case.options, limits, QUIET)
        program = lower_program(fused, limits)[0]
        module = emit_module(program, architecture)
        shared = {name: shared_bytes_of_block(made.kernel) for name, made in ((k.name, k) for k in module.kernels.values())}
        widest = max(module.kernels.values(), key=lambda k: (shared[k.name], k.threads))
        fitting = min(MOST_BLOCKS, MOST_THREADS // widest.threads, limits.shared_bytes // max(1, shared[widest.name] + RESERVED_SHARED))
        bound = "memory" if case.moved / BANDWIDTH > case.operations / PEAKS[case.unit] else case.unit
        lines.append(f"{case.group:<12} {case.name:<44} {predicted(case):>9.1f} {bound:>10} {case.moved / 1e6:>8.1f} "
                     f"{asked_bytes(program) / 1e6:>8.1f} {len(module.kernels):>8} {widest.threads:>8} {shared[widest.name]:>8} "
                     f"{fitting:>7}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--emulate", action="store_true", help="tiny sizes on the emulated driver, without times")
    parser.add_argument("--predict", action="store_true", help="what the cases should take, without running anything")
    parser.add_argument("--architecture", default="", help="what to compile for: by default the device's own, with instructions that no "
                        "other has (sm_90a of sm_90); of --predict sm_90a")
    parser.add_argument("--only", default="", help="groups, with commas between them")
    parser.add_argument("--seconds", type=float, default=540.0, help="no case begins later than that")
    parser.add_argument("--output", type=Path, help="JSON of all results")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    only = set(filter(None, given.only.split(",")))
    if given.predict:
        print(_predictions(chosen_cases(False, only), given.architecture or "sm_90a"))
        return 0
    cache = open_cache(read_environment(), tw.Options())
    if given.emulate:
        os.environ["TILEWRIGHT_CUDA_DRIVER"] = str(driver_library(cache))
    try:
        device = Device()
        architecture = "emulated" if given.emulate else given.architecture or _with_own_instructions(device_architecture())
        faulty = [(name, text) for name, text in check_wrappers(device, architecture, cache) if text]
    except (OSError, DriverError) as error:
        print(f"no GPU to measure: {error}; --emulate needs none", file=sys.stderr)
        return 2
    print(f"{device.name}, {architecture}: " + ("every function of the device header agrees with its emulation" if not faulty else
          "functions of the device header differ from their emulation:"))
    for name, text in faulty:
        print(f"  {name}: {text}")
    torch = None if given.emulate else _torch()
    results = []
    for case in chosen_cases(given.emulate, only):
        if time.monotonic() - began > given.seconds:
            print(f"{case.group} {case.name}: not begun, {given.seconds:.0f} s are over")
            continue
        results.append(measure(case, f"cuda:{architecture}", torch))
        print(_table(results[-1:]).splitlines()[1], flush=True)
    print()
    print(_table(results))
    if given.output is not None:
        rows = [{**asdict(r), "ratio": r.ratio if r.ratio is None or math.isfinite(r.ratio) else None} for r in results]
        given.output.write_text(json.dumps({"device": device.name, "architecture": architecture, "header": dict(faulty), "cases": rows},
                                           indent=1) + "\n")
    return 1 if faulty or any(r.error for r in results) else 0


def _with_own_instructions(architecture: str) -> str:
    return "sm_90a" if architecture == "sm_90" else architecture


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


if __name__ == "__main__":
    raise SystemExit(main())
