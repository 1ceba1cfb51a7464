"""Plug-and-play restoration: a denoiser and a proximal data step in turn."""

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
from invsolve.priors.conversions import DiscreteVPSchedule
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.daps import likelihood_gradient
from invsolve.samplers.lift import lift
from invsolve.samplers.steps import renoise


@dataclass(frozen=True)
class DiffPIR(Sampler):
    """Denoise, solve for the data in closed form or by CG, noise again: fast, close to the posterior mean.

    DiffPIR (Zhu et al., CVPR-W 2023, arXiv 2305.08995, Algorithm 1) at `temperature` 1; at 0 no noise is added at all
    and the iteration is the deterministic half-quadratic splitting of DPIR (Zhang et al. 2021, arXiv 2008.13751,
    Algorithm 1), the best single picture for few evaluations. Neither samples the exact posterior: on a white Gaussian
    prior the variance of the unmeasured part is (1 + sqrt(1 - zeta))/2 of what it should be.

    Differences from the released codes: the state lives in sigma-coordinates, levels follow Karras et al., noise and
    level have the same units (the code's weight is four times too small), the denoised image is not clamped, and the
    result is the last data-consistent image instead of a state that still carries noise. The other options are there
    to run what was released: `levels`, `clip`, `eta` and `begin` the authors' scripts, `weighting` "vp" and `data_step`
    "gradient" InverseBench. The latter also serves operators that are not linear.

    Cost per step: one network evaluation and one solve; where it iterates, it begins with the image of the step before.

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
        levels: noise levels instead of num_steps, sigma_max and sigma_min, largest first. A last level above 0 leaves
            its noise on the result, as the released codes do.
        clip: clamp the denoised image to the prior's data range.
        eta: DDIM's fresh noise on the (1 - zeta) share, in units of one of 1000 timesteps; 0 in all published settings.
        begin: what is noised up to the first level: the regularised "backprojection" of the data, the "measurement"
            itself as a state of twice its own noise (for measurements that are images), or nothing, "noise".
        weighting: what lam is divided by: "sigma" the square of the level, "vp" sigma^2 / (1 + sigma^2), which trusts
            the network at high levels too.
        data_step: "solve", or one "gradient" step from the denoised image, for any differentiable operator; with
            weighting "vp" it is stable where lam noise_std^2 is above the operator's squared norm.
    """

    num_steps: int = 25
    sigma_max: float = 3.0
    sigma_min: float = 0.03
    lam: float = 1.0
    zeta: float = 1.0
    temperature: float = 1.0
    max_iter: int = 40
    levels: tuple[float, ...] | None = None
    clip: bool = False
    eta: float = 0.0
    begin: Literal["backprojection", "measurement", "noise"] = "backprojection"
    weighting: Literal["sigma", "vp"] = "sigma"
    data_step: Literal["solve", "gradient"] = "solve"

    paper: ClassVar[str] = "2305.08995"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 solve"

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
        operator = linear_operator(self, measurement) if self.data_step == "solve" else None
        # Noiseless data are given a noise of 1e-3, which keeps the solve well posed.
        noise_std = max(noise_level(self, measurement), 1e-3)
        karras = schedules.with_zero(schedules.polynomial(self.sigma_max, self.sigma_min, self.num_steps))
        levels = self.levels or karras
        x, start_level = self.first(measurement, noise_std)
        last = x
        if self.temperature > 0:
            added = math.sqrt(levels[0] ** 2 - start_level**2)
            x = x + self.temperature * added * standard_normal(x, generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised = prior.denoise(x, sigma)
            if self.clip:
                denoised = denoised.clamp(*prior.data_range)
            # 2. proximal data step, as a correction
            prior_variance = sigma**2 if self.weighting == "sigma" else sigma**2 / (1 + sigma**2)
            damping = self.lam * noise_std**2 / prior_variance
            if operator is not None:
                residual = measurement.y - operator(denoised)
                # iterations begin where they led to in the last step
                correction = operator.pseudo_inverse(
                    residual, damping, x0=last - denoised, rtol=SOLVE_RTOL, max_iter=self.max_iter
                )
            else:
                correction = 2 / damping * likelihood_gradient(measurement, denoised)
            consistent = last = denoised + correction
            # 3. noise to the next level
            if tau > 0 and self.temperature > 0:
                epsilon = (x - consistent) / sigma
                if self.eta > 0:
                    epsilon = self.partly_fresh(epsilon, sigma, generator)
                noise = standard_normal(x, generator)
                x = renoise(consistent, epsilon, self.temperature * tau, math.sqrt(self.zeta), noise)
            else:
                x = consistent
            lower = "sigma_max" if operator is not None else "1 / lam"
            if report(callback, step, len(levels) - 1, sigma, x, consistent, lower):
                return consistent
        return x

    def first(self, measurement: Measurement, noise_std: float) -> tuple[Tensor, float]:
        """First image, and the noise level it is taken to have already."""
        if self.begin == "noise":
            return start(measurement), 0.0
        if self.begin == "backprojection":
            return lift(self, measurement, (noise_std / 0.5) ** 2, self.max_iter, 1e-4), 0.0
        if measurement.operator.out_shape != measurement.operator.in_shape:
            raise ValueError(
                f"begin='measurement' needs y to be an image, but y has shape {measurement.operator.out_shape} and "
                f"images {measurement.operator.in_shape}; use begin='backprojection'."
            )
        sigma = nearest_timestep(noise_std)[1]
        return math.sqrt(1 + sigma**2) * measurement.y, sigma

    def partly_fresh(self, epsilon: Tensor, sigma: float, generator: Generators) -> Tensor:
        """DDIM's mixture with the posterior noise of a single timestep at sigma."""
        share = self.eta**2 * nearest_timestep(sigma)[0] * (1 + sigma**2) / sigma**2
        return math.sqrt(1 - share) * epsilon + math.sqrt(share) * standard_normal(epsilon, generator)


def nearest_timestep(sigma: float) -> tuple[float, float]:
    """beta and level of the timestep of the linear VP schedule whose level is nearest."""
    schedule = DiscreteVPSchedule.linear()
    t = int((schedule.sigmas - sigma).abs().argmin())
    previous = float(schedule.alphas_cumprod[t - 1]) if t > 0 else 1.0
    return 1 - float(schedule.alphas_cumprod[t]) / previous, float(schedule.sigmas[t])
