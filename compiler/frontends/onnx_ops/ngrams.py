"""ONNX TfIdfVectorizer over numbers: how often each n-gram of a pool occurs in a row.

An n-gram occurs at a place where its items follow one another at equal distances, of 1 up to one more than `max_skip_count`; single
items are counted once, whatever the distances. All n-grams of one length are compared with all places at once.

Guarantees: as the reference evaluator and ONNX Runtime count, who weigh an output by its own number. Pools of strings
(`pool_strings`) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.graph import Array, Node
from ...ir.ops.shape import Iota, ScatterAlong
from ...ir.types import F32, I64
from ...library import broadcast, constant, expand, pad, reduce, size_value, slice_axis
from .context import Context, Operators


def tf_idf_vectorizer(c: Context, x: Node, *, max_gram_length: int, max_skip_count: int, min_gram_length: int, mode: str,
                      ngram_counts: Sequence[int], ngram_indexes: Sequence[int], pool_int64s: Sequence[int],
                      weights: Sequence[float] | None = None) -> Node:
    c.choice(mode, "mode", ("TF", "IDF", "TFIDF"))
    if not 1 <= min_gram_length <= max_gram_length or max_skip_count < 0:
        c.fail(f"n-grams of {min_gram_length} to {max_gram_length} items with {max_skip_count} skips make no sense")
    if not x.dtype.is_integer or x.rank > 2:
        c.fail(f"needs one or two axes of integers, found {x.type}")
    grams = _grams(c, pool_int64s, ngram_counts)
    columns = np.array(ngram_indexes, dtype=np.int64)
    if len(columns) != sum(map(len, grams)) or len(columns) == 0 or columns.min() < 0:
        c.fail(f"the pool holds {sum(map(len, grams))} n-grams, 'ngram_indexes' {len(columns)} places that are not negative")
    rows = c.cast(c.reshape(x, (1, x.tensor.elements)) if x.rank < 2 else x, I64)
    counts = []
    for items in range(1, len(grams) + 1):
        wanted = min_gram_length <= items <= max_gram_length and len(grams[items - 1]) > 0
        counts.append(_occurrences(c, rows, grams[items - 1], 1 if items == 1 else max_skip_count + 1) if wanted else None)
    result = _weighed(c, _in_columns(c, rows, grams, counts, columns), mode, weights)
    return c.reshape(result, (result.shape[1],)) if x.rank < 2 else result


def _grams(c: Context, pool: Sequence[int], begins: Sequence[int]) -> list[Array]:
    """The n-grams of the pool, [count, items] for each number of items."""
    ends = [*begins[1:], len(pool)]
    found = []
    for items, (begin, end) in enumerate(zip(begins, ends), 1):
        if not 0 <= begin <= end <= len(pool) or (end - begin) % items:
            c.fail(f"'ngram_counts' {tuple(begins)} does not divide a pool of {len(pool)} into n-grams")
        grams = np.array(pool[begin:end], dtype=np.int64).reshape(-1, items)
        if len(np.unique(grams, axis=0)) < len(grams):
            c.unsupported(f"the pool holds one of its n-grams of {items} items twice")
        found.append(grams)
    return found


def _occurrences(c: Context, rows: Node, grams: Array, distances: int) -> Node:
    """How often each n-gram occurs in each row, [rows, n-grams]."""
    length, items = rows.shape[1], grams.shape[1]
    padded = pad(c.b, rows, (0, 0), (0, (items - 1) * distances), 0)
    place = c.b.add(Iota(I64, (length,), 0))
    total: Node | None = None
    for distance in range(1, distances + 1):
        last = c.apply("add", place, c.constant((items - 1) * distance, I64))
        hits = c.reshape(c.apply("lt", last, size_value(c.b, length)), (1, length, 1))
        for item in range(items):
            here = expand(c.b, slice_axis(c.b, padded, 1, item * distance, length), (2,))
            hits = c.apply("and", hits, c.apply("eq", here, constant(c.b, grams[:, item])))
        found = reduce(c.b, "sum", c.cast(hits, I64), (1,))
        total = found if total is None else c.scalar("add", total, found)
    assert total is not None
    return total


def _in_columns(c: Context, rows: Node, grams: Sequence[Array], counts: Sequence[Node | None], columns: Array) -> Node:
    """The counts in the outputs' places; n-grams that share one are added up."""
    result = c.full(0, I64, (rows.shape[0], int(columns.max()) + 1))
    first = 0
    for group, count in zip(grams, counts):
        if count is not None:
            places = constant(c.b, columns[None, first:first + len(group)])
            result = c.b.add(ScatterAlong(1, "add"), result, broadcast(c.b, places, count.shape), count)
        first += len(group)
    return result


def _weighed(c: Context, counts: Node, mode: str, weights: Sequence[float] | None) -> Node:
    if mode == "IDF":
        counts = c.apply("min", counts, c.like(1, counts))
    found = c.cast(counts, F32)
    if mode == "TF" or not weights:
        return found
    if len(weights) != counts.shape[1]:
        c.fail(f"{len(weights)} weights for {counts.shape[1]} outputs")
    return c.apply("mul", found, constant(c.b, np.array(weights, dtype=np.float32)))


OPS: Operators = {"TfIdfVectorizer": tf_idf_vectorizer}
