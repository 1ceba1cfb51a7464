"""A Gaussian prior seen through two directions: every mean and variance of the posterior by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.certify.mixture import SCALE, GridMixture, MixtureProblem, draw
from invsolve.operators.basic import MatrixOperator
from invsolve.samplers.base import Sampler

DATA = (1.0, -0.5)
SINGULAR = (1.0, 0.5)
NOISE_STD = 0.3
SIZE = 6
"""x ~ N(0, I) in SIZE dimensions, y_l = SINGULAR_l x_l + NOISE_STD n_l; the other directions are not seen."""


@dataclass(frozen=True)
class Moments:
    """First two moments in the units of a prior with unit variance.

    Args:
        mean: of the two seen directions.
        seen: their variances.
        unseen: mean variance of the directions that the data do not see.
    """

    mean: tuple[float, float]
    seen: tuple[float, float]
    unseen: float


EXACT = Moments(
    mean=tuple(s * y / (s**2 + NOISE_STD**2) for s, y in zip(SINGULAR, DATA, strict=True)),  # type: ignore[arg-type]
    seen=tuple(1 / (1 + (s / NOISE_STD) ** 2) for s in SINGULAR),  # type: ignore[arg-type]
    unseen=1.0,
)


def problem() -> MixtureProblem:
    """The measurement in model units."""
    matrix = torch.zeros((2, SIZE), dtype=torch.float64)
    matrix[0, 0], matrix[1, 1] = SINGULAR
    prior = GridMixture(torch.ones(1), torch.zeros((1, 1, 1, SIZE), dtype=torch.float64), 1 / SCALE)
    prior.sigma_max = 5.0
    y = torch.tensor([DATA], dtype=torch.float64) / SCALE
    return MixtureProblem(prior, MatrixOperator(matrix, (1, 1, SIZE)), y, NOISE_STD / SCALE)


def moments(x: Tensor) -> Moments:
    """Moments of samples (N, 1, 1, SIZE) in model units."""
    flat = SCALE * x.flatten(1)
    mean, variance = flat.mean(0), flat.var(0)
    return Moments(
        (float(mean[0]), float(mean[1])), (float(variance[0]), float(variance[1])), float(variance[2:].mean())
    )


def measure(sampler: Sampler, samples: int = 2000, seed: int = 0) -> Moments:
    """Moments of a sampler's draws."""
    x, _ = draw(sampler, problem(), samples, torch.Generator().manual_seed(seed))
    return moments(x.detach())


def standard_error(samples: int) -> float:
    """Relative standard error of a variance estimated from independent draws."""
    return math.sqrt(2 / (samples - 1))
