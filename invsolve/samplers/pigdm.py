"""Pseudo-inverse guided diffusion."""

from __future__ import annotations

import math
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
from invsolve.samplers.gradients import linearize
from invsolve.samplers.steps import ddim, renoise


@dataclass(frozen=True)
class PiGDM(Sampler):
    """Guides by the pseudo-inverse residual through the network; few steps, for linear operators.

    PiGDM: Song, Vahdat, Mardani and Kautz, ICLR 2023 (OpenReview 9_gsMA8MRKQ), Algorithm 1. Around the denoised image
    the clean one is taken as Gaussian with variance r^2 = sigma^2 c^2 / (sigma^2 + c^2), c = `data_std`, so that
    the guidance is g = J^T A^H (A A^H + noise_std^2 / r^2)^-1 (y - A D). What is then done with g differs between the
    paper and every code, hence `guidance`. Only "bayes" samples the exact posterior where the prior is a white
    Gaussian of standard deviation c and the steps are small; in the paper's form the pull grows with their number. With
    networks "unit" is the stable one: images vary in their coarse features far more than c, where the factors above 1
    of "paper" (in few steps) and "bayes" overshoot.

    Cost per step: one network evaluation and one backward pass through it, one solve.

    Args:
        num_steps: steps; the paper uses 20 and 100.
        eta: share of DDIM's fresh noise, 0 (deterministic) to 1.
        guidance: "paper" adds sqrt(1 + tau^2) g to the DDIM step; "unit" adds g, as the authors' later code does by
            default; "substituted" takes the step with D + g in the place of D, that code's other form; "bayes" with
            D + (sigma^2 / r^2) g, the posterior mean that the approximation implies.
        data_std: c; 1 in the paper. Photographs in [-1, 1] have about 0.5.
        schedule: "ddim" is the paper's; "edm" and "geometric" go from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        warm_start: begin at the noised pseudo-inverse instead of at noise, as the authors' code does.
        clip: clamp the denoised image to the prior's data range, inside the gradient.
        damping: stands in for noise_std^2 / r^2 where that is smaller, relative to a spectral norm of 1.
        max_iter: largest number of CG iterations of a solve without closed form.
        released: the form of InverseBench, only there to reproduce it: without DDIM's posterior factor in the noise,
            and with a last step from the last level to itself.
    """

    num_steps: int = 100
    eta: float = 1.0
    guidance: Literal["paper", "unit", "substituted", "bayes"] = "unit"
    data_std: float = 1.0
    schedule: Literal["ddim", "edm", "geometric"] = "ddim"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    warm_start: bool = False
    clip: bool = False
    damping: float = 1e-6
    max_iter: int = 50
    released: bool = False

    paper: ClassVar[str] = "OpenReview 9_gsMA8MRKQ"
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
        operator, y = linear_operator(self, measurement), measurement.y
        noise_std = noise_level(self, measurement)
        chosen = schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min)
        levels = schedules.with_zero(chosen)
        if self.released:
            levels[-1] = levels[-2]
        x = start(measurement)
        if self.warm_start:
            x = operator.pseudo_inverse(y, self.damping, rtol=SOLVE_RTOL, max_iter=self.max_iter)
            x = x + levels[0] * standard_normal(x, generator)
        else:
            x = schedules.initial_std(self.schedule, levels[0]) * standard_normal(x, generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised, transposed = linearize(prior, x, sigma, self.clip)
            # 2. residual, weighted by its covariance
            r2 = (sigma * self.data_std) ** 2 / (sigma**2 + self.data_std**2)
            damping = max(noise_std**2 / r2, self.damping)
            with torch.no_grad():
                pulled = operator.pseudo_inverse(
                    y - operator(denoised), damping, rtol=SOLVE_RTOL, max_iter=self.max_iter
                )
            # 3. back through the network
            g = transposed(pulled, True)
            # 4. DDIM step with the guidance
            noise = standard_normal(x, generator)
            if self.guidance == "bayes":
                x = ddim(x, denoised + sigma**2 / r2 * g, sigma, tau, self.eta, noise)
            elif self.guidance == "substituted":
                x = ddim(x, denoised + g, sigma, tau, self.eta, noise)
            else:
                weight = math.sqrt(1 + tau**2) if self.guidance == "paper" else 1.0
                if self.released:
                    x = renoise(denoised, (x - denoised) / sigma, tau, self.eta, noise) + weight * g
                else:
                    x = ddim(x, denoised, sigma, tau, self.eta, noise) + weight * g
            if report(callback, step, self.num_steps, sigma, x, denoised, "data_std"):
                return denoised
        return x
