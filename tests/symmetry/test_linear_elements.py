"""Elements of linear groups: reparameterization, errors of invariance, assertions, strategies."""

import pytest
import torch
from cases import source
from hypothesis import given, settings
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import manifoldnet as mn
from manifoldnet.symmetry import (
    LinearElement,
    LinearGenerator,
    LinearGroup,
    ScalingElement,
    Slice,
    invariance_error,
    reparameterize,
)
from manifoldnet.testing import (
    assert_loss_invariant,
    assert_metric_invariant,
    assert_trajectory_invariant,
    assert_update_equivariant,
    elements,
    reparameterized,
)


def chain(*between: nn.Module, bias: bool = False) -> nn.Sequential:
    """5-3-3, with layers in between."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 3, bias), *between, nn.Linear(3, 3, bias)).double()


def batch(size: int = 24):
    x = torch.randn(size, 5, dtype=torch.float64, generator=source(1))
    return x, torch.arange(size) % 3


def between(first: str, second: str, n: int = 3) -> list[LinearGenerator]:
    """GL(n): E on the rows of one weight, −E on the columns of the other, E all unit matrices."""
    found = []
    for i in range(n):
        for j in range(n):
            unit = torch.zeros(n, n, dtype=torch.float64)
            unit[i, j] = 1.0
            found.append(LinearGenerator({first: unit}, {second: -unit}, name=f"GL({n})"))
    return found


def skew(generators: list[LinearGenerator], n: int = 3) -> list[LinearGenerator]:
    """O(n): differences E_ij − E_ji."""
    found = []
    for i in range(n):
        for j in range(i):
            a, b = generators[n * i + j], generators[n * j + i]
            left = {name: m - b.left[name] for name, m in a.left.items()}
            right = {name: m - b.right[name] for name, m in a.right.items()}
            found.append(LinearGenerator(left, right, name=f"O({n})"))
    return found


MODEL = chain()
GL = LinearGroup.of(MODEL, between("0.weight", "1.weight"))
ROTATIONS = LinearGroup.of(MODEL, skew(between("0.weight", "1.weight")))
BATCH = batch()


def paired() -> nn.Sequential:
    """The same weights, declared as one pair: W₁ W₀ up to GL(3)."""
    model = chain()
    mn.declare(model, mn.Pair("1.weight", "0.weight"))
    return model


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def riemannian(model):
    return mn.RiemannianSGD(mn.param_groups(model), lr=1e-2, momentum=0.9)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_rotations_are_isometries_and_general_maps_are_not():
    """SGD is steepest descent in the Euclidean metric, which O(3) leaves as it is."""
    assert_loss_invariant(MODEL, GL, cross_entropy, BATCH)
    assert_metric_invariant(MODEL, ROTATIONS)
    assert assert_update_equivariant(MODEL, ROTATIONS, cross_entropy, BATCH, sgd, steps=2) < 1e-12
    error = assert_trajectory_invariant(MODEL, ROTATIONS, cross_entropy, [BATCH], sgd, steps=20)
    assert error < 1e-12
    with pytest.raises(AssertionError, match=r"metric is not invariant.*\n.*GL\(3\)"):
        assert_metric_invariant(MODEL, GL)
    for make in (sgd, adam):
        with pytest.raises(AssertionError, match="update is not equivariant"):
            assert_update_equivariant(MODEL, GL, cross_entropy, BATCH, make)
    with pytest.raises(AssertionError, match="update is not equivariant"):
        assert_update_equivariant(MODEL, ROTATIONS, cross_entropy, BATCH, adam)


def test_pairs_have_the_whole_group():
    model = paired()
    assert assert_metric_invariant(model, GL) < 1e-12
    assert assert_update_equivariant(model, GL, cross_entropy, BATCH, riemannian, steps=3) < 1e-9
    error = assert_trajectory_invariant(model, GL, cross_entropy, [BATCH], riemannian, steps=30)
    assert error < 1e-9
    element = GL.sample(generator=source(2))
    assert mn.manifolds(reparameterize(model, element)) == mn.manifolds(model)


def test_a_failure_names_few_generators_and_the_effect():
    with pytest.raises(AssertionError) as caught:
        assert_update_equivariant(MODEL, GL, cross_entropy, BATCH, sgd)
    message = str(caught.value)
    assert "under GL(3) (generator " in message
    assert "of 9) with t = 1\n" in message
    assert "singular values of the map from " in message
    false = LinearGenerator({"0.weight": torch.diag(torch.tensor([0.0, 1, 0]))}, name="false")
    with pytest.raises(AssertionError, match=r"under false with t = 1\n"):
        assert_loss_invariant(
            MODEL, LinearGroup.of(MODEL, [*GL.generators, false]), cross_entropy, BATCH
        )


def test_translations_move_the_origin():
    """The logits' common bias has no effect on cross-entropy: L and S act in this order."""
    model = chain(bias=True)
    shift = LinearGenerator(translation={"1.bias": torch.ones(3)}, name="shift")
    both = LinearGroup.of(model, [*between("0.weight", "1.weight"), shift])
    broken = LinearGroup.of(model, [shift])
    with pytest.raises(AssertionError, match="loss is not invariant"):
        assert_loss_invariant(model, both, cross_entropy, BATCH)  # the first bias stays
    assert assert_update_equivariant(model, broken, cross_entropy, BATCH, adam, rtol=1.0) < 1.0
    no_decay = torch.optim.Adam
    assert_trajectory_invariant(
        model, broken, cross_entropy, [BATCH], lambda m: no_decay(m.parameters()), steps=10
    )
    element = shift.element(2.0)
    moved = reparameterize(model, element)
    torch.testing.assert_close(moved[1].bias, model[1].bias + 2)
    back = reparameterize(moved, element.inverse())
    torch.testing.assert_close(back[1].bias, model[1].bias)


def test_metric_of_declared_weights():
    """Rotations of columns keep the norms of rows, and so unit norms and the scaled metric."""
    model = chain()
    mn.declare(model, "1.weight", mn.Oblique(), project=True)
    columns = [LinearGenerator({}, {"1.weight": g.right["1.weight"]}) for g in ROTATIONS.generators]
    group = LinearGroup.of(model, columns)
    assert assert_metric_invariant(model, group) < 1e-12
    reparameterize(model, group.sample(generator=source(1)))
    with pytest.raises(ValueError, match="off its manifold"):
        reparameterize(model, GL.sample(generator=source(1)))
    mn.declare(model, "0.weight", mn.ScaledEuclidean(dim=0))
    assert invariance_error.metric(model, ROTATIONS.sample(generator=source(1))) > 1e-3


def test_pair_with_a_partner_elsewhere():
    model = paired()
    part = nn.Sequential()
    part.append(model[0])
    element = LinearElement({"0.weight": 2 * torch.eye(3)})
    with pytest.raises(ValueError, match="partner is not in this model"):
        invariance_error.metric(part, element)


def test_differential_and_gradient_of_scalings_are_those_of_linear_maps():
    """⟨gradient, differential⟩ is ⟨g, u⟩: one law for both kinds of elements."""
    scaling = ScalingElement({Slice("w", 0, 1): 3.0, Slice("w", 1, 0): 0.5})
    linear = LinearElement(
        {"w": torch.diag(torch.tensor([1.0, 3.0]))}, {"w": torch.diag(torch.tensor([0.5, 1, 1]))}
    )
    general = LinearElement({"w": torch.randn(2, 2)}, {"w": torch.randn(3, 3)})
    u, g = (torch.randn(2, 3, dtype=torch.float64) for _ in range(2))
    for each in (scaling, linear, general):
        torch.testing.assert_close(
            (each.gradient("w", g) * each.differential("w", u)).sum(), (g * u).sum()
        )
    torch.testing.assert_close(scaling.gradient("w", g), linear.gradient("w", g))
    torch.testing.assert_close(scaling.differential("w", u), linear.differential("w", u))


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="LinearGroup"):
        assert_loss_invariant(MODEL, MODEL, cross_entropy, BATCH)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LinearGroup"):
        elements(MODEL)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="powers_of_two"):
        elements(GL, powers_of_two=True)
    empty = LinearGroup.of(MODEL, [])
    with pytest.raises(ValueError, match="nothing to check"):
        assert_loss_invariant(MODEL, empty, cross_entropy, BATCH)
    with pytest.raises(ValueError, match="there are no elements"):
        elements(empty)


def test_groups_contain_groups_and_their_scalings():
    assert ROTATIONS in GL
    assert GL not in ROTATIONS
    assert GL.scalings in GL
    assert GL.scalings.nontrivial.dimension == 3
    assert ROTATIONS.scalings.dimension == 0
    with pytest.raises(TypeError, match=r"invariance_error\.loss"):
        assert GL.sample() in GL


# --- strategies -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(element=elements(GL, smallest=1e-2, largest=1e2))
def test_elements_have_a_bounded_condition_number(element):
    for m in (*element.left.values(), *element.right.values()):
        assert float(torch.linalg.cond(m)) <= 1.0001e4
    assert_loss_invariant(MODEL, element, cross_entropy, BATCH)


@settings(max_examples=10)
@given(drawn=reparameterized(chain(), GL, smallest=0.1, largest=10))
def test_reparameterized_models_compute_the_same(drawn):
    moved, element = drawn
    torch.testing.assert_close(moved(BATCH[0]), MODEL(BATCH[0]), rtol=1e-9, atol=1e-10)
    back = reparameterize(moved, element.inverse())
    torch.testing.assert_close(back[0].weight, MODEL[0].weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lora_factors_under_general_maps(dtype):
    """(B S, S⁻¹ A) of a product B A: a run of the pair has one course; SGD's has not."""
    model = chain().to(dtype)
    mn.declare(model, mn.Pair("1.weight", "0.weight"))
    x = torch.randn(16, 5, dtype=dtype, generator=source(3))
    data = (x, torch.randn(16, 3, dtype=dtype, generator=source(4)))
    assert_trajectory_invariant(model, GL, mse_loss, [data], riemannian, steps=20)
