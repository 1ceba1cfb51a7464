"""The optional astra-toolbox as the source of the CT weights (`backend="astra"`)."""

from __future__ import annotations

import math
from typing import Any

import torch

from invsolve.operators.ct_geometry import FanGeometry, ParallelGeometry
from invsolve.operators.ct_projector import MatrixProjector, Projector, sparse_rows
from invsolve.operators.ct_symmetry import Symmetry


class AstraProjector(Projector):
    """The matrix of ASTRA's strip model, applied by torch.

    Only the matrix is asked of ASTRA, by its CPU projectors, which are exact and their own transposes. Its GPU
    algorithms are never called: their pairs are no transposes of each other, and on a machine without a GPU the
    three-dimensional ones end the process. ASTRA computes its weights in float32.
    """

    def __init__(self, geometry: ParallelGeometry, dtype: torch.dtype, device: torch.device) -> None:
        astra = import_astra()
        from invsolve.operators.ct_convert import to_astra

        rows = geometry.num_views * geometry.detector_count
        self.geometry, self.dtype, self.device = geometry, dtype, device
        self.symmetry = Symmetry(((0, False),), geometry.angles, 0, rows, torch.arange(rows), None).to(device)
        proj_geom, vol_geom = to_astra(geometry)
        # The strip projectors know no vectors.
        if geometry.detector_offset == 0:
            fan = isinstance(geometry, FanGeometry)
            proj_geom = {
                "type": "fanflat" if fan else "parallel",
                "DetectorWidth": geometry.detector_spacing,
                "DetectorCount": geometry.detector_count,
                "ProjectionAngles": geometry.angles,
            }
            if isinstance(geometry, FanGeometry):
                proj_geom["DistanceOriginSource"] = geometry.source_distance
                proj_geom["DistanceOriginDetector"] = geometry.detector_distance
        projector = astra.create_projector(_model(proj_geom["type"]), proj_geom, vol_geom)
        matrix = astra.projector.matrix(projector)
        try:
            table = astra.matrix.get(matrix).tocsr().astype(str(dtype).removeprefix("torch."))
        finally:
            astra.matrix.delete(matrix)
            astra.projector.delete(projector)
        pixels = math.prod(geometry.image_shape)
        self.rays = sparse_rows(table.indptr, table.indices, table.data, (rows, pixels), device)
        turned = table.tocsc()
        self.pixels = sparse_rows(turned.indptr, turned.indices, turned.data, (pixels, rows), device)

    multiply = MatrixProjector.multiply
    multiply_transpose = MatrixProjector.multiply_transpose


def import_astra() -> Any:
    """The astra module; ImportError with the remedy where it is not installed."""
    try:
        import astra  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError('backend="astra" needs the astra-toolbox: pip install "invsolve[astra]".') from error
    return astra


def _model(kind: str) -> str:
    return {
        "parallel": "strip",
        "fanflat": "strip_fanflat",
        "parallel_vec": "linear",
        "fanflat_vec": "line_fanflat",
    }[kind]
