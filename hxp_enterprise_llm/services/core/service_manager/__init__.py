"""One instance from inside (`python -m` this package), and many from outside."""
