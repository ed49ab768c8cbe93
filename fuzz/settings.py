"""What supervisor and workers tell each other: how to fuzz, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field


class Mode(Struct, frozen=True):
    """What of the engine is at work. `passes`: `joint`, `random` (a new sequence each time) or `fixed` (the pipeline)."""

    mutate: bool = True
    domain: bool = True
    coverage: bool = True
    passes: str = "joint"


MODES: Mapping[str, Mode] = {
    "random": Mode(mutate=False, domain=False, coverage=False, passes="fixed"),
    "general-blind": Mode(domain=False, coverage=False, passes="fixed"),
    "general": Mode(domain=False, passes="fixed"),
    "domain": Mode(passes="fixed"),
    "random-passes": Mode(passes="random"),
    "joint": Mode(),
}


class Settings(Struct, frozen=True):
    """How to fuzz.

    seconds, iterations   the budget; 0: none of that kind
    patience              mutations of a program in a row that gain nothing before its passes are mutated (N)
    native_share          of programs that become machine code, besides seeds and what gained coverage; 0: none does
    hang_seconds          a program that takes longer is a finding
    memory_bytes          address space of a worker; 0: no limit
    models                files of models whose pieces are seeds of graphs
    """

    seconds: float = 0.0
    iterations: int = 0
    seed: int = 0
    mode: str = "joint"
    subjects: tuple[str, ...] = ()
    patience: int = 4
    native_share: float = 1 / 8
    hang_seconds: float = 20.0
    memory_bytes: int = 0
    stop_at_first: bool = False
    reduce: bool = True
    workers: int = 1
    models: tuple[str, ...] = ()


class Yield(Struct):
    """What came of one mutator, or of one pass."""

    tried: int = 0
    gained: int = 0
    found: int = 0


class Tally(Struct):
    """What a worker did. `curve`: seconds, programs, arcs of coverage, size of the corpus."""

    programs: int = 0
    native: int = 0
    refused: int = 0
    arcs: int = 0
    corpus: int = 0
    mutators: dict[str, Yield] = field(default_factory=dict)
    passes: dict[str, Yield] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    curve: list[tuple[float, int, int, int]] = field(default_factory=list)

    def of(self, table: dict[str, Yield], name: str) -> Yield:
        return table.setdefault(name, Yield())


class Finding(Struct):
    """A failure with its case. `text` is what the file says."""

    label: str
    signature: str
    kind: str
    stage: str
    message: str
    seconds: float
    programs: int
    size: int
    text: str
