import os
import re
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.engine import launch, model_directory, model_files, sizes
from hxp_enterprise_llm.protocol.worker import HUB_TOKEN_PATH
from hxp_enterprise_llm.settings.errors import ModelMissing, SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

PRIVATE = model_directory.PRIVATE


def config(**values: object) -> ServiceConfigSchema:
    return ServiceConfigSchema.model_validate({"name": "m", "model": "/srv/m", "port": 11500, **values})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    return tmp_path


def test_a_model_is_found_by_directory_and_by_hub_id(model: Path) -> None:
    assert model_directory.find_model(config(model=str(model))) == str(model)
    nested = model / "models/org/name"
    nested.mkdir(parents=True)
    (nested / "config.json").write_text("{}")
    assert model_directory.find_model(config(model="org/name"), model / "models") == str(nested)


def test_model_in_hidden_directory_is_refused(tmp_path: Path) -> None:
    """Also if root runs the check and could read the model."""
    for place in ("/home/me/model", "/root", "/var/lib/other/model", "/var/cache/model", "/dev/shm/m"):
        with pytest.raises(ModelMissing, match=r"services cannot see /\w+.*copy the model to /var/lib/c"):
            model_directory.find_model(config(model=place))
    (tmp_path / "link").symlink_to("/home/me/model")
    with pytest.raises(ModelMissing, match="services cannot see /home"):
        model_directory.find_model(config(model=str(tmp_path / "link")))
    for place in ("/var/lib/citadel-llm/models/none", "/srv/none", "/var/models", "/homes/none"):
        with pytest.raises(ModelMissing, match="no such directory"):
            model_directory.find_model(config(model=place))


def test_hidden_directories_match_the_unit_template() -> None:
    template = (Path(__file__).parents[2] / "systemd/citadel-llm@.service").read_text(encoding="utf-8")
    words = re.findall(r"^(?:TemporaryFileSystem|InaccessiblePaths)=(.*)$", template, re.MULTILINE)
    hidden = {word.removeprefix("-").split(":")[0] for line in words for word in line.split()}
    # ProtectHome= hides these and /run/user, see systemd.exec(5).
    hidden |= {"/home", "/root"} if "\nProtectHome=yes\n" in template else set()
    own = {"/dev/shm", "/tmp", "/var/tmp"} if "\nPrivateTmp=yes\n" in template else {"/dev/shm"}
    assert {*PRIVATE} == own
    assert {*model_directory.HIDDEN} == hidden - own - {"/run/tmp"}


def test_model_file_linking_to_hidden_directory_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a file that services can see is accepted, as in the cache of the hub."""
    elsewhere = model.with_name("elsewhere")
    elsewhere.mkdir()
    (model / "model-2.safetensors").symlink_to(elsewhere / "weights")
    (elsewhere / "weights").write_bytes(b"x")
    monkeypatch.setattr(model_directory, "CACHE", model.with_name("cache"))
    assert model_directory.find_model(config(model=str(model)))
    monkeypatch.setattr(model_directory, "HIDDEN", (str(elsewhere),))
    with pytest.raises(
        ModelMissing, match=r"model-2\.safetensors is a link to .*elsewhere/weights, and services cannot"
    ):
        model_directory.find_model(config(model=str(model)))
    assert model_directory.find_model(config(model=str(model)), elsewhere), "services see the models' directory"
    monkeypatch.setattr(model_directory, "CACHE", elsewhere.parent)
    assert model_directory.find_model(config(model=str(model), name="elsewhere")), "services see their own cache"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_fifo_or_device_that_vllm_would_read_is_refused(model: Path, name: str) -> None:
    """vLLM would wait for the FIFO, and the start would time out."""
    (model / name).unlink(missing_ok=True)
    (model / "folder.json").mkdir()
    wanted = config(model=str(model))
    assert model_directory.find_model(wanted)
    os.mkfifo(model / name)
    with pytest.raises(ModelMissing, match=f"{name} cannot be read .is not a regular file.; copy the model again"):
        model_directory.find_model(wanted)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(ModelMissing, match=f"{name} cannot be read .is not a regular file."):
        model_directory.find_model(wanted)


def test_flags_naming_files_in_hidden_directories_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_directory, "HIDDEN", (str(tmp_path),))
    for file in ("template", "seen/adapter", "cache/m/huggingface"):
        (tmp_path / file).mkdir(parents=True)
    words = f"--chat-template={tmp_path}/template --lora-modules a={tmp_path}/seen/adapter --root-path {tmp_path}/api"
    json = f'--speculative-config \'{{"model":"{tmp_path}/template"}}\''
    found = model_directory.unseen(
        config(
            vllm_args=f"{words} {json}",
            environment={"HF_HOME": f"{tmp_path}/cache/m/huggingface", "VLLM_LOGGING_CONFIG_PATH": f"{tmp_path}/seen"},
        ),
        tmp_path / "seen",
        tmp_path / "cache",
    )
    assert model_directory.unseen(config(environment={"VLLM_RPC_BASE_PATH": "/tmp"})) == [], "every service has a /tmp"
    told = f"services cannot see {tmp_path}, so not {tmp_path}/template"
    assert [sentence.partition(";")[0] for sentence in found] == [f"VLLM_ARGS: {told}"] * 2


def test_missing_model_error_suggests_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no such directory; copy the model there"):
        model_directory.find_model(config(model=str(tmp_path / "none")))
    with pytest.raises(ModelMissing, match=r"no config\.json"):
        model_directory.find_model(config(model=str(tmp_path)))
    with pytest.raises(ModelMissing, match="citadel-llm pull m"):
        model_directory.find_model(config(model="org/name"), tmp_path)
    assert model_directory.find_model(config(model="org/name", allow_download=True), tmp_path) == "org/name"
    with pytest.raises(ModelMissing, match="File name too long"):
        model_directory.find_model(config(model="/" + "x" * 300))


def test_weights_in_two_formats_count_once(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (model / "consolidated.safetensors").write_bytes(b"x" * 1000)
    assert model_files.weights_bytes(str(model)) == 1000


def test_download_requires_kv_cache_gb() -> None:
    with pytest.raises(SettingsRefused, match="KV_CACHE_GB is missing"):
        sizes.cache_gb(config(allow_download=True), "org/name")


def test_settings_become_vllm_flags(model: Path) -> None:
    words = launch.arguments(config(kv_cache_gb=0.5, max_model_len=512, vllm_args="--seed 1"), str(model))
    flags = dict(zip(words[::2], words[1::2], strict=False))
    assert flags["--kv-cache-memory-bytes"] == str(2**29)
    assert flags["--max-model-len"] == "512"
    assert flags["--served-model-name"] == "m"
    assert words[-2:] == ["--seed", "1"]
    assert "--enforce-eager" in words


def test_cache_uses_remaining_memory_and_too_small_limit_is_refused(model: Path) -> None:
    assert sizes.cache_gb(config(memory_limit_gb=10), str(model)) == pytest.approx(
        (9.75 - sizes.OVERHEAD_GB) * 0.8, 0.01
    )
    with pytest.raises(SettingsRefused, match=r"MEMORY_LIMIT_GB=1 is too little for this model: write 1\.7 or more"):
        sizes.cache_gb(config(memory_limit_gb=1), str(model))
    assert sizes.cache_gb(config(gpu_devices="0"), str(model)) is None


def test_environment_is_clean_and_settings_take_precedence(tmp_path: Path) -> None:
    unit = {"SECRET": "x", "LANG": "C.UTF-8", "CREDENTIALS_DIRECTORY": "/run/c", "VLLM_NO_USAGE_STATS": "1"}

    def environment(**settings: Any) -> dict[str, str]:
        return launch.environment(config(**settings), "/m", unit, tmp_path)

    values = environment(environment={"OMP_NUM_THREADS": "7"})
    assert "SECRET" not in values
    assert values["LANG"] == "C.UTF-8"
    assert (values["HF_HUB_OFFLINE"], values["GLOO_SOCKET_IFNAME"]) == ("1", "lo")
    assert values["VLLM_TARGET_DEVICE"] == "cpu"
    assert values["OMP_NUM_THREADS"] == "7"
    fetching = environment(allow_download=True, hub_token_file="/t")  # noqa: S106  a path
    assert (fetching["HF_HUB_OFFLINE"], fetching[HUB_TOKEN_PATH]) == ("1", "/run/c/hub-token")
    assert "HF_TOKEN_PATH" not in fetching, "every process would read it"
    assert HUB_TOKEN_PATH not in environment(hub_token_file="/t")  # noqa: S106  a path
    assert environment(allow_download=True)["HF_HUB_OFFLINE"] == "0"
    assert "GLOO_SOCKET_IFNAME" not in fetching
    assert environment(gpu_devices="0,1")["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "OMP_NUM_THREADS" not in environment(start_method="spawn")
    for cache in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "HOME"):
        assert values[cache].startswith(str(tmp_path)), "lost at a restart"
    assert values["TORCHDYNAMO_DISABLE"] == "1"
    assert environment(environment={"TORCHDYNAMO_DISABLE": "0"})["TORCHDYNAMO_DISABLE"] == "0"
    assert "TORCHDYNAMO_DISABLE" not in environment(gpu_devices="0")


def test_one_tensor_parallel_process_runs_within_the_engine(tmp_path: Path) -> None:
    def separate(flags: str) -> bool:
        return "VLLM_ENABLE_V1_MULTIPROCESSING" not in launch.environment(config(vllm_args=flags), "/m", {}, tmp_path)

    for flags in ("--seed 1", "-tp 1", "--tensor-parallel-size=1"):
        assert not separate(flags), flags
    for flags in ("-tp 2", "--tensor_parallel_size 2", "--tensor-par 2", "-pp 2"):
        assert separate(flags), flags


def test_flags_that_open_ports_are_found_in_any_spelling() -> None:
    assert launch.ports(config(vllm_args="--seed 1"))
    for flags in ("--nnodes 2", "-n 2", "-dp 2", "--master_po 29500", "--kv-transfer-config.kv_port 1"):
        assert launch.ports(config(vllm_args=flags)) is None, flags


def test_loaded_files_are_only_those_that_vllm_loads(model: Path) -> None:
    """For example in the root directory of a disk, beside lost+found."""
    (model / "lost+found").mkdir()
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "tokenizer.model",
        "modeling.py",
        "notes.md",
        "optimizer.bin",
    ):
        (model / name).touch()
    names = {file.name for file in model_directory.loaded_files(config(), model)}
    assert names == {"config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model", "model.safetensors"}
    with_code = model_directory.loaded_files(config(vllm_args="--trust-remote-code"), model)
    assert {file.name for file in with_code} - names == {"modeling.py"}


def test_a_small_model_leaves_a_core_to_the_api_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    weights = tmp_path / "model.safetensors"
    for size, cores, expected in ((1, 2, 1), (1, 1, 1), (1, 4, 3), (sizes.SMALL_MODEL_BYTES, 2, 2), (1, 64, 7)):
        with weights.open("wb") as file:
            file.truncate(size)
        assert sizes.threads(config(cpu_cores=cores), str(tmp_path)) == expected
    assert sizes.threads(config(cpu_cores=2), "org/name") == 2, "a model that is yet to be downloaded"
