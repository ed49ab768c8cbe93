"""Several targets for one program: a list of targets in one text, and which of the compiled variants is the best.

`cpu:x86-64,cpu:x86-64-v3` compiles a program once for each. A machine runs the best variant that it can; saved together they
are one library (`saving.py`), which chooses where it is loaded (`csrc/run.cpp`).

Guarantees: variants that could never be chosen, or that could not share a library, are refused before anything is compiled. In
the order of `best_first`, a variant that needs all that another one needs, and more, comes before that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from .ir.errors import ArgumentError, CompileError

SEPARATOR = ","
HOST_NAMES = ("cpu", "cpu:native", "cpu:host")


class Code(Struct, frozen=True, eq=False):
    """A program compiled for one target. `constants`: the segment (buffer) or None."""

    object_code: bytes
    constants: Any
    metadata: dict[str, Any]


def split_targets(text: str) -> tuple[str, ...]:
    """The targets of a list; most often it is one."""
    given: object = text
    if not isinstance(given, str):
        raise ArgumentError(f"target: found a {type(given).__name__}, expected text such as 'cpu' or 'cpu:x86-64,cpu:x86-64-v3'")
    if SEPARATOR not in text:
        return (text,)
    targets = tuple(part.strip() for part in text.split(SEPARATOR))
    if not all(targets):
        raise CompileError(f"target: found nothing between two commas in {text!r}", hint="cpu:x86-64,cpu:x86-64-v3")
    return targets


def check_targets(targets: Sequence[str], resolve: Callable[[str], str]) -> None:
    """Refuses targets that are the same, or of different architectures. `resolve` gives a target as canonical text."""
    known: dict[tuple[str, ...], str] = {}
    architectures: dict[str, str] = {}
    for target in targets:
        triple, features = _parts(resolve(target))
        if features in known:
            same = f"{target} twice" if known[features] == target else f"{known[features]} and {target}, which need the same features"
            raise CompileError(f"target: found {same}: the second one would never be used", hint="leave one of them out")
        known[features] = target
        architectures.setdefault(triple.partition("-")[0], target)
    if len(architectures) > 1:
        (one, first), (other, second) = list(architectures.items())[:2]
        raise CompileError(f"target: found {first} ({one}) and {second} ({other}), expected targets of one architecture",
                           hint="compile for each architecture on its own")


def _parts(canonical: str) -> tuple[str, tuple[str, ...]]:
    """(triple, features) of a target's canonical text: where it runs, triple, CPU, +features, caches."""
    _, triple, _, *rest = canonical.split(" ")
    return triple, tuple(word for word in rest if word.startswith("+"))


def labelled(code: Code, target: str) -> Code:
    """The variant under the name that was given for its target. What this machine is called elsewhere is its CPU's name."""
    host = next((name for name in reversed(HOST_NAMES) if target == name or target.startswith((name + "+", name + "-"))), None)
    label = target if host is None else code.metadata["target"] + target[len(host):]
    return Code(code.object_code, code.constants, {**code.metadata, "target": label})


def best_first(codes: Sequence[Code]) -> tuple[Code, ...]:
    """Wider vectors first, then more features."""
    return tuple(sorted(codes, key=lambda code: (-code.metadata["vector_bits"], -len(code.metadata["features"]))))
