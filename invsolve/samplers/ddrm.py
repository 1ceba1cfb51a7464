"""Denoising diffusion restoration models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.operators.spectral import filter_sum
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, linear_operator, noise_level, report, start


@dataclass(frozen=True)
class DDRM(Sampler):
    """Treats every singular direction of the operator by its own signal-to-noise ratio; fast, without gradients.

    DDRM: Kawar, Elad, Ermon and Song, NeurIPS 2022, arXiv 2201.11793, equations 7 and 8. In the basis of the right
    singular vectors, a direction of singular value s measured as ybar = U^T y / s goes on from sigma to tau as

    - unseen, s = 0:                      D + tau (sqrt(1 - eta^2) epsilon + eta n)
    - noisier than the state, s tau < noise_std:  D + tau (sqrt(1 - eta^2) (ybar - D) s / noise_std + eta n)
    - cleaner, s tau >= noise_std:        (1 - eta_b) D + eta_b ybar + sqrt(tau^2 - (eta_b noise_std / s)^2) n

    The authors' code compares strictly, so that noiseless data are not imposed on the last step; here they are. The
    start has the variance of the state in all directions.

    Cost per step: one network evaluation, three products with A, one with A^H, and the transforms that diagonalise
    A A^H.

    Args:
        num_steps: steps of the DDIM schedule; the paper uses 20.
        eta: share of fresh noise in the first two cases.
        eta_b: trust in the data in the third.
        min_singular_value: directions up to this singular value count as unseen, relative to a spectral norm of 1.
            The authors cut blurs at 0.03.
        schedule: "ddim" is the paper's; "edm" and "geometric" go from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        released: "authors" divides the start by another norm; "inversebench" ends with a step from the last level to
            itself and leaves eta_b out of the third case's variance. Only there to reproduce them.
    """

    num_steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    min_singular_value: float = 0.03
    schedule: Literal["ddim", "edm", "geometric"] = "ddim"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    released: Literal["", "authors", "inversebench"] = ""

    paper: ClassVar[str] = "2201.11793"
    needs_linear: ClassVar[bool] = True
    needs_spectral: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward"

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
        noise_std, cutoff = noise_level(self, measurement), self.min_singular_value
        levels = schedules.with_zero(schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min))
        if self.released == "inversebench":
            levels[-1] = levels[-2]

        # The first state: the data where they are cleaner than the level, noise everywhere.
        first = Rule(noise_std, levels[0], eta=1.0)
        noise = standard_normal(start(measurement), generator)
        x = filter_sum(operator, [(noise, first.noise)], [(y, lambda s: torch.where(first.clean(s), 1 / s, 0))], cutoff)
        if self.released == "authors":
            x = math.sqrt(1 + 1 / levels[0] ** 2) * x
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised = prior.denoise(x, sigma)
            # 2. each singular direction by its own rule
            rule = Rule(noise_std, tau, self.eta, self.eta_b, full_variance=self.released == "inversebench")
            x = rule.step(operator, y, x, denoised, sigma, standard_normal(x, generator), cutoff)
            if report(callback, step, self.num_steps, sigma, x, denoised, "eta_b"):
                return denoised
        return x


@dataclass(frozen=True)
class Rule:
    """Factors of D, epsilon, n and U^T y in the next state, as functions of the singular value s (0 for unseen)."""

    noise_std: float
    tau: float
    eta: float
    eta_b: float = 1.0
    full_variance: bool = False

    def step(
        self,
        operator: LinearOperator,
        y: Tensor,
        x: Tensor,
        denoised: Tensor,
        sigma: float,
        noise: Tensor,
        cutoff: float,
    ) -> Tensor:
        """The next state; singular values up to `cutoff` count as unseen."""
        images = [(denoised, self.denoised), ((x - denoised) / sigma, self.epsilon), (noise, self.noise)]
        return filter_sum(operator, images, [(y, self.data)], cutoff)

    def clean(self, s: Tensor) -> Tensor:
        return (s > 0) & (s * self.tau >= self.noise_std)

    def denoised(self, s: Tensor) -> Tensor:
        noisy = 1 - self.keep * s / (self.noise_std or 1.0)
        return torch.where(self.clean(s), 1 - self.eta_b, noisy)

    def epsilon(self, s: Tensor) -> Tensor:
        return torch.where(s > 0, 0.0, self.keep).to(s.dtype)

    def noise(self, s: Tensor) -> Tensor:
        safe = torch.where(s > 0, s, 1)
        trust = 1.0 if self.full_variance else self.eta_b
        rest = (self.tau**2 - (trust * self.noise_std / safe) ** 2).clamp_min(0)
        return torch.where(self.clean(s), rest.sqrt(), self.eta * self.tau)

    def data(self, s: Tensor) -> Tensor:
        return torch.where(self.clean(s), self.eta_b / s, self.keep / (self.noise_std or 1.0))

    @property
    def keep(self) -> float:
        """What is left of the old noise where fresh noise has the share eta."""
        return self.tau * math.sqrt(1 - self.eta**2)
