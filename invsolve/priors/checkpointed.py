"""Gradients through a network with less memory: activations are computed twice instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from invsolve.priors.base import WrappedPrior

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class CheckpointedPrior(WrappedPrior):
    """A prior whose backward pass computes the activations of each block again, from the block's input.

    The blocks are the composite modules that the network keeps in lists, as most U-Nets and transformers do. A network
    without such lists is recomputed as a whole: that helps methods whose gradient runs through several evaluations,
    not those with one evaluation per step. Without gradients nothing changes. Results are the same.

    Args:
        prior: any prior. It is not changed, except while `denoise` runs.
    """

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.prior.denoise(x, sigma)
        blocks = list(_listed_blocks(self.prior))
        if not blocks:
            denoised: Tensor = _recomputed(self.prior, self.prior.denoise, x, sigma)
            return denoised
        with _recomputing(blocks):
            return self.prior.denoise(x, sigma)


def _recomputed(module: nn.Module, function: Any, *args: Any, **kwargs: Any) -> Any:
    # Only a module in training mode can draw random numbers (dropout), which the second pass has to repeat.
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=module.training, **kwargs)


@contextmanager
def _recomputing(blocks: list[nn.Module]) -> Iterator[None]:
    """Calls of these modules keep their inputs only. The second pass runs later and calls the original functions."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(_recomputed, block, block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            if own is not None:
                block.forward = own


def _listed_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost composite modules inside the lists of `module`."""
    for child in module.children():
        inner = list(_listed_blocks(child)) if isinstance(child, _LISTS) or not isinstance(module, _LISTS) else []
        if inner:
            yield from inner
        elif isinstance(module, _LISTS) and any(True for _ in child.children()):
            yield child
