"""Links generated code with the runtime object: shared libraries by the system's linker, static archives by ourselves.

Guarantees: the same inputs give the same bytes (no timestamps, paths or build ids); only the symbols asked for are exported;
a file appears under its name whole or not at all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from msgspec import Struct

from tilewright.ir.errors import ArtifactError, cannot_write
from tilewright.runtime.artifact import replacing, write_bytes
from tilewright.runtime.elf_file import read_elf

RUNTIME_OBJECT = Path(__file__).with_name("tw_runtime.o")
LINKER_HINT = (
    "install one: a C compiler (apt install gcc), ld (apt install binutils), ld.lld (apt install lld), or pip install tilewright[cross]"
)


class Linker(Struct, frozen=True):
    """A command that links shared libraries: a compiler driver, or a bare linker."""

    command: tuple[str, ...]
    driver: bool


def find_linker(target: str | None = None) -> Linker:
    """The first linker there is. `target` (a triple such as "aarch64-linux-gnu") needs ziglang."""
    zig = importlib.util.find_spec("ziglang") is not None
    if target is not None:
        if not zig:
            raise ArtifactError(f"no linker for target {target}: it needs ziglang", hint="pip install tilewright[cross]")
        return Linker((sys.executable, "-m", "ziglang", "cc", "-target", target), True)
    for name, driver in (("cc", True), ("gcc", True), ("clang", True), ("ld.lld", False), ("ld", False)):
        found = shutil.which(name)
        if found is not None:
            return Linker((found,), driver)
    if zig:
        return Linker((sys.executable, "-m", "ziglang", "cc"), True)
    raise ArtifactError("no linker found: looked for cc, gcc, clang, ld.lld, ld and the Python package ziglang", hint=LINKER_HINT)


def link_shared(
    object_code: bytes,
    output: str | PathLike[str],
    exports: Sequence[str],
    *,
    others: Sequence[bytes] = (),
    runtime_object: str | PathLike[str] = RUNTIME_OBJECT,
    linker: Linker | None = None,
) -> None:
    """Link generated code with the runtime object to a shared library that exports exactly `exports`. `others`: objects that
    the first one needs."""
    linker = linker or find_linker()
    _check_defined(object_code, exports)
    if not Path(runtime_object).is_file():
        raise ArtifactError(f"{runtime_object}: the runtime object is missing", hint="install tilewright again (pip install -e .)")
    with _linker_folder() as folder, replacing(output) as temporary:
        objects, script = [folder / f"model{number}.o" for number in range(1 + len(others))], folder / "exports.map"
        for place, code in zip(objects, (object_code, *others)):
            write_bytes(place, code)
        write_bytes(script, ("{ global: " + " ".join(f"{name};" for name in exports) + " local: *; };\n").encode())
        _run_linker(linker, [*map(str, objects), str(runtime_object)], script, temporary, Path(output).name)


@contextmanager
def _linker_folder() -> Iterator[Path]:
    """A folder for what the linker reads, gone afterwards."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="tilewright-link-"))
    except OSError as error:
        raise cannot_write(tempfile.gettempdir(), error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_linker(linker: Linker, objects: list[str], script: Path, output: Path, soname: str) -> None:
    flags = [
        "--version-script=" + str(script),
        "--build-id=none",
        "--hash-style=gnu",
        "--gc-sections",
        "--no-undefined",
        "--strip-all",
        "-soname=" + soname,
        "-z",
        "relro",
        "-z",
        "now",
        "-z",
        "noexecstack",
    ]
    if linker.driver:
        flags = [
            f"-Wl,{','.join(flags[i : i + 2])}" if flags[i] == "-z" else f"-Wl,{flags[i]}"
            for i in range(len(flags))
            if flags[i - 1] != "-z"
        ]
        command = [*linker.command, "-shared", "-o", str(output), *objects, *flags]
    else:
        command = [*linker.command, "-shared", "-o", str(output), *objects, *flags, *_system_libraries()]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"})
    if result.returncode != 0:
        raise ArtifactError(
            f"{linker.command[0]}: linking failed with status {result.returncode}:\n{result.stderr.strip()}",
            notes=("command: " + " ".join(command),),
        )


def _system_libraries() -> list[str]:
    """The C library as this process has it loaded: a bare linker does not know where it is, and needs no headers for it."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        name = Path(path).name
        if path.startswith("/") and re.match(r"(libc\.so|libc-|libc\.musl|ld-musl|libpthread)", name):
            found[name] = path
    return [found[name] for name in sorted(found)]


def _check_defined(object_code: bytes, exports: Sequence[str]) -> None:
    defined = {symbol.name for symbol in read_elf(object_code, "object code").symbols if symbol.defined and not symbol.local}
    missing = [name for name in exports if name not in defined]
    if missing:
        raise ArtifactError(
            f"object code: does not define {', '.join(missing)}",
            hint="compile it for ahead-of-time use with this prefix",
        )


def make_archive(
    output: str | PathLike[str],
    object_code: bytes,
    member: str,
    *,
    others: Sequence[tuple[str, bytes]] = (),
    runtime_object: str | PathLike[str] = RUNTIME_OBJECT,
) -> None:
    """Write a static archive (System V format, with symbol table; all times and owners zero). Link with -pthread. `others`:
    names and objects that the first one needs."""
    members = [(member, object_code), *others, ("tw_runtime.o", Path(runtime_object).read_bytes())]
    symbols = []
    for index, (name, data) in enumerate(members):
        symbols += [(symbol.name, index) for symbol in read_elf(data, name).symbols if symbol.defined and not symbol.local]
    names = b"".join(name.encode() + b"\0" for name, _ in symbols)
    table_bytes = 4 + 4 * len(symbols) + len(names)
    offsets, position = [], 8 + 60 + table_bytes + table_bytes % 2
    for _, data in members:
        offsets.append(position)
        position += 60 + len(data) + len(data) % 2
    table = struct.pack(f">I{len(symbols)}I", len(symbols), *(offsets[index] for _, index in symbols)) + names
    parts = [b"!<arch>\n", _archive_member("/", table)]
    parts += [_archive_member(f"{name[:15]}/", data) for name, data in members]
    write_bytes(output, *parts)


def _archive_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)
