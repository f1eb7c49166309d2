"""Golden files: what a test made is compared with a stored text. ``make golden`` writes the texts anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.fixture
def assert_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function that compares a text with the golden file of this name."""
    # When the whole suite runs, this file is read too late for its option to exist: then there is nothing to update.
    update = request.config.getoption("--update-golden", default=False)

    def check(name: str, text: str) -> None:
        path = Path(__file__).with_name(name)
        if update:
            path.write_text(text, encoding="utf-8")
        stored = path.read_text(encoding="utf-8") if path.exists() else ""
        assert text == stored, f"{path.name} differs; if the change is meant: make golden, and look at the difference"

    return check
