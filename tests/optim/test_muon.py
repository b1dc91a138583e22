"""Muon: the polar factor, blocks, and agreement with torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import source
from torch import Tensor, nn

from manifoldnet.optim import Muon
from manifoldnet.optim.muon import polar_factor


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=source(seed), dtype=torch.float64).to(dtype)


def stepped(start: Tensor, grads: list[Tensor], named: str = "", **options: Any) -> Tensor:
    p = nn.Parameter(start.clone())
    optimizer = Muon([(named, p)] if named else [p], **options)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 5, 3)])
def test_the_polar_factor_is_orthogonal_and_nearest(shape: tuple[int, ...]) -> None:
    m = randn(*shape)
    q = polar_factor(m)
    small = q @ q.mT if shape[-2] <= shape[-1] else q.mT @ q
    assert torch.allclose(small, torch.eye(min(shape[-2:]), dtype=m.dtype), atol=1e-13)
    h = q.mT @ m if shape[-2] >= shape[-1] else m @ q.mT
    assert torch.allclose(h, h.mT, atol=1e-12)
    assert bool((torch.linalg.eigvalsh(h) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_of_rounding_are_left_out(dtype: torch.dtype) -> None:
    """A softmax head's gradient has rank n − 1: the last direction is noise."""
    m = randn(4, 6).to(dtype)
    m = m - m.mean(0)
    q = polar_factor(m)
    assert int((torch.linalg.svdvals(q) > 0.5).sum()) == 3
    assert torch.allclose(q, polar_factor(m * 3.7), atol=100 * torch.finfo(dtype).eps)
    assert not polar_factor(torch.zeros(3, 2)).any()
    assert polar_factor(m.bfloat16()).dtype == torch.float32


def test_what_is_not_finite_gives_nan() -> None:
    m = randn(2, 3, 4)
    m[0, 1, 2] = torch.inf
    q = polar_factor(m)
    assert bool(q[0].isnan().all())
    assert torch.equal(q[1], polar_factor(m[1]))


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_muon_but_for_the_polar_factor(nesterov: bool) -> None:
    start, grads = randn(6, 4), [randn(6, 4, seed=i) for i in (1, 2, 3)]
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.8, "nesterov": nesterov}
    w, b = start.clone(), torch.zeros_like(start)
    for g in grads:
        b = 0.8 * b + 0.2 * g
        u, _, vh = torch.linalg.svd(0.8 * b + 0.2 * g if nesterov else b, full_matrices=False)
        w = (1 - 0.1 * 0.2) * w - 0.1 * (6 / 4) ** 0.5 * (u @ vh)
    assert torch.allclose(stepped(start, grads, **options), w, atol=1e-13)
    p = nn.Parameter(start.float())
    optimizer = torch.optim.Muon([p], **options)
    for g in grads:
        p.grad = g.float()
        optimizer.step()
    # Its Newton–Schulz steps give singular values between .7 and 1.2.
    assert (p.detach() - w).norm() < 0.3 * (start - w).norm()


@pytest.mark.parametrize(("name", "factor"), [("match_rms_adamw", 0.2 * 6**0.5), ("none", 1.0)])
def test_the_rate_follows_the_shape(name: Any, factor: float) -> None:
    start, g = randn(6, 4), randn(6, 4, seed=1)
    end = stepped(start, [g], lr=0.1, weight_decay=0.0, momentum=0.0, adjust_lr_fn=name)
    assert torch.allclose(end, start - 0.1 * factor * polar_factor(g), atol=1e-13)


def test_kernels_are_out_by_rest() -> None:
    start, g = randn(6, 2, 3, 3), randn(6, 2, 3, 3, seed=1)
    flat = stepped(start.flatten(1), [g.flatten(1)])
    assert torch.equal(stepped(start, [g]).flatten(1), flat)


@pytest.mark.parametrize(
    ("shape", "blocks", "parts"),
    [
        ((6, 4), 3, lambda x: x.chunk(3)),
        ((6, 4), (1, 2), lambda x: x.chunk(2, 1)),
        ((6, 4), (3, 2), lambda x: [c for r in x.chunk(3) for c in r.chunk(2, 1)]),
        ((3, 5, 4), 3, lambda x: list(x)),
        ((6, 2, 3), 3, lambda x: [c.flatten(1) for c in x.chunk(3)]),
    ],
)
def test_blocks_are_stepped_alone(shape: Any, blocks: Any, parts: Any) -> None:
    start, grads = randn(*shape), [randn(*shape, seed=i) for i in (1, 2)]
    whole = parts(stepped(start, grads, blocks=blocks))
    alone = [
        stepped(x, list(g)) for x, *g in zip(parts(start), *(parts(g) for g in grads), strict=True)
    ]
    for a, b in zip(whole, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-13)


def test_blocks_by_name() -> None:
    start, g = randn(6, 4), randn(6, 4, seed=1)
    by_name = stepped(start, [g], "block.qkv.weight", blocks={"*.qkv.weight": 3})
    assert torch.equal(by_name, stepped(start, [g], blocks=3))


def test_it_resumes_and_copies() -> None:
    p = nn.Parameter(randn(6, 4))
    optimizer = Muon([("w", p)], blocks={"w": 2})
    p.grad = randn(6, 4, seed=1)
    optimizer.step()
    q, other = copy.deepcopy((p, optimizer))
    again = Muon([("w", r := nn.Parameter(p.detach().clone()))], blocks={"w": 2})
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for w, o in ((p, optimizer), (q, other), (r, again)):
        w.grad = randn(6, 4, seed=2)
        o.step()
    assert torch.equal(p, q)
    assert torch.equal(p, r)


@pytest.mark.parametrize(
    ("shape", "options", "error"),
    [
        ((4,), {}, ValueError),
        ((6, 4), {"blocks": 4}, ValueError),
        ((6, 4), {"blocks": (1, 3)}, ValueError),
        ((6, 4), {"blocks": 0}, ValueError),
        ((6, 4), {"blocks": 1.5}, TypeError),
        ((6, 4), {"blocks": {"*.qkv": 3}}, ValueError),
        ((6, 4), {"lr": -1.0}, ValueError),
        ((6, 4), {"momentum": 1.0}, ValueError),
        ((6, 4), {"weight_decay": -1.0}, ValueError),
        ((6, 4), {"adjust_lr_fn": "other"}, ValueError),
    ],
)
def test_bad_input_is_refused(shape: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Muon([nn.Parameter(randn(*shape))], **options)


def test_names_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="qkv"):
        Muon([("a.qkv", nn.Parameter(randn(6, 4)))], blocks={"a.*": 2, "*.qkv": 3})
