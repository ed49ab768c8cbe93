"""Fuzzing of programs and passes."""
