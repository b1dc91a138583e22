"""`manifoldnet reproduce PAPER EXPERIMENT`, and `manifoldnet report`, which reads the records.

The evidence on today's networks stands among the papers, as "evidence".
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from manifoldnet.cli.options import add_options, notice_of, values
from manifoldnet.experiments.errors import require
from manifoldnet.experiments.evidence import studies as evidence
from manifoldnet.experiments.papers.scale_invariant import studies as scale_invariant
from manifoldnet.experiments.papers.segnet import studies as segnet
from manifoldnet.experiments.papers.symmetry import studies as symmetry
from manifoldnet.experiments.papers.symmetry.moving_frame import rescaled, table
from manifoldnet.experiments.papers.symmetry.moving_frame import studies as moving_frame
from manifoldnet.experiments.study import Options, Study, Sweep

_SAME_COMMAND = "; finished runs are kept. Go on with the same command"

PAPERS: Mapping[str, Mapping[str, Study]] = {
    "symmetry": symmetry.STUDIES
    | segnet.STUDIES
    | moving_frame.STUDIES
    | table.STUDIES
    | rescaled.STUDIES,
    "scale-invariant": scale_invariant.STUDIES,
    "evidence": evidence.STUDIES,
}

# By the experiment of the records: the module with the schema, and the one with the report.
_REPORTS = {
    paper.EXPERIMENT: (paper.SCHEMA, paper.REPORT)
    for paper in (symmetry, segnet, moving_frame, table, rescaled, scale_invariant, evidence)
} | {"": (symmetry.SCHEMA, symmetry.REPORT)}


def add_papers(commands: Any) -> None:
    """Add the two commands."""
    summary = "run experiments of a paper, or the evidence, or what is missing of them"
    reproduce = commands.add_parser(
        "reproduce",
        help=summary,
        description=f"{summary.capitalize()}. Stopped in any way, the same command goes on.",
        allow_abbrev=False,
    )
    papers = reproduce.add_subparsers(dest="paper", required=True, metavar="PAPER")
    for paper, studies in PAPERS.items():
        which = papers.add_parser(paper, help=", ".join(studies), allow_abbrev=False)
        experiments = which.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
        for name, study in studies.items():
            command = experiments.add_parser(
                name,
                help=study.summary,
                description=f"{study.summary}.",
                epilog=study.epilog,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            add_options(command, study.options)
            command.set_defaults(run=_reproduce, interrupted=lambda argv: _SAME_COMMAND)
    summary = "set the runs of `reproduce` beside the paper's numbers; trains nothing"
    report = commands.add_parser(
        "report", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    report.set_defaults(run=_report)
    report.add_argument("directory", type=Path, metavar="DIR", help="folder of the records")
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the report (default: beside them)"
    )
    report.add_argument(
        "--pack", action="store_true", help="put the records of each sweep into one file as well"
    )


def _reproduce(arguments: argparse.Namespace) -> None:
    require("the experiment", "pandas")
    study = PAPERS[arguments.paper][arguments.experiment]
    options = values(arguments, study.options)
    steps = study.steps(options)
    records = None
    with suppress(StopIteration):
        while True:
            step = steps.send(records)
            records = print(step) if isinstance(step, str) else _sweep(step, study, options)


def _sweep(step: Sweep, study: Study, options: Options) -> list[Any]:
    from manifoldnet.experiments.sweep import sweep
    from manifoldnet.experiments.workers import cluster

    workers = nullcontext(None) if options.cluster is None else cluster(options.cluster)
    jobs = options.jobs or (1 if options.device != "cpu" else None)
    with workers as executor:
        records = sweep(
            replace(study.experiment(), device=options.device),
            step.configs,
            step.folder,
            axes=step.axes,
            purpose=step.purpose,
            checkpoints=step.checkpoints,
            jobs=jobs,
            executor=executor,
            data_dir=options.data_dir,
            progress=not options.quiet,
            notice=notice_of(options),
        )
    diverged = sum(record.result is not None and record.result.diverged for record in records)
    print(f"{len(records)} runs of {step.title} are in {step.folder}, {diverged} diverged")
    print(f"report: {shlex.join(['manifoldnet', 'report', str(step.folder)])}")
    return records


def _report(arguments: argparse.Namespace) -> None:
    require("the report", "pandas", "matplotlib", "scipy")
    from manifoldnet.experiments import store

    folders = store.sweeps(arguments.directory)
    found = {store.experiment(folder) for folder in folders}
    # Of no records, or those of several papers, the first report complains.
    schema, write = map(_load, _REPORTS[found.pop() if len(found) == 1 else ""])
    report = write(arguments.directory, arguments.out)
    print(report.text)
    for path in report.files:
        print(path)
    if arguments.pack:
        for folder in folders:
            print(store.pack(folder, schema))


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"manifoldnet.experiments.{module}"), attribute)
