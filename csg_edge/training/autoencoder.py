"""Image <-> latent: what every autoencoder offers. `block_dct` has ours, `learned_autoencoder` those of diffusers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """Image <-> latent, (B, H, W) uint8 <-> (B, `channels`, H / `patch`, W / `patch`) float32 of about unit variance.

    It is never trained with the denoiser; `decode` is part of the exported graph.
    """

    channels: int
    patch: int  # image pixels per latent pixel, each way

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """(B, H, W) uint8 -> (B, channels, H / patch, W / patch) float32."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """(B, channels, h, w) float32 -> (B, h patch, w patch) uint8."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what `load_autoencoder` reads, into an existing folder."""


def image_to_unit(image: Tensor) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float in -1..1."""
    return image[:, None].to(torch.float32) / 127.5 - 1.0


def unit_to_image(unit: Tensor) -> Tensor:
    """(B, 1, H, W) float -> (B, H, W) uint8, rounded to nearest and clipped."""
    return ((unit[:, 0] + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
