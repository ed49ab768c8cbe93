"""Ways to damage an ONNX model by its structure: what random bytes rarely reach, because a damaged file no longer parses.

What it does: `edited(model, rng, donor)` changes some fields of a model in place. Most edits know nothing of ONNX but the messages'
own descriptors: a number becomes one at a border, a text another text, a message is removed, doubled, exchanged or taken from
another model. The others know what an importer believes: that names are unique and defined before they are read, that sizes and
counts are small, that attributes are of the kind that the operator wants, that external data lies in the model's folder.

Assumes a model that protobuf could parse. Guarantees: randomness comes from `rng` alone; the same arguments give the same edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..frontends.onnx_messages import ModelProto
from ..frontends.onnx_ops.table import CONTRIBUTED, STANDARD
from .rebuild import chosen

Edit = Callable[[Any, np.random.Generator, Any], None]

BORDERS = (0, 1, -1, 2, -2, 3, 7, 64, 255, 1 << 12, 1 << 16, 10 ** 6, 10 ** 9, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 32) + 1, 1 << 40,
           (1 << 48) - 1, 1 << 48, 1 << 62, (1 << 63) - 1, -(1 << 63))
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e9, -1e9, 1e18, 3.4e38, float("inf"), float("-inf"), float("nan"))
OPERATORS = tuple(sorted(STANDARD | CONTRIBUTED))
TEXTS = ("", " ", "x", "y", "N", "?", "None", "lambda", "0", "-1", "a" * 300, "é", "\0", "\n", "'", '"', "%s", "{}", "../x", "ij,jk->ik",
         "...", "->", "i" * 60 + "->", ",".join("abcdefgh"), "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "linear", "cubic", "nearest",
         "reflect", "wrap", "edge", "constant", "align_corners", "half_pixel", "tf_crop_and_resize", "bidirectional", "reverse",
         "Sigmoid", "mean",
         "sum", "none", "max", "mul", "CRD", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local")
PLACES = ("weights.bin", "./weights.bin", "folder/../weights.bin", "missing.bin", "", ".", "..", "/", "../outside.bin", "folder",
          "folder/../../outside.bin", "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "link.bin", "loop.bin", "pipe", "device",
          "sparse.bin", "weights.bin\0", "a" * 5000, "C:\\weights.bin", "~/weights.bin", "file:///etc/passwd", "\ud7ff")
NUMBER_TEXTS = ("0", "4", "12", "-1", "1e3", "0x10", " 4", "٤", str(1 << 31), str(1 << 62), str(1 << 64), "9" * 19, "9" * 5000, "")
MESSAGE, ENUM, TEXT = 10, 8, 9  # kinds of fields, as protobuf counts them
REAL = (5, 6)
LIMITS = {1: 31, 2: 63, 3: 32, 4: 64}  # bits of whole numbers by kind


# --- the messages of a model --------------------------------------------------------------------------------------------


def messages(root: Any, kind: str = "") -> list[Any]:
    """The message and all inside it, or those of one kind, in the order of the file."""
    found, stack = [], [root]
    while stack:
        message = stack.pop()
        if not kind or message.DESCRIPTOR.name == kind:
            found.append(message)
        for field, value in reversed(message.ListFields()):
            if field.cpp_type == MESSAGE:
                stack.extend(reversed(value) if field.is_repeated else (value,))
    return found


def one_of(root: Any, kind: str, rng: np.random.Generator) -> Any | None:
    """One message of that kind; None where there is none."""
    found = messages(root, kind)
    return chosen(rng, found) if found else None


def a_number(rng: np.random.Generator) -> int:
    return int(chosen(rng, BORDERS)) + int(rng.integers(-1, 2)) * int(rng.random() < 0.2)


def within(number: int, kind: int) -> int:
    """The number as one that a field of that kind holds."""
    bits = LIMITS[kind]
    if kind in (3, 4):
        return number % (1 << bits)
    return max(-(1 << bits), min((1 << bits) - 1, number))


def names_of(model: Any) -> list[str]:
    """The names of values that some node reads or makes."""
    return [name for node in messages(model, "NodeProto") for name in (*node.input, *node.output)] or [""]


def _scalar(field: Any, old: Any, model: Any, rng: np.random.Generator) -> Any:
    """Another value for a field that holds no message."""
    if field.cpp_type == TEXT:
        text = chosen(rng, names_of(model)) if rng.random() < 0.5 else chosen(rng, TEXTS if rng.random() < 0.7 else OPERATORS)
        return text if field.type == 9 else text.encode()
    if field.cpp_type in REAL:
        return chosen(rng, REALS)
    if field.cpp_type == ENUM:
        return chosen(rng, field.enum_type.values).number
    if field.name in ("data_type", "elem_type"):
        return int(rng.integers(0, 32))
    number = a_number(rng)
    if isinstance(old, int) and rng.random() < 0.3:
        number = old + int(rng.integers(-2, 3)) if rng.random() < 0.5 else -old
    return within(number, field.cpp_type)


# --- edits that know only descriptors -------------------------------------------------------------------------------------


def set_a_number(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A number that is there becomes another one: sizes, elements, attributes, opsets, element types."""
    _set_one(model, rng, lambda field: field.cpp_type not in (MESSAGE, TEXT))


def set_a_text(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A text that is there becomes another one: names, operators, domains, attributes."""
    _set_one(model, rng, lambda field: field.cpp_type == TEXT)


def _set_one(model: Any, rng: np.random.Generator, wanted: Callable[[Any], bool]) -> None:
    places = [(m, field) for m in messages(model) for field, _ in m.ListFields() if wanted(field) and field.name != "raw_data"]
    if not places:
        return
    message, field = chosen(rng, places)
    value = getattr(message, field.name)
    if field.is_repeated:
        place = int(rng.integers(len(value)))
        value[place] = _scalar(field, value[place], model, rng)
    else:
        setattr(message, field.name, _scalar(field, value, model, rng))


def fill_a_field(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """Some field of some message, which may have been empty, is set, or made longer."""
    message = chosen(rng, messages(model))
    field = chosen(rng, message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if field.cpp_type == MESSAGE:
        made = one_of(donor if donor is not None else model, field.message_type.name, rng)
        target = value.add() if field.is_repeated else value
        if made is not None and made.ByteSize() < 1 << 14:
            target.CopyFrom(_copy(made))
        else:
            target.SetInParent()
    elif field.is_repeated:
        one = _scalar(field, None, model, rng)
        value.extend([one] * (1 if rng.random() < 0.8 else int(rng.integers(1, 300))))
    else:
        setattr(message, field.name, _scalar(field, value, model, rng))


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _lists(model: Any, least: int) -> list[tuple[Any, Any]]:
    """Every repeated field with so many entries."""
    return [(m, value) for m in messages(model) for field, value in m.ListFields() if field.is_repeated and len(value) >= least]


def remove_entry(model: Any, rng: np.random.Generator, donor: Any) -> None:
    places = _lists(model, 1)
    if places:
        _, entries = chosen(rng, places)
        del entries[int(rng.integers(len(entries)))]


def double_entry(model: Any, rng: np.random.Generator, donor: Any) -> None:
    places = _lists(model, 1)
    if places:
        _, entries = chosen(rng, places)
        one = entries[int(rng.integers(len(entries)))]
        copied = _copy(one) if hasattr(one, "DESCRIPTOR") else one
        entries.extend([copied] * (1 if rng.random() < 0.8 else int(rng.integers(1, 200))))


def exchange_entries(model: Any, rng: np.random.Generator, donor: Any) -> None:
    places = _lists(model, 2)
    if places:
        _, entries = chosen(rng, places)
        order = rng.permutation(len(entries)) if rng.random() < 0.2 else np.arange(len(entries))
        i, j = (int(n) for n in rng.integers(0, len(entries), 2))
        order[[i, j]] = order[[j, i]]
        kept = [_copy(e) if hasattr(e, "DESCRIPTOR") else e for e in entries]
        del entries[:]
        entries.extend(kept[k] for k in order)


def clear_field(model: Any, rng: np.random.Generator, donor: Any) -> None:
    places = [(m, field) for m in messages(model) for field, _ in m.ListFields() if field.name != "graph"]
    if places:
        message, field = chosen(rng, places)
        message.ClearField(field.name)


# --- edits that know what an importer believes ----------------------------------------------------------------------------


def bind_input(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """An input of whole numbers becomes a constant of numbers at borders: shapes, repeats, pads, counts."""
    known = {t.name for t in model.graph.initializer}
    for value in (v for v in model.graph.input if v.name not in known):
        tensor = value.type.tensor_type
        sizes = [d.dim_value for d in tensor.shape.dim]
        count = int(np.prod([max(n, 0) for n in sizes], dtype=object)) if sizes else 1
        if tensor.elem_type in (6, 7) and count <= 64 and rng.random() < 0.7:
            made = model.graph.initializer.add(name=value.name, data_type=tensor.elem_type, dims=sizes)
            field, kind = (made.int32_data, 1) if tensor.elem_type == 6 else (made.int64_data, 2)
            plain = rng.random() < 0.5
            field.extend(within(int(rng.integers(0, 9)) if plain and rng.random() < 0.7 else a_number(rng), kind) for _ in range(count))


def set_elements(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A whole number in a constant, which may lie there as bytes, becomes one at a border."""
    tensors = [t for t in messages(model, "TensorProto") if t.data_type in (6, 7) and len(t.raw_data) >= 4]
    if tensors:
        tensor = chosen(rng, tensors)
        width = 8 if tensor.data_type == 7 else 4
        data = bytearray(tensor.raw_data)
        place = int(rng.integers(max(1, len(data) // width))) * width
        data[place:place + width] = (a_number(rng) % (1 << 8 * width)).to_bytes(width, "little")
        tensor.raw_data = bytes(data)


def set_dim(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A size of a declared shape becomes a number at a border, a name or nothing; or there are many more of them."""
    shape = one_of(model, "TensorShapeProto", rng)
    if shape is None:
        return
    if not shape.dim or rng.random() < 0.15:
        for _ in range(int(chosen(rng, (1, 1, 2, 8, 33, 65, 300)))):
            shape.dim.add(dim_value=within(a_number(rng), 2) if rng.random() < 0.5 else 1)
        return
    dim = chosen(rng, shape.dim)
    if rng.random() < 0.3:
        dim.dim_param = chosen(rng, ("", "N", "batch", "?", "lambda", "x", "a b", "N*2", "N" * 2000, "é"))
    else:
        dim.dim_value = within(a_number(rng), 2)


def set_attribute_kind(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """An attribute says that it is of another kind, with or without a value of that kind."""
    attribute = one_of(model, "AttributeProto", rng)
    if attribute is None:
        return
    attribute.type = int(rng.integers(0, 15))
    if rng.random() < 0.7:
        attribute.i, attribute.f, attribute.s = within(a_number(rng), 2), chosen(rng, REALS), chosen(rng, TEXTS).encode()
        attribute.ints.extend(within(a_number(rng), 2) for _ in range(int(rng.integers(0, 5))))
        attribute.floats.extend(chosen(rng, REALS) for _ in range(int(rng.integers(0, 5))))
        attribute.strings.append(chosen(rng, (b"\xff", b"", b"linear", b"\0")))
    if rng.random() < 0.3:
        attribute.ref_attr_name = chosen(rng, ("", "alpha", attribute.name))


def exchange_operator(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A node becomes one of another operator, with its inputs and attributes or without."""
    node = one_of(model, "NodeProto", rng)
    if node is not None:
        node.op_type = chosen(rng, OPERATORS)
        node.domain = domain_for(model, node.op_type)
        if rng.random() < 0.6:
            del node.attribute[:]


def domain_for(model: Any, operator: str) -> str:
    """The domain that knows the operator, for which the model names an opset then."""
    if operator in STANDARD:
        return ""
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    return "com.microsoft"


def rewire(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A node reads another value: of another type, its own, a later one, one that is missing, too many."""
    node = one_of(model, "NodeProto", rng)
    if node is None:
        return
    names = [*names_of(model), *node.output, "", "ghost", *(t.name for t in model.graph.initializer)]
    if node.input and rng.random() < 0.8:
        node.input[int(rng.integers(len(node.input)))] = chosen(rng, names)
    else:
        node.input.extend([chosen(rng, names)] * int(chosen(rng, (1, 1, 1, 2, 50, 2000))))


def define_twice(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A name that is taken is given again: to an output, an input, a constant, a function."""
    graph, name = model.graph, chosen(rng, names_of(model))
    match int(rng.integers(4)):
        case 0:
            node = one_of(model, "NodeProto", rng)
            if node is not None:
                node.output.append(name)
        case 1:
            graph.initializer.add(name=name, data_type=1, dims=(0,))
        case 2:
            graph.input.add(name=name).type.tensor_type.elem_type = 1
        case _:
            made = chosen(rng, graph.node) if graph.node else None
            if made is not None:
                model.functions.add(name=made.op_type, domain=made.domain, input=made.input, output=made.output).node.append(_copy(made))


def set_opsets(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """Versions of opsets that there are not; old ones, where operators meant something else; or several of one domain."""
    if rng.random() < 0.3:
        del model.opset_import[:]
    for _ in range(int(rng.integers(0, 3))):
        version = int(rng.integers(1, 27)) if rng.random() < 0.7 else within(a_number(rng), 2)
        domain = chosen(rng, ("", "", "", "", "ai.onnx", "com.microsoft", "local", "ai.onnx.ml"))
        if rng.random() < 0.7:
            for entry in [entry for entry in model.opset_import if entry.domain == domain]:
                model.opset_import.remove(entry)
        model.opset_import.add(domain=domain, version=version)


def point_outside(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A constant lies in another file: beyond the folder, past its end, in a device."""
    tensor = one_of(model, "TensorProto", rng)
    if tensor is None:
        tensor = model.graph.initializer.add(name=chosen(rng, names_of(model)), data_type=1, dims=(3,))
    if rng.random() < 0.7:
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=chosen(rng, PLACES))
    for key in ("offset", "length", "checksum"):
        if rng.random() < 0.4:
            tensor.external_data.add(key=key, value=chosen(rng, NUMBER_TEXTS))
    if rng.random() < 0.4:
        tensor.dims[:] = [within(a_number(rng), 2) for _ in range(int(rng.integers(0, 3)))]


def lengthen_name(model: Any, rng: np.random.Generator, donor: Any) -> None:
    """A name of a value becomes very long or odd, wherever it is used."""
    old = chosen(rng, names_of(model))
    new = chosen(rng, ("n" * 100_000, "a\nb", "\0", "é" * 50, "class", "x" * 70, "'\"", "{0}", "%n", " ", "\u202e", "1"))
    for node in messages(model, "NodeProto"):
        for names in (node.input, node.output):
            for place in [i for i, name in enumerate(names) if name == old]:
                names[place] = new
    for value in (*messages(model, "ValueInfoProto"), *messages(model, "TensorProto")):
        if value.name == old:
            value.name = new


EDITS: dict[str, Edit] = {edit.__name__: edit for edit in (
    set_a_number, set_a_text, fill_a_field, remove_entry, double_entry, exchange_entries, clear_field, bind_input, set_elements, set_dim,
    set_attribute_kind, exchange_operator, rewire, define_twice, set_opsets, point_outside, lengthen_name)}
OFTEN = ("set_a_number", "bind_input", "set_elements", "set_dim", "exchange_operator", "rewire")  # what most often stays a model


def edited(model: Any, rng: np.random.Generator, donor: Any = None) -> tuple[str, ...]:
    """Changes the model in place; the names of the edits."""
    names = tuple(chosen(rng, OFTEN if rng.random() < 0.5 else tuple(EDITS)) for _ in range(int(chosen(rng, (1, 1, 1, 2, 2, 3, 6)))))
    for name in names:
        EDITS[name](model, rng, donor)
    return names


def parsed(data: bytes) -> Any | None:
    """The bytes as a model; None where they are none."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # of protobuf, which only the front end may name
        return None
    return model


def damaged_text(data: bytes, rng: np.random.Generator) -> bytes:
    """A text of the file becomes one that is no UTF-8, of the same length, so that the file still parses."""
    runs = list(_runs(data))
    if not runs:
        return data
    start, end = chosen(rng, runs)
    changed = bytearray(data)
    changed[int(rng.integers(start, end))] = int(chosen(rng, (0xff, 0xc0, 0x80, 0xed)))
    return bytes(changed)


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where printable characters stand in a row, two or more."""
    start = 0
    for place in range(len(data) + 1):
        if place == len(data) or not 32 < data[place] < 127:
            if place - start > 1:
                yield start, place
            start = place + 1


def edited_bytes(data: bytes, rng: np.random.Generator, donor: bytes) -> bytes:
    """The file with edits by its structure; as it was where it is no model."""
    model = parsed(data)
    if model is None:
        return data
    edited(model, rng, parsed(donor) if donor else None)
    made: bytes = model.SerializeToString()
    return damaged_text(made, rng) if rng.random() < 0.05 else made


def merged(parts: Sequence[bytes]) -> bytes:
    """Two files one after the other, which protobuf reads as one message."""
    return b"".join(parts)
