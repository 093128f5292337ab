"""Are the grey levels of each class those of real images? Sees wrong brightness, and structures beside their mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK
from csg_edge.quality.bootstrap import Weights, group_interval
from csg_edge.quality.checks import check_pair
from csg_edge.quality.record import Figure

MIN_PIXELS = 2000
"""A class with fewer pixels in either set has no histogram worth comparing."""
GREYS = 256


@dataclass(frozen=True)
class HistogramGap:
    """distances: class index to Wasserstein-1 distance in grey levels; mean: over the classes, each counting once.

    real, generated: class index to (256,) shares of the grey levels, for drawing; excluded: class index to the reason.
    """

    mean: Figure
    distances: Mapping[int, Figure]
    real: Mapping[int, NDArray[np.float64]]
    generated: Mapping[int, NDArray[np.float64]]
    excluded: Mapping[int, str]


def class_histograms(samples: LabelledSet, *, classes: int) -> NDArray[np.float64]:
    """(N, classes, 256) pixel counts, without what nobody labelled.

    Raises InputError for a mask with an index outside the classes.
    """
    top = int(samples.masks[samples.masks != NO_MASK].max(initial=0))
    if top >= classes:
        raise InputError(f"histograms: a mask holds index {top}, the schema has {classes} classes; use one schema")
    return (
        np.stack(
            [
                np.bincount(mask.ravel().astype(np.intp) * GREYS + image.ravel(), minlength=GREYS * GREYS)[
                    : classes * GREYS
                ]
                for image, mask in zip(samples.images, samples.masks, strict=True)
            ]
        )
        .reshape(len(samples), classes, GREYS)
        .astype(np.float64)
    )


def grey_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wasserstein-1 distance in grey levels of (..., 256) counts: the area between the cumulative distributions."""
    shares = [np.cumsum(counts, axis=-1) / counts.sum(axis=-1, keepdims=True) for counts in (first, second)]
    return np.asarray(np.abs(shares[0] - shares[1]).sum(axis=-1))


def histogram_gap(real: LabelledSet, generated: LabelledSet, *, classes: int, rng: np.random.Generator) -> HistogramGap:
    """Compare the grey levels of each class between two sets.

    Best with generated images that were made from the masks of these real images, so that a class covers the same
    places in both. Raises InputError for images of different sizes, masks outside the classes, or if no class has
    enough pixels in both sets.
    """
    check_pair(real, generated)
    first, second = (class_histograms(samples, classes=classes) for samples in (real, generated))
    return gap_of_counts(first, second, (real.groups, generated.groups), rng=rng)


def gap_of_counts(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    groups: Sequence[Sequence[str]],
    *,
    rng: np.random.Generator,
) -> HistogramGap:
    """The same of two sets' pixel counts (N, classes, 256); groups: those of the images of both."""
    classes = first.shape[1]
    pixels = np.stack([first.sum(axis=(0, 2)), second.sum(axis=(0, 2))])
    excluded: dict[int, str] = {}
    for index in range(classes):
        few = [name for name, count in zip(("real", "generated"), pixels[:, index], strict=True) if count < MIN_PIXELS]
        if few:
            least = int(pixels[:, index].min())
            excluded[index] = f"{least} pixels in the {' and '.join(few)} images, {MIN_PIXELS} are the least"
    kept = [index for index in range(classes) if index not in excluded]
    if not kept:
        raise InputError(f"histograms: no class has {MIN_PIXELS} pixels in both sets; give more images or larger masks")

    def distance(columns: list[int], a: Weights, b: Weights) -> float:
        counts = [
            (weights @ table[:, columns].reshape(len(table), -1)).reshape(-1, GREYS)
            for weights, table in ((a, first), (b, second))
        ]
        seen = (counts[0].sum(axis=1) > 0) & (counts[1].sum(axis=1) > 0)  # a resampling can lose a rare class
        return float(grey_distance(counts[0][seen], counts[1][seen]).mean()) if seen.any() else float("nan")

    def figure(columns: list[int]) -> Figure:
        return group_interval(lambda a, b: distance(columns, a, b), *groups, rng=rng, draws=300)

    shares = [
        {index: np.asarray(total[index] / total[index].sum()) for index in kept}
        for total in (first.sum(axis=0), second.sum(axis=0))
    ]
    return HistogramGap(figure(kept), {index: figure([index]) for index in kept}, shares[0], shares[1], excluded)
