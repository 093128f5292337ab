"""The CSG denoiser: a U-Net over latents, guided by a semantic mask (structure) and a context image (appearance).

Mask: strided convolution of the one-hot at the stem, and a class-adaptive scale and shift in every block (CLADE, Tan
et al., arXiv 2012.04644). Context: channel statistics of a small style encoder (in the sense of Huang & Belongie,
arXiv 1703.06868) become FiLM (Perez et al., arXiv 1709.07871), and its row-wise mean and deviation carry the fall-off
with depth.

A student is the same network built for kernels: no attention, HardSwish or ReLU, and per-channel constants where the
teacher has group norms, which fuse with the convolutions and let int8 through (docs/student.md has what was measured).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_edge.conditions import fibres
from csg_edge.errors import TrainingError

STYLE_WIDTHS = (32, 64, 96)
PROFILE_CHANNELS = 8
TIME_FREQUENCIES = 64
FIBRE_WIDTH, FIBRE_FEATURES = 32, 8  # within the fibre branch at the field's size, and on to the stem's
TOKEN_WIDTH = STYLE_WIDTHS[-1] + 2  # features and where they are: depth and side


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "hardswish": F.hardswish, "relu": F.relu}
NORMS = ("group", "affine")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a denoiser; stored as `config.json` beside its weights."""

    classes: int
    latent_channels: int = 16
    patch: int = 4  # image pixels per latent pixel, each way
    widths: tuple[int, ...] = (64, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 2)
    embedding: int = 192
    mask_features: int = 32
    heads: int = 4
    deeper: int = 0  # further stages of block, attention and cross-attention at the coarsest level
    context_tokens: bool = False  # cross-attention to the context at the coarsest level
    context_channels: int = 16  # of the context's block DCT, whatever the latents are
    norm: str = "group"  # or "affine": constants per channel, see Affine
    activation: str = "silu"  # of the denoiser; or "hardswish", "relu"
    attention: bool = True  # at the coarsest level
    fibres: bool = False  # whether the fibre field is a condition

    def __post_init__(self) -> None:
        if self.norm not in NORMS or self.activation not in ACTIVATIONS:
            raise TrainingError(
                f"network: norm {self.norm!r} or activation {self.activation!r} is unknown; give one of "
                f"{', '.join(NORMS)} and of {', '.join(ACTIVATIONS)}"
            )
        if self.context_tokens and not self.attention:
            raise TrainingError("network: context_tokens are read by attention; set attention = true")
        if len(self.widths) != len(self.blocks) or any(width % 32 for width in self.widths):
            raise TrainingError("network: give one block count per width, and widths in multiples of 32")

    def to_json(self) -> dict[str, Any]:
        return {"_class_name": "CsgUNet", **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """Raises TrainingError for another class name or unknown keys."""
        values = dict(values)
        name = values.pop("_class_name", None)
        if name != "CsgUNet":
            raise TrainingError(f"network config: class {name!r} is not CsgUNet; this folder was made by another tool")
        try:
            config = cls(**{key: tuple(item) if isinstance(item, list) else item for key, item in values.items()})
        except TypeError as error:
            raise TrainingError(f"network config: {error}") from None
        return config


class Conditions(NamedTuple):
    """What mask and context become, once per image; every step shares it."""

    stem: Tensor  # (B, C, h, w) what mask features, depth profile and coordinates add to the stem
    class_maps: tuple[Tensor, ...]  # per level (B, K, h / 2^l, w / 2^l), fraction of each class in a pixel
    style: Tensor  # (B, E)
    tokens: Tensor | None = None  # (B, N, D) places of the context, what they look like and where they are


def one_hot(mask: Tensor, classes: int) -> Tensor:
    """(B, H, W) class indices -> (B, K, H, W) float; an index outside 0..K-1 (NO_MASK) means "no mask" there."""
    indices = torch.arange(classes, device=mask.device).view(1, classes, 1, 1)
    return (mask.to(torch.int64)[:, None] == indices).to(torch.float32)


class Affine(nn.Module):
    """A scale and a shift per channel: what is left of a normalisation whose statistics are constants."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def normalisation(channels: int, config: NetworkConfig) -> nn.Module:
    """The norm of a network; a group norm takes sixteen channels a group."""
    return nn.GroupNorm(channels // 16, channels) if config.norm == "group" else Affine(channels)


def zero_init(module: nn.Conv2d | nn.Linear) -> Any:
    """Start a residual branch at nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class StyleEncoder(nn.Module):
    """Context bands (B, C, h, w) -> style (B, E), depth profile (B, 2 P, h, 1) and features (B, D, h / 4, w / 4)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = (config.context_channels, *STYLE_WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=1 if level == 0 else 2, padding=1)
            for level, (inner, outer) in enumerate(pairwise(channels))
        )
        self.profile = nn.Conv2d(STYLE_WIDTHS[0], PROFILE_CHANNELS, 1)
        self.project = nn.Sequential(
            nn.Linear(2 * sum(STYLE_WIDTHS), config.embedding), nn.SiLU(), nn.Linear(config.embedding, config.embedding)
        )

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        statistics = []
        features = latent
        profile = latent
        for level, convolution in enumerate(self.convolutions):
            features = F.silu(convolution(features))
            statistics += mean_and_deviation(features, dims=(2, 3))
            if level == 0:
                profile = torch.cat(mean_and_deviation(self.profile(features), dims=(3,)), dim=1)  # (B, 2 P, h, 1)
        return self.project(torch.cat([item.flatten(1) for item in statistics], dim=1)), profile, features


def coordinates(like: Tensor) -> Tensor:
    """(1, 2, h, w) depth and side of each pixel of a (B, C, h, w) tensor, -1..1."""
    height, width = like.shape[2:]
    depth = torch.linspace(-1.0, 1.0, height, device=like.device).view(1, 1, height, 1).expand(1, 1, height, width)
    side = torch.linspace(-1.0, 1.0, width, device=like.device).view(1, 1, 1, width).expand(1, 1, height, width)
    return torch.cat([depth, side], dim=1)


def mean_and_deviation(features: Tensor, *, dims: tuple[int, ...]) -> list[Tensor]:
    """Mean and standard deviation over `dims`, kept as size 1."""
    mean = features.mean(dims, keepdim=True)
    variance = (features - mean).square().mean(dims, keepdim=True)
    return [mean, (variance + 1e-4).sqrt()]


def fit_height(profile: Tensor, height: int) -> Tensor:
    """(B, P, h, 1) -> (B, P, height, 1): rows averaged, or repeated, where the context's grid is not the latents'."""
    rows = profile.shape[2]
    if rows > height:
        return F.avg_pool2d(profile, (rows // height, 1))
    return profile if rows == height else F.interpolate(profile, size=(height, 1), mode="nearest")


class FibreBranch(nn.Module):
    """Fibre field (B, 3, 16, 16) -> features (B, FIBRE_FEATURES, h, w) for the stem, h and w multiples of 16.

    They are computed at the field's own size, where a place sees far around it at hardly any cost.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.conv_in = nn.Conv2d(fibres.CHANNELS, FIBRE_WIDTH, 3, padding=1)
        self.conv_out = nn.Conv2d(FIBRE_WIDTH, FIBRE_FEATURES, 3, padding=1)
        # Further columns of the stem, kept here so that a teacher without the branch fits. They start at nothing.
        self.stem = zero_init(nn.Conv2d(FIBRE_FEATURES, config.widths[0], 3, padding=1, bias=False))

    def forward(self, field: Tensor, height: int) -> Tensor:
        features: Tensor = self.conv_out(self.activation(self.conv_in(field)))
        scale = height // fibres.SIDE
        return features if scale == 1 else F.interpolate(features, scale_factor=float(scale), mode="bilinear")


class Block(nn.Module):
    """Residual block.

    The second normalisation is modulated by time and style (per channel) and by class (per pixel).
    """

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.norm_in = normalisation(channels, config)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = normalisation(channels, config)
        self.film = zero_init(nn.Linear(config.embedding, 2 * channels))
        self.clade = zero_init(nn.Conv2d(config.classes, 2 * channels, 1, bias=False))
        self.conv_out = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor, embedding: Tensor, class_map: Tensor) -> Tensor:
        hidden = self.norm_out(self.conv_in(self.activation(self.norm_in(features))))
        modulation = self.clade(class_map) + self.film(embedding)[:, :, None, None]  # (B, 2 C, h, w)
        scale, shift = modulation.chunk(2, dim=1)
        return features + self.conv_out(self.activation(hidden + hidden * scale + shift))


class Attention(nn.Module):
    """Multi-head self-attention over all pixels of the coarsest level."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = normalisation(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        _, channels, height, width = features.shape
        qkv = self.qkv(self.norm(features)).reshape(-1, 3 * self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(2, 3).chunk(3, dim=1)  # each (B, heads, h w, C / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return features + self.out(mixed.transpose(2, 3).reshape(-1, channels, height, width))


class CrossAttention(nn.Module):
    """Multi-head attention of every pixel of the coarsest level to the tokens of the context."""

    def __init__(self, channels: int, token_width: int, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = normalisation(channels, config)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Linear(token_width, 2 * channels)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        _, channels, height, width = features.shape
        each = channels // self.heads
        query = self.query(self.norm(features)).reshape(-1, self.heads, each, height * width).transpose(2, 3)
        pairs = self.key_value(tokens).reshape(-1, tokens.shape[1], 2 * self.heads, each).transpose(1, 2)
        key, value = pairs.chunk(2, dim=1)  # each (B, heads, N, C / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return features + self.out(mixed.transpose(2, 3).reshape(-1, channels, height, width))


class Stage(nn.Module):
    """Block and, where the network has them, attention to itself and to the context, at the coarsest level."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.widths[-1]
        self.block = Block(channels, config)
        self.attention = Attention(channels, config) if config.attention else None
        self.cross = CrossAttention(channels, TOKEN_WIDTH, config) if config.context_tokens else None

    def forward(self, features: Tensor, embedding: Tensor, conditions: Conditions) -> Tensor:
        features = self.block(features, embedding, conditions.class_maps[-1])
        if self.attention is not None:
            features = self.attention(features)
        return features if self.cross is None else self.cross(features, conditions.tokens)


class CsgUNet(nn.Module):
    """Velocity of the flow at (latent, timestep), given mask and context (see `process` for the flow)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths, levels = config.widths, range(len(config.widths))
        self.mask_stem = nn.Conv2d(config.classes, config.mask_features, config.patch, stride=config.patch)
        self.style = StyleEncoder(config)
        self.time = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES, config.embedding), nn.SiLU(), nn.Linear(config.embedding, config.embedding)
        )
        stem = config.latent_channels + config.mask_features + 2 * PROFILE_CHANNELS + 2
        self.stem = nn.Conv2d(stem, widths[0], 3, padding=1)  # of latent and conditions, each its own columns
        self.fibres = FibreBranch(config) if config.fibres else None

        # Skips are added, not concatenated: cheaper, and a quantiser never meets two distributions in one tensor.
        self.down = nn.ModuleList(self._level(level) for level in levels)
        self.downsample = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in pairwise(widths)
        )
        self.middle_in = Block(widths[-1], config)
        self.attention = Attention(widths[-1], config) if config.attention else None
        self.middle_out = Block(widths[-1], config)
        self.deeper = nn.ModuleList(Stage(config) for _ in range(config.deeper))
        self.up = nn.ModuleList(self._level(level) for level in levels)
        self.upsample = nn.ModuleList(nn.Conv2d(outer, inner, 3, padding=1) for inner, outer in pairwise(widths))
        self.activation = ACTIVATIONS[config.activation]
        self.norm = normalisation(widths[0], config)
        self.head = zero_init(nn.Conv2d(widths[0], config.latent_channels, 3, padding=1))

    def _level(self, level: int) -> nn.ModuleList:
        return nn.ModuleList(Block(self.config.widths[level], self.config) for _ in range(self.config.blocks[level]))

    def embed_time(self, timestep: Tensor) -> Tensor:
        """(B,) timesteps in 0..1 -> (B, E)."""
        exponents = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=timestep.device) / TIME_FREQUENCIES
        angles = timestep[:, None].float() * 1000.0 * torch.exp(-math.log(10_000.0) * exponents)
        return self.time(torch.cat([angles.cos(), angles.sin()], dim=1))

    def class_maps(self, classes: Tensor) -> tuple[Tensor, ...]:
        """One-hot mask (B, K, H, W) -> the fraction of each class in a pixel of each level."""
        maps = [F.avg_pool2d(classes, self.config.patch)]
        for _ in self.config.widths[1:]:
            maps.append(F.avg_pool2d(maps[-1], 2))
        return tuple(maps)

    def encode_conditions(
        self, classes: Tensor, maps: tuple[Tensor, ...], context: Tensor, keep_context: Tensor, field: Tensor | None
    ) -> Conditions:
        """What every step shares.

        classes: one-hot mask (B, K, H, W); maps: its `class_maps`; context: its block DCT (B, D, h', w'); keep_context:
        1 or 0 per image (B,); field: fibre field (B, 3, 16, 16), its third channel 1, or zeros for an image without;
        None: none has one.
        """
        style, profile, features = self.style(context)
        keep = keep_context.to(style.dtype)
        mask_features = self.mask_stem(classes)
        profile = fit_height(profile, mask_features.shape[2])
        like = torch.zeros_like(mask_features[:, :1])
        # Ones that no exporter knows to be constant: a constant among what is put together keeps this convolution, the
        # largest of the conditions', in 16 bits, since quantisers leave constants alone.
        ones = (keep > -1).to(keep.dtype).view(-1, 1, 1, 1)
        places = coordinates(like) * ones
        given = torch.cat([mask_features, profile * keep.view(-1, 1, 1, 1) + like, places], dim=1)
        # The conditions' part of the stem is the same at every step.
        weight = self.stem.weight[:, self.config.latent_channels :]
        if self.fibres is not None:
            if field is None:  # dropped, as training drops it
                field = like.new_zeros(len(like), *fibres.SHAPE)
            given = torch.cat([given, self.fibres(field, like.shape[2])], dim=1)
            weight = torch.cat([weight, self.fibres.stem.weight], dim=1)
        stem = F.conv2d(given, weight, self.stem.bias, padding=1)
        tokens = None
        if self.config.context_tokens:
            grid = coordinates(features)
            tokens = torch.cat([features, grid + torch.zeros_like(features[:, :1])], dim=1)
            tokens = (tokens * keep.view(-1, 1, 1, 1)).flatten(2).transpose(1, 2)  # (B, N, D); zeros for no context
        return Conditions(stem, maps, style * keep.view(-1, 1), tokens)

    def forward(self, latent: Tensor, time_embedding: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, h, w) latent, (B or 1, E) time embedding -> (B, C, h, w) velocity."""
        embedding = F.silu(time_embedding + conditions.style)
        maps = conditions.class_maps
        features = F.conv2d(latent, self.stem.weight[:, : self.config.latent_channels], padding=1) + conditions.stem
        skips = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                features = self.downsample[level - 1](features)
            for block in blocks:
                features = block(features, embedding, maps[level])
            skips.append(features)

        features = self.middle_in(features, embedding, maps[-1])
        if self.attention is not None:
            features = self.attention(features)
        features = self.middle_out(features, embedding, maps[-1])
        for stage in self.deeper:
            features = stage(features, embedding, conditions)

        for level in reversed(range(len(self.up))):
            features = features + skips[level]
            for block in self.up[level]:
                features = block(features, embedding, maps[level])
            if level > 0:  # convolve at the coarser size: a quarter of the work
                features = F.interpolate(self.upsample[level - 1](features), scale_factor=2.0, mode="nearest")
        return self.head(self.activation(self.norm(features)))
