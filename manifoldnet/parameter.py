"""Old name of `manifoldnet.declarations`."""

from manifoldnet.deprecation import renamed_module

__getattr__ = renamed_module(
    __name__,
    ("manifoldnet.declarations", "manifoldnet.manifold_parameter"),
    removed_in="0.4.0",
)
