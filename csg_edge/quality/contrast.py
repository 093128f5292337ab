"""Do the grey levels of an image follow its mask?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

MIN_PIXELS = 50
"""A class that covers less of an image says little about its grey level."""


def class_contrasts(image: Image, mask: Image) -> dict[int, float]:
    """Mean grey level of each class minus that of the image; (H, W) uint8 image and mask."""
    indices, counts = np.unique(mask, return_counts=True)
    mean = float(image.mean())
    return {
        int(index): float(image[mask == index].mean()) - mean
        for index, count in zip(indices, counts, strict=True)
        if count >= MIN_PIXELS
    }


def contrast_correlation(pairs: Iterable[tuple[Image, Image, Image]]) -> float:
    """Pearson correlation, over images and classes, of class contrasts in generated against real images.

    pairs: (generated, real, mask), each (H, W) uint8 of one size. 1 if every class is as bright or dark against its
    image as in the real one; near 0 if the mask was ignored.
    """
    generated: list[float] = []
    real: list[float] = []
    for image, reference, mask in pairs:
        generated += class_contrasts(image, mask).values()
        real += class_contrasts(reference, mask).values()
    return float(np.corrcoef(generated, real)[0, 1])
