"""Where the threads of a block wait for one another: before a thread loop that touches what others have stored, or stores what they read.

Each thread loop ends before the next begins; a barrier is left out where the two share no memory that one of them stores to. Loops
between the levels of blocks and threads run their last statements before their first ones again, so what they touch anywhere counts
as touched at their beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from tilewright.ir.graph import Node
from tilewright.ir.loop import (
    Alloc,
    CopyAsync,
    CopyBulk,
    For,
    Kernel,
    Load,
    MatmulTile,
    Stmt,
    Store,
    Wait,
    While,
    expression_nodes,
    expressions_of,
    walk,
)


class Touched(Struct):
    """Memory that threads share, loaded and stored since the last barrier; `copied`: by copies that may be under way, which none may read
    yet."""

    loaded: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)

    def meets(self, other: Touched) -> bool:
        """Whether one stores what the other touches. What is copied meanwhile, nothing may touch in any case."""
        return bool(self.stored & (other.loaded | other.stored | other.copied) or self.loaded & (other.stored | other.copied))

    def add(self, other: Touched) -> None:
        self.loaded |= other.loaded
        self.stored |= other.stored
        self.copied |= other.copied

    def arrive(self, everything: bool) -> None:
        """What was copied is there, for the thread that copied it; where that may not be everything, the rest has a later wait."""
        self.stored |= self.copied
        self.copied = set() if everything else self.copied


class Barriers:
    """Follows the statements of a kernel in the order in which they are written."""

    def __init__(self, kernel: Kernel) -> None:
        own = {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.space != "shared"}
        self.own = own  # of one thread
        self.since = Touched()

    def touched(self, body: Sequence[Stmt]) -> Touched:
        found = Touched()
        for statement in walk(body):
            for root in expressions_of(statement):
                found.loaded |= {n.op.buffer for n in expression_nodes(root) if isinstance(n.op, Load)}
            match statement:
                case Store(buffer=name):
                    found.stored.add(name)
                case CopyAsync(buffer=name, source=source) | CopyBulk(buffer=name, source=source):
                    found.copied.add(name)
                    found.loaded.add(source)
                case MatmulTile(left=left, right=right):
                    found.loaded |= {left, right}
        return Touched(found.loaded - self.own, found.stored - self.own, found.copied)

    def before(self, loop: For) -> bool:
        """Whether a barrier stands before a thread loop, which is noted."""
        now = self.touched([loop])
        needed = self.since.meets(now)
        if needed:
            self.since = Touched(copied=self.since.copied)
        self.since.add(now)
        return needed

    def pipeline(self, loop: For) -> None:
        """It begins with a barrier, and all that it copies has come at its end."""
        self.since = self.touched([loop])
        self.wait(0)

    def wait(self, groups: int) -> None:
        """Copies have arrived, but for so many groups of them; which these are is not known here."""
        self.since.arrive(groups == 0)

    def before_reading(self, roots: Sequence[Node]) -> bool:
        """Whether a barrier stands before expressions that all threads evaluate, which is noted."""
        loaded = {n.op.buffer for root in roots for n in expression_nodes(root) if isinstance(n.op, Load)} - self.own
        now = Touched(loaded)
        needed = self.since.meets(now)
        if needed:
            self.since = Touched(copied=self.since.copied)
        self.since.add(now)
        return needed

    def state(self) -> Touched:
        return Touched(set(self.since.loaded), set(self.since.stored), set(self.since.copied))

    def enter(self, loop: For | While) -> Touched:
        """A loop around thread loops: its end comes before its beginning. The state before, for `leave`."""
        before = self.state()
        self.since.add(self.touched([loop]))
        return before

    def leave(self, loop: For | While, before: Touched) -> None:
        """It may have run no round, or ended anywhere."""
        self.since = before
        self.since.add(self.touched([loop]))
        waits = [s.groups for s in walk(loop.body) if isinstance(s, Wait)]
        if waits:
            self.wait(max(waits))
