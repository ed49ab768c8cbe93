"""One class for each system that is measured, all with the same three steps: compile, save, load.

What it does: hides how each system is told to be fair: float32 throughout, sizes fixed, the given number of threads,
inputs and outputs bound once so that a call copies nothing it need not.

Assumes one system a process: each is imported in its `__init__` only, so that loading time and memory are its own.
Guarantees that `run` gives outputs in the order of the model file, computed anew at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Job:
    """What to compile: the file as published, a copy with fixed sizes, the sizes by name, and the inputs. `precision`: what
    OpenVINO may compute in, f32 or bf16."""

    path: Path
    static_path: Path
    sizes: Mapping[str, int]
    inputs: Arrays
    threads: int
    precision: str = "f32"


class Tilewright:
    """Ours, specialized to the sizes."""

    suffix = ".so"
    specialized = True

    def __init__(self) -> None:
        import tilewright

        self.tw = tilewright
        self.version = tilewright.__version__

    def compile(self, job: Job) -> Any:
        if job.path.suffix == ".ir":  # a graph in text has its sizes
            graph = self.tw.load_text(str(job.path))
        else:
            graph = self.tw.from_onnx(str(job.path), dims=dict(job.sizes) if self.specialized else {})
        return self.tw.compile(graph, target="cpu", options=self.tw.Options(threads=job.threads))

    def save(self, compiled: Any, path: Path, job: Job) -> None:
        compiled.save(str(path), name=path.stem.replace("-", "_"))

    def load(self, path: Path, job: Job) -> Any:
        return self.tw.load(str(path)).with_threads(job.threads)

    def bind(self, compiled: Any, job: Job) -> Run:
        inputs = dict(job.inputs)
        return lambda: list(compiled.run(inputs).values())


class TilewrightDynamic(Tilewright):
    """Ours, with every symbolic dim of the file left symbolic: one artifact for all sizes."""

    specialized = False


class OnnxRuntime:
    """ONNX Runtime on its CPU provider, all optimizations, the file with fixed sizes."""

    suffix = ".onnx"

    def __init__(self) -> None:
        import onnxruntime

        self.ort = onnxruntime
        self.version = onnxruntime.__version__

    def session(self, path: Path, job: Job, optimized: Path | None = None) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        return self.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def compile(self, job: Job) -> Any:
        return self.session(job.static_path, job)

    def save(self, compiled: Any, path: Path, job: Job) -> None:
        self.session(job.static_path, job, optimized=path)

    def load(self, path: Path, job: Job) -> Any:
        return self.session(path, job)

    def bind(self, compiled: Any, job: Job) -> Run:
        binding = compiled.io_binding()
        for name, array in job.inputs.items():
            binding.bind_cpu_input(name, array)
        for output in compiled.get_outputs():
            binding.bind_output(output.name)

        def run() -> list[np.ndarray]:
            compiled.run_with_iobinding(binding)
            return [value.numpy() for value in binding.get_outputs()]

        return run


class OpenVino:
    """OpenVINO on its CPU plugin, for latency. Without the float32 hint it computes in bfloat16 where the CPU can."""

    suffix = ".blob"

    def __init__(self) -> None:
        import openvino

        self.ov = openvino
        self.core = openvino.Core()
        self.version = openvino.__version__

    def settings(self, job: Job) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": job.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job.threads,
        }

    def compile(self, job: Job) -> Any:
        model = self.core.read_model(str(job.path))
        model.reshape({name: list(array.shape) for name, array in job.inputs.items()})
        return self.core.compile_model(model, "CPU", self.settings(job))

    def save(self, compiled: Any, path: Path, job: Job) -> None:
        path.write_bytes(compiled.export_model().getvalue())

    def load(self, path: Path, job: Job) -> Any:
        return self.core.import_model(path.read_bytes(), "CPU", self.settings(job))

    def bind(self, compiled: Any, job: Job) -> Run:
        request = compiled.create_infer_request()
        for name, array in job.inputs.items():
            request.set_tensor(name, self.ov.Tensor(array, shared_memory=True))
        count = len(compiled.outputs)

        def run() -> list[np.ndarray]:
            request.infer()
            return [request.get_output_tensor(index).data for index in range(count)]

        return run


SYSTEMS: dict[str, type] = {
    "tilewright": Tilewright,
    "tilewright-dynamic": TilewrightDynamic,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
OURS = "tilewright"
