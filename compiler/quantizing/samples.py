"""Calibration data: what may be given, and one dict of arrays a sample out of it.

Given may be: the path of an .npz file or a mapping {input: array}, whose arrays are stacked along a first axis of samples; an
iterable of dicts {input: array}; of arrays or tuples of arrays in the order of the inputs. A stacked array has a rank more than
the input, or the input's own rank: then a sample is a slice of size 1 of the first axis, and the input must allow that.

Guarantees: every sample has exactly the model's inputs, of their dtypes (narrower ones are widened where that is exact) and of
shapes that fit together; all floats are finite; samples differ. What does not hold is one error that names sample and input.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.dims import bounds
from ..ir.errors import ArgumentError
from ..ir.graph import Array, Graph, Node
from ..ir.interp import bind_shapes
from ..ir.ops.control import Param

Sample = dict[str, Array]
FEW = 8  # samples below which ranges are little more than guesses


def label_of(param: Node) -> str:
    assert isinstance(param.op, Param)
    return param.op.label


def read_samples(graph: Graph, data: Any, what: str = "calibration") -> tuple[Sample, ...]:
    """The samples in `data`, checked against the graph's inputs. ArgumentError begins with `what`."""
    given = _unpacked(graph, data, what)
    samples = tuple(_checked(graph, sample, f"{what}: sample {number}") for number, sample in enumerate(given))
    if not samples:
        raise ArgumentError(f"{what}: there are no samples", hint=f"give {FEW} or more, like those that the model will meet")
    if len(samples) > 1 and all(_equal(samples[0], sample) for sample in samples[1:]):
        raise ArgumentError(f"{what}: all {len(samples)} samples are equal, expected data that varies as the model's inputs do")
    if all(_one_value(sample[name], array) for name, array in samples[0].items() for sample in samples):
        shown = ", ".join(f"'{name}' is {array.flat[0]}" for name, array in samples[0].items() if array.size)
        raise ArgumentError(f"{what}: the data is constant: {shown or 'every input is empty'} everywhere, expected data that varies "
                            "as the model's inputs do")
    return samples


def _equal(left: Sample, right: Sample) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


def _one_value(array: Array, like: Array) -> bool:
    return not array.size or bool((array == like.flat[0]).all())


def _unpacked(graph: Graph, data: Any, what: str) -> Iterable[Any]:
    if isinstance(data, (str, os.PathLike)):
        data = _load(Path(data), what)
    if isinstance(data, Mapping):
        return _unstacked(graph, data, what)
    if isinstance(data, np.ndarray):
        if len(graph.params) != 1:
            raise ArgumentError(f"{what}: found one array for {len(graph.params)} inputs, expected a dict of arrays by input name")
        return _unstacked(graph, {label_of(graph.params[0]): data}, what)
    if not isinstance(data, Iterable):
        raise ArgumentError(f"{what}: found {type(data).__name__}, expected an .npz file, a dict of stacked arrays, "
                            "or an iterable of samples")
    return data


def _load(path: Path, what: str) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ArgumentError(f"{what}: {path} holds one array, expected an .npz file with an array for each input")
        with archive:
            return {name: archive[name] for name in archive.files}
    except ArgumentError:
        raise
    except FileNotFoundError:
        raise ArgumentError(f"{what}: {path} cannot be read: there is no such file") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):  # the fifth: encrypted, or packed otherwise
        raise ArgumentError(f"{what}: {path} cannot be read: it is no .npz file of plain arrays") from None


def _unstacked(graph: Graph, arrays: Mapping[str, Any], what: str) -> list[Sample]:
    """One dict a sample out of arrays with a first axis of samples."""
    ranks = {label_of(param): param for param in graph.params}
    _check_names(arrays, ranks, what)
    lengths: dict[str, int] = {}
    stacked: dict[str, list[Array]] = {}
    for name, param in ranks.items():
        array = _array_of(arrays[name], f"{what}: '{name}'")
        if array.ndim == param.rank + 1:
            stacked[name] = list(array)
        elif array.ndim == param.rank and array.ndim and _allows_one(param):
            stacked[name] = [array[i:i + 1] for i in range(len(array))]
        else:
            raise ArgumentError(f"{what}: '{name}' is {array.dtype}{list(array.shape)}, expected samples of {param.type} "
                                "along a first axis")
        lengths[name] = len(stacked[name])
    if len(set(lengths.values())) > 1:
        raise ArgumentError(f"{what}: inputs have different numbers of samples: "
                            + ", ".join(f"{name} {count}" for name, count in lengths.items()))
    return [dict(zip(stacked, values)) for values in zip(*stacked.values())]


def _allows_one(param: Node) -> bool:
    low, high = bounds(param.shape[0])
    return low <= 1 <= high


def _check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing:
        raise ArgumentError(f"{where}: input '{min(missing)}' is missing, found {', '.join(sorted(found)) or 'nothing'}")
    if unknown:
        raise ArgumentError(f"{where}: '{min(unknown)}' is no input of the model, whose inputs are {', '.join(expected) or 'none'}")


def _checked(graph: Graph, sample: Any, where: str) -> Sample:
    """A sample of exactly the inputs' names, dtypes and ranks."""
    names = [label_of(param) for param in graph.params]
    if isinstance(sample, Mapping):
        _check_names(sample, names, where)
        given: Sequence[Any] = [sample[name] for name in names]
    else:
        given = sample if isinstance(sample, (tuple, list)) else (sample,)
        if len(given) != len(names):
            raise ArgumentError(f"{where}: found {len(given)} arrays for the inputs {', '.join(names)}")
    arrays = [_converted(param, name, value, where) for param, name, value in zip(graph.params, names, given)]
    try:
        bind_shapes(graph, arrays)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error.message}") from None
    return dict(zip(names, arrays))


def _converted(param: Node, name: str, value: Any, where: str) -> Array:
    array, wanted = _array_of(value, f"{where}: input '{name}'"), param.dtype.numpy
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "safe"):
            hint = f"convert the data: array.astype(numpy.{wanted})" if array.dtype.kind in "iuf" and wanted.kind in "iuf" else ""
            raise ArgumentError(f"{where}: input '{name}' must be {param.type}, found {array.dtype}{list(array.shape)}", hint=hint)
        array = array.astype(wanted)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise ArgumentError(f"{where}: input '{name}' holds {kind}, which no range can hold")
    return array


def _array_of(value: Any, where: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError:  # lists of several lengths
        raise ArgumentError(f"{where} is a {type(value).__name__} that no array can be made of, expected equal sizes along each "
                            "axis") from None
