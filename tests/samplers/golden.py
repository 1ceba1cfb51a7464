"""Recorded trajectories of official implementations, and how a sampler is fed their random numbers.

The recorded files lie outside the repository (`INVSOLVE_GOLDEN`, or ../shared/golden beside it); without them the
tests that use them are skipped: set `pytestmark = needs_recordings` in such a file. Everything runs in float64 with
the tolerance the files' description gives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invsolve.operators import GaussianNoise, LinearOperator, Mask, MatrixOperator, Measurement
from invsolve.priors import GaussianMixturePrior
from invsolve.samplers.base import Sampler

ROOT = Path(os.environ.get("INVSOLVE_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
TOLERANCE = 1e-6

needs_recordings = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no recorded trajectories at {ROOT}")


class Case:
    """One recorded run: arrays as float64 tensors, parameters, and the problem it belongs to."""

    def __init__(self, file: str, case: str) -> None:
        self.arrays = np.load(ROOT / f"{file}.npz")
        self.case = case
        self.params: dict[str, Any] = json.loads(str(self.arrays[f"{case}/params"]))
        problem = np.load(ROOT / "problem.npz")
        as_tensor = {k: torch.from_numpy(np.asarray(problem[k])).double() for k in problem}
        self.prior = GaussianMixturePrior(as_tensor["weights"], as_tensor["means"], float(as_tensor["std"]) ** 2)
        operator: LinearOperator = (
            Mask(as_tensor["mask"], (3, 16, 16), dtype=torch.float64)
            if case.startswith("inpaint")
            else MatrixOperator(as_tensor["matrix"], (3, 16, 16))
        )
        self.measurement = Measurement(self["y"], operator, GaussianNoise(float(self.params.get("noise_std", 0.0))))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[f"{self.case}/{name}"])).double()


def feed(monkeypatch: pytest.MonkeyPatch, module: str, draws: Iterator[Tensor]) -> None:
    """Make a sampler draw the recorded numbers instead of random ones."""
    monkeypatch.setattr(f"invsolve.samplers.{module}.standard_normal", lambda like, _: next(draws).reshape(like.shape))


def run(sampler: Sampler, case: Case, prior: Any = None) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """States and clean estimates after every step, and the result."""
    states: list[Tensor] = []
    estimates: list[Tensor] = []

    def record(step: int, total: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        states.append(x.clone())
        estimates.append(denoised.clone())

    final = sampler(case.measurement, prior or case.prior, callback=record)
    return states, estimates, final


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Relative error over the whole array of one step."""
    error = float((ours.reshape(theirs.shape) - theirs).norm() / theirs.norm())
    assert error < TOLERANCE, f"{what}: relative error {error:.2e}"


def to_vp(x: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """A state in sigma-coordinates as the variance-preserving state of the recordings."""
    return alpha_cumprod.sqrt() * x


def next_alphas(case: Case) -> Tensor:
    """alpha_cumprod of the levels that the steps lead to; the last is 1."""
    return torch.cat([case["alphas_cumprod"][1:], torch.ones(1).double()])
