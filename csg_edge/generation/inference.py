"""One inference from its jobs to its pixels: what it is made of, where the images go, and the arrays in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.fibres import Field
from csg_edge.noise import noise_for
from csg_edge.runtimes.base import Handle, Results, Runtime

Image = NDArray[np.uint8]


class Request(NamedTuple):
    """What one image is made of: mask and context at the bundle's image size, seed, what is given of a fibre field."""

    mask: Image
    context: Image
    seed: int
    field: Field | None = None  # None: the graph draws all of it, or takes none


class Place(NamedTuple):
    """Where an image is put, and the fibre field that was used for it; None: it is not asked for."""

    image: Image
    field: Field | None = None


@dataclass
class Slot:
    """Input and output arrays of one inference, used again and again."""

    feeds: Results
    results: Results
    direct: bool = False  # whether the runtime writes the image where it belongs

    def fill(self, jobs: list[Request]) -> None:
        for row, job in enumerate(jobs):
            self.feeds["mask"][row] = job.mask
            self.feeds["context"][row] = job.context
            noise_for(job.seed, self.feeds["noise"].shape[1:], out=self.feeds["noise"][row])
            if "fibre" in self.feeds:
                self.feeds["fibre"][row] = 0.0 if job.field is None else job.field

    def results_into(self, image: Image) -> Results:
        """Where the runtime is to write: one image straight to where it belongs, of several some may only fill up."""
        self.direct = len(self.feeds["mask"]) == 1 and image.flags.c_contiguous
        return {**self.results, "image": image[None]} if self.direct else self.results

    def empty(self, places: Sequence[Place]) -> None:
        """Bring what was made to its places."""
        for row, place in enumerate(places):
            if not self.direct:
                place.image[...] = self.results["image"][row]
            if place.field is not None:
                place.field[...] = self.results["fibre_used"][row]


class Batch:
    """The images of one inference, from their jobs to their pixels."""

    def __init__(self, jobs: list[Request], places: list[Place]) -> None:
        self.jobs, self._places = jobs, places
        self._handle: Handle | None = None

    def start(self, runtime: Runtime, slot: Slot, give_back: Callable[[Slot], None]) -> None:
        self._slot, self._give_back = slot, give_back
        self._handle = runtime.start(slot.feeds, slot.results_into(self._places[0].image))

    def finish(self) -> list[Place]:
        assert self._handle is not None
        self._handle.wait()
        self._slot.empty(self._places)
        self._give_back(self._slot)
        return self._places

    def drop(self) -> None:
        self._handle = None  # cancels, and waits until the memory is free


def batches(jobs: Iterable[Request], place: Callable[[int], Place], rows: int) -> Iterator[Batch]:
    """Jobs gathered by `rows`, each batch with its places; the last may be smaller."""
    gathered: list[Request] = []
    count = 0
    for job in jobs:
        gathered.append(job)
        if len(gathered) == rows:
            yield Batch(gathered, [place(count + row) for row in range(rows)])
            count += rows
            gathered = []
    if gathered:
        yield Batch(gathered, [place(count + row) for row in range(len(gathered))])
