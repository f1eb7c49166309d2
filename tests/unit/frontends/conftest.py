"""A Notion that runs on this machine."""

import threading

import pytest

from candy_monai.frontends.base import Frontend
from tests.notion_server import notion_server


@pytest.fixture
def notion(monkeypatch):
    """Return a server that speaks Notion's API."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with notion_server() as server:
        yield server


@pytest.fixture
def hanging():
    """Return a frontend's class whose callbacks do not return before the end of the test."""
    release = threading.Event()

    class Hanging(Frontend):
        def on_experiment_created(self, *arguments):
            release.wait(60)

    yield Hanging
    release.set()
