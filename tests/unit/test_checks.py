import grp
import os
import pwd
import socket
from pathlib import Path
from stat import S_IFMT

import pytest

from hxp_enterprise_llm.checks import (
    account,
    arguments,
    disk,
    memory,
    permissions,
    ports,
    secrets,
    start,
    template,
    variables,
)
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.cli import doctor
from hxp_enterprise_llm.engine import model_directory
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import load_host, one_port_for_both

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT={}\n"
NOBODY = 65534


def config(**values: object) -> ServiceConfigSchema:
    return ServiceConfigSchema.model_validate({"name": "m", "model": "/srv/m", "port": 11500, **values})


def test_check_reports_port_conflict_missing_requirement_and_cycle(root: Root) -> None:
    root.instance("a", GOOD.format(11500))
    root.instance("b", GOOD.format(11500) + "REQUIRES=none\n")
    assert [str(finding) for finding in start.neighbours(str(root))] == [
        "b: port conflict: PORT=11500 is also the port of a; choose another port",
        "b: REQUIRES=none: there is no such instance; there are: a, b",
    ]
    (draft,) = (finding for finding in start.neighbours(str(root), {"a": str(root.defaults / "citadel-llm-a")})[:1])
    assert (draft.instance, "PORT=11500 is also the port of b" in draft.text) == ("a", True)
    root.instance("a", GOOD.format(11501) + "REQUIRES=b\n")
    root.instance("b", GOOD.format(11502) + "REQUIRES=a\n")
    cycle = start.neighbours(str(root))
    assert [finding.instance for finding in cycle] == ["a", "b"]
    assert "in a cycle" in cycle[0].text


def test_check_reports_monitor_port_and_missing_after_instance(root: Root) -> None:
    root.host("METRICS_PORT=11500\n")
    root.instance("a", GOOD.format(11500) + "AFTER='b none'\n")
    root.instance("b", GOOD.format(8000))
    assert [str(finding) for finding in start.neighbours(str(root))] == [
        "a: port conflict: PORT=11500 is the monitor's METRICS_PORT",
        "b: port conflict: PORT=8000 is the monitor's HEALTH_PORT",
        "a: AFTER=none: there is no such instance; a will not wait for it (a warning)",
    ]


def test_equal_health_and_metrics_port_is_reported_with_its_line(root: Root) -> None:
    assert one_port_for_both(load_host(str(root))) == ""
    root.host("# The monitor\nHEALTH_PORT=9090\n")
    (found,) = start.neighbours(str(root))
    assert (found.instance, found.fatal) == ("host", True)
    assert found.text.startswith(
        f"{root}/etc/default/citadel-llm:2: HEALTH_PORT=9090 is also the METRICS_PORT (built-in)"
    )
    root.host("METRICS_PORT=8100\nHEALTH_PORT=8100\n")
    diagnosis = doctor.monitor(str(root))
    assert diagnosis.verdict is doctor.Verdict.ERROR
    assert "citadel-llm:1: METRICS_PORT=8100 is also the HEALTH_PORT" in diagnosis.text
    assert "citadel-llm:2)" in diagnosis.text


def test_missing_or_world_readable_key_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    said = secrets.findings(config(api_key_file=str(file)))
    assert said[0].fatal and f"{file} does not exist; create it with: citadel-llm key add m" in said[0].text
    file.write_text("k")
    file.chmod(0o644)
    (open_to_all,) = secrets.findings(config(api_key_file=str(file)))
    assert not open_to_all.fatal and f"chmod 600 {file}" in open_to_all.text
    file.chmod(0o600)
    assert secrets.findings(config(api_key_file=str(file))) == []
    assert "not a regular file" in secrets.findings(config(api_key_file=str(tmp_path)))[0].text
    assert secrets.findings(config()) == []


def test_key_file_writable_by_the_service_user_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    file = keys / "m.keys"
    keys.mkdir()
    file.write_text("k")
    mine = (file.stat().st_uid, file.stat().st_gid)
    # Parent directories belong to other users on a host where the tests do not run as root.
    safe = [*tmp_path.parents, tmp_path, keys, file]
    bits = {place: (0 if place in tmp_path.parents else 0o700, *mine) for place in safe}
    real = Path.stat

    def stat(self: Path, **words: bool) -> os.stat_result:
        if self not in bits:
            return real(self, **words)
        mode, user, group = bits[self]
        kind = S_IFMT(real(self).st_mode)
        return os.stat_result((kind | mode, 0, 0, 0, user, group, 0, 0, 0, 0))

    monkeypatch.setattr(Path, "stat", stat)

    def place() -> Path | None:
        return permissions.changeable_by(file, NOBODY, [NOBODY])

    assert place() is None
    for where, mode, user, group, found in (
        (file, 0o600, NOBODY, 0, True),
        (file, 0o620, 0, NOBODY, True),
        (file, 0o660, 0, 0, False),
        (file, 0o602, 0, 0, True),
        (keys, 0o500, NOBODY, 0, True),
        (keys, 0o777, 0, 0, True),
        (keys, 0o770, 0, 0, False),
        (keys, 0o1777, 0, 0, False),
        (keys, 0o1700, NOBODY, 0, True),
        (tmp_path, 0o777, 0, 0, True),
    ):
        before = bits[where]
        bits[where] = (mode, user, group)
        assert place() == (where if found else None), (where, oct(mode), user, group)
        bits[where] = before
    # A link is only as safe as the directories that contain it and its target.
    link = tmp_path / "link"
    link.symlink_to(file)
    bits[tmp_path] = (0o777, 0, 0)
    assert permissions.changeable_by(link, NOBODY, [NOBODY]) == tmp_path
    bits[tmp_path], bits[keys] = (0o755, 0, 0), (0o755, NOBODY, 0)
    assert permissions.changeable_by(link, NOBODY, [NOBODY]) == keys
    monkeypatch.setattr("pwd.getpwnam", lambda _: pwd.struct_passwd(("x", "", NOBODY, NOBODY, "", "", "")))
    monkeypatch.setattr("os.getgrouplist", lambda *_: [NOBODY])
    (warning,) = permissions.changeable(config(api_key_file=str(link)), ServiceManagerConfig())
    assert not warning.fatal and f"may change {keys}; move the file" in warning.text


def test_memory_limits_beyond_the_host_are_a_warning() -> None:
    (finding,) = memory.findings([config(memory_limit_gb=60000), config(name="n", memory_limit_gb=1)])
    assert not finding.fatal
    assert "60001 GB (m 60000, n 1)" in finding.text
    (alone,) = memory.findings([config(memory_limit_gb=60000)])
    assert alone.text.startswith("MEMORY_LIMIT_GB=60000 of m exceeds the host's memory")
    assert memory.findings([config(memory_limit_gb=0.5)]) == []


def test_missing_account_error_suggests_adduser() -> None:
    found = account.findings("m", ServiceManagerConfig(user="no-such-user", group="root"))
    assert [finding.text for finding in found] == [
        "the user no-such-user does not exist; create it (adduser --system --group no-such-user)"
    ]


def test_users_of_their_own_read_files_by_their_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grp.getgrnam", lambda _: grp.struct_group(("models", "", NOBODY, [])))
    reader = permissions.Reader.of(ServiceManagerConfig(user="dynamic", group="models"))
    assert reader == ("the group models", permissions.NO_USER, [NOBODY])


def test_first_unreadable_path_is_named(tmp_path: Path) -> None:
    for parent in [tmp_path, *list(tmp_path.parents)[:-2]]:
        parent.chmod(0o755)
    inner = tmp_path / "model"
    inner.mkdir(mode=0o755)
    file = inner / "model.safetensors"
    file.write_text("")
    file.chmod(0o644)
    assert permissions.readable_by(file, NOBODY, []) is None
    file.chmod(0o600)
    assert permissions.readable_by(file, NOBODY, []) == file
    inner.chmod(0o700)
    assert permissions.readable_by(file, NOBODY, []) == inner


def test_advice_opens_no_more_than_the_files_of_the_model(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("config.json", "tokenizer.json", "a b.safetensors", "blob")]
    for file in files:
        file.touch()
    assert permissions.opening(files[2:3]) == f"chmod a+r '{files[2]}'"
    assert permissions.opening([tmp_path, *files]) == f"chmod a+rx {tmp_path}"
    assert permissions.opening([*files, tmp_path.parent]) == (
        f"chmod a+r {tmp_path}/*.json {tmp_path}/*.safetensors {tmp_path}/blob"
    )


def test_unreadable_file_of_a_downloaded_model_is_opened_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "org/name"
    model.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    closed = str(model / "tokenizer.json")
    # Root may read every file.
    monkeypatch.setattr(os, "access", lambda file, _: str(file) != closed)
    with pytest.raises(ModelMissing, match=f"chmod 644 {closed}"):
        model_directory.find_model(config(model="org/name"), tmp_path)


def test_settings_file_that_the_monitor_cannot_read_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "citadel-llm-m"
    assert not permissions.readable_by_monitor("m", str(file)), "a missing file is reported elsewhere"
    file.touch(0o640)
    file.chmod(0o640)
    (finding,) = permissions.readable_by_monitor("m", str(file))
    assert (finding.instance, finding.fatal) == ("m", False)
    assert finding.text.endswith(f"chmod 644 {file}")
    file.chmod(0o644)
    assert not permissions.readable_by_monitor("m", str(file))


def test_port_in_use_error_names_the_process(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = config(port=listener.getsockname()[1])
        (finding,) = ports.listening(taken)
        assert finding.status == 69
        assert "(pid " in finding.text
        # The listener is not the running instance: its settings name another port than it was started with.
        assert ports.listening(taken, running=True) == [finding]
        own = tmp_path / str(os.getpid())
        own.mkdir()
        (own / "cgroup").write_text("0::/citadel.slice/citadel-llm.slice/citadel-llm@m.service\n")
        assert ports.listening(taken, running=True, proc=tmp_path) == []
    assert ports.listening(taken) == []


def test_missing_template_link_is_reported(root: Root) -> None:
    root.host("VLLM_SERVICE_TEMPLATE_PATH=/srv/units\n")
    (finding,) = template.findings(str(root))
    assert (finding.fatal, "/srv/units/citadel-llm@.service" in finding.text) == (False, True)
    (root.path / "srv/units").mkdir(parents=True)
    (root.path / "srv/units/citadel-llm@.service").touch()
    assert template.findings(str(root)) == []


def test_low_disk_space_is_a_warning(tmp_path: Path) -> None:
    assert "is missing" in disk.findings(tmp_path / "none")[0].text
    assert "make room" in disk.findings(tmp_path, wanted_bytes=2**62)[0].text


def test_port_holder_is_named_by_instance_and_unit(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("0::/citadel.slice/citadel-llm.slice/citadel-llm@phi-3-mini.service\n")
    assert ports.holder(7, tmp_path) == "the instance phi-3-mini (citadel-llm@phi-3-mini.service, pid 7)"
    assert ports.holder(8, tmp_path) == "pid 8, which has ended since"
    assert "only root" in ports.holder(None)


def test_unexpected_exception_is_a_finding_of_its_instance() -> None:
    def check() -> list[Finding]:
        raise RuntimeError("surprise")

    (finding,) = start.guarded("m", check)
    assert (finding.instance, finding.fatal, finding.status) == ("m", True, 1)
    assert "RuntimeError: surprise" in finding.text


def test_compilation_flag_is_refused_on_a_cpu() -> None:
    for flag in ("--no-enforce-eager", "--no_enforce_eager", "--no-enforce"):
        (finding,) = arguments.findings(config(vllm_args=(flag,)))
        assert "nothing is compiled" in finding.text
        assert arguments.findings(config(gpu_devices="0", vllm_args=(flag,))) == []


@pytest.mark.parametrize(
    "words",
    [
        "--tokenizer {}/none",
        "--chat-template={}/none.jinja",
        "--lora-modules a={}/none",
        '--lora-modules {{"name":"a","path":"{}/none"}}',
        '--speculative-config {{"model":"{}/none"}}',
    ],
)
def test_missing_file_of_a_flag_is_reported(tmp_path: Path, words: str) -> None:
    given = tuple(words.format(tmp_path).split())
    (finding,) = arguments.findings(config(vllm_args=given), private=())
    assert finding.fatal and f"{tmp_path}/none" in finding.text and "does not exist" in finding.text
    (finding,) = arguments.findings(config(vllm_args=given), private=(str(tmp_path),))
    assert f"services cannot see {tmp_path}" in finding.text
    present = tuple(word.replace("/none", "") for word in given if "jinja" not in word)
    assert arguments.findings(config(vllm_args=present), private=()) == []


def test_unreadable_file_of_a_flag_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwnam", lambda _: pwd.struct_passwd(("x", "", os.getuid() + 1, NOBODY, "", "", "")))
    monkeypatch.setattr("os.getgrouplist", lambda *_: [NOBODY])
    closed = tmp_path / "closed"
    closed.write_text("")
    closed.chmod(0o600)
    (finding,) = permissions.of_flags(config(vllm_args=("--chat-template", str(closed))), ServiceManagerConfig())
    # Above it may be directories that the user cannot enter either.
    assert finding.fatal and "may not read" in finding.text and "chmod -R" not in finding.text
    assert permissions.of_flags(config(vllm_args=("--tokenizer", f"{closed}/none")), ServiceManagerConfig()) == []
    assert permissions.of_flags(config(vllm_args=("--tokenizer", "/usr")), ServiceManagerConfig()) == []


def test_values_that_are_no_paths_are_not_looked_up() -> None:
    words = ("--tokenizer", "org/none", "--chat-template", "/{{ x }}", "--lora-modules", "a=org/none")
    assert arguments.findings(config(vllm_args=words)) == []


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("VLLM_PORT=abc", "a whole number"),
        ("VLLM_PORT=", "a whole number"),
        ("VLLM_LOG_STATS_INTERVAL=x", "a number"),
        ("VLLM_LOGGING_LEVEL=LOUD", "one of CRITICAL"),
        ("VLLM_WORKER_MULTIPROC_METHOD=Fork", "one of spawn, fork"),
        ("VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS=container,x", "one of container"),
    ],
)
def test_variable_that_vllm_cannot_read_is_refused(variable: str, wanted: str) -> None:
    name, _, value = variable.partition("=")
    (finding,) = variables.findings(config(environment={name: value}))
    assert finding.fatal and finding.text.startswith(f"{variable} is not {wanted}")


def test_variables_that_vllm_can_read_are_accepted() -> None:
    good = {
        "VLLM_PORT": "5000",
        "VLLM_LOG_STATS_INTERVAL": "1.5",
        "VLLM_LOGGING_LEVEL": "debug",
        "VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS": "container, code_interpreter",
        "VLLM_HOST_IP": "any text",
        "VLLM_UNKNOWN": "x",
        "OMP_NUM_THREADS": "x",
    }
    assert variables.findings(config(environment=good)) == []


def test_every_middleware_is_checked() -> None:
    words = (
        "--middleware",
        "os.system",
        "--middleware=hxp_enterprise_llm.worker.traffic.Traffic",
        "--middl",
        "a.X",
    )
    found = arguments.findings(config(vllm_args=words))
    assert [finding.text.split()[2] for finding in found] == ["os.system", "a.X"]
