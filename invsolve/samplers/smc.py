"""What particle methods share: weights, resampling, transitions, and many particles as few network calls.

Particles are held as (B, P, *image shape), log-weights as (B, P). Every batch entry is a filter of its own: it is
weighted, resampled and reported alone, and draws from its own generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers.base import SOLVE_RTOL, Callback, Sampler, report
from invsolve.samplers.batches import MicroBatches


@dataclass(frozen=True)
class Cloud:
    """The weighted particles of one filter per batch entry.

    Args:
        particles: shape (B, P, *image shape).
        log_weights: shape (B, P), normalised: logsumexp over the particles is 0.
        ess: effective sample size before each resampling, shape (steps, B), between 1 and P.
        log_evidence: estimate of log p(y) up to a constant that depends on the measurement alone, shape (B,). Its
            exponential is unbiased; clouds of one measurement are pooled with weights proportional to it.
    """

    particles: Tensor
    log_weights: Tensor
    ess: Tensor
    log_evidence: Tensor

    def draw(self, generator: Generators = None, count: int | None = None) -> Tensor:
        """Particles drawn by their weights, shape (B, *image shape), or (B, count, ...) without replacement bias.

        Args:
            generator: as for samplers.
            count: draws per entry, by systematic resampling: they share the cloud, so they are no independent samples.
        """
        picked = systematic(self.log_weights, uniform(self.log_weights[:, :1], generator), count or 1)
        drawn = select(self.particles, picked)
        return drawn if count is not None else drawn[:, 0]


class ParticleSampler(Sampler):
    """A sampler whose posterior sample is drawn from a cloud of interacting particles.

    `__call__` runs one filter per batch entry and returns one of its particles, so samples of one image are
    independent and do not depend on how many are drawn; `cloud` gives the whole filter with its effective sample
    sizes.
    """

    particles: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        return self.diagnosed(measurement, prior, generator=generator, callback=callback)[0]

    @torch.no_grad()
    def diagnosed(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        cloud = self.cloud(measurement, prior, generator=generator, callback=callback)
        return cloud.draw(generator), {"smallest_ess": cloud.ess.amin(0)}

    def cloud(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Cloud:
        """All particles of one filter per batch entry, with their weights; arguments as for `__call__`."""
        raise NotImplementedError(f"{type(self).__name__} must write cloud")


@dataclass
class Weights:
    """Log-weights of a filter on their way: they are multiplied, measured, and resampled.

    Args:
        log_weights: shape (B, P), normalised.
        threshold: an entry is resampled when its effective sample size is below threshold * P; 1 always does.
    """

    log_weights: Tensor
    threshold: float = 1.0
    log_evidence: Tensor = field(init=False)
    history: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.log_evidence = torch.zeros_like(self.log_weights[:, 0])

    @classmethod
    def equal(cls, entries: int, particles: int, like: Tensor, threshold: float = 1.0) -> Weights:
        """Equal weights for all particles."""
        level = -math.log(particles)
        return cls(torch.full((entries, particles), level, dtype=torch.float64, device=like.device), threshold)

    def multiply(self, log_factors: Tensor) -> None:
        """Multiply by incremental weights (B, P). Factors that are not finite count as 0; if all are, nothing is."""
        factors = log_factors.double()
        factors = torch.where(torch.isfinite(factors), factors, -math.inf)
        total = (self.log_weights + factors).logsumexp(1, keepdim=True)
        usable = torch.isfinite(total)
        self.log_weights = torch.where(usable, self.log_weights + factors - total, self.log_weights)
        self.log_evidence = self.log_evidence + torch.where(usable, total, -math.inf)[:, 0]

    def resample(self, generator: Generators) -> Tensor:
        """Ancestors (B, P), by systematic resampling where the effective sample size is low; records that size."""
        ess = effective_sample_size(self.log_weights)
        self.history.append(ess)
        count = self.log_weights.shape[1]
        u = uniform(self.log_weights[:, :1], generator)
        drawn = systematic(self.log_weights, u, count)
        low = (ess < self.threshold * count * (1 - 1e-9))[:, None]
        stay = torch.arange(count, device=drawn.device).expand_as(drawn)
        self.log_weights = torch.where(low, -math.log(count), self.log_weights)
        return torch.where(low, drawn, stay)

    def cloud(self, particles: Tensor) -> Cloud:
        """The particles with these weights."""
        history = torch.stack([*self.history, effective_sample_size(self.log_weights)])
        return Cloud(particles, self.log_weights, history, self.log_evidence)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum_p W_p^2 of the normalised weights, shape (B,): P for equal weights, 1 where one particle has it all."""
    return torch.exp(2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1))


def uniform(like: Tensor, generator: Generators) -> Tensor:
    """Numbers uniform on (0, 1) in the shape of `like`, from the same generators as all noise."""
    tiny = torch.finfo(torch.float64).eps
    u: Tensor = torch.special.ndtr(standard_normal(like.double(), generator))
    return u.clamp(tiny, 1 - tiny)


def systematic(log_weights: Tensor, u: Tensor, count: int) -> Tensor:
    """Indices (B, count) at the quantiles (u + i) / count of the weights (Kitagawa 1996).

    Particle p is taken floor or ceil of count * W_p times, on average count * W_p.

    Args:
        log_weights: shape (B, P).
        u: one uniform number per entry, shape (B, 1).
        count: indices to draw.
    """
    positions = (torch.arange(count, device=u.device, dtype=torch.float64) + u.double()) / count
    cdf = log_weights.double().softmax(1).cumsum(1)
    index = torch.searchsorted(cdf / cdf[:, -1:], positions, right=True)
    return index.clamp_max(log_weights.shape[1] - 1)


def select(values: Tensor, ancestors: Tensor) -> Tensor:
    """values[b, ancestors[b, p]], for values (B, P, ...)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, ancestors]


def transition(x: Tensor, d: Tensor, sigma: float, tau: float, prior_std: float | None) -> tuple[Tensor, float]:
    """Mean and variance of x_tau given x_sigma.

    DDPM's posterior kernel has the variance tau^2 (1 - tau^2/sigma^2), as if x0 were known to be D. `prior_std` = c
    adds what is left of x0's own variance, (1 - tau^2/sigma^2)^2 c^2 sigma^2 / (c^2 + sigma^2): the kernel is then
    exact for a white prior of standard deviation c, however large the step.
    """
    ratio = (tau / sigma) ** 2
    variance = tau**2 * (1 - ratio)
    if prior_std is not None and tau > 0:
        variance += (1 - ratio) ** 2 * remaining_variance(sigma, prior_std)
    return d + ratio * (x - d), variance


def remaining_variance(sigma: float, prior_std: float) -> float:
    """Var[x0 | x_sigma] under a white prior of standard deviation `prior_std`."""
    return sigma**2 * prior_std**2 / (sigma**2 + prior_std**2)


def denoise_particles(prior: Prior, x: Tensor, sigma: float, batches: MicroBatches) -> Tensor:
    """D of every particle, (B, P, ...)."""
    (d,) = batches(lambda piece: (prior.denoise(piece, sigma),), x.flatten(0, 1))
    return d.reshape(x.shape)


def damped_misfit(operator: LinearOperator, residual: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """z = A^H (A A^H + damping I)^-1 r and the form r^H (A A^H + damping I)^-1 r, shape (N,).

    The form is written as ||z||^2 + ||r - A z||^2 / damping, whose terms are positive: it stays accurate for a small
    damping.
    """
    z = operator.pseudo_inverse(residual, damping, rtol=SOLVE_RTOL)
    rest = residual - operator(z)
    return z, squared_norm(z) + squared_norm(rest) / damping


def squared_norm(x: Tensor) -> Tensor:
    """Sum of squares per entry, shape (N,)."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.square()


def report_cloud(
    callback: Callback | None, step: int, total: int, sigma: float, x: Tensor, denoised: Tensor, lower: str
) -> bool:
    """`report` for particles: the callback sees the first particle of each entry and the mean clean image."""
    return report(callback, step, total, sigma, x[:, 0], denoised.mean(1), lower)
