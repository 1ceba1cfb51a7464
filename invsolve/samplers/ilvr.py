"""Iterative latent variable refinement."""

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
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.steps import ancestral


@dataclass(frozen=True)
class ILVR(Sampler):
    """Replaces the measured part of every state by the data, noised to its level; for (nearly) noiseless data.

    ILVR: Choi et al., ICCV 2021, arXiv 2108.02938, Algorithm 1, with the orthogonal projection phi = A^+ A in the
    place of the paper's down- and upsampling (whose product is not a projection), so that it serves any linear
    operator: x + A^+ (y + tau A n - A x) after every unconditional step. The authors' code noises the reference to the
    level before. For noisy data A^+ becomes A^H (A A^H + (noise_std / tau)^2 I)^-1, which trusts them no more than the
    state and leaves the last step alone: the paper's would copy the noise of y into the image. Many steps use the same
    noise many times, though: for noisy data of ill-conditioned operators take another method.

    Cost per step: one network evaluation, one solve.

    Args:
        num_steps: steps of the DDPM schedule; the authors use 100 of 1000.
        free_steps: the last so many steps are left unconditional; the authors' scripts use 20 of 100.
        variance: 0 for DDPM's small posterior variance, 1 for beta_t; see `steps.ancestral`.
        clip: clamp the denoised image to the prior's data range.
        schedule: "ddpm" is the paper's; "edm" and "geometric" go from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        damping: regularises the pseudo-inverse, relative to a spectral norm of 1.
        max_iter: largest number of CG iterations of a solve without closed form.
    """

    num_steps: int = 100
    free_steps: int = 0
    variance: float = 0.0
    clip: bool = True
    schedule: Literal["ddpm", "ddim", "edm", "geometric"] = "ddpm"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    damping: float = 1e-6
    max_iter: int = 50

    paper: ClassVar[str] = "2108.02938"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 solve"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        operator, y = linear_operator(self, measurement), measurement.y
        noise_std = noise_level(self, measurement)
        levels = schedules.with_zero(schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min))
        x = schedules.initial_std(self.schedule, levels[0]) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. unconditional step
            denoised = prior.denoise(x, sigma)
            if self.clip:
                denoised = denoised.clamp(*prior.data_range)
            x = ancestral(x, denoised, sigma, tau, standard_normal(x, generator), self.variance)
            # 2. the data at the new level, in the place of what the operator sees
            if step <= self.num_steps - self.free_steps and not (tau == 0 and noise_std > 0):
                noised = y + tau * operator(standard_normal(x, generator))
                damping = max((noise_std / tau) ** 2 if tau > 0 else 0.0, self.damping)
                x = x + operator.pseudo_inverse(noised - operator(x), damping, rtol=SOLVE_RTOL, max_iter=self.max_iter)
            if report(callback, step, self.num_steps, sigma, x, denoised, "num_steps"):
                return denoised
        return x
