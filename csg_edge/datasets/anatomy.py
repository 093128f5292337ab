"""Anatomy of the musculoskeletal phantom: tissues, and scenes of bands and blobs drawn from seeds.

Positions and depths are fractions of a square field FIELD_MM wide; depth grows downwards from the probe. Nothing here
depends on the machine look. Tendon is fibrillar (Martinoli et al., Radiology 186:839, 1993), nerve a honeycomb
(Silvestri et al., Radiology 197:291, 1995). Labels are those of `MSK_SCHEMA`; the shadow below a bone cortex is
background, since nothing was imaged there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Generator = np.random.Generator

SCENES = ("muscle", "tendon", "tendon_ditf", "bone", "nerve_vessel")
FIELD_MM = 40.0


class Purpose(IntEnum):
    """What a random stream is for: each purpose has its own, independent of the others under one seed."""

    GEOMETRY = 0
    APPEARANCE = 1
    TEXTURE = 2
    SPECKLE = 3
    FOLDER = 4


def random_stream(seed: int, purpose: Purpose, *key: int) -> Generator:
    """Random generator of a seed, a purpose and any further key. Raises InputError for a bad seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"phantom: seed is {seed!r}; give a whole number of 0 or more")
    return Generator(np.random.PCG64(np.random.SeedSequence(int(seed), spawn_key=(purpose, *key))))


@dataclass(frozen=True)
class Tissue:
    """What a tissue does to sound. Levels in dB below white, attenuation in dB/cm/MHz, lengths in fields."""

    label: str
    echo_db: float  # diffuse scattering
    attenuation: float
    streak_db: float | None = None  # coherent streaks: septa, perimysium, fibrils, cortex
    spacing: float = 0.03
    length: float = 0.3
    jitter: float = 0.03  # spread of streak slope
    wall_db: float | None = None  # coherent outline of a blob


TISSUES = {
    "skin": Tissue("superficial_tissue", -27, 0.6, -16, 0.012, 0.8, 0.004),
    "fat": Tissue("superficial_tissue", -37, 0.5, -17, 0.026, 0.30, 0.05),
    "aponeurosis": Tissue("aponeurosis", -27, 0.8, -8, 0.008, 0.7, 0.006),
    "muscle": Tissue("muscle", -42, 0.55, -18, 0.030, 0.20, 0.04),
    "muscle_cross": Tissue("muscle", -43, 0.55, -19, 0.046, 0.05, 0.35),
    "deep": Tissue("deep_tissue", -42, 0.55, -25, 0.034, 0.16, 0.06),
    "tendon": Tissue("tendon", -34, 0.8, -13, 0.007, 0.22, 0.012),
    "ditf": Tissue("ditf", -45, 0.5, -22, 0.016, 0.05, 0.15),
    "bone": Tissue("bone", -20, 7.0, 3, 0.008, 1.2, 0.01),
    "shadow": Tissue("background", -44, 2.0, -14, 0.080, 0.8, 0.02),
    "nerve": Tissue("nerve", -21, 0.6, wall_db=-15),
    "fascicle": Tissue("nerve", -48, 0.6),
    "vessel": Tissue("vessel", -64, 0.15, wall_db=-11),
    "sheath": Tissue("background", -37, 0.6, -17, 0.024, 0.05, 0.25),
}
STREAK_HOSTS = {"ditf": 2, "sheath": 3}  # the band whose curves the streaks of a blob follow


@dataclass(frozen=True)
class Curve:
    """Depth over lateral position x in 0..1: depth + tilt, bend and a slow wave."""

    depth: float
    tilt: float = 0.0
    bend: float = 0.0
    wave: float = 0.0
    cycles: float = 1.0
    phase: float = 0.0

    def at(self, x: Floats) -> Floats:
        """Depth at x, same shape."""
        u = x - 0.5
        wave = self.wave * np.sin(2 * math.pi * self.cycles * x + self.phase)
        return np.asarray(self.depth + self.tilt * u + self.bend * u * u + wave, np.float32)


@dataclass(frozen=True)
class Band:
    """A layer from its top curve down to the next band's; slope and spacing (0: the tissue's own) of its streaks."""

    tissue: str
    top: Curve
    slope: float = 0.0
    spacing: float = 0.0


@dataclass(frozen=True)
class Blob:
    """A closed shape: centre, radii, rotation (radians), and (amplitude, phase) of its outline's harmonics 2, 3, ..."""

    tissue: str
    x: float
    depth: float
    radius_x: float
    radius_depth: float
    angle: float = 0.0
    ripples: tuple[tuple[float, float], ...] = ()
    host: int | None = None  # index of the band it is confined to

    def outline(self, size: int) -> NDArray[np.int32]:
        """Polygon (P, 2) in 1/16 pixels, as OpenCV draws with shift=4."""
        theta = np.linspace(0, 2 * math.pi, 40 if self.ripples else 12, endpoint=False)
        radius = 1 + sum(a * np.cos(k * theta + phase) for k, (a, phase) in enumerate(self.ripples, start=2))
        u, v = self.radius_x * radius * np.cos(theta), self.radius_depth * radius * np.sin(theta)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return fixed_point(self.x + u * cos - v * sin, self.depth + u * sin + v * cos, size)


@dataclass(frozen=True)
class Geometry:
    """Anatomy of one phantom: bands from the surface down, then blobs on top of them. `seed` places the streaks."""

    scene: str
    seed: int
    bands: tuple[Band, ...]
    blobs: tuple[Blob, ...] = ()


def sample_geometry(seed: int, *, scene: str | None = None) -> Geometry:
    """Draw an anatomy; `scene` is one of SCENES, drawn from the seed if None. Raises InputError."""
    rng = random_stream(seed, Purpose.GEOMETRY)
    drawn = SCENES[int(rng.integers(len(SCENES)))]  # always drawn, so that naming it changes nothing else
    name = drawn if scene is None else scene
    if name not in SCENES:
        raise InputError(f"phantom: no scene {name!r}; choose from {', '.join(SCENES)}")
    blobs: list[Blob] = []
    if name == "nerve_vessel":
        bands, blobs = _nerve_vessel_scene(rng)
    elif name in ("tendon", "tendon_ditf"):
        bands, blobs = _tendon_scene(rng, torn=name == "tendon_ditf")
    else:
        bands = _muscle_scene(rng, over_bone=name == "bone")
    return Geometry(name, int(seed), tuple(bands), tuple(blobs))


def label_regions(geometry: Geometry, size: int) -> tuple[Image, list[str]]:
    """Region index per pixel, uint8 (size, size), and each region's tissue: one per band, then one per blob tissue.

    Raises InputError for a bad size.
    """
    check_size(size)
    tops = np.maximum.accumulate([band.top.at(row_depths(size)) for band in geometry.bands])  # (bands, size)
    regions = np.zeros((size, size), np.uint8)
    for top in tops[1:]:
        regions += row_depths(size)[:, None] >= top
    names = [band.tissue for band in geometry.bands] + list(dict.fromkeys(blob.tissue for blob in geometry.blobs))
    for blob in geometry.blobs:
        index = names.index(blob.tissue, len(tops))
        inside = regions if blob.host is None else np.zeros_like(regions)
        cv2.fillPoly(inside, [blob.outline(size)], index, shift=4)
        if blob.host is not None:
            regions[(inside == index) & (regions == blob.host)] = index
    return regions, names


def _curve(rng: Generator, depth: float, *, tilt: float = 0.06, bend: tuple[float, float] = (-0.12, 0.12)) -> Curve:
    u = rng.uniform
    return Curve(depth, u(-tilt, tilt), u(*bend), u(0, 0.008), u(0.5, 2.0), u(0, 6.28))


def _sheet(rng: Generator, tissue: str, top: Curve, thickness: float, below: Band) -> list[Band]:
    """A thin layer of near-constant thickness, and `below` moved up to its underside."""
    underside = replace(top, depth=top.depth + thickness, phase=top.phase + rng.uniform(-0.5, 0.5))
    return [Band(tissue, top), replace(below, top=underside)]


def _cortex(rng: Generator, depth: float) -> list[Band]:
    top = _curve(rng, depth, tilt=0.2, bend=(-0.15, 0.7))  # mostly convex towards the probe
    return _sheet(rng, "bone", top, rng.uniform(0.03, 0.045), Band("shadow", top))


def _surface(rng: Generator, depth: float) -> list[Band]:
    return [Band("skin", Curve(-0.1)), Band("fat", _curve(rng, depth * rng.uniform(0.15, 0.35), tilt=0.01))]


def _muscle_scene(rng: Generator, *, over_bone: bool) -> list[Band]:
    u = rng.uniform
    first, thickness = u(0.06, 0.26), u(0.22, 0.5)
    top = _curve(rng, first)
    fascicles = Band("muscle", top, u(0.1, 0.5) * rng.choice((-1, 1)), u(0.014, 0.034))
    bands = [*_surface(rng, first), *_sheet(rng, "aponeurosis", top, u(0.018, 0.038), fascicles)]
    if over_bone:
        return bands + _cortex(rng, first + thickness)
    bottom = _curve(rng, first + thickness, tilt=0.12)
    return bands + _sheet(rng, "aponeurosis", bottom, u(0.018, 0.038), Band("deep", bottom, u(-0.1, 0.1)))


def _tendon_scene(rng: Generator, *, torn: bool) -> tuple[list[Band], list[Blob]]:
    u = rng.uniform
    first, thickness = u(0.1, 0.3), u(0.12, 0.24)
    top = _curve(rng, first, tilt=0.1, bend=(-0.2, 0.2))
    bottom = replace(top, depth=first + thickness, tilt=top.tilt + u(-0.06, 0.06), bend=top.bend + u(-0.1, 0.1))
    bands = [*_surface(rng, first), Band("tendon", top), Band("deep", bottom, u(-0.2, 0.2))]
    if u(0, 1) < 0.75:
        bands += _cortex(rng, first + thickness + u(0.12, 0.3))
    gaps = int(rng.integers(1, 3)) if torn else 0
    blobs = []
    for k in range(gaps):
        x, inside = (k + u(0.3, 0.7)) / gaps, u(0.3, 0.7)
        depth = (1 - inside) * top.depth + inside * bottom.depth + top.tilt * (x - 0.5) + top.bend * (x - 0.5) ** 2
        slope = math.atan(top.tilt + 2 * top.bend * (x - 0.5))
        radii = u(0.06, 0.15), thickness * u(0.14, 0.36)
        blobs.append(Blob("ditf", x, depth, *radii, slope, _ripples(rng, 0.25, 7), host=2))
    return bands, blobs


def _nerve_vessel_scene(rng: Generator) -> tuple[list[Band], list[Blob]]:
    u = rng.uniform
    first, second = u(0.08, 0.22), u(0.5, 0.75)
    top, fascia = _curve(rng, first), _curve(rng, second, tilt=0.25, bend=(-0.4, 0.4))
    bands = [*_surface(rng, first), *_sheet(rng, "aponeurosis", top, u(0.008, 0.016), Band("muscle_cross", top))]
    if u(0, 1) < 0.25:
        bands += _cortex(rng, second + 0.12)
    else:
        bands += _sheet(rng, "aponeurosis", fascia, u(0.006, 0.014), Band("muscle_cross", fascia))
    x, depth = u(0.25, 0.75), u(first + 0.14, 0.5)
    blobs = [Blob("sheath", x, depth, u(0.15, 0.28), u(0.07, 0.13), u(-0.4, 0.4), _ripples(rng, 0.2, 5))]
    taken: list[tuple[float, float, float]] = []
    for tissue in ["vessel"] * int(rng.integers(1, 3)) + ["nerve"] * int(rng.integers(1, 4)):
        for _ in range(12):  # try a few places beside what is already there, else leave it out
            radius = u(0.04, 0.12) if tissue == "vessel" else u(0.05, 0.12)
            high, low = first + radius + 0.04, second - radius
            place = float(np.clip(x + u(-0.3, 0.3), 0.05, 0.95)), float(np.clip(depth + u(-0.16, 0.2), high, low))
            if all(math.dist(place, (a, b)) > 1.05 * (radius + r) for a, b, r in taken):
                taken.append((*place, radius))
                blobs += _bundle(rng, tissue, place, radius)
                break
    return bands, blobs


def _bundle(rng: Generator, tissue: str, place: tuple[float, float], radius: float) -> list[Blob]:
    """A vessel, or a nerve with its fascicles packed on a jittered hexagonal lattice."""
    u = rng.uniform
    flat, angle, pitch = u(0.45, 1.0), u(-0.5, 0.5), u(0.026, 0.042)
    if tissue == "vessel":
        return [Blob("vessel", *place, radius, radius * flat, angle, _ripples(rng, 0.06, 3))]
    blobs = [Blob("nerve", *place, radius, radius * flat, angle, _ripples(rng, 0.1, 4))]
    for row, column in np.ndindex(9, 9):
        a, b = (column - 4 + 0.5 * (row % 2) + u(-0.2, 0.2)) * pitch, ((row - 4) * 0.87 + u(-0.2, 0.2)) * pitch
        if math.hypot(a, b / flat) < radius - 0.6 * pitch:
            x, depth = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
            radii = pitch * u(0.22, 0.46), pitch * u(0.2, 0.4)
            blobs.append(Blob("fascicle", place[0] + x, place[1] + depth, *radii, u(0, 3.14)))
    return blobs


def _ripples(rng: Generator, amplitude: float, count: int) -> tuple[tuple[float, float], ...]:
    return tuple((rng.uniform(0, amplitude) / math.sqrt(k + 1), rng.uniform(0, 6.28)) for k in range(count))


def fixed_point(x: NDArray[np.floating], depth: NDArray[np.floating], size: int) -> NDArray[np.int32]:
    """Points (..., 2) in 1/16 pixels of a (size, size) picture, as OpenCV draws with shift=4."""
    return np.asarray(np.rint(np.stack([x, depth], axis=-1) * (size * 16)), np.int32)


def row_depths(size: int) -> Floats:
    """Depth of each pixel row, float32 (size,), in 0..1."""
    return np.asarray((np.arange(size) + 0.5) / size, np.float32)


def check_size(size: int) -> None:
    """Raises InputError unless a picture can have this many pixels a side."""
    if size % 32 or not 64 <= size <= 512:
        raise InputError(f"phantom: size is {size}; give a multiple of 32 from 64 to 512")
