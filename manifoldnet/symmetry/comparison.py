"""Comparison of updates: which of them respect which symmetry, by measurement.

    print(symmetry.explain(model, group, make_optimizer))

An update *respects* a symmetry g if it commutes with it: w̃⁺ = g·w⁺ after one step from w̃ = g·w. A
manifold *fixes* a symmetry if moved weights leave the manifold, so that it admits only one of the
equivalent weights. Otherwise the update *ignores* the symmetry, and the choice among equivalent
weights changes the training.

No loss is needed. The gradients of a loss with the symmetry satisfy ∇L(g·w) = g⁻ᵀ·∇L(w) and are
otherwise arbitrary, so random gradients that satisfy this replace them. Those of a loss with linear
symmetries are orthogonal to its orbits, too, and steps are compared up to the group's translations:
a shift W ↦ W + t 1 vᵀW is a translation, by another vector at each weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from manifoldnet import rules
from manifoldnet.declarations import declare_all, manifolds, undeclare
from manifoldnet.geometry import Manifold, NotOnManifoldError, Oblique
from manifoldnet.optim import RiemannianSGD
from manifoldnet.symmetry.group import Generator, ScalingGroup
from manifoldnet.symmetry.linear import LinearElement, LinearGenerator, LinearGroup
from manifoldnet.symmetry.linear_system import Layout
from manifoldnet.symmetry.losses import frozen_randomness
from manifoldnet.symmetry.replay import OptimizerFactory, make_optimizer, take_step
from manifoldnet.symmetry.rule import Rule, rule
from manifoldnet.symmetry.scaling import ScalingElement, Slice

__all__ = ["Explanation", "Row", "check_classifier", "explain"]

_STEPS = 3
_LR = 1e-2
# Largest factor of a generator, and singular value of a linear map.
_FACTOR = 8.0
# Steps of Gauss and Newton back onto a manifold, each with singular values of at most e.
_RETURN = 60
# Largest relative difference of equal steps, computed in float64.
_TOLERANCE = 1e-6


@final
@dataclass(frozen=True)
class Row:
    """Behaviour of updates under one family of scalings, or one block of a linear group.

    Attributes:
        name: name of the first generator, and the number of others; name of the block.
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
        rows: one for each family of scalings, or block of linear maps.
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


class _Family(NamedTuple):
    """Subgroup whose generators act at once: a family of scalings, or a block of linear maps."""

    name: str
    group: ScalingGroup | LinearGroup

    @property
    def generators(self) -> Sequence[Generator | LinearGenerator]:
        """Its generators."""
        return self.group.generators

    @property
    def trivial(self) -> bool:
        """True if it changes no weight."""
        return isinstance(self.group, ScalingGroup) and self.group.nontrivial.dimension == 0


def explain(
    model: nn.Module,
    group: ScalingGroup | LinearGroup,
    optimizer: OptimizerFactory | None = None,
    *,
    classifier: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> Explanation:
    """Measure whether SGD, with and without manifolds, and the user's optimizer respect symmetries.

    The columns are "SGD", "scaled metric" and "unit norm": plain SGD, SGD under the scaled metric,
    SGD on unit norms (the symmetry paper's B-SGD, SM and UN). With `classifier`, manifolds are
    declared by `rules.scaled_metric` and `rules.unit_norm`; without, by `rule(group)`, unit norms
    on rows only; for a linear group, by the rule of the scalings that it contains. Three steps are
    taken in float64 with random gradients of a loss that has the symmetry. All generators of one
    family (one block of a linear group) act at once, with factors (singular values) up to 8. Where
    they leave a manifold and the group leads back, the product is measured. The columns with
    manifolds are left out where a weight of theirs has slices of zeros (the start of LoRA).

    Args:
        model: any module, with the user's declarations; it is not changed.
        group: the symmetries of this model.
        optimizer: makes the user's optimizer of a model, for a further column.
        classifier: the layers that classify, as in `manifoldnet.rules`.
        seed: decides group elements and gradients.

    Raises:
        TypeError: if it is no group.
        ValueError: if the group is empty, or names parameters that the model does not have.
    """
    if not isinstance(group, ScalingGroup | LinearGroup):
        raise TypeError(
            f"updates are compared under a ScalingGroup or a LinearGroup, not a "
            f"{type(group).__name__}"
        )
    if not group.generators:
        raise ValueError("the group is empty: there is no symmetry to explain")
    if isinstance(group, LinearGroup):
        _check_shapes(model, group)
        families = [_Family(block.name, group.subgroup([block])) for block in group.blocks]
    else:
        families = [_Family(name, group.subgroup(each)) for name, each in group.families()]
    columns = dict(_columns(model, group, classifier))
    if optimizer is not None:
        columns["yours"] = (copy.deepcopy(model), optimizer)
    found = [Row(f.name, len(f.generators), f.trivial, {}, {}) for f in families]
    for update, (declared, factory) in columns.items():
        declared = declared.double()
        fixed = _fixed(declared, families)
        course: _Course | None = None
        for row, family, stays in zip(found, families, fixed, strict=True):
            if not stays and course is None:
                course = _course(declared, group, factory, seed)
            error = 0.0
            if not stays and course is not None:
                error = _error(declared, group, family, factory, seed, course)
            row.errors[update] = error
            row.verdicts[update] = (
                "fixes" if stays else "respects" if error <= _TOLERANCE else "ignores"
            )
    return Explanation(tuple(columns), tuple(found))


def _check_shapes(model: nn.Module, group: LinearGroup) -> None:
    """Raise a ValueError for a group of another model."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name in group.parameters:
        if shapes.get(name) != group.shapes[name]:
            raise ValueError(
                f"the group is another model's: it moves {name} of shape {group.shapes[name]}, and "
                f"{type(model).__name__} has "
                + (f"one of shape {shapes[name]}" if name in shapes else "no such parameter")
            )


def _columns(
    model: nn.Module,
    group: ScalingGroup | LinearGroup,
    classifier: str | tuple[str, ...] | None,
) -> Iterator[tuple[str, tuple[nn.Module, OptimizerFactory]]]:
    """Updates of the paper: name, declared copy of the model, optimizer."""

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return RiemannianSGD(model.named_parameters(), lr=_LR)

    plain = _undeclared_copy(model)
    yield "SGD", (plain, sgd)
    if classifier is not None:
        scaled, unit = rules.scaled_metric(classifier), rules.unit_norm(classifier)
    else:
        try:
            scaled = rule(group.scalings if isinstance(group, LinearGroup) else group)
        except ValueError:  # no matrix is scaled, so nothing can be declared
            return
        unit = Rule({name: Oblique() for name, m in scaled.manifolds.items() if m.slices.dim != 1})
    for name, declaration, project in (("scaled metric", scaled, False), ("unit norm", unit, True)):
        target = copy.deepcopy(plain)
        try:
            declare_all(target, declaration, project=project)
        except NotOnManifoldError:  # a slice of zeros has no direction, and no relative metric
            continue
        yield name, (target, sgd)


def check_classifier(model: nn.Module, classifier: str | tuple[str, ...]) -> None:
    """Raise the ValueError that `explain` raises for layers that cannot classify."""
    declare_all(_undeclared_copy(model), rules.scaled_metric(classifier))


def _undeclared_copy(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    while declared := manifolds(plain):  # one name of a pair undeclares both
        undeclare(plain, next(iter(declared)))
    return plain


def _fixed(model: nn.Module, families: list[_Family]) -> list[bool]:
    """By family, True if a model's manifolds fix its generators.

    The velocity of a generator has a component normal to the manifolds. A family is fixed if other
    generators of the group cannot cancel that component. Families that move the fewest parameters
    come first: the norm of a filter fixes its scaling, even if others could cancel it.
    """
    tensors: dict[str, Tensor] = {n: p.detach() for n, p in model.named_parameters()}
    constrained = {n: m for n, m in manifolds(model).items() if n in tensors}
    fixed = [False] * len(families)
    span: Tensor | None = None

    def moved(i: int) -> int:
        generator = families[i].generators[0]
        if isinstance(generator, LinearGenerator):
            return len(generator.parameters)
        # Running averages follow the weights: they do not count.
        return len({name for name, _, _ in generator.family if name in tensors})

    for i in sorted(range(len(families)), key=moved):
        generators = families[i].generators
        normal = torch.stack([_normal_part(g, tensors, constrained) for g in generators], dim=1)
        if not bool((normal.abs() > _TOLERANCE).any()):
            continue
        rest = normal if span is None else normal - span @ (span.mT @ normal)
        left, singular, _ = torch.linalg.svd(rest, full_matrices=False)
        new = left[:, singular > _TOLERANCE * float(torch.linalg.matrix_norm(normal, 2))]
        fixed[i] = new.shape[1] == len(generators)
        span = new if span is None else torch.cat([span, new], dim=1)
    return fixed


@torch.no_grad()
def _normal_part(
    generator: Generator | LinearGenerator,
    tensors: dict[str, Tensor],
    constrained: dict[str, Manifold],
) -> Tensor:
    """Normal component of the velocity of a generator; of a scaling, ⟨w, ·⟩ of each slice."""
    parts = [torch.zeros(1, dtype=torch.float64)]
    for name, manifold in constrained.items():
        w = tensors[name]
        if isinstance(generator, LinearGenerator):
            velocity = generator.velocity(name, w)
            parts.append((velocity - manifold.proju(w, velocity)).flatten())
            continue
        element, layout = generator.element(2.0), Layout({name: tuple(w.shape)})
        velocity = w * element.factors(name, w).log2()
        normal = velocity - manifold.proju(w, velocity)
        parts.append(layout.sums({name: (w * normal)[None]})[0])
    return torch.cat(parts)


# --- one run from w, and one from g·w ------------------------------------------------------------


class _Course(NamedTuple):
    """Steps from a model's own weights: weights before each and at the end, and gradients."""

    weights: list[dict[str, Tensor]]
    gradients: list[dict[str, Tensor]]


def _course(
    model: nn.Module, group: ScalingGroup | LinearGroup, optimizer: OptimizerFactory, seed: int
) -> _Course:
    """Steps with random gradients of a loss that has the symmetries."""
    source = torch.Generator().manual_seed(seed)
    work = copy.deepcopy(model)
    course = _Course([_weights(work)], [])
    with frozen_randomness(seed):
        made = make_optimizer(optimizer, work)
    for i in range(_STEPS):
        gradients = {
            name: torch.randn(w.shape, generator=source, dtype=torch.float64).to(w)
            for name, w in course.weights[-1].items()
        }
        if isinstance(group, LinearGroup):
            fields = [
                {n: g.velocity(n, course.weights[-1][n]) for n in g.parameters}
                for g in group.generators
            ]
            gradients = _without(gradients, fields)
        course.gradients.append(gradients)
        _step(work, made, gradients, i)
        course.weights.append(_weights(work))
    return course


def _error(
    model: nn.Module,
    group: ScalingGroup | LinearGroup,
    family: _Family,
    optimizer: OptimizerFactory,
    seed: int,
    course: _Course,
) -> float:
    """‖g⁻¹·w̃⁺ − w⁺‖ / ‖w⁺ − w‖ of the worst parameter, for a random g in the span of a family."""
    if not all(bool(w.isfinite().all()) for w in course.weights[-1].values()):
        return math.inf
    start, *_, end = course.weights
    element = _random_element(family.group, seed)
    first = _returned(model, group, element, start)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if name in first.parameters:
                p.copy_(first.apply(name, p))
    with frozen_randomness(seed):
        made = make_optimizer(optimizer, moved)
    for i, (weights, gradients) in enumerate(zip(course.weights, course.gradients, strict=False)):
        now = _returned(model, group, first, weights)
        _step(moved, made, {name: now.gradient(name, g) for name, g in gradients.items()}, i)
    now, inverse = _returned(model, group, first, end), first.inverse()
    found = _weights(moved)
    if not all(bool(w.isfinite().all()) for w in found.values()):
        return math.inf
    differences, sizes = {}, {}
    for name, w in end.items():
        differences[name] = inverse.differential(name, found[name] - now.apply(name, w))
        back = inverse.apply(name, found[name])
        sizes[name] = max(float((x - start[name]).norm()) for x in (w, back))
    # Translations have to be kept as they are; linear maps up to translations.
    if isinstance(group, LinearGroup) and family.group.dimension:
        differences = _without(differences, [g.translation for g in group.translations])
    return max(float(differences[name].norm()) / size for name, size in sizes.items() if size > 0)


def _random_element(group: ScalingGroup | LinearGroup, seed: int) -> ScalingElement | LinearElement:
    """Random element with factors, or singular values, up to 8."""
    source = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(group.generators), generator=source, dtype=torch.float64)
    coefficients = (2 * uniform - 1) * math.log(_FACTOR)
    if isinstance(group, LinearGroup):
        coefficients = group.bounded(coefficients, math.log(_FACTOR))
    return group.element(coefficients)


def _without(
    vectors: dict[str, Tensor], fields: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Vectors less their projection onto the span of some fields; both by parameter."""
    if not fields:
        return vectors
    flat = torch.cat([v.flatten() for v in vectors.values()])
    columns = torch.stack(
        [
            torch.cat([field.get(n, torch.zeros_like(v)).flatten() for n, v in vectors.items()])
            for field in fields
        ],
        dim=1,
    )
    left, singular, _ = torch.linalg.svd(columns, full_matrices=False)
    span = left[:, singular > 1e-9 * singular[0]]
    rest = flat
    for _ in range(2):  # the second pass removes the rounding errors of the first
        rest = rest - span @ (span.mT @ rest)
    # Adam would divide what is left of a zero by its own size.
    rest = torch.where(rest.abs() > 1e-13 * flat.abs().max(), rest, 0.0)
    parts = rest.split([v.numel() for v in vectors.values()])
    return {n: p.reshape(v.shape) for (n, v), p in zip(vectors.items(), parts, strict=True)}


@torch.no_grad()
def _returned(
    model: nn.Module,
    group: ScalingGroup | LinearGroup,
    element: ScalingElement | LinearElement,
    weights: Mapping[str, Tensor],
) -> ScalingElement | LinearElement:
    """Product of an element and others that lead weights back onto the manifolds of a model.

    For scalings, these are the factors of the projections. For linear maps, steps of Gauss and
    Newton in the whole group take the normal component of the moved weights away.
    """
    constrained = {n: m for n, m in manifolds(model).items() if n in element.parameters}
    if isinstance(element, ScalingElement):
        for name, manifold in constrained.items():
            away, dim = element.apply(name, weights[name]), manifold.slices.dim
            ratio = manifold.slices.inner(manifold.projx(away), away)
            ratio = ratio / manifold.slices.inner(away, away)
            where = Slice(name, None) if dim is None else (name, dim)
            element = element * ScalingElement({where: ratio.flatten().nan_to_num(1.0)})
        return element
    assert isinstance(group, LinearGroup)
    for _ in range(_RETURN):
        y = {n: element.apply(n, weights[n]) for n in constrained}
        x = {n: m.projx(y[n]) for n, m in constrained.items()}
        rest = torch.cat([torch.zeros(1).double(), *((y[n] - x[n]).flatten() for n in constrained)])
        if float(rest.norm()) <= 1e-13 * math.sqrt(len(rest)):
            break
        columns = torch.stack([_normal_part(g, x, constrained) for g in group.generators], dim=1)
        solved = torch.linalg.lstsq(columns, -rest[:, None], rcond=1e-9, driver="gelsd").solution
        element = group.element(group.bounded(solved[:, 0], 1.0)) * element
    return element


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
