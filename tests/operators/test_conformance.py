"""What every registered linear operator must do, tested on the examples it registers."""

import copy

import pytest
import torch

from invsolve.operators import Identity, LinearOperator, dot_test, registry

CASES = [
    pytest.param(entry.name, index, id=f"{entry.name}-{index}")
    for entry in registry.entries()
    for index, example in enumerate(entry.examples())
    if isinstance(example, LinearOperator)
]
DAMPING = torch.tensor([0.05, 0.5, 3.0], dtype=torch.float64)


def pytest_generate_tests(metafunc):
    if "operator" in metafunc.fixturenames:
        metafunc.parametrize(("name", "index"), CASES)


@pytest.fixture
def operator(name, index):
    return registry.get(name).examples()[index]


def images(operator, batch=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *operator.in_shape), generator=generator, dtype=torch.float64).to(dtype)


def measurements(operator, batch=3, seed=1):
    """White noise with the type of the operator's output."""
    like = operator(images(operator, batch))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def test_every_class_registers_examples():
    assert {"blur", "downsample", "mask", "matrix"} <= {entry.name for entry in registry.entries()}
    for entry in registry.entries():
        assert entry.examples(), entry.name
        assert entry.summary.endswith(".")


def test_shapes(operator):
    x = images(operator)
    y = operator(x)
    assert y.shape == (3, *operator.out_shape)
    assert y.dtype in (torch.float64, torch.complex128)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    assert operator.solve(x, 1.0).shape == x.shape


def test_adjoint(operator):
    assert dot_test(operator, batch=3, dtype=torch.float64) < 1e-12
    assert dot_test(operator.to(torch.float32), batch=3, dtype=torch.float32) < 1e-5


def test_adjoint_is_the_transpose_entry_by_entry(operator, dense, relative):
    matrix = dense(operator)
    y = measurements(operator)
    flat = torch.view_as_real(y).flatten(1) if y.is_complex() else y.flatten(1)
    assert relative(operator.adjoint(y).flatten(1), flat @ matrix) < 1e-12


def test_linearity(operator, relative):
    x, z = images(operator), images(operator, seed=5)
    assert relative(operator(2 * x - 3 * z), 2 * operator(x) - 3 * operator(z)) < 1e-12


def test_normal(operator, relative):
    x = images(operator)
    assert relative(operator.normal(x), operator.adjoint(operator(x))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_solve_against_dense(operator, dense, relative, dtype):
    matrix, rhs = dense(operator), images(operator)
    damping = DAMPING * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    systems = matrix.T @ matrix + damping[:, None, None] * torch.eye(matrix.shape[1], dtype=torch.float64)
    exact = torch.linalg.solve(systems, rhs.flatten(1)).reshape(rhs.shape)
    solution = operator.to(dtype).solve(rhs.to(dtype), damping.to(dtype))
    assert solution.dtype == dtype
    assert relative(solution.double(), exact) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_solve_with_one_damping_for_all(operator, relative):
    rhs = images(operator)
    assert relative(operator.solve(rhs, 0.3), operator.solve(rhs, torch.full((3,), 0.3))) < 1e-7


def test_solve_against_conjugate_gradients(operator, relative):
    rhs = images(operator)
    result = operator.solve_cg(rhs, DAMPING)
    assert result.converged.all()
    assert relative(operator.solve(rhs, DAMPING), result.x) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_pseudo_inverse_against_dense(operator, dense, relative, dtype):
    """In closed form float32 does not lose digits to a small damping; iterations need not get there."""
    if dtype == torch.float32:
        if operator.solve_method == LinearOperator.solve_method:
            pytest.skip("no closed form")
        operator = operator.float()
    u, s, vt = torch.linalg.svd(dense(copy.deepcopy(operator).double()), full_matrices=False)
    s = torch.where(s > 1e-12 * s.max(), s, 0)  # round-off of the decomposition, which a small damping would enlarge
    y = torch.randn((3, *operator.out_shape), generator=torch.Generator().manual_seed(1)).to(dtype)
    for damping in (1e-7, 1e-3, 0.1):
        exact = (y.double().flatten(1) @ u * (s / (s**2 + damping))) @ vt
        for shift in (damping, torch.full((3,), damping, dtype=dtype)):
            x = operator.pseudo_inverse(y, shift)
            assert x.dtype == dtype
            assert relative(x.double().flatten(1), exact) < (1e-9 if dtype == torch.float64 else 1e-4), damping


def test_pseudo_inverse_of_scaled_and_composed(operator, dense, relative):
    scaled = -3.0 * operator
    composed = operator @ Identity(operator.in_shape)
    y = measurements(operator)
    matrix = dense(operator)
    for candidate, table in ((scaled, -3 * matrix), (composed, matrix)):
        shifted = table @ table.T + 0.2 * torch.eye(len(table), dtype=torch.float64)
        exact = torch.linalg.solve(shifted, y.flatten(1).T).T @ table
        assert relative(candidate.pseudo_inverse(y, 0.2).flatten(1), exact) < 1e-9


def test_gradient_of_pseudo_inverse(operator):
    y = measurements(operator, 2).requires_grad_()
    damping = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: operator.pseudo_inverse(v, damping), (y,), fast_mode=True)


def test_norm(operator, dense):
    exact = float(torch.linalg.matrix_norm(dense(operator), 2))
    assert operator.norm() == pytest.approx(exact, rel=1e-3)
    assert operator.norm() == operator.norm()


def test_a_rough_norm_does_not_replace_the_exact_one(name, index, operator):
    rough = operator.norm(iterations=2, rtol=0.5)
    other = registry.get(name).examples()[index]
    assert operator.norm() == other.norm()
    assert other.norm(iterations=2, rtol=0.5) == rough


def test_calls_leave_no_trace(operator):
    x = images(operator)
    before = copy.deepcopy(operator.state_dict())
    y = operator(x)
    kept = x.clone(), y.clone()
    first = operator.adjoint(y), operator.solve(x, 0.2), operator.norm(), operator.normal(x)
    assert torch.equal(x, kept[0]), "the input was changed"
    assert torch.equal(y, kept[1]), "the measurement was changed"
    assert torch.equal(operator(x), y)
    assert torch.equal(operator.adjoint(y), first[0])
    assert torch.equal(operator.solve(x, 0.2), first[1])
    after = operator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_entries_do_not_see_their_neighbours(operator, relative):
    x = images(operator)
    x[0] *= 1e4
    x[2] *= 1e4
    alone = x[1:2]
    assert relative(operator(x)[1:2], operator(alone)) < 1e-12
    y = measurements(operator)
    y[0] *= 1e4
    assert relative(operator.adjoint(y)[1:2], operator.adjoint(y[1:2])) < 1e-12
    assert relative(operator.solve(x, DAMPING)[1:2], operator.solve(alone, DAMPING[1:2])) < 1e-10


def test_state_dict_round_trip(name, index, operator, relative):
    x = images(operator)
    state = copy.deepcopy(operator.state_dict())
    other = registry.get(name).examples()[index]
    with torch.no_grad():
        for key, value in other.state_dict().items():  # these share memory with the operator
            value.mul_(2).add_(0.1)
            assert not torch.equal(value, state[key])
    other.solve(x, 0.2)  # whatever it keeps from now on belongs to the old arrays
    other.norm()
    other.load_state_dict(state)
    assert relative(other(x), operator(x)) < 1e-14
    assert relative(other.solve(x, 0.2), operator.solve(x, 0.2)) < 1e-14
    assert other.norm() == pytest.approx(operator.norm(), rel=1e-12)


def test_changing_the_type_there_and_back(operator, relative):
    x = images(operator)
    y = operator(x)
    single = operator.to(torch.float32)(x.float())
    assert single.dtype in (torch.float32, torch.complex64)
    assert relative(single.to(y.dtype), y) < 1e-5
    double = operator.double()(x)
    assert double.dtype == y.dtype
    assert relative(double, y) < 1e-5


def test_gradient_of_forward_and_adjoint(operator):
    x = images(operator, 2).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True)
    y = measurements(operator, 2).requires_grad_()
    assert torch.autograd.gradcheck(operator.adjoint, (y,), fast_mode=True)


def test_gradient_of_solve(operator):
    rhs = images(operator, 2).requires_grad_()
    damping = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda b: operator.solve(b, damping), (rhs,), fast_mode=True)


def test_inference_mode_first_then_gradients(operator):
    x = images(operator, 1)
    with torch.inference_mode():
        operator.solve(operator.adjoint(operator(x)), 1.0)
    x.requires_grad_()
    operator.solve(operator.adjoint(operator(x)), 1.0).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_transposed(operator, dense, relative):
    if operator(images(operator, 1)).is_complex():
        pytest.skip("the transpose of a real-to-complex map takes complex images")
    matrix = dense(operator)
    transposed = operator.T
    assert (transposed.in_shape, transposed.out_shape) == (operator.out_shape, operator.in_shape)
    assert relative(dense(transposed), matrix.T.contiguous()) < 1e-12
    assert transposed.T is operator
    assert dot_test(transposed, dtype=torch.float64) < 1e-12
    y = measurements(operator)
    exact = torch.linalg.solve(matrix @ matrix.T + torch.eye(matrix.shape[0], dtype=torch.float64), y.flatten(1).T).T
    assert relative(transposed.solve(y, 1.0).flatten(1), exact) < 1e-9
