"""Augmentation that respects ultrasound: geometry (never upside down) and appearance. NumPy and OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
TILT = 30.0  # degrees; from 32 on, an image would fold over

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]  # x and y of each pixel, in pixels


@dataclass(frozen=True)
class Look:
    """A change of appearance, the same for an image and its context, so that the context tells the look."""

    gamma: float
    gain: float
    slope: float  # relative gain from the top to the bottom of the image

    @classmethod
    def draw(cls, random: np.random.Generator) -> Look:
        if random.random() < 0.3:
            return cls(1.0, 1.0, 0.0)
        return cls(
            float(np.exp(random.normal(0.0, 0.25))), float(np.exp(random.normal(0.0, 0.2))), random.normal(0.0, 0.25)
        )

    def apply(self, image: Image) -> Image:
        depth = np.linspace(-0.5, 0.5, image.shape[0], dtype=np.float32)[:, None]
        levels = (image.astype(np.float32) / 255.0) ** self.gamma
        levels *= self.gain * (1.0 + self.slope * depth)
        return (levels * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def draw_warp(shape: tuple[int, int], random: np.random.Generator, *, strength: float) -> Maps:
    """Sampling maps of another geometry: flip, zoom, shift, tilt and a smooth elastic field.

    Never upside down: depth has a meaning.
    """
    x, y = _grid(shape)
    if random.random() < 0.5:
        x = -x
    zoom = np.exp(random.uniform(-0.15, 0.05) * strength)
    tilt = np.deg2rad(random.uniform(-4.0, 4.0)) * strength
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2) * strength
    elastic = _elastic(shape, random, 0.006 * strength)
    warped_x = zoom * (x * np.cos(tilt) - y * np.sin(tilt)) + shift_x + elastic[0]
    warped_y = zoom * (x * np.sin(tilt) + y * np.cos(tilt)) + shift_y + elastic[1]
    return _pixels(warped_x, warped_y)


def draw_bend(shape: tuple[int, int], random: np.random.Generator) -> Maps:
    """Sampling maps of a mild elastic field that vanishes at the borders.

    What is made should look like the images as they are: skin at the top, the scanner's dark frame at the sides. Zoomed
    and shifted training images taught the network to leave both out.
    """
    x, y = _grid(shape)
    inside = np.cos(np.pi * x) * np.cos(np.pi * y)
    elastic = _elastic(shape, random, 0.01)
    return _pixels(x + inside * elastic[0], y + inside * elastic[1])


def draw_tilt(shape: tuple[int, int], random: np.random.Generator) -> Maps:
    """Sampling maps of `draw_bend`, and for every second image a tilt by up to TILT degrees, most at half depth.

    Straight lines stay nearly straight, columns stay where they are, skin and bottom as they are. Fibres steeper than
    15 degrees are rare in real sets, and a network that has not seen them makes them half as steep as it is asked to.
    """
    columns, rows = draw_bend(shape, random)
    if random.random() < 0.5:
        x, y = _grid(shape)
        slope = np.tan(np.deg2rad(random.uniform(-TILT, TILT)))
        rows = rows + (slope * np.cos(np.pi * y) * x * shape[0]).astype(np.float32)
    return columns, rows


def _grid(shape: tuple[int, int]) -> Maps:
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return (columns + 0.5) / shape[1] - 0.5, (rows + 0.5) / shape[0] - 0.5


def _elastic(shape: tuple[int, int], random: np.random.Generator, strength: float) -> list[NDArray[np.float32]]:
    coarse = random.normal(0.0, strength, (2, 5, 5)).astype(np.float32)
    size = (shape[1], shape[0])
    return [np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_CUBIC), np.float32) for field in coarse]


def _pixels(x: NDArray[np.float32], y: NDArray[np.float32]) -> Maps:
    height, width = x.shape
    return ((x + 0.5) * width - 0.5).astype(np.float32), ((y + 0.5) * height - 0.5).astype(np.float32)


def warp(image: Image, maps: Maps, *, labels: bool = False) -> Image:
    """Sample an image, or with `labels` a mask (nearest neighbour), through maps."""
    # Lanczos: linear interpolation takes the finest speckle away, and the network learns that.
    interpolation = cv2.INTER_NEAREST if labels else cv2.INTER_LANCZOS4
    return np.asarray(
        cv2.remap(image, *maps, interpolation=interpolation, borderMode=cv2.BORDER_REFLECT_101), dtype=np.uint8
    )
