"""Moment matching carried by a few weighted particles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.cg import conjugate_gradient, inner
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, linear_operator, noise_level, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.gradients import linearize
from invsolve.samplers.smc import (
    Cloud,
    ParticleSampler,
    Weights,
    report_cloud,
    select,
    squared_norm,
    transition,
)


@dataclass(frozen=True)
class TwistedMMPS(ParticleSampler):
    """Moment matching that corrects itself: a handful of particles a sample, weighted and resampled between steps.

    Our own combination of MMPS (arXiv 2405.13712, section 4.2) and the twisted filter of TDS (arXiv 2306.17775,
    Algorithm 1). The twist is N(y; A D, noise_std^2 I + A sigma^2 J A^H): the covariance that the denoiser itself
    implies knows of modes that are still together at this level, which r^2 A A^H does not. Its gradient is MMPS's
    guidance, by conjugate gradients; its ratio between levels, without the determinant, weighs the particles. What
    moment matching gets wrong about the weights of far-separated modes is so corrected while the particles can still
    change sides, by very few of them: far fewer than there are modes.

    The determinant is left out because a network gives no cheap access to it; on mixtures leaving it out made no
    measurable difference (docs/samplers.md). Where the weights say little, as on images, where one particle soon has
    it all, this is MMPS with a choice between a few runs.

    Cost per step: for every particle one network evaluation, `cg_iterations` + 1 backward passes.

    Args:
        num_steps: noise levels; num_steps * num_particles network evaluations a sample.
        num_particles: particles per posterior sample.
        cg_iterations: at most this many; the exact covariance from the number of measurements on.
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level but 0.
        kernel_std: see `smc.transition`; None for the DDPM kernel.
        ess_threshold: share of `num_particles` below which an image's particles are resampled.
        damping: stands in for (noise_std / sigma)^2 where that is smaller, relative to a spectral norm of 1.
        micro_batch: particles per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 100
    num_particles: int = 8
    cg_iterations: int = 5
    sigma_max: float | None = None
    sigma_min: float = 0.01
    kernel_std: float | None = None
    ess_threshold: float = 0.5
    damping: float = 1e-6
    micro_batch: int | None = None

    paper: ClassVar[str] = "2405.13712"
    needs_linear: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    cost: ClassVar[str] = "per particle 1 forward, 1 + cg_iterations backward"

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
        entries, particles = len(measurement.y), self.num_particles
        levels = schedules.with_zero(
            schedules.polynomial(self.sigma_max or prior.sigma_max, self.sigma_min, self.num_steps)
        )
        batches = MicroBatches(self.micro_batch)
        image = start(measurement)
        x = image[:, None].expand(-1, particles, *[-1] * (image.ndim - 1))
        x = levels[0] * standard_normal(x, generator)
        weights = Weights.equal(entries, particles, x, self.ess_threshold)
        before = torch.zeros((entries, particles), dtype=torch.float64, device=x.device)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise; guidance and twist by moment matching
            denoised, guidance, log_twist = self.twisted(operator, measurement.y, prior, x, sigma, noise, batches)
            # 2. weights: new twist against old (the transitions' share was added when they were drawn); resample
            weights.multiply(log_twist - before)
            ancestors = weights.resample(generator)
            x, denoised, guidance = (select(v, ancestors) for v in (x, denoised, guidance))
            before = select(log_twist, ancestors)
            # 3. the model's step with the guided image in place of the denoised one
            mean, variance = transition(x, denoised, sigma, tau, self.kernel_std)
            shift = (1 - (tau / sigma) ** 2) * guidance
            draw = math.sqrt(variance) * standard_normal(x, generator)
            x = mean + shift + draw
            if tau > 0:  # the model's transition against the guided one
                ratio = squared_norm(draw.flatten(0, 1)) - squared_norm((shift + draw).flatten(0, 1))
                weights.multiply(0.5 * ratio.reshape(entries, particles) / variance)
            if report_cloud(callback, step, self.num_steps, sigma, x, denoised + guidance, "cg_iterations"):
                return weights.cloud(denoised + guidance)
        return weights.cloud(x)

    def twisted(
        self,
        operator: LinearOperator,
        y: Tensor,
        prior: Prior,
        x: Tensor,
        sigma: float,
        noise: float,
        batches: MicroBatches,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D, what guidance adds to it, and the log-twist (B, P) up to a constant."""
        damping = max((noise / sigma) ** 2, self.damping)

        def evaluate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            denoised, transposed = linearize(prior, x, sigma)

            def covariance(v: Tensor) -> Tensor:
                return operator.forward(transposed(operator.adjoint(v), False))

            residual = y - operator(denoised)
            v = conjugate_gradient(covariance, residual, damping, rtol=1e-6, max_iter=self.cg_iterations).x
            return denoised, transposed(operator.adjoint(v), True), -0.5 * inner(residual, v) / sigma**2

        data = y.repeat_interleave(x.shape[1], 0)
        denoised, guidance, log_twist = batches(evaluate, x.flatten(0, 1), data)
        return denoised.reshape(x.shape), guidance.reshape(x.shape), log_twist.reshape(x.shape[:2]).double()
