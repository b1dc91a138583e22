"""Pairs of runs, from weights w and g·w, as a table, a picture and a summary. Trains nothing.

    Pair        the losses of both runs of one update
    write_csv   one row per step
    draw        a panel per update and setting, both curves in it
    summary     a line per pair

An update that respects the symmetry has the same losses in both runs, up to rounding.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from manifoldnet.experiments.canvas import COLOURS, INK, MUTED, new_figure, png, style
from manifoldnet.experiments.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("architecture", "symmetry", "update", "step", "loss", "loss_scaled", "difference")

# Losses that agree to this in float64, after hundreds of steps, are equal but for rounding.
SAME = 1e-9

_ROWS = {
    ("arch1", "paper"): "Arch1, the paper's symmetry (1)–(2): W1 and pairs of filters of W2 × s, "
    "head ÷ s",
    ("arch2", "paper"): "Arch2, the paper's symmetry (3): each filter of W1 and W2 × s",
    ("arch1", "between-layers"): "Arch1, a symmetry that the scaled metric does not cover: "
    "pairs of filters of W1 × s, columns of W2 ÷ s",
}


@dataclass(frozen=True)
class Pair:
    """Losses of one update from w and from g·w, before each step.

    Attributes:
        architecture: the network.
        symmetry: the group that g is from.
        update: its name.
        losses: from w.
        scaled: from g·w; shorter if that run diverges: its last loss is not finite then.
    """

    architecture: str
    symmetry: str
    update: str
    losses: tuple[float, ...]
    scaled: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """|difference| of both losses relative to the larger, by step; ∞ from divergence on."""
        return tuple(_relative(a, b) for a, b in zip_longest(self.losses, self.scaled))

    @property
    def difference(self) -> float:
        """The largest of them."""
        return max(self.differences)

    @property
    def quotient(self) -> float:
        """The largest quotient of both losses at one step, 1 or more."""
        both = zip(self.losses, self.scaled, strict=False)
        return max(max(a, b) / min(a, b) if min(a, b) > 0 else inf for a, b in both)

    @property
    def diverged(self) -> int | None:
        """The step at which the scaled run's loss is not finite; None if there is none."""
        return None if isfinite(self.scaled[-1]) else len(self.scaled) - 1


def _relative(a: float | None, b: float | None) -> float:
    if a is None or b is None or not (isfinite(a) and isfinite(b)):
        return inf
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """Writes a row per pair and step, in one atomic step; what a run did not reach is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        rows = zip_longest(pair.losses, pair.scaled, pair.differences, fillvalue="")
        for step, (loss, scaled, difference) in enumerate(rows):
            name = (pair.architecture, pair.symmetry, pair.update)
            writer.writerow([*name, step, loss, scaled, f"{difference:.2e}"])
    write_text(path, stream.getvalue())


def summary(pairs: Sequence[Pair]) -> str:
    """A line per pair: how far the losses are apart at most."""
    return "\n".join(
        f"{pair.architecture}  {pair.symmetry:14}  {pair.update:11}  {_verdict(pair)}"
        for pair in pairs
    )


def _verdict(pair: Pair) -> str:
    if pair.diverged is not None:
        return f"rescaled: diverges at step {pair.diverged}"
    if pair.difference <= SAME:
        return f"same losses, to {pair.difference:.0e}"
    return f"up to {pair.quotient:.2g} times apart"


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """Draws the losses of all pairs as a PNG: a row per setting, a panel per update.

    Args:
        pairs: of one or more settings, each with its updates in the same order.
        path: the picture, written in one atomic step.

    Raises:
        MissingExtraError: without matplotlib.
    """
    rows: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        rows.setdefault((pair.architecture, pair.symmetry), []).append(pair)
    columns = max(map(len, rows.values()))
    figure = new_figure(2.7 * columns, 0.8 + 2.3 * len(rows), dpi=130)
    figure.suptitle(_headline(pairs), x=0.01, ha="left", fontsize=11.5, color=INK)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (setting, members) in zip(parts, rows.items(), strict=True):
        part.suptitle(_ROWS[setting], x=0.01, ha="left", fontsize=10, color=MUTED)
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        # Runs that leap up leave the frame: the rest of them is worth more of it.
        losses = [x for pair in members for x in pair.losses if isfinite(x) and x > 0]
        scaled = [x for pair in members for x in pair.scaled if isfinite(x) and x > 0]
        bottom, top = 0.5 * min(losses + scaled, default=1), 30 * max(losses, default=1)
        for axes, pair in zip_longest(panels, members):
            if pair is None:
                axes.set_visible(False)
                continue
            _panel(axes, pair, highest=10 * top)
            if setting == list(rows)[-1]:
                axes.set_xlabel("step", fontsize=9, color=INK)
        panels[0].set_ylim(bottom, top)
        panels[0].set_yscale("log")
        panels[0].set_ylabel("loss of a minibatch", fontsize=9, color=INK)
    write_bytes(path, png(figure))


def _headline(pairs: Sequence[Pair]) -> str:
    """What is seen, from the numbers, and how to read it."""
    same: dict[str, bool] = {}
    for pair in pairs:
        if pair.symmetry == "paper":
            same[pair.update] = same.get(pair.update, True) and pair.difference <= SAME
    keep = " and ".join(update for update, yes in same.items() if yes) or "no update"
    lose = " and ".join(update for update, yes in same.items() if not yes) or "any other"
    return (
        "Rescaled by the paper's symmetries, a network trains in the same way with "
        f"{keep}, not with {lose}\n"
        "(wide line: from the original weights; thin line: rescaled by factors 1/1000 … 1000)"
    )


def _panel(axes: Axes, pair: Pair, highest: float) -> None:
    """Both curves of a pair, the scaled run's on top; it is cut off above `highest`."""
    colour = COLOURS[pair.update]
    style(axes)
    axes.plot(pair.losses, color=colour, alpha=0.5, linewidth=5, solid_capstyle="butt")
    axes.plot([min(loss, highest) for loss in pair.scaled], color=INK, linewidth=0.9)
    axes.set_xlim(0, max(len(pair.losses) - 1, 1))
    axes.set_title(pair.update, loc="left", fontsize=10, fontweight="bold", color=colour, pad=3)
    same = pair.difference <= SAME
    axes.text(
        0.98,
        0.97,
        _verdict(pair),
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=9,
        fontweight="bold" if same else "normal",
        color=INK,
    )
