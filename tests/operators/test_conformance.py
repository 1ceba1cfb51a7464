"""What every registered operator must do, tested on the examples it registers: linear ones first, then all."""

import copy
import functools
import gc
import io
import re
import resource

import pytest
import torch

from invsolve.operators import Identity, LinearOperator, dot_test, registry


@functools.cache
def examples(name):
    return registry.get(name).examples()


def fresh(name, index):
    """An example of its own; copying one is cheaper than building them all."""
    return copy.deepcopy(examples(name)[index])


EVERY = [
    pytest.param(entry.name, index, id=f"{entry.name}-{index}")
    for entry in registry.entries()
    for index in range(len(examples(entry.name)))
]
CASES = [case for case in EVERY if isinstance(examples(case.values[0])[case.values[1]], LinearOperator)]
DAMPING = torch.tensor([0.05, 0.5, 3.0], dtype=torch.float64)


def pytest_generate_tests(metafunc):
    if "operator" in metafunc.fixturenames:
        metafunc.parametrize(("name", "index"), CASES)
    elif "anyone" in metafunc.fixturenames:
        metafunc.parametrize(("name", "index"), EVERY)


@pytest.fixture
def operator(name, index):
    return fresh(name, index)


@pytest.fixture
def anyone(name, index):
    """Any registered operator, linear or not."""
    return fresh(name, index)


def images(operator, batch=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *operator.in_shape), generator=generator, dtype=torch.float64).to(dtype)


def measurements(operator, batch=3, seed=1):
    """White noise with the type of the operator's output."""
    like = operator(images(operator, batch))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def flat(y):
    """(B, m) real: a complex entry counts as two real ones, as in `dense`."""
    return torch.view_as_real(y).flatten(1) if y.is_complex() else y.flatten(1)


def test_every_class_registers_examples():
    assert {"blur", "downsample", "mask", "matrix"} <= {entry.name for entry in registry.entries()}
    for entry in registry.entries():
        assert entry.examples(), entry.name
        assert entry.summary.endswith(".")
        assert re.search(r"^    ::\n\n        ", entry.cls.__doc__ or "", re.MULTILINE), f"{entry.name}: no picture"


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
    assert relative(operator.adjoint(y).flatten(1), flat(y) @ matrix) < 1e-12


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
    y = measurements(copy.deepcopy(operator).double())
    y = y.to(dtype.to_complex() if y.is_complex() else dtype)
    for damping in (1e-7, 1e-3, 0.1):
        exact = (flat(y).double() @ u * (s / (s**2 + damping))) @ vt
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
        exact = torch.linalg.solve(shifted, flat(y).T).T @ table
        assert relative(candidate.pseudo_inverse(y, 0.2).flatten(1), exact) < 1e-9


def test_pseudo_inverse_begins_where_it_is_told(operator, relative):
    y, composed = measurements(operator), operator @ Identity(operator.in_shape)
    for candidate in (operator, -3.0 * operator, composed):
        exact = candidate.pseudo_inverse(y, 0.2)
        assert relative(candidate.pseudo_inverse(y, 0.2, x0=exact, rtol=1e-6, max_iter=1), exact) < 1e-5


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
    other = fresh(name, index)
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
    other = fresh(name, index)
    with torch.no_grad():
        for key, value in other.state_dict().items():  # these share memory with the operator
            if not (value.is_floating_point() or value.is_complex()):
                continue  # indices
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


# From here on every operator, linear or not.


def gentle(operator, batch=3, seed=0):
    """Images inside (0, 1), as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand((batch, *operator.in_shape), generator=generator, dtype=torch.float64)


def test_any_shapes(anyone):
    x = gentle(anyone)
    anyone.check_input(x)
    y = anyone(x)
    anyone.check_output(y)
    assert y.shape == (3, *anyone.out_shape)
    assert bool(torch.isfinite(y).all())


def test_any_entries_do_not_see_their_neighbours(anyone, relative):
    x = gentle(anyone)
    alone = anyone(x[1:2])
    x[0], x[2] = 0.5 * x[2], 0.3
    assert relative(anyone(x)[1:2], alone) < 1e-12


def test_any_call_leaves_no_trace(anyone):
    x = gentle(anyone)
    kept, before = x.clone(), copy.deepcopy(anyone.state_dict())
    y = anyone(x)
    first = y.clone()
    assert torch.equal(anyone(x), first)
    assert torch.equal(y, first), "a later call wrote into an earlier result"
    assert torch.equal(x, kept), "the input was changed"
    after = anyone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_any_gradient(name, anyone):
    if name == "jpeg":
        pytest.skip("rounding passes gradients straight through, which are no derivatives on purpose")
    x = gentle(anyone, 2).requires_grad_()
    assert torch.autograd.gradcheck(anyone.double(), (x,), fast_mode=True)


def test_any_copy_and_stored_state(name, index, anyone, relative):
    x = gentle(anyone)
    y = anyone(x)  # whatever it keeps of this must not travel
    assert relative(copy.deepcopy(anyone)(x), y) < 1e-14
    stored = io.BytesIO()
    torch.save(anyone.state_dict(), stored)
    stored.seek(0)
    other = fresh(name, index)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert relative(other(x), y) < 1e-14


def test_any_pickle(name, anyone, relative):
    if name in ("function", "scipy"):
        pytest.skip("holds functions of the caller, which need not pickle")
    x = gentle(anyone)
    y = anyone(x)
    stored = io.BytesIO()
    torch.save(anyone, stored)
    stored.seek(0)
    assert relative(torch.load(stored, weights_only=False)(x), y) < 1e-14


def test_any_refuses_few_digits_and_whole_numbers(anyone):
    x = gentle(anyone)
    for dtype in (torch.bfloat16, torch.float16):
        if anyone.reduced_precision:
            exact = anyone(x)
            assert (anyone(x.to(dtype)).double() - exact).norm() < 0.01 * exact.norm()
            continue
        with pytest.raises(TypeError, match=f"does not compute in {str(dtype)[6:]}: .*pass x.float()"):
            anyone(x.to(dtype))
        if isinstance(anyone, LinearOperator):
            for call in (anyone.normal, lambda v: anyone.solve(v, 1.0), anyone.solve_cg):
                with pytest.raises(TypeError, match="does not compute in"):
                    call(x.to(dtype), 1.0) if call == anyone.solve_cg else call(x.to(dtype))
            with pytest.raises(TypeError, match="does not compute in"):
                anyone.adjoint(torch.zeros((1, *anyone.out_shape), dtype=dtype))
    with pytest.raises(TypeError, match=r"got uint8; convert with x.float\(\)"):
        anyone((255 * x).to(torch.uint8))


def test_any_keeps_its_precision_under_autocast(anyone):
    x = gentle(anyone).float()
    y = anyone.float()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(anyone(x), y)


@pytest.mark.parametrize("calls", [pytest.param(40, id="40"), pytest.param(1000, id="1000", marks=pytest.mark.slow)])
def test_any_memory_does_not_grow(anyone, calls):
    x = gentle(anyone, 1)

    def use():
        with torch.no_grad():
            y = anyone(x)
            if isinstance(anyone, LinearOperator):
                anyone.normal(x)
                anyone.adjoint(y)
                anyone.solve_cg(x, 1.0, max_iter=2)
        image = x.clone().requires_grad_()
        y = anyone(image)
        (y.abs() if y.is_complex() else y).sum().backward()

    for _ in range(5):
        use()
    gc.freeze()  # what is there already need not be looked through, which would take most of the time
    try:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(calls):
            use()
        # Without a collection: what only the garbage collector frees piles up in a sampler's loop.
        assert tensors() <= 2
    finally:
        gc.unfreeze()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    # The allocator's own breathing moves the peak by up to 30 MiB over 1000 calls, without a trend.
    assert grown < 64 << 20, f"{grown / 2**20:.0f} MiB more at the peak"


def tensors():
    """Tensors that the garbage collector knows and that came after `gc.freeze`."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("damping", [-0.1, float("nan"), torch.tensor([0.1, -1.0, 1.0])])
def test_bad_damping(operator, damping):
    x = images(operator)
    for call in (operator.solve, operator.solve_cg):
        with pytest.raises(ValueError, match=r"damping is (-0.1|nan|-1); expected a number > 0, or 0 where"):
            call(x, damping)


def test_no_damping_at_all(operator, dense, relative):
    """Either the solution, or a sentence that names the damping; never NaN or nonsense."""
    matrix, x = dense(operator), images(operator)
    values = torch.linalg.svdvals(matrix)
    regular = matrix.shape[0] >= matrix.shape[1] and bool(values.min() > 1e-3 * values.max())
    if regular:
        assert relative(operator.solve(operator.normal(x), 0.0), x) < 1e-5
    elif matrix.shape[0] < matrix.shape[1] or values.min() < 1e-14 * values.max():
        with pytest.raises(ValueError, match=r"damping is 0 and A\^H A of .* is singular"):
            operator.solve(x, 0)
