"""The report on the evidence. Reads records only.

    <folder>/<purpose>-<network> -> evidence.md, .html, .csv, evidence_layers.csv, pictures, and
    evidence_recommendations.md, a table for other pages

It begins with verdicts: methods against their plain optimizers, what did not help, widths, starts,
and what follows. Then come the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from manifoldnet.experiments.evidence import claims, figures
from manifoldnet.experiments.evidence.claims import (
    HIGHER,
    LEVEL,
    LOWER,
    Contest,
    Standing,
    Start,
    against,
    contest,
    moves,
    standings,
)
from manifoldnet.experiments.evidence.config import (
    BETAS,
    DECAY,
    METHODS,
    MOMENTUM,
    NETWORKS,
    SGD_DECAY,
    WARM_UP,
    EvidenceConfig,
)
from manifoldnet.experiments.evidence.records import (
    EvidenceRecord,
    Section,
    best,
    read,
)
from manifoldnet.experiments.report import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    csv_text,
    publish,
    to_markdown,
)
from manifoldnet.experiments.statistics import mean_and_deviation

NAME = "evidence"
COLUMNS = (
    *("purpose", "network", "width", "method", "lr", "rest_lr", "start_size", "spread", "seed"),
    *("iterations", "validation_loss", "test_loss", "test_error", "iteration_seconds"),
    *("step_seconds", "diverged"),
)
LAYER_COLUMNS = (
    *("network", "method", "matrix", "first_norm", "last_norm", "highest_angle", "last_angle"),
)

ADAMW = "adamw"


def write_evidence_report(folder: str | Path, output: str | Path | None = None) -> Report:
    """Write the report on the runs of `manifoldnet reproduce evidence` below a folder."""
    folder = Path(folder)
    sections = read(folder)
    runs = [(section.purpose, record) for section in sections for record in section.records]
    rows = sorted(
        (_row(purpose, record) for purpose, record in runs), key=lambda r: str(r.values())
    )
    tables = {
        f"{NAME}.csv": csv_text(COLUMNS, rows),
        f"{NAME}_layers.csv": csv_text(LAYER_COLUMNS, _layer_rows(sections)),
    }
    recommended = list(_recommendations(sections))
    if recommended:
        tables[f"{NAME}_recommendations.md"] = to_markdown(recommended)
    blocks = list(_blocks(sections, recommended))
    return publish(blocks, folder if output is None else Path(output), NAME, tables)


def _row(purpose: str, record: EvidenceRecord) -> dict[str, object]:
    config, result = record.config, record.result
    assert result is not None  # of a sweep all runs have ended
    standing = Standing(config.method, [record])
    return {
        "purpose": purpose,
        "lr": f"{record.lr:g}",
        "rest_lr": "" if config.rest_lr is None else f"{config.rest_lr:g}",
        "start_size": f"{config.start_size:g}",
        "spread": f"{config.spread:.4g}",
        "iterations": config.iterations,
        "iteration_seconds": f"{standing.seconds():.4g}",
        "step_seconds": f"{standing.seconds('step_seconds'):.4g}",
        "diverged": result.diverged,
        **{name: getattr(config, name) for name in ("network", "width", "method", "seed")},
        **{
            name: f"{getattr(result, name):.5g}"
            for name in ("validation_loss", "test_loss", "test_error")
        },
    }


def _layer_rows(sections: Sequence[Section]) -> Iterator[Mapping[str, object]]:
    """A row for each hidden matrix of each method of a comparison, means over seeds."""
    for section in _of(sections, "comparison"):
        for method, standing in standings(section).items():
            for name, numbers in _layers(standing).items():
                shown = [f"{number:.4g}" for number in numbers]
                row = dict(zip(LAYER_COLUMNS[3:], shown, strict=True))
                yield {"network": section.network, "method": method, "matrix": name} | row


def _layers(standing: Standing) -> dict[str, tuple[float, ...]]:
    """By matrix: norms after the first and the last epoch, largest and last angle of an iteration.

    They are means over the seeds that did not diverge.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for record in standing.records:
        epochs = record.epochs
        if record.config.seed in standing.scores and all(epoch.norms for epoch in epochs):
            for k, name in enumerate(record.config.matrices):
                norms, angles = ([getattr(e, n)[k] for e in epochs] for n in ("norms", "angles"))
                numbers = norms[0], norms[-1], max(angles), angles[-1]
                found.setdefault(name, []).append(numbers)
    return {name: tuple(map(fmean, zip(*own, strict=True))) for name, own in found.items()}


def _of(sections: Sequence[Section], purpose: str) -> list[Section]:
    return [section for section in sections if section.purpose == purpose]


def _title(section: Section) -> str:
    return NETWORKS[section.network].title


def _measure(section: Section) -> str:
    return NETWORKS[section.network].measure


# --- verdicts -------------------------------------------------------------------------------------


def _blocks(sections: Sequence[Section], recommended: Sequence[Block]) -> Iterator[Block]:
    yield Heading("Does geometry pay on today's networks?", 1)
    for section in _of(sections, "comparison"):
        yield from map(Paragraph, _compared(section))
    for section in _of(sections, "width"):
        yield Paragraph(_moved(section))
    for section in _of(sections, "starts"):
        yield Paragraph(_started(section))
    if recommended:
        yield Heading("What follows")
        yield from recommended
    for section in _of(sections, "comparison"):
        yield from _comparison(section)
    for section in _of(sections, "width"):
        yield from _widths(section)
    for section in _of(sections, "starts"):
        yield from _starts(section)
    for section in _of(sections, "choice"):
        yield from _choice(section)
    yield from _protocol(sections)


def _compared(section: Section) -> Iterator[str]:
    """Verdicts of a comparison: what helped, what did not, and what could have been seen."""
    found = standings(section)
    config = section.records[0].config
    contests = against(found)
    by_verdict = {v: [c for c in contests if c.verdict == v] for v in (LOWER, LEVEL, HIGHER)}
    said = [
        f"{word}: {', '.join(map(str, by_verdict[verdict]))}."
        for verdict, word in ((LOWER, "Lower than the plain optimizer"),)
        if by_verdict[verdict]
    ] or ["No method ends lower than its plain optimizer."]
    lowest = min(found.values(), key=lambda s: (s.diverged, s.mean))
    seeds = len({r.config.seed for r in section.records})
    scores = mean_and_deviation(lowest.scores.values(), 3)
    yield (
        f"{_title(section).capitalize()}, {config.iterations:,} iterations, {seeds} seeds: "
        f"{lowest.method} has the lowest {_measure(section)} ({scores}). {' '.join(said)} The "
        "brackets have the ratio and its 95 % interval, not corrected for multiple comparisons."
    )
    rest = [
        f"{word}: {', '.join(map(str, by_verdict[verdict]))}."
        for verdict, word in ((LEVEL, "Within chance of it"), (HIGHER, "Higher"))
        if by_verdict[verdict]
    ]
    if rest:
        yield f"What did not help on the {_title(section)}. {' '.join(rest)}"
    seen = sorted(c.detectable for c in contests if c.ratio.n > 1)
    if seen:
        yield (
            f"A true difference of {100 * seen[0]:.2g} % to {100 * seen[-1]:.2g} % of the "
            f"{_measure(section)}, depending on the pair, would have been seen by {seeds} seeds "
            "with a probability of 80 %. Smaller ones can have been missed."
        )


def _moved(section: Section) -> str:
    """The verdict on widths."""
    found = sorted(moves(section), key=lambda move: move.half_decades)
    if not found:
        return f"{_title(section).capitalize()}: one width was run, and nothing can move."
    widths = sorted({record.config.width for record in section.records})
    plain = next((move for move in found if move.method == ADAMW), None)
    told = ", ".join(f"{move.method} {_times(move.half_decades)}" for move in found)
    less = [m.method for m in found if plain is not None and m.half_decades < plain.half_decades]
    ahead = (
        f" {', '.join(less)} move{'s' * (len(less) == 1)} less than AdamW."
        if less
        else " No method moves less than AdamW."
        if plain is not None
        else ""
    )
    return (
        f"From width {widths[0]} to {widths[-1]} of the {_title(section)}, the best rates lie "
        f"apart by a factor of: {told}.{ahead}"
    )


def _times(half_decades: float) -> str:
    return f"{10 ** (half_decades / 2):.1f}"


def _started(section: Section) -> str:
    """The verdict on starts."""
    usual, said = Start(1.0, 0.0), []
    found = claims.starts(section)
    for start in dict.fromkeys(s for own in found.values() for s in own if s != usual):
        level: list[str] = []
        worse: list[str] = []
        for method, own in found.items():
            if start in own and usual in own:
                made = contest(own[start], own[usual])
                lost = made.one.diverged - made.other.diverged
                text = made.ratio.factor(3)[0] if made.ratio.n else "–"
                text += f", {lost} more diverged" if lost > 0 else ""
                (worse if made.verdict == HIGHER else level).append(f"{method} ({text})")
        if level or worse:
            parts = [f"raises the {_measure(section)} of {', '.join(worse)}"] if worse else []
            parts += [f"is not seen to raise that of {', '.join(level)}"] if level else []
            said.append(f"A start {start} {'; it '.join(parts)}.")
    return (
        f"{_title(section).capitalize()}, other starts. {' '.join(said)} The brackets have the "
        f"{_measure(section)} over that from the usual start."
    )


def _recommendations(sections: Sequence[Section]) -> Iterator[Table]:
    """The methods that the records speak for, by what one needs."""
    rows = []
    for section in _of(sections, "comparison"):
        found = standings(section)
        whole = {m: s for m, s in found.items() if not s.diverged}
        if whole:
            lowest = min(whole.values(), key=lambda s: s.mean)
            level = [s for s in whole.values() if contest(s, lowest).verdict in (LEVEL, LOWER)]
            names = [lowest.method, *(s.method for s in level if s is not lowest)]
            rows.append((f"the lowest {_measure(section)}, {_title(section)}", ", ".join(names)))
            fast = min([lowest, *level], key=lambda s: s.seconds())
            ratio = fast.seconds() / found[ADAMW].seconds() if ADAMW in found else math.nan
            time = "" if math.isnan(ratio) else f", {ratio:.2f} times AdamW's time"
            rows.append(("the fastest of these", f"{fast.method}{time}"))
    for section in _of(sections, "width"):
        found_moves = moves(section)
        if found_moves:
            least = min(move.half_decades for move in found_moves)
            names = [m.method for m in found_moves if m.half_decades <= least + 0.5]
            rows.append((f"a rate for all widths, {_title(section)}", ", ".join(names)))
    for section in _of(sections, "starts"):
        names = [
            method
            for method, own in claims.starts(section).items()
            if Start(1.0, 0.0) in own
            and all(
                contest(s, own[Start(1.0, 0.0)]).verdict in (LEVEL, LOWER)
                for start, s in own.items()
                if start.spread
            )
        ]
        rows.append((f"weights of unknown scale, {_title(section)}", ", ".join(names) or "none"))
    if rows:
        yield Table(("for", "take"), tuple(rows), words=2)


# --- numbers --------------------------------------------------------------------------------------


def _comparison(section: Section) -> Iterator[Block]:
    found = standings(section)
    yield Heading(f"Methods on the {_title(section)}")
    to_adamw = {c.one.method: c for c in against(found, ADAMW)}
    to_base = {c.one.method: c for c in against(found)}
    yield Table(
        (
            *("method", "rate", _measure(section), "over AdamW", "over its base"),
            *("would have shown", "verdict", "time over AdamW", "optimizer's share", "diverged"),
        ),
        tuple(
            (
                method,
                f"{standing.records[0].lr:g}",
                mean_and_deviation(standing.scores.values(), 4),
                _ratio(to_adamw.get(method)),
                _ratio(to_base.get(method)),
                _power(to_base.get(method)),
                to_base[method].verdict if method in to_base else "–",
                f"{standing.seconds() / found[ADAMW].seconds():.2f}" if ADAMW in found else "–",
                f"{_share(standing):.0%}".replace("%", " %"),
                f"{standing.diverged} of {len(standing.records)}",
            )
            for method, standing in found.items()
        ),
    )
    name = f"{NAME}_{section.network}"
    measure = _measure(section)
    picture = figures.draw_comparison(found, _title(section).capitalize(), measure)
    yield Picture(name, picture, f"The {measure} of each method on the {_title(section)}, by seed")
    yield Paragraph(
        "Norms of the hidden matrices, after the first and the last epoch, and the angles by which "
        "an iteration turns them, the largest and the last: root mean squares over the vectors of "
        "the manifold (rows, where there is none), means over layers and seeds. The single layers "
        f"are in {NAME}_layers.csv."
    )
    kinds = {method: _by_kind(standing) for method, standing in found.items()}
    columns = list(dict.fromkeys(kind for own in kinds.values() for kind in own))
    for title, first in (("norms", 0), ("angles", 2)):
        yield Table(
            (title, *columns),
            tuple((method, *_cells(own, columns, first)) for method, own in kinds.items()),
        )


def _by_kind(standing: Standing) -> dict[str, tuple[float, ...]]:
    """Numbers of `_layers`, means over the matrices of one name in all layers."""
    kinds: dict[str, list[tuple[float, ...]]] = {}
    for name, numbers in _layers(standing).items():
        kinds.setdefault(name.split(".")[-2].lstrip("0123456789") or "hidden", []).append(numbers)
    return {kind: tuple(map(fmean, zip(*own, strict=True))) for kind, own in kinds.items()}


def _cells(own: Mapping[str, tuple[float, ...]], kinds: Sequence[str], first: int) -> list[str]:
    return [
        "{:.2g} → {:.2g}".format(*own[kind][first : first + 2]) if kind in own else "–"
        for kind in kinds
    ]


def _share(standing: Standing) -> float:
    """The optimizer's share of the time of an iteration."""
    whole = standing.seconds()
    return standing.seconds("step_seconds") / whole if whole else math.nan


def _ratio(found: Contest | None) -> str:
    if found is None or found.ratio.n < 2:
        return "–"
    mean, interval = found.ratio.factor(3)
    return f"{mean} ({interval})"


def _power(found: Contest | None) -> str:
    if found is None or found.ratio.n < 2:
        return "–"
    return f"{100 * found.detectable:.2g} %"


def _widths(section: Section) -> Iterator[Block]:
    yield Heading(f"Best rates by width: {_title(section)}")
    widths = sorted({record.config.width for record in section.records})
    found = moves(section)
    yield Table(
        (
            *("method", *map(str, widths)),
            *("moves by half-decades", "that is a factor of", "loss at the carried rate"),
        ),
        tuple(
            (
                move.method,
                *(f"{move.rates[w]:g}" if w in move.rates else "–" for w in widths),
                f"{move.half_decades:.1f}",
                _times(move.half_decades),
                "diverged" if math.isinf(move.carried) else f"{move.carried:.3f}",
            )
            for move in found
        ),
    )
    yield Paragraph(
        "Rates are half-decades; between them the movement is that of the lowest point of a "
        "parabola. The last column is the loss at the largest width with the best rate of the "
        "smallest one, over the best loss there."
    )
    name = f"{NAME}_width_{section.network}"
    text = f"Validation loss against the rate, by width, for each method on the {_title(section)}"
    yield Picture(name, figures.draw_widths(section), text)


def _starts(section: Section) -> Iterator[Block]:
    yield Heading(f"Starts: {_title(section)}")
    found = claims.starts(section)
    order = list(dict.fromkeys(start for own in found.values() for start in own))
    yield Table(
        ("method", "rate", *map(str, order)),
        tuple(
            (
                method,
                f"{next(iter(own.values())).records[0].lr:g}",
                *(_from_start(own.get(start)) for start in order),
            )
            for method, own in found.items()
        ),
    )
    config = section.records[0].config
    yield Paragraph(
        f"The {_measure(section)} after {config.iterations} iterations, at the rates that were "
        "chosen from the usual start. A rescaled start computes the same function: a random "
        "element of the network's whole scaling group has moved it. The larger and smaller starts "
        "compute others."
    )
    name = f"{NAME}_starts_{section.network}"
    measure = _measure(section)
    picture = figures.draw_starts(found, _title(section).capitalize(), measure)
    yield Picture(
        name, picture, f"The {measure} by start, for each method on the {_title(section)}"
    )


def _from_start(standing: Standing | None) -> str:
    if standing is None:
        return "–"
    text = mean_and_deviation(standing.scores.values(), 3)
    lost = standing.diverged
    return text + (f" ({lost} of {len(standing.records)} diverged)" if lost else "")


def _choice(section: Section) -> Iterator[Block]:
    yield Heading(f"How rates were chosen: {_title(section)}")
    found, count = claims.tried(section), claims.lost(section)
    config = section.records[0].config
    seeds = len({record.config.seed for record in section.records})
    numbers = sorted({len(own) for own in found.values()})
    trials = " to ".join(map(str, [numbers[0], *numbers[1:][-1:]]))
    rest = sorted({cell.rest_lr for cell in found if cell.rest_lr is not None})
    yield Paragraph(
        f"Validation losses after {config.iterations} iterations, {seeds} "
        f"seed{'s' * (seeds > 1)} for each rate; {trials} rates for each method, half a decade "
        "apart. A grid was widened where its best rate was at an edge, and the others with it. A "
        "rate with a run that diverged is not chosen. Parameters beside the hidden matrices have "
        f"AdamW at its own best rate, {', '.join(f'{lr:g}' for lr in rest) or 'not needed here'}."
    )
    rates = sorted({lr for own in found.values() for lr in own})
    yield Table(
        ("method", *(f"{lr:g}" for lr in rates), "chosen", "diverged runs"),
        tuple(
            (
                cell.method,
                *(_loss(own, lr) for lr in rates),
                f"{best(own):g}",
                str(count[cell]),
            )
            for cell, own in found.items()
        ),
    )


def _loss(own: Mapping[float, float], lr: float) -> str:
    if lr not in own:
        return ""
    return "diverged" if math.isinf(own[lr]) else f"{own[lr]:.3f}"


def _protocol(sections: Sequence[Section]) -> Iterator[Block]:
    yield Heading("How it was measured")
    for network in dict.fromkeys(section.network for section in sections):
        config = next(s for s in sections if s.network == network).records[0].config
        yield Paragraph(
            f"{network}: {NETWORKS[network].title}, {_size(config)}, on {config.dataset}; width "
            f"{NETWORKS[network].width} where nothing else is said."
        )
    used = {record.config.method for section in sections for record in section.records}
    yield Table(
        ("method", "optimizer", "rate of"),
        tuple(
            (name, method.title, "hidden matrices" if method.alone else "all parameters")
            for name, method in METHODS.items()
            if name in used
        ),
        words=3,
    )
    records = [record for section in sections for record in section.records]
    made = {", ".join(f"{k} {v}" for k, v in sorted(record.versions.items())) for record in records}
    diverged = sum(record.result is not None and record.result.diverged for record in records)
    yield Paragraph(
        f"Rates rise over the first {WARM_UP:.0%} of the iterations and fall to zero along a "
        f"cosine. AdamW has β = {BETAS}, Muon momentum 0.95; both decay free matrices by {DECAY}. "
        f"SGD has momentum {MOMENTUM} and decay {SGD_DECAY}. Gradients are not clipped. Choices "
        "are made on validation data, verdicts on other data. A run diverged when a number was not "
        "finite, or its validation loss ended no lower than that of equal scores: "
        f"{diverged} of {len(records)} runs. Intervals are Student's, of logarithms of ratios "
        "paired over seeds, and not corrected for their number. Times are medians over iterations "
        "on a machine that may have had other "
        f"work. Made with {'; '.join(sorted(made))}."
    )


def _size(config: EvidenceConfig) -> str:
    if config.kind == "text":
        return (
            f"{config.layers} layers of {config.heads} heads, passages of {config.block} "
            f"characters, {config.batch_size} in a minibatch"
        )
    layers = "convolutions" if config.network == "resnet" else "hidden layers with ReLU"
    return f"{config.layers} {layers}, {config.batch_size} images in a minibatch"
