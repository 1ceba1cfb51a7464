"""A compact U-Net denoiser of our own, stored as safetensors with its configuration inside."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from invsolve.priors.base import Prior, expand_sigma
from invsolve.priors.conversions import edm_coefficients

FORMAT = "invsolve-unet-1"


@dataclass(frozen=True)
class UNetConfig:
    """Architecture and training domain of a `UNetPrior`.

    Args:
        channels: image channels, 1 (grey), 2 (complex as real, imaginary) or 3 (colour).
        widths: feature channels per resolution level, finest first; each level halves the resolution.
        blocks: residual blocks on the way down (and again on the way up) per level.
        embedding: width of the noise-level embedding.
        data_range: values of black and white inside the model.
        sigma_data: standard deviation of the data in model units (EDM preconditioning).
        sigma_min: smallest noise level, model units.
        sigma_max: largest noise level, model units.
        image_range: (low, high), what black and white are in images in their usual units; see `Prior`.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 192)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    embedding: int = 128
    data_range: tuple[float, float] = (-1.0, 1.0)
    sigma_data: float = 0.5
    sigma_min: float = 0.005
    sigma_max: float = 80.0
    image_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels not in (1, 2, 3):
            raise ValueError(f"channels is {self.channels}; expected 1 (grey), 2 (complex) or 3 (colour).")
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(f"widths {self.widths} and blocks {self.blocks} need one entry per level.")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the noise level scaling and shifting the features between them.

    There is no normalisation over pixels, so an output pixel depends on its neighbourhood only: tiles of a large
    image denoise exactly as the whole image does, up to the receptive field.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(x))
        scale, shift = self.modulation(embedding).to(hidden.dtype)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(torch.addcmul(shift, hidden, 1 + scale))
        change: Tensor = self.conv_out(hidden)
        return x + change


class UNet(nn.Module):
    """Additive-skip U-Net F(x, c_noise) of EDM (arXiv 2206.00364, section 5); sides must be multiples of `stride`."""

    frequencies: Tensor

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths, embedding = config.widths, config.embedding
        self.stride = 2 ** (len(widths) - 1)
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-2, 4, embedding // 2), persistent=False)
        self.embed = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.head = nn.Conv2d(config.channels, widths[0], 3, padding=1)

        def level(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, embedding) for _ in range(count))

        self.encoder = nn.ModuleList(level(w, n) for w, n in zip(widths, config.blocks, strict=True))
        self.decoder = nn.ModuleList(level(w, n) for w, n in zip(widths, config.blocks, strict=True))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.tail = nn.Conv2d(widths[0], config.channels, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x: (B, C, H, W); c_noise: (B,), log(sigma) / 4. Returns (B, C, H, W)."""
        phase = c_noise[:, None] * self.frequencies[None, :] * math.tau
        embedding = F.silu(self.embed(torch.cat([phase.cos(), phase.sin()], dim=1)))
        x = self.head(x)
        skips = []
        for index, blocks in enumerate(self.encoder):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, embedding)
            if index < len(self.down):
                skips.append(x)
                x = self.down[index](x)
        for index in reversed(range(len(self.decoder))):
            if index < len(self.up):
                x = self.up[index](x) + skips[index]
            for block in self.decoder[index]:  # type: ignore[attr-defined]
                x = block(x, embedding)
        output: Tensor = self.tail(x)
        return output


class UNetPrior(Prior):
    """A `UNet` with EDM preconditioning (arXiv 2206.00364, Table 1); takes images of any size.

    Args:
        config: architecture and training domain.
        dtype: arithmetic of the network: torch.float32, torch.bfloat16 (autocast), or None to use bfloat16 wherever
            the hardware has it. Weights and everything outside the network stay float32.
    """

    def __init__(self, config: UNetConfig | None = None, dtype: torch.dtype | None = None) -> None:
        config = config or UNetConfig()
        super().__init__((config.channels, None, None), config.data_range, config.sigma_min, config.sigma_max)
        self.config = config
        self.image_range = config.image_range
        self.dtype = dtype
        self.network = UNet(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        level = expand_sigma(sigma, x)
        height, width = x.shape[-2:]
        stride = self.network.stride
        padding = (0, -width % stride, 0, -height % stride)
        padded = F.pad(x, padding, mode="replicate") if any(padding) else x
        return self.precondition(padded, level)[..., :height, :width]

    def precondition(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D = c_skip x + c_out F(c_in x, c_noise); sides of `x` are multiples of the network's stride."""
        c_skip, c_out, c_in, c_noise = edm_coefficients(sigma, self.config.sigma_data)
        inputs = (c_in * x).to(torch.float32).contiguous(memory_format=torch.channels_last)
        dtype = self.dtype or fast_dtype(x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output: Tensor = self.network(inputs, c_noise.flatten().to(torch.float32))
        return c_skip * x + c_out * output.to(x.dtype)

    def save(self, path: str | os.PathLike[str], *, half: bool = True, notes: dict[str, str] | None = None) -> None:
        """Write weights, configuration and `notes` to one safetensors file (never half-written).

        Args:
            path: file to write; an existing one is replaced at the end.
            half: store float16 weights.
            notes: free text kept in the file's metadata, for example data and licence.
        """
        path = Path(path)
        tensors = {
            key: value.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
            for key, value in self.network.state_dict().items()
        }
        metadata = {**(notes or {}), "format": FORMAT, "config": json.dumps(asdict(self.config))}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> UNetPrior:
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a safetensors file, or one of another architecture.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}).") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is a safetensors file without invsolve's U-Net configuration "
                f"(format {metadata.get('format')!r}, expected {FORMAT!r}); wrap its network with invsolve.priors.wrap."
            )
        try:
            stored = json.loads(metadata["config"])
            fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
            config = UNetConfig(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the stored configuration is not one this version knows ({error}).") from error
        with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
            prior = cls(config, dtype)
        try:
            prior.network.load_state_dict({key: value.float() for key, value in tensors.items()})
        except RuntimeError as error:
            raise ValueError(f"{path}: weights do not match the configuration stored beside them ({error}).") from error
        return prior.eval()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return torch.float32
