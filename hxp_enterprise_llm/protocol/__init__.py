"""Formats that two processes share: state.json, reload requests, credentials, and the names of the worker."""
