"""Do different seeds give different images of one mask and context? Compared with the teacher, not with real images.

The mean distance between images that share their conditions, after Zhu et al. (BicycleGAN, NeurIPS 2017). More is not
better: noise is diverse. The gate asks for 0.9 to 1.1 of the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import group_interval
from csg_edge.quality.checks import Features
from csg_edge.quality.memorisation import reduced
from csg_edge.quality.record import Figure


def seed_distances(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(C,): mean absolute difference in grey levels over all pairs of seeds; images: (C, S, H, W), S seeds a condition.

    Raises InputError for fewer than two seeds.
    """
    _check(images, 4)
    wide = images.astype(np.int16)
    distances = [np.abs(wide[:, i] - wide[:, j]).mean(axis=(1, 2)) for i, j in _pairs(images)]
    return np.asarray(np.mean(distances, axis=0))


def seed_feature_distances(features: Features) -> NDArray[np.float64]:
    """(C,): mean Euclidean distance over all pairs of seeds; features: (C, S, D). Raises InputError as above."""
    _check(features, 3)
    wide = features.astype(np.float64)
    distances = [np.linalg.norm(wide[:, i] - wide[:, j], axis=1) for i, j in _pairs(features)]
    return np.asarray(np.mean(distances, axis=0))


def diversity_figure(distances: NDArray[np.float64], groups: Sequence[str], *, rng: np.random.Generator) -> Figure:
    """Mean of (C,) distances with its interval over the groups of the C masks."""
    if distances.ndim != 1 or len(distances) != len(groups):
        raise InputError(f"diversity: {distances.shape} distances, {len(groups)} groups; give one group a condition")
    return group_interval(lambda a: float(a @ distances / a.sum()), groups, rng=rng)


def seed_likeness(
    shared: tuple[NDArray[np.uint8], NDArray[np.uint8]], apart: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    groups: Sequence[str], *, rng: np.random.Generator,
) -> Figure:  # fmt: skip
    """How much more alike images of other masks and contexts are for having one seed; 0 is not at all, 1 the same
    image.

    shared, apart: two pairs of (N, H, W) uint8 images, of which pair n of `shared` has one seed and nothing else in
    common, pair n of `apart` nothing at all. The mean correlation of the first less that of the second, of images
    band-passed to their structures (`memorisation.reduced`). groups: N, one a pair.
    """
    alike, unlike = (np.einsum("nij,nij->n", reduced(one), reduced(other)) for one, other in (shared, apart))
    return group_interval(lambda a: float(a @ (alike - unlike) / a.sum()), groups, rng=rng)


def _pairs(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    return combinations(range(values.shape[1]), 2)


def _check(values: NDArray[Any], dimensions: int) -> None:
    if values.ndim != dimensions or values.shape[1] < 2 or not values.size:
        raise InputError(
            f"diversity: shape {values.shape}; give conditions x seeds x ..., at least two seeds of each condition"
        )
    if not np.isfinite(values).all():
        raise InputError("diversity: NaN or infinite values; check the images and the encoder that made them")
