"""Noise models: densities, moments, and randomness per entry."""

import math

import pytest
import torch

from invsolve.operators import GaussianNoise, PoissonNoise, standard_normal

F64 = torch.float64


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("std", [0.3, torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) + 0.1])
def test_gaussian_log_likelihood(std):
    y, clean = random(3, 4, 5), random(3, 4, 5, seed=1)
    law = torch.distributions.Normal(clean, torch.as_tensor(std, dtype=F64))
    expected = law.log_prob(y).flatten(1).sum(1)
    assert torch.allclose(GaussianNoise(std).log_likelihood(y, clean), expected, rtol=1e-12)


def test_gaussian_log_likelihood_of_complex_numbers():
    y, clean = random(3, 4, dtype=torch.complex128), random(3, 4, seed=1, dtype=torch.complex128)
    parts = torch.distributions.Normal(torch.view_as_real(clean), 0.3).log_prob(torch.view_as_real(y))
    assert torch.allclose(GaussianNoise(0.3).log_likelihood(y, clean), parts.sum((1, 2)), rtol=1e-12)


def test_poisson_log_likelihood():
    gain = 0.25
    clean = random(3, 4, 5).abs() + 0.1
    y = gain * torch.poisson(clean / gain, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Poisson(clean / gain).log_prob(y / gain).flatten(1).sum(1)
    assert torch.allclose(PoissonNoise(gain).log_likelihood(y, clean), expected, rtol=1e-12)


def test_poisson_at_and_below_zero():
    # A clean value below 0 (ringing of a transform) has rate 0, in the density as in the sample.
    noise, clean = PoissonNoise(0.5), torch.tensor([[0.0, -1e-3]], dtype=F64)
    assert noise.sample(clean).tolist() == [[0.0, 0.0]]
    assert noise.log_likelihood(torch.zeros(1, 2, dtype=F64), clean).tolist() == [0.0]
    assert noise.log_likelihood(torch.full((1, 2), 0.5, dtype=F64), clean).tolist() == [-math.inf]


def test_gaussian_statistics():
    clean = torch.full((4, 100_000), 2.0, dtype=F64)
    y = GaussianNoise(0.3).sample(clean, torch.Generator().manual_seed(0))
    assert y.dtype == F64
    assert (y.mean(1) - 2).abs().max() < 5 * 0.3 / math.sqrt(1e5)
    assert (y.std(1) - 0.3).abs().max() < 5 * 0.3 / math.sqrt(2e5)
    assert torch.corrcoef(y).triu(1).abs().max() < 0.02


def test_complex_statistics():
    n = standard_normal(torch.empty(1, 200_000, dtype=torch.complex128), torch.Generator().manual_seed(0))[0]
    assert float(n.real.var()) == pytest.approx(1, abs=0.02)
    assert float(n.imag.var()) == pytest.approx(1, abs=0.02)
    assert abs(float((n.real * n.imag).mean())) < 0.02
    y = GaussianNoise(0.1).sample(torch.zeros(1, 1000, dtype=torch.complex64))
    assert y.dtype == torch.complex64
    assert float(y.abs().square().mean()) == pytest.approx(0.02, rel=0.2)


def test_poisson_statistics():
    gain, level = 0.05, 0.8
    clean = torch.full((2, 200_000), level, dtype=F64)
    y = PoissonNoise(gain).sample(clean, torch.Generator().manual_seed(0))
    assert (y.mean(1) - level).abs().max() < 5 * math.sqrt(gain * level / 2e5)
    assert torch.allclose(y.var(1), torch.tensor(gain * level, dtype=F64), rtol=0.02)
    counts = y / gain
    assert torch.allclose(counts, counts.round(), atol=1e-9)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(0.01)], ids=["gaussian", "poisson"])
def test_an_entry_is_the_same_alone_and_in_a_batch(noise):
    clean = random(3, 2, 5).abs()
    together = noise.sample(clean, seeded(7, 8, 9))
    for entry, seed in enumerate((7, 8, 9)):
        assert torch.equal(noise.sample(clean[entry : entry + 1], seeded(seed))[0], together[entry])
    same = noise.sample(clean[:1].expand(2, 2, 5), seeded(7, 7))
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(0.01)], ids=["gaussian", "poisson"])
def test_seeds_repeat_and_nothing_touches_the_global_generator(noise):
    clean = random(3, 4).abs()
    first = noise.sample(clean, torch.Generator().manual_seed(0))
    assert torch.equal(first, noise.sample(clean, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, noise.sample(clean, torch.Generator().manual_seed(1)))
    state = torch.get_rng_state()
    assert not torch.equal(noise.sample(clean), noise.sample(clean))
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_number_of_generators():
    with pytest.raises(ValueError, match="2 generators for a batch of 3; pass one, or one per entry"):
        GaussianNoise(0.1).sample(torch.zeros(3, 2), seeded(1, 2))
    with pytest.raises(ValueError, match="2 generators for a batch of 3; pass one, or one per entry"):
        PoissonNoise(0.1).sample(torch.zeros(3, 2), seeded(1, 2))


def test_noise_free():
    clean = random(2, 3)
    assert torch.equal(GaussianNoise(0.0).sample(clean), clean)
    y = clean.clone()
    y[1, 2] += 1
    assert GaussianNoise(0.0).log_likelihood(y, clean).tolist() == [math.inf, -math.inf]
    partly = GaussianNoise(torch.tensor([0.0, 0.1, 0.1])).log_likelihood(y, clean)
    assert partly.tolist() == [math.inf, math.inf], "the entry that differs is a noisy one"
    partly = GaussianNoise(torch.tensor([0.1, 0.1, 0.0])).log_likelihood(y, clean)
    assert partly.tolist() == [math.inf, -math.inf]


def test_gaussian_of_a_noise():
    noise = GaussianNoise(0.2)
    assert noise.gaussian(torch.zeros(1, 3)) is noise
    y = torch.tensor([[0.0, 0.1, 0.5, 2.0]])
    std = PoissonNoise(0.1).gaussian(y).std
    assert torch.allclose(std**2, torch.tensor([[0.01, 0.01, 0.05, 0.2]]))


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -0.1])])
def test_bad_std(std):
    with pytest.raises(ValueError, match="expected a finite number >= 0, in the units of y"):
        GaussianNoise(std)


@pytest.mark.parametrize("gain", [0, -1.0, float("nan"), float("inf")])
def test_bad_gain(gain):
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        PoissonNoise(gain)
