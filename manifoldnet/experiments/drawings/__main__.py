"""Writes every picture, twice: `sphere-light.svg`, `sphere-dark.svg`, …"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manifoldnet.experiments.drawings import cylinder, paths, sphere, verdicts
from manifoldnet.experiments.drawings.palette import DARK, LIGHT, Palette
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.plotting import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES: dict[str, Callable[[Palette], Figure]] = {
    "cylinder": cylinder.draw,
    "paths": paths.draw,
    "sphere": sphere.draw,
    "verdicts": verdicts.draw,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draws.

    Args:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        The exit code: 2 if matplotlib is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m manifoldnet.experiments.drawings",
        description="Draw the documentation's pictures, for light and for dark pages.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="where the files go"
    )
    arguments = parser.parse_args(argv)
    try:
        for name, draw in PICTURES.items():
            for palette in (LIGHT, DARK):
                path = arguments.out / f"{name}-{palette.name}.svg"
                write_bytes(path, svg(draw(palette)))
                sys.stdout.write(f"{path}\n")
    except ExperimentError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
