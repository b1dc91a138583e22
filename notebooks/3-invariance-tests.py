# %% [markdown]
# # Test that training does not see the scale of weights
#
# Property-based tests for a model of your own: hypothesis looks for a scaling under which the loss
# changes, or a training step does, and reduces what it finds. What passes, what fails, and how a
# failure reads.

# %%
import matplotlib.pyplot as plt
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.testing import assert_loss_invariant, assert_update_equivariant, elements

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
model.double()
batch = (torch.randn(64, 20).double(), torch.randint(3, (64,)))

# %% [markdown]
# ## The claim
#
# In front of batch normalization the length of a filter means nothing. As a group: one generator
# for each of the eight filters. (To find the group instead of writing it down, see
# [discovery](4-discover-symmetries.ipynb).)

# %%
group = mn.symmetry.ScalingGroup.of(
    model,
    [mn.symmetry.Generator({mn.symmetry.Slice("0.weight", 0, row): 1.0}) for row in range(8)],
)
print(group)

# %% [markdown]
# ## The loss
#
# `elements(group)` draws a factor for each generator, here between 1/1000 and 1000. In a test file
# the decorated function is enough; in a notebook you call it.

# %%
profile = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@profile
@given(element=elements(group, smallest=1e-3, largest=1e3))
def test_loss(element):
    assert_loss_invariant(model, element, cross_entropy, batch)


def outcome(test):
    """Print the message of a failed assertion."""
    try:
        test()
    except AssertionError as error:
        return str(error)
    return "passed"


print(failure := outcome(test_loss))
assert "ε" in failure

# %% [markdown]
# It fails, with one filter and a factor of 2 already, and says why: batch normalization divides by
# √(var + ε). Without ε the symmetry is exact:


# %%
@profile
@given(element=elements(group, smallest=1e-3, largest=1e3))
def test_loss_without_eps(element):
    with mn.symmetry.without_eps(model):
        assert_loss_invariant(model, element, cross_entropy, batch)


print(outcome(test_loss_without_eps))
assert outcome(test_loss_without_eps) == "passed"

# %% [markdown]
# ## The update
#
# A step must commute with the scaling. The assertion takes any optimizer, as a function of the
# model; three steps bring momentum in. The model is declared for the first, and plain for the
# second.


# %%
def update_test(optimizer):
    @profile
    @given(element=elements(group, smallest=1e-3, largest=1e3))
    def test(element):
        with mn.symmetry.without_eps(model):
            assert_update_equivariant(model, element, cross_entropy, batch, optimizer, steps=3)

    return test


def scaled_sgd(model):
    return mn.RiemannianSGD(mn.param_groups(model), lr=0.1, momentum=0.9)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


mn.declare(model, "0.weight", mn.ScaledEuclidean())
print("scaled metric:", passed := outcome(update_test(scaled_sgd)))
mn.undeclare(model, "0.weight")
print("AdamW:", failure := outcome(update_test(adamw)))
assert passed == "passed"
assert "factor 2" in failure

# %% [markdown]
# The failure names one filter of eight and the factor 2. Hypothesis has removed everything that the
# failure does not need.
#
# ## The error as a number
#
# The assertions compare a number with a tolerance. `invariance_error.update` is the difference
# between scale-then-step and step-then-scale, relative to the step. Here one filter is scaled by a
# factor, for two optimizers of torch and for the declared model:

# %%
factors = [10 ** (k / 4) for k in range(-12, 13) if k]
optimizers = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "AdamW": adamw,
    "scaled metric": scaled_sgd,
}
errors = {}
for name, optimizer in optimizers.items():
    if name == "scaled metric":
        mn.declare(model, "0.weight", mn.ScaledEuclidean())
    with mn.symmetry.without_eps(model):
        errors[name] = [
            float(
                mn.symmetry.invariance_error.update(
                    model, group.generators[0].element(f), cross_entropy, batch, optimizer
                )
            )
            for f in factors
        ]
mn.undeclare(model, "0.weight")
assert max(errors["scaled metric"]) < 1e-12

# %% alt="Error of the update by factor: about 1 for SGD and AdamW, rounding for the scaled metric"
figure, axes = plt.subplots()
for name, values in errors.items():
    axes.loglog(factors, values, label=name)
axes.set(xlabel="factor of one filter", ylabel="error of the update, relative")
axes.legend(loc="center right")
plt.show()

# %% [markdown]
# ## In a file
#
# The tests above need nothing but pytest: put model, batch and group into a module, and the
# decorated functions beside them. `assert_trajectory_invariant` compares whole runs,
# `reparameterized` draws scaled models for assertions of your own, and `ManifoldLaws` is a test
# class for a manifold of your own.
#
# API: [testing](../docs/api/testing.md), [symmetry](../docs/api/symmetry.md). Next: [let the
# symmetries be found](4-discover-symmetries.ipynb).
