"""Settings files that try to make the generator misbehave, derived from a seed.

`Hostile(seed).settings()` returns the next file, the same sequence for the same seed: valid files, files with one odd
line, and files that are hardly text. `is_line_of_the_generator` has its own table of lines that a drop-in may have.
"""

import random
import re

from corpus import lines

SOUND = {
    "MODEL": ["/srv/m", "org/name-7B", "/srv/a/../b", "/srv/a%n"],
    "PORT": ["11500", "80", "65536", "1_1", "0x10", "11500 "],
    "HOST": ["127.0.0.1", "::1", "0.0.0.0", "192.0.2.7", "fe80::1%eth0", "localhost"],  # noqa: S104  a value, not bound to
    "SERVED_MODEL_NAME": ["m", "org/m:1@x", "%n", "m%i"],
    "MEMORY_LIMIT_GB": ["4", "0.1", "65536", "1.5", "0.125", "-1", "1e9", "infinity", "65536.001", "٤"],
    "CPU_CORES": ["2", "0.1", "4096", "1.005", "200%", "nan"],
    "MAX_TASKS": ["64", "1000", "4194304", "infinity", "50%"],
    "RESTART_POLICY": ["no", "always", "on-failure", "sometimes", "always\tx"],
    "RESTART_SEC": ["0", "10", "86400", "0.001", "12345.678", "5min"],
    "START_TIMEOUT_SEC": ["1", "300", "86400", "86399.999", "infinity"],
    "DRAIN_TIMEOUT_SEC": ["0", "30", "0.5"],
    "HANG_TIMEOUT_SEC": ["1", "300", "86400"],
    "CLIENT_TIMEOUT_SEC": ["1", "300", "86400"],
    "MAX_REQUEST_MB": ["0.1", "64", "65536", "64MB"],
    "MAX_CONNECTIONS": ["16", "1024", "32768", "65536", "1e3"],
    "KV_CACHE_GB": ["1", "0.25"],
    "MAX_MODEL_LEN": ["4096", "0"],
    "GPU_DEVICES": ["0", "0,1", "all", "", "0,/dev/sda", "0 rw"],
    "REQUIRES": ["a", "'a b'", "a,b", "m-control", "'a.service ../x'", "a%i", "-a", "'" + "a " * 60 + "'"],
    "AFTER": ["c,m", "'a b c'", "multi-user.target", "a@b", "'" + " ".join(f"x{n}" for n in range(64)) + "'"],
    "TLS_CERT_FILE": ["/etc/passwd", "/nowhere", "/etc/passwd:x", "/etc/passwd\nSetCredential=tls-key:x"],
    "HUB_TOKEN_FILE": ["/etc/passwd", "/nowhere", "/dev/zero", "%d/x"],
    "API_KEY_FILE": ["/etc/passwd", "/etc/hostname", "/nowhere", "/etc/../etc/shadow", "/etc/passwd:x", "%d/x"],
    "ALLOW_DOWNLOAD": ["yes", "no", "true"],
    "VLLM_ARGS": ["'--a b'", "'--x \"y'", "--a%n"],
    "OMP_NUM_THREADS": ["4", "%n"],
}
HOST_SOUND = {
    "SERVER_IP": ["127.0.0.1", "192.0.2.8", "::", "any"],
    "VLLM_USER": ["agent0", "dynamic", "root", "a%i", "agent0:root", "0"],
    "VLLM_GROUP": ["agent0", "adm adm"],
    "VLLM_PID_PATH": [
        "/run/citadel-llm",
        "/run/other",
        "/var/run/x/y",
        "/run/../etc",
        "/run/./x",
        "/run/x y",
        "/run/%i",
        "/run/systemd",
        "/run/credentials/x",
    ],
    "DEFAULT_MEMORY_LIMIT_GB": ["4", "8.5", "x"],
    "DEFAULT_CPU_CORES": ["1", "0.5"],
    "DEFAULT_MAX_TASKS": ["500", "1"],
    "DEFAULT_RESTART_POLICY": ["always", "no"],
    "DEFAULT_RESTART_SEC": ["7", "s"],
}
UNIT_SYNTAX = [
    "ExecStartPre=/bin/touch /run/pwned", "[Service]", "[Install]\nAlias=sshd.service", "User=root",
    "4\\nExecStart=/bin/sh", "PORT=11500\\\nExecStartPre=/bin/sh", ".include /etc/shadow",
    "Environment=LD_PRELOAD=/tmp/x.so", "MemoryMax=infinity", "MEMORY_LIMIT_GB=4\rExecStartPre=/bin/sh",
    "MEMORY_LIMIT_GB=4\u2028User=root", "# x\\\nUser=root", "%n=%i", "A" * 5000,
]  # fmt: skip
PIECES = [
    "%", "%n", "%i", "%%", "\\", "\\n", "\n", "\r", "\r\n", "\0", "\t", "\x0b", "\x0c", "\x1b[31m", "\x85",
    "\u2028", "\u202e", "\ufeff", "$", "${HOME}", "$(id)", "`id`", "'", '"', ";", "#", " #", "=", "[", "]", " ",
    "  ", "é", "日", "\U0001f600", "-", "--", "../", "/", ":", ",", "@", "~", "\nUser=root\n", "\n[Service]\n",
    "x" * 70, "9" * 40, "٣",
]  # fmt: skip
CORPUS = lines()


class Hostile:
    """A sequence of files, the same for the same `seed`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  to be repeated, not to be unknown

    def settings(self, of_host: bool = False) -> bytes:
        """The next file."""
        pick = self.random
        values = HOST_SOUND if of_host else SOUND
        written = [] if of_host or pick.random() < 0.1 else ["MODEL=/srv/m", "PORT=11500"]
        for key in pick.sample(list(values), pick.randrange(1, 7)):
            # The first value is one that an administrator would write.
            value = values[key][0] if pick.random() < 0.75 else pick.choice(values[key])
            written.append(f"{key}={value}")
        text = (
            self._with_odd_line(written, list(values))
            if pick.random() < (0.2 if of_host else 0.4)
            else "\n".join(written) + "\n"
        )
        for _ in range(pick.choice((0, 0, 0, 0, 0, 1, 1, 3))):
            place = pick.randrange(len(text) + 1)
            text = text[:place] + pick.choice(PIECES) + text[place + pick.choice((0, 0, 1, 4)) :]
        content = text.encode("utf-8", "surrogatepass")
        if pick.random() < 0.05:
            place = pick.randrange(len(content) + 1)
            content = content[:place] + pick.randbytes(pick.randrange(40)) + content[place:]
        return content

    def _with_odd_line(self, written: list[str], keys: list[str]) -> str:
        pick = self.random
        odd = (
            pick.choice(UNIT_SYNTAX) if pick.random() < 0.3 else pick.choice(CORPUS).replace("{key}", pick.choice(keys))
        )
        written.insert(pick.randrange(len(written) + 1), odd)
        return "\n".join(written) + pick.choice(("\n", "", "\n\n", "\r\n"))

    def name(self) -> str:
        """A file name in /etc/default that resembles an instance's."""
        pick = self.random
        parts = [pick.choice(("x", "M-1", "a.b", *PIECES)) for _ in range(pick.randrange(1, 4))]
        return re.sub("[/\0]", "", "".join(parts))[:50]


_UNIT = r"citadel-llm@[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.service"
_MOUNT = r"(?:[A-Za-z0-9_.-]|\\x(?:2b|2d|2e|40))+\.mount"
_ADDRESS = r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]+(?:[0-9.]+)?)"
_SPAN = r"[0-9]{1,6}(?:\.[0-9]{1,5})?s"
_WORD = r"[a-z_][a-z0-9_-]{0,31}"
_LINE = re.compile(
    "|".join(
        (
            r"# Made by citadel-llm-generator from [A-Za-z0-9_./-]+"
            r"(?:; edit that file and run systemctl daemon-reload\."
            r"|, which is refused; these are the host-wide limits\. Reason: citadel-llm check [A-Za-z0-9._-]+)",
            r"# Made by citadel-llm-generator from the settings of the host and of all models\.",
            r"\[Unit\]|\[Service\]",
            r"SourcePath=/[A-Za-z0-9_./-]+",
            rf"(?:Requires|After)={_UNIT}(?: {_UNIT})*",
            r"(?:Wants|After)=network-online\.target",
            rf"(?:User|Group)={_WORD}",
            r"(?:MemoryHigh|MemoryMax|TasksMax)=[0-9]{2,14}",
            r"CPUQuota=[0-9]{1,6}%",
            r"Restart=(?:no|always|on-(?:success|failure|abnormal|watchdog|abort))",
            rf"(?:RestartSec|TimeoutStartSec|TimeoutStopSec)={_SPAN}",
            r"RuntimeDirectory=(?:[A-Za-z0-9._@+-]+(?:/[A-Za-z0-9._@+-]+)+)?",
            r"TemporaryFileSystem=/run(?:/[A-Za-z0-9._@+-]+)+:ro",
            r"NoExecPaths=(?:-(?:/run|/var/cache/private/citadel-llm)(?:/[A-Za-z0-9._@+-]+)+)?",
            r"DynamicUser=yes",
            r"ExecStartPre=\+/usr/bin/nsenter --target=1 --mount "
            rf"install -d -o root -g {_WORD} -m 0775 /run(?:/[A-Za-z0-9._@+-]+)+",
            r"(?:BindPaths=-|Environment=RUNTIME_DIRECTORY=)/run(?:/[A-Za-z0-9._@+-]+)+",
            r"BindReadOnlyPaths=-/run/systemd/resolve -/run/resolvconf -/run/NetworkManager",
            r"BindReadOnlyPaths=-/run/nvidia-persistenced -/run/nvidia-fabricmanager",
            r"SystemCallFilter=memfd_create",
            r"LoadCredential=(api-key|tls-cert|tls-key|hub-token):(?:/[A-Za-z0-9._@+-]+)+",
            r"SetCredential=(api-key|tls-cert|tls-key|hub-token):not there",
            rf"After={_MOUNT}(?: {_MOUNT})*",
            r"RequiresMountsFor=(?:/[A-Za-z0-9._@+-]+)+",
            rf"IPAddressAllow=(?:any|{_ADDRESS})",
            r"PrivateDevices=no",
            r"DeviceAllow=char-nvidia(?:-uvm rw|-caps r|-frontend rw| rw)",
            r"DeviceAllow=/dev/nvidia(?:[0-9]{1,3}|ctl|-modeset) rw",
        )
    )
)


def is_line_of_the_generator(line: str) -> bool:
    """Whether the generator may write this line to a drop-in."""
    return bool(_LINE.fullmatch(line))
