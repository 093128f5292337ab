"""Is the long-range structure of images that of real ones? Orientation, ridges, and a two-sample test on these alone.

Fascia planes and fascicles run through a whole image. Spectra, histograms and gradients do not see whether they do: an
image whose streaks are short and wavy has them right. So this module looks at orientation alone, by the structure
tensor (Bigün & Granlund, ICCV 1987) in windows from 4 pixels to a quarter of the image, and at the bright ridges
(Frangi et al., MICCAI 1998: the Hessian's most negative eigenvalue), how long and how straight they are. The gradients
are divided by their local strength first: neither gain nor contrast nor depth counts.

Angles are those of the fibres, in degrees from the horizontal, positive where they rise to the right, -90 to 90.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import apply_hysteresis_threshold
from skimage.morphology import skeletonize

from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.quality.bootstrap import Weights, interval_where_defined
from csg_edge.quality.checks import Features, check_images
from csg_edge.quality.record import Figure

WINDOW = 4  # pixels: the smallest; each next one is twice as wide
LEVELS = 5  # the last is a quarter of 256 pixels
SHOWN = 2  # the level whose coherence and direction are figures: windows of 16 pixels
BINS = 36  # of 5 degrees
LEAST = 1 / 64  # of the image: a class that covers less has no direction worth a figure
WHOLE = 0  # column of the whole image; other columns are classes
RIDGE_SCALES = (1.5, 3.0)  # pixels: fascicles, fascia
LONG = 1 / 8  # of the image's side: a ridge longer than that is long

_GRADIENT = 1.5  # pixels
_NEIGHBOURHOOD = 12.0  # pixels, over which gradients are divided by their strength
_FLOOR = 4.0  # grey levels a pixel, squared: weaker gradients are noise of rounding and dark frames
_STRONG, _WEAK = 2.5, 1.5  # a ridge in units of the mean ridge strength around it: where one begins, and goes on

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Structure:
    """What is known of N images of K classes. Column WHOLE is the whole image, column k class k; NaN where it is
    absent.

    features: (N, K, F), for the C2ST. coherence: (N, K) 0 to 1, mean in windows of 16 pixels, 1 where all gradients
    agree. spread: (N, K) 0 to 1, how much direction differs within the image. direction: (N, K, BINS) shares of the
    fibres' directions from -90 to 90 degrees, by coherence. ridges: (N, K) mean length of bright ridges in pixels, each
    pixel of a ridge counting once.
    """

    features: Features
    coherence: Values
    spread: Values
    direction: Values
    ridges: Values

    def take(self, indices: NDArray[np.intp]) -> Structure:
        """The images at some positions."""
        return Structure(
            self.features[indices], self.coherence[indices], self.spread[indices], self.direction[indices],
            self.ridges[indices],
        )  # fmt: skip

    @classmethod
    def join(cls, parts: Sequence[Structure]) -> Structure:
        """Several as one."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


def describe_structure(samples: LabelledSet, *, classes: int) -> Structure:
    """Orientation and ridges of every image. Raises InputError for constant images."""
    check_images(samples.images)
    rows = [_describe(image, mask, classes) for image, mask in zip(samples.images, samples.masks, strict=True)]
    features, coherence, spread, direction, ridges = (np.stack(column) for column in zip(*rows, strict=True))
    return Structure(features.astype(np.float32), coherence, spread, direction, ridges)


def coherence_shift(
    real: Structure, made: Structure, groups: Sequence[Sequence[str]], *, column: int = WHOLE, rng: np.random.Generator
) -> Figure | None:
    """Mean coherence of the second set less that of the first, in deviations of the first; 0 ideal, None without
    images.

    groups: those of the real and of the made images.
    """
    pair = _present(real.coherence[:, column], made.coherence[:, column], groups)
    if pair is None:
        return None
    (first, second), kept = pair

    def shift(a: Weights, b: Weights) -> float:
        mean = a @ first / a.sum()
        deviation = np.sqrt(a @ (first - mean) ** 2 / a.sum())
        return float((b @ second / b.sum() - mean) / deviation) if deviation > 0 else float("nan")

    return interval_where_defined(shift, *kept, rng=rng)


def direction_spread(
    real: Structure, made: Structure, groups: Sequence[Sequence[str]], *, column: int = WHOLE, rng: np.random.Generator
) -> Figure | None:
    """How much direction differs within an image: mean of the second set over that of the first; 1 ideal."""
    pair = _present(real.spread[:, column], made.spread[:, column], groups)
    if pair is None:
        return None
    (first, second), kept = pair
    return _ratio(first, second, kept, rng)


def direction_gap(
    real: Structure, made: Structure, groups: Sequence[Sequence[str]], *, column: int = WHOLE, rng: np.random.Generator
) -> Figure | None:
    """Degrees that fibres must turn, on average, for the two sets to have one distribution of direction; 0 ideal.

    The Wasserstein-1 distance on the circle of axes, whose period is 180 degrees (Rabin et al., J. Math. Imaging Vis.
    41:147, 2011).
    """
    present = [np.isfinite(item.direction[:, column, 0]) for item in (real, made)]
    if not all(found.any() for found in present):
        return None
    first, second = (item.direction[found, column] for item, found in zip((real, made), present, strict=True))
    kept = [_chosen(names, found) for names, found in zip(groups, present, strict=True)]

    def gap(a: Weights, b: Weights) -> float:
        steps = np.cumsum(a @ first / a.sum() - b @ second / b.sum())
        return float(np.abs(steps - np.median(steps)).sum() * 180 / BINS)

    return interval_where_defined(gap, *kept, rng=rng)


def ridge_length(
    real: Structure, made: Structure, groups: Sequence[Sequence[str]], *, column: int = WHOLE, rng: np.random.Generator
) -> Figure | None:
    """Mean length of bright ridges, second set over first; 1 ideal."""
    pair = _present(real.ridges[:, column], made.ridges[:, column], groups)
    if pair is None:
        return None
    (first, second), kept = pair
    return _ratio(first, second, kept, rng)


def fibre_direction(image: Image) -> tuple[Values, Values]:
    """Direction of the fibres in degrees and coherence 0 to 1, in windows of 16 pixels: two (H / 4, W / 4) maps."""
    tensor = _levels(image)[SHOWN]
    return _degrees(tensor[1], tensor[2]), np.hypot(tensor[1], tensor[2])


def _describe(image: Image, mask: Image, classes: int) -> tuple[Values, Values, Values, Values, Values]:
    levels, ridges = _levels(image), _ridges(image)
    features = np.full((classes, LEVELS * 5 + len(RIDGE_SCALES) * 6), np.nan)
    coherence, spread, length = (np.full(classes, np.nan) for _ in range(3))
    direction = np.full((classes, BINS), np.nan)
    for column in range(classes):
        inside = mask == column if column != WHOLE else np.ones(mask.shape, bool)
        if inside.mean() < LEAST:
            continue
        found: list[float] = []
        for level, (weight, u, v) in enumerate(levels):
            covered = cv2.resize(inside.astype(np.float32), u.shape[::-1], interpolation=cv2.INTER_AREA)
            kept = weight * covered
            mean, deviation, mean_u, mean_v, differs = _moments(kept, u, v)
            found += [mean, deviation, mean_u, abs(mean_v), differs]
            if level == SHOWN:
                coherence[column], spread[column] = mean, differs
                counts, _ = np.histogram(_degrees(u, v), BINS, (-90, 90), weights=kept * np.hypot(u, v))
                direction[column] = counts / max(counts.sum(), 1e-12)
        for scale, (lines, relative) in zip(RIDGE_SCALES, ridges, strict=True):
            measured, mean = _measure_ridges(lines & inside, relative[inside], scale)
            found += measured
            if scale == RIDGE_SCALES[0]:
                length[column] = mean
        features[column] = found
    return features, coherence, spread, direction, length


def _levels(image: Image) -> list[tuple[Values, Values, Values]]:
    """For each window the weight and the two parts of the orientation vector, whose length is the coherence.

    The vector is (Jxx - Jyy, 2 Jxy) / (Jxx + Jyy) of the structure tensor J. Each window doubles by halving the maps.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), _GRADIENT)
    # Scharr's derivatives are true to direction, which central differences are not.
    across = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 16)
    down = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 16)
    energy = cv2.GaussianBlur(across**2 + down**2, (0, 0), _NEIGHBOURHOOD) + np.float32(_FLOOR)
    maps = np.stack([across**2 + down**2, across**2 - down**2, 2 * across * down], axis=2) / energy[..., None]
    found = []
    for level in range(LEVELS):
        if level:
            maps = cv2.resize(maps, (maps.shape[1] // 2, maps.shape[0] // 2), interpolation=cv2.INTER_AREA)
        # Weighted like a Gaussian whose deviation is half the window.
        mean = cv2.GaussianBlur(maps, (0, 0), WINDOW / 2, borderType=cv2.BORDER_REFLECT)
        trace = np.maximum(mean[..., 0], 1e-6)
        # What is weak against its neighbourhood, or a dark frame, has a direction by chance only.
        found.append((np.minimum(trace, 1.0).astype(np.float64), mean[..., 1] / trace, mean[..., 2] / trace))
    return found


def _moments(weight: Values, u: Values, v: Values) -> tuple[float, float, float, float, float]:
    """Mean and deviation of the coherence, mean vector, deviation of the vector around it."""
    share = weight / weight.sum()
    length = np.hypot(u, v)
    mean = float((share * length).sum())
    deviation = float(np.sqrt((share * (length - mean) ** 2).sum()))
    mean_u, mean_v = float((share * u).sum()), float((share * v).sum())
    spread = float(np.sqrt((share * ((u - mean_u) ** 2 + (v - mean_v) ** 2)).sum()))
    return mean, deviation, mean_u, mean_v, spread


def _degrees(u: Values, v: Values) -> Values:
    """The fibres run across the gradient, and rows count downwards."""
    return np.asarray(np.degrees(np.arctan2(v, -u)) / 2, np.float64)


def _ridges(image: Image) -> list[tuple[NDArray[np.bool_], Values]]:
    """At each scale the centre lines of the bright ridges, and the strength of ridges in units of that around them."""
    found = []
    for scale in RIDGE_SCALES:
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), scale)
        xx, yy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3) for order in ((2, 0), (0, 2)))
        xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1, ksize=3)
        strength = np.maximum(np.hypot((xx - yy) / 2, xy) - (xx + yy) / 2, 0)
        relative = strength / (cv2.GaussianBlur(strength, (0, 0), 8 * scale) + np.float32(0.3))
        ridges = apply_hysteresis_threshold(relative, _WEAK, _STRONG)  # type: ignore[no-untyped-call]
        found.append((skeletonize(ridges), relative))  # type: ignore[no-untyped-call]
    return found


def _measure_ridges(lines: NDArray[np.bool_], relative: Values, scale: float) -> tuple[list[float], float]:
    """Six features of some centre lines, and their mean length in pixels, each pixel counting once."""
    _, _, boxes, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
    boxes = boxes[1:][boxes[1:, cv2.CC_STAT_AREA] >= 4 * scale]
    # How far the strongest ridges stand out: noise of the same spectrum has few that do.
    peaks = float(np.log((relative**4).mean() / max(float((relative**2).mean()), 1e-9) ** 2))
    if not len(boxes):
        return [0.0, 0.0, 0.0, 0.0, float(np.log(1 / lines.size)), peaks], 0.0
    size = boxes[:, cv2.CC_STAT_AREA].astype(np.float64)
    length = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    share = size / size.sum()
    mean = float(share @ length)
    return [
        float(np.log(mean)),
        float(np.log(length.max())),
        float(share @ (length > LONG * min(lines.shape))),
        float(share @ np.minimum(length / size, 1)),  # straightness: reach over path
        float(np.log(size.sum() / lines.size)),
        peaks,
    ], mean


def _ratio(first: Values, second: Values, groups: Sequence[Sequence[str]], rng: np.random.Generator) -> Figure | None:
    """Mean of the second set over that of the first."""

    def ratio(a: Weights, b: Weights) -> float:
        usual = a @ first / a.sum()
        return float((b @ second / b.sum()) / usual) if usual > 0 else float("nan")

    return interval_where_defined(ratio, *groups, rng=rng)


def _present(
    first: Values, second: Values, groups: Sequence[Sequence[str]]
) -> tuple[tuple[Values, Values], list[list[str]]] | None:
    kept = [np.isfinite(values) for values in (first, second)]
    if not all(found.any() for found in kept):
        return None
    names = [_chosen(one, found) for one, found in zip(groups, kept, strict=True)]
    return (first[kept[0]], second[kept[1]]), names


def _chosen(names: Sequence[str], kept: NDArray[np.bool_]) -> list[str]:
    return [name for name, keep in zip(names, kept, strict=True) if keep]
