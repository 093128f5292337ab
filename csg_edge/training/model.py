"""A CSG model as a folder: denoiser, autoencoder, flow and label schema, in the layout diffusers uses.

model_index.json                            role (teacher or student), image size
unet/config.json, unet/diffusion_pytorch_model.safetensors
autoencoder/config.json   scheduler/scheduler_config.json   label_schema.json
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.training.autoencoder import BlockDct, BlockDctConfig
from csg_edge.training.networks import Conditions, CsgUNet, NetworkConfig, one_hot
from csg_edge.training.process import Velocity

GUIDED_ABOVE = 0.45
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class CsgModel(nn.Module):
    """A denoiser with its autoencoder and label schema; teacher and student are both one of these."""

    def __init__(
        self, network: CsgUNet, autoencoder: BlockDct, *, schema: LabelSchema, image_size: int, role: str
    ) -> None:
        super().__init__()
        if network.config.classes != len(schema):
            raise TrainingError(f"the network knows {network.config.classes} classes, the label schema {len(schema)}")
        self.network, self.autoencoder = network, autoencoder
        self.schema, self.image_size, self.role = schema, image_size, role

    def conditions(self, mask: Tensor, context: Tensor) -> Conditions:
        """(B, H, W) uint8 mask (255: no mask) and context (all zeros: no context)."""
        classes = one_hot(mask, self.network.config.classes)
        keep = context.flatten(1).to(torch.float32).amax(dim=1) > 0
        return self.network.encode_conditions(classes, self.autoencoder.encode(context), keep)

    def velocity(self, conditions: Conditions) -> Velocity:
        """The velocity with conditions bound, as samplers take it."""

        def evaluate(latent: Tensor, timestep: float) -> Tensor:
            embedding = self.network.embed_time(torch.full((1,), timestep, device=latent.device))
            return self.network(latent, embedding, conditions).float()

        return evaluate

    def guided_velocity(self, mask: Tensor, context: Tensor, *, guidance: float) -> Velocity:
        """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

        1 is the plain model, more follows mask and context.

        It acts above GUIDED_ABOVE only (Kynkaanniemi et al., arXiv 2404.07724): structure is decided there, and
        speckle, which guidance would exaggerate, is made below.
        """
        guided = self.velocity(self.conditions(mask, context))
        if guidance == 1.0:
            return guided
        free = self.velocity(self.conditions(torch.full_like(mask, NO_MASK), torch.zeros_like(context)))

        def evaluate(latent: Tensor, timestep: float) -> Tensor:
            velocity = guided(latent, timestep)
            if timestep < GUIDED_ABOVE:
                return velocity
            unguided = free(latent, timestep)
            return unguided + guidance * (velocity - unguided)

        return evaluate

    def latent_shape(self, batch: int) -> tuple[int, int, int, int]:
        side = self.image_size // self.network.config.patch
        return batch, self.network.config.latent_channels, side, side

    def save(self, directory: Path) -> None:
        """Write the folder, weights in fp16; aside first, then renamed."""
        aside = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        index = {"_class_name": "CsgModel", "role": self.role, "image_size": self.image_size}
        scheduler = {"_class_name": "RectifiedFlow", "prediction_type": "velocity"}
        for path, values in (
            ("model_index.json", index),
            ("unet/config.json", self.network.config.to_json()),
            ("autoencoder/config.json", self.autoencoder.config.to_json()),
            ("scheduler/scheduler_config.json", scheduler),
            ("label_schema.json", {"names": list(self.schema.names)}),
        ):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            write_json(aside / path, values)
        weights = {
            name: value.detach().to("cpu", torch.float16).contiguous()
            for name, value in self.network.state_dict().items()
        }
        save_file(weights, aside / WEIGHTS)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(aside, directory)

    @classmethod
    def load(cls, directory: Path) -> CsgModel:
        """Read a folder written by `save`. Raises TrainingError for anything missing, damaged or of another shape."""
        index = read_json(directory / "model_index.json")
        if index.get("_class_name") != "CsgModel":
            raise TrainingError(f"{directory}: model class {index.get('_class_name')!r} is not CsgModel")
        network = CsgUNet(NetworkConfig.from_json(read_json(directory / "unet" / "config.json")))
        try:
            weights = load_file(directory / WEIGHTS)
            network.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split("\n\t")[:2])  # torch's heading and the first thing wrong
            raise TrainingError(f"{directory / WEIGHTS}: {reason}; train or copy the model again") from None
        autoencoder = BlockDct(BlockDctConfig.from_json(read_json(directory / "autoencoder" / "config.json")))
        schema = LabelSchema(tuple(read_json(directory / "label_schema.json")["names"]))
        return cls(network, autoencoder, schema=schema, image_size=index["image_size"], role=index["role"])


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write one JSON object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises TrainingError if the file is missing or not JSON."""
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise TrainingError(f"{path}: missing; give a folder written by `csg-edge train` or `distill`") from None
    except ValueError as error:
        raise TrainingError(f"{path}: not JSON ({error}); copy the model again") from None
    return dict(values)
