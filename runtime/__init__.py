"""Runs compiled models: loading, buffers, threads, timing, artifacts on disk. Knows buffers and launches, never an op.

Imports NumPy, the standard library, `tilewright.ir.errors` and the native extension; never the compiler or LLVM.
"""
