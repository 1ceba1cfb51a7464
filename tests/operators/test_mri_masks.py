"""Sampling masks: how much they sample, where, and that a seed repeats them."""

import numpy as np
import pytest
import torch

from invsolve.operators.mri_masks import (
    acceleration,
    equispaced_mask,
    poisson_disc_mask,
    random_line_mask,
    variable_density_line_mask,
    variable_density_mask,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("width", [320, 368, 257, 99])
@pytest.mark.parametrize(("rate", "fraction"), [(4, 0.08), (8, 0.04)])
def test_equispaced_follows_fastmri(width, rate, fraction):
    """The formula of fastMRI, written with NumPy as there, line for line what its test data holds."""
    low = round(width * fraction)
    spacing = (rate * (low - width)) / (low * rate - width)
    for offset in range(round(spacing)):
        expected = np.zeros(width, np.float32)
        start = (width - low + 1) // 2
        expected[start : start + low] = 1
        expected[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = 1
        assert np.array_equal(equispaced_mask(width, rate, offset=offset).numpy(), expected)


def test_equispaced_at_320_by_hand():
    """26 centre lines of 320 at rate 4: spacing 4 * 294 / 216 = 5.44, so 0, 5, 11, 16, 22, ..."""
    mask = equispaced_mask(320, 4, offset=0)
    assert mask.nonzero().flatten()[:5].tolist() == [0, 5, 11, 16, 22]
    assert bool(mask[147:173].all())
    assert acceleration(mask) == pytest.approx(4, rel=0.03)


def test_equispaced_offsets_come_from_the_seed():
    first = [int(equispaced_mask(320, 8, seed=seed).argmax()) for seed in range(20)]
    assert first == [int(equispaced_mask(320, 8, seed=seed).argmax()) for seed in range(20)]
    assert len(set(first)) > 5


MAKERS = {
    "lines": lambda rate, g: random_line_mask(201, rate, generator=g),
    "polynomial lines": lambda rate, g: variable_density_line_mask(201, rate, generator=g),
    "gaussian lines": lambda rate, g: variable_density_line_mask(201, rate, density="gaussian", generator=g),
    "polynomial": lambda rate, g: variable_density_mask((61, 80), rate, centre=9, generator=g),
    "gaussian": lambda rate, g: variable_density_mask((61, 80), rate, centre=9, density="gaussian", generator=g),
    "uniform": lambda rate, g: variable_density_mask((61, 80), rate, centre=0, density="uniform", generator=g),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rate", [2, 4, 8])
def test_drawn_masks_sample_exactly_what_was_asked(name, rate):
    mask = MAKERS[name](rate, seeded(3))
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert int(mask.sum()) == round(mask.numel() / rate)
    assert torch.equal(mask, MAKERS[name](rate, seeded(3)))
    assert not torch.equal(mask, MAKERS[name](rate, seeded(4)))


def test_centre_squares_surround_the_zero_frequency():
    mask = variable_density_mask((61, 80), 8, centre=9, generator=seeded(0))
    assert bool(mask[30 - 4 : 30 + 5, 40 - 4 : 40 + 5].all())


@pytest.mark.parametrize("density", ["polynomial", "gaussian"])
def test_density_falls_outwards(density):
    masks = [
        variable_density_line_mask(200, 5, centre_fraction=0, density=density, generator=seeded(s)) for s in range(80)
    ]
    mean = torch.stack(masks).mean(0)
    inner, middle, outer = mean[90:110].mean(), mean[50:70].mean(), mean[:20].mean()
    assert inner > 1.5 * middle > 3 * outer


def test_fastmri_random_lines_are_right_in_the_mean():
    counts = [float(random_line_mask(320, 4, exact=False, generator=seeded(s)).sum()) for s in range(200)]
    assert np.mean(counts) == pytest.approx(80, abs=3)
    assert len(set(counts)) > 5


@pytest.mark.parametrize("rate", [4, 8])
def test_poisson_disc_keeps_its_distance(rate):
    mask = poisson_disc_mask((63, 80), rate, centre=0, slope=0, generator=seeded(1))
    assert acceleration(mask) == pytest.approx(rate, rel=0.02)
    points = mask.nonzero().double()
    apart = torch.cdist(points, points) + 1e9 * torch.eye(len(points))
    uniform = variable_density_mask((63, 80), rate, centre=0, density="uniform", generator=seeded(1))
    loose = torch.cdist(uniform.nonzero().double(), uniform.nonzero().double())
    assert float(apart.min()) >= (2**0.5 if rate == 4 else 2)
    assert float((loose + 1e9 * torch.eye(len(loose))).min()) == 1
    assert torch.equal(mask, poisson_disc_mask((63, 80), rate, centre=0, slope=0, generator=seeded(1)))


def test_poisson_disc_thins_outwards():
    mask = poisson_disc_mask((80, 80), 6, centre=10, slope=3, generator=seeded(1))
    assert bool(mask[35:45, 35:45].all())
    assert mask[25:55, 25:55].mean() > 2 * mask[:12].mean()


BAD = [
    (lambda: equispaced_mask(320, 0.5), "acceleration is 0.5"),
    (lambda: equispaced_mask(320, 40, centre_fraction=0.08), "too many"),
    (lambda: equispaced_mask(320, 4, offset=9), "offset is 9"),
    (lambda: random_line_mask(320, 20, centre_fraction=0.08), "the centre alone samples 26"),
    (lambda: random_line_mask(320, 4, centre_fraction=2), "centre_fraction is 2"),
    (lambda: variable_density_mask((20, 20), 8, centre=16), "the centre alone"),
    (lambda: variable_density_mask((20, 20), 4, centre=4, density="box"), "unknown density 'box'"),
    (lambda: poisson_disc_mask((20, 20), 8, centre=16), "16 x 16 centre alone"),
    (lambda: poisson_disc_mask((20, 20), 4.03, centre=0, tolerance=1e-6), "allow a larger tolerance"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD)
def test_bad_requests(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
