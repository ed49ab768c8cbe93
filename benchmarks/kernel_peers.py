"""Matrix products of other systems, each in a process of its own that `kernels.py` drives in turn with ours.

What it does: `Peer` starts this file in the interpreter that has the system and asks it for times. The process reads one JSON
object a line from stdin, `{"sizes": [m, k, n], "turned": [left, right], "dtype", "seconds", "clock"}`, and answers with one a line:
the seconds of its calls and the largest error relative to the largest value, or `{"failed": why}`. An operand that is `turned`
lies in memory as its transpose. `mkl` is the library of Intel's package of that name, called through its C interface, which
is what torch calls; `torch` is torch itself, `numpy` whatever NumPy calls there.

Assumes nothing of the environment but NumPy and the system. Guarantees one thread, on one core, and results in memory that is there
before the call; a process that waits for a request takes no time.

    /path/to/venv/bin/python benchmarks/kernel_peers.py mkl
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("mkl", "torch", "numpy")
ONE_THREAD = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "thread": time.thread_time}
LEAST_SECONDS = 2e-4   # of a measurement: shorter calls are repeated within one
DROPPED_CALLS = 3      # after a switch
ROW_MAJOR, PLAIN, TURNED = 101, 111, 112  # of the C interface to BLAS

Array = np.ndarray
Product = Callable[[Array, Array, bool, bool, Array], Callable[[], Any]]  # x, y, whether each is turned, and where it goes


class Peer:
    """The process of one system, driven over a pipe."""

    def __init__(self, name: str, python: str, clock: str) -> None:
        self.name, self.clock = name, clock
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"MKL_THREADING_LAYER": "SEQUENTIAL"}
        self.process = subprocess.Popen([python, str(Path(__file__).resolve()), name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        self.about = str(self._read().get("about", f"{name} does not run in {python}"))

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else {}  # type: ignore[no-any-return]  # JSON

    def times(self, sizes: Sequence[int], turned: Sequence[bool], dtype: str, seconds: float) -> list[float]:
        """The seconds of each call of a product; none where the system does not run or its result is wrong."""
        assert self.process.stdin is not None
        request = {"sizes": list(sizes), "turned": list(turned), "dtype": dtype, "seconds": seconds, "clock": self.clock}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return []
        answer = self._read()
        return list(answer["seconds"]) if answer.get("error", 1.0) < 1e-4 else []

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was still to be written to one that has ended
                pipe.close()
        self.process.wait()


def seconds_of(function: Callable[[], Any], clock: Callable[[], float], seconds: float, least: int = 5) -> list[float]:
    """The seconds of a call, measured again and again for `seconds`; the first calls are dropped."""
    for _ in range(DROPPED_CALLS):
        start = time.perf_counter()
        function()
    inner = max(1, round(LEAST_SECONDS / max(time.perf_counter() - start, 1e-7)))
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < least or time.perf_counter() - begin < seconds:
        start = clock()
        for _ in range(inner):
            function()
        found.append((clock() - start) / inner)
    return found


def mkl_product() -> tuple[Product, str]:
    files = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if not files:
        raise FileNotFoundError(f"no libmkl_rt in {sys.prefix}/lib: install the package mkl there")
    library = ctypes.CDLL(str(files[-1]), mode=ctypes.RTLD_GLOBAL)
    version = ctypes.create_string_buffer(256)
    library.mkl_get_version_string(version, len(version))

    def make(x: Array, y: Array, left: bool, right: bool, out: Array) -> Callable[[], Any]:
        function, real = {"float32": (library.cblas_sgemm, ctypes.c_float), "float64": (library.cblas_dgemm, ctypes.c_double)}[str(x.dtype)]
        function.argtypes = [*[ctypes.c_int] * 6, real, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, real,
                             ctypes.c_void_p, ctypes.c_int]
        function.restype = None
        (m, n), k = out.shape, x.size // out.shape[0]
        arguments = (ROW_MAJOR, TURNED if left else PLAIN, TURNED if right else PLAIN, m, n, k, 1.0, x.ctypes.data, x.shape[1],
                     y.ctypes.data, y.shape[1], 0.0, out.ctypes.data, n)
        return lambda: function(*arguments)

    return make, version.value.decode().strip()


def torch_product() -> tuple[Product, str]:
    import torch  # type: ignore[import-not-found]  # of the peer's environment

    torch.set_num_threads(1)

    def make(x: Array, y: Array, left: bool, right: bool, out: Array) -> Callable[[], Any]:
        a, b, result = map(torch.from_numpy, (x, y, out))
        return lambda: torch.matmul(a.T if left else a, b.T if right else b, out=result)

    return make, f"torch {torch.__version__}"


def numpy_product() -> tuple[Product, str]:
    def make(x: Array, y: Array, left: bool, right: bool, out: Array) -> Callable[[], Any]:
        return lambda: np.matmul(x.T if left else x, y.T if right else y, out=out)

    return make, f"NumPy {np.__version__}"


def measure(request: dict[str, Any], make: Product) -> dict[str, Any]:
    m, k, n = request["sizes"]
    left, right = request["turned"]
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape, dtype="float32").astype(request["dtype"])
            for shape in ((k, m) if left else (m, k), (n, k) if right else (k, n)))
    out = np.zeros((m, n), request["dtype"])
    product = make(x, y, left, right, out)
    product()
    expected = (x.T if left else x) @ (y.T if right else y)
    error = float(np.abs(out - expected).max() / np.abs(expected).max())
    return {"seconds": seconds_of(product, CLOCKS[request["clock"]], request["seconds"]), "error": error}


def main() -> None:
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the system prints is no answer
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    make, about = {"mkl": mkl_product, "torch": torch_product, "numpy": numpy_product}[sys.argv[1]]()
    print(json.dumps({"about": about}), file=pipe, flush=True)
    for line in sys.stdin:
        try:
            answer = measure(json.loads(line), make)
        except Exception as error:  # a product that the system does not take is a result, not the end of the table
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    main()
