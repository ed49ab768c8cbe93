"""The walls between the parts, read from the source with `ast`: who imports whom, cycles, late imports, knobs, names.

Run as a script it prints the size table: a mirror, not a limit.

Assumes that the folders of the repository are the package (pyproject.toml's package-dir); nothing of the package is
imported, except by the tests that say so.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tilewright"
FOLDERS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]

# --- the walls ---------------------------------------------------------------------------------------------------------

# layer -> the layers that it may import besides itself. A module belongs to the layer with the longest matching name.
LAYERS: dict[str, tuple[str, ...]] = {
    # what programs are
    "ir.errors": (),
    "ir": ("ir.errors",),
    # machine: buffers and threads; no IR
    "runtime": ("ir.errors",),
    # kernels to machine
    "backends": ("ir", "ir.errors", "runtime"),
    "backends.llvm": ("ir", "ir.errors", "runtime", "backends"),
    "backends.cuda": ("ir", "ir.errors", "runtime", "backends", "backends.llvm"),  # the host's side of a program is LLVM's
    # small facts that several parts of the compiler share
    "version": (),
    "options": ("ir.errors",),
    "machine": ("ir.errors",),
    "tiles": ("ir",),
    "attention": ("ir", "tiles"),
    "cost": ("ir",),
    "collector": (),
    "library": ("ir", "ir.errors"),
    "library_quantized": ("ir", "library"),
    # siblings: they meet in the IR
    "frontends": ("ir", "ir.errors", "library"),
    "frontends.onnx": ("ir", "ir.errors", "library", "library_quantized"),
    "passes": ("ir", "ir.errors", "attention", "cost", "library", "library_quantized", "options", "tiles"),
    "lowering": ("ir", "ir.errors", "attention", "cost", "packing", "tiles"),
    # the compile half: joins passes, lowering and backends
    "pipeline": ("ir", "ir.errors", "options", "passes"),
    "ordering": ("ir", "ir.errors", "lowering", "scheduling"),
    "build": ("ir", "ir.errors", "collector", "key_facts", "launch_facts", "options", "ordering", "version", "pipeline", "lowering", "backends",
              "backends.llvm", "runtime"),
    # targets that are more than a CPU's name, and what compiles for an accelerator with a scratchpad
    "targets": ("ir.errors",),
    "gpu": ("ir", "ir.errors", "backends", "backends.cuda", "backends.llvm", "build", "collector", "explaining", "launch_facts", "options", "pipeline", "runtime",
            "saving_cuda", "variants", "version"),
    "accelerator": ("ir", "ir.errors", "backends", "build", "lowering", "options", "packing", "pipeline", "runtime", "scheduling", "targets"),
    # the light half: joins front ends, cache and runtime
    "loading": ("runtime",),
    "variants": ("ir.errors",),
    "saving": ("ir", "ir.errors", "runtime", "variants", "version"),
    "saving_cuda": ("ir.errors", "runtime", "saving", "variants", "version"),
    "key_facts": ("ir", "runtime"),
    # reports: what was chosen, what it costs, what the machine can do
    "launch_facts": ("ir", "ir.errors", "runtime"),
    "explaining": ("ir", "ir.errors", "cost", "launch_facts", "runtime"),
    "calibration": ("ir", "build", "cost", "runtime"),
    "tuning": ("ir", "ir.errors", "build", "cost", "options", "pipeline", "runtime", "tiles"),
    "compiled_function": ("ir", "ir.errors", "frontends"),
    "driver": ("ir", "ir.errors", "accelerator", "gpu", "targets", "collector", "options", "machine", "compiled_function", "saving", "variants", "frontends",
               "frontends.onnx", "build", "explaining", "calibration", "tuning", "runtime"),
    # ONNX models of others: what they would take, and whether they are computed right
    "agreement": (),
    "onnx_peers": ("ir.errors",),
    "checking": ("ir", "ir.errors", "build", "collector", "driver", "explaining", "frontends.onnx", "options", "pipeline", "runtime"),
    "verifying": ("ir.errors", "agreement", "driver", "frontends.onnx", "onnx_peers", "options", "runtime"),
    "onnxruntime": ("ir", "ir.errors", "collector", "options", "driver", "frontends.onnx"),
    # what executes programs sits above the driver
    "quantizing": ("ir", "ir.errors", "cost", "driver", "frontends.onnx", "library", "library_quantized", "options", "runtime"),
    "tools": ("ir", "ir.errors", "options", "driver", "loading", "runtime"),
    # plain records of what is to be scheduled: of the IR it only reads graphs
    "packing": ("ir.errors",),
    "scheduling": ("ir", "ir.errors", "cost", "packing"),
    "fuzz": ("ir", "ir.errors", "backends", "backends.cuda", "backends.llvm", "build", "cost", "driver", "frontends.onnx", "gpu", "library", "library_quantized", "lowering", "options", "passes", "pipeline", "runtime", "tuning"),
    "cli": ("ir", "ir.errors", "options", "machine", "key_facts", "launch_facts", "loading", "saving", "driver", "runtime", "version",
            "tools", "fuzz", "checking", "onnx_peers", "packing", "quantizing", "scheduling", "targets", "verifying"),
    "": ("version", "cli"),  # __init__ and __main__
}
# the first segment of a module's name, where its layer is called otherwise
LAYER_OF = {
    "cli_accelerator": "cli", "cli_machine": "cli", "cli_model": "cli", "cli_onnx": "cli", "cli_pack": "cli", "cli_passes": "cli", "cli_profile": "cli", "cli_fuzz": "cli", "cli_quantize": "cli", "cli_schedule": "cli", "cli_shared": "cli", "__init__": "", "__main__": "",
    "frontends.from_onnx": "frontends.onnx", "frontends.onnx_messages": "frontends.onnx", "frontends.onnx_ops": "frontends.onnx",
    "frontends.onnx_calls": "frontends.onnx", "frontends.onnx_contents": "frontends.onnx", "frontends.onnx_dims": "frontends.onnx", "frontends.onnx_editing": "frontends.onnx", "frontends.onnx_files": "frontends.onnx",
    "frontends.onnx_limits": "frontends.onnx", "frontends.onnx_scopes": "frontends.onnx", "frontends.onnx_pieces": "frontends.onnx", "frontends.onnx_survey": "frontends.onnx",
}
# third party -> the layers that may import it; None: all
THIRD_PARTIES: dict[str, tuple[str, ...] | None] = {
    "numpy": None,
    "blake3": None,
    "xxhash": ("ir",),
    "ml_dtypes": ("ir",),
    "msgspec": None,
    "llvmlite": ("backends.llvm",),
    "onnx": ("frontends.onnx", "onnx_peers"),
    "onnxruntime": ("onnx_peers",),
    "google": ("frontends.onnx",),  # protobuf: what onnx raises on bad bytes
    "click": ("cli",),
    "jinja2": ("fuzz", "quantizing", "scheduling"),
    "highspy": ("scheduling",),
}
# (module, imported) -> why it is not at the top
LATE_IMPORTS = {
    ("driver", "build"): "the compile half: a cache hit and an artifact need neither passes nor LLVM",
    ("driver", "ir.parser"): "a cache hit need not read text",
    ("driver", "saving"): "headers and linking: a cache hit saves nothing",
    ("driver", "frontends.from_onnx"): "needs the extra [onnx]",
    ("frontends.onnx_messages", "onnx"): "takes five times as long as its messages, which are all that reading a file needs",
    ("driver", "explaining"): "reports: only when somebody asks for one",
    ("driver", "calibration"): "compiles and measures: only for reports",
    ("runtime.artifact", "runtime.cuda"): "a library for GPUs: others need neither the extension nor a driver",
    ("driver", "gpu.compiling"): "the compile half, for a target that is a GPU",
    ("driver", "accelerator.compiling"): "the compile half, for a target with a scratchpad",
    ("driver", "tuning"): "compiles and measures: only where that is asked for",
    ("cli_fuzz", "fuzz.report"): "needs the extra [fuzz]",
    ("cli_quantize", "quantizing"): "compiles and runs programs: only when a model is quantized",
    ("cli_quantize", "quantizing.recipes"): "compiles and runs programs: only when a model is quantized",
    ("cli_quantize", "quantizing.texts"): "compiles and runs programs: only when a model is quantized",
    ("cli_quantize", "quantizing.page"): "needs the extra [quantize]",
    ("cli_quantize", "quantizing.write_onnx"): "needs the extra [onnx]",
    ("frontends.onnx_editing", "onnx"): "a model of an older opset is converted by the package; reading and writing need its messages only",
    ("cli_schedule", "scheduling.report"): "needs the extra [schedule]",
    ("scheduling.integer_program", "highspy"): "needs the extra [schedule]",
    ("cli_onnx", "checking"): "the compile half, and the extra [onnx]: only when a model is checked",
    ("cli_onnx", "verifying"): "needs the extra [onnx]",
    ("onnx_peers", "onnx"): "what a model is compared with, where it is installed",
    ("onnx_peers", "onnxruntime"): "what a model is compared with, where it is installed",
}
DYNAMIC_IMPORTS = {
    "fuzz.onnx_seeds": "the node cases of the onnx package, which the fuzzer can do without",
    "__init__": "PEP 562: public names are handed on when they are asked for",
}
# module -> why it reads the environment
ENVIRONMENT = {
    "options": "the knobs, and where the user's cache folder is",
    "runtime.linking": "hands the environment on to the linker, with a fixed locale and date",
}
KNOBS = {"TILEWRIGHT_DEBUG", "TILEWRIGHT_IR_DUMP", "TILEWRIGHT_VERIFY", "TILEWRIGHT_BACKEND", "TILEWRIGHT_CACHE_DIR"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "misc", "common"}


# --- reading the source ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import: of a module of ours (`target`, without the package's name) or of another (`outside`)."""

    source: str
    target: str
    outside: str
    late: bool
    line: int


@lru_cache(maxsize=1)
def modules() -> dict[str, Path]:
    """Name within the package -> file; a package's `__init__` under the package's name (the root's as `__init__`)."""
    found = {}
    for package, folder in FOLDERS.items():
        prefix = package.split(".")[1:]
        for path in sorted((*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.pyi"))):  # a .pyi declares a compiled extension
            if "zoo" in path.parts:  # witnesses: scripts that are given a compiler, no part of the package
                continue
            parts = [*prefix, *path.relative_to(ROOT / folder).with_suffix("").parts]
            if parts[-1] == "__init__" and len(parts) > 1:
                parts.pop()
            found[".".join(parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def layer_of(module: str) -> str:
    """The layer with the longest name that begins the module's."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        name = LAYER_OF.get(name, name)
        if name in LAYERS:
            return name
    raise AssertionError(f"module {module} belongs to no layer: give it one in LAYERS")


def imports_of(module: str) -> Iterator[Import]:
    """Every import of a module, wherever it stands (also below `if TYPE_CHECKING`)."""
    path = modules()[module]
    tree = tree_of(path)
    late = {id(inner) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for inner in ast.walk(function)}
    is_package = path.name == "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _resolved(module, alias.name, None, id(node) in late, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, is_package, node)
            for alias in node.names:
                yield _resolved(module, base, alias.name, id(node) in late, node.lineno)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    """The absolute name of what a `from` names."""
    if not node.level:
        return node.module or ""
    here = [PACKAGE, *([] if module in ("__init__",) else module.split("."))]
    if not is_package:
        here.pop()
    here = here[:len(here) - (node.level - 1)]
    return ".".join([*here, *(node.module or "").split(".")]).rstrip(".")


def _resolved(source: str, base: str, name: str | None, late: bool, line: int) -> Import:
    first, _, rest = base.partition(".")
    if first != PACKAGE:
        return Import(source, "", first, late, line)
    inner = f"{rest}.{name}".strip(".") if name else rest
    known = modules()
    if name is not None and inner not in known:
        inner = rest
    inner = inner or "__init__"
    if inner not in known:  # a name that a compiled extension or a namespace defines
        inner = rest.rpartition(".")[0] if rest not in known else rest
    return Import(source, inner or "__init__", "", late, line)


@lru_cache(maxsize=1)
def all_imports() -> tuple[Import, ...]:
    return tuple(found for module in modules() for found in imports_of(module))


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm, without recursion)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    for root in edges:
        if root in order:
            continue
        order[root] = lowest[root] = len(order)
        stack.append(root)
        work = [(root, iter(sorted(edges[root])))]
        while work:
            here, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[here])
                if lowest[here] == order[here]:
                    place = stack.index(here)
                    if len(stack) - place > 1:
                        found.append(sorted(stack[place:]))
                    del stack[place:]
            elif following not in order:
                order[following] = lowest[following] = len(order)
                stack.append(following)
                work.append((following, iter(sorted(edges[following]))))
            elif following in stack:
                lowest[here] = min(lowest[here], order[following])
    return found


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


# --- layers ------------------------------------------------------------------------------------------------------------


def test_layers_have_no_cycle_by_their_definition() -> None:
    assert cycles({layer: set(allowed) for layer, allowed in LAYERS.items()}) == []


def test_the_cycle_finder_finds_cycles() -> None:
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(cycles(edges)) == [["a", "b", "c"], ["d", "e"]]


def test_no_import_cycle() -> None:
    """Counting late imports and those for type checkers: nothing is left to luck in the order of imports."""
    edges: dict[str, set[str]] = {module: set() for module in modules()}
    for found in all_imports():
        if found.target and found.target != found.source:
            edges[found.source].add(found.target)
    assert cycles(edges) == []


def test_imports_keep_to_the_layers() -> None:
    problems = []
    for found in all_imports():
        if not found.target:
            continue
        layer, other = layer_of(found.source), layer_of(found.target)
        if other != layer and other not in LAYERS[layer]:
            problems.append(f"{modules()[found.source].relative_to(ROOT)}:{found.line}: layer {layer!r} imports {found.target}")
    report(problems)


def test_third_parties_stay_where_they_belong() -> None:
    problems = []
    for found in all_imports():
        name = found.outside
        if not name or name in sys.stdlib_module_names:
            continue
        allowed = THIRD_PARTIES.get(name, ())
        if allowed is not None and layer_of(found.source) not in allowed:
            problems.append(f"{modules()[found.source].relative_to(ROOT)}:{found.line}: imports {name}")
    report(problems)


def test_every_dependency_is_imported() -> None:
    """What pyproject.toml asks every user to install is used by the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {entry.split(">")[0].split("=")[0].strip() for entry in project["dependencies"]}
    used = {found.outside for found in all_imports()}
    assert wanted <= used, f"not imported by the package: {wanted - used}"


def test_late_imports_are_the_listed_ones() -> None:
    problems, met = [], set()
    for found in all_imports():
        if not found.late:
            continue
        pair = (found.source, found.target or found.outside)
        met.add(pair)
        if pair not in LATE_IMPORTS:
            problems.append(f"{modules()[found.source].relative_to(ROOT)}:{found.line}: late import of {pair[1]}")
    report(problems + [f"listed but gone: {pair}" for pair in LATE_IMPORTS.keys() - met])


def test_dynamic_imports_are_the_listed_ones() -> None:
    problems = []
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in ("import_module", "__import__") and module not in DYNAMIC_IMPORTS:
                problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    report(problems)


# --- knobs and names ---------------------------------------------------------------------------------------------------


def test_the_environment_is_read_in_one_place() -> None:
    problems = []
    readers = {"environ", "environb", "getenv", "getenvb", "expanduser", "home"}
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in readers and module not in ENVIRONMENT:
                problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in readers for a in node.names):
                problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    report(problems)


def knobs_in(text: str) -> set[str]:
    """The environment variables of ours that a text names."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
    return {word for word in words if word.startswith("TILEWRIGHT_") and word == word.upper()}


def test_there_is_no_sixth_knob() -> None:
    """Strings of the Python sources; C++ must not read the environment at all."""
    guards = {"TILEWRIGHT_MODEL_"}  # the beginning of an include guard
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert knobs_in(node.value) <= KNOBS | guards, f"{module}: {knobs_in(node.value) - KNOBS}"
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cpp", ".h", ".c"):
            assert "getenv" not in path.read_text(encoding="utf-8"), path


def test_knobs_are_documented() -> None:
    documented = knobs_in(ast.get_docstring(tree_of(modules()["options"])) or "")
    assert documented == KNOBS
    assert knobs_in((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")) == KNOBS


def test_no_file_is_called_utils() -> None:
    assert not [path for path in modules().values() if path.stem in FORBIDDEN_NAMES]


def test_every_module_says_what_it_is() -> None:
    report([str(path.relative_to(ROOT)) for path in modules().values() if not ast.get_docstring(tree_of(path)) and path.stat().st_size])


# --- what is imported when ---------------------------------------------------------------------------------------------


def test_public_names_resolve() -> None:
    import tilewright

    assert set(dir(tilewright)) == set(tilewright.__all__)
    for name in tilewright.__all__:
        assert getattr(tilewright, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        tilewright.no_such_name  # noqa: B018


HEAVY = ("llvmlite", "networkx", "onnx", "torch", "click", f"{PACKAGE}.build", f"{PACKAGE}.passes", f"{PACKAGE}.lowering",
         f"{PACKAGE}.backends")
COMPILES = """
import sys
import numpy as np
import tilewright as tw
f = tw.compile(lambda x, w: np.tanh(x @ w), args=(tw.spec(("n", 3), "float32"), np.ones((3, 2), np.float32)))
assert f(np.zeros((4, 3), np.float32)).shape == (4, 2)
"""
SAVES = "f.save(sys.argv[1])\n"
LOADS = """
import sys
import numpy as np
import tilewright as tw
assert tw.load(sys.argv[1])(np.zeros((4, 3), np.float32)).shape == (4, 2)
"""
LISTS = f"print([name for name in {HEAVY!r} if name in sys.modules])\n"


def run_python(code: str, cache: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "TILEWRIGHT_CACHE_DIR": str(cache), "HOME": str(cache)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_cache_hit_and_an_artifact_import_nothing_heavy(tmp_path: Path) -> None:
    artifact = str(tmp_path / "model.so")
    first = run_python(COMPILES + SAVES + LISTS, tmp_path / "cache", artifact)
    assert "llvmlite" in first and f"{PACKAGE}.build" in first, "this test would find what it looks for"
    assert run_python(COMPILES + LISTS, tmp_path / "cache") == "[]"
    assert run_python(LOADS + LISTS, tmp_path / "cache", artifact) == "[]"


@pytest.mark.parametrize("code, absent", [
    ("import tilewright", ("numpy", f"{PACKAGE}.ir", f"{PACKAGE}.driver")),
    ("import tilewright.runtime.artifact", ("ml_dtypes", f"{PACKAGE}.ir.graph")),
    ("import tilewright.driver", HEAVY),
    ("import tilewright.cli", tuple(name for name in HEAVY if name != "click")),
])
def test_imports_stay_small(code: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    assert run_python(f"import sys\n{code}\nprint([n for n in {absent!r} if n in sys.modules])", tmp_path) == "[]"


# --- the size table ----------------------------------------------------------------------------------------------------


def long_functions(path: Path, limit: int = 60) -> list[tuple[int, str]]:
    return [(node.end_lineno - node.lineno + 1, node.name) for node in ast.walk(tree_of(path))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
            and node.end_lineno - node.lineno + 1 > limit]


def missing_annotations(path: Path) -> list[str]:
    """Functions without the type of their result, or of an argument."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if node.returns is None or bare:
                found.append(f"{node.name}:{node.lineno}")
    return found


def primitives() -> int:
    """Classes that are ops, by the table's own imports."""
    return sum(isinstance(alias, ast.alias) and alias.name[0].isupper() and not alias.name.isupper() and alias.name != "Op"
               for node in ast.walk(tree_of(modules()["ir.ops.table"])) if isinstance(node, ast.ImportFrom) for alias in node.names)


def print_size_table() -> None:
    rows = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
    print("lines a folder")
    for folder in FOLDERS.values():
        print(f"  {sum(n for path, n in rows.items() if path.is_relative_to(ROOT / folder)):7} {folder}")
    native = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    print(f"  {sum(len(path.read_text(encoding='utf-8').splitlines()) for path in native):7} csrc")
    tests = sorted((ROOT / "tests").glob("*.py"))
    print(f"  {sum(len(path.read_text(encoding='utf-8').splitlines()) for path in tests):7} tests")
    print("files over 400 lines")
    for path, lines in sorted(rows.items(), key=lambda row: -row[1]):
        if lines > 400:
            print(f"  {lines:7} {path.relative_to(ROOT)}")
    print("functions over 60 lines")
    for path in rows:
        for length, name in long_functions(path):
            print(f"  {length:7} {path.relative_to(ROOT)}: {name}")
    bare = {path: missing_annotations(path) for path in rows}
    print(f"functions with missing annotations: {sum(map(len, bare.values()))}")
    for path, names in bare.items():
        if names:
            print(f"  {len(names):7} {path.relative_to(ROOT)}: {', '.join(names[:6])}")
    print(f"primitive ops: {primitives()} classes")


def test_no_function_is_over_sixty_lines() -> None:
    report([f"{path.relative_to(ROOT)}: {name} has {length} lines"
            for path in modules().values() for length, name in long_functions(path)])


if __name__ == "__main__":
    print_size_table()
