"""Training batches: group-balanced draws, augmentation that respects ultrasound, contexts, condition dropout.

Batch k of seed s depends on (s, k) alone, so a resumed run sees exactly the batches an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import fibres
from csg_edge.conditions.contexts import ContextBank, style_of
from csg_edge.conditions.fibres import Field
from csg_edge.datasets.augmentation import Bend, Geometry, Look, Warp, warp
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema

Image = NDArray[np.uint8]
Drawn = TypeVar("Drawn")
DrawGeometry = Callable[[np.random.Generator], Geometry]
LOOK_ALIKES = 8
"""Images of other groups among which a context is drawn."""


class Batch(NamedTuple):
    """Images with their conditions."""

    image: Image  # (B, H, W)
    mask: Image  # (B, H, W)
    context: Image  # (B, H, W)
    field: Field  # (B, 3, 16, 16) fibre field of each image; zeros where it was dropped or none is wanted


@dataclass(frozen=True)
class Example:
    """What is drawn for one image of a batch: numbers from which its pixels follow, here or on a GPU."""

    which: int  # set
    index: int  # image of the set
    look: Look
    geometry: Geometry | None
    flip: bool
    context: int | Warp | None  # another image of the set, the same at another geometry, or none
    mask_kept: bool
    field_kept: bool


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

    geometry: how every second image is bent. contexts: whether any are wanted. Without them they are black, nothing is
    looked at for which images are alike, and a set may be of one group. own_contexts: share of contexts that are the
    image itself at another geometry; the rest are images of other groups that look alike. field_dropout: share of
    fibre fields that are dropped; None where no field is wanted.
    """

    def __init__(
        self, sets: list[LabelledSet], weights: list[float], *, batch: int, dropout: float, seed: int,
        contexts: bool = True, own_contexts: float = 0.5, geometry: DrawGeometry = Bend.draw,
        field_dropout: float | None = None,
    ) -> None:  # fmt: skip
        if len({item.images.shape[1:] for item in sets}) != 1:
            raise TrainingError("training sets differ in image size; read them at one size")
        self.sets, self.batch_size, self.dropout, self.seed = sets, batch, dropout, seed
        self.geometry, self.own_contexts, self.field_dropout = geometry, own_contexts, field_dropout
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
        pixels = [self._pixels(example) for example in self.examples(index)]
        return Batch(*(np.stack(column) for column in zip(*pixels, strict=True)))

    def examples(self, index: int) -> list[Example]:
        """What is drawn for the images of one iteration."""
        random = np.random.default_rng([self.seed, index])
        return [self.example(random) for _ in range(self.batch_size)]

    def stream(self, start: int, stop: int, *, ahead: int = 3) -> Iterator[tuple[int, Batch]]:
        """Batches start..stop-1, prepared ahead in a thread."""
        yield from prepared_ahead(self.draw, start, stop, ahead=ahead)

    def example(self, random: np.random.Generator) -> Example:
        """What is drawn for one image of a batch."""
        which = int(random.choice(len(self.sets), p=self.shares))
        groups = self.groups[which]
        group = random.choice(len(groups), p=self.group_shares[which])
        index = int(random.choice(groups[group]))
        look = Look.draw(random)
        geometry = self.geometry(random) if random.random() < 0.5 else None  # the other half keeps every pixel
        flip = random.random() < 0.5
        context: int | Warp | None = None
        if self.look_alikes:
            # What a context shows is worth reading only if the image looks like it. So it is either the image itself at
            # another geometry or, as in use, an image of another group that looks alike (phase 2 of CSG).
            if random.random() >= self.own_contexts:
                context = int(random.choice(self.look_alikes[which][index]))
            else:
                context = Warp.draw(random, strength=2.5)
        mask_kept = random.random() >= self.dropout
        context = context if random.random() >= self.dropout else None
        field_kept = self.field_dropout is not None and random.random() >= self.field_dropout
        return Example(which, index, look, geometry, flip, context, mask_kept, field_kept)

    def _pixels(self, example: Example) -> tuple[Image, Image, Image, Field]:
        data = self.sets[example.which]
        original, mask, shape = data.images[example.index], data.masks[example.index], data.images.shape[1:]
        image = original
        if example.geometry is not None:
            maps = example.geometry.maps(shape)
            image, mask = warp(image, maps), warp(mask, maps, labels=True)
        if example.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image = example.look.apply(image)
        context = np.zeros_like(image)
        if isinstance(example.context, Warp):
            context = example.look.apply(warp(original, example.context.maps(shape)))
        elif example.context is not None:
            context = example.look.apply(data.images[example.context])
        if not example.mask_kept:
            mask = np.full_like(mask, NO_MASK)
        field = np.zeros((fibres.CHANNELS, fibres.SIDE, fibres.SIDE), np.float32)
        if example.field_kept:
            field = fibres.field_of_image(image)
        return image, mask, context, field


def prepared_ahead(
    draw: Callable[[int], Drawn], start: int, stop: int, *, ahead: int
) -> Iterator[tuple[int, Drawn]]:  # fmt: skip
    """What `draw` gives for start..stop-1, up to `ahead` of them drawn in a thread before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        pending: dict[int, Future[Drawn]] = {}
        try:
            for index in range(start, stop):
                for later in range(index, min(index + ahead, stop)):
                    if later not in pending:
                        pending[later] = pool.submit(draw, later)
                yield index, pending.pop(index).result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_training_sets(roots: list[Path], schema: LabelSchema, *, split: str, size: int) -> list[LabelledSet]:
    """All labelled sets below the given folders."""
    return [read_set(directory, schema, split=split, size=size) for root in roots for directory in find_sets(root)]


def weights_of(sets: list[LabelledSet], shares: tuple[tuple[str, float], ...]) -> list[float]:
    """How often each set is drawn: 1, or what `shares` says by name.

    Raises TrainingError for a name that no set has, or where nothing is left to draw.
    """
    # Every set counts alike unless told: the classes of a small set are as much wanted as those of a large one.
    wanted = dict(shares)
    weights = [wanted.pop(item.name, 1.0) for item in sets]
    if wanted:
        names = ", ".join(item.name for item in sets)
        raise TrainingError(f"share of {', '.join(wanted)}: no such set; the sets are {names}")
    if not any(weights):
        raise TrainingError("every set has a share of 0; give one a share above it")
    return weights
