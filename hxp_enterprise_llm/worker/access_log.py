"""Limits what clients can write into the log: no line for a request without a valid key, and no long line.

uvicorn logs a line for each request and each WebSocket, with the path and the address that the client has sent.
"""

import logging
from http import HTTPStatus

LOGGERS = ("uvicorn.access", "uvicorn.error")
"""uvicorn logs requests with the first, and WebSockets with the second."""
LONGEST_WORD = 200
"""How many characters of a path or an address are logged."""


class ClientLines(logging.Filter):
    """Drops lines about requests without a valid key, and shortens what clients have sent.

    `bounded` answers most requests without a key itself, and uvicorn logs none of those.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record; changes its arguments."""
        words = record.args
        if isinstance(words, tuple):
            # The last argument is the status of the answer.
            if words and words[-1] == HTTPStatus.UNAUTHORIZED:
                return False
            record.args = tuple(shown(word) if isinstance(word, str) else word for word in words)
        return True


def limit() -> None:
    """Limit the lines of this process. vLLM and uvicorn configure handlers later, which keeps filters of loggers."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(ClientLines())


def shown(word: str) -> str:
    """What is logged of a word that a client has sent."""
    if len(word) > LONGEST_WORD:
        word = f"{word[:LONGEST_WORD]}... ({len(word)} characters)"
    return word if word.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in word)
