"""Measures citadel-llm beside what a person would do instead, in one run on one booted machine: `./build.sh bench`.

A reader of a figure wants the ratio: absolute seconds are this machine's, and both sides have them.
"""
