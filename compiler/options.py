"""Options of a compilation, and the only place where the environment is read.

Knobs (all optional): TILEWRIGHT_DEBUG=0..4 (log level to stderr), TILEWRIGHT_IR_DUMP=dir (every stage as text),
TILEWRIGHT_VERIFY=0..2 (0: none, 1: verify types after each pass, 2: also evaluate before and after each pass),
TILEWRIGHT_BACKEND=name, TILEWRIGHT_CACHE_DIR=dir (empty: no cache on disk).
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from .ir.errors import CompileError

MOST_SECONDS = 7 * 24 * 3600
PRECISIONS = ("default", "plain", "strict")
MATMUL_PRECISIONS = ("float32", "tf32")


class Options(Struct, frozen=True):
    """How to compile. Frozen; everything that changes the code is part of the cache key.

    threads     threads of a call; 0: as many as the process may use. Not part of the code.
    precision   'plain' computes every contraction as the sum that it is, with its weights as they are, and no convolution by
                Winograd's algorithm where that is faster (its error has a bound of its own, `ir/winograd.py`); 'strict' allows
                only exact rewrites and reordered sums of contractions and reductions
    matmul_precision  what the operands of products and convolutions of float32 may be rounded to, in any `precision`: 'tf32' allows
                units that multiply 10 bits of fraction (to nearest, ties away from zero) and add in float32. A target without such
                units, as every CPU, multiplies float32.
    cache       whether compiled code is kept on disk
    cache_bytes how large the cache may become: what was used longest ago is removed. Not part of the code.
    tune        seconds to measure register tiles for; the model's choice stays where none is faster by 3 %. What was measured
                before is not measured again.
    tune_record the file that keeps what was measured; alone, without `tune`, it is only read. Without it the cache keeps it.
                What the record says is part of the code.
    max_memory  bytes that the values between kernels may take in a call, 0: any. What cannot keep to it is refused, naming what
                proves that.
    """

    threads: int = 0
    precision: str = "default"
    matmul_precision: str = "float32"
    cache: bool = True
    cache_bytes: int = 4 << 30
    tune: float = 0.0
    tune_record: str | os.PathLike[str] = ""
    max_memory: int = 0

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("matmul_precision", MATMUL_PRECISIONS)):
            if getattr(self, name) not in known:
                raise CompileError(f"options: {name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name in ("threads", "cache_bytes", "max_memory"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise CompileError(f"options: {name} must be 0 or more, found {value!r}")

        seconds: object = self.tune
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= MOST_SECONDS:
            raise CompileError(f"options: tune must be seconds from 0 to {MOST_SECONDS}, found {seconds!r}")

    def code_key(self) -> str:
        """The options that change generated code, as canonical text."""
        products = f" matmul_precision={self.matmul_precision}" if self.matmul_precision != MATMUL_PRECISIONS[0] else ""
        return f"precision={self.precision}{products}" + (f" max_memory={self.max_memory}" if self.max_memory else "")


class Environment(Struct, frozen=True):
    """The knobs, read once a compilation."""

    debug: int
    dump: Path | None
    verify: int
    backend: str
    cache_directory: Path | None


def _level(name: str, most: int) -> int:
    text = os.environ.get(name, "0") or "0"
    if not text.isdigit() or int(text) > most:
        raise CompileError(f"{name}={text!r} must be a number from 0 to {most}")
    return int(text)


def read_environment() -> Environment:
    """The knobs as they are now. CompileError where a value is not understood."""
    dump = os.environ.get("TILEWRIGHT_IR_DUMP", "")
    cache = os.environ.get("TILEWRIGHT_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(home) / "tilewright" if cache is None else Path(cache) if cache else None
    return Environment(_level("TILEWRIGHT_DEBUG", 4), Path(dump) if dump else None, _level("TILEWRIGHT_VERIFY", 2),
                       os.environ.get("TILEWRIGHT_BACKEND", "") or "llvm", directory)


def option_names() -> tuple[str, ...]:
    return Options.__struct_fields__
