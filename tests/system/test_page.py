"""The status page of the real monitor in Debian's Chromium; tests/package/test_page.py covers its error cases."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, opened

from .conftest import Host

CACHE = Path(os.environ.get("CITADEL_BUILD_CACHE", "/var/cache/citadel-llm-build"))
ADDRESS = "http://127.0.0.1:8000/"


@pytest.fixture
def browser(host: Host, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser of this host in the machine's network; a screenshot is kept if a test fails."""
    host.machine.run("systemctl", "start", "citadel-llm-monitor")
    leader = host.machine.inside("/").parts[2]
    failed = request.session.testsfailed
    with opened(["nsenter", f"--target={leader}", "--net"]) as browser:
        browser.look(width=1280)
        yield browser
        if request.session.testsfailed > failed:
            picture = CACHE / "screenshots" / f"{request.node.name}-machine.png"
            browser.screenshot(picture)
            print(f"\nscreenshot of the page: {picture}")


def cell(name: str, label: str) -> str:
    row = f"[...document.querySelectorAll('#models tbody tr')].find(r => r.cells[0].innerText === '{name}')"
    return f"{row}.querySelector('[data-label=\"{label}\"]').innerText"


def test_page_shows_instance_starting_serving_and_stopped(host: Host, browser: Browser) -> None:
    machine = host.machine
    browser.go(ADDRESS)
    browser.wait("document.querySelectorAll('#models tbody tr').length >= 5")
    browser.wait(f"{cell('test', 'State')}.includes('stopped')")
    machine.run("systemctl", "start", "--no-block", "citadel-llm@test")
    browser.wait(f"{cell('test', 'State')}.includes('starting')")
    browser.wait(f"{cell('test', 'State')}.includes('ready')", seconds=60)
    browser.wait(f"/ of 4.0 GiB/.test({cell('test', 'Memory')})")
    browser.wait(f"/ of 2 cores/.test({cell('test', 'CPU')})")
    browser.wait(f"/^\\d+\\.\\d s$/.test({cell('test', 'Start-up')})")
    assert browser.value(cell("test", "Port")) == "11499"
    assert browser.value("document.getElementById('summary').innerText").startswith("1 of 1 model ready")
    machine.run("systemctl", "stop", "citadel-llm@test")
    browser.wait(f"{cell('test', 'State')}.includes('stopped')")
    # The answer 503 causes a network message; policy violations and script errors cause other messages.
    assert [line for line in browser.console if '"source": "network"' not in line] == []


def test_page_reports_a_stopped_monitor_and_recovers(host: Host, browser: Browser) -> None:
    browser.go(ADDRESS)
    browser.wait("document.querySelectorAll('#models tbody tr').length >= 5")
    host.machine.run("systemctl", "stop", "citadel-llm-monitor")
    browser.wait("document.getElementById('stale').innerText.includes('no connection')")
    host.machine.run("systemctl", "start", "citadel-llm-monitor")
    browser.wait("document.getElementById('stale').innerText === ''")


def test_markup_in_a_reason_is_shown_as_text(host: Host, browser: Browser) -> None:
    """The settings name a missing model with markup in its name; the reason quotes the name."""
    host.settings("hostile", MODEL='"/srv/<img src=x onerror=document.title=1>"', PORT=11497)
    host.machine.run("systemctl", "start", "citadel-llm@hostile", check=False)
    browser.go(ADDRESS)
    browser.wait("document.querySelectorAll('#models tbody tr').length >= 6")
    browser.wait(
        "[...document.querySelectorAll('#models tbody tr')].some(r => r.innerText.includes('<img src=x onerror='))"
    )
    assert browser.value("document.querySelectorAll('#models img').length") == 0
    assert browser.value("document.title").endswith("citadel-llm")
