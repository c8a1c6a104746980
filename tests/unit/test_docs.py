import importlib.util
import re
from pathlib import Path

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


def test_every_folder_of_the_code_is_described() -> None:
    described = set(re.findall(r"`([a-z_]+)`", (PROJECT / "HACKING.md").read_text()))
    folders = {file.parent.name for file in (PROJECT / "hxp_enterprise_llm").glob("*/__init__.py")}
    assert folders and folders <= described
