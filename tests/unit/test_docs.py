import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import click

from hxp_enterprise_llm.cli.commands import cli

PROJECT = Path(__file__).resolve().parent.parent.parent


def test_settings_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", PROJECT / "packaging/settings_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (PROJECT / "docs/settings.md").read_text()
    assert written == module.page(), "run: python packaging/settings_page.py >docs/settings.md"


def test_every_link_leads_to_a_file() -> None:
    pages = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), PROJECT / "bench/performance.in.md"]
    assert len(pages) > 20
    for page in pages:
        # The template becomes docs/performance.md.
        folder = PROJECT / "docs" if page.parent.name == "bench" else page.parent
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert (folder / target).exists(), f"{page.name}: {target}"


def test_links_of_packaged_pages_lead_to_packaged_files() -> None:
    listed = (PROJECT / "debian/citadel-llm.docs").read_text().split()
    # dh_installdocs installs each entry into one directory, and so drops the directory in front of a name.
    assert not [entry for entry in listed if "/" in entry]
    pages = [
        page
        for entry in listed
        for page in ((PROJECT / entry).rglob("*.md") if "." not in entry else [PROJECT / entry])
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            packaged = (page.parent / target).resolve().relative_to(PROJECT)
            assert packaged.parts[0] in listed, f"{page.name}: {target}"


def test_files_of_the_package_name_packaged_pages() -> None:
    listed = (PROJECT / "debian/citadel-llm.docs").read_text().split()
    files = [file for folder in ("share", "systemd", "etc") for file in (PROJECT / folder).rglob("*") if file.is_file()]
    named = {
        page for file in files for page in re.findall(r"/usr/share/doc/citadel-llm/([\w./-]*\w)", file.read_text())
    }
    assert {"README.md", "docs/monitoring.md"} <= named
    for page in named:
        assert (PROJECT / page).exists() and page.split("/")[0] in listed, page


def test_every_folder_of_the_code_is_described() -> None:
    described = set(re.findall(r"`([a-z_]+)`", (PROJECT / "HACKING.md").read_text()))
    folders = {file.parent.name for file in (PROJECT / "hxp_enterprise_llm").glob("*/__init__.py")}
    assert folders and folders <= described


def test_man_pages_have_no_indented_text_and_no_empty_description() -> None:
    spec = importlib.util.spec_from_file_location("command_files", PROJECT / "packaging/command_files.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, command in cli.commands.items():
        context = click.Context(command, click.Context(cli, info_name="citadel-llm"), name)
        lines = "\n".join(module.page(f"citadel-llm-{name}", command, context)).splitlines()
        assert not [line for line in lines if line.startswith(" ")], name
        assert not [each for each in pairwise(lines) if each[0].startswith(".B") and not each[1]], name
