"""`manifoldnet build-kernel`: the kernel of `fused=True`, compiled ahead of the first step."""

from __future__ import annotations

import argparse
from typing import Any


def add_kernel(commands: Any) -> None:
    """Add the command."""
    summary = "compile the kernel of fused=True ahead, and print its path"
    command = commands.add_parser(
        "build-kernel",
        help=summary,
        description=summary.capitalize() + ". Nothing is compiled where it is in the cache "
        "folder already. CXX names the compiler, MANIFOLDNET_CACHE the folder.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_build)
    command.add_argument(
        "--force", action="store_true", help="compile it anew, with another compiler, say"
    )


def _build(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.errors import ExperimentError
    from manifoldnet.optim.backends.cpp.build import KernelError, build

    try:
        print(build(force=arguments.force))
    except KernelError as error:
        raise ExperimentError(str(error)) from error
