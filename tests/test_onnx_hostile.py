"""Hostile ONNX files: each ends in a graph or one clear error, soon and in little memory; and the fuzzer that looks for others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

import tilewright as tw
from tilewright.frontends import onnx_limits
from tilewright.frontends.from_onnx import from_onnx
from tilewright.frontends.onnx_messages import GraphProto
from tilewright.frontends.onnx_ops import table
from tilewright.fuzz import onnx_bombs, onnx_contributed, onnx_edits, onnx_files
from tilewright.fuzz.onnx_account import Account, reason_of
from tilewright.fuzz.onnx_bombs import BOMBS, INT64, Draft
from tilewright.fuzz.onnx_seeds import OWN, Seeds
from tilewright.fuzz.subject import Failure
from tilewright.ir.errors import CompileError, InternalError, TilewrightError, UnsupportedError
from tilewright.ir.verify import verify

SEEDS = Seeds(tuple(path.read_bytes() for path in sorted(OWN.glob("*.onnx"))), ())


def draft() -> Draft:
    return Draft(np.random.default_rng(0), opset=17)


def refused(model: Any, *parts: str, kind: type[CompileError] = CompileError) -> CompileError:
    with pytest.raises(kind) as caught:
        from_onnx(model.SerializeToString())
    assert not isinstance(caught.value, InternalError)
    for part in parts:
        assert part in str(caught.value)
    return caught.value


# --- what the fuzzer found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "last"), [(30, "Relu"), (40, "Identity")])
def test_functions_that_call_the_next_one_twice(levels: int, last: str) -> None:
    """30 functions are 2**30 calls, which count though nothing be made."""
    d = draft()
    d.model.opset_import.add(domain="local", version=1)
    for level in range(levels):
        function = d.model.functions.add(name=f"f{level}", domain="local", input=["a"], output=["c"])
        function.opset_import.add(domain="", version=17)
        function.opset_import.add(domain="local", version=1)
        for source, target in (("a", "b"), ("b", "c")):
            called = function.node.add(op_type=f"f{level + 1}" if level < levels - 1 else last, input=[source], output=[target])
            called.domain = "local" if level < levels - 1 else ""
    refused(d.done(d.node("f0", d.input(2), domain="local")), "more than", "nodes")


def test_loops_in_loops() -> None:
    """A loop whose first form is refused is tried in another one: 2**25 bodies."""
    d = draft()
    x, trips = d.input(2, 3), d.input(kind=INT64)
    body = GraphProto(name="b")
    d.node("Relu", x, graph=body)
    for level in range(25):
        onnx_bombs._body_interface(body, "Loop", body.node[-1].output[0], str(level))
        outer = GraphProto(name=f"b{level}")
        d.node("Loop", trips, "", x, graph=outer, body=body)
        body = outer
    d.graph.node.extend(body.node)
    began = time.thread_time()
    with pytest.raises(CompileError):
        from_onnx(d.done(body.node[-1].output[0]).SerializeToString())
    assert time.thread_time() - began < 4.0


def test_an_operator_of_very_many_terms() -> None:
    """Antialiasing takes as many terms as the image becomes smaller."""
    d = Draft(np.random.default_rng(0), opset=18)
    x = d.input(1, 1, 4, 100_000)
    y = d.node("Resize", x, "", "", d.numbers(1, 1, 4, 1), mode="linear", antialias=1)
    refused(d.done(y), "more than", "nodes")


def test_more_axes_than_an_array_may_have() -> None:
    d = draft()
    x = d.input(2)
    for _ in range(70):
        x = d.node("Unsqueeze", x, d.numbers(0))
    refused(d.done(x), "found 65 axes, expected at most 64", kind=UnsupportedError)


@pytest.mark.parametrize("sizes", [(1 << 62, 8), (1 << 49,), (1 << 40, 1 << 40, 0)])
def test_more_elements_than_can_be_counted(sizes: tuple[int, ...]) -> None:
    d = draft()
    refused(d.done(d.node("Size", d.node("ConstantOfShape", d.numbers(*sizes)))), "more than 2**48 elements")


@pytest.mark.parametrize("what", ["trip count", "condition"])
def test_a_loop_whose_arguments_are_empty(what: str) -> None:
    d = draft()
    x, empty = d.input(2), d.numbers()
    body = GraphProto(name="b")
    d.node("Relu", x, graph=body)
    onnx_bombs._body_interface(body, "Loop", body.node[-1].output[0], "")
    arguments = (empty, "") if what == "trip count" else (d.numbers(3, scalar=True), empty)
    refused(d.done(d.node("Loop", *arguments, x, body=body)), f"the {what} must be one element")


def test_branches_of_different_numbers_of_outputs() -> None:
    d = draft()
    x, condition = d.input(2), d.input(kind=onnx_bombs.BOOL)
    refused(d.done(d.node("If", condition, then_branch=onnx_bombs._flat_body(d, x), else_branch=GraphProto(name="none"))),
            "the branches give 1 and 0 outputs")


def test_declared_shapes_of_another_rank() -> None:
    """They stand for what data decides."""
    d = draft()
    made = d.node("Resize", d.input(1, 1, 4, 4), "", "", d.input(4, kind=INT64))
    d.done(made)
    d.graph.output[0].type.tensor_type.elem_type = 1
    d.graph.output[0].type.tensor_type.shape.dim.add(dim_value=8)
    refused(d.model, "output 0 is declared with 1 axes, expected 4")


def test_an_axis_that_is_no_number() -> None:
    d = draft()
    refused(d.done(d.node("CumSum", d.input(2, 3), d.numbers())), "input 'axis' must be one number, found 0")


def test_a_deformable_convolution_whose_offset_is_no_image() -> None:
    d = Draft(np.random.default_rng(0), opset=19)
    refused(d.done(d.node("DeformConv", d.input(1, 1, 4, 4), d.input(1, 1, 2, 2), d.input(8, 3, 3))), "the offset must have 4 axes")


def test_sizes_for_more_axes_than_there_are() -> None:
    d = Draft(np.random.default_rng(0), opset=18)
    refused(d.done(d.node("CenterCropPad", d.input(2, 3), d.numbers(1, 1, 1))), "has 3 entries for 2 axes")


def test_very_many_parts() -> None:
    d = Draft(np.random.default_rng(0), opset=18)
    refused(d.done(d.node("Split", d.input(2, 3), num_outputs=1 << 40)), f"{1 << 40} parts, but 1 outputs")


def test_an_update_of_another_rank_than_the_cache() -> None:
    d = Draft(np.random.default_rng(0), opset=24)
    refused(d.done(d.node("TensorScatter", d.input(2, 4, 8, 3), d.input(2, 3), axis=2)), "the update must have 4 axes")


UINT8 = 2
CONTRIBUTED = "com.microsoft"
# operator, domain, opset, shapes of the inputs (with their element type where it is not float), attributes, what is said
WRONG_RANKS: tuple[tuple[str, str, int, tuple[Any, ...], dict[str, Any], str], ...] = (
    ("RotaryEmbedding", CONTRIBUTED, 17, ((2, 5), ((2, 5), INT64), (7, 2), (7, 2)), {}, "input 'input' must have rank 3 or 4"),
    ("RotaryEmbedding", CONTRIBUTED, 17, ((2, 5, 4), ((2, 5), INT64), (7, 0), (7, 0)), {}, "must be positive, found 0"),
    ("MultiHeadAttention", CONTRIBUTED, 17, ((2, 5, 4), (2, 7), (2, 7)), {"num_heads": 2}, "input 'key' must have rank 3 or 4"),
    ("Attention", CONTRIBUTED, 17, ((2, 12), (12, 36)), {"num_heads": 3}, "input 'input' must have rank 3"),
    ("Attention", CONTRIBUTED, 17, ((2, 5, 12), (12, 36), (36,), (2,), (2, 5, 12)), {"num_heads": 3}, "input 'past' must have rank 5"),
    ("Attention", CONTRIBUTED, 17, ((2, 5, 0), (0, 0), (0,)), {"num_heads": 1}, "the head size must be positive"),
    ("BiasSplitGelu", CONTRIBUTED, 17, ((), ()), {}, "needs a last axis"),
    ("QLinearAdd", CONTRIBUTED, 17, ((3,), (), ((), UINT8), (3,), (), ((), UINT8), (), ((), UINT8)), {}, "must be an integer, found f32"),
    ("Attention", "", 23, ((1, 2, 3, 0), (1, 2, 3, 0), (1, 2, 3, 4)), {}, "the head size must be positive"),
    ("Attention", "", 23, ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), {"scale": -1.0}, "the scale -1.0 has no square root"),
    ("STFT", "", 17, ((1, 16, 1), ((), INT64), ()), {}, "input 'window' must have rank 1"),
    ("BatchNormalization", "", 15, ((2, 3), (), (3,), (3,), (3,)), {}, "input 'scale' must have rank 1"),
    ("InstanceNormalization", "", 6, ((1, 3, 4), (), (3,)), {}, "input 'scale' must have rank 1"),
    ("FusedConv", CONTRIBUTED, 17, ((1, 3, 4, 4), (2, 3, 1, 1), ()), {}, "input 'B' must have rank 1"),
    ("MultiHeadAttention", CONTRIBUTED, 17, ((2, 5, 4), (2, 7, 4), (2, 7, 4), ()), {"num_heads": 2}, "input 'bias' must have rank 1"),
    ("Attention", "", 23, ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), ()), {}, "input 'attn_mask' must have rank 1 or 2 or 3 or 4"),
    ("Attention", "", 23, ((1, 2, 3, 4),) * 3 + ((3, 3), (), ()), {}, "input 'past_key' must have rank 4"),
    ("LinearAttention", "", 27, ((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 1, 4, 4), (1, 2, 4), ()), {"q_num_heads": 1, "kv_num_heads": 1},
     "input 'beta' must have rank 3"),
    ("BatchNormalization", "", 15, ((3,), (3,), (3,), (3,), (3,)), {"training_mode": 1}, "needs an axis of channels"),
)


@pytest.mark.parametrize(("operator", "domain", "opset", "shapes", "attributes", "message"), WRONG_RANKS)
def test_inputs_of_another_rank_than_an_operator_takes(operator: str, domain: str, opset: int, shapes: tuple[Any, ...],
                                                       attributes: dict[str, Any], message: str) -> None:
    d = Draft(np.random.default_rng(0), opset=opset)
    if domain:
        d.model.opset_import.add(domain=domain, version=1)
    inputs = [d.input(*shape[0], kind=shape[1]) if shape and isinstance(shape[0], tuple) else d.input(*shape) for shape in shapes]
    refused(d.done(d.node(operator, *inputs, domain=domain, **attributes)), message)


@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (1, 1, 5, 0), (0, 2, 3, 4)])
@pytest.mark.parametrize("order", [0, 1])
def test_places_of_maxima_of_nothing(sizes: tuple[int, ...], order: int) -> None:
    d = Draft(np.random.default_rng(0), opset=12)
    first = d.node("MaxPool", d.input(*sizes), outputs=2, kernel_shape=[2, 2], pads=[1, 1, 1, 1], storage_order=order)
    verify(from_onnx(d.done(first, f"{first}_1").SerializeToString()))


def test_an_argument_that_is_empty_or_no_list() -> None:
    d = draft()
    refused(d.done(d.node("Range", d.numbers(), d.numbers(3, scalar=True), d.numbers(1, scalar=True))), "must be one number each")
    d = draft()
    refused(d.done(d.node("OneHot", d.input(3, kind=INT64), d.numbers(4, scalar=True), d.input())), "input 'values' must have rank 1")


@pytest.mark.parametrize(("name", "values", "message"), [("strides", (1, 0), "strides (1, 0)"), ("dilations", (1,), "dilations (1,)"),
                                                         ("pads", (0, 0), "pads (0, 0)")])
def test_blocks_of_an_image_without_steps(name: str, values: tuple[int, ...], message: str) -> None:
    d = Draft(np.random.default_rng(0), opset=18)
    refused(d.done(d.node("Col2Im", d.input(1, 5, 5), d.numbers(5, 5), d.numbers(1, 5), **{name: values})), message)
    d = Draft(np.random.default_rng(0), opset=18)
    refused(d.done(d.node("Col2Im", d.input(1, 5, 5), d.numbers(5, 5), d.numbers(1, 0))), "blocks (1, 0)")


@pytest.mark.parametrize("raw", [False, True])
def test_a_constant_of_more_axes_than_an_array_may_have(raw: bool) -> None:
    d = draft()
    tensor = d.graph.initializer.add(name="w", data_type=1, dims=(1,) * 65)
    if raw:
        tensor.raw_data = bytes(4)
    else:
        tensor.float_data.append(0)
    refused(d.done(d.node("Relu", "w")), "65 axes; up to 64", kind=UnsupportedError)


def test_names_of_sizes_and_files_that_are_no_text(tmp_path: Path) -> None:
    """Protobuf's parser lets texts through that are no UTF-8."""
    d = draft()
    result = d.node("Relu", d.input(2))
    value = d.graph.value_info.add(name=result)
    value.type.tensor_type.shape.dim.add(dim_param="marker")
    from_onnx(d.done(result).SerializeToString().replace(b"marker", b"m\x80\xffker"))
    d = draft()
    tensor = d.graph.initializer.add(name="w", data_type=1, dims=(16,), data_location=1)
    tensor.external_data.add(key="location", value="marker")
    path = tmp_path / "model.onnx"
    path.write_bytes(d.done(d.node("Relu", "w")).SerializeToString().replace(b"marker", b"m\x80\xffker"))
    with pytest.raises(CompileError):
        from_onnx(path)


@pytest.mark.parametrize("size", ["N", 3])
def test_a_concatenation_of_very_many_parts_compiles(size: Any) -> None:
    """Each step of the schedule of one part is a search through all parts: 1500 of them took minutes."""
    d = draft()
    x = d.input(size, 4)
    graph = from_onnx(d.done(d.node("Concat", *[x] * 500, axis=0)).SerializeToString())
    began = time.thread_time()
    executable = tw.compile(graph, options=tw.Options(cache=False, threads=1))
    assert time.thread_time() - began < 20.0
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(executable(data), np.concatenate([data] * 500))


def test_nothing_of_a_huge_size_is_computed() -> None:
    """A tensor without elements may have an axis of any size, which constants are not made along."""
    d = draft()
    executable = tw.compile(from_onnx(d.done(d.node("EyeLike", d.input(1 << 31, 0))).SerializeToString()), options=tw.Options(cache=False))
    assert executable(np.zeros((1 << 31, 0), np.float32)).shape == (1 << 31, 0)


def test_very_many_pads() -> None:
    d = draft()
    pads = d.input(1_000_000_000, kind=INT64)
    model = d.done(d.node("Pad", d.input(1, 3, 4), pads))
    for _ in range(3):
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=5)
    refused(model, "500000000 entries for 3 axes")


def test_seeds_hold_every_contributed_operator() -> None:
    assert {form.operator for form in onnx_contributed.FORMS} == set(table.CONTRIBUTED)
    models = list(onnx_contributed.contributed_models())
    assert len(models) == len(set(models))
    for data in models:
        verify(from_onnx(data))


def test_what_nobody_foresaw_is_an_error_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that the fuzzer reports."""
    def careless(c: Any, x: Any) -> Any:
        raise IndexError("tuple index out of range")

    monkeypatch.setitem(table.STANDARD, "Relu", careless)
    d = draft()
    model = d.done(d.node("Relu", d.input(2)))
    with pytest.raises(InternalError, match="Relu: cannot be imported: IndexError") as caught:
        from_onnx(model.SerializeToString())
    assert "node 'v2'" in str(caught.value)
    with pytest.raises(Failure, match="crash in import: IndexError"):
        onnx_files.check_import(model.SerializeToString(), Path("/nowhere"), None)


def test_a_long_name_makes_no_long_error() -> None:
    d = draft()
    d.node("Relu", "n" * 200_000)
    error = refused(d.done("y"), "nnn", "more characters")
    assert len(str(error)) < 4 * onnx_limits.LONGEST


def test_what_real_models_need_is_allowed() -> None:
    """A model of one node may become any of the graphs that one operator makes."""
    d = draft()
    x = d.input("N", 8)
    for _ in range(2000):
        x = d.node("Add", x, x)
    assert len(from_onnx(d.done(x).SerializeToString()).results) == 1


# --- the fuzzer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", onnx_edits.EDITS)
def test_edits_end_in_one_error(name: str) -> None:
    d = draft()
    x, shape = d.input(2, 3), d.input(2, kind=INT64)
    raw = d.graph.initializer.add(name="raw", data_type=7, dims=(2,), raw_data=np.array([3, 2]).tobytes())
    d.done(d.node("Reshape", x, shape), d.node("Reshape", x, raw.name))
    models = [d.model.SerializeToString()] if name in ("bind_input", "set_elements") else SEEDS.small
    rng = np.random.default_rng(3)
    changed = 0
    for _ in range(30):
        data, donor = (models[int(rng.integers(len(models)))] for _ in range(2))
        model = onnx_edits.parsed(data)
        onnx_edits.EDITS[name](model, rng, onnx_edits.parsed(donor))
        changed += model.SerializeToString() != data
        try:
            verify(from_onnx(model.SerializeToString()))
        except TilewrightError as error:
            assert not isinstance(error, InternalError)
    assert changed > 2


@pytest.mark.parametrize("make", dict.fromkeys(BOMBS), ids=lambda make: make.__name__)
def test_bombs_end_in_one_error(make: Any) -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):
        data = make(rng).SerializeToString()
        assert len(data) < 400_000
        onnx_files.check_import(data, Path("/nowhere"), None)


def test_a_number_gives_the_same_file_again() -> None:
    files = [onnx_files.hostile_file(SEEDS, 1, number) for number in range(30)]
    assert files == [onnx_files.hostile_file(SEEDS, 1, number) for number in range(30)]
    assert len(set(files)) > 25


def test_external_data_reads_nothing_outside(tmp_path: Path) -> None:
    """Every place of the list, for as many bytes as are there."""
    inside = onnx_files.furnished(tmp_path / "all")
    readable = set()
    for place in onnx_edits.PLACES:
        d = draft()
        tensor = d.graph.initializer.add(name="w", data_type=1, dims=(16,), data_location=1)
        tensor.external_data.add(key="location", value=place)
        path = inside / "model.onnx"
        path.write_bytes(d.done(d.node("Relu", "w")).SerializeToString())
        try:
            from_onnx(path)
            readable.add(place)
        except CompileError:
            continue
    assert readable == {"weights.bin", "./weights.bin", "folder/../weights.bin", "sparse.bin"}


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Any) -> Any:
        raise IndexError("past the end")

    monkeypatch.setattr(onnx_files, "from_onnx", broken)
    with pytest.raises(Failure, match="crash in import: IndexError"):
        onnx_files.check_import(SEEDS.small[0], tmp_path, None)


def test_what_takes_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(source: Any) -> Any:
        while True:
            pass

    monkeypatch.setattr(onnx_files, "from_onnx", endless)
    monkeypatch.setattr(onnx_files, "IMPORT_SECONDS", 0.2)
    with pytest.raises(Failure, match="hang in import"):
        onnx_files.check_import(SEEDS.small[0], tmp_path, None)


def test_a_run_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file at which the process dies is one finding, and the count goes on."""
    import os

    def sometimes_deadly(data: Any) -> Any:
        if isinstance(data, bytes) and len(data) % 7 == 0:
            os._exit(3)
        if isinstance(data, bytes) and len(data) % 5 == 0:
            (tmp_path / "written").write_bytes(b"")
        return from_onnx(data)

    monkeypatch.setattr(onnx_files, "gathered", lambda: SEEDS)
    monkeypatch.setattr(onnx_files, "from_onnx", sometimes_deadly)
    account = Account()
    onnx_files.run(range(40), 1, 2, tmp_path / "findings", account, lambda line: None)
    assert account.count == 40
    assert any("status 3" in reason for _, reason in account.failures.values())
    assert any("to write" in reason for _, reason in account.failures.values())
    assert len(list((tmp_path / "findings").glob("*.onnx"))) == len(account.failures) == 2
    assert "40 files" in account.text()


def test_an_account_counts_each_file_once() -> None:
    account = Account()
    assert not account.add(onnx_files.Outcome(0, "bytes", "refused", "model: not an ONNX model"))
    assert account.add(onnx_files.Outcome(1, "bytes", "failed", "IndexError", "crash"))
    assert not account.add(onnx_files.Outcome(2, "bytes", "failed", "IndexError", "crash"))
    assert account.count == 3 and account.failure_counts == {"crash": 2}
    assert reason_of("model: not an ONNX model") == "no protobuf, or no graph in it"
