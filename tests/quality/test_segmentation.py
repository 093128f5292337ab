"""Dice by hand on small label maps."""

from __future__ import annotations

import numpy as np
import pytest

from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK
from csg_edge.quality.segmentation import dice_by_image, known_labels, mean_dice


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


def test_unlabelled_pixels_count_neither_for_nor_against_but_near_a_structure() -> None:
    wanted = np.full((1, 256, 256), NO_MASK, np.uint8)
    wanted[0, 100:120, 100:160] = 6
    found = np.where(wanted == 6, 6, 0).astype(np.uint8)
    found[0, 200:250] = 6  # another vessel, which nobody labelled
    assert mean_dice(found, wanted) == [1.0]
    everywhere = np.full_like(found, 6)
    assert mean_dice(everywhere, wanted)[0] < 0.75
    assert mean_dice(np.zeros_like(found), wanted) == [0.0]


def test_only_the_surroundings_of_a_structure_are_known() -> None:
    masks = np.full((2, 256, 256), NO_MASK, np.uint8)
    masks[0, 100:120, 100:160] = 6
    known = known_labels(masks)
    assert (known[1] == NO_MASK).all() and (masks[0] != known[0]).any()
    assert (known[0][92:128, 110:150] != NO_MASK).all() and known[0, 130, 130] == NO_MASK
    assert (known[0] == 0).any() and (known[0][masks[0] == 6] == 6).all()
    whole = np.zeros((1, 64, 64), np.uint8)
    assert np.array_equal(known_labels(whole), whole)
