"""The answers of the health port and the metrics port."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from hxp_enterprise_llm.control.service import State
from hxp_enterprise_llm.monitoring import metrics, web
from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.protocol.state import Phase

from .conftest import Root
from .monitored import KILLED, RUNS, Answering, fleet_of, settle, state_file


class Client:
    """Sends requests to an application without a network."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def get(self, path: str, method: str = "GET") -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.application)
            async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
                return await client.request(method, path)

        return asyncio.run(ask())


def client_of(root: Root, tmp_path: Path) -> tuple[Fleet, Client]:
    fleet = fleet_of(root, tmp_path, Answering(), "a", "b")
    fleet.connected("")
    fleet.changed("b", {"ActiveState": "inactive", "UnitFileState": "disabled"}, 1)
    return fleet, Client(web.application(fleet, "1.2"))


def test_health_port_returns_documented_fields_and_status_codes(root: Root, tmp_path: Path) -> None:
    fleet, client = client_of(root, tmp_path)
    answer = client.get("/health/services")
    assert answer.status_code == 200
    one = answer.json()["services"][0]
    contract = (
        "name state ready port pid since startup_seconds restarts memory_bytes memory_limit_bytes cpu_cores tasks"
    )
    assert {*contract.split(), "reason"} <= one.keys()
    labels = {"environment": "production", "hostname": "localhost"}
    assert client.get("/health").json() == {"status": "healthy", "version": "1.2", "reason": ""} | labels
    assert answer.json() == answer.json() | labels
    assert client.get("/health/services/b").status_code == 503
    assert client.get("/health/services/b").json()["name"] == "b"
    for path in ("/health/services/none", "/health/services/%2e%2e", "/health/services/..%2fb", "/health/services/a/b"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["detail"], path
    fleet.connected("no bus")
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, "no bus")
    assert client.get("/health/services").status_code == 503


def test_host_labels_follow_the_settings_of_the_last_reload(root: Root, tmp_path: Path) -> None:
    fleet, client = client_of(root, tmp_path)
    root.host("CITADEL_ENV=staging\nSERVER_HOSTNAME=gpu-1.example\n")
    fleet.present(set(fleet.names()))
    first = {"environment": "staging", "hostname": "gpu-1.example"}
    found = client.get("/health/services").json()
    assert found == found | first
    assert (
        b'citadel_llm_host_info{environment="staging",hostname="gpu-1.example",version="1.2"} 1.0'
        in metrics.Exposition(fleet, "1.2").text("")[1].splitlines()
    )
    root.host("CITADEL_ENV=test\nSERVER_HOSTNAME=gpu-1.example\n")
    fleet.present(set(fleet.names()))
    for path in ("/health", "/health/services"):
        assert client.get(path).json()["environment"] == "test"


def test_targets_name_models_with_keys_and_can_be_limited_to_one(root: Root, tmp_path: Path) -> None:
    fleet, client = client_of(root, tmp_path)
    root.instance("b", "MODEL=/srv/m\nPORT=11501\nAPI_KEY_FILE=/etc/citadel-llm/b.keys\n")
    fleet.present(set(fleet.names()))

    async def start() -> None:
        for name in ("a", "b"):
            fleet.changed(name, RUNS, 1)
        await settle(fleet)

    asyncio.run(start())
    a = {"targets": ["127.0.0.1:11500"], "labels": {"service": "a"}}
    b = {"targets": ["127.0.0.1:11501"], "labels": {"service": "b", "__meta_citadel_llm_keys": "yes"}}
    assert client.get("/health/targets").json() == [a, b]
    assert client.get("/health/targets/a").json() == [a]
    assert client.get("/health/targets/b").json() == [b]
    # Prometheus keeps the last targets after an error.
    fleet.changed("b", {"ActiveState": "inactive", "SubState": "dead"}, 1)
    for name in ("b", "none", "%2e", "a,b", "*"):
        answer = client.get(f"/health/targets/{name}")
        assert (answer.status_code, answer.json()) == (200, []), name


def test_head_returns_status_and_headers_of_get(root: Root, tmp_path: Path) -> None:
    _, client = client_of(root, tmp_path)
    for path in ("/", "/health", "/health/services", "/health/services/b", "/health/services/none", "/health/targets"):
        head, get = client.get(path, "HEAD"), client.get(path)
        assert (head.status_code, head.headers) == (get.status_code, get.headers), path
    assert client.get("/health", "POST").status_code == 405


def test_security_policy_allows_only_script_and_style_of_the_page(root: Root, tmp_path: Path) -> None:
    _, client = client_of(root, tmp_path)
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    for name in ("style-src", "script-src"):
        assert rules[name].startswith("'sha256-") and "unsafe" not in rules[name]
    digest = "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE="  # printf x | openssl dgst -sha256 -binary | base64
    assert f"script-src 'sha256-{digest}';" in web.policy("<script>x</script>")


def test_metrics_contain_the_specified_samples(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS | KILLED, 1)
        assert fleet.services().services[0].reason == "the main process was killed by SIGKILL"
        fleet.changed("a", RUNS | {"InvocationID": "b", "NRestarts": 1, "MemoryMax": 99}, 1)
        await settle(fleet)
        exposition = metrics.Exposition(fleet, "1")
        kind, content = exposition.text("application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text") and content.endswith(b"# EOF\n")
        kind, content = exposition.text("")
        assert kind.startswith("text/plain")
        lines = content.decode().splitlines()
        for sample in (
            'up{service="a"} 1.0', 'ready{service="a"} 1.0', 'restarts_total{service="a"} 1.0',
            'failures_total{result="signal",service="a"} 1.0', 'failures_total{result="watchdog",service="a"} 0.0',
            'memory_limit_bytes{service="a"} 99.0', 'state{service="a",state="ready"} 1.0',
            'state{service="a",state="failed"} 0.0', 'last_exit_code{service="a"} 137.0',
            'startup_seconds{service="a"} 8.0', 'oom_kills_total{service="a"} 0.0',
            'cpu_seconds_total{service="a"} 0.0',
        ):  # fmt: skip
            assert f"citadel_llm_service_{sample}" in lines, sample
        assert exposition.text("")[1] is content, "made once a second"
        for version in range(100):
            exposition.text(f"application/openmetrics-text; version=1.{version}.0")
        assert len(exposition.made) < 20

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("active", "phase", "state"),
    [
        ("active", Phase.READY, State.READY),
        ("active", Phase.RECOVERING, State.RECOVERING),
        ("reloading", Phase.RECOVERING, State.RECOVERING),
        ("reloading", Phase.RELOADING, State.RELOADING),
        ("activating", Phase.LOADING, State.STARTING),
    ],
)
def test_ready_depends_on_the_phase(root: Root, tmp_path: Path, active: str, phase: Phase, state: State) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS, 1)
        await settle(fleet)
        state_file(root, "a").enter(phase, "why")
        fleet.changed("a", {"ActiveState": active}, 1)
        await settle(fleet)
        found = fleet.services()
        (a,) = found.services
        # During a reload the old server answers.
        ready = state in (State.READY, State.RELOADING)
        assert (a.state, a.ready, found.status == "healthy") == (state, ready, ready)
        assert a.reason.endswith("why")
        text = metrics.Exposition(fleet, "1").text("")[1].decode()
        assert f'citadel_llm_service_state{{service="a",state="{state}"}} 1.0' in text
        assert f'citadel_llm_service_up{{service="a"}} {float(active != "activating")}' in text

    asyncio.run(scenario())


def test_settings_are_not_exposed_to_the_network(root: Root, tmp_path: Path) -> None:
    fleet = fleet_of(root, tmp_path, Answering())
    root.instance("a", "MODEL=/srv/m\nPORT=11500\nMY_TOKEN=secret\n")
    fleet.present(set(fleet.names()))
    client = Client(web.application(fleet, "1"))
    for path in ("/health/services", "/health/services/a"):
        answer = client.get(path)
        assert "secret" not in answer.text and "config" not in answer.text
    assert fleet.services().services[0].config, "the same type as the command's"


def test_problems_of_the_monitor_are_in_its_health(root: Root, tmp_path: Path) -> None:
    fleet = fleet_of(root, tmp_path, Answering(), "a")
    fleet.connected("")
    client = Client(web.application(fleet, "1", lambda: ["metrics cannot be served"]))
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (200, "metrics cannot be served")
