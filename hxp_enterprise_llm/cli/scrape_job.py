"""The job with which Prometheus scrapes an instance that requires keys."""

import json

from hxp_enterprise_llm.settings.address import authority
from hxp_enterprise_llm.settings.values import load_host, load_instance

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

TLS = """
    tls_config:
      ca_file: {certificate}
      # If the certificate does not contain the address of the model, a name that it contains:
      # server_name: llm.example.org"""
"""For an instance with HTTPS. Its own certificate is enough as authority, and Prometheus reads a renewed one."""


def key_file(name: str) -> str:
    """The file from which Prometheus reads the key of an instance."""
    return f"/etc/prometheus/citadel-llm-{name}.key"


def text(name: str, root: str = "/") -> str:
    """The job for an instance, as YAML below `scrape_configs:`."""
    host = load_host(root)
    monitor = authority(host.values["SERVER_IP"], host.values["HEALTH_PORT"])
    job = JOB.format(name=name, key_file=key_file(name), monitor=monitor)
    certificate = load_instance(name, host, root).understood["TLS_CERT_FILE"]
    # A string of JSON is one of YAML.
    return job + TLS.format(certificate=json.dumps(certificate)) if certificate else job
