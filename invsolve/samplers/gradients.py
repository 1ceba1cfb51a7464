"""Products with the denoiser's Jacobian J = dD/dx, for samplers that guide through the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invsolve.priors.base import Prior

Transposed = Callable[[Tensor, bool], Tensor]
"""(u, last) -> J^T u, one backward pass; `last` frees what it needs."""


def linearize(prior: Prior, x: Tensor, sigma: float, clip: bool = False) -> tuple[Tensor, Transposed]:
    """D(x, sigma), detached, and products with its transposed Jacobian.

    Args:
        prior: the denoiser.
        x: state, shape (B, C, H, W).
        sigma: its noise level.
        clip: clamp D to the prior's data range; pixels at the limits then have no gradient.
    """
    with torch.enable_grad():
        state = x.detach().requires_grad_()
        denoised = prior.denoise(state, sigma)
        if clip:
            denoised = denoised.clamp(*prior.data_range)

    def transposed(u: Tensor, last: bool) -> Tensor:
        (product,) = torch.autograd.grad(denoised, state, u, retain_graph=not last)
        return product

    return denoised.detach(), transposed
