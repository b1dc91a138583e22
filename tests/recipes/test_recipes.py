"""The recipes of docs/recipes/published.md against their formulas, written out here."""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published_recipes as recipes
import pytest
import torch
from published_recipes import PAGE, RECIPES, applied, backward, network
from torch import Tensor, nn

import manifoldnet as mn

DOCS = Path(recipes.__file__).parent
STEPS = 100
State = dict[str, Tensor]
Formula = Callable[[Tensor, Tensor, State], Tensor]


# --- what formulas are made of --------------------------------------------------------------------


def adam(
    g: Tensor,
    state: State,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    name: str = "adam",
) -> Tensor:
    """The step of Adam of unit rate; `name` tells several of one weight apart."""
    keys = [f"{name} {part}" for part in ("m", "v", "t")]
    m, v, t = (state.get(key, torch.zeros_like(g)) for key in keys)
    m, v, t = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g, t + 1
    state.update(zip(keys, (m, v, t), strict=True))
    return (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


def msign(m: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    assert s[-1] > 1e-8 * s[0]  # the factor is that of the gradient, not of rounding
    return u @ vh


def momentum(g: Tensor, state: State, beta: float = 0.95) -> Tensor:
    """M ← β M + G, and β M + G once more: Nesterov's correction, as papers on Muon have it."""
    state["M"] = beta * state.get("M", torch.zeros_like(g)) + g
    return beta * state["M"] + g


def unit(x: Tensor, dim: int | None = 1) -> Tensor:
    """N: rows (dim=1), columns (dim=0) or the whole matrix, of length one."""
    return x / (x.norm() if dim is None else x.norm(dim=dim, keepdim=True))


def across(w: Tensor, g: Tensor, dim: int | None = 1) -> Tensor:
    """P: what is left of G without its part along W."""
    w = unit(w, dim)
    inner = (w * g).sum() if dim is None else (w * g).sum(dim=dim, keepdim=True)
    return g - inner * w


# --- formulas -------------------------------------------------------------------------------------


def ngpt(w: Tensor, g: Tensor, state: State) -> Tensor:
    writes = w.shape == (6, 8)  # `down`: each column is a vector of the stream
    return unit(w - 1e-2 * adam(g, state), 0 if writes else 1)


def edm2(w: Tensor, g: Tensor, state: State) -> Tensor:
    """The weight that is stored is √n w; its gradient comes through the normalization."""
    root = math.sqrt(w.shape[1])
    stored, through = root * w, across(w, g) / root
    stored = stored - 1e-2 * adam(through, state, (0.9, 0.99), 1e-8 / root)
    return unit(stored)


def hyperball(w: Tensor, u: Tensor, state: State) -> Tensor:
    r = state.setdefault("R", w.norm())
    return r * unit(w - 2e-2 * r * unit(u, None), None)


def adamh(w: Tensor, g: Tensor, state: State) -> Tensor:
    return hyperball(w, adam(g, state), state)


def muonh(w: Tensor, g: Tensor, state: State) -> Tensor:
    return hyperball(w, msign(momentum(g, state)), state)


def angular_muown(w: Tensor, g: Tensor, state: State, kappa: float = 1.0) -> Tensor:
    r = state.setdefault("r", w.norm(dim=1, keepdim=True))
    u = state.setdefault("U", unit(w))
    s = math.sqrt(max(1, w.shape[0] / w.shape[1]))
    polar = msign(momentum(r * across(u, g), state))
    state["r"] = r - 4e-2 * adam((g * u).sum(1, keepdim=True), state, (0.9, 0.95))
    state["U"] = unit(u - 4e-2 * kappa * s * polar)
    return state["r"] * state["U"]


def magnitude_direction(w: Tensor, g: Tensor, state: State) -> Tensor:
    gamma, u = state.setdefault("r", w.norm()), state.setdefault("U", unit(w, None))
    step = adam(gamma * across(u, g, None), state)
    state["r"] = gamma - 1e-3 * adam((g * u).sum(), state, name="gain")
    state["U"] = unit(u - 1e-2 * step, None)
    return state["r"] * state["U"]


def spel(w: Tensor, g: Tensor, state: State) -> Tensor:
    """The tangent space of X with XᵀX = 1 is normal to X S, S symmetric; a wide one is turned."""
    if w.shape[0] < w.shape[1]:
        return spel(w.T, g.T, state).T
    s = w.T @ g
    return msign(w - 2e-2 * msign(g - w @ (s + s.T) / 2))


def rotational_adamw(w: Tensor, g: Tensor, state: State) -> Tensor:
    angle = math.sqrt(2 * 1e-2 * 0.1 * (1 - 0.9) / (1 + 0.9))
    return unit(w - angle * unit(across(w, adam(g, state))))


def intrinsic_muon(w: Tensor, g: Tensor, state: State, beta: float = 0.95) -> Tensor:
    d = torch.diag(w.norm(dim=1))
    return w - 2e-2 * d @ msign(momentum(d @ g, state, beta))


def lora(w: Tensor, g: Tensor, state: State) -> Tensor:
    if w.shape[0] == 2:  # A: rank × inputs
        return unit(w - 1e-2 * adam(across(w, g), state))
    r = state.setdefault("r", torch.zeros_like(w[:1]))
    u = state.setdefault("U", -unit(g, 0))  # B is zero: its directions are those of the gradient
    step = adam(r * across(u, g, 0), state)
    state["r"] = r - 1e-2 * adam((g * u).sum(0, keepdim=True), state, name="gain")
    state["U"] = unit(u - 1e-2 * step, 0)
    return state["r"] * state["U"]


FORMULAS: dict[str, Formula] = {
    f.__name__: f
    for f in (
        *(ngpt, edm2, adamh, muonh, angular_muown, magnitude_direction, spel),
        *(rotational_adamw, intrinsic_muon, lora),
    )
}


# --- recipes --------------------------------------------------------------------------------------


def differences(
    recipe: str,
    formula: Any = None,
    change: Callable[[Any], Any] = lambda optimizer: None,
    apply: Callable[[str, nn.Module], torch.optim.Optimizer] = applied,
) -> Iterator[float]:
    """The relative difference of weights of a recipe and of its formula, after each step."""
    model = network(rank=2 * (recipe == "lora"))
    optimizer = apply(recipe, model)
    after_step = change(optimizer)
    mirror = network(rank=2 * (recipe == "lora"))
    names = list(mn.manifolds(model))
    mirror.load_state_dict(model.state_dict())
    states: dict[str, State] = {name: {} for name in names}
    for i in range(STEPS):
        for each in (model, mirror):
            backward(each, i)
        optimizer.step()
        if after_step is not None:
            after_step()
        worst = 0.0
        for name in names:
            p = mirror.get_parameter(name)
            new = (formula or FORMULAS[recipe])(p.detach(), p.grad, states[name])
            p.data.copy_(new)
            off = (model.get_parameter(name).detach() - new).norm() / new.norm()
            worst = max(worst, float(off))
        yield worst


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_formula(recipe: str) -> None:
    found = list(differences(recipe))
    assert len(found) == STEPS
    assert max(found) <= 1e-6


def test_intrinsic_muon_is_its_formula_without_momentum() -> None:
    def without_momentum(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = 0.0

    formula = lambda w, g, state: intrinsic_muon(w, g, state, beta=0.0)  # noqa: E731
    assert max(differences("intrinsic_muon", formula, without_momentum)) <= 1e-6


def test_rotational_adamw_projects_gradients_where_the_loss_sees_lengths() -> None:
    def formula(w: Tensor, g: Tensor, state: State) -> Tensor:
        return rotational_adamw(w, across(w, g), state)

    found = differences("rotational_adamw", formula, apply=lambda r, m: PAGE[r](m, PAGE["hidden"]))
    assert max(found) <= 1e-6


def test_a_scheduler_is_the_multiplier_of_angular_muown() -> None:
    def kappa(t: int) -> float:
        return 1 / (1 + 1e-3 * max(t - 20, 0))

    def scheduled(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, kappa).step

    def formula(w: Tensor, g: Tensor, state: State) -> Tensor:
        t = int(state.get("count", torch.tensor(0)))
        state["count"] = torch.tensor(t + 1)
        return angular_muown(w, g, state, kappa(t))

    assert max(differences("angular_muown", formula, scheduled)) <= 1e-6


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_five_lines_or_fewer(recipe: str) -> None:
    page = (DOCS / "recipes" / "published.md").read_text(encoding="utf-8")
    blocks = page.split("```python\n")[1:]
    defined = [
        node
        for block in blocks
        for node in ast.parse(block.split("```")[0]).body
        if isinstance(node, ast.FunctionDef) and node.name == recipe
    ]
    assert len(defined) == 1
    assert defined[0].end_lineno - defined[0].lineno <= 5


# --- invariance -----------------------------------------------------------------------------------

# Sphere and Stiefel: the whole matrix has a direction, to which rows of other lengths add up to
# another one.
SEES_ROWS = {"adamh", "muonh", "magnitude_direction", "spel"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_in_front_of_normalization_are_seen_by_recipes_on_whole_matrices(recipe: str) -> None:
    start = recipes.adapter if recipe == "lora" else recipes.rows
    change = recipes.apart(
        start, lambda model: recipes.with_others(model, applied(recipe, model)), steps=20
    )
    if recipe in SEES_ROWS:
        assert change >= 1e-3
    else:
        assert change <= 1e-12


def records(name: str) -> list[dict[str, str]]:
    with (DOCS / "results" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_shows_the_records() -> None:
    page = (DOCS / "recipes" / "published.md").read_text(encoding="utf-8")
    rows = records("recipes")
    assert {row["recipe"] for row in rows} >= set(RECIPES)
    for row in rows:
        assert f"{row['change']}, {row['base alone']}" in page
    for row in records("invariance_of_optimizers"):
        assert f"| {row['optimizer']} | {row['plain']} | {row['constrained']} |" in page
        assert float(row["plain"]) >= 1e-2
        assert float(row["constrained"]) <= 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", sorted(SEES_ROWS))
def test_records_are_of_the_recipes_as_they_are(recipe: str) -> None:
    change = recipes.apart(
        recipes.rows, lambda model: recipes.with_others(model, applied(recipe, model))
    )
    (row,) = (row for row in records("recipes") if row["recipe"] == recipe)
    assert change == pytest.approx(float(row["change"]), rel=0.1)


def test_the_base_of_a_recipe_has_its_options() -> None:
    make = recipes.without_constraint("edm2", recipes.rows)
    model: nn.Module = network()
    base, _ = make(model)
    assert type(base) is torch.optim.Adam
    assert base.param_groups[0]["betas"] == (0.9, 0.99)
    assert {id(p) for p in base.param_groups[0]["params"]} == {
        id(model.get_parameter(name)) for name in PAGE["hidden"]
    }
