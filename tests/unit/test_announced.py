"""What a hub may list, and that it cannot send more than it has listed."""

import io

import pytest

from hxp_enterprise_llm.cli.announced import LimitedFile, MoreThanAnnounced, refusal


@pytest.mark.parametrize(
    ("path", "size", "said"),
    [
        ("/etc/default/citadel-llm", 1, "outside the model"),
        ("a/../../b", 1, "outside the model"),
        ("a/..", 1, "outside the model"),
        ("a//b", 1, "outside the model"),
        ("./a", 1, "outside the model"),
        ("", 1, "outside the model"),
        (".", 1, "outside the model"),
        ("a\0b", 1, r"cannot be printed: a\x00b"),
        ("\x1b]0;title\x07", 1, r"cannot be printed: \x1b]0;title\x07"),
        ("a\nforged", 1, r"cannot be printed: a\nforged"),
        ("\x9b31m", 1, r"cannot be printed: \x9b31m"),
        ("\u202egnp.exe", 1, r"cannot be printed: \u202egnp.exe"),
        ("\ud800", 1, r"cannot be printed: \ud800"),
        ("x" * 1000, 1, "file name of 1000 characters"),
        ("a", -1, "file of -1 bytes"),
        ("a", 1 << 60, "bytes: a"),
        ("a", "1", "without a name or a size"),
        ("a", None, "without a name or a size"),
        ("a", True, "without a name or a size"),
        ("a", 1.0, "without a name or a size"),
        (None, 1, "without a name or a size"),
    ],
)
def test_listed_file_is_refused(path: object, size: object, said: str) -> None:
    assert said in refusal(path, size)


@pytest.mark.parametrize(
    "path", ["config.json", "onnx/model.onnx", "a b.json", "modèle.json", ".gitattributes", "a..b"]
)
def test_listed_file_is_accepted(path: str) -> None:
    assert refusal(path, 0) == ""


def test_no_byte_more_than_announced_is_written() -> None:
    stream, sizes = io.BytesIO(b"old"), list[int]()
    stream.seek(3)
    file = LimitedFile(stream, 10, sizes.append)
    assert (file.tell(), file.write(b"1234")) == (3, 4)
    file.write(b"567")
    for data in (b"8", b"8" * 1_000_000):
        with pytest.raises(MoreThanAnnounced):
            file.write(data)
    assert stream.getvalue() == b"old1234567" and sizes == [7, 10]
    # As if the hub had ignored the range of the request.
    file.seek(0)
    file.truncate()
    file.write(b"from the s")
    with pytest.raises(MoreThanAnnounced):
        file.write(b"tart")
    assert stream.getvalue() == b"from the s"
