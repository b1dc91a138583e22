"""Which update respects which symmetry: a table, measured.

    print(symmetry.explain(model, group, make_optimizer))

An update *respects* a symmetry if it commutes with it: step and scale is scale and step. A manifold
*fixes* it if scaled weights leave it: of all the parameterizations of a network it admits one. Else
the update *ignores* it, and the parameterization steers the training.

No loss is asked for. Any loss with the symmetry has gradients that are related by ∇L(g·w) =
g⁻¹·∇L(w), and are otherwise anything; so random ones will do.
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
from manifoldnet.symmetry.declaring import Rule, rule
from manifoldnet.symmetry.equations import Layout
from manifoldnet.symmetry.evaluation import frozen_randomness
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.runs import OptimizerFactory, make, take_step
from manifoldnet.symmetry.scaling import ScalingElement

__all__ = ["Explanation", "Row", "explain"]

_STEPS = 3
_LR = 1e-2
_FACTOR = 8.0
# Steps of float64 that should agree do so to this, relative.
_AGREES = 1e-6


@final
@dataclass(frozen=True)
class Row:
    """What updates do with one kind of symmetry.

    Attributes:
        name: the first generator of its kind, and how many there are.
        size: how many there are.
        trivial: whether it changes no weight.
        verdicts: by update: "respects", "fixes" or "ignores".
        errors: by update: ‖w̃⁺ − g·w⁺‖ / ‖w⁺ − w‖ of the worst parameter; 0 where it is fixed, ∞
            where weights do not stay finite.
    """

    name: str
    size: int
    trivial: bool
    verdicts: dict[str, str]
    errors: dict[str, float]


@final
@dataclass(frozen=True)
class Explanation:
    """Which update respects, fixes or ignores which symmetry. Its `str` is a table.

    Attributes:
        updates: the columns.
        rows: one for each kind of symmetry.
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
    """A table: what B-SGD, SM, UN and the user's optimizer make of each symmetry, measured.

    B-SGD is plain SGD. SM has the scaled metric and UN unit norms where `rules.scaled_metric` and
    `rules.unit_norm` put them, if `classifier` is given; else where the group asks for them
    (`rule`), UN on rows only. In float64, three steps are taken with random gradients of a loss
    that has the symmetry; all generators of one kind act at once, with factors up to 8. Where a
    scaling leaves a manifold and others of the group lead back, it is measured with these.

    Args:
        model: any module; it is not changed. The user's optimizer sees it as it is declared.
        group: of this model.
        optimizer: makes the user's optimizer of a model; a column more.
        classifier: the layer that classifies, as in `manifoldnet.rules`.
        seed: decides the gradients.

    Raises:
        ValueError: if the group is empty, or names parameters that the model does not have.
    """
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
                "fixes" if stays else "respects" if error <= _AGREES else "ignores"
            )
    return Explanation(tuple(columns), tuple(found))


def _columns(
    model: nn.Module, group: ScalingGroup, classifier: str | tuple[str, ...] | None
) -> Iterator[tuple[str, tuple[nn.Module, OptimizerFactory]]]:
    """The paper's updates: a declared copy of the model, and an optimizer for it."""

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return RiemannianSGD(model.named_parameters(), lr=_LR)

    plain = copy.deepcopy(model)
    for name in manifolds(plain):
        undeclare(plain, name)
    yield "B-SGD", (plain, sgd)
    if classifier is not None:
        scaled, unit = rules.scaled_metric(classifier), rules.unit_norm(classifier)
    else:
        try:
            scaled = rule(group)
        except ValueError:  # it scales vectors only, and there is nothing to declare
            return
        unit = Rule({name: Oblique() for name, m in scaled.manifolds.items() if m.slices.dim != 1})
    for name, how, project in (("SM", scaled, False), ("UN", unit, True)):
        target = copy.deepcopy(plain)
        declare_all(target, how, project=project)
        yield name, (target, sgd)


def _fixed(model: nn.Module, group: ScalingGroup, families: list[list[Generator]]) -> list[bool]:
    """Which families a model's manifolds fix.

    To first order, a generator moves weights off their manifolds at certain rates. A family is
    fixed if no other scalings make up for its rates; those that scale the fewest parameters count
    first (a filter alone is fixed by its norm, whatever else might undo it).
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    constrained = {n: m for n, m in manifolds(model).items() if n in tensors}
    fixed = [False] * len(families)
    span: Tensor | None = None
    order = sorted(range(len(families)), key=lambda i: len({k[0] for k in families[i][0].kind}))
    for i in order:
        rates = torch.stack([_rates(g, tensors, constrained) for g in families[i]], dim=1)
        if not bool((rates.abs() > _AGREES).any()):
            continue
        rest = rates if span is None else rates - span @ (span.mT @ rates)
        left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
        new = left[:, sizes > _AGREES * float(torch.linalg.matrix_norm(rates, 2))]
        fixed[i] = new.shape[1] == len(families[i])
        span = new if span is None else torch.cat([span, new], dim=1)
    return fixed


@torch.no_grad()
def _rates(
    generator: Generator, tensors: dict[str, Tensor], constrained: dict[str, Manifold]
) -> Tensor:
    """How fast weights leave their manifolds: ⟨w, normal part of the velocity⟩, slice by slice."""
    element = generator.element(2.0)
    rates = [torch.zeros(1, dtype=torch.float64)]
    for name, manifold in constrained.items():
        w = tensors[name].detach()
        layout = Layout({name: tuple(w.shape)})
        if name not in element.parameters:
            rates.append(torch.zeros(len(layout.slices), dtype=torch.float64))
            continue
        velocity = w * element.factors(name, w).log2()
        normal = velocity - manifold.proju(w, velocity)
        rates.append(layout.sums({name: (w * normal)[None]})[0])
    return torch.cat(rates)


def _error(
    model: nn.Module,
    group: ScalingGroup,
    members: list[Generator],
    optimizer: OptimizerFactory,
    seed: int,
) -> float:
    """How far step and scale is from scale and step, relative to the steps."""
    source = torch.Generator().manual_seed(seed)
    scales = _FACTOR ** (2 * torch.rand(len(members), generator=source, dtype=torch.float64) - 1)
    element = group.subgroup(members).element(scales.log())
    here, there = copy.deepcopy(model), copy.deepcopy(model)
    factors = _factors(here, element)
    start = _weights(here)
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            parameter.mul_(factors[name])
    with frozen_randomness(seed):
        first = make(optimizer, here)
    with frozen_randomness(seed):
        second = make(optimizer, there)
    for i in range(_STEPS):
        now = _factors(here, element)
        gradients = {
            name: torch.randn(w.shape, generator=source, dtype=torch.float64).to(w)
            for name, w in start.items()
        }
        back = {name: g / now[name] for name, g in gradients.items()}
        _step(here, first, gradients, i)
        _step(there, second, back, i)
        if not (_finite(here) and _finite(there)):
            return math.inf
    worst = 0.0
    end, now = _weights(there), _factors(here, element)
    for name, w in _weights(here).items():
        off = (end[name] - now[name] * w) / factors[name]
        moved = max(
            float((w - start[name]).norm()),
            float((end[name] / factors[name] - start[name]).norm()),
        )
        if moved > 0:
            worst = max(worst, float(off.norm()) / moved)
    return worst


@torch.no_grad()
def _factors(model: nn.Module, element: ScalingElement) -> dict[str, Tensor]:
    """The factors of an element, and of what leads back to the manifolds, at these weights."""
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
    with frozen_randomness(seed):  # an update that adds noise adds the same
        take_step(optimizer, closure)


def _finite(model: nn.Module) -> bool:
    return all(bool(w.isfinite().all()) for w in model.parameters())


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in model.named_parameters()}
