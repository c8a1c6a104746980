import os
import socket
import subprocess
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from hxp_enterprise_llm.engine import model_directory

# No example fails because the machine is busy.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")


@pytest.fixture(autouse=True)
def no_process_and_no_network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A unit test that starts a process or leaves this host would be slow, and would test something else.

    A module about processes says so with the marker `starts_processes`.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a unit test starts no process; put this test into tests/system")

    if not request.node.get_closest_marker("starts_processes"):
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def models_of_tests_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let services see the test's files, which are in /tmp."""
    seen = [place for place in model_directory.PRIVATE if not tmp_path.is_relative_to(place)]
    monkeypatch.setattr(model_directory, "PRIVATE", tuple(seen))


class Root:
    """A file root with /etc/default in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.defaults = path / "etc/default"
        self.defaults.mkdir(parents=True)

    def __str__(self) -> str:
        return str(self.path)

    def host(self, text: str) -> None:
        (self.defaults / "citadel-llm").write_text(text)

    def instance(self, name: str, text: str) -> Path:
        file = self.defaults / f"citadel-llm-{name}"
        file.write_text(text)
        return file


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)
