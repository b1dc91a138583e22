"""Old name of `manifoldnet.declarations`, and of the modules beside it."""

from manifoldnet.deprecation import renamed_module

__getattr__ = renamed_module(
    __name__,
    (
        "manifoldnet.declarations",
        "manifoldnet.checkpoints",
        "manifoldnet.parameter_groups",
        "manifoldnet.manifold_parameter",
    ),
    removed_in="0.4.0",
)
