"""Text of the loop level: print and parse, places of errors, keys of kernels."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, Loc, ParseError
from tilewright.ir.graph import Builder, Constant, Node
from tilewright.ir.loop import Buffer, IndexValue, Kernel, Literal, Load, Local, Store
from tilewright.ir.loop_parser import parse_kernel, parse_program
from tilewright.ir.loop_text import format_expression, format_kernel, format_program, kernel_key
from tilewright.ir.loop_verify import verify_kernel
from tilewright.ir.ops.compute import Bitcast, Cast, Elementwise
from tilewright.ir.types import ARRAY_DTYPES, BF16, BOOL, F32, I32, I64, INDEX, DType

EVERYTHING = r'''kernel @"all of/it"[B: 1..64, S: 0.. % 8](%x: in f32[B, 8*S], %"a b": inout i64[], %y: out f32[B, 8*S]) {
  for %i in 0..B parallel {
    alloc %row: f32[8*S] local
    alloc %acc: f32[8] register
    for %j in 0..8 vector(8) {
      %acc[j] = f32 -inf
    }
    for %k: 0..99 % 2 in 0..8*S {
      let %v = fma(load %x[i, k], f32 2.5, f32 nan)
      %row[k] = mul(!1, add(!0, !1)) where !0 = exp(%v), !1 = neg(!0)
      for %u in 0..8 unrolled {
        %acc[u] max= %v
      }
    }
    while lt(load %"a b"[], i64 -3) {
      %"a b"[] add= i64 1
    }
    if and(lt(index((i // 2) + min(3, S)), index 5), bool true) {
      let %at: 0..7 = cast(load %"a b"[], index)
      check ge(%at, index(B)), -1, "take: \"x\"\n", %at, index(B)
      %y[i, at] = bitcast(i32 7, f32)
    } else {
      %y[8*S*i] = load %row[0]
    }
    check gt(!0, i64 0), -8, "assert", !0, i64 0 where !0 = abs(load %"a b"[])
  }
}
'''


def test_print_of_parse_is_the_identity() -> None:
    kernel = parse_kernel(EVERYTHING)
    assert format_kernel(kernel) == EVERYTHING
    assert kernel.buffers[1].name == "a b" and kernel.symbols[1].multiple_of == 8


def test_a_variable_with_one_value_keeps_its_name() -> None:
    text = """kernel @k(%x: in i64[2], %y: out f32[4]) {
  let %width: 1..1 = cast(load %x[0], index)
  for %i in 0..width {
    %y[i + width] = f32 0.0
  }
}
"""
    assert format_kernel(parse_kernel(text)) == text


def test_comments_and_line_breaks_do_not_count() -> None:
    kernel = parse_kernel("# head\n" + EVERYTHING.replace(" {\n", "\n# note\n{ "))
    assert format_kernel(kernel) == EVERYTHING
    placed = Kernel(kernel.name, kernel.buffers, kernel.symbols, kernel.body, Loc("/m/model.py", 7))
    assert "{  # model.py:7\n" in format_kernel(placed, locations=True)
    assert format_kernel(placed) == EVERYTHING


def test_deep_and_shared_expressions() -> None:
    builder = Builder()
    x = builder.add(Load("x", (0,), F32))
    deep = shared = x
    for _ in range(3000):
        deep = builder.add(Elementwise("neg"), deep)
    for _ in range(60):  # 2 ** 60 nodes as a tree
        shared = builder.add(Elementwise("add"), shared, shared)
    for value in (deep, shared):
        kernel = Kernel("k", (Buffer("x", F32, (1,), "in"), Buffer("y", F32, (1,), "out")), (), (Store("y", (0,), value),))
        text = format_kernel(kernel)
        assert len(text) < 20000
        again = parse_kernel(text)
        verify_kernel(again)
        assert format_kernel(again) == text and kernel_key(again) == kernel_key(kernel)


PROGRAM = """kernel @copy[N](%x: in f32[N], %y: out f32[N]) {
  for %i in 0..N {
    %y[i] = load %x[i]
  }
}

program @main[N: 1..8](%in.0: f32[4*N]) -> (%y: f32[4*N], %z: f32[2]) {
  constants 192
  workspace 16*N + 64
  constant 0: f32[2] [1.5, -0.0]
  constant 64: f32[20] #DIGEST
  launch @copy[4*N](input 0, workspace 64) nobarrier
  repeat %t in 0..N reverse {
    launch @copy[4](workspace 16*t + 64, output 0 at 16*t)
  }
  repeat %r: 0..9 in 0..N {
  }
  loop {
    launch @copy[2](constant 0, output 1)
  } while workspace 0 {
    branch output 1 at 4 {
      launch @copy[2](constant 64, workspace 0)
    } else {
      launch @copy[1](constant 68, workspace 0)
    }
  }
}
"""


def test_program_text() -> None:
    table = Constant(np.arange(20, dtype=np.float32))
    text = PROGRAM.replace("DIGEST", table.digest[:16])
    for constants in ([table], {table.digest: table}):
        program = parse_program(text, constants)
        assert format_program(program) == text
    assert program.constants[1][1] is table and len(program.kernels()) == 1
    with pytest.raises(ParseError, match="is not among the constants given"):
        parse_program(text)


@pytest.mark.parametrize(("before", "after", "words", "place"), [
    ("%acc[j] = f32", "%bcc[j] = f32", "no buffer %bcc is known here", (6, 7)),
    ("%acc[j]", "%acc[q]", "unknown size 'q'", (6, 12)),
    ("exp(%v)", "exp(%i)", "no let %i is known here", (10, 53)),
    ("exp(%v)", "exp(%v, %v)", "exp: takes 1 operands, found 2", (10, 49)),
    ("exp(%v)", "exq(%v)", "expected an expression, found 'exq'", (10, 49)),
    ("f32 2.5", "f32 two", "expected a number for f32", (9, 39)),
    ("f32 2.5", "i32 2.5", "expected an integer for i32", (9, 39)),
    ("i64 -3", "i64 99999999999999999999", "is outside i64", None),
    ("add(!0, !1)", "add(!0, !2)", "!2 is not defined before its use", None),
    (", !1 = neg(!0)", "", "!1 is not defined before its use", None),
    ("where !0 = exp(%v), !1 = neg(!0)", "", "!0 is used but not defined; expected 'where'", None),
    ("max= %v", "pow= %v", "a store combines by add, mul", None),
    ("vector(8)", "wide(8)", "a loop is parallel, vector\\(lanes\\), unrolled, block, thread, warp, lane, block\\(blocks\\) or pipeline\\(stages\\), found 'wide'", None),
    ("for %u in 0..8", "for %u in 1..8", "a loop begins at 0", None),
    ("for %u in", "for %k in", "k is declared twice", None),
    ("alloc %acc:", "alloc %row:", "buffer %row is declared twice", None),
    ("register\n", "heap\n", "memory is register, local, shared, fragment, found 'heap'", None),
    (": in f32", ": take f32", "a parameter's access is in, out or inout, found 'take'", (1, 47)),
    ("B: 1..64", "B: 9..6", "bounds 9..6", None),
    ("check gt", "chock gt", "expected a statement", None),
    ("bitcast(i32 7, f32)", "bitcast(i32 7, f64)", "differ in width", None),
    ("bitcast(i32 7, f32)", "bitcast(i32 7)", "bitcast needs a dtype after its operand", None),
    ("    }\n  }\n}\n", "", None, None),
    ("kernel @", "kernel ", "expected a kernel name", None),
])
def test_errors_have_a_place(before: str, after: str, words: str | None, place: tuple[int, int] | None) -> None:
    assert before in EVERYTHING or words is None
    with pytest.raises(ParseError, match=words) as caught:
        parse_kernel(EVERYTHING.replace(before, after) if words else EVERYTHING[:-3])
    assert caught.value.line > 0 and caught.value.column > 0
    if place:
        assert (caught.value.line, caught.value.column) == place


@pytest.mark.parametrize(("before", "after", "words"), [
    ("launch @copy[2]", "launch @kopy[2]", "no kernel @kopy stands before the program"),
    ("output 1 at 4", "heap 1", "a place is an input, output, constant, workspace or scratchpad, found 'heap'"),
    ("branch", "fork", "expected launch, repeat, loop, branch, fetch, reserve, spill or free, found 'fork'"),
    ("16*t + 64", "16*u + 64", "unknown size 'u'"),
    ("program @main", "kernel @copy() { }\nprogram @main", "kernel @copy is defined twice"),
])
def test_program_errors(before: str, after: str, words: str) -> None:
    table = Constant(np.arange(20, dtype=np.float32))
    with pytest.raises(ParseError, match=words):
        parse_program(PROGRAM.replace("DIGEST", table.digest[:16]).replace(before, after), [table])


def test_deep_nests_do_not_exhaust_the_stack() -> None:
    for opening in ("if bool true { ", "for %i in 0..1 { "):
        with pytest.raises(ParseError, match=r"nested deeper|declared twice"):
            parse_kernel("kernel @k() { " + opening * 5000)
    with pytest.raises(ParseError):
        parse_kernel("kernel @k(%y: out f32[1]) { %y[0] = " + "neg(" * 100000)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_text_gives_a_parse_error_or_a_kernel(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(EVERYTHING)))
    length = data.draw(st.integers(0, 12))
    extra = data.draw(st.text(st.sampled_from("%!@{}[]().,=-*/ 0123ijkB\"ef"), max_size=3))
    try:
        parse_kernel(EVERYTHING[:position] + extra + EVERYTHING[position + length:])
    except ParseError as error:
        assert error.line > 0


# --- random expressions ----------------------------------------------------------------------------------------------

LEAVES = {F32: [Load("x", (0,), F32), Literal(-0.0, F32), Literal(float("inf"), F32), Literal(1e-45, F32), Local("v", F32)],
          I32: [Literal(-2**31, I32), Literal(5, I32)], I64: [Literal(2**63 - 1, I64)], BOOL: [Literal(True, BOOL)],
          BF16: [Literal(0.1, BF16), Literal(float("nan"), BF16)],
          INDEX: [IndexValue(symbol("N") * 4 // 3 + 1), Literal(-1, INDEX), IndexValue(7)]}


@st.composite
def expressions(draw: st.DrawFn) -> Node:
    builder = Builder()
    pool: list[Node] = [builder.add(op) for ops in LEAVES.values() for op in ops]
    for _ in range(draw(st.integers(0, 12))):
        x = draw(st.sampled_from(pool))
        op = draw(st.sampled_from([Elementwise("add"), Elementwise("max"), Elementwise("neg"), Elementwise("select"), Cast(F32),
                                   Cast(I64), Bitcast(I32), Elementwise("lt"), Elementwise("not")]))
        same = [n for n in pool if n.dtype == x.dtype]
        operands = {"neg": (x,), "not": (x,), "select": (pool[-1], x, draw(st.sampled_from(same)))}.get(
            op.spelling, (x,) if isinstance(op, (Cast, Bitcast)) else (x, draw(st.sampled_from(same))))
        try:
            pool.append(builder.add(op, *operands))
        except CompileError:
            continue
    return pool[-1]


@settings(max_examples=200, deadline=None)
@given(expressions())
def test_expressions_read_back(value: Node) -> None:
    head = (f"kernel @k[N](%x: in f32[1], %y: out {value.dtype}[1]) {{ let %v = f32 1.0 ")
    text = f"%y[0] = {format_expression(value)}"
    kernel = parse_kernel(head.replace("out index", "out i64") + text + " }")
    assert text in format_kernel(kernel)


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=str)
def test_literals_read_back_exactly(dtype: DType) -> None:
    values: list[int | float | bool] = [True, False] if dtype.is_bool else [0.1, 1e300, -0.0, 5e-324] if dtype.is_float else [
        dtype.lowest, dtype.highest, 0]
    for value in values:
        text = format_expression(Builder().add(Literal(value, dtype)))
        kernel = parse_kernel(f"kernel @k(%y: out {dtype}[1]) {{ %y[0] = {text} }}")
        store = kernel.body[0]
        assert isinstance(store, Store) and isinstance(store.value.op, Literal)
        assert repr(store.value.op.value) == repr(value)


# --- keys ------------------------------------------------------------------------------------------------------------


def renamed(text: str) -> str:
    for old, new in (("%i ", "%zz "), ("[i", "[zz"), ("(i //", "(zz //"), ("*i]", "*zz]"), ("%x", "%aa"), ("%v", "%u9"),
                     ("%row", "%b"), ("%acc", "%q.r"), ("%at", "%a0"), (", at]", ", a0]"), ("S", "A"), ("all of/it", "k")):
        text = text.replace(old, new)
    return text


def test_keys_do_not_depend_on_names() -> None:
    key = kernel_key(parse_kernel(EVERYTHING))
    other = parse_kernel(renamed(EVERYTHING))
    verify_kernel(other)
    assert kernel_key(other) == key
    a = parse_kernel("kernel @a[M, N](%x: in f32[N, M], %y: out f32[M]) { for %i in 0..M { %y[i] = load %x[3*i + N] } }")
    b = parse_kernel("kernel @b[Z, A](%p: in f32[A, Z], %q: out f32[Z]) { for %j in 0..Z { %q[j] = load %p[A + 3*j] } }")
    assert kernel_key(a) == kernel_key(b)


@pytest.mark.parametrize(("before", "after"), [
    ("B: 1..64", "B: 1..65"), ("all of/it", "none of it"), ("f32 2.5", "f32 2.25"), ("max= %v", "min= %v"), ("vector(8)", "vector(4)"),
    ("[i, k]", "[i, k + 1]"), ("%row: f32[8*S] local", "%row: f32[8*S + 1] local"), ("-8, ", "-1, "), ('"assert"', '"other"'),
    ("[8*S*i] =", "[8*B*i] ="), ("f32 nan", "f32 0.0"), ("inout i64", "out i64"),
])
def test_keys_depend_on_everything_else(before: str, after: str) -> None:
    assert before in EVERYTHING
    changed = parse_kernel(EVERYTHING.replace(before, after))
    only_the_name = before == "all of/it"
    assert (kernel_key(changed) == kernel_key(parse_kernel(EVERYTHING))) == only_the_name


def test_swapped_variables_give_another_key() -> None:
    text = "kernel @k(%y: out f32[4, 4]) { for %i in 0..4 { for %j in 0..4 { %y[i, j] = f32 0.0 } } }"
    assert kernel_key(parse_kernel(text)) != kernel_key(parse_kernel(text.replace("[i, j] =", "[j, i] =")))
    # a name that is bound twice, in blocks one after the other
    twice = ("kernel @k(%y: out f32[4, 4]) { for %i in 0..4 { for %a in 0..4 { %y[i, a] = f32 0.0 } "
             "for %B in 0..4 { %y[B, i] = f32 0.0 } } }")
    assert kernel_key(parse_kernel(twice)) == kernel_key(parse_kernel(twice.replace("%B", "%a").replace("[B", "[a")))


def test_keys_are_fast() -> None:
    kernel = parse_kernel(EVERYTHING)
    best = min(_seconds(kernel) for _ in range(20))
    assert best < 0.01  # about 0.3 ms on an idle core


def _seconds(kernel: Kernel) -> float:
    start = time.perf_counter()
    kernel_key(kernel)
    return time.perf_counter() - start
