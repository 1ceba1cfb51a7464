"""Splitting methods against laws that are derived here independently, and what all of them promise.

Mutants tried, each turning a test of this file red: likelihood doubled, noise divided by sqrt(2), last step dropped,
repulsion left out. `tests/samplers/test_mutants_split.py` runs them.
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
    assert_callback,
    assert_law,
    assert_posterior,
    assert_seeded,
    dense_problem,
    pair_measurement,
    shrinkage,
)
from torch import Tensor

from invsolve.operators import FunctionOperator, GaussianNoise, Identity, MatrixOperator, Measurement, Operator
from invsolve.operators import standard_normal as white
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.samplers import FLAIR, OTODE, PMRF, RSD, DFlow, DiffPIR, FlowDPS, PnPDM, PnPFlow, REDDiff
from invsolve.samplers.base import Sampler

EYE = torch.eye(2, dtype=torch.float64)
SEEN = torch.diag(OBSERVE)


def karras(first: float, last: float, count: int) -> list[float]:
    position = torch.arange(count, dtype=torch.float64) / (count - 1)
    return ((first ** (1 / 7) + position * (last ** (1 / 7) - first ** (1 / 7))) ** 7).tolist()  # type: ignore[no-any-return]


# --- PnP-DM -----------------------------------------------------------------------------------------------------------


def pnpdm_law(sampler: PnPDM, tau: float) -> tuple[Tensor, Tensor]:
    """Slope and covariance of the last x, by carrying both through every Gibbs half-step."""
    slope, covariance = torch.zeros(2, dtype=torch.float64), EYE
    grid = karras(sampler.sigma_max, sampler.sigma_min, sampler.grid_steps)
    for k in range(sampler.num_steps):
        rho = max(sampler.rho_max * sampler.rho_decay**k, sampler.rho_min)
        if sampler.inner == "exact":
            h_inverse = torch.linalg.inv(EYE / rho**2 + SEEN / tau**2)
            slope = h_inverse @ (slope / rho**2 + OBSERVE / tau**2)
            covariance = h_inverse @ covariance @ h_inverse / rho**4 + h_inverse
        else:
            # v' = F v + eta (c / rho^2 + y / tau^2) + noise, from v = c: v_n = F^n c + (1 + F + ...) (...)
            step, eta = EYE, sampler.step_size
            total, noise = torch.zeros_like(EYE), torch.zeros_like(EYE)
            factor = EYE - eta * (EYE / rho**2 + SEEN / tau**2)
            for _ in range(sampler.inner_steps):
                total, noise, step = factor @ total + EYE, factor @ noise @ factor.T + 2 * eta * EYE, factor @ step
            transition = step + eta / rho**2 * total
            slope = transition @ slope + eta / tau**2 * total @ OBSERVE
            covariance = transition @ covariance @ transition.T + noise
        for a, b in pairwise([rho, *(s for s in grid if s < rho), 0.0]):
            shrink, ratio = shrinkage(a), (b / a) ** 2
            if sampler.prior_step == "ancestral":
                c = sampler.prior_std  # Var[x_b | x_a] of x_b ~ N(0, c^2 + b^2), x_a = x_b + sqrt(a^2 - b^2) n
                variance = 1 / (1 / (c**2 + b**2) + 1 / (a**2 - b**2)) if c**2 + b**2 > 0 else 0.0
                transition = shrink + ratio * (EYE - shrink)
            elif sampler.prior_step == "ode":
                transition, variance = EYE - (a - b) / a * (EYE - shrink), 0.0
            else:
                transition, variance = EYE - 2 * (a - b) / a * (EYE - shrink), 2 * a * (a - b) if b > 0 else 0.0
            slope, covariance = transition @ slope, transition @ covariance @ transition.T + variance * EYE
    return slope, covariance


def pnpdm(**settings: object) -> PnPDM:
    few: dict[str, object] = {"num_steps": 7, "rho_max": 4.0, "rho_decay": 0.6, "rho_min": 0.4, "grid_steps": 12}
    return PnPDM(**few | {"sigma_max": 15.0, "sigma_min": 0.25, "begin": "noise"} | settings)  # type: ignore[arg-type]


PNPDM = {
    "pnpdm": pnpdm(),
    "pnpdm-wide": pnpdm(prior_std=0.5),
    "pnpdm-sde": pnpdm(prior_step="sde"),
    "pnpdm-ode": pnpdm(prior_step="ode"),
    "pnpdm-langevin": pnpdm(inner="langevin", inner_steps=15, step_size=0.02),
}


@pytest.mark.parametrize("name", PNPDM)
def test_law_of_pnpdm(name: str) -> None:
    measurement = pair_measurement(0.3, batch=4)
    samples = PNPDM[name](measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    assert_law(samples, measurement.y, *pnpdm_law(PNPDM[name], 0.3))


@pytest.mark.parametrize("rows", [2, 8])
def test_pnpdm_converges_to_the_posterior_of_a_gaussian(rows: int) -> None:
    generator = torch.Generator().manual_seed(7)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    mean = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3)
    prior = GaussianPrior(mean, root @ root.T / 6 + 0.1 * torch.eye(6))
    measurement = dense_problem(rows, 0.3, prior, 3000)
    sampler = PnPDM(100, 8.0, 0.06, 0.93, grid_steps=20, sigma_max=20.0, sigma_min=0.01, prior_std=0.8)
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(1))
    assert_posterior(samples, prior.posterior(measurement.operator, measurement.y[0], 0.3))


# --- RED-diff ---------------------------------------------------------------------------------------------------------


def ddim_levels(num_steps: int) -> list[float]:
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    timesteps = [1000 * k // num_steps for k in reversed(range(num_steps))]
    return [math.sqrt((1 - float(abar[t])) / float(abar[t])) for t in timesteps]


def reddiff_objective(sampler: REDDiff, measurement: Measurement, seed: int) -> Tensor:
    """The same stochastic programme through autograd and torch's Adam, on losses instead of gradients."""
    generator = torch.Generator().manual_seed(seed)
    y = measurement.y
    mu = (y / (1 + (0.3 / 0.5) ** 2)).requires_grad_()
    adam = torch.optim.Adam([mu], sampler.step_size, betas=(0.9, 0.99))
    for sigma in ddim_levels(sampler.num_steps):
        noise = torch.randn(mu.shape, generator=generator, dtype=torch.float64)
        noisy = mu.detach() + sigma * noise
        predicted = (noisy - torch.einsum("ij,bjhw->bihw", shrinkage(sigma), noisy)) / sigma
        data = 0.5 * (y - OBSERVE[:, None, None] * mu).square().flatten(1).mean(1)
        prior = sampler.lam * sigma * ((predicted - noise) * mu).flatten(1).mean(1)
        adam.zero_grad()
        (data + prior).sum().backward()
        adam.step()
    return mu.detach()


def summary(samples: Tensor, y: Tensor) -> Tensor:
    """Per channel: slope on the data, and variance about it."""
    data = y[:, 0]
    rows = []
    for channel in range(2):
        slope = (samples[:, channel] * data).sum() / data.square().sum()
        rows.append(torch.stack([slope, (samples[:, channel] - slope * data).square().mean()]))
    return torch.stack(rows)


def test_reddiff_is_adam_on_the_papers_objective() -> None:
    sampler = REDDiff(10, step_size=0.1, lam=0.4)
    measurement = pair_measurement(0.3, batch=4)
    samples = sampler(measurement, PairPrior(), generator=torch.Generator().manual_seed(3))
    ours = summary(samples, measurement.y)
    reference = torch.stack([summary(reddiff_objective(sampler, measurement, k), measurement.y) for k in range(4)])
    expected, spread = reference.mean(0), reference.std(0)
    # four references with the statistical error of ours: five of their spreads, and 1 % for their own error
    assert bool(((ours - expected).abs() < 5 * spread + 0.01 * expected.abs()).all()), (ours, expected, spread)


# --- RSD --------------------------------------------------------------------------------------------------------------


def rsd_objective(sampler: RSD, measurement: Measurement, groups: list[list[int]], prior: GaussianPrior) -> Tensor:
    """RSD's two losses and log-kernel through autograd and torch's Adam, with the noise that the sampler draws."""
    y, operator = measurement.y, measurement.operator
    generator = torch.Generator().manual_seed(3)
    first = operator.pseudo_inverse(y, (0.1 / 0.5) ** 2)  # type: ignore[operator]
    x, z = first.clone().requires_grad_(), first.clone().requires_grad_()
    adam = torch.optim.Adam([x, z], sampler.step_size, betas=(0.9, 0.99))
    for sigma in ddim_levels(sampler.num_steps):
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        noisy = z.detach() + sigma * noise
        denoised = prior.denoise(noisy, sigma)
        push = torch.zeros_like(denoised)
        for group in groups:
            if len(group) > 1:
                f = denoised[group].flatten(1)
                pairs = torch.stack([(f[a] - f[b]).norm() ** 2 for a in range(len(f)) for b in range(len(f)) if a != b])
                h = pairs.sort().values[(len(pairs) - 1) // 2] / math.log(len(group))
                for a, k in enumerate(group):
                    moving = f[a].clone().requires_grad_()
                    kernel = sum(torch.exp(-(moving - f[b]).square().sum() / h) for b in range(len(f)))
                    (push[k].view(-1)[:],) = torch.autograd.grad(-torch.log(kernel), moving)
        target = (noisy - denoised) / sigma - noise - sampler.repulsion * sigma / math.sqrt(1 + sigma**2) * push
        data = 0.5 * (y - operator(x)).square().flatten(1).mean(1)
        coupling_x = 0.5 * sampler.rho * (x - z.detach()).square().flatten(1).mean(1)
        coupling_z = 0.5 * (x.detach() - z).square().flatten(1).mean(1)
        score = sampler.weight / sampler.rho * sigma * (target * z).flatten(1).mean(1)
        adam.zero_grad()
        (data + coupling_x + coupling_z + score).sum().backward()
        adam.step()
    return x.detach()


def particle_problem() -> tuple[Measurement, GaussianPrior]:
    prior = GaussianPrior(torch.zeros(1, 2, 3, dtype=torch.float64), 0.5)
    measurement = dense_problem(3, 0.1, prior, 6)
    y = measurement.y * torch.tensor([1.0, -2.0, 1.0, 0.5, -2.0, 1.0], dtype=torch.float64)[:, None]
    return Measurement(y, measurement.operator, measurement.noise), prior


def test_rsd_is_adam_on_the_papers_objectives() -> None:
    sampler = RSD(8, repulsion=5.0)
    measurement, prior = particle_problem()
    samples = sampler(measurement, prior, generator=torch.Generator().manual_seed(3))
    expected = rsd_objective(sampler, measurement, [[0, 2, 5], [1, 4], [3]], prior)
    torch.testing.assert_close(samples, expected, rtol=1e-8, atol=1e-8)


def test_particles_keep_apart() -> None:
    """Two modes the data cannot tell apart: alone the particles lie close together within one, repelled they spread."""
    prior = GaussianPrior(torch.zeros(1, 4, 4, dtype=torch.float64), 0.5)
    matrix = torch.eye(16, dtype=torch.float64)[:8]
    measurement = Measurement(torch.zeros(6, 8).double(), MatrixOperator(matrix, (1, 4, 4)), GaussianNoise(0.05))
    spread = {}
    for repulsion in (0.0, 20.0):
        x = RSD(60, repulsion=repulsion)(measurement, prior, generator=torch.Generator().manual_seed(0))
        spread[repulsion] = float(x.flatten(1)[:, 8:].std(0).mean())
    assert spread[20.0] > 1.3 * spread[0.0], spread


def test_repulsion_of_features() -> None:
    """Features that see one pixel alone push that pixel alone."""
    from invsolve.samplers.rsd import repulsive_force

    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    force = repulsive_force(x, torch.ones(3, 3, dtype=torch.bool), lambda image: image.flatten(1)[:, :1])
    assert bool((force.flatten(1)[:, 0] != 0).all())
    assert float(force.flatten(1)[:, 1:].abs().max()) == 0
    assert float(repulsive_force(x[:1], torch.ones(1, 1, dtype=torch.bool)).abs().max()) == 0
    twins = x[:1].expand(2, -1, -1, -1)
    assert float(repulsive_force(twins, torch.ones(2, 2, dtype=torch.bool)).abs().max()) == 0


# --- invariances ------------------------------------------------------------------------------------------------------

ALL: dict[str, Sampler] = {
    "pnpdm": PnPDM(6, 2.0, 0.1, 0.6, grid_steps=10),
    "pnpdm-langevin": PnPDM(4, 2.0, 0.1, 0.4, grid_steps=10, inner="langevin", inner_steps=20, step_size=1e-3),
    "reddiff": REDDiff(10),
    "rsd": RSD(10),
    "diffpir-gradient": DiffPIR(8, lam=1000.0, weighting="vp", data_step="gradient", begin="noise", clip=True),
    "flair": FLAIR(8),
    "flair-steps": FLAIR(8, data_step=0.3, projection=True),
    "pnpflow": PnPFlow(8, num_draws=2),
    "flowdps": FlowDPS(8, step_size=0.2, residual="pseudo_inverse"),
    "otode": OTODE(8, guidance="decaying"),
    "dflow": DFlow(6, ode_steps=2),
    "pmrf": PMRF(lambda m: m.operator.adjoint(m.y) if hasattr(m.operator, "adjoint") else m.y, lambda z, s: -s * z, 5),
}
NONLINEAR = sorted(ALL.keys() - {"pnpdm", "otode"})


def mixture() -> GaussianMixturePrior:
    means = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return GaussianMixturePrior([0.4, 0.6], means, 0.3, (-9, 9))


@pytest.mark.parametrize("name", ALL)
def test_an_entry_does_not_depend_on_its_neighbours(name: str) -> None:
    measurement = dense_problem(4, 0.1, mixture(), 5)
    y = measurement.y * torch.tensor([1.0, 1e4, 0.7, -3.0, 0.0], dtype=torch.float64)[:, None]
    generators = [torch.Generator().manual_seed(k) for k in range(5)]
    together = ALL[name](Measurement(y, measurement.operator, measurement.noise), mixture(), generator=generators)
    for k in (0, 2):
        alone = ALL[name](
            Measurement(y[k : k + 1], measurement.operator, measurement.noise),
            mixture(),
            generator=[torch.Generator().manual_seed(k)],
        )
        torch.testing.assert_close(alone[0], together[k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_equal_seeds_give_equal_samples_and_leave_the_global_generator_alone(name: str) -> None:
    assert_seeded(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_a_callback_sees_every_step_and_can_stop(name: str) -> None:
    assert_callback(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_noiseless_data_and_single_precision(name: str) -> None:
    exact = dense_problem(4, 0.0, mixture(), 2)
    assert isinstance(exact.operator, MatrixOperator)
    operator = MatrixOperator(exact.operator.matrix.float(), (1, 2, 3))
    measurement = Measurement(exact.y.float(), operator, GaussianNoise(0.0))
    x = ALL[name](measurement, mixture().float(), generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())


class Squash(Operator):
    """Nonlinear: saturating pixels."""

    def __init__(self) -> None:
        super().__init__((1, 2, 3), (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_operators(name: str) -> None:
    """The samples explain the data better than draws of the prior do (PMRF takes what its estimator gives)."""
    prior = GaussianPrior(torch.zeros(1, 2, 3, dtype=torch.float64), 0.5)
    truth = prior.sample(1, torch.Generator().manual_seed(8))
    measurement = Measurement(torch.tanh(truth).expand(20, -1, -1, -1), Squash(), GaussianNoise(0.05))
    x = ALL[name](measurement, prior, generator=torch.Generator().manual_seed(0))
    assert x.shape == (20, 1, 2, 3)
    random = prior.sample(500, torch.Generator().manual_seed(9))
    error, baseline = ((torch.tanh(v) - torch.tanh(truth)).square().mean() for v in (x, random))
    assert float(error) < (1.0 if name == "pmrf" else 0.6) * float(baseline), (float(error), float(baseline))


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"pmrf"}))
def test_complex_measurements_of_two_channel_images(name: str) -> None:
    """Half of the Fourier coefficients of a complex image, as in MRI: the samples fit them better than black does."""
    keep = (torch.arange(4) % 2 == 0).double()[:, None]

    def forward(x: Tensor) -> Tensor:
        return keep * torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho")

    def adjoint(y: Tensor) -> Tensor:
        image = torch.fft.ifft2(keep * y, norm="ortho")
        return torch.stack([image.real, image.imag], 1)

    operator = FunctionOperator(forward, adjoint, (2, 4, 5), (4, 5))
    prior = GaussianPrior(torch.zeros(2, 4, 5, dtype=torch.float64), 0.5)
    truth = prior.sample(3, torch.Generator().manual_seed(0))
    y = GaussianNoise(0.05).sample(operator(truth), torch.Generator().manual_seed(2))
    x = ALL[name](Measurement(y, operator, GaussianNoise(0.05)), prior, generator=torch.Generator().manual_seed(1))
    assert x.dtype == torch.float64
    assert float((operator(x) - y).abs().square().sum()) < 0.8 * float(y.abs().square().sum())


@pytest.mark.parametrize("sampler", [PnPDM(3), OTODE(3), DiffPIR(3)], ids=lambda s: s.name())
def test_solves_need_a_linear_operator(sampler: Sampler) -> None:
    measurement = Measurement(torch.zeros(1, 1, 2, 3), Squash(), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="needs a linear operator, Squash is not"):
        sampler(measurement, mixture())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: REDDiff(weighting="cubic"), "weighting is 'cubic'; expected one of linear"),  # type: ignore[arg-type]
        (lambda: FLAIR(t_min=1.0), "t_min is 1.0; expected 0 <= t_min < 1"),
        (lambda: FLAIR(10, weights=(0.5, 0.5)), "2 weights for 10 steps"),
        (lambda: OTODE(start_time=0.0), "start_time is 0.0; expected"),
        (lambda: DiffPIR(3, begin="measurement")(dense_problem(4, 0.1, mixture(), 1), mixture()), "y to be an image"),
    ],
)
def test_bad_settings(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_white_noise_is_the_library_s() -> None:
    """The reference programmes above draw as the samplers do."""
    like = torch.zeros(2, 3, dtype=torch.float64)
    mine = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(white(like, torch.Generator().manual_seed(3)), mine)
    assert Identity((1,)).in_shape == (1,)
