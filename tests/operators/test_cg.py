"""Batched conjugate gradients: freezing, breakdowns, complex systems, warnings."""

import pytest
import torch

from invsolve.operators import (
    Blur,
    FunctionOperator,
    LinearOperator,
    MatrixOperator,
    SolveWarning,
    conjugate_gradient,
    gaussian_kernel,
    precondition,
)
from invsolve.operators.cg import advance, inner64
from invsolve.operators.graphs import GraphCache
from invsolve.operators.lsqr import lsqr


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


def test_solve_warns_when_the_iterations_end():
    values = torch.logspace(-4, 0, 900, dtype=torch.float64)
    operator = FunctionOperator(lambda x: values * x, lambda y: values * y, (900,), (900,))
    with pytest.warns(SolveWarning, match="stopped after 500 iterations at a relative residual of .*; raise max_iter"):
        operator.solve(noise(1, 900), 1e-9)


def test_solve_uses_its_start_and_limits():
    matrix = spd(30, condition=1e4)
    operator = FunctionOperator(lambda x: x @ matrix, lambda y: y @ matrix, (30,), (30,))
    rhs = noise(1, 30)
    rough = operator.solve(rhs, 1e-4, max_iter=3)  # says nothing: to stop early was asked for
    loose = operator.solve(rhs, 1e-4, rtol=1e-2)
    exact = MatrixOperator(matrix).solve(rhs, 1e-4)
    errors = [float((x - exact).norm() / exact.norm()) for x in (rough, loose, operator.solve(rhs, 1e-4))]
    assert errors[0] > errors[1] > 1e-4
    assert errors[2] < 1e-8
    assert torch.allclose(operator.solve(rhs, 1e-4, x0=exact, rtol=1e-9, max_iter=1), exact, rtol=1e-6)


def test_a_perfect_preconditioner_needs_one_step():
    matrix, rhs = spd(20, condition=1e4), noise(2, 20)
    inverse = torch.linalg.inv(matrix + 0.1 * torch.eye(20, dtype=torch.float64))
    result = conjugate_gradient(lambda x: x @ matrix, rhs, 0.1, rtol=1e-9, preconditioner=lambda r: r @ inverse)
    assert result.iterations.tolist() == [1, 1]
    assert torch.allclose(result.x, rhs @ inverse)


def test_a_preconditioner_helps_and_stops_on_the_plain_residual():
    values = torch.logspace(0, 5, 40, dtype=torch.float64)
    couple = spd(40, condition=3.0)
    matrix = values.sqrt()[:, None] * couple * values.sqrt()
    rhs, shift = noise(2, 40), torch.tensor([[1e-3], [1.0]], dtype=torch.float64)
    plain = conjugate_gradient(lambda x: x @ matrix, rhs, shift, rtol=1e-9)
    helped = conjugate_gradient(
        lambda x: x @ matrix, rhs, shift, rtol=1e-9, preconditioner=precondition.diagonal(matrix.diagonal(), shift)
    )
    assert (helped.iterations * 2 < plain.iterations).all()
    true = (rhs - helped.x @ matrix - shift * helped.x).norm(dim=1) / rhs.norm(dim=1)
    assert (true < 1.01e-9).all()


def test_an_indefinite_preconditioner_is_a_breakdown():
    result = conjugate_gradient(lambda x: 2 * x, noise(1, 4), preconditioner=lambda r: -r)
    assert result.breakdown.tolist() == [True]


def test_low_rank_preconditioner():
    basis = torch.linalg.qr(noise(30, 30))[0]
    values = torch.cat([torch.logspace(3, 1, 5, dtype=torch.float64), torch.full((25,), 1e-3, dtype=torch.float64)])
    matrix, rhs = basis * values @ basis.T, noise(1, 30, seed=2)
    pair = precondition.nystrom(lambda x: x @ matrix, rhs, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(pair[1][:5], values[:5], rtol=1e-3)
    shift = torch.full((1, 1), 0.01, dtype=torch.float64)
    result = conjugate_gradient(
        lambda x: x @ matrix, rhs, 0.01, rtol=1e-6, preconditioner=precondition.low_rank(*pair, shift)
    )
    plain = conjugate_gradient(lambda x: x @ matrix, rhs, 0.01, rtol=1e-6)
    assert result.converged.all()
    assert result.iterations[0] <= 4 < plain.iterations[0]


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_cosine_preconditioner_against_dense(size):
    tables = []
    for n in size:
        order = torch.arange(n, dtype=torch.float64)
        table = torch.cos(torch.pi / n * torch.outer(order + 0.5, order)) * (2 / n) ** 0.5
        table[:, 0] /= 2**0.5
        tables.append(table)
    rows, columns = tables
    power, scale, r = noise(1, *size).abs(), noise(*size, seed=2).abs() + 0.5, noise(2, 1, *size, seed=3)
    damping = torch.tensor([0.1, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    exact = rows @ ((rows.T @ (r / scale) @ columns) / (power + damping)) @ columns.T / scale
    assert torch.allclose(precondition.cosine(power, scale, damping)(r), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate", "valid"])
def test_blur_preconditioners_save_iterations(boundary):
    blur = Blur(gaussian_kernel(1.5, 9), (1, 64, 60), boundary, dtype=torch.float64)
    rhs = noise(1, 1, 64, 60)
    plain = blur.solve_cg(rhs, 1e-2, rtol=1e-6, preconditioned=False)
    helped = blur.solve_cg(rhs, 1e-2, rtol=1e-6)
    assert helped.converged.all()
    assert 1.5 * helped.iterations[0] < plain.iterations[0]
    assert torch.allclose(helped.x, plain.x, rtol=1e-3, atol=1e-3)


def test_single_precision_meets_the_true_residual():
    matrix, rhs = spd(60, condition=1e4).float(), noise(2, 60).float()
    result = conjugate_gradient(lambda x: x @ matrix, rhs, 1e-4, rtol=1e-5)
    true = (rhs - result.x @ matrix - 1e-4 * result.x).norm(dim=1) / rhs.norm(dim=1)
    assert torch.allclose(result.residual, true, rtol=0.1, atol=0)
    assert ((true <= 1.1e-5) | result.stalled).all()


def test_out_of_digits_is_reported_not_claimed():
    matrix, rhs = spd(60, condition=1e8).float(), noise(1, 60).float()
    result = conjugate_gradient(lambda x: x @ matrix, rhs, rtol=1e-7, max_iter=5000)
    assert not result.converged.any()


def test_sums_in_single_precision_keep_their_digits():
    a = noise(2, 300_000).float()
    exact = (a.double() ** 2).sum(1)
    assert ((inner64(a, a) - exact).abs() < 2e-8 * exact).all()


def ill_conditioned(condition):
    left, right = (torch.linalg.qr(noise(30, 30, seed=s))[0] for s in (5, 6))
    return left * torch.logspace(0, -torch.tensor(condition).log10(), 30, dtype=torch.float64) @ right.T


def test_lsqr_keeps_the_digits_that_the_normal_equations_lose():
    matrix, exact = ill_conditioned(1e6), noise(2, 30)
    y = exact @ matrix.T
    good = lsqr(lambda x: x @ matrix.T, lambda r: r @ matrix, y, rtol=1e-15, max_iter=2000)
    normal = conjugate_gradient(lambda x: x @ matrix.T @ matrix, y @ matrix, max_iter=2000)
    errors = [float((x - exact).norm() / exact.norm()) for x in (good.x, normal.x)]
    assert errors[0] < 1e-7
    assert errors[1] > 100 * errors[0]


def test_lsqr_with_damping_per_entry_and_complex_data():
    matrix = noise(9, 6, dtype=torch.complex128)
    y, damping = noise(3, 9, seed=4, dtype=torch.complex128), torch.tensor([0.0, 0.1, 5.0], dtype=torch.float64)
    y[1] *= 1e3
    result = lsqr(lambda x: x @ matrix.T, lambda r: r @ matrix.conj(), y, damping)
    systems = matrix.mH @ matrix + damping[:, None, None] * torch.eye(6)
    assert torch.allclose(result.x, torch.linalg.solve(systems, y @ matrix.conj()), rtol=1e-9, atol=1e-9)
    assert result.converged.all()
    zero = lsqr(lambda x: x @ matrix.T, lambda r: r @ matrix.conj(), 0 * y)
    assert torch.equal(zero.x, torch.zeros_like(zero.x))


class _Learned(LinearOperator):
    """x -> gains * (x convolved along the row with a learned kernel), solved by conjugate gradients."""

    def __init__(self, kernel, gains):
        super().__init__((7,), (7,))
        self.kernel = torch.nn.Parameter(kernel)
        self.register_buffer("gains", gains)

    def matrix(self):
        index = torch.arange(7)
        return self.gains[:, None] * self.kernel[(index[:, None] - index) % 3] * (index[:, None] - index < 3)

    def forward(self, x):
        return x @ self.matrix().T

    def adjoint(self, y):
        return y @ self.matrix()


@pytest.mark.parametrize("what", ["solve", "pseudo_inverse"])
def test_gradients_through_solves(what):
    rhs, kernel, gains = noise(2, 7), noise(3, seed=3), noise(7, seed=4)
    damping = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def function(rhs, damping, kernel, gains):
        operator = _Learned(torch.zeros(3, dtype=torch.float64), gains)
        del operator.kernel
        operator.register_buffer("kernel", kernel)  # a tensor with a graph, as a network would give it
        return getattr(operator, what)(rhs, damping)

    inputs = [value.clone().requires_grad_() for value in (rhs, damping, kernel, gains)]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_reach_parameters():
    operator = _Learned(noise(3), noise(7, seed=4).abs() + 1)
    operator.solve(noise(1, 7), 0.5).square().sum().backward()
    assert bool((operator.kernel.grad != 0).all())


def test_a_learned_blur_kernel_gets_gradients_and_no_stale_spectrum():
    kernel = noise(3, 3).abs()
    for boundary in ("circular", "zero"):
        x, learned = noise(1, 1, 6, 7), kernel.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda k, x=x, b=boundary: Blur(k, (1, 6, 7), b, dtype=torch.float64).solve(x, 0.5), (learned,)
        )
        blur = Blur(kernel, (1, 6, 7), boundary, dtype=torch.float64)
        before = blur(x)
        blur.kernel.mul_(2)
        assert torch.allclose(blur(x), 2 * before)


def test_a_block_of_iterations_gives_the_same_result():
    """The protocol of the CUDA graphs, on vectors of the block's own."""
    matrix, rhs = spd(20, condition=1e3), noise(2, 20)

    class Block:
        calls = 0

        def adopt(self, state):
            self.state = state
            return state

        def __call__(self, count):
            Block.calls += 1
            advance(self.state, lambda x: x @ matrix, None, count)

    result = conjugate_gradient(lambda x: x @ matrix, rhs, 0.1, check_every=8, capture=lambda state: Block())
    assert Block.calls > 1
    assert torch.allclose(result.x, conjugate_gradient(lambda x: x @ matrix, rhs, 0.1).x, rtol=1e-12)


def test_where_nothing_can_be_captured_solves_go_on(monkeypatch):
    blur = Blur(gaussian_kernel(1.0), (1, 16, 16), "zero")
    cache, rhs = GraphCache(), noise(1, 1, 16, 16).float()
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: (_ for _ in ()).throw(RuntimeError("no")))
    for _ in range(3):
        result = conjugate_gradient(blur.normal, rhs, 0.1, capture=lambda state: cache.find(blur, state))
        assert result.converged.all()


@pytest.mark.gpu
def test_graphs_replay_the_same_solves():
    blur = Blur(gaussian_kernel(1.5, 9), (1, 64, 64), "zero").cuda()
    for seed in range(4):
        rhs = noise(2, 1, 64, 64, seed=seed).float().cuda()
        damping = torch.tensor([0.01, 0.1 * (seed + 1)])
        exact = conjugate_gradient(blur.normal, rhs, damping, rtol=1e-5)
        result = blur.solve_cg(rhs, damping, rtol=1e-5)
        assert result.converged.all()
        assert torch.allclose(result.x, exact.x, rtol=1e-3, atol=1e-4)
    assert any(blur.__dict__["_graphs"]._blocks.values()), "nothing was captured"
