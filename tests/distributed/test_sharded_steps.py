"""A step of sharded weights is that of one process."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from layers import Layers, declare, split, train
from ranks import Ranks, mesh
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import manifoldnet as mn

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9, "maximize": True}),
    "dampened": (mn.RiemannianSGD, {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (mn.RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    # Of whole tensors "rms" makes steps of many turns, in which roundings grow.
    "adam": (mn.RiemannianAdam, {"slice_scale": "norm"}),
    "amsgrad": (mn.RiemannianAdam, {"amsgrad": True, "slice_scale": "rms"}),
}


def _constrained(make: Any) -> Any:
    return lambda params, **options: mn.constrain(make(params, **options))


# Of these only the steps through the frame and back are ours.
CONSTRAINED: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (_constrained(torch.optim.SGD), {"momentum": 0.9}),
    "AdamW": (_constrained(torch.optim.AdamW), {"weight_decay": 0.1}),
}
PATHS: dict[str, dict[str, Any]] = {
    "reference": {"foreach": False},
    "torch": {},
    "kernel": {"fused": True},
}
STEPS = 3
Shape = tuple[int, ...]
# Two small ones alike, an uneven one, some with fewer rows or columns than processes.
SMALL: tuple[Shape, ...] = ((8, 6), (8, 6), (7, 5), (1, 4), (4, 1))

LINES: dict[str, list[Any]] = {
    "rows": [Shard(0)],
    "columns": [Shard(1)],
    "copies": [Replicate()],
}
MESHES: dict[str, list[Any]] = {
    "hybrid": [Replicate(), Shard(0)],
    "both": [Shard(0), Shard(1)],
}


GEOMETRIES: list[mn.Manifold] = [
    make(dim)
    for dim in (0, 1, None)
    for make in (
        mn.Oblique,
        lambda dim: mn.Oblique(dim, 2.0, "geodesic"),
        mn.ScaledEuclidean,
        lambda dim: mn.ScaledEuclidean(dim, "additive"),
    )
]


class Net(nn.Module):
    """Declared weights of some shapes and a free one."""

    def __init__(self, manifold: mn.Manifold, shapes: list[Shape]) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        for i, shape in enumerate(shapes):
            if not manifold.check_point(torch.empty(shape, device="meta")):
                continue  # a unit vector of one number has nowhere to go
            w = torch.randn(shape, generator=source, dtype=torch.float64)
            self.register_parameter(f"w{i}", nn.Parameter(manifold.projx(w)))
            mn.declare(self, f"w{i}", manifold)
        self.free = nn.Parameter(torch.randn(6, 3, generator=source, dtype=torch.float64))


def _steps(
    net: nn.Module, kind: str, path: str, steps: int, place: Any = None
) -> tuple[dict[str, Tensor], Any]:
    """The weights after some steps with gradients that depend on the weights."""
    make, options = (ALGORITHMS | CONSTRAINED)[kind]
    optimizer = make(mn.param_groups(net), lr=0.05, **options, **PATHS[path])
    for step in range(steps):
        for i, p in enumerate(net.parameters()):
            source = torch.Generator().manual_seed(10**6 + 100 * step + i)
            # Steps of the scaled metric are as long as weight times gradient.
            g = torch.randn(p.shape, generator=source, dtype=torch.float64) / p.numel() ** 0.75
            g = g if place is None else place(g)
            p.grad = g + p.detach() / p.numel()
        optimizer.step()
    return {name: _whole(p) for name, p in net.named_parameters()}, optimizer


def _whole(p: Tensor) -> Tensor:
    x = p.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def _sharded(manifold: mn.Manifold, sizes: list[Shape], place: Any) -> Net:
    net = Net(manifold, sizes)
    for name, p in list(net.named_parameters()):
        setattr(net, name, nn.Parameter(place(p.detach())))
    return net


@cache
def _alone(manifold: mn.Manifold, sizes: tuple[Shape, ...], kind: str) -> dict[str, Tensor]:
    return _steps(Net(manifold, list(sizes)), kind, "reference", STEPS)[0]


def _here(
    manifold: mn.Manifold, sizes: tuple[Shape, ...], kind: str, path: str, placements: list[Any]
) -> dict[str, Tensor]:
    def place(x: Tensor) -> Tensor:
        return distribute_tensor(x, mesh(*(2,) * len(placements)), placements)

    return _steps(_sharded(manifold, list(sizes), place), kind, path, STEPS, place)[0]


def _check(
    ranks: Ranks,
    manifold: mn.Manifold,
    sizes: tuple[Shape, ...],
    path: str,
    placements: list[Any],
    kinds: Iterable[str] = ALGORITHMS,
) -> None:
    for kind in kinds:
        found = ranks.run(_here, manifold, sizes, kind, path, placements)
        alone = _alone(manifold, sizes, kind)
        for weights in found:
            for name, x in weights.items():
                off = float((x - alone[name]).abs().max() / alone[name].abs().max())
                assert off <= 1e-12, (kind, name, off)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("placements", [[Shard(0)], [Shard(1)]], ids=["rows", "columns"])
@pytest.mark.parametrize("manifold", [mn.Oblique(), mn.ScaledEuclidean(1), mn.Sphere()], ids=str)
def test_constrained_steps_on_two_processes(
    two: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(two, manifold, SMALL, path, placements, CONSTRAINED)


each_path = pytest.mark.parametrize("path", ["torch", "kernel"])
each_geometry = pytest.mark.parametrize("manifold", GEOMETRIES, ids=str)
lines = pytest.mark.parametrize("placements", LINES.values(), ids=LINES)
meshes = pytest.mark.parametrize("placements", MESHES.values(), ids=MESHES)


@each_path
@lines
@pytest.mark.parametrize("manifold", GEOMETRIES[::4], ids=str)
def test_small_weights_on_two_processes(
    two: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(two, manifold, SMALL, path, placements, ["momentum", "nesterov", "adam"])


@pytest.mark.parametrize("path", PATHS)
@lines
@pytest.mark.parametrize(
    "manifold", [mn.Oblique(zero_slices=(5,)), mn.ScaledEuclidean(1, zero_slices=(4,))], ids=str
)
def test_slices_that_stay_zero_are_numbered_in_the_whole(
    two: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(two, manifold, SMALL, path, placements, ["momentum", "adam"])


@lines
@pytest.mark.parametrize("dim", [0, 1])
def test_gains_and_directions_on_two_processes(two: Ranks, dim: int, placements: list[Any]) -> None:
    _check(two, mn.Polar(dim), SMALL, "torch", placements, ["momentum", "adam"])


@lines
@pytest.mark.parametrize("retraction", ["polar", "geodesic"])
def test_matrices_are_gathered_on_two_processes(
    two: Ranks, retraction: str, placements: list[Any]
) -> None:
    """Every process takes the step of the whole, by any path."""
    manifold = mn.Stiefel(retraction=retraction)
    _check(two, manifold, SMALL, "torch", placements, ["momentum", "amsgrad"])


@pytest.mark.slow
@each_path
@lines
@each_geometry
def test_every_geometry_on_two_processes(
    two: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(two, manifold, SMALL, path, placements)


@pytest.mark.thorough
@each_path
@meshes
@pytest.mark.parametrize("manifold", GEOMETRIES[::4], ids=str)
def test_small_weights_on_four_processes(
    four: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(four, manifold, SMALL, path, placements, ["momentum", "nesterov"])


@pytest.mark.slow
@each_path
@meshes
@each_geometry
def test_every_geometry_on_four_processes(
    four: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(four, manifold, SMALL, path, placements, ["momentum", "nesterov", "amsgrad"])


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["reference", "torch", "kernel"])
@lines
@pytest.mark.parametrize("manifold", GEOMETRIES[::5], ids=str)
def test_large_weights_on_two_processes(
    two: Ranks, manifold: mn.Manifold, placements: list[Any], path: str
) -> None:
    _check(two, manifold, ((700, 601),), path, placements, ["momentum", "adam"])


def _messages(manifold: mn.Manifold, kind: str, count: int) -> int:
    """The number of collectives of one step of many weights, sharded by rows."""

    def place(x: Tensor) -> Tensor:
        return distribute_tensor(x, mesh(), [Shard(0)])

    _, optimizer = _steps(_sharded(manifold, [(8, 6)] * count, place), kind, "torch", 1, place)
    with CommDebugMode() as messages:
        optimizer.step()
    return int(messages.get_total_counts())


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adam"])
def test_communication(two: Ranks, kind: str) -> None:
    """Rows need none; a message or three serve all columns of a step."""
    assert two.agreed(_messages, mn.Oblique(0), kind, 5) == 0
    assert 1 <= two.agreed(_messages, mn.Oblique(1), kind, 12) <= 3
    assert 1 <= two.agreed(_messages, mn.Sphere(), kind, 12) <= 3
    assert two.agreed(_messages, mn.ScaledEuclidean(1, "additive"), kind, 12) == 1


@pytest.mark.parametrize("kind", CONSTRAINED)
def test_communication_of_constrained_steps(two: Ranks, kind: str) -> None:
    """One message for the coordinates of gradients, and those of the retraction."""
    assert two.agreed(_messages, mn.Oblique(0), kind, 5) == 0
    assert 1 <= two.agreed(_messages, mn.Oblique(1), kind, 12) <= 4
    assert two.agreed(_messages, mn.ScaledEuclidean(1, "additive"), kind, 12) == 2


# --- as trainers shard ------------------------------------------------------------------------


def _optimizer(net: nn.Module, kind: str, path: str) -> Any:
    make, options = ALGORITHMS[kind]
    return make(mn.param_groups(net), lr=0.05, **options, **PATHS[path])


def _trained(how: str, kind: str, path: str, before: bool = True) -> dict[str, Tensor]:
    net = Layers()
    if before:
        declare(net)
        net = split(net, how)
    else:
        net = split(net, how)
        declare(net)
    train(net, _optimizer(net, kind, path), STEPS)
    return {name: _whole(p) for name, p in net.named_parameters()}


@cache
def _trained_alone(kind: str, steps: int = STEPS) -> dict[str, Tensor]:
    net = Layers()
    declare(net)
    train(net, _optimizer(net, kind, "reference"), steps)
    return {name: p.detach() for name, p in net.named_parameters()}


def _same(found: dict[str, Tensor], alone: dict[str, Tensor]) -> None:
    for name, x in alone.items():
        assert float((found[name] - x).abs().max()) <= 1e-12 * float(x.abs().max()), name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("how", ["full", "tensor"])
def test_trainers_on_two_processes(two: Ranks, how: str, kind: str, path: str) -> None:
    for found in two.run(_trained, how, kind, path):
        _same(found, _trained_alone(kind))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("how", ["hybrid", "both"])
def test_trainers_on_four_processes(four: Ranks, how: str, kind: str, path: str) -> None:
    for found in four.run(_trained, how, kind, path):
        _same(found, _trained_alone(kind))


def _compiled(kind: str) -> dict[str, Tensor]:
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a")
    net = Layers()
    declare(net)
    split(net, "full")
    optimizer = _optimizer(net, kind, "torch")
    optimizer.step = torch.compile(optimizer.step)
    train(net, optimizer, 3)
    return {name: _whole(p) for name, p in net.named_parameters()}


@pytest.mark.slow
def test_a_compiled_step_of_sharded_weights() -> None:
    with Ranks(2, limit=300, grace=120) as two:
        for found in two.run(_compiled, "momentum"):
            _same(found, _trained_alone("momentum", 3))


def test_weights_are_declared_before_or_after_they_are_sharded(two: Ranks) -> None:
    for found in two.run(_trained, "full", "momentum", "torch", before=False):
        _same(found, _trained_alone("momentum"))


def _resumed(kind: str, path: str, how: str) -> dict[str, Tensor]:
    """Steps after momentum was put into the state in other forms than a step leaves it in."""
    net = Layers()
    declare(net)
    split(net, "full")
    optimizer = _optimizer(net, kind, path)
    train(net, optimizer, 2)
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, DTensor):
                continue
            whole = value.full_tensor()
            if how == "plain":
                state[key] = whole
            elif how == "replicated":
                state[key] = distribute_tensor(whole, value.device_mesh, [Replicate()])
            elif value.ndim == 2:
                transposed = value.to_local().t().contiguous().t()
                state[key] = (
                    DTensor.from_local(
                        transposed,
                        value.device_mesh,
                        value.placements,
                        shape=p.shape,
                        stride=p.stride(),
                    )
                    if value.shape == p.shape
                    else value
                )
    train(net, optimizer, STEPS - 2, 2)
    return {name: _whole(p) for name, p in net.named_parameters()}


@pytest.mark.parametrize("how", ["plain", "replicated", "transposed"])
@pytest.mark.parametrize("path", ["torch", "kernel"])
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_state_in_other_forms_is_put_in_place(two: Ranks, kind: str, path: str, how: str) -> None:
    for found in two.run(_resumed, kind, path, how):
        _same(found, _trained_alone(kind))


def _odd_gradients(path: str) -> str:
    net = Layers()
    declare(net)
    split(net, "full")
    optimizer = _optimizer(net, "momentum", path)
    before = {name: _whole(p) for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.rows.weight.grad = torch.ones(8, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    for name, p in net.named_parameters():
        assert torch.equal(_whole(p), before[name])
    return str(caught.value)


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_a_whole_gradient_of_a_sharded_weight_is_refused(two: Ranks, path: str) -> None:
    assert "rows.weight" in two.agreed(_odd_gradients, path)


def _watched() -> list[str]:
    """The warnings of a step that is followed by a look, with a zero slice on one process."""
    net = Layers()
    declare(net)
    split(net, "full")
    optimizer = _optimizer(net, "momentum", "torch")
    train(net, optimizer, 1)
    with torch.no_grad():
        net.rows.weight.to_local()[1:].mul_(0 if dist.get_rank() == 1 else 1)
    optimizer._steps = 199
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mn.optim.ZeroSliceWarning)
        train(net, optimizer, 1, 1)
        optimizer._steps = 200
        train(net, optimizer, 1, 2)
    return [str(w.message) for w in caught if w.category is mn.optim.ZeroSliceWarning]


def test_norms_are_watched_on_all_processes_alike(two: Ranks) -> None:
    (told,) = two.agreed(_watched)
    assert "rows.weight" in told
    assert "3 of 8 slices" in told


def _continued(folder: str, number: int, kind: str) -> dict[str, Tensor]:
    """Two steps from the checkpoint that was saved before (number > 0); then it is saved."""
    net = Layers()
    declare(net)
    if dist.get_world_size() > 1:
        net = split(net, "full")
    optimizer = _optimizer(net, kind, "torch")
    if number:
        weights, state = get_state_dict(net, optimizer)
        dcp.load({"net": weights, "optimizer": state}, checkpoint_id=f"{folder}/{number - 1}")
        set_state_dict(net, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(net, optimizer, 2, 2 * number)
    weights, state = get_state_dict(net, optimizer)
    dcp.save({"net": weights, "optimizer": state}, checkpoint_id=f"{folder}/{number}")
    return {name: _whole(p) for name, p in net.named_parameters()}


@pytest.mark.parametrize("kind", ["momentum", "adam", "amsgrad"])
def test_checkpoints_are_resharded(two: Ranks, four: Ranks, kind: str, tmp_path: Path) -> None:
    """Two processes, then four, then one."""
    with Ranks(1) as one:
        for number, ranks in enumerate((two, four, one)):
            for found in ranks.run(_continued, str(tmp_path), number, kind):
                _same(found, _trained_alone(kind, 2 * number + 2))
