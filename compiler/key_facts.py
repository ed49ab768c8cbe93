"""What explains a miss of the cache: which part of a graph changed."""

from __future__ import annotations

import re

from blake3 import blake3
from msgspec.structs import replace

from .ir.graph import Graph
from .ir.printer import constants_of, format_graph
from .runtime.cache import Key

DIGEST = re.compile(r"#[0-9a-f]{16}")


def add_facts(key: Key, graph: Graph) -> Key:
    """The key with digests of the graph without its constants, and of the constants: which of the two changed?"""
    structure = DIGEST.sub("#", format_graph(graph))
    constants = "\n".join(sorted(constants_of(graph)))
    return replace(key, facts=(
        ("structure", blake3(structure.encode()).hexdigest()),
        ("constants", blake3(constants.encode()).hexdigest()),
    ))
