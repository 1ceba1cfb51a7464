"""Random projections: orthonormal rows, known transforms, randomness, recovery, refusals."""

import numpy as np
import pytest
import torch

from invsolve.operators import CompressedSensing

SHAPES = [(2, 5, 6), (1, 7, 3), (1, 1, 9), (3, 8, 1), (1, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_coefficients_are_the_cosine_transform(shape):
    from scipy.fft import dctn

    operator = CompressedSensing(shape, int(np.prod(shape)), dtype=torch.float64)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = dctn((x * operator.signs).numpy(), axes=(-2, -1), norm="ortho").reshape(2, -1)
    assert np.abs(operator(x).numpy() - want).max() < 1e-13
    assert float((operator.adjoint(operator(x)) - x).abs().max()) < 1e-13


def test_all_coefficients_are_the_hadamard_transform():
    from scipy.linalg import hadamard

    operator = CompressedSensing((2, 4, 8), 64, "hadamard", dtype=torch.float64)
    x = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = (torch.from_numpy(hadamard(n)).double() for n in (4, 8))
    want = rows @ (x * operator.signs) @ columns / 32**0.5
    assert float((operator(x) - want.flatten(1)).abs().max()) < 1e-13


@pytest.mark.parametrize("transform", ["dct", "hadamard"])
def test_rows_are_orthonormal(transform, dense):
    operator = CompressedSensing((1, 4, 8), 13, transform, generator=2, dtype=torch.float64)
    matrix = dense(operator)
    assert torch.allclose(matrix @ matrix.T, torch.eye(13, dtype=torch.float64), atol=1e-14)
    # Signs spread a constant image over the coefficients: without them all but one would be 0.
    assert int((matrix.sum(1).abs() > 1e-6).sum()) > 8


def test_randomness():
    def state(source):
        return CompressedSensing((1, 6, 7), 9, generator=source).state_dict()

    first, again, other = state(3), state(torch.Generator().manual_seed(3)), state(4)
    assert set(first) == {"signs", "index"}
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    before = torch.get_rng_state()
    state(0)
    assert torch.equal(before, torch.get_rng_state())
    loaded = CompressedSensing((1, 6, 7), 9, generator=4)
    loaded.load_state_dict(first)
    x = torch.rand(1, 1, 6, 7)
    assert torch.equal(loaded(x), CompressedSensing((1, 6, 7), 9, generator=3)(x))
    signs = CompressedSensing((1, 64, 64), 9).signs
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.06


def test_recovers_a_sparse_image():
    """Iterative soft thresholding finds 20 bright pixels from a third of the coefficients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(24 * 24, dtype=torch.float64)
    x[torch.randperm(24 * 24, generator=generator)[:20]] = 1
    x = x.reshape(1, 1, 24, 24)
    operator = CompressedSensing((1, 24, 24), 192, generator=1, dtype=torch.float64)
    y, estimate = operator(x), torch.zeros_like(x)
    for _ in range(300):
        estimate = torch.nn.functional.softshrink(estimate + operator.adjoint(y - operator(estimate)), 0.01)
    assert float((estimate - x).abs().max()) < 0.1


def test_refusals():
    for number in (0, 13, -1):
        with pytest.raises(ValueError, match=rf"num_measurements is {number}; expected 1 ... 12"):
            CompressedSensing((1, 3, 4), number)
    with pytest.raises(ValueError, match=r"num_measurements is 0.5; expected a whole number, not a share"):
        CompressedSensing((1, 3, 4), 0.5)
    with pytest.raises(ValueError, match=r"powers of two, got 3 x 4; use \"dct\""):
        CompressedSensing((1, 3, 4), 2, "hadamard")
    with pytest.raises(ValueError, match="unknown transform 'fft'; expected one of dct, hadamard"):
        CompressedSensing((1, 3, 4), 2, "fft")
    with pytest.raises(ValueError, match="got in_shape"):
        CompressedSensing((12,), 2)
