"""Masks and coil maps as they come from users and files: checked, and brought into the shapes that operators keep."""

from __future__ import annotations

import torch
from torch import Tensor


def check_mask(mask: Tensor) -> Tensor:
    """The mask as (H or 1, W or 1), or (B, ...)."""
    if mask.ndim not in (1, 2, 3) or mask.is_complex() or 0 in mask.shape:
        raise ValueError(f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; expected (W,), (H, 1) or (H, W).")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"the mask holds values other than 0 and 1, from {float(mask.min()):g} to {float(mask.max()):g}; "
            "1 means sampled, and weights belong into Weighted."
        )
    if not bool((mask != 0).flatten(1 if mask.ndim == 3 else 0).any(-1).all()):
        raise ValueError("the mask samples nothing at all; 1 means sampled and 0 skipped.")
    return mask[None] if mask.ndim == 1 else mask


def as_lines(mask: Tensor) -> Tensor:
    """A mask of points that samples whole columns or rows as the mask of lines that it is; others as they are."""
    if bool((mask == mask[..., :1, :]).all()):
        return mask[..., :1, :].clone()
    if bool((mask == mask[..., :1]).all()):
        return mask[..., :1].clone()
    return mask


def check_maps(maps: Tensor) -> Tensor:
    """Coil maps (coils, H, W) or (B, coils, H, W), complex, finite and not zero; for constructors."""
    if not maps.is_complex():
        raise TypeError(
            f"the coil maps have type {maps.dtype}; expected complex64 or complex128. Pairs of real numbers in the "
            "last dimension become complex by torch.view_as_complex."
        )
    if maps.ndim not in (3, 4) or 0 in maps.shape:
        raise ValueError(f"the coil maps have shape {tuple(maps.shape)}; expected (coils, H, W) or (B, coils, H, W).")
    if not bool(torch.isfinite(torch.view_as_real(maps.resolve_conj())).all()):
        raise ValueError("the coil maps hold NaN or Inf.")
    if not bool((maps != 0).flatten(-3).any(-1).all()):
        raise ValueError("the coil maps are zero everywhere: no coil sees anything of the image; estimate them anew.")
    return maps
