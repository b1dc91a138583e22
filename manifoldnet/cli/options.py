"""Options that several commands have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def add_data_dir(command: argparse.ArgumentParser) -> None:
    """Adds ``--data-dir``."""
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of Hugging Face data sets (default: $MANIFOLDNET_DATA, else the hub)",
    )


def notice_of(arguments: argparse.Namespace) -> Callable[[str], None] | None:
    """What prints a line before anything slow; None with ``--quiet``."""
    return None if arguments.quiet else lambda line: print(line, file=sys.stderr)
