"""Evidence on networks that are trained today: optimizers on manifolds against plain ones."""
