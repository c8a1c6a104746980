"""Instances from outside: the service manager, systemd's D-Bus, and the order of several instances."""
