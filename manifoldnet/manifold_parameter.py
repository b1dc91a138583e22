"""`ManifoldParameter`, apart from the other declarations because it is the only one to load geoopt.

`manifoldnet.ManifoldParameter` imports this module when it is first used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manifoldnet import registry
from manifoldnet.geometry import Manifold, from_geoopt
from manifoldnet.geometry._geoopt import geoopt
from manifoldnet.geometry.settled import is_sharded

__all__ = ["ManifoldParameter"]


# geoopt carries no types, so its class is Any to the type checker.
class ManifoldParameter(geoopt.ManifoldParameter):  # type: ignore[misc]
    """A parameter on a manifold: a declaration that is made by assigning it to a module.

    It is a `geoopt.ManifoldParameter`, so geoopt's optimizers take it as it is.

    Args:
        data: a point of `manifold`; shared, not copied, as in `torch.nn.Parameter`.
        manifold: one of this library or of geoopt.
        requires_grad: as in `torch.nn.Parameter`.

    Raises:
        TypeError: if `data` is not a tensor, or is a DTensor.
        ValueError: if the data cannot be a point of the manifold (order, type) or is off it; the
            message says which slices, by how much, and what to call.
    """

    manifold: Manifold

    def __new__(
        cls, data: Tensor, manifold: Manifold, requires_grad: bool = True
    ) -> ManifoldParameter:
        """Check the point and make the parameter."""
        manifold = from_geoopt(manifold)
        if not isinstance(data, Tensor):
            raise TypeError(
                f"data must be a tensor, not {type(data).__name__}: give torch.tensor(data), or "
                "manifold.random(shape)"
            )
        if is_sharded(data):
            raise TypeError(
                "data is a DTensor, of which there is no ManifoldParameter: assign "
                "torch.nn.Parameter(data) to the module, then call manifoldnet.declare(module, "
                "name, manifold)"
            )
        if data.is_meta:
            manifold.assert_check_point(data)
        else:
            manifold.assert_check_point_on_manifold(data)
        return _unchecked(data, manifold, requires_grad)

    def __repr__(self) -> str:
        values = self.detach().as_subclass(Tensor).requires_grad_(self.requires_grad)
        return f"ManifoldParameter on {self.manifold} containing:\n{values!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> ManifoldParameter:
        # Unlike geoopt's, without a check: weights that have drifted can be copied too.
        if id(self) not in memo:
            data = self.detach().clone(memory_format=torch.preserve_format)
            memo[id(self)] = _unchecked(data, self.manifold, self.requires_grad)
        copied: ManifoldParameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, proto: Any) -> Any:
        return _unchecked, (self.detach(), self.manifold, self.requires_grad)


def _unchecked(data: Tensor, manifold: Manifold, requires_grad: bool) -> ManifoldParameter:
    """Make a ManifoldParameter of data that needs no check: a copy, or one read from disk."""
    registry.install_hook()
    made = torch.Tensor._make_subclass(ManifoldParameter, data.detach(), requires_grad)
    made.manifold = manifold
    return made
