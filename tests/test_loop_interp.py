"""The loop interpreter: meaning of kernels and programs, and that it finds each kind of fault."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.errors import ArgumentError, IndexFailure, RuntimeFailure, VerifyError
from tilewright.ir.graph import Constant
from tilewright.ir.loop_interp import run_kernel, run_program
from tilewright.ir.loop_parser import parse_kernel, parse_program
from tilewright.ir.loop_scalars import bitcast_caller, cast_caller, scalar_caller
from tilewright.ir.ops.compute import cast_array
from tilewright.ir.ops.scalar import RULES, SCALARS, evaluate_scalar
from tilewright.ir.types import ARRAY_DTYPES, BOOL, F32, I32, INDEX, DType

MATMUL = """kernel @matmul[M, N: 0..64, K](%x: in f32[M, K], %w: in f32[K, N], %y: out f32[M, N]) {
  for %i in 0..M parallel {
    for %j in 0..N vector(8) {
      alloc %acc: f32[] register
      %acc[] = f32 0.0
      for %k in 0..K {
        %acc[] = fma(load %x[i, k], load %w[k, j], load %acc[])
      }
      %y[i, j] = max(load %acc[], f32 0.0)
    }
  }
}
"""


def run(text: str, *arrays: np.ndarray, threads: int = 1, checked: bool = True, **sizes: int) -> None:
    run_kernel(parse_kernel(text), arrays, sizes, threads, checked)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("checked", [True, False])
def test_matmul(threads: int, checked: bool) -> None:
    random = np.random.default_rng(0)
    x, w = random.standard_normal((5, 7), np.float32), random.standard_normal((7, 11), np.float32)
    y = np.full((5, 11), np.nan, np.float32)
    run(MATMUL, x, w, y, threads=threads, checked=checked, M=5, N=11, K=7)
    np.testing.assert_allclose(y, np.maximum(x @ w, 0), rtol=1e-5, atol=1e-6)


def test_empty_and_flat_index() -> None:
    run(MATMUL, *(np.zeros(s, np.float32) for s in ((0, 3), (3, 4), (0, 4))), M=0, N=4, K=3)
    y = np.zeros((2, 3), np.int32)
    run("kernel @k(%y: out i32[2, 3]) { for %i in 0..6 vector(4) { %y[i] = cast(index(i * i), i32) } }", y)
    assert y.reshape(-1).tolist() == [0, 1, 4, 9, 16, 25]


def test_while_if_let_and_combining_stores() -> None:
    y, total = np.zeros(4, np.int64), np.array([100], np.int64)
    run("""kernel @collatz(%x: in i64[4], %y: out i64[4], %total: inout i64[1]) {
      for %i in 0..4 {
        alloc %n: i64[1] local
        alloc %steps: i64[1] local
        %n[0] = load %x[i]
        %steps[0] = i64 0
        while gt(load %n[0], i64 1) {
          let %odd = eq(mod(load %n[0], i64 2), i64 1)
          if %odd {
            %n[0] = add(mul(load %n[0], i64 3), i64 1)
          } else {
            %n[0] = floordiv(load %n[0], i64 2)
          }
          %steps[0] add= i64 1
        }
        %y[i] = load %steps[0]
        %total[0] add= load %steps[0]
      } }""", np.array([1, 6, 27, 97]), y, total)
    assert y.tolist() == [0, 8, 111, 118] and total[0] == 337


def test_narrow_floats_round_at_each_function() -> None:
    text = "kernel @k(%x: in bf16[3], %y: out bf16[3]) { for %i in 0..3 { %y[i] = mul(add(load %x[i], bf16 1.0), bf16 3.0) } }"
    x = np.array([0.001, 7.3, -1e30], ml_dtypes.bfloat16)
    y = np.zeros_like(x)
    run(text, x, y)
    one, three = x.dtype.type(1), x.dtype.type(3)
    expected = evaluate_scalar("mul", [evaluate_scalar("add", [x, np.full_like(x, one)]), np.full_like(x, three)])
    assert y.tobytes() == expected.tobytes()


# --- scalars -------------------------------------------------------------------------------------------------------


def interesting(dtype: DType) -> np.ndarray:
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.is_float:
        values = [0.0, -0.0, 1.0, -1.5, 2.5, 1e-45, 6e4, -3e38, np.inf, -np.inf, np.nan, 0.1]
        with np.errstate(all="ignore"):
            return np.array(values).astype(dtype.numpy)
    info = np.iinfo(dtype.numpy)
    return np.array(sorted({info.min, info.max, 0, 1, 2, 3, 7, 31, info.max // 2, *([-1, -2] if dtype.is_signed else [])}),
                    dtype=dtype.numpy)


@pytest.mark.parametrize("dtype", [*ARRAY_DTYPES, INDEX], ids=str)
def test_every_scalar_function_is_the_table_s(dtype: DType) -> None:
    values = interesting(dtype)
    if dtype == INDEX:
        values = np.array([-3, -1, 0, 1, 2, 7, 63])
    for name, row in SCALARS.items():
        operands = [BOOL if row.rule == "select" and i == 0 else dtype for i in range(row.arity)]
        try:
            RULES[row.rule](operands, name)
        except Exception:
            continue
        call = scalar_caller(name, dtype)
        for a in values:
            for b in values if row.arity > 1 else values[:1]:
                given = {1: [a], 2: [a, b], 3: [bool(a), a, b] if row.rule == "select" else [a, b, values[-1]]}[row.arity]
                arrays = [np.asarray(g, dtype=bool if t == BOOL else dtype.numpy) for g, t in zip(given, operands)]
                expected = np.asarray(evaluate_scalar(name, arrays))
                with np.errstate(all="ignore"):
                    found = call(*(int(g) if dtype == INDEX and t == INDEX else g for g, t in zip(given, operands)))
                found_array = np.asarray(found, dtype=expected.dtype)
                same = found_array.tobytes() == expected.tobytes()
                assert same or (np.isnan(found_array) and np.isnan(expected)), (name, given, found, expected)
                if dtype not in (INDEX, BOOL) and expected.dtype != bool:
                    assert found.dtype == expected.dtype, name


def test_every_cast_is_the_op_s() -> None:
    for source in (*ARRAY_DTYPES, INDEX):
        for target in (*ARRAY_DTYPES, INDEX):
            call = cast_caller(source, target)
            for value in interesting(source):
                given = int(value) if source == INDEX else value
                expected = np.asarray(cast_array(np.asarray(value, source.numpy), target))
                with np.errstate(all="ignore"):  # as kernels run
                    found = np.asarray(call(given), dtype=target.numpy)
                assert found.tobytes() == expected.tobytes() or np.isnan(expected), (source, target, value)
    assert bitcast_caller(F32, I32)(np.float32(1.0)) == 0x3F800000


# --- faults --------------------------------------------------------------------------------------------------------


def fault(body: str, words: str, head: str = "%x: in f32[4], %y: out f32[4]", threads: int = 1) -> None:
    kernel = parse_kernel(f"kernel @k({head}) {{ {body} }}")
    arrays = [np.ones([int(n) for n in b.shape], b.dtype.numpy) for b in kernel.buffers]
    with pytest.raises(VerifyError, match=words):
        run_kernel(kernel, arrays, {}, threads)


def test_index_outside_its_axis() -> None:
    fault("for %i in 0..4 { %y[i] = load %x[i + 1] }", r"index 4 of %x is outside axis 0 of 4")
    fault("for %i in 0..4 { %y[i - 1] = f32 0.0 }", r"index -1 of %y is outside axis 0 of 4")
    fault("for %i in 0..3 { %y[0, i] = f32 0.0 }", r"index 2 of %y is outside axis 1 of 2", "%y: out f32[2, 2]")
    fault("%y[4] = f32 0.0", r"index 4 of %y is outside axis 0 of 4", "%y: out f32[2, 2]")


def test_uninitialised_read() -> None:
    fault("for %i in 0..4 { %y[i] = load %y[i] }", "element 0 of %y is read, but nothing has stored to it")
    fault("alloc %t: f32[2] local %t[0] = f32 1.0 %y[0] = load %t[1]", "element 1 of %t is read")
    fault("alloc %t: f32[] register %t[] add= f32 1.0", "element 0 of %t is read")
    # memory is fresh in each round
    fault("for %i in 0..2 { alloc %t: f32[] register if eq(index(i), index 0) { %t[] = f32 1.0 } %y[i] = load %t[] }",
          "element 0 of %t is read")


@pytest.mark.parametrize("kind", ["parallel", "vector(4)"])
def test_races(kind: str) -> None:
    fault(f"for %i in 0..4 {kind} {{ %y[0] = load %x[i] }}", "iterations 0 and 1 of loop i touch element 0 of %y")
    fault(f"for %i in 0..3 {kind} {{ %y[i + 1] = load %y[i] }}", "iterations 0 and 1 of loop i touch element 1 of %y",
          "%y: inout f32[4]")
    fault(f"for %i in 0..3 {kind} {{ %y[i] = load %y[i + 1] }}", "iterations 0 and 1 of loop i touch element 1 of %y",
          "%y: inout f32[4]")
    fault(f"for %i in 0..4 {kind} {{ %y[i // 2] = f32 0.0 }}", "iterations 0 and 1 of loop i touch element 0 of %y")
    fault(f"for %i in 0..4 {kind} {{ %y[0] add= f32 1.0 %y[0] max= f32 1.0 }}", "loop i touch element 0", "%y: inout f32[4]")
    fault(f"for %i in 0..4 {kind} {{ %y[0] add= f32 1.0 %y[i] = load %y[0] }}", "loop i touch element 0", "%y: inout f32[4]")


def test_combining_stores_race_only_between_threads() -> None:
    y = np.zeros(1, np.float32)
    run("kernel @k(%x: in f32[4], %y: inout f32[1]) { for %i in 0..4 vector(4) { %y[0] add= load %x[i] } }",
        np.arange(4, dtype=np.float32), y)
    assert y[0] == 6
    fault("for %i in 0..4 parallel { %y[0] add= f32 1.0 }", "iterations 0 and 1 of loop i", "%y: inout f32[4]")


def test_serial_and_unrolled_loops_may_depend() -> None:
    for kind in ("", "unrolled"):
        y = np.ones(4, np.int32)
        run(f"kernel @k(%y: inout i32[4]) {{ for %i in 0..3 {kind} {{ %y[i + 1] = add(load %y[i], i32 1) }} }}", y)
        assert y.tolist() == [1, 2, 3, 4]


def test_local_memory_of_a_thread_is_scratch() -> None:
    text = """kernel @k(%x: in f32[4], %y: out f32[4]) {{
      alloc %t: f32[2] local
      for %i in 0..4 parallel {{ {first} %y[i] = load %t[0] }} }}"""
    y = np.zeros(4, np.float32)
    run(text.format(first="%t[0] = load %x[i]"), np.arange(4, dtype=np.float32), y)
    assert y.tolist() == [0, 1, 2, 3]
    with pytest.raises(VerifyError, match="iterations 0 and 1 of loop i touch element 0 of %t"):
        run(text.format(first="if eq(index(i), index 0) { %t[0] = load %x[i] }"), np.ones(4, np.float32), y)


def test_threads_do_not_meet_without_a_barrier() -> None:
    body = """for %i in 0..4 parallel { %t[i] = load %x[i] }
              for %j in 0..4 parallel { %y[j] = load %t[AT] }"""
    head = "%x: in f32[4], %t: out f32[4], %y: out f32[4]"
    run(f"kernel @k({head}) {{ {body.replace('AT', 'j')} }}", *(np.ones(4, np.float32) for _ in range(3)), threads=2)
    fault(body.replace("AT", "3 - j"), "threads 1 and 0 touch element 3 of %t|threads 0 and 1 touch", head, threads=2)
    fault("%y[3] = f32 1.0 for %i in 0..4 parallel { %y[i] = f32 1.0 }", "threads 0 and 1 touch element 3", threads=2)
    # every thread runs what stores to no parameter
    fault("for %i in 0..1 parallel { %y[i] = f32 1.0 } let %v = load %y[0]", "threads 0 and 1 touch element 0", threads=2)


def test_checks_end_the_kernel_with_their_numbers() -> None:
    text = """kernel @take(%x: in f32[4], %at: in i64[2], %y: out f32[2]) { for %i in 0..2 {
      let %a: 0..3 = cast(load %at[i], index)
      check and(ge(%a, index 0), lt(%a, index 4)), CODE, "take: out of range at m.py:3", %a, index 4
      %y[i] = load %x[a] } }"""
    x, y = np.arange(4, dtype=np.float32), np.zeros(2, np.float32)
    run(text.replace("CODE", "-1"), x, np.array([3, 1]), y)
    assert y.tolist() == [3, 1]
    with pytest.raises(IndexFailure, match="take: out of range at m.py:3: found -1, expected 4"):
        run(text.replace("CODE", "-1"), x, np.array([3, -1]), y)
    with pytest.raises(RuntimeFailure, match="found 4, expected 4"):
        run(text.replace("CODE", "-8"), x, np.array([4, 0]), y)
    with pytest.raises(VerifyError, match="a is 9, but is declared a: 0..3"):
        run(text.replace("lt(%a, index 4)", "bool true").replace("CODE", "-1"), x, np.array([9, 0]), y)


def test_sizes_must_fit() -> None:
    with pytest.raises(ArgumentError, match=r"size N: 0..64 is given as 65"):
        run(MATMUL, *(np.zeros(s, np.float32) for s in ((1, 1), (1, 65), (1, 65))), M=1, N=65, K=1)
    with pytest.raises(ArgumentError, match="%w must be a C-contiguous f32"):
        run(MATMUL, *(np.zeros(s, np.float32) for s in ((1, 1), (2, 2), (1, 2))), M=1, N=2, K=1)
    with pytest.raises(VerifyError, match="size is divided by zero"):
        run("kernel @k[N](%y: out i32[1]) { %y[0] = cast(index(7 // N), i32) }", np.zeros(1, np.int32), N=0)


def test_many_nested_loops() -> None:
    depth = 40
    text = "kernel @k(%y: inout i64[1]) { " + "".join(f"for %i{d} in 0..{2 if d % 8 == 0 else 1} {{ " for d in range(depth))
    y = np.zeros(1, np.int64)
    run(text + "%y[0] add= cast(index(i0 + i8 + 1), i64) " + "}" * (depth + 1), y)
    assert y[0] == 32 + 16 + 16  # five loops run twice; i0 and i8 are 1 half of the time


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_tiles_with_a_tail(rows: int, columns: int, tile: int, threads: int) -> None:
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    y = np.zeros((columns, rows), np.float32)
    run(f"""kernel @t[M, N](%x: in f32[M, N], %y: out f32[N, M]) {{
      for %i in 0..(M + {tile - 1}) // {tile} parallel {{
        for %a in 0..min({tile}, M - {tile}*i) {{ for %j in 0..N vector(4) {{
          %y[j, {tile}*i + a] = load %x[{tile}*i + a, j] }} }} }} }}""", x, y, threads=threads, M=rows, N=columns)
    assert (y == x.T).all()


# --- programs ------------------------------------------------------------------------------------------------------

PROGRAM = """
kernel @scale[N](%x: in f32[N], %c: in f32[1], %y: out f32[N]) {
  for %i in 0..N parallel { %y[i] = mul(load %x[i], load %c[0]) } }
kernel @reverse[N](%x: in f32[N], %y: out f32[N]) {
  for %i in 0..N parallel { %y[i] = load %x[N - 1 - i] } }
program @main[N: 1..100](%x: f32[N]) -> (%y: f32[N]) {
  constants 64
  workspace 8*N
  constant 0: f32[1] [2.0]
  launch @scale[N](input 0, constant 0, workspace 0)BARRIER
  launch @reverse[N](workspace 0, SECOND)
  launch @scale[N](SECOND, constant 0, output 0)
}
"""


def program(barrier: str = "", second: str = "workspace 4*N") -> str:
    return PROGRAM.replace("BARRIER", barrier).replace("SECOND", second)


@pytest.mark.parametrize("threads", [1, 4])
def test_program(threads: int) -> None:
    y, = run_program(parse_program(program()), [np.arange(6, dtype=np.float32)], threads)
    assert y.tolist() == [20, 16, 12, 8, 4, 0]
    with pytest.raises(ArgumentError, match="must be N: 1..100, found 0"):
        run_program(parse_program(program()), [np.zeros(0, np.float32)])


def test_program_faults() -> None:
    x = [np.arange(6, dtype=np.float32)]
    with pytest.raises(VerifyError, match="without a barrier between"):
        run_program(parse_program(program(" nobarrier")), x, threads=2)
    run_program(parse_program(program(" nobarrier")), x, threads=1)
    with pytest.raises(VerifyError, match=r"%x \(bytes 0 to 24\) and %y \(12 to 36\) overlap in workspace"):
        run_program(parse_program(program(second="workspace 2*N")), x)
    with pytest.raises(VerifyError, match="takes bytes 40 to 64 of workspace, which has 48"):
        run_program(parse_program(program(second="workspace 40")), x)
    with pytest.raises(VerifyError, match=r"lies at 4\*N \+ 2, expected a multiple of 4"):
        run_program(parse_program(program(second="workspace 4*N + 2").replace("8*N", "8*N + 8")), x)
    with pytest.raises(VerifyError, match="output y: byte 0 of 24 is not stored to"):
        run_program(parse_program(program().replace("constant 0, output 0", "constant 0, workspace 0")), x)
    with pytest.raises(VerifyError, match="element 5 of %x is read, but nothing has stored to it"):
        run_program(parse_program(program().replace("@reverse[N](workspace 0", "@reverse[N](workspace 4*N")
                                  .replace("workspace 4*N)", "workspace 0)")), x)


def test_a_buffer_that_was_overwritten_in_part_is_stale() -> None:
    text = """
kernel @copy(%x: in f32[4], %y: out f32[4]) { for %i in 0..4 { %y[i] = load %x[i] } }
program @main(%x: f32[4]) -> (%y: f32[4]) {
  constants 0
  workspace 64
  launch @copy(input 0, workspace 0)
  launch @copy(input 0, workspace 8)
  launch @copy(workspace 0, output 0)
}
"""
    with pytest.raises(VerifyError, match="element 0 of %x is read, but nothing has stored to it"):
        run_program(parse_program(text), [np.ones(4, np.float32)])


def test_repeat_loop_and_branch() -> None:
    text = """
kernel @row(%x: in i32[2], %y: out i32[2]) { for %i in 0..2 { %y[i] = add(load %x[i], i32 1) } }
kernel @zero(%n: out i32[1]) { %n[0] = i32 0 }
kernel @next(%n: inout i32[1]) { %n[0] add= i32 3 }
kernel @below(%n: in i32[1], %c: out bool[]) { %c[] = lt(load %n[0], i32 10) }
program @main[T](%x: i32[T, 2]) -> (%y: i32[T, 2], %n: i32[1]) {
  constants 0
  workspace 64
  repeat %t in 0..T reverse {
    launch @row(input 0 at 8*t, output 0 at 8*t)
  }
  launch @zero(output 1)
  loop {
    launch @below(output 1, workspace 0)
  } while workspace 0 {
    launch @next(output 1)
  }
  branch workspace 0 {
    launch @zero(output 1)
  }
}
"""
    x = np.arange(6, dtype=np.int32).reshape(3, 2)
    y, n = run_program(parse_program(text), [x], threads=3)
    assert (y == x + 1).all() and n.tolist() == [12]


def test_constants_by_digest() -> None:
    table = Constant(np.arange(20, dtype=np.float32))
    text = f"""
kernel @copy(%x: in f32[20], %y: out f32[20]) {{ for %i in 0..20 {{ %y[i] = load %x[i] }} }}
program @main() -> (%y: f32[20]) {{
  constants 80
  workspace 0
  constant 0: f32[20] #{table.digest[:16]}
  launch @copy(constant 0, output 0)
}}
"""
    y, = run_program(parse_program(text, [table]), [])
    assert (y == table.array).all()


def test_a_kernel_that_ran_can_be_forgotten() -> None:
    """Its code was kept with it, and held it."""
    kernel = parse_kernel("kernel @k(%y: out f32[2]) {\n  for %i in 0..2 {\n    %y[i] = f32 1.0\n  }\n}")
    run_kernel(kernel, [np.zeros(2, np.float32)], {})
    known = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert known() is None


def test_a_let_without_bounds_of_its_own_is_no_negative_size() -> None:
    """What is proven of it says so."""
    text = "kernel @k(%y: out f32[2]) {\n  let %n: 0.. = sub(index 1, index 2)\n  if le(index(n), index 1) {\n    %y[0] = f32 1.0\n  }\n}"
    with pytest.raises(VerifyError, match="n is -1, but is declared n: 0.."):
        run_kernel(parse_kernel(text), [np.zeros(2, np.float32)], {})
