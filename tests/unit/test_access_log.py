"""What clients can write into the log of a server."""

import logging
import logging.config
from collections.abc import Iterator

import pytest

from hxp_enterprise_llm.worker import access_log


class Lines(logging.Handler):
    """Collects the lines of uvicorn's loggers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that are logged; handlers are configured after the limit is set, as vLLM does."""
    access_log.limit()
    loggers = [logging.getLogger(name) for name in access_log.LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    new = {name: {"handlers": [], "level": "INFO"} for name in access_log.LOGGERS}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": new})
    handler = Lines()
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)
        for limit in [one for one in logger.filters if isinstance(one, access_log.ClientLines)]:
            logger.removeFilter(limit)
        logger.setLevel(logging.NOTSET)


def request(path: str, status: int, client: str = "192.0.2.1:4711") -> None:
    """Log a request as uvicorn does."""
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', client, "GET", path, "1.1", status)


def test_refused_requests_are_not_logged(lines: list[str]) -> None:
    request("/v1/models", 401)
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" %d', "192.0.2.1:4711", "/v1/realtime", 401)
    assert lines == []


def test_other_requests_and_messages_are_logged(lines: list[str]) -> None:
    request("/v1/models", 200)
    logging.getLogger("uvicorn.error").info("Finished server process [%d]", 401000)
    logging.getLogger("uvicorn.error").info("Shutting down")
    assert lines == [
        '192.0.2.1:4711 - "GET /v1/models HTTP/1.1" 200',
        "Finished server process [401000]",
        "Shutting down",
    ]


def test_long_words_of_clients_are_shortened(lines: list[str]) -> None:
    request("/" + "a" * 40_000, 404, client="b" * 40_000)
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "192.0.2.1:4711", "/" + "c" * 40_000)
    assert [len(line) < 500 for line in lines] == [True, True]
    assert "aaa... (40001 characters)" in lines[0] and lines[0].endswith("404")


def test_control_characters_of_clients_are_not_logged(lines: list[str]) -> None:
    request("/", 200, client="\x9b31m\x1b[0m")
    assert lines == ['?31m?[0m - "GET / HTTP/1.1" 200']
