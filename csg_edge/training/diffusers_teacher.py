"""A teacher that someone else trained, from a folder in diffusers layout (docs/teacher-format.md).

UNet2DModel or UNet2DConditionModel over the latents of an AutoencoderKL or VQModel; epsilon-, v- or x_0-prediction with
any of diffusers' noise schedules, flow matching, or a Brownian bridge. Sampling is deterministic in mask, context and
noise: DDIM without added noise (Song et al., arXiv 2010.02502), multistep DPM-Solver++ (Lu et al., arXiv 2211.01095),
Euler for flow matching.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from csg_edge.errors import InputError, TrainingError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.bridge import BrownianBridge, Predict
from csg_edge.training.diffusers_files import load_module, make_scheduler, refuse_pickles
from csg_edge.training.learned_autoencoder import LearnedAutoencoder
from csg_edge.training.model import read_schema
from csg_edge.training.model_files import read_json
from csg_edge.training.networks import one_hot
from csg_edge.training.teacher_format import TeacherFormat

UNETS = ("UNet2DModel", "UNet2DConditionModel")
AUTOENCODERS = ("vae", "vqvae", "autoencoder")
SIZE_MULTIPLE = 32
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SCHEDULES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Diffusers' schedulers whose noise schedule is read; the sampler is that of csg.json."""

FLOW = "FlowMatchEulerDiscreteScheduler"
BRIDGE = "BrownianBridge"
# Inputs that a UNet may ask for and that mask and context have nothing to say to.
FOREIGN_INPUTS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type",
                  "time_cond_proj_dim")  # fmt: skip


class Entered(NamedTuple):
    """What mask and context become, once per image."""

    channels: dict[str, Tensor]  # (B, ., h, w) each, by their name in the channel order
    tokens: Tensor | None  # (B, N, D)
    start: Tensor | None  # (B, C, h, w): where a bridge starts


class LatentTokens(nn.Module):
    """Context latents -> tokens of cross-attention: patches, flattened row by row, through one linear layer.

    (B, C, h, w) -> (B, N, D), N = h w / patch^2; `position` (N, D) is added if the weights have it.
    """

    def __init__(self, patch: int, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("weight", weights["projection.weight"])  # (D, C patch^2)
        self.register_buffer("bias", weights.get("projection.bias"))
        self.register_buffer("position", weights.get("position"))

    def forward(self, latent: Tensor) -> Tensor:
        patches = F.unfold(latent, self.patch, stride=self.patch).transpose(1, 2)  # (B, N, C patch^2)
        tokens = F.linear(patches, self.weight, self.bias)
        return tokens if self.position is None else tokens + self.position


class DiffusersProcess:
    """One of diffusers' processes with a deterministic sampler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def sample(self, predict: Predict, noise: Tensor, *, start: Tensor | None, steps: int) -> Tensor:
        """From noise to a clean latent."""
        self.scheduler.set_timesteps(steps, device=noise.device)
        latent = noise
        for timestep in self.scheduler.timesteps:
            prediction = predict(latent, timestep).float()
            latent = self.scheduler.step(prediction, timestep, latent, return_dict=False)[0]
        return latent


class DiffusersTeacher(nn.Module):
    """UNet, autoencoder, process and the entries of mask and context, held against each other when made."""

    def __init__(
        self,
        unet: Any,
        autoencoder: LearnedAutoencoder,
        process: DiffusersProcess | BrownianBridge,
        *,
        schema: LabelSchema,
        entry: TeacherFormat,
        tokens: LatentTokens | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.tokens = unet, autoencoder, tokens
        self.process, self.entry, self.schema = process, entry, schema
        self.image_size = entry.image_size
        self.droppable = entry.droppable
        self._check()

    @classmethod
    def load(cls, folder: Path, *, steps: int | None = None) -> DiffusersTeacher:
        """Read a folder; `steps` in place of csg.json's. Raises TrainingError for whatever is missing or unfit."""
        entry = TeacherFormat.from_json(read_json(folder / "csg.json"))
        if steps is not None:
            if steps < 1:
                raise InputError(f"--teacher-steps {steps}: give at least 1")
            entry = replace(entry, steps=steps)
        schema = read_schema(folder)
        name = read_json(folder / "unet" / "config.json").get("_class_name")
        if name not in UNETS:
            raise TrainingError(f"{folder / 'unet'}: class {name!r}; give one of {', '.join(UNETS)}")
        found = [place for place in AUTOENCODERS if (folder / place).is_dir()]
        if len(found) != 1:
            raise TrainingError(
                f"{folder}: {', '.join(found) or 'no autoencoder'}; give exactly one of {', '.join(AUTOENCODERS)}"
            )
        process = _load_process(read_json(folder / "scheduler" / "scheduler_config.json"), entry)
        autoencoder = load_autoencoder(folder / found[0])
        if not isinstance(autoencoder, LearnedAutoencoder):
            raise TrainingError(f"{folder / found[0]}: give an AutoencoderKL or a VQModel")
        return cls(
            load_module(folder / "unet", name),
            autoencoder,
            process,
            schema=schema,
            entry=entry,
            tokens=_load_tokens(folder / "context_encoder") if entry.context.tokens != "none" else None,
        ).eval()

    def latent_shape(self, batch: int) -> tuple[int, int, int, int]:
        side = self.image_size // self.autoencoder.patch
        return batch, self.autoencoder.channels, side, side

    def used_field(self, mask: Tensor, context: Tensor, noise: Tensor, given: Tensor | None = None) -> None:
        """None: it knows no fibre field."""

    def integrate(
        self, mask: Tensor, context: Tensor, noise: Tensor, *, guidance: float, field: Tensor | None = None
    ) -> Tensor:
        """See `Teacher`; guidance is classifier-free guidance (Ho & Salimans, arXiv 2207.12598) at every timestep."""
        if guidance != 1.0 and not self.droppable:
            raise TrainingError(
                f"--guidance {guidance}: csg.json says that this teacher knows no dropped conditions; give 1"
            )
        given = self._enter(mask, context)
        none = None
        if guidance != 1.0:
            none = self._enter(torch.full_like(mask, NO_MASK), torch.zeros_like(context))._replace(start=given.start)

        def predict(latent: Tensor, timestep: Tensor) -> Tensor:
            prediction = self._evaluate(latent, timestep, given)
            if none is None:
                return prediction
            unguided = self._evaluate(latent, timestep, none)
            return unguided + guidance * (prediction - unguided)

        return self.process.sample(predict, noise, start=given.start, steps=self.entry.steps).float()

    def fingerprint(self) -> str:
        process = self.process
        settings = asdict(process) if isinstance(process, BrownianBridge) else dict(process.scheduler.config)
        digest = hashlib.sha256(json.dumps([asdict(self.entry), settings], sort_keys=True, default=str).encode())
        for module in (self.unet, self.autoencoder.module, self.tokens):
            for name, value in (module.state_dict() if module is not None else {}).items():
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _evaluate(self, latent: Tensor, timestep: Tensor, entered: Entered) -> Tensor:
        parts = {"latent": latent, **entered.channels}
        sample = torch.cat([parts[name] for name in self.entry.order if name in parts], dim=1)
        arguments = () if type(self.unet).__name__ == "UNet2DModel" else (entered.tokens,)
        return self.unet(sample, timestep, *arguments, return_dict=False)[0].float()

    def _enter(self, mask: Tensor, context: Tensor) -> Entered:
        entry, side = self.entry, self.latent_shape(1)[2:]
        channels: dict[str, Tensor] = {}
        tokens = start = None
        if entry.mask.channels == "one_hot":
            classes = one_hot(mask, len(self.schema))
            channels["mask"] = F.interpolate(classes, side, mode=entry.mask.resize)
        bridge = isinstance(self.process, BrownianBridge)
        if bridge or entry.mask.channels == "latents":
            painted = self._paint(mask)
            start = painted if bridge else None
            if entry.mask.channels == "latents":
                has_mask = (mask != NO_MASK).flatten(1).any(dim=1).float()
                channels["mask"] = painted * has_mask.view(-1, 1, 1, 1)
        if entry.context.channels != "none" or self.tokens is not None:
            has_context = (context != 0).flatten(1).any(dim=1).float()
            latent = self.autoencoder.encode(context)
            if entry.context.channels != "none":
                channels["context"] = latent * has_context.view(-1, 1, 1, 1)
            if self.tokens is not None:
                tokens = self.tokens(latent) * has_context.view(-1, 1, 1)
        return Entered(channels, tokens, start)

    def _paint(self, mask: Tensor) -> Tensor:
        """(B, H, W) class indices -> latents of the mask in the colours of the palette; no mask is background."""
        palette = torch.tensor(self.entry.mask.palette, dtype=torch.float32, device=mask.device) / 127.5 - 1.0
        indices = torch.where(mask == NO_MASK, 0, mask).long()
        return self.autoencoder.encode_unit(palette[indices].permute(0, 3, 1, 2))

    def _check(self) -> None:
        """Raise TrainingError unless UNet, autoencoder, schema and entries fit together."""
        entry, config, latent = self.entry, self.unet.config, self.autoencoder.channels
        classes, patch = len(self.schema), self.autoencoder.patch
        deepest = patch * 2 ** (len(config.block_out_channels) - 1)
        multiple = max(SIZE_MULTIPLE, deepest, 4 * patch)
        if entry.image_size % multiple:
            raise TrainingError(
                f"csg.json: image_size {entry.image_size}; give a multiple of {multiple}, since the autoencoder makes "
                f"latents of 1/{patch} size and the UNet and the student halve them again"
            )
        for key in FOREIGN_INPUTS:
            if config.get(key) is not None:
                raise TrainingError(
                    f"unet: {key} is {config[key]!r}; a CSG teacher has mask and context only, give null"
                )
        if config.out_channels != latent:
            raise TrainingError(
                f"unet: {config.out_channels} channels out, the autoencoder has {latent} latent channels; they must be "
                "equal (a learned variance is not supported)"
            )
        parts = {"latent": (latent, "latent")}
        if entry.mask.channels != "none":
            one_hot_mask = entry.mask.channels == "one_hot"
            parts["mask"] = (classes, "mask classes") if one_hot_mask else (latent, "mask latents")
        if entry.context.channels != "none":
            parts["context"] = (latent, "context latents")
        found = sum(count for count, _ in parts.values())
        if config.in_channels != found:
            listed = " + ".join(
                f"{count} {name}" for count, name in (parts[key] for key in entry.order if key in parts)
            )
            raise TrainingError(
                f"unet: in_channels is {config.in_channels}, but csg.json and label_schema.json add up to {listed} = "
                f"{found}; mend whichever is wrong"
            )
        self._check_palette()
        self._check_tokens()
        if isinstance(self.process, BrownianBridge) and entry.steps < 2:
            raise TrainingError("a bridge needs 2 sampling steps or more: with one there is no room for noise")
        limit = self.process.timesteps if isinstance(self.process, BrownianBridge) else _timesteps(self.process)
        if entry.steps > limit:
            raise TrainingError(f"{entry.steps} sampling steps, but the scheduler has {limit} timesteps; give fewer")

    def _check_palette(self) -> None:
        mask, classes = self.entry.mask, len(self.schema)
        if (mask.channels == "latents" or isinstance(self.process, BrownianBridge)) and not mask.palette:
            raise TrainingError(
                "csg.json: mask: no palette; the mask becomes an image here, so give a colour for each class"
            )
        if mask.palette and len(mask.palette) != classes:
            raise TrainingError(
                f"csg.json: mask: palette has {len(mask.palette)} colours, label_schema.json {classes} classes; "
                "give one colour for each class"
            )
        if mask.palette and len(mask.palette[0]) > self.autoencoder.image_channels:
            raise TrainingError(
                "csg.json: mask: palette has colours, the autoencoder takes grey images; give one level for each class"
            )

    def _check_tokens(self) -> None:
        config = self.unet.config
        blocks = (*config.down_block_types, *config.up_block_types, config.get("mid_block_type") or "")
        attends = type(self.unet).__name__ == "UNet2DConditionModel" and any("CrossAttn" in name for name in blocks)
        if attends != (self.tokens is not None):
            problem = "is none, but the UNet has" if attends else "is latents, but the UNet has no"
            raise TrainingError(f"csg.json: context: tokens {problem} cross-attention blocks; mend whichever is wrong")
        if self.tokens is None:
            return
        _, channels, side, _ = self.latent_shape(1)
        patch, (width, inner) = self.tokens.patch, self.tokens.weight.shape
        dimensions = config.cross_attention_dim
        for dimension in dimensions if isinstance(dimensions, (list, tuple)) else [dimensions]:
            if dimension != width:
                raise TrainingError(
                    f"context_encoder: tokens of {width}, the UNet's cross_attention_dim is {dimension}"
                )
        if side % patch or inner != channels * patch**2:
            raise TrainingError(
                f"context_encoder: projection takes {inner} values, a {patch} x {patch} patch of {channels} latent "
                f"channels has {channels * patch**2}, and {side} x {side} latents must divide into patches"
            )
        if self.tokens.position is not None and tuple(self.tokens.position.shape) != ((side // patch) ** 2, width):
            raise TrainingError(
                f"context_encoder: position is {tuple(self.tokens.position.shape)}, there are {(side // patch) ** 2} "
                f"tokens of {width}"
            )


def _timesteps(process: DiffusersProcess) -> int:
    return int(process.scheduler.config.num_train_timesteps)


def _load_process(config: dict[str, Any], entry: TeacherFormat) -> DiffusersProcess | BrownianBridge:
    name = config.get("_class_name")
    if name == BRIDGE:
        return BrownianBridge.from_json(config)
    if name == FLOW:
        if config.get("use_dynamic_shifting"):
            raise TrainingError("scheduler_config.json: use_dynamic_shifting depends on the image; give a fixed shift")
        return DiffusersProcess(make_scheduler(config, FLOW, stochastic_sampling=False))
    if name not in SCHEDULES:
        raise TrainingError(
            f"scheduler_config.json: class {name!r} is unknown; give one of {', '.join((*SCHEDULES, FLOW, BRIDGE))}"
        )
    # Through its own class, whose defaults hold for what the file leaves out.
    own = make_scheduler(config, name).config
    if own.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise TrainingError(
            f"scheduler_config.json: prediction_type {own['prediction_type']!r}; choose among "
            f"{', '.join(PREDICTIONS)}, or {FLOW} for flow matching"
        )
    if entry.sampler == "ddim":
        # Clipping is DDIM's default, but only what the file's own class does is what the teacher was trained for.
        clip = bool(own.get("clip_sample", False))
        return DiffusersProcess(make_scheduler(dict(own), "DDIMScheduler", clip_sample=clip))
    return DiffusersProcess(
        make_scheduler(dict(own), "DPMSolverMultistepScheduler", algorithm_type="dpmsolver++", solver_type="midpoint")
    )


def _load_tokens(directory: Path) -> LatentTokens:
    config = read_json(directory / "config.json")
    if config.get("_class_name") != "LatentTokens" or not isinstance(config.get("patch"), int) or config["patch"] < 1:
        raise TrainingError(
            f'{directory / "config.json"}: write {{"_class_name": "LatentTokens", "patch": 1}}, see '
            "docs/teacher-format.md"
        )
    refuse_pickles(directory)
    path = directory / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot read ({error}); save it again") from None
    names = {"projection.weight", "projection.bias", "position"}
    if missing := sorted(({"projection.weight"} - set(weights)) | (set(weights) - names)):
        raise TrainingError(f"{path}: {missing[0]} is missing or unknown; give {', '.join(sorted(names))}")
    return LatentTokens(config["patch"], {name: value.float() for name, value in weights.items()})
