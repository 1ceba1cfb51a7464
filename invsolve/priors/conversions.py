"""The one place that knows how networks see time, noise and scale.

Everything outside this module speaks sigma-coordinates: x = x0 + sigma n and D(x, sigma) = E[x0 | x]. A network's
native state is scale(sigma) x at time t(sigma), and its output is one of the predictions below. With
a = 1/sqrt(1 + sigma^2) and s = sigma/sqrt(1 + sigma^2) for variance-preserving models, t = sigma/(1 + sigma) for flows:

=============  =========================================================  =================================
prediction     what the network returns                                   D
=============  =========================================================  =================================
``epsilon``    the unit-variance noise                                    x - sigma F
``x0``         the clean image                                            F
``v``          a n - s x0 (Salimans and Ho 2022, arXiv 2202.00512)        a^2 x - s F
``score``      gradient of log p of the native state                      x + sigma^2 scale F
``velocity``   d x_t / d t of a flow, in the schedule's direction         x_t - t F, or x_t + t F
``edm``        the raw F of Karras et al. 2022 (arXiv 2206.00364)         c_skip x + c_out F(c_in x, c_noise)
=============  =========================================================  =================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from invsolve.priors.base import Prior, expand_sigma

Prediction = Literal["epsilon", "x0", "v", "score", "velocity", "edm"]


class Schedule(ABC):
    """Noise level over native time: sigma(t), its inverse, and the scale of the native state."""

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level of sigma-coordinates at native time t, same shape."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """Native time at which the noise level is sigma, same shape; what the network is told."""

    def scale(self, sigma: Tensor) -> Tensor:
        """native state / x, same shape as sigma. 1 unless overridden."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """Variance exploding with time = sigma (arXiv 2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class VESchedule(Schedule):
    """Variance exploding (Song et al. 2021, arXiv 2011.13456): sigma_min (sigma_max/sigma_min)^t for t in [0, 1]."""

    sigma_min: float = 0.01
    sigma_max: float = 378.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


class _VariancePreserving(Schedule):
    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma**2).sqrt()


@dataclass(frozen=True)
class VPSchedule(_VariancePreserving):
    """Continuous variance preserving (arXiv 2011.13456): beta(t) linear from beta_min to beta_max, t in (0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_min: float = 1e-3

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return float(self.sigma(torch.tensor(self.time_min, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self.sigma(torch.tensor(1.0, dtype=torch.float64)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return ((self.beta_min**2 + 2 * slope * torch.log1p(sigma**2)).sqrt() - self.beta_min) / slope


class DiscreteVPSchedule(_VariancePreserving):
    """DDPM timesteps 0 ... T-1; a level between two timesteps is reached by interpolating log sigma over the index.

    Args:
        betas: variances of the forward steps, shape (T,), each in (0, 1).
        round_time: give the network the nearest integer timestep, for networks that look it up in a table.
    """

    def __init__(self, betas: Tensor, round_time: bool = False) -> None:
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a vector of at least two numbers strictly between 0 and 1.")
        self.alphas_cumprod = torch.cumprod(1 - betas.double(), 0)
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        self.round_time = round_time
        self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])

    @classmethod
    def linear(
        cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02, round_time: bool = False
    ) -> DiscreteVPSchedule:
        """Linear betas (Ho et al. 2020, arXiv 2006.11239); the defaults are those of the FFHQ and ImageNet models."""
        return cls(torch.linspace(first, last, steps, dtype=torch.float64), round_time)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, round_time: bool = False) -> DiscreteVPSchedule:
        """Squared-cosine cumulative alphas (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17), betas up to 0.999."""
        grid = torch.arange(steps + 1, dtype=torch.float64) / steps
        cumulative = torch.cos((grid + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - cumulative[1:] / cumulative[:-1]).clamp(max=0.999), round_time)

    def sigma(self, t: Tensor) -> Tensor:
        table = self.sigmas.log().to(t.device)
        index = t.double().clamp(0, len(table) - 1)
        lower = index.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[lower], table[lower + 1], index - lower).exp().to(t.dtype)

    def time(self, sigma: Tensor) -> Tensor:
        table = self.sigmas.log().to(sigma.device)
        level = sigma.double().log().clamp(table[0], table[-1])
        upper = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        below, above = table[upper - 1], table[upper]
        index = upper - 1 + (level - below) / (above - below)
        return (index.round() if self.round_time else index).to(sigma.dtype)

    def respaced(self, num_steps: int) -> Tensor:
        """Noise levels of `num_steps` timesteps spread evenly from T-1 down to 0, float64, largest first."""
        last = len(self.sigmas) - 1
        if not 2 <= num_steps <= last + 1:
            raise ValueError(f"num_steps is {num_steps}; expected 2 to {last + 1}.")
        return self.sigmas[torch.linspace(last, 0, num_steps, dtype=torch.float64).round().long()]


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Rectified flow x_t = (1 - t) x0 + t n (Liu et al. 2022, arXiv 2209.03003).

    Args:
        noise_at: 1 where time runs from data (0) to noise (1); 0 for models whose time runs from noise to data, whose
            velocity then is x0 - n.
        time_scale: what the network is told for t = 1, for example 1000.
    """

    noise_at: Literal[0, 1] = 1
    time_scale: float = 1.0
    sigma_min: float = 1e-3
    sigma_max: float = 1e3

    def sigma(self, t: Tensor) -> Tensor:
        noise_share = t / self.time_scale if self.noise_at == 1 else 1 - t / self.time_scale
        return noise_share / (1 - noise_share)

    def time(self, sigma: Tensor) -> Tensor:
        noise_share = sigma / (1 + sigma)
        return self.time_scale * (noise_share if self.noise_at == 1 else 1 - noise_share)

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vp": DiscreteVPSchedule.linear,
    "vp-cosine": DiscreteVPSchedule.cosine,
    "vp-continuous": VPSchedule,
    "ve": VESchedule,
    "edm": EDMSchedule,
    "flow": FlowSchedule,
    "flow-reversed": lambda: FlowSchedule(noise_at=0),
}


def edm_coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise of arXiv 2206.00364, Table 1, each shaped like sigma."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


def to_denoised(
    output: Tensor,
    x: Tensor,
    sigma: Tensor,
    prediction: Prediction,
    schedule: Schedule,
    sigma_data: float = 0.5,
) -> Tensor:
    """Network output -> D(x, sigma); `sigma` broadcasts against `x`."""
    if prediction == "epsilon":
        return x - sigma * output
    if prediction == "x0":
        return output
    if prediction == "v":
        return (x - sigma * (1 + sigma**2).sqrt() * output) / (1 + sigma**2)
    if prediction == "score":
        return x + sigma**2 * schedule.scale(sigma) * output
    if prediction == "velocity":
        share = sigma / (1 + sigma)
        return (1 - share) * x - _direction(schedule) * share * output
    c_skip, c_out, _, _ = edm_coefficients(sigma, sigma_data)
    return c_skip * x + c_out * output


def from_denoised(
    denoised: Tensor,
    x: Tensor,
    sigma: Tensor,
    prediction: Prediction,
    schedule: Schedule,
    sigma_data: float = 0.5,
) -> Tensor:
    """D(x, sigma) -> what a network of this prediction returns; the inverse of `to_denoised`."""
    if prediction == "epsilon":
        return (x - denoised) / sigma
    if prediction == "x0":
        return denoised
    if prediction == "v":
        return (x - (1 + sigma**2) * denoised) / (sigma * (1 + sigma**2).sqrt())
    if prediction == "score":
        return (denoised - x) / (sigma**2 * schedule.scale(sigma))
    if prediction == "velocity":
        share = sigma / (1 + sigma)
        return _direction(schedule) * ((1 - share) * x - denoised) / share
    c_skip, c_out, _, _ = edm_coefficients(sigma, sigma_data)
    return (denoised - c_skip * x) / c_out


def _direction(schedule: Schedule) -> float:
    """Sign of d(noise share)/d(time): 1 where time runs from data to noise, -1 where it runs back."""
    if not isinstance(schedule, FlowSchedule):
        raise ValueError(f"a velocity network needs a flow schedule, got {type(schedule).__name__}.")
    return 1.0 if schedule.noise_at == 1 else -1.0


class NetworkPrior(Prior):
    """Any score, noise, clean-image or velocity network behind the one contract; made by `wrap`."""

    def __init__(
        self,
        network: nn.Module,
        prediction: Prediction,
        schedule: Schedule,
        shape: tuple[int | None, ...] | None,
        data_range: tuple[float, float],
        sigma_data: float,
    ) -> None:
        super().__init__(shape, data_range, schedule.sigma_min, schedule.sigma_max)
        self.network, self.prediction, self.schedule, self.sigma_data = network, prediction, schedule, sigma_data

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        level = expand_sigma(sigma, x)
        if self.prediction == "edm":
            _, _, scale, time = edm_coefficients(level, self.sigma_data)
        else:
            scale, time = self.schedule.scale(level), self.schedule.time(level)
        output = self.network(scale * x, time.flatten())
        # Networks with a learned variance return it in channels behind the prediction.
        return to_denoised(output[:, : x.shape[1]], x, level, self.prediction, self.schedule, self.sigma_data)


def wrap(
    network: nn.Module,
    *,
    prediction: Prediction,
    schedule: Schedule | str,
    shape: tuple[int | None, ...] | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    sigma_data: float = 0.5,
) -> NetworkPrior:
    """Use a pretrained network as a prior.

    Args:
        network: called as network(native_state, time) with time of shape (B,); extra output channels are dropped.
        prediction: what it returns; the table at the top of `invsolve.priors.conversions` defines each.
        schedule: a `Schedule`, or one of "vp" (linear DDPM), "vp-cosine", "vp-continuous", "ve", "edm", "flow",
            "flow-reversed".
        shape: image shape (C, H, W) it was made for; None entries mean any.
        data_range: what black and white are in its training data.
        sigma_data: data standard deviation of an EDM network.

    Raises:
        ValueError: unknown prediction or schedule, or a velocity without a flow schedule.
    """
    if prediction not in get_args(Prediction):
        raise ValueError(f"unknown prediction {prediction!r}; expected one of {', '.join(get_args(Prediction))}.")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; expected one of {', '.join(SCHEDULES)}.")
        schedule = SCHEDULES[schedule]()
    if prediction == "velocity":
        _direction(schedule)
    return NetworkPrior(network, prediction, schedule, shape, data_range, sigma_data)
