"""What all samplers share: their contract, what they need, and how they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise, Generators
from invsolve.priors.base import Prior

Callback = Callable[[int, int, float, Tensor, Tensor], Any]
"""callback(step, total, sigma, x, denoised); a true return value stops the run, which then returns `denoised`."""

SOLVE_RTOL = 1e-4
"""Accuracy of the solves inside samplers, where the operator has no closed form.

They solve for a correction of the current image, which is itself a fraction of it, so that the error is far below that
of any network.
"""
SOLVE_ITERATIONS = 50
"""Their most iterations, for methods without a setting of their own: what a tiny damping would still change after them
are directions that the operator hardly sees."""


class DivergenceError(ValueError):
    """The iterate became NaN or infinite."""


@dataclass(frozen=True)
class Sampler:
    """Base of all samplers: a frozen set of hyper-parameters and one `__call__`.

    Class attributes say what a method needs and serves; `invsolve list samplers` prints them, and refusals name
    samplers that would work from them.

    Attributes:
        paper: arXiv id.
        needs_linear: A^H or a solve is used, so the operator must be a `LinearOperator`.
        needs_gradient: backpropagates through the network.
        needs_solve: solves (A^H A + damping I) x = rhs, in closed form or by conjugate gradient, at every step.
        needs_spectral: needs functions of the operator's singular values, see `invsolve.operators.spectral`.
        particles: one posterior sample is carried by several interacting particles.
        interacting: batch entries with equal measurements are the particles of one image and see each other.
        nonlinear: has a form for operators that are not linear.
        nonlinear_settings: hyper-parameters to set for that form, if any.
        cost: cost of a step beyond the method's arithmetic, for example "1 forward, 1 backward, 1 solve".
    """

    paper: ClassVar[str] = ""
    needs_linear: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False
    needs_solve: ClassVar[bool] = False
    needs_spectral: ClassVar[bool] = False
    particles: ClassVar[bool] = False
    interacting: ClassVar[bool] = False
    nonlinear: ClassVar[bool] = False
    nonlinear_settings: ClassVar[Mapping[str, Any]] = {}
    cost: ClassVar[str] = "1 forward"

    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw one (approximate) posterior sample per batch entry.

        Args:
            measurement: in model units, with an operator of spectral norm about 1; `invsolve.solve` sees to both.
            prior: the denoiser.
            generator: one torch.Generator, or one per batch entry.
            callback: see `Callback`.

        Returns:
            Images in model units, shape (B, *operator.in_shape).

        Raises:
            ValueError: the operator, the noise or the prior cannot serve this method.
            DivergenceError: the iterate became NaN or infinite.
        """
        raise NotImplementedError(f"{type(self).__name__} must write __call__")

    def diagnosed(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples as from `__call__`, and what the method knows of their quality: named numbers, shape (B,) each."""
        return self(measurement, prior, generator=generator, callback=callback), {}

    @classmethod
    def name(cls) -> str:
        """Lower-case name, as `solve(method=...)` and the command line take it."""
        return cls.__name__.lower()

    @classmethod
    def needs(cls) -> list[str]:
        """What the method asks of the operator and the network, in words."""
        asked = {
            "linear operator": cls.needs_linear,
            "solve": cls.needs_solve,
            "singular values": cls.needs_spectral,
            "gradient of the network": cls.needs_gradient,
            "particles": cls.particles,
        }
        return [text for text, flag in asked.items() if flag]

    @classmethod
    def serves(cls) -> str:
        """The operators it serves, in words."""
        if not cls.nonlinear:
            return "linear with known singular values" if cls.needs_spectral and not cls.needs_solve else "any linear"
        if not cls.nonlinear_settings:
            return "any differentiable"
        wanted = ", ".join(f"{key}={value!r}" for key, value in cls.nonlinear_settings.items())
        return f"any linear; any differentiable with {wanted}"

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def linear_operator(sampler: Sampler, measurement: Measurement) -> LinearOperator:
    """The measurement's operator if it is linear; otherwise a ValueError that names samplers which would work."""
    operator = measurement.operator
    if not isinstance(operator, LinearOperator):
        from invsolve.samplers.presets import SAMPLERS

        able = []
        for name, cls in sorted(SAMPLERS.items()):
            if cls.nonlinear:
                wanted = ", ".join(f"{key}={value!r}" for key, value in cls.nonlinear_settings.items())
                able.append(f"{name} ({wanted})" if wanted else name)
        raise ValueError(
            f"{sampler.name()} needs a linear operator, {type(operator).__name__} is not; "
            f"{', '.join(able)} take any differentiable operator."
        )
    return operator


def noise_level(sampler: Sampler, measurement: Measurement) -> float:
    """The one standard deviation of the measurement's Gaussian noise."""
    noise = measurement.noise
    if not isinstance(noise, GaussianNoise) or (isinstance(noise.std, Tensor) and noise.std.numel() != 1):
        raise ValueError(
            f"{sampler.name()} needs Gaussian noise with one standard deviation, got {type(noise).__name__}; "
            "invsolve.solve brings other noise to that form."
        )
    return float(noise.std)


def start(measurement: Measurement) -> Tensor:
    """A zero batch in the shape of the images, with the type and device of the data."""
    y = measurement.y
    real = y.real.dtype if y.is_complex() else y.dtype
    return torch.zeros((len(y), *measurement.operator.in_shape), dtype=real, device=y.device)


def report(
    callback: Callback | None, step: int, total: int, sigma: float, x: Tensor, denoised: Tensor, lower: str
) -> bool:
    """Look after the run once per step: stop a diverging one, tell the callback. True if the callback asks to stop.

    Args:
        step: steps done, 1 to total.
        lower: hyper-parameter to name when the iterate is not finite.
    """
    if (step % 10 == 0 or step == total) and not bool(torch.isfinite(x).all()):
        raise DivergenceError(
            f"the iterate is not finite after step {step} of {total} (sigma {sigma:.3g}); lower {lower}."
        )
    return bool(callback(step, total, sigma, x.detach(), denoised.detach())) if callback else False
