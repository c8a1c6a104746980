from pathlib import Path

from hxp_enterprise_llm.supervisor.memory_events import oom_kills


def test_oom_kills_are_read_from_both_cgroup_versions(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/a.slice/b.service\n0::/a.slice/b.service\n")
    assert oom_kills(membership, tmp_path) == 0
    for folder, file, text in (
        ("a.slice/b.service", "memory.events", "low 0\nhigh 3\noom 1\noom_kill 2\n"),
        ("memory/a.slice/b.service", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).write_text(text)
        assert oom_kills(membership, tmp_path) == (2 if file == "memory.events" else 5)
