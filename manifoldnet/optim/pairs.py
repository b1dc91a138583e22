"""Steps of pairs (`manifoldnet.geometry.pair`): both factors at once, in each other's frames.

    PairMotion      a factor for the formulas of an optimizer, as `Motion` is of other weights
    move_together   the end of a step: both factors moved, and buffers carried along
    carried         frames for the optimizers of torch that `constrain` holds

A step of one factor needs the other as it was before the step. So all frames are taken first, from
there, and all factors are moved last. The partner of a factor has to be in the same optimizer,
unless it does not train (`requires_grad=False`): then it is a constant.

The optimizers of this library keep momentum as a tangent vector b of the weight. In a step it is
b Kᵀ in the frame, and after it b Kᵀ K⁺⁻ᵀ, with K⁺ in the basis that is nearest to the old one: an
isometry of tangent spaces, which commutes with the group. An optimizer of torch keeps its state in
the frame; the basis is carried from step to step in its state, as "pair_basis".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldnet.geometry import FactorFrame, Manifold, PairFactor, PairFactorBeside
from manifoldnet.geometry.pair import frame, loses_digits, rebalance, reference_basis, retract
from manifoldnet.geometry.slices import promote
from manifoldnet.optim import shards
from manifoldnet.optim.groups import Declared, Plain
from manifoldnet.optim.motion import Motion

__all__ = [
    "BASIS",
    "AnyMotion",
    "PairMotion",
    "beside",
    "carried",
    "check_partner",
    "factor_of",
    "motions",
    "move_factors",
    "move_together",
]

BASIS = "pair_basis"
"""The entry of an optimizer's state with the basis of a factor's columns, (heads, rows, r)."""


def factor_of(weight: Declared) -> PairFactor:
    """The manifold of a factor."""
    assert isinstance(weight.manifold, PairFactor)
    return weight.manifold


def check_partner(name: Callable[[], str], weight: Declared, held: Iterable[int]) -> None:
    """Raise RuntimeError for a factor that cannot be stepped.

    Args:
        name: the factor's name in messages.
        weight: the factor.
        held: ids of the parameters of its optimizer.
    """
    p, partner, factor = weight.p, weight.partner, weight.manifold
    if not isinstance(factor, PairFactor):
        return
    if partner is None:
        raise RuntimeError(
            f"{name()} is a factor of a pair, and its partner is gone from its module "
            "(parametrized, pruned or deleted?): undeclare it. No weight was changed"
        )
    if partner.requires_grad and id(partner) not in held:
        raise RuntimeError(
            f"{name()} is a factor of a pair, and its partner (shape {tuple(partner.shape)}) "
            "trains, but is not in this optimizer: give both to one optimizer, freeze the partner "
            "with requires_grad_(False), or undeclare them. No weight was changed"
        )
    if shards.is_sharded(p) or shards.is_sharded(partner):
        raise RuntimeError(
            f"{name()} is sharded, and a step of a pair needs whole factors: leave it out of "
            "fully_shard, or undeclare it. No weight was changed"
        )
    other, forms = weight.partner_factor, [(x.dtype, x.device) for x in (p, partner)]
    ranks = [f and f.rank(x.shape) for f, x in ((factor, p), (other, partner))]
    if None in ranks or ranks[0] != ranks[1] or forms[0] != forms[1]:
        raise RuntimeError(
            f"{name()} (shape {tuple(p.shape)}, {p.dtype}, {p.device}) and its partner (shape "
            f"{tuple(partner.shape)}, {partner.dtype}, {partner.device}) do not fit together any "
            "more: change both alike. No weight was changed"
        )


def beside(weight: Plain) -> Manifold:
    """The geometry of a factor beside its partner as it is now.

    Raises:
        RuntimeError: if the partner is gone.
    """
    assert isinstance(weight, Declared)
    if weight.partner is None:
        check_partner(lambda: "a weight", weight, ())
    return factor_of(weight).beside(_heads_of_partner(weight))


def _heads_of_partner(weight: Declared) -> Tensor:
    assert weight.partner is not None
    assert weight.partner_factor is not None
    (b,) = promote(weight.partner.detach())
    return weight.partner_factor.split(b)


# --- the optimizers of this library ---------------------------------------------------------------


class PairMotion:
    """The geometric operations of a step of one factor: vectors are coordinates in its frame.

    Args:
        weight: the factor, which `move_together` changes in place.
    """

    any_zero = False

    def __init__(self, weight: Declared) -> None:
        self.weight, self.factor = weight, factor_of(weight)
        (self.point,) = promote(weight.p.detach())
        b = _heads_of_partner(weight)
        self.frame = frame(b)
        self.manifold: PairFactorBeside = self.factor.beside(b)
        self.displacement: Tensor | None = None
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def gradient(self, grad: Tensor) -> Tensor:
        """The coordinates of the Riemannian gradient."""
        (grad,) = promote(grad)
        return self.factor.join(self.frame.enter_gradient(self.factor.split(grad)))

    def squared(self, d: Tensor) -> Tensor:
        """⟨d, d⟩ₓ of a vector in coordinates, of shape (1, 1)."""
        return d.square().sum().reshape(1, 1)

    def tangent(self, b: Tensor) -> Tensor:
        """The coordinates of a buffer, which is kept as a displacement of the weight."""
        return self.factor.join(self.frame.enter(self.factor.split(b)))

    def move(self, u: Tensor, b: Tensor | None = None) -> Tensor | None:
        """Note a step along `u`, and the buffer `b`, both in coordinates, for `move_together`.

        Returns:
            The buffer as it will be after the step, whose values `move_together` writes.
        """
        self.displacement = u
        if b is None:
            return None
        kept = torch.empty_like(b)
        self.buffers.append((b, kept))
        return kept


AnyMotion = Motion | PairMotion
"""The geometric operations of a step of any weight."""


def motions(weights: Iterable[Declared]) -> dict[int, PairMotion]:
    """The motions of all factors among some weights, by the id of the parameter."""
    return {id(weight.p): PairMotion(weight) for weight in weights if weight.partner is not None}


def move_together(moving: Mapping[int, PairMotion]) -> None:
    """Move all factors along the displacements that were noted, and carry buffers along."""
    steps = {
        key: (motion.weight, motion.frame, motion.factor.split(motion.displacement))
        for key, motion in moving.items()
        if motion.displacement is not None
    }
    move_factors(steps)
    for motion in moving.values():
        if motion.buffers:
            end = frame(_heads_of_partner(motion.weight), motion.frame.q)
            for b, kept in motion.buffers:
                kept.copy_(motion.factor.join(end.leave(motion.factor.split(b))))


def move_factors(steps: Mapping[int, tuple[Declared, FactorFrame, Tensor]]) -> None:
    """Retract factors, those of a pair together, and split a product anew that loses digits.

    Args:
        steps: by the id of the parameter: factor, frame, and displacement in its coordinates, as
            heads. Factors have their values before the step.
    """
    done: set[int] = set()
    for key, (weight, of_partner, u) in steps.items():
        if key in done:
            continue
        other = steps.get(id(weight.partner))
        if other is None:
            _write(weight, _heads(weight) + of_partner.leave(u))
            continue
        partner, of_weight, v = other
        du, dv = retract(of_weight, of_partner, u, v)
        a, b = _heads(weight) + du, _heads(partner) + dv
        lossy = loses_digits(of_weight, of_partner)
        if bool(lossy.any()):  # column spaces stay, and with them the frames' coordinates
            a, b = rebalance(a, b, lossy)
        _write(weight, a)
        _write(partner, b)
        done.add(id(partner.p))


def _heads(weight: Declared) -> Tensor:
    (x,) = promote(weight.p.detach())
    return factor_of(weight).split(x)


def _write(weight: Declared, heads: Tensor) -> None:
    weight.p.detach().copy_(factor_of(weight).join(heads))


# --- optimizers of torch --------------------------------------------------------------------------


def carried(
    weights: Sequence[Declared], state: Mapping[Tensor, Mapping[str, Any]]
) -> dict[int, FactorFrame]:
    """The frames of factors, near to those of the step before.

    Args:
        weights: factors, with their values before a step.
        state: of their optimizer. A first basis is near to a fixed one, so that coordinates are
            those of the product, whatever its factors are.
    """
    found = {}
    for weight in weights:
        b = _heads_of_partner(weight)
        known = state[weight.p].get(BASIS) if weight.p in state else None
        fits = isinstance(known, Tensor) and known.shape == b.shape
        found[id(weight.p)] = frame(b, known if fits else reference_basis(b))
    return found
