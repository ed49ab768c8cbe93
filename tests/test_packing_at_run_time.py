"""Right operands that are packed in the call: in bands of rows, whatever their sizes, and to the values that they had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.backends.reference import PLAIN
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)


def plans(rows: DimLike, depth: DimLike, columns: DimLike, columns_first: bool = False) -> list[str]:
    """The steps of the kernel that packs the right operand of a product."""
    b = Builder()
    x = b.add(Param("x", F32, (rows, depth)))
    y = b.add(Param("y", F32, (columns, depth) if columns_first else (depth, columns)))
    graph = Graph("product", [x, y], [b.add(Dot((1,), (1 if columns_first else 0,)), x, y)])
    fused, _ = run_passes(graph, Options(), PLAIN, QUIET)
    _, statistics = lower_program(fused, PLAIN)
    found = [list(map(str, schedule)) for _, schedule in statistics.plans.values()]
    return found[-1]


def test_packing_takes_bands_of_rows() -> None:
    split, moved, shared, vector = plans(300, 512, 2048)
    assert split.startswith("split(i1, ") and moved == "reorder(i0, i1_outer)"
    assert shared == "parallelize(i1_outer)" and vector.startswith("vectorize(i2, ")
    assert plans(symbol("M"), symbol("K"), symbol("N"))[1] == "reorder(i0, i1_outer)"


def test_few_rows_are_one_band() -> None:
    assert not any(step.startswith("reorder") for step in plans(300, 4, 2048))


def test_what_is_read_across_is_turned_in_tiles_instead() -> None:
    assert "reorder(i0, i1_outer)" not in plans(300, 512, 2048, columns_first=True)


def test_the_last_panel_is_packed_with_the_others() -> None:
    compiled = tw.compile(lambda x, y: x @ y, options=tw.Options(cache=False))
    for columns in (48, 51, 7):
        compiled(np.ones((40, 30), np.float32), np.ones((30, columns), np.float32))
    executable, = compiled.executables
    assert sorted(name for name in executable.kernels if "check" not in name) == ["concat", "packed_dot"]


PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "x @ y": lambda x, y: x @ y, "x @ y.T": lambda x, y: x @ y.T, "x.T @ y": lambda x, y: x.T @ y}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (37, 1, 40), (37, 17, 1), (7, 33, 500), (5, 257, 33), (64, 64, 64), (3, 0, 5), (3, 5, 0)], ids=str)
def test_products_of_any_size(name: str, sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (k, m) if name.startswith("x.T") else (m, k)).astype(np.float32)
    y = rng.integers(-4, 5, (n, k) if name.endswith("y.T") else (k, n)).astype(np.float32)
    expected = PRODUCTS[name](x, y)
    for threads in (1, 2):
        options = tw.Options(threads=threads, cache=False)
        known = tw.compile(PRODUCTS[name], args=[tw.spec(x.shape, "float32"), tw.spec(y.shape, "float32")], options=options)
        for compiled in (known, tw.compile(PRODUCTS[name], options=options)):
            np.testing.assert_array_equal(compiled(x, y), expected)


def test_infinities_past_the_columns_stay_where_they_are() -> None:
    x, y = np.ones((9, 40), np.float32), np.ones((40, 35), np.float32)
    y[3, 34], y[5, 0], x[2, 7] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        expected = x @ y
    np.testing.assert_array_equal(tw.compile(lambda x, y: x @ y, options=tw.Options(cache=False))(x, y), expected)
