"""Scalings: positive factors on rows, columns or entries of named parameters.

    Slice("hidden.weight", 0, 3)         row 3 of that weight, multiplied by one factor
    ScalingElement({slice: 2.0, …})      group element w ↦ g·w; other slices have the factor 1
    a * b, a.inverse(), a ** t           the (abelian) group and its one-parameter subgroups

Factors are stored as binary logarithms, in which the group is a vector space: composition adds,
inversion negates. Powers of two stay exact in every floating type, so that results can be compared
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from manifoldnet.geometry.slices import nouns

__all__ = ["ScalingElement", "Slice", "describe_slices"]

# Largest |log₂| of a factor: float64 cannot represent a larger factor and its inverse.
_LARGEST = 1000


@dataclass(frozen=True)
class Slice:
    """One slice of one parameter: entries that share a factor.

    Args:
        parameter: qualified name of a parameter or buffer.
        dim: dimension that indexes the slices, as everywhere in this library: 0 for rows, filters
            or the entries of a vector, 1 for columns or input channels; None for the whole tensor.
        index: number of the slice, from 0.

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


def describe_slices(
    parameter: str, dim: int | None, indices: Sequence[int], ndim: int, size: int | None = None
) -> str:
    """Readable name of some slices of a parameter: "hidden.weight[rows 0,1]".

    Args:
        parameter: qualified name.
        dim: dimension that indexes the slices.
        indices: numbers of the slices; three or more in a row are abbreviated ("0–7").
        ndim: order of the parameter, which decides between entries, rows and filters.
        size: number of all slices; if `indices` are all of them (and more than two), the name is
            "hidden.weight[all rows]".
    """
    if dim is None:
        return parameter
    singular, plural = nouns(ndim, dim)
    if 2 < len(indices) == size:
        return f"{parameter}[all {plural}]"
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    formatted = [f"{r[0]}–{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs]
    return f"{parameter}[{singular if len(indices) == 1 else plural} {','.join(formatted)}]"


@final
class ScalingElement:
    """Group element: a factor for each of some slices, 1 for all others.

    Args:
        factors: factors by slice, or vectors of factors by `(parameter, dim)`:
            `{Slice("head.weight", 1, 0): 0.5, ("hidden.weight", 0): torch.tensor([...])}`.
            The first entry of a vector is for slice 0; slices beyond its end have the factor 1.
        signed: allow negative factors. They are not connected to 1, and most symmetries do not
            extend to them (behind batch normalization a negative factor flips a feature's sign).

    Raises:
        ValueError: for a factor that is zero, not finite, too large or small for float64, or
            negative without `signed`; for a slice that is given twice.
    """

    __slots__ = ("_flipped", "_log2", "_shifts")

    def __init__(self, factors: Mapping[Any, Any], *, signed: bool = False) -> None:
        self._log2: dict[Slice, float] = {}
        flipped = set()
        for key, value in factors.items():
            for where, factor in _expand(key, value):
                if where in self._log2:
                    raise ValueError(f"{where} is given two factors: compose two elements")
                _check_factor(where, factor, signed)
                log2 = math.log2(abs(factor))
                _check_log2(where, log2)
                self._log2[where] = log2
                if factor < 0:
                    flipped.add(where)
        self._flipped = frozenset(flipped)
        self._shifts: tuple[tuple[Slice, Slice], ...] = ()

    @classmethod
    def from_log2(
        cls,
        log2: Mapping[Slice, float],
        flipped: Iterable[Slice] = (),
        shifts: Iterable[tuple[Slice, Slice]] = (),
    ) -> ScalingElement:
        """Element whose factors have given binary logarithms.

        Args:
            log2: logarithms by slice; whole numbers give exact powers of two.
            flipped: slices with negative factors.
            shifts: pairs (mean, bias) of entries of vectors. A running average of something that
                the bias is a term of becomes a·mean + (c − a)·bias, where a is its own factor and c
                that of the bias.
        """
        for where, value in log2.items():
            _check_log2(where, value)
        element = cls.__new__(cls)
        element._log2 = {where: float(value) for where, value in log2.items()}
        element._flipped = frozenset(flipped)
        element._shifts = tuple(dict.fromkeys(shifts))
        for where in element._flipped:
            element._log2.setdefault(where, 0.0)
        return element

    @classmethod
    def identity(cls) -> ScalingElement:
        """Identity of the group."""
        return cls({})

    # --- the group ----------------------------------------------------------------------------

    def compose(self, other: ScalingElement) -> ScalingElement:
        """Product of two elements, in either order. Also written `a * b`."""
        log2 = dict(self._log2)
        for where, value in other._log2.items():
            log2[where] = log2.get(where, 0.0) + value
        shifts = self._shifts + other._shifts
        return self.from_log2(log2, self._flipped ^ other._flipped, shifts)

    def __mul__(self, other: ScalingElement) -> ScalingElement:
        return self.compose(other) if isinstance(other, ScalingElement) else NotImplemented

    def inverse(self) -> ScalingElement:
        """Inverse element; it undoes the scaling bit for bit if all factors are powers of two."""
        return self**-1

    def __pow__(self, exponent: float) -> ScalingElement:
        """Power of an element, with real exponent: the one-parameter subgroup through it.

        Raises:
            ValueError: for negative factors, if `exponent` is not a whole number.
        """
        if self._flipped and exponent % 1 != 0:
            raise ValueError(
                f"the power {exponent} of a negative factor is not real: "
                f"{min(self._flipped, key=str)} has one"
            )
        log2 = {where: exponent * value for where, value in self._log2.items()}
        return self.from_log2(log2, self._flipped if exponent % 2 else (), self._shifts)

    def renamed(self, names: Mapping[str, str]) -> ScalingElement:
        """Same factors under other parameter names."""
        if all(old == new for old, new in names.items()):
            return self

        def new(where: Slice) -> Slice:
            return Slice(names.get(where.parameter, where.parameter), where.dim, where.index)

        log2 = {new(where): value for where, value in self._log2.items()}
        shifts = [(new(mean), new(bias)) for mean, bias in self._shifts]
        return self.from_log2(log2, {new(where) for where in self._flipped}, shifts)

    # --- factors ------------------------------------------------------------------------------

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the scaled parameters, each once."""
        return tuple(dict.fromkeys(where.parameter for where in self._log2))

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Slices that have a factor."""
        return tuple(self._log2)

    def log2(self, where: Slice) -> float:
        """Binary logarithm of |factor| of one slice."""
        return self._log2.get(where, 0.0)

    def factor(self, where: Slice) -> float:
        """Factor of one slice; 1 by default."""
        size = math.exp2(self._log2.get(where, 0.0))
        return -size if where in self._flipped else size

    @property
    def is_identity(self) -> bool:
        """True if every factor is 1."""
        return not self._flipped and not any(self._log2.values())

    def factors(self, parameter: str, x: Tensor) -> Tensor:
        """Factors of one parameter, float64, in a shape that broadcasts against `x`.

        The factor of entry (i, j) of a matrix is the product of those of row i and column j. Their
        logarithms are added: all rows by s and all columns by 1/s gives exactly 1.

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
            indices = torch.tensor([where.index for where in named])
            values = torch.zeros(size, dtype=torch.float64)
            values[indices] = torch.tensor([self._log2[w] for w in named], dtype=torch.float64)
            signs = torch.ones(size, dtype=torch.float64)
            signs[indices] = torch.tensor(
                [-1.0 if w in self._flipped else 1.0 for w in named], dtype=torch.float64
            )
            log2, sign = log2 + values.reshape(shape), sign * signs.reshape(shape)
        return (sign * torch.exp2(log2)).to(x.device)

    def apply(self, parameter: str, x: Tensor) -> Tensor:
        """g·x of one parameter, rounded once.

        Raises:
            ValueError: if `x` has no such slice, is not of a floating-point type, or a product
                overflows or underflows in it.
        """
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(f"{parameter} has the type {x.dtype}, which cannot be scaled")
        # The product is computed in float64, whatever the type of x.
        y = (x * self.factors(parameter, x)).to(x.dtype)
        # Below the smallest normal number digits are lost, and the inverse does not restore them.
        underflows = (y.abs() < torch.finfo(x.dtype).tiny) & (y.abs() < x.abs())
        lost = (y.isfinite() != x.isfinite()) | underflows
        if not x.is_meta and bool(lost.any()):
            raise ValueError(
                f"{parameter}: {int(lost.sum())} of {x.numel()} numbers overflow or underflow in "
                f"{x.dtype} when they are scaled: use factors nearer to 1, or a wider type"
            )
        return y

    def differential(self, parameter: str, u: Tensor) -> Tensor:
        """g·u of a tangent vector u: a step or a momentum at x becomes one at g·x."""
        return (u * self.factors(parameter, u)).to(u.dtype)

    def gradient(self, parameter: str, g: Tensor) -> Tensor:
        """g⁻¹·∂L: the gradient at g·x of an invariant loss with the gradient `g` at x."""
        return (g / self.factors(parameter, g)).to(g.dtype)

    def move(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """g·x of all tensors that the element scales or shifts, by name.

        Raises:
            ValueError: as `apply`.
        """
        moved = {name: self.apply(name, tensors[name]) for name in self.parameters}
        shifted: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
        for mean, bias in self._shifts:
            change = self.factor(bias) - self.factor(mean)
            if change:
                names = mean.parameter, bias.parameter
                shifted.setdefault(names, []).append((mean.index, bias.index, change))
        for (mean_name, bias_name), entries in shifted.items():
            places, sources, changes = (list(part) for part in zip(*entries, strict=True))
            if mean_name not in moved:
                moved[mean_name] = tensors[mean_name].clone()
            y, b = moved[mean_name], tensors[bias_name].double()
            terms = b[torch.tensor(sources, device=b.device)] * torch.tensor(
                changes, dtype=b.dtype, device=b.device
            )
            index = torch.tensor(places, device=y.device)
            y.index_add_(0, index, terms.to(y))
        return moved

    def _by_dim(self, parameter: str) -> dict[int | None, list[Slice]]:
        found: dict[int | None, list[Slice]] = {}
        for where in self._log2:
            if where.parameter == parameter:
                found.setdefault(where.dim, []).append(where)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScalingElement):
            return NotImplemented
        return self._flipped == other._flipped and self._nonzero() == other._nonzero()

    def __hash__(self) -> int:
        return hash((self._flipped, frozenset(self._nonzero().items())))

    def _nonzero(self) -> dict[Slice, float]:
        return {where: value for where, value in self._log2.items() if value != 0}

    def __repr__(self) -> str:
        named = [w for w in self._log2 if self._log2[w] != 0 or w in self._flipped]
        parts = [f"{w!r}: {self.factor(w)!r}" for w in named[:8]]
        if len(named) > 8:
            parts.append(f"… {len(named) - 8} more")
        signed = ", signed=True" if self._flipped else ""
        return f"ScalingElement({{{', '.join(parts)}}}{signed})"


def _expand(key: Any, value: Any) -> Iterable[tuple[Slice, float]]:
    """Pairs (slice, factor) of one entry of `factors`."""
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
        raise ValueError(f"{where} has the factor {factor}: it must be finite and not zero")
    if factor < 0 and not signed:
        raise ValueError(
            f"{where} has the factor {factor:.6g}: a scaling has positive factors. With "
            "signed=True negative ones are allowed, but few symmetries extend to them"
        )


def _check_log2(where: Slice, log2: float) -> None:
    if not abs(log2) <= _LARGEST:
        raise ValueError(
            f"{where} has the factor 2^{log2:.6g}, which is not a finite positive number "
            "of ordinary size: use factors nearer to 1"
        )
