"""Layers that need no scale: targets on a simplex, the classification stage, complex moduli.

model.fc = mn.nn.SimplexClassifier(model.fc.in_features, num_classes)    # in place of a Linear
loss_fn = mn.nn.SimplexLoss()                                            # of cross_entropy
"""

from manifoldnet.nn.classifier import SimplexClassifier, SimplexLoss
from manifoldnet.nn.confidence import Confidence
from manifoldnet.nn.features import ModulusFeatures
from manifoldnet.nn.modulus import ComplexModulusStage
from manifoldnet.nn.simplex import simplex_targets

__all__ = [
    "ComplexModulusStage",
    "Confidence",
    "ModulusFeatures",
    "SimplexClassifier",
    "SimplexLoss",
    "simplex_targets",
]
