"""What the kernel and systemd offer to any process: processes, journal, sd_notify, isolation, TLS."""
