"""An orthonormal block DCT as autoencoder: lossless, and free of decoder cost.

Bands of a 4x4 block DCT-II (Ahmed, Natarajan & Rao 1974, 10.1109/T-C.1974.223784) are scaled by their standard
deviation to the power 0.7: the flow then meets structure (low bands) and speckle (high bands) at comparable noise
levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from csg_edge.errors import TrainingError
from csg_edge.storage import write_json
from csg_edge.training.autoencoder import Autoencoder, image_to_unit, unit_to_image

BAND_EXPONENT = 0.7
BLOCK = 4  # pixels, each way


@dataclass(frozen=True)
class BlockDctConfig:
    """Band statistics of the training images; stored as `autoencoder/config.json`."""

    block: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"_class_name": "BlockDct", "block": self.block, "mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BlockDctConfig:
        if values.get("_class_name") != "BlockDct":
            raise TrainingError(f"autoencoder config: class {values.get('_class_name')!r} is not BlockDct")
        try:
            config = cls(int(values["block"]), tuple(values["mean"]), tuple(values["scale"]))
        except KeyError as error:
            raise TrainingError(f"autoencoder config: no {error}; copy the model again") from None
        if not len(config.mean) == len(config.scale) == config.block**2:
            raise TrainingError(f"autoencoder config: a block of {config.block} has {config.block**2} bands")
        return config

    @classmethod
    def fit(cls, images: NDArray[np.uint8], *, block: int = BLOCK) -> BlockDctConfig:
        """Statistics of (N, H, W) uint8 images, such that latents have zero mean per band and unit variance overall."""
        bands = analyse(image_to_unit(torch.from_numpy(images)), dct_matrix(block), block)  # (N, block^2, h, w)
        deviation = bands.std(dim=(0, 2, 3)).clamp_min(1e-6)
        scale = deviation**BAND_EXPONENT
        scale = scale * (deviation / scale).square().mean().sqrt()
        return cls(block, tuple(bands.mean(dim=(0, 2, 3)).tolist()), tuple(scale.tolist()))


def dct_matrix(block: int) -> Tensor:
    """(block^2, block^2) orthonormal two-dimensional DCT-II over row-major pixels of a block."""
    index = torch.arange(block, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * index[None, :] + 1) * index[:, None] / (2 * block)) * math.sqrt(2.0 / block)
    basis[0] /= math.sqrt(2.0)
    return torch.kron(basis, basis).float()


def analyse(unit: Tensor, matrix: Tensor, block: int) -> Tensor:
    """(B, 1, H, W) -> unscaled bands (B, block^2, H / block, W / block)."""
    return F.conv2d(F.pixel_unshuffle(unit, block), matrix[:, :, None, None])


class BlockDct(Autoencoder):
    """Invertible transform (B, H, W) uint8 <-> (B, block^2, H / block, W / block) float32 of unit variance."""

    def __init__(self, config: BlockDctConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.patch = config.block**2, config.block
        matrix = dct_matrix(config.block)
        mean, scale = torch.tensor(config.mean), torch.tensor(config.scale)
        # Scaling and mean are folded into one 1x1 convolution each way.
        self.register_buffer("encode_weight", (matrix / scale[:, None])[:, :, None, None], persistent=False)
        self.register_buffer("encode_bias", -mean / scale, persistent=False)
        self.register_buffer("decode_weight", (matrix.T * scale)[:, :, None, None], persistent=False)
        self.register_buffer("decode_bias", matrix.T @ mean, persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        return F.conv2d(
            F.pixel_unshuffle(image_to_unit(image), self.config.block), self.encode_weight, self.encode_bias
        )

    def decode(self, latent: Tensor) -> Tensor:
        return unit_to_image(self.decode_unit(latent))

    def decode_unit(self, latent: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 1, H, W), black at -1 and white at 1, neither rounded nor clipped."""
        bands = F.conv2d(latent, self.decode_weight, self.decode_bias)
        return F.pixel_shuffle(bands, self.config.block)

    def save(self, directory: Path) -> None:
        write_json(directory / "config.json", self.config.to_json())
