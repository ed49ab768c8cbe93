"""Schedule primitives: each keeps the meaning, shown by interpretation, and refuses what might not."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dependence import never_zero
from tilewright.ir.dims import DimLike, evaluate, symbol
from tilewright.ir.errors import ParseError, ScheduleError
from tilewright.ir.loop import Kernel
from tilewright.ir.loop_interp import run_kernel
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_proofs import unproved_indices
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.schedule import (
    Schedule,
    Step,
    apply_schedule,
    format_schedule,
    parallelize,
    parse_schedule,
    reorder,
    split,
    unroll,
    vectorize,
)
from tilewright.ir.staging import stage

MATMUL = parse_kernel("""kernel @matmul[M, N, K](%x: in f32[M, K], %w: in f32[K, N], %y: out f32[M, N]) {
  for %i in 0..M {
    for %j in 0..N {
      %y[i, j] = f32 0.0
    }
    for %k in 0..K {
      for %j2 in 0..N {
        %y[i, j2] add= mul(load %x[i, k], load %w[k, j2])
      }
    }
  }
}""")


def matmul(kernel: Kernel, m: int, n: int, k: int, threads: int = 1) -> np.ndarray:
    """On small integers, so that every order of a sum gives the same floats."""
    random = np.random.default_rng(m * 100 + n * 10 + k)
    x = random.integers(-8, 8, (m, k)).astype(np.float32)
    w = random.integers(-8, 8, (k, n)).astype(np.float32)
    y = np.full((m, n), np.nan, np.float32)
    run_kernel(kernel, [x, w, y], {"M": m, "N": n, "K": k}, threads)
    assert (y == x @ w).all()
    return y


SIZES = [(1, 1, 1), (5, 7, 3), (4, 8, 8), (0, 3, 2), (9, 13, 0)]


@pytest.mark.parametrize("steps", [
    "split(i, 4)", "split(i, 4, guard)", "split(j2, 3) vectorize(j2_inner, 4)", "reorder(k, j2)", "parallelize(i)",
    "split(i, 2) parallelize(i_outer)", "vectorize(j2, 8) vectorize(j, 8)",
    "parallelize(i) split(k, 4) reorder(k_inner, j2) vectorize(j2, 8)", "split(k, 4, guard) split(j2, 4)",
    "parallelize(i) split(i, 3)", "reorder(k, j2) vectorize(k, 4, true)",
    "stage(i, x, [i, 0], [1, K], row) vectorize(row_1, 8)", "stage(k, w, [k, 0], [1, N], w_row)",
    "stage(i, y, [i, 0], [1, N], sums) parallelize(i)", "fuse(k, j2)", "split(k, 4) reorder(k_inner, j2) fuse(j2, k_inner)",
    "split(i, 4, guard, block) split(block, 2, min, i) parallelize(i_outer) fuse(i_outer, block_outer, i)",
])
def test_primitives_keep_the_meaning(steps: str) -> None:
    kernel = apply_schedule(MATMUL, parse_schedule(steps))
    assert format_kernel(parse_kernel(format_kernel(kernel))) == format_kernel(kernel)
    for size in SIZES:
        for threads in (1, 3):
            matmul(kernel, *size, threads=threads)


def test_register_tile() -> None:
    kernel = parse_kernel("""kernel @tile[K](%x: in f32[4, K], %w: in f32[K, 16], %y: out f32[4, 16]) {
      for %once in 0..1 {
        for %a in 0..4 { for %b in 0..16 { %y[a, b] = f32 0.0 } }
        for %k in 0..K { for %i in 0..4 { for %j in 0..16 { %y[i, j] add= mul(load %x[i, k], load %w[k, j]) } } }
      } }""")
    schedule = parse_schedule("unroll(i) unroll(a) split(b, 8) unroll(b_outer) vectorize(b_inner, 8) split(j, 8)"
                              "unroll(j_outer) vectorize(j_inner, 8)")
    scheduled = apply_schedule(kernel, schedule)
    with pytest.raises(ScheduleError, match="is not shown to lie|read before it is stored"):
        stage(scheduled, "once", "y", (0, 0), (4, 8), "acc", "register")
    staged = stage(kernel, "once", "y", (0, 0), (4, 16), "acc")
    staged = apply_schedule(staged, (*schedule, Step("vectorize", ("acc_1", 8))))
    assert not unproved_indices(staged)
    x, w = (np.random.default_rng(0).integers(-4, 4, s).astype(np.float32) for s in ((4, 6), (6, 16)))
    for version in (kernel, scheduled, staged):
        y = np.zeros((4, 16), np.float32)
        run_kernel(version, [x, w, y], {"K": 6})
        assert (y == x @ w).all()


def test_stage_into_registers() -> None:
    kernel = parse_kernel("""kernel @k(%x: in f32[2, 8], %y: inout f32[8]) {
      for %t in 0..2 { for %i in 0..8 vector(8) { %y[i] add= load %x[t, i] } } }""")
    staged = stage(kernel, "t", "y", (0,), (8,), "acc", "register")
    y = np.ones(8, np.float32)
    run_kernel(staged, [np.arange(16, dtype=np.float32).reshape(2, 8), y], {})
    assert y.tolist() == [9 + 2 * i for i in range(8)]
    assert "alloc %acc: f32[8] register" in format_kernel(staged) and "unrolled" in format_kernel(staged)


def test_stage_clips_at_the_end_of_the_buffer() -> None:
    kernel = parse_kernel("""kernel @k[N](%x: in f32[N], %y: out f32[N]) {
      for %i in 0..N { %y[i] = add(load %x[i], f32 1.0) } }""")
    kernel = split(kernel, "i", 4)
    staged = stage(kernel, "i_outer", "x", ("4*i_outer",), (4,), "tile")
    for n in (0, 1, 4, 7):
        x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
        run_kernel(staged, [x, y], {"N": n})
        assert (y == x + 1).all()


# --- refusals --------------------------------------------------------------------------------------------------------


def kernel_of(body: str, head: str = "%x: in f32[64], %y: inout f32[64]") -> Kernel:
    return parse_kernel(f"kernel @k[N]({head}) {{ {body} }}")


SHIFT = "for %i in 0..63 { %y[i + 1] = load %y[i] }"


@pytest.mark.parametrize(("body", "steps", "words"), [
    (SHIFT, "vectorize(i, 8)", "iterations may depend on one another: store %y|iterations may depend"),
    (SHIFT, "parallelize(i)", "iterations may depend on one another"),
    (SHIFT, "split(i, 0)", "blocks of 0 iterations"),
    (SHIFT, "split(i, 4, round)", "the tail is 'round', expected min or guard"),
    (SHIFT, "split(z, 4)", "no loop z; its loops are i"),
    (SHIFT, "split(i)", "wrong number or kind of arguments"),
    (SHIFT, "tile(i, j)", "unknown primitive 'tile'; known are split, fuse, reorder"),
    (SHIFT, "split(i, 4, min, x)", "the name x is taken"),
    (SHIFT, "fuse(i, j)", "must hold j and nothing else, found Store"),
    ("for %i in 0..8 { for %j in 0..i { %y[i + j] = f32 0.0 } }", "fuse(i, j)", "the extent i of j depends on i"),
    ("for %i in 0..2 { for %j in 0..2 { for %k in 0..i { %y[k] = f32 0.0 } } }", "fuse(i, j, k)", "the extent i depends on i"),
    ("for %i in 0..8 { for %j in 0..8 { %y[i + 8*j] = f32 0.0 } }", "vectorize(j, 8) fuse(i, j)", "are serial and vector"),
    ("for %i in 0..8 { for %j in 0..8 { %y[i] = f32 0.0 } }", "parallelize(i) fuse(i, j)", "fuse j: its iterations may depend"),
    ("for %i in 0..8 { for %j in 0..3 - i { for %k in 0..3 - i { %y[j + k] = f32 0.0 } } }", "fuse(j, k)", "may both be below zero"),
    (SHIFT + SHIFT, "split(i, 4)", "2 loops are called i"),
    (SHIFT + SHIFT, 'split("i@2", 4)', "no loop i@2; 2 are called i"),
    ("for %i in 0..N { %y[0] add= load %x[i] }", "vectorize(i, 8)", "would change the order in which add %y"),
    ("for %i in 0..N { %y[0] add= load %x[i] }", "parallelize(i)", "iterations may depend on one another"),
    ("for %i in 0..N { %y[i] = f32 0.0 }", "unroll(i)", "unrolled loop i has the extent N, expected a static one"),
    ("for %i in 0..8 { %y[i] = f32 0.0 }", "vectorize(i, 6)", "has 6 lanes, expected a power of two"),
    ("for %i in 0..8 vector(8) { %y[i] = f32 0.0 }", "split(i, 4)", "it is a vector loop"),
    ("for %i in 0..8 unrolled { %y[i] = f32 0.0 }", "split(i, 3)", "is no multiple of 3"),
    ("for %i in 0..8 { for %j in 0..8 { %y[8*i + j] = f32 0.0 } }", "parallelize(j)", "stands inside another statement"),
    ("for %i in 0..8 { for %j in 0..8 { %y[8*i + j] = f32 0.0 } }", "parallelize(i) reorder(i, j)", "expected the outermost"),
    ("for %i in 0..8 { for %j in 0..i { %y[8*i + j] = f32 0.0 } }", "reorder(i, j)", "depends on i"),
    ("for %i in 0..8 { %y[i] = f32 0.0 for %j in 0..8 { %y[j] = f32 0.0 } }", "reorder(i, j)", "must hold j and nothing else"),
    ("for %i in 0..7 { for %j in 0..7 { %y[8*i + j + 8] = load %y[8*i + j + 1] } }", "reorder(i, j)", "may matter"),
    ("for %i in 0..7 { for %j in 0..7 vector(8) { %y[8*i + j + 8] = load %y[8*i + j + 1] } }", "reorder(i, j)", "may matter"),
    ("for %i in 0..8 { for %j in 0..8 { %y[0] add= load %x[8*i + j] } }", "reorder(i, j)", "change the order in which add"),
    ("for %i in 0..8 { for %j in 0..i { %y[0] max= f32 1.0 } }", "vectorize(i, 8, true)", "depends on the variable i"),
    ("%y[1] = f32 1.0 for %i in 0..8 { %y[i + 1] = load %x[i] }", "parallelize(i)", "no barrier between"),
    ("alloc %t: f32[8] local for %i in 0..8 { %t[i] = load %x[i] } for %j in 0..8 parallel { %y[j] = load %t[j] }",
     "parallelize(i)", "each thread has stored only its part"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [0], [4], t)", "index i of axis 0 is not shown to lie in the 4 from 0"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, z, [0], [4], t)", "no such buffer around loop i"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [0, 0], [4, 1], t)", "need 1 sizes each"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", 'stage(i, x, ["i - 1"], [4], t)', "is not shown to be 0 or more"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [i], [1], y)", "the name y is taken"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [q], [1], t)", "unknown dim 'q'"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [i], [1], t, cloud)", "memory is register or local"),
    ("for %i in 0..8 { %y[i] = load %x[i] }", "stage(i, x, [0], [8], t, register)", "expected constants, unrolled and vector"),
    ("for %i in 0..8 parallel { %y[i] = load %x[i] }", "stage(i, y, [0], [8], t)", "no longer be independent"),
])
def test_refusals(body: str, steps: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        apply_schedule(kernel_of(body), parse_schedule(steps))


def test_stage_refuses_what_may_be_uninitialised() -> None:
    head = "%x: in f32[64], %y: out f32[64]"
    with pytest.raises(ScheduleError, match="may be read before it is stored to"):
        stage(kernel_of("for %i in 0..8 { %y[0] = load %x[i] }", head), "i", "y", (0,), (2,), "t")
    maybe = kernel_of("for %i in 0..8 { for %z in 0..N { %y[i] = f32 0.0 } }", head)
    with pytest.raises(ScheduleError, match="may be read before it is stored to"):
        stage(maybe, "i", "y", ("i",), (1,), "t")


# --- property: random schedules --------------------------------------------------------------------------------------

POOL = ["i", "j", "k", "j2", "i_outer", "i_inner", "k_outer", "k_inner", "j2_outer", "j2_inner", "j_outer", "j_inner"]
STEPS = st.one_of(
    st.builds(lambda loop, f, t: Step("split", (loop, f, t)), st.sampled_from(POOL), st.integers(1, 5), st.sampled_from(["min", "guard"])),
    st.builds(lambda a, b: Step("reorder", (a, b, True)), st.sampled_from(POOL), st.sampled_from(POOL)),
    st.builds(lambda loop, n: Step("vectorize", (loop, n, True)), st.sampled_from(POOL), st.sampled_from([1, 4, 8])),
    st.builds(lambda loop: Step("unroll", (loop,)), st.sampled_from(POOL)),
    st.builds(lambda loop: Step("parallelize", (loop,)), st.sampled_from(POOL)),
    st.builds(lambda a, b: Step("fuse", (a, b)), st.sampled_from(POOL), st.sampled_from(POOL)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=8), st.sampled_from(SIZES), st.integers(1, 3))
def test_what_is_accepted_is_right(steps: list[Step], size: tuple[int, int, int], threads: int) -> None:
    kernel, taken = MATMUL, []
    for step in steps:
        try:
            kernel = apply_schedule(kernel, (step,))
        except ScheduleError:
            continue
        taken.append(step)
    matmul(kernel, *size, threads=threads)
    schedule = tuple(taken)
    assert parse_schedule(format_schedule(schedule)) == schedule
    assert format_kernel(apply_schedule(MATMUL, schedule)) == format_kernel(kernel)


INDICES = ["i", "j", "i + j", "7*i + j", "i + 7*j", "2*i", "j + 1", "0", "(i // 2)", "i % 3", "48 - i - j"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(INDICES), st.sampled_from(INDICES), st.sampled_from(["", "add"]),
       st.sampled_from(["reorder(i, j)", "vectorize(i, 4)", "vectorize(j, 4)", "parallelize(i)", "parallelize(i) fuse(i, j)"]))
def test_dependence_is_conservative(target: str, source: str, combine: str, step: str) -> None:
    """What the test of dependence accepts runs without races and gives the same result on integers."""
    text = (f"kernel @k(%y: inout i32[64]) {{ for %i in 0..7 {{ for %j in 0..7 {{ "
            f"%y[{target}] {combine}= add(load %y[{source}], cast(index(i + 2*j), i32)) }} }} }}")
    kernel = parse_kernel(text)
    try:
        changed = apply_schedule(kernel, parse_schedule(step))
    except ScheduleError:
        return
    results = []
    for version in (kernel, changed):
        y = np.arange(64, dtype=np.int32)
        run_kernel(version, [y], {}, threads=3 if "parallel" in step else 1)
        results.append(y)
    assert (results[0] == results[1]).all()


PLACES = ["i", "j", "7*i + j", "8*i + j", "8*i + j + 7", "2*i", "2*i + 1", "8*min(i, 3) + j", "i + 49", "48 - i - j", "57 + i"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(PLACES), st.sampled_from(PLACES))
def test_statements_that_are_parallel_lie_apart(first: str, second: str, source: str) -> None:
    """Two nests are made parallel only where threads that run both without a barrier between do not meet."""
    target, source = (re.sub(r"\bi\b", "a", re.sub(r"\bj\b", "b", index)) for index in (second, source))
    kernel = parse_kernel(
        f"kernel @k(%y: inout i32[64]) {{ for %i in 0..7 {{ for %j in 0..7 {{ %y[{first}] = cast(index(i + 2*j), i32) }} }} "
        f"for %a in 0..7 {{ for %b in 0..7 {{ %y[{target}] = load %y[{source}] }} }} }}")
    try:
        changed = apply_schedule(kernel, parse_schedule("parallelize(i) parallelize(a)"))
    except ScheduleError:
        return
    results = []
    for version in (kernel, changed):
        y = np.arange(64, dtype=np.int32)
        run_kernel(version, [y], {}, threads=3 if version is changed else 1)
        results.append(y)
    assert (results[0] == results[1]).all()


M, N = symbol("M"), symbol("N", 1)
FACTORS = [1, 2, 3, -2, 6, N, N + 1, 2 * N, 4 * M, N * M, N - M, M * (N + 1), 3 * N - 3]
TERMS = st.lists(st.tuples(st.sampled_from(FACTORS), st.integers(0, 1), st.sampled_from([1, 2, N, N - 1, M, N - M, None])), max_size=2)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([-4, 0, 1, 2, 5, N, M, N - 1, N * M - 1, M - N]), TERMS, TERMS)
def test_sums_that_arenever_zero(rest: DimLike, plus: list, minus: list) -> None:
    """Against all values for small sizes; a term without a greatest value takes a few."""
    if not never_zero(rest, plus, minus):
        return
    for n, m in itertools.product(range(1, 5), range(4)):
        sizes = {"N": n, "M": m}
        terms = [(sign * evaluate(factor, sizes), range(least, 5 if most is None else evaluate(most, sizes) + 1))
                 for sign, side in ((1, plus), (-1, minus)) for factor, least, most in side]
        for numbers in itertools.product(*(values for _, values in terms)):
            assert evaluate(rest, sizes) + sum(factor * x for (factor, _), x in zip(terms, numbers)) != 0


@pytest.mark.parametrize(("body", "steps"), [
    # columns of a matrix with a running index between: apart by what is left modulo the row
    ("for %i in 0..7 { for %k in 0..9 { %y[7*k + i] = f32 0.0 } }", "vectorize(i, 4)"),
    ("for %i in 0..4 { for %k in 0..9 { %y[4*M*k + i] = f32 0.0 } }", "vectorize(i, 4)"),  # also where there is no row
    ("for %i in 0..N { for %k in 0..9 { %y[N*k + i] = f32 0.0 } }", "parallelize(i)"),
    ("for %i in 0..N + 1 { for %k in 0..9 { %y[(N + 1)*min(k, 4) + i] = f32 0.0 } }", "parallelize(i)"),
    # a stride that is positive because the loop has iterations
    ("for %i in 0..4 { for %j in 0..N - M { %y[N*i - M*i + j] = f32 0.0 } }", "parallelize(i) fuse(i, j) split(i, 64)"),
    # two halves of each row
    ("for %i in 0..4 { for %j in 0..N { %y[2*N*i + j] = f32 0.0 } } for %a in 0..4 { for %b in 0..N { %y[2*N*a + N + b] = f32 1.0 } }",
     "parallelize(i) parallelize(a)"),
    # tiles whose last row and column are shorter
    ("for %i in 0..20 { for %j in 0..24 { %y[24*i + j] = f32 0.0 } }",
     "split(i, 16) split(j, 16) reorder(i_inner, j_outer) parallelize(i_outer) fuse(i_outer, j_outer) vectorize(j_inner, 8)"),
    ("for %i in 0..20 { for %j in 0..N { %y[N*i + j] = f32 0.0 } }",
     "split(i, 16) split(j, 16) reorder(i_inner, j_outer) parallelize(i_outer) fuse(i_outer, j_outer) vectorize(j_inner, 8)"),
    # memory of the iteration
    ("for %i in 0..8 { alloc %t: f32[] register %t[] = load %x[i] for %k in 0..3 { %t[] add= f32 1.0 } %y[i] = load %t[] }",
     "split(i, 4) vectorize(i_inner, 4) parallelize(i_outer)"),
])
def test_what_is_shown_to_lie_apart(body: str, steps: str) -> None:
    kernel = parse_kernel(f"kernel @k[N: 2.., M: 1..](%x: in f32[1000], %y: inout f32[1000]) {{ {body} }}")
    apply_schedule(kernel, parse_schedule(steps))


ROWS = ("for %i in 0..N + 1 { %y[4*N + i + 4] = i32 1 } "
        "for %a in 0..4 { for %b in 0..N - 1 { %y[{index}] = cast(index(a + 1), i32) } }")


@pytest.mark.parametrize(("body", "steps", "legal"), [
    # the last row and a window of the others, of N - 1 columns: for N = 1 it has none
    (ROWS.replace("{index}", "N*a + a + 2"), "parallelize(i) parallelize(a)", True),
    (ROWS.replace("{index}", "N*a + a + b + 2"), "parallelize(i) parallelize(a)", True),
    (ROWS.replace("{index}", "N*a + 2*a + 4"), "parallelize(i) parallelize(a)", False),
    # rows of N - 1 pieces of 3 elements
    ("for %i in 0..2 { for %j in 0..N - 1 { for %k in 0..3 { %y[3*N*i - 3*i + k] = i32 1 } } }", "parallelize(i)", True),
    ("for %i in 0..2 { for %j in 0..N - 1 { for %k in 0..3 { %y[2*N*i - 2*i + k] = i32 1 } } }", "parallelize(i)", False),
    # variables of loops are no sizes: one that is called alike elsewhere takes other values
    ("for %i in 0..3 { for %j in 0..i - 1 { %y[3] = i32 1 } } for %a in 0..3 { for %i in 0..3 { %y[a + i] = i32 2 } }",
     "parallelize(a)", False),
    ("for %i in 0..8 { for %j in 0..N - 1 { %y[0] = i32 1 } }", "vectorize(j, 4)", False),
])
def test_loops_of_at_most_one_iteration_say_that_there_is_one(body: str, steps: str, legal: bool) -> None:
    """An index shows nothing of them."""
    kernel = parse_kernel(f"kernel @k[N: 1..2](%y: inout i32[5*N + 9]) {{ {body} }}")
    if not legal:
        with pytest.raises(ScheduleError):
            apply_schedule(kernel, parse_schedule(steps))
        return
    changed = apply_schedule(kernel, parse_schedule(steps))
    for n in (1, 2):
        plain, parallel = (np.zeros(5 * n + 9, np.int32) for _ in range(2))
        run_kernel(kernel, [plain], {"N": n}, threads=1)
        run_kernel(changed, [parallel], {"N": n}, threads=3)
        assert (plain == parallel).all()


def test_schedule_text() -> None:
    schedule: Schedule = (Step("split", ("i", 8, "min")), Step("reorder", ("i@1", "j", True)),
                          Step("stage", ("k", "x", ("4*i", 0), (4, "K"), "tile", "local")), Step("odd", (-3, "true", ())))
    text = format_schedule(schedule)
    assert text.splitlines()[2] == 'stage(k, x, ["4*i", 0], [4, K], tile, local)'
    assert parse_schedule(text) == schedule
    for broken in ("split(i, 8", "split i", "split(i, 8))", "[", "split([[[[[[[[[[[[["):
        with pytest.raises(ParseError):
            parse_schedule(broken)


def test_primitives_are_plain_functions() -> None:
    kernel = split(MATMUL, "j2", 8)
    kernel = reorder(kernel, "k", "j2_outer")
    kernel = vectorize(kernel, "j2_inner", 8)
    kernel = parallelize(unroll(split(kernel, "i", 4, "guard"), "i_inner"), "i_outer")
    matmul(kernel, 9, 20, 3, threads=4)


def test_a_loop_of_at_most_one_iteration_depends_on_no_other() -> None:
    """Its variable is 0, so an index does not show it; in vectors it stays refused, since backends count lanes by the extent."""
    kernel = parse_kernel("kernel @k[N: 0..1](%x: in f32[N], %y: out f32[1]) {\n  for %i in 0..N {\n    %y[0] = load %x[0]\n  }\n}")
    divided = parallelize(kernel, "i")
    for size in (0, 1):
        x, y = np.full(size, 7, np.float32), np.full(1, 3, np.float32)
        run_kernel(divided, [x, y], {"N": size}, 2)
        assert y[0] == (7 if size else 3)
    with pytest.raises(ScheduleError, match="may depend on one another"):
        vectorize(kernel, "i", 4)
