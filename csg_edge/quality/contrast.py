"""Do the grey levels of an image follow its mask?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from csg_edge.labels import NO_MASK

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
        if count >= MIN_PIXELS and index != NO_MASK
    }


def contrast_correlation(pairs: Iterable[tuple[Image, Image, Image]]) -> float:
    """Pearson correlation, over images and classes, of class contrasts in generated against real images.

    pairs: (generated, real, mask), each (H, W) uint8 of one size. 1 if every class is as bright or dark against its
    image as in the real one; near 0 if the mask was ignored.
    """
    return weighted_correlation([paired_contrasts(*pair) for pair in pairs])


def paired_contrasts(image: Image, reference: Image, mask: Image) -> NDArray[np.float64]:
    """(2, classes found): contrasts of the classes of a mask in the generated and in the real image."""
    found = [list(class_contrasts(picture, mask).values()) for picture in (image, reference)]
    return np.array(found, np.float64).reshape(2, -1)


def weighted_correlation(contrasts: Sequence[NDArray[np.float64]], weights: NDArray[np.float64] | None = None) -> float:
    """Pearson correlation over the columns of all (2, ...) arrays, each array counting by its weight."""
    times = np.ones(len(contrasts)) if weights is None else weights
    values = np.concatenate(contrasts, axis=1)
    if values.shape[1] < 2:
        return float("nan")
    share = np.repeat(times, [item.shape[1] for item in contrasts])
    covariance = np.cov(values, aweights=share, ddof=0)
    scale = np.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(covariance[0, 1] / scale) if scale > 0 else float("nan")
