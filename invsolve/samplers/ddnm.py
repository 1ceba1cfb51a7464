"""Denoising diffusion null-space models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.ddrm import Rule
from invsolve.samplers.steps import renoise


@dataclass(frozen=True)
class DDNM(Sampler):
    """Replaces what the data determine in every denoised image, keeping the rest; fast, without gradients.

    DDNM and DDNM+: Wang, Yu and Zhang, ICLR 2023, arXiv 2212.00490, Algorithms 1 and 3, with the authors' code's noise
    (fresh noise of share eta beside the raw noise estimate, without DDIM's posterior factor). For noiseless data the
    denoised image becomes D + A^+ (y - A D), for any linear operator. For noisy data (DDNM+) every singular direction
    follows its own rule, so the operator's singular values must be at hand; that rule is DDRM's with eta_b = 1.

    Time travel goes back `travel_length` levels at every such number of levels and comes down again, `travel_repeat`
    times in all, which lets the two parts of the image agree.

    Cost per step: one network evaluation, one solve (noiseless) or products with A and A^H.

    Args:
        num_steps: levels; the network is evaluated more often with time travel.
        eta: share of fresh noise.
        travel_length: levels to go back.
        travel_repeat: 1 for no time travel.
        damping: regularises the pseudo-inverse of noiseless data, relative to a spectral norm of 1.
        min_singular_value: directions up to this singular value count as unseen (DDNM+); see `DDRM`.
        schedule: "ddim" is the paper's; "edm" and "geometric" go from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        max_iter: largest number of CG iterations of a solve without closed form.
        simplified: InverseBench's form, which ignores singular values and so serves noisy data of any linear operator:
            the correction shrinks by min(1, tau / noise_std), and the fresh noise likewise. It under-noises what the
            data determine poorly. Time travel then happens at every level.
        released: end with a step from the last level to itself, as InverseBench does. Only there to reproduce it.
    """

    num_steps: int = 100
    eta: float = 0.85
    travel_length: int = 1
    travel_repeat: int = 1
    damping: float = 1e-6
    min_singular_value: float = 0.03
    schedule: Literal["ddim", "edm", "geometric"] = "ddim"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    max_iter: int = 50
    simplified: bool = False
    released: bool = False

    paper: ClassVar[str] = "2212.00490"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    needs_spectral: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 solve (x travel_repeat)"

    def __post_init__(self) -> None:
        for name in ("travel_length", "travel_repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1 on.")

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
        noise_std = noise_level(self, measurement)
        levels = schedules.with_zero(schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min))
        if self.released:
            levels[-1] = levels[-2]
        x = schedules.initial_std(self.schedule, levels[0]) * standard_normal(start(measurement), generator)
        denoised, step, path = x, 0, self.path(len(levels) - 1)
        total = sum(b > a for a, b in path)
        for here, there in path:
            sigma, tau = levels[here], levels[there]
            noise = standard_normal(x, generator)
            if there < here:  # time travel
                x = x + math.sqrt(tau**2 - sigma**2) * noise if self.simplified else denoised + tau * noise
                continue
            step += 1
            # 1. denoise
            denoised = prior.denoise(x, sigma)
            # 2. the data's part, and noise to the next level
            if self.simplified:
                x, consistent = self._simplified_step(measurement, operator, x, denoised, sigma, tau, noise, noise_std)
            elif noise_std == 0:
                residual = measurement.y - operator(denoised)
                consistent = denoised + operator.pseudo_inverse(
                    residual, self.damping, rtol=SOLVE_RTOL, max_iter=self.max_iter
                )
                x = renoise(consistent, (x - denoised) / sigma, tau, self.eta, noise)
            else:
                consistent = denoised
                rule = Rule(noise_std, tau, self.eta)
                x = rule.step(operator, measurement.y, x, denoised, sigma, noise, self.min_singular_value)
            if report(callback, step, total, sigma, x, consistent, "eta"):
                return consistent
        return x

    def path(self, num_levels: int) -> list[tuple[int, int]]:
        """Moves between positions in the list of levels, 0 the first; a move to a smaller one is time travel."""
        moves: list[tuple[int, int]] = []
        travels: dict[int, int] = {}
        here = 0
        while here < num_levels:
            back = self._back(here, num_levels)
            if back > 0 and travels.get(here, 0) < self.travel_repeat - 1:
                travels[here] = travels.get(here, 0) + 1
                moves.append((here, here - back))
                here -= back
            else:
                moves.append((here, here + 1))
                here += 1
        return moves

    def _back(self, here: int, num_levels: int) -> int:
        """How many levels to go back from this one."""
        if self.simplified:
            return min(self.travel_length, here)
        remaining = num_levels - 1 - here
        return self.travel_length if remaining % self.travel_length == 0 and here >= self.travel_length else 0

    def _simplified_step(
        self,
        measurement: Measurement,
        operator: LinearOperator,
        x: Tensor,
        denoised: Tensor,
        sigma: float,
        tau: float,
        noise: Tensor,
        noise_std: float,
    ) -> tuple[Tensor, Tensor]:
        """InverseBench's step, and its data-consistent image."""
        residual = measurement.y - operator(denoised)
        correction = operator.pseudo_inverse(residual, self.damping, rtol=SOLVE_RTOL, max_iter=self.max_iter)
        share = min(1.0, tau / noise_std) if noise_std > 0 else 1.0
        consistent = denoised + share * correction
        fresh = math.sqrt(max(0.0, tau**2 - (share * noise_std) ** 2))
        x = consistent + math.sqrt(1 - self.eta**2) * tau / sigma * (x - consistent) + self.eta * fresh * noise
        return x, consistent
