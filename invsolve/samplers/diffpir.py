"""Plug-and-play restoration: a denoiser and a proximal data step in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, linear_operator, noise_level, report
from invsolve.samplers.steps import renoise


@dataclass(frozen=True)
class DiffPIR(Sampler):
    """Denoise, solve for the data in closed form or by CG, noise again: fast, close to the posterior mean.

    DiffPIR (Zhu et al., CVPR-W 2023, arXiv 2305.08995, Algorithm 1) at `temperature` 1; at 0 no noise is added at all
    and the iteration is the deterministic half-quadratic splitting of DPIR (Zhang et al. 2021, arXiv 2008.13751,
    Algorithm 1), the best single picture for few evaluations. Neither samples the exact posterior: on a white Gaussian
    prior the variance of the unmeasured part is (1 + sqrt(1 - zeta))/2 of what it should be.

    Differences from the released codes: the state lives in sigma-coordinates, levels follow Karras et al., noise and
    level have the same units (the code's weight is four times too small), and the result is the last data-consistent
    image instead of a state that still carries noise.

    Cost per step: one network evaluation and one solve.

    Args:
        num_steps: levels.
        sigma_max: first level. At temperature 0 the start is the regularised back-projection of the data, so
            moderate levels suffice.
        sigma_min: last level but 0.
        lam: weight of the prior, lambda: the data step minimises
            ||y - A x||^2 / noise_std^2 + lam ||x - D||^2 / sigma^2.
        zeta: share of fresh noise; 1 replaces the predicted noise altogether.
        temperature: scales the added noise, 0 to 1.
        max_iter: largest number of CG iterations of a data step without closed form.
    """

    num_steps: int = 25
    sigma_max: float = 3.0
    sigma_min: float = 0.03
    lam: float = 1.0
    zeta: float = 1.0
    temperature: float = 1.0
    max_iter: int = 15

    paper: ClassVar[str] = "2305.08995"
    needs_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("zeta", "temperature"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")

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
        # Noiseless data are given a noise of 1e-3, which keeps the solve well posed.
        noise_std = max(noise_level(self, measurement), 1e-3)
        levels = schedules.with_zero(schedules.polynomial(self.sigma_max, self.sigma_min, self.num_steps))
        x = operator.pseudo_inverse(y, (noise_std / 0.5) ** 2, max_iter=self.max_iter)
        if self.temperature > 0:
            x = x + self.temperature * levels[0] * standard_normal(x, generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised = prior.denoise(x, sigma)
            # 2. proximal data step, as a correction
            residual = y - operator(denoised)
            damping = self.lam * (noise_std / sigma) ** 2
            consistent = denoised + operator.pseudo_inverse(residual, damping, rtol=1e-4, max_iter=self.max_iter)
            # 3. noise to the next level
            if tau > 0 and self.temperature > 0:
                epsilon = (x - consistent) / sigma
                noise = standard_normal(x, generator)
                x = renoise(consistent, epsilon, self.temperature * tau, math.sqrt(self.zeta), noise)
            else:
                x = consistent
            if report(callback, step, self.num_steps, sigma, x, consistent, "sigma_max"):
                return consistent
        return x
