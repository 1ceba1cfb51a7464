"""Views of medical slices, simulated anatomy, and the recipes.

Mutants tried, each caught here: views that depend on what was drawn before, a phase that is not smooth or not there,
background not cleared, complex slices treated as magnitudes, contrast curves that change air or leave the range,
patients by number of slices, zoom left out, centres that ignore the body, training on the held-out patients, validation
on the others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invsolve.priors import UNetConfig, UNetPrior
from invsolve.training import RECIPES, find_recipe, psnr_by_sigma, train_prior
from invsolve.training.medical import AttenuationSource, ComplexSource, SliceSource, ct_planes, mri_planes
from invsolve.training.phantoms import phantom
from invsolve.training.prior import _source, _validation
from invsolve.training.slices import Slice


def disc(size: int = 80, radius: float = 24) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    return np.asarray(np.hypot(rows, columns) < radius, dtype=np.float32)


def sources(crop: int = 24) -> list[SliceSource]:
    return [
        ComplexSource([Slice("a_1", 30 * disc()), Slice("b_1", disc() * (1 + 2j))], 1, crop, 0.3, 0),
        AttenuationSource([Slice("a_1", 1040 * disc() - 1000)], 1, crop, 0.3, 0),
    ]


@pytest.mark.parametrize(("index", "channels"), [(0, 2), (1, 1)])
def test_views_follow_from_seed_and_step(index: int, channels: int) -> None:
    source = sources()[index]
    batch = source.batch(6, seed=1, step=7)
    assert batch.shape == (6, channels, 24, 24)
    assert batch.dtype == torch.float32
    assert bool(torch.isfinite(batch).all())
    source.batch(3, seed=1, step=8)
    assert torch.equal(batch, source.batch(6, seed=1, step=7))
    assert not torch.equal(batch, source.batch(6, seed=1, step=8))
    assert not torch.equal(batch, source.batch(6, seed=2, step=7))
    assert all(source.batch(2, seed=0, step=k).shape[-1] == 100 for source in sources(100) for k in range(8))


def test_views_are_scanned_pixels_or_zoomed() -> None:
    """A disc of radius 24 in views that are as large as the slice: turned windows keep its area, zoomed ones do not."""
    source = AttenuationSource([Slice("a_1", 1000 * disc() - 1000)], 0, 80, 0.0, 0)
    areas = (source.batch(60, 0, 0) > -0.5).sum((1, 2, 3)) / disc().sum()
    kept = int(((areas - 1).abs() < 1e-6).sum())
    assert 12 < kept < 40  # 24 expected
    assert float(areas.min()) < 0.6
    assert float(areas.max()) > 1.3


def test_complex_views() -> None:
    source = ComplexSource([Slice("a_1", 500 * disc(120, 50))], 0, 24, 0.0, 0)
    batch = source.batch(64, 0, 0)
    image = torch.complex(batch[:, 0], batch[:, 1])
    magnitude = image.abs()
    assert 0.3 < float(magnitude[magnitude > 0.05].median()) < 1.3
    angles = image[:, 12, 12][magnitude[:, 12, 12] > 0.1].angle()
    assert float(torch.exp(1j * angles).mean().abs()) < 0.35  # any phase, but
    steps = (image[:, 1:] * image[:, :-1].conj())[(magnitude[:, 1:] > 0.1) & (magnitude[:, :-1] > 0.1)].angle().abs()
    assert 0.01 < float(steps.mean()) < 0.2  # from pixel to pixel little of it
    inside = ComplexSource([Slice("a_1", disc(120, 50) + 0.02)], 0, 80, 0.0, 0).batch(60, 0, 0)
    cleared = (inside.square().sum(1) == 0).flatten(1).float().mean(1) > 0.05  # not just ringing at an edge
    assert 10 < int(cleared.sum()) < 50  # half of them have a background of 0, if they see enough of it


def test_complex_slices_keep_their_phase() -> None:
    rows = np.mgrid[:64, :64][0]
    slices = [Slice("a_1", np.exp(1j * np.pi * (rows % 2)).astype(np.complex64))]
    batch = ComplexSource(slices, 0, 32, 0.0, 0).batch(20, 0, 0)
    image = torch.complex(batch[:, 0], batch[:, 1])
    jumps = torch.maximum((image[:, 1:] - image[:, :-1]).abs().mean((1, 2)), (image.diff(dim=2)).abs().mean((1, 2)))
    mean, least = image.abs().mean((1, 2)), image.abs().amin((1, 2))
    assert (
        int(((jumps > 1.4 * mean) & (least > 0.2 * mean)).sum()) > 5
    )  # rows of opposite sign where not zoomed, none lost


def test_attenuation_views() -> None:
    source = AttenuationSource([Slice("a_1", 3300 * disc() - 1000)], 0, 40, 0.0, 0)
    batch = source.batch(64, 0, 0)
    assert float(batch.min()) >= -1.0241
    assert float(batch.max()) <= 3.0711
    corner = batch[:, 0, 0, 0]
    assert float((corner[corner < -0.9] + 1).abs().max()) < 0.025  # air stays air
    assert float(batch.flatten(1).amax(1).std()) > 0.05  # bone does not stay the same


def test_a_patient_with_many_slices_does_not_crowd_out_the_others() -> None:
    slices = [Slice(f"many_{k}", np.zeros((16, 16), np.float32)) for k in range(9)]
    source = AttenuationSource([*slices, Slice("one_1", np.full((16, 16), 3000.0))], 0, 16, 0.0, 0)
    share = float((source.batch(800, 0, 0)[:, 0, 8, 8] > 1).float().mean())
    assert share == pytest.approx(1 / 4, abs=0.05)


def test_views_see_the_body() -> None:
    slices = [Slice("a_1", 1000 * np.pad(disc(40, 15), 180) - 1000)]
    batch = AttenuationSource(slices, 0, 32, 0.0, 0).batch(100, 0, 0)
    assert int((batch > -0.5).flatten(1).any(1).sum()) > 80


def test_units_of_slices() -> None:
    pixels = np.array([[-1024.0, 0.0], [40.0, 4000.0]], np.float32)
    assert ct_planes(Slice("a", pixels)).flatten().tolist() == pytest.approx([-1.024, 0, 0.04, 3.071])
    image = 7 * np.random.default_rng(0).rayleigh(size=(50, 50)) * np.exp(1j)
    planes = mri_planes(Slice("a", image))
    assert float(torch.hypot(planes[0], planes[1]).quantile(0.99)) == pytest.approx(1, rel=1e-3)


def test_phantoms() -> None:
    for modality, low, high in (("ct", -1.3, 2.5), ("mri", 0.0, 1.6)):
        images = [phantom(np.random.default_rng(seed), 64, modality) for seed in range(12)]  # type: ignore[arg-type]
        values = np.stack(images)
        assert values.dtype == np.float32
        assert values.min() >= low
        assert values.max() <= high
        assert (images[0] == phantom(np.random.default_rng(0), 64, modality)).all()  # type: ignore[arg-type]
        background = np.median(values[:, [0, 0, -1, -1], [0, -1, 0, -1]])
        assert background == (-1.0 if modality == "ct" else 0.0)
        assert 0.1 < np.mean(values > values.min() + 0.05) < 0.95


def test_held_out_patients_are_for_validation_only(tmp_path: Path) -> None:
    for value, patient in ((100, "a"), (200, "b"), (300, "c")):
        np.save(tmp_path / f"{patient}_1.npy", np.full((40, 40), value, np.float32))
    settings = replace(find_recipe("ct").settings, crop=16, scenes=0)
    source = _source(tmp_path, settings)
    assert isinstance(source, AttenuationSource)
    assert [float(image.mean()) for image in source.images] == pytest.approx([0.1])
    validation = _validation(tmp_path, UNetPrior(UNetConfig(1, (4,), (1,), 16)), "ct")
    assert [float(image.mean()) * 2 - 1 for image in validation] == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str) -> None:
    settings = find_recipe(name).settings
    assert find_recipe(name) is RECIPES[name]
    size = sum(2 * p.numel() for p in UNetPrior(settings.network).parameters())
    assert size < {3: 10.0e6, 2: 7.5e6, 1: 7.5e6}[settings.network.channels]  # all three in 25 MB


def test_an_unknown_recipe() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'naturel'; did you mean 'natural'"):
        find_recipe("naturel")
    with pytest.raises(ValueError, match="unknown recipe 'x'; expected one of natural, natural-fine, mri, ct"):
        find_recipe("x")


@pytest.mark.parametrize("name", ["mri", "ct"])
def test_training_from_a_folder(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for patient in "abc":
        np.save(data / f"{patient}_1.npy", 1000 * disc() - (1000 if name == "ct" else 0))
    recipe = find_recipe(name).settings
    network = UNetConfig(recipe.network.channels, (8, 16), (1, 1), 16, sigma_data=recipe.network.sigma_data)
    settings = replace(recipe, network=network, steps=80, batch_size=4, crop=32, warmup=5, scenes=1, learning_rate=5e-3)
    prior = train_prior(data, tmp_path / "p.safetensors", settings)
    untrained = psnr_by_sigma(UNetPrior(network), data, sigmas=(0.2,), images=settings.images)
    table = psnr_by_sigma(prior, data, sigmas=(0.2,), images=settings.images)
    assert table[0][1] == untrained[0][1] == pytest.approx(-20 * np.log10(0.2), abs=0.2)
    assert table[0][2] > untrained[0][2] + 1.5


def test_attenuation_is_hounsfield_units_over_1000_in_the_model() -> None:
    """mu = mu_water (1 + HU / 1000) with mu_water 0.02 per mm."""
    low, high = RECIPES["ct"].settings.network.image_range
    water, air = 0.02, 0.0
    assert [(mu - low) / (high - low) * 2 - 1 for mu in (air, water, 2 * water)] == pytest.approx([-1.0, 0.0, 1.0])
