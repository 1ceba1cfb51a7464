"""Posterior-mean rectified flow: restoration by two networks trained for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers.base import Callback, Sampler, report


@dataclass(frozen=True)
class PMRF(Sampler):
    """Carries the posterior mean to the nearest natural image; fast and sharp, but trained for one operator.

    PMRF: Ohayon, Michaeli and Elad, ICLR 2025, arXiv 2410.00418, Algorithm 1 (inference). A regressor estimates
    E[x | y]; a rectified flow, trained on pairs of such estimates and clean images, carries the estimate, with a little
    noise, to the law of the clean images. Among all estimators with that output law the ideal one has the least squared
    error. It is no posterior sampler: its spread is that of the little noise.

    The flow's source is not white noise around 0, so it is no denoiser and cannot be a `Prior`: both networks belong
    to the sampler, and of the prior in the call only `data_range` is used, for clamping. Names of methods cannot
    make this one; pass `invsolve.solve(method=PMRF(...))` an object.

    Cost: one evaluation of the estimator, `num_steps` of the flow.

    Args:
        estimator: E[x | y] of a batch, from the measurement, in model units.
        flow: velocity (z, s) -> dz/ds of shape (B, ...), s a number from 0 (estimate) to 1 (image).
        num_steps: Euler steps; 25 in the authors' script, 5 to 100 in the paper.
        source_std: noise added to the estimate, model units; must be that of training. The paper's 0.1 (0.025 for
            denoising) is for images in [0, 1], so 0.2 here for models of [-1, 1].
        time_min: first time; 0 in the paper.
    """

    estimator: Callable[[Measurement], Tensor]
    flow: Callable[[Tensor, float], Tensor]
    num_steps: int = 25
    source_std: float = 0.1
    time_min: float = 0.0

    paper: ClassVar[str] = "2410.00418"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward of the flow (and 1 of the estimator in all)"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        # 1. posterior mean, with a little noise
        z = self.estimator(measurement).clamp(*prior.data_range)
        z = z + self.source_std * standard_normal(z, generator)
        # 2. Euler steps along the flow
        length = (1 - self.time_min) / self.num_steps
        for step in range(self.num_steps):
            s = self.time_min + step * length
            velocity = self.flow(z, s)
            image = z + (1 - s) * velocity
            z = z + length * velocity
            if report(callback, step + 1, self.num_steps, (1 - s) * self.source_std, z, image, "num_steps"):
                return image.clamp(*prior.data_range)
        return z.clamp(*prior.data_range)
