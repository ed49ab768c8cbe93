"""Ahead-of-time artifacts on disk: C header, file of constants; and loading them (linking: linking.py).

    mlp.so        generated code + the runtime object, linked by the system's linker; needs libc and libm only
    mlp.h         C99 header, versioned
    mlp.weights   constants (csrc/abi.h: tw_constants_header), memory-mapped by tw.load and by mlp_open

Guarantees: the same inputs give the same bytes (no timestamps, paths or build ids); every file is written under a
temporary name in its folder and renamed, so no partial file is ever seen under the real one; only the symbols asked
for are exported. What is loaded is checked first: whole, of this ABI version, for this CPU. Stateless, so safe from
any thread and process.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.ir.errors import ArtifactError, cannot_write
from tilewright.runtime import _native
from tilewright.runtime.buffer import TensorInfo
from tilewright.runtime.elf_file import read_elf
from tilewright.runtime.executable import Executable

PUBLIC_FUNCTIONS = ("describe", "plan", "run", "open", "close", "selftest", "profile")
WEIGHTS_SUFFIX = ".weights"
ALIGNMENT = 64


def public_symbols(name: str) -> list[str]:
    """The symbols that an artifact exports."""
    return [f"{name}_{function}" for function in PUBLIC_FUNCTIONS]


def check_prefix(name: str) -> str:
    """The name as the prefix of C symbols, which it must fit."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ArtifactError(
            f"artifact name: found {name!r}, expected a C identifier (it is the prefix of the functions)",
            hint="name the file like mlp.so or text_encoder.so, or pass name=",
        )
    return name


# --- writing files ---


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place on success and vanishes on failure, Ctrl-C included."""
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ArtifactError(f"{target}: is {'a folder' if target.is_dir() else 'a device or a pipe'}, expected the path of a file to write")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, (0o777 if target.suffix == ".so" else 0o666) & ~umask)
        os.replace(temporary, target)
    except ArtifactError:
        raise
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | PathLike[str], *parts: bytes | memoryview) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for part in parts:
            file.write(part)


def write_constants(path: str | PathLike[str], constants: Any, digest: str, *others: tuple[Any, str]) -> None:
    """Write the sidecar file of a constants segment (any contiguous buffer), or of several: `others` as (segment, digest)."""
    parts: list[bytes | memoryview] = []
    for segment, name in ((constants, digest), *others):
        data, encoded = memoryview(segment).cast("B"), name.encode()
        if len(encoded) > 127:
            raise ArtifactError(f"{path}: found a constants digest of {len(encoded)} bytes, expected at most 127")
        page = _native.CONSTANTS_HEADER_BYTES
        parts.append(b"\0" * (-sum(map(len, parts)) % page))
        header = struct.pack("<8sQQQ128s", b"TWCONST1", page, len(data), _native.checksum(data), encoded)
        parts += [header.ljust(page, b"\0"), data]
    write_bytes(path, *parts)


def make_golden(inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[np.ndarray[Any, Any]]) -> bytes:
    """The golden section (csrc/abi.h) of one recorded call, to be placed in the constants segment at a multiple of 64."""
    dims = [size for array in inputs for size in array.shape]
    arrays = [*inputs, *outputs]
    start = _aligned(8 * (2 + len(dims) + 2 * len(arrays)))
    words = [_native.GOLDEN_MAGIC, len(dims), *dims]
    for array in arrays:
        words += [start, array.nbytes]
        start = _aligned(start + array.nbytes)
    section = bytearray(start)
    struct.pack_into(f"<{len(words)}q", section, 0, *words)
    for index, array in enumerate(arrays):
        place = words[2 + len(dims) + 2 * index]
        section[place : place + array.nbytes] = array.tobytes()
    return bytes(section)


def _aligned(offset: int) -> int:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


# --- header ---


def make_header(
    name: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    *,
    version: str,
    constants_bytes: int = 0,
    workspace: int | None = None,
    summary: str = "",
) -> str:
    """The text of `<name>.h`: the ABI (shared by all models of one ABI version) and this model's functions."""
    check_prefix(name)
    constants = describe_sizes(name, inputs, outputs, constants_bytes, workspace)
    about = f" * {_comment(summary)}\n" if summary else ""
    return _HEADER.format(
        name=name,
        upper=name.upper(),
        version=version,
        abi=_native.ABI_HEADER.strip(),
        about=about,
        constants=constants,
        abi_version=_native.ABI_VERSION,
    )


def describe_sizes(name: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], constants_bytes: int,
                   workspace: int | None) -> str:
    """Constants of the preprocessor: counts, sizes, and the number of each input and output by its name."""
    upper = name.upper()
    constants = [
        f"#define {upper}_ABI_VERSION {_native.ABI_VERSION}",
        f"#define {upper}_INPUT_COUNT {len(inputs)}",
        f"#define {upper}_OUTPUT_COUNT {len(outputs)}",
        f"#define {upper}_CONSTANTS_BYTES INT64_C({constants_bytes})",
        f"#define {upper}_WORKSPACE_BYTES INT64_C({-1 if workspace is None else workspace})"
        "   /* -1: depends on the sizes, ask the plan function */",
        f"#define {upper}_SHAPE_COUNT {sum(info.rank for info in inputs)}   /* entries of shapes */",
        f"#define {upper}_OUTPUT_SHAPE_COUNT {sum(info.rank for info in outputs)}",
    ]
    for kind, infos in (("INPUT", inputs), ("OUTPUT", outputs)):
        for index, info in enumerate(infos):
            label = re.sub(r"[^A-Za-z0-9]", "_", info.name).upper()
            constants.append(f"#define {upper}_{kind}_{index}_{label} {index}   /* {_comment(str(info))} */")
    return "\n".join(constants)


def _comment(text: str) -> str:
    """Text that is safe inside a C comment, whatever names a model uses."""
    return re.sub(r"[^ -~]", "?", text).replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")


_HEADER = """\
/* {name}.h: C99 interface of the model {name}, made by tilewright {version}, ABI version {abi_version}.
{about} *
 * Reentrant: no function keeps state, so any number of threads may call them at once, each with its own outputs, workspace
 * and error buffer. Every function that returns int32_t gives 0 or a negative tw_status with a message in context->error.
 * Link with -pthread. A minimal program (error handling left out):
 *
 *     char error[512];
 *     tw_context context = {{TW_ABI_VERSION}};
 *     context.error = error; context.error_capacity = sizeof error;
 *     tw_constants constants;
 *     {name}_open(&context, NULL, &constants);
 *     int64_t shapes[] = {{...}}, output_shapes[{upper}_OUTPUT_SHAPE_COUNT + 1], workspace_bytes;
 *     {name}_plan(&context, shapes, output_shapes, &workspace_bytes);
 *     {name}_run(&context, inputs, outputs, shapes, constants.data, NULL);
 *     {name}_close(&constants);
 */
{abi}

#ifndef TILEWRIGHT_MODEL_{upper}_H
#define TILEWRIGHT_MODEL_{upper}_H
#if TW_ABI_VERSION != {abi_version}
#error "{name}.h: included after the header of a model of another tilewright ABI version; compile both models anew"
#endif

{constants}

#ifdef __cplusplus
extern "C" {{
#endif

/* The model's description: name, inputs, outputs, CPU features, kernels. Constant. Where the library holds variants for
 * different CPUs, it is that of the one in use: the best that this CPU can run, or what context->variant says. */
const tw_model *{name}_describe(void);

/* Checks `shapes` (every dim of every input, in order), writes every dim of every output and the bytes of workspace. */
int32_t {name}_plan(const tw_context *context, const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes);

/* Runs the model. inputs and outputs: C-contiguous, not overlapping, owned by the caller. constants: `data` of what
 * {name}_open gave (may be null when {upper}_CONSTANTS_BYTES is 0 or they are embedded). workspace: 64-byte aligned and as
 * large as planned, or null: then it is allocated for the call. */
int32_t {name}_run(const tw_context *context, const void *const *inputs, void *const *outputs, const int64_t *shapes,
{pad}const uint8_t *constants, void *workspace);

/* Maps the constants: path null looks for {name}.weights beside the library (or the program, when linked statically). */
int32_t {name}_open(const tw_context *context, const char *path, tw_constants *constants);
void {name}_close(tw_constants *constants);

/* Runs the recorded call that the model carries and compares its outputs. 0 also when it carries none. */
int32_t {name}_selftest(const tw_context *context, const uint8_t *constants);

/* {name}_run that also adds the time of every kernel to nanoseconds[kernel_count], which the caller zeroes. */
int32_t {name}_profile(const tw_context *context, const void *const *inputs, void *const *outputs, const int64_t *shapes,
{pad}    const uint8_t *constants, void *workspace, int64_t *nanoseconds);

#ifdef __cplusplus
}}
#endif
#endif
""".replace("{pad}", " " * 12)


# --- loading ---


def load_library(
    path: str | PathLike[str], *, weights: str | PathLike[str] | None = None, threads: int = 0, verify: bool = True, variant: str = ""
) -> Executable:
    """Load an artifact. `weights` defaults to the file beside it; `verify` compares the checksum of the constants; `variant` is
    the target of the one to use where there are several, the best that this CPU can run unless given."""
    library = Path(path).absolute()
    symbol = find_describe(library)
    kind = Executable
    if _is_for_cuda(library, symbol):
        kind, symbol = _cuda_executable(), _program_symbol(symbol)
    executable = kind.from_library(_fresh_spelling(library), symbol, threads=threads, metadata={"path": str(library)}, variant=variant)
    model = executable._model
    if model.constants_bytes > 0 and not model.constants_embedded:
        place = Path(weights) if weights is not None else find_weights(library, model.name)
        model.set_constants(_native.Constants.open(str(place), model.constants_bytes, executable.constants_digest, verify))
    return executable


def _program_symbol(describe: str) -> str:
    return describe.removesuffix("_describe") + "_program"


def _is_for_cuda(library: Path, describe: str) -> bool:
    """Whether a library is one for GPUs, which exports its program for the device."""
    return _program_symbol(describe) in exported_names(library)


def _cuda_executable() -> type[Executable]:
    """What runs models on devices: imported only for a library that is for one."""
    from tilewright.runtime.cuda import CudaExecutable

    return CudaExecutable


_loads = itertools.count(1)


def _fresh_spelling(library: Path) -> str:
    """The path spelled as never before (a/./b//c): the dynamic loader compares spellings before it looks at the file, and
    would hand back the library that was under this path before it was replaced. Of one file it still makes one library."""
    number = format(next(_loads), "b").replace("0", "/.").replace("1", "//")
    return f"{library.parent}{number}/{library.name}"


def exported_names(library: Path) -> list[str]:
    """What a shared library for this machine exports."""
    try:
        with open(library, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{library}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    elf = read_elf(memoryview(data), str(library))
    if elf.type != 3:
        raise ArtifactError(f"{library}: found ELF type {elf.type}, expected a shared library")
    if elf.machine != os.uname().machine:
        raise ArtifactError(f"{library}: found code for {elf.machine}, expected {os.uname().machine}")
    return elf.exported()


def find_describe(library: Path) -> str:
    """The name of the artifact's describing function; refuses what is no whole artifact for this machine."""
    names = [name for name in exported_names(library) if name.endswith("_describe")]
    if len(names) != 1:
        raise ArtifactError(f"{library}: exports {len(names)} functions named *_describe, expected one; is it a tilewright artifact?")
    return names[0]


def find_weights(library: Path, name: str) -> Path:
    """The file of constants beside a library: named like the model, or, if both were renamed alike, like the library."""
    for stem in (name, library.stem):
        place = library.with_name(stem + WEIGHTS_SUFFIX)
        if place.is_file():
            return place
    raise ArtifactError(
        f"{library}: its constants are missing: looked for {library.with_name(name + WEIGHTS_SUFFIX)}",
        hint="keep the .weights file beside the library, or pass weights=",
    )
