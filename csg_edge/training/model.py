"""A CSG model as a folder: denoiser, autoencoder, flow and label schema, in the layout diffusers uses.

model_index.json                            role (teacher or student), image size
unet/config.json, unet/diffusion_pytorch_model.safetensors
autoencoder/config.json                     and its weights where it was learned
context/config.json                         block DCT of the context; only where the autoencoder is another one
scheduler/scheduler_config.json   label_schema.json
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.storage import folder_replaced, write_json
from csg_edge.training.autoencoder import Autoencoder
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.block_dct import BlockDct
from csg_edge.training.model_files import read_json
from csg_edge.training.networks import Conditions, CsgUNet, NetworkConfig, one_hot
from csg_edge.training.process import STUDENT_TIMESTEPS, TEACHER_STEPS, Velocity, multistep, teacher_timesteps

GUIDED_ABOVE = 0.45
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class CsgModel(nn.Module):
    """A denoiser with its autoencoder and label schema; our teacher and every student is one of these.

    The context always enters as a block DCT, whatever the latents are: `context_transform` if given, else the
    autoencoder itself. A learned encoder would be in the exported graph for nothing. `steps`: numbers of steps that a
    student was made for.
    """

    droppable = True  # condition dropout is part of its training

    def __init__(
        self,
        network: CsgUNet,
        autoencoder: Autoencoder,
        *,
        schema: LabelSchema,
        image_size: int,
        role: str,
        steps: tuple[int, ...] = tuple(STUDENT_TIMESTEPS),
        context_transform: BlockDct | None = None,
    ) -> None:
        super().__init__()
        if network.config.classes != len(schema):
            raise TrainingError(f"the network knows {network.config.classes} classes, the label schema {len(schema)}")
        if context_transform is None and not isinstance(autoencoder, BlockDct):
            raise TrainingError("a model with a learned autoencoder needs a block DCT for its context; none is given")
        self.network, self.autoencoder = network, autoencoder
        self.own_transform = context_transform
        self.schema, self.image_size, self.role, self.steps = schema, image_size, role, steps
        if self.context_transform.channels != network.config.context_channels:
            raise TrainingError(
                f"the network takes {network.config.context_channels} context channels, the block DCT of the context "
                f"makes {self.context_transform.channels}"
            )

    @property
    def context_transform(self) -> BlockDct:
        """Of the context: uint8 (B, H, W) -> (B, D, h, w)."""
        return self.autoencoder if self.own_transform is None else self.own_transform

    @property
    def inner_places(self) -> tuple[tuple[int, int], ...]:
        """Where a student's evaluations after the first stand: (number of steps, how many of them are taken)."""
        return tuple((count, taken) for count in self.steps for taken in range(1, count))

    def conditions(self, mask: Tensor, context: Tensor) -> Conditions:
        """(B, H, W) uint8 mask (255: no mask) and context (all zeros: no context)."""
        classes = one_hot(mask, self.network.config.classes)
        keep = context.flatten(1).to(torch.float32).amax(dim=1) > 0
        return self.network.encode_conditions(classes, self.context_transform.encode(context), keep)

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

    def integrate(self, mask: Tensor, context: Tensor, noise: Tensor, *, guidance: float) -> Tensor:
        """Mask, context (B, H, W) uint8 and noise (B, C, h, w) -> clean latent, with TEACHER_STEPS evaluations."""
        velocity = self.guided_velocity(mask, context, guidance=guidance)
        return multistep(velocity, noise, teacher_timesteps(TEACHER_STEPS)).float()

    def fingerprint(self) -> str:
        """A hash of the weights and of how they are sampled: trajectories of two teachers are not to be mixed."""
        digest = hashlib.sha256(repr((teacher_timesteps(TEACHER_STEPS), GUIDED_ABOVE)).encode())
        for value in self.network.state_dict().values():
            digest.update(value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def latent_shape(self, batch: int) -> tuple[int, int, int, int]:
        side = self.image_size // self.network.config.patch
        return batch, self.network.config.latent_channels, side, side

    def save(self, directory: Path) -> None:
        """Write the folder, weights in fp16; aside first, then renamed."""
        index: dict[str, Any] = {"_class_name": "CsgModel", "role": self.role, "image_size": self.image_size}
        if self.role == "student":
            index["steps"] = list(self.steps)
        scheduler = {"_class_name": "RectifiedFlow", "prediction_type": "velocity"}
        weights = {
            name: value.detach().to("cpu", torch.float16).contiguous()
            for name, value in self.network.state_dict().items()
        }
        transforms: dict[str, Autoencoder] = {"autoencoder": self.autoencoder}
        if self.own_transform is not None:
            transforms["context"] = self.own_transform
        with folder_replaced(directory) as aside:
            for path, values in (
                ("model_index.json", index),
                ("unet/config.json", self.network.config.to_json()),
                ("scheduler/scheduler_config.json", scheduler),
                ("label_schema.json", {"names": list(self.schema.names)}),
            ):
                (aside / path).parent.mkdir(exist_ok=True)
                write_json(aside / path, values)
            for name, transform in transforms.items():
                (aside / name).mkdir()
                transform.save(aside / name)
            save_file(weights, aside / WEIGHTS)

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
        autoencoder = load_autoencoder(directory / "autoencoder")
        context = load_autoencoder(directory / "context") if (directory / "context").is_dir() else None
        if not isinstance(context, BlockDct | None):
            raise TrainingError(f"{directory / 'context'}: not a BlockDct; copy the model again")
        return cls(
            network,
            autoencoder,
            schema=read_schema(directory),
            image_size=index["image_size"],
            role=index["role"],
            steps=tuple(index.get("steps", STUDENT_TIMESTEPS)),
            context_transform=context,
        )


def read_schema(directory: Path) -> LabelSchema:
    """The class names in `label_schema.json`. Raises TrainingError if there are none, InputError if they are unfit."""
    path = directory / "label_schema.json"
    names = read_json(path).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TrainingError(f'{path}: no class names; write {{"names": ["background", ...]}}')
    return LabelSchema(tuple(names))
