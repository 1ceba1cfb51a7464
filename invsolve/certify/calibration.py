"""Whether a sampler's spread can be believed: ranks of the truth among its samples.

Simulation-based calibration: Talts et al. 2018, arXiv 1804.06788. The truth is drawn from the prior and measured; its
rank among the samples is uniform for an exact sampler, for every statistic. Statistics that depend on the data are
among them, because a sampler that ignores y and returns the prior passes all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.certify.mixture import SMALL_FILTER, MixtureProblem, largest_batch
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise
from invsolve.samplers.base import Sampler
from invsolve.samplers.smc import ParticleSampler

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Result of the checks.

    Args:
        p_values: chi-square test of uniform ranks, per statistic. Small values speak against the sampler; with k
            statistics compare with 0.05 / k.
        slopes: mean rank minus 1/2, per statistic: a bias.
        coverage: share of truths inside the sampler's highest-density region of nominal content 0.5 and 0.9.
        spread: mean sample variance over mean squared error of the sample mean, times (L + 1) / L, in the row space
            and in the null space of A; 1 if right, below 1 for over-confidence.
    """

    p_values: dict[str, float]
    slopes: dict[str, float]
    coverage: dict[float, float]
    spread: dict[str, float]

    @property
    def passed(self) -> bool:
        """No p-value under 0.01 over the number of statistics."""
        return min(self.p_values.values()) > 0.01 / len(self.p_values)


def calibrated_problem(d: int = 8, measurements: int = 2, seed: int = 0) -> MixtureProblem:
    """The problem that `calibrate` measures many truths with."""
    return MixtureProblem.make(d, measurements, seed)


def calibrate(
    sampler: Sampler | None,
    d: int = 8,
    measurements: int = 2,
    truths: int = 200,
    samples: int = 99,
    seed: int = 0,
) -> Calibration:
    """Run the checks on one mixture problem with many truths.

    Args:
        sampler: any; None for the exact posterior, which must pass. A filter of SMALL_FILTER particles or more gives
            all samples of a truth from one cloud.
        d, measurements: size of the problem.
        truths: images drawn from the prior, each with its measurement.
        samples: L per truth; L + 1 must be divisible by BINS.
        seed: of everything drawn.
    """
    if (samples + 1) % BINS:
        raise ValueError(f"samples is {samples}; expected a number one below a multiple of {BINS}.")
    problem = calibrated_problem(d, measurements, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    truth = problem.prior.sample(truths, generator)
    noise = torch.randn((truths, measurements), generator=generator, dtype=torch.float64)
    y = problem.operator(truth) + problem.noise_std * noise
    x = _draws(sampler, problem, y, samples, generator)
    _, _, vt = problem.operator.svd()
    probe = torch.randn((3, d), generator=generator, dtype=torch.float64)
    unseen = probe - probe @ vt.T @ vt

    def statistics(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        flat = x.flatten(1)
        found = {f"row space {k + 1}": flat @ row for k, row in enumerate(vt)}
        found |= {f"null space {k + 1}": flat @ row for k, row in enumerate(unseen)}
        found["misfit to the data"] = (y - problem.operator(x)).square().sum(1)
        of_all = MixtureProblem(problem.prior, problem.operator, y, problem.noise_std)
        found["posterior density"] = of_all.log_density(x)
        return found

    of_truth = statistics(truth, y)
    of_samples = statistics(x.flatten(0, 1), y.repeat_interleave(samples, 0))
    p_values, slopes, coverage = {}, {}, {}
    for name, value in of_truth.items():
        below = (of_samples[name].reshape(truths, samples) < value[:, None]).sum(1)
        counts = torch.bincount(below * BINS // (samples + 1), minlength=BINS).double()
        expected = truths / BINS
        p_values[name] = chi_square_tail(float((counts - expected).square().sum() / expected), BINS - 1)
        slopes[name] = float(below.double().mean() / samples) - 0.5
        if name == "posterior density":
            # The region of content q holds the q densest samples: the truth is inside if at most q of them lie above.
            coverage = {q: float(((samples - below) <= q * (samples + 1) - 1).double().mean()) for q in (0.5, 0.9)}
    seen = {"row space": vt, "null space": torch.linalg.qr(unseen.T).Q.T}
    spread = {name: _spread(x.flatten(2) @ basis.T, truth.flatten(1) @ basis.T) for name, basis in seen.items()}
    return Calibration(p_values, slopes, coverage, spread)


def _draws(
    sampler: Sampler | None, problem: MixtureProblem, y: Tensor, samples: int, generator: torch.Generator
) -> Tensor:
    """(truths, samples, *image shape)."""
    if sampler is None:
        each = [MixtureProblem(problem.prior, problem.operator, row[None], problem.noise_std) for row in y]
        return torch.stack([one.exact(samples, generator) for one in each])
    noise = GaussianNoise(problem.noise_std)
    step = largest_batch(sampler, math.prod(problem.operator.in_shape))
    if isinstance(sampler, ParticleSampler) and int(sampler.settings()["num_particles"]) >= SMALL_FILTER:
        clouds = [
            sampler.cloud(Measurement(piece, problem.operator, noise), problem.prior, generator=generator)
            for piece in torch.split(y, step)
        ]
        return torch.cat([cloud.draw(generator, samples) for cloud in clouds])
    parts = [
        sampler(Measurement(piece, problem.operator, noise), problem.prior, generator=generator).detach()
        for piece in torch.split(y.repeat_interleave(samples, 0), step)
    ]
    return torch.cat(parts).reshape(len(y), samples, *problem.operator.in_shape)


def _spread(x: Tensor, truth: Tensor) -> float:
    samples = x.shape[1]
    error = (x.mean(1) - truth).square().sum(1).mean()
    return float(x.var(1).sum(1).mean() / error) * (samples + 1) / samples


def chi_square_tail(value: float, freedom: int) -> float:
    """P(chi^2 >= value)."""
    half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
