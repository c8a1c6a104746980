from pathlib import Path

import pytest

from hxp_enterprise_llm.cli.pull import read_token
from hxp_enterprise_llm.settings.errors import CitadelError


def test_token_is_read_without_trailing_newline(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hf_abc\n")
    assert read_token(file) == "hf_abc"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hf_abc hf_def", "not a token"),
        (b"hf_abc\nhf_def", "not a token"),
        (b"hf_\xff\xfe", "not a token"),
        (b"hf_\0", "not a token"),
        (b"x" * 5000, "not a token"),
    ],
)
def test_invalid_token_is_refused_and_not_printed(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(CitadelError, match=said) as refused:
        read_token(file)
    assert "hf_" not in str(refused.value).replace(str(file), "")


def test_unreadable_token_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(CitadelError, match="none: No such file"):
        read_token(tmp_path / "none")
    with pytest.raises(CitadelError, match=f"m: HUB_TOKEN_FILE={tmp_path}: is not a regular file"):
        read_token(tmp_path, "m: HUB_TOKEN_FILE=")
