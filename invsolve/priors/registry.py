"""Priors that ship with the package, by name, and checkpoints by path."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from invsolve.priors.base import Prior
from invsolve.priors.unet import UNetPrior

FOLDER = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class ShippedPrior:
    """A prior inside the package.

    Args:
        name: also that of its file.
        summary: one line on what it models.
    """

    name: str
    summary: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.safetensors"


SHIPPED = {
    prior.name: prior
    for prior in (
        ShippedPrior("natural", "colour photographs of any size, values 0 to 1"),
        ShippedPrior("mri", "complex MR images of any size, two channels, brightest percent of the magnitude above 1"),
        ShippedPrior("ct", "CT images of any size, attenuation per mm (water 0.02), or HU with another data_range"),
    )
}


def load_prior(name_or_path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Prior:
    """A shipped prior by name, or a U-Net checkpoint written by `invsolve train prior` by path.

    Args:
        name_or_path: "natural", "mri", "ct", or a .safetensors file.
        dtype: arithmetic of the network; None for bfloat16 where the hardware has it.

    Raises:
        ValueError: unknown name (the nearest one is suggested), or a file of another architecture.
        FileNotFoundError: no such file.
    """
    text = os.fspath(name_or_path)
    if text in SHIPPED:
        return UNetPrior.load(SHIPPED[text].path, dtype)
    if Path(text).suffix or os.sep in text or Path(text).is_file():
        return UNetPrior.load(text, dtype)
    close = difflib.get_close_matches(text, SHIPPED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(SHIPPED)}; or give a .safetensors file."
    raise ValueError(f"unknown prior {text!r}; {hint}")
