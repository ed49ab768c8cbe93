"""The runtime for CUDA, end to end on the emulated driver: host side, calls, graphs, streams, tensors on a device, and what may go wrong.

The kernels are written by hand in the form that emission gives them; all lie in one source, which is compiled once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tests.emulated import driver_file, emulated_driver, emulated_image
from tilewright.backends.cuda.compile import can_compile
from tilewright.backends.cuda.emulated_driver import Control
from tilewright.backends.cuda.host import compile_host
from tilewright.backends.cuda.module import CudaKernel, CudaModule, Image
from tilewright.ir.dims import Dim, DimLike, Symbol, symbol
from tilewright.ir.errors import ArgumentError, ArtifactError, CompileError, DeviceError, IndexFailure, RuntimeFailure
from tilewright.ir.graph import Constant
from tilewright.ir.loop import Buffer, Kernel
from tilewright.ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from tilewright.ir.types import BOOL, F32, I64, DType, TensorType
from tilewright.loading import load
from tilewright.runtime.cuda import CudaExecutable
from tilewright.runtime.cuda_array import DeviceArray, stream_number
from tilewright.runtime.elf_file import read_elf
from tilewright.saving import Saved
from tilewright.saving_cuda import CUDA_OBJECT, save
from tilewright.variants import Code

SOURCE = """#include "device.h"

extern "C" __global__ void __launch_bounds__(64) add(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ c,
                                                     long long n) {
  long long i = blockIdx.x * 64LL + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i % 4];
}

extern "C" __global__ void __launch_bounds__(64) copy(const float *__restrict__ a, float *__restrict__ c, long long n) {
  for (long long i = blockIdx.x * 1024LL + threadIdx.x; i < n && i < (blockIdx.x + 1) * 1024LL; i += 64) c[i] = a[i];
}

extern "C" __global__ void __launch_bounds__(64) twice(float *__restrict__ a, long long n) {
  long long i = blockIdx.x * 64LL + threadIdx.x;
  if (i < n) a[i] = a[i] * 2.0f;
}

extern "C" __global__ void __launch_bounds__(64) accumulate(const float *__restrict__ a, float *__restrict__ s, float *__restrict__ c,
                                                            long long n) {
  long long i = blockIdx.x * 64LL + threadIdx.x;
  if (i < n) {
    s[i] = s[i] + a[i];
    c[i] = s[i];
  }
}

extern "C" __global__ void __launch_bounds__(64) zero(float *__restrict__ s, long long n) {
  long long i = blockIdx.x * 64LL + threadIdx.x;
  if (i < n) s[i] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(1) below(const float *__restrict__ a, bool *__restrict__ c) { c[0] = a[0] < 100.0f; }

extern "C" __global__ void __launch_bounds__(64) gather(const float *__restrict__ a, const long long *__restrict__ i, float *__restrict__ c,
                                                        tw_failure *failure, long long n, long long m) {
  long long k = blockIdx.x * 64LL + threadIdx.x;
  if (k >= m) return;
  if (i[k] < 0 || i[k] >= n) {
    tw_fail(failure, -1, 0, i[k], n);
    return;
  }
  c[k] = a[i[k]];
}

extern "C" __global__ void __launch_bounds__(32) astray(const float *__restrict__ a, float *__restrict__ c) {
  c[threadIdx.x + 100000000LL] = a[0];
}
"""
SITE = "take: index out of range at model.py:12"


def named(size: DimLike) -> Symbol:
    assert isinstance(size, Dim)
    atom = size.terms[0][0][0][0]
    assert isinstance(atom, Symbol)
    return atom


N, M, T = symbol("N"), symbol("M"), symbol("t")


def kernel(name: str, buffers: Sequence[tuple[str, DType, DimLike, str]], *sizes: DimLike, blocks: DimLike | None = None, threads: int = 64,
           fails: bool = False) -> CudaKernel:
    """A kernel as emission describes it; its loop IR has no body, since the source above is what runs."""
    plain = Kernel(name, tuple(Buffer(label, dtype, (extent,), access) for label, dtype, extent, access in buffers),
                   tuple(named(size) for size in sizes), ())
    return CudaKernel(name, plain, (sizes[-1] + 63) // 64 if blocks is None else blocks, threads, 0, fails)


ADD = kernel("add", (("a", F32, N, "in"), ("b", F32, 4, "in"), ("c", F32, N, "out")), N)
COPY = kernel("copy", (("a", F32, N, "in"), ("c", F32, N, "out")), N, blocks=(N + 1023) // 1024)
TWICE = kernel("twice", (("a", F32, N, "inout"),), N)
ACCUMULATE = kernel("accumulate", (("a", F32, N, "in"), ("s", F32, N, "inout"), ("c", F32, N, "out")), N)
ZERO = kernel("zero", (("s", F32, N, "out"),), N)
BELOW = kernel("below", (("a", F32, N, "in"), ("c", BOOL, 1, "out")), N, blocks=1, threads=1)
GATHER = kernel("gather", (("a", F32, N, "in"), ("i", I64, M, "in"), ("c", F32, M, "out")), N, M, fails=True)
ASTRAY = kernel("astray", (("a", F32, N, "in"), ("c", F32, N, "out")), N, blocks=1, threads=32)
ALL = (ADD, COPY, TWICE, ACCUMULATE, ZERO, BELOW, GATHER, ASTRAY)


def launch(one: CudaKernel, *places: Place, sizes: tuple[DimLike, ...] = (N,)) -> Launch:
    return Launch(one.kernel, places, sizes)


def vector(size: DimLike = N, dtype: DType = F32) -> TensorType:
    return TensorType(dtype, (size,))


def program(name: str, inputs: Sequence[TensorType], outputs: Sequence[TensorType], steps: Sequence[Step], *, workspace: DimLike = 0,
            constant: Constant | None = None, symbols: Sequence[DimLike] = (N,)) -> Program:
    kept, count = (((64, constant),), 80) if constant is not None else ((), 0)
    return Program(name, tuple(zip("xyz", inputs)), tuple(zip("cde", outputs)), kept, count, workspace, tuple(steps),
                   tuple(named(size) for size in symbols))


BLOCK = 64 * ((N * 4 + 63) // 64)
WEIGHTS = Constant(np.array([1.5, -2.0, 0.25, 8.0], np.float32))
CHAIN = program("chain", [vector()], [vector()], (
    launch(ADD, Place("input"), Place("constant", 0, 64), Place("workspace")),
    launch(ADD, Place("workspace"), Place("constant", 0, 64), Place("workspace", 0, BLOCK)),
    launch(ADD, Place("workspace", 0, BLOCK), Place("constant", 0, 64), Place("output"))), workspace=2 * BLOCK, constant=WEIGHTS)
SCAN = program("scan", [TensorType(F32, (M, N))], [TensorType(F32, (M, N))], (
    launch(ZERO, Place("workspace")),
    Repeat(named(T), M, (launch(ACCUMULATE, Place("input", 0, T * N * 4), Place("workspace"), Place("output", 0, T * N * 4)),))),
    workspace=N * 4, symbols=(M, N))
LOOP = program("loop", [vector(), TensorType(BOOL, ())], [vector()], (
    launch(COPY, Place("input"), Place("output")),
    Loop((launch(BELOW, Place("output"), Place("workspace")),), Place("workspace"), (launch(TWICE, Place("output")),)),
    Branch(Place("input", 1), (launch(TWICE, Place("output")),), ())), workspace=64)
TAKE = program("take", [vector(), vector(M, I64)], [vector(M), vector()], (
    launch(GATHER, Place("input"), Place("input", 1), Place("output"), sizes=(N, M)),
    launch(COPY, Place("input"), Place("output", 1))), symbols=(N, M))
STRAY = program("stray", [vector()], [vector()], (launch(ASTRAY, Place("input"), Place("output")),))


def chained(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tiled = np.resize(WEIGHTS.array, x.shape)
    return ((x + tiled) + tiled) + tiled


def compiled(source: Program, *, architecture: str = "emulated", data: bytes | None = None, toolkit: int = 0) -> CudaExecutable:
    """The program on the emulated driver."""
    module = CudaModule(SOURCE, {id(one.kernel): one for one in ALL}, (SITE,))
    image = emulated_image(SOURCE) if data is None else data
    made = compile_host(source, module, [Image(architecture, image)], toolkit=toolkit)
    segment = None
    if source.constants_bytes:
        segment = np.zeros(source.constants_bytes, np.uint8)
        segment[64:] = WEIGHTS.array.view(np.uint8)
    return CudaExecutable.from_object(made.object_code, segment)


@pytest.fixture(scope="module")
def driver() -> Control:
    return emulated_driver()


@pytest.fixture(autouse=True)
def fresh(driver: Control) -> Iterator[None]:
    driver.set(count=0, memory=1 << 30)
    yield
    driver.set(count=0, memory=1 << 30)


@pytest.fixture(scope="module")
def chain(driver: Control) -> CudaExecutable:
    return compiled(CHAIN)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


# --- arrays of the host ---


def test_arrays_go_through_constants_and_workspace(chain: CudaExecutable) -> None:
    for count in (1, 4, 100, 1001, 0):
        x = floats(count)
        np.testing.assert_array_equal(chain(x), chained(x))
        assert chain.plan((count,)) == ([(count,)], 128 * ((count * 4 + 63) // 64))
    assert chain.kernels == ("add",) and chain.architectures == ("emulated",) and "__global__" in chain.source()


def test_a_repeated_call_is_one_launch(chain: CudaExecutable, driver: Control) -> None:
    x = floats(333)
    for _ in range(2):
        np.testing.assert_array_equal(chain(x), chained(x))
    driver.set(count=0)
    for _ in range(3):
        x = x + 1
        np.testing.assert_array_equal(chain(x), chained(x))
    assert (driver.calls("cuLaunchKernel"), driver.calls("cuGraphLaunch")) == (0, 3)


def test_many_sizes_keep_few_graphs(chain: CudaExecutable) -> None:
    for _ in range(2):
        for count in range(1, 40):
            x = floats(count)
            np.testing.assert_array_equal(chain(x), chained(x))
            np.testing.assert_array_equal(chain(x), chained(x))


def test_results_go_where_out_says(chain: CudaExecutable) -> None:
    x, target, strided = floats(50), np.zeros(50, np.float32), np.zeros((50, 2), np.float32)
    assert chain(x, out=target) is target
    np.testing.assert_array_equal(target, chained(x))
    chain(x[::-1], out=(strided[:, 1],))
    np.testing.assert_array_equal(strided[:, 1], chained(x[::-1]))
    assert not strided[:, 0].any()
    locked = np.zeros(50, np.float32)
    locked.flags.writeable = False
    for wrong, words in ((np.zeros(49, np.float32), "expected float32"), (np.zeros(50), "float64"), ([1.0], "expected an array"),
                         (locked, "read only"), ((target, target), "found 2 arrays")):
        with pytest.raises(ArgumentError, match=words):
            chain(x, out=wrong)


def test_steps_of_control_flow(driver: Control) -> None:
    scan, loop = compiled(SCAN), compiled(LOOP)
    x = np.random.default_rng(1).integers(-9, 9, (7, 13)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(scan(x), np.cumsum(x, 0))
    assert scan(x[:0]).shape == (0, 13) and driver.calls("cuGraphLaunch") == 2
    x = np.array([3.0, 1.0, -2.0] * 5, np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(loop(x, np.array(False)), x * 64)
        np.testing.assert_array_equal(loop(x, np.array(True)), x * 128)
    assert driver.calls("cuGraphLaunch") == 2  # what depends on memory is launched kernel after kernel


def test_arrays_larger_than_the_pinned_memory(driver: Control) -> None:
    take = compiled(TAKE)
    x, places = floats((4 << 20) // 4 + 1000), np.array([0, 5, 1_049_000], np.int64)
    first, second = take(x, places)
    np.testing.assert_array_equal(first, x[places])
    np.testing.assert_array_equal(second, x)


def test_an_index_out_of_range_is_named_and_harms_nothing(driver: Control) -> None:
    take = compiled(TAKE)
    x = floats(10)
    for wrong in (10, -1):
        with pytest.raises(IndexFailure, match=f"{SITE}: index {wrong} is out of bounds for axis with size 10"):
            take(x, np.array([1, wrong], np.int64))
    for _ in range(3):
        np.testing.assert_array_equal(take(x, np.array([9, 0], np.int64))[0], x[[9, 0]])


def test_wrong_arguments(chain: CudaExecutable) -> None:
    x = floats(4)
    for call, words in ((lambda: chain(), "found 0 inputs|missing"), (lambda: chain(x, x), "found 2 inputs"), (lambda: chain(x[None]), "rank 2"),
                        (lambda: chain(x.astype(np.float64)), "float64"), (lambda: chain(x, stream=0), "host memory"),
                        (lambda: chain(z=x), "found input 'z'"), (lambda: chain.plan((1, 2)), "rank 2"), (lambda: chain.profile(x, calls=0), "0 calls")):
        with pytest.raises(ArgumentError, match=words):
            call()


def test_calls_from_many_threads(chain: CudaExecutable) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = floats(100 + seed)
        for _ in range(5):
            if not np.array_equal(chain(x), chained(x)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- tensors on a device ---


def test_tensors_stay_on_the_device(chain: CudaExecutable, driver: Control) -> None:
    x = floats(77)
    there = DeviceArray.from_numpy(x)
    driver.set(count=0)
    result = chain(there)
    assert isinstance(result, DeviceArray) and result.shape == (77,) and driver.calls("cuStreamSynchronize") == 0
    np.testing.assert_array_equal(result.numpy(), chained(x))
    target = DeviceArray.from_numpy(np.zeros(77, np.float32))
    assert chain(there, out=target) is target
    for _ in range(2):
        chain(there, out=target)
    driver.set(count=0)
    chain(there, out=target)
    assert (driver.calls("cuLaunchKernel"), driver.calls("cuGraphLaunch")) == (0, 1)
    chain.synchronize()
    np.testing.assert_array_equal(target.numpy(), chained(x))


class Foreign:
    """A tensor of another library, by DLPack alone."""

    def __init__(self, array: DeviceArray, device: tuple[int, int] | None = None) -> None:
        self.array, self.device, self.streams = array, device, list[object]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device or self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: object = None) -> object:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream)  # type: ignore[arg-type]


class Interfaced:
    """A tensor by `__cuda_array_interface__`, perhaps with strides."""

    def __init__(self, array: DeviceArray, **changes: object) -> None:
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_tensors_of_other_libraries(chain: CudaExecutable) -> None:
    x = floats(31)
    foreign = Foreign(DeviceArray.from_numpy(x))
    np.testing.assert_array_equal(chain(foreign).numpy(), chained(x))
    assert foreign.streams == [1]
    np.testing.assert_array_equal(chain(Interfaced(DeviceArray.from_numpy(x))).numpy(), chained(x))
    with pytest.raises(ArgumentError, match="on rocm:0, expected a CUDA device"):
        chain(Foreign(foreign.array, (10, 0)))
    with pytest.raises(ArgumentError, match=r"not contiguous: found shape \(31,\) with strides \(8,\)"):
        chain(Interfaced(foreign.array, strides=(8,)))
    with pytest.raises(ArgumentError, match="does not lie in memory of a CUDA device"):
        chain(Interfaced(foreign.array, data=(x.ctypes.data, False)))
    for wrong, words in ((DeviceArray.from_numpy(x.astype(np.float64)), "found float64"), (DeviceArray.from_numpy(x[None]), "rank 2")):
        with pytest.raises(ArgumentError, match=words):
            chain(wrong)


def test_places_that_do_not_fit_together(driver: Control) -> None:
    take = compiled(TAKE)
    x, places = DeviceArray.from_numpy(floats(9)), np.zeros(3, np.int64)
    with pytest.raises(ArgumentError, match="in host memory, but others are on cuda:0"):
        take(x, places)
    there = DeviceArray.from_numpy(places)
    with pytest.raises(ArgumentError, match="found memory of 'x'"):
        take(x, there, out=(None, x))
    with pytest.raises(ArgumentError, match="in host memory, expected a tensor on cuda:0"):
        take(x, there, out=(None, np.zeros(9, np.float32)))
    with pytest.raises(ArgumentError, match=r"found shape \(9,\), expected \(3,\)"):
        take(x, there, out=(x, None))
    with pytest.raises(ArgumentError, match="stream: found str"):
        take(x, there, stream="fast")


def test_a_failure_of_a_call_that_nobody_waited_for(driver: Control) -> None:
    take = compiled(TAKE)
    x, places = DeviceArray.from_numpy(floats(9)), DeviceArray.from_numpy(np.array([9, 1], np.int64))
    take(x, places)
    with pytest.raises(IndexFailure, match="index 9"):
        take.synchronize()
    take.synchronize()
    first, _ = take(x, places)
    first.wait()
    with pytest.raises(IndexFailure, match="index 9"):
        take(x, DeviceArray.from_numpy(np.array([2, 1], np.int64)))
    np.testing.assert_array_equal(take(x, DeviceArray.from_numpy(np.array([2, 1], np.int64)))[0].numpy(), x.numpy()[[2, 1]])


def test_calls_in_many_streams(driver: Control) -> None:
    """More streams than a model keeps memory for; each has calls under way when the next one begins."""
    chain, x = compiled(CHAIN), floats(40)
    streams = [driver.new_stream() for _ in range(11)]
    inputs = [DeviceArray.from_numpy(x + number, stream=stream) for number, stream in enumerate(streams)]
    for _ in range(3):
        results = [chain(value, stream=stream) for value, stream in zip(inputs, streams)]
        for number, result in enumerate(results):
            assert result.stream == streams[number]
            np.testing.assert_array_equal(result.numpy(), chained(x + number))
    mixed = chain(inputs[3], stream=streams[4])  # what is in another stream is waited for
    chain.synchronize(streams[4])
    np.testing.assert_array_equal(mixed.numpy(), chained(x + 3))


def test_a_call_within_a_capture_of_the_caller(chain: CudaExecutable, driver: Control) -> None:
    """torch.cuda.graph captures its stream: the call becomes part of that graph, and makes none of its own."""
    x, stream = floats(40), driver.new_stream()
    there, target = DeviceArray.from_numpy(x, stream=stream), DeviceArray.from_numpy(np.zeros(40, np.float32), stream=stream)
    for _ in range(3):
        chain(there, out=target, stream=stream)
    chain.synchronize(stream)
    driver.set(count=0)
    with driver.capturing(stream):
        chain(there, out=target, stream=stream)
    assert (driver.calls("cuLaunchKernel"), driver.calls("cuGraphLaunch")) == (3, 0)


def test_times_of_launches(chain: CudaExecutable) -> None:
    x = floats(20)
    profile = chain.profile(x, calls=2)
    np.testing.assert_array_equal(profile.result, chained(x))
    assert len(profile.calls) == 2 and [row[0] for row in profile.calls[0].launches] == [0, 0, 0] and profile.seconds > 0
    assert "add" in str(profile)
    assert isinstance(chain.profile(DeviceArray.from_numpy(x)).result, DeviceArray)


def test_stream_numbers() -> None:
    class Torch:
        cuda_stream = 9

    class Cupy:
        ptr = 8

    class Cuda:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 7

    assert [stream_number(s) for s in (0, 1, 12, Torch(), Cupy(), Cuda())] == [0, 0, 12, 9, 8, 7]


# --- what may go wrong ---


def test_memory_is_given_back(driver: Control) -> None:
    before = driver.used
    for _ in range(3):
        model = compiled(CHAIN)
        model(floats(10_000))
        assert driver.used > before
        del model
    assert driver.used <= before + (1 << 21)


def test_out_of_memory_names_the_figures_and_later_calls_work(driver: Control) -> None:
    chain = compiled(CHAIN)
    chain(floats(10))
    driver.set(memory=driver.used + (8 << 20))
    with pytest.raises(RuntimeFailure, match=r"chain: needs 80000000 bytes of device memory for .*, but only \d+ of the \d+ bytes of device 0 are free; use smaller"):
        chain(floats(10_000_000))
    x = floats(1000)
    np.testing.assert_array_equal(chain(x), chained(x))


def test_unused_memory_is_released_before_a_call_fails(driver: Control) -> None:
    chain = compiled(CHAIN)
    kept = [DeviceArray.empty(np.dtype(np.uint8), (4 << 20,)) for _ in range(4)]
    del kept
    driver.set(memory=driver.used + (1 << 20))
    x = floats(70_000)
    np.testing.assert_array_equal(chain(x), chained(x))


@pytest.mark.parametrize(("function", "error", "words"), [
    ("cuModuleLoadDataEx", 222, "its code for emulated cannot be loaded: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    ("cuModuleGetFunction", 500, "kernel add .* cannot be prepared: CUDA_ERROR_NOT_FOUND"),
    ("cuMemHostAlloc", 2, "allocating pinned memory failed: CUDA_ERROR_OUT_OF_MEMORY"),
    ("cuStreamCreate", 2, "no stream can be made"),
    ("cuMemcpyHtoDAsync_v2", 1, "copying its constants failed"),
    ("cuLaunchKernel", 1, r"launching kernel add \(1 blocks of 64 threads, 0 bytes of shared memory\) failed: CUDA_ERROR_INVALID_VALUE"),
    ("cuMemcpyDtoHAsync_v2", 1, "copying its outputs failed"),
    ("cuCtxPushCurrent_v2", 1, "its device cannot be entered"),
])
def test_a_refused_call_of_the_driver_is_named_and_harms_nothing(driver: Control, function: str, error: int, words: str) -> None:
    chain, x, before = compiled(CHAIN), floats(5), driver.used
    driver.fail(function, error)
    with pytest.raises(RuntimeFailure, match=f"chain: {words}"):
        chain(x)
    np.testing.assert_array_equal(chain(x), chained(x))
    del chain
    assert driver.used <= before + (1 << 21)


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_graph_that_cannot_be_made_is_done_without(driver: Control, function: str) -> None:
    chain, x = compiled(CHAIN), floats(5)
    chain(x)
    driver.fail(function, 1)
    for _ in range(3):
        np.testing.assert_array_equal(chain(x), chained(x))
    assert driver.calls("cuGraphLaunch") == 0


def test_images_for_other_devices(driver: Control) -> None:
    for architecture, words in (("sm_90", "compiled for sm_90, found an emulated device"), ("compute_80", "compiled for compute_80")):
        with pytest.raises(DeviceError, match=words):
            compiled(CHAIN, architecture=architecture)(floats(3))
    with pytest.raises(DeviceError, match="CUDA 13.0, older than CUDA 14.1 that compiled it; update the driver"):
        compiled(CHAIN, data=b"\x7fELF" + bytes(100), toolkit=14010)(floats(3))


def test_damaged_objects_and_constants(chain: CudaExecutable) -> None:
    assert chain.object_code is not None
    with pytest.raises(ArtifactError):
        CudaExecutable.from_object(chain.object_code[:200])
    with pytest.raises(ArtifactError, match="found constants of 3 bytes, expected 80"):
        CudaExecutable.from_object(chain.object_code, b"abc")(floats(3))
    with pytest.raises(ArgumentError, match=r"its constants \(80 bytes\) are not given"):
        CudaExecutable.from_object(chain.object_code)(floats(3))


# --- libraries ---

CALLER = r"""
#include <stdio.h>
#include <stdlib.h>
#include "chain.h"

int main(int count, char **words) {
  char error[1024] = "";
  tw_context context = {TW_ABI_VERSION};
  context.error = error;
  context.error_capacity = sizeof error;
  tw_constants constants;
  tw_cuda_instance *model = NULL;
  int64_t shapes[CHAIN_SHAPE_COUNT] = {atoi(words[1])};
  float x[100], y[100];
  for (int i = 0; i < shapes[0]; i++) x[i] = (float)i;
  const void *inputs[] = {x};
  void *outputs[] = {y};
  int32_t status = chain_open(&context, NULL, &constants);
  if (status == 0) status = chain_load(&context, count > 2 ? atoi(words[2]) : 0, constants.data, &model);
  chain_close(&constants);
  for (int i = 0; i < 3 && status == 0; i++) status = chain_run_host(model, &context, inputs, outputs, shapes);
  if (status == 0) status = chain_wait(model, &context, NULL);
  chain_unload(model);
  printf("%d %s\n", status, status == 0 ? "" : error);
  for (int i = 0; status == 0 && i < shapes[0]; i++) printf("%g ", y[i]);
  return 0;
}
"""


def with_driver(library: Path) -> dict[str, str]:
    """The environment of a process that has this driver."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}


def damaged_driver(folder: Path) -> Path:
    (folder / "libcuda.so.1").write_bytes(b"")
    return folder / "libcuda.so.1"


def saved(chain: CudaExecutable, path: Path, **options: Any) -> Saved:
    described = {"name": "chain", "inputs": [["x", "f32", ["N"]]], "outputs": [["c", "f32", ["N"]]], "workspace": "128*N", "kernels": ["add"],
                 "constants_digest": "ab" * 32, "target": "cuda:emulated"}
    assert chain.object_code is not None
    return save(Code(chain.object_code, chain._model.constants, described), chain, path, **options)


def test_a_library_is_loaded_and_called(chain: CudaExecutable, tmp_path: Path) -> None:
    files = saved(chain, tmp_path / "chain.so")
    again = saved(chain, tmp_path / "other" / "chain.so") if (tmp_path / "other").mkdir() is None else None
    assert again is not None and [f.read_bytes() for f in files.files] == [f.read_bytes() for f in again.files] and files.weights is not None
    loaded = load(files.library)
    assert isinstance(loaded, CudaExecutable) and loaded.architectures == ("emulated",) and loaded.source() == chain.source()
    x = floats(30)
    np.testing.assert_array_equal(loaded(x), chained(x))
    np.testing.assert_array_equal(loaded(DeviceArray.from_numpy(x)).numpy(), chained(x))
    with pytest.raises(ArtifactError, match="chooses its code by the device"):
        load(files.library, variant="cpu")
    assert not files.selftest and "no golden call" in loaded.selftest()
    inside = saved(chain, tmp_path / "inside.so", embed=True)
    assert inside.weights is None
    np.testing.assert_array_equal(load(inside.library)(x), chained(x))


def test_a_program_in_c_calls_the_library(chain: CudaExecutable, tmp_path: Path) -> None:
    saved(chain, tmp_path / "chain.so")
    saved(chain, tmp_path / "chain.a")
    (tmp_path / "caller.c").write_text(CALLER)
    x = np.arange(9, dtype=np.float32)
    expected = " ".join(f"{value:g}" for value in chained(x))
    driver = with_driver(driver_file())
    for library in ("chain.so", "chain.a"):
        command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-pedantic", "caller.c", f"./{library}", "-o", "caller", "-Wl,-rpath,$ORIGIN", "-pthread", "-ldl"]
        subprocess.run(command, cwd=tmp_path, check=True)
        run = subprocess.run(["./caller", "9"], cwd=tmp_path, capture_output=True, text=True, check=True, env=driver)
        assert run.stdout.split("\n") == ["0 ", expected + " "]
    none = subprocess.run(["./caller", "9"], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=with_driver(damaged_driver(tmp_path)))
    assert none.stdout.startswith("-20 no CUDA driver:")
    second = subprocess.run(["./caller", "9", "5"], cwd=tmp_path, capture_output=True, text=True, check=True, env=driver)
    assert second.stdout.startswith("-20 no CUDA device 5: found 1 device")


def test_the_runtime_object_needs_the_c_library_alone() -> None:
    """Of a library for CUDA; tw_runtime.o, which is linked beside it, has a test of its own."""
    c_library = {"__isoc99_sscanf", "sscanf", "calloc", "malloc", "realloc", "free", "memcpy", "memcmp", "memset", "strcmp", "snprintf", "getpid", "dlopen", "dlsym",
                 "dlclose", "dlerror", "pthread_mutex_init", "pthread_mutex_destroy", "pthread_mutex_lock", "pthread_mutex_unlock"}
    beside = {"tw_report", "tw_report_failure", "tw_plan_model", "tw_choose_variant", "tw_dtype_bytes", "_GLOBAL_OFFSET_TABLE_", ""}
    elf = read_elf(CUDA_OBJECT.read_bytes(), "tw_cuda.o")
    assert {symbol.name for symbol in elf.symbols if not symbol.defined} <= c_library | beside
    assert not [name for name in elf.exported() if name]


# --- targets ---


def scaled(x: np.ndarray[Any, Any]) -> Any:
    return np.exp(x) * 2


def compiled_for(target: str) -> Any:
    return tw.compile(scaled, target, args=(tw.spec(("n", 7), np.float32),), options=tw.Options(cache=False))


def test_targets_that_are_not_understood() -> None:
    for target, words in (("cuda:sm_77", "unknown CUDA architecture 'sm_77'"), ("cuda:", "unknown|form"), ("cuda:sm_80,cuda:sm_80", "cuda:sm_80 twice"),
                          ("cuda:sm_80,cpu", "found 'cpu' beside GPUs"), ("cuda:emulated,cuda:sm_80", "expected it alone")):
        with pytest.raises(CompileError, match=words):
            compiled_for(target)


def test_a_compiled_function_end_to_end(driver: Control, tmp_path: Path) -> None:
    x = floats(5, 7)
    for target in ("cuda", "cuda:emulated"):
        run = compiled_for(target)
        assert run.target == "cuda:emulated"
        np.testing.assert_allclose(run(x), scaled(x), rtol=1e-6)
        np.testing.assert_allclose(run(DeviceArray.from_numpy(x)).numpy(), scaled(x), rtol=1e-6)
    assert "elements" in str(run.explain(x, calls=1)) and "ms total" in str(run.profile(x))
    np.testing.assert_allclose(load(run.save(tmp_path / "scaled.so").library)(x), scaled(x), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="there is neither NVRTC nor nvcc")
def test_images_for_several_architectures() -> None:
    run = compiled_for("cuda:sm_90a,cuda:sm_80")
    assert run.architectures == ("sm_80", "sm_90a", "compute_80")
    images = [run._on_devices.native.image(name) for name in run.architectures]
    assert images[0][:4] == images[1][:4] == b"\x7fELF" and b".target sm_80" in images[2]
    with pytest.raises(DeviceError, match="compiled for sm_80, sm_90a, compute_80, found an emulated device"):
        run(floats(2, 7))


# --- processes with a driver of their own ---


def in_process(body: str, driver: Path | None = None) -> str:
    """The output of a process of its own."""
    finished = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, env=with_driver(driver or driver_file()))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


ASK = """
from tests.emulated import emulated_driver
from tilewright.runtime import _cuda
from tilewright.ir.errors import DeviceError
{}
try:
    print(_cuda.device_count(), _cuda.describe_device({}))
except DeviceError as error:
    print(error)
"""


def test_machines_without_a_driver_or_device(tmp_path: Path) -> None:
    assert "no CUDA driver: " in in_process(ASK.format("", 0), damaged_driver(tmp_path))
    assert "the driver finds none" in in_process(ASK.format("emulated_driver().set(devices=0)", 0))
    assert "too old: found one for CUDA 11.8, expected 12.0 or newer" in in_process(ASK.format("emulated_driver().set(version=11080)", 0))
    out = in_process(ASK.format("", 0) + ASK.format("", 2))
    assert "no CUDA device 2: found 1 device" in out and "'architecture': 'emulated'" in out


def test_a_kernel_that_fails_leaves_the_device_lost(driver: Control) -> None:
    out = in_process("""
from tests.test_cuda_runtime import *
stray, chain = compiled(STRAY), compiled(CHAIN)
chain(floats(3))
for call in (lambda: stray(floats(3)), lambda: chain(floats(3)), lambda: stray(floats(3))):
    try:
        call()
    except DeviceError as error:
        print(str(error).replace(chr(10), " "))
print("done")
""")
    first, second, third, *_ = out.splitlines()
    assert first.startswith("stray: a kernel failed: CUDA_ERROR_LAUNCH_FAILED (719)") and "astray" in first and "start a new one" in first
    assert second.startswith("chain: a kernel failed before this call: CUDA_ERROR_LAUNCH_FAILED") and "stray:" in third and "done" in out


def test_devices_are_told_apart_and_a_fork_is_refused(driver: Control) -> None:
    out = in_process("""
from tests.test_cuda_runtime import *
driver = emulated_driver()
driver.set(devices=2)
chain, x = compiled(CHAIN), floats(9)
on_second = chain.on_device(1)
assert np.array_equal(on_second(x), chained(x)) and np.array_equal(chain(x), chained(x))
there = DeviceArray.from_numpy(x, 1)
assert np.array_equal(chain(there).numpy(), chained(x))
try:
    chain.on_device(0)(there)
except DeviceError as error:
    print(error)
try:
    compiled(TAKE)(there, DeviceArray.from_numpy(np.zeros(2, np.int64), 0))
except DeviceError as error:
    print(error)
child = os.fork()
if child == 0:
    try:
        chain(x)
    except DeviceError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
""")
    assert "input 'x': the tensor is on cuda:1, expected cuda:0" in out and "input 'y': the tensor is on cuda:0, expected cuda:1" in out
    assert "this process was forked from one that uses CUDA" in out
