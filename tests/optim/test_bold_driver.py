"""The bold driver: up while the error falls, down when it rises; state in plain types."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import manifoldnet as mn
from manifoldnet.optim import BoldDriver


def _optimizer(*rates: Any) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates]
    return mn.RiemannianSGD(groups)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_rates_follow_the_errors(errors: list[float]) -> None:
    optimizer = _optimizer(0.1, 0.3)
    driver = BoldDriver(optimizer, grow=1.1, shrink=0.4)
    rate = 0.1
    for i, error in enumerate(errors):
        driver.step(error)
        if i > 0:
            rate *= 1.1 if error <= errors[i - 1] else 0.4
        got = [group["lr"] for group in optimizer.param_groups]
        assert got == pytest.approx([rate, 3 * rate])
        assert driver.get_last_lr() == got


def test_rates_stay_in_bounds_and_a_nan_error_cuts_them() -> None:
    optimizer = _optimizer(torch.tensor(0.1, dtype=torch.float64))
    rate = optimizer.param_groups[0]["lr"]
    driver = BoldDriver(optimizer, grow=2.0, shrink=0.5, min_lr=0.04, max_lr=0.15)
    seen = []
    for error in (1.0, torch.tensor(0.5), math.nan, 0.4, 0.5, 0.6, 0.7):
        driver.step(error)
        seen.append(float(rate))
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen == pytest.approx([0.1, 0.15, 0.075, 0.15, 0.075, 0.04, 0.04])


def test_an_infinite_error_never_raises_the_rate() -> None:
    optimizer = _optimizer(0.8)
    driver = BoldDriver(optimizer)
    rates = []
    for error in (1.0, math.inf, math.inf, math.nan, math.inf, 5.0):
        driver.step(error)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05, 0.0525])


def test_state_dict_round_trip() -> None:
    def run(errors: list[float], resume: bool) -> list[float]:
        optimizer = _optimizer(0.1)
        driver = BoldDriver(optimizer)
        rates = []
        for error in errors:
            if resume:
                file = io.BytesIO()
                torch.save((driver.state_dict(), optimizer.state_dict()), file)
                file.seek(0)
                states = torch.load(file, weights_only=True)
                optimizer = _optimizer(0.7)
                driver = BoldDriver(optimizer, grow=1.5)
                driver.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
            driver.step(error)
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    errors = [3.0, 2.0, 2.5, 2.5, 1.0]
    assert run(errors, resume=True) == run(errors, resume=False)


@pytest.mark.parametrize(
    "options",
    [
        {"grow": 0.9},
        {"grow": math.nan},
        {"shrink": 1.0},
        {"shrink": 0.0},
        {"min_lr": -1.0},
        {"min_lr": 0.5, "max_lr": 0.1},
    ],
)
def test_factors_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        BoldDriver(_optimizer(0.1), **options)
    with pytest.raises(ValueError, match="not an Optimizer"):
        BoldDriver("sgd")  # type: ignore[arg-type]
