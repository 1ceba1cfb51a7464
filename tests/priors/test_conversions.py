"""Every kind of network against a prior whose denoiser is known.

The fake networks below live in their own coordinates: they are handed the native state and the native time, find the
noise level and the sigma-coordinates from the definitions of their family, and answer with what such a network is
trained to return, written down from the definition. A wrong time, scale or sign on our side makes D differ.

Mutants tried, each turning tests of this file red: v with the opposite sign, score without the scale, timestep index
shifted by one, noise share t and 1 - t swapped, velocity sign swapped, c_in left out, c_noise without the factor 1/4,
the first entry's level for all, learned-variance channels kept, VE exponent base swapped, VP scale squared, cosine
offset left out, timesteps not rounded, sigma_data not passed on.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from invsolve.priors import GaussianMixturePrior, wrap
from invsolve.priors.base import expand_sigma
from invsolve.priors.conversions import (
    SCHEDULES,
    DiscreteVPSchedule,
    EDMSchedule,
    FlowSchedule,
    Prediction,
    Schedule,
    VESchedule,
    VPSchedule,
    from_denoised,
    to_denoised,
)

SHAPE = (2, 3, 3)
LEVELS = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)
"""Three images of 3 x 3 pixels: a level per image that broadcasts along the wrong axis is not an error, but wrong."""


def mixture() -> GaussianMixturePrior:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn((3, *SHAPE), generator=generator, dtype=torch.float64)
    variances = 0.05 + 0.3 * torch.rand((3, *SHAPE), generator=generator, dtype=torch.float64)
    return GaussianMixturePrior([0.5, 0.3, 0.2], means, variances)


def batch(sigma: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((len(sigma), *SHAPE), generator=generator, dtype=torch.float64)
    return mixture().sample(len(sigma), generator) + expand_sigma(sigma, noise) * noise


# --- networks in their own coordinates --------------------------------------------------------------------------------


class Network(nn.Module):
    """What an ideal network of a family returns; `family` is one of vp, ve, flow, flow-reversed, edm."""

    def __init__(self, family: str, prediction: str, schedule: Schedule, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.family, self.prediction, self.schedule, self.sigma_data = family, prediction, schedule, sigma_data
        self.prior = mixture()

    def level(self, time: Tensor) -> Tensor:
        return self.schedule.sigma(time)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        assert time.shape == (len(z),)
        sigma = (4 * time).exp() if self.prediction == "edm" else self.level(time)
        s = sigma.reshape(-1, 1, 1, 1)
        if self.prediction == "edm":
            x = z * (s**2 + self.sigma_data**2).sqrt()
            d = self.prior.denoise(x, sigma)
            data, total = self.sigma_data**2, s**2 + self.sigma_data**2
            return (d - data / total * x) / (s * self.sigma_data / total.sqrt())
        # native state = signal * x0 + noise * n
        signal, noise = self.shares(s)
        x = z / signal
        d = self.prior.denoise(x, sigma)
        epsilon = (z - signal * d) / noise
        if self.prediction == "x0":
            return d
        if self.prediction == "epsilon":
            return epsilon
        if self.prediction == "score":  # gradient of the log density of z, by autograd
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                return torch.autograd.grad(self.prior.log_density(z / signal, sigma).sum(), z)[0]
        if self.prediction == "v":  # dz / d angle on the circle signal = cos, noise = sin (Salimans and Ho)
            angle, h = torch.atan2(noise, signal), 1e-4

            def path(a: Tensor) -> Tensor:
                return a.cos() * d + a.sin() * epsilon

            return (8 * (path(angle + h) - path(angle - h)) - path(angle + 2 * h) + path(angle - 2 * h)) / (12 * h)
        # dz / dt along the straight path, where t runs towards the noise, or away from it
        share, h = noise, 0.01
        forwards = ((1 - share - h) * d + (share + h) * epsilon - (1 - share + h) * d - (share - h) * epsilon) / (2 * h)
        return forwards if self.family == "flow" else -forwards

    def shares(self, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.family == "vp":
            alpha_cumprod = 1 / (1 + s**2)
            return alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
        if self.family == "ve":
            return torch.ones_like(s), s
        noise = s / (1 + s)
        return 1 - noise, noise


FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "vp": ("vp", ("epsilon", "x0", "v", "score")),
    "vp-cosine": ("vp", ("epsilon", "x0", "v", "score")),
    "vp-continuous": ("vp", ("epsilon", "x0", "v", "score")),
    "ve": ("ve", ("epsilon", "x0", "score")),
    "edm": ("ve", ("epsilon", "x0", "score", "edm")),
    "flow": ("flow", ("epsilon", "x0", "score", "velocity")),
    "flow-reversed": ("flow-reversed", ("epsilon", "x0", "score", "velocity")),
}
PAIRS = [(schedule, prediction) for schedule, (_, predictions) in FAMILIES.items() for prediction in predictions]


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
@pytest.mark.parametrize("sigma", [LEVELS, 0.7], ids=["each", "one"])
def test_a_wrapped_network_is_the_denoiser(name: str, prediction: Any, sigma: Tensor | float) -> None:
    schedule = SCHEDULES[name]()
    prior = wrap(Network(FAMILIES[name][0], prediction, schedule), prediction=prediction, schedule=name)
    x = batch(LEVELS)
    # v is differentiated numerically in the test
    tolerance = 1e-9 if prediction == "v" else 1e-10
    torch.testing.assert_close(
        prior.denoise(x, sigma), mixture().denoise(x, sigma), rtol=tolerance, atol=tolerance * 10
    )


class Replayed(nn.Module):
    """The network `from_denoised` describes, in its own coordinates."""

    def __init__(self, prediction: Prediction, schedule: Schedule) -> None:
        super().__init__()
        self.prediction, self.schedule = prediction, schedule

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        if self.prediction == "edm":
            sigma = (4 * time).exp()
            scale = 1 / (sigma**2 + 0.25).sqrt()
        else:
            sigma = self.schedule.sigma(time)
            scale = self.schedule.scale(sigma)
        x = z / scale.reshape(-1, 1, 1, 1)
        level = sigma.reshape(-1, 1, 1, 1)
        return from_denoised(mixture().denoise(x, sigma), x, level, self.prediction, self.schedule)


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_from_denoised_is_the_inverse(name: str, prediction: Any) -> None:
    schedule = SCHEDULES[name]()
    x = batch(LEVELS)
    prior = wrap(Replayed(prediction, schedule), prediction=prediction, schedule=schedule)
    torch.testing.assert_close(prior.denoise(x, LEVELS), mixture().denoise(x, LEVELS), rtol=1e-10, atol=1e-10)
    level, d = expand_sigma(LEVELS, x), batch(LEVELS.flip(0))
    back = to_denoised(from_denoised(d, x, level, prediction, schedule), x, level, prediction, schedule)
    torch.testing.assert_close(back, d, rtol=1e-10, atol=1e-10)


def test_sigma_data_reaches_an_edm_network() -> None:
    prior = wrap(Network("ve", "edm", EDMSchedule(), 1.3), prediction="edm", schedule="edm", sigma_data=1.3)
    x = batch(LEVELS)
    torch.testing.assert_close(prior.denoise(x, LEVELS), mixture().denoise(x, LEVELS), rtol=1e-10, atol=1e-10)


def test_a_time_scale_reaches_a_flow_network() -> None:
    class Thousand(Network):
        def level(self, time: Tensor) -> Tensor:
            return (time / 1000) / (1 - time / 1000)

    schedule = FlowSchedule(time_scale=1000.0)
    prior = wrap(Thousand("flow", "velocity", schedule), prediction="velocity", schedule=schedule)
    x = batch(LEVELS)
    torch.testing.assert_close(prior.denoise(x, LEVELS), mixture().denoise(x, LEVELS), rtol=1e-10, atol=1e-10)


def test_channels_of_a_learned_variance_are_dropped() -> None:
    class SixChannels(Network):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return torch.cat([super().forward(z, time), torch.full_like(z, 9.0)], dim=1)

    prior = wrap(SixChannels("vp", "epsilon", SCHEDULES["vp"]()), prediction="epsilon", schedule="vp")
    x = batch(LEVELS)
    torch.testing.assert_close(prior.denoise(x, LEVELS), mixture().denoise(x, LEVELS), rtol=1e-10, atol=1e-10)


def test_a_network_that_looks_up_its_timestep_gets_whole_numbers() -> None:
    seen: list[Tensor] = []

    class Table(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            seen.append(time)
            return torch.zeros_like(z)

    schedule = DiscreteVPSchedule.linear(round_time=True)
    wrap(Table(), prediction="epsilon", schedule=schedule).denoise(batch(LEVELS), LEVELS)
    assert torch.equal(seen[0], seen[0].round())
    exact = DiscreteVPSchedule.linear().time(LEVELS)
    assert float((seen[0] - exact).abs().max()) <= 0.5
    for index in (0, 10, 999):
        assert float(schedule.time(schedule.sigmas[index])) == index


def test_gradients_pass_through_a_wrapped_network() -> None:
    x = batch(LEVELS).requires_grad_()
    prior = wrap(Network("vp", "epsilon", SCHEDULES["vp"]()), prediction="epsilon", schedule="vp")
    (ours,) = torch.autograd.grad(prior.denoise(x, LEVELS).square().sum(), x)
    (exact,) = torch.autograd.grad(mixture().denoise(x, LEVELS).square().sum(), x)
    torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)


def test_float32_is_enough() -> None:
    x = batch(LEVELS)
    for name in FAMILIES:
        network = Network(FAMILIES[name][0], "epsilon", SCHEDULES[name]()).float()
        prior = wrap(network, prediction="epsilon", schedule=name)
        ours = prior.denoise(x.float(), LEVELS.float())
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), mixture().denoise(x, LEVELS), rtol=2e-4, atol=2e-4)


# --- schedules --------------------------------------------------------------------------------------------------------


def ladder(schedule: Schedule, count: int = 400) -> Tensor:
    low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    return torch.linspace(low, high, count, dtype=torch.float64).exp()


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_to_time_and_back(name: str) -> None:
    schedule = SCHEDULES[name]()
    sigma = ladder(schedule)
    back = schedule.sigma(schedule.time(sigma))
    tolerance = 1e-12 if name != "flow-reversed" else 1e-11  # its time near 1 has already lost digits
    torch.testing.assert_close(back, sigma, rtol=tolerance, atol=0)
    time = schedule.time(sigma)
    steps = time.diff()
    assert bool((steps < 0).all() if name == "flow-reversed" else (steps > 0).all())
    assert schedule.time(sigma.reshape(-1, 1, 1, 1)).shape == (len(sigma), 1, 1, 1)
    assert schedule.time(sigma.float()).dtype == torch.float32
    assert schedule.sigma(time.float()).dtype == torch.float32


def test_linear_ddpm_levels() -> None:
    """Values of the reference notes, three digits."""
    known = {0: 0.0100, 10: 0.0469, 20: 0.0794, 50: 0.176, 100: 0.342, 200: 0.724, 300: 1.24, 500: 3.44, 800: 25.7}
    schedule = DiscreteVPSchedule.linear()
    for index, value in {**known, 999: 157.4}.items():
        assert float(schedule.sigmas[index]) == pytest.approx(value, rel=6e-3)
        assert float(schedule.sigma(torch.tensor(float(index)))) == pytest.approx(
            float(schedule.sigmas[index]), rel=1e-6
        )
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    product = 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + t * (0.02 - 1e-4) / 999)
        assert float(schedule.sigmas[t]) == pytest.approx(math.sqrt((1 - product) / product), rel=1e-9)


@pytest.mark.parametrize("name", ["vp", "vp-cosine"])
def test_tables_are_met_at_whole_timesteps(name: str) -> None:
    schedule = SCHEDULES[name]()
    assert isinstance(schedule, DiscreteVPSchedule)
    index = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(index), schedule.sigmas, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.time(schedule.sigmas), index, rtol=1e-12, atol=1e-9)
    middle = (schedule.sigmas[4] * schedule.sigmas[5]).sqrt()
    assert float(schedule.time(middle)) == pytest.approx(4.5, abs=1e-9)
    beyond = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert schedule.time(beyond).tolist() == [0, 999]
    assert schedule.sigma(torch.tensor([-3.0, 2e3], dtype=torch.float64)).tolist() == pytest.approx(
        [schedule.sigma_min, schedule.sigma_max]
    )


def test_cosine_table() -> None:
    """abar_t = f((t+1)/T) / f(0) with f(u) = cos^2((u + .008)/1.008 pi/2), until betas are cut at 0.999."""
    schedule = DiscreteVPSchedule.cosine()

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for index in (0, 1, 10, 500, 900, 990, 997):
        assert float(schedule.alphas_cumprod[index]) == pytest.approx(f((index + 1) / 1000) / f(0), rel=1e-9)
    assert float(schedule.alphas_cumprod[-1] / schedule.alphas_cumprod[-2]) == pytest.approx(1e-3, rel=1e-9)


def test_continuous_variance_preserving_level() -> None:
    """log(1 + sigma^2) is the integral of beta(t) = 0.1 + 19.9 t."""
    schedule = VPSchedule()
    for t in (0.01, 0.2, 0.5, 1.0):
        u = torch.linspace(0, t, 20001, dtype=torch.float64)
        integral = float(torch.trapezoid(0.1 + 19.9 * u, u))
        sigma = float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        assert math.log1p(sigma**2) == pytest.approx(integral, rel=1e-9)
    assert schedule.sigma_min == pytest.approx(float(schedule.sigma(torch.tensor(1e-3, dtype=torch.float64))))
    assert schedule.sigma_max == pytest.approx(math.sqrt(math.expm1(10.05)))
    linear = DiscreteVPSchedule.linear()
    assert float(schedule.sigma(torch.tensor(0.5))) == pytest.approx(float(linear.sigmas[499]), rel=0.01)


def test_levels_at_given_times() -> None:
    time = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert VESchedule().sigma(time).tolist() == pytest.approx([0.01, math.sqrt(3.78), 378.0])
    assert EDMSchedule().sigma(time).tolist() == [0.0, 0.5, 1.0]
    quarter = torch.tensor(0.25, dtype=torch.float64)
    assert float(FlowSchedule().sigma(quarter)) == pytest.approx(1 / 3)
    assert float(FlowSchedule(noise_at=0).sigma(quarter)) == pytest.approx(3)
    assert float(FlowSchedule(time_scale=1000.0).sigma(1000 * quarter)) == pytest.approx(1 / 3)
    assert float(FlowSchedule(noise_at=0, time_scale=1000.0).time(torch.tensor(3.0))) == pytest.approx(250)


def test_scales() -> None:
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert DiscreteVPSchedule.linear().scale(sigma).tolist() == pytest.approx([1 / math.sqrt(1.25), 1 / math.sqrt(5)])
    assert VPSchedule().scale(sigma).tolist() == pytest.approx([1 / math.sqrt(1.25), 1 / math.sqrt(5)])
    assert FlowSchedule().scale(sigma).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert VESchedule().scale(sigma).tolist() == [1, 1]
    assert EDMSchedule().scale(sigma).tolist() == [1, 1]


def test_respaced_levels() -> None:
    schedule = DiscreteVPSchedule.linear()
    assert torch.equal(schedule.respaced(1000), schedule.sigmas.flip(0))
    assert torch.equal(schedule.respaced(10), schedule.sigmas[torch.arange(999, -1, -111)])
    for count in (1, 0, 1001):
        with pytest.raises(ValueError, match="expected 2 to 1000"):
            schedule.respaced(count)


@pytest.mark.parametrize("betas", [[0.1], [0.1, 0.0], [0.1, 1.0], [0.1, float("nan")], [[0.1, 0.2]]])
def test_bad_betas(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        DiscreteVPSchedule(torch.tensor(betas))


# --- errors and passed-on fields --------------------------------------------------------------------------------------


def test_wrap_keeps_what_it_is_told() -> None:
    prior = wrap(nn.Identity(), prediction="x0", schedule="vp", shape=(3, None, None), data_range=(0.0, 1.0))
    assert prior.shape == (3, None, None)
    assert prior.data_range == (0.0, 1.0)
    assert (prior.sigma_min, prior.sigma_max) == (prior.schedule.sigma_min, prior.schedule.sigma_max)
    assert prior.sigma_max == pytest.approx(157.4, rel=1e-3)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown prediction 'eps'; expected one of epsilon, x0"):
        wrap(nn.Identity(), prediction="eps", schedule="vp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown schedule 'ddpm'; expected one of vp"):
        wrap(nn.Identity(), prediction="epsilon", schedule="ddpm")
    assert set(get_args(Prediction)) == {p for _, p in PAIRS}


@pytest.mark.parametrize("schedule", ["vp", "ve", "edm", "vp-continuous"])
def test_a_velocity_needs_a_flow(schedule: str) -> None:
    with pytest.raises(ValueError, match="a velocity network needs a flow schedule"):
        wrap(nn.Identity(), prediction="velocity", schedule=schedule)
