"""Each diagnostic of the NumPy front end: the kind of error, the user's line, what was wrong, the form that works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright.frontends.from_numpy as tw
from tilewright.ir.dims import symbol
from tilewright.ir.errors import ArgumentError, CompileError

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)
X = tw.spec(("n", 3), "float32")
IDS = tw.spec((5,), "int64")
STATIC = tw.spec((4, 3), "float32")


def _assign_row(x: Any) -> Any:
    out = np.zeros((4, 3))
    out[0] = x[0]
    return out


def _assign_scalar(x: Any) -> Any:
    out = np.zeros(4)
    out[1] = x.sum()
    return out


def _add_in_place(x: Any) -> Any:
    total = np.zeros(3, np.float32)
    total += x[0]
    return total


def _branch(x: Any) -> Any:
    if x.sum() > 0:
        return x
    return -x


def _loop(x: Any) -> Any:
    while np.abs(x).max() > 1:
        x = x / 2
    return x


def _iterate(x: Any) -> Any:
    return [row * 2 for row in x]


def _write_input(x: Any) -> Any:
    x[0] = 1
    return x


def _scale_input(x: Any) -> Any:
    x *= 2
    return x


def _write_view_of_input(x: Any) -> Any:
    x.T[0] = 1
    return x


def _masked_values(x: Any) -> Any:
    y = x.copy()
    y[y > 0] = np.arange(7)
    return y


def _write_broadcast(x: Any) -> Any:
    y = np.broadcast_to(x[0], (2, 3))
    y[0] = 1
    return y


def _write_diagonal(x: Any) -> Any:
    d = np.diagonal(x.copy())
    d[0] = 1
    return d


def _narrow(x: Any) -> Any:
    y = np.zeros_like(x, dtype=np.int32)
    y += x
    return y


def _compare_sizes(x: Any) -> Any:
    return x if x.shape[0] > 10 else x + 1


def _write_scalar(x: Any) -> Any:
    s = x.sum()
    s[...] = 3
    return s


# name -> function, specs, the Python type the error has too, texts of its message
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], type, tuple[str, ...]]] = {
    # what NumPy does not dispatch
    "zeros of a dynamic shape": (lambda x: np.zeros(x.shape) + x, (X,), Exception, ("the size n is not known", "np.zeros_like(x)")),
    "range of a size": (lambda x: [x[i] for i in range(x.shape[0])], (X,), Exception, ("the size n", "tw.scan")),
    "arange of a size": (lambda x: np.arange(x.shape[0]), (X,), Exception, ("the size n", "np.arange(n, like=x)")),
    "math on a size": (lambda x: x / math.sqrt(x.shape[0]), (X,), Exception, ("no Python float", "np.sqrt(n)")),
    "table by traced": (lambda i: TABLE[i], (IDS,), TypeError, ("TABLE is a concrete array and i is traced", "np.take(TABLE, i, axis=0)")),
    "table by traced part": (lambda i: TABLE[i[0], 1], (IDS,), TypeError, ("np.take(TABLE,",)),
    "list by traced": (lambda i: [1, 2, 3][i[0]], (IDS,), TypeError, ("used as a Python integer", "np.take(")),
    "row into concrete": (_assign_row, (X,), TypeError, ("out is a concrete array", "np.zeros_like(x)")),
    "scalar into concrete": (_assign_scalar, (X,), TypeError, ("out is a concrete array", "np.zeros_like(x)")),
    "add into concrete": (_add_in_place, (X,), TypeError, ("concrete array", "c = c + x")),
    "out= concrete": (lambda x: np.exp(x, out=np.zeros((4, 3), np.float32)), (STATIC,), TypeError, ("concrete array",)),
    "asarray": (lambda x: np.asarray(x) + 1, (X,), TypeError, ("x is an array already", "x.copy()")),
    "array of traced": (lambda x: np.array([x[0, 0], x[0, 1]]), (X,), TypeError, ("np.stack([x[0, 0], x[0, 1]])",)),
    "float()": (lambda x: float(x.sum()), (X,), TypeError, ("float() of a traced value",)),
    "int()": (lambda x: int(x[0, 0]), (X,), TypeError, ("int() of a traced value",)),
    "item": (lambda x: x.sum().item(), (X,), AttributeError, ("ndarray.item", "0-d array")),
    "tolist": (lambda x: x.tolist(), (X,), AttributeError, ("ndarray.tolist",)),
    "flat": (lambda x: x.flat[0], (X,), AttributeError, ("x.ravel()",)),
    "math on an array": (lambda x: math.exp(x[0, 0]), (X,), TypeError, ("traced value",)),
    # control flow
    "if": (_branch, (X,), TypeError, ("Python control flow", "tw.cond", "np.where")),
    "while": (_loop, (X,), TypeError, ("tw.while_loop",)),
    "and": (lambda x: x[0, 0] > 0 and x[0, 1], (X,), TypeError, ("& and |",)),
    "truth of an array": (lambda x: x if x > 0 else -x, (X,), ValueError, ("ambiguous",)),
    "iteration over a size": (_iterate, (X,), TypeError, ("iteration over an axis of size n", "tw.scan")),
    "len of a size": (lambda x: len(x), (X,), Exception, ("the size n",)),
    "iteration over a scalar": (lambda x: list(x.sum()), (X,), TypeError, ("0-d",)),
    "comparison of sizes": (_compare_sizes, (X,), Exception, ("n <= 10", "tw.symbol")),
    # writing
    "writing an input": (_write_input, (X,), ValueError, ("input x is written", "x = x.copy()")),
    "scaling an input": (_scale_input, (X,), ValueError, ("input x is written", "x = x.copy()")),
    "writing a view of an input": (_write_view_of_input, (X,), ValueError, ("input x is written",)),
    "writing a broadcast": (_write_broadcast, (X,), ValueError, ("read-only", "x.copy()")),
    "writing a diagonal": (_write_diagonal, (STATIC,), ValueError, ("read-only",)),
    "writing a scalar": (_write_scalar, (X,), TypeError, ("does not support item assignment",)),
    "float into int": (_narrow, (STATIC,), TypeError, ("Cannot cast", "int32", "astype")),
    "values through a traced mask": (_masked_values, (STATIC,), Exception, ("one v for all places", "np.where(mask, v, x)")),
    # sizes that data decides
    "returned mask": (lambda x: x[x > 0], (X,), TypeError, ("number of results that data decides", "np.where(mask, x, other)")),
    "length of a mask": (lambda x: len(x[x > 0]), (X,), TypeError, ("the length of a selection", "np.where(mask, x, other)")),
    "size of a mask": (lambda x: x[x > 0].size, (X,), TypeError, ("number of results that data decides",)),
    "sort of a mask": (lambda x: np.sort(x[x > 0]), (X,), TypeError, ("np.sort of a selection", "np.where(mask, x, other)")),
    "two masks": (lambda x: x[x > 0] + x[x < 0], (X,), TypeError, ("selections of two masks",)),
    "scalar type": (lambda x: np.float64(x[0, 0]), (X,), TypeError, ("x[0, 0].astype(np.float64)",)),
    "nonzero": (lambda x: np.nonzero(x), (X,), TypeError, ("np.nonzero", "np.where(condition, a, b)")),
    "method nonzero": (lambda x: x.nonzero(), (X,), TypeError, ("np.nonzero",)),
    "where of one argument": (lambda x: np.where(x > 0), (X,), TypeError, ("np.where(condition, a, b)",)),
    "unique": (lambda x: np.unique(x), (X,), TypeError, ("np.unique", "np.sort(x)")),
    "histogram": (lambda x: np.histogram(x), (X,), TypeError, ("np.histogram", "np.searchsorted")),
    "bincount": (lambda i: np.bincount(i), (IDS,), TypeError, ("np.add.at",)),
    "repeat by traced": (lambda i: np.repeat(i, i), (IDS,), TypeError, ("repeat with traced counts",)),
    "traced slice": (lambda x, i: x[i[0] : i[0] + 2], (X, IDS), TypeError, ("a slice with a traced start", "np.take(x, i + np.arange(n)")),
    # unknown things
    "unknown function": (lambda x: np.linalg.svd(x), (STATIC,), TypeError, ("numpy.linalg.svd is not supported",)),
    "fft": (lambda x: np.fft.fft(x), (STATIC,), TypeError, ("fft is not supported",)),
    "unknown ufunc method": (lambda x: np.add.reduceat(x, [0, 1]), (STATIC,), TypeError, ("np.add.reduceat",)),
    "complex": (lambda x: x * 1j, (X,), TypeError, ("complex is not supported", "float16, bfloat16")),
    "complex cast": (lambda x: x.astype(np.complex64), (X,), Exception, ("complex64 is not supported",)),
    "no attribute": (lambda x: x.nothing, (X,), AttributeError, ("nothing",)),
    # rules of NumPy
    "matmul sizes": (lambda x: x @ TABLE, (X,), ValueError, ("inner sizes differ: (n, 3) @ (4, 3): 3 (left) vs 4 (right)",)),
    "matmul of a scalar": (lambda x: x @ x.sum(), (X,), ValueError, ("does not have enough dimensions",)),
    "broadcast": (
        lambda x: x + np.zeros(4),
        (X,),
        ValueError,
        ("operands could not be broadcast together with shapes (n, 3) (4,)", "3 vs 4"),
    ),
    "two names": (lambda x, y: x + y, (X, tw.spec(("m", 3), "float32")), ValueError, ("n vs m", "one name")),
    "concatenate": (lambda x: np.concatenate([x, x[:, :2]]), (X,), ValueError, ("must match exactly", "size 3", "size 2")),
    "stack": (lambda x: np.stack([x, x.T]), (STATIC,), ValueError, ("must have the same shape",)),
    "reshape": (lambda x: x.reshape(5, 2), (STATIC,), ValueError, ("cannot reshape array of size 12 into shape (5, 2)",)),
    "reshape of a size": (lambda x: x.reshape(-1, 2), (X,), Exception, ("not known at compile time", "multiple_of")),
    "axis": (lambda x: x.sum(axis=2), (X,), ValueError, ("axis 2 is out of bounds",)),
    "index": (lambda x: x[:, 3], (X,), IndexError, ("index 3 is out of bounds for axis 1 with size 3",)),
    "index array": (lambda x: x[:, np.array([0, 5])], (X,), IndexError, ("index 5 is out of bounds",)),
    "too many indices": (lambda x: x[0, 0, 0], (X,), IndexError, ("too many indices", "2-dimensional, but 3")),
    "float index": (lambda x: x[1.5], (X,), IndexError, ("only integers",)),
    "float index array": (lambda x, i: x[i / 2], (X, IDS), IndexError, ("only integers", "astype(np.int64)")),
    "mask of another size": (lambda x: x[:, np.array([True, False])], (X,), IndexError, ("boolean index did not match", "axis 1")),
    "index shapes": (lambda x: x[np.array([0, 1]), np.array([0, 1, 2])], (STATIC,), IndexError, ("shape mismatch",)),
    "overflow": (lambda x: x.astype(np.int8) + 300, (X,), OverflowError, ("300 out of bounds for int8",)),
    "negative into unsigned": (lambda x: x.astype(np.uint8) * -1, (X,), OverflowError, ("-1 out of bounds for uint8",)),
    "bool minus": (lambda x: (x > 0) - (x < 0), (X,), TypeError, ("numpy boolean subtract",)),
    "shift of a float": (lambda x: x << 1, (X,), TypeError, ("left_shift",)),
    "einsum": (lambda x: np.einsum("ij,jk->ik", x, x), (STATIC,), ValueError, ("einsum", "'j'")),
    "einsum subscripts": (lambda x: np.einsum("ijk", x), (STATIC,), ValueError, ("'ijk' do not fit an operand of 2",)),
    "empty maximum": (lambda x: x[:0].max(), (STATIC,), ValueError, ("has no identity",)),
    "slice step": (lambda x: x[::0], (STATIC,), ValueError, ("step cannot be zero",)),
    "value shape": (lambda x: np.copyto(np.zeros_like(x), x[:2]), (STATIC,), ValueError, ("could not broadcast input array",)),
    "split": (lambda x: np.split(x, 3), (STATIC,), ValueError, ("equal division",)),
    "pad mode": (lambda x: np.pad(x, 1, mode="mean"), (STATIC,), ValueError, ("mode 'mean'", "reflect")),
    "quantile range": (lambda x: np.quantile(x, 2), (STATIC,), ValueError, ("range [0, 1]",)),
    "returned text": (lambda x: "text", (X,), TypeError, ("returns a str", "tuples, lists and dicts")),
    "returned function": (lambda x: {"y": print}, (X,), TypeError, ("at y",)),
}


@pytest.mark.parametrize("name", CASES)
def test_diagnostic(name: str) -> None:
    function, specs, kind, texts = CASES[name]
    with pytest.raises(CompileError) as caught:
        tw.trace(function, specs)
    message = str(caught.value)
    assert isinstance(caught.value, kind)
    for text in texts:
        assert text in message
    assert "test_from_numpy_errors.py:" in message
    assert caught.value.__cause__ is None


def test_the_expression_is_marked() -> None:
    def model(q: Any, k: Any) -> Any:
        return np.exp(q @ k.T) + 1

    with pytest.raises(CompileError) as caught:
        tw.trace(model, (tw.spec((8, 64), "float32"), tw.spec((8, 32), "float32")))
    lines = str(caught.value).splitlines()
    assert "in model:   return np.exp(q @ k.T) + 1" in lines[1]
    assert lines[2].strip() == "^^^^^^^" and lines[1][lines[2].index("^") :].startswith("q @ k.T")


def test_an_error_of_the_user_comes_through() -> None:
    class Mine(Exception):
        pass

    def function(x: Any) -> Any:
        raise Mine("here")

    with pytest.raises(Mine, match="here"):
        tw.trace(function, (X,))
    with pytest.raises(Mine, match="here"):
        tw.trace_call(function, (np.zeros(3),))


def test_users_may_catch_what_numpy_raises() -> None:
    def function(x: Any) -> Any:
        try:
            return x.reshape(5, 2)
        except ValueError:
            return x + 1

    assert str(tw.trace(function, (STATIC,)).results[0].type) == "f32[4, 3]"


def test_values_do_not_outlive_their_trace() -> None:
    kept: list[Any] = []
    tw.trace(lambda x: kept.append(x) or x, (X,))
    with pytest.raises(CompileError, match="another compilation"):
        tw.trace(lambda x: x + kept[0], (X,))


def test_constant_arguments_are_read_only() -> None:
    weights = np.ones(3, np.float32)

    def function(x: Any, w: Any) -> Any:
        w += 1
        return x * w

    with pytest.raises(ValueError, match="read-only"):
        tw.trace(function, (X, weights))
    assert weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tw.spec((3, "a b"), "float32"), "no name for a size"),
        (lambda: tw.spec((3, -1), "float32"), "negative"),
        (lambda: tw.spec((3, 1.5), "float32"), "neither a number, a name nor a Dim"),
        (lambda: tw.spec((3,), "float31"), "float31"),
        (lambda: tw.spec((3,), "complex64"), "not supported"),
        (lambda: tw.spec((3,), "float32", "my input"), "no name for an input"),
        (lambda: tw.trace(lambda x, y: x, (X,)), "missing a required argument: 'y'"),
        (lambda: tw.trace(lambda x: x, X), "args must be a tuple"),
        (lambda: tw.trace(lambda x, y: x, (tw.spec((symbol("n", 1),), "f32"), tw.spec((symbol("n", 2),), "f32"))), "declared twice"),
        (lambda: tw.trace_call(lambda x: x, (np.zeros(3, np.complex64),)), "complex64 is not supported"),
        (lambda: tw.trace_call(lambda x: x, (np.array(["a"]),)), "not supported"),
    ],
)  # fmt: skip
def test_wrong_arguments(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make()
    assert text in str(caught.value)


def test_errors_of_calls_without_specs_come_through() -> None:
    with pytest.raises(ValueError, match="inner sizes differ"):
        tw.trace_call(lambda x, y: x @ y, (np.zeros((2, 3)), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="could not be broadcast"):
        tw.trace_call(lambda x, y: x + y, (np.zeros((2, 3)), np.zeros((2, 4))))
