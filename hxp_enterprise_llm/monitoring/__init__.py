"""The monitor: what the services do, seen from systemd, the kernel and their own ports; as JSON, metrics and a page."""
