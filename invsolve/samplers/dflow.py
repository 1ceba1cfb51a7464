"""D-Flow: the source noise of a flow, optimised so that its image fits the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers.base import Callback, Sampler, noise_level, report
from invsolve.samplers.flair import squared_norm
from invsolve.samplers.lift import lift


@dataclass(frozen=True)
class DFlow(Sampler):
    """Searches the flow's source noise for an image that fits the data; strong but slow, for any operator.

    D-Flow: Ben-Hamu et al., ICML 2024, arXiv 2402.14017, Algorithm 1. With T the map from noise to image by
    `ode_steps` midpoint steps of the flow, L-BFGS minimises over z

        |y - A T(z)|^2 + lam (|z|^2 / 2 - (n - 1) log |z|),

    whose second term is the negative logarithm of the density of |z| under the source. The gradient runs through the
    whole equation; with `checkpoint` each step of it is computed twice and only its input is kept, so that memory
    does not grow with `ode_steps` beyond that. The start is the data's back-projection, carried back along the flow
    and mixed with fresh noise.

    There is no released code of the authors. L-BFGS runs per image, with its own line search, whose trial points count
    as iterations: an image never depends on its neighbours, and the cost is known beforehand. `num_steps` is the
    real regulariser: stop before the noise of y is fitted. The prior's largest level stands in for pure noise.

    Cost per iteration: 2 `ode_steps` network evaluations and as many backward passes (the evaluations twice with
    `checkpoint`).

    Args:
        num_steps: evaluations of the objective and its gradient.
        ode_steps: midpoint steps of the flow.
        lam: weight of the second term; None for 2 noise_std^2, which makes the objective a log-posterior.
        blend: share of the inverted back-projection in the variance of the start; 0.1 in the code that is public.
        history: pairs that L-BFGS remembers.
        checkpoint: recompute instead of keeping the network's activations.
    """

    num_steps: int = 40
    ode_steps: int = 5
    lam: float | None = None
    blend: float = 0.1
    history: int = 20
    checkpoint: bool = True

    paper: ClassVar[str] = "2402.14017"
    needs_gradient: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "2 ode_steps forward and backward (forward twice with checkpoint)"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        y, operator = measurement.y, measurement.operator
        lam = 2 * max(noise_level(self, measurement), 1e-3) ** 2 if self.lam is None else self.lam
        times = self.times(prior)

        def objective(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Loss (B,), its gradient, and the image."""
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                image = self.transport(prior, z, times, self.checkpoint)
                radius = squared_norm(z)
                penalty = 0.5 * radius - 0.5 * (z[0].numel() - 1) * radius.log()
                loss = squared_norm(y - operator(image)) + lam * penalty
                (gradient,) = torch.autograd.grad(loss.sum(), z)
            return loss.detach(), gradient, image.detach()

        # 1. source noise of the back-projection; 2. mixed with fresh noise
        lifted = lift(self, measurement)
        with torch.no_grad():
            inverted = self.transport(prior, lifted, times[::-1], False) if self.blend > 0 else 0.0
        fresh = standard_normal(lifted, generator)
        z = math.sqrt(self.blend) * inverted + math.sqrt(1 - self.blend) * fresh
        # 3. L-BFGS
        search = LBFGS(z, self.history)
        image = z
        for step in range(1, self.num_steps + 1):
            loss, gradient, trial = objective(search.trial)
            accepted = search.update(loss, gradient)
            image = torch.where(accepted.reshape(-1, *[1] * (z.ndim - 1)), trial, image)
            sigma = 1 - step / (self.num_steps + 1)  # there is no noise level: the share of the search still ahead
            if report(callback, step, self.num_steps, sigma, search.z, image, "lam"):
                break
        return image

    def times(self, prior: Prior) -> list[float]:
        """Times of the flow, from (nearly) 1, noise, to 0, image."""
        first = prior.sigma_max / (1 + prior.sigma_max)
        return torch.linspace(first, 0, self.ode_steps + 1, dtype=torch.float64).tolist()

    def transport(self, prior: Prior, z: Tensor, times: list[float], keep_little: bool) -> Tensor:
        """Explicit midpoint steps of dx/dt = v(x, t) between the times, which may run either way."""

        def midpoint(x: Tensor, t: float, t_next: float) -> Tensor:
            step = t_next - t
            slope = velocity(prior, x, t) if t > 0 else -x  # at t = 0 the state says nothing about the noise
            return x + step * velocity(prior, x + 0.5 * step * slope, t + 0.5 * step)

        for t, t_next in pairwise(times):
            if keep_little:
                z = checkpoint(midpoint, z, t, t_next, use_reentrant=False, preserve_rng_state=False)
            else:
                z = midpoint(z, t, t_next)
        return z


def velocity(prior: Prior, x_t: Tensor, t: float) -> Tensor:
    """n - x0 at x_t = (1 - t) x0 + t n; as `Prior.velocity`, for one time and without a tensor for it."""
    return (x_t - prior.denoise(x_t / (1 - t), t / (1 - t))) / t


class LBFGS:
    """L-BFGS of a batch of independent problems, one evaluation per call of `update` (Nocedal and Wright, Alg. 7.4).

    Ask for the loss and gradient at `trial`, hand them to `update`. A trial point that lowers the loss enough (Armijo)
    is accepted; otherwise the step is cut to a quarter. Inner products are per entry.
    """

    def __init__(self, z: Tensor, history: int) -> None:
        self.z = self.trial = z
        self.size = history
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.loss = torch.full((len(z),), math.inf, dtype=z.dtype, device=z.device)
        self.length = torch.ones_like(self.loss)
        self.gradient = self.direction = torch.zeros_like(z)

    def update(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Take the loss (B,) and gradient at `trial`, move `trial`. Returns which entries accepted it, shape (B,)."""
        slope = _dot(self.gradient, self.direction)
        accepted = loss <= self.loss + 1e-4 * self.length * slope  # the first point always is: the loss was infinite
        mask = _column(accepted, gradient)
        s = torch.where(mask & torch.isfinite(_column(self.loss, gradient)), self.trial - self.z, 0)
        change = torch.where(mask, gradient - self.gradient, 0)
        curvature = _dot(s, change)
        useful = curvature > 1e-10 * _dot(change, change)
        self.pairs.append((s, change, torch.where(useful, 1 / curvature, 0)))
        del self.pairs[: -self.size]
        first = torch.isinf(self.loss)
        self.z = torch.where(mask, self.trial, self.z)
        self.gradient = torch.where(mask, gradient, self.gradient)
        self.loss = torch.where(accepted, loss, self.loss)
        self.direction = torch.where(mask, self._descent(), self.direction)
        # The first step has no curvature to go by: a tenth of the state's length at most.
        norms = _dot(self.direction, self.direction).sqrt().clamp_min(torch.finfo(loss.dtype).tiny)
        cautious = (0.1 * _dot(self.z, self.z).sqrt() / norms).clamp(max=1)
        fresh = torch.where(first, cautious, torch.ones_like(cautious))
        self.length = torch.where(accepted, fresh, self.length / 4)
        self.trial = self.z + _column(self.length, gradient) * self.direction
        return accepted

    def _descent(self) -> Tensor:
        """- H g, by the two-loop recursion; pairs without positive curvature are left out entry by entry."""
        q = self.gradient
        stack: list[Tensor] = []
        for s, change, rho in reversed(self.pairs):
            weight = rho * _dot(s, q)
            stack.append(weight)
            q = q - _column(weight, q) * change
        scale = torch.ones_like(self.loss)
        for _, change, rho in self.pairs:  # the latest useful pair sets the scale
            scale = torch.where(rho > 0, 1 / (rho * _dot(change, change)), scale)
        q = _column(scale, q) * q
        for (s, change, rho), weight in zip(self.pairs, reversed(stack), strict=True):
            q = q + _column(weight - rho * _dot(change, q), q) * s
        return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
