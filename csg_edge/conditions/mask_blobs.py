"""Closed shapes of a label map (`mask_parts`) grown, added and taken away. NumPy and OpenCV only."""

from __future__ import annotations

import math

import cv2
import numpy as np

from csg_edge.conditions.mask_moves import grid
from csg_edge.conditions.mask_parts import NO_BLOB, Bools, Floats, Parts, components, count_components
from csg_edge.errors import InputError

# Where a finding may lie, and what closes the hole it leaves.
HOSTS = {
    "ditf": ("tendon",),
    "nerve": ("muscle", "deep_tissue", "background"),
    "vessel": ("muscle", "deep_tissue", "background"),
}


def scale_blobs(parts: Parts, index: int, factor: float) -> Parts:
    """Every blob of a class grown or shrunk about its centre; it stops at other blobs."""
    blobs = parts.blobs.copy()
    blobs[blobs == index] = NO_BLOB
    others = blobs != NO_BLOB
    taken = np.zeros_like(others)
    height, width = blobs.shape
    gap = max(2, round(0.015 * height))
    for region, _ in components(parts.blobs == index):
        ys, xs = np.nonzero(region)
        x, y = float(xs.mean()), float(ys.mean())
        matrix = np.array([[factor, 0, (1 - factor) * x], [0, factor, (1 - factor) * y]])
        share = cv2.warpAffine(
            region.astype(np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        grown = (share > 0.5) & ~others & ~_dilate(taken, gap)
        pieces = components(grown)
        if pieces:  # what another blob cut off is left out
            blobs[pieces[-1][0]] = index
            taken |= pieces[-1][0]
    return Parts(parts.ground, blobs, parts.schema)


def remove_blobs(parts: Parts, index: int) -> Parts:
    """Every blob of a class taken away; the ground shows."""
    return Parts(parts.ground, np.where(parts.blobs == index, np.uint8(NO_BLOB), parts.blobs), parts.schema)


def insert_tear(parts: Parts, index: int, size: float | None, random: np.random.Generator) -> Parts:
    """A discontinuity in tendon fibres: a ragged shape along the fibres, clear of other tears.

    size: its height as a fraction of the tendon's thickness there, drawn if None. Raises InputError where there is
    no tendon or no room.
    """
    names = parts.schema.names
    host = parts.schema.index("tendon") if "tendon" in names else NO_BLOB
    tendons = components(parts.ground == host)
    if not tendons:
        raise InputError("this mask has no tendon to tear; choose masks with tendon")
    tendon = tendons[-1][0]
    height, width = tendon.shape
    thickness = tendon.sum(axis=0)
    inside = np.flatnonzero(thickness >= max(6, 0.03 * height))
    if len(inside) < 0.15 * width:
        raise InputError("the tendon is too thin or too short for a tear; choose another mask")
    middle = np.interp(np.arange(width), inside, (np.arange(height) @ tendon)[inside] / thickness[inside])
    middle = cv2.GaussianBlur(middle[None], (0, 0), 0.03 * width, borderType=cv2.BORDER_REPLICATE)[0]
    columns, rows = grid(tendon.shape)
    free = tendon & ~_dilate(parts.blobs != NO_BLOB, max(2, round(0.015 * height)))
    for _ in range(60):
        x = int(random.choice(inside))
        part = random.uniform(0.28, 0.72) if size is None else size
        tall = part * thickness[x] / 2
        long = random.uniform(0.06, 0.15) * width * (1.0 if size is None else min(1.0, 0.5 + size))
        off = random.uniform(-1, 1) * max(0.0, 0.45 * thickness[x] - tall)
        u, v = (columns - x) / long, (rows - middle[None].astype(np.float32) - off) / tall
        shape = (np.hypot(u, v) < _ragged(np.arctan2(v, u), random, 0.25, 7)) & tendon
        if shape.any() and (shape & free).sum() == shape.sum() and count_components(shape) == 1:
            # Shreds of tendon that a tear cuts off at the border belong to the tear.
            for shred, box in components(tendon & ~shape):
                if box[4] < max(8, 0.001 * shape.size):
                    shape |= shred
            return Parts(parts.ground, np.where(shape, np.uint8(index), parts.blobs), parts.schema)
    raise InputError("no room for another tear in this tendon; choose a smaller size")


def insert_round(parts: Parts, index: int, size: float | None, random: np.random.Generator) -> Parts:
    """A vessel or nerve: a rounded shape in muscle, deep tissue or background, clear of other blobs and of bone shadow.

    size: its width as a fraction of the picture's, drawn if None. Raises InputError where there is no room.
    """
    schema, (height, width) = parts.schema, parts.ground.shape
    allowed = [schema.index(name) for name in HOSTS[schema.names[index]] if name in schema.names]
    free = np.isin(parts.ground, allowed) & ~_dilate(parts.blobs != NO_BLOB, max(2, round(0.015 * height)))
    if "bone" in schema.names:  # nothing is imaged behind bone
        free &= ~np.maximum.accumulate(parts.ground == schema.index("bone"), axis=0)
    free[: round(0.06 * height)] = False  # skin
    room = cv2.distanceTransform(np.pad(free, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    for attempt in range(20):
        half = (random.uniform(0.04, 0.1) if size is None else size / 2) * width
        if size is None:
            half *= 0.92**attempt
        ys, xs = np.nonzero(room > half * 1.1)
        if not len(ys):
            continue
        place = int(random.integers(len(ys)))
        angle, flat = random.uniform(-0.5, 0.5), random.uniform(0.55, 1.0)
        columns, rows = grid(free.shape)
        across, down = columns - xs[place], rows - ys[place]
        u = (across * math.cos(angle) + down * math.sin(angle)) / half
        v = (down * math.cos(angle) - across * math.sin(angle)) / (half * flat)
        shape = (np.hypot(u, v) < _ragged(np.arctan2(v, u), random, 0.07, 3)) & free
        if shape.sum() >= 12 and count_components(shape) == 1:
            return Parts(parts.ground, np.where(shape, np.uint8(index), parts.blobs), schema)
    name = schema.names[index]
    raise InputError(f"no room for a {name} clear of what is there; choose a smaller size or another mask")


def _ragged(angle: Floats, random: np.random.Generator, amplitude: float, count: int) -> Floats:
    """Radius (1 on average) of an outline over its angle: harmonics 2, 3, ... with falling amplitudes."""
    radius = np.ones_like(angle)
    for k in range(count):
        size, phase = random.uniform(0, amplitude) / math.sqrt(k + 1), random.uniform(0, 2 * math.pi)
        radius += np.float32(size) * np.cos((k + 2) * angle + np.float32(phase))
    return radius


def _dilate(region: Bools, pixels: int) -> Bools:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return np.asarray(cv2.dilate(region.astype(np.uint8), kernel) > 0)
