"""Writes ahead-of-time libraries for CUDA: host code with the images of the kernels, header, file of constants.

As for CPUs (`saving.py`), the object code is that of the compile and only the description changes; the runtime for devices is linked
beside the other one. What is written needs the C library alone: the driver is opened when a model is loaded.

Guarantees: the same program gives the same bytes; the files appear together, each whole, or not at all.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from .runtime.artifact import WEIGHTS_SUFFIX, check_prefix, write_bytes, write_constants
from .runtime.artifact_cuda import make_cuda_header, public_symbols
from .runtime.linking import RUNTIME_OBJECT, link_shared, make_archive
from .runtime.relocatable import specialize
from .saving import OBJECT_PREFIX, Saved, check_library_path, describe_variant, staged, tensor_infos, workspace_of
from .variants import Code
from .version import __version__

CUDA_OBJECT = RUNTIME_OBJECT.with_name("tw_cuda.o")


def save(code: Code, executable: Any, path: str | PathLike[str], *, name: str | None = None, embed: bool = False,
         static: bool | None = None, selftest: bool = True) -> Saved:
    """Write `path` (a shared library, or with `static` or the suffix .a an archive), its header and its constants. `name`: the prefix
    of the C functions, by default the file's stem; `embed` puts the constants inside the library. Whatever `selftest` says, no golden
    call is recorded: where libraries are made there need be no device."""
    del selftest
    target = Path(path)
    static = target.suffix == ".a" if static is None else static
    name = check_prefix(name or target.stem)
    check_library_path(target, static)
    description, segment = describe_variant((code,), 0, name, b"", embed)
    made = specialize(code.object_code, OBJECT_PREFIX, description)
    header = make_cuda_header(
        name, tensor_infos(code.metadata["inputs"]), tensor_infos(code.metadata["outputs"]), version=__version__,
        constants_bytes=description.constants_bytes, workspace=workspace_of((code,)),
        summary=f"Compiled for {', '.join(executable.architectures)}; {len(code.metadata['kernels'])} kernels.")
    beside = segment is not None and description.embedded is None
    runtime = CUDA_OBJECT.read_bytes()
    with staged(target) as folder:
        if beside:
            write_constants(folder / f"{name}{WEIGHTS_SUFFIX}", segment, description.constants_digest)
        write_bytes(folder / f"{name}.h", header.encode())
        if static:
            make_archive(folder / target.name, made, f"{name}.o", others=[("tw_cuda.o", runtime)])
        else:
            link_shared(made, folder / target.name, public_symbols(name), others=[runtime])
    weights = target.with_name(name + WEIGHTS_SUFFIX) if beside else None
    return Saved(target, target.with_name(f"{name}.h"), weights, False)
