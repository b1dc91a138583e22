"""Optimizers that follow the geometry of declared weights, and learning-rate protocols."""

from manifoldnet.optim.adam import RiemannianAdam
from manifoldnet.optim.bold_driver import BoldDriver
from manifoldnet.optim.constrain import constrain
from manifoldnet.optim.muon import Muon
from manifoldnet.optim.overflow import NormGrowthWarning, ZeroSliceWarning
from manifoldnet.optim.sgd import RiemannianSGD

__all__ = [
    "BoldDriver",
    "Muon",
    "NormGrowthWarning",
    "RiemannianAdam",
    "RiemannianSGD",
    "ZeroSliceWarning",
    "constrain",
]
