"""The job with which Prometheus scrapes an instance that requires keys."""

from hxp_enterprise_llm.settings.address import authority
from hxp_enterprise_llm.settings.values import load_host

JOB = """\
  - job_name: citadel-llm-model-{name}
    scrape_interval: 15s
    follow_redirects: false
    authorization:
      credentials_file: {key_file}
    http_sd_configs:
      - url: http://{monitor}/health/targets/{name}
        refresh_interval: 15s"""
"""The monitor names the address of this instance only, so the key goes to no other."""


def key_file(name: str) -> str:
    """The file from which Prometheus reads the key of an instance."""
    return f"/etc/prometheus/citadel-llm-{name}.key"


def text(name: str, root: str = "/") -> str:
    """The job for an instance, as YAML below `scrape_configs:`."""
    host = load_host(root).values
    monitor = authority(host["SERVER_IP"], host["HEALTH_PORT"])
    return JOB.format(name=name, key_file=key_file(name), monitor=monitor)
