"""Masks, grey value, matrices and a user's own functions."""

import numpy as np
import pytest
import torch

from invsolve.operators import (
    FunctionOperator,
    GaussianNoise,
    Grayscale,
    Identity,
    Mask,
    MatrixOperator,
    Measurement,
    box_mask,
    random_mask,
    registry,
)

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_mask():
    keep = torch.tensor([[1, 0, 1], [1, 1, 0]])
    operator = Mask(keep, (2, 2, 3))
    x = torch.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    assert operator(x).tolist() == [[[[1, 0, 3], [4, 5, 0]], [[7, 0, 9], [10, 11, 0]]]]
    assert Mask(keep).in_shape == (1, 2, 3)
    assert Mask(np.ones((3, 2, 2)) * 0.5).norm() == 0.5
    per_channel = torch.stack([keep, 1 - keep])
    assert torch.equal(Mask(per_channel, (2, 2, 3))(x), per_channel * x)
    # Lost pixels take their value from the right-hand side alone.
    solved = operator.solve(x, 0.5)
    assert torch.allclose(solved[0, 0], x[0, 0] / (keep + 0.5))


@pytest.mark.parametrize(
    ("mask", "shape", "sentence"),
    [
        (torch.ones(2, 3), (1, 2, 4), r"the mask has shape \(2, 3\), the image \(1, 2, 4\)"),
        (torch.ones(2, 2, 3), (3, 2, 3), r"the mask has shape \(2, 2, 3\), the image \(3, 2, 3\)"),
        (torch.ones(3), None, r"the mask has shape \(3,\)"),
        (torch.zeros(2, 3), None, "keeps no pixel at all"),
        (torch.full((2, 3), float("nan")), None, "holds NaN or Inf"),
    ],
)
def test_bad_masks(mask, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mask(mask, shape)


def test_random_mask():
    keep = random_mask((20, 30), 0.7, torch.Generator().manual_seed(0))
    assert keep.shape == (20, 30)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert int((keep == 0).sum()) == 420
    assert torch.equal(keep, random_mask((20, 30), 0.7, torch.Generator().manual_seed(0)))
    assert not torch.equal(keep, random_mask((20, 30), 0.7, torch.Generator().manual_seed(1)))
    assert random_mask((4, 5), 0.0).min() == 1
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected 0 <= share < 1"):
            random_mask((4, 5), share)


def test_box_mask():
    keep = box_mask((4, 6), 1, 2, 2, 3)
    assert keep.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1], [1] * 6]
    box_mask((4, 6), 0, 0, 4, 6)
    for top, left, height, width in ((3, 0, 2, 1), (0, 5, 1, 2), (-1, 0, 1, 1), (0, 0, 0, 1)):
        with pytest.raises(ValueError, match=r"box at .* does not lie inside 4 x 6"):
            box_mask((4, 6), top, left, height, width)


def test_grayscale():
    operator = Grayscale((3, 2, 2), dtype=F64)
    x = random(1, 3, 2, 2)
    assert torch.allclose(operator(x)[0, 0], 0.299 * x[0, 0] + 0.587 * x[0, 1] + 0.114 * x[0, 2])
    grey = torch.full((1, 3, 2, 2), 0.4, dtype=F64)
    assert torch.allclose(operator(grey), torch.tensor(0.4, dtype=F64))
    y = random(1, 1, 2, 2)
    assert torch.allclose(operator(operator.adjoint(y)), operator.row_gram * y)
    with pytest.raises(ValueError, match=r"Grayscale takes images \(3, H, W\), got \(1, 2, 2\)"):
        Grayscale((1, 2, 2))


def test_matrix():
    operator = MatrixOperator(random(4, 6).numpy(), (1, 2, 3))
    x = random(2, 1, 2, 3, seed=1)
    assert torch.allclose(operator(x), torch.einsum("mn,bn->bm", operator.matrix, x.flatten(1)))
    u, s, vt = operator.svd()
    assert torch.allclose(u @ torch.diag(s) @ vt, operator.matrix)
    assert operator.svd()[1] is s
    with pytest.raises(ValueError, match=r"a matrix with 6 columns does not take images of shape \(1, 2, 2\)"):
        MatrixOperator(random(4, 6), (1, 2, 2))
    with pytest.raises(ValueError, match=r"expected a real matrix \(m, n\), got torch.int64 of shape \(2, 2\)"):
        MatrixOperator(torch.ones(2, 2, dtype=torch.int64))


def test_a_loaded_matrix_brings_its_own_decomposition():
    operator, other = MatrixOperator(random(4, 6)), MatrixOperator(random(4, 6, seed=1))
    rhs = random(2, 6, seed=2)
    operator.solve(rhs, 0.1)
    operator.norm()
    operator.load_state_dict(other.state_dict())
    assert torch.equal(operator.solve(rhs, 0.1), other.solve(rhs, 0.1))
    assert operator.norm() == other.norm()


def test_own_functions():
    operator = FunctionOperator(lambda x: x.cumsum(-1), lambda y: y.flip(-1).cumsum(-1).flip(-1), (5,), (5,))
    x = random(2, 5)
    assert torch.equal(operator(x), x.cumsum(-1))
    assert torch.allclose(operator.solve(operator.adjoint(operator(x)), 0.0), x)


@pytest.mark.parametrize(
    "adjoint",
    [lambda y: y.cumsum(-1), lambda y: 2 * y.flip(-1).cumsum(-1).flip(-1), lambda y: torch.full_like(y, float("nan"))],
    ids=["not transposed", "wrong scale", "nan"],
)
def test_own_functions_with_a_wrong_adjoint(adjoint):
    operator = FunctionOperator(lambda x: x.cumsum(-1), adjoint, (5,), (5,))
    for call in (operator, operator.adjoint, operator):  # every time, not only the first
        with pytest.raises(ValueError, match="the adjoint is not the adjoint of the forward function"):
            call(random(1, 5))


def test_own_functions_with_wrong_shapes():
    operator = FunctionOperator(lambda x: x[..., :4], lambda y: y, (5,), (4,))
    with pytest.raises(ValueError, match=r"adjoint gave shape \(2, 4\), in_shape promises \(2, 5\)"):
        operator(random(1, 5))
    operator = FunctionOperator(lambda x: x, lambda y: y, (5,), (4,))
    with pytest.raises(ValueError, match=r"forward gave shape \(2, 5\), out_shape promises \(2, 4\)"):
        operator(random(1, 5))


def test_measurement_checks_its_shape():
    operator, noise = Identity((1, 2, 3)), GaussianNoise(0.1)
    assert Measurement(torch.zeros(2, 1, 2, 3), operator, noise).y.shape == (2, 1, 2, 3)
    with pytest.raises(ValueError, match=r"y has shape \(1, 2, 3\), Identity expects \(batch, 1, 2, 3\)"):
        Measurement(torch.zeros(1, 2, 3), operator, noise)


def test_registry():
    names = [entry.name for entry in registry.entries()]
    assert names == sorted(names)
    assert registry.get("mask").cls is Mask
    assert registry.get("mask").summary.startswith("Inpainting")
    with pytest.raises(KeyError, match="unknown operator 'maks'; did you mean 'mask'"):
        registry.get("maks")
    with pytest.raises(KeyError, match="known: "):
        registry.get("zzzzzzzzzz")
    with pytest.raises(ValueError, match=r"'mask' is registered already \(Mask\)"):
        registry.register("mask", list)(Identity)
    assert registry.get("mask").cls is Mask
