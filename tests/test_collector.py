"""Python's collector around a compile (compiler/collector.py)."""

from __future__ import annotations

import gc

import pytest

from tilewright.collector import collector_paused


def test_it_is_off_within_and_on_again_whatever_happens() -> None:
    with pytest.raises(ValueError), collector_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_it_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_others_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with collector_paused():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_what_was_made_within_is_not_young() -> None:
    with collector_paused():
        made = [[] for _ in range(50_000)]
    assert gc.get_count()[0] < len(made)
