"""A program written for onnxruntime: any model on random inputs, with the time of a call. It does not know of Tilewright.

    python -m examples.drop_in MODEL.onnx                              # on ONNX Runtime, where that is installed
    python -m tilewright.onnxruntime -m examples.drop_in MODEL.onnx    # the same program on Tilewright
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
          "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}


def random_input(argument: onnxruntime.NodeArg, size: int, generator: np.random.Generator) -> np.ndarray:
    """Normal numbers, or zeros and ones; `size` for every size that the model leaves open."""
    shape = [axis if isinstance(axis, int) else size for axis in argument.shape]
    dtype = DTYPES[argument.type]
    values = generator.standard_normal(shape) if np.issubdtype(dtype, np.floating) else generator.integers(0, 2, shape)
    return np.asarray(values, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=1, help="of axes that the model leaves open")
    parser.add_argument("--calls", type=int, default=10)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feed = {argument.name: random_input(argument, arguments.size, generator) for argument in session.get_inputs()}
    results = session.run(None, feed)
    seconds = []
    for _ in range(arguments.calls):
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    print(f"{onnxruntime.InferenceSession.__module__}: {np.median(seconds) * 1e3:.3f} ms")
    for argument, result in zip(session.get_outputs(), results):
        print(f"{argument.name} {argument.type} {list(result.shape)}, mean {np.mean(result, dtype=np.float64):.5f}")


if __name__ == "__main__":
    main()
