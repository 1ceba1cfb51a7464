"""Ensemble Kalman diffusion guidance: no derivative of the operator, nor of the network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, start
from invsolve.samplers.batches import MicroBatches
from invsolve.samplers.smc import Cloud, ParticleSampler, Weights, denoise_particles, report_cloud
from invsolve.samplers.steps import euler, integrate


@dataclass(frozen=True)
class EnKG(ParticleSampler):
    """An ensemble that steers itself by its own covariance with the data; for operators that can only be called.

    EnKG: Zheng et al., TMLR 2025, arXiv 2409.20175, Algorithm 1. At every level each particle is taken to a clean image
    by the probability-flow ODE and measured. The covariance between measurements and particles stands in for the
    operator's derivative: x_j -= s / ||C||_F sum_k C_jk (x_k - mean x), C_jk = <A u_j - y, A u_k - mean A u> / J.

    The update lies in the span of the ensemble, which contracts; its spread is not that of the posterior. The
    normalisation by ||C||_F leaves no room for the noise level, which is not used.

    Cost per step: for every particle 1 + num_updates * (ODE steps) network evaluations, and num_updates of A.

    Args:
        num_steps: levels of the outer ODE.
        num_particles: J; the authors' 1024 to 2048, at least 2.
        guidance_scale: s.
        num_updates: updates per level.
        first, last: shares of the levels, at the beginning and the end, without updates.
        ode_factor: the inner ODE has 1 + floor((levels left) / ode_factor) steps.
        max_ode_steps: and at most this many.
        sigma_max, sigma_min: first level, and last but 0.
        micro_batch: particles per network call; all at once, or as many as fit the GPU, if None.
    """

    num_steps: int = 80
    num_particles: int = 512
    guidance_scale: float = 2.0
    num_updates: int = 2
    first: float = 0.05
    last: float = 0.0
    ode_factor: int = 4
    max_ode_steps: int = 20
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    micro_batch: int | None = None

    paper: ClassVar[str] = "2409.20175"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "per particle 1 + updates x ODE steps forward"

    @classmethod
    def serves(cls) -> str:
        return "any that can be called"

    def __post_init__(self) -> None:
        if self.num_particles < 2:
            raise ValueError(f"num_particles is {self.num_particles}; the ensemble needs at least 2 for a covariance.")

    @torch.no_grad()
    def cloud(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Cloud:
        levels = schedules.with_zero(schedules.polynomial(self.sigma_max, self.sigma_min, self.num_steps))
        batches = MicroBatches(self.micro_batch)
        image = start(measurement)
        x = image[:, None].expand(-1, self.num_particles, *[-1] * (image.ndim - 1))
        x = levels[0] * standard_normal(x, generator)
        equal = Weights.equal(len(x), self.num_particles, x)
        for index, (sigma, tau) in enumerate(pairwise(levels)):
            # 1. correct the ensemble by the data
            if index >= self.first * self.num_steps and self.num_steps - index > self.last * self.num_steps:
                ode = self.ode_levels(sigma, self.num_steps - index)
                for _ in range(self.num_updates):
                    x = self.updated(measurement, prior, x, ode, batches)
            # 2. one step of the probability-flow ODE
            denoised = denoise_particles(prior, x, sigma, batches)
            x = euler(x, denoised, sigma, tau)
            if report_cloud(callback, index + 1, self.num_steps, sigma, x, denoised, "guidance_scale"):
                return equal.cloud(denoised)
        return equal.cloud(x)

    def ode_levels(self, sigma: float, left: int) -> list[float]:
        """Levels of the inner ODE, from sigma to 0."""
        count = min(1 + left // self.ode_factor, self.max_ode_steps)
        return schedules.with_zero(schedules.polynomial(sigma, min(sigma, self.sigma_min), count))

    def updated(
        self, measurement: Measurement, prior: Prior, x: Tensor, ode: list[float], batches: MicroBatches
    ) -> Tensor:
        """The ensemble after one derivative-free step towards the data."""

        def measure(piece: Tensor) -> tuple[Tensor]:
            return (measurement.operator(integrate(prior.denoise, piece, ode)),)

        (predicted,) = batches(measure, x.flatten(0, 1))
        predicted = predicted.reshape(*x.shape[:2], -1)
        error = predicted - measurement.y.flatten(1)[:, None]
        centred = predicted - predicted.mean(1, keepdim=True)
        covariance = (error @ centred.mH).real / self.num_particles
        norm = torch.linalg.matrix_norm(covariance)[:, None, None]
        smallest = torch.finfo(norm.dtype).tiny
        deviation = (x - x.mean(1, keepdim=True)).flatten(2)
        move: Tensor = self.guidance_scale / norm.clamp_min(smallest) * covariance @ deviation
        return x - move.reshape(x.shape)
