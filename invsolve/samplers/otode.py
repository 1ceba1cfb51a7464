"""OT-ODE: a flow's ordinary differential equation, corrected for the data."""

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
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report
from invsolve.samplers.gradients import linearize
from invsolve.samplers.lift import lift
from invsolve.samplers.steps import euler


@dataclass(frozen=True)
class OTODE(Sampler):
    """Follows the flow's equation with the gradient of a Gaussian likelihood; exact for white Gaussian images.

    OT-ODE: Pokle et al., TMLR 2024, arXiv 2310.04432, Algorithm 1. The clean image given the state is taken for
    N(D, r^2 I) with r^2 = sigma^2/(1 + sigma^2), as in PiGDM, so that y has covariance r^2 A A^H + noise_std^2 I. The
    denoised image moves by sigma^2 times the gradient of its log-density, through the network. The run starts from the
    noised back-projection of the data at s = `start_time`, and no noise is drawn afterwards.

    There is no released code of the authors. r^2 presumes images of unit variance; `prior_std` = c makes it
    sigma^2 c^2/(sigma^2 + c^2). The start is the ridge estimate from y instead of A^H y.

    The images' smooth directions vary by far more than 1, there the guidance is far stronger than the surrogate means,
    and the steps at high levels are unstable if they are long: keep `start_time` above 0.2 with few steps.

    Cost per step: one network evaluation and one backward pass, one solve.

    Args:
        num_steps: steps, at equal distances of s from `start_time` to 1.
        start_time: s of the start, > 0: sigma = (1 - s)/s. 0.1 to 0.4 in a published re-run.
        guidance: "constant" is weight 1 throughout, "decaying" sqrt(s / (s^2 + (1 - s)^2)).
        prior_std: see above.
        max_iter: largest number of CG iterations of a solve without closed form.
    """

    num_steps: int = 80
    start_time: float = 0.2
    guidance: Literal["constant", "decaying"] = "decaying"
    prior_std: float = 1.0
    max_iter: int = 50

    paper: ClassVar[str] = "2310.04432"
    needs_linear: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    needs_solve: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 backward, 1 solve"

    def __post_init__(self) -> None:
        if not 0 < self.start_time < 1:
            raise ValueError(f"start_time is {self.start_time}; expected a number between 0 (noise) and 1 (data).")

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        operator = linear_operator(self, measurement)
        noise_std = max(noise_level(self, measurement), 1e-4)
        times = 1 - torch.linspace(self.start_time, 1, self.num_steps + 1, dtype=torch.float64)
        levels = schedules.with_zero(schedules.flow(times[:-1], prior.sigma_max))
        x = lift(self, measurement)
        x = x + levels[0] * standard_normal(x, generator)
        for step, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
            # 1-3. denoise, and the gradient of log N(y; A D, r^2 A A^H + noise_std^2 I) at the state
            r = sigma * self.prior_std / math.hypot(sigma, self.prior_std)
            denoised, transposed = linearize(prior, x, sigma)
            with torch.no_grad():
                residual = measurement.y - operator(denoised)
                weighted = operator.pseudo_inverse(
                    residual, (noise_std / r) ** 2, rtol=SOLVE_RTOL, max_iter=self.max_iter
                )
            gradient = transposed(weighted, True) / r**2
            # 4. the denoised image given the data, and Euler's step
            denoised = denoised + self.weight(sigma) * sigma**2 * gradient
            x = euler(x, denoised, sigma, sigma_next)
            if report(callback, step, self.num_steps, sigma, x, denoised, "prior_std"):
                return denoised
        return x

    def weight(self, sigma: float) -> float:
        """gamma_s."""
        s = 1 / (1 + sigma)
        return 1.0 if self.guidance == "constant" else math.sqrt(s / (s**2 + (1 - s) ** 2))
