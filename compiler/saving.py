"""Writes ahead-of-time artifacts from compiled programs: library or archive, header, file of constants.

The object code is that of the compile; only the model's description changes (runtime/relocatable.py), so saving needs
neither the graph nor LLVM. A golden call with small inputs is recorded for the artifact's self-test where this machine
can run the code.

Guarantees: the same program gives the same bytes; the files appear together, each whole, or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from msgspec import Struct

from .ir.errors import ArtifactError, TilewrightError, cannot_write
from .ir.types import DTYPES
from .runtime.artifact import (
    WEIGHTS_SUFFIX,
    check_prefix,
    make_golden,
    make_header,
    public_symbols,
    write_bytes,
    write_constants,
)
from .runtime.buffer import TensorInfo
from .runtime.executable import Executable
from .runtime.linking import link_shared, make_archive
from .runtime.relocatable import Description, specialize
from .version import __version__

OBJECT_PREFIX = "tw"
ALIGNMENT = 64
LARGEST_GOLDEN = 4 << 20  # a self-test that would add more than this is left out


class Saveable(Struct, frozen=True, eq=False):
    """What saving needs of a compiled program. `constants`: the segment (buffer) or None; `runner`: for the golden call."""

    object_code: bytes
    constants: Any
    metadata: dict[str, Any]
    runner: Executable | None = None

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return _infos(self.metadata["inputs"])

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return _infos(self.metadata["outputs"])


class Saved(Struct, frozen=True):
    """The files of an artifact. `weights` is None when the constants are inside the library or there are none."""

    library: Path
    header: Path
    weights: Path | None
    selftest: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.library, self.header) if self.weights is None else (self.library, self.header, self.weights)


class ForeignExecutable:
    """A program compiled for a machine that this one is not: it can be saved, not called."""

    def __init__(self, object_code: bytes, constants: Any, metadata: dict[str, Any], explain_with: Callable[..., Any]) -> None:
        self._explain_with = explain_with
        self.object_code = object_code
        self.constants = constants
        self.metadata = metadata
        self.name: str = metadata["name"]
        self.inputs = _infos(metadata["inputs"])
        self.outputs = _infos(metadata["outputs"])
        self.kernels: tuple[str, ...] = tuple(metadata["kernels"])
        self.features: tuple[str, ...] = tuple(metadata["features"])

    def save(self, path: str | PathLike[str], **options: Any) -> Saved:
        """Write an ahead-of-time artifact; see `Executable.save`."""
        return save(Saveable(self.object_code, self.constants, self.metadata), path, **options)

    def explain(self, *, sizes: Mapping[str, int] | None = None) -> Any:
        """See `Executable.explain`; this machine cannot say how long it takes on another."""
        return self._explain_with(self, (), sizes)

    def __call__(self, *args: object, **named: object) -> Any:
        raise ArtifactError(f"{self.name}: compiled for {self.metadata['target']}, which this machine cannot run",
                            hint='save it and run it there, or compile for this machine: target="cpu"')

    run = profile = plan = selftest = with_threads = __call__

    def __repr__(self) -> str:
        return f"<ForeignExecutable {self.name} for {self.metadata['target']}>"


def _infos(rows: Sequence[Sequence[Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, DTYPES[dtype].numpy, tuple(shape)) for name, dtype, shape in rows)


def save(program: Saveable, path: str | PathLike[str], *, name: str | None = None, embed: bool = False,
         static: bool | None = None, selftest: bool = True) -> Saved:
    """Write `path` (a shared library, or with `static` or the suffix .a an archive), its header, and its constants.

    `name`: the prefix of the C functions, by default the file's stem; `embed` puts the constants inside the library;
    `selftest` records a golden call.
    """
    target = Path(path)
    static = target.suffix == ".a" if static is None else static
    name = check_prefix(name or target.stem)
    check_library_path(target, static)
    _check_architecture(program)
    golden = _golden(program) if selftest else b""
    description, segment = _describe(program, name, golden, embed)
    code = specialize(program.object_code, OBJECT_PREFIX, description)
    header = make_header(name, program.inputs, program.outputs, version=__version__,
                         constants_bytes=description.constants_bytes, workspace=_workspace(program), summary=_summary(program))
    with _staged(target) as folder:
        if segment is not None and description.embedded is None:
            write_constants(folder / f"{name}{WEIGHTS_SUFFIX}", segment, description.constants_digest)
        write_bytes(folder / f"{name}.h", header.encode())
        if static:
            make_archive(folder / target.name, code, f"{name}.o")
        else:
            link_shared(code, folder / target.name, public_symbols(name))
    weights = target.with_name(name + WEIGHTS_SUFFIX) if segment is not None and description.embedded is None else None
    return Saved(target, target.with_name(f"{name}.h"), weights, bool(golden))


def check_library_path(target: Path, static: bool) -> None:
    """Refuses a path that no library should be written to: whatever else lies there must not be lost."""
    suffix = ".a" if static else ".so"
    if target.is_dir():
        raise ArtifactError(f"{target}: is a folder, expected the path of the library to write")
    if target.exists() and not target.is_file():
        raise ArtifactError(f"{target}: is a device or a pipe, expected the path of the library to write")
    if suffix not in target.suffixes:
        raise ArtifactError(f"{target}: found the suffix {target.suffix!r}, expected {suffix}",
                            hint=f"{target.with_suffix(suffix).name}")


def _check_architecture(program: Saveable) -> None:
    architecture, ours = program.metadata["architecture"], os.uname().machine
    if architecture != ours:
        raise ArtifactError(f"{program.metadata['name']}: compiled for {architecture}, but this installation carries the runtime "
                            f"object for {ours} only", hint=f"save it with tilewright on an {architecture} machine")


def _workspace(program: Saveable) -> int | None:
    found = program.metadata["workspace"]
    return found if isinstance(found, int) else None


def _summary(program: Saveable) -> str:
    return f"Compiled for {program.metadata['target']}; {len(program.metadata['kernels'])} kernels."


def _describe(program: Saveable, name: str, golden: bytes, embed: bool) -> tuple[Description, Any]:
    """The artifact's description and its constants segment, to which the golden call is added. Constants that hold
    nothing but the golden call go inside: a program without weights needs no file for them."""
    own = np.zeros(0, np.uint8) if program.constants is None else np.frombuffer(program.constants, np.uint8)
    digest = program.metadata["constants_digest"]
    offset, segment = 0, own
    if golden:
        offset = -(-own.size // ALIGNMENT) * ALIGNMENT
        segment = np.zeros(offset + len(golden), np.uint8)
        segment[:own.size] = own
        segment[offset:] = np.frombuffer(golden, np.uint8)
        digest = blake3(digest.encode() + golden).hexdigest()
    if segment.size == 0:
        return Description(name, 0, ""), None
    inside = segment.data if embed or own.size == 0 else None
    return Description(name, segment.size, digest, offset, len(golden), inside), segment


# --- the golden call -------------------------------------------------------------------------------------------------


def _golden(program: Saveable) -> bytes:
    """A recorded call on small inputs, best one whose results are numbers; empty where the program refuses each of them, or
    this machine cannot run it."""
    runner, found = program.runner, b""
    for inputs in _candidates(program.inputs, program.metadata.get("sample_shapes", ())) if runner is not None else ():
        assert runner is not None
        if sum(array.nbytes for array in inputs) > LARGEST_GOLDEN:
            break
        try:
            outputs = list(runner.run({info.name: array for info, array in zip(runner.inputs, inputs)}).values())
        except TilewrightError:
            continue
        if sum(array.nbytes for array in outputs) > LARGEST_GOLDEN:
            break
        numbers = not any(np.isnan(array.astype(np.float64)).any() for array in outputs)
        if numbers or not found:
            found = make_golden(inputs, outputs)
        if numbers:
            break
    return found


def _candidates(infos: Sequence[TensorInfo], samples: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[np.ndarray[Any, Any]]]:
    """For each of the shapes random inputs, then zeros: an integer may be an index that must not be large."""
    for shapes in samples:
        random = np.random.Generator(np.random.PCG64(0))
        filled = []
        for info, shape in zip(infos, shapes):
            if info.dtype.kind in "biu":
                filled.append(random.integers(0, 2, shape).astype(info.dtype))
            else:
                filled.append(random.standard_normal(shape).astype(info.dtype))
        yield filled
        if any(info.dtype.kind in "iu" for info in infos):
            yield [np.zeros(shape, info.dtype) for info, shape in zip(infos, shapes)]


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside the target whose files take their places together at the end, the library last."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
            os.replace(file, target.with_name(file.name))
    except ArtifactError as error:
        place = str(target.parent / "_")[:-1]  # name the file that was to be, not the one it grew in
        raise ArtifactError(error.message.replace(f"{folder}{os.sep}", place), notes=error.notes, hint=error.hint) from None
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
