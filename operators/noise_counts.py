"""Counting noise together with the electronic noise of the detector, for cameras and for transmission (CT)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.operators.noise import (
    RATE_FLOOR,
    GaussianNoise,
    Generators,
    Noise,
    _real,
    one_sided,
    standard_normal,
    standard_poisson,
)


class StarvedRaysWarning(UserWarning):
    """Rays through which at most one count arrived: their line integral is only known from below."""


@dataclass(frozen=True)
class PoissonGaussianNoise(Noise):
    """Counting noise and read-out noise of a camera: y = gain * Poisson(clean / gain) + std n, n white.

    Args:
        gain: units of y per counted event, > 0; see `PoissonNoise`.
        std: standard deviation of the read-out noise in the units of y, > 0.

    Raises:
        ValueError: a gain or standard deviation that is not positive and finite.
    """

    gain: float
    std: float

    def __post_init__(self) -> None:
        _positive("gain", self.gain, "units of y per event")
        _positive("std", self.std, "in the units of y; PoissonNoise is the law without read-out noise")

    def sample(self, clean: Tensor, generator: Generators = None) -> Tensor:
        generator = _seeded(generator)
        counted = self.gain * standard_poisson(_real(clean) / self.gain, generator)
        return counted + self.std * standard_normal(clean, generator)

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """Logarithm of the density of y, shape (B,): the sum over all counts, to a relative accuracy of about 1e-10."""
        counts, rate = _real(y).double() / self.gain, clean.double().clamp_min(0) / self.gain
        log_density = _LogDensity.apply(counts, rate, self.std / self.gain, None) - math.log(self.gain)  # type: ignore[no-untyped-call]
        return log_density.flatten(1).sum(1).to(y.dtype)  # type: ignore[no-any-return]

    def score(self, y: Tensor, clean: Tensor) -> Tensor:
        """(E[N | y] gain / clean - 1) / gain for N counts; below a thousandth of an event as in `PoissonNoise`."""
        rate = (clean.double() / self.gain).clamp_min(RATE_FLOOR)
        _, expected = _posterior_counts(_real(y).double() / self.gain, rate, self.std / self.gain, None)
        return one_sided(((expected / rate - 1) / self.gain).to(clean.dtype), clean)

    def gaussian(self, y: Tensor) -> GaussianNoise:
        """Variance gain * y + std^2, where entries below one event count as one."""
        return GaussianNoise((self.gain * _real(y).clamp_min(self.gain) + self.std**2).sqrt())


@dataclass(frozen=True)
class TransmissionNoise(Noise):
    """Noise of line integrals measured by counting transmitted photons, as in CT.

    ::

        N = Poisson(i0 exp(-clean)) + electronic_std n        y = -log(max(N, 1) / i0)

    A starved ray, of which at most one count arrives, reads y = log(i0) and says only that the line integral is large:
    its likelihood is the probability of N <= 1. `starved(y)` finds such rays; `sample` and `gaussian` report them by a
    StarvedRaysWarning.

    Args:
        i0: counts without an object, > 0: a number, or a tensor that broadcasts against y (one per ray).
        electronic_std: standard deviation of the electronic noise in counts, >= 0.

    Raises:
        ValueError: an i0 that is not positive and finite, or a negative electronic_std.
    """

    i0: float | Tensor
    electronic_std: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.i0,) if not isinstance(self.i0, Tensor) else (self.i0.min().item(), self.i0.max().item()):
            _positive("i0", float(value), "counts without an object")
        if not (math.isfinite(self.electronic_std) and self.electronic_std >= 0):
            raise ValueError(f"electronic_std is {self.electronic_std}; expected a finite number >= 0, in counts.")

    def sample(self, clean: Tensor, generator: Generators = None) -> Tensor:
        generator = _seeded(generator)
        counts = standard_poisson(self._counts(_real(clean)), generator)
        if self.electronic_std > 0:
            counts = counts + self.electronic_std * standard_normal(clean, generator)
        y = -torch.log(counts.clamp_min(1) / self._i0(clean))
        self._report(y)
        return y

    def starved(self, y: Tensor) -> Tensor:
        """Where at most one count arrived: bool, shape of `y`."""
        return self._counts(_real(y)) <= 1 + 1e-3  # up to the rounding of y

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """Shape (B,). For a starved ray log P(N <= 1).

        For the others the log-probability of the count without electronic noise, the log-density of y with it.
        """
        counts, rate, starved = self._counts(y.double()), self._counts(clean.double()), self.starved(y)
        if self.electronic_std > 0:
            log_density = _LogDensity.apply(counts, rate, self.electronic_std, starved)  # type: ignore[no-untyped-call]
            log_density = log_density + torch.where(starved, 0, counts.log())
        else:
            counted = torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
            log_density = torch.where(starved, torch.log1p(rate) - rate, counted)
        return log_density.flatten(1).sum(1).to(y.dtype)  # type: ignore[no-any-return]

    def score(self, y: Tensor, clean: Tensor) -> Tensor:
        """rate - E[N | y], with the rate i0 exp(-clean) and N the photon count behind y."""
        counts, rate, starved = self._counts(_real(y).double()), self._counts(clean.double()), self.starved(y)
        if self.electronic_std > 0:
            _, expected = _posterior_counts(counts, rate, self.electronic_std, starved)
        else:
            expected = torch.where(starved, rate / (1 + rate), counts)
        return (rate - expected).to(clean.dtype)

    def gaussian(self, y: Tensor) -> GaussianNoise:
        """Variance (N + electronic_std^2) / N^2 of the logarithm to first order: the weights of penalised weighted
        least squares (Thibault et al. 2006). A starved ray counts as N = 1."""
        counts = self._counts(_real(y)).clamp_min(1)
        self._report(y)
        return GaussianNoise((counts + self.electronic_std**2).sqrt() / counts)

    def _i0(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.i0, dtype=like.dtype, device=like.device)

    def _counts(self, line_integrals: Tensor) -> Tensor:
        return self._i0(line_integrals) * torch.exp(-line_integrals)

    def _report(self, y: Tensor) -> None:
        count = int(self.starved(y).sum())
        if count:
            warnings.warn(
                f"{count} of {y.numel()} rays ({100 * count / y.numel():.2g} %) are starved: at most one count "
                "arrived, so that their line integral is only known to be at least log(i0); raise i0 if you simulate.",
                StarvedRaysWarning,
                stacklevel=3,
            )


_BELOW, _ABOVE = 36, 44  # nodes of the sum on either side of its largest term


class _LogDensity(torch.autograd.Function):
    """log p(counts given rate), entry by entry; see `_posterior_counts`, whose loop leaves no graph behind."""

    @staticmethod
    def forward(ctx: Any, counts: Tensor, rate: Tensor, std: float, starved: Tensor | None) -> Tensor:
        log_density, expected = _posterior_counts(counts, rate, std, starved)
        by_counts = (expected - counts) / std**2
        if starved is not None:
            by_counts = by_counts.masked_fill(starved, 0)
        at_zero = torch.exp((counts - 0.5) / std**2)  # limit of E[N | c] / rate
        ctx.save_for_backward(by_counts, torch.where(rate > 0, expected / rate, at_zero) - 1)
        return log_density

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_counts, by_rate = ctx.saved_tensors
        return (
            _reduced(grads[0] * by_counts, ctx.needs_input_grad[0]),
            _reduced(grads[0] * by_rate, ctx.needs_input_grad[1]),
            None,
            None,
        )


def _reduced(gradient: Tensor, needed: bool) -> Tensor | None:
    return gradient if needed else None


_TINY = 1e-300


@torch.no_grad()
def _posterior_counts(counts: Tensor, rate: Tensor, std: float, starved: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p(c) and E[N | c] for c = N + std n with N ~ Poisson(rate), entry by entry, in float64.

    p(c) is the sum over N of Poisson(N; rate) Normal(c; N, std^2), a log-concave sequence in N. The sum runs over
    81 values around its largest term. Where its width tau exceeds 4 they lie floor(tau / 2) apart: equally spaced
    nodes integrate a smooth bump with an error of exp(-2 pi^2 tau^2 / spacing^2), which is below round-off here.

    Args:
        counts: c, any real numbers.
        rate: >= 0.
        std: > 0, in counts.
        starved: where True, c is only known to be <= 1 and log P(c <= 1), E[N | c <= 1] are returned.
    """
    if starved is not None:
        counts = counts.masked_fill(starved, 1)
    variance, log_rate, dark = std**2, rate.clamp_min(_TINY).log(), rate == 0
    largest = variance * _log_lambert(counts / variance + log_rate - math.log(variance)).masked_fill(dark, 0)
    width = (1 / largest.clamp_min(_TINY) + 1 / variance).rsqrt()
    spacing, center = (width / 2).floor().clamp_min(1), largest.round()

    def log_term(number: Tensor) -> Tensor:
        deviation = (counts - number) / std
        log_noise = -0.5 * deviation**2 - math.log(std) - 0.5 * math.log(math.tau)
        if starved is not None:
            log_noise = torch.where(starved, torch.special.log_ndtr(deviation), log_noise)
        return number * log_rate - rate - torch.lgamma(number + 1) + log_noise

    reference = log_term(center)
    total, moment = torch.zeros_like(counts), torch.zeros_like(counts)
    for node in range(-_BELOW, _ABOVE + 1):
        offset = node * spacing
        number = center + offset
        outside = (number < 0) | (dark & (number > 0))
        term = torch.exp(log_term(number.clamp_min(0)) - reference).masked_fill(outside, 0)
        total += term
        moment += term * offset
    return reference + torch.log(total * spacing), center + moment / total


def _log_lambert(z: Tensor) -> Tensor:
    """The w with w + log w = z, by Newton's iteration on u = log w from the right, where it converges monotonically."""
    u = torch.where(z > 1, z.clamp_min(1).log(), z)
    for _ in range(8):
        w = u.exp()
        u = u - (w + u - z) / (w + 1)
    return u.exp()


def _seeded(generator: Generators) -> Generators:
    """A generator of its own where none is given, so that two draws come from one."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return generator


def _positive(name: str, value: float, meaning: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a finite number > 0 ({meaning}).")
