"""How the priors of the package are trained: `invsolve train prior --recipe NAME`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from invsolve.priors.unet import UNetConfig
from invsolve.training.prior import TrainingSettings


@dataclass(frozen=True)
class Recipe:
    """Settings of a shipped prior, and what its data look like."""

    summary: str
    settings: TrainingSettings


# Slices have less variety than photographs, and a slice of 512 x 512 pixels is four times the work.
_MEDICAL_WIDTHS = (32, 64, 96, 160)

RECIPES = {
    "natural": Recipe("colour photographs, any sizes", TrainingSettings(steps=24_000)),
    "natural-fine": Recipe(
        "second stage of natural, begun with --start from its checkpoint: larger crops, text and drawings",
        TrainingSettings(
            steps=8_000, batch_size=8, crop=96, learning_rate=3e-4, warmup=100, scene_share=0.12, scene_style="mixed"
        ),
    ),
    "mri": Recipe(
        "magnitude or complex MR slices, any scale",
        TrainingSettings(
            network=UNetConfig(channels=2, widths=_MEDICAL_WIDTHS, sigma_data=0.3, image_range=(-1.0, 1.0)),
            steps=6_000,
            batch_size=8,
            crop=96,
            log_sigma_mean=-2.0,
            log_sigma_std=1.4,
            scenes=120,
            scene_share=0.2,
            images="mri",
        ),
    ),
    "ct": Recipe(
        "CT slices in Hounsfield units; the last two patients in the order of names are held out",
        TrainingSettings(
            network=UNetConfig(
                channels=1,
                widths=_MEDICAL_WIDTHS,
                sigma_data=0.5,
                image_range=(0.0, 0.04),  # attenuation per mm, water 0.02
            ),
            steps=6_000,
            batch_size=8,
            crop=96,
            log_sigma_mean=-2.0,
            log_sigma_std=1.4,
            scenes=120,
            scene_share=0.2,
            images="ct",
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(RECIPES)}."
        raise ValueError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]
