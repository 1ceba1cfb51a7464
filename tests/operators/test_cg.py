"""Batched conjugate gradients: freezing, breakdowns, complex systems, warnings."""

import pytest
import torch

from invsolve.operators import FunctionOperator, LinearOperator, MatrixOperator, SolveWarning, conjugate_gradient


def diagonal(*rows):
    """x -> d x with one diagonal per batch entry: element-wise, so that nothing depends on the batch size."""
    values = torch.tensor(rows, dtype=torch.float64)
    return lambda x: values * x


def spd(size, seed=0, condition=100.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn((size, size), generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10(), size, dtype=torch.float64)) @ basis.T


def noise(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_exact_in_as_many_steps_as_there_are_eigenvalues():
    # The defining property: with 5 distinct eigenvalues the 5th iterate is exact. Wrong conjugation (beta = 0, or a
    # beta from the wrong residuals) turns this into steepest descent, which is nowhere near after 5 steps.
    values = torch.tensor([1.0, 3.0, 10.0, 40.0, 100.0], dtype=torch.float64).repeat(4)
    rhs = noise(2, 20)
    result = conjugate_gradient(lambda x: values * x, rhs, max_iter=5, rtol=1e-9)
    assert torch.allclose(result.x, rhs / values, rtol=1e-8, atol=0)
    assert result.converged.all()
    assert result.iterations.tolist() == [5, 5]


def test_directions_are_conjugate():
    matrix, seen = spd(12), []

    def normal(x):
        seen.append(x.clone())
        return x @ matrix

    conjugate_gradient(normal, noise(1, 12), max_iter=6)
    directions = torch.cat(seen)
    products = directions @ matrix @ directions.T
    scale = products.diagonal().sqrt()
    products = products / (scale[:, None] * scale)
    assert (products - torch.eye(len(seen), dtype=torch.float64)).abs().max() < 1e-9
    assert len(seen) == 6


def test_zero_right_hand_side():
    rhs = noise(3, 6)
    rhs[1] = 0
    result = conjugate_gradient(lambda x: 2 * x, rhs, 1.0)
    assert torch.equal(result.x[1], torch.zeros(6, dtype=torch.float64))
    assert result.converged.tolist() == [True, True, True]
    assert result.iterations[1] == 0
    assert result.residual[1] == 0
    assert torch.allclose(result.x, rhs / 3)


def test_zero_right_hand_side_with_a_start():
    rhs = noise(2, 6)
    rhs[0] = 0
    result = conjugate_gradient(lambda x: 2 * x, rhs, 1.0, x0=noise(2, 6, seed=3))
    assert torch.equal(result.x[0], torch.zeros(6, dtype=torch.float64))
    assert result.converged.tolist() == [True, True]
    assert result.iterations[0] == 0
    assert torch.allclose(result.x[1], rhs[1] / 3)


def test_damping_and_stopping_per_entry():
    matrix, rhs = spd(20, condition=1e4), noise(3, 20)
    damping = torch.tensor([10.0, 0.1, 1e-3], dtype=torch.float64)
    result = conjugate_gradient(lambda x: x @ matrix, rhs, damping)
    systems = matrix + damping[:, None, None] * torch.eye(20, dtype=torch.float64)
    assert torch.allclose(result.x, torch.linalg.solve(systems, rhs), rtol=1e-8, atol=1e-8)
    assert result.converged.all()
    assert (result.iterations.diff() > 0).all(), "less damping takes more iterations"
    assert (result.residual <= 1e-12).all()


def test_too_few_iterations_are_reported():
    matrix, rhs = spd(30, condition=1e6), noise(2, 30)
    rhs[1] = 0
    result = conjugate_gradient(lambda x: x @ matrix, rhs, max_iter=2)
    assert result.converged.tolist() == [False, True]
    assert result.breakdown.tolist() == [False, False]
    assert result.iterations.tolist() == [2, 0]
    # The reported residual is the true one.
    true = (rhs[0] - result.x[0] @ matrix).norm() / rhs[0].norm()
    assert result.residual[0] == pytest.approx(float(true), rel=1e-9)
    assert result.residual[0] > 1e-6


def test_a_frozen_entry_is_exactly_its_solo_run():
    easy, hard = [1.0, 2.0] * 10, torch.logspace(0, -5, 20, dtype=torch.float64).tolist()
    rhs = noise(2, 20)
    together = conjugate_gradient(diagonal(easy, hard), rhs)
    alone = conjugate_gradient(diagonal(easy), rhs[:1])
    assert together.iterations[0] == alone.iterations[0] == 2
    assert together.iterations[1] > 15
    assert torch.equal(together.x[0], alone.x[0])
    assert torch.equal(together.residual[0], alone.residual[0])


@pytest.mark.parametrize("check_every", [1, 3, 50])
def test_how_often_the_device_is_asked_does_not_matter(check_every):
    matrix, rhs = spd(10), noise(2, 10)
    reference = conjugate_gradient(lambda x: x @ matrix, rhs, 0.1)
    result = conjugate_gradient(lambda x: x @ matrix, rhs, 0.1, check_every=check_every)
    assert torch.equal(result.x, reference.x)
    assert torch.equal(result.iterations, reference.iterations)


def test_complex_hermitian():
    factor = noise(8, 8, seed=2, dtype=torch.complex128)
    matrix = factor @ factor.mH
    rhs = noise(2, 8, seed=4, dtype=torch.complex128)
    result = conjugate_gradient(lambda x: x @ matrix.T, rhs, torch.tensor([0.5, 2.0], dtype=torch.float64))
    for entry, damping in enumerate((0.5, 2.0)):
        exact = torch.linalg.solve(matrix + damping * torch.eye(8), rhs[entry])
        assert torch.allclose(result.x[entry], exact, rtol=1e-9, atol=1e-9)
    assert result.converged.all()
    assert not result.residual.is_complex()


def test_negative_definite_is_a_breakdown():
    result = conjugate_gradient(diagonal([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]), noise(2, 3))
    assert result.breakdown.tolist() == [False, True]
    assert result.converged.tolist() == [True, False]
    assert torch.equal(result.x[1], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_a_breakdown_of_that_entry_alone(bad):
    rhs = noise(3, 3)
    result = conjugate_gradient(diagonal([1.0, 2.0, 3.0], [1.0, bad, 1.0], [4.0, 5.0, 6.0]), rhs)
    assert result.breakdown.tolist() == [False, True, False]
    assert result.converged.tolist() == [True, False, True]
    assert result.x.isfinite().all()
    assert result.residual[1] == 1, "the residual of the last good iterate, here the start"
    assert torch.allclose(result.x[0], rhs[0] / torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(result.x[2], rhs[2] / torch.tensor([4.0, 5.0, 6.0]))


def test_a_right_hand_side_with_nan_is_a_breakdown():
    rhs = noise(2, 3)
    rhs[0, 1] = float("nan")
    result = conjugate_gradient(lambda x: 2 * x, rhs)
    assert result.breakdown.tolist() == [True, False]
    assert result.x.isfinite().all()
    assert torch.allclose(result.x[1], rhs[1] / 2)


def test_a_warm_start_saves_iterations():
    matrix, rhs = spd(40, condition=1e3), noise(1, 40)
    cold = conjugate_gradient(lambda x: x @ matrix, rhs, 1e-3, rtol=1e-8)
    start = cold.x * (1 + 1e-5)
    kept = start.clone()
    warm = conjugate_gradient(lambda x: x @ matrix, rhs, 1e-3, x0=start, rtol=1e-8)
    assert torch.equal(start, kept), "the start belongs to the caller"
    assert warm.converged.all()
    assert warm.iterations[0] < cold.iterations[0]
    assert torch.allclose(warm.x, cold.x, rtol=1e-5, atol=1e-5)
    done = conjugate_gradient(lambda x: x @ matrix, rhs, 1e-3, x0=warm.x, rtol=1e-7)
    assert done.iterations[0] == 0


def test_the_right_hand_side_is_not_changed():
    matrix, rhs = spd(5), noise(2, 5)
    kept = rhs.clone()
    conjugate_gradient(lambda x: x @ matrix, rhs)
    assert torch.equal(rhs, kept)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="damping has 3 entries for a batch of 2"):
        conjugate_gradient(lambda x: x, noise(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"x0 has shape \(1, 4\), the right-hand side \(2, 4\)"):
        conjugate_gradient(lambda x: x, noise(2, 4), x0=noise(1, 4))


class _Indefinite(LinearOperator):
    """Claims an A^H A that is not positive definite."""

    def __init__(self):
        super().__init__((4,), (4,))

    def forward(self, x):
        return x

    def adjoint(self, y):
        return y * torch.tensor([[1.0], [-1.0]], dtype=y.dtype)


def test_solve_warns_about_a_breakdown():
    with pytest.warns(SolveWarning, match=r"_Indefinite broke down for batch entries \[1\]"):
        x = _Indefinite().solve(torch.ones(2, 4), 0.5)
    assert x.isfinite().all()
    assert torch.allclose(x[0], torch.full((4,), 2 / 3))


def test_solve_uses_its_start_and_limits():
    matrix = spd(30, condition=1e4)
    operator = FunctionOperator(lambda x: x @ matrix, lambda y: y @ matrix, (30,), (30,))
    rhs = noise(1, 30)
    with pytest.warns(SolveWarning, match="stopped after 3 iterations at a relative residual of .*; raise max_iter"):
        rough = operator.solve(rhs, 1e-4, max_iter=3)
    loose = operator.solve(rhs, 1e-4, rtol=1e-2)
    exact = MatrixOperator(matrix).solve(rhs, 1e-4)
    errors = [float((x - exact).norm() / exact.norm()) for x in (rough, loose, operator.solve(rhs, 1e-4))]
    assert errors[0] > errors[1] > 1e-4
    assert errors[2] < 1e-8
    assert torch.allclose(operator.solve(rhs, 1e-4, x0=exact, rtol=1e-9, max_iter=1), exact, rtol=1e-6)
