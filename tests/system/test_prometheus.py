"""Debian's Prometheus scrapes the monitor and a model; it has the series that the dashboard and the alerts query."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from .conftest import Host

SHIPPED = "/usr/share/citadel-llm"
# Its default, 9090, is METRICS_PORT, see docs/monitoring.md.
ADDRESS = "127.0.0.1:9091"
# The shipped config with a shorter interval: rates need several samples within the test.
FAST_SEC = 2
LOAD = """
import sys, time
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:11499/v1", api_key="none")
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    client.completions.create(model="test", prompt="The same beginning of each request. " * 8, max_tokens=24)
"""


class Prometheus:
    """A Prometheus that runs in the machine of a host."""

    def __init__(self, host: Host) -> None:
        self.machine = host.machine

    def get(self, path: str, **parameters: str) -> Any:
        words = [word for key, value in parameters.items() for word in ("--data-urlencode", f"{key}={value}")]
        answer = self.machine.output("curl", "-sS", "--get", *words, f"http://{ADDRESS}/api/v1/{path}")
        told = json.loads(answer)
        assert told["status"] == "success", (parameters, told)
        return told["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The current samples of a query."""
        samples: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return samples


@pytest.fixture
def prometheus(host: Host) -> Iterator[Prometheus]:
    """Scrapes the monitor and the running instance `test` with the shipped scrape config."""
    program = shutil.which("prometheus")
    assert program, "no prometheus here: apt install prometheus"
    machine = host.machine
    machine.run("systemctl", "start", "citadel-llm-monitor")
    machine.run("systemctl", "start", "citadel-llm@test")
    if not machine.inside("/usr/local/bin/prometheus").exists():
        machine.copy_in(Path(program), "/usr/local/bin/prometheus")
    scrape = machine.output("cat", f"{SHIPPED}/prometheus/citadel-llm.scrape.yml").replace("15s", f"{FAST_SEC}s")
    machine.write(
        "/root/prometheus.yml",
        f"global: {{evaluation_interval: 1s}}\nrule_files: [{SHIPPED}/prometheus/citadel-llm.rules.yml]\n{scrape}\n",
    )
    machine.run(
        "systemd-run", "--unit=prometheus-of-the-test", "/usr/local/bin/prometheus",
        "--config.file=/root/prometheus.yml", "--storage.tsdb.path=/var/tmp/prometheus",
        f"--web.listen-address={ADDRESS}",
    )  # fmt: skip
    try:
        machine.run(
            "curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", f"http://{ADDRESS}/-/ready"
        )
        yield Prometheus(host)
    finally:
        machine.run("systemctl", "stop", "prometheus-of-the-test", "citadel-llm@test")
        machine.run("rm", "-rf", "/var/tmp/prometheus")


def queries(machine_file: str) -> dict[str, list[str]]:
    """The queries of each panel, as Grafana sends them for all models."""
    found: dict[str, list[str]] = {}
    for panel in json.loads(machine_file)["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$service", ".*")
            query = query.replace("$__rate_interval", "20s").replace("$__range", "1h")
            found.setdefault(panel["title"], []).append(query)
    return found


def test_every_panel_has_data_and_an_alert_fires(host: Host, prometheus: Prometheus) -> None:
    """An instance with refused settings provides data for the failures panel and for the alerts."""
    host.settings("refused", MODEL="/nowhere", PORT=11498)
    # Both jobs are up, and vLLM's series carry the model's name.
    jobs = {"citadel-llm-monitor", "citadel-llm-models"}
    until(lambda: {one["metric"]["job"] for one in prometheus.ask("up == 1")} == jobs, "both jobs are up")
    until(lambda: prometheus.ask('citadel_llm_service_failures_total{service="refused"}'), "the instance has metrics")
    labels = prometheus.ask('vllm:num_requests_running{job="citadel-llm-models"}')[0]["metric"]
    assert (labels["service"], labels["instance"]) == ("test", "127.0.0.1:11499")

    assert host.machine.run("systemctl", "start", "citadel-llm@refused", check=False).returncode != 0
    host.python(LOAD, "12")
    dashboard = host.machine.output("cat", f"{SHIPPED}/grafana/citadel-llm.json")
    empty = {}
    for title, asked in queries(dashboard).items():
        for query in asked:
            samples = prometheus.ask(query)
            names = {sample["metric"].get("service") for sample in samples}
            figures = [float(sample["value"][1]) for sample in samples if sample["metric"].get("service") == "test"]
            print(f"{title:28} {len(samples):3} series, test: {', '.join(f'{figure:g}' for figure in figures[:4])}")
            if ("refused" if title == "Failures" else "test") not in names or any(map(math.isnan, figures)):
                empty[title] = query
    assert empty == {}
    rate = prometheus.ask("sum by (service) (rate(vllm:generation_tokens_total[20s]))")
    assert float(rate[0]["value"][1]) > 1, "tokens per second under load"

    # The instance stays failed: a minute later the alert fires with complete texts.
    def fires() -> list[dict[str, Any]]:
        told = prometheus.get("alerts")["alerts"]
        return [one for one in told if one["labels"]["alertname"] == "CitadelLlmDown" and one["state"] == "firing"]

    until(fires, "the alert fires")
    (alert,) = fires()
    assert alert["labels"]["service"] == "refused"
    assert alert["annotations"]["summary"] == "Model refused does not answer"
    assert "`systemctl status citadel-llm@refused`" in alert["annotations"]["description"]
    # No other alert fires: a model that was never started causes none. Alerts on start-up times are not checked here.
    others = 'ALERTS{alertstate="firing", service!="refused", alertname!~".*(SlowStart|Budget).*"}'
    assert [one["metric"]["alertname"] for one in prometheus.ask(others)] == []


def test_stopped_instance_is_removed_from_targets(host: Host, prometheus: Prometheus) -> None:
    until(lambda: prometheus.ask('up{job="citadel-llm-models", service="test"} == 1'), "the model is a target")
    host.machine.run("systemctl", "stop", "citadel-llm@test")
    until(lambda: len(prometheus.get("targets", state="active")["activeTargets"]) == 1, "the target is gone")
    # Prometheus ends the series of a removed target a few intervals later.
    until(lambda: prometheus.ask('up{job="citadel-llm-models"}') == [], "the series has ended")
    assert prometheus.ask('citadel_llm_service_state{service="test", state="stopped"} == 1')
