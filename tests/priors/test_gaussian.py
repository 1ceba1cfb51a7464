"""Gaussian mixtures: denoiser, density and posterior against finite differences, textbook formulas and sampling.

Mutants tried, each turning tests of this file red: responsibilities from C instead of C + sigma^2 I, basis transposed,
posterior weights without the determinant, noise_std not squared, complex parts interleaved differently for y and A,
prior mean left out of the surprise.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from invsolve.operators import MatrixOperator, Operator
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.priors.gaussian import dense_matrix, real_vector

GOLDEN = Path(os.environ.get("INVSOLVE_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
WEIGHTS = [0.5, 0.3, 0.2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spd(count: int, size: int) -> Tensor:
    root = torch.randn((count, size, size), generator=generator(7), dtype=torch.float64)
    return 0.3 * root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)


def means(shape: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    return torch.randn((3, *shape), generator=generator(1), dtype=torch.float64)


COVARIANCES = {
    "one number": 0.3,
    "numbers": torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64),
    "diagonal": 0.1 + torch.rand((3, 1, 2, 2), generator=generator(2), dtype=torch.float64),
    "full": spd(3, 4),
}


def full(kind: str) -> Tensor:
    """The covariances of COVARIANCES as matrices, made by hand."""
    given, eye = COVARIANCES[kind], torch.eye(4, dtype=torch.float64)
    if isinstance(given, float):
        return given * eye.expand(3, 4, 4)
    if kind == "numbers":
        return given[:, None, None] * eye
    return torch.diag_embed(given.flatten(1)) if kind == "diagonal" else given


def states(sigma: Tensor) -> Tensor:
    noise = torch.randn((len(sigma), 1, 2, 2), generator=generator(3), dtype=torch.float64)
    return means()[torch.arange(len(sigma)) % 3] + (0.5 + sigma)[:, None, None, None] * noise


SIGMA = torch.tensor([0.05, 0.4, 1.0, 6.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_density_denoiser_and_jacobian_from_the_textbook(kind: str) -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES[kind])
    x = states(SIGMA)
    c, mu, eye = full(kind), means().flatten(1), torch.eye(4, dtype=torch.float64)
    for x_i, sigma in zip(x.flatten(1), SIGMA, strict=True):
        noisy = c + sigma**2 * eye
        logs = torch.tensor(WEIGHTS).log() + MultivariateNormal(mu, noisy).log_prob(x_i)
        share = logs.softmax(0)
        gain = c @ torch.linalg.inv(noisy)
        component_means = mu + (gain @ (x_i - mu)[..., None])[..., 0]
        denoised = share @ component_means
        centred = component_means - denoised
        covariance = torch.einsum("k,kij->ij", share, c - gain @ c) + torch.einsum(
            "k,ki,kj->ij", share, centred, centred
        )

        image = x_i.reshape(1, 1, 2, 2)
        torch.testing.assert_close(prior.log_density(image, sigma)[0], logs.logsumexp(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(prior.denoise(image, sigma).flatten(), denoised, rtol=1e-6, atol=1e-7)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, s=sigma: prior.denoise(v.reshape(1, 1, 2, 2), s).flatten(), x_i
        )
        torch.testing.assert_close(jacobian, covariance / sigma**2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_score_is_the_finite_difference_of_the_log_density(kind: str) -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES[kind])
    x, h = states(SIGMA), 1e-5
    score = prior.score(x, SIGMA).flatten(1)
    for i in range(4):
        step = (h * torch.eye(4, dtype=torch.float64)[i]).reshape(1, 1, 2, 2)
        slope = (prior.log_density(x + step, SIGMA) - prior.log_density(x - step, SIGMA)) / (2 * h)
        torch.testing.assert_close(score[:, i], slope, rtol=1e-6, atol=1e-6)


def test_each_entry_has_its_own_level() -> None:
    prior = GaussianMixturePrior(WEIGHTS, means((1, 4, 4)), 0.2)
    x = torch.randn((4, 1, 4, 4), generator=generator(), dtype=torch.float64)  # batch as large as the sides
    together = prior.denoise(x, SIGMA)
    for k in range(4):
        torch.testing.assert_close(together[k : k + 1], prior.denoise(x[k : k + 1], float(SIGMA[k])))


@pytest.mark.parametrize("kind", COVARIANCES)
def test_limits_of_the_denoiser(kind: str) -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES[kind])
    x = states(SIGMA)
    torch.testing.assert_close(prior.denoise(x, 1e-5), x, rtol=0, atol=1e-7)
    torch.testing.assert_close(prior.denoise(x, 1e7), prior.mean().expand_as(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("same", ["diagonal", "full"])
def test_kinds_of_covariance_agree(same: str) -> None:
    scalar = GaussianMixturePrior(WEIGHTS, means(), 0.3)
    value = torch.full((3, 1, 2, 2), 0.3) if same == "diagonal" else 0.3 * torch.eye(4).expand(3, 4, 4)
    other = GaussianMixturePrior(WEIGHTS, means(), value.double())
    x = states(SIGMA)
    torch.testing.assert_close(scalar.denoise(x, SIGMA), other.denoise(x, SIGMA), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scalar.log_density(x, SIGMA), other.log_density(x, SIGMA), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scalar.covariance(), other.covariance(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_moments_of_draws(kind: str) -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES[kind])
    draws = prior.sample(200_000, generator()).flatten(1)
    assert draws.shape == (200_000, 4)
    spread = prior.covariance().diagonal()
    z = (draws.mean(0) - prior.mean().flatten()) / (spread / len(draws)).sqrt()
    assert float(z.abs().max()) < 5
    torch.testing.assert_close(torch.cov(draws.T), prior.covariance(), rtol=0.02, atol=0.02)
    assert torch.equal(prior.sample(5, generator(4)), prior.sample(5, generator(4)))


def test_posterior_against_importance_sampling() -> None:
    """Mean, covariance and component weights from 10^6 prior draws weighted by the likelihood, two dimensions."""
    mu = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    covariances = spd(3, 2)
    prior = GaussianMixturePrior(WEIGHTS, mu, covariances)
    matrix = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    y, noise_std = torch.tensor([0.4], dtype=torch.float64), 0.5
    exact = prior.posterior(MatrixOperator(matrix, (2,)), y, noise_std)

    draws = prior.sample(1_000_000, generator())
    logs = -0.5 * ((y - draws @ matrix.T)[:, 0] / noise_std) ** 2
    weights = logs.softmax(0)
    error = weights.square().sum().sqrt()  # 1 / sqrt(effective sample size)
    mean = weights @ draws
    spread = exact.covariance().diagonal().sqrt()
    assert float(((mean - exact.mean()) / spread).abs().max()) < 5 * error
    centred = draws - mean
    covariance = torch.einsum("n,ni,nj->ij", weights, centred, centred)
    torch.testing.assert_close(covariance, exact.covariance(), rtol=0.01, atol=0.005)
    component = (torch.tensor(WEIGHTS).log() + MultivariateNormal(mu, covariances).log_prob(draws[:, None])).softmax(1)
    assert float((weights @ component - exact.weights).abs().max()) < 5 * error


@pytest.mark.parametrize("kind", COVARIANCES)
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_posterior_density_is_prior_times_likelihood(kind: str, rows: int) -> None:
    """Bayes' rule, including the evidence log sum_k w_k N(y; A mu_k, A C_k A^T + sigma^2 I)."""
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES[kind])
    matrix = torch.randn((rows, 4), generator=generator(5), dtype=torch.float64)
    y, noise_std = torch.randn(rows, generator=generator(6), dtype=torch.float64), 0.3
    exact = prior.posterior(MatrixOperator(matrix, (1, 2, 2)), y[None], noise_std)
    eye = torch.eye(rows, dtype=torch.float64)
    innovation = matrix @ full(kind) @ matrix.T + noise_std**2 * eye
    evidence = (
        torch.tensor(WEIGHTS).log() + MultivariateNormal(means().flatten(1) @ matrix.T, innovation).log_prob(y)
    ).logsumexp(0)
    x = states(SIGMA)
    likelihood = MultivariateNormal(x.flatten(1) @ matrix.T, noise_std**2 * eye).log_prob(y)
    expected = prior.log_density(x) + likelihood - evidence
    torch.testing.assert_close(exact.log_density(x), expected, rtol=1e-6, atol=1e-6)
    assert exact.data_range == prior.data_range


class ComplexMap(Operator):
    """(1, 2, 2) real image -> (2, 3) complex measurement."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), (2, 3))
        self.register_buffer("matrix", torch.randn((6, 4), generator=generator(8), dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(torch.complex128) @ self.matrix.T).reshape(-1, 2, 3)


@pytest.mark.parametrize("batched", [True, False])
def test_posterior_of_complex_data(batched: bool) -> None:
    """Each complex entry is two real measurements of the given standard deviation."""
    operator = ComplexMap()
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES["full"])
    y = operator(means()[:1]) + 0.1
    exact = prior.posterior(operator, y if batched else y[0], 0.4)
    stacked = torch.cat([operator.matrix.real, operator.matrix.imag])
    flat = y.flatten()
    same = prior.posterior(MatrixOperator(stacked, (1, 2, 2)), torch.cat([flat.real, flat.imag]), 0.4)
    torch.testing.assert_close(exact.mean(), same.mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.covariance(), same.covariance(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.weights, same.weights, rtol=1e-9, atol=1e-9)


def test_noiseless_posterior_meets_the_data() -> None:
    matrix = torch.randn((2, 4), generator=generator(5), dtype=torch.float64)
    prior = GaussianMixturePrior(WEIGHTS, means(), 0.3)
    y = torch.tensor([0.5, -1.0], dtype=torch.float64)
    draws = prior.posterior(MatrixOperator(matrix, (1, 2, 2)), y, 0.0).sample(50, generator())
    torch.testing.assert_close(draws.flatten(1) @ matrix.T, y.expand(50, 2), rtol=0, atol=1e-6)


def test_posterior_without_information_is_the_prior() -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES["full"])
    exact = prior.posterior(MatrixOperator(torch.eye(4).double(), (1, 2, 2)), torch.zeros(4).double(), 1e6)
    torch.testing.assert_close(exact.mean(), prior.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact.covariance(), prior.covariance(), rtol=1e-6, atol=1e-6)


def test_a_component_far_from_the_data_keeps_a_finite_posterior() -> None:
    prior = GaussianMixturePrior([0.5, 0.5], torch.tensor([[0.0, 0.0], [1e4, 0.0]]).double(), 0.1)
    exact = prior.posterior(MatrixOperator(torch.eye(2).double(), (2,)), torch.zeros(2).double(), 0.1)
    assert bool(torch.isfinite(exact.denoise(torch.zeros(1, 2).double(), 0.1)).all())
    assert float(exact.mean().abs().max()) < 1e-6


def test_posterior_refuses_data_of_another_length() -> None:
    prior = GaussianPrior(torch.zeros(1, 2, 2).double(), 0.3)
    with pytest.raises(ValueError, match="y has 3 real entries, the operator gives 2"):
        prior.posterior(MatrixOperator(torch.ones(2, 4).double(), (1, 2, 2)), torch.ones(3).double(), 0.1)


def test_a_single_gaussian_is_a_mixture_of_one() -> None:
    mean = means()[0]
    for value in (0.3, torch.rand(1, 2, 2, generator=generator()).double() + 0.1, spd(1, 4)[0]):
        one = GaussianPrior(mean, value)
        torch.testing.assert_close(one.mean(), mean)
        expected = value if isinstance(value, Tensor) and value.ndim == 2 else None
        if expected is None:
            expected = torch.diag(torch.as_tensor(value, dtype=torch.float64).expand(1, 2, 2).flatten())
        torch.testing.assert_close(one.covariance(), expected, rtol=1e-9, atol=1e-12)
    assert one.shape == (1, 2, 2)
    with pytest.raises(ValueError, match="operator takes"):
        one.check_shape((1, 2, 3))


def test_parameters_follow_the_module() -> None:
    prior = GaussianMixturePrior(WEIGHTS, means(), COVARIANCES["full"]).float()
    assert prior.denoise(states(SIGMA).float(), SIGMA).dtype == torch.float32
    assert {"weights", "means", "variances", "basis"} <= set(prior.state_dict())


@pytest.mark.parametrize(
    ("weights", "covariances", "sentence"),
    [
        ([1.0, 1.0], 0.1, r"weights of shape \(2,\) for 3 components"),
        ([1.0, 1.0, 0.0], 0.1, "all > 0"),
        ([1.0, 1.0, -1.0], 0.1, "all > 0"),
        (WEIGHTS, -0.1, "negative variance"),
        (WEIGHTS, torch.ones(2), "do not fit 3 components of size 4"),
        (WEIGHTS, torch.ones(3, 3, 3), "do not fit"),
    ],
)
def test_bad_arguments(weights: list[float], covariances: Tensor | float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GaussianMixturePrior(weights, means(), covariances)


def test_weights_are_normalised() -> None:
    assert GaussianMixturePrior([5.0, 3.0, 2.0], means(), 0.1).weights.tolist() == pytest.approx(WEIGHTS)


def test_dense_matrix_and_real_vector() -> None:
    matrix = torch.randn((3, 4), generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(dense_matrix(MatrixOperator(matrix, (1, 2, 2)), (1, 2, 2), matrix), matrix)
    assert real_vector(torch.tensor([1 + 2j, 3 + 4j])).tolist() == [[1, 3, 2, 4]]
    assert real_vector(torch.zeros(5, 2, 3)).shape == (5, 6)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no recorded trajectories at {GOLDEN}")
def test_recorded_denoiser_values() -> None:
    problem = np.load(GOLDEN / "problem.npz")
    stored = {key: torch.from_numpy(np.asarray(problem[key])).double() for key in problem}
    prior = GaussianMixturePrior(stored["weights"], stored["means"], float(stored["std"]) ** 2)
    ours = prior.denoise(stored["denoiser_input"], stored["denoiser_sigma"])
    torch.testing.assert_close(ours, stored["denoiser_output"], rtol=1e-6, atol=1e-6)
