"""Main process of a citadel-llm@ unit, by the name that the unit and task 1.1 use."""

import sys

from hxp_enterprise_llm.supervisor.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
