"""The one contract between a pretrained model and a sampler: a denoiser in sigma-coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def expand_sigma(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Noise level as a tensor that broadcasts against a batch.

    Args:
        sigma: a number, a 0-d tensor, or one level per batch entry, shape (B,).
        x: batch, shape (B, ...), whose dtype and device the result takes.

    Returns:
        Tensor of shape (B, 1, ..., 1).

    Raises:
        ValueError: if `sigma` has neither one nor B entries.
    """
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
    if level.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"sigma has {level.numel()} entries for a batch of {x.shape[0]}; pass one number or one per batch entry."
        )
    return level.expand(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))


class Prior(nn.Module, ABC):
    """A pretrained model seen as the denoiser D(x, sigma) = E[x0 | x0 + sigma n = x].

    This is the variance-exploding form of Karras et al. 2022 (arXiv 2206.00364). Samplers ask for nothing else, so
    they never know whether the network predicts noise, a score, a velocity or the clean image.
    A custom prior subclasses this and writes `denoise`.

    Args:
        shape: shape (C, H, W) of the images it models; None for "any". Single entries may be None, for example
            (3, None, None) for a colour model of any size.
        data_range: (low, high), the values that black and white have inside the model. (-1, 1) for most networks.
        sigma_min: smallest noise level the model was trained for, in model units, > 0.
        sigma_max: largest such level.

    `image_range` says what black and white are in images as its users have them, in physical units perhaps: what
    `invsolve.solve` takes where it is given no `data_range`.
    """

    shape: tuple[int | None, ...] | None
    data_range: tuple[float, float]
    image_range: tuple[float, float] = (0.0, 1.0)
    sigma_min: float
    sigma_max: float

    def __init__(
        self,
        shape: tuple[int | None, ...] | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        if not data_range[0] < data_range[1]:
            raise ValueError(f"data_range is {data_range}; expected (low, high) with low < high.")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must satisfy 0 < sigma_min < sigma_max.")
        self.shape = shape
        self.data_range = data_range
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of the clean image.

        Args:
            x: noisy batch x0 + sigma n, shape (B, C, H, W), model units.
            sigma: noise standard deviation in model units, a number or shape (B,), > 0.

        Returns:
            E[x0 | x], same shape as `x`.
        """

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Same as `denoise`."""
        return self.denoise(x, sigma)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of log p_sigma at x: (D - x) / sigma^2 (Tweedie's formula)."""
        return (self.denoise(x, sigma) - x) / expand_sigma(sigma, x) ** 2

    def epsilon(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Predicted unit-variance noise: (x - D) / sigma."""
        return (x - self.denoise(x, sigma)) / expand_sigma(sigma, x)

    def velocity(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Rectified-flow velocity n - x0 at x_t = (1 - t) x0 + t n: (x_t - D) / t.

        Args:
            x_t: flow state, shape (B, C, H, W).
            t: time, a number or shape (B,), 0 < t < 1; t = 1 is pure noise.
        """
        time = expand_sigma(t, x_t)
        denoised = self.denoise(x_t / (1 - time), (time / (1 - time)).flatten())
        return (x_t - denoised) / time

    def check_shape(self, in_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless images of shape (C, H, W) fit this prior."""
        if self.shape is None:
            return
        fits = len(self.shape) == len(in_shape) and all(
            want is None or want == have for want, have in zip(self.shape, in_shape, strict=True)
        )
        if not fits:
            want = tuple("any" if n is None else n for n in self.shape)
            raise ValueError(f"the prior models images of shape {want}, but the operator takes {tuple(in_shape)}.")


class WrappedPrior(Prior):
    """A prior around another one, for the same images in the same units.

    Args:
        prior: the other one.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior.shape, prior.data_range, prior.sigma_min, prior.sigma_max)
        self.image_range = prior.image_range
        self.prior = prior
