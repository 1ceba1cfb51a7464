"""Posterior sampling as filtering along a noisy path of measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_ITERATIONS, SOLVE_RTOL, Callback, linear_operator, noise_level, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.smc import (
    Cloud,
    ParticleSampler,
    Weights,
    damped_misfit,
    denoise_particles,
    report_cloud,
    select,
    squared_norm,
    transition,
)

SMALLEST_NOISE = 1e-4


@dataclass(frozen=True)
class FPSSMC(ParticleSampler):
    """Particles that filter a noisy path of measurements; no network gradient, any linear operator with a solve.

    FPS-SMC: Dou and Song, ICLR 2024 (openreview tplXNcHZs1). The data are noised like an image would be,
    Y_sigma = y + sigma A n, by a bridge that ends in y. At every level the particles are weighted by how well their
    prediction meets the path, resampled, and drawn from the Gaussian that fuses both.

    The authors take N(Y_sigma; A x_sigma, noise^2 I) as fresh information at every level, although it is the same
    noise: with many levels below the noise that counts the data several times. With `telescoping` a particle's weight
    is divided by the term of the level it leaves, so that level sigma has the target p(x_sigma) N(Y_sigma; A x_sigma,
    R) and the last one has the posterior: exact for many particles and levels, whatever the path. R is then
    noise^2 I + sigma^2 A A^H, because dividing by a sharper term gives weights of infinite variance.

    Cost per step: for every particle one network evaluation and two solves.

    Args:
        num_steps: noise levels.
        num_particles: particles per posterior sample; 1 is the authors' FPS.
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level but 0.
        fresh: share c of the variance of a level that is drawn anew, 0 < c <= 1, as in the paper (0.15 to 0.95 for
            1000 steps); None for the ancestral share 1 - tau^2/sigma^2, which is right for any number of steps.
        kernel_std: see `smc.transition`, with fresh=None.
        telescoping: see above; False for the authors' weights.
        ess_threshold: share of `num_particles` below which an image's particles are resampled.
        micro_batch: particles per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 100
    num_particles: int = 32
    sigma_max: float | None = None
    sigma_min: float = 0.002
    fresh: float | None = None
    kernel_std: float | None = 0.06
    telescoping: bool = True
    ess_threshold: float = 0.9
    micro_batch: int | None = None

    paper: ClassVar[str] = "openreview tplXNcHZs1"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "per particle 1 forward, 2 solves"

    @torch.no_grad()
    def cloud(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Cloud:
        operator = linear_operator(self, measurement)
        noise = max(noise_level(self, measurement), SMALLEST_NOISE)
        levels = schedules.with_zero(
            schedules.polynomial(self.sigma_max or prior.sigma_max, self.sigma_min, self.num_steps)
        )
        batches = MicroBatches(self.micro_batch)
        y, entries, particles = measurement.y, len(measurement.y), self.num_particles
        image = start(measurement)
        # 1. the first level: path Y = y + sigma A n, and particles drawn from N(0, sigma^2 I) N(Y; A x, noise^2 I)
        path = y + levels[0] * operator(standard_normal(image, generator))
        centre = image[:, None].expand(-1, particles, *[-1] * (image.ndim - 1))
        x = fuse(operator, path, centre, levels[0] ** 2, noise, self.inflation(levels[0]), generator, batches)
        weights = Weights.equal(entries, particles, x, self.ess_threshold)
        start_variance = levels[0] ** 2 + self.inflation(levels[0])
        weights.multiply(-0.5 * self.misfit(operator, path, centre, start_variance, noise, batches))
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            denoised = denoise_particles(prior, x, sigma, batches)
            # 2. the next measurement of the path, by the bridge pinned at y
            mean, variance, bridge = self.kernel(x, denoised, sigma, tau)
            before, fresh = path, math.sqrt(max(tau**2 - (bridge * sigma) ** 2, 0.0))
            path = y + bridge * (path - y)
            if tau > 0:
                path = path + fresh * operator(standard_normal(image, generator))
            # 3. weights: the prediction of the path, over the term of the level that is left
            wide = self.inflation(tau)
            log_factors = -0.5 * self.misfit(operator, path, mean, variance + wide, noise, batches)
            if self.telescoping:
                log_factors = log_factors + 0.5 * self.misfit(
                    operator, before, x, self.inflation(sigma), noise, batches
                )
            weights.multiply(log_factors)
            ancestors = weights.resample(generator)
            # 4. draw from the fused Gaussian
            mean = select(mean, ancestors)
            x = fuse(operator, path, mean, variance, noise, wide, generator, batches) if tau > 0 else mean
            if report_cloud(callback, step, self.num_steps, sigma, x, denoised, "sigma_max"):
                return weights.cloud(denoised)
        return weights.cloud(x)

    def kernel(self, x: Tensor, denoised: Tensor, sigma: float, tau: float) -> tuple[Tensor, float, float]:
        """Mean and variance of the particles' step, and the factor of the old noise in it."""
        if self.fresh is None:
            mean, variance = transition(x, denoised, sigma, tau, self.kernel_std)
            return mean, variance, (tau / sigma) ** 2
        bridge = math.sqrt(1 - self.fresh) * tau / sigma
        return denoised + bridge * (x - denoised), self.fresh * tau**2, bridge

    def inflation(self, sigma: float) -> float:
        """Variance along A A^H by which the data's term is widened at a level."""
        return sigma**2 if self.telescoping else 0.0

    def misfit(
        self, operator: LinearOperator, path: Tensor, mean: Tensor, variance: float, noise: float, batches: MicroBatches
    ) -> Tensor:
        """Residual of the path in the metric of noise^2 I + variance A A^H, (B, P)."""

        def evaluate(mean: Tensor, path: Tensor) -> tuple[Tensor]:
            residual = path - operator(mean)
            if variance == 0:
                return (squared_norm(residual) / noise**2,)
            return (damped_misfit(operator, residual, noise**2 / variance)[1] / variance,)

        (form,) = batches(evaluate, mean.flatten(0, 1), path.repeat_interleave(mean.shape[1], 0))
        return form.reshape(mean.shape[:2])


def fuse(
    operator: LinearOperator,
    y: Tensor,
    centre: Tensor,
    variance: float,
    noise: float,
    wide: float,
    generator: Generators,
    batches: MicroBatches,
) -> Tensor:
    """Draws from N(x; centre, variance I) N(y; A x, noise^2 I + wide A A^H), by perturbing both and one solve.

    The perturbed residual has the covariance noise^2 I + (variance + wide) A A^H, whose inverse the solve applies.
    """
    particles = centre.shape[1]
    start_point = centre + math.sqrt(variance) * standard_normal(centre, generator)
    data = y[:, None].expand(-1, particles, *[-1] * (y.ndim - 1))
    data = data + noise * standard_normal(data, generator)
    blur = math.sqrt(wide) * standard_normal(centre, generator) if wide else torch.zeros_like(centre)
    total = variance + wide

    def evaluate(x: Tensor, data: Tensor, blur: Tensor) -> tuple[Tensor]:
        residual = data - operator(x + blur)
        return (
            x
            + variance
            / total
            * operator.pseudo_inverse(residual, noise**2 / total, rtol=SOLVE_RTOL, max_iter=SOLVE_ITERATIONS),
        )

    (x,) = batches(evaluate, start_point.flatten(0, 1), data.flatten(0, 1), blur.flatten(0, 1))
    return x.reshape(centre.shape)
