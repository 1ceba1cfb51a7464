"""invsolve restores images from incomplete, blurred or noisy measurements with pretrained diffusion and flow models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from invsolve.inference import Posterior, solve
    from invsolve.operators.measurement import Measurement
    from invsolve.priors.registry import load_prior

_PUBLIC = {
    "Measurement": "invsolve.operators.measurement",
    "Posterior": "invsolve.inference",
    "load_prior": "invsolve.priors.registry",
    "solve": "invsolve.inference",
}
_MODULES = ("operators", "priors", "problems", "samplers", "training")

__all__ = ["Measurement", "Posterior", "__version__", "load_prior", "solve"]


def __getattr__(name: str) -> Any:
    """Import public names at first use, so that `import invsolve` itself stays cheap."""
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = import_module(f"invsolve.{name}")
    else:
        raise AttributeError(f"module 'invsolve' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
