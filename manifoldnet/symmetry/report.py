"""What a discovery has to say besides the group: how sure it is, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manifoldnet.symmetry.basis import Gap

__all__ = ["Discovery"]


@dataclass(frozen=True)
class Discovery:
    """How a group was found.

    Attributes:
        slices: how many slices were looked at: the columns of M.
        equations: how many rows of M were taken.
        coupled: whether samples are coupled, so that a row takes a minibatch.
        gap: the singular values around the cut.
        dtype: the type that gradients were computed in.
        unreached: what no gradient reached, in words; these slices were left out.
        verified: the largest relative change of the loss under random elements.
        spread: ln of the largest factor of one generator in these.
        eps: the largest ε of normalization layers.
        eps_kept: whether it was left in while looking.
        blur: the same change with ε in place; equal to `verified` if there is none.
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
    blur: float

    def __str__(self) -> str:
        each = "minibatch" if self.coupled else "sample"
        lines = [
            f"found in {self.equations} equations (one per {each}, {str(self.dtype)[6:]}) for "
            f"{self.slices} slices",
            f"singular values, relative: {self.gap}",
            f"verified: random elements, factors up to e^{self.spread:g} each, change the loss by "
            f"{self.verified:.1e} relative",
        ]
        if self.gap.nearly:
            lines.append(
                f"in {self.gap.nearly} more directions the loss hardly changes: symmetries but for "
                "an ε that is written into the model, or gradients that all but vanish"
            )
        if self.eps:
            how = "left in" if self.eps_kept else "taken out"
            lines.append(
                f"normalization has ε up to {self.eps:g}, {how} while looking; with it, small "
                f"elements (factors up to e^0.5) change the loss by {self.blur:.1e}"
            )
        if self.unreached:
            lines.append("left out, as no gradient reaches them: " + "; ".join(self.unreached))
        return "\n".join(lines)
