"""FlowChef: flow guidance without backpropagation through the network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers.base import Callback, Sampler, linear_operator, report, start


@dataclass(frozen=True)
class FlowChef(Sampler):
    """Moves a flow's state along the data gradient at the denoised image, as if the network were not there.

    FlowChef: Patel, Wen, Metaxas and Yang, ICCV 2025, arXiv 2412.00100, Algorithm 1: x_t = (1 - t) x0 + t n runs along
    the straight line to its denoised image, and the gradient of the loss at that image is taken off the state with
    the velocity held fixed. Nearly right where flows are straight, a heuristic elsewhere; for any differentiable
    operator. The noise level is not in the method.

    Cost per step: one network evaluation (two with Heun), one gradient of the operator.

    Args:
        num_steps: intervals of the time from noise to image.
        step_size: weight of the gradient of the loss.
        loss: "sum" is half the sum of squares, whose step is stable below 2 for a spectral norm of 1, whatever the
            number of measurements; "mean" their mean over the entries of y, the paper's, with step_size 500 for
            64 x 64 colour images; "norm" the norm of A^T (y - A x), not squared, as the FlowDPS authors' version for
            latent models has it, for linear operators.
        order: 1 (Euler) or 2 (Heun; the last step is Euler).
        shift: bends the time grid to s t / (1 + (s - 1) t); 4 in the FlowDPS authors' code, 1 is uniform.
        guide_last: whether the last step is guided as well; not in the paper, but in the other code.
        t_max: first time, < 1.
    """

    num_steps: int = 100
    step_size: float = 0.2
    loss: Literal["sum", "mean", "norm"] = "sum"
    order: int = 1
    shift: float = 1.0
    guide_last: bool = False
    t_max: float = 1 - 1e-5

    paper: ClassVar[str] = "2412.00100"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 gradient of the operator"

    def __post_init__(self) -> None:
        if not 0 < self.t_max < 1:
            raise ValueError(f"t_max is {self.t_max}; expected a time below 1 (pure noise) and above 0.")
        if self.order not in (1, 2):
            raise ValueError(f"order is {self.order}; expected 1 (Euler) or 2 (Heun).")

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        times = self.times()
        z = times[0] * standard_normal(start(measurement), generator)  # (1 - t) x
        for step, (t, following) in enumerate(pairwise(times), start=1):
            # 1. velocity
            velocity = self._velocity(prior, z, t)
            denoised = z - t * velocity
            if self.order == 2 and following > 0:
                proposal = z + (following - t) * velocity
                second = self._velocity(prior, proposal, following)
                denoised = proposal - following * second
                velocity = (velocity + second) / 2
            # 2. the gradient of the loss at the image it points at
            if following > 0 or self.guide_last:
                z = z - self.step_size * self._gradient(measurement, z - t * velocity)
            # 3. step along the same velocity
            z = z + (following - t) * velocity
            state = z / (1 - following)
            if report(callback, step, len(times) - 1, t / (1 - t), state, denoised, "step_size"):
                return denoised
        return z

    def times(self) -> list[float]:
        """Times from t_max down to 0."""
        uniform = [1 - k / self.num_steps for k in range(self.num_steps)]
        bent = [self.shift * t / (1 + (self.shift - 1) * t) for t in uniform]
        return [min(bent[0], self.t_max), *bent[1:], 0.0]

    @staticmethod
    def _velocity(prior: Prior, z: Tensor, t: float) -> Tensor:
        # Beyond the prior's largest level, which nearly is pure noise, the same noise at that level stands in.
        sigma = min(t / (1 - t), prior.sigma_max)
        return (z - prior.denoise(z * (sigma / t), sigma)) / t

    def _gradient(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Gradient of the loss at the image x, one loss per batch entry."""
        back = linear_operator(self, measurement).adjoint if self.loss == "norm" else None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            residual = measurement.y - measurement.operator(x)
            if back is None:
                squares = residual.flatten(1).abs().square()
                losses = squares.mean(1) if self.loss == "mean" else squares.sum(1) / 2
            else:
                # The norm has no gradient at 0; the floor keeps it finite there.
                power = back(residual).flatten(1).abs().square().sum(1)
                losses = power.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        return gradient
