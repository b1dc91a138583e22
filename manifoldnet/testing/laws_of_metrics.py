"""Tangent spaces: their projection, the metric on them, and the gradient that it defines."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from manifoldnet.testing.law import Laws, law, steps
from manifoldnet.testing.strategies import seeds, sizes

__all__ = ["MetricLaws"]

# Bounds are for sums of some tens of products and a handful of operations on each: tens of
# roundings, not hundreds.
_MANY = 50

# A matrix of that order is projected and decomposed in a second.
_COUNTED = 512

_any = sizes(1e-8, 1e8)


class MetricLaws(Laws):
    """The tangent projection, the inner product and the Riemannian gradient."""

    @law(seed=seeds(), size=_any)
    def test_tangent_projection_is_idempotent(self, seed: int, size: float) -> None:
        """`proju(x, proju(x, z)) = proju(x, z)` for any tensor z."""
        x, z = self.point(seed), self.ambient(seed + 1, size)
        u = self.manifold.proju(x, z)
        # Relative to what was projected: little of it may be left (on a circle, almost nothing).
        off = (self.manifold.proju(x, u) - u).abs().max() / size
        self.at_most(off, self.roundings(_MANY), "proju(x, proju(x, z)) − proju(x, z), against z,")

    @law(seed=seeds(), size=_any)
    def test_tangent_projection_is_orthogonal(self, seed: int, size: float) -> None:
        """`⟨z − proju(x, z), v⟩ₓ = 0` for every tangent v."""
        m, x, z = self.manifold, self.point(seed), self.ambient(seed + 1, size)
        v = self.tangent(x, seed + 2)
        # ⟨z, z⟩ means something for tangent vectors only, and may be negative for others.
        bound = (m.inner(x, z).abs().sqrt() + m.norm(x, m.proju(x, z))) * m.norm(x, v)
        off = m.inner(x, z - m.proju(x, z), v).abs() / bound
        self.at_most(off, self.roundings(_MANY), "⟨z − proju(x, z), v⟩, against ‖z‖‖v‖,")

    @law(seed=seeds(), size=steps)
    def test_tangent_projection_keeps_tangent_vectors(self, seed: int, size: float) -> None:
        """`proju(x, u) = u` for a tangent u, and `check_vector_on_tangent` accepts it."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        off = self.length(x, self.manifold.proju(x, u) - u) / size
        self.at_most(off, self.roundings(_MANY), "proju(x, u) − u, relative,")
        accepted = self.manifold.check_vector_on_tangent(x, u)
        self.holds(accepted, "check_vector_on_tangent refuses a tangent vector")

    @law(seed=seeds(), size=_any)
    def test_what_is_not_tangent_is_seen(self, seed: int, size: float) -> None:
        """`‖z − proju(x, z)‖/‖z‖ ≤ tangent_violation(x, z) ≤ 1` for any tensor z."""
        m, x, z = self.manifold, self.point(seed), self.ambient(seed + 1, size)
        normal = z - m.proju(x, z)
        rounding = self.roundings(_MANY)
        for what, w in (("z", z), ("z − proju(x, z)", normal)):
            share = float((w - m.proju(x, w)).norm() / w.norm()) if bool(w.any()) else 0.0
            seen = float(m.tangent_violation(x, w).max())
            if share <= rounding:  # every vector is tangent, or this one to rounding
                continue
            # Of projections that are not along Euclidean normals the share may be more than 1.
            unseen = min(share, 1.0) - seen
            self.at_most(unseen, rounding, f"what tangent_violation does not see of {what}")
            self.at_most(seen - 1, rounding, f"tangent_violation(x, {what}) − 1")
            if share > 0.5:
                accepted = m.check_vector_on_tangent(x, w)
                self.holds(not accepted, f"check_vector_on_tangent accepts {what}")

    @law()
    def test_dimension_is_that_of_tangent_spaces(self) -> None:
        """`dimension` is the rank of the tangent projection (of up to 512 numbers)."""
        x = self.point(0)
        if x.numel() > _COUNTED:
            return
        basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
        projected = torch.stack([self.manifold.proju(x, e).flatten() for e in basis])
        # Singular values of what is idempotent are 0, or 1 and more.
        rank = int((torch.linalg.svdvals(projected.double()) > 0.5).sum())
        said = self.manifold.dimension(tuple(self.shape))
        self.holds(said == rank, f"dimension is {said}, where tangent vectors span {rank}")

    @law(seed=seeds(), size=_any)
    def test_metric_is_symmetric(self, seed: int, size: float) -> None:
        """`⟨u, v⟩ₓ = ⟨v, u⟩ₓ`, slice by slice."""
        x = self.point(seed)
        u, v = self.tangent(x, seed + 1, size), self.tangent(x, seed + 2)
        component = self.manifold.component_inner
        bound = self.manifold.norm(x, u) * self.manifold.norm(x, v)
        off = (component(x, u, v) - component(x, v, u)).abs().max() / bound
        self.at_most(off, self.roundings(8), "⟨u, v⟩ − ⟨v, u⟩, against ‖u‖‖v‖,")

    @law(seed=seeds(), size=_any, factor=st.floats(-1e3, 1e3))
    def test_metric_is_bilinear(self, seed: int, size: float, factor: float) -> None:
        """`⟨c u + v, w⟩ₓ = c ⟨u, w⟩ₓ + ⟨v, w⟩ₓ`, slice by slice."""
        m, x = self.manifold, self.point(seed)
        u, v, w = (self.tangent(x, seed + i, size) for i in (1, 2, 3))
        left = m.component_inner(x, factor * u + v, w)
        right = factor * m.component_inner(x, u, w) + m.component_inner(x, v, w)
        bound = (abs(factor) + 1) * (m.norm(x, u) + m.norm(x, v)) * m.norm(x, w)
        off = (left - right).abs().max() / bound
        self.at_most(off, self.roundings(_MANY), "⟨cu + v, w⟩ − c⟨u, w⟩ − ⟨v, w⟩, relative,")

    @law(seed=seeds(), size=_any)
    def test_metric_is_positive_definite(self, seed: int, size: float) -> None:
        """`⟨u, u⟩ₓ > 0` in every slice of a tangent u ≠ 0, and `⟨0, 0⟩ₓ = 0`."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1, size)
        parts = self.manifold.component_inner(x, u)
        self.holds(bool((parts > 0).all()), f"⟨u, u⟩ is {float(parts.min()):.3g} in one slice")
        zero = self.manifold.inner(x, torch.zeros_like(x))
        self.holds(float(zero) == 0.0, f"⟨0, 0⟩ is {float(zero):.3g}")

    @law(seed=seeds(), size=steps)
    def test_inner_is_the_sum_of_its_components(self, seed: int, size: float) -> None:
        """`⟨u, v⟩ₓ = Σᵢ ⟨u, v⟩ₓ,ᵢ`, `‖u‖ₓ² = ⟨u, u⟩ₓ`, and `keepdim` keeps the dimensions."""
        m, x = self.manifold, self.point(seed)
        u, v = (self.tangent(x, seed + i, size) for i in (1, 2))
        parts, whole = m.component_inner(x, u, v), m.inner(x, u, v)
        fits = parts.ndim == x.ndim and torch.broadcast_shapes(parts.shape, x.shape) == x.shape
        shape = tuple(parts.shape)
        self.holds(fits, f"component_inner has the shape {shape}, no broadcast of {tuple(x.shape)}")
        self.holds(whole.shape == (), f"inner is not one number: its shape is {tuple(whole.shape)}")
        bound = float(m.norm(x, u) * m.norm(x, v))
        off = abs(float(whole) - math.fsum(parts.flatten().tolist())) / bound
        self.at_most(off, self.roundings(_MANY), "inner − Σ component_inner, against ‖u‖‖v‖,")
        alone = (m.component_inner(x, u) - m.component_inner(x, u, u)).abs().max()
        self.at_most(alone, 0.0, "component_inner(x, u) − component_inner(x, u, u)")
        squared = (m.norm(x, u) ** 2 / m.inner(x, u) - 1).abs()
        self.at_most(squared, self.roundings(8), "‖u‖² − ⟨u, u⟩, relative,")
        for name, kept in {
            "inner": m.inner(x, u, v, keepdim=True),
            "norm": m.norm(x, u, keepdim=True),
            "dist": m.dist(x, x, keepdim=True),
            "dist2": m.dist2(x, x, keepdim=True),
        }.items():
            shape = tuple(kept.shape)
            self.holds(shape == (1,) * x.ndim, f"{name} with keepdim has the shape {shape}")

    @law(seed=seeds())
    def test_gradient_represents_the_differential(self, seed: int) -> None:
        """`⟨egrad2rgrad(x, g), v⟩ₓ = g · v` for every tangent v."""
        m, x, g = self.manifold, self.point(seed), self.ambient(seed + 2)
        v = self.tangent(x, seed + 1)
        gradient = m.egrad2rgrad(x, g)
        bound = (g * v).abs().sum() + m.norm(x, gradient) * m.norm(x, v)
        off = (m.inner(x, gradient, v) - (g * v).sum()).abs() / bound
        self.at_most(off, self.roundings(_MANY), "⟨egrad2rgrad(x, g), v⟩ − g·v, relative,")

    @law(seed=seeds())
    def test_gradient_is_tangent(self, seed: int) -> None:
        """`proju(x, egrad2rgrad(x, g)) = egrad2rgrad(x, g)`."""
        m, x, g = self.manifold, self.point(seed), self.ambient(seed + 1)
        gradient = m.egrad2rgrad(x, g)
        # Relative to what was projected, as above.
        whole = m.norm(x, m.sharp(x, g))
        off = m.norm(x, m.proju(x, gradient) - gradient) / whole
        self.at_most(off, self.roundings(_MANY), "proju(x, gradient) − gradient, relative,")
