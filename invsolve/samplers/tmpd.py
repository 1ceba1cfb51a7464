"""Tweedie moment projected diffusions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.gradients import linearize
from invsolve.samplers.steps import ddim


@dataclass(frozen=True)
class TMPD(Sampler):
    """Guides with a diagonal of the covariance that the denoiser implies: two backward passes, no step size to tune.

    TMPD: Boys et al., TMLR 2024, arXiv 2310.06721, Algorithm 1. The covariance A sigma^2 J A^T + noise_std^2 I of the
    residual is replaced by the diagonal of its row sums C = sigma^2 A J^T A^T 1 + noise_std^2, and the posterior mean
    is D_y = D + sigma^2 J^T A^T (y - A D) / C. Exact on Gaussian priors where A J A^T is diagonal, as for masks of
    independent pixels. As in the paper the row sums start at the all-ones measurement; the authors' code starts them at
    A 1, the same for masks and for operators that keep constants.

    Row sums say something only where measurements are like pixels; for Fourier or Radon data use MMPS.

    Cost per step: one network evaluation, two backward passes through it.

    Args:
        num_steps: steps; the authors use 1000 with the "ddpm" schedule.
        eta: share of DDIM's fresh noise; 1 is the ancestral step, the authors'.
        schedule: "ddpm" is the paper's; "edm" and "geometric" go from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        floor: C is at least this share of sigma^2 / (1 + sigma^2), the variance of unit Gaussian data, above
            noise_std^2: the row sums of a trained network's Jacobian can come out negative.
    """

    num_steps: int = 1000
    eta: float = 1.0
    schedule: Literal["ddpm", "ddim", "edm", "geometric"] = "ddpm"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    floor: float = 1e-3

    paper: ClassVar[str] = "2310.06721"
    needs_linear: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 2 backward"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        operator, y = linear_operator(self, measurement), measurement.y
        if y.is_complex():
            raise ValueError("tmpd sums rows of a covariance, which says nothing about complex data; mmps serves them.")
        noise_std = noise_level(self, measurement)
        levels = schedules.with_zero(schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min))
        ones = operator.adjoint(torch.ones_like(y))
        x = schedules.initial_std(self.schedule, levels[0]) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised, transposed = linearize(prior, x, sigma)
            # 2. row sums of the residual's covariance, over sigma^2
            noise = (noise_std / sigma) ** 2
            sums = operator(transposed(ones, False)) + noise
            sums = sums.clamp_min(noise + self.floor / (1 + sigma**2))
            # 3. mean of the clean image given the state and the data
            posterior = denoised + transposed(operator.adjoint((y - operator(denoised)) / sums), True)
            # 4. unconditional step with it
            x = ddim(x, posterior, sigma, tau, self.eta, standard_normal(x, generator))
            if report(callback, step, self.num_steps, sigma, x, posterior, "num_steps"):
                return posterior
        return x
