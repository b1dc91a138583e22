"""`manifoldnet symmetries`: arguments of the command and its output."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """the function takes no arguments and returns
  (model, loss_fn, batches)   or   (model, loss_fn, batches, make_optimizer)
with loss_fn(output, target) or None (the model computes its loss), pairs (input, target) or dicts
with labels in batches, and make_optimizer(model), which adds a column for your own optimizer.
An update respects a symmetry (it commutes with the scaling or the linear map), fixes it (a moved
weight is off its manifold), or ignores it (with a relative error)."""


def _symmetries(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments.progress import StatusLine
    from manifoldnet.symmetry.factory import find_symmetries

    with StatusLine(enabled=not arguments.quiet) as status:
        found = find_symmetries(
            arguments.target,
            kind=arguments.kind,
            classifier=arguments.classifier,
            keep_eps=arguments.keep_eps,
            seed=arguments.seed,
            on_progress=status,
        )
    print(found)


def add_symmetries(commands: Any) -> None:
    """Add the command."""
    summary = "find the symmetries of a model, and which updates respect them"
    command = commands.add_parser(
        "symmetries",
        help=summary,
        description=summary.capitalize() + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_symmetries)
    command.add_argument(
        "target", metavar="module:factory", help="or file.py:factory; the function is called"
    )
    command.add_argument(
        "--kind",
        choices=("scaling", "linear"),
        default="scaling",
        help="scalings of rows and columns, or all linear maps and translations, in named blocks "
        "(%(default)s)",
    )
    command.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME",
        help="a layer that classifies, which the updates of the paper treat differently "
        "(may be given several times; default: they follow the symmetries)",
    )
    command.add_argument(
        "--keep-eps",
        action="store_true",
        help="leave ε in normalization layers; with it their symmetries are approximate",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random choices (%(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress line")
