"""Training batches: group-balanced draws, augmentation that respects ultrasound, contexts, condition dropout.

Batch k of seed s depends on (s, k) alone, so a resumed run sees exactly the batches an uninterrupted one would.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import fibres
from csg_edge.conditions.contexts import ContextBank, style_of
from csg_edge.conditions.fibres import Field
from csg_edge.datasets.augmentation import Look, Maps, draw_bend, draw_warp, warp
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema

Image = NDArray[np.uint8]
Geometry = Callable[[tuple[int, int], np.random.Generator], Maps]
LOOK_ALIKES = 8
"""Images of other groups among which a context is drawn."""


class Batch(NamedTuple):
    """Images with their conditions."""

    image: Image  # (B, H, W)
    mask: Image  # (B, H, W)
    context: Image  # (B, H, W)
    field: Field  # (B, 3, 16, 16) fibre field of each image; zeros where it was dropped or none is wanted


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
        contexts: bool = True, own_contexts: float = 0.5, geometry: Geometry = draw_bend,
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
        self._processes: _Processes | None = None

    def draw(self, index: int) -> Batch:
        """The batch of one iteration."""
        random = np.random.default_rng([self.seed, index])
        examples = [self._example(random) for _ in range(self.batch_size)]
        return Batch(*(np.stack(column) for column in zip(*examples, strict=True)))

    def use_processes(self, count: int) -> None:
        """Let `count` processes draw the batches of `stream`. To be called before CUDA or other threads are in use: the
        processes are forks, which share the images of the sets.
        """
        self._processes = _Processes(self, count)

    def stream(self, start: int, stop: int, *, ahead: int = 3) -> Iterator[tuple[int, Batch]]:
        """Batches start..stop-1, prepared ahead in a thread, or in processes after `use_processes`.

        Those of processes lie in memory that is used again: they are to be done with when the next one is asked for.
        """
        if self._processes is not None:
            yield from self._processes.stream(start, stop)
            return
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

    def _example(self, random: np.random.Generator) -> tuple[Image, Image, Image, Field]:
        which = random.choice(len(self.sets), p=self.shares)
        data, groups = self.sets[which], self.groups[which]
        group = random.choice(len(groups), p=self.group_shares[which])
        index = int(random.choice(groups[group]))
        shape = data.images.shape[1:]
        look = Look.draw(random)

        image, mask = data.images[index], data.masks[index]
        if random.random() < 0.5:  # the other half keeps every pixel
            maps = self.geometry(shape, random)
            image, mask = warp(image, maps), warp(mask, maps, labels=True)
        if random.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        image = look.apply(image)

        context = np.zeros_like(image)
        if self.look_alikes:
            # What a context shows is worth reading only if the image looks like it. So it is either the image itself at
            # another geometry or, as in use, an image of another group that looks alike (phase 2 of CSG).
            if random.random() >= self.own_contexts:
                context = data.images[int(random.choice(self.look_alikes[which][index]))]
            else:
                context = warp(data.images[index], draw_warp(shape, random, strength=2.5))
            context = look.apply(context)
        if random.random() < self.dropout:
            mask = np.full_like(mask, NO_MASK)
        if random.random() < self.dropout:
            context = np.zeros_like(context)
        field = np.zeros((fibres.CHANNELS, fibres.SIDE, fibres.SIDE), np.float32)
        if self.field_dropout is not None and random.random() >= self.field_dropout:
            field = fibres.field_of_image(image)
        return image, mask, context, field


class _Processes:
    """Processes that draw batches into memory that they share with this one."""

    def __init__(self, source: BatchSource, count: int) -> None:
        example = source.draw(0)
        self._slots = [_shared_like(example) for _ in range(2 * count + 1)]
        self._pool = ProcessPoolExecutor(
            count, mp_context=get_context("fork"), initializer=_become_drawer, initargs=(source, self._slots)
        )
        threads = cv2.getNumThreads()
        # A process a core. In the child, OpenCV would wait for threads of its pool that do not run there.
        cv2.setNumThreads(1)
        self._pool.submit(int).result()  # so that all are forked now
        cv2.setNumThreads(threads)

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        free, pending = list(range(len(self._slots))), {}
        later = start
        for index in range(start, stop):
            while free and later < stop:
                slot = free.pop()
                pending[later] = slot, self._pool.submit(_draw_into, slot, later)
                later += 1
            slot, drawn = pending.pop(index)
            drawn.result()
            yield index, self._slots[slot]
            free.append(slot)


_drawer: tuple[BatchSource, list[Batch]]


def _become_drawer(source: BatchSource, slots: list[Batch]) -> None:
    global _drawer
    _drawer = source, slots


def _draw_into(slot: int, index: int) -> None:
    source, slots = _drawer
    memory, drawn = slots[slot], source.draw(index)
    memory.image[...], memory.mask[...], memory.context[...], memory.field[...] = drawn


def _shared_like(batch: Batch) -> Batch:
    """A batch in memory that forked processes write into and this one sees."""

    def shared(like: NDArray[Any]) -> NDArray[Any]:
        return np.frombuffer(mmap.mmap(-1, like.nbytes), like.dtype).reshape(like.shape)

    return Batch(shared(batch.image), shared(batch.mask), shared(batch.context), shared(batch.field))


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
