"""Monte Carlo guided diffusion: a particle filter in the singular basis of the operator."""

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
from invsolve.operators.spectral import RowSpectrum, row_spectrum
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, linear_operator, noise_level, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.smc import (
    Cloud,
    ParticleSampler,
    Weights,
    denoise_particles,
    remaining_variance,
    report_cloud,
    select,
    transition,
)

CLOSE = 1e-3
"""Relative distance under which two levels count as one."""


@dataclass(frozen=True)
class MCGdiff(ParticleSampler):
    """Particles conditioned on each singular direction at the level where the data have its noise; no gradient.

    MCGdiff: Cardoso et al., ICLR 2024, arXiv 2308.07983, Algorithm 1. Along a singular direction with singular value s
    the data are the image with noise of standard deviation t = noise/s: a state of the diffusion at level t. Above t
    the particles are drawn towards it and weighted by the potential N(data; x, sigma^2 - t^2), at t they are set to
    it, and below t the direction moves freely. Exact for many particles and levels.

    As in the authors' experiment, and unlike their text and package, particles are not weighted by the likelihood in
    the end (they meet the data already, which would then count twice), and the potential is not divided out where a
    direction is set free. Their small kappa, which keeps the potential from being singular at t, is not needed:
    levels are put where directions are set free. Where there are more such values than a quarter of `num_steps`, the
    data of a direction get a little noise of their own, up to the next level. Directions with t < sigma_min are
    set to the data (with their noise) in the end.

    Serves operators whose singular values are known in closed form; see `invsolve.operators.spectral`.

    Cost per step: one network evaluation for every particle.

    Args:
        num_steps: noise levels.
        num_particles: particles per posterior sample.
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level but 0.
        kernel_std: see `smc.transition`; None for the DDPM kernel, the authors' eta = 1.
        ess_threshold: share of `num_particles` below which an image's particles are resampled; 1 at every step.
        micro_batch: particles per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 100
    num_particles: int = 32
    sigma_max: float | None = None
    sigma_min: float = 0.002
    kernel_std: float | None = 0.06
    ess_threshold: float = 0.9
    micro_batch: int | None = None

    paper: ClassVar[str] = "2308.07983"
    needs_linear: ClassVar[bool] = True
    needs_spectral: ClassVar[bool] = True
    cost: ClassVar[str] = "per particle 1 forward"

    @torch.no_grad()
    def cloud(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Cloud:
        operator, noise = linear_operator(self, measurement), noise_level(self, measurement)
        image = start(measurement)
        rows = row_spectrum(operator, image)
        top = self.sigma_max or prior.sigma_max
        levels, free_at = self.grid(rows, noise, top)
        y = self.snapped(rows, measurement.y, noise, free_at, generator)
        directions = Directions(operator, rows, y, free_at, self.sigma_min)
        batches = MicroBatches(self.micro_batch)
        # 1. particles at the first level, fused with the potential there
        x = image[:, None].expand(-1, self.num_particles, *[-1] * (image.ndim - 1))
        x = directions.fuse(x, top**2, top, standard_normal(x, generator))
        weights = Weights.equal(len(y), self.num_particles, x, self.ess_threshold)
        weights.multiply(directions.log_potential(torch.zeros_like(x), top**2, top, active=top))
        total = len(levels) - 1
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            denoised = denoise_particles(prior, x, sigma, batches)
            mean, variance = transition(x, denoised, sigma, tau, self.kernel_std)
            predictive = variance if tau > 0 else remaining_variance(sigma, self.kernel_std or math.inf)
            # 2. weights: predictive density of the data at the next level, over the potential at this one
            weights.multiply(
                directions.log_potential(mean, predictive, tau, active=tau)
                - directions.log_potential(x, 0.0, sigma, active=tau)
            )
            ancestors = weights.resample(generator)
            # 3. draw from the product of the transition and the potential
            mean = select(mean, ancestors)
            x = directions.fuse(mean, variance, tau, standard_normal(mean, generator))
            if report_cloud(callback, step, total, sigma, x, denoised, "sigma_max"):
                return weights.cloud(denoised)
        return weights.cloud(x)

    def grid(self, rows: RowSpectrum, noise: float, top: float) -> tuple[list[float], Tensor]:
        """Levels, with the final 0, and the level at which each direction is set free (inf: never seen)."""
        singular = rows.values.clamp_min(0).sqrt()
        floor = 10 * torch.finfo(singular.dtype).eps ** 0.5 * singular.max()
        seen = singular > floor
        free_at = torch.where(seen, noise / torch.where(seen, singular, 1), math.inf)
        between = free_at[(free_at >= self.sigma_min) & (free_at < top * (1 - CLOSE))].double()
        between = torch.unique(between)
        extra = len(between) if len(between) <= self.num_steps // 4 else 0
        levels = schedules.polynomial(top, self.sigma_min, self.num_steps - extra)
        if extra:
            # A level that nearly coincides with one of these would make a step without variance.
            apart = ((levels[1:, None] / between.to(levels) - 1).abs() > CLOSE).all(1)
            levels = torch.cat([levels[:1], levels[1:][apart], between.to(levels)]).sort(descending=True).values
        elif len(between):
            ascending = levels.flip(0).to(free_at)
            above = ascending[torch.searchsorted(ascending, free_at).clamp_max(len(ascending) - 1)]
            free_at = torch.where(free_at >= self.sigma_min, torch.maximum(above, free_at), free_at)
        return schedules.with_zero(levels), torch.where(free_at < top * (1 - CLOSE), free_at, math.inf)

    def snapped(self, rows: RowSpectrum, y: Tensor, noise: float, free_at: Tensor, generator: Generators) -> Tensor:
        """The data, with the noise added that lifts each direction from its own level to the one in `free_at`."""
        wanted = torch.where(torch.isfinite(free_at), free_at**2 * rows.values.clamp_min(0), noise**2)
        extra = (wanted - noise**2).clamp_min(0).sqrt()
        if not bool((extra > 1e-6 * noise).any()):
            return y
        return y + rows.out(extra * rows.into(standard_normal(y, generator)))


@dataclass(frozen=True)
class Directions:
    """The data as states of the diffusion, one per singular direction.

    With A = U S V^H and rows of A A^H = U S^2 U^H, all is computed from residuals in the space of the measurements, so
    that no singular vectors of the image are needed.

    Args:
        operator: A.
        rows: its row spectrum.
        y: data, shape (B, *out_shape).
        free_at: level at which a direction is set free, shaped like `rows.values`; inf for directions not seen.
        sigma_min: directions below this level are never set free.
    """

    operator: LinearOperator
    rows: RowSpectrum
    y: Tensor
    free_at: Tensor
    sigma_min: float

    def log_potential(self, mean: Tensor, variance: float, sigma: float, active: float) -> Tensor:
        """log N(data; V^H mean, variance + sigma^2 - free_at^2) over the directions active at a level, (B, P)."""
        residual = self.residual(mean)
        seen = self.active(active)
        total = torch.where(seen, variance + (sigma**2 - self.free_at**2).clamp_min(0), 1)
        weight = torch.where(seen, 1 / (self.rows.values * total), 0)
        quadratic = (residual.conj() * self.rows.out(weight * self.rows.into(residual))).real
        return -0.5 * quadratic.flatten(1).sum(1).reshape(mean.shape[:2])

    def fuse(self, mean: Tensor, variance: float, sigma: float, noise: Tensor) -> Tensor:
        """Draws from N(x; mean, variance I) times the potentials active at `sigma`, made of white `noise`."""
        seen = self.active(sigma)
        if sigma == 0:  # seen directions get the data with their noise, the others the mean
            gain, spread = seen.to(self.free_at.dtype), torch.where(seen, self.free_at, 0)
            x = mean
        else:
            width = torch.where(seen, sigma**2 - self.free_at**2, 0).clamp_min(0)
            gain = torch.where(seen, variance / (variance + width), 0)
            spread = torch.where(seen, (gain * width).sqrt() - math.sqrt(variance), 0)
            x = mean + math.sqrt(variance) * noise
        inverse = torch.where(seen, 1 / self.rows.values, 0)
        rows = gain * inverse * self.rows.into(self.residual(mean))
        rows = rows + spread * inverse * self.rows.into(self.operator(noise.flatten(0, 1)))
        return x + self.operator.adjoint(self.rows.out(rows)).reshape(x.shape)

    def active(self, sigma: float) -> Tensor:
        """Directions that are not yet free at `sigma`; those freed below all levels stay to the end."""
        if sigma == 0:
            return self.free_at < self.sigma_min
        return self.free_at <= sigma * (1 + 1e-6)

    def residual(self, mean: Tensor) -> Tensor:
        """y - A mean for every particle, (B P, *out_shape)."""
        predicted: Tensor = self.operator(mean.flatten(0, 1))
        return self.y.repeat_interleave(mean.shape[1], 0) - predicted
