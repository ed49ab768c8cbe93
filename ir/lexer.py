"""Text of the IR as tokens with positions, and errors that show the place.

Serves the parsers of both levels. `#` begins a comment unless hexadecimal digits follow at once (a digest); `//` begins
one at the start of a line and is floor division elsewhere. Numbers carry no sign; names follow `%` or `@`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct

from .errors import ParseError

MAX_NUMBER = 400
_TOKEN = re.compile(r"""
    (?P<space>   [ \t\r]+ )
  | (?P<newline> \n [ \t\r]* (?: //[^\n]* )? )
  | (?P<digest>  \#[0-9a-f]{16,64}\b )
  | (?P<comment> \#[^\n]* )
  | (?P<value>   % (?: "(?:[^"\\\n]|\\.)*" | [\w.]+ ) )
  | (?P<name>    @ (?: "(?:[^"\\\n]|\\.)*" | [\w.]+ ) )
  | (?P<string>  "(?:[^"\\\n]|\\.)*" )
  | (?P<hex>     0x[0-9a-f]+\b )
  | (?P<float>   \d+\.\d+(?:e[+-]?\d+)? | \d+e[+-]?\d+ )
  | (?P<int>     \d+ )
  | (?P<word>    [^\W\d]\w* )
  | (?P<keyword> \\[^\W\d]\w* )
  | (?P<sign>    -> | // | \.\. | \+= | [-+*%=:,(){}\[\]<>!&|^~] )
""", re.VERBOSE)
_SKIPPED = frozenset({"space", "newline", "comment"})


class Token(Struct, frozen=True):
    """`kind` is a group of the pattern or 'end'; `text` is as written, without the mark of names and quotes."""

    kind: str
    text: str
    start: int
    quoted: bool = False


class Lexer:
    """A text and the place in it. `take` and `accept` move on; `fail` reports the present token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines = [0, *(m.end() for m in re.finditer("\n", text))]
        self.tokens = self._scan()
        self.position = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    @property
    def following(self) -> Token:
        return self.tokens[min(self.position + 1, len(self.tokens) - 1)]

    def at(self, text: str) -> bool:
        """Whether the present token is this sign or bare word."""
        return self.token.text == text and self.token.kind in ("sign", "word")

    def accept(self, text: str) -> bool:
        """Moves past this sign or word where it is present."""
        if self.at(text):
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        if not self.at(text):
            self.fail(f"expected {text!r}, found {self.describe()}")
        return self.next()

    def take(self, kind: str, what: str) -> str:
        """The text of the present token, which must be of this kind."""
        if self.token.kind != kind:
            self.fail(f"expected {what}, found {self.describe()}")
        return self.next().text

    def next(self) -> Token:
        token = self.token
        if token.kind != "end":
            self.position += 1
        return token

    def items(self, opening: str, closing: str) -> Iterator[Token]:
        """The first token of each item of a list with commas between these signs; whoever iterates reads the item."""
        self.expect(opening)
        while not self.at(closing):
            yield self.token
            if not self.accept(","):
                break
        self.expect(closing)

    def integer(self, what: str) -> int:
        return int(self.take("int", what))

    def describe(self) -> str:
        return "the end of the text" if self.token.kind == "end" else repr(self.token.text[:40])

    def place(self, start: int) -> tuple[int, int]:
        """Line and column, counted from 1."""
        line = bisect_right(self._lines, start)
        return line, start - self._lines[line - 1] + 1

    def fail(self, message: str, at: Token | int | None = None, notes: tuple[str, ...] = (), hint: str = "") -> None:
        """Raises ParseError with line, column, the line itself and a caret."""
        start = at.start if isinstance(at, Token) else self.token.start if at is None else at
        line, column = self.place(start)
        whole = self.text[start - column + 1:].split("\n", 1)[0].replace("\t", " ").rstrip("\r")
        first = max(0, column - 61)
        shown = "".join(c if c.isprintable() else "?" for c in whole[first:first + 120])
        marker = " " * (column - 1 - first) + "^"
        raise ParseError(f"line {line}:{column}: {message}", line=line, column=column, notes=(shown, marker, *notes), hint=hint)

    def _scan(self) -> list[Token]:
        tokens: list[Token] = []
        position = 0
        if self.text.lstrip(" \t").startswith("//"):
            position = (self.text + "\n").index("\n")
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                self.fail(f"{self.text[position]!r} begins no token", position)
            assert match is not None and match.lastgroup is not None
            kind = match.lastgroup
            if kind not in _SKIPPED:
                raw = match.group()
                tokens.append(Token(kind, self._content(kind, raw, position), position, raw.endswith('"')))
            position = match.end()
        tokens.append(Token("end", "", len(self.text)))
        return tokens

    def _content(self, kind: str, text: str, start: int) -> str:
        if kind in ("int", "float", "hex") and len(text) > MAX_NUMBER:
            self.fail(f"a number of {len(text)} digits is not read", start)
        if kind in ("value", "name", "digest", "keyword"):
            text = text[1:]
        if text.startswith('"'):
            try:
                text = str(json.loads(text))
                text.encode()
            except ValueError:
                self.fail("the quoted name has an escape that JSON does not know or half of a surrogate pair", start)
        return text
