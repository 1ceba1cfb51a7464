"""Priors by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import invsolve
from invsolve.priors import UNetConfig, UNetPrior, load_prior
from invsolve.priors.registry import SHIPPED


def test_a_checkpoint_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.safetensors"
    UNetPrior(UNetConfig(1, (4,), (1,), 16)).save(path)
    for given in (path, str(path)):
        prior = load_prior(given, dtype=torch.float32)
        assert isinstance(prior, UNetPrior)
        assert prior.dtype == torch.float32
    path.rename(tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    assert load_prior("plain").shape == (1, None, None)  # an existing file needs no suffix
    assert invsolve.load_prior is load_prior


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    for name in ("mine.safetensors", str(tmp_path / "mine")):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load_prior(name)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown prior 'naturl'; did you mean 'natural'"):
        load_prior("naturl")
    with pytest.raises(
        ValueError, match=r"unknown prior 'xyzw'; shipped: natural, mri, ct; or give a \.safetensors file"
    ):
        load_prior("xyzw")
    with pytest.raises(ValueError, match="unknown prior ''"):
        load_prior("")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_priors(name: str) -> None:
    prior = load_prior(name)
    assert isinstance(prior, UNetPrior)
    channels = {"natural": 3, "mri": 2, "ct": 1}[name]
    prior.check_shape((channels, 33, 20))
    x = torch.full((1, channels, 33, 20), 0.2)
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = prior.denoise(noisy, 0.3)
    assert float((denoised - x).norm()) < 0.3 * float((noisy - x).norm())
    assert sum(shipped.path.stat().st_size for shipped in SHIPPED.values()) <= 25e6
