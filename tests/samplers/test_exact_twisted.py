"""TwistedMMPS against posteriors that are known exactly, and the mutants that these tests catch.

Mutants: likelihood doubled, noise / sqrt 2, last step dropped, weights left out, weights squared, resampling without
looking at the weights, particles drawn whatever their weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exact import assert_posterior, dense_problem
from torch import Tensor

from invsolve.operators import GaussianNoise, MatrixOperator, Measurement
from invsolve.operators import standard_normal as real_noise
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.samplers import MMPS, TwistedMMPS, schedules, smc
from invsolve.samplers.base import Sampler
from invsolve.samplers.base import noise_level as real_level

SIX = torch.tensor([2.0, -1.0, 0.5, 1.0, -0.5, 1.0], dtype=torch.float64).reshape(1, 2, 3)


def correlated() -> GaussianPrior:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return GaussianPrior(0.3 * SIX, 0.05 * root @ root.T + 0.3 * torch.eye(6, dtype=torch.float64))


def far_modes(seed: int) -> tuple[Measurement, GaussianMixturePrior]:
    """The 25 modes of the benchmark of arXiv 2308.07983 in six dimensions, of which one noisy number tells little."""
    generator = torch.Generator().manual_seed(seed)
    corners = 8 * torch.cartesian_prod(*2 * [torch.arange(-2, 3, dtype=torch.float64)])
    weights = torch.randn(25, generator=generator, dtype=torch.float64) ** 2
    prior = GaussianMixturePrior(weights, corners.repeat(1, 3).reshape(25, 1, 2, 3), 1.0)
    matrix = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    operator = MatrixOperator(matrix / matrix.norm(), (1, 2, 3))
    noise = GaussianNoise(2 * float(torch.rand(1, generator=generator)))
    y = noise.sample(operator(prior.sample(1, generator)), generator)
    return Measurement(y.expand(500, -1), operator, noise), prior


def test_correlated_gaussian() -> None:
    """The denoiser's own covariance is exact on any Gaussian prior, so few particles and plain steps do."""
    prior = correlated()
    measurement = dense_problem(3, 0.4, prior, 800)
    sampler = TwistedMMPS(200, 2, cg_iterations=6, sigma_max=30.0)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.4))


def weight_error(sampler: Sampler, seed: int) -> float:
    """Total variation between the modes' shares among the samples and their exact weights."""
    measurement, prior = far_modes(seed)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(2))
    assert isinstance(measurement.noise, GaussianNoise)
    exact = prior.posterior(measurement.operator, measurement.y[0], float(measurement.noise.std))
    nearest = torch.cdist(samples.flatten(1), exact.means).argmin(1)
    shares = torch.bincount(nearest, minlength=25) / len(samples)
    return float((shares - exact.weights).abs().sum() / 2)


def test_modes_get_their_weights() -> None:
    assert max(weight_error(TwistedMMPS(60, 8, sigma_max=100.0), seed) for seed in (9, 10)) < 0.1


def test_the_same_guidance_without_weights_is_far_off() -> None:
    assert weight_error(MMPS(60, 5, sigma_max=100.0, schedule="edm"), seed=10) > 0.4


def test_no_noise_is_left() -> None:
    """The last step carries the data through: without noise in y the residual vanishes."""
    prior = correlated()
    measurement = dense_problem(3, 0.0, prior, 4)
    samples = TwistedMMPS(40, 2, cg_iterations=6, sigma_max=30.0)(measurement, prior)
    assert float((measurement.operator(samples) - measurement.y).abs().max()) < 1e-3


def weaker_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("invsolve.samplers.twistedmmps.standard_normal", lambda like, g: real_noise(like, g) / math.sqrt(2))


def doubled_likelihood(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("invsolve.samplers.twistedmmps.noise_level", lambda s, m: real_level(s, m) / math.sqrt(2))


def no_last_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedules, "with_zero", lambda levels: levels.tolist())


def no_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smc.Weights, "multiply", lambda self, log_factors: None)


def squared_weights(patch: pytest.MonkeyPatch) -> None:
    multiply = smc.Weights.multiply
    patch.setattr(smc.Weights, "multiply", lambda self, log_factors: multiply(self, 2 * log_factors))


def blind_resampling(patch: pytest.MonkeyPatch) -> None:
    def everybody(log_weights: Tensor, u: Tensor, count: int) -> Tensor:
        return torch.arange(count).expand(len(log_weights), -1)

    patch.setattr(smc, "systematic", everybody)


def unweighted_draw(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smc.Cloud, "draw", lambda self, generator=None, count=None: self.particles[:, 0])


MUTANTS: list[tuple[Callable[[], None], Callable[[pytest.MonkeyPatch], None]]] = [
    (test_correlated_gaussian, doubled_likelihood),
    (test_correlated_gaussian, weaker_noise),
    (test_no_noise_is_left, no_last_step),
    (test_modes_get_their_weights, no_weights),
    (test_modes_get_their_weights, squared_weights),
    (test_modes_get_their_weights, blind_resampling),
    (test_modes_get_their_weights, unweighted_draw),
]


@pytest.mark.parametrize(("test", "mutate"), MUTANTS, ids=[f"{t.__name__}-{m.__name__}" for t, m in MUTANTS])
def test_mutant_is_caught(
    test: Callable[[], None], mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        test()
