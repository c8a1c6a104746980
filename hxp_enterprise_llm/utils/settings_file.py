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
"""A settings file is refused beyond this size (bytes): ours are under 4 KiB, and the generator runs at every boot."""


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
        return f"{place}: {self.text}"


class Entry(NamedTuple):
    """A key with its value, and the line (from 1) that set it."""

    key: str
    value: str
    line: int


class SettingsText(NamedTuple):
    """What a settings file says: the last entry of each key, and the faults met on the way."""

    entries: dict[str, Entry]
    faults: list[Fault]


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
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def read(path: str) -> SettingsText:
    """Read the settings file at `path`; every fault is in the result, none is raised.

    A symbolic link is refused: whoever may write its target would write the settings.
    """
    try:
        # O_NONBLOCK: a FIFO must not hold up the boot until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return SettingsText({}, [Fault(path, 0, _cannot_open(error))])
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return SettingsText({}, [Fault(path, 0, "is not a regular file; write the settings into a plain file")])
        content = os.read(descriptor, MAX_BYTES + 1)
    except OSError as error:
        return SettingsText({}, [Fault(path, 0, f"cannot be read: {error.strerror}")])
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        return SettingsText({}, [Fault(path, 0, f"is larger than {MAX_BYTES // 1024} KiB; is it a settings file?")])
    return parse(path, content)


def parse(path: str, content: bytes) -> SettingsText:
    """Parse the bytes of a settings file; `path` is only for messages."""
    entries: dict[str, Entry] = {}
    faults: list[Fault] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            faults.append(Fault(path, number, "is not UTF-8 text; is this a settings file?"))
            break
        if line.endswith("\r"):
            # One for the file: it is wrong as a whole.
            faults.append(
                Fault(path, number, "ends in CR LF, of which a shell makes CR part of the value; use dos2unix")
            )
            break
        if _UNPRINTABLE.search(line):
            faults.append(Fault(path, number, "contains a control character; delete it"))
            continue
        if _BLANK.fullmatch(line):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            faults.append(Fault(path, number, _why_refused(line)))
            continue
        key = match["key"]
        value = next(text for text in (match["plain"], match["single"], match["double"]) if text is not None)
        if key in entries:
            earlier = entries[key].line
            faults.append(Fault(path, number, f"{key} is set on line {earlier} too; this line counts", fatal=False))
        entries[key] = Entry(key, value, number)
    return SettingsText(entries, faults)


def _cannot_open(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link; copy the file here instead"
    if error.errno == errno.ENOENT:
        return "does not exist; create it, the package's own files beside it are examples"
    return f"cannot be opened: {error.strerror}"


def _why_refused(line: str) -> str:
    """Say which rule `line` breaks and how to write it, without repeating a value that may be a secret."""
    stripped = line.strip(" \t")
    if stripped.startswith("#"):
        return "a comment that ends in a backslash hides the next line from systemd; delete the backslash"
    if stripped.startswith(";"):
        return "a comment starts with #, not with ;"
    if re.match(r"export[ \t]", stripped):
        return "leave out the word export: systemd ignores the line with it"
    key, equals, value = stripped.partition("=")
    if not equals:
        return "is not KEY=value"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        if key != key.strip(" \t"):
            return f"write {key.strip()}= with no space before the equals sign: a shell takes the key for a command"
        return "the key may hold only letters, digits and _, and does not start with a digit"
    if value.startswith((" ", "\t")):
        return f"write {key}= with no space after the equals sign: a shell takes the value for a command"
    if "\\" in value:
        return f"{key}: leave out the backslash: systemd and a shell take it away, dotenv does not"
    if "$" in value:
        return f"{key}: leave out the $: nothing is expanded here, while dotenv and a shell would"
    if value[:1] in {"'", '"'}:
        quote = value[0]
        if value.count(quote) < 2:
            return f"{key}: the quote {quote} is not closed on this line: systemd reads on, the others give up"
        if "#" in value.rpartition(quote)[2]:
            return f"{key}: {COMMENT}"
        if quote == '"' and "`" in value:
            return f"{key}: leave out the backticks: a shell runs what stands in them, systemd and dotenv keep it"
        return (
            f"{key}: one pair of {quote} around it all, none inside: systemd and a shell join pieces, dotenv gives up"
        )
    if re.search(r"[ \t]#", value):
        return f"{key}: {COMMENT}"
    return f"{key}: put the value in single quotes, {key}='…': unquoted, a shell splits, expands or runs such a value"
