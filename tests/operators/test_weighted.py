"""Weights per entry of y and per batch entry, and correlated noise, against dense algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invsolve.operators import (
    Blur,
    ChannelsToComplex,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    MatrixOperator,
    Weighted,
    Whitening,
    dot_test,
)

F64 = torch.float64
DAMPING = torch.tensor([0.05, 0.5, 3.0], dtype=F64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).abs() + 0.2


def operators() -> dict[str, LinearOperator]:
    kernel = positive(3, 2)
    blur = Blur(kernel / kernel.sum(), (1, 6, 4), dtype=F64)
    mask = Mask(positive(1, 3, 5) * (random(1, 3, 5) > -0.3), (2, 3, 5), dtype=F64)
    return {
        "matrix": MatrixOperator(random(7, 12), (1, 3, 4)),
        "mask": mask,
        "identity": Identity((2, 3, 4)),
        "grayscale": Grayscale((3, 2, 5), dtype=F64),
        "box": Downsample(2, (1, 6, 4), "box", dtype=F64),
        "blur": blur,
        "scaled": -3.0 * mask,
        "mask of grey": Mask(positive(1, 2, 5), (1, 2, 5), dtype=F64) @ Grayscale((3, 2, 5), dtype=F64),
        "complex": ChannelsToComplex((1, 3, 4)),
    }


CLOSED = {name: f"closed form ({method})" for name, method in [
    ("mask", "diagonal"), ("identity", "orthogonal rows"), ("grayscale", "orthogonal rows"), ("box", "orthogonal rows"),
    ("scaled", "behind a factor"), ("complex", "orthogonal rows"),
]} | {"mask of grey": "closed form (diagonal) behind orthogonal rows"}  # fmt: skip


@pytest.mark.parametrize("name", operators())
def test_weights_per_batch_entry(name: str, relative: Callable[..., float]) -> None:
    """Entry b is that of the operator with the b-th weights alone, for every method."""
    operator = operators()[name]
    weights = positive(3, *operator.out_shape, seed=4)
    each = Weighted(operator, weights)
    assert each.per_entry
    assert each.solve_method == CLOSED.get(name, LinearOperator.solve_method)
    x = random(3, *operator.in_shape, seed=1)
    y = operator(random(3, *operator.in_shape, seed=2)) + 0.1
    for b in range(3):
        own, entry = Weighted(operator, weights[b]), slice(b, b + 1)
        assert relative(each(x)[entry], own(x[entry])) < 1e-14
        assert relative(each.adjoint(y)[entry], own.adjoint(y[entry])) < 1e-14
        assert relative(each.normal(x)[entry], own.normal(x[entry])) < 1e-14
        assert relative(each.solve(x, DAMPING)[entry], own.solve_cg(x[entry], DAMPING[entry]).x) < 1e-9
        exact = own.solve_cg(own.adjoint(y[entry]), DAMPING[entry]).x
        assert relative(each.pseudo_inverse(y, DAMPING)[entry], exact) < 1e-9
        part = each.part(entry)
        assert not part.per_entry
        assert torch.equal(part(x[entry]), own(x[entry]))
    assert dot_test(each, batch=3, dtype=F64) < 1e-13
    norms = [Weighted(operator, weights[b]).norm(rtol=1e-8) for b in range(3)]
    assert each.norm(rtol=1e-8) == pytest.approx(max(norms), rel=1e-6)


def test_a_batch_of_another_size() -> None:
    each = Weighted(Identity((1, 2, 3)), positive(3, 1, 2, 3))
    x = random(2, 1, 2, 3)
    sentence = r"the weights are for a batch of 3, this one has 2; take the entries you need with part\(slice\)"
    for call in (each, each.adjoint, each.normal):
        with pytest.raises(ValueError, match=sentence):
            call(x)
    for solve in (each.solve, each.pseudo_inverse):
        with pytest.raises(ValueError, match=sentence):
            solve(x, 0.5)
    assert each.part(slice(1, 3))(x).shape == (2, 1, 2, 3)


def test_shapes_of_weights() -> None:
    operator = Identity((2, 3, 4))
    x = random(3, 2, 3, 4)
    for shape in ((), (4,), (3, 1), (2, 3, 4), (1, 2, 3, 4), (1, 1, 1, 1)):
        weights = positive(*shape)
        shared = Weighted(operator, weights)
        assert not shared.per_entry
        assert shared.part(slice(0, 1)) is shared
        assert torch.equal(shared(x), weights * x)
    per_image = positive(3, 1, 1, 1)
    assert torch.equal(Weighted(operator, per_image)(x), per_image * x)
    for shape in ((5,), (3, 4, 4), (3, 2, 3, 5), (1, 3, 2, 3, 4)):
        with pytest.raises(ValueError, match="do not fit measurements"):
            Weighted(operator, positive(*shape))
    for bad in (torch.zeros(4), -torch.ones(4), torch.full((4,), float("nan")), torch.ones(4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="weights must be real, finite and > 0"):
            Weighted(operator, bad)


def test_weights_are_one_over_the_standard_deviation() -> None:
    variance = positive(2, 3, 4)
    operator = Weighted.from_variance(Identity((2, 3, 4)), variance)
    torch.testing.assert_close(operator.weights, 1 / variance.sqrt())
    noise = variance.sqrt() * random(4000, 2, 3, 4)
    assert float(operator(noise).std()) == pytest.approx(1, abs=0.01)


class Rotation(LinearOperator):
    """Mixes two channels. A^H A = I is diagonal, A^H W^2 A is not."""

    pixelwise = True
    solve_method = "closed form (diagonal)"

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x[:, 0] - x[:, 1], x[:, 0] + x[:, 1]), 1) / 2**0.5

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.stack((y[:, 0] + y[:, 1], y[:, 1] - y[:, 0]), 1) / 2**0.5


def test_a_rotation_of_channels_is_not_taken_for_diagonal(relative: Callable[..., float]) -> None:
    operator = Weighted(Rotation((2, 3, 4), (2, 3, 4)).double(), positive(2, 3, 4))
    assert operator.solve_method == LinearOperator.solve_method
    rhs = random(3, 2, 3, 4)
    x = operator.solve(rhs, DAMPING)
    assert relative(operator.adjoint(operator(x)) + DAMPING[:, None, None, None] * x, rhs) < 1e-10


def test_learned_weights_get_their_gradient() -> None:
    weights = positive(2, 3, 4).requires_grad_()
    x = random(2, 2, 3, 4)
    mask = Mask(positive(1, 3, 4), (2, 3, 4), dtype=F64)

    def loss(w: Tensor) -> Tensor:
        operator = Weighted(mask, torch.ones(2, 3, 4, dtype=F64))
        operator.weights = w
        return operator.solve(x, 0.3).square().sum() + operator.normal(x).sum()

    assert torch.autograd.gradcheck(loss, (weights,), fast_mode=True)


# --- correlated noise -------------------------------------------------------------------------------------------------


def covariance(size: int, complex_: bool = False) -> Tensor:
    root = random(size, size, seed=7)
    root = torch.complex(root, random(size, size, seed=8)) if complex_ else root
    return root @ root.mH / size + 0.2 * torch.eye(size)


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(("axis", "size"), [(0, 3), (1, 4), (-1, 4), (None, 12)])
def test_whitened_noise_is_white(axis: int | None, size: int, complex_: bool) -> None:
    """E[w w^H] = I, or 2 I for complex noise (1 in each part), to the accuracy of 40000 draws."""
    matrix = covariance(size, complex_)
    operator = Whitening(matrix, (3, 4), axis=axis)
    white = random(40_000, size, 12 // size, seed=1)
    if complex_:
        white = torch.complex(white, random(40_000, size, 12 // size, seed=2)) / 2**0.5
    noise = torch.linalg.cholesky(matrix) @ white
    noise = noise.reshape(-1, 3, 4) if axis in (0, None) else noise.mT.reshape(-1, 3, 4)
    flat = operator(noise).flatten(1)
    level = 2.0 if complex_ else 1.0
    empirical = flat.mT @ flat.conj() / len(flat)
    assert float((empirical - level * torch.eye(12)).abs().max()) < 0.04 * level


def test_whitening_of_complex_measurements(relative: Callable[..., float]) -> None:
    coils = ChannelsToComplex((3, 2, 2))
    operator = Whitening(covariance(3, True), (3, 2, 2), axis=0) @ coils
    assert dot_test(operator, dtype=F64) < 1e-14
    rhs = random(3, 6, 2, 2)
    assert relative(operator.solve(rhs, DAMPING), operator.solve_cg(rhs, DAMPING).x) < 1e-9
    single = operator.float()
    assert dot_test(single, dtype=torch.float32) < 1e-6, "the imaginary part survives a change of type"


def test_bad_covariances() -> None:
    with pytest.raises(ValueError, match=r"the covariance has shape \(3, 3\); expected \(4, 4\)"):
        Whitening(covariance(3), (3, 4), axis=1)
    with pytest.raises(ValueError, match="the covariance is not Hermitian"):
        Whitening(covariance(3) + torch.triu(torch.ones(3, 3), 1), (3, 4), axis=0)
    with pytest.raises(ValueError, match="the covariance is not positive definite"):
        Whitening(-covariance(3), (3, 4), axis=0)
