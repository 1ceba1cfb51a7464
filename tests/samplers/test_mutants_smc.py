"""Broken particle samplers must fail the tests of `test_exact_smc.py`: each mutant is made, and its test turns red."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from invsolve.operators import standard_normal as real_noise
from invsolve.samplers import schedules, smc
from invsolve.samplers.base import noise_level as real_level


def load_exact_tests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exact_smc_tests", Path(__file__).with_name("test_exact_smc.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXACT = load_exact_tests()


def weaker_noise(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(f"invsolve.samplers.{module}.standard_normal", lambda like, g: real_noise(like, g) / math.sqrt(2))


def doubled_likelihood(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(f"invsolve.samplers.{module}.noise_level", lambda sampler, m: real_level(sampler, m) / math.sqrt(2))


def no_last_step(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(schedules, "with_zero", lambda levels: levels.tolist())


def no_weights(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(smc.Weights, "multiply", lambda self, log_factors: None)


def resampling_without_weights(patch: pytest.MonkeyPatch, module: str) -> None:
    """Weights are set back, but every particle survives."""

    def everybody(log_weights: Tensor, u: Tensor, count: int) -> Tensor:
        index: Tensor = torch.arange(count, device=u.device).expand(len(log_weights), -1)
        return index

    patch.setattr(smc, "systematic", everybody)


def squared_weights(patch: pytest.MonkeyPatch, module: str) -> None:
    multiply = smc.Weights.multiply
    patch.setattr(smc.Weights, "multiply", lambda self, log_factors: multiply(self, 2 * log_factors))


def unweighted_draw(patch: pytest.MonkeyPatch, module: str) -> None:
    """The sample is the first particle, whatever its weight."""
    patch.setattr(smc.Cloud, "draw", lambda self, generator=None, count=None: self.particles[:, 0])


MUTANTS = [
    ("test_white_gaussian", "tds", "tds", doubled_likelihood),
    ("test_white_gaussian", "tds", "tds", weaker_noise),
    ("test_modes_get_their_weights", "tds", "tds", no_weights),
    ("test_the_result_carries_no_noise", "tds", "tds", no_last_step),
    ("test_modes_get_their_weights", "tds", "tds", squared_weights),
    ("test_white_gaussian", "mcgdiff", "mcgdiff", doubled_likelihood),
    ("test_white_gaussian", "mcgdiff", "mcgdiff", weaker_noise),
    ("test_the_result_carries_no_noise", "mcgdiff", "mcgdiff", no_last_step),
    ("test_modes_get_their_weights", "mcgdiff", "mcgdiff", no_weights),
    ("test_modes_get_their_weights", "mcgdiff", "mcgdiff", resampling_without_weights),
    ("test_white_gaussian", "fpssmc", "fpssmc", doubled_likelihood),
    ("test_white_gaussian", "fpssmc", "fpssmc", weaker_noise),
    ("test_the_result_carries_no_noise", "fpssmc", "fpssmc", no_last_step),
    ("test_modes_get_their_weights", "fpssmc", "fpssmc", no_weights),
    ("test_law_on_a_gaussian_prior", "fps", "fpssmc", doubled_likelihood),
    ("test_law_on_a_gaussian_prior", "fps", "fpssmc", weaker_noise),
    ("test_law_on_a_gaussian_prior", "langevin", "langevin", doubled_likelihood),
    ("test_law_on_a_gaussian_prior", "langevin", "langevin", weaker_noise),
    ("test_law_on_a_gaussian_prior", "scg-one", "scg", weaker_noise),
    ("test_the_result_carries_no_noise", "scg", "scg", no_last_step),
]


@pytest.mark.parametrize(
    ("test", "case", "module", "mutate"), MUTANTS, ids=[f"{c}-{m.__name__}" for _, c, _, m in MUTANTS]
)
def test_mutant_is_caught(test: str, case: str, module: str, mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unbroken sampler passes the same test in `test_exact_smc.py`."""
    mutate(monkeypatch, module)
    with pytest.raises((AssertionError, ValueError)):
        getattr(EXACT, test)(case)


def test_draw_by_weight_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """With adaptive resampling the last weights are unequal: taking the first particle is wrong."""
    cloud = smc.Cloud(
        torch.arange(4.0).reshape(1, 4, 1),
        torch.tensor([[0.1, 0.1, 0.1, 0.7]]).log(),
        torch.zeros(1, 1),
        torch.zeros(1),
    )

    def mean() -> float:
        draws = [float(cloud.draw(torch.Generator().manual_seed(k))) for k in range(400)]
        return sum(draws) / len(draws)

    assert abs(mean() - 2.4) < 0.2
    unweighted_draw(monkeypatch, "smc")
    assert abs(mean() - 2.4) > 0.2
