"""The verifier of the loop level rejects each kind of malformed kernel and program; what bounds prove of indices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tilewright.ir.dims import Symbol, bounds, evaluate, parse_dim, symbol
from tilewright.ir.errors import VerifyError
from tilewright.ir.graph import Node
from tilewright.ir.loop import Alloc, Buffer, Check, For, If, IndexValue, Kernel, Let, Literal, Load, Local, Stmt, Store, While
from tilewright.ir.loop_parser import parse_kernel, parse_program
from tilewright.ir.loop_proofs import Known, prove_nonnegative, unproved_indices
from tilewright.ir.loop_verify import verify_kernel, verify_program
from tilewright.ir.ops.compute import Cast, Elementwise, Reduce
from tilewright.ir.types import BOOL, F32, I32, INDEX, TensorType


def node(op: object, *inputs: Node, dtype: object = F32) -> Node:
    return Node(op, inputs, TensorType(dtype, ()))  # type: ignore[arg-type]


X, Y = Buffer("x", F32, (8,), "in"), Buffer("y", F32, (8,), "out")
ONE, TRUE, THREE = node(Literal(1.0, F32)), node(Literal(True, BOOL), dtype=BOOL), node(Literal(3, INDEX), dtype=INDEX)
EIGHT = Symbol("i", 0, 7)
AT_I = symbol("i", 0, 7)


def kernel(*body: Stmt, buffers: tuple[Buffer, ...] = (X, Y), symbols: tuple[Symbol, ...] = ()) -> Kernel:
    return Kernel("k", buffers, symbols, tuple(body))


def loop(*body: Stmt, kind: str = "serial", lanes: int = 0, extent: object = 8, variable: Symbol = EIGHT) -> For:
    return For(variable, extent, kind, tuple(body), lanes)  # type: ignore[arg-type]


STORE = Store("y", (AT_I,), node(Load("x", (AT_I,), F32)))
ALLOC = Buffer("t", F32, (8,), "register")


def test_a_good_kernel_passes() -> None:
    verify_kernel(kernel(loop(STORE, kind="vector", lanes=8)))


@pytest.mark.parametrize(("bad", "words"), [
    (kernel(buffers=(X, X)), "buffer name 'x' is declared twice"),
    (kernel(buffers=(replace(X, name=""),)), "is empty"),
    (kernel(buffers=(replace(X, space="local"),)), "access 'local', expected in, out, inout"),
    (kernel(buffers=(replace(X, dtype=INDEX),)), "dtype index"),
    (kernel(buffers=(replace(X, shape=(-1,)),)), "negative size -1"),
    (kernel(buffers=(replace(X, shape=(symbol("N"),)),)), "size N names N, which is not declared"),
    (kernel(buffers=(replace(X, shape=(symbol("N"),)),), symbols=(Symbol("N", 1),)), "takes N, declared is N: 1.."),
    (kernel(symbols=(Symbol("N"), Symbol("N"))), "symbol N hides a symbol"),
    (kernel(STORE), "size i names i, which is not declared"),
    (kernel(loop(loop(STORE))), "loop variable i hides a loop variable"),
    (kernel(loop(STORE, kind="simd")), "loop i is 'simd', expected one of serial"),
    (kernel(loop(loop(STORE, kind="parallel"), variable=Symbol("o", 0, 7))), "parallel loop i stands inside another statement"),
    (kernel(If(TRUE, (loop(STORE, kind="parallel"),))), "parallel loop i stands inside another statement"),
    (kernel(loop(loop(STORE, kind="vector", lanes=8), kind="vector", lanes=8, variable=Symbol("o", 0, 7))),
     "vector loop i stands inside the vector loop o"),
    (kernel(loop(STORE, kind="vector", lanes=0)), "has 0 lanes, expected a power of two"),
    (kernel(loop(STORE, kind="vector", lanes=12)), "has 12 lanes, expected a power of two"),
    (kernel(loop(STORE, lanes=4)), "serial loop i has 4 lanes, expected none"),
    (kernel(loop(STORE, kind="unrolled", extent=symbol("N", 0, 8)), symbols=(Symbol("N", 0, 8),)),
     "unrolled loop i has the extent N"),
    (kernel(loop(STORE, extent=9)), "runs to at least 8, but is declared i: 0..7"),
    (kernel(loop(STORE, extent=True)), "True of type bool is no size"),
    (kernel(loop(loop(variable=Symbol("j", 0, 6), extent=AT_I), kind="vector", lanes=8)), "extent i of loop j depends on the variable i"),
    (kernel(loop(If(node(Elementwise("lt"), node(IndexValue(AT_I), dtype=INDEX), THREE, dtype=BOOL), ()), kind="vector", lanes=8)),
     "condition of if depends on the variable i"),
    (kernel(loop(Let("v", node(Load("x", (AT_I,), F32))),
                 While(node(Elementwise("gt"), node(Local("v", F32)), ONE, dtype=BOOL), ()), kind="vector", lanes=8)),
     "condition of while depends on the variable i"),
    (kernel(If(ONE, ())), "condition of if is f32, expected bool"),
    (kernel(Store("x", (0,), ONE)), "%x is an input and cannot be stored to"),
    (kernel(Store("z", (0,), ONE)), "buffer %z is not declared here; declared are x, y"),
    (kernel(Store("y", (0, 0), ONE)), "index of %y has 2 sizes, expected 1"),
    (kernel(Store("y", (0,), THREE)), "store of index to %y, expected f32"),
    (kernel(Store("y", (0,), ONE, "sub")), "store combines by 'sub', expected one of add"),
    (kernel(Store("y", (0,), ONE, "and")), "and: needs an integer or bool, found f32"),
    (kernel(Store("y", (0,), node(Load("x", (0,), I32), dtype=I32))), "load of i32 from %x, expected f32"),
    (kernel(Store("y", (0,), node(Local("v", F32)))), "%v is not bound here"),
    (kernel(Let("v", ONE), Store("y", (0,), node(Local("v", I32), dtype=I32))), "%v is taken as i32, but is f32"),
    (kernel(loop(Store("y", (0,), node(Local("i", F32))))), "%i is no let here"),
    (kernel(loop(Let("v", ONE)), Store("y", (0,), node(Local("v", F32)))), "%v is not bound here"),
    (kernel(Let("v", ONE), Let("v", ONE)), "let v hides a let"),
    (kernel(Let("v", ONE, Symbol("v"))), "let %v of f32 has the symbol v"),
    (kernel(Let("v", THREE, Symbol("w"))), "has the symbol w"),
    (kernel(Store("y", (0,), node(Literal(1, BOOL), dtype=BOOL))), "literal 1 is no value of bool"),
    (kernel(Store("y", (0,), node(Literal(2**31, I32), dtype=I32))), "is no value of i32"),
    (kernel(Store("y", (0,), node(Literal(True, F32)))), "literal True is no value of f32"),
    (kernel(Store("y", (0,), node(Elementwise("add"), ONE, THREE))), "dtypes differ: f32 vs index"),
    (kernel(Store("y", (0,), node(Elementwise("add"), ONE))), "takes 2 operands, found 1"),
    (kernel(Store("y", (0,), node(Elementwise("frob"), ONE))), "unknown scalar function 'frob'"),
    (kernel(Store("y", (0,), node(Cast(I32), ONE))), r"cast has the type f32\[\], expected i32\[\]"),
    (kernel(Store("y", (0,), node(Reduce("sum", (0,)), ONE))), "reduce is no part of a kernel's expressions"),
    (kernel(Alloc(replace(ALLOC, space="heap"))), "alloc of %t in 'heap', expected register or local or shared or fragment"),
    (kernel(Alloc(replace(ALLOC, space="shared"))), "shared buffer %t is allocated in no block, expected a block loop"),
    (kernel(Alloc(replace(ALLOC, shape=(symbol("N"),))), symbols=(Symbol("N"),)), "register buffer %t has the size N"),
    (kernel(Alloc(ALLOC), loop(Store("t", (AT_I,), ONE))), "register buffer %t is indexed by i"),
    (kernel(Check(ONE, -1, "m", THREE, THREE)), "condition of check is f32"),
    (kernel(Check(TRUE, 0, "m", THREE, THREE)), "check has the status 0, expected a negative one"),
    (kernel(Check(TRUE, -1, "m", ONE, THREE)), "check reports found of dtype f32, expected an integer"),
], ids=lambda value: value.replace(" ", "_")[:40] if isinstance(value, str) else "")
def test_malformed_kernels(bad: Kernel, words: str) -> None:
    with pytest.raises(VerifyError, match=words) as caught:
        verify_kernel(bad)
    assert caught.value.message.startswith("kernel k: ")


def test_deep_nests_are_refused() -> None:
    body: tuple[Stmt, ...] = ()
    for _ in range(70):
        body = (If(TRUE, body),)
    with pytest.raises(VerifyError, match="nest deeper than 64"):
        verify_kernel(kernel(*body))


@pytest.mark.parametrize(("first", "second", "words"), [
    ("for %i in 0..4 { %t[i] = f32 0.0 %y[i] = f32 0.0 }", "for %j in 0..4 parallel { %y[j] = load %t[j] }", "only the first thread"),
    ("for %i in 0..4 parallel { %t[i] = f32 0.0 }", "for %j in 0..4 { %y[j] = load %t[j] }", "each thread has stored only its part"),
    ("for %i in 0..4 { %t[i] = f32 0.0 }", "for %j in 0..4 parallel { %y[j] = load %t[j] }", ""),
])
def test_what_threads_miss(first: str, second: str, words: str) -> None:
    built = parse_kernel(f"kernel @k(%y: out f32[4]) {{ alloc %t: f32[4] local {first} {second} }}")
    if not words:
        verify_kernel(built)
        return
    with pytest.raises(VerifyError, match=words):
        verify_kernel(built)


# --- what bounds prove -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "count"), [
    ("for %i in 0..N { %y[i] = f32 0.0 }", 0),
    ("for %i in 0..N { %y[N - 1 - i] = f32 0.0 }", 0),
    ("for %i in 0..N { %y[i + 1] = f32 0.0 }", 1),
    ("for %i in 0..N { if lt(index(i + 1), index(N)) { %y[i + 1] = f32 0.0 } }", 0),
    ("for %t in 0..(N + 1) // 2 { if le(index(2*t + 2), index(N)) { for %r in 0..2 { for %k in 0..7 { "
     "%w[14*t + 7*r + k] = f32 0.0 } } } }", 0),
    ("for %i in 0..N // 4 { for %j in 0..4 { %y[4*i + j] = f32 0.0 } }", 0),
    ("for %i in 0..(N + 3) // 4 { for %j in 0..4 { %y[4*i + j] = f32 0.0 } }", 1),
    ("for %i in 0..(N + 3) // 4 { for %j in 0..min(4, N - 4*i) { %y[4*i + j] = f32 0.0 } }", 0),
    ("for %i in 0..N { for %j in 0..M { %z[i, j] = f32 0.0 %z[M*i + j] = f32 0.0 } }", 0),
    ("for %i in 0..N*M { %z[i // M, i % M] = f32 0.0 }", 1),  # M may be 0: then nothing runs, which bounds do not say
    ("for %i in 0..N { %y[min(i + 5, N - 1)] = f32 0.0 }", 0),
    ("let %a = cast(load %y[0], index) %y[0] = f32 0.0", 2),
    ("let %a: 0.. = cast(load %q[0], index) check lt(%a, index(N)), -1, \"m\", %a, index(N) %y[a] = f32 0.0", 0),
    ("let %a: 0.. = cast(load %q[0], index) %y[a] = f32 0.0", 1),
])
def test_unproved_indices(body: str, count: int) -> None:
    built = parse_kernel(f"kernel @k[N, M](%y: out f32[N], %z: out f32[N, M], %q: in i64[1], %w: out f32[7*N]) {{ {body} }}")
    verify_kernel(built)
    found = unproved_indices(built)
    assert len(found) == count, [str(f) for f in found]
    assert all("is not shown to lie in 0.." in str(f) for f in found)


SIZES = ["i", "j", "N", "4*i + j", "N - 1 - i", "N - 4*i - j", "min(N, 4*i)", "i // 3", "i % 5", "N - 5*(N // 5)", "j*N + i",
         "i - j", "min(i, j) - i", "N*N - i*j", "(N + 3) // 4 - i", "3 - j", "min(4, N - i) - j - 1"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(["+", "-"]), st.integers(-2, 2), st.integers(0, 9))
def test_proofs_are_sound(first: str, second: str, sign: str, constant: int, n: int) -> None:
    """What is proved of random sizes holds at every point."""
    names = {"N": symbol("N"), "i": symbol("i"), "j": symbol("j", 0, 3)}
    size = parse_dim(f"({first}) {sign} ({second}) + {constant}", names)
    inner = parse_dim("min(4, N - i)", names)
    known = Known(((Symbol("i"), names["N"]), (Symbol("j", 0, 3), inner)), (parse_dim("N - 2 - i", names),))
    if not prove_nonnegative(size, known):
        return
    for i in range(n):
        for j in range(min(4, n - i)):
            if n - 2 - i >= 0:
                assert evaluate(size, {"N": n, "i": i, "j": j}) >= 0, (size, n, i, j)
    assert bounds(size)[1] >= 0


# --- programs --------------------------------------------------------------------------------------------------------

PROGRAM = """
kernel @copy[N: 1..100](%x: in f32[N], %y: out f32[N]) { for %i in 0..N { %y[i] = load %x[i] } }
program @main[B: 1..9](%x: f32[B]) -> (%y: f32[B]) {
  constants 128
  workspace 4*B
  constant 0: f32[1] [1.0]
  constant 64: f32[1] [2.0]
  launch @copy[B](input 0, workspace 0)
  repeat %t in 0..B { launch @copy[1](workspace 4*t, output 0 at 4*t) }
}
"""


def test_a_good_program_passes() -> None:
    verify_program(parse_program(PROGRAM))


@pytest.mark.parametrize(("before", "after", "words"), [
    ("(input 0, workspace 0)", "(input 0)", "launch copy: 1 places for 2 buffers"),
    ("@copy[B]", "@copy", "launch copy: 0 sizes for 1 symbols"),
    ("@copy[B]", "@copy[101]", "size 101 is outside N: 1..100"),
    ("(input 0, workspace 0)", "(input 1, workspace 0)", "input 1 does not exist; there are 1"),
    ("(input 0, workspace 0)", "(input 0, input 0)", "is stored to, but lies in input 0"),
    ("(input 0, workspace 0)", "(input 0, constant 0)", "is stored to, but lies in constant 0"),
    ("output 0 at 4*t", "output 0 at 4*t + 1", "lies at 4[*]t [+] 1, expected a multiple of 4"),
    ("(input 0, workspace 0)", "(input 0, workspace 40)", "takes 4[*]B bytes from workspace 40 on, which has 4[*]B"),
    ("(input 0, workspace 0)", "(constant 64, workspace 0) launch @copy[99](constant 0, workspace 0)", "which has"),
    ("constant 64", "constant 32", "constant at 32: expected a multiple of 64"),
    ("constant 64", "constant 0", "constant at 0 begins before the one before it ends"),
    ("constants 128", "constants 64", "constants end at 68, but the segment has 64 bytes"),
    ("[B: 1..9]", "[B: 1..9, C]", "symbol C is no plain size of an input"),
    ("%t in", "%B in", "declared twice|hides a symbol"),
])
def test_malformed_programs(before: str, after: str, words: str) -> None:
    assert before in PROGRAM
    with pytest.raises(Exception, match=words):
        verify_program(parse_program(PROGRAM.replace(before, after)))


def test_programs_that_text_cannot_say() -> None:
    program = parse_program(PROGRAM)
    with pytest.raises(VerifyError, match="input names are not distinct"):
        verify_program(replace(program, inputs=program.inputs * 2))
    with pytest.raises(VerifyError, match=r"workspace: size C takes C, which is not declared"):
        verify_program(replace(program, workspace_bytes=symbol("C")))
    launch = program.steps[0]
    twin = replace(launch, kernel=replace(launch.kernel))  # type: ignore[union-attr]
    with pytest.raises(VerifyError, match="2 different kernels are called copy"):
        verify_program(replace(program, steps=(*program.steps, twin)))
    place = replace(launch.places[1], space="heap")  # type: ignore[union-attr]
    with pytest.raises(VerifyError, match="'heap' is no space"):
        verify_program(replace(program, steps=(replace(launch, places=(launch.places[0], place)),)))  # type: ignore[union-attr]
