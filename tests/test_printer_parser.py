"""Text: printing and parsing are inverse, the text is canonical, and no text does more harm than a ParseError."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilewright as tw
from tilewright import library
from tilewright.fuzz.generate import random_graph, sample_graph
from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, ParseError, TilewrightError
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.ops.control import Composite, Const, Param
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.parser import load_text, parse
from tilewright.ir.printer import constants_of, format_graph, save_text
from tilewright.ir.types import ARRAY_DTYPES, DTYPES, F32, I32, TensorType, TupleType
from tilewright.ir.verify import verify

SAMPLES = [(op.__name__, s) for op in ALL_OPS for s in op.samples()]


def assert_round_trip(graph: Graph) -> None:
    text = format_graph(graph)
    again = parse(text, constants_of(graph))
    assert format_graph(again) == text
    assert again.fingerprint == graph.fingerprint
    verify(again)


@given(st.integers(0, 10**9), st.integers(1, 25), st.booleans())
def test_random_graphs(seed: int, size: int, symbolic: bool) -> None:
    assert_round_trip(random_graph(seed, size, ARRAY_DTYPES, symbolic))


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[f"{n}{i}" for i, (n, _) in enumerate(SAMPLES)])
def test_every_op(name: str, sample) -> None:
    assert_round_trip(sample_graph(sample))


def constant_graph(array: np.ndarray) -> Graph:
    return Graph("g", [], [library.constant(Builder(), array)])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=0, max_size=16), st.sampled_from(["f16", "bf16", "f32", "f64"]))
def test_floats_read_back_to_the_same_bits(bits: list[int], name: str) -> None:
    """Not-a-numbers with payloads, infinities, subnormals and negative zero included."""
    dtype = DTYPES[name]
    raw = np.array(bits, dtype=np.uint64).astype(f"u{dtype.bytes}")
    graph = constant_graph(raw.view(dtype.numpy))
    read = parse(format_graph(graph)).results[0].op
    assert isinstance(read, Const)
    assert read.value.array.tobytes() == raw.tobytes()


@given(st.floats(allow_nan=True), st.integers(0, 2**51 - 1))
def test_float_attributes_read_back_to_the_same_bits(value: float, payload: int) -> None:
    strange = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000000 | payload))[0]
    builder = Builder()
    x = builder.add(Param("x", F32, (2,)))
    body = Graph("b", [x], [x])
    node = builder.add(Composite("c", body, (("value", value), ("payload", strange))), x)
    assert_round_trip(Graph("g", [x], [node]))


def test_attributes_keep_their_kind() -> None:
    """1, 1.0, True, '1', a dtype and a string that spells one are six different things."""
    builder = Builder()
    size = symbol("f32", 1)
    x = builder.add(Param("x", F32, (size,)))
    values = (1, 1.0, True, "1", F32, I32, "f32", "i32", "true", None, "none", "", "a b", "\n\"\\", -0.0, -3, size, size + 1,
              (size + 1) // 2 * 3, (), (1,), ((1, 2), (size,)), TensorType(F32, (size, 2)), TupleType((TensorType(I32, ()),)),
              Constant(np.arange(3)), "graph", "const", "op", "types", "min", "inf", "nan", float("inf"), -float("inf"))
    node = builder.add(Composite("c", Graph("b", [x], [x]), (("all", values),)), x)
    assert_round_trip(Graph("g", [x], [node]))


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.text(st.characters(codec="utf-8"), max_size=8))
def test_names_of_any_letters(label: str, name: str) -> None:
    builder = Builder()
    params = [builder.add(Param(text, F32, ())) for text in {label, "0", "1", "x"}]
    total = library.scalar(builder, "add", params[0], params[1])
    assert_round_trip(Graph(name, params, [total, params[2]], [label, label + "."]))


def test_the_text_is_what_the_documentation_says() -> None:
    builder = Builder()
    batch = symbol("B", 1, 64, 8)
    x = builder.add(Param("x", F32, (batch, 3)))
    total = library.reduce(builder, "max", x, (1,))
    inner = builder.add(Param("a", F32, (batch,)))
    call = builder.add(Composite("twice", Graph("twice", [inner], [library.scalar(builder, "add", inner, inner)])), total)
    graph = Graph("mlp", [x], [call, library.constant(builder, np.float32([1, -0.0]))], ["peak", "the rest"])
    assert format_graph(graph) == """\
graph @mlp[B: 1..64 % 8](%x: f32[B, 3]) -> (peak, "the rest") {
  %0: f32[B] = reduce %x {kind=max, axes=(1,)}
  %1: f32[B] = call %0 {label=twice, body=graph @twice(%a: f32[B]) -> (output0) {
    %0: f32[B] = add %a, %a
    return %0
  }}
  %2: f32[2] = const [1.0, -0.0]
  return %1, %2
}
"""


def test_locations_are_comments() -> None:
    graph = parse("graph @g(%x: f32[2]) -> (y) {\n  %0: f32[2] = neg %x # a comment\n  return %0\n}\n", file="dir/model.ir")
    text = format_graph(graph, locations=True)
    assert "neg %x  # model.ir:2" in text
    assert parse(text).fingerprint == graph.fingerprint


def test_large_constants_live_beside_the_text(tmp_path: Path) -> None:
    builder = Builder()
    nodes = [library.constant(builder, np.arange(60).reshape(3, 20) % 7, dtype) for dtype in ARRAY_DTYPES]
    graph = Graph("g", [], nodes)
    path = tmp_path / "g.ir"
    save_text(graph, path)
    assert "const #" in path.read_text()
    assert load_text(path).fingerprint == graph.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.ir", "g.ir.npz"]
    with pytest.raises(ParseError, match="is not among the constants given"):
        parse(path.read_text())


def test_damaged_constants_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.ir"
    save_text(constant_graph(np.arange(40)), path)
    sidecar = tmp_path / "g.ir.npz"
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole[:-30])
    with pytest.raises(CompileError, match="not a readable file of constants"):
        load_text(path)
    digest = next(iter(constants_of(constant_graph(np.arange(40)))))
    np.savez(sidecar, **{f"{digest}.i64": np.arange(40, dtype=np.uint64) + 1})
    with pytest.raises(CompileError, match="other content than its digest says"):
        load_text(path)


def test_a_graph_goes_to_a_file_and_back_by_public_names(tmp_path: Path) -> None:
    graph = constant_graph(np.arange(40))
    tw.save_text(graph, str(tmp_path / "g.ir"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.ir", "g.ir.npz"]
    assert tw.load_text(str(tmp_path / "g.ir")) == graph and tw.parse(str(graph), graph) == graph
    with pytest.raises(ParseError, match=r"more than 16 elements(.|\n)*tw.parse\(text, graph\)(.|\n)*tw.load_text\(path\)"):
        tw.parse(str(graph))
    small = constant_graph(np.arange(16))
    assert tw.parse(str(small)) == small


def test_a_failed_dump_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_text(constant_graph(np.arange(40)), tmp_path / "g.ir")
    assert not list(tmp_path.iterdir())


HEAD = "graph @g[B: 1..4](%x: f32[2, B]) -> (y) {\n  "
WRONG = [
    ("", "line 1:1: expected 'graph'"),
    ("graph", "expected a graph name"),
    ("graph @g() -> (y) {\n return\n}", "returns 0 values but names 1"),
    ("graph @g() -> () {\n return\n} graph", "one text holds one graph"),
    ("graph @g() -> () {", "found the end of the text"),
    ("graph @g[B, B]() -> () {return}", "size B is declared twice"),
    ("graph @g[B: 3..2]() -> () {return}", "hold no size"),
    ("graph @g[in]() -> () {return}", "is not an identifier"),
    ("graph @g(%x: f32[], %x: f32[]) -> () {return}", "parameter %x occurs twice"),
    ("graph @g(%x: (f32[])) -> () {return}", "is a tuple"),
    ("graph @g(%x: f99[]) -> () {return}", "unknown dtype 'f99'"),
    ("graph @g(%x: f32[-3]) -> () {return}", "a size is negative"),
    ("graph @g(%x: f32[A]) -> () {return}", "unknown size 'A'"),
    ("graph @g(%x: f32[3 // 0]) -> () {return}", "divided by 0"),
    (HEAD + "%0: f32[2, B] = neg %y\n return %0\n}", "%y is not defined before"),
    (HEAD + "%x: f32[2, B] = neg %x\n return %0\n}", "%x is defined twice"),
    (HEAD + "%0: f32[2] = neg %x\n return %0\n}", "written as f32[2], but neg gives f32[2, B]"),
    (HEAD + "%0: f32[2, B] = negate %x\n return %0\n}", "unknown op 'negate'"),
    (HEAD + "%0: f32[2, B] = param {label=a}\n return %0\n}", "unknown op 'param'"),
    (HEAD + "%0: f32[2, B] = neg %x, %x\n return %0\n}", "takes 1 operands, found 2"),
    (HEAD + "%0: f32[2, B] = neg %x {a=1}\n return %0\n}", "takes no attributes"),
    (HEAD + "%0: f32[B, 2] = transpose %x {axes=(1, 0)}\n return %0\n}", "has no attribute 'axes'"),
    (HEAD + "%0: f32[B, 2] = transpose %x\n return %0\n}", "lacks attribute perm"),
    (HEAD + "%0: f32[B, 2] = transpose %x {perm=(1.0, 0)}\n return %0\n}", "attribute perm must be tuple[int, ...]"),
    (HEAD + "%0: f32[B, 2] = transpose %x {perm=(a, 0)}\n return %0\n}", "attribute perm must be tuple[int, ...]"),
    (HEAD + "%0: f32[B, 2] = transpose %x {perm=(1, 0), perm=(1, 0)}\n return %0\n}", "is given twice"),
    (HEAD + "%0: f32[B, 2] = transpose %x {perm=(1, 0)\n return %0\n}", "expected '}'"),
    (HEAD + "%0: f32[2] = const [1.0]\n return %0\n}", "has 2 elements, 1 are given"),
    (HEAD + "%0: f32[99] = const [1.0]\n return %0\n}", "is named by digest"),
    (HEAD + "%0: i8[] = const 300\n return %0\n}", "300 is outside i8"),
    (HEAD + "%0: i8[] = const 1.5\n return %0\n}", "expected an integer for i8"),
    (HEAD + "%0: bool[] = const 1\n return %0\n}", "expected true or false"),
    (HEAD + "%0: f32[] = const nan(0x1)\n return %0\n}", "these bits are no NaN"),
    (HEAD + "%0: f32[] = const nan(0x7fc0000000)\n return %0\n}", "does not fit 32 bits"),
    (HEAD + "%0: f32[B] = const [1.0]\n return %0\n}", "a constant must be a tensor of known sizes"),
    (HEAD + "%0: f32[20] = const #0123456789abcdef\n return %0\n}", "is not among the constants given"),
    (HEAD + "%0: f32[2, B] = neg %x ?\n return %0\n}", "'?' begins no token"),
    (HEAD + '%0: f32[2, B] = neg %"\\x"\n return %0\n}', "an escape that JSON does not know"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_text_is_an_error_that_shows_the_place(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert caught.value.line >= 1 and caught.value.column >= 1
    shown, marker = caught.value.notes[:2]
    assert marker.strip() == "^" and len(marker) <= len(shown) + 1


def test_the_caret_stands_under_the_fault() -> None:
    with pytest.raises(ParseError) as caught:
        parse("graph @g(%x: f32[2]) -> (y) {\n\t%0: f32[2] = nge %x\n  return %0\n}")
    assert (caught.value.line, caught.value.column) == (2, 15)
    assert str(caught.value).splitlines()[1:3] == ["   %0: f32[2] = nge %x", "  " + " " * 14 + "^"]


@pytest.mark.parametrize("text", [
    "graph @g(%x: " + "(" * 100_000,
    "graph @g(%x: f32[" + "(" * 100_000,
    "graph @g(%x: f32[" + "-" * 100_000 + "1",
    "graph @g(%x: f32[" + "9" * 100_000,
    "graph @g(%x: f32[" + "*".join(["9" * 300] * 400) + "]) -> () {return}",
    HEAD + "%0: f32[] = neg %x {a=" + "(" * 100_000,
    HEAD + "%0: f32[] = call %x {body=graph @a() -> () {" * 5000,
    "graph @g[A, B, C, D](%x: f32[" + "*".join(["(A + B + C + D + 1)"] * 60) + "]) -> () {return}",
    "graph @g[" + ", ".join(f"A{i}" for i in range(3000)) + "](%x: f32[" + "*".join(f"(A{i} + 1)" for i in range(60)) + "]) -> () {return}",
    '"' * 100_000, "%" * 100_000, "#" * 100_000, "\\" * 1000, "\x00" * 100, "graph @g() -> (\ud800",
], ids=range(15))
def test_hostile_text_ends_in_an_error(text: str) -> None:
    with pytest.raises(ParseError):
        parse(text)


@given(st.integers(0, 10**9), st.data())
def test_damaged_text_ends_in_a_graph_or_an_error(seed: int, data: st.DataObject) -> None:
    """Characters and tokens of a real text, deleted, doubled or exchanged."""
    text = format_graph(random_graph(seed % 50, 8))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 12)))
        other = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(st.sampled_from(["", text[start:stop] * 2, text[other:other + 9], "-1", "(", "f32"])) + text[stop:]
    try:
        verify(parse(text))
    except TilewrightError as error:
        assert str(error)
