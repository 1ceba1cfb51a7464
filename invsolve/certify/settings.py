"""Settings that compare methods on equal terms: the preset "reference" of `invsolve certify`.

The shipped presets suit pictures: some begin at levels where the 25 modes of the benchmark have long parted. Here
every method that takes levels begins at the prior's largest, four times the length of the outermost mean, and ends at
a hundredth of a component's standard deviation, with about 200 of them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from invsolve.certify.mixture import SCALE, MixtureProblem
from invsolve.samplers.base import Sampler
from invsolve.samplers.presets import SAMPLERS

UNIT = 1 / SCALE
"""Standard deviation of a component, model units: the paper's 1."""
LAST_LEVEL = 0.01 * UNIT
_EDM = {"num_steps": 200, "schedule": "edm"}

REFERENCE: dict[str, dict[str, Any]] = {
    "daps": {"num_steps": 200, "ode_steps": 5, "ode_sigma_min": LAST_LEVEL, "prior_std": None},
    "daps-tweedie": {"num_steps": 200, "ode_steps": 1, "ode_sigma_min": LAST_LEVEL, "prior_std": UNIT},
    "ddnm": _EDM,
    "ddrm": _EDM,
    "dds": {"num_steps": 200},
    "dflow": {"num_steps": 45, "ode_steps": 5},
    "diffpir": {"num_steps": 200, "lam": 1.0, "zeta": 1.0, "begin": "noise"},
    "diffpir-zeta0.3": {"num_steps": 200, "lam": 1.0, "zeta": 0.3, "begin": "noise"},
    "dps": {"num_steps": 200, "step_size": 0.3},
    "enkg": {"num_steps": 50, "num_particles": 512},
    "flair": {"num_steps": 200},
    "flowchef": {"num_steps": 200, "step_size": 0.2},
    "flowdps": {"num_steps": 200},
    "fpssmc": {"num_steps": 100, "num_particles": 1000},
    "ilvr": _EDM,
    "langevin": {"num_steps": 1000, "prior_std": UNIT},
    "lgd": _EDM | {"data_std": UNIT},
    "mcg": {"num_steps": 200, "step_size": 1.0},
    "mcgdiff": {"num_steps": 100, "num_particles": 1000},
    "mmps": _EDM | {"cg_iterations": 5},
    "otode": {"num_steps": 200, "start_time": 0.03, "prior_std": UNIT},
    "pigdm": _EDM | {"guidance": "bayes", "data_std": UNIT},
    "pnpdm": {"num_steps": 100, "rho_decay": 0.9, "rho_min": 0.3 * UNIT, "begin": "noise", "prior_std": UNIT},
    "pnpflow": {"num_steps": 200, "num_draws": 1},
    "reddiff": {"num_steps": 1000, "step_size": 0.1, "lam": 0.25, "weighting": "linear"},
    "rsd": {"num_steps": 200, "step_size": 0.1},
    "scg": {"num_steps": 200},
    "scoresde": {"num_steps": 200, "predictor": "ancestral"},
    "tds": {"num_steps": 100, "num_particles": 1000, "prior_std": UNIT, "kernel_std": None},
    "tmpd": _EDM,
    "twistedmmps": {"num_steps": 100, "num_particles": 8},
}
"""By method, or by method-variant."""


def reference(name: str, problem: MixtureProblem) -> Sampler:
    """The sampler of a method, or of one of the variants in `REFERENCE`, for one problem.

    `sigma_max` and `sigma_min` follow the problem, and with PnP-DM the first coupling; the rest is `REFERENCE`.
    """
    cls = SAMPLERS[name.partition("-")[0]]
    levels = {"sigma_max": problem.prior.sigma_max, "sigma_min": LAST_LEVEL, "rho_max": problem.prior.sigma_max}
    known = {field.name for field in fields(cls)}
    return cls(**{key: value for key, value in levels.items() if key in known} | REFERENCE[name])
