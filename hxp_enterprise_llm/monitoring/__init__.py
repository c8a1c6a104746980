"""The monitor: the state of the instances from systemd, the kernel and their ports, as JSON, metrics and a page."""
