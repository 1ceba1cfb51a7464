"""Projection and guidance samplers against recorded trajectories of official implementations; see `golden.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import Case, assert_close, feed, needs_recordings, run, to_vp
from torch import Tensor

from invsolve.operators.spectral import filter_image
from invsolve.samplers.ddnm import DDNM
from invsolve.samplers.ddrm import DDRM
from invsolve.samplers.dps import DPS
from invsolve.samplers.flowchef import FlowChef
from invsolve.samplers.pigdm import PiGDM

pytestmark = needs_recordings

THREE = ["inpaint", "dense", "dense_etab"]


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_ode"])
def test_dps_euler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dps_ib", name)
    sde = case.params["sde"]
    feed(monkeypatch, "dps", iter([case["x_init_noise"], *(case["noise"] if sde else [])]))
    sampler = DPS(
        num_steps=len(case["x"]),
        step_size=case.params["guidance_scale"],
        clip=False,
        integrator="sde" if sde else "ode",
        schedule="vp" if name == "dense" else "edm",
    )
    states, estimates, final = run(sampler, case)
    for step, (x, x0_hat) in enumerate(zip(states, estimates, strict=True)):
        assert_close(x0_hat, case["x0_hat"][step], f"x0_hat of step {step}")
        assert_close(case["scalings"][step + 1] * x, case["x"][step], f"state of step {step}")
    assert_close(case["scalings"][-1] * final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_noiseless"])
def test_pigdm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("pigdm", name)
    feed(monkeypatch, "pigdm", iter([case["x_init_noise"], *case["noise"]]))
    sampler = PiGDM(
        num_steps=10,
        eta=case.params["eta"],
        guidance="unit",
        schedule="geometric",
        damping=1e-9,
        released=True,
    )
    compare(sampler, case)


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_noawd"])
def test_pigdm_of_its_authors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("pgdm_nv", name)
    feed(monkeypatch, "pigdm", iter([case["x_init_noise"], *case["noise"]]))
    guidance: Any = "unit" if case.params["awd"] else "substituted"
    sampler = PiGDM(num_steps=10, eta=case.params["eta"], guidance=guidance, warm_start=True, damping=1e-9)
    compare(sampler, case, case["alphas_cumprod_next"])


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("file", ["ddrm", "ddrm_ib"])
def test_ddrm(file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(file, name)
    authors = file == "ddrm"
    if authors:
        alphas = case["alphas_cumprod_next"]
        following = ((1 - alphas) / alphas).sqrt().tolist()
    else:
        following = case["sigmas"][1:].tolist()
    noise_std, operator = case.params["noise_std"], case.measurement.operator
    draws = [case["x_init_noise"]]
    for step, tau in enumerate(following):
        # The three recorded draws act on disjoint singular directions; ours is one draw for all.
        parts = {
            "unobserved": lambda s: (s == 0).to(s.dtype),
            "obs_high": lambda s, tau=tau: (s * tau >= noise_std).to(s.dtype),
            "obs_low": lambda s, tau=tau: ((s > 0) & (s * tau < noise_std)).to(s.dtype),
        }
        each = [filter_image(operator, case[f"noise_{k}"][step], part) for k, part in parts.items()]
        draws.append(torch.stack(each).sum(0))
    feed(monkeypatch, "ddrm", iter(draws))
    sampler = DDRM(
        num_steps=10,
        eta=case.params["eta"],
        eta_b=case.params["eta_b"],
        schedule="ddim" if authors else "geometric",
        released="authors" if authors else "inversebench",
    )
    compare(sampler, case, alphas if authors else None)


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_plus", "inpaint_plus_travel"])
def test_ddnm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("ddnm", name)
    p = case.params
    pairs = case["timestep_pairs"].long().tolist()
    # Of a climb in several moves only the last one counts: each starts anew from the denoised image.
    kept = [k for k, (a, b) in enumerate(pairs) if b < a or k + 1 == len(pairs) or pairs[k + 1][1] < pairs[k + 1][0]]
    feed(monkeypatch, "ddnm", iter([case["x_init"], *(case["noise"][k] for k in kept)]))
    sampler = DDNM(
        num_steps=p["T_sampling"],
        eta=p["eta"],
        travel_length=p["travel_length"],
        travel_repeat=p["travel_repeat"],
        damping=1e-9,
    )
    inputs = spy_inputs(case)
    final = sampler(case.measurement, case.prior)
    abar = {int(t): a for t, a in zip(case["timestep_pairs"][:, 0], case["alphas_cumprod_of_pair"][:, 0], strict=True)}
    assert len(inputs) == len(case["net_input"])
    for call, x in enumerate(inputs):
        alpha = abar[int(case["net_timestep"][call])]
        assert_close(to_vp(x, alpha), case["net_input"][call], f"input of call {call}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_travel"])
def test_ddnm_simplified(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("ddnm_ib", name)
    p = case.params
    draws, kinds = list(case["noise"]), case["noise_kind"].long().tolist()
    outer, used = -1, [case["x_init_noise"]]
    for draw, kind in zip(draws, kinds, strict=True):
        outer += kind == 0
        if kind == 1 or min(p["L"], outer) > 0:  # a draw is also recorded where there is no way to go back
            used.append(draw)
    feed(monkeypatch, "ddnm", iter(used))
    sampler = DDNM(
        num_steps=p["num_steps"],
        eta=p["eta"],
        travel_length=max(1, p["L"]),
        travel_repeat=2 if p["L"] else 1,
        schedule="geometric",
        damping=1e-9,
        simplified=True,
        released=True,
    )
    inputs = spy_inputs(case)
    final = sampler(case.measurement, case.prior)
    assert len(inputs) == len(case["net_input"])
    for call, x in enumerate(inputs):
        assert_close(x, case["net_input"][call], f"input of call {call}")
    assert_close(final, case["final"], "final")


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_heun"])
def test_flowchef(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flowchef", name)
    p = case.params
    case.prior.sigma_max = 1e9
    feed(monkeypatch, "flowchef", iter([case["x_init_noise"]]))
    heun = p["solver"] == "heun"
    steps = len(case["x"])
    sampler = FlowChef(num_steps=steps, step_size=p["gradient_scale"], loss="mean", order=2 if heun else 1)
    compare_flow(sampler, case, case["t"][1:])


@pytest.mark.parametrize("name", ["inpaint", "dense"])
def test_flowchef_of_latent_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flowchef_latent", name)
    case.prior.sigma_max = 1e12
    feed(monkeypatch, "flowchef", iter([case["x_init"]]))
    sampler = FlowChef(
        num_steps=10, step_size=case.params["step_size"], loss="norm", shift=4.0, guide_last=True, t_max=1 - 1e-9
    )
    compare_flow(sampler, case, torch.cat([case["sigmas"][1:], torch.zeros(1).double()]))


def compare(sampler: Any, case: Case, alphas: Tensor | None = None) -> None:
    """Every clean estimate, every state (in variance-preserving form if alphas are given) and the result."""
    states, estimates, final = run(sampler, case)
    for step, (x, x0_hat) in enumerate(zip(states, estimates, strict=True)):
        assert_close(x0_hat, case["x0_hat"][step], f"x0_hat of step {step}")
        ours = x if alphas is None else to_vp(x, alphas[step])
        assert_close(ours, case["x"][step], f"state of step {step}")
    assert_close(final, case["final"], "final")


def compare_flow(sampler: FlowChef, case: Case, times: Tensor) -> None:
    states, estimates, final = run(sampler, case)
    for step, (x, x0_hat) in enumerate(zip(states, estimates, strict=True)):
        assert_close((1 - times[step]) * x, case["x"][step], f"state of step {step}")
        assert_close(x0_hat, case["x0_hat"][step], f"x0_hat of step {step}")
    assert_close(final, case["final"], "final")


def spy_inputs(case: Case) -> list[Tensor]:
    """What the denoiser is asked, in order."""
    seen: list[Tensor] = []
    denoise = case.prior.denoise

    def spy(x: Tensor, sigma: Any) -> Tensor:
        seen.append(x.detach().clone())
        return denoise(x, sigma)

    case.prior.denoise = spy  # type: ignore[method-assign]
    return seen
