"""The report on a folder of runs: Table 2 and Figure 3 beside the paper's. Reads files only.

<folder>/records/*.jsonl, <folder>/times.csv
    -> table2.csv, figure3.csv, figure3.png, table2.md, table2.html
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    publish,
)
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.symmetry import costs, paper, results, trajectories
from manifoldnet.experiments.papers.symmetry.cells import AXES, PROTOCOL, TABLE2, Cell
from manifoldnet.experiments.papers.symmetry.claims import Claim, Comparison, claims, compare
from manifoldnet.experiments.papers.symmetry.config import TrainConfig
from manifoldnet.experiments.papers.symmetry.rows import CLASSIFICATION
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.statistics import Estimate


def write_paper_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Writes the report on the runs of a sweep.

    Args:
        folder: with the records, and the times if they were measured.
        output: where the files go; by default into `folder`.

    Raises:
        RecordError: when there are no records, one is damaged or foreign, or two cannot stand in
            one report; when the times are damaged.
        MissingExtraError: without matplotlib.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    read = folders.read_all(folder, CLASSIFICATION, exact=False)
    if not read:
        raise RecordError(
            f"{folder} holds no records: make some with "
            f"manifoldnet reproduce symmetry table2 --out {folder}"
        )
    found = {folder / "records" / f"{name}.jsonl": record for name, record in read.items()}
    config = results.protocol(found)
    table = results.by_cell(found.values())
    picture = Picture("figure3.png", trajectories.draw(table), "Figure 3: mean test error by epoch")
    blocks = list(_blocks(table, config, costs.read(folder), picture, folder))
    tables = {"table2.csv": results.to_csv(table), "figure3.csv": trajectories.to_csv(table)}
    return publish(blocks, output, "table2", tables)


def _blocks(
    table: results.Table,
    config: TrainConfig,
    times: costs.Costs | None,
    picture: Picture,
    folder: Path,
) -> Iterator[Block]:
    diverged = sum(runs.diverged for runs in table.values())
    missing = [cell.name for cell in TABLE2 if cell not in table]
    other = config.differences(replace(PROTOCOL, **{name: getattr(config, name) for name in AXES}))
    tested = claims(table, times)
    yield Heading("Symmetry-invariant optimization: Table 2 and Figure 3", 1)
    yield Paragraph(
        f"{sum(len(runs.runs) for runs in table.values())} runs of {len(table)} cells; {diverged} "
        "diverged (a loss that is not finite, or a final validation error rate above "
        f"{config.diverged_above:g}) and are set aside, as in the paper. Errors are rates on the "
        "test images after the last epoch, mean ± standard deviation over the n runs that did not "
        "diverge."
    )
    yield Paragraph(_protocol(config, table))
    if other:
        yield Paragraph(f"Not the paper's protocol, so its numbers are left out: {other}.")
    if missing:
        yield Paragraph(f"Cells without runs: {', '.join(missing)}.")
    yield Table(("claim of the paper", "verdict"), tuple((c.text, c.verdict) for c in tested), 2)
    yield Heading("Table 2")
    yield _table2(table, published=not other)
    yield Heading("Figure 3")
    yield picture
    yield Heading("The paper's claims")
    yield Paragraph(
        "Differences are paired over seeds and given with 95 % intervals; a claim holds when every "
        "interval lies on its side of zero (ratios of times: of their bound). They are not "
        "corrected for their number. n counts the pairs in which neither run diverged, of all "
        "pairs; in brackets, how many diverged on the first side and on the second."
    )
    for claim in tested:
        yield from _claim(claim)
    yield Heading("Updates against B-SGD, paired over seeds")
    yield _against(table, "b-sgd")
    if any(cell.update == "sm-geodesic" for cell in table):
        yield Heading("Does the exact retraction help?")
        yield Paragraph("sm-geodesic against sm, which adds the step as the paper does.")
        yield _against(table, "sm")
    yield Heading("Learning rates chosen, and how runs ended")
    yield _choices(table)
    yield Heading("Time of a training pass")
    if times is None:
        yield Paragraph(
            "Indicative, measured beside other work: medians of what the records say. To measure "
            "what the updates cost: python -m manifoldnet.experiments.papers.symmetry.times "
            f"--out {folder}"
        )
        yield _indications(table)
    else:
        yield Paragraph(
            f"From {costs.NAME}: a pass over 50,000 images of MNIST with one thread, the updates "
            "taking turns; ratios pass by pass, their geometric mean and 95 % interval."
        )
        yield _times(times)


def _protocol(config: TrainConfig, table: results.Table) -> str:
    """What all runs share, in words."""
    training = "all other" if config.train_size is None else f"{config.train_size:,}"
    held_out = "a sixth" if config.validation_size is None else f"{config.validation_size:,}"
    epochs = f"{config.epochs} epochs"
    if config.min_epochs is not None:
        epochs += f" ({config.min_epochs} to {config.epochs} with the bold driver)"
    rate = "chosen for each run" if config.lr is None else f"{config.lr:g}"
    made = Counter(
        ", ".join(f"{name} {value}" for name, value in sorted(run.versions.items()))
        for runs in table.values()
        for run in runs.runs
    )
    mixed = " Runs of different versions are mixed here." if len(made) > 1 else ""
    return (
        f"Protocol: {config.dataset}, {training} training and {held_out} validation images, "
        f"minibatches of {config.batch_size}, {epochs}, λ {rate}. Made with {'; '.join(made)}."
        f"{mixed}"
    )


def _table2(table: results.Table, published: bool) -> Table:
    rows = []
    for cell, runs in table.items():
        ours = runs.test_error
        row = (
            cell.architecture,
            str(cell.depth),
            cell.schedule,
            cell.update,
            _mean(ours),
            str(ours.n),
            str(runs.diverged),
        )
        rows.append((*row, *_paper(cell, ours)) if published else row)
    header = ("network", "layers", "schedule", "update", "test error", "n", "diverged")
    beside = ("paper", "paper's deviations apart") if published else ()
    return Table((*header, *beside), tuple(rows), words=4)


def _paper(cell: Cell, ours: Estimate) -> tuple[str, str]:
    """The paper's number for a cell, and how far ours is from it."""
    published = paper.TABLE2.get(cell)
    if published is None:
        return "–", "–"
    apart = (ours.mean - published.mean) / published.deviation
    text = f"{published.mean:.4f} ± {published.deviation:.4f}"
    return text, f"{apart:+z.1f}" if ours.n else "–"


def _mean(value: Estimate) -> str:
    if not value.n:
        return "–"
    return f"{value.mean:.4f}" + (f" ± {value.deviation:.4f}" if value.n > 1 else "")


def _claim(claim: Claim) -> Iterator[Block]:
    yield Heading(f"{claim.text}: {claim.verdict}", 3)
    if claim.note:
        yield Paragraph(f"Read as: {claim.note}.")
    if not claim.comparisons:
        yield Paragraph("The measurement is missing; how to make it stands below.")
        return
    numbers = _ratio if claim.unit == "time" else _difference
    rows = tuple((each.text, *numbers(each)) for each in claim.comparisons)
    what = "ratio" if claim.unit == "time" else "difference"
    yield Table(("comparison", what, "95 % interval", "n"), rows)


def _against(table: results.Table, base: str) -> Table:
    rows = []
    updates = [name for name in UPDATES if name != base and (base != "sm" or "geodesic" in name)]
    for update in updates:
        for cell in table:
            other = Cell(cell.architecture, cell.depth, base, cell.schedule)
            if cell.update == update and other in table:
                where = f"{cell.architecture}, {cell.depth} layers, {cell.schedule}"
                each = compare(table, f"{update} − {base}", [(cell, other)])
                better = "yes" if each.below else "worse" if each.above else "undecided"
                rows.append((each.text, where, *_difference(each), better))
    header = ("difference", "where", "test error", "95 % interval", "n", "better")
    return Table(header, tuple(rows), words=2)


def _choices(table: results.Table) -> Table:
    rows = []
    for cell, runs in table.items():
        rates = ", ".join(f"{rate:g} × {n}" for rate, n in sorted(runs.rates.items(), reverse=True))
        ends = [f"{rule or 'all epochs'} × {n}" for rule, n in runs.rules.most_common()]
        ends += [f"diverged, {why} × {n}" for why, n in runs.reasons.most_common()]
        epochs = f"{runs.epochs:.1f}" if runs.finished else "–"
        rows.append((cell.name, rates, "; ".join(ends), epochs))
    header = ("cell", "λ chosen × runs", "ended because × runs", "mean epochs")
    return Table(header, tuple(rows), words=3)


def _times(times: costs.Costs) -> Table:
    rows = []
    for (architecture, depth), updates in times.items():
        for update, seconds in updates.items():
            ratio = costs.log_ratio(updates, update)
            where = (architecture, str(depth), update, f"{median(seconds.values()):.3f}")
            against = ("1", "–") if update == costs.BASE else (_factor(ratio), _span(ratio))
            rows.append((*where, *against, str(ratio.n)))
    header = ("network", "layers", "update", "seconds (median)", "times B-SGD's")
    return Table((*header, "95 % interval", "passes"), tuple(rows), words=3)


def _indications(table: results.Table) -> Table:
    groups: dict[tuple[str, int, str], list[float]] = {}
    for cell, runs in table.items():
        key = (cell.architecture, cell.depth, cell.update)
        groups.setdefault(key, []).extend(runs.pass_seconds)
    rows = []
    for (architecture, depth, update), seconds in groups.items():
        base = groups.get((architecture, depth, costs.BASE))
        ratio = f"{median(seconds) / median(base):.2f}" if base else "–"
        median_seconds = f"{median(seconds):.3f}"
        rows.append((architecture, str(depth), update, median_seconds, ratio, str(len(seconds))))
    header = ("network", "layers", "update", "seconds (median)", "times B-SGD's", "runs")
    return Table(header, tuple(rows), words=3)


def _difference(each: Comparison) -> tuple[str, str, str]:
    found = each.difference
    mean = f"{found.mean:+z.4f}" if found.n else "–"
    interval = f"{found.low:+z.4f} to {found.high:+z.4f}" if found.n > 1 else "–"
    lost = " ({} and {} diverged)".format(*each.diverged) if any(each.diverged) else ""
    return mean, interval, f"{found.n} of {each.pairs}{lost}"


def _ratio(each: Comparison) -> tuple[str, str, str]:
    return _factor(each.difference), _span(each.difference), str(each.difference.n)


def _factor(log: Estimate) -> str:
    return f"{math.exp(log.mean):.2f}"


def _span(log: Estimate) -> str:
    return f"{math.exp(log.low):.2f} to {math.exp(log.high):.2f}"
