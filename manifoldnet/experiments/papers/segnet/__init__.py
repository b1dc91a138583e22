"""SegNet on road scenes, the application of the symmetry paper (Section 6)."""
