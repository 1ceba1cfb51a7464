"""Broken splitting and flow-based samplers must fail their tests: each mutant is made, and a test must turn red."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from invsolve.operators import LinearOperator, Mask, MatrixOperator
from invsolve.operators import standard_normal as real_noise
from invsolve.samplers import FLAIR, PMRF, DFlow, schedules
from invsolve.samplers.base import noise_level as real_level
from invsolve.samplers.flowdps import FlowDPS

Mutate = Callable[[pytest.MonkeyPatch], None]


def load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file, Path(__file__).with_name(f"{file}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weaker_noise(*modules: str) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        for module in modules:
            target = f"invsolve.samplers.{module}.standard_normal"
            patch.setattr(target, lambda like, g: real_noise(like, g) / math.sqrt(2))

    return mutate


def shorter(schedule: str) -> Mutate:
    """The last level is dropped."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        real = getattr(schedules, schedule)
        patch.setattr(schedules, schedule, lambda *args: real(*args)[:-1])

    return mutate


def doubled_likelihood(module: str) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(f"invsolve.samplers.{module}.noise_level", lambda s, m: real_level(s, m) / math.sqrt(2))

    return mutate


def doubled_adjoint(operator: type[LinearOperator]) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        real = operator.adjoint
        patch.setattr(operator, "adjoint", lambda self, y: 2 * real(self, y))

    return mutate


def replaced(target: type, name: str, wrap: Callable[[Any], Any]) -> Mutate:
    return lambda patch: patch.setattr(target, name, wrap(getattr(target, name)))


def patched(target: str, value: Any) -> Mutate:
    return lambda patch: patch.setattr(f"invsolve.samplers.{target}", value)


SPLIT, FLOW = "test_exact_split", "test_exact_flow"
LAW = "test_law_on_a_gaussian_prior"
MUTANTS: dict[str, tuple[str, str, tuple[str, ...], Mutate]] = {
    "pnpdm-noise-of-the-likelihood": (SPLIT, "test_law_of_pnpdm", ("pnpdm",), weaker_noise("daps")),
    "pnpdm-noise-of-the-prior": (SPLIT, "test_law_of_pnpdm", ("pnpdm",), weaker_noise("pnpdm")),
    "pnpdm-last-step": (SPLIT, "test_law_of_pnpdm", ("pnpdm",), shorter("with_zero")),
    "pnpdm-likelihood": (SPLIT, "test_law_of_pnpdm", ("pnpdm",), doubled_likelihood("pnpdm")),
    "pnpdm-langevin-likelihood": (SPLIT, "test_law_of_pnpdm", ("pnpdm-langevin",), doubled_adjoint(Mask)),
    "pnpdm-langevin-noise": (SPLIT, "test_law_of_pnpdm", ("pnpdm-langevin",), weaker_noise("daps")),
    "reddiff-noise": (SPLIT, "test_reddiff_is_adam_on_the_papers_objective", (), weaker_noise("reddiff")),
    "reddiff-last-step": (SPLIT, "test_reddiff_is_adam_on_the_papers_objective", (), shorter("ddim")),
    "reddiff-likelihood": (SPLIT, "test_reddiff_is_adam_on_the_papers_objective", (), doubled_adjoint(Mask)),
    "rsd-noise": (SPLIT, "test_rsd_is_adam_on_the_papers_objectives", (), weaker_noise("rsd")),
    "rsd-last-step": (SPLIT, "test_rsd_is_adam_on_the_papers_objectives", (), shorter("ddim")),
    "rsd-likelihood": (SPLIT, "test_rsd_is_adam_on_the_papers_objectives", (), doubled_adjoint(MatrixOperator)),
    "rsd-repulsion": (
        SPLIT,
        "test_rsd_is_adam_on_the_papers_objectives",
        (),
        patched("rsd.repulsive_force", lambda x, *_: 0 * x),
    ),
    "flair-noise": (FLOW, LAW, ("flair",), weaker_noise("flair")),
    "flair-last-step": (FLOW, LAW, ("flair",), shorter("flow")),
    "flair-likelihood": (FLOW, LAW, ("flair",), doubled_likelihood("flair")),
    "flair-no-data": (FLOW, LAW, ("flair",), replaced(FLAIR, "fit", lambda _: lambda self, m, mu, *rest: mu)),
    "pnpflow-noise": (FLOW, LAW, ("pnpflow",), weaker_noise("pnpflow")),
    "pnpflow-last-step": (FLOW, LAW, ("pnpflow",), shorter("flow")),
    "pnpflow-likelihood": (FLOW, LAW, ("pnpflow",), doubled_adjoint(Mask)),
    "flowdps-noise": (FLOW, LAW, ("flowdps",), weaker_noise("flowdps")),
    "flowdps-last-step": (FLOW, LAW, ("flowdps",), shorter("with_zero")),
    "flowdps-likelihood": (
        FLOW,
        LAW,
        ("flowdps",),
        replaced(FlowDPS, "direction", lambda real: lambda self, m: lambda x: 2 * real(self, m)(x)),
    ),
    "otode-noise": (FLOW, LAW, ("otode",), weaker_noise("otode")),
    "otode-last-step": (FLOW, LAW, ("otode",), shorter("with_zero")),
    "otode-likelihood": (FLOW, LAW, ("otode",), doubled_likelihood("otode")),
    "pmrf-noise": (FLOW, LAW, ("pmrf",), weaker_noise("pmrf")),
    "pmrf-last-step": (
        FLOW,
        LAW,
        ("pmrf",),
        lambda patch: patch.setattr("invsolve.samplers.pmrf.range", lambda n: range(n - 1), raising=False),
    ),
    "pmrf-likelihood": (  # there is none but that in the estimate: doubling it takes the posterior mean further to y
        FLOW,
        LAW,
        ("pmrf",),
        replaced(PMRF, "__call__", lambda real: lambda self, m, p, **rest: real(self, doubled_estimate(m), p, **rest)),
    ),
    "dflow-noise": (FLOW, LAW, ("dflow",), weaker_noise("dflow")),
    "dflow-last-step": (
        FLOW,
        LAW,
        ("dflow",),
        replaced(DFlow, "times", lambda real: lambda self, prior: real(self, prior)[:-1]),
    ),
    "dflow-likelihood": (FLOW, "test_dflow_is_stationary", (), doubled_likelihood("dflow")),
}


def doubled_estimate(measurement: Any) -> Any:
    """Data whose posterior mean, under the undoubled likelihood, is that of the doubled one."""
    from dataclasses import replace

    return replace(measurement, y=(1 + 0.3**2) / (1 + 0.3**2 / 2) * measurement.y)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, test, case, mutate = MUTANTS[name]
    run = getattr(load(file), test)
    run(*case)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run(*case)
    assert torch.is_grad_enabled()
