"""Arithmetic of symbolic sizes as a subject of fuzzing: two expressions over symbols with bounds, held against Python's integers.

`ir/dims.py` brings a size into normal form and proves facts of it; both expressions are built there and computed here with
plain integers, at the ends of the symbols' bounds and at random places between. Checked: the value; bounds, divisors,
comparisons and quotients that are said to hold for all sizes; substitution in two parts; the steps of `linear_factor`;
proofs of the loop verifier that a size is not negative; and that text reads back to the same size. A binding for which
something is divided by less than one is left out: nothing is said of it.

A case as text is one line a symbol, as a graph declares it, and one line an expression.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import (
    DimLike,
    Symbol,
    bounds,
    ceildiv,
    compare,
    dim_max,
    dim_min,
    divides,
    evaluate,
    exact_quotient,
    format_dim,
    parse_dim,
    provably_at_most,
    provably_equal,
    substitute,
    symbol,
)
from ..ir.errors import CompileError, ParseError
from ..ir.loop_proofs import linear_factor, prove_nonnegative
from .subject import Failure, Refused, Verdict

STAGE = "dims"
OPERATORS = ("+", "-", "*", "//", "%", "min", "max", "ceildiv")
DIVISIONS = ("//", "%", "ceildiv")
NAMES = ("A", "B", "C")
NUMBERS = (-7, -4, -3, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
UNBOUNDED = 40       # sizes of symbols without an upper bound end here, where values are concerned
MOST_DEPTH = 4
BINDINGS = 12        # random ones, beside the ends
MOST_TERMS = 8       # of sizes that are to be proved not to be negative: each minimum in a product doubles the cases
DIVISORS = (2, 3, 4, 6, 8, 16)
DECLARATION = re.compile(r"(\w+): (\d+)\.\.(\d*) % (\d+)")

Expression = int | str | tuple[str, "Expression", "Expression"]


class DimCase(Struct, frozen=True):
    """Two expressions over the symbols; `seed` chooses the sizes that they are tried at."""

    symbols: tuple[Symbol, ...]
    left: Expression
    right: Expression
    seed: int = 0


# --- two evaluations -------------------------------------------------------------------------------------------------


def built(expression: Expression, symbols: Mapping[str, DimLike]) -> DimLike:
    """The expression by the arithmetic of sizes."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return symbols[expression]
    left, right = built(expression[1], symbols), built(expression[2], symbols)
    if expression[0] in DIVISIONS and isinstance(right, int) and right < 1:
        raise Refused(f"dims: a division by {right}")
    match expression[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//":
            return left // right
        case "%":
            return left % right
        case "min":
            return dim_min(left, right)
        case "max":
            return dim_max(left, right)
    return ceildiv(left, right)


def computed(expression: Expression, binding: Mapping[str, int]) -> int:
    """The expression in Python's integers. ZeroDivisionError where a divisor is less than one."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return binding[expression]
    left, right = computed(expression[1], binding), computed(expression[2], binding)
    if expression[0] in DIVISIONS and right < 1:
        raise ZeroDivisionError
    match expression[0]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//":
            return left // right
        case "%":
            return left % right
        case "min":
            return min(left, right)
        case "max":
            return max(left, right)
    return -(-left // right)


def bindings_of(case: DimCase) -> Iterator[dict[str, int]]:
    """Every choice of ends of the symbols' bounds, then random sizes."""
    rng = np.random.default_rng(case.seed)
    ranges = []
    for declared in case.symbols:
        step, high = declared.multiple_of, declared.upper
        first = -(-declared.lower // step)
        ranges.append((first, first + UNBOUNDED if high is None else high // step, step))
    for ends in itertools.product(*((first, last) for first, last, _ in ranges)):
        yield {s.name: place * step for s, place, (_, _, step) in zip(case.symbols, ends, ranges)}
    for _ in range(BINDINGS):
        yield {s.name: int(rng.integers(first, last + 1)) * step for s, (first, last, step) in zip(case.symbols, ranges)}


# --- the check -------------------------------------------------------------------------------------------------------


def check_case(case: DimCase) -> None:
    """Raises Failure for the first thing that Python's integers contradict."""
    known = {s.name: symbol(s.name, s.lower, s.upper, s.multiple_of) for s in case.symbols}
    try:
        left, right = built(case.left, known), built(case.right, known)
    except Refused:
        raise
    except CompileError as error:
        raise Refused(f"dims: {error.message}") from None
    except Exception as error:
        raise Failure("crash", STAGE, f"{type(error).__name__}: {error}") from error
    try:
        _Claims(case, left, right, known).check()
    except (Failure, Refused):
        raise
    except Exception as error:
        raise Failure("crash", STAGE, f"{type(error).__name__}: {error}") from error


class _Claims:
    """What `ir/dims.py` says of the two sizes."""

    def __init__(self, case: DimCase, left: DimLike, right: DimLike, known: Mapping[str, DimLike]) -> None:
        self.case, self.left, self.right, self.known = case, left, right, known
        self.order, self.least = compare(left, right), provably_at_most(left, right)
        self.quotient = None if isinstance(right, int) and right < 1 else exact_quotient(left, right)
        self.equal = provably_equal(left, right)
        self.positive = (isinstance(left, int) or len(left.terms) <= MOST_TERMS) and prove_nonnegative(left)
        self.bounds = bounds(left)
        self.divisors = [d for d in DIVISORS if divides(d, left)]
        self.factors = {s.name: linear_factor(left, s) for s in case.symbols if not isinstance(known[s.name], int)}

    def fail(self, what: str, binding: Mapping[str, int]) -> None:
        at = ", ".join(f"{name} = {size}" for name, size in binding.items())
        raise Failure("result", STAGE, f"{what} (for {at})" if at else what)

    def check(self) -> None:
        self.text()
        tried = 0
        for binding in bindings_of(self.case):
            try:
                left, right = computed(self.case.left, binding), computed(self.case.right, binding)
            except ZeroDivisionError:
                continue
            tried += 1
            self.values(left, right, binding)
            self.facts(left, right, binding)
        if not tried:
            raise Refused("dims: every size divides by less than one")

    def text(self) -> None:
        for size in (self.left, self.right):
            again = parse_dim(format_dim(size), self.known)
            if again != size or hash(again) != hash(size):
                raise Failure("text", STAGE, f"{format_dim(size)!r} reads back as {format_dim(again)!r}")

    def values(self, left: int, right: int, binding: Mapping[str, int]) -> None:
        for size, value in ((self.left, left), (self.right, right)):
            if evaluate(size, binding) != value:
                self.fail(f"{size} is {evaluate(size, binding)}, expected {value}", binding)
            if binding:
                first, *rest = binding
                halfway = substitute(size, {name: binding[name] for name in rest})
                if evaluate(halfway, {first: binding[first]}) != value:
                    self.fail(f"{size} with {', '.join(rest)} put in is {halfway}, expected {value} in the end", binding)

    def facts(self, left: int, right: int, binding: Mapping[str, int]) -> None:
        low, high = self.bounds
        if not low <= left <= high:
            self.fail(f"{self.left} is {left}, but its bounds are {low} and {high}", binding)
        if self.order is not None and self.order != (left > right) - (left < right):
            self.fail(f"compare({self.left}, {self.right}) is {self.order}, found {left} and {right}", binding)
        if self.least and left > right:
            self.fail(f"{self.left} is said to be at most {self.right}, found {left} and {right}", binding)
        if self.equal and left != right:
            self.fail(f"{self.left} and {self.right} are said to be equal, found {left} and {right}", binding)
        if self.positive and left < 0:
            self.fail(f"{self.left} is said not to be negative, found {left}", binding)
        for divisor in self.divisors:
            if left % divisor:
                self.fail(f"{self.left} is said to be a multiple of {divisor}, found {left}", binding)
        if self.quotient is not None and right > 0 and evaluate(self.quotient, binding) * right != left:
            self.fail(f"({self.left}) / ({self.right}) is said to be {self.quotient}, found {left} / {right}", binding)
        for name, factor in self.factors.items():
            self.slope(name, factor, left, binding)

    def slope(self, name: str, factor: DimLike | None, value: int, binding: Mapping[str, int]) -> None:
        """A size that is linear in a symbol grows by the factor with each step."""
        declared = next(s for s in self.case.symbols if s.name == name)
        step = declared.multiple_of
        other = {**binding, name: binding[name] + step}
        if factor is None or declared.upper is not None and other[name] > declared.upper:
            return
        with suppress(ZeroDivisionError):
            grown = computed(self.case.left, other)
            if grown - value != evaluate(factor, binding) * step:
                self.fail(f"{self.left} is said to grow by {factor} with {name}, found {value} and then {grown}", binding)


# --- the subject -----------------------------------------------------------------------------------------------------


def random_expression(rng: np.random.Generator, depth: int, names: tuple[str, ...]) -> Expression:
    if depth == 0 or rng.random() < 0.15:
        return str(rng.choice(names)) if names and rng.random() < 0.65 else int(rng.choice(NUMBERS))
    operator = OPERATORS[int(rng.integers(len(OPERATORS)))]
    left, right = (random_expression(rng, depth - 1, names) for _ in range(2))
    if operator in DIVISIONS:
        right = int(rng.integers(1, 9)) if rng.random() < 0.7 else ("max", right, 1)
    return operator, left, right


def random_declaration(name: str, rng: np.random.Generator) -> Symbol:
    """With all kinds of bounds; more than one size."""
    step, low = int(rng.choice((1, 1, 1, 2, 3, 4, 8))), int(rng.choice((0, 0, 1, 1, 2, 5, 17)))
    first = -(-low // step)
    high = None if rng.random() < 0.4 else (first + int(rng.integers(1, 12))) * step + int(rng.integers(step))
    return Symbol(name, low, high, step)


def parts_of(expression: Expression) -> Iterator[Expression]:
    yield expression
    if isinstance(expression, tuple):
        yield from parts_of(expression[1])
        yield from parts_of(expression[2])


def with_part(expression: Expression, position: int, new: Expression) -> Expression:
    """The expression with the part of that number, in the order of `parts_of`, replaced."""
    if position == 0:
        return new
    assert isinstance(expression, tuple)
    operator, left, right = expression
    inside = len(list(parts_of(left)))
    if position <= inside:
        return operator, with_part(left, position - 1, new), right
    return operator, left, with_part(right, position - 1 - inside, new)


class DimSubject:
    """See `Subject`. There are no passes: what takes their place is other bounds."""

    name = "dims"
    share = 1
    fresh = 1 / 4
    seeds_as = "passes"

    def seeds(self, domain: bool = True) -> Iterator[DimCase]:
        """Every operator on a symbol and a number, and on two symbols."""
        a, b = Symbol("A", 0, None), Symbol("B", 1, 24, 3)
        for operator in OPERATORS:
            yield DimCase((a, b), (operator, "A", 4), (operator, "A", "B"))

    def generate(self, rng: np.random.Generator, domain: bool = True) -> DimCase:
        names = NAMES[:int(rng.integers(1, len(NAMES) + 1))]
        left, right = (random_expression(rng, int(rng.integers(1, MOST_DEPTH + 1)), names) for _ in range(2))
        return DimCase(tuple(random_declaration(name, rng) for name in names), left, right, int(rng.integers(1 << 16)))

    def mutators(self) -> tuple[str, ...]:
        return ("replace", "around", "related")

    def mutate_program(self, case: DimCase, rng: np.random.Generator, donor: DimCase | None,
                       allowed: frozenset[str]) -> tuple[DimCase, str] | None:
        names = tuple(s.name for s in case.symbols)
        chosen = sorted(allowed)[int(rng.integers(len(allowed)))]
        left, parts = case.left, list(parts_of(case.left))
        position = int(rng.integers(len(parts)))
        match chosen:
            case "replace":
                left = with_part(left, position, random_expression(rng, 2, names))
            case "around":
                operator = OPERATORS[int(rng.integers(len(OPERATORS)))]
                other: Expression = int(rng.integers(1, 9)) if operator in DIVISIONS else random_expression(rng, 1, names)
                left = with_part(left, position, (operator, parts[position], other))
            case "related":  # the other side nearly the same, so that there is something to prove
                return replace(case, right=("+", left, random_expression(rng, 1, names)), seed=int(rng.integers(1 << 16))), chosen
        if len(list(parts_of(left))) > 2 ** (MOST_DEPTH + 1):
            return None
        return replace(case, left=left, seed=int(rng.integers(1 << 16))), chosen

    def mutate_passes(self, case: DimCase, rng: np.random.Generator, donor: DimCase | None) -> tuple[DimCase, str]:
        position = int(rng.integers(len(case.symbols)))
        declared = random_declaration(case.symbols[position].name, rng)
        return replace(case, symbols=(*case.symbols[:position], declared, *case.symbols[position + 1:])), "bounds"

    def with_pipeline(self, case: DimCase) -> DimCase:
        return case

    def with_random_passes(self, case: DimCase, rng: np.random.Generator) -> DimCase:
        return case

    def without_passes(self, case: DimCase, changed: tuple[str, ...]) -> DimCase:
        return case

    def check(self, case: DimCase, native: bool) -> Verdict:
        check_case(case)
        return Verdict((), False)

    def smaller(self, case: DimCase) -> Iterator[DimCase]:
        for field in ("left", "right"):
            whole: Expression = getattr(case, field)
            for position, part in enumerate(parts_of(whole)):
                if isinstance(part, tuple):
                    for new in (part[1], part[2], 1):
                        yield replace(case, **{field: with_part(whole, position, new)})
                elif isinstance(part, str):
                    yield replace(case, **{field: with_part(whole, position, 1)})
        for position, declared in enumerate(case.symbols):
            if declared.multiple_of > 1:
                plain = Symbol(declared.name, declared.lower, declared.upper)
                yield replace(case, symbols=(*case.symbols[:position], plain, *case.symbols[position + 1:]))

    def size(self, case: DimCase) -> int:
        return sum(len(list(parts_of(side))) for side in (case.left, case.right)) + sum(s.multiple_of > 1 for s in case.symbols)

    def format(self, case: DimCase) -> str:
        lines = [f"{s.name}: {s.lower}..{'' if s.upper is None else s.upper} % {s.multiple_of}" for s in case.symbols]
        return "\n".join([*lines, f"left = {_spelled(case.left)}", f"right = {_spelled(case.right)}", f"seed = {case.seed}", ""])

    def parse(self, text: str) -> DimCase:
        symbols: list[Symbol] = []
        fields: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            found = DECLARATION.fullmatch(line)
            name, equals, value = line.partition(" = ")
            if found:
                symbols.append(Symbol(found[1], int(found[2]), int(found[3]) if found[3] else None, int(found[4])))
            elif equals:
                fields[name] = value
            elif line.strip():
                raise ParseError(f"line {number}: {line[:80]!r} is neither a symbol nor an expression", line=number, column=1)
        try:
            names = frozenset(s.name for s in symbols)
            left, right = (_read(ast.parse(fields[side], mode="eval").body, names) for side in ("left", "right"))
            return DimCase(tuple(symbols), left, right, int(fields["seed"]))
        except (KeyError, ValueError, SyntaxError, RecursionError) as error:
            raise CompileError(f"a case of sizes is damaged: {type(error).__name__}: {error}") from None


def _spelled(expression: Expression) -> str:
    if not isinstance(expression, tuple):
        return str(expression)
    operator, left, right = expression
    if operator.isalpha():
        return f"{operator}({_spelled(left)}, {_spelled(right)})"
    return f"({_spelled(left)} {operator} {_spelled(right)})"


_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}


def _read(tree: ast.expr, names: frozenset[str]) -> Expression:
    match tree:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
        case ast.Name(id=name) if name in names:
            return name
        case ast.Call(func=ast.Name(id=name), args=[left, right], keywords=[]) if name in OPERATORS:
            return name, _read(left, names), _read(right, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGNS:
            return _SIGNS[type(op)], _read(left, names), _read(right, names)
    raise ValueError(f"{ast.unparse(tree)[:60]!r} is no part of an expression")
