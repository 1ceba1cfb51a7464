"""What every registered sampler owes its user: progress, an end to a run that diverges, noiseless and complex data."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from exact import dense_problem
from torch import Tensor

from invsolve.inference import solve
from invsolve.operators import CartesianMRI, GaussianNoise, Measurement
from invsolve.priors import GaussianMixturePrior, GaussianPrior, Prior
from invsolve.samplers import DivergenceError
from invsolve.samplers.presets import SAMPLERS, choose

SHAPE = (1, 2, 3)
REAL_ONLY = {"tmpd"}
"""Sums the rows of a covariance, which says nothing about complex data; it refuses them."""
PRESET = {"langevin": "best", "dps": "best"}
"""Where "fast" is too fast here: a chain that is slow by design, and a step size that is made for many pixels."""


def mixture() -> GaussianMixturePrior:
    means = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / 2
    return GaussianMixturePrior([0.4, 0.6], means, 0.3, (-9, 9))


class Broken(Prior):
    """A network that overflows after a number of evaluations."""

    def __init__(self, after: int) -> None:
        super().__init__(data_range=(-9, 9))
        self.inner, self.left = mixture(), after

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.left -= 1
        return self.inner.denoise(x, sigma) * (1.0 if self.left >= 0 else math.nan)


@pytest.mark.parametrize("after", [0, 6])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_diverging_run_stops_and_says_what_to_lower(name: str, after: int) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 2)
    sampler = choose(name, "fast", measurement)
    if name == "dflow" and after:  # its line search refuses such a step and keeps the best image so far
        x = sampler(measurement, Broken(after), generator=torch.Generator().manual_seed(0))
        assert bool(torch.isfinite(x).all())
        return
    with pytest.raises(DivergenceError) as caught:
        sampler(measurement, Broken(after), generator=torch.Generator().manual_seed(0))
    sentence = str(caught.value)
    found = re.fullmatch(r"the iterate is not finite after step (\d+) of (\d+) \(sigma [^)]+\); lower (.+)\.", sentence)
    assert found, sentence
    assert 0 < int(found[1]) <= int(found[2])
    assert any(key in found[3] for key in sampler.settings()), sentence


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_gets_images(name: str) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 2)
    seen: list[float] = []

    def callback(step: int, total: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        assert isinstance(sigma, float)
        assert math.isfinite(sigma)
        assert sigma >= 0
        for image in (x, denoised):
            assert image.shape == (2, *SHAPE)
            assert not image.requires_grad
            assert bool(torch.isfinite(image).all())
        seen.append(sigma)

    choose(name, "fast", measurement)(measurement, mixture(), callback=callback)
    assert seen[-1] < seen[0] or len(set(seen)) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_record_is_complete(name: str) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 2)
    posterior = solve(
        measurement.y, measurement.operator, noise_std=0.1, prior=mixture(), method=name, preset="fast", num_samples=2,
        data_range=(-9, 9),
    )  # fmt: skip
    info = posterior.info
    assert info.method == name
    assert info.evaluations > 0
    assert (info.backward_evaluations > 0) == SAMPLERS[name].needs_gradient
    assert info.seconds > 0
    difference = (measurement.operator(posterior.samples[1]) - measurement.y)[0].norm()
    assert info.residual[1][0] == pytest.approx(float(difference) / 0.1 / math.sqrt(4), rel=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_how_many_are_drawn(name: str) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 2)
    arguments: dict[str, Any] = {"noise_std": 0.1, "prior": mixture(), "method": name, "preset": "fast", "seed": 3}
    if SAMPLERS[name].interacting:
        pytest.skip("its samples are particles that repel each other: they depend on their number by design")
    three = solve(measurement.y, measurement.operator, num_samples=3, **arguments).samples
    one = solve(measurement.y, measurement.operator, num_samples=1, **arguments).samples
    torch.testing.assert_close(one[0], three[0], rtol=1e-8, atol=1e-8)
    assert float((three[1] - three[0]).abs().max()) > 1e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_noiseless_data(name: str) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 2)
    clean = Measurement(measurement.operator(mixture().sample(2)), measurement.operator, GaussianNoise(0.0))
    x = choose(name, PRESET.get(name, "fast"), clean)(clean, mixture(), generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(x).all())
    assert float(x.abs().max()) < 20


@pytest.mark.parametrize("coils", [2, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_complex_images(name: str, coils: int) -> None:
    """Two channels, real and imaginary, seen through coils and an irregular mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1.0, 0, 1, 1, 0]]).expand(4, -1)
    maps = torch.randn(2, 4, 5, dtype=torch.complex128, generator=generator)
    maps = maps / maps.abs().square().sum(0).sqrt()
    operator = CartesianMRI(mask, dtype=torch.float64) if coils == 1 else CartesianMRI(mask, maps)
    prior = GaussianPrior(torch.zeros(operator.in_shape, dtype=torch.float64), 0.25, (-2, 2))
    truth = prior.sample(2, generator)
    y = operator(truth)
    assert y.is_complex()
    measurement = Measurement(y, operator, GaussianNoise(0.05))
    if name in REAL_ONLY:
        with pytest.raises(ValueError, match="complex"):
            choose(name, "fast", measurement)(measurement, prior)
        return
    sampler = choose(name, PRESET.get(name, "fast"), measurement)
    if SAMPLERS[name].needs_spectral and coils > 1:
        with pytest.raises(ValueError, match=r"one coil .* conjugate gradients"):
            sampler(measurement, prior)
        return
    x = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert x.shape == truth.shape
    assert float((operator(x) - y).abs().square().mean()) < float(y.abs().square().mean()), "no nearer than black"
