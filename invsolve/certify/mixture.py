"""The 25-component Gaussian mixture of the MCGdiff paper, whose posterior is known exactly.

Cardoso et al., ICLR 2024, arXiv 2308.07983, appendix. Components sit at (8i, 8j, 8i, 8j, ...), i and j from -2 to 2,
with unit covariance; measurements are a few random directions. Samplers run in model units, image / SCALE, with an
operator of norm 1, as they do behind `invsolve.solve`; distances are in the units of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.operators.basic import MatrixOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise
from invsolve.priors.base import expand_sigma
from invsolve.priors.gaussian import GaussianMixturePrior
from invsolve.samplers.base import Sampler
from invsolve.samplers.smc import ParticleSampler

SCALE = 16.0
"""Units of the paper per model unit: the outermost means are at 1."""
CELLS = tuple((d, m) for d in (8, 80, 800) for m in (1, 2, 4))
"""(d, d_y) of the nine cells of the published table."""
PROBLEMS = 20
DIRECTIONS = 500
SAMPLES = 2000
LARGEST_BATCH = 4_000_000
"""Numbers in one state of all particles; longer runs are split."""
SMALL_FILTER = 100
"""Filters of fewer particles give one sample each, as a sampler does when called; larger ones give whole clouds."""


class GridMixture(GaussianMixturePrior):
    """A mixture of isotropic components with one variance, evaluated by matrix products in O(K d).

    Args:
        weights: shape (K,).
        means: shape (K, *image shape).
        std: standard deviation of all components.
    """

    def __init__(self, weights: Tensor, means: Tensor, std: float) -> None:
        super().__init__(weights, means, std**2, data_range=(-1.25, 1.25))
        self.std = std
        # Wide enough that the start N(0, sigma_max^2) forgets the outermost mean.
        self.sigma_max = 4 * float(means.flatten(1).norm(dim=1).max())

    def log_responsibilities(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log of the share of each component in x, (B, K)."""
        flat = x.flatten(1)
        variance = self.std**2 + expand_sigma(sigma, flat) ** 2
        scores = flat @ self.means.T - 0.5 * self.means.square().sum(1)
        return (self.weights.log() + scores / variance).log_softmax(1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        flat = x.flatten(1)
        level = expand_sigma(sigma, flat) ** 2
        centre = self.log_responsibilities(x, sigma).exp() @ self.means
        return ((level * centre + self.std**2 * flat) / (level + self.std**2)).reshape(x.shape)


@dataclass(frozen=True)
class MixtureProblem:
    """One measurement of the benchmark, with its exact posterior, in model units.

    Args:
        prior: the mixture.
        operator: d_y random directions, norm 1.
        y: one measurement, shape (1, d_y).
        noise_std: of y.
    """

    prior: GridMixture
    operator: MatrixOperator
    y: Tensor
    noise_std: float

    @classmethod
    def make(cls, d: int, measurements: int, seed: int) -> MixtureProblem:
        """Problem number `seed` of a cell; the prior's weights are drawn anew for each."""
        generator = torch.Generator().manual_seed(1_000_000 + 10_000 * d + 1000 * measurements + seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def fraction(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        weights = normal(25).square().clamp_min(1e-12)
        offsets = 8 * (torch.arange(5, dtype=torch.float64) - 2)
        means = torch.cartesian_prod(offsets, offsets).repeat(1, d // 2) / SCALE
        prior = GridMixture(weights, means.reshape(25, 1, 1, d), 1 / SCALE)
        u, _, vt = torch.linalg.svd(normal(measurements, d), full_matrices=False)
        singular = fraction(measurements).sort(descending=True).values
        noise = float(fraction(1)) * float(singular[0])
        # y = A x + n in the paper's units becomes y / (SCALE norm) = (A / norm) (x / SCALE) + n / (SCALE norm).
        operator = MatrixOperator(u * (singular / singular[0]) @ vt, (1, 1, d))
        noise_std = noise / (SCALE * float(singular[0]))
        truth = prior.sample(1, generator)
        y = operator(truth) + noise_std * normal(1, measurements)
        return cls(prior, operator, y, noise_std)

    def measurement(self, batch: int) -> Measurement:
        """The measurement, `batch` times."""
        return Measurement(self.y.expand(batch, -1), self.operator, GaussianNoise(self.noise_std))

    def log_weights(self) -> Tensor:
        """Log-weights of the posterior's components, (25,)."""
        matrix = self.operator.matrix
        innovation = self.noise_std**2 * torch.eye(len(matrix)).to(matrix) + self.prior.std**2 * matrix @ matrix.T
        factor = torch.linalg.cholesky(innovation)
        surprise: Tensor = torch.linalg.solve_triangular(factor, (self.y - self.prior.means @ matrix.T).T, upper=False)
        return (self.prior.weights.log() - 0.5 * surprise.square().sum(0)).log_softmax(0)

    def exact(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws from the posterior, (count, 1, 1, d): a component, a draw of it, and the draw corrected by the data."""
        component = torch.multinomial(self.log_weights().exp(), count, replacement=True, generator=generator)
        means = self.prior.means[component]
        draw = means + self.prior.std * torch.randn(means.shape, generator=generator, dtype=means.dtype)
        draw = draw.reshape(count, *self.operator.in_shape)
        noise = torch.randn((count, self.y.shape[1]), generator=generator, dtype=means.dtype)
        residual = self.y + self.noise_std * noise - self.operator(draw)
        return draw + self.operator.pseudo_inverse(residual, (self.noise_std / self.prior.std) ** 2)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x | y) up to a constant, (B,)."""
        misfit: Tensor = (self.y - self.operator(x)).square().sum(1) / self.noise_std**2
        flat = x.flatten(1)
        distance: Tensor = torch.cdist(flat, self.prior.means).square() / self.prior.std**2
        return (self.prior.weights.log() - 0.5 * distance).logsumexp(1) - 0.5 * misfit


@dataclass(frozen=True)
class Score:
    """How far samples are from the posterior of one problem.

    Args:
        distance: sliced Wasserstein-1 distance to exact samples, in the units of the paper.
        floor: the same between two exact sets of this size.
        weight_error: total variation distance of the components' weights, 0 to 1.
        ess: smallest effective sample size of a filter over its number of particles; nan without particles.
    """

    distance: float
    floor: float
    weight_error: float
    ess: float


def directions(d: int, count: int = DIRECTIONS) -> Tensor:
    """Unit vectors (d, count), the same in every run."""
    vectors: Tensor = torch.randn((d, count), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=0)
    return vectors / lengths


def sliced_wasserstein(a: Tensor, b: Tensor, along: Tensor) -> float:
    """Mean over directions of the Wasserstein-1 distance between projections; equally many samples (N, d) in both."""
    return float(((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean())


def weight_error(x: Tensor, problem: MixtureProblem) -> float:
    """Half the summed difference between the shares of samples nearest to each mean and the exact weights."""
    nearest = torch.cdist(x, problem.prior.means).argmin(1)
    shares = torch.bincount(nearest, minlength=25).double() / len(x)
    return 0.5 * float((shares - problem.log_weights().exp()).abs().sum())


INTERACTING = 64
"""Samples at once of methods whose samples see each other."""


def largest_batch(sampler: Sampler, size: int) -> int:
    """Entries of `size` numbers that a sampler is given in one call."""
    particles = int(sampler.settings()["num_particles"]) if isinstance(sampler, ParticleSampler) else 1
    return INTERACTING if sampler.interacting else max(1, LARGEST_BATCH // (size * particles))


def draw(sampler: Sampler, problem: MixtureProblem, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """`count` samples, and the smallest effective sample size over the number of particles.

    A method without particles runs `count` times, and so does one of fewer than SMALL_FILTER particles. A larger filter
    gives a whole cloud, as in the published protocol: at least two, and more where one has fewer than count / 2
    particles.
    """
    size = math.prod(problem.operator.in_shape)
    if not isinstance(sampler, ParticleSampler):
        step = largest_batch(sampler, size)
        parts = [
            sampler(problem.measurement(min(step, count - k)), problem.prior, generator=generator)
            for k in range(0, count, step)
        ]
        return torch.cat(parts), math.nan
    particles = int(sampler.settings()["num_particles"])
    filters = count if particles < SMALL_FILTER else max(2, math.ceil(count / particles))
    each = math.ceil(count / filters)
    step = largest_batch(sampler, size)
    drawn, ess = [], float(particles)
    for k in range(0, filters, step):
        entries = min(step, filters - k)
        cloud = sampler.cloud(problem.measurement(entries), problem.prior, generator=generator)
        drawn.append(cloud.draw(generator, each).flatten(0, 1))
        ess = min(ess, float(cloud.ess.min()))
    return torch.cat(drawn)[:count], ess / particles


def score(sampler: Sampler, problem: MixtureProblem, samples: int = SAMPLES, seed: int = 0) -> Score:
    """Run a sampler on a problem and compare it with the exact posterior.

    Args:
        sampler: any.
        problem: of `MixtureProblem.make`.
        samples: how many, of both.
        seed: of the sampler's and the exact draws.
    """
    generator = torch.Generator().manual_seed(seed)
    x, ess = draw(sampler, problem, samples, generator)
    exact = [SCALE * problem.exact(samples, generator).flatten(1) for _ in range(2)]
    along = directions(exact[0].shape[1])
    found = x.detach().flatten(1)
    return Score(
        sliced_wasserstein(SCALE * found, exact[0], along),
        sliced_wasserstein(exact[1], exact[0], along),
        weight_error(found, problem),
        ess,
    )


Progress = Callable[[int, int], None]


def benchmark(
    sampler: Sampler,
    cells: tuple[tuple[int, int], ...] = CELLS,
    problems: int = PROBLEMS,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> dict[tuple[int, int], list[Score]]:
    """Scores of a sampler on the problems of each cell.

    Args:
        progress: called as progress(done, total) after every problem.
    """
    scores: dict[tuple[int, int], list[Score]] = {}
    for cell_index, (d, m) in enumerate(cells):
        scores[d, m] = []
        for seed in range(problems):
            scores[d, m].append(score(sampler, MixtureProblem.make(d, m, seed), samples, seed))
            if progress:
                progress(cell_index * problems + seed + 1, len(cells) * problems)
    return scores
