"""CT projectors: line integrals, exact transposes, symmetry, memory, counts, and what is refused."""

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch

from invsolve.operators import (
    FanBeamCT,
    GeometryWarning,
    ParallelBeamCT,
    StarvedRaysWarning,
    TransmissionNoise,
    Weighted,
    dot_test,
    limited_angles,
    sparse_views,
    uniform_angles,
)
from invsolve.operators.ct_geometry import FanGeometry
from invsolve.operators.ct_noise import line_integrals
from invsolve.operators.ct_projector import (
    MatrixProjector,
    StreamingProjector,
    machine_bytes,
    matrix_bytes,
    shared_projector,
)
from invsolve.operators.ct_symmetry import find_symmetry, reduce_views

DOUBLE = torch.float64
CPU = torch.device("cpu")


def disc_image(operator, x, y, radius, mu, sub=8):
    """Share of every pixel inside a disc, times mu."""
    geometry = operator.geometry
    (height, width), size = geometry.image_shape, geometry.pixel_size
    columns = ((torch.arange(width * sub, dtype=DOUBLE) + 0.5) / sub - width / 2) * size + geometry.image_offset[0]
    rows = (height / 2 - (torch.arange(height * sub, dtype=DOUBLE) + 0.5) / sub) * size + geometry.image_offset[1]
    inside = ((columns - x) ** 2 + (rows[:, None] - y) ** 2 < radius**2).to(DOUBLE) * mu
    return inside.reshape(height, sub, width, sub).mean((1, 3))


def disc_sinogram(operator, x, y, radius, mu, sub=16):
    """Chords of the disc, averaged over every bin, from the positions of source and detector alone."""
    geometry = operator.geometry
    n, step = geometry.detector_count, geometry.detector_spacing
    s = ((torch.arange(n * sub, dtype=DOUBLE) + 0.5) / sub - n / 2) * step + geometry.detector_offset
    theta = torch.tensor(geometry.angles, dtype=DOUBLE)[:, None]
    if isinstance(geometry, FanGeometry):
        source_x, source_y = geometry.source_distance * theta.sin(), -geometry.source_distance * theta.cos()
        bin_x = -geometry.detector_distance * theta.sin() + s * theta.cos()
        bin_y = geometry.detector_distance * theta.cos() + s * theta.sin()
        along_x, along_y = bin_x - source_x, bin_y - source_y
        distance = ((x - source_x) * along_y - (y - source_y) * along_x) / torch.hypot(along_x, along_y)
    else:
        distance = x * theta.cos() + y * theta.sin() - s
    chords = 2 * mu * (radius**2 - distance**2).clamp_min(0).sqrt()
    return chords.reshape(len(theta), n, sub).mean(-1)


DISC = (7.0, -11.0, 15.0, 0.02)
SCANS = {
    "parallel": lambda: ParallelBeamCT((1, 96, 96), uniform_angles(30), pixel_size=0.7, dtype=DOUBLE),
    "parallel, shifted": lambda: ParallelBeamCT(
        (1, 81, 96), limited_angles(17, 0.1, 4.0), pixel_size=0.7, detector_spacing=1.1, detector_offset=0.3,
        image_offset=(1.0, -2.0), dtype=DOUBLE,
    ),
    "parallel, fine bins": lambda: ParallelBeamCT((1, 96, 96), uniform_angles(20), pixel_size=0.7,
                                                  detector_spacing=0.3, dtype=DOUBLE),
    "fan": lambda: FanBeamCT((1, 96, 96), uniform_angles(32, 2 * math.pi), source_distance=120, detector_distance=70,
                             pixel_size=0.7, dtype=DOUBLE),
    "fan, shifted": lambda: FanBeamCT(
        (1, 96, 81), limited_angles(17, 0.1, 4.0), source_distance=120, detector_distance=0, pixel_size=0.7,
        detector_offset=3.0, image_offset=(1.0, -2.0), dtype=DOUBLE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCANS)
def test_a_disc_against_its_chords(name, relative):
    operator = SCANS[name]()
    y = operator(disc_image(operator, *DISC)[None, None])
    exact = disc_sinogram(operator, *DISC)[None, None]
    assert relative(y, exact) < 0.012
    # Nothing is lost between the bins: every view holds the disc's area times mu.
    if not isinstance(operator, FanBeamCT):
        mass = y.sum(-1) * operator.geometry.detector_spacing
        assert torch.allclose(mass, torch.full_like(mass, math.pi * 15**2 * 0.02), rtol=2e-3)


@pytest.mark.parametrize("name", SCANS)
def test_exact_transpose(name):
    assert dot_test(SCANS[name](), batch=2, dtype=DOUBLE) < 1e-13


@pytest.mark.parametrize("name", SCANS)
def test_symmetry_changes_nothing(name):
    """Every ray of the scan by the weights of its own view, without the pictures of the image."""
    operator = SCANS[name]()
    geometry = operator.geometry
    fast = operator.projector(torch.empty(0, dtype=DOUBLE))
    views = range(0, geometry.num_views, 5)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, *geometry.image_shape), generator=generator, dtype=DOUBLE)
    y = fast.forward(x).reshape(2, geometry.num_views, -1)
    for view in views:
        # A single view at a time has no partner; an offset no bin notices forbids to reverse the detector.
        alone = replace(geometry, angles=(geometry.angles[view],), image_offset=(geometry.image_offset[0] + 1e-13, 0.0))
        if geometry.image_offset != (0.0, 0.0):
            alone = replace(geometry, angles=(geometry.angles[view],))
        plain = StreamingProjector(alone, DOUBLE, CPU)
        assert len(plain.symmetry.elements) == 1
        assert torch.allclose(y[:, view], plain.forward(x), atol=1e-9)


def test_symmetry_is_found():
    parallel, fan = SCANS["parallel"]().geometry, SCANS["fan"]().geometry
    assert (len(find_symmetry(parallel).elements), len(find_symmetry(fan).elements)) == (8, 8)
    assert len(find_symmetry(fan).angles) == 5
    single = ParallelBeamCT((1, 32, 32), uniform_angles(40).float())
    assert len(find_symmetry(single.geometry).elements) == 8, "angles rounded to float32"
    golden = ParallelBeamCT((1, 32, 32), torch.arange(40) * 1.941611 % math.pi)
    assert len(find_symmetry(golden.geometry).elements) == 2, "the half turn is always there"
    assert len(find_symmetry(SCANS["parallel, shifted"]().geometry).elements) == 1


@pytest.mark.parametrize("name", ["parallel", "fan", "fan, shifted"])
def test_matrix_against_matrix_free(name, relative, generator):
    geometry = SCANS[name]().geometry
    matrix, free = MatrixProjector(geometry, DOUBLE, CPU), StreamingProjector(geometry, DOUBLE, CPU)
    x = torch.randn((2, *geometry.image_shape), generator=generator, dtype=DOUBLE)
    y = matrix.forward(x)
    assert relative(free.forward(x), y) < 1e-14
    assert relative(free.adjoint(y), matrix.adjoint(y)) < 1e-14
    assert matrix.rays.crow_indices().dtype == matrix.rays.col_indices().dtype == torch.int32


def test_a_batch_too_large_for_one_block(monkeypatch, relative, generator):
    operator = SCANS["parallel"]()
    x = torch.randn((3, 1, 96, 96), generator=generator, dtype=DOUBLE)
    whole = operator(x), operator.normal(x)
    monkeypatch.setattr("invsolve.operators.ct_projector._LARGEST_BLOCK", 1)
    assert relative(operator(x), whole[0]) < 1e-14
    assert relative(operator.normal(x), whole[1]) < 1e-14


def test_a_far_source_is_a_parallel_beam(relative, generator):
    angles = uniform_angles(12)
    parallel = ParallelBeamCT((1, 33, 40), angles, detector_count=60, detector_offset=0.4, dtype=DOUBLE)
    fan = FanBeamCT((1, 33, 40), angles, source_distance=1e8, detector_distance=0, detector_count=60,
                    detector_spacing=1.0, detector_offset=0.4, dtype=DOUBLE)  # fmt: skip
    x = torch.randn((1, 1, 33, 40), generator=generator, dtype=DOUBLE)
    assert relative(fan(x), parallel(x)) < 1e-5


def test_the_preconditioner_saves_iterations(relative):
    operator = ParallelBeamCT((1, 64, 64), uniform_angles(60), dtype=DOUBLE)
    x = disc_image(operator, 5.0, -6.0, 17.0, 1.0)[None, None]
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    damping = 1e-3 * operator.norm() ** 2
    rhs = operator.normal(x) + damping * x
    quick = operator.solve_cg(rhs, damping, rtol=1e-4)
    operator.preconditioner = lambda damping: None
    plain = operator.solve_cg(rhs, damping, rtol=1e-4)
    assert quick.converged.all()
    assert 2 * int(quick.iterations) < int(plain.iterations)
    assert relative(operator.normal(quick.x) + damping * quick.x, rhs) < 2e-4
    assert relative(quick.x, x) < 3e-2


@pytest.mark.parametrize("entries", [1, 2])
def test_weights_keep_the_preconditioner(entries):
    """A few iterations get much nearer to the solution with it."""
    operator = ParallelBeamCT((1, 48, 48), uniform_angles(40), dtype=DOUBLE)
    x = disc_image(operator, 5.0, -6.0, 14.0, 1.0)[None, None].expand(entries, -1, -1, -1)
    # Photon counts spread by a factor of exp(6) over the rays, and the entries differ by 50 in their weights.
    weights = (-0.1 * operator(x)).exp() * torch.tensor([1.0, 50.0], dtype=DOUBLE)[:entries, None, None, None]
    weighted = Weighted(operator, weights)
    norms = torch.tensor([weighted.part(slice(b, b + 1)).norm() for b in range(entries)], dtype=DOUBLE)
    rhs, damping = weighted.adjoint(weights * operator(x)), 1e-4 * norms**2
    exact = weighted.solve_cg(rhs, damping, rtol=1e-9, max_iter=5000, preconditioned=False).x

    def error(preconditioned):
        result = weighted.solve_cg(rhs, damping, max_iter=10, preconditioned=preconditioned)
        return (result.x - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)

    assert bool((error(True) < 0.4 * error(False)).all()), (error(True), error(False))


def test_the_matrix_is_shared_and_dropped():
    angles = uniform_angles(11)
    first, second = (ParallelBeamCT((1, 20, 20), angles) for _ in range(2))
    x = torch.ones((1, 1, 20, 20))
    first(x)
    second(x)
    assert first.projector(x) is second.projector(x)
    key = first.geometry
    alive = weakref.ref(first.projector(x))
    del first, second
    gc.collect()
    assert alive() is None
    assert shared_projector(key, "matrix", torch.float32, CPU) is not None


def test_memory_is_named_before_it_is_taken():
    have = machine_bytes(CPU)
    views = int(math.sqrt(have)) // 4
    with pytest.raises(ValueError, match=r"projection matrix .* needs about .* GB, this machine has .* GB"):
        ParallelBeamCT((1, 4000, 4000), torch.linspace(0.001, 3.1, min(views, 2000)), method="matrix")
    assert ParallelBeamCT((1, 1100, 1100), torch.linspace(0.001, 3.1, 1500)).matrix_free
    assert not ParallelBeamCT((1, 512, 512), uniform_angles(720)).matrix_free
    with pytest.raises(ValueError, match="one image and its measurement"):
        ParallelBeamCT((1, 2**20, 2**20), uniform_angles(2))


def test_estimated_memory_is_right():
    for name in SCANS:
        projector = MatrixProjector(SCANS[name]().geometry, torch.float32, CPU)
        true = 16 * projector.rays._nnz()
        reduced = reduce_views(projector.geometry)
        assert matrix_bytes(projector.geometry, reduced, torch.float32) == pytest.approx(true, rel=0.15)


@pytest.mark.filterwarnings("error")
def test_a_narrow_detector_names_what_is_missing():
    ParallelBeamCT((1, 64, 64), uniform_angles(9), detector_count=64)
    with pytest.warns(GeometryWarning, match=r"in 9 of 9 views its low \(bin 0\) side ends up to 8 mm short"):
        ParallelBeamCT((1, 64, 64), uniform_angles(9), detector_count=64, detector_offset=8.0)
    with pytest.warns(GeometryWarning, match="too narrow") as caught:
        FanBeamCT((1, 64, 64), uniform_angles(9), source_distance=100, detector_distance=0, detector_count=50)
    assert len(caught) == 2, "one for each side"


LENGTHS = {"source_distance": 100.0, "detector_distance": 50.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelBeamCT((1, 8, 8), torch.arange(180.0)), "look like degrees"),
        (lambda: ParallelBeamCT((1, 8, 8), []), "at least one view"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0, math.nan]), "NaN"),
        (lambda: ParallelBeamCT((8, 8), [0.0]), r"\(channels, height, width\)"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], pixel_size=0), "pixel_size is 0"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], detector_spacing=-1.0), "detector_spacing is -1"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], detector_count=0), "detector_count is 0"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], detector_count=2.5), "whole number"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], image_offset=(math.inf, 0.0), detector_count=9), "image_offset"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], method="fast"), "unknown method"),
        (lambda: ParallelBeamCT((1, 8, 8), [0.0], backend="cuda"), "unknown backend"),
        (lambda: FanBeamCT((1, 8, 8), [0.0], source_distance=0, detector_distance=5), "source_distance is 0"),
        (lambda: FanBeamCT((1, 8, 8), [0.0], source_distance=9, detector_distance=-5), "detector_distance is -5"),
        (lambda: FanBeamCT((1, 8, 8), [0.0], source_distance=5, detector_distance=5), "source would lie inside"),
        (lambda: uniform_angles(0), "num_views is 0"),
        (lambda: limited_angles(0, 0.0, 1.0), "num_views is 0"),
        (lambda: sparse_views(uniform_angles(8), 9), "keep is 9"),
    ],
)
def test_bad_geometry(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_angle_helpers():
    assert torch.allclose(uniform_angles(4), torch.tensor([0, 0.25, 0.5, 0.75], dtype=DOUBLE) * math.pi)
    assert limited_angles(3, 0.2, 0.6).tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert torch.equal(sparse_views(uniform_angles(180), 30), uniform_angles(180)[::6])


def test_counts_to_line_integrals(relative, generator):
    operator = SCANS["parallel"]()
    x = disc_image(operator, *DISC)[None, None]
    clean = operator(x)
    i0 = 1e4
    y = TransmissionNoise(i0, electronic_std=5.0).sample(clean, generator)
    result = line_integrals(i0 * torch.exp(-y) + 100, i0, dark=100, electronic_std=5.0)
    assert relative(result.y, y) < 1e-10
    assert result.num_starved == 0
    white = (result.y - clean) / result.std
    assert float(white.std()) == pytest.approx(1, abs=0.02)
    weighted, target = result.weighted(operator)
    rhs, damping = weighted.adjoint(target), 1e-3 * weighted.norm() ** 2
    solution = weighted.solve(rhs, damping)
    gradient = operator.adjoint((operator(solution) - result.y) / result.std**2) + damping * solution
    assert float(gradient.norm() / rhs.norm()) < 1e-9


def test_starved_rays_are_reported():
    counts = torch.full((1, 1, 2, 5), 50.0)
    counts[0, 0, 1, 2:4] = torch.tensor([0.0, -3.0])
    with pytest.warns(StarvedRaysWarning, match=r"2 of 10 rays \(20 %\) are starved"):
        result = line_integrals(counts, 100.0)
    assert result.starved_fraction == 0.2
    assert bool(torch.isfinite(result.y).all())
    assert float(result.y[0, 0, 1, 2]) == pytest.approx(math.log(100))
    with pytest.raises(ValueError, match="i0"):
        line_integrals(counts, 0.0)
    with pytest.raises(ValueError, match="NaN"):
        line_integrals(counts * math.nan, 1.0)
