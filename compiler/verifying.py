"""What `tilewright verify` does: a model's outputs held against another implementation's, and the first node that diverges.

Whole models are compared with a bound that leaves room for errors that add up. Layer by layer each node is compiled as a
model of its own and given the peer's values for its inputs, so that errors do not add up and the bound is narrow. The peer
runs the model in pieces of some nodes whose values are all kept until nobody reads them (`frontends/onnx_pieces.py`); it
computes every node once.

Guarantees: the first node in the file's order that diverges is named, with how far, and left as a small model with its inputs,
on which `verify --inputs` shows the same again. A node that cannot be compiled alone is listed with the reason, never counted as
agreeing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from .agreement import Difference, compare
from .driver import compile_graph, from_onnx
from .frontends.onnx_pieces import ModelParts, Node, node_name
from .ir.errors import ArgumentError, CompileError, RuntimeFailure
from .onnx_peers import Peer
from .options import Options
from .runtime.artifact import replacing, write_bytes

Arrays = dict[str, Any]
PIECE_NODES = 32            # that the peer runs at a time; their values are in memory together
MOST_KNOWN_ELEMENTS = 64    # of an input that becomes a constant of a node's model where it must be known


class OutputCheck(Struct, frozen=True):
    """One output of the model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    difference: Difference


class NodeCheck(Struct, frozen=True):
    """One node, given the peer's inputs. `skipped`: why it was not compared, empty otherwise."""

    number: int
    name: str
    op: str
    differences: Mapping[str, Difference]
    skipped: str = ""
    failure: str = ""

    @property
    def agrees(self) -> bool:
        return not self.failure and all(difference.agrees for difference in self.differences.values())

    def text(self) -> str:
        if self.failure:
            return self.failure
        name, worst = max(self.differences.items(), key=lambda pair: (not pair[1].agrees, bool(pair[1].problem), pair[1].error))
        return f"output {name!r}: {worst.text()}"


class LayerCheck(Struct, frozen=True):
    """The nodes one by one, to the first that diverges."""

    compared: int
    nodes: int
    skipped: tuple[NodeCheck, ...]
    first: NodeCheck | None
    worst: NodeCheck | None
    files: tuple[Path, ...] = ()


# --- whole models ----------------------------------------------------------------------------------------------------


def verify_outputs(model: Path, executable: Any, peer: Peer, inputs: Arrays, tolerance: float | None) -> tuple[OutputCheck, ...]:
    """Each output against the peer's."""
    found = executable.run(inputs)
    expected = peer.run(model, inputs, list(found))
    return tuple(OutputCheck(name, str(array.dtype), array.shape, compare(array, _as_array(expected[name]), tolerance, whole_model=True))
                 for name, array in found.items())


def load_inputs(path: Path, executable: Any) -> Arrays:
    """Inputs from a file that numpy.savez wrote."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"--inputs: {path}: {getattr(error, 'strerror', None) or error}",
                            hint="expected a file that numpy.savez wrote, with an array for each input") from None
    dtypes = {info.name: info.dtype for info in executable.inputs}
    unknown = sorted(set(found) - set(dtypes))
    if unknown:
        raise ArgumentError(f"--inputs: {path} holds {unknown[0]!r}, expected arrays for {', '.join(dtypes)}")
    # a dtype that NumPy does not know by itself is in such a file as plain bytes
    return {name: array.view(dtypes[name]) if array.dtype.kind == "V" and array.dtype.itemsize == dtypes[name].itemsize else array
            for name, array in found.items()}


def save_inputs(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """As numpy.savez, whatever the names are, whole or not at all."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _as_array(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, (np.generic, float, int, bool)) else value


# --- node by node ----------------------------------------------------------------------------------------------------


def verify_layers(model: Path, peer: Peer, inputs: Arrays, tolerance: float | None, options: Options,
                  folder: Path) -> LayerCheck:
    """Compares node after node until one diverges, which is written to the folder."""
    parts = ModelParts(model)
    skipped: list[NodeCheck] = []
    worst: NodeCheck | None = None
    compared = 0
    for number, node, values in peer_values(parts, peer, inputs):
        check = check_node(parts, number, node, values, tolerance, options)
        if check.skipped:
            skipped.append(check)
            continue
        compared += 1
        if not check.agrees:
            return LayerCheck(compared, len(parts.nodes), tuple(skipped), check, check, extract(parts, node, values, folder, model.stem))
        if worst is None or _share_of_bound(check) > _share_of_bound(worst):
            worst = check
    return LayerCheck(compared, len(parts.nodes), tuple(skipped), None, worst)


def _share_of_bound(check: NodeCheck) -> float:
    return max((d.error / d.bound for d in check.differences.values() if d.bound), default=0.0)


def peer_values(parts: ModelParts, peer: Peer, inputs: Arrays) -> Iterator[tuple[int, Node, Arrays]]:
    """Every node with the peer's values around it, inputs and outputs, as long as somebody reads them."""
    values: Arrays = dict(inputs)
    for start, nodes in parts.in_pieces(PIECE_NODES):
        made = parts.made_by(nodes)
        if made:
            given = {name: values[name] for name in parts.read_by(nodes, values)}
            piece = parts.piece(nodes, given, dict.fromkeys(made))
            values |= {name: _as_array(value) for name, value in peer.run(piece, given, made).items()}
        for number, node in enumerate(nodes, start):
            if parts.made_by([node]):
                yield number, node, values
        values = {name: value for name, value in values.items() if parts.last_use.get(name, -1) >= start + len(nodes)}


def check_node(parts: ModelParts, number: int, node: Node, values: Arrays, tolerance: float | None, options: Options) -> NodeCheck:
    """The node compiled alone, on the peer's inputs."""
    given = {name: values[name] for name in parts.read_by([node], values) if name not in node.output}
    expected = {name: values[name] for name in parts.made_by([node])}

    def outcome(skipped: str = "", failure: str = "", differences: Mapping[str, Difference] | None = None) -> NodeCheck:
        return NodeCheck(number, node_name(node), node.op_type, differences or {}, skipped, failure)

    other = next((name for name, value in (given | expected).items() if not isinstance(value, np.ndarray)), None)
    if other is not None:
        return outcome(skipped=f"{other!r} is no tensor")
    try:
        executable, remaining = _compiled_alone(parts, node, given, expected, options)
    except CompileError as error:
        return outcome(skipped=error.message)
    try:
        found = executable.run(remaining)
    except RuntimeFailure as error:
        return outcome(failure=f"fails where the peer does not: {error.message}")
    return outcome(differences={name: compare(found[name], value, tolerance) for name, value in expected.items()})


def _compiled_alone(parts: ModelParts, node: Node, given: Arrays, expected: Arrays, options: Options) -> tuple[Any, Arrays]:
    """The executable of a node's model, and the inputs that it takes. Sizes, axes and the like that must be known are constants of
    it where it cannot be compiled otherwise."""
    try:
        return compile_graph(from_onnx(parts.piece([node], given, expected)), "cpu", options), given
    except CompileError:
        known = {name: array for name, array in given.items() if array.size <= MOST_KNOWN_ELEMENTS and array.ndim <= 1}
        if not known:
            raise
        remaining = {name: array for name, array in given.items() if name not in known}
        return compile_graph(from_onnx(parts.piece([node], remaining, expected, known)), "cpu", options), remaining


def extract(parts: ModelParts, node: Node, values: Arrays, folder: Path, stem: str) -> tuple[Path, ...]:
    """Writes the node as a model, and the inputs that it was given."""
    given = {name: values[name] for name in parts.read_by([node], values) if name not in node.output}
    expected = {name: values[name] for name in parts.made_by([node])}
    name = re.sub(r"[^\w.-]+", "_", f"{stem}.{node_name(node)}").strip("_.")[:100]
    model, arrays = folder / f"{name}.onnx", folder / f"{name}.npz"
    write_bytes(model, parts.piece([node], given, expected).SerializeToString())
    save_inputs(arrays, given)
    return model, arrays


# --- text ------------------------------------------------------------------------------------------------------------


def verify_lines(name: str, peer: str, outputs: Sequence[OutputCheck], layers: LayerCheck | None) -> list[str]:
    agree = all(output.difference.agrees for output in outputs)
    lines = [f"{name}: {'agrees with' if agree else 'differs from'} {peer}"]
    for output in outputs:
        shape = ", ".join(map(str, output.shape))
        verdict = "agrees" if output.difference.agrees else "differs"
        lines.append(f"  {output.name}: {output.dtype}[{shape}] {verdict}: {output.difference.text()}")
    return lines if layers is None else [*lines, *_layer_lines(layers, agree)]


def _layer_lines(layers: LayerCheck, agree: bool) -> list[str]:
    lines = [f"  {layers.compared} of {layers.nodes} nodes compared one by one, each given the peer's inputs"]
    lines += [f"    not compared: '{node.name}' ({node.op}): {node.skipped}" for node in layers.skipped]
    if layers.first is not None:
        first = layers.first
        lines += [f"  the first node that diverges: '{first.name}' ({first.op}), number {first.number}", f"    {first.text()}",
                  *(f"    wrote {path}" for path in layers.files)]
    elif layers.worst is not None:
        lines.append(f"  none diverges; the nearest to its bound: '{layers.worst.name}' ({layers.worst.op}), {layers.worst.text()}")
    if layers.first is None and not agree:
        lines.append("  so the difference adds up over nodes, or arises where they are compiled together")
    return lines


def verify_data(name: str, peer: str, outputs: Sequence[OutputCheck], layers: LayerCheck | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": name, "against": peer, "agrees": all(output.difference.agrees for output in outputs) and
        (layers is None or layers.first is None),
        "outputs": {o.name: {"dtype": o.dtype, "shape": list(o.shape), **_difference_data(o.difference)} for o in outputs}}
    if layers is not None:
        data["layers"] = {"nodes": layers.nodes, "compared": layers.compared, "first": _node_data(layers.first),
                          "worst": _node_data(layers.worst), "files": [str(path) for path in layers.files],
                          "skipped": [{"node": n.name, "operator": n.op, "reason": n.skipped} for n in layers.skipped]}
    return data


def _node_data(check: NodeCheck | None) -> dict[str, Any] | None:
    return None if check is None else {"number": check.number, "node": check.name, "operator": check.op, "failure": check.failure,
                                       "outputs": {name: _difference_data(d) for name, d in check.differences.items()}}


def _difference_data(difference: Difference) -> dict[str, Any]:
    """JSON has no infinity: where values cannot be compared, there is no error to tell."""
    error, units = (None, None) if difference.problem else (difference.error, difference.units)
    return {"agrees": difference.agrees, "error": error, "bound": difference.bound, "units": units, "worst": list(difference.worst),
            "found": difference.found, "expected": difference.expected, "problem": difference.problem}


__all__ = ["load_inputs", "verify_data", "verify_layers", "verify_lines", "verify_outputs"]
