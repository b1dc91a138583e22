"""Some of the random configurations of `fuzz.py`, which runs thousands by hand."""

from __future__ import annotations

import fuzz
import numpy as np
import pytest


@pytest.mark.parametrize(
    "first", [0, 50, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (150, 200, 250))]
)
@np.errstate(all="ignore")
@pytest.mark.thorough
def test_all_paths_are_within_rounding_of_the_oracle(first: int) -> None:
    made, wrong = fuzz.search(first, 50)
    assert not wrong
    assert all(made[path] > 100 for path in fuzz.PATHS)


@pytest.mark.thorough
def test_the_oracle_sees_a_wrong_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A momentum that is off by a thousandth of a per cent."""
    true = fuzz.Configuration.optimizer

    def wrong(self: fuzz.Configuration, *given: object) -> object:
        optimizer = true(self, *given)
        for group in optimizer.param_groups:
            if group.get("momentum"):
                group["momentum"] *= 1.00001
        return optimizer

    monkeypatch.setattr(fuzz.Configuration, "optimizer", wrong)
    assert fuzz.search(0, 60)[1]
