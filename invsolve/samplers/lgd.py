"""Loss-guided diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, noise_level, report, start
from invsolve.samplers.gradients import linearize
from invsolve.samplers.steps import ddim


@dataclass(frozen=True)
class LGD(Sampler):
    """Guides by the likelihood averaged over draws around the denoised image; for nonlinear operators too.

    LGD-MC: Song et al., ICML 2023 (PMLR 202:32483), Algorithm 1. The likelihood is averaged over draws
    x_i = D + r z_i with r^2 = sigma^2 c^2 / (sigma^2 + c^2), c = `data_std`, which share one network evaluation, and
    the posterior mean is D_y = D + sigma^2 grad_x log mean_i exp(-||y - A x_i||^2 / (2 v)). With v = noise_std^2 and
    many draws this is PiGDM's guidance without a solve; but in many dimensions one draw takes all the weight, which
    `annealed` tempers by v = noise_std^2 + r^2.

    Cost per step: one network evaluation and one backward pass through it, `num_draws` of the operator.

    Args:
        num_steps: steps.
        num_draws: draws around the denoised image; the paper uses 1, 10 and 100.
        weight: multiplies the guidance; 1 is Bayes' rule.
        annealed: see above; needed where noise_std is 0.
        data_std: c; 1 in the paper. Images vary in their coarse features far more than their pixels' 0.5, and a value
            below that makes the guidance overshoot: the default amounts to r = sigma.
        eta: share of DDIM's fresh noise; 1 is the ancestral step.
        schedule: "ddpm", "ddim", or "edm" and "geometric" from `sigma_max` to `sigma_min`.
        sigma_max: first level of those.
        sigma_min: last level but 0 of those.
        clip: clamp the denoised image to the prior's data range, inside the gradient.
    """

    num_steps: int = 1000
    num_draws: int = 10
    weight: float = 1.0
    annealed: bool = True
    data_std: float = 100.0
    eta: float = 1.0
    schedule: Literal["ddpm", "ddim", "edm", "geometric"] = "ddpm"
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    clip: bool = False

    paper: ClassVar[str] = "PMLR 202:32483"
    needs_gradient: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 backward, num_draws of the operator"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        noise_std = noise_level(self, measurement)
        if noise_std == 0 and not self.annealed:
            raise ValueError("lgd divides by noise_std, which is 0; set annealed=True.")
        levels = schedules.with_zero(schedules.named(self.schedule, self.num_steps, self.sigma_max, self.sigma_min))
        x = schedules.initial_std(self.schedule, levels[0]) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1. denoise
            denoised, transposed = linearize(prior, x, sigma, self.clip)
            # 2. draws around it, and the gradient of the log of their mean likelihood
            r2 = (sigma * self.data_std) ** 2 / (sigma**2 + self.data_std**2)
            draws = [denoised + r2**0.5 * standard_normal(x, generator) for _ in range(self.num_draws)]
            variance = noise_std**2 + (r2 if self.annealed else 0.0)
            gradient = log_mean_gradient(measurement, draws, variance)
            # 3. through the network: mean of the clean image given the state and the data
            posterior = denoised + self.weight * sigma**2 * transposed(gradient, True)
            # 4. unconditional step with it
            x = ddim(x, posterior, sigma, tau, self.eta, standard_normal(x, generator))
            if report(callback, step, self.num_steps, sigma, x, denoised, "weight"):
                return posterior
        return x


def log_mean_gradient(measurement: Measurement, draws: list[Tensor], variance: float) -> Tensor:
    """Gradient of log mean_i exp(-||y - A x_i||^2 / (2 variance)) for a common shift of the draws x_i, per entry."""
    losses, gradients = [], []
    for draw in draws:
        with torch.enable_grad():
            x = draw.detach().requires_grad_()
            residual = (measurement.y - measurement.operator(x)).flatten(1)
            loss = residual.abs().square().sum(1) / (2 * variance)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        losses.append(loss.detach())
        gradients.append(gradient)
    weights = torch.softmax(-torch.stack(losses), 0)  # (draws, B)
    return -torch.einsum("nb,nb...->b...", weights, torch.stack(gradients))
