"""The record of how a group was found, as numbers and as text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manifoldnet.deprecation import renamed_attribute
from manifoldnet.symmetry.null_space import Gap
from manifoldnet.symmetry.scaling import Slice

__all__ = ["Discovery", "LinearDiscovery", "Widening"]


@dataclass(frozen=True)
class Discovery:
    """Record of how a group was found: `group.report`. Its `str` is for printing.

    Attributes:
        slices: number of slices examined, the columns of M.
        equations: number of rows of M.
        coupled: True if samples are coupled, so that a row takes a minibatch.
        gap: gap of the singular values.
        dtype: type that gradients were computed in.
        unreached: slices left out because no gradient reached them, formatted.
        unreached_slices: the same as slices.
        averages: number of entries of running averages, which generators scale along.
        evaluated: largest relative change of the loss in evaluation mode, running averages
            included, under random elements.
        stale: names of generators whose change of the running averages is no scaling.
        verified: largest relative change of the loss under random elements.
        spread: largest |ln factor| of one generator in these.
        eps: largest ε of normalization layers.
        eps_kept: True if ε was left in place.
        eps_effect: relative change of the loss under a small element with ε in place; equal to
            `verified` if there is no ε.
    """

    slices: int
    equations: int
    coupled: bool
    gap: Gap
    dtype: torch.dtype
    unreached: tuple[str, ...]
    verified: float
    spread: float
    eps: float
    eps_kept: bool
    eps_effect: float
    unreached_slices: tuple[Slice, ...] = ()
    averages: int = 0
    evaluated: float = 0.0
    stale: tuple[str, ...] = ()

    blur = renamed_attribute("Discovery.blur", "Discovery.eps_effect", removed_in="0.4.0")

    def __str__(self) -> str:
        each = "minibatch" if self.coupled else "sample"
        lines = [
            f"found in {self.equations} equations (one per {each}, {str(self.dtype)[6:]}) for "
            f"{self.slices} slices",
            f"singular values, relative: {self.gap}",
            f"verified: random elements, factors up to e^{self.spread:g} each, change the loss by "
            f"{self.verified:.1e} relative",
        ]
        if self.gap.near_zero_count:
            lines.append(
                f"in {self.gap.near_zero_count} more directions the loss hardly changes: "
                "symmetries but for an ε that is written into the model, or gradients that all but "
                "vanish"
            )
        if self.eps:
            lines.append(
                f"normalization has ε up to {self.eps:g}, "
                f"{'left in' if self.eps_kept else 'taken out'} while looking; with it, small "
                f"elements (factors up to e^0.5) change the loss by {self.eps_effect:.1e}"
            )
        if self.averages:
            lines.append(
                "running averages scale along: in evaluation mode, random elements change the loss "
                f"by {self.evaluated:.1e}"
            )
        if self.stale:
            more = f" and {len(self.stale) - 1} more" if self.stale[1:] else ""
            lines.append(
                f"running averages cannot follow {self.stale[0]}{more}: compute them anew "
                "(torch.optim.swa_utils.update_bn)"
            )
        if self.unreached:
            lines.append("left out, as no gradient reaches them: " + "; ".join(self.unreached))
        return "\n".join(lines)


@dataclass(frozen=True)
class Widening:
    """Record of a group that a narrow copy's was written for: `group.report`.

    Attributes:
        families: number of families of generators.
        generators: number of non-trivial generators.
        dtype: type that losses were computed in.
        verified: largest relative change of the loss under a random element of a family.
        narrow: record of the narrow copy's group.
    """

    families: int
    generators: int
    dtype: torch.dtype
    verified: float
    narrow: Discovery | Widening | None

    def __str__(self) -> str:
        lines = [
            f"written from a narrow copy: {self.generators} generators in {self.families} families",
            f"verified ({str(self.dtype)[6:]}): a random element of each, factors up to e, changes "
            f"the loss by {self.verified:.1e} relative at most",
        ]
        if self.narrow is not None:
            lines.append("of the narrow copy:")
            lines += [f"  {line}" for line in str(self.narrow).splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True)
class LinearDiscovery:
    """Record of how a linear group was found: `group.report`. Its `str` is for printing.

    Attributes:
        unknowns: entries of all matrices and translations, the columns of the linear system.
        equations: number of its rows.
        held_out: samples that the null space was found without and checked on; 0 if there were too
            few to leave some out.
        coupled: True if samples are coupled, so that a row takes a minibatch.
        gap: gap of the singular values.
        dtype: type that gradients were computed in.
        unreached: slices whose own translations were left out because no gradient reached them,
            formatted.
        verified: largest relative change of the loss under random elements.
        spread: largest spectral norm of the exponents of these.
        eps: largest ε of normalization layers.
        eps_kept: True if ε was left in place.
        eps_effect: relative change of the loss under a small element with ε in place; equal to
            `verified` if there is no ε.
        kernels: parameters of order three or more.
        tables: embeddings, whose rows are scaled and not mixed.
    """

    unknowns: int
    equations: int
    held_out: int
    coupled: bool
    gap: Gap
    dtype: torch.dtype
    unreached: tuple[str, ...]
    verified: float
    spread: float
    eps: float
    eps_kept: bool
    eps_effect: float
    kernels: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def __str__(self) -> str:
        each = "minibatch" if self.coupled else "sample"
        lines = [
            f"found in {self.equations} equations (one per {each}, {str(self.dtype)[6:]}) for "
            f"{self.unknowns} unknowns",
            f"singular values, relative: {self.gap}",
            f"verified: random elements, singular values up to e^{self.spread:g}, change the loss "
            f"by {self.verified:.1e} relative",
            f"checked on {self.held_out} samples that it was found without"
            if self.held_out
            else "too few samples to leave some out: other samples may break some of it",
            "looked for: matrices on rows and on columns of each parameter, translations",
            "not looked for: maps between parameters, permutations, sign flips and other "
            "components, maps that depend on the weights (translations of biases through a "
            "further layer), nonlinear ones",
        ]
        if self.kernels:
            lines.append(
                "kernels: filters and input channels are mixed, positions within a kernel are not ("
                + ", ".join(self.kernels)
                + ")"
            )
        if self.tables:
            lines.append("embeddings: rows are scaled, not mixed (" + ", ".join(self.tables) + ")")
        if self.gap.near_zero_count:
            lines.append(
                f"in {self.gap.near_zero_count} more directions the loss hardly changes: "
                "symmetries but for a small constant, or gradients that all but vanish"
            )
        if self.eps:
            lines.append(
                f"normalization has ε up to {self.eps:g}, "
                f"{'left in' if self.eps_kept else 'taken out'} while looking; with it, small "
                f"elements (singular values up to e^0.5) change the loss by {self.eps_effect:.1e}"
            )
        if self.unreached:
            lines.append("left out, as no gradient reaches them: " + "; ".join(self.unreached))
        return "\n".join(lines)
