"""Recorded runs of the official flow-based methods (FLAIR, PnP-Flow, FlowDPS, PMRF), reproduced state by state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from golden import Case, assert_close, feed, needs_recordings, run
from torch import Tensor

from invsolve.priors import Prior
from invsolve.samplers import FLAIR, PMRF, FlowDPS, PnPFlow
from invsolve.samplers.flair import PixelSpace

pytestmark = needs_recordings


class FromPureNoise(Prior):
    """A prior whose largest level is as good as infinite: flows start at t = 1. With text guidance if asked for."""

    def __init__(self, prior: Prior, guidance: float = 1.0) -> None:
        super().__init__(prior.shape, prior.data_range, prior.sigma_min, 1e10)
        self.prior, self.guidance = prior, guidance

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        denoised = self.prior.denoise(x, sigma)
        x_t = x / (1 + sigma)
        return x_t + self.guidance * (denoised - x_t)  # the velocity times `guidance`


class Sine:
    """decode(z) = z + 0.1 sin 2z, encode(x) = x - 0.1 sin 2x."""

    def encode(self, x: Tensor) -> Tensor:
        return x - 0.1 * torch.sin(2 * x)

    def decode(self, z: Tensor) -> Tensor:
        return z + 0.1 * torch.sin(2 * z)


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_vae_projection"])
def test_flair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flair", name)
    p = case.params
    feed(monkeypatch, "flair", iter([case["noise_start"], *case["noise"]]))
    sampler = FLAIR(
        num_steps=p["n_steps"],
        t_min=p["ts_min"],
        weights=tuple(case["reg_weight"].tolist()),
        data_steps=p["likelihood_steps"],
        data_step=p["lr_data"] * p["likelihood_weight"],
        data_weight="regulariser" if p["likelihood_weight_mode"] == "reg_weight" else "constant",
        tolerance=p["early_stopping"],
        projection=p["projection"],
        damping=1e-9,
        space=Sine() if "vae" in name else PixelSpace(),
    )
    after_regulariser: list[Tensor] = []
    fit = FLAIR.fit

    def watched(self: FLAIR, measurement: object, mu: Tensor, *rest: object) -> Tensor:
        after_regulariser.append(mu)
        return fit(self, measurement, mu, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FLAIR, "fit", watched)
    states, estimates, final = run(sampler, case)
    for step, t in enumerate(case["t"]):
        x_t = case["x_t"][step]
        assert_close(after_regulariser[step], case["mu_after_regulariser"][step], f"mu of step {step}")
        assert_close((x_t - estimates[step]) / t, case["velocity"][step], f"velocity of step {step}")
        assert_close((x_t - (1 - t) * estimates[step]) / t, case["eps"][step], f"noise of step {step}")
        assert_close(states[step], case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


def test_published_weights_of_flair() -> None:
    """Interpolated between every fifth entry of the released table, against the full table."""
    case = Case("flair", "inpaint")
    ours = torch.tensor([FLAIR().weight(float(t), 1) for t in case["t"]]).double()
    torch.testing.assert_close(ours, case["reg_weight"], rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_constant"])
def test_pnpflow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("pnpflow", name)
    p = case.params
    feed(monkeypatch, "pnpflow", iter(case["noise"].flatten(0, 1)))
    sampler = PnPFlow(
        num_steps=p["steps"],
        num_draws=p["num_samples"],
        step_size=p["lr"],
        alpha=0.0 if p["gamma_style"] == "constant" else p["alpha"],
    )
    states, estimates, final = run(sampler, case, FromPureNoise(case.prior))
    for step, (z, x) in enumerate(zip(states, estimates, strict=True)):
        if step > 0:  # the first z is made of the start, A^T 1 there and 0 here, and is forgotten
            assert_close(z, case["z"][step], f"z of step {step}")
        assert_close(x, case["x"][step], f"x of step {step}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_sr"])
def test_flowdps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flowdps", name)
    p = case.params
    feed(monkeypatch, "flowdps", iter([case["x_init"], *case["noise"]]))
    if name == "dense_sr":  # the recording has the undamped pseudo-inverse
        monkeypatch.setattr("invsolve.samplers.flowdps.noise_level", lambda *_: 0.0)
    sampler = FlowDPS(
        num_steps=p["NFE"],
        step_size=p["step_size"] / 768**0.5,
        residual="adjoint" if p["residual"] == "At" else "pseudo_inverse",
    )
    guidance = 1.5 if name == "dense_sr" else 1.0  # v / 2 + 2 (v - v / 2)
    states, estimates, final = run(sampler, case, FromPureNoise(case.prior, guidance))
    following = [*case["sigmas"][1:], torch.tensor(0.0)]
    for step, (x, consistent) in enumerate(zip(states, estimates, strict=True)):
        assert_close(consistent, case["x0_data"][step], f"x0_data of step {step}")
        assert_close((1 - following[step]) * x, case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


@dataclass(frozen=True)
class UnitRange:
    """The stand-in flow of the recording, on images in [0, 1]."""

    prior: Prior
    source_std: float

    def __call__(self, z: Tensor, s: float) -> Tensor:
        level = 2 * (self.source_std * (1 - s) + 0.02)
        return ((self.prior.denoise(2 * z - 1, level) + 1) / 2 - z) / (1.1 - s)


@pytest.mark.parametrize("name", ["inpaint", "dense"])
def test_pmrf(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = PMRFCase(name)
    feed(monkeypatch, "pmrf", iter([recording["noise"]]))
    p = recording.params
    sampler = PMRF(
        estimator=lambda _: recording["mmse_estimate"],
        flow=UnitRange(recording.prior, p["source_noise_std"]),
        num_steps=p["num_flow_steps"],
        source_std=p["source_noise_std"],
        time_min=p["eps"],
    )
    unit = FromPureNoise(recording.prior)
    unit.data_range = (0.0, 1.0)
    states, _, final = run(sampler, recording, unit)
    for step, z in enumerate(states):
        assert_close(z, recording["x"][step + 1], f"state of step {step}")
    assert_close(final, recording["final"], "final")


class PMRFCase(Case):
    """Recorded without a measurement: what the estimator makes of it is recorded instead."""

    def __init__(self, case: str) -> None:
        super().__init__("pmrf", case)

    def __getitem__(self, name: str) -> Tensor:
        if name == "y":
            shape = (1, 3, 16, 16) if self.case == "inpaint" else (1, 128)
            return torch.zeros(shape, dtype=torch.float64)
        return super().__getitem__(name)
