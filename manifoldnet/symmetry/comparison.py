"""Comparison of updates: which of them respect which symmetry, by measurement.

    print(symmetry.explain(model, group, make_optimizer))

An update *respects* a symmetry g if it commutes with it: w̃⁺ = g·w⁺ after one step from w̃ = g·w. A
manifold *fixes* a symmetry if scaled weights leave the manifold, so that it admits only one of the
equivalent weights. Otherwise the update *ignores* the symmetry, and the choice among equivalent
weights changes the training.

No loss is needed. The gradients of a loss with the symmetry satisfy ∇L(g·w) = g⁻¹·∇L(w) and are
otherwise arbitrary, so random gradients that satisfy this replace them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet import rules
from manifoldnet.declarations import declare_all, manifolds, undeclare
from manifoldnet.geometry import Manifold, Oblique
from manifoldnet.optim import RiemannianSGD
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.linear_system import Layout
from manifoldnet.symmetry.losses import frozen_randomness
from manifoldnet.symmetry.replay import OptimizerFactory, make_optimizer, take_step
from manifoldnet.symmetry.rule import Rule, rule
from manifoldnet.symmetry.scaling import ScalingElement

__all__ = ["Explanation", "Row", "check_classifier", "explain"]

_STEPS = 3
_LR = 1e-2
_FACTOR = 8.0
# Largest relative difference of equal steps, computed in float64.
_TOLERANCE = 1e-6


@final
@dataclass(frozen=True)
class Row:
    """Behaviour of updates under one family of generators.

    Attributes:
        name: name of the first generator, and the number of others.
        size: number of generators.
        trivial: True if the generators change no weight.
        verdicts: "respects", "fixes" or "ignores", by update.
        errors: ‖g⁻¹·w̃⁺ − w⁺‖ / ‖w⁺ − w‖ of the worst parameter, by update; 0 where the symmetry is
            fixed, ∞ where weights do not stay finite.
    """

    name: str
    size: int
    trivial: bool
    verdicts: dict[str, str]
    errors: dict[str, float]


@final
@dataclass(frozen=True)
class Explanation:
    """Table of updates and symmetries, made by `explain`. Its `str` is for printing.

    Attributes:
        updates: names of the columns.
        rows: one for each family of generators.
    """

    updates: tuple[str, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        width = len("ignores (9e+99)")
        lines = ["  ".join(update.ljust(width) for update in self.updates) + "  symmetry"]
        for row in self.rows:
            cells = []
            for update in self.updates:
                cell = row.verdicts[update]
                if cell == "ignores":
                    cell += f" ({row.errors[update]:.0e})"
                cells.append(cell.ljust(width))
            lines.append("  ".join(cells) + "  " + row.name + ("  (trivial)" * row.trivial))
        return "\n".join(lines)


def explain(
    model: nn.Module,
    group: ScalingGroup,
    optimizer: OptimizerFactory | None = None,
    *,
    classifier: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> Explanation:
    """Measure whether B-SGD, SM, UN and the user's optimizer respect each symmetry.

    B-SGD is plain SGD. SM is SGD under the scaled metric, UN under unit norms. With `classifier`,
    these are declared by `rules.scaled_metric` and `rules.unit_norm`; without, by `rule(group)`,
    UN on rows only. Three steps are taken in float64 with random gradients of a loss that has the
    symmetry. All generators of one family act at once, with factors up to 8. Where a scaling leaves
    a manifold and other scalings of the group lead back, the product is measured.

    Args:
        model: any module, with the user's declarations; it is not changed.
        group: the symmetries of this model.
        optimizer: makes the user's optimizer of a model, for a further column.
        classifier: the layers that classify, as in `manifoldnet.rules`.
        seed: decides factors and gradients.

    Raises:
        TypeError: if it is no `ScalingGroup`.
        ValueError: if the group is empty, or names parameters that the model does not have.
    """
    if not isinstance(group, ScalingGroup):
        raise TypeError(
            f"updates are compared under a ScalingGroup, not a {type(group).__name__}: use "
            'discover(kind="scaling")'
        )
    if group.dimension == 0:
        raise ValueError("the group is empty: there is no symmetry to explain")
    columns = dict(_columns(model, group, classifier))
    if optimizer is not None:
        columns["yours"] = (copy.deepcopy(model), optimizer)
    families = list(group.families())
    found: list[Row] = [
        Row(name, len(members), members[0].trivial, {}, {}) for name, members in families
    ]
    for update, (declared, factory) in columns.items():
        declared = declared.double()
        fixed = _fixed(declared, group, [members for _, members in families])
        for row, (_, members), stays in zip(found, families, fixed, strict=True):
            error = 0.0 if stays else _error(declared, group, members, factory, seed)
            row.errors[update] = error
            row.verdicts[update] = (
                "fixes" if stays else "respects" if error <= _TOLERANCE else "ignores"
            )
    return Explanation(tuple(columns), tuple(found))


def _columns(
    model: nn.Module, group: ScalingGroup, classifier: str | tuple[str, ...] | None
) -> Iterator[tuple[str, tuple[nn.Module, OptimizerFactory]]]:
    """Updates of the paper: name, declared copy of the model, optimizer."""

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return RiemannianSGD(model.named_parameters(), lr=_LR)

    plain = _undeclared_copy(model)
    yield "B-SGD", (plain, sgd)
    if classifier is not None:
        scaled, unit = rules.scaled_metric(classifier), rules.unit_norm(classifier)
    else:
        try:
            scaled = rule(group)
        except ValueError:  # the group scales vectors only, so nothing can be declared
            return
        unit = Rule({name: Oblique() for name, m in scaled.manifolds.items() if m.slices.dim != 1})
    for name, declaration, project in (("SM", scaled, False), ("UN", unit, True)):
        target = copy.deepcopy(plain)
        declare_all(target, declaration, project=project)
        yield name, (target, sgd)


def check_classifier(model: nn.Module, classifier: str | tuple[str, ...]) -> None:
    """Raise the ValueError that `explain` raises for layers that cannot classify."""
    declare_all(_undeclared_copy(model), rules.scaled_metric(classifier))


def _undeclared_copy(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    for name in manifolds(plain):
        undeclare(plain, name)
    return plain


def _fixed(model: nn.Module, group: ScalingGroup, families: list[list[Generator]]) -> list[bool]:
    """By family, True if a model's manifolds fix its generators.

    The velocity of a generator has a component normal to the manifolds. A family is fixed if other
    generators of the group cannot cancel that component. Families that scale the fewest parameters
    come first: the norm of a filter fixes its scaling, even if others could cancel it.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    constrained = {n: m for n, m in manifolds(model).items() if n in tensors}
    fixed = [False] * len(families)
    span: Tensor | None = None
    order = sorted(range(len(families)), key=lambda i: len({f[0] for f in families[i][0].family}))
    for i in order:
        normal = torch.stack([_normal_part(g, tensors, constrained) for g in families[i]], dim=1)
        if not bool((normal.abs() > _TOLERANCE).any()):
            continue
        rest = normal if span is None else normal - span @ (span.mT @ normal)
        left, singular, _ = torch.linalg.svd(rest, full_matrices=False)
        new = left[:, singular > _TOLERANCE * float(torch.linalg.matrix_norm(normal, 2))]
        fixed[i] = new.shape[1] == len(families[i])
        span = new if span is None else torch.cat([span, new], dim=1)
    return fixed


@torch.no_grad()
def _normal_part(
    generator: Generator, tensors: dict[str, Tensor], constrained: dict[str, Manifold]
) -> Tensor:
    """⟨w, normal component of the velocity of a generator⟩ of each slice."""
    element = generator.element(2.0)
    parts = [torch.zeros(1, dtype=torch.float64)]
    for name, manifold in constrained.items():
        w = tensors[name].detach()
        layout = Layout({name: tuple(w.shape)})
        if name not in element.parameters:
            parts.append(torch.zeros(len(layout.slices), dtype=torch.float64))
            continue
        velocity = w * element.factors(name, w).log2()
        normal = velocity - manifold.proju(w, velocity)
        parts.append(layout.sums({name: (w * normal)[None]})[0])
    return torch.cat(parts)


def _error(
    model: nn.Module,
    group: ScalingGroup,
    members: list[Generator],
    optimizer: OptimizerFactory,
    seed: int,
) -> float:
    """‖g⁻¹·w̃⁺ − w⁺‖ / ‖w⁺ − w‖ of the worst parameter, for a random g in the span of members."""
    source = torch.Generator().manual_seed(seed)
    scales = _FACTOR ** (2 * torch.rand(len(members), generator=source, dtype=torch.float64) - 1)
    element = group.subgroup(members).element(scales.log())
    plain, scaled = copy.deepcopy(model), copy.deepcopy(model)
    factors = _factors(plain, element)
    start = _weights(plain)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            parameter.mul_(factors[name])
    with frozen_randomness(seed):
        plain_optimizer = make_optimizer(optimizer, plain)
    with frozen_randomness(seed):
        scaled_optimizer = make_optimizer(optimizer, scaled)
    for i in range(_STEPS):
        now = _factors(plain, element)
        gradients = {
            name: torch.randn(w.shape, generator=source, dtype=torch.float64).to(w)
            for name, w in start.items()
        }
        _step(plain, plain_optimizer, gradients, i)
        _step(scaled, scaled_optimizer, {name: g / now[name] for name, g in gradients.items()}, i)
        if not all(bool(w.isfinite().all()) for m in (plain, scaled) for w in m.parameters()):
            return math.inf
    worst = 0.0
    end, now = _weights(scaled), _factors(plain, element)
    for name, w in _weights(plain).items():
        difference = (end[name] - now[name] * w) / factors[name]
        step = max(
            float((w - start[name]).norm()),
            float((end[name] / factors[name] - start[name]).norm()),
        )
        if step > 0:
            worst = max(worst, float(difference.norm()) / step)
    return worst


@torch.no_grad()
def _factors(model: nn.Module, element: ScalingElement) -> dict[str, Tensor]:
    """Factors of an element times those of the projections back onto the manifolds."""
    declared = manifolds(model)
    found = {}
    for name, w in model.named_parameters():
        f = element.factors(name, w).expand_as(w)
        manifold = declared.get(name)
        if manifold is not None and name in element.parameters:
            y = f * w
            x = manifold.projx(y)
            f = f * manifold.slices.inner(x, y) / manifold.slices.inner(y, y)
        found[name] = f
    return found


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, Tensor], seed: int
) -> None:
    def closure() -> Tensor:
        for name, w in model.named_parameters():
            w.grad = gradients[name].clone()
        return torch.zeros((), dtype=torch.float64)

    closure()
    with frozen_randomness(seed):  # an update that adds noise adds the same to both
        take_step(optimizer, closure)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in model.named_parameters()}
