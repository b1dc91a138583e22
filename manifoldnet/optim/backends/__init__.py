"""Implementations of a step, each as products and update of slices."""
