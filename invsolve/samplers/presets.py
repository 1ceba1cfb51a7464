"""Methods by name: their settings at each preset, and the automatic choice."""

from __future__ import annotations

import difflib
from typing import Any

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.samplers.base import Sampler
from invsolve.samplers.daps import DAPS
from invsolve.samplers.dds import DDS
from invsolve.samplers.dps import DPS
from invsolve.samplers.mcg import MCG

SAMPLERS: dict[str, type[Sampler]] = {cls.name(): cls for cls in (DAPS, DDS, DPS, MCG)}
PRESETS = ("fast", "balanced", "best")
"""At most 25, 100 and 1000 network evaluations per sample."""

_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dps": {
        "fast": {"num_steps": 25, "step_size": 12.0},
        "balanced": {"num_steps": 100, "step_size": 3.0},
        "best": {"num_steps": 1000, "step_size": 0.3},
    },
    "mcg": {
        "fast": {"num_steps": 25, "step_size": 40.0},
        "balanced": {"num_steps": 100, "step_size": 10.0},
        "best": {"num_steps": 1000, "step_size": 1.0},
    },
    "dds": {
        "fast": {"num_steps": 20, "eta": 0.15},
        "balanced": {"num_steps": 50, "eta": 0.5},
        "best": {"num_steps": 100, "eta": 0.85},
    },
    "daps": {
        "fast": {"num_steps": 20, "ode_steps": 1, "sigma_max": 10.0, "sigma_min": 0.02, "prior_std": 0.5},
        "balanced": {"num_steps": 50, "ode_steps": 2, "sigma_max": 10.0, "sigma_min": 0.02, "prior_std": 0.5},
        "best": {"num_steps": 200, "ode_steps": 5, "sigma_max": 100.0, "sigma_min": 0.02, "prior_std": 0.5},
    },
}


def choose(method: str | Sampler, preset: str, measurement: Measurement) -> Sampler:
    """The sampler for a method name and preset, or the given sampler itself.

    "auto" takes DAPS with the exact Gaussian step for every linear operator, and DPS for a nonlinear one.

    Raises:
        ValueError: unknown names (the nearest one is suggested), or a sampler that cannot serve the operator.
    """
    if isinstance(method, Sampler):
        sampler = method
    else:
        _known("preset", preset, PRESETS)
        _known("method", method, ("auto", *SAMPLERS))
        linear = isinstance(measurement.operator, LinearOperator)
        name = ("daps" if linear else "dps") if method == "auto" else method
        sampler = SAMPLERS[name](**_SETTINGS[name][preset])
    if sampler.needs_linear and not isinstance(measurement.operator, LinearOperator):
        usable = ", ".join(name for name, cls in SAMPLERS.items() if not cls.needs_linear)
        raise ValueError(f"{sampler.name()} needs a linear operator; for this one use {usable}.")
    return sampler


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}."
        raise ValueError(f"unknown {what} {name!r}; {hint}")
