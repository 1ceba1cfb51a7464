"""Plug-and-play diffusion models: a split Gibbs sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.daps import exact_draw, langevin
from invsolve.samplers.lift import lift
from invsolve.samplers.steps import euler


@dataclass(frozen=True)
class PnPDM(Sampler):
    """Draws an image near the data and an image of the prior in turn; a Gibbs sampler, exact but for its end level.

    PnP-DM: Wu et al., NeurIPS 2024, arXiv 2405.18782, Algorithm 1. The target is the joint law of an image x of the
    prior and a copy z that explains the data, tied by N(z; x, rho^2 I), with rho annealed down to `rho_min`. (1)
    z given x is drawn exactly for a linear operator, by one perturbed solve, or by Langevin dynamics. (2) x given z is
    a reverse diffusion from level rho with z as its state. At a fixed rho the law of x is p(x) N(y; A x, noise_std^2 I
    + rho^2 A A^H): a posterior with too little trust in the data until rho is well below noise_std, which is slow to
    mix.

    Differences from the released code: the reverse diffusion starts at rho itself (`entry`; the code starts at
    the nearest smaller level of its grid and reads the state as if it had that level), takes DDPM's posterior steps and
    ends on the denoised image (`prior_step`; the code's Euler steps overshoot on the last), and the exact draw uses two
    noises and one solve instead of a singular-value decomposition.

    DDPM's steps take the image given the state for a point and so lose variance, which a Gibbs sampler compounds.
    `prior_std` = c takes it for Gaussian as under a white prior of standard deviation c, for which the steps are then
    exact, however few.

    Cost per step: as many network evaluations as grid levels lie below rho; one solve.

    Args:
        num_steps: Gibbs iterations.
        rho_max: first coupling; iteration k has max(rho_max rho_decay^k, rho_min).
        rho_min: smallest coupling; the paper's 0.3 for linear tasks and 0.1 for phase retrieval.
        rho_decay: factor per iteration.
        grid_steps: levels of the reverse diffusion's grid between sigma_max and sigma_min.
        sigma_max: largest level of that grid, of which only the part below rho is walked.
        sigma_min: smallest level of that grid but 0.
        begin: first image, the regularised "backprojection" of the data or white "noise"; a large rho_max forgets it.
        entry: "exact" starts at rho; "below" at the first grid level under rho (the authors), "above" at the last that
            is not under it (InverseBench).
        prior_step: "ancestral", "sde" (Euler steps of the reverse equation) or "ode" (Euler, no noise).
        prior_std: of "ancestral" steps, see above; 0 for DDPM's.
        last_noise: with "sde", add noise on the step to 0 too, as InverseBench.
        inner: how z is drawn, "exact" or "langevin"; the latter takes any differentiable operator.
        inner_steps: Langevin steps.
        step_size: of the Langevin steps; at most tau^2 is used, where a spectral norm of 1 keeps them stable.
        tau: noise standard deviation of the likelihood; None for the measurement's. At least 1e-4 in either case.
    """

    num_steps: int = 100
    rho_max: float = 10.0
    rho_min: float = 0.1
    rho_decay: float = 0.9
    grid_steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    begin: Literal["backprojection", "noise"] = "backprojection"
    entry: Literal["exact", "below", "above"] = "exact"
    prior_step: Literal["ancestral", "sde", "ode"] = "ancestral"
    prior_std: float = 0.0
    last_noise: bool = False
    inner: Literal["exact", "langevin"] = "exact"
    inner_steps: int = 100
    step_size: float = 1e-4
    tau: float | None = None

    paper: ClassVar[str] = "2405.18782"
    needs_solve: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    nonlinear_settings: ClassVar[Mapping[str, Any]] = {"inner": "langevin"}
    cost: ClassVar[str] = "1 forward per grid level below rho, 1 solve (or inner_steps operator gradients)"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        operator = linear_operator(self, measurement) if self.inner == "exact" else None
        tau = max(noise_level(self, measurement) if self.tau is None else self.tau, 1e-4)
        x = (
            lift(self, measurement)
            if self.begin == "backprojection"
            else standard_normal(start(measurement), generator)
        )
        for step in range(1, self.num_steps + 1):
            rho = max(self.rho_max * self.rho_decay ** (step - 1), self.rho_min)
            # 1. likelihood step: z ~ N(z; x, rho^2 I) p(y | z)
            if operator is not None:
                z = exact_draw(operator, measurement.y, x, rho, tau, generator)
            else:
                eta = min(self.step_size, tau**2)
                z = langevin(measurement, x, rho, tau, eta, self.inner_steps, generator)
            # 2. prior step: x ~ p(x0 | x0 + rho n = z)
            x = z
            for sigma, sigma_next in pairwise(self.levels(rho)):
                x = self.reverse(x, prior.denoise(x, sigma), sigma, sigma_next, generator)
            lower = "step_size" if operator is None else "rho_max"
            if report(callback, step, self.num_steps, rho, z, x, lower):
                break
        return x

    def levels(self, rho: float) -> list[float]:
        """Noise levels of the prior step, from about rho to 0."""
        grid = schedules.polynomial(self.sigma_max, self.sigma_min, self.grid_steps)
        first = int((grid >= rho).sum())  # of the levels under rho
        if self.entry == "exact":
            below = torch.cat([torch.tensor([rho], dtype=grid.dtype), grid[first:]])
        else:
            below = grid[first if self.entry == "below" else max(first - 1, 0) :]
        return schedules.with_zero(below)

    def reverse(self, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, generator: Generators) -> Tensor:
        """One step of the reverse diffusion."""
        if self.prior_step == "ode":
            return euler(x, denoised, sigma, sigma_next)
        if self.prior_step == "ancestral":
            ratio, c2 = (sigma_next / sigma) ** 2, self.prior_std**2
            variance = (c2 + sigma_next**2) * (sigma**2 - sigma_next**2) / (c2 + sigma**2)
            x = denoised + ratio * (x - denoised)
            return x + math.sqrt(variance) * standard_normal(x, generator) if variance > 0 else x
        x = reverse_sde(x, denoised, sigma, sigma_next)
        if sigma_next > 0 or self.last_noise:
            x = x + math.sqrt(2 * sigma * (sigma - sigma_next)) * standard_normal(x, generator)
        return x


def reverse_sde(x: Tensor, d: Tensor, sigma: float, tau: float) -> Tensor:
    """Drift of an Euler step of dx = -2 (x - D) dsigma/sigma (arXiv 2206.00364, eq. 6): twice the ODE's."""
    return x + 2 * (tau - sigma) / sigma * (x - d)
