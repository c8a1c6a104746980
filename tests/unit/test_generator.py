from pathlib import Path

from hxp_enterprise_llm.generator import DROP_IN, MONITOR, generate

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


def drop_in(root: Root, name: str) -> str:
    output = root.path / "run"
    generate(str(output), str(root))
    return Path(output, f"citadel-llm@{name}.service.d", DROP_IN).read_text()


def test_limits_of_the_settings_file(root: Root) -> None:
    root.instance("m", GOOD + "MEMORY_LIMIT_GB=0.5\nCPU_CORES=1.5\nMAX_TASKS=200\nRESTART_SEC=3\nDRAIN_TIMEOUT_SEC=5\n")
    lines = drop_in(root, "m").splitlines()
    for expected in ("MemoryMax=536870912", "CPUQuota=150%", "TasksMax=200", "RestartSec=3s", "TimeoutStopSec=20s"):
        assert expected in lines
    assert int(next(line for line in lines if line.startswith("MemoryHigh=")).split("=")[1]) < 536870912


def test_a_bad_file_gets_the_host_wide_limits_and_harms_no_other(root: Root) -> None:
    root.host("DEFAULT_MEMORY_LIMIT_GB=2\n")
    root.instance("bad", GOOD + "MEMORY_LIMIT_GB=lots\nCPU_CORES=8\n")
    root.instance("good", GOOD + "MEMORY_LIMIT_GB=1\n")
    bad = drop_in(root, "bad")
    assert "MemoryMax=2147483648\n" in bad
    assert "CPUQuota=200%\n" in bad
    assert "MemoryMax=1073741824\n" in drop_in(root, "good")


def test_dependencies_between_instances(root: Root) -> None:
    root.instance("m", GOOD + "REQUIRES='a b'\nAFTER=c,m\n")
    text = drop_in(root, "m")
    assert "Requires=citadel-llm@a.service citadel-llm@b.service\n" in text
    assert "After=citadel-llm@a.service citadel-llm@b.service citadel-llm@c.service\n" in text


def test_the_network_opens_only_for_an_address_or_a_download(root: Root) -> None:
    root.instance("m", GOOD)
    assert "IPAddressAllow" not in drop_in(root, "m")
    root.instance("m", GOOD + "HOST=0.0.0.0\n")
    assert "IPAddressAllow=any\n" in drop_in(root, "m")
    root.instance("m", GOOD + "ALLOW_DOWNLOAD=yes\n")
    assert "IPAddressAllow=any\n" in drop_in(root, "m")


def test_the_monitor_reaches_the_models_and_is_reached_at_its_address(root: Root) -> None:
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


def test_no_settings_at_all_makes_nothing(tmp_path: Path) -> None:
    generate(str(tmp_path / "run"), str(tmp_path))
    assert not list(tmp_path.rglob("*.conf"))
