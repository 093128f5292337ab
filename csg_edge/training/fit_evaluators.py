"""Training the evaluators, on train groups only.

The segmenter learns the masks. The encoder learns to measure damage (how much an image was blurred, how coarse its
grain, how noisy, how bright) and how much of each class an image shows. A contrastive loss
was tried first and dropped: its two views of an image are damaged differently, so it taught the encoder not to see what
it is there to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.datasets.labelled_set import Image, LabelledSet, find_sets, read_set, splits_of
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.quality.evaluators import (
    EMBEDDING,
    Encoder,
    grey_levels,
    make_segmenter,
    save_evaluators,
    segmentation_loss,
)
from csg_edge.quality.segmentation import dice_by_image, known_labels
from csg_edge.training.device import autocast
from csg_edge.training.loop import LoopConfig, fit, load_checkpoint, start

DAMAGES = ("blur", "grain", "noise", "gain")


@dataclass(frozen=True)
class FitConfig:
    """Data and budget of the two trainings."""

    data: tuple[Path, ...]
    image_size: int = 256
    segmenter_iterations: int = 3000
    encoder_iterations: int = 500
    seed: int = 0
    precision: str = "fp32"


def fit_evaluators(config: FitConfig, schema: LabelSchema, *, runs: Path, out: Path) -> bool:
    """Train or resume both networks in `runs` and write them to `out`. Returns False when stopped early."""
    roots = list(config.data)
    sets = read_training_sets(roots, schema, split="train", size=config.image_size)
    loop = LoopConfig(
        iterations=config.segmenter_iterations, batch=8, learning_rate=1e-3, warmup=50, decay=0.7, ema=0.995,
        seed=config.seed, precision="fp32",
    )  # fmt: skip
    segmenter = fit_segmenter(sets, len(schema), loop, runs / "segmenter")
    if segmenter is None:
        return False
    loop = replace(
        loop,
        iterations=config.encoder_iterations,
        batch=24,
        learning_rate=2e-3,
        seed=config.seed + 1,
        precision=config.precision,
    )
    encoder = fit_encoder(sets, len(schema), loop, runs / "encoder")
    if encoder is None:
        return False
    held_out = [_held_out_dice(segmenter.eval(), root, schema, config) for root in roots]
    record: dict[str, object] = {
        "trained_on": {item.name: {"images": len(item), "groups": len(set(item.groups))} for item in sets},
        "iterations": {"segmenter": config.segmenter_iterations, "encoder": config.encoder_iterations},
        "seed": config.seed,
        "dice_on_held_out_groups": {name: value for found in held_out for name, value in found.items()},
    }
    save_evaluators(out, segmenter, encoder, schema=schema, image_size=config.image_size, record=record)
    return True


def fit_segmenter(sets: list[LabelledSet], classes: int, loop: LoopConfig, directory: Path) -> nn.Module | None:
    """Train or resume a segmenter in `directory`; None when stopped early."""
    segmenter = make_segmenter(classes)
    return segmenter if _train(segmenter, loop, sets, directory, _segmentation_loss(segmenter)) else None


def fit_encoder(sets: list[LabelledSet], classes: int, loop: LoopConfig, directory: Path) -> Encoder | None:
    """Train or resume an encoder in `directory`; None when stopped early."""
    heads = EncoderHeads(Encoder().to(memory_format=torch.channels_last), classes)
    return heads.encoder if _train(heads, loop, sets, directory, _encoder_loss(heads, loop)) else None


class EncoderHeads(nn.Module):
    """The encoder with the two heads that exist during training only."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.damage = nn.Sequential(nn.ReLU(), nn.Linear(EMBEDDING, len(DAMAGES)))
        self.content = nn.Sequential(nn.ReLU(), nn.Linear(EMBEDDING, classes))


def _train(
    network: nn.Module,
    loop: LoopConfig,
    sets: list[LabelledSet],
    directory: Path,
    loss: Callable[[Image, Image, int], Tensor],
) -> bool:
    torch.manual_seed(loop.seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.reset_parameters()
    # Between sets as between groups (see BatchSource): a set of five clips would else be a sixth of all that is
    # learned.
    shares = [len(set(item.groups)) ** 0.5 for item in sets]
    source = BatchSource(sets, shares, batch=loop.batch, dropout=0.0, seed=loop.seed, contexts=False)
    state = start(network, loop)
    if (directory / "checkpoint.safetensors").exists():
        load_checkpoint(directory / "checkpoint.safetensors", state, loop)
    batches = source.stream(state.iteration, loop.iterations)

    def step(iteration: int) -> Tensor:
        _, batch = next(batches)
        return loss(batch.image, batch.mask, iteration)

    network.train()
    finished = fit(state, step, loop, directory=directory, label=directory.name)
    network.load_state_dict(state.ema)
    return finished


def _segmentation_loss(network: nn.Module) -> Callable[[Image, Image, int], Tensor]:
    def loss(images: Image, masks: Image, iteration: int) -> Tensor:
        known = torch.from_numpy(known_labels(masks))
        return segmentation_loss(network(grey_levels(torch.from_numpy(images))), known)

    return loss


def _encoder_loss(heads: EncoderHeads, loop: LoopConfig) -> Callable[[Image, Image, int], Tensor]:
    def loss(images: Image, masks: Image, iteration: int) -> Tensor:
        random = np.random.default_rng([loop.seed, iteration])
        damaged = [damage(image, random) for image in images]
        grey = grey_levels(torch.from_numpy(np.stack([image for image, _ in damaged])))
        amounts = torch.from_numpy(np.stack([amount for _, amount in damaged]))
        masks = np.where(masks == NO_MASK, np.uint8(0), masks)
        areas = F.one_hot(torch.from_numpy(masks).flatten(1).long(), heads.content[1].out_features).float().mean(1)
        with autocast(torch.device("cpu"), loop.precision):
            embedding = heads.encoder(grey).embedding
        content = (heads.content(embedding) - areas).square().mean()
        return (heads.damage(embedding) - amounts).square().mean() + 3.0 * content

    return loss


def damage(image: Image, random: np.random.Generator) -> tuple[Image, NDArray[np.float32]]:
    """Damage an image by known amounts, each 0 for undamaged and 1 or -1 at most, in the order of DAMAGES."""
    grey = image.astype(np.float32)
    amounts = np.zeros(len(DAMAGES), np.float32)
    chosen = random.random(len(DAMAGES)) < 0.4
    if chosen[0]:
        amounts[0] = random.random()
        grey = cv2.GaussianBlur(grey, (0, 0), 0.3 + 2.2 * float(amounts[0]))
    if chosen[1]:
        # The fine layer alone is stretched or shrunk: the grain changes, the anatomy stays.
        amounts[1] = random.uniform(-1.0, 1.0)
        grey = rescale_grain(grey, 1.6 ** float(amounts[1]))
    if chosen[2]:
        amounts[2] = random.random()
        width_of_noise = random.uniform(0.0, 2.0)
        noise = random.normal(size=grey.shape).astype(np.float32)
        if width_of_noise > 0.3:
            noise = cv2.GaussianBlur(noise, (0, 0), width_of_noise)
        grey = grey + 30.0 * float(amounts[2]) * noise / noise.std() * (grey / 128.0 + 0.2)
    if chosen[3]:
        amounts[3] = random.uniform(-1.0, 1.0)
        grey = grey * 1.4 ** float(amounts[3])
    return (grey + 0.5).clip(0, 255).astype(np.uint8), amounts


def rescale_grain(grey: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Stretch the fine layer of an image about its centre by `factor` and put it back on the coarse layer."""
    height, width = grey.shape
    coarse = cv2.GaussianBlur(grey, (0, 0), 4.0)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 0.0, factor)
    fine = cv2.warpAffine(grey - coarse, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(coarse + fine, np.float32)


@torch.inference_mode()
def _held_out_dice(
    segmenter: nn.Module, root: Path, schema: LabelSchema, config: FitConfig
) -> dict[str, dict[str, float]]:
    """Per set that has a val split, the mean Dice of each class over its images."""
    found = {}
    for directory in find_sets(root):
        if "val" not in splits_of(directory):
            continue
        item = read_set(directory, schema, split="val", size=config.image_size)
        labels = [segmenter(grey_levels(torch.from_numpy(item.images[at : at + 8]))) for at in range(0, len(item), 8)]
        scores = dice_by_image(torch.cat(labels).argmax(1).to(torch.uint8).numpy(), item.masks)
        found[item.name] = {
            schema.names[label]: round(float(np.mean([score[label] for score in scores if label in score])), 4)
            for label in sorted({label for score in scores for label in score})
        }
    return found
