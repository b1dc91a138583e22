"""Validation of points and tangent vectors: measured violations, described by exception objects.

    error = manifold.validate(x)               # an exception, not raised, or None
    error = manifold.validate_tangent(x, u)

The caller raises the exception, collects it, or reads its fields. Messages name the slice, the
factor of a product, the entry of a batch, and the place under `torch.func.vmap`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from manifoldnet.geometry.settled import settle

__all__ = [
    "NotOnManifoldError",
    "NotTangentError",
    "Validated",
    "WrongTensorError",
    "raise_if",
    "tolerance",
]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# Labels and amounts that an error keeps, and lines that a message of several parts has.
_MOST_SLICES, _MOST_LINES = 10, 3


def tolerance(dtype: torch.dtype) -> float:
    """The relative violation up to which a point of this type counts as on its manifold."""
    return _TOLERANCE[dtype]


class NotOnManifoldError(ValueError):
    """A tensor that is no point of its manifold.

    Attributes:
        manifold: the manifold.
        name: the name of the tensor in the message.
        slices: labels of the slices that are off ("row 3"), worst first, ten at the most.
        amounts: their relative violations; ∞ for slices that no projection can mend.
        tolerance: the violation that would have been accepted.
        count: the number of slices that are off.
        total: the number of slices.
    """

    def __init__(
        self,
        message: str,
        manifold: Any = None,
        name: str = "",
        *,
        slices: tuple[str, ...] = (),
        amounts: tuple[float, ...] = (),
        tolerance: float = math.nan,
        count: int = 0,
        total: int = 0,
    ) -> None:
        super().__init__(message)
        self.manifold, self.name = manifold, name
        self.slices, self.amounts, self.tolerance = slices, amounts, tolerance
        self.count, self.total = count, total

    @classmethod
    def joined(cls, manifold: Any, name: str, errors: Iterable[Self | None]) -> Self | None:
        """One error for the parts of a tensor, a line each for the first few; None for none."""
        found = [error for error in errors if error is not None]
        if not found:
            return None
        lines = [str(error) for error in found]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"(and {len(lines) - _MOST_LINES} more)"]
        every = [
            (amount, label if label.endswith(f" of {e.name}") else f"{label} of {e.name}")
            for e in found
            for label, amount in zip(e.slices, e.amounts, strict=True)
        ]
        worst = sorted(every, key=lambda pair: -pair[0])[:_MOST_SLICES]
        return cls(
            "\n".join(lines),
            manifold,
            name,
            slices=tuple(label for _, label in worst),
            amounts=tuple(amount for amount, _ in worst),
            tolerance=found[0].tolerance,
            count=sum(e.count for e in found),
            total=sum(e.total for e in found),
        )


class NotTangentError(NotOnManifoldError):
    """A vector that is not tangent at its point; `amounts` are the shares that are normal."""


class WrongTensorError(NotOnManifoldError):
    """A tensor whose order, shape or type of numbers no point or tangent vector has."""


class Validated(ABC):
    """The validation of a manifold's points and tangent vectors by their measured violations."""

    @abstractmethod
    def violation(self, x: Tensor) -> Tensor:
        """The distance of each slice of `x` from the manifold, relative to its size."""

    @abstractmethod
    def tangent_violation(self, x: Tensor, u: Tensor) -> Tensor:
        """The share of each slice of `u` that is not tangent at `x`, between 0 and 1."""

    @abstractmethod
    def _label(self, x: Tensor, index: int) -> str:
        """The name of a slice of `x`, by its place in `violation`."""

    @abstractmethod
    def _sizes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The largest |entry| and the norm of each slice of `x`, in the order of `violation`."""

    @abstractmethod
    def _misfit(self, x: Tensor) -> str | None:
        """The reason why no point has this shape and type, after "it …"; None if one has."""

    def _for_zero(self) -> str:
        """The ways out for a slice that is zero, at the end of a sentence."""
        return ""

    def _defect(self, size: float) -> tuple[str, str]:
        """The reason why a slice with this largest |entry| has no nearest point, and advice."""
        advice = "Give each slice finite values of ordinary size that are not all zero"
        if size == 0:
            return "is zero", advice
        if math.isfinite(size):
            return f"is too small or too large to be squared (largest entry {size:.3g})", advice
        return f"is not finite (largest entry {size})", advice

    def _factors(self, *tensors: Tensor) -> list[tuple[Any, ...]]:
        """(manifold, its part of each tensor) of every factor of a product; else nothing."""
        return []

    def validate(
        self, x: Tensor, *, tol: float | None = None, name: str = "the data"
    ) -> NotOnManifoldError | TypeError | None:
        """Validate a point; of a tensor without values (meta), its shape and type alone.

        Args:
            x: any tensor.
            tol: the relative violation to accept; by the type of `x` (`tolerance`) if left out.
            name: the name of the tensor in the message.

        Returns:
            None for a point; else an exception to raise: `NotOnManifoldError` with the slices and
            their amounts, `WrongTensorError` for a shape or type of numbers that no point has,
            TypeError for what is no tensor.
        """
        error = self._wrong_tensor(x, "point", name)
        return error if error is not None or x.is_meta else self._off(x, x, tol, name)

    def validate_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        tol: float | None = None,
        name: str = "the vector",
        ok_point: bool = False,
    ) -> NotOnManifoldError | TypeError | None:
        """Validate a tangent vector at `x`, and first the point; without values, the shapes alone.

        Args:
            x: the point.
            u: any tensor.
            tol: the share of `u` that may be not tangent; by the type of `x` if left out.
            name: the name of the vector in the message.
            ok_point: True if `x` is known to be a point.

        Returns:
            None for a tangent vector; else an exception as `validate` has them, or
            `NotTangentError`.
        """
        error = self._wrong_tensor(x, "point", "x")
        if error is not None:
            return error
        known = ok_point or x.is_meta
        off = None if known else self._off(x, x, tol, "x")
        return off or self._not_tangent(x, u, tol, name)

    def _wrong_tensor(self, x: Tensor, what: str, name: str) -> WrongTensorError | TypeError | None:
        if not isinstance(x, Tensor):
            return TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        if x.dtype in _TOLERANCE:
            reason = self._misfit(x)
        else:
            reason = f"has type {x.dtype}: a point is float64, float32, bfloat16 or float16"
        if reason is None:
            return None
        return WrongTensorError(f"{name} cannot be a {what} of {self}: it {reason}", self, name)

    def _off(
        self, x: Tensor, original: Tensor, tol: float | None, name: str
    ) -> NotOnManifoldError | None:
        """The error of a tensor of valid shape; offending entries are looked up in `original`."""
        limit = tolerance(x.dtype) if tol is None else tol
        off = self.violation(x).detach()
        if not _exceeds(off, limit):
            return None
        parts = self._apart(name, x, original)
        if parts:
            errors = (m._off(part, at, tol, label) for m, label, part, at in parts)
            return NotOnManifoldError.joined(self, name, errors)
        off = settle(off).flatten().nan_to_num(nan=math.inf, posinf=math.inf)
        no_nearest = off.isinf()
        bad = no_nearest if bool(no_nearest.any()) else ~(off <= limit)
        fields, worst = self._fields_of_error(original, off, bad)
        where, amount = fields["slices"][0], fields["amounts"][0]
        size, norm = (float(settle(t).flatten()[worst]) for t in self._sizes(original.detach()))
        if math.isinf(amount):
            if math.isnan(norm):  # the largest entry of several processes may be another one
                size = norm
            what, advice = self._defect(size)
            message = (
                f"{name}: {fields['count']} of {off.numel()} slices cannot be on {self}, "
                f"the first of them {where}, which {what}. {advice}"
                f"{self._for_zero() if size == 0 else ''}"
            )
        else:
            message = (
                f"{name} is not on {self}: {fields['count']} of {off.numel()} slices are off, "
                f"the worst is {where} with norm {norm:.6g}, off by "
                f"{amount:.2g} relative. Put it on the manifold with "
                "manifold.projx(data), or with project=True where that is offered"
            )
        return NotOnManifoldError(message, self, name, tolerance=limit, **fields)

    def _not_tangent(
        self, x: Tensor, u: Tensor, tol: float | None, name: str
    ) -> NotOnManifoldError | TypeError | None:
        if not isinstance(u, Tensor):
            return TypeError(f"{name} must be a tensor, not {type(u).__name__}")
        if x.shape != u.shape:
            message = f"{name} has shape {tuple(u.shape)}, and the point {tuple(x.shape)}"
            return WrongTensorError(message, self, name)
        if x.is_meta or u.is_meta:
            return None
        limit = tolerance(x.dtype) if tol is None else tol
        off = self.tangent_violation(x, u).detach()
        if not _exceeds(off, limit):
            return None
        parts = self._apart(name, x, u)
        if parts:
            errors = (m._not_tangent(part, v, tol, label) for m, label, part, v in parts)
            return NotTangentError.joined(self, name, errors)
        off = settle(off).flatten().nan_to_num(nan=math.inf, posinf=math.inf)
        fields, _ = self._fields_of_error(u, off, ~(off <= limit))
        return NotTangentError(
            f"{name} is not tangent to {self}: {fields['count']} of {off.numel()} slices "
            f"are off, the worst is {fields['slices'][0]}, of which "
            f"{fields['amounts'][0]:.2g} is not tangent. Make it tangent with manifold.proju(x, u)",
            self,
            name,
            tolerance=limit,
            **fields,
        )

    def _fields_of_error(self, x: Tensor, off: Tensor, bad: Tensor) -> tuple[dict[str, Any], int]:
        """The fields of an error about the slices marked as bad; the place of the worst."""
        count = int(bad.sum())
        amounts = torch.where(bad, off, -1.0)
        order = amounts.argsort(descending=True, stable=True)[: min(count, _MOST_SLICES)]
        fields = {
            "slices": tuple(self._label(x, int(i)) for i in order),
            "amounts": tuple(amounts[order].tolist()),
            "count": count,
            "total": off.numel(),
        }
        return fields, int(order[0])

    def _apart(self, name: str, *tensors: Tensor) -> list[tuple[Any, ...]]:
        """(manifold, name, tensors) of each point under vmap or factor; nothing if whole."""
        batch = _batch(*tensors)
        if batch:
            return [(self, f"point {place} of {name}", *point) for place, *point in batch]
        factors = self._factors(*tensors)
        return [(m, f"factor {i} of {name}", *part) for i, (m, *part) in enumerate(factors)]


def raise_if(error: Exception | None) -> None:
    """Raise an exception that a validation has returned."""
    if error is not None:
        raise error


def _exceeds(off: Tensor, limit: float) -> bool:
    """Test whether any violation is above the limit, NaN or ∞; also under `torch.func.vmap`."""
    while functorch.is_functorch_wrapped_tensor(off):
        off = functorch.get_unwrapped(off)
    # Counted, because torch takes no "all" of processes together (2.13).
    return bool(settle((~((off <= limit) & off.isfinite())).sum()))


def _batch(*tensors: Tensor) -> list[tuple[Any, ...]]:
    """(place, points) of each entry that `torch.func.vmap` maps over; nothing outside of it."""
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
