"""Conditional sampling by replacement with predictor and corrector steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start


@dataclass(frozen=True)
class ScoreSDE(Sampler):
    """Merges every state with the data noised to its level, between Langevin and diffusion steps; the classic.

    Score-SDE: Song et al., ICLR 2021, arXiv 2011.13456, for inverse problems as in Song, Shen, Xing and Ermon, ICLR
    2022, arXiv 2111.08005, Algorithm 2. The merge is x + weight A^+ (y + sigma A n - A x): at weight 1 the state is
    replaced in the range of A^H, at less it is moved there part of the way. A^+ stands in for the paper's invertible
    transform and mask; for noisy data it is A^H (A A^H + (noise_std / sigma)^2 I)^-1, which trusts them no more than
    the state, and the last merge, with the clean y, is left out. Corrector steps have the length
    2 (snr ||n|| / ||score||)^2, with norms per sample: the authors' averages over the batch make it depend on the
    neighbours.

    Cost per step: 1 + `corrector_steps` network evaluations, as many solves.

    Args:
        num_steps: levels; the papers use 1000.
        corrector_steps: Langevin steps at every level.
        snr: their signal-to-noise ratio; the papers use 0.16 (images) and 0.2 to 0.5 (tuned, CT and MRI).
        weight: lambda, 0 to 1; the papers tune 0.7 to 1.
        predictor: "reverse" discretises the reverse SDE, as the authors' codes do, and needs many steps; "ancestral"
            is the other predictor of the paper, which adds the smaller noise of `steps.ancestral`.
        sigma_max: first level, in geometric sequence.
        sigma_min: last level but 0.
        damping: regularises the pseudo-inverse, relative to a spectral norm of 1.
        max_iter: largest number of CG iterations of a solve without closed form.
    """

    num_steps: int = 1000
    corrector_steps: int = 1
    snr: float = 0.16
    weight: float = 1.0
    predictor: Literal["reverse", "ancestral"] = "reverse"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    damping: float = 1e-6
    max_iter: int = 50

    paper: ClassVar[str] = "2111.08005"
    needs_linear: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 + corrector_steps forward, as many solves"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; expected a number from 0 to 1.")

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
        noise_std = noise_level(self, measurement)
        levels = schedules.with_zero(schedules.geometric(self.sigma_max, self.sigma_min, self.num_steps))
        x = levels[0] * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. corrector: Langevin steps at this level, each after a merge
            for _ in range(self.corrector_steps):
                x = self._merge(operator, y, x, sigma, noise_std, generator)
                score = (prior.denoise(x, sigma) - x) / sigma**2
                noise = standard_normal(x, generator)
                ratio = noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
                length = (2 * (self.snr * ratio) ** 2).reshape(-1, *[1] * (x.ndim - 1))
                x = x + length * score + (2 * length).sqrt() * noise
            # 2. predictor: one step of the reverse SDE, after a merge
            x = self._merge(operator, y, x, sigma, noise_std, generator)
            denoised = prior.denoise(x, sigma)
            x = x + (1 - (tau / sigma) ** 2) * (denoised - x)
            if tau > 0:
                share = tau / sigma if self.predictor == "ancestral" else 1.0
                x = x + share * (sigma**2 - tau**2) ** 0.5 * standard_normal(x, generator)
            if report(callback, step, self.num_steps, sigma, x, denoised, "snr"):
                return denoised
        # 3. the data themselves
        if noise_std > 0:
            return x
        return x + operator.pseudo_inverse(y - operator(x), self.damping, rtol=SOLVE_RTOL, max_iter=self.max_iter)

    def _merge(
        self, operator: LinearOperator, y: Tensor, x: Tensor, sigma: float, noise_std: float, generator: Generators
    ) -> Tensor:
        noised = y + sigma * operator(standard_normal(x, generator))
        damping = max((noise_std / sigma) ** 2, self.damping)
        return x + self.weight * operator.pseudo_inverse(
            noised - operator(x), damping, rtol=SOLVE_RTOL, max_iter=self.max_iter
        )
