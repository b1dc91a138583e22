"""Batch solvers measured: against first-order ones, under rescaling, and what a call costs."""
