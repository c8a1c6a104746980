"""Alerts, scrape config and dashboard, checked with Prometheus' own promtool."""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import certificates
import pytest

from hxp_enterprise_llm.cli import scrape_job

PROJECT = Path(__file__).resolve().parents[2]
PROMETHEUS = PROJECT / "share/prometheus"
RULES = PROMETHEUS / "citadel-llm.rules.yml"
SCRAPE = PROMETHEUS / "citadel-llm.scrape.yml"
TESTS = Path(__file__).with_name("alerts.test.yml")
DASHBOARD = json.loads((PROJECT / "share/grafana/citadel-llm.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
MANUAL = (PROJECT / "docs/monitoring.md").read_text(encoding="utf-8")
ALERTS = re.findall(r"^ *- alert: (\w+)$", RULES.read_text(encoding="utf-8"), re.MULTILINE)
METRICS = [
    "up", "ready", "state", "startup_seconds", "uptime_ratio", "restarts_total", "failures_total", "memory_bytes",
    "memory_limit_bytes", "cpu_seconds_total", "cpu_limit_cores", "tasks", "tasks_limit", "oom_kills_total",
    "last_exit_code", "certificate_expiry_seconds",
]  # fmt: skip
BEGIN = re.compile(r"^ {6}- (?:alert|record): (\w.*)$", re.MULTILINE)


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is missing; ./build.sh test installs it"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


def passes(*words: str | Path) -> None:
    done = promtool(*words)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions(dashboard: dict[str, Any] = DASHBOARD) -> list[str]:
    """Every query of the dashboard, as Grafana sends it for all models."""
    found = [query["expr"] for panel in dashboard["panels"] for query in panel.get("targets", ())]
    found += [note["expr"] for note in dashboard["annotations"]["list"] if "expr" in note]
    return [
        query.replace("$service", ".*").replace("$__rate_interval", "1m").replace("$__range", "3h") for query in found
    ]


def test_alert_rules_pass_promtool_check() -> None:
    passes("check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.parametrize("tls", [False, True])
def test_scrape_config_and_rules_pass_promtool_check(tmp_path: Path, tls: bool) -> None:
    whole = tmp_path / "prometheus.yml"
    if tls:
        certificate = tmp_path / "m.pem"
        certificate.write_text(certificates.CERTIFICATE)
        (tmp_path / "etc/default").mkdir(parents=True)
        (tmp_path / "etc/default/citadel-llm-m").write_text(f"MODEL=/srv/m\nPORT=11500\nTLS_CERT_FILE={certificate}\n")
    keyed = scrape_job.text("m", str(tmp_path)).replace("/etc/prometheus/", f"{tmp_path}/")
    assert ("tls_config:" in keyed) is tls
    (tmp_path / "citadel-llm-m.key").write_text("key\n")
    whole.write_text(f"rule_files: [{RULES}]\n{SCRAPE.read_text(encoding='utf-8')}\n{keyed}\n")
    passes("check", "config", "--lint=all", "--lint-fatal", whole)


def test_alerts_fire_only_when_expected() -> None:
    passes("test", "rules", TESTS)


def always(rule: str) -> str:
    """The rule with an expression that is always true."""
    changed = re.sub(
        r"expr: .*?\n(?= {8}\w+:)",
        "expr: 0 * up + 1 or vector(1)\n",
        rule.replace(" for: ", " keep: "),
        flags=re.DOTALL,
    )
    return re.sub(r"^ +keep: .*\n", "", changed, flags=re.MULTILINE)


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("change", [lambda _: "", always], ids=["never-fires", "always-fires"])
def test_broken_alert_fails_the_rule_tests(alert: str, change: Any, tmp_path: Path) -> None:
    """The rule tests fail if an alert is removed or always fires, so they check both for each alert."""
    text = RULES.read_text(encoding="utf-8")
    starts = [match.start() for match in BEGIN.finditer(text)] + [len(text)]
    for begin, end in itertools.pairwise(starts):
        if text[begin:end].startswith(f"      - alert: {alert}\n"):
            broken = text[:begin] + change(text[begin:end]) + text[end:]
    (tmp_path / "rules.yml").write_text(broken)
    # Cases that cover hours are slow, and only the budget alerts need them.
    head, *cases = re.split(r"^  - name: ", TESTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cases = [case for case in cases if "Budget" in alert or not re.search(r"eval_time: \d+h", case)]
    tests = head.replace(os.path.relpath(RULES, TESTS.parent), "rules.yml") + "".join(f"  - name: {c}" for c in cases)
    (tmp_path / "tests.yml").write_text(tests)
    passes("check", "rules", tmp_path / "rules.yml")
    done = promtool("test", "rules", tmp_path / "tests.yml")
    assert done.returncode != 0
    assert alert in done.stdout + done.stderr


def test_dashboard_queries_are_valid_promql(tmp_path: Path) -> None:
    """Debian 12's promtool checks expressions only within rules."""
    rules = [f"      - record: query_{i}\n        expr: {json.dumps(query)}" for i, query in enumerate(expressions())]
    assert len(rules) > 25
    (tmp_path / "queries.yml").write_text("groups:\n  - name: dashboard\n    rules:\n" + "\n".join(rules) + "\n")
    passes("check", "rules", tmp_path / "queries.yml")


def test_rules_and_dashboard_use_existing_metrics() -> None:
    """Our metrics are those of the manual; tests/system checks vLLM's metrics with a real vLLM."""
    asked = " ".join(expressions()) + RULES.read_text(encoding="utf-8")
    ours = set(re.findall(r"citadel_llm_service_(\w+)", asked))
    assert ours <= set(METRICS)
    assert set(METRICS) - ours == {"up", "last_exit_code"}, "the dashboard shows all but these"


def test_dashboard_fits_its_grid_and_uses_a_variable_data_source() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert 0 <= cell[0] < 24
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"], panel["title"]
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "service"}
    assert all('service=~"$service"' in query["expr"] for panel in PANELS for query in panel["targets"])


def test_the_manual_names_every_alert_and_metric() -> None:
    assert [alert for alert in ALERTS if f"`{alert}`" not in MANUAL] == []
    assert [metric for metric in METRICS if f"`citadel_llm_service_{metric}`" not in MANUAL] == []


def test_every_alert_names_a_command_and_a_severity() -> None:
    for rule in RULES.read_text(encoding="utf-8").split("- alert: ")[1:]:
        name = rule.split("\n", 1)[0]
        assert re.search(r"`(systemctl|journalctl|citadel-llm) ", " ".join(rule.split())), name
        assert re.search(r"severity: (critical|warning)\n", rule), name
        assert "{{ $labels.service }}" in rule or name == "CitadelLlmMonitorAbsent", name
