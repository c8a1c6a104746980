import io
import os
import shlex
from pathlib import Path

import pytest
from corpus import written_lines
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from hxp_enterprise_llm.settings.grammar import MAX_BYTES, MAX_FINDINGS, MAX_LINE, MAX_LINES, parse, quoted, read
from hxp_enterprise_llm.settings.keys import arguments

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
    "A=1 # no": "line of its own: systemd keeps it in the value, dotenv and a shell drop it",
    "A='1'#no": "line of its own: dotenv drops it, systemd and a shell keep it in the value",
    "A=two words": "single quotes: without them a shell splits",
    "A='open": "not closed on this line: systemd reads on, dotenv and a shell stop",
    "A=$HOME": "dotenv and a shell expand variables, systemd does not",
    "A='$HOME'": "dotenv expands variables here, systemd and a shell do not",
    'A="`id`"': "backticks: a shell runs",
    "A=a\\b": "backslash: systemd and a shell remove it, dotenv keeps it",
    "A='a\\b'": "backslash: systemd and a shell keep it, dotenv reads an escape",
    'A="a\\b"': "backslash: dotenv reads \\n as a new line, systemd and a shell do not",
    "A='a' 'b'": "one pair of ' around the value and none inside: systemd and a shell join the parts, dotenv stops",
    "A = 1": "without a space before the equals sign: systemd and dotenv drop the space, a shell runs the key",
    "A= 1": "no space after the equals sign: systemd and dotenv drop it, a shell runs the value",
    "export A=1": "leave out the word export: systemd ignores a line with it, dotenv and a shell read it",
    "; old": "starts with #: systemd skips a line with ;, dotenv may read it, a shell rejects the file",
    "# joined \\": "systemd then skips the next line, dotenv and a shell do not",
    "1A=1": "a key has letters, digits and _ only, and no digit first: systemd ignores",
    "just text": "is not KEY=value: systemd and dotenv ignore it, a shell runs it",
    "A=~/x": "single quotes: without them a shell splits",
    "A=1\r": "CR LF: a shell keeps the CR in the value, systemd and dotenv drop it",
    "A='tab\x00'": "control character, which systemd, dotenv and a shell treat differently",
    "A=x*": "single quotes",
    "A='x'y": "one pair",
    "A=a'b'": "quote the whole value or nothing: systemd and dotenv keep a quote inside, a shell removes it",
    "A=" + "x" * MAX_LINE: "is longer than 4096 characters",
}


@pytest.mark.parametrize("line", ACCEPTED)
def test_accepted_line_has_the_same_value_in_dotenv(line: str) -> None:
    found = parse("f", line.encode())
    assert not found.findings
    assert found.entries["A"].value == ACCEPTED[line]
    assert dotenv_values(stream=io.StringIO(line))["A"] == ACCEPTED[line]


@pytest.mark.parametrize("line", REFUSED)
def test_refused_line_error_names_line_and_rule(line: str) -> None:
    (finding,) = parse("f", b"B=1\n" + line.encode()).findings
    assert (finding.line, finding.fatal) == (2, True)
    assert REFUSED[line] in finding.text


def test_every_refusal_mentions_systemd_dotenv_and_shell() -> None:
    for line in REFUSED:
        (finding,) = parse("f", line.encode()).findings
        assert len(line) > MAX_LINE or all(reader in finding.text for reader in ("systemd", "dotenv", "shell")), line


@settings(max_examples=1000)
@given(written_lines())
def test_generated_accepted_lines_have_the_same_value_in_dotenv(line: str) -> None:
    """tests/system/test_grammar.py checks the same with a shell and systemd."""
    found = parse("f", line.encode())
    if not found.findings:
        assert dotenv_values(stream=io.StringIO(line)) == {key: entry.value for key, entry in found.entries.items()}


@given(st.binary(max_size=200))
def test_parse_raises_for_no_bytes(content: bytes) -> None:
    parse("f", content)


def test_all_errors_are_reported_without_values() -> None:
    found = parse("f", b"A=$SECRET1\nB=$SECRET2\n")
    assert [finding.line for finding in found.findings] == [1, 2]
    assert "SECRET" not in str(found.findings)


def test_duplicate_key_is_a_warning_and_the_last_value_applies() -> None:
    found = parse("f", b"A=1\nA=2\n")
    assert found.entries["A"].value == "2"
    assert [finding.fatal for finding in found.findings] == [False]


def test_unreadable_paths_are_reported_without_exception(tmp_path: Path) -> None:
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
        findings = read(str(tmp_path / name)).findings
        assert words in findings[0].text, name


def test_a_device_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        assert flags & os.O_PATH, "opened"
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    assert "not a regular file" in read("/dev/null").findings[0].text


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o622])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.write_text("A=1\n")
    file.chmod(mode)
    found = read(str(file))
    assert "is writable by other users" in found.findings[0].text
    assert not found.entries
    file.chmod(0o644)
    assert not read(str(file)).findings


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("A=1\n")
    real = os.fstat

    def of_another(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[4] = os.geteuid() + 7
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_another)
    found = read(str(file))
    assert f"belongs to user number {os.geteuid() + 7}" in found.findings[0].text
    assert not found.entries


def test_error_for_unreadable_file_suggests_chmod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert (
        f"cannot be read by user number {os.geteuid()}; chmod 644 it" in read(str(tmp_path / "file")).findings[0].text
    )


def test_sparse_terabyte_file_is_refused_by_its_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 2**40)
    assert "larger than 64 KiB" in read(str(file)).findings[0].text


def test_number_of_lines_and_errors_is_bounded() -> None:
    assert "is beyond 1000 lines" in parse("f", b"# x\n" * 2 * MAX_LINES).findings[-1].text
    many = parse("f", b"nonsense\n" * 900).findings
    assert len(many) == MAX_FINDINGS + 1
    assert "have too many errors" in many[-1].text
    assert len(str(parse("f", b"A" * 4000 + b" =1").findings)) < 300


@pytest.mark.parametrize("character", ["\ufdd0", "\ufdef", "\ufffe", "\uffff", "\U0001fffe", "\U0010ffff"])
def test_unicode_noncharacters_are_refused(character: str) -> None:
    """systemd does not read a file with such a character in a value."""
    (finding,) = parse("f", f"K='a{character}'\n".encode()).findings
    assert finding.line == 1 and "delete it" in finding.text
    assert not parse("f", "K='\ufffd\ufdcf\ufdf0'\n".encode()).findings


def test_byte_order_mark_is_named() -> None:
    found = parse("f", "\ufeffA=1\nB=2\n".encode())
    assert [(finding.line, "byte order mark" in finding.text) for finding in found.findings] == [(1, True)]
    assert found.entries.keys() == {"B"}
    # Elsewhere it is a character like others that are not printable.
    assert "control character" in parse("f", "A=1\n\ufeffB=2\n".encode()).findings[0].text


@pytest.mark.parametrize("value", ["", "a b", 'say "hi"', "it's", "# x", '--hf-overrides={"a":1}', "é", "  "])
def test_quoted_value_is_read_back_unchanged(value: str) -> None:
    line = f"A={quoted(value)}"
    assert parse("f", line.encode()).entries["A"].value == value
    assert dotenv_values(stream=io.StringIO(line))["A"] == value


@pytest.mark.parametrize("value", ["a\nb", "a\nB=c", "\x00", "$HOME", "a\\b", "'\"", "'`", "x" * MAX_LINE, "\udcff"])
def test_a_value_that_no_line_can_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="a line of a settings file cannot hold it"):
        quoted(value)


@given(st.text(max_size=40))
def test_quoting_gives_the_same_value_or_refuses(value: str) -> None:
    try:
        line = f"A={quoted(value)}"
    except ValueError:
        return
    found = parse("f", line.encode())
    assert (found.findings, found.entries["A"].value) == ([], value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('--hf-overrides={"a":1}', ('--hf-overrides={"a":1}',)),
        ('--x {"a": "b  c", "d": [1, 2]} --seed 1', ("--x", '{"a": "b  c", "d": [1, 2]}', "--seed", "1")),
        ('["a", "b"] c', ('["a", "b"]', "c")),
        ("--x '{\"a\": 1}'", ("--x", '{"a": 1}')),
        ("--x={a b}", ("--x={a", "b}")),
        ('{"a":1}x', ("{a:1}x",)),
        ("[" * 3000, ("[" * 3000,)),
    ],
)
def test_json_in_flags_keeps_its_quotes_and_spaces(text: str, words: tuple[str, ...]) -> None:
    assert arguments(text) == words


@given(st.text(alphabet="ab-= '\"#\t", max_size=20))
def test_other_flags_are_split_like_shell_words(text: str) -> None:
    try:
        expected = tuple(shlex.split(text))
    except ValueError:
        with pytest.raises(ValueError, match="every quote closed"):
            arguments(text)
    else:
        assert arguments(text) == expected
