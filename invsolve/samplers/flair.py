"""FLAIR: flow-based latent alternating inference, here for images and with a seam for latents."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, noise_level, report
from invsolve.samplers.lift import lift

Table = tuple[tuple[float, float], ...]

_ERRORS = (
    *(0.646, 0.305, 0.258, 0.238, 0.233, 0.232, 0.237, 0.246, 0.257, 0.273, 0.293),
    *(0.317, 0.347, 0.386, 0.433, 0.493, 0.569, 0.668, 0.798, 0.950),
)
PUBLISHED: Table = (*((1 - 5 * k / 99, error) for k, error in enumerate(_ERRORS)), (0.0, 1.086))
"""(t, mean squared error of the velocity) of Stable Diffusion 3 on DIV2K, every fifth entry of the released file."""


class Autoencoder(Protocol):
    """What a latent form of FLAIR needs: mu lives where `encode` leads to."""

    def encode(self, x: Tensor) -> Tensor:
        """Image -> latent."""

    def decode(self, z: Tensor) -> Tensor:
        """Latent -> image, differentiable."""


@dataclass(frozen=True)
class PixelSpace:
    """The image is its own latent."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class FLAIR(Sampler):
    """Pulls one image towards what the flow believes, then onto the data down to the noise; few steps, any operator.

    FLAIR: Erbach et al., NeurIPS 2025, arXiv 2506.02680, Algorithm 1, with the image in place of the latent. Per step:
    (1) mu is noised with a mixture of fresh noise and the noise that the network predicted before (deterministic
    trajectory adjustment); (2) mu moves towards the denoised image by lambda(t)/t, where lambda is the inverse of the
    flow's own error at t (calibrated regulariser weights); (3) mu moves onto the data until the residual has reached
    the noise level (hard data consistency). Nothing is backpropagated through the network. With an exact denoiser
    and no data the variance of the results is within 5 % of the prior's; with data there is no such guarantee.

    Differences from the released code: the residual is to reach the measurement's own noise level (`tolerance`; the
    code has 0.01 everywhere), and for a linear operator each data step has the length that reaches it, or the best one
    (`data_step` None); one stopping test per image. The error table is the published one of Stable Diffusion 3
    unless `calibrated` has measured that of the prior at hand.

    Cost per step: one network evaluation, up to `data_steps` products with A and A^H, no network gradient.

    Args:
        num_steps: times between 1 and t_min, both left out; 50 in the paper.
        t_min: end of the times. 0.18 in the paper, which is sigma = 0.22.
        regulariser: mean weight over all times; 0.5 in the paper.
        errors: (t, error) of the velocity, t falling from 1 to 0; None for the published table.
        weights: lambda of each step instead.
        data_steps: largest number of steps of the data term.
        data_step: their step size, times lambda if `data_weight` says so; None for a line search.
        data_weight: "regulariser" multiplies `data_step` by lambda (the paper), "constant" does not.
        tolerance: mean squared residual at which the data steps end; None for noise_std^2.
        projection: also move by a tenth towards the projection on the data while t > 0.7 (an option of the code).
        damping: of the pseudo-inverse for start and projection; None for one that follows from the noise level.
        space: autoencoder of a latent prior.
    """

    num_steps: int = 50
    t_min: float = 0.18
    regulariser: float = 0.5
    errors: Table | None = None
    weights: tuple[float, ...] | None = None
    data_steps: int = 15
    data_step: float | None = None
    data_weight: Literal["regulariser", "constant"] = "regulariser"
    tolerance: float | None = None
    projection: bool = False
    damping: float | None = None
    space: Autoencoder = PixelSpace()

    paper: ClassVar[str] = "2506.02680"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, up to data_steps operator gradients"

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < 1:
            raise ValueError(f"t_min is {self.t_min}; expected 0 <= t_min < 1, where 1 is pure noise.")
        if self.weights is not None and len(self.weights) != self.num_steps:
            raise ValueError(f"{len(self.weights)} weights for {self.num_steps} steps; give one per step.")

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        encode, decode = self.space.encode, self.space.decode
        tolerance = noise_level(self, measurement) ** 2 if self.tolerance is None else self.tolerance
        times = torch.linspace(1, self.t_min, self.num_steps + 2, dtype=torch.float64)[1:-1]
        levels = schedules.flow(times, prior.sigma_max).tolist()
        mu = encode(lift(self, measurement, self.damping))
        epsilon = standard_normal(mu, generator)
        for step, sigma in enumerate(levels, start=1):
            t = sigma / (1 + sigma)
            # 1. noise, in part the one predicted before
            noise = (1 - t) * epsilon + math.sqrt(1 - (1 - t) ** 2) * standard_normal(mu, generator)
            noisy = mu + sigma * noise
            denoised = prior.denoise(noisy, sigma)
            epsilon = (noisy - denoised) / sigma
            # 2. regulariser: lambda (v - (n - mu)) is lambda / t (mu - D)
            weight = self.weight(t, step)
            mu = mu - weight / t * (mu - denoised)
            if self.projection and t > 0.7:
                mu = mu - 0.1 * (mu - encode(self.project(measurement, decode(mu))))
            # 3. data
            scale = weight if self.data_weight == "regulariser" else 1.0
            mu = self.fit(measurement, mu, None if self.data_step is None else self.data_step * scale, tolerance)
            if report(callback, step, self.num_steps, sigma, mu, denoised, "regulariser"):
                return decode(denoised)
        return decode(mu)

    def weight(self, t: float, step: int) -> float:
        """lambda(t): the inverse of the velocity's error, with mean `regulariser` over 100 times."""
        if self.weights is not None:
            return self.weights[step - 1]
        table = self.errors or PUBLISHED
        mean = sum(1 / interpolate(table, k / 99) for k in range(100)) / 100
        return self.regulariser / interpolate(table, t) / mean

    def calibrated(self, prior: Prior, images: Tensor, generator: Generators = None, count: int = 20) -> FLAIR:
        """This sampler with the errors of `prior` on clean images: E |D(x0 + sigma n, sigma) - x0|^2 / t^2 per number.

        Args:
            images: shape (B, C, H, W), model units.
            count: number of times; one network evaluation of the whole batch each.
        """
        errors = []
        for sigma in schedules.flow(torch.linspace(1, 0.02, count), prior.sigma_max).tolist():
            t = sigma / (1 + sigma)
            with torch.no_grad():
                denoised = prior.denoise(images + sigma * standard_normal(images, generator), sigma)
            errors.append((t, float((denoised - images).square().mean()) / t**2))
        return replace(self, errors=tuple(errors))

    def project(self, measurement: Measurement, x: Tensor) -> Tensor:
        """x + A^+ (y - A x)."""
        residual = Measurement(measurement.y - measurement.operator(x), measurement.operator, measurement.noise)
        return x + lift(self, residual, self.damping)

    def fit(self, measurement: Measurement, mu: Tensor, step: float | None, tolerance: float) -> Tensor:
        """Steps along the gradient of |y - A mu|^2; an entry stops where its mean square is under `tolerance`."""
        operator, y = measurement.operator, measurement.y
        count = operator.num_measured * (2 if y.is_complex() else 1)
        linear = operator if isinstance(operator, LinearOperator) and isinstance(self.space, PixelSpace) else None
        for _ in range(self.data_steps):
            energy, gradient = self.half_gradient(operator, y, mu, linear)
            reached = energy <= tolerance * count
            if bool(reached.all()):
                break
            if step is not None:
                length = torch.full_like(energy, 2 * step)
            else:
                length = line_search(energy, gradient, linear, tolerance * count)
            mu = mu - length.masked_fill(reached, 0).reshape(-1, *[1] * (mu.ndim - 1)) * gradient
        return mu

    def half_gradient(
        self, operator: Operator, y: Tensor, mu: Tensor, linear: LinearOperator | None
    ) -> tuple[Tensor, Tensor]:
        """|y - A mu|^2 of each entry, shape (B,), and half its gradient."""
        if linear is not None:
            residual = y - linear(mu)
            return squared_norm(residual), -linear.adjoint(residual)
        with torch.enable_grad():
            mu = mu.detach().requires_grad_()
            energy = squared_norm(y - operator(self.space.decode(mu)))
            (gradient,) = torch.autograd.grad(0.5 * energy.sum(), mu)
        return energy.detach(), gradient


def line_search(energy: Tensor, gradient: Tensor, operator: LinearOperator | None, target: float) -> Tensor:
    """Length of a step along -gradient, per entry: the one that brings the energy to `target`, or the best one.

    Along the half gradient g of E = |y - A x|^2 a linear operator has E(a) = E - 2 a |g|^2 + a^2 |A g|^2. Without one,
    Polyak's length (E - target) / (2 |g|^2).
    """
    slope = squared_norm(gradient)
    tiny = torch.finfo(slope.dtype).tiny
    if operator is None:
        return 0.5 * (energy - target) / slope.clamp_min(tiny)
    curvature = squared_norm(operator(gradient))
    root = (slope**2 - curvature * (energy - target)).clamp_min(0).sqrt()
    return (slope - root) / curvature.clamp_min(tiny)


def squared_norm(x: Tensor) -> Tensor:
    """Per entry, shape (B,)."""
    return x.flatten(1).abs().square().sum(1)


def interpolate(table: Table, t: float) -> float:
    """Value at t of a table of (t, value) with falling t; the nearest one outside it."""
    times = [-u for u, _ in table]
    right = bisect_left(times, -t)
    if right in (0, len(table)):
        return table[min(right, len(table) - 1)][1]
    (u, a), (v, b) = table[right - 1], table[right]
    return a + (u - t) / (u - v) * (b - a)
