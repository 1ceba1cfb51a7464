"""What every registered sampler must not depend on: neighbours, how its prior is written, the global generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import dense_problem
from torch import Tensor, nn

from invsolve.operators import Measurement
from invsolve.priors import GaussianMixturePrior, Prior, wrap
from invsolve.priors.conversions import SCHEDULES, Schedule, edm_coefficients, expand_sigma, from_denoised
from invsolve.samplers.presets import SAMPLERS, choose


def mixture() -> GaussianMixturePrior:
    means = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / 2
    return GaussianMixturePrior([0.4, 0.6], means, 0.3, (-9, 9))


def problem(batch: int) -> Measurement:
    return dense_problem(4, 0.1, mixture(), batch)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_entry_does_not_depend_on_its_neighbours(name: str) -> None:
    whole = problem(8)
    y = whole.y * torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None]
    y[3] *= 20  # a neighbour that is far off
    sampler = choose(name, "fast", whole)
    together = sampler(Measurement(y, whole.operator, whole.noise), mixture(), generator=generators(*range(8)))
    for k in (0, 4, 7):
        alone = sampler(Measurement(y[k : k + 1], whole.operator, whole.noise), mixture(), generator=generators(k))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_seeds_give_equal_samples_and_leave_the_global_generator_alone(name: str) -> None:
    whole = problem(2)
    y = whole.y * torch.tensor([[1.0], [1.1]], dtype=torch.float64)  # equal data would be one image to some methods
    measurement = Measurement(y, whole.operator, whole.noise)
    sampler = choose(name, "fast", measurement)
    before = torch.random.get_rng_state()
    first, second, third = (sampler(measurement, mixture(), generator=generators(*s)) for s in ((0, 1), (0, 1), (2, 1)))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], third[0])
    assert torch.equal(first[1], third[1])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_sees_every_step_and_can_stop(name: str) -> None:
    measurement = problem(2)
    sampler = choose(name, "fast", measurement)
    seen: list[tuple[int, int]] = []
    sampler(measurement, mixture(), callback=lambda step, total, *_: seen.append((step, total)))
    assert [step for step, _ in seen] == list(range(1, seen[-1][1] + 1))
    calls: list[int] = []
    stopped = sampler(measurement, mixture(), callback=lambda step, *_: calls.append(step) or step == 3)  # type: ignore[func-returns-value]
    assert calls == [1, 2, 3]
    assert stopped.shape == (2, 1, 2, 3)


class Native(nn.Module):
    """The mixture's denoiser as a network of another parametrisation."""

    def __init__(self, prediction: Any, schedule: Schedule) -> None:
        super().__init__()
        self.prior, self.prediction, self.schedule = mixture(), prediction, schedule

    def forward(self, native: Tensor, time: Tensor) -> Tensor:
        if self.prediction == "edm":
            sigma = expand_sigma((4 * time).exp(), native)
            x = native / edm_coefficients(sigma, 0.5)[2]
        else:
            sigma = expand_sigma(self.schedule.sigma(time), native)
            x = native / self.schedule.scale(sigma)
        denoised = self.prior.denoise(x, sigma.flatten())
        return from_denoised(denoised, x, sigma, self.prediction, self.schedule)


def as_network(prediction: Any, schedule: str) -> Prior:
    prior = wrap(
        Native(prediction, SCHEDULES[schedule]()), prediction=prediction, schedule=schedule, data_range=(-9, 9)
    )
    prior.sigma_max = mixture().sigma_max
    return prior


@pytest.mark.parametrize("name", SAMPLERS)
def test_vp_edm_and_flow_versions_of_a_prior_give_the_same_samples(name: str) -> None:
    measurement = problem(2)
    sampler = choose(name, "fast", measurement)
    expected = sampler(measurement, mixture(), generator=generators(0, 1))
    for prediction, schedule in (("epsilon", "vp-continuous"), ("edm", "edm"), ("velocity", "flow")):
        ours = sampler(measurement, as_network(prediction, schedule), generator=generators(0, 1))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=f"{prediction} {schedule}")
