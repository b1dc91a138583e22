"""The report on a folder of runs: Table 2 and Figure 3 beside the paper's.

<folder>/records, <folder>/times.csv
    -> table2.csv, figure3.csv, figure3-light.svg, figure3-dark.svg, table2.md, table2.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from manifoldnet.experiments import store
from manifoldnet.experiments.papers.symmetry import results
from manifoldnet.experiments.papers.symmetry.cells import AXES, PROTOCOL, PUBLISHED, TABLE2, Cell
from manifoldnet.experiments.papers.symmetry.claims import Claim, Comparison, claims, compare
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION, Record, TrainConfig
from manifoldnet.experiments.papers.symmetry.figures import figure3
from manifoldnet.experiments.papers.updates import ABBREVIATIONS, UPDATES
from manifoldnet.experiments.report import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    publish,
)
from manifoldnet.experiments.statistics import Estimate, log_ratio, mean_and_deviation

if TYPE_CHECKING:
    import pandas as pd


def write_paper_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of a sweep.

    Args:
        folder: folder of the records, and of the times if they were measured.
        output: folder of the report; by default `folder`.

    Raises:
        RecordError: when there are no records, one is damaged or foreign, or two do not belong into
            one report; when the times are damaged.
        MissingExtraError: without matplotlib or pandas.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    way_out = "move the runs of the other protocol away"
    found = store.read_together(folder, CLASSIFICATION, AXES, "symmetry table2", way_out=way_out)
    runs, epochs = results.run_table(found), results.figure3_table(found)
    picture = figure3(epochs, results.by_cell(runs))
    blocks = list(
        _blocks(
            runs,
            found[0].config,
            _versions(found),
            results.read_times(folder),
            Picture(
                "figure3",
                picture,
                "Figure 3: mean test error by epoch, of each update, on Arch1 and Arch2",
            ),
            folder,
        )
    )
    tables = {"table2.csv": results.to_csv(runs), "figure3.csv": results.figure3_csv(epochs)}
    return publish(blocks, output, "table2", tables)


def _blocks(
    runs: pd.DataFrame,
    config: TrainConfig,
    versions: str,
    times: results.Costs | None,
    picture: Picture,
    folder: Path,
) -> Iterator[Block]:
    cells = results.by_cell(runs)
    missing = [cell.name for cell in TABLE2 if cell not in cells]
    other = config.differences(replace(PROTOCOL, **{name: getattr(config, name) for name in AXES}))
    judged = claims(runs, times)
    yield Heading("Table 2 and Figure 3 of the symmetry paper", 1)
    yield Table(("claim of the paper", "verdict"), tuple((c.text, c.verdict) for c in judged), 2)
    yield Paragraph(
        f"In the tables, {ABBREVIATIONS}; sm-geodesic is the scaled metric with its exact geodesic "
        "step. Arch1 is the network without normalization, Arch2 the one with batch normalization."
    )
    yield Paragraph(
        f"{len(runs)} runs of {len(cells)} cells; {runs.diverged.sum()} "
        "diverged (a loss that is not finite, or a final validation error rate above "
        f"{config.diverged_above:g}) and are set aside, as in the paper. Errors are rates on the "
        "test images after the last epoch, mean ± standard deviation over the n runs that did not "
        "diverge."
    )
    yield Paragraph(f"{_protocol(config)} {versions}")
    if other:
        yield Paragraph(f"Not the paper's protocol, so its numbers are left out: {other}.")
    if missing:
        yield Paragraph(f"Cells without runs: {', '.join(missing)}.")
    yield Heading("Table 2")
    yield _table2(cells, published=not other)
    yield Heading("Figure 3")
    yield picture
    yield Heading("The paper's claims")
    yield Paragraph(
        "A claim holds when every 95 % interval lies on its side of zero (for ratios of times: of "
        "their bound), and in part when some do and none lies on the other side. Differences are "
        "paired over seeds. The intervals are not corrected for multiple comparisons. n counts the "
        "pairs in which neither run diverged, of all pairs; brackets have the number of runs that "
        "diverged on the first side and on the second."
    )
    for claim in judged:
        yield from _claim(claim)
    yield Heading("Updates against B-SGD, paired over seeds")
    yield _against(runs, cells, "b-sgd", [name for name in UPDATES if name != "b-sgd"])
    if any(cell.update == "sm-geodesic" for cell in cells):
        yield Heading("Exponential map against additive retraction")
        yield Paragraph(
            "sm-geodesic retracts by the exponential map, sm by addition as in the paper."
        )
        yield _against(runs, cells, "sm", ["sm-geodesic"])
    yield Heading("Learning rates chosen, and how runs ended")
    yield _choices(cells)
    yield Heading("Time of a training pass")
    if times is None:
        yield Paragraph(
            "Indicative, measured beside other work: medians of what the records say. To measure "
            "what the updates cost: python -m manifoldnet.experiments.papers.symmetry.times "
            f"--out {folder}"
        )
        yield _indications(runs)
    else:
        yield Paragraph(
            f"From {results.TIMES}: a pass over 50,000 images of MNIST with one thread, the "
            "updates taking turns; ratios pass by pass, their geometric mean and 95 % interval."
        )
        yield _times(times)


def _protocol(config: TrainConfig) -> str:
    """The settings that all runs share, in words."""
    training = "all other" if config.train_size is None else f"{config.train_size:,}"
    held_out = "a sixth" if config.validation_size is None else f"{config.validation_size:,}"
    epochs = f"{config.epochs} epochs"
    if config.min_epochs is not None:
        epochs += f" ({config.min_epochs} to {config.epochs} with the bold driver)"
    rate = "chosen for each run" if config.lr is None else f"{config.lr:g}"
    return (
        f"Protocol: {config.dataset}, {training} training and {held_out} validation images, "
        f"minibatches of {config.batch_size}, {epochs}, λ {rate}."
    )


def _versions(records: Iterable[Record]) -> str:
    made = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in sorted(run.versions.items()))
        for run in sorted(records, key=results.order)
    )
    mixed = " Runs of different versions are mixed here." if len(made) > 1 else ""
    return f"Made with {'; '.join(made)}.{mixed}"


def _table2(cells: Mapping[Cell, pd.DataFrame], published: bool) -> Table:
    rows = []
    for cell, runs in cells.items():
        ours = results.test_error(runs)
        errors = runs.test_error[~runs.diverged]
        row = (
            *(cell.architecture, str(cell.depth), cell.schedule, cell.update),
            *(mean_and_deviation(errors), str(ours.n), str(runs.diverged.sum())),
        )
        rows.append((*row, *_paper(cell, ours)) if published else row)
    header = ("network", "layers", "schedule", "update", "test error", "n", "diverged")
    paper = ("paper", "paper's deviations apart") if published else ()
    return Table((*header, *paper), tuple(rows), words=4)


def _paper(cell: Cell, ours: Estimate) -> tuple[str, str]:
    """The paper's mean for a cell, and the distance of ours from it in its deviations."""
    published = PUBLISHED.get(cell)
    if published is None:
        return "–", "–"
    apart = (ours.mean - published.mean) / published.deviation
    text = f"{published.mean:.4f} ± {published.deviation:.4f}"
    return text, f"{apart:+z.1f}" if ours.n else "–"


def _claim(claim: Claim) -> Iterator[Block]:
    yield Heading(f"{claim.text}: {claim.verdict}", 3)
    if claim.note:
        yield Paragraph(f"Read as: {claim.note}.")
    if not claim.comparisons:
        yield Paragraph("The measurement is missing; the command that makes it stands below.")
        return
    timed = claim.unit == "time"
    rows = (
        (c.text, *((*c.difference.factor(), str(c.difference.n)) if timed else _difference(c)))
        for c in claim.comparisons
    )
    header = ("comparison", "ratio" if timed else "difference", "95 % interval", "n")
    yield Table(header, tuple(rows))


def _difference(each: Comparison) -> tuple[str, str, str]:
    diverged = " ({} and {} diverged)".format(*each.diverged) if any(each.diverged) else ""
    return *each.difference.signed(), f"{each.difference.n} of {each.pairs}{diverged}"


def _against(runs: pd.DataFrame, cells: Iterable[Cell], base: str, updates: Sequence[str]) -> Table:
    rows = []
    for update in updates:
        for cell in cells:
            other = replace(cell, update=base)
            if cell.update == update and other in cells:
                where = f"{cell.architecture}, {cell.depth} layers, {cell.schedule}"
                each = compare(runs, f"{update} − {base}", [(cell, other)])
                better = "yes" if each.below else "worse" if each.above else "undecided"
                rows.append((each.text, where, *_difference(each), better))
    header = ("difference", "where", "test error", "95 % interval", "n", "better")
    return Table(header, tuple(rows), words=2)


def _choices(cells: Mapping[Cell, pd.DataFrame]) -> Table:
    rows = []
    for cell, runs in cells.items():
        chosen = sorted(Counter(runs.chosen_lr).items(), reverse=True)
        rates = ", ".join(f"{rate:g} × {n}" for rate, n in chosen)
        finished, diverged = runs[~runs.diverged], runs[runs.diverged]
        rules = Counter(finished.stopped).most_common()
        why = diverged.loss_finite.map(
            {True: "validation error too high", False: "loss not finite"}
        )
        ends = [f"{rule or 'all epochs'} × {n}" for rule, n in rules]
        ends += [f"diverged, {reason} × {n}" for reason, n in Counter(why).most_common()]
        epochs = f"{finished.trained.mean():.1f}" if len(finished) else "–"
        rows.append((cell.name, rates, "; ".join(ends), epochs))
    header = ("cell", "λ chosen × runs", "ended because × runs", "mean epochs")
    return Table(header, tuple(rows), words=3)


def _times(times: results.Costs) -> Table:
    rows = []
    for (architecture, depth), updates in times.items():
        for update, seconds in updates.items():
            ratio = log_ratio(seconds, updates[results.BASE])
            where = (architecture, str(depth), update, f"{median(seconds.values()):.3f}")
            against = ("1", "–") if update == results.BASE else ratio.factor()
            rows.append((*where, *against, str(ratio.n)))
    header = ("network", "layers", "update", "seconds (median)", "times B-SGD's")
    return Table((*header, "95 % interval", "passes"), tuple(rows), words=3)


def _indications(runs: pd.DataFrame) -> Table:
    networks = runs.groupby(["architecture", "depth", "update"], sort=False).pass_seconds
    medians, counts = networks.median(), networks.size()
    rows = []
    for (architecture, depth, update), seconds in medians.items():
        base = medians.get((architecture, depth, results.BASE))
        ratio = f"{seconds / base:.2f}" if base else "–"
        count = str(counts[architecture, depth, update])
        rows.append((architecture, str(depth), update, f"{seconds:.3f}", ratio, count))
    header = ("network", "layers", "update", "seconds (median)", "times B-SGD's", "runs")
    return Table(header, tuple(rows), words=3)
