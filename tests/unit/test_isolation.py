import logging

import pytest

from hxp_enterprise_llm.cli import doctor
from hxp_enterprise_llm.cli.doctor import Verdict
from hxp_enterprise_llm.services.core.service_manager import isolation


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        (7, Verdict.GOOD, "cannot read or signal each other (Landlock 7)"),
        (6, Verdict.GOOD, "Landlock 6"),
        (2, Verdict.WARNING, "has Landlock 2, and it takes 6 (Linux 6.12)"),
        (0, Verdict.WARNING, "has Landlock 0"),
    ],
)
def test_doctor_says_what_the_kernel_can(version: int, verdict: Verdict, words: str) -> None:
    found = doctor.isolation(lambda: version)
    assert (found.verdict, words in found.text) == (verdict, True), found


def test_what_a_kernel_refuses_is_said_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = []

    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(isolation, "landlock_version", lambda: 6)
    monkeypatch.setattr(isolation, "_refuse_limits_of_others", refuse)
    monkeypatch.setattr(isolation, "_scope", lambda: done.append("scope"))
    isolation.enter()
    assert done == ["scope"]
    assert "Limits of other models on this host can be set from here" in caplog.text
    monkeypatch.setattr(isolation, "_scope", refuse)
    isolation.enter()
    assert "can be signalled from here: Landlock: Operation not permitted" in caplog.text
    monkeypatch.setattr(isolation, "landlock_version", lambda: 5)
    monkeypatch.setattr(isolation, "_refuse_limits_of_others", lambda: done.append("limits"))
    isolation.enter()
    assert done == ["scope", "limits"]
    assert "Models can signal each other: this kernel has Landlock 5" in caplog.text
