"""A manifold of this library as one of pymanopt's: its methods and arrays, our formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymanopt
import torch
from torch import Tensor

from manifoldnet.geometry import Manifold, from_geoopt
from manifoldnet.geometry.validation import raise_if

__all__ = ["Array", "PymanoptManifold", "to_array", "to_pymanopt", "to_tensor"]

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
"""A point or vector as pymanopt has it."""


def to_pymanopt(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> PymanoptManifold:
    """A manifold of this library (or of geoopt, adapted) for pymanopt's solvers.

    Args:
        manifold: any; its retraction is the solver's (that of geoopt's canonical Stiefel manifold,
            whose steps are too long, is exchanged for the projection).
        shape: of its points, which are numpy arrays.
        dtype: of random points.

    Raises:
        ValueError: if no tensor of that shape is a point.
    """
    manifold = from_geoopt(manifold).with_true_steps()
    raise_if(manifold.validate(torch.empty(shape, dtype=dtype, device="meta")))
    return PymanoptManifold(manifold, tuple(shape), dtype)


# pymanopt carries no types, so its classes are Any to the type checker.
class PymanoptManifold(pymanopt.manifolds.manifold.Manifold):  # type: ignore[misc]
    """The adapter; made by `to_pymanopt`. Methods are pymanopt's, formulas `manifold`'s own."""

    def __init__(self, manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(f"{manifold} of shape {shape}", manifold.dimension(shape))
        self.manifold, self.shape, self.dtype = manifold, shape, dtype

    @property
    def typical_dist(self) -> float:
        """The radius of the region in which a solver may trust its model at most."""
        return self.manifold.typical_dist(self.shape)

    def inner_product(
        self, point: Array, tangent_vector_a: Array, tangent_vector_b: Array
    ) -> float:
        """⟨u, v⟩ₓ."""
        return float(self._call("inner", point, tangent_vector_a, tangent_vector_b))

    def norm(self, point: Array, tangent_vector: Array) -> float:
        """√⟨u, u⟩ₓ."""
        return float(self._call("norm", point, tangent_vector))

    def dist(self, point_a: Array, point_b: Array) -> float:
        """The length of the shortest geodesic."""
        return float(self._call("dist", point_a, point_b))

    def projection(self, point: Array, vector: Array) -> Array:
        """The nearest tangent vector."""
        return self._array("proju", point, vector)

    def to_tangent_space(self, point: Array, vector: Array) -> Array:
        """The nearest tangent vector."""
        return self._array("proju", point, vector)

    def euclidean_to_riemannian_gradient(self, point: Array, euclidean_gradient: Array) -> Array:
        """The gradient of the metric."""
        return self._array("egrad2rgrad", point, euclidean_gradient)

    def euclidean_to_riemannian_hessian(
        self,
        point: Array,
        euclidean_gradient: Array,
        euclidean_hessian: Array,
        tangent_vector: Array,
    ) -> Array:
        """The covariant derivative of the gradient along a tangent vector."""
        given = point, euclidean_gradient, euclidean_hessian, tangent_vector
        return self._array("ehess2rhess", *given)

    def retraction(self, point: Array, tangent_vector: Array) -> Array:
        """The manifold's own retraction."""
        return self._array("retr", point, tangent_vector)

    def exp(self, point: Array, tangent_vector: Array) -> Array:
        """The exponential map."""
        return self._array("expmap", point, tangent_vector)

    def log(self, point_a: Array, point_b: Array) -> Array:
        """The logarithm."""
        return self._array("logmap", point_a, point_b)

    def transport(self, point_a: Array, point_b: Array, tangent_vector_a: Array) -> Array:
        """Parallel transport along the shortest geodesic; where there is none, a projection."""
        try:
            return self._array("transp", point_a, point_b, tangent_vector_a)
        except NotImplementedError:  # some of geoopt's manifolds
            return self._array("proju", point_b, tangent_vector_a)

    def pair_mean(self, point_a: Array, point_b: Array) -> Array:
        """The middle of the shortest geodesic."""
        return self.exp(point_a, 0.5 * self.log(point_a, point_b))

    def random_point(self) -> Array:
        """A random point, from torch's default generator."""
        return to_array(self.manifold.random(self.shape, dtype=self.dtype))

    def random_tangent_vector(self, point: Array) -> Array:
        """A random tangent vector of length 1."""
        u = to_array(self.manifold.random_tangent(to_tensor(point)))
        return u / self.norm(point, u)

    def zero_vector(self, point: Array) -> Array:
        """0."""
        return np.zeros_like(point)

    def _call(self, name: str, *arrays: Array) -> Tensor:
        with torch.no_grad():
            result: Tensor = getattr(self.manifold, name)(*map(to_tensor, arrays))
        return result

    def _array(self, name: str, *arrays: Array) -> Array:
        return to_array(self._call(name, *arrays))


def to_tensor(array: Array) -> Tensor:
    """The same numbers for torch; a copy only where they are not in a row."""
    return torch.from_numpy(np.asarray(array, order="C"))


def to_array(tensor: Tensor) -> Array:
    """The same numbers for numpy."""
    return tensor.detach().numpy()
