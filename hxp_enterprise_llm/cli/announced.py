"""What a hub may list and send: files with printable names below the model's directory, and no more bytes than listed.

Apart from `hub`, so that it needs no library of the hub.
"""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import BinaryIO

from hxp_enterprise_llm.settings.grammar import shown

LONGEST_PATH = 500
"""In characters."""
LARGEST_FILE = 1 << 53


def refusal(path: object, size: object) -> str:
    """Why a file that the hub lists is refused; empty if it is not."""
    if not isinstance(path, str) or not isinstance(size, int) or isinstance(size, bool):
        return "a file without a name or a size"
    if not path.isprintable():
        return f"a file name that cannot be printed: {shown(path)}"
    if len(path) > LONGEST_PATH:
        return f"a file name of {len(path)} characters: {shown(path)}"
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or str(place) != path or path == ".":
        return f"a file outside the model: {shown(path)}"
    if not 0 <= size < LARGEST_FILE:
        return f"a file of {size} bytes: {shown(path)}"
    return ""


class MoreThanAnnounced(Exception):
    """The hub sends more bytes than it has listed for a file."""


class LimitedFile:
    """A file being downloaded, which grows to `size` bytes at most; `wrote` is called with its size after each write.

    Has the methods that `http_get` of huggingface_hub uses.
    """

    def __init__(self, stream: BinaryIO, size: int, wrote: Callable[[int], object]) -> None:
        self._stream, self._size, self._wrote = stream, size, wrote

    def write(self, data: bytes) -> int:
        """Append bytes. Raises MoreThanAnnounced before the file would become too large."""
        if self._stream.tell() + len(data) > self._size:
            raise MoreThanAnnounced
        written = self._stream.write(data)
        self._wrote(self._stream.tell())
        return written

    def tell(self) -> int:
        """The position in the file."""
        return self._stream.tell()

    def seek(self, place: int) -> int:
        """Go to a position, before `truncate`."""
        return self._stream.seek(place)

    def truncate(self) -> int:
        """Cut the file at its position: the hub sends it from the start again."""
        return self._stream.truncate()
