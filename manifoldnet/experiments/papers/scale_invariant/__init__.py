"""The scale-invariant paper: its networks, Figures 1-6, and what its robustness amounts to."""
