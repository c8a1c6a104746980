"""Instances seen from outside: the service manager, systemd's D-Bus interface, and the order of several instances."""
