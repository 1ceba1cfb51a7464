"""Projection and guidance samplers against laws derived by hand, and against exact posteriors where they reach them.

On the pair prior D(x) = K x with K = shrinkage(sigma), the measured channel is o^T x with o = OBSERVE, and a step of
every method is x <- T x + b y + S n: the laws below write T, b and S from the papers' equations, not from the code.

`test_mutants_guidance.py` breaks each sampler (likelihood doubled, noise divided by sqrt 2, last step dropped) and
checks that these tests turn red.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import (
    OBSERVE,
    PIXELS,
    PairPrior,
    assert_law,
    assert_posterior,
    dense_problem,
    pair_measurement,
    shrinkage,
    vp_levels,
)
from torch import Tensor

from invsolve.operators import GaussianNoise, MatrixOperator, Measurement, Operator, PoissonNoise
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.samplers.base import Sampler
from invsolve.samplers.ddnm import DDNM
from invsolve.samplers.ddrm import DDRM
from invsolve.samplers.dps import DPS, residual_gradient
from invsolve.samplers.flowchef import FlowChef
from invsolve.samplers.ilvr import ILVR
from invsolve.samplers.lgd import LGD
from invsolve.samplers.mmps import MMPS
from invsolve.samplers.pigdm import PiGDM
from invsolve.samplers.scoresde import ScoreSDE
from invsolve.samplers.tmpd import TMPD

Law = tuple[Tensor, Tensor]
IDENTITY = torch.eye(2, dtype=torch.float64)
SEEN = torch.diag(OBSERVE)
UNSEEN = IDENTITY - SEEN


class Linear:
    """The law of x at every pixel: mean `slope` times y, and a covariance."""

    def __init__(self, std: float, slope: Tensor | None = None) -> None:
        self.slope = torch.zeros(2, dtype=torch.float64) if slope is None else slope
        self.covariance = std**2 * IDENTITY

    def step(self, transition: Tensor, from_y: Tensor | float = 0.0, *spreads: Tensor) -> None:
        self.slope = transition @ self.slope + from_y
        self.covariance = transition @ self.covariance @ transition.T + sum(s @ s.T for s in spreads)

    def mean_square(self, row: Tensor, offset: float, power: float) -> float:
        """E (offset y - row x)^2 where y has mean square `power`."""
        return float(power * (offset - row @ self.slope) ** 2 + row @ self.covariance @ row)

    def law(self) -> Law:
        return self.slope, self.covariance


# --- levels, written down anew ----------------------------------------------------------------------------------------


def ddim_levels(num_steps: int) -> list[float]:
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    spacing = 1000 // num_steps
    values = [float(abar[k]) for k in range(1000 - spacing, -1, -spacing)]
    return [*(math.sqrt((1 - a) / a) for a in values), 0.0]


def edm_levels(num_steps: int, first: float, last: float) -> list[float]:
    a, b = first ** (1 / 7), last ** (1 / 7)
    return [*((a + k / (num_steps - 1) * (b - a)) ** 7 for k in range(num_steps)), 0.0]


def geometric_levels(num_steps: int, first: float, last: float) -> list[float]:
    return [*(first * (last / first) ** (k / (num_steps - 1)) for k in range(num_steps)), 0.0]


def levels_and_start(sampler: Sampler) -> tuple[list[float], Linear]:
    """The levels of a sampler with a choice of schedules, and the law of its first state."""
    settings = sampler.settings()
    name, count = settings["schedule"], settings["num_steps"]
    if name == "edm":
        levels = edm_levels(count, settings["sigma_max"], settings["sigma_min"])
        return levels, Linear(levels[0])
    levels = ddim_levels(count) if name == "ddim" else vp_levels(count)
    return levels, Linear(math.sqrt(1 + levels[0] ** 2))


# --- laws -------------------------------------------------------------------------------------------------------------


def scoresde_law(sampler: ScoreSDE, noise_std: float, power: float) -> Law:
    levels = geometric_levels(sampler.num_steps, sampler.sigma_max, sampler.sigma_min)
    x = Linear(levels[0])
    for sigma, tau in pairwise(levels):
        weight = sampler.weight / (1 + (noise_std / sigma) ** 2)
        keep = IDENTITY - weight * SEEN
        score = (shrinkage(sigma) - IDENTITY) / sigma**2
        for _ in range(sampler.corrector_steps):
            x.step(keep, weight * OBSERVE, weight * sigma * SEEN)
            square = sum(x.mean_square(score[k], 0.0, power) for k in range(2))
            length = 2 * sampler.snr**2 * 2 / square
            x.step(IDENTITY + length * score, 0.0, math.sqrt(2 * length) * IDENTITY)
        x.step(keep, weight * OBSERVE, weight * sigma * SEEN)
        share = float(tau > 0) if sampler.predictor == "reverse" else tau / sigma
        x.step(IDENTITY + (sigma**2 - tau**2) * score, 0.0, share * math.sqrt(sigma**2 - tau**2) * IDENTITY)
    if noise_std == 0:
        x.step(UNSEEN, OBSERVE)
    return x.law()


def ilvr_law(sampler: ILVR, noise_std: float, power: float) -> Law:
    levels, x = levels_and_start(sampler)
    for number, (sigma, tau) in enumerate(pairwise(levels)):
        k, ratio = shrinkage(sigma), (tau / sigma) ** 2
        x.step(k + ratio * (IDENTITY - k), 0.0, tau * math.sqrt(1 - ratio) * IDENTITY)
        if number < sampler.num_steps - sampler.free_steps:
            trust = 0.0 if tau == 0 and noise_std > 0 else 1.0
            if tau > 0:
                trust = 1 / (1 + (noise_std / tau) ** 2)
            x.step(IDENTITY - trust * SEEN, trust * OBSERVE, trust * tau * SEEN)
    return x.law()


def ddim_step(x: Linear, k: Tensor, b: Tensor, sigma: float, tau: float, eta: float, *more: Tensor) -> None:
    """DDIM step from the clean estimate k x + b y, whose own noise is `more`."""
    spread = eta * tau * math.sqrt(1 - (tau / sigma) ** 2)
    back = math.sqrt(tau**2 - spread**2) / sigma
    x.step(k + back * (IDENTITY - k), (1 - back) * b, spread * IDENTITY, *[(1 - back) * m for m in more])


def pigdm_law(sampler: PiGDM, noise_std: float, power: float) -> Law:
    levels, x = levels_and_start(sampler)
    if sampler.warm_start:
        x = Linear(levels[0], OBSERVE)
    for sigma, tau in pairwise(levels):
        k, c2 = shrinkage(sigma), sampler.data_std**2
        over_r2 = 1 / sigma**2 + 1 / c2
        g_y = k @ OBSERVE / (1 + noise_std**2 * over_r2)  # g = g_y y + g_x x
        g_x = -torch.outer(g_y, OBSERVE @ k)
        if sampler.guidance in ("bayes", "substituted"):
            gain = sigma**2 * over_r2 if sampler.guidance == "bayes" else 1.0
            ddim_step(x, k + gain * g_x, gain * g_y, sigma, tau, sampler.eta)
        else:
            gain = math.sqrt(1 + tau**2) if sampler.guidance == "paper" else 1.0
            spread = sampler.eta * tau * math.sqrt(1 - (tau / sigma) ** 2)
            back = math.sqrt(tau**2 - spread**2) / sigma
            x.step(k + back * (IDENTITY - k) + gain * g_x, gain * g_y, spread * IDENTITY)
    return x.law()


def moment_law(sampler: TMPD | MMPS, noise_std: float, power: float) -> Law:
    """TMPD and MMPS agree here, since A J A^T is diagonal."""
    levels, x = levels_and_start(sampler)
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        gain = k @ OBSERVE / (k[0, 0] + noise_std**2 / sigma**2)
        ddim_step(x, k - torch.outer(gain, OBSERVE @ k), gain, sigma, tau, sampler.eta)
    return x.law()


def lgd_law(sampler: LGD, noise_std: float, power: float) -> Law:
    levels, x = levels_and_start(sampler)
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        r2 = 1 / (1 / sigma**2 + 1 / sampler.data_std**2)
        gain = sampler.weight * sigma**2 / (noise_std**2 + r2) * (k @ OBSERVE)
        blurred = math.sqrt(r2) * torch.outer(gain, OBSERVE)
        ddim_step(x, k - torch.outer(gain, OBSERVE @ k), gain, sigma, tau, sampler.eta, blurred)
    return x.law()


def ddrm_law(sampler: DDRM | DDNM, noise_std: float, power: float) -> Law:
    levels, x = levels_and_start(sampler)
    eta, trust = sampler.eta, sampler.eta_b if isinstance(sampler, DDRM) else 1.0
    if isinstance(sampler, DDRM):
        x = Linear(levels[0], OBSERVE)
        x.covariance = x.covariance - noise_std**2 * SEEN
    for sigma, tau in pairwise(levels):
        k, keep = shrinkage(sigma), tau * math.sqrt(1 - eta**2)
        unseen = UNSEEN @ (k + keep / sigma * (IDENTITY - k))
        if tau >= noise_std:
            seen, from_y = SEEN @ k * (1 - trust), trust * OBSERVE
            spread = math.sqrt(tau**2 - (trust * noise_std) ** 2)
        else:
            seen, from_y = SEEN @ k * (1 - keep / noise_std), keep / noise_std * OBSERVE
            spread = eta * tau
        x.step(unseen + seen, from_y, eta * tau * UNSEEN + spread * SEEN)
    return x.law()


def ddnm_law(sampler: DDNM, noise_std: float, power: float) -> Law:
    levels, x = levels_and_start(sampler)
    old = math.sqrt(1 - sampler.eta**2)
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        if sampler.simplified:
            share = min(1.0, tau / noise_std)
            fresh = math.sqrt(max(0.0, tau**2 - (share * noise_std) ** 2))
            h, mix = (IDENTITY - share * SEEN) @ k, old * tau / sigma
            x.step(h + mix * (IDENTITY - h), (1 - mix) * share * OBSERVE, sampler.eta * fresh * IDENTITY)
        else:
            x.step(UNSEEN @ k + old * tau / sigma * (IDENTITY - k), OBSERVE, sampler.eta * tau * IDENTITY)
    return x.law()


def flowchef_law(sampler: FlowChef, noise_std: float, power: float) -> Law:
    times = [1 - k / sampler.num_steps for k in range(sampler.num_steps)]
    times = [sampler.t_max, *times[1:], 0.0]
    z = Linear(times[0])
    for t, following in pairwise(times):
        d = shrinkage(t / (1 - t)) / (1 - t)  # D = d z
        velocity = (IDENTITY - d) / t
        pull = sampler.step_size * (following > 0)
        z.step(IDENTITY + (following - t) * velocity - pull * SEEN @ d, pull * OBSERVE)
    return z.law()


def dps_euler_law(sampler: DPS, noise_std: float, power: float) -> Law:
    levels = edm_levels(sampler.num_steps, 100.0, 0.01)
    x = Linear(levels[0])
    sde = sampler.integrator == "sde"
    for sigma, tau in pairwise(levels):
        k = shrinkage(sigma)
        row = OBSERVE @ k
        zeta = sampler.step_size / math.sqrt(PIXELS**2 * x.mean_square(row, 1.0, power))
        drift = (2 if sde else 1) * (sigma - tau) / sigma
        transition = IDENTITY - drift * (IDENTITY - k) - zeta * torch.outer(row, row)
        x.step(transition, zeta * row, sde * math.sqrt(2 * sigma * (sigma - tau)) * IDENTITY)
    return x.law()


# A last level as high as this, so that leaving out the step from it shows.
EDM: dict[str, Any] = {"schedule": "edm", "sigma_max": 20.0, "sigma_min": 0.4}
CASES: dict[str, tuple[Sampler, float, Callable[..., Law], float]] = {
    "scoresde": (ScoreSDE(40, 1, 0.16, 1.0, "ancestral", 20.0, 0.05), 0.0, scoresde_law, 0.01),
    "scoresde-noisy": (ScoreSDE(40, 1, 0.16, 0.7, "reverse", 20.0, 0.4), 0.3, scoresde_law, 0.01),
    "ilvr": (ILVR(40, clip=False), 0.0, ilvr_law, 1e-5),
    "ilvr-free": (ILVR(40, free_steps=3, clip=False, **EDM), 0.3, ilvr_law, 0.0),
    "pigdm-paper": (PiGDM(20, 0.7, "paper", **EDM), 0.3, pigdm_law, 0.0),
    "pigdm-unit": (PiGDM(20, 0.7, "unit", warm_start=True), 0.3, pigdm_law, 0.0),
    "pigdm-substituted": (PiGDM(20, 0.7, "substituted"), 0.0, pigdm_law, 0.0),
    "pigdm-bayes": (PiGDM(40, 1.0, "bayes", **EDM), 0.3, pigdm_law, 0.0),
    "tmpd": (TMPD(40, **EDM), 0.3, moment_law, 0.0),
    "mmps": (MMPS(40, **EDM), 0.3, moment_law, 0.0),
    "mmps-ode": (MMPS(40, eta=0.0, **EDM), 0.3, moment_law, 0.0),
    "lgd": (LGD(40, num_draws=1, data_std=1.0, **EDM), 0.3, lgd_law, 0.0),
    "ddrm": (DDRM(20, **EDM), 0.5, ddrm_law, 0.0),
    "ddrm-trust": (DDRM(20, eta=0.6, eta_b=0.7), 0.3, ddrm_law, 0.0),
    "ddrm-noiseless": (DDRM(20), 0.0, ddrm_law, 1e-5),
    "ddnm": (DDNM(20), 0.0, ddnm_law, 1e-5),
    "ddnm-plus": (DDNM(20, **EDM), 0.5, ddrm_law, 0.0),
    "ddnm-simplified": (DDNM(20, simplified=True, **EDM), 0.5, ddnm_law, 0.0),
    "flowchef": (FlowChef(40, 0.3, "sum", t_max=0.999), 0.3, flowchef_law, 0.0),
    "dps-sde": (DPS(40, 4.0, clip=False, integrator="sde"), 0.3, dps_euler_law, 0.01),
    "dps-ode": (DPS(40, 4.0, clip=False, integrator="ode"), 0.3, dps_euler_law, 0.01),
}


@pytest.mark.parametrize("name", CASES)
def test_law_on_a_gaussian_prior(name: str) -> None:
    sampler, noise_std, law, bias = CASES[name]
    measurement = pair_measurement(noise_std, batch=6)
    samples = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    power = float(measurement.y[0, 0].square().mean())
    assert_law(samples, measurement.y, *law(sampler, noise_std, power), bias=bias)


# --- exact posteriors -------------------------------------------------------------------------------------------------


def correlated_prior() -> GaussianPrior:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 2
    covariance = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
    return GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), covariance)


FINE: dict[str, Any] = {"schedule": "edm", "sigma_max": 30.0, "sigma_min": 0.01}


@pytest.mark.parametrize("rows", [2, 5])
def test_mmps_is_exact_on_any_gaussian(rows: int) -> None:
    prior = correlated_prior()
    measurement = dense_problem(rows, 0.2, prior, 3000)
    sampler = MMPS(150, cg_iterations=rows, **FINE)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.2))


@pytest.mark.parametrize("rows", [2, 8])
def test_pigdm_in_bayes_form_is_exact_on_a_white_gaussian(rows: int) -> None:
    prior = GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), 0.49)
    measurement = dense_problem(rows, 0.2, prior, 3000)
    sampler = PiGDM(150, 1.0, "bayes", 0.7, **FINE)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.2))


def test_tmpd_is_exact_where_the_covariance_is_diagonal() -> None:
    prior = GaussianPrior(
        torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3),
        torch.linspace(0.2, 1.2, 6, dtype=torch.float64).reshape(1, 2, 3),
    )
    rows = torch.eye(6, dtype=torch.float64)[[0, 2, 5]] * torch.tensor([[1.0], [0.5], [0.8]], dtype=torch.float64)
    operator = MatrixOperator(rows, (1, 2, 3))
    y = torch.tensor([[0.7, -0.4, 0.2]], dtype=torch.float64).expand(3000, -1)
    sampler = TMPD(150, **FINE)
    samples = sampler(Measurement(y, operator, GaussianNoise(0.2)), prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(operator, y[0], 0.2))


def test_lgd_with_many_draws_is_exact_in_one_dimension() -> None:
    prior = GaussianPrior(torch.full((1, 1, 1), 0.5, dtype=torch.float64), 0.49)
    operator = MatrixOperator(torch.ones((1, 1), dtype=torch.float64), (1, 1, 1))
    y = torch.full((2000, 1), 1.3, dtype=torch.float64)
    sampler = LGD(100, 40, annealed=False, data_std=0.7, **FINE)
    samples = sampler(Measurement(y, operator, GaussianNoise(0.5)), prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(operator, y[0], 0.5))


@pytest.mark.parametrize("sampler", [DDRM(50), DDNM(50), DDNM(50, travel_length=5, travel_repeat=2)])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_the_data_are_met_to_the_noise(sampler: Sampler, noise_std: float) -> None:
    """A sharp mixture whose right component the data single out: the result explains the data, in that component."""
    means = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4
    prior = GaussianMixturePrior([0.5, 0.3, 0.2], means, 0.04, data_range=(-20, 20))
    measurement = dense_problem(3, noise_std, prior, 300)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    misfit = (measurement.operator(samples) - measurement.y).square().mean(1).sqrt().median()
    assert float(misfit) < (1.2 * noise_std if noise_std else 1e-4)
    exact = prior.posterior(measurement.operator, measurement.y[0], max(noise_std, 1e-3))
    right = means[int(exact.weights.argmax())]
    assert float(((samples - right).flatten(1).norm(dim=1) < 2).double().mean()) > 0.9


# --- Poisson noise and nonlinear operators ----------------------------------------------------------------------------


class Square(Operator):
    """Nonlinear: the squares of the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2


def test_the_poisson_gradient_is_the_weighted_one() -> None:
    """r^T diag(1/(2y)) r over ||r|| with ||r|| held fixed: by hand for one pixel, and free of the unit of y."""
    prior = GaussianPrior(torch.full((1, 1, 2), 4.0, dtype=torch.float64), 1.0, (0, 100))
    x = torch.tensor([[[[3.0, 5.0]]]], dtype=torch.float64)
    for unit in (1.0, 0.01):
        operator = MatrixOperator(unit * torch.eye(2, dtype=torch.float64), (1, 1, 2))
        y = unit * torch.tensor([[6.0, 0.0]], dtype=torch.float64)
        measurement = Measurement(y, operator, PoissonNoise(unit))
        denoised, gradient = residual_gradient(measurement, prior, x, 1.0, None)
        torch.testing.assert_close(denoised, torch.tensor([[[[3.5, 4.5]]]], dtype=torch.float64))
        residual = torch.tensor([6 - 3.5, 0 - 4.5], dtype=torch.float64)
        expected = -0.5 * residual / torch.tensor([6.0, 1.0]) / residual.norm()  # J = 1/2; no count weighs as one
        torch.testing.assert_close(gradient.flatten(), expected)


def test_dps_finds_a_poisson_image() -> None:
    prior = GaussianMixturePrior(
        [0.5, 0.5],
        torch.tensor([20.0, 60.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 4, 4),
        25.0,
        (0, 100),
    )
    operator = MatrixOperator(torch.eye(16, dtype=torch.float64)[::2], (1, 4, 4))
    truth = torch.full((200, 1, 4, 4), 62.0, dtype=torch.float64)
    noise = PoissonNoise(1.0)
    y = noise.sample(operator(truth), torch.Generator().manual_seed(0))
    samples = DPS(200, 5.0)(Measurement(y, operator, noise), prior, generator=torch.Generator().manual_seed(1))
    assert abs(float(samples.mean()) - 62) < 3


@pytest.mark.parametrize(
    "sampler",
    [
        LGD(200, 5, data_std=0.5, schedule="edm", sigma_max=20.0),
        FlowChef(200, 0.2, "sum", t_max=0.99),
        DPS(200, 0.1),
    ],
)
def test_nonlinear_operators(sampler: Sampler) -> None:
    prior = GaussianPrior(torch.full((1, 2, 2), 0.6, dtype=torch.float64), 0.04)
    truth = torch.tensor([[[0.9, 0.5], [0.45, 0.7]]], dtype=torch.float64)
    operator = Square((1, 2, 2), (1, 2, 2))
    y = operator(truth[None]).expand(100, -1, -1, -1)
    measurement = Measurement(y, operator, GaussianNoise(0.02))
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(0))
    assert float((samples.mean(0) - truth).abs().max()) < 0.05


# --- what does not fit ------------------------------------------------------------------------------------------------


def refusals() -> Iterator[tuple[Callable[[], object], str]]:
    prior = GaussianPrior(torch.zeros(1, 1, 2, dtype=torch.float64), 1.0)
    matrix = MatrixOperator(torch.eye(2, dtype=torch.float64), (1, 1, 2))
    y = torch.zeros((1, 2), dtype=torch.float64)
    yield lambda: ScoreSDE(weight=1.5), "weight is 1.5; expected a number from 0 to 1"
    yield lambda: DDNM(travel_repeat=0), "travel_repeat is 0"
    yield lambda: FlowChef(t_max=1.0), "t_max is 1.0"
    yield lambda: FlowChef(order=3), "order is 3"
    yield lambda: LGD(5, annealed=False)(Measurement(y, matrix, GaussianNoise(0.0)), prior), "set annealed=True"
    sums = matrix + matrix
    yield lambda: DDRM(5)(Measurement(y, sums, GaussianNoise(0.1)), prior), "singular values of Sum are not available"
    yield (
        lambda: PiGDM(5, schedule="ddmi")(Measurement(y, matrix, GaussianNoise(0.1)), prior),
        "unknown schedule 'ddmi'",
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("attempt", "sentence"), list(refusals()))
def test_refusals(attempt: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attempt()
