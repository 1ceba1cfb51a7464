"""Trajectories of the official implementations, reproduced state by state when fed their random numbers."""

from __future__ import annotations

import math

import pytest
from golden import Case, assert_close, feed, needs_recordings, next_alphas, run, to_vp

from invsolve.samplers import DAPS, DDS, DPS, MCG

pytestmark = needs_recordings


@pytest.mark.parametrize("name", ["inpaint", "dense", "dense_learned_variance"])
def test_dps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dps", name)
    feed(monkeypatch, "dps", iter([case["x_init"], *case["noise"]]))
    sampler = DPS(num_steps=10, step_size=case.params["scale"], variance=0.7 if "learned" in name else 0.0)
    states, estimates, final = run(sampler, case)
    previous = next_alphas(case)
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
    previous = next_alphas(case)
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
    previous = next_alphas(case)
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
