"""A CSG model as a folder: denoiser, autoencoder, flow and label schema, in the layout diffusers uses.

model_index.json                            role (teacher or student), image size
unet/config.json, unet/diffusion_pytorch_model.safetensors
autoencoder/config.json                     and its weights where it was learned
context/config.json                         block DCT of the context; only where the autoencoder is another one
fibre_prior/config.json                     and its weights, where the fibre field is a condition
scheduler/scheduler_config.json   label_schema.json
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csg_edge.conditions import fibres
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.storage import folder_replaced, write_json
from csg_edge.training.autoencoder import Autoencoder
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.block_dct import BlockDct
from csg_edge.training.fibre_prior import VECTOR, FibrePrior
from csg_edge.training.model_files import read_json
from csg_edge.training.networks import Conditions, CsgUNet, NetworkConfig, one_hot
from csg_edge.training.process import STUDENT_TIMESTEPS, TEACHER_STEPS, Velocity, multistep, teacher_timesteps

GUIDED_ABOVE = 0.45
PRIOR = "fibre_prior"
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class CsgModel(nn.Module):
    """A denoiser with its autoencoder and label schema; our teacher and every student is one of these.

    The context always enters as a block DCT, whatever the latents are: `context_transform` if given, else the
    autoencoder itself. A learned encoder would be in the exported graph for nothing. `steps`: numbers of steps that a
    student was made for. prior: draws a fibre field where none is given; only with a network that takes one.
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
        prior: FibrePrior | None = None,
    ) -> None:
        super().__init__()
        if network.config.classes != len(schema):
            raise TrainingError(f"the network knows {network.config.classes} classes, the label schema {len(schema)}")
        if context_transform is None and not isinstance(autoencoder, BlockDct):
            raise TrainingError("a model with a learned autoencoder needs a block DCT for its context; none is given")
        if prior is not None and not network.config.fibres:
            raise TrainingError("a fibre prior, but the network takes no fibre field; the parts are of two models")
        self.network, self.autoencoder, self.prior = network, autoencoder, prior
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

    def conditions(self, mask: Tensor, context: Tensor, field: Tensor | None = None) -> Conditions:
        """Of (B, H, W) uint8 mask (255: no mask) and context (all zeros: no context).

        field: fibre field (B, 3, 16, 16) whose third channel is 1, zeros for an image without; None: none has one.
        """
        classes = one_hot(mask, self.network.config.classes)
        maps = self.network.class_maps(classes)
        return self._encode(classes, maps, context, self.context_transform.encode(context), field)

    def conditions_of(self, mask: Tensor, context: Tensor, noise: Tensor, given: Tensor) -> tuple[Conditions, Tensor]:
        """Conditions with a whole fibre field, and that field (B, 3, 16, 16).

        noise: (B, C, h, w), that of the image; given: fibre field (B, 3, 16, 16), whose third channel says how much of
        it is to be used. The prior draws the rest from the noise. Needs a prior.
        """
        assert self.prior is not None
        classes, bands = one_hot(mask, self.network.config.classes), self.context_transform.encode(context)
        maps = self.network.class_maps(classes)
        coarse = next((item for item in maps if item.shape[2] == fibres.SIDE), None)
        if coarse is None:
            coarse = F.avg_pool2d(maps[0], noise.shape[2] // fibres.SIDE)
        drawn = self.prior.draw(coarse_noise(noise), coarse, bands)
        share = given[:, fibres.GIVEN :]
        vector = drawn + share * (given[:, : fibres.GIVEN] - drawn)
        used = torch.cat([vector, torch.ones_like(share)], dim=1)
        return self._encode(classes, maps, context, bands, used), used

    def _encode(
        self, classes: Tensor, maps: tuple[Tensor, ...], context: Tensor, bands: Tensor, field: Tensor | None
    ) -> Conditions:
        keep = context.flatten(1).to(torch.float32).amax(dim=1) > 0
        return self.network.encode_conditions(classes, maps, bands, keep, field)

    def used_field(self, mask: Tensor, context: Tensor, noise: Tensor, given: Tensor | None = None) -> Tensor | None:
        """The fibre field (B, 3, 16, 16) of an image: what is given, the rest drawn by the prior; None without one."""
        if self.prior is None:
            return None
        if given is None:
            given = noise.new_zeros(len(noise), fibres.CHANNELS, fibres.SIDE, fibres.SIDE)
        return self.conditions_of(mask, context, noise, given)[1].float()

    def velocity(self, conditions: Conditions) -> Velocity:
        """The velocity with conditions bound, as samplers take it."""

        def evaluate(latent: Tensor, timestep: float) -> Tensor:
            embedding = self.network.embed_time(torch.full((1,), timestep, device=latent.device))
            return self.network(latent, embedding, conditions).float()

        return evaluate

    def guided_velocity(
        self, mask: Tensor, context: Tensor, field: Tensor | None = None, *, guidance: float
    ) -> Velocity:
        """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598).

        1 is the plain model, more follows mask, context and fibre field: without the field dropped, too, muscle asked
        for at 30 degrees stood at 22 where it now stands at 26, and images were less coherent than their fields.

        It acts above GUIDED_ABOVE only (Kynkaanniemi et al., arXiv 2404.07724): structure is decided there, and
        speckle, which guidance would exaggerate, is made below.
        """
        guided = self.velocity(self.conditions(mask, context, field))
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

    def integrate(
        self, mask: Tensor, context: Tensor, noise: Tensor, *, guidance: float, field: Tensor | None = None
    ) -> Tensor:
        """Mask, context (B, H, W) uint8 and noise (B, C, h, w) -> clean latent, with TEACHER_STEPS evaluations.

        field: the fibre field (B, 3, 16, 16) to use, None: as the prior draws it.
        """
        if field is None:
            field = self.used_field(mask, context, noise)
        velocity = self.guided_velocity(mask, context, field, guidance=guidance)
        return multistep(velocity, noise, teacher_timesteps(TEACHER_STEPS)).float()

    def fingerprint(self) -> str:
        """A hash of the weights and of how they are sampled: trajectories of two teachers are not to be mixed."""
        digest = hashlib.sha256(repr((teacher_timesteps(TEACHER_STEPS), GUIDED_ABOVE)).encode())
        weights = [self.network, *([] if self.prior is None else [self.prior])]
        for value in (value for module in weights for value in module.state_dict().values()):
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
            if self.prior is not None:
                self.prior.save(aside / PRIOR)

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
            prior=FibrePrior.load(directory / PRIOR) if (directory / PRIOR).is_dir() else None,
        )


def coarse_noise(noise: Tensor) -> Tensor:
    """(B, C, h, w) noise of an image -> (B, 2, 16, 16), what the prior draws from.

    Single values of the last two channels, the finest bands of a block DCT: the image depends least on them.
    """
    step = noise.shape[2] // fibres.SIDE
    return noise[:, -VECTOR:, ::step, ::step]


def read_schema(directory: Path) -> LabelSchema:
    """The class names in `label_schema.json`. Raises TrainingError if there are none, InputError if they are unfit."""
    path = directory / "label_schema.json"
    names = read_json(path).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TrainingError(f'{path}: no class names; write {{"names": ["background", ...]}}')
    return LabelSchema(tuple(names))
