"""Shared helpers of the operator tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invsolve.operators import LinearOperator


def _dense(operator: LinearOperator, dtype: torch.dtype = torch.float64) -> Tensor:
    """The operator as a real matrix (m, n), column by column; a complex measurement counts as two real ones."""
    size = torch.Size(operator.in_shape).numel()
    columns = operator(torch.eye(size, dtype=dtype).reshape(size, *operator.in_shape))
    if columns.is_complex():
        columns = torch.view_as_real(columns)
    return columns.reshape(size, -1).T


@pytest.fixture
def dense() -> Callable[..., Tensor]:
    return _dense


def _relative(value: Tensor, reference: Tensor) -> float:
    """Worst relative error of a batch entry."""
    assert value.shape == reference.shape
    difference = (value - reference).flatten(1).norm(dim=1)
    return float((difference / reference.flatten(1).norm(dim=1).clamp_min(1e-300)).max())


@pytest.fixture
def relative() -> Callable[[Tensor, Tensor], float]:
    return _relative


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
