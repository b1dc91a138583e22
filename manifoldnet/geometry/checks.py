"""Checks of points and tangent vectors: measured violations as answers, explanations and errors.

    explain_shape, explain, explain_vector      what is wrong, in words, or None
    check_…                                     the same as True or False
    assert_check_…                              the same as a ValueError

Words name the slice, the factor of a product, the entry of a batch, and the place that
`torch.func.vmap` is at work on. Arguments are geoopt's beside our own: `tol`, or `atol` and `rtol`,
which add up, as what is measured is relative already; with `explain` an answer is a pair of it and
the reason.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from manifoldnet.geometry import slices
from manifoldnet.geometry.projection import Projection
from manifoldnet.geometry.slices import Dim

__all__ = ["Checks", "tolerance"]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def tolerance(dtype: torch.dtype) -> float:
    """The relative violation up to which a point of this type counts as on its manifold."""
    return _TOLERANCE[dtype]


class Checks(ABC):
    """The checks of a manifold, made of its violations."""

    projection: Projection

    #: The dimension that indexes the slices (see `manifoldnet.geometry.slices`).
    dim: Dim
    #: The least number of entries a slice must have; a sphere in one dimension is two points.
    min_slice: ClassVar[int] = 1

    @abstractmethod
    def violation(self, x: Tensor) -> Tensor:
        """The distance of each slice of `x` from the manifold, relative to its size."""

    @abstractmethod
    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""

    @overload
    def check_point(self, x: Tensor, *, explain: Literal[False] = False) -> bool: ...
    @overload
    def check_point(self, x: Tensor, *, explain: Literal[True]) -> tuple[bool, str | None]: ...
    def check_point(self, x: Tensor, *, explain: bool = False) -> bool | tuple[bool, str | None]:
        """Check that a tensor of this shape and type can be a point."""
        return _answer(self.explain_shape(x), explain)

    @overload
    def check_vector(self, u: Tensor, *, explain: Literal[False] = False) -> bool: ...
    @overload
    def check_vector(self, u: Tensor, *, explain: Literal[True]) -> tuple[bool, str | None]: ...
    def check_vector(self, u: Tensor, *, explain: bool = False) -> bool | tuple[bool, str | None]:
        """Check that a tensor of this shape and type can be a tangent vector."""
        return _answer(self.explain_shape(u), explain)

    @overload
    def check_point_on_manifold(
        self,
        x: Tensor,
        *,
        explain: Literal[False] = False,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> bool: ...
    @overload
    def check_point_on_manifold(
        self,
        x: Tensor,
        *,
        explain: Literal[True],
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> tuple[bool, str | None]: ...
    def check_point_on_manifold(
        self,
        x: Tensor,
        *,
        explain: bool = False,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> bool | tuple[bool, str | None]:
        """Check that `x` is a point of the manifold; the tolerance is by its type if not given."""
        limit = _limit(tol, atol, rtol)
        trouble = self.explain_shape(x) or self.explain(x, tol=limit)
        return _answer(trouble, explain)

    @overload
    def check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        explain: Literal[False] = False,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> bool: ...
    @overload
    def check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        explain: Literal[True],
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> tuple[bool, str | None]: ...
    def check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        explain: bool = False,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> bool | tuple[bool, str | None]:
        """Check that `u` is tangent at the point `x`; the tolerance is by its type if not given.

        Args:
            x: point; unless `ok_point`, it is checked as well.
            u: the vector.
            ok_point: whether `x` is known to be a point.
            explain: whether to give the reason, too.
            tol: the share of `u` that may be not tangent.
            atol: added to `rtol`, in place of `tol`.
            rtol: added to `atol`, in place of `tol`.
        """
        limit = _limit(tol, atol, rtol)
        trouble = self.explain_shape(x) or (None if ok_point else self.explain(x, tol=limit))
        return _answer(trouble or self.explain_vector(x, u, tol=limit), explain)

    def assert_check_point(self, x: Tensor, *, name: str = "the data") -> None:
        """Raise ValueError if a tensor of this shape or type cannot be a point."""
        trouble = self.explain_shape(x)
        if trouble:
            raise ValueError(f"{name} cannot be a point of {self}: it {trouble}")

    def assert_check_vector(self, u: Tensor, *, name: str = "the vector") -> None:
        """Raise ValueError if a tensor of this shape or type cannot be a tangent vector."""
        trouble = self.explain_shape(u)
        if trouble:
            raise ValueError(f"{name} cannot be a tangent vector of {self}: it {trouble}")

    def assert_check_point_on_manifold(
        self,
        x: Tensor,
        *,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        name: str = "the data",
    ) -> None:
        """Raise ValueError if `x` is not a point of the manifold: which slices, by how much."""
        limit = _limit(tol, atol, rtol)
        self.assert_check_point(x, name=name)
        trouble = self.explain(x, tol=limit, name=name)
        if trouble:
            raise ValueError(trouble)

    def assert_check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        tol: float | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        name: str = "the vector",
    ) -> None:
        """Raise ValueError if `u` is not tangent at the point `x`: which slices, by how much.

        Arguments are those of `check_vector_on_tangent`.
        """
        limit = _limit(tol, atol, rtol)
        self.assert_check_point(x, name="x")
        trouble = None if ok_point else self.explain(x, tol=limit, name="x")
        trouble = trouble or self.explain_vector(x, u, tol=limit, name=name)
        if trouble:
            raise ValueError(trouble)

    def explain(
        self,
        x: Tensor,
        *,
        tol: float | None = None,
        name: str = "the data",
        near: Tensor | None = None,
    ) -> str | None:
        """Explanation of what is wrong with the values of a point; None if nothing is.

        Args:
            x: a tensor of a valid shape.
            tol: the relative violation to accept; by type if left out.
            name: what to call the tensor.
            near: where to look up the offending values, if not in `x`.
        """
        near = x if near is None else near
        limit = tolerance(x.dtype) if tol is None else tol
        off = self.violation(x).detach()
        if not _exceeds(off, limit):
            return None
        batch = _batch(x, near)
        if batch:
            return _first(
                self.explain(point, tol=tol, name=f"point {place} of {name}", near=at)
                for place, point, at in batch
            )
        parts = self._parts(x, near)
        if parts:
            return _first(
                manifold.explain(part, tol=tol, name=f"factor {i} of {name}", near=at)
                for i, (manifold, part, at) in enumerate(parts)
            )
        off = off.flatten()
        dead = off.isinf() | off.isnan()
        worst = int(torch.where(dead, torch.inf, off).argmax())
        where, entries = self._slice(near.detach(), worst)
        (entries,) = slices.promote(entries)
        if bool(dead[worst]):
            size = float(entries.abs().max())
            if size == 0:
                what = "zero"
            elif math.isfinite(size):
                what = f"too small or too large to be squared (largest entry {size:.3g})"
            else:
                what = f"not finite (largest entry {size})"
            return (
                f"{name}: {int(dead.sum())} of {off.numel()} slices cannot be on {self}, "
                f"the first of them {where}, which is {what}. "
                "Give each slice finite values of ordinary size that are not all zero"
            )
        return (
            f"{name} is not on {self}: {int((off > limit).sum())} of {off.numel()} slices are off, "
            f"the worst is {where} with norm {float(entries.norm()):.6g}, off by "
            f"{float(off[worst]):.2g} relative. Put it on the manifold with manifold.projx(data), "
            "or with project=True where that is offered"
        )

    def explain_vector(
        self, x: Tensor, u: Tensor, *, tol: float | None = None, name: str = "the vector"
    ) -> str | None:
        """Explanation of why `u` is not tangent at `x`; None if it is.

        Args:
            x: a point.
            u: any tensor.
            tol: the share of `u` that may be not tangent; by the type of `x` if left out.
            name: what to call the vector.
        """
        if x.shape != u.shape:
            return f"{name} has shape {tuple(u.shape)}, and the point {tuple(x.shape)}"
        limit = tolerance(x.dtype) if tol is None else tol
        off = self.tangent_violation(x, u).detach()
        if not _exceeds(off, limit):
            return None
        batch = _batch(x, u)
        if batch:
            return _first(
                self.explain_vector(point, vector, tol=tol, name=f"point {place} of {name}")
                for place, point, vector in batch
            )
        parts = self._parts(x, u)
        if parts:
            return _first(
                manifold.explain_vector(*part, tol=tol, name=f"factor {i} of {name}")
                for i, (manifold, *part) in enumerate(parts)
            )
        off = off.flatten().nan_to_num(nan=math.inf, posinf=math.inf)
        worst = int(off.argmax())
        return (
            f"{name} is not tangent to {self}: {int((off > limit).sum())} of {off.numel()} slices "
            f"are off, the worst is {self._slice(u.detach(), worst)[0]}, of which "
            f"{float(off[worst]):.2g} is not tangent. Make it tangent with manifold.proju(x, u)"
        )

    def _slice(self, x: Tensor, number: int) -> tuple[str, Tensor]:
        """Label and entries of a slice, by its place in `violation`."""
        if self.dim == "elements":
            entries = x.flatten()[number]
        else:
            entries = x if self.dim is None else x.select(self.dim, number)
        return slices.label(number, x.ndim, self.dim), entries

    def _parts(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        """(manifold, its part of each tensor) of every factor; nothing if there are none."""
        return []

    def explain_shape(self, x: Tensor) -> str | None:
        """Explanation of why a tensor of this shape and type cannot be a point; None if it can."""
        if x.dtype not in _TOLERANCE:
            return f"has type {x.dtype}: a point is float64, float32, bfloat16 or float16"
        trouble = self.projection.explain_type(x.dtype)
        if trouble:
            return f"has type {x.dtype}, {trouble}"
        if isinstance(self.dim, int) and self.dim >= x.ndim:
            return (
                f"has order {x.ndim} (shape {tuple(x.shape)}), so there is no dimension "
                f"{self.dim} to index its slices by"
            )
        if x.numel() == 0:
            return f"is empty (shape {tuple(x.shape)})"
        if slices.size(x.shape, self.dim) < self.min_slice:
            return (
                f"has slices of {slices.size(x.shape, self.dim)} number (shape {tuple(x.shape)}): "
                f"a unit vector needs at least {self.min_slice} to have somewhere to go"
            )
        return None


def _answer(trouble: str | None, explain: bool) -> bool | tuple[bool, str | None]:
    return (trouble is None, trouble) if explain else trouble is None


def _limit(tol: float | None, atol: float | None, rtol: float | None) -> float | None:
    """The relative violation to accept; None: by type."""
    if atol is None and rtol is None:
        return tol
    if tol is not None:
        raise ValueError("give a tolerance as tol, or as atol and rtol, not both")
    return (atol or 0.0) + (rtol or 0.0)


def _exceeds(off: Tensor, limit: float) -> bool:
    """Test whether any violation is above the limit, NaN or ∞; also under `torch.func.vmap`."""
    while functorch.is_functorch_wrapped_tensor(off):
        off = functorch.get_unwrapped(off)
    return not bool(((off <= limit) & off.isfinite()).all())


def _batch(*tensors: Tensor) -> list[tuple[Any, ...]]:
    """Pairs that `torch.func.vmap` is at work on, after their places; nothing outside of it."""
    opened = []
    places: torch.Size = torch.Size()
    for x in tensors:
        dims = []  # that are mapped over, from the innermost call outwards
        while functorch.is_functorch_wrapped_tensor(x):
            if functorch.is_batchedtensor(x):
                dims.append(functorch.maybe_get_bdim(x))
            x = functorch.get_unwrapped(x)
        for number, dim in enumerate(reversed(dims)):
            x = x.movedim(number + dim, number)
        places = x.shape[: len(dims)] if dims else places
        opened.append((x, bool(dims)))
    every = itertools.product(*map(range, places)) if places else ()
    return [
        (", ".join(map(str, place)), *(x[place] if mapped else x for x, mapped in opened))
        for place in every
    ]


def _first(troubles: Iterable[str | None], most: int = 3) -> str | None:
    """The first few of several explanations, a line each; None if there is none."""
    found = [trouble for trouble in troubles if trouble]
    if len(found) > most:
        found[most:] = [f"(and {len(found) - most} more)"]
    return "\n".join(found) or None
