"""Scalings: positive factors on rows, columns or entries of named parameters.

    Slice("hidden.weight", 0, 3)         row 3 of that weight: what one factor multiplies
    ScalingElement({slice: 2.0, …})      a group element w ↦ g·w; slices it does not name keep 1
    a * b, a.inverse(), a ** t           the (abelian) group; `a ** t` is on its one-parameter group

Factors are kept as binary logarithms, in which the group is a vector space: composing adds,
inverting negates, and powers of two stay exact in every floating type, so that whatever is done
with them can be compared bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["ScalingElement", "Slice"]

# |log₂| of a factor: beyond it not even float64 has room for the factor and its inverse.
_LARGEST = 1000


@dataclass(frozen=True)
class Slice:
    """One slice of one parameter: the numbers that share a factor.

    Args:
        parameter: its qualified name (a buffer's will do too).
        dim: the dimension that indexes the slices, as everywhere in this library: 0 for rows,
            filters or the entries of a vector, 1 for columns or input channels; None for the whole
            tensor.
        index: which one of them.

    Raises:
        ValueError: unless `dim` and `index` are whole numbers ≥ 0 (without a `dim`, `index` is 0).
    """

    parameter: str
    dim: int | None
    index: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.parameter, str):
            raise ValueError(f"{self.parameter!r} is no name of a parameter")
        for field, value in (("dim", 0 if self.dim is None else self.dim), ("index", self.index)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"{self.parameter}: {field}={value!r} is not a whole number, counted from 0"
                )
        if self.dim is None and self.index != 0:
            raise ValueError(f"{self.parameter}: the whole tensor (dim=None) has the index 0 only")


@final
class ScalingElement:
    """A group element: a factor for each of some slices, 1 for all others.

    Args:
        factors: by slice, or by `(parameter, dim)` a whole vector of them:
            `{Slice("head.weight", 1, 0): 0.5, ("hidden.weight", 0): torch.tensor([...])}`.
            The first of the vector is for slice 0; slices beyond its end keep 1.
        signed: allow negative factors. They are not connected to 1, and most symmetries do not
            extend to them (behind batch normalization a negative factor flips a feature's sign).

    Raises:
        ValueError: for a factor that is zero, not finite, of absurd size, or negative without
            `signed`; for a slice that is given twice.
    """

    __slots__ = ("_flipped", "_log2")

    def __init__(self, factors: Mapping[Any, Any], *, signed: bool = False) -> None:
        self._log2: dict[Slice, float] = {}
        flipped = set()
        for key, value in factors.items():
            for where, factor in _expand(key, value):
                if where in self._log2:
                    raise ValueError(f"{_label(where)} is given two factors: compose two elements")
                _check_factor(where, factor, signed)
                log2 = math.log2(abs(factor))
                _check_log2(where, log2)
                self._log2[where] = log2
                if factor < 0:
                    flipped.add(where)
        self._flipped = frozenset(flipped)

    @classmethod
    def from_log2(
        cls, log2: Mapping[Slice, float], flipped: Iterable[Slice] = ()
    ) -> ScalingElement:
        """The element whose factors have these binary logarithms.

        Args:
            log2: by slice; whole numbers give exact powers of two.
            flipped: the slices whose factors are negative.
        """
        for where, value in log2.items():
            _check_log2(where, value)
        element = cls.__new__(cls)
        element._log2 = {where: float(value) for where, value in log2.items()}
        element._flipped = frozenset(flipped)
        for where in element._flipped:
            element._log2.setdefault(where, 0.0)
        return element

    @classmethod
    def identity(cls) -> ScalingElement:
        """The element that changes nothing."""
        return cls({})

    # --- the group ----------------------------------------------------------------------------

    def compose(self, other: ScalingElement) -> ScalingElement:
        """Both scalings, in either order: factors multiply. Also written `a * b`."""
        log2 = dict(self._log2)
        for where, value in other._log2.items():
            log2[where] = log2.get(where, 0.0) + value
        return self.from_log2(log2, self._flipped ^ other._flipped)

    def __mul__(self, other: ScalingElement) -> ScalingElement:
        return self.compose(other) if isinstance(other, ScalingElement) else NotImplemented

    def inverse(self) -> ScalingElement:
        """The scaling that undoes this one: bit for bit if all factors are powers of two."""
        return self**-1

    def __pow__(self, exponent: float) -> ScalingElement:
        """Factors to a power: the points of the one-parameter group through this element.

        Raises:
            ValueError: for negative factors, if `exponent` is not a whole number.
        """
        if self._flipped and exponent % 1 != 0:
            raise ValueError(
                f"the power {exponent} of a negative factor is not real: "
                f"{_label(min(self._flipped, key=str))} has one"
            )
        log2 = {where: exponent * value for where, value in self._log2.items()}
        return self.from_log2(log2, self._flipped if exponent % 2 else ())

    def renamed(self, names: Mapping[str, str]) -> ScalingElement:
        """The same factors under other parameter names."""
        if all(old == new for old, new in names.items()):
            return self

        def new(where: Slice) -> Slice:
            return Slice(names.get(where.parameter, where.parameter), where.dim, where.index)

        log2 = {new(where): value for where, value in self._log2.items()}
        return self.from_log2(log2, {new(where) for where in self._flipped})

    # --- reading it ---------------------------------------------------------------------------

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what it scales, each once."""
        return tuple(dict.fromkeys(where.parameter for where in self._log2))

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices whose factors it names."""
        return tuple(self._log2)

    def log2(self, where: Slice) -> float:
        """The binary logarithm of |factor| of one slice."""
        return self._log2.get(where, 0.0)

    def factor(self, where: Slice) -> float:
        """The factor of one slice; 1 if it is not named."""
        size = math.exp2(self._log2.get(where, 0.0))
        return -size if where in self._flipped else size

    @property
    def is_identity(self) -> bool:
        """Whether every factor is 1."""
        return not self._flipped and not any(self._log2.values())

    def factors(self, parameter: str, x: Tensor) -> Tensor:
        """All factors of one parameter, float64, in a shape that broadcasts against `x`.

        Entry (i, j) of a matrix has the product of the factors of row i and column j, taken on
        their logarithms: all rows by s and all columns by 1/s is exactly 1.

        Raises:
            ValueError: if `x` has no such slice.
        """
        log2 = torch.zeros((), dtype=torch.float64)
        sign = torch.ones((), dtype=torch.float64)
        for dim, named in self._by_dim(parameter).items():
            size = 1 if dim is None else x.shape[dim] if dim < x.ndim else 0
            for where in named:
                if where.index >= size:
                    raise ValueError(
                        f"{parameter} of shape {tuple(x.shape)} has no slice {where.index} along "
                        f"dim={dim} (there are {size}), but the element scales it"
                    )
            shape = [size if d == dim else 1 for d in range(x.ndim)]
            places = torch.tensor([where.index for where in named])
            values = torch.zeros(size, dtype=torch.float64)
            values[places] = torch.tensor([self._log2[w] for w in named], dtype=torch.float64)
            signs = torch.ones(size, dtype=torch.float64)
            signs[places] = torch.tensor(
                [-1.0 if w in self._flipped else 1.0 for w in named], dtype=torch.float64
            )
            log2, sign = log2 + values.reshape(shape), sign * signs.reshape(shape)
        return (sign * torch.exp2(log2)).to(x.device)

    def apply(self, parameter: str, x: Tensor) -> Tensor:
        """g·x for one parameter, rounded once.

        Raises:
            ValueError: if `x` has no such slice, is not of a floating-point type, or a product
                overflows or underflows in it.
        """
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(f"{parameter} has the type {x.dtype}, which cannot be scaled")
        # A product with a float64 tensor is a float64 one, whatever the type of x.
        y = (x * self.factors(parameter, x)).to(x.dtype)
        # Below the smallest normal number digits are lost, and scaling back does not restore them.
        underflows = (y.abs() < torch.finfo(x.dtype).tiny) & (y.abs() < x.abs())
        lost = (y.isfinite() != x.isfinite()) | underflows
        if not x.is_meta and bool(lost.any()):
            raise ValueError(
                f"{parameter}: {int(lost.sum())} of {x.numel()} numbers overflow or underflow in "
                f"{x.dtype} when they are scaled: use factors nearer to 1, or a wider type"
            )
        return y

    def _by_dim(self, parameter: str) -> dict[int | None, list[Slice]]:
        found: dict[int | None, list[Slice]] = {}
        for where in self._log2:
            if where.parameter == parameter:
                found.setdefault(where.dim, []).append(where)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScalingElement):
            return NotImplemented
        return self._flipped == other._flipped and self._moved() == other._moved()

    def __hash__(self) -> int:
        return hash((self._flipped, frozenset(self._moved().items())))

    def _moved(self) -> dict[Slice, float]:
        return {where: value for where, value in self._log2.items() if value != 0}

    def __repr__(self) -> str:
        moved = [w for w in self._log2 if self._log2[w] != 0 or w in self._flipped]
        parts = [f"{w!r}: {self.factor(w)!r}" for w in moved[:8]]
        if len(moved) > 8:
            parts.append(f"… {len(moved) - 8} more")
        signed = ", signed=True" if self._flipped else ""
        return f"ScalingElement({{{', '.join(parts)}}}{signed})"


def _expand(key: Any, value: Any) -> Iterable[tuple[Slice, float]]:
    """One slice and its factor, or all slices along a dimension with theirs."""
    if isinstance(key, Slice):
        name, dim = key.parameter, None
    elif isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
        name, dim = key
    else:
        raise ValueError(f"{key!r} names no slices: give a Slice, or a pair (parameter, dim)")
    try:
        values = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the factors of {key!r} are no numbers: {value!r}") from error
    if dim is None and values.numel() != 1:
        raise ValueError(
            f"{key!r} needs one number, but its factor has the shape {tuple(values.shape)}"
        )
    if dim is not None and values.ndim != 1:
        raise ValueError(
            f"{key!r} needs a vector, one factor for each slice, but the shape given is "
            f"{tuple(values.shape)}"
        )
    factors: list[float] = values.flatten().tolist()
    if isinstance(key, Slice):
        return [(key, factors[0])]
    return [(Slice(name, dim, i), factor) for i, factor in enumerate(factors)]


def _check_factor(where: Slice, factor: float, signed: bool) -> None:
    if not math.isfinite(factor) or factor == 0:
        raise ValueError(f"{_label(where)} has the factor {factor}: it must be finite and not zero")
    if factor < 0 and not signed:
        raise ValueError(
            f"{_label(where)} has the factor {factor:.6g}: a scaling has positive factors. With "
            "signed=True negative ones are allowed, but few symmetries extend to them"
        )


def _check_log2(where: Slice, log2: float) -> None:
    if not abs(log2) <= _LARGEST:
        raise ValueError(
            f"{_label(where)} has the factor 2^{log2:.6g}, which is not a finite positive number "
            "of ordinary size: use factors nearer to 1"
        )


def _label(where: Slice) -> str:
    if where.dim is None:
        return where.parameter
    return f"{where.parameter} (slice {where.index} along dim={where.dim})"
