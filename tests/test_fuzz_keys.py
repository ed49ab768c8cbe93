"""Keys of the cache held against each other: nothing is confused in a right compiler, and each confusion is seen."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from msgspec.structs import fields, replace

from tilewright import library as lib
from tilewright.build import capabilities, resolved, target_text
from tilewright.fuzz import keys, native
from tilewright.fuzz.generate import random_graph, sample_graph
from tilewright.fuzz.keys import (
    changed_texts,
    check_bounds,
    check_constant,
    check_keys,
    compiled_text,
    key,
    option_values,
    other_options,
    variants,
)
from tilewright.fuzz.subject import Failure
from tilewright.ir import graph as graphs
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.errors import ParseError
from tilewright.ir.graph import LARGE, Builder, Constant, Graph
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.parser import parse
from tilewright.ir.printer import format_graph
from tilewright.ir.types import F32, STORED_DTYPES, DType
from tilewright.options import PRECISIONS, Options

TARGET = "cpu:x86-64-v3"
CAPS = native.caps_of(TARGET, False)


def small_graph() -> Graph:
    """x + 0 keeps the sign of no zero, so `strict` leaves it."""
    b = Builder()
    x = b.add(Param("x", F32, (symbol("n", 1, 64, 8), 3)))
    return Graph("g", [x], [lib.apply(b, "add", x, lib.full(b, 0.0, F32, x.shape))])


def check(graph: Graph, seed: int = 0, precision: str = "default") -> None:
    check_keys(graph, precision, TARGET, CAPS, np.random.default_rng(seed))


def test_every_option_has_values() -> None:
    for field in fields(Options):
        values = option_values(field.name)
        assert len(values) > 1, f"option {field.name}: `option_values` finds no value but its default"
        assert len({name for name, _ in other_options()}) == len(fields(Options))
    assert set(option_values("precision")) == set(PRECISIONS)


def test_nothing_is_confused() -> None:
    samples = [sample_graph(op.samples()[0]) for op in ALL_OPS[::3] if op.samples()]
    for seed, graph in enumerate([small_graph(), *samples, *(random_graph(n, size=8) for n in range(6))]):
        check(graph, seed, PRECISIONS[seed % 3])


def test_a_precision_that_is_not_in_the_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Options, "code_key", lambda self: "precision")
    with pytest.raises(Failure, match="key in cache: options with precision='strict'"):
        for seed in range(20):  # one value of one option a check
            check(small_graph(), seed)


def test_an_option_that_passes_read_and_the_key_leaves_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new option would be."""
    plain = keys.run_passes

    def changed(graph, options, caps, environment):  # type: ignore[no-untyped-def]
        return plain(graph if options.threads < 2 else Graph("other", graph.params, graph.results), options, caps, environment)

    monkeypatch.setattr(keys, "run_passes", changed)
    monkeypatch.setattr(keys._Noting, "noted", set())
    with pytest.raises(Failure, match="options with threads="):
        for seed in range(20):
            check(small_graph(), seed)


def test_bounds_that_are_not_in_the_key_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bounds(size):  # type: ignore[no-untyped-def]
        text = str(size).encode()
        return b"d%d;" % len(text) + text

    monkeypatch.setitem(graphs._ENCODERS, graphs.Dim, without_bounds)
    with pytest.raises(Failure, match="graphs in which a bound .* have the key of others"):
        for seed in range(4):
            check_bounds(small_graph(), Options(), TARGET, CAPS, np.random.default_rng(seed))
    with pytest.raises(Failure, match="graphs in which .* have the key of others"):
        for seed in range(20):
            check(small_graph(), seed)


def test_an_attribute_that_is_not_in_the_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs._ENCODERS, int, lambda value: b"i")
    monkeypatch.setitem(graphs._ENCODERS, tuple, lambda values: b"(%s)" % b"".join(map(graphs.encode, values)))
    b = Builder()
    x = b.add(Param("x", F32, (4, 8)))
    graph = Graph("g", [x], [lib.slice_axis(b, x, 1, 2, 3) if hasattr(lib, "slice_axis") else lib.softmax(b, x, 1)])
    with pytest.raises(Failure, match="key in cache"):
        for seed in range(20):
            check(graph, seed)


def test_a_constant_of_which_only_a_part_is_digested_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Constant, "digest", property(lambda self: f"{self.dtype}{self.array.shape}"))
    with pytest.raises(Failure, match="with another byte"):
        check_constant(Constant(np.ones(3, np.float32)), np.random.default_rng(0))


@pytest.mark.parametrize("count", [0, 1, 5, LARGE // 4 + 3])
def test_constants_are_told_apart(count: int) -> None:
    for seed in range(5):
        check_constant(Constant(np.arange(count, dtype=np.float32)), np.random.default_rng(seed))


def test_variants_are_well_typed_and_differ() -> None:
    graph, found = random_graph(3, size=8), 0
    for seed in range(10):
        for other, what in variants(graph, np.random.default_rng(seed)):
            found += 1
            assert format_graph(other) != format_graph(graph) and " became " in what
    assert found >= 8
    texts = {text for seed in range(10) for text, _ in changed_texts(format_graph(graph), np.random.default_rng(seed))}
    assert len(texts) > 40, "changes repeat"


def test_targets_with_one_text_have_one_set_of_capabilities() -> None:
    """The key holds the text of a target, and passes and lowering are told its capabilities."""
    known: dict[str, Caps] = {}
    for name in (*native.TARGETS, "cpu:x86-64-v2", "cpu:haswell", "cpu:x86-64-v4", "cpu:x86-64-v3+fma", "cpu:x86-64-v3-fma", "cpu:skylake-avx512"):
        text = target_text(name)
        assert known.setdefault(text, capabilities(name)) == capabilities(name), f"{name} shares its key with another target"
        assert resolved(name).canonical_text in text


def test_the_key_does_not_hang_on_the_process() -> None:
    """Hashes of strings differ from process to process."""
    program = ("from tilewright.fuzz.generate import random_graph\nfrom tilewright.fuzz.keys import key\n"
               "from tilewright.options import Options\nprint(key(random_graph(5, size=9), 'cpu:x86-64-v3', Options()))")
    found = {subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
                            check=True).stdout for seed in ("1", "2")}
    assert len(found) == 1


def test_what_is_compared_holds_the_contents_of_constants() -> None:
    texts = []
    for value in (1.0, 2.0):
        b = Builder()
        x = b.add(Param("x", F32, (40, 40)))
        graph = Graph("g", [x], [lib.apply(b, "add", x, lib.constant(b, np.full((40, 40), value, np.float32), F32))])
        texts.append(compiled_text(graph, Options(), CAPS))
        assert key(graph, TARGET, Options()) == key(graph, TARGET, replace(Options(), threads=3))
    assert texts[0] != texts[1]


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_constants_of_stored_dtypes_read_back(dtype: DType) -> None:
    """Every byte of them; found by changing dtypes in text, which ended in NumPy's ValueError."""
    values = np.arange(256, dtype=np.uint8).view(dtype.numpy) if dtype.name.startswith("f8") else np.arange(4, dtype=np.uint8).view(dtype.numpy)
    for part in np.split(values, len(values) // 4):
        b = Builder()
        graph = Graph("g", [], [b.add(Const(Constant(part, dtype)))])
        assert parse(format_graph(graph)).fingerprint == graph.fingerprint
    text = format_graph(graph).replace(" = const [", " = const [256, ", 1)
    with pytest.raises(ParseError, match="256 is outside"):
        parse(text)
