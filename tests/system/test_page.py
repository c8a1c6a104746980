"""The status page as the real monitor serves it, in Debian's Chromium; tests/package/test_page.py has its faults."""

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
    """A browser of this host in the machine's network; what it showed when a test failed is kept."""
    host.machine.run("systemctl", "start", "citadel-llm-monitor")
    leader = host.machine.inside("/").parts[2]
    failed = request.session.testsfailed
    with opened(["nsenter", f"--target={leader}", "--net"]) as browser:
        browser.look(width=1280)
        yield browser
        if request.session.testsfailed > failed:
            picture = CACHE / "screenshots" / f"{request.node.name}-machine.png"
            browser.screenshot(picture)
            print(f"\nwhat the page looked like: {picture}")


def cell(name: str, label: str) -> str:
    row = f"[...document.querySelectorAll('#models tbody tr')].find(r => r.cells[0].innerText === '{name}')"
    return f"{row}.querySelector('[data-label=\"{label}\"]').innerText"


def test_it_shows_a_model_that_starts_serves_and_is_stopped(host: Host, browser: Browser) -> None:
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
    # An answer of 503 is a complaint of the network; one about the policy or an error of the script is not.
    assert [line for line in browser.console if '"source": "network"' not in line] == []


def test_it_says_that_the_monitor_is_gone_and_comes_back_with_it(host: Host, browser: Browser) -> None:
    browser.go(ADDRESS)
    browser.wait("document.querySelectorAll('#models tbody tr').length >= 5")
    host.machine.run("systemctl", "stop", "citadel-llm-monitor")
    browser.wait("document.getElementById('stale').innerText.includes('no connection')")
    host.machine.run("systemctl", "start", "citadel-llm-monitor")
    browser.wait("document.getElementById('stale').innerText === ''")


def test_a_reason_that_a_model_writes_is_text(host: Host, browser: Browser) -> None:
    """The settings name a model that is not there, with markup in its name; the reason quotes it."""
    host.settings("hostile", MODEL='"/srv/<img src=x onerror=document.title=1>"', PORT=11497)
    host.machine.run("systemctl", "start", "citadel-llm@hostile", check=False)
    browser.go(ADDRESS)
    browser.wait("document.querySelectorAll('#models tbody tr').length >= 6")
    browser.wait(
        "[...document.querySelectorAll('#models tbody tr')].some(r => r.innerText.includes('<img src=x onerror='))"
    )
    assert browser.value("document.querySelectorAll('#models img').length") == 0
    assert browser.value("document.title").endswith("citadel-llm")
