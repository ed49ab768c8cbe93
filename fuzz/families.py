"""Families of new graphs, and how often each is drawn.

Graphs that grow at random reach every op beside every other one, and seldom what takes several things at once. The other families
are dense in something that compilers for tensors get wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ..ir.graph import Graph
from ..ir.ops.compute import Elementwise
from ..ir.ops.table import ALL_OPS
from .generate import DEFAULT_DTYPES, random_graph, sample_graph
from .generate_arithmetic import arithmetic_graph, formula_seeds
from .generate_axes import axis_graph, axis_seeds
from .generate_blocks import block_graph, block_seeds
from .generate_bodies import control_graph
from .generate_functions import function_graph, function_seeds
from .generate_layers import layer_graph, layer_seeds
from .generate_meetings import meeting_seeds, opened
from .generate_memory import memory_graph, twin_graph
from .generate_movements import crossed_graph, movement_graph, movement_seeds
from .generate_quantized import quantized_graph, quantized_seeds
from .generate_windows import window_graph, window_seeds
from .mutate_memory import MEMORY
from .mutate_patterns import known, known_seeds, rule_graph, rule_seeds
from .rebuild import acceptable

TRIES = 4
FAMILY_SEEDS = 16
# graphs that are seeds with an open size too
OPENED = ("movements", "meetings", "layers", "quantized", "axes", "windows", "memory", "control", "blocks")
SCALAR = ("functions", "formulas", "rules", "known")  # seeds whose results are as special as what they are given
KNOWN_SHARE = 0.15  # of the new graphs: some parameters are constants


def grown_graph(rng: np.random.Generator) -> Graph:
    """Up to ten steps of any kind."""
    return random_graph(rng, int(rng.integers(1, 11)), DEFAULT_DTYPES, bool(rng.random() < 0.5))


def stored_graph(rng: np.random.Generator) -> Graph:
    """A graph whose values are made to lie in memory, are read in several orders, or are there twice with one difference."""
    graph = layer_graph(rng) if rng.random() < 0.5 else random_graph(rng, int(rng.integers(2, 6)), DEFAULT_DTYPES, bool(rng.random() < 0.3))
    for _ in range(int(rng.integers(1, 4))):
        made = MEMORY[int(rng.integers(len(MEMORY)))](graph, rng, graph)
        graph = made if made is not None and acceptable(made) else graph
    return graph


FAMILIES: tuple[tuple[float, Callable[[np.random.Generator], Graph]], ...] = (
    (0.05, grown_graph), (0.07, function_graph), (0.09, movement_graph), (0.02, crossed_graph), (0.09, control_graph), (0.09, layer_graph),
    (0.03, quantized_graph), (0.07, block_graph), (0.03, stored_graph), (0.09, memory_graph), (0.09, twin_graph),
    (0.09, axis_graph), (0.06, window_graph), (0.07, rule_graph), (0.06, arithmetic_graph))


def seed_graphs(domain: bool = True) -> Iterator[Graph]:
    """The samples of the ops, the first ones of all ops first, and all scalar functions. With knowledge of the `domain` also what no
    sample shows: formulas, the left sides of rules, constants, pairs of movements, movements beside computations, layers, axes, windows,
    quantized layers, blocks of transformers, and some graphs of the other families, so many of each in turn that all end at about the
    same time; then some again with a size that is open."""
    ops = [op for op in ALL_OPS if op is not Elementwise]  # its samples are one function each
    rounds = itertools.zip_longest(*(op.samples() for op in ops))
    samples = (sample_graph(sample) for found in rounds for sample in found if sample is not None)
    sources = [(2, samples), (3, function_seeds())]
    if domain:
        sources += [(1, formula_seeds()), (1, rule_seeds()), (1, known_seeds()), (2, movement_seeds()), (2, layer_seeds()),
                    (2, meeting_seeds()), (1, axis_seeds()), (1, window_seeds()), (1, quantized_seeds()), (1, block_seeds()),
                    (3, family_seeds())]
    listed = []
    for group in itertools.zip_longest(*(source for count, source in sources for _ in range(count))):
        for graph in group:
            if graph is not None and acceptable(graph):
                listed.append(graph)
                yield graph
    if domain:
        yield from opened([graph for graph in listed if graph.name in OPENED])


def family_seeds() -> Iterator[Graph]:
    """Some graphs of each family that has no seeds of its own."""
    rng = np.random.default_rng(0)
    for _ in range(FAMILY_SEEDS):
        for make in (memory_graph, control_graph, control_graph, twin_graph, control_graph, control_graph):
            yield make(rng)


def new_graph(rng: np.random.Generator) -> Graph:
    """A graph of a family drawn by its share, within the limits of all cases where some tries give one."""
    shares, makers = zip(*FAMILIES)
    make = makers[int(rng.choice(len(makers), p=shares))]
    graph = make(rng)
    for _ in range(TRIES):
        if acceptable(graph):
            break
        graph = make(rng)
    return (known(graph, rng, graph) or graph) if rng.random() < KNOWN_SHARE else graph
