"""Stochastic control guidance: the best of several random steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, report, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.smc import denoise_particles, squared_norm
from invsolve.samplers.steps import ancestral


@dataclass(frozen=True)
class SCG(Sampler):
    """Takes several random steps and keeps the one whose clean image fits the data best; for any callable operator.

    SCG: Huang et al., ICML 2024, arXiv 2402.14285, Algorithm 1. Nothing is differentiated. Selection is by the data
    misfit alone, a maximum and no weight: the noise level is not used, and the result is no posterior sample.

    Cost per step: one network evaluation and one of the operator for every candidate.

    Args:
        num_steps: noise levels.
        num_candidates: random steps to choose from; 16 in the paper, 512 in a later benchmark.
        unguided: share of the steps, at the beginning, in which the first candidate is taken (0.25 in that benchmark).
        sigma_max: first level; the prior's largest if None.
        sigma_min: last level but 0.
        micro_batch: candidates per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 100
    num_candidates: int = 16
    unguided: float = 0.25
    sigma_max: float | None = None
    sigma_min: float = 0.002
    micro_batch: int | None = None

    paper: ClassVar[str] = "2402.14285"
    particles: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "per candidate 1 forward"

    @classmethod
    def serves(cls) -> str:
        return "any that can be called"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        levels = schedules.with_zero(
            schedules.polynomial(self.sigma_max or prior.sigma_max, self.sigma_min, self.num_steps)
        )
        batches = MicroBatches(self.micro_batch)
        x = levels[0] * standard_normal(start(measurement), generator)
        denoised = prior.denoise(x, levels[0])
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            if tau == 0:
                x = denoised
            else:
                # 1. candidates for the next state
                count = self.num_candidates if step > self.unguided * self.num_steps else 1
                centre = x[:, None].expand(-1, count, *[-1] * (x.ndim - 1))
                candidates = ancestral(centre, denoised[:, None], sigma, tau, standard_normal(centre, generator))
                # 2. their clean images, and the one that fits best
                clean = denoise_particles(prior, candidates, tau, batches)
                best = self.misfit(measurement, clean).argmin(1)
                entries = torch.arange(len(x), device=x.device)
                x, denoised = candidates[entries, best], clean[entries, best]
            if report(callback, step, self.num_steps, sigma, x, denoised, "num_steps"):
                return denoised
        return x

    def misfit(self, measurement: Measurement, clean: Tensor) -> Tensor:
        """|| y - A(x) ||^2 of every candidate, (B, candidates)."""
        residual = measurement.y.repeat_interleave(clean.shape[1], 0) - measurement.operator(clean.flatten(0, 1))
        return squared_norm(residual).reshape(clean.shape[:2])
