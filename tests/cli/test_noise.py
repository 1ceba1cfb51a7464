"""The noise estimate and its option."""

from __future__ import annotations

import numpy as np
import pytest

from invsolve.cli.errors import UserError
from invsolve.cli.noise import estimate_noise, parse_noise, rounding_noise

RNG = np.random.default_rng(0)
SMOOTH = np.linspace(0.2, 0.8, 96, dtype=np.float32)[:, None, None] * np.ones((1, 128, 3), np.float32)


@pytest.mark.parametrize("std", [0.01, 0.1, 0.3])
def test_estimate_of_white_noise(std: float) -> None:
    noisy = (SMOOTH + std * RNG.standard_normal(SMOOTH.shape)).astype(np.float32)
    assert estimate_noise(noisy) == pytest.approx(std, rel=0.06)
    # Holes of value 0 would otherwise count as structure.
    known = RNG.random(SMOOTH.shape[:2]) > 0.3
    assert estimate_noise(noisy * known[..., None], known) == pytest.approx(std, rel=0.1)


def test_estimate_is_robust_to_edges() -> None:
    stripes = SMOOTH.copy()
    stripes[:, ::16] = 1
    noisy = (stripes + 0.05 * RNG.standard_normal(stripes.shape)).astype(np.float32)
    assert estimate_noise(noisy) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2000, 1), (2000, 1, 3)])
def test_estimate_of_narrow_images(shape: tuple[int, int, int]) -> None:
    noisy = (0.5 + 0.1 * RNG.standard_normal(shape)).astype(np.float32)
    assert estimate_noise(noisy) == pytest.approx(0.1 if max(shape) > 3 else 0.0, abs=0.01)


def test_flat_image_has_no_noise_but_its_rounding() -> None:
    assert estimate_noise(SMOOTH) < 1e-4
    assert rounding_noise("uint8") == pytest.approx(1 / 255 / 12**0.5)


@pytest.mark.parametrize(("text", "value"), [("auto", None), ("0", 0.0), ("0.1", 0.1), ("25/255", 25 / 255), ("1", 1)])
def test_parse(text: str, value: float | None) -> None:
    assert parse_noise(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-0.1", ">= 0"),
        ("25", "did you mean 25/255"),
        ("300", "whole range"),
        ("nan", ">= 0"),
        ("a lot", "expected"),
        ("1/0", "expected"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_noise(text)
