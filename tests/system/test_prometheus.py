"""Debian's Prometheus scrapes the monitor and a model; it has the series that the dashboard and the alerts query."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host

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
UNIT = "prometheus-of-the-test"
CONFIG = "/root/prometheus.yml"
KEYED_PORT, RECORDER_PORT = 11591, 11592
KEYS, KEY = "/etc/citadel-llm/keyed.keys", "/etc/prometheus/citadel-llm-keyed.key"
RECORDER = """
import http.server, sys

class Recorder(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("received", self.path, self.headers.get("Authorization"), flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"recorder_answers 1\\n")

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()
"""


class Prometheus:
    """A Prometheus that runs in the machine of a host."""

    def __init__(self, host: Host) -> None:
        self.machine = host.machine
        self.shipped = self.machine.output("cat", f"{SHIPPED}/prometheus/citadel-llm.scrape.yml")

    def write(self, scrape: str) -> None:
        """Write the configuration, with `scrape` as the scrape config and with short intervals."""
        scrape = scrape.replace("15s", f"{FAST_SEC}s")
        rules = f"rule_files: [{SHIPPED}/prometheus/citadel-llm.rules.yml]"
        self.machine.write(CONFIG, f"global: {{evaluation_interval: 1s}}\n{rules}\n{scrape}\n")

    def configure(self, scrape: str) -> None:
        """Let the running Prometheus read another scrape config."""
        loaded = self.get("status/config")["yaml"]
        self.write(scrape)
        self.machine.run("systemctl", "kill", "--signal=HUP", UNIT)
        until(lambda: self.get("status/config")["yaml"] != loaded, "the configuration is loaded")

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
    prometheus = Prometheus(host)
    prometheus.write(prometheus.shipped)
    machine.run(
        "systemd-run", f"--unit={UNIT}", "/usr/local/bin/prometheus",
        f"--config.file={CONFIG}", "--storage.tsdb.path=/var/tmp/prometheus",
        f"--web.listen-address={ADDRESS}",
    )  # fmt: skip
    try:
        machine.run(
            "curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", f"http://{ADDRESS}/-/ready"
        )
        yield prometheus
    finally:
        machine.run("systemctl", "stop", UNIT, "citadel-llm@test")
        machine.run("rm", "-rf", "/var/tmp/prometheus")


class Recorder:
    """An instance whose main process is a stand-in that logs the Authorization header of each request."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def listen(self, port: int) -> None:
        """Start the instance, or restart it, with this port."""
        machine = self.host.machine
        machine.write("/usr/local/lib/recorder.py", RECORDER)
        command = f"/usr/bin/python3 /usr/local/lib/recorder.py {port}"
        drop_in = f"[Service]\nType=exec\nWatchdogSec=0\nExecStart=\nExecStart={command}\n"
        machine.write("/run/systemd/system/citadel-llm@recorder.service.d/90-recorder.conf", drop_in)
        self.host.settings("recorder", MODEL=TINY_MODEL, PORT=port)
        machine.run("systemctl", "restart", "citadel-llm@recorder")

    def received(self) -> list[str]:
        """The Authorization headers of the scrapes so far."""
        lines = [line.split(maxsplit=2) for line in self.host.journal("recorder").splitlines()]
        return [words[2] for words in lines if words[:2] == ["received", "/metrics"]]

    def more(self, count: int = 3) -> list[str]:
        """The Authorization headers of the next scrapes, of which there are at least `count`."""
        before = len(self.received())
        until(lambda: len(self.received()) >= before + count, "the recorder is scraped")
        return self.received()[before:]


@pytest.fixture
def recorder(host: Host) -> Iterator[Recorder]:
    yield Recorder(host)
    host.machine.run("systemctl", "stop", "citadel-llm@recorder")
    host.machine.run("rm", "-rf", "/run/systemd/system/citadel-llm@recorder.service.d", "/usr/local/lib/recorder.py")


@pytest.fixture
def keyed(host: Host) -> Iterator[str]:
    """A running instance with an API key and a key for metrics, made as docs/monitoring.md says; its scrape job."""
    machine = host.machine
    host.settings("keyed", MODEL=TINY_MODEL, PORT=KEYED_PORT, KV_CACHE_GB=0.25)
    machine.run("mkdir", "-p", "/etc/prometheus")
    add = f"citadel-llm key add keyed --metrics 2>/root/job | install -m 0600 /dev/stdin {KEY}"
    try:
        machine.run("citadel-llm", "key", "add", "keyed", "--name", "alice")
        machine.run("sh", "-c", add)
        machine.run("systemctl", "start", "citadel-llm@keyed")
        said = machine.output("cat", "/root/job")
        yield "".join(line for line in said.splitlines(keepends=True) if not line.startswith("citadel-llm: "))
    finally:
        machine.run("rm", "-rf", "/etc/prometheus", "/root/job", KEYS)


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


def test_key_reaches_only_the_model_that_it_belongs_to(
    host: Host, prometheus: Prometheus, keyed: str, recorder: Recorder
) -> None:
    machine, of_keyed = host.machine, 'up{service="keyed"}'
    recorder.listen(RECORDER_PORT)
    prometheus.configure(f"{prometheus.shipped}\n{keyed}")
    # The key opens the metrics of its model, and nothing else.
    until(lambda: prometheus.ask(f"{of_keyed} == 1"), "the model with keys is scraped")
    assert [one["metric"]["job"] for one in prometheus.ask(of_keyed)] == ["citadel-llm-model-keyed"]
    assert prometheus.ask('vllm:num_requests_running{service="keyed"}')
    header = f"Authorization: Bearer {machine.output('cat', KEY)}"
    url = f"http://127.0.0.1:{KEYED_PORT}"

    def status(path: str, *words: str) -> str:
        code = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", header)
        return machine.output(*code, *words, f"{url}{path}")

    assert (status("/metrics"), status("/metrics", "--head")) == ("200", "200")
    refused = [status(path) for path in ("/v1/models", "/metrics/", "/metrics/v1/models", "/openapi.json")]
    refused += [status("/metrics", "-d", "{}"), status("/v1/completions", "-d", "{}")]
    assert refused == ["401"] * len(refused)
    # Another model is scraped at the same time, and receives no key.
    until(lambda: prometheus.ask('recorder_answers{job="citadel-llm-models"} == 1'), "the recorder is scraped")
    recorder.more()
    seen = recorder.received()
    # A model that takes the port of a stopped model receives no key either.
    machine.run("systemctl", "stop", "citadel-llm@keyed")
    until(lambda: prometheus.ask(of_keyed) == [], "the target is gone")
    recorder.listen(KEYED_PORT)
    seen += recorder.more()
    assert set(seen) == {"None"}
    # A revoked key opens nothing.
    recorder.listen(RECORDER_PORT)
    machine.run("systemctl", "start", "citadel-llm@keyed")
    until(lambda: prometheus.ask(f"{of_keyed} == 1"), "the model with keys is scraped again")
    assert "metrics revoked, 1 left" in machine.output("citadel-llm", "key", "revoke", "keyed", "metrics")
    assert status("/metrics") == "401"
    until(lambda: prometheus.ask(f"{of_keyed} == 0"), "the scrape is refused")
    # With the key in the job of all models, as this package once advised, the recorder receives it.
    everywhere = prometheus.shipped.replace(
        "job_name: citadel-llm-models\n",
        f"job_name: citadel-llm-models\n    authorization:\n      credentials_file: {KEY}\n",
    )
    prometheus.configure(everywhere)
    until(lambda: f"Bearer {machine.output('cat', KEY)}" in recorder.received(), "the recorder receives the key")
    SUMMARY.append(f"{len(seen)} scrapes of another model: none carries the key")
