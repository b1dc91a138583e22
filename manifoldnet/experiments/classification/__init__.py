"""Image classification by the symmetry paper's networks: one run, and comparisons of updates."""
