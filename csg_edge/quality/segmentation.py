"""Dice: does an independent segmenter find in a generated image the mask it was made from?

Judged on both sides against the Dice on real images: images that are *easier* to segment than real ones are wrong too
(a useless blur scored higher than real images).
"""

from __future__ import annotations

import numpy as np

from csg_edge.datasets.labelled_set import Image
from csg_edge.errors import InputError

MIN_PIXELS = 50  # a class smaller than this in the mask says nothing about fidelity


def dice_by_image(found: Image, wanted: Image) -> list[dict[int, float]]:
    """Dice of each foreground class in each image; (N, H, W) uint8 label maps.

    Only classes with at least 50 pixels in the wanted mask count, background never does.
    """
    if found.shape != wanted.shape:
        raise InputError(f"segmentations of {found.shape} for masks of {wanted.shape}; read both at one size")
    return [_dice(labels, mask) for labels, mask in zip(found, wanted, strict=True)]


def mean_dice(found: Image, wanted: Image) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) mean Dice over the classes of each image; NaN for an image whose mask has no class large enough."""
    scores = dice_by_image(found, wanted)
    return np.array([np.mean(list(score.values())) if score else np.nan for score in scores])


def _dice(found: Image, wanted: Image) -> dict[int, float]:
    count = max(int(found.max()), int(wanted.max())) + 1
    both = np.bincount(wanted[found == wanted], minlength=count)
    sizes_found, sizes_wanted = (
        np.bincount(found.ravel(), minlength=count),
        np.bincount(wanted.ravel(), minlength=count),
    )
    return {
        label: float(2.0 * both[label] / (sizes_found[label] + sizes_wanted[label]))
        for label in range(1, count)
        if sizes_wanted[label] >= MIN_PIXELS
    }
