"""Is an image what its label says, and nobody's image? The segmenter's Dice, copies of real images, twins.

An independent segmenter must find the mask in the image it was made from; an image must not be nearer to a training
image or a context than held-out real images are; and two images of one mask must not be one image twice. The distances
are those of `quality.memorisation`. Images of one mask are alike for their anatomy, so to each other, and to the real
image of the mask, they may be as near as no altered copy is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.sources import Context, Sources
from csg_edge.conditions.arrays import resize_image
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.progress import Progress
from csg_edge.quality.memorisation import CLOSEST, COPY, Reference, image_distances
from csg_edge.quality.segmentation import dice_by_image

ORDINARY = 0.1  # share of real images whose Dice may lie below the limit that they set
HIGHEST = 0.7  # a limit that real images set is not higher
LEAST_HELD_OUT = 20  # images from which a distance that is usual between real ones can be told
SAMPLE = 400  # real images, at most, from which limits are taken

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Verdict:
    """dice: of each class large enough to judge, by name. nearest: distance to the nearest real image but the mask's
    own. faults: empty if the image may be kept, else the classes whose Dice is low, `copy` or `twin`."""

    dice: dict[str, float]
    nearest: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """dice: as in `Verdict`. distances: (M,) to every training image, and other context, in their order."""

    dice: dict[str, float]
    distances: NDArray[np.float32]


class Checks:
    """The checks with their limits; `limits` says them as records have them.

    least: the Dice below which an image is drawn again, for every class, or None: what nine in ten of the set's own
    training images reach, at most HIGHEST. segmenter: a folder of `csg-edge fit-evaluators`, or None for the shipped.
    known: the limits of the same checks, found before.
    Raises InputError for a segmenter of other classes or another image size.
    """

    def __init__(
        self, sources: Sources, *, least: float | None, segmenter: Path | None, known: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        import torch

        from csg_edge.quality.evaluators import SHIPPED, load_evaluators

        # More threads than one wait for those of the engine: 5.6 images a second with two, 8.2 with one, on two cores.
        torch.set_num_threads(1)
        self._evaluators = load_evaluators(segmenter or SHIPPED, schema=sources.schema)
        side = self._evaluators.image_size
        if sources.size != (side, side):
            raise InputError(f"the segmenter judges {side} x {side} images, the bundle makes {sources.size}; fit one "
                             "of its size with csg-edge fit-evaluators")  # fmt: skip
        self._schema: LabelSchema = sources.schema
        self._least_of_all = least
        if least is not None:
            self.least: Mapping[str, float] = {}
        else:
            self.least = _least_dice(sources, self._evaluators.segment) if known is None else known["dice"]
        self._places = {position: place for place, position in enumerate(sources.positions)}
        train = _real(sources, sources.positions)
        held_out = [] if sources.folds else [at for at, item in enumerate(sources.set.examples) if item.split == "val"]
        others = np.stack([sources.context(Context(None, path)) for path in sources.others]) if sources.others else None
        self._reference = Reference(train if others is None else np.concatenate([train, others]))
        self.nearest_allowed = float(_usual_distance(sources, train, held_out) if known is None else known["nearest"])

    @property
    def limits(self) -> dict[str, object]:
        """Limits, and the segmenter by its hash."""
        dice: object = self._least_of_all if self._least_of_all is not None else dict(self.least)
        return {
            "dice": dice, "nearest": self.nearest_allowed, "copy": COPY,
            "segmenter_sha256": self._evaluators.sha256["segmenter"],
        }  # fmt: skip

    def look(self, image: Image, mask: Image) -> Look:
        """See one (H, W) image and its mask at the model's size: alone, so that no other image plays a part.

        This takes the time, and may be done in a thread.
        """
        (score,) = dice_by_image(self._evaluators.segment(image[None]), mask[None])
        return Look({self._schema.names[index]: round(value, 4) for index, value in score.items()},
                    self._reference.distances(image[None])[0])  # fmt: skip

    def judge(self, image: Image, seen: Look, position: int, others: Sequence[Image] = ()) -> Verdict:
        """What was seen of an image, judged. position: of its mask in the set; others: images kept of the same mask."""
        faults = [name for name, value in seen.dice.items() if value < self._limit(name)]
        own = self._places[position]
        to_others = float(np.delete(seen.distances, own).min(initial=1.0))
        if seen.distances[own] < COPY or to_others < self.nearest_allowed:
            faults.append("copy")
        elif len(others) and image_distances(image[None], np.stack(others)).min() < COPY:
            faults.append("twin")
        return Verdict(seen.dice, round(to_others, 4), tuple(faults))

    def _limit(self, name: str) -> float:
        return self.least.get(name, 0.0) if self._least_of_all is None else self._least_of_all


def _least_dice(sources: Sources, segment: object) -> dict[str, float]:
    """By class: what all but ORDINARY of the training images reach, at most HIGHEST."""
    chosen = _spread(sources.positions)
    progress = Progress("segment real images", len(chosen), unit="images")
    found: dict[str, list[float]] = {}
    for start in range(0, len(chosen), 8):
        part = chosen[start : start + 8]
        images, masks = _real(sources, part), np.stack([sources.mask(position) for position in part])
        for score in dice_by_image(segment(images), masks):  # type: ignore[operator]
            for index, value in score.items():
                found.setdefault(sources.schema.names[index], []).append(value)
        progress.advance(len(part))
    return {name: round(min(float(np.quantile(values, ORDINARY)), HIGHEST), 4) for name, values in found.items()}


def _usual_distance(sources: Sources, train: Image, held_out: Sequence[int]) -> float:
    """The distance to the training images that CLOSEST of the held-out ones fall below.

    Where too few are held out, of training images to those of other groups.
    """
    if len(held_out) >= LEAST_HELD_OUT:
        near = image_distances(_real(sources, _spread(held_out)), train).min(axis=1)
        return round(float(np.quantile(near, CLOSEST)), 4)
    groups = np.array([sources.group(position) for position in sources.positions])
    if len(set(groups)) < 2:
        raise InputError(f"{sources.set.path}: one group only; add images of other subjects, or give --no-checks")
    rows = np.array([sources.positions.index(position) for position in _spread(sources.positions)])
    distances = image_distances(train[rows], train)
    distances[groups[rows][:, None] == groups[None]] = np.inf
    return round(float(np.quantile(distances.min(axis=1), CLOSEST)), 4)


def _spread(positions: Sequence[int]) -> list[int]:
    """At most SAMPLE of the positions, evenly."""
    step = max(1, -(-len(positions) // SAMPLE))
    return list(positions[::step])


def _real(sources: Sources, positions: Sequence[int]) -> Image:
    return np.stack([resize_image(sources.read(position)[0], *sources.size) for position in positions])
