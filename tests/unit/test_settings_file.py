import io
import os
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from hxp_enterprise_llm.utils.settings_file import MAX_BYTES, parse, read

ACCEPTED = {
    "A=1": "1",
    "A=": "",
    "A=/srv/models/x_1.0": "/srv/models/x_1.0",
    "  A=1  ": "1",
    "A='two words'": "two words",
    'A="two words"': "two words",
    "A='say \"hi\"'": 'say "hi"',
    'A="it\'s"': "it's",
    "A='a # b'": "a # b",
    "A='é'": "é",
    "A=a=b": "a=b",
}
REFUSED = {
    "A=1 # no": "line of its own",
    "A=two words": "single quotes",
    "A='open": "not closed",
    "A=$HOME": "nothing is expanded here",
    "A='$HOME'": "nothing is expanded here",
    'A="`id`"': "backticks",
    "A=a\\b": "backslash",
    "A='a' 'b'": "one pair",
    "A = 1": "no space before",
    "A= 1": "no space after",
    "export A=1": "leave out the word export",
    "; old": "starts with #",
    "# joined \\": "hides the next line",
    "1A=1": "the key may hold",
    "just text": "KEY=value",
    "A=~/x": "single quotes",
    "A=1\r": "CR LF",
    "A='tab\x00'": "control character",
    "A=x*": "single quotes",
    "A='x'y": "one pair",
}


@pytest.mark.parametrize("line", ACCEPTED)
def test_accepted_line_is_read_as_dotenv_reads_it(line: str) -> None:
    settings = parse("f", line.encode())
    assert not settings.faults
    assert settings.entries["A"].value == ACCEPTED[line]
    assert dotenv_values(stream=io.StringIO(line))["A"] == ACCEPTED[line]


@pytest.mark.parametrize("line", REFUSED)
def test_refused_line_is_named_with_the_rule_it_breaks(line: str) -> None:
    settings = parse("f", b"B=1\n" + line.encode())
    (fault,) = settings.faults
    assert (fault.line, fault.fatal) == (2, True)
    assert REFUSED[line] in fault.text


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_whatever_is_accepted_dotenv_reads_the_same(value: str) -> None:
    settings = parse("f", f"A={value}".encode())
    if not settings.faults and "A" in settings.entries:
        assert dotenv_values(stream=io.StringIO(f"A={value}"))["A"] == settings.entries["A"].value


@given(st.binary(max_size=200))
def test_no_bytes_raise(content: bytes) -> None:
    parse("f", content)


def test_all_faults_at_once_and_no_value_of_them_repeated() -> None:
    settings = parse("f", b"A=$SECRET1\nB=$SECRET2\n")
    assert [fault.line for fault in settings.faults] == [1, 2]
    assert "SECRET" not in str(settings.faults)


def test_a_key_set_twice_is_a_warning_and_the_last_counts() -> None:
    settings = parse("f", b"A=1\nA=2\n")
    assert settings.entries["A"].value == "2"
    assert [fault.fatal for fault in settings.faults] == [False]


def test_unreadable_things_are_refused_not_raised(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for name, words in {
        "directory": "not a regular file",
        "link": "symbolic link",
        "fifo": "not a regular file",
        "large": "larger than",
        "binary": "control character",
        "missing": "does not exist",
    }.items():
        faults = read(str(tmp_path / name)).faults
        assert words in faults[0].text, name
