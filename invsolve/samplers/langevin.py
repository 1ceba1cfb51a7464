"""Annealed Langevin dynamics on the posterior: the slow reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import (
    SOLVE_ITERATIONS,
    SOLVE_RTOL,
    Callback,
    Sampler,
    linear_operator,
    noise_level,
    report,
    start,
)

SMALLEST_NOISE = 1e-4


@dataclass(frozen=True)
class Langevin(Sampler):
    """A Markov chain on the posterior itself, annealed over the prior's noise level; slow, exact within a mode.

    Annealed Langevin dynamics: Song and Ermon, NeurIPS 2019, arXiv 1907.05600, Algorithm 1, with a likelihood as in
    Jalal et al. 2021 (arXiv 2108.01368), whose noise is not inflated here. At level sigma the chain has the target
    p_sigma(x) N(y; A x, noise^2 I), which tends to the posterior as sigma falls to `sigma_min`.

    The authors' step size must be smaller than the smallest variance of the target. Here the chain is preconditioned by
    M = (A^H A / noise^2 + I / s^2)^-1, s^2 = sigma^2 + prior_std^2, and moved by

        x' = x + (1 - e^-h) M grad + sqrt(1 - e^-2h) M^1/2 n,

    which is exact, without step-size bias, wherever the prior is locally Gaussian with standard deviation prior_std,
    for any operator and noise. Where it is not, smaller h and more steps make the bias smaller. Chains do not move
    between distant modes once sigma is below their distance.

    Cost per step: one network evaluation and one solve.

    Args:
        num_steps: network evaluations in all, spread evenly over the levels.
        num_levels: noise levels, with a constant ratio.
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level. The result keeps this much noise where the data say nothing.
        step: h, 0.05 to 1; 1 forgets all but e^-1 of the state.
        prior_std: local standard deviation of the prior in model units. Too small is safe, and slow;
            far above sigma_min it diverges where the prior is thinner than that.
    """

    num_steps: int = 1000
    num_levels: int = 200
    sigma_max: float | None = None
    sigma_min: float = 0.02
    step: float = 0.3
    prior_std: float = 0.02

    paper: ClassVar[str] = "1907.05600"
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
        operator = linear_operator(self, measurement)
        noise = max(noise_level(self, measurement), SMALLEST_NOISE)
        y = measurement.y
        count = min(self.num_levels, self.num_steps)
        levels = schedules.geometric(self.sigma_max or prior.sigma_max, self.sigma_min, count).tolist()
        keep, spread = -math.expm1(-self.step), math.sqrt(-math.expm1(-2 * self.step))
        x: Tensor = levels[0] * standard_normal(start(measurement), generator)
        for step in range(1, self.num_steps + 1):
            sigma = levels[(step - 1) * count // self.num_steps]
            width = math.hypot(sigma, self.prior_std)
            # 1. prior's part of the preconditioned gradient, and of the noise
            denoised = prior.denoise(x, sigma)
            drift = (width / sigma) ** 2 * (denoised - x)
            move = keep * drift + spread * width * standard_normal(x, generator)
            # 2. the data's part of both, by one solve
            data = keep * (y - operator(x)) + spread * noise * standard_normal(y, generator)
            x = (
                x
                + move
                + operator.pseudo_inverse(
                    data - operator(move), (noise / width) ** 2, rtol=SOLVE_RTOL, max_iter=SOLVE_ITERATIONS
                )
            )
            if report(callback, step, self.num_steps, sigma, x, denoised, "step or prior_std"):
                return denoised
        return x
