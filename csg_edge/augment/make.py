"""Making the images of a plan: drawn, generated, checked, and drawn again where a check says no.

The work goes by masks: all images of one mask are made together, so that twins among them are found and no other
mask's images play a part. The same plan and set give the same bytes in any order and by any number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.plan import Draw, Look, Plan, draw
from csg_edge.augment.sources import Context, Sources
from csg_edge.conditions.arrays import image_digest
from csg_edge.conditions.fibres import Field, given_field
from csg_edge.conditions.masks import vary_by
from csg_edge.datasets import augmentation
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator

if TYPE_CHECKING:  # it needs the quality extra, which images that are not checked do not
    from csg_edge.augment.checks import Checks
    from csg_edge.augment.checks import Look as Seen

PREFIX = "synthetic_"  # of the names of made images
VARIATION = "variation"  # the fault of a mask that cannot be varied as drawn
_AHEAD = 4  # images that wait for the checks
_NEXT = 7919  # places, a prime, from the context of one attempt to that of the next

Image = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """The images of one mask. position: of the mask in the set; first: number of its first image in the plan."""

    position: int
    count: int
    first: int


@dataclass(frozen=True)
class Ready:
    """One attempt at an image: what goes into the model, at its size."""

    unit: Unit
    repetition: int
    attempt: int
    drawn: Draw
    mask: Image
    context: Image
    field: Field | None
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return name_of(self.unit, self.repetition)


@dataclass(frozen=True)
class Made:
    """One image that may be kept, its mask in the schema's classes, both at the model's size, and its provenance."""

    name: str
    position: int
    image: Image
    mask: Image
    facts: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a unit. tried: attempts by class of the mask; faults: how often each fault was found, by class or
    kind; left_out: names of images that no attempt made."""

    unit: Unit
    made: tuple[Made, ...]
    tried: dict[str, int]
    faults: dict[str, int]
    left_out: tuple[str, ...]


def name_of(unit: Unit, repetition: int) -> str:
    """The name of an image; it says nothing of what it was made from."""
    return f"{PREFIX}{unit.first + repetition:06d}"


def units_of(sources: Sources, numbers: NDArray[np.int64]) -> list[Unit]:
    """The units of a plan. numbers: of images of each of the set's masks, in the order of `sources.positions`."""
    starts = np.concatenate([[0], np.cumsum(numbers)])
    return [
        Unit(position, int(count), int(first))
        for position, count, first in zip(sources.positions, numbers, starts, strict=False)
        if count
    ]


class Maker:
    """Makes the images of units, with one generator. checks: None keeps every image."""

    def __init__(self, plan: Plan, sources: Sources, generator: Generator, checks: Checks | None) -> None:
        self.plan, self.sources, self.generator, self.checks = plan, sources, generator, checks
        manifest = generator.bundle.manifest
        self._takes_fields = manifest.fibre_shape is not None
        if plan.direction is not None and not self._takes_fields:
            raise InputError(f"fibre.direction: bundle {manifest.name} takes no fibre field; leave it out")
        self._engine = {
            "bundle": manifest.name,
            "manifest_sha256": generator.bundle.digest,
            "engine": generator.engine.target,
            "steps": generator.engine.steps,
        }

    def make(self, units: Sequence[Unit]) -> list[Outcome]:
        """Make the images of some units side by side."""
        kept: dict[int, dict[int, Made]] = {unit.position: {} for unit in units}
        tried: dict[int, dict[str, int]] = {unit.position: {} for unit in units}
        faults: dict[int, dict[str, int]] = {unit.position: {} for unit in units}
        waiting = [(unit, repetition) for unit in units for repetition in range(unit.count)]
        for attempt in range(self.plan.attempts):
            failed: list[tuple[Unit, int]] = []
            for ready, image, seen in self._looked_at(self._generate(waiting, attempt, failed, faults)):
                found = kept[ready.unit.position]
                verdict = None
                if self.checks is not None and seen is not None:
                    others = [made.image for made in found.values()]
                    verdict = self.checks.judge(image, seen, ready.unit.position, others)
                for name in self._classes(ready.mask):
                    _count(tried[ready.unit.position], name)
                if verdict is not None and verdict.faults:
                    failed.append((ready.unit, ready.repetition))
                    for fault in verdict.faults:
                        _count(faults[ready.unit.position], fault)
                    continue
                judged = {} if verdict is None else {"dice": verdict.dice, "nearest": verdict.nearest}
                facts = {**ready.facts, "image_sha256": image_digest(image), **judged}
                found[ready.repetition] = Made(ready.name, ready.unit.position, image, ready.mask, facts)
            waiting = sorted(failed, key=lambda row: (row[0].first, row[1]))
            if not waiting:
                break
        return [
            Outcome(
                unit,
                tuple(kept[unit.position][key] for key in sorted(kept[unit.position])),
                tried[unit.position],
                faults[unit.position],
                tuple(name_of(unit, row) for row in range(unit.count) if row not in kept[unit.position]),
            )
            for unit in units
        ]

    def remake(self, facts: dict[str, Any]) -> Made:
        """An image from its provenance. Raises InputError where the set has its mask or context no more."""
        position = self._find(facts["mask_sha256"], "mask", self.sources.mask, self.sources.positions)
        places = [Context(place) for place in self.sources.positions]
        places += [Context(None, path) for path in self.sources.others]
        context = self._find(facts["context_sha256"], "context", self.sources.context, places)
        for key in ("manifest_sha256", "engine", "steps"):
            if facts[key] != self._engine[key]:
                raise InputError(
                    f"{facts['id']}: made by {key} {facts[key]}, this is {self._engine[key]}; give the bundle, engine "
                    "and steps that made it"
                )
        drawn = Draw(
            facts["noise_seed"], facts["vary"], facts["vary_seed"], facts["direction"], 0.0, Look(**facts["look"])
        )
        unit = Unit(position, 1, int(facts["id"].removeprefix(PREFIX)))
        ready = self._condition(unit, 0, facts["attempt"], drawn, context)
        image, _ = next(self._stream(iter([ready])))
        made = {**ready.facts, "image_sha256": image_digest(image)}
        return Made(facts["id"], position, image, ready.mask, made)

    @staticmethod
    def _find(digest: str, kind: str, read: Callable[[T], Image], places: Sequence[T]) -> T:
        for place in places:
            if image_digest(read(place)) == digest:
                return place
        raise InputError(f"no {kind} of SHA-256 {digest[:16]}... in the set; give the set as it was")

    def _looked_at(self, images: Iterator[tuple[Ready, Image]]) -> Iterator[tuple[Ready, Image, Seen | None]]:
        """Each image with what the checks see of it, in order; they look in a thread while others are made."""
        if self.checks is None:
            yield from ((ready, image, None) for ready, image in images)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting: deque[tuple[Ready, Image, Future[Seen]]] = deque()
            for ready, image in images:
                waiting.append((ready, image, thread.submit(self.checks.look, image, ready.mask)))
                if len(waiting) > _AHEAD:
                    first, made, seen = waiting.popleft()
                    yield first, made, seen.result()
            for first, made, seen in waiting:
                yield first, made, seen.result()

    def _generate(
        self, rows: Sequence[tuple[Unit, int]], attempt: int, failed: list[tuple[Unit, int]],
        faults: dict[int, dict[str, int]],
    ) -> Iterator[tuple[Ready, Image]]:  # fmt: skip
        """Images in the order of the rows; rows whose mask cannot be varied as drawn join `failed`."""
        under_way: deque[Ready] = deque()

        def ready() -> Iterator[Ready]:
            for unit, repetition in rows:
                drawn = draw(self.plan, self.sources.set.examples[unit.position].name, repetition, attempt)
                context = self._context(unit, repetition, attempt, drawn)
                try:
                    found = self._condition(unit, repetition, attempt, drawn, context)
                except InputError:
                    failed.append((unit, repetition))
                    _count(faults[unit.position], VARIATION)
                    continue
                under_way.append(found)
                yield found

        for image, _ in self._stream(ready()):
            yield under_way.popleft(), image

    def _stream(self, rows: Iterator[Ready]) -> Iterator[tuple[Image, Field | None]]:
        current: list[Ready] = []

        def masks() -> Iterator[Image]:
            for row in rows:
                current[:] = [row]
                yield row.mask

        def of_current(get: Callable[[Ready], T]) -> Iterator[T]:
            while True:  # asked for after the mask of the same image
                yield get(current[0])

        conditions = masks(), of_current(lambda row: row.context), of_current(lambda row: row.drawn.noise_seed)
        if self._takes_fields:
            yield from self.generator.stream_with_fibres(*conditions, of_current(lambda row: row.field))
        else:
            yield from ((image, None) for image in self.generator.stream(*conditions))

    def _context(self, unit: Unit, repetition: int, attempt: int, drawn: Draw) -> Context:
        if self.plan.select == "diverse":
            ring = self.sources.diverse(unit.position, self.plan.seed)
            return ring[(unit.first + repetition + _NEXT * attempt) % len(ring)]
        allowed = self.sources.allowed(unit.position)
        return allowed[int(drawn.context * len(allowed))]

    def _condition(self, unit: Unit, repetition: int, attempt: int, drawn: Draw, context: Context) -> Ready:
        schema, mask = self.sources.schema, self.sources.mask(unit.position)
        look = self.sources.context(context)
        facts = {
            "id": name_of(unit, repetition), **self._engine, "attempt": attempt, "noise_seed": drawn.noise_seed,
            "mask_sha256": image_digest(mask), "vary": drawn.vary, "vary_seed": drawn.vary_seed,
            "context_sha256": image_digest(look), "look": asdict(drawn.look), "direction": drawn.direction,
        }  # fmt: skip
        if drawn.vary is not None:
            mask = vary_by(mask, schema, drawn.vary, seed=drawn.vary_seed)
        field = None
        if self._takes_fields:
            field = given_field(mask, schema, direction=drawn.direction, vary=drawn.vary, seed=drawn.noise_seed)
        return Ready(unit, repetition, attempt, drawn, mask, changed(look, drawn.look), field, facts)

    def _classes(self, mask: Image) -> list[str]:
        names = self.sources.schema.names
        return [names[index] for index in np.unique(mask) if 0 < index < len(names)]


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def changed(context: Image, look: Look) -> Image:
    """A (H, W) context with another gamma, gain, slope over the depth, and size of speckle."""
    if look == Look():
        return context
    levels: NDArray[Any] = context
    if look.speckle != 1.0:
        height, width = context.shape
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0.0, look.speckle)
        # Cubic: half a per cent more of the finest speckle than Lanczos, in a fifth of its time.
        larger = cv2.warpAffine(
            context.astype(np.float32), turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        levels = np.clip(larger, 0.0, 255.0)
    return augmentation.Look(look.gamma, look.gain, look.tgc).apply(levels)
