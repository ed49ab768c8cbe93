"""The dtypes that are only stored: moved and read as bytes, refused by whatever computes; their text and their constants."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Bitcast, Cast, Elementwise, Sort
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Concat, Iota, Slice, Transpose
from tilewright.ir.parser import parse
from tilewright.ir.printer import format_graph
from tilewright.ir.types import F32, STORED_DTYPES, U8, DType
from tilewright.library import constant

EVERY = np.arange(256, dtype=np.uint8)


def moved(dtype: DType) -> Graph:
    """A parameter and a constant side by side, turned, cut, and read as bytes too."""
    b = Builder()
    x = b.add(Param("x", dtype, (2, 128)))
    w = constant(b, EVERY.view(dtype.numpy).reshape(2, 128))
    y = b.add(Slice((3, 1), (60, 3), (2, 1)), b.add(Transpose((1, 0)), b.add(Concat(0), x, w)))
    return Graph("moved", [x], [y, b.add(Bitcast(U8), y)])


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_bits_are_kept(dtype: DType) -> None:
    graph = moved(dtype)
    x = EVERY[::-1].copy().view(dtype.numpy).reshape(2, 128)
    expected = np.concatenate([EVERY[::-1].reshape(2, 128), EVERY.reshape(2, 128)]).T[3:123:2, 1:4]
    for made in (evaluate_graph(graph, [x]), tw.compile(graph, options=tw.Options(cache=False))(x)):
        assert made[0].dtype == dtype.numpy and made[1].dtype == np.uint8
        np.testing.assert_array_equal(np.ascontiguousarray(made[0]).view(np.uint8), expected)
        np.testing.assert_array_equal(made[1], expected)


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_text(dtype: DType) -> None:
    b = Builder()
    x = b.add(Param("x", dtype, (2, 3)))
    text = format_graph(Graph("g", [x], [b.add(Transpose((1, 0)), x)]))
    assert f"{dtype}[2, 3]" in text
    assert format_graph(parse(text)) == text


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_nothing_computes_with_them(dtype: DType) -> None:
    b = Builder()
    x = b.add(Param("x", dtype, (4,)))
    for op, operands in ((Elementwise("add"), (x, x)), (Elementwise("eq"), (x, x)), (Cast(F32), (x,)), (Sort(0), (x,))):
        with pytest.raises(CompileError, match="only stored"):
            b.add(op, *operands)
    with pytest.raises(CompileError, match="only stored"):
        b.add(Cast(dtype), b.add(Iota(F32, (4,), 0)))
