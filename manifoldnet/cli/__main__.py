"""`python -m manifoldnet.cli`."""

import sys

from manifoldnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
