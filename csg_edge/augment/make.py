"""Making the images of a plan: drawn, generated, checked, and drawn again where a check says no.

The work goes by masks: the images of one mask are judged together, so that twins among them are found and no other
mask's images play a part. The same plan and set give the same bytes in any order and by any number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.plan import Draw, Look, Plan, draw
from csg_edge.augment.sources import Context, Sources
from csg_edge.conditions.arrays import classes_in, image_digest
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


class _Making:
    """A unit on its way. kept: images by their repetition; left: those of this attempt that are not settled."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.attempt, self.left = unit, 0, unit.count
        self.kept: dict[int, Made] = {}
        self.tried: dict[str, int] = {}
        self.faults: dict[str, int] = {}
        self.failed: list[int] = []

    def outcome(self) -> Outcome:
        missing = [row for row in range(self.unit.count) if row not in self.kept]
        return Outcome(
            self.unit, tuple(self.kept[row] for row in sorted(self.kept)), self.tried, self.faults,
            tuple(name_of(self.unit, row) for row in missing),
        )  # fmt: skip


class _Line:
    """Images in the order in which they are made: those to be drawn again first, then those of the next unit."""

    def __init__(self, units: Iterable[Unit], attempts: int) -> None:
        self._units, self._attempts, self._begun = iter(units), attempts, False
        self._again: deque[tuple[_Making, int]] = deque()
        self._ended: deque[Outcome] = deque()

    def has_more(self) -> bool:
        """Whether `rows` may give any."""
        return not self._begun or bool(self._again)

    def rows(self) -> Iterator[tuple[_Making, int]]:
        """Each image by its unit and repetition, until there is none but those that are under way."""
        self._begun = True
        while True:
            while self._again:
                yield self._again.popleft()
            unit = next(self._units, None)
            if unit is None:
                return
            making = _Making(unit)
            for repetition in range(unit.count):
                yield making, repetition

    def settle(
        self, making: _Making, repetition: int, *, made: Made | None = None, faults: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """Keep an image, or note why not."""
        if made is not None:
            making.kept[repetition] = made
        else:
            making.failed.append(repetition)
            for fault in faults:
                _count(making.faults, fault)
        making.left -= 1
        if making.left:
            return
        failed, making.failed = sorted(making.failed), []
        making.attempt += 1
        if failed and making.attempt < self._attempts:
            making.left = len(failed)
            self._again.extend((making, row) for row in failed)
        else:
            self._ended.append(making.outcome())

    def ended(self) -> Iterator[Outcome]:
        while self._ended:
            yield self._ended.popleft()


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

    def make(self, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Make the images of units, one after the other without a pause; each unit's outcome when its last is settled.

        What a check refused is drawn again when the other images of its unit are settled: only they play a part.
        """
        line = _Line(units, self.plan.attempts)
        while line.has_more():
            for making, ready, image, seen in self._looked_at(self._generate(line)):
                for name in self._classes(ready.mask):
                    _count(making.tried, name)
                verdict = None
                if self.checks is not None and seen is not None:
                    others = [made.image for made in making.kept.values()]
                    verdict = self.checks.judge(image, seen, making.unit.position, others)
                if verdict is not None and verdict.faults:
                    line.settle(making, ready.repetition, faults=verdict.faults)
                else:
                    judged = {} if verdict is None else {"dice": verdict.dice, "nearest": verdict.nearest}
                    facts = {**ready.facts, "image_sha256": image_digest(image), **judged}
                    made = Made(ready.name, making.unit.position, image, ready.mask, facts)
                    line.settle(making, ready.repetition, made=made)
                yield from line.ended()
            yield from line.ended()

    def remake(self, facts: dict[str, Any]) -> Made:
        """An image from its provenance. Raises InputError where the set has its mask or context no more."""
        position = self._find(facts["mask_sha256"], "mask", self.sources.mask_digest, self.sources.positions)
        places = [Context(place) for place in self.sources.positions]
        places += [Context(None, path) for path in self.sources.others]
        context = self._find(facts["context_sha256"], "context", self.sources.context_digest, places)
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
    def _find(digest: str, kind: str, digest_of: Callable[[T], str], places: Sequence[T]) -> T:
        for place in places:
            if digest_of(place) == digest:
                return place
        raise InputError(f"no {kind} of SHA-256 {digest[:16]}... in the set; give the set as it was")

    def _looked_at(
        self, images: Iterator[tuple[_Making, Ready, Image]]
    ) -> Iterator[tuple[_Making, Ready, Image, Seen | None]]:
        """Each image with what the checks see of it, in order; they look in a thread while others are made."""
        if self.checks is None:
            yield from ((*found, None) for found in images)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting: deque[tuple[tuple[_Making, Ready, Image], Future[Seen]]] = deque()
            for found in images:
                waiting.append((found, thread.submit(self.checks.look, found[2], found[1].mask)))
                if len(waiting) > _AHEAD:
                    first, seen = waiting.popleft()
                    yield *first, seen.result()
            for first, seen in waiting:
                yield *first, seen.result()

    def _generate(self, line: _Line) -> Iterator[tuple[_Making, Ready, Image]]:
        """The images of a line in its order; those whose mask cannot be varied as drawn are settled here."""
        under_way: deque[tuple[_Making, Ready]] = deque()

        def ready() -> Iterator[Ready]:
            for making, repetition in line.rows():
                unit, attempt = making.unit, making.attempt
                drawn = draw(self.plan, self.sources.set.examples[unit.position].name, repetition, attempt)
                context = self._context(unit, repetition, attempt, drawn)
                try:
                    found = self._condition(unit, repetition, attempt, drawn, context)
                except InputError:
                    line.settle(making, repetition, faults=(VARIATION,))
                    continue
                under_way.append((making, found))
                yield found

        for image, _ in self._stream(ready()):
            yield *under_way.popleft(), image

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
            "mask_sha256": self.sources.mask_digest(unit.position), "vary": drawn.vary, "vary_seed": drawn.vary_seed,
            "context_sha256": self.sources.context_digest(context), "look": asdict(drawn.look),
            "direction": drawn.direction,
        }  # fmt: skip
        if drawn.vary is not None:
            mask = vary_by(mask, schema, drawn.vary, seed=drawn.vary_seed)
        field = None
        if self._takes_fields:
            field = given_field(mask, schema, direction=drawn.direction, vary=drawn.vary, seed=drawn.noise_seed)
        return Ready(unit, repetition, attempt, drawn, mask, changed(look, drawn.look), field, facts)

    def _classes(self, mask: Image) -> list[str]:
        names = self.sources.schema.names
        return [names[index] for index in classes_in(mask) if 0 < index < len(names)]


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def changed(context: Image, look: Look) -> Image:
    """A (H, W) context with another gamma, gain, slope over the depth, and size of speckle."""
    if look == Look():
        return context
    return augmentation.Look(look.gamma, look.gain, look.tgc).apply(_zoomed(context, look.speckle))


def _zoomed(image: Image, factor: float) -> Image:
    """An (H, W) image made larger or smaller about its middle, of the same size; its mirror image around it."""
    height, width = image.shape
    tall, wide = max(1, round(factor * height)), max(1, round(factor * width))
    if (tall, wide) == (height, width):
        return image
    # Cubic: half a per cent more of the finest speckle than Lanczos, in a fifth of its time.
    zoomed = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_CUBIC)
    above, left = max(0, height - tall) // 2, max(0, width - wide) // 2
    zoomed = cv2.copyMakeBorder(
        zoomed, above, max(0, height - tall) - above, left, max(0, width - wide) - left, cv2.BORDER_REFLECT_101
    )  # fmt: skip
    top, side = max(0, tall - height) // 2, max(0, wide - width) // 2
    return np.ascontiguousarray(zoomed[top : top + height, side : side + width], np.uint8)
