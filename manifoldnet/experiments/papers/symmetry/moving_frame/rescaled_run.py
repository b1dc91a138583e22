"""Training from rescaled starts."""

from __future__ import annotations

from typing import Any

from manifoldnet.experiments import training
from manifoldnet.experiments.data import Dataset, seeded_generator
from manifoldnet.experiments.papers.symmetry import networks
from manifoldnet.experiments.papers.symmetry.config import Epoch, Result
from manifoldnet.experiments.papers.symmetry.moving_frame import run
from manifoldnet.experiments.papers.symmetry.moving_frame.config import RESCALED, RescaledConfig
from manifoldnet.experiments.papers.symmetry.run import outcome
from manifoldnet.symmetry import reparameterize


class Run(run.Run):
    """A network of the paper under training, from the usual start moved by its group."""

    def start(self, config: Any, data: Dataset) -> networks.Arch1 | networks.Arch2:
        """The usual start, moved by an element that the seed decides."""
        network = super().start(config, data)
        if config.spread:
            element = run.whole_group(network).sample(
                generator=seeded_generator(config.seed, "element"), spread=config.spread
            )
            reparameterize(network, element, in_place=True)
        return network


EXPERIMENT: training.Experiment[RescaledConfig, Epoch, Result] = training.Experiment(
    schema=RESCALED,
    start=Run,
    parts=run.EXPERIMENT.parts,
    outcome=outcome,
    size_fields=run.EXPERIMENT.size_fields,
)
