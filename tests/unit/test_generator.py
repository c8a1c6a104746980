import os
import re
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.generator import drop_ins
from hxp_enterprise_llm.generator.drop_ins import DROP_IN, MAX_INSTANCES, RESOLVERS, Directive, generate
from hxp_enterprise_llm.settings.units import MONITOR, user_name
from hxp_enterprise_llm.settings.values import load_instance

from .conftest import Root
from .generated import GOOD, drop_in, files, made, path_of


def test_limits_follow_the_settings_file(root: Root) -> None:
    root.instance("m", GOOD + "MEMORY_LIMIT_GB=0.5\nCPU_CORES=1.5\nMAX_TASKS=200\nRESTART_SEC=3\nDRAIN_TIMEOUT_SEC=5\n")
    lines = drop_in(root, "m").splitlines()
    for expected in ("MemoryMax=536870912", "CPUQuota=150%", "TasksMax=200", "RestartSec=3s", "TimeoutStopSec=20s"):
        assert expected in lines
    assert int(next(line for line in lines if line.startswith("MemoryHigh=")).split("=")[1]) < 536870912


def test_refused_file_gets_host_limits_and_affects_no_other_instance(root: Root) -> None:
    root.host("DEFAULT_MEMORY_LIMIT_GB=2\n")
    root.instance("bad", GOOD + "MEMORY_LIMIT_GB=lots\nCPU_CORES=8\n")
    root.instance("good", GOOD + "MEMORY_LIMIT_GB=1\n")
    bad = drop_in(root, "bad")
    assert "MemoryMax=2147483648\n" in bad
    assert "CPUQuota=200%\n" in bad
    assert "MemoryMax=1073741824\n" in drop_in(root, "good")


def test_requires_and_after_become_unit_dependencies(root: Root) -> None:
    root.instance("m", GOOD + "REQUIRES='a b'\nAFTER=c,m\n")
    text = drop_in(root, "m")
    assert "Requires=citadel-llm@a.service citadel-llm@b.service\n" in text
    assert "After=citadel-llm@a.service citadel-llm@b.service citadel-llm@c.service\n" in text


def test_start_waits_for_mount_of_its_model(root: Root) -> None:
    root.instance("m", GOOD)
    assert "After=srv-m.mount srv.mount\n" in drop_in(root, "m")
    root.instance("m", "MODEL=org/name-1\nPORT=11500\n")
    assert r" var-lib-citadel\x2dllm-models.mount " in drop_in(root, "m")
    assert drop_ins.mounts_above("/.a/@b+c/d") == [
        r"\x2ea.mount",
        r"\x2ea-\x40b\x2bc.mount",
        r"\x2ea-\x40b\x2bc-d.mount",
    ]
    root.instance("m", "MODEL=" + "/a-" * 1000 + "\nPORT=11500\n")
    assert drop_in(root, "m").count(".mount") == drop_ins.DEEPEST_MOUNT
    root.instance("m", "MODEL=/usr/share/m\nPORT=11500\n")
    assert "After" not in drop_in(root, "m")


def test_credentials_are_loaded_or_marked_missing_with_their_mounts(root: Root) -> None:
    large = root.path / "large"
    large.write_bytes(b"")
    os.truncate(large, (1 << 20) + 1)
    root.host(f"TLS_CERT_FILE=/srv/host.pem\nTLS_KEY_FILE={root}\n")
    root.instance("m", GOOD + f"API_KEY_FILE=/srv/keys\nHUB_TOKEN_FILE={large}\n")
    lines = drop_in(root, "m").splitlines()
    for name, file, loaded in (
        ("api-key", "/srv/keys", True),
        ("tls-cert", "/srv/host.pem", True),
        ("tls-key", str(root), False),
    ):
        assert f"RequiresMountsFor={file}" in lines
        assert f"SetCredential={name}:not there" in lines
        # If systemd cannot load the file, it fails the start without a reason.
        assert (f"LoadCredential={name}:{file}" in lines) == loaded
    assert not [line for line in lines if "hub-token" in line], "its start does not use the hub"
    root.instance("m", GOOD + f"HUB_TOKEN_FILE={large}\nALLOW_DOWNLOAD=yes\n")
    lines = drop_in(root, "m").splitlines()
    assert "SetCredential=hub-token:not there" in lines and f"LoadCredential=hub-token:{large}" not in lines


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ("", []),
        ("HOST=127.0.0.1\n", []),
        ("HOST=::1\n", []),
        ("HOST=127.0.0.9\n", ["127.0.0.9"]),
        ("HOST=192.0.2.7\nALLOW_UNAUTHENTICATED=yes\n", ["any"]),
        ("HOST=0.0.0.0\nALLOW_UNAUTHENTICATED=yes\n", ["any"]),
        ("ALLOW_DOWNLOAD=yes\n", ["any"]),
    ],
)
def test_network_beyond_host_is_allowed_only_for_clients_or_downloads(
    root: Root, settings: str, allowed: list[str]
) -> None:
    root.instance("m", GOOD + settings)
    lines = drop_in(root, "m").splitlines()
    assert [line for line in lines if line.startswith("IPAddressAllow")] == [f"IPAddressAllow={one}" for one in allowed]
    # /etc/resolv.conf may link to a directory in /run.
    assert (f"BindReadOnlyPaths={RESOLVERS}" in lines) == (allowed == ["any"])


def test_devices_are_allowed_only_for_a_gpu(root: Root) -> None:
    root.instance("m", GOOD)
    closed = drop_in(root, "m")
    assert "PrivateDevices" not in closed and "DeviceAllow" not in closed
    shared = ["DeviceAllow=char-nvidia-uvm rw", "DeviceAllow=char-nvidia-caps r"]
    for devices, own in (
        ("0,12", ["/dev/nvidia0 rw", "/dev/nvidia12 rw", "/dev/nvidiactl rw", "/dev/nvidia-modeset rw"]),
        ("all", ["char-nvidia rw", "char-nvidia-frontend rw"]),
    ):
        root.instance("m", GOOD + f"GPU_DEVICES={devices}\n")
        opened = [line for line in drop_in(root, "m").splitlines() if "Device" in line]
        assert opened == ["PrivateDevices=no", *(f"DeviceAllow={rule}" for rule in own), *shared]
    # A refused file allows nothing.
    root.instance("m", GOOD + "GPU_DEVICES=0\nALLOW_DOWNLOAD=yes\nHOST=0.0.0.0\nPORT=x\n")
    refused = drop_in(root, "m")
    opening = {"PrivateDevices", "DeviceAllow", "IPAddressAllow", "LoadCredential", "BindReadOnlyPaths"}
    assert not opening & set(re.findall(r"^\w+", refused, re.M))


@pytest.mark.parametrize("run_time", ["citadel-llm", "other/place"])
def test_only_a_gpu_instance_executes_code_from_its_cache(root: Root, run_time: str) -> None:
    root.host(f"VLLM_PID_PATH=/run/{run_time}\n")

    def paths(settings: str) -> list[str]:
        root.instance("m", GOOD + settings)
        lines = drop_in(root, "m").splitlines()
        return [line.partition("=")[2] for line in lines if line.startswith("NoExecPaths=")]

    assert paths("") == ([] if run_time == "citadel-llm" else [f"-/run/{run_time}/m"])
    # An empty value removes the paths of the template.
    assert paths("GPU_DEVICES=0\n") == ["", f"-/run/{run_time}/m"]
    root.host(f"VLLM_PID_PATH=/run/{run_time}\nVLLM_USER=dynamic\n")
    assert paths("") == ["", "-/var/cache/private/citadel-llm/m", f"-/run/{run_time}/m"]
    assert paths("GPU_DEVICES=0\n") == ["", f"-/run/{run_time}/m"]


@pytest.mark.parametrize("refused", ["/run/systemd", "/run/systemd/x", "/run/credentials", "/run/./x", "/run/x/.."])
def test_runtime_directories_of_other_instances_are_hidden(root: Root, refused: str) -> None:
    root.host("VLLM_PID_PATH=/var/run/other/place\n")
    root.instance("m", GOOD)
    lines = drop_in(root, "m").splitlines()
    assert "RuntimeDirectory=other/place/m" in lines
    assert "TemporaryFileSystem=/run/other/place:ro" in lines
    # systemd's own sockets would be hidden with them.
    root.host(f"VLLM_PID_PATH={refused}\n")
    assert "RuntimeDirectory" not in drop_in(root, "m")


def test_instance_may_have_a_user_of_its_own(root: Root) -> None:
    root.host("VLLM_USER=dynamic\nVLLM_GROUP=models\n")
    root.instance("m", GOOD)
    lines = drop_in(root, "m").splitlines()
    assert {"DynamicUser=yes", f"User={user_name('m')}", "Group=models"} <= {*lines}
    # systemd would put the directory where only root may enter.
    assert [line for line in lines if "/run/" in line or "RuntimeDirectory" in line] == [
        "RuntimeDirectory=",
        "ExecStartPre=+/usr/bin/nsenter --target=1 --mount install -d -o root -g models -m 0775 /run/citadel-llm/m",
        "BindPaths=-/run/citadel-llm/m",
        "Environment=RUNTIME_DIRECTORY=/run/citadel-llm/m",
        "NoExecPaths=-/run/citadel-llm/m",
    ]
    root.host("VLLM_USER=dynamic\nVLLM_PID_PATH=/run/other\n")
    lines = drop_in(root, "m").splitlines()
    assert {"BindPaths=-/run/other/m", "TemporaryFileSystem=/run/other:ro", "RuntimeDirectory="} <= {*lines}


def test_every_instance_has_another_user_name_that_systemd_allows() -> None:
    names = ["a", "A", "a.b", "a-b", "a_b", "0", "x" * 64, "x" * 63 + "y", "openchat-3.5", "mixtral-8x7b"]
    users = {user_name(name) for name in names}
    assert len(users) == len(names)
    assert all(re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", user) for user in users), users
    assert user_name("mixtral-8x7b").startswith("llm-mixtral-8x7b-")


def test_monitor_may_reach_instances_and_serve_its_address(root: Root) -> None:
    file = root.path / f"run/{MONITOR}.d" / DROP_IN
    root.instance("m", GOOD + "HOST=0.0.0.0\n")
    drop_in(root, "m")
    assert not file.exists()
    root.instance("m", GOOD + "HOST=192.0.2.7\n")
    drop_in(root, "m")
    assert [line for line in file.read_text().splitlines() if line[0] != "#"] == [
        "[Service]",
        "IPAddressAllow=192.0.2.7",
    ]
    root.host("SERVER_IP=192.0.2.8\n")
    drop_in(root, "m")
    assert "IPAddressAllow=any\n" in file.read_text()
    assert "After=network-online.target\n" in file.read_text()


def test_no_settings_produce_no_drop_in(tmp_path: Path) -> None:
    generate(str(tmp_path / "run"), str(tmp_path))
    assert not list(tmp_path.rglob("*.conf"))


@pytest.mark.parametrize("error", [RuntimeError("secret"), MemoryError(), RecursionError(), KeyError("x")])
def test_unexpected_exception_affects_one_instance(
    root: Root, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("a", "bad", "z"):
        root.instance(name, GOOD)
    before, _ = made(root)

    def load(name: str, *arguments: Any) -> Any:
        if name == "bad":
            raise error
        return load_instance(name, *arguments)

    monkeypatch.setattr(drop_ins, "load_instance", load)
    (root.path / "run").rename(root.path / "earlier")
    after, said = made(root)
    assert after == {path: text for path, text in before.items() if "@bad" not in path}
    (sentence,) = said
    assert "citadel-llm-bad: " + type(error).__name__ in sentence
    assert "secret" not in sentence


def test_unexpected_exception_in_host_file_leaves_built_in_values(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str) -> Any:
        raise RuntimeError

    root.instance("m", GOOD)
    without, _ = made(root)
    monkeypatch.setattr(drop_ins, "load_host", load)
    assert made(root)[0] == without


def test_output_does_not_depend_on_file_order_or_environment(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        root.instance(f"m{number}", GOOD + f"HOST=192.0.2.{number}\nREQUIRES='m1 m2'\n")
    first, _ = made(root)
    real = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self.entries = list(entries)
            self.entries.sort(key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    for variable in ("LC_ALL", "LANG", "TZ", "HOME", "PYTHONHASHSEED"):
        monkeypatch.setenv(variable, "tr_TR.ISO-8859-9")
    monkeypatch.chdir("/")
    (root.path / "run").rename(root.path / "earlier")
    assert made(root)[0] == first


def test_drop_in_is_written_completely_or_not_at_all(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.instance("m", GOOD)
    root.instance("n", GOOD)
    before, _ = made(root)
    root.instance("m", GOOD + "MEMORY_LIMIT_GB=1\n")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        after, said = made(root)
    assert after == before
    assert said == [
        f"the drop-in of citadel-llm@{name}.service cannot be written: No space left on device" for name in "mn"
    ]


def test_output_stays_below_its_directory(root: Root) -> None:
    root.instance("m", GOOD)
    root.instance("n", GOOD)
    outside = root.path / "outside"
    outside.mkdir()
    (root.path / "run").mkdir()
    (root.path / "run/citadel-llm@m.service.d").symlink_to(outside)
    folder = root.path / "run/citadel-llm@n.service.d"
    folder.mkdir()
    (outside / "file").write_text("untouched")
    (folder / DROP_IN).symlink_to(outside / "file")
    (folder / f"{DROP_IN}.part").symlink_to(outside / "file")
    _, said = made(root)
    assert files(outside) == {"file": "untouched"}
    assert len(said) == 2
    assert not (folder / f"{DROP_IN}.part").is_symlink()
    made(root)
    # A link in place of the drop-in is replaced, not followed.
    assert files(outside) == {"file": "untouched"}
    assert not (folder / DROP_IN).is_symlink()


def test_instances_above_the_limit_get_no_drop_in(root: Root) -> None:
    for number in range(MAX_INSTANCES + 2):
        root.instance(f"m{number:05}", GOOD)
    written, said = made(root)
    assert len(written) == MAX_INSTANCES
    assert path_of(f"m{MAX_INSTANCES:05}") not in written
    assert f"{MAX_INSTANCES + 2} instances" in said[0]
    assert len(said) == 1


def test_unreadable_or_unwritable_directory_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/default").write_text("no directory")
    generate(str(tmp_path / "run"), str(tmp_path), lambda finding: said.append(str(finding)))
    assert "Not a directory" in said[0]
    generate(str(tmp_path / "etc/default/x"), str(tmp_path), lambda finding: said.append(str(finding)))
    assert "cannot be written" in said[1]
    assert len(said) == 2


@pytest.mark.parametrize(
    "value", ["a\nUser=root", "a\\", "a\r", "$X", "a'b", 'a"b', "é", "a;b", "a\0", "a\u2028b", "#", "[x]"]
)
def test_directive_refuses_unsafe_values(value: str) -> None:
    with pytest.raises(ValueError, match="User= would contain"):
        str(Directive("User", value))


def test_percent_sign_is_not_read_as_specifier() -> None:
    assert str(Directive("LoadCredential", "k:/srv/100%n")) == "LoadCredential=k:/srv/100%%n"
    assert str(Directive("CPUQuota", "150%")) == "CPUQuota=150%"


def test_a_refused_file_is_named_in_its_drop_in(root: Root) -> None:
    root.instance("bad", "PORT=1\n")
    assert "is refused; these are the host-wide limits. Reason: citadel-llm check bad" in drop_in(root, "bad")
