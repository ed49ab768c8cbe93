"""How much an ONNX import may make of a file: nodes in proportion to what stands in it, and errors of a length that people read.

A file of a few kilobytes can ask for a graph of any size: functions that call the next one twice, loops in loops that are tried in
two ways, an operator that becomes one term for each of a million taps. Time and memory of an import are those of the nodes made, so
these are counted.

Assumes that every node of an import is made by a `CountingBuilder`, or by a builder whose nodes are few. Guarantees: an import
ends in a CompileError after `FREE + SHARE * nodes in the file` nodes, or at a tensor of more than MOST_AXES axes or 2**48 elements;
an error's texts are shortened to LONGEST characters.
"""

from __future__ import annotations

from msgspec import Struct

from ..ir.errors import UNKNOWN, CompileError, InternalError, Loc, UnsupportedError
from ..ir.graph import Builder, Node, Op
from ..ir.types import TensorType
from .onnx_files import subgraphs
from .onnx_messages import ModelProto
from .onnx_ops.tensors import MOST_AXES, checked_shape

FREE = 50_000       # nodes of the graph that any file may ask for: half a second to a second
SHARE = 256         # and so many more for each node in the file, functions and bodies included
STEP = 8            # what visiting one node of the file counts, even if it makes none
LONGEST = 4000      # characters of one text of an error


class Work(Struct):
    """What is left of the nodes that an import may make."""

    label: str
    allowed: int
    left: int

    def spend(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise CompileError(f"{self.label}: asks for a graph of more than {self.allowed:,} nodes, which no model of its size needs",
                               hint="functions that call others many times, nested loops, or an operator of huge extent become such graphs")


def work_of(model: ModelProto, label: str) -> Work:
    """What an import of this model may make."""
    count, stack = 0, [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        nodes = stack.pop()
        count += len(nodes)
        stack.extend(graph.node for node in nodes for graph in subgraphs(node))
    allowed = FREE + SHARE * count
    return Work(label, allowed, allowed)


class CountingBuilder(Builder):
    """A builder whose nodes are counted."""

    def __init__(self, work: Work, loc: Loc = UNKNOWN) -> None:
        super().__init__(loc)
        self.work = work

    def add(self, op: Op, *inputs: Node, loc: Loc | None = None) -> Node:
        self.work.spend()
        node = super().add(op, *inputs, loc=loc)
        if isinstance(node.type, TensorType):
            if node.rank > MOST_AXES:
                raise UnsupportedError(f"{op.spelling}: found {node.rank} axes, expected at most {MOST_AXES}")
            checked_shape([n for n in node.type.shape if isinstance(n, int)], f"{op.spelling}: the result")
        return node


def shortened(text: str) -> str:
    """The text, without its middle where it is very long: a name in a file may have any length."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} more characters) ... {text[-half:]}"


# what a function of an operator may raise that nobody foresaw; a file shall not end in a traceback of Python's
UNEXPECTED = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def unexpected(operator: str, error: Exception) -> InternalError:
    """The error for an operator that fails on its node in a way of its own: most likely the node breaks a rule, but it is a fault
    of ours that nothing says which."""
    return InternalError(f"{operator}: cannot be imported: {type(error).__name__}: {error}",
                         hint="check the node's inputs and attributes; where they are as the standard says, report the model")


def with_short_texts(error: CompileError | InternalError) -> CompileError | InternalError:
    """The error with texts that can be read."""
    error.message, error.hint = shortened(error.message), shortened(error.hint)
    error.args = (error.message, *error.args[1:])
    notes = error.notes[:40]
    error.notes = tuple(map(shortened, notes)) + ((f"... and {len(error.notes) - 40} more",) if len(error.notes) > 40 else ())
    if len(error.loc.name) > LONGEST:
        error.loc = Loc(name=shortened(error.loc.name))
    return error
