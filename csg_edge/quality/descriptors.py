"""Descriptors without weights: what images look like, alone or together with their masks, as vectors.

A descriptor is any `Describe`; an encoder gives better ones. These come from a fixed bank of band-pass filters
(differences of Gaussians, an octave apart, and their slopes), so that they need no training, cannot have been tuned
against, and are there when no encoder is. Joint features follow the idea of the Frechet joint distance (DeVries et al.,
arXiv 1907.08175): the distribution of pairs of image and condition also sees an image that belongs to another mask.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.quality.checks import Features, check_images

Describe = Callable[[LabelledSet], Features]
"""One vector an image: samples to (N, D) float32."""

DescribeImages = Callable[[NDArray[np.uint8]], Features]
"""One vector an image, from images alone: (N, H, W) uint8 to (N, D) float32."""

BANDS = 5
DEPTHS = 4
PROFILE_ROWS = 32
_FLOOR = 0.3  # grey levels: below the rounding of uint8 there is no texture to tell apart
LIMIT = 4.0  # deviations
_EDGE = 3  # pixels each side of a class border
_LEAST_BORDER = 20  # pixels


def band_maps(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(BANDS + 2, H, W): band-pass images from fine to coarse, then the slopes down and across at two pixels."""
    levels = [image.astype(np.float32)]
    for octave in range(BANDS):
        # Twice the variance at every step makes the bands an octave apart.
        levels.append(np.asarray(cv2.GaussianBlur(levels[0], (0, 0), 0.7 * 2**octave), np.float32))
    bands = [fine - coarse for fine, coarse in pairwise(levels)]
    smooth = levels[3]
    return np.stack([*bands, cv2.Sobel(smooth, -1, 0, 1), cv2.Sobel(smooth, -1, 1, 0)])


def texture_features(samples: LabelledSet) -> Features:
    """Image-only features (N, 4 * 9): grey mean and deviation and log deviation of every map, in four depth zones.

    Raises InputError for constant images.
    """
    check_images(samples.images)
    return np.stack([_texture(image, band_maps(image)) for image in samples.images])


def joint_features(samples: LabelledSet, *, classes: int) -> Features:
    """Features of images with their masks: texture features, then for every class what is known of it.

    Per class: grey mean less that of the image, log deviation of the grey levels and of the maps, and the mean step
    across its upper and its lower border; all zero where the image has none of it. Raises InputError for constant
    images.
    """
    check_images(samples.images)
    rows = []
    for image, mask in zip(samples.images, samples.masks, strict=True):
        maps = band_maps(image)
        rows.append(np.concatenate([_texture(image, maps), _classes(image, mask, maps, classes)]))
    return np.stack(rows)


def style_features(images: NDArray[np.uint8]) -> Features:
    """Style of (N, H, W) images: channel means, deviations and Gram statistics of the maps, and the depth profile."""
    check_images(images)
    maps = np.stack([_small_maps(image) for image in images])
    return np.concatenate([gram_statistics(maps), depth_profile(images)], axis=1)


def gram_statistics(maps: NDArray[np.float32]) -> Features:
    """Means, log deviations and correlations of the channels of (N, C, H, W) feature maps: (N, 2 C + C (C - 1) / 2).

    The Gram matrix of Gatys et al. (CVPR 2016) with its scale split off, so that no strong channel drowns the others.
    """
    count, channels = maps.shape[:2]
    flat = maps.reshape(count, channels, -1).astype(np.float32)
    mean = flat.mean(axis=2)
    centred = flat - mean[..., None]
    covariance = centred @ centred.transpose(0, 2, 1) / flat.shape[2]
    deviation = np.sqrt(np.einsum("nii->ni", covariance)) + 1e-6
    correlation = covariance / (deviation[:, :, None] * deviation[:, None])
    upper = np.triu_indices(channels, 1)
    return np.concatenate([mean, np.log(deviation), correlation[:, upper[0], upper[1]]], axis=1).astype(np.float32)


def depth_profile(images: NDArray[np.uint8], *, rows: int = PROFILE_ROWS) -> Features:
    """Mean and deviation of the grey levels in `rows` layers of depth, 0..1: (N, 2 * rows)."""
    layers = np.array_split(images.astype(np.float32) / 255, rows, axis=1)
    return np.stack(
        [layer.mean(axis=(1, 2)) for layer in layers] + [layer.std(axis=(1, 2)) for layer in layers], axis=1
    )


def standardise(reference: Features, *others: Features) -> tuple[Features, ...]:
    """All sets scaled so that every feature of the reference has mean 0 and deviation 1, then cut at +-LIMIT.

    What lies further out is a rare class or border that the reference has hardly any of; uncut, one such value cubed
    would be all that the kernel of KID sees. Features that do not vary over the reference are left unscaled.
    """
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1)
    return tuple(
        np.clip((features - mean) / scale, -LIMIT, LIMIT).astype(np.float32) for features in (reference, *others)
    )


def _texture(image: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    stack = np.concatenate([image[None].astype(np.float32), maps])
    zones = np.array_split(stack, DEPTHS, axis=1)
    return np.concatenate(
        [np.concatenate([[zone[0].mean() / 32], np.log(zone.std(axis=(1, 2)) + _FLOOR)]) for zone in zones]
    ).astype(np.float32)


def _classes(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], maps: NDArray[np.float32], classes: int
) -> NDArray[np.float32]:
    grey = image.astype(np.float32)
    mean = grey.mean()
    rows = np.zeros((classes, len(maps) + 4), np.float32)
    below = cv2.blur(grey, (1, _EDGE), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
    above = cv2.blur(grey, (1, _EDGE), anchor=(0, _EDGE - 1), borderType=cv2.BORDER_REPLICATE)
    for index in np.unique(mask):
        inside = mask == index
        if inside.sum() < 50 or index >= classes:
            continue
        upper, lower = inside[1:] & ~inside[:-1], inside[:-1] & ~inside[1:]
        # The step from the pixels above a border to those below it.
        step = (below[1:] - above[:-1]) / 32
        rows[index] = [
            (grey[inside].mean() - mean) / 32,
            np.log(grey[inside].std() + _FLOOR),
            *np.log(maps[:, inside].std(axis=1) + _FLOOR),
            step[upper].mean() if upper.sum() >= _LEAST_BORDER else 0,
            step[lower].mean() if lower.sum() >= _LEAST_BORDER else 0,
        ]
    return rows.ravel()


def _small_maps(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([image[None].astype(np.float32), band_maps(image)], dtype=np.float32)[
        :, ::2, ::2
    ] * np.float32(1 / 32)
