"""Decoupled annealing posterior sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, linear_operator, noise_level, report, start
from invsolve.samplers.steps import integrate


@dataclass(frozen=True)
class DAPS(Sampler):
    """Redraws the clean image given the data at every noise level; for faithful posterior samples, with any operator.

    DAPS: Zhang et al., CVPR 2025, arXiv 2407.01521, Algorithm 1. At each level sigma: (1) the probability-flow ODE
    turns the state into a clean estimate x0_hat; (2) a draw v from N(v; x0_hat, r^2 I) p(y | v); (3) v is noised to
    the next level. Consecutive states are coupled through v alone, so a mistake at one level can be undone at the
    next.

    Step 2 is exact for linear operators (`inner="exact"`: one perturbed right-hand side and one solve), and otherwise
    the authors' Langevin dynamics or their unadjusted "hmc". Differences from the released code: the likelihood has
    the measurement's own noise level unless `tau` says otherwise (the code sets 0.01 everywhere, and its current
    version means tau/sqrt(2) by it), and the ODE ends at 0 with a last denoising (`ode_end`), as in its first version.

    With r = sigma (the paper) the draws are too wide where x0_hat already has the prior's spread. `prior_std` = c uses
    r = sigma c / sqrt(sigma^2 + c^2), which with `ode_steps=1` is exact for a white prior of standard deviation c.

    Cost: num_steps * ode_steps evaluations (twice that for order 2, but for the step to 0), no network gradient.

    Args:
        num_steps: annealing levels.
        ode_steps: steps of the inner ODE; 1 is Tweedie's formula.
        ode_order: 1 (Euler) or 2 (Heun).
        sigma_max: first level.
        sigma_min: smallest level but 0; see `grid`.
        ode_sigma_min: smallest level of the inner ODE but 0.
        ode_end: go on from `ode_sigma_min` to 0.
        grid: "closed" ends the levels at sigma_min and then 0; "open" stops one short of sigma_min, as
            the current code.
        inner: "exact", "langevin" or "hmc".
        prior_std: see above; None for the paper's r = sigma.
        tau: noise standard deviation of the likelihood, model units; None for the measurement's. At least 1e-4, also
            for noiseless data.
        inner_steps: steps of langevin and hmc.
        step_size: their step eta at the first level.
        step_decay: eta falls linearly to about this share of itself.
        momentum: of hmc.
    """

    num_steps: int = 200
    ode_steps: int = 5
    ode_order: int = 1
    sigma_max: float = 100.0
    sigma_min: float = 0.1
    ode_sigma_min: float = 0.01
    ode_end: bool = True
    grid: Literal["closed", "open"] = "closed"
    inner: Literal["exact", "langevin", "hmc"] = "exact"
    prior_std: float | None = None
    tau: float | None = None
    inner_steps: int = 100
    step_size: float = 1e-4
    step_decay: float = 0.01
    momentum: float = 0.9

    paper: ClassVar[str] = "2407.01521"
    needs_solve: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    nonlinear_settings: ClassVar[Mapping[str, Any]] = {"inner": "langevin"}
    cost: ClassVar[str] = "ode_steps forward, 1 solve (or inner_steps operator gradients)"

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
        steps = self.num_steps
        intervals = steps if self.grid == "open" else steps - 1
        levels = schedules.with_zero(schedules.polynomial(self.sigma_max, self.sigma_min, steps, intervals=intervals))
        x = levels[0] * standard_normal(start(measurement), generator)
        for step, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
            # 1. clean estimate by the probability-flow ODE
            x0_hat = integrate(prior.denoise, x, self.ode_levels(sigma), self.ode_order)
            # 2. draw from N(v; x0_hat, r^2) p(y | v)
            r = sigma if self.prior_std is None else sigma * self.prior_std / math.hypot(sigma, self.prior_std)
            if operator is not None:
                v = exact_draw(operator, measurement.y, x0_hat, r, tau, generator)
            else:
                eta = self.step_size * (1 + (step - 1) / (intervals + 1) * (self.step_decay - 1))
                momentum = self.momentum if self.inner == "hmc" else None
                v = langevin(measurement, x0_hat, r, tau, eta, self.inner_steps, generator, momentum)
            # 3. noise to the next level
            x = v if sigma_next == 0 else v + sigma_next * standard_normal(v, generator)
            if report(callback, step, steps, sigma, x, v, "step_size" if self.inner != "exact" else "sigma_max"):
                return v
        return x

    def ode_levels(self, sigma: float) -> list[float]:
        """Levels of the inner ODE: `ode_steps` steps from sigma, to 0 or to `ode_sigma_min`."""
        if self.ode_end:
            if self.ode_steps == 1:
                return [sigma, 0.0]
            return schedules.with_zero(schedules.polynomial(sigma, min(sigma, self.ode_sigma_min), self.ode_steps))
        return schedules.polynomial(sigma, min(sigma, self.ode_sigma_min), self.ode_steps + 1).tolist()


def langevin(
    measurement: Measurement,
    centre: Tensor,
    r: float,
    tau: float,
    eta: float,
    steps: int,
    generator: Generators,
    momentum: float | None = None,
) -> Tensor:
    """Unadjusted Langevin dynamics on N(v; centre, r^2 I) N(y; A v, tau^2 I), started at the centre.

    Args:
        eta: step; stable below 2 / (|A|^2 / tau^2 + 1 / r^2).
        momentum: None for overdamped steps; a number for DAPS's "HMC", which is underdamped and never rejects.
    """
    v = centre
    velocity = v if momentum is None else standard_normal(v, generator)
    for _ in range(steps):
        drift = likelihood_gradient(measurement, v) / tau**2 + (centre - v) / r**2
        noise = standard_normal(v, generator)
        if momentum is None:
            v = v + eta * drift + math.sqrt(2 * eta) * noise
        else:
            velocity = momentum * velocity + math.sqrt(eta) * drift + math.sqrt(2 * (1 - momentum)) * noise
            v = v + math.sqrt(eta) * velocity
    return v


def exact_draw(
    operator: LinearOperator, y: Tensor, centre: Tensor, r: float, tau: float, generator: Generators
) -> Tensor:
    """A draw from the density proportional to N(v; centre, r^2 I) N(y; A v, tau^2 I), by perturb and optimise.

    Both terms are perturbed by their own noise, then the least-squares problem is solved once (Papandreou and Yuille
    2010): the solution has exactly the wanted mean and covariance.
    """
    start_point = centre + r * standard_normal(centre, generator)
    data = y + tau * standard_normal(y, generator)
    return start_point + operator.pseudo_inverse(data - operator(start_point), (tau / r) ** 2, rtol=SOLVE_RTOL)


def likelihood_gradient(measurement: Measurement, v: Tensor) -> Tensor:
    """-1/2 the gradient of || y - A v ||^2: A^H (y - A v), by autograd where the operator is not linear."""
    operator, y = measurement.operator, measurement.y
    if isinstance(operator, LinearOperator):
        return operator.adjoint(y - operator(v))
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-0.5 * (y - operator(v)).abs().square().sum(), v)
    return gradient
