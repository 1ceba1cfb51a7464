"""Long batches in pieces that fit the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_PIECE = {"cuda": 1 << 24, "cpu": 3 << 17}
"""Pixel values in one network call: 85 colour images of 256 x 256 on a GPU. On a CPU it is 2 of them or 32 of 64 x 64:
larger batches measured slower there (docs/benchmarks.md)."""


def largest_piece(entry: Tensor) -> int:
    """Entries like this one that are best computed together on its device, at least 1."""
    return max(1, LARGEST_PIECE.get(entry.device.type, LARGEST_PIECE["cuda"]) // max(1, entry.numel()))


class MicroBatches:
    """Runs a function over a long batch, in pieces that fit the memory.

    When a CUDA device runs out of memory the piece is halved, for this call and all later ones, and the run goes on.

    Args:
        size: entries per piece; if None, see `largest_piece`.
    """

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise ValueError(f"micro_batch is {size}; expected at least 1.")
        self.size = size

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *arrays: Tensor) -> tuple[Tensor, ...]:
        """function applied to pieces of `arrays` along their first axis; its results joined again."""
        total = len(arrays[0])
        done, pieces = 0, []
        while done < total:
            size = min(self.size or largest_piece(arrays[0][0]), total - done)
            try:
                pieces.append(function(*(array[done : done + size] for array in arrays)))
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                self.size = size // 2
                continue
            done += size
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
