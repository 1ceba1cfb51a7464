"""The two ways to compute a CT projection and its transpose: a stored sparse matrix, or weights made on the way."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct_geometry import FanGeometry, ParallelGeometry
from invsolve.operators.ct_symmetry import Reduction, Symmetry, find_symmetry, reduce_views
from invsolve.operators.ct_weights import view_matrix, view_weights

# Values of the pictures of one batch up to which it is computed at once.
_LARGEST_BLOCK = 1 << 28

# Pixels times views, after symmetry, up to which the weights are stored.
_LARGEST_MATRIX = 512 * 512 * 720


class Projector:
    """Line integrals of images (B, H, W) of one type on one device, and the exact transpose.

    A subclass multiplies by the weights of the rays that symmetry leaves: (H * W, columns) <-> (rows, columns).
    """

    def __init__(self, geometry: ParallelGeometry, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry, self.dtype, self.device = geometry, dtype, device
        self.symmetry: Symmetry = find_symmetry(geometry).to(device)

    def multiply(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def multiply_transpose(self, rays: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) -> (B, views * bins)."""
        return self._in_blocks(x, lambda part: self.symmetry.gather(self.multiply(self.symmetry.expand(part))))

    def adjoint(self, y: Tensor) -> Tensor:
        """(B, views * bins) -> (B, H, W)."""
        size = self.geometry.image_shape

        def back(part: Tensor) -> Tensor:
            return self.symmetry.collapse(self.multiply_transpose(self.symmetry.scatter(part)), *size)

        return self._in_blocks(y, back)

    def normal(self, x: Tensor) -> Tensor:
        """(B, H, W) -> (B, H, W), without bringing the rays into order between the two products."""
        size = self.geometry.image_shape

        def both(part: Tensor) -> Tensor:
            rays = self.symmetry.gram(self.multiply(self.symmetry.expand(part)))
            return self.symmetry.collapse(self.multiply_transpose(rays), *size)

        return self._in_blocks(x, both)

    def _in_blocks(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        per_entry = math.prod(self.geometry.image_shape) * len(self.symmetry.elements)
        step = max(1, _LARGEST_BLOCK // per_entry)
        if len(batch) <= step:
            return function(batch)
        return torch.cat([function(batch[start : start + step]) for start in range(0, len(batch), step)])


class MatrixProjector(Projector):
    """The weights as a sparse matrix in CSR with int32 indices, and its transpose stored beside it.

    With both stored, every product runs over rows in parallel and gives the same digits in every run.
    """

    def __init__(self, geometry: ParallelGeometry, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(geometry, dtype, device)
        from scipy.sparse import csr_array

        pixels = math.prod(geometry.image_shape)
        parts = [view_matrix(geometry, angle, self.symmetry.first_bin, dtype) for angle in self.symmetry.angles]
        counts = np.concatenate([np.diff(pointers) for pointers, _, _ in parts])
        pointers = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=pointers[1:])
        if pointers[-1] > np.iinfo(np.int32).max:
            raise ValueError(
                f"the projection matrix has {pointers[-1]} entries, more than 32-bit indices reach; "
                'use method="matrix-free".'
            )
        columns = np.concatenate([columns for _, columns, _ in parts])
        values = np.concatenate([values for _, _, values in parts])
        parts.clear()
        rows = csr_array((values, columns, pointers.astype(np.int32)), shape=(self.symmetry.rows, pixels))
        by_pixel = rows.tocsc()
        self.rays = sparse_rows(rows.indptr, rows.indices, rows.data, (self.symmetry.rows, pixels), device)
        self.pixels = sparse_rows(
            by_pixel.indptr, by_pixel.indices, by_pixel.data, (pixels, self.symmetry.rows), device
        )

    def multiply(self, pictures: Tensor) -> Tensor:
        return self.rays @ pictures

    def multiply_transpose(self, rays: Tensor) -> Tensor:
        return self.pixels @ rays


class StreamingProjector(Projector):
    """The same weights, made view by view for every product and dropped again: slow, but without the memory."""

    def multiply(self, pictures: Tensor) -> Tensor:
        kept = self.geometry.detector_count - self.symmetry.first_bin
        rays = pictures.new_empty((self.symmetry.rows, pictures.shape[1]))
        shape = (kept, len(pictures))
        for view, angle in enumerate(self.symmetry.angles):
            pointers, columns, values = view_matrix(self.geometry, angle, self.symmetry.first_bin, self.dtype)
            matrix = sparse_rows(pointers, columns, values, shape, self.device)
            rays[view * kept : (view + 1) * kept] = matrix @ pictures
        return rays

    def multiply_transpose(self, rays: Tensor) -> Tensor:
        kept = self.geometry.detector_count - self.symmetry.first_bin
        pixels = math.prod(self.geometry.image_shape)
        pictures = rays.new_zeros((pixels, rays.shape[1]))
        for view, angle in enumerate(self.symmetry.angles):
            bins, weights = view_weights(self.geometry, angle, self.symmetry.first_bin)
            # Every pixel has as many entries as the widest shadow, so that nothing needs sorting.
            pointers = torch.arange(0, bins.numel() + 1, bins.shape[1], dtype=torch.int32)
            values = weights.flatten().to(self.dtype)
            matrix = sparse_rows(pointers, bins.flatten().to(torch.int32), values, (pixels, kept), self.device)
            pictures += matrix @ rays[view * kept : (view + 1) * kept]
        return pictures


def sparse_rows(pointers: Any, columns: Any, values: Any, shape: tuple[int, int], device: torch.device) -> Tensor:
    arrays = [torch.as_tensor(array).to(device) for array in (pointers, columns, values)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(arrays[0], arrays[1], arrays[2], shape, check_invariants=False)


_shared: WeakValueDictionary[tuple[object, ...], Projector] = WeakValueDictionary()


def shared_projector(geometry: ParallelGeometry, kind: str, dtype: torch.dtype, device: torch.device) -> Projector:
    """The projector of a geometry, one for all operators that use it; gone with the last of them.

    Args:
        geometry: scan.
        kind: "matrix", "matrix-free" or "astra".
        dtype: of the images.
        device: where they are.
    """
    key = (type(geometry), geometry, kind, dtype, device)
    found = _shared.get(key)
    if found is None:
        found = _make(geometry, kind, dtype, device)
        _shared[key] = found
    return found


def _make(geometry: ParallelGeometry, kind: str, dtype: torch.dtype, device: torch.device) -> Projector:
    if kind == "matrix":
        return MatrixProjector(geometry, dtype, device)
    if kind == "astra":
        from invsolve.operators.ct_astra import AstraProjector

        return AstraProjector(geometry, dtype, device)
    if device.type == "cuda":
        from invsolve.operators.ct_triton import TritonProjector

        return TritonProjector(geometry, dtype, device)
    return StreamingProjector(geometry, dtype, device)


def matrix_bytes(geometry: ParallelGeometry, reduced: Reduction, dtype: torch.dtype) -> int:
    """Memory of the matrix and its transpose, estimated from the mean width of a pixel's shadow."""
    size = torch.finfo(dtype).bits // 8
    spacing = geometry.detector_spacing
    if isinstance(geometry, FanGeometry):
        spacing /= geometry.magnification
    # The mean over all directions of |cos| + |sin| is 4 / pi. A shadow of w bins touches 1 + w of them.
    per_pixel = 1 + 4 / math.pi * geometry.pixel_size / spacing
    half = 0.5 if reduced.first_bin else 1.0
    entries = math.prod(geometry.image_shape) * len(reduced.angles) * per_pixel * half
    return int(2 * entries * (4 + size))


def machine_bytes(device: torch.device) -> int:
    """Memory of the machine, or of the GPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def goes_without_matrix(geometry: ParallelGeometry, method: str, dtype: torch.dtype) -> bool:
    """Whether to do without the matrix; ValueError if the scan does not fit in the machine's memory."""
    here = torch.device("cpu")
    have = machine_bytes(here)
    height, width = geometry.image_shape
    size = f"{height} x {width} pixels, {geometry.num_views} views of {geometry.detector_count} bins"
    data = (height * width * 8 + geometry.num_views * geometry.detector_count) * torch.finfo(dtype).bits // 8
    if data > have:
        raise ValueError(
            f"one image and its measurement ({size}) need about {data / 1e9:.1f} GB, this machine has "
            f"{have / 1e9:.1f} GB; use fewer pixels, views or bins."
        )
    if method == "matrix-free":
        return True
    reduced = reduce_views(geometry)
    need = matrix_bytes(geometry, reduced, dtype)
    if method == "matrix" and need > have:
        raise ValueError(
            f"the projection matrix ({size}) needs about {need / 1e9:.1f} GB, this machine has {have / 1e9:.1f} GB; "
            'use method="matrix-free", or fewer pixels or views.'
        )
    half = 2 if reduced.first_bin else 1
    pairs = height * width * len(reduced.angles) // half
    return method == "auto" and (pairs > _LARGEST_MATRIX or need > have / 2)
