"""Functions of singular values against the dense decomposition of the same operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invsolve.operators import Blur, Downsample, Grayscale, Identity, LinearOperator, Mask, MatrixOperator
from invsolve.operators.mri import CartesianMRI
from invsolve.operators.registry import entries
from invsolve.operators.spectral import NoSpectrumError, filter_data, filter_image, has_spectrum


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def decomposition(operator: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.Size(operator.in_shape).numel()
    matrix = operator(torch.eye(size, dtype=torch.float64).reshape(size, *operator.in_shape)).reshape(size, -1).T
    return torch.linalg.svd(matrix, full_matrices=False)


def examples() -> list[tuple[str, LinearOperator]]:
    found = []
    for entry in entries():
        for number, operator in enumerate(entry.examples()):
            real = (
                isinstance(operator, LinearOperator)
                and not operator(torch.zeros((1, *operator.in_shape), dtype=torch.float64)).is_complex()
            )
            if real and has_spectrum(operator):
                found.append((f"{entry.name}-{number}", operator))
    shape = (3, 6, 4)
    kernel = torch.rand((3, 2), generator=generator(), dtype=torch.float64)
    gray = Grayscale(shape, dtype=torch.float64)
    mask = Mask(torch.rand((6, 4), generator=generator()) - 0.3, (1, 6, 4), dtype=torch.float64)
    found += [
        ("scaled blur", -0.7 * Blur(kernel, shape, dtype=torch.float64)),
        ("mask of greys", mask @ gray),
        ("blurred greys", 2.0 * Blur(kernel, (1, 6, 4), dtype=torch.float64) @ gray),
        ("decimated blur", Downsample(2, shape, "box", dtype=torch.float64) @ Blur(kernel, shape, dtype=torch.float64)),
        ("singular matrix", MatrixOperator(torch.outer(torch.arange(5.0), torch.arange(6.0)).double(), (1, 2, 3))),
    ]
    return found


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_against_the_dense_decomposition(name: str) -> None:
    operator = EXAMPLES[name]
    u, s, vt = decomposition(operator)
    cutoff = 0.3 * float(s.max())
    x = torch.randn((2, *operator.in_shape), generator=generator(), dtype=torch.float64)
    y = torch.randn((2, *operator.out_shape), generator=generator(), dtype=torch.float64)
    coefficients = x.flatten(1) @ vt.T
    for limit in (0.0, cutoff):
        seen = s > max(limit, 1e-9 * float(s.max()))
        inside = (coefficients * torch.where(seen, torch.cos(3 * s) + 2 - 3, 0)) @ vt
        expected = 3 * x + inside.reshape(x.shape)
        ours = filter_image(operator, x, lambda v: torch.where(v > 0, torch.cos(3 * v) + 2, 3), limit)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        expected = ((y.flatten(1) @ u * torch.where(seen, torch.exp(-s), 0)) @ vt).reshape(x.shape)
        torch.testing.assert_close(
            filter_data(operator, y, lambda v: torch.exp(-v), limit), expected, rtol=1e-9, atol=1e-9
        )


def test_the_inverse_response_is_the_pseudo_inverse() -> None:
    for operator in EXAMPLES.values():
        y = torch.randn((2, *operator.out_shape), generator=generator(), dtype=torch.float64)
        u, s, vt = decomposition(operator)
        inverse = torch.where(s > 1e-9 * s.max(), 1 / s.clamp_min(1e-12), 0)
        expected = ((y.flatten(1) @ u * inverse) @ vt).reshape(2, *operator.in_shape)
        torch.testing.assert_close(filter_data(operator, y, lambda v: 1 / v), expected, rtol=1e-6, atol=1e-6)


def test_the_usual_operators_have_it() -> None:
    assert {"identity", "mask", "grayscale", "matrix", "blur", "downsample"} <= {n.rsplit("-", 1)[0] for n in EXAMPLES}
    assert has_spectrum(Identity((1, 2, 3)))


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        (Blur(torch.ones(3, 3) / 9, (1, 6, 6), "reflect"), "boundary 'reflect'.*boundary='circular'.*pigdm"),
        (Mask(torch.ones(6, 6)) @ Blur(torch.ones(3, 3) / 9, (1, 6, 6)), "Mask @ Blur are not available"),
        (Identity((1, 6, 6)) + Identity((1, 6, 6)), "singular values of Sum are not available"),
    ],
)
def test_refusals_name_a_remedy(operator: LinearOperator, sentence: str) -> None:
    assert not has_spectrum(operator)
    with pytest.raises(NoSpectrumError, match=sentence):
        filter_image(operator, torch.zeros((1, 1, 6, 6)), torch.ones_like)


def test_single_coil_mri() -> None:
    """Complex data: A A^H is the mask, so functions of singular values are functions of 0 and 1."""
    mask = torch.rand((6, 5), generator=generator()) > 0.5
    operator = CartesianMRI(mask, dtype=torch.float64)
    x = torch.randn((2, 2, 6, 5), generator=generator(), dtype=torch.float64)
    measured = operator.adjoint(operator(x))
    ours = filter_image(operator, x, lambda s: torch.where(s > 0, 5.0, 2.0))
    torch.testing.assert_close(ours, 2 * x + 3 * measured)
    torch.testing.assert_close(filter_data(operator, operator(x), lambda s: 7 / s), 7 * measured)
    maps = torch.ones((2, 6, 5), dtype=torch.complex128)
    assert not has_spectrum(CartesianMRI(mask, maps, dtype=torch.float64))
