"""Two real channels and one complex one; operators of complex images behind them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invsolve.operators import ChannelsToComplex, ComplexToChannels, FunctionOperator, dot_test

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_real_parts_first() -> None:
    x = torch.arange(8.0).reshape(1, 4, 1, 2)
    z = ChannelsToComplex((2, 1, 2))(x)
    assert z.flatten().tolist() == [0 + 4j, 1 + 5j, 2 + 6j, 3 + 7j]
    assert torch.equal(ComplexToChannels((2, 1, 2))(z), x)


@pytest.mark.parametrize(
    ("shape", "channels"), [((1, 3, 4), (2, 3, 4)), ((3, 4), (2, 3, 4)), ((5, 2, 3), (10, 2, 3)), ((7,), (2, 7))]
)
def test_shapes_and_inverses(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    forth, back = ChannelsToComplex(shape), ComplexToChannels(shape)
    assert (forth.in_shape, forth.out_shape) == (channels, shape)
    assert (back.in_shape, back.out_shape) == (shape, channels)
    x = random(2, *channels)
    z = forth(x)
    assert z.dtype == torch.complex128
    assert torch.equal(back(z), x)
    assert torch.equal(forth.adjoint(z), x)
    assert torch.equal(back.adjoint(x), z)
    other = torch.complex(random(2, *shape, seed=1), random(2, *shape, seed=2))
    inner = (other.conj() * z).real.sum()
    torch.testing.assert_close(inner, (forth.adjoint(other) * x).sum())
    torch.testing.assert_close(
        forth.solve(x, torch.tensor([1.0, 3.0])), x / torch.tensor([2.0, 4.0]).reshape(-1, *[1] * len(channels))
    )


def fourier() -> FunctionOperator:
    """Complex images to complex spectra, with a phase and a mask so that nothing is symmetric."""
    phase = torch.polar(torch.ones(3, 5, dtype=F64), random(3, 5))
    keep = (random(3, 5, seed=1) > -0.2).double()

    def forward(x: Tensor) -> Tensor:
        return keep * torch.fft.fft2(phase * x, norm="ortho")

    def adjoint(y: Tensor) -> Tensor:
        return phase.conj() * torch.fft.ifft2(keep * y, norm="ortho")

    return FunctionOperator(forward, adjoint, (1, 3, 5), (1, 3, 5))


def test_an_operator_of_complex_images(dense: Callable[..., Tensor], relative: Callable[..., float]) -> None:
    complex_images = fourier() @ ChannelsToComplex((1, 3, 5))
    real_data = ComplexToChannels((1, 3, 5)) @ complex_images
    for operator in (complex_images, real_data):
        assert operator.in_shape == (2, 3, 5)
        assert dot_test(operator, dtype=F64) < 1e-14
        matrix, rhs = dense(operator), random(2, 2, 3, 5, seed=3)
        exact = torch.linalg.solve(matrix.T @ matrix + 0.3 * torch.eye(30, dtype=F64), rhs.flatten(1).T).T
        assert relative(operator.solve(rhs, 0.3).flatten(1), exact) < 1e-10
    assert not real_data(random(1, 2, 3, 5)).is_complex()


def test_the_pair_is_tested_with_complex_images() -> None:
    good = fourier()
    wrong = FunctionOperator(good._forward, lambda y: good._adjoint(y).conj(), (1, 3, 5), (1, 3, 5))
    z = torch.complex(random(1, 1, 3, 5), random(1, 1, 3, 5, seed=1))
    for call in (wrong, wrong.adjoint):
        with pytest.raises(ValueError, match="the adjoint is not the adjoint of the forward function"):
            call(z)
    assert good(z).is_complex()
    assert good.adjoint(z).is_complex()


def test_an_adjoint_that_forgets_to_take_the_real_part() -> None:
    operator = FunctionOperator(torch.fft.fft2, torch.fft.ifft2, (1, 3, 5), (1, 3, 5))
    with pytest.raises(ValueError, match="the adjoint gives complex images, but the operator takes real ones"):
        operator(random(1, 1, 3, 5))
