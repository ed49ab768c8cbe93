"""Options and settings that all tests share."""

from __future__ import annotations

import hypothesis
import pytest

# Random tests repeat themselves in continuous integration; a failure prints what reproduces it.
hypothesis.settings.register_profile("tilewright", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tilewright")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected half of tests/golden files")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
