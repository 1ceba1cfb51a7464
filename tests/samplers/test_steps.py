"""Single steps and schedules against closed forms on Gaussian priors.

Mutants tried, each turning tests of this file red: Heun without the average, the slope at tau divided by sigma, noise
of an ancestral step tau instead of tau sqrt(1 - (tau/sigma)^2), variances of the two kinds swapped, eta^2 forgotten in
`renoise`, DDIM without its posterior factor, power of the polynomial schedule inverted, intervals off by one, DDIM
timesteps shifted by one.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from invsolve.priors.conversions import DiscreteVPSchedule
from invsolve.samplers import schedules, steps

SPREAD = 0.6
CENTRE = 0.4


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Of the prior N(CENTRE, SPREAD^2)."""
    return CENTRE + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - CENTRE)


def flow(x: Tensor, sigma: float, tau: float) -> Tensor:
    """Exact solution of the probability-flow ODE from sigma to tau."""
    return CENTRE + (x - CENTRE) * math.sqrt((SPREAD**2 + tau**2) / (SPREAD**2 + sigma**2))


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- probability-flow ODE ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("final", [0.1, 1.0])
def test_order_of_the_integrators(order: int, final: float) -> None:
    x = CENTRE + 5 * normal(8)
    counts = [32, 64, 128, 256]
    errors = []
    for count in counts:
        levels = torch.linspace(5.0, final, count + 1, dtype=torch.float64).tolist()
        errors.append(float((steps.integrate(denoise, x, levels, order) - flow(x, 5.0, final)).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.2), errors


def test_one_heun_step_by_hand() -> None:
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    sigma, tau = 2.0, 1.0
    slope = (x - denoise(x, sigma)) / sigma
    proposal = x - slope
    corrected = x - 0.5 * (slope + (proposal - denoise(proposal, tau)) / tau)
    torch.testing.assert_close(steps.heun(denoise, x, denoise(x, sigma), sigma, tau), corrected)
    torch.testing.assert_close(steps.euler(x, denoise(x, sigma), sigma, tau), proposal)


def test_a_step_to_zero_is_the_denoised_image() -> None:
    x = normal(5)
    d = denoise(x, 0.7)
    torch.testing.assert_close(steps.euler(x, d, 0.7, 0.0), d)
    torch.testing.assert_close(steps.heun(denoise, x, d, 0.7, 0.0), d)
    torch.testing.assert_close(steps.integrate(denoise, x, [0.7, 0.0], 2), d)
    torch.testing.assert_close(steps.ancestral(x, d, 0.7, 0.0, normal(5, 1)), d)
    torch.testing.assert_close(steps.ancestral(x, d, 0.7, 0.0, normal(5, 1), variance=1.0), d)
    torch.testing.assert_close(steps.ddim(x, d, 0.7, 0.0, 0.5, normal(5, 1)), d)


def test_evaluations_of_the_integrators() -> None:
    calls: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return denoise(x, sigma)

    steps.integrate(counted, normal(2), [3.0, 2.0, 1.0, 0.0], 1)
    assert calls == [3.0, 2.0, 1.0]
    calls.clear()
    steps.integrate(counted, normal(2), [3.0, 2.0, 1.0, 0.0], 2)
    assert calls == [3.0, 2.0, 2.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="order is 3; expected 1"):
        steps.integrate(denoise, normal(2), [1.0, 0.0], 3)


# --- stochastic steps -------------------------------------------------------------------------------------------------

MANY = 200_000


def assert_normal(x: Tensor, mean: float, std: float) -> None:
    assert abs(float(x.mean()) - mean) < 5 * std / math.sqrt(len(x))
    assert float(x.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * len(x)))


@pytest.mark.parametrize(("sigma", "tau"), [(2.0, 1.5), (2.0, 0.1), (80.0, 0.5)])
def test_ancestral_is_the_posterior_of_the_forward_process(sigma: float, tau: float) -> None:
    """With d = x0 itself the step draws x_tau given x_sigma and x0, so the marginal is N(x0, tau^2), any step size."""
    x = CENTRE + sigma * normal(MANY)
    x_tau = steps.ancestral(x, torch.full_like(x, CENTRE), sigma, tau, normal(MANY, 1))
    assert_normal(x_tau, CENTRE, tau)
    joint = torch.corrcoef(torch.stack([x, x_tau]))[0, 1]
    assert float(joint) == pytest.approx(tau / sigma, abs=0.01)


@pytest.mark.parametrize(("sigma", "tau"), [(2.0, 1.5), (2.0, 0.1), (80.0, 0.5)])
def test_the_large_variance_is_exact_for_unit_variance(sigma: float, tau: float) -> None:
    """On N(m, 1) the denoiser leaves out exactly what beta_t adds: the marginals stay N(m, 1 + tau^2)."""
    x = CENTRE + math.sqrt(1 + sigma**2) * normal(MANY)
    d = CENTRE + (x - CENTRE) / (1 + sigma**2)
    assert_normal(steps.ancestral(x, d, sigma, tau, normal(MANY, 1), variance=1.0), CENTRE, math.sqrt(1 + tau**2))


def test_ancestral_marginals_on_a_gaussian_with_many_steps() -> None:
    levels = schedules.with_zero(schedules.geometric(20.0, 0.01, 150))
    x = CENTRE + math.sqrt(SPREAD**2 + 20.0**2) * normal(20_000)
    generator = torch.Generator().manual_seed(3)
    for sigma, tau in itertools.pairwise(levels):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = steps.ancestral(x, denoise(x, sigma), sigma, tau, noise)
    assert float(x.mean()) == pytest.approx(CENTRE, abs=5 * SPREAD / math.sqrt(len(x)))
    assert float(x.std()) == pytest.approx(SPREAD, rel=0.04)


def test_variances_between_are_log_interpolated() -> None:
    x, zero = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    spread = [float(steps.ancestral(x, x, 2.0, 0.5, zero, v)) for v in (0.0, 0.3, 1.0)]
    assert spread[0] == pytest.approx(0.5 * math.sqrt(1 - 1 / 16))
    assert spread[2] == pytest.approx(math.sqrt((4 - 0.25) * 1.25 / 5))
    assert math.log(spread[1]) == pytest.approx(0.7 * math.log(spread[0]) + 0.3 * math.log(spread[2]))


def test_the_large_variance_is_the_native_beta() -> None:
    schedule = DiscreteVPSchedule.linear()
    x, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for t in (1, 100, 999):
        beta = 1e-4 + t * (0.02 - 1e-4) / 999
        ours = float(steps.ancestral(x, x, float(schedule.sigmas[t]), float(schedule.sigmas[t - 1]), one, 1.0))
        assert ours * float(schedule.alphas_cumprod[t - 1].sqrt()) == pytest.approx(math.sqrt(beta), rel=1e-9)


def test_ddim_with_eta_one_is_ancestral() -> None:
    x, noise = normal(50), normal(50, 1)
    d = denoise(x, 1.7)
    torch.testing.assert_close(
        steps.ddim(x, d, 1.7, 0.6, 1.0, noise), steps.ancestral(x, d, 1.7, 0.6, noise), rtol=1e-12, atol=1e-12
    )


def test_ddim_with_eta_zero_is_euler_and_takes_no_noise() -> None:
    x = normal(50)
    d = denoise(x, 1.7)
    ours = steps.ddim(x, d, 1.7, 0.6, 0.0, torch.full_like(x, torch.finfo(x.dtype).max))
    torch.testing.assert_close(ours, steps.euler(x, d, 1.7, 0.6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_stochastic_steps_keep_the_noise_level_of_a_known_image(eta: float) -> None:
    x = CENTRE + 2.0 * normal(MANY)
    d = torch.full_like(x, CENTRE)
    assert_normal(steps.ddim(x, d, 2.0, 0.5, eta, normal(MANY, 1)), CENTRE, 0.5)
    assert_normal(steps.renoise(d, (x - d) / 2.0, 0.5, eta, normal(MANY, 1)), CENTRE, 0.5)


def test_renoise_by_hand() -> None:
    d, epsilon, noise = (torch.tensor([v], dtype=torch.float64) for v in (1.0, 2.0, -3.0))
    assert float(steps.renoise(d, epsilon, 0.5, 0.6, noise)) == pytest.approx(1 + 0.5 * (0.8 * 2 - 0.6 * 3))


# --- schedules --------------------------------------------------------------------------------------------------------


def test_polynomial_levels() -> None:
    levels = schedules.polynomial(80.0, 0.002, 18)
    assert levels.dtype == torch.float64
    root = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18, dtype=torch.float64)
    torch.testing.assert_close(levels, root**7, rtol=1e-12, atol=0)
    assert (float(levels[0]), float(levels[-1])) == (pytest.approx(80.0), pytest.approx(0.002))
    torch.testing.assert_close(schedules.polynomial(4.0, 1.0, 4, power=1.0), torch.tensor([4.0, 3, 2, 1]).double())
    # open at the end: the first five of six levels
    torch.testing.assert_close(
        schedules.polynomial(9.0, 0.1, 5, intervals=5), schedules.polynomial(9.0, 0.1, 6)[:5], rtol=1e-12, atol=0
    )
    assert schedules.polynomial(9.0, 0.1, 1).tolist() == pytest.approx([9.0])
    for low, high in ((0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="0 < sigma_min <= sigma_max"):
            schedules.polynomial(high, low, 5)


def test_geometric_levels() -> None:
    levels = schedules.geometric(100.0, 0.01, 5)
    torch.testing.assert_close(levels, torch.tensor([100.0, 10, 1, 0.1, 0.01], dtype=torch.float64))
    assert schedules.with_zero(levels)[-1] == 0.0
    assert len(schedules.with_zero(levels)) == 6


def test_ddpm_levels() -> None:
    levels = schedules.ddpm(10)
    table = DiscreteVPSchedule.linear().sigmas
    assert torch.equal(levels, table[torch.arange(999, -1, -111)])
    assert torch.equal(schedules.ddpm(1000), table.flip(0))
    assert float(levels[0]) == pytest.approx(157.4, rel=1e-3)
    assert float(levels[-1]) == pytest.approx(0.0100, rel=1e-3)


def test_ddim_levels() -> None:
    table = DiscreteVPSchedule.linear().sigmas
    assert torch.equal(schedules.ddim(50), table[torch.arange(980, -1, -20)])
    assert torch.equal(schedules.ddim(1000), table.flip(0))
    assert torch.equal(schedules.ddim(1), table[:1])
    for count in (0, 1001):
        with pytest.raises(ValueError, match=f"num_steps is {count}; expected 1 to 1000"):
            schedules.ddim(count)


@pytest.mark.parametrize("count", [19, 30, 99, 300, 501, 700, 999])
def test_a_run_starts_near_pure_noise_whatever_the_number_of_steps(count: int) -> None:
    """A stride rounded down would start 501 steps at timestep 500, where half of the image is left."""
    stride = 1000 / count
    table = DiscreteVPSchedule.linear().sigmas
    for levels in (schedules.ddim(count), schedules.ddpm(count)):
        assert len(levels) == count
        assert float(levels[0]) >= float(table[int(999 - stride)])
        assert float(levels[-1]) == float(table[0])
        assert bool((levels.diff() < 0).all())
