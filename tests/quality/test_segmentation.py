"""Dice by hand on small label maps."""

from __future__ import annotations

import numpy as np
import pytest

from csg_edge.errors import InputError
from csg_edge.quality.segmentation import dice_by_image, mean_dice


def square(start: int, size: int, label: int = 1) -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[start : start + size, start : start + size] = label
    return mask


def test_dice_of_shifted_squares_is_what_the_overlap_says() -> None:
    wanted, found = square(10, 20), square(20, 20)
    assert dice_by_image(found[None], wanted[None]) == [{1: 2 * 100 / 800}]
    assert dice_by_image(wanted[None], wanted[None]) == [{1: 1.0}]


def test_a_class_found_nowhere_scores_zero_and_background_does_not_count() -> None:
    assert dice_by_image(np.zeros((1, 64, 64), np.uint8), square(5, 30)[None]) == [{1: 0.0}]


def test_classes_too_small_are_left_out_and_an_image_without_any_has_no_mean() -> None:
    masks = np.stack([square(0, 7), square(0, 8)])  # 49 and 64 pixels
    scores = mean_dice(masks, masks)
    assert np.isnan(scores[0]) and scores[1] == 1.0


def test_label_maps_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="one size"):
        dice_by_image(np.zeros((1, 32, 32), np.uint8), np.zeros((1, 64, 64), np.uint8))
