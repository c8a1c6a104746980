"""The systemd generator: settings to drop-ins. Runs as root at boot."""
