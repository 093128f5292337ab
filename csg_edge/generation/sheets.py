"""Contact sheets: masks in colour, contexts and images side by side, for a human eye."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.labels import NO_MASK, LabelSchema

Image = NDArray[np.uint8]

# BGR; the first ten are the classes of MSK_SCHEMA, chosen to stay apart for colour-blind readers (after Okabe & Ito
# 2008).
PALETTE = np.array(
    [
        (24, 24, 24),
        (66, 228, 240),
        (178, 204, 230),
        (0, 94, 213),
        (115, 158, 0),
        (233, 180, 86),
        (178, 114, 0),
        (0, 159, 230),
        (255, 255, 255),
        (167, 121, 204),
    ],
    dtype=np.uint8,
)
HEADER = 24
UNSAID = 60  # grey level of pixels of 255


def colour_mask(mask: Image) -> Image:
    """(H, W) class indices -> (H, W, 3) BGR; grey where nothing is said."""
    return np.where((mask == NO_MASK)[..., None], np.uint8(UNSAID), PALETTE[mask % len(PALETTE)])


def overlay(image: Image, mask: Image) -> Image:
    """(H, W) image with the class borders of its mask drawn in their class colours; (H, W, 3) BGR."""
    drawn = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    for index in np.unique(mask):
        if index not in (0, NO_MASK):
            outlines, _ = cv2.findContours((mask == index).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, outlines, -1, PALETTE[index % len(PALETTE)].tolist(), 1)
    return np.asarray(drawn, dtype=np.uint8)


def contact_sheet(rows: Sequence[tuple[Image, Image, Image]], schema: LabelSchema, *, columns: int = 2) -> Image:
    """Rows of (mask.

    Context, image), all (H, W) uint8 of one size -> BGR sheet `mask | context | image` with a class legend.
    """
    cells = [
        np.hstack(
            [
                colour_mask(mask),
                cv2.cvtColor(context, cv2.COLOR_GRAY2BGR),
                overlay(image, mask),
                cv2.cvtColor(image, cv2.COLOR_GRAY2BGR),
            ]
        )
        for mask, context, image in rows
    ]
    cells = [cv2.copyMakeBorder(cell, 2, 2, 2, 6, cv2.BORDER_CONSTANT, value=(60, 60, 60)) for cell in cells]
    while len(cells) % columns:
        cells.append(np.full_like(cells[0], 60))
    body = np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])
    side = rows[0][0].shape[1]
    header = np.full((HEADER, body.shape[1], 3), 60, np.uint8)
    for column in range(columns):
        for index, title in enumerate(("mask", "context", "image + mask edges", "image")):
            _write(header, title, (column * cells[0].shape[1] + index * side + 6, 17), (255, 255, 255))
    return np.vstack([header, body, _legend(schema, np.unique([row[0] for row in rows]), body.shape[1])])


def _legend(schema: LabelSchema, present: NDArray[np.uint8], width: int) -> Image:
    legend = np.full((HEADER, width, 3), 60, np.uint8)
    x = 6
    for index in present[present != NO_MASK]:
        name = schema.names[index]
        legend[6:18, x : x + 12] = PALETTE[index % len(PALETTE)]
        _write(legend, name, (x + 16, 17), (255, 255, 255))
        x += 16 + 9 * len(name) + 12
    return legend


def _write(canvas: Image, text: str, origin: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
