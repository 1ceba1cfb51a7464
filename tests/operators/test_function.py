"""The test of other people's adjoints: what passes, what does not, and how to go without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invsolve import solve
from invsolve.operators import FunctionOperator, LinearOperator, check_adjoint
from invsolve.priors import GaussianPrior


def shift(x: Tensor) -> Tensor:
    return x.roll(1, -1)


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_small_error_shows_at_any_size(size: int) -> None:
    """0.1 percent of scale is found although <A u, v> of white noise shrinks with the size."""
    good = FunctionOperator(shift, lambda y: y.roll(-1, -1), (size,), (size,))
    good(torch.zeros(1, size))
    wrong = FunctionOperator(shift, lambda y: 1.001 * y.roll(-1, -1), (size,), (size,))
    with pytest.raises(ValueError, match="the adjoint is not the adjoint of the forward function"):
        wrong(torch.zeros(1, size))


def test_the_test_can_be_switched_off() -> None:
    wrong = FunctionOperator(shift, shift, (5,), (5,), check=False)
    x = torch.arange(5.0)[None]
    assert torch.equal(wrong.adjoint(wrong(x)), x.roll(2, -1))
    loose = FunctionOperator(shift, lambda y: 1.001 * y.roll(-1, -1), (5,), (5,), tolerance=0.1)
    loose(x)


class Own(LinearOperator):
    """A subclass of the user's."""

    def __init__(self, scale: float) -> None:
        super().__init__((1, 2, 3), (1, 2, 3))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return 2 * shift(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scale * y.roll(-1, -1)


def test_the_front_door_tests_operators_from_elsewhere() -> None:
    prior, y = GaussianPrior(torch.zeros(1, 2, 3), 0.2), torch.rand(1, 1, 2, 3)
    solve(y, Own(2.0), noise_std=0.1, prior=prior, preset="fast")
    for wrong in (Own(1.0), -1.0 * Own(1.0)):
        with pytest.raises(ValueError, match="the adjoint is not the adjoint of the forward function"):
            solve(y, wrong, noise_std=0.1, prior=prior, preset="fast")
    check_adjoint(Own(2.0), y)
    with pytest.raises(ValueError, match="Turn it round"):
        check_adjoint(Own(1.0), y, remedy="Turn it round.")


def test_something_that_is_no_operator() -> None:
    prior, y = GaussianPrior(torch.zeros(1, 2, 3), 0.2), torch.rand(1, 1, 2, 3)
    with pytest.raises(TypeError, match="operator is a Linear; expected an invsolve Operator or a deepinv Physics"):
        solve(y, torch.nn.Linear(3, 3), noise_std=0.1, prior=prior)
