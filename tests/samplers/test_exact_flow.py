"""Flow-based methods against laws that are derived here independently.

Mutants tried, each turning a test of this file red: likelihood doubled, noise divided by sqrt(2), last step dropped,
data steps left out. `tests/samplers/test_mutants_split.py` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from exact import COVARIANCE, OBSERVE, PIXELS, PairPrior, assert_law, assert_posterior, dense_problem, pair_measurement
from exact import shrinkage as shrink
from torch import Tensor

from invsolve.operators import GaussianNoise, Identity, Measurement
from invsolve.priors import GaussianPrior
from invsolve.samplers import FLAIR, OTODE, PMRF, DFlow, FlowDPS, PnPFlow
from invsolve.samplers.base import Sampler

Law = tuple[Tensor, Tensor]
EYE = torch.eye(2, dtype=torch.float64)
SEEN = torch.diag(OBSERVE)
NOISE = 0.3
RIDGE = OBSERVE / (1 + (NOISE / 0.5) ** 2)
"""Slope of the regularised back-projection that several methods start from."""


def level(t: float) -> float:
    """sigma of the flow's time; the pair prior ends at 80."""
    return min(t / (1 - t), 80.0) if t < 1 else 80.0


# --- FLAIR ------------------------------------------------------------------------------------------------------------


def flair_law(sampler: FLAIR, power: float) -> Law:
    """Joint recursion of (mu, predicted noise), four numbers per pixel. The residual is at its expected size."""
    slope = torch.cat([RIDGE, torch.zeros(2, dtype=torch.float64)])
    covariance = torch.block_diag(torch.zeros(2, 2, dtype=torch.float64), EYE)
    times = [1 + k / (sampler.num_steps + 1) * (sampler.t_min - 1) for k in range(1, sampler.num_steps + 1)]
    assert sampler.weights is not None
    for t, weight in zip(times, sampler.weights, strict=True):
        sigma, keep = t / (1 - t), 1 - t
        fresh = sigma * math.sqrt(1 - keep**2)
        noisy = torch.cat([EYE, sigma * keep * EYE], 1)  # of (mu, noise), before the fresh noise
        relax, k = weight / t, shrink(sigma)
        to_mu = torch.cat([(1 - relax) * EYE, torch.zeros_like(EYE)], 1) + relax * k @ noisy
        to_noise = (EYE - k) @ noisy / sigma
        transition = torch.cat([to_mu, to_noise])
        inflow = fresh * torch.cat([relax * k, (EYE - k) / sigma])
        slope, covariance = transition @ slope, transition @ covariance @ transition.T + inflow @ inflow.T
        # onto the data, until the mean square of the residual is that of the noise
        square = float(power * (1 - slope[0]) ** 2 + covariance[0, 0])
        share = min(1.0, NOISE / math.sqrt(square))
        pull = torch.diag(torch.tensor([share, 1, 1, 1], dtype=torch.float64))
        slope = pull @ slope + (1 - share) * torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
        covariance = pull @ covariance @ pull
    return slope[:2], covariance[:2, :2]


# --- PnP-Flow ---------------------------------------------------------------------------------------------------------


def pnpflow_law(sampler: PnPFlow, _: float) -> Law:
    slope, covariance = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for i in range(sampler.num_steps):
        sigma = level(1 - i / sampler.num_steps)
        step = sampler.step_size * (sigma / (1 + sigma)) ** sampler.alpha
        transition = shrink(sigma) @ (EYE - step * SEEN)
        slope = transition @ slope + shrink(sigma) @ (step * OBSERVE)
        covariance = transition @ covariance @ transition.T
        covariance = covariance + sigma**2 / sampler.num_draws * shrink(sigma) @ shrink(sigma).T
    return slope, covariance


# --- FlowDPS ----------------------------------------------------------------------------------------------------------


def flowdps_law(sampler: FlowDPS, power: float) -> Law:
    """The gradient of the norm is the residual over its norm, whose square is at its expected value."""
    b = [1 - k / sampler.num_steps for k in range(sampler.num_steps)]
    levels = [*(level(sampler.shift * u / (1 + (sampler.shift - 1) * u)) for u in b), 0.0]
    slope, covariance = torch.zeros(2, dtype=torch.float64), levels[0] ** 2 * EYE
    for sigma, tau in pairwise(levels):
        t, t_next = sigma / (1 + sigma), tau / (1 + tau)
        k = shrink(sigma)
        data, from_y = k, torch.zeros(2, dtype=torch.float64)  # h = data x + from_y y
        for _ in range(sampler.inner_steps):
            miss = 1 - (data @ slope + from_y)[0]
            square = float(power * miss**2 + (data @ covariance @ data.T)[0, 0])
            pull = sampler.step_size * math.sqrt(2 * PIXELS**2) / math.sqrt(PIXELS**2 * square)
            data, from_y = data - pull * SEEN @ data, from_y + pull * (OBSERVE - SEEN @ from_y)
        clean = (1 - t) * k + t * data
        transition = clean + tau * math.sqrt(t_next) / sigma * (EYE - k)
        slope = transition @ slope + t * from_y
        covariance = transition @ covariance @ transition.T + tau**2 * (1 - t_next) * EYE
    return slope, covariance


# --- OT-ODE -----------------------------------------------------------------------------------------------------------


def otode_law(sampler: OTODE, _: float) -> Law:
    start, n = sampler.start_time, sampler.num_steps
    levels = [(1 - s) / s for s in (start + (1 - start) * k / n for k in range(n + 1))]
    slope, covariance = RIDGE, levels[0] ** 2 * EYE
    for sigma, tau in pairwise(levels):
        k, c = shrink(sigma), sampler.prior_std
        variance = 1 / (1 / sigma**2 + 1 / c**2)
        s = 1 / (1 + sigma)
        gamma = math.sqrt(s / (s**2 + (1 - s) ** 2)) if sampler.guidance == "decaying" else 1.0
        gain = gamma * sigma**2 / (variance + NOISE**2) * k.T
        denoise = k - gain @ SEEN @ k
        move = (tau - sigma) / sigma
        transition = EYE + move * (EYE - denoise)
        slope = transition @ slope - move * gain @ OBSERVE
        covariance = transition @ covariance @ transition.T
    return slope, covariance


@pytest.mark.parametrize("rows", [2, 8])
def test_otode_is_exact_on_a_white_gaussian(rows: int) -> None:
    prior = GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), 1.0)
    measurement = dense_problem(rows, 0.2, prior, 4000)
    sampler = OTODE(120, start_time=0.01, guidance="constant")
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.2))


# --- PMRF -------------------------------------------------------------------------------------------------------------

ESTIMATE = COVARIANCE @ OBSERVE / (1 + NOISE**2)
"""Slope of the posterior mean E[x | y]."""
LEFT = COVARIANCE - torch.outer(ESTIMATE, ESTIMATE) * (1 + NOISE**2)
"""Covariance of x given y."""


def ideal_flow(source_std: float, s: float) -> Tensor:
    """w(z, s) = E[x - z0 | z_s = z] as a matrix: x = f + e, z0 = f + source_std n, z_s = s x + (1 - s) z0."""
    source = source_std**2 * EYE
    estimates = torch.outer(ESTIMATE, ESTIMATE) * (1 + NOISE**2)
    return (s * LEFT - (1 - s) * source) @ torch.linalg.inv(estimates + s**2 * LEFT + (1 - s) ** 2 * source)


def pmrf(num_steps: int, source_std: float) -> PMRF:
    def flow(z: Tensor, s: float) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", ideal_flow(source_std, s), z)

    def estimator(measurement: Measurement) -> Tensor:
        return ESTIMATE[:, None, None] * measurement.y[:, :1]

    return PMRF(estimator, flow, num_steps, source_std)


def pmrf_law(sampler: PMRF, _: float) -> Law:
    slope, covariance = ESTIMATE, sampler.source_std**2 * EYE
    for k in range(sampler.num_steps):
        transition = EYE + ideal_flow(sampler.source_std, k / sampler.num_steps) / sampler.num_steps
        slope, covariance = transition @ slope, transition @ covariance @ transition.T
    return slope, covariance


def test_pmrf_brings_the_estimates_to_the_law_of_the_images() -> None:
    """The pixels are draws of y, so over them the result has the prior's covariance; one step gives the estimate."""
    measurement = pair_measurement(NOISE, batch=1)
    x = pmrf(150, 0.3)(measurement, PairPrior(), generator=torch.Generator().manual_seed(11))  # y was drawn with 0
    torch.testing.assert_close(torch.cov(x[0].flatten(1)), COVARIANCE, rtol=0.08, atol=0)
    once = pmrf(1, 1e-6)(measurement, PairPrior(), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(once, ESTIMATE[:, None, None] * measurement.y[:, :1], rtol=0, atol=1e-4)


# --- D-Flow -----------------------------------------------------------------------------------------------------------


def dflow_map(sampler: DFlow) -> Tensor:
    """T of the midpoint rule as a matrix, with v(x, t) = (x - K x / (1 - t)) / t."""

    def velocity(t: float) -> Tensor:
        return (EYE - shrink(t / (1 - t)) / (1 - t)) / t

    first, total = 80 / 81, EYE
    for k in range(sampler.ode_steps):
        t, h = first * (1 - k / sampler.ode_steps), -first / sampler.ode_steps
        total = (EYE + h * velocity(t + h / 2) @ (EYE + h / 2 * velocity(t))) @ total
    return total


def dflow_law(sampler: DFlow, _: float) -> Law:
    """Without the penalty the search ends at the nearest z with A T z = y, as all its moves are in A's row space."""
    assert (sampler.lam, sampler.blend) == (0.0, 0.0)
    transport = dflow_map(sampler)
    row = OBSERVE @ transport
    pinv = row / (row @ row)
    kept = EYE - torch.outer(pinv, row)
    return transport @ pinv, transport @ kept @ kept.T @ transport.T


def test_dflow_is_stationary() -> None:
    """2 T^T (T z - y) + lam (1 - (n - 1)/|z|^2) z = 0 at the result's own z, with lam = 2 noise_std^2."""
    operator = Identity((2, 4, 4))
    y = 2.5 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sampler = DFlow(num_steps=60, ode_steps=2)
    measurement = Measurement(y, operator, GaussianNoise(0.5))
    x = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(1))
    plain = DFlow(num_steps=60, ode_steps=2, checkpoint=False)
    torch.testing.assert_close(
        plain(measurement, PairPrior(), generator=torch.Generator().manual_seed(1)), x, rtol=1e-9, atol=1e-9
    )
    transport = dflow_map(sampler)
    z = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(transport), x)
    data = 2 * torch.einsum("ji,bjhw->bihw", transport, x - y)
    radius = z.square().sum((1, 2, 3), keepdim=True)
    penalty = 2 * 0.5**2 * (1 - (z[0].numel() - 1) / radius) * z
    assert float((data + penalty).norm() / penalty.norm()) < 1e-3


def test_dflow_starts_from_the_inverted_data() -> None:
    """Before the search does anything the image is the back-projection, carried to noise and back."""
    measurement = pair_measurement(NOISE, batch=1)
    x = DFlow(num_steps=1, ode_steps=40, blend=1.0)(measurement, PairPrior())
    ridge = RIDGE[0] * measurement.y[:, :1]
    assert float((x[:, :1] - ridge).norm() / ridge.norm()) < 0.05


# --- all --------------------------------------------------------------------------------------------------------------

WEIGHTS = (0.5, 0.6, 0.7, 0.7, 0.65, 0.6, 0.5, 0.4)
CASES: dict[str, tuple[Sampler, Callable[..., Law], float]] = {
    "flair": (FLAIR(8, weights=WEIGHTS), flair_law, 0.01),
    "pnpflow": (PnPFlow(12, num_draws=2, step_size=0.8, alpha=0.7), pnpflow_law, 0.0),
    "flowdps": (FlowDPS(8, step_size=0.02), flowdps_law, 0.01),
    "otode": (OTODE(5, start_time=0.1, guidance="constant", prior_std=0.7), otode_law, 0.0),
    "otode-decaying": (OTODE(20, start_time=0.2, guidance="decaying"), otode_law, 0.0),
    "pmrf": (pmrf(5, 0.3), pmrf_law, 0.0),
    "dflow": (DFlow(num_steps=25, ode_steps=3, lam=0.0, blend=0.0), dflow_law, 1e-6),
}


@pytest.mark.parametrize("name", CASES)
def test_law_on_a_gaussian_prior(name: str) -> None:
    sampler, law, bias = CASES[name]
    measurement = pair_measurement(NOISE, batch=4)
    samples = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    power = float(measurement.y[0, 0].square().mean())
    # FLAIR and FlowDPS divide by a norm that fluctuates; the bias of using its expectation is below 1 %.
    assert_law(samples, measurement.y, *law(sampler, power), bias=bias)


def test_flair_without_data_keeps_the_priors_variance() -> None:
    """Published for a white Gaussian prior, the shipped weights and 50 steps: 1.05 with trajectory adjustment."""
    prior = GaussianPrior(torch.full((1, 2, 3), 0.4, dtype=torch.float64), 1.0)
    measurement = Measurement(torch.zeros(4000, 1, 2, 3).double(), Identity((1, 2, 3)), GaussianNoise(1e6))
    samples = FLAIR(damping=1e12)(measurement, prior, generator=torch.Generator().manual_seed(0)).flatten(1)
    assert float((samples.mean(0) - 0.4).abs().max()) < 0.08
    assert abs(float(samples.var(0).mean()) - 1.05) < 0.04


def test_flair_ends_at_the_noise_level() -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 3, dtype=torch.float64), 1.0)
    for noise_std in (0.0, 0.2):
        measurement = dense_problem(3, noise_std, prior, 5)
        x = FLAIR(20, data_steps=200)(measurement, prior, generator=torch.Generator().manual_seed(0))
        residual = (measurement.operator(x) - measurement.y).square().mean(1).sqrt()
        assert float(residual.max()) <= noise_std + 1e-3


def test_calibration_of_flair_measures_the_priors_error() -> None:
    """Of a white Gaussian prior E |D - x0|^2 = sigma^2 / (1 + sigma^2), so that e(t) = 1 / (t^2 + (1 - t)^2)."""
    prior = GaussianPrior(torch.zeros(1, 20, 20, dtype=torch.float64), 1.0)
    images = prior.sample(20, torch.Generator().manual_seed(0))
    sampler = FLAIR().calibrated(prior, images, torch.Generator().manual_seed(1), count=10)
    assert sampler.errors is not None
    for t, error in sampler.errors:
        assert abs(error * (t**2 + (1 - t) ** 2) - 1) < 0.1, (t, error)
    weights = [sampler.weight(k / 99, 1) for k in range(100)]
    assert abs(sum(weights) / 100 - 0.5) < 1e-9
