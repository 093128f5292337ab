"""Training batches: group-balanced draws, augmentation that respects ultrasound, contexts, condition dropout.

Batch k of seed s depends on (s, k) alone, so a resumed run sees exactly the batches an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csg_edge.datasets import LabelledSet, find_sets, read_set
from csg_edge.errors import TrainingError
from csg_edge.labels import LabelSchema
from csg_edge.training.networks import NO_MASK

Image = NDArray[np.uint8]
LOOK_ALIKES = 8
"""Images of other groups among which a context is drawn."""

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]  # x and y of each pixel, in pixels


class Batch(NamedTuple):
    """Images with their conditions."""

    image: Tensor  # (B, H, W) uint8
    mask: Tensor  # (B, H, W) uint8
    context: Tensor  # (B, H, W) uint8


@dataclass(frozen=True)
class Look:
    """A change of appearance, the same for an image and its context, so that the context tells the look."""

    gamma: float
    gain: float
    slope: float  # relative gain from the top to the bottom of the image

    @classmethod
    def draw(cls, random: np.random.Generator) -> Look:
        if random.random() < 0.3:
            return cls(1.0, 1.0, 0.0)
        return cls(
            float(np.exp(random.normal(0.0, 0.25))), float(np.exp(random.normal(0.0, 0.2))), random.normal(0.0, 0.25)
        )

    def apply(self, image: Image) -> Image:
        depth = np.linspace(-0.5, 0.5, image.shape[0], dtype=np.float32)[:, None]
        levels = (image.astype(np.float32) / 255.0) ** self.gamma
        levels *= self.gain * (1.0 + self.slope * depth)
        return (levels * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def draw_warp(shape: tuple[int, int], random: np.random.Generator, *, strength: float) -> Maps:
    """Sampling maps for flip, zoom, shift, tilt and a smooth elastic field. Never upside down: depth has a meaning."""
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = columns / width - 0.5, rows / height - 0.5
    if random.random() < 0.5:
        x = -x
    zoom = np.exp(random.uniform(-0.15, 0.05) * strength)
    tilt = np.deg2rad(random.uniform(-4.0, 4.0)) * strength
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2) * strength
    coarse = random.normal(0.0, 0.006 * strength, (2, 5, 5)).astype(np.float32)
    elastic = [cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse]
    warped_x = zoom * (x * np.cos(tilt) - y * np.sin(tilt)) + shift_x + elastic[0]
    warped_y = zoom * (x * np.sin(tilt) + y * np.cos(tilt)) + shift_y + elastic[1]
    return ((warped_x + 0.5) * width).astype(np.float32), ((warped_y + 0.5) * height).astype(np.float32)


def warp(image: Image, maps: Maps, *, labels: bool = False) -> Image:
    """Sample an image, or with `labels` a mask (nearest neighbour), through maps of `draw_warp`."""
    interpolation = cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR
    return np.asarray(
        cv2.remap(image, *maps, interpolation=interpolation, borderMode=cv2.BORDER_REFLECT_101), dtype=np.uint8
    )


def appearance(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W) images -> (N, D) how they look: mean and deviation of grey and of fine bands in four depths.

    Standardised over the images. What lies where hardly shows in it.
    """
    rows = []
    for image in images:
        grey = image.astype(np.float32) / 255.0
        blurred = [grey, *(cv2.GaussianBlur(grey, (0, 0), width) for width in (1.0, 2.0, 4.0))]
        bands = [grey, *(fine - coarse for fine, coarse in pairwise(blurred))]
        parts = [part for band in bands for part in np.array_split(band, 4)]
        rows.append([grey.mean(), grey.std()] + [np.log(part.std() + 1e-3) for part in parts])
        rows[-1] += [part.mean() for part in np.array_split(grey, 4)]
    found = np.array(rows, np.float32)
    return (found - found.mean(axis=0)) / (found.std(axis=0) + 1e-6)


def look_alikes(data: LabelledSet, count: int = LOOK_ALIKES) -> NDArray[np.intp]:
    """(N, count) for every image the ones of other groups that look most like it, best first."""
    found = appearance(data.images)
    squares = np.square(found).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2.0 * found @ found.T
    codes = np.unique(data.groups, return_inverse=True)[1]
    distance[codes[:, None] == codes[None, :]] = np.inf
    count = min(count, int((codes != np.bincount(codes).argmax()).sum()))
    return np.argsort(distance, axis=1)[:, :count]


class BatchSource:
    """Draws batches from several labelled sets; `weights` is each set's share of the draws."""

    def __init__(self, sets: list[LabelledSet], weights: list[float], *, batch: int, dropout: float, seed: int) -> None:
        if len({item.images.shape[1:] for item in sets}) != 1:
            raise TrainingError("training sets differ in image size; read them at one size")
        self.sets, self.batch_size, self.dropout, self.seed = sets, batch, dropout, seed
        self.shares = np.array(weights) / sum(weights)
        self.groups = [list(item.indices_by_group().values()) for item in sets]
        for item, groups in zip(sets, self.groups, strict=True):
            if len(groups) < 2:
                raise TrainingError(f"{item.name}: one group only; a context must come from another group")
        # Between uniform over groups (rare groups seen too often) and over images (long cine clips dominate).
        self.group_shares = [np.sqrt([len(group) for group in groups]) for groups in self.groups]
        self.group_shares = [share / share.sum() for share in self.group_shares]
        self.look_alikes = [look_alikes(item) for item in sets]

    def draw(self, index: int) -> Batch:
        """The batch of one iteration."""
        random = np.random.default_rng([self.seed, index])
        examples = [self._example(random) for _ in range(self.batch_size)]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*examples, strict=True)))

    def stream(self, start: int, stop: int, *, ahead: int = 3) -> Iterator[tuple[int, Batch]]:
        """Batches start..stop-1, prepared ahead in a thread."""
        with ThreadPoolExecutor(1) as pool:
            pending: dict[int, Future[Batch]] = {}
            try:
                for index in range(start, stop):
                    for later in range(index, min(index + ahead, stop)):
                        if later not in pending:
                            pending[later] = pool.submit(self.draw, later)
                    yield index, pending.pop(index).result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _example(self, random: np.random.Generator) -> tuple[Image, Image, Image]:
        which = random.choice(len(self.sets), p=self.shares)
        data, groups = self.sets[which], self.groups[which]
        group = random.choice(len(groups), p=self.group_shares[which])
        index = int(random.choice(groups[group]))
        shape = data.images.shape[1:]
        look = Look.draw(random)

        maps = draw_warp(shape, random, strength=1.0)
        image = look.apply(warp(data.images[index], maps))
        mask = warp(data.masks[index], maps, labels=True)

        # What a context shows is worth reading only if the image looks like it. So it is either the image itself at
        # another geometry or, as in use, an image of another group that looks alike (phase 2 of CSG).
        source = index
        if random.random() < 0.5:
            source = int(random.choice(self.look_alikes[which][index]))
        context = look.apply(warp(data.images[source], draw_warp(shape, random, strength=2.5)))

        if random.random() < self.dropout:
            mask = np.full_like(mask, NO_MASK)
        if random.random() < self.dropout:
            context = np.zeros_like(context)
        return image, mask, context


def read_training_sets(roots: list[Path], schema: LabelSchema, *, split: str, size: int) -> list[LabelledSet]:
    """All labelled sets below the given folders."""
    return [read_set(directory, schema, split=split, size=size) for root in roots for directory in find_sets(root)]
