"""Old public names: each still works, warns with the new name, and has a version that ends it."""

import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from fresh import Forks
from torch import nn

import manifoldnet as mn
from manifoldnet import deprecation, testing
from manifoldnet.symmetry import Generator, ScalingGroup
from manifoldnet.symmetry.null_space import Gap
from manifoldnet.symmetry.report import Discovery
from manifoldnet.symmetry.scaling import Slice

GAP = Gap(rank=3, kept=0.5, dropped=1e-9, floor=1e-12, near_zero_count=2)


def discovery() -> Discovery:
    return Discovery(4, 8, False, GAP, torch.float64, (), 1e-12, 0.5, 1e-5, True, 1e-4)


def net_and_group() -> tuple[nn.Module, ScalingGroup]:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    for name in ("0.weight", "2.weight"):
        mn.declare(net, name, mn.ScaledEuclidean(dim=1))
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    sliced = Generator({Slice("2.weight", 1, 0): 1.0})
    return net, ScalingGroup((sliced,), shapes)


class Old(NamedTuple):
    """An old name, the new one, and a use of each."""

    name: str
    new: str
    use: Callable[[], Any]
    instead: Callable[[], Any]


def asserted(keyword: str) -> Any:
    net, group = net_and_group()
    return testing.assert_metric_invariant(net, **{keyword: group}) < 1e-9


RENAMED = [
    Old(
        "Generator.kind",
        "Generator.family",
        lambda: Generator({Slice("w", 0, 1): 1.0}).kind,
        lambda: Generator({Slice("w", 0, 1): 1.0}).family,
    ),
    Old(
        "Discovery.blur",
        "Discovery.eps_effect",
        lambda: discovery().blur,
        lambda: discovery().eps_effect,
    ),
    Old("Gap.nearly", "Gap.near_zero_count", lambda: GAP.nearly, lambda: GAP.near_zero_count),
    Old(
        "scaling of assert_metric_invariant",
        "symmetry",
        lambda: asserted("scaling"),
        lambda: asserted("symmetry"),
    ),
    *(
        Old(
            f"manifoldnet.parameter.{name}",
            f"{new}.{name}",
            lambda name=name: getattr(importlib.import_module("manifoldnet.parameter"), name),
            lambda name=name: getattr(mn, name),
        )
        for new, names in {
            "manifoldnet.declarations": ("declare", "violations"),
            "manifoldnet.checkpoints": ("load_state_dict",),
            "manifoldnet.parameter_groups": ("param_groups",),
            "manifoldnet.manifold_parameter": ("ManifoldParameter",),
        }.items()
        for name in names
    ),
]


@pytest.mark.parametrize("old", RENAMED, ids=lambda old: old.name)
def test_an_old_name_works_and_gives_the_new_one(old: Old) -> None:
    said = f"^{re.escape(old.name)} is called {re.escape(old.new)} now; the old name will be"
    with pytest.warns(FutureWarning, match=said) as caught:
        found = old.use()
    assert found == old.instead()
    assert caught[0].filename == __file__  # the warning points at the use


@pytest.mark.parametrize("old", RENAMED, ids=lambda old: old.name)
def test_an_old_name_is_gone_when_its_time_is_over(old: Old) -> None:
    with pytest.warns(FutureWarning) as caught:
        old.use()
    end = re.search(r"removed in manifoldnet (\d+)\.(\d+)\.0$", str(caught[0].message))
    assert end is not None
    here = tuple(map(int, mn.__version__.split(".")[:2]))
    assert here < tuple(map(int, end.groups())), "remove the old name"


@pytest.mark.parametrize("name", [n for n in testing.__all__ if n.startswith("assert_")])
def test_all_assertions_take_the_old_keyword(name: str) -> None:
    with pytest.warns(FutureWarning, match=f"scaling of {name}"), pytest.raises(TypeError):
        getattr(testing, name)(scaling=None)
    with pytest.raises(TypeError, match="give one of them"):
        getattr(testing, name)(scaling=None, symmetry=None)


def test_an_old_module_has_no_more_names_than_it_had() -> None:
    module = importlib.import_module("manifoldnet.parameter")
    assert mn.parameter is module
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_the_package_itself_uses_no_old_name(fresh: Forks) -> None:
    program = """
import importlib, pkgutil, manifoldnet.symmetry as package
for found in pkgutil.walk_packages(package.__path__, "manifoldnet.symmetry."):
    importlib.import_module(found.name)
"""
    result = fresh(program, warnings="error", category="FutureWarning")
    assert result.returncode == 0, result.stderr


def test_nothing_is_said_of_the_new_name() -> None:
    @deprecation.renamed_argument("old", "new", removed_in="9.0.0")
    def twice(new: int) -> int:
        """Twice a number."""
        return 2 * new

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert twice(3) == twice(new=3) == 6
    with pytest.warns(FutureWarning, match="old of twice is called new now"):
        assert twice(old=3) == 6
    assert twice.__doc__ == "Twice a number."
