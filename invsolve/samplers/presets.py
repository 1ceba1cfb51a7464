"""Methods by name: their settings at each preset, and the automatic choice."""

from __future__ import annotations

import difflib
from typing import Any

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.samplers.base import Sampler
from invsolve.samplers.daps import DAPS
from invsolve.samplers.ddnm import DDNM
from invsolve.samplers.ddrm import DDRM
from invsolve.samplers.dds import DDS
from invsolve.samplers.dflow import DFlow
from invsolve.samplers.diffpir import DiffPIR
from invsolve.samplers.dps import DPS
from invsolve.samplers.enkg import EnKG
from invsolve.samplers.ffhq import ffhq_settings
from invsolve.samplers.flair import FLAIR
from invsolve.samplers.flowchef import FlowChef
from invsolve.samplers.flowdps import FlowDPS
from invsolve.samplers.fpssmc import FPSSMC
from invsolve.samplers.ilvr import ILVR
from invsolve.samplers.langevin import Langevin
from invsolve.samplers.lgd import LGD
from invsolve.samplers.mcg import MCG
from invsolve.samplers.mcgdiff import MCGdiff
from invsolve.samplers.mmps import MMPS
from invsolve.samplers.otode import OTODE
from invsolve.samplers.pigdm import PiGDM
from invsolve.samplers.pnpdm import PnPDM
from invsolve.samplers.pnpflow import PnPFlow
from invsolve.samplers.reddiff import REDDiff
from invsolve.samplers.rsd import RSD
from invsolve.samplers.scg import SCG
from invsolve.samplers.scoresde import ScoreSDE
from invsolve.samplers.tds import TDS
from invsolve.samplers.tmpd import TMPD
from invsolve.samplers.twistedmmps import TwistedMMPS

_CLASSES: tuple[type[Sampler], ...] = (
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DiffPIR,
    DPS,
    FlowChef,
    ILVR,
    LGD,
    MCG,
    MMPS,
    PiGDM,
    ScoreSDE,
    EnKG,
    FPSSMC,
    Langevin,
    MCGdiff,
    SCG,
    TDS,
    TMPD,
    TwistedMMPS,
    DFlow,
    FLAIR,
    FlowDPS,
    OTODE,
    PnPDM,
    PnPFlow,
    REDDiff,
    RSD,
)
SAMPLERS: dict[str, type[Sampler]] = {cls.name(): cls for cls in _CLASSES}
PRESETS = ("fast", "balanced", "best")
"""At most 25, 100 and 1000 network evaluations per sample. "paper:ffhq-<task>" takes the published settings."""

_FROM_NOISE = {"schedule": "edm", "sigma_max": 40.0, "sigma_min": 0.02}
_ANCESTRAL = {"predictor": "ancestral", "sigma_max": 40.0, "sigma_min": 0.02}

_GIBBS = {"rho_max": 2.0, "rho_min": 0.05, "sigma_max": 3.0, "sigma_min": 0.02}

_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # Particle methods: the numbers of evaluations are per particle. "best" is for posteriors that must be right.
    "tds": {
        "fast": {"num_steps": 25, "num_particles": 4},
        "balanced": {"num_steps": 50, "num_particles": 16},
        "best": {"num_steps": 100, "num_particles": 1000},
    },
    "mcgdiff": {
        "fast": {"num_steps": 25, "num_particles": 16},
        "balanced": {"num_steps": 50, "num_particles": 64},
        "best": {"num_steps": 100, "num_particles": 4000},
    },
    "fpssmc": {
        "fast": {"num_steps": 25, "num_particles": 16},
        "balanced": {"num_steps": 50, "num_particles": 64},
        "best": {"num_steps": 100, "num_particles": 4000},
    },
    # num_steps * num_particles evaluations a sample: unlike those above it keeps to the budget with its particles.
    "twistedmmps": {
        "fast": {"num_steps": 12, "num_particles": 2, "cg_iterations": 1},
        "balanced": {"num_steps": 25, "num_particles": 4, "cg_iterations": 3},
        "best": {"num_steps": 125, "num_particles": 8},
    },
    "enkg": {
        "fast": {"num_steps": 8, "num_particles": 32, "num_updates": 1},
        "balanced": {"num_steps": 20, "num_particles": 128, "num_updates": 1},
        "best": {"num_steps": 50, "num_particles": 512},
    },
    "scg": {
        "fast": {"num_steps": 25, "num_candidates": 8},
        "balanced": {"num_steps": 100, "num_candidates": 16},
        "best": {"num_steps": 500, "num_candidates": 64},
    },
    "langevin": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 100},
        "best": {"num_steps": 1000},
    },
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
    # Few steps need more weight on the prior, or what a motion blur amplifies is not taken out again.
    "diffpir": {
        "fast": {"num_steps": 15, "sigma_max": 2.0, "lam": 1.0},
        "balanced": {"num_steps": 40, "sigma_max": 2.0, "lam": 0.6},
        "best": {"num_steps": 200, "sigma_max": 2.0, "lam": 0.6},
    },
    "daps": {
        "fast": {"num_steps": 25, "ode_steps": 1, "sigma_max": 3.0, "sigma_min": 0.03, "prior_std": 0.1},
        "balanced": {"num_steps": 50, "ode_steps": 2, "sigma_max": 3.0, "sigma_min": 0.03, "prior_std": 0.1},
        "best": {"num_steps": 200, "ode_steps": 5, "sigma_max": 100.0, "sigma_min": 0.03, "prior_std": 0.1},
    },
    "scoresde": {
        "fast": {"num_steps": 25, "corrector_steps": 0, **_ANCESTRAL},
        "balanced": {"num_steps": 50, **_ANCESTRAL},
        "best": {"num_steps": 500, **_ANCESTRAL},
    },
    "ilvr": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 100},
        "best": {"num_steps": 1000},
    },
    "pigdm": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 100},
        "best": {"num_steps": 500},
    },
    "tmpd": {
        "fast": {"num_steps": 25, **_FROM_NOISE},
        "balanced": {"num_steps": 100, **_FROM_NOISE},
        "best": {"num_steps": 500, **_FROM_NOISE},
    },
    "mmps": {
        "fast": {"num_steps": 25, "cg_iterations": 1, **_FROM_NOISE},
        "balanced": {"num_steps": 50, "cg_iterations": 3, **_FROM_NOISE},
        "best": {"num_steps": 200, "cg_iterations": 5, **_FROM_NOISE},
    },
    "lgd": {
        "fast": {"num_steps": 25, **_FROM_NOISE},
        "balanced": {"num_steps": 100, **_FROM_NOISE},
        "best": {"num_steps": 500, **_FROM_NOISE},
    },
    "ddrm": {
        "fast": {"num_steps": 20},
        "balanced": {"num_steps": 50},
        "best": {"num_steps": 200},
    },
    "ddnm": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 100},
        "best": {"num_steps": 200, "travel_length": 5, "travel_repeat": 3},
    },
    "flowchef": {
        "fast": {"num_steps": 25, "step_size": 0.5},
        "balanced": {"num_steps": 100, "step_size": 0.3},
        "best": {"num_steps": 500, "step_size": 0.2},
    },
    "pnpdm": {
        "fast": {"num_steps": 7, "grid_steps": 5, "rho_decay": 0.55, **_GIBBS},
        "balanced": {"num_steps": 19, "grid_steps": 8, "rho_decay": 0.84, **_GIBBS},
        "best": {"num_steps": 100, "grid_steps": 16, "rho_decay": 0.96, **_GIBBS},
    },
    "reddiff": {
        "fast": {"num_steps": 25, "step_size": 0.3, "weighting": "sqrt"},
        "balanced": {"num_steps": 100, "step_size": 0.1},
        "best": {"num_steps": 1000, "step_size": 0.1},
    },
    "rsd": {
        "fast": {"num_steps": 25, "step_size": 0.3},
        "balanced": {"num_steps": 100, "step_size": 0.1},
        "best": {"num_steps": 1000, "step_size": 0.1},
    },
    "flair": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 50},
        "best": {"num_steps": 200},
    },
    "pnpflow": {
        "fast": {"num_steps": 25, "num_draws": 1, "alpha": 0.01},
        "balanced": {"num_steps": 50, "num_draws": 2, "alpha": 0.01},
        "best": {"num_steps": 100, "num_draws": 5, "alpha": 0.01},
    },
    "flowdps": {
        "fast": {"num_steps": 25, "step_size": 0.1},
        "balanced": {"num_steps": 50, "step_size": 0.1},
        "best": {"num_steps": 200, "step_size": 0.04},
    },
    "otode": {
        "fast": {"num_steps": 25},
        "balanced": {"num_steps": 100},
        "best": {"num_steps": 400},
    },
    # The network's activations of fewer than ten evaluations are kept; "best" has ten and computes them twice.
    "dflow": {
        "fast": {"num_steps": 5, "ode_steps": 2, "checkpoint": False},
        "balanced": {"num_steps": 15, "ode_steps": 3, "checkpoint": False},
        "best": {"num_steps": 45, "ode_steps": 5, "checkpoint": True},
    },
}


_DETERMINISTIC = {"temperature": 0.0, "sigma_max": 1.0, "lam": 0.4}
# The back-projection of k-space is near the image already, and what is missing is aliased rather than lost.
_KSPACE = {"sigma_max": 0.5, "lam": 1.0}


def choose(method: str | Sampler, preset: str, measurement: Measurement, num_samples: int = 1) -> Sampler:
    """The sampler for a method name and preset, or the given sampler itself.

    "auto" takes DPS for a nonlinear operator and DiffPIR for a linear one. Where one picture is asked for and the
    operator works pixel by pixel (denoising, inpainting, colouring), it runs DiffPIR at temperature 0, whose result is
    an estimate of small squared error rather than a random draw; for blur and decimation the draws at temperature 1
    measured better even singly (docs/benchmarks.md). For complex measurements, k-space, it starts at a lower level and
    weighs the prior more. Where the operator is not linear a method takes its
    `nonlinear_settings`, DAPS Langevin steps. The presets "paper:ffhq-sr4" and its like are a method's published
    settings, see `ffhq`. Whether a sampler can serve the operator at all, it says itself when called.

    Raises:
        ValueError: unknown names (the nearest one is suggested).
    """
    if isinstance(method, Sampler):
        return method
    paper = preset.startswith("paper:")
    if not paper:
        _known("preset", preset, PRESETS)
    _known("method", method, ("auto", *SAMPLERS))
    operator = measurement.operator
    linear = isinstance(operator, LinearOperator)
    name = ("diffpir" if linear else "dps") if method == "auto" else method
    if paper:
        suite, _, task = preset.removeprefix("paper:").partition("-")
        _known("suite of paper settings", suite, ("ffhq",))
        if method == "auto":
            raise ValueError("name the method whose published settings to take, not 'auto'.")
        return SAMPLERS[name](**ffhq_settings(name, task))
    settings = _SETTINGS[name][preset]
    if method == "auto" and linear and measurement.y.is_complex():
        settings = settings | _KSPACE
    if method == "auto" and num_samples == 1 and isinstance(operator, LinearOperator) and operator.pixelwise:
        settings = settings | _DETERMINISTIC
    if not linear:
        settings = settings | dict(SAMPLERS[name].nonlinear_settings)
    return SAMPLERS[name](**settings)


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}."
        raise ValueError(f"unknown {what} {name!r}; {hint}")
