"""The report on a folder of runs: Table 2 and Figure 3 beside the paper's. Reads records only.

<folder>/records/*.jsonl -> table2.csv, figure3.csv, figure3.png, report.md, report.html
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manifoldnet.experiments import folder as folders
from manifoldnet.experiments.document import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import write_text
from manifoldnet.experiments.records import CLASSIFICATION, Record
from manifoldnet.experiments.statistics import Estimate, paired
from manifoldnet.experiments.symmetry_paper import paper, results, trajectories
from manifoldnet.experiments.symmetry_paper.cells import PROTOCOL, TABLE2
from manifoldnet.experiments.symmetry_paper.claims import Comparison, claims, time_ratio
from manifoldnet.experiments.updates import UPDATES


@dataclass(frozen=True)
class PaperReport:
    """What has been written.

    Attributes:
        text: the report as Markdown.
        files: where it is, in every form.
    """

    text: str
    files: tuple[Path, ...]


def write_paper_report(folder: str | Path, output: str | Path | None = None) -> PaperReport:
    """Writes the report on the runs of a sweep.

    Args:
        folder: with the records.
        output: where the files go; by default into `folder`.

    Raises:
        RecordError: when there are no records, or one is damaged or foreign.
        MissingExtraError: without matplotlib.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    found = folders.read_all(folder, CLASSIFICATION, exact=False)
    if not found:
        raise RecordError(
            f"{folder} holds no records: make some with manifoldnet reproduce table2 --out {folder}"
        )
    table = results.by_cell(found.values())
    picture = Picture("figure3.png", trajectories.draw(table), "Figure 3: mean test error by epoch")
    blocks = list(_blocks(table, picture))
    text = to_markdown(blocks)
    files = {
        "table2.csv": results.to_csv(table),
        "figure3.csv": trajectories.to_csv(table),
        "report.md": text,
        "report.html": to_html(blocks),
    }
    for name, content in files.items():
        write_text(output / name, content)
    trajectories.write(picture.content, output / picture.name)
    return PaperReport(text, tuple(output / name for name in (*files, picture.name)))


def _blocks(table: results.Table, picture: Picture) -> Iterator[Block]:
    runs = [run for cell in table.values() for run in cell.runs]
    diverged = sum(cell.diverged for cell in table.values())
    missing = [cell.name for cell in TABLE2 if cell not in table]
    yield Heading("Symmetry-invariant optimization: Table 2 and Figure 3", 1)
    yield Paragraph(
        f"{len(runs)} runs of {len(table)} cells; {diverged} diverged (a loss that is not finite, "
        f"or a final validation error rate above {PROTOCOL.diverged_above:g}) and are set aside, "
        "as in the paper. Errors are rates on the test images after the last epoch, mean ± "
        "standard deviation over the n runs that did not diverge."
    )
    yield Paragraph(_versions(runs))
    if missing:
        yield Paragraph(f"Cells without runs: {', '.join(missing)}.")
    yield Heading("Table 2")
    yield _table2(table)
    yield Heading("Figure 3")
    yield picture
    yield Heading("The paper's claims")
    yield Paragraph(
        "Differences are paired over seeds and given with 95 % intervals; a claim holds when every "
        "interval lies on its side of zero. They are not corrected for their number."
    )
    for claim in claims(table):
        yield Heading(f"{claim.text}: {claim.verdict}", 3)
        if claim.note:
            yield Paragraph(f"Read as: {claim.note}.")
        yield Table(
            ("comparison", "difference", "95 % interval", "n"),
            tuple(_comparison(comparison) for comparison in claim.comparisons),
        )
    yield Heading("Updates against B-SGD, paired over seeds")
    yield _against(table, "b-sgd")
    if any(cell.update == "sm-geodesic" for cell in table):
        yield Heading("Does the exact retraction help?")
        yield Paragraph("sm-geodesic against sm, which adds the step as the paper does.")
        yield _against(table, "sm")
    yield Heading("Learning rates chosen, and how runs ended")
    yield _choices(table)
    yield Heading("Time of a training pass")
    yield _times(table)


def _versions(runs: list[Record]) -> str:
    seen = Counter(
        ", ".join(f"{name} {value}" for name, value in sorted(run.versions.items())) for run in runs
    )
    mixed = " Runs of different versions are mixed here." if len(seen) > 1 else ""
    return f"Made with {'; '.join(seen)}.{mixed}"


def _table2(table: results.Table) -> Table:
    rows = []
    for cell, runs in table.items():
        ours, published = runs.test_error, paper.TABLE2.get(cell)
        within = "–"
        if published and ours.n:
            distance = (ours.mean - published.mean) / published.deviation
            within = f"{distance:+.1f}"
        rows.append(
            (
                cell.architecture,
                str(cell.depth),
                cell.schedule,
                cell.update,
                _mean(ours),
                str(ours.n),
                str(runs.diverged),
                f"{published.mean:.4f} ± {published.deviation:.4f}" if published else "–",
                within,
            )
        )
    header = ("network", "layers", "schedule", "update", "test error", "n", "diverged")
    return Table((*header, "paper", "paper's deviations apart"), tuple(rows), words=4)


def _against(table: results.Table, base: str) -> Table:
    rows = []
    updates = [name for name in UPDATES if name != base and (base != "sm" or "geodesic" in name)]
    for update in updates:
        for one, other in results.pairs(table, update, base):
            difference = paired(one.test_errors, other.test_errors)
            cell = one.cell
            rows.append(
                (
                    f"{update} − {base}",
                    f"{cell.architecture}, {cell.depth} layers, {cell.schedule}",
                    *_numbers(difference),
                    _verdict(difference),
                )
            )
    header = ("difference", "where", "test error", "95 % interval", "n", "better")
    return Table(header, tuple(rows), words=2)


def _choices(table: results.Table) -> Table:
    rows = []
    for cell, runs in table.items():
        rates = ", ".join(f"{rate:g} × {n}" for rate, n in sorted(runs.rates.items(), reverse=True))
        rules = "; ".join(f"{rule or 'all epochs'} × {n}" for rule, n in runs.rules.most_common())
        epochs = f"{runs.epochs:.1f}" if runs.finished else "–"
        reasons = Counter(
            _kind(run.result.reason) for run in runs.runs if run.result and run.result.diverged
        )
        ends = "; ".join(f"diverged, {reason} × {n}" for reason, n in reasons.items())
        rows.append((cell.name, rates, "; ".join(filter(None, (rules, ends))), epochs))
    header = ("cell", "λ chosen × runs", "ended because × runs", "mean epochs")
    return Table(header, tuple(rows), words=3)


def _kind(reason: str) -> str:
    """A reason without what differs from run to run."""
    return reason.partition(" in epoch ")[0].partition(" ended at ")[0]


def _times(table: results.Table) -> Table:
    rows = []
    for update in UPDATES:
        own = [runs for cell, runs in table.items() if cell.update == update]
        if not own:
            continue
        seconds = sorted(s for runs in own for s in runs.pass_seconds.values())
        ratio = time_ratio(table, update)
        interval = "–"
        if ratio.n > 1 and update != "b-sgd":
            interval = f"{math.exp(ratio.low):.2f} to {math.exp(ratio.high):.2f}"
        rows.append(
            (
                update,
                f"{seconds[len(seconds) // 2]:.3f}",
                f"{math.exp(ratio.mean):.2f}" if ratio.n else "–",
                interval,
                str(len(seconds)),
            )
        )
    header = ("update", "seconds (median)", "times B-SGD's", "95 % interval", "runs")
    return Table(header, tuple(rows))


def _comparison(comparison: Comparison) -> tuple[str, ...]:
    if comparison.unit == "time":
        d = comparison.difference
        if d.n < 2:
            return (comparison.text, "–", "–", str(d.n))
        interval = f"{math.exp(d.low):.2f} to {math.exp(d.high):.2f}"
        return (comparison.text, f"× {math.exp(d.mean):.2f}", interval, str(d.n))
    return (comparison.text, *_numbers(comparison.difference))


def _numbers(difference: Estimate) -> tuple[str, str, str]:
    if difference.n == 0:
        return ("–", "–", "0")
    interval = "–" if difference.n < 2 else f"{difference.low:+.4f} to {difference.high:+.4f}"
    return (f"{difference.mean:+.4f}", interval, str(difference.n))


def _verdict(difference: Estimate) -> str:
    if difference.below_zero:
        return "yes"
    return "worse" if difference.above_zero else "undecided"


def _mean(value: Estimate) -> str:
    if value.n == 0:
        return "–"
    return f"{value.mean:.4f}" + (f" ± {value.deviation:.4f}" if value.n > 1 else "")
