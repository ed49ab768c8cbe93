"""Are two things that compile to different code told apart by the key of the cache, and is one thing always the same?

For a graph and the options that it is compiled with, others are made that differ in one place:

- one field of `Options`, each with every value that `option_values` finds for it in its declaration: a new option is
  covered from the day it is declared;
- one field of one measured tile (`TunedTile`);
- one token of the graph's text (a number, an operand, a dtype, a name, a bound of a size), so that attributes, constants,
  types and declarations are covered whatever op they belong to; and one bit of one constant.

Keys may be equal only where what comes out of the passes is: lowering and code generation see that graph and the target
alone, and the target is in the key. The graph read back from its text has the same key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from msgspec.structs import fields, replace

from .. import options as declarations
from ..driver import key_of
from ..gpu.compiling import architectures_of, is_device
from ..gpu.compiling import key_of as device_key
from ..ir.caps import Caps, TunedTile
from ..ir.errors import CompileError, TilewrightError
from ..ir.graph import Constant, Graph
from ..ir.parser import parse
from ..ir.printer import constants_of, format_graph
from ..ir.types import DTYPES
from ..ir.verify import verify
from ..options import Environment, Options
from ..pipeline import run_passes
from .rebuild import chosen
from .subject import Failure

KIND, STAGE = "key", "cache"
QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)
VARIANTS, ATTEMPTS = 2, 8  # graphs that differ in a token: how many, and how many texts are tried for them
TOKEN = re.compile(r"%?\w+(?:\.\d+)?(?:e[-+]?\d+)?")
DECLARED = re.compile(r"graph @[^\n(\[]*\[([^\n\]]*)\]\(")  # the sizes that a graph's text declares
NUMBER = re.compile(r"\b\d+\b")
TILE = TunedTile(64, 64, "f32", 4, 16)


# --- options ---------------------------------------------------------------------------------------------------------


def option_values(name: str) -> list[Any]:
    """Values of an option, its default among them: those of the tuple in `options.py` that lists the default, else some of the
    default's type that the declaration accepts."""
    default = getattr(Options(), name)
    listed = [table for table in vars(declarations).values() if isinstance(table, tuple) and default in table and len(table) > 1]
    candidates: list[Any] = list(listed[0]) if listed and isinstance(default, str) else \
        [True, False] if isinstance(default, bool) else [0, 1, 2, 7, 1 << 20] if isinstance(default, int) else \
        [0.0, 0.5, 3.0] if isinstance(default, float) else ["", "a", "b"]
    return [default, *(value for value in candidates if value != default and _accepted(name, value))]


def _accepted(name: str, value: Any) -> bool:
    try:
        replace(Options(), **{name: value})
    except CompileError:
        return False
    return True


@lru_cache(maxsize=1)
def other_options() -> tuple[tuple[str, Any], ...]:
    """Every option with every value of it."""
    return tuple((field.name, value) for field in fields(Options) for value in option_values(field.name))


def key(graph: Graph, target: str, options: Options, tuned: tuple[TunedTile, ...] = ()) -> str:
    """The name of the entry that the driver would look for."""
    if is_device(target):
        return device_key(graph, architectures_of(target), options).digest
    return key_of(graph.name, graph.fingerprint, target, options, None, tuned).digest


def compiled_text(graph: Graph, options: Options, caps: Caps) -> str:
    """All that code generation is told of a graph: it and the contents of its constants after all passes."""
    after = run_passes(graph, options, caps, QUIET)[0]
    return "\n".join([format_graph(after), *sorted(f"{c.dtype} {c.array.shape} {c.array.tobytes().hex()}" if c.array.nbytes <= 4096
                                                   else c.digest for c in constants_of(after).values())])


# --- graphs ----------------------------------------------------------------------------------------------------------


def changed_texts(text: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Texts with another token, and what was changed; one in two in the first line, which declares names, sizes and inputs."""
    head, _, body = text.partition("\n")
    found = [list(TOKEN.finditer(part)) for part in (head, body)]
    operands = sorted({m.group() for tokens in found for m in tokens if m.group().startswith("%")})
    words = sorted({m.group() for m in found[1] if m.group().isalpha()})
    for _ in range(ATTEMPTS):
        where = int(rng.integers(2)) if all(found) else int(not found[0])
        if not found[where]:
            return
        token = found[where][int(rng.integers(len(found[where])))]
        new = _other_token(token.group(), operands, words, rng)
        part = (head, body)[where]
        part = part[:token.start()] + new + part[token.end():]
        yield "\n".join((part, body) if where == 0 else (head, part)), f"{token.group()} became {new}"


def _other_token(token: str, operands: list[str], words: list[str], rng: np.random.Generator) -> str:
    if token.startswith("%"):
        return operands[int(rng.integers(len(operands)))]
    if token.isdigit():
        return str((int(token) + 1, max(int(token) - 1, 0), 2 * int(token))[int(rng.integers(3))])
    if token in ("true", "false", "True", "False"):
        return {"true": "false", "false": "true", "True": "False", "False": "True"}[token]
    if token in DTYPES:
        return sorted(DTYPES)[int(rng.integers(len(DTYPES)))]
    try:
        return repr(float(np.nextafter(np.float64(token), np.inf))) if rng.random() < 0.5 else f"-{token}"
    except ValueError:
        return token + "_" if rng.random() < 0.5 or not words else words[int(rng.integers(len(words)))]


def variants(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[Graph, str]]:
    """Well-typed graphs whose text differs in one token, and graphs with one other bit in a constant."""
    constants, text = constants_of(graph), format_graph(graph)
    count = 0
    for changed, what in changed_texts(text, rng):
        try:
            other = parse(changed, constants)
            verify(other)
        except TilewrightError:
            continue
        if format_graph(other) != text:
            yield other, what
            count += 1
            if count == VARIANTS:
                break


def check_constant(constant: Constant, rng: np.random.Generator) -> None:
    """One other bit gives another digest; the same bytes elsewhere in memory give the same."""
    again = Constant(constant.array.copy(), constant.dtype)
    if again.digest != constant.digest:
        raise Failure(KIND, STAGE, f"a copy of a constant {constant.dtype}{list(constant.array.shape)} has another digest")
    if not constant.array.nbytes:
        return
    raw = constant.array.copy()
    place = int(rng.integers(raw.nbytes))
    raw.reshape(-1).view(np.uint8)[place] ^= 1 if constant.dtype.is_bool else 1 << int(rng.integers(8))
    if Constant(raw, constant.dtype).digest == constant.digest:
        raise Failure(KIND, STAGE, f"a constant {constant.dtype}{list(raw.shape)} with another byte {place} has the same digest")


# --- the check -------------------------------------------------------------------------------------------------------


def check_keys(graph: Graph, precision: str, target: str, caps: Caps, rng: np.random.Generator) -> None:
    """Holds the key of the graph against those of some others. Failure says which two are confused."""
    options = Options(precision=precision)
    own = key(graph, target, options)
    again = parse(format_graph(graph), graph)
    if key(again, target, options) != own:
        raise Failure(KIND, STAGE, "the same graph, read from its text, has another key")
    for other, what in variants(graph, rng):
        if key(other, target, options) == own:
            _must_agree(f"graphs in which {what}", (other, options, caps), (graph, options, caps))
    for constant in list(constants_of(graph).values())[:4]:
        check_constant(constant, rng)
    check_bounds(graph, options, target, caps, rng)
    check_options(graph, options, target, caps, rng)
    if not is_device(target):  # whose tiles are not measured
        check_tiles(graph, options, target, rng)


class _Noting(Options, frozen=True):
    """Options that note which of their fields somebody asks for, in this process."""

    noted: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        _Noting.noted.add(name)
        return super().__getattribute__(name)


def check_bounds(graph: Graph, options: Options, target: str, caps: Caps, rng: np.random.Generator) -> None:
    """Another bound of one of the graph's sizes is another key."""
    if not graph.symbols:
        return
    text = format_graph(graph)
    declared = DECLARED.match(text)
    numbers = [m.span() for m in NUMBER.finditer(text, *declared.span(1))] if declared else []
    if not numbers:
        return
    start, end = numbers[int(rng.integers(len(numbers)))]
    value = int(text[start:end])
    for new in (value + 1, 2 * value, max(value - 1, 0)):
        with suppress(TilewrightError):
            other = parse(f"{text[:start]}{new}{text[end:]}", graph)
            if format_graph(other) == text:
                continue
            if key(other, target, options) == key(graph, target, options):
                _must_agree(f"graphs in which a bound {value} became {new}", (other, options, caps), (graph, options, caps))
            return


def check_options(graph: Graph, options: Options, target: str, caps: Caps, rng: np.random.Generator) -> None:
    """Options that leave the key, but that passes have ever asked for, must not change what comes out: one of them, since to see it is
    to compile twice. Now and then it is noted what passes ask for, and one that nothing seems to ask for is tried too."""
    seldom = not _Noting.noted or rng.random() < 1 / 8
    if seldom:
        _note_what_is_asked_for(graph, options, caps)
    own = key(graph, target, options)
    names = {field.name for field in fields(Options) if field.name in _Noting.noted}
    if seldom:
        names.add(fields(Options)[int(rng.integers(len(fields(Options))))].name)
    others = [(name, replace(options, **{name: value})) for name, value in other_options()
              if name in names and getattr(options, name) != value]
    hidden = [(name, changed) for name, changed in others if key(graph, target, changed) == own]
    if hidden:
        name = chosen(rng, sorted({name for name, _ in hidden}))
        changed = chosen(rng, [changed for other, changed in hidden if other == name])
        _must_agree(f"options with {name}={getattr(changed, name)!r}", (graph, changed, caps), (graph, options, caps))


def _note_what_is_asked_for(graph: Graph, options: Options, caps: Caps) -> None:
    with suppress(TilewrightError):
        run_passes(graph, _Noting(**{field.name: getattr(options, field.name) for field in fields(Options)}), caps, QUIET)


def check_tiles(graph: Graph, options: Options, target: str, rng: np.random.Generator) -> None:
    """Tiles that were measured are a part of the key, in each of their fields."""
    names = [field.name for field in fields(TunedTile)]
    name = names[int(rng.integers(len(names)))]
    value = getattr(TILE, name)
    other = replace(TILE, **{name: "f64" if isinstance(value, str) else value + 1})
    known = {key(graph, target, options, tuned) for tuned in ((), (TILE,), (other,), (TILE, other))}
    if len(known) != 4:
        raise Failure(KIND, STAGE, f"tiles that differ in {name} have one key")


def _must_agree(what: str, other: tuple[Graph, Options, Caps], own: tuple[Graph, Options, Caps]) -> None:
    """Raises where what has the same key is compiled from something else. What the compiler refuses has no code to confuse."""
    try:
        texts = [compiled_text(*other), compiled_text(*own)]
    except TilewrightError:
        return
    if texts[0] != texts[1]:
        found, expected = next(((a, b) for a, b in zip(*(text.split("\n") for text in texts)) if a != b), ("other lines", ""))
        raise Failure(KIND, STAGE, f"{what} have the key of others, but give another program: {expected.strip()!r} became "
                                   f"{found.strip()!r}")
