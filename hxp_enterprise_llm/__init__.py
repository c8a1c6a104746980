"""Serve language models with vLLM as systemd services."""
