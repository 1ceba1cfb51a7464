"""Repulsive score distillation: particles of one image that keep apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, report
from invsolve.samplers.daps import likelihood_gradient
from invsolve.samplers.lift import lift
from invsolve.samplers.reddiff import Adam


@dataclass(frozen=True)
class RSD(Sampler):
    """RED-diff with several particles that repel each other; varied point estimates, for any operator.

    RSD: Zilberstein, Mardani and Segarra, ICLR 2025, arXiv 2406.16683, in pixel space. Each particle is a pair: x fits
    the data, z is regularised by denoising, and rho ties them (half-quadratic splitting). A kernel between the
    particles of one image pushes them apart, so that they do not all fall into the same mode. The repulsion sets a
    floor to the variety; the particles are no draws of the posterior.

    **Entries of the batch with equal measurements are the particles of one image**, and see each other; all others
    are independent. `invsolve.solve` draws all samples of an image in one call for this.

    Differences from the released code: no autoencoder, and the kernel compares the denoised images (or `features` of
    them) instead of DINO features of decoded noisy latents, with bandwidth median^2 / log(n), defined for two particles
    too. The released scripts leave the repulsion off.

    Cost per step: one network evaluation, one product with A and A^H per particle.

    Args:
        num_steps: levels of the DDPM schedule, one step each.
        step_size: Adam's learning rate of x and z.
        weight: w, of the regulariser; 0.01 to 0.15 in the paper.
        rho: coupling of x and z; 0.05 to 0.2 in the paper.
        repulsion: gamma; 30 in the paper's phase retrieval, 0 for independent particles.
        features: maps images to (n, k) vectors, differentiable, where pixels say too little about variety.
        damping: of the pseudo-inverse that makes the first image; None for one that follows from the noise level.
    """

    num_steps: int = 1000
    step_size: float = 0.1
    weight: float = 0.1
    rho: float = 0.2
    repulsion: float = 30.0
    features: Callable[[Tensor], Tensor] | None = None
    damping: float | None = None

    paper: ClassVar[str] = "2406.16683"
    particles: ClassVar[bool] = True
    interacting: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 operator gradient"

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        x = z = lift(self, measurement, self.damping)
        size, measured = x[0].numel(), measurement.y[0].numel()
        same = equal_entries(measurement.y)
        adam_x, adam_z = Adam(self.step_size), Adam(self.step_size)
        for step, sigma in enumerate(schedules.ddim(self.num_steps).tolist(), start=1):
            # 1. denoise the particles, each with its own noise
            noise = standard_normal(z, generator)
            denoised = prior.denoise(z + sigma * noise, sigma)
            epsilon = (z + sigma * noise - denoised) / sigma
            # 2. push those of one image apart
            score = epsilon - noise
            if self.repulsion != 0:
                push = repulsive_force(denoised, same, self.features)
                score = score - self.repulsion * sigma / math.sqrt(1 + sigma**2) * push
            # 3. one step of x on the data and the coupling, one of z on the coupling and the regulariser
            gradient_x = -likelihood_gradient(measurement, x) / measured + self.rho * (x - z) / size
            gradient_z = (z - x) / size + self.weight / self.rho * sigma * score / size
            x, z = x - adam_x.step(gradient_x), z - adam_z.step(gradient_z)
            if report(callback, step, self.num_steps, sigma, x, denoised, "step_size"):
                return denoised
        return x


def equal_entries(y: Tensor) -> Tensor:
    """Which entries of a batch hold the same data: boolean (B, B)."""
    return torch.stack([(y == entry).flatten(1).all(1) for entry in y])


def repulsive_force(x: Tensor, same: Tensor, features: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """-grad_{x_k} log sum_j exp(-|f_k - f_j|^2 / h) over the particles j of k's group, h = median^2 / log(n).

    The other particles' features and h are held fixed, as in Stein variational gradient descent.

    Args:
        x: particles, shape (B, ...).
        same: groups, boolean (B, B), symmetric, true on the diagonal.
        features: (B, ...) -> (B, k); the flattened images if None.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        f = leaf.flatten(1) if features is None else features(leaf)
        fixed = f.detach()
        squared = torch.cdist(fixed, fixed, compute_mode="donot_use_mm_for_euclid_dist").square()
        h = bandwidth(squared, same)[:, None]
        share = (-squared / h).masked_fill(~same, -math.inf).softmax(1)
        (force,) = torch.autograd.grad(f, leaf, 2 / h * (fixed - share @ fixed))
    return force


def bandwidth(squared: Tensor, same: Tensor) -> Tensor:
    """h of each particle's group: the median of its squared distances over log(n); 1 where there is nobody else."""
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    pairs = torch.where(same[:, :, None] & others[None] & same[:, None, :], squared[None], math.nan)
    median = pairs.flatten(1).nanmedian(1).values  # over all pairs of the group, so that every member has the same
    h = median / same.sum(1).clamp_min(2).log()
    return torch.where(others.any(1) & (h > 0), h, 1.0)
