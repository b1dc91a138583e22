"""The command line: `manifoldnet train`, `compare`, `symmetries`, `build-kernel`, ….

Exit codes: 0 done; 2 something in the request is wrong (one line on stderr says what); 130
interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from manifoldnet.cli.kernel import add_kernel
from manifoldnet.cli.papers import add_papers
from manifoldnet.cli.symmetries import add_symmetries
from manifoldnet.cli.training import add_training
from manifoldnet.experiments.errors import ExperimentError
from manifoldnet.symmetry.factory import SymmetriesError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except (ExperimentError, SymmetriesError) as error:
        print(f"manifoldnet: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"manifoldnet: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = getattr(arguments, "interrupted", None)
        ending = interrupted(argv) if interrupted else ""
        print(f"\nmanifoldnet: interrupted{ending}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manifoldnet",
        description="Train networks with weights on manifolds, and compare weight updates.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_training(commands)
    add_symmetries(commands)
    add_papers(commands)
    add_kernel(commands)
    return parser
