"""Small photographs and a tiny prior for the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.priors.unet import UNetConfig, UNetPrior

Maker = Callable[..., Path]


def make_prior(path: Path, channels: int = 3) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNetPrior(UNetConfig(channels=channels, widths=(8, 16), blocks=(1, 1))).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised colour prior: it restores nothing, but in no time."""
    return make_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_grey_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prior(tmp_path_factory.mktemp("prior") / "grey.safetensors", 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(here: Path) -> Maker:
    """picture("a.png", mode, width, height) writes a smooth picture."""

    def make(name: str, mode: str = "RGB", width: int = 24, height: int = 20) -> Path:
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        layers = [np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + columns) / 11), np.cos(rows / 5)]
        values = (np.stack(layers, -1) * 100 + 128).astype(np.uint8)
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).convert(mode).save(path)
        return path

    return make
