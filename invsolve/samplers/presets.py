"""Methods by name: their settings at each preset, and the automatic choice."""

from __future__ import annotations

import difflib
from typing import Any

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.samplers.base import Sampler
from invsolve.samplers.daps import DAPS
from invsolve.samplers.dds import DDS
from invsolve.samplers.diffpir import DiffPIR
from invsolve.samplers.dps import DPS
from invsolve.samplers.mcg import MCG

SAMPLERS: dict[str, type[Sampler]] = {cls.name(): cls for cls in (DAPS, DDS, DiffPIR, DPS, MCG)}
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
        "fast": {"num_steps": 20},
        "balanced": {"num_steps": 50},
        "best": {"num_steps": 100},
    },
    "diffpir": {
        "fast": {"num_steps": 15, "sigma_max": 2.0, "lam": 0.6},
        "balanced": {"num_steps": 40, "sigma_max": 2.0, "lam": 0.6},
        "best": {"num_steps": 200, "sigma_max": 2.0, "lam": 0.6},
    },
    "daps": {
        "fast": {"num_steps": 25, "ode_steps": 1, "sigma_max": 3.0, "sigma_min": 0.03, "prior_std": 0.1},
        "balanced": {"num_steps": 50, "ode_steps": 2, "sigma_max": 3.0, "sigma_min": 0.03, "prior_std": 0.1},
        "best": {"num_steps": 200, "ode_steps": 5, "sigma_max": 100.0, "sigma_min": 0.03, "prior_std": 0.1},
    },
}


_DETERMINISTIC = {"temperature": 0.0, "sigma_max": 1.0, "lam": 0.4}


def choose(method: str | Sampler, preset: str, measurement: Measurement, num_samples: int = 1) -> Sampler:
    """The sampler for a method name and preset, or the given sampler itself.

    "auto" takes DPS for a nonlinear operator and DiffPIR for a linear one. Where one picture is asked for and the
    operator works pixel by pixel (denoising, inpainting, colouring), it runs DiffPIR at temperature 0, whose result is
    an estimate of small squared error rather than a random draw; for blur and decimation the draws at temperature 1
    measured better even singly (docs/benchmarks.md). "daps" takes Langevin steps where the operator is not
    linear. Whether a sampler can serve the operator at all, it says itself when called.

    Raises:
        ValueError: unknown names (the nearest one is suggested).
    """
    if isinstance(method, Sampler):
        return method
    _known("preset", preset, PRESETS)
    _known("method", method, ("auto", *SAMPLERS))
    operator = measurement.operator
    linear = isinstance(operator, LinearOperator)
    name = ("diffpir" if linear else "dps") if method == "auto" else method
    settings = _SETTINGS[name][preset]
    if method == "auto" and num_samples == 1 and isinstance(operator, LinearOperator) and operator.pixelwise:
        settings = settings | _DETERMINISTIC
    if name == "daps" and not linear:
        settings = settings | {"inner": "langevin"}
    return SAMPLERS[name](**settings)


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}."
        raise ValueError(f"unknown {what} {name!r}; {hint}")
