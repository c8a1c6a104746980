"""Bytes that are not UTF-8 on a booted host: in settings, and in names of settings files, instances and weights."""

import shutil

from .conftest import TINY_MODEL, Host

LATIN_1 = b"caf\xe9"
MODEL = "/var/lib/citadel-llm/models/latin"


def test_bytes_that_are_not_utf8_are_named_and_refused(host: Host) -> None:
    machine = host.machine
    host.settings("latin", MODEL=TINY_MODEL, PORT=11596, KV_CACHE_GB=0.25)
    settings = machine.inside("/etc/default/citadel-llm-latin")
    good = settings.read_bytes()
    stray = bytes(machine.inside("/etc/default")) + b"/citadel-llm-" + LATIN_1
    with open(stray, "wb") as file:  # noqa: PTH123  its name is bytes
        file.write(good)
    try:
        settings.write_bytes(good + b"OMP_X='" + LATIN_1 + b"'\n")
        machine.run("systemctl", "daemon-reload")
        for words in (["check", "latin"], ["show", "latin"]):
            done = machine.run("citadel-llm", *words, check=False)
            assert (done.returncode, "citadel-llm-latin:4: is not UTF-8" in done.stderr) == (78, True), done.stderr
        assert machine.run("systemctl", "start", "citadel-llm@latin", check=False).returncode
        shown = machine.show("citadel-llm@latin", "ExecMainStatus", "StatusText")
        assert (shown["ExecMainStatus"], "is not UTF-8;" in shown["StatusText"]) == ("78", True), shown
        for verb in ("list", "check"):
            assert "citadel-llm-caf\\xe9' is ignored" in machine.run("citadel-llm", verb, check=False).stderr
        for verb in ("show", "status", "check"):
            done = machine.run("sh", "-c", f"citadel-llm {verb} \"$(printf 'caf\\351')\"", check=False)
            assert (done.returncode, "there is no instance" in done.stderr) == (4, True), done.stderr
        main = "/opt/citadel/env/bin/python -I -m hxp_enterprise_llm.services.core.service_manager"
        done = machine.run("sh", "-c", f"{main} \"$(printf 'caf\\351')\"", check=False)
        assert (done.returncode, "caf\\xe9" in done.stdout) == (78, True), done
        settings.write_bytes(good)
        done = machine.run("sh", "-c", "citadel-llm set latin OMP_X=\"$(printf 'caf\\351')\"", check=False)
        assert (done.returncode, "caf\\xe9" in done.stderr) == (78, True), done.stderr
    finally:
        machine.run("sh", "-c", "rm /etc/default/citadel-llm-caf*")


def test_model_with_weight_name_that_is_not_utf8_is_refused(host: Host) -> None:
    machine = host.machine
    shutil.copytree(machine.inside(TINY_MODEL), machine.inside(MODEL))
    try:
        machine.run("sh", "-c", f"cd {MODEL}; mv model.safetensors \"$(printf 'caf\\351').safetensors\"")
        host.settings("latin", MODEL=MODEL, PORT=11596, KV_CACHE_GB=0.25)
        done = machine.run("citadel-llm", "check", "latin", check=False)
        assert (done.returncode, "caf\\xe9.safetensors cannot be printed" in done.stderr) == (78, True), done.stderr
        assert machine.run("systemctl", "start", "citadel-llm@latin", check=False).returncode
        shown = machine.show("citadel-llm@latin", "ExecMainStatus", "StatusText")
        # systemd 252 drops the backslash.
        assert (shown["ExecMainStatus"], "xe9.safetensors cannot be printed" in shown["StatusText"]) == ("78", True), (
            shown
        )
    finally:
        shutil.rmtree(machine.inside(MODEL))
