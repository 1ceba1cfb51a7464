"""Moment-matching posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from invsolve.operators.cg import conjugate_gradient
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.gradients import Transposed, linearize
from invsolve.samplers.steps import ddim


@dataclass(frozen=True)
class MMPS(Sampler):
    """Guides with the covariance that the denoiser itself implies, by conjugate gradients; exact on Gaussian priors.

    MMPS: Rozet, Andry, Lanusse and Louppe, NeurIPS 2024, arXiv 2405.13712, section 4.2. By Tweedie's second formula
    the clean image given the state has covariance sigma^2 J, so that y - A D has A sigma^2 J A^H + noise_std^2 I and
    the posterior mean is D_y = D + J^T A^H v with (A J A^H + noise_std^2 / sigma^2 I) v = y - A D, solved by conjugate
    gradients with one product by J^T an iteration (J is symmetric for an exact denoiser, and taken as such).
    Exact on every Gaussian prior, white or not, in the limit of small steps and many iterations.

    Cost per step: one network evaluation, `cg_iterations` + 1 backward passes through it.

    Args:
        num_steps: steps; the authors use 64 to 256.
        cg_iterations: the authors use 1 to 5. A trained network's Jacobian is not quite symmetric: more of them need
            not help.
        eta: share of DDIM's fresh noise, 0 to 1; 1 is the ancestral step.
        schedule: "geometric" is the paper's; "edm" puts more steps at middle levels.
        sigma_max: first level.
        sigma_min: last level but 0.
        damping: stands in for (noise_std / sigma)^2 where that is smaller, relative to a spectral norm of 1.
    """

    num_steps: int = 64
    cg_iterations: int = 3
    eta: float = 1.0
    schedule: Literal["ddpm", "ddim", "edm", "geometric"] = "geometric"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    damping: float = 1e-6

    paper: ClassVar[str] = "2405.13712"
    needs_linear: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 + cg_iterations backward"

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
            # 1. denoise
            denoised, transposed = linearize(prior, x, sigma)

            # 2. solve with the covariance of the residual
            def covariance(v: Tensor, transposed: Transposed = transposed) -> Tensor:
                return operator(transposed(operator.adjoint(v), False))  # type: ignore[no-any-return]

            damping = max((noise_std / sigma) ** 2, self.damping)
            residual = y - operator(denoised)
            v = conjugate_gradient(covariance, residual, damping, rtol=1e-6, max_iter=self.cg_iterations).x
            # 3. mean of the clean image given the state and the data
            posterior = denoised + transposed(operator.adjoint(v), True)
            # 4. unconditional step with it
            x = ddim(x, posterior, sigma, tau, self.eta, standard_normal(x, generator))
            if report(callback, step, self.num_steps, sigma, x, posterior, "cg_iterations"):
                return posterior
        return x
