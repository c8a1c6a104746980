"""The health port: JSON with its OpenAPI description, and the status page."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.health import MonitorHealth, Problem, Service, ServicesHealth, Status, Target

PAGE = Path(__file__).with_name("page.html")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
NOT_READY, MISSING = 503, 404


def policy(page: str) -> str:
    """A Content-Security-Policy that allows a page its inline style and script, and requests to its own origin."""

    def hashes(tag: str) -> str:
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    rules = {
        "default-src": "'none'",
        "style-src": hashes("style"),
        "script-src": hashes("script"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class HeadAsGet:
    """Answers HEAD like GET; the server omits the body (RFC 9110, 9.3.2)."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        # FastAPI would describe HEAD as a separate operation that needs another name.
        await self._application({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)


class Answers:
    """The JSON of all services, generated once for each change."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._of: ServicesHealth | None = None
        self._content = b""

    def all(self) -> tuple[ServicesHealth, bytes]:
        """The health of all services, and its JSON."""
        now = self._fleet.services()
        if now is not self._of:
            self._of, self._content = now, now.model_dump_json().encode()
        return now, self._content


def application(fleet: Fleet, version: str, problems: Callable[[], Iterable[str]] = tuple) -> FastAPI:
    """Serves /health, the services and the targets below it, /openapi.json and the page at /.

    `problems` gives the monitor's problems other than those of the fleet and the store.
    """
    # The documentation pages of FastAPI fetch scripts from other hosts.
    app = FastAPI(
        title="citadel-llm monitor",
        version=version,
        summary="Health of the language models of this host",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(HeadAsGet)
    answers = Answers(fleet)

    def not_ready(model: type, text: str) -> dict[int | str, dict[str, Any]]:
        return {NOT_READY: {"model": model, "description": text}}

    @app.get("/health", response_model=MonitorHealth, responses=not_ready(MonitorHealth, "systemd cannot be reached"))
    async def health() -> Response:
        """Health of the monitor itself."""
        reason = "; ".join(filter(None, (*problems(), fleet.problem, fleet.store.problem)))
        status = Status.UNHEALTHY if fleet.problem else Status.HEALTHY
        found = MonitorHealth(status=status, version=version, **fleet.host._asdict(), reason=reason)
        return _json(found.model_dump_json().encode(), not fleet.problem)

    @app.get(
        "/health/services",
        response_model=ServicesHealth,
        responses=not_ready(ServicesHealth, "An enabled or running service is not ready"),
    )
    async def services() -> Response:
        """Health of all services: 200 if every enabled or running service is ready."""
        found, content = answers.all()
        return _json(content, found.status is Status.HEALTHY)

    @app.get(
        "/health/services/{name}",
        response_model=Service,
        responses={
            **not_ready(Service, "The service is not ready"),
            MISSING: {"model": Problem, "description": "There is no such service"},
        },
    )
    async def service(name: str) -> Response:
        """Health of one service: 200 if it is ready."""
        for one in answers.all()[0].services:
            if one.name == name:
                return _json(one.model_dump_json().encode(), one.ready)
        return Response(
            Problem().model_dump_json(), status_code=MISSING, media_type="application/json", headers=HEADERS
        )

    @app.get("/health/targets")
    async def targets() -> list[Target]:
        """The running services, in the format of Prometheus's HTTP service discovery; each serves vLLM's /metrics."""
        return fleet.targets()

    @app.get("/health/targets/{name}")
    async def target(name: str) -> list[Target]:
        """One service in the same format; empty if it does not run, or does not exist.

        Not 404: Prometheus would keep the last address, and send it a key although another service may use it now.
        """
        return [one for one in fleet.targets() if one.labels["service"] == name]

    page = PAGE.read_text(encoding="utf-8")
    page_headers = HEADERS | {"Content-Security-Policy": policy(page), "Referrer-Policy": "no-referrer"}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def status_page() -> Response:
        return HTMLResponse(page, headers=page_headers)

    return app


def _json(content: bytes, good: bool) -> Response:
    return Response(content, status_code=200 if good else NOT_READY, media_type="application/json", headers=HEADERS)
