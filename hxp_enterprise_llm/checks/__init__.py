"""The requirements of a start, checked before the start."""
