"""EnKG's official trajectory, reproduced ensemble by ensemble."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import Case, feed, needs_recordings
from torch import Tensor

from invsolve.operators import GaussianNoise, Measurement, Operator
from invsolve.samplers import EnKG
from invsolve.samplers import enkg as module

pytestmark = needs_recordings
TOLERANCE = 1e-5
"""The recording went through float32."""


class BlackBox(Operator):
    """An operator that can only be called: no adjoint, no gradient."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self.inner = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).detach()  # type: ignore[no-any-return]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.reshape(theirs.shape) - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", ["inpaint", "dense"])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_enkg(name: str, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("enkg", name)
    p = case.params
    sampler = EnKG(
        num_steps=p["num_steps"],
        num_particles=p["num_particles"],
        guidance_scale=p["guidance_scale"],
        num_updates=p["num_updates"],
        first=0.1,
        ode_factor=p["factor"],
        sigma_max=p["sigma_max"],
        sigma_min=p["sigma_min"],
        micro_batch=micro_batch,
    )
    states: list[Tensor] = []
    corrected: list[Tensor] = []
    euler = module.euler

    def record(x: Tensor, d: Tensor, sigma: float, tau: float) -> Tensor:
        corrected.append(x)
        states.append(euler(x, d, sigma, tau))
        return states[-1]

    monkeypatch.setattr(module, "euler", record)
    feed(monkeypatch, "enkg", iter([case["x_init_noise"]]))
    measurement = Measurement(case["y"], BlackBox(case.measurement.operator), GaussianNoise(0.05))
    cloud = sampler.cloud(measurement, case.prior)
    assert len(states) == len(case["x"])
    for step, x in enumerate(states):
        assert relative(x, case["x"][step]) < TOLERANCE, f"state of step {step}"
        if step > 0:
            assert relative(corrected[step], case["particles"][step - 1]) < TOLERANCE, f"update of step {step}"
    assert relative(cloud.particles, case["final"]) < TOLERANCE
    assert torch.equal(cloud.log_weights.exp().sum(1).round(decimals=12), torch.ones(1, dtype=torch.float64))


def test_a_wrong_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With y replaced by 0.9 y, or rows and columns of the covariance exchanged, the recorded result is missed."""
    case = Case("enkg", "dense")

    def final(y: Tensor, **changes: Any) -> Tensor:
        feed(monkeypatch, "enkg", iter([case["x_init_noise"]]))
        sampler = EnKG(10, 16, **{"first": 0.1, **changes})
        return sampler.cloud(Measurement(y, case.measurement.operator, GaussianNoise(0.05)), case.prior).particles

    assert relative(final(case["y"]), case["final"]) < TOLERANCE
    for changed in (final(0.9 * case["y"]), final(case["y"], num_updates=1), final(case["y"], first=0.0)):
        assert relative(changed, case["final"]) > 1e-3
