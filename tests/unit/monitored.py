"""Shared by the tests of the monitor: properties from systemd, and a fleet of instances."""

import asyncio
from pathlib import Path

from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.store import Store
from hxp_enterprise_llm.protocol.state import StateFile
from hxp_enterprise_llm.settings.address import Address

from .conftest import Root

SECOND = 1_000_000
RUNS = {
    "ActiveState": "active", "SubState": "running", "InvocationID": "a", "Result": "success", "MainPID": 7,
    "ExecMainStartTimestamp": 100 * SECOND, "ActiveEnterTimestamp": 108 * SECOND, "StateChangeTimestamp": 108 * SECOND,
}  # fmt: skip
KILLED = {
    "ActiveState": "activating", "SubState": "auto-restart", "Result": "signal", "ExecMainCode": 2,
    "ExecMainStatus": 9, "ExecMainExitTimestamp": 200 * SECOND,
}  # fmt: skip


def write(folder: Path, **files: str) -> None:
    """Write files of a control group; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


class Answering:
    """An endpoint with a configurable answer."""

    def __init__(self) -> None:
        self.said: str | None = ""
        self.ports: list[int] = []

    async def __call__(self, address: Address) -> str | None:
        self.ports.append(address.port)
        return self.said


def state_file(root: Root, name: str, invocation: str = "a") -> StateFile:
    """The state file that the main process of a run writes; "a" is the run of RUNS."""
    directory = root.path / "run/citadel-llm" / name
    directory.mkdir(parents=True, exist_ok=True)
    return StateFile(directory, invocation)


def fleet_of(root: Root, tmp_path: Path, answering: Answering, *names: str) -> Fleet:
    for number, name in enumerate(names):
        root.instance(name, f"MODEL=/srv/m\nPORT={11500 + number}\n")
    fleet = Fleet(Store(tmp_path / "m.sqlite"), answering, str(root), tmp_path)
    fleet.present(set(fleet.names()))
    return fleet


async def settle(fleet: Fleet) -> None:
    await asyncio.sleep(0)
    await fleet.probed()
