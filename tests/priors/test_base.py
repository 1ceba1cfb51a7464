"""The contract of priors: what follows from D(x, sigma), shapes of noise levels, and the sentences of its errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invsolve.priors import GaussianPrior, Prior
from invsolve.priors.base import expand_sigma


class Shrink(Prior):
    """N(0, I) prior: D = x / (1 + sigma^2)."""

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return x / (1 + expand_sigma(sigma, x) ** 2)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor(2.0), torch.tensor([0.1, 1.0, 10.0])])
def test_score_and_epsilon_of_a_white_gaussian(sigma: float | Tensor) -> None:
    x = normal(3, 3, 3, 3)  # batch, channels and sides alike: a level that broadcasts along the wrong axis would pass
    level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Shrink().score(x, sigma), -x / (1 + level**2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Shrink().epsilon(x, sigma), x * level / (1 + level**2), rtol=1e-12, atol=1e-12)
    assert torch.equal(Shrink()(x, sigma), Shrink().denoise(x, sigma))


@pytest.mark.parametrize("t", [0.25, torch.tensor([0.1, 0.5, 0.9])])
def test_velocity_is_the_mean_of_noise_minus_image(t: float | Tensor) -> None:
    """x0 and n are white and x_t = (1-t) x0 + t n, so E[n - x0 | x_t] = (t - (1-t)) / ((1-t)^2 + t^2) x_t."""
    x_t = normal(3, 3, 3, 3)
    time = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
    expected = (2 * time - 1) / ((1 - time) ** 2 + time**2) * x_t
    torch.testing.assert_close(Shrink().velocity(x_t, t), expected, rtol=1e-12, atol=1e-12)


def test_score_is_the_gradient_of_the_log_density() -> None:
    prior = GaussianPrior(normal(2, 3, 3), 0.4)
    x = normal(3, 2, 3, 3).requires_grad_()
    sigma = torch.tensor([0.1, 1.0, 5.0])
    (gradient,) = torch.autograd.grad(prior.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(prior.score(x, sigma).detach(), gradient, rtol=1e-10, atol=1e-10)


def test_expand_sigma() -> None:
    x = torch.zeros(4, 2, 4, 4, dtype=torch.float64)
    for one in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        level = expand_sigma(one, x)
        assert level.shape == (4, 1, 1, 1)
        assert level.dtype == torch.float64
        assert bool((level == 0.5).all())
    each = expand_sigma(torch.tensor([1.0, 2.0, 3.0, 4.0]), x)
    assert each.flatten().tolist() == [1, 2, 3, 4]
    assert expand_sigma(0.5, torch.zeros(3, 7)).shape == (3, 1)
    with pytest.raises(ValueError, match="sigma has 3 entries for a batch of 4"):
        expand_sigma(torch.ones(3), x)


def test_check_shape() -> None:
    Shrink().check_shape((5, 1, 1))
    colour = Shrink(shape=(3, None, None))
    colour.check_shape((3, 7, 9))
    with pytest.raises(ValueError, match=r"images of shape \(3, 'any', 'any'\), but the operator takes \(1, 7, 9\)"):
        colour.check_shape((1, 7, 9))
    with pytest.raises(ValueError, match=r"\(3, 'any', 'any'\)"):
        colour.check_shape((3, 7))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), but the operator takes \(1, 8, 9\)"):
        Shrink(shape=(1, 8, 8)).check_shape((1, 8, 9))


@pytest.mark.parametrize("data_range", [(1.0, -1.0), (0.0, 0.0)])
def test_a_data_range_must_be_low_then_high(data_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low < high"):
        Shrink(data_range=data_range)


@pytest.mark.parametrize("levels", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_noise_levels_must_be_ordered(levels: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        Shrink(sigma_min=levels[0], sigma_max=levels[1])


def test_a_prior_must_write_denoise() -> None:
    with pytest.raises(TypeError, match="denoise"):
        Prior()  # type: ignore[abstract]
