import pytest

from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.errors import ExitStatus, SettingsRefused
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.keys import INSTANCE_KEYS
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

from .conftest import Root


def test_every_key_of_the_table_is_a_field_of_the_schema() -> None:
    fields = {name.upper() for name in ServiceConfigSchema.model_fields} - {"NAME", "ENVIRONMENT"}
    assert fields == set(INSTANCE_KEYS)


def test_instance_overrides_host_and_host_overrides_built_in(root: Root) -> None:
    root.host("DEFAULT_MEMORY_LIMIT_GB=6\nDEFAULT_CPU_CORES=3\n")
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nCPU_CORES=1.5\nOMP_NUM_THREADS=1\n")
    settings, warnings = config.load("m", str(root))
    assert (settings.memory_limit_gb, settings.cpu_cores, settings.max_tasks) == (6.0, 1.5, 1000)
    assert settings.api_name == "m"
    assert settings.environment == {"OMP_NUM_THREADS": "1"}
    assert not warnings


def test_all_errors_of_a_file_are_reported_together(root: Root) -> None:
    root.instance("m", "MEMORY_LIMIT_GB=lots\nPORT=80\nMODEL=$X\n")
    with pytest.raises(SettingsRefused) as refused:
        config.load("m", str(root))
    text = str(refused.value)
    assert "citadel-llm-m:1: MEMORY_LIMIT_GB=lots is refused: write a number of gigabytes" in text
    assert "citadel-llm-m:2: PORT=80 is refused: write a port from 1024" in text
    assert "citadel-llm-m:3: MODEL: leave out the $: dotenv and a shell expand" in text
    assert refused.value.exit_status is ExitStatus.CONFIG and int(ExitStatus.CONFIG) == 78


def test_missing_key_or_file_error_suggests_the_fix(root: Root) -> None:
    root.instance("m", "PORT=11500\n")
    with pytest.raises(SettingsRefused, match="MODEL is missing; write MODEL= and the absolute path"):
        config.load("m", str(root))
    with pytest.raises(SettingsRefused, match="does not exist; create it"):
        config.load("other", str(root))


def test_emptied_required_key_is_reported_as_missing(root: Root) -> None:
    """The repeated key is a warning beside it."""
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nPORT=\n")
    with pytest.raises(SettingsRefused, match="PORT is missing"):
        config.load("m", str(root))


def test_unknown_key_is_a_warning_suggesting_the_nearest_key(root: Root) -> None:
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nMEMORY_LIMIT=4\n")
    _, warnings = config.load("m", str(root))
    assert "did you mean MEMORY_LIMIT_GB?" in str(warnings[0])


def test_too_short_hang_timeout_is_raised_to_the_minimum(root: Root) -> None:
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nHANG_TIMEOUT_SEC=2\n")
    settings, (warning,) = config.load("m", str(root))
    assert (settings.hang_timeout_sec, warning.line, warning.fatal) == (5.0, 3, False)
    assert "HANG_TIMEOUT_SEC=2 is too short and counts as 5" in warning.text
    assert ServiceConfigSchema(name="m", model="/srv/m", port=11500, hang_timeout_sec=2).hang_timeout_sec == 5.0
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nHANG_TIMEOUT_SEC=5.5\n")
    settings, warnings = config.load("m", str(root))
    assert (settings.hang_timeout_sec, warnings) == (5.5, [])


@pytest.mark.parametrize("name", ["../x", "a b", "é", "x" * 300, "", "-x", "m.dpkg-old", "a/b"])
def test_invalid_instance_names_are_refused(name: str, root: Root) -> None:
    with pytest.raises(SettingsRefused, match=r"^'[^']*' is not an instance name"):
        config.load(name, str(root))


def test_leftover_files_are_not_instances(root: Root) -> None:
    for name in ("m", "m.dpkg-old", "m~", "m.ucf-dist", "m.bak", ".m.swp"):
        root.instance(name, "")
    assert config.instance_names(str(root)) == ["m"]


def test_a_secret_in_a_settings_file_is_refused(root: Root) -> None:
    for line in ("VLLM_API_KEY=x", "VLLM_ARGS='--api-key x'"):
        root.instance("m", f"MODEL=/srv/m\nPORT=11500\n{line}\n")
        with pytest.raises(SettingsRefused, match="API_KEY_FILE"):
            config.load("m", str(root))


def test_certificate_requires_key_and_host_file_may_set_both(root: Root) -> None:
    for line, other in (("TLS_CERT_FILE=/c", "TLS_KEY_FILE"), ("TLS_KEY_FILE=/k", "TLS_CERT_FILE")):
        root.instance("m", f"MODEL=/srv/m\nPORT=11500\n{line}\n")
        with pytest.raises(SettingsRefused, match=f"requires {other}"):
            config.load("m", str(root))
    root.host("TLS_CERT_FILE=/host/c\nTLS_KEY_FILE=/host/k\n")
    root.instance("m", "MODEL=/srv/m\nPORT=11500\n")
    loaded, _ = config.load("m", str(root))
    assert (loaded.tls_cert_file, loaded.tls_key_file) == ("/host/c", "/host/k")
    assert Address.of(loaded).url == "https://127.0.0.1:11500"


def test_cache_must_be_below_the_limit(root: Root) -> None:
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nMEMORY_LIMIT_GB=2\nKV_CACHE_GB=2\n")
    with pytest.raises(SettingsRefused, match="KV_CACHE_GB=2 must be below MEMORY_LIMIT_GB=2"):
        config.load("m", str(root))


def test_schema_from_python_follows_the_same_rules() -> None:
    assert ServiceConfigSchema(name="m", model="/srv/m", port=11500, memory_limit_gb=0.5).memory_limit_gb == 0.5
    with pytest.raises(ValueError, match="PORT=80 is refused"):
        ServiceConfigSchema(name="m", model="/srv/m", port=80)


def test_manager_config_reads_the_host_file(root: Root) -> None:
    assert ServiceManagerConfig.load(str(root)) == ServiceManagerConfig()
    root.host("VLLM_USER=llm\nDEFAULT_RESTART_SEC=5\nDEFAULT_MEMORY_LIMIT_GB=8\n")
    loaded = ServiceManagerConfig.load(str(root))
    assert (loaded.user, loaded.restart_sec, loaded.default_memory_limit_gb) == ("llm", 5.0, 8.0)
    root.host("DEFAULT_RESTART_SEC=soon\n")
    with pytest.raises(SettingsRefused):
        ServiceManagerConfig.load(str(root))


def test_host_settings_follow_the_rules_of_their_keys(root: Root) -> None:
    assert ServiceManagerConfig(pid_path="/var/run/citadel-llm", restart_sec=10) == ServiceManagerConfig()
    root.host("HEALTH_PORT=8001\nDEFAULT_CPU_CORES=1.5\nSERVER_IP=192.0.2.1\n")
    loaded = ServiceManagerConfig.load(str(root))
    assert (loaded.health_port, loaded.default_cpu_cores, loaded.server_ip) == (8001, 1.5, "192.0.2.1")
    with pytest.raises(ValueError, match="DEFAULT_RESTART_POLICY=x is refused: write one of no, on-success"):
        ServiceManagerConfig(restart_policy="x")


def test_hub_token_in_settings_file_is_refused(root: Root) -> None:
    root.instance("m", "MODEL=/srv/m\nPORT=11500\nHF_TOKEN=hf_secret\n")
    with pytest.raises(SettingsRefused, match=r"HF_TOKEN does not belong .*HUB_TOKEN_FILE") as refused:
        config.load("m", str(root))
    assert "hf_secret" not in str(refused.value)
