"""Motion of one weight by the formulas: gradient, transport and retraction, slice by slice.

What the specification of every optimizer shares, whatever its direction is:

    d = motion.gradient(grad)       the Riemannian gradient
    b = motion.tangent(b)           a buffer at the weight as it is now
    b = motion.move(u, b)           the step: x ← R_x(u), and b carried along

A weight may have been changed by hand since the last step: a buffer is made tangent at the weight
that is there, and a zero slice, which has no direction, stays zero with its buffer. A slice whose
step is zero keeps its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifoldnet.geometry import Manifold, Slices
from manifoldnet.geometry.settled import copy_into, is_sharded
from manifoldnet.geometry.slices import promote
from manifoldnet.optim.step import SliceGeometry

__all__ = ["Motion"]


class Motion:
    """The geometric operations of a step of one weight, in the type of the arithmetic.

    Args:
        x: the weight, detached; it is changed in place by `move`.
        manifold: where it lives.
        geometry: of its slices; None for manifolds whose zero slices are their own matter.
    """

    def __init__(self, x: Tensor, manifold: Manifold, geometry: SliceGeometry | None) -> None:
        (self.point,) = promote(x)
        self.manifold = manifold
        self._x = x
        # Manifolds made of others have no slices of their own: a whole step is zero or not.
        self._slices: Slices = getattr(manifold, "slices", Slices(None))
        self._sphere = geometry is not None and geometry.radius is not None
        #: Whether a slice is known to be zero: only a processor is asked.
        self.any_zero = False
        self._zero: Tensor | None = None
        if geometry is not None:
            # As in the metric: what is too small to be squared counts as zero.
            zero = manifold.slices.inner(self.point, self.point) == 0
            # What one process sees of a weight that many have parts of is no answer.
            asked = x.device.type == "cpu" and not is_sharded(x)
            asked = asked and not torch.compiler.is_compiling()
            self.any_zero = asked and bool(zero.any())
            if self.any_zero or not asked:
                self._zero = zero

    def gradient(self, grad: Tensor) -> Tensor:
        """The Riemannian gradient; at a zero slice, without projection."""
        (grad,) = promote(grad)
        d = self.manifold.egrad2rgrad(self.point, grad)
        if self._zero is None:
            return d
        return torch.where(self._zero, self.manifold.sharp(self.point, grad), d)

    def squared(self, d: Tensor) -> Tensor:
        """⟨d, d⟩ₓ of each slice."""
        found = self.manifold.component_inner(self.point, d)
        if self._zero is None or self._sphere:
            return found
        return torch.where(self._zero, 0.0, found)

    def tangent(self, b: Tensor) -> Tensor:
        """The nearest tangent vector to a buffer; zero at zero slices."""
        b = self.manifold.proju(self.point, b)
        return b if self._zero is None else torch.where(self._zero, 0.0, b)

    def move(self, u: Tensor, b: Tensor | None = None) -> Tensor | None:
        """Retract the weight along the tangent vector `u`, and transport the buffer `b`."""
        longest = self._slices.largest(u)
        size: Tensor | float = 1.0
        if self._sphere:
            # Squares of larger numbers may overflow. The place on a circle is lost to rounding long
            # before; a vector is carried in proportion.
            limit = torch.finfo(u.dtype).max ** 0.25
            u = torch.where(longest > limit, u * (limit / longest), u)
            if b is not None:
                size = self._slices.largest(b)
                size = torch.where(size > limit, size, 1.0)
        if b is None:
            end = self.manifold.retr(self.point, u)
        else:
            end, b = self.manifold.retr_transp(self.point, u, b / size)
            b = b * size
        still = longest == 0
        if self._zero is not None:
            still = still | self._zero
            b = None if b is None else torch.where(self._zero, 0.0, b)
        copy_into(self._x, torch.where(still, self.point, end))
        return b

    def shift(self, v: Tensor) -> None:
        """Move the weight by a vector that need not be tangent, and project: `nearest(x + v)`."""
        still = self._slices.largest(v) == 0
        if self._zero is not None:
            still = still | self._zero
        end = self.manifold.nearest(self.point + v)
        copy_into(self._x, torch.where(still, self.point, end))
