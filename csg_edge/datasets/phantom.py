"""A labelled musculoskeletal B-mode ultrasound phantom: masks and images from seeds alone, no data needed.

Anatomy (`Geometry`, from `csg_edge.datasets.anatomy`) and machine look (`Appearance`) are drawn apart, so that one look
can be shared by many anatomies: that is what a context image needs.

Image formation is linear and space-variant as in Jensen (J. Acoust. Soc. Am. 89:182, 1991): complex Gaussian scatterers
scaled by echogenicity, plus coherent reflectors, are attenuated and convolved with a depth-dependent point-spread
function at baseband; the magnitude is the envelope. Without reflectors that is fully developed speckle, Rayleigh with
mean/std 1.91 (Wagner et al., IEEE Trans. Sonics Ultrason. 30:156, 1983). Attenuation grows with frequency and depth and
is compensated by an imperfect TGC (Szabo, Diagnostic Ultrasound Imaging, 2014), hence shadow and enhancement.

Labels are those of `MSK_SCHEMA`; the nerve_vessel scene labels only nerve and vessel, as public sets of that kind do.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.anatomy import (
    FIELD_MM,
    SCENES,
    STREAK_HOSTS,
    TISSUES,
    Band,
    Curve,
    Floats,
    Generator,
    Geometry,
    Image,
    Purpose,
    Tissue,
    check_size,
    fixed_point,
    label_regions,
    random_stream,
    row_depths,
    sample_geometry,
)
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.storage import folder_replaced

__all__ = [
    "SCENES",
    "Appearance",
    "Geometry",
    "Phantom",
    "compress",
    "form_envelope",
    "make_phantom",
    "psf_sigma",
    "render_image",
    "render_mask",
    "sample_appearance",
    "sample_geometry",
    "write_phantoms",
]

IMAGES_PER_GROUP = 5  # images of one written folder that share an appearance, and so a split
TGC_DB = 0.55  # attenuation the TGC assumes, dB/cm/MHz one way


@dataclass(frozen=True)
class Appearance:
    """Machine look of one phantom, independent of its anatomy."""

    gain_db: float = 0.0
    dynamic_range_db: float = 60.0
    frequency_mhz: float = 9.0
    speckle_size: float = 1.2  # factor on the point-spread function
    tgc_slope_db: float = 0.0  # residual error of the depth compensation at the bottom of the field
    near_field_db: float = 5.0  # extra brightness at the probe
    focal_depth: float = 0.5
    contrast: float = 1.0  # factor on level differences between tissues
    noise_db: float = -72.0  # electronic noise at the probe, amplified with depth
    grey_gamma: float = 1.1
    smoothing: float = 0.0  # of the envelope before compression (compounding, scan conversion), pixels at 256


class Phantom(NamedTuple):
    """image and mask uint8 (size, size), with what they were made of."""

    image: Image
    mask: Image
    geometry: Geometry
    appearance: Appearance


def sample_appearance(seed: int) -> Appearance:
    """Draw a machine look. Raises InputError for a negative seed."""
    u = random_stream(seed, Purpose.APPEARANCE).uniform
    return Appearance(
        gain_db=u(-6, 4),
        dynamic_range_db=u(52, 72),
        frequency_mhz=u(6.5, 14),
        speckle_size=u(0.9, 1.5),
        tgc_slope_db=u(-18, 2),
        near_field_db=u(0, 9),
        focal_depth=u(0.25, 0.75),
        contrast=u(0.8, 1.05),
        noise_db=u(-80, -66),
        grey_gamma=u(1.1, 1.8),
        smoothing=u(0.35, 0.9),
    )


def render_mask(geometry: Geometry, *, size: int = 256) -> Image:
    """Label mask, uint8 (size, size), indices of MSK_SCHEMA. Raises InputError for a bad size."""
    regions, names = label_regions(geometry, size)
    shown = ("nerve", "vessel") if geometry.scene == "nerve_vessel" else MSK_SCHEMA.names
    labels = [TISSUES[name].label for name in names]
    values = [MSK_SCHEMA.index(label) if label in shown else 0 for label in labels]
    return _look_up(regions, values).astype(np.uint8)


def render_image(geometry: Geometry, appearance: Appearance, *, seed: int, size: int = 256) -> Image:
    """B-mode image, uint8 (size, size); `seed` is the scatterer realisation. Raises InputError for bad size or seed."""
    regions, names = label_regions(geometry, size)
    tissues = [TISSUES[name] for name in names]
    # Structure is anatomy: it stays when appearance or realisation change.
    texture = random_stream(geometry.seed, Purpose.TEXTURE)
    # Contrast turns about a mid grey of -30 dB.
    echo = _look_up(regions, [_amplitude((t.echo_db + 30) * appearance.contrast - 30) for t in tissues])
    echo = _blur(echo, 0.6 * size / 256, 0.6 * size / 256)
    reflectors = _reflectors(geometry, regions, names, texture) * _patches(texture, (40, 14), size, 0.4)
    echo = np.hypot(echo, reflectors * 0.6)  # septa also scatter, which keeps them from looking drawn
    gain = _depth_gain(_look_up(regions, [t.attenuation for t in tissues]), appearance)
    gain *= _patches(texture, (20, 7), size, 0.22) * _patches(texture, (1, 12), size, 0.12)
    return compress(form_envelope(echo * gain, appearance, seed=seed, reflectors=reflectors * gain), appearance)


def form_envelope(echo: Floats, appearance: Appearance, *, seed: int, reflectors: Floats | None = None) -> Floats:
    """Envelope, float32 (size, size), of diffuse scattering `echo` and coherent `reflectors`, amplitudes (size, size).

    A homogeneous `echo` well above the noise gives a mean square of echo**2.
    """
    size = echo.shape[0]
    depth = row_depths(size)[:, None]
    noise = 10 ** ((appearance.noise_db + 0.7 * TGC_DB * appearance.frequency_mhz * FIELD_MM / 10 * depth) / 20)
    scatterers = random_stream(seed, Purpose.SPECKLE).standard_normal((size, size, 2), np.float32)
    scatterers *= np.sqrt((echo * echo + noise * noise) / 2)[..., None]  # both circular Gaussian: variances add
    envelope = np.zeros((size, size), np.float32)
    for centre in (0.15, 0.5, 0.85):  # overlapping depth bands, each with its own separable point-spread function
        weight = np.clip(1 - np.abs(np.clip(depth, 0.15, 0.85) - centre) / 0.35, 0, 1)
        rows = np.flatnonzero(weight[:, 0] > 0)
        axial, lateral = psf_sigma(appearance, centre, size=size)
        low = max(0, int(rows[0]) - math.ceil(4 * axial))
        high = int(rows[-1]) + 1 + math.ceil(4 * axial)
        # A unit-sum Gaussian divides the variance of white noise by 4 pi sigma sigma', and thin lines by less.
        field = scatterers[low:high] * math.sqrt(4 * math.pi * axial * lateral)
        if reflectors is not None:
            field[..., 0] += reflectors[low:high] * math.sqrt(1 + 2 * math.pi * axial * axial)
        field = _blur(field, lateral, axial)[rows - low]
        envelope[rows] += weight[rows] * cv2.magnitude(field[..., 0], field[..., 1])
    return envelope


def psf_sigma(appearance: Appearance, depth: float, *, size: int = 256) -> tuple[float, float]:
    """Standard deviations (axial, lateral) in pixels of the Gaussian point-spread function at a depth in 0..1.

    Axially two and a half cycles long, lengthening with depth; laterally wavelength times f-number at the focus.
    """
    wavelength = 1.54 / appearance.frequency_mhz  # mm, at 1540 m/s
    scale = appearance.speckle_size * wavelength * size / FIELD_MM / 2.355  # full width at half maximum to sigma
    off_focus = (depth - appearance.focal_depth) / 0.4
    return max(0.4, 1.25 * scale * (1 + 0.3 * depth)), max(0.6, 2.7 * scale * math.hypot(1, off_focus))


def compress(envelope: Floats, appearance: Appearance) -> Image:
    """Log-compress an envelope (1.0 is white at gain 0) to the dynamic range and grey curve: uint8, same shape."""
    blur = appearance.smoothing * envelope.shape[0] / 256
    smooth = _blur(envelope, 1.3 * blur, 0.7 * blur) if blur > 0 else envelope
    level_db = cv2.log(np.maximum(smooth, 1e-6)) * (20 / math.log(10))
    grey = np.clip((level_db + appearance.gain_db) / appearance.dynamic_range_db + 1, 0, 1)
    return np.asarray(np.rint(cv2.pow(grey, appearance.grey_gamma) * 255), np.uint8)


def make_phantom(
    seed: int, *, size: int = 256, scene: str | None = None, appearance_seed: int | None = None
) -> Phantom:
    """One phantom; the same arguments give the same bytes on the same machine and library versions.

    `size` is a multiple of 32 in 64..512. `appearance_seed` (default: `seed`) changes the look and not the mask.
    Raises InputError for a bad size, scene or seed.
    """
    geometry = sample_geometry(seed, scene=scene)
    appearance = sample_appearance(seed if appearance_seed is None else appearance_seed)
    image = render_image(geometry, appearance, seed=seed, size=size)
    return Phantom(image, render_mask(geometry, size=size), geometry, appearance)


def write_phantoms(directory: str | os.PathLike[str], *, count: int, seed: int, size: int = 256) -> None:
    """Write `count` phantoms: images/, masks/ and contexts/ with equal names, labels.json, manifest.csv.

    A context is another anatomy under the same appearance. IMAGES_PER_GROUP images share an appearance, whose seed is
    their group; the second of every five groups is "val", so that two groups are enough to have both splits. Written
    aside, then renamed. Raises InputError.
    """
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"phantom: {target} exists and is not an empty folder; name a new folder or empty this one")
    if count < 1:
        raise InputError(f"phantom: count is {count}; give 1 or more")
    random_stream(seed, Purpose.FOLDER)
    check_size(size)
    with folder_replaced(target) as aside:
        for folder in ("images", "masks", "contexts"):
            (aside / folder).mkdir()
        rows = [_write_one(aside, index, seed=seed, size=size) for index in range(count)]
        (aside / "labels.json").write_text(json.dumps({"names": MSK_SCHEMA.names}) + "\n", encoding="utf-8")
        with (aside / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def split_of(index: int) -> str:
    """The split of the image with that number in a written folder."""
    return "val" if index // IMAGES_PER_GROUP % 5 == 1 else "train"


def _write_one(folder: Path, index: int, *, seed: int, size: int) -> dict[str, object]:
    group = index // IMAGES_PER_GROUP
    own, context = (int(s) for s in random_stream(seed, Purpose.FOLDER, 0, index).integers(2**32, size=2))
    look = int(random_stream(seed, Purpose.FOLDER, 1, group).integers(2**32))
    phantom = make_phantom(own, size=size, appearance_seed=look)
    other = make_phantom(context, size=size, appearance_seed=look)
    name, scene, split = f"{index:06d}", phantom.geometry.scene, split_of(index)
    for kind, picture in (("images", phantom.image), ("masks", phantom.mask), ("contexts", other.image)):
        (folder / kind / f"{name}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return {"name": name, "scene": scene, "seed": own, "appearance_seed": look, "group": look, "split": split}


def _reflectors(geometry: Geometry, regions: Image, names: list[str], rng: Generator) -> Floats:
    """Amplitude (size, size) of coherent reflectors: streaks within tissues, then walls of blobs."""
    layer = np.zeros_like(regions)
    bands = geometry.bands
    for index, name in enumerate(names):
        if TISSUES[name].streak_db is not None:
            host = index if index < len(bands) else STREAK_HOSTS[name]
            bottom = bands[host + 1].top if host + 1 < len(bands) else Curve(1.05)
            drawn = np.zeros_like(layer)
            _draw_streaks(drawn, TISSUES[name], bands[host], bottom, rng)
            np.copyto(layer, drawn, where=regions == index)
    for blob in geometry.blobs:
        wall_db = TISSUES[blob.tissue].wall_db
        if wall_db is not None:  # just outside the blob: labels of vessels cover the lumen
            wall = replace(blob, radius_x=blob.radius_x + 0.006, radius_depth=blob.radius_depth + 0.006)
            _draw_wall(layer, wall.outline(len(layer)), _amplitude(wall_db))
    return np.asarray(layer, np.float32) / np.float32(255)


def _draw_streaks(layer: Image, tissue: Tissue, band: Band, bottom: Curve, rng: Generator) -> None:
    """Bright streaks between two curves: they follow the curves, turned by the band's slope."""
    size = layer.shape[0]
    thickness = max(0.0, bottom.depth - band.top.depth)
    count = 2 + int(1.4 * thickness * (1 + tissue.length) / ((band.spacing or tissue.spacing) * tissue.length))
    stretch, place, inside, turn, dim = rng.random((5, count, 1), np.float32)
    along = tissue.length * (0.4 + 1.2 * stretch) * np.linspace(-0.5, 0.5, 9, dtype=np.float32)  # (count, 9)
    x = place * (1 + tissue.length) - tissue.length / 2 + along
    slope = band.slope + tissue.jitter * (2 * turn - 1)
    depth = (1 - inside) * band.top.at(x) + inside * bottom.at(x) + slope * along
    steep = np.abs(depth[:, -1] - depth[:, 0]) / (x[:, -1] - x[:, 0])  # a slanted reflector sends less back
    level_db = (tissue.streak_db or 0) - 20 * dim[:, 0] ** 1.5 - 16 * steep
    colours = np.minimum(255 * 10 ** (level_db / 20), 255).tolist()
    for line, colour in zip(fixed_point(x, depth, size), colours, strict=True):
        cv2.polylines(layer, [line], False, colour, max(1, round(size / 256)), cv2.LINE_AA, 4)


def _draw_wall(layer: Image, outline: NDArray[np.int32], amplitude: float) -> None:
    """Outline of a blob on an empty inside, brighter where it lies across the beam."""
    cv2.fillPoly(layer, [outline], 0, shift=4)
    ends = np.roll(outline, -1, axis=0)
    step = np.abs(ends - outline)
    across = step[:, 0] / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1)
    colours = (255 * amplitude * (0.06 + 0.94 * across**3)).tolist()
    for start, end, colour in zip(outline.tolist(), ends.tolist(), colours, strict=True):
        cv2.line(layer, start, end, colour, max(1, round(len(layer) / 256)), cv2.LINE_AA, 4)


def _depth_gain(attenuation: Floats, appearance: Appearance) -> Floats:
    """Amplitude factor (size, size): two-way attenuation down each column against the TGC, and the near-field look."""
    size = attenuation.shape[0]
    excess = (attenuation - TGC_DB) * (2 * appearance.frequency_mhz * FIELD_MM / 10 / size)
    loss_db = _blur(np.cumsum(excess, axis=0), 2.0 * size / 256, 0.5)  # a beam is wider than a column
    depth = row_depths(size)[:, None]
    look_db = appearance.tgc_slope_db * depth + appearance.near_field_db * np.exp(-depth / 0.06)
    return np.asarray(cv2.exp((look_db - loss_db) * (math.log(10) / 20)), np.float32)


def _patches(rng: Generator, cells: tuple[int, int], size: int, spread: float) -> Floats:
    """Smooth log-normal unevenness (size, size) with that many cells in depth and laterally; spread in nepers."""
    coarse = rng.standard_normal(cells, np.float32) * spread
    return np.asarray(cv2.exp(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)), np.float32)


def _blur(picture: Floats, lateral: float, axial: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), lateral, sigmaY=axial), np.float32)


def _look_up(regions: Image, values: Sequence[float]) -> Floats:
    return np.array(values, np.float32)[regions]


def _amplitude(level_db: float) -> float:
    return float(10 ** (level_db / 20))
