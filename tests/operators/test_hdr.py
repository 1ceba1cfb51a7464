"""Clipping: values by hand, the gradient, refusals."""

import pytest
import torch

from invsolve.operators import HDR


def test_the_ffhq_task():
    x = torch.tensor([-1.0, -0.6, -0.5, -0.1, 0.0, 0.3, 0.5, 0.9]).reshape(1, 1, 2, 4)
    want = torch.tensor([-1.0, -1.0, -1.0, -0.2, 0.0, 0.6, 1.0, 1.0]).reshape(1, 1, 2, 4)
    assert torch.equal(HDR((1, 2, 4))(x), want)


def test_photograph_exposed_too_long():
    operator = HDR((1, 1, 4), 3.0, (0.0, 1.0))
    assert torch.allclose(operator(torch.tensor([[[[-0.1, 0.2, 0.3, 0.4]]]])), torch.tensor([[[[0.0, 0.6, 0.9, 1.0]]]]))


def test_gradient():
    x = torch.tensor([[[[-0.7, -0.2, 0.4, 0.6]]]], requires_grad=True)
    HDR((1, 1, 4))(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[[[0.0, 2.0, 2.0, 0.0]]]]))


def test_refusals():
    for scale in (0, -2, float("nan")):
        with pytest.raises(ValueError, match=f"scale is {scale}; expected a number > 0"):
            HDR((1, 2, 2), scale)
    for bad in ((1.0, 0.0), (0.0, 0.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match=r"expected finite \(low, high\) with low < high"):
            HDR((1, 2, 2), data_range=bad)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2\)"):
        HDR((1, 2, 2))(torch.zeros(1, 2, 2))
