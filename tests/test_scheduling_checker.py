"""The checker of schedules: what it accepts and counts, and every way to be wrong."""

from __future__ import annotations

import pytest

from tilewright.ir.errors import CompileError
from tilewright.scheduling.checker import WrongSchedule, check
from tilewright.scheduling.problem import (
    INPUT,
    PARAMETER,
    Fetch,
    Free,
    Operator,
    Problem,
    Run,
    Schedule,
    Spill,
    Tensor,
    fused,
    make_problem,
    with_parameters,
)

X, A, B, Y = range(4)


def chain() -> Problem:
    """x -> a -> b, and y = a + b."""
    tensors = [Tensor("x", 4, INPUT), Tensor("a", 4), Tensor("b", 8), Tensor("y", 4)]
    operators = [Operator("f", (X,), (A,)), Operator("g", (A,), (B,)), Operator("h", (A, B), (Y,))]
    return make_problem("chain", tensors, operators, [Y])


RIGHT = (Fetch(X, 0), Run(0, (4,)), Free(X), Run(1, (8,)), Run(2, (0,)), Spill(Y), Free(A), Free(B), Free(Y))


def test_a_right_schedule_is_counted() -> None:
    account = check(chain(), Schedule(RIGHT), 16)
    assert (account.read, account.written, account.compulsory, account.excess, account.moved, account.peak) == (4, 4, 8, 0, 8, 16)


def test_spills_and_fetches_are_counted_beyond_the_compulsory_bytes() -> None:
    steps = (Fetch(X, 0), Run(0, (4,)), Free(X), Spill(A), Run(1, (8,)), Free(A), Fetch(A, 0), Run(2, (4,)), Spill(Y))
    account = check(chain(), Schedule(steps), 16)
    assert (account.read, account.written, account.excess) == (8, 8, 8)


@pytest.mark.parametrize("steps, message", [
    ((Run(0, (4,)),), "f needs x, which is not in the scratchpad"),
    ((Fetch(X, 0), Run(1, (8,))), "g needs a, which is not in the scratchpad"),
    ((Fetch(A, 0),), "a is fetched, but is not off the chip"),
    ((Fetch(X, 0), Fetch(X, 8)), "x is in the scratchpad already"),
    ((Fetch(X, 2),), "x lies at 2, which is no multiple of 4"),
    ((Fetch(X, 16),), "x lies at 16 to 20, outside of the 16 bytes"),
    ((Fetch(X, -4),), "x lies at -4 to 0, outside"),
    ((Fetch(X, 0), Run(0, (0,))), "a at 0 to 4 overlaps x at 0 to 4"),
    ((Fetch(X, 0), Run(0, ())), "f has 1 results, but 0 addresses are given"),
    ((Fetch(X, 0), Run(0, (4,)), Run(0, (8,))), "f ran before"),
    ((Fetch(X, 0), Spill(X)), "x is spilled, but is off the chip already"),
    ((Spill(A),), "a is spilled, but is not in the scratchpad"),
    ((Free(A),), "a is freed, but is not in the scratchpad"),
    ((Run(9, ()),), "there is no operator 9"),
    ((Fetch(9, 0),), "there is no tensor 9"),
    ((Spill(-1),), "there is no tensor -1"),
    (RIGHT[:4], "at the end: h never ran"),
    ((*RIGHT[:5], Free(Y)), "at the end: the result y is not off the chip"),
])
def test_every_way_to_be_wrong(steps: tuple, message: str) -> None:
    with pytest.raises(WrongSchedule, match=message):
        check(chain(), Schedule(steps), 16, 4)


def test_a_tensor_takes_whole_units_of_the_alignment() -> None:
    problem = make_problem("p", [Tensor("x", 9, INPUT), Tensor("a", 4)], [Operator("f", (0,), (1,))], [1])
    with pytest.raises(WrongSchedule, match="step 1: a at 8 to 16 overlaps x at 0 to 16"):
        check(problem, Schedule((Fetch(0, 0), Run(0, (8,)))), 64, 8)
    assert check(problem, Schedule((Fetch(0, 0), Run(0, (16,)), Spill(1))), 64, 8).peak == 24


def test_pinned_parameters_stay() -> None:
    tensors = [Tensor("x", 4, INPUT), Tensor("w", 4, PARAMETER), Tensor("a", 4), Tensor("y", 4)]
    problem = make_problem("p", tensors, [Operator("f", (0, 1), (2,)), Operator("g", (2,), (3,))], [3])
    pinned = with_parameters(problem, "resident")
    assert pinned.pinned == (1,) and pinned.compulsory == 12
    steps = (Fetch(0, 0), Fetch(1, 4), Run(0, (8,)), Free(0), Run(1, (0,)), Spill(3))
    assert check(pinned, Schedule(steps), 12).excess == 0
    with pytest.raises(WrongSchedule, match="g needs w, which is not in the scratchpad"):
        check(pinned, Schedule((*steps[:3], Free(1), *steps[4:])), 12)
    with pytest.raises(WrongSchedule, match="w is pinned, but fetched twice"):
        check(pinned, Schedule((*steps[:3], Free(1), Fetch(1, 4), *steps[3:])), 12)
    ignored = with_parameters(problem, "ignored")
    assert [t.name for t in ignored.tensors] == ["x", "a", "y"] and ignored.compulsory == 8
    with pytest.raises(CompileError, match="parameters: found 'x', expected one of"):
        with_parameters(problem, "x")


def test_what_is_off_the_chip_already_moves_nothing() -> None:
    """An input that is a result too, one that nothing reads, and tensors without bytes."""
    tensors = [Tensor("x", 4, INPUT), Tensor("unused", 4, INPUT), Tensor("empty", 0, INPUT), Tensor("y", 0)]
    problem = make_problem("p", tensors, [Operator("f", (2,), (3,))], [0, 3])
    account = check(problem, Schedule((Fetch(2, 0), Run(0, (0,)), Spill(3))), 1)
    assert (account.moved, account.compulsory) == (0, 0)


def test_problems_that_are_none() -> None:
    x, a, b = Tensor("x", 4, INPUT), Tensor("a", 4), Tensor("b", 4)
    with pytest.raises(CompileError, match="the operators need each other in a cycle: f <- g <- f"):
        make_problem("p", [x, a, b], [Operator("f", (0, 2), (1,)), Operator("g", (1,), (2,))], [2])
    with pytest.raises(CompileError, match="a is computed by g and by f"):
        make_problem("p", [x, a], [Operator("f", (0,), (1,)), Operator("g", (0,), (1,))], [1])
    with pytest.raises(CompileError, match="x is computed by f and by nothing: it is an input"):
        make_problem("p", [x], [Operator("f", (), (0,))], [])
    with pytest.raises(CompileError, match="b is needed, but no operator computes it"):
        make_problem("p", [x, a, b], [Operator("f", (2,), (1,))], [1])
    with pytest.raises(CompileError, match="operator f: there is no tensor 7, only 2"):
        make_problem("p", [x, a], [Operator("f", (7,), (1,))], [1])
    with pytest.raises(CompileError, match="tensor a has -1 bytes"):
        make_problem("p", [x, Tensor("a", -1)], [Operator("f", (0,), (1,))], [1])


def test_operators_are_sorted() -> None:
    x, a, b = Tensor("x", 4, INPUT), Tensor("a", 4), Tensor("b", 4)
    problem = make_problem("p", [x, a, b], [Operator("g", (1,), (2,)), Operator("f", (0, 0), (1,))], [2, 2])
    assert [o.name for o in problem.operators] == ["f", "g"]
    assert problem.operators[0].inputs == (0,) and problem.results == (2,)


def test_light_operators_join_what_computes_their_operand() -> None:
    names = ("x", "conv", "relu", "pool", "sum")
    tensors = [Tensor(name, 4, INPUT if name == "x" else "value") for name in names]
    operators = [Operator("conv", (0,), (1,), "conv"), Operator("relu", (1,), (2,), "relu", light=True), Operator("pool", (2,), (3,), "pool"),
                 Operator("sum", (3, 2), (4,), "add", light=True)]
    problem = fused(make_problem("p", tensors, operators, [4]))
    assert [(o.name, o.kind) for o in problem.operators] == [("conv", "conv+relu"), ("pool", "pool+add")]
    assert [t.name for t in problem.tensors] == ["x", "relu", "sum"]


def test_a_light_operator_does_not_join_where_that_makes_a_cycle() -> None:
    """The sum needs what depends on the convolution: joined to it, the two would wait for each other."""
    tensors = [Tensor("x", 4, INPUT), *(Tensor(name, 4) for name in ("a", "b", "c", "y"))]
    operators = [Operator("two", (0,), (1, 2), "split"), Operator("pool", (1,), (3,), "pool"), Operator("sum", (2, 3), (4,), "add", light=True)]
    problem = fused(make_problem("p", tensors, operators, [4]))
    assert [o.kind for o in problem.operators] == ["split", "pool+add"]


# --- sharing -----------------------------------------------------------------------------------------------------------------


def overwriting() -> Problem:
    """x -> a, b, the first over x where that is wanted; then y of a and b side by side."""
    tensors = [Tensor("x", 8, INPUT), Tensor("a", 4), Tensor("b", 4), Tensor("y", 4)]
    operators = [Operator("f", (0,), (1, 2), in_place=(0,)), Operator("g", (1, 2), (3,), joined=((1, 2),))]
    return make_problem("over", tensors, operators, [3])


def test_a_result_may_take_the_place_of_an_operand() -> None:
    account = check(overwriting(), Schedule((Fetch(0, 0), Run(0, (0, 8)), Spill(1), Free(1), Fetch(1, 4), Run(1, (0,)), Spill(3))), 12)
    assert (account.excess, account.peak) == (8, 12)


@pytest.mark.parametrize("steps, message", [
    ((Fetch(0, 0), Run(0, (4, 8))), "a at 4 to 8 overlaps x at 0 to 8"),
    ((Fetch(0, 0), Run(0, (8, 0))), "b at 0 to 4 overlaps x at 0 to 8"),
    ((Fetch(0, 0), Run(0, (0, 4))), "b at 4 to 8 overlaps x at 0 to 8"),
    ((Fetch(0, 0), Run(0, (0, 8)), Free(0)), "x is freed, but is not in the scratchpad"),
    ((Fetch(0, 0), Run(0, (0, 8)), Run(1, (12,))), "g takes a and b as one, but they lie up to 4 and from 8 on"),
])
def test_wrong_sharing(steps: tuple, message: str) -> None:
    with pytest.raises(WrongSchedule, match=message):
        check(overwriting(), Schedule(steps), 16)


@pytest.mark.parametrize("operator, message", [
    (Operator("f", (0,), (1,), in_place=(1,)), "only operands can be overwritten"),
    (Operator("f", (0,), (1,), joined=((0, 2),)), "what is joined must be operands or results with bytes"),
    (Operator("f", (0,), (1,), joined=((0, 0),)), "what is joined must be operands or results with bytes"),
])
def test_sharing_that_is_none(operator: Operator, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        make_problem("none", [Tensor("x", 4, INPUT), Tensor("a", 4), Tensor("b", 4, INPUT)], [operator], [1])
