"""Problems whose posteriors, or whose samplers' own laws, are known in closed form, and the tests against them.

On the pair prior every Gaussian method is (conditionally) linear, so that the mean and covariance of what a sampler
returns follow from a small recursion over 2 x 2 matrices: `test_exact.py` and its companions derive those.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.operators import GaussianNoise, Mask, MatrixOperator, Measurement
from invsolve.priors import GaussianMixturePrior, GaussianPrior, Prior
from invsolve.samplers import Sampler

PIXELS = 64
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
OBSERVE = torch.tensor([1.0, 0.0], dtype=torch.float64)


class PairPrior(Prior):
    """Two channels with covariance COVARIANCE at every pixel, pixels independent."""

    def __init__(self) -> None:
        super().__init__((2, None, None), (-1e6, 1e6))

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", shrinkage(float(sigma)), x)


def shrinkage(sigma: float) -> Tensor:
    """K with D(x, sigma) = K x."""
    return COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))


def pair_measurement(noise_std: float, batch: int, seed: int = 0) -> Measurement:
    """The first channel of a draw from the prior, measured with noise; the same for the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(COVARIANCE)
    x = torch.einsum("ij,jhw->ihw", root, torch.randn(2, PIXELS, PIXELS, generator=generator, dtype=torch.float64))
    y = (x + noise_std * torch.randn(x.shape, generator=generator, dtype=torch.float64)) * OBSERVE[:, None, None]
    mask = OBSERVE[:, None, None].expand(2, PIXELS, PIXELS)
    return Measurement(y.expand(batch, -1, -1, -1), Mask(mask, dtype=torch.float64), GaussianNoise(noise_std))


def assert_law(samples: Tensor, y: Tensor, slope: Tensor, covariance: Tensor, bias: float = 0.0) -> None:
    """samples ~ N(slope * y, covariance) at every pixel: z-test of the slopes, 15 % on the variances."""
    data = y[:, 0]
    for channel in range(2):
        values = samples[:, channel]
        fitted = float((values * data).sum() / data.square().sum())
        error = math.sqrt(float(covariance[channel, channel]) / float(data.square().sum()))
        assert abs(fitted - float(slope[channel])) < 5 * error + bias, (channel, fitted, float(slope[channel]), error)
        variance = float((values - fitted * data).square().mean())
        expected = float(covariance[channel, channel])
        assert abs(variance - expected) < 0.15 * expected + 1e-9, (channel, variance, expected)


def vp_levels(num_steps: int) -> list[float]:
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    index = torch.linspace(999, 0, num_steps).round().long()
    return [*((1 - abar[index]) / abar[index]).sqrt().tolist(), 0.0]


def assert_posterior(samples: Tensor, exact: GaussianMixturePrior) -> None:
    """z-test of the mean and 15 % on the variance, entry by entry."""
    flat = samples.flatten(1)
    variance = exact.covariance().diagonal()
    z = (flat.mean(0) - exact.mean().flatten()) / (variance / len(flat)).sqrt()
    assert float(z.abs().max()) < 5, z
    ratio = flat.var(0) / variance
    assert float((ratio - 1).abs().max()) < 0.15, ratio


def dense_problem(rows: int, noise_std: float, prior: GaussianMixturePrior, batch: int) -> Measurement:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    operator = MatrixOperator(matrix / torch.linalg.matrix_norm(matrix, 2), (1, 2, 3))
    y = GaussianNoise(noise_std).sample(operator(prior.sample(1, generator)), generator)
    return Measurement(y.expand(batch, -1), operator, GaussianNoise(noise_std))


def assert_seeded(sampler: Sampler) -> None:
    """Equal seeds give equal samples, and the global generator is left alone."""
    prior = GaussianPrior(torch.zeros(1, 2, 3, dtype=torch.float64), 0.5)
    measurement = dense_problem(4, 0.1, prior, 3)
    before = torch.random.get_rng_state()
    first, second, third = (
        sampler(measurement, prior, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    sampler(measurement, prior)
    assert torch.equal(before, torch.random.get_rng_state())


def assert_callback(sampler: Sampler) -> None:
    """A callback sees every step, and can stop the run."""
    prior = GaussianPrior(torch.zeros(1, 2, 3, dtype=torch.float64), 0.5)
    measurement = dense_problem(4, 0.1, prior, 2)
    seen: list[tuple[int, int, float]] = []
    sampler(measurement, prior, callback=lambda step, total, sigma, x, d: seen.append((step, total, sigma)))
    assert [step for step, _, _ in seen] == list(range(1, seen[-1][1] + 1))
    assert all(a[2] > b[2] for a, b in pairwise(seen))
    stopped = sampler(measurement, prior, callback=lambda step, total, sigma, x, d: step == 3)
    assert stopped.shape == (2, 1, 2, 3)
