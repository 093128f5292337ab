"""Augmentation that respects ultrasound: geometry (never upside down) and appearance. NumPy and OpenCV."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

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
        table = (np.arange(256, dtype=np.float32) / 255.0) ** self.gamma
        levels = np.asarray(cv2.LUT(image, table), np.float32)
        levels *= self.gain * (1.0 + self.slope * depth)
        levels *= 255.0
        levels += 0.5
        return levels.clip(0, 255, out=levels).astype(np.uint8)


@dataclass(frozen=True)
class Warp:
    """Another geometry: flip, zoom, shift, tilt and a smooth elastic field; coordinates run from -0.5 to 0.5.

    Never upside down: depth has a meaning.
    """

    flip: bool
    zoom: float
    tilt: float  # radians
    shift: tuple[float, float]  # across, down
    elastic: NDArray[np.float32]  # (2, 5, 5), across and down, coarse

    @classmethod
    def draw(cls, random: np.random.Generator, *, strength: float) -> Warp:
        flip = random.random() < 0.5
        zoom = float(np.exp(random.uniform(-0.15, 0.05) * strength))
        tilt = float(np.deg2rad(random.uniform(-4.0, 4.0)) * strength)
        across, down = random.uniform(-0.06, 0.06, 2) * strength
        return cls(flip, zoom, tilt, (float(across), float(down)), _elastic(random, 0.006 * strength))

    def maps(self, shape: tuple[int, int]) -> Maps:
        """Sampling maps for images (H, W)."""
        x, y = _grid(shape)
        if self.flip:
            x = -x
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        across, down = (_widen(field, shape) for field in self.elastic)
        return _pixels(
            self.zoom * (x * cos - y * sin) + self.shift[0] + across,
            self.zoom * (x * sin + y * cos) + self.shift[1] + down,
        )


@dataclass(frozen=True)
class Bend:
    """A mild elastic field that vanishes at the borders, and a tilt of the rows, most at half depth.

    What is made should look like the images as they are: skin at the top, the scanner's dark frame at the sides. Zoomed
    and shifted training images taught the network to leave both out. Where rows are tilted, straight lines stay nearly
    straight, columns stay where they are, skin and bottom as they are.
    """

    elastic: NDArray[np.float32]  # (2, 5, 5), across and down, coarse
    slope: float = 0.0  # tangent of the tilt

    @classmethod
    def draw(cls, random: np.random.Generator) -> Bend:
        """Without tilt."""
        return cls(_elastic(random, 0.01))

    @classmethod
    def draw_tilted(cls, random: np.random.Generator) -> Bend:
        """Every second one tilted, by up to TILT degrees.

        Fibres steeper than 15 degrees are rare in real sets, and a network that has not seen them makes them half as
        steep as it is asked to.
        """
        bend = cls.draw(random)
        if random.random() < 0.5:
            return replace(bend, slope=math.tan(math.radians(random.uniform(-TILT, TILT))))
        return bend

    def maps(self, shape: tuple[int, int]) -> Maps:
        """Sampling maps for images (H, W)."""
        x, y = _grid(shape)
        inside = np.cos(np.pi * x) * np.cos(np.pi * y)
        across, down = (_widen(field, shape) for field in self.elastic)
        columns, rows = _pixels(x + inside * across, y + inside * down)
        if self.slope:
            rows = rows + (self.slope * np.cos(np.pi * y) * x * shape[0]).astype(np.float32)
        return columns, rows


Geometry = Warp | Bend


def _grid(shape: tuple[int, int]) -> Maps:
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return (columns + 0.5) / shape[1] - 0.5, (rows + 0.5) / shape[0] - 0.5


def _elastic(random: np.random.Generator, strength: float) -> NDArray[np.float32]:
    return random.normal(0.0, strength, (2, 5, 5)).astype(np.float32)


def _widen(field: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _pixels(x: NDArray[Any], y: NDArray[Any]) -> Maps:
    height, width = x.shape
    return ((x + 0.5) * width - 0.5).astype(np.float32), ((y + 0.5) * height - 0.5).astype(np.float32)


def warp(image: Image, maps: Maps, *, labels: bool = False) -> Image:
    """Sample an image, or with `labels` a mask (nearest neighbour), through maps."""
    # Lanczos: linear interpolation takes the finest speckle away, and the network learns that.
    interpolation = cv2.INTER_NEAREST if labels else cv2.INTER_LANCZOS4
    return np.asarray(
        cv2.remap(image, *maps, interpolation=interpolation, borderMode=cv2.BORDER_REFLECT_101), dtype=np.uint8
    )
