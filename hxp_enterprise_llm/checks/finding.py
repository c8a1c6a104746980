"""The result of a check."""

from typing import NamedTuple

from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus, SettingsRefused


class Finding(NamedTuple):
    """An error or a warning about an instance, or about the "host".

    A start with a fatal finding ends with the exit status `status`; `code` is the code of its error.
    """

    instance: str
    text: str
    fatal: bool = True
    status: ExitStatus = ExitStatus.CONFIG
    code: str = SettingsRefused.code

    def __str__(self) -> str:
        return f"{self.instance}: {self.text}" + ("" if self.fatal else " (a warning)")


def of_error(instance: str, error: CitadelError) -> list[Finding]:
    """An error as findings, one for each line of its message."""
    return [Finding(instance, line, status=error.exit_status, code=error.code) for line in str(error).splitlines()]
