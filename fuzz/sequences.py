"""Sequences of passes: drawn, mutated and crossed over, legal by what the passes declare of themselves.

A step is a pass of `pipeline.PASSES` with its arguments, or `expand:RULE`, which applies a verified rule of `canonicalize`
backwards: `x` becomes `x * 1` somewhere. Such programs mean the same, and give rules something to match. Only exact rules are
steps: others may change the sign of a zero, which what follows may turn into anything. (`mutate.rule_backward` uses all: there
the expanded program is the one that counts.) The argument of `pack_operands` chooses register tiles, as measurement may
(`tuning.py`), among those that fit; lowering is told of them too.

A sequence ends at `fuse`: what stands behind it is lowering's. Precision is the same in all of a sequence, because the
contracts of all steps together bound what the result may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps, TunedTile
from ..ir.dims import DimLike, bounds
from ..ir.errors import CompileError
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.ops.compute import Elementwise
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast
from ..ir.rewrite import Call, Literal, Match, Rule, Variable, build, is_literal, match_pattern, variables_of
from ..ir.types import BOOL, DType, TensorType, dtype_named
from ..options import MATMUL_PRECISIONS, Options
from ..passes.canonicalize import RULES
from ..pipeline import PASSES, Pass
from ..tuning import candidates, fits, groups_of

WHOLE_SHARE = 0.4  # of the sequences that end as the pipeline does
MOST_STEPS = len(PASSES)
EXPAND = "expand:"
PACK = "pack_operands"  # the pass that takes register tiles
TILES_SHARE = 0.25      # of its steps that are drawn
_BY_NAME: Mapping[str, Pass] = {step.name: step for step in PASSES}
_RULES: Mapping[str, Rule] = {rule.name: rule for rule in RULES.rules if rule.contract == "exact"}
_STEP = re.compile(r"([\w:]+)(?:\((\d+)\))?$")


class Step(Struct, frozen=True):
    """One application. `place` tells an expansion where, among the places that fit, and packing which tiles (0: those of the model)."""

    name: str
    place: int = 0

    def __str__(self) -> str:
        return f"{self.name}({self.place})" if self.place else self.name


Steps = tuple[Step, ...]


def parse_steps(text: str) -> Steps:
    """Steps as `str` spells them, with spaces between. CompileError names the pass that is unknown."""
    steps = []
    for word in text.split():
        found = _STEP.match(word)
        name = found.group(1) if found else word
        if found is None or name not in _BY_NAME and name.removeprefix(EXPAND) not in _RULES:
            raise CompileError(f"unknown pass {name!r} in a sequence; passes are {', '.join(_BY_NAME)}, and {EXPAND}RULE")
        steps.append(Step(name, int(found.group(2) or 0)))
    return tuple(steps)


def format_steps(steps: Steps) -> str:
    return " ".join(map(str, steps))


def legal(steps: Sequence[Step]) -> Steps:
    """The steps without those whose needs are not met where they stand."""
    states: set[str] = set()
    kept = []
    for step in steps:
        known = _BY_NAME.get(step.name)
        needs, refuses = (known.needs, known.refuses) if known else ((), ("fused",))
        if states.issuperset(needs) and states.isdisjoint(refuses):
            kept.append(step)
            states.update(known.makes if known else ())
    return tuple(kept[:MOST_STEPS])


def completed(steps: Steps) -> Iterator[Step]:
    """What must still run until a graph can be lowered: the pipeline as it is, unless the steps ended it."""
    if not steps or "fused" not in _makes(steps[-1]):
        yield from (Step(known.name) for known in PASSES)


def _makes(step: Step) -> tuple[str, ...]:
    known = _BY_NAME.get(step.name)
    return known.makes if known else ()


# --- drawing and changing ----------------------------------------------------------------------------------------------


def random_step(rng: np.random.Generator) -> Step:
    """Any pass, or with one chance in four an expansion."""
    if rng.random() < 0.25:
        names = list(_RULES)
        return Step(EXPAND + names[int(rng.integers(len(names)))], int(rng.integers(64)))
    return drawn(PASSES[int(rng.integers(len(PASSES)))].name, rng)


def drawn(name: str, rng: np.random.Generator) -> Step:
    """A step of a pass, with its argument."""
    return Step(name, int(rng.integers(1, 64)) if name == PACK and rng.random() < TILES_SHARE else 0)


def random_steps(rng: np.random.Generator) -> Steps:
    """Some steps in any order, then a part of the pipeline in its own."""
    steps = [random_step(rng) for _ in range(int(rng.integers(0, 4)))]
    start, end = sorted(int(n) for n in rng.integers(0, len(PASSES) + 1, 2))
    if rng.random() < WHOLE_SHARE:  # the last passes see what all others have made
        end = len(PASSES)
    return legal([*steps, *(drawn(known.name, rng) for known in PASSES[start if rng.random() < 0.3 else 0:end])])


def mutate_steps(steps: Steps, rng: np.random.Generator, donor: Steps) -> tuple[Steps, str]:
    """A sequence near this one, and how it was made: `add`, `delete`, `replace`, `argument` or `crossover`."""
    changed, kind = list(steps), ("add", "delete", "replace", "argument", "crossover")[int(rng.integers(5))]
    place = int(rng.integers(len(changed))) if changed else 0
    if kind == "crossover" and donor:
        cut = int(rng.integers(len(donor) + 1))
        changed = [*changed[:place], *donor[cut:]]
    elif kind == "delete" and changed:
        del changed[place]
    elif kind == "replace" and changed:
        changed[place] = random_step(rng)
    elif kind == "argument" and any(map(_takes_argument, changed)):
        choices = [i for i, step in enumerate(changed) if _takes_argument(step)]
        place = choices[int(rng.integers(len(choices)))]
        changed[place] = Step(changed[place].name, int(rng.integers(64)))
    else:
        kind = "add"
        changed.insert(int(rng.integers(len(changed) + 1)), random_step(rng))
    return legal(changed), kind


def _takes_argument(step: Step) -> bool:
    return step.name == PACK or step.name.startswith(EXPAND)


# --- running -----------------------------------------------------------------------------------------------------------


def is_idempotent(step: Step) -> bool:
    known = _BY_NAME.get(step.name)
    return known is not None and known.idempotent and "fused" not in known.makes


def contract_of(step: Step) -> str:
    """The weakest float contract of what the step may do."""
    known = _BY_NAME.get(step.name)
    return known.contract if known else _RULES[step.name.removeprefix(EXPAND)].contract


def run_step(step: Step, graph: Graph, precision: str, caps: Caps, tf32: bool = False) -> Graph:
    """The graph after the step; the same object where nothing changed. `tf32`: products of float32 may round their operands to that."""
    if step.name.startswith(EXPAND):
        return expand(graph, _RULES[step.name.removeprefix(EXPAND)], step.place, precision)
    return _BY_NAME[step.name].run(graph, options_of(precision, tf32), caps)


def options_of(precision: str, tf32: bool) -> Options:
    return Options(precision=precision, matmul_precision=MATMUL_PRECISIONS[tf32])


def with_tiles(steps: Steps, graph: Graph, precision: str, caps: Caps) -> Caps:
    """The target with the register tiles that the steps choose for the contractions of a graph; not for GPUs, where none are measured."""
    number = next((step.place for step in steps if step.name == PACK and step.place), 0)
    if not number or caps.is_gpu:
        return caps
    tuned = []
    for group in groups_of(graph, Options(precision=precision), caps):
        rows, columns, dtype = group.key
        fitting = [tile for tile in candidates(rows, columns, dtype_named(dtype), caps) if fits(tile, columns, dtype_named(dtype), caps)]
        if fitting:
            tuned.append(TunedTile(rows, columns, dtype, *fitting[(number - 1) % len(fitting)]))
    return replace(caps, tuned=tuple(tuned))


def expand(graph: Graph, rule: Rule, place: int, precision: str) -> Graph:
    """The graph with the right side of the rule replaced by its left side, once; `place` picks among what matches.

    Variables that only the left side has become other values of the same type. The graph as it is, where nothing matches or
    the rule is not for this precision.
    """
    nodes = [node for node in graph.nodes() if isinstance(node.type, TensorType)]
    fitting = list(_expansions(rule, nodes, precision))
    if not fitting:
        return graph
    target, variables = fitting[place % len(fitting)]
    builder = Builder()
    values: dict[int, Node] = {}
    for node in graph.nodes():
        made = builder.keep(node) if node in graph.params else builder.add(
            node.op, *(values[id(i)] for i in node.inputs), loc=node.loc)
        values[id(node)] = made
        if node is target:
            known = {name: values.get(id(x)) or _constant(builder, x) for name, x in variables.items()}
            values[id(node)] = build(builder, rule.before, known, node.dtype, node.shape)
    return Graph(graph.name, graph.params, [values[id(r)] for r in graph.results], graph.result_names)


def _constant(builder: Builder, node: Node) -> Node:
    """A uniform constant of `_expansions` in this builder."""
    if isinstance(node.op, Broadcast):
        return builder.add(node.op, builder.keep(node.inputs[0]))
    return builder.keep(node)


def _expansions(rule: Rule, nodes: Sequence[Node], precision: str) -> Iterator[tuple[Node, dict[str, Node]]]:
    """Nodes that the rule's right side matches, with what its variables stand for."""
    for position, node in enumerate(nodes):
        for found in _matches(rule, node):
            missing = [v for v in variables_of(rule.before) if v.name not in found]
            dtype = _variable_dtype(rule, node, found)
            if dtype is None or not rule.allows(dtype, precision):
                continue
            completed = dict(found)
            for variable in missing:
                chosen = _stand_in(variable, dtype, node.shape, nodes[:position])
                if chosen is None:
                    break
                completed[variable.name] = chosen
            else:
                if all(x.shape == node.shape for x in completed.values()) and \
                        (rule.when is None or rule.when(Match(dtype, completed))):
                    yield node, completed


def _matches(rule: Rule, node: Node) -> Iterator[dict[str, Node]]:
    match rule.after:
        case Variable():
            yield {rule.after.name: node}
        case Literal(value):
            if is_literal(node, value):
                yield {}
        case Call():
            if isinstance(node.op, Elementwise):
                yield from match_pattern(rule.after, node)


def _variable_dtype(rule: Rule, node: Node, found: Mapping[str, Node]) -> DType | None:
    """The dtype of the rule's variables but conditions; None where nothing tells it."""
    dtypes = [x.dtype for name, x in found.items() if not Variable(name).is_condition]
    if dtypes:
        return dtypes[-1]
    return node.dtype if node.dtype != BOOL or "b" in rule.kinds else None


def _stand_in(variable: Variable, dtype: DType, shape: Sequence[DimLike], earlier: Sequence[Node]) -> Node | None:
    """A value for a variable that the right side does not have: a constant 2, or the newest fitting value."""
    wanted = BOOL if variable.is_condition else dtype
    if variable.is_constant:
        builder = Builder()
        element = builder.add(Const(Constant(np.asarray(2).astype(wanted.numpy))))
        return element if not shape else builder.add(Broadcast(tuple(shape)), element)
    for node in reversed(earlier):
        if node.dtype == wanted and node.shape == tuple(shape) and all(bounds(n)[0] >= 0 for n in node.shape):
            return node
    return None
