"""Fuzzing of whatever reads files: seeds are valid, damage ends in one clear error, no reader is forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tilewright.fuzz import parsers
from tilewright.fuzz.parsers import READERS, ByteCase, ParserSubject
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir.errors import ParseError
from tilewright.ir.printer import format_graph

SUBJECT = ParserSubject()


@pytest.fixture(scope="module")
def seeds() -> list[ByteCase]:
    return list(SUBJECT.seeds())


def test_every_reader_has_seeds_that_it_reads(seeds: list[ByteCase]) -> None:
    assert {case.reader for case in seeds} == set(READERS)
    for case in seeds:
        if case.reader != "object":
            assert SUBJECT.check(case, native=False).changed == (case.reader,)
            continue
        with pytest.raises(Refused, match="does not define 'no such symbol'"):  # read whole, and nothing of it is run
            SUBJECT.check(case, native=False)


@pytest.mark.parametrize("name", SUBJECT.mutators())
def test_damage_ends_in_one_error(name: str, seeds: list[ByteCase]) -> None:
    rng = np.random.default_rng(2)
    changed = 0
    of_its_kind = [case for case in seeds if case.reader == "onnx"] if name == "edit_model" else seeds
    for _ in range(150):
        case, donor = (of_its_kind[int(rng.integers(len(of_its_kind)))] for _ in range(2))
        found = SUBJECT.mutate_program(case, rng, donor, frozenset({name}))
        assert found is not None
        changed += found[0] != case
        try:
            SUBJECT.check(found[0], native=False)
        except Refused:
            continue
    assert changed > 100


@pytest.mark.parametrize("reader", ["constants", "object"])
def test_messages_may_quote_any_bytes(reader: str, seeds: list[ByteCase]) -> None:
    """Names in a damaged file need be no UTF-8: the message was a UnicodeDecodeError."""
    case = next(c for c in seeds if c.reader == reader)
    name = b"0123456789abcdef" if reader == "constants" else b".text"
    damaged = replace(case, data=case.data.replace(name, b"\xff" * len(name)))
    with pytest.raises(Refused):
        SUBJECT.check(damaged, native=False)
    if reader == "constants":
        with pytest.raises(Refused, match=r"\\xff"):
            SUBJECT.check(damaged, native=False)


def test_an_exception_that_is_no_error_of_the_family_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise IndexError("past the end")

    monkeypatch.setitem(READERS, "graph", fail)
    with pytest.raises(Failure, match="crash in reader of graph: IndexError"):
        SUBJECT.check(ByteCase("graph", b""), native=False)


@pytest.mark.parametrize("text", ["", "# reader: nothing\n", "# reader: graph\nno base64!\n", "# reader: graph\nQQ==\nQQ==\n"])
def test_damaged_cases_are_refused(text: str) -> None:
    with pytest.raises(ParseError):
        SUBJECT.parse(text)


def test_reduction_cuts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [SUBJECT.size(case) for case in SUBJECT.smaller(ByteCase("graph", b"abcdefgh"))]
    assert sizes[:2] == [4, 4] and min(sizes) == 4 and max(sizes) == 7


def test_what_is_read_is_printed_as_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"graph @g() -> (y) {\n  %0: f64[] = const 0.1234567890123456\n  return %0\n}\n"
    case = ByteCase("graph", text)
    SUBJECT.check(case, native=False)
    monkeypatch.setattr(parsers, "format_graph", lambda graph: format_graph(graph).replace("0.1234567890123456", "0.123456789"))
    with pytest.raises(Failure, match="a graph that was read is printed as another graph"):
        SUBJECT.check(case, native=False)
