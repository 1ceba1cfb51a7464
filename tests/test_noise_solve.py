"""Every noise model through the front door: its Gaussian approximation around y is what the samplers see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invsolve import solve
from invsolve.inference import _gaussian
from invsolve.operators import (
    GaussianNoise,
    MatrixOperator,
    Measurement,
    Noise,
    Operator,
    PoissonGaussianNoise,
    PoissonNoise,
    StarvedRaysWarning,
    TransmissionNoise,
)
from invsolve.priors import GaussianPrior
from invsolve.samplers import DAPS

SHAPE = (1, 2, 3)
EXACT = DAPS(8, 1, sigma_max=5.0, prior_std=0.25)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior() -> GaussianPrior:
    return GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), 0.04, (0.0, 1.0))


def matrix() -> MatrixOperator:
    return MatrixOperator(normal(9, 6, seed=5).abs(), SHAPE)


LAWS: dict[str, Noise] = {
    "poisson": PoissonNoise(0.01),
    "poisson-gaussian": PoissonGaussianNoise(0.01, 0.05),
    "transmission": TransmissionNoise(5000.0),
    "transmission, electronic": TransmissionNoise(torch.linspace(3000, 5000, 9), 4.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_posterior_under_every_law(name: str) -> None:
    """It is that of Gaussian noise with y's own variance, whose posterior is tested for exactness in test_solve.py."""
    noise, operator = LAWS[name], matrix()
    truth = torch.full((1, *SHAPE), 0.5, dtype=torch.float64) + 0.2 * normal(1, *SHAPE, seed=2)
    y = noise.sample(operator(truth), torch.Generator().manual_seed(0))
    std = noise.gaussian(y).std
    options: dict[str, Any] = {"prior": prior(), "method": EXACT, "num_samples": 2}
    posterior = solve(y, operator, noise=noise, **options)
    assert isinstance(std, Tensor)
    assert torch.equal(posterior.samples, solve(y, operator, noise_std=std, **options).samples)
    assert posterior.info.noise_std == pytest.approx(float(std.mean()), rel=1e-6)
    assert 0.2 < float(np.mean(posterior.info.residual)) < 2.5


def test_images_of_a_batch_have_their_own_variances() -> None:
    noise, operator = PoissonGaussianNoise(0.01, 0.05), matrix()
    y = noise.sample(operator(torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(1)).double()))
    options: dict[str, Any] = {"noise": noise, "prior": prior(), "method": EXACT}
    together = solve(y, operator, seed=5, **options)
    for b in range(2):
        alone = solve(y[b : b + 1], operator, seed=5 + b, **options)
        assert torch.equal(together.samples[:, b : b + 1], alone.samples)


def test_starved_rays_are_reported_and_weigh_little() -> None:
    noise, operator = TransmissionNoise(100.0), matrix()
    y = operator(torch.full((1, *SHAPE), 0.5, dtype=torch.float64))
    y[0, 4] = np.log(100.0)
    with pytest.warns(StarvedRaysWarning, match=r"1 of 9 rays \(11 %\) are starved"):
        posterior = solve(y, operator, noise=noise, prior=prior(), method=EXACT)
    assert bool(torch.isfinite(posterior.samples).all())


class Square(Operator):
    """Nonlinear: squares."""

    def __init__(self) -> None:
        super().__init__(SHAPE, SHAPE)

    def forward(self, x: Tensor) -> Tensor:
        return x**2


def test_a_nonlinear_operator_with_counting_noise() -> None:
    truth = torch.full((1, *SHAPE), 0.7, dtype=torch.float64)
    noise = PoissonNoise(0.005)
    y = noise.sample(truth**2, torch.Generator().manual_seed(0))
    groups, level = _gaussian(Measurement(y, Square(), noise))
    std = (0.005 * y).sqrt()
    whitened = groups[0]
    assert isinstance(whitened.noise, GaussianNoise)
    torch.testing.assert_close(whitened.y / float(whitened.noise.std), y / std)
    torch.testing.assert_close(whitened.operator(truth) / float(whitened.noise.std), truth**2 / std)
    assert float((whitened.y / y).square().mean()) == pytest.approx(1), "the operator keeps its scale"
    assert level == pytest.approx(float(std.mean()))
    posterior = solve(y, Square(), noise=noise, prior=prior(), num_samples=2, method="daps", preset="fast")
    assert float(np.mean(posterior.info.residual)) < 3
    assert float((posterior.mean - truth).abs().max()) < 0.2
