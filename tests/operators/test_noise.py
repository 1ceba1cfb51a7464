"""Noise models: densities, moments, and randomness per entry."""

import math

import numpy as np
import pytest
import torch

from invsolve.operators import (
    GaussianNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    StarvedRaysWarning,
    TransmissionNoise,
    standard_normal,
)

special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")

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


# --- counting noise with electronic noise -----------------------------------------------------------------------------


def convolution(counts, rate, std, censored=False):
    """log density of N + std n at `counts` by the plain sum over N = 0 ... 39999 with scipy; P(<= 1) if censored."""
    number = np.arange(40_000)
    law = stats.norm.logcdf((1 - number) / std) if censored else stats.norm.logpdf(counts, number, std)
    return float(special.logsumexp(stats.poisson.logpmf(number, rate) + law))


RATES = (0.0, 1e-6, 0.5, 3.0, 16.0, 18.5, 40.0, 300.0, 1e4)
COUNTS = (-3.0, 0.0, 0.4, 1.0, 16.3, 50.0, 301.0, 1.1e4)


@pytest.mark.parametrize("std", [0.02, 0.3, 1.0, 3.0, 10.0, 60.0])
def test_poisson_gaussian_against_the_convolution(std):
    """From fractions of a count to sums in which only every 20th term is taken; also far out in the tails."""
    gain = 0.2
    noise = PoissonGaussianNoise(gain, std * gain)
    for rate in RATES:
        y, clean = torch.tensor(COUNTS, dtype=F64)[:, None] * gain, torch.full((len(COUNTS), 1), rate * gain, dtype=F64)
        ours = noise.log_likelihood(y, clean)
        exact = [convolution(c, rate, std) - math.log(gain) for c in COUNTS]
        np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("gain", "std", "level"), [(0.2, 0.05, 0.6), (0.2, 2.0, 0.6), (0.01, 0.02, 0.5)])
def test_poisson_gaussian_is_normalised(gain, std, level):
    y = torch.arange(-4_000, 16_000, dtype=F64)[:, None] * (min(gain, std) / 100)
    y = y * (10 if std > 1 else 1)
    density = PoissonGaussianNoise(gain, std).log_likelihood(y, torch.full_like(y, level)).exp()
    assert float(density.sum() * (y[1] - y[0])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("electronic_std", [0.3, 2.0, 15.0])
def test_transmission_against_the_convolution(electronic_std):
    i0 = 200.0
    noise = TransmissionNoise(i0, electronic_std)
    for rate in (0.1, 1.5, 12.0, 90.0, 250.0):
        clean = torch.full((5, 1), -math.log(rate / i0), dtype=F64)
        counts = torch.tensor([1.0, 2.5, 14.0, 90.0, 310.0], dtype=F64)[:, None]
        exact = [convolution(1, rate, electronic_std, censored=True)]
        exact += [convolution(float(c), rate, electronic_std) + math.log(c) for c in counts[1:]]
        ours = noise.log_likelihood(-torch.log(counts / i0), clean)
        np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [0.4, 3.0, 20.0])
def test_transmission_probabilities_add_up(rate):
    i0 = 50.0
    counts = torch.arange(1, 200, dtype=F64)[:, None]  # 1 stands for 0 and 1
    clean = torch.full_like(counts, -math.log(rate / i0))
    total = TransmissionNoise(i0).log_likelihood(-torch.log(counts / i0), clean).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-12)
    noise = TransmissionNoise(i0, 1.5)
    y = torch.linspace(math.log(i0) - 6, math.log(i0) - 1e-2, 50_000, dtype=F64)[:, None]
    density = noise.log_likelihood(y, torch.full_like(y, float(clean[0]))).exp()
    starved = noise.log_likelihood(torch.full((1, 1), math.log(i0), dtype=F64), clean[:1]).exp()
    gap = 1e-2 * float(density[-1])
    assert float(torch.trapezoid(density, y[:, 0]) + starved) + gap == pytest.approx(1, abs=1e-3)


LAWS = {
    "gaussian": GaussianNoise(0.3),
    "gaussian per entry": GaussianNoise(torch.rand(2, 5, generator=torch.Generator().manual_seed(1)).double() + 0.1),
    "poisson": PoissonNoise(0.05),
    "poisson-gaussian": PoissonGaussianNoise(0.05, 0.04),
    "camera": PoissonGaussianNoise(0.001, 0.02),
    "transmission": TransmissionNoise(40.0),
    "transmission, electronic": TransmissionNoise(torch.tensor([[20.0], [60.0]]), 2.5),
}
quiet = pytest.mark.filterwarnings("ignore::invsolve.operators.StarvedRaysWarning")


def example(noise):
    """(y, clean), some rays of it starved."""
    clean = random(3, 2, 5, seed=3).abs() + 0.02
    if isinstance(noise, TransmissionNoise):
        clean = 2.6 * clean
    return noise.sample(clean, torch.Generator().manual_seed(0)), clean


@quiet
@pytest.mark.parametrize("name", LAWS)
def test_the_score_is_the_gradient(name):
    """Against autograd through the likelihood, and against its central differences."""
    noise = LAWS[name]
    y, clean = example(noise)
    if isinstance(noise, TransmissionNoise):
        assert noise.starved(y).any()
        assert not noise.starved(y).all()
    clean.requires_grad_()
    (gradient,) = torch.autograd.grad(noise.log_likelihood(y, clean).sum(), clean)
    score = noise.score(y, clean.detach())
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)
    step = 1e-6
    flat = clean.detach().flatten(1)
    for k in range(0, 10, 3):
        both = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[:, k] += sign * step
            both.append(noise.log_likelihood(y, moved.reshape(clean.shape)))
        torch.testing.assert_close(score.flatten(1)[:, k], (both[0] - both[1]) / (2 * step), rtol=1e-5, atol=1e-5)
    single = noise.score(y.float(), clean.detach().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), score, rtol=2e-3, atol=2e-3)


@quiet
@pytest.mark.parametrize("name", LAWS)
def test_the_score_guides_through_an_operator(name):
    """What posterior sampling needs: the gradient of log p(y | A(D(x))) from the score alone."""
    noise = LAWS[name]
    y, clean = example(noise)
    x = clean.sqrt().requires_grad_()
    (wanted,) = torch.autograd.grad(noise.log_likelihood(y, x**2).sum(), x)
    again = x**2
    (ours,) = torch.autograd.grad(again, x, grad_outputs=noise.score(y, again.detach()))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_the_score_of_complex_measurements():
    noise, y = GaussianNoise(0.3), random(2, 4, dtype=torch.complex128)
    clean = random(2, 4, seed=1, dtype=torch.complex128).requires_grad_()
    (gradient,) = torch.autograd.grad(noise.log_likelihood(y, clean).sum(), clean)
    torch.testing.assert_close(noise.score(y, clean.detach()), gradient)


@pytest.mark.parametrize("noise", [PoissonNoise(0.5), PoissonGaussianNoise(0.5, 0.1)], ids=["poisson", "with gaussian"])
def test_the_score_is_finite_and_leads_back_from_below_zero(noise):
    clean = torch.tensor([[0.0, -1e-3, -5.0, -5.0, 1e-9]], dtype=F64)
    y = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0]], dtype=F64)
    score = noise.score(y, clean)
    assert bool(torch.isfinite(score).all())
    assert bool((score[0, [0, 1, 2, 4]] > 100).all())
    assert score[0, 3] == 0
    assert float(noise.score(y[:, 3:4], torch.zeros(1, 1, dtype=F64))) == pytest.approx(-2.0, rel=1e-2)


def test_gradient_by_y():
    y, clean = example(LAWS["poisson-gaussian"])
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: LAWS["poisson-gaussian"].log_likelihood(v, clean), (y,), fast_mode=True)


def test_poisson_gaussian_statistics():
    gain, std, level = 0.05, 0.1, 0.8
    y = PoissonGaussianNoise(gain, std).sample(
        torch.full((2, 200_000), level, dtype=F64), torch.Generator().manual_seed(0)
    )
    variance = gain * level + std**2
    assert (y.mean(1) - level).abs().max() < 5 * math.sqrt(variance / 2e5)
    assert torch.allclose(y.var(1), torch.tensor(variance, dtype=F64), rtol=0.02)
    skewness = ((y - level) ** 3).mean(1)
    assert torch.allclose(skewness, torch.tensor(gain**2 * level, dtype=F64), rtol=0.3)


@pytest.mark.parametrize("electronic_std", [0.0, 8.0])
def test_transmission_statistics(electronic_std):
    i0, level = 2000.0, 1.2
    noise = TransmissionNoise(i0, electronic_std)
    y = noise.sample(torch.full((2, 200_000), level, dtype=F64), torch.Generator().manual_seed(0))
    mean_counts = i0 * math.exp(-level)
    counts = i0 * torch.exp(-y)
    variance = mean_counts + electronic_std**2
    assert (counts.mean(1) - mean_counts).abs().max() < 5 * math.sqrt(variance / 2e5)
    assert torch.allclose(counts.var(1), torch.tensor(variance, dtype=F64), rtol=0.02)
    std = noise.gaussian(torch.full((1, 1), level, dtype=F64)).std
    assert torch.allclose(y.std(1), std[0], rtol=0.02), "the Gaussian approximation is that of the logarithm"
    if electronic_std == 0:
        assert torch.allclose(counts, counts.round(), atol=1e-6)


def test_starved_rays_are_reported():
    noise = TransmissionNoise(100.0)
    clean = torch.tensor([[0.1, 20.0, 1.0], [30.0, 0.5, 2.0]], dtype=F64)
    with pytest.warns(StarvedRaysWarning, match=r"2 of 6 rays \(33 %\) are starved: at most one count arrived"):
        y = noise.sample(clean, torch.Generator().manual_seed(0))
    assert torch.isfinite(y).all()
    assert noise.starved(y).tolist() == [[False, True, False], [True, False, False]]
    assert noise.starved(y.float()).tolist() == noise.starved(y).tolist()
    assert float(y.max()) == pytest.approx(math.log(100))
    with pytest.warns(StarvedRaysWarning, match="2 of 6 rays"):
        std = noise.gaussian(y).std
    assert float(std[0, 1]) == pytest.approx(1.0)
    # A line integral of 20 or 200 explains a starved ray alike; one of 1 does not.
    far = noise.log_likelihood(y[:1, 1:2], torch.tensor([[20.0]]).double())
    assert float(far) == pytest.approx(
        float(noise.log_likelihood(y[:1, 1:2], torch.tensor([[200.0]]).double())), abs=1e-6
    )
    assert noise.log_likelihood(y[:1, 1:2], torch.tensor([[1.0]]).double()) < far - 20
    assert float(noise.score(y[:1, 1:2], torch.tensor([[1.0]]).double())) > 30


@quiet
@pytest.mark.parametrize("name", LAWS)
def test_randomness_of_every_law(name):
    noise = LAWS[name]
    if name == "gaussian per entry":
        noise = GaussianNoise(noise.std[:1])
    clean = random(3, 2, 5).abs()
    together = noise.sample(clean, seeded(7, 8, 9))
    for entry, seed in enumerate((7, 8, 9)):
        assert torch.equal(noise.sample(clean[entry : entry + 1], seeded(seed))[0], together[entry])
    state = torch.get_rng_state()
    assert not torch.equal(noise.sample(clean), noise.sample(clean))
    assert torch.equal(torch.get_rng_state(), state)
    assert noise.sample(clean.float(), seeded(7, 8, 9)).dtype == torch.float32
    assert noise.log_likelihood(together.float(), clean.float()).dtype == torch.float32


def test_poisson_in_float32_keeps_its_digits():
    """Counts of a million: terms of 1e7 that nearly cancel."""
    clean = torch.full((1, 100), 1e6)
    y = PoissonNoise(1.0).sample(clean, torch.Generator().manual_seed(0))
    exact = stats.poisson.logpmf(y.double().numpy(), 1e6).sum()
    assert float(PoissonNoise(1.0).log_likelihood(y, clean)) == pytest.approx(exact, rel=1e-6)
    assert PoissonNoise(1.0).log_likelihood(torch.tensor([[-1.0]]), torch.tensor([[3.0]])).tolist() == [-math.inf]


def test_gaussian_approximation_with_electronic_noise():
    y = torch.tensor([[-0.3, 0.05, 0.5]])
    assert torch.allclose(PoissonGaussianNoise(0.1, 0.2).gaussian(y).std ** 2, torch.tensor([[0.05, 0.05, 0.09]]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PoissonGaussianNoise(0.0, 0.1), "gain is 0.0; expected a finite number > 0"),
        (lambda: PoissonGaussianNoise(0.1, 0.0), "std is 0.0; expected a finite number > 0 .*PoissonNoise"),
        (lambda: TransmissionNoise(-5.0), "i0 is -5.0; expected a finite number > 0"),
        (lambda: TransmissionNoise(torch.tensor([5.0, float("nan")])), "i0 is nan"),
        (lambda: TransmissionNoise(5.0, -1.0), "electronic_std is -1.0; expected a finite number >= 0, in counts"),
        (lambda: PoissonNoise(0.1).sample(torch.zeros(1, 2, dtype=torch.complex64)), "got complex ones; use Gaussian"),
        (lambda: PoissonNoise(0.1).gaussian(torch.zeros(1, 2, dtype=torch.complex64)), "got complex ones"),
    ],
)  # fmt: skip
def test_bad_counting_noise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
