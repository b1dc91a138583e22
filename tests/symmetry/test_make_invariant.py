"""Optimizers in the moving frame: runs commute with the whole group."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import manifoldnet as mn
from manifoldnet.optim import Muon
from manifoldnet.symmetry import (
    ScalingGroup,
    invariance_error,
    make_invariant,
    moving_frame,
    reparameterize,
    without_eps,
)
from manifoldnet.symmetry.balance import balancing_scales, weights_of
from manifoldnet.symmetry.moving_frame import descent
from manifoldnet.symmetry.orbit import Orbit
from manifoldnet.symmetry.replay import run
from manifoldnet.testing import assert_trajectory_invariant, elements
from tests.symmetry.nets import NETS

SCALED = sorted(name for name, make in NETS.items() if make().generators)


def split(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    adamw = [torch.optim.AdamW(others, lr=3e-3, eps=1e-4)] if others else []
    return [Muon(matrices, lr=1e-2), *adamw]


class Both(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, stepped together."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([p for o in parts for g in o.param_groups for p in g["params"]], {})

    def step(self, closure=None):
        for part in self.parts:
            part.step()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


# Adam's eps is above most of the rounding of gradients that are zero (biases of keys, or before a
# normalization), which it else makes steps of: in the loss they do not show.
FACTORIES = {
    "sgd": lambda m, g: make_invariant(
        torch.optim.SGD(trainable(m), lr=1e-2, momentum=0.9, weight_decay=1e-2), m, g
    ),
    "adamw": lambda m, g: make_invariant(
        torch.optim.AdamW(trainable(m), lr=3e-3, weight_decay=0.1, eps=1e-4), m, g
    ),
    "muon": lambda m, g: Both(make_invariant(split(m), m, g)),
}


def prepared(name: str):
    net = NETS[name]()
    model = net.model.double()
    given = net.given.double() if net.given.is_floating_point() else net.given
    target = net.target
    if target.is_floating_point():
        target = target.double()
    return model, ScalingGroup.of(model, net.generators), net.loss_fn, [(given, target)]


@pytest.mark.parametrize("name", SCALED)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_steps_commute_with_the_group(name: str, data: st.DataObject):
    model, group, loss_fn, batches = prepared(name)
    optimizer = data.draw(st.sampled_from(sorted(FACTORIES)))
    element = data.draw(elements(group, smallest=1e-3, largest=1e3))
    scaled = reparameterize(model, element)
    losses = []
    for each in (model, scaled):
        with without_eps(each):
            made = run(each, loss_fn, batches, lambda m: FACTORIES[optimizer](m, group), steps=8)
        losses.append(torch.tensor(made.losses, dtype=torch.float64))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)


LONG = [n for n in ("relu", "arch1_depth_4", "arch2", "arch2_depth_4") if n in NETS]


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", FACTORIES)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("steps", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_whole_runs_commute_with_the_group(name: str, optimizer: str, steps: int):
    model, group, loss_fn, batches = prepared(name)
    element = group.sample(generator=torch.Generator().manual_seed(5), spread=6.9)  # up to 1e3
    with without_eps(model):
        assert_trajectory_invariant(
            model, element, loss_fn, batches, lambda m: FACTORIES[optimizer](m, group), steps=steps
        )


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("name", ["relu", "arch2"])
def test_runs_in_a_narrow_type_agree_to_its_rounding(name: str, dtype: torch.dtype, most: float):
    model, group, loss_fn, batches = prepared(name)
    model, batches = model.to(dtype), [(x.to(dtype), y) for x, y in batches]
    element = group.sample(generator=torch.Generator().manual_seed(0), spread=3.0)
    scaled = reparameterize(model, element)

    def framed(m: nn.Module) -> torch.optim.Optimizer:
        return make_invariant(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), m, group)

    def plain(m: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)

    differences = []
    for make in (framed, plain):
        with without_eps(model), without_eps(scaled):
            runs = [
                torch.tensor(run(each, loss_fn, batches, make, steps=12).losses)
                for each in (model, scaled)
            ]
        steps = min(map(len, runs))  # the plain one may end early
        differences.append(
            float(((runs[0][:steps] - runs[1][:steps]) / runs[0][:steps]).abs().max())
        )
    assert differences[0] <= most
    assert not differences[1] <= 3 * most


def test_without_the_frame_runs_differ():
    model, group, loss_fn, batches = prepared("relu")
    element = group.sample(generator=torch.Generator().manual_seed(0), spread=6.9)
    error = invariance_error.trajectory(
        model, element, loss_fn, batches, lambda m: torch.optim.AdamW(m.parameters()), steps=20
    )
    assert error > 1e-2


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, batches, loss_fn) -> float:
    optimizer.zero_grad()
    loss = loss_fn(model(batches[0][0]), batches[0][1])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_a_resumed_run_is_the_same_bit_for_bit():
    model, group, loss_fn, batches = prepared("arch2")
    optimizer = make_invariant(torch.optim.AdamW(model.parameters(), lr=1e-2), model, group)
    for _ in range(5):
        one_step(model, optimizer, batches, loss_fn)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses = [one_step(model, optimizer, batches, loss_fn) for _ in range(5)]
    again, _, _, _ = prepared("arch2")
    other = make_invariant(torch.optim.AdamW(again.parameters(), lr=1e-2), again, group)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert [one_step(again, other, batches, loss_fn) for _ in range(5)] == losses


def twins(name: str = "relu"):
    """A model and the same rescaled, each with SGD in the frame."""
    model, group, loss_fn, batches = prepared(name)
    element = group.sample(generator=torch.Generator().manual_seed(3), spread=3.0)
    models = model, reparameterize(model, element)
    made = [
        make_invariant(torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9), m, group)
        for m in models
    ]
    return models, made, element, loss_fn, batches


def both_losses(models, made, loss_fn, batches, steps: int) -> tuple[list[float], list[float]]:
    one, other = (
        [one_step(m, o, batches, loss_fn) for _ in range(steps)]
        for m, o in zip(models, made, strict=True)
    )
    return one, other


def test_weights_that_are_rescaled_during_a_run():
    models, made, _, loss_fn, batches = twins()
    group = prepared("relu")[1]
    element = group.sample(generator=torch.Generator().manual_seed(8), spread=6.9)
    both_losses(models, made, loss_fn, batches, 4)
    reparameterize(models[1], element, in_place=True)
    one, other = both_losses(models, made, loss_fn, batches, 6)
    # The frame is found anew in one of them, and carried along in the other.
    assert other[0] == pytest.approx(one[0], rel=1e-12)
    assert other == pytest.approx(one, rel=0.05)


def test_weights_that_are_loaded_after_the_frame_was_made():
    models, made, _, loss_fn, batches = twins()
    group = prepared("relu")[1]
    element = group.sample(generator=torch.Generator().manual_seed(8), spread=6.9)
    models[1].load_state_dict(reparameterize(models[1], element).state_dict())
    one, other = both_losses(models, made, loss_fn, batches, 8)
    assert other == pytest.approx(one, rel=1e-10)


def test_among_several_processes_no_rank_decides_alone(monkeypatch: pytest.MonkeyPatch):
    """The first rank averages weights and puts them back, the second does not."""
    models, made, _, loss_fn, batches = twins()
    monkeypatch.setattr("manifoldnet.symmetry.moving_frame._several_processes", lambda: True)
    both_losses(models, made, loss_fn, batches, 3)
    other = copy.deepcopy((models[0], made[0]))
    kept = copy.deepcopy(models[0].state_dict())
    for p in models[0].parameters():
        p.data.mul_(2.0)
    models[0].load_state_dict(kept)
    with pytest.warns(UserWarning, match="several processes"):
        one_step(models[0], made[0], batches, loss_fn)
    one_step(*other, batches, loss_fn)
    for p, q in zip(models[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)


def clipped(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    optimizer.register_step_pre_hook(
        lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 0.1) and None
    )
    return optimizer


def test_gradients_clipped_in_the_frame():
    model, group, loss_fn, batches = prepared("relu")
    element = group.sample(generator=torch.Generator().manual_seed(3), spread=6.9)

    def inside(m: nn.Module) -> torch.optim.Optimizer:
        return clipped(make_invariant(torch.optim.SGD(m.parameters(), lr=0.1), m, group), m)

    def before(m: nn.Module) -> torch.optim.Optimizer:
        return make_invariant(clipped(torch.optim.SGD(m.parameters(), lr=0.1), m), m, group)

    assert_trajectory_invariant(model, element, loss_fn, batches, inside, steps=20, rtol=1e-10)
    assert invariance_error.trajectory(model, element, loss_fn, batches, before, steps=20) > 1e-3


def test_a_checkpoint_that_is_refused_leaves_the_frame():
    models, made, _, loss_fn, batches = twins()
    good = copy.deepcopy(made[0].state_dict())
    one_step(models[0], made[0], batches, loss_fn)
    now = copy.deepcopy(made[0].state_dict()["moving_frame"])
    for wrong in (
        good | {"param_groups": good["param_groups"] * 2},
        good | {"moving_frame": good["moving_frame"] | {"log_scales": torch.zeros(1)}},
    ):
        with pytest.raises(ValueError, match="group|damaged"):
            made[0].load_state_dict(wrong)
        assert torch.equal(made[0].state_dict()["moving_frame"]["log_scales"], now["log_scales"])


def test_checkpoints_of_another_frame():
    model, group, _, _ = prepared("relu")
    optimizer = make_invariant(torch.optim.SGD(model.parameters(), lr=0.1), model, group)
    with pytest.warns(UserWarning, match="no moving frame"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    part = make_invariant(torch.optim.SGD(model.parameters(), lr=0.1), model, group.subgroup([0]))
    with pytest.raises(ValueError, match="another model or group"):
        part.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_the_frame(copied):
    model, group, loss_fn, batches = prepared("relu")
    optimizer = make_invariant(torch.optim.AdamW(model.parameters(), lr=1e-2), model, group)
    twin, other = copied((model, optimizer))
    for _ in range(3):
        one_step(model, optimizer, batches, loss_fn)
        one_step(twin, other, batches, loss_fn)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gradients_and_weights_are_put_back_when_a_step_fails():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(3.0)
            raise RuntimeError("out of luck")

    model, group, loss_fn, batches = prepared("relu")
    optimizer = make_invariant(Failing(model.parameters(), lr=0.1), model, group)
    loss_fn(model(batches[0][0]), batches[0][1]).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step()
    scaled = {where.parameter for g in group.generators for where in g.exponents}
    assert len(scaled) == 3
    for (name, p), (w, g) in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(p.grad, g)
        if name in scaled:
            assert torch.equal(p, w)


def test_closures_are_evaluated_once():
    model, group, loss_fn, batches = prepared("relu")
    optimizer = make_invariant(torch.optim.SGD(model.parameters(), lr=0.1), model, group)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(batches[0][0]), batches[0][1])
        loss.backward()
        calls.append(float(loss.detach()))
        return loss

    assert float(optimizer.step(closure).detach()) == calls[0]
    assert len(calls) == 1


def test_undeclared_weights_in_the_frame_beside_constrained_ones():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    ).double()
    group = ScalingGroup.of(model, NETS["three_layers"]().generators[:0])
    first = [
        mn.symmetry.Generator(
            {
                mn.symmetry.Slice("0.weight", 0, i): 1.0,
                mn.symmetry.Slice("0.bias", 0, i): 1.0,
                mn.symmetry.Slice("2.weight", 1, i): -1.0,
            }
        )
        for i in range(4)
    ]
    group = ScalingGroup.of(model, first)
    mn.declare(model, "4.weight", mn.Oblique(), project=True)
    batches = [(torch.randn(16, 5).double(), torch.randint(3, (16,)))]

    def make(m: nn.Module) -> torch.optim.Optimizer:
        return make_invariant(mn.constrain(torch.optim.AdamW(m.parameters(), lr=1e-2)), m, group)

    assert_trajectory_invariant(
        model, group, nn.functional.cross_entropy, batches, make, steps=20, rtol=1e-10
    )
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    with pytest.raises(ValueError, match=r"0\.weight is declared on Oblique"):
        make(model)


def test_refusals():
    model, group, _, _ = prepared("relu")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="Optimizer"):
        make_invariant(3, model, group)
    with pytest.raises(ValueError, match="LBFGS"):
        make_invariant(torch.optim.LBFGS(model.parameters()), model, group)
    with pytest.raises(ValueError, match="no generator"):
        make_invariant(sgd, model, ScalingGroup.of(model, []))
    with pytest.raises(ValueError, match=r"does not hold"):
        make_invariant(torch.optim.SGD([model[0].weight], lr=0.1), model, group)
    with pytest.raises(ValueError, match="group"):
        make_invariant(sgd, nn.Linear(2, 2), group)
    make_invariant(sgd, model, group)
    with pytest.raises(ValueError, match="already"):
        make_invariant(sgd, model, group)


def test_float32_and_half_types_train():
    for dtype in (torch.float32, torch.bfloat16):
        model, group, loss_fn, batches = prepared("relu")
        model = model.to(dtype)
        batch = [(batches[0][0].to(dtype), batches[0][1])]
        optimizer = make_invariant(torch.optim.AdamW(model.parameters(), lr=1e-2), model, group)
        losses = [one_step(model, optimizer, batch, loss_fn) for _ in range(50)]
        assert losses[-1] < losses[0]


# --- the frame ----------------------------------------------------------------------------------


def sums_of(orbit: Orbit, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sums of squares over all slices, slice by slice."""
    found = torch.zeros(orbit.slices, dtype=torch.float64)
    for (name, dim), where in orbit.axes.items():
        x = weights[name].double().square()
        x = x if dim is None else x.movedim(dim, 0)
        found[where] = x.reshape(where.stop - where.start, -1).sum(1)
    return found


def value(orbit: Orbit, weights: dict[str, torch.Tensor], s: torch.Tensor, c: torch.Tensor):
    logs = orbit.by_axis(orbit.logs(s))
    scaled = (w * orbit.log_factors(name, logs).exp() for name, w in weights.items())
    return sum(float(w.square().sum()) for w in scaled) / 2 - float(c @ s)


def recurrent_group(cell: nn.Module) -> ScalingGroup:
    """Rows and columns of one weight, which meet, with exponents of several sizes."""
    exponents = [
        {mn.symmetry.Slice("weight", 0, i): 2.0, mn.symmetry.Slice("weight", 1, i): -1.0}
        for i in range(3)
    ]
    return ScalingGroup.of(cell, [mn.symmetry.Generator(e) for e in exponents])


BOUNDED = ["relu", "arch2", "cubes", "roots", "tied_embedding", "recurrent"]


@pytest.mark.parametrize("name", BOUNDED)
def test_the_frame_moves_towards_the_balanced_weights(name: str):
    if name == "recurrent":
        model = nn.Linear(4, 4, bias=False).double()
        group = recurrent_group(model)
    else:
        model, group, _, _ = prepared(name)
    element = group.sample(generator=torch.Generator().manual_seed(3), spread=1.0)
    weights = weights_of(orbit := Orbit(group), reparameterize(model, element))
    c, s = orbit.targets(weights), torch.zeros(orbit.dimension, dtype=torch.float64)
    before = [value(orbit, weights, s, c)]
    for _ in range(30):
        logs = orbit.by_axis(orbit.logs(s))
        scaled = {n: w * orbit.log_factors(n, logs).exp() for n, w in weights.items()}
        s = s + descent(orbit, sums_of(orbit, scaled), c)
        before.append(value(orbit, weights, s, c))
    assert all(b <= a + 1e-12 * abs(a) for a, b in pairwise(before))
    least = value(orbit, weights, balancing_scales(orbit, weights), c)
    assert before[-1] - least < 0.2 * (before[0] - least) + 1e-12 * abs(least)


@pytest.mark.parametrize("name", SCALED)
def test_weights_of_float32_have_the_same_frame(name: str):
    model, group, _, _ = prepared(name)
    single = copy.deepcopy(model).float()
    frames = []
    for each in (model, single):
        optimizer = make_invariant(torch.optim.SGD(trainable(each), lr=0.0), each, group)
        for p in trainable(each):
            p.grad = torch.ones_like(p)
        kept = [p.detach().clone() for p in each.parameters()]
        for _ in range(3):
            optimizer.step()
        for p, w in zip(each.parameters(), kept, strict=True):
            assert torch.equal(p.detach(), w)  # without a step, nothing is rounded
        frames.append(optimizer.state_dict()["moving_frame"]["log_scales"])
    torch.testing.assert_close(frames[1], frames[0], rtol=0, atol=1e-4)


def test_large_weights_take_the_same_steps_in_parts(monkeypatch):
    """Rows at a time on a processor: nothing depends on how many."""
    ends = []
    for block in (1 << 19, 7):
        monkeypatch.setattr(moving_frame, "_BLOCK", block)
        model, group, loss_fn, batches = prepared("arch2_depth_4")
        optimizer = make_invariant(torch.optim.AdamW(model.parameters(), lr=1e-2), model, group)
        for _ in range(5):
            one_step(model, optimizer, batches, loss_fn)
        ends.append([p.detach() for p in model.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_step_that_breaks_off_while_it_begins_changes_nothing(monkeypatch):
    monkeypatch.setattr(moving_frame, "_BLOCK", 7)
    model, group, loss_fn, batches = prepared("arch2_depth_4")
    optimizer = make_invariant(torch.optim.SGD(model.parameters(), lr=0.1), model, group)
    loss_fn(model(batches[0][0]), batches[0][1]).backward()
    before = [(p, p.detach().clone(), p.grad, p.grad.clone()) for p in model.parameters()]
    calls = iter(range(9))
    divide = torch.div

    def interrupted(*args, **kwargs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return divide(*args, **kwargs)

    monkeypatch.setattr(torch, "div", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    for p, w, grad, g in before:
        assert torch.equal(p.detach(), w)
        assert p.grad is grad
        assert torch.equal(grad, g)
