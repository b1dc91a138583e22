"""Short runs of all cells of Table 2, an executor that fails on demand, and what a sweep left."""

import dataclasses
from concurrent.futures import Executor, Future

from test_training import numbers

from manifoldnet.experiments import TrainConfig
from manifoldnet.experiments.papers.symmetry.cells import TABLE2, configurations
from manifoldnet.experiments.papers.symmetry.run import EXPERIMENT
from manifoldnet.experiments.sweep import sweep

SHORT = TrainConfig(
    lr=None,
    lr_candidates=(1e-2, 1e-3),
    selection_epochs=1,
    selection_train_size=200,
    selection_validation_size=100,
    features=16,
    epochs=4,
    min_epochs=2,
    train_size=400,
    validation_size=200,
)
RUNS = configurations(TABLE2, 1, SHORT)
FEW = RUNS[:3]


class Here(Executor):
    """Does everything at once, in this process; some submissions fail first."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append(args[1])
        future = Future()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def quiet(configs, where, executor=None, **options):
    return sweep(EXPERIMENT, configs, where, executor=executor or Here(), progress=False, **options)


def content(where):
    return {p.name: p.read_bytes() for p in (where / "records").iterdir()}


def without_clock(record):
    record = dataclasses.replace(
        record, selection=dataclasses.replace(record.selection, seconds=0.0), versions={}
    )
    return numbers(record), record.selection, record.data
