"""Moves of a whole label map: bend, tilt, shift, thicken. NumPy and OpenCV only.

Ground and blobs (`mask_parts`) are resampled by one map. Layers go on sideways along their own slope where a move
reaches beyond the picture, and a blob cut by the edge is closed by its mirror image, so that no move drags the edge
column across the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.arrays import classes_in, most_voted
from csg_edge.conditions.mask_parts import NO_BLOB, Bools, Floats, Image, Parts, components

Map = tuple[Floats, Floats]  # source column and source row of every pixel, float32 (H, W)

MIN_BAND = 2.0  # pixels; no band is made thinner than this
LATTICE = 32  # nodes, each way, on which a bend is worked out
_STEP = 32  # pixels
_KEPT = 1 << 20  # pixels; of larger masks nothing is kept from one move to the next
_ROW = 256  # places in a row of a map for some pixels only; OpenCV's rows have an end


def resample(parts: Parts, source: Map) -> Parts:
    """Both parts seen through a map of source positions in pixels."""
    columns, rows = source
    height, width = columns.shape
    pad, tall = _beyond(columns, width), _beyond(rows, height)
    columns = columns + np.float32(pad)
    ground, blobs = parts.ground, parts.blobs
    if int(ground.min()) != int(ground.max()):
        ground = _vote(_wide_ground(parts, pad), columns, rows)
    if parts.has_blobs:
        blobs = _resample_blobs(_wide_blobs(parts, pad, tall), columns, rows + np.float32(tall))
    return Parts(ground, blobs, parts.schema)


def _beyond(places: Floats, side: int) -> int:
    """Pixels by which a map reaches beyond a side, and one more."""
    least, most, _, _ = cv2.minMaxLoc(places)
    return min(side - 1, math.ceil(max(-least, most - (side - 1), 0.0)) + 1)


def _steps(pixels: int, side: int) -> int:
    """At least so many, in whole steps, so that most moves of a mask share what lies beyond its edges.

    One pixel stays one: such a move does not reach beyond an edge.
    """
    return min(side - 1, -(-pixels // _STEP) * _STEP if pixels > 1 else pixels)


@dataclass(frozen=True)
class _Wide:
    """Labels with `pad` more columns and `tall` more rows on each side, and what a vote on them takes.

    mixed: where the pixels around are of several classes. rarity: of every class there may be, what it has ahead of
    those that are less rare. planes: 1.0 where a class is, empty for a large mask.
    """

    labels: Image
    mixed: Image
    planes: dict[int, Floats]
    rarity: dict[int, np.float32]
    pad: int
    tall: int

    @classmethod
    def of(cls, labels: Image, counts: Floats, pad: int, tall: int) -> _Wide:
        around = np.ones((3, 3), np.uint8)
        mixed = cv2.compare(cv2.erode(labels, around), cv2.dilate(labels, around), cv2.CMP_NE)
        rarity = {
            int(index): np.float32(1e-3 * (1 - counts[index] / counts.sum())) for index in np.flatnonzero(counts)
        }  # fmt: skip
        planes = {index: _plane(labels, index) for index in rarity} if labels.size <= _KEPT else {}
        return cls(labels, np.asarray(mixed, np.uint8), planes, rarity, pad, tall)

    def plane(self, index: int) -> Floats:
        return self.planes[index] if self.planes else _plane(self.labels, index)

    def cropped(self, pad: int, tall: int) -> _Wide:
        """With less around it."""
        height, width = self.labels.shape
        left, top = self.pad - pad, self.tall - tall
        box = slice(top, height - top), slice(left, width - left)
        planes = {index: plane[box] for index, plane in self.planes.items()}
        return _Wide(self.labels[box], self.mixed[box], planes, self.rarity, pad, tall)


def _plane(labels: Image, index: int) -> Floats:
    return np.asarray(labels == index, np.float32)


def _wide_ground(parts: Parts, pad: int) -> _Wide:
    ground = parts.ground
    if ground.size > _KEPT:
        return _kept_ground.__wrapped__(parts, pad)
    return _kept_ground(parts, _steps(pad, ground.shape[1])).cropped(pad, 0)


def _wide_blobs(parts: Parts, pad: int, tall: int) -> _Wide:
    height, width = parts.blobs.shape
    if parts.blobs.size > _KEPT:
        return _kept_blobs.__wrapped__(parts, pad, tall)
    return _kept_blobs(parts, _steps(pad, width), _steps(tall, height)).cropped(pad, tall)


@lru_cache(maxsize=4)  # several masks are made of one
def _kept_ground(parts: Parts, pad: int) -> _Wide:
    return _Wide.of(_extend_ground(parts.ground, pad), parts.counts[0], pad, 0)


@lru_cache(maxsize=4)
def _kept_blobs(parts: Parts, pad: int, tall: int) -> _Wide:
    return _Wide.of(_extend_blobs(parts.blobs, pad, tall), parts.counts[1], pad, tall)


def _resample_blobs(wide: _Wide, columns: Floats, rows: Floats) -> Image:
    """`_vote` where a blob may come to lie: a small part of most pictures."""
    x, y, width, height = cv2.boundingRect((wide.labels != NO_BLOB).view(np.uint8))
    near = cv2.bitwise_and(cv2.inRange(columns, x - 1.0, x + width), cv2.inRange(rows, y - 1.0, y + height))
    left, top, across, down = cv2.boundingRect(near)
    blobs = np.full(columns.shape, NO_BLOB, np.uint8)
    if across:
        box = slice(top, top + down), slice(left, left + across)
        blobs[box] = _vote(wide, np.ascontiguousarray(columns[box]), np.ascontiguousarray(rows[box]))
    return blobs


def _vote(wide: _Wide, columns: Floats, rows: Floats) -> Image:
    """Labels by linear interpolation of their one-hot maps; ties go to the rarer class, so that thin bands survive."""
    # Where the neighbours of the nearest pixel are of one class, there is nothing to vote on: most of a mask.
    seen, doubtful = (
        np.asarray(cv2.remap(plane, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        for plane in (wide.labels, wide.mixed)
    )
    places = np.flatnonzero(doubtful != 0)  # of bytes it takes nine times as long
    if not len(places):
        return seen
    across, down = (np.resize(part.ravel()[places], (-(-len(places) // _ROW), _ROW)) for part in (columns, rows))
    votes = (
        cv2.remap(wide.plane(index), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        + wide.rarity[index]
        for index in wide.rarity
    )
    seen.ravel()[places] = most_voted(list(wide.rarity), votes).ravel()[: len(places)]
    return seen


def _extend_ground(ground: Image, pad: int) -> Image:
    """The ground with `pad` more columns on each side."""
    right, last = _beyond_right(ground, pad)
    left, first = _beyond_right(ground[:, ::-1], pad)
    return np.hstack([left[:, ::-1], ground[:, ground.shape[1] - 1 - first : last + 1], right])


def _beyond_right(ground: Image, pad: int) -> tuple[Image, int]:
    """The columns right of the last that stays as it is, `pad` of them beyond the edge, and the place of that last."""
    width = ground.shape[1]
    span = max(2, width // 10)
    last = width - 1
    if pad > 1:
        # A band drawn to just before the edge goes on: take the column near it that crosses most borders.
        near = ground[:, max(width - 1 - width // 20, 0) + 1 :]
        last -= int(np.argmax((near[1:] != near[:-1]).sum(axis=0)[::-1]))
    return _go_on(ground[:, last], ground[:, last - span], span, pad + width - 1 - last), last


def _go_on(edge: Image, inner: Image, span: int, pad: int) -> Image:
    """Columns 1..pad beyond an edge column: borders go on at the slope they have between `inner` and the edge."""
    rows = np.arange(len(edge), dtype=np.float32)
    borders, before = np.flatnonzero(np.diff(edge)) + 1, np.flatnonzero(np.diff(inner)) + 1
    slope = np.zeros(len(edge), np.float32)
    same = edge[0] == inner[0] and np.array_equal(edge[borders], inner[before])
    if same and len(borders):
        slope = np.interp(rows, borders, (borders - before) / span).astype(np.float32)
    source = rows[:, None] - slope[:, None] * np.arange(1, pad + 1, dtype=np.float32)
    source = np.maximum.accumulate(source, axis=0)  # borders that would cross meet instead
    return edge[np.clip(np.rint(source), 0, len(edge) - 1).astype(np.intp)]


def _extend_blobs(blobs: Image, pad: int, tall: int) -> Image:
    height, width = blobs.shape
    extended = cv2.copyMakeBorder(blobs, tall, tall, pad, pad, cv2.BORDER_CONSTANT, value=NO_BLOB)
    if all((edge == NO_BLOB).all() for edge in (blobs[0], blobs[-1], blobs[:, 0], blobs[:, -1])):
        return np.asarray(extended, np.uint8)
    for index in classes_in(blobs):
        for region, (x, y, w, h, _) in components(blobs == index) if index != NO_BLOB else ():
            if x == 0 or y == 0 or x + w == width or y + h == height:
                mirrored = cv2.copyMakeBorder(region.view(np.uint8), tall, tall, pad, pad, cv2.BORDER_REFLECT)
                extended[mirrored > 0] = index
    extended[tall : tall + height, pad : pad + width] = blobs
    return np.asarray(extended, np.uint8)


@lru_cache(maxsize=8)
def grid(shape: tuple[int, ...]) -> Map:
    """The map that changes nothing, not to be written to."""
    rows, columns = np.indices(shape[:2], dtype=np.float32)
    for part in (columns, rows):
        part.setflags(write=False)
    return columns, rows


@dataclass(frozen=True)
class Move:
    """A move of everything, in parts of the sides: where the content of each place comes from, less the place itself.

    lateral, depth: the same everywhere. shear: of depth over the width, about the middle column. bend: (2, LATTICE,
    LATTICE) float32, what else there is of both on a lattice far finer than it varies, or None.
    """

    lateral: float = 0.0
    depth: float = 0.0
    shear: float = 0.0
    bend: Floats | None = None

    def after(self, first: Move) -> Move:
        """This move made after another, as one."""
        bend = self.bend
        if first.bend is not None:
            across, down = _lattice()
            own = np.zeros_like(first.bend) if bend is None else bend
            there = (
                across + np.float32(LATTICE) * (own[0] + np.float32(self.lateral)),
                down + np.float32(LATTICE) * (own[1] + np.float32(self.depth) + np.float32(self.shear) * _off_middle()),
            )
            bend = own + _seen_from(first.bend, there)
        if self.bend is not None and first.shear:
            assert bend is not None
            bend = bend + np.stack([np.zeros_like(self.bend[0]), np.float32(first.shear) * self.bend[0]])
        return Move(
            self.lateral + first.lateral, self.depth + first.depth + first.shear * self.lateral,
            self.shear + first.shear, bend,
        )  # fmt: skip

    def source(self, shape: tuple[int, ...]) -> Map:
        """The map of source positions for masks of a shape (H, W)."""
        height, width = shape[:2]
        columns, rows = grid((height, width))
        columns = columns + np.float32(self.lateral * width)
        rows = rows + np.float32(self.depth * height)
        if self.shear:
            rows += np.float32(self.shear * height / width) * (grid((1, width))[0] - np.float32((width - 1) / 2))
        if self.bend is not None:
            for places, part, side in ((columns, self.bend[0], width), (rows, self.bend[1], height)):
                # The lattice is fine enough for straight lines between its nodes: off by a tenth of a pixel at most.
                places += cv2.resize(part * np.float32(side), (width, height), interpolation=cv2.INTER_LINEAR)
        return columns, rows


def _lattice() -> Map:
    return grid((LATTICE, LATTICE))


def _off_middle() -> Floats:
    """(1, LATTICE): how far the nodes lie from the middle column, in parts of the width."""
    return (_lattice()[0][:1] - np.float32((LATTICE - 1) / 2)) / np.float32(LATTICE)


def _seen_from(bend: Floats, there: Map) -> Floats:
    """A bend at other places of the lattice; it goes on as at the edge."""
    return np.stack([
        cv2.remap(part, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for part in bend
    ])  # fmt: skip


def tilted(shape: tuple[int, ...], degrees: float) -> Move:
    """Depth sheared about the middle column of an (H, W) mask: what is right of it goes deeper for a positive angle."""
    return Move(shear=-math.tan(math.radians(degrees)) * shape[1] / shape[0])


def shifted(lateral: float, depth: float) -> Move:
    """Everything moved right and deeper by fractions of the width and the height."""
    return Move(lateral=-lateral, depth=-depth)


def deformed(amount: float, random: np.random.Generator) -> Move:
    """A smooth, invertible bend: the flow of a random velocity field that does not change along the way.

    amount: root mean square displacement as a fraction of the sides. Scaling and squaring (Arsigny et al., MICCAI
    2006): the field is halved until it is a fraction of a pixel and then composed with itself. Structures of
    ultrasound lie flat, so the field varies more slowly sideways than with depth.
    """
    velocity = []
    for _ in range(2):
        rough = random.standard_normal((LATTICE, LATTICE)).astype(np.float32)
        smooth = cv2.GaussianBlur(
            rough, (0, 0), LATTICE * 0.24, sigmaY=LATTICE * 0.16, borderType=cv2.BORDER_REFLECT
        )  # fmt: skip
        velocity.append(smooth * np.float32(amount / max(float(np.sqrt(np.mean(smooth**2))), 1e-6)))
    bend = np.stack(velocity)
    halvings = max(3, math.ceil(math.log2(max(1.0, 16 * LATTICE * float(np.abs(bend).max())))))
    bend /= np.float32(2**halvings)
    across, down = _lattice()
    for _ in range(halvings):
        bend = bend + _seen_from(bend, (across + LATTICE * bend[0], down + LATTICE * bend[1]))
    return Move(bend=bend)


def smallest_jacobian(source: Map) -> float:
    """The smallest determinant of the Jacobian of a map, by forward differences; above 0, nothing folds over."""
    columns, rows = source
    determinant = (
        np.diff(columns, axis=1)[:-1] * np.diff(rows, axis=0)[:, :-1]
        - np.diff(columns, axis=0)[:, :-1] * np.diff(rows, axis=1)[:-1]
    )
    return float(determinant.min())


def thickened(ground: Image, classes: list[int], fraction: float) -> Map:
    """Bands of some classes made thicker (fraction > 0) or thinner about their middle; what lies between gives way.

    A band at the top or bottom edge stays there and moves its other side only.
    """
    height, width = ground.shape
    edges = np.arange(height + 1, dtype=np.float64)
    moved = np.empty((height + 1, width), np.float32)
    for x in range(width):
        moved[:, x] = _thicken_column(np.isin(ground[:, x], classes), fraction, edges) - edges
    moved = cv2.GaussianBlur(moved, (0, 0), max(0.5, 0.015 * width), sigmaY=0.01, borderType=cv2.BORDER_REPLICATE)
    columns, rows = grid(ground.shape)
    rows = rows.copy()
    for x in range(width):
        rows[:, x] = np.interp(edges[:-1] + 0.5, edges + moved[:, x], edges) - 0.5
    return columns, rows


def _thicken_column(inside: Bools, fraction: float, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each pixel edge of a column goes."""
    height = len(inside)
    change = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    tops, bottoms = change[::2].astype(np.float64), change[1::2].astype(np.float64)
    thickness = bottoms - tops
    grown = np.where(thickness > MIN_BAND, np.maximum((1 + fraction) * thickness, MIN_BAND), thickness)
    if fraction > 0:
        grown = (1 + fraction) * thickness
    half = (grown - thickness) / 2
    at_top, at_bottom = tops == 0, bottoms == height
    new_tops = tops - np.where(at_top, 0, np.where(at_bottom, 2 * half, half))
    new_bottoms = bottoms + np.where(at_bottom, 0, np.where(at_top, 2 * half, half))
    # Never past the middle of what lies between two bands, or between a band and the edge.
    gaps = np.concatenate([tops, [height]]) - np.concatenate([[0], bottoms])
    new_tops = np.maximum(new_tops, tops - 0.4 * gaps[:-1])
    new_bottoms = np.minimum(new_bottoms, bottoms + 0.4 * gaps[1:])
    here = np.concatenate([[0.0], np.stack([tops, bottoms], axis=1).ravel(), [height]])
    there = np.concatenate([[0.0], np.stack([new_tops, new_bottoms], axis=1).ravel(), [height]])
    return np.asarray(np.interp(edges, here, there))
