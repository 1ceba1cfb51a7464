"""Broken projection and guidance samplers must fail `test_exact_guidance.py`: each mutant turns its test red."""

from __future__ import annotations

import math
from typing import Any

import pytest
import test_exact_guidance as exact

from invsolve.operators import Mask
from invsolve.operators import standard_normal as real_noise
from invsolve.samplers import schedules
from invsolve.samplers.base import noise_level as real_level


def weaker_noise(patch: pytest.MonkeyPatch, module: str) -> None:
    """All injected noise divided by sqrt 2."""
    patch.setattr(f"invsolve.samplers.{module}.standard_normal", lambda like, g: real_noise(like, g) / math.sqrt(2))


def no_last_step(patch: pytest.MonkeyPatch, module: str) -> None:
    """The step from the last level to 0 dropped."""
    if module == "flowchef":
        times = exact.FlowChef.times
        patch.setattr(exact.FlowChef, "times", lambda self: times(self)[:-1])
        return
    patch.setattr(schedules, "with_zero", lambda levels: levels.tolist())
    euler = schedules.euler_edm
    patch.setattr(schedules, "euler_edm", lambda count: euler(count)[:-1])


def doubled_likelihood(patch: pytest.MonkeyPatch, module: str) -> None:
    """A likelihood of twice the weight: half the noise variance."""
    patch.setattr(f"invsolve.samplers.{module}.noise_level", lambda sampler, m: real_level(sampler, m) / math.sqrt(2))


def doubled_guidance(patch: pytest.MonkeyPatch, module: str) -> None:
    """The gradient of the misfit, or the merge with the data, twice as strong."""
    if module == "dps":
        gradient = exact.residual_gradient
        patch.setattr("invsolve.samplers.dps.residual_gradient", lambda *a: (gradient(*a)[0], 2 * gradient(*a)[1]))
    elif module == "flowchef":
        step = exact.FlowChef._gradient
        patch.setattr(exact.FlowChef, "_gradient", lambda self, m, x: 2 * step(self, m, x))
    else:
        inverse = Mask.pseudo_inverse
        patch.setattr(Mask, "pseudo_inverse", lambda self, y, *a, **k: 2 * inverse(self, y, *a, **k))


CASES = {
    "scoresde-noisy": ("scoresde", doubled_guidance),
    "ilvr-free": ("ilvr", doubled_guidance),
    "pigdm-paper": ("pigdm", doubled_likelihood),
    "pigdm-bayes": ("pigdm", doubled_likelihood),
    "tmpd": ("tmpd", doubled_likelihood),
    "mmps": ("mmps", doubled_likelihood),
    "lgd": ("lgd", doubled_likelihood),
    "ddrm": ("ddrm", doubled_likelihood),
    "ddnm-plus": ("ddnm", doubled_likelihood),
    "ddnm-simplified": ("ddnm", doubled_likelihood),
    "flowchef": ("flowchef", doubled_guidance),
    "dps-sde": ("dps", doubled_guidance),
}
MUTANTS = [(case, module, m) for case, (module, first) in CASES.items() for m in (first, weaker_noise, no_last_step)]


@pytest.mark.parametrize(("case", "module", "mutate"), MUTANTS, ids=[f"{c}-{m.__name__}" for c, _, m in MUTANTS])
def test_mutant_is_caught(case: str, module: str, mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, module)
    with pytest.raises(AssertionError):
        exact.test_law_on_a_gaussian_prior(case)
