"""Manifold constrained gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_ITERATIONS, SOLVE_RTOL, Callback, Sampler, linear_operator, report, start
from invsolve.samplers.dps import residual_gradient, vp_gain
from invsolve.samplers.steps import ancestral


@dataclass(frozen=True)
class MCG(Sampler):
    """A DPS step, then a projection on the data; for linear operators and (nearly) noiseless measurements.

    MCG: Chung et al., NeurIPS 2022, arXiv 2206.00941, Algorithm 1. The projection is x + A^+ (y_tau - A x) with the
    measurement noised to the state's level, y_tau = y + tau n. It copies the noise of y into the image at every step,
    so use it for (nearly) noiseless measurements. Differences kept from the authors' code: the gradient is of the
    norm, not of its square. Differences from it: one norm per sample, and `noised_at="next"`, the level of the state
    that is written to; the code uses the current level, also on the last step, which leaves noise of sigma = 0.01 on
    the result.

    Cost per step: one network evaluation and one backward pass, one solve.

    Args:
        num_steps: steps of the DDPM schedule.
        step_size: weight of the gradient; the authors use 1.
        clip: clamp the denoised image to the prior's data range.
        noised_at: level of the noised measurement, "next" (paper) or "current" (code).
        damping: regularises the pseudo-inverse, relative to a spectral norm of 1.
    """

    num_steps: int = 1000
    step_size: float = 1.0
    clip: bool = True
    noised_at: Literal["next", "current"] = "next"
    damping: float = 1e-6

    paper: ClassVar[str] = "2206.00941"
    needs_linear: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 backward, 1 solve"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        operator = linear_operator(self, measurement)
        y = measurement.y
        levels = schedules.with_zero(schedules.ddpm(self.num_steps))
        x = math.sqrt(1 + levels[0] ** 2) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. unconditional step; 2. gradient of the residual norm
            denoised, gradient = residual_gradient(
                measurement, prior, x, sigma, prior.data_range if self.clip else None
            )
            x_next = ancestral(x, denoised, sigma, tau, standard_normal(x, generator))
            u = x_next - self.step_size * vp_gain(sigma, tau) * gradient
            # 3. projection on the noised measurement
            noised = y + (sigma if self.noised_at == "current" else tau) * standard_normal(y, generator)
            if self.noised_at == "current":  # the VP state at tau, holding VP data of level sigma
                noised = math.sqrt((1 + tau**2) / (1 + sigma**2)) * noised
            x = u + operator.pseudo_inverse(
                noised - operator(u), self.damping, rtol=SOLVE_RTOL, max_iter=SOLVE_ITERATIONS
            )
            if report(callback, step, self.num_steps, sigma, x, denoised, "step_size"):
                return denoised
        return x
