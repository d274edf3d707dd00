"""`python -m openwork` is the command `openwork`."""

import sys

from openwork.cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
