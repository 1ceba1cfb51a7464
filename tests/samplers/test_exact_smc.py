"""Particle methods and Langevin dynamics against posteriors that are known exactly.

The particle methods are exact for many particles: mean (z-test), variance (15 %) and evidence. What is not exact is
held to its own law. Mutants of these tests are in `test_mutants_smc.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from exact import (
    OBSERVE,
    PairPrior,
    assert_law,
    assert_posterior,
    dense_problem,
    pair_measurement,
    shrinkage,
)
from torch import Tensor

from invsolve.operators import Blur, GaussianNoise, Mask, Measurement, Operator
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.priors.gaussian import dense_matrix
from invsolve.samplers import FPSSMC, SCG, TDS, EnKG, Langevin, MCGdiff, Sampler
from invsolve.samplers.batches import LARGEST_PIECE, MicroBatches
from invsolve.samplers.smc import ParticleSampler, Weights, effective_sample_size, systematic

RANGE = {"sigma_max": 30.0, "sigma_min": 0.01, "kernel_std": 0.7}
EXACT: dict[str, Sampler] = {
    "tds": TDS(30, 24, prior_std=0.7, clip=False, **RANGE),
    "mcgdiff": MCGdiff(30, 24, **RANGE),
    "fpssmc": FPSSMC(30, 24, **RANGE),
    "langevin": Langevin(120, 60, sigma_max=10.0, sigma_min=0.01, step=0.7, prior_std=0.7),
}


def white() -> GaussianPrior:
    return GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), 0.49)


@pytest.mark.parametrize("name", EXACT)
def test_white_gaussian(name: str) -> None:
    prior = white()
    measurement = dense_problem(2, 0.5, prior, 800)
    samples = EXACT[name](measurement, prior, generator=torch.Generator().manual_seed(1))
    exact = prior.posterior(measurement.operator, measurement.y[0], 0.5)
    assert_posterior(samples, exact)
    # the same along the directions that the data see, where the noise level shows most
    seen = torch.linalg.svd(dense_matrix(measurement.operator, (1, 2, 3), samples)).Vh[:2]
    ratio = (samples.flatten(1) @ seen.T).var(0) / (seen @ exact.covariance() @ seen.T).diagonal()
    assert float((ratio - 1).abs().max()) < 0.15, ratio


@pytest.mark.parametrize("name", ["tds", "mcgdiff", "fpssmc"])
def test_modes_get_their_weights(name: str) -> None:
    """Two far modes that the data decide only in part: what methods without weights get wrong."""
    apart = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    apart[0, 0, 0, 0], apart[1, 0, 0, 0] = -3.0, 3.0
    apart[0, 0, 1, 1], apart[1, 0, 1, 1] = 0.4, -0.4
    prior = GaussianMixturePrior([0.3, 0.7], apart, 0.25)
    mask = torch.zeros(1, 2, 3, dtype=torch.float64)
    mask[0, 1, 1] = 1
    y = 0.5 * mask.expand(600, 1, 2, 3)
    measurement = Measurement(y, Mask(mask, dtype=torch.float64), GaussianNoise(0.3))
    # kernels of the components' width, and enough steps where the modes part
    sampler = {
        "tds": TDS(40, 16, clip=False, prior_std=3.0, kernel_std=0.5, sigma_max=30.0, ess_threshold=0.9),
        "mcgdiff": MCGdiff(40, 32, kernel_std=0.5, sigma_max=30.0),
        "fpssmc": FPSSMC(40, 64, kernel_std=0.5, sigma_max=30.0),
    }[name]
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(2))
    exact = prior.posterior(measurement.operator, y[0], 0.3)
    share = float((samples[:, 0, 0, 0] < 0).double().mean())
    wanted = float(exact.weights[0])
    assert 0.4 < wanted < 0.8  # the data turn the prior's 0.3 around
    assert abs(share - wanted) < 0.07, (share, wanted)


@pytest.mark.parametrize(("name", "tolerance"), [("tds", 0.1), ("mcgdiff", 0.3), ("fpssmc", 0.5)])
def test_evidence(name: str, tolerance: float) -> None:
    """Ratios of the evidence of three measurements, on a white Gaussian; filters of one measurement are averaged."""
    prior, filters = white(), 20
    measurement = dense_problem(2, 0.2, prior, 3)
    y = measurement.y * torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64)[:, None]
    sampler = EXACT[name]
    assert isinstance(sampler, ParticleSampler)
    sampler = type(sampler)(**(sampler.settings() | {"num_particles": 300}))
    many = Measurement(y.repeat_interleave(filters, 0), measurement.operator, measurement.noise)
    cloud = sampler.cloud(many, prior, generator=torch.Generator().manual_seed(4))
    found = cloud.log_evidence.reshape(3, filters).logsumexp(1)
    matrix = dense_matrix(measurement.operator, (1, 2, 3), y)
    mean = prior.mean().flatten() @ matrix.T
    law = torch.distributions.MultivariateNormal(mean, 0.49 * matrix @ matrix.T + 0.04 * torch.eye(2).double())
    torch.testing.assert_close(found.diff(), law.log_prob(y).diff(), atol=tolerance, rtol=0)
    assert cloud.particles.shape == (3 * filters, 300, 1, 2, 3)
    assert 1 < float(cloud.ess.min()) <= float(cloud.ess.max()) < 300.001


def test_mcgdiff_with_many_singular_values() -> None:
    """A blur: singular values by the FFT, more of them than levels to set them free at."""
    kernel = torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.5, 0.2]], dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(1, 3, 5, dtype=torch.float64), 0.49)
    operator = Blur(kernel, (1, 3, 5))
    clean = operator(prior.sample(1, torch.Generator().manual_seed(0)))
    y = GaussianNoise(0.2).sample(clean, torch.Generator().manual_seed(1)).expand(400, -1, -1, -1)
    sampler = MCGdiff(60, 12, sigma_max=30.0, sigma_min=0.01, kernel_std=0.7)
    samples = sampler(Measurement(y, operator, GaussianNoise(0.2)), prior, generator=torch.Generator().manual_seed(1))
    exact = prior.posterior(operator, y[0], 0.2)
    variance = exact.covariance().diagonal()
    assert float((samples.flatten(1).var(0) / variance - 1).abs().max()) < 0.25
    assert float((samples.mean(0) - exact.mean()).abs().max()) < 0.2 * float(variance.mean().sqrt())


def test_mcgdiff_without_noise() -> None:
    prior = white()
    mask = torch.tensor([[[1.0, 0, 1], [0, 0, 1]]], dtype=torch.float64)
    y = (0.3 * mask).expand(400, 1, 2, 3)
    measurement = Measurement(y, Mask(mask, dtype=torch.float64), GaussianNoise(0.0))
    samples = EXACT["mcgdiff"](measurement, prior, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(samples * mask, y)
    hidden = samples[(1 - mask).bool().expand_as(samples)].reshape(400, 3)
    assert float((hidden.var(0) / 0.49 - 1).abs().max()) < 0.25


class Square(Operator):
    """y = x^2."""

    def __init__(self) -> None:
        super().__init__((1, 1, 1), (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x**2


def test_tds_with_a_nonlinear_operator() -> None:
    """x ~ N(0.5, 1), y = x^2 + n: two modes of unequal weight, moments by quadrature."""
    prior = GaussianPrior(torch.full((1, 1, 1), 0.5, dtype=torch.float64), 1.0)
    y = torch.full((1000, 1, 1, 1), 1.5, dtype=torch.float64)
    sampler = TDS(40, 32, clip=False, prior_std=1.0, kernel_std=1.0, sigma_max=20.0, sigma_min=0.01)
    samples = sampler(
        Measurement(y, Square(), GaussianNoise(0.5)), prior, generator=torch.Generator().manual_seed(1)
    ).flatten()
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weight = (-0.5 * (grid - 0.5) ** 2 - 0.5 * ((1.5 - grid**2) / 0.5) ** 2).softmax(0)
    assert abs(float((samples < 0).double().mean()) - float(weight[grid < 0].sum())) < 0.05
    second = float((weight * grid**2).sum())
    spread = math.sqrt(float((weight * grid**4).sum()) - second**2)
    assert abs(float(samples.square().mean()) - second) < 5 * spread / math.sqrt(1000)


# --- laws -------------------------------------------------------------------------------------------------------------


def poly7(sigma_max: float, sigma_min: float, count: int) -> list[float]:
    position = torch.arange(count, dtype=torch.float64) / (count - 1)
    first, last = sigma_max ** (1 / 7), sigma_min ** (1 / 7)
    return ((first + position * (last - first)) ** 7).tolist()


def fps_law(sampler: FPSSMC, noise: float) -> tuple[Tensor, Tensor]:
    """One particle of the authors' FPS: (x, Y) is Gaussian given y, with slopes on y and one covariance (3 x 3)."""
    levels = [*poly7(float(sampler.sigma_max or 0), sampler.sigma_min, sampler.num_steps), 0.0]
    identity = torch.eye(2, dtype=torch.float64)

    def fused(variance: float, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Map of (x, Y') to the fused mean, and the covariance around it."""
        gain = variance / (variance + noise**2)
        keep = torch.diag(1 - gain * OBSERVE)
        return torch.cat([keep @ centre, (gain * OBSERVE)[:, None]], 1), variance * keep

    c = float(sampler.fresh or 0)
    slope, covariance = torch.zeros(3).double(), torch.zeros(3, 3).double()
    covariance[2, 2], slope[2] = levels[0] ** 2, 1.0
    to_x, spread = fused(levels[0] ** 2, torch.zeros(2, 2).double())
    lift = torch.cat([to_x, torch.tensor([[0.0, 0.0, 1.0]]).double()])
    slope, covariance = lift @ slope, lift @ covariance @ lift.T
    covariance[:2, :2] += spread
    for sigma, tau in pairwise(levels):
        bridge = math.sqrt(1 - c) * tau / sigma
        k = shrinkage(sigma)
        centre = k + bridge * (identity - k)
        # the path first: Y' = y + bridge (Y - y) + sqrt(c) tau n
        path = torch.diag(torch.tensor([1.0, 1.0, bridge]).double())
        slope, covariance = path @ slope, path @ covariance @ path.T
        slope[2] += 1 - bridge
        covariance[2, 2] += c * tau**2
        if tau == 0:
            return centre @ slope[:2], centre @ covariance[:2, :2] @ centre.T
        to_x, spread = fused(c * tau**2, centre)
        lift = torch.cat([to_x, torch.tensor([[0.0, 0.0, 1.0]]).double()])
        slope, covariance = lift @ slope, lift @ covariance @ lift.T
        covariance[:2, :2] += spread
    raise AssertionError


def langevin_law(sampler: Langevin, noise: float) -> tuple[Tensor, Tensor]:
    """x' = x + a M grad + b M^1/2 n, with grad = (D - x)/sigma^2 + A^T (y - A x)/noise^2."""
    count = min(sampler.num_levels, sampler.num_steps)
    top, bottom = float(sampler.sigma_max or 0), sampler.sigma_min
    levels = [top * (bottom / top) ** (k / (count - 1)) for k in range(count)]
    a, b2 = 1 - math.exp(-sampler.step), 1 - math.exp(-2 * sampler.step)
    identity = torch.eye(2, dtype=torch.float64)
    slope, covariance = torch.zeros(2).double(), top**2 * identity
    for step in range(sampler.num_steps):
        sigma = levels[step * count // sampler.num_steps]
        preconditioner = torch.diag(1 / (OBSERVE / noise**2 + 1 / (sigma**2 + sampler.prior_std**2)))
        pull = (identity - shrinkage(sigma)) / sigma**2 + torch.diag(OBSERVE) / noise**2
        transition = identity - a * preconditioner @ pull
        slope = transition @ slope + a * preconditioner @ OBSERVE / noise**2
        covariance = transition @ covariance @ transition.T + b2 * preconditioner
    return slope, covariance


def ancestral_law(sampler: SCG) -> tuple[Tensor, Tensor]:
    """One candidate: the prior itself, up to the steps' error, whatever the data."""
    levels = [*poly7(float(sampler.sigma_max or 0), sampler.sigma_min, sampler.num_steps), 0.0]
    identity = torch.eye(2, dtype=torch.float64)
    covariance = levels[0] ** 2 * identity
    for sigma, tau in pairwise(levels):
        ratio = (tau / sigma) ** 2
        transition = shrinkage(sigma) + ratio * (identity - shrinkage(sigma))
        covariance = transition @ covariance @ transition.T + tau**2 * (1 - ratio) * identity
    return torch.zeros(2).double(), covariance


FPS = FPSSMC(30, 1, sigma_max=20.0, sigma_min=0.2, fresh=0.5, telescoping=False)
CHAIN = Langevin(60, 30, sigma_max=20.0, sigma_min=0.2, step=0.5, prior_std=0.3)
ONE = SCG(30, 1, sigma_max=20.0, sigma_min=0.2)
LAWS: dict[str, tuple[Sampler, Callable[[], tuple[Tensor, Tensor]]]] = {
    "fps": (FPS, lambda: fps_law(FPS, 0.3)),
    "langevin": (CHAIN, lambda: langevin_law(CHAIN, 0.3)),
    "scg-one": (ONE, lambda: ancestral_law(ONE)),
}


@pytest.mark.parametrize("name", LAWS)
def test_law_on_a_gaussian_prior(name: str) -> None:
    sampler, law = LAWS[name]
    measurement = pair_measurement(0.3, batch=3)
    # The path of FPS is shared by all particles of an entry, not by pixels: pixels are independent draws.
    samples = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    assert_law(samples, measurement.y, *law())


# --- one step by hand, and what must hold for all ---------------------------------------------------------------------


def test_scg_takes_the_candidate_that_fits_best() -> None:
    prior = white()
    measurement = dense_problem(3, 0.1, prior, 200)
    misfits = []
    for count in (1, 4, 16):
        x = SCG(40, count, unguided=0.0, sigma_max=10.0)(measurement, prior, generator=torch.Generator().manual_seed(0))
        misfits.append(float((measurement.y - measurement.operator(x)).square().sum(1).mean()))
    assert misfits[0] > 3 * misfits[1] > 4 * misfits[2]


@pytest.mark.parametrize("name", ["tds", "mcgdiff", "fpssmc", "scg"])
def test_the_result_carries_no_noise(name: str) -> None:
    """A prior that knows the image: the last step takes away what noise is left."""
    prior = GaussianPrior(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3), 1e-8)
    measurement = dense_problem(2, 0.1, prior, 20)
    shared = {"sigma_max": 10.0, "sigma_min": 0.1}
    sampler = {
        "tds": TDS(20, 4, kernel_std=None, prior_std=1e-4, **shared),
        "mcgdiff": MCGdiff(20, 4, kernel_std=None, **shared),
        "fpssmc": FPSSMC(20, 4, kernel_std=None, **shared),
        "scg": SCG(20, 4, **shared),
    }[name]
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(0))
    assert float((samples - prior.mean()).abs().max()) < 0.01


ALL: dict[str, Sampler] = {
    "tds": TDS(8, 6, sigma_max=20.0),
    "mcgdiff": MCGdiff(8, 6, sigma_max=20.0),
    "fpssmc": FPSSMC(8, 6, sigma_max=20.0),
    "langevin": Langevin(8, 8, sigma_max=20.0),
    "enkg": EnKG(8, 6),
    "scg": SCG(8, 6, sigma_max=20.0),
}


@pytest.mark.parametrize("name", ALL)
def test_entries_seeds_and_callbacks(name: str) -> None:
    prior = GaussianMixturePrior(
        [0.4, 0.6], torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64), 0.3
    )
    measurement = dense_problem(4, 0.1, prior, 4)
    y = measurement.y * torch.tensor([1.0, 1e3, -3.0, 0.0], dtype=torch.float64)[:, None]

    def run(rows: list[int], sampler: Sampler = ALL[name], **options: object) -> Tensor:
        data = Measurement(y[rows], measurement.operator, measurement.noise)
        generators = [torch.Generator().manual_seed(k) for k in rows]
        return sampler(data, prior, generator=generators, **options)  # type: ignore[arg-type]

    before = torch.random.get_rng_state()
    together = run([0, 1, 2, 3])
    for k in (0, 2):
        torch.testing.assert_close(run([k])[0], together[k], rtol=1e-9, atol=1e-9)
    assert torch.equal(run([0, 1, 2, 3]), together)
    assert torch.equal(before, torch.random.get_rng_state())
    if "micro_batch" in ALL[name].settings():
        pieces = type(ALL[name])(**(ALL[name].settings() | {"micro_batch": 5}))
        torch.testing.assert_close(run([0, 1, 2, 3], pieces), together, rtol=1e-9, atol=1e-9)
    seen: list[tuple[int, int, float, tuple[int, ...]]] = []
    run([0, 1], callback=lambda step, total, sigma, x, d: seen.append((step, total, sigma, tuple(d.shape))))
    assert [s[0] for s in seen] == list(range(1, 9))
    assert {(s[1], s[3]) for s in seen} == {(8, (2, 1, 2, 3))}
    assert all(a[2] > b[2] for a, b in pairwise(seen))
    assert run([0, 1], callback=lambda step, *_: step == 3).shape == (2, 1, 2, 3)


def test_systematic_resampling() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.1, 0.0, 0.9]], dtype=torch.float64)
    counts = torch.zeros(2, 4, dtype=torch.float64)
    for u in torch.linspace(0.005, 0.995, 100, dtype=torch.float64):
        index = systematic(weights.log(), u.expand(2, 1), 4)
        once = torch.stack([torch.bincount(row, minlength=4) for row in index]).double()
        assert bool(((once - 4 * weights).abs() < 1).all())  # floor or ceil of the expected number
        counts += once / 100
    torch.testing.assert_close(counts, 4 * weights, atol=0.011, rtol=0)


def test_weights() -> None:
    weights = Weights.equal(2, 4, torch.zeros(1), threshold=0.5)
    torch.testing.assert_close(effective_sample_size(weights.log_weights), torch.full((2,), 4.0).double())
    factors = torch.tensor([[1.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 7.0]]).double()
    weights.multiply(factors.log())
    torch.testing.assert_close(weights.log_evidence.exp(), factors.mean(1))
    torch.testing.assert_close(effective_sample_size(weights.log_weights), torch.tensor([16 / 6, 1.0]).double())
    ancestors = weights.resample([torch.Generator().manual_seed(k) for k in range(2)])
    assert ancestors.tolist() == [[0, 1, 2, 3], [3, 3, 3, 3]]  # only the second entry is below half of 4
    torch.testing.assert_close(weights.log_weights[1].exp(), torch.full((4,), 0.25).double())
    weights.multiply(torch.full((2, 4), math.nan))  # nothing usable: the weights stay
    assert bool(torch.isfinite(weights.log_weights[1]).all())
    assert weights.log_evidence.tolist() == [-math.inf, -math.inf]


def test_micro_batches_halve_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def hungry(x: Tensor) -> tuple[Tensor]:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return (2 * x,)

    batches = MicroBatches()
    x = torch.arange(10.0)[:, None]
    assert torch.equal(batches(hungry, x)[0], 2 * x)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert batches.size == 2
    with pytest.raises(torch.cuda.OutOfMemoryError):
        MicroBatches(1)(lambda x: hungry(x.expand(4, 1)), x)
    monkeypatch.setitem(LARGEST_PIECE, "cpu", 6)
    sizes.clear()
    MicroBatches()(hungry, torch.zeros(5, 2))
    assert sizes == [3, 2]
    with pytest.raises(ValueError, match="micro_batch is 0"):
        MicroBatches(0)


def test_enkg_needs_an_ensemble() -> None:
    with pytest.raises(ValueError, match="num_particles is 1; the ensemble needs at least 2"):
        EnKG(num_particles=1)
