"""Samples as batches: what a batch holds, how it shrinks when memory is short, and what methods say of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invsolve.inference import solve
from invsolve.operators import MatrixOperator, PoissonNoise
from invsolve.priors import GaussianMixturePrior, Prior
from invsolve.samplers import DAPS, DPS, RSD, TDS
from invsolve.samplers.batches import LARGEST_PIECE

SHAPE = (1, 2, 3)
QUICK = DAPS(5, 1, sigma_max=5.0, prior_std=0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture() -> GaussianMixturePrior:
    return GaussianMixturePrior([0.4, 0.6], normal(2, *SHAPE) / 2, 0.1)


def matrix() -> MatrixOperator:
    return MatrixOperator(normal(4, 6, seed=5), SHAPE)


class Small(Prior):
    """A device with memory for a few images, in the forward pass or in the backward one; notes what it was asked."""

    def __init__(self, most: int, backward: bool = False) -> None:
        super().__init__()
        self.inner, self.most, self.backward = mixture(), most, backward
        self.sizes: list[int] = []

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most and not self.backward:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        denoised = self.inner.denoise(x, sigma)
        if denoised.requires_grad:
            denoised.register_hook(self._fail)  # type: ignore[no-untyped-call]
        return denoised

    def _fail(self, gradient: Tensor) -> None:
        if len(gradient) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_samples_and_images_share_a_batch() -> None:
    prior = Small(1000)
    solve(normal(3, 4), matrix(), noise_std=0.1, prior=prior, method=QUICK, num_samples=5)
    assert prior.sizes == [15] * 5
    prior = Small(1000)
    solve(normal(3, 4), matrix(), noise_std=0.1, prior=prior, method=QUICK, num_samples=5, batch_size=4)
    assert prior.sizes == [4] * 15 + [3] * 5
    prior = Small(1000)  # counting noise: an image has a measurement of its own
    operator = MatrixOperator(matrix().matrix.abs(), SHAPE)
    solve(normal(2, 4).abs(), operator, noise=PoissonNoise(0.1), prior=prior, method=QUICK, num_samples=5)
    assert prior.sizes == [5] * 10


def test_a_batch_is_as_large_as_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST_PIECE, "cpu", 25)  # pixel values: 4 images of 6
    prior = Small(1000)
    solve(normal(1, 4), matrix(), noise_std=0.1, prior=prior, method=QUICK, num_samples=6)
    assert prior.sizes == [4] * 5 + [2] * 5
    prior = Small(1000)  # two entries of two particles each
    solve(normal(1, 4), matrix(), noise_std=0.1, prior=prior, method=TDS(3, 2), num_samples=3)
    assert set(prior.sizes) == {4, 2}


@pytest.mark.parametrize(("method", "backward"), [(QUICK, False), (DPS(5, 2.0), False), (DPS(5, 2.0), True)])
def test_a_gpu_out_of_memory_halves_the_batch_and_goes_on(method: Any, backward: bool) -> None:
    arguments: dict[str, Any] = {"noise_std": 0.1, "method": method, "num_samples": 5, "seed": 3}
    expected = solve(normal(2, 4), matrix(), prior=Small(1000), **arguments)
    prior, seen = Small(3, backward), []
    ours = solve(
        normal(2, 4), matrix(), prior=prior, callback=lambda step, total, *_: seen.append((step, total)), **arguments
    )
    torch.testing.assert_close(ours.samples, expected.samples, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.info.residual, expected.info.residual, rtol=1e-9)
    assert prior.sizes == [10, 5] + [2] * 25
    assert [step for step, _ in seen] == list(range(1, 26))
    assert {total for _, total in seen} == {25}
    assert expected.info.evaluations == 5


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        solve(normal(1, 4), matrix(), noise_std=0.1, prior=Small(0), method=QUICK, num_samples=3)


def test_particles_of_one_image_are_never_torn_apart() -> None:
    """RSD's samples repel each other: they depend on their number, and on nothing else."""
    arguments: dict[str, Any] = {"noise_std": 0.1, "prior": mixture(), "method": RSD(20, 0.3), "seed": 3}
    y = normal(2, 4)
    four = solve(y, matrix(), num_samples=4, **arguments).samples
    for size in (1, 4, 6):
        other = solve(y, matrix(), num_samples=4, batch_size=size, **arguments).samples
        torch.testing.assert_close(other, four, rtol=1e-9, atol=1e-9)
    two = solve(y, matrix(), num_samples=2, **arguments).samples
    assert float((two - four[:2]).abs().max()) > 1e-3


def test_particle_filters_report_their_effective_sample_size() -> None:
    posterior = solve(normal(2, 4), matrix(), noise_std=0.1, prior=mixture(), method=TDS(5, 8), num_samples=3)
    ess = np.array(posterior.info.diagnostics["smallest_ess"])
    assert ess.shape == (3, 2)
    assert bool(((ess >= 1) & (ess <= 8)).all())
    assert len(np.unique(ess)) > 3
    assert posterior.info.as_dict()["diagnostics"] == posterior.info.diagnostics
    assert solve(normal(1, 4), matrix(), noise_std=0.1, prior=mixture(), method=QUICK).info.diagnostics == {}
