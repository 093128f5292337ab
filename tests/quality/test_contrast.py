"""The contrast correlation tells an image that follows its mask from one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from csg_edge.datasets.phantom import make_phantom
from csg_edge.quality.contrast import class_contrasts, contrast_correlation

PHANTOMS = [make_phantom(seed) for seed in range(20)]
# The same anatomy under another look and other speckle: what a perfect generator would make.
TWINS = [make_phantom(seed, appearance_seed=seed + 100) for seed in range(20)]


def test_contrast_of_a_known_image() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:10] = 3
    mask[0, 0] = 5  # one pixel: too few to count
    image = np.where(mask == 3, 150, 50).astype(np.uint8)
    contrasts = class_contrasts(image, mask)
    assert set(contrasts) == {0, 3}
    assert contrasts[3] == pytest.approx(50, abs=1)
    assert contrasts[0] == pytest.approx(-50, abs=1)


def test_it_ranks_following_above_ignoring_the_mask() -> None:
    def correlation(images: list[np.ndarray]) -> float:
        return contrast_correlation(
            (image, real.image, real.mask) for image, real in zip(images, PHANTOMS, strict=True)
        )

    follows = correlation([twin.image for twin in TWINS])
    shifted = correlation([np.roll(twin.image, 64, axis=0) for twin in TWINS])
    ignores = correlation([twin.image for twin in TWINS[::-1]])
    assert follows > 0.75
    assert shifted < follows - 0.3
    assert ignores < follows - 0.3
