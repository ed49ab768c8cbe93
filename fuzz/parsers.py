"""Whatever reads files as a subject of fuzzing: bytes go in, and what comes out is a program or one clear error.

A case is the name of a reader and bytes. Seeds are small valid files of each kind. Mutators know nothing of formats but the
words of the text formats and the messages of ONNX (`onnx_edits.py`); coverage tells which damage leads somewhere new.

The code in an object is not run: what is damaged there cannot be told from what is meant.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.errors import InternalError, ParseError, TilewrightError
from ..ir.loop_parser import parse_program
from ..ir.loop_text import format_program
from ..ir.loop_verify import verify_program
from ..ir.ops.table import ALL_OPS
from ..ir.parser import parse
from ..ir.printer import KEYWORDS, format_graph
from ..ir.program import Program
from ..ir.schedule import format_schedule, parse_schedule
from ..ir.verify import verify
from ..pipeline import PASSES
from ..runtime import _native
from ..runtime.artifact import write_constants
from ..runtime.elf_file import read_elf
from . import native as machine
from .generate import sample_graph
from .graphs import GraphSubject, guarded
from .rebuild import chosen
from .sequences import Step, run_step
from .subject import Failure, Refused, Verdict

try:
    from ..frontends import from_onnx as onnx_front_end
    from . import onnx_edits
    READS_ONNX = True
except ImportError:  # the extra is not installed: its models are not read
    READS_ONNX = False

MOST_BYTES = 1 << 16
CONSTANTS_DIGEST = "0123456789abcdef"
_WORD = re.compile(rb"[A-Za-z_]\w*|-?\d+(?:\.\d+)?|\W")
_INTEGERS = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 1 << 15, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)
_TEXT = b"()[]{}<>=,:;%#@!\"'\\\n \t-+*/.0123456789e"


class ByteCase(Struct, frozen=True):
    """Bytes for one reader."""

    reader: str
    data: bytes


class ParserSubject:
    """See `Subject`. There are no passes: a sequence is mutated by exchanging parts with another case."""

    name = "bytes"
    share = 1
    fresh = 1 / 4
    seeds_as = "passes"

    def seeds(self, domain: bool = True) -> Iterator[ByteCase]:
        """Valid files, made anew; the same each time."""
        graphs = [sample_graph(sample) for op in ALL_OPS for sample in op.samples()[:2]]
        for graph in graphs:
            yield ByteCase("graph", format_graph(graph).encode())
        caps = machine.caps_of("cpu:x86-64", False)
        for number, graph in enumerate(graphs[::6]):
            for step in PASSES:
                graph = run_step(Step(step.name), graph, "default", caps)
            program = machine.lowered(graph, caps)
            yield ByteCase("program", format_program(program).encode())
            if number % 4 == 0:
                code = machine.object_code(program, "cpu:x86-64", 0)[0]
                yield ByteCase("object", code)
                yield ByteCase("elf", code)
        yield ByteCase("schedule", b"split(i, 8)\nfuse(i, j)\nvectorize(i, 8, true)\nstage(i, x, [\"4*i\", 0], [4, 64], tile, local)\n")
        yield ByteCase("constants", _constants_file())
        yield from (ByteCase("onnx", data) for data in _onnx_models())
        yield ByteCase("case", GraphSubject().format(GraphSubject().generate(np.random.default_rng(0))).encode())

    def generate(self, rng: np.random.Generator, domain: bool = True) -> ByteCase:
        reader = chosen(rng, tuple(READERS))
        return ByteCase(reader, bytes(rng.integers(0, 256, int(rng.integers(0, 64)), dtype=np.uint8)))

    def mutators(self) -> tuple[str, ...]:
        return tuple(_MUTATORS)

    def mutate_program(self, case: ByteCase, rng: np.random.Generator, donor: ByteCase | None,
                       allowed: frozenset[str]) -> tuple[ByteCase, str] | None:
        names = [name for name in _MUTATORS if name in allowed and (name != "edit_model" or case.reader == "onnx")]
        if not names:
            return None
        data, name = case.data, chosen(rng, names)
        for _ in range(int(rng.integers(1, 4))):
            data = _MUTATORS[name](data, rng, b"" if donor is None else donor.data)[:MOST_BYTES]
        return replace(case, data=data), name

    def mutate_passes(self, case: ByteCase, rng: np.random.Generator, donor: ByteCase | None) -> tuple[ByteCase, str]:
        data = splice(case.data, rng, b"" if donor is None or donor.reader != case.reader else donor.data)
        return replace(case, data=data[:MOST_BYTES]), "crossover"

    def with_pipeline(self, case: ByteCase) -> ByteCase:
        return case

    def with_random_passes(self, case: ByteCase, rng: np.random.Generator) -> ByteCase:
        return case

    def without_passes(self, case: ByteCase, changed: tuple[str, ...]) -> ByteCase:
        return case

    def check(self, case: ByteCase, native: bool) -> Verdict:
        """An error of the family with a text is right, and so is a result; a fault of ours, or any other exception, is not."""
        with guarded(f"reader of {case.reader}"):
            try:
                READERS[case.reader](case.data)
            except InternalError:
                raise
            except TilewrightError as error:
                if not error.message.strip():
                    raise Failure("crash", f"reader of {case.reader}", "the error has no text") from error
                raise Refused(f"reader of {case.reader}: {error.message}") from None
        return Verdict((case.reader,), native)

    def smaller(self, case: ByteCase) -> Iterator[ByteCase]:
        size = len(case.data)
        width = size // 2
        while width:
            for start in range(0, size, width):
                yield replace(case, data=case.data[:start] + case.data[start + width:])
            width //= 2

    def size(self, case: ByteCase) -> int:
        return len(case.data)

    def format(self, case: ByteCase) -> str:
        return f"# reader: {case.reader}\n{base64.b64encode(case.data).decode()}\n"

    def parse(self, text: str) -> ByteCase:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        found = re.search(r"^# reader: (\w+)$", text, re.MULTILINE)
        if found is None or found.group(1) not in READERS or len(lines) > 1:
            raise ParseError(f"no case of bytes: expected a line `# reader: NAME` (of {', '.join(READERS)}) and one line in base64",
                             line=1, column=1)
        try:
            return ByteCase(found.group(1), base64.b64decode(lines[0] if lines else "", validate=True))
        except ValueError as error:
            raise ParseError(f"the bytes of a case are damaged: {error}", line=2, column=1) from None


# --- readers -----------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")  # as the readers of files do before they parse


def read_graph(data: bytes) -> None:
    graph = parse(_text(data))
    verify(graph)
    _unchanged("graph", graph.fingerprint, parse(format_graph(graph), graph).fingerprint)


def read_program(data: bytes) -> None:
    program: Program = parse_program(_text(data))
    verify_program(program)
    text = format_program(program)
    _unchanged("program", text, format_program(parse_program(text, [value for _, value in program.constants])))


def read_schedule(data: bytes) -> None:
    schedule = parse_schedule(_text(data))
    _unchanged("schedule", schedule, parse_schedule(format_schedule(schedule)))


def _unchanged(what: str, before: object, after: object) -> None:
    if before != after:
        raise Failure("text", "printer", f"a {what} that was read is printed as another {what}")


def read_object(data: bytes) -> None:
    """All of the loader; the model's description, whose pointers code makes as it likes, is not looked at."""
    _native.Model.from_object(data, "no such symbol", None, None)


def read_elf_file(data: bytes) -> None:
    read_elf(data, "file")


def read_constants(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="tilewright-fuzz-") as folder:
        path = Path(folder) / "model.weights"
        path.write_bytes(data)
        _native.Constants.open(str(path), 64, CONSTANTS_DIGEST)


def read_onnx(data: bytes) -> None:
    verify(onnx_front_end.from_onnx(data))


def read_case(data: bytes) -> None:
    GraphSubject().parse(_text(data))


READERS: dict[str, Callable[[bytes], None]] = {
    "graph": read_graph, "program": read_program, "schedule": read_schedule, "object": read_object, "elf": read_elf_file,
    "constants": read_constants, "case": read_case, **({"onnx": read_onnx} if READS_ONNX else {}),
}


def _constants_file() -> bytes:
    with tempfile.TemporaryDirectory(prefix="tilewright-fuzz-") as folder:
        path = Path(folder) / "model.weights"
        write_constants(path, np.arange(64, dtype=np.uint8), CONSTANTS_DIGEST)
        return path.read_bytes()


def _onnx_models() -> Iterator[bytes]:
    """Small models, where the reader for them is installed."""
    if "onnx" in READERS:
        for path in sorted((Path(__file__).parent / "seeds").glob("*.onnx")):
            yield path.read_bytes()


# --- mutators ----------------------------------------------------------------------------------------------------------


def _part(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Ends of a part of the bytes, most often a short one."""
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(rng.integers(0, 4 + len(data) // int(rng.integers(1, 65)))))


def flip_bits(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def set_byte(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    if not data:
        return bytes([int(rng.integers(256))])
    changed = bytearray(data)
    changed[int(rng.integers(len(changed)))] = int(rng.integers(256)) if rng.random() < 0.5 else chosen(rng, _TEXT)
    return bytes(changed)


def remove(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    start, end = _part(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    start, end = _part(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 5)) + data[end:]


def truncate(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    return data[:int(rng.integers(len(data) + 1))]


def set_integer(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    """A field of 1 to 8 bytes becomes a number at a border."""
    width = chosen(rng, (1, 2, 4, 8))
    start = int(rng.integers(max(1, len(data) - width + 1)))
    number = (chosen(rng, _INTEGERS) + int(rng.integers(-1, 2))) % (1 << 8 * width)
    return data[:start] + number.to_bytes(width, "little") + data[start + width:]


def splice(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    start, end = _part(data, rng)
    first, last = _part(donor, rng)
    return data[:start] + donor[first:last] + data[end:]


def exchange_word(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    """A word of the text becomes another of it, a keyword, or a number at a border."""
    words = list(_WORD.finditer(data[:4096]))
    if not words:
        return data
    old = chosen(rng, words)
    new = chosen(rng, words).group() if rng.random() < 0.5 else chosen(rng, _VOCABULARY)
    return data[:old.start()] + new + data[old.end():]


def edit_model(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    """An ONNX model is changed by its structure, so that it still parses; all else stays."""
    return onnx_edits.edited_bytes(data, rng, donor)


_VOCABULARY = (*(word.encode() for word in sorted(KEYWORDS)), *(str(n).encode() for n in _INTEGERS), b"-1", b"1e400", b"-0.0", b"%0", b"",
               b"(" * 100, b"9" * 400, b"\x00", "é".encode(), b"\xff")
_MUTATORS: dict[str, Callable[[bytes, np.random.Generator, bytes], bytes]] = {
    "flip_bits": flip_bits, "set_byte": set_byte, "remove": remove, "repeat": repeat, "truncate": truncate,
    "set_integer": set_integer, "splice": splice, "exchange_word": exchange_word, **({"edit_model": edit_model} if READS_ONNX else {}),
}
