"""Golden files: a graph, the pass named by the folder, and the text it must give.

`tests/golden/<pass>/<case>.ir` holds what the case shows (lines that begin with `//`), the input graph, a line
`// expected`, and the output graph. `pytest --update-golden` rewrites the second half. Both halves are also evaluated on
random inputs and compared, so that no golden file can state a wrong result. A line `// precision: strict` sets it.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from comparing import assert_close

from tilewright.fuzz.generate import random_inputs
from tilewright.ir.caps import Caps
from tilewright.ir.errors import IndexFailure
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.parser import parse
from tilewright.ir.printer import format_graph
from tilewright.ir.verify import verify
from tilewright.options import Options
from tilewright.passes import narrow_tables as narrow_tables_module
from tilewright.passes.canonicalize import canonicalize
from tilewright.passes.decompose import decompose
from tilewright.passes.eliminate_dead import eliminate_dead
from tilewright.passes.fold_constants import fold_constants
from tilewright.passes.fold_scales import fold_scales
from tilewright.passes.forward_scales import forward_scales
from tilewright.passes.inline_control import inline_control
from tilewright.passes.share_divisors import share_divisors
from tilewright.passes.share_sorts import share_sorts
from tilewright.passes.weight_only import keep_weights_narrow


def narrow_tables(graph: Graph, options: Options) -> Graph:
    """With tables that a reader can read."""
    with patch.multiple(narrow_tables_module, SMALL_BYTES=8, LEAST_PART=2):
        return narrow_tables_module.narrow_tables(graph, options)


def weight_only(graph: Graph, options: Options) -> Graph:
    return keep_weights_narrow(graph, options, Caps(vector_bits=128))


FOLDER = Path(__file__).parent / "golden"
PASSES = {f.__name__: f for f in (
    canonicalize, decompose, eliminate_dead, fold_constants, fold_scales, forward_scales, inline_control, narrow_tables, share_divisors,
    share_sorts, weight_only)}
MARK = "// expected\n"
CASES = sorted(p for name in PASSES for p in (FOLDER / name).glob("*.ir"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path: Path, update_golden: bool) -> None:
    source, _, expected = path.read_text().partition(MARK)
    precision = "strict" if "// precision: strict" in source else "default"
    graph = parse(source, file=str(path))
    verify(graph)
    result = PASSES[path.parent.name](graph, Options(precision=precision))
    verify(result)
    compared = 0
    for seed in range(5):
        arrays, _ = random_inputs(graph, np.random.default_rng(seed))
        try:
            before = evaluate_graph(graph, arrays)
        except IndexFailure:  # at the least sizes some places are outside
            with pytest.raises(IndexFailure):
                evaluate_graph(result, arrays)
            continue
        assert_close(evaluate_graph(result, arrays), before)
        compared += 1
    assert compared >= 2
    text = format_graph(result)
    if update_golden:
        path.write_text(source + MARK + text)
    else:
        assert text == expected, "run pytest --update-golden and read the difference"
    assert text != format_graph(graph) or "// unchanged" in source, "the case shows nothing"


def test_every_pass_has_a_case() -> None:
    assert {p.parent.name for p in CASES} == set(PASSES)
