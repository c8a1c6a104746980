"""A hostile model, and a compromised server, against the commands that root runs: they end, and stay in control."""

import json
from collections.abc import Iterator

import pytest
from fakes import Fakes

from .conftest import TINY_MODEL, Host

MODEL = "/srv/hostile"
HOSTILE = "\x1b]0;title\x07 \x9b31m \x7f \u202ered\ncitadel-llm: forged"
SAFETENSORS = """
import pathlib, struct, sys
directory = pathlib.Path(sys.argv[1])
deep, wide = b"[" * 50_000, b"[" + b"{}," * 5_000_000 + b"0]"
numbers = b'{"a": {"data_offsets": [0, ' + b"9" * 4300 + b"]}}"
# Almost as many parts as are parsed, each with a string of its own in memory.
names = (chr(1024 + i % 250) + chr(1024 + i // 250 % 250) + chr(1024 + i // 62500) for i in range(1_990_000))
keys = ",".join(f'"{name}":1' for name in names)
headers = {"a-keys": f"{{{keys}}}".encode(), "a-list": b'{"a":[' + b"999," * 10_000_000 + b"0]}"}
for name, header in {"deep": deep, "wide": wide, "numbers": numbers, **headers}.items():
    (directory / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
for number in range(400):
    with (directory / f"large-{number:03}.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 15 << 20))
        file.truncate(16 << 20)
"""


@pytest.fixture
def model(host: Host) -> Iterator[str]:
    """The tiny model in a directory that a test may change, and an instance `hostile` that serves it."""
    host.machine.run("cp", "-r", TINY_MODEL, MODEL)
    host.settings("hostile", MODEL=MODEL, PORT=11597, KV_CACHE_GB=0.25)
    yield MODEL
    host.machine.run("rm", "-r", MODEL)


def refused(host: Host) -> str:
    """What `check` says about the instance, which must be an error, within a minute."""
    done = host.machine.run("citadel-llm", "check", "hostile", check=False, timeout=60)
    assert done.returncode == 78 and "report this as a bug" not in done.stderr, done
    assert done.stderr.replace("\n", "").isprintable(), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rm config.json; mkfifo config.json", "has no config.json"),
        ("rm config.json; ln -s /dev/zero config.json", "has no config.json"),
        ("truncate -s 1T config.json", "is larger than 16 MB"),
        ("python3 -c 'print(\"[\" * 100000)' >config.json", "is nested too deeply"),
        ("rm model.safetensors; mkfifo model.safetensors", "is not a regular file"),
        ("rm model.safetensors; ln -s /dev/zero model.safetensors", "is not a regular file"),
        ("mkfifo \"$(printf 'a\\033]0;title\\007\\ncitadel-llm: forged').safetensors\"", "cannot be printed"),
        ("seq -f %f.txt 20000 | xargs touch", "has more than 10000 files"),
    ],
)
def test_hostile_file_is_an_error_of_the_check(host: Host, model: str, command: str, words: str) -> None:
    host.machine.run("sh", "-c", f"cd {model}; {command}")
    said = refused(host)
    assert words in said and "\ncitadel-llm: forged" not in said, said


def test_fifo_that_vllm_would_read_is_an_error_of_the_check(host: Host, model: str) -> None:
    """The check does not read these files itself."""
    host.machine.run("sh", "-c", f"cd {model}; rm tokenizer.json; mkfifo tokenizer.json")
    assert "tokenizer.json cannot be read (is not a regular file)" in refused(host)
    host.machine.run(
        "sh", "-c", f"cd {model}; rm generation_config.json tokenizer.json; ln -s /dev/zero tokenizer.json"
    )
    assert "tokenizer.json cannot be read (is not a regular file)" in refused(host)


def test_hostile_headers_cost_root_little(host: Host, model: str) -> None:
    host.machine.run("rm", f"{model}/model.safetensors")
    host.python(SAFETENSORS, model)
    limited = ("systemd-run", "--quiet", "--wait", "--pipe", "--property=MemoryMax=600M", "--property=MemorySwapMax=0")
    done = host.machine.run(*limited, "citadel-llm", "check", "hostile", check=False, timeout=60)
    assert done.returncode == 78 and "its header cannot be read" in done.stderr, done
    assert len(done.stderr) < 5000


def test_upgrade_is_not_blocked_by_a_model(host: Host, model: str) -> None:
    """The package's postinst checks each running model as root before it restarts the model."""
    host.machine.run("citadel-llm", "start", "hostile")
    host.machine.run("sh", "-c", f"cd {model}; rm model.safetensors; mkfifo model.safetensors")
    upgrade = ("/opt/citadel/env/bin/python", "-I", "-m", "hxp_enterprise_llm.control.upgrade")
    said = host.machine.output(*upgrade, timeout=120)
    assert "hostile would not start again and is left as it is" in said


def test_text_of_a_compromised_server_cannot_control_the_terminal(fakes: Fakes) -> None:
    machine = fakes.machine
    machine.write(
        "/usr/local/lib/fake/engine.py",
        machine.inside("/usr/local/lib/fake/engine.py")
        .read_text()
        .replace(
            'notify("READY=1\\nSTATUS=Ready")',
            "hostile = " + ascii(HOSTILE) + "; state['reason'] = hostile; tell(); print(hostile, flush=True); "
            "state['last_failure'] = {'kind': 'engine-died', 'reason': hostile, 'at': time.time()}; tell(); "
            'notify("READY=1\\nSTATUS=" + hostile.replace(chr(10), " "))',
        ),
    )
    fakes.make("loud")
    fakes.start("loud")
    said = {}
    for words in (
        ["status"],
        ["status", "loud"],
        ["list"],
        ["check", "loud"],
        ["report"],
        ["doctor"],
        ["wait", "loud"],
    ):
        done = machine.run("citadel-llm", *words, check=False)
        said[words[0]] = done.stdout + done.stderr
        assert said[words[0]].replace("\n", "").isprintable(), (words, done)
        assert "\ncitadel-llm: forged" not in said[words[0]]
    assert "title" in said["status"], "the reason is shown"
    for words in (["status", "loud"], ["list"], ["report"], ["doctor"], ["check"]):
        done = machine.run("citadel-llm", *words, "--json", check=False)
        assert done.stdout.replace("\n", "").isprintable() and json.loads(done.stdout) is not None, (words, done)
    monitor = machine.output("curl", "-s", "http://127.0.0.1:8000/health/services/loud")
    assert monitor.isprintable() and "title" in json.loads(monitor)["reason"]
    # journalctl, which prints the logs, escapes them itself.
    machine.run("journalctl", "--sync")
    logs = machine.output("script", "--quiet", "--command", "env SYSTEMD_PAGER= citadel-llm logs loud", "/dev/null")
    assert "\x1b]0;" not in logs and "\x9b" not in logs
