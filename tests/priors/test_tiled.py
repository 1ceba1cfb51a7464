"""Tiles: where the denoiser is local the result must be that of the whole image, to round-off.

Mutants tried, each turning tests of this file red: blending weights that are not normalised, starts off the network's
lattice, no margin thrown away, a weight of 1e-6 there, last tile left out, level of the first entry for all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.priors import Prior, TiledPrior, UNetConfig, UNetPrior
from invsolve.priors.base import expand_sigma

MakePrior = Callable[..., UNetPrior]


class Blur(Prior):
    """A linear 5 x 5 average whose strength depends on sigma; not a denoiser, but local."""

    def __init__(self) -> None:
        super().__init__((None, None, None))
        self.calls: list[tuple[int, ...]] = []

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        share = 1 / (1 + expand_sigma(sigma, x))
        kernel = torch.full((x.shape[1], 1, 5, 5), 1 / 25, dtype=x.dtype)
        return share * x + (1 - share) * F.conv2d(x, kernel, padding=2, groups=x.shape[1])


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [(100, 100), (65, 64), (64, 65), (40, 300), (129, 97), (64, 63)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (48, 20), (30, 12)])
def test_tiles_of_a_local_prior_are_exact(size: tuple[int, int], tile: int, overlap: int) -> None:
    x, sigma = noise(2, 3, *size), torch.tensor([0.1, 2.0])
    torch.testing.assert_close(
        TiledPrior(Blur(), tile, overlap).denoise(x, sigma), Blur().denoise(x, sigma), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("widths", [(4,), (4, 8)])
def test_tiles_of_a_small_unet_are_exact(randomised: MakePrior, widths: tuple[int, ...]) -> None:
    """Its receptive field, 6 or 16 pixels to each side, is within the margin of 16 that is thrown away."""
    prior = randomised(UNetConfig(1, widths, (1,) * len(widths), 16))
    tiled = TiledPrior(prior, tile=160, overlap=64)
    x = noise(1, 1, 170, 301).float()
    torch.testing.assert_close(tiled.denoise(x, 0.7), prior.denoise(x, 0.7), rtol=1e-4, atol=1e-5)


def test_no_seams_where_the_receptive_field_is_larger_than_the_overlap(randomised: MakePrior) -> None:
    prior = randomised(UNetConfig(1, (4, 8, 8), (1, 1, 1), 16))
    x = noise(1, 1, 150, 150).float()
    whole, tiled = prior.denoise(x, 0.7), TiledPrior(prior, tile=96, overlap=32).denoise(x, 0.7)
    difference = (whole - tiled).abs()
    assert 0 < float(difference.max()) < 0.05 * float(whole.std())


def test_small_images_are_not_tiled() -> None:
    prior = Blur()
    x = noise(1, 1, 64, 30)
    assert torch.equal(TiledPrior(prior, 64, 16).denoise(x, 1.0), Blur().denoise(x, 1.0))
    assert prior.calls == [(1, 1, 64, 30)]


def test_no_tile_is_larger_than_asked_and_all_pixels_are_covered() -> None:
    prior = Blur()
    TiledPrior(prior, 64, 16).denoise(noise(1, 1, 100, 160), 1.0)
    assert len(prior.calls) == 3 * 4  # steps of 32, until 100 and 160 are reached
    assert max(shape[-1] for shape in prior.calls) == 64
    assert max(shape[-2] for shape in prior.calls) == 64


@pytest.mark.parametrize("size", [513, 700, 961, 1024, 1056, 1057, 5000])
def test_starts_lie_on_the_lattice_and_the_last_tile_is_nearly_full(size: int) -> None:
    spans = TiledPrior(Blur(), 512, 64)._spans(size)
    assert all(start % 32 == 0 for start, _ in spans)
    assert spans[-1][1] == size
    assert all(stop - start > 512 - 32 for start, stop in spans)
    assert all(stop - start >= 64 for (_, stop), (start, _) in pairwise(spans))


def test_constant_images_stay_constant() -> None:
    class Same(Prior):
        def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return x

    x = torch.ones(1, 1, 150, 170, dtype=torch.float64)
    for tile, overlap in ((64, 1), (64, 2), (64, 31), (33, 16), (5, 2)):
        torch.testing.assert_close(TiledPrior(Same(), tile, overlap).denoise(x, 1.0), x, rtol=1e-14, atol=1e-14)


def test_the_gradient_passes_through_the_tiles() -> None:
    x = noise(1, 1, 90, 80).requires_grad_()
    weights = noise(1, 1, 90, 80)
    (whole,) = torch.autograd.grad((weights * Blur().denoise(x, 1.0)).sum(), x)
    (tiled,) = torch.autograd.grad((weights * TiledPrior(Blur(), 64, 16).denoise(x, 1.0)).sum(), x)
    torch.testing.assert_close(whole, tiled, rtol=1e-10, atol=1e-10)


def test_with_gradients_the_memory_of_one_tile_is_enough(randomised: MakePrior) -> None:
    """What the forward pass keeps for the backward pass does not grow with the network."""
    prior = randomised(UNetConfig(1, (4, 8), (1, 1), 16))
    x = noise(1, 1, 200, 90).float().requires_grad_()
    tiled = TiledPrior(prior, 96, 32)
    kept = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        denoised = tiled.denoise(x, 0.5)
    assert kept < 10 * x.numel()
    (gradient,) = torch.autograd.grad(denoised.square().sum(), x)
    plain = prior.denoise(x[..., :96, :], 0.5)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    torch.testing.assert_close(gradient[..., :40, :], wanted[..., :40, :], rtol=1e-3, atol=1e-4)


def test_it_models_what_its_prior_models(randomised: MakePrior) -> None:
    prior = randomised(UNetConfig(2, (4,), (1,), 16, (0.0, 1.0)))
    tiled = TiledPrior(prior, 64, 16)
    assert (tiled.shape, tiled.data_range) == (prior.shape, prior.data_range)
    assert (tiled.sigma_min, tiled.sigma_max) == (prior.sigma_min, prior.sigma_max)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 32), (64, -1), (0, 0)])
def test_bad_overlaps(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0 < 2 \* overlap < tile"):
        TiledPrior(Blur(), tile, overlap)
