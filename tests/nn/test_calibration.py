"""Confidence: fitted concentration, calibration, invalid input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.nn import Confidence, simplex_targets
from manifoldnet.nn.normalize import normalize


def made(concentration, samples=20000, classes=5, seed=0):
    """Directions, and labels drawn with the probabilities that the concentration gives them."""
    source = torch.Generator().manual_seed(seed)
    z = normalize(torch.randn(samples, classes, generator=source, dtype=torch.float64))
    cosines = z @ simplex_targets(classes, dtype=torch.float64).T
    chances = (concentration * cosines).softmax(1)
    return cosines, torch.multinomial(chances, 1, generator=source).squeeze(1)


@pytest.mark.parametrize("concentration", [0.5, 3.0, 20.0])
def test_fit_recovers_the_concentration(concentration):
    assert Confidence.fit(*made(concentration)).concentration == pytest.approx(
        concentration, rel=0.1
    )


@pytest.mark.parametrize("concentration", [1.0, 5.0])
def test_fitted_confidence_is_calibrated(concentration):
    fitted = Confidence.fit(*made(concentration))
    others = made(concentration, seed=1)
    assert fitted.reliability(*others).error < 0.02
    assert Confidence(5 * concentration).reliability(*others).error > 0.1


@given(st.floats(0, 100), st.integers(2, 8))
def test_confidence_is_the_largest_probability(concentration, classes):
    cosines = torch.rand(10, classes, dtype=torch.float64) * 2 - 1
    confidence = Confidence(concentration)
    p = confidence.probabilities(cosines)
    assert torch.allclose(p.sum(1), torch.ones(10, dtype=torch.float64))
    assert confidence(cosines).ge(1 / classes - 1e-12).all()
    assert torch.equal(p.gather(1, cosines.argmax(1, keepdim=True)).squeeze(1), confidence(cosines))


def test_bins():
    cosines = torch.tensor([[10.0, 0.0], [10.0, 0.0], [0.0, 0.0]])
    found = Confidence(1.0).reliability(cosines, torch.tensor([0, 1, 0]), bins=2)
    assert found.count == (0, 3)
    assert math.isnan(found.accuracy[0])
    assert found.accuracy[1] == pytest.approx(2 / 3)
    sure = (1 + math.exp(-10)) ** -1
    assert found.confidence[1] == pytest.approx((2 * sure + 0.5) / 3)
    assert found.error == pytest.approx(abs((2 * sure + 0.5) / 3 - 2 / 3))


def test_certainty_falls_into_the_last_bin():
    cosines, labels = torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([0, 1])
    found = Confidence(1e4).reliability(cosines, labels, bins=10)
    assert found.count == (0,) * 9 + (2,)
    assert (found.confidence[9], found.accuracy[9], found.error) == (1.0, 0.5, 0.5)


def test_scores_with_gradients():
    cosines, labels = made(3.0, 400)
    plain, graph = Confidence.fit(cosines, labels), cosines.clone().requires_grad_()
    assert Confidence.fit(graph, labels) == plain
    assert plain.reliability(graph, labels).error == plain.reliability(cosines, labels).error


def test_concentration_of_wrong_and_perfect_labels():
    cosines, _ = made(1.0, 400)
    wrong = cosines.argmin(1)  # worse than chance
    assert Confidence.fit(cosines, wrong).concentration == 0
    assert Confidence.fit(cosines, cosines.argmax(1)).concentration == 1e4  # nothing is ever wrong


@pytest.mark.parametrize(
    ("cosines", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "one sample or more"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "are needed"),
        (torch.full((2, 3), math.nan), torch.zeros(2, dtype=torch.int64), "not finite"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "from -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "torch.float32"),
    ],
)
def test_invalid_samples(cosines, labels, message):
    for use in (Confidence.fit, Confidence(1.0).reliability):
        with pytest.raises(ValueError, match=message):
            use(cosines, labels)


def test_no_bins_is_an_error():
    with pytest.raises(ValueError, match="bins"):
        Confidence(1.0).reliability(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), bins=0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_invalid_concentrations(value):
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        Confidence(value)
