"""The papers' experiments: data, networks, the training loop, comparisons and their reports.

    configuration, data -> training -> record -> tables, plots, report

A configuration is data; one loop trains any of them and leaves a record; reports are made from
records alone. What is named here is loaded when it is first used, so that asking for `--help` does
not wait for scikit-learn or matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifoldnet.experiments.classification.comparison import compare, configurations
    from manifoldnet.experiments.classification.config import TrainConfig
    from manifoldnet.experiments.classification.epoch_time import epoch_times
    from manifoldnet.experiments.classification.plots import plot_test_error
    from manifoldnet.experiments.classification.report import write_report
    from manifoldnet.experiments.classification.rows import Epoch, Record, Result
    from manifoldnet.experiments.classification.tables import merge_csv, summary
    from manifoldnet.experiments.classification.training import train
    from manifoldnet.experiments.data import Dataset
    from manifoldnet.experiments.document import Report
    from manifoldnet.experiments.errors import (
        ConfigError,
        DataError,
        ExperimentError,
        MissingExtraError,
        RecordError,
    )
    from manifoldnet.experiments.models import Arch1, Arch2, ConvArch1, ConvArch2
    from manifoldnet.experiments.records import Selection
    from manifoldnet.experiments.segmentation.config import SegmentationConfig
    from manifoldnet.experiments.segmentation.network import SegNet
    from manifoldnet.experiments.sources import load
    from manifoldnet.experiments.sweep import SweepError
    from manifoldnet.experiments.symmetry_paper.cells import Cell
    from manifoldnet.experiments.symmetry_paper.report import write_paper_report
    from manifoldnet.experiments.updates import UPDATES, Update

_HOME = {
    "classification.comparison": ["compare", "configurations"],
    "classification.config": ["TrainConfig"],
    "classification.epoch_time": ["epoch_times"],
    "classification.plots": ["plot_test_error"],
    "classification.report": ["write_report"],
    "classification.rows": ["Epoch", "Record", "Result"],
    "classification.tables": ["merge_csv", "summary"],
    "classification.training": ["train"],
    "data": ["Dataset"],
    "document": ["Report"],
    "errors": ["ConfigError", "DataError", "ExperimentError", "MissingExtraError", "RecordError"],
    "models": ["Arch1", "Arch2", "ConvArch1", "ConvArch2"],
    "records": ["Selection"],
    "segmentation.config": ["SegmentationConfig"],
    "segmentation.network": ["SegNet"],
    "sources": ["load"],
    "sweep": ["SweepError"],
    "symmetry_paper.cells": ["Cell"],
    "symmetry_paper.report": ["write_paper_report"],
    "updates": ["UPDATES", "Update"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "UPDATES",
    "Arch1",
    "Arch2",
    "Cell",
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
    "Selection",
    "SweepError",
    "TrainConfig",
    "Update",
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
