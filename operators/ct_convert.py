"""CT operators from the geometries of ASTRA, ODL and scikit-image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct import Backend, CTOperator, Method, ct_operator
from invsolve.operators.ct_geometry import Angles, FanGeometry, ParallelGeometry, checked_angles

# Relative deviation up to which the views of a list of vectors count as one circular scan.
_SAME = 1e-5


def from_astra(
    proj_geom: Mapping[str, Any],
    vol_geom: Mapping[str, Any],
    *,
    channels: int = 1,
    method: Method = "auto",
    backend: Backend = "torch",
    dtype: torch.dtype = torch.float32,
) -> CTOperator:
    """The operator of two ASTRA dictionaries; images and sinograms have ASTRA's layout, lengths its unit.

    The types parallel, fanflat, parallel_vec and fanflat_vec are known, the last two where the vectors describe a
    circular scan with a detector at right angles to the central ray. ASTRA itself is not needed.

    Args:
        proj_geom: from `astra.create_proj_geom`.
        vol_geom: from `astra.create_vol_geom`, with square pixels.
        channels: number of image channels.
        method: see `ParallelBeamCT`.
        backend: see `ParallelBeamCT`.
        dtype: see `ParallelBeamCT`.

    Raises:
        ValueError: a type of geometry, or a path of the source, that is not covered.
    """
    rows, columns = int(vol_geom["GridRowCount"]), int(vol_geom["GridColCount"])
    if int(vol_geom.get("GridSliceCount", 1)) != 1:
        raise ValueError(f"the volume has {vol_geom['GridSliceCount']} slices; from_astra takes 2-D geometries.")
    option = vol_geom.get("option", {})
    left, right = option.get("WindowMinX", -columns / 2), option.get("WindowMaxX", columns / 2)
    low, high = option.get("WindowMinY", -rows / 2), option.get("WindowMaxY", rows / 2)
    size = _square((right - left) / columns, (high - low) / rows)
    kind = str(proj_geom["type"])
    if kind == "parallel":
        angles = checked_angles(proj_geom["ProjectionAngles"])
        spacing, offset, distances = float(proj_geom["DetectorWidth"]), 0.0, None
    elif kind == "fanflat":
        angles = checked_angles(proj_geom["ProjectionAngles"])
        spacing, offset = float(proj_geom["DetectorWidth"]), 0.0
        distances = float(proj_geom["DistanceOriginSource"]), float(proj_geom["DistanceOriginDetector"])
    elif kind in ("parallel_vec", "fanflat_vec"):
        vectors = np.asarray(proj_geom["Vectors"], dtype=np.float64)
        angles, spacing, offset, distances = _from_vectors(vectors, fan=kind == "fanflat_vec")
    else:
        raise ValueError(f"from_astra knows parallel, fanflat, parallel_vec and fanflat_vec geometries, got {kind!r}.")
    common: dict[str, Any] = {
        "image_shape": (rows, columns),
        "angles": angles,
        "detector_count": int(proj_geom["DetectorCount"]),
        "detector_spacing": spacing,
        "detector_offset": offset,
        "pixel_size": size,
        "image_offset": ((left + right) / 2, (low + high) / 2),
    }
    return ct_operator(_geometry(common, distances), channels, method=method, backend=backend, dtype=dtype)


def from_odl(
    ray_transform: Any,
    space: Any = None,
    *,
    channels: int = 1,
    method: Method = "auto",
    dtype: torch.dtype = torch.float32,
) -> CTOperator:
    """The operator of an ODL ray transform, or of a 2-D geometry and a discretised space.

    ODL indexes images as [x, y] with both growing, this project as [row, column] from the top left: `image_from_odl`
    and `image_to_odl` go between the two. Sinograms agree as they are.

    Args:
        ray_transform: `odl.applications.tomo.RayTransform` (`odl.tomo` before 1.0), or a `Parallel2dGeometry` or
            `FanBeamGeometry`.
        space: discretised space of the images if a geometry is given.
        channels: number of image channels.
        method: see `ParallelBeamCT`.
        dtype: see `ParallelBeamCT`.

    Raises:
        ValueError: a geometry that is not covered: 3-D, curved detectors, flying focal spots, moved origins.
    """
    geometry = getattr(ray_transform, "geometry", ray_transform)
    space = getattr(ray_transform, "domain", space)
    if space is None:
        raise ValueError("a geometry alone does not say which pixels the image has; pass from_odl(geometry, space).")
    name = type(geometry).__name__
    if name not in ("Parallel2dGeometry", "FanBeamGeometry"):
        raise ValueError(f"from_odl knows Parallel2dGeometry and FanBeamGeometry, got {name}.")
    angles = np.asarray(geometry.angles, dtype=np.float64)
    detector = geometry.det_partition
    if not detector.is_uniform:
        raise ValueError("the ODL detector has bins of different widths; this project takes even ones.")
    spacing = float(detector.cell_sides[0])
    offset = float(detector.min_pt[0] + detector.max_pt[0]) / 2
    distances = None
    if name == "FanBeamGeometry":
        if getattr(geometry, "det_curvature_radius", None) is not None:
            raise ValueError("the ODL detector is curved; this project takes flat ones.")
        distances = float(geometry.src_radius), float(geometry.det_radius)
    # Where the geometry itself says that its axis points at angle 0, and that nothing is shifted.
    axis = np.asarray(geometry.det_axis(angles), dtype=np.float64).reshape(-1, 2)
    place = np.asarray(geometry.det_refpoint(angles), dtype=np.float64).reshape(-1, 2)
    radius = distances[1] if distances else float(np.hypot(*place[0]))
    if np.abs(place - radius * np.stack([-axis[:, 1], axis[:, 0]], -1)).max() > _SAME * max(radius, 1):
        raise ValueError("the ODL detector is moved or mirrored; this project takes it centred behind the axis.")
    low, high = np.asarray(space.min_pt, dtype=np.float64), np.asarray(space.max_pt, dtype=np.float64)
    columns, rows = (int(n) for n in space.shape)
    common: dict[str, Any] = {
        "image_shape": (rows, columns),
        "angles": tuple(np.arctan2(axis[:, 1], axis[:, 0]).tolist()),
        "detector_count": int(detector.shape[0]),
        "detector_spacing": spacing,
        "detector_offset": offset,
        "pixel_size": _square((high[0] - low[0]) / columns, (high[1] - low[1]) / rows),
        "image_offset": tuple(((low + high) / 2).tolist()),
    }
    return ct_operator(_geometry(common, distances), channels, method=method, dtype=dtype)


def image_from_odl(array: Tensor) -> Tensor:
    """ODL's [..., x, y] to this project's [..., row, column]."""
    return array.mT.flip(-2)


def image_to_odl(image: Tensor) -> Tensor:
    """The inverse of `image_from_odl`."""
    return image.flip(-2).mT


def from_skimage(
    theta: Angles | None,
    image_shape: Sequence[int],
    *,
    circle: bool = True,
    pixel_size: float = 1.0,
    channels: int = 1,
    method: Method = "auto",
    dtype: torch.dtype = torch.float32,
) -> CTOperator:
    """The scan of `skimage.transform.radon(image, theta, circle)`.

    scikit-image turns about the pixel with index (H // 2, W // 2) and puts the angles last: its sinogram is
    `operator(x)[b, c].T / pixel_size`. It interpolates a turned image where this project weighs areas, which differs
    by about 1 % at edges.

    Args:
        theta: view angles in degrees, as scikit-image takes them; 0 to 179 if None.
        image_shape: (H, W); square if `circle`.
        circle: as there: whether the detector is as wide as the image, or as its diagonal.
        pixel_size: side of a pixel in mm.
        channels: number of image channels.
        method: see `ParallelBeamCT`.
        dtype: see `ParallelBeamCT`.

    Raises:
        ValueError: an oblong image with `circle`.
    """
    height, width = (int(n) for n in image_shape)
    if circle and height != width:
        raise ValueError(
            f"scikit-image crops {height} x {width} pixels to a square if circle=True; crop, or pass False."
        )
    if theta is None:
        theta = np.arange(180)
    degrees = np.asarray(theta.detach().cpu() if isinstance(theta, Tensor) else theta, dtype=np.float64)
    count = height if circle else math.ceil(math.sqrt(2) * max(height, width))
    geometry = ParallelGeometry(
        image_shape=(height, width),
        angles=checked_angles(np.deg2rad(degrees)),
        detector_count=count,
        detector_spacing=pixel_size,
        detector_offset=((count - 1) / 2 - count // 2) * pixel_size,
        pixel_size=pixel_size,
        image_offset=(((width - 1) / 2 - width // 2) * pixel_size, (height // 2 - (height - 1) / 2) * pixel_size),
    )
    return ct_operator(geometry, channels, method=method, dtype=dtype)


def to_astra(geometry: ParallelGeometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """(proj_geom, vol_geom) of ASTRA for a geometry, the inverse of `from_astra`; needs no ASTRA."""
    (rows, columns), size, (x, y) = geometry.image_shape, geometry.pixel_size, geometry.image_offset
    vol_geom = {
        "GridRowCount": rows,
        "GridColCount": columns,
        "option": {
            "WindowMinX": x - columns * size / 2,
            "WindowMaxX": x + columns * size / 2,
            "WindowMinY": y - rows * size / 2,
            "WindowMaxY": y + rows * size / 2,
        },
    }
    angles = np.asarray(geometry.angles)
    along = np.stack([np.cos(angles), np.sin(angles)], -1)
    ahead = np.stack([-np.sin(angles), np.cos(angles)], -1)
    middle = geometry.detector_offset * along
    fan = isinstance(geometry, FanGeometry)
    if isinstance(geometry, FanGeometry):
        middle = middle + geometry.detector_distance * ahead
    start = -geometry.source_distance * ahead if isinstance(geometry, FanGeometry) else ahead
    proj_geom = {
        "type": "fanflat_vec" if fan else "parallel_vec",
        "DetectorCount": geometry.detector_count,
        "Vectors": np.concatenate([start, middle, geometry.detector_spacing * along], 1),
    }
    return proj_geom, vol_geom


def _from_vectors(
    vectors: np.ndarray, *, fan: bool
) -> tuple[tuple[float, ...], float, float, tuple[float, float] | None]:
    """(angles, spacing, offset, distances) of ASTRA's (ray or source, detector, bin) vectors, shape (views, 6)."""
    start, middle, step = vectors[:, :2], vectors[:, 2:4], vectors[:, 4:]
    widths = np.hypot(step[:, 0], step[:, 1])
    along = step / widths[:, None]
    ahead = np.stack([-along[:, 1], along[:, 0]], -1)
    offsets, depths = (middle * along).sum(-1), (middle * ahead).sum(-1)
    spacing, offset = float(widths.mean()), float(offsets.mean())
    scale = spacing
    wrong = [np.abs(widths - spacing), np.abs(offsets - offset)]
    distances = None
    if fan:
        far = (start * -ahead).sum(-1)
        distances = float(far.mean()), float(depths.mean())
        scale = max(abs(distances[0]), spacing)
        wrong += [np.abs((start * along).sum(-1)), np.abs(far - distances[0]), np.abs(depths - distances[1])]
    else:
        wrong += [spacing * np.abs((start * along).sum(-1)) / np.hypot(start[:, 0], start[:, 1])]
    if max(float(w.max()) for w in wrong) > _SAME * scale or (fan and distances is not None and distances[0] <= 0):
        raise ValueError(
            "the ASTRA vectors are no circular scan with equal bins and a detector at right angles to the central ray "
            "(in ASTRA's own orientation); resample the sinogram, or wrap ASTRA with FunctionOperator."
        )
    return tuple(np.arctan2(along[:, 1], along[:, 0]).tolist()), spacing, offset, distances


def _geometry(common: dict[str, Any], distances: tuple[float, float] | None) -> ParallelGeometry:
    if distances is None:
        return ParallelGeometry(**common)
    return FanGeometry(**common, source_distance=distances[0], detector_distance=distances[1])


def _square(across: float, down: float) -> float:
    if not math.isclose(across, down, rel_tol=1e-6):
        raise ValueError(f"the pixels are {across:g} x {down:g}; this project takes square ones: resample the image.")
    return across
