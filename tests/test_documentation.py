"""What the documentation shows works: graphs parse, and the steps of add-an-op.md are followed on its own examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tilewright.fuzz.generate import random_inputs, sample_graph
from tilewright.ir import verify as verify_module
from tilewright.ir.graph import Constant, Op
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops import scalar, shape, table
from tilewright.ir.parser import parse
from tilewright.ir.printer import format_graph
from tilewright.ir.verify import verify

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of that language, without the indent of the list they stand in."""
    found: list[str] = []
    opened: str | None = None
    for line in (DOCS / name).read_text().splitlines(keepends=True):
        if line.strip().startswith("```"):
            if opened is None:
                opened, indent, text = line.strip()[3:], line[:len(line) - len(line.lstrip())], ""
                continue
            if opened == language:
                found.append(text)
            opened = None
        elif opened is not None:
            text += line.removeprefix(indent)
    return found


def test_the_graph_in_the_documentation_is_canonical() -> None:
    text = next(b for b in blocks("ir.md", "") if b.startswith("graph @mlp"))
    digest = re.search(r"#([0-9a-f]+)", text)
    assert digest is not None
    graph = parse(text, {digest.group(1): Constant(np.zeros(300, np.float32))})
    verify(graph)
    # what no result needs is left out: the two constants
    assert [n.op.spelling for n in graph.nodes()] == ["param", "param", "dot", "call"]
    assert parse(format_graph(graph)).fingerprint == graph.fingerprint


def test_the_profile_in_the_documentation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                          tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    source = next(iter(blocks("profile.md", "python")))
    place = tmp_path / "example.py"
    place.write_text(source)
    exec(compile(source, str(place), "exec"), {"__name__": "example"})
    text = capsys.readouterr().out
    assert "of 20 calls" in text and "example.py:5" in text and "contraction, register tile" in text and "measured" in text


def test_a_scalar_function_added_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    row_text, use = (b for b in blocks("add-an-op.md", "python") if "expit2" in b)
    row = eval(row_text.strip().rstrip(","), {"ScalarFunction": scalar.ScalarFunction, "np": np})
    monkeypatch.setitem(scalar.SCALARS, row.name, row)
    monkeypatch.setitem(table.SPELLINGS, row.name, table.Elementwise)
    graph = eval(use, {"parse": parse})
    verify(graph)
    assert "expit2 %x" in format_graph(graph)
    x = np.array([0, 1, -1, 2], np.float32)
    np.testing.assert_allclose(evaluate_graph(graph, [x])[0], 1 / (1 + 2.0**-x), rtol=1e-6)


def test_a_tensor_op_added_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    source, = (b for b in blocks("add-an-op.md", "python") if "class Roll" in b)
    namespace = dict(vars(shape))
    exec("from __future__ import annotations\n" + source, namespace)
    op_class: type[Op] = namespace["Roll"]
    monkeypatch.setattr(op_class, "__module__", shape.__name__)
    monkeypatch.setitem(table.SPELLINGS, op_class.name, op_class)
    monkeypatch.setattr(verify_module, "_KNOWN", verify_module._KNOWN | {op_class})
    for sample in op_class.samples():
        graph = sample_graph(sample)
        verify(graph)
        assert format_graph(parse(format_graph(graph))) == format_graph(graph)
        inputs, _ = random_inputs(graph, np.random.default_rng(0))
        expected = np.roll(inputs[0], sample.op.shift, sample.op.axis)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(evaluate_graph(graph, inputs)[0], expected)
