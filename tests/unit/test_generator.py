from pathlib import Path

from hxp_enterprise_llm.generator import DROP_IN, generate

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


def test_no_settings_at_all_makes_nothing(tmp_path: Path) -> None:
    generate(str(tmp_path / "run"), str(tmp_path))
    assert not list(tmp_path.rglob("*.conf"))
