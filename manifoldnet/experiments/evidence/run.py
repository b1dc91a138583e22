"""A network under training by a method.

    passages or images -> network -> loss -> optimizers and their schedules, iteration by iteration

A run diverges when a number is not finite, and counts as diverged when it ends with a loss on the
validation data that is no lower than that of equal scores for all classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.optim.lr_scheduler import LambdaLR

import manifoldnet as mn
from manifoldnet.experiments import data, text, training
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.evidence.config import MEASURED, WARM_UP, EvidenceConfig
from manifoldnet.experiments.evidence.methods import optimizers
from manifoldnet.experiments.evidence.networks import build, loss, scalings
from manifoldnet.experiments.evidence.records import EVIDENCE, EvidenceEpoch, EvidenceResult
from manifoldnet.symmetry import reparameterize

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""

_FEW = 128  # passages of an evaluation after an epoch
_RUN = 10  # passages in a row that are held out together, or are not
_RUNS = 20  # of so many runs the last two are held out
_EVALUATED = 128  # passages, or sixteen times as many images, at once


class Parts(Protocol):
    """Examples for training, for choices, and for the reported loss."""

    def batch(self, size: int, source: torch.Generator) -> Batch:
        """A random minibatch."""

    def validation(self, last: bool) -> Iterator[Batch]:
        """Examples for choices: some of them, or all after the last epoch."""

    def test(self) -> Iterator[Batch]:
        """Examples for the reported loss."""


@dataclass(frozen=True, eq=False)
class Passages:
    """A text in passages. Of twenty runs of ten passages, one is for choices and one for tests."""

    train: Tensor  # the other characters
    held_out: Tensor  # of choices, ``(passages, block + 1)``
    tested: Tensor  # of the reported loss, likewise
    block: int

    @classmethod
    def of(cls, config: EvidenceConfig, whole: text.Text) -> Passages:
        """The passages of a text.

        Raises:
            ConfigError: for a text that is too short for it.
        """
        length = config.block + 1
        runs = torch.arange(len(whole.codes) // length) // _RUN % _RUNS
        passages = whole.codes[: len(runs) * length].view(-1, length)
        validation, test = runs == _RUNS - 2, runs == _RUNS - 1
        if not test.any():
            raise ConfigError(
                f"{whole.name} has {len(whole.codes)} characters: passages of block = "
                f"{config.block} need {_RUN * (_RUNS - 1) * length + length} or more"
            )
        train = passages[~(validation | test)].flatten()
        return cls(train, passages[validation], passages[test], config.block)

    def batch(self, size: int, source: torch.Generator) -> Batch:
        """Random passages, and the characters after each of theirs."""
        starts = torch.randint(len(self.train) - self.block, (size, 1), generator=source)
        ids = self.train[starts + torch.arange(self.block + 1)]
        return ids[:, :-1], ids[:, 1:]

    def validation(self, last: bool) -> Iterator[Batch]:
        """Passages of choices."""
        step = 1 if last else -(-len(self.held_out) // _FEW)
        yield from self._batches(self.held_out[::step])

    def test(self) -> Iterator[Batch]:
        """Passages of the reported loss."""
        yield from self._batches(self.tested)

    def _batches(self, passages: Tensor) -> Iterator[Batch]:
        for ids in passages.split(_EVALUATED):
            yield ids[:, :-1], ids[:, 1:]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rasterized images with pixels from −1 to 1.

    With `shifted`, those of training are flipped at random, and shifted by up to a sixteenth.
    """

    split: data.Split
    shape: tuple[int, ...]  # of an image
    shifted: bool

    def batch(self, size: int, source: torch.Generator) -> Batch:
        """Random images and their labels."""
        train = self.split.train
        rows = torch.randint(len(train), (size,), generator=source)
        pixels = _centred(train, rows)
        if self.shifted:
            pixels = _moved(pixels.unflatten(1, self.shape), source).flatten(1)
        return pixels, train.labels[rows]

    def validation(self, last: bool) -> Iterator[Batch]:
        """Images of choices."""
        yield from self._batches(self.split.validation)

    def test(self) -> Iterator[Batch]:
        """Images of the reported loss."""
        yield from self._batches(self.split.test)

    def _batches(self, images: data.Images) -> Iterator[Batch]:
        for rows in torch.arange(len(images)).split(16 * _EVALUATED):
            yield _centred(images, rows), images.labels[rows]


def _centred(images: data.Images, rows: Tensor) -> Tensor:
    return images.vectors(rows).mul_(2).sub_(1)


def _moved(images: Tensor, source: torch.Generator) -> Tensor:
    """Images flipped from left to right at random, and shifted; edges are reflected."""
    count, _, height, width = images.shape
    most = width // 16
    padded = pad(images, (most, most, most, most), mode="reflect")
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=source)
    flipped = torch.rand(count, 1, generator=source) < 0.5
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flipped, width - 1 - columns, columns) + right
    rows = torch.arange(height) + down
    each = torch.arange(count)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def load(
    source: tuple[Any, ...], data_dir: str | Path | None, notice: training.Notice | None
) -> training.Data:
    """The text or the image set ``(kind, name)``."""
    kind, name = source
    return text.load(name, notice) if kind == "text" else data.load(name, data_dir, notice)


def make_parts(config: EvidenceConfig, whole: Any) -> Parts:
    """The examples of a run; a text is the same for all seeds, images are split by the seed."""
    if config.kind == "text":
        return Passages.of(config, whole)
    split = data.split(whole, config.seed, None, config.validation_size)
    return Pictures(split, tuple(whole.train_images.shape[1:]), config.network == "resnet")


def factor(step: int, iterations: int) -> float:
    """The factor of a rate before iteration `step`: a linear warm-up, then a cosine to zero."""
    warm_up = round(WARM_UP * iterations)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (iterations - warm_up)))


class Run(training.Run):
    """A network under training."""

    row = EvidenceEpoch

    def __init__(
        self, config: EvidenceConfig, whole: Any, device: torch.device = training.PROCESSOR
    ) -> None:
        self.config, self.device = config, device
        is_text = isinstance(whole, text.Text)
        self.classes = len(whole.alphabet if is_text else whole.classes)
        shape = () if is_text else whole.train_images.shape[1:]
        self.network = build(config, shape, self.classes)
        if config.spread:
            source = data.seeded_generator(config.seed, "element")
            element = scalings(self.network).sample(generator=source, spread=config.spread)
            reparameterize(self.network, element, in_place=True)
        self.network.to(device)
        made = optimizers(config, self.network)
        self.stepped, self.optimizer = made.stepped, made.stepped[0]
        by = partial(factor, iterations=config.iterations)
        self.schedules = [LambdaLR(each, by) for each in (*made.stepped, *made.gains)]
        self.angles = mn.optim.Angles(self.network)
        self.generator = data.seeded_generator(config.seed, "order")

    @property
    def stateful(self) -> dict[str, Any]:
        """The parts with a state, by their names in a checkpoint."""
        parts: dict[str, Any] = {"model": self.network, "generator": self.generator}
        parts |= {f"optimizer {i}": each for i, each in enumerate(self.stepped)}
        return parts | {f"schedule {i}": each for i, each in enumerate(self.schedules)}

    def train_pass(self, parts: Parts) -> dict[str, Any]:
        """The iterations of an epoch; they end at the first number that is not finite."""
        self.network.train()
        losses: list[float] = []
        seconds: list[tuple[float, float]] = []
        turned: list[list[float]] = []
        fault = ""
        for step in range(self.config.steps):
            began = time.perf_counter()
            batch = parts.batch(self.config.batch_size, self.generator)
            inputs, targets = (each.to(self.device) for each in batch)
            self.network.zero_grad()
            found = loss(self.network(inputs), targets)
            found.backward()
            losses.append(found.item())
            if not math.isfinite(losses[-1]):
                fault = f"the loss of iteration {step + 1} was not finite"
                break
            measured = step % MEASURED == 0
            stepping = time.perf_counter()
            with self.angles if measured else nullcontext():
                if not self._step():
                    fault = f"gradients of iteration {step + 1} were not finite"
                    break
            now = time.perf_counter()
            if measured:
                turned.append([self.angles.angle[name] for name in self.config.matrices])
            else:
                seconds.append((now - began, now - stepping))
        norms = [self.angles.norm[name] for name in self.config.matrices] if turned else []
        angles = [fmean(column) for column in zip(*turned, strict=True)]
        finite = not fault and all(map(math.isfinite, (*norms, *angles)))
        whole, own = (median(c) for c in zip(*seconds, strict=True)) if seconds else (0.0, 0.0)
        return {
            "train_loss": fmean(losses) if not fault else math.nan,
            "norms": _rounded(norms) if finite else (),
            "angles": _rounded(angles) if finite else (),
            "iteration_seconds": whole,
            "step_seconds": own,
            "fault": fault,
        }

    def _step(self) -> bool:
        """Step all optimizers and schedules; False for gradients that are not finite."""
        try:
            for each in self.stepped:
                each.step()
        except RuntimeError:  # some optimizers refuse such gradients
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            if all(bool(grad.isfinite().all()) for grad in gradients):
                raise
            return False
        for schedule in self.schedules:
            schedule.step()
        return True

    def evaluate(self, number: int, parts: Parts, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Losses on validation data, and on test data after the last epoch."""
        last, fault = number == self.config.epochs, trained["fault"]
        measured: dict[str, Any] = dict.fromkeys(
            ("validation_loss", "test_loss", "test_error"), math.nan
        )
        if not fault:
            measured["validation_loss"], _ = self._scores(parts.validation(last))
            if not math.isfinite(measured["validation_loss"]):
                fault = f"the validation loss after epoch {number} was not finite"
            elif last:
                measured["test_loss"], measured["test_error"] = self._scores(parts.test())
                if measured["validation_loss"] >= math.log(self.classes):
                    fault = "the loss ended no lower than that of equal scores"
        return measured | {"fault": fault}

    @torch.no_grad()
    def _scores(self, batches: Iterator[Batch]) -> tuple[float, float]:
        """Mean loss, and share that is predicted wrong."""
        self.network.eval()
        total = wrong = count = 0.0
        for inputs, targets in batches:
            scores = self.network(inputs.to(self.device))
            labels = targets.flatten().to(self.device)
            total += float(cross_entropy(scores, labels, reduction="sum"))
            wrong += int((scores.argmax(1) != labels).sum())
            count += len(labels)
        return total / count, wrong / count


def _rounded(numbers: Sequence[float]) -> tuple[float, ...]:
    """Six digits: records of many layers stay small."""
    return tuple(float(f"{number:.6g}") for number in numbers)


def _fault(last: EvidenceEpoch) -> str:
    return f"epoch {last.epoch}: {last.fault}" if last.fault else ""


def _outcome(config: EvidenceConfig, last: EvidenceEpoch) -> dict[str, float]:
    return {name: getattr(last, name) for name in ("validation_loss", "test_loss", "test_error")}


EXPERIMENT: training.Experiment[EvidenceConfig, EvidenceEpoch, EvidenceResult] = (
    training.Experiment(
        schema=EVIDENCE,
        start=Run,
        parts=make_parts,
        resident=False,
        outcome=_outcome,
        load=load,
        data_fields=("kind", "dataset"),
        size_fields=("kind", "block", "validation_size"),
        fault=_fault,
    )
)
