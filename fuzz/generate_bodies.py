"""Control flow with bodies made at random: branches, loops and scans of several states, with captures.

What passes and lowering get wrong in control flow is which operand is which: a state taken for a capture, captures that move up
when one of them dies, a next state written where the old one is still read, what looks as if it stayed the same in all rounds and
does not. So bodies read some of their operands and leave others, states change places or stay, a part of what is computed
depends on captures alone, and the counter of a loop is any of its states.

Guarantees: all values are of the type of the first operand but counters and conditions; loops end after at most `ROUNDS`
rounds; no number is more than `GROWTH` times the largest of the operands, or of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .. import library
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Elementwise
from ..ir.ops.control import If, Param, Scan, While
from ..ir.types import ARRAY_DTYPES, BOOL, F32, I64, TensorType
from .rebuild import adapted, chosen

EXTENTS = (1, 2, 3, 5, 8, 17)
ROUNDS = 4
GROWTH = 4.0 ** (ROUNDS + 1)
Body = Callable[[Builder, Sequence[Node]], Sequence[Node]]


def controlled(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A value of the type of x from a branch, a loop or a scan of x and other values of `pool`, brought to its type."""
    kinds = [branched, looped, scanned] if x.rank else [branched, looped]
    return chosen(rng, kinds)(b, rng, x, pool)


def control_graph(rng: np.random.Generator) -> Graph:
    """Values of few types that go through one to three branches, loops and scans."""
    b = Builder()
    dtype = F32 if rng.random() < 0.4 else chosen(rng, ARRAY_DTYPES)
    shape = tuple(int(n) for n in rng.choice(EXTENTS, size=int(rng.integers(0, 3))))
    types = [TensorType(dtype, shape), TensorType(dtype, shape), TensorType(dtype, shape[1:]), TensorType(BOOL, ())]
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    pool = list(params)
    for _ in range(int(rng.integers(1, 4))):
        x = pool[-1] if pool[-1].shape == shape and rng.random() < 0.6 else chosen(rng, params[:3])
        pool.append(controlled(b, rng, x, pool))
    return Graph("control", params, list(dict.fromkeys(pool[len(params):])))


def branched(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A choice between two bodies of some captures, of which each reads what it likes."""
    captures = _others(b, rng, x, pool, int(rng.integers(1, 4)))
    condition = adapted(b, chosen(rng, [v for v in pool if v.dtype.is_bool] or list(pool)), TensorType(BOOL, ()))
    count = int(rng.integers(1, 3))

    def side(inner: Builder, params: Sequence[Node]) -> Sequence[Node]:
        read = _some(rng, params)
        return [expression(inner, rng, read) for _ in range(count)]

    types = [c.tensor for c in captures]
    sides = [made_body(name, types, side) for name in ("then", "otherwise")]
    return _joined(b, rng, library.results_of(b, b.add(If(*sides), condition, *captures)))


def looped(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A loop of one to three states beside its counter, which may be any of them."""
    states = _others(b, rng, x, pool, int(rng.integers(1, 4)))
    captures = _others(b, rng, x, pool, int(rng.integers(0, 3)), first=False)
    place = int(rng.integers(len(states) + 1))
    operands = [*states[:place], library.constant(b, 0, I64), *states[place:], *captures]
    rounds = int(rng.integers(0, ROUNDS + 1, 2).max())  # what differs from round to round shows from two on
    count = len(states) + 1

    def condition(inner: Builder, params: Sequence[Node]) -> Sequence[Node]:
        going = library.apply(inner, "lt", params[place], library.constant(inner, rounds, I64))
        if rng.random() < 0.3:  # what data decides
            other = adapted(inner, chosen(rng, [p for i, p in enumerate(params) if i != place]), TensorType(I64, ()))
            small = library.apply(inner, "lt", other, library.constant(inner, int(rng.integers(-4, 40)), I64))
            going = library.scalar(inner, "and", going, small)
        return [going]

    def step(inner: Builder, params: Sequence[Node]) -> Sequence[Node]:
        values = [p for i, p in enumerate(params) if i != place]
        made = next_states(inner, rng, values[:len(states)], values[len(states):])
        return [*made[:place], library.apply(inner, "add", params[place], library.constant(inner, 1, I64)), *made[place:]]

    types = [o.tensor for o in operands]
    node = b.add(While(made_body("condition", types, condition), made_body("step", types, step), count), *operands)
    results = library.results_of(b, node)
    return _joined(b, rng, [r for i, r in enumerate(results) if i != place])


def scanned(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A scan along the first axis of x: its states at the end, or what it gave at each step."""
    row = TensorType(x.dtype, x.shape[1:])
    arrays = _others(b, rng, x, pool, int(rng.integers(1, 3)))
    states = [adapted(b, chosen(rng, list(pool)), row) if rng.random() < 0.5 else library.full(b, 0, x.dtype, row.shape)
              for _ in range(int(rng.integers(1, 3)))]
    captures = [adapted(b, chosen(rng, list(pool)), row) for _ in range(int(rng.integers(0, 3)))]
    count = int(rng.integers(1, 3))

    def step(inner: Builder, params: Sequence[Node]) -> Sequence[Node]:
        following = next_states(inner, rng, params[:len(states)], params[len(states):], grows=False)  # the scan may be long
        if rng.random() < 0.6:  # a running value, which says in which order the steps ran
            following[0] = combined(inner, rng, params[0], params[len(states)], grows=False)
        read = [*_some(rng, params), *following]
        return [*following, *(following[0] if rng.random() < 0.4 else expression(inner, rng, read) for _ in range(count))]

    operands = [*states, *arrays, *captures]
    types = [row] * (len(states) + len(arrays) + len(captures))
    node = b.add(Scan(made_body("step", types, step), len(states), len(arrays), x.shape[0], bool(rng.integers(2))), *operands)
    results = library.results_of(b, node)
    last, stacked = results[:len(states)], results[len(states):]
    return _joined(b, rng, stacked if rng.random() < 0.7 else [adapted(b, s, x.tensor) for s in last])


# --- bodies --------------------------------------------------------------------------------------------------------------


def made_body(name: str, types: Sequence[TensorType], make: Body) -> Graph:
    """A graph of params of these types."""
    b = Builder()
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    return Graph(name, params, make(b, params))


def next_states(b: Builder, rng: np.random.Generator, states: Sequence[Node], others: Sequence[Node], grows: bool = True) -> list[Node]:
    """The states of the next round: as they are, in each other's place, or computed from each other and from what stays."""
    made = []
    for state in states:
        draw = rng.random()
        if draw < 0.15:
            made.append(state)
        elif draw < 0.4:
            made.append(chosen(rng, states))
        else:
            read = [*states, *others]
            if rng.random() < 0.4:
                # the same in all rounds, or not, as that one is; the last state and the first of the others are neighbours
                read = [chosen(rng, [states[-1], *others[:1]] if rng.random() < 0.5 else read)]
            made.append(combined(b, rng, chosen(rng, states), expression(b, rng, read, 1, grows), grows))
    return made


def expression(b: Builder, rng: np.random.Generator, values: Sequence[Node], depth: int = 2, grows: bool = True) -> Node:
    """A value from some of these, all of one type, by up to `depth` functions one after the other."""
    if depth == 0 or rng.random() < 0.2:
        return chosen(rng, values)
    x = expression(b, rng, values, depth - 1, grows)
    if rng.random() < (0.4 if len(values) > 1 else 0.8):  # what one value and itself give is mostly nothing new
        return changed(b, rng, x)
    return combined(b, rng, x, expression(b, rng, values, depth - 1, grows), grows)


def changed(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    return b.add(Elementwise("not" if x.dtype.is_bool else "neg" if x.dtype.kind == "u" else chosen(rng, ("neg", "abs", "sign"))), x)


def combined(b: Builder, rng: np.random.Generator, x: Node, y: Node, grows: bool = True) -> Node:
    """A function of two values. `grows`: its result may be larger than both."""
    if x.dtype.is_bool:
        return library.scalar(b, chosen(rng, ("and", "or", "xor")), x, y)
    return library.scalar(b, chosen(rng, ("sub", "add", "max", "min") if grows else ("max", "min")), x, y)


def _others(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node], count: int, first: bool = True) -> list[Node]:
    """So many values of the type of x, itself among them where it is wanted, in any order."""
    made = [x] if first and count else []
    made += [adapted(b, chosen(rng, list(pool)), x.tensor) for _ in range(count - len(made))]
    return [made[int(i)] for i in rng.permutation(len(made))]


def _some(rng: np.random.Generator, values: Sequence[Node]) -> list[Node]:
    """Some of the values, at least one: the rest is read by nobody."""
    return [v for v in values if rng.random() < 0.7] or [chosen(rng, values)]


def _joined(b: Builder, rng: np.random.Generator, results: Sequence[Node]) -> Node:
    """One value in which all results, or one of them, can be seen."""
    made = chosen(rng, results)
    for other in results:
        if other is not made and rng.random() < 0.7:
            made = library.scalar(b, "xor" if made.dtype.is_bool else "sub", made, other)
    return made
