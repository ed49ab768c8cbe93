"""Products of bytes that are added in 16 bits, several words at a time: where passes let them, in loops, as machine code, and the
weights that the quantizer makes so that they fit."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tests.test_integers import BYTE_PAIRS, QUADS, TARGETS, check_loops, contractions, conv_graph, integers, passed, product
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, PackedDot
from tilewright.ir.types import I8, I32, U8, TensorType
from tilewright.quantizing.narrowing import narrowed


def words(graph: tw.ir.graph.Graph, caps: Caps = BYTE_PAIRS) -> list[int]:
    return [op.narrow for op in contractions(passed(graph, caps))]


@pytest.mark.parametrize(("four", "narrow"), [((64, 64, 0, 0), 2), ((32, 32, 32, 32), 2), ((-32, -32, -32, -32), 2), ((33, 32, 32, 32), 1),
                                              ((-33, -32, -32, -32), 1), ((64, 64, -64, -64), 2), ((127, 1, -127, -1), 2)])
def test_words_are_added_in_16_bits_only_where_their_products_fit(four: tuple[int, ...], narrow: int) -> None:
    weights = np.zeros((16, 16), np.int8)
    weights[[10, 11, 14, 15], 5] = four
    graph = product(U8, 4, weights)
    assert words(graph) == [narrow]
    rows = np.full((4, 16), 255, np.uint8)
    rows[1:, 12:] = 0
    check_loops(graph, BYTE_PAIRS, [rows])


def test_an_odd_number_of_words_and_other_instructions_add_none_in_16_bits() -> None:
    weights = integers(I8, (16, 16), 1, 20)
    assert words(product(U8, 4, weights)) == [2] and words(product(U8, 4, weights[:12])) == [1] and words(product(U8, 4, weights[:13])) == [2]
    assert words(product(U8, 4, weights), QUADS) == words(product(U8, 4, weights), TARGETS["pairs"]) == [1]
    with pytest.raises(CompileError, match="2 words are added within 16 bits of 3, which must be a multiple and saturate"):
        PackedDot(0, 5, step=4, saturates=True, narrow=2).infer(TensorType(U8, (2, 12)), TensorType(I32, (1, 3, 8)))


# taps along the last axis that lie beside one another make an even number of words, or the channels do, or nothing
CONVS = [(Conv((1, 1), ((1, 1), (0, 1)), (1, 1), (1, 1), 1, False, I32), (1, 4, 5, 6), (7, 4, 3, 2), 2),
         (Conv((1, 1), ((1, 1), (0, 1)), (1, 1), (1, 1), 1, False, I32), (1, 4, 5, 6), (7, 4, 2, 3), 1),
         (Conv((2, 1), ((1, 1), (1, 1)), (1, 2), (1, 1), 2, False, I32), (1, 16, 7, 8), (4, 8, 3, 3), 2),
         (Conv((1, 1), ((1, 1), (1, 1)), (1, 2), (1, 1), 1, False, I32), (2, 4, 4, 7), (3, 4, 2, 2), 1),
         (Conv((1, 2), ((0, 0), (0, 0)), (1, 1), (1, 1), 1, False, I32), (2, 7, 3, 4), (9, 7, 1, 1), 2)]


def test_products_in_16_bits_are_exact() -> None:
    for rows, depth, columns in ((3, 16, 9), (1, 8, 17), (6, 24, 1), (9, 13, 33), (0, 16, 5)):
        weights = integers(I8, (depth, columns), 1, 32)
        graph, x = product(U8, rows, weights, zero_point=131), integers(U8, (rows, depth))
        if rows:
            check_loops(graph, BYTE_PAIRS, [x])
        if rows in (0, 9):
            np.testing.assert_array_equal(tw.compile(graph)(x), (x.astype(np.int32) - 131) @ weights.astype(np.int32))
    for op, shape, w, narrow in CONVS:
        graph, x = conv_graph(op, shape, integers(I8, w, 1, 32), 77), integers(U8, shape)
        assert words(graph) == [narrow]
        check_loops(graph, BYTE_PAIRS, [x])
        if op.strides != (1, 1):
            np.testing.assert_array_equal(tw.compile(graph)(x), evaluate_graph(graph, [x])[0])


def test_one_program_in_16_bits_serves_all_numbers_of_rows() -> None:
    weights = integers(I8, (200, 40), 1, 32)
    run = tw.compile(product(U8, symbol("n"), weights))
    for rows in (0, 1, 2, 5, 17, 64):
        x = np.full((rows, 200), 255, np.uint8)
        np.testing.assert_array_equal(run(x), x.astype(np.int32) @ weights.astype(np.int32))


@pytest.mark.parametrize(("groups", "channels", "taps", "spread"), [(1, 64, 1, 25), (2, 16, 9, 40), (3, 8, 2, 90)])
def test_weights_are_moved_towards_zero_until_they_fit(groups: int, channels: int, taps: int, spread: int) -> None:
    values = np.clip(np.round(np.random.default_rng(spread).normal(0, spread, (groups, channels * taps, 12))), -64, 64).astype(np.int64)
    found = narrowed(values, channels)
    fours = [x.reshape(groups, channels // 8, 2, 2, 2, -1) for x in (values, found)]
    for sign in (1, -1):
        before, after = (np.maximum(sign * x, 0).sum((2, 4), keepdims=True) for x in fours)
        assert (after <= 128).all() and (after[before > 128] == 128).all()  # by as few steps as it takes
        same = np.broadcast_to(before <= 128, fours[0].shape) & (sign * fours[0] > 0)
        assert (fours[0][same] == fours[1][same]).all()
    assert (np.abs(found) <= np.abs(values)).all() and (found * values >= 0).all()


def test_weights_that_fill_no_words_stay() -> None:
    values = np.full((1, 12, 3), 64)
    assert narrowed(values, 12) is values and narrowed(values[:, :0], 0).size == 0
    assert narrowed(np.full((1, 8, 1), 64), 8)[0, :, 0].tolist() == [32] * 8
