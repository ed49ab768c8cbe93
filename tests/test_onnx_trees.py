"""TreeEnsemble, TfIdfVectorizer and the steps of optimizers against the reference implementation, and a tree against its meaning.

Odd sizes, NaN, no rows, open sizes; in the interpreter and as machine code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tilewright as tw
from tilewright.ir.errors import CompileError

random = np.random.default_rng(41)
BACKENDS = ("reference", "llvm")
TRAINING, TREES = "ai.onnx.preview.training", "ai.onnx.ml"


def model_of(op: str, inputs: list[Any], outputs: int, domain: str = "", open_axes: bool = False, **attributes: Any) -> bytes:
    names = [f"x{i}" for i in range(len(inputs))]
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype),
                                            [f"n{n}" if open_axes and axis == 0 else n for axis, n in enumerate(x.shape)])
              for name, x in zip(names, inputs)]
    results = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph([helper.make_node(op, names, results, domain=domain, **attributes)], "one", values,
                              [onnx.ValueInfoProto(name=name) for name in results])
    imports = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 5 if domain == TREES else 1)] if domain else [])
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def run(data: bytes, inputs: list[Any], backend: str, monkeypatch: pytest.MonkeyPatch, **dims: Any) -> list[np.ndarray]:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    made = tw.compile(tw.from_onnx(data, dims=dims), options=tw.Options(cache=False, threads=1))(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


# --- trees -----------------------------------------------------------------------------------------------------------

TESTS: tuple[Callable[[Any, Any], Any], ...] = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)


class Forest:
    """Random trees as attributes, and what they mean."""

    def __init__(self, trees: int, depth: int, features: int, targets: int, dtype: type, members: bool, missing: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self.leaves: list[tuple[int, float]] = []
        self.sets: dict[int, list[float]] = {}
        self.features, self.targets, self.dtype, self.missing = features, targets, dtype, missing
        self.kinds = 7 if members else 6
        self.roots = [self.grow(depth) for _ in range(trees)]

    def grow(self, depth: int) -> int:
        place = len(self.rows)
        mode = int(random.integers(self.kinds))
        row = {"feature": int(random.integers(self.features)), "mode": mode, "split": float(random.integers(-3, 4)),
               "missing": int(random.integers(2)) if self.missing else 0}
        self.rows.append(row)
        if mode == 6:
            self.sets[place] = [float(n) for n in random.integers(-3, 4, random.integers(0, 4))]
        for side in ("true", "false"):
            row[f"{side}leaf"] = depth == 1 or random.random() < 0.3
            row[side] = self.leaf() if row[f"{side}leaf"] else self.grow(depth - 1)
        return place

    def leaf(self) -> int:
        self.leaves.append((int(random.integers(self.targets)), float(random.integers(-8, 9)) / 4))
        return len(self.leaves) - 1

    def attributes(self) -> dict[str, Any]:
        column = {key: [row[key] for row in self.rows] for key in self.rows[0]}
        found = {"tree_roots": self.roots, "n_targets": self.targets, "nodes_featureids": column["feature"],
                 "nodes_modes": numpy_helper.from_array(np.array(column["mode"], np.uint8)),
                 "nodes_splits": numpy_helper.from_array(np.array(column["split"], self.dtype)),
                 "nodes_truenodeids": column["true"], "nodes_falsenodeids": column["false"],
                 "nodes_trueleafs": list(map(int, column["trueleaf"])), "nodes_falseleafs": list(map(int, column["falseleaf"])),
                 "leaf_targetids": [target for target, _ in self.leaves],
                 "leaf_weights": numpy_helper.from_array(np.array([weight for _, weight in self.leaves], self.dtype))}
        if self.missing:
            found["nodes_missing_value_tracks_true"] = column["missing"]
        if self.sets:
            listed = [n for place in sorted(self.sets) for n in (*self.sets[place], np.nan)]
            found["membership_values"] = numpy_helper.from_array(np.array(listed, self.dtype))
        return found

    def weights(self, row: Any) -> list[tuple[int, float]]:
        """The leaf of each tree."""
        found = []
        for root in self.roots:
            place, is_leaf = root, False
            while not is_leaf:
                node = self.rows[place]
                value = row[node["feature"]]
                holds = value in self.sets[place] if node["mode"] == 6 else TESTS[node["mode"]](value, node["split"])
                side = "true" if holds or node["missing"] and np.isnan(value) else "false"
                place, is_leaf = node[side], node[f"{side}leaf"]
            found.append(self.leaves[place])
        return found

    def expected(self, x: Any, how: int) -> np.ndarray:
        combine = (np.add, np.add, np.minimum, np.maximum)[how]
        limits = np.finfo(self.dtype)
        result = np.full((len(x), self.targets), (0, 0, limits.max, limits.min)[how], self.dtype)
        for place, row in enumerate(x):
            for target, weight in self.weights(row):
                result[place, target] = combine(result[place, target], weight / len(self.roots) if how == 0 else weight)
        return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("trees", "depth", "features", "targets", "dtype", "members", "missing", "how"), [
    (5, 4, 3, 2, np.float32, False, False, 1), (1, 1, 1, 1, np.float64, False, False, 0), (7, 3, 2, 3, np.float32, True, True, 2),
    (9, 5, 4, 1, np.float64, True, False, 3), (4, 2, 3, 5, np.float16, False, True, 1), (3, 6, 2, 2, np.float32, True, True, 0),
])
def test_trees(trees: int, depth: int, features: int, targets: int, dtype: type, members: bool, missing: bool, how: int, backend: str,
               monkeypatch: pytest.MonkeyPatch) -> None:
    forest = Forest(trees, depth, features, targets, dtype, members, missing)
    x = random.integers(-4, 5, (17, features)).astype(dtype)
    x[random.random(x.shape) < 0.2] = np.nan
    x[0], x[1] = np.inf, -np.inf
    data = model_of("TreeEnsemble", [x], 1, TREES, open_axes=True, aggregate_function=how, **forest.attributes())
    for rows in (17, 1, 0):
        (y,) = run(data, [x[:rows]], backend, monkeypatch, n17=tw.symbol("rows"))
        assert y.dtype == dtype
        np.testing.assert_allclose(y, forest.expected(x[:rows], how), rtol=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tree_of_one_leaf_and_what_becomes_of_scores(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = {"nodes_modes": numpy_helper.from_array(np.zeros(2, np.uint8)), "nodes_splits": numpy_helper.from_array(np.zeros(2, np.float32)),
            "nodes_featureids": [0, 0], "nodes_truenodeids": [0, 1], "nodes_falsenodeids": [0, 1], "nodes_trueleafs": [1, 1],
            "nodes_falseleafs": [1, 1], "leaf_targetids": [0, 1], "leaf_weights": numpy_helper.from_array(np.array([1, -2], np.float32)),
            "tree_roots": [0, 1], "n_targets": 2}
    x, scores = np.zeros((3, 1), np.float32), np.array([1.0, -2.0])
    for how, expected in ((0, scores), (1, np.exp(scores) / np.exp(scores).sum()), (2, 1 / (1 + np.exp(-scores)))):
        (y,) = run(model_of("TreeEnsemble", [x], 1, TREES, post_transform=how, **leaf), [x], backend, monkeypatch)
        np.testing.assert_allclose(y, np.broadcast_to(expected, (3, 2)), rtol=1e-6)
    with pytest.raises(tw.UnsupportedError, match="post_transform 4"):
        tw.from_onnx(model_of("TreeEnsemble", [x], 1, TREES, post_transform=4, **leaf))


@pytest.mark.parametrize(("change", "message"), [
    ({"nodes_truenodeids": [9]}, "leads to one outside"), ({"nodes_truenodeids": [0], "nodes_trueleafs": [0]}, "leads back to itself"),
    ({"tree_roots": [1]}, "outside of the 1 nodes"), ({"leaf_targetids": [0, 3]}, "outside of 0..1"), ({"nodes_featureids": [2]}, "do not fit"),
    ({"nodes_falseleafs": [1, 1]}, "different lengths"), ({"nodes_modes": numpy_helper.from_array(np.array([6], np.uint8))}, "0 sets are listed"),
    ({"nodes_modes": numpy_helper.from_array(np.array([7], np.uint8))}, "the modes of nodes"), ({"aggregate_function": 4}, "must be 0 to 3"),
])
def test_damaged_trees(change: dict[str, Any], message: str) -> None:
    one = {"nodes_modes": numpy_helper.from_array(np.zeros(1, np.uint8)), "nodes_splits": numpy_helper.from_array(np.zeros(1, np.float32)),
           "nodes_featureids": [0], "nodes_truenodeids": [0], "nodes_falsenodeids": [1], "nodes_trueleafs": [1], "nodes_falseleafs": [1],
           "leaf_targetids": [0, 1], "leaf_weights": numpy_helper.from_array(np.ones(2, np.float32)), "tree_roots": [0], "n_targets": 2}
    with pytest.raises(CompileError, match=message):
        tw.from_onnx(model_of("TreeEnsemble", [np.zeros((3, 2), np.float32)], 1, TREES, **{**one, **change}))


# --- n-grams ---------------------------------------------------------------------------------------------------------

POOL = {"pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7, 1, 1, 1, 5, 6, 7], "ngram_counts": [0, 4, 10], "ngram_indexes": [0, 1, 2, 3, 4, 5, 6, 7, 8]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "least", "most", "skips", "mode"), [
    ((2, 9), 1, 3, 2, "TF"), ((13,), 2, 3, 0, "TFIDF"), ((3, 1), 1, 2, 4, "IDF"), ((1, 30), 3, 3, 5, "IDF"), ((4, 2), 2, 2, 1, "TF"),
    ((5, 7), 1, 1, 3, "TFIDF"),
])
def test_n_grams(shape: tuple[int, ...], least: int, most: int, skips: int, mode: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random.integers(1, 9, shape).astype(np.int64 if len(shape) > 1 else np.int32)
    weights = [0.5, 2.0, 1.0, -1.0, 3.0, 0.25, 4.0, 1.5, 0.125]
    data = model_of("TfIdfVectorizer", [x], 1, open_axes=True, min_gram_length=least, max_gram_length=most, max_skip_count=skips, mode=mode,
                    weights=weights, **POOL)
    expected = ReferenceEvaluator(onnx.ModelProto.FromString(data)).run(None, {"x0": x})[0]
    (y,) = run(data, [x], backend, monkeypatch)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected)


def test_n_grams_that_share_a_place_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([[1, 2, 1, 3]], np.int64)
    data = model_of("TfIdfVectorizer", [x], 1, min_gram_length=1, max_gram_length=1, max_skip_count=0, mode="TF", pool_int64s=[1, 2, 9],
                    ngram_counts=[0], ngram_indexes=[2, 2, 0])
    assert run(data, [x], "reference", monkeypatch)[0].tolist() == [[0, 0, 3]]


@pytest.mark.parametrize(("change", "message"), [
    ({"ngram_counts": [0, 3, 10]}, "does not divide a pool"), ({"ngram_counts": [0, 99]}, "does not divide a pool"),
    ({"ngram_indexes": [0]}, "9 n-grams"), ({"ngram_indexes": [-1, 1, 2, 3, 4, 5, 6, 7, 8]}, "places that are not negative"),
    ({"max_skip_count": -1}, "make no sense"), ({"min_gram_length": 3}, "make no sense"), ({"mode": "X"}, "mode 'X'"),
    ({"weights": [1.0], "mode": "IDF"}, "1 weights for 9 outputs"), ({"pool_int64s": [2, 2, 5, 4, *POOL["pool_int64s"][4:]]}, "twice"),
    ({"pool_int64s": None, "pool_strings": ["a"]}, "'pool_strings' is not supported"),
])
def test_damaged_pools(change: dict[str, Any], message: str) -> None:
    plain = {"min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0, "mode": "TF", **POOL}
    attributes = {key: value for key, value in {**plain, **change}.items() if value is not None}
    with pytest.raises(CompileError, match=message):
        tw.from_onnx(model_of("TfIdfVectorizer", [np.zeros((2, 3), np.int64)], 1, **attributes))


# --- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize(("op", "lists", "attributes"), [
    ("Adagrad", 3, {"decay_factor": 0.1, "epsilon": 1e-5, "norm_coefficient": 0.01}), ("Adagrad", 3, {}),
    ("Adam", 4, {"alpha": 0.8, "beta": 0.9, "norm_coefficient": 0.01, "norm_coefficient_post": 0.1}),
    ("Momentum", 3, {"alpha": 0.9, "beta": 0.5, "mode": "standard", "norm_coefficient": 0.01}),
    ("Momentum", 3, {"alpha": 0.9, "beta": 0.5, "mode": "nesterov", "norm_coefficient": 0.0}),
])
def test_optimizers(op: str, lists: int, attributes: dict[str, Any], steps: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(3, 5), (1,), (0, 2)]
    inputs = [np.array(0.1, np.float32), np.array(steps, np.int64)]
    inputs += [random.uniform(0.1 if number > 1 else -2, 2, shape).astype(np.float32) for number in range(lists) for shape in shapes]
    outputs = (lists - 1) * len(shapes)
    defaults = {"Adagrad": {"decay_factor": 0.0, "epsilon": 1e-6, "norm_coefficient": 0.0},
                "Adam": {"epsilon": 1e-6}, "Momentum": {}}[op]
    data = model_of(op, inputs, outputs, TRAINING, **attributes)
    peer = onnx.ModelProto.FromString(model_of(op, inputs, outputs, TRAINING, **{**defaults, **attributes}))
    expected = ReferenceEvaluator(peer).run(None, {f"x{i}": x for i, x in enumerate(inputs)})
    for mine, theirs in zip(run(data, inputs, backend, monkeypatch), expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_lists_of_different_lengths_are_told() -> None:
    inputs = [np.array(0.1, np.float32), np.array(1, np.int64), *[np.zeros(3, np.float32)] * 4]
    with pytest.raises(CompileError, match="3 lists of equal length"):
        tw.from_onnx(model_of("Adagrad", inputs, 2, TRAINING))
    inputs = [*inputs[:4], np.zeros((3, 1), np.float32)]
    with pytest.raises(CompileError, match="its gradient or state"):
        tw.from_onnx(model_of("Adagrad", inputs, 2, TRAINING))
