"""Names and the outside of a CUDA C++ function: identifiers for names of the loop IR, its comment, and its head on lines of fair length."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct, field

from tilewright.ir.loop import Kernel
from tilewright.ir.loop_text import format_kernel

KEYWORDS = frozenset((
    "alignas", "alignof", "and", "asm", "auto", "bool", "break", "case", "catch", "char", "class", "const", "constexpr", "continue",
    "decltype", "default", "delete", "do", "double", "else", "enum", "explicit", "export", "extern", "false", "float", "for", "friend",
    "goto", "if", "inline", "int", "long", "mutable", "namespace", "new", "not", "operator", "or", "private", "protected", "public",
    "register", "return", "short", "signed", "sizeof", "static", "struct", "switch", "template", "this", "throw", "true", "try",
    "typedef", "typename", "union", "unsigned", "using", "virtual", "void", "volatile", "while", "xor", "blockIdx", "threadIdx",
    "blockDim", "gridDim", "failure", "exp", "log", "sin", "cos", "tan", "pow", "abs", "round", "floor", "ceil", "max", "min", "erf",
    "sqrt"))
SHOWN_LINES = 24         # of the loop IR in a function's comment
WIDEST = 120


class Names(Struct):
    """An identifier for each name of a kernel: the name itself where C++ and the header leave it free. `reserved`: others that are not."""

    reserved: frozenset[str]
    known: dict[tuple[str, str], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def spelled(self, kind: str, name: str) -> str:
        """The identifier of a name; kinds have names of their own."""
        key = (kind, name)
        if key not in self.known:
            stem = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
            free = not (stem[0].isdigit() or stem in KEYWORDS or stem in self.reserved or stem.startswith("tw_"))
            stem = stem if free else f"{kind[0]}_{stem}"
            chosen, number = stem, 2
            while chosen in self.taken:
                chosen, number = f"{stem}_{number}", number + 1
            self.taken.add(chosen)
            self.known[key] = chosen
        return self.known[key]


def comment_of(kernel: Kernel) -> list[str]:
    """The loop IR that the function comes from."""
    lines = format_kernel(kernel, locations=True).rstrip("\n").split("\n")
    shown = lines if len(lines) <= SHOWN_LINES else [*lines[:SHOWN_LINES], f"... {len(lines) - SHOWN_LINES} more lines"]
    return [f"// {line}".replace("\\", "/") for line in shown]


def wrapped(head: str, parameters: Sequence[str]) -> list[str]:
    line = f"{head}{', '.join(parameters)}) {{"
    if len(line) <= WIDEST:
        return [line]
    lines, indent = [head], "    "
    for position, parameter in enumerate(parameters):
        text = parameter + (") {" if position == len(parameters) - 1 else ",")
        if position == 0 or len(lines[-1]) + 1 + len(text) > WIDEST:
            lines.append(indent + text)
        else:
            lines[-1] += " " + text
    return lines


def without_single_blocks(lines: Sequence[str]) -> list[str]:
    """The lines without braces around all that another pair of braces holds. Indentation tells blocks."""
    depths = [len(line) - len(line.lstrip(" ")) for line in lines]
    opened: dict[int, int] = {}
    single: set[int] = set()  # lines of such braces
    for number, (line, depth) in enumerate(zip(lines, depths)):
        if line.strip() == "{":
            opened[depth] = number
        if line.strip() == "}" and depth in opened:
            first = opened.pop(depth)
            ends = number + 1 < len(lines) and lines[number + 1].strip().startswith("}")
            if ends and first > 0 and lines[first - 1].endswith("{") and depths[first - 1] < depth:
                single |= {first, number}
        elif line.strip().startswith("}"):
            opened.pop(depth, None)
    kept, outer = [], 0
    for number, line in enumerate(lines):
        if number not in single:
            kept.append(line[2 * outer:])
        else:
            outer += 1 if line.strip() == "{" else -1
    return kept
