"""Groups against models that have changed since."""

import copy

import pytest
import torch
from nets import NETS, three_layers
from torch import nn
from torch.nn.utils import prune

from manifoldnet.symmetry import LinearGroup, ScalingGroup, balance_, make_invariant
from manifoldnet.symmetry.model_check import check_model


def group_of(net):
    return ScalingGroup.of(net.model, net.generators)


@pytest.mark.parametrize("name", ["relu", "tied_embedding", "weight_norm", "arch2"])
def test_a_model_fits_its_own_group(name):
    net = NETS[name]()
    check_model(net.model, group_of(net))
    check_model(copy.deepcopy(net.model).double().eval(), group_of(net))


def test_a_tied_weight_is_known_by_each_of_its_names():
    model = NETS["tied_embedding"]().model
    check_model(model, ScalingGroup.of(model, NETS["tied_embedding"]().generators))


def test_a_replaced_module_is_named_with_both_classes():
    net = three_layers()
    group = group_of(net)
    net.model[1] = nn.GELU()
    with pytest.raises(ValueError, match=r"'1' was a ReLU, and is a GELU"):
        check_model(net.model, group)
    with pytest.raises(ValueError, match=r"'1' was a ReLU, and is a GELU"):
        check_model(net.model, group.nontrivial.subgroup([0]))


def test_a_module_that_was_added_or_taken_away_is_named():
    net = three_layers()
    group = group_of(net)
    longer = nn.Sequential(*net.model, nn.Softplus())
    with pytest.raises(ValueError, match=r"'5' \(Softplus\)"):
        check_model(longer, group)
    shorter = copy.deepcopy(net.model)
    del shorter[3]
    with pytest.raises(ValueError, match=r"4\.weight|'4'"):
        check_model(shorter, group)


def test_a_tensor_of_another_shape_points_to_widen():
    net = three_layers()
    group = group_of(net)
    net.model[2] = nn.Linear(3, 9)
    with pytest.raises(ValueError, match=r"2\.weight has the shape \(9, 3\), and \(4, 3\).*widen"):
        check_model(net.model, group)


def test_a_pruned_weight_is_said_to_be_pruned():
    net = three_layers()
    group = group_of(net)
    prune.l1_unstructured(net.model[0], "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"0\.weight is pruned.*prune\.remove"):
        check_model(net.model, group)
    prune.remove(net.model[0], "weight")
    check_model(net.model, group)


def test_a_group_written_by_hand_has_no_structure_to_compare():
    net = three_layers()
    shapes = {name: tuple(p.shape) for name, p in net.model.named_parameters()}
    net.model[1] = nn.GELU()
    check_model(net.model, ScalingGroup(tuple(net.generators), shapes))


def test_the_structure_takes_no_part_in_comparisons():
    net = three_layers()
    group = group_of(net)
    other = copy.deepcopy(net.model)
    other[1] = nn.GELU()
    assert ScalingGroup.of(other, net.generators) == group
    assert group.structure[0] == ("", "Sequential")
    assert group.nontrivial.structure == group.structure


def in_the_frame(model, group):
    make_invariant(torch.optim.SGD(model.parameters()), model, group)


@pytest.mark.parametrize("call", [balance_, in_the_frame])
def test_what_is_no_model_or_no_scaling_group_is_a_type_error(call):
    net = three_layers()
    group = group_of(net)
    for wrong in (LinearGroup((), {}), None):
        with pytest.raises(TypeError, match="group must be a ScalingGroup"):
            call(net.model, wrong)
    with pytest.raises(TypeError, match="model must be"):
        balance_(group, net.model)
