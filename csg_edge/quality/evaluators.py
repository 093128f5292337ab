"""The two frozen networks that judge images: an independent segmenter and an in-domain encoder.

They are trained on train groups only (`fit_evaluators`), take part in no training loss, and are pinned by hash, so that
figures of different days can be compared. Architectures are MONAI's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from monai.losses.dice import DiceLoss
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.errors import BundleError, InputError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.quality.descriptors import joint_features, standardise
from csg_edge.storage import write_json, written_whole

SHIPPED = Path(__file__).parent / "evaluators_msk"
RECORD_NAME = "evaluators.json"
EMBEDDING = 64  # features behind KID, MMD, Frechet: few enough for a Frechet distance from some hundred images
WIDTHS = (0.7, 1.4, 2.8)  # of the Gaussians between the bands, pixels
BAND_GAIN = 8.0  # brings the bands of real images, 0.05 on average, to the size of their grey levels
BATCH = 4  # what fits a cache; 32 images at once took half as long again

LIMITS = (
    "The segmenter and the encoder saw some hundred real images and the phantom: they know these sets' anatomy and "
    "these machines' speckle, and say little about other body regions or scanners until fitted to them.",
    "The encoder was taught to see blur, grain, noise and gain; a flaw of another kind can escape it. "
    "The C2ST on pixels, which is trained afresh on each engine's images, is the guard against that.",
    "In the nerve and vessel set everything but nerve and vessel is unlabelled, so Dice there judges these two alone. "
    "Where a set labels one structure of several, only it and its surroundings count.",
)


@dataclass(frozen=True)
class Evaluators:
    """The frozen networks and what they are fit for."""

    segmenter: nn.Module
    encoder: Encoder
    schema: LabelSchema
    image_size: int
    sha256: dict[str, str]
    record: dict[str, object]  # how they were trained and what they scored on held-out groups

    @torch.inference_mode()
    def segment(self, images: Image) -> Image:
        """(N, H, W) uint8 images -> (N, H, W) uint8 class indices."""
        labels = [self.segmenter(_grey(images, start)).argmax(1) for start in range(0, len(images), BATCH)]
        return torch.cat(labels).to(torch.uint8).numpy()

    def describe(self, samples: LabelledSet) -> Described:
        """All features of some images.

        Those of images with their masks come from a bank of filters (`descriptors.joint_features`): an encoder that was
        also shown the masks did not learn to notice one moved by 8 pixels, the filters do.
        """
        found = self._features(samples.images)
        joint = joint_features(samples, classes=len(self.schema))
        style = torch.cat(found.statistics[:2], 1).numpy()
        return Described(found.embedding.numpy(), joint, torch.cat(found.statistics, 1).numpy(), style)

    def style(self, images: Image) -> NDArray[np.float32]:
        """(N, D) channel means and deviations of the two shallow stages: texture and gain, hardly any anatomy."""
        return torch.cat(self._features(images).statistics[:2], 1).numpy()

    @torch.inference_mode()
    def _features(self, images: Image) -> Features:
        if images.shape[1:] != (self.image_size, self.image_size):
            raise InputError(
                f"images of {images.shape[1:]}: these evaluators judge {self.image_size} x {self.image_size}; "
                "read the data at that size or fit evaluators of your own"
            )
        parts = [self.encoder(_grey(images, start)) for start in range(0, len(images), BATCH)]
        statistics = [torch.cat(found) for found in zip(*(part.statistics for part in parts), strict=True)]
        return Features(torch.cat([part.embedding for part in parts]), statistics)


@dataclass(frozen=True)
class Described:
    """Features of N images.

    embedding: (N, 64), of the images alone. joint: (N, J), of images with their masks. pyramid: (N, D), channel means
    and deviations at every depth of the network, for the C2ST. style: (N, S), those of the two shallow stages as they
    are, never in units of a reference.
    """

    embedding: NDArray[np.float32]
    joint: NDArray[np.float32]
    pyramid: NDArray[np.float32]
    style: NDArray[np.float32]

    def standardised(self, reference: Described) -> Described:
        """In units of the reference's deviation around its mean; embeddings then as directions of length sqrt(D).

        The cubic kernel of KID is all outliers otherwise: with some sixty real images one odd one decided it.
        """
        return Described(
            _direction(standardise(reference.embedding, self.embedding)[1]),
            standardise(reference.joint, self.joint)[1],
            standardise(reference.pyramid, self.pyramid)[1],
            self.style,
        )

    @classmethod
    def join(cls, parts: Sequence[Described]) -> Described:
        """Several as one."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    def take(self, indices: NDArray[np.intp]) -> Described:
        """The features of the images at some positions."""
        parts = (self.embedding, self.joint, self.pyramid, self.style)
        return Described(*(part[indices] for part in parts))


@dataclass(frozen=True)
class Features:
    """What the encoder says of a batch: (B, 64) embedding and, per stage, (B, 2C) channel means and deviations."""

    embedding: Tensor
    statistics: list[Tensor]


def _direction(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt((features**2).mean(axis=1, keepdims=True))
    return np.asarray(features / np.maximum(length, 1e-6), np.float32)


class Encoder(nn.Module):
    """A small ResNet over an image and its fine bands.

    The bands (differences of Gaussians) are given, not learned: of the power of an ultrasound image so little is fine
    that filters learned from grey levels alone did not notice a blur of two pixels.
    """

    gaussians: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = ResNet(
            "basic", [1, 1, 1, 1], [32, 64, 128, 256], spatial_dims=2, n_input_channels=1 + len(WIDTHS),
            conv1_t_size=5, conv1_t_stride=2, no_max_pool=True, feed_forward=False,
        )  # fmt: skip
        self.embedding = nn.Linear(2 * (32 + 64 + 128 + 256), EMBEDDING)
        self.register_buffer("gaussians", torch.stack([_gaussian(width) for width in WIDTHS]), persistent=False)

    def forward(self, grey: Tensor) -> Features:
        """(B, 1, H, W) grey in -1..1 -> features."""
        hidden = torch.cat([grey, self._bands(grey)], 1).contiguous(memory_format=torch.channels_last)
        hidden = self.body.act(self.body.bn1(self.body.conv1(hidden)))
        statistics = []
        for stage in (self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4):
            hidden = stage(hidden)
            found = hidden.float()
            statistics.append(torch.cat([found.mean((2, 3)), found.std((2, 3))], 1))
        return Features(self.embedding(torch.cat(statistics, 1)).float(), statistics)

    def _bands(self, grey: Tensor) -> Tensor:
        count, length = self.gaussians.shape
        # Across, then down: a tenth of the time of square kernels. In float32 also where the rest is in bf16, which
        # would round the finest band away.
        with torch.autocast(grey.device.type, enabled=False):
            padded = F.pad(grey.float(), (length // 2,) * 4, mode="reflect").contiguous()
            across = F.conv2d(padded, self.gaussians.view(count, 1, 1, length))
            smooth = F.conv2d(across, self.gaussians.view(count, 1, length, 1), groups=count)
            levels = torch.cat([grey.float(), smooth], 1)
            return BAND_GAIN * (levels[:, :-1] - levels[:, 1:])


def _gaussian(width: float) -> Tensor:
    reach = torch.arange(-8, 9, dtype=torch.float32)
    line = torch.exp(-(reach**2) / (2.0 * width**2))
    return line / line.sum()


def make_segmenter(classes: int, *, activation: str = "prelu") -> nn.Module:
    """A residual U-Net of 0.7 M parameters: (B, 1, H, W) grey in -1..1 -> (B, K, H, W) scores."""
    return UNet(
        2, 1, classes, channels=(16, 32, 64, 128, 192), strides=(2, 2, 2, 2), num_res_units=1, norm="batch",
        act=activation,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def segmentation_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus Dice loss over the foreground classes that the batch holds.

    (B, K, H, W) scores, (B, H, W) uint8 masks; pixels of NO_MASK teach nothing. A class that is nowhere in the batch
    has no Dice: counting it would only teach the network to be silent about rare classes.
    """
    known = masks != NO_MASK
    entropy = F.cross_entropy(scores, masks.long(), ignore_index=NO_MASK)
    present = [label for label in masks.unique().tolist() if 0 < label < NO_MASK]
    if not present:
        return entropy
    chance = scores.softmax(1)[:, present] * known[:, None]
    wanted = torch.stack([masks == label for label in present], 1)
    return entropy + DiceLoss(batch=True)(chance, wanted)


def grey_levels(images: Tensor) -> Tensor:
    """(B, H, W) uint8 -> (B, 1, H, W) float32 in -1..1."""
    return (images[:, None].float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _grey(images: Image, start: int) -> Tensor:
    return grey_levels(torch.from_numpy(images[start : start + BATCH]))


def save_evaluators(
    directory: Path, segmenter: nn.Module, encoder: Encoder, *, schema: LabelSchema, image_size: int,
    record: dict[str, object],
) -> None:  # fmt: skip
    """Write both networks in fp16 and `evaluators.json` with their hashes."""
    directory.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, network in (("segmenter", segmenter), ("encoder", encoder)):
        path = directory / f"{name}.safetensors"
        state = network.state_dict()
        half = {key: value.half().contiguous() if value.is_floating_point() else value for key, value in state.items()}
        with written_whole(path) as aside:
            save_file(half, aside)
            aside.chmod(0o644)  # safetensors writes for the owner alone
        hashes[name] = _sha256(path)
    values = {"labels": list(schema.names), "image_size": image_size, "sha256": hashes, "record": record}
    write_json(directory / RECORD_NAME, values)


def load_evaluators(directory: Path = SHIPPED, *, schema: LabelSchema | None = None) -> Evaluators:
    """Read frozen evaluators and check their hashes.

    Raises BundleError for missing or altered files, InputError if `schema` differs from theirs.
    """
    try:
        values = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        own = LabelSchema(tuple(values["labels"]))
        hashes = {name: values["sha256"][name] for name in ("segmenter", "encoder")}
        size = int(values["image_size"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{directory}: no evaluators there ({error}); fit them with csg-edge fit-evaluators"
        ) from None
    if schema is not None and schema != own:
        raise InputError(
            f"evaluators in {directory} know the classes {', '.join(own.names)}, the bundle has "
            f"{', '.join(schema.names)}; fit evaluators for it with csg-edge fit-evaluators"
        )
    segmenter, encoder = make_segmenter(len(own)), Encoder()
    for name, network in (("segmenter", segmenter), ("encoder", encoder)):
        path = directory / f"{name}.safetensors"
        try:
            if _sha256(path) != hashes[name]:
                raise BundleError(f"{path}: does not match its hash in {RECORD_NAME}; copy or fit the evaluators again")
            network.load_state_dict(
                {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
            )
        except (OSError, SafetensorError, RuntimeError) as error:
            raise BundleError(f"{path}: cannot read ({error}); copy or fit the evaluators again") from None
        network.eval().requires_grad_(False)
    return Evaluators(segmenter, encoder.to(memory_format=torch.channels_last), own, size, hashes, values["record"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
