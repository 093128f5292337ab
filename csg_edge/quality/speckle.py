"""Is the speckle of the right kind? First-order and correlation statistics in homogeneous patches.

In patches of one class, away from its borders:
- `snr`: mean over standard deviation of the envelope; 1.91 for fully developed speckle (Wagner et al., IEEE Trans.
  Sonics Ultrason. 30:156, 1983);
- `nakagami`: m = E[R^2]^2 / Var[R^2] of the envelope R, the inverse normalised variance estimator (Shankar, IEEE Trans.
  Ultrason. Ferroelectr. Freq. Control 47:727, 2000); 1 for Rayleigh, below 1 for clustered scatterers;
- `axial`, `lateral`: full width at half maximum of the autocorrelation of the grey levels along depth and across, px.

Limits. The envelope is recovered from grey levels under an *assumed* dynamic range and a straight log curve; scanners
use other ranges, grey maps and speckle filters, so that SNR and m compare sets that went the same way and are no
physical constants. Tissue structure inside a class (fascicles, septa) widens the correlation and lowers SNR and m.
Classes thinner than a patch (aponeurosis, small nerves) are never seen, nor are clipped patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK
from csg_edge.quality.bootstrap import Weights, group_interval
from csg_edge.quality.checks import check_images, check_pair
from csg_edge.quality.record import Figure

STATISTICS = ("snr", "nakagami", "axial", "lateral")
PATCH = 32
MARGIN = 2  # pixels between a patch and another class: the label itself is that uncertain
DYNAMIC_RANGE_DB = 60.0
MAX_CLIPPED = 0.1  # share of pixels at 0 or 255: what was clipped cannot be undone
_STRIDE = 16


@dataclass(frozen=True)
class SpeckleStatistics:
    """One row an image that has homogeneous patches: median over its patches.

    values: (M, 4) in the order of STATISTICS; positions: (M,) which images of the set these are; patches: how many in
    all. Images without a usable patch are left out.
    """

    values: NDArray[np.float64]
    positions: NDArray[np.intp]
    patches: int

    def take(self, indices: NDArray[np.intp]) -> SpeckleStatistics:
        """Those of the images at some positions, which are counted anew; `patches` stays that of the whole set."""
        place = {int(index): number for number, index in enumerate(indices)}
        kept = [row for row, position in enumerate(self.positions) if int(position) in place]
        positions = np.array([place[int(self.positions[row])] for row in kept], np.intp)
        return SpeckleStatistics(self.values[kept], positions, self.patches)


def homogeneous_patches(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(P, PATCH, PATCH) patches of a (H, W) image that lie in one class and are not clipped; P may be 0."""
    kernel = np.ones((PATCH + 2 * MARGIN,) * 2, np.uint8)
    # Outside the image counts as the same class: a patch may touch the image's border.
    pure = (cv2.erode(mask, kernel) == cv2.dilate(mask, kernel)) & (mask != NO_MASK)
    half = PATCH // 2
    rows, columns = np.nonzero(pure[half : -half + 1 : _STRIDE, half : -half + 1 : _STRIDE])
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))
    patches = windows[rows * _STRIDE, columns * _STRIDE]
    clipped = ((patches == 0) | (patches == 255)).mean(axis=(1, 2))
    flat = np.ptp(patches.reshape(len(patches), -1), axis=1) == 0 if len(patches) else np.zeros(0, bool)
    return np.asarray(patches[(clipped <= MAX_CLIPPED) & ~flat])


def patch_statistics(patches: NDArray[np.uint8], *, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> NDArray[np.float64]:
    """(P, 4): snr, nakagami, axial and lateral width in pixels of (P, H, W) patches, none of them constant."""
    grey = patches.astype(np.float64)
    envelope = 10 ** ((grey / 255 - 1) * dynamic_range_db / 20)
    snr = envelope.mean(axis=(1, 2)) / envelope.std(axis=(1, 2))
    intensity = envelope**2
    nakagami = intensity.mean(axis=(1, 2)) ** 2 / intensity.var(axis=(1, 2))
    speckle = _without_plane(grey)
    axial = _full_width(_autocorrelation(speckle.transpose(0, 2, 1)))
    lateral = _full_width(_autocorrelation(speckle))
    return np.stack([snr, nakagami, axial, lateral], axis=1)


def speckle_statistics(samples: LabelledSet, *, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> SpeckleStatistics:
    """Statistics of every image with homogeneous patches. Raises InputError if no image has one."""
    check_images(samples.images)
    values, positions, count = [], [], 0
    for index, (image, mask) in enumerate(zip(samples.images, samples.masks, strict=True)):
        patches = homogeneous_patches(image, mask)
        if len(patches):
            values.append(np.median(patch_statistics(patches, dynamic_range_db=dynamic_range_db), axis=0))
            positions.append(index)
            count += len(patches)
    if not values:
        raise InputError(
            f"speckle: none of {len(samples)} images has a {PATCH} x {PATCH} patch inside one class and not clipped; "
            "use larger images or masks with larger regions"
        )
    return SpeckleStatistics(np.array(values), np.array(positions, np.intp), count)


def speckle_figures(real: LabelledSet, generated: LabelledSet, *, rng: np.random.Generator) -> Mapping[str, Figure]:
    """For each of STATISTICS and for their mean ("all") a robust effect size between two sets, 0 ideal.

    The Wasserstein-1 distance of the logarithms of the per-image values, in units of their spread (1.4826 x median
    absolute deviation) over the real images; it sees a shift as well as a loss of variety. Logarithms, because SNR and
    m are ratios whose few large values (flat, nearly anechoic patches) would else be all that counts. Raises InputError
    for images of different sizes or without homogeneous patches.
    """
    check_pair(real, generated)
    groups = real.groups, generated.groups
    return speckle_effects(speckle_statistics(real), speckle_statistics(generated), groups, rng=rng)


def speckle_effects(
    first: SpeckleStatistics, second: SpeckleStatistics, groups: Sequence[Sequence[str]], *, rng: np.random.Generator
) -> Mapping[str, Figure]:
    """The same of two sets' statistics; groups: those of all images of both, with homogeneous patches or without."""
    values = [np.log(first.values), np.log(second.values)]
    # The least spread, 1 % of the value, keeps a set of near-identical images from dividing by nothing.
    spread = np.maximum(1.4826 * np.median(np.abs(values[0] - np.median(values[0], axis=0)), axis=0), 0.01)
    kept = [[names[index] for index in found.positions] for names, found in zip(groups, (first, second), strict=True)]
    pooled = np.concatenate(values)
    order = np.argsort(pooled, axis=0)
    steps = np.diff(np.take_along_axis(pooled, order, axis=0), axis=0) / spread

    def effect(columns: slice, a: Weights, b: Weights) -> float:
        if not a.any() or not b.any():
            return float("nan")
        # Area between the two weighted cumulative distributions, one a column.
        signed = np.concatenate([a / a.sum(), -b / b.sum()])
        return float((np.abs(np.cumsum(signed[order[:, columns]], axis=0)[:-1]) * steps[:, columns]).sum(axis=0).mean())

    columns = {"all": slice(None)} | {name: slice(i, i + 1) for i, name in enumerate(STATISTICS)}
    return {
        name: group_interval(partial(effect, chosen), *kept, rng=rng, draws=500) for name, chosen in columns.items()
    }


def _without_plane(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Patches less their best-fitting plane: the fall-off with depth is not speckle."""
    count, height, width = patches.shape
    rows, columns = np.mgrid[:height, :width]
    design = np.stack([np.ones(height * width), rows.ravel(), columns.ravel()], axis=1)
    basis = np.linalg.qr(design)[0]
    flat = patches.reshape(count, -1)
    return np.asarray((flat - flat @ basis @ basis.T).reshape(patches.shape))


def _autocorrelation(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, H, W) -> (P, W) autocorrelation along the rows at lags from 0, each divided by its overlap; 1 at lag 0."""
    width = patches.shape[2]
    spectra = np.fft.rfft(patches, n=2 * width)
    power = (spectra.real**2 + spectra.imag**2).sum(axis=1)
    covariance = np.fft.irfft(power, n=2 * width)[:, :width] / np.arange(width, 0, -1)
    return np.asarray(covariance / np.maximum(covariance[:, :1], 1e-12))


def _full_width(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the lag at which (P, L) profiles first fall to one half, interpolated; at most twice the last lag."""
    below = profile < 0.5
    below[:, -1] = True
    first = np.argmax(below, axis=1)
    rows = np.arange(len(profile))
    high, low = profile[rows, first - 1], profile[rows, first]
    step = np.clip((high - 0.5) / np.maximum(high - low, 1e-12), 0, 1)
    return np.asarray(2 * (first - 1 + step))
