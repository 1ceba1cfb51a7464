"""Nonlinear blurs: a learned one (the FFHQ task), and a camera's, which needs no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.operators.base import Operator
from invsolve.operators.blur import Blur
from invsolve.operators.borders import Boundary
from invsolve.operators.hdr import check_range
from invsolve.operators.kernels import check_kernel
from invsolve.operators.noise import standard_normal
from invsolve.operators.registry import register


class _Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """One level of the adapter's U-Net: halve, go deeper (or meet the latent), double, append the input.

    The place of each convolution in its list is that of the published state dict, where activations are counted.
    """

    def __init__(self, outer: int, inner: int, deeper: _Level | None, outermost: bool = False) -> None:
        super().__init__()
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(2 * inner, outer, 4, 2, 1, bias=outermost)
        self.down = nn.Sequential(down) if outermost else nn.Sequential(nn.LeakyReLU(0.2), down)
        self.up = nn.Sequential(nn.ReLU(), up, nn.Tanh()) if outermost else nn.Sequential(nn.ReLU(), up)
        self.outermost = outermost
        if deeper is not None:
            self.submodule = deeper
        self.innermost = deeper is None

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        small = self.down(x)
        small = torch.cat([small, latent], 1) if self.innermost else self.submodule(small, latent)
        large: Tensor = self.up(small)
        return large if self.outermost else torch.cat([large, x], 1)


class _Adapter(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        level: _Level | None = None
        for outer, inner in ((8, 8), (4, 8), (2, 4), (1, 2)):
            level = _Level(outer * width, inner * width, level)
        self.model = _Level(width, width, level, outermost=True)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        return self.model(features, latent)  # type: ignore[no-any-return]


class BlurNetwork(nn.Module):
    """The blurring half of Tran et al. 2021, "Explore image deblurring via encoded blur kernel space".

    x + R(G(E(x), latent)): E extracts features at a quarter of the size, G mixes the latent blur in at 1/128 of it, R
    brings the change of the image back to full size. Images in [0, 1]; sides must be multiples of 128.

    Args:
        width: channels of the features, 64 in the published weights; the latent has 8 times as many.
        front: residual blocks of E, 10 in the published weights.
        back: residual blocks of R, 20 in the published weights.
        fine: channels at full size, 64 in the published weights.
    """

    def __init__(self, width: int = 64, front: int = 10, back: int = 20, fine: int = 64) -> None:
        super().__init__()
        leaky = nn.LeakyReLU(0.1)
        self.feature_extractor = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1),
            leaky,
            nn.Conv2d(width, width, 3, 2, 1),
            leaky,
            nn.Conv2d(width, width, 3, 2, 1),
            leaky,
            *(_Residual(width) for _ in range(front)),
        )
        self.adapter = _Adapter(width)
        self.recon_trunk = nn.Sequential(
            *(_Residual(width) for _ in range(back)),
            nn.Conv2d(width, 4 * width, 3, 1, 1),
            nn.PixelShuffle(2),
            leaky,
            nn.Conv2d(width, 4 * fine, 3, 1, 1),
            nn.PixelShuffle(2),
            leaky,
            nn.Conv2d(fine, fine, 3, 1, 1),
            leaky,
            nn.Conv2d(fine, 3, 3, 1, 1),
        )
        self.latent_channels = 8 * width

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        return x + self.recon_trunk(self.adapter(self.feature_extractor(x), latent))  # type: ignore[no-any-return]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> BlurNetwork:
        """The network that a state dict of the published layout belongs to, with its weights.

        Entries under `kernel_extractor.` (which estimates latents from pairs of images) are not needed and left out.

        Raises:
            ValueError: the state dict has another layout.
        """
        needed = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if not name.removeprefix("module.").startswith("kernel_extractor.")
        }
        try:
            width = len(needed["feature_extractor.0.weight"])
            front = sum(name.startswith("feature_extractor.") and name.endswith("conv1.weight") for name in needed)
            back = sum(name.startswith("recon_trunk.") and name.endswith("conv1.weight") for name in needed)
            fine = needed[f"recon_trunk.{back + 3}.weight"].shape[0] // 4
            with torch.device("meta"):  # no initial weights, which would come from the global generator
                network = cls(width, front, back, fine)
            network.load_state_dict(needed, assign=True)
        except (KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"this is no state dict of the blur network ({reason}); expected GOPRO_wVAE.pth of the project "
                "blur-kernel-space-exploring, with feature_extractor, adapter and recon_trunk."
            ) from None
        return network


def _learned_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in BlurNetwork(2, 1, 1, 3).state_dict().items()}
    state = {name: 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    latent = torch.randn((16, 1, 2), generator=generator, dtype=torch.float64)
    return [NonlinearBlur(BlurNetwork.from_state_dict(state), (3, 128, 256), latent)]


@register("nonlinear-blur", _learned_examples)
class NonlinearBlur(Operator):
    """A learned nonlinear blur, the "nonlinear deblurring" of the FFHQ benchmarks.

    ::

        x  ---+-->  network  -->  + change  -->  clip  -->  y
              |        ^             ^
              |     latent blur      |
              +----------------------+

    A network trained on pairs of sharp and blurred video frames (GoPro) blurs the image as a latent code tells it; the
    blur differs from object to object, and no kernel describes it. The latent belongs to the operator, so that the
    measurement and every later call are blurred alike (DPS, arXiv 2209.14687, draws it from 1.2 N(0, I)).

    The published weights are not part of this package: download `GOPRO_wVAE.pth` from the model zoo of the project
    github.com/VinAIResearch/blur-kernel-space-exploring and use `from_checkpoint`. `CameraBlur` needs no weights.

    Args:
        network: maps images in [0, 1] and latents to blurred images.
        in_shape: (3, H, W), H and W multiples of 128.
        latent: shape (8 * width, H / 128, W / 128).
        data_range: values (low, high) of black and white in x and y.

    Raises:
        ValueError: a shape that does not fit, or an empty range.
    """

    latent: Tensor

    def __init__(
        self,
        network: BlurNetwork,
        in_shape: Sequence[int],
        latent: Tensor,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3 or shape[0] != 3 or shape[1] % 128 or shape[2] % 128:
            raise ValueError(f"NonlinearBlur takes images (3, height, width) in multiples of 128 pixels, got {shape}.")
        wanted = _latent_shape(network, shape)
        if tuple(latent.shape) != wanted:
            raise ValueError(f"the latent has shape {tuple(latent.shape)}; images {shape} need {wanted}.")
        super().__init__(shape, shape)
        self.data_range = check_range(data_range)
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("latent", latent.detach().clone())

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        in_shape: Sequence[int] = (3, 256, 256),
        *,
        generator: torch.Generator | int = 0,
        latent: Tensor | None = None,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> NonlinearBlur:
        """The operator with published weights, for a random latent blur.

        Args:
            path: `GOPRO_wVAE.pth`, or the same state dict as `.safetensors`. Read as data: code in a pickle is refused.
            in_shape: as above.
            generator: source of the latent 1.2 N(0, I), or a seed for one.
            latent: a blur of your own instead, shape (512, H / 128, W / 128).
            data_range: as above; (-1, 1) for images in [-1, 1].

        Raises:
            ValueError: the file cannot be read as a state dict, or is one of another network.
            FileNotFoundError: there is no such file.
        """
        network = BlurNetwork.from_state_dict(_read_state_dict(fspath(path)))
        if latent is None:
            if isinstance(generator, int):
                generator = torch.Generator().manual_seed(generator)
            latent = 1.2 * standard_normal(torch.empty(1, *_latent_shape(network, in_shape)), generator)[0]
        return cls(network, in_shape, latent, data_range)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        low, high = self.data_range
        blurred = self.network((x - low) / (high - low), self.latent.expand(len(x), -1, -1, -1))
        return (blurred.clamp(0, 1) * (high - low) + low).to(x.dtype)  # type: ignore[no-any-return]


def _latent_shape(network: BlurNetwork, in_shape: Sequence[int]) -> tuple[int, int, int]:
    return network.latent_channels, in_shape[1] // 128, in_shape[2] // 128


def _read_state_dict(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain weights ({reason}); only tensors are loaded, never pickled code."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict, a mapping from names to tensors; got {type(state).__name__}.")
    return state


def _camera_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(6)
    kernels = [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (2, 5))]
    return [
        CameraBlur(kernels[0], (2, 6, 7), dtype=torch.float64),
        CameraBlur(kernels[1], (1, 5, 8), "zero", headroom=4.0, data_range=(-1.0, 1.0), dtype=torch.float64),
    ]


@register("camera-blur", _camera_examples)
class CameraBlur(Operator):
    """Blur of the light behind a photograph: a stand-in for the learned nonlinear blur that needs no weights.

    ::

        x --> light --> blur --> picture --> y         a lamp of value 1 is `headroom` times as bright as the
                                                       tone curve of mid-tones suggests, and smears to streaks

    Motion and defocus mix light, not pixel values. x is brought back to light by the inverse of a camera's response
    (the sRGB curve, then a shoulder that compresses highlights by `headroom`), convolved with the kernel, and rendered
    again. How much a pixel weighs among its neighbours thus depends on the image, as the response does: near highlights
    the blur looks wide, in shadows narrow. This is a physical model; it is not the network of `NonlinearBlur`, and
    results on one do not compare with results on the other.

    Light and picture agree at black and white. Beyond them the response goes on as a straight line, so that the map
    and its gradient exist for all x; images within the range have measurements within the range.

    Args:
        kernel: shape (kh, kw), values >= 0; divided by their sum.
        in_shape: image shape (C, H, W).
        boundary: as in `Blur`.
        headroom: > 1, slope of light against sRGB light at white. 5 is a moderate contrast of highlights.
        data_range: values (low, high) of black and white in x and y.
        dtype: floating-point type of the stored kernel; computations follow the type of the images.

    Raises:
        ValueError: an unusable kernel, boundary or shape (see `Blur`), negative weights, or numbers out of range.
    """

    def __init__(
        self,
        kernel: Tensor | np.ndarray,
        in_shape: Sequence[int],
        boundary: Boundary = "reflect",
        *,
        headroom: float = 5.0,
        data_range: tuple[float, float] = (0.0, 1.0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = check_kernel(kernel)
        if float(values.min()) < 0:
            raise ValueError(f"the kernel holds {float(values.min()):.3g}; light adds up, so expected weights >= 0.")
        if not 1 < headroom < float("inf"):
            raise ValueError(f"headroom is {headroom}; expected a number > 1, 5 for moderate highlights.")
        blur = Blur(values, in_shape, boundary, dtype=dtype)
        super().__init__(blur.in_shape, blur.out_shape)
        self.blur, self.headroom, self.data_range = blur, float(headroom), check_range(data_range)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        low, high = self.data_range
        light = self._light((x - low) / (high - low))
        return self._picture(self.blur(light)) * (high - low) + low

    def _light(self, value: Tensor) -> Tensor:
        # Each branch sees only values it is defined for: a gradient of NaN times 0 would be NaN.
        inside = value.clamp(0.04045, 1)
        srgb = ((inside + 0.055) / 1.055) ** 2.4
        knee = 1 / (self.headroom - 1)  # slope at white (1 + knee) / knee = headroom
        light = knee * srgb / (1 + knee - srgb)
        toe = value.clamp_max(0.04045) / 12.92
        light = torch.where(value > 0.04045, light, knee * toe / (1 + knee - toe.clamp_min(0)))
        return light + torch.where(value > 1, value - 1, 0) * (2.4 / 1.055 * self.headroom)

    def _picture(self, light: Tensor) -> Tensor:
        knee = 1 / (self.headroom - 1)
        inside = light.clamp(0, 1)
        srgb = (1 + knee) * inside / (knee + inside)
        curve = 1.055 * srgb.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
        value = torch.where(srgb > 0.0031308, curve, 12.92 * srgb)
        # Straight on with the slopes at black and white; a clamp would count the gradient twice just there.
        value = value + torch.where(light < 0, light, 0) * (12.92 * (1 + knee) / knee)
        return value + torch.where(light > 1, light - 1, 0) * (1.055 / (2.4 * self.headroom))
