"""Makes the tests' own modules importable; `./build.sh test` sets the environment."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What runs in the background of a shell is started deaf to it, and so would be what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
