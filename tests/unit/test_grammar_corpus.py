"""Generator and library refuse the same lines of the whole corpus."""

import io
from pathlib import Path

import pytest
from corpus import lines
from dotenv import dotenv_values

from hxp_enterprise_llm.generator.drop_ins import DROP_IN, generate
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import parse

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\nMEMORY_LIMIT_GB=1\n"


def test_corpus_has_enough_accepted_and_refused_lines() -> None:
    refused = [line for line in lines() if parse("f", line.replace("{key}", "A").encode()).findings]
    print(f"{len(lines())} lines, {len(refused)} refused")
    assert len(lines()) >= 300
    assert 100 < len(refused) < len(lines()) - 50


def test_dotenv_reads_the_same_from_every_accepted_line() -> None:
    for line in lines():
        text = line.replace("{key}", "A")
        settings = parse("f", text.encode())
        if not settings.findings:
            read = dotenv_values(stream=io.StringIO(text))
            assert {key: entry.value for key, entry in settings.entries.items()} == read, text


def test_generator_and_library_agree_on_every_line(root: Root) -> None:
    for number, line in enumerate(lines()):
        root.instance(f"i{number}", GOOD + line.replace("{key}", "SERVED_MODEL_NAME") + "\n")
    output = root.path / "run"
    generate(str(output), str(root))
    for number, line in enumerate(lines()):
        drop_in = Path(output, f"citadel-llm@i{number}.service.d", DROP_IN).read_text()
        by_generator = "MemoryMax=4294967296\n" in drop_in
        try:
            config.load(f"i{number}", str(root))
        except SettingsRefused:
            assert by_generator, line
        else:
            assert not by_generator, line


@pytest.mark.parametrize("line", lines())
def test_no_line_escapes_into_the_drop_in(line: str, root: Root) -> None:
    """For any content of a file, each line of the drop-in is a line of the generator's own."""
    root.instance("m", GOOD + line.replace("{key}", "AFTER") + "\n" + line.replace("{key}", "API_KEY_FILE") + "\n")
    generate(str(root.path / "run"), str(root))
    drop_in = Path(root.path, "run/citadel-llm@m.service.d", DROP_IN).read_text()
    directives = "SourcePath After User Group MemoryHigh MemoryMax CPUQuota TasksMax Restart RestartSec TimeoutStartSec"
    known: tuple[str, ...] = ("#", "[Unit]", "[Service]", "LoadCredential=api-key:/", "TimeoutStopSec=")
    known += tuple(f"{directive}=" for directive in directives.split())
    assert all(made.startswith(known) for made in drop_in.splitlines())
