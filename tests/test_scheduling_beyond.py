"""Schedules beyond whole operators that share nothing: each rewriting of a problem computes the same, and gains where it should."""

from __future__ import annotations

import pytest

from benchmarks.exhaustive_schedules import compare, random_problem
from benchmarks.networks import human_made, network
from benchmarks.searched import searched
from tilewright.ir.errors import CompileError
from tilewright.scheduling.aliasing import separate, without_copies
from tilewright.scheduling.beyond import EVERYTHING, NOTHING, SWITCHES, Allowed, changed
from tilewright.scheduling.bodies import Apart, Stay, bodies_of, by_search, by_size
from tilewright.scheduling.checker import check
from tilewright.scheduling.exact import solve, working_set
from tilewright.scheduling.feedback import strained, tightened
from tilewright.scheduling.heuristics import belady, best_for_order, least_peak
from tilewright.scheduling.placing import place, stays_of, steps_of
from tilewright.scheduling.problem import INPUT, Operator, Problem, Sliced, Tensor, make_problem
from tilewright.scheduling.recomputing import recomputed
from tilewright.scheduling.search import Limits, relaxed
from tilewright.scheduling.slicing import sliced
from tilewright.scheduling.space import Space


def needed(problem: Problem) -> dict[str, set[str]]:
    """For each result the operators that it is computed by, one name each."""
    found: dict[int, set[str]] = {}
    for operator in problem.operators:
        names = set(operator.name.split(", ")).union(*(found.get(t, set()) for t in operator.inputs))
        found |= dict.fromkeys(operator.outputs, names)
    return {problem.tensors[t].name: found[t] for t in problem.results}


def names(problem: Problem) -> set[str]:
    return {name for operator in problem.operators for name in operator.name.split(", ")}


def dense_block() -> Problem:
    """x -> a -> b -> y, where each reads all before it, one behind the other."""
    tensors = [Tensor("x", 128, INPUT), Tensor("a", 64), Tensor("xa", 192), Tensor("b", 64), Tensor("xab", 256), Tensor("y", 64)]
    operators = [Operator("f", (0,), (1,)), Operator("join_a", (0, 1), (2,), concat=True), Operator("g", (2,), (3,)),
                 Operator("join_b", (2, 3), (4,), concat=True), Operator("h", (4,), (5,))]
    return make_problem("dense", tensors, operators, [5])


# --- results over operands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*range(10), 57])
def test_what_is_shared_agrees_with_exhaustive_search(seed: int) -> None:
    least, solution = compare(seed, 6, seconds=60, shared=True)
    assert solution.bound <= least <= solution.account.excess


def test_every_way_becomes_a_schedule_that_the_checker_accepts() -> None:
    for seed in range(24):
        problem, budget = random_problem(seed, 12, shared=True)
        space = Space(problem, budget, 1)
        for order in (tuple(range(len(problem.operators))), least_peak(space).order):
            best = best_for_order(space, order)
            assert best is not None
            for moves in (belady(space, order), best.moves):
                for pack in (by_search, by_size):
                    stays, addresses = place(space, stays_of(space, moves), pack)
                    account = check(problem, steps_of(space, order, stays, addresses, 1), budget)
                    assert account.excess >= best.cost


def test_a_chain_of_results_over_operands_needs_one_tensor_less() -> None:
    tensors = [Tensor("x", 64, INPUT), Tensor("a", 64), Tensor("b", 64), Tensor("y", 32)]
    operators = [Operator("f", (0,), (1,), in_place=(0,)), Operator("g", (1,), (2,), in_place=(1,)), Operator("h", (2,), (3,), in_place=(2,))]
    problem = make_problem("chain", tensors, operators, [3])
    solution = solve(problem, 64, 32, 0, allowed=Allowed(in_place=True))
    assert solution.account.excess == 0 and solution.account.peak == solution.peak == 64
    with pytest.raises(CompileError, match="operator g needs 128 bytes at once"):
        solve(problem, 64, 32, 0)


def test_what_is_allowed_never_refuses_what_fits_without() -> None:
    """A rewriting may need more at once than whole operators do."""
    tensors = [Tensor("x", 64, INPUT), Tensor("y", 64), Tensor("slice", 64)]
    whole = make_problem("one", tensors[:2], [Operator("f", (0,), (1,))], [1])
    larger = make_problem("one", tensors, [Operator("f", (0,), (1, 2))], [1])
    assert solve(whole, 128, 64, 0, allowed=Allowed(slices=True), change=lambda *_: larger).problem.operators == whole.operators
    with pytest.raises(CompileError, match="operator f needs 192 bytes at once"):
        solve(whole, 64, 64, 0, allowed=Allowed(slices=True), change=lambda *_: larger)


def test_an_operand_that_is_read_again_is_written_away_before_it_is_overwritten() -> None:
    """The room holds one tensor: x is overwritten by a, returns for b, and both results leave."""
    tensors = [Tensor("x", 64, INPUT), Tensor("t", 64), Tensor("a", 64), Tensor("b", 64)]
    operators = [Operator("e", (0,), (1,), in_place=(0,)), Operator("f", (1,), (2,), in_place=(1,)), Operator("g", (1,), (3,), in_place=(1,))]
    problem = make_problem("fork", tensors, operators, [2, 3])
    solution = solve(problem, 64, 64, 5, allowed=Allowed(in_place=True))
    assert solution.proven and solution.account.excess == 128


def test_a_failed_packing_takes_room_from_operators() -> None:
    """81: the residency that is best without addresses has no packing."""
    problem, budget = random_problem(81, shared=True)
    space = Space(problem, budget, 1)
    way = relaxed(space, Limits()).ends[0]
    placed, addresses = place(space, stays_of(space, way.moves))
    order = [move.operator for move in way.moves]
    assert check(problem, steps_of(space, order, placed, addresses, 1), budget).excess > way.cost
    less = strained(space, way.moves, placed)
    assert less
    rooms = tightened({}, less, space)
    assert all(0 < rooms[o] <= less[o] and space.room - rooms[o] >= space.least_units[o] for o in less)
    for end in relaxed(Space(problem, budget, 1, rooms), Limits()).ends:
        assert end.moves != way.moves


# --- concatenation without copies -----------------------------------------------------------------------------------------------


def test_a_part_is_not_overwritten_while_the_whole_is_read() -> None:
    tensors = [Tensor("x", 64, INPUT), Tensor("a", 64), Tensor("b", 64), Tensor("ab", 128), Tensor("y", 64)]
    rows = [Operator("f", (0,), (1,)), Operator("g", (0,), (2,)), Operator("join", (1, 2), (3,), concat=True),
            Operator("h", (1, 3), (4,), in_place=(1,))]
    problem = without_copies(make_problem("part", tensors, rows, [4]), 64)
    assert problem.operators[-1].joined == ((1, 2),) and problem.operators[-1].in_place == ()


def test_what_reads_a_concatenation_reads_its_parts() -> None:
    problem = without_copies(dense_block(), 64)
    assert [o.name for o in problem.operators] == ["f", "g", "h"]
    assert [[problem.tensors[t].name for t in group] for o in problem.operators for group in o.joined] == [["x", "a"], ["x", "a", "b"]]
    before, after = solve(dense_block(), 512, 64, 0), solve(dense_block(), 512, 64, 0, allowed=Allowed(concat=True))
    assert (before.peak, after.peak) == (512, 320) and after.account.excess == 0
    assert solve(dense_block(), 320, 64, 0, allowed=Allowed(concat=True)).account.excess == 0


@pytest.mark.parametrize("change, left", [
    ("results", ["f", "g", "join_b", "h"]),       # the concatenation is wanted itself
    ("alignment", ["f", "join_a", "g", "join_b", "h"]),  # the second part would begin within a unit
    ("neighbours", ["f", "g", "join_b", "h"]),    # b is wanted right of a, and a right of b
])
def test_concatenations_that_must_be_made(change: str, left: list[str]) -> None:
    dense = dense_block()
    operators = list(dense.operators)
    if change == "neighbours":
        operators[3] = Operator("join_b", (3, 1, 0), (4,), concat=True)
    results = [4, 5] if change == "results" else [5]
    problem = make_problem("dense", dense.tensors, operators, results)
    assert [o.name for o in without_copies(problem, 256 if change == "alignment" else 64).operators] == left


def test_a_tensor_that_would_lie_in_two_places_moves_in_between() -> None:
    tensors = [Tensor("x", 1, INPUT), *(Tensor(name, 1) for name in "abyz")]
    operators = [Operator("e", (0,), (1, 2)), Operator("f", (1, 2), (3,), joined=((1, 2),)), Operator("g", (1, 2), (4,), joined=((2, 1),))]
    problem = make_problem("turned", tensors, operators, [3, 4])
    space = Space(problem, 8, 1)
    stays = [Stay(0, 1, (0,)), Stay(1, 1, (0, 1, 2)), Stay(2, 1, (0, 1, 2)), Stay(3, 1, (1,)), Stay(4, 1, (2,))]
    assert isinstance(bodies_of(space, stays), Apart)
    solution = solve(problem, 8, 1, 5)
    assert solution.account.excess == 2
    wrong = make_problem("both", tensors, [operators[0], Operator("f", (1, 2), (3,), joined=((1, 2), (2, 1)))], [3])
    with pytest.raises(CompileError, match="one operator wants b, a side by side, and the same tensors otherwise"):
        solve(wrong, 8, 1, 0)


# --- cheap tensors again, and slices -------------------------------------------------------------------------------------------


def test_a_cheap_tensor_is_computed_by_those_that_read_it() -> None:
    tensors = [Tensor("x", 64, INPUT), Tensor("t", 64), Tensor("r", 64), Tensor("a", 16), Tensor("b", 16), Tensor("y", 80)]
    operators = [Operator("e", (0,), (1,)), Operator("relu", (1,), (2,), light=True), Operator("f", (2,), (3,)), Operator("g", (2, 1), (4,)),
                 Operator("h", (3, 4), (5,))]
    problem = make_problem("again", tensors, operators, [5])
    after = recomputed(problem)
    assert [(o.name, [after.tensors[t].name for t in o.inputs]) for o in after.operators] == [
        ("e", ["x"]), ("f", ["t"]), ("g", ["t"]), ("h", ["a", "b"])]
    assert [solve(problem, 144, 16, 0, allowed=allowed).peak for allowed in (NOTHING, Allowed(recompute=True))] == [144, 128]


def test_what_an_operand_is_read_for_decides_what_may_lie_over_it() -> None:
    """g could lie over r = relu(t), but reads t otherwise too; h reads r alone, row by row."""
    tensors = [Tensor("x", 64, INPUT), *(Tensor(name, 64) for name in "trgh")]
    rows = Sliced("rows", 4, ((2, 0, 4),))
    operators = [Operator("e", (0,), (1,)), Operator("relu", (1,), (2,), light=True),
                 Operator("g", (2, 1), (3,), in_place=(2,), slices=(rows,)), Operator("h", (2,), (4,), in_place=(2,), slices=(rows,))]
    after = recomputed(make_problem("over", tensors, operators, [3, 4]))
    assert [(o.name, o.in_place, [how.operands for how in o.slices]) for o in after.operators] == [
        ("e", (), []), ("g", (), [()]), ("h", (1,), [((1, 0, 4),)])]


def attention_like(rows: int = 8) -> Problem:
    """A product that is large, its rows normalized, and a product that is small again."""
    tensors = [Tensor("q", 64, INPUT), Tensor("scores", 64 * rows), Tensor("weights", 64 * rows), Tensor("y", 64)]
    cut = [Sliced("rows", rows, ((t, 0, rows),)) for t in range(3)]
    operators = [Operator("scores", (0,), (1,), slices=(cut[0],)), Operator("softmax", (1,), (2,), in_place=(1,), slices=(cut[1],)),
                 Operator("values", (2,), (3,), slices=(cut[2],))]
    return make_problem("attention", tensors, operators, [3])


def test_chains_run_slice_by_slice_below_the_largest_operator() -> None:
    problem = attention_like()
    assert working_set(separate(problem), 64)[0] == 1024
    small = sliced(problem, 256, 64)
    assert [o.name for o in small.operators] == ["scores, softmax, values"]
    assert [(t.name, t.bytes) for t in small.tensors] == [("q", 64), ("y", 64), ("slice of scores", 64), ("slice of weights", 64)]
    assert solve(problem, 256, 64, 0, allowed=EVERYTHING).account.excess == 0
    assert len(sliced(problem, 4096, 64).operators) == 3  # all fits: nothing is joined
    with pytest.raises(CompileError, match="operator softmax needs 1024 bytes at once"):
        solve(problem, 256, 64, 0)


def test_a_bound_with_slices_is_for_those_chosen() -> None:
    """Others might need less, unless nothing is moved at all; without slices it is for all schedules."""
    tensors = [Tensor("x", 64, INPUT), Tensor("kept", 512), Tensor("a", 64), Tensor("wide", 1024), Tensor("v", 64), Tensor("y", 64)]
    operators = [Operator("split", (0,), (2, 1), in_place=(0,)), Operator("widen", (2,), (3,), slices=(Sliced("rows", 16, ((2, 0, 16),)),)),
                 Operator("narrow", (3,), (4,), slices=(Sliced("rows", 16, ((3, 0, 16),)),)), Operator("join", (1, 4), (5,), in_place=(4,))]
    problem = make_problem("skip", tensors, operators, [5])
    for budget, allowed, excess, chosen in ((576, EVERYTHING, 1024, True), (640, EVERYTHING, 0, False), (1088, NOTHING, 1024, False)):
        solution = solve(problem, budget, 64, allowed=allowed)
        assert solution.proven and solution.account.excess == excess
        assert solution.proven_by.endswith(", for the slices and repetitions chosen") == chosen


def test_windows_need_rows_beside_their_slice() -> None:
    tensors = [Tensor("x", 640, INPUT), Tensor("t", 1280), Tensor("y", 640)]
    operators = [Operator("conv", (0,), (1,), slices=(Sliced("rows", 10, ((0, 2, 10),)),)),
                 Operator("pool", (1,), (2,), slices=(Sliced("rows", 5, ((1, 1, 10),)),))]
    after = sliced(make_problem("windows", tensors, operators, [2]), 1700, 64)
    assert [t.bytes for t in after.tensors] == [640, 640, 1280 * 3 // 10]  # two rows a slice, and one more


def test_windows_of_a_chain_reach_over_one_another() -> None:
    """What a window reaches over, those before it make too, each for as many slices as all of the chain can do with."""
    tensors = [Tensor("x", 64, INPUT), *(Tensor(name, 64 * 32) for name in "abc"), Tensor("y", 64)]
    operators = [Operator(f"conv{n}", (n,), (n + 1,), slices=(Sliced("rows", count, ((n, 2, 32),)),)) for n, count in enumerate((32, 32, 32, 8))]
    after = sliced(make_problem("windows", tensors, operators, [4]), 512, 64)
    assert [(t.name, t.bytes // 64) for t in after.tensors[2:]] == [("slice of a", 4 + 6), ("slice of b", 4 + 4), ("slice of c", 4 + 2)]


# --- the whole ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DenseNet-121", "S3D", "ViT-B", "AmoebaNet-D"])
def test_networks_compute_the_same_however_they_are_changed(name: str) -> None:
    """Operators that are left are needed for the same results, none is lost but those that were to go, and as many bytes are compulsory."""
    problem = network({**human_made(), **searched()}[name], 1, "fused", shared="operands")
    gone = set[str]()
    for switch in SWITCHES:
        after = changed(problem, working_set(separate(problem), 64)[0], 64, Allowed(**{switch: True}))
        missing = names(problem) - names(after)
        assert all(o.concat or o.light for o in problem.operators if o.name in missing)
        assert {t: found - missing for t, found in needed(problem).items()} == needed(after)
        assert after.compulsory == problem.compulsory
        gone |= missing
    assert gone or name not in ("DenseNet-121", "AmoebaNet-D")


@pytest.mark.parametrize("name", list(human_made()))
def test_human_made_networks_move_nothing_more_at_their_largest_operator(name: str) -> None:
    make = human_made()[name]
    plain = network(make)
    solution = solve(network(make, shared="all"), working_set(plain, 64)[0], 64, 0, allowed=EVERYTHING, compared=plain)
    assert solution.proven and solution.account.excess == 0
    linear = [account.excess for name, account in solution.baselines if name.endswith("linear arena")]
    assert len(linear) == 4 and min(linear) > 0  # fragmentation alone costs all of them, as COSMA's authors found


def test_a_schedule_that_shares_nothing_is_the_answer_where_it_is_better() -> None:
    problem, budget = random_problem(3, 6, shared=True)
    for allowed in (NOTHING, Allowed(in_place=True)):
        solution = solve(problem, budget, 1, 5, allowed=allowed)
        assert check(solution.problem, solution.schedule, budget) == solution.account
