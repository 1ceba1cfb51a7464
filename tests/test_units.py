"""Model units: what is black and white, in which units y is, and how large A is, must not change the answer.

Mutants tried, each turning tests of this file red: y left as it is, offset dropped, noise level left in the units of y,
scale inverted, operator not divided by its norm, result not moved back, a nonlinear operator at model values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invsolve.inference import solve
from invsolve.operators import GaussianNoise, Identity, MatrixOperator, Measurement, Operator, PoissonNoise
from invsolve.priors import GaussianMixturePrior
from invsolve.samplers import DAPS, DDS, DPS, MCG
from invsolve.units import AtImageValues, ModelUnits

SHAPE = (1, 2, 3)
METHODS = {
    "daps": DAPS(8, 2, sigma_max=10.0),
    "dds": DDS(10),
    "dds-closed": DDS(10, cg_iterations=None),
    "dps": DPS(10, 5.0),
    "mcg": MCG(10, 5.0),
}


def matrix(rows: int = 4) -> Tensor:
    return torch.randn((rows, 6), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def mixture(data_range: tuple[float, float] = (-1.0, 1.0)) -> GaussianMixturePrior:
    means = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    return GaussianMixturePrior([0.4, 0.6], means, 0.1, data_range)


class Cube(Operator):
    """Nonlinear, of the image in its own units."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(SHAPE, SHAPE)
        self.factor, self.offset = factor, offset

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.offset) / self.factor) ** 3


# --- the map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-1000.0, 3000.0)])
@pytest.mark.parametrize("model_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_the_measurement_equation_holds_in_model_units(
    data_range: tuple[float, float], model_range: tuple[float, float]
) -> None:
    operator = MatrixOperator(matrix(), SHAPE)
    x_model = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = (x_model - model_range[0]) / (model_range[1] - model_range[0])
    x_image = data_range[0] + share * (data_range[1] - data_range[0])
    noise = torch.randn((2, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = operator(x_image) + 0.3 * noise
    units = ModelUnits.between(data_range, model_range, Measurement(y, operator, GaussianNoise(0.3)))

    torch.testing.assert_close(units.to_image(x_model), x_image, rtol=1e-12, atol=1e-9)
    ours = units.measurement
    assert ours.operator.norm() == pytest.approx(1.0, rel=1e-9)
    assert float(torch.linalg.matrix_norm(ours.operator(torch.eye(6).double().reshape(6, *SHAPE)), 2)) == pytest.approx(
        1.0, rel=1e-3
    )
    assert isinstance(ours.noise, GaussianNoise)
    torch.testing.assert_close(ours.y, ours.operator(x_model) + float(ours.noise.std) * noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(units.part(slice(1, 2)).y, ours.y[1:])
    assert operator.norm() > 1  # the caller's operator is untouched


def test_a_nonlinear_operator_sees_image_values() -> None:
    x_model = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.zeros((2, *SHAPE), dtype=torch.float64)
    units = ModelUnits.between((0, 255), (-1, 1), Measurement(y, Cube(), GaussianNoise(0.3)))
    ours = units.measurement
    assert isinstance(ours.operator, AtImageValues)
    torch.testing.assert_close(ours.operator(x_model), (127.5 * x_model + 127.5) ** 3)
    assert ours.noise == GaussianNoise(0.3)
    assert torch.equal(ours.y, y)


def test_equal_ranges_leave_images_alone() -> None:
    y = torch.ones(1, 4, dtype=torch.float64)
    units = ModelUnits.between((-1, 1), (-1, 1), Measurement(y, MatrixOperator(matrix(), SHAPE), GaussianNoise(0.0)))
    assert (units.scale, units.offset) == (1.0, 0.0)
    assert units.measurement.noise == GaussianNoise(0.0)


def test_y_keeps_its_device_where_the_operator_has_no_arrays() -> None:
    y = torch.zeros((1, *SHAPE), device="meta")
    units = ModelUnits.between((0, 1), (-1, 1), Measurement(y, Identity(SHAPE), GaussianNoise(0.1)))
    assert units.measurement.y.device.type == "meta"


def test_refusals() -> None:
    y, operator = torch.zeros(1, 4, dtype=torch.float64), MatrixOperator(matrix(), SHAPE)
    for data_range in ((1, 0), (0, 0)):
        with pytest.raises(ValueError, match="low < high"):
            ModelUnits.between(data_range, (-1, 1), Measurement(y, operator, GaussianNoise(0.1)))
    with pytest.raises(ValueError, match="need Gaussian noise, got PoissonNoise"):
        ModelUnits.between((0, 1), (-1, 1), Measurement(y, operator, PoissonNoise(0.1)))
    nothing = MatrixOperator(0 * matrix(), SHAPE)
    with pytest.raises(ValueError, match="maps every image to 0"):
        ModelUnits.between((0, 1), (-1, 1), Measurement(y, nothing, GaussianNoise(0.1)))


# --- the answers ------------------------------------------------------------------------------------------------------


def image_samples(rows: int, method: Any, **changes: Any) -> Any:
    """Samples of one problem on [0, 1], told in other units: x -> stretch x + shift, y times gain; moved back."""
    stretch, shift, gain = (changes.get(key, default) for key, default in (("stretch", 1), ("shift", 0), ("gain", 1)))
    base = MatrixOperator(matrix(rows), SHAPE)
    truth = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = base(truth) + 0.05 * torch.randn((1, rows), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    # In the new units x' = stretch x + shift and A' = gain / stretch A, so A' x' = gain A x + A' shift.
    operator = MatrixOperator(gain / stretch * matrix(rows), SHAPE)
    y = gain * y + operator(torch.full((1, *SHAPE), float(shift), dtype=torch.float64))
    posterior = solve(
        y,
        operator,
        noise_std=gain * 0.05,
        prior=mixture(changes.get("model_range", (-1.0, 1.0))),
        method=method,
        num_samples=2,
        seed=7,
        data_range=(shift, shift + stretch),
    )
    return (posterior.samples - shift) / stretch, posterior.info


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "changes",
    [
        {"stretch": 255.0},
        {"gain": 10.0},
        {"gain": 1e-3},
        {"stretch": 2.0, "shift": -1.0},
        {"stretch": 4000.0, "shift": -1000.0, "gain": 1e-4},
    ],
    ids=lambda changes: "-".join(f"{key}{value:g}" for key, value in changes.items()),
)
def test_other_units_give_the_same_samples(name: str, changes: dict[str, float]) -> None:
    reference, info = image_samples(4, METHODS[name])
    ours, other = image_samples(4, METHODS[name], **changes)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.residual, info.residual, rtol=1e-4)


def test_the_units_test_would_notice() -> None:
    """With the data range left out, the samples do differ."""
    reference, _ = image_samples(4, METHODS["daps"])
    shifted, _ = image_samples(4, METHODS["daps"], model_range=(0.0, 1.0))
    assert float((reference - shifted).abs().max()) > 0.05


def test_a_nonlinear_problem_in_other_units() -> None:
    """The same cube of the same image, described on [0, 1] and on [-100, 155]; DPS sees no difference."""
    y = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3

    def samples(operator: Operator, data_range: tuple[float, float]) -> Tensor:
        return solve(
            y.double(), operator, noise_std=0.05, prior=mixture(), method=DPS(10, 2.0), data_range=data_range
        ).samples

    plain = samples(Cube(), (0.0, 1.0))
    told = samples(Cube(255.0, -100.0), (-100.0, 155.0))
    torch.testing.assert_close((told + 100) / 255, plain, rtol=1e-4, atol=1e-4)
