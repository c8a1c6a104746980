"""What `citadel-llm pull` and the process that downloads send each other: one JSON object a line, through pipes.

The downloading process reads what a hub sends, so the command treats its messages as hostile.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from hxp_enterprise_llm.settings.errors import CitadelError

LONGEST_LINE = 65536
"""Length to which a line is read (bytes)."""
LONGEST_TEXT = 1000
"""Length to which texts are cut (characters)."""
MOST_NAMES = 20
"""Number of names of files in one message."""

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Text = Annotated[str, StringConstraints(strict=True, max_length=LONGEST_TEXT)]


class PullFailed(CitadelError):
    """A model could not be downloaded or verified; a partial download is kept unless the message says otherwise."""

    code = "pull-failed"


class Job(BaseModel):
    """What to download, or to `verify`; `environment` holds variables for the library of the hub."""

    model_config = ConfigDict(frozen=True)

    repository: str
    endpoint: str | None
    token: str | None = Field(repr=False)
    verify: bool
    environment: dict[str, str] = Field(repr=False)


class Begun(BaseModel):
    """A file is being downloaded: the file `number` of `count`. `size` and `arrived` in bytes."""

    kind: Literal["begun"] = "begun"
    number: Count
    count: Count
    path: Text
    size: Count
    arrived: Count


class Arrived(BaseModel):
    """How much of the current file has arrived (bytes)."""

    kind: Literal["arrived"] = "arrived"
    arrived: Count


class Done(BaseModel):
    """The model is complete; after a verification, `wrong` names files that are missing or differ."""

    kind: Literal["done"] = "done"
    wrong: tuple[Text, ...] = ()


class Failed(BaseModel):
    """The download has failed; `code` is that of the error."""

    kind: Literal["failed"] = "failed"
    code: Text
    message: Text


Message = Begun | Arrived | Done | Failed
MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
