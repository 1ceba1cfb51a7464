"""The settings that papers and their codes used for the restoration tasks of 256 x 256 faces (FFHQ).

All are for data in [-1, 1] and, where the data are noisy, Gaussian noise of standard deviation 0.05 in that range. They
are what was published, not what is best with another prior: take "fast", "balanced" or "best" for that.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

from invsolve.samplers.schedules import quadratic

TASKS = {
    "sr4": "bicubic downsampling by 4",
    "gaussian-deblur": "Gaussian kernel, 61 x 61, standard deviation 3",
    "motion-deblur": "motion kernel, 61 x 61, intensity 0.5",
    "box-inpainting": "a lost box of 128 x 128",
    "random-inpainting": "70 to 92 % of the pixels lost",
    "phase-retrieval": "Fourier magnitudes, oversampled by 2",
    "nonlinear-deblur": "a neural blur kernel",
    "hdr": "clipping of twice the values",
}
"""The tasks of Chung et al. (arXiv 2209.14687) and Zhang et al. (arXiv 2407.01521), by name."""

_LINEAR = ("sr4", "gaussian-deblur", "motion-deblur", "box-inpainting", "random-inpainting")


def _everywhere(settings: dict[str, Any], tasks: tuple[str, ...] = _LINEAR) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(tasks, settings)


_DAPS: dict[str, Any] = {"num_steps": 200, "ode_steps": 5, "grid": "open", "ode_end": False, "inner": "langevin"}
_DAPS["tau"] = 0.01 / math.sqrt(2)
_DIFFPIR_100: dict[str, Any] = {"levels": tuple(quadratic(100).tolist()), "clip": True}
_PNPDM: dict[str, Any] = {"num_steps": 100, "rho_max": 10.0, "rho_decay": 0.9, "entry": "below", "prior_step": "sde"}

PAPER: dict[str, dict[str, dict[str, Any]]] = {
    # The authors' configuration files, which differ from the paper's table (zeta' 1.0 / 1.0 / 1.0 / 1.0 / 0.4).
    "dps": {
        "sr4": {"num_steps": 1000, "step_size": 0.3},
        "gaussian-deblur": {"num_steps": 1000, "step_size": 0.3},
        "motion-deblur": {"num_steps": 1000, "step_size": 0.3},
        "box-inpainting": {"num_steps": 1000, "step_size": 0.5},
        "random-inpainting": {"num_steps": 1000, "step_size": 0.5},
        "phase-retrieval": {"num_steps": 1000, "step_size": 1.0},
        "nonlinear-deblur": {"num_steps": 1000, "step_size": 0.3},
    },
    "mcg": _everywhere({"num_steps": 1000, "step_size": 1.0}),
    "ddrm": _everywhere({"num_steps": 20, "eta": 0.85, "eta_b": 1.0}),
    "ddnm": _everywhere({"num_steps": 100, "eta": 0.85}),
    # 100 evaluations are what the tables that quote it used.
    "pigdm": _everywhere({"num_steps": 100, "eta": 1.0, "guidance": "paper"}),
    "tmpd": _everywhere({"num_steps": 1000}),
    "ilvr": {"sr4": {"num_steps": 1000}},
    "scoresde": _everywhere({"num_steps": 1000, "corrector_steps": 1, "snr": 0.16}, ("box-inpainting", "sr4")),
    "dds": _everywhere({"num_steps": 50, "gamma": 1.0, "cg_iterations": 5, "eta": 0.85}),
    # The scripts multiply lambda by 7 and zeta by 3; lambda is a quarter of theirs because their noise level is that of
    # [0, 1]. Super-resolution sweeps lambda over 2 to 12.
    "diffpir": {
        "gaussian-deblur": {"lam": 7 / 4, "zeta": 0.3, **_DIFFPIR_100},
        "motion-deblur": {"lam": 7 / 4, "zeta": 0.3, **_DIFFPIR_100},
        "sr4": {"lam": 6 / 4, "zeta": 0.25, **_DIFFPIR_100},
        "box-inpainting": {"lam": 1 / 4, "zeta": 1.0, **_DIFFPIR_100},
        "random-inpainting": {"lam": 1 / 4, "zeta": 1.0, **_DIFFPIR_100},
    },
    # The commands of the current release. Its likelihood has a noise of 0.01 / sqrt(2) whatever the data's.
    "daps": {
        "sr4": {**_DAPS, "inner_steps": 100, "step_size": 1e-4},
        "gaussian-deblur": {**_DAPS, "inner_steps": 100, "step_size": 1e-4},
        "motion-deblur": {**_DAPS, "inner_steps": 100, "step_size": 5e-5},
        "box-inpainting": {**_DAPS, "inner_steps": 100, "step_size": 5e-5},
        "random-inpainting": {**_DAPS, "inner_steps": 100, "step_size": 1e-4},
        "phase-retrieval": {**_DAPS, "inner_steps": 100, "step_size": 5e-5},
        "nonlinear-deblur": {**_DAPS, "inner_steps": 200, "step_size": 1e-5},
        "hdr": {**_DAPS, "inner_steps": 100, "step_size": 2e-5},
    },
    "pnpdm": {
        **_everywhere({**_PNPDM, "rho_min": 0.3}),
        "phase-retrieval": {**_PNPDM, "rho_min": 0.1, "inner": "langevin", "inner_steps": 100, "step_size": 1e-4},
    },
    "reddiff": _everywhere({"num_steps": 1000, "step_size": 0.1, "lam": 0.25}, (*_LINEAR, "phase-retrieval", "hdr")),
    # Latent at 512 x 512 in the paper; the nearest that pixels have.
    "rsd": {
        "box-inpainting": {"num_steps": 999, "step_size": 0.4, "weight": 0.15, "rho": 0.07, "repulsion": 0.0},
        "phase-retrieval": {"num_steps": 999, "step_size": 0.6, "weight": 0.02, "rho": 0.07, "repulsion": 30.0},
        "hdr": {"num_steps": 999, "step_size": 0.1, "weight": 0.008, "rho": 0.2, "repulsion": 0.0},
    },
    # Latent at 768 x 768 in the papers, noise 0.01 and 0.03.
    "flair": _everywhere({"num_steps": 50}, ("sr4", "motion-deblur", "box-inpainting")),
    "flowdps": {
        "sr4": {"num_steps": 28, "residual": "pseudo_inverse"},
        **_everywhere({"num_steps": 28}, ("gaussian-deblur", "motion-deblur")),
    },
    # Cats and faces of 128 and 256 pixels.
    "pnpflow": {
        "gaussian-deblur": {"num_steps": 100, "num_draws": 5, "alpha": 0.01},
        "sr4": {"num_steps": 100, "num_draws": 5, "alpha": 0.3},
        "box-inpainting": {"num_steps": 100, "num_draws": 5, "alpha": 0.5},
        "random-inpainting": {"num_steps": 100, "num_draws": 5, "alpha": 0.01},
    },
    # From a re-run by the authors of PnP-Flow.
    "otode": {
        "gaussian-deblur": {"num_steps": 60, "start_time": 0.4, "guidance": "decaying"},
        "sr4": {"num_steps": 90, "start_time": 0.1, "guidance": "constant"},
        "box-inpainting": {"num_steps": 90, "start_time": 0.1, "guidance": "decaying"},
        "random-inpainting": {"num_steps": 90, "start_time": 0.1, "guidance": "constant"},
    },
    # Likewise: outer iterations of 20 evaluations each.
    "dflow": {
        "gaussian-deblur": {"num_steps": 140, "lam": 1e-3},
        "sr4": {"num_steps": 200, "lam": 1e-3},
        "box-inpainting": {"num_steps": 180, "lam": 1e-3},
        "random-inpainting": {"num_steps": 400, "lam": 1e-3},
    },
}
"""Method -> task -> hyper-parameters."""


def ffhq_settings(method: str, task: str) -> dict[str, Any]:
    """The published hyper-parameters of a method for a task; `solve(preset="paper:ffhq-<task>")` takes them.

    Raises:
        ValueError: an unknown task (the nearest one is suggested), or a method without published settings for it.
    """
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(TASKS)}."
        raise ValueError(f"unknown FFHQ task {task!r}; {hint}")
    rows = PAPER.get(method, {})
    if task not in rows:
        able = ", ".join(name for name, tasks in PAPER.items() if task in tasks)
        raise ValueError(f"no published settings of {method} for the FFHQ task {task!r}; {able} have them.")
    return dict(rows[task])
