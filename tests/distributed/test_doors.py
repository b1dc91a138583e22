"""Checks of sharded weights: every rank gives the answer that one process gives of the whole."""

from collections.abc import Callable, Iterable
from typing import Any

import geoopt
import pytest
import torch
from ranks import Ranks, mesh, rank
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import manifoldnet as mn
from manifoldnet.geometry.settled import copy_into, settle
from manifoldnet.optim.overflow import overflowing, zero_slices

# What a weight is cut along. Two processes: rows by FSDP, columns. Four: replicas of two halves
# (HSDP), both dimensions, and FSDP on top of tensor parallelism, whose rows are strided.
TWO = ("rows", "columns", "copies")
FOUR = ("rows", "hsdp", "grid", "strided", "rowwise")

# Even and uneven parts, and empty ones: fewer rows than processes.
SHAPES = {"even": (6, 4), "uneven": (5, 3), "empty": (1, 4)}

MANIFOLDS = [
    mn.Oblique(0),
    mn.Oblique(1),
    mn.Sphere(2.0),
    mn.ScaledEuclidean(0, "additive"),
    mn.ScaledEuclidean(1),
    mn.ScaledEuclidean(None),
    mn.Oblique(zero_slices=(0, 3)),
    mn.ScaledEuclidean(1, zero_slices=(2,)),
    mn.Polar(),
    mn.Stiefel(),
    mn.Euclidean(),
]

FAULTS: dict[str, Callable[[Tensor], object]] = {
    "none": lambda x: x,
    "off": lambda x: x[-1].mul_(1.5),
    "nan": lambda x: x[-1, -1].fill_(torch.nan),
    "zero": lambda x: x[-1].zero_(),
    "large": lambda x: x[-1].fill_(1e100),
    "huge": lambda x: x[-1].fill_(1e200),
}


def _point(manifold: mn.Manifold, shape: tuple[int, ...]) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return manifold.random(shape, dtype=torch.float64, generator=source)


def _faulty(manifold: mn.Manifold, shape: tuple[int, ...], fault: str) -> Tensor:
    x = _point(manifold, shape)
    FAULTS[fault](x)
    return x


def _layer(x: Tensor) -> nn.Linear:
    layer = nn.Linear(x.shape[1], x.shape[0], bias=False, dtype=x.dtype)
    layer.weight = nn.Parameter(x.clone())
    return layer


def _shard(layer: nn.Linear, layout: str) -> nn.Linear:
    grid = ("data", "tensor")
    if layout == "rows":
        fully_shard(layer, mesh=mesh())
    elif layout == "columns":
        parallelize_module(layer, mesh(), RowwiseParallel())
    elif layout == "hsdp":
        fully_shard(layer, mesh=mesh(2, 2, names=grid))
    elif layout in ("strided", "rowwise"):
        style = ColwiseParallel() if layout == "strided" else RowwiseParallel()
        parallelize_module(layer, mesh(2, 2, names=grid)["tensor"], style)
        fully_shard(layer, mesh=mesh(2, 2, names=grid)["data"])
    elif layout in ("copies", "grid"):
        two = layout == "grid"
        places = [Shard(1), Shard(0)] if two else [Replicate()]
        whole = mesh(2, 2, names=grid) if two else mesh()
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), whole, places))
    return layer


@torch.no_grad()
def _fill(t: Tensor, x: Tensor) -> None:
    """Write an ordinary tensor into one that may be sharded."""
    if hasattr(t, "device_mesh"):
        x = distribute_tensor(x, t.device_mesh, [Replicate()] * t.device_mesh.ndim)
    copy_into(t, x)


def _outcome(door: Callable[[], Any]) -> Any:
    """The result of a call, or the type, the text and the fields of what it raises."""
    try:
        found = door()
    except (ValueError, RuntimeError) as error:
        fields = {key: str(value) for key, value in vars(error).items() if key != "amounts"}
        return type(error).__name__, str(error), fields
    return settle(found.detach()).tolist() if isinstance(found, Tensor) else found


def _checked(
    manifold: mn.Manifold, shape: tuple[int, ...], fault: str, layout: str | None
) -> dict[str, Any]:
    """The answers of all doors about one weight, on this process."""
    good, bad = _point(manifold, shape), _faulty(manifold, shape, fault)

    def made(x: Tensor, *, declared: bool = True) -> nn.Linear:
        layer = _layer(x)
        if declared:
            mn.declare(layer, "weight", manifold)
        return layer if layout is None else _shard(layer, layout)

    def written() -> nn.Linear:
        layer = made(good)
        _fill(layer.weight, bad)
        return layer

    def declared(project: bool) -> Any:
        layer = made(bad, declared=False)
        mn.declare(layer, "weight", manifold, project=project)
        return layer.weight

    def projected() -> Any:
        layer = written()
        mn.project_(layer)
        return layer.weight

    def loaded(project: bool) -> Any:
        layer = made(good)
        mn.load_state_dict(layer, written().state_dict(), project=project)
        return layer.weight

    def given() -> Any:
        layer = written()
        mn.RiemannianSGD(mn.param_groups(layer), lr=0.1)
        return layer.weight

    def stepped() -> Any:
        layer = made(good)
        layer.weight.grad = torch.zeros_like(layer.weight)
        _fill(layer.weight.grad, 0.1 * bad)
        options = {"foreach": False, "error_if_nonfinite": True}
        mn.RiemannianSGD(mn.param_groups(layer), lr=0.1, **options).step()
        return layer.weight

    def resumed() -> Any:
        layer = made(good)
        optimizer = mn.RiemannianSGD(mn.param_groups(layer), lr=0.1, momentum=0.9)
        buffer = torch.zeros_like(layer.weight).detach()
        _fill(buffer, bad)
        state = {0: {"momentum_buffer": buffer}}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return optimizer.state[layer.weight]["momentum_buffer"]

    x = written().weight.detach()
    u = manifold.proju(x, x * 0 + 0.1)
    v = torch.zeros_like(x)
    _fill(v, torch.arange(1.0, 1 + good.numel(), dtype=good.dtype).reshape(shape))
    doors: dict[str, Callable[[], Any]] = {
        "violations": lambda: mn.violations(written()),
        "verify": lambda: mn.verify(written()),
        "declare": lambda: declared(False),
        "declare, project": lambda: declared(True),
        "project_": projected,
        "load": lambda: loaded(False),
        "load, project": lambda: loaded(True),
        "optimizer": given,
        "optimizer's state": resumed,
        "check": lambda: manifold.check_point_on_manifold(x, explain=True),
        "check tangent": lambda: manifold.check_vector_on_tangent(x, v, explain=True),
    }
    if fault in ("none", "off", "nan"):
        doors["error_if_nonfinite"] = stepped
    if fault in ("none", "off"):
        doors |= {
            "inner": lambda: float(manifold.inner(x, u)),
            "norm": lambda: float(manifold.norm(x, u)),
            "dist": lambda: float(manifold.dist(x, manifold.retr(x, u))),
            "dist2": lambda: float(manifold.dist2(x, manifold.retr(x, u))),
        }
    if not isinstance(manifold, mn.Euclidean) and fault != "huge":
        doors |= {
            "zero slices": lambda: zero_slices(x, manifold),
            "growth": lambda: overflowing(x, manifold),
        }
    return {name: _outcome(door) for name, door in doors.items()}


def _assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, list | tuple) and not isinstance(found, str):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_same(one, other)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            _assert_same(found[key], expected[key])
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-15, nan_ok=True)
    else:
        assert found == expected


def _assert_as_one_process(
    ranks: Ranks,
    manifold: mn.Manifold,
    shape: tuple[int, ...],
    layouts: Iterable[str],
    faults: Iterable[str] = tuple(FAULTS),
) -> None:
    for fault in faults:
        expected = _checked(manifold, shape, fault, None)
        for layout in layouts:
            for found in ranks.run(_checked, manifold, shape, fault, layout):
                _assert_same(found, expected)


def _has_points(manifold: mn.Manifold, shape: tuple[int, ...]) -> bool:
    return manifold.check_point(torch.empty(shape, device="meta"))


def _each_weight(manifolds: list[mn.Manifold]) -> pytest.MarkDecorator:
    every = [
        pytest.param(manifold, shape, id=f"{manifold}-{name}")
        for manifold in manifolds
        for name, shape in SHAPES.items()
        if _has_points(manifold, shape)
    ]
    return pytest.mark.parametrize(("manifold", "shape"), every)


CURVED = [
    *(mn.Oblique(0), mn.Oblique(1), mn.Sphere(), mn.ScaledEuclidean(1), mn.Stiefel()),
    *(mn.Oblique(zero_slices=(0, 3)), mn.Polar()),
]


@_each_weight(CURVED)
def test_a_fault_on_one_rank_is_told_on_all(
    two: Ranks, manifold: mn.Manifold, shape: tuple[int, ...]
) -> None:
    fault = "off" if shape == SHAPES["even"] else "nan"
    _assert_as_one_process(two, manifold, shape, ["rows"], [fault])


@pytest.mark.thorough
@_each_weight(MANIFOLDS)
def test_two_processes_answer_as_one(
    two: Ranks, manifold: mn.Manifold, shape: tuple[int, ...]
) -> None:
    faults = FAULTS if shape == SHAPES["uneven"] else ["none", "nan"]
    _assert_as_one_process(two, manifold, shape, TWO, faults)


@pytest.mark.thorough
def test_four_processes_answer_as_one(four: Ranks) -> None:
    _assert_as_one_process(four, mn.Oblique(1), SHAPES["uneven"], FOUR, ["nan"])


@pytest.mark.slow
@_each_weight(CURVED)
def test_four_processes_answer_as_one_whatever_the_weight(
    four: Ranks, manifold: mn.Manifold, shape: tuple[int, ...]
) -> None:
    fault = "off" if shape == SHAPES["even"] else "nan"
    _assert_as_one_process(four, manifold, shape, FOUR, [fault])


def _made_of_others(sharded: bool) -> list[Any]:
    """Checks and projections on a product and on a manifold of geoopt."""
    product = mn.geometry.Product([(mn.Oblique(), (2, 3)), (mn.Euclidean(), (2,))])
    stiefel = mn.geometry.from_geoopt(geoopt.Stiefel())
    answers: list[Any] = []
    for manifold, shape in [(product, (8,)), (stiefel, (4, 3))]:
        x = _point(manifold, shape)
        if sharded:
            x = distribute_tensor(x, mesh(), [Shard(0)])
        for y in (x, 2 * x):
            answers.append(manifold.check_point_on_manifold(y, explain=True))
            answers.append(_outcome(lambda y=y, m=manifold: m.projx(y)))
    return answers


def test_manifolds_made_of_others_answer_as_on_one_process(two: Ranks) -> None:
    expected = _made_of_others(False)
    assert [answer[0] for answer in expected[::2]] == [True, False, True, False]
    for found in two.run(_made_of_others, True):
        _assert_same(found, expected)


def _parameter_of_shards() -> None:
    x = distribute_tensor(_point(mn.Oblique(), (4, 3)), mesh(), [Shard(0)])
    mn.ManifoldParameter(x, mn.Oblique())


def test_a_manifold_parameter_of_shards_is_refused(two: Ranks) -> None:
    error = two.agreed(_parameter_of_shards)
    assert isinstance(error, TypeError)
    assert "manifoldnet.declare" in str(error)


# --- communication ------------------------------------------------------------------------------


def _counts(call: Callable[[], object]) -> tuple[str, dict[str, int]]:
    """The error of a call ("" for none), and the number of its collectives by name."""
    with CommDebugMode() as mode:
        try:
            call()
            error = ""
        except (ValueError, RuntimeError) as raised:
            error = str(raised)
    counts = mode.get_comm_counts()
    return error, {str(key).rpartition(".")[2]: count for key, count in counts.items()}


def _verified(manifold: mn.Manifold, layout: str) -> tuple[str, dict[str, int]]:
    layer = _layer(_point(manifold, (64, 32)))
    mn.declare(layer, "weight", manifold)
    _shard(layer, layout)
    return _counts(lambda: mn.verify(layer))


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("manifold", [mn.Oblique(0), mn.Sphere(), mn.ScaledEuclidean(1)], ids=str)
def test_no_check_gathers_a_weight(two: Ranks, manifold: mn.Manifold, layout: str) -> None:
    error, counts = two.agreed(_verified, manifold, layout)
    assert not error
    assert counts.keys() == {"all_reduce"}
    assert counts["all_reduce"] <= 4


def _stepped_with_nan(faulty: dict[int, list[str]]) -> tuple[str, dict[str, int], bool]:
    """The error of a step, its collectives, and True if no weight has been changed.

    Args:
        faulty: names of parameters by the number of the rank that has a NaN in its part of them.
    """
    net = nn.ModuleDict({name: _layer(_point(mn.Oblique(), (6, 4))) for name in "abc"})
    for layer in net.values():
        mn.declare(layer, "weight", mn.Oblique())
        fully_shard(layer, mesh=mesh())
    options = {"foreach": False, "error_if_nonfinite": True}
    optimizer = mn.RiemannianSGD(mn.param_groups(net), lr=0.1, **options)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # the first checks the points as well
    before = {name: settle(p.detach()).clone() for name, p in net.named_parameters()}
    for name, p in net.named_parameters():
        if name in faulty.get(rank(), ()):
            p.grad.to_local()[0, :2] = torch.nan
    error, counts = _counts(optimizer.step)
    after = {name: settle(p.detach()) for name, p in net.named_parameters()}
    return error, counts, all(torch.equal(after[name], x) for name, x in before.items())


def test_gradients_are_checked_in_one_round(two: Ranks) -> None:
    error, counts, same = two.agreed(_stepped_with_nan, {0: ["b.weight"], 1: ["b.weight"]})
    assert error.startswith("the gradient of b.weight has 4 entries that are NaN")
    assert counts == {"all_reduce": 1}
    assert same


def test_different_gradients_with_nan_on_each_rank_are_one_error(two: Ranks) -> None:
    error, _, same = two.agreed(_stepped_with_nan, {0: ["c.weight"], 1: ["b.weight"]})
    assert error.startswith("the gradient of b.weight has 2 entries that are NaN")
    assert same


def _stepped_with_a_gradient_on_one_rank(wrong: bool) -> tuple[str, bool]:
    """The error of the first step, and True if no weight has been changed."""
    net = nn.ModuleDict({name: _layer(_point(mn.Oblique(1), (6, 4))) for name in "ab"})
    for layer in net.values():
        mn.declare(layer, "weight", mn.Oblique(1))
        fully_shard(layer, mesh=mesh())
    optimizer = mn.RiemannianSGD(mn.param_groups(net), lr=0.1)
    for name, p in net.named_parameters():
        if name == "a.weight" or (wrong and rank() == 1):
            p.grad = torch.ones_like(p)
    before = {name: settle(p.detach()).clone() for name, p in net.named_parameters()}
    error, _ = _counts(optimizer.step)
    after = {name: settle(p.detach()) for name, p in net.named_parameters()}
    return error, all(torch.equal(after[name], x) for name, x in before.items())


def test_a_gradient_on_one_rank_only_is_refused_alike(two: Ranks) -> None:
    error, same = two.agreed(_stepped_with_a_gradient_on_one_rank, wrong=True)
    assert error.startswith("b.weight has a gradient in 1 of the 2 processes")
    assert same
    error, same = two.agreed(_stepped_with_a_gradient_on_one_rank, wrong=False)
    assert error == ""
    assert not same


MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "constrain": lambda model: mn.constrain(torch.optim.AdamW(model.parameters(), lr=0.1)),
    "RiemannianSGD": lambda model: mn.RiemannianSGD(mn.param_groups(model), lr=0.1),
    "RiemannianAdam": lambda model: mn.RiemannianAdam(mn.param_groups(model), lr=0.1),
}


def _sharded_after_the_optimizer(maker: str, stepped: bool, part: bool) -> str:
    """The error of the first step of an optimizer from before sharding, of all or one layer."""
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    optimizer = MAKERS[maker](model)
    x = torch.ones(4, 8)
    if stepped:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    fully_shard(model[0] if part else model, mesh=mesh())
    model(x).sum().backward()
    return _counts(optimizer.step)[0]


@pytest.mark.parametrize("part", [False, True], ids=["all", "one layer"])
@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
@pytest.mark.parametrize("maker", MAKERS)
def test_an_optimizer_from_before_sharding_is_refused(
    two: Ranks, maker: str, stepped: bool, part: bool
) -> None:
    error = two.agreed(_sharded_after_the_optimizer, maker, stepped, part)
    assert "is not declared now" in error
    assert "after fully_shard" in error


def _in_the_old_fsdp(whole: bool) -> list[str]:
    """The errors of the doors for a model in torch's old FSDP, with its weights whole or not."""

    def wrapped(declare: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
        if declare:
            mn.declare(model, "0.weight", mn.Oblique(), project=True)
        device = torch.device("cpu")
        return nn.Sequential(
            FullyShardedDataParallel(model, use_orig_params=whole, device_id=device)
        )

    free, declared = wrapped(False), wrapped(True)
    adam = torch.optim.AdamW(declared.parameters())
    doors: list[Callable[[], Any]] = [
        lambda: mn.declare(free, "0.0.weight", mn.Oblique(), project=True),
        lambda: mn.declare_all(free, mn.Oblique(), project=True),
        lambda: mn.verify(declared),
        lambda: mn.param_groups(declared),
        lambda: mn.RiemannianAdam(declared.parameters()),
        lambda: mn.constrain(adam),
    ]
    mn.RiemannianAdam(free.parameters())  # nothing of it is declared
    return [_counts(door)[0] for door in doors]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("whole", [False, True], ids=["flat", "original"])
def test_the_old_fsdp_is_refused_by_name(two: Ranks, whole: bool) -> None:
    for error in two.agreed(_in_the_old_fsdp, whole):
        assert "in FullyShardedDataParallel: the old FSDP of torch (FSDP1)" in error
        assert "fully_shard (FSDP2)" in error
