"""Thousands of hostile settings files through the generator, with invariants that must hold for each of them.

    CITADEL_FUZZ_CASES=1000000 CITADEL_FUZZ_SEED=7 ./build.sh test tests/unit/test_generator_fuzz.py -s

tests/system/test_generator.py gives a sample to systemd itself.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Hostile, is_line_of_the_generator

from hxp_enterprise_llm.generator.drop_ins import DROP_IN, generate
from hxp_enterprise_llm.settings.units import MONITOR

CASES = int(os.environ.get("CITADEL_FUZZ_CASES", "4000"))
SEED = int(os.environ.get("CITADEL_FUZZ_SEED", "6"))
AT_ONCE = 60
CONTROLS = {"a-control": "MEMORY_LIMIT_GB=1\n", "m-control": "CPU_CORES=3\nREQUIRES=m1\n", "z-control": "HOST=::1\n"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BUILT_IN = "MemoryMax=4294967296"


@pytest.fixture
def root() -> Iterator[Path]:
    """A file root in memory if possible: a million files and directories take an hour on a disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


def drop_ins(output: Path) -> dict[str, str]:
    """Every file below `output`, by its path there."""
    return {str(file.relative_to(output)): file.read_text() for file in output.rglob("*") if not file.is_dir()}


def path_of(name: str) -> str:
    return f"citadel-llm@{name}.service.d/{DROP_IN}"


def fill(defaults: Path, hostile: Hostile, cases: int, of_host: bool) -> dict[str, bytes]:
    """Write a directory of settings files; return those with an instance name, without the controls."""
    made = {f"m{number}": hostile.settings() for number in range(cases)}
    for _ in range(3):
        made[hostile.name()] = hostile.settings()
    for name, content in made.items():
        (defaults / f"citadel-llm-{name}").write_bytes(content)
    write_controls(defaults)
    if of_host:
        (defaults / "citadel-llm").write_bytes(hostile.settings(of_host=True))
    return {name: content for name, content in made.items() if NAME.fullmatch(name)}


def write_controls(defaults: Path) -> None:
    for name, text in CONTROLS.items():
        (defaults / f"citadel-llm-{name}").write_text("MODEL=/srv/m\nPORT=11500\n" + text)


def alone(batch: Path) -> dict[str, str]:
    """The controls' drop-ins in a directory without other files."""
    defaults = batch / "etc/default"
    defaults.mkdir(parents=True)
    write_controls(defaults)
    generate(str(batch / "run"), str(batch), lambda _: None)
    written = drop_ins(batch / "run")
    shutil.rmtree(batch)
    return {name: written[path_of(name)] for name in CONTROLS}


def test_no_value_escapes_its_line_or_its_instance(root: Path) -> None:
    hostile = Hostile(SEED)
    start = time.monotonic()
    inputs = refused = 0
    expected = alone(root / "batch")
    while inputs < CASES:
        batch = root / "batch"
        defaults = batch / "etc/default"
        defaults.mkdir(parents=True)
        of_host = hostile.random.random() < 0.5
        made = fill(defaults, hostile, AT_ONCE, of_host)
        before = {file.name: file.read_bytes() for file in defaults.iterdir()}
        generate(str(batch / "run"), str(batch), lambda _: None)
        written = drop_ins(batch / "run")
        where = f"seed {SEED}, before input {inputs + AT_ONCE}"
        assert {file.name for file in batch.iterdir()} == {"etc", "run"}, where
        assert {file.name: file.read_bytes() for file in defaults.iterdir()} == before, where
        assert written.keys() - {f"{MONITOR}.d/{DROP_IN}"} == {path_of(name) for name in (*made, *CONTROLS)}, where
        for path, text in written.items():
            assert text.endswith("\n"), where
            for line in text[:-1].split("\n"):
                assert is_line_of_the_generator(line), f"{where}: {path}: {line!r}"
        controls = {name: written[path_of(name)] for name in CONTROLS}
        for name, content in made.items():
            text = written[path_of(name)]
            assert f"SourcePath={defaults}/citadel-llm-{name}\n" in text, f"{where}: {content!r}"
            assert not re.search(rf"^(Requires|After)=.*@{re.escape(name)}\.service", text, re.M), (
                f"{where}: {content!r}"
            )
            if ", which is refused" in text:
                refused += 1
                assert of_host or BUILT_IN in text.splitlines(), f"{where}: {content!r}"
        assert of_host or controls == expected, where
        inputs += len(made) + of_host
        shutil.rmtree(batch)
    print(f"{inputs} settings files from seed {SEED} in {time.monotonic() - start:.1f} s, {refused} refused")
    assert inputs * 0.2 < refused < inputs * 0.8
