"""Weight files that are truncated, damaged or missing are reported before a start."""

import json
import os
from pathlib import Path

import pytest

from hxp_enterprise_llm.engine import model_files, weights
from hxp_enterprise_llm.settings.errors import ExitStatus, ModelMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def shard(*sizes: int, metadata: bool = True) -> bytes:
    """A file in the safetensors library's format: a header padded to eight bytes, then the bytes of the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    begin = 0
    for number, size in enumerate(sizes):
        header[f"layer.{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(begin)


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


def check(directory: Path, **values: object) -> None:
    settings = {"name": "m", "model": str(directory), "port": 11500, **values}
    weights.check(ServiceConfigSchema.model_validate(settings), str(directory))


def test_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="there are no weights"):
        check(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelMissing, match="there are no weights"):
        check(tmp_path)
    check(tmp_path, vllm_args="--load-format dummy")


def test_complete_weight_files_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(shard(100, 7))
    (tmp_path / "empty.safetensors").write_bytes(shard())
    (tmp_path / "bare.safetensors").write_bytes(shard(5, metadata=False))
    check(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (shard(100)[:-1], "has 211 bytes instead of 212"),
        (shard(100) + b"x", "has 213 bytes instead of 212"),
        (shard(100)[:20], "its header cannot be read"),
        (b"", "its header cannot be read"),
        (b"\xff" * 100, "its header cannot be read"),
        ((8).to_bytes(8, "little") + b"{       ", "its header cannot be read"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "its header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "its header cannot be read"),
        ((31).to_bytes(8, "little") + b'{"a": {"data_offsets": [0,-8]}}', "its header cannot be read"),
        ((50_000).to_bytes(8, "little") + b"[" * 50_000, "its header cannot be read"),
        (header('{"a": {"data_offsets": [0, %s]}}' % ("9" * 4300)), "its header cannot be read"),
        (header('{"a": {"data_offsets": [0, %s]}}' % ("9" * 5000)), "its header cannot be read"),
        (header('{"a": {"data_offsets": [0, 1e999]}}'), "its header cannot be read"),
        (header("[" + "{}," * 1_000_000 + "0]"), "its header cannot be read"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "its header cannot be read"),
    ],
)
def test_damaged_weight_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelMissing) as caught:
        check(tmp_path)
    assert f"MODEL={tmp_path}: a.safetensors" in str(caught.value) and words in str(caught.value)
    assert str(caught.value).endswith("copy the model there again")
    assert caught.value.exit_status is ExitStatus.CONFIG
    # With another load format the file is not checked.
    check(tmp_path, vllm_args=("--load-format", "dummy"))


def test_error_for_hub_model_suggests_fetching_again(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(shard(100)[:-1])
    with pytest.raises(ModelMissing, match=f"delete {tmp_path} and fetch it again with `citadel-llm pull m`"):
        check(tmp_path, model="org/model")


def test_weight_file_that_is_not_regular_is_not_opened(tmp_path: Path) -> None:
    """Opening a FIFO would wait for a writer."""
    os.mkfifo(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / model_files.INDEX)
    writers = [os.open(tmp_path / name, os.O_RDWR) for name in ("a.safetensors", model_files.INDEX)]
    try:
        with pytest.raises(ModelMissing, match=r"a\.safetensors cannot be read \(is not a regular file\)"):
            check(tmp_path)
    finally:
        for writer in writers:
            os.close(writer)


def test_only_files_in_the_index_are_checked(tmp_path: Path) -> None:
    (tmp_path / "left-over.safetensors").write_bytes(b"cut")
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(shard(10))
    names = {f"layer.{number}": f"model-{number}.safetensors" for number in (1, 2)}
    (tmp_path / model_files.INDEX).write_text(json.dumps({"weight_map": names}))
    check(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelMissing, match=r"model-2\.safetensors is missing"):
        check(tmp_path)


def test_a_consolidated_file_beside_shards_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelMissing, match=r"consolidated\.safetensors is damaged"):
        check(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(shard(10))
    check(tmp_path)


def test_many_damaged_files_make_a_short_message(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}.safetensors").touch()
    with pytest.raises(ModelMissing, match="; 995 more; copy the model") as refused:
        check(tmp_path)
    assert len(str(refused.value)) < 1000


def test_headers_above_the_limit_are_left_to_vllm(tmp_path: Path) -> None:
    """Root would otherwise spend minutes on the headers of a hostile model."""
    for number in range(6):
        with (tmp_path / f"{number}.safetensors").open("wb") as file:
            file.write((15 << 20).to_bytes(8, "little"))
            file.truncate(16 << 20)
    # The first four use up the limit, so the content of the others is not looked at.
    with pytest.raises(ModelMissing, match=r"0\.safetensors is damaged.*3\.safetensors is damaged") as refused:
        check(tmp_path)
    assert "4.safetensors" not in str(refused.value)


def test_directory_or_index_of_too_many_files_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(shard(10))
    names = {str(number): f"{number}.safetensors" for number in range(model_files.MOST_FILES + 1)}
    (tmp_path / model_files.INDEX).write_text(json.dumps({"weight_map": names}))
    check(tmp_path)
    for number in range(model_files.MOST_FILES):
        (tmp_path / str(number)).touch()
    with pytest.raises(OSError, match="has more than 10000 files"):
        model_files.listed(tmp_path)
