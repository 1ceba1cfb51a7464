"""Geometries of scikit-image, ASTRA and ODL: numerically where the package is at hand."""

import importlib.util
import math
import sys
import types

import numpy as np
import pytest
import torch

from invsolve.operators import FanBeamCT, ParallelBeamCT, dot_test, uniform_angles
from invsolve.operators.ct_convert import (
    from_astra,
    from_odl,
    from_skimage,
    image_from_odl,
    image_to_odl,
    to_astra,
)

DOUBLE = torch.float64
THETA = np.array([0.0, 17.0, 45.0, 90.0, 133.3, 179.0])


@pytest.mark.parametrize(
    ("shape", "circle"),
    [((64, 64), True), ((65, 65), True), ((64, 64), False), ((40, 57), False), ((57, 40), False)],
)
def test_skimage(shape, circle):
    from scipy.ndimage import gaussian_filter
    from skimage.transform import radon

    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(shape) / 2 - 12) ** 2
    x = gaussian_filter(np.random.default_rng(0).random(shape) * inside, 2)
    x[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 >= (min(shape) / 2 - 2) ** 2] = 0
    operator = from_skimage(THETA, shape, circle=circle, pixel_size=0.5, dtype=DOUBLE)
    y = operator(torch.tensor(x)[None, None])[0, 0].numpy().T / 0.5
    reference = radon(x, THETA, circle=circle)
    assert y.shape == reference.shape
    assert np.linalg.norm(y - reference) < 1e-3 * np.linalg.norm(reference)


def test_skimage_defaults_and_oblong():
    assert from_skimage(None, (16, 16)).geometry.num_views == 180
    with pytest.raises(ValueError, match="crops 16 x 12"):
        from_skimage(THETA, (16, 12))


def parallel(angles=(0.1, 0.7)):
    return {"type": "parallel", "DetectorWidth": 1.3, "DetectorCount": 21, "ProjectionAngles": np.array(angles)}


def fan():
    return {
        "type": "fanflat",
        "DetectorWidth": 2.1,
        "DetectorCount": 23,
        "ProjectionAngles": np.array([0.1, 3.7]),
        "DistanceOriginSource": 50.0,
        "DistanceOriginDetector": 30.0,
    }


VOLUME = {"GridRowCount": 10, "GridColCount": 14, "option": {}}


def test_astra_dictionaries():
    geometry = from_astra(parallel(), VOLUME).geometry
    assert (geometry.image_shape, geometry.pixel_size, geometry.image_offset) == ((10, 14), 1.0, (0.0, 0.0))
    assert (geometry.detector_count, geometry.detector_spacing, geometry.angles) == (21, 1.3, (0.1, 0.7))
    window = {"WindowMinX": -7.0, "WindowMaxX": 0.0, "WindowMinY": -1.5, "WindowMaxY": 3.5}
    operator = from_astra(fan(), {**VOLUME, "option": window}, channels=2)
    assert isinstance(operator, FanBeamCT)
    geometry = operator.geometry
    assert (geometry.pixel_size, geometry.image_offset, operator.in_shape) == (0.5, (-3.5, 1.0), (2, 10, 14))
    assert (geometry.source_distance, geometry.detector_distance) == (50.0, 30.0)


@pytest.mark.parametrize("make", [parallel, fan])
def test_astra_vectors_there_and_back(make):
    geometry = from_astra(make(), VOLUME).geometry
    back = from_astra(*to_astra(geometry)).geometry
    assert type(back) is type(geometry)
    wrap = np.exp(1j * np.array(back.angles)) - np.exp(1j * np.array(geometry.angles))
    assert np.abs(wrap).max() < 1e-12
    assert back.detector_spacing == pytest.approx(geometry.detector_spacing)
    assert back.detector_offset == pytest.approx(0, abs=1e-12)
    assert back.image_offset == geometry.image_offset


def test_astra_vectors_of_a_shifted_detector(relative, generator):
    operator = ParallelBeamCT((1, 9, 12), uniform_angles(5), detector_offset=0.7, pixel_size=0.8, dtype=DOUBLE)
    other = from_astra(*to_astra(operator.geometry), dtype=DOUBLE)
    x = torch.randn((1, 1, 9, 12), generator=generator, dtype=DOUBLE)
    assert relative(other(x), operator(x)) < 1e-12


def test_astra_geometries_that_do_not_fit():
    proj, volume = to_astra(from_astra(fan(), VOLUME).geometry)
    tilted = proj["Vectors"].copy()
    tilted[1, 4:] = [1.0, 1.0]
    with pytest.raises(ValueError, match="no circular scan"):
        from_astra({**proj, "Vectors": tilted}, volume)
    with pytest.raises(ValueError, match="got 'cone'"):
        from_astra({**proj, "type": "cone"}, volume)
    with pytest.raises(ValueError, match="square"):
        from_astra(proj, {**volume, "option": {"WindowMinX": 0, "WindowMaxX": 28, "WindowMinY": 0, "WindowMaxY": 10}})
    with pytest.raises(ValueError, match="2-D"):
        from_astra(proj, {**volume, "GridSliceCount": 4})


def test_astra_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "astra", None)
    operator = ParallelBeamCT((1, 8, 8), uniform_angles(3), backend="astra")
    with pytest.raises(ImportError, match=r'pip install "invsolve\[astra\]"'):
        operator(torch.ones((1, 1, 8, 8)))


@pytest.mark.skipif(importlib.util.find_spec("astra") is None, reason="astra-toolbox is not installed")
def test_astra_backend(relative, generator):
    x = torch.randn((1, 1, 40, 40), generator=generator, dtype=DOUBLE)
    for make, bound in (
        (lambda backend: ParallelBeamCT((1, 40, 40), uniform_angles(9), backend=backend, dtype=DOUBLE), 1e-4),
        (
            lambda backend: FanBeamCT((1, 40, 40), uniform_angles(9, 2 * math.pi), source_distance=90,
                                      detector_distance=40, backend=backend, dtype=DOUBLE),
            1e-2,
        ),
    ):  # fmt: skip
        ours, theirs = make("torch"), make("astra")
        assert relative(ours(x), theirs(x)) < bound
        assert dot_test(theirs, dtype=DOUBLE) < 1e-13


def odl_like(name, **fields):
    """An object with the attributes that from_odl reads, after ODL's conventions; the real ones are tested below."""
    radius = fields.get("det_radius", 0.0)
    return type(name, (types.SimpleNamespace,), {})(
        angles=np.array([0.2, 1.9, 4.0]),
        det_partition=types.SimpleNamespace(
            is_uniform=True, cell_sides=[1.5], min_pt=[-14.0], max_pt=[16.0], shape=(20,)
        ),
        det_axis=lambda a: np.stack([np.cos(a), np.sin(a)], -1),
        det_refpoint=lambda a: radius * np.stack([-np.sin(a), np.cos(a)], -1),
        **fields,
    )


SPACE = types.SimpleNamespace(min_pt=[-6.0, -4.0], max_pt=[8.0, 6.0], shape=(7, 5))


def test_odl_geometries():
    geometry = from_odl(odl_like("Parallel2dGeometry"), SPACE).geometry
    assert (geometry.image_shape, geometry.pixel_size, geometry.image_offset) == ((5, 7), 2.0, (1.0, 1.0))
    assert (geometry.detector_count, geometry.detector_spacing, geometry.detector_offset) == (20, 1.5, 1.0)
    assert np.exp(1j * np.array(geometry.angles)) == pytest.approx(np.exp(1j * np.array([0.2, 1.9, 4.0])))
    fan_beam = odl_like("FanBeamGeometry", src_radius=40.0, det_radius=25.0)
    transform = types.SimpleNamespace(geometry=fan_beam, domain=SPACE)
    operator = from_odl(transform)
    assert isinstance(operator, FanBeamCT)
    assert (operator.geometry.source_distance, operator.geometry.detector_distance) == (40.0, 25.0)


def test_odl_geometries_that_do_not_fit():
    with pytest.raises(ValueError, match=r"from_odl\(geometry, space\)"):
        from_odl(odl_like("Parallel2dGeometry"))
    with pytest.raises(ValueError, match="got ConeBeamGeometry"):
        from_odl(odl_like("ConeBeamGeometry"), SPACE)
    with pytest.raises(ValueError, match="curved"):
        from_odl(odl_like("FanBeamGeometry", src_radius=40.0, det_radius=25.0, det_curvature_radius=9.0), SPACE)
    moved = odl_like("FanBeamGeometry", src_radius=40.0, det_radius=25.0)
    moved.det_refpoint = lambda a: np.ones((len(a), 2))
    with pytest.raises(ValueError, match="moved or mirrored"):
        from_odl(moved, SPACE)


@pytest.mark.skipif(
    importlib.util.find_spec("odl") is None or importlib.util.find_spec("astra") is None,
    reason="odl and astra-toolbox are not installed",
)
@pytest.mark.filterwarnings("ignore")
def test_odl_itself(generator, relative):
    import odl

    tomo = importlib.import_module("odl.applications.tomo" if hasattr(odl, "applications") else "odl.tomo")
    space = odl.uniform_discr([-20, -15], [22, 18], [84, 66], dtype="float32")
    bins = odl.uniform_partition(-30, 34, 90)
    x = torch.rand((84, 66), generator=generator, dtype=DOUBLE)
    x = torch.nn.functional.avg_pool2d(x[None, None], 9, 1, 4)
    for geometry in (
        tomo.Parallel2dGeometry(odl.uniform_partition(0, math.pi, 20), bins),
        tomo.FanBeamGeometry(odl.uniform_partition(0, 2 * math.pi, 20), bins, src_radius=80, det_radius=40),
    ):
        transform = tomo.RayTransform(space, geometry, impl="astra_cpu")
        theirs = transform(space.element(x[0, 0].numpy()))
        theirs = torch.tensor(np.asarray(getattr(theirs, "data", theirs)), dtype=DOUBLE)
        assert relative(from_odl(transform, dtype=DOUBLE)(image_from_odl(x))[0], theirs[None]) < 5e-3


def test_odl_images():
    array = torch.arange(6.0).reshape(1, 1, 3, 2)  # x = 0, 1, 2 by y = 0, 1
    image = image_from_odl(array)
    assert image[0, 0].tolist() == [[1, 3, 5], [0, 2, 4]]
    assert torch.equal(image_to_odl(image), array)
