"""A label map taken apart: ground, the layers from the probe down, unbroken across the width, and blobs on top of it.

Blobs are closed shapes: nerve, vessel, tear; one that has a host stays inside it. NumPy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.arrays import class_counts, classes_in
from csg_edge.labels import NO_MASK, LabelSchema

Image = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

NO_BLOB = 255
LAYERS = ("background", "superficial_tissue", "aponeurosis", "muscle", "deep_tissue", "tendon", "bone")
BLOBS = ("nerve", "vessel", "ditf")
CONFINED = {"ditf": "tendon"}  # a tear is a part of its tendon


@dataclass(frozen=True, eq=False)
class Parts:
    """A mask taken apart: ground (H, W) without blobs, and blobs (H, W) with NO_BLOB where there is none.

    Arrays are not written to; what is worked out of them is kept.
    """

    ground: Image
    blobs: Image
    schema: LabelSchema

    @cached_property
    def has_blobs(self) -> bool:
        return int(self.blobs.min()) != NO_BLOB

    @cached_property
    def counts(self) -> tuple[Floats, Floats]:
        """Pixels of each index in the ground and in the blobs."""
        return class_counts(self.ground), class_counts(self.blobs)

    def joined(self) -> Image:
        """The mask; a confined blob is drawn inside its host only."""
        mask = self.ground.copy()
        if not self.has_blobs:
            return mask
        drawn = self.blobs != NO_BLOB
        for name, host in CONFINED.items():
            if name in self.schema.names and host in self.schema.names:
                outside = (self.blobs == self.schema.index(name)) & (self.ground != self.schema.index(host))
                drawn &= ~outside
        cv2.copyTo(self.blobs, drawn.view(np.uint8), mask)
        return mask


def take_apart(mask: Image, schema: LabelSchema, present: Sequence[int] | None = None) -> Parts:
    """Ground and blobs of a mask; under a blob lies its host, or the nearest layer. present: its classes, if known."""
    present = classes_in(mask) if present is None else present
    found = [index for index in present if is_blob(mask, index, schema)]
    table = np.full(256, NO_BLOB, np.uint8)
    table[found] = found
    blobs = np.asarray(cv2.LUT(mask, table), np.uint8)
    layers = [index for index in present if index not in found]
    if len(layers) == 1:
        ground = np.full_like(mask, layers[0])
    else:
        ground = fill(mask, blobs != NO_BLOB) if found else mask.copy()
    for name, host in CONFINED.items():
        if name in schema.names and host in schema.names:
            torn = schema.index(name)
            if torn in present and schema.index(host) in present:
                ground[mask == torn] = schema.index(host)
    return Parts(ground, blobs, schema)


def is_blob(mask: Image, index: int, schema: LabelSchema) -> bool:
    """Whether a class is a closed shape rather than a layer: by its name, else if no part of it is half as wide."""
    if index in (0, NO_MASK) or schema.names[index] in LAYERS:
        return False
    name = schema.names[index]
    return name in BLOBS or all(box[2] < mask.shape[1] / 2 for _, box in components(mask == index))


def components(region: Bools) -> list[tuple[Bools, tuple[int, int, int, int, int]]]:
    """8-connected parts of a region (H, W): each with its (x, y, width, height, area), the smallest first."""
    # OpenCV's own statistics take seven times as long as its labels.
    count, labels = cv2.connectedComponents(region.view(np.uint8), connectivity=8)
    found = []
    for part in [region] if count == 2 else [labels == index for index in range(1, count)]:
        pixels = part.view(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        found.append((part, (x, y, width, height, cv2.countNonZero(pixels))))
    return sorted(found, key=lambda item: item[1][4])


def count_components(region: Bools) -> int:
    """The number of 8-connected parts of a region (H, W)."""
    pixels = region.view(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    box = pixels[y : y + height, x : x + width]
    return int(cv2.connectedComponents(box, connectivity=8, ltype=cv2.CV_16U)[0]) - 1 if box.size else 0


def fill(mask: Image, hole: Bools) -> Image:
    """The mask with each pixel of a hole given the class of the nearest pixel outside it; background without any."""
    if not hole.any():
        return mask.copy()
    if hole.all():
        return np.zeros_like(mask)
    # The nearest is never farther than the first pixel beyond the box around the hole.
    x, y, width, height = cv2.boundingRect(hole.view(np.uint8))
    box = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
    inside, part = hole[box], mask[box]
    # OpenCV numbers the pixels outside the hole and tells for each pixel the number of the nearest.
    _, nearest = cv2.distanceTransformWithLabels(
        inside.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )  # fmt: skip
    classes = np.zeros(int(nearest.max()) + 1, np.uint8)
    classes[nearest[~inside]] = part[~inside]
    filled = mask.copy()
    filled[box] = np.where(inside, classes[nearest], part)
    return filled
