"""The twisted diffusion sampler."""

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
from invsolve.samplers.base import SOLVE_RTOL, Callback, noise_level, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.smc import (
    Cloud,
    ParticleSampler,
    Weights,
    damped_misfit,
    remaining_variance,
    report_cloud,
    select,
    squared_norm,
    transition,
)

SMALLEST_NOISE = 1e-4


@dataclass(frozen=True)
class TDS(ParticleSampler):
    """Particles steered by the gradient through the network, and weighted so that many of them are exact.

    TDS: Wu et al., NeurIPS 2023, arXiv 2306.17775, Algorithm 1. The twist p~(y | x) = N(y; A D, R) guesses how well a
    noisy particle will explain the data. Its gradient moves the proposal, as in PiGDM, and its ratio between levels
    weighs the particle. A linear operator has R = noise^2 I + r^2 A A^H with r the width of x0 given x, from
    `prior_std`; another one has R = (noise^2 + r^2) I. The authors' R for inpainting is r^2 I. The gradient takes R as
    constant.

    The last step draws nothing: a linear operator's clean image is the mean of N(x0; D, r^2 I) p(y | x0), whose weight
    is 1, and another one's is D with the true likelihood as weight.

    Cost per step: for every particle one network evaluation, one backward pass, and one solve or gradient of A.

    Args:
        num_steps: noise levels.
        num_particles: particles per posterior sample.
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level but 0.
        prior_std: standard deviation of the images in model units, for r. Too large is safe (the weights see to the
            rest), too small kills particles early.
        kernel_std: see `smc.transition`; None for the DDPM kernel.
        clip: clamp the guided clean image to the prior's data range, as the authors do; the weights know of it.
            Without, the gradient of a network can throw particles far away at high levels.
        twist: power of the twist; 1 is the posterior.
        ess_threshold: share of `num_particles` below which an image's particles are resampled; 1 at every step.
        micro_batch: particles per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 100
    num_particles: int = 16
    sigma_max: float | None = None
    sigma_min: float = 0.002
    prior_std: float = 0.5
    kernel_std: float | None = 0.06
    clip: bool = True
    twist: float = 1.0
    ess_threshold: float = 0.5
    micro_batch: int | None = None

    paper: ClassVar[str] = "2306.17775"
    needs_gradient: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "per particle 1 forward, 1 backward, 1 solve"

    @torch.no_grad()
    def cloud(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Cloud:
        noise = max(noise_level(self, measurement), SMALLEST_NOISE)
        levels = schedules.with_zero(
            schedules.polynomial(self.sigma_max or prior.sigma_max, self.sigma_min, self.num_steps)
        )
        batches = MicroBatches(self.micro_batch)
        entries, particles = len(measurement.y), self.num_particles
        # 1. particles at the first level, weighted by their twist
        x = start(measurement)[:, None].expand(-1, particles, *[-1] * (start(measurement).ndim - 1))
        x = levels[0] * standard_normal(x, generator)
        weights = Weights.equal(entries, particles, x, self.ess_threshold)
        denoised, gradient, log_twist = self.twisted(measurement, prior, x, levels[0], noise, batches)
        weights.multiply(log_twist)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 2. resample, and take along what is known of the survivors
            ancestors = weights.resample(generator)
            x, denoised, gradient = (select(v, ancestors) for v in (x, denoised, gradient))
            log_twist = select(log_twist, ancestors)
            if tau == 0:
                x, log_factors = self.last(measurement, denoised, sigma, noise, log_twist)
                weights.multiply(log_factors)
                report_cloud(callback, step, self.num_steps, sigma, x, x, "sigma_max")
                break
            # 3. twisted proposal
            mean, variance = transition(x, denoised, sigma, tau, self.kernel_std)
            guided = denoised + sigma**2 * gradient
            if self.clip:
                guided = guided.clamp(*prior.data_range)
            shift = (1 - (tau / sigma) ** 2) * (guided - denoised)
            draw = math.sqrt(variance) * standard_normal(x, generator)
            x = mean + shift + draw
            # 4. weights: model against proposal, new twist against old
            before = log_twist
            denoised, gradient, log_twist = self.twisted(measurement, prior, x, tau, noise, batches)
            proposal_ratio = (squared_norm(draw.flatten(0, 1)) - squared_norm((shift + draw).flatten(0, 1))) / variance
            weights.multiply(0.5 * proposal_ratio.reshape(entries, particles) + log_twist - before)
            if report_cloud(callback, step, self.num_steps, sigma, x, denoised, "num_particles' twist, or raise it"):
                return weights.cloud(denoised)
        return weights.cloud(x)

    def twisted(
        self, measurement: Measurement, prior: Prior, x: Tensor, sigma: float, noise: float, batches: MicroBatches
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D, the gradient of the log-twist, and the log-twist (B, P), up to a constant of the level."""
        operator = measurement.operator
        spread = remaining_variance(sigma, self.prior_std)

        def evaluate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                denoised = prior.denoise(x, sigma)
                if isinstance(operator, LinearOperator):
                    with torch.no_grad():
                        pull, form = damped_misfit(operator, y - operator(denoised), noise**2 / spread)
                        log_twist = -0.5 * form / spread
                    (gradient,) = torch.autograd.grad(denoised, x, pull / spread)
                else:
                    residual = (y - operator(denoised)).flatten(1)
                    log_twist = -0.5 * residual.abs().square().sum(1) / (noise**2 + spread)
                    (gradient,) = torch.autograd.grad(log_twist.sum(), x)
            return denoised.detach(), self.twist * gradient, self.twist * log_twist.detach()

        y = measurement.y.repeat_interleave(x.shape[1], 0)
        denoised, gradient, log_twist = batches(evaluate, x.flatten(0, 1), y)
        return denoised.reshape(x.shape), gradient.reshape(x.shape), log_twist.reshape(x.shape[:2])

    def last(
        self, measurement: Measurement, denoised: Tensor, sigma: float, noise: float, log_twist: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clean particles, and the factors of their weights."""
        operator = measurement.operator
        flat = denoised.flatten(0, 1)
        residual = measurement.y.repeat_interleave(denoised.shape[1], 0) - operator(flat)
        if isinstance(operator, LinearOperator):
            spread = remaining_variance(sigma, self.prior_std)
            flat = flat + self.twist * operator.pseudo_inverse(residual, noise**2 / spread, rtol=SOLVE_RTOL)
            return flat.reshape(denoised.shape), torch.zeros_like(log_twist)
        log_likelihood = -0.5 * squared_norm(torch.view_as_real(residual) if residual.is_complex() else residual)
        return denoised, self.twist * (log_likelihood / noise**2).reshape(log_twist.shape) - log_twist
