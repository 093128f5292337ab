"""Autoencoders that were learned: diffusers' AutoencoderKL and VQModel behind our interface.

Latents are those the denoiser sees: (encoded - mean) * scaling_factor / deviation, with what the folder's config says
(`scaling_factor`, `shift_factor` or `latents_mean`, `latents_std`). An ultrasound image is grey: a model of three
channels is fed the image thrice and its output is averaged.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from csg_edge.errors import TrainingError
from csg_edge.training.autoencoder import Autoencoder, image_to_unit, unit_to_image
from csg_edge.training.diffusers_files import load_module

IMAGE_CHANNELS = (1, 3)


class LearnedAutoencoder(Autoencoder):
    """What AutoencoderKL and VQModel share."""

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, module: Any) -> None:
        super().__init__()
        config = module.config
        self.module = module.eval().requires_grad_(False)
        self.channels = self._latent_channels(config)
        self.patch = 2 ** (len(config.block_out_channels) - 1)
        self.image_channels = int(config.in_channels)
        if config.in_channels not in IMAGE_CHANNELS or config.out_channels != config.in_channels:
            raise TrainingError(
                f"autoencoder: {config.in_channels} channels in and {config.out_channels} out; an ultrasound image is "
                "grey, so give a model of 1 or 3 image channels"
            )
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * self.channels
        deviation = config.get("latents_std") or [1.0] * self.channels
        if not len(mean) == len(deviation) == self.channels:
            raise TrainingError(f"autoencoder: latents_mean and latents_std need {self.channels} values each")
        if not isinstance(config.scaling_factor, (int, float)) or not config.scaling_factor > 0:
            raise TrainingError(f"autoencoder: scaling_factor {config.scaling_factor!r}; give a number above 0")
        scale = config.scaling_factor / torch.tensor(deviation, dtype=torch.float32)
        self.register_buffer("latent_mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("latent_scale", scale.view(1, -1, 1, 1), persistent=False)

    def _latent_channels(self, config: Any) -> int:
        return int(config.latent_channels)

    def _channels(self, unit: Tensor) -> Tensor:
        return unit.expand(-1, self.image_channels, -1, -1)

    def _latent(self, encoded: Tensor) -> Tensor:
        return (encoded.float() - self.latent_mean) * self.latent_scale

    def _encoded(self, latent: Tensor) -> Tensor:
        return latent / self.latent_scale + self.latent_mean

    def encode(self, image: Tensor) -> Tensor:
        return self.encode_unit(image_to_unit(image))

    @abstractmethod
    def encode_unit(self, unit: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in -1..1 -> latent; three channels for a model of three only, as a coloured mask is."""

    @property
    def scale(self) -> float:
        """What the module's own latents are multiplied by."""
        return float(self.module.config.scaling_factor)

    def rescaled(self, deviation: float) -> LearnedAutoencoder:
        """A copy whose latents are this one's divided by `deviation`."""
        module = copy.deepcopy(self.module)
        module.register_to_config(scaling_factor=module.config.scaling_factor / deviation)
        return type(self)(module)

    def save(self, directory: Path) -> None:
        """Write config.json and safetensors as diffusers does, in fp16, as the denoiser's weights are stored."""
        self.module.save_config(directory)
        weights = {
            name: value.detach().to("cpu", torch.float16).contiguous()
            for name, value in self.module.state_dict().items()
        }
        save_file(weights, directory / "diffusion_pytorch_model.safetensors", {"format": "pt"})


class KlAutoencoder(LearnedAutoencoder):
    """AutoencoderKL (Rombach et al., arXiv 2112.10752); a latent is the mean of the posterior."""

    def encode_unit(self, unit: Tensor) -> Tensor:
        return self._latent(self.module.encode(self._channels(unit)).latent_dist.mean)

    def decode(self, latent: Tensor) -> Tensor:
        unit = self.module.decode(self._encoded(latent), return_dict=False)[0]
        return unit_to_image(unit.mean(dim=1, keepdim=True))


class VqAutoencoder(LearnedAutoencoder):
    """VQModel (Esser et al., arXiv 2012.09841); latents are not yet quantised, `decode` takes the nearest code."""

    def _latent_channels(self, config: Any) -> int:
        return int(config.get("vq_embed_dim") or config.latent_channels)

    def encode_unit(self, unit: Tensor) -> Tensor:
        return self._latent(self.module.encode(self._channels(unit)).latents)

    def decode(self, latent: Tensor) -> Tensor:
        code = self.quantise(self._encoded(latent))
        features = self.module.post_quant_conv(code)
        unit = self.module.decoder(features, code if self.module.config.norm_type == "spatial" else None)
        return unit_to_image(unit.mean(dim=1, keepdim=True))

    def quantise(self, encoded: Tensor) -> Tensor:
        """(B, C, h, w) -> the nearest code of every pixel.

        |z - e|^2 without its constant |z|^2: one matrix product, which every runtime has, where a distance has not.
        """
        codes = self.module.quantize.embedding.weight  # (N, C)
        pixels = encoded.permute(0, 2, 3, 1)  # (B, h, w, C)
        distance = codes.square().sum(dim=1) - 2.0 * torch.matmul(pixels, codes.T)
        return codes[distance.argmin(dim=-1)].permute(0, 3, 1, 2)


LEARNED = {"AutoencoderKL": KlAutoencoder, "VQModel": VqAutoencoder}


def load_learned(directory: Path, name: str) -> LearnedAutoencoder:
    """Read a folder of one of the classes in LEARNED. Raises TrainingError for anything damaged or unfit."""
    return LEARNED[name](load_module(directory, name))
