"""The cache key of a graph: everything that decides its code, part by part, so that a miss can be explained."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from .ir.graph import Graph
from .ir.printer import constants_of, format_graph
from .machine import llvm_version
from .options import Options
from .runtime.cache import Key, source_digest

DIGEST = re.compile(r"#[0-9a-f]{16}")


def make_key(graph: Graph, target_text: str, options: Options) -> Key:
    """The key, without the facts that explain a miss: they take longer to find than a hit."""
    return Key(graph.name, (
        ("source", source_digest()),
        ("llvm", llvm_version()),
        ("options", options.code_key()),
        ("target", target_text),
        ("graph", graph.fingerprint),
    ))


def add_facts(key: Key, graph: Graph) -> Key:
    """The key with digests of the graph without its constants, and of the constants: which of the two changed?"""
    structure = DIGEST.sub("#", format_graph(graph))
    constants = "\n".join(sorted(constants_of(graph)))
    return replace(key, facts=(
        ("structure", hashlib.sha256(structure.encode()).hexdigest()),
        ("constants", hashlib.sha256(constants.encode()).hexdigest()),
    ))
