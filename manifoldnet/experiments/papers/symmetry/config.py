"""A run of image classification as data: its configuration and the rows of its record.

The setting is that of Badrinarayanan, Mishra and Cipolla, "Symmetry-invariant optimization in deep
networks", Sections 2-4. What the paper leaves open is a field with a documented default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from manifoldnet.experiments.configuration import Configuration, field
from manifoldnet.experiments.errors import ConfigError
from manifoldnet.experiments.papers.updates import UPDATES
from manifoldnet.experiments.records import EpochRow, ResultRow, RunRecord, Schema

ARCHITECTURES = ("arch1", "arch2")
SCHEDULES = ("exponential", "bold-driver")
MEASURES = ("loss", "error")
SELECTION_SCHEDULES = ("constant", "own")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Configuration):
    """One run of image classification.

    Attributes:
        dataset: ``"digits"`` (embedded), ``"mnist"``, ``"cifar10"``, or any image-classification
            set of the Hugging Face hub or of the data folder.
        architecture: ``"arch1"``, or ``"arch2"`` (with batch normalization).
        depth: hidden layers.
        features: filters per hidden layer (64 in the paper); even, since pooling pairs them.
        update: a key of `UPDATES`.
        schedule: ``"exponential"`` (the rate times `decay` after each epoch) or ``"bold-driver"``.
        lr: base learning rate λ, for the loss *summed* over a minibatch. None chooses one of
            `lr_candidates` for each run, as the paper does (`run.select`).
        momentum: 0, plain SGD, in the paper.
        batch_size: images per minibatch. A smaller last minibatch is used as it is.
        epochs: passes through the training images; the most of them when rules may end the run.
        seed: decides the split into training and validation images, the start and the order of the
            images.
        train_size: training images; None takes all that the validation images leave.
        validation_size: images held out of the training set; None takes a sixth of it, which gives
            MNIST the paper's 50,000 and 10,000.
        decay: factor per epoch of the exponential schedule (0.95 in the paper).
        grow: factor of the bold driver while the mean training loss falls. Not given in the paper;
            "a few per cent" in the lecture notes that it cites.
        shrink: factor of the bold driver when the loss rises. Not given in the paper either; 0.5 in
            those notes.
        threads: torch's threads during the run. One serves networks of this size well; the
            number is kept with the run because sums are rounded in another order when it changes.
        lr_candidates: base rates to choose from; of equals the first is taken (the paper does not
            say; listed from large to small, it is the one that learns faster).
        selection_epochs: passes through the images of the choice.
        selection_train_size: images to train on for the choice, drawn from the run's training
            images, which leaves its validation images unseen.
        selection_validation_size: other training images whose error decides.
        selection_schedule: ``"constant"`` trains with each candidate as it is, which is what the
            paper's words say; ``"own"`` lets the run's schedule change it.
        min_epochs: the first epoch at which the rules of `run.stopping_rule` may end a run with the
            bold driver (25 in the paper); None tests none of them.
        stop_train_error: a run ends when its training error falls below this.
        stop_validation_epochs: it ends when the validation error is above that of so many epochs
            earlier.
        stop_validation_change: it ends when two successive validation errors differ by less.
        training_measure: the "training error" of the rules, as it came up during the epoch: the
            ``"error"`` rate (1e-5 of 50,000 images means none wrong), or the mean ``"loss"``.
        validation_measure: the "validation error" of the rules: the mean ``"loss"``, or the
            ``"error"`` rate. The paper does not say. A rate over 10,000 images moves in steps of
            1e-4, for which a bound of 1e-5 makes little sense, so it is the loss.
        diverged_above: a run that ends with a validation error rate above this counts as diverged.
            The paper ignores "a small proportion of runs where the validation error diverged" and
            does not say what that means.
    """

    experiment: ClassVar[str] = "classification"

    dataset: str = field(
        "digits",
        pattern=r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?",
        example="'digits', 'mnist', or 'owner/name' on the hub",
    )
    architecture: str = field("arch2", choices=ARCHITECTURES)
    depth: int = field(2, at_least=1)
    features: int = field(64, at_least=1)
    update: str = field("b-sgd", choices=UPDATES)
    schedule: str = field("exponential", choices=SCHEDULES)
    lr: float | None = field(1e-2, above=0)
    momentum: float = field(0.0, at_least=0, below=1)
    batch_size: int = field(100, at_least=1)
    epochs: int = field(30, at_least=1)
    seed: int = field(0, at_least=0)
    train_size: int | None = field(None, at_least=1)
    validation_size: int | None = field(None, at_least=1)
    decay: float = field(0.95, above=0, at_most=1)
    grow: float = field(1.05, at_least=1)
    shrink: float = field(0.5, above=0, below=1)
    threads: int = field(1, at_least=1)
    lr_candidates: tuple[float, ...] = field((1e-2, 1e-3, 1e-4, 1e-5), above=0)
    selection_epochs: int = field(50, at_least=1)
    selection_train_size: int = field(1000, at_least=1)
    selection_validation_size: int = field(500, at_least=1)
    selection_schedule: str = field("constant", choices=SELECTION_SCHEDULES)
    min_epochs: int | None = field(None, at_least=1)
    stop_train_error: float = field(1e-5, at_least=0)
    stop_validation_epochs: int = field(5, at_least=1)
    stop_validation_change: float = field(1e-5, at_least=0)
    training_measure: str = field("error", choices=MEASURES)
    validation_measure: str = field("loss", choices=MEASURES)
    diverged_above: float = field(0.5, above=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features % 2:
            raise ConfigError(
                f"features is {self.features}; it must be even, because 2x1 max-pooling pairs "
                "features"
            )
        rates = self.lr_candidates
        if not rates or len(set(rates)) < len(rates):
            raise ConfigError(f"lr_candidates is {rates}; it must name different rates")
        if self.min_epochs is not None and self.min_epochs > self.epochs:
            raise ConfigError(
                f"min_epochs is {self.min_epochs}; it must not exceed epochs, which is "
                f"{self.epochs}"
            )
        if self.architecture == "arch2" and self.batch_size == 1:
            raise ConfigError(
                "batch_size is 1; arch2 normalizes over the minibatch and needs 2 or more"
            )

    @property
    def label(self) -> str:
        """The cell of Table 2 that a run belongs to: ``arch1-2-b-sgd-exponential``."""
        return f"{self.architecture}-{self.depth}-{self.update}-{self.schedule}"


@dataclass(frozen=True, kw_only=True)
class Epoch(EpochRow):
    """One epoch of image classification. The loss is the cross-entropy in nats.

    Attributes:
        train_error: error rate on the training images, in [0, 1], as they came up.
        validation_error: error rate on the validation images after the epoch.
        test_error: error rate on the test images after the epoch.
        validation_loss: mean loss of a validation image after the epoch; None in records of
            format 1.
    """

    train_error: float
    validation_error: float
    test_error: float
    validation_loss: float | None = None

    def summary(self) -> str:
        """The errors to show while the run goes on."""
        return f"validation {self.validation_error:.2%}, test {self.test_error:.2%}"


@dataclass(frozen=True, kw_only=True)
class Result(ResultRow):
    """The end of a run of image classification.

    Attributes:
        test_error: error rate on the test images after the last epoch.
        validation_error: the same for the validation images.
    """

    test_error: float
    validation_error: float


CLASSIFICATION = Schema(TrainConfig, Epoch, Result)
Record = RunRecord[TrainConfig, Epoch, Result]
"""A run of image classification."""
