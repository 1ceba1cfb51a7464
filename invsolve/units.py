"""The one place where data units become model units and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.operators.algebra import Scaled
from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise


@dataclass(frozen=True)
class ModelUnits:
    """A measurement as samplers see it: x = scale * x_model + offset, and an operator of spectral norm about 1.

    Args:
        measurement: in model units.
        scale: image units per model unit.
        offset: image value at model value 0.
    """

    measurement: Measurement
    scale: float
    offset: float

    @classmethod
    def between(
        cls, data_range: tuple[float, float], model_range: tuple[float, float], measurement: Measurement
    ) -> ModelUnits:
        """Move a measurement with Gaussian noise into model units.

        For a linear operator y - A(offset) = (scale A) x_model + n, all divided by the norm of scale A; a nonlinear one
        is evaluated at scale * x_model + offset and keeps its own scale.

        Args:
            data_range: what black and white are in the image.
            model_range: what they are in the model.
            measurement: y, operator and one Gaussian noise level, in image units.

        Raises:
            ValueError: a range that is not (low, high), or an operator that maps everything to 0.
        """
        if not data_range[0] < data_range[1]:
            raise ValueError(f"data_range is {data_range}; expected (low, high) with low < high.")
        scale = (data_range[1] - data_range[0]) / (model_range[1] - model_range[0])
        offset = data_range[0] - scale * model_range[0]
        operator, y, noise = measurement.operator, measurement.y, measurement.noise
        if not isinstance(noise, GaussianNoise):
            raise ValueError(f"model units need Gaussian noise, got {type(noise).__name__}.")
        if not isinstance(operator, LinearOperator):
            return cls(Measurement(y, AtImageValues(operator, scale, offset), noise), scale, offset)
        norm = scale * operator.norm(iterations=30, rtol=1e-2, device=y.device)  # a rough value will do
        if norm == 0:
            raise ValueError(f"{type(operator).__name__} maps every image to 0; there is nothing to solve.")
        if offset != 0:
            constant = torch.full((1, *operator.in_shape), offset, dtype=operator.dtype, device=y.device)
            y = y - operator(constant)
        level = GaussianNoise(float(noise.std) / norm)
        return cls(Measurement(y / norm, Scaled(scale / norm, operator), level), scale, offset)

    def part(self, entries: slice | Tensor) -> Measurement:
        """The measurement of some batch entries."""
        return Measurement(self.measurement.y[entries], self.measurement.operator, self.measurement.noise)

    def to_image(self, x: Tensor) -> Tensor:
        """Model units -> image units."""
        return x * self.scale + self.offset


class AtImageValues(Operator):
    """x_model -> A(scale * x_model + offset) for a nonlinear A."""

    def __init__(self, operator: Operator, scale: float, offset: float) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self.operator, self.scale, self.offset = operator, scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x * self.scale + self.offset)  # type: ignore[no-any-return]
