"""The benchmark of artifacts for all sizes: what it measures, and that it compares like with like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from benchmarks import dynamic


def test_every_model_has_sizes_and_names_of_its_own() -> None:
    families = dynamic.families(Path("minilm_torch.onnx"))
    every = [model for sizes in families.values() for model in sizes]
    assert len({model.title for model in every}) == len(every)
    assert set(dynamic.VOICE_FILES) < set(families) and all(len(sizes) >= 2 for sizes in families.values())
    assert "minilm_torch" not in dynamic.families(None)
    for model in every:
        if model.name.startswith("silero_vad"):
            model.make_inputs()


@pytest.mark.parametrize("slower", [0, 4])
def test_the_ratio_is_of_dynamic_to_specialized(slower: int) -> None:
    def work(rounds: int) -> Callable[[], object]:
        return lambda: sum(range(2000 * rounds))

    first, second, ratio = dynamic.take_turns(work(1 + slower), work(1), 5)
    assert first > 0 and second > 0 and (ratio > 2) == (slower > 0)


def test_an_unknown_model_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["dynamic", "--models", "minilm,maxilm"])
    with pytest.raises(SystemExit):
        dynamic.main()
    assert "no model maxilm; there are minilm, recognition" in capsys.readouterr().err
