"""The main process during a reload and at the end of a server, with fake servers."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.protocol import reload_request, state
from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.protocol.state import InstanceState, Phase, ReloadOutcome, StateFile
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.settings.errors import CitadelError, EngineDied, OutOfMemory, SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.keys import STOP_MARGIN_SEC
from hxp_enterprise_llm.supervisor.supervisor import Supervisor
from hxp_enterprise_llm.system import notify

from .test_reload import keyed, request


class Recorder(notify.Notifier):
    """Records the notifications to systemd."""

    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[dict[str, object]] = []

    def send(self, within_sec: float = 0, **state: str | int) -> None:
        self.said.append(dict(state))

    @property
    def statuses(self) -> list[str]:
        return [str(state["STATUS"]) for state in self.said if "STATUS" in state]


def supervisor(tmp_path: Path, keys: tuple[str, ...] = (), **wanted: object) -> tuple[Supervisor, Recorder]:
    """A main process whose next server gets other settings."""
    recorder = Recorder()
    main = Supervisor(
        keyed(), "/m", Credentials(tuple(map(digest, keys))), recorder, StateFile(tmp_path),
        reread=lambda: (keyed(**wanted), "/m"), unit={}, run_time=tmp_path,
    )  # fmt: skip
    main.now.wanted = keyed(max_model_len=5), "/m"
    return main, recorder


def written(tmp_path: Path) -> InstanceState:
    """The state that other programs read."""
    found = state.read(str(tmp_path.parent), tmp_path.name)
    assert found
    return found


class Server:
    """The part of a server that a supervisor uses."""

    url, heartbeat, gone = "http://127.0.0.1:1", None, False

    def __init__(self) -> None:
        self.keys: tuple[str, ...] = ()
        self.end = asyncio.Event()

    async def take(self, credentials: Credentials) -> None:
        self.keys = credentials.key_digests

    def watch_engines(self) -> None: ...

    def processes(self) -> list[Any]:
        return []

    engines = processes

    async def open(self, _stop: asyncio.Event) -> bool:
        return True

    async def ended(self) -> str:
        await self.end.wait()
        return "the engine (pid 7) ended"

    async def leave(self, _limit: float, *, patient: bool = False) -> bool:
        return True

    async def kill(self) -> None:
        self.gone = True


async def come_up(*_: object, **__: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("port", "keys_only", "outcome"),
    [
        (11500, False, ReloadOutcome.DONE),
        (11600, False, ReloadOutcome.REFUSED),
        # `citadel-llm key revoke` is no reload: a reload at the same time has its own outcome.
        (11500, True, None),
    ],
)
def test_the_outcome_of_a_reload_is_written_before_its_answer(
    tmp_path: Path, port: int, keys_only: bool, outcome: ReloadOutcome | None
) -> None:
    recorder = Recorder()
    settings = keyed().model_copy(update={"port": port})
    main = Supervisor(
        keyed(), "/m", Credentials((digest("a"),)), recorder, StateFile(tmp_path),
        reread=lambda: (settings, "/m"), unit={}, run_time=tmp_path,
    )  # fmt: skip
    StateFile(tmp_path).enter(Phase.READY)
    one, far = request("b", keys_only)

    async def ask() -> None:
        with far:
            await asyncio.wait_for(main.carry_out(one), 60)
            assert (far.recv(999) == reload_request.TAKEN) is (outcome is not ReloadOutcome.REFUSED)

    asyncio.run(ask())
    last = written(tmp_path).last_reload
    assert (last.outcome if last else None) is outcome
    if last and outcome is ReloadOutcome.REFUSED:
        assert "PORT changed" in last.reason


def test_the_state_is_written_before_systemd_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader(Recorder):
        """A program that reads the state when systemd hears of a change."""

        def send(self, within_sec: float = 0, **assignments: str | int) -> None:
            super().send(within_sec, **assignments)
            if "STATUS" in assignments:
                assert assignments["STATUS"] == written(tmp_path).sentence

    reader = Reader()
    main = Supervisor(
        keyed(), "/m", Credentials(), reader, StateFile(tmp_path, "f"),
        reread=lambda: (keyed(), "/m"), unit={}, run_time=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.bring_up", come_up)

    async def run() -> None:
        assert await main.start(Server())  # type: ignore[arg-type]
        await main.recover(EngineDied("it ended"))
        assert (written(tmp_path).phase, written(tmp_path).reason) == (Phase.RECOVERING, "it ended")
        assert await main.start(Server())  # type: ignore[arg-type]
        main.begin_stop()

    asyncio.run(run())
    titles = [text.split(":")[0] for text in reader.statuses]
    assert titles == ["Importing vLLM", "Ready", "Recovering", "Ready", "Stopping"]
    found = written(tmp_path)
    assert (found.phase, found.invocation, found.failures) == (Phase.STOPPING, "f", {Kind.ENGINE_DIED: 1})


@pytest.mark.parametrize("keys_only", [True, False])
def test_every_server_receives_revocation_while_another_loads(tmp_path: Path, keys_only: bool) -> None:
    main, recorder = supervisor(tmp_path, ("a", "b"), max_model_len=None if keys_only else 5)

    async def ask() -> list[Server]:
        main.servers = servers = [Server(), Server(), Server()]  # type: ignore[assignment]
        # No start or stop waits for the request here, as is the case while a server loads or drains.
        one, far = request("b", keys_only)
        with far:
            await asyncio.wait_for(main.carry_out(one), 60)
            assert far.recv(99) == reload_request.TAKEN
        assert main.now.due.is_set() is not keys_only
        return servers

    for server in asyncio.run(ask()):
        assert server.keys[0] == digest("b") and digest("a") not in server.keys
        assert len(server.keys) == 2, "the second is the main process's own"
    # For systemd, READY=1 or a status would end the reload that is in progress.
    assert recorder.said == ([] if keys_only else [{"RELOADING": 1}])


def test_recovery_does_not_complete_a_pending_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[bool]:
        main, recorder = supervisor(tmp_path)
        for due in (True, True, False):
            # The first start sends READY=1 even if a reload is due.
            main.now.due.set() if due else main.now.due.clear()
            assert await main.start(Server())  # type: ignore[arg-type]
        return ["READY" in state for state in recorder.said if str(state.get("STATUS")).startswith("Ready")]

    monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.bring_up", come_up)
    assert asyncio.run(run()) == [True, False, True]


def test_server_is_kept_if_new_settings_become_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: object) -> None:
        raise SettingsRefused([SettingsFinding("file", 0, "gone")])

    async def run() -> None:
        main, recorder = supervisor(tmp_path)
        monkeypatch.setattr(main, "new_server", refuse)
        server: Any = Server()
        before = main.now.turn()
        with socket.socket() as listener:
            assert await main.replace(server, *before, listener) is server
        assert not server.gone
        assert main.now.config == before[0]
        assert recorder.said[-1]["READY"] == 1
        told = written(tmp_path)
        assert told.phase is Phase.READY and told.last_reload
        assert told.last_reload.outcome is ReloadOutcome.REVERTED
        assert recorder.said[-1]["STATUS"] == told.sentence

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kills", "starts", "error"), [(0, True, EngineDied), (0, False, EngineDied), (1, False, OutOfMemory)]
)
def test_old_server_dying_during_reload_is_replaced_or_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, starts: bool, error: type[CitadelError]
) -> None:
    """The old server is killed at once, so that requests wait; then its successor starts, or a recovery."""
    old, new = Server(), Server()

    async def made(_: object) -> Server:
        return new

    async def load(*_: object, **__: object) -> bool:
        old.end.set()
        monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.oom_kills", lambda: kills)
        while not old.gone:
            await asyncio.sleep(0)
        if starts:
            return True
        raise SettingsRefused([SettingsFinding("file", 0, "no server")])

    async def run() -> None:
        main, recorder = supervisor(tmp_path)
        monkeypatch.setattr(main, "new_server", made)
        monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.bring_up", load)
        before = main.now.turn()
        with socket.socket() as listener:
            replacing = main.replace(old, *before, listener)  # type: ignore[arg-type]
            if starts:
                assert await replacing is new  # type: ignore[comparison-overlap]
                assert written(tmp_path).failures == {Kind(error.code): 1}
                return
            with pytest.raises(error, match=r"the engine \(pid 7\) ended"):
                await replacing
            assert new.gone and main.now.config == before[0]
            assert not [text for text in recorder.statuses if text.startswith("Ready")], "nothing serves"
            monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.bring_up", come_up)
            await main.start(Server())  # type: ignore[arg-type]
            told = written(tmp_path)
            assert told.phase is Phase.READY and told.last_reload
            assert (told.last_reload.outcome, told.last_reload.reason) == (ReloadOutcome.REVERTED, "file: no server")

    monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.oom_kills", lambda: 0)
    asyncio.run(asyncio.wait_for(run(), 60))


def test_watchdog_is_fed_before_a_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that does not open takes 30 s, and its end as long; the watchdog allows 60 s."""
    main, recorder = supervisor(tmp_path)
    old, last = Server(), []

    class Stuck(Server):
        async def open(self, _stop: asyncio.Event) -> bool:
            raise EngineDied("the server has not begun to accept connections")

        async def kill(self) -> None:
            last.append(recorder.said[-1])
            await super().kill()

    async def made(_: object) -> Server:
        return Stuck()

    async def run() -> None:
        monkeypatch.setattr(main, "new_server", made)
        monkeypatch.setattr("hxp_enterprise_llm.supervisor.supervisor.bring_up", come_up)
        with socket.socket() as listener:
            assert await main.replace(old, *main.now.turn(), listener) is old  # type: ignore[arg-type,comparison-overlap]

    asyncio.run(asyncio.wait_for(run(), 60))
    assert last == [{"WATCHDOG": 1}]


def test_timeout_is_extended_while_a_reload_waits(tmp_path: Path) -> None:
    main, recorder = supervisor(tmp_path)

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hxp_enterprise_llm.supervisor.hang.LOOK_SEC", 0.01)
            patch.setattr(main, "reload_due", asyncio.Event().wait)
            main.now.due.set()
            waiting = asyncio.create_task(main.until_something_happens(Server()))  # type: ignore[arg-type]
            while {"WATCHDOG": 1, "EXTEND_TIMEOUT_USEC": 11_000_000} not in recorder.said:
                await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait((waiting,))

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_server_that_dies_while_the_service_stops_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, recorder = supervisor(tmp_path)

    async def die(_: object) -> None:
        main.begin_stop()
        raise EngineDied("the engine (pid 7) ended")

    monkeypatch.setattr(main, "serve", die)
    with socket.socket() as listener:
        asyncio.run(main.serve_or_recover(listener))
    assert written(tmp_path).phase is Phase.STOPPING
    (stopping,) = recorder.said
    drain = main.now.config.drain_timeout_sec
    assert stopping["STOPPING"] == 1 and stopping["EXTEND_TIMEOUT_USEC"] == (drain + STOP_MARGIN_SEC) * 1_000_000
