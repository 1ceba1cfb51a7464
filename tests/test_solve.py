"""The front door: kinds in and out, seeds, records, exact posteriors in image units, and every bad input's sentence.

Mutants tried, each turning tests of this file red: whitening weights squared, whitened y left unweighted, seed of the
batch's first image for all, generator from the sample index alone or from the seed alone, `num_measured` ignored in the
residual, complex entries counted once, samples left in model units, evaluations not divided by the number of samples,
another range for the prior, callback steps not counted over samples, lost pixels of y kept, a prior's initial weights
drawn from the global generator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invsolve.inference import CountedPrior, Posterior, _moved, _tiled, solve
from invsolve.operators import GaussianNoise, Identity, LinearOperator, Mask, MatrixOperator, Operator, PoissonNoise
from invsolve.priors import GaussianMixturePrior, GaussianPrior, Prior, TiledPrior, UNetConfig, UNetPrior
from invsolve.priors.conversions import from_denoised
from invsolve.samplers import DAPS, DDS, DPS, MCG

SHAPE = (1, 2, 3)
QUICK = DAPS(5, 1, sigma_max=5.0, prior_std=0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(variance: float = 0.25) -> GaussianPrior:
    return GaussianPrior(normal(*SHAPE) / 3, variance)


def mixture() -> GaussianMixturePrior:
    return GaussianMixturePrior([0.4, 0.6], normal(2, *SHAPE) / 2, 0.1)


def matrix(rows: int = 4) -> MatrixOperator:
    return MatrixOperator(normal(rows, 6, seed=5), SHAPE)


class Square(Operator):
    """Nonlinear: squares."""

    def __init__(self) -> None:
        super().__init__(SHAPE, SHAPE)

    def forward(self, x: Tensor) -> Tensor:
        return x**2


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_numpy_in_numpy_out() -> None:
    y = normal(3, 4)
    as_tensor = solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK, num_samples=2)
    as_array = solve(y.numpy(), matrix(), noise_std=0.1, prior=mixture(), method=QUICK, num_samples=2)
    assert isinstance(as_tensor.samples, Tensor)
    assert isinstance(as_array.samples, np.ndarray)
    assert as_tensor.samples.shape == as_array.samples.shape == (2, 3, *SHAPE)
    np.testing.assert_array_equal(as_array.samples, as_tensor.samples.numpy())
    for name in ("mean", "std"):
        ours, theirs = getattr(as_array, name), getattr(as_tensor, name)
        assert isinstance(ours, np.ndarray)
        assert isinstance(theirs, Tensor)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)
    torch.testing.assert_close(as_tensor.std, as_tensor.samples.std(0))
    torch.testing.assert_close(as_tensor.mean, (as_tensor.samples[0] + as_tensor.samples[1]) / 2)


def test_one_sample_has_no_spread() -> None:
    for y in (normal(1, 4), normal(1, 4).numpy()):
        posterior = solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK)
        assert posterior.std.shape == (1, *SHAPE)
        assert not posterior.std.any()
        assert (posterior.mean == posterior.samples[0]).all()


def test_one_measurement_without_batch_dimension() -> None:
    y = normal(1, 4)
    alone = solve(y[0], matrix(), noise_std=0.1, prior=mixture(), method=QUICK)
    batch = solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK)
    assert torch.equal(alone.samples, batch.samples)


@pytest.mark.parametrize("method", ["daps", "dds", "dps", "mcg"])
@pytest.mark.parametrize("types", ["yop", "yp", "op", "y", "o", "p", ""])
def test_any_mix_of_float32_and_float64(method: str, types: str) -> None:
    """y, operator and prior in float64 where named; the operator decides what is computed in."""
    y, operator, prior = normal(1, 4).float(), matrix().float(), gaussian().float()
    operator = operator.double() if "o" in types else operator
    prior = prior.double() if "p" in types else prior
    y = y.double() if "y" in types else y
    # Equal ranges: no offset, whose subtraction would hide a type that is left over.
    sampler = {"daps": DAPS(3, 1), "dds": DDS(5), "dps": DPS(5, 1.0), "mcg": MCG(5, 1.0)}[method]
    posterior = solve(y, operator, noise_std=0.1, prior=prior, method=sampler, data_range=(-1.0, 1.0))
    assert posterior.samples.dtype == operator.dtype
    assert bool(torch.isfinite(posterior.samples).all())


def test_the_range_of_the_images_is_the_priors_unless_given() -> None:
    y, prior = normal(1, 4).float(), gaussian().float()

    def samples(**given: tuple[float, float]) -> torch.Tensor:
        return solve(y, matrix().float(), noise_std=0.1, prior=prior, method=QUICK, **given).samples  # type: ignore[no-any-return]

    assert torch.equal(samples(), samples(data_range=(0.0, 1.0)))
    prior.image_range = (-1.0, 3.0)
    assert torch.equal(samples(), samples(data_range=(-1.0, 3.0)))
    assert not torch.equal(samples(), samples(data_range=(0.0, 1.0)))


def test_arrays_that_torch_cannot_share() -> None:
    y = normal(1, 4).numpy()
    wanted = solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK).samples
    frozen = y.copy()
    frozen.flags.writeable = False
    reversed_twice = y[:, ::-1].copy()[:, ::-1]
    for same in (frozen, reversed_twice):
        ours = solve(same, matrix(), noise_std=0.1, prior=mixture(), method=QUICK).samples
        np.testing.assert_array_equal(ours, wanted)


def test_the_data_are_not_changed() -> None:
    y = normal(2, 4)
    before = y.clone()
    solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK)
    assert torch.equal(y, before)


def test_images_need_not_have_three_dimensions() -> None:
    prior = GaussianPrior(torch.zeros(6).double(), 0.25)
    posterior = solve(normal(1, 4), MatrixOperator(normal(4, 6)), noise_std=0.1, prior=prior, method=QUICK)
    assert posterior.samples.shape == (1, 1, 6)


# --- seeds ------------------------------------------------------------------------------------------------------------

SAMPLERS = {"daps": DAPS(6, 2), "dds": DDS(8), "dps": DPS(8, 3.0)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_seed_and_index_alone(name: str) -> None:
    y = normal(3, 4) * torch.tensor([[1.0], [30.0], [0.1]])
    arguments: dict[str, Any] = {"noise_std": 0.1, "prior": mixture(), "method": SAMPLERS[name]}
    full = solve(y, matrix(), num_samples=3, seed=11, **arguments).samples
    for changed in ({"batch_size": 1}, {"batch_size": 2}, {"batch_size": 10}, {"seed": [11, 12, 13]}):
        other = solve(y, matrix(), num_samples=3, **{"seed": 11, **arguments, **changed}).samples
        torch.testing.assert_close(other, full, rtol=1e-9, atol=1e-9)
    alone = solve(y[1], matrix(), num_samples=2, seed=12, **arguments).samples
    torch.testing.assert_close(alone[:, 0], full[:2, 1], rtol=1e-9, atol=1e-9)
    picked = solve(y[[2, 0]], matrix(), seed=[13, 11], **arguments).samples
    torch.testing.assert_close(picked[0], full[0, [2, 0]], rtol=1e-9, atol=1e-9)
    assert float((full[0] - full[1]).abs().min()) > 0
    assert float((solve(y[:1], matrix(), seed=5, **arguments).samples - full[:1, :1]).abs().min()) > 0


def test_equal_measurements_get_different_noise() -> None:
    y = normal(1, 4).expand(2, -1)
    samples = solve(y, matrix(), noise_std=0.1, prior=mixture(), method=QUICK).samples
    assert float((samples[0, 0] - samples[0, 1]).abs().min()) > 0


def test_numpy_seeds() -> None:
    y = normal(1, 4)
    arguments: dict[str, Any] = {"noise_std": 0.1, "prior": mixture(), "method": QUICK}
    wanted = solve(y, matrix(), seed=3, **arguments)
    for seed in (np.int64(3), [3], np.array([3]), (3,)):
        ours = solve(y, matrix(), seed=seed, **arguments)
        assert torch.equal(ours.samples, wanted.samples)
        json.dumps(ours.info.as_dict())


def test_the_global_generators_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    UNetPrior(UNetConfig(1, (4,), (1,), 16)).save(path)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for method in SAMPLERS.values():
        for prior in (mixture(), path, UNetPrior.load(path)):
            solve(normal(1, 4), matrix(), noise_std=0.1, prior=prior, method=method, dtype="float32")
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


# --- the record -------------------------------------------------------------------------------------------------------


def test_info() -> None:
    posterior = solve(
        normal(2, 4), matrix(), noise_std=0.1, prior=mixture(), method=DAPS(6, 3), num_samples=4, seed=9, batch_size=1
    )
    info = posterior.info
    assert isinstance(posterior, Posterior)
    assert info.method == "daps"
    assert info.settings == DAPS(6, 3).settings()
    assert info.evaluations == 18
    assert info.backward_evaluations == 0
    assert info.noise_std == 0.1
    assert info.seed == 9
    assert info.prior == "GaussianMixturePrior"
    assert (info.device, info.dtype) == ("cpu", "auto")
    assert info.seconds > 0
    assert np.array(info.residual).shape == (4, 2)
    assert json.loads(json.dumps(info.as_dict()))["evaluations"] == 18
    guided = solve(normal(2, 4), matrix(), noise_std=0.1, prior=mixture(), method=DPS(7), num_samples=2, seed=[1, 2])
    assert (guided.info.evaluations, guided.info.backward_evaluations) == (7, 7)
    assert guided.info.seed == [1, 2]


def test_the_residual_is_near_one_for_an_exact_sampler() -> None:
    """An exact sampler and data from the model: || A x - y ||^2 / (noise_std^2 m) has mean 1 over the noise."""
    operator, prior = matrix(4), gaussian()
    x = (prior.sample(400, torch.Generator().manual_seed(1)) + 1) / 2
    y = operator(x) + 0.01 * normal(400, 4, seed=2)
    sampler = DAPS(10, 1, sigma_max=10.0, sigma_min=0.02, prior_std=0.5)
    residual = np.array(solve(y, operator, noise_std=0.01, prior=prior, method=sampler).info.residual)
    # x and its sample both explain y: the noise of y, and an independent draw of it
    assert float((residual**2).mean()) == pytest.approx(1.0, abs=0.15)


def test_the_residual_by_hand() -> None:
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    operator = Mask(mask, SHAPE, dtype=torch.float64)
    y = operator(torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    y[..., 0, 1] = 77.0  # a lost pixel: whatever is there does not count
    posterior = solve(y, operator, noise_std=0.1, prior=gaussian(), method=QUICK)
    difference = (posterior.samples[0] - y)[0][mask[None] == 1]
    assert posterior.info.residual[0][0] == pytest.approx(float(difference.norm()) / (0.1 * 2), rel=1e-9)
    noiseless = solve(y, operator, noise_std=0, prior=gaussian(), method=QUICK)
    difference = (noiseless.samples[0] - y)[0][mask[None] == 1]
    assert noiseless.info.residual[0][0] == pytest.approx(float(difference.norm()), rel=1e-9)


class Fourier(Operator):
    """A few complex values of an image, linear but not declared so."""

    def __init__(self) -> None:
        super().__init__(SHAPE, (5,))
        self.register_buffer("matrix", torch.complex(normal(5, 6), normal(5, 6, seed=1)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.matrix.dtype) @ self.matrix.T


def test_complex_measurements() -> None:
    operator = Fourier()
    y = operator(torch.full((1, *SHAPE), 0.6, dtype=torch.float64))
    posterior = solve(y, operator, noise_std=0.1, prior=gaussian(), method=DPS(60, 2.0))
    assert posterior.samples.dtype == torch.float64
    difference = operator(posterior.samples[0]) - y
    assert posterior.info.residual[0][0] == pytest.approx(float(difference.abs().norm()) / (0.1 * 10**0.5), rel=1e-9)
    with pytest.raises(ValueError, match="y is real, but Fourier gives complex measurements"):
        solve(y.real, operator, noise_std=0.1, prior=gaussian())
    with pytest.raises(ValueError, match="y is complex, but MatrixOperator gives real measurements"):
        solve(normal(1, 4) + 0j, matrix(), noise_std=0.1, prior=gaussian())


def test_callbacks_count_over_samples_and_batches() -> None:
    seen: list[tuple[int, int, float]] = []

    def record(step: int, total: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        assert x.shape == denoised.shape
        seen.append((step, total, sigma))

    solve(
        normal(3, 4),
        matrix(),
        noise_std=0.1,
        prior=mixture(),
        method=QUICK,
        num_samples=2,
        batch_size=2,
        callback=record,
    )
    assert [step for step, _, _ in seen] == list(range(1, 16))  # 5 steps, 6 samples in batches of 2
    assert {total for _, total, _ in seen} == {15}
    assert seen[0][2] == pytest.approx(5.0)


def test_a_callback_stops_a_batch() -> None:
    posterior = solve(
        normal(1, 4), matrix(), noise_std=0.1, prior=mixture(), method=QUICK, num_samples=3,
        callback=lambda step, total, sigma, x, denoised: step % 5 == 2,
    )  # fmt: skip
    assert posterior.samples.shape == (3, 1, *SHAPE)
    assert posterior.info.evaluations == 2


# --- exact posteriors in image units ----------------------------------------------------------------------------------

EXACT = DAPS(16, 1, sigma_max=10.0, sigma_min=0.02, prior_std=0.5)


def in_image_units(prior: GaussianPrior, data_range: tuple[float, float]) -> GaussianPrior:
    scale = (data_range[1] - data_range[0]) / 2
    return GaussianPrior(data_range[0] + scale * (prior.mean() + 1), scale**2 * prior.covariance())


def assert_posterior(samples: Tensor, exact: GaussianMixturePrior) -> None:
    """z-test of the mean and 15 % on the variance, entry by entry."""
    flat = samples.flatten(1)
    variance = exact.covariance().diagonal()
    z = (flat.mean(0) - exact.mean().flatten()) / (variance / len(flat)).sqrt()
    assert float(z.abs().max()) < 5, z
    ratio = flat.var(0) / variance
    assert float((ratio - 1).abs().max()) < 0.15, ratio


@pytest.mark.parametrize(("data_range", "rows"), [((0.0, 1.0), 2), ((0.0, 255.0), 8), ((-1.0, 1.0), 8)])
def test_the_posterior_is_exact_on_a_white_gaussian(data_range: tuple[float, float], rows: int) -> None:
    prior, operator = gaussian(), matrix(rows)
    truth = in_image_units(prior, data_range)
    noise_std = 0.2 * (data_range[1] - data_range[0])
    y = operator(truth.sample(1, torch.Generator().manual_seed(1))) + noise_std * normal(1, rows, seed=2)
    samples = solve(
        y.expand(1000, -1), operator, noise_std=noise_std, prior=prior, method=EXACT, data_range=data_range
    ).samples[0]
    assert_posterior(samples, truth.posterior(operator, y, noise_std))


def test_noise_that_varies_over_y_is_weighted() -> None:
    """The posterior of y_i with its own standard deviation is that of y_i / std_i with level 1."""
    prior, operator = gaussian(), matrix(5)
    std = torch.tensor([0.05, 2.0, 0.3, 1.0, 0.1], dtype=torch.float64)
    truth = in_image_units(prior, (0.0, 1.0))
    y = operator(truth.sample(1, torch.Generator().manual_seed(1))) + std * normal(1, 5, seed=2)
    weighted = MatrixOperator(operator.matrix / std[:, None], SHAPE)
    posterior = solve(y.expand(1000, -1), operator, noise=GaussianNoise(std), prior=prior, method=EXACT)
    assert_posterior(posterior.samples[0], truth.posterior(weighted, y / std, 1.0))
    assert posterior.info.noise_std == pytest.approx(float(std.mean()))
    residual = (operator(posterior.samples[0]) - y) / std
    np.testing.assert_allclose(posterior.info.residual[0], residual.norm(dim=1).numpy() / 5**0.5, rtol=1e-9)
    # the same said in other ways
    few: dict[str, Any] = {"prior": prior, "method": EXACT}
    one = solve(y, operator, noise_std=std, **few).samples
    for same in (std[None], std.numpy(), std.float()):
        torch.testing.assert_close(solve(y, operator, noise_std=same, **few).samples, one, rtol=1e-5, atol=1e-5)
    equal = solve(y, operator, noise_std=torch.full((5,), 0.2), **few).samples
    torch.testing.assert_close(equal, solve(y, operator, noise_std=0.2, **few).samples, rtol=1e-5, atol=1e-5)


def test_counting_noise_is_gaussian_with_its_own_variance() -> None:
    operator = MatrixOperator(matrix(5).matrix.abs(), SHAPE)
    y = PoissonNoise(0.05).sample(operator(torch.full((1, *SHAPE), 0.5).double()), torch.Generator().manual_seed(0))
    y[0, 0] = 0.0
    std = (0.05 * y.clamp_min(0.05)).sqrt()
    arguments: dict[str, Any] = {"prior": gaussian(), "method": EXACT}
    counted = solve(y, operator, noise=PoissonNoise(0.05), **arguments)
    same = solve(y, operator, noise_std=std, **arguments)
    assert torch.equal(counted.samples, same.samples)
    assert counted.info.noise_std == pytest.approx(float(std.mean()))


def test_noise_that_varies_from_image_to_image() -> None:
    """Image by image, with the seeds and settings of one call each."""
    operator = MatrixOperator(matrix(5).matrix.abs(), SHAPE)
    y = (normal(3, 5).abs() + 0.2) * torch.tensor([[1.0], [2.0], [3.0]])
    each = normal(3, 5, seed=1).abs() + 0.1
    one_level = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    arguments: dict[str, Any] = {"prior": gaussian(), "method": EXACT, "num_samples": 2}
    for noise in (PoissonNoise(0.05), GaussianNoise(each), GaussianNoise(one_level)):
        steps: list[int] = []
        together = solve(
            y, operator, noise=noise, seed=5, callback=lambda step, *_, seen=steps: seen.append(step), **arguments
        )
        assert steps == list(range(1, 3 * 16 + 1))
        assert together.info.evaluations == 16
        levels = []
        for b in range(3):
            own = GaussianNoise(noise.std[b : b + 1]) if isinstance(noise, GaussianNoise) else noise
            alone = solve(y[b : b + 1], operator, noise=own, seed=5 + b, **arguments)
            assert torch.equal(together.samples[:, b : b + 1], alone.samples)
            assert [row[b] for row in together.info.residual] == [row[0] for row in alone.info.residual]
            levels.append(alone.info.noise_std)
        assert together.info.noise_std == pytest.approx(sum(levels) / 3)


def test_lost_pixels_may_hold_nan() -> None:
    operator = Mask(torch.tensor([[1, 0, 1], [1, 1, 0]]), SHAPE, dtype=torch.float64)
    y = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lost = y.clone()
    lost[..., 0, 1] = float("nan")
    arguments: dict[str, Any] = {"noise_std": 0.1, "prior": gaussian(), "method": QUICK}
    assert torch.equal(solve(lost, operator, **arguments).samples, solve(y, operator, **arguments).samples)
    lost[..., 0, 0] = float("nan")
    with pytest.raises(ValueError, match="y holds NaN or Inf"):
        solve(lost, operator, **arguments)


def test_the_callers_modules_stay_as_they_were() -> None:
    """The network runs in evaluation mode, and is back in its own afterwards, also after a failure."""
    operator, network = matrix(), Epsilon()
    network.train()
    seen: list[bool] = []
    arguments: dict[str, Any] = {"prior": network, "prediction": "epsilon", "schedule": "vp", "noise_std": 0.1}
    solve(normal(1, 4), operator, method=QUICK, callback=lambda *_: seen.append(network.training), **arguments)
    assert not any(seen)
    assert network.training

    def fail(*_: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        solve(normal(1, 4), operator, method=QUICK, callback=fail, **arguments)
    assert network.training
    same = _moved(operator, torch.device("cpu"))
    there = _moved(operator, torch.device("meta"))
    assert same is operator
    assert (there.device.type, operator.device.type) == ("meta", "cpu")


def test_the_norm_is_probed_where_the_data_are() -> None:
    seen = set()

    class Difference(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(x.device.type)
            return x

        adjoint = forward

    with pytest.raises(Exception, match=r".*"):  # no numbers on this device
        Difference(SHAPE, SHAPE).norm(device=torch.device("meta"))
    assert seen == {"meta"}


def test_noiseless_data_are_met() -> None:
    operator, x = matrix(3), torch.full((1, *SHAPE), 0.4, dtype=torch.float64)
    for method in ("daps", "dds", "mcg"):
        posterior = solve(operator(x), operator, noise_std=0, prior=gaussian(), method=method, preset="fast")
        assert posterior.info.residual[0][0] < (0.1 if method == "mcg" else 5e-3)


def test_a_nonlinear_operator() -> None:
    x = torch.full((1, *SHAPE), 0.7, dtype=torch.float64)
    posterior = solve(x**2, Square(), noise_std=0.05, prior=gaussian(), preset="balanced")
    assert posterior.info.method == "dps"
    assert posterior.info.residual[0][0] < 8
    for method in ("dds", "mcg", "diffpir"):
        with pytest.raises(ValueError, match=f"{method} needs a linear operator"):
            solve(x**2, Square(), noise_std=0.05, prior=gaussian(), method=method)


def test_daps_by_name_serves_a_nonlinear_operator() -> None:
    x = torch.full((1, *SHAPE), 0.7, dtype=torch.float64)
    posterior = solve(x**2, Square(), noise_std=0.05, prior=gaussian(), method="daps", preset="fast")
    assert posterior.info.settings["inner"] == "langevin"
    assert posterior.info.residual[0][0] < 3


# --- priors -----------------------------------------------------------------------------------------------------------


class Epsilon(nn.Module):
    """The noise-predicting network of a prior, in the coordinates of a linear DDPM schedule."""

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        from invsolve.priors.conversions import DiscreteVPSchedule

        schedule = DiscreteVPSchedule.linear()
        sigma = schedule.sigma(time).reshape(-1, 1, 1, 1)
        x = z * (1 + sigma**2).sqrt()
        return from_denoised(mixture().denoise(x, sigma.flatten()), x, sigma, "epsilon", schedule)


def test_a_bare_network() -> None:
    y = normal(2, 4)
    arguments: dict[str, Any] = {"noise_std": 0.1, "method": DAPS(6, 2, sigma_max=50.0)}
    wrapped = solve(y, matrix(), prior=Epsilon(), prediction="epsilon", schedule="vp", **arguments)
    exact = solve(y, matrix(), prior=mixture(), **arguments)
    torch.testing.assert_close(wrapped.samples, exact.samples, rtol=1e-6, atol=1e-6)
    assert wrapped.info.prior == "Epsilon"
    for half in ({"prediction": "epsilon"}, {"schedule": "vp"}, {}):
        with pytest.raises(ValueError, match=r"a bare network needs prediction=.* and schedule="):
            solve(y, matrix(), prior=Epsilon(), **half, **arguments)
    with pytest.raises(ValueError, match="unknown schedule 'ddpm'"):
        solve(y, matrix(), prior=Epsilon(), prediction="epsilon", schedule="ddpm", **arguments)


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    UNetPrior(UNetConfig(1, (4,), (1,), 16)).save(path, half=False)
    y = normal(1, 4).float()
    arguments: dict[str, Any] = {"noise_std": 0.1, "method": DPS(4, 1.0)}
    by_path = solve(y, matrix().float(), prior=path, dtype="float32", **arguments)
    loaded = UNetPrior.load(path, torch.bfloat16)
    by_object = solve(y, matrix().float(), prior=loaded, dtype="float32", **arguments)
    assert torch.equal(by_path.samples, by_object.samples)
    assert loaded.dtype == torch.bfloat16  # the caller's prior stays as it was
    assert by_path.info.prior == str(path)
    assert not by_path.samples.requires_grad
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        solve(y, matrix().float(), prior=tmp_path / "none.safetensors", **arguments)
    with pytest.raises(ValueError, match="unknown prior 'naturall'; did you mean 'natural'"):
        solve(y, matrix().float(), prior="naturall", **arguments)


def test_tiles() -> None:
    class Local(Prior):
        """Acts on each pixel alone, and counts the pixels it is given at once."""

        largest = 0

        def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            self.largest = max(self.largest, x.shape[-1] * x.shape[-2])
            return x * 0.25 / (0.25 + torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)

    y = torch.rand((1, 1, 90, 100), generator=torch.Generator().manual_seed(0))
    arguments: dict[str, Any] = {"noise_std": 0.1, "method": DAPS(3, 1, sigma_max=2.0)}
    whole, tiled = Local(), Local()
    wanted = solve(y, Identity((1, 90, 100)), prior=whole, tile=None, **arguments)
    ours = solve(y, Identity((1, 90, 100)), prior=tiled, tile=40, **arguments)
    torch.testing.assert_close(ours.samples, wanted.samples, rtol=1e-4, atol=1e-5)
    assert (whole.largest, tiled.largest) == (9000, 1600)
    assert ours.info.evaluations == wanted.info.evaluations == 3

    for shape, tile, side in (
        ((1, 768, 768), "auto", None),
        ((1, 768, 769), "auto", 768),
        ((1, 2000, 2000), None, None),
    ):
        prior = _tiled(Local(), shape, tile)
        assert (prior.tile if isinstance(prior, TiledPrior) else None) == side
    fixed = Local(shape=(1, 1000, 1000))
    assert _tiled(fixed, (1, 1000, 1000), "auto") is fixed


def test_counted_prior_counts_images() -> None:
    counted = CountedPrior(mixture())
    x = normal(3, *SHAPE).requires_grad_()
    counted.denoise(x, 0.5).sum().backward()
    counted.denoise(x.detach(), 0.5)
    assert (counted.forward_count, counted.backward_count) == (6, 3)


@pytest.mark.parametrize("method", ["daps", "dds", "dps", "mcg"])
def test_optional_packages_are_not_needed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/test_imports.py` sees to the import of the package; here, to the calls."""
    for name in ("deepinv", "diffusers", "lpips", "ray", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails
    solve(normal(1, 4), matrix(), noise_std=0.1, prior=mixture(), method=method, preset="fast")


# --- what does not fit ------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"y": normal(2, 4), "operator": matrix(), "noise_std": 0.1, "prior": gaussian(), "method": QUICK}
NAN = torch.full((2, 4), float("nan"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y": NAN}, "y holds NaN or Inf; mask lost entries with a Mask"),
        ({"y": NAN.nan_to_num(float("inf"))}, "y holds NaN or Inf"),
        ({"y": normal(2, 5)}, r"y has shape \(2, 5\), MatrixOperator expects \(batch, 4\)"),
        ({"y": normal(2, 1, 4)}, r"y has shape \(2, 1, 4\)"),
        ({"y": torch.zeros(())}, r"y has shape \(\)"),
        ({"y": torch.zeros(2, 4, dtype=torch.int64)}, "y has type torch.int64; convert it to floating point"),
        ({"y": np.zeros((2, 4), np.uint8)}, "y has type torch.uint8"),
        ({"y": torch.zeros(0, 4)}, "y is an empty batch"),
        ({"noise_std": None}, "give the noise of y: either noise_std"),
        ({"noise": GaussianNoise(0.1)}, "give the noise of y: either noise_std"),
        ({"noise_std": -0.1}, "noise_std is -0.1; expected a finite number >= 0"),
        ({"noise_std": float("nan")}, "noise_std is nan"),
        ({"noise_std": torch.tensor([0.1, 0.1, 0.1, -0.1])}, "expected a finite number >= 0"),
        ({"noise_std": torch.tensor([0.1, 0.1, 0.1, 0.0])}, "noise_std is 0 for some entries of y"),
        ({"noise_std": torch.ones(5)}, r"noise_std has shape \(5,\), which does not broadcast to y, \(1, 4\)"),
        ({"noise_std": torch.ones(1, 1, 4)}, r"noise_std has shape \(1, 1, 4\)"),
        ({"num_samples": 0}, "num_samples is 0; expected at least 1"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 images; pass one number, or one per image"),
        ({"seed": []}, "0 seeds for 2 images"),
        ({"seed": -1}, "seed is -1; expected a number >= 0"),
        ({"seed": [3, -2]}, "seed is -2"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of auto, float32, bfloat16"),
        ({"data_range": (1.0, 0.0)}, r"data_range is \(1.0, 0.0\); expected \(low, high\)"),
        ({"data_range": (0.0, 0.0)}, "low < high"),
        ({"prior": GaussianPrior(torch.zeros(3, 2, 3))}, r"shape \(3, 2, 3\), but the operator takes \(1, 2, 3\)"),
        ({"prior": UNetPrior(UNetConfig(3, (4,), (1,), 16))}, r"\(3, 'any', 'any'\), but the operator takes"),
        ({"method": "dasp"}, "unknown method 'dasp'; did you mean 'daps'"),
        ({"method": "dps", "preset": "fats"}, "unknown preset 'fats'; did you mean 'fast'"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"device": "gpu7"}, "unknown device 'gpu7'"),
        ({"operator": MatrixOperator(torch.zeros(4, 6).double(), SHAPE)}, "maps every image to 0"),
    ],
)  # fmt: skip
def test_bad_input_is_met_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        solve(**{**GOOD, **changes})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device() -> None:
    with pytest.raises(ValueError, match="device is 'cuda', but PyTorch finds no CUDA device here"):
        solve(**GOOD, device="cuda")


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu() -> None:
    """The noise is drawn on the CPU, so the samples are the same up to round-off; also for operators without arrays."""
    y = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for operator in (Identity(SHAPE), matrix(6)):
        data = y if isinstance(operator, Identity) else operator.cpu()(y)
        here = solve(data, operator, noise_std=0.1, prior=mixture(), method=QUICK, device="cpu")
        there = solve(data, operator, noise_std=0.1, prior=mixture(), method=QUICK, device="cuda")
        assert there.samples.device.type == "cpu"
        torch.testing.assert_close(there.samples, here.samples, rtol=1e-4, atol=1e-4)
