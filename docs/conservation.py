"""Drift of the conservation laws of a ReLU network under gradient descent and other updates.

    python docs/conservation.py    writes results/conservation_drift.csv and, for light pages and
    dark ones, -light.svg and -dark.svg

Gradient flow conserves ‖row‖² + bias² − ‖column‖² of each hidden unit [marcotte2023abide]; here
there are eight. A network with 10 inputs and 4 classes is trained on 64 random examples as one
batch, in float64. Gradient descent runs for the same time, rate × steps = 4, at four rates. The
others take the steps of the second of these.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer

import manifoldnet as mn
from manifoldnet.experiments.plotting import (
    BLUE,
    FAINT,
    GREY,
    INK,
    RED,
    new_figure,
    style,
    write_svg_pair,
)
from manifoldnet.symmetry import DriftLog

RESULTS = Path(__file__).parent / "results"
RATES = (0.1, 0.05, 0.025, 0.0125)
RATE, TIME = RATES[1], 4.0


class Update(NamedTuple):
    """An optimizer with its rate."""

    name: str
    rate: float
    make: Callable[[Any], Optimizer]


def gradient_descent(lr: float) -> Update:
    """Plain SGD."""
    return Update("gradient descent", lr, lambda weights: SGD(weights, lr=lr))


UPDATES = (
    *map(gradient_descent, RATES),
    Update("momentum .9", RATE, lambda weights: SGD(weights, lr=RATE, momentum=0.9)),
    Update("weight decay .1", RATE, lambda weights: SGD(weights, lr=RATE, weight_decay=0.1)),
    Update("Adam", RATE, lambda weights: Adam(weights, lr=RATE)),
)


def watched(updates: Sequence[Update]) -> list[DriftLog]:
    """Logs of the laws during trainings from one start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)).double()
        batch = torch.randn(64, 10, dtype=torch.float64), torch.randint(4, (64,))
    laws = mn.symmetry.conserved(start, mn.symmetry.discover(start, cross_entropy, [batch]))
    logs = []
    for update in updates:
        model = copy.deepcopy(start)
        optimizer = update.make(model.parameters())
        log = mn.symmetry.watch(optimizer, model, laws)
        for _ in range(round(TIME / update.rate)):
            optimizer.zero_grad()
            cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        logs.append(log)
    return logs


def largest(log: DriftLog) -> float:
    """The largest drift at the end."""
    return float(log.drift[-1].abs().max())


def slope(rates: Sequence[float], drifts: Sequence[float]) -> float:
    """d ln(drift)/d ln(rate), by least squares."""
    x, y = (torch.tensor(each, dtype=torch.float64).log() for each in (rates, drifts))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def draw(logs: Sequence[DriftLog], path: Path) -> None:
    """Drift of each law for five updates, and of the largest against the rate."""
    figure = new_figure(8.4, 4.6)
    panels: list[Axes] = list(figure.subplots(2, 3).flat)
    shown = [1, 2, *range(len(RATES), len(UPDATES))]
    for axes, number in zip(panels, shown, strict=False):
        update = UPDATES[number]
        logs[number].plot(axes)
        for line in axes.lines:
            line.set_color(FAINT)
        axes.lines[-1].set_color(BLUE if number < len(RATES) else RED)
        axes.set_ylim(1e-7, 30)
        axes.set_title(f"{update.name}, rate {update.rate:g}", color=INK, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel("")
        style(axes)
    drifts = [largest(log) for log in logs[: len(RATES)]]
    last = panels[-1]
    reference = [drifts[0] * rate / RATES[0] for rate in RATES]
    last.loglog(RATES, reference, color=GREY, linewidth=1, linestyle="--")
    last.loglog(RATES, drifts, "o", color=BLUE)
    last.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    last.minorticks_off()
    title = f"gradient descent: slope {slope(RATES, drifts):.2f}"
    last.set_title(title, color=INK, fontsize=10, loc="left")
    last.set_xlabel("rate, for the same time", fontsize=9)
    style(last)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("drift of the laws", fontsize=9)
    write_svg_pair(figure, path)


def main(folder: Path = RESULTS) -> None:
    """Measures, writes and draws."""
    logs = watched(UPDATES)
    with (folder / "conservation_drift.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["update", "rate", "steps", "largest drift"])
        for update, log in zip(UPDATES, logs, strict=True):
            writer.writerow([update.name, update.rate, log.steps[-1], f"{largest(log):.2e}"])
    draw(logs, folder / "conservation_drift")


if __name__ == "__main__":
    main()
