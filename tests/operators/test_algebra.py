"""Composition, scaling, sums and stacks against the same algebra of dense matrices."""

import pytest
import torch

from invsolve.operators import (
    Blur,
    Downsample,
    FunctionOperator,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    MatrixOperator,
    Operator,
    dot_test,
    stack,
)

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def matrix(rows, columns, seed=0, in_shape=None):
    return MatrixOperator(random(rows, columns, seed=seed), in_shape)


def check_solve(operator, dense, relative):
    rhs, damping = random(2, *operator.in_shape, seed=9), torch.tensor([0.3, 4.0], dtype=F64)
    table = dense(operator)
    systems = table.T @ table + damping[:, None, None] * torch.eye(table.shape[1], dtype=F64)
    exact = torch.linalg.solve(systems, rhs.flatten(1)).reshape(rhs.shape)
    assert relative(operator.solve(rhs, damping), exact) < 1e-9


def test_compose(dense, relative):
    outer, inner = matrix(3, 5), matrix(5, 12, 1, (1, 3, 4))
    both = outer @ inner
    assert (both.in_shape, both.out_shape) == ((1, 3, 4), (3,))
    assert relative(dense(both), outer.matrix @ inner.matrix) < 1e-14
    assert dot_test(both, dtype=F64) < 1e-14
    assert both.norm() == pytest.approx(float(torch.linalg.matrix_norm(outer.matrix @ inner.matrix, 2)), rel=1e-3)
    check_solve(both, dense, relative)


def test_compose_behind_orthogonal_rows_solves_in_closed_form(dense, relative):
    generator = torch.Generator().manual_seed(0)
    mask = Mask(torch.rand((4, 5), generator=generator) > 0.4, (1, 4, 5), dtype=F64)
    operator = mask @ Grayscale((3, 4, 5), dtype=F64)
    assert operator.solve_method == "closed form (diagonal) behind orthogonal rows"
    check_solve(operator, dense, relative)
    blurred = Blur(random(3, 2), (3, 4, 5), dtype=F64) @ Downsample(2, (3, 8, 10), "box", dtype=F64)
    assert blurred.solve_method == "closed form (circulant) behind orthogonal rows"
    check_solve(blurred, dense, relative)


def test_row_gram_of_compositions():
    averages = Downsample(2, (3, 4, 6), "box")
    grey = Grayscale((3, 2, 3))
    assert (grey @ averages).row_gram == pytest.approx(float((grey.weights**2).sum()) / 4)
    assert (3.0 * averages).row_gram == pytest.approx(9 / 4)
    assert (averages @ Blur(torch.ones(2, 2), (3, 4, 6), "zero")).row_gram is None


def test_scale(dense, relative):
    operator = matrix(4, 6)
    for scaled, factor in ((2.5 * operator, 2.5), (operator * -3, -3), (-operator, -1)):
        assert relative(dense(scaled), factor * operator.matrix) < 1e-14
        assert scaled.norm() == pytest.approx(
            abs(factor) * float(torch.linalg.matrix_norm(operator.matrix, 2)), rel=1e-3
        )
        assert relative(scaled.normal(random(2, 6)), scaled.adjoint(scaled(random(2, 6)))) < 1e-14
        assert scaled.solve_method == "closed form (SVD)"
        check_solve(scaled, dense, relative)
    for bad in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cannot scale an operator by"):
            _ = bad * operator
    with pytest.raises(TypeError):
        _ = "2" * operator


def test_add_and_subtract(dense, relative):
    first, second = matrix(4, 6), matrix(4, 6, 1)
    assert relative(dense(first + second), first.matrix + second.matrix) < 1e-14
    assert relative(dense(first - second), first.matrix - second.matrix) < 1e-14
    assert (first - second).norm() == pytest.approx(
        float(torch.linalg.matrix_norm(first.matrix - second.matrix, 2)), rel=1e-3
    )
    check_solve(first + second, dense, relative)
    assert dot_test(first - second, dtype=F64) < 1e-14


def test_transpose(dense, relative):
    operator = matrix(4, 6)
    assert relative(dense(operator.T), operator.matrix.T.contiguous()) < 1e-14
    assert operator.T.T is operator
    assert operator.T.norm() == operator.norm()


def test_stack(dense, relative):
    parts = [matrix(4, 12, 0, (1, 3, 4)), Identity((1, 3, 4)), Blur(random(2, 3), (1, 3, 4), "valid", dtype=F64)]
    both = stack(parts)
    assert both.out_shape == (4 + 12 + 4,)
    assert relative(dense(both), torch.cat([dense(part) for part in parts])) < 1e-14
    x = random(2, 1, 3, 4)
    pieces = both.split(both(x))
    assert [piece.shape for piece in pieces] == [(2, 4), (2, 1, 3, 4), (2, 1, 2, 2)]
    assert all(torch.equal(piece, part(x)) for piece, part in zip(pieces, parts, strict=True))
    assert torch.equal(both.join(pieces), both(x))
    assert relative(both.normal(x), both.adjoint(both(x))) < 1e-14
    assert dot_test(both, dtype=F64) < 1e-14
    check_solve(both, dense, relative)
    assert len(both.state_dict()) == 2


def test_complex_parts_keep_their_type():
    fourier = FunctionOperator(
        lambda x: torch.fft.fft(x.to(torch.complex128), norm="ortho"),
        lambda y: torch.fft.ifft(y, norm="ortho").real,
        (6,),
        (6,),
    )
    assert dot_test(fourier, dtype=F64) < 1e-14
    assert dot_test(2.0 * fourier, dtype=F64) < 1e-14
    x = random(2, 6)
    assert torch.allclose(fourier.solve(x, torch.tensor([1.0, 3.0], dtype=F64)), x / torch.tensor([[2.0], [4.0]]))


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"cannot compose: MatrixOperator takes \(5,\), MatrixOperator gives \(4,\)"):
        _ = matrix(3, 5) @ matrix(4, 6)
    with pytest.raises(ValueError, match=r"cannot add operators \(5,\) -> \(3,\) and \(6,\) -> \(3,\)"):
        _ = matrix(3, 5) + matrix(3, 6)
    with pytest.raises(ValueError, match="stacked operators take different images"):
        stack([matrix(3, 5), matrix(3, 6)])
    with pytest.raises(ValueError, match="at least one operator"):
        stack([])
    with pytest.raises(ValueError, match="shapes must be positive"):
        Identity((1, 0, 3))
    operator = Identity((1, 2, 3))
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), Identity expects \(batch, 1, 2, 3\)"):
        operator.check_input(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"y has shape \(4, 1, 2, 2\), Identity expects \(batch, 1, 2, 3\)"):
        operator.check_output(torch.zeros(4, 1, 2, 2))


def test_what_a_subclass_must_write():
    with pytest.raises(NotImplementedError, match=r"Operator must write forward\(x\)"):
        Operator((1,), (1,))(torch.zeros(1, 1))
    with pytest.raises(NotImplementedError, match=r"LinearOperator must write adjoint\(y\)"):
        LinearOperator((1,), (1,)).adjoint(torch.zeros(1, 1))


def test_type_and_device():
    assert Identity((2,)).dtype == torch.float32
    assert matrix(2, 3).dtype == F64
    assert (2.0 * matrix(2, 3)).to(torch.float32).dtype == torch.float32
    assert Downsample(2, (1, 4, 4), "none", dtype=F64).dtype == F64
    assert Blur(torch.ones(2, 2), (1, 4, 4)).device == torch.device("cpu")


def test_dot_test_sees_a_wrong_adjoint():
    class Wrong(Identity):
        def adjoint(self, y):
            return 1.01 * y

    # White noise correlates with itself by about 1/sqrt(n): the error is 1 % of that.
    assert dot_test(Wrong((1, 4, 4)), batch=8) > 1e-4
