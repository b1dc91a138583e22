"""The papers' experiments: data, networks, the training loop, comparisons and their reports.

    configuration, data -> training -> record -> tables, plots, report

A name is loaded when it is first used: `--help` does not wait for scikit-learn or matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifoldnet.experiments.data import Dataset, load
    from manifoldnet.experiments.errors import (
        ConfigError,
        DataError,
        ExperimentError,
        MissingExtraError,
        RecordError,
    )
    from manifoldnet.experiments.papers.segnet.config import SegmentationConfig
    from manifoldnet.experiments.papers.segnet.network import SegNet
    from manifoldnet.experiments.papers.symmetry.comparison import compare, configurations
    from manifoldnet.experiments.papers.symmetry.config import Epoch, Record, Result, TrainConfig
    from manifoldnet.experiments.papers.symmetry.figures import plot_test_error
    from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2, ConvArch1, ConvArch2
    from manifoldnet.experiments.papers.symmetry.report import write_paper_report
    from manifoldnet.experiments.papers.symmetry.run import train
    from manifoldnet.experiments.papers.symmetry.tables import merge_csv, summary, write_report
    from manifoldnet.experiments.papers.symmetry.times import epoch_times
    from manifoldnet.experiments.papers.updates import UPDATES
    from manifoldnet.experiments.report import Report
    from manifoldnet.experiments.sweep import SweepError

_HOME = {
    "papers.symmetry.comparison": ["compare", "configurations"],
    "papers.symmetry.times": ["epoch_times"],
    "papers.symmetry.figures": ["plot_test_error"],
    "papers.symmetry.config": ["Epoch", "Record", "Result", "TrainConfig"],
    "papers.symmetry.tables": ["merge_csv", "summary", "write_report"],
    "papers.symmetry.run": ["train"],
    "data": ["Dataset", "load"],
    "report": ["Report"],
    "errors": ["ConfigError", "DataError", "ExperimentError", "MissingExtraError", "RecordError"],
    "papers.symmetry.networks": ["Arch1", "Arch2", "ConvArch1", "ConvArch2"],
    "papers.segnet.config": ["SegmentationConfig"],
    "papers.segnet.network": ["SegNet"],
    "sweep": ["SweepError"],
    "papers.symmetry.report": ["write_paper_report"],
    "papers.updates": ["UPDATES"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "UPDATES",
    "Arch1",
    "Arch2",
    "ConfigError",
    "ConvArch1",
    "ConvArch2",
    "DataError",
    "Dataset",
    "Epoch",
    "ExperimentError",
    "MissingExtraError",
    "Record",
    "RecordError",
    "Report",
    "Result",
    "SegNet",
    "SegmentationConfig",
    "SweepError",
    "TrainConfig",
    "compare",
    "configurations",
    "epoch_times",
    "load",
    "merge_csv",
    "plot_test_error",
    "summary",
    "train",
    "write_paper_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
