"""The status page in Debian's Chromium, with a fake monitor that answers as each test sets it."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, opened

PAGE = Path(__file__).resolve().parents[2] / "hxp_enterprise_llm/monitoring/page.html"
CACHE = Path(os.environ.get("CITADEL_BUILD_CACHE", "/var/cache/citadel-llm-build"))
HOSTILE = '<script>document.title="taken"</script><img src=x onerror=alert(1)>&amp;"\'\u202e'
HOST = {"environment": "staging", "hostname": "gpu-1.example"}
GIB = 1024**3
NONE = "\u2013"  # placeholder for a missing figure


def service(name: str, **different: Any) -> dict[str, Any]:
    """The monitor's entry for a healthy model."""
    return {
        "name": name, "state": "ready", "ready": True, "port": 11400, "pid": 4711, "since": time.time() - 11_520,
        "startup_seconds": 8.24, "restarts": 0, "memory_bytes": 2 * GIB, "memory_limit_bytes": 4 * GIB,
        "cpu_cores": 0.52, "cpu_limit_cores": 2, "tasks": 61, "tasks_limit": 1000, "reason": "Serving",
        "enabled": True, "uptime_ratio": 0.99994, "last_failure": None, "model": name, "host": "127.0.0.1",
    } | different  # fmt: skip


def services() -> list[dict[str, Any]]:
    """The monitor's entries at this moment: the ages of states count from now."""
    return [
        service(
            "mixtral-8x7b",
            port=11400,
            memory_bytes=84.6 * GIB,
            memory_limit_bytes=90 * GIB,
            cpu_cores=7.91,
            cpu_limit_cores=8,
            uptime_ratio=1,
            restarts=3,
            model="/var/lib/citadel-llm/models/mistralai/Mixtral-8x7B-Instruct-v0.1",
            last_failure={"kind": "engine-died", "reason": "the engine (pid 77) ended", "at": "2026-11-23T14:26:40Z"},
        ),
        service(
            "hermes-2",
            state="starting",
            ready=False,
            port=11401,
            startup_seconds=None,
            memory_bytes=6.1 * GIB,
            memory_limit_bytes=30 * GIB,
            reason="Loading: weights 3 of 4",
            since=time.time() - 12,
            uptime_ratio=0.9712,
        ),
        service(
            "openchat-3.5",
            state="failed",
            ready=False,
            port=11402,
            pid=None,
            startup_seconds=None,
            memory_bytes=None,
            memory_limit_bytes=25 * GIB,
            cpu_cores=None,
            reason=HOSTILE,
            uptime_ratio=0,
            last_failure={"kind": "settings-refused", "reason": HOSTILE, "at": 1795444000.1},
        ),
        service(
            "phi-3-mini",
            state="stopped",
            ready=False,
            port=11403,
            pid=None,
            startup_seconds=None,
            memory_bytes=None,
            memory_limit_bytes=None,
            cpu_cores=None,
            cpu_limit_cores=None,
            reason="",
            uptime_ratio=None,
            enabled=False,
        ),
        service("test", port=11499, host="0.0.0.0"),  # noqa: S104  an address that an administrator may write
    ]


def policy(page: str) -> str:
    """A Content-Security-Policy under which only the page's own style and script run."""

    def allowed(tag: str) -> str:
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(inside) == 1, tag
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {allowed('style')}; script-src {allowed('script')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Monitor(http.server.ThreadingHTTPServer):
    """Serves the page and `answer` as the services' state; None closes the connection, `late` delays it (s)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: bytes | None = b""
        self.late = 0.0
        self.asked = 0

    def tell(self, *services: Any, status: str = "degraded") -> None:
        self.answer = json.dumps({"status": status, **HOST, "services": services}).encode()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """See Monitor."""

    server: Monitor

    def do_GET(self) -> None:
        kind, body, status = "text/html; charset=utf-8", PAGE.read_bytes(), 200
        if self.path == "/health/services":
            self.server.asked += 1
            time.sleep(self.server.late)
            if self.server.answer is None:
                self.close_connection = True
                return
            kind, body, status = "application/json", self.server.answer, 503
        elif self.path != "/":
            kind, body, status = "text/plain", b"", 404
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy(PAGE.read_text(encoding="utf-8")))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a page that timed out has closed it
            self.wfile.write(body)

    def log_message(self, *_words: Any) -> None:
        """Suppress the request log."""


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.tell(*services())
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with opened() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The browser; a screenshot is kept if a test fails."""
    failed = request.session.testsfailed
    chromium.console.clear()
    chromium.look(width=1280)
    yield chromium
    if request.session.testsfailed > failed:
        picture = CACHE / "screenshots" / f"{request.node.name}.png"
        chromium.screenshot(picture)
        print(f"\nscreenshot of the page: {picture}")


def show(browser: Browser, monitor: Monitor) -> None:
    browser.go(monitor.address)
    browser.wait(f"document.querySelectorAll('#models tbody tr').length === {len(services())}")


def cell(name: str, label: str) -> str:
    """JavaScript that returns the text of one cell."""
    row = f"[...document.querySelectorAll('#models tbody tr')].find(r => r.cells[0].innerText.startsWith({name!r}))"
    return f"{row}.querySelector('[data-label={json.dumps(label)}]').innerText"


def complaints(browser: Browser) -> list[str]:
    """Chromium's console messages, except network messages such as the status 503."""
    return [line for line in browser.console if '"source": "network"' not in line]


def test_row_shows_state_and_figures_of_instance(browser: Browser, monitor: Monitor) -> None:
    show(browser, monitor)
    words = {(n, c): browser.value(cell(n, c)) for n in ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")
             for c in ("State", "Port", "Memory", "CPU", "Start-up", "Uptime", "Restarts", "Last failure")}  # fmt: skip
    assert words["mixtral-8x7b", "State"] == "✓ ready\nfor 3 h 12 min"
    assert words["mixtral-8x7b", "Memory"] == "84.6 of 90.0 GiB\n94 %, near the limit"
    assert words["mixtral-8x7b", "CPU"] == "7.9 of 8 cores\n99 %"
    assert words["mixtral-8x7b", "Restarts"] == "3"
    assert words["mixtral-8x7b", "Start-up"] == "8.2 s"
    assert words["mixtral-8x7b", "Last failure"].startswith("the engine (pid 77) ended\nengine-died\n")
    assert words["hermes-2", "State"].startswith("◔ starting\nfor 1")
    assert words["hermes-2", "State"].endswith(" s\nLoading: weights 3 of 4")
    assert words["hermes-2", "Uptime"] == "97.12 %"
    assert words["hermes-2", "Start-up"] == NONE
    assert words["openchat-3.5", "State"].startswith("✕ failed\n")
    assert words["phi-3-mini", "Memory"] == words["phi-3-mini", "CPU"] == NONE
    assert browser.value(cell("test", "Uptime")) == "99.99 %", "a number rounded up to 100 % would hide downtime"
    assert browser.value("document.getElementById('summary').innerText") == "2 of 4 models ready, 1 failed, 1 off"
    widths = browser.value("[...document.querySelectorAll('.fill')].map(f => f.getBoundingClientRect().width / "
                           "(f.parentNode.getBoundingClientRect().width || 1))")  # fmt: skip
    assert widths[0] == pytest.approx(0.94, abs=0.01), "the bar shows the share of the limit"
    assert complaints(browser) == [], "the page must cause no script error and no policy violation"


def test_markup_in_names_and_reasons_is_shown_as_text(browser: Browser, monitor: Monitor) -> None:
    monitor.tell(service(HOSTILE, reason=HOSTILE, state="constructor", model=HOSTILE, port=HOSTILE, restarts=HOSTILE,
                         since=HOSTILE, host=HOSTILE, memory_bytes="1e999",
                         last_failure={"kind": HOSTILE, "reason": HOSTILE, "at": "never"}),
                 service("test"))  # fmt: skip
    browser.go(monitor.address)
    browser.wait("document.querySelectorAll('#models tbody tr').length === 2")
    assert browser.value("document.querySelectorAll('#models script, #models img').length") == 0
    assert browser.value("document.querySelector('#models tbody th').innerText").startswith(HOSTILE[:60])
    assert HOSTILE[:60] in browser.value("document.querySelector('#models [data-label=\"Last failure\"]').innerText")
    assert browser.value("document.querySelector('#models [data-label=\"State\"]').innerText").startswith("? unknown")
    assert "\u202e" not in browser.text(), "it would reverse the text beside it"
    assert browser.value("document.title") == f"2/2 ready {NONE} gpu-1.example {NONE} citadel-llm"
    assert browser.value("document.querySelector('h1').innerText") == "citadel-llm on gpu-1.example (staging)"
    assert complaints(browser) == []


@pytest.mark.parametrize("width", [320, 390, 640, 859, 860, 1000, 1280])
def test_page_never_scrolls_horizontally(browser: Browser, monitor: Monitor, width: int) -> None:
    browser.look(width=width)
    show(browser, monitor)
    assert browser.value("document.documentElement.scrollWidth") <= width
    cards = browser.value("getComputedStyle(document.querySelector('#models tbody tr')).display") == "grid"
    assert cards == (width < 860)
    # A card's cells have labels, because the head of the table is hidden.
    label = browser.value("getComputedStyle(document.querySelector('#models td.use'), '::before').content")
    assert label == ('"Memory"' if cards else "none")


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_contrast_meets_wcag_aa_in_light_and_dark(browser: Browser, monitor: Monitor, dark: bool) -> None:
    """The contrast of each text to its background is at least 4.5 to 1, WCAG's level AA."""
    browser.look(width=1280, dark=dark)
    show(browser, monitor)
    pairs = browser.value("""[...document.querySelectorAll('body *')].filter(e => e.innerText &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
            let behind = e;
            const paper = () => getComputedStyle(behind).backgroundColor;
            while (paper() === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            return [e.innerText, getComputedStyle(e).color, paper()]; })""")
    assert len(pairs) > 40
    for words, ink, paper in pairs:
        lights = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (lights[0] + 0.05) / (lights[1] + 0.05) >= 4.5, (words, ink, paper)
    page = luminance(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert page < 0.05 if dark else page > 0.8


def test_page_updates_automatically_and_keeps_its_rows(browser: Browser, monitor: Monitor) -> None:
    show(browser, monitor)
    browser.value("void (document.querySelector('#models tbody tr').mark = 1)")
    monitor.tell(*(one | {"restarts": 9, "ready": True, "state": "ready"} for one in services()))
    browser.wait(f"{cell('test', 'Restarts')} === '9'", seconds=5)
    assert browser.value("document.querySelector('#models tbody tr').mark") == 1
    assert browser.value("document.getElementById('summary').innerText") == "5 of 5 models ready"
    monitor.tell(*services()[1:])
    browser.wait("document.querySelectorAll('#models tbody tr').length === 4", seconds=5)


def break_connection(monitor: Monitor) -> None:
    monitor.answer = None


def say_garbage(monitor: Monitor) -> None:
    monitor.answer = b"<html>502 Bad Gateway"


def hang(monitor: Monitor) -> None:
    monitor.late = 9


@pytest.mark.parametrize(
    ("fault", "why"),
    [(break_connection, "no connection"), (say_garbage, "HTTP status 503"), (hang, "no answer within 5 s")],
)
def test_page_reports_an_unreachable_monitor(
    browser: Browser, monitor: Monitor, fault: Callable[[Monitor], None], why: str
) -> None:
    show(browser, monitor)
    fault(monitor)
    browser.wait("document.getElementById('stale').innerText !== ''", seconds=12)
    told = browser.value("document.getElementById('stale').innerText")
    assert f"The monitor does not answer ({why})" in told
    assert "The table is from" in told
    assert browser.value("document.getElementById('models').className") == "past"
    assert browser.value("document.getElementById('summary').innerText") == "Not up to date"
    assert browser.value("document.querySelectorAll('#models tbody tr').length") == len(services()), "last rows kept"
    monitor.late = 0
    monitor.tell(*services())
    browser.wait("document.getElementById('stale').innerText === ''", seconds=12)
    assert browser.value("document.getElementById('models').className") == ""


def test_page_says_that_no_models_are_configured(browser: Browser, monitor: Monitor) -> None:
    monitor.tell(status="ok")
    browser.go(monitor.address)
    browser.wait("document.getElementById('summary').innerText === 'No models configured'")


def test_screen_reader_gets_a_table(browser: Browser, monitor: Monitor) -> None:
    """The roles that Chromium exposes to a screen reader, also in the card layout."""
    for width in (1280, 390):
        browser.look(width=width)
        show(browser, monitor)
        nodes = [node for node in browser.call("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
        roles = [node["role"]["value"] for node in nodes]
        assert roles.count("row") == len(services()) + 1
        assert roles.count("rowheader") == len(services())
        assert roles.count("columnheader") == 9
        # A card omits empty cells.
        assert roles.count("cell") == 8 * len(services()) - (0 if width == 1280 else 7)
        assert {"table", "status", "heading"} <= set(roles)


def test_page_loads_nothing_from_other_hosts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//\w|@import|url\(|\ssrc=|style=|\son\w+=|innerHTML|insertAdjacent|document\.write",
                         re.sub(r"^\s*//.*$", "", page, flags=re.MULTILINE))  # fmt: skip
