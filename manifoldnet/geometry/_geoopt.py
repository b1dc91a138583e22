"""geoopt, imported without the warnings of its own code: it compiles formulas by torch.jit."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
    import geoopt

__all__ = ["geoopt"]
