"""Scale-invariant layers: simplex targets and classifier, calibration, complex moduli.

model.fc = mn.nn.SimplexClassifier(model.fc.in_features, num_classes)    # replaces a Linear
loss_fn = mn.nn.SimplexLoss()                                            # replaces cross_entropy
"""

from manifoldnet.nn.calibration import Confidence
from manifoldnet.nn.complex_modulus import ComplexModulusStage, ModulusFeatures
from manifoldnet.nn.simplex import SimplexClassifier, SimplexLoss, simplex_targets

__all__ = [
    "ComplexModulusStage",
    "Confidence",
    "ModulusFeatures",
    "SimplexClassifier",
    "SimplexLoss",
    "simplex_targets",
]
