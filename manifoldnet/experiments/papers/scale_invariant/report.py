"""The report on a folder of the scale-invariant paper's runs. Reads records only.

    <folder>/<sweep>/records/*.jsonl, <folder>/stage_cost.csv
    -> scale_invariant.csv, .md, .html, label_noise.csv, scale_invariant_figure1-light.svg …

It begins with answers: claims, comparisons, corrupted data, every learning rate, figures, how rates
were chosen, confidence, and what a step costs, each where there are records on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.papers.scale_invariant import claims, figures
from manifoldnet.experiments.papers.scale_invariant.claims import Comparison, lost
from manifoldnet.experiments.papers.scale_invariant.config import METHODS, PAPERS, Choice
from manifoldnet.experiments.papers.scale_invariant.records import (
    COST_BASE,
    COSTS,
    Section,
    at,
    best,
    by_setting,
    choices,
    edge_label,
    read,
    read_costs,
    reliability,
)
from manifoldnet.experiments.report import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    publish,
)
from manifoldnet.experiments.statistics import estimate, mean_and_deviation, paired

EPOCH_COLUMNS = (
    *("figure", "dataset", "architecture", "method", "h", "m", "seed", "epoch", "test_error"),
)
RUN_COLUMNS = (
    *("dataset", "architecture", "method", "h", "m", "seed", "kind", "share", "test_error"),
    *("gradient_norm", "largest_gradient_norm", "step_ratio", "largest_step_ratio"),
)
_BLOCK = 10

_DECIDED = (
    "Where a method has several rows, the one that the short runs choose now counts (lowest "
    "validation error, see the rates and dimensions chosen), or, where a run diverged there, the "
    "highest tried rate below it where none did. The others are earlier choices among fewer h and "
    "m, and those at which a run diverged. Where the choice is not known or has not been run, a "
    "method's only row counts; of several rows, none does."
)


def write_stage_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the sweeps below a folder, or on the one in it."""
    folder = Path(folder)
    sections = read(folder)
    judged = [section for section in sections if not section.purpose.startswith("choice")]
    if not judged:
        raise RecordError(
            f"{folder} holds no records with test errors: make some with manifoldnet reproduce "
            f"scale-invariant figure5 --out {folder}"
        )
    tables = {"scale_invariant.csv": epochs_csv([s for s in judged if s.purpose != "label noise"])}
    for section in judged:
        if section.purpose == "label noise":
            rows = [
                runs.assign(kind=kind, share=share)
                for (kind, share), runs in by_setting(section.runs).items()
            ]
            name = _file("label_noise", section, sections)
            tables[f"{name}.csv"] = _csv(rows, RUN_COLUMNS)
    blocks = list(_blocks(sections, read_costs(folder)))
    output = folder if output is None else Path(output)
    return publish(blocks, output, "scale_invariant", tables)


def epochs_csv(sections: Sequence[Section]) -> str:
    """One row per epoch, under `EPOCH_COLUMNS`; an error that is not known is empty."""
    rows = [
        section.runs.assign(figure=section.name.removeprefix("figure"))
        .sort_values(["label", "seed"])
        .assign(
            method=lambda runs: runs["method"] + runs["spheres"].map({True: "-spheres", False: ""}),
            epoch=lambda runs: [range(1, n + 1) for n in runs["errors"].map(len)],
            test_error=lambda runs: runs["errors"],
        )
        .explode(["epoch", "test_error"])
        for section in sections
    ]
    return _csv(rows, EPOCH_COLUMNS)


def _csv(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> str:
    if not tables:
        return ",".join(columns) + "\n"
    rows = pd.concat([table[[*columns]] for table in tables])
    rows["m"] = rows["m"].astype(str).where(rows["m"] > 0, "")
    numbers = [name for name in columns[7:] if name not in ("epoch", "kind", "share")]
    rows = rows.astype(dict.fromkeys(numbers, float))
    return rows.to_csv(columns=columns, index=False, float_format="%.6g", lineterminator="\n")


def _blocks(sections: Sequence[Section], costs: pd.DataFrame | None) -> Iterator[Block]:
    made = {text for section in sections for text in section.runs["versions"]}
    yield Heading("All numbers of the scale-invariant paper", 1)
    compared = claims.comparisons(sections)
    yield from claims.blocks(sections, compared)
    yield Paragraph(
        "rescaled is the paper's stage, with matrix A of m rows; logistic is logistic regression, "
        "smoothing the same with smoothed labels, cosine a softmax of cosines, etf cross-entropy "
        "on a fixed simplex (equiangular tight frame). h is the learning rate. Errors are rates on "
        "the test images after the last epoch. A run diverged when a number in the network was "
        f"not finite. Made with {'; '.join(sorted(made))}."
    )
    yield from _comparisons(compared, costs)
    for section in sections:
        if section.purpose == "label noise":
            yield from _robustness(section, _file("label_noise", section, sections))
    for section in sections:
        if section.purpose == "start sizes":
            yield from _start_sizes(section, sections)
    for section in sections:
        if section.purpose == "stability":
            yield from _stability(section, _file("scale_invariant_stability", section, sections))
    for section in sections:
        if section.purpose == "grid":
            title = f"{claims.figure_of(section) or 'Grid'}: {section.title}"
            yield Heading(title)
            name = f"scale_invariant_{section.name}"
            yield Picture(name, figures.draw_grid(section.runs, title), title)
            yield from _grid(section.runs)
    yield from _choices([section for section in sections if section.purpose == "choice"])
    yield from _confidence(compared)
    if costs is not None:
        yield from cost_blocks(costs)


def _file(name: str, section: Section, sections: Sequence[Section]) -> str:
    """A file's name without its ending; with the sweep's if several have its purpose."""
    several = sum(other.purpose == section.purpose for other in sections) > 1
    return f"{name}_{section.name}" if several else name


def _table(rows: Sequence[Mapping[str, str]], words: int = 1) -> Iterator[Table]:
    """A table of rows that are cells by the name of their column; none without rows."""
    if rows:
        yield Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows), words)


def _comparisons(compared: Sequence[Comparison], costs: pd.DataFrame | None) -> Iterator[Block]:
    """A section on the paper's two methods, and one for each comparison with others."""
    papers = [one for one in compared if set(one.methods) <= set(PAPERS)]
    if papers:
        yield Heading("Test error at the chosen rates")
        yield Paragraph(_DECIDED)
        rows = [
            {"data": one.title, "method": method} | row
            for one in papers
            for method, row, _ in _rows(one)
        ]
        yield from _table(rows, words=2)
        yield from _differences(papers)
        for one in papers:
            title = f"{one.figure or 'Comparison'}: {one.title}"
            name = f"scale_invariant_{one.name.replace('-', '_')}"
            yield Picture(name, figures.draw_comparison(one.runs, one.tried, title), title)
    for one in compared:
        if one in papers:
            continue
        yield Heading(f"Beyond the paper: {one.title}")
        yield Paragraph(
            "Other stages on the same network, with rates chosen in the same way. "
            + _DECIDED
            + " Calibration error is that of the confidence; ms/step is the median of "
            f"{COSTS}, measured on the smaller MNIST network."
        )
        rows = [
            {"stage": method} | row | _quality(method, curve, costs)
            for method, row, curve in _rows(one)
        ]
        yield from _table(rows)
        yield from _differences([one])


def _rows(one: Comparison) -> Iterator[tuple[str, dict[str, str], pd.DataFrame]]:
    """Cells and runs of each choice, and of a choice that was not run."""
    for method in one.methods:
        own, chosen = choices(one.runs, method), one.chosen.get(method)
        for choice in [*own, *([chosen] if chosen and chosen not in own else [])]:
            curve = at(one.runs, method, choice)
            row = {
                "h": f"{choice.h:g}",
                "m": str(choice.m or "–"),
                "chosen": _when(one, method, choice),
                "test error": mean_and_deviation(curve["error"]),
                "n": str(curve["error"].count()),
                "diverged": str(curve["diverged"].sum()),
            }
            yield method, row, curve


def _when(one: Comparison, method: str, choice: Choice) -> str:
    """Table cell: a choice counts now, was made before, or is one at which runs diverged."""
    if method not in one.picked:
        return "–"
    if choice == one.chosen.get(method):
        return "now"
    return "diverged" if at(one.runs, method, choice)["diverged"].any() else "before"


def _quality(method: str, curve: pd.DataFrame, costs: pd.DataFrame | None) -> dict[str, str]:
    """Calibration error and milliseconds of a step; ``–`` where they were not measured."""
    sure, m = _confident(curve), "".join(str(m or "") for m in curve["m"].head(1))
    found = {"calibration error": f"{_calibration_error(sure):.4f}" if len(sure) else "–"}
    if costs is None or curve.empty or (method, m) not in costs:
        return found | {"ms/step": "–"}
    return found | {"ms/step": f"{1000 * costs[method, m].median():.1f}"}


def _differences(compared: Sequence[Comparison]) -> Iterator[Block]:
    rows = []
    for one in compared:
        for method, rescaled, other, difference in one.differences():
            if difference.n > 1:
                mean, interval = difference.signed()
                name = f"rescaled ({rescaled}) − {method} ({other})"
                row = {"data": one.title, "difference, paired over seeds": name, "test error": mean}
                rows.append(row | {"95 % interval": interval, "n": str(difference.n)})
    yield from _table(rows, words=2)


def _robustness(section: Section, name: str) -> Iterator[Block]:
    """Errors of each method at its best rate, and what they lost against clean data."""
    settings = by_setting(section.runs)
    yield Heading(f"Wrong labels and outliers: {section.title}")
    yield Paragraph(
        "Each method has the rate and dimension that validation images with right labels choose "
        'for each share; "of" counts the combinations. "Lost" is the error less that on clean '
        "training data. Where there are several seeds, the second table has what the rescaled "
        "stage lost less what logistic regression lost, paired over seeds."
    )
    rows, differences = [], []
    for setting, runs in settings.items():
        where = {"training data": setting.corruption, "share": f"{100 * setting.share:g} %"}
        for method in METHODS:
            if (choice := best(runs, method)) is None:
                continue
            curve, cost = at(runs, method, choice), lost(settings, setting, method)
            rows.append(
                {
                    **where,
                    "method": method,
                    "chosen": edge_label(runs, method, choice),
                    "of": str(len(choices(runs, method))),
                    "test error": f"{curve['error'].mean():.4f}",
                    "lost": estimate([*cost.values()]).signed()[0],
                    "n": str(curve["error"].count()),
                    "mean ‖gradient‖": f"{curve['gradient_norm'].mean():.2g}",
                    "largest": f"{curve['largest_gradient_norm'].max():.2g}",
                }
            )
        apart = paired(*(lost(settings, setting, method) for method in PAPERS))
        if setting.share and apart.n > 1:
            mean, interval = apart.signed()
            row = {"rescaled − logistic": mean, "95 % interval": interval, "n": str(apart.n)}
            differences.append(where | row)
    yield from _table(rows, words=4)
    yield from _table(differences, words=2)
    picture = figures.draw_robustness(settings)
    yield Picture(name, picture, "Test error against the share of corrupted data, for each method")


def _start_sizes(section: Section, sections: Sequence[Section]) -> Iterator[Block]:
    """Test error of both methods at the rate chosen for each size of the first kernels."""
    short = [other.runs for other in sections if other.name == f"choice-{section.name}"]
    yield Heading(f"Kernels that start smaller or larger: {section.title}")
    yield Paragraph(
        "The kernels start at that many times the size that Torch7 gives them. Validation images "
        "choose h for each size on short runs. The loss of the rescaled stage depends on the "
        "directions of the kernels alone: kernels s times as large move 1/s² as far at the same h."
    )
    rows = []
    for size, runs in section.runs.groupby("start_size"):
        row = {"size": f"{size:g}"}
        for method in PAPERS:
            own = runs[runs["method"] == method]
            row |= {
                f"h, {method}": ", ".join(f"{h:g}" for h in sorted(own["h"].unique())) or "–",
                f"test error, {method}": mean_and_deviation(own["error"]),
            }
        pair = [claims.errors(runs[runs["method"] == method]) for method in PAPERS]
        difference = paired(*pair)
        mean, interval = difference.signed() if difference.n > 1 else ("–", "–")
        row |= {"difference": mean, "95 % interval": interval, "n": str(difference.n)}
        rows.append(row)
    yield from _table(rows, words=0)
    if short:
        picture = figures.draw_start_sizes(section.runs, short[0])
        text = "Test error against the size of the first kernels, and errors at every rate"
        yield Picture("scale_invariant_start_sizes", picture, text)


def _stability(section: Section, name: str) -> Iterator[Block]:
    """One pass of 500 minibatches for every power of ten: loss, step and what overflowed."""
    runs, config = section.runs, section.runs["config"].iloc[0]
    yield Heading("Every learning rate")
    yield Paragraph(
        f"{config.dataset}, {config.architecture}: one pass over {config.train_size:,} images in "
        f"minibatches of {config.batch_size}, float32. A run ends at the first number in the "
        "network (features, scores, loss, gradients, weights) that is not finite. ‖z‖ is that of "
        "the stage's direction, which is 1; ‖ΔA‖/‖A‖ is the mean step of the stage's matrix. The "
        "largest and smallest numbers are over the runs that stayed finite."
    )
    variants = {name: own for name in figures.VARIANTS if len(own := runs[runs["variant"] == name])}
    yield from _table([_extremes(name, own) for name, own in variants.items()])
    yield Paragraph(
        "Rate by rate (the median of several seeds), or which number was the first that was not "
        "finite:"
    )
    rows = [
        {"h": f"{h:g}"}
        | {
            f"{name}, {variant.removeprefix('rescaled, kernels ')}": _at_rate(
                own[own["h"] == h], measure, form
            )
            for name, measure, form in (
                ("test error", "test_error", ".4f"),
                ("‖ΔA‖/‖A‖", "step_ratio", ".2g"),
            )
            for variant, own in variants.items()
        }
        for h in sorted(runs["h"].unique())
    ]
    yield from _table(rows, words=0)
    text = "Test error, largest loss and relative step against the learning rate"
    yield Picture(name, figures.draw_stability(runs), text)


def _extremes(name: str, own: pd.DataFrame) -> dict[str, str]:
    kept = own[own["overflow"] == ""]
    lowest, highest = kept["step_ratio"].min(), kept["step_ratio"].max()
    cells = {
        "lowest test error": f"{kept['test_error'].min():.4f}",
        "largest loss": f"{kept['largest_loss'].max():.3g}",
        "largest ‖z‖ − 1": "–" if name == "logistic" else f"{kept['norm_error'].max():.1e}",
        "largest kernel entry": f"{kept['largest_weight'].max():.2g}",
        "‖ΔA‖/‖A‖": f"{lowest:.2g} to {highest:.2g}",
    }
    counts = {"method": name, "runs": str(len(own)), "not finite": str(len(own) - len(kept))}
    return counts | (dict.fromkeys(cells, "–") if kept.empty else cells)


def _at_rate(runs: pd.DataFrame, measure: str, form: str) -> str:
    """The median over the runs at a rate, or what overflowed first, said once with the errors."""
    overflows = runs.loc[runs["overflow"] != "", "overflow"]
    if len(overflows) and measure == "test_error":
        return (f"{len(overflows)} of {len(runs)}: " if len(runs) > 1 else "") + overflows.iloc[0]
    return "–" if len(overflows) or runs.empty else format(runs[measure].median(), form)


def _grid(runs: pd.DataFrame) -> Iterator[Block]:
    """Test errors, a row for each h, a column for each method and m."""

    def cell(curve: pd.DataFrame) -> str:
        diverged = curve["diverged"].sum()
        if diverged == len(curve):
            return "–" if curve.empty else "diverged"
        return mean_and_deviation(curve["error"]) + (
            f" ({diverged} of {len(curve)} diverged)" if diverged else ""
        )

    rows = [
        {"h": f"{h:g}"}
        | {
            method + (f", m = {m}" if m else ""): cell(at(runs, method, Choice(h, m)))
            for method in METHODS
            for m in sorted({choice.m for choice in choices(runs, method)})
        }
        for h in sorted(runs["h"].unique())
    ]
    yield from _table(rows, words=0)


def _choices(sections: Sequence[Section]) -> Iterator[Block]:
    """The choices of the validation images, and the grids they are of."""
    if not sections:
        return
    yield Heading("Rates and dimensions chosen")
    yield Paragraph(
        "The choice is that of the lowest error on validation images after short runs, one for "
        "each h and m; test images take no part. Where the chosen h or m is at the edge of those "
        "tried, a better one may lie beyond; m cannot be below the number of classes."
    )
    rows = []
    for section in sections:
        for method in METHODS:
            if (choice := best(section.runs, method)) is not None:
                curve = at(section.runs, method, choice)
                rates, dimensions = map(set, zip(*choices(section.runs, method), strict=True))
                rows.append(
                    {
                        "data": section.title,
                        "method": method,
                        "chosen": edge_label(section.runs, method, choice),
                        "h tried": f"{min(rates):g} to {max(rates):g}",
                        "m tried": ", ".join(map(str, sorted(dimensions - {0}))) or "–",
                        "validation error": f"{curve['score'].mean():.4f}",
                    }
                )
    yield from _table(rows, words=5)


def _confidence(compared: Sequence[Comparison]) -> Iterator[Block]:
    """Accuracy against confidence, whose κ is the reciprocal of a temperature for softmax."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for one in compared:
        for method in one.methods:
            sure = _confident(at(one.runs, method, one.current(method)))
            if len(sure):
                found.setdefault(one.title, {})[method] = sure
    if not found:
        return
    yield Heading("Confidence")
    yield Paragraph(
        "One number κ is fitted on every other test image. The other samples are binned by their "
        "confidence, and each bin's confidence is compared with its share of right answers. The "
        "calibration error is the mean of the difference over samples. Numbers are means over "
        f"seeds; the diagrams pool seeds, and leave out bins of fewer than {figures.DRAWN} samples."
    )
    rows = [
        {
            "data": title,
            "method": method,
            "κ": f"{sure['concentration'].mean():.3g}",
            "calibration error": f"{_calibration_error(sure):.4f}",
        }
        for title, methods in found.items()
        for method, sure in methods.items()
    ]
    yield from _table(rows, words=2)
    picture = figures.draw_reliability(found)
    yield Picture(
        "scale_invariant_reliability",
        picture,
        "Share of right answers against confidence, for each data set",
    )


def _confident(curve: pd.DataFrame) -> pd.DataFrame:
    return curve[curve["bin_count"].map(len) > 0]


def _calibration_error(sure: pd.DataFrame) -> float:
    return float(np.mean([reliability(sure.iloc[[i]]).error for i in range(len(sure))]))


def cost_blocks(costs: pd.DataFrame) -> Iterator[Block]:
    """A section: median milliseconds, and the ratio to logistic regression."""
    yield Heading("What a training step costs")
    yield Paragraph(
        "Smaller MNIST network, minibatches of 100, one thread, stages in turn. The ratio is the "
        f"geometric mean over blocks of {_BLOCK} steps (neighbours are alike), with its 95 % "
        "interval."
    )
    size = _BLOCK if len(costs) >= 2 * _BLOCK else 1
    logarithms = np.log(costs).groupby((costs.index - 1) // size).mean()
    rows = []
    for method, m in costs:
        ratio = paired(logarithms[method, m].to_dict(), logarithms[COST_BASE].to_dict())
        low, high = math.exp(ratio.low), math.exp(ratio.high)
        rows.append(
            {
                "stage": method + (f", m = {m}" if m else ""),
                "ms/step (median)": f"{1000 * costs[method, m].median():.1f}",
                "ratio to logistic": f"{math.exp(ratio.mean):.3f}",
                "95 % interval": f"{low:.3f} to {high:.3f}",
                "blocks": str(ratio.n),
            }
        )
    yield from _table(rows)
