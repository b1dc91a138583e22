"""A manifold of this library as a module of geoopt, for what keeps its manifolds as modules.

    torus = geoopt.ProductManifold((to_geoopt(Oblique(), (5, 4)), (5, 4)), (geoopt.Sphere(), 3))

Most code written for geoopt takes `Oblique()` as it is: its optimizers, its `ManifoldParameter`,
`geoopt.Scaled`. `geoopt.ProductManifold` registers its factors as submodules, which a plain value
is not. The view also knows the shape of one point, so that more dimensions are a batch, as
everywhere in geoopt.
"""

from __future__ import annotations

from typing import Any

import geoopt
import torch
from torch import Tensor

from manifoldnet.geometry.manifold import Manifold

__all__ = ["GeooptView", "to_geoopt"]


def to_geoopt(manifold: Manifold, shape: int | tuple[int, ...]) -> GeooptView:
    """A manifold of this library as one of geoopt's.

    Args:
        manifold: any.
        shape: of one of its points.

    Raises:
        ValueError: if no tensor of that shape is a point.
    """
    return GeooptView(manifold, (shape,) if isinstance(shape, int) else tuple(shape))


# geoopt carries no types, so its classes are Any to the type checker.
class GeooptView(geoopt.manifolds.base.Manifold):  # type: ignore[misc]
    """The view; made by `to_geoopt`. Methods are geoopt's, formulas `manifold`'s own.

    Tensors are points, or batches of them along leading dimensions, which are broadcast. A result
    has one number for each point where `manifold` has one for the parameter.
    """

    def __init__(self, manifold: Manifold, shape: tuple[int, ...]) -> None:
        super().__init__()
        manifold.assert_check_point(torch.empty(shape, dtype=torch.double, device="meta"))
        self.manifold, self.shape = manifold, shape
        self.name, self.ndim, self.reversible = manifold.name, len(shape), manifold.reversible

    def extra_repr(self) -> str:
        """The manifold's fields."""
        return self.manifold.extra_repr()

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if tuple(shape[len(shape) - self.ndim :]) == self.shape:
            return True, None
        return False, f"{name} has shape {tuple(shape)}, which does not end with {self.shape}"

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        for point in self._points(x):
            ok, reason = self.manifold._check_point_on_manifold(point, atol=atol, rtol=rtol)
            if not ok:
                return ok, reason
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        x, u = torch.broadcast_tensors(x, u)
        for point, vector in zip(self._points(x), self._points(u), strict=True):
            ok, reason = self.manifold._check_vector_on_tangent(point, vector, atol=atol, rtol=rtol)
            if not ok:
                return ok, reason
        return True, None

    def _points(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)

    def each(self, name: str, *tensors: Tensor, **options: Any) -> Any:
        """The value of one of the manifold's methods for each point of a batch."""
        tensors = torch.broadcast_tensors(*tensors)
        method = getattr(self.manifold, name)

        def call(*points: Tensor) -> Any:
            return method(*points, **options)

        for _ in range(tensors[0].ndim - self.ndim):
            call = torch.func.vmap(call)
        return call(*tensors)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ₓ of each point."""
        return self.each("inner", x, u, u if v is None else v, keepdim=keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """√⟨u, u⟩ₓ of each point."""
        return self.each("norm", x, u, keepdim=keepdim)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """⟨u, v⟩ₓ of each slice, in a shape that broadcasts against `x`."""
        return self.each("component_inner", x, u, u if v is None else v)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The distance of each two points."""
        return self.each("dist", x, y, keepdim=keepdim)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The squared distance of each two points."""
        return self.each("dist2", x, y, keepdim=keepdim)

    def projx(self, x: Tensor) -> Tensor:
        """The nearest points."""
        return self.each("projx", x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The nearest tangent vectors."""
        return self.each("proju", x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradients."""
        return self.each("egrad2rgrad", x, u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The ends of steps by the manifold's retraction."""
        return self.each("retr", x, u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The ends of geodesics."""
        return self.each("expmap", x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest velocities from `x` to `y`."""
        return self.each("logmap", x, y)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the shortest geodesics."""
        return self.each("transp", x, y, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of steps, and vectors carried along."""
        y, carried = self.each("retr_transp", x, u, v)
        return y, carried

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of geodesics, and vectors transported in parallel along them."""
        y, carried = self.each("expmap_transp", x, u, v)
        return y, carried

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Vectors carried along steps."""
        return self.retr_transp(x, u, v)[1]

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Vectors transported in parallel along geodesics."""
        return self.expmap_transp(x, u, v)[1]

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Tensor:
        """Random points."""
        shape = tuple(torch.Size(size[0] if size and not isinstance(size[0], int) else size))  # type: ignore[arg-type]
        self._assert_check_shape(shape, "the size")
        count = torch.Size(shape[: len(shape) - self.ndim]).numel()
        draw = self.manifold.random
        points = [draw(self.shape, dtype=dtype, device=device, **options) for _ in range(count)]
        return torch.stack(points).reshape(shape)
