"""Each error of docs/faq.md is raised here, and is what the page prints.

A section of the page is a heading and a ```text block with the error; a function below provokes it.
"""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import geoopt
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import manifoldnet as mn
from manifoldnet.symmetry import discover

PAGE = Path(__file__).parents[1] / "docs" / "faq.md"
SECTION = re.compile(r"^## (?P<heading>[^\n]+)\n\n```text\n(?P<error>.*?)\n```$", re.M | re.S)

OTHERS = {"second-order", "doubled"}

PROVOKED: dict[str, Callable[[], object]] = {}


def under(heading: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def mark(function: Callable[[], object]) -> Callable[[], object]:
        PROVOKED[heading] = function
        return function

    return mark


def net() -> nn.Sequential:
    """Eight inputs, four filters, three classes; every weight is 1."""
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(8, 4, bias=False))
    model.add_module("act", nn.ReLU())
    model.add_module("head", nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    return model


@under("A weight is not on its manifold")
def _() -> object:
    return mn.declare(net(), "hidden.weight", mn.Oblique())


@under("A slice is zero")
def _() -> object:
    model = net()
    nn.init.zeros_(model.hidden.weight[2])
    return mn.declare(model, "hidden.weight", mn.Oblique(), project=True)


@under("Rows are moved to the rim of a ball (a warning)")
def _() -> object:
    model = nn.Sequential(nn.Embedding(50, 3))
    with torch.no_grad():
        model[0].weight.fill_(0.1)[7] = 2.0
    return mn.declare(model, "0.weight", geoopt.PoincareBall(), project=True)


@under("A name of something else")
def _() -> object:
    return mn.declare(net(), "hidden", mn.Oblique(), project=True)


@under("A negative dim")
def _() -> object:
    return mn.Oblique(dim=-1)


@under("A tensor of too low an order")
def _() -> object:
    return mn.declare(net(), "head.bias", mn.ScaledEuclidean(dim=1))


@under("There is no such parameter: the layer is parametrized")
def _() -> object:
    model = net()
    weight_norm(model.hidden)
    return mn.declare(model, "hidden.weight", mn.Oblique(), project=True)


@under("A lazy layer")
def _() -> object:
    return mn.declare(nn.LazyLinear(4), "weight", mn.Oblique(), project=True)


@under("Two manifolds for one tensor")
def _() -> object:
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    model["decoder"].weight = model["encoder"].weight
    mn.declare(model, "encoder.weight", mn.ScaledEuclidean(dim=0))
    return mn.declare(model, "decoder.weight", mn.ScaledEuclidean(dim=1))


@under("The classifier is not found")
def _() -> object:
    return mn.declare_all(net(), mn.rules.unit_norm(classifier="fc"), project=True)


@under("A pattern fits no name")
def _() -> object:
    return mn.declare_all(net(), {"hiden.*": mn.Oblique()}, project=True)


@under("A retraction that makes no sense there")
def _() -> object:
    return mn.Oblique(retraction="additive")


@under("Weight decay on declared weights")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    return mn.RiemannianSGD([model.hidden.weight], lr=0.1, weight_decay=1e-4)


@under("Weight decay that the optimizer adds to gradients")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    return mn.constrain(torch.optim.SGD(model.named_parameters(), lr=0.1, weight_decay=1e-4))


@under("Nothing to constrain")
def _() -> object:
    return mn.constrain(torch.optim.AdamW(net().parameters()))


@under("Declared after the optimizer was made")
def _() -> object:
    model = net()
    optimizer = mn.RiemannianSGD(model.named_parameters(), lr=0.1)
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    model(torch.ones(2, 8)).sum().backward()
    return optimizer.step()


@under("A checkpoint from elsewhere")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    return mn.load_state_dict(model, net().state_dict())


@under("Another optimizer steps declared weights (a warning)")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    return torch.optim.AdamW(model.parameters()).step()


@under("Nothing is declared (a warning)")
def _() -> object:
    return mn.param_groups(net())


@under("An option that no optimizer has")
def _() -> object:
    return mn.param_groups(net(), weigth_decay=1e-4)


@under("Norms grow (a warning)")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.ScaledEuclidean(retraction="additive"))
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=1e10)
    model(torch.ones(2, 8)).sum().backward()
    return optimizer.step()


@under("A slice becomes zero while training (a warning)")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1)
    for row in (None, 2):
        model(torch.ones(2, 8)).sum().backward()
        if row is not None:
            model.hidden.weight.data[row] = 0
        optimizer.step()
    return None


@under("A sparse gradient")
def _() -> object:
    model = nn.ModuleDict({"table": nn.Embedding(5, 8, sparse=True)})
    mn.declare(model, "table.weight", mn.Oblique(), project=True)
    optimizer = mn.constrain(torch.optim.SGD(model.named_parameters(), lr=0.1))
    model["table"](torch.tensor([1, 2])).sum().backward()
    return optimizer.step()


@under("A weight was resized while it trains")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1, momentum=0.9)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    weight = model.hidden.weight
    weight.grad, weight.data = None, weight.data[:3]
    weight.grad = torch.ones(3, 8)
    return optimizer.step()


@under("The gradient is not finite")
def _() -> object:
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1, error_if_nonfinite=True)
    (model(torch.ones(2, 8)).sum() * float("nan")).backward()
    return optimizer.step()


@under("A parameter gets no gradient while symmetries are looked for")
def _() -> object:
    model = net()
    model.add_module("unused", nn.Linear(2, 2))
    model.unused.forward = lambda x: x
    batches = [(torch.randn(16, 8), torch.randint(3, (16,)))]
    return discover(model, nn.functional.cross_entropy, batches)


@under("The picture needs an extra")
def _() -> object:
    from manifoldnet.experiments.plotting import new_figure

    return new_figure(1, 1)


def what_is_said(provoke: Callable[[], object]) -> str:
    """The error or warning as Python prints it, without the traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception) as caught:  # noqa: PT011
            provoke()
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("heading", PROVOKED)
def test_the_page_prints_the_error(heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "extra" in heading:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = {m["heading"]: m["error"] for m in SECTION.finditer(PAGE.read_text(encoding="utf-8"))}
    said = what_is_said(PROVOKED[heading])
    for name in set(re.findall(r"'([\w-]+)'", said)) & OTHERS:  # retractions of other tests
        said = said.replace(f", '{name}'", "")
    assert said == " ".join(page[heading].split())


def test_the_page_prints_no_other() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert {m["heading"] for m in SECTION.finditer(text)} == PROVOKED.keys()
    assert text.count("```text") == len(PROVOKED)
