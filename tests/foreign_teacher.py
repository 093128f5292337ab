"""Tiny teachers with random weights, in the layout that docs/teacher-format.md describes, written by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CLASSES = ("background", "aponeurosis", "superficial_tissue", "muscle", "deep_tissue", "nerve", "vessel", "tendon",
           "bone", "ditf")  # fmt: skip
GREYS = [25 * index for index in range(len(CLASSES))]
SIZE = 64


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in values.items() if value is not None})


def write_kl_autoencoder(folder: Path, *, latent_channels: int = 3, image_channels: int = 1, levels: int = 3) -> None:
    """A random AutoencoderKL with latents of 1 / 2^(levels - 1) size."""
    from diffusers import AutoencoderKL

    AutoencoderKL(
        in_channels=image_channels, out_channels=image_channels, latent_channels=latent_channels,
        block_out_channels=(16,) * levels, norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, scaling_factor=1.5,
    ).save_pretrained(folder)  # fmt: skip


def write_epsilon_teacher(folder: Path, *, size: int = SIZE, seed: int = 0) -> Path:
    """UNet2DConditionModel over AutoencoderKL latents of 1/4 size: mask one-hot by channels, context by tokens."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    write_kl_autoencoder(folder / "vae")
    UNet2DConditionModel(
        sample_size=size // 4, in_channels=3 + len(CLASSES), out_channels=3, layers_per_block=1,
        block_out_channels=(32, 32), norm_num_groups=8, cross_attention_dim=24, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDPMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    write_json(folder / "context_encoder" / "config.json", {"_class_name": "LatentTokens", "patch": 4})
    weights = {
        "projection.weight": torch.randn(24, 3 * 16) / 7,
        "projection.bias": torch.zeros(24),
        "position": torch.randn((size // 16) ** 2, 24) / 5,
    }
    save_file(weights, folder / "context_encoder" / "model.safetensors")
    write_json(folder / "label_schema.json", {"names": list(CLASSES)})
    write_json(
        folder / "csg.json",
        {
            "format": 1,
            "image_size": size,
            "mask": {"channels": "one_hot", "dropped": "zeros"},
            "context": {"channels": "none", "tokens": "latents", "dropped": "zeros"},
            "sampler": {"name": "ddim", "steps": 4},
        },
    )
    return folder


def write_bridge_teacher(folder: Path, *, size: int = SIZE, seed: int = 0) -> Path:
    """UNet2DModel over VQModel latents of 1/4 size: starts at the painted mask, context by channels."""
    from diffusers import UNet2DModel, VQModel

    torch.manual_seed(seed)
    VQModel(
        latent_channels=3, vq_embed_dim=3, num_vq_embeddings=64, block_out_channels=(16, 16, 16), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=1.0,
    ).save_pretrained(folder / "vqvae")  # fmt: skip
    UNet2DModel(
        sample_size=size // 4, in_channels=6, out_channels=3, layers_per_block=1, block_out_channels=(32, 32),
        norm_num_groups=8, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "BrownianBridge", "num_train_timesteps": 1000, "prediction_type": "grad"},
    )
    write_json(folder / "label_schema.json", {"names": list(CLASSES)})
    write_json(
        folder / "csg.json",
        {
            "format": 1,
            "image_size": size,
            "mask": {"channels": "none", "palette": [[level, 255 - level, 128] for level in GREYS]},
            "context": {"channels": "latents"},
            "sampler": {"steps": 4},
        },
    )
    return folder
