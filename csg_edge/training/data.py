"""Training batches: group-balanced draws, augmentation that respects ultrasound, contexts, condition dropout.

Batch k of seed s depends on (s, k) alone, so a resumed run sees exactly the batches an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csg_edge.contexts import ContextBank, style_of
from csg_edge.datasets import LabelledSet, find_sets, read_set
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema

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
    """Sampling maps of another geometry: flip, zoom, shift, tilt and a smooth elastic field.

    Never upside down: depth has a meaning.
    """
    x, y = _grid(shape)
    if random.random() < 0.5:
        x = -x
    zoom = np.exp(random.uniform(-0.15, 0.05) * strength)
    tilt = np.deg2rad(random.uniform(-4.0, 4.0)) * strength
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2) * strength
    elastic = _elastic(shape, random, 0.006 * strength)
    warped_x = zoom * (x * np.cos(tilt) - y * np.sin(tilt)) + shift_x + elastic[0]
    warped_y = zoom * (x * np.sin(tilt) + y * np.cos(tilt)) + shift_y + elastic[1]
    return _pixels(warped_x, warped_y)


def draw_bend(shape: tuple[int, int], random: np.random.Generator) -> Maps:
    """Sampling maps of a mild elastic field that vanishes at the borders.

    What is made should look like the images as they are: skin at the top, the scanner's dark frame at the sides. Zoomed
    and shifted training images taught the network to leave both out.
    """
    x, y = _grid(shape)
    inside = np.cos(np.pi * x) * np.cos(np.pi * y)
    elastic = _elastic(shape, random, 0.01)
    return _pixels(x + inside * elastic[0], y + inside * elastic[1])


def _grid(shape: tuple[int, int]) -> Maps:
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return (columns + 0.5) / shape[1] - 0.5, (rows + 0.5) / shape[0] - 0.5


def _elastic(shape: tuple[int, int], random: np.random.Generator, strength: float) -> list[NDArray[np.float32]]:
    coarse = random.normal(0.0, strength, (2, 5, 5)).astype(np.float32)
    size = (shape[1], shape[0])
    return [np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_CUBIC), np.float32) for field in coarse]


def _pixels(x: NDArray[np.float32], y: NDArray[np.float32]) -> Maps:
    height, width = x.shape
    return ((x + 0.5) * width - 0.5).astype(np.float32), ((y + 0.5) * height - 0.5).astype(np.float32)


def warp(image: Image, maps: Maps, *, labels: bool = False) -> Image:
    """Sample an image, or with `labels` a mask (nearest neighbour), through maps."""
    # Lanczos: linear interpolation takes the finest speckle away, and the network learns that.
    interpolation = cv2.INTER_NEAREST if labels else cv2.INTER_LANCZOS4
    return np.asarray(
        cv2.remap(image, *maps, interpolation=interpolation, borderMode=cv2.BORDER_REFLECT_101), dtype=np.uint8
    )


def look_alikes(data: LabelledSet, count: int = LOOK_ALIKES) -> NDArray[np.intp]:
    """(N, count) for every image the ones of other groups nearest to it in style, best first."""
    styles = np.stack([style_of(image) for image in data.images])
    points = ContextBank([Path(name) for name in data.names], styles).points
    squares = np.square(points).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2.0 * points @ points.T
    codes = np.unique(data.groups, return_inverse=True)[1]
    distance[codes[:, None] == codes[None, :]] = np.inf
    count = min(count, len(codes) - int(np.bincount(codes).max()))  # the largest group has the fewest others
    return np.argsort(distance, axis=1)[:, :count]


class BatchSource:
    """Draws batches from several labelled sets; `weights` is each set's share of the draws.

    contexts: whether any are wanted. Without them they are black, nothing is looked at for which images are alike, and
    a set may be of one group.
    """

    def __init__(
        self, sets: list[LabelledSet], weights: list[float], *, batch: int, dropout: float, seed: int,
        contexts: bool = True,
    ) -> None:  # fmt: skip
        if len({item.images.shape[1:] for item in sets}) != 1:
            raise TrainingError("training sets differ in image size; read them at one size")
        self.sets, self.batch_size, self.dropout, self.seed = sets, batch, dropout, seed
        self.shares = np.array(weights) / sum(weights)
        self.groups = [list(item.indices_by_group().values()) for item in sets]
        for item, groups in zip(sets, self.groups, strict=True):
            if contexts and len(groups) < 2:
                raise TrainingError(f"{item.name}: one group only; a context must come from another group")
        # Between uniform over groups (rare groups seen too often) and over images (long cine clips dominate).
        self.group_shares = [np.sqrt([len(group) for group in groups]) for groups in self.groups]
        self.group_shares = [share / share.sum() for share in self.group_shares]
        self.look_alikes = [look_alikes(item) for item in sets] if contexts else None

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

        image, mask = data.images[index], data.masks[index]
        if random.random() < 0.5:  # the other half keeps every pixel
            maps = draw_bend(shape, random)
            image, mask = warp(image, maps), warp(mask, maps, labels=True)
        if random.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image = look.apply(image)

        context = np.zeros_like(image)
        if self.look_alikes:
            # What a context shows is worth reading only if the image looks like it. So it is either the image itself at
            # another geometry or, as in use, an image of another group that looks alike (phase 2 of CSG).
            if random.random() < 0.5:
                context = data.images[int(random.choice(self.look_alikes[which][index]))]
            else:
                context = warp(data.images[index], draw_warp(shape, random, strength=2.5))
            context = look.apply(context)
        if random.random() < self.dropout:
            mask = np.full_like(mask, NO_MASK)
        if random.random() < self.dropout:
            context = np.zeros_like(context)
        return image, mask, context


def read_training_sets(roots: list[Path], schema: LabelSchema, *, split: str, size: int) -> list[LabelledSet]:
    """All labelled sets below the given folders."""
    return [read_set(directory, schema, split=split, size=size) for root in roots for directory in find_sets(root)]
