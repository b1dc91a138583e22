"""`manifoldnet symmetries`: which scalings leave a user's loss as it is, and who respects them."""

from __future__ import annotations

import argparse
from typing import Any

_SYMMETRIES = """the function takes no arguments and gives
  (model, loss_fn, batches)   or   (model, loss_fn, batches, make_optimizer)
with loss_fn(output, target), pairs (input, target) in batches, and make_optimizer(model), which
gives a column for the optimizer that you use. Each update respects a symmetry (step and scale is
scale and step), fixes it (a scaled weight is off its manifold), or ignores it (relative error)."""


def _symmetries(arguments: argparse.Namespace) -> None:
    from manifoldnet.experiments import symmetries
    from manifoldnet.experiments.progress import StatusLine

    with StatusLine(enabled=not arguments.quiet) as status:
        found = symmetries.find(
            arguments.target,
            classifier=arguments.classifier,
            keep_eps=arguments.keep_eps,
            seed=arguments.seed,
            on_progress=status,
        )
    print(found)


def add_symmetries(commands: Any) -> None:
    """Adds the command."""
    summary = "find the scaling symmetries of a model, and which updates respect them"
    command = commands.add_parser(
        "symmetries",
        help=summary,
        description=summary.capitalize() + ".",
        epilog=_SYMMETRIES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_symmetries)
    command.add_argument(
        "target", metavar="module:factory", help="or file.py:factory; the function is called"
    )
    command.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME",
        help="the layer that classifies: where the updates of the paper treat it as such "
        "(may be given several times; default: they follow the symmetries)",
    )
    command.add_argument(
        "--keep-eps",
        action="store_true",
        help="leave ε in normalization layers while looking; it blurs their symmetries",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all random choices (%(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress line")
