"""Text burned into pixels: found on tissue and beside it, not seen where there is none, cut off where that can be."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.conditions.burned_in import Box, crop_without, find_text
from csg_edge.datasets.labelled_set import open_set
from csg_edge.datasets.phantom import make_phantom

FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


def write(image: NDArray[np.uint8], text: str, at: tuple[int, int], *, font: int = 0, level: int = 220) -> None:
    cv2.putText(image, text, at, font, 0.5, level, 1, cv2.LINE_AA)


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("text", ["DOE JANE", "12.03.1961", "ID 00482"])
def test_text_on_black_is_found(font: int, text: str) -> None:
    image = np.zeros((200, 320), np.uint8)
    write(image, text, (40, 60), font=font)
    (box, *_) = find_text(image)
    assert 36 <= box.x < 60
    assert 40 <= box.y < 62


def test_text_on_tissue_is_mostly_found_and_tissue_is_no_text() -> None:
    found, false = [], []
    for seed in range(24):
        phantom = cv2.resize(make_phantom(seed)[0], (512, 512), interpolation=cv2.INTER_CUBIC)
        false.append(bool(find_text(phantom)))
        write(phantom, "J. Meyer 1961", (60 + 10 * seed, 40 + 18 * seed), font=FONTS[seed % 3])
        found.append(bool(find_text(phantom)))
    assert sum(false) <= 1
    assert np.mean(found) >= 0.8


def test_letters_that_touch_a_bright_band_are_found() -> None:
    image = np.zeros((200, 320), np.uint8)
    image[56:72] = 150
    write(image, "DOE JANE 61", (40, 60))
    assert find_text(image)
    image[:] = 0
    image[56:72] = 150
    assert not find_text(image)


def test_dark_text_on_bright_is_found() -> None:
    image = np.full((200, 320), 230, np.uint8)
    write(image, "DOE JANE", (40, 60), level=10)
    assert find_text(image)


def test_what_is_left_has_no_text_and_as_much_as_can_be() -> None:
    image = np.random.default_rng(0).integers(0, 60, (200, 320)).astype(np.uint8)
    for at in ((10, 16), (10, 196), (250, 100)):
        write(image, "AB 1961", at)
    boxes = find_text(image)
    rows, columns = crop_without(image, boxes)
    assert not find_text(np.ascontiguousarray(image[rows, columns]))
    assert (rows.stop - rows.start) * (columns.stop - columns.start) > 0.55 * image.size
    assert crop_without(image, []) == (slice(0, 200), slice(0, 320))
    assert crop_without(image, [Box(150, 90, 20, 10)])[0].stop <= 200


@pytest.mark.slow
def test_real_images_without_text_are_left_alone(real_data: Path) -> None:
    random, found, false, count = np.random.default_rng(1), 0, 0, 0
    for name in sorted(path.name for path in real_data.iterdir()):
        source = open_set(real_data / name)
        for position in range(0, len(source.examples), max(1, len(source.examples) // 60)):
            image, _ = source.read(position)
            false += bool(find_text(image))
            shown = image.copy()
            at = int(random.integers(0, image.shape[1] - 160)), int(random.integers(20, image.shape[0] - 6))
            write(shown, "J. Meyer 1961", at, font=FONTS[position % 3], level=int(random.integers(190, 256)))
            found += bool(find_text(shown))
            count += 1
    print(f"text: found in {found} of {count}, seen where there is none in {false}")
    assert false <= 0.01 * count
    assert found >= 0.9 * count
