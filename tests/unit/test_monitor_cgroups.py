"""The figures that the monitor reads from control groups of both versions."""

from pathlib import Path

from hxp_enterprise_llm.monitoring import cgroups

from .monitored import write


def test_usage_is_read_from_cgroup_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    write(
        tmp_path / "citadel.slice/a.service", memory__current="1000\n", memory__peak="3000\n", memory__max="4000\n",
        memory__events="low 0\nhigh 3\noom 1\noom_kill 2\noom_group_kill 0\n",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n", cpu__max="150000 100000\n",
        pids__current="5\n", pids__max="64\n",
    )  # fmt: skip
    assert cgroups.read("/citadel.slice/a.service", tmp_path) == (1000, 3000, 4000, 2.5, 1.5, 5, 64, 2)


def test_usage_is_read_from_cgroup_version_1(tmp_path: Path) -> None:
    write(
        tmp_path / "memory/a.service", memory__usage_in_bytes="1000\n", memory__max_usage_in_bytes="3000\n",
        memory__limit_in_bytes="4000\n", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )  # fmt: skip
    write(tmp_path / "cpu/a.service", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "cpuacct/a.service", cpuacct__usage="2500000000\n")
    write(tmp_path / "pids/a.service", pids__current="5\n", pids__max="64\n")
    assert cgroups.read("/a.service", tmp_path) == (1000, 3000, 4000, 2.5, 1.5, 5, 64, 2)
    (tmp_path / "cpuacct/a.service/cpuacct.usage").unlink()
    write(tmp_path / "unified/a.service", cpu__stat="usage_usec 700000\n")
    assert cgroups.read("/a.service", tmp_path).cpu_seconds == 0.7


def test_missing_limit_or_cgroup_reads_as_none(tmp_path: Path) -> None:
    write(tmp_path / "memory/a", memory__limit_in_bytes="9223372036854771712\n")
    write(tmp_path / "cpu/a", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert set(cgroups.read("/a", tmp_path)) == {None}
    (tmp_path / "cgroup.controllers").write_text("")
    write(
        tmp_path / "b",
        memory__max="max\n",
        cpu__max="max 100000\n",
        pids__max="max\n",
        memory__current="x\udcff".encode("utf-8", "ignore").decode(),
    )
    assert set(cgroups.read("/b", tmp_path)) == {None}
    assert set(cgroups.read("/gone", tmp_path)) == {None}
    # A stopped unit has no group: the figures of the root group must not be used.
    assert set(cgroups.read("", tmp_path)) == set(cgroups.read("/", tmp_path)) == {None}
