"""What a start needs, checked before the start."""
