"""Programs with a scratchpad as IR: text and back, what the verifier and the parser refuse, what the interpreter does."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir import loop_interp
from tilewright.ir.errors import ParseError, VerifyError
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_program
from tilewright.ir.loop_text import format_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Fetch, Free, Place, Program, Spill

# A value leaves for the workspace and returns elsewhere; a constant is fetched; 16 floats are 64 bytes.
TEXT = """\
kernel @double(%x: in f32[16], %y: out f32[16]) {
  for %i in 0..16 {
    %y[i] = mul(load %x[i], f32 2.0)
  }
}

kernel @add(%x: in f32[16], %z: in f32[16], %y: out f32[16]) {
  for %i in 0..16 {
    %y[i] = add(load %x[i], load %z[i])
  }
}

program @main(%a: f32[16], %b: f32[16]) -> (%c: f32[16]) {
  constants 64
  workspace 128
  scratchpad 192 alignment 64
  constant 0: f32[16] [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
  fetch input 0 to 0 bytes 64
  launch @double(scratchpad 0, scratchpad 64)
  free 0
  spill 64 to workspace 64 bytes 64
  free 64
  fetch input 1 to 0 bytes 64
  fetch constant 0 to 64 bytes 64
  launch @add(scratchpad 0, scratchpad 64, scratchpad 128)
  free 0
  free 64
  fetch workspace 64 to 0 bytes 64
  launch @add(scratchpad 128, scratchpad 0, scratchpad 64)
  spill 64 to output 0 bytes 64
}
"""


def test_text_and_back() -> None:
    program = parse_program(TEXT)
    verify_program(program)
    assert format_program(program) == TEXT
    assert isinstance(program, Program) and program.scratchpad is not None and program.scratchpad.bytes == 192
    assert Fetch(Place("workspace", 0, 64), 0, 64) in program.steps
    assert Spill(64, Place("output"), 64) == program.steps[-1] and Free(64) in program.steps


@pytest.mark.parametrize("threads", [1, 2])
def test_meaning(threads: int) -> None:
    a, b = np.arange(16, dtype=np.float32), np.full(16, 0.5, np.float32)
    a[3] = np.nan
    found, = run_program(parse_program(TEXT), [a, b], threads=threads)
    np.testing.assert_array_equal(found, 2 * a + b + np.arange(16, dtype=np.float32))


@pytest.mark.parametrize("old, new, words", [
    ("fetch input 1 to 0", "fetch input 1 to 32", "a value lies at 32, which is no multiple of 64"),
    ("fetch input 1 to 0", "fetch input 1 to 192", "lies at 192 to 256, outside of the 192 bytes"),
    ("fetch constant 0 to 64", "fetch constant 0 to 0", "a value at 0 to 64 overlaps the one at 0 to 64"),
    ("  free 0\n  spill", "  spill", "step 4: nothing lies at 64|overlaps the one at 0"),
    ("  free 0\n  free 64\n", "  free 0\n  free 0\n  free 64\n", "nothing lies at 0 that could be freed"),
    ("  fetch input 0 to 0 bytes 64\n", "", "%x reads 0 to 64, which are no part of one value there"),
    ("fetch workspace 64", "fetch workspace 0", "64 bytes at workspace 0 are fetched, but were not spilled there"),
    ("fetch workspace 64 to 0 bytes 64", "fetch workspace 64 to 0 bytes 32", "32 bytes at workspace 64 are fetched, but were not spilled"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to workspace 64 bytes 32", "32 bytes at 64 are spilled, but found 64"),
    ("spill 64 to workspace 64 bytes 64", "spill 128 to workspace 64 bytes 64", "64 bytes at 128 are spilled, but nothing is there"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to input 0 bytes 64", "is stored to, but lies in input 0"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to scratchpad 64 bytes 64", "to an output or to the workspace, found scratchpad"),
    ("  spill 64 to output 0 bytes 64\n", "", "at the end: output c was not spilled"),
    ("spill 64 to output 0 bytes 64", "spill 64 to workspace 32 bytes 64", "overlaps what was spilled to workspace 64"),
    ("launch @add(scratchpad 128, scratchpad 0, scratchpad 64)", "launch @double(scratchpad 128, scratchpad 0)",
     "stores to 0 to 64, which hold a value that is not for a launch to change"),
    ("launch @add(scratchpad 128, scratchpad 0, scratchpad 64)", "launch @add(scratchpad 128, scratchpad 0, scratchpad 0)",
     "%y lies at 0 to 64, which %z overlaps, and one of them is stored to"),
    ("launch @double(scratchpad 0, scratchpad 64)", "launch @double(input 0, scratchpad 64)", "lies in input 0, which kernels do not see"),
    ("scratchpad 192 alignment 64", "scratchpad 192 alignment 48", "found an alignment of 48, expected a power of two"),
    ("scratchpad 192 alignment 64\n  constant", "constant", "there is no scratchpad|no space|has 0"),
    ("  spill 64 to output", "  branch constant 0 {\n  free 0\n  }\n  spill 64 to output", "there are no transfers within control flow"),
    ("fetch input 1 to 0 bytes 64", "fetch input 1 to 0 bytes 68", "which has 64"),
])
def test_verifier(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(VerifyError, match=words):
        verify_program(parse_program(TEXT.replace(old, new)))


# A value that was fetched is replaced, spilled, and replaced again; two values of 16 floats are read as one of 32.
SHARED = """\
kernel @double_over(%y: inout f32[16]) {
  for %i in 0..16 {
    %y[i] = mul(load %y[i], f32 2.0)
  }
}

kernel @reverse(%x: in f32[32], %y: out f32[32]) {
  for %i in 0..32 {
    %y[i] = load %x[-i + 31]
  }
}

program @main(%a: f32[16], %b: f32[16]) -> (%c: f32[16], %d: f32[32]) {
  constants 0
  workspace 0
  scratchpad 256 alignment 64
  fetch input 0 to 0 bytes 64
  launch @double_over(scratchpad 0)
  spill 0 to output 0 bytes 64
  launch @double_over(scratchpad 0)
  fetch input 1 to 64 bytes 64
  launch @reverse(scratchpad 0, scratchpad 128)
  spill 128 to output 1 bytes 128
}
"""

# A value whose halves two launches store.
HALVES = """\
kernel @double(%x: in f32[8], %y: out f32[8]) {
  for %i in 0..8 {
    %y[i] = mul(load %x[i], f32 2.0)
  }
}

program @main(%a: f32[16]) -> (%b: f32[16]) {
  constants 0
  workspace 0
  scratchpad 128 alignment 64
  fetch input 0 to 0 bytes 64
  reserve 64 bytes 64
  launch @double(scratchpad 0, scratchpad 64)
  launch @double(scratchpad 32, scratchpad 96)
  spill 64 to output 0 bytes 64
}
"""


def test_a_value_that_several_launches_store() -> None:
    program = parse_program(HALVES)
    verify_program(program)
    assert format_program(program) == HALVES
    a = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(run_program(program, [a])[0], 2 * a)
    for old, new, words in (("reserve 64 bytes 64", "reserve 0 bytes 64", "overlaps the one at 0 to 64"),
                            ("reserve 64 bytes 64", "reserve 64 bytes 0", "0 bytes are reserved, expected one or more"),
                            ("  reserve 64 bytes 64\n", "", "a value lies at 96, which is no multiple of 64"),
                            ("scratchpad 32, scratchpad 96", "scratchpad 32, scratchpad 32", "overlaps")):
        with pytest.raises(VerifyError, match=words):
            verify_program(parse_program(HALVES.replace(old, new)))
    with pytest.raises(VerifyError, match="is not stored to"):  # the interpreter knows bytes
        run_program(parse_program(HALVES.replace("  launch @double(scratchpad 32, scratchpad 96)\n", "")), [a])


def test_values_that_are_replaced_and_values_side_by_side() -> None:
    program = parse_program(SHARED)
    verify_program(program)
    assert format_program(program) == SHARED
    a, b = np.arange(16, dtype=np.float32), np.full(16, 0.5, np.float32)
    c, d = run_program(program, [a, b])
    np.testing.assert_array_equal(c, 2 * a)
    np.testing.assert_array_equal(d, np.concatenate([4 * a, b])[::-1])


@pytest.mark.parametrize("old, new, words", [
    ("fetch input 1 to 64", "fetch input 1 to 192", "%x reads 0 to 128, which are no part of one value there, or of some side by side"),
    ("launch @reverse(scratchpad 0, scratchpad 128)", "launch @reverse(scratchpad 0, scratchpad 64)", "%y lies at 64 to 192, which %x overlaps"),
    ("  fetch input 0 to 0 bytes 64\n", "", "%y reads 0 to 64, which are no part of one value"),
    ("  fetch input 1 to 64 bytes 64\n  launch @reverse", "  launch @reverse", "%x reads 0 to 128, which are no part"),
])
def test_verifier_of_what_is_shared(old: str, new: str, words: str) -> None:
    assert old in SHARED
    with pytest.raises(VerifyError, match=words):
        verify_program(parse_program(SHARED.replace(old, new)))


def test_a_part_of_a_fetched_value_is_not_replaced() -> None:
    """Nor of one that was spilled: the rest of it would go on being what it was."""
    text = SHARED.replace("%a: f32[16]", "%a: f32[32]").replace("fetch input 0 to 0 bytes 64", "fetch input 0 to 0 bytes 128")
    with pytest.raises(VerifyError, match="stores to 0 to 64, which hold a value that is not for a launch to change"):
        verify_program(parse_program(text))


def test_open_sizes_are_refused() -> None:
    text = TEXT.replace("@main(%a", "@main[B](%a").replace("%b: f32[16])", "%b: f32[16], %d: f32[B])")
    with pytest.raises(VerifyError, match="a program with a scratchpad has no symbolic sizes"):
        verify_program(parse_program(text))


@pytest.mark.parametrize("old, new, words", [
    ("fetch input 0 to 0", "fetch input 0 into 0", "'to'"),
    ("spill 64 to workspace", "spill to workspace", "expected an address"),
    ("  free 64\n  fetch input", "  free\n  fetch input", "expected an address"),
    ("bytes 64\n  launch @double", "bytes many\n  launch @double", "expected a number of bytes"),
    ("scratchpad 192 alignment 64", "scratchpad 192", "'alignment'"),
    ("  free 64\n  fetch input", "  reserve 64\n  fetch input", "'bytes'"),
    ("  free 64\n  fetch input", "  reserve 64 bytes\n  fetch input", "expected a number of bytes"),
    ("fetch constant 0", "fetch heap 0", "a place is an input, output, constant, workspace or scratchpad, found 'heap'"),
])
def test_parser(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(ParseError, match=words):
        parse_program(TEXT.replace(old, new))



def test_the_interpreter_is_a_witness_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows bytes, not values: what was freed counts as never stored to."""
    monkeypatch.setattr(loop_interp, "verify_program", lambda program: None)
    text = TEXT.replace("  free 64\n  fetch workspace", "  free 64\n  free 128\n  fetch workspace")
    with pytest.raises(VerifyError, match="uninitialised|nothing has stored|never stored|not stored"):
        run_program(parse_program(text), [np.zeros(16, np.float32)] * 2)
