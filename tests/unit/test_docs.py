import importlib.util
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent


def test_the_page_of_settings_is_current() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", PROJECT / "packaging/settings_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (PROJECT / "docs/settings.md").read_text()
    assert written == module.page(), "run: python packaging/settings_page.py >docs/settings.md"
