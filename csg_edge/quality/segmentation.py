"""Dice: does an independent segmenter find in a generated image the mask it was made from?

Judged on both sides against the Dice on real images: images that are *easier* to segment than real ones are wrong too
(a useless blur scored higher than real images).
"""

from __future__ import annotations

import cv2
import numpy as np

from csg_edge.datasets.labelled_set import Image
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK

MIN_PIXELS = 50  # a class smaller than this in the mask says nothing about fidelity
SURROUNDINGS = 1 / 32  # of the side of an image: so far around a structure its own border tells that it has ended


def dice_by_image(found: Image, wanted: Image) -> list[dict[int, float]]:
    """Dice of each foreground class in each image; (N, H, W) uint8 label maps.

    Only classes with at least 50 pixels in the wanted mask count, background never does. Pixels that nobody labelled
    are left out, but for those around a structure (see `known_labels`).
    """
    if found.shape != wanted.shape:
        raise InputError(f"segmentations of {found.shape} for masks of {wanted.shape}; read both at one size")
    return [_dice(labels, mask) for labels, mask in zip(found, known_labels(wanted), strict=True)]


def known_labels(masks: Image) -> Image:
    """(N, H, W) masks in which what lies around a labelled structure, and was NO_MASK, is background.

    Who draws one artery of several says where it ends, and nothing of the others. So the pixels within SURROUNDINGS of
    it are known; without them, whoever calls everything artery would be right everywhere.
    """
    reach = 2 * round(SURROUNDINGS * masks.shape[-1]) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    known = masks.copy()
    for index in np.flatnonzero((masks == NO_MASK).any(axis=(1, 2))):
        labelled = (masks[index] != NO_MASK).astype(np.uint8)
        known[index][(cv2.dilate(labelled, kernel) > labelled)] = 0
    return known


def mean_dice(found: Image, wanted: Image) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) mean Dice over the classes of each image; NaN for an image whose mask has no class large enough."""
    scores = dice_by_image(found, wanted)
    return np.array([np.mean(list(score.values())) if score else np.nan for score in scores])


def _dice(found: Image, wanted: Image) -> dict[int, float]:
    found, wanted = found[wanted != NO_MASK], wanted[wanted != NO_MASK]
    count = max(int(found.max(initial=0)), int(wanted.max(initial=0))) + 1
    both = np.bincount(wanted[found == wanted], minlength=count)
    sizes_found, sizes_wanted = (
        np.bincount(found, minlength=count),
        np.bincount(wanted, minlength=count),
    )
    return {
        label: float(2.0 * both[label] / (sizes_found[label] + sizes_wanted[label]))
        for label in range(1, count)
        if sizes_wanted[label] >= MIN_PIXELS
    }
