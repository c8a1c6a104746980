"""Measures citadel-llm and a handwritten unit side by side in one run on one booted machine: `./build.sh bench`.

The ratio is the figure to read: absolute seconds depend on the machine, which both sides share.
"""
