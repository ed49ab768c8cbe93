"""The benchmark's models at other sizes, by name."""

from __future__ import annotations

import pytest

from benchmarks.models import MODELS, OTHER_SIZES, find


def test_a_name_alone_is_the_model_of_the_table() -> None:
    assert [find(model.name) for model in MODELS] == list(MODELS)


def test_a_shape_is_that_of_every_input_of_its_rank() -> None:
    assert find("minilm@8x64").shapes == {"input_ids": (8, 64), "attention_mask": (8, 64)}
    assert find("silero@1x512").shapes == {**find("silero").shapes, "input": (1, 512)}
    assert find("recognition@4x3x48x160").title == "PP-OCRv4 recognition 4x3x48x160"
    assert len({find(name).name for name in OTHER_SIZES}) == len(OTHER_SIZES)


@pytest.mark.parametrize("name, complaint", [
    ("mini", "no model 'mini'; there are minilm"), ("minilm@8", "no input of minilm has 1 axes"),
    ("minilm@8xmany", "found the shape '8xmany', expected sizes with x between them"),
])
def test_what_is_no_model_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find(name)
