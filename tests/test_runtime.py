"""The runtime on its own: loading, calling, threads, forks, artifacts and bad input.

The model is written in C (runtime_model/model.c) and compiled by the system's compiler, so nothing here needs the
compiler.
"""

from __future__ import annotations

import array
import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tilewright.ir.errors import ArgumentError, ArtifactError, IndexFailure, RuntimeFailure, TilewrightError
from tilewright.runtime import _cuda, _native, artifact, linking
from tilewright.runtime.buffer import TensorInfo, convert_input
from tilewright.runtime.elf_file import read_elf
from tilewright.runtime.executable import Executable

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "runtime_model" / "model.c"
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
TABLE = np.array([10, 20, 30, 40, 50], dtype=np.float32)
SEGMENT = np.concatenate([WEIGHT.ravel(), TABLE]).tobytes().ljust(128, b"\0")

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def expected(x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, int]:
    return (x * 2) @ WEIGHT + TABLE[index][:, None], int(index.sum())


def sample(batch: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((batch, 4), dtype=np.float32), random.integers(-5, 5, batch)


def golden_section() -> bytes:
    x, index = sample(3)
    y, total = expected(x, index)
    return artifact.make_golden([x, index], [y.astype(np.float32), np.array(total)])


@pytest.fixture(scope="session")
def compile_model(tmp_path_factory: pytest.TempPathFactory):
    folder, counter, done = tmp_path_factory.mktemp("models"), itertools.count(), {}

    def compile_with(*flags: str) -> bytes:
        if flags not in done:
            output = folder / f"{next(counter)}.o"
            subprocess.run(
                [
                    "cc",
                    "-std=c99",
                    "-O1",
                    "-fPIC",
                    "-fno-stack-protector",
                    f"-I{ROOT / 'csrc'}",
                    "-c",
                    MODEL,
                    "-o",
                    output,
                    *flags,
                ],
                check=True,
            )
            done[flags] = output.read_bytes()
        return done[flags]

    return compile_with


@pytest.fixture(scope="session")
def object_code(compile_model) -> bytes:
    return compile_model()


@pytest.fixture(params=[1, 2, 5])
def model(object_code: bytes, request: pytest.FixtureRequest) -> Executable:
    return Executable.from_object(object_code, SEGMENT, threads=request.param)


def save(folder: Path, compile_model, name: str, golden: bytes = b"") -> Path:
    """What the driver's save does, with the C compiler in place of the LLVM backend."""
    code = compile_model(f"-DNAME={name}", "-DPREFIXED", f"-DGOLDEN_BYTES={len(golden)}")
    linking.link_shared(code, folder / f"{name}.so", artifact.public_symbols(name))
    artifact.write_constants(folder / f"{name}.weights", SEGMENT + golden, "feed")
    loaded = artifact.load_library(folder / f"{name}.so")
    header = artifact.make_header(name, loaded.inputs, loaded.outputs, version="0.1.0", constants_bytes=128 + len(golden))
    artifact.write_bytes(folder / f"{name}.h", header.encode())
    return folder / f"{name}.so"


# --- calls ---


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 1000])
def test_call(model: Executable, batch: int) -> None:
    x, index = sample(batch)
    y, total = model(x, index)
    want_y, want_total = expected(x, index)
    np.testing.assert_allclose(y, want_y, rtol=1e-5)
    assert y.dtype == np.float32 and total.shape == () and total == want_total


def test_call_forms(model: Executable) -> None:
    x, index = sample()
    want, _ = model(x, index)
    for result in (model(x, index=index)[0], model(index=index, x=x)[0], model.run({"x": x, "index": index})["y"]):
        np.testing.assert_array_equal(result, want)


def test_description(model: Executable) -> None:
    assert [str(info) for info in model.inputs] == ["x: float32[batch, 4]", "index: int64[batch]"]
    assert [str(info) for info in model.outputs] == ["y: float32[batch, 3]", "total: int64[]"]
    assert model.kernels == ("double", "dot_add") and model.workspace_bytes is None
    assert model.plan((6, 4), (6,)) == ([(6, 3), ()], 96)
    assert bytes(memoryview(model.constants)) == SEGMENT


def test_profile(model: Executable) -> None:
    x, index = sample(1000)
    profile = model.profile(x, index)
    np.testing.assert_array_equal(profile.result[0], model(x, index)[0])
    assert [kernel.name for kernel in profile.kernels] == ["double", "dot_add"]
    assert all(0 < kernel.seconds < 1 for kernel in profile.kernels)


def test_layouts_are_copied(model: Executable) -> None:
    x, index = sample()
    want, _ = model(x, index)
    misaligned = np.frombuffer(b"\0" + x.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(x.shape)
    strided = np.repeat(x, 2, axis=0)[::2]
    for variant in (np.asfortranarray(x), misaligned, strided, x.astype(">f4"), x[::-1][::-1]):
        np.testing.assert_array_equal(model(variant, index)[0], want)
    np.testing.assert_array_equal(model(x, index[::-1].astype(">i8")[::-1])[0], want)


class Subclass(np.ndarray):
    """An array of a user's own class."""


class Interface:
    """Has nothing but __array_interface__."""

    def __init__(self, held: np.ndarray) -> None:
        self.held = held
        self.__array_interface__ = held.__array_interface__


class Packed:
    """Has nothing but DLPack, on a device of choice."""

    def __init__(self, held: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.held, self.device = held, device

    def __dlpack__(self, **options: object) -> object:
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_other_containers_share_memory(model: Executable) -> None:
    x, index = sample()
    want, _ = model(x, index)
    info = model.inputs[0]
    for variant in (memoryview(x), Interface(x), Packed(x), x.view(Subclass)):
        np.testing.assert_array_equal(model(variant, index)[0], want)
        assert np.shares_memory(convert_input("m", info, variant), x)
    np.testing.assert_array_equal(model(x, array.array("q", index.tolist()))[0], want)


def test_bfloat16_by_dlpack() -> None:
    """NumPy makes no such capsules: what takes one in for a device makes it, and the type of the device is put right in its memory."""
    held = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    references = sys.getrefcount(held)
    capsule = _cuda.make_dlpack(held.ctypes.data, 0, held.shape, 4, 16, held)
    with pytest.raises(ValueError, match="not in CPU memory"):
        _native.import_dlpack_bfloat16(capsule)
    ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = 1
    taken = _native.import_dlpack_bfloat16(capsule)
    assert taken.dtype == held.dtype and taken.tolist() == held.tolist() and np.shares_memory(taken, held)
    with pytest.raises(ValueError, match="used before"):
        _native.import_dlpack_bfloat16(capsule)
    with pytest.raises(ValueError, match="not bfloat16"):
        _native.import_dlpack_bfloat16(np.ones(2, np.float32).__dlpack__())
    assert sys.getrefcount(held) == references + 1
    del taken
    assert sys.getrefcount(held) == references


def test_gpu_tensor_is_refused_by_name(model: Executable) -> None:
    x, index = sample()
    with pytest.raises(ArgumentError, match=r"input 'x': the tensor is on cuda:1, expected the CPU"):
        model(Packed(x, (2, 1)), index)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, i: (x,), r"found 1 inputs, expected 2 \(x: float32\[batch, 4\], index: int64\[batch\]\)"),
        (lambda x, i: (x, i, x), "found 3 inputs, expected 2"),
        (lambda x, i: (x.astype(np.float64), i), r"input 'x': found float64\[7, 4\], expected x: float32\[batch, 4\]"),
        (lambda x, i: (x, i.astype(np.int32)), r"input 'index': found int32\[7\]"),
        (lambda x, i: (x[0], i), "input 'x': found rank 1"),
        (lambda x, i: (x[:, :3], i), r"input 'x', axis 1: found size 3, expected 4"),
        (lambda x, i: (x, i[:5]), r"input 'index', axis 0 \(batch\): found size 5, expected 7"),
        (lambda x, i: (None, i), "input 'x': found NoneType, expected an array"),
        (lambda x, i: ([1.0], i), "input 'x': found list"),
        (lambda x, i: (np.ma.array(x), i), "masked array"),
        (lambda x, i: (3.5, i), "input 'x': found rank 0"),
        (lambda x, i: (x.astype(object), i), "input 'x': found object"),
    ],
)
def test_wrong_arguments(model: Executable, arguments, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model(*arguments(*sample()))


def test_wrong_names(model: Executable) -> None:
    x, index = sample()
    for call, message in [
        (lambda: model(x, z=index), "found input 'z'"),
        (lambda: model(x, x=x), "by position and by name"),
        (lambda: model(x=x), "missing input index"),
        (lambda: model.run({}), "missing inputs x, index"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()


def test_scalars() -> None:
    def convert(dtype: object, value: object) -> np.ndarray:
        return convert_input("m", TensorInfo("s", np.dtype(dtype), ()), value)

    assert convert("float32", 0.5) == np.float32(0.5) and convert("float32", 3).dtype == np.float32
    assert convert("int8", -128) == -128 and convert("bool", True).dtype == np.bool_
    assert convert(ml_dtypes.bfloat16, 1.5).dtype == ml_dtypes.bfloat16
    assert np.isnan(convert("float16", float("nan"))) and convert("float16", float("-inf")) == -np.inf
    assert convert("int64", np.int64(4)).shape == ()
    for dtype, value in [
        ("int8", 128),
        ("uint8", -1),
        ("int32", 0.5),
        ("float32", True),
        ("float16", 1e6),
        ("float32", 1e300),
        ("float32", 10**400),
        ("bool", 1),
        ("float64", 1j),
        ("float32", np.float64(1)),
    ]:
        with pytest.raises(ArgumentError, match="input 's': found"):
            convert(dtype, value)


def test_index_error_has_source(model: Executable) -> None:
    x, index = sample()
    index[3] = 5
    for _ in range(3):
        with pytest.raises(IndexFailure, match=r"take: model.py:12: index 5 is out of bounds for axis with size 5"):
            model(x, index)
    index[3] = 4
    model(x, index)


# --- out= ---


def test_out(model: Executable) -> None:
    x, index = sample()
    want, total = model(x, index)
    y, sum_ = np.empty((7, 3), np.float32), np.empty((), np.int64)
    result = model(x, index, out=(y, sum_))
    assert result[0] is y and result[1] is sum_
    np.testing.assert_array_equal(y, want)
    assert sum_ == total
    strided, swapped = np.empty((3, 7), np.float32).T, np.empty((7, 3), ">f4")
    for target in (strided, swapped, np.empty((7, 3), np.float32)):
        assert model(x, index, out=[target, None])[0] is target
        np.testing.assert_array_equal(target, want)


def test_out_overlaps_an_input(model: Executable) -> None:
    memory = np.zeros(64, np.float32)
    for shift in (0, 1, 5, 28):
        x = memory[8:36].reshape(7, 4)
        x[...] = sample()[0]
        index = sample()[1]
        want, _ = model(x.copy(), index)
        target = memory[shift : shift + 21].reshape(7, 3)
        np.testing.assert_array_equal(model(x, index, out=(target, None))[0], want)
        assert model(x, index, out=(target, None))[0] is target


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda: np.empty((7, 3), np.float32), "found 1 arrays, expected 2"),
        (lambda: (np.empty((7, 4), np.float32), None), r"output 'y': found float32\(7, 4\), expected float32\(7, 3\)"),
        (lambda: (np.empty((7, 3), np.float64), None), "found float64"),
        (lambda: (np.broadcast_to(np.float32(0), (7, 3)), None), "read only"),
        (lambda: ([1], None), "found list, expected an array"),
        (lambda: 3, "found int, expected an array or a tuple"),
    ],
)
def test_wrong_out(model: Executable, out, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        model(*sample(), out=out())


# --- threads and processes ---


def test_same_bits_for_any_number_of_threads(object_code: bytes) -> None:
    x, index = sample(10007)
    results = [Executable.from_object(object_code, SEGMENT, threads=threads)(x, index)[0].tobytes() for threads in (1, 2, 3, 8)]
    assert len(set(results)) == 1


def test_concurrent_callers(model: Executable) -> None:
    failures: list[object] = []

    def work(seed: int) -> None:
        x, index = sample(50 + seed, seed)
        want, total = expected(x, index)
        for _ in range(200):
            y, found = model(x, index)
            if not np.allclose(y, want, rtol=1e-4) or found != total:
                failures.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_before_and_after_use(model: Executable) -> None:
    x, index = sample(100)
    want, _ = model(x, index)
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [model(x, index) for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                same = all(np.array_equal(model(x, index)[0], want) for _ in range(20))
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
            np.testing.assert_array_equal(model(x, index)[0], want)
    finally:
        stop.set()
        busy.join()


def test_pool_stops_and_restarts(model: Executable) -> None:
    x, index = sample()
    want, _ = model(x, index)
    assert _native.stop_pool() == 1
    np.testing.assert_array_equal(model(x, index)[0], want)


def test_threads_respect_affinity() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from tilewright.runtime import _native; print(_native.default_threads())"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "1\n"


def test_import_is_light() -> None:
    script = (
        "import sys, tilewright.runtime.artifact;"
        "print([name for name in ('llvmlite', 'networkx', 'onnx', 'ml_dtypes', 'tilewright.ir.graph') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_too_much_memory_is_refused(compile_model) -> None:
    greedy = Executable.from_object(compile_model("-DWORKSPACE_FACTOR=100000000000"), SEGMENT)
    with pytest.raises(RuntimeFailure, match=r"needs 11200000000000 bytes of workspace, but only \d+ bytes"):
        greedy(*sample())


# --- loading bad code ---


def test_wrong_version(compile_model) -> None:
    with pytest.raises(ArtifactError, match=r"ABI version 99, this runtime expects 2"):
        Executable.from_object(compile_model("-DVERSION_NUMBER=99"), SEGMENT)


def test_missing_cpu_feature(compile_model) -> None:
    for features, name in (("sse2,amx-complex-9", "amx-complex-9"), ("+sse2,-avx2,+no-such", "no-such")):
        with pytest.raises(ArtifactError, match=f"compiled for a CPU with {name}, which this one lacks"):
            Executable.from_object(compile_model(f'-DFEATURES="{features}"'), SEGMENT)


def test_cpu_features_agree_with_the_kernel() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    names = {
        "avx2": "avx2",
        "fma": "fma",
        "avx512f": "avx512f",
        "avx512vl": "avx512vl",
        "bmi1": "bmi",
        "bmi2": "bmi2",
        "f16c": "f16c",
        "sse4_2": "sse4.2",
        "popcnt": "popcnt",
        "abm": "lzcnt",
        "avx512_vnni": "avx512vnni",
        "avx512_bf16": "avx512bf16",
        "movbe": "movbe",
        "sha_ni": "sha",
        "vaes": "vaes",
        "sse4a": "sse4a",
        "amx_tile": "amx-tile",
    }
    for flag, name in names.items():
        assert (_native.missing_feature(name) is None) == (flag in flags), name


def test_wrong_constants(object_code: bytes) -> None:
    with pytest.raises(ArtifactError, match="found constants of 5 bytes, expected 128"):
        Executable.from_object(object_code, b"12345")
    with pytest.raises(ArtifactError, match="its constants are not loaded"):
        Executable.from_object(object_code)(*sample())


def test_truncated_object(object_code: bytes) -> None:
    for size in [*range(200), *range(200, len(object_code), 97)]:
        with pytest.raises(ArtifactError):
            Executable.from_object(object_code[:size], SEGMENT)


def test_damaged_object_never_crashes(object_code: bytes) -> None:
    """Headers, section table, symbols and relocations with random bytes: an error or a load, in a child to be safe."""
    script = """
import sys, numpy as np
from tilewright.runtime import _native
from tilewright.ir.errors import ArtifactError
code = sys.stdin.buffer.read()
table = int.from_bytes(code[40:48], "little")
ranges = [(0, 64), (table, len(code))]
for index in range((len(code) - table) // 64):
    entry = code[table + 64 * index:table + 64 * index + 64]
    kind, offset, size = (int.from_bytes(entry[at:at + n], "little") for at, n in ((4, 4), (24, 8), (32, 8)))
    if kind in (2, 4): ranges.append((offset, offset + size))
random, refused = np.random.default_rng(0), 0
for _ in range(4000):
    damaged = bytearray(code)
    for _ in range(random.integers(1, 4)):
        start, end = ranges[random.integers(len(ranges))]
        damaged[random.integers(start, end)] = random.integers(256)
    try:
        _native.Model.from_object(bytes(damaged), "no_such_symbol", None, None)
    except ArtifactError as error:
        refused += "no_such_symbol" not in str(error)
print(refused)
"""
    result = subprocess.run([sys.executable, "-c", script], input=object_code, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert int(result.stdout) > 100


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "extern int printf(const char*, ...); const void *const tw_model = &printf;",
            "refers to 'printf', which the runtime does not provide",
        ),
        ("int counter = 1; int *tw_model(void) { return &counter; }", r"section \.data is writable"),
        ("__thread int local; int *tw_model(void) { return &local; }", "thread-local"),
        ("__attribute__((constructor)) void tw_model(void) {}", "constructors"),
        ("const int other = 1;", "does not define 'tw_model'"),
    ],
)
def test_unsuitable_object(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["cc", "-fPIC", "-O1", "-c", "a.c", "-o", "a.o"], cwd=tmp_path, check=True)
    with pytest.raises(ArtifactError, match=message):
        Executable.from_object((tmp_path / "a.o").read_bytes())


# --- ahead of time ---


def test_library_round_trip(tmp_path: Path, compile_model) -> None:
    loaded = artifact.load_library(save(tmp_path, compile_model, "mlp", golden_section()))
    x, index = sample()
    np.testing.assert_allclose(loaded(x, index)[0], expected(x, index)[0], rtol=1e-5)
    assert loaded.selftest() == ""
    with pytest.raises(ArtifactError, match="cannot be saved"):
        loaded.save("again.so")


def test_object_with_wrappers_runs_in_process(compile_model) -> None:
    model = Executable.from_object(compile_model("-DNAME=mlp", "-DPREFIXED", "-DGOLDEN_BYTES=0"), SEGMENT, symbol="mlp_model")
    x, index = sample()
    np.testing.assert_allclose(model(x, index)[0], expected(x, index)[0], rtol=1e-5)
    assert "carries no recorded call" in model.selftest()


def test_selftest_finds_a_difference(tmp_path: Path, compile_model) -> None:
    golden = golden_section()
    save(tmp_path, compile_model, "mlp", golden)
    wrong = np.frombuffer(SEGMENT, np.float32).copy()
    wrong[0] += 0.01
    artifact.write_constants(tmp_path / "mlp.weights", wrong.tobytes() + golden, "feed")
    with pytest.raises(RuntimeFailure, match="selftest: output 'y' differs from the recorded one at element 0"):
        artifact.load_library(tmp_path / "mlp.so").selftest()
    for position in range(0, 104, 8):  # every word of its table
        damaged = bytearray(golden)
        damaged[position : position + 8] = b"\x7f" * 8
        artifact.write_constants(tmp_path / "mlp.weights", SEGMENT + damaged, "feed")
        with pytest.raises(TilewrightError):
            artifact.load_library(tmp_path / "mlp.so").selftest()


def test_library_exports_and_needs_little(tmp_path: Path, compile_model) -> None:
    path = save(tmp_path, compile_model, "mlp")
    assert sorted(read_elf(path.read_bytes(), "so").exported()) == sorted(artifact.public_symbols("mlp"))
    dynamic = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libm.so.6"}


def test_builds_are_identical(tmp_path: Path, compile_model) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        save(folder, compile_model, "mlp")
        linking.make_archive(folder / "mlp.a", compile_model("-DNAME=mlp", "-DPREFIXED", "-DGOLDEN_BYTES=0"), "mlp.o")
        assert sorted(path.name for path in folder.iterdir()) == ["mlp.a", "mlp.h", "mlp.so", "mlp.weights"]
    for name in ("mlp.a", "mlp.h", "mlp.so", "mlp.weights"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("linker", ["cc", "ld"])
def test_linkers(tmp_path: Path, compile_model, linker: str) -> None:
    found = shutil.which(linker)
    if found is None:
        pytest.skip(f"no {linker}")
    code = compile_model("-DNAME=mlp", "-DPREFIXED", "-DGOLDEN_BYTES=0")
    linking.link_shared(code, tmp_path / "mlp.so", artifact.public_symbols("mlp"), linker=linking.Linker((found,), linker == "cc"))
    artifact.write_constants(tmp_path / "mlp.weights", SEGMENT, "feed")
    x, index = sample()
    np.testing.assert_allclose(artifact.load_library(tmp_path / "mlp.so", threads=2)(x, index)[0], expected(x, index)[0], rtol=1e-5)


@pytest.mark.parametrize("static", [False, True])
def test_two_models_in_one_c_program(tmp_path: Path, compile_model, static: bool) -> None:
    golden = golden_section()
    libraries = []
    for name in ("first", "second"):
        save(tmp_path, compile_model, name, golden)
        libraries.append(f"{name}.so")
        if static:
            code = compile_model(f"-DNAME={name}", "-DPREFIXED", f"-DGOLDEN_BYTES={len(golden)}")
            linking.make_archive(tmp_path / f"{name}.a", code, f"{name}.o")
            libraries[-1] = f"{name}.a"
    subprocess.run(
        [
            "cc",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Wno-missing-field-initializers",
            "-Werror",
            "-pedantic",
            "-I.",
            ROOT / "tests/runtime_model/main.c",
            *libraries,
            "-pthread",
            "-Wl,-rpath,$ORIGIN",
            "-o",
            "program",
        ],
        cwd=tmp_path,
        check=True,
    )
    result = subprocess.run([tmp_path / "program"], capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stdout
    x, index = np.arange(1, 9, dtype=np.float32).reshape(2, 4), np.array([0, 4])
    values = " ".join(f"{value:g}" for value in expected(x, index)[0].ravel())
    failure = "take: model.py:12: index 9 is out of bounds for axis with size 5"
    want = [
        line
        for key, name in (("a", "first"), ("b", "second"))
        for line in (f"{key} {name}: {values}, total 4, workspace 32", f"{key}: -1 {failure}")
    ]
    assert result.stdout.splitlines() == want


def test_headers_as_cpp(tmp_path: Path, compile_model) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    save(tmp_path, compile_model, "first")
    (tmp_path / "a.cpp").write_text('#include "first.h"\n#include "first.h"\nint main() { return first_describe()->input_count - 2; }\n')
    subprocess.run(
        ["c++", "-Wall", "-Wextra", "-Werror", "-pedantic", "a.cpp", "first.so", "-Wl,-rpath,$ORIGIN", "-o", "a"],
        cwd=tmp_path,
        check=True,
    )
    subprocess.run([tmp_path / "a"], check=True)


@pytest.mark.parametrize("unload", ["close", "exit"])
def test_unloading_with_a_running_pool(tmp_path: Path, compile_model, unload: str) -> None:
    """dlclose must stop the library's own threads before its code goes away."""
    save(tmp_path, compile_model, "mlp", golden_section())
    (tmp_path / "a.c").write_text("""
#include <dlfcn.h>
#include "mlp.h"
int main(void) {
  for (int round = 0; round < 50; round++) {
    void *library = dlopen("./mlp.so", RTLD_NOW);
    tw_context context = {TW_ABI_VERSION, 3};
    tw_constants constants;
    int32_t (*open)(const tw_context *, const char *, tw_constants *) = dlsym(library, "mlp_open");
    int32_t (*test)(const tw_context *, const uint8_t *) = dlsym(library, "mlp_selftest");
    if (open(&context, 0, &constants) || test(&context, constants.data)) return 1;
    if (UNLOAD && dlclose(library)) return 2;
  }
  return 0;
}
""")
    subprocess.run(["cc", f"-DUNLOAD={int(unload == 'close')}", "a.c", "-ldl", "-o", "a"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "a"], cwd=tmp_path, check=True, timeout=60)


def test_damaged_library(tmp_path: Path, compile_model) -> None:
    path = save(tmp_path, compile_model, "mlp")
    whole = path.read_bytes()
    for size in [0, 3, 60, 500, 3000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            artifact.load_library(path)
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        artifact.load_library(tmp_path / "none.so")


def test_damaged_weights(tmp_path: Path, compile_model) -> None:
    path = save(tmp_path, compile_model, "mlp")
    weights = tmp_path / "mlp.weights"
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[4100] ^= 1
    cases = [
        (whole[:-1], "truncated"),
        (whole[:100], "too short"),
        (b"x" + whole[1:], "wrong magic"),
        (bytes(flipped), "checksum differs"),
    ]
    for data, message in cases:
        weights.write_bytes(data)
        with pytest.raises(ArtifactError, match=message):
            artifact.load_library(path)
    artifact.write_constants(weights, SEGMENT, "beef")
    with pytest.raises(ArtifactError, match="found digest beef, the model expects feed: it belongs to another model"):
        artifact.load_library(path)
    artifact.write_constants(weights, SEGMENT + b"x", "feed")
    with pytest.raises(ArtifactError, match="found constants of 129 bytes, the model expects 128"):
        artifact.load_library(path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"its constants are missing: looked for .*mlp\.weights"):
        artifact.load_library(path)


def test_saving_where_it_cannot_be(tmp_path: Path, compile_model, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile_model("-DNAME=mlp", "-DPREFIXED", "-DGOLDEN_BYTES=0")
    with pytest.raises(ArtifactError, match="cannot be written: No such file"):
        linking.link_shared(code, tmp_path / "none" / "mlp.so", artifact.public_symbols("mlp"))
    with pytest.raises(ArtifactError, match="does not define other_describe"):
        linking.link_shared(code, tmp_path / "mlp.so", artifact.public_symbols("other"))
    with pytest.raises(ArtifactError, match="linking failed"):
        linking.link_shared(code, tmp_path / "mlp.so", artifact.public_symbols("mlp"), linker=linking.Linker(("/bin/false",), True))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"no linker found(.|\n)*apt install"):
        linking.link_shared(code, tmp_path / "mlp.so", artifact.public_symbols("mlp"))
    with pytest.raises(ArtifactError, match="expected a C identifier"):
        artifact.check_prefix("my-model")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "f.weights"
    artifact.write_constants(target, b"1" * 64, "a")
    before = target.read_bytes()
    with pytest.raises(KeyboardInterrupt), artifact.replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_checksum_is_xxh64() -> None:
    assert _native.checksum(b"") == 0xEF46DB3751D8E999
    assert _native.checksum(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1


def test_runtime_object_needs_the_c_library_only() -> None:
    names = {symbol.name for symbol in read_elf(linking.RUNTIME_OBJECT.read_bytes(), "tw_runtime.o").symbols if not symbol.defined}
    foreign = {name for name in names if name.startswith(("_Z", "__cxa", "__gxx", "_Unwind", "__stack_chk", "__tls"))}
    assert not foreign
    exported = [name for name in read_elf(linking.RUNTIME_OBJECT.read_bytes(), "tw_runtime.o").exported() if name]
    assert not exported
