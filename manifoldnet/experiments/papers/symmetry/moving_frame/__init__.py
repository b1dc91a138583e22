"""Accuracy in the moving frame: the symmetry paper's networks, SGD and AdamW."""
