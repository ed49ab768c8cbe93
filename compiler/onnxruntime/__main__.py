"""`python -m tilewright.onnxruntime program.py ...`: runs a program written for onnxruntime on Tilewright."""

from __future__ import annotations

import sys

from .replacing import run_program

if __name__ == "__main__":
    run_program(sys.argv[1:])
