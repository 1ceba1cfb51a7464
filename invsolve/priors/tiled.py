"""Bounded memory for large images: the denoiser works on overlapping tiles, inside every sampler step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invsolve.priors.base import Prior, WrappedPrior, expand_sigma


class TiledPrior(WrappedPrior):
    """Denoise tile by tile and blend.

    Because the tiles are blended inside each evaluation, and the sampler still works on the whole image, the result has
    no seams: neighbouring tiles see the same noisy image and the same data. Where a gradient is asked for, each tile is
    computed a second time in the backward pass, so that the memory of one tile is enough there too.

    Args:
        prior: a prior that takes any size.
        tile: side of a tile in pixels.
        overlap: pixels that two neighbours share at least; of it, a tile's outer quarter is thrown away and the middle
            half blended, so that no pixel is taken from where the network sees a tile's edge.
    """

    def __init__(self, prior: Prior, tile: int = 512, overlap: int = 64) -> None:
        super().__init__(prior)
        if not 0 < 2 * overlap < tile:
            raise ValueError(f"overlap is {overlap} and tile {tile}; expected 0 < 2 * overlap < tile.")
        self.tile, self.overlap = tile, overlap

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height <= self.tile and width <= self.tile:
            return self.prior.denoise(x, sigma)
        level = expand_sigma(sigma, x).flatten()
        total, weight = torch.zeros_like(x), x.new_zeros(1, 1, height, width)
        for top, bottom in self._spans(height):
            rows = self._window(top, bottom, height, x)
            for left, right in self._spans(width):
                window = rows[:, None] * self._window(left, right, width, x)[None]
                denoised = self._denoise_tile(x[..., top:bottom, left:right], level)
                total[..., top:bottom, left:right] += window * denoised
                weight[..., top:bottom, left:right] += window
        return total / weight

    def _denoise_tile(self, x: Tensor, level: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            denoised: Tensor = checkpoint(self.prior.denoise, x, level, use_reentrant=False)
            return denoised
        return self.prior.denoise(x, level)

    def _spans(self, size: int) -> list[tuple[int, int]]:
        """Starts are multiples of 32, so that a strided network samples every tile on the same lattice.

        The last tile starts at the first such place from which it reaches the border, and so is nearly full.
        """
        step, lattice = self.tile - self.overlap, 1
        if step >= 32:
            step, lattice = step // 32 * 32, 32
        last = max(0, -(-(size - self.tile) // lattice) * lattice)
        return [(start, min(start + self.tile, size)) for start in (*range(0, last, step), last)]

    def _window(self, start: int, stop: int, size: int, like: Tensor) -> Tensor:
        """Blending weights: 0 over the outer quarter of the overlap, then a ramp, then 1; 1 at the image's edges."""
        length = stop - start
        position = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
        ramp = torch.ones_like(position)
        margin = self.overlap / 4
        if start > 0:
            ramp = torch.minimum(ramp, (position - margin) / (2 * margin))
        if stop < size:
            ramp = torch.minimum(ramp, (length - position - margin) / (2 * margin))
        return ramp.clamp(0, 1)
