"""Experiments of the papers: one package each, over the engine of `manifoldnet.experiments`."""
