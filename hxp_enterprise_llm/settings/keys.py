"""The table of settings: every key, the rule for its value, its default, and what it is for.

The generator, the schema and the documentation read this one table. Standard library only, see `grammar`.
"""

import re
import socket
from collections.abc import Callable
from typing import NamedTuple

GIBIBYTE, MEBIBYTE = 1024**3, 1024**2
"""Sizes "in GB" use systemd's G suffix: 1 GB = 2**30 bytes. Sizes "in MB" use its M: 1 MB = 2**20 bytes."""

HIGH_SHARE, HIGH_GAP_BYTES = 0.95, 256 * 1024**2
"""At MemoryHigh the kernel throttles a service and reclaims its memory. It is 5 % below MemoryMax, at which the kernel
kills, but at most 256 MiB below: a model that needs most of its limit must not be throttled permanently."""

INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NO_INSTANCE = re.compile(r".*\.(dpkg-[a-z]+|ucf-[a-z]+|orig|rej|bak|old|new|save|sw[a-p]|service)")

PASSED_THROUGH = (
    "VLLM_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "SAFETENSORS_", "TORCH", "PYTORCH_", "TRITON_",
    "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMBA_", "FLASHINFER_",
    "HIP_", "ROCR_", "RAY_",
)  # fmt: skip
"""Prefixes of variables that vLLM or one of its libraries reads: they reach the engine's environment unchanged."""

# Three decimals: systemd reads no more in a time span in seconds, and no limit needs more.
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]{1,3})?")


LEAST_HANG_SEC = 5.0
"""The smallest HANG_TIMEOUT_SEC (seconds). An idle server sends a heartbeat every second, and a pause of the host or of
the garbage collector may delay some of them."""


def is_instance_name(name: str) -> bool:
    """Whether `name` can be an instance.

    Names are refused that dpkg or editors give to copies of a settings file, and names that end in .service: systemctl
    would take the unit of x.service for the unit of x.
    """
    return bool(INSTANCE_NAME.fullmatch(name)) and not _NO_INSTANCE.fullmatch(name)


def _decimal(text: str, smallest: float, largest: float, what: str) -> float:
    if _DECIMAL.fullmatch(text) and smallest <= float(text) <= largest:
        return float(text)
    raise ValueError(f"a number of {what} from {smallest:g} to {largest:g}, such as 2 or 1.5")


def _whole(text: str, smallest: int, largest: int, what: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and smallest <= int(text) <= largest:
        return int(text)
    raise ValueError(f"a whole number of {what} from {smallest} to {largest}")


def gigabytes(text: str) -> float:
    return _decimal(text, 0.1, 65536, "gigabytes")


def megabytes(text: str) -> float:
    return _decimal(text, 0.1, 65536, "megabytes")


def connections(text: str) -> int:
    # The unit may open 65536 descriptors.
    return _whole(text, 16, 32768, "connections")


def cores(text: str) -> float:
    return _decimal(text, 0.1, 4096, "cores")


def seconds(text: str) -> float:
    return _decimal(text, 0, 86400, "seconds")


def timeout(text: str) -> float:
    return _decimal(text, 1, 86400, "seconds")


def tasks(text: str) -> int:
    # Below 64 not even the interpreter's and OpenMP's threads fit.
    return _whole(text, 64, 4194304, "tasks")


def tokens(text: str) -> int:
    return _whole(text, 1, 100_000_000, "tokens")


def port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6 and 1024 <= int(text) <= 65535:
        return int(text)
    raise ValueError("a port from 1024 to 65535; lower ones need a privilege that the service does not have")


def address(text: str) -> str:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return text
    raise ValueError("an IPv4 or IPv6 address such as 127.0.0.1 or ::1, not a host name")


STOP_MARGIN_SEC = 15
"""TimeoutStopSec= minus DRAIN_TIMEOUT_SEC (seconds): vLLM exits in under 1 s once its requests are done."""


def memory_high(limit_gb: float) -> int:
    """MemoryHigh (bytes) for a MEMORY_LIMIT_GB."""
    limit = limit_gb * GIBIBYTE
    return int(max(limit * HIGH_SHARE, limit - HIGH_GAP_BYTES))


EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared with, not bound to
"""Addresses that stand for every address of the host, each with the address at which the host itself reaches them."""


def is_loopback(text: str) -> bool:
    """Whether an address that `address` accepted can be reached from this host only."""
    return text == "::1" or text.startswith("127.")


def yes_or_no(text: str) -> bool:
    if text in ("yes", "no"):
        return text == "yes"
    raise ValueError("yes or no")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in allowed:
            return text
        raise ValueError("one of " + ", ".join(allowed))

    return parse


def path(text: str) -> str:
    if re.fullmatch(r"(/[A-Za-z0-9._@+-]+)+", text) and "/../" not in text + "/" and "/./" not in text + "/":
        return text
    raise ValueError("an absolute path of letters, digits and . _ @ + -, without .. in it")


def run_time_path(text: str) -> str:
    if re.fullmatch(r"(/var)?/run/(?!(systemd|credentials)(/|$))[A-Za-z0-9._@+-]+(/[A-Za-z0-9._@+-]+)*", text):
        place = "/" + text.removeprefix("/var").strip("/")
        # The unit hides this directory to hide those of other instances.
        if not {".", ".."} & set(place.split("/")):
            return place
    raise ValueError("a path below /run, such as /run/citadel-llm, that is not systemd's")


DYNAMIC_USER = "dynamic"
"""VLLM_USER for a user of its own for each instance."""
PACKAGE_USER = "agent0"
"""The user that the package creates, and its group. The models' files belong to it."""


def account(text: str) -> str:
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text):
        return text
    raise ValueError("the name of a user or group: small letters, digits, _ and -")


def host_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", text):
        return text
    raise ValueError("a host name of letters, digits, - and .")


def word(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        return text
    raise ValueError("a word of letters, digits, . _ and -")


def model(text: str) -> str:
    if text.startswith("/"):
        return path(text)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", text):
        return text
    raise ValueError("the absolute path of a model's directory, or a hub id such as openchat/openchat-3.5-0106")


def served_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,127}", text):
        return text
    raise ValueError("a name of letters, digits and . _ - / : @")


def devices(text: str) -> tuple[str, ...]:
    if text in ("", "all"):
        return (text,) if text else ()
    numbers = tuple(text.split(","))
    if all(number.isascii() and number.isdigit() and len(number) < 4 for number in numbers):
        return numbers
    raise ValueError("GPU numbers such as 0 or 0,1, or all, or nothing")


def instances(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    # systemd ignores a unit file with a line longer than 1 MiB.
    if len(names) <= 64 and all(is_instance_name(name) for name in names):
        return names
    raise ValueError("names of up to 64 instances with spaces between them")


def arguments(text: str) -> tuple[str, ...]:
    """Split flags into words as a shell does, except that a JSON object or list keeps its quotes and spaces.

    A line of a settings file cannot hold both kinds of quotes, so JSON cannot be quoted once more within VLLM_ARGS.
    """
    # Imported here, because the import would add milliseconds to the generator at every boot.
    import io
    import shlex

    words: list[str] = []
    rest = text.lstrip()
    while rest:
        word = _with_json(rest)
        if word:
            words.append(word)
            rest = rest[len(word) :].lstrip()
            continue
        stream = io.StringIO(rest)
        lexer = shlex.shlex(stream, posix=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        try:
            words.append(lexer.get_token() or "")
        except ValueError:
            raise ValueError("flags as on the command line of vllm serve, with every quote closed") from None
        rest = stream.read().lstrip()
    return tuple(words)


_BEFORE_JSON = re.compile(r"(?:--?[\w.+-]+=)?(?=[{\[])")


def _with_json(text: str) -> str:
    """The first word of `text`, if it is or ends in a JSON object or list; otherwise empty."""
    match = _BEFORE_JSON.match(text)
    if not match:
        return ""
    # Imported here: few instances have JSON in their flags.
    import json

    try:
        _, end = json.JSONDecoder().raw_decode(text, match.end())
    except (ValueError, RecursionError):
        return ""
    return "" if text[end : end + 1].strip() else text[:end]


class Key(NamedTuple):
    """One key of a settings file.

    `parse` turns the text into the value, or raises ValueError with what is allowed. `default` is text as in a file, or
    None if there is no default. `host_key` names the host-wide key that supplies the value if the instance's file does
    not set it. A number below `least` is raised to it.
    """

    name: str
    parse: Callable[[str], object]
    default: str | None
    meaning: str
    host_key: str | None = None
    required: bool = False
    least: float | None = None

    def accept(self, value: object) -> object:
        """Validate a value that a program gives by the same rule; returns the value.

        Raises ValueError with the key, the value and what is allowed.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            return self.raised(self.parse(str(value)))
        except ValueError as error:
            raise ValueError(f"{self.name}={value} is refused: write {error}") from None

    def raised(self, value: object) -> object:
        """A value that `parse` has returned, or `least` if that is greater."""
        return self.least if self.least is not None and isinstance(value, float) and value < self.least else value


def allowed(key: Key) -> str:
    """The values that the rule of a key allows, in words."""
    try:
        key.parse("'\0")
    except ValueError as error:
        return str(error)
    return "any text"


_restart = _choice("no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always")
_FILES_OF_ALL = ("TLS_CERT_FILE", "TLS_KEY_FILE", "HUB_TOKEN_FILE")
HOST_KEYS = {
    key.name: key
    for key in (
        Key("CITADEL_ENV", word, "production", "Purpose of this host; only shown to people."),
        Key("SERVER_IP", address, "127.0.0.1", "Address of the monitor, and of models whose file has no HOST."),
        Key("SERVER_HOSTNAME", host_name, "localhost", "Name of this host in reports."),
        Key(
            "VLLM_SERVICE_TEMPLATE_PATH",
            path,
            "/opt/citadel/config/services",
            "Directory in which check expects a link to the template.",
        ),
        Key("LOG_TO_FILE", yes_or_no, "no", "Whether models log to files in addition to the journal."),
        Key("VLLM_LOG_PATH", path, "/var/log/citadel-llm", "Directory of the log files, see LOG_TO_FILE."),
        Key(
            "VLLM_PID_PATH",
            run_time_path,
            "/run/citadel-llm",
            "Parent of the run-time directories (file pid).",
        ),
        Key(
            "VLLM_USER", account, PACKAGE_USER, f"User that runs the models; {DYNAMIC_USER}: each as a user of its own."
        ),
        Key("VLLM_GROUP", account, PACKAGE_USER, "Group that runs the models."),
        Key("DEFAULT_MEMORY_LIMIT_GB", gigabytes, "4", "MEMORY_LIMIT_GB of instances that set none (GB)."),
        Key("DEFAULT_CPU_CORES", cores, "2", "CPU_CORES of instances that set none (cores)."),
        Key("DEFAULT_MAX_TASKS", tasks, "1000", "MAX_TASKS of instances that set none (processes and threads)."),
        Key("DEFAULT_RESTART_POLICY", _restart, "always", "RESTART_POLICY of instances that set none."),
        Key("DEFAULT_RESTART_SEC", seconds, "10", "RESTART_SEC of instances that set none (seconds)."),
        Key("ALLOW_UNAUTHENTICATED", yes_or_no, "no", "Whether other hosts may use models without a key."),
        *(Key(name, path, None, f"{name} of instances that set none.") for name in _FILES_OF_ALL),
        Key("CITADEL_RESTART_ON_UPGRADE", yes_or_no, "yes", "Whether an upgrade restarts running models."),
        Key("HEALTH_PORT", port, "8000", "Port of the monitor's health pages."),
        Key("METRICS_PORT", port, "9090", "Port of the monitor's Prometheus metrics."),
    )
}
"""Keys of /etc/default/citadel-llm."""


def _like(host_key: str, name: str, meaning: str) -> Key:
    """An instance key with the rule of a host-wide key, and with its value as the default."""
    return Key(name, HOST_KEYS[host_key].parse, None, meaning, host_key)


INSTANCE_KEYS = {
    key.name: key
    for key in (
        Key("MODEL", model, None, "Directory of the model, or its hub id.", required=True),
        Key("PORT", port, None, "Port of the OpenAI API.", required=True),
        _like("SERVER_IP", "HOST", "Address of the OpenAI API."),
        Key("SERVED_MODEL_NAME", served_name, None, "Model name in API requests; by default the instance's name."),
        _like("DEFAULT_MEMORY_LIMIT_GB", "MEMORY_LIMIT_GB", "Memory at which the kernel kills a process (GB)."),
        _like("DEFAULT_CPU_CORES", "CPU_CORES", "CPU time that the service may use (cores)."),
        _like("DEFAULT_MAX_TASKS", "MAX_TASKS", "Number of processes and threads that the service may have."),
        _like("DEFAULT_RESTART_POLICY", "RESTART_POLICY", "When systemd starts the service again: its Restart=."),
        _like("DEFAULT_RESTART_SEC", "RESTART_SEC", "Pause before systemd starts the service again (seconds)."),
        Key("START_TIMEOUT_SEC", timeout, "300", "How long loading may go without progress (seconds)."),
        Key("DRAIN_TIMEOUT_SEC", seconds, "30", "How long a stop or reload waits for requests in flight (seconds)."),
        Key(
            "HANG_TIMEOUT_SEC",
            timeout,
            "300",
            "How long requests may wait without a new token (seconds); "
            f"less than {LEAST_HANG_SEC:g} counts as {LEAST_HANG_SEC:g}.",
            least=LEAST_HANG_SEC,
        ),
        Key(
            "CLIENT_TIMEOUT_SEC",
            timeout,
            "300",
            "How long a client may take no byte of its answer before it is disconnected (seconds).",
        ),
        Key(
            "MAX_MODEL_LEN",
            tokens,
            None,
            "Maximum length of prompt and answer together (tokens); by default the model's.",
        ),
        Key("KV_CACHE_GB", gigabytes, None, "Memory for the KV cache (GB); by default what the limit leaves."),
        Key("GPU_DEVICES", devices, "", "GPUs of the service, such as 0,1 or all; empty to run on the CPU."),
        Key("REQUIRES", instances, "", "Instances that must run while this instance runs."),
        Key("AFTER", instances, "", "Instances that start before this instance."),
        Key("MAX_REQUEST_MB", megabytes, "64", "Size of a request's body (MB); a larger request gets status 413."),
        Key(
            "MAX_CONNECTIONS",
            connections,
            "1024",
            "Number of connections that clients may have open; a quarter is for those without a valid key.",
        ),
        Key("API_KEY_FILE", path, None, "File with the keys that requests may carry; citadel-llm key creates it."),
        _like("ALLOW_UNAUTHENTICATED", "ALLOW_UNAUTHENTICATED", "Whether other hosts may use the model without a key."),
        _like(
            "TLS_CERT_FILE",
            "TLS_CERT_FILE",
            "File with the certificate for HTTPS and those of its issuers (PEM).",
        ),
        _like("TLS_KEY_FILE", "TLS_KEY_FILE", "File with the certificate's private key, readable by root only (PEM)."),
        Key("ALLOW_DOWNLOAD", yes_or_no, "no", "Whether a start may fetch the model from the hub."),
        _like("HUB_TOKEN_FILE", "HUB_TOKEN_FILE", "File with a token of the hub, for pull and ALLOW_DOWNLOAD."),
        Key("START_METHOD", _choice("fork", "spawn"), "fork", "fork: import vLLM once; spawn: start like plain vLLM."),
        Key(
            "RELOAD_METHOD",
            _choice("auto", "beside", "restart"),
            "auto",
            "beside: a reload starts the new server beside the old; restart: after its end; auto: as memory allows.",
        ),
        Key("VLLM_ARGS", arguments, "", "Further flags of vllm serve; JSON needs no quotes of its own."),
    )
}
"""Keys of /etc/default/citadel-llm-<instance>."""
