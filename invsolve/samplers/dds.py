"""Decomposed diffusion sampling: a few conjugate-gradient steps instead of a network gradient."""

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
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.steps import renoise


@dataclass(frozen=True)
class DDS(Sampler):
    """Pulls each denoised image to the data by a few conjugate-gradient steps; quick, for linear operators, not exact.

    DDS: Chung, Lee and Ye, ICLR 2024, arXiv 2303.05754, Algorithm 1. Each denoised image is moved towards the data by
    `cg_iterations` conjugate-gradient steps, started at it, on (I + gamma A^H A) x = D + gamma A^H y, or on
    A^H A x = A^H y where the data are noiseless; stopping early keeps the iterate near the tangent space of the
    images. As in the authors' code the step to the next level mixes fresh noise with the network's raw noise estimate
    without DDIM's posterior factor. Unlike it, inner products are Hermitian and per sample, and the run ends when the
    next level is 0 instead of one evaluation later.

    The result is a compromise between prior and data that does not sharpen to the exact posterior: gamma weighs the
    data, and the noise level is not in the method beyond the choice of branch.

    Cost per step: one network evaluation, `cg_iterations` products with A^H A.

    Args:
        num_steps: number of timesteps, 20 to 100.
        gamma: weight of the data, relative to a spectral norm of 1. The paper uses 0.95, the code 1.
        cg_iterations: the paper's 5; None solves to the end, in closed form where the operator has one.
        eta: share of fresh noise; the code uses 0.85, the paper 0.15 / 0.5 / 0.8 for 19 / 49 / 99 steps.
        released_end: the code's own last two steps: no noise on the step to timestep 0, whose state is then denoised
            once more as if it were noisy. Only there to reproduce it.
    """

    num_steps: int = 50
    gamma: float = 1.0
    cg_iterations: int | None = 5
    eta: float = 0.85
    released_end: bool = False

    paper: ClassVar[str] = "2303.05754"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 5 CG iterations"

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
        noiseless = noise_level(self, measurement) == 0
        damping = 0.0 if noiseless else 1 / self.gamma
        backprojection = operator.adjoint(measurement.y)
        levels = schedules.with_zero(schedules.ddim(self.num_steps))
        x = math.sqrt(1 + levels[0] ** 2) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised = prior.denoise(x, sigma)
            epsilon = (x - denoised) / sigma
            # 2. data consistency, from the denoised image
            if self.cg_iterations is None:
                residual = measurement.y - operator(denoised)
                consistent = denoised + operator.pseudo_inverse(residual, damping or 1e-6, rtol=SOLVE_RTOL)
            else:
                rhs = backprojection + damping * denoised
                consistent = operator.solve_cg(rhs, damping, x0=denoised, max_iter=self.cg_iterations).x
            # 3. noise to the next level
            x = consistent
            if self.released_end and step == self.num_steps - 1:
                x = math.sqrt(1 + tau**2) * consistent
            elif tau > 0:
                x = renoise(consistent, epsilon, tau, self.eta, standard_normal(x, generator))
            if report(callback, step, self.num_steps, sigma, x, consistent, "gamma"):
                return consistent
        return x
