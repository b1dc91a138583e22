"""Rules for `declare_all`: Table 1 of [badrinarayanan2015symmetry] for any feed-forward network.

    unit_norm(classifier="head")       every filter of a hidden layer on the unit sphere; the
                                       classifier free
    scaled_metric(classifier="head")   hidden layers scaled by filters, the classifier by columns

Hidden layers are the linear, convolution and transposed convolution layers of a model; biases,
normalization layers and everything else stay free. The classifier is given by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn

from manifoldnet.geometry import Manifold, Oblique, Retraction, ScaledEuclidean

__all__ = ["scaled_metric", "unit_norm"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def unit_norm(
    classifier: str | tuple[str, ...], retraction: Retraction | str = "projective"
) -> Callable[[str, nn.Module, nn.Parameter], Manifold | None]:
    """Unit-norm filters in every hidden layer, with a free classifier (UN).

    Args:
        classifier: the qualified name of the layer (or layers) that classify: `"head"`,
            `"backbone.fc"`; an empty tuple if there is none.
        retraction: as in `Oblique`.

    Returns:
        A rule for `declare_all`, usually with `project=True`.

    Raises:
        TypeError: if `classifier` is no string, and no tuple of strings.
        ValueError: for an unknown retraction; from `declare_all`, if the model has no such layer.
    """
    Oblique(retraction=retraction)  # refuse a bad one here, not at the first layer
    return _ByLayer(
        _names(classifier), lambda dim: Oblique(dim, retraction=retraction), by_columns=False
    )


def scaled_metric(
    classifier: str | tuple[str, ...], retraction: Retraction | str = "geodesic"
) -> Callable[[str, nn.Module, nn.Parameter], Manifold | None]:
    """The scaled metric, by filters (rows) in hidden layers, by columns in the classifier (SM).

    Args:
        classifier: as in `unit_norm`.
        retraction: as in `ScaledEuclidean`; "additive" is the paper's update.

    Returns:
        A rule for `declare_all`; the values of the weights stay as they are.

    Raises:
        TypeError: as `unit_norm`.
        ValueError: as `unit_norm`.
    """
    ScaledEuclidean(retraction=retraction)
    return _ByLayer(
        _names(classifier), lambda dim: ScaledEuclidean(dim, retraction), by_columns=True
    )


def _names(classifier: str | tuple[str, ...]) -> tuple[str, ...]:
    names = (classifier,) if isinstance(classifier, str) else classifier
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "classifier must be the qualified name of a layer, such as 'head', or a tuple of "
            f"names, not {classifier!r}"
        )
    return tuple(names)


@final
@dataclass(frozen=True)
class _ByLayer:
    classifier: tuple[str, ...]
    manifold: Callable[[int], Manifold]
    by_columns: bool

    def validate(self, model: nn.Module) -> None:
        """Raise ValueError unless the model has the classifier: all layers would be hidden."""
        modules = dict(model.named_modules())
        for name in self.classifier:
            if not isinstance(modules.get(name), _LAYERS + _TRANSPOSED):
                candidates = [n for n, m in modules.items() if isinstance(m, _LAYERS + _TRANSPOSED)]
                raise ValueError(
                    f"classifier={name!r} is no linear or convolution layer of this model; "
                    f"there are: {', '.join(candidates) or 'none'}"
                )

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        """The manifold of a parameter in Table 1; None for a free one."""
        layer, _, local = name.rpartition(".")
        if local != "weight" or not isinstance(module, _LAYERS + _TRANSPOSED):
            return None
        classifies = layer in self.classifier
        if classifies and not self.by_columns:
            return None
        filters = 0
        if isinstance(module, _TRANSPOSED):
            if module.groups > 1:
                raise ValueError(
                    f"{name}: the filters of a grouped transposed convolution are not the slices "
                    "of one dimension; leave it free with a rule of your own"
                )
            filters = 1
        return self.manifold(1 - filters if classifies else filters)
