"""Samplers against posteriors that are known exactly.

An exact sampler must match the posterior's mean (z-test) and variance (within 15 %). An approximate one is held just
as tightly to its own law: on a Gaussian prior every method here is (conditionally) linear, so the mean and covariance
of its output follow from a small recursion, derived below independently of the code under test.

Mutants tried, each turning tests of this file red: likelihood gradient doubled (DPS, MCG), gamma doubled (DDS),
noise_std doubled (DAPS), injected noise divided by sqrt(2) (all), last step dropped (all), projection left out (MCG),
renoising to the current instead of the next level (DAPS). `tests/samplers/test_mutants.py` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from exact import (
    OBSERVE,
    PIXELS,
    PairPrior,
    assert_callback,
    assert_law,
    assert_posterior,
    assert_seeded,
    dense_problem,
    pair_measurement,
    shrinkage,
    vp_levels,
)
from torch import Tensor

from invsolve.operators import Measurement
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.priors.conversions import DiscreteVPSchedule
from invsolve.samplers import DAPS, DDS, DPS, MCG, DiffPIR
from invsolve.samplers.base import Sampler

# --- the laws ---------------------------------------------------------------------------------------------------------


def guided_law(num_steps: int, zeta: float, power: float, project: bool) -> tuple[Tensor, Tensor]:
    """Mean slope and covariance of DPS (or MCG) on the pair prior, when the residual norm is at its expected value.

    The norm over 4096 observed pixels fluctuates by about 1 %, so taking its expectation costs less than that.
    """
    levels = vp_levels(num_steps)
    identity = torch.eye(2, dtype=torch.float64)
    slope, covariance = torch.zeros(2, dtype=torch.float64), (1 + levels[0] ** 2) * identity
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        row = OBSERVE @ k  # D of the observed channel
        mean_square = power * (1 - row @ slope) ** 2 + row @ covariance @ row
        norm = math.sqrt(PIXELS**2 * float(mean_square))
        weight = zeta * math.sqrt((1 + tau**2) * (1 + sigma**2)) / norm
        ratio = (tau / sigma) ** 2
        transition = k + ratio * (identity - k) - weight * torch.outer(row, row)
        slope = transition @ slope + weight * row
        covariance = transition @ covariance @ transition.T + tau**2 * (1 - ratio) * identity
        if project:
            slope[0] = 1.0
            covariance = torch.diag(torch.stack([torch.tensor(tau**2, dtype=torch.float64), covariance[1, 1]]))
    return slope, covariance


def dds_law(num_steps: int, gamma: float, eta: float) -> tuple[Tensor, Tensor]:
    schedule = DiscreteVPSchedule.linear().sigmas
    levels = [*(float(schedule[k]) for k in range(1000 - 1000 // num_steps, -1, -1000 // num_steps)), 0.0]
    identity, observed = torch.eye(2, dtype=torch.float64), torch.diag(OBSERVE)
    slope, covariance = torch.zeros(2, dtype=torch.float64), (1 + levels[0] ** 2) * identity
    prox = torch.linalg.inv(identity + gamma * observed)
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        transition = prox @ k + tau * math.sqrt(1 - eta**2) / sigma * (identity - k)
        slope = transition @ slope + prox @ (gamma * OBSERVE)
        covariance = transition @ covariance @ transition.T + (tau * eta) ** 2 * identity
    return slope, covariance


def daps_law(sampler: DAPS, tau: float) -> tuple[Tensor, Tensor]:
    """Exact inner draw: v = H^-1 (x0_hat / r^2 + y / tau^2) + H^-1/2 n with H = 1/r^2 + A^T A / tau^2."""
    position = torch.arange(sampler.num_steps, dtype=torch.float64) / (sampler.num_steps - 1)
    first, last = sampler.sigma_max ** (1 / 7), sampler.sigma_min ** (1 / 7)
    levels = [*((first + position * (last - first)) ** 7).tolist(), 0.0]
    identity, observed = torch.eye(2, dtype=torch.float64), torch.diag(OBSERVE)
    slope, covariance = torch.zeros(2, dtype=torch.float64), levels[0] ** 2 * identity
    for sigma, following in pairwise(levels):
        ode = sampler.ode_levels(sigma)
        flow = identity
        for a, b in pairwise(ode):
            flow = (identity + (b - a) / a * (identity - shrinkage(a))) @ flow
        r2 = sigma**2 if sampler.prior_std is None else 1 / (1 / sigma**2 + 1 / sampler.prior_std**2)
        h_inverse = torch.linalg.inv(identity / r2 + observed / tau**2)
        slope = h_inverse @ (flow @ slope / r2 + OBSERVE / tau**2)
        covariance = h_inverse @ (flow @ covariance @ flow.T) @ h_inverse / r2**2 + h_inverse
        covariance = covariance + following**2 * identity
    return slope, covariance


def diffpir_law(sampler: DiffPIR, noise_std: float) -> tuple[Tensor, Tensor]:
    """v = P D + (I-P) y, P = lam (noise/sigma)^2 / (A^T A + lam (noise/sigma)^2), T (sqrt(1-z) eps + sqrt(z) n)."""
    position = torch.arange(sampler.num_steps, dtype=torch.float64) / (sampler.num_steps - 1)
    first, last = sampler.sigma_max ** (1 / 7), sampler.sigma_min ** (1 / 7)
    levels = [*((first + position * (last - first)) ** 7).tolist(), 0.0]
    identity = torch.eye(2, dtype=torch.float64)
    temperature, zeta = sampler.temperature, sampler.zeta
    slope = OBSERVE / (1 + (noise_std / 0.5) ** 2)
    covariance = (temperature * levels[0]) ** 2 * identity
    for sigma, tau in pairwise(levels):
        weight = sampler.lam * (noise_std / sigma) ** 2
        keep = torch.diag(weight / (OBSERVE + weight))
        to_v = keep @ shrinkage(sigma)
        from_y = OBSERVE / (1 + weight)
        mix = temperature * tau * math.sqrt(1 - zeta) / sigma
        transition = to_v + mix * (identity - to_v)
        slope = transition @ slope + (1 - mix) * from_y
        covariance = transition @ covariance @ transition.T + (temperature * tau) ** 2 * zeta * identity
    return slope, covariance


DIFFPIR = {
    "diffpir": DiffPIR(30, sigma_max=20.0, sigma_min=0.2, lam=1.3, zeta=0.6),
    "diffpir-cool": DiffPIR(30, sigma_max=2.0, sigma_min=0.2, lam=1.3, temperature=0.5),
}
CASES: dict[str, tuple[Sampler, float, Callable[[float], tuple[Tensor, Tensor]]]] = {
    "dps": (DPS(60, 4.0, clip=False), 0.3, lambda power: guided_law(60, 4.0, power, project=False)),
    "mcg": (MCG(60, 4.0, clip=False), 0.0, lambda power: guided_law(60, 4.0, power, project=True)),
    "dds": (DDS(20, 1.5, cg_iterations=5, eta=0.6), 0.3, lambda _: dds_law(20, 1.5, 0.6)),
    "dds-closed": (DDS(20, 1.5, cg_iterations=None, eta=0.6), 0.3, lambda _: dds_law(20, 1.5, 0.6)),
    **{name: (s, 0.3, lambda _, s=s: diffpir_law(s, 0.3)) for name, s in DIFFPIR.items()},
    "daps": (
        DAPS(40, 3, sigma_max=20.0, sigma_min=0.2),
        0.3,
        lambda _: daps_law(DAPS(40, 3, sigma_max=20.0, sigma_min=0.2), 0.3),
    ),
    "daps-tweedie": (
        DAPS(40, 1, sigma_max=20.0, sigma_min=0.2, prior_std=1.0),
        0.3,
        lambda _: daps_law(DAPS(40, 1, sigma_max=20.0, sigma_min=0.2, prior_std=1.0), 0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_law_on_a_gaussian_prior(name: str) -> None:
    sampler, noise_std, law = CASES[name]
    measurement = pair_measurement(noise_std, batch=6)
    samples = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    power = float(measurement.y[0, 0].square().mean())
    # DPS and MCG divide by a norm that fluctuates; the bias of using its mean is below 1 %.
    assert_law(samples, measurement.y, *law(power), bias=0.01 if name in ("dps", "mcg") else 0.0)


# --- exact posteriors -------------------------------------------------------------------------------------------------


EXACT_DAPS = DAPS(num_steps=100, ode_steps=1, sigma_max=30.0, sigma_min=0.02, prior_std=0.7)


@pytest.mark.parametrize("rows", [2, 8])
def test_daps_is_exact_on_a_white_gaussian(rows: int) -> None:
    prior = GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), 0.49)
    measurement = dense_problem(rows, 0.2, prior, 4000)
    samples = EXACT_DAPS(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.2))


def test_daps_on_a_mixture_whose_component_the_data_decide() -> None:
    means = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 8
    prior = GaussianMixturePrior([0.5, 0.3, 0.2], means, 0.49)
    measurement = dense_problem(5, 0.2, prior, 4000)
    exact = prior.posterior(measurement.operator, measurement.y[0], 0.2)
    assert float(exact.weights.max()) > 0.999
    samples = EXACT_DAPS(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, exact)


def test_dps_and_dds_find_the_component_of_a_mixture() -> None:
    """They do not sample the posterior, but must end in the component that the data single out, explaining the data."""
    means = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4
    prior = GaussianMixturePrior([0.5, 0.3, 0.2], means, 0.01, data_range=(-20, 20))
    measurement = dense_problem(5, 0.2, prior, 300)
    exact = prior.posterior(measurement.operator, measurement.y[0], 0.2)
    right = means[int(exact.weights.argmax())]
    for sampler in (DPS(200, 1.5), DDS(50, gamma=25.0, eta=0.85)):
        samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
        distance = (samples - right).flatten(1).norm(dim=1)
        assert float((distance < 2).double().mean()) > 0.95, (sampler.name(), distance.quantile(0.95))


# --- invariances ------------------------------------------------------------------------------------------------------

ALL = {
    "dps": DPS(20, 5.0),
    "mcg": MCG(20, 5.0),
    "dds": DDS(20),
    "daps": DAPS(10, 2),
    "diffpir": DiffPIR(10),
    "langevin": DAPS(10, 2, inner="langevin", inner_steps=5, step_size=1e-3),
}


@pytest.mark.parametrize("name", ALL)
def test_an_entry_does_not_depend_on_its_neighbours(name: str) -> None:
    prior = GaussianMixturePrior(
        [0.4, 0.6],
        torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64),
        0.3,
        (-9, 9),
    )
    measurement = dense_problem(4, 0.1, prior, 5)
    y = measurement.y * torch.tensor([1.0, 1e4, 1.0, -3.0, 0.0], dtype=torch.float64)[:, None]
    generators = [torch.Generator().manual_seed(k) for k in range(5)]
    together = ALL[name](Measurement(y, measurement.operator, measurement.noise), prior, generator=generators)
    for k in (0, 2):
        alone = ALL[name](
            Measurement(y[k : k + 1], measurement.operator, measurement.noise),
            prior,
            generator=[torch.Generator().manual_seed(k)],
        )
        torch.testing.assert_close(alone[0], together[k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_equal_seeds_give_equal_samples_and_leave_the_global_generator_alone(name: str) -> None:
    assert_seeded(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_a_callback_sees_every_step_and_can_stop(name: str) -> None:
    assert_callback(ALL[name])
