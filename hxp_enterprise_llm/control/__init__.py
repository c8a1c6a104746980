"""systemd's units from outside: the service manager, its D-Bus, the order of many instances."""
