"""Changes of a settings file: its new content, and errors that leave it unchanged."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.cli import edit, files
from hxp_enterprise_llm.cli.edit import Effect
from hxp_enterprise_llm.control.service import Service, State
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import NoSuchInstance, SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

from .conftest import Root

COMMENTED = """\
# Settings of a
MODEL=/srv/m

  # the port's own comment
  PORT=11400

#MAX_TASKS=100

OMP_NUM_THREADS='2'


"""


def changed(root: Root, **values: str | None) -> str:
    """The settings file of `a` after a change."""
    with edit.draft("a", values, str(root)) as draft:
        files.put(draft, root.defaults / "citadel-llm-a")
    return (root.defaults / "citadel-llm-a").read_text()


def test_comments_blank_lines_and_order_stay(root: Root) -> None:
    file = root.instance("a", COMMENTED)
    file.chmod(0o640)
    assert changed(root, PORT="11500") == COMMENTED.replace("  PORT=11400", "PORT=11500")
    assert changed(root, PORT="11400", MAX_TASKS="500") == COMMENTED.replace("  PORT", "PORT") + "MAX_TASKS=500\n"
    assert changed(root, MAX_TASKS=None, OMP_NUM_THREADS=None) == COMMENTED.replace("  PORT", "PORT").replace(
        "OMP_NUM_THREADS='2'\n", ""
    )
    assert file.stat().st_mode & 0o777 == 0o640


def test_missing_final_newline_is_added(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400")
    assert changed(root, MAX_TASKS="500") == "MODEL=/srv/m\nPORT=11400\nMAX_TASKS=500\n"


@pytest.mark.parametrize(
    "value",
    [
        '--hf-overrides={"a":1}',
        "--hf-overrides '{\"a\": [1, 2]}'".replace("'", ""),
        "--chat-template it's",
        "--seed 1 # no comment",
        "--seed=1",
        "--x é日",
    ],
)
def test_representable_values_are_read_back_unchanged(root: Root, value: str) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    with edit.draft("a", {"OMP_TEST": value}, str(root)) as draft:
        settings, warnings = config.load("a", str(root), str(draft))
    assert (settings.environment, warnings) == ({"OMP_TEST": value}, [])


@pytest.mark.parametrize(
    ("before", "values"),
    [
        ("MODEL=/srv/m\nPORT=11400\n", {"PORT": "80"}),
        ("MODEL=/srv/m\nPORT=11400\n", {"PORT": None}),
        ("MODEL=/srv/m\nPORT=11400\n", {"MODEL": "/srv/x\nALLOW_DOWNLOAD=yes"}),
        ("MODEL=/srv/m\nPORT=11400\n", {"MODEL": "/srv/x\0"}),
        ("MODEL=/srv/m\nPORT=11400\n", {"OMP_X": "\udcff"}),
        ("MODEL=/srv/m\nPORT=11400\n", {"OMP_X": "$HOME"}),
        # Another line is refused, and python-dotenv would read some of these as a part of the first.
        ("MODEL=/srv/m\nPORT=11400\nHOST=x\n", {"PORT": "11500"}),
        ("MODEL=/srv/m\nOMP_X='a\nPORT=11400\n# it's\n", {"OMP_X": "b"}),
        ("MODEL=/srv/m\nOMP_X=a\rPORT=11400\n", {"OMP_X": "b"}),
        ("MODEL=/srv/m\n# x\rPORT=11400\n", {"OMP_X": "b"}),
        ("MODEL=/srv/m\r\nPORT=11400\r\n", {"PORT": "11500"}),
    ],
)
def test_refused_change_leaves_the_file_unchanged(root: Root, before: str, values: dict[str, str | None]) -> None:
    file = root.defaults / "citadel-llm-a"
    file.write_bytes(before.encode())
    with pytest.raises(SettingsRefused) as refused:
        changed(root, **values)
    assert {finding.file for finding in refused.value.findings} <= {str(file), edit.NOTHING_CHANGED}
    assert file.read_bytes() == before.encode()
    assert [entry.name for entry in root.defaults.iterdir()] == [file.name]


def test_errors_of_other_lines_have_their_place_in_the_file(root: Root) -> None:
    file = root.defaults / "citadel-llm-a"
    file.write_bytes(b"OMP_X=1\nMODEL=/srv/m\nHOST=x\nPORT=11400\nCPU_CORES=x\n")
    with pytest.raises(SettingsRefused) as refused:
        changed(root, OMP_X=None, PORT="80")
    assert {(finding.file, finding.line) for finding in refused.value.findings} == {
        (str(file), 3),
        (str(file), 5),
        (edit.NOTHING_CHANGED, 0),
    }


def test_ignored_key_is_written_with_a_warning_that_names_the_nearest_key(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    changed(root, MAX_TASK="500", LOG_TO_FILE="yes")
    _, warnings = config.load("a", str(root))
    assert [finding.text.split("; ")[1] for finding in warnings] == [
        "did you mean MAX_TASKS?",
        "set it in /etc/default/citadel-llm",
    ]
    assert edit.effects({"MAX_TASK": "500", "LOG_TO_FILE": "yes"}, OLD, OLD) == {
        "MAX_TASK": Effect.NONE,
        "LOG_TO_FILE": Effect.NONE,
    }


def test_changes_of_a_stopped_instance_need_a_start() -> None:
    assert edit.effects({"MAX_TASKS": "500"}, OLD, OLD, running=False) == {"MAX_TASKS": Effect.START}


def test_a_refused_line_is_corrected(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT = 80\n")
    assert changed(root, PORT="11500") == "MODEL=/srv/m\nPORT=11500\n"


def test_a_symbolic_link_is_refused(root: Root, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("MODEL=/srv/m\nPORT=11400\n")
    (root.defaults / "citadel-llm-a").symlink_to(target)
    with pytest.raises(SettingsRefused):
        changed(root, PORT="11500")
    assert target.read_text() == "MODEL=/srv/m\nPORT=11400\n"


def test_draft_of_a_killed_command_is_deleted(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    left = root.defaults / edit.WORKSPACE
    left.mkdir()
    (left / "citadel-llm-a").write_text("MODEL=/srv/other\n")
    changed(root, PORT="11500")
    assert not left.exists()
    assert config.load("a", str(root))[0].port == 11500


def test_change_of_instance_without_file_is_refused(root: Root) -> None:
    with pytest.raises(NoSuchInstance):
        changed(root, PORT="11500")


OLD = ServiceConfigSchema(name="a", model="/srv/m", port=11400, environment={"OMP_X": "1"})


@pytest.mark.parametrize(
    ("key", "update", "effect"),
    [
        ("MAX_TASKS", {"max_tasks": 500}, Effect.NOW),
        ("RESTART_SEC", {"restart_sec": 1.0}, Effect.NOW),
        ("MEMORY_LIMIT_GB", {"memory_limit_gb": 5.0}, Effect.PARTLY),
        ("KV_CACHE_GB", {"kv_cache_gb": 0.5}, Effect.RELOAD),
        ("VLLM_ARGS", {"vllm_args": ("--seed", "1")}, Effect.RELOAD),
        ("OMP_X", {"environment": {}}, Effect.RELOAD),
        ("API_KEY_FILE", {"api_key_file": "/etc/citadel-llm/a.keys"}, Effect.RELOAD),
        ("PORT", {"port": 11500}, Effect.RESTART),
        ("HOST", {"host": "::1"}, Effect.RESTART),
        ("GPU_DEVICES", {"gpu_devices": ("0",)}, Effect.RESTART),
        ("VLLM_ARGS", {"vllm_args": ("--data-parallel-size", "2")}, Effect.RESTART),
        # The value is the same, and now written to the file.
        ("HOST", {}, Effect.NOW),
    ],
)
def test_effect_of_a_change_is_now_reload_or_restart(key: str, update: dict[str, Any], effect: Effect) -> None:
    assert edit.effects({key: "x"}, OLD, OLD.model_copy(update=update)) == {key: effect}


def test_previously_refused_settings_require_a_restart() -> None:
    assert edit.effects({"PORT": "11500", "MAX_TASKS": "100"}, None, OLD) == {
        "PORT": Effect.RESTART,
        "MAX_TASKS": Effect.NOW,
    }


def running(**figures: int) -> Service:
    service = Service.seen("a", OLD, (), {"MainPID": 1}, None)
    return service.model_copy(update={"state": State.READY, "since": datetime.now(UTC), **figures})


@pytest.mark.parametrize(
    ("update", "refused"),
    [
        ({"memory_limit_gb": 1.0}, "MEMORY_LIMIT_GB=1"),
        ({"memory_limit_gb": 2.0}, ""),
        ({"max_tasks": 64}, "MAX_TASKS=64"),
        ({"max_tasks": 70}, ""),
    ],
)
def test_limit_below_current_use_is_refused(update: dict[str, Any], refused: str) -> None:
    service = running(memory_bytes=3 * 2**29, memory_limit_bytes=4 * 2**30, tasks=70, tasks_limit=1000)
    new = OLD.model_copy(update=update)
    if not refused:
        edit.check_use(new, service)
        return
    with pytest.raises(SettingsRefused, match=refused):
        edit.check_use(new, service)


def test_limit_that_is_not_lowered_is_not_checked() -> None:
    service = running(memory_bytes=3 * 2**29, memory_limit_bytes=2**30, tasks=700, tasks_limit=64)
    edit.check_use(OLD.model_copy(update={"memory_limit_gb": 1.25, "max_tasks": 64}), service)
