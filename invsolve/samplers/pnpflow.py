"""Plug-and-play flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, report, start
from invsolve.samplers.daps import likelihood_gradient


@dataclass(frozen=True)
class PnPFlow(Sampler):
    """A gradient step on the data, noise, denoise, at falling levels; simple and smooth, for any operator.

    PnP-Flow: Martin et al., ICLR 2025, arXiv 2410.02423, Algorithm 3. With s = i/N rising from noise (0) to data (1):
    a gradient step of length `step_size` (1 - s)^`alpha` on |y - A x|^2 / 2, then the average of `num_draws` denoised
    images, each from fresh noise of level sigma = (1 - s)/s. The noise is replaced altogether at every step, which
    loses variance: an estimate near the posterior mean, not a draw.

    As in the released code the noise level of y cancels from the step, so that `alpha` alone weighs the data. Unlike
    it, the first level is the prior's largest instead of infinity, and the start is 0 (the first level forgets it).

    Cost per step: `num_draws` network evaluations, one product with A and A^H.

    Args:
        num_steps: N.
        num_draws: denoised images to average; 5 in the code, 1 is nearly as good.
        step_size: relative to a spectral norm of 1, below 2.
        alpha: 0 for a constant step; 0.01 for deblurring and random masks, 0.3 for super-resolution, 0.5 for holes,
            0.8 for denoising.
    """

    num_steps: int = 100
    num_draws: int = 5
    step_size: float = 1.0
    alpha: float = 0.5

    paper: ClassVar[str] = "2410.02423"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "num_draws forward, 1 operator gradient"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        times = 1 - torch.arange(self.num_steps, dtype=torch.float64) / self.num_steps
        levels = schedules.flow(times, prior.sigma_max).tolist()
        x = start(measurement)
        for step, sigma in enumerate(levels, start=1):
            noise_share = sigma / (1 + sigma)  # 1 - s
            # 1. gradient step on the data
            z = x + self.step_size * noise_share**self.alpha * likelihood_gradient(measurement, x)
            # 2-3. onto the path of the flow, and denoise
            x = torch.zeros_like(z)
            for _ in range(self.num_draws):
                x = x + prior.denoise(z + sigma * standard_normal(z, generator), sigma) / self.num_draws
            if report(callback, step, self.num_steps, sigma, z, x, "step_size"):
                break
        return x
