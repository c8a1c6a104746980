"""The grammar of a settings file: text to keys and values, or faults.

A line is accepted only if systemd's EnvironmentFile=, python-dotenv and a POSIX shell read the same value from it:

    # comment
    KEY=plain-value
    KEY='anything printable but a quote, a backslash or a dollar'
    KEY="anything printable but a quote, a backslash, a dollar or a backtick"

This module and its neighbour `settings_keys` use the standard library alone: the systemd generator runs them with
Debian's own Python, as root, at a moment of the boot when /opt may not be mounted.
"""

import errno
import os
import re
import stat
from typing import NamedTuple

MAX_BYTES = 64 * 1024
MAX_LINES = 1000
MAX_LINE = 4096
"""A settings file is refused beyond these (bytes, lines, characters of a line): ours are under 4 KiB, and the generator
reads all of them at every boot."""

MAX_FAULTS = 100
"""Nobody mends more at once, and a message takes longer to make than a line to read."""

READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""How root opens what may be no file: a FIFO does not hold up the boot until somebody writes to it, and a terminal does
not become that of the process."""


class Fault(NamedTuple):
    """One thing wrong with a settings file.

    `line` counts from 1 and is 0 where the fault is of the file as a whole.
    """

    file: str
    line: int
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return printable(f"{place}: {self.text}")


class Entry(NamedTuple):
    """A key with its value, and the line (from 1) that set it."""

    key: str
    value: str
    line: int


class SettingsText(NamedTuple):
    """What a settings file says: the last entry of each key, and the faults met on the way.

    A key whose last line is refused has no entry. `whole` is false if not all of the file was read.
    """

    entries: dict[str, Entry]
    faults: list[Fault]
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
# systemd 252 joins a comment that ends in a backslash with the next line, a shell does not.
_BLANK = re.compile(r"[ \t]*(?:#(?:.*[^\\])?)?")
COMMENT = "put the comment on a line of its own: systemd makes it part of the value, dotenv and a shell drop it"
GLUED_COMMENT = "put the comment on a line of its own: dotenv drops it, systemd and a shell make it part of the value"
# A shell drops NUL, dotenv keeps it.
CONTROL = "contains a control character: systemd, dotenv and a shell do not all keep every one of them; delete it"
CR_LF = "ends in CR LF: a shell makes CR part of the value, systemd and dotenv drop it; use dos2unix"
LINK = "is a symbolic link, and who may write its target would write the settings; copy the file here instead"
_NO_CHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
"""Code points that Unicode keeps free, with U+FDD0 to U+FDEF: systemd throws away a whole file that has one."""
_UNPRINTABLE = re.compile(rf"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufdd0-\ufdef{_NO_CHARACTERS}]")

_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters but for tab and line feed, and surrogates."""


def read(path: str) -> SettingsText:
    """Read the settings file at `path`; every fault is in the result, none is raised.

    Who may write the settings decides what root does: limits, users, files handed to the service. So a symbolic link
    is refused, and a file that others than root may write. (Who owns the directory could replace any file in it.)
    """
    try:
        # Looked at first: opening a device can have an effect, such as starting a watchdog.
        _check_kind(os.lstat(path).st_mode)
        descriptor = os.open(path, READING | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            _check_kind(status.st_mode)
            _check_writers(status, os.stat(os.path.dirname(path) or "."))
            content = os.read(descriptor, MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        return SettingsText({}, [Fault(path, 0, _cannot_read(error))], whole=False)
    except _Refused as refused:
        return SettingsText({}, [Fault(path, 0, str(refused))], whole=False)
    if len(content) > MAX_BYTES:
        return SettingsText(
            {}, [Fault(path, 0, f"is larger than {MAX_BYTES // 1024} KiB; is it a settings file?")], whole=False
        )
    return parse(path, content)


class _Refused(Exception):
    """What is wrong with a file as a whole."""


def _check_kind(mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise _Refused(LINK)
    if not stat.S_ISREG(mode):
        raise _Refused("is not a regular file; write the settings into a plain file")


def _check_writers(file: os.stat_result, directory: os.stat_result) -> None:
    if file.st_uid not in (0, directory.st_uid):
        # The number: at boot nobody answers who it is, systemd itself waits for the generator.
        raise _Refused(f"belongs to user number {file.st_uid}, who could change what root does; chown root it")
    # The group's bits are also the bound of an access list.
    if file.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Refused("may be written by others than root, who could change what root does; chmod 644 it")


def parse(path: str, content: bytes) -> SettingsText:
    """Parse the bytes of a settings file; `path` is only for messages."""
    entries: dict[str, Entry] = {}
    faults: list[Fault] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if number > MAX_LINES:
            faults.append(Fault(path, number, f"is beyond {MAX_LINES} lines; is this a settings file?"))
            return SettingsText(entries, faults, whole=False)
        if len(faults) >= MAX_FAULTS:
            faults.append(Fault(path, number, "is not read: too much is wrong before it"))
            return SettingsText(entries, faults, whole=False)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            faults.append(Fault(path, number, "is not UTF-8 text; is this a settings file?"))
            return SettingsText(entries, faults, whole=False)
        if line.endswith("\r"):
            # One for the file: it is wrong as a whole.
            faults.append(Fault(path, number, CR_LF))
            return SettingsText(entries, faults, whole=False)
        if len(line) > MAX_LINE:
            faults.append(Fault(path, number, f"is longer than {MAX_LINE} characters; is this a settings file?"))
            entries.pop(key_of(line), None)
            continue
        if _UNPRINTABLE.search(line):
            faults.append(Fault(path, number, CONTROL))
            entries.pop(key_of(line), None)
            continue
        if _BLANK.fullmatch(line):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            faults.append(Fault(path, number, _why_refused(line)))
            entries.pop(key_of(line), None)
            continue
        key = match["key"]
        value = next(text for text in (match["plain"], match["single"], match["double"]) if text is not None)
        if key in entries:
            earlier = entries[key].line
            faults.append(Fault(path, number, f"{key} is set on line {earlier} too; this line counts", fatal=False))
        entries[key] = Entry(key, value, number)
    return SettingsText(entries, faults)


def quoted(value: str) -> str:
    """`value` as it stands after the equals sign of a line, in quotes where it needs them.

    Raises ValueError, with the reason, for a value that no line can hold.
    """
    for form in (value, f"'{value}'", f'"{value}"'):
        try:
            text = parse("", f"KEY={form}".encode())
        except UnicodeEncodeError:
            break
        if not text.faults and "KEY" in text.entries and text.entries["KEY"].value == value:
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
    """The key of a line, also of a refused one, as far as its text shows."""
    return re.sub(r"^export[ \t]+", "", line.strip()).partition("=")[0].strip()


def _cannot_read(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return LINK
    if error.errno == errno.ENOENT:
        return "does not exist; create it, the package's own files beside it are examples"
    if error.errno == errno.EACCES:
        user = os.geteuid()
        return f"cannot be read by user number {user}; chmod 644 it: models read their settings, which hold no secrets"
    return f"cannot be read: {error.strerror}"


def printable(text: str) -> str:
    """`text` for a terminal, a log or systemd: bytes that are not UTF-8, and control characters, become escapes.

    Python keeps such a byte of a file name or an argument as a surrogate, which no UTF-8 stream accepts.
    """
    return _NOT_PRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte itself
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(text: str) -> str:
    """The part of a key or a value that a message repeats."""
    text = printable(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _why_refused(line: str) -> str:
    """Say which rule `line` breaks, what its three readers would make of it, and how to write it.

    A value is not repeated: it may be a secret. tests/system/test_grammar.py asks the readers.
    """
    stripped = line.strip(" \t")
    if stripped.startswith("#"):
        return "a comment ends in no backslash: it hides the next line from systemd, not from dotenv and a shell"
    if stripped.startswith(";"):
        return "a comment starts with #: systemd skips a line with ;, dotenv may read it, a shell gives the file up"
    if re.match(r"export[ \t]", stripped):
        return "leave out the word export: systemd ignores the line with it, dotenv and a shell read it"
    key, equals, value = stripped.partition("=")
    if not equals:
        return "is not KEY=value: systemd and dotenv read no value from it, a shell runs it as a command"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        if key != key.strip(" \t"):
            return (
                f"write {shown(key.strip())}= with no space before the equals sign: systemd and dotenv drop it, "
                "a shell takes the key for a command"
            )
        return (
            "the key may hold only letters, digits and _, and does not start with a digit: systemd ignores such a "
            "line, dotenv reads it, a shell runs it as a command"
        )
    return f"{shown(key)}: {_why_value_refused(value)}"


def _why_value_refused(value: str) -> str:
    quote = value[0] if value[:1] in {"'", '"'} else ""
    if value.startswith((" ", "\t")):
        return "no space after the equals sign: systemd and dotenv drop it, a shell takes the value for a command"
    if "\\" in value:
        if not quote:
            return "leave out the backslash: systemd and a shell take it away, dotenv keeps it"
        if quote == "'":
            return "leave out the backslash: systemd and a shell keep it, dotenv takes it for the start of an escape"
        return "leave out the backslash: dotenv reads \\n as a new line, systemd and a shell do not"
    if "$" in value:
        if quote == "'":
            return "leave out the $: nothing is expanded here, nor by systemd and a shell, but by dotenv"
        return "leave out the $: nothing is expanded here, nor by systemd, but by dotenv and a shell"
    if quote and value.count(quote) < 2:
        return f"the quote {quote} is not closed on this line: systemd reads on, dotenv and a shell give up"
    if quote and "#" in value.rpartition(quote)[2]:
        return COMMENT if re.search(r"[ \t]#", value.rpartition(quote)[2]) else GLUED_COMMENT
    if quote == '"' and "`" in value:
        return "leave out the backticks: a shell runs what stands in them, systemd and dotenv keep it"
    if quote:
        return f"one pair of {quote} around it all, none inside: systemd and a shell join pieces, dotenv gives up"
    if re.search(r"[ \t]#", value):
        return COMMENT
    if "'" in value or '"' in value:
        return "quotes stand around the whole value or nowhere: systemd and dotenv keep such a quote, a shell does not"
    return "put it in single quotes: unquoted, a shell splits, expands or runs such a value, systemd and dotenv keep it"
