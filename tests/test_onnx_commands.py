"""`tilewright check` and `tilewright verify`: what they find, in which models, and how they end."""

from __future__ import annotations

import builtins
import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import TensorProto, helper, numpy_helper

from tilewright.agreement import compare
from tilewright.cli import run
from tilewright.cost import Level, Rates
from tilewright.frontends.onnx_ops.table import STANDARD
from tilewright.frontends.onnx_survey import survey

FLOAT = TensorProto.FLOAT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")      # operators are mapped otherwise than the sources say
    monkeypatch.setattr("tilewright.checking.machine_rates", lambda threads: Rates(threads, 3e10, 8, (Level(1 << 40, 1e10, 1e10),), 1e-6))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value(name: str, shape: Any = ("n", 4), dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def model(nodes: list[Any], outputs: list[str], inputs: list[Any] | None = None, constants: dict[str, np.ndarray] | None = None,
          declared: list[Any] | None = None, **more: Any) -> Any:
    graph = helper.make_graph(nodes, "g", inputs or [value("x")], [onnx.ValueInfoProto(name=name) for name in outputs],
                              [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()], value_info=declared or [])
    more.setdefault("opset_imports", [helper.make_opsetid("", 20), helper.make_opsetid("other", 1)])
    return helper.make_model(graph, ir_version=10, **more)


def write(source: Any, name: str = "model.onnx") -> str:
    Path(name).write_bytes(source.SerializeToString())
    return name


def command(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    found = run([str(argument) for argument in arguments])
    answer = capsys.readouterr()
    assert found == status, answer.out + answer.err
    assert "Traceback" not in answer.err and "internal error" not in answer.err
    return answer.out, answer.err


def layers() -> Any:
    """x -> matmul -> tanh -> softmax, with a shape computed on the way."""
    weights = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    return model([
        node("MatMul", ["x", "w"], ["a"], "product"), node("Tanh", ["a"], ["b"], "squash"), node("Shape", ["b"], ["s"], "sizes"),
        node("Mul", ["s", "one"], ["t"], "same_sizes"), node("Reshape", ["b", "t"], ["c"], "reshape"),
        node("Softmax", ["c"], ["y"], "normalize", axis=-1),
    ], ["y"], constants={"w": weights, "one": np.array([1], np.int64)})


# --- check ---


def test_check_says_that_a_model_compiles(capsys) -> None:
    answer = json.loads(command(capsys, "check", write(layers()), "--json", "--size", "n=5")[0])
    assert answer["compiles"] and answer["nodes"] == 6 and answer["refused"] == answer["not_checked"] == []
    assert answer["dims"] == {"n": {"symbol": "n", "least": 1, "most": None}} and answer["estimate"]["sizes"] == {"n": 5}
    assert answer["estimate"]["weights"] >= 4 * 6 * 4 and answer["estimate"]["arrays"] == 5 * 4 * 4 + 5 * 6 * 4
    assert answer["estimate"]["predicted"] > 0
    rows = {row["op"]: row for row in answer["operators"]}
    assert rows["MatMul"]["nodes"] == 1 and rows["MatMul"]["dtypes"] == ["f32"] and not rows["Tanh"]["slow"]
    assert sum(row["share"] for row in answer["operators"]) == pytest.approx(1)


def test_check_as_text(capsys) -> None:
    text, _ = command(capsys, "check", write(layers()))
    assert text.startswith("model.onnx: can be compiled: 6 nodes, opset 20, other 1\n")
    for part in ("x: f32[n, 4]", "n: 1 or more", "MatMul", "memory: ", " of arena", "ms a call on"):
        assert part in text


def test_check_generates_no_code(capsys, monkeypatch) -> None:
    import tilewright.build

    def refuse(*arguments: Any) -> None:
        raise AssertionError("code was generated")

    monkeypatch.setattr(tilewright.build, "generate", refuse)
    monkeypatch.setattr("tilewright.checking.machine_rates", lambda threads: None)
    assert "not predicted" in command(capsys, "check", write(layers()))[0]


def test_check_finds_every_refusal(capsys) -> None:
    """Behind a refused node too: with its declared type the check goes on, without it the node is not checked."""
    source = model([
        node("Relu", ["x"], ["a"], "fine"), node("Unheard", ["a"], ["b"], "first", domain="other"),
        node("Tanh", ["b"], ["c"], "behind"), node("Unseen", ["c"], ["d"], "far_behind", domain="other"),
        node("Unheard", ["a"], ["e"], "second", domain="other"), node("Exp", ["e"], ["f"], "typed"),
        node("Softmax", ["a"], ["g"], "wrong_axis", axis=7), node("Neg", ["x"], ["unused"], "unneeded"),
    ], ["d", "f", "g"], declared=[value("e")])
    answer = json.loads(command(capsys, "check", write(source), "--json", status=1)[0])
    assert not answer["compiles"] and answer["estimate"] is None and answer["unneeded_nodes"] == 1
    assert [found["node"] for found in answer["refused"]] == ["first", "far_behind", "second", "wrong_axis"]
    assert [found["node"] for found in answer["not_checked"]] == ["behind"]
    assert "axis 7" in answer["refused"][3]["reason"] and "'b'" in answer["not_checked"][0]["reason"]
    rows = {row["op"]: row for row in answer["operators"]}
    assert rows["other::Unheard"]["refused"] == 2 and rows["Exp"]["refused"] == rows["Exp"]["unchecked"] == 0
    text, _ = command(capsys, "check", "model.onnx", status=1)
    assert "cannot be compiled" in text and "'far_behind' (other::Unseen): this operator is not supported" in text


def test_check_looks_into_bodies_and_functions(capsys) -> None:
    """The other branch of an If whose first branch is refused, a loop's body, and a function's nodes."""
    def body(op: str, name: str, inputs: list[Any] | None = None, outputs: list[str] | None = None) -> Any:
        nodes = [node(op, ["x"], [f"{name}_y"], name, domain="other")]
        nodes += [node("Identity", ["go"], [f"{name}_go"])] if inputs else []
        return helper.make_graph(nodes, name, inputs or [], [onnx.ValueInfoProto(name=n) for n in outputs or [f"{name}_y"]])

    loop = body("Third", "inner", [value("i", (), TensorProto.INT64), value("go", (), TensorProto.BOOL)], ["inner_go", "inner_y"])
    function = helper.make_function("local", "f", ["p"], ["q"], [node("Fourth", ["p"], ["q"], "in_function", domain="other")],
                                    [helper.make_opsetid("", 20), helper.make_opsetid("other", 1)])
    source = model([
        node("If", ["c"], ["y"], "branch", then_branch=body("First", "then"), else_branch=body("Second", "else")),
        node("Loop", ["y", ""], ["z"], "loop", body=loop), helper.make_node("f", ["x"], ["w"], domain="local", name="call"),
    ], ["z", "w"], [value("x"), value("c", (), TensorProto.BOOL)], functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("other", 1), helper.make_opsetid("local", 1)])
    answer = json.loads(command(capsys, "check", write(source), "--json", status=1)[0])
    assert {found["operator"] for found in answer["refused"]} == {"other::First", "other::Second", "other::Third", "other::Fourth"}
    assert {found["node"]: found["inside"] for found in answer["refused"]}["in_function"] == "node 'call' / "


def test_check_lists_inputs_and_initializers_that_are_refused(capsys) -> None:
    text = helper.make_tensor("words", TensorProto.STRING, [1], [b"word"])
    source = model([node("Identity", ["x"], ["y"]), node("Identity", ["words"], ["z"]), node("Identity", ["s"], ["t"])], ["y", "z", "t"],
                   [value("x"), value("s", (2,), TensorProto.STRING)])
    source.graph.initializer.append(text)
    answer = json.loads(command(capsys, "check", write(source), "--json", status=1)[0])
    assert len(answer["problems"]) == 2 and all("STRING" in problem for problem in answer["problems"])
    assert len(answer["not_checked"]) == 2


def test_check_sees_slow_paths(capsys) -> None:
    """They follow from what was chosen for the kernels: an operator is in no list."""
    source = model([node("CumSum", ["x", "axis"], ["a"], "running"), node("TopK", ["a", "k"], ["v", "i"], "sorting"),
                    node("Relu", ["x"], ["r"]), node("ReduceSum", ["d"], ["s"], keepdims=0)], ["v", "r", "s"],
                   [value("x", (300, 500)), value("d", (1000, 1000), TensorProto.DOUBLE)],
                   {"axis": np.array(1, np.int64), "k": np.array([10], np.int64)})
    rows = {row["op"]: row for row in json.loads(command(capsys, "check", write(source), "--json")[0])["operators"]}
    assert any("one element at a time" in reason for reason in rows["CumSum"]["slow"])
    assert any("operations an element (sort)" in reason for reason in rows["TopK"]["slow"])
    assert any("64 bits wide" in reason for reason in rows["ReduceSum"]["slow"])
    assert not rows["Relu"]["slow"]


def test_check_binds_dims_and_prints_bounds(capsys) -> None:
    answer = json.loads(command(capsys, "check", write(layers()), "--json", "--dims", "n=3")[0])
    assert answer["dims"] == {} and answer["inputs"] == ["x: f32[3, 4]"]


def test_check_binds_what_an_input_holds(capsys) -> None:
    source = model([node("SplitToSequence", ["x", "split"], ["s"]), node("SequenceAt", ["s", "place"], ["y"])], ["y"],
                   [value("x", (6, 2)), value("split", (2,), TensorProto.INT64)], {"place": np.array(1, np.int64)})
    path = write(source)
    refused, _ = command(capsys, "check", path, status=1)
    assert "the sizes of the elements hang on it" in refused
    assert json.loads(command(capsys, "check", path, "--json", "--dims", "split=2,4")[0])["dims"] == {}
    command(capsys, "check", path, "--dims", "split=2,?", status=1)
    _, told = command(capsys, "check", path, "--dims", "split=2,x", status=2)
    assert "found split=2,x, expected a number" in told


@pytest.mark.parametrize("data", [b"", b"this is no model", b"\x08\x07"])
def test_check_of_a_bad_file(capsys, data: bytes) -> None:
    Path("bad.onnx").write_bytes(data)
    out, err = command(capsys, "check", "bad.onnx", status=2)
    assert not out and "bad.onnx" in err


def test_check_of_a_damaged_model(capsys) -> None:
    whole = layers().SerializeToString()
    Path("cut.onnx").write_bytes(whole[:len(whole) * 2 // 3])
    command(capsys, "check", "cut.onnx", status=2)
    broken = layers()
    broken.graph.node[1].input[0] = "nowhere"
    assert "'nowhere'" in command(capsys, "check", write(broken), status=2)[1]


@pytest.mark.parametrize("arguments", [["nothing.onnx"], ["model.ir"], ["."]])
def test_check_needs_a_model_file(capsys, arguments: list[str]) -> None:
    Path("model.ir").write_text("")
    assert "expected an ONNX model" in command(capsys, "check", *arguments, status=2)[1]


def test_check_of_a_size_that_is_not_there(capsys) -> None:
    assert "there is no size m" in command(capsys, "check", write(layers()), "--size", "m=3", status=2)[1]


def test_a_survey_without_refusals_is_an_import() -> None:
    from tilewright.frontends.from_onnx import from_onnx

    found = survey(layers())
    assert found.graph is not None and found.graph.fingerprint == from_onnx(layers()).fingerprint


def sides(behind: list[Any], outputs: list[str]) -> Any:
    """An If whose sides differ in rank, and nodes behind it that fit one of them."""
    then = helper.make_graph([node("Neg", ["x"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Unsqueeze", ["x", "axis"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    return model([node("If", ["c"], ["a"], "branch", then_branch=then, else_branch=other), *behind], outputs,
                 [value("x"), value("c", (), TensorProto.BOOL)], {"axis": np.array([0], np.int64)})


def test_a_survey_decides_ifs_as_an_import_does() -> None:
    from tilewright.frontends.from_onnx import from_onnx

    source = sides([node("Transpose", ["a"], ["y"], perm=[1, 0])], ["y"])
    found = survey(source)
    assert found.graph is not None and found.graph.fingerprint == from_onnx(source).fingerprint


def test_a_survey_goes_on_behind_an_undecided_if() -> None:
    found = survey(sides([node("Neg", ["a"], ["y"], "behind"), node("Unheard", ["x"], ["z"], "other", domain="other")], ["y", "z"]))
    assert {n.name for n in found.refused} == {"branch", "other"} and [n.name for n in found.unchecked] == ["behind"]


def test_a_survey_of_deep_bodies_takes_no_time() -> None:
    """Each body is gone through once, though every If around is left unchecked."""
    inner = [node("Unheard", ["x"], ["v0"], "deepest", domain="other")]
    for depth in range(1, 24):
        body = helper.make_graph(inner, f"body{depth}", [], [onnx.ValueInfoProto(name=f"v{depth - 1}")])
        other = helper.make_graph([node("Neg", ["x"], [f"e{depth}"])], f"else{depth}", [], [onnx.ValueInfoProto(name=f"e{depth}")])
        inner = [node("If", ["c"], [f"v{depth}"], then_branch=body, else_branch=other)]
    found = survey(model(inner, ["v23"], [value("x"), value("c", (), TensorProto.BOOL)]))
    assert [n.name for n in found.refused] == ["deepest"] and len(found.nodes) == 1 + 23 * 2


def test_an_operator_that_fails_in_its_own_way_is_refused(monkeypatch) -> None:
    def fails(c: Any, x: Any) -> Any:
        raise KeyError("nobody foresaw this")

    monkeypatch.setitem(STANDARD, "Tanh", fails)
    found = survey(layers())
    assert [n.name for n in found.refused] == ["squash"] and "nobody foresaw this" in found.refused[0].reason


# --- verify ---


def wrong(name: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes an operator's mapping give something else."""
    true = STANDARD[name]

    @functools.wraps(true)  # its parameters say what the operator takes
    def mapped(c: Any, *inputs: Any, **attributes: Any) -> Any:
        return change(c, true(c, *inputs, **attributes))

    monkeypatch.setitem(STANDARD, name, mapped)


PEERS = [pytest.param("onnxruntime", marks=pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")), "reference"]


@pytest.mark.parametrize("peer", PEERS)
def test_verify_agrees(capsys, peer: str) -> None:
    text, _ = command(capsys, "verify", write(layers()), "--against", peer, "--layers", "--size", "n=7")
    assert f"model.onnx: agrees with {peer}" in text and "y: float32[7, 6] agrees" in text
    assert "6 of 6 nodes compared one by one" in text and "none diverges" in text


@pytest.mark.parametrize("peer", PEERS)
def test_verify_names_the_first_node_that_diverges(capsys, monkeypatch, peer: str) -> None:
    path = write(layers())
    with monkeypatch.context() as patched:
        wrong("Tanh", lambda c, y: c.scalar("mul", y, c.full(1.001, y.dtype, y.shape)), patched)
        wrong("Softmax", lambda c, y: c.scalar("mul", y, c.full(2, y.dtype, y.shape)), patched)
        answer = json.loads(command(capsys, "verify", path, "--against", peer, "--layers", "--json", status=1)[0])
        first = answer["layers"]["first"]
        assert not answer["agrees"] and first["node"] == "squash" and first["operator"] == "Tanh" and first["number"] == 1
        assert first["outputs"]["b"]["error"] == pytest.approx(1e-3, rel=1e-2)
        single, arrays = answer["layers"]["files"]
        assert [n.name for n in onnx.load(single).graph.node] == ["squash"] and list(np.load(arrays)) == ["a"]
        assert "differs" in command(capsys, "verify", single, "--inputs", arrays, "--against", peer, status=1)[0]
    assert "agrees" in command(capsys, "verify", single, "--inputs", arrays, "--against", peer)[0]


def test_an_error_of_a_layer_before_does_not_blame_the_next(capsys, monkeypatch) -> None:
    """An error that is a rounding where it arises, and large behind a subtraction of nearly equal numbers."""
    source = model([node("Exp", ["x"], ["a"], "rounded"), node("Sub", ["a", "big"], ["b"], "cancels")], ["b"],
                   [value("x", (2, 2))], {"big": np.full((2, 2), np.exp(np.float32(3)), np.float32)})
    np.savez("x.npz", x=np.full((2, 2), 3.0000002, np.float32))
    wrong("Exp", lambda c, y: c.scalar("mul", y, c.full(np.float32(1.000001), y.dtype, y.shape)), monkeypatch)
    text, _ = command(capsys, "verify", write(source), "--against", "reference", "--layers", "--inputs", "x.npz", status=1)
    assert "none diverges" in text and "adds up over nodes" in text


def test_verify_with_a_tolerance(capsys, monkeypatch) -> None:
    path = write(layers())
    wrong("Tanh", lambda c, y: c.scalar("mul", y, c.full(1.001, y.dtype, y.shape)), monkeypatch)
    command(capsys, "verify", path, "--against", "reference", "--layers", "--tolerance", "0.01")
    command(capsys, "verify", path, "--against", "reference", "--tolerance", "1e-9", status=1)


def test_verify_gives_a_node_the_peers_inputs_through_bodies_and_functions(capsys) -> None:
    """Values that only a body reads are inputs of its node; functions come along; constants beside the file are brought in."""
    then = helper.make_graph([node("Add", ["a", "w"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Neg", ["a"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    function = helper.make_function("local", "twice", ["p"], ["q"], [node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 20)])
    source = model([helper.make_node("twice", ["x"], ["a"], domain="local", name="call"),
                    node("If", ["c"], ["y"], "branch", then_branch=then, else_branch=other)], ["y"],
                   [value("x", (3, 4)), value("c", (), TensorProto.BOOL)], {"w": np.ones((3, 4), np.float32)}, functions=[function],
                   opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)])
    onnx.save(source, "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    text, _ = command(capsys, "verify", "model.onnx", "--against", "reference", "--layers")
    assert "2 of 2 nodes compared" in text and "none diverges" in text


def test_verify_says_what_it_did_not_compare(capsys) -> None:
    """Indices whose number data decides have no place in a node's model of their own, but for the declared sizes."""
    source = model([node("SplitToSequence", ["x"], ["q"], "pieces", axis=0), node("SequenceAt", ["q", "zero"], ["y"], "one")], ["y"],
                   [value("x", (2, 4))], {"zero": np.array(0, np.int64)})
    text, _ = command(capsys, "verify", write(source), "--against", "reference", "--layers")
    assert "not compared: 'pieces' (SplitToSequence): 'q' is no tensor" in text


def test_verify_without_the_peer(capsys, monkeypatch) -> None:
    true = builtins.__import__

    def missing(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return true(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    error = command(capsys, "verify", write(layers()), "--against", "onnxruntime", status=1)[1]
    assert "needs the package onnxruntime, which is not installed" in error and "--against" in error


def test_verify_of_what_the_peer_cannot_run(capsys, monkeypatch) -> None:
    monkeypatch.setitem(STANDARD, "Unheard", STANDARD["Relu"])
    error = command(capsys, "verify", write(model([node("Unheard", ["x"], ["y"])], ["y"])), "--against", "reference", status=1)[1]
    assert "the reference of the onnx package cannot run model.onnx" in error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"no archive"])
def test_verify_with_bad_inputs(capsys, content: bytes) -> None:
    Path("bad.npz").write_bytes(content)
    assert "--inputs: bad.npz" in command(capsys, "verify", write(model([node("Relu", ["x"], ["y"])], ["y"])), "--inputs", "bad.npz", "--against", "reference", status=1)[1]
    np.savez("other.npz", elsewhere=np.zeros(3))
    assert "holds 'elsewhere'" in command(capsys, "verify", "model.onnx", "--inputs", "other.npz", "--against", "reference", status=1)[1]
    np.save("one.npy", np.zeros(3))
    assert "--inputs: one.npy" in command(capsys, "verify", "model.onnx", "--inputs", "one.npy", "--against", "reference", status=1)[1]


def test_verify_of_a_bad_file(capsys) -> None:
    Path("bad.onnx").write_bytes(b"this is no model")
    assert "not an ONNX model" in command(capsys, "verify", "bad.onnx", "--against", "reference", status=1)[1]
    assert "expected an ONNX model" in command(capsys, "verify", "nothing.onnx", status=2)[1]


# --- comparing arrays ---


def test_equal_values_agree() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, 1.5], np.float32)
    assert compare(special, special.copy()).agrees and compare(special, special.copy()).error == 0
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).agrees
    assert compare(np.array(True), np.array(True)).agrees


@pytest.mark.parametrize("found, expected, problem", [
    (np.zeros(2, np.float32), np.zeros(2), "dtype float32, expected float64"),
    (np.zeros((1, 2)), np.zeros(2), "shape [1, 2], expected [2]"),
    (np.array([np.nan, 1]), np.array([1, np.nan]), "2 elements of 2 are NaN on one side only, the first at [0]"),
    (np.array([np.inf]), np.array([-np.inf]), "infinity on one side only"),
    (np.array([1e30]), np.array([np.inf]), "infinity on one side only"),
    (np.zeros(1), [np.zeros(1)], "found a ndarray, expected a list"),
])
def test_values_that_cannot_agree(found: Any, expected: Any, problem: str) -> None:
    assert problem in compare(found, expected, tolerance=1.0).text() and not compare(found, expected, tolerance=1.0).agrees


def test_errors_are_relative_to_the_largest_value() -> None:
    found, expected = np.array([100.0, 1e-3], np.float32), np.array([100.0, 1.1e-3], np.float32)
    difference = compare(found, expected)
    assert difference.agrees and difference.error == pytest.approx(1e-6, rel=1e-2) and difference.worst == (1,)
    assert not compare(found, expected, tolerance=1e-7).agrees
    assert compare(np.array([1 + 2.0**-23], np.float32), np.ones(1, np.float32)).units == 1


def test_integers_are_exact() -> None:
    assert not compare(np.array([2**62 + 1]), np.array([2**62])).agrees
    assert compare(np.array([2**63 + 1], np.uint64), np.array([2**63], np.uint64)).units == 1
    assert compare(np.array([-(2**63)]), np.array([2**63 - 1])).units == pytest.approx(2.0**64)
    assert compare(np.array([3], np.int8), np.array([4], np.int8), tolerance=0.5).agrees
    assert not compare(np.array([True]), np.array([False])).agrees
