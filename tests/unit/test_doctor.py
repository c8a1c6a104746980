"""The diagnoses of `citadel-llm doctor`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hxp_enterprise_llm.cli import doctor
from hxp_enterprise_llm.cli.doctor import Verdict
from hxp_enterprise_llm.settings.errors import SystemdUnreachable
from hxp_enterprise_llm.system.isolation import DYNAMIC_UIDS

from .conftest import Root


def test_doctor_warns_about_cgroup_version_1(tmp_path: Path) -> None:
    found = doctor.control_groups(tmp_path)
    assert found.verdict is Verdict.WARNING and "systemd.unified_cgroup_hierarchy=1" in found.text
    (tmp_path / "cgroup.controllers").touch()
    assert doctor.control_groups(tmp_path)[1:] == (Verdict.GOOD, "version 2")


def test_doctor_warns_about_kernel_without_full_isolation() -> None:
    assert doctor.isolation(lambda: 6).verdict is Verdict.GOOD
    for version, words in ((5, "end each other: the kernel"), (2, "listen on the port"), (0, "Linux 6.12")):
        found = doctor.isolation(lambda version=version: version)  # type: ignore[misc]
        assert found.verdict is Verdict.WARNING and words in found.text


def test_doctor_recommends_users_of_their_own_if_models_share_one(root: Root) -> None:
    own = {"own": DYNAMIC_UIDS[0], "other": DYNAMIC_UIDS[1]}
    for running, words in (
        ({}, "models run as agent0"),
        ({"a": 0} | own, "models run as agent0"),
        ({"b": 0, "a": 0, "c": 1} | own, "2 models run as root (a, b), so one can use up"),
    ):
        found = doctor.users(str(root), lambda running=running: running)  # type: ignore[misc]
        assert found.verdict is Verdict.GOOD and found.text.startswith(words), found
        shares = "a" in running and "b" in running
        assert ("write VLLM_USER=dynamic into /etc/default/citadel-llm" in found.text) == shares


def test_doctor_names_models_that_do_not_run_as_the_settings_say_yet(root: Root) -> None:
    root.host("VLLM_USER=dynamic\n")
    own = {"own": DYNAMIC_UIDS[0], "other": DYNAMIC_UIDS[1]}
    assert doctor.users(str(root), lambda: own)[1:] == (Verdict.GOOD, "each model runs as a user of its own")
    found = doctor.users(str(root), lambda: {"b": 0, "a": 0} | own)
    assert found.verdict is Verdict.WARNING and found.text.endswith("citadel-llm restart a b"), found


def test_doctor_reports_that_users_are_unknown(root: Root) -> None:
    def running() -> dict[str, int]:
        raise SystemdUnreachable("no bus")

    assert doctor.users(str(root), running) == doctor.Diagnosis("users", Verdict.WARNING, "no bus")


def test_doctor_reports_nvidia_driver_version(tmp_path: Path) -> None:
    version = tmp_path / "version"
    assert doctor.gpu(version).text.startswith("none")
    version.write_text("NVRM version: NVIDIA UNIX x86_64  580.1\nGCC version: 12\n")
    assert doctor.gpu(version).text == "NVRM version: NVIDIA UNIX x86_64  580.1"


def test_doctor_warns_about_unsynchronized_clock(tmp_path: Path) -> None:
    found = doctor.clock(tmp_path / "synchronized")
    assert found.verdict is Verdict.WARNING and "not set by systemd-timesyncd" in found.text
    assert doctor.clock(tmp_path).verdict is Verdict.GOOD


def test_doctor_warns_about_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    def has(swap: int) -> doctor.Diagnosis:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=8 << 30))
        monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(total=swap << 30))
        return doctor.memory()

    assert has(0)[1:] == (Verdict.GOOD, "8.0 GB, swap 0.0 GB")
    assert has(2)[1:] == (Verdict.WARNING, "8.0 GB, swap 2.0 GB: a model that is swapped out answers slowly")


def test_doctor_checks_connection_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(address: tuple[str, int], _: float) -> SimpleNamespace:
        if address != ("mirror.example", 8443):
            raise OSError(101, "Network is unreachable")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    assert doctor.hub()[1:] == (Verdict.GOOD, "mirror.example answers")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert doctor.hub().verdict is Verdict.WARNING and "copy models to the host" in doctor.hub().text
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:x")
    assert "HF_ENDPOINT=https://mirror.example:x is no address" in doctor.hub().text


def said(status: str, reason: str) -> str:
    """An answer of /health."""
    host = {"environment": "production", "hostname": "h"}
    return json.dumps({"status": status, "version": "1.2", "reason": reason, **host})


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (said("healthy", ""), Verdict.GOOD, "version 1.2"),
        (said("healthy", "no metrics"), Verdict.WARNING, "no metrics"),
        (said("unhealthy", "no bus"), Verdict.WARNING, "no bus"),
        ("<html>", Verdict.WARNING, "another program"),
        (None, Verdict.WARNING, "systemctl status citadel-llm-monitor"),
    ],
)
def test_doctor_reports_health_of_the_monitor(root: Root, answer: str | None, verdict: Verdict, text: str) -> None:
    asked = []

    def ask(url: str) -> bytes:
        asked.append(url)
        if answer is None:
            raise OSError("Connection refused")
        return answer.encode()

    root.host("SERVER_IP=0.0.0.0\nHEALTH_PORT=8001\n")
    found = doctor.monitor(str(root), ask)
    assert (found.verdict, text in found.text) == (verdict, True), found
    assert asked == ["http://127.0.0.1:8001/health"]


def test_refused_settings_of_the_monitor_are_an_error(root: Root) -> None:
    root.host("VLLM_USER=$x\n")
    found = doctor.monitor(str(root), lambda _: b"")
    assert found.verdict is Verdict.ERROR and "citadel-llm:1" in found.text
