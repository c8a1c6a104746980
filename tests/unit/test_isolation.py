import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.cli import doctor
from hxp_enterprise_llm.cli.doctor import Verdict
from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.system import isolation

from .conftest import Root


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        (7, Verdict.GOOD, "cannot read or signal each other (Landlock 7)"),
        (6, Verdict.GOOD, "Landlock 6"),
        (4, Verdict.WARNING, "but can end each other: the kernel has Landlock 4"),
        (2, Verdict.WARNING, "the port of a stopped model: the kernel has Landlock 2; version 6 (Linux 6.12)"),
        (1, Verdict.WARNING, "can read its model's TLS private key and hub token before version 2"),
        (0, Verdict.WARNING, "has Landlock 0"),
    ],
)
def test_doctor_reports_isolation_that_the_kernel_supports(version: int, verdict: Verdict, words: str) -> None:
    found = doctor.isolation(lambda: version)
    assert (found.verdict, words in found.text) == (verdict, True), found


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        (4, Verdict.GOOD, "cannot read or signal each other (Landlock 4)"),
        (2, Verdict.WARNING, "but can listen on the port of a stopped model: the kernel has Landlock 2; version 4"),
    ],
)
def test_users_of_their_own_need_no_landlock_for_signals(
    root: Root, version: int, verdict: Verdict, words: str
) -> None:
    root.host("VLLM_USER=dynamic\n")
    found = doctor.isolation(lambda: version, str(root))
    assert (found.verdict, words in found.text) == (verdict, True), found


class FakeKernel(isolation.Kernel):
    """Records the calls, or refuses them."""

    def __init__(self, version: int, user: int = 999) -> None:
        self.version = version
        self._user = user
        self.done: list[object] = []
        self.refuses_limits = self.refuses_landlock = False

    def user(self) -> int:
        return self._user

    def landlock_version(self) -> int:
        return self.version

    def refuse_limits_of_others(self) -> None:
        if self.refuses_limits:
            raise PermissionError(1, "Operation not permitted")
        self.done.append("limits")

    def restrict(self, scopes: int, ports: Iterable[int] | None, files: isolation.Files | None = None) -> None:
        if self.refuses_landlock:
            raise PermissionError(1, "Operation not permitted")
        self.done.append(files or (scopes, ports))


def test_refused_isolation_is_logged_and_the_rest_is_applied(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kernel = FakeKernel(6)
    kernel.refuses_limits = True
    isolation.enter([1], kernel)
    assert kernel.done == [(3, [1])]
    assert "could change the limits of other models on this host" in caplog.text
    kernel.refuses_landlock = True
    isolation.enter(None, kernel)
    assert "could send signals to other models" in caplog.text and "Landlock: Operation not permitted" in caplog.text
    kernel = FakeKernel(5)
    isolation.enter([1], kernel)
    assert "Models can signal each other: this kernel has Landlock 5" in caplog.text
    assert "free TCP port" not in caplog.text
    kernel.version = 3
    isolation.enter([0, 11500, *range(32768, 61000), 61002], kernel)
    assert kernel.done == ["limits", (0, [1]), "limits", (0, None)]
    (said,) = (record.getMessage() for record in caplog.records if "free TCP port" in record.getMessage())
    assert "not only on 11500, 32768-60999, 61002: this kernel has Landlock 3; version 4 (Linux 6.7)" in said
    caplog.clear()
    isolation.enter(None, kernel)
    assert "free TCP port" not in caplog.text, "its own settings may take any"
    caplog.clear()
    isolation.enter(None, FakeKernel(5, user=61184))
    assert not caplog.records, "systemd gives such a user to one unit only"


@pytest.mark.parametrize(
    ("settings", "limited"),
    [
        ({}, True),
        ({"vllm_args": ("--max-num-seqs", "4")}, True),
        ({"environment": {"OMP_NUM_THREADS": "2"}}, True),
        ({"vllm_args": ("--master-port", "29501")}, False),
        ({"vllm_args": ("--data_parallel_size=2",)}, False),
        ({"vllm_args": ("--kv-transfer-config", "{}")}, False),
        ({"environment": {"VLLM_PORT": "5000"}}, False),
    ],
)
def test_listen_ports_are_limited_unless_settings_need_others(settings: dict[str, Any], limited: bool) -> None:
    ports = launch.ports(ServiceConfigSchema(name="m", model="/srv/m", port=11500, host="127.0.0.1", **settings))
    assert (ports is not None) == limited
    if ports:
        assert ports[:2] == [0, 11500]
        assert 11501 not in ports and 8000 not in ports


def test_confined_process_has_no_right_to_hidden_files(tmp_path: Path) -> None:
    for place in ("run/hidden/key", "run/other", "usr", "own"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "link").symlink_to("run/hidden")
    kernel = FakeKernel(2)
    assert isolation.confine(str(tmp_path / "run/hidden"), [tmp_path / "own"], kernel)
    (files,) = kernel.done
    assert isinstance(files, isolation.Files)
    below = {place.removeprefix(f"{tmp_path}/"): rights for place, rights in files.allowed.items()}
    assert below["usr"] == below["run/other"] == isolation.READ_ONLY
    assert "/usr" in below and not {"/", "run", "run/hidden", "link"} & below.keys()
    assert not any(tmp_path.is_relative_to(place) for place in files.allowed), "no directory above it"
    rename, truncate, ioctl = 1 << 13, isolation.TRUNCATE, 1 << 15
    assert below["own"] & rename and not below["own"] & isolation.EXECUTE
    assert files.refused & rename and not files.refused & truncate
    kernel = FakeKernel(7)
    isolation.confine(str(tmp_path / "run/hidden"), [], kernel)
    (files,) = kernel.done
    assert isinstance(files, isolation.Files) and files.refused & truncate and not files.refused & ioctl


def test_old_kernel_cannot_confine_and_others_must(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kernel = FakeKernel(1)
    assert not isolation.confine("/run/hidden", [], kernel)
    assert not kernel.done
    isolation.report_confinement(kernel)
    assert "could read the TLS private key and the hub token of this model: this kernel has Landlock 1" in caplog.text
    caplog.clear()
    kernel = FakeKernel(2)
    isolation.report_confinement(kernel)
    assert not caplog.records
    kernel.refuses_landlock = True
    with pytest.raises(PermissionError):
        isolation.confine("/run/hidden", [], kernel)
