"""Operators from scipy and deepinv, and back. The parts with deepinv are skipped where it is not installed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invsolve import solve
from invsolve.operators import (
    Blur,
    ChannelsToComplex,
    Downsample,
    GaussianNoise,
    LinearOperator,
    Mask,
    MatrixOperator,
    Operator,
    PoissonGaussianNoise,
    PoissonNoise,
    SparseOperator,
    Stack,
    TransmissionNoise,
    dot_test,
    from_deepinv,
    from_scipy,
)
from invsolve.priors import GaussianPrior

F64 = torch.float64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# --- scipy ------------------------------------------------------------------------------------------------------------

sparse = pytest.importorskip("scipy.sparse")
linalg = pytest.importorskip("scipy.sparse.linalg")


def table(rows: int, columns: int, complex_: bool = False) -> Any:
    values = random(rows, columns).numpy() * (random(rows, columns, seed=1).numpy() > 0)
    return values + 1j * random(rows, columns, seed=2).numpy() if complex_ else values


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "dia", "lil"])
@pytest.mark.parametrize("old", [False, True], ids=["array", "matrix"])
def test_sparse_matrices(form: str, old: bool) -> None:
    dense = table(5, 12)
    matrix = (sparse.csr_matrix(dense) if old else sparse.csr_array(dense)).asformat(form)
    operator = from_scipy(matrix, (1, 3, 4), dtype=F64)
    assert isinstance(operator, SparseOperator)
    assert operator.crow.dtype == torch.int32
    x = random(3, 1, 3, 4, seed=3)
    np.testing.assert_allclose(operator(x).numpy(), x.flatten(1).numpy() @ dense.T, rtol=1e-12)
    assert from_scipy(matrix, (1, 3, 4)).values.dtype == torch.float32


def test_duplicate_entries_of_a_sparse_matrix_add_up() -> None:
    twice = sparse.coo_array((np.array([1.0, 2.0]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 3))
    assert from_scipy(twice, (3,))(torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("kind", ["sparse", "operator"])
def test_complex_matrices_of_real_and_of_complex_images(kind: str) -> None:
    dense = table(5, 6, complex_=True)
    wrapped = sparse.csr_array(dense) if kind == "sparse" else linalg.aslinearoperator(dense)
    options: dict[str, Any] = {"dtype": F64} if kind == "sparse" else {}
    real = from_scipy(wrapped, (1, 2, 3), **options)
    x = random(3, 1, 2, 3, seed=3)
    np.testing.assert_allclose(real(x).numpy(), x.flatten(1).numpy() @ dense.T, rtol=1e-12)
    two = from_scipy(wrapped, (2, 2, 3), (5, 1), **options)
    z = random(3, 2, 2, 3, seed=4)
    complex_images = ChannelsToComplex((1, 2, 3))(z).flatten(1).numpy()
    np.testing.assert_allclose(two(z).numpy()[..., 0], complex_images @ dense.T, rtol=1e-12)
    for operator in (real, two):
        assert dot_test(operator, dtype=F64) < 1e-14


def test_linear_operators_solve_and_differentiate(relative: Callable[..., float]) -> None:
    dense = table(7, 6)
    operator = from_scipy(linalg.aslinearoperator(dense), (1, 2, 3))
    same = MatrixOperator(dense, (1, 2, 3))
    x = random(2, 1, 2, 3).requires_grad_()
    assert relative(operator.solve(x, 0.3).detach(), same.solve(x, 0.3).detach()) < 1e-10
    assert torch.autograd.gradgradcheck(lambda v: operator(v).sin(), (x,), fast_mode=True)
    single = operator(x.detach().float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.double().numpy(), same(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_products_of_one_vector_are_enough() -> None:
    dense = table(5, 6)
    bare = linalg.LinearOperator((5, 6), matvec=lambda x: dense @ x, rmatvec=lambda y: dense.T @ y, dtype=np.float64)
    operator = from_scipy(bare, (6,))
    x = random(3, 6)
    np.testing.assert_allclose(operator(x).numpy(), x.numpy() @ dense.T, rtol=1e-12)


def test_the_front_door_takes_an_operator_from_scipy() -> None:
    dense = table(7, 6)
    prior, y = GaussianPrior(torch.zeros(1, 2, 3, dtype=F64), 0.2), random(2, 7)
    options: dict[str, Any] = {"noise_std": 0.1, "prior": prior, "method": "dds", "preset": "fast"}
    ours = solve(y, from_scipy(sparse.csr_array(dense), (1, 2, 3), dtype=F64), **options).samples
    torch.testing.assert_close(
        ours, solve(y, MatrixOperator(dense, (1, 2, 3)), **options).samples, rtol=1e-3, atol=1e-3
    )


def both_ways() -> dict[str, LinearOperator]:
    kernel = random(3, 2).abs()
    return {
        "matrix": MatrixOperator(random(7, 12), (1, 3, 4)),
        "blur": Blur(kernel, (2, 5, 4), dtype=F64),
        "complex": MatrixOperator(random(12, 12), (1, 3, 4)) @ Mask(random(3, 4), (1, 3, 4), dtype=F64),
        "channels": ChannelsToComplex((1, 3, 4)) @ Mask(random(3, 4), (2, 3, 4), dtype=F64),
    } | {"single": Downsample(2, (1, 4, 6))}


@pytest.mark.parametrize("name", both_ways())
def test_to_scipy(name: str, dense: Callable[..., Tensor]) -> None:
    operator = both_ways()[name]
    theirs = operator.to_scipy()
    y = operator(torch.zeros(1, *operator.in_shape, dtype=operator.dtype))
    count = math.prod(operator.out_shape) * (2 if y.is_complex() else 1)
    assert theirs.shape == (count, math.prod(operator.in_shape))
    assert theirs.dtype == (np.float32 if name == "single" else np.float64)
    columns = theirs @ np.eye(theirs.shape[1], dtype=theirs.dtype)
    np.testing.assert_allclose(columns, np.stack([theirs.matvec(e) for e in np.eye(theirs.shape[1])], 1), rtol=1e-6)
    np.testing.assert_allclose(theirs.rmatmat(np.eye(count)), columns.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(theirs.rmatvec(np.ones(count)), columns.sum(0), rtol=1e-5, atol=1e-6)
    if not y.is_complex():
        np.testing.assert_allclose(columns, dense(operator, operator.dtype).numpy(), rtol=1e-6, atol=1e-7)
    back = from_scipy(theirs, operator.in_shape)
    x = random(2, *operator.in_shape, dtype=operator.dtype)
    z = operator(x).flatten(1)
    torch.testing.assert_close(back(x), torch.cat((z.real, z.imag), 1) if z.is_complex() else z)


def test_scipys_own_solvers_take_our_operators() -> None:
    operator = both_ways()["matrix"]
    y, damping = random(1, 7), 0.3
    x = linalg.lsqr(operator.to_scipy(), y[0].numpy(), damp=math.sqrt(damping), atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(x, operator.pseudo_inverse(y, damping).flatten().numpy(), rtol=1e-8, atol=1e-10)
    normal = (operator.T @ operator).to_scipy() + damping * linalg.aslinearoperator(np.eye(12))
    x, info = linalg.cg(normal, operator.adjoint(y).flatten().numpy(), rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(x, operator.pseudo_inverse(y, damping).flatten().numpy(), rtol=1e-8, atol=1e-10)
    largest = linalg.svds(operator.to_scipy(), k=1, return_singular_vectors=False)[0]
    assert operator.norm(rtol=1e-8) == pytest.approx(largest, rel=1e-6)


def test_bad_scipy_operators() -> None:
    dense = table(5, 6)
    wrong = linalg.LinearOperator((5, 6), matvec=lambda x: dense @ x, rmatvec=lambda y: 2 * dense.T @ y, dtype=float)
    with pytest.raises(ValueError, match=r"the adjoint is not the adjoint .* Correct rmatvec, or pass check=False"):
        from_scipy(wrong, (6,))
    assert from_scipy(wrong, (6,), check=False)(random(1, 6)).shape == (1, 5)
    none = linalg.LinearOperator((5, 6), matvec=lambda x: dense @ x, dtype=float)
    with pytest.raises(ValueError, match="the LinearOperator has no adjoint; give it rmatvec or rmatmat"):
        from_scipy(none, (6,))
    with pytest.raises(ValueError, match=r"a matrix with 6 columns does not take images of shape \(1, 2, 4\)"):
        from_scipy(sparse.csr_array(dense), (1, 2, 4))
    with pytest.raises(ValueError, match=r"a matrix with 5 rows does not give measurements of shape \(2, 3\)"):
        from_scipy(sparse.csr_array(dense), (1, 2, 3), (2, 3))
    with pytest.raises(
        TypeError, match=r"expected a scipy sparse matrix or LinearOperator, got ndarray; .*MatrixOperator"
    ):
        from_scipy(dense, (6,))
    with pytest.raises(ValueError, match="the sparse matrix holds NaN or Inf"):
        from_scipy(sparse.csr_array(dense * np.nan), (6,))


# --- deepinv ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def physics() -> Any:
    return pytest.importorskip("deepinv.physics", reason="deepinv is not installed")


needs_deepinv = pytest.mark.filterwarnings("default")
"""deepinv and what it imports warn about their own future; that is not our concern here."""


def kernel() -> Tensor:
    values = random(1, 1, 3, 5, dtype=torch.float32).abs()
    return values / values.sum()


def zoo(physics: Any) -> dict[str, tuple[Any, tuple[int, ...], str]]:
    """Physics of every kind, the image shape and the solve that is expected."""
    mask = (random(12, 10) > 0).float()
    iterative, closed = LinearOperator.solve_method, "closed form (SVD)"
    maps = torch.complex(random(1, 3, 12, 10, seed=1), random(1, 3, 12, 10, seed=2)).to(torch.complex64)
    return {
        "inpainting": (physics.Inpainting((2, 12, 10), mask=mask[None]), (2, 12, 10), closed),
        "circular blur": (physics.BlurFFT((2, 12, 11), filter=kernel()), (2, 12, 11), closed),
        "blur": (physics.Blur(filter=kernel(), padding="valid"), (1, 12, 11), iterative),
        "downsampling": (physics.Downsampling((1, 12, 12), factor=2, filter="gaussian"), (1, 12, 12), iterative),
        "mri": (physics.MRI(mask=mask), (2, 12, 10), closed),
        "multi-coil mri": (physics.MultiCoilMRI(mask=mask, coil_maps=maps), (2, 12, 10), iterative),
        "compressed sensing": (physics.CompressedSensing(m=30, img_size=(1, 8, 8)), (1, 8, 8), iterative),
        "colour": (physics.Decolorize(), (3, 6, 7), iterative),
        "tomography": (physics.Tomography(angles=20, img_width=32), (1, 32, 32), iterative),
    }  # fmt: skip


ZOO = ["inpainting", "circular blur", "blur", "downsampling", "mri", "multi-coil mri", "compressed sensing", "colour",
       "tomography"]  # fmt: skip


@needs_deepinv
@pytest.mark.parametrize("adjoint", ["given", "autograd"])
@pytest.mark.parametrize("name", ZOO)
def test_from_deepinv(physics: Any, relative: Callable[..., float], name: str, adjoint: Any) -> None:
    theirs, shape, method = zoo(physics)[name]
    operator = from_deepinv(theirs, shape, adjoint=adjoint)
    assert isinstance(operator, LinearOperator)
    x = random(2, *shape, dtype=torch.float32)
    assert torch.equal(operator(x), theirs.A(x))
    assert operator.out_shape == tuple(theirs.A(x).shape[1:])
    assert dot_test(operator) < 1e-6
    torch.testing.assert_close(operator.adjoint(operator(x)), theirs.A_adjoint(theirs.A(x)), rtol=1e-4, atol=1e-4)
    damping = torch.tensor([0.3, 2.0])
    solution = operator.solve(x, damping)
    back = operator.adjoint(operator(solution)) + damping.reshape(-1, *[1] * len(shape)) * solution
    assert relative(back, x) < 1e-5
    assert operator.solve_method == (method if adjoint == "given" else LinearOperator.solve_method)
    y = operator(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(operator.adjoint(y), y, grad_outputs=x)
    torch.testing.assert_close(gradient, operator(x), rtol=1e-4, atol=1e-4)
    twin = copy.deepcopy(operator)
    assert torch.equal(twin(x), operator(x))
    assert twin.physics is not operator.physics  # type: ignore[union-attr]


@needs_deepinv
def test_an_adjoint_of_deepinv_that_is_only_close(physics: Any) -> None:
    close = physics.Tomography(angles=20, img_width=32, adjoint_via_backprop=False)
    sentence = "Tomography: the adjoint is not the adjoint of the forward function.*adjoint_via_backprop=True"
    with pytest.raises(ValueError, match=sentence):
        from_deepinv(close, (1, 32, 32))
    assert from_deepinv(close, (1, 32, 32), check=False).out_shape == (1, 46, 20)
    wrong = physics.LinearPhysics(A=lambda x, **_: x.cumsum(-1), A_adjoint=lambda y, **_: y.cumsum(-1))
    with pytest.raises(ValueError, match=r"LinearPhysics: the adjoint is not the adjoint.*adjoint='autograd'"):
        from_deepinv(wrong, (1, 3, 4))
    assert dot_test(from_deepinv(wrong, (1, 3, 4), adjoint="autograd")) < 1e-6


@needs_deepinv
def test_stacked_physics(physics: Any) -> None:
    parts = [
        physics.Blur(filter=kernel(), padding="circular"),
        physics.Inpainting((1, 12, 10), mask=torch.ones(1, 12, 10)),
    ]
    stacked = parts[0].stack(parts[1])
    operator = from_deepinv(stacked, (1, 12, 10))
    assert isinstance(operator, Stack)
    x = random(2, 1, 12, 10, dtype=torch.float32)
    assert torch.equal(operator(x), torch.cat([part.flatten(1) for part in stacked.A(x)], 1))


@needs_deepinv
def test_nonlinear_physics_and_complex_images(physics: Any) -> None:
    theirs = physics.RandomPhaseRetrieval(m=40, img_size=(1, 4, 4))
    with pytest.raises(ValueError, match=r"RandomPhaseRetrieval does not take one float32 image.*complex_images=True"):
        from_deepinv(theirs, (1, 4, 4))
    operator = from_deepinv(theirs, (2, 4, 4), complex_images=True)
    assert isinstance(operator, Operator)
    assert not isinstance(operator, LinearOperator)
    x = random(2, 2, 4, 4, dtype=torch.float32)
    torch.testing.assert_close(operator(x), theirs.A(torch.complex(x[:, :1], x[:, 1:])))
    saturating = physics.Physics(A=lambda x, **_: torch.tanh(x))
    assert torch.equal(from_deepinv(saturating, (2, 4, 4))(x), torch.tanh(x))


@needs_deepinv
def test_noise_models_go_both_ways(physics: Any) -> None:
    for noise in (GaussianNoise(0.25), PoissonNoise(0.5), PoissonGaussianNoise(0.5, 0.25), TransmissionNoise(1000.0)):
        theirs = Mask(torch.ones(3, 4)).to_deepinv(noise)
        assert from_deepinv(theirs, (1, 3, 4)).noise == noise
        clean = torch.full((1, 1, 3, 4), 2.0)
        torch.manual_seed(0)
        many = torch.cat([theirs(clean) for _ in range(500)])
        ours = noise.sample(clean.expand(500, -1, -1, -1), torch.Generator().manual_seed(0))
        assert float(many.mean()) == pytest.approx(float(ours.mean()), rel=0.02)
        assert float(many.std()) == pytest.approx(float(ours.std()), rel=0.1)
    assert from_deepinv(Mask(torch.ones(3, 4)).to_deepinv(), (1, 3, 4)).noise is None
    each = physics.Denoising(physics.GaussianNoise(torch.tensor([0.1, 0.2])))
    assert from_deepinv(each, (1, 3, 4)).noise.std.shape == (2, 1, 1, 1)
    assert from_deepinv(physics.Denoising(physics.UniformNoise(0.1)), (1, 3, 4)).noise is None
    with pytest.raises(ValueError, match="deepinv has no counterpart of TransmissionNoise"):
        Mask(torch.ones(3, 4)).to_deepinv(TransmissionNoise(10.0, 1.0))


@needs_deepinv
@pytest.mark.parametrize("name", both_ways())
def test_to_deepinv(physics: Any, relative: Callable[..., float], name: str) -> None:
    operator = both_ways()[name].float()
    theirs = operator.to_deepinv(GaussianNoise(0.1))
    assert isinstance(theirs, physics.LinearPhysics)
    x, z = (
        random(3, *operator.in_shape, dtype=torch.float32),
        random(3, *operator.in_shape, seed=1, dtype=torch.float32),
    )
    y = theirs.A(x)
    assert torch.equal(y, operator(x))
    assert torch.equal(theirs.A_adjoint(y), operator.adjoint(y))
    assert torch.equal(theirs.A_adjoint_A(x), operator.normal(x))
    for gamma in (0.5, torch.tensor([0.1, 1.0, 7.0])):
        column = torch.as_tensor(gamma).expand(3).reshape(-1, *[1] * (x.ndim - 1))
        best = theirs.prox_l2(z, y, gamma)
        gradient = column * operator.adjoint(operator(best) - y) + best - z
        assert float(gradient.abs().max()) < 1e-4 * float((column * operator.adjoint(y)).abs().max())
    torch.testing.assert_close(theirs.prox_l2(0.0, y, 0.5), theirs.prox_l2(torch.zeros_like(z), y, 0.5))
    assert relative(operator(theirs.A_dagger(y)), y) < 1e-2
    if not y.is_complex():
        base = super(type(theirs), theirs).prox_l2(z, y, 0.5, solver="CG", max_iter=200, tol=1e-6)
        torch.testing.assert_close(theirs.prox_l2(z, y, 0.5), base, rtol=1e-3, atol=1e-3)


@needs_deepinv
def test_deepinvs_own_algorithm_runs_on_our_operator(physics: Any) -> None:
    """Tikhonov by deepinv's proximal gradient descent, against the closed form."""
    optim = pytest.importorskip("deepinv.optim")
    operator = MatrixOperator(random(7, 12), (1, 3, 4)).float()
    theirs = operator.to_deepinv()
    y = operator(random(2, 1, 3, 4, dtype=torch.float32))
    step = 0.9 / operator.norm() ** 2
    model = optim.optim_builder(
        iteration="PGD", prior=optim.Tikhonov(), data_fidelity=optim.L2(), max_iter=3000, early_stop=True,
        thres_conv=1e-8, params_algo={"stepsize": step, "lambda": 0.5, "g_param": 1.0},
    )  # fmt: skip
    found = model(y, theirs)
    torch.testing.assert_close(found, operator.pseudo_inverse(y, 0.5), rtol=1e-3, atol=1e-3)


@needs_deepinv
def test_the_front_door_takes_a_physics(physics: Any) -> None:
    theirs = physics.Inpainting(
        (1, 3, 4), mask=torch.tensor([[[1.0, 0, 1, 1]] * 3]), noise_model=physics.GaussianNoise(0.1)
    )
    same = Mask(torch.tensor([[1.0, 0, 1, 1]] * 3), (1, 3, 4))
    prior, y = GaussianPrior(torch.zeros(1, 3, 4), 0.2), same(torch.rand(2, 1, 3, 4))
    options: dict[str, Any] = {"prior": prior, "method": "dds", "preset": "fast"}
    carried = solve(y, theirs, **options)
    assert carried.info.noise_std == pytest.approx(0.1)
    torch.testing.assert_close(carried.samples, solve(y, same, noise_std=0.1, **options).samples, rtol=1e-3, atol=1e-3)
    other = solve(y, theirs, noise_std=0.3, **options)
    assert other.info.noise_std == 0.3
    quiet = physics.Inpainting((1, 3, 4), mask=torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match="give the noise of y"):
        solve(y, quiet, **options)
    wrong = physics.LinearPhysics(A=lambda x, **_: x.cumsum(-1), A_adjoint=lambda y, **_: y.cumsum(-1))
    with pytest.raises(ValueError, match="the adjoint is not the adjoint"):
        solve(y, wrong, noise_std=0.1, **options)


@needs_deepinv
def test_bad_physics(physics: Any) -> None:
    with pytest.raises(TypeError, match="expected a deepinv Physics, got Linear"):
        from_deepinv(torch.nn.Linear(2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match="adjoint is 'exact'; expected one of given, autograd"):
        from_deepinv(physics.Denoising(), (1, 2, 2), adjoint="exact")  # type: ignore[arg-type]
    many = physics.Inpainting((1, 3, 4), mask=torch.ones(5, 1, 3, 4))
    with pytest.raises(ValueError, match=r"Inpainting gives a batch of 5 for one image of shape \(1, 3, 4\)"):
        from_deepinv(many, (1, 3, 4))
