"""The services as Prometheus metrics, in its text format and in OpenMetrics."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hxp_enterprise_llm.control.service import Service, State
from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.health import ServicesHealth
from hxp_enterprise_llm.monitoring.ledger import Ledger
from hxp_enterprise_llm.protocol.failures import Kind

PREFIX = "citadel_llm_service"

Value = float | None
GAUGES: dict[str, tuple[str, Callable[[Service], Value]]] = {
    "up": ("Whether systemd says that the service runs.", lambda one: _known(one, one.state.active)),
    "ready": ("Whether the service runs and its endpoint answers.", lambda one: _known(one, one.ready)),
    "startup_seconds": (
        "Duration of the last start or recovery, until the model answered, in seconds.",
        lambda one: one.startup_seconds,
    ),
    "uptime_ratio": (
        "Share of the time in which the service should have run, in the last 30 days, in which it was ready.",
        lambda one: one.uptime_ratio,
    ),
    "memory_bytes": ("Memory that the service uses.", lambda one: one.memory_bytes),
    "memory_limit_bytes": ("Memory at which the kernel kills a process.", lambda one: one.memory_limit_bytes),
    "cpu_limit_cores": ("CPU time that the service may use, in cores.", lambda one: one.cpu_limit_cores),
    "tasks": ("Number of processes and threads of the service.", lambda one: one.tasks),
    "tasks_limit": ("Number of processes and threads that the service may have.", lambda one: one.tasks_limit),
    "certificate_expiry_seconds": (
        "When the certificate that clients see expires, in seconds since the epoch.",
        lambda one: one.certificate_expires.timestamp() if one.certificate_expires else None,
    ),
}
COUNTERS: dict[str, tuple[str, Callable[[Ledger], float]]] = {
    "restarts": ("Restarts of the service by systemd.", lambda ledger: ledger.restarts),
    "cpu_seconds": ("CPU time that the service has used.", lambda ledger: ledger.cpu.total),
    "oom_kills": (
        "Processes of the service that the kernel killed at the memory limit.",
        lambda ledger: ledger.oom_kills.total,
    ),
}


def _known(service: Service, value: bool) -> Value:
    """None, which gives no sample, while systemd cannot be reached: the state is unknown then."""
    return None if service.state is State.UNKNOWN else float(value)


class ServiceCollector(Collector):
    """Makes the metrics from the current state. An unknown value has no sample."""

    def __init__(self, fleet: Fleet, version: str) -> None:
        self._fleet = fleet
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        services = self._fleet.services().services
        for name, (text, value_of) in GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["service"])
            _add(gauge, (((one.name,), value_of(one)) for one in services))
            yield gauge
        states = GaugeMetricFamily(
            f"{PREFIX}_state", "1 for the state that the service is in.", labels=["service", "state"]
        )
        _add(states, (((one.name, state), float(one.state is state)) for one in services for state in State))
        yield states
        ledgers = {one.name: self._fleet.store.ledger_or_empty(one.name) for one in services}
        for name, (text, count_of) in COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["service"])
            _add(counter, (((one,), count_of(ledger)) for one, ledger in ledgers.items()))
            yield counter
        failures = CounterMetricFamily(
            f"{PREFIX}_failures", "Failures of the service, by kind.", labels=["service", "result"]
        )
        _add(
            failures, (((one, kind), ledger.failures.get(kind, 0)) for one, ledger in ledgers.items() for kind in Kind)
        )
        yield failures
        codes = GaugeMetricFamily(
            f"{PREFIX}_last_exit_code",
            "Last exit status of the main process; after a signal, 128 plus its number.",
            labels=["service"],
        )
        _add(codes, (((one,), ledger.exit_code) for one, ledger in ledgers.items()))
        yield codes
        yield from self._of_the_monitor()

    def _of_the_monitor(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("citadel_llm_monitor_build_info", "Version of the monitor.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        labels = ["environment", "hostname", "version"]
        host = GaugeMetricFamily(
            "citadel_llm_host_info", "Names of this host and version of the monitor.", labels=labels
        )
        host.add_metric([*self._fleet.host, self._version], 1)
        yield host
        for name, text, good in (
            ("systemd_reachable", "Whether the monitor can reach systemd.", not self._fleet.problem),
            ("store_writable", "Whether the monitor can write its store.", not self._fleet.store.problem),
        ):
            yield GaugeMetricFamily(f"citadel_llm_monitor_{name}", text, value=float(good))


def _add(family: Any, samples: Iterable[tuple[tuple[str, ...], Value]]) -> None:
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)


class Exposition:
    """The metrics as text. `made` has the last text of each content type, which is generated at most once a second."""

    def __init__(self, fleet: Fleet, version: str) -> None:
        self._fleet = fleet
        self._registry = CollectorRegistry()
        # Registered without names, because asking for the names would collect the metrics once.
        self._registry.register(ServiceCollector(fleet, version))
        self.made: dict[str, tuple[ServicesHealth, bytes]] = {}

    def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and content for an Accept header."""
        encode, kind = choose_encoder(accept)
        made = self.made.get(kind)
        services = self._fleet.services()
        if made is None or made[0] is not services:
            if len(self.made) > len(("text", "openmetrics")) * 4:
                # The content type repeats the Accept header, so a client could add keys without limit.
                self.made.clear()
            made = self.made[kind] = (services, encode(self._registry))
        return kind, made[1]


def application(fleet: Fleet, version: str) -> Starlette:
    """Serves /metrics."""
    exposition = Exposition(fleet, version)

    async def metrics(request: Request) -> Response:
        kind, content = exposition.text(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return Starlette(routes=[Route("/metrics", metrics)])
