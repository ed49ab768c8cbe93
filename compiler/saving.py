"""Writes ahead-of-time artifacts from compiled programs: library or archive, header, file of constants.

The object code is that of the compile; only the model's description changes (runtime/relocatable.py), so saving needs
neither the graph nor LLVM. A golden call with small inputs is recorded for the artifact's self-test where this machine
can run the code.

A program compiled for several targets becomes one library with a variant for each (csrc/abi.h: tw_model). Every variant
keeps the constants that it was compiled with, since packed weights depend on the width of vectors: the file of constants
has a part for each, of which a process reads the one it uses; variants with equal constants share one.

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
from .variants import Code
from .version import __version__

OBJECT_PREFIX = "tw"
ALIGNMENT = 64
LARGEST_GOLDEN = 4 << 20  # a self-test that would add more than this is left out


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

    def __init__(self, codes: Sequence[Code], metadata: dict[str, Any], explain_with: Callable[..., Any]) -> None:
        self._explain_with = explain_with
        self._codes = tuple(codes)
        self.object_code = codes[0].object_code
        self.constants = codes[0].constants
        self.metadata = metadata
        self.name: str = metadata["name"]
        self.inputs = tensor_infos(metadata["inputs"])
        self.outputs = tensor_infos(metadata["outputs"])
        self.kernels: tuple[str, ...] = tuple(metadata["kernels"])
        self.features: tuple[str, ...] = tuple(metadata["features"])
        self.target: str = metadata["target"]
        self.variants: tuple[str, ...] = tuple(code.metadata["target"] for code in codes)

    def save(self, path: str | PathLike[str], **options: Any) -> Saved:
        """Write an ahead-of-time artifact; see `Executable.save`."""
        return save(self._codes, path, **options)

    def explain(self, *, sizes: Mapping[str, int] | None = None) -> Any:
        """See `Executable.explain`; this machine cannot say how long it takes on another."""
        return self._explain_with(self, (), sizes)

    def __call__(self, *args: object, **named: object) -> Any:
        raise ArtifactError(f"{self.name}: compiled for {' and '.join(self.variants)}, which this machine cannot run",
                            hint='save it and run it there, or compile for this machine: target="cpu"')

    run = profile = plan = selftest = with_threads = __call__

    def __repr__(self) -> str:
        return f"<ForeignExecutable {self.name} for {', '.join(self.variants)}>"


def tensor_infos(rows: Sequence[Sequence[Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, DTYPES[dtype].numpy, tuple(shape)) for name, dtype, shape in rows)


def save(codes: Sequence[Code], path: str | PathLike[str], *, runner: Executable | None = None, name: str | None = None,
         embed: bool = False, static: bool | None = None, selftest: bool = True) -> Saved:
    """Write `path` (a shared library, or with `static` or the suffix .a an archive), its header, and its constants.

    `codes`: the program, for several targets the best one first; `runner`: one of them loaded, for the golden call; `name`: the
    prefix of the C functions, by default the file's stem; `embed` puts the constants inside the library; `selftest` records a
    golden call.
    """
    target = Path(path)
    static = target.suffix == ".a" if static is None else static
    name = check_prefix(name or target.stem)
    check_library_path(target, static)
    _check_architecture(codes[0])
    golden = _golden(codes[0], runner) if selftest else b""
    described = [describe_variant(codes, position, name, golden, embed) for position in range(len(codes))]
    segments = {d.constants_digest: segment for d, segment in described if segment is not None and d.embedded is None}
    *others, code = (specialize(code.object_code, OBJECT_PREFIX, d) for code, (d, _) in zip(codes, described))
    header = make_header(name, tensor_infos(codes[0].metadata["inputs"]), tensor_infos(codes[0].metadata["outputs"]), version=__version__,
                         constants_bytes=max(d.constants_bytes for d, _ in described), workspace=workspace_of(codes),
                         summary=_summary(codes))
    with staged(target) as folder:
        if segments:
            (digest, first), *more = segments.items()
            write_constants(folder / f"{name}{WEIGHTS_SUFFIX}", first, digest, *((segment, other) for other, segment in more))
        write_bytes(folder / f"{name}.h", header.encode())
        if static:
            make_archive(folder / target.name, code, f"{name}.o", others=[(f"{name}.{i}.o", data) for i, data in enumerate(others)])
        else:
            link_shared(code, folder / target.name, public_symbols(name), others=others)
    weights = target.with_name(name + WEIGHTS_SUFFIX) if segments else None
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


def _check_architecture(code: Code) -> None:
    architecture, ours = code.metadata["architecture"], os.uname().machine
    if architecture != ours:
        raise ArtifactError(f"{code.metadata['name']}: compiled for {architecture}, but this installation carries the runtime "
                            f"object for {ours} only", hint=f"save it with tilewright on an {architecture} machine")


def workspace_of(codes: Sequence[Code]) -> int | None:
    """What suffices for each variant; None where that depends on the sizes."""
    found = [code.metadata["workspace"] for code in codes]
    return max(found) if all(isinstance(size, int) for size in found) else None


def _summary(codes: Sequence[Code]) -> str:
    if len(codes) == 1:
        return f"Compiled for {codes[0].metadata['target']}; {len(codes[0].metadata['kernels'])} kernels."
    return f"Compiled for {', '.join(code.metadata['target'] for code in codes)}: the first of these that the CPU can run is used."


def describe_variant(codes: Sequence[Code], position: int, name: str, golden: bytes, embed: bool) -> tuple[Description, Any]:
    """A variant's description and its constants segment, to which the golden call is added. Constants that hold
    nothing but the golden call go inside: a program without weights needs no file for them. The last variant, which asks for
    least, has the public functions: they run on every CPU that any variant runs on."""
    code = codes[position]
    own = np.zeros(0, np.uint8) if code.constants is None else np.frombuffer(code.constants, np.uint8)
    digest = code.metadata["constants_digest"]
    # No name that a caller may give has a dot, so these meet no other model's.
    prefixes = (*(f"{name}.{index}" for index in range(len(codes) - 1)), name)
    offset, segment = 0, own
    if golden:
        offset = -(-own.size // ALIGNMENT) * ALIGNMENT
        segment = np.zeros(offset + len(golden), np.uint8)
        segment[:own.size] = own
        segment[offset:] = np.frombuffer(golden, np.uint8)
        digest = blake3(digest.encode() + golden).hexdigest()
    inside = segment.data if segment.size and (embed or own.size == 0) else None
    description = Description(name, segment.size, digest if segment.size else "", offset, len(golden), inside, code.metadata["target"],
                              prefixes, position)
    return description, segment if segment.size else None


# --- the golden call -------------------------------------------------------------------------------------------------


def _golden(code: Code, runner: Executable | None) -> bytes:
    """A recorded call on small inputs, best one whose results are numbers; empty where the program refuses each of them, or
    this machine cannot run it."""
    found = b""
    for inputs in _candidates(tensor_infos(code.metadata["inputs"]), code.metadata.get("sample_shapes", ())) if runner is not None else ():
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
def staged(target: Path) -> Iterator[Path]:
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
