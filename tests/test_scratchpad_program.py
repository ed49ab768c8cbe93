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
    ("  fetch input 0 to 0 bytes 64\n", "", "%x reads 0 to 64, which are no part of one value"),
    ("fetch workspace 64", "fetch workspace 0", "64 bytes at workspace 0 are fetched, but were not spilled there"),
    ("fetch workspace 64 to 0 bytes 64", "fetch workspace 64 to 0 bytes 32", "32 bytes at workspace 64 are fetched, but were not spilled"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to workspace 64 bytes 32", "32 bytes at 64 are spilled, but found 64"),
    ("spill 64 to workspace 64 bytes 64", "spill 128 to workspace 64 bytes 64", "64 bytes at 128 are spilled, but nothing is there"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to input 0 bytes 64", "is stored to, but lies in input 0"),
    ("spill 64 to workspace 64 bytes 64", "spill 64 to scratchpad 64 bytes 64", "to an output or to the workspace, found scratchpad"),
    ("  spill 64 to output 0 bytes 64\n", "", "at the end: output c was not spilled"),
    ("spill 64 to output 0 bytes 64", "spill 64 to workspace 32 bytes 64", "overlaps what was spilled to workspace 64"),
    ("launch @add(scratchpad 128, scratchpad 0, scratchpad 64)", "launch @add(scratchpad 128, scratchpad 0, scratchpad 0)",
     "stores to 0 to 64, which hold a value that is not for a launch to change"),
    ("launch @double(scratchpad 0, scratchpad 64)", "launch @double(input 0, scratchpad 64)", "lies in input 0, which kernels do not see"),
    ("scratchpad 192 alignment 64", "scratchpad 192 alignment 48", "found an alignment of 48, expected a power of two"),
    ("scratchpad 192 alignment 64\n  constant", "constant", "there is no scratchpad|no space|has 0"),
    ("  spill 64 to output", "  branch constant 0 {\n  }\n  spill 64 to output", "has launches and transfers alone"),
    ("fetch input 1 to 0 bytes 64", "fetch input 1 to 0 bytes 68", "which has 64"),
])
def test_verifier(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(VerifyError, match=words):
        verify_program(parse_program(TEXT.replace(old, new)))


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
