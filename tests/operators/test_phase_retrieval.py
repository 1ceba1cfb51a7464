"""Fourier magnitudes: against an explicit transform, invariances, gradients at 0, refusals."""

import pytest
import torch

from invsolve.operators import PhaseRetrieval


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_ffhq_task(relative):
    operator = PhaseRetrieval((3, 256, 256))
    assert operator.out_shape == (3, 384, 384)
    x = image(2, 3, 256, 256)
    padded = torch.nn.functional.pad(x, (64, 64, 64, 64))
    centred = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(padded, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    assert relative(operator(x), centred.abs()) < 1e-12
    energy, want = (v.square().sum((1, 2, 3)) for v in (operator(x), x))
    assert torch.allclose(energy, want, rtol=1e-12)  # orthonormal
    assert float(operator(x)[0, 1, 192, 192]) == pytest.approx(float(x[0, 1].sum()) / 384)  # frequency 0 in the centre


def test_against_the_definition(relative):
    operator = PhaseRetrieval((1, 5, 8), 4.0)
    height, width = operator.out_shape[1:]
    assert (height, width) == (5 + 2 * 2, 8 + 2 * 4)
    x = image(1, 1, 5, 8)
    rows = torch.outer(torch.arange(height) - height // 2, torch.arange(5)).double() / height
    columns = torch.outer(torch.arange(width) - width // 2, torch.arange(8)).double() / width
    left, right = (torch.exp(-2j * torch.pi * phase) for phase in (rows, columns))
    want = (left @ x[0, 0].to(torch.complex128) @ right.mT).abs() / (height * width) ** 0.5
    assert relative(operator(x)[0, 0], want) < 1e-12


def test_what_leaves_no_trace(relative):
    x = image(1, 1, 6, 7)
    x[..., -1] = 0
    operator = PhaseRetrieval((1, 6, 7), 8.0)
    for other in (-x, x.flip(-2, -1), x.roll(1, -1)):
        assert relative(operator(other), operator(x)) < 1e-12
    assert relative(operator(x.flip(-1)), operator(x)) > 1e-2


def test_range_of_the_image(relative):
    x = image(2, 1, 5, 6)
    wide = PhaseRetrieval((1, 5, 6), 2.0, (-1.0, 1.0))
    assert relative(wide(2 * x - 1), PhaseRetrieval((1, 5, 6))(x)) < 1e-14


def test_gradient_is_finite_where_the_magnitude_is_zero():
    operator = PhaseRetrieval((1, 4, 4))
    for x in (torch.zeros(1, 1, 4, 4), torch.eye(4).reshape(1, 1, 4, 4)):  # the latter has zeros in its spectrum
        x = x.double().requires_grad_()
        y = operator(x)
        (gradient,) = torch.autograd.grad((y - 1).square().sum(), x, create_graph=True)
        assert bool(gradient.isfinite().all())
        assert bool(torch.autograd.grad(gradient.sum(), x)[0].isfinite().all())
    assert int((operator(torch.ones(1, 1, 4, 4)) > 0).sum()) > 0


def test_gradient():
    operator = PhaseRetrieval((2, 5, 4), 2.0, (-1.0, 1.0))
    x = image(2, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True)


def test_refusals():
    with pytest.raises(ValueError, match="oversampling is -1; expected a number >= 0"):
        PhaseRetrieval((1, 4, 4), -1)
    with pytest.raises(ValueError, match="got in_shape"):
        PhaseRetrieval((4, 4))
    with pytest.raises(ValueError, match="low < high"):
        PhaseRetrieval((1, 4, 4), 2.0, (1.0, -1.0))
