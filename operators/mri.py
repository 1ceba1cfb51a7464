"""Cartesian MRI with one or several receive coils."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.cg import per_entry
from invsolve.operators.mri_checks import as_lines, check_maps, check_mask
from invsolve.operators.registry import register

# Complex values that are transformed at a time. On a CPU few enough to stay in its cache; elsewhere many, since every
# call has its price there, but not so many that a stack of slices with 32 coils fills the memory.
_GROUP_CPU = 1 << 16
_GROUP_GPU = 1 << 27


def _examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(3)

    def mask(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < 0.5

    def maps(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128) / 2

    return [
        CartesianMRI(mask(7), image_shape=(4, 7), dtype=torch.float64),
        CartesianMRI(mask(5, 1), image_shape=(5, 6), dtype=torch.float64),
        CartesianMRI(mask(5, 6), dtype=torch.float64),
        CartesianMRI(mask(7), maps(3, 4, 7)),
        CartesianMRI(mask(5, 1), maps(2, 5, 6)),
        CartesianMRI(mask(6, 5), maps(3, 6, 5)),
    ]


@register("cartesian-mri", _examples)
class CartesianMRI(LinearOperator):
    """MRI on a grid: the Fourier transform of the image as each coil sees it, at the sampled positions.

    ::

        image x          coil c sees          k-space          y_c, lines that were skipped read 0
        real, imag  -->  S_c * x        -->  F (S_c x)   -->   | 0 | 0 | | | 0 | 0

    y_c = mask * F(S_c x) with the centred orthonormal transform of `centred_fft2`: zero frequency at (H // 2, W // 2),
    ||F x|| = ||x||. Images are (B, 2, H, W), channels real and imaginary; k-space is (B, coils, H, W), complex, also
    for a single coil.

    Slices of a volume or frames of a film go into the batch. They share mask and maps, or bring their own: a mask or
    maps with one more leading dimension hold one entry per image of the batch, which must then have exactly that many
    images; `entry` gives the operator of one of them.

    With a single coil and no maps, solves are closed forms. With coils a solve takes conjugate gradients: A^H A needs
    no shifts (it is a convolution between the maps, which does not know where the origin is), and for masks of whole
    lines only transforms across the lines.

    Args:
        mask: 1 (or True) where k-space was sampled. (W,) or (1, W) keeps whole columns, the phase encoding along the
            width as in fastMRI; (H, 1) keeps whole rows; (H, W) keeps points. (B, ...) for one per image.
            Points that fill whole lines are kept as lines, which are twice as fast.
        coil_maps: complex sensitivities (coils, H, W), or (B, coils, H, W); None for one coil that sees all alike.
        image_shape: (H, W), where neither mask nor maps tell.
        dtype: floating-point type of the stored arrays; that of the maps, or float32, if None. Computations follow
            the type of the images.

    Raises:
        TypeError: maps that are not complex.
        ValueError: sizes that do not fit, an empty or fractional mask, maps that are zero or not finite.
    """

    capturable = True
    mask: Tensor
    maps: Tensor | None

    def __init__(
        self,
        mask: Tensor | np.ndarray,
        coil_maps: Tensor | np.ndarray | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        values = check_mask(torch.as_tensor(mask))
        maps = None if coil_maps is None else check_maps(torch.as_tensor(coil_maps))
        if image_shape is None:
            image_shape = values.shape[-2:] if maps is None else maps.shape[-2:]
            if maps is None and 1 in image_shape:
                raise ValueError(
                    f"a mask of shape {tuple(torch.as_tensor(mask).shape)} does not tell the size of the image; "
                    "pass image_shape=(H, W)."
                )
        height, width = (int(n) for n in image_shape)
        if values.shape[-2] not in (1, height) or values.shape[-1] not in (1, width):
            raise ValueError(
                f"the mask has shape {tuple(torch.as_tensor(mask).shape)}, the image is {height} x {width}; expected "
                f"({width},) for columns, ({height}, 1) for rows or ({height}, {width}) for points."
            )
        if maps is not None and tuple(maps.shape[-2:]) != (height, width):
            raise ValueError(f"the coil maps are {maps.shape[-2]} x {maps.shape[-1]}, the image {height} x {width}.")
        counts = {len(array) for array, ndim in ((values, 3), (maps, 4)) if array is not None and array.ndim == ndim}
        if len(counts) > 1:
            raise ValueError(f"mask and coil maps are for different numbers of images, {sorted(counts)}.")
        super().__init__((2, height, width), (1 if maps is None else maps.shape[-3], height, width))
        values = as_lines(values)
        self.entries: int | None = counts.pop() if counts else None
        if dtype is None:
            dtype = torch.float32 if maps is None else maps.real.dtype
        self.register_buffer("mask", values.to(dtype))
        # Kept as pairs of real numbers: a module's `to(float32)` would drop the imaginary part of a complex buffer.
        self.register_buffer("maps", None if maps is None else torch.view_as_real(maps.resolve_conj()).to(dtype))
        if maps is None:
            self.solve_method = "closed form (Fourier mask)"

    @property
    def coil_maps(self) -> Tensor | None:
        """Complex maps (coils, H, W) or (B, coils, H, W); None for a single coil without maps."""
        return None if self.maps is None else torch.view_as_complex(self.maps)

    @property
    def acceleration(self) -> float:
        """Points of k-space over sampled points."""
        return self.mask.numel() / float((self.mask != 0).sum())

    @property
    def num_measured(self) -> int:
        sampled = (self.mask != 0).expand(*self.mask.shape[:-2], *self.in_shape[1:])
        return int(sampled.sum()) * self.out_shape[0] // (len(sampled) if sampled.ndim == 3 else 1)

    def restrict(self, y: Tensor) -> Tensor:
        return torch.where(self._sampled(y) != 0, y, 0)

    def entry(self, index: int) -> CartesianMRI:
        """The operator of image `index` alone, where mask or maps are given per image."""
        if self.entries is None:
            return self
        maps = self.coil_maps
        return CartesianMRI(
            self.mask[index] if self.mask.ndim == 3 else self.mask,
            maps if maps is None or maps.ndim == 3 else maps[index],
            image_shape=self.in_shape[1:],
            dtype=self.mask.dtype,
        )

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"x has type {x.dtype}; expected float32 or float64 with the channels real and imaginary: there are no "
                "Fourier transforms in half precision for all sizes and devices."
            )
        self._check_entries(x)

    def check_output(self, y: Tensor) -> None:
        super().check_output(y)
        if y.dtype not in (torch.complex64, torch.complex128):
            raise TypeError(f"y has type {y.dtype}; k-space is complex64 or complex128.")
        self._check_entries(y)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        image = torch.complex(x[:, 0], x[:, 1])
        before, after = self._phases(image)
        image, maps = image * before, self._maps(image)
        kspace = image.new_empty(len(x), *self.out_shape)
        for entries, coils in self._groups(image):
            seen = _seen(image, maps, entries, coils)
            kspace[entries, coils] = _transform(seen, (-2, -1)).mul_(_of(after, entries))
        return kspace

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        before, after = self._phases(y)
        maps = self._maps(y)
        conjugates = None if maps is None else maps.conj()
        image = y.new_zeros(len(y), *self.in_shape[1:])
        for entries, coils in self._groups(image):
            part = _transform(y[entries, coils] * _of(after, entries).conj(), (-2, -1), inverse=True)
            _collect(image, conjugates, part, entries, coils)
        return _channels(image * before.conj())

    def normal(self, x: Tensor) -> Tensor:
        self.check_input(x)
        turned = self._turned
        image = torch.complex(x[:, 0], x[:, 1])
        return _channels(_turn(self._normal(_turn(image, turned).contiguous()), turned))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        if self.maps is not None:
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        self.check_input(rhs)
        turned, shift = self._turned, per_entry(damping, rhs)[:, 0]
        image = _turn(torch.complex(rhs[:, 0], rhs[:, 1]), turned)
        scaled = self._transfer(image)[:, 0].real  # mask / n, as the transforms are not normalised
        size = self._transform_size
        spectrum = _transform(image, self._dims).div_((scaled * size + shift) * size)
        return _channels(_turn(_transform(spectrum, self._dims, inverse=True), turned))

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        if self.maps is not None:
            return super().pseudo_inverse(y, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        return self.adjoint(y / (self._sampled(y).square() + per_entry(damping, y)))

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        if self.maps is None:
            return float(self.mask.abs().max())
        if self.entries is None:
            return super().norm(iterations, rtol, device=device)
        return max(self.entry(index).norm(iterations, rtol, device=device) for index in range(self.entries))

    def extra_repr(self) -> str:
        which = {(-1,): "columns", (-2,): "rows", (-2, -1): "points"}[self._axes]
        return f"{super().extra_repr()}, {which} accelerated {self.acceleration:.3g} times"

    @property
    def _axes(self) -> tuple[int, ...]:
        """Axes of the image along which the mask changes."""
        rows, columns = self.mask.shape[-2:]
        return (-1,) if rows == 1 else (-2,) if columns == 1 else (-2, -1)

    @property
    def _turned(self) -> bool:
        """Whether the normal operator works on transposed images, whose transforms then run along memory."""
        return self._axes == (-2,)

    @property
    def _dims(self) -> tuple[int, ...]:
        return (-2, -1) if len(self._axes) == 2 else (-1,)

    @property
    def _transform_size(self) -> int:
        return math.prod(self.in_shape[axis] for axis in self._axes)

    def _normal(self, image: Tensor) -> Tensor:
        """A^H A of complex images (B, h, w), turned if the operator is."""
        transfer = self._transfer(image)
        maps, conjugates = self._loop_maps(image)
        total = torch.zeros_like(image)
        for entries, coils in self._groups(image):
            seen = _transform(_seen(image, maps, entries, coils), self._dims).mul_(_of(transfer, entries))
            _collect(total, conjugates, _transform(seen, self._dims, inverse=True), entries, coils)
        return total

    def _groups(self, image: Tensor) -> Iterator[tuple[slice, slice]]:
        """Images and coils to be worked on together."""
        group = _GROUP_CPU if image.device.type == "cpu" else _GROUP_GPU
        entries = max(1, min(len(image), group // image[0].numel()))
        coils = max(1, group // (image[0].numel() * entries))
        for entry in range(0, len(image), entries):
            for coil in range(0, self.out_shape[0], coils):
                yield slice(entry, min(entry + entries, len(image))), slice(coil, coil + coils)

    def _transfer(self, like: Tensor) -> Tensor:
        """mask^2 over the size of the transform, in its order and turned: (1 or B, 1, h or 1, w).

        Complex, since a product of complex and real numbers would convert the real ones at every call.
        """

        def make() -> Tensor:
            squared = torch.fft.ifftshift(self.mask.square(), dim=(-2, -1)) / self._transform_size
            squared = _turn(squared.reshape(-1, 1, *squared.shape[-2:]), self._turned)
            return squared.contiguous().to(like.device, like.dtype)

        return derived(self, "transfer", like, make)

    def _sampled(self, like: Tensor) -> Tensor:
        """The mask in the real type of `like`, (1 or B, 1, H or 1, W or 1)."""
        mask = self.mask.reshape(-1, 1, *self.mask.shape[-2:])
        return mask.to(like.device, _real(like))

    def _phases(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors that make an uncentred transform centred: of the image (H, W), of k-space (1 or B, 1, H, W).

        With c = n // 2, exp(-2 pi i (k - c)(j - c) / n) is exp(-2 pi i k j / n) times a factor of j and one of k. The
        mask and the norm of the transform are put into the second.
        """

        def make() -> tuple[Tensor, Tensor]:
            # In float64 and on the CPU: the factors must not cost accuracy.
            (rows, row_constant), (columns, column_constant) = (_ramp(size) for size in self.in_shape[1:])
            before = torch.outer(rows, columns)
            mask = self.mask.detach().to("cpu", torch.float64)
            after = mask.reshape(-1, 1, *mask.shape[-2:]) * (before * (row_constant * column_constant))
            return before.to(like.device, like.dtype), (after / math.sqrt(before.numel())).to(like.device, like.dtype)

        return derived(self, "phases", like, make)

    def _maps(self, like: Tensor) -> Tensor | None:
        """Maps (1 or B, coils, H, W) in the type of `like`; None for a single coil without maps."""
        if self.maps is None:
            return None
        maps = torch.view_as_complex(self.maps.to(like.device, _real(like)))
        return maps.reshape(-1, *self.out_shape)

    def _loop_maps(self, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Maps and their conjugates, turned: kept, because conjugating anew costs a tenth of the normal operator."""
        if self.maps is None:
            return None, None

        def make() -> tuple[Tensor, Tensor]:
            maps = self._maps(like)
            assert maps is not None
            maps = _turn(maps, self._turned).contiguous()
            return maps, maps.conj().resolve_conj()

        return derived(self, "maps", like, make)

    def _check_entries(self, batch: Tensor) -> None:
        if self.entries is not None and len(batch) != self.entries:
            raise ValueError(
                f"mask or coil maps are given for {self.entries} images, the batch holds {len(batch)}; "
                "`entry(i)` is the operator of one of them."
            )


def _transform(array: Tensor, dims: tuple[int, ...], *, inverse: bool = False) -> Tensor:
    """Fourier transform without normalisation in either direction, which would be a pass over the array each."""
    if inverse:
        return torch.fft.ifftn(array, dim=dims, norm="forward")  # type: ignore[no-any-return]
    return torch.fft.fftn(array, dim=dims)  # type: ignore[no-any-return]


def _seen(image: Tensor, maps: Tensor | None, entries: slice, coils: slice) -> Tensor:
    """The images as some coils see them, (entries, coils, h, w)."""
    part = image[entries, None]
    return part if maps is None else _of(maps, entries)[:, coils] * part


def _collect(total: Tensor, conjugates: Tensor | None, part: Tensor, entries: slice, coils: slice) -> None:
    """Adds the sum over some coils of conj(maps) times their images to `total`."""
    if conjugates is None:
        total[entries].add_(part[:, 0])
        return
    weights = _of(conjugates, entries)[:, coils]
    if weights.shape[1] == 1:
        total[entries].addcmul_(weights[:, 0], part[:, 0])
    else:
        total[entries].add_((weights * part).sum(1))


def _of(array: Tensor, entries: slice) -> Tensor:
    """The part of `array` that belongs to some images; all of it where they share it."""
    return array if len(array) == 1 else array[entries]


def _turn(array: Tensor, turned: bool) -> Tensor:
    return array.mT if turned else array


def _channels(image: Tensor) -> Tensor:
    """Complex (B, H, W) to real (B, 2, H, W)."""
    return torch.stack((image.real, image.imag), 1)


def _real(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32


def _ramp(size: int) -> tuple[Tensor, Tensor]:
    """exp(2 pi i c k / n) for k = 0 ... n - 1 and c = n // 2, and the constant exp(-2 pi i c^2 / n)."""
    centre = size // 2
    # Whole turns are taken out in integers, so that the alternating signs of even sizes are exact to round-off.
    turns = torch.arange(size, dtype=torch.int64) * centre % size
    angles = 2 * math.pi / size * torch.cat((turns, torch.tensor([-centre * centre % size]))).to(torch.float64)
    waves = torch.polar(torch.ones_like(angles), angles)
    return waves[:-1], waves[-1]
