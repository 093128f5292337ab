"""What every metric asks of its input, said once: sizes, content and numbers, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError

Features = NDArray[np.float32]


def check_images(images: NDArray[Any], what: str = "images") -> None:
    """(N, H, W) images that are neither constant nor, as floats, NaN or infinite. Raises InputError."""
    if images.ndim != 3 or not len(images) or min(images.shape[1:]) < 32:
        raise InputError(f"{what}: shape {images.shape}; give (N, H, W) with at least one image of 32 x 32 pixels")
    if not np.isfinite(images).all():
        raise InputError(f"{what}: NaN or infinite pixels; the engine that made them is broken, run `csg-edge verify`")
    constant = np.flatnonzero(np.ptp(images.reshape(len(images), -1), axis=1) == 0)
    if len(constant):
        raise InputError(
            f"{what}: {len(constant)} of {len(images)} have one grey level only, first at position {constant[0]}; "
            "leave them out or mend the generator, a flat image has no texture to measure"
        )


def check_pair(real: LabelledSet, generated: LabelledSet) -> None:
    """Two sets of one image size. Raises InputError."""
    check_images(real.images, "real images")
    check_images(generated.images, "generated images")
    if real.images.shape[1:] != generated.images.shape[1:]:
        raise InputError(
            f"real images of {real.images.shape[1:]}, generated ones of {generated.images.shape[1:]}; "
            "read the real set at the size that the bundle makes"
        )


def check_features(features: NDArray[Any], groups: Sequence[str] | None = None, *, what: str = "features") -> None:
    """(N, D) finite feature vectors, one group each. Raises InputError."""
    if features.ndim != 2 or not features.size:
        raise InputError(f"{what}: shape {features.shape}; give (N, D), one vector an image")
    if not np.isfinite(features).all():
        raise InputError(f"{what}: NaN or infinite values; check the images and the encoder that made them")
    if groups is not None and len(groups) != len(features):
        raise InputError(f"{what}: {len(features)} vectors, {len(groups)} groups; give one group an image")


def check_feature_pair(real: NDArray[Any], generated: NDArray[Any]) -> None:
    """Two sets of feature vectors of one length. Raises InputError."""
    check_features(real, what="real features")
    check_features(generated, what="generated features")
    if real.shape[1] != generated.shape[1]:
        raise InputError(
            f"real features have {real.shape[1]} values, generated ones {generated.shape[1]}; "
            "describe both with the same descriptor"
        )
