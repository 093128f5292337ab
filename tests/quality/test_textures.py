"""Spectrum, speckle and histograms on images of which the answer is known, and on bad input."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import CLASSES, phantom_samples

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.histograms import MIN_PIXELS, grey_distance, histogram_gap
from csg_edge.quality.speckle import patch_statistics, speckle_figures, speckle_statistics
from csg_edge.quality.spectrum import radial_log_spectra, spectrum_figure, spectrum_gap


def small(count: int = 12) -> LabelledSet:
    return phantom_samples(range(count), range(count), size=128, group=2)


def test_white_noise_has_a_flat_spectrum_of_its_variance() -> None:
    noise = np.random.default_rng(0).normal(128, 10, (16, 128, 128)).clip(0, 255)
    spectrum = radial_log_spectra(noise).mean(axis=0)
    assert spectrum[4:] == pytest.approx(np.log((10 / 255) ** 2), abs=0.15)


def test_doubling_contrast_moves_the_spectrum_by_log_four() -> None:
    noise = np.random.default_rng(0).normal(0, 10, (4, 64, 64))
    assert spectrum_gap(radial_log_spectra(128 + noise), radial_log_spectra(128 + 2 * noise)) == pytest.approx(
        np.log(4), abs=1e-4
    )


def test_a_wave_falls_into_its_ring() -> None:
    columns = np.arange(128)
    wave = np.broadcast_to(128 + 50 * np.sin(2 * np.pi * 20 * columns / 128), (1, 128, 128))
    assert np.argmax(radial_log_spectra(wave)[0]) == 19  # bin k holds k + 1 waves an image


def test_fully_developed_speckle_has_its_theoretical_statistics() -> None:
    rng = np.random.default_rng(0)
    sigma = 2.0
    field = [cv2.GaussianBlur(rng.normal(size=(640, 640)), (0, 0), sigma) for _ in range(2)]
    envelope = np.hypot(*field)
    grey = 255 * (1 + 20 * np.log10(envelope / envelope.max()) / 60)
    patches = grey.clip(0, 255).astype(np.uint8)[:512, :512].reshape(2, 256, 2, 256).swapaxes(1, 2).reshape(4, 256, 256)
    snr, nakagami, axial, lateral = np.median(patch_statistics(patches), axis=0)
    assert snr == pytest.approx(1.91, abs=0.05)  # Rayleigh
    assert nakagami == pytest.approx(1.0, abs=0.08)
    assert axial == pytest.approx(lateral, rel=0.12)
    # The amplitude of a field with Gaussian correlation exp(-x^2 / 4 s^2) has nearly that correlation squared; the
    # logarithm narrows it further.
    assert 0.75 * 2.355 * 2 < axial < 1.1 * 2.355 * 2


def test_speckle_says_which_axis_grew() -> None:
    real = phantom_samples(range(40, 70), range(40, 70), group=2)
    wide = real.with_images(np.stack([cv2.GaussianBlur(image, (0, 0), 2.5, sigmaY=0.01) for image in real.images]))
    figures = speckle_figures(real, wide, rng=np.random.default_rng(0))
    assert figures["lateral"].value > 1.5 * figures["axial"].value
    same = speckle_figures(real, real, rng=np.random.default_rng(0))
    assert all(figure.value == 0 for figure in same.values())


def test_wasserstein_distance_of_shifted_greys_is_the_shift() -> None:
    counts = np.zeros(256)
    counts[40:60] = 7
    assert grey_distance(counts, np.roll(counts, 13)) == pytest.approx(13)


def test_a_class_with_few_pixels_is_left_out_and_named(rng: np.random.Generator) -> None:
    real = small()
    masks = real.masks.copy()
    masks[masks == 9] = 0
    masks[0, 0, :5] = 9
    real = replace(real, masks=masks)
    gap = histogram_gap(real, real, classes=CLASSES, rng=rng)
    assert gap.mean.value == 0
    assert 9 not in gap.distances
    assert f"{MIN_PIXELS} are the least" in gap.excluded[9]


def test_bad_input_is_refused_with_its_remedy(rng: np.random.Generator) -> None:
    real = small(4)
    flat = real.images.copy()
    flat[2] = 7
    other = phantom_samples(range(4), range(4), size=96)
    with pytest.raises(InputError, match="position 2"):
        radial_log_spectra(flat)
    with pytest.raises(InputError, match="NaN"):
        radial_log_spectra(np.full((1, 64, 64), np.nan))
    for compare in (spectrum_figure, speckle_figures):
        with pytest.raises(InputError, match="read the real set at the size"):
            compare(real, other, rng=rng)
    with pytest.raises(InputError, match="use one schema"):
        histogram_gap(replace(real, masks=real.masks * 0 + 12), real, classes=CLASSES, rng=rng)
    checkers = np.indices(real.masks.shape[1:]).sum(axis=0).astype(np.uint8) % 2
    with pytest.raises(InputError, match="use larger images or masks"):
        speckle_statistics(replace(real, masks=np.broadcast_to(checkers, real.masks.shape)))


def test_few_groups_are_said(rng: np.random.Generator) -> None:
    real = small(6)
    assert "no interval: 3 groups" in spectrum_figure(real, real, rng=rng).note
