"""Noise models: how a measurement scatters around the clean one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def standard_normal(like: Tensor, generator: Generators = None) -> Tensor:
    """White noise of unit variance with the shape, type and device of `like` (complex: E|n|^2 = 2, 1 per part).

    Args:
        like: batch, shape (B, ...).
        generator: one torch.Generator for the whole batch, or one per batch entry, so that an entry's noise does not
            depend on its neighbours. A CPU generator draws on the CPU and the result is moved: the numbers then
            repeat on any device. None draws from a freshly seeded generator, never from the global one.

    Raises:
        ValueError: a sequence whose length is not the batch size.
    """
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    if isinstance(generator, torch.Generator):
        return _draw(like.shape, like, generator)
    _check_count(generator, like)
    return torch.stack([_draw(like.shape[1:], like, g) for g in generator])


def _check_count(generators: Sequence[torch.Generator], like: Tensor) -> None:
    if len(generators) != len(like):
        raise ValueError(f"{len(generators)} generators for a batch of {len(like)}; pass one, or one per entry.")


def _draw(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    real = like.real.dtype if like.is_complex() else like.dtype
    parts = [
        torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=real).to(like.device)
        for _ in range(2 if like.is_complex() else 1)
    ]
    return torch.complex(*parts) if like.is_complex() else parts[0]


def standard_poisson(rate: Tensor, generator: Generators = None) -> Tensor:
    """Poisson counts with mean `rate` (0 where that is negative), drawn as `standard_normal` draws."""
    rate = rate.detach().clamp_min(0)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    if isinstance(generator, torch.Generator):
        return torch.poisson(rate.to(generator.device), generator=generator).to(rate.device)
    _check_count(generator, rate)
    counts = [torch.poisson(r.to(g.device), generator=g) for r, g in zip(rate, generator, strict=True)]
    return torch.stack([c.to(rate.device) for c in counts])


class Noise(ABC):
    """The law of y given the clean measurement A(x)."""

    @abstractmethod
    def sample(self, clean: Tensor, generator: Generators = None) -> Tensor:
        """A noisy measurement, same shape as `clean` (B, ...)."""

    @abstractmethod
    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | clean) per batch entry, shape (B,), normalised and differentiable by autograd."""

    @abstractmethod
    def score(self, y: Tensor, clean: Tensor) -> Tensor:
        """Gradient of `log_likelihood` with respect to `clean`, in closed form, shape of `clean`.

        For complex measurements its real part is the derivative by the real part and so for the imaginary one, as
        torch has it. For a likelihood gradient through an operator, hand it to `torch.autograd.grad` as `grad_outputs`.
        """

    @abstractmethod
    def gaussian(self, y: Tensor) -> GaussianNoise:
        """The Gaussian with the variance this noise has around `y`, for solvers that need one."""


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """y = clean + std n with n white.

    Args:
        std: noise standard deviation in the units of y, >= 0: a number, or a tensor that broadcasts against y for noise
            that varies from entry to entry. For complex y it is the standard deviation of each part.
    """

    std: float | Tensor

    def __post_init__(self) -> None:
        bad = (
            not bool((torch.isfinite(self.std) & (self.std >= 0)).all())
            if isinstance(self.std, Tensor)
            else not (math.isfinite(self.std) and self.std >= 0)
        )
        if bad:
            raise ValueError(f"noise_std is {self.std}; expected a finite number >= 0, in the units of y.")

    def sample(self, clean: Tensor, generator: Generators = None) -> Tensor:
        return clean + self._std(clean) * standard_normal(clean, generator)

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | clean), shape (B,). Where std is 0: -inf if y differs from `clean` there, +inf otherwise."""
        std = self._std(y).expand(y.real.shape if y.is_complex() else y.shape)
        parts = 2 if y.is_complex() else 1
        distance, exact = (y - clean).abs(), std == 0
        scale = std.masked_fill(exact, 1)
        log_density = -0.5 * (distance / scale) ** 2 - parts * (scale.log() + 0.5 * math.log(math.tau))
        total = log_density.masked_fill(exact, math.inf).flatten(1).sum(1)
        return total.masked_fill((exact & (distance > 0)).flatten(1).any(1), -math.inf)

    def score(self, y: Tensor, clean: Tensor) -> Tensor:
        """(y - clean) / std^2. Where std is 0: 0 if y equals `clean` there, infinite otherwise."""
        return torch.where(y == clean, 0, (y - clean) / self._std(y) ** 2)

    def gaussian(self, y: Tensor) -> GaussianNoise:
        return self

    def _std(self, like: Tensor) -> Tensor:
        real = like.real.dtype if like.is_complex() else like.dtype
        return torch.as_tensor(self.std, dtype=real, device=like.device)


@dataclass(frozen=True)
class PoissonNoise(Noise):
    """Counting noise: y = gain * Poisson(clean / gain).

    Args:
        gain: units of y per counted event, > 0. The variance is gain * clean: 1/255 on a [0, 1] image is one photon per
            grey level, brighter images or longer exposures have a smaller gain.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain is {self.gain}; expected a finite number > 0 (units of y per event).")

    def sample(self, clean: Tensor, generator: Generators = None) -> Tensor:
        return standard_poisson(_real(clean) / self.gain, generator) * self.gain

    def log_likelihood(self, y: Tensor, clean: Tensor) -> Tensor:
        """Logarithm of the probability of the counts y / gain, shape (B,); -inf for negative ones.

        Fractional counts, as rounding and camera curves leave them, are interpolated by the gamma function.
        """
        counts, rate = _real(y).double() / self.gain, clean.double().clamp_min(0) / self.gain  # as in `sample`
        log_density = torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
        return log_density.masked_fill(counts < 0, -math.inf).flatten(1).sum(1).to(y.dtype)

    def score(self, y: Tensor, clean: Tensor) -> Tensor:
        """(y / clean - 1) / gain.

        It grows without bound towards clean = 0, so a clean value below a thousandth of an event counts as that, and
        below 0, where the likelihood is flat or 0, only what leads back to positive values is kept.
        """
        return one_sided((_real(y) / clean.clamp_min(self.gain * RATE_FLOOR) - 1) / self.gain, clean)

    def gaussian(self, y: Tensor) -> GaussianNoise:
        """Variance gain * y, where empty entries count as one event (Anscombe's usual floor)."""
        return GaussianNoise((self.gain * _real(y).clamp_min(self.gain)).sqrt())


RATE_FLOOR = 1e-3
"""Mean number of events below which the score of counting noise no longer grows."""


def one_sided(score: Tensor, clean: Tensor) -> Tensor:
    """`score` where `clean` >= 0, its positive part elsewhere."""
    return torch.where(clean < 0, score.clamp_min(0), score)


def _real(values: Tensor) -> Tensor:
    if values.is_complex():
        raise ValueError("counting noise belongs to real measurements, got complex ones; use GaussianNoise.")
    return values
