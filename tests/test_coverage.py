"""Coverage for fuzzing: instrumented code does what it did, and each outcome of a branch is seen once, by whoever records."""

from __future__ import annotations

import ctypes
import dis
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import pytest

from tests.kernel_checks import CAPS, QUIET
from tilewright.fuzz import edges
from tilewright.fuzz.arcs import ENTRY, HANDLER, Arc, Watched, parse_arc
from tilewright.fuzz.coverage import Coverage, compiler_folders
from tilewright.fuzz.edges import Edges, use_runtime
from tilewright.fuzz.generate import random_graph
from tilewright.ir.printer import format_graph
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime import relocatable

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {name: Path(folder) for folder, name in compiler_folders().items() if name is not None}
with_probes = pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions need no probes")
PROGRAM = '''
def sign(x):
    if x > 0:
        return 1
    elif x < 0:
        return -1
    return 0

def both(a, b):
    return "yes" if a and b else "no"

def total(values):
    found = 0
    for value in values:
        if value is None:
            continue
        found += value
    return found

def guarded(x):
    try:
        return 10 // x
    except ZeroDivisionError:
        return None
    finally:
        log.append(x)

def tree(n):
    if n:
        yield from tree(n - 1)
        received = yield n
        while received:
            received = yield received - 1

def maker(n):
    def inner(x):
        return x + n if x else n
    return inner

log = []
'''
SHAPES = '''
import asyncio, contextlib

class Box:
    """All kinds of control flow."""
    __match_args__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b

    @property
    def size(self):
        return self.a if self.a is not None else self.b

def matched(value):
    match value:
        case Box(1, b=[x, *rest]) if x:
            return ("box", x, rest)
        case {"k": (1 | 2) as k, **others}:
            return ("dict", k, others)
        case [x, y] | [x, y, _]:
            return ("list", x, y)
        case str():
            return "text"
        case _:
            return None

@contextlib.contextmanager
def managed(log, swallow):
    log.append("in")
    try:
        yield log
    except ValueError as error:
        log.append(f"caught {error}")
        if not swallow:
            raise
    finally:
        log.append("out")

def nested(n, log):
    for i in range(n):
        try:
            with managed(log, i % 2) as l, managed(log, True):
                if i == 1:
                    raise ValueError(i)
                if i == 3:
                    raise KeyError(i)
                if i == 4:
                    break
                l.append(i)
        except (KeyError, ValueError) as error:
            log.append(repr(error))
            continue
        else:
            log.append("else")
        finally:
            log.append("finally")
    else:
        log.append("complete")
    return log

def groups(errors):
    caught = []
    try:
        raise ExceptionGroup("g", errors)
    except* ValueError as found:
        caught.append(("value", len(found.exceptions)))
    except* (KeyError, TypeError) as found:
        caught.append(("key", len(found.exceptions)))
    return caught

def chained(a, b, c):
    return a < b < c or (not a and b) or [x for x in (a, b, c) if x if x > 1] or {k: v for k, v in zip("ab", (a, b)) if v}

def countdown(n):
    while n:
        n -= 1
        if n == 7:
            n += 0
        elif n == 5:
            return "five"
    return "none"

async def numbers(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i

async def summed(n):
    found = 0
    async for i in numbers(n):
        if i % 2:
            continue
        found += i
    return found + sum([i async for i in numbers(3) if i])

def long_one(x):
    found = []
    for i in range(3):
        if x == i:
LINES
        elif x < 0:
            break
        else:
            found.append(None)
    return found

def closed(values):
    generator = (value for value in values)
    next(generator, None)
    generator.close()
    return list(generator)

def run():
    out = [matched(v) for v in (Box(1, [5, 6]), Box(1, [0]), Box(2, []), {"k": 2, "z": 0}, {"k": 3}, [1, 2], [1, 2, 3], [1], "t", 4)]
    out += [Box(None, 2).size, Box(1, 2).size]
    out += [nested(n, []) for n in range(7)]
    out += [groups(e) for e in ([ValueError()], [KeyError(), TypeError()], [ValueError(), KeyError()])]
    try:
        groups([OSError()])
    except ExceptionGroup as error:
        out.append(repr(error))
    out += [chained(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    out += [countdown(n) for n in (0, 3, 9)]
    out += [asyncio.run(summed(n)) for n in (0, 1, 6)]
    out += [long_one(x) for x in (-1, 1, 5)]
    out += [closed([]), closed([1, 2, 3])]
    return out
'''.replace("LINES", "\n".join(f"            found.append(x * {i} if x else {1000 + i}.5)" for i in range(300)))


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(tmp_path: Path) -> ModuleType:
    (tmp_path / "program.py").write_text(PROGRAM)
    return load(tmp_path / "program.py", "program")


@pytest.fixture
def coverage(tmp_path: Path) -> Iterator[Coverage]:
    coverage = Coverage({tmp_path: "here"})
    yield coverage
    coverage.stop()


def lines(coverage: Coverage, function: str) -> list[tuple[int, int]]:
    """The arcs of a function that were gained, counted from the line of its `def`."""
    first = PROGRAM.splitlines().index(next(line for line in PROGRAM.splitlines() if f"def {function}(" in line)) + 1
    return sorted((a.source - first if a.source > 0 else a.source, a.target - first) for a in coverage.gained_arcs()
                  if a.branch.split(":")[0] == function)


# --- what is counted ---------------------------------------------------------------------------------------------------


def test_outcomes_of_branches_are_gained_once(program: ModuleType, coverage: Coverage) -> None:
    with coverage:
        assert program.sign(5) == 1
    assert coverage.gained() == coverage.total == len(coverage.gained_arcs()) == 2
    assert lines(coverage, "sign") == [(ENTRY, 0), (1, 2)]
    coverage.mark()
    with coverage:
        assert program.sign(7) == 1
    assert coverage.gained() == 0 and coverage.gained_arcs() == []
    with coverage:
        assert program.sign(-7) == -1
    assert lines(coverage, "sign") == [(1, 3), (3, 4)]
    with coverage:
        assert program.sign(0) == 0
    assert lines(coverage, "sign") == [(1, 3), (3, 4), (3, 5)]
    assert coverage.total == len(coverage.arcs()) == len(set(coverage.arcs())) == 5
    assert {arc.file for arc in coverage.arcs()} == {"here/program.py"}


def test_operands_on_one_line_are_told_apart(program: ModuleType, coverage: Coverage) -> None:
    gains = []
    for operands in ((0, 1), (0, 0), (1, 0), (1, 1)):
        coverage.mark()
        with coverage:
            program.both(*operands)
        gains.append(coverage.gained() > 0)
    assert gains == [True, False, True, True]


def test_loops_and_nothing_to_loop_over(program: ModuleType, coverage: Coverage) -> None:
    with coverage:
        assert program.total([]) == 0
    assert lines(coverage, "total") == [(ENTRY, 0), (2, 6)]
    with coverage:
        assert program.total([1, None, 2]) == 3
    assert {(ENTRY, 0), (2, 6), (2, 2), (3, 4), (3, 5)} == set(lines(coverage, "total")) and len(lines(coverage, "total")) == 5
    total = coverage.total
    with coverage:
        assert program.total(range(100)) == 4950
    assert coverage.total == total


def test_exceptions(program: ModuleType, coverage: Coverage) -> None:
    with coverage:
        assert program.guarded(5) == 2
    coverage.mark()
    with coverage:
        assert program.guarded(0) is None
    assert coverage.gained() >= 1
    if sys.version_info < (3, 12):
        assert HANDLER in {arc.source for arc in coverage.gained_arcs()}
    coverage.mark()
    with coverage, pytest.raises(TypeError):
        program.guarded("x")
    assert coverage.gained() >= 1
    assert program.log == [5, 0, "x"]


def test_nested_generators(program: ModuleType, coverage: Coverage) -> None:
    with coverage:
        assert list(program.tree(0)) == []
        coverage.mark()
        assert list(program.tree(3)) == [1, 2, 3]
        assert coverage.gained() == 2  # the branch, and the end of the loop that sends nothing
        coverage.mark()
        generator = program.tree(2)
        assert [next(generator), generator.send(2), generator.send(0)] == [1, 1, 2]
        assert coverage.gained() >= 1
        generator.close()
        thrown = program.tree(2)
        next(thrown)
        with pytest.raises(KeyError):
            thrown.throw(KeyError("k"))


def test_pausing_resuming_stopping(program: ModuleType, coverage: Coverage) -> None:
    own = program.sign.__code__
    with coverage:
        pass
    program.sign(1)
    assert coverage.total == 0
    coverage.resume()
    program.sign(1)
    assert coverage.total == 2
    coverage.stop()
    assert not coverage.started and program.sign.__code__ is own
    program.sign(-1)
    assert coverage.total == 2
    with coverage:
        program.sign(-1)
        program.sign(1)
    assert coverage.total == 4
    coverage.stop()
    coverage.stop()


def test_one_at_a_time(coverage: Coverage, tmp_path: Path) -> None:
    with coverage, pytest.raises(RuntimeError, match="found another one started, expected one at a time"):
        Coverage({tmp_path: "here"}).start()
    coverage.stop()
    with Coverage({tmp_path: "here"}) as other:
        other.stop()


def test_a_second_coverage_sees_all_anew(program: ModuleType, coverage: Coverage, tmp_path: Path) -> None:
    with coverage:
        program.sign(1)
    coverage.stop()
    second = Coverage({tmp_path: "here"})
    with second:
        program.sign(1)
    second.stop()
    assert second.arcs() == coverage.arcs()


def test_other_threads_do_not_count(program: ModuleType, coverage: Coverage) -> None:
    with coverage:
        thread = threading.Thread(target=program.sign, args=(1,))
        thread.start()
        thread.join()
        assert coverage.total == 0
        program.sign(1)
        assert coverage.total == 2


def test_saved_arcs_are_known_and_not_gained(program: ModuleType, coverage: Coverage, tmp_path: Path) -> None:
    with coverage:
        program.sign(1)
    saved = [arc.text for arc in coverage.arcs()]
    coverage.stop()
    resumed = Coverage({tmp_path: "here"})
    resumed.merge(map(parse_arc, saved))
    resumed.merge([Arc("of/another.py", 1, 2, "gone:0>2")])
    assert (resumed.total, resumed.gained()) == (3, 0)
    with resumed:
        program.sign(2)
        assert resumed.gained() == 0
        program.sign(0)
        assert resumed.gained() == 2
    resumed.stop()
    assert resumed.total == 5


def test_modules_imported_later(coverage: Coverage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "later_module.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    with coverage:
        import later_module  # type: ignore[import-not-found]

        assert later_module.maker(2)(3) == 5
    assert {arc.branch.split(":")[0] for arc in coverage.arcs()} == {"maker", "maker.<locals>.inner"}
    coverage.stop()
    total = coverage.total
    assert later_module.sign(3) == 1 and coverage.total == total
    sys.modules.pop("later_module")


def test_closures_made_before_and_after(program: ModuleType, coverage: Coverage) -> None:
    early = program.maker(10)
    with coverage:
        assert early(0) == 10
        assert coverage.gained() == 2
        late = program.maker(20)
        assert late(0) == 20
        assert coverage.gained() == 3, "the same branch of the same code"
        assert late(1) == 21
        assert coverage.gained() == 4


class Interrupted(BaseException):
    pass


@with_probes  # by events, an exception of a signal handler may arrive where CPython has lost the place
def test_loops_can_be_interrupted_and_clean_up(coverage: Coverage, tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text(textwrap.dedent("""
        def forever(log, n):
            try:
                while n:
                    n += 1
            finally:
                log.append("left")
    """))
    module, log = load(tmp_path / "forever.py", "forever"), []  # type: ModuleType, list[str]

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in (1, 2):
            with coverage, pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                module.forever(log, number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert log == ["left", "left"]


# --- which files are watched ---------------------------------------------------------------------------------------------


def test_watched_files(tmp_path: Path) -> None:
    watched = Watched({tmp_path / "a": "A", tmp_path / "a" / "inner": None, tmp_path / "a" / "inner" / "core": "core"})
    assert watched.name(str(tmp_path / "a" / "b" / "c.py")) == "A/b/c.py"
    assert watched.name(str(tmp_path / "a" / "inner" / "c.py")) is None
    assert watched.name(str(tmp_path / "a" / "inner" / "core" / "c.py")) == "core/c.py"
    assert watched.name(str(tmp_path / "ab" / "c.py")) is None
    assert watched.name("<string>") is None and watched.name("a/b.py") is None


def test_the_compiler_is_watched_and_the_fuzzer_is_not() -> None:
    watched = Watched(compiler_folders())
    assert watched.name(str(FOLDERS["compiler"] / "passes" / "fuse.py")) == "compiler/passes/fuse.py"
    assert watched.name(str(FOLDERS["ir"] / "graph.py")) == "ir/graph.py"
    for module in (edges, relocatable, np):
        assert module.__file__ is not None and watched.name(module.__file__) is None


def test_a_line_that_is_no_arc() -> None:
    with pytest.raises(ValueError):
        parse_arc("no arc")


# --- instrumented code does what it did ------------------------------------------------------------------------------------


def test_all_shapes_of_control_flow(coverage: Coverage, tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(SHAPES)
    module = load(tmp_path / "shapes.py", "shapes")
    expected = repr(module.run())
    with coverage:
        assert repr(module.run()) == expected
        coverage.mark()
        assert repr(module.run()) == expected
        assert coverage.gained() == 0
    total = coverage.total
    coverage.stop()
    assert repr(module.run()) == expected and coverage.total == total


def test_tracebacks_name_the_same_places(program: ModuleType, coverage: Coverage) -> None:
    def place() -> list[Any]:
        with pytest.raises(TypeError) as caught:
            program.total([1, "x"])
        entry = caught.tb.tb_next
        assert entry is not None
        return [entry.tb_lineno, list(entry.tb_frame.f_code.co_positions())[entry.tb_lasti // 2]]

    expected = place()
    with coverage:
        assert place() == expected


def test_passes_give_the_same_graphs() -> None:
    graphs = [random_graph(seed, size=8) for seed in range(6)]

    def results() -> list[str]:
        return [format_graph(run_passes(graph, Options(), CAPS, QUIET)[0]) for graph in graphs]

    expected = results()
    coverage = Coverage({FOLDERS["compiler"] / "passes": "passes", FOLDERS["ir"] / "ops": "ops"})
    try:
        with coverage:
            assert results() == expected
            assert coverage.total > 200
            coverage.mark()
            assert results() == expected
            assert coverage.gained() == 0
    finally:
        coverage.stop()
    assert results() == expected
    assert {arc.file.split("/")[0] for arc in coverage.arcs()} == {"passes", "ops"}


def code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


@with_probes
def test_our_own_code_keeps_its_instructions() -> None:
    """Besides probes and jumps all instructions are there, in their order, with their positions and exception handlers."""
    from tilewright.fuzz import bytecode
    from tilewright.fuzz._coverage import Log, Probe

    def steady(code: CodeType) -> list[object]:
        found = bytecode.decode(code)
        probes = [place for place, step in enumerate(found[:-1]) if dis.opname[step.opcode] == "NOP"
                  and dis.opname[found[place + 1].opcode] == "LOAD_CONST" and isinstance(code.co_consts[found[place + 1].argument], Probe)]
        added = {place + step for place in probes for step in range(4)}
        return [(dis.opname[step.opcode], step.argument, step.position,
                 step.handler and (step.handler.target.position, step.handler.depth, step.handler.lasti))
                for place, step in enumerate(found) if step.target is None and place not in added]

    log, numbers = Log(), iter(range(1 << 20))
    for path in [path for folder in ("ir", "backends", "compiler") for path in sorted((ROOT / folder).rglob("*.py"))][::6]:
        for code in code_objects(compile(path.read_text(encoding="utf-8"), str(path), "exec")):
            made = bytecode.instrument(code, "x", lambda arc: log.probe(next(numbers)), lambda nested: nested)
            assert steady(made) == steady(code), code.co_qualname


@with_probes
def test_probes_refuse_places_that_are_not_theirs() -> None:
    from tilewright.fuzz._coverage import Log

    log = Log()
    probe = log.probe(3)
    code = test_watched_files.__code__
    with pytest.raises(ValueError, match="place: found no NOP"):
        probe.place(code, 0, 3)
    with pytest.raises(ValueError, match="place: found no NOP"):
        probe.place(code, 1 << 40, 3)
    with pytest.raises(ValueError, match="arc: found -1"):
        log.probe(-1)
    with pytest.raises(ValueError, match="mark: found 1, expected 0 to 0"):
        log.since(1)
    with pytest.raises(TypeError):
        type(probe)()
    assert +probe is None and len(log) == 0
    log.record()
    assert +probe is None and log.since(0) == [3]


# --- the C++ runtime -------------------------------------------------------------------------------------------------------

LIBRARY = """
extern "C" __attribute__((visibility("default"))) int choose(int x) {
  if (x > 10) return x * 3;
  for (int i = 0; i < x; i++) if (i * i == x) return i;
  return -1;
}
"""


@pytest.fixture(scope="module")
def counting_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("edges")
    (folder / "choose.cpp").write_text(LIBRARY)
    subprocess.run([compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize-coverage=trace-pc", "-fPIC", "-shared",
                    "-fvisibility=hidden", "choose.cpp", str(ROOT / "csrc" / "edges.cpp"), "-o", "choose.so"], check=True, cwd=folder)
    return folder / "choose.so"


def test_edges_of_a_library_that_counts(counting_library: Path) -> None:
    counted, library = Edges.of_library(counting_library), ctypes.CDLL(str(counting_library))
    assert counted is not None and len(counted) == 0
    library.choose(5)
    assert len(counted) == 0, "nobody recorded"
    counted.resume()
    assert library.choose(20) == 60
    first = len(counted)
    assert first > 0
    library.choose(20)
    library.choose(20)
    known = len(counted)
    library.choose(20)
    assert len(counted) == known
    assert library.choose(4) == 2
    assert len(counted) > known
    arcs = counted.since(known)
    assert len(arcs) == len(counted) - known and len(set(counted.since(0))) == len(counted)
    assert all(arc.file == "_native" and arc.target > 0 for arc in arcs)
    counted.pause()
    library.choose(3)
    assert len(counted) == known + len(arcs)
    counted.merge([*arcs, arcs[0]._replace(branch="of another build", target=1)])
    assert len(counted) == known + len(arcs)
    counted.merge([arcs[0]._replace(target=1)])
    assert len(counted) == known + len(arcs) + 1


def test_edges_noted_by_many_threads(counting_library: Path) -> None:
    counted = Edges.of_library(counting_library)
    assert counted is not None
    arcs = [arc._replace(source=1 << 20 | number) for arc in counted.since(0)[:1] for number in range(2000)]
    before = len(counted)
    threads = [threading.Thread(target=counted.merge, args=(arcs,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) - before == len(arcs)


def test_the_runtime_as_shipped_counts_no_edges() -> None:
    from tilewright.runtime import _native

    assert Edges.of_runtime() is None
    use_runtime(_native.__file__)
    with pytest.raises(RuntimeError, match="expected to be asked before"):
        use_runtime("/nowhere.so")


def test_a_runtime_that_is_not_there() -> None:
    code = """
        import tilewright.fuzz.edges as edges
        try:
            edges.use_runtime("/nowhere.so")
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "use_runtime: found no extension module at /nowhere.so\n"


RUNTIME = """
    import sys
    import numpy as np
    from tilewright.fuzz.edges import use_runtime
    use_runtime(sys.argv[1])
    import tilewright as tw
    from tilewright.fuzz.coverage import Coverage
    coverage = Coverage()
    with coverage:
        compiled = tw.compile(lambda x: np.tanh(x) + 1, args=(tw.spec((3,), "float32"),), options=tw.Options(threads=1))
        coverage.mark()
        compiled(np.zeros(3, np.float32))
        gained = [arc for arc in coverage.gained_arcs() if arc.file == "_native"]
        compiled(np.zeros(3, np.float32))
        coverage.mark()
        compiled(np.zeros(3, np.float32))
        assert sum(arc.file == "_native" for arc in coverage.gained_arcs()) < 10
        try:
            compiled(np.zeros(4, np.float32))
        except tw.ArgumentError:
            pass
        assert sum(arc.file == "_native" for arc in coverage.gained_arcs()) >= 1
    assert len(gained) > 20, len(gained)
    print("seen", len([arc for arc in coverage.arcs() if arc.file == "_native"]))
"""


@pytest.mark.slow
def test_edges_of_the_runtime(tmp_path: Path) -> None:
    """Builds what `make runtime-coverage` builds, with the tools at hand, and runs a model with it."""
    pytest.importorskip("pybind11")
    pytest.importorskip("setuptools")
    for part in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, tmp_path / part)
    for part in ("csrc", "compiler", "ir", "backends", "runtime", "fuzz"):
        (tmp_path / part).symlink_to(ROOT / part)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "lib", "--build-temp", "temp"], check=True,
                   cwd=tmp_path, env={**os.environ, "RUNTIME_COVERAGE": "1"})
    library = next((tmp_path / "lib" / "tilewright" / "runtime").glob("_native*.so"))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(RUNTIME), str(library)], capture_output=True, text=True,
                          env={**os.environ, "TILEWRIGHT_CACHE_DIR": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seen ")
