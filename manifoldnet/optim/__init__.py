"""Optimizers that follow the geometry of declared weights, and learning-rate protocols."""

from manifoldnet.optim.adam import RiemannianAdam
from manifoldnet.optim.bold_driver import BoldDriver
from manifoldnet.optim.constrain import constrain
from manifoldnet.optim.muon import Muon
from manifoldnet.optim.overflow import NormGrowthWarning, ZeroSliceWarning
from manifoldnet.optim.rates import Angles, angle_of
from manifoldnet.optim.sgd import RiemannianSGD

__all__ = [
    "Angles",
    "BoldDriver",
    "Muon",
    "NormGrowthWarning",
    "RiemannianAdam",
    "RiemannianSGD",
    "ZeroSliceWarning",
    "angle_of",
    "constrain",
]
