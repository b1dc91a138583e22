"""The complex stage: what it computes, that it is homogeneous, and its gradient at 0."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manifoldnet.nn import ComplexModulusStage
from manifoldnet.nn.modulus import modulus

seeds = st.integers(0, 2**32 - 1)


@st.composite
def stages(draw):
    source = torch.Generator().manual_seed(draw(seeds))
    channels, out, q = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stage = ComplexModulusStage(channels, out, q, generator=source, dtype=torch.float64)
    height, width = (2 * draw(st.integers(1, 4)) + q - 1 for _ in range(2))
    shape = (draw(st.integers(1, 3)), channels, height, width)
    return stage, torch.randn(shape, generator=source, dtype=torch.float64)


@given(stages())
def test_it_is_a_complex_convolution_a_modulus_and_an_average(case):
    stage, images = case
    real, imaginary = stage.weight.detach().chunk(2)
    complex_kernel = torch.complex(real, imaginary)
    moduli = nn.functional.conv2d(images.to(torch.complex128), complex_kernel).abs()
    batch, out, height, width = moduli.shape
    patches = moduli.reshape(batch, out, height // 2, 2, width // 2, 2).mean((3, 5))
    result = stage(images)
    assert torch.allclose(result, patches, atol=1e-13)
    assert stage.output_size(images.shape[1:]) == result.shape[1:]


@given(stages(), st.floats(-200, 200))
def test_it_is_homogeneous(case, exponent):
    stage, images = case
    factor = 2.0 ** round(exponent)
    assert torch.equal(stage(images * factor), stage(images) * factor)  # powers of two: exactly
    scale = 10.0 ** (exponent / 10)
    assert torch.allclose(stage(images * scale), stage(images) * scale, rtol=1e-12, atol=0)
    assert torch.equal(stage(-images), stage(images))


@given(stages())
def test_its_gradient_is_that_of_the_formula(case):
    stage, images = case
    assert torch.autograd.gradcheck(stage, images.requires_grad_())


def test_the_gradient_of_a_modulus_that_is_0_is_0():
    u = torch.zeros(1, 4, 1, 1, requires_grad=True)
    modulus(u).sum().backward()
    assert u.grad.eq(0).all()
    stage = ComplexModulusStage(1, 2, 3)
    images = torch.zeros(2, 1, 6, 6, requires_grad=True)  # a black picture
    stage(images).sum().backward()
    assert images.grad.eq(0).all()
    assert stage.weight.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_huge_and_tiny_moduli_are_right_and_have_gradients(dtype, size):
    unit = {"huge": torch.finfo(dtype).max / 8, "tiny": torch.finfo(dtype).tiny}[size]
    u = (torch.tensor([3.0, 4.0], dtype=dtype) * unit).reshape(1, 2, 1, 1).requires_grad_()
    r = modulus(u)
    assert r.item() == pytest.approx(5 * float(unit), rel=1e-2)
    r.sum().backward()
    assert torch.allclose(u.grad.flatten().double(), torch.tensor([0.6, 0.8]).double(), atol=1e-2)


def test_the_start_keeps_the_size_of_the_pixels_and_is_seeded():
    one, other = (
        ComplexModulusStage(8, 64, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(one.weight, other.weight)
    images = torch.randn(4, 8, 16, 16)
    assert float(one(images).mean()) == pytest.approx(math.sqrt(math.pi / 2), rel=0.1)


def test_it_compiles_and_works_under_torch_func():
    stage = ComplexModulusStage(1, 2, 3).double()
    images = torch.randn(3, 1, 6, 6).double()
    compiled = torch.compile(stage, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images), stage(images))
    each = torch.func.vmap(torch.func.grad(lambda x: stage(x[None]).sum()))(images)
    images.requires_grad_()
    stage(images).sum().backward()
    assert torch.allclose(each, images.grad)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 8, 8), "images are 3x8x8; this stage takes 1 channels"),
        ((1, 7, 8), "have height 7, of which a 3x3 kernel leaves 5; 2x2 averages need an even"),
        ((1, 8, 9), "have width 9, of which a 3x3 kernel leaves 7"),
        ((1, 8, 2), "have width 2, of which a 3x3 kernel leaves 0"),
    ],
)
def test_images_that_it_cannot_tile_are_refused(size, message):
    stage = ComplexModulusStage(1, 2, 3)
    with pytest.raises(ValueError, match=message):
        stage(torch.zeros(2, *size))
    with pytest.raises(ValueError, match=message):
        stage.output_size(size)


@pytest.mark.parametrize("sizes", [(0, 2, 3), (1, -1, 3), (1, 2, 0), (1, 2.0, 3), (True, 2, 3)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="must be a positive whole number"):
        ComplexModulusStage(*sizes)
