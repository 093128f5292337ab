"""Text burned into the pixels of an image: names, dates, scales and menus of the scanner. NumPy and OpenCV only.

Text differs from tissue by its strokes: flat, of one level that hardly varies, with edges of a pixel or two, in letters
of one height side by side. So the detector takes what stands out from its surroundings by a top-hat, keeps connected
pieces that are as tall, as flat and as sharp as letters are, and calls three or more of them in a row a line of text.
Letters that touch a bright fascia are one piece with it; a higher threshold parts them where they are brighter.
It reads nothing. What it finds and misses is measured in docs/augment.md; it does not replace the eye of whoever gives
images away.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

LEAST_CONTRAST = 40  # grey levels of a letter above what is around it
HEIGHTS = (5, 48)  # pixels of a letter, at most a tenth of the image
STROKE = 0.3  # of the tallest letter: what is wider than that is no stroke
FLAT = 0.12  # deviation of the levels inside a letter's strokes over their contrast
SHARP = 0.5  # of the contrast: how much of it the edge takes within two pixels
OUTLINES = ((0.5, 3), (0.65, 5))
"""Of the contrast, what belongs to a letter, and how many letters then make a line: more where tissue parts too."""


@dataclass(frozen=True)
class Box:
    """A line of text: left and top pixel, and size."""

    x: int
    y: int
    width: int
    height: int


def find_text(image: Image) -> list[Box]:
    """Lines of text in a (H, W) uint8 image, bright on dark or dark on bright, from the top down."""
    found = [box for shown in (image, 255 - image) for box in _lines(shown)]
    return sorted(_merged(found), key=lambda box: (box.y, box.x))


def crop_without(image: Image, boxes: list[Box], *, margin: int = 2) -> tuple[slice, slice]:
    """Rows and columns of what is left when each line of text is cut off at the side where least is lost."""
    top, left, (bottom, right) = 0, 0, image.shape
    for box in boxes:
        above, below = box.y - margin, box.y + box.height + margin
        before, after = box.x - margin, box.x + box.width + margin
        if below <= top or above >= bottom or after <= left or before >= right:
            continue
        kept = {
            "top": (bottom - below) * (right - left), "bottom": (above - top) * (right - left),
            "left": (bottom - top) * (right - after), "right": (bottom - top) * (before - left),
        }  # fmt: skip
        side = max(kept, key=lambda name: kept[name])
        top, bottom = (below if side == "top" else top), (above if side == "bottom" else bottom)
        left, right = (after if side == "left" else left), (before if side == "right" else right)
    return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))


def _lines(image: Image) -> list[Box]:
    tallest = max(HEIGHTS[0], min(HEIGHTS[1], image.shape[0] // 10))
    size = 2 * (round(STROKE * tallest) // 2) + 3
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (size, size))
    raised = np.asarray(cv2.subtract(image, cv2.morphologyEx(image, cv2.MORPH_OPEN, kernel)), np.uint8)
    # A share of the contrast of each letter, whatever the contrast is, is where its outline lies.
    peak = cv2.dilate(raised, cv2.getStructuringElement(cv2.MORPH_RECT, (7, 7)))
    found = []
    for share, least in OUTLINES:
        bright = (raised > np.maximum(np.float32(share) * peak, LEAST_CONTRAST // 2)) & (peak >= LEAST_CONTRAST)
        lines: list[list[Box]] = []
        for letter in sorted(_letters(image, bright, tallest), key=lambda box: box.x):
            for line in lines:
                if _goes_on(line[-1], letter):
                    line.append(letter)
                    break
            else:
                lines.append([letter])
        found += [_around(line) for line in lines if len(line) >= least]
    return found


def _letters(image: Image, bright: NDArray[np.bool_], tallest: int) -> list[Box]:
    """Pieces of what is bright that are as tall, flat and sharp as letters."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(bright.astype(np.uint8), connectivity=8)
    found = []
    for index in range(1, count):
        x, y, width, height, area = (int(value) for value in boxes[index])
        if not (HEIGHTS[0] <= height <= tallest and 1 <= width <= 2 * height and area >= height):
            continue
        if area > 0.85 * width * height and width > 0.5 * height:
            continue  # a block, not strokes
        place = slice(y, y + height), slice(x, x + width)
        inside = labels[place] == index
        if _is_flat_and_sharp(image, place, inside):
            found.append(Box(x, y, width, height))
    return found


def _is_flat_and_sharp(image: Image, place: tuple[slice, slice], inside: NDArray[np.bool_]) -> bool:
    rows, columns = place
    wide = slice(max(rows.start - 2, 0), rows.stop + 2), slice(max(columns.start - 2, 0), columns.stop + 2)
    around = np.zeros(image[wide].shape, np.uint8)
    top, left = rows.start - wide[0].start, columns.start - wide[1].start
    around[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    grown = cv2.dilate(around, np.ones((3, 3), np.uint8))
    ring = (cv2.dilate(grown, np.ones((3, 3), np.uint8)) > 0) & (grown == 0)
    levels = image[place][inside].astype(np.float64)
    if not ring.any():
        return False
    high = float(np.quantile(levels, 0.9))
    contrast = high - float(np.median(image[wide][ring]))
    if contrast < LEAST_CONTRAST:
        return False
    # The middle of the strokes: what anti-aliasing leaves of them.
    core = levels[levels >= high - 0.25 * contrast]
    flat = float(core.std()) <= FLAT * contrast and len(core) >= 0.35 * len(levels)
    return flat and float(np.std(image[wide][ring])) <= SHARP * contrast


def _goes_on(last: Box, letter: Box) -> bool:
    """Whether a letter stands in line behind another: of like height, on one base line, not far off."""
    tall = max(last.height, letter.height)
    gap = letter.x - (last.x + last.width)
    base = abs((last.y + last.height) - (letter.y + letter.height))
    return -0.2 * tall <= gap <= 1.2 * tall and base <= 0.35 * tall and min(last.height, letter.height) >= 0.55 * tall


def _around(letters: list[Box]) -> Box:
    left, top = min(box.x for box in letters), min(box.y for box in letters)
    right, bottom = max(box.x + box.width for box in letters), max(box.y + box.height for box in letters)
    return Box(left, top, right - left, bottom - top)


def _merged(boxes: list[Box]) -> list[Box]:
    """Boxes that overlap, as letters and the gaps between them do, in one."""
    merged: list[Box] = []
    for box in boxes:
        touching = [other for other in merged if _overlap(box, other)]
        merged = [other for other in merged if other not in touching]
        merged.append(_around([box, *touching]))
    return merged


def _overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width and other.x < one.x + one.width
        and one.y < other.y + other.height and other.y < one.y + one.height
    )  # fmt: skip
