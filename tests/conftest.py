"""Options and settings that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tilewright import build
from tilewright.backends.llvm.compile import CompiledObject
from tilewright.backends.llvm.targets import Target
from tilewright.ir.loop import Kernel
from tilewright.ir.program import Program
from tilewright.ir.schedule import Schedule, apply_schedule
from tilewright.lowering import kernels

# Random tests repeat themselves in continuous integration; a failure prints what reproduces it.
hypothesis.settings.register_profile("tilewright", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tilewright")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected half of tests/golden files")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def schedules_are_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowering leaves a step out that is not shown to be legal; in tests that is an error."""
    def applied(plain: Kernel, schedule: Schedule) -> tuple[Kernel, Schedule]:
        return apply_schedule(plain, schedule), schedule

    monkeypatch.setattr(kernels, "apply_legal", applied)


@pytest.fixture
def quick_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets LLVM generate code at its lowest level: in a third of the time, and wrong where our own code is."""
    _generate_quickly(monkeypatch)


@pytest.fixture(scope="module")
def quick_code_in_file() -> Iterator[None]:
    """The same for all tests of a file, and for what its fixtures compile."""
    with pytest.MonkeyPatch.context() as patch:
        _generate_quickly(patch)
        yield


def _generate_quickly(patch: pytest.MonkeyPatch) -> None:
    def generated(program: Program, target: Target, digest: str, quick: bool = False, prefix: str = build.OBJECT_PREFIX) -> CompiledObject:
        return generate(program, target, digest, True, prefix)

    generate = build.generate
    patch.setattr(build, "generate", generated)


@pytest.fixture(scope="module")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A compile cache for the tests of one file, which holds whatever an editor does to the sources meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("tilewright.driver.sources_changed", lambda: False)
        yield


# Left out of `make check`, which is for in between: single strategies of the lowering, vector math, processes and
# full disks, and the fuzzer. `make test` runs them.
SLOW_FILES = frozenset(f"test_{name}.py" for name in (
    "bad_input", "cache", "contraction_blocks", "coverage", "fuzz", "fuzz_graphs", "fuzz_kernels", "llvm_backend", "math",
    "few_rows", "fuzz_devices", "fuzz_families", "fuzz_patterns", "onnx_hostile", "onnx_loops", "onnx_node_ops", "onnx_nodes", "onnxruntime_programs",
    "packing_at_run_time", "pack_operands", "rows", "runtime", "siblings", "sorting", "streams", "symmetric_products", "tile_edges",
    "tuning", "windows", "winograd"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` chooses by marks."""
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
