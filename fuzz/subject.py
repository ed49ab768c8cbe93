"""What can be fuzzed, seen by the engine: a source of cases, ways to change them, and a check that tells right from wrong.

A *case* is a program together with what is done to it: a sequence of passes for a graph, a schedule for a kernel. The
engine (`engine.py`) knows nothing else of them; there is a `Subject` for graphs on CPUs (`graphs.py`), on GPUs
(`devices.py`), for kernels (`kernels.py`), arithmetic on sizes (`dims.py`) and files (`parsers.py`).

A case carries everything that decides the outcome of its check (the seed of its inputs too): the same text gives the
same verdict, in any process.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

C = TypeVar("C")
_VARYING = re.compile(r"0x[0-9a-f]+|%\w+|#[0-9a-f]+|\b[vx]\d+\b|-?\d+(\.\d+)?(e[-+]?\d+)?|'[^']*'|\"[^\"]*\"")


class Failure(Exception):
    """A broken promise of the compiler.

    kind     `crash`, `verifier`, `text`, `result`, `unstable` (a second run of an idempotent pass changes something),
             `memory plan`, `threads` (other bits for another number of threads), `bytes` (other code for the same input),
             `key` (the cache would confuse two programs), `call` (another way of calling gives something else), `hang`,
             `memory`, `signal`
    stage    who broke it: a pass, a primitive of schedules, `lower`, `llvm`, `loop interpreter`, `printer`...
    message  what, expected against found
    """

    def __init__(self, kind: str, stage: str, message: str) -> None:
        super().__init__(f"{kind} in {stage}: {message}")
        self.kind = kind
        self.stage = stage
        self.message = message

    @property
    def signature(self) -> str:
        """The same for failures that have most likely one cause: kind, stage, and for crashes the message without the
        names and numbers in it."""
        if self.kind in ("crash", "verifier", "signal"):
            return f"{self.kind} in {self.stage}: {_VARYING.sub('_', self.message.splitlines()[0])[:160]}"
        return f"{self.kind} in {self.stage}"

    @property
    def label(self) -> str:
        """A short file name for the signature."""
        digest = hashlib.blake2s(self.signature.encode(), digest_size=4).hexdigest()
        return re.sub(r"\W+", "-", f"{self.kind} {self.stage}").strip("-") + "-" + digest


def crash(stage: str, error: Exception) -> Failure:
    """An exception that nobody expected as a failure, with the function that it comes from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return Failure("crash", stage, f"{type(error).__name__}: {error} ({Path(place.filename).name}: {place.name})")


class Refused(Exception):
    """The case asks for what the compiler says it cannot do, or the program refuses its own inputs: neither right nor wrong."""


class Verdict:
    """What a check that found nothing wrong can tell: which stages changed the program (for the yield of passes) and
    whether machine code ran."""

    __slots__ = ("changed", "native")

    def __init__(self, changed: tuple[str, ...] = (), native: bool = False) -> None:
        self.changed = changed
        self.native = native


class Subject(Protocol[C]):
    """One kind of program. All methods are functions of their arguments; randomness comes from `rng` alone."""

    name: str
    share: int  # of the programs, beside the other subjects
    fresh: float  # share of its programs that are new ones, not mutants
    seeds_as: str  # `passes`: seeds go through their passes alone; `code`: as machine code later, where each shows another part of it;
    # `late`: at once as machine code, when those of other subjects are through

    def seeds(self, domain: bool = True) -> Iterator[C]:
        """Cases to begin with, the same each time: the ops' samples, what stands in the tree; and, with knowledge of the `domain`, what
        compilers for tensors get wrong."""
        ...

    def generate(self, rng: np.random.Generator, domain: bool = True) -> C:
        """A new random case: with knowledge of the `domain`, or grown at random."""
        ...

    def mutators(self) -> tuple[str, ...]:
        """The names of ways to change a program, for reports and ablation; those of domain-specific ones begin with `domain.`"""
        ...

    def mutate_program(self, case: C, rng: np.random.Generator, donor: C | None, allowed: frozenset[str]) -> tuple[C, str] | None:
        """The case with another, still well-typed program, and the name of the mutator; None where none of those tried
        fits. `donor` is another case to take parts from."""
        ...

    def mutate_passes(self, case: C, rng: np.random.Generator, donor: C | None) -> tuple[C, str]:
        """The case with another sequence of passes, legal by their declarations, and how it was made."""
        ...

    def with_pipeline(self, case: C) -> C:
        """The case with the passes that the compiler itself would run."""
        ...

    def with_random_passes(self, case: C, rng: np.random.Generator) -> C:
        """The case with a new random sequence of passes."""
        ...

    def without_passes(self, case: C, changed: tuple[str, ...]) -> C:
        """The case without those steps that changed nothing (`changed`: the stages that did)."""
        ...

    def check(self, case: C, native: bool) -> Verdict:
        """Holds the compiler to its promises on this case; `native` compiles and runs machine code too. Raises Failure, or
        Refused."""
        ...

    def smaller(self, case: C) -> Iterator[C]:
        """Simpler well-typed cases, the boldest cuts first; those that still fail replace the case when it is reduced."""
        ...

    def size(self, case: C) -> int:
        """What reduction makes less: nodes, or statements, and steps."""
        ...

    def format(self, case: C) -> str:
        """Text that `parse` reads back to an equal case, for people to read."""
        ...

    def parse(self, text: str) -> C:
        """CompileError with a position where the text is damaged."""
        ...


AnySubject = Subject[Any]
