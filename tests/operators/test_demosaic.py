"""Bayer patterns by hand, closed forms, refusals."""

import pytest
import torch

from invsolve.operators import Demosaic


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("RGGB", ["RGRGR", "GBGBG", "RGRGR"]),
        ("BGGR", ["BGBGB", "GRGRG", "BGBGB"]),
        ("GRBG", ["GRGRG", "BGBGB", "GRGRG"]),
        ("GBRG", ["GBGBG", "RGRGR", "GBGBG"]),
    ],
)
def test_patterns(pattern, rows):
    x = torch.rand(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    y = Demosaic((3, 3, 5), pattern)(x)
    assert y.shape == (2, 1, 3, 5)
    for i, row in enumerate(rows):
        for j, colour in enumerate(row):
            assert torch.equal(y[:, 0, i, j], x[:, "RGB".index(colour), i, j])


def test_pseudo_inverse_keeps_what_was_measured():
    operator = Demosaic((3, 4, 5), "GRBG")
    y = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    x = operator.pseudo_inverse(y, 0.0)
    assert torch.equal(operator(x), y)
    assert int((x != 0).sum()) == y.numel()
    assert operator.solve_method == "closed form (diagonal)"
    assert operator.state_dict() == {}


def test_refusals():
    with pytest.raises(ValueError, match="unknown pattern 'RGBG'; expected one of RGGB, BGGR, GRBG, GBRG"):
        Demosaic((3, 4, 4), "RGBG")
    with pytest.raises(ValueError, match=r"colour images \(3, height, width\), got in_shape \(1, 4, 4\)"):
        Demosaic((1, 4, 4))
