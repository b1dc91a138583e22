"""A manifold of this library as a module of geoopt: the result of `to_geoopt`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry._geoopt import geoopt
from manifoldnet.geometry.manifold import Manifold
from manifoldnet.geometry.validation import raise_if

__all__ = ["GeooptView"]


def _each(name: str) -> Callable[..., Any]:
    """A method whose result is that of the manifold's for each point of a batch."""

    @wraps(getattr(Manifold, name))
    def method(self: GeooptView, *tensors: Tensor | None, **options: Any) -> Any:
        vectors = (*tensors, options.pop("v", None))
        return self.each(name, *(v for v in vectors if v is not None), **options)

    return method


def _first(errors: Iterable[Exception | None]) -> tuple[bool, str | None]:
    """geoopt's answer for the points of a batch: True, or the first reason."""
    found = next((error for error in errors if error is not None), None)
    return found is None, None if found is None else str(found)


# geoopt carries no types, so its classes are Any to the type checker.
class GeooptView(geoopt.manifolds.base.Manifold):  # type: ignore[misc]
    """The view; made by `to_geoopt`. Methods are geoopt's, formulas `manifold`'s own.

    Tensors are points, or batches of them along leading dimensions, which are broadcast. A result
    has one number for each point where `manifold` has one for the parameter.
    """

    #: The module that stands for this class in specs.
    spec_module = "manifoldnet.geometry.to_geoopt"

    def __init__(self, manifold: Manifold, shape: tuple[int, ...]) -> None:
        super().__init__()
        raise_if(manifold.validate(torch.empty(shape, dtype=torch.double, device="meta")))
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
        return _first(self.manifold.validate(p, tol=atol + rtol) for p in self._points(x))

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        pairs = zip(*map(self._points, torch.broadcast_tensors(x, u)), strict=True)
        validate = partial(self.manifold.validate_tangent, tol=atol + rtol, ok_point=True)
        return _first(validate(point, vector) for point, vector in pairs)

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

    inner = _each("inner")
    norm = _each("norm")
    component_inner = _each("component_inner")
    dist = _each("dist")
    dist2 = _each("dist2")
    projx = _each("projx")
    proju = _each("proju")
    egrad2rgrad = _each("egrad2rgrad")
    retr = _each("retr")
    expmap = _each("expmap")
    logmap = _each("logmap")
    transp = _each("transp")
    retr_transp = _each("retr_transp")
    expmap_transp = _each("expmap_transp")

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Vectors transported along steps."""
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
        # Numbers or one tuple; the type checker cannot tell from the condition.
        shape = tuple(torch.Size(size[0] if size and not isinstance(size[0], int) else size))  # type: ignore[arg-type]
        self._assert_check_shape(shape, "the size")
        count = torch.Size(shape[: len(shape) - self.ndim]).numel()
        draw = self.manifold.random
        points = [draw(self.shape, dtype=dtype, device=device, **options) for _ in range(count)]
        return torch.stack(points).reshape(shape)
