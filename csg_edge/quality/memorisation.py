"""Are generated images copies of training images, or of their own context?

The nearest training image of each generated image, against how near held-out real images are to the training set (a
test in the spirit of Meehan et al., AISTATS 2020, arXiv 2004.05675: copying shows as generated images nearer to the
training set than held-out ones). Two distances: `image_distances` on band-passed small images, over small shifts and
mirroring, which finds copies under gain, noise, shift and mirroring; and `feature_distances` for any descriptor, which
finds fewer altered copies and is there for a second view. An image drawn from a training mask is nearer to that mask's
image for its anatomy alone: use held-out masks. A copy of a small part of an image is not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import Weights, group_interval
from csg_edge.quality.checks import Features, check_feature_pair, check_images
from csg_edge.quality.record import Figure

CELLS = 64  # images are compared at 64 x 64
REACH = 2  # cells of shift each way: 8 pixels at 256
CLOSEST = 0.05  # share of the held-out images that counts as unusually near
COPY = 0.2  # distance: altered copies stay below 0.05, images of one mask were at 0.33 or more
_STEP = 25  # images compared at a time, each in 50 shifted and mirrored forms


@dataclass(frozen=True)
class Neighbours:
    """distances: (N,) to the nearest reference image; indices: (N,) which one that is."""

    distances: NDArray[np.float64]
    indices: NDArray[np.intp]


@dataclass(frozen=True)
class Memorisation:
    """generated, held_out: nearest training images of each set.

    near: share of generated images nearer than the nearest CLOSEST of the held-out ones; CLOSEST is expected, more is
    copying. ratio: median distance of generated over held-out ones; 1 is expected, below is copying. suspects:
    positions of generated images nearer than every held-out one, nearest first.
    """

    generated: Neighbours
    held_out: Neighbours
    near: Figure
    ratio: Figure
    suspects: NDArray[np.intp]


class Reference:
    """(M, H, W) uint8 images that others are compared with, reduced once. Raises InputError for constant images."""

    def __init__(self, references: NDArray[np.uint8]) -> None:
        check_images(references, "reference images")
        self._shape = references.shape[1:]
        self._fixed = reduced(references).reshape(len(references), -1)

    def distances(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`image_distances` of (N, H, W) images: (N, M). Raises InputError for constant images or another size."""
        check_images(images)
        if images.shape[1:] != self._shape:
            raise InputError(f"images of {images.shape[1:]} and references of {self._shape}; read both at one size")
        result = np.empty((len(images), len(self._fixed)), np.float32)
        shifts = [(r, c) for r in range(-REACH, REACH + 1) for c in range(-REACH, REACH + 1)]
        for start in range(0, len(images), _STEP):
            small = reduced(images[start : start + _STEP])
            forms = [
                np.roll(side, shift, axis=(1, 2)) for side in (small, small[:, :, ::-1]) for shift in shifts
            ]  # the taper of reduced leaves nothing at the borders for np.roll to carry round
            moved = np.stack(forms).reshape(-1, self._fixed.shape[1])
            correlation = (moved @ self._fixed.T).reshape(len(forms), len(small), -1)
            result[start : start + _STEP] = 1 - correlation.max(axis=0)
        return result


def image_distances(images: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, M): 1 - the best correlation of band-passed images over small shifts and mirroring; 0 for a copy, 1 unlike.

    images: (N, H, W), references: (M, H, W). Gain and slow shading drop out by the band-pass, noise by the reduction to
    CELLS x CELLS. Raises InputError for constant images or different sizes.
    """
    return Reference(references).distances(images)


def own_distances(images: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N,): `image_distances` of each image to the reference at the same position, such as its own context."""
    if len(images) != len(references):
        raise InputError(f"{len(images)} images, {len(references)} references; give one reference an image")
    pairs = zip(images, references, strict=True)
    return np.array([image_distances(image[None], reference[None])[0, 0] for image, reference in pairs], np.float32)


def feature_distances(features: Features, references: Features, *mirrored: Features) -> NDArray[np.float32]:
    """(N, M) Euclidean distances of (N, D) to (M, D) features; the least over also the features of mirrored images."""
    check_feature_pair(references, features)
    squares = (references.astype(np.float64) ** 2).sum(axis=1)
    least = np.full((len(features), len(references)), np.inf)
    for form in (features, *mirrored):
        form64 = form.astype(np.float64)
        squared = (form64**2).sum(axis=1)[:, None] + squares - 2 * form64 @ references.astype(np.float64).T
        least = np.minimum(least, squared)
    return np.asarray(np.sqrt(np.maximum(least, 0)), np.float32)


def nearest(distances: NDArray[np.float32]) -> Neighbours:
    """The nearest reference of each row of (N, M) distances."""
    indices = np.argmin(distances, axis=1)
    return Neighbours(distances[np.arange(len(distances)), indices].astype(np.float64), indices)


def memorisation(
    generated: NDArray[np.float32],
    held_out: NDArray[np.float32],
    generated_groups: Sequence[str],
    held_out_groups: Sequence[str],
    *,
    rng: np.random.Generator,
) -> Memorisation:
    """Judge (N, M) distances of generated and (K, M) of held-out real images to the same M training images.

    The held-out images' groups must not occur among the training images. Raises InputError for different M or fewer
    than 20 held-out images, of which the nearest 5 % would be none.
    """
    if generated.ndim != 2 or held_out.ndim != 2 or generated.shape[1] != held_out.shape[1]:
        raise InputError(
            f"memorisation: distances of {generated.shape} and {held_out.shape}; measure both to the same training set"
        )
    if len(held_out) < 1 / CLOSEST:
        raise InputError(f"memorisation: {len(held_out)} held-out images; give at least {1 / CLOSEST:.0f}")
    if not np.isfinite(generated).all() or not np.isfinite(held_out).all():
        raise InputError("memorisation: a distance is not finite; check the images and the encoder that made them")
    ours, theirs = nearest(generated), nearest(held_out)

    def near(a: Weights, b: Weights) -> float:
        if not a.any() or not b.any():
            return float("nan")
        limit = _weighted_quantile(theirs.distances, b, CLOSEST)
        return float(a[ours.distances < limit].sum() / a.sum())

    def ratio(a: Weights, b: Weights) -> float:
        if not a.any() or not b.any():
            return float("nan")
        usual = _weighted_quantile(theirs.distances, b, 0.5)
        return _weighted_quantile(ours.distances, a, 0.5) / usual if usual > 0 else float("nan")

    suspects = np.flatnonzero(ours.distances < theirs.distances.min())
    groups = (generated_groups, held_out_groups)
    return Memorisation(
        ours,
        theirs,
        group_interval(near, *groups, rng=rng),
        group_interval(ratio, *groups, rng=rng),
        suspects[np.argsort(ours.distances[suspects], kind="stable")],
    )


def reduced(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, CELLS, CELLS): band-passed between about 1 and 6 cells, tapered at the borders, of unit norm."""
    ramp = np.clip((np.arange(CELLS) - REACH + 0.5) / 6, 0, 1)
    edge = np.minimum(ramp, ramp[::-1])
    taper = np.outer(edge, edge)
    small = np.empty((len(images), CELLS, CELLS), np.float32)
    for index, image in enumerate(images):
        cells = cv2.resize(image.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        band = cv2.GaussianBlur(cells, (0, 0), 1.0) - cv2.GaussianBlur(cells, (0, 0), 6.0)
        # Locally normalised: one bright interface must not be all that is compared.
        band /= np.sqrt(cv2.GaussianBlur(band * band, (0, 0), 6.0)) + 1
        band *= taper
        small[index] = band / max(float(np.linalg.norm(band)), 1e-6)
    return small


def _weighted_quantile(values: NDArray[np.float64], weights: Weights, share: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, share - 1e-12)])
