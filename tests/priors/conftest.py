"""Shared helpers of the prior tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from invsolve.priors import UNetConfig, UNetPrior


def _randomised(
    config: UNetConfig | None = None, seed: int = 0, dtype: torch.dtype | None = torch.float32
) -> UNetPrior:
    prior = UNetPrior(config or UNetConfig(channels=1, widths=(4, 8, 8), blocks=(1, 1, 1), embedding=16), dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return prior.eval().requires_grad_(False)


@pytest.fixture
def randomised() -> Callable[..., UNetPrior]:
    """Makes a small U-Net none of whose weights is zero (untrained, the zeros in it would hide everything)."""
    return _randomised
