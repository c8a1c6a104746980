"""The validation commands of task 1.1, each as written there."""

import json

from .conftest import Host

LIST_SERVICES = """
from hxp_enterprise_llm.control.service_manager import ServiceManager
manager = ServiceManager()
print(manager.list_services())
"""
CONFIGURATION = """
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

config = ServiceManagerConfig(
    service_template_path="/opt/citadel/config/services",
    log_path="/var/log/citadel-llm",
    pid_path="/var/run/citadel-llm",
    user="agent0",
    group="agent0",
    default_memory_limit_gb=4,
    default_cpu_cores=2,
    default_max_tasks=1000,
    restart_policy="always",
    restart_sec=10
)
print(config, ServiceConfigSchema.__name__)
"""


def shell(host: Host, command: str) -> str:
    return host.machine.output("sh", "-c", command)


def test_service_template(host: Host) -> None:
    shown = shell(host, "systemctl cat citadel-llm@test.service")
    assert "MemoryMax=4294967296" in shown
    assert "NoNewPrivileges=yes" in shown


def test_environment_setup(host: Host) -> None:
    activated = "source /opt/citadel/env/bin/activate; cd; command -v python; python -I -m "
    said = host.machine.output("bash", "-c", f"{activated} hxp_enterprise_llm.services.core.service_manager --help")
    assert said.startswith("/opt/citadel/env/bin/python\nusage: ")


def test_service_manager(host: Host) -> None:
    listed = host.python(LIST_SERVICES)
    for name in ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "test"):
        assert f"name='{name}'" in listed
    assert "ServiceConfigSchema" in host.python(CONFIGURATION)
    assert "usage:" in shell(
        host, "/opt/citadel/env/bin/python -m hxp_enterprise_llm.services.core.service_manager --help"
    )


def test_startup_limits_use_and_restart(host: Host) -> None:
    shell(host, "systemctl start citadel-llm@test.service")
    assert "active (running)" in shell(host, "systemctl status citadel-llm@test.service")
    limits = shell(host, "systemctl show citadel-llm@test.service --property=MemoryMax,CPUQuotaPerSecUSec")
    assert set(limits.split()) == {"MemoryMax=4294967296", "CPUQuotaPerSecUSec=2s"}
    used = shell(host, "systemctl show citadel-llm@test.service --property=MemoryCurrent")
    assert int(used.split("=")[1]) < 4294967296
    before = host.machine.show("citadel-llm@test", "MainPID")
    seconds = (
        float(shell(host, "s=$(date +%s%N); systemctl restart citadel-llm@test; echo $(($(date +%s%N) - s))")) / 1e9
    )
    print(f"systemctl restart: {seconds:.1f} s")
    assert seconds < 15
    assert host.machine.show("citadel-llm@test", "MainPID") != before
    shell(host, "systemctl stop citadel-llm@test.service")


def test_dependencies_environment_and_journal(host: Host) -> None:
    assert "citadel-llm.slice" in shell(host, "systemctl list-dependencies citadel-llm@test.service")
    assert "VLLM_NO_USAGE_STATS=1" in shell(host, "systemctl show citadel-llm@test.service --property=Environment")
    assert "Ready: test" in shell(host, 'journalctl -u citadel-llm@test.service --since "5 minutes ago"')


def test_monitoring_integration(host: Host) -> None:
    shell(host, "systemctl start citadel-llm@test.service")
    up = shell(host, "curl -X GET http://127.0.0.1:9090/metrics | grep citadel_llm_service")
    assert 'citadel_llm_service_ready{service="test"} 1.0' in up
    said = json.loads(shell(host, "curl -X GET http://127.0.0.1:8000/health/services"))
    (test,) = [service for service in said["services"] if service["name"] == "test"]
    assert said["status"] == "healthy" and test["ready"], said
    assert 0 < test["memory_bytes"] < test["memory_limit_bytes"] == 4294967296
    assert 0 < test["startup_seconds"] < 30
    shell(host, "systemctl stop citadel-llm@test.service")
