"""The evidence on today's networks as commands.

    rates     each method's rate chosen on short runs, then all methods compared
    width     the best rate of each method at several widths
    starts    each method at its rate, from starts that are rescaled, or of other sizes

Each experiment is of one network. Rates are chosen alike in all of them (`_choose`), and `starts`
goes on with those that `rates` has chosen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from manifoldnet.experiments.configuration import field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.evidence import config
from manifoldnet.experiments.evidence.config import METHODS, NETWORKS, EvidenceConfig
from manifoldnet.experiments.evidence.records import AXES, cell_of, chosen, losses, missing
from manifoldnet.experiments.study import (
    WIDENED,
    Options,
    Steps,
    Study,
    Sweep,
    half_decade,
    repeated,
    widened,
)

EXPERIMENT = EvidenceConfig.experiment
SCHEMA = "evidence.records:EVIDENCE"
REPORT = "evidence.report:write_evidence_report"

STARTS = ((1.0, 0.0), (1.0, math.log(1000)), (2.0, 0.0), (0.5, 0.0), (4.0, 0.0))
"""Factor of the first matrices, and spread of the group element that moves them.

Methods that keep norms keep those of the start. Four times nanoGPT's deviation of 0.02 is about
1/√width of its small transformer, a usual deviation in larger ones.
"""


class Preset(NamedTuple):
    """The most of everything."""

    repetitions: int = sys.maxsize
    iterations: int = sys.maxsize
    choice_iterations: int = sys.maxsize
    choice_seeds: int = sys.maxsize
    trials: int = sys.maxsize
    widened: int = WIDENED
    steps: int = 100
    width: int = sys.maxsize
    layers: int = sys.maxsize
    block: int = sys.maxsize
    widths: tuple[int, ...] = ()  # () for those of the network


PRESETS = {
    "full": Preset(),
    "short": Preset(
        repetitions=2,
        iterations=200,
        choice_iterations=50,
        choice_seeds=1,
        trials=2,
        widened=0,
        steps=50,
        width=32,
        layers=2,
        block=32,
        widths=(16, 32),
    ),
}
"""``"short"`` ends within two minutes on two cores, and shows that everything runs, no more."""


@dataclass(frozen=True, kw_only=True)
class EvidenceOptions(Options):
    """Options of all experiments; each sweep has a folder of its own in `out`.

    Attributes:
        out: records go into folders in this one.
        preset: all of it, or a short version of at most 200 iterations and 2 seeds.
        network: network that is trained.
        text: text file for a transformer; by default Python's documentation strings.
        dataset: images for the other networks.
        methods: optimizers on their weights; by default those of the network. AdamW is run in any
            case.
        choice_iterations: of the runs that choose rates.
        choice_seeds: runs of each rate that is tried.
        trials: rates of each method, half-decades, before its grid is widened.
    """

    repetitions: int = field(5, at_least=1)
    out: Path = Path("runs") / "evidence"
    preset: str = field("full", choices=PRESETS)
    network: str = field("text", choices=NETWORKS)
    text: Path | None = None
    dataset: str = field("cifar10", choices=("cifar10", "digits"))
    methods: tuple[str, ...] = field((), choices=METHODS)
    choice_iterations: int = field(500, at_least=1)
    choice_seeds: int = field(1, at_least=1)
    trials: int = field(5, at_least=1)

    def most(self, name: str) -> Any:
        """An amount of this name, within the preset."""
        return min(getattr(self, name), getattr(PRESETS[self.preset], name))

    def base(self, iterations: int, width: int | None = None) -> EvidenceConfig:
        """The usual run of the network, of so many iterations, perhaps of another width.

        Raises:
            ConfigError: if the iterations are no whole number of epochs.
        """
        preset = PRESETS[self.preset]
        text = None if self.text is None else str(self.text)
        of_text = NETWORKS[self.network].kind == "text"
        usual = config.base(self.network, text if of_text else self.dataset)
        steps = min(preset.steps, iterations)
        if iterations % steps:
            raise ConfigError(
                f"{iterations} iterations are no multiple of {steps}, after which a run is "
                "evaluated each time"
            )
        return replace(
            usual,
            width=min(usual.width, preset.width) if width is None else width,
            layers=min(usual.layers, preset.layers) if of_text else usual.layers,
            block=min(usual.block, preset.block),
            steps=steps,
            epochs=iterations // steps,
        )


@dataclass(frozen=True, kw_only=True)
class OneWidthOptions(EvidenceOptions):
    """Options of experiments with networks of one width.

    Attributes:
        width: instead of the network's usual one.
    """

    width: int | None = field(None, at_least=1)


@dataclass(frozen=True, kw_only=True)
class RatesOptions(OneWidthOptions):
    """Options of the comparison.

    Attributes:
        iterations: of the runs that are compared.
    """

    iterations: int = field(2000, at_least=1)


@dataclass(frozen=True, kw_only=True)
class WidthOptions(EvidenceOptions):
    """Options of the study of widths.

    Attributes:
        widths: of the residual stream, or of the hidden layers; by default around the usual one.
    """

    repetitions: int = field(2, at_least=1)
    widths: tuple[int, ...] = field((), at_least=1)


@dataclass(frozen=True, kw_only=True)
class StartsOptions(OneWidthOptions):
    """Options of the study of starts."""

    repetitions: int = field(3, at_least=1)


def _sweep(
    options: EvidenceOptions,
    purpose: str,
    runs: Sequence[EvidenceConfig],
    title: str,
    checkpoints: bool = False,
) -> Sweep:
    """Runs for a purpose, in a folder of their own."""
    folder = options.out / f"{purpose}-{options.network}"
    return Sweep(folder, runs, title, {"purpose": purpose}, AXES[purpose], checkpoints)


def _grids(cells: Iterable[EvidenceConfig], trials: int, seeds: int) -> list[EvidenceConfig]:
    """Each cell at half-decades around the first rate of its method."""
    runs = [
        replace(cell, lr=half_decade(METHODS[cell.method].first, k - trials // 2))
        for cell in cells
        for k in range(trials)
    ]
    return repeated(runs, seeds)


Chosen = Generator[Sweep | str, Any, dict[EvidenceConfig, float]]


def _choose(
    options: EvidenceOptions,
    bases: Sequence[EvidenceConfig],
    seeds: int,
    purpose: str,
    *,
    level: bool,
) -> Chosen:
    """Choose the rate of each method on each base, AdamW first: the others need its rate."""
    times = PRESETS[options.preset].widened * (2 if level else 1)

    def sweep(runs: Sequence[EvidenceConfig]) -> Sweep:
        return _sweep(options, purpose, runs, "rates")

    def more(records: Any) -> list[EvidenceConfig]:
        wider = [replace(cell, lr=lr) for cell, lr in missing(losses(records), level=level)]
        return repeated(wider, seeds)

    plain = [replace(base, method="adamw", rest_lr=None) for base in bases]
    runs = _grids(plain, options.most("trials"), seeds)
    records = yield from widened(sweep, runs, more, times)
    rest = chosen(losses(records))
    others = [
        replace(cell, method=method, rest_lr=rest[cell_of(cell)] if METHODS[method].alone else None)
        for cell in plain
        for method in options.methods or NETWORKS[options.network].methods
        if method != "adamw"
    ]
    if others:
        runs = [record.config for record in records]
        runs += _grids(others, options.most("trials"), seeds)
        records = yield from widened(sweep, runs, more, times)
    rates = chosen(losses(records))
    for cell, lr in rates.items():
        yield f"{cell.network}, width {cell.width}, {cell.method}: rate {lr:g}"
    return rates


def _choice(options: OneWidthOptions) -> Chosen:
    """The rates of all methods at one width."""
    base = options.base(options.most("choice_iterations"), options.width)
    seeds = options.most("choice_seeds")
    return (yield from _choose(options, [base], seeds, "choice", level=True))


def _rates(options: RatesOptions) -> Steps:
    long = options.base(options.most("iterations"))
    rates = yield from _choice(options)
    runs = [
        replace(cell, lr=lr, steps=long.steps, epochs=long.epochs) for cell, lr in rates.items()
    ]
    runs = repeated(runs, options.most("repetitions"))
    yield _sweep(options, "comparison", runs, f"{len(rates)} methods", checkpoints=True)


def _width(options: WidthOptions) -> Steps:
    usual = PRESETS[options.preset].widths or NETWORKS[options.network].widths
    iterations = options.most("choice_iterations")
    bases = [options.base(iterations, width) for width in sorted(set(options.widths)) or usual]
    seeds = options.most("repetitions")
    rates = yield from _choose(options, bases, seeds, "width", level=False)
    carried: dict[str, set[float]] = {}
    for cell, lr in rates.items():
        carried.setdefault(cell.method, set()).add(lr)
    runs = [replace(cell, lr=lr) for cell in rates for lr in sorted(carried[cell.method])]
    yield _sweep(options, "width", repeated(runs, seeds), "rates carried over between widths")


def _starts(options: StartsOptions) -> Steps:
    rates = yield from _choice(options)
    runs = [
        replace(cell, lr=lr, start_size=size, spread=spread)
        for size, spread in STARTS
        for cell, lr in rates.items()
    ]
    runs = repeated(runs, options.most("repetitions"))
    yield _sweep(options, "starts", runs, f"{len(STARTS)} starts")


def _experiment() -> Any:
    from manifoldnet.experiments.evidence.run import EXPERIMENT

    return EXPERIMENT


STUDIES: dict[str, Study] = {
    "rates": Study(
        "methods on a network of today: rates chosen on short runs, then compared",
        *(_experiment, _rates, RatesOptions),
    ),
    "width": Study(
        "the best rate of each method at several widths", _experiment, _width, WidthOptions
    ),
    "starts": Study(
        "methods at their rates, from rescaled starts, and from larger and smaller ones",
        *(_experiment, _starts, StartsOptions),
    ),
}
