"""Diffusion posterior sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, PoissonNoise, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, report, start
from invsolve.samplers.steps import ancestral


@dataclass(frozen=True)
class DPS(Sampler):
    """Steers each denoising step by the gradient of the data misfit through the network; for nonlinear operators too.

    DPS: Chung et al., ICLR 2023, arXiv 2209.14687, Algorithm 1; for any differentiable operator. The likelihood
    gradient is taken at the denoised image, through the network. As in the authors' code, and unlike the paper's text,
    the step is zeta times the gradient of the residual *norm* (the paper's zeta' / ||r|| times the gradient of its
    square would be twice that), per sample: the authors' norm over the whole batch makes the step depend on the batch
    size. The state lives in sigma-coordinates, where the step on the authors' VP state gains
    sqrt((1 + tau^2)(1 + sigma^2)).

    Poisson noise has the paper's weighted form, the gradient of r^T diag(1 / (2 y)) r over ||r||, with counts floored
    at one event; the authors' code has one scalar weight that explodes near mid-grey. Other noise counts as Gaussian.

    Cost per step: one network evaluation and one backward pass through it.

    Args:
        num_steps: steps of the DDPM schedule. Guidance is per step: with fewer than 1000 steps raise `step_size` by
            about 1000 / num_steps.
        step_size: zeta, in the authors' convention; 0.3 to 1 with 1000 steps and data in [-1, 1].
        variance: 0 for DDPM's small posterior variance, 1 for beta_t; see `steps.ancestral`.
        clip: clamp the denoised image to the prior's data range, inside the gradient, as the authors do.
        integrator: "ancestral" is the paper's; "sde" and "ode" are the Euler steps of InverseBench, where `step_size`
            acts on its scaled state and "sde" adds noise on the last step too.
        schedule: of those: "edm" (levels of Karras et al. from 100 to 0.01, then 0) or "vp" (the continuous
            variance-preserving one).
    """

    num_steps: int = 1000
    step_size: float = 0.3
    variance: float = 0.0
    clip: bool = True
    integrator: Literal["ancestral", "sde", "ode"] = "ancestral"
    schedule: Literal["edm", "vp"] = "edm"

    paper: ClassVar[str] = "2209.14687"
    needs_gradient: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 backward"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        if self.integrator != "ancestral":
            return self._euler(measurement, prior, generator, callback)
        levels = schedules.with_zero(schedules.ddpm(self.num_steps))
        x = math.sqrt(1 + levels[0] ** 2) * standard_normal(start(measurement), generator)
        for step, (sigma, tau) in enumerate(pairwise(levels), start=1):
            # 1-2. denoise, and the gradient of the residual norm at the state
            denoised, gradient = residual_gradient(
                measurement, prior, x, sigma, prior.data_range if self.clip else None
            )
            # 3. unconditional step
            x_next = ancestral(x, denoised, sigma, tau, standard_normal(x, generator), self.variance)
            # 4. guidance, still applied on the last step
            x = x_next - self.step_size * vp_gain(sigma, tau) * gradient
            if report(callback, step, self.num_steps, sigma, x, denoised, "step_size"):
                return denoised
        return x

    def _euler(
        self, measurement: Measurement, prior: Prior, generator: Generators, callback: Callback | None
    ) -> Tensor:
        grid = schedules.euler_edm(self.num_steps) if self.schedule == "edm" else schedules.euler_vp(self.num_steps)
        x = grid[0].sigma * standard_normal(start(measurement), generator)
        for step, (now, following) in enumerate(pairwise(grid), start=1):
            denoised, gradient = residual_gradient(
                measurement, prior, x, now.sigma, prior.data_range if self.clip else None
            )
            # In the state scaled by c: c x <- growth c x + diffusion score / c - zeta gradient / c, plus noise.
            score = (denoised - x) / now.sigma**2
            share = 1.0 if self.integrator == "sde" else 0.5
            scaled = (
                now.growth * now.scale * x + (share * now.diffusion * score - self.step_size * gradient) / now.scale
            )
            if self.integrator == "sde":
                scaled = scaled + math.sqrt(now.diffusion) * standard_normal(x, generator)
            x = scaled / following.scale
            if report(callback, step, self.num_steps, now.sigma, x, denoised, "step_size"):
                return denoised
        return x


def residual_gradient(
    measurement: Measurement, prior: Prior, x: Tensor, sigma: float, clip: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """D(x, sigma) and the gradient of || y - A D ||_2 with respect to x, one norm per batch entry; both detached.

    For Poisson noise it is the gradient of r^T diag(1 / (2 y)) r over ||r||.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = prior.denoise(x, sigma)
        if clip is not None:
            denoised = denoised.clamp(*clip)
        residual = measurement.y - measurement.operator(denoised)
        # The norm has no gradient at 0; the floor keeps it finite there.
        floor = torch.finfo(x.dtype).tiny
        norms = residual.flatten(1).abs().square().sum(1).clamp_min(floor).sqrt()
        if isinstance(measurement.noise, PoissonNoise):
            counts = measurement.y.clamp_min(measurement.noise.gain)
            norms = (residual.square() / (2 * counts)).flatten(1).sum(1) / norms.detach()
        (gradient,) = torch.autograd.grad(norms.sum(), x)
    return denoised.detach(), gradient


def vp_gain(sigma: float, tau: float) -> float:
    """What a step on the gradient of the VP state becomes in sigma-coordinates."""
    return math.sqrt((1 + tau**2) * (1 + sigma**2))
