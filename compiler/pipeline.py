"""The passes, in order, each with the invariant that it establishes. Runs them, checks them, dumps what they leave.

The list is literal: there is no registry. A pass is a function of graph, options and (where it must know the target)
caps; it returns a new graph, or the same object where it changed nothing. Beside each stands its contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from .ir.caps import Caps
from .ir.dims import evaluate
from .ir.errors import CompileError, InternalError, Loc, TilewrightError, cannot_write
from .ir.graph import Builder, Graph, Node, attribute_names
from .ir.interp import evaluate_graph
from .ir.ops.control import If, Scan, While
from .ir.printer import format_graph
from .ir.rewrite import rewrite_graph
from .ir.verify import verify
from .options import Environment, Options
from .passes.canonicalize import canonicalize
from .passes.choose_layout import choose_layout
from .passes.decompose import decompose
from .passes.eliminate_dead import eliminate_dead
from .passes.fold_constants import fold_constants, fold_packed
from .passes.fold_scales import fold_scales
from .passes.forward_scales import forward_scales
from .passes.fuse import fuse
from .passes.hoist_invariants import hoist_invariants
from .passes.inline_control import inline_control
from .passes.lower_quantized import left_as_floats as left_by_lower_quantized
from .passes.lower_quantized import lower_quantized
from .passes.narrow_products import narrow_products
from .passes.narrow_tables import narrow_tables
from .passes.pack_operands import pack_operands
from .passes.share_divisors import share_divisors
from .passes.share_sorts import share_sorts
from .passes.weight_only import keep_weights_narrow

Change = Callable[[Graph, Options], Graph]


class Pass(Struct, frozen=True):
    """A pass and what it promises; fuzzing holds it to every word.

    establishes  what is true of the graph from there on, in words
    run          the function: graph, options, capabilities of the target
    contract     the weakest float contract of anything that it does under precision `default`
    needs        states that a graph must be in
    refuses      states that it must not be in
    makes        states that it brings the graph into; no pass takes a graph out of a state
    idempotent   a second run changes nothing
    """

    name: str
    establishes: str
    run: Callable[[Graph, Options, Caps], Graph]
    contract: str = "exact"
    needs: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ("fused",)
    makes: tuple[str, ...] = ()
    idempotent: bool = True


def in_bodies(function: Change) -> Change:
    """The pass applied to the bodies of control flow first, then to the graph."""
    def apply(graph: Graph, options: Options) -> Graph:
        if not any(isinstance(node.op, (If, While, Scan)) for node in graph.nodes()):
            return function(graph, options)

        def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
            if not isinstance(node.op, (If, While, Scan)):
                return None
            bodies = {name: apply(getattr(node.op, name), options) for name in attribute_names(type(node.op))
                      if isinstance(getattr(node.op, name), Graph)}
            return b.add(replace(node.op, **bodies), *inputs)

        return function(rewrite_graph(graph, visit, "in_bodies"), options)

    return apply


def for_any_target(function: Change) -> Callable[[Graph, Options, Caps], Graph]:
    """A pass that need not know the target."""
    return lambda graph, options, caps: function(graph, options)


def fuse_for_target(graph: Graph, options: Options, caps: Caps) -> Graph:
    """Fusion; GPUs have no kernel for a whole attention."""
    return in_bodies(partial(fuse, on_gpu=caps.is_gpu))(graph, options)


def left_as_floats(graph: Graph, options: Options, caps: Caps) -> list[tuple[Loc, str]]:
    """Contractions of a graph, as imported, that have a dequantized operand and are computed in floats nevertheless, and why."""
    return left_by_lower_quantized(narrow_products(graph, options, caps), options, caps)


# states: `primitive`, no composite is left; `packed`, no contraction or window has operands as the user gave them; `fused`
PASSES: tuple[Pass, ...] = (
    Pass("narrow_products", "no product of dequantized bytes with constants of at most 4 bits by group is left", narrow_products, "finite"),
    Pass("lower_quantized", "contractions of dequantized bytes are of integers, where that gains time",
         lambda graph, options, caps: in_bodies(partial(lower_quantized, caps=caps))(graph, options), "finite"),
    Pass("decompose", "only primitives are left", for_any_target(decompose), makes=("primitive",)),
    Pass("weight_only", "no product with constant integers times scales is left", keep_weights_narrow, "finite", needs=("primitive",)),
    Pass("narrow_tables", "rows are taken of no table that is computed of narrower ones, or of bytes that hold few bits",
         for_any_target(in_bodies(narrow_tables)), needs=("primitive",)),
    Pass("inline_control", "no `if` on a constant and no `scan` of no step is left", for_any_target(inline_control)),
    Pass("canonicalize", "identities applied; chains of one kind of movement are one", for_any_target(canonicalize), "bounded"),
    Pass("fold_constants", "only large fillings and moved operands are made of constants alone", for_any_target(fold_constants)),
    Pass("share_sorts", "no array is sorted twice", for_any_target(in_bodies(share_sorts))),
    Pass("forward_scales", "no number is multiplied by that linear steps lead to constant weights",
         for_any_target(in_bodies(forward_scales)), "finite"),
    Pass("fold_scales", "no factor of a channel stands behind a contraction with constant weights", for_any_target(in_bodies(fold_scales)),
         "finite"),
    Pass("share_divisors", "no root or sum of exponentials is divided by more than once", for_any_target(in_bodies(share_divisors)),
         "bounded"),
    Pass("choose_layout", "every convolution is channels-last", for_any_target(in_bodies(choose_layout)), needs=("primitive",)),
    Pass("pack_operands", "contractions have packed operands, no padding inside",
         lambda graph, options, caps: pack_operands(graph, options, caps=caps), "finite", needs=("primitive",), makes=("packed",)),
    Pass("hoist_invariants", "loops compute nothing twice that only captures decide", for_any_target(hoist_invariants)),
    Pass("eliminate_dead", "control flow is given nothing that its bodies do not read", for_any_target(eliminate_dead)),
    Pass("canonicalize_packed", "what layout and packing brought in is simplified", for_any_target(canonicalize), "bounded"),
    Pass("fold_packed", "weights are packed; the originals are dropped", for_any_target(fold_packed)),
    Pass("fuse", "every node is one kernel, a view, or control flow", fuse_for_target, needs=("primitive", "packed"),
         makes=("fused",)),
)


class StageReport(Struct):
    """What one pass did."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int


class PipelineReport(Struct):
    """What all passes did, in order."""

    stages: list[StageReport] = field(default_factory=list)


def stage_names() -> tuple[str, ...]:
    return tuple(p.name for p in PASSES)


def run_passes(graph: Graph, options: Options, caps: Caps, environment: Environment, until: str = "",
               start: str = "") -> tuple[Graph, PipelineReport]:
    """The graph after the pipeline, or after the pass named `until`, beginning with the pass named `start`."""
    names = stage_names()
    for name in (until, start):
        if name and name not in names:
            raise CompileError(f"unknown pass {name!r}; passes are {', '.join(names)}")
    if start and until and names.index(start) > names.index(until):
        raise CompileError(f"{start} comes after {until}: there is nothing to run; passes are {', '.join(names)}")
    report = PipelineReport()
    dump_stage(environment, 0, "input", graph, "")
    begun = not start
    for number, step in enumerate(PASSES, 1):
        begun = begun or step.name == start
        if not begun:
            continue
        graph = _run_one(number, step, graph, options, caps, environment, report)
        if step.name == until:
            break
    return graph, report


def _run_one(number: int, step: Pass, graph: Graph, options: Options, caps: Caps, environment: Environment,
             report: PipelineReport) -> Graph:
    started, name = time.perf_counter(), step.name
    try:
        after = step.run(graph, options, caps)
    except TilewrightError:
        raise
    except Exception as error:
        raise InternalError(f"pass {name} failed on graph {graph.name}: {type(error).__name__}: {error}",
                            hint="set TILEWRIGHT_IR_DUMP=dir and report the last stage it leaves") from error
    seconds = time.perf_counter() - started
    report.stages.append(StageReport(name, seconds, len(graph.nodes()), len(after.nodes())))
    if after is not graph:
        dump_stage(environment, number, name, after,
                   f"# {name}: {len(graph.nodes())} -> {len(after.nodes())} nodes, {seconds * 1000:.1f} ms\n")
    if environment.verify >= 1:
        verify(after)
    if environment.verify >= 2 and after is not graph:
        check_meaning(name, graph, after)
    return after


def dump_stage(environment: Environment, number: int, name: str, graph: Graph, header: str) -> None:
    if environment.dump is not None:
        write_dump(environment.dump, f"{number:02d}_{name}.ir", header + format_graph(graph, locations=True))


def write_dump(folder: Path, name: str, text: str) -> None:
    make_dump_folder(folder)
    try:
        (folder / name).write_text(text + "\n")
    except OSError as error:
        raise cannot_write(folder / name, error) from None


def make_dump_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"TILEWRIGHT_IR_DUMP={folder}", error) from None


def check_meaning(name: str, before: Graph, after: Graph) -> None:
    """Evaluates both graphs on small random inputs; InternalError names the pass when they disagree."""
    inputs = random_inputs(before, np.random.default_rng(0))
    try:
        expected = evaluate_graph(before, inputs)
    except TilewrightError:
        return  # the program itself refuses these inputs (an index out of range, a size out of bounds)
    found = evaluate_graph(after, inputs)
    for label, x, y in zip(before.result_names, expected, found):
        close = np.allclose(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), rtol=1e-4, atol=1e-4,
                            equal_nan=True) if x.shape == y.shape else False
        if x.dtype != y.dtype or not close:
            raise InternalError(f"pass {name} changed the meaning of graph {before.name}: result {label} differs",
                                hint="set TILEWRIGHT_IR_DUMP=dir and report the stages around this pass")


def random_inputs(graph: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    """Small inputs for a graph: symbols bound to small sizes, floats with small integer values."""
    binding = {}
    for symbol in graph.symbols:
        least = max(symbol.lower, 1)
        size = -(-max(least, 4) // symbol.multiple_of) * symbol.multiple_of
        binding[symbol.name] = size if symbol.upper is None else min(size, symbol.upper // symbol.multiple_of * symbol.multiple_of)
    inputs = []
    for param in graph.params:
        shape = [evaluate(d, binding) for d in param.shape]
        values = rng.integers(0, 3, size=shape)
        inputs.append(values.astype(param.dtype.numpy))
    return inputs
