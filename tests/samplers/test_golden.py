"""Trajectories of the official implementations, reproduced state by state when fed their random numbers.

The recorded files lie outside the repository (`INVSOLVE_GOLDEN`, or ../shared/golden beside it); without them these
tests are skipped. Everything runs in float64 with the tolerance the files' description gives.
"""

from __future__ import annotations

import json
import math
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
from invsolve.samplers import DAPS, DDS, DPS, MCG
from invsolve.samplers.base import Sampler

ROOT = Path(os.environ.get("INVSOLVE_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
TOLERANCE = 1e-6

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no recorded trajectories at {ROOT}")


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
    error = float((ours.reshape(theirs.shape) - theirs).norm() / theirs.norm())
    assert error < TOLERANCE, f"{what}: relative error {error:.2e}"


def to_vp(x: Tensor, alpha_cumprod: Tensor) -> Tensor:
    return alpha_cumprod.sqrt() * x


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_learned_variance"])
def test_dps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dps", name)
    feed(monkeypatch, "dps", iter([case["x_init"], *case["noise"]]))
    sampler = DPS(num_steps=10, step_size=case.params["scale"], variance=0.7 if "learned" in name else 0.0)
    states, estimates, final = run(sampler, case)
    previous = torch.cat([case["alphas_cumprod"][1:], torch.ones(1).double()])
    for step, (x, x0_hat) in enumerate(zip(states, estimates, strict=True)):
        assert_close(x0_hat, case["x0_hat"][step], f"x0_hat of step {step}")
        assert_close(to_vp(x, previous[step]), case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense"])
def test_mcg(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("mcg", name)
    draws = [case["x_init"]]
    for noise, noise_measurement in zip(case["noise"], case["noise_measurement"], strict=True):
        draws += [noise, noise_measurement]
    feed(monkeypatch, "mcg", iter(draws))
    sampler = MCG(num_steps=10, step_size=case.params.get("scale", 1.0), noised_at="current", damping=1e-8)
    states, _, final = run(sampler, case)
    previous = torch.cat([case["alphas_cumprod"][1:], torch.ones(1).double()])
    for step, x in enumerate(states):
        assert_close(to_vp(x, previous[step]), case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_noiseless"])
def test_dds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dds", name)
    steps = len(case["x"])
    feed(monkeypatch, "dds", iter([case["x_init"], *(n for n in case["noise"] if bool((n != 0).any()))]))
    sampler = DDS(
        num_steps=steps,
        gamma=case.params.get("gamma", 1.0),
        cg_iterations=case.params["cg_iter"],
        eta=case.params["eta"],
        released_end=True,
    )
    states, estimates, final = run(sampler, case)
    previous = torch.cat([case["alphas_cumprod"][1:], torch.ones(1).double()])
    for step, (x, consistent) in enumerate(zip(states, estimates, strict=True)):
        assert_close(consistent, case["x0_cg"][step], f"x0_cg of step {step}")
        assert_close(to_vp(x, previous[step]), case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("daps", "inpaint"),
        ("daps", "dense"),
        ("daps", "dense_hmc"),
        ("daps_legacy", "inpaint"),
        ("daps_legacy", "dense"),
    ],
)
def test_daps(file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(file, name)
    p = case.params
    hmc = name.endswith("hmc")
    draws = [case["x_init_noise"]]
    for step in range(len(case["x0_y"])):
        if hmc:
            draws.append(case["noise_velocity"][step])
        draws += list(case["noise_mcmc"][step])
        if case["sigmas"][step + 1] > 0:
            draws.append(case["noise_renoise"][step])
    feed(monkeypatch, "daps", iter(draws))
    released = file == "daps"
    sampler = DAPS(
        num_steps=10,
        grid="open" if released else "closed",
        ode_end=not released,
        inner="hmc" if hmc else "langevin",
        inner_steps=case["noise_mcmc"].shape[1],
        tau=p["tau"] / math.sqrt(2) if released else p["tau"],  # its loss lacks the factor 1/2
        step_size=p["lr"],
        step_decay=p["lr_min_ratio"],
        momentum=p.get("momentum", 0.0),
    )
    states, estimates, final = run(sampler, case)
    for step, (x, v) in enumerate(zip(states, estimates, strict=True)):
        assert_close(v, case["x0_y"][step], f"draw of step {step}")
        assert_close(x, case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")
