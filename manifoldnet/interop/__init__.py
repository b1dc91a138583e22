"""Other libraries on this one's manifolds."""
