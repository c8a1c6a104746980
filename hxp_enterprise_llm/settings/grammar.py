"""The grammar of a settings file: from text to keys and values, or to errors.

A line is accepted only if systemd's EnvironmentFile=, python-dotenv and a POSIX shell read the same value from it:

    # comment
    KEY=plain-value
    KEY='anything printable but a quote, a backslash or a dollar'
    KEY="anything printable but a quote, a backslash, a dollar or a backtick"

This module, `keys` and `values` use only the standard library: the systemd generator runs them as root with Debian's
Python, early in the boot, when /opt may not be mounted.
"""

import errno
import os
import re
import stat
from typing import NamedTuple

from hxp_enterprise_llm.settings import regular_files

MAX_BYTES = 64 * 1024
MAX_LINES = 1000
MAX_LINE = 4096
"""Limits of a settings file (bytes, lines, characters of a line). The files of the package are under 4 KiB, and the
generator reads every file at every boot."""

MAX_FINDINGS = 100
"""Errors after which a file is not read further: nobody corrects more at once, and each message takes more time than
reading a line."""


class SettingsFinding(NamedTuple):
    """One error in a settings file, or a warning if it is not `fatal`.

    `line` counts from 1; 0 stands for the file as a whole. `file` is empty if the error is not in a file.
    """

    file: str
    line: int
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return printable(f"{place}: {self.text}" if place else self.text)


class Entry(NamedTuple):
    """A key with its value and its line, counted from 1."""

    key: str
    value: str
    line: int


class SettingsText(NamedTuple):
    """The content of a settings file: the last entry of each key, and the errors and warnings.

    A key whose last line is refused has no entry. `whole` is false if part of the file was not read.
    """

    entries: dict[str, Entry]
    findings: list[SettingsFinding]
    whole: bool = True


_LINE = re.compile(
    r"""[ \t]*
    (?P<key>[A-Za-z_][A-Za-z0-9_]*)
    =
    (?: (?P<plain>[A-Za-z0-9_./:@%+,=^-]*)
      | '(?P<single>[^'\\$]*)'
      | "(?P<double>[^"\\$`]*)"
    )
    [ \t]*""",
    re.VERBOSE,
)
# systemd 252 joins a comment that ends in a backslash with the next line; a shell does not.
_BLANK = re.compile(r"[ \t]*(?:#(?:.*[^\\])?)?")
COMMENT = "put the comment on a line of its own: systemd keeps it in the value, dotenv and a shell drop it"
GLUED_COMMENT = "put the comment on a line of its own: dotenv drops it, systemd and a shell keep it in the value"
# A shell drops NUL, dotenv keeps it.
BYTE_ORDER_MARK = (
    "starts with a byte order mark, which systemd, dotenv and a shell treat differently; save the file without one"
)
CONTROL = "contains a control character, which systemd, dotenv and a shell treat differently; delete it"
CR_LF = "ends in CR LF: a shell keeps the CR in the value, systemd and dotenv drop it; use dos2unix"
LINK = "is a symbolic link; whoever can write its target could change the settings; copy the file here instead"
_NO_CHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
"""Noncharacters of Unicode, besides U+FDD0 to U+FDEF: systemd ignores a whole file that contains one."""
_UNPRINTABLE = re.compile(rf"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufdd0-\ufdef{_NO_CHARACTERS}]")

_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Surrogates, control characters except tab and line feed, and those that change the direction of text."""


def read(path: str) -> SettingsText:
    """Read the settings file at `path`; all errors are in the result, none is raised.

    Whoever can write the settings controls root's actions: limits, users, files handed to the service. So symbolic
    links are refused, and files that other users than root can write. (The owner of the directory could replace any
    file in it.)
    """
    try:
        descriptor = regular_files.opened(path, follow=False)
        try:
            _check_writers(os.fstat(descriptor), os.stat(os.path.dirname(path) or "."))
            content = os.read(descriptor, MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        return SettingsText({}, [SettingsFinding(path, 0, _cannot_read(error))], whole=False)
    except _Refused as refused:
        return SettingsText({}, [SettingsFinding(path, 0, str(refused))], whole=False)
    if len(content) > MAX_BYTES:
        return SettingsText(
            {},
            [SettingsFinding(path, 0, f"is larger than {MAX_BYTES // 1024} KiB; is it a settings file?")],
            whole=False,
        )
    return parse(path, content)


class _Refused(Exception):
    """An error of a file as a whole."""


def _check_writers(file: os.stat_result, directory: os.stat_result) -> None:
    if file.st_uid not in (0, directory.st_uid):
        # The number, since at boot no service can give the name: systemd waits for the generator.
        raise _Refused(f"belongs to user number {file.st_uid}, who could run commands as root; chown root it")
    # The bits of the group are also the mask of an access list.
    if file.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Refused("is writable by other users, who could run commands as root; chmod 644 it")


def parse(path: str, content: bytes) -> SettingsText:
    """Parse the bytes of a settings file; `path` is only for messages."""
    entries: dict[str, Entry] = {}
    findings: list[SettingsFinding] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if number > MAX_LINES:
            findings.append(SettingsFinding(path, number, f"is beyond {MAX_LINES} lines; is this a settings file?"))
            return SettingsText(entries, findings, whole=False)
        if len(findings) >= MAX_FINDINGS:
            findings.append(SettingsFinding(path, number, "is not read, as the lines before it have too many errors"))
            return SettingsText(entries, findings, whole=False)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            findings.append(SettingsFinding(path, number, "is not UTF-8; delete the line or write it again"))
            return SettingsText(entries, findings, whole=False)
        if line.endswith("\r"):
            # One error for the file: all its lines are alike.
            findings.append(SettingsFinding(path, number, CR_LF))
            return SettingsText(entries, findings, whole=False)
        if len(line) > MAX_LINE:
            findings.append(
                SettingsFinding(path, number, f"is longer than {MAX_LINE} characters; is this a settings file?")
            )
            entries.pop(key_of(line), None)
            continue
        if number == 1 and line.startswith("\ufeff"):
            findings.append(SettingsFinding(path, number, BYTE_ORDER_MARK))
            entries.pop(key_of(line), None)
            continue
        if _UNPRINTABLE.search(line):
            findings.append(SettingsFinding(path, number, CONTROL))
            entries.pop(key_of(line), None)
            continue
        if _BLANK.fullmatch(line):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            findings.append(SettingsFinding(path, number, _why_refused(line)))
            entries.pop(key_of(line), None)
            continue
        key = match["key"]
        value = next(text for text in (match["plain"], match["single"], match["double"]) if text is not None)
        if key in entries:
            earlier = entries[key].line
            findings.append(
                SettingsFinding(path, number, f"{key} is also set on line {earlier}; this line counts", fatal=False)
            )
        entries[key] = Entry(key, value, number)
    return SettingsText(entries, findings)


def quoted(value: str) -> str:
    """`value` as it stands after the equals sign of a line, in quotes where it needs them.

    Raises ValueError, with the reason, for a value that no line can hold.
    """
    for form in (value, f"'{value}'", f'"{value}"'):
        try:
            text = parse("", f"KEY={form}".encode())
        except UnicodeEncodeError:
            break
        if not text.findings and "KEY" in text.entries and text.entries["KEY"].value == value:
            return form
    raise ValueError(f"{_why_no_line_can_hold(value)}; a line of a settings file cannot hold it")


def _why_no_line_can_hold(value: str) -> str:
    if "\n" in value or _UNPRINTABLE.search(value):
        return "the value contains a line break or another control character"
    for character, name in (("\\", "a backslash"), ("$", "a $")):
        if character in value:
            return f"the value contains {name}, which systemd, dotenv and a shell do not all keep"
    if len(value) > MAX_LINE - len("KEY=''"):
        return f"the line would be longer than {MAX_LINE} characters"
    if "'" in value:
        return "the value contains a single quote together with a double quote or a backtick"
    return "the value is not text that UTF-8 can encode"


def key_of(line: str) -> str:
    """The key of a line, even of a refused line, as far as its text shows it."""
    return re.sub(r"^export[ \t]+", "", line.strip()).partition("=")[0].strip()


def _cannot_read(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return LINK
    if error.errno == errno.EINVAL:
        return "is not a regular file; write the settings to a regular file"
    if error.errno == errno.ENOENT:
        return "does not exist; create it (the files of the package beside it are examples)"
    if error.errno == errno.EACCES:
        user = os.geteuid()
        return f"cannot be read by user number {user}; chmod 644 it: services read their settings, which hold no secret"
    return f"cannot be read: {error.strerror}"


def printable(text: str) -> str:
    """`text` for a terminal, a log or systemd: bytes that are not UTF-8, and control characters, become escapes.

    Python keeps such a byte of a file name or an argument as a surrogate, which no UTF-8 stream accepts.
    """
    return _NOT_PRINTABLE.sub(_escape, text)


def printable_line(text: str) -> str:
    """`text` for one line of a terminal or a log: a line break, which could start a forged line, becomes an escape."""
    return printable(text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(text: str) -> str:
    """The part of a key or a value that a message repeats."""
    text = printable_line(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _why_refused(line: str) -> str:
    """The rule that `line` breaks, how its three readers differ, and how to write the line.

    The value is not repeated: it may be a secret. tests/system/test_grammar.py compares this with the readers.
    """
    stripped = line.strip(" \t")
    if stripped.startswith("#"):
        return "a comment cannot end in a backslash: systemd then skips the next line, dotenv and a shell do not"
    if stripped.startswith(";"):
        return "a comment starts with #: systemd skips a line with ;, dotenv may read it, a shell rejects the file"
    if re.match(r"export[ \t]", stripped):
        return "leave out the word export: systemd ignores a line with it, dotenv and a shell read it"
    key, equals, value = stripped.partition("=")
    if not equals:
        return "is not KEY=value: systemd and dotenv ignore it, a shell runs it as a command"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        if key != key.strip(" \t"):
            return (
                f"write {shown(key.strip())}= without a space before the equals sign: systemd and dotenv drop the "
                "space, a shell runs the key as a command"
            )
        return (
            "a key has letters, digits and _ only, and no digit first: systemd ignores such a line, dotenv reads it, "
            "a shell runs it as a command"
        )
    return f"{shown(key)}: {_why_value_refused(value)}"


def _why_value_refused(value: str) -> str:
    quote = value[0] if value[:1] in {"'", '"'} else ""
    if value.startswith((" ", "\t")):
        return "no space after the equals sign: systemd and dotenv drop it, a shell runs the value as a command"
    if "\\" in value:
        if not quote:
            return "leave out the backslash: systemd and a shell remove it, dotenv keeps it"
        if quote == "'":
            return "leave out the backslash: systemd and a shell keep it, dotenv reads an escape"
        return "leave out the backslash: dotenv reads \\n as a new line, systemd and a shell do not"
    if "$" in value:
        if quote == "'":
            return "leave out the $: dotenv expands variables here, systemd and a shell do not"
        return "leave out the $: dotenv and a shell expand variables, systemd does not"
    if quote and value.count(quote) < 2:
        return f"the quote {quote} is not closed on this line: systemd reads on, dotenv and a shell stop"
    if quote and "#" in value.rpartition(quote)[2]:
        return COMMENT if re.search(r"[ \t]#", value.rpartition(quote)[2]) else GLUED_COMMENT
    if quote == '"' and "`" in value:
        return "leave out the backticks: a shell runs the text between them, systemd and dotenv keep it"
    if quote:
        return (
            f"write one pair of {quote} around the value and none inside: systemd and a shell join the parts, "
            "dotenv stops"
        )
    if re.search(r"[ \t]#", value):
        return COMMENT
    if "'" in value or '"' in value:
        return "quote the whole value or nothing: systemd and dotenv keep a quote inside, a shell removes it"
    return "put the value in single quotes: without them a shell splits, expands or runs it, systemd and dotenv keep it"
