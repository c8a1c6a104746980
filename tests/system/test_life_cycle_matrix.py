"""Instances in every state during every operation on the package, one row of a table for each operation.

docs/lifecycle.md contains the table that these tests print. The tests depend on each other and run in their order.
"""

import contextlib
from collections.abc import Iterator

import certificates as made
import pytest
from machine import Machine
from versions import NEW_WORDS, Versions

from .conftest import TINY_MODEL
from .life_cycle import CERTIFICATE, KEPT, KEYS, MODEL, MONITOR, Cycle, apart, served_through, unit

OLD, NEW = "/root/old.deb", "/root/new.deb"
POLICY = "/usr/sbin/policy-rc.d"
MASKED_AND_ENABLED = f"/etc/systemd/system/citadel-llm.target.wants/{unit('masked')}"


@pytest.fixture(scope="module")
def cycle(versions: Versions) -> Iterator[Cycle]:
    with Machine.boot("cycle", layers=[versions.engine]) as machine:
        machine.copy_in(versions.old, OLD)
        machine.copy_in(versions.new, NEW)
        machine.run("apt-get", "-qy", "install", "libnuma1", "python3")
        cycle = Cycle(machine)
        yield cycle
        cycle.report()


@contextlib.contextmanager
def policy(machine: Machine) -> Iterator[None]:
    """A policy-rc.d that forbids packages to start or stop services."""
    machine.write(POLICY, "#!/bin/sh\nexit 101\n")
    machine.run("chmod", "0755", POLICY)
    try:
        yield
    finally:
        machine.inside(POLICY).unlink()


def test_install_under_policy_rc_d_starts_nothing(cycle: Cycle) -> None:
    with policy(cycle.machine):
        for arguments in (["install", OLD], ["install", NEW], ["remove", "citadel-llm"], ["install", OLD]):
            cycle.apt(*arguments)
            assert not [seen for seen in cycle.look().values() if seen.state != "inactive"], arguments
        cycle.apt("purge", "citadel-llm")
    assert not cycle.machine.run("find", "/etc", "-name", "*citadel*").stdout


def test_fresh_install_starts_monitor_and_target(cycle: Cycle) -> None:
    cycle.apt("install", OLD)
    assert cycle.look()[MONITOR].state == "active"
    assert cycle.machine.output("systemctl", "is-active", "citadel-llm.target") == "active"
    cycle.prepare()
    cycle.row("fresh install, then the administrator's instances", "ii", "",
              zulu="same", alpha="same", bravo="same", monitor="same")  # fmt: skip


def test_upgrade_restarts_instances_one_after_another(cycle: Cycle) -> None:
    said = cycle.apt("install", NEW)
    now = cycle.look()
    cycle.row("upgrade", "ii", "one after another", "new", zulu="new", alpha="new", bravo="new", monitor="new")
    loading = [now[name] for name in ("zulu", "alpha", "bravo")]
    assert all(seen.words.startswith(NEW_WORDS) for seen in loading), loading
    assert all(apart(one, other) for one in loading for other in loading if one is not other), loading
    assert now["zulu"].ready <= now["alpha"].began and now["zulu"].ready <= now["bravo"].began
    assert all(served_through(now["bravo"], now[name]) for name in ("zulu", "alpha")), loading
    assert "run the old version" not in said


def test_downgrade_restarts_only_instances_that_can_start_again(cycle: Cycle) -> None:
    """The model of a running instance is missing: this instance and those that it requires keep running."""
    settings = cycle.machine.inside("/etc/default/citadel-llm-alpha")
    good = settings.read_text()
    settings.write_text(good.replace(TINY_MODEL, "/missing"))
    said = cycle.apt("install", OLD)
    settings.write_text(good)
    assert "alpha would not start again and is left as it is; see: citadel-llm check alpha" in said
    old = f"run the old version: {unit('alpha')} {unit('zulu')}"
    assert old in said, said
    cycle.row("downgrade; the model of one is missing", "ii", "it and what it requires keep running; apt names them",
              zulu="same", alpha="same", bravo="new", monitor="new")  # fmt: skip


def left_alone(name: str, see: str) -> str:
    """The message about a model that an upgrade does not stop."""
    return f"{name} would not start again and is left as it is; see: {see}"


def test_upgrade_keeps_instances_with_invalid_files_running(cycle: Cycle) -> None:
    """The last key is revoked, the certificate has expired, or only root can read the model."""
    machine = cycle.machine
    machine.write(KEYS, "")
    machine.write(CERTIFICATE, made.EXPIRED)
    machine.run("chmod", "700", MODEL)
    said = cycle.apt("--reinstall", "install", OLD)
    machine.write(KEYS, KEPT[KEYS])
    machine.write(CERTIFICATE, KEPT[CERTIFICATE])
    machine.run("chmod", "755", MODEL)
    for name in ("alpha", "bravo", "zulu"):
        assert left_alone(name, f"citadel-llm check {name}") in said, said
    cycle.row("reinstall; no key, an expired certificate, a model that `agent0` may not read", "ii", "apt names them",
              zulu="same", alpha="same", bravo="same", monitor="new")  # fmt: skip


def test_upgrade_keeps_instances_whose_requirement_cannot_start(cycle: Cycle) -> None:
    """One running instance is masked; another one now requires an instance that has failed."""
    machine = cycle.machine
    settings = machine.inside("/etc/default/citadel-llm-bravo")
    good = settings.read_text()
    settings.write_text(good + "REQUIRES=broken\n")
    machine.run("systemctl", "mask", unit("zulu"))
    said = cycle.apt("--reinstall", "install", OLD)
    settings.write_text(good)
    machine.run("systemctl", "unmask", unit("zulu"))
    for name in ("alpha", "zulu"):
        assert left_alone(name, f"systemctl status {unit('zulu')}, which is masked") in said, said
    assert left_alone("bravo", "citadel-llm check broken") in said, said
    cycle.row("reinstall; the first masked while it runs, the third requires the failed one", "ii",
              "they and what requires them keep running; apt names them",
              zulu="same", alpha="same", bravo="same", monitor="new")  # fmt: skip


def kill_engine(machine: Machine, name: str) -> None:
    """Kill the engine of an instance, and wait until another one serves."""
    engines = "pgrep -f '^VLLM::EngineCore' | sed 's|.*|/proc/&/cgroup|'"
    engine = f"grep -l {unit(name)} $({engines}) | cut -d/ -f3"
    ready = f"systemctl show --value -p StatusText {unit(name)} | grep -q ^Ready"
    killed = machine.output("sh", "-c", engine)
    machine.run("kill", "-KILL", killed)
    other = f'while found=$({engine}); [ "$found" = {killed} ] || [ -z "$found" ] || ! {ready}; do sleep 0.2; done'
    machine.run("sh", "-c", other, timeout=60)


def test_upgrade_with_restarts_disabled_restarts_no_instance(cycle: Cycle) -> None:
    """The main process then recovers an engine with the code of the old version, which is not on the disk any more."""
    cycle.setting("CITADEL_RESTART_ON_UPGRADE", "no")
    said = cycle.apt("install", NEW)
    assert f"run the old version: {unit('alpha')} {unit('bravo')} {unit('zulu')}" in said
    kill_engine(cycle.machine, "bravo")
    assert cycle.look()["bravo"].words.startswith("Ready: ")
    cycle.row("upgrade with `CITADEL_RESTART_ON_UPGRADE=no`, then the third's engine is killed", "ii",
              "apt names the units that run the old version",
              version="new", zulu="same", alpha="same", bravo="same", monitor="new")  # fmt: skip


def test_reinstall_under_policy_rc_d_keeps_instances_running(cycle: Cycle) -> None:
    cycle.setting("CITADEL_RESTART_ON_UPGRADE", "yes")
    with policy(cycle.machine):
        said = cycle.apt("--reinstall", "install", NEW)
    names = " ".join(unit(name) for name in (MONITOR, "alpha", "bravo", "zulu"))
    assert f"run the old version: {names}" in said, said
    cycle.row("reinstall under a policy-rc.d that forbids restarts", "ii",
              "apt names the units that run the old version",
              version="new", zulu="same", alpha="same", bravo="same", monitor="same")  # fmt: skip


def test_interrupted_upgrade_leaves_no_instance_stopped(cycle: Cycle) -> None:
    machine = cycle.machine
    machine.run("systemctl", "stop", unit("bravo"))
    # alpha has been stopped and waits for zulu, which is being restarted.
    install = f"dpkg --force-confdef --force-confold --install {OLD}"
    # The brackets keep the pattern from matching the shell that contains it.
    waiting = f"until [ $(systemctl is-active {unit('zulu')}) = activating ]; do sleep 0.1; done"
    interrupt = f"{waiting}; pkill -f '[c]ontrol.upgrade'"
    done = machine.run("sh", "-c", f"{install} & {interrupt}; wait $!", check=False)
    assert done.returncode != 0, done.stdout
    machine.run("sh", "-c", f"until systemctl is-active {unit('alpha')}; do sleep 0.2; done", timeout=120)
    cycle.row("downgrade, interrupted between two models", "iF", "the models that it has stopped start again",
              zulu="new", alpha="new", monitor="same")  # fmt: skip
    cycle.setting("CITADEL_RESTART_ON_UPGRADE", "no")
    machine.run("dpkg", "--configure", "-a")
    cycle.row("`dpkg --configure -a`, restarting nothing", "ii", "", zulu="same", alpha="same", monitor="new")
    cycle.setting("CITADEL_RESTART_ON_UPGRADE", "yes")
    machine.run("systemctl", "stop", unit("alpha"))
    cycle.before = cycle.look()


def test_failed_postinst_can_be_configured_again(cycle: Cycle) -> None:
    """systemd-sysusers, which runs first, fails; later it works again."""
    machine = cycle.machine
    sysusers = "/usr/bin/systemd-sysusers"
    machine.run("mount", "--bind", "/bin/false", sysusers)
    try:
        cycle.apt("install", NEW, fails=True)
    finally:
        machine.run("umount", sysusers)
    cycle.row("upgrade whose postinst fails", "iF", "apt fails", "new", zulu="same", monitor="same")
    machine.run("dpkg", "--configure", "-a")
    cycle.row("`dpkg --configure -a`", "ii", "", "new", zulu="new", monitor="new")


def test_full_disk_fails_downgrade_without_changes(cycle: Cycle) -> None:
    """The generator's directory is a small file system without space for the new files."""
    machine, place = cycle.machine, "/usr/lib/citadel-llm"
    machine.run("cp", "-a", place, "/root/kept")
    machine.run("mount", "-t", "tmpfs", "-o", "size=1M,mode=755", "tmpfs", place)
    try:
        machine.run("cp", "-a", "/root/kept/.", place)
        machine.run("sh", "-c", f"cat /dev/zero >{place}/filler", check=False)
        said = cycle.apt("install", OLD, fails=True)
        assert "No space left on device" in said
        machine.inside(f"{place}/filler").unlink()
        cycle.mounts.add(place)
        cycle.row(
            "downgrade, the disk is full", "ii", "apt fails, nothing has changed", "new", zulu="same", monitor="same"
        )
        cycle.apt("install", OLD)
        cycle.row("the same again, with free space", "ii", "", zulu="new", monitor="new")
    finally:
        machine.run("umount", "--lazy", place)
        cycle.mounts.discard(place)


def test_remove_and_install_restore_enabled_instances(cycle: Cycle) -> None:
    machine = cycle.machine
    machine.run("systemctl", "disable", unit("bravo"))
    cycle.apt("remove", "citadel-llm")
    # Files that remain below /opt do not belong to dpkg.
    assert not machine.run("find", "/opt/citadel", "-path", "*hxp*").stdout
    active = machine.run("systemctl", "is-active", "citadel-llm.slice", "citadel-llm.target", check=False)
    assert active.stdout.split() == ["inactive", "inactive"]
    cycle.row("remove", "rc", "settings, models, logs and keys stay")
    said = cycle.apt("install", OLD)
    assert "is masked" not in said and "not any more" not in said, said
    assert machine.inside(MASKED_AND_ENABLED).is_symlink()
    cycle.row(
        "install again", "ii", "enabled instances are enabled again, and start", zulu="new", idle="new", monitor="new"
    )


def test_upgrade_keeps_target_disabled_and_monitor_stopped(cycle: Cycle) -> None:
    machine = cycle.machine
    machine.run("systemctl", "stop", unit("idle"), unit(MONITOR))
    machine.run("systemctl", "disable", "citadel-llm.target")
    cycle.setting("CITADEL_RESTART_ON_UPGRADE", "no")
    cycle.apt("install", NEW)
    cycle.row(
        "upgrade, the monitor stopped, the target disabled", "ii", "the target stays disabled", "new", zulu="same"
    )
    assert machine.run("systemctl", "is-enabled", "citadel-llm.target", check=False).stdout.strip() == "disabled"


def test_unpacked_package_can_be_removed(cycle: Cycle) -> None:
    """dpkg runs no prerm for a package that is only unpacked."""
    machine = cycle.machine
    machine.run("dpkg", "--force-confdef", "--force-confold", "--unpack", OLD)
    machine.run("dpkg", "--remove", "citadel-llm")
    cycle.row("remove an unpacked package that is not configured", "rc", "", "new")
    cycle.apt("install", OLD)
    # A disabled target starts no instance.
    cycle.row("install again, the target disabled", "ii", "", monitor="new", broken="stopped")
    assert machine.output("systemctl", "is-enabled", unit("zulu"), unit("idle")).split() == ["enabled"] * 2


def test_purge_keeps_models_and_users(cycle: Cycle) -> None:
    machine = cycle.machine
    machine.run("systemctl", "start", unit("zulu"))
    with policy(machine):
        said = cycle.apt("remove", "citadel-llm")
        assert f"without their files; stop them with: systemctl stop {unit(MONITOR)} {unit('zulu')}" in said
        machine.run("curl", "-fs", "http://127.0.0.1:11581/health")
    machine.run("systemctl", "stop", unit("zulu"), unit(MONITOR))
    cycle.row("remove under a policy-rc.d, then stop by hand", "rc", "apt names what keeps running")
    said = cycle.apt("purge", "citadel-llm")
    assert "the models are kept in /var/lib/citadel-llm/models" in said
    cycle.row("purge after remove", "", "models and users stay")
    cycle.apt("install", OLD)
    machine.run("systemctl", "enable", "--now", unit("test"))
    machine.run("systemctl", "set-property", "citadel-llm.slice", "MemoryMax=20G")
    cycle.before = cycle.look()
    cycle.apt("purge", "citadel-llm")
    cycle.row("fresh install, a model started, purge", "", "models and users stay")
    assert left(machine) == ["/var/lib/citadel-llm"]


def test_dpkg_purge_of_installed_package_keeps_models_and_drop_ins(cycle: Cycle) -> None:
    """With instances in every state, two of them masked while they run, and a drop-in of the administrator."""
    machine = cycle.machine
    mine = f"/etc/systemd/system/{unit('idle')}.d"
    cycle.apt("install", OLD)
    cycle.prepare()
    machine.write(f"{mine}/override.conf", "[Service]\nNice=5\n")
    machine.run("systemctl", "mask", unit("zulu"))
    machine.run("systemctl", "mask", "--runtime", unit("bravo"))
    machine.run("systemctl", "set-property", unit("alpha"), "MemoryMax=3G")
    cycle.row("fresh install, models in every state, two masked while they run", "ii", "",
              zulu="same", alpha="same", bravo="same", monitor="same")  # fmt: skip
    said = machine.output("dpkg", "--purge", "citadel-llm")
    assert "the models are kept in /var/lib/citadel-llm/models" in said
    assert machine.inside(f"{MODEL}/config.json").exists()
    cycle.row("`dpkg --purge` of all of these", "", "models, users and drop-ins stay")
    assert left(machine) == [mine, "/var/lib/citadel-llm"]


def left(machine: Machine) -> list[str]:
    """Paths that a purge left, except for the system's own logs."""
    where = "find / /run -xdev -name '*citadel-llm*' -not -path '/proc/*' -not -path '/var/log/*'"
    return sorted(machine.output("sh", "-c", where).splitlines())
