"""Broken samplers must fail the tests of `test_exact.py`: each mutant is made, and its test must turn red."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from invsolve.operators import Mask
from invsolve.operators import standard_normal as real_noise
from invsolve.samplers import schedules
from invsolve.samplers.base import noise_level as real_level
from invsolve.samplers.dps import vp_gain as real_gain


def load_exact_tests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exact_tests", Path(__file__).with_name("test_exact.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weaker_noise(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(f"invsolve.samplers.{module}.standard_normal", lambda like, g: real_noise(like, g) / math.sqrt(2))


def no_last_step(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(schedules, "with_zero", lambda levels: levels.tolist())


def doubled_guidance(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(f"invsolve.samplers.{module}.vp_gain", lambda sigma, tau: 2 * real_gain(sigma, tau))


def doubled_likelihood(patch: pytest.MonkeyPatch, module: str) -> None:
    patch.setattr(f"invsolve.samplers.{module}.noise_level", lambda sampler, m: real_level(sampler, m) / math.sqrt(2))


def doubled_data_term(patch: pytest.MonkeyPatch, module: str) -> None:
    adjoint = Mask.adjoint
    patch.setattr(Mask, "adjoint", lambda self, y: 2 * adjoint(self, y))


def no_projection(patch: pytest.MonkeyPatch, module: str) -> None:
    def nothing(self: Mask, y: Tensor, damping: Any, **options: Any) -> Tensor:
        return torch.zeros_like(y)

    patch.setattr(Mask, "pseudo_inverse", nothing)


MUTANTS = [
    ("dps", "dps", weaker_noise),
    ("dps", "dps", no_last_step),
    ("dps", "dps", doubled_guidance),
    ("mcg", "mcg", weaker_noise),
    ("mcg", "mcg", no_last_step),
    ("mcg", "mcg", doubled_guidance),
    ("mcg", "mcg", no_projection),
    ("dds", "dds", weaker_noise),
    ("dds", "dds", no_last_step),
    ("dds", "dds", doubled_data_term),
    ("dds-closed", "dds", doubled_data_term),
    ("diffpir", "diffpir", weaker_noise),
    ("diffpir", "diffpir", no_last_step),
    ("diffpir", "diffpir", doubled_likelihood),
    ("diffpir-cool", "diffpir", weaker_noise),
    ("diffpir-cool", "diffpir", doubled_likelihood),
    ("daps", "daps", weaker_noise),
    ("daps", "daps", no_last_step),
    ("daps", "daps", doubled_likelihood),
    ("daps-tweedie", "daps", weaker_noise),
    ("daps-tweedie", "daps", doubled_likelihood),
]


@pytest.mark.parametrize(("case", "module", "mutate"), MUTANTS, ids=[f"{c}-{m.__name__}" for c, _, m in MUTANTS])
def test_mutant_is_caught(case: str, module: str, mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = load_exact_tests()
    exact.test_law_on_a_gaussian_prior(case)
    mutate(monkeypatch, module)
    with pytest.raises(AssertionError):
        exact.test_law_on_a_gaussian_prior(case)
